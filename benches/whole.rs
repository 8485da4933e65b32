//! How long a change in PocketBase takes until it is in force on nats-server.
//!
//! It is compared with what the same server needs to reload the same file, and both are seen in the
//! same way. One client is connected, as a user called `probe`; every two milliseconds it publishes
//! a message and waits for the server's answer. In force means: that answer has changed, from
//! refused to taken or back. The clock starts before the request to PocketBase, or before the signal
//! to nats-server.
//!
//! `cargo xtask bench latency` runs it.

#![allow(clippy::print_stdout, reason = "it has something to tell")]
#![allow(clippy::disallowed_methods, reason = "it has no runtime to block")]

#[path = "../tests/it/support.rs"]
mod support;

use std::{
    env, fmt, fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use pb_nats::{options::PocketBaseOptions, source};
use serde_json::{Value, json};

use crate::support::{Client, Nats, Pb, PbNats, SOON, Signal, bcrypt, poll, tool, write};

/// How long a change in PocketBase takes until it is in force on nats-server.
#[derive(Parser)]
struct Arguments {
    /// How many changes to make, each way.
    #[arg(long, default_value_t = 60)]
    changes: usize,
    /// How many users there are.
    #[arg(long, default_value_t = 1000)]
    users: usize,
    /// What cargo says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// The most that a change may take, as a multiple of the server's own reload.
const TARGET: f64 = 3.0;

/// So many changes are made before any is counted. They come in pairs: there and back.
const WARM_UP: usize = 4;

fn main() -> Result<()> {
    let Arguments { changes, users, bench: _ } = Arguments::parse();
    ensure!(changes > 0, "there is nothing to measure");
    let pb = Pb::start();
    let nats = Nats::start();
    let role = pb.role("member", &["news.>"], &["news.>"]);
    let hash = bcrypt("a-password");
    for number in 1..users {
        let user = json!({
            "username": format!("user-{number}"),
            "password": hash,
            "role_id": [role],
            "active": true,
        });
        pb.create("nats_users", &user);
    }
    let probe = pb.user("probe", "a-password", &role);
    let mut pb_nats = PbNats::between(env!("CARGO_BIN_EXE_pb-nats"), &pb, &nats);
    pb_nats.set("sync.debounce", "10ms");

    let listing = through_pocketbase(&pb, &role, &probe, &pb_nats, &nats, changes)?;
    make_view(&pb)?;
    let view = through_pocketbase(&pb, &role, &probe, &pb_nats, &nats, changes)?;
    pb_nats.unset("pocketbase.url");
    pb_nats.unset("pocketbase.token_file");
    pb_nats.set("pocketbase.data_dir", pb.data_dir().display().to_string());
    let database = through_pocketbase(&pb, &role, &probe, &pb_nats, &nats, changes)?;
    let own = by_hand(&pb, &role, &pb_nats, &nats, changes)?;

    let size = fs::metadata(nats.auth_file())?.len();
    println!("{users} users, {} KiB, {changes} changes of a role or a user each way", size / 1024);
    println!("{}", versions(&nats, &pb_nats));
    println!("{}\n", machine());
    let ratio = |it: &Sample| it.median.as_secs_f64() / own.median.as_secs_f64();
    println!("                                             median         p99  × own reload");
    println!("nats-server's own reload of that file     {own}");
    println!("PocketBase API → in force, export view    {view}  {:>12.2}", ratio(&view));
    println!("PocketBase API → in force, listing        {listing}  {:>12.2}", ratio(&listing));
    println!("PocketBase API → in force, data_dir       {database}  {:>12.2}", ratio(&database));
    ensure!(ratio(&view) <= TARGET, "with the export view, at most {TARGET:.1} × is wanted");
    Ok(())
}

/// Changes records, of the role and of the user in turn, while pb-nats runs.
fn through_pocketbase(
    pb: &Pb,
    role: &str,
    probe: &str,
    pb_nats: &PbNats,
    nats: &Nats,
    changes: usize,
) -> Result<Sample> {
    let running = pb_nats.run();
    let ready = poll(SOON, || nats.accepts("probe", "a-password").then_some(()));
    ready.with_context(|| format!("pb-nats says:\n{}", running.lines().join("\n")))?;
    let mut client = nats.client("probe", "a-password");
    let mut took = Vec::new();
    for number in 0..WARM_UP + changes {
        let (collection, id, base) = match number % 4 {
            0 | 1 => ("nats_roles", role, vec!["news.>"]),
            _ => ("nats_users", probe, Vec::new()),
        };
        let (subject, grant) = (format!("extra.{collection}"), number % 2 == 0);
        let extra = grant.then_some(subject.as_str());
        let publish: Vec<&str> = base.into_iter().chain(extra).collect();
        let start = Instant::now();
        pb.update(collection, id, &json!({ "publish_permissions": publish }));
        took.push(until(&mut client, &subject, grant, start)?);
        rest();
    }
    let status = running.terminate();
    ensure!(status.success(), "pb-nats ended badly, {status}:\n{}", running.lines().join("\n"));
    Ok(Sample::of(took.split_off(WARM_UP)))
}

/// Has nats-server load the file with and without a grant in turn, while pb-nats does not run.
fn by_hand(pb: &Pb, role: &str, pb_nats: &PbNats, nats: &Nats, changes: usize) -> Result<Sample> {
    let file = |publish: &[&str]| {
        pb.update("nats_roles", role, &json!({ "publish_permissions": publish }));
        pb_nats.command(&["render"]).success().stdout
    };
    let files = [file(&["news.>", "extra"]), file(&["news.>"])];
    let mut client = nats.client("probe", "a-password");
    let mut took = Vec::new();
    for number in 0..WARM_UP + changes {
        write(nats.auth_file(), &files[number % 2]);
        let start = Instant::now();
        nats.signal(Signal::HUP);
        took.push(until(&mut client, "extra", number % 2 == 0, start)?);
        rest();
    }
    Ok(Sample::of(took.split_off(WARM_UP)))
}

/// Makes the one-row view that pb-nats reads where it is there.
fn make_view(pb: &Pb) -> Result<()> {
    let schema = |collection: &str| -> Result<source::Schema> {
        let path = format!("/api/collections/{collection}");
        Ok(serde_json::from_value(pb.ask("GET", &path, &Value::Null))?)
    };
    let options = PocketBaseOptions::default();
    let (users, roles) = (schema(&options.user_collection)?, schema(&options.role_collection)?);
    let query = source::view::export_view_query(&options, &users, &roles)?;
    let view = json!({ "name": options.export_view, "type": "view", "viewQuery": query });
    pb.ask("POST", "/api/collections", &view);
    Ok(())
}

/// Publishes until the answer is the wanted one, and tells how long ago it began.
fn until(client: &mut Client, subject: &str, granted: bool, start: Instant) -> Result<Duration> {
    let seen = poll(SOON, || (client.may_publish(subject) == granted).then(|| start.elapsed()));
    seen.with_context(|| format!("`{subject}` is not in force within {SOON:?}"))
}

/// Lets a pass or a reload come to its end, as it would between two changes that people make.
fn rest() {
    thread::sleep(Duration::from_millis(150));
}

/// What is told of many durations.
struct Sample {
    median: Duration,
    p99: Duration,
}

impl Sample {
    fn of(mut all: Vec<Duration>) -> Sample {
        all.sort_unstable();
        // The nearest rank: of a hundred or fewer, the 99th percentile is the longest or next to it.
        let rank = |percent: usize| all[(all.len() * percent).div_ceil(100) - 1];
        Sample { median: rank(50), p99: rank(99) }
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = |it: Duration| 1000.0 * it.as_secs_f64();
        write!(f, "{:>6.1} ms  {:>6.1} ms", milliseconds(self.median), milliseconds(self.p99))
    }
}

fn versions(nats: &Nats, pb_nats: &PbNats) -> String {
    let pocketbase = Command::new(tool("pocketbase", None)).arg("--version").output();
    let pocketbase = pocketbase.map(|it| String::from_utf8_lossy(&it.stdout).into_owned());
    format!(
        "{}, {}, nats-server {}",
        pb_nats.command(&["--version"]).stdout.trim(),
        pocketbase.unwrap_or_default().trim(),
        nats.varz()["version"].as_str().unwrap_or_default(),
    )
}

fn machine() -> String {
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|it| it.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or(env::consts::ARCH, |(_, it)| it.trim());
    format!("{} with {cores} × {model}", env::consts::OS)
}
