//! Closing the connections of those who lost something, before their server's reload gets to them.
//!
//! A reload looks at one client after another, and that takes minutes where there are thousands. It
//! lets nobody in meanwhile, so whoever is sent away at its start returns with the new rights.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, mem,
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{
    Connection, GLANCE, Running, ServerError,
    system::{Kicks, System},
};

/// When to look again for those who came back before the reload began; then after twice as long.
const AGAIN: Duration = Duration::from_millis(100);

/// Which connections were closed, since their users have less than before.
#[derive(Debug)]
pub struct Receipt {
    /// Whose.
    pub users: BTreeSet<String>,
    /// How many.
    pub connections: usize,
    /// On how many servers.
    pub servers: usize,
    /// From the order to reload until the last was closed.
    pub took: Duration,
    /// Why it is not known that none is left. Their server closes them when its reload gets there.
    pub failure: Option<ServerError>,
}

/// A cut-off under way, or to come.
#[derive(Debug)]
pub(crate) struct CutOff {
    /// Who lost something.
    pub(crate) users: BTreeSet<String>,
    begun: Instant,
    /// When to look again, and how long that is after the last look.
    next: (Instant, Duration),
    /// When servers that were ordered to reload had loaded their config before.
    before: BTreeMap<String, SystemTime>,
    closed: BTreeSet<Connection>,
    took: Duration,
    /// Why the last look may have missed somebody.
    failure: Option<ServerError>,
}

impl Default for CutOff {
    /// Of nobody.
    fn default() -> CutOff {
        let now = Instant::now();
        CutOff {
            users: BTreeSet::new(),
            begun: now,
            next: (now + AGAIN, AGAIN),
            before: BTreeMap::new(),
            closed: BTreeSet::new(),
            took: Duration::ZERO,
            failure: None,
        }
    }
}

impl CutOff {
    /// The same, beginning now. What is not over is still there if this is dropped.
    pub(crate) fn begin(&self) -> CutOff {
        CutOff {
            users: self.users.clone(),
            before: self.before.clone(),
            closed: self.closed.clone(),
            took: self.took,
            ..CutOff::default()
        }
    }

    /// These servers are to load the file, and run another one until then.
    pub(crate) fn ordered(&mut self, stale: &[&Running]) {
        for it in stale {
            let before = self.before.insert(it.id.clone(), it.config_load_time);
            if before.is_some_and(|before| before != it.config_load_time) {
                // It has loaded a former one first, and may have let them in with that.
                self.next = (Instant::now(), AGAIN);
            }
        }
    }

    /// What the next one has to know: which of these servers show what they run, and are not done
    /// with loading it.
    pub(crate) fn after(&self, proven: &[&Running]) -> CutOff {
        let loading = proven.iter().filter(|it| self.before(&it.id) == Some(it.config_load_time));
        let before = loading.map(|it| (it.id.clone(), it.config_load_time)).collect();
        CutOff { before, ..CutOff::default() }
    }

    /// Whether the server's reload may not have looked yet at everybody who is to go.
    pub(crate) fn awaits(&self, running: &Running) -> bool {
        !self.users.is_empty() && self.before(&running.id) == Some(running.config_load_time)
    }

    /// When a server had loaded its config that was ordered to load another, if that is not over.
    pub(crate) fn before(&self, server: &str) -> Option<SystemTime> {
        self.before.get(server).copied()
    }

    /// Sends away who is to go, and waits until they are gone. Returns how many there were.
    pub(crate) async fn round(
        &mut self,
        system: &System,
        servers: &[&Running],
        deadline: Instant,
    ) -> usize {
        let kicks = self.send(system, servers, deadline).await;
        self.gone(system, kicks, deadline).await
    }

    /// As [`CutOff::round`], if it is time for another one.
    pub(crate) async fn again(&mut self, system: &System, servers: &[&Running]) {
        let (next, pause) = self.next;
        let now = Instant::now();
        if now >= next {
            self.round(system, servers, now + GLANCE).await;
            // A server that does not reload after all would let them in again and again.
            self.next = (Instant::now() + pause * 2, pause * 2);
        }
    }

    /// Sends away who is to go, ahead of anything that is asked of the servers from now on.
    pub(crate) async fn send(
        &mut self,
        system: &System,
        servers: &[&Running],
        deadline: Instant,
    ) -> Option<Kicks> {
        self.failure = None;
        if self.users.is_empty() {
            return None;
        }
        let each = servers.iter().map(async |it| {
            let mut found = system.connections(it, &self.users, deadline).await?;
            // What a server has closed it may list for another moment.
            found.retain(|found| found.start < self.former(it) && !self.closed.contains(found));
            Ok(found)
        });
        let each = join_all(each).await;
        let mut found = Vec::new();
        for its in each {
            // That one server does not answer keeps nobody at another.
            match its {
                Ok(its) => found.extend(its),
                Err(error) => self.failure = Some(error),
            }
        }
        if found.is_empty() {
            return None;
        }
        system.kick(found).await.map_err(|it| self.failure = Some(it)).ok()
    }

    /// Waits until those who were sent away are gone. Returns how many there were.
    pub(crate) async fn gone(
        &mut self,
        system: &System,
        kicks: Option<Kicks>,
        deadline: Instant,
    ) -> usize {
        let Some(kicks) = kicks else { return 0 };
        let count = kicks.connections.len();
        let (closed, failure) = system.kicked(kicks, deadline).await;
        if !closed.is_empty() {
            self.closed.extend(closed);
            self.took = self.begun.elapsed();
        }
        if failure.is_some() {
            self.failure = failure;
        }
        count
    }

    /// Looks until nobody is left, and says what was done.
    pub(crate) async fn finish(
        &mut self,
        system: &System,
        servers: &[&Running],
        deadline: Instant,
    ) -> Option<Receipt> {
        if self.users.is_empty() {
            return None;
        }
        let deadline = deadline.max(Instant::now() + GLANCE);
        let mut left = self.round(system, servers, deadline).await;
        while left > 0 && Instant::now() < deadline {
            left = self.round(system, servers, deadline).await;
        }
        let left = (left > 0).then_some(ServerError::Connected { left });
        let failure = self.failure.take().or(left);
        let closed = mem::take(&mut self.closed);
        let servers: BTreeSet<&str> = closed.iter().map(|it| &*it.server).collect();
        let receipt = Receipt {
            users: closed.iter().map(|it| it.user.clone()).collect(),
            connections: closed.len(),
            servers: servers.len(),
            took: self.took,
            failure,
        };
        receipt.tell();
        Some(receipt)
    }

    /// Whether somebody who is to go may have connected with the former rights.
    pub(crate) fn concerns(&self, running: &Running, connection: &Connection) -> bool {
        self.users.contains(&connection.user) && connection.start < self.former(running)
    }

    /// Who connected before this, by the server's clock, may have done so with the former rights.
    ///
    /// A server takes the time when its reload is over, and only then lets anybody in.
    fn former(&self, running: &Running) -> SystemTime {
        match self.before.get(&running.id) {
            Some(before) if *before == running.config_load_time => running.now,
            Some(_) | None => running.config_load_time,
        }
    }
}

impl Receipt {
    fn tell(&self) {
        let Receipt { users, connections, servers, took, failure } = self;
        let (who, users) = (few(users), users.len());
        match failure {
            Some(error) => {
                warn!(users, %who, connections, servers, %error, "not proven that all are cut off");
            }
            None if *connections > 0 => {
                info!(users, %who, connections, servers, ?took, "cut off");
            }
            None => debug!("nobody to cut off"),
        }
    }
}

/// The first of these names, and whether there are more.
pub(crate) fn few(names: &BTreeSet<String>) -> String {
    const MOST: usize = 5;
    let few: Vec<String> = names.iter().take(MOST).map(|it| format!("{it:?}")).collect();
    few.join(", ") + if names.len() > MOST { ", …" } else { "" }
}

/// One line: how many of whom, and how fast.
impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = |count| if count == 1 { "" } else { "s" };
        let (connections, users, servers) = (self.connections, self.users.len(), self.servers);
        write!(f, "cut off: {connections} connection{}", s(connections))?;
        if connections > 0 {
            write!(f, " of {users} user{} ({})", s(users), few(&self.users))?;
            write!(f, " on {servers} server{}, after {:.1?}", s(servers), self.took)?;
        }
        match &self.failure {
            Some(error) => write!(f, "; {error}"),
            None => Ok(()),
        }
    }
}
