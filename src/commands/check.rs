//! `pb-nats check`.

use std::{env, process::ExitCode};

use pb_nats::{Options, check::Verdict};
use serde_json::json;
use tokio::sync::watch;

use super::{print, show, terminal::waiting};
use crate::Cli;

#[derive(clap::Args)]
pub(crate) struct Check {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn check(cli: &Cli, arguments: &Check) -> anyhow::Result<ExitCode> {
    // Its notes are among the lines.
    let options = Options::load(cli.config.as_deref(), env::vars_os())?;
    let (_, doing) = watch::channel("checking");
    let lines = waiting(cli, doing, pb_nats::check::check(&options)).await;
    if arguments.json {
        print(&format!("{:#}\n", json!(lines)))?;
    } else {
        let lines: Vec<_> = lines.iter().map(ToString::to_string).collect();
        show(&(lines.join("\n") + "\n"))?;
    }
    let failed = lines.iter().any(|it| it.verdict == Verdict::Wrong);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
