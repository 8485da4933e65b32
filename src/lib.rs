//! Your PocketBase users and roles, live in NATS.

pub mod apply;
pub mod auth;
pub mod options;
pub mod server;
pub mod source;
