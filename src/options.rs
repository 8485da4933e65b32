//! Every setting, typed: from the settings file, the environment, or plain Rust.

mod load;
mod settings;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use reqwest::Url;
use serde::{
    Deserialize, Deserializer,
    de::{self, value::StringDeserializer},
};
use zeroize::Zeroizing;

pub use self::{
    load::{OptionsError, Place},
    settings::reference,
};
use crate::auth::{Event, EventType, MaxRemoved};

/// All settings, named as in `pb-nats.toml`.
///
/// [`load`](Self::load) reads them as the program does. Options built in code are judged by
/// [`check`](Self::check).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Where users and roles are read.
    pub pocketbase: PocketBaseOptions,
    /// What users without a role may do.
    pub permissions: PermissionOptions,
    /// The file that nats-server includes.
    pub auth_file: AuthFileOptions,
    /// The servers, and how to talk to them.
    pub nats: NatsOptions,
    /// When to make a pass, and what a pass may take away.
    pub sync: SyncOptions,
    /// The address at which the daemon tells how it is.
    pub admin: AdminOptions,
    /// Beside `sync.ignore_events`: `false` for an event that need not be applied at once.
    #[serde(skip)]
    pub event_filter: Option<EventFilter>,
    /// The folder of the settings file: the reload command works there. Empty: the working folder.
    #[serde(skip)]
    pub folder: PathBuf,
}

/// `[pocketbase]`: where users and roles are read.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PocketBaseOptions {
    /// PocketBase's address. It may have a base path.
    #[serde(deserialize_with = "unless_empty")]
    pub url: Option<String>,
    /// Instead of `url`: the data folder of a PocketBase on this machine, read directly.
    #[serde(deserialize_with = "unless_empty")]
    pub data_dir: Option<PathBuf>,
    /// A file with a token of a superuser or service account; read again when it changes.
    #[serde(deserialize_with = "unless_empty")]
    pub token_file: Option<PathBuf>,
    /// The token itself.
    #[serde(deserialize_with = "unless_empty")]
    pub token: Option<Secret>,
    /// Instead of a token: the email or other identity of an account.
    #[serde(deserialize_with = "unless_empty")]
    pub identity: Option<String>,
    /// That account's password.
    #[serde(deserialize_with = "unless_empty")]
    pub password: Option<Secret>,
    /// A file with that password.
    #[serde(deserialize_with = "unless_empty")]
    pub password_file: Option<PathBuf>,
    /// The auth collection that account is in.
    pub auth_collection: String,
    /// The collection of users.
    pub user_collection: String,
    /// The collection of roles.
    pub role_collection: String,
    /// The field that holds the NATS user name; in an auth collection without it, `email` does.
    pub username_field: String,
    /// The field that holds the bcrypt hash, or a `password`-type field.
    pub password_field: String,
    /// The field that refers to the roles.
    pub role_field: String,
    /// The bool field that says whether the user may connect.
    pub active_field: String,
    /// The one-row view that is read, where it exists, as one snapshot of both collections.
    /// Empty: never.
    pub export_view: String,
    /// A PEM file with an extra certificate authority.
    #[serde(deserialize_with = "unless_empty")]
    pub ca_file: Option<PathBuf>,
    /// How long to go without a hint before looking anyway.
    #[serde(deserialize_with = "duration")]
    pub resync_interval: Duration,
    /// How long one request may take.
    #[serde(deserialize_with = "duration")]
    pub request_timeout: Duration,
}

/// `[permissions]`: what users without a role may do.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PermissionOptions {
    /// Subjects they may publish to.
    #[serde(deserialize_with = "one_or_many")]
    pub default_publish: Vec<String>,
    /// Subjects they may subscribe to.
    #[serde(deserialize_with = "one_or_many")]
    pub default_subscribe: Vec<String>,
}

/// `[auth_file]`: the file that nats-server includes.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthFileOptions {
    /// Where it is.
    pub path: PathBuf,
    /// The mode of a new file. An existing file keeps its mode and owner.
    #[serde(deserialize_with = "mode")]
    pub mode: u32,
    /// Whether the former file is kept when it is replaced.
    pub create_backups: bool,
    /// Where it is kept.
    pub backup_dir: PathBuf,
    /// How many are kept. 0: all.
    #[serde(deserialize_with = "count")]
    pub max_backups: usize,
    /// The group of a new file, so that nats-server's user can read it. Empty: our own.
    pub group: String,
    /// `timeout` of the authorization block, for storms of bcrypt log-ins. `None`: the server's.
    #[serde(deserialize_with = "optional_duration")]
    pub login_timeout: Option<Duration>,
    /// Whether to make a pass at start, not only at the first change.
    pub generate_initial: bool,
}

/// `[nats]`: the servers, and how to talk to them.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NatsOptions {
    /// The main config, for checks and the expected digest.
    #[serde(deserialize_with = "unless_empty")]
    pub config_file: Option<PathBuf>,
    /// The program that judges configs (`-t`); a bare name is looked up in `PATH`. Without it our own
    /// checks and the server's word do.
    pub server_binary: PathBuf,
    /// The command that reloads the server, split as a shell would.
    #[serde(deserialize_with = "unless_empty")]
    pub reload_command: Option<String>,
    /// Or: files with the servers' process ids, which get SIGHUP.
    #[serde(deserialize_with = "one_or_many")]
    pub pid_file: Vec<PathBuf>,
    /// Or, with neither: the system account, whose servers are all asked to reload. Beside them it
    /// verifies and cuts off.
    #[serde(deserialize_with = "unless_empty")]
    pub system_url: Option<String>,
    /// A `.creds` file of a user in the system account.
    #[serde(deserialize_with = "unless_empty")]
    pub system_credentials_file: Option<PathBuf>,
    /// Or that user's name,
    #[serde(deserialize_with = "unless_empty")]
    pub system_user: Option<String>,
    /// and password,
    #[serde(deserialize_with = "unless_empty")]
    pub system_password: Option<Secret>,
    /// or a file with it.
    #[serde(deserialize_with = "unless_empty")]
    pub system_password_file: Option<PathBuf>,
    /// Monitoring addresses, for verification without the system account.
    #[serde(deserialize_with = "one_or_many")]
    pub monitor_url: Vec<String>,
    /// How long a reload may take until the server runs the file.
    #[serde(deserialize_with = "duration")]
    pub reload_timeout: Duration,
    /// Names never taken from PocketBase, beside those in the main config's accounts.
    #[serde(deserialize_with = "one_or_many")]
    pub reserved_users: Vec<String>,
}

/// `[sync]`: when to make a pass, and what a pass may take away.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SyncOptions {
    /// How long to wait after a hint, so that a burst of edits becomes one pass.
    #[serde(deserialize_with = "duration")]
    pub debounce: Duration,
    /// How long to wait at most while hints keep coming.
    #[serde(deserialize_with = "duration")]
    pub max_wait: Duration,
    /// Kinds of events that need not be applied at once.
    #[serde(deserialize_with = "one_or_many")]
    pub ignore_events: Vec<EventType>,
    /// A pass that would remove more users than this is held back.
    pub max_removed: MaxRemoved,
    /// Below this many removals the guard is silent.
    #[serde(deserialize_with = "count")]
    pub min_removed: usize,
}

/// `[admin]`: the address at which the daemon tells how it is.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminOptions {
    /// Address and port. Empty: none.
    pub listen: String,
    /// Further host names it may be called by.
    #[serde(deserialize_with = "one_or_many")]
    pub hosts: Vec<String>,
}

/// Says of an event whether it must be applied at once.
#[derive(Clone)]
pub struct EventFilter(pub Arc<dyn Fn(&Event) -> bool + Send + Sync>);

/// Text that `Debug` does not show and that is wiped from memory when dropped.
#[derive(Clone, Deserialize)]
#[serde(from = "String")]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text as it is.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(Zeroizing::new(text.into()))
    }

    /// The text, for the one place that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl Options {
    /// Refuses settings that contradict each other or make no sense.
    ///
    /// Who brings a [`Source`](crate::source::Source) of their own checks the other sections.
    pub fn check(&self) -> Result<(), OptionsError> {
        self.pocketbase.check()?;
        self.auth_file.check()?;
        self.nats.check()?;
        self.sync.check()?;
        self.admin.check()
    }

    /// What is allowed but rarely meant.
    pub fn notes(&self) -> Vec<String> {
        let Options { pocketbase, permissions, auth_file, nats, sync, .. } = self;
        let mut notes = Vec::new();
        let mut note = |applies: bool, text: &str| {
            if applies {
                notes.push(text.to_owned());
            }
        };
        let credentials = pocketbase.token.is_some()
            || pocketbase.token_file.is_some()
            || pocketbase.identity.is_some();
        note(
            pocketbase.data_dir.is_some() && credentials,
            "`pocketbase.data_dir` needs no credentials; those given are not used",
        );
        note(
            pocketbase.url.as_deref().is_some_and(is_in_the_clear),
            "`pocketbase.url` is not https: credentials and password hashes can be read on the way",
        );
        let everything = |subjects: &[String]| subjects.iter().any(|it| it == ">");
        note(
            everything(&permissions.default_publish) || everything(&permissions.default_subscribe),
            "`permissions`: users without a role have access to every subject (`>`)",
        );
        note(
            auth_file.mode & 0o007 != 0,
            "`auth_file.mode` lets every account on this machine at the password hashes",
        );
        note(
            nats.reload_command.is_none() && nats.pid_file.is_empty() && nats.system_url.is_none(),
            "`nats`: nothing reloads the server; set `reload_command`, `pid_file` or `system_url`",
        );
        let system = nats.system_credentials_file.is_some() || nats.system_user.is_some();
        note(
            system && nats.system_url.is_none(),
            "`nats.system_url` is not set; the system account's credentials are not used",
        );
        note(
            matches!(sync.max_removed, MaxRemoved::Share(share) if share >= 1.0),
            "`sync.max_removed` is 100%: only the loss of all records is held back",
        );
        notes
    }
}

impl PocketBaseOptions {
    /// See [`Options::check`].
    pub fn check(&self) -> Result<(), OptionsError> {
        self.check_credentials()?;
        match (&self.url, &self.data_dir) {
            (Some(url), None) => {
                web_address("pocketbase.url", url)?;
                if self.token.is_none() && self.token_file.is_none() && self.identity.is_none() {
                    return wrong(
                        "pocketbase.url",
                        "`url` needs credentials",
                        "set `token_file`, or `token`, or `identity` with `password_file`",
                    );
                }
            }
            (None, Some(_)) => (),
            (Some(_), Some(_)) => {
                return wrong(
                    "pocketbase.data_dir",
                    "`url` and `data_dir` are both set",
                    "keep `url` to ask PocketBase over HTTP, or `data_dir` to read its database \
                     on this machine",
                );
            }
            (None, None) => {
                return wrong(
                    "pocketbase.url",
                    "`pocketbase.url` is not set",
                    "set `url` below `[pocketbase]`, or `data_dir` for a PocketBase on this \
                     machine",
                );
            }
        }
        for (setting, name) in [
            ("pocketbase.auth_collection", &self.auth_collection),
            ("pocketbase.user_collection", &self.user_collection),
            ("pocketbase.role_collection", &self.role_collection),
            ("pocketbase.username_field", &self.username_field),
            ("pocketbase.password_field", &self.password_field),
            ("pocketbase.role_field", &self.role_field),
            ("pocketbase.active_field", &self.active_field),
        ] {
            pocketbase_name(setting, name)?;
        }
        if !self.export_view.is_empty() {
            pocketbase_name("pocketbase.export_view", &self.export_view)?;
        }
        if self.user_collection == self.role_collection {
            return wrong(
                "pocketbase.role_collection",
                "`user_collection` and `role_collection` are the same",
                "name the collection of roles",
            );
        }
        positive("pocketbase.resync_interval", self.resync_interval)?;
        positive("pocketbase.request_timeout", self.request_timeout)
    }

    fn check_credentials(&self) -> Result<(), OptionsError> {
        let password = match (&self.password, &self.password_file) {
            (Some(_), Some(_)) => {
                return wrong(
                    "pocketbase.password_file",
                    "`password` and `password_file` are both set",
                    "keep one of them",
                );
            }
            (Some(_), None) => Some("password"),
            (None, Some(_)) => Some("password_file"),
            (None, None) => None,
        };
        let identity = self.identity.as_ref().map(|_| "identity").or(password);
        let token = self.token.as_ref().map(|_| "token");
        let token_file = self.token_file.as_ref().map(|_| "token_file");
        let kinds: Vec<_> = [token, token_file, identity].into_iter().flatten().collect();
        if let [one, other, ..] = kinds[..] {
            return wrong(
                &format!("pocketbase.{other}"),
                format!("`{one}` and `{other}` are both set: two kinds of credentials"),
                "keep one of them; the other can be set to \"\"",
            );
        }
        if let Some(token) = &self.token
            && !token.reveal().bytes().all(|it| it.is_ascii_graphic())
        {
            return wrong(
                "pocketbase.token",
                "`token` holds white space or other characters that no token has",
                "copy it again, without line breaks",
            );
        }
        match (&self.identity, password) {
            (Some(_), None) => wrong(
                "pocketbase.identity",
                "`identity` is set without a password",
                "set `password_file` or `password`",
            ),
            (None, Some(password)) => wrong(
                &format!("pocketbase.{password}"),
                format!("`{password}` is set without `identity`"),
                "set `identity` to the account's email",
            ),
            (Some(_), Some(_)) | (None, None) => Ok(()),
        }
    }
}

impl AuthFileOptions {
    /// See [`Options::check`].
    pub fn check(&self) -> Result<(), OptionsError> {
        if self.path.file_name().is_none() {
            return wrong("auth_file.path", "`path` names no file", "write `path = \"auth.conf\"`");
        }
        if self.create_backups && self.backup_dir.as_os_str().is_empty() {
            return wrong(
                "auth_file.backup_dir",
                "`backup_dir` is empty",
                "name a folder, or set `create_backups = false`",
            );
        }
        if self.mode > 0o777 || self.mode & 0o600 != 0o600 {
            return wrong(
                "auth_file.mode",
                format!("with `mode` \"{:04o}\" the file could not be read back", self.mode),
                "write `mode = \"0640\"`, or `\"0600\"`",
            );
        }
        match self.login_timeout {
            Some(timeout) if timeout > Duration::from_mins(1) => wrong(
                "auth_file.login_timeout",
                "`login_timeout` is longer than nats-server accepts",
                "write \"60s\" or less",
            ),
            Some(timeout) => positive("auth_file.login_timeout", timeout),
            None => Ok(()),
        }
    }
}

impl NatsOptions {
    /// See [`Options::check`].
    pub fn check(&self) -> Result<(), OptionsError> {
        if self.reload_command.is_some() && !self.pid_file.is_empty() {
            return wrong(
                "nats.pid_file",
                "`reload_command` and `pid_file` are both set",
                "keep the one that reloads the server",
            );
        }
        if let Some(command) = &self.reload_command
            && shlex::split(command).is_none_or(|words| words.is_empty())
        {
            return wrong(
                "nats.reload_command",
                "`reload_command` cannot be split into words",
                "close its quotes; for a pipeline write `sh -c '…'`",
            );
        }
        if self.pid_file.iter().any(|it| it.as_os_str().is_empty()) {
            return wrong("nats.pid_file", "`pid_file` holds an empty path", "remove it");
        }
        for url in &self.monitor_url {
            web_address("nats.monitor_url", url)?;
        }
        if let Some(url) = &self.system_url {
            address(
                "nats.system_url",
                url,
                &["nats", "tls", "ws", "wss"],
                "nats://127.0.0.1:4222",
            )?;
        }
        let password = match (&self.system_password, &self.system_password_file) {
            (Some(_), Some(_)) => {
                return wrong(
                    "nats.system_password_file",
                    "`system_password` and `system_password_file` are both set",
                    "keep one of them",
                );
            }
            (Some(_), None) => Some("system_password"),
            (None, Some(_)) => Some("system_password_file"),
            (None, None) => None,
        };
        match (&self.system_credentials_file, &self.system_user, password) {
            (Some(_), Some(_), _) => wrong(
                "nats.system_user",
                "`system_credentials_file` and `system_user` are both set",
                "keep one of them",
            ),
            (_, None, Some(password)) => wrong(
                &format!("nats.{password}"),
                format!("`{password}` is set without `system_user`"),
                "set `system_user`",
            ),
            (None, Some(_), None) => wrong(
                "nats.system_user",
                "`system_user` is set without a password",
                "set `system_password_file` or `system_password`",
            ),
            (_, None, None) | (None, Some(_), Some(_)) => {
                positive("nats.reload_timeout", self.reload_timeout)
            }
        }
    }
}

impl SyncOptions {
    /// See [`Options::check`].
    pub fn check(&self) -> Result<(), OptionsError> {
        if self.debounce > self.max_wait {
            return wrong(
                "sync.debounce",
                "`debounce` is longer than `max_wait`",
                "raise `max_wait` or lower `debounce`",
            );
        }
        match self.max_removed {
            MaxRemoved::Share(share) if !(0.0..=1.0).contains(&share) => wrong(
                "sync.max_removed",
                "`max_removed` is no share from 0 to 1",
                "write 0.5 for a half",
            ),
            MaxRemoved::Share(_) | MaxRemoved::Count(_) => Ok(()),
        }
    }
}

impl AdminOptions {
    /// See [`Options::check`].
    pub fn check(&self) -> Result<(), OptionsError> {
        let named = |host: &str, port: &str| {
            let word = |it: u8| it.is_ascii_alphanumeric() || matches!(it, b'-' | b'.');
            !host.is_empty() && host.bytes().all(word) && port.parse::<u16>().is_ok()
        };
        let listen = &self.listen;
        if listen.is_empty()
            || listen.parse::<SocketAddr>().is_ok()
            || listen.rsplit_once(':').is_some_and(|(host, port)| named(host, port))
        {
            return Ok(());
        }
        wrong(
            "admin.listen",
            format!("`{listen}` is not an address with a port"),
            "write \"127.0.0.1:9478\", \"[::1]:9478\", \"0.0.0.0:9478\" for every interface, or \"\" \
             for none",
        )
    }
}

impl Default for PocketBaseOptions {
    fn default() -> Self {
        PocketBaseOptions {
            url: None,
            data_dir: None,
            token_file: None,
            token: None,
            identity: None,
            password: None,
            password_file: None,
            auth_collection: "_superusers".into(),
            user_collection: "nats_users".into(),
            role_collection: "nats_roles".into(),
            username_field: "username".into(),
            password_field: "password".into(),
            role_field: "role_id".into(),
            active_field: "active".into(),
            export_view: "nats_export".into(),
            ca_file: None,
            resync_interval: Duration::from_mins(1),
            request_timeout: Duration::from_secs(10),
        }
    }
}

impl Default for PermissionOptions {
    fn default() -> Self {
        PermissionOptions {
            default_publish: vec!["PUBLIC.>".into()],
            default_subscribe: vec!["PUBLIC.>".into(), "_INBOX.>".into()],
        }
    }
}

impl Default for AuthFileOptions {
    fn default() -> Self {
        AuthFileOptions {
            path: "auth.conf".into(),
            mode: 0o640,
            create_backups: true,
            backup_dir: "backups".into(),
            max_backups: 30,
            group: String::new(),
            login_timeout: None,
            generate_initial: true,
        }
    }
}

impl Default for NatsOptions {
    fn default() -> Self {
        NatsOptions {
            config_file: None,
            server_binary: "nats-server".into(),
            reload_command: None,
            pid_file: Vec::new(),
            system_url: None,
            system_credentials_file: None,
            system_user: None,
            system_password: None,
            system_password_file: None,
            monitor_url: Vec::new(),
            reload_timeout: Duration::from_secs(30),
            reserved_users: Vec::new(),
        }
    }
}

impl Default for SyncOptions {
    fn default() -> Self {
        SyncOptions {
            debounce: Duration::from_millis(250),
            max_wait: Duration::from_secs(2),
            ignore_events: Vec::new(),
            max_removed: MaxRemoved::Share(0.5),
            min_removed: 10,
        }
    }
}

impl Default for AdminOptions {
    fn default() -> Self {
        AdminOptions { listen: "127.0.0.1:9478".into(), hosts: Vec::new() }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Secret {
        Secret::new(text)
    }
}

impl fmt::Debug for EventFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventFilter")
    }
}

/// A mistake in options whose place, if they came from a file, the loader adds.
fn wrong(
    setting: &str,
    problem: impl Into<String>,
    hint: impl Into<String>,
) -> Result<(), OptionsError> {
    Err(OptionsError::Wrong {
        place: Place { source: "the options".into(), position: None },
        setting: setting.into(),
        problem: problem.into(),
        hint: hint.into(),
    })
}

fn positive(setting: &str, duration: Duration) -> Result<(), OptionsError> {
    if duration > Duration::ZERO {
        return Ok(());
    }
    wrong(setting, format!("`{setting}` must be longer than nothing"), "write for example \"10s\"")
}

/// Such a name is safe in an address and in a query.
fn pocketbase_name(setting: &str, name: &str) -> Result<(), OptionsError> {
    if !name.is_empty() && name.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'_') {
        return Ok(());
    }
    wrong(
        setting,
        format!("`{setting}` is not a name that PocketBase allows"),
        "use letters, digits and `_`",
    )
}

fn web_address(setting: &str, text: &str) -> Result<(), OptionsError> {
    address(setting, text, &["http", "https"], "http://127.0.0.1:8090")
}

/// The address is not repeated in messages: it may hold a password.
fn address(setting: &str, text: &str, schemes: &[&str], example: &str) -> Result<(), OptionsError> {
    let url = match Url::parse(text) {
        Ok(url) if schemes.contains(&url.scheme()) && url.has_host() => url,
        _ => {
            return wrong(
                setting,
                format!(
                    "`{setting}` is not an address that begins with {}://",
                    schemes.join(":// or ")
                ),
                format!("write it like \"{example}\""),
            );
        }
    };
    if !url.username().is_empty() || url.password().is_some() {
        return wrong(
            setting,
            format!("`{setting}` holds a user or password"),
            "use the settings for credentials, whose values never appear in logs",
        );
    }
    if url.query().is_some() || url.fragment().is_some() {
        return wrong(setting, format!("`{setting}` holds a `?` or `#`"), "end it with the path");
    }
    Ok(())
}

fn is_in_the_clear(url: &str) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|it| it.is_loopback());
    url.scheme() == "http" && !loopback
}

/// An empty string means "unset", in the file as in the environment.
fn unless_empty<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    T::deserialize(StringDeserializer::new(text)).map(Some)
}

fn one_or_many<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a string or an array of strings")]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    let texts = match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(text) if text.is_empty() => Vec::new(),
        OneOrMany::One(text) => vec![text],
        OneOrMany::Many(texts) => texts,
    };
    texts.into_iter().map(|it| T::deserialize(StringDeserializer::new(it))).collect()
}

fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a whole number, 0 or more")]
    enum Count {
        Is(usize),
    }
    let Count::Is(count) = Count::deserialize(deserializer)?;
    Ok(count)
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    match jiff::fmt::friendly::SpanParser::new().parse_unsigned_duration(&text) {
        // Far beyond it, adding to a clock would overflow.
        Ok(duration) if duration > Duration::from_hours(24 * 366) => {
            Err(de::Error::custom(format!("`{text}` is longer than a year")))
        }
        Ok(duration) => Ok(duration),
        Err(_) => Err(de::Error::custom(format!(
            "`{text}` is not a duration such as \"250ms\", \"10s\" or \"5m\""
        ))),
    }
}

fn optional_duration<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    match String::deserialize(deserializer)? {
        text if text.is_empty() => Ok(None),
        text => duration(StringDeserializer::new(text)).map(Some),
    }
}

fn mode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digits = text.bytes().all(|it| matches!(it, b'0'..=b'7'));
    match u32::from_str_radix(&text, 8) {
        Ok(mode) if digits && mode <= 0o777 => Ok(mode),
        _ => Err(de::Error::custom(format!("`{text}` is not a file mode such as \"0640\""))),
    }
}
