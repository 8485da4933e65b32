//! `pb-nats backups`.

use std::{collections::BTreeMap, fmt::Write as _, process::ExitCode};

use pb_nats::{
    Options,
    auth::counted,
    reconcile::{GiveBack, ReconcileError},
    state::StateFile,
    state::{Backup, Held},
};
use serde_json::json;

use super::{complain, diff, once::in_force, open, options, print, show, terminal::waiting};
use crate::{Cli, block_on};

#[derive(clap::Args)]
pub(crate) struct Backups {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// List the auth files that were replaced, the newest first
    #[command(after_help = "Example:\n  pb-nats backups list --json")]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Put a former auth file in force; the present one is backed up first
    ///
    /// The backup is checked, written and reloaded as in a pass, and the servers are asked whether
    /// they run it. PocketBase is not changed: the next pass brings its state back.
    #[command(
        after_help = "Example:\n  pb-nats backups restore auth.conf.20261123T123456.789Z-000"
    )]
    Restore {
        /// As `pb-nats backups list` shows it
        name: String,
        /// Also if users come back, or may do again what was taken from them
        #[arg(long)]
        yes: bool,
    },
}

pub(crate) fn backups(cli: &Cli, arguments: &Backups) -> anyhow::Result<ExitCode> {
    match &arguments.command {
        Command::List { json } => list(cli, *json),
        Command::Restore { name, yes } => {
            block_on(restore(cli, name, if *yes { GiveBack::Yes } else { GiveBack::No }))
        }
    }
}

fn list(cli: &Cli, json: bool) -> anyhow::Result<ExitCode> {
    let options = options(cli)?;
    let backups = StateFile::new(&options).backups()?;
    if json {
        let backups = backups.iter().map(|Backup { name, replaced, size, held }| {
            let (users, roles, problem) = match held {
                Held::Rights(it) => (Some(it.users.len()), Some(it.roles.len()), None),
                Held::Other { what } => (None, None, Some(what)),
            };
            json!({
                "name": name,
                "replaced": replaced.to_string(),
                "bytes": size,
                "users": users,
                "roles": roles,
                "problem": problem,
            })
        });
        return print(&format!("{:#}\n", json!(backups.collect::<Vec<_>>())));
    }
    if backups.is_empty() {
        complain("note", &format!("no backups in {}", options.auth_file.backup_dir.display()));
    }
    let mut text = String::new();
    for Backup { name, replaced, held, .. } in &backups {
        let held = match held {
            Held::Rights(it) => {
                let (users, roles) = (it.users.len(), it.roles.len());
                format!("{}, {}", counted(users, "user"), counted(roles, "role"))
            }
            Held::Other { what } => (*what).to_owned(),
        };
        let _ = writeln!(text, "{name}  replaced {replaced:.0}  {held}");
    }
    print(&text)
}

async fn restore(cli: &Cli, name: &str, consent: GiveBack) -> anyhow::Result<ExitCode> {
    let (mut reconciler, options) = open(cli)?;
    let doing = reconciler.activity();
    let restored = waiting(cli, doing, reconciler.restore(name, consent)).await;
    let told = |it| diff::told(it, &BTreeMap::new());
    match &restored {
        Ok((diff, converged)) => {
            show(&format!("{}restored: {name}\n{}", told(diff), in_force(converged)))?;
        }
        Err(ReconcileError::GivesBack(diff)) => {
            show(&told(diff))?;
        }
        Err(_) => (),
    }
    if !matches!(restored, Err(ReconcileError::Engine(_))) {
        warn_of_the_next_pass(&options);
    }
    restored?;
    Ok(ExitCode::SUCCESS)
}

/// What is restored holds only until the records are looked at again.
fn warn_of_the_next_pass(options: &Options) {
    let mend = "PocketBase is not changed: mend the records there";
    let warning = match StateFile::new(options).keeper() {
        Some(pid) => {
            let pid = pid.map(|it| format!(" (process {it})")).unwrap_or_default();
            format!(
                "`pb-nats run`{pid} brings PocketBase's state back as soon as it sees another \
                 file; stop it first to keep what is restored. {mend}"
            )
        }
        None => format!("the next `pb-nats run` or `once` brings PocketBase's state back. {mend}"),
    };
    complain("warning", &warning);
}
