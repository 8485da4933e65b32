//! `pb-nats status`.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, IsTerminal},
    process::ExitCode,
    time::Duration,
};

use jiff::{Timestamp, tz::TimeZone};
use pb_nats::{
    admin,
    source::{Kind, Link},
    status::{
        Change, CutOff, PassStatus, ServerStatus, State, Status as Told, Stranger, Waiting, many,
        short,
    },
};
use serde_json::json;
use tokio::time;

use super::{complain, options, print};
use crate::{Cli, told};

/// How often `--watch` asks.
const PERIOD: Duration = Duration::from_secs(1);
/// How many changes, findings and names are shown.
const FEW: usize = 10;

#[derive(clap::Args)]
pub(crate) struct Status {
    /// Print JSON; with --watch a line for each change
    #[arg(long)]
    json: bool,
    /// Stay, and print it again whenever it is another
    #[arg(long)]
    watch: bool,
}

pub(crate) async fn status(cli: &Cli, arguments: &Status) -> anyhow::Result<ExitCode> {
    let options = options(cli)?;
    if arguments.watch {
        let mut shown = String::new();
        loop {
            let text = match admin::ask(&options.admin).await {
                Ok(status) => watched(&status, arguments.json),
                // What cannot be asked now may be asked later; what is set wrong stays wrong.
                Err(error @ admin::AdminError::Nowhere) => return Err(error.into()),
                Err(error) if arguments.json => json!({ "error": error.to_string() }).to_string(),
                Err(error) => told(&error.into()),
            };
            if text != shown {
                let clear = if io::stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
                print(&format!("{clear}{text}\n"))?;
                shown = text;
            }
            time::sleep(PERIOD).await;
        }
    }
    let status = admin::ask(&options.admin).await?;
    if arguments.json {
        print(&format!("{:#}\n", json!(status)))?;
    } else {
        print(&page(&status))?;
    }
    Ok(match status.state {
        State::InStep => ExitCode::SUCCESS,
        State::Unverified => {
            complain("warning", "not every server can be asked what it runs");
            ExitCode::SUCCESS
        }
        State::Starting | State::NotInStep => ExitCode::FAILURE,
    })
}

/// What is worth telling again when it differs: not the time of the question, nor that a pass which
/// found nothing to do is over.
fn watched(status: &Told, json: bool) -> String {
    if !json && io::stdout().is_terminal() {
        return page(status);
    }
    if !json {
        return status.summary.clone();
    }
    let mut status = json!(status);
    let Some(object) = status.as_object_mut() else { return String::new() };
    object.remove("now");
    if let Some(pass) = object.get_mut("pass").and_then(|it| it.as_object_mut()) {
        pass.retain(|key, _| matches!(key.as_str(), "failure" | "stuck"));
    }
    if let Some(source) = object.get_mut("source").and_then(|it| it.as_object_mut()) {
        source.retain(|key, _| !key.starts_with("last_"));
    }
    status.to_string()
}

/// All of it, for people.
fn page(status: &Told) -> String {
    let Told { summary, source, pass, findings, changes, now, .. } = status;
    let ago = |at: &Timestamp| ago(*now, at);
    let mut text = format!("{summary}\n");
    if let (State::NotInStep, Some(hint)) = (status.state, status.hint()) {
        let _ = writeln!(text, "hint: {hint}");
    }

    let kind = match source.kind {
        Kind::PocketBase => "PocketBase at ",
        Kind::Database => "PocketBase's database ",
        Kind::Other => "source ",
    };
    let _ = write!(text, "\n{kind}{}", source.address);
    match (source.kind, &source.connected_since) {
        (Kind::PocketBase, Some(since)) => {
            let _ = write!(text, ", live connection made {}", ago(since));
            if let Some(hint) = &source.last_hint {
                let _ = write!(text, ", last hint {}", ago(hint));
            }
        }
        (Kind::PocketBase, None) => match (&source.silent_since, &source.silence) {
            (Some(since), why) => {
                let why = why.as_deref().unwrap_or_default();
                let _ = write!(text, ", last heard {}: {why}", ago(since));
            }
            (None, _) => text.push_str(", no live connection"),
        },
        (Kind::Database | Kind::Other, _) => (),
    }
    if let (Some(read), Some(took)) = (&source.last_read, source.last_read_took) {
        let _ = write!(text, ", read {} in {}", ago(read), short(took));
    }
    text.push('\n');
    unheard(&mut text, &source.unheard);
    let PassStatus { last_success, waiting, running, next, .. } = pass;
    if let Some(last_success) = last_success {
        let _ = write!(text, "last pass that came to its end: {}", ago(last_success));
    } else {
        text.push_str("no pass has come to its end yet");
    }
    match (running, next) {
        (Some(running), _) => {
            let _ = writeln!(text, "; one is under way: {}", running.step);
        }
        (None, Some(next)) => {
            let wait = next.duration_since(*now).try_into().unwrap_or_default();
            let _ = writeln!(text, "; next within {}", short(wait));
        }
        (None, None) => text.push('\n'),
    }
    if let Some(Waiting { until, freeze }) = waiting {
        let left = until.duration_since(*now).try_into().unwrap_or_default();
        let (left, freeze) = (short(left), short(freeze.unwrap_or_default()));
        let _ = writeln!(
            text,
            "changes by which nobody has less wait for another {left}, since a reload lets nobody in \
             for {freeze}\n  hint: {}",
            Waiting::HINT
        );
    }

    let _ = writeln!(text);
    tell_servers(&mut text, status);

    if let Some(held_back) = pass.failure.as_ref().and_then(|it| it.held_back.as_ref()) {
        let _ = writeln!(text, "\nheld back, {} would go:", many(held_back.count, "user"));
        listed(&mut text, held_back.count, held_back.users.iter().map(|it| format!("{it:?}")));
    }
    if findings.count > 0 {
        let _ = writeln!(text, "\n{}:", many(findings.count, "finding"));
        let records = findings.records.iter().map(|it| {
            let (place, name, problem) = (&it.collection, &it.name, &it.problem);
            let (id, field, mend) = (it.id.escape_debug(), &it.field, &it.mend);
            format!("{place}/{id} {name:?}: {field}: {problem}; {mend}")
        });
        listed(&mut text, findings.count, records);
    }
    if !changes.is_empty() {
        let _ = writeln!(text, "\nchanges, the last first:");
        listed(&mut text, status.changes.len(), changes.iter().map(change));
    }
    text
}

/// A line for each server, ours and others.
fn tell_servers(text: &mut String, status: &Told) {
    let Told { servers, strangers, now, .. } = status;
    for server in servers {
        let ServerStatus { server: name, version, state, detail, hint, .. } = server;
        let version = version.as_ref().map(|it| format!(" {it}")).unwrap_or_default();
        let _ = write!(text, "{name}{version}: {state}, {detail}");
        if let Some(since) = &server.silent_since {
            let _ = write!(text, ", last heard {}", ago(*now, since));
        }
        if let Some(clients) = server.clients {
            let clients = clients.try_into().unwrap_or(usize::MAX);
            let _ = write!(text, "; {}", many(clients, "client"));
        }
        if let Some(loaded) = &server.config_loaded {
            let _ = write!(text, ", config loaded {}", ago(*now, loaded));
        }
        if let Some(took) = server.last_reload_took {
            let _ = write!(text, ", last reload took {}", short(took));
        }
        if let Some(freeze) = server.reload_freeze.filter(|it| *it >= Duration::from_secs(1)) {
            let _ = write!(text, ", a reload would let nobody in for about {}", short(freeze));
        }
        text.push('\n');
        if let Some(hint) = hint {
            let _ = writeln!(text, "  hint: {hint}");
        }
    }

    for Stranger { server, version, cluster } in strangers {
        let cluster =
            if cluster.is_empty() { String::new() } else { format!(" of cluster {cluster}") };
        let _ = writeln!(text, "{server} {version}{cluster}: {}", Stranger::NOTE);
    }
}

/// How long that is past.
fn ago(now: Timestamp, at: &Timestamp) -> String {
    format!("{} ago", short(now.duration_since(*at).unsigned_abs()))
}

/// The collections whose changes do not come at once.
fn unheard(text: &mut String, unheard: &BTreeMap<String, String>) {
    for (collection, why) in unheard {
        let hint = Link::hint(collection);
        let _ = writeln!(
            text,
            "live changes of `{collection}` are missing, they are noticed by the resync only: {why}\n  \
             hint: {hint}"
        );
    }
}

/// When what was changed, and what came of it.
fn change(it: &Change) -> String {
    let Change { at, what, by_resync, in_force, enforced_after, unverified, cut_off } = it;
    let at = at.to_zoned_datetime(TimeZone::system()).strftime("%F %T");
    let proven = match enforced_after {
        Some(after) => format!("in force after {}", short(*after)),
        None if *by_resync && *in_force => "in force, noticed by the resync only".into(),
        None if *unverified => "not proven".into(),
        None => "not in force yet".into(),
    };
    let mut text = format!("{at}  {what}; {proven}");
    let worth_telling = |it: &&CutOff| it.connections > 0 || it.failure.is_some();
    if let Some(cut_off) = cut_off.as_ref().filter(worth_telling) {
        let _ = write!(text, "; {cut_off}");
    }
    text
}

/// The first few, and how many more there are.
fn listed(text: &mut String, count: usize, lines: impl Iterator<Item = String>) {
    for line in lines.take(FEW) {
        let _ = writeln!(text, "  {line}");
    }
    if count > FEW {
        let _ = writeln!(text, "  … and {} more", count - FEW);
    }
}
