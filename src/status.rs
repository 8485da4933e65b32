//! How it is: what is in force where, since when, and if it is not, why.
//!
//! The pass keeps it, and others only look. Nothing is decided by it.

mod board;
mod writer;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    error::Error,
    fmt::{self, Write as _},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub(crate) use self::board::{Board, Tally};
pub use self::{board::Watch, writer::Writer};
use crate::{auth::Effect, server::few, source::Kind};

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
    /// Every server, as the last pass that got so far found it.
    pub servers: Vec<ServerStatus>,
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
    /// Since when there is a live connection, if there is one.
    pub connected_since: Option<Timestamp>,
    /// How often that broke and had to be made again.
    pub reconnects: u64,
    /// When it last said that something may have changed.
    pub last_hint: Option<Timestamp>,
    /// When everything was last read.
    pub last_read: Option<Timestamp>,
    /// How long that took.
    #[serde(rename = "last_read_seconds", with = "seconds")]
    pub last_read_took: Option<Duration>,
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

/// One server.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
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
    /// How long it took from there until every server was proven to run it.
    #[serde(rename = "enforced_seconds", with = "seconds")]
    pub enforced_after: Option<Duration>,
    /// Whether at least one server could not be asked.
    pub unverified: bool,
    /// Which connections were closed.
    pub cut_off: Option<CutOff>,
}

/// As [`Receipt`](crate::server::Receipt).
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

impl Status {
    fn judged(&self) -> State {
        let unverified = |it: &ServerStatus| it.state == State::Unverified;
        match &self.pass {
            PassStatus { stuck: true, .. } | PassStatus { failure: Some(_), .. } => {
                State::NotInStep
            }
            PassStatus { last_attempt: None, .. } => State::Starting,
            _ if self.servers.iter().any(unverified) => State::Unverified,
            _ => State::InStep,
        }
    }

    /// Why it is as it is, if it is not as it should be.
    pub fn why(&self) -> Option<String> {
        let PassStatus { stuck, running, failure, .. } = &self.pass;
        match (stuck, running, failure) {
            (true, Some(Running { since, step }), _) => {
                let seconds = self.now.duration_since(*since).as_secs();
                Some(format!("a pass has been busy for {seconds} s, now with {step}"))
            }
            (true, None, _) => Some("no pass begins".into()),
            (false, _, Some(failure)) => Some(failure.why.clone()),
            (false, _, None) => None,
        }
    }

    fn told(&self) -> String {
        let mut text = self.sentence();
        let last = self.changes.front().and_then(|it| it.enforced_after);
        if let (State::InStep | State::Unverified, Some(after)) = (self.state, last) {
            let _ = write!(text, " · last change {}", short(after));
        }
        if let (State::InStep | State::Unverified, Some(_)) = (self.state, &self.pass.waiting) {
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
                return first.into_iter().flatten().chain(why.chars().skip(1)).collect();
            }
        };
        let _ = write!(text, " · {} · {}", many(self.users, "user"), many(self.roles, "role"));
        text
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

/// The error and its causes, in one line.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    causes(error).join(": ")
}

/// The error and its causes, each in words of its own.
///
/// Some errors already end with what their source says. And of the layers of a web client only the
/// innermost says what happened.
pub fn causes(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut texts = vec![error.to_string()];
    let mut next = error.source();
    while let Some(mut cause) = next {
        while let (true, Some(inner)) = (cause.is::<reqwest::Error>(), cause.source()) {
            cause = innermost(inner);
        }
        let text = cause.to_string();
        if !texts.last().is_some_and(|it| it.ends_with(&text)) {
            texts.push(text);
        }
        next = cause.source();
    }
    texts
}

fn innermost<'e>(mut error: &'e (dyn Error + 'static)) -> &'e (dyn Error + 'static) {
    while let Some(inner) = error.source() {
        error = inner;
    }
    error
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
