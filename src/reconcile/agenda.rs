//! When to look next, and for what.

use std::{mem, time::Duration};

use tokio::time::Instant;
use tracing::warn;

use crate::{
    auth::{Changes, Limits},
    status::Waiting,
};

/// How long to rest after a look for revocations, as a multiple of the time that it took.
pub(super) const REST: u32 = 4;

/// When passes happen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) debounce: Duration,
    pub(super) max_wait: Duration,
    pub(super) resync: Duration,
    /// Whether to make a pass at start, not only at the first change.
    pub(super) initial: bool,
    /// The largest share of the time in which reloads may keep log-ins waiting.
    pub(super) reload_share: f64,
}

/// What a pass is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Everything that differs.
    ///
    /// With a removal budget, a revocation that comes up while servers reload supersedes the pass, as
    /// long as it removes no more users than that. Without one, nothing does.
    Everything { removal_budget: Option<usize> },
    /// The same, but what only grants is deferred until then, since a reload keeps log-ins waiting for
    /// `freeze`.
    DeferGrants { removal_budget: usize, until: Instant, freeze: Duration },
    /// As `Everything`, but only if something is revoked and no more users are removed than that.
    RevocationsOnly { removal_budget: usize },
}

impl Scope {
    /// Whether nothing but a revocation is a reason for this pass.
    pub(super) fn is_for_revocations(self) -> bool {
        match self {
            Scope::RevocationsOnly { .. } => true,
            Scope::Everything { .. } | Scope::DeferGrants { .. } => false,
        }
    }

    /// Whether these changes are a reason for this pass.
    pub(super) fn admits(self, changes: &Changes) -> bool {
        match self {
            Scope::RevocationsOnly { removal_budget } => is_urgent(changes, removal_budget),
            Scope::Everything { .. } | Scope::DeferGrants { .. } => true,
        }
    }

    /// Until when grants are deferred, and for how long a reload would keep log-ins waiting.
    pub(super) fn quiet_period(self) -> Option<(std::time::Instant, Duration)> {
        match self {
            Scope::DeferGrants { until, freeze, .. } => Some((until.into_std(), freeze)),
            Scope::Everything { .. } | Scope::RevocationsOnly { .. } => None,
        }
    }

    /// How many users may still be removed ahead of the burst's end, after this pass removed some.
    pub(super) fn removal_budget(self, removed: usize) -> Option<usize> {
        match self {
            Scope::Everything { removal_budget } => removal_budget,
            Scope::DeferGrants { removal_budget, .. } => Some(removal_budget),
            Scope::RevocationsOnly { removal_budget } => {
                Some(removal_budget.saturating_sub(removed))
            }
        }
    }
}

/// Whether something is revoked, and no more users are removed than may be before the guard has seen all
/// that is to come.
pub(super) fn is_urgent(changes: &Changes, removal_budget: usize) -> bool {
    !changes.users_losing.is_empty() && changes.users_removed.len() <= removal_budget
}

/// When to look next, and for what.
///
/// A burst of hints becomes one pass, since a reload is expensive. But a hint does not say whether
/// something is revoked, and a revocation must not wait: so each hint is also a reason to look for
/// those alone. Only as many users are removed that way as the guard lets pass anyhow: it has to see a
/// burst as a whole.
#[derive(Debug)]
pub(super) struct Agenda {
    pace: Pace,
    limits: Limits,
    /// When to make a pass even without a hint.
    pass: Instant,
    /// When the burst is over if nothing more comes, and when it counts as over all the same.
    burst: Option<[Instant; 2]>,
    /// When to look for revocations, if there was a hint since the last look.
    probe: Option<Instant>,
    /// When the next look for revocations may be.
    next_probe: Instant,
    /// How many users were removed ahead of the burst's end.
    removed_early: usize,
    /// Until when servers are to have time for log-ins after a reload, and for how long that kept
    /// them waiting.
    quiet_period: (Instant, Duration),
    /// Whether something was deferred for that since the last reload.
    deferred: bool,
    /// Whether that was announced.
    announced: bool,
}

impl Agenda {
    /// The first pass is due now.
    pub(super) fn new(pace: Pace, limits: Limits) -> Agenda {
        let now = Instant::now();
        Agenda {
            pace,
            limits,
            pass: now,
            burst: None,
            probe: None,
            next_probe: now,
            removed_early: 0,
            quiet_period: (now, Duration::ZERO),
            deferred: false,
            announced: false,
        }
    }

    /// Whether the first pass is made without waiting for a change.
    pub(super) fn begins_at_once(&self) -> bool {
        self.pace.initial
    }

    /// How long there may be no pass.
    pub(super) fn resync(&self) -> Duration {
        self.pace.resync
    }

    /// When to look next, and for what.
    pub(super) fn next(&self) -> (Instant, Scope) {
        let burst = self.burst.iter().flatten();
        let pass = burst.fold(self.pass, |first, it| first.min(*it));
        let removal_budget = self.limits.min_removed.saturating_sub(1 + self.removed_early);
        if let Some(probe) = self.probe.filter(|it| *it < pass) {
            return (probe, Scope::RevocationsOnly { removal_budget });
        }
        let (until, freeze) = self.quiet_period;
        if pass.max(Instant::now()) < until {
            return (pass, Scope::DeferGrants { removal_budget, until, freeze });
        }
        (pass, Scope::Everything { removal_budget: Some(removal_budget) })
    }

    /// A pass is due now, whether or not there was a hint.
    pub(super) fn due_now(&mut self) {
        self.pass = Instant::now();
    }

    /// The source may have changed.
    pub(super) fn hinted(&mut self) {
        let now = Instant::now();
        let [_, latest] = self.burst.unwrap_or([now, now + self.pace.max_wait]);
        self.burst = Some([now + self.pace.debounce, latest]);
        self.probe.get_or_insert(self.next_probe.max(now));
    }

    /// A look of this scope begins, and will see what all hints so far were about. Hints that come while
    /// it is made are for the next one.
    pub(super) fn begins(&mut self, scope: Scope) {
        self.probe = None;
        if !scope.is_for_revocations() {
            self.burst = None;
        }
    }

    /// A look that began then has seen what there is, whatever comes of it.
    ///
    /// Looks may take long where there are many records: four fifths of the time belong to others.
    pub(super) fn looked(&mut self, begun: Instant) {
        self.next_probe = Instant::now() + begun.elapsed() * REST;
        self.probe = self.probe.map(|it| it.max(self.next_probe));
    }

    /// A pass of this scope came to its end, and removed so many users.
    pub(super) fn passed(&mut self, scope: Scope, removed: usize) {
        match scope {
            Scope::Everything { .. } | Scope::DeferGrants { .. } => self.next_in(self.pace.resync),
            Scope::RevocationsOnly { .. } => self.removed_early += removed,
        }
    }

    /// A pass of this scope failed, and is to be tried again after that time.
    pub(super) fn failed(&mut self, scope: Scope, wait: Duration) {
        match scope {
            Scope::Everything { .. } | Scope::DeferGrants { .. } => self.next_in(wait),
            // Nobody knows how many were removed, so nobody else is before the burst's end.
            Scope::RevocationsOnly { .. } => {
                self.pass = Instant::now() + wait;
                self.removed_early = self.limits.min_removed;
            }
        }
    }

    /// A revocation came up before servers had loaded the file. What was removed so far counts, since
    /// the guard has not seen all of it.
    pub(super) fn superseded(&mut self, removed: usize) {
        self.next_probe = Instant::now();
        self.removed_early += removed;
        (self.burst, self.probe) = (None, None);
        self.hinted();
        self.pass = self.next_probe + self.pace.resync;
    }

    /// Servers have reloaded, and kept log-ins waiting for that long. The next reload that revokes
    /// nothing waits, so that reloads take no more than their share of the time.
    pub(super) fn reloaded(&mut self, freeze: Duration) {
        let rest = freeze.mul_f64(1.0 / self.pace.reload_share - 1.0);
        self.quiet_period = (Instant::now() + rest, freeze);
        self.announced &= mem::take(&mut self.deferred);
    }

    /// Something is deferred until the quiet period is over. It is announced once for as long as
    /// something is deferred after each reload.
    pub(super) fn deferred(&mut self) {
        const NOTICEABLE: Duration = Duration::from_secs(1);
        let (until, freeze) = self.quiet_period;
        self.pass = self.pass.min(until);
        self.deferred = true;
        if freeze >= NOTICEABLE && !mem::replace(&mut self.announced, true) {
            let (wait, hint) = (until - Instant::now(), Waiting::HINT);
            warn!(
                ?freeze,
                ?wait,
                hint,
                "reloads keep log-ins waiting for long; grants are deferred"
            );
        }
    }

    /// The next pass is due after that time, unless there are hints.
    fn next_in(&mut self, wait: Duration) {
        self.pass = Instant::now() + wait;
        self.removed_early = 0;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time;

    use super::*;
    use crate::auth::MaxRemoved;

    const PACE: Pace = Pace {
        debounce: Duration::from_millis(250),
        max_wait: Duration::from_secs(2),
        resync: Duration::from_mins(1),
        initial: true,
        reload_share: 0.2,
    };
    const LIMITS: Limits = Limits { max_removed: MaxRemoved::Share(0.5), min_removed: 10 };
    /// A pass of everything, for `passed`.
    const ALL: Scope = Scope::Everything { removal_budget: None };
    /// How long a look takes.
    const LOOK: Duration = Duration::from_millis(10);
    /// How long to wait after a failure.
    const RETRY: Duration = Duration::from_secs(5);

    /// How many looks of each kind there are while hints come as often as this, and for how long
    /// after the last of them one is still due.
    async fn looks(hints: usize, apart: Duration) -> (usize, usize, Duration) {
        let mut agenda = Agenda::new(PACE, LIMITS);
        agenda.passed(ALL, 0);
        let (mut revocations, mut all) = (0, 0);
        for _ in 0..hints {
            agenda.hinted();
            let next_hint = Instant::now() + apart;
            while agenda.next().0 < next_hint {
                let (at, scope) = agenda.next();
                time::sleep_until(at).await;
                let begun = Instant::now();
                agenda.begins(scope);
                time::advance(LOOK).await;
                agenda.looked(begun);
                agenda.passed(scope, 0);
                match scope {
                    Scope::RevocationsOnly { .. } => revocations += 1,
                    Scope::Everything { .. } | Scope::DeferGrants { .. } => all += 1,
                }
            }
            time::sleep_until(next_hint).await;
        }
        (revocations, all, agenda.next().0 - Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_leaves_time_for_others_and_comes_to_an_end() {
        let (revocations, all, _) = looks(10_000, Duration::from_millis(1)).await;
        assert!((200..=260).contains(&revocations), "{revocations} looks for revocations in 12 s");
        assert!((4..=6).contains(&all), "{all} passes, one each 2 s");
        let (revocations, all, next) = looks(1, Duration::from_secs(1)).await;
        assert_eq!((revocations, all), (1, 1));
        assert!(next > Duration::from_secs(50), "nothing is left to do");
    }

    /// The source was read at its beginning, and what came then may be a grant.
    #[tokio::test(start_paused = true)]
    async fn a_hint_that_comes_during_a_pass_is_a_reason_for_another() {
        let mut agenda = Agenda::new(PACE, LIMITS);
        agenda.begins(ALL);
        agenda.looked(Instant::now());
        agenda.hinted();
        agenda.passed(ALL, 0);
        let burst = agenda.next().0 + PACE.debounce;
        agenda.begins(agenda.next().1);
        agenda.passed(Scope::RevocationsOnly { removal_budget: 9 }, 0);
        assert!(agenda.next().0 <= burst, "{agenda:?}");
    }

    /// Where each reload fails, the guard would else see what is left after some were removed.
    #[tokio::test(start_paused = true)]
    async fn early_removals_that_failed_are_not_made_again_and_again() {
        let mut agenda = Agenda::new(PACE, LIMITS);
        agenda.passed(ALL, 0);
        agenda.hinted();
        let (_, scope) = agenda.next();
        assert_eq!(scope, Scope::RevocationsOnly { removal_budget: 9 });
        agenda.begins(scope);
        agenda.looked(Instant::now());
        agenda.failed(scope, RETRY);
        agenda.hinted();
        assert_eq!(agenda.next().1, Scope::RevocationsOnly { removal_budget: 0 });
        assert!(agenda.burst.is_some(), "the guard is to see the burst as a whole, and soon");
    }

    /// Else all could be removed, a few at a time, while one reload is under way.
    #[tokio::test(start_paused = true)]
    async fn what_supersedes_is_at_once_and_few() {
        let mut agenda = Agenda::new(PACE, LIMITS);
        for removed in [4, 5] {
            agenda.begins(ALL);
            time::advance(Duration::from_mins(1)).await;
            agenda.looked(Instant::now() - Duration::from_mins(1));
            agenda.superseded(removed);
        }
        let expected = (Instant::now(), Scope::RevocationsOnly { removal_budget: 0 });
        assert_eq!(agenda.next(), expected);
    }

    /// How many reloads there are in ten minutes of edits by which nobody has less, how long one of
    /// those waits at most until it is in force, and until it is looked at.
    async fn reloads(freeze: Duration, reload_share: f64) -> (u32, Duration, Duration) {
        let mut agenda = Agenda::new(Pace { reload_share, ..PACE }, LIMITS);
        let (mut reloads, mut waited, mut unseen) = (0, Duration::ZERO, Duration::ZERO);
        let begun = Instant::now();
        let (mut in_force, mut seen) = (begun, begun);
        while begun.elapsed() < Duration::from_mins(10) {
            agenda.hinted();
            let (at, scope) = agenda.next();
            let next_hint = Instant::now() + Duration::from_millis(100);
            time::sleep_until(at.min(next_hint)).await;
            if at > next_hint {
                continue;
            }
            unseen = unseen.max(seen.elapsed());
            let look = Instant::now();
            agenda.begins(scope);
            time::advance(LOOK).await;
            agenda.looked(look);
            match scope {
                Scope::RevocationsOnly { .. } => (),
                Scope::DeferGrants { .. } => {
                    agenda.passed(scope, 0);
                    agenda.deferred();
                }
                Scope::Everything { .. } => {
                    waited = waited.max(in_force.elapsed());
                    time::advance(freeze).await;
                    agenda.reloaded(freeze);
                    agenda.passed(scope, 0);
                    (reloads, in_force) = (reloads + 1, Instant::now());
                }
            }
            seen = Instant::now();
        }
        (reloads, waited, unseen)
    }

    #[tokio::test(start_paused = true)]
    async fn reloads_that_only_grant_leave_time_for_log_ins() {
        for (millis, share, wanted) in [
            // A minute each, as with a thousand clients at cost 10: every five minutes.
            (60_000, 0.2, 2..=3),
            (60_000, 0.5, 4..=6),
            (6_000, 0.2, 18..=21),
            (1_000, 0.05, 28..=31),
            (100, 0.01, 58..=62),
            // The waiting for a burst's end is longer than what they would have to wait.
            (100, 0.2, 250..=300),
            (0, 0.2, 250..=310),
            (60_000, 1.0, 9..=10),
        ] {
            let freeze = Duration::from_millis(millis);
            let (count, waited, unseen) = reloads(freeze, share).await;
            let case = format!("{freeze:?} and {share}: {count} reloads, {waited:?}, {unseen:?}");
            assert!(wanted.contains(&count), "{case}");
            // The first was not waited for.
            let most = Duration::from_mins(10).mul_f64(share) + freeze * 2;
            assert!(freeze * count <= most, "{case}");
            assert!(waited <= freeze.mul_f64(1.0 / share) + PACE.max_wait * 2, "{case}");
            assert!(unseen <= Duration::from_millis(200), "{case}");
        }
    }

    /// More at once than go ahead of a burst's end are found at that.
    #[tokio::test(start_paused = true)]
    async fn the_guard_sees_a_burst_though_reloads_wait() {
        let mut agenda = Agenda::new(PACE, LIMITS);
        agenda.passed(ALL, 0);
        agenda.reloaded(Duration::from_mins(1));
        agenda.hinted();
        agenda.begins(Scope::RevocationsOnly { removal_budget: 0 });
        agenda.looked(Instant::now());
        let (at, scope) = agenda.next();
        assert!(at <= Instant::now() + PACE.debounce, "{agenda:?}");
        assert!(matches!(scope, Scope::DeferGrants { .. }), "{agenda:?}");
        agenda.begins(scope);
        agenda.next_in(Duration::from_hours(1));
        agenda.deferred();
        let (at, _) = agenda.next();
        time::sleep_until(at).await;
        let expected = Scope::Everything { removal_budget: Some(9) };
        assert_eq!(agenda.next().1, expected, "then it goes on by itself");
    }
}
