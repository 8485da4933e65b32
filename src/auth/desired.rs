use std::{
    borrow::Cow,
    cell::Cell,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;

use super::{
    ConnectionType, ConnectionTypes, Effect, Finding, PasswordHash, Permissions, Problem,
    RoleRecord, Snapshot, UserRecord,
    render::{LOCKED_HASH, LOCKED_USER, identifier},
    subject::{self, BadSubject, Subject, Values},
};

/// Above this, one log-in attempt holds a core for more than a second.
const MAX_BCRYPT_COST: u8 = 14;
/// More answers, or seconds to answer in, than this are a mistake. A year.
const MAX_RESPONSES: f64 = 31_536_000.0;

/// What NATS should allow.
///
/// Maps and sets are ordered, so equal policies render to equal bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// What users without a role may do.
    pub defaults: Rules,
    /// Roles that users have as they are, by their identifier in the file.
    pub roles: BTreeMap<Arc<str>, Rules>,
    /// Users by what they log in with: their name, or their nkey.
    pub users: BTreeMap<Arc<str>, User>,
    /// Names that nats-server needs to be users, and that none of those has: whoever comes by one may
    /// do nothing. They are no users.
    pub locked: BTreeSet<Arc<str>>,
    /// How long a log-in may take. `None`: as long as nats-server says.
    pub login_timeout: Option<Duration>,
}

/// One user NATS should accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// How they prove who they are.
    pub credential: Credential,
    /// What they may do.
    pub grant: Grant,
    /// How they may connect. Empty: in any way.
    pub connection_types: ConnectionTypes,
}

/// How a user proves who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// By a password with this bcrypt hash.
    Password(PasswordHash),
    /// By the private key of the nkey that they are listed by.
    Nkey {
        /// The id of the record whose nkey it is. Empty: that is not known.
        record: Arc<str>,
    },
}

/// What a user may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// [`Desired::defaults`].
    Defaults,
    /// The role with this identifier in [`Desired::roles`].
    Role(Arc<str>),
    /// Something of their own: several roles, placeholders filled in, additions.
    Own(Box<Rules>),
}

impl User {
    /// Someone with a key and these rights.
    pub(crate) fn with_nkey(rules: Rules) -> User {
        let grant = Grant::Own(Box::new(rules));
        let credential = Credential::Nkey { record: Arc::default() };
        User { credential, grant, connection_types: ConnectionTypes::default() }
    }

    /// Whether they are what came of this record, which has their name or nkey.
    pub(crate) fn is_of(&self, it: &UserRecord) -> bool {
        match &self.credential {
            Credential::Password(_) => true,
            Credential::Nkey { record } => !record.is_empty() && **record == it.id,
        }
    }

    /// Whether they may connect in this way.
    pub fn connects_by(&self, way: ConnectionType) -> bool {
        self.connection_types.is_empty() || self.connection_types.contains(way)
    }
}

impl Credential {
    /// The cost of its bcrypt hash: one more doubles the time that a log-in takes. `None` for an
    /// nkey, which costs nothing.
    pub fn bcrypt_cost(&self) -> Option<u8> {
        match self {
            Credential::Password(hash) => bcrypt_cost(&hash.0),
            Credential::Nkey { .. } => None,
        }
    }

    /// Whether whoever can prove the one can prove the other.
    pub(super) fn proves_like(&self, other: &Credential) -> bool {
        match (self, other) {
            (Credential::Password(one), Credential::Password(other)) => one == other,
            (Credential::Nkey { .. }, Credential::Nkey { .. }) => true,
            _ => false,
        }
    }
}

impl Grant {
    /// The role, if it is one as it is.
    pub(super) fn role(&self) -> Option<&Arc<str>> {
        match self {
            Grant::Role(name) => Some(name),
            Grant::Defaults | Grant::Own(_) => None,
        }
    }
}

/// What may be published, subscribed to and answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Where messages may be sent.
    pub publish: Subjects,
    /// Where messages may be received.
    pub subscribe: Subjects,
    /// Whether requests may be answered.
    pub responses: Option<Responses>,
}

/// The subjects of one direction. The default is none at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subjects {
    allow: BTreeSet<Subject>,
    deny: BTreeSet<Subject>,
}

/// How requests may be answered on their reply subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Responses {
    /// How many answers a request may have.
    pub max: u32,
    /// For how long. Zero: nats-server's default.
    pub ttl: Duration,
}

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

    /// What this user may do, wherever it is written.
    pub fn rules<'a>(&'a self, user: &'a User) -> &'a Rules {
        match &user.grant {
            Grant::Defaults => &self.defaults,
            Grant::Role(name) => &self.roles[name],
            Grant::Own(rules) => rules,
        }
    }
}

/// The active records whose name is theirs alone and fit for NATS.
fn unambiguous<'a>(
    records: &'a [UserRecord],
    former: &Desired,
    policy: &Policy,
    findings: &mut Vec<Finding>,
) -> Vec<&'a UserRecord> {
    let active = || records.iter().filter(|it| it.active);
    let mut nkeys: HashMap<&str, usize> = HashMap::new();
    for record in active().filter(|it| !it.nkey.is_empty()) {
        *nkeys.entry(&record.nkey).or_default() += 1;
    }
    let mut named = Vec::with_capacity(records.len());
    named.extend(active().map(Named::new));
    named.sort_unstable_by(|one, other| one.key().cmp(&other.key()));

    let mut judged = Vec::with_capacity(named.len());
    for alike in named.chunk_by(Named::is_like) {
        for same in alike.chunk_by(|one, other| one.record.username == other.record.username) {
            let fit = same.iter().map(|it| it.record).filter(|record| {
                let name = &*record.username;
                let mut finding = |field: &str, value: &str, problem, effect| {
                    findings.push(policy.about_user(
                        record,
                        field,
                        &quoted(value),
                        problem,
                        effect,
                    ));
                };
                let mut about_name =
                    |problem, effect| finding(&policy.username_field, name, problem, effect);
                // There is no telling which of them is meant, and whoever can choose a record's id
                // must not win, so none of them is let in.
                let refused = match name {
                    "" => Some(Problem::NameEmpty),
                    _ if name.contains(char::is_control) => Some(Problem::NameControl),
                    _ if name == LOCKED_USER || policy.reserved.contains(name) => {
                        Some(Problem::NameReserved)
                    }
                    _ if is_public_nkey(name) => Some(Problem::NameIsNkey),
                    _ if same.len() > 1 => Some(Problem::NameTwice),
                    _ => None,
                };
                if let Some(problem) = refused {
                    about_name(problem, Effect::LeftOut);
                    return false;
                }
                if name.trim() != name {
                    about_name(Problem::NameSpace, Effect::Kept);
                }
                if !name.is_ascii() && name.contains(is_invisible) {
                    about_name(Problem::NameInvisible, Effect::Kept);
                }
                if alike.len() > 1 {
                    about_name(Problem::NameCase, Effect::Kept);
                }
                let nkey = &*record.nkey;
                // Anything else is left out later, and not shown.
                if is_public_nkey(nkey) && nkeys[nkey] > 1 {
                    let theirs = former.users.get(nkey).is_some_and(|it| it.is_of(record));
                    let effect = if theirs { Effect::Kept } else { Effect::LeftOut };
                    finding("nkey", nkey, Problem::NkeyTwice, effect);
                    if !theirs {
                        return false;
                    }
                }
                if policy.reserved.contains(nkey) {
                    finding("nkey", nkey, Problem::NameReserved, Effect::LeftOut);
                    return false;
                }
                true
            });
            judged.extend(fit);
        }
    }
    judged
}

/// A record by its name, those that differ only in case side by side.
struct Named<'a> {
    /// How `lower` begins: many are sorted without a look at the names, which lie here and there.
    beginning: u128,
    lower: Cow<'a, str>,
    record: &'a UserRecord,
}

impl<'a> Named<'a> {
    fn new(record: &'a UserRecord) -> Named<'a> {
        let lower = lower_case(&record.username);
        let mut beginning = [0; 16];
        let length = lower.len().min(beginning.len());
        beginning[..length].copy_from_slice(&lower.as_bytes()[..length]);
        Named { beginning: u128::from_be_bytes(beginning), lower, record }
    }

    /// Of records with one name it is nothing which comes first: findings are sorted later.
    fn key(&self) -> (u128, &str, &str) {
        (self.beginning, &self.lower, &self.record.username)
    }

    fn is_like(&self, other: &Named<'_>) -> bool {
        self.beginning == other.beginning && self.lower == other.lower
    }
}

fn lower_case(name: &str) -> Cow<'_, str> {
    if name.bytes().all(|it| it.is_ascii() && !it.is_ascii_uppercase()) {
        Cow::Borrowed(name)
    } else {
        Cow::Owned(name.to_lowercase())
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
fn bcrypt_cost(text: &str) -> Option<u8> {
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

/// Zero-width spaces and joiners, direction marks and the like: a name with one looks like another.
fn is_invisible(it: char) -> bool {
    matches!(it, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
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

/// Permissions of a record, judged but for what depends on the user who has them.
#[derive(Clone, Debug, Default)]
struct Granted {
    publish: Entries,
    subscribe: Entries,
    responses: Option<Responses>,
}

/// The entries of one direction.
#[derive(Clone, Debug, Default)]
struct Entries {
    allow: BTreeSet<Subject>,
    deny: BTreeSet<Subject>,
    allow_templates: Vec<String>,
    deny_templates: Vec<String>,
}

/// How an entry of one direction is read.
type Parse = fn(&str) -> Result<Subject, BadSubject>;

/// Makes a finding about the record at hand: field, value, problem, effect.
type About<'a> = dyn Fn(&str, &str, Problem, Effect) -> Finding + 'a;

impl Granted {
    fn new(permissions: &Permissions, about: &About<'_>, findings: &mut Vec<Finding>) -> Granted {
        let mut entries = |parse: Parse, fields: [&str; 2], allow: &Value, deny: &Value| {
            let [allow_field, deny_field] = fields;
            let mut entries = Entries::default();
            let (plain, templates) = (&mut entries.allow, &mut entries.allow_templates);
            read_list(parse, allow, plain, templates, |value, problem| {
                findings.push(about(allow_field, value, problem, Effect::NotGranted));
            });
            let (plain, templates) = (&mut entries.deny, &mut entries.deny_templates);
            let honoured = read_list(parse, deny, plain, templates, |value, problem| {
                findings.push(about(deny_field, value, problem, Effect::DirectionDenied));
            });
            if !honoured {
                entries.deny.insert(Subject::everything());
            }
            entries
        };
        let Permissions { publish, subscribe, publish_deny, subscribe_deny } = permissions;
        Granted {
            publish: entries(
                Subject::parse,
                ["publish_permissions", "publish_deny_permissions"],
                publish,
                publish_deny,
            ),
            subscribe: entries(
                Subject::parse_subscription,
                ["subscribe_permissions", "subscribe_deny_permissions"],
                subscribe,
                subscribe_deny,
            ),
            responses: None,
        }
    }

    fn by_role(role: &RoleRecord, policy: &Policy, findings: &mut Vec<Finding>) -> Granted {
        let about = |field: &str, value: &str, problem, effect| Finding {
            collection: policy.role_collection.clone(),
            id: role.id.clone(),
            name: role.name.clone(),
            field: field.to_owned(),
            value: value.to_owned(),
            problem,
            effect,
        };
        let granted = Granted::new(&role.permissions, &about, findings);
        granted.report_wider(&about, findings);
        let responses = responses(role).unwrap_or_else(|(field, value, problem)| {
            findings.push(about(field, &shown(value), problem, Effect::NotGranted));
            None
        });
        Granted { responses, ..granted }
    }

    fn has_templates(&self) -> bool {
        let some = |it: &Entries| !it.allow_templates.is_empty() || !it.deny_templates.is_empty();
        some(&self.publish) || some(&self.subscribe)
    }

    fn is_empty(&self) -> bool {
        let none = |it: &Entries| it.allow.is_empty() && it.deny.is_empty();
        none(&self.publish) && none(&self.subscribe) && !self.has_templates()
    }

    /// As rules for everyone who has them. `None` if they differ from user to user.
    fn as_they_are(&self) -> Option<Rules> {
        if self.has_templates() {
            return None;
        }
        let Entries { allow, deny, .. } = &self.subscribe;
        Some(Rules {
            publish: Subjects::publishing(self.publish.allow.clone(), self.publish.deny.clone()),
            subscribe: Subjects::subscribing(allow.clone(), deny.clone()).0,
            responses: self.responses,
        })
    }

    /// Reports what nats-server will not keep apart, for rules that are the same for everyone.
    fn report_wider(&self, about: &About<'_>, findings: &mut Vec<Finding>) {
        if !self.has_templates() {
            let Entries { allow, deny, .. } = &self.subscribe;
            let (_, wider) = Subjects::subscribing(allow.clone(), deny.clone());
            findings.extend(wider.iter().map(|it| wider_than_said(it, about)));
        }
    }
}

fn wider_than_said(subject: &Subject, about: &About<'_>) -> Finding {
    let value = quoted(subject.as_str());
    about("subscribe_permissions", &value, Problem::Wider, Effect::Kept)
}

/// Reads one list of subjects. `false` if any of it could not be honoured.
fn read_list(
    parse: Parse,
    value: &Value,
    plain: &mut BTreeSet<Subject>,
    templates: &mut Vec<String>,
    mut finding: impl FnMut(&str, Problem),
) -> bool {
    let Ok(entries) = array(value) else {
        finding(&shown(value), Problem::NotArray);
        return false;
    };
    let mut honoured = true;
    for entry in entries.iter() {
        let read = match entry.as_str() {
            None => Err(Problem::NotText),
            Some(text) if subject::is_template(text) => {
                // Tried once for the role, so that a mistake in it is one finding, not one a user.
                subject::check_template(text, parse)
                    .map(|()| templates.push(text.to_owned()))
                    .map_err(Problem::Subject)
            }
            Some(text) => match parse(text) {
                Ok(subject) => {
                    plain.insert(subject);
                    Ok(())
                }
                Err(why) => Err(Problem::Subject(why)),
            },
        };
        if let Err(problem) = read {
            finding(&shown(entry), problem);
            honoured = false;
        }
    }
    honoured
}

/// The rules of one user, as they come together.
#[derive(Default)]
struct Filled {
    publish: (BTreeSet<Subject>, BTreeSet<Subject>),
    subscribe: (BTreeSet<Subject>, BTreeSet<Subject>),
    responses: Option<Responses>,
}

impl Filled {
    fn add(
        &mut self,
        granted: &Granted,
        values: Values<'_>,
        about: &About<'_>,
        findings: &mut Vec<Finding>,
    ) {
        let mut add = |to: &mut (BTreeSet<_>, BTreeSet<_>),
                       from: &Entries,
                       parse: Parse,
                       direction| {
            let (allow, deny) = to;
            allow.extend(from.allow.iter().cloned());
            deny.extend(from.deny.iter().cloned());
            let mut fill = |template: &str, list: &str, effect| {
                let filled = subject::fill(template, values).and_then(|filled| parse(&filled));
                let refused = |why| {
                    let field = format!("{direction}_{list}");
                    findings.push(about(&field, &quoted(template), Problem::Subject(why), effect));
                };
                filled.map_err(refused).ok()
            };
            for template in &from.allow_templates {
                allow.extend(fill(template, "permissions", Effect::NotGranted));
            }
            for template in &from.deny_templates {
                let filled = fill(template, "deny_permissions", Effect::DirectionDenied);
                deny.insert(filled.unwrap_or_else(Subject::everything));
            }
        };
        add(&mut self.publish, &granted.publish, Subject::parse, "publish");
        let parse = Subject::parse_subscription;
        add(&mut self.subscribe, &granted.subscribe, parse, "subscribe");
        self.responses = match (self.responses, granted.responses) {
            (Some(one), Some(other)) => Some(one.wider(other)),
            (one, other) => one.or(other),
        };
    }

    fn into_rules(self, about: &About<'_>, findings: &mut Vec<Finding>) -> Rules {
        let (subscribe, wider) = Subjects::subscribing(self.subscribe.0, self.subscribe.1);
        findings.extend(wider.iter().map(|it| wider_than_said(it, about)));
        Rules {
            publish: Subjects::publishing(self.publish.0, self.publish.1),
            subscribe,
            responses: self.responses,
        }
    }
}

/// Whether and how the role may answer requests, or the field that says something else.
pub(super) fn responses(
    role: &RoleRecord,
) -> Result<Option<Responses>, (&'static str, &Value, Problem)> {
    let allowed = match &role.allow_response {
        Value::Null => false,
        Value::Bool(it) => *it,
        Value::Number(it) if it.as_f64() == Some(0.0) => false,
        Value::Number(it) if it.as_f64() == Some(1.0) => true,
        other => return Err(("allow_response", other, Problem::NotBool)),
    };
    let number = |field, value| match value {
        &Value::Null => Ok(0.0),
        value => match value.as_f64() {
            Some(it) if (0.0..=MAX_RESPONSES).contains(&it) => Ok(it),
            _ => Err((field, value, Problem::BadNumber)),
        },
    };
    let max = number("allow_response_max", &role.allow_response_max)?;
    let ttl = number("allow_response_ttl", &role.allow_response_ttl)?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in 0..=a year")]
    let responses = Responses {
        max: (max as u32).max(1),
        ttl: Duration::from_millis((ttl * 1000.0).round() as u64),
    };
    Ok(allowed.then_some(responses))
}

impl Responses {
    /// nats-server's own limit where a role sets none.
    const DEFAULT_TTL: Duration = Duration::from_mins(2);

    /// The more of both.
    pub(super) fn wider(self, other: Responses) -> Responses {
        let length = |it: Duration| if it.is_zero() { Responses::DEFAULT_TTL } else { it };
        let longer = if length(self.ttl) >= length(other.ttl) { self.ttl } else { other.ttl };
        Responses { max: self.max.max(other.max), ttl: longer }
    }
}

impl Subjects {
    /// `allow` but for `deny`.
    ///
    /// What allows nothing has one form only, because to NATS an empty allow list means everything.
    pub fn new(allow: BTreeSet<Subject>, deny: BTreeSet<Subject>) -> Subjects {
        if allow.is_empty() || deny.iter().any(Subject::is_everything) {
            return Subjects::default();
        }
        Subjects { allow, deny }
    }

    /// The same, for every nats-server to see.
    fn publishing(mut allow: BTreeSet<Subject>, mut deny: BTreeSet<Subject>) -> Subjects {
        unmask(&mut allow);
        unmask(&mut deny);
        Subjects::new(allow, deny)
    }

    /// The same for subscriptions, where an allowed `a.*` must not become `a.>`.
    ///
    /// Also what could not be kept from becoming it, since a narrower permission lies beyond.
    fn subscribing(
        allow: BTreeSet<Subject>,
        mut deny: BTreeSet<Subject>,
    ) -> (Subjects, Vec<Subject>) {
        let mut wider = Vec::new();
        for entry in &allow {
            let Some(beyond) = entry.beyond() else { continue };
            let with_it = |it: &Subject| it.queue().is_none_or(|all| entry.is_for(all));
            if allow.iter().any(|it| it.covers(&beyond) && with_it(it)) {
                continue;
            }
            if allow.iter().any(|it| it.overlaps(&beyond)) {
                wider.push(entry.clone());
            } else {
                deny.insert(beyond);
            }
        }
        deny_every_group(&mut deny);
        unmask(&mut deny);
        (Subjects::new(allow, deny), wider)
    }

    /// Whether nothing is allowed.
    pub fn is_nothing(&self) -> bool {
        self.allow.is_empty()
    }

    /// What is allowed. Empty means nothing.
    pub fn allow(&self) -> &BTreeSet<Subject> {
        &self.allow
    }

    /// What is denied though it is allowed.
    pub fn deny(&self) -> &BTreeSet<Subject> {
        &self.deny
    }
}

/// Names each subject that stands both below a `*` and above another subject.
///
/// Before 2.11.12, and from 2.12.0 to 2.12.3, nats-server does not find `a.b` in `a.*` if `a.b.c` is
/// listed as well, when it is published to or delivered: denied, it would be allowed.
fn unmask(subjects: &mut BTreeSet<Subject>) {
    let mut masked = Vec::new();
    for star in subjects.iter().filter(|it| it.queue().is_none()) {
        let Some(above) = star.as_str().strip_suffix('*') else { continue };
        let below = subjects.iter().filter_map(|it| it.subject().strip_prefix(above));
        let tokens = below.filter_map(|it| it.split_once('.')).map(|(token, _)| token);
        let named: BTreeSet<_> = tokens.filter(|it| *it != "*").collect();
        masked.extend(named.iter().map(|token| star.sibling(token)));
    }
    subjects.extend(masked);
}

/// Says of each denied subject that it is for every queue group, where others are denied to some.
///
/// Before 2.11.16, and from 2.12.0 to 2.12.6, nats-server lets a queue group that is not among these
/// slip past a subject that is denied to all.
fn deny_every_group(deny: &mut BTreeSet<Subject>) {
    let (for_all, mut for_some): (Vec<_>, Vec<_>) =
        deny.iter().cloned().partition(|it| it.queue().is_none());
    for_some.retain(|some| !for_all.iter().any(|all| all.covers(some)));
    let met = for_all.iter().filter(|all| for_some.iter().any(|some| all.overlaps(some)));
    let every_group: Vec<_> = met.map(Subject::for_every_group).collect();
    *deny = for_all.into_iter().chain(for_some).chain(every_group).collect();
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
