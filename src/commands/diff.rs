//! How a [`Diff`] is told to people: cut where it gets long. JSON has it all.

use std::{collections::BTreeMap, fmt::Write as _};

use pb_nats::auth::{Answers, Change, Diff, Holding, Hunk, Rights, counted};

/// More changes than this are only counted,
const MOST_HUNKS: usize = 20;
/// as are more users of one,
const MOST_USERS: usize = 8;
/// and more subjects.
const MOST_SUBJECTS: usize = 10;

/// A line for each user, role or group of users, with what they lose and gain below it.
pub(crate) fn told(diff: &Diff, connections: &BTreeMap<String, usize>) -> String {
    let mut text = String::new();
    for hunk in diff.hunks.iter().take(MOST_HUNKS) {
        tell(&mut text, hunk, connections);
    }
    let rest = diff.hunks.get(MOST_HUNKS..).unwrap_or_default();
    if !rest.is_empty() {
        let users = counted(rest.iter().map(|it| it.users.len()).sum(), "user");
        let _ = writeln!(text, "… and {} more, of {users}", rest.len());
    }
    text
}

fn tell(text: &mut String, hunk: &Hunk, connections: &BTreeMap<String, usize>) {
    let Hunk { change, users, before, after, credential_changed, connection_types, .. } = hunk;
    let sign = match change {
        Change::Added => '+',
        Change::Changed => '~',
        Change::Removed => '-',
    };
    let named = users.iter().take(MOST_USERS).map(|it| match connections.get(it) {
        Some(count) => format!("{it:?} ({})", counted(*count, "connection")),
        None => format!("{it:?}"),
    });
    let mut named = named.collect::<Vec<_>>().join(", ");
    if users.len() > MOST_USERS {
        let _ = write!(named, " and {} more", users.len() - MOST_USERS);
    }
    let count = counted(users.len(), "user");
    let _ = match (hunk.of_all(), &users[..]) {
        (Some(of_all), []) => writeln!(text, "{sign} {}", held(of_all)),
        (Some(of_all), _) => writeln!(text, "{sign} {}, of {count}: {named}", held(of_all)),
        (None, [_]) => {
            writeln!(text, "{sign} user {named}{}", moved(before.as_ref(), after.as_ref()))
        }
        (None, _) => {
            writeln!(text, "{sign} {count}{}: {named}", moved(before.as_ref(), after.as_ref()))
        }
    };
    if *credential_changed {
        let _ = writeln!(text, "    ~ credential");
    }
    if let Some([was, is]) = connection_types {
        let _ = writeln!(text, "    ~ connects by {} instead of {}", ways(is), ways(was));
    }
    list(text, '-', "denied now", &hunk.losses);
    list(text, '+', "no longer denied", &hunk.gains);
}

fn list(text: &mut String, sign: char, denial: &str, rights: &Rights) {
    let denial = format!(" ({denial})");
    for (action, subjects, why) in [
        ("publish", &rights.publish, ""),
        ("publish", &rights.publish_denials, &denial),
        ("subscribe", &rights.subscribe, ""),
        ("subscribe", &rights.subscribe_denials, &denial),
    ] {
        for subject in subjects.iter().take(MOST_SUBJECTS) {
            let _ = writeln!(text, "    {sign} {action} {subject:?}{why}");
        }
        if subjects.len() > MOST_SUBJECTS {
            let more = counted(subjects.len() - MOST_SUBJECTS, "subject");
            let _ = writeln!(text, "    {sign} {action} … and {more} more{why}");
        }
    }
    if let Some(Answers { max, ttl_ms }) = rights.responses {
        let within = match ttl_ms {
            0 => String::new(),
            ms => format!(", within {:?}", std::time::Duration::from_millis(ms)),
        };
        let _ = writeln!(text, "    {sign} answer requests, {max} to each{within}");
    }
}

fn held(holding: &Holding) -> String {
    match holding {
        Holding::Defaults => "default permissions".to_owned(),
        Holding::Role(name) => format!("role {name:?}"),
        Holding::Own => "permissions of their own".to_owned(),
    }
}

/// Behind the user: where their rights are written.
fn moved(before: Option<&Holding>, after: Option<&Holding>) -> String {
    match (before, after) {
        (Some(was), Some(is)) if was != is => format!(", {} instead of {}", held(is), held(was)),
        (Some(it), _) | (None, Some(it)) => format!(", {}", held(it)),
        (None, None) => String::new(),
    }
}

fn ways(types: &[&str]) -> String {
    if types.is_empty() { "any way".to_owned() } else { types.join(", ") }
}
