//! What a server tells of itself, over the system account as from its monitor.

use std::{collections::BTreeMap, time::SystemTime};

use serde::{Deserialize, Deserializer, de};

use super::Running;

/// What a server tells of itself, as far as it matters.
#[derive(Deserialize)]
pub(super) struct Varz {
    server_id: String,
    server_name: String,
    version: String,
    #[serde(deserialize_with = "timestamp")]
    now: SystemTime,
    #[serde(deserialize_with = "timestamp")]
    config_load_time: SystemTime,
    #[serde(deserialize_with = "timestamp")]
    start: SystemTime,
    config_digest: Option<String>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    #[serde(default)]
    connections: u64,
    #[serde(default)]
    leafnodes: u64,
    #[serde(default)]
    remotes: usize,
    host: String,
    port: u16,
    #[serde(default)]
    http_port: i32,
    #[serde(default)]
    http_base_path: String,
    #[serde(default)]
    system_account: String,
    #[serde(default)]
    cluster: Cluster,
    #[serde(default)]
    gateway: Cluster,
}

#[derive(Default, Deserialize)]
struct Cluster {
    #[serde(default)]
    name: String,
}

impl Varz {
    pub(super) fn running(mut self, sent: SystemTime) -> Running {
        let (received, now) = (SystemTime::now(), self.now);
        let loaded = self.config_load_time;
        let loaded = if loaded > now {
            // Its clock was set back since. Nobody knows by how much.
            SystemTime::UNIX_EPOCH
        } else if (sent..=received).contains(&now) {
            loaded
        } else {
            // Another clock. The answer was made after we asked, so this errs towards too early.
            match sent.duration_since(now) {
                Ok(behind) => loaded + behind,
                Err(ahead) => loaded - ahead.duration(),
            }
        };
        let fixed = [
            ("server_name", self.server_name.clone()),
            ("port", self.port.to_string()),
            ("http_port", self.http_port.to_string()),
            ("http_base_path", self.http_base_path),
            ("system_account", self.system_account),
        ];
        Running {
            id: self.server_id,
            fixed: fixed.into(),
            name: self.server_name,
            version: self.version,
            config_digest: self.config_digest.filter(|it| !it.is_empty()),
            stamp: self.metadata.remove("pb_nats"),
            other_metadata: !self.metadata.is_empty(),
            config_load_time: self.config_load_time,
            reloaded: self.config_load_time != self.start,
            now: self.now,
            loaded,
            connections: self.connections,
            leaf_nodes: self.leafnodes,
            address: format!("{}:{}", self.host, self.port),
            cluster: self.cluster.name,
            remotes: self.remotes,
            beyond: !self.gateway.name.is_empty() || self.leafnodes > 0,
        }
    }
}

pub(super) fn timestamp<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<SystemTime, D::Error> {
    let timestamp: jiff::Timestamp =
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)?;
    timestamp.try_into().map_err(de::Error::custom)
}

/// How many more servers there are in their clusters than these.
pub(crate) fn unanswered<'a>(answers: impl Iterator<Item = &'a Running>) -> usize {
    let mut clusters = BTreeMap::<&str, (usize, usize)>::new();
    for running in answers {
        let (answered, size) = clusters.entry(&running.cluster).or_default();
        *answered += 1;
        *size = (*size).max(running.remotes + 1);
    }
    clusters.into_values().map(|(answered, size)| size.saturating_sub(answered)).sum()
}
