//! What people and CI run in this repository: `cargo xtask`.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "talking to people is what this program is for"
)]
#![allow(clippy::disallowed_methods, reason = "it has no runtime to block and no file to tear")]

mod browser;
mod cargo;
mod demo;
mod dist;
mod faults;
mod package;
#[path = "../../tests/it/support.rs"]
mod support;
mod tools;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// What people and CI run in this repository.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
enum Task {
    /// Show pb-nats at work between a PocketBase and a nats-server, and leave them to play with.
    Demo {
        /// Do not stay; exit 1 if anything is not as it should be.
        #[arg(long)]
        check: bool,
    },
    /// Run all tests, against the pinned servers.
    Test {
        /// For `cargo test`, such as a part of a test's name.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Break everything that can break, and see whether the promises hold.
    Faults(faults::Faults),
    /// Look at the files in `dist/`: container and Kubernetes files by their schemas, the unit by systemd.
    Dist,
    /// Show the status page to Chromium, and metrics and alert rules to Prometheus' promtool.
    Browser,
    /// Try the cookbook's recipes with nats.js, too; it needs Node.js.
    Clients,
    /// All that has to hold before a change is merged.
    Ci,
    /// Write the generated pages in `docs/` anew.
    Docs {
        /// Only say whether they are up to date.
        #[arg(long)]
        check: bool,
    },
    /// Measure, against the pinned servers, and write `docs/benchmarks.md`.
    Bench {
        /// Small sizes, and nothing written: whether it works, not how fast.
        #[arg(long)]
        quick: bool,
        /// Only how a million users fare. It takes 16 GiB and minutes.
        #[arg(long, conflicts_with = "quick")]
        million: bool,
        /// Only sizes up to so many users, and nothing written.
        #[arg(long, conflicts_with_all = ["quick", "million"])]
        users: Option<usize>,
    },
    /// Build the static release program and its Debian package, into `target/package`.
    Package {
        /// Also install, remove and purge it on a clean Debian; for that, be root.
        #[arg(long)]
        check: bool,
    },
    /// Fetch the servers and clients that tests and demo run, at their pinned versions, into
    /// `target/tools`.
    Tools,
}

fn main() -> ExitCode {
    let Err(error) = run(Task::parse()) else {
        return ExitCode::SUCCESS;
    };
    eprintln!("error: {error}");
    for cause in error.chain().skip(1) {
        eprintln!("cause: {cause}");
    }
    ExitCode::FAILURE
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Demo { check } => demo::run(check),
        Task::Test { arguments } => cargo::test(&arguments),
        Task::Faults(arguments) => faults::run(&arguments),
        Task::Dist => dist::run(),
        Task::Browser => browser::run(),
        Task::Clients => cargo::clients(),
        Task::Ci => cargo::ci(),
        Task::Docs { check } => cargo::docs(check),
        Task::Bench { quick, million, users } => cargo::bench(quick, million, users),
        Task::Package { check } => package::run(check),
        Task::Tools => tools::install().map(drop),
    }
}
