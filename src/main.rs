//! The command line: parse, dispatch, print, exit code.

use std::{
    env,
    io::{self, IsTerminal, Read, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::{ArgAction, Parser, Subcommand, ValueEnum};
use pb_nats::options::{Options, OptionsError};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::warn;
use tracing_subscriber::EnvFilter;
use zeroize::Zeroizing;

/// Wrong usage or settings, or a question that cannot be decided.
const EXIT_USAGE: u8 = 2;

/// bcrypt looks at no more of a password.
const LONGEST_PASSWORD: usize = 72;

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
    Once(Once),
    /// Show what a pass would change, and write nothing
    #[command(after_help = "Example:\n  pb-nats plan --exit-code")]
    Plan(Plan),
    /// Print the auth file for the present records
    #[command(after_help = "Example:\n  pb-nats render > auth.conf.new")]
    Render,
    /// Check settings, PocketBase, its records, the main config and the way to reload
    #[command(after_help = "Example:\n  pb-nats check --json")]
    Check(Check),
    /// Read a password on stdin and print its bcrypt hash
    #[command(after_help = "Example:\n  printf %s \"$PASSWORD\" | pb-nats hash")]
    Hash(Hash),
}

#[derive(clap::Args)]
struct Once {
    /// Let a held-back removal of many users go through
    #[arg(long)]
    accept_removals: bool,
    /// Take over an auth file that pb-nats did not write; a backup is made first
    #[arg(long)]
    adopt: bool,
}

#[derive(clap::Args)]
struct Plan {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Exit with 3 if a change or a reload is pending
    #[arg(long)]
    exit_code: bool,
}

#[derive(clap::Args)]
struct Check {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Hash {
    /// One more doubles the time that a log-in, and each client at a reload, takes
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(4..=14))]
    cost: u32,
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
        Command::Run => block_on(run(cli)),
        Command::Once(arguments) => block_on(once(cli, arguments)),
        Command::Plan(arguments) => block_on(plan(cli, arguments)),
        Command::Render => block_on(render(cli)),
        Command::Check(arguments) => block_on(check(cli, arguments)),
        Command::Hash(arguments) => hash(arguments),
    }
}

async fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    // Before anything else: until it is caught, SIGHUP ends a process.
    let _settings_changed = hangups()?;
    let shutdown = shutdown()?;
    let _options = options(cli)?;
    drop(shutdown);
    notify(&[NotifyState::Stopping]);
    bail!("`run` is not available yet")
}

async fn once(cli: &Cli, arguments: &Once) -> anyhow::Result<ExitCode> {
    let _options = options(cli)?;
    let Once { accept_removals: _, adopt: _ } = arguments;
    bail!("`once` is not available yet")
}

async fn plan(cli: &Cli, arguments: &Plan) -> anyhow::Result<ExitCode> {
    let _options = options(cli)?;
    let Plan { json: _, exit_code: _ } = arguments;
    bail!("`plan` is not available yet")
}

async fn render(cli: &Cli) -> anyhow::Result<ExitCode> {
    let _options = options(cli)?;
    bail!("`render` is not available yet")
}

async fn check(cli: &Cli, arguments: &Check) -> anyhow::Result<ExitCode> {
    let _options = options(cli)?;
    let Check { json: _ } = arguments;
    bail!("`check` is not available yet")
}

fn hash(arguments: &Hash) -> anyhow::Result<ExitCode> {
    let password = password_from_stdin()?;
    let hash = bcrypt::hash(password.as_str(), arguments.cost).context("no hash could be made")?;
    print(&format!("{hash}\n"))
}

/// The settings that the command line, the environment and the file amount to.
fn options(cli: &Cli) -> anyhow::Result<Options> {
    let options = Options::load(cli.config.as_deref(), env::vars_os())?;
    for note in options.notes() {
        warn!("{note}");
    }
    Ok(options)
}

fn password_from_stdin() -> anyhow::Result<Zeroizing<String>> {
    let refused = |problem: &str, hint: &str| {
        let hint = Some(hint.to_owned());
        Err(Usage { problem: problem.to_owned(), hint }.into())
    };
    let mut bytes = Zeroizing::new(Vec::new());
    if io::stdin().is_terminal() {
        let typed = rpassword::prompt_password("Password: ").context("no password was read")?;
        bytes.extend_from_slice(Zeroizing::new(typed).as_bytes());
    } else {
        // Far more than is accepted, so that a file given by mistake is not read to its end.
        let limited = io::stdin().lock().take(64 * 1024).read_to_end(&mut bytes);
        limited.context("stdin cannot be read")?;
    }
    let line =
        bytes.strip_suffix(b"\n").map_or(&bytes[..], |it| it.strip_suffix(b"\r").unwrap_or(it));
    if line.is_empty() {
        return refused("the password is empty", "write it to stdin: printf %s \"$PASSWORD\" | …");
    }
    if line.len() > LONGEST_PASSWORD {
        return refused(
            "the password is longer than 72 bytes, of which only the first 72 would count",
            "choose a shorter one",
        );
    }
    match str::from_utf8(line) {
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        Err(_) => {
            refused("the password is not valid UTF-8", "NATS clients send passwords as UTF-8")
        }
    }
}

/// Data goes to stdout, and a reader that has seen enough is no failure.
fn print(text: &str) -> anyhow::Result<ExitCode> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("stdout cannot be written")
        }
        Ok(()) | Err(_) => Ok(ExitCode::SUCCESS),
    }
}

fn report(error: &anyhow::Error) {
    let mut told = error.to_string();
    let mut lines = format!("error: {told}\n");
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Some errors already end with what their source says.
        if !told.ends_with(&cause) {
            lines += &format!("cause: {cause}\n");
        }
        told = cause;
    }
    if let Some(hint) = hint(error) {
        lines += &format!("hint: {hint}\n");
    }
    // There is nowhere left to complain to.
    let _ = io::stderr().write_all(lines.as_bytes());
}

fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|it| {
        let options = it.downcast_ref::<OptionsError>().and_then(OptionsError::hint);
        options.or_else(|| it.downcast_ref::<Usage>()?.hint.clone())
    })
}

fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.chain().any(|it| it.is::<OptionsError>() || it.is::<Usage>()) {
        return ExitCode::from(EXIT_USAGE);
    }
    ExitCode::FAILURE
}

/// Logs go to stderr. `RUST_LOG`, where it is set, decides alone.
fn start_logging(cli: &Cli) -> anyhow::Result<()> {
    let wanted = env::var("RUST_LOG").unwrap_or_default();
    let filter = if wanted.is_empty() {
        EnvFilter::new(match (cli.quiet, cli.verbose) {
            (true, _) => "warn",
            (false, 0) => "warn,pb_nats=info",
            (false, 1) => "warn,pb_nats=debug",
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
        .with_writer(io::stderr)
        .with_target(cli.verbose > 1)
        .with_ansi(io::stderr().is_terminal() && !is_set("NO_COLOR"));
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

/// Resolves at the first SIGINT or SIGTERM since the call.
fn shutdown() -> anyhow::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be caught")?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be caught")?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => (),
            _ = terminate.recv() => (),
        }
    })
}

/// One item for each SIGHUP since the call.
fn hangups() -> anyhow::Result<Signal> {
    signal(SignalKind::hangup()).context("SIGHUP cannot be caught")
}

/// Tells systemd, where it listens.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "systemd was not told");
    }
}
