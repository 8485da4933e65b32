//! What pb-nats costs and how fast it is, between a real PocketBase and a real nats-server, at any
//! size; beside what nats-server itself needs to reload the same file, in the same run.
//!
//! `cargo xtask bench` runs it and writes `docs/benchmarks.md`. With `--quick` it goes through the
//! same motions at small sizes and only prints the page: its numbers mean nothing.
//!
//! In force means: a connected client, which publishes every two milliseconds and waits for the
//! server's answer, has seen that answer change. The steps on the way there are told by pb-nats
//! itself (`--log-format json -v`), so what is measured is the program as it is.

#![allow(clippy::print_stdout, reason = "it has something to tell")]
#![allow(clippy::print_stderr, reason = "it takes a while")]
#![allow(clippy::disallowed_methods, reason = "it has no runtime to block and no file to tear")]

#[path = "whole/page.rs"]
mod page;
#[path = "../tests/it/support.rs"]
mod support;

use std::{
    fs, mem,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use jiff::Timestamp;
use nkeys::KeyPair;
use pb_nats::{options::PocketBaseOptions, source};
use serde_json::{Value, json};

use crate::support::{
    Client, Login, Nats, Pb, PbNats, Running, SYSTEM_ACCOUNT, SYSTEM_USER, Setup, Signal, poll,
    tool, write,
};

/// What pb-nats costs and how fast it is.
#[derive(Parser)]
struct Arguments {
    /// Small sizes, little patience, and nothing written: to see that it works.
    #[arg(long)]
    quick: bool,
    /// Only how a million users fare, and nothing written. It takes 16 GiB and minutes.
    #[arg(long)]
    million: bool,
    /// Only sizes up to so many users, and nothing written.
    #[arg(long, conflicts_with_all = ["quick", "million"])]
    users: Option<usize>,
    /// What cargo says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// How long anything may take: a server with a hundred thousand users on a busy machine is slow.
const PATIENCE: Duration = Duration::from_mins(5);
/// How long pb-nats waits for more edits; it is taken out of what is told of its own work.
const DEBOUNCE: Duration = Duration::from_millis(10);
/// So many changes are made before any is counted. They come in pairs: there and back.
const WARM_UP: usize = 2;
const ROLES: usize = 50;

/// How pb-nats gets at the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Listing,
    View,
    Database,
}

/// What was measured at one size.
#[derive(Default)]
pub(crate) struct Size {
    pub(crate) users: usize,
    pub(crate) file: u64,
    /// nats-server's own reload of the file.
    pub(crate) reload: Vec<Duration>,
    pub(crate) ways: Vec<(Way, Fared)>,
}

/// How pb-nats fared one way, at one size.
#[derive(Default)]
pub(crate) struct Fared {
    /// From the start of the process, with an empty auth file, until it is proven to be in force.
    pub(crate) first: Duration,
    /// The part of it until nats-server was told to reload.
    pub(crate) first_order: Duration,
    pub(crate) changes: Vec<Change>,
    /// Passes that found nothing changed.
    pub(crate) nothing: Vec<Duration>,
    /// The CPU time of such a pass.
    pub(crate) nothing_cpu: Duration,
    /// The most memory it ever had, also after a start with users changed meanwhile, and what it has
    /// at rest, in KiB.
    pub(crate) peak: u64,
    pub(crate) rest: u64,
    /// The part of a core that it takes while nothing happens.
    pub(crate) idle: f64,
    /// While another collection is written to all the time: passes, and the part of a core.
    pub(crate) foreign: (usize, f64),
}

/// One edit of one user.
pub(crate) struct Change {
    /// From the request to PocketBase until a client sees it.
    pub(crate) total: Duration,
    /// From the request to PocketBase until nats-server was told to reload, but for the debounce.
    pub(crate) ours: Duration,
    /// As in [`STEPS`].
    pub(crate) steps: [Duration; 7],
}

/// What a pass does, and the log message and field that tell how long it took.
pub(crate) const STEPS: [(&str, &str, &str); 7] = [
    ("read", "read", "took"),
    ("decide", "decided", "took"),
    ("render", "rendered", "took"),
    ("check", "checked", "took"),
    ("write", "written", "took"),
    ("reload", "proven", "reload"),
    ("verify", "proven", "took"),
];

/// From a deactivation until the connection is closed.
pub(crate) struct CutOff {
    pub(crate) credential: &'static str,
    pub(crate) clients: usize,
    pub(crate) closed: Vec<Duration>,
    /// Until the whole reload is proven.
    pub(crate) proven: Vec<Duration>,
}

/// Many edits at once.
pub(crate) struct Burst {
    pub(crate) edits: usize,
    pub(crate) took: Duration,
    pub(crate) passes: usize,
    pub(crate) reloads: usize,
    /// From the answer to the last edit until it is in force.
    pub(crate) last: Duration,
    pub(crate) missed: bool,
}

/// Everything that goes onto the page.
pub(crate) struct Report {
    pub(crate) versions: String,
    pub(crate) load: String,
    pub(crate) sizes: Vec<Size>,
    pub(crate) cut_offs: Vec<CutOff>,
    pub(crate) burst: Burst,
}

fn main() -> Result<()> {
    let Arguments { quick, million, users, bench: _ } = Arguments::parse();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    if million {
        let size = size(1_000_000, &[Way::View, Way::Database], 2, Duration::from_secs(2))?;
        println!("{}", page::sizes(&[size]));
        return Ok(());
    }
    let mut plan: Vec<(usize, usize)> = if quick {
        vec![(10, 2), (1000, 2)]
    } else {
        vec![(10, 40), (1000, 40), (10_000, 20), (100_000, 8)]
    };
    plan.retain(|it| users.is_none_or(|most| it.0 <= most));
    let rest = Duration::from_secs(if quick { 1 } else { 10 });
    let written = !quick && users.is_none();
    let crowds: &[usize] = if quick { &[0, 10] } else { &[0, 100, 1000] };
    let mut cut_offs = Vec::new();
    for credential in ["bcrypt, cost 4", "bcrypt, cost 10", "nkey"] {
        for &clients in crowds {
            cut_offs.push(cut_off(credential, clients)?);
        }
    }
    let (edits, during) = if quick { (100, 1) } else { (5000, 10) };
    let burst = burst(edits, Duration::from_secs(during))?;
    let mut report = Report { versions: versions(), load, sizes: Vec::new(), cut_offs, burst };
    // What takes longest comes last, and what there is by then is not lost if it is cut short.
    for (users, changes) in plan {
        // To list a hundred thousand users takes PocketBase 3 s, and twice that to be sure of them.
        let ways = [Way::Listing, Way::View, Way::Database];
        report.sizes.push(size(users, &ways, changes, rest)?);
        if !written {
            continue;
        }
        fs::write("docs/benchmarks.md", report.page())?;
        fs::write("docs/benchmarks-latency.svg", report.latency_plot())?;
        fs::write("docs/benchmarks-memory.svg", report.memory_plot())?;
    }
    println!("{}", if written { report.targets() } else { report.page() });
    Ok(())
}

/// A PocketBase with so many users, a nats-server, and pb-nats between them.
struct Rig {
    pb: Pb,
    nats: Nats,
    pb_nats: PbNats,
    /// The record of the user who is edited and looks on.
    probe: String,
}

impl Rig {
    fn new(users: usize, setup: Setup<'_>) -> Result<Rig> {
        let mut pb = Pb::start();
        pb.ask(
            "POST",
            "/api/collections",
            &json!({
                "name": "other", "type": "base", "fields": [{ "name": "name", "type": "text" }],
            }),
        );
        make_view(&pb)?;
        let roles: Vec<String> = (0..ROLES.min(users))
            .map(|n| {
                let own = format!("site{n}.>");
                pb.role(&format!("role {n}"), &[&own, "news.>"], &[&own, "_INBOX.>"])
            })
            .collect();
        let probe = pb.user("probe", "a-password", &roles[0]);
        // Through its API PocketBase would take an hour for them.
        pb.stop();
        seed(&pb, users - 1, &roles)?;
        pb.resume();
        let nats = Nats::with(setup);
        let mut pb_nats = PbNats::between(env!("CARGO_BIN_EXE_pb-nats"), &pb, &nats);
        pb_nats.set("sync.debounce", format!("{}ms", DEBOUNCE.as_millis()));
        pb_nats.set("pocketbase.resync_interval", "1h");
        pb_nats.set("pocketbase.request_timeout", "2m");
        pb_nats.set("nats.reload_timeout", "10m");
        // What waits is not what is measured.
        pb_nats.set("sync.max_reload_share", "100%");
        Ok(Rig { pb, nats, pb_nats, probe })
    }

    fn turn_to(&mut self, way: Way) {
        self.pb_nats
            .set("pocketbase.export_view", if way == Way::Listing { "" } else { "nats_export" });
        if way == Way::Database {
            self.pb_nats.unset("pocketbase.url");
            self.pb_nats.unset("pocketbase.token_file");
            self.pb_nats.set("pocketbase.data_dir", self.pb.data_dir().display().to_string());
        }
    }

    fn run(&self) -> Running {
        self.pb_nats.run_with(&["--log-format", "json", "-v", "run"])
    }

    /// Grants the probe a subject, or takes it away, and waits until it sees that.
    fn edit(&self, client: &mut Client, grant: bool) -> Result<(Timestamp, Duration)> {
        let (at, start) = (Timestamp::now(), Instant::now());
        let publish: &[&str] = if grant { &["extra"] } else { &[] };
        self.pb.update("nats_users", &self.probe, &json!({ "publish_permissions": publish }));
        let seen =
            poll(PATIENCE, || (client.may_publish("extra") == grant).then(|| start.elapsed()));
        Ok((at, seen.context("a change is not in force")?))
    }
}

/// Puts users into the database of a PocketBase that does not run.
fn seed(pb: &Pb, users: usize, roles: &[String]) -> Result<()> {
    let mut database = rusqlite::Connection::open(pb.data_dir().join("data.db"))?;
    let all = database.transaction()?;
    let mut insert = all.prepare(
        "INSERT INTO nats_users (id, username, password, role_id, active, nkey) VALUES (?1, ?2, ?3, ?4, 1, '')",
    )?;
    for n in 0..users {
        let role = json!([roles[n % roles.len()]]).to_string();
        // Nobody logs in with it, so it need only look like a hash.
        let hash = format!("$2a$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad6{n:012}");
        let id = format!("seeded{:09}", n * 7919 % 1_000_003_000);
        insert.execute((id, format!("user-{n}"), hash, role))?;
    }
    drop(insert);
    Ok(all.commit()?)
}

fn size(users: usize, ways: &[Way], changes: usize, rest: Duration) -> Result<Size> {
    let mut rig = Rig::new(users, Setup::default())?;
    let mut size = Size { users, ..Size::default() };
    for &way in ways {
        eprintln!("{users} users: {way:?}");
        rig.turn_to(way);
        write(rig.nats.auth_file(), "");
        rig.nats.reload().ok();
        let fared = fare(&mut rig, way, changes, rest)?;
        size.ways.push((way, fared));
    }
    eprintln!("{users} users: nats-server's own reload");
    let file = fs::read_to_string(rig.nats.auth_file())?;
    size.file = u64::try_from(file.len())?;
    ensure!(file.matches("{user: ").count() == users, "not every user is in force");
    size.reload = own_reloads(&rig, changes)?;
    Ok(size)
}

fn fare(rig: &mut Rig, way: Way, changes: usize, rest: Duration) -> Result<Fared> {
    let mut fared = Fared::default();
    let begun = Timestamp::now();
    let running = rig.run();
    let log = Log { running: &running };
    let order = log.wait(begun, "ordered to reload")?;
    fared.first_order = span(begun, order.at);
    fared.first = span(begun, log.wait(begun, "in force")?.at);
    let mut client = rig.nats.client("probe", "a-password");
    for number in 0..WARM_UP + changes {
        let (begun, total) = rig.edit(&mut client, number % 2 == 0)?;
        let end = log.wait(begun, "in force")?.at;
        let mut steps = [Duration::ZERO; 7];
        for (step, (_, message, field)) in steps.iter_mut().zip(STEPS) {
            *step = log.wait(begun, message)?.duration(field);
        }
        steps[6] = steps[6].saturating_sub(steps[5]);
        let ours = span(begun, log.wait(begun, "ordered to reload")?.at).saturating_sub(DEBOUNCE);
        if number >= WARM_UP {
            fared.changes.push(Change { total, ours, steps });
        }
        ensure!(end >= begun, "the log goes backwards");
    }

    // What comes in with an edit that changes nothing.
    let before = cpu(&running)?;
    let passes = changes.clamp(2, 10);
    for number in 0..passes {
        let begun = Timestamp::now();
        // No permissions in either way; but a record that is the same to the byte is no hint.
        let none = if number % 2 == 0 { Value::Null } else { json!([]) };
        rig.pb.update("nats_users", &rig.probe, &json!({ "publish_permissions": none }));
        fared.nothing.push(log.wait(begun, "nothing to do")?.duration("took"));
    }
    fared.nothing_cpu = (cpu(&running)?.saturating_sub(before)) / u32::try_from(passes)?;

    thread::sleep(Duration::from_millis(500));
    (fared.peak, fared.rest) = (memory(&running, "VmHWM")?, memory(&running, "VmRSS")?);
    let before = cpu(&running)?;
    thread::sleep(rest);
    fared.idle = part(cpu(&running)?.saturating_sub(before), rest);

    ensure!(running.terminate().success(), "pb-nats ended badly");

    // It takes the most when it has the file to read, and another one to write.
    rig.pb.update("nats_users", &rig.probe, &json!({ "publish_permissions": ["meanwhile"] }));
    rig.pb_nats.unset("sync.debounce");
    let running = rig.run();
    let log = Log { running: &running };
    log.wait(Timestamp::MIN, "in force")?;
    rig.pb_nats.set("sync.debounce", format!("{}ms", DEBOUNCE.as_millis()));
    if way != Way::Listing {
        fared.foreign = foreign(rig, &running, rest)?;
    }
    fared.peak = fared.peak.max(memory(&running, "VmHWM")?);
    ensure!(running.terminate().success(), "pb-nats ended badly");
    Ok(fared)
}

/// Writes to another collection all the time. Pb-nats waits as it does by default.
fn foreign(rig: &Rig, running: &Running, during: Duration) -> Result<(usize, f64)> {
    let log = Log { running };
    // The first hint is that there is a connection, and of the first write nobody knows what it is for.
    // With many users what comes of that takes seconds.
    rig.pb.create("other", &json!({ "name": "x" }));
    let mut passes = 0;
    loop {
        thread::sleep(Duration::from_secs(5));
        let now = log.count(Timestamp::MIN, "read");
        if mem::replace(&mut passes, now) == now {
            break;
        }
    }
    let (begun, start, before) = (Timestamp::now(), Instant::now(), cpu(running)?);
    while start.elapsed() < during {
        rig.pb.create("other", &json!({ "name": "x" }));
    }
    let used = cpu(running)?.saturating_sub(before);
    Ok((log.count(begun, "read"), part(used, start.elapsed())))
}

/// Has nats-server load the file with and without a grant in turn, while pb-nats does not run.
fn own_reloads(rig: &Rig, changes: usize) -> Result<Vec<Duration>> {
    let with = |publish: &[&str]| {
        rig.pb.update("nats_users", &rig.probe, &json!({ "publish_permissions": publish }));
        rig.pb_nats.command(&["render"]).success().stdout
    };
    let files = [with(&["extra"]), with(&[])];
    let mut client = rig.nats.client("probe", "a-password");
    let mut took = Vec::new();
    for number in 0..WARM_UP + changes {
        let grant = number % 2 == 0;
        write(rig.nats.auth_file(), &files[number % 2]);
        let start = Instant::now();
        rig.nats.signal(Signal::HUP);
        let seen =
            poll(PATIENCE, || (client.may_publish("extra") == grant).then(|| start.elapsed()));
        took.push(seen.context("a reload does not come to an end")?);
        thread::sleep(Duration::from_millis(50));
    }
    Ok(took.split_off(WARM_UP))
}

fn cut_off(credential: &'static str, clients: usize) -> Result<CutOff> {
    eprintln!("cut-off: {clients} clients, {credential}");
    let mut rig = Rig::new(10, Setup { extra: SYSTEM_ACCOUNT, ..Setup::default() })?;
    let (user, password) = SYSTEM_USER;
    rig.pb_nats.unset("nats.monitor_url");
    rig.pb_nats.set("nats.system_url", rig.nats.url());
    rig.pb_nats.set("nats.system_user", user);
    rig.pb_nats.set("nats.system_password", password);
    let pair = KeyPair::new_user();
    let mut crowd = json!({ "username": "crowd", "active": true, "role_id": [] });
    let login = if credential == "nkey" {
        crowd["nkey"] = pair.public_key().into();
        Login::Nkey(&pair)
    } else {
        let cost = if credential.ends_with("10") { 10 } else { 4 };
        crowd["password"] = bcrypt::hash("a-password", cost)?.into();
        Login::Password("crowd", "a-password")
    };
    rig.pb.create("nats_users", &crowd);
    let running = rig.run();
    let log = Log { running: &running };
    log.wait(Timestamp::MIN, "in force")?;
    let connect = || rig.nats.connect(login).map_err(anyhow::Error::msg);
    let _crowd: Vec<Client> = (0..clients).map(|_| connect()).collect::<Result<_>>()?;
    let mut cut_off = CutOff { credential, clients, closed: Vec::new(), proven: Vec::new() };
    // A reload with a thousand expensive hashes takes a minute.
    let rounds = if clients >= 1000 && credential.ends_with("10") { 1 } else { 5 };
    for _ in 0..rounds {
        let mut client = rig.nats.client("probe", "a-password");
        let (begun, start) = (Timestamp::now(), Instant::now());
        rig.pb.update("nats_users", &rig.probe, &json!({ "active": false }));
        client.closed(PATIENCE).context("a deactivated user stays connected")?;
        cut_off.closed.push(start.elapsed());
        cut_off.proven.push(span(begun, log.wait(begun, "in force")?.at));
        let begun = Timestamp::now();
        rig.pb.update("nats_users", &rig.probe, &json!({ "active": true }));
        log.wait(begun, "in force")?;
    }
    ensure!(running.terminate().success(), "pb-nats ended badly");
    Ok(cut_off)
}

fn burst(edits: usize, during: Duration) -> Result<Burst> {
    eprintln!("burst: {edits} edits");
    let mut rig = Rig::new(1000, Setup::default())?;
    // As anyone would have it.
    rig.pb_nats.unset("sync.debounce");
    let running = rig.run();
    let log = Log { running: &running };
    log.wait(Timestamp::MIN, "in force")?;
    let mut client = rig.nats.client("probe", "a-password");
    let listed =
        rig.pb.ask("GET", "/api/collections/nats_users/records?perPage=1000", &Value::Null);
    let listed = listed["items"].as_array().context("a listing")?;
    let ids: Vec<&str> = listed.iter().filter_map(|it| it["id"].as_str()).collect();
    let others: Vec<&str> = ids.into_iter().filter(|it| *it != rig.probe).collect();
    let (begun, start) = (Timestamp::now(), Instant::now());
    for n in 0..edits - 1 {
        let publish = [format!("edit.{n}")];
        rig.pb.update(
            "nats_users",
            others[n % others.len()],
            &json!({ "publish_permissions": publish }),
        );
        thread::sleep(
            (during * u32::try_from(n)? / u32::try_from(edits)?).saturating_sub(start.elapsed()),
        );
    }
    let (_, last) = rig.edit(&mut client, true)?;
    let took = start.elapsed().saturating_sub(last);
    // Whatever is still under way comes to its end.
    thread::sleep(Duration::from_secs(3));
    let (passes, reloads) = (log.count(begun, "decided"), log.count(begun, "ordered to reload"));
    ensure!(running.terminate().success(), "pb-nats ended badly");
    let rendered = rig.pb_nats.command(&["render"]).success().stdout;
    let there = fs::read_to_string(rig.nats.auth_file())?;
    let undated = |text: &str| {
        text.lines().filter(|it| !it.starts_with("# Generated at")).collect::<Vec<_>>().join("\n")
    };
    Ok(Burst { edits, took, passes, reloads, last, missed: undated(&there) != undated(&rendered) })
}

/// What pb-nats says of itself.
struct Log<'a> {
    running: &'a Running,
}

struct Line {
    at: Timestamp,
    fields: Value,
}

impl Log<'_> {
    fn since(&self, begun: Timestamp) -> Vec<Line> {
        let lines = self.running.lines();
        let lines = lines.iter().rev().map_while(|it| {
            let fields: Value = serde_json::from_str(it).ok()?;
            let at = fields["timestamp"].as_str()?.parse().ok()?;
            (at >= begun).then_some(Line { at, fields })
        });
        let mut lines: Vec<Line> = lines.collect();
        lines.reverse();
        lines
    }

    fn count(&self, begun: Timestamp, message: &str) -> usize {
        self.since(begun).iter().filter(|it| it.fields["message"] == message).count()
    }

    /// The first line with this message since then.
    fn wait(&self, begun: Timestamp, message: &str) -> Result<Line> {
        let found = poll(PATIENCE, || {
            self.since(begun).into_iter().find(|it| it.fields["message"] == message)
        });
        found.with_context(|| format!("no {message:?} in:\n{}", self.running.lines().join("\n")))
    }
}

impl Line {
    /// A duration as `Debug` writes it.
    fn duration(&self, field: &str) -> Duration {
        let text = self.fields[field].as_str().unwrap_or_default();
        let text = text.trim_start_matches("Some(").trim_end_matches(')');
        let (number, unit) = text.split_at(text.find(char::is_alphabetic).unwrap_or(text.len()));
        let unit = match unit {
            "s" => 1.0,
            "ms" => 1e-3,
            "ns" => 1e-9,
            _ => 1e-6,
        };
        Duration::from_secs_f64(number.trim_end_matches('µ').parse::<f64>().unwrap_or(0.0) * unit)
    }
}

fn span(from: Timestamp, to: Timestamp) -> Duration {
    to.duration_since(from).try_into().unwrap_or_default()
}

/// The CPU time that it has had.
fn cpu(running: &Running) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", running.pid()))?;
    let fields = stat.rsplit_once(')').context("/proc/…/stat")?.1.split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|it| it.parse::<u64>().ok()).sum();
    // A tick is a hundredth of a second to every program on Linux.
    Ok(Duration::from_millis(ticks * 10))
}

fn memory(running: &Running, what: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", running.pid()))?;
    let line = status.lines().find_map(|it| it.strip_prefix(what)?.split_whitespace().nth(1));
    Ok(line.context("/proc/…/status")?.parse()?)
}

fn part(used: Duration, of: Duration) -> f64 {
    used.as_secs_f64() / of.as_secs_f64()
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

fn versions() -> String {
    let said = |program: &str| {
        let said = Command::new(tool(program, None)).arg("--version").output();
        said.map(|it| String::from_utf8_lossy(&it.stdout).trim().to_owned()).unwrap_or_default()
    };
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|it| it.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or("unknown", |(_, it)| it.trim());
    let (nats, pocketbase) = (said("nats-server"), said("pocketbase"));
    let version = env!("CARGO_PKG_VERSION");
    format!("pb-nats {version}, {nats}, {pocketbase}; {cores} cores, {model}")
}
