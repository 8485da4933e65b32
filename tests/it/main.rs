//! Tests against real servers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod apply;
mod book;
mod cli;
mod cutoff;
mod dist;
mod harness;
mod manners;
mod middlebox;
mod permissions;
mod reconcile;
mod server;
mod source;
mod support;
mod tidy;
mod tls;

/// The program under test.
const PB_NATS: &str = env!("CARGO_BIN_EXE_pb-nats");
