//! The live connection: a task that only ever says "look again".

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use reqwest::{
    StatusCode,
    header::{ACCEPT, HeaderValue},
};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time,
};
use tracing::{debug, info, warn};

use super::{
    Link, SourceError,
    api::Api,
    pulse,
    sse::{Decoder, Event},
};

/// PocketBase closes a connection that was silent for 300 s. Before that is the time for another one,
/// best where everything would be read again anyway: a new connection is a reason to.
const SILENCE: [Duration; 2] = [Duration::from_secs(270), Duration::from_secs(295)];
const AFTER_READING: Duration = Duration::from_secs(55);

/// and since 0.38.2 one that is 1,800 s old.
const AGE: Duration = Duration::from_mins(28);

/// How long nothing may have shown that we would be told of changes. If the token is not good any more,
/// or a rule is another, the connection stays, silent. But each question stands in PocketBase's log,
/// which is there for people to read, so while nothing happens there are two in a minute at most, and
/// the reading of everything is one of them. Whoever reads more often has that asked more often too.
fn confirmation(resync: Duration) -> Duration {
    (resync / 3 * 2).clamp(Duration::from_secs(2), Duration::from_secs(40))
}

/// The same where both collections are listed at each reading, which shows it, and takes two questions.
fn of_listings(resync: Duration) -> Duration {
    (resync / 4 * 5).clamp(Duration::from_secs(2), Duration::from_secs(75))
}

/// How soon to ask again where the answer may be of another moment than the last reading.
const AGAIN: Duration = Duration::from_secs(1);

/// How long to wait before the next attempt, doubled with each.
const BACKOFF: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(5)];

/// The task, gone when dropped.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) hint: Arc<Notify>,
    _task: JoinSet<()>,
}

impl Live {
    /// Follows the collections, as the one whose token it is. It, or the password for it, may be in a
    /// file.
    pub(super) fn start(
        api: Api,
        token: watch::Receiver<Option<HeaderValue>>,
        secret: Option<PathBuf>,
        collections: [String; 2],
        link: watch::Sender<Link>,
        known: Arc<Known>,
        resync: Duration,
    ) -> Live {
        let hint = Arc::new(Notify::new());
        let mut task = JoinSet::new();
        let ears = Ears { known, resync, fresh: 2, ..Ears::default() };
        task.spawn(pulse::watch(api.clone(), hint.clone(), link.clone()));
        if let Some(file) = secret {
            task.spawn(pulse::watch_secret(file, hint.clone()));
        }
        task.spawn(Following { api, token, collections, hint: hint.clone(), link, ears }.run());
        Live { hint, _task: task }
    }
}

/// What was last read, for whom follows.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<Option<Reading>>);

#[derive(Clone, Copy, Debug)]
struct Reading {
    at: time::Instant,
    /// How many users and roles there are, if the view told. What is listed is what we are told of.
    viewed: Option<[usize; 2]>,
}

impl Known {
    /// Everything was read just now.
    pub(super) fn read(&self, viewed: Option<[usize; 2]>) {
        let reading = Reading { at: time::Instant::now(), viewed };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reading);
    }

    /// How many users and roles the view told of.
    pub(super) fn viewed(&self) -> Option<[usize; 2]> {
        self.last()?.viewed
    }

    fn last(&self) -> Option<Reading> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why we are not told of each change in a collection of so many records, of which so many are listed for
/// us; or none is to be.
pub(super) fn why_unheard(shown: Option<usize>, count: usize) -> String {
    match shown {
        None => "its list rule admits superusers only".to_owned(),
        Some(shown) => {
            format!("its list rule shows pb-nats's account {shown} of {count} records")
        }
    }
}

/// Whether we would be told of changes, and when to find out next.
#[derive(Debug, Default)]
struct Ears {
    known: Arc<Known>,
    resync: Duration,
    /// So many collections are to be asked about at once, since the connection is new.
    fresh: usize,
    /// The one to ask about next.
    turn: usize,
    /// When there last was a question.
    asked: Option<time::Instant>,
    /// When less was shown of a collection than was read, though nobody knows whether that is of the same
    /// moment; and how many changes there had been word of.
    doubted: Option<(time::Instant, u64)>,
}

impl Ears {
    /// When there should be a question. `silent`: since when the connection has been, which ends soon.
    fn due(&self, begun: time::Instant, silent: time::Instant) -> time::Instant {
        let last = self.known.last();
        let asked = self.asked.unwrap_or(begun);
        if self.fresh > 0 || self.doubted.is_some() {
            return if self.asked.is_none() { begun } else { asked + AGAIN };
        }
        let period = match last {
            Some(Reading { viewed: None, .. }) => of_listings(self.resync),
            Some(Reading { viewed: Some(_), .. }) | None => confirmation(self.resync),
        };
        let due = last.map_or(asked, |it| it.at.max(asked)) + period;
        // The next connection shows it too, and comes soon.
        if due > silent + SILENCE[0] - period { silent + SILENCE[1] } else { due }
    }

    /// When the connection, so long silent, is to be replaced.
    fn end(&self, silent: time::Instant) -> time::Instant {
        let [first, last] = SILENCE;
        let read = self.known.last().map_or(silent, |it| it.at);
        (read + AFTER_READING).clamp(silent + first, silent + last)
    }
}

struct Following {
    api: Api,
    token: watch::Receiver<Option<HeaderValue>>,
    collections: [String; 2],
    hint: Arc<Notify>,
    /// What we tell of the connection.
    link: watch::Sender<Link>,
    ears: Ears,
}

/// How a connection came to its end.
enum End {
    /// It was time, or there is another token.
    Ours,
    /// PocketBase, or something before it, closed it.
    Theirs,
}

impl Following {
    async fn run(mut self) {
        let [first, longest] = BACKOFF;
        let mut pause = first;
        let mut told = false;
        loop {
            let begun = Instant::now();
            let end = self.follow(&mut told).await;
            self.link.send_modify(|link| {
                // One that we renew goes on, as far as anybody can see.
                let broke = !matches!(end, Ok(End::Ours)) && link.connected.take().is_some();
                link.reconnects += u64::from(broke);
            });
            if !matches!(end, Ok(End::Ours)) {
                self.ears.fresh = 2;
            }
            match &end {
                Ok(End::Ours) => {
                    pause = first;
                    continue;
                }
                Ok(End::Theirs) => debug!("the live connection was closed"),
                Err(error) if told => debug!(%error, "no live connection"),
                Err(error) => {
                    told = true;
                    warn!(%error, "no live connection, changes are seen at the next resync");
                }
            }
            if begun.elapsed() > longest && end.is_ok() {
                pause = first;
            }
            time::sleep(pause).await;
            pause = longest.min(pause * 2);
        }
    }

    /// Connects, subscribes, and leaves a hint for whatever comes.
    async fn follow(&mut self, told: &mut bool) -> Result<End, SourceError> {
        let Ok(Some(token)) = self.token.wait_for(Option::is_some).await.map(|it| it.clone())
        else {
            // Nobody is left who would take a hint.
            return std::future::pending().await;
        };
        let api = self.api.pinned().await;
        let begun = time::Instant::now();
        let slow = || SourceError::Slow { url: api.origin(), timeout: api.timeout };
        let connect = api.client.get(api.url(&["realtime"])).header(ACCEPT, "text/event-stream");
        let mut stream = time::timeout(api.timeout, connect.send())
            .await
            .map_err(|_| slow())?
            .map_err(|error| api.failed(error))?;
        let none = |status: StatusCode| SourceError::NotPocketBase {
            request: "GET /api/realtime".into(),
            answer: status.to_string(),
        };
        let mut decoder = Decoder::default();
        let mut subscribed = false;
        let mut heard = begun;
        self.ears.asked = None;
        loop {
            // Until then whatever comes is no sign that anything is to come.
            let end = if subscribed { self.ears.end(heard) } else { begun + api.timeout };
            let due = if subscribed { self.ears.due(begun, heard) } else { end };
            let chunk = tokio::select! {
                chunk = stream.chunk() => chunk.map_err(|error| api.failed(error))?,
                () = time::sleep_until((begun + AGE).min(end)) => {
                    // There may have been a reading meanwhile.
                    let end = (begun + AGE).min(self.ears.end(heard));
                    if subscribed && end > time::Instant::now() {
                        continue;
                    }
                    return if subscribed { Ok(End::Ours) } else { Err(slow()) };
                }
                () = time::sleep_until(due) => {
                    if self.ears.due(begun, heard) <= time::Instant::now() {
                        let newest = self.token.borrow().clone().unwrap_or_else(|| token.clone());
                        self.confirm(&api, &newest).await;
                    }
                    continue;
                }
                _ = self.token.changed() => return Ok(End::Ours),
            };
            let Some(chunk) = chunk else {
                return if subscribed { Ok(End::Theirs) } else { Err(none(stream.status())) };
            };
            heard = time::Instant::now();
            for event in decoder.feed(&chunk) {
                if event.name == "PB_CONNECT" {
                    self.subscribe(&api, &token, &event).await?;
                    subscribed = true;
                    self.link.send_modify(|it| {
                        it.connected.get_or_insert_with(SystemTime::now);
                    });
                    if std::mem::take(told) {
                        info!("the live connection is back");
                    }
                } else {
                    self.link.send_modify(|it| it.events += 1);
                }
                // Nobody knows what was missed before a connection, so that is a hint as well.
                self.hint.notify_one();
            }
        }
    }

    /// Finds out whether we would be told of a change.
    ///
    /// PocketBase takes any subscription, and tells whom the list rule lets see the record. So there is
    /// one proof beside a change itself: that all records are shown to us when they are listed.
    async fn confirm(&mut self, api: &Api, token: &HeaderValue) {
        self.ears.asked = Some(time::Instant::now());
        let Some(Reading { at, viewed }) = self.ears.known.last() else { return };
        let Some(counts) = viewed else {
            // What is listed is what we are told of.
            if std::mem::take(&mut self.ears.fresh) > 0 {
                return;
            }
            // A refused token is found by whoever looks again, who may get another one.
            if api.refresh(token).await.is_err_and(|it| matches!(it, SourceError::TokenRefused)) {
                self.hint.notify_one();
            }
            return;
        };
        let (name, count) = (self.collections[self.ears.turn].clone(), counts[self.ears.turn]);
        let shown = match api.shown(&name, Some(token)).await {
            Ok(shown) if shown > 0 && shown >= count => {
                self.hears(&name, None);
                return self.next();
            }
            Ok(shown) => Some(shown),
            Err(SourceError::Forbidden { .. }) => None,
            Err(SourceError::NoCollection { .. }) => {
                self.hint.notify_one();
                return self.next();
            }
            Err(_) => return,
        };
        if self.link.borrow().unheard.get(&name) == Some(&why_unheard(shown, count)) {
            return self.next();
        }
        // A guest is not shown more.
        match api.refresh(token).await {
            Ok(_) => (),
            Err(SourceError::TokenRefused) => return self.hint.notify_one(),
            Err(_) => return,
        }
        match shown {
            None => (),
            Some(shown) if shown >= count => {
                self.hears(&name, None);
                return self.next();
            }
            Some(_) if let Some((since, events)) = self.ears.doubted => {
                if self.link.borrow().events != events {
                    return self.next();
                }
                if at <= since {
                    return;
                }
            }
            // It may have been shown at another moment than that of the reading.
            Some(_) => {
                let events = self.link.borrow().events;
                self.ears.doubted = Some((time::Instant::now(), events));
                return self.hint.notify_one();
            }
        }
        self.hears(&name, Some(why_unheard(shown, count)));
        self.next();
    }

    fn next(&mut self) {
        self.ears.doubted = None;
        self.ears.fresh = self.ears.fresh.saturating_sub(1);
        self.ears.turn = (self.ears.turn + 1) % self.collections.len();
    }

    /// Tells that there is word of all changes in this collection, or why not.
    fn hears(&self, collection: &str, not: Option<String>) {
        if self.link.borrow().unheard.get(collection) == not.as_ref() {
            return;
        }
        if let Some(why) = &not {
            let hint = Link::hint(collection);
            warn!(collection, why, hint, "live changes are missing, the resync notices them");
        } else {
            info!(collection, "live changes come again");
        }
        self.link.send_modify(|it| match not {
            Some(why) => drop(it.unheard.insert(collection.to_owned(), why)),
            None => drop(it.unheard.remove(collection)),
        });
    }

    async fn subscribe(
        &self,
        api: &Api,
        token: &HeaderValue,
        connected: &Event,
    ) -> Result<(), SourceError> {
        /// What comes with `PB_CONNECT`.
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Connected {
            client_id: String,
        }
        let Ok(Connected { client_id }) = serde_json::from_str(&connected.data) else {
            let (request, answer) = ("GET /api/realtime".into(), connected.data.clone());
            return Err(SourceError::NotPocketBase { request, answer });
        };
        // `{"query":{"fields":"id"}}`: what changed is not told, only that something did.
        let trimmed = "?options=%7B%22query%22%3A%7B%22fields%22%3A%22id%22%7D%7D";
        let topics = self.collections.each_ref().map(|name| format!("{name}/*{trimmed}"));
        let body = json!({ "clientId": client_id, "subscriptions": topics });
        let request = api.client.post(api.url(&["realtime"])).json(&body);
        let answer = api.ask(request, Some(token)).await?;
        if answer.status == StatusCode::NO_CONTENT { Ok(()) } else { Err(answer.failure()) }
    }
}
