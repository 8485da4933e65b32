//! How it is, written into PocketBase for the people who look there.

use std::{convert::Infallible, mem, time::Duration};

use jiff::Timestamp;
use ring::digest;
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{self, Instant},
};
use tracing::{debug, info, warn};

use super::{Record, State, Status, Watch, many};
use crate::{
    auth::Effect,
    causes::chain,
    options::{Options, PocketBaseOptions},
    source::{OVERALL, Records, SourceError, StatusCollection, StatusRecord},
};

/// Of changes in a row, what there is after each of these is written.
const PACE: Duration = Duration::from_secs(1);
/// While it is not in force, only other words for that are written no sooner than this: with the
/// database file each write is followed by a pass, which may fail in other words.
const PACE_OF_WORDS: Duration = Duration::from_mins(1);
/// The longest wait after a failure.
const MOST: Duration = Duration::from_mins(1);
/// What changes at once is looked at once.
const FRAME: Duration = Duration::from_millis(50);
/// That the loop is stuck is told by nobody, and has to be looked at.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// More of a text is not written.
const LONGEST: usize = 2000;

/// What writes, while it lives. It only reads the status, and no pass waits for it.
#[derive(Debug)]
pub struct Writer {
    _task: JoinSet<Infallible>,
}

impl Writer {
    /// Writes what this watch shows, if the options say so. That it cannot is a warning, and is
    /// tried again.
    pub fn start(options: &Options, watch: &Watch) -> Writer {
        let mut task = JoinSet::new();
        if options.pocketbase.write_status {
            task.spawn(write(options.pocketbase.clone(), watch.clone()));
        }
        Writer { _task: task }
    }
}

async fn write(options: PocketBaseOptions, watch: Watch) -> Infallible {
    let mut changes = watch.changes();
    let mut collection = None;
    let mut wanted = Records::new();
    let mut held: Option<Records> = None;
    let mut last = Instant::now();
    let (mut wait, mut told) = (Duration::ZERO, None);
    loop {
        changes.mark_unchanged();
        let status = watch.now();
        if status.state != State::Starting {
            wanted = records(&status, &wanted);
        }
        let doubtful = collection.as_ref().is_none_or(StatusCollection::is_doubtful);
        let pace = match &held {
            Some(held) if says_the_same(held, &wanted) => PACE_OF_WORDS,
            _ => wait,
        };
        let differs = held.as_ref() != Some(&wanted) || doubtful;
        if !wanted.is_empty() && differs && last.elapsed() >= pace {
            match hold(&mut collection, &options, &mut wanted, held.is_none()).await {
                Ok(written) => {
                    debug!(written, "told PocketBase how it is");
                    if told.take().is_some() {
                        info!("PocketBase shows again how it is");
                    }
                    held = Some(wanted.clone());
                    wait = PACE;
                }
                Err(error) => {
                    let (hint, error) = (error.hint(), chain(&error));
                    if told.as_ref() != Some(&error) {
                        warn!(
                            error,
                            hint, "PocketBase does not show how it is; users are kept in step"
                        );
                        told = Some(error);
                    }
                    wait = (wait * 2).clamp(PACE, MOST);
                }
            }
            last = Instant::now();
        }
        let _ = time::timeout(HEARTBEAT.min(wait.max(FRAME)), changes.changed()).await;
        time::sleep(FRAME).await;
    }
}

/// Makes the collection hold what is wanted. At first, what is as it was keeps its time.
async fn hold(
    collection: &mut Option<StatusCollection>,
    options: &PocketBaseOptions,
    wanted: &mut Records,
    first: bool,
) -> Result<usize, SourceError> {
    let collection = match collection {
        Some(it) => it,
        None => collection.insert(StatusCollection::open(options)?),
    };
    if first {
        for (id, found) in collection.read().await? {
            if let Some(record) = wanted.get_mut(id).filter(|it| it.state == found.state) {
                record.since = found.since;
            }
        }
    }
    collection.hold(wanted).await
}

/// Whether it is not in force now as before, and nothing but the words for that differ.
fn says_the_same(held: &Records, wanted: &Records) -> bool {
    let states = |it: &Records| -> Vec<_> {
        it.iter().map(|(id, it)| (id.clone(), it.state.clone())).collect()
    };
    !wanted.get(OVERALL).is_none_or(|it| it.in_force) && states(held) == states(wanted)
}

/// One record about everything, and one for each record with a finding.
fn records(status: &Status, former: &Records) -> Records {
    let findings = &status.findings;
    let mut records = Records::new();
    for finding in &findings.records {
        let about = json!([finding.collection, finding.id, finding.name]).to_string();
        // PocketBase wants 15 letters or digits.
        let letters = |byte: &u8| [byte >> 4, byte & 15].map(|it| char::from(b'a' + it));
        let hash = digest::digest(&digest::SHA256, about.as_bytes());
        let id = hash.as_ref().iter().flat_map(letters).take(15).collect();
        let record = records.entry(id).or_insert_with(|| StatusRecord {
            name: plain(&finding.name),
            in_force: true,
            state: word(Effect::Kept),
            since: Timestamp::UNIX_EPOCH,
            reason: String::new(),
            mend: String::new(),
            collection: finding.collection.clone(),
            record: finding.id.clone(),
        });
        record.add(finding);
    }
    let (mut reason, mut mend) = (status.sentence(), String::new());
    if status.state == State::NotInStep {
        status.hint().unwrap_or_default().clone_into(&mut mend);
    } else if findings.count > 0 {
        reason = format!("{reason} · {}", many(findings.count, "finding"));
        if findings.count > findings.records.len() {
            reason = format!("{reason}, of which {} are shown", findings.records.len());
        }
    }
    let overall = StatusRecord {
        name: "everything".into(),
        in_force: status.state == State::InStep,
        state: json!(status.state).as_str().unwrap_or_default().into(),
        since: Timestamp::UNIX_EPOCH,
        reason: plain(&reason),
        mend: plain(&mend),
        collection: String::new(),
        record: String::new(),
    };
    records.insert(OVERALL.into(), overall);
    let now = Timestamp::from_millisecond(status.now.as_millisecond()).unwrap_or(status.now);
    for (id, record) in &mut records {
        let before = former.get(id).filter(|it| it.state == record.state);
        record.since = before.map_or(now, |it| it.since);
    }
    records
}

impl StatusRecord {
    fn add(&mut self, finding: &Record) {
        let severity = |state: &str| {
            use Effect::{DirectionDenied, Kept, LeftOut, Locked, NotGranted};
            [Kept, NotGranted, DirectionDenied, Locked, LeftOut]
                .into_iter()
                .position(|it| word(it) == state)
        };
        let state = word(finding.effect);
        if severity(&state) > severity(&self.state) {
            self.state = state;
        }
        self.in_force &= finding.effect == Effect::Kept;
        let Record { field, value, problem, .. } = finding;
        let space = if value.is_empty() { "" } else { " " };
        let reason = format!("{field}{space}{value}: {problem}");
        for (text, more) in [(&mut self.reason, reason), (&mut self.mend, finding.mend.clone())] {
            let more = plain(&more);
            if !text.split("; ").any(|it| it == more) {
                let former = mem::take(text);
                *text = if former.is_empty() { more } else { plain(&format!("{former}; {more}")) };
            }
        }
    }
}

/// As in `/status`.
fn word(effect: Effect) -> String {
    json!(effect).as_str().unwrap_or_default().into()
}

/// The text as PocketBase keeps it, and no longer than people read.
fn plain(text: &str) -> String {
    let kept = |it: char| if it.is_control() { ' ' } else { it };
    let plain: String = text.chars().map(kept).collect();
    let plain = plain.trim();
    match plain.char_indices().nth(LONGEST - 1) {
        Some((end, last)) if end + last.len_utf8() < plain.len() => format!("{}…", &plain[..end]),
        _ => plain.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::status::{Failure, Findings, Step};

    fn finding(name: &str, field: &str, effect: Effect) -> Record {
        Record {
            collection: "nats_users".into(),
            id: format!("id of {name}"),
            name: name.into(),
            field: field.into(),
            value: "\"a..b\"".into(),
            kind: "subject".into(),
            problem: "it is bad".into(),
            mend: "mend it".into(),
            effect,
            link: None,
        }
    }

    fn status(findings: Vec<Record>, failure: Option<&str>) -> Status {
        let mut status = Watch::default().now();
        let failure = failure.map(|why| Failure {
            step: Step::Servers,
            why: why.into(),
            hint: None,
            held_back: None,
        });
        status.state = if failure.is_some() { State::NotInStep } else { State::InStep };
        status.pass.failure = failure;
        status.findings =
            Arc::new(Findings { count: findings.len(), records: findings, ..Findings::default() });
        status
    }

    #[test]
    fn a_record_says_all_that_is_wrong_with_it_and_the_worst_that_came_of_it() {
        let findings = vec![
            finding("ann", "publish", Effect::NotGranted),
            finding("ann", "password", Effect::LeftOut),
            finding("ann", "subscribe", Effect::NotGranted),
            finding("bob", "username", Effect::Kept),
        ];
        let records = records(&status(findings, None), &Records::new());
        assert_eq!(records.len(), 3);
        assert!(
            records.keys().all(|it| it.len() == 15 && it.bytes().all(|it| it.is_ascii_lowercase()))
        );
        let of = |name: &str| records.values().find(|it| it.name == name).unwrap();
        let reasons =
            ["publish", "password", "subscribe"].map(|it| format!("{it} \"a..b\": it is bad"));
        assert_eq!(of("ann").reason, reasons.join("; "));
        assert_eq!(
            (&*of("ann").mend, &*of("ann").state, of("ann").in_force),
            ("mend it", "left_out", false)
        );
        assert_eq!((&*of("bob").state, of("bob").in_force), ("kept", true));
        assert!(of("everything").in_force);
    }

    #[test]
    fn the_time_stays_as_long_as_the_state_does() {
        let first = status(Vec::new(), None);
        let mut later = status(Vec::new(), None);
        later.now = first.now + Duration::from_secs(5);
        later.users = 7;
        let before = records(&first, &Records::new());
        let after = records(&later, &before);
        assert_ne!(before, after);
        assert_eq!(before[OVERALL].since, after[OVERALL].since);
        let mut failed = status(Vec::new(), Some("a reason"));
        failed.now = later.now;
        let since = records(&failed, &after)[OVERALL].since;
        assert_eq!(since.duration_since(before[OVERALL].since).as_secs(), 5);
    }

    /// A failure that tells the time would otherwise be written with each attempt.
    #[test]
    fn only_a_failure_in_other_words_can_wait() {
        let of = |findings, failure| records(&status(findings, failure), &Records::new());
        let none = Vec::new;
        assert!(says_the_same(&of(none(), Some("since 1 s")), &of(none(), Some("since 2 s"))));
        assert!(!says_the_same(&of(none(), None), &of(none(), Some("since 2 s"))));
        assert!(!says_the_same(&of(none(), Some("since 2 s")), &of(none(), None)));
        assert!(!says_the_same(&of(none(), None), &of(none(), None)));
        let ann = || vec![finding("ann", "password", Effect::LeftOut)];
        assert!(!says_the_same(&of(none(), Some("x")), &of(ann(), Some("x"))));
    }

    #[test]
    fn a_text_is_such_that_pocketbase_keeps_it() {
        assert_eq!(plain(" a\tb\0 "), "a b");
        let long = plain(&"ö".repeat(5000));
        assert!(long.chars().count() <= LONGEST && long.ends_with('…'), "{}", long.len());
    }
}
