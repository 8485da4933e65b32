//! The config engine: an auth file that nats-server includes, a reload, and the proof.

mod auth_file;
mod freeze;
mod judge;
mod main_config;
mod reload;
mod servers;
mod setup;

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    mem,
    sync::Arc,
    time::Duration,
};

use self::servers::Convergence;
pub use self::{
    auth_file::{Applied, AuthFile},
    judge::Digest,
    main_config::{
        Apart, Conflict, MainConfig, NoAuthUser, NotUnderstood, Place, Placement, Unresolved,
    },
    servers::{Outcome, Proof, Servers, SyncStatus},
    setup::{add_to_main_config, starts, would_start},
};
pub(crate) use self::{
    freeze::{checks, measured},
    reload::process,
    servers::Sight,
};
use super::{Enforced, EngineError, Misplaced, Step, Want};
use crate::{
    auth::{Changes, Desired, Policy},
    nats::{Running, ServerError},
    options::Options,
    state::{Adopt, Current, StateFile},
};

/// Keeps the auth file, and nats-servers to it.
#[derive(Debug)]
pub struct ConfigEngine {
    auth_file: AuthFile,
    servers: Servers,
}

/// The auth file on its way into force.
#[derive(Debug)]
pub struct Enforcing<'e> {
    engine: &'e mut ConfigEngine,
    applied: &'e Applied,
    former: &'e Current,
    convergence: Convergence,
    /// Whether nats-server's word on the new file was heeded.
    judged: bool,
}

impl ConfigEngine {
    pub(super) fn new(options: &Options) -> Result<ConfigEngine, ServerError> {
        Ok(ConfigEngine {
            auth_file: AuthFile::new(options),
            servers: Servers::new(&options.nats, &options.folder)?,
        })
    }

    pub(super) fn state(&self) -> &StateFile {
        &self.auth_file.state
    }

    pub(super) fn state_mut(&mut self) -> &mut StateFile {
        &mut self.auth_file.state
    }

    pub(super) async fn current(&mut self, adopt: Adopt) -> Result<Current, EngineError> {
        self.auth_file.read_on_thread(adopt).await
    }

    pub(super) fn in_force(&mut self) -> Result<Arc<Desired>, EngineError> {
        self.auth_file.main_config = self.auth_file.main_config_now()?;
        Ok(self.auth_file.state.in_force())
    }

    pub(super) fn policy(&self, policy: &Policy) -> Policy {
        let mut policy = policy.clone();
        if let Some(main_config) = &self.auth_file.main_config {
            main_config.rule(&mut policy);
        }
        policy
    }

    pub(super) fn misplaced(&self) -> Option<Placement> {
        main_config::misplaced(self.auth_file.main_config.as_ref())
    }

    pub(super) async fn apply(&mut self, want: Want<'_>) -> Result<Applied, EngineError> {
        let Want { desired, former, differs, revoked, keep } = want;
        if differs {
            // First: if we are killed right after the file is replaced, nobody else knows of them.
            self.auth_file.note_losing(revoked);
        }
        // A server that joined later may know no stamps, and would refuse the file for its own.
        let unstamp = !differs && former.stamp.is_some() && !self.servers.know_stamps().await;
        if !differs && !unstamp {
            return Ok(self.as_it_is(former).await);
        }
        let stamped = !unstamp && self.needs_stamp().await;
        let applied = self.auth_file.replace(desired, former, stamped, keep).await?;
        if differs {
            self.servers.cut_off(revoked);
        }
        Ok(applied)
    }

    /// Whether servers should show by their metadata that they run the file: where their digest
    /// cannot show it, all of them know metadata, and nobody else's would be lost.
    async fn needs_stamp(&mut self) -> bool {
        let version = self.auth_file.judge_version().await;
        let main_config = self.auth_file.main_config.as_ref();
        let version = version.filter(|_| main_config.is_some());
        let lost = main_config.is_some_and(MainConfig::has_metadata);
        !lost && self.servers.need_stamp(version.as_deref()).await
    }

    pub(super) async fn as_it_is(&mut self, current: &Current) -> Applied {
        self.auth_file.as_it_is(current).await
    }

    pub(super) async fn begin<'e>(
        &'e mut self,
        applied: &'e Applied,
        former: &'e Current,
    ) -> Enforcing<'e> {
        let convergence = self.servers.begin(applied).await;
        Enforcing { engine: self, applied, former, convergence, judged: false }
    }

    pub(super) async fn roll_back(
        &mut self,
        refused: &Desired,
        former: &Current,
    ) -> Result<Option<Applied>, EngineError> {
        if let Some(former) = &former.desired {
            self.servers.cut_off(&Changes::between(former, refused).users_losing);
        }
        self.auth_file.go_back(refused, former).await
    }

    pub(super) async fn survey(&mut self, current: &Current) -> Vec<Outcome> {
        let applied = self.as_it_is(current).await;
        self.servers.survey(&applied).await
    }

    pub(super) async fn disturbed(&mut self, seen: impl FnMut(&[Sight], &[&Running])) {
        tokio::select! {
            () = self.auth_file.state.disturbed() => (),
            () = self.servers.drifted(seen) => (),
        }
    }

    pub(super) fn strangers(&self) -> Vec<&Running> {
        self.servers.strangers()
    }

    pub(super) async fn watch(
        &mut self,
        mut seen: impl FnMut(&[Sight], &[&Running]),
    ) -> Infallible {
        loop {
            self.servers.drifted(&mut seen).await;
        }
    }

    pub(super) async fn freeze(&mut self, took: Duration) -> Option<(Duration, Duration)> {
        let (desired, bytes) = self.auth_file.state.holds()?;
        let predicted = self.servers.freeze(&desired).await.unwrap_or_default();
        Some((predicted, measured(predicted, bytes, took)))
    }

    pub(super) async fn connections(
        &mut self,
        users: &BTreeSet<String>,
    ) -> Option<(BTreeMap<String, usize>, Option<ServerError>)> {
        self.servers.connections(users).await
    }

    /// Holds what servers showed against the main config, and notes what it proves.
    fn settle(
        &mut self,
        applied: &Applied,
        servers: Vec<Outcome>,
    ) -> Result<Enforced, EngineError> {
        let main_config =
            self.auth_file.main_config_now().inspect_err(|_| self.servers.forget())?;
        let cut_off = self.servers.receipt();
        let misplaced = if main_config == self.auth_file.main_config {
            self.misplaced().map(Misplaced::Placement)
        } else {
            Some(Misplaced::Changed)
        };
        if misplaced.is_some() {
            self.servers.forget();
            return Ok(Enforced { servers, cut_off, misplaced });
        }
        self.auth_file.remember(applied, &self.servers.proven());
        let (losing, leaf_nodes) = self.servers.leaf_nodes();
        self.auth_file.note_leaf_nodes(losing, leaf_nodes);
        let shown = |it: &Outcome| match it.state {
            SyncStatus::InStep { .. } => true,
            // The next best: nats-server starts with it.
            SyncStatus::Unverified { .. } => applied.accepted(),
            SyncStatus::NotInStep { .. } => false,
        };
        if servers.iter().all(shown) {
            self.auth_file.state.keep_as_good(&applied.hash);
        }
        Ok(Enforced { servers, cut_off, misplaced })
    }
}

impl Enforcing<'_> {
    /// Goes a step on. It asks, and does what is due; nothing is lost between steps.
    pub async fn step(&mut self) -> Result<Step, EngineError> {
        let Enforcing { engine, applied, former, convergence, judged } = self;
        engine.state().undisturbed()?;
        if !mem::replace(judged, true)
            && let Some(error) = engine.auth_file.refused(applied, former).await
        {
            // There is nothing to wait for, and nats-server would not start with the file.
            return Ok(Step::Refused(error));
        }
        match engine.servers.step(applied, convergence).await {
            Err(pause) => Ok(Step::Pending(pause)),
            Ok(servers) => engine.settle(applied, servers).map(|it| Step::Done(Box::new(it))),
        }
    }

    /// Whether something that comes next need not wait until this is in force.
    pub fn can_be_superseded(&self) -> bool {
        self.engine.servers.stay_free()
    }

    /// Leaves servers to what comes next. Whoever is still to be cut off by this is so by that.
    pub fn leave(self) {
        self.engine.servers.leave(self.convergence);
    }
}
