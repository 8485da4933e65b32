//! The nats-servers that must run the auth file: what they run, the order to reload, and the proof
//! that they did.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt, mem,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;
use tokio::time::{self, Instant};
use tracing::{debug, info, warn};

use super::{
    Applied, Digest,
    reload::{Order, Reload},
};
use crate::{
    nats::{
        self, Access, Answer, Connection, CutOff, GLANCE, LOOK, LeafNode, Receipt, Running,
        ServerError, few, mark, since_2_12,
    },
    options::NatsOptions,
};

/// How often servers are looked at between passes, and how long one may take to answer before it is
/// called silent: a few seconds together, since people are told how it is *now*.
const WATCH: Duration = Duration::from_millis(1500);
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a server that is not in its cluster is still expected back.
const ABSENCE: Duration = Duration::from_mins(5);

/// What is noted of servers that cannot be asked once they were told to reload.
const TOLD: &str = "told";
/// How long a server may take from reading its config until it has started.
const STARTING: Duration = Duration::from_secs(10);

/// All the servers that must run the auth file.
#[derive(Debug)]
pub struct Servers {
    pub(super) access: Access,
    reload: Reload,
    timeout: Duration,
    known: Vec<Known>,
    /// The hash of the file that all this is about.
    file: String,
    /// When that file was last replaced, or touched by somebody.
    written: SystemTime,
    /// Whether an order to reload was taken since.
    ordered: bool,
    /// Who lost something, and may still be connected as before.
    cut: CutOff,
    receipt: Option<Receipt>,
    /// Which leaf nodes are connected with more rights than their users have.
    leaf_nodes: BTreeSet<LeafNode>,
    /// When servers are looked at next between passes.
    next_look: Instant,
    /// Who was silent at the last of these looks.
    silent: BTreeSet<String>,
}

/// What a look between passes shows of a server.
#[derive(Debug)]
pub(crate) struct Sight {
    /// As in [`Outcome`].
    pub(crate) server: String,
    /// How many clients are connected, if it answered.
    pub(crate) clients: Result<u64, ServerError>,
    /// Whether it runs what it was proven to run.
    pub(crate) as_proven: bool,
}

/// What became of one server.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its name in the cluster, or the address that was asked; with nobody to ask, the reload command
    /// or pid file.
    pub server: String,
    /// What it says of itself, if it could be asked.
    pub running: Option<Running>,
    /// Whether it runs the file.
    pub state: SyncStatus,
    /// From the order to reload until the proof, if it was ordered.
    pub took: Option<Duration>,
}

/// Whether a server runs the file.
#[derive(Clone, Debug)]
pub enum SyncStatus {
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
    /// It should, but the settings name no way to ask it; or it runs the file, and nobody knows what
    /// else it takes its users from.
    Unverified {
        /// What is known.
        why: Cow<'static, str>,
    },
}

impl SyncStatus {
    /// In one word, for scripts.
    pub fn word(&self) -> &'static str {
        match self {
            SyncStatus::InStep { .. } => "in_step",
            SyncStatus::NotInStep { .. } => "not_in_step",
            SyncStatus::Unverified { .. } => "unverified",
        }
    }
}

impl Outcome {
    /// How long it reloaded, as far as that is known: until the proof, or until nobody waited any more.
    pub(crate) fn reloading(&self) -> Option<Duration> {
        if let SyncStatus::NotInStep { why } = &self.state
            && let ServerError::NotLoaded { after, .. } = **why
        {
            return Some(after);
        }
        self.took
    }
}

/// One line: who, of which version, and whether and how we know that it runs the file.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.server)?;
        if let Some(running) = &self.running {
            write!(f, " {}", running.version)?;
        }
        match &self.state {
            SyncStatus::InStep { proof, note } => {
                write!(f, ": in step, shown by {proof}")?;
                if let Some(took) = self.took {
                    write!(f, ", after {took:.1?}")?;
                }
                note.map_or(Ok(()), |it| write!(f, "; {it}"))
            }
            SyncStatus::NotInStep { why } => write!(f, ": not in step: {why}"),
            SyncStatus::Unverified { why } => write!(f, ": unverified: {why}"),
        }
    }
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
    /// It runs the config that was proven before, by another process of ours.
    Earlier,
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Proof::Digest => "the digest of its config",
            Proof::Stamp => "the stamp in its config",
            Proof::LoadTime => "the time it loaded its config",
            Proof::Earlier => "an earlier proof of the same config",
        })
    }
}

/// What is remembered of a server from one look to the next.
#[derive(Debug)]
struct Known {
    server: String,
    id: String,
    version: String,
    address: String,
    /// Whether a stamp in its config would be shown, and no other metadata be lost by it.
    takes_stamps: bool,
    /// Since when its cluster has been without it.
    missing: Option<Instant>,
    /// Whether its digest ever was that of the config on disk, so that it has to be again.
    comparable: bool,
    /// What it said of its config when the file was replaced. As long as it does, it runs the former
    /// file.
    former: Option<String>,
    /// When it had loaded its config before, if it was still loading a former file when this one was
    /// written. It will run that one first.
    under_way: Option<SystemTime>,
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

/// What servers are held to.
#[derive(Debug, Default)]
struct Wanted {
    /// What `nats-server -t` makes of the config on disk.
    digest: Option<Digest>,
    /// When each server was ordered to reload, if it was.
    ordered: BTreeMap<String, Ordered>,
}

/// An order to reload.
#[derive(Clone, Copy, Debug)]
struct Ordered {
    /// When it was given, by our clock.
    at: SystemTime,
    /// When the server had loaded its config before, by its own.
    before: SystemTime,
}

/// Servers on their way to the file.
#[derive(Debug)]
pub(super) struct Convergence {
    wanted: Wanted,
    cut: CutOff,
    /// What became of the orders to reload.
    orders: Vec<Order>,
    /// How long each server took that newly runs the file.
    took: BTreeMap<String, Duration>,
    /// Who answered at first.
    awake: BTreeSet<String>,
    /// Since when each server has been silent.
    silent: BTreeMap<String, Instant>,
    begun: Instant,
    deadline: Instant,
    /// How long to wait until the next look.
    pause: Duration,
    /// What servers said, if there was nothing to tell them.
    at_rest: Option<Vec<Answer>>,
}

impl Servers {
    /// Takes the settings; no server need be up. The reload command works in `folder`.
    pub fn new(options: &NatsOptions, folder: &Path) -> Result<Servers, ServerError> {
        Ok(Servers {
            access: Access::new(options)?,
            reload: Reload::new(options, folder)?,
            timeout: options.reload_timeout,
            known: Vec::new(),
            file: String::new(),
            written: SystemTime::UNIX_EPOCH,
            ordered: false,
            cut: CutOff::default(),
            receipt: None,
            leaf_nodes: BTreeSet::new(),
            next_look: Instant::now() + WATCH,
            silent: BTreeSet::new(),
        })
    }

    /// What an order to reload would do, or why it would come to nothing. Nobody is told anything.
    pub fn rehearse(&self) -> Vec<Result<String, ServerError>> {
        self.reload.rehearse()
    }

    /// What each server runs now, or why it cannot be asked. Empty: there is no way to ask.
    pub async fn running(&mut self) -> Vec<Result<Running, ServerError>> {
        let answers = self.look(LOOK).await;
        answers.into_iter().map(|answer| answer.running).collect()
    }

    /// How many connections each user of the global account has, a map for each server. `None`:
    /// nobody tells.
    pub async fn clients(&mut self) -> Option<Vec<BTreeMap<String, usize>>> {
        let answers = self.look(LOOK).await;
        self.access.clients(&answers, LOOK).await
    }

    /// Makes every server reload, whatever it runs, and tells how long each took: from the order until
    /// it had loaded its config. `None`: it was told, and nobody can be asked.
    ///
    /// While it reloads, a server lets nobody in.
    pub async fn try_reload(
        &mut self,
    ) -> Vec<(String, Result<Option<Duration>, Arc<ServerError>>)> {
        let answers = self.look(LOOK).await;
        let before: Vec<&Running> = answers.iter().filter_map(Answer::ok).collect();
        let begun = Instant::now();
        let deadline = begun + self.timeout;
        let orders = self.reload.order(&self.access, &before, deadline).await;
        if answers.is_empty() {
            let told = |it: Order| (it.target, it.taken.map(|()| None));
            return orders.into_iter().map(told).collect();
        }
        let mut took: BTreeMap<String, Duration> = BTreeMap::new();
        let mut pause = Duration::from_millis(1);
        loop {
            for answer in self.access.everyone(GLANCE).await {
                let Ok(now) = answer.running else { continue };
                let former = before.iter().find(|it| it.id == now.id);
                if former.is_some_and(|it| it.config_load_time != now.config_load_time) {
                    took.entry(now.id).or_insert_with(|| begun.elapsed());
                }
            }
            let settled =
                |it: &&Running| took.contains_key(&it.id) || refusal(&orders, &it.id).is_some();
            if before.iter().all(settled) || Instant::now() >= deadline {
                break;
            }
            time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        let outcome = |Answer { server, running }| match running {
            Err(error) => (server, Err(Arc::new(error))),
            Ok(running) => {
                let late =
                    || ServerError::NotReloaded { server: server.clone(), after: self.timeout };
                let tried = match took.get(&running.id) {
                    Some(took) => Ok(Some(*took)),
                    None => Err(refusal(&orders, &running.id).unwrap_or_else(|| Arc::new(late()))),
                };
                (server, tried)
            }
        };
        answers.into_iter().map(outcome).collect()
    }

    /// What each server that is proven to run the file says of its config.
    ///
    /// Where there is nobody to ask: whether they were told.
    pub fn proven(&self) -> BTreeSet<String> {
        let told = matches!(self.access, Access::Nothing) && self.ordered;
        let marks = self.known.iter().filter_map(|it| it.proven.as_ref()).map(Proven::mark);
        marks.chain(told.then(|| TOLD.to_owned())).collect()
    }

    /// Takes back every proof: the config that was proven does not take its users from the file.
    pub fn forget(&mut self) {
        self.known.iter_mut().for_each(|it| it.proven = None);
    }

    /// Who answers on the system account as well, and is none of the servers that must run the file:
    /// it is in no cluster that `system_url` leads to. Nobody tells it anything.
    pub fn strangers(&self) -> Vec<&Running> {
        self.access.strangers()
    }

    /// Looks at the servers between passes. Returns once one runs something else than it was proven to,
    /// or is new: it was started again, or has come back to its cluster. Dropping the future loses
    /// nothing.
    pub(crate) async fn drifted(&mut self, mut seen: impl FnMut(&[Sight], &[&Running])) {
        loop {
            time::sleep_until(self.next_look).await;
            let answers = self.look(PATIENCE).await;
            self.next_look = Instant::now() + WATCH;
            let as_proven = |it: &Running| {
                self.known(it).proven.as_ref().is_some_and(|proven| proven.mark() == it.mark())
            };
            let sight = |Answer { server, running }| Sight {
                server,
                as_proven: running.as_ref().is_ok_and(as_proven),
                clients: running.map(|it| it.connections),
            };
            let sights: Vec<Sight> = answers.into_iter().map(sight).collect();
            seen(&sights, &self.access.strangers());
            self.tell_silent(&sights);
            if sights.iter().any(|it| it.clients.is_ok() && !it.as_proven) {
                return;
            }
        }
    }

    /// Says so once when a server falls silent, and when it is back.
    fn tell_silent(&mut self, sights: &[Sight]) {
        let mut silent = BTreeSet::new();
        for Sight { server, clients, .. } in sights {
            if let Err(error) = clients {
                if !self.silent.contains(server) {
                    warn!(server, %error, hint = error.hint(), "a nats-server is silent");
                }
                silent.insert(server.clone());
            } else if self.silent.contains(server) {
                info!(server, "a nats-server answers again");
            }
        }
        self.silent = silent;
    }

    /// Which servers run the file now. None is told to reload.
    pub async fn survey(&mut self, file: &Applied) -> Vec<Outcome> {
        let answers = self.look(LOOK).await;
        let digest = digest(file, self.timeout).await;
        let wanted = Wanted { digest, ordered: BTreeMap::new() };
        self.start_over_for(file, &answers);
        self.compare(&answers, file, &wanted);
        let mut cut = self.cut.begin();
        cut.users.extend(file.losing.iter().cloned());
        self.leaf_nodes = self.left_over(file, &cut, &answers).await;
        self.outcomes(answers, file, &wanted, &[], &BTreeMap::new())
    }

    /// Whether the file needs a stamp, and every server knows stamps.
    ///
    /// A single server of the version that makes the digest (`judge`) shows the digest instead.
    pub async fn need_stamp(&mut self, judge: Option<&str>) -> bool {
        let one = |known: &Known| Some(known.version.as_str()) == judge;
        if let [known] = &self.known[..]
            && one(known)
        {
            return false;
        }
        let answers = self.look(GLANCE).await;
        // Of one that is down it counts what it was: it may come back while the file is replaced, and
        // nothing else would tell which one it has read.
        let knows =
            answers.len() <= self.known.len() && self.known.iter().all(|it| it.takes_stamps);
        let shows = matches!(&self.known[..], [known] if one(known));
        !answers.is_empty() && knows && !shows
    }

    /// How many connections these users have now, over all servers that tell; and why others do not.
    /// Who has none is not in it.
    ///
    /// `None`: the settings name no system account, and nobody else knows.
    pub async fn connections(
        &mut self,
        users: &BTreeSet<String>,
    ) -> Option<(BTreeMap<String, usize>, Option<ServerError>)> {
        self.access.system()?;
        let answers = self.look(LOOK).await;
        let system = self.access.system()?;
        let deadline = Instant::now() + LOOK;
        let each = answers
            .into_iter()
            .map(async |answer| system.connections(&answer.running?, users, deadline).await);
        let (mut counts, mut failure) = (BTreeMap::new(), None);
        for found in join_all(each).await {
            match found {
                Ok(found) => {
                    for connection in found {
                        *counts.entry(connection.user).or_default() += 1;
                    }
                }
                Err(error) => failure = Some(error),
            }
        }
        Some((counts, failure))
    }

    /// Whether no server that answers is too old for stamps: it would refuse the whole file.
    pub async fn know_stamps(&mut self) -> bool {
        let answers = self.look(GLANCE).await;
        answers.iter().filter_map(Answer::ok).all(|it| since_2_12(&it.version))
    }

    /// Closes the connections that these users have now, with the next order to reload.
    pub fn cut_off(&mut self, losing: &[String]) {
        self.cut.users.extend(losing.iter().cloned());
    }

    /// Who lost something, as long as not every server that could be asked has been seen without a leaf
    /// node of theirs from before; and the leaf nodes that are connected as before.
    pub fn leaf_nodes(&self) -> (&BTreeSet<String>, &BTreeSet<LeafNode>) {
        (&self.cut.users, &self.leaf_nodes)
    }

    /// What came of that, if there was somebody to cut off and the system account to do it.
    pub fn receipt(&mut self) -> Option<Receipt> {
        self.receipt.take()
    }

    /// Makes every server run the file, and returns when each does or its time is over.
    ///
    /// A server that already does is not disturbed, and one that is down keeps no other from it.
    pub async fn converge(&mut self, file: &Applied) -> Vec<Outcome> {
        let mut convergence = self.begin(file).await;
        loop {
            match self.step(file, &mut convergence).await {
                Ok(outcomes) => return outcomes,
                Err(pause) => time::sleep(pause).await,
            }
        }
    }

    /// Tells the servers that do not run the file to reload, and closes the connections of those from
    /// whom something is revoked.
    pub(super) async fn begin(&mut self, file: &Applied) -> Convergence {
        let patience = if file.changed { GLANCE } else { LOOK };
        let answers = self.look(patience).await;
        self.start_over_for(file, &answers);
        self.cut.users.extend(file.losing.iter().cloned());
        let begun = Instant::now();
        let mut convergence = Convergence {
            wanted: Wanted::default(),
            cut: self.cut.begin(),
            orders: Vec::new(),
            took: BTreeMap::new(),
            awake: answers.iter().filter_map(Answer::awake).collect(),
            silent: BTreeMap::new(),
            begun,
            deadline: begun + self.timeout,
            pause: Duration::from_millis(1),
            at_rest: None,
        };
        if !file.changed {
            self.ordered |= matches!(self.access, Access::Nothing) && file.proven.contains(TOLD);
            convergence.wanted.digest = digest(file, self.timeout).await;
            self.compare(&answers, file, &convergence.wanted);
        }

        let stale: Vec<&Running> = answers
            .iter()
            .filter_map(Answer::ok)
            .filter(|it| self.known(it).proven.is_none())
            .collect();
        if stale.is_empty() && !self.is_unordered(&answers) {
            convergence.at_rest = Some(answers);
            return convergence;
        }

        convergence.begun = Instant::now();
        convergence.deadline = convergence.begun + self.timeout;
        convergence.wanted.order(&stale);
        debug!(servers = stale.len(), "ordered to reload");
        let deadline = convergence.deadline;
        let order = self.order(file, &stale, &mut convergence.cut, &answers, deadline);
        convergence.orders = if file.changed {
            // `nats-server -t` is slow with many users; the servers load the file meanwhile.
            let (orders, digest) = tokio::join!(order, digest(file, self.timeout));
            convergence.wanted.digest = digest;
            orders
        } else {
            order.await
        };
        self.ordered = convergence.orders.iter().all(|it| it.taken.is_ok());
        convergence
    }

    /// Asks every server once, and closes connections again that came back. What became of each once
    /// all run the file or their time is over; until then, when to ask again.
    pub(super) async fn step(
        &mut self,
        file: &Applied,
        convergence: &mut Convergence,
    ) -> Result<Vec<Outcome>, Duration> {
        if let Some(answers) = convergence.at_rest.take() {
            let deadline = Instant::now();
            return Ok(self.conclude(file, convergence, answers, deadline).await);
        }
        let Convergence { wanted, cut, orders, took, awake, silent, begun, deadline, .. } =
            convergence;
        let (begun, deadline) = (*begun, *deadline);
        let asked = Instant::now();
        let over = asked >= deadline;
        let answers = self.look(GLANCE).await;
        silent.retain(|name, _| answers.iter().any(|it| it.server == *name && it.running.is_err()));
        cut.ordered(&self.finished_previous_load(&answers));
        for id in self.compare(&answers, file, wanted) {
            let mut running = answers.iter().filter_map(Answer::ok);
            let running = running.find(|it| it.id == id);
            let ordered = wanted.ordered.get(&id);
            let reload = running.zip(ordered).map(|(it, order)| it.loaded.duration_since(order.at));
            debug!(?reload, took = ?begun.elapsed(), "proven");
            took.insert(id, begun.elapsed());
        }
        let late = answers
            .iter()
            .filter_map(Answer::ok)
            .filter(|it| self.known(it).proven.is_none() && !wanted.ordered.contains_key(&it.id));
        let late: Vec<&Running> = late.collect();
        if !late.is_empty() {
            wanted.order(&late);
            orders.extend(self.order(file, &late, cut, &answers, deadline).await);
        }
        let mut settled = |answer: &Answer| {
            if let Ok(it) = &answer.running {
                // A digest is shown once the reload begins, and who came back just before that
                // may not be listed yet.
                let over = self.access.system().is_none() || !cut.awaits(it);
                return self.known(it).proven.is_some() && over
                    || refusal(orders, &it.id).is_some()
                    || begun.elapsed() > GLANCE && self.needs_restart(file, it).is_some();
            }
            // It may be starting again. But no other waits long for that.
            let since = *silent.entry(answer.server.clone()).or_insert(asked);
            !awake.contains(&answer.server) || since.elapsed() >= LOOK
        };
        if answers.iter().all(&mut settled) || over {
            return Ok(self.conclude(file, convergence, answers, deadline).await);
        }
        if let Some(system) = self.access.system()
            && file.changed
            && file.refusal().is_none()
        {
            cut.again(system, &obeying(&answers, orders)).await;
        }
        let pause = convergence.pause;
        convergence.pause = (pause * 2).min(Duration::from_millis(50));
        Err(pause)
    }

    /// Whether servers still obey while they reload: another order, or one to close a connection.
    pub(super) fn stay_free(&self) -> bool {
        self.reload.leaves_servers_free()
    }

    /// Leaves servers on their way. Whoever is still to be cut off is so with the next order.
    pub(super) fn leave(&mut self, convergence: Convergence) {
        if convergence.at_rest.is_none() {
            self.cut = convergence.cut;
        }
    }

    /// Whether there are servers that cannot be asked and were not told to reload. They are told once,
    /// since nobody knows what they run; unless they have shown that.
    fn is_unordered(&self, answers: &[Answer]) -> bool {
        let all_proven = !self.known.is_empty() && self.known.iter().all(|it| it.proven.is_some());
        let nobody = answers.iter().all(|it| it.running.is_err());
        let unknown = |it: &Answer| match self.known.iter().find(|known| known.server == it.server)
        {
            Some(known) => it.running.is_err() && known.proven.is_none(),
            None => it.running.is_err() && !(nobody && all_proven),
        };
        let silent = answers.is_empty() || answers.iter().any(unknown);
        silent && !self.ordered && self.reload.reaches_the_silent()
    }

    /// Orders the stale servers to reload, and sends away who is to go as soon as that is of use.
    async fn order(
        &self,
        file: &Applied,
        stale: &[&Running],
        cut: &mut CutOff,
        answers: &[Answer],
        deadline: Instant,
    ) -> Vec<Order> {
        cut.ordered(stale);
        let order = self.reload.order(&self.access, stale, deadline);
        // Where the file is not new, a reload has failed, and may fail again: they would be back.
        let Some(system) = self.access.system().filter(|_| file.changed) else {
            return order.await;
        };
        let soon = deadline.min(Instant::now() + GLANCE);
        if !matches!(self.reload, Reload::System) {
            let orders = order.await;
            cut.round(system, &obeying(answers, &orders), soon).await;
            return orders;
        }
        // A server that reloads hears nothing else over the system account until it has; so they
        // are sent away the moment before, and are not back in time.
        let kicks = cut.send(system, &obeying(answers, &[]), soon).await;
        tokio::join!(order, cut.gone(system, kicks, soon)).0
    }

    /// Makes sure that nobody is left who was to be cut off, and tells what became of each server.
    async fn conclude(
        &mut self,
        file: &Applied,
        convergence: &mut Convergence,
        answers: Vec<Answer>,
        deadline: Instant,
    ) -> Vec<Outcome> {
        let cut = &mut convergence.cut;
        let running = answers.iter().filter_map(Answer::ok);
        let proven: Vec<_> = running.filter(|it| self.known(it).proven.is_some()).collect();
        self.cut = cut.after(&proven);
        if let Some(system) = self.access.system() {
            self.receipt = cut.finish(system, &proven, deadline).await;
        }
        self.leaf_nodes = self.left_over(file, cut, &answers).await;
        if let Some(system) = self.access.system() {
            let patience = Instant::now() + GLANCE;
            while !self.leaf_nodes.is_empty() && Instant::now() < patience {
                system.close(&self.leaf_nodes, patience).await;
                self.leaf_nodes = self.left_over(file, cut, &answers).await;
            }
        }
        if proven.len() < answers.len() || answers.is_empty() {
            // With the next pass, then.
            self.cut.users = mem::take(&mut cut.users);
        }
        let Convergence { wanted, orders, took, .. } = convergence;
        self.outcomes(answers, file, wanted, orders, took)
    }

    /// The leaf nodes that are connected with more rights than the file gives their users.
    async fn left_over(
        &self,
        file: &Applied,
        cut: &CutOff,
        answers: &[Answer],
    ) -> BTreeSet<LeafNode> {
        let mut known: BTreeSet<LeafNode> = &self.leaf_nodes | &file.leaf_nodes;
        if known.is_empty() && cut.users.is_empty() && !file.tells_leaf_nodes() {
            return known;
        }
        // Of one that is silent nothing new is known; of one that is gone, that they are too.
        if answers.iter().all(|it| it.running.is_ok()) {
            known.retain(|it| answers.iter().filter_map(Answer::ok).any(|now| now.id == it.server));
        }
        for answer in answers {
            let Some(running) = answer.ok() else { continue };
            let proven = self.known(running).proven.is_some();
            let connected = match self.access.leaf_nodes(answer, Instant::now() + GLANCE).await {
                Ok(connected) => connected,
                Err(error) => {
                    warn!(server = answer.server, %error, "which leaf nodes are connected is not known");
                    continue;
                }
            };
            let (mut theirs, others): (BTreeSet<_>, BTreeSet<_>) =
                known.into_iter().partition(|it| it.server == running.id);
            theirs.retain(|it| connected.iter().any(|now| now.number == it.number));
            // Of several, each may let in leaf nodes by a main config of its own.
            let barred = |it: &Connection| {
                answers.len() == 1 && file.lets_in_leaf_node(&it.user) == Some(false)
            };
            let found =
                connected.iter().filter(|it| proven && (cut.concerns(running, it) || barred(it)));
            theirs.extend(found.map(|it| LeafNode {
                server: it.server.clone(),
                number: it.number,
                user: it.user.clone(),
            }));
            known = &others | &theirs;
        }
        known
    }

    /// Asks every server, and notices which are new, restarted or missing.
    pub(super) async fn look(&mut self, patience: Duration) -> Vec<Answer> {
        let mut answers = self.access.everyone(patience).await;
        let present: BTreeSet<String> =
            answers.iter().filter_map(Answer::ok).map(|it| it.id.clone()).collect();
        for answer in &answers {
            let Ok(running) = &answer.running else { continue };
            if let Some(known) = self.known.iter_mut().find(|it| it.id == running.id) {
                known.missing = None;
                known.takes_stamps = running.takes_stamps();
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
        match &mut self.access {
            Access::System(_) if !present.is_empty() => {
                self.known.retain_mut(|it| {
                    present.contains(&it.id)
                        || it.missing.get_or_insert_with(Instant::now).elapsed() < ABSENCE
                });
                // Who is not understood is there all the same.
                let garbled: BTreeSet<&str> =
                    answers.iter().filter(|it| it.running.is_err()).map(|it| &*it.server).collect();
                let missing = self.known.iter().filter(|it| !present.contains(&it.id));
                let missing = missing.filter(|it| !garbled.contains(&*it.server));
                let mut missing: Vec<String> = missing.map(|it| it.server.clone()).collect();
                // One that was busy whenever we looked is in nobody's memory but its cluster's.
                let absent = missing.len() + garbled.len();
                if nats::unanswered(answers.iter().filter_map(Answer::ok)) > absent {
                    missing.push("another server of the cluster".into());
                }
                answers.extend(missing.into_iter().map(|server| Answer {
                    running: Err(ServerError::Missing { server: server.clone() }),
                    server,
                }));
            }
            Access::System(_) | Access::Monitors(_) | Access::Nothing => (),
        }
        answers.sort_by(|a, b| a.server.cmp(&b.server));
        answers
    }

    /// Forgets what was proven of another file, which we or another process has replaced.
    fn start_over_for(&mut self, file: &Applied, answers: &[Answer]) {
        // If it was touched, it may have been another file in between, which a server has loaded.
        if !file.changed && self.file == file.hash && self.written == file.written {
            return;
        }
        self.file.clone_from(&file.hash);
        self.written = file.written;
        self.ordered = false;
        for known in &mut self.known {
            let proven = known.proven.take();
            let mut running = answers.iter().filter_map(Answer::ok);
            let running = running.find(|it| it.id == known.id);
            known.former = match running {
                // It was replaced a moment ago, by us.
                Some(running) if file.changed => Some(running.mark()),
                Some(_) | None => proven.map(|it| it.mark()).or(known.former.take()),
            };
            let over = |it: &SystemTime| running.is_some_and(|now| now.config_load_time != *it);
            known.under_way = self.cut.before(&known.id).filter(|it| !over(it));
        }
    }

    /// The servers that have loaded the former file which they were still loading, and only then begin
    /// with this one.
    fn finished_previous_load<'a>(&mut self, answers: &'a [Answer]) -> Vec<&'a Running> {
        let mut passed_by = Vec::new();
        for running in answers.iter().filter_map(Answer::ok) {
            let known = self.known.iter_mut().find(|it| it.id == running.id);
            let known = known.expect("who answers is known");
            if known.under_way.take_if(|it| *it != running.config_load_time).is_some() {
                known.former = Some(running.mark());
                passed_by.push(running);
            }
        }
        passed_by
    }

    /// Holds every answer against what is wanted. Returns whom that newly proved to run the file.
    fn compare(&mut self, answers: &[Answer], file: &Applied, wanted: &Wanted) -> Vec<String> {
        let mut newly = Vec::new();
        for running in answers.iter().filter_map(Answer::ok) {
            let known = self.known.iter_mut().find(|it| it.id == running.id);
            let known = known.expect("who answers is known");
            if known.under_way == Some(running.config_load_time) {
                continue;
            }
            let proven = wanted.proof(file, known, running);
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

    /// Why the server refuses to reload until it is restarted. Several may have several main configs.
    fn needs_restart(&self, file: &Applied, running: &Running) -> Option<String> {
        if self.known.len() == 1 { file.needs_restart(&running.fixed) } else { None }
    }

    fn outcomes(
        &self,
        answers: Vec<Answer>,
        file: &Applied,
        wanted: &Wanted,
        orders: &[Order],
        took: &BTreeMap<String, Duration>,
    ) -> Vec<Outcome> {
        if answers.is_empty() {
            return self.unasked(orders);
        }
        let not = |why: Arc<ServerError>| SyncStatus::NotInStep { why };
        let outcomes: Vec<Outcome> = answers
            .into_iter()
            .map(|Answer { server, running }| match running {
                Err(why) => {
                    Outcome { server, running: None, state: not(Arc::new(why)), took: None }
                }
                Ok(running) => {
                    let left = self.keeps_leaf_nodes(&server, &running);
                    let state = match (&self.known(&running).proven, left, file.doubt()) {
                        (Some(_), Some(why), _) => not(Arc::new(why)),
                        (Some(_), None, Some(why)) => SyncStatus::Unverified { why: why.into() },
                        (Some(it), None, None) => {
                            SyncStatus::InStep { proof: it.proof, note: it.note }
                        }
                        (None, ..) => not(refusal(orders, &running.id).unwrap_or_else(|| {
                            let server = server.clone();
                            let restart = self.needs_restart(file, &running);
                            Arc::new(match (wanted.ordered.get(&running.id), restart) {
                                (None, _) => ServerError::Stale { server },
                                (_, Some(reason)) => ServerError::NeedsRestart { server, reason },
                                (Some(_), None) => ServerError::NotLoaded {
                                    server,
                                    after: self.timeout,
                                    refusal: file.refusal().map(str::to_owned),
                                },
                            })
                        })),
                    };
                    let took = took.get(&running.id).copied();
                    Outcome { server, running: Some(running), state, took }
                }
            })
            .collect();
        if outcomes.iter().all(|it| matches!(it.state, SyncStatus::InStep { .. })) {
            for Order { target, taken } in orders {
                if let Err(error) = taken {
                    warn!(target, %error, "a reload was not ordered, though every server runs the file");
                }
            }
        }
        outcomes
    }

    /// What is not in force on a server that runs the file, if it has leaf nodes from before.
    fn keeps_leaf_nodes(&self, server: &str, running: &Running) -> Option<ServerError> {
        let theirs = self.leaf_nodes.iter().filter(|it| it.server == running.id);
        let users: Vec<String> = theirs.map(|it| it.user.clone()).collect();
        (!users.is_empty()).then(|| ServerError::LeafNodes {
            server: server.to_owned(),
            count: users.len(),
            users: few(&users.into_iter().collect()),
            told: self.access.system().is_some(),
        })
    }

    /// There is nobody to ask, so all that can be told is whether the order was taken.
    fn unasked(&self, orders: &[Order]) -> Vec<Outcome> {
        let why = match self.reload {
            _ if orders.is_empty() && !self.ordered => "there is nothing to ask what it runs",
            Reload::Command(_) | Reload::Signal(_) => {
                "reloaded, with nothing to ask whether it took"
            }
            Reload::System | Reload::Nothing => "nothing says how to reload or ask nats-server",
        };
        let outcome = |server| {
            let order = orders.iter().find(|it| it.target == server);
            let state = match order.and_then(|it| it.taken.as_ref().err()) {
                Some(why) => SyncStatus::NotInStep { why: why.clone() },
                None => SyncStatus::Unverified { why: why.into() },
            };
            Outcome { server, running: None, state, took: None }
        };
        self.reload.targets().into_iter().map(outcome).collect()
    }
}

impl Wanted {
    /// Who was ordered to reload may prove by the time that it did.
    fn order(&mut self, servers: &[&Running]) {
        let at = SystemTime::now();
        let order = |it: &&Running| (it.id.clone(), Ordered { at, before: it.config_load_time });
        self.ordered.extend(servers.iter().map(order));
    }

    /// What shows that the server runs the file, if anything does.
    fn proof(&self, file: &Applied, known: &Known, running: &Running) -> Option<Proven> {
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
        if let Some(stamp) = &file.stamp {
            return (running.stamp.as_ref() == Some(stamp)).then(|| proven(Proof::Stamp, note));
        }
        let Some(before) = &known.proven else {
            if file.proven.contains(&running.mark()) {
                return Some(proven(Proof::Earlier, note));
            }
            // A reload that began before the file was replaced may end after it, and may take a
            // minute: the load time moves though the former file was read. The digest would not.
            let former = known.former.as_ref() == Some(&running.mark());
            let ordered = self.ordered.get(&running.id);
            let again = ordered.is_some() && !file.changed;
            // One that starts may have read what was there just before.
            let starting = if running.reloaded { Duration::ZERO } else { STARTING };
            let since = ordered.map_or(file.written + starting, |it| it.at);
            let later = running.loaded > since.max(file.written);
            // If the file or the order is of a time that is still to come, our clock was set back
            // since, and no load would ever be later. But that there was one since the order needs no
            // clock. Without an order, one is given, and that is the end of it.
            let set_back = |it: &Ordered| it.at > SystemTime::now() || file.written > it.at;
            let anew =
                ordered.is_some_and(|it| set_back(it) && running.config_load_time != it.before);
            let loaded = (later || anew) && (again || !former);
            // Unless we just ordered it, nobody knows whether the config that was loaded then
            // included the file. If the main config is another by now, it may not have.
            let another = differs || file.main_changed.is_some_and(|it| it > running.loaded);
            let doubt = if ordered.is_some() { differs && known.comparable } else { another };
            return (loaded && !doubt).then(|| proven(Proof::LoadTime, note));
        };
        // Every reload since then has read the same file.
        let same = before.config_load_time == running.config_load_time
            || running.config_digest.is_some() && before.config_digest == running.config_digest;
        Some(proven(if same { before.proof } else { Proof::LoadTime }, note))
    }
}

impl Proven {
    /// As [`Running::mark`].
    fn mark(&self) -> String {
        mark(self.config_digest.as_deref(), self.config_load_time)
    }
}

impl Known {
    fn new(server: &str, running: &Running) -> Known {
        Known {
            server: server.into(),
            id: running.id.clone(),
            version: running.version.clone(),
            address: running.address.clone(),
            takes_stamps: running.takes_stamps(),
            missing: None,
            comparable: false,
            former: None,
            under_way: None,
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

/// The servers that were not kept from reloading, as far as is known.
fn obeying<'a>(answers: &'a [Answer], orders: &[Order]) -> Vec<&'a Running> {
    let running = answers.iter().filter_map(Answer::ok);
    running.filter(|it| refusal(orders, &it.id).is_none()).collect()
}

/// Why this server has not been told to reload, if so.
fn refusal(orders: &[Order], id: &str) -> Option<Arc<ServerError>> {
    let its_own = orders.iter().find(|it| it.target == id);
    let all = || orders.iter().all(|it| it.taken.is_err()).then(|| orders.first()).flatten();
    its_own.or_else(all)?.taken.as_ref().err().cloned()
}
