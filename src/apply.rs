//! The one file that is ours, and the only code that writes it.

use std::time::SystemTime;

/// nats-server's own fingerprint of a whole config, includes resolved.
///
/// `nats-server -t` prints the digest of a config on disk and a server tells the digest of the
/// config it runs. Only digests that the same version made can be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// The version of the nats-server that made it, such as `2.15.1`.
    pub version: String,
    /// `sha256:…`
    pub value: String,
}

/// The file as it is now on disk, and how a server shows that it runs it.
#[derive(Debug)]
pub struct Applied {
    /// Whether this pass replaced the file.
    pub changed: bool,
    /// When the file was last replaced.
    pub written: SystemTime,
    /// The value of `pb_nats` in the file's `server_metadata`, if the file has one.
    pub stamp: Option<String>,
}

/// The file could not be replaced. It still holds what it held.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {}

impl Applied {
    /// What `nats-server -t` makes of the main config as it is on disk. `None` if it cannot be
    /// asked, or prints no digest, or not one that a server can be held to.
    pub async fn digest(&self) -> Result<Option<Digest>, ApplyError> {
        Ok(None)
    }
}
