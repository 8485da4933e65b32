//! How the status is kept: by the pass, a line at a time.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    mem,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use prometheus_client::metrics::{
    counter::Counter, family::Family, gauge::Gauge, histogram::Histogram,
};
use reqwest::Url;
use tokio::sync::watch;
use tracing::info;

use super::{
    Change, CutOff, Failure, Findings, HeldBack, PassStatus, Record, Running, ServerStatus,
    SourceStatus, State, Status, Step, Stranger, Waiting,
};
use crate::{
    auth::{Changes, Desired, Effect, Finding, Refused, Snapshot},
    causes::chain,
    engine::config::{self, Outcome, Sight},
    nats::{self, Receipt, ServerError},
    options::Options,
    source::{Kind, Link},
};

/// So many changes are remembered.
const MOST_CHANGES: usize = 100;
/// So many findings, or names of those who would go, are told one by one.
const MOST_LISTED: usize = 200;

/// Where a process tells how it is. All clones are one.
#[derive(Clone, Debug)]
pub struct Watch {
    published: watch::Sender<Published>,
    tally: Tally,
}

/// What readers are told of when it changes.
#[derive(Debug)]
pub(crate) struct Published {
    status: Status,
    link: watch::Receiver<Link>,
    /// When the loop has to be at its next pass, or done with this one.
    due: Option<Instant>,
    ready: bool,
}

/// What a pass writes its status on.
#[derive(Debug)]
pub(crate) struct Board {
    watch: Watch,
    link: watch::Receiver<Link>,
    /// The page of PocketBase's dashboard that shows records.
    dashboard: Option<Url>,
    /// How long a pass may take, and be late.
    patience: Duration,
    /// When the first hint came that no pass has dealt with yet.
    noticed: Option<Instant>,
    /// How many changes the source had told of then.
    events: u64,
    /// Whether what the next pass finds may have been there before that hint, as nobody told of it.
    untold: bool,
    /// Whether the pass leaves what it found for later.
    defers: bool,
    /// When each change was noticed that is not proven yet, the last first.
    pending: VecDeque<Instant>,
    begun: (Timestamp, Instant),
    step: (Step, Instant),
    findings: Vec<Finding>,
    /// What the file has.
    held: Option<Arc<Desired>>,
    /// What a user's credential takes a reload, on average.
    per_client: Option<Duration>,
    /// The servers as the last pass found them.
    found: Vec<ServerStatus>,
    /// When each server last answered.
    heard: BTreeMap<String, Timestamp>,
}

type Label = [(&'static str, &'static str); 1];

/// What was counted since the start.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    pub(crate) passes: Family<Label, Counter>,
    pub(crate) pass_seconds: Histogram,
    pub(crate) steps: Family<Label, Histogram, fn() -> Histogram>,
    pub(crate) enforced_seconds: Histogram,
    pub(crate) reloads: Counter,
    pub(crate) reload_seconds: Histogram,
    pub(crate) freeze_predicted: Gauge<f64, AtomicU64>,
    pub(crate) freeze_measured: Gauge<f64, AtomicU64>,
    pub(crate) kicks: Counter,
}

impl Default for Watch {
    fn default() -> Watch {
        let now = Timestamp::now();
        let status = Status {
            state: State::Starting,
            summary: String::new(),
            now,
            started: now,
            version: env!("CARGO_PKG_VERSION").into(),
            source: SourceStatus::default(),
            pass: PassStatus::default(),
            servers: Vec::new(),
            strangers: Vec::new(),
            users: 0,
            roles: 0,
            users_per_role: BTreeMap::new(),
            findings: Arc::default(),
            changes: VecDeque::new(),
        };
        let link = watch::Sender::new(Link::default()).subscribe();
        let published = Published { status, link, due: None, ready: false };
        Watch { published: watch::Sender::new(published), tally: Tally::new() }
    }
}

impl Watch {
    /// How it is now.
    pub fn now(&self) -> Status {
        let published = self.published.borrow();
        let mut status = published.status.clone();
        let link = published.link.borrow().clone();
        let stuck = published.due.is_some_and(|it| it < Instant::now());
        drop(published);
        status.now = Timestamp::now();
        status.source.kind = link.kind;
        status.source.address = link.address;
        let silence = link.silence.as_ref();
        // While nothing is heard, nobody knows whether that still stands.
        let connected = link.connected.filter(|_| silence.is_none());
        status.source.connected_since = connected.and_then(|it| it.try_into().ok());
        status.source.silent_since = silence.and_then(|it| it.since.try_into().ok());
        status.source.silence = silence.map(|it| chain(&it.error));
        status.source.hint = silence.and_then(|it| it.error.hint());
        status.source.reconnects = link.reconnects;
        status.source.unheard = link.unheard;
        status.pass.stuck = stuck;
        status.state = status.judged();
        status.summary = status.told();
        status
    }

    /// Whether everything has been in force at least once since the start.
    pub fn ready(&self) -> bool {
        self.published.borrow().ready
    }

    /// Wakes whoever waits for something new.
    pub(crate) fn changes(&self) -> watch::Receiver<Published> {
        self.published.subscribe()
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    fn change(&self, change: impl FnOnce(&mut Published)) {
        self.published.send_modify(change);
    }
}

impl Board {
    /// A board of its own, for these settings.
    pub(crate) fn new(options: &Options, link: watch::Receiver<Link>) -> Board {
        let now = Instant::now();
        let allowed = options.pocketbase.request_timeout + options.nats.reload_timeout;
        Board {
            watch: Watch::default(),
            link,
            dashboard: options.pocketbase.url.as_deref().and_then(dashboard),
            patience: allowed * 2,
            noticed: None,
            events: 0,
            untold: false,
            defers: false,
            pending: VecDeque::new(),
            begun: (Timestamp::now(), now),
            step: (Step::Snapshot, now),
            findings: Vec::new(),
            held: None,
            per_client: None,
            found: Vec::new(),
            heard: BTreeMap::new(),
        }
    }

    /// Writes there from now on.
    pub(crate) fn report_to(&mut self, watch: &Watch) {
        self.watch = watch.clone();
    }

    /// The loop begins.
    pub(crate) fn opens(&mut self) {
        let link = self.link.clone();
        self.watch.change(|it| it.link = link);
        self.waits(Instant::now());
    }

    pub(crate) fn watch(&self) -> &Watch {
        &self.watch
    }

    /// The source said that something may have changed.
    pub(crate) fn hinted(&mut self) {
        let link = self.link.borrow();
        // A new connection is a hint as well, and so is doubt; what they find may have been there before.
        self.untold |= link.kind == Kind::PocketBase && link.events == self.events;
        self.events = link.events;
        drop(link);
        self.noticed.get_or_insert_with(Instant::now);
        self.watch.change(|it| it.status.source.last_hint = Some(Timestamp::now()));
    }

    /// The next pass is for no hint, but since so much time has passed.
    pub(crate) fn resyncs(&mut self) {
        self.untold |= self.noticed.is_none() && self.watch.ready();
    }

    /// The next pass begins then, or earlier.
    pub(crate) fn waits(&mut self, until: Instant) {
        let patience = self.patience;
        let wait = until.saturating_duration_since(Instant::now());
        self.watch.change(|it| {
            it.due = until.checked_add(patience);
            it.status.pass.next = Timestamp::now().checked_add(wait).ok();
        });
    }

    /// A pass begins.
    pub(crate) fn begins(&mut self) {
        let (now, patience) = (Instant::now(), self.patience);
        self.begun = (Timestamp::now(), now);
        self.step = (Step::Snapshot, now);
        let since = self.begun.0;
        let running = Running { since, step: Step::Snapshot, enforcing_since: None };
        self.watch.change(|it| {
            it.due = now.checked_add(patience);
            it.status.pass.running = Some(running);
        });
    }

    /// It has read the source.
    pub(crate) fn has_read(&mut self) {
        let took = self.is_at(Step::Guard);
        self.watch.change(|it| {
            it.status.source.last_read = Some(Timestamp::now());
            it.status.source.last_read_took = Some(took);
        });
    }

    /// It is at the next step. Returns how long the former one took.
    pub(crate) fn is_at(&mut self, next: Step) -> Duration {
        let now = Instant::now();
        let (step, since) = mem::replace(&mut self.step, (next, now));
        let took = now - since;
        self.watch.tally.step(step).observe(took.as_secs_f64());
        self.watch.change(|it| {
            if let Some(running) = &mut it.status.pass.running {
                running.step = next;
                match next {
                    Step::Snapshot | Step::Guard => running.enforcing_since = None,
                    Step::Apply | Step::Servers | Step::Placement => {
                        running.enforcing_since.get_or_insert_with(Timestamp::now);
                    }
                }
            }
        });
        took
    }

    /// What the source has.
    pub(crate) fn counts(&mut self, snapshot: &Snapshot, findings: &[Finding]) {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for user in snapshot.users.iter().filter(|it| it.active) {
            for role in user.roles.iter() {
                *counts.entry(role).or_default() += 1;
            }
        }
        let mut users_per_role = BTreeMap::new();
        for role in &snapshot.roles {
            let count = counts.get(role.id.as_str()).copied().unwrap_or_default();
            *users_per_role.entry(role.name.clone()).or_default() += count;
        }
        let findings = (self.findings != findings).then(|| {
            self.findings = findings.to_vec();
            Arc::new(Findings::new(findings, self.dashboard.as_ref()))
        });
        let roles = snapshot.roles.len();
        self.watch.change(|it| {
            it.status.roles = roles;
            it.status.users_per_role = users_per_role;
            it.status.findings = findings.unwrap_or_else(|| it.status.findings.clone());
        });
    }

    /// What the file has.
    pub(crate) fn holds(&mut self, desired: &Arc<Desired>) {
        self.held = Some(Arc::clone(desired));
        let users = desired.users.len();
        self.watch.change(|it| it.status.users = users);
    }

    /// What was told until the source was read is in the file, unless the pass defers it. What is told
    /// from now on is for the next one.
    pub(crate) fn has_applied(&mut self) {
        self.noticed = self.noticed.filter(|_| self.defers);
        self.untold &= self.defers;
    }

    /// The file was changed.
    pub(crate) fn changed(&mut self, changes: &Changes) {
        let noticed = self.noticed.take().unwrap_or(self.begun.1);
        self.pending.push_front(noticed);
        self.pending.truncate(MOST_CHANGES);
        let unheard = !self.link.borrow().unheard.is_empty();
        let by_resync = self.untold || unheard;
        if by_resync {
            info!(%changes, "nobody told of this change, it was seen when everything was read");
        }
        let change = Change {
            at: ago(noticed),
            what: changes.to_string(),
            by_resync,
            in_force: false,
            enforced_after: None,
            unverified: false,
            cut_off: None,
        };
        self.watch.change(|it| {
            it.status.changes.push_front(change);
            it.status.changes.truncate(MOST_CHANGES);
        });
    }

    /// Until when the pass leaves what it found for later, if it does, and why: a reload lets nobody in
    /// for so long.
    pub(crate) fn defers(&mut self, deferred: Option<(Instant, Duration)>) {
        self.defers = deferred.is_some();
        let now = Instant::now();
        let waiting = deferred.and_then(|(until, freeze)| {
            let until = Timestamp::now().checked_add(until.saturating_duration_since(now)).ok()?;
            Some(Waiting { until, freeze: Some(freeze) })
        });
        self.watch.change(|it| it.status.pass.waiting = waiting);
    }

    /// What a reload that let nobody in for so long was expected to take, and took.
    pub(crate) fn froze(&mut self, predicted: Duration, measured: Duration) {
        self.watch.tally.freeze_predicted.set(predicted.as_secs_f64());
        self.watch.tally.freeze_measured.set(measured.as_secs_f64());
    }

    /// What became of each server.
    pub(crate) fn servers(&mut self, outcomes: &[Outcome]) {
        for took in outcomes.iter().filter_map(|it| it.took) {
            self.watch.tally.reloads.inc();
            self.watch.tally.reload_seconds.observe(took.as_secs_f64());
        }
        self.per_client = self.held.as_deref().and_then(per_client);
        let (now, former) = (Timestamp::now(), mem::take(&mut self.found));
        for outcome in outcomes {
            let mut server = ServerStatus::new(outcome, self.per_client);
            let former = former.iter().find(|it| it.server == server.server);
            let before = former.and_then(|it| it.last_reload_took);
            server.last_reload_took = server.last_reload_took.or(before);
            match (&outcome.running, &outcome.state) {
                (Some(_), _) => drop(self.heard.insert(server.server.clone(), now)),
                (None, config::SyncStatus::NotInStep { why }) if why.is_silence() => {
                    server.silent_since = Some(self.last_heard(&server.server, now));
                }
                (None, _) => (),
            }
            self.found.push(server);
        }
        let found = self.found.clone();
        self.watch.change(|it| it.status.servers = found);
    }

    /// When the server last answered; if it never did, since when it was asked.
    fn last_heard(&mut self, server: &str, now: Timestamp) -> Timestamp {
        *self.heard.entry(server.to_owned()).or_insert(now)
    }

    /// What a look at the servers between passes shows, and who answers that is none of them.
    pub(crate) fn sees(&mut self, sights: &[Sight], strangers: &[&nats::Running]) {
        let now = Timestamp::now();
        for it in sights.iter().filter(|it| it.clients.is_ok()) {
            self.heard.insert(it.server.clone(), now);
        }
        // Where none can be asked, none is named.
        let nobody = sights.iter().all(|it| it.clients.is_err()).then(|| sights.first()).flatten();
        let mut servers = self.found.clone();
        for server in &mut servers {
            let sight = sights.iter().find(|it| it.server == server.server).or(nobody);
            match sight.map(|it| (&it.clients, it.as_proven)) {
                Some((Ok(clients), as_proven)) => {
                    server.answers(*clients, self.per_client, as_proven);
                }
                Some((Err(why), _)) => {
                    let since = self.last_heard(&server.server, now);
                    server.is_silent(why, since);
                }
                None => (),
            }
        }
        self.watch.published.send_if_modified(|it| {
            let modified = it.status.servers != servers;
            it.status.servers = servers;
            modified
        });
        self.meets(strangers);
    }

    /// Who answers beside the servers that are ours.
    pub(crate) fn meets(&mut self, strangers: &[&nats::Running]) {
        let stranger = |it: &&nats::Running| Stranger {
            server: it.name.clone(),
            version: it.version.clone(),
            cluster: it.cluster.clone(),
        };
        let strangers: Vec<Stranger> = strangers.iter().map(stranger).collect();
        self.watch.published.send_if_modified(|it| {
            let modified = it.status.strangers != strangers;
            it.status.strangers = strangers;
            modified
        });
    }

    /// The pass was for losses only, and there are none.
    pub(crate) fn leaves_it(&mut self) {
        self.watch.change(|it| it.status.pass.running = None);
    }

    /// Which connections were closed.
    pub(crate) fn cuts_off(&mut self, receipt: Option<&Receipt>) {
        let Some(cut_off) = receipt.map(CutOff::from) else { return };
        let kicks = cut_off.connections.try_into().unwrap_or(u64::MAX);
        self.watch.tally.kicks.inc_by(kicks);
        self.watch.change(|it| {
            if let Some(change) = it.status.changes.front_mut() {
                change.cut_off = Some(cut_off);
            }
        });
    }

    /// The pass is over: why it stopped, if it did.
    pub(crate) fn ends(&mut self, failure: Option<Failure>) {
        let (begun, since) = self.begun;
        self.is_at(Step::Snapshot);
        let took = since.elapsed();
        self.watch.tally.passed(failure.as_ref().map(|it| it.step)).inc();
        self.watch.tally.pass_seconds.observe(took.as_secs_f64());

        let succeeded = failure.is_none();
        let proven = if succeeded { mem::take(&mut self.pending) } else { VecDeque::new() };
        let tally = &self.watch.tally;
        self.watch.change(|it| {
            it.ready |= succeeded;
            let status = &mut it.status;
            let unverified = status.servers.iter().any(|it| it.state == State::Unverified);
            for (change, noticed) in status.changes.iter_mut().zip(proven) {
                change.unverified = unverified;
                change.in_force = !unverified;
                if !unverified && !change.by_resync {
                    let after = noticed.elapsed();
                    tally.enforced_seconds.observe(after.as_secs_f64());
                    change.enforced_after = Some(after);
                }
            }
            status.pass.last_attempt = Some(begun);
            status.pass.last_attempt_took = Some(took);
            if succeeded {
                status.pass.last_success = Some(Timestamp::now());
            }
            status.pass.failure = failure;
            status.pass.running = None;
        });
    }
}

impl ServerStatus {
    fn new(outcome: &Outcome, per_client: Option<Duration>) -> ServerStatus {
        let running = outcome.running.as_ref();
        let clients = running.map(|it| it.connections);
        let (state, detail, hint) = match &outcome.state {
            config::SyncStatus::InStep { proof, note } => {
                let note = note.map(|it| format!("; {it}")).unwrap_or_default();
                (State::InStep, format!("shown by {proof}{note}"), None)
            }
            config::SyncStatus::NotInStep { why } => {
                (State::NotInStep, chain(why.as_ref()), why.hint())
            }
            config::SyncStatus::Unverified { why } => (State::Unverified, why.to_string(), None),
        };
        ServerStatus {
            server: outcome.server.clone(),
            version: running.map(|it| it.version.clone()),
            state,
            detail,
            hint,
            silent_since: None,
            config_digest: running.and_then(|it| it.config_digest.clone()),
            config_loaded: running.and_then(|it| it.loaded.try_into().ok()),
            last_reload_took: outcome.took,
            clients,
            reload_freeze: clients.zip(per_client).map(|(clients, each)| freeze(clients, each)),
        }
    }
}

impl ServerStatus {
    /// It answered, and this is how many clients it has now.
    fn answers(&mut self, clients: u64, per_client: Option<Duration>, as_proven: bool) {
        self.clients = Some(clients);
        self.reload_freeze = per_client.map(|it| freeze(clients, it));
        self.silent_since = None;
        if self.state == State::InStep && !as_proven {
            self.state = State::NotInStep;
            self.detail =
                "it was started again or has loaded its config anew, and has not shown yet \
                           what it runs"
                    .into();
        }
    }

    /// It did not answer.
    fn is_silent(&mut self, why: &ServerError, since: Timestamp) {
        let before = match self.state {
            State::InStep => format!("; before that it was in step, {}", self.detail),
            State::Starting | State::Unverified | State::NotInStep => String::new(),
        };
        self.state = State::NotInStep;
        self.detail = format!("{}{before}", chain(why));
        self.hint = why.hint();
        self.silent_since = why.is_silence().then_some(since);
        (self.clients, self.reload_freeze) = (None, None);
    }
}

impl Findings {
    fn new(findings: &[Finding], dashboard: Option<&Url>) -> Findings {
        let mut by_kind = BTreeMap::new();
        let mut left_out = BTreeSet::new();
        for finding in findings {
            *by_kind.entry(finding.problem.kind().to_owned()).or_default() += 1;
            if finding.effect == Effect::LeftOut {
                left_out.insert((&finding.collection, &finding.id));
            }
        }
        let record = |it: &Finding| Record {
            collection: it.collection.clone(),
            id: it.id.clone(),
            name: it.name.clone(),
            field: it.field.clone(),
            value: it.value.clone(),
            kind: it.problem.kind().into(),
            problem: it.problem.to_string(),
            mend: it.problem.mend().into(),
            effect: it.effect,
            link: dashboard.filter(|_| !it.id.is_empty()).map(|page| link(page, it)),
        };
        Findings {
            count: findings.len(),
            left_out: left_out.len(),
            by_kind,
            records: findings.iter().take(MOST_LISTED).map(record).collect(),
        }
    }
}

impl From<&Refused> for HeldBack {
    fn from(refused: &Refused) -> HeldBack {
        let removed = refused.removed();
        let users = removed.iter().take(MOST_LISTED).cloned().collect();
        HeldBack { count: removed.len(), users }
    }
}

impl From<&Receipt> for CutOff {
    fn from(receipt: &Receipt) -> CutOff {
        CutOff {
            users: receipt.users.iter().take(MOST_LISTED).cloned().collect(),
            connections: receipt.connections,
            servers: receipt.servers,
            took: (receipt.connections > 0).then_some(receipt.took),
            failure: receipt.failure.as_ref().map(ToString::to_string),
        }
    }
}

impl Tally {
    fn new() -> Tally {
        let tally = Tally {
            passes: Family::default(),
            pass_seconds: histogram(),
            steps: Family::new_with_constructor(histogram),
            enforced_seconds: histogram(),
            reloads: Counter::default(),
            reload_seconds: histogram(),
            freeze_predicted: Gauge::default(),
            freeze_measured: Gauge::default(),
            kicks: Counter::default(),
        };
        // A rate needs a zero to begin with.
        tally.passed(None);
        for step in Step::ALL {
            tally.passed(Some(step));
            tally.step(step);
        }
        tally
    }

    fn passed(&self, failed_at: Option<Step>) -> Counter {
        let outcome = failed_at.map_or("success", Step::word);
        self.passes.get_or_create_owned(&[("outcome", outcome)])
    }

    fn step(&self, step: Step) -> Histogram {
        self.steps.get_or_create_owned(&[("step", step.word())])
    }
}

/// When that was, by the clock on the wall.
fn ago(then: Instant) -> Timestamp {
    let now = Timestamp::now();
    now.checked_sub(then.elapsed()).unwrap_or(now)
}

/// For what takes from a millisecond to minutes.
fn histogram() -> Histogram {
    const SECONDS: [f64; 16] = [
        0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0,
        600.0,
    ];
    Histogram::new(SECONDS)
}

/// For how long a reload lets nobody in that takes so much for each of its clients.
fn freeze(clients: u64, each: Duration) -> Duration {
    each.checked_mul(clients.try_into().unwrap_or(u32::MAX)).unwrap_or(Duration::MAX)
}

/// What a user's credential takes a reload, on average. Who is connected is not known one by one.
fn per_client(desired: &Desired) -> Option<Duration> {
    let costs = desired.users.values().filter_map(|it| it.credential.bcrypt_cost());
    let all: Duration = costs.map(|it| config::checks(1, it)).sum();
    all.checked_div(u32::try_from(desired.users.len()).ok()?)
}

/// The page of PocketBase's dashboard that shows records.
fn dashboard(url: &str) -> Option<Url> {
    let url = Url::parse(url).ok().filter(|it| matches!(it.scheme(), "http" | "https"))?;
    let page = format!("{}/_/", url.path().trim_end_matches('/'));
    let mut url = url;
    url.set_path(&page);
    Some(url)
}

/// The record in PocketBase's dashboard. It is named as dashboards up to 0.38 want it, and as those
/// since then do.
fn link(dashboard: &Url, finding: &Finding) -> String {
    let (collection, id) = (&finding.collection, &finding.id);
    let mut link = dashboard.clone();
    link.query_pairs_mut().extend_pairs([
        ("collection", collection),
        ("recordId", id),
        ("record", id),
    ]);
    let fragment = format!("/collections?{}", link.query().unwrap_or_default());
    link.set_query(None);
    link.set_fragment(Some(&fragment));
    link.into()
}
