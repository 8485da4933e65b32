//! The command line: parse, dispatch, print, exit code.

use std::{
    env,
    fmt::Write as _,
    io::{self, IsTerminal, Read, Write},
    mem,
    path::PathBuf,
    pin::pin,
    process::ExitCode,
};

use anyhow::Context;
use clap::{ArgAction, Parser, Subcommand, ValueEnum};
use pb_nats::{
    Options, PocketBase, Reconciler,
    apply::{Adopt, ApplyError, Placement},
    auth::{Finding, counted},
    check::Verdict,
    options::OptionsError,
    reconcile::{Consent, ReconcileError},
    server::{ServerError, State},
    source::SourceError,
};
use sd_notify::NotifyState;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;
use zeroize::Zeroizing;

/// Wrong usage or settings, or a question that cannot be decided.
const EXIT_USAGE: u8 = 2;
/// `plan --exit-code` with something to do.
const EXIT_PENDING: u8 = 3;
/// Held back by the guard.
const EXIT_HELD_BACK: u8 = 4;

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
    let mut hangups = hangups()?;
    let mut shutdown = pin!(shutdown()?);
    let (mut reconciler, options) = open(cli)?;
    let mut former = None;
    let (version, file) = (env!("CARGO_PKG_VERSION"), options.auth_file.path.display());
    info!(version, %file, "pb-nats keeps NATS in step with PocketBase");
    notify(&[NotifyState::Ready]);
    loop {
        let mut next = None;
        let stop = async {
            loop {
                tokio::select! {
                    () = &mut shutdown => return,
                    _ = hangups.recv() => match reopen(cli) {
                        Ok(reconciler) => {
                            next = Some(reconciler);
                            return;
                        }
                        Err(error) => keep_settings(&error),
                    }
                }
            }
        };
        match (reconciler.run(stop).await, former.take()) {
            (Ok(()), _) => (),
            (Err(error), None) => return Err(error.into()),
            (Err(error), Some(former)) => {
                keep_settings(&error.into());
                reconciler = former;
                continue;
            }
        }
        let Some(next) = next else { break };
        former = Some(mem::replace(&mut reconciler, next));
        info!("the settings were read again");
    }
    notify(&[NotifyState::Stopping]);
    info!("stopped; what is in force stays in force");
    Ok(ExitCode::SUCCESS)
}

/// The settings as they are now, put in force at once.
fn reopen(cli: &Cli) -> anyhow::Result<Reconciler<PocketBase>> {
    let mut options = options(cli)?;
    options.auth_file.generate_initial = true;
    reconciler(&options)
}

fn keep_settings(error: &anyhow::Error) {
    let (hint, error) = (hint(error), format!("{error:#}"));
    error!(error, hint, "the settings as they are now cannot be used; the former ones stay");
}

async fn once(cli: &Cli, arguments: &Once) -> anyhow::Result<ExitCode> {
    let (mut reconciler, _) = open(cli)?;
    let adopt = if arguments.adopt { Adopt::Yes } else { Adopt::No };
    let consent = Consent { removals: arguments.accept_removals, adopt };
    let passed = reconciler.pass(consent).await;
    tell_findings(reconciler.findings());
    let converged = passed?;
    let mut text = match &converged.changes {
        Some(changes) => format!("written: {changes}\n"),
        None => "nothing to change\n".to_owned(),
    };
    let _ = writeln!(text, "{}", counted(converged.users, "user"));
    for server in &converged.servers {
        let _ = writeln!(text, "{server}");
        if let State::Unverified { why } = &server.state {
            complain("warning", &format!("{}: {why}", server.server));
        }
    }
    if let Some(receipt) = &converged.cut_off {
        let _ = writeln!(text, "{receipt}");
    }
    print(&text)
}

async fn plan(cli: &Cli, arguments: &Plan) -> anyhow::Result<ExitCode> {
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

async fn render(cli: &Cli) -> anyhow::Result<ExitCode> {
    let (mut reconciler, _) = open(cli)?;
    let (desired, findings) = reconciler.desired().await?;
    tell_findings(&findings);
    print(&pb_nats::auth::render(&desired))
}

async fn check(cli: &Cli, arguments: &Check) -> anyhow::Result<ExitCode> {
    // Its notes are among the lines.
    let options = Options::load(cli.config.as_deref(), env::vars_os())?;
    let lines = pb_nats::check::check(&options).await;
    if arguments.json {
        print(&format!("{:#}\n", json!(lines)))?;
    } else {
        let lines: Vec<_> = lines.iter().map(ToString::to_string).collect();
        print(&(lines.join("\n") + "\n"))?;
    }
    let failed = lines.iter().any(|it| it.verdict == Verdict::Wrong);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The reconciler that the settings amount to.
fn open(cli: &Cli) -> anyhow::Result<(Reconciler<PocketBase>, Options)> {
    let options = options(cli)?;
    Ok((reconciler(&options)?, options))
}

fn reconciler(options: &Options) -> anyhow::Result<Reconciler<PocketBase>> {
    Ok(Reconciler::new(PocketBase::open(&options.pocketbase)?, options)?)
}

fn tell_findings(findings: &[Finding]) {
    for finding in findings {
        complain("finding", &finding.to_string());
    }
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
    // Should that fail, there is nowhere left to complain to.
    let _ = writeln!(io::stderr(), "{}", told(error));
}

fn told(error: &anyhow::Error) -> String {
    let mut lines = vec![format!("error: {error}")];
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Some errors already end with what their source says.
        if !lines.last().is_some_and(|it| it.ends_with(&cause)) {
            lines.push(format!("cause: {cause}"));
        }
    }
    lines.extend(hint(error).map(|it| format!("hint: {it}")));
    lines.join("\n")
}

/// Something that is no failure, on stderr.
fn complain(what: &str, text: &str) {
    let _ = writeln!(io::stderr(), "{what}: {text}");
}

fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|it| {
        None.or_else(|| it.downcast_ref::<OptionsError>()?.hint())
            .or_else(|| it.downcast_ref::<Usage>()?.hint.clone())
            .or_else(|| it.downcast_ref::<ReconcileError>()?.hint())
            .or_else(|| it.downcast_ref::<SourceError>()?.hint())
            .or_else(|| it.downcast_ref::<ApplyError>()?.hint().map(str::to_owned))
            .or_else(|| it.downcast_ref::<ServerError>()?.hint())
    })
}

fn exit_code(error: &anyhow::Error) -> ExitCode {
    let usage = |it: &(dyn std::error::Error + 'static)| {
        it.is::<OptionsError>()
            || it.is::<Usage>()
            || matches!(it.downcast_ref(), Some(SourceError::Settings(_)))
            || matches!(it.downcast_ref(), Some(ServerError::Setting { .. }))
    };
    if error.chain().any(usage) {
        return ExitCode::from(EXIT_USAGE);
    }
    if error.chain().any(|it| matches!(it.downcast_ref(), Some(ReconcileError::Guard(_)))) {
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
