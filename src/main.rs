//! The command line: parse, dispatch, print, exit code.

mod commands;

use std::{env, io, iter, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{ArgAction, Parser, Subcommand, ValueEnum};
use pb_nats::{
    admin::AdminError, causes::causes, nats::ServerError, options::OptionsError,
    reconcile::ReconcileError, source::SourceError, users::UserError,
};
use tracing_subscriber::EnvFilter;

use crate::commands::{
    backups, check,
    dev::{self, DevError},
    explain, hash, init, once, plan, run, shell, status, terminal, user,
};

/// Wrong usage or settings, or a question that cannot be decided.
const EXIT_USAGE: u8 = 2;
/// `plan --exit-code` with something to do.
const EXIT_PENDING: u8 = 3;
/// Held back by the guard.
const EXIT_HELD_BACK: u8 = 4;

/// With many users the most memory is a fifth less than with glibc's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Your PocketBase users and roles, live in NATS.
#[derive(Parser)]
#[command(version, after_help = "Example:\n  pb-nats -c /etc/pb-nats/pb-nats.toml run")]
struct Cli {
    /// The settings file; without it ./pb-nats.toml, then /etc/pb-nats/pb-nats.toml
    #[arg(short, long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How log lines are written to stderr
    #[arg(long, global = true, value_enum, default_value = "text", value_name = "FORMAT")]
    log_format: LogFormat,
    /// Log more; twice: everything, also from libraries
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,
    /// Log warnings only
    #[arg(short, long, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Keep NATS in step with PocketBase until SIGINT or SIGTERM; SIGHUP re-reads the settings
    #[command(after_help = "Example:\n  pb-nats --log-format json run")]
    Run,
    /// Make one pass, and tell whether NATS is in step
    #[command(after_help = "Example:\n  pb-nats once --accept-removals")]
    Once(once::Once),
    /// Show what a pass would change, and write nothing
    #[command(after_help = "Example:\n  pb-nats plan --exit-code")]
    Plan(plan::Plan),
    /// Print the auth file for the present records
    #[command(after_help = "Example:\n  pb-nats render > auth.conf.new")]
    Render,
    /// Check settings, PocketBase, its records, the main config and the way to reload
    #[command(after_help = "Example:\n  pb-nats check\n  pb-nats check --reload --json")]
    Check(check::Check),
    /// Tell who may do what, and by which line of which record
    #[command(
        after_help = "Example:\n  pb-nats explain ann pub orders.new\n  pb-nats explain ann sub 'orders.>' --live\n  pb-nats explain ann\n  pb-nats explain --who-can pub orders.new"
    )]
    Explain(explain::Explain),
    /// Ask the running daemon whether NATS is in step, where, since when, and if not, why
    #[command(after_help = "Example:\n  pb-nats status --watch")]
    Status(status::Status),
    /// List former auth files, or restore one
    #[command(after_help = "Example:\n  pb-nats backups list")]
    Backups(backups::Backups),
    /// Make in PocketBase, beside nats-server and here what is missing, after showing it
    #[command(after_help = init::EXAMPLES)]
    Init(init::Init),
    /// Make users, give them passwords, list them as NATS has them
    #[command(subcommand, after_help = "Example:\n  pb-nats user add ann --role device --generate")]
    User(user::User),
    /// List the roles
    #[command(subcommand, after_help = "Example:\n  pb-nats role list --json")]
    Role(user::Role),
    /// Start a PocketBase, a nats-server and the sync between them, for trying things out
    #[command(after_help = dev::EXAMPLES)]
    Dev(dev::Dev),
    /// Read a password on stdin and print its bcrypt hash
    #[command(after_help = "Example:\n  printf %s \"$PASSWORD\" | pb-nats hash")]
    Hash(hash::Hash),
    /// Print a script that completes pb-nats's commands and options in a shell
    #[command(
        after_help = "Example:\n  pb-nats completions bash > ~/.local/share/bash-completion/completions/pb-nats"
    )]
    Completions(shell::Completions),
    /// Print the manual page of pb-nats, or of one of its commands
    #[command(after_help = "Example:\n  pb-nats man backups restore | man -l -")]
    Man(shell::Man),
}

/// What was asked for cannot be done as it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{problem}")]
struct Usage {
    problem: String,
    hint: Option<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_logging(&cli).and_then(|()| dispatch(&cli)).unwrap_or_else(|error| {
        report(&error);
        exit_code(&error)
    })
}

fn dispatch(cli: &Cli) -> anyhow::Result<ExitCode> {
    match &cli.command {
        Command::Run => block_on(run::run(cli)),
        Command::Once(arguments) => block_on(once::once(cli, arguments)),
        Command::Plan(arguments) => block_on(plan::plan(cli, arguments)),
        Command::Render => block_on(plan::render(cli)),
        Command::Check(arguments) => block_on(check::check(cli, arguments)),
        Command::Explain(arguments) => block_on(explain::explain(cli, arguments)),
        Command::Backups(arguments) => backups::backups(cli, arguments),
        Command::Status(arguments) => block_on(status::status(cli, arguments)),
        Command::Init(arguments) => block_on(init::init(cli, arguments)),
        Command::User(command) => block_on(user::user(cli, command)),
        Command::Role(command) => block_on(user::role(cli, command)),
        Command::Dev(arguments) => dev::start(cli, arguments),
        Command::Hash(arguments) => hash::hash(arguments),
        Command::Completions(arguments) => shell::completions(arguments),
        Command::Man(arguments) => shell::man(arguments),
    }
}

fn report(error: &anyhow::Error) {
    terminal::say(&told(error));
}

fn told(error: &anyhow::Error) -> String {
    let causes = causes(error.as_ref());
    let called = iter::once("error").chain(iter::repeat("cause"));
    let mut lines: Vec<_> = called.zip(causes).map(|(it, text)| format!("{it}: {text}")).collect();
    lines.extend(hint(error).map(|it| format!("hint: {it}")));
    lines.join("\n")
}

fn hint(error: &anyhow::Error) -> Option<String> {
    let ours = error.chain().find_map(|it| {
        None.or_else(|| it.downcast_ref::<Usage>()?.hint.clone())
            .or_else(|| Some(it.downcast_ref::<DevError>()?.hint()))
    });
    ours.or_else(|| pb_nats::hint(error.as_ref()))
}

fn exit_code(error: &anyhow::Error) -> ExitCode {
    let usage = |it: &(dyn std::error::Error + 'static)| {
        it.is::<OptionsError>()
            || it.is::<Usage>()
            || matches!(it.downcast_ref(), Some(SourceError::Settings(_)))
            || matches!(it.downcast_ref(), Some(AdminError::Nowhere))
            || it.downcast_ref().is_some_and(UserError::is_of_usage)
            || matches!(it.downcast_ref(), Some(ServerError::Setting { .. }))
    };
    if error.chain().any(usage) {
        return ExitCode::from(EXIT_USAGE);
    }
    let held_back = |it: &(dyn std::error::Error + 'static)| {
        matches!(it.downcast_ref(), Some(ReconcileError::Guard(_) | ReconcileError::GivesBack(_)))
    };
    if error.chain().any(held_back) {
        return ExitCode::from(EXIT_HELD_BACK);
    }
    ExitCode::FAILURE
}

/// Logs go to stderr. `RUST_LOG`, where it is set, decides alone.
fn start_logging(cli: &Cli) -> anyhow::Result<()> {
    let wanted = env::var("RUST_LOG").unwrap_or_default();
    let filter = if wanted.is_empty() {
        EnvFilter::new(match (cli.quiet, cli.verbose) {
            // What these two have to say, our own errors say better.
            (true, _) => "warn,async_nats=off,rustls_platform_verifier=off",
            (false, 0) => "warn,async_nats=off,rustls_platform_verifier=off,pb_nats=info",
            (false, 1) => "warn,async_nats=off,rustls_platform_verifier=off,pb_nats=debug",
            (false, _) => "debug,pb_nats=trace",
        })
    } else {
        EnvFilter::try_new(wanted).map_err(|error| Usage {
            problem: format!("`RUST_LOG` is no filter: {error}"),
            hint: Some("write it like `RUST_LOG=pb_nats=debug`, or unset it".into()),
        })?
    };
    let is_set = |name| env::var_os(name).is_some_and(|it| !it.is_empty());
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(terminal::stderr)
        // A reader that has gone away is no failure.
        .log_internal_errors(false)
        .with_target(cli.verbose > 1)
        .with_ansi(terminal::wants_colour(&io::stderr()));
    match cli.log_format {
        LogFormat::Json => logs.json().flatten_event(true).with_current_span(false).init(),
        // The journal has its own clock.
        LogFormat::Text if is_set("JOURNAL_STREAM") => logs.without_time().init(),
        LogFormat::Text => logs.init(),
    }
    Ok(())
}

fn block_on(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.context("the runtime cannot be started")?.block_on(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_told_once_and_the_hint_comes_last() {
        let usage = Usage { problem: "the cat sleeps".into(), hint: Some("wait".into()) };
        let error = anyhow::Error::new(usage)
            .context("no answer: the cat sleeps")
            .context("it cannot be checked");
        assert_eq!(
            told(&error),
            "error: it cannot be checked\ncause: no answer: the cat sleeps\nhint: wait"
        );
    }
}
