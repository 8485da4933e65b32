//! What makes nats-servers enforce what should be.

pub mod config;
