//! `pb-nats once`.

use std::{fmt::Write as _, process::ExitCode};

use pb_nats::{
    auth::counted,
    engine::config::SyncStatus,
    reconcile::{Consent, Converged},
    state::Adopt,
};

use super::{complain, open, show, tell_findings, terminal::waiting};
use crate::Cli;

#[derive(clap::Args)]
pub(crate) struct Once {
    /// Let a held-back removal of many users go through
    #[arg(long)]
    accept_removals: bool,
    /// Take over an auth file that pb-nats did not write; a backup is made first
    #[arg(long)]
    adopt: bool,
}

pub(crate) async fn once(cli: &Cli, arguments: &Once) -> anyhow::Result<ExitCode> {
    let (mut reconciler, _) = open(cli)?;
    let adopt = if arguments.adopt { Adopt::Yes } else { Adopt::No };
    let consent = Consent { removals: arguments.accept_removals, adopt };
    let passed = waiting(cli, reconciler.activity(), reconciler.pass(consent)).await;
    tell_findings(reconciler.findings());
    let converged = passed?;
    let text = match &converged.changes {
        Some(changes) => format!("written: {changes}\n"),
        None => "nothing to change\n".to_owned(),
    };
    show(&(text + &in_force(&converged)))
}

/// What is in force now, and where.
pub(crate) fn in_force(converged: &Converged) -> String {
    let mut text = format!("{}\n", counted(converged.users, "user"));
    for server in &converged.servers {
        let _ = writeln!(text, "{server}");
        if let SyncStatus::Unverified { why } = &server.state {
            complain("warning", &format!("{}: {why}", server.server));
        }
    }
    if let Some(receipt) = &converged.cut_off {
        let _ = writeln!(text, "{receipt}");
    }
    text
}
