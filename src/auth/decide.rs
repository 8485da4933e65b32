//! Snapshot and policy ⇒ what NATS should allow, with a finding for each thing left out.

mod grants;
mod names;

use std::{
    borrow::Cow,
    cell::Cell,
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;

pub(super) use self::grants::responses;
use self::{
    grants::{Filled, Granted},
    names::unambiguous,
};
use super::{
    ConnectionType, ConnectionTypes, Credential, Desired, Effect, Finding, Grant, PasswordHash,
    Permissions, Problem, RoleRecord, Snapshot, User, UserRecord,
    render::{LOCKED_HASH, LOCKED_USER, identifier},
    subject::Values,
};

/// Above this, one log-in attempt holds a core for more than a second.
const MAX_BCRYPT_COST: u8 = 14;

/// What the settings say about records.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The name of the users collection, for findings.
    pub user_collection: String,
    /// The name of the roles collection, for findings.
    pub role_collection: String,
    /// The field with the user's name, for findings.
    pub username_field: String,
    /// The field with the hash, for findings.
    pub password_field: String,
    /// The field that refers to roles, for findings.
    pub role_field: String,
    /// What users without a role may publish to.
    pub default_publish: Vec<String>,
    /// What users without a role may subscribe to.
    pub default_subscribe: Vec<String>,
    /// Names and nkeys that are never taken from the source.
    pub reserved: BTreeSet<String>,
    /// Names without which nats-server would neither load the file nor start. `None`: not known.
    pub needed: Option<BTreeSet<String>>,
    /// How long a log-in may take. `None`: as long as nats-server says.
    pub login_timeout: Option<Duration>,
}

impl Desired {
    /// Works out what NATS should allow where nothing is in force, and lists what had to be left out.
    pub fn new(snapshot: &Snapshot, policy: &Policy) -> (Desired, Vec<Finding>) {
        Desired::default().next(snapshot, policy)
    }

    /// Works out what NATS should allow where this is in force, and lists what had to be left out.
    ///
    /// What is in force counts in one thing: an nkey that several records have stays whose it is, so
    /// that adding a record takes nothing from anybody.
    pub fn next(&self, snapshot: &Snapshot, policy: &Policy) -> (Desired, Vec<Finding>) {
        let mut findings = Vec::new();
        let defaults = policy.defaults(&mut findings);
        // The source may give its records in any order; findings have theirs.
        let mut roles: Vec<&RoleRecord> = snapshot.roles.iter().collect();
        roles.sort_by(|one, other| one.id.cmp(&other.id));
        let names = identifiers(&roles);
        let judged = roles.into_iter().map(|it| {
            let granted = Granted::by_role(it, policy, &mut findings);
            let name = Arc::clone(&names[&*it.id]);
            (&*it.id, Role { id: &it.id, name, granted, used: Cell::new(false) })
        });
        let roles: HashMap<&str, Role<'_>> = judged.collect();

        let about_users = findings.len();
        let records = unambiguous(&snapshot.users, self, policy, &mut findings);
        let mut references = References { roles: &roles, known: HashMap::new() };
        // Else the list that becomes the map would grow, and take three times its room on the way.
        let mut users = Vec::with_capacity(records.len());
        let judged = records
            .into_iter()
            .filter_map(|it| judge(it, &mut references, &defaults, policy, &mut findings));
        users.extend(judged);
        findings[about_users..].sort_by(|one, other| one.id.cmp(&other.id));

        let rules = |it: &Role<'_>| it.granted.as_they_are().expect("it has no template");
        let used = roles.values().filter(|it| it.used.get());
        let mut desired = Desired {
            defaults: defaults.as_they_are().unwrap_or_default(),
            roles: used.map(|it| (Arc::clone(&it.name), rules(it))).collect(),
            users: users.into_iter().collect(),
            locked: self.locked.clone(),
            login_timeout: policy.login_timeout,
        };
        desired.lock(policy);
        findings.extend(desired.locked.iter().map(|name| policy.about_locked(name, snapshot)));
        (desired, findings)
    }

    /// Keeps the names that are needed, and that no user has. As long as nobody knows which these are,
    /// those that were stay.
    pub fn lock(&mut self, policy: &Policy) {
        if let Some(needed) = &policy.needed {
            self.locked = needed.iter().map(|it| it.as_str().into()).collect();
        }
        let Desired { users, locked, .. } = self;
        locked.retain(|name| {
            // Else it would be there twice, and nats-server refuse the file for that.
            let taken = users.contains_key(name) || policy.reserved.contains(&**name);
            !(name.is_empty() || taken || **name == *LOCKED_USER)
        });
    }
}

/// What a role grants, and what it is called in the file.
struct Role<'a> {
    id: &'a str,
    name: Arc<str>,
    granted: Granted,
    /// Whether a user has it as it is.
    used: Cell<bool>,
}

/// What fields that refer to roles come to.
struct References<'a> {
    roles: &'a HashMap<&'a str, Role<'a>>,
    /// By their place: thousands of records share one.
    known: HashMap<*const [String], Result<Vec<&'a Role<'a>>, &'a str>>,
}

impl<'a> References<'a> {
    /// The roles that these are the ids of, in the order of the ids; or one that no role has.
    fn of(&mut self, ids: &'a Arc<[String]>) -> Result<&[&'a Role<'a>], &'a str> {
        let found = self.known.entry(Arc::as_ptr(ids)).or_insert_with(|| {
            let found = ids.iter().map(|id| self.roles.get(&**id).ok_or(&**id));
            let mut found = found.collect::<Result<Vec<_>, _>>()?;
            found.sort_by_key(|it| it.id);
            found.dedup_by_key(|it| it.id);
            Ok(found)
        });
        found.as_deref().map_err(|id| *id)
    }
}

/// What the record makes of a user, and what they log in with.
fn judge<'a>(
    record: &'a UserRecord,
    references: &mut References<'a>,
    defaults: &Granted,
    policy: &Policy,
    findings: &mut Vec<Finding>,
) -> Option<(Arc<str>, User)> {
    let mut left_out = |field: &str, value: &str, problem| {
        findings.push(policy.about_user(record, field, value, problem, Effect::LeftOut));
    };
    let credential = match credential(record) {
        Ok(credential) => credential,
        Err(problem) if record.nkey.is_empty() => {
            // Not even a part of it is shown: it may well be a password.
            left_out(&policy.password_field, "", problem);
            return None;
        }
        Err(problem) => {
            // It may well be the private key.
            left_out("nkey", "", problem);
            return None;
        }
    };
    let roles = match references.of(&record.roles) {
        Ok(roles) => roles,
        Err(id) => {
            left_out(&policy.role_field, &quoted(id), Problem::RoleUnknown);
            return None;
        }
    };
    let connection_types = connection_types(record, policy, findings)?;

    let about = |field: &str, value: &str, problem, effect| {
        policy.about_user(record, field, value, problem, effect)
    };
    // Most have none, and there may be many.
    let own = if *record.permissions == Permissions::default() {
        Granted::default()
    } else {
        Granted::new(&record.permissions, &about, findings)
    };
    let grant = match roles {
        [] if own.is_empty() && !defaults.has_templates() => Grant::Defaults,
        [role] if own.is_empty() && !role.granted.has_templates() => {
            role.used.set(true);
            Grant::Role(Arc::clone(&role.name))
        }
        _ => {
            let values = Values { username: &record.username, id: &record.id };
            let mut rules = Filled::default();
            let bases = roles.iter().map(|it| &it.granted);
            let base = roles.is_empty().then_some(defaults);
            for part in bases.chain(base).chain([&own]) {
                rules.add(part, values, &about, findings);
            }
            Grant::Own(Box::new(rules.into_rules(&about, findings)))
        }
    };
    let login = match credential {
        Credential::Password(_) => record.username.clone(),
        Credential::Nkey { .. } => record.nkey.clone(),
    };
    Some((login, User { credential, grant, connection_types }))
}

fn credential(record: &UserRecord) -> Result<Credential, Problem> {
    if !record.nkey.is_empty() {
        // An nkey in doubt is not replaced by a password that nobody expects to work.
        return if is_public_nkey(&record.nkey) {
            Ok(Credential::Nkey { record: record.id.as_str().into() })
        } else {
            Err(Problem::NotNkey)
        };
    }
    if record.password.0.is_empty() {
        return Err(Problem::NoCredential);
    }
    let hash = password_hash(record);
    // No password has this one, and it is how the file marks whom nobody can be.
    let bcrypt = bcrypt_cost(&hash.0).filter(|_| *hash.0 != *LOCKED_HASH);
    let cost = bcrypt.ok_or(Problem::NotBcrypt)?;
    if cost > MAX_BCRYPT_COST {
        return Err(Problem::CostTooHigh);
    }
    Ok(Credential::Password(hash))
}

/// The hash to log in by. A field of the type `password` is hashed at a cost that suits passwords
/// which people choose; beside it a generated one may have a cheaper hash, which ends with the
/// password that it was made for, so that changing the one is enough.
fn password_hash(record: &UserRecord) -> PasswordHash {
    let password = &*record.password.0;
    match record.generated_hash.0.split_once(' ') {
        Some((cheap, of))
            if of == password && bcrypt_cost(of).is_some() && bcrypt_cost(cheap).is_some() =>
        {
            PasswordHash(cheap.into())
        }
        _ => record.password.clone(),
    }
}

/// The cost of a well-formed bcrypt hash, `None` if the text is anything else.
///
/// nats-server recognises a hash by its beginning and compares everything else as plain text, so the
/// rule here is Go's `bcrypt` package's, without its leniency.
pub(super) fn bcrypt_cost(text: &str) -> Option<u8> {
    let (version, rest) = text.strip_prefix("$2")?.split_once('$')?;
    let (cost, hash) = rest.split_once('$')?;
    let alphabet = |it: u8| it.is_ascii_alphanumeric() || matches!(it, b'.' | b'/');
    let shaped = matches!(version, "a" | "b" | "x" | "y")
        && cost.len() == 2
        && cost.bytes().all(|it| it.is_ascii_digit())
        && hash.len() == 53
        && hash.bytes().all(alphabet);
    cost.parse().ok().filter(|it| shaped && (4..=31).contains(it))
}

fn is_public_nkey(text: &str) -> bool {
    text.starts_with('U') && nkeys::KeyPair::from_public_key(text).is_ok()
}

/// `None` if the user may not connect in any way that is known.
fn connection_types(
    record: &UserRecord,
    policy: &Policy,
    findings: &mut Vec<Finding>,
) -> Option<ConnectionTypes> {
    let mut types = ConnectionTypes::default();
    let field = "allowed_connection_types";
    let mut finding = |value: &Value, problem, effect| {
        findings.push(policy.about_user(record, field, &shown(value), problem, effect));
    };
    let Ok(entries) = array(&record.connection_types) else {
        finding(&record.connection_types, Problem::NotArray, Effect::LeftOut);
        return None;
    };
    for entry in entries.iter() {
        match entry.as_str().and_then(ConnectionType::parse) {
            Some(known) => types.insert(known),
            None => finding(entry, Problem::ConnectionType, Effect::NotGranted),
        }
    }
    // To NATS an empty list means every way of connecting.
    if types.is_empty() && !entries.is_empty() {
        finding(&record.connection_types, Problem::ConnectionType, Effect::LeftOut);
        return None;
    }
    Some(types)
}

impl Policy {
    /// The permissions of users without a role, as a record would say them.
    pub(super) fn default_permissions(&self) -> Permissions {
        let list = |it: &[String]| Value::from(it);
        Permissions {
            publish: list(&self.default_publish),
            subscribe: list(&self.default_subscribe),
            ..Permissions::default()
        }
    }

    /// The same, judged.
    fn defaults(&self, findings: &mut Vec<Finding>) -> Granted {
        let about = |field: &str, value: &str, problem, effect| Finding {
            collection: "settings".to_owned(),
            id: "permissions".to_owned(),
            name: "default".to_owned(),
            field: format!("default_{}", field.trim_end_matches("_permissions")),
            value: value.to_owned(),
            problem,
            effect,
        };
        let defaults = Granted::new(&self.default_permissions(), &about, findings);
        defaults.report_wider(&about, findings);
        defaults
    }

    /// About a name that is needed, and the record that has it, if one does.
    fn about_locked(&self, name: &str, snapshot: &Snapshot) -> Finding {
        let named = snapshot.users.iter().filter(|it| *it.username == *name || *it.nkey == *name);
        let nobody = UserRecord { username: name.into(), ..UserRecord::default() };
        let record = named.min_by_key(|it| &it.id).unwrap_or(&nobody);
        let field = if *record.nkey == *name { "nkey" } else { &self.username_field };
        self.about_user(record, field, &quoted(name), Problem::Needed, Effect::Locked)
    }

    fn about_user(
        &self,
        record: &UserRecord,
        field: &str,
        value: &str,
        problem: Problem,
        effect: Effect,
    ) -> Finding {
        Finding {
            collection: self.user_collection.clone(),
            id: record.id.clone(),
            name: short(&record.username),
            field: field.to_owned(),
            value: value.to_owned(),
            problem,
            effect,
        }
    }
}

/// What roles are called in the file, by their ids: no order of records can change it, nor who has
/// them.
fn identifiers<'a>(roles: &[&'a RoleRecord]) -> HashMap<&'a str, Arc<str>> {
    let mut roles = roles.to_vec();
    roles.sort_by_key(|it| (&it.name, &it.id));
    let mut taken = HashSet::new();
    // How many there are of a name: of ten thousand alike, each is not to try ten thousand numbers.
    let mut numbers: HashMap<String, usize> = HashMap::new();
    let free = |role: &'a RoleRecord| {
        let name = identifier(&role.name);
        let number = numbers.entry(name.clone()).or_default();
        loop {
            *number += 1;
            let free = if *number == 1 { name.clone() } else { format!("{name}_{number}") };
            if taken.insert(free.clone()) {
                return (&*role.id, free.into());
            }
        }
    };
    roles.into_iter().map(free).collect()
}

/// The entries of a JSON array, or of a text that holds one. Nothing at all is an empty one.
pub(super) fn array(value: &Value) -> Result<Cow<'_, [Value]>, ()> {
    match value {
        Value::Null => Ok([].as_slice().into()),
        Value::Array(entries) => Ok(entries.as_slice().into()),
        Value::String(text) if text.is_empty() => Ok([].as_slice().into()),
        Value::String(text) => {
            serde_json::from_str::<Vec<Value>>(text).map(Into::into).map_err(drop)
        }
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => Err(()),
    }
}

/// In JSON, which leaves some control characters as they are. A terminal would obey them.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    let plain = |it: char| {
        if it.is_control() { format!("\\u{:04x}", u32::from(it)) } else { it.to_string() }
    };
    short(&text.chars().map(plain).collect::<String>())
}

fn quoted(text: &str) -> String {
    short(&format!("{text:?}"))
}

fn short(text: &str) -> String {
    const MOST: usize = 80;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
