//! Tests against real servers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod apply;
mod book;
mod check;
mod cli;
mod cutoff;
mod dev;
mod differential;
mod dist;
mod explain;
mod fuzz;
mod harness;
mod hygiene;
mod init;
mod liveness;
mod main_config;
mod main_config_start;
mod manners;
mod middlebox;
mod permissions;
mod recipes;
mod reconcile;
mod server;
mod source;
mod status;
mod strangers;
mod support;
mod tidy;
mod tls;
mod users;
mod written;

/// The program under test.
const PB_NATS: &str = env!("CARGO_BIN_EXE_pb-nats");
