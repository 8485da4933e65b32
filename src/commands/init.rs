//! `pb-nats init`.

use std::{
    env,
    fmt::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use fs_err as fs;
use pb_nats::{
    Options,
    init::{self, Plan, Settings, Step, Wanted},
};
use serde_json::json;

use super::{
    complain, print,
    superuser::{SuperuserArguments, ask, interactive},
};
use crate::{Cli, Usage};

pub(crate) const EXAMPLES: &str = "\
Example:
  pb-nats init
  pb-nats init --nats-config /etc/nats/nats-server.conf
  PB_NATS_SUPERUSER_PASSWORD=… pb-nats init --yes --url http://127.0.0.1:8090 \\
      --superuser root@example.com --nats-config nats-server.conf
  pb-nats init --migration pb_migrations";

#[derive(clap::Args)]
pub(crate) struct Init {
    /// PocketBase's address
    #[arg(long, env = "PB_NATS_POCKETBASE_URL", value_name = "URL")]
    url: Option<String>,
    #[command(flatten)]
    superuser: SuperuserArguments,
    /// The collection of users; one that is there, such as `users`, is adopted
    #[arg(long, value_name = "NAME")]
    user_collection: Option<String>,
    /// The collection of roles; one that is there is adopted
    #[arg(long, value_name = "NAME")]
    role_collection: Option<String>,
    /// Also make the collection `nats_sync_status`, in which `pb-nats run` then shows in PocketBase
    /// what is in force, since when, and what is wrong with which record
    #[arg(long)]
    write_status: bool,
    /// nats-server's main config, to which the include of the auth file is added
    #[arg(long, value_name = "FILE")]
    nats_config: Option<PathBuf>,
    /// Write what PocketBase needs as a migration into this folder, and do nothing else. Without
    /// `--url`, for a PocketBase that has nothing of it yet
    #[arg(long, value_name = "DIR", conflicts_with = "nats_config")]
    migration: Option<PathBuf>,
    /// Do it without asking
    #[arg(short, long)]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const URL: &str = "http://127.0.0.1:8090";

pub(crate) async fn init(cli: &Cli, arguments: &Init) -> anyhow::Result<ExitCode> {
    let mut wanted = wanted(cli, arguments)?;
    let pocketbase = &mut wanted.options.pocketbase;
    if let (Some(folder), None) = (&arguments.migration, &pocketbase.url) {
        let (name, text) = init::migration(pocketbase)?;
        return migrate(arguments, folder, &name, &text);
    }
    if pocketbase.url.is_none() {
        let hint = "give `--url`";
        pocketbase.url = Some(ask("PocketBase's address", URL, hint)?);
    }
    let new = matches!(wanted.settings, Settings::New(_));
    if new && wanted.main_config.is_none() && is_asking(arguments) {
        let question = "nats-server's main config (empty: print the lines that it needs)";
        let answer = ask(question, "", "")?;
        let path = Some(answer).filter(|it| !it.is_empty()).map(std::path::absolute);
        wanted.main_config = path.transpose()?;
    }
    let superuser = arguments.superuser.log_in(&wanted.options.pocketbase).await?;
    let plan = init::plan(&wanted, superuser).await?;
    if let Some(folder) = &arguments.migration {
        return match plan.migration() {
            Some((name, text)) => migrate(arguments, folder, &name, &text),
            None => tell(arguments, &plan, &[]),
        };
    }
    if !plan.steps.is_empty() && !arguments.yes {
        print(&shown(&plan))?;
        interactive("nothing was done yet", "`--yes` does it without asking")?;
        if !matches!(ask("Do this? (y/n)", "n", "")?.as_str(), "y" | "Y" | "yes") {
            complain("note", "nothing was done");
            return Ok(ExitCode::FAILURE);
        }
    }
    let mut done = Vec::new();
    let carried_out = plan.carry_out(|step| {
        if !arguments.json {
            // What is done counts, whether or not anybody hears of it.
            let _ = print(&format!("✓ {step}\n"));
        }
        done.push(step.to_string());
    });
    carried_out.await.context("not everything could be done; run it again once that is mended")?;
    plan.prove().await?;
    tell(arguments, &plan, &done)
}

fn is_asking(arguments: &Init) -> bool {
    arguments.migration.is_none() && !arguments.yes && interactive("", "").is_ok()
}

/// What the arguments and the settings that are there amount to.
fn wanted(cli: &Cli, arguments: &Init) -> anyhow::Result<Wanted> {
    let file = cli
        .config
        .clone()
        .or_else(|| Options::files().into_iter().find(|it| it.exists()).map(Path::to_owned));
    let file = file.unwrap_or_else(|| "pb-nats.toml".into());
    let main_config = arguments.nats_config.as_ref().map(std::path::absolute).transpose()?;
    if !file.exists() || arguments.migration.is_some() {
        let mut options = Options::default();
        let pocketbase = &mut options.pocketbase;
        pocketbase.url.clone_from(&arguments.url);
        pocketbase.write_status = arguments.write_status;
        let set = |to: &mut String, given: &Option<String>| {
            if let Some(name) = given {
                to.clone_from(name);
            }
        };
        set(&mut pocketbase.user_collection, &arguments.user_collection);
        set(&mut pocketbase.role_collection, &arguments.role_collection);
        return Ok(Wanted { options, settings: Settings::New(file), main_config });
    }
    let mut options = Options::load(Some(&file), env::vars_os())?;
    let pocketbase = &mut options.pocketbase;
    if arguments.write_status && !pocketbase.write_status {
        pocketbase.write_status = true;
        complain("note", "set `write_status = true` below `[pocketbase]` in the settings");
    }
    // With a data folder the settings have none, but changes are made over the web.
    if pocketbase.url.is_none() {
        pocketbase.url.clone_from(&arguments.url);
    }
    let url = pocketbase.url.clone().unwrap_or_default();
    for (given, name, found) in [
        (&arguments.url, "pocketbase.url", &url),
        (&arguments.user_collection, "pocketbase.user_collection", &pocketbase.user_collection),
        (&arguments.role_collection, "pocketbase.role_collection", &pocketbase.role_collection),
    ] {
        if given.as_ref().is_some_and(|it| it != found) {
            return Err(Usage {
                problem: format!("`{name}` is {found:?} in {}", file.display()),
                hint: Some(
                    "that file is not changed; do so yourself, or name another (`-c`)".into(),
                ),
            }
            .into());
        }
    }
    if let (Some(given), Some(found)) = (&main_config, &options.nats.config_file)
        && real(given) != real(found)
    {
        let (given, settings) = (given.display(), file.display());
        return Err(Usage {
            problem: format!("`nats.config_file` is {} in {settings}, not {given}", found.display()),
            hint: Some(format!(
                "if nats-server is started with {given} now, set `nats.config_file` to it, and what goes \
                 with it (`pid_file`, `monitor_url`), and run this again; for a second server, add the \
                 include to its main config by hand"
            )),
        }
        .into());
    }
    Ok(Wanted { options, settings: Settings::There(std::path::absolute(file)?), main_config })
}

/// The path without links, if there is such a file.
fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

fn migrate(arguments: &Init, folder: &Path, name: &str, text: &str) -> anyhow::Result<ExitCode> {
    let path = init::write_migration(folder, name, text)?;
    if arguments.json {
        return print(&format!("{:#}\n", json!({ "migration": path })));
    }
    let done = if path.ends_with(name) { "✓" } else { "nothing to do:" };
    print(&format!(
        "{done} {}: a migration, which PocketBase applies when it starts\n\n\
         Then `pb-nats init` finds it all there, and makes the token and the files.\n",
        path.display()
    ))
}

/// What is to be done, and what someone should know.
fn shown(plan: &Plan) -> String {
    let mut text = String::from("To be done:\n");
    for step in &plan.steps {
        let _ = writeln!(text, "  + {step}");
    }
    text + &noted(plan)
}

fn noted(plan: &Plan) -> String {
    plan.notes.iter().fold(String::new(), |text, note| text + "! " + note + "\n")
}

fn tell(arguments: &Init, plan: &Plan, done: &[String]) -> anyhow::Result<ExitCode> {
    let steps = if done.is_empty() { &[][..] } else { &plan.steps };
    let undo: Vec<String> = steps.iter().rev().filter_map(Step::undo).collect();
    if arguments.json {
        let told = json!({
            "done": done, "notes": plan.notes, "undo": undo, "main_config_lines": plan.lines,
        });
        return print(&format!("{told:#}\n"));
    }
    let mut text = String::new();
    if done.is_empty() {
        text += "nothing to do\n";
    }
    if arguments.yes || done.is_empty() {
        text += &noted(plan);
    }
    if let Some(lines) = &plan.lines {
        let _ = write!(
            text,
            "\nnats-server's main config needs these lines, at its end; the path as seen from its \
             folder, of {}:\n\n{lines}\n\
             `pb-nats init --nats-config FILE` adds them, after a look whether nats-server starts with \
             them, and completes the settings.\n",
            plan.options.auth_file.path.display(),
        );
    }
    if !undo.is_empty() {
        let _ = writeln!(text, "\nTo take it back by hand, from top to bottom:");
        for undo in &undo {
            let _ = writeln!(text, "  - {undo}");
        }
    }
    if !done.is_empty() {
        let beside = |it: &Step| matches!(it, Step::AuthFile(_) | Step::MainConfig { .. });
        let first = if plan.adopt {
            "take the auth file over (`pb-nats once --adopt`), "
        } else if plan.steps.iter().any(beside) {
            "restart nats-server once, "
        } else {
            ""
        };
        let _ = writeln!(
            text,
            "\nNext: {first}make a user (`pb-nats user add NAME --role ROLE --generate`), then \
             `pb-nats check` and `pb-nats run`."
        );
    }
    print(&text)
}
