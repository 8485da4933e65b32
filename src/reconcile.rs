//! The pass and the loop.

mod agenda;
mod backoff;

use std::{
    collections::{BTreeMap, BTreeSet},
    future, mem,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, time};
use tracing::{debug, field, info, warn};

use self::{
    agenda::{Agenda, Pace, REST, Scope},
    backoff::Backoff,
};
use crate::{
    apply::{Adopt, Applied, ApplyError, AuthFile, Current, MainConfig, Placement},
    auth::{
        Changes, Desired, Diff, Event, Explain, Finding, Limits, Policy, Refused, Remark, Snapshot,
        lint,
    },
    engine::config::{self, Outcome, Servers, SyncStatus},
    nats::{Receipt, ServerError},
    options::{EventFilter, Options},
    source::{Source, SourceError},
    status::{Board, Failure, Step, Watch, chain},
};

/// Makes NATS match the source, again and again.
#[derive(Debug)]
pub struct Reconciler<S> {
    source: S,
    policy: Policy,
    file: AuthFile,
    servers: Servers,
    limits: Limits,
    pace: Pace,
    filter: Option<EventFilter>,
    /// What the source said when the file was last in step with it; kept only for the filter.
    seen: Option<Snapshot>,
    findings: Vec<Finding>,
    /// Whether there was a hint while servers were waited for.
    hinted: bool,
    doing: watch::Sender<&'static str>,
    board: Board,
    /// How long the last order to reload took, until the agenda knows.
    reloaded: Option<Duration>,
}

/// So often a pass is made again at once if somebody deletes or edits the file while it is made.
const MEDDLED: u32 = 10;

/// What it is doing while it waits for the source.
const READING: &str = "reading PocketBase";

/// What came of a look.
#[derive(Debug)]
enum Looked {
    /// It was for revocations only, and there are none.
    NothingUrgent,
    /// All is in force.
    Passed(Box<Converged>),
    /// So many users were removed from the file, and servers were told; but before they had loaded
    /// it somebody was to have less.
    Superseded { removed: usize },
}

/// What a pass may do only if it was told to. By default it was not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Consent {
    /// Whether a removal of many users, or of all, goes through.
    pub removals: bool,
    /// Whether a file that we did not write is taken over.
    pub adopt: Adopt,
}

/// Whether a backup may give back what has been taken away since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GiveBack {
    /// Then it is not restored.
    #[default]
    No,
    /// It may.
    Yes,
}

/// What a pass would do.
#[derive(Debug)]
pub struct Plan {
    /// What NATS should allow.
    pub desired: Arc<Desired>,
    /// How the file differs from that.
    pub changes: Changes,
    /// What the file says now, if it says anything that counts.
    pub former: Option<Arc<Desired>>,
    /// Whether the file would be written: it differs in meaning, or is not whole.
    pub write: bool,
    /// Why the pass would be held back.
    pub refused: Option<Refused>,
    /// What had to be left out.
    pub findings: Vec<Finding>,
    /// What is honoured, but rarely meant.
    pub remarks: Vec<Remark>,
    /// Why nats-server does not take its users from the file, if it does not.
    pub misplaced: Option<Placement>,
    /// Which servers run the file, if it is not to be written and in its place.
    pub servers: Vec<Outcome>,
}

/// What a pass did. Every server that could be asked runs the file.
#[derive(Debug)]
pub struct Converged {
    /// What it changed in the file, if anything.
    pub changes: Option<Changes>,
    /// How many users the file has.
    pub users: usize,
    /// Whether more is to be given to somebody, once servers have had time for log-ins.
    pub deferred: bool,
    /// What became of each server.
    pub servers: Vec<Outcome>,
    /// Which connections were closed, if any user has less than before and it could be done.
    pub cut_off: Option<Receipt>,
}

/// The step a pass stopped at. Every step before it is done and stays done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReconcileError {
    /// The source could not be read. Nothing was changed.
    #[error("the records could not be read")]
    Snapshot(#[from] SourceError),
    /// The change is too large to be made unasked. The last good state stays in force.
    #[error("held back")]
    Guard(#[from] Refused),
    /// A backup would give back what has been taken away since. Nothing was changed.
    #[error("the backup gives back what has been taken away since")]
    GivesBack(Box<Diff>),
    /// The file could not be replaced. It holds what it held.
    #[error("the auth file could not be brought up to date")]
    Apply(#[from] ApplyError),
    /// The file is right, but a server does not run it.
    #[error("not in force on every server: {}", told(.0))]
    Servers(Vec<Outcome>),
    /// The file is right, but which main config a server loaded with it is not known.
    #[error("the main config was changed during the pass")]
    MainConfigChanged,
    /// The file is right, but nats-server does not take its users from it.
    #[error("{0}")]
    Placement(Placement),
}

impl<S: Source> Reconciler<S> {
    /// A reconciler for these settings. Nothing is read, written or asked yet.
    pub fn new(source: S, options: &Options) -> Result<Reconciler<S>, ServerError> {
        let Options { pocketbase, auth_file, nats, sync, .. } = options;
        Ok(Reconciler {
            board: Board::new(options, source.link()),
            source,
            policy: Policy::from(options),
            file: AuthFile::new(options),
            servers: Servers::new(nats, &options.folder)?,
            limits: Limits { max_removed: sync.max_removed, min_removed: sync.min_removed },
            pace: Pace {
                debounce: sync.debounce,
                max_wait: sync.max_wait,
                resync: pocketbase.resync_interval,
                initial: auth_file.generate_initial,
                reload_share: sync.max_reload_share,
            },
            filter: EventFilter::both(&sync.ignore_events, options.event_filter.as_ref()),
            seen: None,
            findings: Vec::new(),
            hinted: false,
            doing: watch::Sender::new("starting"),
            reloaded: None,
        })
    }

    /// What it is doing, in a few words, for whoever waits for it.
    pub fn doing(&self) -> watch::Receiver<&'static str> {
        self.doing.subscribe()
    }

    /// Where users and roles come from.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// What the last look at the source had to leave out.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Where it tells how it is.
    pub fn status(&self) -> &Watch {
        self.board.watch()
    }

    /// Goes on telling it there, where another one did before.
    pub fn report_to(&mut self, watch: &Watch) {
        self.board.report_to(watch);
    }

    /// Fails if another process does for this file what [`run`](Self::run) does.
    pub fn check_alone(&self) -> Result<(), ApplyError> {
        self.file.lock_for_life().map(drop)
    }

    /// Makes passes until `shutdown` completes. A pass that has begun is finished.
    ///
    /// Fails only if another process does the same for this file: at once, or when somebody deletes the
    /// file's folder, lock and all, and makes it anew.
    pub async fn run(&mut self, shutdown: impl Future<Output = ()>) -> Result<(), ApplyError> {
        let mut lock = self.file.lock_for_life()?;
        self.file.sweep();
        self.board.opens();
        let mut shutdown = pin!(shutdown);
        if !self.pace.initial {
            tokio::select! {
                () = &mut shutdown => return Ok(()),
                error = lock.lost() => return Err(error),
                () = self.first_change() => self.pace.initial = true,
            }
        }
        let mut backoff = Backoff::default();
        let mut agenda = Agenda::new(self.pace, self.limits);
        loop {
            let (at, scope) = agenda.next();
            self.board.waits(at.into_std());
            tokio::select! {
                () = &mut shutdown => return Ok(()),
                error = lock.lost() => return Err(error),
                () = self.source.changed() => {
                    self.board.hinted();
                    agenda.hinted();
                    continue;
                }
                () = self.file.disturbed() => {
                    agenda.disturbed();
                    continue;
                }
                () = self.servers.drifted(|sights, strangers| self.board.sees(sights, strangers)) => {
                    agenda.disturbed();
                    continue;
                }
                () = time::sleep_until(at) => self.board.resyncs(),
            }
            let before = self.findings.clone();
            let begun = time::Instant::now();
            let passed = self.look(Consent::default(), scope).await;
            tell_findings(&before, &self.findings);
            agenda.looked(begun);
            if let Some(took) = self.reloaded.take() {
                let freeze = self.freeze(took).await;
                agenda.reloaded(freeze);
            }
            match passed {
                Ok(Looked::NothingUrgent) => (),
                Ok(Looked::Passed(passed)) => {
                    backoff.recovered();
                    agenda.passed(scope, passed.changes.map_or(0, |it| it.users_removed.len()));
                    if passed.deferred {
                        agenda.deferred();
                    }
                }
                Ok(Looked::Superseded { removed }) => agenda.superseded(removed),
                Err(error) => {
                    agenda.failed(scope, backoff.failed(&error, self.pace.resync));
                }
            }
            if mem::take(&mut self.hinted) {
                agenda.hinted();
            }
        }
    }

    /// Makes one pass: looks, computes, and makes the world match.
    ///
    /// Safe to call at any time and any number of times. When nothing differs, nothing is touched.
    pub async fn pass(&mut self, consent: Consent) -> Result<Converged, ReconcileError> {
        match self.look(consent, Scope::Everything { removal_budget: None }).await? {
            Looked::Passed(passed) => Ok(*passed),
            Looked::NothingUrgent | Looked::Superseded { .. } => {
                unreachable!("it is of everything, and waits")
            }
        }
    }

    /// Makes a pass, if there is anything to do that it is for.
    async fn look(&mut self, consent: Consent, scope: Scope) -> Result<Looked, ReconcileError> {
        self.board.begins();
        let mut looked = Box::pin(self.attempt(consent, scope)).await;
        for _ in 0..MEDDLED {
            let Err(error) = &looked else { break };
            if !error.may_be_meddling() || !self.file.is_disturbed() {
                break;
            }
            debug!(error = chain(error), "somebody did something to the file during the pass");
            looked = Box::pin(self.attempt(consent, scope)).await;
        }
        match &looked {
            Ok(Looked::NothingUrgent | Looked::Superseded { .. }) => self.board.leaves_it(),
            Ok(Looked::Passed(passed)) => self.board.ends(None, passed.cut_off.as_ref()),
            Err(error) => self.board.ends(Some(error.failure()), self.servers.receipt().as_ref()),
        }
        looked
    }

    async fn attempt(&mut self, consent: Consent, scope: Scope) -> Result<Looked, ReconcileError> {
        let begun = Instant::now();
        // First: else another pass could write what is newer than this look.
        let _lock = self.file.lock_for_a_pass().await?;
        self.file.sweep();
        self.doing.send_replace(READING);
        // While PocketBase is at work. It refuses a file that we did not write.
        let current = self.file.read_aside(consent.adopt);
        let read = async { tokio::join!(self.source.snapshot(), current) };
        // It may take long to answer, and servers are told of meanwhile as well.
        let watch = async {
            loop {
                self.servers.drifted(|sights, strangers| self.board.sees(sights, strangers)).await;
            }
        };
        let (snapshot, current) = tokio::select! {
            read = read => read,
            () = watch => unreachable!("it goes on for ever"),
        };
        debug!(took = ?begun.elapsed(), "read");
        let current = current?;
        let main_config = self.file.main_config()?;
        let snapshot = match snapshot {
            Ok(snapshot) => snapshot,
            Err(_) if matches!(scope, Scope::RevocationsOnly { .. }) => {
                return Ok(Looked::NothingUrgent);
            }
            Err(error) => {
                return Err(self.keep(&current, main_config.as_ref(), error.into()).await);
            }
        };
        self.board.has_read();
        let plan = self.decide(&snapshot, &current, main_config.as_ref());
        self.findings = plan.findings;
        self.board.counts(&snapshot, &self.findings);

        let wanted = plan.write && self.wanted(&snapshot, &current, main_config.as_ref());
        if let Scope::RevocationsOnly { removal_budget } = scope
            && (!wanted || plan.refused.is_some() || !urgent(&plan.changes, removal_budget))
        {
            return Ok(Looked::NothingUrgent);
        }
        let quiet_period = match scope {
            Scope::DeferGrants { until, freeze, .. } => Some((until.into_std(), freeze)),
            Scope::Everything { .. } | Scope::RevocationsOnly { .. } => None,
        };
        // What others made of the file does not stay either.
        let only_gives = current.known && plan.changes.users_losing.is_empty();
        let deferred = quiet_period.filter(|_| wanted && only_gives);
        self.board.defers(deferred);
        let wanted = wanted && deferred.is_none();
        if let Some(refused) = plan.refused.filter(|_| wanted && !consent.removals) {
            return Err(self.keep(&current, main_config.as_ref(), refused.into()).await);
        }
        let holds =
            if wanted { &plan.desired } else { current.desired.as_ref().expect("it is whole") };
        // Of many users it is large, and only the filter has use for it from here on.
        let seen = self.filter.is_some().then_some(snapshot);
        if wanted {
            // First: if we are killed right after the file is replaced, nobody else knows of them.
            self.file.note_losing(&plan.changes.users_losing, main_config.as_ref());
        }
        let applied = self.apply(holds, &current, wanted, main_config.as_ref()).await?;
        if wanted {
            self.servers.cut_off(&plan.changes.users_losing);
            self.board.changed(&plan.changes);
        }
        if wanted || !plan.write {
            self.seen = seen;
        }
        let removed = if wanted { plan.changes.users_removed.len() } else { 0 };
        let removal_budget = scope.removal_budget(removed);
        let servers =
            self.enforce(&applied, holds, &current, main_config.as_ref(), removal_budget).await?;
        let Some(servers) = servers else { return Ok(Looked::Superseded { removed }) };
        let changes = wanted.then_some(plan.changes);
        tell(changes.as_ref(), &applied, &servers, begun.elapsed());
        let (users, cut_off) = (holds.users.len(), self.servers.receipt());
        let deferred = deferred.is_some();
        Ok(Looked::Passed(Box::new(Converged { changes, users, deferred, servers, cut_off })))
    }

    /// Makes the file hold `desired`, if that is `wanted`; else it holds it already, and at most its
    /// stamp goes. A file that nats-server refuses for its own sake does not stay.
    async fn apply(
        &mut self,
        desired: &Arc<Desired>,
        current: &Current,
        wanted: bool,
        main_config: Option<&MainConfig>,
    ) -> Result<Applied, ReconcileError> {
        self.board.is_at(Step::Apply);
        // A server that joined later may know no stamps, and would refuse the file for its own.
        let ages = !wanted && current.stamp.is_some();
        let unstamp = ages && !self.servers.know_stamps().await;
        if !wanted && !unstamp {
            return Ok(self.file.as_it_is(current).await?);
        }
        let stamped = !unstamp && self.stamped(main_config).await;
        self.doing.send_replace("checking and writing the auth file");
        match self.file.replace(Arc::clone(desired), current, stamped).await {
            Err(error @ ApplyError::Rejected(_)) => {
                Err(self.go_back(desired, current, main_config, error).await)
            }
            applied => Ok(applied?),
        }
    }

    /// Makes every server run the file, which holds `desired`, and fails unless each that can be
    /// asked does. A file that nats-server refuses for its own sake does not stay.
    ///
    /// `None`: somebody is to have less than that, which is not to wait for a long reload.
    async fn enforce(
        &mut self,
        applied: &Applied,
        desired: &Arc<Desired>,
        former: &Current,
        main_config: Option<&MainConfig>,
        removal_budget: Option<usize>,
    ) -> Result<Option<Vec<Outcome>>, ReconcileError> {
        self.doing.send_replace("waiting for nats-server");
        self.board.holds(desired);
        self.board.is_at(Step::Servers);
        let policy = self.policy(main_config);
        let less = async {
            let Some(removal_budget) = removal_budget else { return future::pending().await };
            let less = |now: &Snapshot| {
                let changes = Changes::between(desired, &desired.next(now, &policy).0);
                let seen = self.seen.as_ref();
                urgent(&changes, removal_budget)
                    && changes.check(self.limits, now).is_ok()
                    && !seen.is_some_and(|it| filtered(self.filter.as_ref(), it, now))
            };
            let hinted = || {
                self.board.hinted();
                self.hinted = true;
            };
            shows(&mut self.source, hinted, less).await;
        };
        let servers = tokio::select! {
            servers = self.servers.converge_unless(applied, less) => servers,
            error = self.file.meddling() => return Err(error.into()),
            // There is nothing to wait for then, and nats-server would not start with the file.
            error = self.file.refused(applied, former) => {
                return Err(self.go_back(desired, former, main_config, error).await);
            }
        };
        servers.map(|it| self.settle(applied, it, main_config)).transpose()
    }

    /// Holds what servers showed against the main config, and notes what it proves.
    fn settle(
        &mut self,
        applied: &Applied,
        servers: Vec<Outcome>,
        main_config: Option<&MainConfig>,
    ) -> Result<Vec<Outcome>, ReconcileError> {
        self.reloaded = servers.iter().filter_map(Outcome::reloading).max();
        self.board.servers(&servers);
        self.board.is_at(Step::Placement);
        if let Err(error) = self.placed(main_config) {
            self.servers.forget();
            return Err(error);
        }
        self.file.remember(applied, &self.servers.proven());
        let (losing, leaf_nodes) = self.servers.leaf_nodes();
        self.file.note_leaf_nodes(losing, leaf_nodes, main_config);
        if servers.iter().any(|it| matches!(it.state, SyncStatus::NotInStep { .. })) {
            return Err(ReconcileError::Servers(servers));
        }
        let shown = |it: &Outcome| match it.state {
            SyncStatus::InStep { .. } => true,
            // The next best: nats-server starts with it.
            SyncStatus::Unverified { .. } | SyncStatus::NotInStep { .. } => applied.accepted(),
        };
        if servers.iter().all(shown) {
            self.file.keep_as_good(applied);
        }
        Ok(servers)
    }

    /// Puts in force what there was before `refused`, less what that takes away. Returns why.
    async fn go_back(
        &mut self,
        refused: &Desired,
        former: &Current,
        main_config: Option<&MainConfig>,
        why: ApplyError,
    ) -> ReconcileError {
        if let Some(former) = &former.desired {
            self.servers.cut_off(&Changes::between(former, refused).users_losing);
        }
        let back = match self.file.go_back(refused, former).await {
            Ok(Some(applied)) => {
                let servers = self.servers.converge(&applied).await;
                self.settle(&applied, servers, main_config).map(drop)
            }
            Ok(None) => Ok(()),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = back {
            warn!(error = chain(&error), "what was in force before is not proven to be so still");
        }
        why.into()
    }

    /// Keeps servers to the file as it is, since it cannot be brought up to date: one may have
    /// missed an earlier change. Returns why.
    async fn keep(
        &mut self,
        current: &Current,
        main_config: Option<&MainConfig>,
        why: ReconcileError,
    ) -> ReconcileError {
        if let Some(desired) = &current.desired {
            let kept = match self.file.as_it_is(current).await {
                Ok(applied) => self.enforce(&applied, desired, current, main_config, None).await,
                Err(error) => Err(error.into()),
            };
            if let Err(error) = kept {
                debug!(error = chain(&error), "nor is the last good state proven to be in force");
            }
        }
        why
    }

    /// What a pass would do now. Writes nothing, and tells no server to reload.
    pub async fn plan(&mut self, adopt: Adopt) -> Result<Plan, ReconcileError> {
        let snapshot = self.read().await?;
        let current = self.file.read(adopt)?;
        let main_config = self.file.main_config()?;
        let mut plan = self.decide(&snapshot, &current, main_config.as_ref());
        plan.misplaced = misplaced(main_config.as_ref());
        plan.remarks = lint(&snapshot, &self.policy);
        if !plan.write && plan.misplaced.is_none() {
            self.doing.send_replace("waiting for nats-server");
            plan.servers = self.servers.survey(&self.file.as_it_is(&current).await?).await;
        }
        plan.former = current.desired;
        Ok(plan)
    }

    /// Makes the file hold what the backup of this name holds, and every server run it, as a pass
    /// does. The file as it was is backed up first.
    ///
    /// Without consent it is an error that anybody would be let in or allowed what
    /// they are not now: a user who was deactivated, or a password that was changed. What a pass
    /// makes of the records undoes it again.
    pub async fn restore(
        &mut self,
        name: &str,
        consent: GiveBack,
    ) -> Result<(Diff, Converged), ReconcileError> {
        let _lock = self.file.lock_for_a_pass().await?;
        let current = self.file.read(Adopt::No)?;
        let main_config = self.file.main_config()?;
        let mut backup = self.file.backup(name)?;
        backup.lock(&self.policy(main_config.as_ref()));
        let backup: Arc<Desired> = backup.into();
        let nothing = Desired::default();
        let former = current.desired.as_deref().unwrap_or(&nothing);
        let diff = Diff::between(former, &backup);
        if diff.gives() && consent == GiveBack::No {
            return Err(ReconcileError::GivesBack(Box::new(diff)));
        }
        let changes = Changes::between(former, &backup);
        let changed = current.desired.is_none() || !changes.is_empty();
        let applied = if changed {
            let stamped = self.stamped(main_config.as_ref()).await;
            self.doing.send_replace("checking and writing the auth file");
            let applied = self.file.restore(Arc::clone(&backup), &current, stamped).await?;
            self.servers.cut_off(&changes.users_losing);
            applied
        } else {
            self.file.as_it_is(&current).await?
        };
        let servers = self.enforce(&applied, &backup, &current, main_config.as_ref(), None).await?;
        let servers = servers.expect("nothing overtakes it");
        let (users, cut_off) = (backup.users.len(), self.servers.receipt());
        let changes = changed.then_some(changes);
        Ok((diff, Converged { changes, users, deferred: false, servers, cut_off }))
    }

    /// As [`Servers::connections`].
    pub async fn connections(
        &mut self,
        users: &BTreeSet<String>,
    ) -> Option<(BTreeMap<String, usize>, Option<ServerError>)> {
        self.doing.send_replace("waiting for nats-server");
        self.servers.connections(users).await
    }

    /// What NATS should allow now, and what had to be left out. The auth file need not be there.
    pub async fn desired(&mut self) -> Result<(Desired, Vec<Finding>), ReconcileError> {
        let snapshot = self.read().await?;
        let policy = self.policy(self.file.main_config()?.as_ref());
        Ok(self.file.in_force().next(&snapshot, &policy))
    }

    /// Who may do what now, and why. The auth file need not be there, and no server is asked.
    pub async fn explain(&mut self) -> Result<Explain, ReconcileError> {
        let snapshot = self.read().await?;
        let policy = self.policy(self.file.main_config()?.as_ref());
        Ok(Explain::after(&self.file.in_force(), snapshot, policy))
    }

    async fn read(&mut self) -> Result<Snapshot, SourceError> {
        self.doing.send_replace(READING);
        self.source.snapshot().await
    }

    /// What the settings and the main config say about records.
    fn policy(&self, main_config: Option<&MainConfig>) -> Policy {
        let mut policy = self.policy.clone();
        if let Some(main_config) = main_config {
            main_config.rule(&mut policy);
        }
        policy
    }

    /// What should be, and how the file differs from that.
    fn decide(
        &self,
        snapshot: &Snapshot,
        current: &Current,
        main_config: Option<&MainConfig>,
    ) -> Plan {
        let begun = Instant::now();
        self.doing.send_replace("working out who may do what");
        let nothing = Desired::default();
        let former = current.desired.as_deref().unwrap_or(&nothing);
        let (desired, findings) = former.next(snapshot, &self.policy(main_config));
        let changes = Changes::between(former, &desired);
        debug!(took = ?begun.elapsed(), "decided");
        Plan {
            write: current.desired.is_none() || !changes.is_empty(),
            refused: changes.check(self.limits, snapshot).err(),
            desired: Arc::new(desired),
            changes,
            findings,
            former: None,
            remarks: Vec::new(),
            misplaced: None,
            servers: Vec::new(),
        }
    }

    /// Whether what the records say is to be applied at once: all of it, unless nothing but what is
    /// filtered happened since the file was in step.
    fn wanted(
        &self,
        snapshot: &Snapshot,
        current: &Current,
        main_config: Option<&MainConfig>,
    ) -> bool {
        let Some(seen) = &self.seen else { return true };
        if !filtered(self.filter.as_ref(), seen, snapshot) {
            return true;
        }
        // Somebody may have edited the file since, and that is not for the filter to let stand.
        current.desired.as_ref().is_none_or(|it| {
            let (left, _) = it.next(seen, &self.policy(main_config));
            !Changes::between(it, &left).is_empty()
        })
    }

    /// Fails if nats-server does not take its users from the auth file, or nobody knows: what was
    /// proven is then no proof.
    fn placed(&self, main_config: Option<&MainConfig>) -> Result<(), ReconcileError> {
        if self.file.main_config()?.as_ref() != main_config {
            return Err(ReconcileError::MainConfigChanged);
        }
        misplaced(main_config).map_or(Ok(()), |it| Err(ReconcileError::Placement(it)))
    }

    /// Whether servers should show by their metadata that they run the file: where their digest
    /// cannot show it, all of them know metadata, and nobody else's would be lost.
    async fn stamped(&mut self, main_config: Option<&MainConfig>) -> bool {
        let lost = main_config.is_some_and(MainConfig::has_metadata);
        let judge = self.file.judge_version().await.filter(|_| main_config.is_some());
        !lost && self.servers.need_stamp(judge.as_deref()).await
    }

    /// For how long the next reload will let nobody in, after one that took so long.
    async fn freeze(&mut self, took: Duration) -> Duration {
        let Some((desired, bytes)) = self.file.holds() else { return Duration::ZERO };
        let predicted = self.servers.freeze(&desired).await.unwrap_or_default();
        let measured = config::measured(predicted, bytes, took);
        debug!(?predicted, ?measured, ?took, "a reload let nobody in");
        self.board.froze(predicted, measured);
        measured
    }

    /// Returns once the records differ from what they were at the call.
    async fn first_change(&mut self) {
        let mut look: Option<Snapshot> = None;
        let mut backoff = Backoff::default();
        loop {
            let wait = match self.source.snapshot().await {
                Ok(now) => match &look {
                    Some(before) if !Event::between(before, &now).is_empty() => return,
                    _ => {
                        look.get_or_insert(now);
                        self.pace.resync
                    }
                },
                Err(error) => backoff.failed(&error.into(), self.pace.resync),
            };
            self.board.waits(Instant::now() + wait);
            tokio::select! {
                () = self.source.changed() => (),
                () = time::sleep(wait) => (),
            }
        }
    }
}

/// Whether somebody is to have less, and no more users are to go than may before the guard has seen
/// all that is to come.
fn urgent(changes: &Changes, removal_budget: usize) -> bool {
    !changes.users_losing.is_empty() && changes.users_removed.len() <= removal_budget
}

/// Whether nothing but what the filter leaves out has happened since.
fn filtered(filter: Option<&EventFilter>, seen: &Snapshot, now: &Snapshot) -> bool {
    filter.is_some_and(|filter| !Event::between(seen, now).iter().any(|it| filter.0(it)))
}

/// Returns once the source shows this.
async fn shows(
    source: &mut impl Source,
    mut hinted: impl FnMut(),
    wanted: impl Fn(&Snapshot) -> bool,
) {
    loop {
        source.changed().await;
        hinted();
        let begun = Instant::now();
        if source.snapshot().await.is_ok_and(|it| wanted(&it)) {
            return;
        }
        time::sleep(begun.elapsed() * REST).await;
    }
}

/// Why nats-server does not take its users from the auth file, if it is known not to.
fn misplaced(main_config: Option<&MainConfig>) -> Option<Placement> {
    match main_config?.placement() {
        // Where nobody knows, servers are not said to be in step.
        Placement::InForce | Placement::Unknown(_) => None,
        misplaced @ (Placement::NotIncluded
        | Placement::Overridden { .. }
        | Placement::Beside { .. }) => Some(misplaced),
    }
}

/// Says so when the findings are others than before.
fn tell_findings(before: &[Finding], findings: &[Finding]) {
    if findings == before {
        return;
    }
    let Some(first) = findings.first() else {
        info!("no findings any more");
        return;
    };
    warn!(findings = findings.len(), %first, "records not honoured; `pb-nats check` lists them");
    for finding in findings {
        debug!(%finding);
    }
}

/// One line for each change of the file, or of what a server runs.
fn tell(changes: Option<&Changes>, applied: &Applied, servers: &[Outcome], took: Duration) {
    if !applied.changed && servers.iter().all(|it| it.took.is_none()) {
        debug!(?took, "nothing to do");
        return;
    }
    let changes = changes.map(field::display);
    let unverified = servers.iter().find_map(|it| match &it.state {
        SyncStatus::Unverified { why } => Some(&**why),
        SyncStatus::InStep { .. } | SyncStatus::NotInStep { .. } => None,
    });
    let servers = servers.len();
    match unverified {
        None => info!(changes, servers, ?took, "in force"),
        Some(why) => warn!(changes, ?took, why, "written, but not proven to be in force"),
    }
}

impl ReconcileError {
    /// Whether it can come of what others do to the file meanwhile.
    fn may_be_meddling(&self) -> bool {
        match self {
            ReconcileError::Apply(error) => match error {
                ApplyError::Rejected(_)
                | ApplyError::MainConfig(_)
                | ApplyError::Meddled { .. }
                | ApplyError::Io { .. } => true,
                ApplyError::Foreign { .. }
                | ApplyError::Newer { .. }
                | ApplyError::NotReadBack(_)
                | ApplyError::NoBackup { .. }
                | ApplyError::NotRestorable { .. }
                | ApplyError::Locked { .. } => false,
            },
            ReconcileError::Servers(_) | ReconcileError::Placement(_) => true,
            ReconcileError::Snapshot(_)
            | ReconcileError::Guard(_)
            | ReconcileError::GivesBack(_)
            | ReconcileError::MainConfigChanged => false,
        }
    }

    /// The step and why, for the status.
    fn failure(&self) -> Failure {
        let (step, held_back) = match self {
            ReconcileError::Snapshot(_) => (Step::Snapshot, None),
            ReconcileError::Guard(refused) => (Step::Guard, Some(refused.into())),
            ReconcileError::Apply(_) | ReconcileError::GivesBack(_) => (Step::Apply, None),
            ReconcileError::Servers(_) => (Step::Servers, None),
            ReconcileError::MainConfigChanged | ReconcileError::Placement(_) => {
                (Step::Placement, None)
            }
        };
        Failure { step, why: chain(self), hint: self.hint(), held_back }
    }

    /// What one can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            ReconcileError::Snapshot(error) => error.hint(),
            ReconcileError::Guard(error) => Some(error.hint().to_owned()),
            ReconcileError::GivesBack(_) => Some(
                "nothing was changed; if all of the above is meant to be allowed again: `--yes`"
                    .to_owned(),
            ),
            ReconcileError::Apply(error) => error.hint().map(str::to_owned),
            ReconcileError::Servers(outcomes) => outcomes.iter().find_map(|it| match &it.state {
                SyncStatus::NotInStep { why } => why.hint(),
                SyncStatus::InStep { .. } | SyncStatus::Unverified { .. } => None,
            }),
            ReconcileError::MainConfigChanged => Some("look again: `pb-nats once`".to_owned()),
            ReconcileError::Placement(placement) => Some(placement.hint().to_owned()),
        }
    }
}

/// The servers that are not in step, and why.
fn told(outcomes: &[Outcome]) -> String {
    let told = outcomes.iter().filter_map(|it| match &it.state {
        SyncStatus::NotInStep { why } => Some(format!("{}: {}", it.server, chain(why.as_ref()))),
        SyncStatus::InStep { .. } | SyncStatus::Unverified { .. } => None,
    });
    told.collect::<Vec<_>>().join("; ")
}
