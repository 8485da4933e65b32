//! What nats-server makes of the rules in its file: its own matching, with its quirks.

use super::{Action, Subject, Subjects, subject::covers};

/// What nats-server keeps from an accepted subscription that reaches into what is denied. This was
/// mended twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Delivery {
    /// Before 2.11.16, and from 2.12.0 to 2.12.6: nothing, unless a whole denied subject lies within
    /// the subscription.
    Within,
    /// Later in 2.11, before 2.12.14, and from 2.14.0 to 2.14.3: what is denied to everyone, but not
    /// what is denied to its queue group.
    ToEveryone,
    /// Since then: all that is denied to it.
    #[default]
    All,
}

impl Delivery {
    /// What was before it was mended.
    pub(super) const BEFORE: [Delivery; 2] = [Delivery::Within, Delivery::ToEveryone];

    /// The versions of nats-server that do so.
    pub(super) fn versions(self) -> &'static str {
        match self {
            Delivery::Within => "nats-server before 2.11.16, or from 2.12.0 to 2.12.6,",
            Delivery::ToEveryone => {
                "nats-server 2.11.16 and later in 2.11, from 2.12.7 to 2.12.13, or from 2.14.0 to 2.14.3,"
            }
            Delivery::All => "nats-server 2.12.14, 2.14.4 or later",
        }
    }

    /// What this version of nats-server does, such as `2.12.8`.
    pub fn of(version: &str) -> Delivery {
        let number = |it: &str| it.split(|it: char| !it.is_ascii_digit()).next()?.parse().ok();
        let mut numbers = version.split('.').map(|it| number(it).unwrap_or_default());
        let mut next = || numbers.next().unwrap_or(0u32);
        match (next(), next(), next()) {
            (2, ..=10, _) | (2, 11, ..=15) | (2, 12, ..=6) => Delivery::Within,
            (2, 11, _) | (2, 12, ..=13) | (2, 14, ..=3) => Delivery::ToEveryone,
            _ => Delivery::All,
        }
    }
}

/// The entries that decide about one request.
#[derive(Debug)]
pub(super) struct Ruling<'a> {
    /// Those that allow it.
    pub(super) allow: Vec<&'a Subject>,
    /// Those that deny it, and win.
    pub(super) deny: Vec<&'a Subject>,
    /// Those that allow the subject, but to other queue groups, or to groups only.
    pub(super) other_groups: Vec<&'a Subject>,
    /// Whether nats-server keeps it for itself, whatever the rules are.
    pub(super) reserved: bool,
}

impl<'a> Ruling<'a> {
    /// Looks up who may publish or subscribe to `text`.
    pub(super) fn new(rules: &'a Subjects, action: Action, text: &Subject) -> Ruling<'a> {
        let taking = |set: &'a std::collections::BTreeSet<Subject>| {
            set.iter().filter(|it| it.takes(text)).partition(|it| it.queue().is_none())
        };
        let (for_all, for_some): (Vec<_>, Vec<_>) = taking(rules.allow());
        let named = |it: &&Subject| it.queue().is_some_and(|group| text.is_for(group));
        // Where groups are named for a subject, no other group has it, though it is allowed to all.
        let (allow, other_groups) = if text.queue().is_some() && !for_some.is_empty() {
            for_some.into_iter().partition(named)
        } else {
            (for_all, for_some)
        };
        let (mut deny, some): (Vec<_>, Vec<_>) = taking(rules.deny());
        deny.extend(some.into_iter().filter(named));
        Ruling { allow, deny, other_groups, reserved: is_reserved(action, text) }
    }

    pub(super) fn passes(&self) -> bool {
        !self.allow.is_empty() && self.deny.is_empty() && !self.reserved
    }
}

/// What clients may not do, whatever they are allowed.
fn is_reserved(action: Action, text: &Subject) -> bool {
    match action {
        Action::Publish => {
            let subject = text.subject();
            subject.starts_with("_GR_.") || subject.starts_with("$NRG.")
        }
        Action::Subscribe => text.queue() == Some("_sys_"),
    }
}

/// What is denied of an accepted subscription: no message that one of these takes is delivered.
pub(super) fn withheld<'a>(
    rules: &'a Subjects,
    subscription: &Subject,
    delivery: Delivery,
) -> Vec<&'a Subject> {
    let within = |it: &Subject| covers(subscription.subject(), it.as_str());
    if delivery == Delivery::Within && !rules.deny().iter().any(within) {
        return Vec::new();
    }
    let counts = |it: &&Subject| match it.queue() {
        None => true,
        Some(group) => delivery == Delivery::All && subscription.is_for(group),
    };
    rules.deny().iter().filter(|it| it.overlaps(subscription)).filter(counts).collect()
}
