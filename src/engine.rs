//! What makes nats-servers enforce what should be.
//!
//! A pass asks an engine what is in force, hands it what should be, and goes on with it step by step
//! until each server that can be asked enforces that. Which engine it is was chosen at start.

pub mod config;

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    fmt, io,
    sync::Arc,
    time::Duration,
};

use self::config::{Applied, ConfigEngine, Enforcing, Outcome, Placement, Sight, SyncStatus};
use crate::{
    auth::{Desired, Policy},
    causes::chain,
    nats::{Receipt, Running, ServerError},
    options::Options,
    state::{Adopt, Current, Keep, Lock, StateError, StateFile},
};

/// What makes nats-servers enforce what should be.
#[derive(Debug)]
pub enum Engine {
    /// An auth file that they include.
    Config(ConfigEngine),
}

/// What is to be put in force.
#[derive(Clone, Copy, Debug)]
pub struct Want<'a> {
    /// All of it.
    pub desired: &'a Arc<Desired>,
    /// What the file holds now.
    pub former: &'a Current,
    /// Whether that differs. If not, the file stays as it is.
    pub differs: bool,
    /// Whose connections are closed, since something is revoked from them.
    pub revoked: &'a [String],
    /// Whether the former file is kept even if the settings want no backups.
    pub keep: Keep,
}

/// How far it is.
#[derive(Debug)]
pub enum Step {
    /// Servers are on their way. Look again after this time.
    Pending(Duration),
    /// They are there, or their time is over.
    Done(Box<Enforced>),
    /// nats-server refuses the new state for its own sake. What is in force stays.
    Refused(EngineError),
}

/// What came of it.
#[derive(Debug)]
pub struct Enforced {
    /// What became of each server.
    pub servers: Vec<Outcome>,
    /// Which connections were closed, if something was revoked and it could be done.
    pub cut_off: Option<Receipt>,
    /// Why servers may take their users from elsewhere, so that what they showed is no proof.
    pub misplaced: Option<Misplaced>,
}

/// Why servers may take their users from elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misplaced {
    /// The main config was changed meanwhile. Which one a server loaded is not known.
    Changed,
    /// The main config does not take them from the auth file.
    Placement(Placement),
}

/// What should be in force could not be put in its place. What is in force stays so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The file that keeps it could not be read or replaced. It holds what it held.
    #[error(transparent)]
    State(#[from] StateError),
    /// nats-server would not accept the new contents; it accepts the former.
    #[error("nats-server rejects the new file: {0}")]
    Rejected(String),
    /// The main config could not be read.
    #[error("the main config could not be read")]
    MainConfig(#[source] io::Error),
}

impl Engine {
    /// The engine that the settings name. No server need be up, and nothing is touched yet.
    pub fn new(options: &Options) -> Result<Engine, ServerError> {
        ConfigEngine::new(options).map(Engine::Config)
    }

    /// The file that keeps what is in force.
    pub fn state(&self) -> &StateFile {
        match self {
            Engine::Config(engine) => engine.state(),
        }
    }

    /// The same, to be read or replaced.
    pub fn state_mut(&mut self) -> &mut StateFile {
        match self {
            Engine::Config(engine) => engine.state_mut(),
        }
    }

    /// Keeps every other pass away, waiting for one that is under way, and removes what a process that
    /// was killed has left.
    pub async fn lock_for_a_pass(&mut self) -> Result<Lock, StateError> {
        let lock = self.state().lock_for_a_pass().await?;
        self.state_mut().sweep();
        Ok(lock)
    }

    /// What is in force. What the servers' own config says about it is looked at with it.
    pub async fn current(&mut self, adopt: Adopt) -> Result<Current, EngineError> {
        match self {
            Engine::Config(engine) => engine.current(adopt).await,
        }
    }

    /// What is in force, as far as that is known, whoever wrote it. The servers' own config is looked at
    /// with it.
    pub fn in_force(&mut self) -> Result<Arc<Desired>, EngineError> {
        match self {
            Engine::Config(engine) => engine.in_force(),
        }
    }

    /// What the settings say about records, and beside them the servers' own config as it was at the
    /// last look.
    pub fn policy(&self, policy: &Policy) -> Policy {
        match self {
            Engine::Config(engine) => engine.policy(policy),
        }
    }

    /// Why servers may take their users from elsewhere, as it was at the last look.
    pub fn misplaced(&self) -> Option<Placement> {
        match self {
            Engine::Config(engine) => engine.misplaced(),
        }
    }

    /// Puts the new state in its place, where servers are to find it.
    pub async fn apply(&mut self, want: Want<'_>) -> Result<Applied, EngineError> {
        match self {
            Engine::Config(engine) => engine.apply(want).await,
        }
    }

    /// Begins to make every server enforce it.
    pub async fn begin<'e>(
        &'e mut self,
        applied: &'e Applied,
        former: &'e Current,
    ) -> Enforcing<'e> {
        match self {
            Engine::Config(engine) => engine.begin(applied, former).await,
        }
    }

    /// The state as it is, for servers that may not enforce it yet.
    pub async fn as_it_is(&mut self, current: &Current) -> Applied {
        match self {
            Engine::Config(engine) => engine.as_it_is(current).await,
        }
    }

    /// Puts the former state back, less what `refused` revokes. `None`: no former state would do, and
    /// everything is as it was.
    pub async fn roll_back(
        &mut self,
        refused: &Desired,
        former: &Current,
    ) -> Result<Option<Applied>, EngineError> {
        match self {
            Engine::Config(engine) => engine.roll_back(refused, former).await,
        }
    }

    /// Which servers enforce the state now. None is told anything.
    pub async fn survey(&mut self, current: &Current) -> Vec<Outcome> {
        match self {
            Engine::Config(engine) => engine.survey(current).await,
        }
    }

    /// Returns once others did something to what is ours: the state, or what a server runs. Tells
    /// meanwhile how servers are. Dropping the future loses nothing.
    pub(crate) async fn disturbed(&mut self, seen: impl FnMut(&[Sight], &[&Running])) {
        match self {
            Engine::Config(engine) => engine.disturbed(seen).await,
        }
    }

    /// Who answered beside the servers that are ours, when they were last asked.
    pub(crate) fn strangers(&self) -> Vec<&Running> {
        match self {
            Engine::Config(engine) => engine.strangers(),
        }
    }

    /// Tells how servers are, again and again.
    pub(crate) async fn watch(&mut self, seen: impl FnMut(&[Sight], &[&Running])) -> Infallible {
        match self {
            Engine::Config(engine) => engine.watch(seen).await,
        }
    }

    /// For how long a reload that took so long kept log-ins waiting, as predicted and as measured.
    pub(crate) async fn freeze(&mut self, took: Duration) -> Option<(Duration, Duration)> {
        match self {
            Engine::Config(engine) => engine.freeze(took).await,
        }
    }

    /// How many connections these users have now, over all servers that tell, and why others do not.
    /// `None`: nobody knows.
    pub async fn connections(
        &mut self,
        users: &BTreeSet<String>,
    ) -> Option<(BTreeMap<String, usize>, Option<ServerError>)> {
        match self {
            Engine::Config(engine) => engine.connections(users).await,
        }
    }
}

impl Enforced {
    /// What one can do about it, if it is not in force everywhere.
    pub fn hint(&self) -> Option<String> {
        match &self.misplaced {
            Some(Misplaced::Changed) => Some("look again: `pb-nats once`".to_owned()),
            Some(Misplaced::Placement(placement)) => Some(placement.hint().to_owned()),
            None => self.servers.iter().find_map(|it| match &it.state {
                SyncStatus::NotInStep { why } => why.hint(),
                SyncStatus::InStep { .. } | SyncStatus::Unverified { .. } => None,
            }),
        }
    }
}

/// Why it is not in force, or which servers do not enforce it and why.
impl fmt::Display for Enforced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.misplaced {
            Some(Misplaced::Changed) => {
                return f.write_str("the main config was changed during the pass");
            }
            Some(Misplaced::Placement(placement)) => return placement.fmt(f),
            None => (),
        }
        let not = self.servers.iter().filter_map(|it| match &it.state {
            SyncStatus::NotInStep { why } => {
                Some(format!("{}: {}", it.server, chain(why.as_ref())))
            }
            SyncStatus::InStep { .. } | SyncStatus::Unverified { .. } => None,
        });
        write!(f, "not in force on every server: {}", not.collect::<Vec<_>>().join("; "))
    }
}

impl EngineError {
    /// What one can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            EngineError::State(error) => error.hint(),
            EngineError::Rejected(_) => Some(
                "what was in force stays, less what has been taken away since; a record may have \
                 a name that nats-server's own config has too (`nats.reserved_users`)",
            ),
            EngineError::MainConfig(_) => Some(
                "`nats.config_file` is nats-server's main config; what it includes is looked for in \
                 its own folder, even a path that begins with `/`",
            ),
        }
    }
}
