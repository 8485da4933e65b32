//! Users and roles in PocketBase, one at a time: made, given another password, listed.
//!
//! Where the password field is of the type `password`, PocketBase hashes it at a cost that suits
//! passwords which people choose. A generated one needs no such cost, and each reload of nats-server
//! would pay for it; so beside it goes a cheap hash of the same password, in the field
//! `generated_hash`, which counts only as long as that password is the one that is set.

use std::collections::{BTreeSet, HashMap};

use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    Options, Source as _,
    auth::{
        self, Credential, Desired, Effect, Finding, Grant, PasswordHash, Permissions, Policy,
        RoleRecord, Rules, Snapshot, Subject, Subjects, UserRecord,
    },
    engine::{
        EngineError,
        config::{self, AuthFile, Outcome, Placement, Servers},
    },
    options::{PocketBaseOptions, Secret},
    source::{PocketBase, SourceError, Superuser},
    state::{Adopt, StateFile},
};

/// bcrypt's lowest cost: enough for what cannot be guessed.
pub const CHEAP: u32 = 4;
/// The cost for passwords that people choose; PocketBase's own.
const USUAL: u32 = 10;
/// A password that people choose has so many characters at least, as PocketBase wants it for its own.
pub const SHORTEST: usize = 8;
/// bcrypt looks at no more bytes of a password.
pub const LONGEST: usize = 72;
/// The id of a user who has none yet.
const NO_ID: &str = "pb-nats-new";
/// The field that every auth collection has.
const EMAIL: &str = "email";

/// A user to make.
#[derive(Clone, Copy, Debug)]
pub struct NewUser<'a> {
    /// Their name in NATS.
    pub name: &'a str,
    /// Their email, beside the name, where the collection has such a field.
    pub email: Option<&'a str>,
    /// Their roles, by name or id.
    pub roles: &'a [String],
}

/// A password to store.
#[derive(Clone, Debug)]
pub enum Password {
    /// Somebody chose it.
    Chosen(Chosen),
    /// [`secret`] made it, so that nobody can guess it.
    Generated(Secret),
}

/// A password that somebody chose, and that is not refused.
#[derive(Clone, Debug)]
pub struct Chosen(Secret);

impl Chosen {
    /// The password, for the user of this name.
    pub fn parse(password: &str, name: &str) -> Result<Chosen, Unfit> {
        if password.to_lowercase() == name.to_lowercase() {
            return Err(Unfit::Name);
        }
        match Unfit::of(password) {
            Some(unfit) => Err(unfit),
            None => Ok(Chosen(Secret::new(password))),
        }
    }
}

/// Why a password will not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It is guessed in no time.
    #[error("the password has fewer than {SHORTEST} characters")]
    Short,
    /// bcrypt looks at its beginning only.
    #[error(
        "the password is longer than {LONGEST} bytes, of which only the first {LONGEST} would count"
    )]
    Long,
    /// It is what one tries first.
    #[error("the password is the user's own name")]
    Name,
    /// Nobody types these on purpose.
    #[error("the password has control characters")]
    Control,
    /// That is how a password is typed that then does not work.
    #[error("the password begins or ends with white space")]
    Space,
}

impl Unfit {
    /// What is wrong with a password, whosever it is.
    pub fn of(password: &str) -> Option<Unfit> {
        if password.chars().any(char::is_control) {
            Some(Unfit::Control)
        } else if password.trim() != password {
            Some(Unfit::Space)
        } else if password.chars().count() < SHORTEST {
            Some(Unfit::Short)
        } else if password.len() > LONGEST {
            Some(Unfit::Long)
        } else {
            None
        }
    }

    /// What one can do about it.
    pub fn hint(self) -> &'static str {
        match self {
            Unfit::Short | Unfit::Name => {
                "anybody who reaches nats-server may guess, as often as they like; \
                 `pb-nats user … --generate` makes one that nobody guesses"
            }
            Unfit::Long => "choose a shorter one",
            Unfit::Control | Unfit::Space => {
                "is it all of the password, and nothing but it? `printf %s \"$PASSWORD\" | …` \
                 writes it as it is"
            }
        }
    }
}

/// How a password is stored now, and what becomes of the user who has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The bcrypt cost at which nats-server will check it.
    pub cost: u32,
    /// By what the user has less than one would expect, or nothing at all.
    pub notes: Vec<String>,
}

/// A user, as NATS has them or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// The name in NATS.
    pub name: String,
    /// The record's id.
    pub id: String,
    /// Whether the user may be in NATS.
    pub state: State,
    /// How far that has got.
    pub standing: Standing,
    /// Why not, if that is not by choice, and how to mend it.
    pub why: Vec<String>,
    /// The names of their roles; of one that is not there, the id.
    pub roles: Vec<String>,
    /// How they log in.
    pub credential: Kind,
    /// The bcrypt cost of their password.
    pub cost: Option<u8>,
}

/// Whether a user may be in NATS, by the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// They may log in, once the auth file is in force.
    Active,
    /// Their record is not active.
    Inactive,
    /// Something is wrong with their record.
    LeftOut,
}

/// How a user stands in the auth file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// As the records say, and every server is proven to run the file.
    InForce,
    /// As the records say. Whether servers run the file is another question.
    InFile,
    /// They are to be in it, and are not, or with other rights.
    NotYet,
    /// They are not to be in it, and still are.
    Still,
    /// They are not, and are not to be.
    Absent,
    /// The file cannot be read.
    Unknown,
}

/// How a user logs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// By password.
    Password,
    /// By nkey.
    Nkey,
    /// Not at all.
    None,
}

/// A role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListedRole {
    /// Its name.
    pub name: String,
    /// The record's id.
    pub id: String,
    /// How many users have it, active or not.
    pub users: usize,
    /// What it allows and denies, as the record says.
    pub publish: Value,
    /// See above.
    pub subscribe: Value,
    /// See above.
    pub publish_deny: Value,
    /// See above.
    pub subscribe_deny: Value,
}

/// A user could not be made or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserError {
    /// PocketBase could not be read or changed.
    #[error("PocketBase could not be read or changed")]
    PocketBase(#[from] SourceError),
    /// The main config, with the names that are taken, could not be read.
    #[error("the names that nats-server has itself are not known")]
    MainConfig(#[from] EngineError),
    /// There is no such user, or there is more than one.
    #[error("{found} have the name {name:?}", found = if *.count == 0 { "no users" } else { "several users" })]
    NotOne {
        /// The name.
        name: String,
        /// How many there are.
        count: usize,
    },
    /// There is such a user already.
    #[error("there is a user {name:?} already (record `{id}`)")]
    Exists {
        /// The name.
        name: String,
        /// The record's id.
        id: String,
    },
    /// There is no such role, or there is more than one.
    #[error("{found} called {name:?}", found = if *.count == 0 { "there is no role" } else { "there are several roles" })]
    NoRole {
        /// The name.
        name: String,
        /// How many there are.
        count: usize,
        /// Those that are there.
        known: Vec<String>,
    },
    /// The collection wants a role for each user.
    #[error("a user needs a role")]
    RoleNeeded {
        /// Those that are there.
        known: Vec<String>,
    },
    /// The collection wants an email for each user, beside their name.
    #[error("a user in `{collection}` needs an email")]
    EmailNeeded {
        /// The collection.
        collection: String,
    },
    /// An email is given, and the collection has no place for one beside the name.
    #[error("{}", if *.is_name { format!("in `{collection}` the name is the email") } else { format!("`{collection}` has no field `{EMAIL}`") })]
    NoEmail {
        /// The collection.
        collection: String,
        /// Whether users are called by their email there.
        is_name: bool,
    },
    /// Several roles are given, and the collection holds one.
    #[error("`{field}` holds one role only")]
    OneRole {
        /// The field.
        field: String,
    },
    /// With this record the user would be left out of NATS, so it was not made.
    #[error("such a user would not be in NATS: {}", .0.problem)]
    LeftOut(Box<Finding>),
    /// With this name and these roles the user could do nothing in NATS, so the record was not made.
    #[error("such a user could do nothing in NATS: {} {}: {}", .0.field, .0.value, .0.problem)]
    Powerless(Box<Finding>),
    /// The password cannot be hashed.
    #[error("the password cannot be hashed")]
    Hash(#[from] bcrypt::BcryptError),
}

impl UserError {
    /// Whether it was asked for something that there is not, or that NATS would not have.
    pub fn is_of_usage(&self) -> bool {
        match self {
            UserError::PocketBase(_) | UserError::MainConfig(_) | UserError::Hash(_) => false,
            UserError::NotOne { .. }
            | UserError::Exists { .. }
            | UserError::NoRole { .. }
            | UserError::RoleNeeded { .. }
            | UserError::EmailNeeded { .. }
            | UserError::NoEmail { .. }
            | UserError::OneRole { .. }
            | UserError::LeftOut(_)
            | UserError::Powerless(_) => true,
        }
    }

    /// What one can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            UserError::PocketBase(error) => return error.hint(),
            UserError::MainConfig(error) => return error.hint().map(str::to_owned),
            UserError::NotOne { count: 0, .. } => {
                "`pb-nats user list` shows them all; names are case-sensitive".into()
            }
            UserError::NotOne { .. } => "rename all but one of them in PocketBase".into(),
            UserError::Exists { .. } => "`pb-nats user passwd` gives them another password".into(),
            UserError::NoRole { count: 0, name, known } => {
                let near = known
                    .iter()
                    .max_by(|a, b| strsim::jaro(a, name).total_cmp(&strsim::jaro(b, name)));
                match near.filter(|it| strsim::jaro(it, name) > 0.7) {
                    Some(near) => format!("did you mean `{near}`? {}", there_are(known)),
                    None => there_are(known),
                }
            }
            UserError::NoRole { .. } => {
                "give the id of the one that is meant (`pb-nats role list --json`)".into()
            }
            UserError::RoleNeeded { known } => format!("add `--role`; {}", there_are(known)),
            UserError::EmailNeeded { collection } => format!(
                "add `--email ADDRESS`; or let `{EMAIL}` of `{collection}` be empty in PocketBase"
            ),
            UserError::NoEmail { .. } => "leave `--email` out".into(),
            UserError::OneRole { field } => {
                format!("give one, or let `{field}` hold several in PocketBase")
            }
            UserError::LeftOut(finding) | UserError::Powerless(finding) => {
                finding.problem.mend().into()
            }
            UserError::Hash(_) => return None,
        })
    }
}

fn there_are(known: &[String]) -> String {
    if known.is_empty() {
        "there are no roles yet; make one in PocketBase".into()
    } else {
        format!("there are: {}", known.join(", "))
    }
}

/// A new secret of 130 bits, in letters and digits that are not taken for each other.
pub fn secret() -> Secret {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let mut bytes = [0_u8; 26];
    getrandom::fill(&mut bytes).expect("the system has random numbers");
    Secret::new(
        bytes.map(|it| char::from(LETTERS[usize::from(it % 32)])).iter().collect::<String>(),
    )
}

/// Makes an active user.
pub async fn add(
    options: &Options,
    superuser: &Superuser,
    new: &NewUser<'_>,
    password: &Password,
) -> Result<Stored, UserError> {
    let NewUser { name, email, roles } = *new;
    let mut users = Users::read(options, superuser).await?;
    if let Some(user) = users.snapshot.users.iter().find(|it| *it.username == *name) {
        return Err(UserError::Exists { name: name.into(), id: user.id.clone() });
    }
    let roles = users.roles(roles)?;
    users.would_be_in_nats(name, &roles)?;

    let pocketbase = &options.pocketbase;
    let username = pocketbase.username_field.as_str();
    let username = if users.field(username).is_some() { username } else { EMAIL };
    let mut record = users.password(password)?;
    if let Some(email) = users.email(username, email)? {
        record[EMAIL] = email.into();
    }
    record[username] = name.into();
    record[&pocketbase.active_field] = true.into();
    if !roles.is_empty() {
        record[&pocketbase.role_field] = users.reference(roles)?;
    }
    let path = ["collections", &pocketbase.user_collection, "records"];
    let made = superuser.create(&path, &record).await?;
    users.stored(made["id"].as_str().unwrap_or_default(), name, password).await
}

/// Gives a user another password. The former one ends with it.
pub async fn set_password(
    options: &Options,
    superuser: &Superuser,
    name: &str,
    password: &Password,
) -> Result<Stored, UserError> {
    let users = Users::read(options, superuser).await?;
    let named = users.snapshot.users.iter().filter(|it| *it.username == *name);
    let named: Vec<&UserRecord> = named.collect();
    let [user] = named[..] else {
        return Err(UserError::NotOne { name: name.into(), count: named.len() });
    };
    let id = user.id.clone();
    let path = ["collections", &options.pocketbase.user_collection, "records", &id];
    superuser.update(&path, &users.password(password)?).await?;
    users.stored(&id, name, password).await
}

/// Why it is not known that every server runs the auth file as it is, if it is not.
pub async fn doubt(options: &Options) -> Option<String> {
    let surveyed = async {
        let mut file = AuthFile::new(options);
        let placement = file.main_config_now()?.map(|it| it.placement());
        if let Some(placement) = placement.filter(|it| !matches!(it, Placement::InForce)) {
            return Ok(Some(placement.to_string()));
        }
        let current = file.read(Adopt::No)?;
        if current.desired.is_none() {
            return Ok(Some("there is no auth file yet".into()));
        }
        let applied = file.as_it_is(&current).await;
        let outcomes = match Servers::new(&options.nats, &options.folder) {
            Ok(mut servers) => servers.survey(&applied).await,
            Err(error) => return Ok(Some(error.to_string())),
        };
        let shown = |it: &Outcome| matches!(it.state, config::SyncStatus::InStep { .. });
        Ok::<_, EngineError>(outcomes.iter().find(|it| !shown(it)).map(Outcome::to_string))
    };
    surveyed.await.unwrap_or_else(|error| Some(error.to_string()))
}

/// All users, by name: what the records say of them, and what the auth file has. No server is asked.
pub async fn list(options: &Options) -> Result<Vec<Listed>, UserError> {
    let snapshot = snapshot(options).await?;
    let (desired, findings) = desired(options, &snapshot)?;
    let file =
        StateFile::new(options).read(Adopt::Yes).ok().map(|it| it.desired.unwrap_or_default());
    let mut left_out: HashMap<&str, Vec<String>> = HashMap::new();
    for it in findings.iter().filter(|it| {
        it.effect == Effect::LeftOut && it.collection == options.pocketbase.user_collection
    }) {
        let why = format!("{}: {}; {}", it.field, it.problem, it.problem.mend());
        left_out.entry(&it.id).or_default().push(why);
    }
    let roles: HashMap<&str, &str> = snapshot.roles.iter().map(|it| (&*it.id, &*it.name)).collect();
    let mut listed: Vec<Listed> = snapshot
        .users
        .iter()
        .map(|user| {
            let why = left_out.remove(user.id.as_str()).unwrap_or_default();
            let state = match (user.active, why.is_empty()) {
                (false, _) => State::Inactive,
                (true, false) => State::LeftOut,
                (true, true) => State::Active,
            };
            let login = login(user);
            let known = known(&desired, user).filter(|_| state == State::Active);
            let credential = known.map(|it| &it.credential);
            let kind = match credential {
                Some(Credential::Nkey { .. }) => Kind::Nkey,
                Some(Credential::Password(_)) => Kind::Password,
                None if !user.nkey.is_empty() => Kind::Nkey,
                None if !user.password.0.is_empty() => Kind::Password,
                None => Kind::None,
            };
            let named = |id: &String| roles.get(&**id).map_or(id.as_str(), |it| it).to_owned();
            Listed {
                name: user.username.to_string(),
                id: user.id.clone(),
                state,
                standing: standing(&desired, file.as_deref(), login, credential.is_some()),
                why,
                roles: user.roles.iter().map(named).collect(),
                credential: kind,
                cost: credential.and_then(Credential::bcrypt_cost),
            }
        })
        .collect();
    listed.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    Ok(listed)
}

/// How whoever logs in by this stands in the file, which is to have them or not.
fn standing(desired: &Desired, file: Option<&Desired>, login: &str, wanted: bool) -> Standing {
    let Some(file) = file else { return Standing::Unknown };
    let rights = |of: &Desired| {
        let user = of.users.get(login)?;
        let rules = match &user.grant {
            Grant::Defaults => of.defaults.clone(),
            Grant::Role(role) => of.roles.get(role)?.clone(),
            Grant::Own(rules) => (**rules).clone(),
        };
        Some((user.credential.clone(), rules, user.connection_types))
    };
    match (wanted, file.users.contains_key(login)) {
        (true, true) if rights(desired) == rights(file) => Standing::InFile,
        (true, _) => Standing::NotYet,
        // Somebody else may rightly have the name.
        (false, true) if !desired.users.contains_key(login) => Standing::Still,
        (false, _) => Standing::Absent,
    }
}

/// All roles, by name.
pub async fn list_roles(options: &Options) -> Result<Vec<ListedRole>, UserError> {
    let snapshot = snapshot(options).await?;
    let mut users: HashMap<&str, usize> = HashMap::new();
    for user in &snapshot.users {
        for role in user.roles.iter().collect::<BTreeSet<_>>() {
            *users.entry(role).or_default() += 1;
        }
    }
    let listed = |role: &RoleRecord| {
        let Permissions { publish, subscribe, publish_deny, subscribe_deny } =
            role.permissions.clone();
        ListedRole {
            name: role.name.clone(),
            id: role.id.clone(),
            users: users.get(&*role.id).copied().unwrap_or_default(),
            publish,
            subscribe,
            publish_deny,
            subscribe_deny,
        }
    };
    let mut roles: Vec<ListedRole> = snapshot.roles.iter().map(listed).collect();
    roles.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    Ok(roles)
}

/// Read as a pass reads, since even superusers are not shown what PocketBase has hashed.
async fn snapshot(options: &Options) -> Result<Snapshot, SourceError> {
    PocketBase::open(&options.pocketbase)?.snapshot().await
}

fn desired(options: &Options, snapshot: &Snapshot) -> Result<(Desired, Vec<Finding>), EngineError> {
    let mut policy = Policy::from(options);
    let mut file = AuthFile::new(options);
    if let Some(main_config) = file.main_config_now()? {
        main_config.rule(&mut policy);
    }
    Ok(file.state.in_force().next(snapshot, &policy))
}

/// The users as they are, for whoever changes them.
struct Users<'a> {
    options: &'a Options,
    superuser: &'a Superuser,
    collection: Value,
    snapshot: Snapshot,
}

impl<'a> Users<'a> {
    async fn read(options: &'a Options, superuser: &'a Superuser) -> Result<Users<'a>, UserError> {
        let name = &options.pocketbase.user_collection;
        let missing = || SourceError::NoCollection { collection: name.clone() };
        let collection = superuser.collection(name).await?.ok_or_else(missing)?;
        let snapshot = snapshot(options).await?;
        Ok(Users { options, superuser, collection, snapshot })
    }

    fn field(&self, name: &str) -> Option<&Value> {
        self.collection["fields"].as_array()?.iter().find(|it| it["name"] == name)
    }

    /// The email to store beside the name, which is in the field `username`.
    fn email<'b>(
        &self,
        username: &str,
        given: Option<&'b str>,
    ) -> Result<Option<&'b str>, UserError> {
        let collection = || self.options.pocketbase.user_collection.clone();
        let is_name = username == EMAIL;
        match (self.field(EMAIL).filter(|_| !is_name), given) {
            (None, Some(_)) => Err(UserError::NoEmail { collection: collection(), is_name }),
            (Some(field), None) if field["required"] == true => {
                Err(UserError::EmailNeeded { collection: collection() })
            }
            (_, given) => Ok(given),
        }
    }

    /// Whether PocketBase hashes passwords itself.
    fn hashes(&self) -> bool {
        let field = self.field(&self.options.pocketbase.password_field);
        field.is_some_and(|it| it["type"] == "password")
    }

    /// The fields of a record that hold this password.
    fn password(&self, password: &Password) -> Result<Value, UserError> {
        let field = &self.options.pocketbase.password_field;
        let text = password.reveal();
        if !self.hashes() {
            return Ok(json!({ field: bcrypt::hash(text, password.cost())? }));
        }
        let mut fields = json!({ field: text });
        if self.collection["type"] == "auth" {
            fields["passwordConfirm"] = text.into();
        }
        Ok(fields)
    }

    /// What became of a password that was just written for this record.
    async fn stored(&self, id: &str, name: &str, password: &Password) -> Result<Stored, UserError> {
        let snapshot = snapshot(self.options).await?;
        let Some(user) = snapshot.users.iter().find(|it| it.id == id) else {
            let notes = vec!["pb-nats is not shown the record, so they are not in NATS".into()];
            return Ok(Stored { cost: self.cost(password), notes });
        };
        let cost = self.cheaper(user, password).await?;
        Ok(Stored { cost, notes: self.notes(&snapshot, user, name)? })
    }

    /// The cost of the hash that is made when this password is written.
    fn cost(&self, password: &Password) -> u32 {
        if !self.hashes() {
            return password.cost();
        }
        let field = self.field(&self.options.pocketbase.password_field);
        let own = field.and_then(|it| it["cost"].as_u64()).filter(|it| *it > 0);
        own.and_then(|it| it.try_into().ok()).unwrap_or(USUAL)
    }

    /// Puts a cheap hash beside that of PocketBase, for a generated password. Returns the cost at which
    /// it is checked.
    ///
    /// Until then, or should it fail, the same password is checked at PocketBase's cost.
    async fn cheaper(&self, user: &UserRecord, password: &Password) -> Result<u32, UserError> {
        let secret = match password {
            Password::Generated(secret)
                if self.hashes() && self.field("generated_hash").is_some() =>
            {
                secret
            }
            Password::Generated(_) | Password::Chosen(_) => return Ok(self.cost(password)),
        };
        let cheap = bcrypt::hash(secret.reveal(), CHEAP)?;
        let path = ["collections", &self.options.pocketbase.user_collection, "records", &user.id];
        let both = format!("{cheap} {}", user.password.0);
        self.superuser.update(&path, &json!({ "generated_hash": both })).await?;
        Ok(CHEAP)
    }

    /// By what this user, who was to be called `name`, has less than one would expect.
    fn notes(
        &self,
        snapshot: &Snapshot,
        user: &UserRecord,
        name: &str,
    ) -> Result<Vec<String>, UserError> {
        let PocketBaseOptions { user_collection, role_collection, active_field, .. } =
            &self.options.pocketbase;
        let mut notes = Vec::new();
        if *user.username != *name {
            notes.push(format!("PocketBase has made {:?} of the name", user.username));
        }
        if !user.active {
            notes.push(format!(
                "they are not in NATS, as their record is not active; switch `{active_field}` on"
            ));
            return Ok(notes);
        }
        if !user.nkey.is_empty() {
            notes.push("they log in by their nkey, and the password is of no use to them".into());
        }
        let (desired, findings) = desired(self.options, snapshot)?;
        let concerns = |it: &&Finding| {
            (it.collection == *user_collection && it.id == user.id)
                || (it.collection == *role_collection && user.roles.contains(&it.id))
        };
        notes.extend(findings.iter().filter(concerns).map(Finding::to_string));
        if known(&desired, user).is_some_and(|it| can_do_nothing(desired.rules(it))) {
            notes.push(if user.roles.is_empty() {
                "they may log in and do nothing else, as they have no role and the settings' \
                 [permissions] gives nothing; give them a role"
                    .into()
            } else {
                "they may log in and do nothing else, as their roles allow nothing; give the roles \
                 subjects"
                    .into()
            });
        }
        Ok(notes)
    }

    /// The ids of these roles.
    fn roles(&self, wanted: &[String]) -> Result<Vec<String>, UserError> {
        let known = || self.snapshot.roles.iter().map(|it| it.name.clone()).collect();
        let field = self.field(&self.options.pocketbase.role_field);
        if wanted.is_empty() && field.is_some_and(|it| it["required"] == true) {
            return Err(UserError::RoleNeeded { known: known() });
        }
        let id = |name: &String| {
            let roles = &self.snapshot.roles;
            if let Some(role) = roles.iter().find(|it| it.id == *name) {
                return Ok(role.id.clone());
            }
            let named: Vec<_> = roles.iter().filter(|it| it.name == *name).collect();
            match named[..] {
                [role] => Ok(role.id.clone()),
                _ => Err(UserError::NoRole {
                    name: name.clone(),
                    count: named.len(),
                    known: known(),
                }),
            }
        };
        wanted.iter().map(id).collect()
    }

    /// The value of the field that refers to roles.
    fn reference(&self, mut roles: Vec<String>) -> Result<Value, UserError> {
        let name = &self.options.pocketbase.role_field;
        let several = self.field(name).is_some_and(|it| it["maxSelect"].as_u64() > Some(1));
        match (several, roles.len()) {
            (true, _) => Ok(json!(roles)),
            (false, 1) => Ok(json!(roles.remove(0))),
            (false, _) => Err(UserError::OneRole { field: name.clone() }),
        }
    }

    /// Refuses a user whom NATS would not have, or to whom their name is in the way of everything.
    fn would_be_in_nats(&mut self, name: &str, roles: &[String]) -> Result<(), UserError> {
        let user = UserRecord {
            id: NO_ID.into(),
            username: name.into(),
            // Any hash will do.
            password: PasswordHash(bcrypt::hash("", CHEAP)?.into()),
            roles: roles.into(),
            active: true,
            ..UserRecord::default()
        };
        self.snapshot.users.push(user.clone());
        let (desired, findings) = desired(self.options, &self.snapshot)?;
        self.snapshot.users.pop();
        let about = || findings.iter().filter(|it| it.id == NO_ID).cloned().map(Box::new);
        if let Some(finding) = about().find(|it| it.effect == Effect::LeftOut) {
            return Err(UserError::LeftOut(finding));
        }
        let lost = about().find(|it| it.effect != Effect::Kept);
        match (lost, known(&desired, &user)) {
            (Some(lost), Some(it)) if can_do_nothing(desired.rules(it)) => {
                Err(UserError::Powerless(lost))
            }
            (Some(_) | None, _) => Ok(()),
        }
    }
}

/// The user whom this record makes, if it does.
fn known<'a>(desired: &'a Desired, record: &UserRecord) -> Option<&'a auth::User> {
    desired.users.get(login(record)).filter(|it| it.is_of(record))
}

/// What this record's user logs in with.
fn login(record: &UserRecord) -> &str {
    if record.nkey.is_empty() { &record.username } else { &record.nkey }
}

fn can_do_nothing(rules: &Rules) -> bool {
    let nothing = |it: &Subjects| it.is_nothing() || it.deny().contains(&Subject::everything());
    nothing(&rules.publish) && nothing(&rules.subscribe)
}

impl Password {
    fn reveal(&self) -> &str {
        match self {
            Password::Chosen(Chosen(secret)) | Password::Generated(secret) => secret.reveal(),
        }
    }

    fn cost(&self) -> u32 {
        match self {
            Password::Chosen(_) => USUAL,
            Password::Generated(_) => CHEAP,
        }
    }
}
