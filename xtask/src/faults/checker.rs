//! Three questions, asked of the servers by real clients all the time: was anybody let in whom
//! PocketBase did not allow, was anybody refused whom it did, and is everything in step?

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::truth::{Claim, Harm, Truth, Who};
use crate::support::{Client, Login, poll};

/// How long a server may take to answer before that counts as no answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a client rests between two rounds.
const REST: Duration = Duration::from_millis(5);

/// The clients, gone when dropped.
pub(super) struct Checker {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    over: AtomicBool,
    /// Who stays connected, and what they publish to themselves.
    keepers: Vec<(Who, String)>,
    /// What nobody may ever do.
    never: Vec<Claim>,
}

struct State {
    truth: Truth,
    servers: Vec<Server>,
    wrongs: Vec<String>,
    /// The longest time after which somebody was still let in whom PocketBase allowed no more.
    latest: Duration,
    /// How many answers there were.
    answers: usize,
}

#[derive(Default)]
struct Server {
    /// When we had it stopped, or cut off from its clients.
    outages: Vec<(Instant, Option<Instant>)>,
    /// When it last allowed something.
    seen: BTreeMap<Claim, Instant>,
    /// When it last answered anything.
    answered: Option<Instant>,
    sweep: Option<Sweep>,
    /// Since when all keepers are connected to it.
    kept: Option<Instant>,
}

/// Everything asked once.
struct Sweep {
    begun: Instant,
    ended: Instant,
    /// The first answer that was not what PocketBase says.
    wrong: Option<String>,
}

/// What a server said to a claim.
#[derive(Debug)]
enum Said {
    Yes,
    No,
    Nothing(String),
}

/// What was seen since the last time that this was asked.
pub(super) struct Seen {
    pub(super) wrongs: Vec<String>,
    pub(super) latest: Duration,
}

impl Checker {
    /// Begins to ask these servers.
    pub(super) fn start(
        truth: Truth,
        servers: &[SocketAddr],
        keepers: Vec<(Who, String)>,
        never: Vec<Claim>,
    ) -> Checker {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                truth,
                servers: servers.iter().map(|_| Server::default()).collect(),
                wrongs: Vec::new(),
                latest: Duration::ZERO,
                answers: 0,
            }),
            over: AtomicBool::new(false),
            keepers,
            never,
        });
        let ask = |(number, address): (usize, &SocketAddr)| {
            let address = *address;
            let (asks, keeps) = (shared.clone(), shared.clone());
            [
                thread::spawn(move || asks.ask(number, address)),
                thread::spawn(move || keeps.keep(number, address)),
            ]
        };
        let threads = servers.iter().enumerate().flat_map(ask).collect();
        Checker { shared, threads }
    }

    /// Tells of a change of what PocketBase allows, which `make` makes.
    pub(super) fn change<T>(&self, allowed: &BTreeSet<Claim>, make: impl FnOnce() -> T) -> T {
        self.shared.state().truth.change_begins(Instant::now(), allowed);
        let made = make();
        self.shared.state().truth.change_ends(Instant::now());
        made
    }

    /// Something is broken from now on; `server`: only there.
    pub(super) fn trouble_begins(&self, harm: Harm, server: Option<usize>) {
        self.shared.state().truth.trouble_begins(Instant::now(), harm, server);
    }

    pub(super) fn trouble_ends(&self) {
        self.shared.state().truth.trouble_ends(Instant::now());
    }

    /// The server is not to be blamed for not answering, from now on.
    pub(super) fn outage_begins(&self, server: usize) {
        self.shared.state().servers[server].outages.push((Instant::now(), None));
    }

    pub(super) fn outage_ends(&self, server: usize) {
        for outage in &mut self.shared.state().servers[server].outages {
            outage.1.get_or_insert_with(Instant::now);
        }
    }

    /// Waits until every server says what PocketBase says, and `also` has nothing to add. How long
    /// that took, or what was wrong in the end.
    pub(super) fn in_step(
        &self,
        limit: Duration,
        also: impl Fn() -> Option<String>,
    ) -> Result<Duration, String> {
        let since = Instant::now();
        let mut wrong = String::new();
        let took = poll(limit, || match self.shared.state().wrong(since).or_else(&also) {
            None => Some(since.elapsed()),
            Some(it) => {
                wrong = it;
                None
            }
        });
        took.ok_or(wrong)
    }

    /// What was wrong up to now. It is told once.
    pub(super) fn seen(&self) -> Seen {
        let mut state = self.shared.state();
        Seen {
            wrongs: std::mem::take(&mut state.wrongs),
            latest: std::mem::take(&mut state.latest),
        }
    }

    /// How many answers of nats-server there were since the last time that this was asked.
    pub(super) fn answers(&self) -> usize {
        std::mem::take(&mut self.shared.state().answers)
    }

    /// What was wrong up to now, and stays to be told.
    pub(super) fn wrongs(&self) -> Vec<String> {
        self.shared.state().wrongs.clone()
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks a server everything, again and again.
    fn ask(&self, server: usize, address: SocketAddr) {
        while !self.over.load(Ordering::SeqCst) {
            let begun = Instant::now();
            let wrong = self.sweep(server, address);
            self.state().servers[server].sweep =
                Some(Sweep { begun, ended: Instant::now(), wrong });
            thread::sleep(REST);
        }
    }

    /// Asks a server everything once. The first answer that is not what PocketBase says.
    fn sweep(&self, server: usize, address: SocketAddr) -> Option<String> {
        let mut everybody: BTreeMap<Who, Vec<Claim>> = BTreeMap::new();
        for claim in self.state().truth.claims().chain(&self.never) {
            let theirs = everybody.entry(claim.who.clone()).or_default();
            if claim.subject.is_some() {
                theirs.push(claim.clone());
            }
        }
        let mut wrong = None;
        for (who, claims) in everybody {
            let mut asked = Instant::now();
            let (mut said, mut client) = log_in(address, &who);
            if matches!(said, Said::No) && self.state().is_lapse(server, &who.lets_in(), asked) {
                // A reload turns away whoever is about to log in, and lets them in right after it.
                asked = Instant::now();
                (said, client) = log_in(address, &who);
            }
            let silent = matches!(said, Said::Nothing(_)) && asked.elapsed() >= PATIENCE;
            let amiss = self.state().judge(server, &who.lets_in(), &said, asked);
            wrong = wrong.or(amiss);
            if silent {
                break;
            }
            let Some(client) = &mut client else { continue };
            for claim in claims {
                let asked = Instant::now();
                let subject = claim.subject.as_deref().unwrap_or_default();
                let said = match client.try_to_publish(subject) {
                    Ok(true) => Said::Yes,
                    Ok(false) => Said::No,
                    Err(why) => Said::Nothing(why),
                };
                let amiss = self.state().judge(server, &claim, &said, asked);
                wrong = wrong.or(amiss);
            }
        }
        wrong
    }

    /// Stays connected to a server, and talks to itself over it.
    fn keep(&self, server: usize, address: SocketAddr) {
        let mut clients: Vec<Option<(Client, Instant)>> =
            self.keepers.iter().map(|_| None).collect();
        while !self.over.load(Ordering::SeqCst) {
            for ((who, subject), slot) in self.keepers.iter().zip(&mut clients) {
                let asked = Instant::now();
                let Some((client, before)) = slot else {
                    let connected = Client::connect_within(PATIENCE, address, login(who));
                    *slot = connected.ok().and_then(|mut client| {
                        client.try_to_subscribe(subject, "").ok()?;
                        client.flush().ok()?;
                        Some((client, Instant::now()))
                    });
                    continue;
                };
                let said = talk(client, subject);
                let mut state = self.state();
                match said {
                    Ok(()) => *before = Instant::now(),
                    Err(why) if why.starts_with("no answer") => (),
                    Err(why) => {
                        let excused = state.was_out(server, *before, Instant::now())
                            || state.truth.is_tampered(server, asked);
                        if !excused {
                            let who = &who.name;
                            state.tell(format!(
                                "server {}: lapse: the connection of {who} did not last: {why}",
                                server + 1
                            ));
                        }
                        *slot = None;
                    }
                }
            }
            let all = clients.iter().all(Option::is_some);
            let mut state = self.state();
            let kept = &mut state.servers[server].kept;
            *kept = if all { kept.or(Some(Instant::now())) } else { None };
            drop(state);
            thread::sleep(4 * REST);
        }
    }
}

impl State {
    /// Takes an answer down. What is not as PocketBase says, if anything.
    fn judge(
        &mut self,
        server: usize,
        claim: &Claim,
        said: &Said,
        asked: Instant,
    ) -> Option<String> {
        let now = Instant::now();
        let surely = self.truth.allowed_throughout(claim, asked, now).is_some();
        let withdrawn = self.truth.withdrawn_for(claim, asked, now);
        let number = server + 1;
        let what = match &claim.subject {
            None => format!("{:?} with {:?}", claim.who.name, claim.who.password),
            Some(subject) => format!("{:?} on {subject:?}", claim.who.name),
        };
        let silent = matches!(said, Said::Nothing(_));
        if !silent {
            self.answers += 1;
            self.servers[server].answered = Some(now);
        }
        match said {
            Said::Yes => {
                if self.truth.is_intrusion(server, claim, asked, now) {
                    let since = withdrawn.map_or_else(
                        |()| "it was never allowed".to_owned(),
                        |it| format!("last allowed {:.1} s ago", it.as_secs_f64()),
                    );
                    self.tell(format!("server {number}: intrusion: {what}; {since}"));
                } else if let Ok(late) = withdrawn {
                    self.latest = self.latest.max(late);
                }
                self.servers[server].seen.insert(claim.clone(), now);
                (!surely).then(|| format!("server {number} still allows {what}"))
            }
            Said::No => {
                if self.is_lapse(server, claim, asked) {
                    self.tell(format!("server {number}: lapse: {what} was refused"));
                }
                (withdrawn == Ok(Duration::ZERO))
                    .then(|| format!("server {number} does not allow {what} yet"))
            }
            Said::Nothing(why) => {
                let heard = self.servers[server].answered;
                let long = heard.filter(|it| now.duration_since(*it) > self.truth.limit);
                if let Some(heard) = long
                    && !self.was_out(server, heard, now)
                {
                    self.tell(format!("server {number}: lapse: it answers nobody: {why}"));
                }
                Some(format!("server {number} does not answer: {why}"))
            }
        }
    }

    /// Whether it is wrong that the server did not allow it from that moment until now.
    fn is_lapse(&self, server: usize, claim: &Claim, asked: Instant) -> bool {
        let seen = self.servers[server].seen.get(claim).copied();
        self.truth.is_lapse(server, claim, seen, asked, Instant::now())
    }

    /// Once is enough.
    fn tell(&mut self, wrong: String) {
        const ENOUGH: usize = 50;
        let same = |it: &String| it.split(';').next() == wrong.split(';').next();
        if self.wrongs.len() < ENOUGH && !self.wrongs.iter().any(same) {
            self.wrongs.push(wrong);
        }
    }

    fn was_out(&self, server: usize, from: Instant, until: Instant) -> bool {
        let mut outages = self.servers[server].outages.iter();
        outages.any(|(begun, ended)| *begun <= until && ended.is_none_or(|it| it >= from))
    }

    /// What is not in step, as far as was seen since then.
    fn wrong(&self, since: Instant) -> Option<String> {
        self.servers.iter().enumerate().find_map(|(number, server)| {
            let number = number + 1;
            let sweep = server.sweep.as_ref().filter(|it| it.begun >= since);
            let Some(sweep) = sweep else { return Some(format!("server {number} was not asked")) };
            let amiss = sweep.wrong.clone();
            let kept = server.kept.is_some_and(|it| it <= sweep.ended);
            amiss.or_else(|| (!kept).then(|| format!("server {number}: not all are connected")))
        })
    }
}

/// Tries to be let in.
fn log_in(address: SocketAddr, who: &Who) -> (Said, Option<Client>) {
    match Client::connect_within(PATIENCE, address, login(who)) {
        Ok(client) => (Said::Yes, Some(client)),
        Err(why) if why == "Authorization Violation" => (Said::No, None),
        Err(why) => (Said::Nothing(why), None),
    }
}

fn login(who: &Who) -> Login<'_> {
    if who.name.is_empty() { Login::Nobody } else { Login::Password(&who.name, &who.password) }
}

/// Publishes, and hears it back.
fn talk(client: &mut Client, subject: &str) -> Result<(), String> {
    if !client.try_to_publish(subject)? {
        return Err(format!("it may not publish on {subject:?} any more"));
    }
    // The server delivers before it answers the ping that has followed.
    match client.heard() {
        Some(_) => Ok(()),
        None => Err(format!("what it publishes on {subject:?} does not arrive")),
    }
}
