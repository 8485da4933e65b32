//! The nats-servers that must run the auth file: what they run, the order to reload, and the proof
//! that they did.

mod ask;
mod error;
mod reload;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::{self, Instant};
use tracing::warn;

use crate::{
    apply::{Applied, Digest},
    options::NatsOptions,
};
use ask::{Answer, Ask};
use reload::{Order, Reload};

pub use ask::Running;
pub use error::ServerError;

/// How long servers may take to answer when a reload waits for it.
const GLANCE: Duration = Duration::from_secs(1);
/// How long they may take otherwise: one that is busy with a reload may be slow.
const LOOK: Duration = Duration::from_secs(5);
/// How long a server that is not in its cluster is still expected back.
const ABSENCE: Duration = Duration::from_mins(5);

/// All the servers that must run the auth file.
#[derive(Debug)]
pub struct Servers {
    ask: Ask,
    reload: Reload,
    timeout: Duration,
    known: Vec<Known>,
    /// When the file was replaced that all this is about.
    written: Option<SystemTime>,
    /// Whether an order to reload was taken since.
    ordered: bool,
}

/// What became of one server.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its name in the cluster, or the address that was asked; with nobody to ask, the reload command
    /// or pid file.
    pub server: String,
    /// Its version, if it could be asked.
    pub version: Option<String>,
    /// Whether it runs the file.
    pub state: State,
    /// From the order to reload until the proof, if it was ordered.
    pub took: Option<Duration>,
}

/// Whether a server runs the file.
#[derive(Clone, Debug)]
pub enum State {
    /// It does.
    InStep {
        /// How we know.
        proof: Proof,
        /// What someone should know all the same.
        note: Option<&'static str>,
    },
    /// It does not, or it does not answer. Another try is worth it.
    NotInStep {
        /// Why.
        why: Arc<ServerError>,
    },
    /// It should, but the settings name no way to ask it.
    Unverified {
        /// What is known.
        why: &'static str,
    },
}

/// What shows that a server runs the file, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Its config has the digest of the config on disk.
    Digest,
    /// Its config has the file's stamp.
    Stamp,
    /// It loaded its config after the file was replaced, and after the order to reload.
    LoadTime,
}

/// What is remembered of a server from one look to the next.
#[derive(Debug)]
struct Known {
    server: String,
    id: String,
    address: String,
    /// Since when its cluster has been without it.
    missing: Option<Instant>,
    /// Whether its digest ever was that of the config on disk, so that it has to be again.
    comparable: bool,
    /// Its digest when the file was replaced. As long as it has that, it runs the former file.
    former: Option<String>,
    proven: Option<Proven>,
}

/// A server ran the present file, and this is how that looked.
#[derive(Clone, Debug)]
struct Proven {
    proof: Proof,
    note: Option<&'static str>,
    config_digest: Option<String>,
    config_load_time: SystemTime,
}

/// What a server is held to.
struct Wanted<'a> {
    file: &'a Applied,
    /// What `nats-server -t` makes of the config on disk.
    digest: Option<Digest>,
    /// When it was ordered to reload, if it was.
    ordered: Option<SystemTime>,
}

impl Servers {
    /// Takes the settings; no server need be up. The reload command works in `folder`.
    pub fn new(options: &NatsOptions, folder: &Path) -> Result<Servers, ServerError> {
        Ok(Servers {
            ask: Ask::new(options)?,
            reload: Reload::new(options, folder)?,
            timeout: options.reload_timeout,
            known: Vec::new(),
            written: None,
            ordered: false,
        })
    }

    /// What each server runs now, or why it cannot be asked. Empty: there is no way to ask.
    pub async fn running(&mut self) -> Vec<Result<Running, ServerError>> {
        let answers = self.look(LOOK).await;
        answers.into_iter().map(|answer| answer.running).collect()
    }

    /// Makes every server run the file, and returns when each does or its time is over.
    ///
    /// A server that already does is not disturbed, and one that is down keeps no other from it.
    pub async fn converge(&mut self, file: &Applied) -> Vec<Outcome> {
        let mut wanted = Wanted { file, digest: None, ordered: None };
        let patience = if file.changed { GLANCE } else { LOOK };
        let mut answers = self.look(patience).await;
        if file.changed || self.written != Some(file.written) {
            self.file_was_replaced(file, &answers);
        }
        if !file.changed {
            wanted.digest = digest(file, self.timeout).await;
            self.judge(&answers, &wanted);
        }

        let stale: Vec<&Running> = answers
            .iter()
            .filter_map(|it| it.running.as_ref().ok())
            .filter(|it| self.known(it).proven.is_none())
            .collect();
        // Who cannot be asked is told once, since nobody knows what it runs.
        let silent = answers.is_empty() || answers.iter().any(|it| it.running.is_err());
        let untold = silent && !self.ordered && self.reload.reaches_the_silent();
        if stale.is_empty() && !untold {
            return self.outcomes(answers, &wanted, &[], &BTreeMap::new());
        }

        let begun = Instant::now();
        let deadline = begun + self.timeout;
        wanted.ordered = Some(SystemTime::now());
        let order = self.reload.order(&mut self.ask, &stale, deadline);
        let orders = if file.changed {
            // `nats-server -t` is slow with many users; the servers load the file meanwhile.
            let (orders, digest) = tokio::join!(order, digest(file, self.timeout));
            wanted.digest = digest;
            orders
        } else {
            order.await
        };
        self.ordered = orders.iter().all(|it| it.taken.is_ok());

        let awake: BTreeSet<String> = answers.iter().filter_map(Answer::awake).collect();
        let mut took = BTreeMap::new();
        let mut pause = Duration::from_millis(1);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            answers = self.look(GLANCE).await;
            for id in self.judge(&answers, &wanted) {
                took.insert(id, begun.elapsed());
            }
            let settled = |answer: &Answer| match &answer.running {
                Ok(it) => self.known(it).proven.is_some() || refusal(&orders, &it.id).is_some(),
                // It may be starting again.
                Err(_) => !awake.contains(&answer.server),
            };
            if answers.iter().all(settled) || left.is_zero() {
                return self.outcomes(answers, &wanted, &orders, &took);
            }
            time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Asks every server, and notices which are new, restarted or missing.
    async fn look(&mut self, patience: Duration) -> Vec<Answer> {
        let mut answers = self.ask.everyone(patience).await;
        let present: BTreeSet<String> = answers
            .iter()
            .filter_map(|it| it.running.as_ref().ok())
            .map(|it| it.id.clone())
            .collect();
        for answer in &answers {
            let Ok(running) = &answer.running else { continue };
            if let Some(known) = self.known.iter_mut().find(|it| it.id == running.id) {
                known.missing = None;
                continue;
            }
            let known = Known::new(&answer.server, running);
            let former =
                self.known.iter_mut().find(|it| !present.contains(&it.id) && it.was(&known));
            match former {
                Some(former) => *former = known,
                None => self.known.push(known),
            }
        }
        match &mut self.ask {
            Ask::System(_) if !present.is_empty() => {
                self.known.retain_mut(|it| {
                    present.contains(&it.id)
                        || it.missing.get_or_insert_with(Instant::now).elapsed() < ABSENCE
                });
                let missing = self.known.iter().filter(|it| !present.contains(&it.id));
                answers.extend(missing.map(|it| Answer {
                    server: it.server.clone(),
                    running: Err(ServerError::Missing { server: it.server.clone() }),
                }));
            }
            Ask::System(_) | Ask::Monitors(_) | Ask::Nothing => (),
        }
        answers.sort_by(|a, b| a.server.cmp(&b.server));
        answers
    }

    /// Whatever was proven was proven of the former file.
    fn file_was_replaced(&mut self, file: &Applied, answers: &[Answer]) {
        self.written = Some(file.written);
        self.ordered = false;
        for known in &mut self.known {
            let proven = known.proven.take();
            let mut running = answers.iter().filter_map(|it| it.running.as_ref().ok());
            known.former = match running.find(|it| it.id == known.id) {
                // It was replaced a moment ago, by us.
                Some(running) if file.changed => running.config_digest.clone(),
                Some(_) | None => proven.and_then(|it| it.config_digest).or(known.former.take()),
            };
        }
    }

    /// Holds every answer against what is wanted. Returns whom that newly proved to run the file.
    fn judge(&mut self, answers: &[Answer], wanted: &Wanted) -> Vec<String> {
        let mut newly = Vec::new();
        for running in answers.iter().filter_map(|it| it.running.as_ref().ok()) {
            let known = self.known.iter_mut().find(|it| it.id == running.id);
            let known = known.expect("who answers is known");
            let proven = wanted.proof(known, running);
            if let Some(proven) = &proven {
                known.comparable |= proven.proof == Proof::Digest;
                if known.proven.is_none() {
                    newly.push(running.id.clone());
                }
            }
            known.proven = proven;
        }
        newly
    }

    fn known(&self, running: &Running) -> &Known {
        self.known.iter().find(|it| it.id == running.id).expect("who answers is known")
    }

    fn outcomes(
        &self,
        answers: Vec<Answer>,
        wanted: &Wanted,
        orders: &[Order],
        took: &BTreeMap<String, Duration>,
    ) -> Vec<Outcome> {
        if answers.is_empty() {
            return self.unasked(orders);
        }
        let not = |why: Arc<ServerError>| State::NotInStep { why };
        let outcomes: Vec<Outcome> = answers
            .into_iter()
            .map(|Answer { server, running }| match running {
                Err(why) => {
                    Outcome { server, version: None, state: not(Arc::new(why)), took: None }
                }
                Ok(running) => {
                    let state = match &self.known(&running).proven {
                        Some(it) => State::InStep { proof: it.proof, note: it.note },
                        None => not(refusal(orders, &running.id).unwrap_or_else(|| {
                            Arc::new(ServerError::NotLoaded {
                                server: server.clone(),
                                after: self.timeout,
                                refusal: wanted.file.refusal().map(str::to_owned),
                            })
                        })),
                    };
                    let took = took.get(&running.id).copied();
                    Outcome { server, version: Some(running.version), state, took }
                }
            })
            .collect();
        if outcomes.iter().all(|it| matches!(it.state, State::InStep { .. })) {
            for Order { target, taken } in orders {
                if let Err(error) = taken {
                    warn!(target, %error, "a reload was not ordered, though every server runs the file");
                }
            }
        }
        outcomes
    }

    /// There is nobody to ask, so all that can be told is whether the order was taken.
    fn unasked(&self, orders: &[Order]) -> Vec<Outcome> {
        let why = match self.reload {
            Reload::Command(_) | Reload::Signal(_) => {
                "reloaded, with nothing to ask whether it took"
            }
            Reload::System | Reload::Nothing => "nothing says how to reload or ask nats-server",
        };
        let outcome = |server| {
            let order = orders.iter().find(|it| it.target == server);
            let state = match order.and_then(|it| it.taken.as_ref().err()) {
                Some(why) => State::NotInStep { why: why.clone() },
                None => State::Unverified { why },
            };
            Outcome { server, version: None, state, took: None }
        };
        self.reload.targets().into_iter().map(outcome).collect()
    }
}

impl Wanted<'_> {
    /// What shows that the server runs the file, if anything does.
    fn proof(&self, known: &Known, running: &Running) -> Option<Proven> {
        let proven = |proof, note| Proven {
            proof,
            note,
            config_digest: running.config_digest.clone(),
            config_load_time: running.config_load_time,
        };
        let expected = self.digest.as_ref().filter(|it| it.version == running.version);
        let expected = expected.map(|it| &it.value);
        let differs = match (expected, &running.config_digest) {
            (Some(expected), Some(digest)) if expected == digest => {
                return Some(proven(Proof::Digest, None));
            }
            (Some(_), Some(_)) => true,
            (_, None) | (None, _) => false,
        };

        // Where our file is proven, the difference is someone's edit elsewhere: not ours to load.
        let note = differs.then_some(
            "the main config on disk differs from what the server runs; \
             reload it when that is meant",
        );
        if let Some(stamp) = &self.file.stamp {
            return (running.stamp.as_ref() == Some(stamp)).then(|| proven(Proof::Stamp, note));
        }
        let Some(before) = &known.proven else {
            // A reload that began before the file was replaced may end after it, and may take a
            // minute: the load time moves though the former file was read. The digest would not.
            let former = known.former.is_some() && known.former == running.config_digest;
            let again = self.ordered.is_some() && !self.file.changed;
            let since = self.ordered.map_or(self.file.written, |it| it.max(self.file.written));
            let doubtful = former && !again || differs && known.comparable;
            let loaded = running.loaded > since && !doubtful;
            return loaded.then(|| proven(Proof::LoadTime, note));
        };
        // Every reload since then has read the same file.
        let same = before.config_load_time == running.config_load_time
            || running.config_digest.is_some() && before.config_digest == running.config_digest;
        Some(proven(if same { before.proof } else { Proof::LoadTime }, note))
    }
}

impl Known {
    fn new(server: &str, running: &Running) -> Known {
        Known {
            server: server.into(),
            id: running.id.clone(),
            address: running.address.clone(),
            missing: None,
            comparable: false,
            former: None,
            proven: None,
        }
    }

    /// Whether `next` is this server after a restart. One without a name has only its address.
    fn was(&self, next: &Known) -> bool {
        self.server == next.server
            || self.server == self.id && next.server == next.id && self.address == next.address
    }
}

/// What `nats-server -t` makes of the config on disk.
async fn digest(file: &Applied, timeout: Duration) -> Option<Digest> {
    time::timeout(timeout, file.digest()).await.ok().flatten()
}

/// Why this server has not been told to reload, if so.
fn refusal(orders: &[Order], id: &str) -> Option<Arc<ServerError>> {
    let its_own = orders.iter().find(|it| it.target == id);
    let all = || orders.iter().all(|it| it.taken.is_err()).then(|| orders.first()).flatten();
    its_own.or_else(all)?.taken.as_ref().err().cloned()
}
