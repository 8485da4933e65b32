//! Measurements that people may compare with their own.

use std::{
    env, fmt, fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::{
    cargo::{self, Profile},
    support::{Client, Nats, Pb, PbNats, SOON, Signal, bcrypt, poll, tool, write},
    tools,
};

/// The most that a change may take, as a multiple of the server's own reload.
const TARGET: f64 = 3.0;

/// So many changes are made before any is counted. They come in pairs: there and back.
const WARM_UP: usize = 4;

/// How long a change in PocketBase takes until it is in force on nats-server, against what the
/// server itself needs to reload the same file.
///
/// Both are seen in the same way. One client is connected, as a user called `probe`; every
/// two milliseconds it publishes a message and waits for the server's answer. In force means: that
/// answer has changed, from refused to taken or back. The clock starts before the request to
/// PocketBase, or before the signal to nats-server.
pub(crate) fn latency(changes: usize, users: usize) -> Result<()> {
    ensure!(changes > 0, "there is nothing to measure");
    tools::install()?;
    let binary = cargo::build(Profile::Release)?;
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

    let mut pb_nats = PbNats::between(binary, &pb, &nats);
    pb_nats.set("sync.debounce", "10ms");
    let running = pb_nats.run();
    let ready = poll(SOON, || nats.accepts("probe", "a-password").then_some(()));
    ready.with_context(|| format!("pb-nats says:\n{}", running.lines().join("\n")))?;
    let mut client = nats.client("probe", "a-password");

    // The two states of the file, between which nats-server will be switched by hand.
    let mut files = Vec::new();
    let mut whole = Vec::new();
    for number in 0..WARM_UP + changes {
        let (collection, id, base) = match number % 4 {
            0 | 1 => ("nats_roles", &role, vec!["news.>"]),
            _ => ("nats_users", &probe, Vec::new()),
        };
        let (subject, grant) = (format!("extra.{collection}"), number % 2 == 0);
        let extra = grant.then_some(subject.as_str());
        let publish: Vec<&str> = base.into_iter().chain(extra).collect();
        let start = Instant::now();
        pb.update(collection, id, &json!({ "publish_permissions": publish }));
        whole.push(until(&mut client, &subject, grant, start)?);
        rest();
        if files.len() < 2 {
            files.push(fs::read_to_string(nats.auth_file())?);
        }
    }
    let size = files[0].len();
    let status = running.terminate();
    ensure!(status.success(), "pb-nats ended badly, {status}");

    let mut own = Vec::new();
    for number in 0..WARM_UP + changes {
        let grant = number % 2 == 0;
        write(nats.auth_file(), &files[number % 2]);
        let start = Instant::now();
        nats.signal(Signal::HUP);
        own.push(until(&mut client, "extra.nats_roles", grant, start)?);
        rest();
    }

    let whole = Sample::of(whole.split_off(WARM_UP));
    let own = Sample::of(own.split_off(WARM_UP));
    let ratio = whole.median.as_secs_f64() / own.median.as_secs_f64();
    println!("{users} users, {} KiB, {changes} changes of a role or a user", size / 1024);
    println!("{}", versions(&nats, &pb_nats));
    println!("{}", machine());
    println!();
    println!("                                          median        p99");
    println!("PocketBase API → in force on nats-server  {whole}");
    println!("nats-server's own reload of that file     {own}");
    println!("ratio of the medians                      {ratio:>9.2}, at most {TARGET:.1} wanted");
    ensure!(ratio <= TARGET, "a change takes too long to be in force");
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
