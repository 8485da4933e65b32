//! What people and CI run in this repository: `cargo xtask`.

#![allow(clippy::print_stdout, reason = "talking to people is what this program is for")]

mod tools;

use anyhow::Result;
use clap::Parser;

/// What people and CI run in this repository.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
enum Task {
    /// Fetch the servers that tests and demo run, at their pinned versions, into `target/tools`.
    Tools,
}

fn main() -> Result<()> {
    match Task::parse() {
        Task::Tools => tools::install().map(drop),
    }
}
