//! What may be published, subscribed to and answered, said so that every supported nats-server
//! understands it.

use std::{collections::BTreeSet, time::Duration};

use super::Subject;

/// What may be published, subscribed to and answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Where messages may be sent.
    pub publish: Subjects,
    /// Where messages may be received.
    pub subscribe: Subjects,
    /// Whether requests may be answered.
    pub responses: Option<Responses>,
}

/// The subjects of one direction. The default is none at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subjects {
    allow: BTreeSet<Subject>,
    deny: BTreeSet<Subject>,
}

/// How requests may be answered on their reply subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Responses {
    /// How many answers a request may have.
    pub max: u32,
    /// For how long. Zero: nats-server's default.
    pub ttl: Duration,
}

impl Responses {
    /// nats-server's own limit where a role sets none.
    const DEFAULT_TTL: Duration = Duration::from_mins(2);

    /// The more of both.
    pub(super) fn wider(self, other: Responses) -> Responses {
        let length = |it: Duration| if it.is_zero() { Responses::DEFAULT_TTL } else { it };
        let longer = if length(self.ttl) >= length(other.ttl) { self.ttl } else { other.ttl };
        Responses { max: self.max.max(other.max), ttl: longer }
    }
}

impl Subjects {
    /// `allow` but for `deny`.
    ///
    /// What allows nothing has one form only, because to NATS an empty allow list means everything.
    pub fn new(allow: BTreeSet<Subject>, deny: BTreeSet<Subject>) -> Subjects {
        if allow.is_empty() || deny.iter().any(Subject::is_everything) {
            return Subjects::default();
        }
        Subjects { allow, deny }
    }

    /// The same, for every nats-server to see.
    pub(super) fn publishing(
        mut allow: BTreeSet<Subject>,
        mut deny: BTreeSet<Subject>,
    ) -> Subjects {
        unmask(&mut allow);
        unmask(&mut deny);
        Subjects::new(allow, deny)
    }

    /// The same for subscriptions, where an allowed `a.*` must not become `a.>`.
    ///
    /// Also what could not be kept from becoming it, since a narrower permission lies beyond.
    pub(super) fn subscribing(
        allow: BTreeSet<Subject>,
        mut deny: BTreeSet<Subject>,
    ) -> (Subjects, Vec<Subject>) {
        let mut wider = Vec::new();
        for entry in &allow {
            let Some(beyond) = entry.beyond() else { continue };
            let with_it = |it: &Subject| it.queue().is_none_or(|all| entry.is_for(all));
            if allow.iter().any(|it| it.covers(&beyond) && with_it(it)) {
                continue;
            }
            if allow.iter().any(|it| it.overlaps(&beyond)) {
                wider.push(entry.clone());
            } else {
                deny.insert(beyond);
            }
        }
        deny_every_group(&mut deny);
        unmask(&mut deny);
        (Subjects::new(allow, deny), wider)
    }

    /// Whether nothing is allowed.
    pub fn is_nothing(&self) -> bool {
        self.allow.is_empty()
    }

    /// What is allowed. Empty means nothing.
    pub fn allow(&self) -> &BTreeSet<Subject> {
        &self.allow
    }

    /// What is denied though it is allowed.
    pub fn deny(&self) -> &BTreeSet<Subject> {
        &self.deny
    }
}

/// Names each subject that stands both below a `*` and above another subject.
///
/// Before 2.11.12, and from 2.12.0 to 2.12.3, nats-server does not find `a.b` in `a.*` if `a.b.c` is
/// listed as well, when it is published to or delivered: denied, it would be allowed.
fn unmask(subjects: &mut BTreeSet<Subject>) {
    let mut masked = Vec::new();
    for star in subjects.iter().filter(|it| it.queue().is_none()) {
        let Some(above) = star.as_str().strip_suffix('*') else { continue };
        let below = subjects.iter().filter_map(|it| it.subject().strip_prefix(above));
        let tokens = below.filter_map(|it| it.split_once('.')).map(|(token, _)| token);
        let named: BTreeSet<_> = tokens.filter(|it| *it != "*").collect();
        masked.extend(named.iter().map(|token| star.sibling(token)));
    }
    subjects.extend(masked);
}

/// Says of each denied subject that it is for every queue group, where others are denied to some.
///
/// Before 2.11.16, and from 2.12.0 to 2.12.6, nats-server lets a queue group that is not among these
/// slip past a subject that is denied to all.
fn deny_every_group(deny: &mut BTreeSet<Subject>) {
    let (for_all, mut for_some): (Vec<_>, Vec<_>) =
        deny.iter().cloned().partition(|it| it.queue().is_none());
    for_some.retain(|some| !for_all.iter().any(|all| all.covers(some)));
    let met = for_all.iter().filter(|all| for_some.iter().any(|some| all.overlaps(some)));
    let every_group: Vec<_> = met.map(Subject::for_every_group).collect();
    *deny = for_all.into_iter().chain(for_some).chain(every_group).collect();
}
