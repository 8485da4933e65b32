use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt, iter,
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, de};

use super::{
    Desired, Grant, Responses, RoleRecord, Rules, Snapshot, Subject, Subjects, User, UserRecord,
    diff::within,
};

/// How one [`Desired`] differs from another in meaning, for people and for [`Limits`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// Users only the new state has.
    pub users_added: Vec<String>,
    /// Users both have, whose credential, roles or own permissions differ.
    pub users_changed: Vec<String>,
    /// Users only the old state has.
    pub users_removed: Vec<String>,
    /// Users of the old state who are to have less in the new one, or prove who they are otherwise.
    /// To gain something is not among it.
    pub users_losing: Vec<String>,
    /// Roles only the new state has, by their identifier in the file.
    pub roles_added: Vec<String>,
    /// Roles both have, differently.
    pub roles_changed: Vec<String>,
    /// Roles only the old state has.
    pub roles_removed: Vec<String>,
    /// Names only the new state keeps for nobody, since nats-server needs them.
    pub names_locked: Vec<String>,
    /// Names only the old state keeps so.
    pub names_unlocked: Vec<String>,
    /// Whether the default permissions differ.
    pub defaults_changed: bool,
    /// Whether `login_timeout` differs.
    pub timeout_changed: bool,
    /// How many users the old state had.
    pub users_before: usize,
}

/// How much one pass may take away without being told twice.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most that may be removed.
    pub max_removed: MaxRemoved,
    /// Below so many removals nothing is refused.
    pub min_removed: usize,
}

/// The pass would remove more than [`Limits`] allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Too many users would go.
    #[error("it would remove {} of {before} users, which is more than `sync.max_removed`: {}", removed.len(), few(removed))]
    TooMany {
        /// Users that would go.
        removed: Vec<String>,
        /// How many users there are.
        before: usize,
    },
    /// There is no user record at all where there were some.
    #[error("the collection of users is empty, and {} users are in force", removed.len())]
    NoRecords {
        /// Users that would go.
        removed: Vec<String>,
    },
}

impl Refused {
    /// Who would go: all of them.
    pub fn removed(&self) -> &[String] {
        match self {
            Refused::TooMany { removed, .. } | Refused::NoRecords { removed } => removed,
        }
    }

    /// What one can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Refused::TooMany { .. } => {
                "the last good state stays in force, and `pb-nats plan` lists who would go; if the \
                 removal is meant: `pb-nats once --accept-removals`"
            }
            Refused::NoRecords { .. } => {
                "the last good state stays in force; if there are users in PocketBase, let the \
                 collection's list rule admit pb-nats's account; if there are to be none: \
                 `pb-nats once --accept-removals`"
            }
        }
    }
}

impl Changes {
    /// What turns `old` into `new`.
    pub fn between(old: &Desired, new: &Desired) -> Changes {
        let names = |one: &Desired, other: &Desired| {
            one.locked.difference(&other.locked).map(ToString::to_string).collect()
        };
        let mut changes = Changes {
            names_locked: names(new, old),
            names_unlocked: names(old, new),
            defaults_changed: old.defaults != new.defaults,
            timeout_changed: old.login_timeout != new.login_timeout,
            users_before: old.users.len(),
            ..Changes::default()
        };
        for (name, rules) in &new.roles {
            match old.roles.get(name) {
                None => changes.roles_added.push(name.to_string()),
                Some(it) if it != rules => changes.roles_changed.push(name.to_string()),
                Some(_) => (),
            }
        }
        let gone = old.roles.keys().filter(|it| !new.roles.contains_key(*it));
        changes.roles_removed = gone.map(ToString::to_string).collect();

        let same_roles = changes.roles_changed.is_empty();
        let mut narrowed = Narrowed::new();
        for (login, before, after) in pairs(&old.users, &new.users) {
            let Some(before) = before else {
                changes.users_added.push(login.to_string());
                continue;
            };
            let Some(after) = after else {
                changes.users_removed.push(login.to_string());
                changes.users_losing.push(login.to_string());
                continue;
            };
            let rules = || (old.rules(before), new.rules(after));
            let same_credential = before.credential == after.credential;
            let (same_grant, same_rules) = match (&before.grant, &after.grant) {
                // If the role or the defaults differ, then that is the change.
                (Grant::Role(one), Grant::Role(other)) if one == other => (true, same_roles),
                (Grant::Defaults, Grant::Defaults) => (true, !changes.defaults_changed),
                // The same rights written elsewhere are the same rights.
                _ => {
                    let (was, is) = rules();
                    let same = was == is;
                    (same, same)
                }
            };
            let same_types = before.connection_types == after.connection_types;
            if !(same_grant && same_credential && same_types) {
                changes.users_changed.push(login.to_string());
            }
            let fewer_types = !same_types
                && !after.connection_types.is_empty()
                && (before.connection_types.is_empty()
                    || !before.connection_types.is_subset(after.connection_types));
            // Thousands may share a role, and two roles are compared once: they are told apart by
            // place.
            let mut narrower = || {
                let (was, is) = rules();
                *narrowed.entry((was, is)).or_insert_with(|| narrows(was, is))
            };
            // An nkey that is now another record's is the same nkey.
            let same_proof = same_credential || before.credential.proves_like(&after.credential);
            if !same_proof || fewer_types || !same_rules && narrower() {
                changes.users_losing.push(login.to_string());
            }
        }
        changes
    }

    /// Whether NATS would behave the same.
    ///
    /// A role that only comes or goes, with no user gaining or losing by it, is no change.
    pub fn is_empty(&self) -> bool {
        let Changes { users_added, users_changed, users_removed, roles_changed, .. } = self;
        [users_added, users_changed, users_removed, roles_changed].iter().all(|it| it.is_empty())
            && self.names_locked.is_empty()
            && self.names_unlocked.is_empty()
            && !self.defaults_changed
            && !self.timeout_changed
    }

    /// Refuses the kind of change that is more often an accident than a wish.
    pub fn check(&self, limits: Limits, snapshot: &Snapshot) -> Result<(), Refused> {
        let removed = &self.users_removed;
        if snapshot.users.is_empty() && !removed.is_empty() {
            return Err(Refused::NoRecords { removed: removed.clone() });
        }
        #[expect(clippy::cast_precision_loss, reason = "no one has 2^52 users")]
        let above = match limits.max_removed {
            MaxRemoved::Count(most) => removed.len() > most,
            MaxRemoved::Share(most) => removed.len() as f64 > self.users_before as f64 * most,
        };
        if removed.len() >= limits.min_removed && above {
            return Err(Refused::TooMany { removed: removed.clone(), before: self.users_before });
        }
        Ok(())
    }
}

impl Desired {
    /// This, less what `newer` takes away: what can be in force where `newer` cannot.
    ///
    /// It gives nobody anything that `newer` does not give them.
    #[must_use]
    pub fn reduced_by(&self, newer: &Desired) -> Desired {
        let mut reduced = self.clone();
        for login in Changes::between(self, newer).users_losing {
            let user = newer.users.get(&*login).map(|user| {
                // A role of this name may be another one here.
                let grant = Grant::Own(Box::new(newer.rules(user).clone()));
                User { grant, ..user.clone() }
            });
            match user {
                Some(user) => reduced.users.insert(login.into(), user),
                None => reduced.users.remove(&*login),
            };
        }
        // Those that are needed stay so without their users.
        let Desired { users, locked, .. } = &mut reduced;
        locked.extend(newer.locked.iter().filter(|it| !users.contains_key(&***it)).cloned());
        let used: BTreeSet<_> =
            reduced.users.values().filter_map(|it| it.grant.role().cloned()).collect();
        reduced.roles.retain(|name, _| used.contains(name));
        reduced
    }
}

/// Whether one set of rules is narrower than another, by their places.
type Narrowed = HashMap<(*const Rules, *const Rules), bool>;

/// Every login that either has, in order, with the user of each.
fn pairs<'a>(
    old: &'a BTreeMap<Arc<str>, User>,
    new: &'a BTreeMap<Arc<str>, User>,
) -> impl Iterator<Item = (&'a str, Option<&'a User>, Option<&'a User>)> {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    iter::from_fn(move || {
        let order = match (old.peek(), new.peek()) {
            (Some((one, _)), Some((other, _))) => one.cmp(other),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        let before = if order.is_le() { old.next() } else { None };
        let after = if order.is_ge() { new.next() } else { None };
        let (login, _) = before.or(after)?;
        Some((&**login, before.map(|it| it.1), after.map(|it| it.1)))
    })
}

/// Whether something that `old` allows is not allowed by `new`. In doubt it is so.
fn narrows(old: &Rules, new: &Rules) -> bool {
    let answers = match (old.responses, new.responses) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(old), Some(new)) => Responses::wider(new, old) != new,
    };
    answers
        || narrows_one(&old.publish, &new.publish)
        || narrows_one(&old.subscribe, &new.subscribe)
}

fn narrows_one(old: &Subjects, new: &Subjects) -> bool {
    let gone = old.allow().iter().any(|it| !within(new.allow(), it));
    let denied = |it: &&Subject| {
        !within(old.deny(), it) && old.allow().iter().any(|allowed| allowed.overlaps(it))
    };
    gone || new.deny().iter().any(|it| denied(&it))
}

/// In a few words, with the names where they are few.
impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut between = "";
        for (what, came, names) in [
            ("user", "added", &self.users_added),
            ("user", "changed", &self.users_changed),
            ("user", "removed", &self.users_removed),
            ("role", "added", &self.roles_added),
            ("role", "changed", &self.roles_changed),
            ("role", "removed", &self.roles_removed),
            ("needed name", "locked", &self.names_locked),
            ("needed name", "no longer locked", &self.names_unlocked),
        ] {
            if !names.is_empty() {
                let counted = counted(names.len(), what);
                write!(f, "{between}{counted} {came} ({})", few(names))?;
                between = ", ";
            }
        }
        for (what, differs) in [
            ("default permissions", self.defaults_changed),
            ("login timeout", self.timeout_changed),
        ] {
            if differs {
                write!(f, "{between}{what} changed")?;
                between = ", ";
            }
        }
        if between.is_empty() { f.write_str("nothing") } else { Ok(()) }
    }
}

/// So many of them, in words.
pub fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// The first few names.
fn few(names: &[String]) -> String {
    const MOST: usize = 5;
    let mut text =
        names.iter().take(MOST).map(|it| format!("{it:?}")).collect::<Vec<_>>().join(", ");
    if names.len() > MOST {
        text.push_str(", …");
    }
    text
}

impl Event {
    /// What happened between two looks at the source.
    ///
    /// To deactivate a user is to delete it: what counts is who may connect.
    pub fn between(old: &Snapshot, new: &Snapshot) -> Vec<Event> {
        use EventType::{RoleCreate, RoleDelete, RoleUpdate, UserCreate, UserDelete, UserUpdate};
        let name = |it: &UserRecord| it.username.to_string();
        let kinds = [UserCreate, UserUpdate, UserDelete];
        let mut events = compare(&active(old), &active(new), kinds, name);
        let name = |it: &RoleRecord| it.name.clone();
        let kinds = [RoleCreate, RoleUpdate, RoleDelete];
        events.extend(compare(&by_id(&old.roles), &by_id(&new.roles), kinds, name));
        events
    }
}

/// The events that make one set of records, by their ids, the other.
fn compare<T: PartialEq>(
    before: &HashMap<&str, &T>,
    after: &HashMap<&str, &T>,
    [create, update, delete]: [EventType; 3],
    name: impl Fn(&T) -> String,
) -> Vec<Event> {
    let event = |kind, it: &T| Event { kind, name: name(it) };
    let mut events = Vec::new();
    for (id, it) in after {
        match before.get(id) {
            None => events.push(event(create, it)),
            Some(was) if was != it => events.push(event(update, it)),
            Some(_) => (),
        }
    }
    let gone = before.iter().filter(|(id, _)| !after.contains_key(*id));
    events.extend(gone.map(|(_, it)| event(delete, it)));
    events
}

fn by_id(roles: &[RoleRecord]) -> HashMap<&str, &RoleRecord> {
    roles.iter().map(|it| (it.id.as_str(), it)).collect()
}

fn active(snapshot: &Snapshot) -> HashMap<&str, &UserRecord> {
    snapshot.users.iter().filter(|it| it.active).map(|it| (it.id.as_str(), it)).collect()
}

/// Something that happened in the source between two looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What kind of thing.
    pub kind: EventType,
    /// The name of the user or role.
    pub name: String,
}

/// The kinds of [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EventType {
    /// A user may connect who could not before.
    UserCreate,
    /// A user's credential or own permissions differ, or the roles they have.
    UserUpdate,
    /// A user may no longer connect.
    UserDelete,
    /// There is a new role.
    RoleCreate,
    /// A role's name or permissions differ.
    RoleUpdate,
    /// A role is gone.
    RoleDelete,
}

/// How many users one pass may remove without being told twice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MaxRemoved {
    /// So many.
    Count(usize),
    /// Such a part of all, from 0 to 1.
    Share(f64),
}

impl<'de> Deserialize<'de> for MaxRemoved {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Amount;
        impl de::Visitor<'_> for Amount {
            type Value = MaxRemoved;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a count such as 20 or a share such as \"50%\"")
            }
            fn visit_i64<E: de::Error>(self, count: i64) -> Result<MaxRemoved, E> {
                let count = usize::try_from(count);
                count.map(MaxRemoved::Count).map_err(|_| E::custom("expected no negative count"))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<MaxRemoved, E> {
                if let Ok(count) = text.parse() {
                    return Ok(MaxRemoved::Count(count));
                }
                let percent = text.strip_suffix('%').and_then(|it| it.trim().parse::<f64>().ok());
                match percent {
                    Some(percent) if (0.0..=100.0).contains(&percent) => {
                        Ok(MaxRemoved::Share(percent / 100.0))
                    }
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(Amount)
    }
}
