//! What can go wrong with a server.

use std::{error::Error, io, path::PathBuf, time::Duration};

use crate::tls;

/// A server does not run what it should, or could not be asked. It goes on with what it runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// A setting cannot be used. Nothing was done.
    #[error("`{setting}` in [nats] cannot be used: {reason}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The reload command could not be started.
    #[error("cannot run the reload command `{program}`")]
    Command {
        /// Its first word.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// The reload command failed. Whether a server reloaded all the same, only the server knows.
    #[error("the reload command `{program}` failed ({status}){}", behind(output))]
    CommandFailed {
        /// Its first word.
        program: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The end of what it said.
        output: String,
    },
    /// The reload command was ended, with all that it had started.
    #[error("the reload command `{program}` did not end within {after:?}{}", behind(output))]
    CommandHung {
        /// Its first word.
        program: String,
        /// How long it was given.
        after: Duration,
        /// The end of what it said.
        output: String,
    },
    /// No process id could be read. Nobody was signalled.
    #[error("cannot read a process id from {}", path.display())]
    PidFile {
        /// The pid file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The process is not a nats-server. It was not signalled.
    #[error("process {pid}, named in {}, {found}", path.display())]
    NotNats {
        /// The pid file.
        path: PathBuf,
        /// The process id in it.
        pid: i32,
        /// What is there instead.
        found: String,
    },
    /// The server could not be signalled.
    #[error("cannot signal nats-server, process {pid}")]
    Signal {
        /// Its process id.
        pid: i32,
        /// Why.
        source: io::Error,
    },
    /// The server will not reload. It keeps what it runs, wholly.
    #[error("{server} refuses to reload: {reason}")]
    Refused {
        /// Whom.
        server: String,
        /// In its words.
        reason: String,
    },
    /// Something in the main config was changed that the server takes at its start only. It keeps what
    /// it runs, wholly.
    #[error("{server} does not reload before it is restarted: {reason}")]
    NeedsRestart {
        /// Whom.
        server: String,
        /// What was changed.
        reason: String,
    },
    /// The settings name no way to make a server reload.
    #[error("nothing in [nats] says how to reload {server}")]
    NoReload {
        /// Whom.
        server: String,
    },
    /// It was told to reload, and still runs something else.
    #[error(
        "{server} does not run the file {after:?} after it was told to reload{}",
        refusal.as_ref().map_or("; its log says why".into(), |it| format!(": {it}"))
    )]
    NotLoaded {
        /// Whom.
        server: String,
        /// How long it was given.
        after: Duration,
        /// What `nats-server -t` has against the config on disk, which may be the reason.
        refusal: Option<String>,
    },
    /// It was told to reload, and has not. It keeps what it runs, wholly.
    #[error("{server} has not reloaded {after:?} after it was told to; its log says why")]
    NotReloaded {
        /// Whom.
        server: String,
        /// How long it was given.
        after: Duration,
    },
    /// The server was not told to reload yet. It runs a former file.
    #[error("{server} does not run the file yet")]
    Stale {
        /// Whom.
        server: String,
    },
    /// The credentials of the system account could not be read.
    #[error("cannot read {}", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No connection to the system account.
    #[error("cannot connect to the system account at {address}")]
    Connect {
        /// Where.
        address: String,
        /// Why.
        source: async_nats::ConnectError,
    },
    /// The connection works, but not as one of the system account.
    #[error("the user we have at {address} is not in the system account")]
    NotSystem {
        /// Where.
        address: String,
    },
    /// A server, or all behind an address, did not answer.
    #[error("{server} did not answer within {after:?}")]
    Silent {
        /// Whom.
        server: String,
        /// How long it was given.
        after: Duration,
    },
    /// Connections are still there that were to be closed.
    #[error("{left} connections are not closed yet")]
    Connected {
        /// How many.
        left: usize,
    },
    /// A reload does not look at leaf nodes, and one is connected with rights that its user has no
    /// more. The server runs the file for everybody else.
    #[error(
        "{server} keeps {count} leaf node{} connected, of {users}, with rights that are taken away; a \
         reload does not look at leaf nodes",
        if *count == 1 { "" } else { "s" }
    )]
    LeafNodes {
        /// Whom.
        server: String,
        /// How many.
        count: usize,
        /// Whose.
        users: String,
        /// Whether it was told to close them.
        told: bool,
    },
    /// The connection was lost while a server was asked.
    #[error("the connection to the system account at {address} was lost")]
    Lost {
        /// Where.
        address: String,
    },
    /// Its cluster has it, or had it a while ago. It did not answer with the others.
    #[error("{server} does not answer")]
    Missing {
        /// Whom.
        server: String,
    },
    /// The monitoring address could not be asked.
    #[error("cannot ask {url}")]
    Monitor {
        /// The address.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// A server has answered over the system account, and it is not known what.
    #[error("the answer of {server} is not understood")]
    Unreadable {
        /// Whom, as it says; or where it was heard.
        server: String,
        /// Why not.
        source: serde_json::Error,
    },
    /// The answer is not a nats-server's.
    #[error("what answers at {server} is not a nats-server")]
    Garbled {
        /// Whom.
        server: String,
        /// Why not.
        source: serde_json::Error,
    },
    /// The answer has no end, or is larger than any of a nats-server. It was not read to its end.
    #[error("what answers at {server} answers with more than {} MiB", tls::MOST >> 20)]
    TooMuch {
        /// Whom.
        server: String,
    },
}

impl ServerError {
    /// Whether nothing came that could be called an answer.
    pub(crate) fn is_silence(&self) -> bool {
        matches!(
            self,
            ServerError::Connect { .. }
                | ServerError::Silent { .. }
                | ServerError::Missing { .. }
                | ServerError::Monitor { .. }
                | ServerError::Lost { .. }
        )
    }

    /// What may help.
    #[expect(clippy::too_many_lines, reason = "a line or two for each")]
    pub fn hint(&self) -> Option<String> {
        use io::ErrorKind::{NotFound, PermissionDenied};
        let distrusted = self.source().is_some_and(tls::distrusts);
        let hint = match self {
            ServerError::Connect { .. } | ServerError::Monitor { .. } if distrusted => {
                "the certificate must be valid now and for the host in the URL, and its authority \
                 known to the system; SSL_CERT_FILE names a file to take instead of the system's"
                    .into()
            }
            ServerError::Command { program, source } if source.kind() == NotFound => format!(
                "is `{program}` installed, and in the PATH of this process? The command's folder is \
                 that of the settings file"
            ),
            ServerError::CommandHung { .. } => {
                "a reload command should signal and end; if it needs \
                longer, raise `nats.reload_timeout`"
                    .into()
            }
            ServerError::PidFile { source, .. } if source.kind() == NotFound => {
                "is nats-server running, with `pid_file` set to this path in its config? It is \
                written at its start"
                    .into()
            }
            ServerError::PidFile { .. } => {
                "`nats.pid_file` must be the file that nats-server's own \
                `pid_file` names"
                    .into()
            }
            ServerError::NotNats { pid: 1, .. } => "the server seems to run in another container: \
                use `system_url`, or share its process namespace"
                .into(),
            ServerError::NotNats { .. } => {
                "the file may be left over from a server that was killed; is nats-server running?"
                    .into()
            }
            ServerError::Signal { source, .. } if source.kind() == PermissionDenied => {
                "run as the same user as nats-server, or use `system_url`".into()
            }
            ServerError::Refused { .. } | ServerError::NotLoaded { refusal: Some(_), .. } => {
                "mend the main config; the file is loaded as soon as the server takes it".into()
            }
            ServerError::Stale { .. } => "a pass makes it reload: `pb-nats once`".into(),
            ServerError::NeedsRestart { .. } => {
                "restart nats-server, or take the change in the main config back".into()
            }
            ServerError::NoReload { .. } => {
                "set `reload_command`, `pid_file` or `system_url` in [nats]".into()
            }
            ServerError::NotReloaded { .. } => {
                "mend the main config if that is what its log complains of; with very many clients, \
                 raise `nats.reload_timeout`"
                    .into()
            }
            ServerError::NotLoaded { refusal: None, .. } => {
                "does the server's config include the auth \
                file, and does the reload reach this server? With very many clients, raise \
                `nats.reload_timeout`"
                    .into()
            }
            ServerError::Connect { source, .. } => match source.kind() {
                async_nats::ConnectErrorKind::AuthorizationViolation
                | async_nats::ConnectErrorKind::Authentication => "the log-in is refused: check \
                    `system_user` and `system_password`, or `system_credentials_file`"
                    .into(),
                _ => "is nats-server running there? While it reloads it takes no new connections"
                    .into(),
            },
            ServerError::Silent { .. } => {
                "with very many clients a server may be busy with a reload; \
                over the system account, the user must have all its rights"
                    .into()
            }
            ServerError::NotSystem { .. } => {
                "it must be a user of the account that `system_account` \
                names in nats-server's config"
                    .into()
            }
            ServerError::Monitor { .. }
            | ServerError::Garbled { .. }
            | ServerError::TooMuch { .. } => {
                "is nats-server running? `nats.monitor_url` is the `http` address in its config, \
                such as http://127.0.0.1:8222"
                    .into()
            }
            ServerError::Unreadable { .. } => {
                "is it a nats-server of 2.10 or later? Whoever is in the system account can answer for one"
                    .into()
            }
            ServerError::Missing { .. } => {
                "it loads the file when it starts; if it is gone for good, \
                it is forgotten after five minutes"
                    .into()
            }
            ServerError::LeafNodes { told: false, .. } => {
                "restart nats-server, which closes them; with `system_url` in [nats], pb-nats closes \
                 them itself"
                    .into()
            }
            ServerError::LeafNodes { told: true, .. } => {
                "restart nats-server, which closes them; before 2.10.20 it closes no leaf node when told \
                 to"
                    .into()
            }
            ServerError::Setting { .. }
            | ServerError::Command { .. }
            | ServerError::CommandFailed { .. }
            | ServerError::Signal { .. }
            | ServerError::Credentials { .. }
            | ServerError::Connected { .. }
            | ServerError::Lost { .. } => return None,
        };
        Some(hint)
    }
}

/// What a command said, behind what became of it.
fn behind(output: &str) -> String {
    if output.is_empty() { String::new() } else { format!(": {output}") }
}
