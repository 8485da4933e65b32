//! What PocketBase allowed, and when. Pure: times come from outside.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// Something that a server lets somebody do, or not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    pub(super) who: Who,
    /// What to publish on, once let in. None: to be let in.
    pub(super) subject: Option<String>,
}

/// A name and a password. Both empty: nobody says anything.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Who {
    pub(super) name: String,
    pub(super) password: String,
}

/// Everything that was ever allowed, and when.
pub(super) struct Truth {
    /// Within this, what PocketBase says has to be in force.
    pub(super) limit: Duration,
    spans: BTreeMap<Claim, Vec<Span>>,
    troubles: Vec<Trouble>,
}

/// PocketBase allowed something from one moment to another.
///
/// A request takes time, and nobody knows when in between it counts; so each moment has two ends.
struct Span {
    from: Instant,
    surely_from: Option<Instant>,
    surely_until: Option<Instant>,
    until: Option<Instant>,
}

/// Something is broken, from one moment to another.
struct Trouble {
    /// The only server that it is about, if it is.
    server: Option<usize>,
    from: Instant,
    until: Option<Instant>,
    harm: Harm,
}

/// What cannot be demanded of pb-nats while something is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Harm {
    /// Nothing: all that PocketBase says has to be in force in time, all the while.
    None,
    /// What PocketBase says now may be in force only when all is well again.
    Late,
    /// A server may besides do something else for a while: somebody else has told it to.
    Tampered,
}

impl Who {
    pub(super) fn new(name: &str, password: &str) -> Who {
        Who { name: name.into(), password: password.into() }
    }

    /// To be let in.
    pub(super) fn lets_in(&self) -> Claim {
        Claim { who: self.clone(), subject: None }
    }

    pub(super) fn publishes(&self, subject: &str) -> Claim {
        Claim { who: self.clone(), subject: Some(subject.into()) }
    }
}

impl Truth {
    pub(super) fn new(limit: Duration) -> Truth {
        Truth { limit, spans: BTreeMap::new(), troubles: Vec::new() }
    }

    /// From now on PocketBase may, some time soon, allow exactly this.
    pub(super) fn change_begins(&mut self, now: Instant, allowed: &BTreeSet<Claim>) {
        for (claim, spans) in &mut self.spans {
            if let Some(open) = spans.last_mut().filter(|it| it.until.is_none())
                && !allowed.contains(claim)
            {
                open.surely_until.get_or_insert(now);
            }
        }
        for claim in allowed {
            let spans = self.spans.entry(claim.clone()).or_default();
            if spans.last().is_none_or(|it| it.surely_until.is_some()) {
                spans.push(Span { from: now, surely_from: None, surely_until: None, until: None });
            }
        }
    }

    /// By now PocketBase surely does.
    pub(super) fn change_ends(&mut self, now: Instant) {
        for span in self.spans.values_mut().flatten() {
            span.surely_from.get_or_insert(now);
            if span.surely_until.is_some() {
                span.until.get_or_insert(now);
            }
        }
    }

    pub(super) fn trouble_begins(&mut self, now: Instant, harm: Harm, server: Option<usize>) {
        self.troubles.push(Trouble { server, from: now, until: None, harm });
    }

    pub(super) fn trouble_ends(&mut self, now: Instant) {
        for trouble in &mut self.troubles {
            trouble.until.get_or_insert(now);
        }
    }

    /// What was ever allowed.
    pub(super) fn claims(&self) -> impl Iterator<Item = &Claim> {
        self.spans.keys()
    }

    /// Since when it has surely been allowed, if it was all the time from one moment to the other.
    pub(super) fn allowed_throughout(
        &self,
        claim: &Claim,
        from: Instant,
        until: Instant,
    ) -> Option<Instant> {
        let span = self.spans.get(claim)?.iter().find(|it| {
            it.surely_from.is_some_and(|since| since <= from)
                && it.surely_until.is_none_or(|end| end >= until)
        });
        span.and_then(|it| it.surely_from)
    }

    /// How long ago it was last allowed, if it was not between the two moments.
    ///
    /// `Err`: never. Zero: it may have been allowed.
    pub(super) fn withdrawn_for(
        &self,
        claim: &Claim,
        from: Instant,
        until: Instant,
    ) -> Result<Duration, ()> {
        let last = self.last_allowed(claim, from, until)?;
        Ok(last.map_or(Duration::ZERO, |it| from.saturating_duration_since(it)))
    }

    /// Whether it is wrong that a server allowed it between the two moments.
    pub(super) fn is_intrusion(
        &self,
        server: usize,
        claim: &Claim,
        from: Instant,
        until: Instant,
    ) -> bool {
        match self.last_allowed(claim, from, until) {
            Ok(None) => false,
            Ok(Some(last)) => from > self.due(server, last) && !self.is_tampered(server, from),
            Err(()) => !self.is_tampered(server, from),
        }
    }

    /// Whether it is wrong that a server did not allow it between the two moments.
    ///
    /// `seen`: when that server last did.
    pub(super) fn is_lapse(
        &self,
        server: usize,
        claim: &Claim,
        seen: Option<Instant>,
        from: Instant,
        until: Instant,
    ) -> bool {
        let Some(since) = self.allowed_throughout(claim, from, until) else { return false };
        // Who was not allowed just before may have been let in because of the time before that.
        let spans = self.spans.get(claim).into_iter().flatten();
        let before = spans.filter_map(|it| it.until).filter(|it| *it <= since).max();
        let fresh = before.map_or(since, |it| self.due(server, it).max(since));
        let was_in_force = seen.is_some_and(|it| it >= fresh && it <= from);
        !self.is_tampered(server, from) && (was_in_force || from > self.due(server, since))
    }

    /// Whether somebody else may have told a server something at that moment.
    pub(super) fn is_tampered(&self, server: usize, at: Instant) -> bool {
        self.troubles_at(server).any(|it| {
            it.harm == Harm::Tampered
                && it.from <= at
                && it.until.is_none_or(|end| at <= end + self.limit)
        })
    }

    /// When it was last allowed, if it was not between the two moments.
    fn last_allowed(
        &self,
        claim: &Claim,
        from: Instant,
        until: Instant,
    ) -> Result<Option<Instant>, ()> {
        let spans = self.spans.get(claim).into_iter().flatten().filter(|it| it.from <= until);
        let mut last = None;
        for span in spans {
            match span.until {
                Some(end) if end < from => last = Some(last.map_or(end, |it: Instant| it.max(end))),
                Some(_) | None => return Ok(None),
            }
        }
        last.map(Some).ok_or(())
    }

    fn troubles_at(&self, server: usize) -> impl Iterator<Item = &Trouble> {
        self.troubles.iter().filter(move |it| it.server.is_none_or(|only| only == server))
    }

    /// By when a change of that moment has to be in force on the server.
    fn due(&self, server: usize, change: Instant) -> Instant {
        let mut due = change + self.limit;
        for trouble in self.troubles_at(server).filter(|it| it.harm >= Harm::Late) {
            if trouble.from <= due {
                // One that is not over yet is over at the earliest now.
                let end = trouble.until.unwrap_or_else(Instant::now);
                due = due.max(end + self.limit);
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn after(begun: Instant, seconds: u64) -> Instant {
        begun + Duration::from_secs(seconds)
    }

    /// Ann was allowed from the first to the second moment after the beginning.
    fn ann(from: u64, until: u64) -> (Truth, Claim, Instant) {
        let begun = Instant::now();
        let claim = Who::new("ann", "secret").lets_in();
        let mut truth = Truth::new(LIMIT);
        truth.change_begins(after(begun, from), &BTreeSet::from([claim.clone()]));
        truth.change_ends(after(begun, from));
        truth.change_begins(after(begun, until), &BTreeSet::new());
        truth.change_ends(after(begun, until));
        (truth, claim, begun)
    }

    #[test]
    fn who_was_let_in_too_late_or_without_reason_is_an_intruder() {
        let (mut truth, claim, begun) = ann(5, 50);
        let at = |seconds| after(begun, seconds);
        assert!(truth.is_intrusion(0, &claim, at(1), at(2)));
        for allowed in [6, 30, 49, 55, 60] {
            assert!(!truth.is_intrusion(0, &claim, at(allowed), at(allowed)), "{allowed}");
        }
        assert!(truth.is_intrusion(0, &claim, at(61), at(61)));
        let never = Who::new("eve", "").lets_in();
        assert!(truth.is_intrusion(0, &never, at(30), at(30)));

        // While enforcement was impossible, nobody else was let in either.
        truth.trouble_begins(at(55), Harm::Late, None);
        truth.trouble_ends(at(80));
        assert!(!truth.is_intrusion(0, &claim, at(90), at(90)));
        assert!(truth.is_intrusion(0, &claim, at(91), at(91)));
        assert!(truth.is_intrusion(0, &never, at(60), at(60)));
        truth.trouble_begins(at(100), Harm::Tampered, None);
        truth.trouble_ends(at(101));
        assert!(truth.is_intrusion(0, &never, at(99), at(99)));
        assert!(!truth.is_intrusion(0, &never, at(111), at(111)));
        assert!(truth.is_intrusion(0, &never, at(112), at(112)));
    }

    #[test]
    fn a_trouble_long_after_a_withdrawal_excuses_nothing() {
        let (mut truth, claim, begun) = ann(5, 50);
        let at = |seconds| after(begun, seconds);
        truth.trouble_begins(at(61), Harm::Late, None);
        truth.trouble_ends(at(70));
        assert!(truth.is_intrusion(0, &claim, at(65), at(65)));
    }

    #[test]
    fn a_trouble_of_one_server_excuses_no_other() {
        let (mut truth, claim, begun) = ann(5, 50);
        let at = |seconds| after(begun, seconds);
        truth.trouble_begins(at(51), Harm::Late, Some(1));
        truth.trouble_ends(at(70));
        assert!(truth.is_intrusion(0, &claim, at(65), at(65)));
        assert!(!truth.is_intrusion(1, &claim, at(65), at(65)));
    }

    #[test]
    fn who_was_refused_though_allowed_all_the_time_has_lapsed() {
        let (truth, claim, begun) = ann(5, 50);
        let at = |seconds| after(begun, seconds);
        assert!(!truth.is_lapse(0, &claim, None, at(15), at(15)), "it may not be in force yet");
        assert!(truth.is_lapse(0, &claim, None, at(16), at(16)));
        assert!(truth.is_lapse(0, &claim, Some(at(7)), at(8), at(8)), "it was in force already");
        assert!(
            !truth.is_lapse(0, &claim, Some(at(2)), at(8), at(8)),
            "that was for another reason"
        );
        assert!(!truth.is_lapse(0, &claim, Some(at(40)), at(49), at(51)), "withdrawn meanwhile");
        assert!(!truth.is_lapse(0, &claim, Some(at(40)), at(51), at(51)));
    }

    #[test]
    fn who_is_allowed_again_may_be_refused_for_the_time_between() {
        let (mut truth, claim, begun) = ann(5, 50);
        let at = |seconds| after(begun, seconds);
        truth.change_begins(at(52), &BTreeSet::from([claim.clone()]));
        truth.change_ends(at(52));
        assert!(!truth.is_lapse(0, &claim, Some(at(53)), at(54), at(54)));
        assert!(truth.is_lapse(0, &claim, Some(at(53)), at(63), at(63)));
        assert!(truth.is_lapse(0, &claim, Some(at(60)), at(61), at(61)));
    }

    #[test]
    fn a_change_under_way_is_neither_allowed_nor_forbidden() {
        let begun = Instant::now();
        let at = |seconds| after(begun, seconds);
        let claim = Who::new("ann", "secret").lets_in();
        let mut truth = Truth::new(LIMIT);
        truth.change_begins(at(1), &BTreeSet::from([claim.clone()]));
        assert!(!truth.is_intrusion(0, &claim, at(2), at(2)));
        assert!(!truth.is_lapse(0, &claim, None, at(40), at(40)));
        truth.change_ends(at(3));
        assert!(truth.is_lapse(0, &claim, None, at(40), at(40)));
    }
}
