//! `pb-nats plan` and `pb-nats render`.

use std::{collections::BTreeMap, fmt::Write as _, process::ExitCode};

use pb_nats::{
    auth::{self, Changes, Diff, counted},
    engine::config::SyncStatus,
    nats::ServerError,
    state::Adopt,
};
use serde_json::json;

use super::{diff, open, print, show, tell_findings, terminal::waiting};
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
    let doing = reconciler.activity();
    let plan = waiting(cli, doing.clone(), reconciler.plan(Adopt::No)).await?;
    tell_findings(&plan.findings);
    let former = plan.former.as_deref().cloned().unwrap_or_default();
    let diff = Diff::between(&former, &plan.desired);
    let users = diff.users();
    let connections = if users.is_empty() {
        None
    } else {
        waiting(cli, doing, reconciler.connections(&users)).await
    };
    let pending = plan.write
        || plan.misplaced.is_some()
        || plan.servers.iter().any(|it| matches!(it.state, SyncStatus::NotInStep { .. }));
    if arguments.json {
        let servers = plan.servers.iter().map(|it| {
            json!({
                "server": it.server,
                "version": it.running.as_ref().map(|it| &it.version),
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
            "diff": diff,
            "connections": connections.as_ref().map(|(counts, failure)| {
                let (all, closed) = touched(counts, &plan.changes.users_losing);
                let mut told = json!({ "touched": all, "closed": closed, "by_user": counts });
                if let Some(error) = failure {
                    told["error"] = error.to_string().into();
                }
                told
            }),
            "users": plan.desired.users.len(),
            "roles": plan.desired.roles.len(),
            "findings": plan.findings,
            "servers": servers.collect::<Vec<_>>(),
        });
        print(&format!("{plan:#}\n"))?;
    } else {
        show(&told(&plan, &diff, &connections))?;
    }
    Ok(match (&plan.refused, pending) {
        (Some(_), _) if arguments.exit_code => ExitCode::from(EXIT_HELD_BACK),
        (None, true) if arguments.exit_code => ExitCode::from(EXIT_PENDING),
        _ => ExitCode::SUCCESS,
    })
}

/// How many live connections are touched. `None`: nobody knows without the system account.
type Connections = Option<(BTreeMap<String, usize>, Option<ServerError>)>;

/// The whole plan, for people.
fn told(plan: &pb_nats::reconcile::Plan, diff: &Diff, connections: &Connections) -> String {
    let mut text = String::new();
    let Changes { roles_added, roles_removed, timeout_changed, users_losing, .. } = &plan.changes;
    for (sign, names) in [('+', roles_added), ('-', roles_removed)] {
        for name in names {
            let _ = writeln!(text, "{sign} role {name:?}");
        }
    }
    let nobody = BTreeMap::new();
    let counts = connections.as_ref().map_or(&nobody, |it| &it.0);
    text += &diff::told(diff, counts);
    if *timeout_changed {
        let _ = writeln!(text, "~ login timeout");
    }
    match connections {
        None => (),
        Some((counts, failure)) => {
            let (all, closed) = touched(counts, users_losing);
            let all = counted(all, "live connection");
            if failure.is_none() || !counts.is_empty() {
                let _ = write!(text, "touches {all}; closes {closed}, of users who lose something");
                let _ = writeln!(text, "{}", if failure.is_some() { ", or more" } else { "" });
            }
            if let Some(error) = failure {
                let _ = writeln!(text, "how many connections that touches is not known: {error}");
            }
        }
    }
    if let Some(refused) = &plan.refused {
        let _ = writeln!(text, "held back: {refused}\n{}", refused.hint());
    }
    if let Some(misplaced) = &plan.misplaced {
        let _ = writeln!(text, "{misplaced}\n{}", misplaced.hint());
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

/// All connections, and those of users who lose something.
fn touched(counts: &BTreeMap<String, usize>, losing: &[String]) -> (usize, usize) {
    let closed = losing.iter().filter_map(|it| counts.get(it)).sum();
    (counts.values().sum(), closed)
}

pub(crate) async fn render(cli: &Cli) -> anyhow::Result<ExitCode> {
    let (mut reconciler, _) = open(cli)?;
    let doing = reconciler.activity();
    let (desired, findings) = waiting(cli, doing, reconciler.desired()).await?;
    tell_findings(&findings);
    print(&auth::render(&desired))
}
