//! Talking to nats-servers, whatever the engine: what they run, who is connected, and who is sent
//! away.

mod command_line;
mod connz;
mod cut;
mod error;
mod monitor;
mod system;
mod trial;
mod varz;

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;
use tokio::time::Instant;

use crate::options::NatsOptions;

pub(crate) use self::{
    command_line::CommandLine,
    cut::{CutOff, few},
    system::System,
    varz::unanswered,
};
use self::{connz::counted, monitor::Monitor};
pub use self::{
    cut::Receipt,
    error::ServerError,
    trial::{Trial, TrialError},
};

/// How long servers may take to answer when a reload waits for it.
pub(crate) const GLANCE: Duration = Duration::from_secs(1);
/// How long they may take otherwise: one that is busy with a reload may be slow.
pub(crate) const LOOK: Duration = Duration::from_secs(5);

/// Whom to ask what the servers run.
#[derive(Debug)]
pub(crate) enum Access {
    /// All servers of the cluster at once.
    System(Box<System>),
    /// Each by itself.
    Monitors(Vec<Monitor>),
    /// Nobody.
    Nothing,
}

/// One server's answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Its name, or the address that was asked.
    pub(crate) server: String,
    pub(crate) running: Result<Running, ServerError>,
}

/// What a server runs.
#[derive(Clone, Debug)]
pub struct Running {
    /// What it calls itself until it ends.
    pub id: String,
    /// Its name. Unless one is set, its id.
    pub name: String,
    /// Its version, such as `2.15.1`.
    pub version: String,
    /// The digest of its config, since 2.11.
    pub config_digest: Option<String>,
    /// `pb_nats` in its config's `server_metadata`, since 2.12.
    pub stamp: Option<String>,
    /// Whether its config has metadata of someone else's.
    pub(crate) other_metadata: bool,
    /// When it loaded its config, by its own clock.
    pub config_load_time: SystemTime,
    /// Whether it has loaded its config again since it started.
    pub(crate) reloaded: bool,
    /// When it said so, by its own clock.
    pub(crate) now: SystemTime,
    /// When it loaded its config, by our clock: rather too early than too late.
    pub loaded: SystemTime,
    /// How many clients are connected.
    pub connections: u64,
    /// How many leaf nodes are connected.
    pub(crate) leaf_nodes: u64,
    /// Where it listens for clients.
    pub(crate) address: String,
    /// Settings that it takes at its start only, by their names in its config.
    pub fixed: BTreeMap<&'static str, String>,
    /// The name of its cluster, if it is in one.
    pub(crate) cluster: String,
    /// How many other servers there are in its cluster.
    remotes: usize,
    /// Whether servers of other clusters may hear us as well, over gateways or leaf nodes.
    beyond: bool,
}

/// A leaf node that is connected with rights that its user has no more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeafNode {
    /// The server's id.
    pub server: String,
    /// The connection's number there.
    pub number: u64,
    /// Whose it is.
    pub user: String,
}

/// A client's connection to a server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Connection {
    /// The server's id.
    pub(crate) server: String,
    /// Its number there.
    pub(crate) number: u64,
    pub(crate) user: String,
    /// Since when, by the server's clock.
    pub(crate) start: SystemTime,
    /// Whether a leaf node has it. No reload looks at those.
    pub(crate) leaf: bool,
}

impl Access {
    pub(crate) fn new(options: &NatsOptions) -> Result<Access, ServerError> {
        if let Some(url) = &options.system_url {
            return Ok(Access::System(Box::new(System::new(url, options)?)));
        }
        if options.monitor_url.is_empty() {
            return Ok(Access::Nothing);
        }
        options
            .monitor_url
            .iter()
            .map(|it| Monitor::new(it))
            .collect::<Result<_, _>>()
            .map(Access::Monitors)
    }

    /// The system account, if that is whom we ask.
    pub(crate) fn system(&self) -> Option<&System> {
        match self {
            Access::System(system) => Some(system),
            Access::Monitors(_) | Access::Nothing => None,
        }
    }

    /// The servers that answer on the system account, and are not ours.
    pub(crate) fn strangers(&self) -> Vec<&Running> {
        self.system().map_or_else(Vec::new, |it| it.strangers.values().map(|(it, _)| it).collect())
    }

    /// The answer of every server that is ours.
    pub(crate) async fn everyone(&mut self, patience: Duration) -> Vec<Answer> {
        match self {
            Access::System(system) => match system.everyone(patience).await {
                Ok(all) => all,
                Err(error) => vec![Answer { server: system.address.clone(), running: Err(error) }],
            },
            Access::Monitors(monitors) => {
                let each = monitors.iter().map(async |it| Answer {
                    server: it.address.clone(),
                    running: it.running(patience).await,
                });
                join_all(each).await
            }
            Access::Nothing => Vec::new(),
        }
    }

    /// How many connections each user of the global account has, a map for each server that
    /// [`Access::everyone`] reached. `None`: nobody tells.
    pub(crate) async fn clients(
        &mut self,
        answers: &[Answer],
        patience: Duration,
    ) -> Option<Vec<BTreeMap<String, usize>>> {
        let deadline = Instant::now() + patience;
        // Who does not tell keeps nobody else from it.
        let servers: Vec<_> = match self {
            Access::System(system) => {
                let all = answers.iter().filter_map(Answer::ok);
                let each = all.map(async |it| system.connected(it, None, deadline).await.ok());
                join_all(each).await
            }
            Access::Monitors(monitors) => {
                let each = monitors.iter().map(async |it| it.connected(deadline).await.ok());
                join_all(each).await
            }
            Access::Nothing => return None,
        };
        let servers: Vec<_> = servers.into_iter().flatten().map(counted).collect();
        (!servers.is_empty()).then_some(servers)
    }
}

impl Access {
    /// The leaf nodes of users of the global account that are connected to a server that answered.
    pub(crate) async fn leaf_nodes(
        &self,
        answer: &Answer,
        deadline: Instant,
    ) -> Result<Vec<Connection>, ServerError> {
        let Some(running) = answer.ok().filter(|it| it.leaf_nodes > 0) else {
            return Ok(Vec::new());
        };
        let connected = match self {
            Access::System(system) => system.connected(running, None, deadline).await?,
            Access::Monitors(monitors) => {
                let monitor = monitors.iter().find(|it| it.address == answer.server);
                let monitor = monitor.expect("that is who answered");
                monitor.connected(deadline).await?
            }
            Access::Nothing => Vec::new(),
        };
        // One that the server itself connected to another has nobody's name.
        let users = connected
            .into_iter()
            .filter(|it| it.is_of_ours() && it.is_leaf() && !it.authorized_user.is_empty());
        Ok(users.map(|it| it.on(&running.id)).collect())
    }
}

impl Answer {
    /// What it runs, if it answered.
    pub(crate) fn ok(&self) -> Option<&Running> {
        self.running.as_ref().ok()
    }

    /// Who answered, if it did.
    pub(crate) fn awake(&self) -> Option<String> {
        self.running.is_ok().then(|| self.server.clone())
    }
}

impl Running {
    /// Whether a stamp in its config would be shown, and no other metadata be lost by it.
    pub(crate) fn takes_stamps(&self) -> bool {
        !self.other_metadata && since_2_12(&self.version)
    }

    /// What stays the same as long as the server runs the same config; before 2.11, until it loads
    /// any.
    pub(crate) fn mark(&self) -> String {
        mark(self.config_digest.as_deref(), self.config_load_time)
    }
}

/// As [`Running::mark`].
pub(crate) fn mark(digest: Option<&str>, loaded: SystemTime) -> String {
    let since = || loaded.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    digest.map_or_else(|| format!("loaded:{}", since().as_nanos()), str::to_owned)
}

/// Whether a nats-server of this version has `server_metadata`.
pub(crate) fn since_2_12(version: &str) -> bool {
    let mut numbers = version.split('.').map_while(|it| it.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(2), Some(12))
}
