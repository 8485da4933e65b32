//! How it is: what is in force where, since when, and if it is not, why.
//!
//! The pass keeps it, and others only look. Nothing is decided by it.

mod board;
mod writer;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::{self, Write as _},
    sync::Arc,
    time::Duration,
};

use jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Serialize};

pub(crate) use self::board::{Board, Tally};
pub use self::{board::Watch, writer::Writer};
use crate::{auth::Effect, nats::few, source::Kind};

/// Everything that is known, at one moment. It holds no password, hash or token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// In one word.
    pub state: State,
    /// In one sentence.
    pub summary: String,
    /// When this was told.
    pub now: Timestamp,
    /// Since when the process has been at it.
    pub started: Timestamp,
    /// The version of pb-nats.
    pub version: String,
    /// Where users and roles come from.
    pub source: SourceStatus,
    /// The passes.
    pub pass: PassStatus,
    /// Every server that must run the auth file: as the last pass that got so far found it, and as it
    /// was seen since, every few seconds.
    pub servers: Vec<ServerStatus>,
    /// Who answers on the system account as well, and need not run the file.
    #[serde(default)]
    pub strangers: Vec<Stranger>,
    /// How many users the auth file has.
    pub users: usize,
    /// How many roles the source has.
    pub roles: usize,
    /// How many active users refer to each role, by its name.
    pub users_per_role: BTreeMap<String, usize>,
    /// What could not be honoured.
    pub findings: Arc<Findings>,
    /// What was changed in the auth file, the last first.
    pub changes: VecDeque<Change>,
}

/// How it is, in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// No pass has ended yet.
    #[default]
    Starting,
    /// What the source says is in force on every server.
    InStep,
    /// It should be, but at least one server cannot be asked.
    Unverified,
    /// It is not, or nobody knows; the last good state stays in force.
    NotInStep,
}

/// Where users and roles come from.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SourceStatus {
    /// What it is.
    pub kind: Kind,
    /// Where it is.
    pub address: String,
    /// Since when there has been a live connection, if there is one and the source answers.
    pub connected_since: Option<Timestamp>,
    /// How often that broke and had to be made again.
    pub reconnects: u64,
    /// The collections whose changes it does not tell, or not all, and why: they are seen when everything
    /// is read again.
    #[serde(default)]
    pub unheard: BTreeMap<String, String>,
    /// When it last said that something may have changed.
    pub last_hint: Option<Timestamp>,
    /// When everything was last read.
    pub last_read: Option<Timestamp>,
    /// How long that took.
    #[serde(rename = "last_read_seconds", with = "seconds")]
    pub last_read_took: Option<Duration>,
    /// Since when it has not answered at all, if it does not.
    pub silent_since: Option<Timestamp>,
    /// What comes instead of an answer.
    pub silence: Option<String>,
    /// What one can do about that.
    pub hint: Option<String>,
}

/// The passes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PassStatus {
    /// When the last one that ended began.
    pub last_attempt: Option<Timestamp>,
    /// How long it took.
    #[serde(rename = "last_attempt_seconds", with = "seconds")]
    pub last_attempt_took: Option<Duration>,
    /// When the last one ended that came to its end.
    pub last_success: Option<Timestamp>,
    /// Why the last one did not.
    pub failure: Option<Failure>,
    /// When the next one begins at the latest.
    pub next: Option<Timestamp>,
    /// Until when what only gives somebody more is left for later, if it is.
    pub waiting: Option<Waiting>,
    /// The one under way: since when, and what it is at.
    pub running: Option<Running>,
    /// Whether that takes longer than anything should, or the next is overdue.
    pub stuck: bool,
}

/// Changes by which nobody has less wait, so that reloads leave time for log-ins.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Waiting {
    /// Until then at the latest.
    pub until: Timestamp,
    /// For how long a reload lets nobody in.
    #[serde(rename = "freeze_seconds", with = "seconds")]
    pub freeze: Option<Duration>,
}

impl Waiting {
    /// What one can do about it.
    pub const HINT: &str = "give those users nkeys, or secrets of `pb-nats user add --generate`, \
                            which cost a reload next to nothing; `pb-nats check` names who costs most";
}

/// A pass under way.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Running {
    /// Since when.
    pub since: Timestamp,
    /// What it is at.
    pub step: Step,
    /// Since when it has been making the file and the servers as they should be, if it got so far.
    pub enforcing_since: Option<Timestamp>,
}

/// The steps of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Reading the source.
    Snapshot,
    /// Working out what should be, and whether that is too large a change.
    Guard,
    /// Writing the auth file.
    Apply,
    /// Making every server run it.
    Servers,
    /// Making sure that servers take their users from it.
    Placement,
}

/// Why a pass did not come to its end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// Where it stopped.
    pub step: Step,
    /// What happened.
    pub why: String,
    /// What one can do about it.
    pub hint: Option<String>,
    /// Who would go, if it was held back by the guard.
    pub held_back: Option<HeldBack>,
}

/// A change that is too large to be made unasked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HeldBack {
    /// How many users would go.
    pub count: usize,
    /// Who, the first of them.
    pub users: Vec<String>,
}

/// A server on the system account that is none of ours: a leaf node, or one of another cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stranger {
    /// Its name.
    pub server: String,
    /// Its version.
    pub version: String,
    /// The name of its cluster. Empty: it is in none.
    pub cluster: String,
}

impl Stranger {
    /// What it means to be one.
    pub const NOTE: &str = "also on the system account, and in no cluster that `system_url` leads to: it \
                            need not run the auth file, and is told nothing";
}

/// One server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Its name, or the address that was asked.
    pub server: String,
    /// Its version.
    pub version: Option<String>,
    /// Whether it runs the auth file.
    pub state: State,
    /// How that is known, or why it is so.
    pub detail: String,
    /// What one can do about it.
    pub hint: Option<String>,
    /// Since when it has not answered, if it does not.
    pub silent_since: Option<Timestamp>,
    /// The digest of its config.
    pub config_digest: Option<String>,
    /// When it loaded that.
    pub config_loaded: Option<Timestamp>,
    /// How long its last reload took, from the order until the proof.
    #[serde(rename = "last_reload_seconds", with = "seconds")]
    pub last_reload_took: Option<Duration>,
    /// How many clients are connected.
    pub clients: Option<u64>,
    /// For how long it would let nobody in if it reloaded now: an estimate, from the bcrypt costs of
    /// all users.
    #[serde(rename = "reload_freeze_seconds", with = "seconds")]
    pub reload_freeze: Option<Duration>,
}

/// What could not be honoured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Findings {
    /// How many there are.
    pub count: usize,
    /// How many records are left out for them.
    pub left_out: usize,
    /// How many there are of each kind.
    pub by_kind: BTreeMap<String, usize>,
    /// The first of them.
    pub records: Vec<Record>,
}

/// A record with something that could not be honoured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Its collection.
    pub collection: String,
    /// Its id.
    pub id: String,
    /// The name of the user or role.
    pub name: String,
    /// The field in question.
    pub field: String,
    /// What was found there, shortened; never a password.
    pub value: String,
    /// The kind of problem.
    pub kind: String,
    /// What is wrong with it.
    pub problem: String,
    /// How to mend it.
    pub mend: String,
    /// What came of it.
    pub effect: Effect,
    /// The record in PocketBase's dashboard.
    pub link: Option<String>,
}

/// A change of the auth file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Change {
    /// When it was noticed.
    pub at: Timestamp,
    /// What was changed.
    pub what: String,
    /// Whether it was only seen when everything was read again: nobody told of it, and when it was made is
    /// not known.
    #[serde(default)]
    pub by_resync: bool,
    /// Whether every server was proven to run it.
    #[serde(default)]
    pub in_force: bool,
    /// How long it took from when it was noticed until then. `None` also where that says nothing, since
    /// it may have been made long before.
    #[serde(rename = "enforced_seconds", with = "seconds")]
    pub enforced_after: Option<Duration>,
    /// Whether at least one server could not be asked.
    pub unverified: bool,
    /// Which connections were closed.
    pub cut_off: Option<CutOff>,
}

/// As [`Receipt`](crate::nats::Receipt).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CutOff {
    /// Whose connections.
    pub users: BTreeSet<String>,
    /// How many.
    pub connections: usize,
    /// On how many servers.
    pub servers: usize,
    /// From the order to reload until the last was closed.
    #[serde(rename = "seconds", with = "seconds")]
    pub took: Option<Duration>,
    /// Why it is not known that none is left.
    pub failure: Option<String>,
}

/// How many connections of whom, and how fast.
impl fmt::Display for CutOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (connections, servers) = (self.connections, self.servers);
        let (connections, servers) = (many(connections, "connection"), many(servers, "server"));
        write!(f, "{connections} of {} on {servers} closed", few(&self.users))?;
        if let Some(took) = self.took {
            write!(f, " after {}", short(took))?;
        }
        match &self.failure {
            Some(why) => write!(f, "; not proven that all are cut off: {why}"),
            None => Ok(()),
        }
    }
}

/// After this, what has not come to its end is told as what is not so.
const GRACE: Duration = Duration::from_secs(2);

impl Status {
    fn judged(&self) -> State {
        let any = |state| self.servers.iter().any(|it| it.state == state);
        match &self.pass {
            PassStatus { stuck: true, .. } | PassStatus { failure: Some(_), .. } => {
                State::NotInStep
            }
            PassStatus { last_attempt: None, .. } => State::Starting,
            _ if self.source.silent_since.is_some() || self.is_late() => State::NotInStep,
            _ if any(State::NotInStep) => State::NotInStep,
            _ if any(State::Unverified) => State::Unverified,
            _ => State::InStep,
        }
    }

    /// Whether servers have been waited for so long that they may not run what they should.
    fn is_late(&self) -> bool {
        let since = self.pass.running.and_then(|it| it.enforcing_since);
        since.is_some_and(|it| self.is_ago(it, GRACE))
    }

    fn is_ago(&self, at: Timestamp, least: Duration) -> bool {
        Duration::try_from(self.now.duration_since(at)).is_ok_and(|it| it >= least)
    }

    /// What was changed last, if it is not known to be in force yet.
    fn pending(&self) -> Option<&Change> {
        self.changes.front().filter(|it| !it.in_force && !it.unverified)
    }

    /// Why it is as it is, if it is not as it should be.
    pub fn why(&self) -> Option<String> {
        let PassStatus { stuck, running, failure, .. } = &self.pass;
        match (stuck, running) {
            (true, Some(Running { since, step, .. })) => {
                let seconds = self.now.duration_since(*since).as_secs();
                return Some(format!("a pass has been busy for {seconds} s, now with {step}"));
            }
            (true, None) => return Some("no pass begins".into()),
            (false, _) => (),
        }
        let mut reasons = Vec::new();
        if let Some(since) = self.source.silent_since {
            reasons.push(format!("PocketBase has been silent since {}", self.clock(since)));
        }
        let not_in_step = || self.servers.iter().filter(|it| it.state == State::NotInStep);
        let silent: Vec<_> = not_in_step()
            .filter_map(|it| Some(format!("{} since {}", it.server, self.clock(it.silent_since?))))
            .collect();
        let explained = !silent.is_empty() && silent.len() == not_in_step().count();
        match &silent[..] {
            [] => (),
            [one] => reasons.push(format!("a nats-server is silent, {one}")),
            all => reasons.push(format!("nats-servers are silent, {}", all.join(" and "))),
        }
        match failure {
            Some(Failure { step: Step::Servers, .. }) if explained => (),
            Some(failure) => reasons.push(failure.why.clone()),
            None if self.is_late() => reasons.push(self.lateness()),
            None if reasons.is_empty() => {
                let told = |it: &ServerStatus| format!("{}: {}", it.server, it.detail);
                reasons.extend(not_in_step().next().map(told));
            }
            None => (),
        }
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    /// What one can do about it.
    pub fn hint(&self) -> Option<&str> {
        let failed = || self.pass.failure.as_ref()?.hint.as_deref();
        let server = || self.servers.iter().find_map(|it| it.hint.as_deref());
        self.source.hint.as_deref().or_else(failed).or_else(server)
    }

    /// What is waited for too long.
    fn lateness(&self) -> String {
        let since = self.pass.running.and_then(|it| it.enforcing_since).unwrap_or(self.now);
        let since = self.clock(since);
        match self.pending() {
            Some(Change { what, .. }) => {
                format!("not known to be in force yet, and under way since {since}: {what}")
            }
            None => format!("servers have not shown yet what they run, asked since {since}"),
        }
    }

    /// The time of day, and the day if it was another.
    fn clock(&self, at: Timestamp) -> String {
        const DAY: Duration = Duration::from_hours(12);
        let format = if self.is_ago(at, DAY) { "%F %T %Z" } else { "%T %Z" };
        at.to_zoned_datetime(TimeZone::system()).strftime(format).to_string()
    }

    fn told(&self) -> String {
        const LONG: Duration = Duration::from_secs(3);
        let mut text = self.sentence();
        match self.state {
            State::InStep | State::Unverified => (),
            State::Starting | State::NotInStep => return text,
        }
        match (self.changes.front(), self.pending(), &self.pass.running) {
            (Some(Change { enforced_after: Some(after), .. }), ..) => {
                let _ = write!(text, " · last change in force after {}", short(*after));
            }
            (_, Some(_), Some(_)) => text.push_str(" · a change is being put in force"),
            (..) => (),
        }
        match &self.pass.running {
            Some(Running { since, enforcing_since: None, .. }) if self.is_ago(*since, LONG) => {
                let _ = write!(text, " · PocketBase has been read since {}", self.clock(*since));
            }
            Some(_) | None => (),
        }
        if self.pass.waiting.is_some() {
            text.push_str(" · changes are waiting");
        }
        text
    }

    /// Where it is in force, and how much; or why not.
    fn sentence(&self) -> String {
        let all = self.servers.len();
        let good = self.servers.iter().filter(|it| it.state == State::InStep).count();
        let servers = if all == 1 { "server" } else { "servers" };
        let mut text = match self.state {
            State::Starting => return "Starting: no pass has ended yet".into(),
            State::InStep => format!("In force on {good} of {all} {servers}"),
            State::Unverified => {
                format!("Written, and proven to be in force on {good} of {all} {servers}")
            }
            State::NotInStep => {
                let why = self.why().unwrap_or_default();
                let first = why.chars().next().map(char::to_uppercase);
                let why: String = first.into_iter().flatten().chain(why.chars().skip(1)).collect();
                return why + &self.stands(good, all);
            }
        };
        let _ = write!(text, " · {} · {}", many(self.users, "user"), many(self.roles, "role"));
        text
    }
}

impl Status {
    /// What is known all the same: the file that there was, and where that is in force.
    fn stands(&self, good: usize, all: usize) -> String {
        let unread = self.source.silent_since.is_some()
            || self.pass.failure.as_ref().is_some_and(|it| it.step == Step::Snapshot);
        let silent = self.servers.iter().any(|it| it.silent_since.is_some());
        let servers = if all == 1 { "server" } else { "servers" };
        match (self.pass.stuck || all == 0, unread, silent) {
            (true, ..) | (_, false, false) => String::new(),
            (false, true, _) => {
                format!(
                    "; the last good state stands, known to be in force on {good} of {all} {servers}"
                )
            }
            (false, false, true) => format!("; known to be in force on {good} of {all} {servers}"),
        }
    }
}

impl Step {
    const ALL: [Step; 5] =
        [Step::Snapshot, Step::Guard, Step::Apply, Step::Servers, Step::Placement];

    /// In one word, for metrics.
    pub fn word(self) -> &'static str {
        match self {
            Step::Snapshot => "snapshot",
            Step::Guard => "guard",
            Step::Apply => "apply",
            Step::Servers => "servers",
            Step::Placement => "placement",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Snapshot => "reading PocketBase",
            Step::Guard => "working out what should be",
            Step::Apply => "the auth file",
            Step::Servers => "the servers",
            Step::Placement => "the main config",
        })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Starting => "starting",
            State::InStep => "in step",
            State::Unverified => "unverified",
            State::NotInStep => "not in step",
        })
    }
}

/// A duration as people say it: `41 ms`, `1.3 s`, `12 min`.
pub fn short(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{} ms", duration.as_millis()),
        1..10 => format!("{:.1} s", duration.as_secs_f64()),
        10..120 => format!("{} s", duration.as_secs()),
        120..7200 => format!("{} min", duration.as_secs() / 60),
        _ => format!("{} h", duration.as_secs() / 3600),
    }
}

/// So many of them, as people write it: `1,204 users`.
pub fn many(count: usize, noun: &str) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    let _ = write!(text, " {noun}{}", if count == 1 { "" } else { "s" });
    text
}

/// A duration as a number of seconds, or null.
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    #[expect(clippy::ref_option, reason = "serde wants it so")]
    pub(super) fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match duration {
            Some(it) => serializer.serialize_some(&it.as_secs_f64()),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        let seconds: Option<f64> = Option::deserialize(deserializer)?;
        seconds.map(Duration::try_from_secs_f64).transpose().map_err(D::Error::custom)
    }
}
