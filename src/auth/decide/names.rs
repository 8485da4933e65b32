//! Whose name, and whose nkey.

use std::{borrow::Cow, collections::HashMap};

use super::{is_public_nkey, quoted};
use crate::auth::{Desired, Effect, Finding, Policy, Problem, UserRecord, render::LOCKED_USER};

/// The active records whose name is theirs alone and fit for NATS.
pub(super) fn unambiguous<'a>(
    records: &'a [UserRecord],
    former: &Desired,
    policy: &Policy,
    findings: &mut Vec<Finding>,
) -> Vec<&'a UserRecord> {
    let active = || records.iter().filter(|it| it.active);
    let mut nkeys: HashMap<&str, usize> = HashMap::new();
    for record in active().filter(|it| !it.nkey.is_empty()) {
        *nkeys.entry(&record.nkey).or_default() += 1;
    }
    let mut named = Vec::with_capacity(records.len());
    named.extend(active().map(Named::new));
    named.sort_unstable_by(|one, other| one.key().cmp(&other.key()));

    let mut judged = Vec::with_capacity(named.len());
    for alike in named.chunk_by(Named::is_like) {
        for same in alike.chunk_by(|one, other| one.record.username == other.record.username) {
            let fit = same.iter().map(|it| it.record).filter(|record| {
                let name = &*record.username;
                let mut finding = |field: &str, value: &str, problem, effect| {
                    findings.push(policy.about_user(
                        record,
                        field,
                        &quoted(value),
                        problem,
                        effect,
                    ));
                };
                let mut about_name =
                    |problem, effect| finding(&policy.username_field, name, problem, effect);
                // There is no telling which of them is meant, and whoever can choose a record's id
                // must not win, so none of them is let in.
                let refused = match name {
                    "" => Some(Problem::NameEmpty),
                    _ if name.contains(char::is_control) => Some(Problem::NameControl),
                    _ if name == LOCKED_USER || policy.reserved.contains(name) => {
                        Some(Problem::NameReserved)
                    }
                    _ if is_public_nkey(name) => Some(Problem::NameIsNkey),
                    _ if same.len() > 1 => Some(Problem::NameTwice),
                    _ => None,
                };
                if let Some(problem) = refused {
                    about_name(problem, Effect::LeftOut);
                    return false;
                }
                if name.trim() != name {
                    about_name(Problem::NameSpace, Effect::Kept);
                }
                if !name.is_ascii() && name.contains(is_invisible) {
                    about_name(Problem::NameInvisible, Effect::Kept);
                }
                if alike.len() > 1 {
                    about_name(Problem::NameCase, Effect::Kept);
                }
                let nkey = &*record.nkey;
                // Anything else is left out later, and not shown.
                if is_public_nkey(nkey) && nkeys[nkey] > 1 {
                    let theirs = former.users.get(nkey).is_some_and(|it| it.is_of(record));
                    let effect = if theirs { Effect::Kept } else { Effect::LeftOut };
                    finding("nkey", nkey, Problem::NkeyTwice, effect);
                    if !theirs {
                        return false;
                    }
                }
                if policy.reserved.contains(nkey) {
                    finding("nkey", nkey, Problem::NameReserved, Effect::LeftOut);
                    return false;
                }
                true
            });
            judged.extend(fit);
        }
    }
    judged
}

/// A record by its name, those that differ only in case side by side.
struct Named<'a> {
    /// How `lower` begins: many are sorted without a look at the names, which lie here and there.
    beginning: u128,
    lower: Cow<'a, str>,
    record: &'a UserRecord,
}

impl<'a> Named<'a> {
    fn new(record: &'a UserRecord) -> Named<'a> {
        let lower = lower_case(&record.username);
        let mut beginning = [0; 16];
        let length = lower.len().min(beginning.len());
        beginning[..length].copy_from_slice(&lower.as_bytes()[..length]);
        Named { beginning: u128::from_be_bytes(beginning), lower, record }
    }

    /// Of records with one name it is nothing which comes first: findings are sorted later.
    fn key(&self) -> (u128, &str, &str) {
        (self.beginning, &self.lower, &self.record.username)
    }

    fn is_like(&self, other: &Named<'_>) -> bool {
        self.beginning == other.beginning && self.lower == other.lower
    }
}

fn lower_case(name: &str) -> Cow<'_, str> {
    if name.bytes().all(|it| it.is_ascii() && !it.is_ascii_uppercase()) {
        Cow::Borrowed(name)
    } else {
        Cow::Owned(name.to_lowercase())
    }
}

/// Zero-width spaces and joiners, direction marks and the like: a name with one looks like another.
fn is_invisible(it: char) -> bool {
    matches!(it, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}
