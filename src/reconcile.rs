//! The pass and the loop.

mod agenda;
mod backoff;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    pin::{Pin, pin},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, time};
use tracing::{debug, field, info, warn};

use self::{
    agenda::{Agenda, Pace, REST, Scope, is_urgent},
    backoff::Backoff,
};
use crate::{
    auth::{
        Changes, Desired, Diff, Event, Explain, Finding, Limits, Policy, Refused, Remark, Snapshot,
        lint,
    },
    causes::chain,
    engine::{
        self, Enforced, Engine, EngineError, Misplaced, Want,
        config::{Applied, Outcome, Placement, SyncStatus},
    },
    nats::{Receipt, ServerError},
    options::{EventFilter, Options},
    source::{Source, SourceError},
    state::{Adopt, Current, Keep, StateError},
    status::{Board, Failure, Step, Watch},
};

/// Makes NATS match the source, again and again.
#[derive(Debug)]
pub struct Reconciler<S> {
    source: S,
    policy: Policy,
    engine: Engine,
    limits: Limits,
    filter: Option<EventFilter>,
    /// What the source said when the file was last in step with it; kept only for the filter.
    seen: Option<Snapshot>,
    /// What the last look at the source had to leave out.
    findings: Vec<Finding>,
    agenda: Agenda,
    activity: watch::Sender<&'static str>,
    board: Board,
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
    Engine(#[from] EngineError),
    /// The file is right, but not every server enforces it.
    #[error("{0}")]
    NotInForce(Box<Enforced>),
}

impl<S: Source> Reconciler<S> {
    /// A reconciler for these settings. Nothing is read, written or asked yet.
    pub fn new(source: S, options: &Options) -> Result<Reconciler<S>, ServerError> {
        let Options { pocketbase, auth_file, sync, .. } = options;
        let limits = Limits { max_removed: sync.max_removed, min_removed: sync.min_removed };
        let pace = Pace {
            debounce: sync.debounce,
            max_wait: sync.max_wait,
            resync: pocketbase.resync_interval,
            initial: auth_file.generate_initial,
            reload_share: sync.max_reload_share,
        };
        Ok(Reconciler {
            board: Board::new(options, source.link()),
            source,
            policy: Policy::from(options),
            engine: Engine::new(options)?,
            limits,
            filter: EventFilter::both(&sync.ignore_events, options.event_filter.as_ref()),
            seen: None,
            findings: Vec::new(),
            agenda: Agenda::new(pace, limits),
            activity: watch::Sender::new("starting"),
        })
    }

    /// What it is doing, in a few words, for whoever waits for it.
    pub fn activity(&self) -> watch::Receiver<&'static str> {
        self.activity.subscribe()
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
    pub fn check_alone(&self) -> Result<(), StateError> {
        self.engine.state().lock_for_life().map(drop)
    }

    /// Makes passes until `shutdown` completes. A pass that has begun is finished.
    ///
    /// Fails only at once, if another process does the same for this file; or later, if another has got
    /// hold of its lock.
    pub async fn run(&mut self, shutdown: impl Future<Output = ()>) -> Result<(), StateError> {
        let mut lock = self.engine.state().lock_for_life()?;
        self.engine.state_mut().sweep();
        self.board.opens();
        let mut shutdown = pin!(shutdown);
        if !self.agenda.begins_at_once() {
            tokio::select! {
                () = &mut shutdown => return Ok(()),
                error = lock.lost() => return Err(error),
                () = self.first_change() => (),
            }
        }
        let mut backoff = Backoff::default();
        self.agenda.due_now();
        loop {
            let (at, scope) = self.agenda.next();
            self.board.waits(at.into_std());
            tokio::select! {
                () = &mut shutdown => return Ok(()),
                error = lock.lost() => return Err(error),
                () = self.source.changed() => {
                    self.board.hinted();
                    self.agenda.hinted();
                    continue;
                }
                () = self.engine.disturbed(|sights, strangers| self.board.sees(sights, strangers)) => {
                    self.agenda.due_now();
                    continue;
                }
                () = time::sleep_until(at) => self.board.resyncs(),
            }
            let before = self.findings.clone();
            self.agenda.begins(scope);
            let looked = self.look(Consent::default(), scope).await;
            tell_findings(&before, &self.findings);
            if let Some(took) = reload(&looked) {
                self.reloaded(took).await;
            }
            match looked {
                Ok(Looked::NothingUrgent) => (),
                Ok(Looked::Superseded { removed }) => self.agenda.superseded(removed),
                Ok(Looked::Passed(passed)) => {
                    backoff.recovered();
                    let removed = passed.changes.map_or(0, |it| it.users_removed.len());
                    self.agenda.passed(scope, removed);
                    if passed.deferred {
                        self.agenda.deferred();
                    }
                }
                Err(error) => {
                    let wait = backoff.failed(&error, self.agenda.resync());
                    self.agenda.failed(scope, wait);
                }
            }
        }
    }

    /// Leaves servers time for log-ins after a reload that took so long.
    async fn reloaded(&mut self, took: Duration) {
        let Some((predicted, measured)) = self.engine.freeze(took).await else { return };
        debug!(?predicted, ?measured, ?took, "a reload kept log-ins waiting");
        self.board.froze(predicted, measured);
        self.agenda.reloaded(measured);
    }

    /// Makes one pass: looks, computes, and makes the world match.
    ///
    /// Safe to call at any time and any number of times. When nothing differs, nothing is touched.
    pub async fn pass(&mut self, consent: Consent) -> Result<Converged, ReconcileError> {
        loop {
            // Nothing supersedes it, and it is of everything.
            if let Looked::Passed(passed) =
                self.look(consent, Scope::Everything { removal_budget: None }).await?
            {
                return Ok(*passed);
            }
        }
    }

    /// Makes a pass, if there is anything to do that it is for.
    async fn look(&mut self, consent: Consent, scope: Scope) -> Result<Looked, ReconcileError> {
        self.board.begins();
        let mut looked = Box::pin(self.attempt(consent, scope)).await;
        for _ in 0..MEDDLED {
            let Err(error) = &looked else { break };
            if !error.may_be_meddling() || !self.engine.state().is_disturbed() {
                break;
            }
            debug!(error = chain(error), "somebody did something to the file during the pass");
            looked = Box::pin(self.attempt(consent, scope)).await;
        }
        match &looked {
            Ok(Looked::NothingUrgent | Looked::Superseded { .. }) => self.board.leaves_it(),
            Ok(Looked::Passed(_)) => self.board.ends(None),
            Err(error) => self.board.ends(Some(error.failure())),
        }
        looked
    }

    /// The pass: lock, read, decide, guard, enforce, tell.
    async fn attempt(&mut self, consent: Consent, scope: Scope) -> Result<Looked, ReconcileError> {
        let begun = time::Instant::now();
        // First: else another pass could write what is newer than this look.
        let _lock = self.engine.lock_for_a_pass().await.map_err(EngineError::from)?;
        let read = self.read(consent.adopt).await;
        self.agenda.looked(begun);
        let (snapshot, current) = read?;
        let snapshot = match snapshot {
            Ok(snapshot) => snapshot,
            Err(_) if scope.is_for_revocations() => return Ok(Looked::NothingUrgent),
            Err(error) => return Err(self.keep(&current, error.into()).await),
        };
        let plan = self.decide(&snapshot, &current);
        self.board.counts(&snapshot, &plan.findings);
        self.findings.clone_from(&plan.findings);

        let differs = plan.write && self.is_wanted(&snapshot, &current);
        let urgent = differs && plan.refused.is_none() && scope.admits(&plan.changes);
        if scope.is_for_revocations() && !urgent {
            return Ok(Looked::NothingUrgent);
        }
        // What others made of the file does not stay either.
        let only_grants = current.known && plan.changes.users_losing.is_empty();
        let deferred = scope.quiet_period().filter(|_| differs && only_grants);
        self.board.defers(deferred);
        let differs = differs && deferred.is_none();
        if let Some(refused) = plan.refused.filter(|_| differs && !consent.removals) {
            return Err(self.keep(&current, refused.into()).await);
        }

        let holds = match &current.desired {
            Some(holds) if !differs => holds,
            Some(_) | None => &plan.desired,
        };
        // Of many users it is large, and only the filter has use for it from here on.
        let seen = self.filter.is_some().then_some(snapshot);
        let revoked = &plan.changes.users_losing;
        let want =
            Want { desired: holds, former: &current, differs, revoked, keep: Keep::IfWanted };
        let applied = self.apply(want).await?;
        if differs {
            self.board.changed(&plan.changes);
        }
        self.board.has_applied();
        if differs || !plan.write {
            self.seen = seen;
        }
        let removed = if differs { plan.changes.users_removed.len() } else { 0 };
        let budget = scope.removal_budget(removed);
        let Some(enforced) = self.enforce(&applied, holds, &current, budget).await? else {
            return Ok(Looked::Superseded { removed });
        };
        let changes = differs.then_some(plan.changes);
        tell(changes.as_ref(), &applied, &enforced.servers, begun.elapsed());
        Ok(Looked::Passed(Box::new(Converged {
            changes,
            users: holds.users.len(),
            deferred: deferred.is_some(),
            servers: enforced.servers,
            cut_off: enforced.cut_off,
        })))
    }

    /// Reads what the source says and what is in force, side by side. The source may take long to
    /// answer, and how servers are is told meanwhile as well.
    async fn read(
        &mut self,
        adopt: Adopt,
    ) -> Result<(Result<Snapshot, SourceError>, Current), ReconcileError> {
        let begun = Instant::now();
        self.activity.send_replace(READING);
        let Reconciler { source, engine, board, .. } = self;
        let mut snapshot = pin!(source.snapshot());
        let mut early = None;
        let current = {
            let mut current = pin!(engine.current(adopt));
            loop {
                tokio::select! {
                    current = &mut current => break current?,
                    snapshot = &mut snapshot, if early.is_none() => early = Some(snapshot),
                }
            }
        };
        let snapshot = if let Some(snapshot) = early {
            snapshot
        } else {
            tokio::select! {
                snapshot = &mut snapshot => snapshot,
                never = engine.watch(|sights, strangers| board.sees(sights, strangers)) => match never {},
            }
        };
        debug!(took = ?begun.elapsed(), "read");
        if snapshot.is_ok() {
            board.has_read();
        }
        Ok((snapshot, current))
    }

    /// Puts what is wanted in its place. What nats-server refuses for its own sake does not stay.
    async fn apply(&mut self, want: Want<'_>) -> Result<Applied, ReconcileError> {
        self.board.is_at(Step::Apply);
        self.activity.send_replace("checking and writing the auth file");
        match self.engine.apply(want).await {
            Err(error @ EngineError::Rejected(_)) => {
                Err(self.roll_back(want.desired, want.former, error).await)
            }
            applied => Ok(applied?),
        }
    }

    /// Makes every server enforce what was applied, which is `desired`, and fails unless each does that
    /// can be asked.
    ///
    /// With a removal budget, `None`: the source shows a revocation by now, of no more users than that,
    /// which is not to wait for a long reload.
    async fn enforce(
        &mut self,
        applied: &Applied,
        desired: &Arc<Desired>,
        former: &Current,
        removal_budget: Option<usize>,
    ) -> Result<Option<Enforced>, ReconcileError> {
        self.activity.send_replace("waiting for nats-server");
        self.board.holds(desired);
        self.board.is_at(Step::Servers);
        let policy = self.engine.policy(&self.policy);
        let Reconciler { source, engine, board, agenda, seen, filter, limits, .. } = self;
        let revokes = |now: &Snapshot| {
            let changes = Changes::between(desired, &desired.next(now, &policy).0);
            removal_budget.is_some_and(|it| is_urgent(&changes, it))
                && changes.check(*limits, now).is_ok()
                && !seen.as_ref().is_some_and(|it| is_filtered(filter.as_ref(), it, now))
        };
        let hinted = || {
            board.hinted();
            agenda.hinted();
        };
        let ended = {
            let mut enforcing = engine.begin(applied, former).await;
            let superseding = removal_budget.is_some() && enforcing.can_be_superseded();
            let mut revocation = pin!(async {
                if superseding { shows(source, hinted, revokes).await } else { pending().await }
            });
            let mut revoked = false;
            loop {
                let step = Box::pin(enforcing.step());
                match beside(revocation.as_mut(), &mut revoked, step).await? {
                    engine::Step::Done(enforced) => break Ok(*enforced),
                    engine::Step::Refused(error) => break Err(error),
                    engine::Step::Pending(pause) => tokio::select! {
                        () = &mut revocation, if !revoked => revoked = true,
                        () = time::sleep(if revoked { Duration::ZERO } else { pause }) => (),
                    },
                }
                if revoked {
                    enforcing.leave();
                    return Ok(None);
                }
            }
        };
        match ended {
            Ok(enforced) => self.settle(enforced).map(Some),
            Err(error) => Err(self.roll_back(desired, former, error).await),
        }
    }

    /// Tells what came of it, and fails unless every server that could be asked enforces the file.
    fn settle(&mut self, enforced: Enforced) -> Result<Enforced, ReconcileError> {
        self.board.servers(&enforced.servers);
        self.board.meets(&self.engine.strangers());
        self.board.cuts_off(enforced.cut_off.as_ref());
        self.board.is_at(Step::Placement);
        let in_force = |it: &Outcome| !matches!(it.state, SyncStatus::NotInStep { .. });
        if enforced.misplaced.is_none() && enforced.servers.iter().all(in_force) {
            return Ok(enforced);
        }
        Err(ReconcileError::NotInForce(Box::new(enforced)))
    }

    /// Puts in force what there was before `refused`, less what that takes away. Returns why.
    async fn roll_back(
        &mut self,
        refused: &Desired,
        former: &Current,
        why: EngineError,
    ) -> ReconcileError {
        let back = match self.engine.roll_back(refused, former).await {
            Ok(Some(applied)) => self.converge(&applied, former).await.map(drop),
            Ok(None) => Ok(()),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = back {
            warn!(error = chain(&error), "what was in force before is not proven to be so still");
        }
        why.into()
    }

    /// Makes every server enforce what was put back, whatever comes next.
    async fn converge(
        &mut self,
        applied: &Applied,
        former: &Current,
    ) -> Result<Enforced, ReconcileError> {
        let mut enforcing = self.engine.begin(applied, former).await;
        let enforced = loop {
            match enforcing.step().await? {
                engine::Step::Done(enforced) => break *enforced,
                engine::Step::Refused(error) => return Err(error.into()),
                engine::Step::Pending(pause) => time::sleep(pause).await,
            }
        };
        self.settle(enforced)
    }

    /// Keeps servers to the file as it is, since it cannot be brought up to date: one may have
    /// missed an earlier change. Returns why.
    async fn keep(&mut self, current: &Current, why: ReconcileError) -> ReconcileError {
        if let Some(desired) = &current.desired {
            let applied = self.engine.as_it_is(current).await;
            if let Err(error) = self.enforce(&applied, desired, current, None).await {
                debug!(error = chain(&error), "nor is the last good state proven to be in force");
            }
        }
        why
    }

    /// What a pass would do now. Writes nothing, and tells no server to reload.
    pub async fn plan(&mut self, adopt: Adopt) -> Result<Plan, ReconcileError> {
        let (snapshot, current) = self.read(adopt).await?;
        let snapshot = snapshot?;
        let mut plan = self.decide(&snapshot, &current);
        plan.misplaced = self.engine.misplaced();
        plan.remarks = lint(&snapshot, &self.policy);
        if !plan.write && plan.misplaced.is_none() {
            self.activity.send_replace("waiting for nats-server");
            plan.servers = self.engine.survey(&current).await;
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
        let _lock = self.engine.lock_for_a_pass().await.map_err(EngineError::from)?;
        let current = self.engine.current(Adopt::No).await?;
        let mut backup = self.engine.state().backup(name).map_err(EngineError::from)?;
        backup.lock(&self.engine.policy(&self.policy));
        let backup: Arc<Desired> = backup.into();
        let nothing = Desired::default();
        let former = current.desired.as_deref().unwrap_or(&nothing);
        let diff = Diff::between(former, &backup);
        if diff.gives() && consent == GiveBack::No {
            return Err(ReconcileError::GivesBack(Box::new(diff)));
        }
        let changes = Changes::between(former, &backup);
        let differs = current.desired.is_none() || !changes.is_empty();
        let revoked = &changes.users_losing;
        let want =
            Want { desired: &backup, former: &current, differs, revoked, keep: Keep::Always };
        self.activity.send_replace("checking and writing the auth file");
        let applied = self.engine.apply(want).await?;
        self.activity.send_replace("waiting for nats-server");
        let Enforced { servers, cut_off, .. } = match self.converge(&applied, &current).await {
            Err(ReconcileError::Engine(why @ EngineError::Rejected(_))) => {
                return Err(self.roll_back(&backup, &current, why).await);
            }
            enforced => enforced?,
        };
        let users = backup.users.len();
        let changes = differs.then_some(changes);
        Ok((diff, Converged { changes, users, deferred: false, servers, cut_off }))
    }

    /// As [`Engine::connections`].
    pub async fn connections(
        &mut self,
        users: &BTreeSet<String>,
    ) -> Option<(BTreeMap<String, usize>, Option<ServerError>)> {
        self.activity.send_replace("waiting for nats-server");
        self.engine.connections(users).await
    }

    /// What NATS should allow now, and what had to be left out. The auth file need not be there.
    pub async fn desired(&mut self) -> Result<(Desired, Vec<Finding>), ReconcileError> {
        let (snapshot, in_force) = self.records().await?;
        Ok(in_force.next(&snapshot, &self.engine.policy(&self.policy)))
    }

    /// Who may do what now, and why. The auth file need not be there, and no server is asked.
    pub async fn explain(&mut self) -> Result<Explain, ReconcileError> {
        let (snapshot, in_force) = self.records().await?;
        Ok(Explain::after(&in_force, snapshot, self.engine.policy(&self.policy)))
    }

    /// What the source says, and what is in force, as far as that is known.
    async fn records(&mut self) -> Result<(Snapshot, Arc<Desired>), ReconcileError> {
        self.activity.send_replace(READING);
        let snapshot = self.source.snapshot().await?;
        Ok((snapshot, self.engine.in_force()?))
    }

    /// What should be, and how the file differs from that.
    fn decide(&self, snapshot: &Snapshot, current: &Current) -> Plan {
        let begun = Instant::now();
        self.activity.send_replace("working out who may do what");
        let nothing = Desired::default();
        let former = current.desired.as_deref().unwrap_or(&nothing);
        let (desired, findings) = former.next(snapshot, &self.engine.policy(&self.policy));
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
    fn is_wanted(&self, snapshot: &Snapshot, current: &Current) -> bool {
        let Some(seen) = &self.seen else { return true };
        if !is_filtered(self.filter.as_ref(), seen, snapshot) {
            return true;
        }
        // Somebody may have edited the file since, and that is not for the filter to let stand.
        current.desired.as_ref().is_none_or(|it| {
            let (left, _) = it.next(seen, &self.engine.policy(&self.policy));
            !Changes::between(it, &left).is_empty()
        })
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
                        self.agenda.resync()
                    }
                },
                Err(error) => backoff.failed(&error.into(), self.agenda.resync()),
            };
            self.board.waits(Instant::now() + wait);
            tokio::select! {
                () = self.source.changed() => (),
                () = time::sleep(wait) => (),
            }
        }
    }
}

/// How long the longest reload of a look took, as far as that is known.
fn reload(looked: &Result<Looked, ReconcileError>) -> Option<Duration> {
    let servers = match looked {
        Ok(Looked::Passed(passed)) => &passed.servers,
        Err(ReconcileError::NotInForce(enforced)) => &enforced.servers,
        Ok(_) | Err(_) => return None,
    };
    servers.iter().filter_map(Outcome::reloading).max()
}

/// Whether nothing but what the filter leaves out has happened since.
fn is_filtered(filter: Option<&EventFilter>, seen: &Snapshot, now: &Snapshot) -> bool {
    filter.is_some_and(|filter| !Event::between(seen, now).iter().any(|it| filter.0(it)))
}

/// Returns once the source shows this. Tells each hint that it gives meanwhile.
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

/// Completes `step`, which is not to be left half-way, and meanwhile goes on with another thing, unless
/// that is `over`.
async fn beside<T>(
    mut other: Pin<&mut impl Future<Output = ()>>,
    over: &mut bool,
    step: impl Future<Output = T>,
) -> T {
    let mut step = pin!(step);
    loop {
        tokio::select! {
            step = &mut step => return step,
            () = &mut other, if !*over => *over = true,
        }
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
            ReconcileError::Engine(error) => match error {
                EngineError::Rejected(_) | EngineError::MainConfig(_) => true,
                EngineError::State(error) => error.may_be_meddling(),
            },
            ReconcileError::NotInForce(enforced) => enforced.misplaced != Some(Misplaced::Changed),
            ReconcileError::Snapshot(_)
            | ReconcileError::Guard(_)
            | ReconcileError::GivesBack(_) => false,
        }
    }

    /// The step and why, for the status.
    fn failure(&self) -> Failure {
        let (step, held_back) = match self {
            ReconcileError::Snapshot(_) => (Step::Snapshot, None),
            ReconcileError::Guard(refused) => (Step::Guard, Some(refused.into())),
            ReconcileError::Engine(_) | ReconcileError::GivesBack(_) => (Step::Apply, None),
            ReconcileError::NotInForce(it) if it.misplaced.is_some() => (Step::Placement, None),
            ReconcileError::NotInForce(_) => (Step::Servers, None),
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
            ReconcileError::Engine(error) => error.hint().map(str::to_owned),
            ReconcileError::NotInForce(enforced) => enforced.hint(),
        }
    }
}
