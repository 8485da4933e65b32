//! `pb-nats check`.

use std::{env, process::ExitCode};

use pb_nats::{
    Options,
    check::{self, Line, Verdict},
};
use serde_json::json;
use tokio::sync::watch;

use super::{print, show, terminal::waiting};
use crate::Cli;

#[derive(clap::Args)]
pub(crate) struct Check {
    /// Make the servers reload, to see that it works; first it is told how long that keeps new
    /// log-ins waiting
    #[arg(long)]
    reload: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn check(cli: &Cli, arguments: &Check) -> anyhow::Result<ExitCode> {
    // Its notes are among the lines.
    let options = Options::load(cli.config.as_deref(), env::vars_os())?;
    let (_, doing) = watch::channel("checking");
    let mut lines = waiting(cli, doing, check::check(&options)).await;
    if !arguments.json {
        show(&told(&lines))?;
    }
    if arguments.reload {
        let (_, doing) = watch::channel("waiting for the servers to reload");
        let tried = waiting(cli, doing, check::try_reload(&options)).await;
        if !arguments.json {
            show(&told(&tried))?;
        }
        lines.extend(tried);
    }
    if arguments.json {
        print(&format!("{:#}\n", json!(lines)))?;
    } else {
        print(&format!("{}\n", check::summary(&lines)))?;
    }
    let failed = lines.iter().any(|it| it.verdict == Verdict::Wrong);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn told(lines: &[Line]) -> String {
    lines.iter().flat_map(|it| [it.to_string(), "\n".to_owned()]).collect()
}
