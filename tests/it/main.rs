//! Tests against real servers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod harness;
mod server;
mod support;

/// The program under test.
#[expect(dead_code, reason = "there is no test of it yet")]
const PB_NATS: &str = env!("CARGO_BIN_EXE_pb-nats");
