//! `pb-nats hash`.

use std::process::ExitCode;

use anyhow::Context;
use pb_nats::users::Unfit;

use super::{complain, password_from_stdin, print};

#[derive(clap::Args)]
pub(crate) struct Hash {
    /// One more doubles the time that a log-in, and each client at a reload, takes
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(4..=14))]
    cost: u32,
}

pub(crate) fn hash(arguments: &Hash) -> anyhow::Result<ExitCode> {
    let password = password_from_stdin("Password")?;
    // Whose it is, and what for, is for the caller to know.
    if let Some(unfit) = Unfit::of(&password) {
        complain("warning", &unfit.to_string());
        complain("hint", unfit.hint());
    }
    let hash = bcrypt::hash(password.as_str(), arguments.cost).context("no hash could be made")?;
    print(&format!("{hash}\n"))
}
