//! `pb-nats plan` and `pb-nats render`.

use std::{fmt::Write as _, process::ExitCode};

use pb_nats::{
    apply::{Adopt, Placement},
    auth,
    server::State,
};
use serde_json::json;

use super::{open, print, tell_findings};
use crate::{Cli, EXIT_HELD_BACK, EXIT_PENDING};

#[derive(clap::Args)]
pub(crate) struct Plan {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Exit with 3 if a change or a reload is pending
    #[arg(long)]
    exit_code: bool,
}

pub(crate) async fn plan(cli: &Cli, arguments: &Plan) -> anyhow::Result<ExitCode> {
    let (mut reconciler, _) = open(cli)?;
    let plan = reconciler.plan(Adopt::No).await?;
    tell_findings(&plan.findings);
    let pending = plan.write
        || plan.misplaced.is_some()
        || plan.servers.iter().any(|it| matches!(it.state, State::NotInStep { .. }));
    if arguments.json {
        let servers = plan.servers.iter().map(|it| {
            json!({
                "server": it.server,
                "version": it.version,
                "state": it.state.word(),
                "detail": it.to_string(),
            })
        });
        let plan = json!({
            "pending": pending,
            "write": plan.write,
            "held_back": plan.refused.as_ref().map(ToString::to_string),
            "misplaced": plan.misplaced.as_ref().map(ToString::to_string),
            "changes": plan.changes,
            "users": plan.desired.users.len(),
            "roles": plan.desired.roles.len(),
            "findings": plan.findings,
            "servers": servers.collect::<Vec<_>>(),
        });
        print(&format!("{plan:#}\n"))?;
    } else {
        print(&diff(&plan))?;
    }
    Ok(match (&plan.refused, pending) {
        (Some(_), _) if arguments.exit_code => ExitCode::from(EXIT_HELD_BACK),
        (None, true) if arguments.exit_code => ExitCode::from(EXIT_PENDING),
        _ => ExitCode::SUCCESS,
    })
}

/// What would change, a line each.
fn diff(plan: &pb_nats::reconcile::Plan) -> String {
    let mut text = String::new();
    let changes = &plan.changes;
    for (sign, what, names) in [
        ('+', "user", &changes.users_added),
        ('~', "user", &changes.users_changed),
        ('-', "user", &changes.users_removed),
        ('+', "role", &changes.roles_added),
        ('~', "role", &changes.roles_changed),
        ('-', "role", &changes.roles_removed),
    ] {
        for name in names {
            let _ = writeln!(text, "{sign} {what} {name:?}");
        }
    }
    for (what, differs) in [
        ("default permissions", changes.defaults_changed),
        ("login timeout", changes.timeout_changed),
    ] {
        if differs {
            let _ = writeln!(text, "~ {what}");
        }
    }
    if let Some(refused) = &plan.refused {
        let _ = writeln!(text, "held back: {refused}\n{}", refused.hint());
    }
    if let Some(misplaced) = &plan.misplaced {
        let _ = writeln!(text, "{misplaced}\n{}", Placement::HINT);
    }
    for server in &plan.servers {
        let _ = writeln!(text, "{server}");
    }
    if !plan.write {
        let _ = writeln!(text, "nothing to change");
    } else if text.is_empty() {
        let _ = writeln!(text, "the file would be written anew");
    }
    text
}

pub(crate) async fn render(cli: &Cli) -> anyhow::Result<ExitCode> {
    let (mut reconciler, _) = open(cli)?;
    let (desired, findings) = reconciler.desired().await?;
    tell_findings(&findings);
    print(&auth::render(&desired))
}
