//! Every setting, typed: from the settings file, the environment, or plain Rust.

mod check;
mod load;
mod settings;

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use serde::{
    Deserialize, Deserializer,
    de::{self, value::StringDeserializer},
};
use zeroize::Zeroizing;

pub use self::{
    check::Note,
    load::{OptionsError, Place, keep_settings_from},
    settings::{reference, settings_file, with_settings},
};
use crate::auth::{Event, EventType, MaxRemoved, Policy};

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
    /// Whether to write into the collection `nats_sync_status` what is in force and what is not.
    pub write_status: bool,
    /// How long to go without a hint before looking anyway.
    #[serde(deserialize_with = "duration")]
    pub resync_interval: Duration,
    /// How long one request may take.
    #[serde(deserialize_with = "duration")]
    pub request_timeout: Duration,
}

/// `[permissions]`: what users without a role may do.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
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
    /// verifies and cuts off. Several servers are separated by commas. They and the others of their
    /// clusters must run the file; who else is on that account need not.
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
    /// The part of the time, up to 1, in which reloads may let nobody in. What takes something from
    /// somebody does not wait for that.
    #[serde(deserialize_with = "share")]
    pub max_reload_share: f64,
}

/// `[admin]`: the address at which the daemon tells how it is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
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

/// What the settings say about records.
impl From<&Options> for Policy {
    fn from(options: &Options) -> Policy {
        let Options { pocketbase, permissions, auth_file, nats, .. } = options;
        Policy {
            user_collection: pocketbase.user_collection.clone(),
            role_collection: pocketbase.role_collection.clone(),
            username_field: pocketbase.username_field.clone(),
            password_field: pocketbase.password_field.clone(),
            role_field: pocketbase.role_field.clone(),
            default_publish: permissions.default_publish.clone(),
            default_subscribe: permissions.default_subscribe.clone(),
            reserved: nats.reserved_users.iter().cloned().collect(),
            needed: None,
            login_timeout: auth_file.login_timeout,
        }
    }
}

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

impl EventFilter {
    /// A filter that asks this function.
    pub fn new(apply_at_once: impl Fn(&Event) -> bool + Send + Sync + 'static) -> EventFilter {
        EventFilter(Arc::new(apply_at_once))
    }

    /// What neither the list nor the function lets pass by. `None`: nothing passes by.
    pub(crate) fn both(ignored: &[EventType], filter: Option<&EventFilter>) -> Option<EventFilter> {
        if ignored.is_empty() {
            return filter.cloned();
        }
        let (ignored, filter) = (ignored.to_vec(), filter.cloned());
        Some(EventFilter(Arc::new(move |event| {
            !ignored.contains(&event.kind) && filter.as_ref().is_none_or(|it| it.0(event))
        })))
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
            write_status: false,
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
            max_reload_share: 0.2,
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

fn share<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let text = String::deserialize(deserializer)?;
    let percent = text.strip_suffix('%').and_then(|it| it.trim().parse::<f64>().ok());
    let wrong = || de::Error::custom(format!("`{text}` is not a share such as \"20%\""));
    percent.map(|it| it / 100.0).ok_or_else(wrong)
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
