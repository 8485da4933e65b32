//! Where users and roles come from.

mod api;
mod http;
mod inspect;
mod names;
mod pulse;
mod realtime;
mod record;
#[cfg(feature = "sqlite")]
mod sqlite;
pub mod sse;
mod status_collection;
mod superuser;
pub mod view;

use std::{
    collections::BTreeMap,
    error::Error,
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{auth::Snapshot, options::PocketBaseOptions, tls};

pub use http::Http;
pub use inspect::{Account, Collection, Inspection};
pub(crate) use inspect::{admits_any_account, no_input_for_passwords};
pub(crate) use names::ROLES_ID;
pub use record::{Field, Schema};
#[cfg(feature = "sqlite")]
pub use sqlite::Sqlite;
pub use status_collection::STATUS_COLLECTION;
pub(crate) use status_collection::{OVERALL, Records, StatusCollection, StatusRecord};
pub use superuser::{Login, Superuser};

/// A place that knows the users and roles.
///
/// An implementation owns everything about getting at that knowledge: login, paging, reconnecting,
/// backing off. It does not judge what it reads.
pub trait Source: Send {
    /// Reads everything, as of one moment.
    ///
    /// Any doubt is an error: an empty answer is only given when the source surely is empty.
    fn snapshot(&mut self) -> impl Future<Output = Result<Snapshot, SourceError>> + Send;

    /// Returns when the answer of [`snapshot`](Source::snapshot) may have changed.
    ///
    /// It is a hint. It may come late, twice, or for nothing; if it never comes, the periodic
    /// resync still does. A hint that arrives while nobody waits is kept for the next call, and
    /// every reconnect is itself a hint, since nobody knows what was missed. Dropping the future
    /// loses nothing.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;

    /// How it is connected, for people to look at. Nothing is decided by it.
    fn link(&self) -> watch::Receiver<Link> {
        watch::Sender::new(Link::default()).subscribe()
    }
}

/// How a [`Source`] is connected.
#[derive(Clone, Debug, Default)]
pub struct Link {
    /// What the source is.
    pub kind: Kind,
    /// Where it is, without credentials.
    pub address: String,
    /// Since when there has been a live connection, if there is one. That it is renewed before its time
    /// is over makes no difference.
    pub connected: Option<SystemTime>,
    /// How often it had to be made again, since it broke.
    pub reconnects: u64,
    /// Whether the source does not even answer now. Of one that is not asked, nobody knows.
    pub silence: Option<Silence>,
    /// How many changes it has told of.
    pub events: u64,
    /// The collections of whose changes it does not tell, or not of all, and why: those are seen when
    /// everything is read again.
    pub unheard: BTreeMap<String, String>,
}

/// A source that does not answer.
#[derive(Clone, Debug)]
pub struct Silence {
    /// When it last did.
    pub since: SystemTime,
    /// What comes instead of an answer.
    pub error: Arc<SourceError>,
}

impl Link {
    /// What one can do about a collection that is unheard.
    pub fn hint(collection: &str) -> String {
        format!(
            "PocketBase tells of a change whom the list rule of `{collection}` lets see the record: let \
             that rule admit pb-nats's account to all records, as `pb-nats init` does"
        )
    }
}

/// The kinds of [`Source`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// PocketBase, over its web API.
    #[serde(rename = "pocketbase")]
    PocketBase,
    /// PocketBase's database file.
    Database,
    /// Something else.
    #[default]
    Other,
}

/// A PocketBase: over the network, or its database file on this machine.
///
/// Both read the same records as the same [`Snapshot`].
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a process has one of them")]
pub enum PocketBase {
    /// Over its web API.
    Http(Http),
    /// From its data folder.
    #[cfg(feature = "sqlite")]
    Sqlite(Sqlite),
}

impl PocketBase {
    /// Takes the settings, and refuses those that contradict each other.
    ///
    /// PocketBase need not be there yet: it is first asked by [`snapshot`](Source::snapshot).
    pub fn open(options: &PocketBaseOptions) -> Result<PocketBase, SourceError> {
        match (&options.url, &options.data_dir) {
            (Some(_), Some(_)) if !options.write_status => {
                Err(SourceError::Settings("both `url` and `data_dir` are set".into()))
            }
            (None, None) => {
                Err(SourceError::Settings("neither `url` nor `data_dir` is set".into()))
            }
            (Some(url), None) => Http::open(url, options).map(PocketBase::Http),
            #[cfg(feature = "sqlite")]
            (_, Some(folder)) => Ok(PocketBase::Sqlite(Sqlite::open(folder, options))),
            #[cfg(not(feature = "sqlite"))]
            (_, Some(_)) => Err(SourceError::Settings(
                "`data_dir` is set, but this pb-nats was built without the feature `sqlite`".into(),
            )),
        }
    }
}

impl PocketBase {
    /// Another reader of the same, with the same session: whoever has one need not log in again.
    pub(crate) fn beside(&self) -> PocketBase {
        match self {
            PocketBase::Http(http) => PocketBase::Http(http.beside()),
            #[cfg(feature = "sqlite")]
            PocketBase::Sqlite(sqlite) => PocketBase::Sqlite(sqlite.beside()),
        }
    }
}

impl Source for PocketBase {
    async fn snapshot(&mut self) -> Result<Snapshot, SourceError> {
        match self {
            PocketBase::Http(http) => http.snapshot().await,
            #[cfg(feature = "sqlite")]
            PocketBase::Sqlite(sqlite) => sqlite.snapshot().await,
        }
    }

    async fn changed(&mut self) {
        match self {
            PocketBase::Http(http) => http.changed().await,
            #[cfg(feature = "sqlite")]
            PocketBase::Sqlite(sqlite) => sqlite.changed().await,
        }
    }

    fn link(&self) -> watch::Receiver<Link> {
        match self {
            PocketBase::Http(http) => http.link(),
            #[cfg(feature = "sqlite")]
            PocketBase::Sqlite(sqlite) => sqlite.link(),
        }
    }
}

/// The source could not be read. Nothing was changed: what is in force stays in force.
///
/// No variant holds a token or a password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The settings contradict each other or make no sense. PocketBase was not asked.
    #[error("{0}")]
    Settings(String),
    /// The file with the token or password cannot be read. PocketBase was not asked.
    #[error("the file with the token or password cannot be read")]
    Credentials(#[source] io::Error),
    /// The system's or the extra certificate authorities cannot be used. PocketBase was not asked.
    #[error("the certificate authorities cannot be used")]
    Certificates(#[source] Box<dyn Error + Send + Sync>),
    /// There was no connection, or it broke in the middle of the answer.
    #[error("PocketBase at `{url}` cannot be reached")]
    Unreachable {
        /// Its address.
        url: String,
        /// What happened.
        #[source]
        source: reqwest::Error,
    },
    /// There is a connection, but no complete answer.
    #[error("PocketBase at `{url}` did not answer within {timeout:?}")]
    Slow {
        /// Its address.
        url: String,
        /// How long it had.
        timeout: Duration,
    },
    /// The address answers that another one should be asked. That one was not: it would see the
    /// token.
    #[error("`{request}` is redirected to `{to}`")]
    Redirected {
        /// What was asked for.
        request: String,
        /// Where it should be asked for.
        to: String,
    },
    /// The answer is one of failure, from PocketBase or from something in front of it.
    #[error("`{request}` was answered with {status}: {answer}")]
    Status {
        /// What was asked for.
        request: String,
        /// The status of the answer.
        status: u16,
        /// The beginning of the answer.
        answer: String,
        /// Whether it has not the form of PocketBase's: something in front of it answered.
        foreign: bool,
    },
    /// The answer has no end, or is larger than any that makes sense. It was not read to its end.
    #[error("the answer to `{request}` is larger than {} MiB", most >> 20)]
    TooLarge {
        /// What was asked for.
        request: String,
        /// So many bytes would have been read.
        most: usize,
    },
    /// The answer is one of success, but not one that PocketBase gives.
    #[error("the answer to `{request}` is not PocketBase's: {answer}")]
    NotPocketBase {
        /// What was asked for.
        request: String,
        /// The beginning of the answer.
        answer: String,
    },
    /// The token is wrong, has expired or was revoked. PocketBase treats us as a guest.
    #[error("PocketBase does not accept the token")]
    TokenRefused,
    /// PocketBase does not know the identity, or its password is another.
    #[error("PocketBase does not accept the identity and password for `{collection}`: {answer}")]
    LoginRefused {
        /// The auth collection.
        collection: String,
        /// What PocketBase says.
        answer: String,
    },
    /// The password is right, or nobody looked at it: superusers are let in from other addresses only.
    #[error("PocketBase lets superusers in from other addresses only, not from this machine's")]
    AddressRefused,
    /// The password was not looked at: nobody logs in to that collection by one.
    #[error("nobody can log in to `{collection}` by password: that is switched off there")]
    NoPasswordLogin {
        /// The auth collection.
        collection: String,
    },
    /// The password is right, but the collection's authentication rule does not let the account in.
    #[error("the authentication rule of `{collection}` does not let the account in")]
    RuledOut {
        /// The auth collection.
        collection: String,
    },
    /// There is no such collection, or nobody can log in to it, as it is of another type.
    #[error("PocketBase has no auth collection `{collection}`")]
    NoAuthCollection {
        /// The collection.
        collection: String,
    },
    /// PocketBase has no superusers yet: it is older than 0.23.
    #[error("PocketBase at `{url}` is older than 0.23")]
    TooOld {
        /// Its address.
        url: String,
    },
    /// The token is good, but not a superuser's.
    #[error("the token is not a superuser's")]
    NotSuperuser,
    /// The password alone is not enough to log in.
    #[error("the account wants a second factor besides its password")]
    SecondFactor,
    /// The account is known, but must not read the collection.
    #[error("the account may not read `{collection}`")]
    Forbidden {
        /// The collection.
        collection: String,
        /// The collection of the account, by its name of now, if PocketBase told.
        account: Option<String>,
    },
    /// What was a collection of that name has another one now.
    #[error("PocketBase has no collection `{collection}`: it is now called `{now}`")]
    Renamed {
        /// The collection in the settings.
        collection: String,
        /// What it is called now.
        now: String,
    },
    /// The collection was never made, or is named otherwise.
    #[error("PocketBase has no collection `{collection}`")]
    NoCollection {
        /// The collection.
        collection: String,
    },
    /// The collection that is to show in PocketBase how it is cannot be written. Users and roles are
    /// read all the same.
    #[error("`{collection}` cannot be written: {why}")]
    Unwritable {
        /// The collection.
        collection: String,
        /// Why.
        why: String,
    },
    /// The collection is a view, where one that holds records is needed.
    #[error("the collection `{collection}` is a view")]
    IsView {
        /// The collection.
        collection: String,
    },
    /// A field that is needed was never made, is named otherwise, or is hidden from the account.
    #[error("the collection `{collection}` shows no field `{field}`")]
    NoField {
        /// The collection.
        collection: String,
        /// The field.
        field: String,
        /// The setting that says what it is called, if one does.
        setting: Option<&'static str>,
        /// What it is called now, if that is known.
        now: Option<String>,
    },
    /// A field holds what it must not.
    #[error("the field `{field}` of `{collection}` is not {wanted} (record `{record}`)")]
    WrongType {
        /// The collection.
        collection: String,
        /// The field.
        field: String,
        /// What is wanted.
        wanted: &'static str,
        /// The id of a record.
        record: String,
    },
    /// The passwords are not shown. That is not "nobody has one", so nothing is concluded from it.
    #[error("PocketBase's API does not show the field `{field}` of `{collection}`")]
    PasswordsHidden {
        /// The collection.
        collection: String,
        /// The field.
        field: String,
    },
    /// The records changed during each of several readings.
    #[error("the records kept changing during {readings} readings")]
    Torn {
        /// How many readings there were.
        readings: usize,
    },
    /// The export view is there, but shows no row.
    #[error("the view `{view}` shows its row to others, not to this account")]
    ViewHidden {
        /// The view.
        view: String,
        /// The collection of the account, by its name of now, if PocketBase told.
        account: Option<String>,
    },
    /// The export view is not one that pb-nats understands.
    #[error("the view `{view}` is not an export view that pb-nats understands")]
    ViewUnknown {
        /// The view.
        view: String,
    },
    /// The export view was made for other collections than those in the settings.
    #[error("the view `{view}` carries the collection `{carried}`, not `{wanted}`")]
    ViewOfOther {
        /// The view.
        view: String,
        /// The collection it was made for.
        carried: String,
        /// The collection in the settings.
        wanted: String,
    },
    /// A field was added to the collection after the export view was made.
    #[error("the view `{view}` lacks the field `{field}` of `{collection}`")]
    ViewLacks {
        /// The view.
        view: String,
        /// The collection.
        collection: String,
        /// The field.
        field: String,
    },
    /// The data folder, or the database in it, is not there or cannot be looked at.
    #[error("there is no PocketBase database")]
    NoDatabase(#[source] io::Error),
    /// The database cannot be read.
    #[error("the database `{}` cannot be read", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// It is a database, but not one of PocketBase.
    #[error("the database `{}` is not one of PocketBase 0.23 or later", path.display())]
    NotPocketBaseData {
        /// The file.
        path: PathBuf,
    },
}

impl SourceError {
    /// The same, of a field that is known to be called so now.
    fn now_called(self, name: &str) -> SourceError {
        match self {
            SourceError::NoField { collection, field, setting, now: _ } => {
                SourceError::NoField { collection, field, setting, now: Some(name.to_owned()) }
            }
            other => other,
        }
    }

    /// What one can do about it.
    #[expect(clippy::too_many_lines, reason = "each cause has words of its own")]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            SourceError::Settings(_) => {
                "set `url`, such as \"http://127.0.0.1:8090\", and one of `token_file`, `token` or \
                 `identity` with its password; or only `data_dir`"
                    .into()
            }
            SourceError::Credentials(_) => {
                "it must be readable and hold that alone; `pb-nats init` makes the token's".into()
            }
            SourceError::Certificates(_) => {
                "`ca_file` must be a PEM file; the system's authorities are in the package \
                 `ca-certificates`"
                    .into()
            }
            SourceError::Unreachable { source, .. } if tls::distrusts(source) => {
                "the certificate must be valid now and for the host in `url`, and its authority \
                 known to the system or in `ca_file`"
                    .into()
            }
            SourceError::Unreachable { source, .. } if tls::speaks_otherwise(source) => {
                "what listens there does not speak TLS as `https://` in `url` wants it: is it \
                 `http://`, or another port?"
                    .into()
            }
            SourceError::Unreachable { source, .. } if tls::is_unknown_host(source) => {
                "this machine's name service does not know the host in `url`".into()
            }
            SourceError::Unreachable { source, .. } if !source.is_connect() => {
                "the connection broke before the answer was complete: was PocketBase, or a proxy in \
                 front of it, just stopped? does `url` begin with `https://` where it should?"
                    .into()
            }
            SourceError::Unreachable { .. } => {
                "is PocketBase running, and is `url` its address?".into()
            }
            SourceError::Slow { .. } => {
                "does PocketBase hang, or is it too busy? Reading its records may take \
                 `request_timeout`"
                    .into()
            }
            SourceError::Redirected { to, .. } => {
                format!("if `{to}` is your PocketBase, set `url` to that address")
            }
            SourceError::Status { status: 401 | 403 | 407, foreign: true, .. } => {
                "something in front of PocketBase refuses this, and not PocketBase itself: let \
                 pb-nats through there, or set `url` to PocketBase's own address"
                    .into()
            }
            SourceError::Status { status: 429, foreign: true, .. } => {
                "something in front of PocketBase limits how often one may ask: raise that for \
                 pb-nats, or set `url` to PocketBase's own address"
                    .into()
            }
            SourceError::Status { status: 500.., foreign: true, .. } => {
                "something in front of PocketBase answers in its place: does PocketBase run, and does \
                 that reach it?"
                    .into()
            }
            SourceError::Status { foreign: true, .. } | SourceError::NotPocketBase { .. } => {
                "is `url` PocketBase's address, with the base path if it has one?".into()
            }
            SourceError::Status { status: 429, .. } => {
                "PocketBase limits how often one may ask: \"Rate limiting\" in its settings; a \
                 superuser's token is exempt"
                    .into()
            }
            SourceError::Status { status: 400, .. } => {
                "PocketBase refuses what it was sent, and says why; fix that there".into()
            }
            SourceError::Status { status: 401 | 403, .. } => {
                "PocketBase itself refuses this to the account: a hook, or a rule of yours; \"Logs\" \
                 in its dashboard tell more"
                    .into()
            }
            SourceError::Status { status: 500.., .. } => {
                "PocketBase itself failed; \"Logs\" in its dashboard tell why".into()
            }
            SourceError::Status { .. } => {
                "is `url` PocketBase's address, with the base path if it has one, and is that \
                 PocketBase 0.23 or later?"
                    .into()
            }
            SourceError::TooLarge { .. } => {
                "is `url` PocketBase's address? if it is, and there is that much: `data_dir`, on \
                 PocketBase's machine, reads any number of records"
                    .into()
            }
            SourceError::AddressRefused => {
                "add this machine's address to the superuser IPs in PocketBase's settings, or use a \
                 service account, which `pb-nats init` makes; password and token need no change"
                    .into()
            }
            SourceError::NoPasswordLogin { .. } => {
                "use a token made with \"Impersonate\" on the account's page in PocketBase, or switch \
                 on \"Identity/Password\" in the collection's options"
                    .into()
            }
            SourceError::RuledOut { collection } => {
                format!(
                    "identity and password are right; \"Authentication rule\" in the options of \
                     `{collection}` has to admit the account"
                )
            }
            SourceError::NoAuthCollection { .. } => {
                "`auth_collection` names the collection that the account is in, of the type auth".into()
            }
            SourceError::TokenRefused => {
                "tokens end with their time, and when the account's email or password changes; \
                 a lasting one is made with \"Impersonate\" on the account's page in PocketBase"
                    .into()
            }
            SourceError::LoginRefused { collection, .. } if collection == "_superusers" => {
                "check the email and the password; on PocketBase's machine `pocketbase superuser \
                 upsert EMAIL PASSWORD` sets both"
                    .into()
            }
            SourceError::LoginRefused { .. } => {
                "check `auth_collection`, `identity` and the password".into()
            }
            SourceError::TooOld { .. } => {
                "update PocketBase to 0.23 or later; its own notes say how records move along"
                    .into()
            }
            SourceError::NotSuperuser => {
                "use one made with \"Impersonate\" on a superuser's page in PocketBase".into()
            }
            SourceError::SecondFactor => "use a token made with \"Impersonate\" instead".into(),
            SourceError::Forbidden { collection: view, account }
            | SourceError::ViewHidden { view, account } => {
                let of = account.as_ref().map(|it| format!(", which is of `{it}`"));
                let of = of.unwrap_or_default();
                format!("let the list rule of `{view}` admit the account{of}, or use a superuser")
            }
            SourceError::Renamed { collection, now } => {
                format!(
                    "set `user_collection` or `role_collection`, whichever is `{collection}`, to \
                     \"{now}\"; or give it its former name again"
                )
            }
            SourceError::NoCollection { .. } => {
                "`pb-nats init` makes it; or set `user_collection`, `role_collection` or \
                 `auth_collection` to the name it has; is `url` PocketBase's address?"
                    .into()
            }
            SourceError::Unwritable { .. } => status_collection::MENDED_BY.into(),
            SourceError::IsView { .. } => "set the collection that the view selects from".into(),
            SourceError::NoField { field, setting, now: Some(now), .. } => {
                let set = setting.map(|it| format!("set `{it}` to \"{now}\", or "));
                format!(
                    "it is now called `{now}`: {}call it `{field}` again",
                    set.unwrap_or_default()
                )
            }
            SourceError::NoField { setting, now: None, .. } => {
                let named = setting.map(|it| format!(", or set `{it}` to the name it has"));
                format!(
                    "add the field{}; a hidden field is shown to superusers and by the export \
                     view only",
                    named.unwrap_or_default()
                )
            }
            SourceError::WrongType { .. } => "change the type of the field in PocketBase".into(),
            SourceError::PasswordsHidden { .. } => {
                "`pb-nats init` makes the view that shows them to pb-nats; or set `data_dir` instead \
                 of `url`, on PocketBase's machine"
                    .into()
            }
            SourceError::Torn { .. } => {
                "it is tried again; `data_dir`, on PocketBase's machine, reads in one piece".into()
            }
            SourceError::ViewUnknown { view }
            | SourceError::ViewOfOther { view, .. }
            | SourceError::ViewLacks { view, .. } => {
                format!("`pb-nats init` brings `{view}` up to date")
            }
            SourceError::NoDatabase(_) | SourceError::NotPocketBaseData { .. } => {
                "`data_dir` is the folder that PocketBase calls `pb_data`".into()
            }
            SourceError::Database { .. } => {
                "run pb-nats as a user who may read and write the folder's files; it only reads, \
                 but SQLite needs a `-shm` file beside a database in use"
                    .into()
            }
        })
    }
}
