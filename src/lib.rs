//! Your PocketBase users and roles, live in NATS.
//!
//! One pass reads everything that PocketBase says, works out what NATS should allow, and makes
//! every nats-server run exactly that:
//!
//! ```text
//! PocketBase ──hint──▶ loop ──▶ PASS
//!                       ▲        │  snapshot ▶ desired ▶ changes ▶ guard       pure, in `auth`
//!   resync / retry ─────┘        │  render ▶ check ▶ replace                   `engine`, `state`
//!                                ▼  each server: running? ▶ reload ▶ running   `engine`, `nats`
//! ```
//!
//! A pass is idempotent. A hint only decides *when* the next pass runs, never what it does, so a
//! lost, late or repeated one costs time and nothing else.
//!
//! To embed it:
//!
//! ```no_run
#![doc = include_str!("../examples/embed.rs")]
//! ```

#[cfg(not(unix))]
compile_error!("pb-nats needs signals, file modes and atomic renames as Unix has them");

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod causes;
pub mod options;

pub mod source;

pub mod auth;

pub mod nats;
pub mod state;

pub mod engine;

mod tls;

pub mod status;

pub mod check;
pub mod init;
pub mod reconcile;
pub mod users;

pub mod admin;

mod hint;

pub use hint::hint;
pub use options::Options;
pub use reconcile::Reconciler;
pub use source::{PocketBase, Source};
