//! The config engine: an auth file that nats-server includes, a reload, and the proof.

mod freeze;
mod reload;
mod servers;

pub use self::servers::{Outcome, Proof, Servers, SyncStatus};
pub(crate) use self::{
    freeze::{checks, measured},
    reload::process,
    servers::Sight,
};
