//! `pb-nats init`: what PocketBase, nats-server and pb-nats itself need before the first pass.
//!
//! First it is worked out what is missing, then that is made, in an order in which each step leaves
//! everything working. What is there already is neither changed nor made again, so a run that was
//! interrupted is finished by the next one.

mod files;
mod migration;
mod schema;

use std::{
    fmt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use fs_err as fs;
use serde_json::{Value, json};

use crate::{
    Source as _,
    engine::{
        EngineError,
        config::{AuthFile, Conflict, add_to_main_config},
    },
    options::{Options, PocketBaseOptions, with_settings},
    source::{PocketBase, STATUS_COLLECTION, SourceError, Superuser},
    state::{Adopt, Existing, StateError, StateFile, add_to_settings, place},
};

use self::schema::There;
pub use self::schema::{Change, SERVICE_COLLECTION, SERVICE_EMAIL};

/// The service account's token lives so long, in seconds: ten years. It is ended by a change of the
/// account's password.
const TOKEN_LIFETIME: u64 = 10 * 365 * 24 * 60 * 60;
/// What `init` starts from.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The settings, as far as they are known; at least `pocketbase.url`.
    pub options: Options,
    /// The settings file.
    pub settings: Settings,
    /// nats-server's main config, if it is to be made to include the auth file.
    pub main_config: Option<PathBuf>,
}

/// A settings file.
#[derive(Clone, Debug)]
pub enum Settings {
    /// It is to be written here.
    New(PathBuf),
    /// It is here. It gains what it lacks, and what it says stays.
    There(PathBuf),
}

impl Default for Settings {
    fn default() -> Settings {
        Settings::New("pb-nats.toml".into())
    }
}

/// What is missing, and the superuser who can make it.
#[derive(Debug)]
pub struct Plan {
    /// What is to be done, in this order. Empty: nothing.
    pub steps: Vec<Step>,
    /// What someone should know, whether or not anything is done.
    pub notes: Vec<String>,
    /// Lines that the main config needs, if nobody adds them.
    pub lines: Option<String>,
    /// Whether there is an auth file of somebody else, which is to be taken over before anything else.
    pub adopt: bool,
    /// The settings as they will be.
    pub options: Options,
    superuser: Superuser,
}

/// One thing to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Something in PocketBase.
    PocketBase(Change),
    /// A token of the service account, into this file.
    Token(PathBuf),
    /// A settings file.
    Settings {
        /// Where.
        path: PathBuf,
        /// What it will hold.
        text: String,
    },
    /// Values that the settings file lacks.
    FurtherSettings {
        /// Where.
        path: PathBuf,
        /// Names such as `nats.pid_file`, with values in TOML.
        values: Vec<(&'static str, String)>,
    },
    /// An auth file that lets nobody in, so that nats-server starts.
    AuthFile(PathBuf),
    /// Lines at the end of the main config.
    MainConfig {
        /// The main config.
        path: PathBuf,
        /// The lines.
        lines: String,
        /// The folder in which the former one is kept.
        backups: PathBuf,
    },
}

/// Something is not as `init` needs it. Steps that were told as done stay done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitError {
    /// PocketBase could not be read or changed.
    #[error("PocketBase could not be set up")]
    PocketBase(#[from] SourceError),
    /// A file could not be written. What was there is there.
    #[error("nats-server's side could not be set up")]
    File(#[from] StateError),
    /// The main config, or what it includes, is not as it should be. It was left alone.
    #[error("nats-server's side could not be set up")]
    Engine(#[from] EngineError),
    /// The main config lets users in itself, whom the include would lock out. It was left alone.
    #[error(
        "`{}` has an `authorization` block of its own (line {line}), which the include would \
         replace{}", path.display(), locked_out(.users)
    )]
    Occupied {
        /// The main config.
        path: PathBuf,
        /// Where the block begins.
        line: usize,
        /// Who may log in by it.
        users: Vec<String>,
    },
    /// The main config has something with which nats-server takes no users from a file. It was left
    /// alone.
    #[error("`{}` does not go with users in a file: {conflict}", path.display())]
    Conflict {
        /// The main config.
        path: PathBuf,
        /// What it has.
        conflict: Conflict,
    },
    /// The main config cannot be added to. It was left alone.
    #[error("nothing can be added to `{}`: {why}", path.display())]
    MainConfig {
        /// The main config.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

fn locked_out(users: &[String]) -> String {
    if users.is_empty() {
        String::new()
    } else {
        format!(": locked out would be {}", users.join(", "))
    }
}

impl InitError {
    /// What one can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            InitError::PocketBase(SourceError::ViewUnknown { view }) => format!(
                "`{view}` was not made by pb-nats; rename it, or set `pocketbase.export_view` to \
                 another name"
            ),
            InitError::PocketBase(SourceError::Settings(_)) => {
                "give collections names of letters, digits and `_`".into()
            }
            InitError::PocketBase(error) => return error.hint(),
            InitError::Engine(EngineError::Rejected(_)) => {
                "the main config is as it was; mend what is told, or add the lines by hand".into()
            }
            InitError::Engine(EngineError::MainConfig(_)) => {
                "`--nats-config` is the file that nats-server is started with (`nats-server -c FILE`); \
                 without it, the lines are printed that have to be added"
                    .into()
            }
            InitError::Engine(EngineError::State(error)) | InitError::File(error) => {
                return error.hint().map(str::to_owned);
            }
            InitError::Occupied { .. } => {
                "run it without `--nats-config`, make records for these users (`pb-nats user add`), \
                 remove the block, and run it again with `--nats-config`"
                    .into()
            }
            InitError::Conflict { conflict, .. } => conflict.hint().into(),
            InitError::MainConfig { .. } => {
                "mend that first; or run it without `--nats-config`, and add the lines by hand that \
                 it prints"
                    .into()
            }
        })
    }
}

/// Works out what is missing. Changes nothing.
pub async fn plan(wanted: &Wanted, superuser: Superuser) -> Result<Plan, InitError> {
    let mut options = wanted.options.clone();
    let there = look(&superuser, &options.pocketbase).await?;
    let (changes, mut notes) = schema::missing(&options.pocketbase, &there)?;
    let mut steps: Vec<Step> = changes.into_iter().map(Step::PocketBase).collect();

    let new = matches!(wanted.settings, Settings::New(_));
    let addition = match &wanted.main_config {
        Some(path) => files::addition(path, &mut options, new, &mut notes).await?,
        None => None,
    };
    // A file of somebody else may let anybody in, so it is not included before it is ours. Nor is a
    // main config told to pb-nats that does not include it.
    let foreign = |it: &Options| match StateFile::new(it).read(Adopt::No) {
        Err(error @ (StateError::Foreign { .. } | StateError::Newer { .. })) => Some(error),
        Ok(_) | Err(_) => None,
    };
    let addition = addition.filter(|_| foreign(&options).is_none());
    if foreign(&options).is_some() {
        options.nats.clone_from(&wanted.options.nats);
    }
    match &wanted.settings {
        Settings::New(path) => {
            let text = files::settings(&mut options, path, &there)?;
            steps.push(Step::Settings { path: path.clone(), text });
        }
        Settings::There(path) => {
            let values = files::gained(&wanted.options, &options, path);
            let text = fs::read_to_string(path).unwrap_or_default();
            if values.is_empty() {
            } else if with_settings(&text, &values).is_some() {
                steps.push(Step::FurtherSettings { path: path.clone(), values });
            } else {
                notes.push(format!("set in {}: {}", path.display(), listed(&values)));
            }
        }
    }
    let needs_token = options.pocketbase.data_dir.is_none() || options.pocketbase.write_status;
    if let Some(path) = options.pocketbase.token_file.clone().filter(|_| needs_token) {
        let token = fs::read_to_string(&path).unwrap_or_default();
        if !superuser.accepts(token.trim()).await? {
            // Before the settings that name it.
            let at = steps
                .iter()
                .position(|it| matches!(it, Step::Settings { .. } | Step::FurtherSettings { .. }));
            steps.insert(at.unwrap_or(steps.len()), Step::Token(path));
        }
    }
    let path = &options.auth_file.path;
    let foreign = foreign(&options);
    let adopt = foreign.is_some();
    if let Some(error) = foreign {
        notes.push(files::foreign(&error, path));
    } else if StateFile::new(&options).read(Adopt::No)?.desired.is_none() {
        steps.push(Step::AuthFile(path.clone()));
    }
    if let (Some(path), Some(lines)) = (&wanted.main_config, addition) {
        let backups = options.auth_file.backup_dir.clone();
        steps.push(Step::MainConfig { path: path.clone(), lines, backups });
    }
    let lines = files::by_hand(&options).filter(|_| wanted.main_config.is_none());
    Ok(Plan { steps, notes, lines, adopt, options, superuser })
}

impl Plan {
    /// Does it, step by step; `done` is told of each that is done.
    pub async fn carry_out(&self, mut done: impl FnMut(&Step)) -> Result<(), InitError> {
        for step in &self.steps {
            match step {
                Step::PocketBase(change) => make(&self.superuser, change).await?,
                Step::Token(path) => {
                    let token = service_token(&self.superuser).await?;
                    place(path, &format!("{token}\n"), 0o600, Existing::Replaced)?;
                }
                Step::Settings { path, text } => place(path, text, 0o644, Existing::Stays)?,
                Step::FurtherSettings { path, values } => add_to_settings(path, values)?,
                Step::AuthFile(_) => AuthFile::new(&self.options).lock_out().await?,
                Step::MainConfig { path, lines, .. } => {
                    add_to_main_config(&self.options, path, lines).await?;
                }
            }
            done(step);
        }
        Ok(())
    }

    /// Reads the records as a pass will, and says how many users and roles there are.
    pub async fn prove(&self) -> Result<(usize, usize), InitError> {
        let snapshot = PocketBase::open(&self.options.pocketbase)?.snapshot().await?;
        Ok((snapshot.users.len(), snapshot.roles.len()))
    }

    /// What is to be done in PocketBase, as a migration: the name of a file, and its text. `None`:
    /// nothing is.
    pub fn migration(&self) -> Option<(String, String)> {
        let changes = self.steps.iter().filter_map(|it| match it {
            Step::PocketBase(change) => Some(change.clone()),
            _ => None,
        });
        as_migration(&changes.collect::<Vec<_>>())
    }
}

/// The migration for a PocketBase that has nothing of it yet.
pub fn migration(options: &PocketBaseOptions) -> Result<(String, String), InitError> {
    let (changes, _) = schema::missing(options, &There::default())?;
    Ok(as_migration(&changes).expect("everything is missing"))
}

fn as_migration(changes: &[Change]) -> Option<(String, String)> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let name = format!("{now}{MIGRATION}");
    (!changes.is_empty()).then(|| (name, migration::migration(changes)))
}

/// How the names of our migrations end.
const MIGRATION: &str = "_pb_nats.js";

/// Writes a migration into the folder, unless it has the same one. Returns its path.
pub fn write_migration(folder: &Path, name: &str, text: &str) -> Result<PathBuf, InitError> {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let ours = path.file_name().is_some_and(|it| it.to_string_lossy().ends_with(MIGRATION));
        if ours && fs::read_to_string(&path).is_ok_and(|it| it == text) {
            return Ok(path);
        }
    }
    let path = folder.join(name);
    place(&path, text, 0o644, Existing::Stays)?;
    Ok(path)
}

async fn look(superuser: &Superuser, options: &PocketBaseOptions) -> Result<There, SourceError> {
    let users = superuser.collection(&options.user_collection).await?;
    let roles = superuser.collection(&options.role_collection).await?;
    for (collection, name) in
        [(&users, &options.user_collection), (&roles, &options.role_collection)]
    {
        if collection.as_ref().is_some_and(|it| it["type"] == "view") {
            return Err(SourceError::IsView { collection: name.clone() });
        }
    }
    let all = superuser.collections().await?;
    let service = superuser.collection(SERVICE_COLLECTION).await?;
    let view = match options.export_view.as_str() {
        "" => None,
        name => superuser.collection(name).await?,
    };
    let status =
        if options.write_status { superuser.collection(STATUS_COLLECTION).await? } else { None };
    let account = match service {
        Some(_) => service_account(superuser).await?.is_some(),
        None => false,
    };
    // Four are more than we make ourselves, and that is all that matters.
    let role_names = match roles {
        Some(_) => superuser.records(&options.role_collection, 4).await?,
        None => Vec::new(),
    };
    let role_names =
        role_names.iter().filter_map(|it| it["name"].as_str().map(str::to_owned)).collect();
    let any_user = match users {
        Some(_) => !superuser.records(&options.user_collection, 1).await?.is_empty(),
        None => false,
    };
    Ok(There { all, users, roles, service, view, status, account, role_names, any_user })
}

/// The id of the service account. Whatever else is in its collection is not ours.
async fn service_account(superuser: &Superuser) -> Result<Option<String>, SourceError> {
    let accounts = superuser.records(SERVICE_COLLECTION, 1000).await?;
    let ours = accounts.iter().find(|it| it["email"] == SERVICE_EMAIL);
    Ok(ours.and_then(|it| it["id"].as_str()).map(str::to_owned))
}

/// A token that lives for years, in the form that PocketBase has for it.
async fn service_token(superuser: &Superuser) -> Result<String, SourceError> {
    let missing = || SourceError::NoCollection { collection: SERVICE_COLLECTION.into() };
    let id = service_account(superuser).await?.ok_or_else(missing)?;
    let path = ["collections", SERVICE_COLLECTION, "impersonate", &id];
    let answer = superuser.create(&path, &json!({ "duration": TOKEN_LIFETIME })).await?;
    answer["token"].as_str().map(str::to_owned).ok_or_else(missing)
}

async fn make(superuser: &Superuser, change: &Change) -> Result<(), SourceError> {
    let records = |collection| ["collections", collection, "records"];
    match change {
        Change::Collection(collection) => {
            superuser.create(&["collections"], collection).await?;
        }
        Change::Extend { collection, fields, indexes, list_rule } => {
            // As it is now: what others add meanwhile stays.
            let missing = || SourceError::NoCollection { collection: collection.clone() };
            let now = superuser.collection(collection).await?.ok_or_else(missing)?;
            let with = |key: &str, more: Vec<Value>| {
                let there = now[key].as_array().cloned().unwrap_or_default();
                Value::from([there, more].concat())
            };
            let mut body = json!({
                "fields": with("fields", fields.clone()),
                "indexes": with("indexes", indexes.iter().map(|it| json!(it)).collect()),
            });
            if let Some(rule) = list_rule {
                body["listRule"] = json!(rule);
            }
            superuser.update(&["collections", collection], &body).await?;
        }
        Change::View { name, query } => {
            superuser.update(&["collections", name], &json!({ "viewQuery": query })).await?;
        }
        Change::Account => {
            let password = crate::users::secret();
            let account = json!({
                "email": SERVICE_EMAIL, "verified": true,
                "password": password.reveal(), "passwordConfirm": password.reveal(),
            });
            superuser.create(&records(SERVICE_COLLECTION), &account).await?;
        }
        Change::Role { collection, record } => {
            superuser.create(&records(collection), record).await?;
        }
    }
    Ok(())
}

/// Settings with their values, in one line.
fn listed(values: &[(&str, String)]) -> String {
    let all: Vec<_> = values.iter().map(|(name, value)| format!("`{name} = {value}`")).collect();
    all.join(", ")
}

impl Step {
    /// How to take it back by hand.
    pub fn undo(&self) -> Option<String> {
        Some(match self {
            Step::PocketBase(Change::Collection(it)) => {
                format!("in PocketBase, delete the collection {}", it["name"])
            }
            Step::PocketBase(Change::Extend { collection, fields, indexes, list_rule }) => {
                // An index goes before its field.
                let mut names: Vec<_> =
                    indexes.iter().map(|it| format!("the index {it}")).collect();
                names.extend(fields.iter().map(|it| it["name"].to_string()));
                names.extend(list_rule.as_ref().map(|_| "the list rule".into()));
                format!("in PocketBase, remove from `{collection}`: {}", names.join(", "))
            }
            // They go with their collection, or as any record does.
            Step::PocketBase(Change::View { .. } | Change::Account | Change::Role { .. }) => {
                return None;
            }
            Step::Token(path) | Step::AuthFile(path) | Step::Settings { path, .. } => {
                format!("delete {}", path.display())
            }
            Step::FurtherSettings { path, values } => {
                format!("in {}, take out: {}", path.display(), listed(values))
            }
            Step::MainConfig { path, backups, .. } => {
                format!("put back {} from {}", path.display(), backups.display())
            }
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::PocketBase(change) => change.fmt(f),
            Step::Token(path) => {
                write!(f, "{}: a token of that account, which nobody else may read", path.display())
            }
            Step::Settings { path, .. } => write!(f, "{}: the settings", path.display()),
            Step::FurtherSettings { path, values } => {
                write!(f, "{}: {}", path.display(), listed(values))
            }
            Step::AuthFile(path) => {
                write!(f, "{}: an auth file that lets nobody in yet", path.display())
            }
            Step::MainConfig { path, lines, .. } => {
                let lines = lines.trim().replace('\n', "\n    ");
                write!(f, "{}: these lines at its end\n    {lines}", path.display())
            }
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |fields: &[Value]| {
            let names: Vec<_> = fields.iter().filter_map(|it| it["name"].as_str()).collect();
            names.join(", ")
        };
        match self {
            Change::Collection(it) => {
                let (name, kind) = (it["name"].as_str(), it["type"].as_str());
                write!(f, "PocketBase: the {} collection ", kind.unwrap_or_default())?;
                write!(f, "`{}`", name.unwrap_or_default())?;
                if let Some(fields) = it["fields"].as_array() {
                    write!(f, " ({})", names(fields))?;
                }
                if it.get("authRule").is_some_and(Value::is_null) {
                    f.write_str(", by which nobody can log in to PocketBase")?;
                }
                Ok(())
            }
            Change::Extend { collection, fields, indexes, list_rule } => {
                let mut parts = Vec::new();
                if !fields.is_empty() {
                    parts.push(format!("the fields {}", names(fields)));
                }
                parts.extend(indexes.iter().cloned());
                parts.extend(list_rule.iter().map(|it| format!("the list rule {it}")));
                write!(f, "PocketBase: in `{collection}` {}", parts.join("; "))
            }
            Change::View { name, .. } => {
                write!(f, "PocketBase: the view `{name}`, brought up to date")
            }
            Change::Account => write!(
                f,
                "PocketBase: the account `{SERVICE_EMAIL}` in `{SERVICE_COLLECTION}`, which may \
                 do what these collections' rules let it and nothing else"
            ),
            Change::Role { record, .. } => {
                write!(f, "PocketBase: the role {}", record["name"].as_str().unwrap_or_default())
            }
        }
    }
}
