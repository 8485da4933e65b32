use std::{collections::BTreeSet, fmt::Write as _, sync::Arc, time::Duration};

use super::{
    ConnectionType, Credential, Desired, Grant, PasswordHash, Responses, Rules, Subject, Subjects,
    User,
    conf::{self, ConfError, Entry, Node, quote},
};

/// How the first line of every file of ours begins.
const OURS: &str = "# Authorization for nats-server, written by pb-nats";
/// The number on the second line. A file with a larger one is not for us to touch.
const FORMAT: u32 = 1;
/// How the last line begins if servers can show by it that they run the file.
const STAMP: &str = "server_metadata { pb_nats: \"";
/// The user that keeps a server closed when there is no other.
pub(super) const LOCKED_USER: &str = "pb-nats-locked";
/// Well formed, cheap to refuse, and no password's: bcrypt leaves the last two bits of a hash zero, so
/// that none ends in `9`.
const LOCKED_HASH: &str = "$2a$04$pbxnatsxlockedxnobodyexxlogsxinxwithxthisxhashxxxxxx9";

/// Role names that nats-server would take for settings of its own, in any letter case.
const TAKEN: &[&str] = &[
    "ACCOUNT",
    "ACCOUNTS",
    "ALLOWED_ACCOUNTS",
    "AUTH",
    "AUTHORIZATION",
    "AUTH_CALLOUT",
    "AUTH_HOOK",
    "AUTH_USERS",
    "DEFAULT_PERMISSION",
    "DEFAULT_PERMISSIONS",
    "DEFAULT_SENTINEL",
    "FALSE",
    "INCLUDE",
    "ISSUER",
    "JWT",
    "NKEY",
    "NKEYS",
    "NO",
    "NO_AUTH_USER",
    "OFF",
    "ON",
    "OPERATOR",
    "PASS",
    "PASSWORD",
    "PERMISSIONS",
    "PROXY_REQUIRED",
    "ROLES",
    "TIMEOUT",
    "TLS",
    "TOKEN",
    "TRUE",
    "USER",
    "USERNAME",
    "USERS",
    "XKEY",
    "YES",
];

/// What an auth file turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Ours, and whole.
    Ours(Box<Desired>),
    /// Ours by its first line, but not what we write: torn or edited.
    Torn(ConfError),
    /// Ours, in a format of a later version.
    Newer(u32),
    /// Nothing, or nothing but white space.
    Empty,
    /// Somebody else's.
    Foreign,
}

/// Writes `desired` the way nats-server reads it.
///
/// Roles are variables and users have a line each: of all layouts that can say what roles say, the
/// one that nats-server reloads fastest.
pub fn render(desired: &Desired) -> String {
    let mut text = String::with_capacity(1024 + desired.users.len() * 120);
    write(&mut text, desired).expect("a String takes everything");
    text
}

/// Adds to what [`render`] wrote when it was written, and what a server shows once it runs it.
pub fn dated(text: &str, generated_at: &str, stamp: Option<&str>) -> String {
    let head = text.match_indices('\n').nth(1).expect("two lines of comment").0 + 1;
    let stamp = stamp.map(|it| format!("\n{STAMP}{it}\" }}\n"));
    format!(
        "{}# Generated at: {generated_at}\n{}{}",
        &text[..head],
        &text[head..],
        stamp.unwrap_or_default()
    )
}

/// The stamp that [`dated`] put into the text.
pub fn stamp(text: &str) -> Option<String> {
    let (_, last) = text.trim_end().rsplit_once('\n')?;
    Some(last.strip_prefix(STAMP)?.strip_suffix("\" }")?.to_owned())
}

/// Reads back what [`render`] wrote.
pub fn parse(text: &str) -> Found {
    if text.trim().is_empty() {
        return Found::Empty;
    }
    if !text.starts_with(OURS) {
        return Found::Foreign;
    }
    let format = text.lines().nth(1).and_then(|it| it.strip_prefix("# format: "));
    match format.map(|it| it.trim().parse::<u32>()) {
        Some(Ok(FORMAT)) => (),
        Some(Ok(newer)) if newer > FORMAT => return Found::Newer(newer),
        _ => return Found::Torn(ConfError { line: 2, what: "expected the number of the format" }),
    }
    match conf::read(text).and_then(|it| desired(&it)) {
        Ok(desired) => Found::Ours(Box::new(desired)),
        Err(err) => Found::Torn(err),
    }
}

/// A role's name as nats-server can have it: capitals, digits and `_`, and none of its own words.
pub(super) fn identifier(name: &str) -> String {
    let word = |it: char| if it.is_ascii_alphanumeric() { it.to_ascii_uppercase() } else { '_' };
    let name: String = name.chars().map(word).collect();
    let bare = name.is_empty() || name.starts_with(|it: char| it.is_ascii_digit());
    if bare || TAKEN.contains(&name.as_str()) { format!("ROLE_{name}") } else { name }
}

fn write(out: &mut String, desired: &Desired) -> std::fmt::Result {
    writeln!(out, "{OURS}. Edits are overwritten.\n# format: {FORMAT}\n")?;
    // This block comes first: a file torn anywhere before its end does not parse, or has no block.
    writeln!(out, "authorization {{")?;
    if let Some(timeout) = desired.login_timeout {
        writeln!(out, "  timeout = {}", timeout.as_secs_f64())?;
    }
    writeln!(out, "  default_permissions = {{")?;
    write_rules(out, &desired.defaults, "\n", "    ")?;
    writeln!(out, "\n  }}")?;
    if !desired.roles.is_empty() {
        writeln!(out, "\n  # Roles")?;
    }
    for (name, rules) in &desired.roles {
        writeln!(out, "  {name} = {{")?;
        write_rules(out, rules, "\n", "    ")?;
        writeln!(out, "\n  }}")?;
    }
    writeln!(out, "\n  # Users\n  users = [")?;
    for (login, user) in &desired.users {
        write_user(out, login, user)?;
    }
    if desired.users.is_empty() {
        // To nats-server no users means that everyone may do everything.
        write_user(out, LOCKED_USER, &locked())?;
    }
    writeln!(out, "  ]\n}}")
}

/// The user that nobody can be, and that may do nothing.
fn locked() -> User {
    User {
        credential: Credential::Password(PasswordHash(LOCKED_HASH.to_owned())),
        grant: Grant::Own(Box::default()),
        connection_types: BTreeSet::new(),
    }
}

fn write_user(out: &mut String, login: &str, user: &User) -> std::fmt::Result {
    let login = quote(login);
    match &user.credential {
        Credential::Nkey => write!(out, "    {{nkey: {login}")?,
        Credential::Password(hash) => {
            write!(out, "    {{user: {login}, password: {}", quote(&hash.0))?;
        }
    }
    match &user.grant {
        Grant::Defaults => (),
        Grant::Role(name) => write!(out, ", permissions: ${name}")?,
        Grant::Own(rules) => {
            write!(out, ", permissions: {{")?;
            write_rules(out, rules, ", ", "")?;
            write!(out, "}}")?;
        }
    }
    if !user.connection_types.is_empty() {
        let types: Vec<_> = user.connection_types.iter().map(|it| quote(it.as_str())).collect();
        write!(out, ", allowed_connection_types: [{}]", types.join(", "))?;
    }
    writeln!(out, "}}")
}

fn write_rules(out: &mut String, rules: &Rules, between: &str, indent: &str) -> std::fmt::Result {
    write!(out, "{indent}publish = ")?;
    write_subjects(out, &rules.publish)?;
    write!(out, "{between}{indent}subscribe = ")?;
    write_subjects(out, &rules.subscribe)?;
    if let Some(Responses { max, ttl }) = rules.responses {
        write!(out, "{between}{indent}allow_responses = {{max: {max}")?;
        if !ttl.is_zero() {
            write!(out, ", expires: \"{}ms\"", ttl.as_millis())?;
        }
        write!(out, "}}")?;
    }
    Ok(())
}

fn write_subjects(out: &mut String, subjects: &Subjects) -> std::fmt::Result {
    if subjects.is_nothing() {
        // An empty allow list would mean everything.
        return write!(out, "{{deny: \">\"}}");
    }
    if subjects.deny().is_empty() {
        return write_list(out, subjects.allow().iter().map(Subject::as_str));
    }
    write!(out, "{{allow: ")?;
    write_list(out, subjects.allow().iter().map(Subject::as_str))?;
    write!(out, ", deny: ")?;
    write_list(out, subjects.deny().iter().map(Subject::as_str))?;
    write!(out, "}}")
}

/// One as a string, more as an array.
fn write_list<'a>(
    out: &mut String,
    items: impl ExactSizeIterator<Item = &'a str>,
) -> std::fmt::Result {
    let several = items.len() != 1;
    let mut between = if several { "[" } else { "" };
    for item in items {
        write!(out, "{between}{}", quote(item))?;
        between = ", ";
    }
    if several { write!(out, "]") } else { Ok(()) }
}

/// What the entries of a file say, if it is only what we write.
fn desired(entries: &[Entry]) -> Result<Desired, ConfError> {
    let mut desired = None;
    for entry in entries {
        match entry.key.as_str() {
            "authorization" if desired.is_none() => desired = Some(authorization(entry)?),
            "server_metadata" => (),
            _ => return unexpected(entry),
        }
    }
    desired.ok_or(ConfError { line: 3, what: "expected `authorization`" })
}

fn authorization(block: &Entry) -> Result<Desired, ConfError> {
    let mut desired = Desired::default();
    let (mut defaults, mut users) = (None, None);
    for entry in block.value.entries() {
        match entry.key.as_str() {
            "timeout" => {
                let seconds = entry.value.text().and_then(|it| it.parse().ok());
                let timeout = seconds.and_then(|it| Duration::try_from_secs_f64(it).ok());
                desired.login_timeout =
                    Some(timeout.ok_or(ConfError {
                        line: entry.line,
                        what: "expected a number of seconds",
                    })?);
            }
            "default_permissions" => defaults = Some(rules(&entry.value, entry)?),
            "users" if users.is_none() => users = Some(entry),
            role if users.is_none() && identifier(role) == role => {
                desired.roles.insert(role.into(), rules(&entry.value, entry)?);
            }
            _ => return unexpected(entry),
        }
    }
    // Without either, everything would be allowed to someone.
    let (Some(defaults), Some(users)) = (defaults, users) else { return unexpected(block) };
    desired.defaults = defaults;
    for item in users.value.items() {
        let (login, user) = user(item, users, &desired)?;
        let new = desired.users.insert(login, user).is_none();
        if !new {
            return unexpected(users);
        }
    }
    match desired.users.remove(LOCKED_USER) {
        None if !desired.users.is_empty() => (),
        Some(user) if desired.users.is_empty() && user == locked() => (),
        None | Some(_) => return unexpected(users),
    }
    // nats-server takes a role that nobody has for a mistake.
    let used: BTreeSet<_> = desired.users.values().filter_map(|it| it.grant.role()).collect();
    if used.len() < desired.roles.len() {
        return unexpected(block);
    }
    Ok(desired)
}

fn user(item: &Node, at: &Entry, desired: &Desired) -> Result<(String, User), ConfError> {
    let (mut login, mut password) = (None, None);
    let (mut grant, mut connection_types) = (Grant::Defaults, BTreeSet::new());
    let mut nkey = false;
    for entry in item.entries() {
        match (entry.key.as_str(), &entry.value) {
            ("user", Node::Text(text)) => login = Some(text.clone()),
            ("nkey", Node::Text(text)) => (login, nkey) = (Some(text.clone()), true),
            ("password", Node::Text(text)) => password = Some(PasswordHash(text.clone())),
            ("permissions", Node::Variable(name)) => {
                let Some((name, _)) = desired.roles.get_key_value(name.as_str()) else {
                    return unexpected(entry);
                };
                grant = Grant::Role(Arc::clone(name));
            }
            ("permissions", own) => grant = Grant::Own(Box::new(rules(own, entry)?)),
            ("allowed_connection_types", types) => {
                for text in texts(types, entry)? {
                    let Some(it) = ConnectionType::parse(text) else { return unexpected(entry) };
                    connection_types.insert(it);
                }
            }
            _ => return unexpected(entry),
        }
    }
    let credential = match (password, nkey) {
        (Some(hash), false) => Credential::Password(hash),
        (None, true) => Credential::Nkey,
        (Some(_), true) | (None, false) => return unexpected(at),
    };
    let Some(login) = login else { return unexpected(at) };
    Ok((login, User { credential, grant, connection_types }))
}

fn rules(node: &Node, at: &Entry) -> Result<Rules, ConfError> {
    let mut rules = Rules::default();
    for entry in node.entries() {
        match entry.key.as_str() {
            "publish" => rules.publish = subjects(entry, Subject::parse)?,
            "subscribe" => rules.subscribe = subjects(entry, Subject::parse_subscription)?,
            "allow_responses" => {
                let max = entry.value.at("max").and_then(Node::text).and_then(|it| it.parse().ok());
                let ttl = entry.value.at("expires").and_then(Node::text);
                let millis = ttl.map_or(Some(0), |it| it.strip_suffix("ms")?.parse().ok());
                let (Some(max), Some(millis)) = (max, millis) else { return unexpected(entry) };
                rules.responses = Some(Responses { max, ttl: Duration::from_millis(millis) });
            }
            _ => return unexpected(entry),
        }
    }
    // What is left out would be allowed, and we leave nothing out.
    if node.at("publish").is_none() || node.at("subscribe").is_none() {
        return unexpected(at);
    }
    Ok(rules)
}

fn subjects(
    entry: &Entry,
    parse: fn(&str) -> Result<Subject, super::BadSubject>,
) -> Result<Subjects, ConfError> {
    let set = |node: &Node| -> Result<BTreeSet<Subject>, ConfError> {
        let parsed: Result<_, _> = texts(node, entry)?.into_iter().map(parse).collect();
        parsed.or_else(|_| unexpected(entry))
    };
    let Node::Map(_) = &entry.value else {
        let allow = set(&entry.value)?;
        // It would mean everything.
        return if allow.is_empty() {
            unexpected(entry)
        } else {
            Ok(Subjects::new(allow, [].into()))
        };
    };
    let part = |key| entry.value.at(key).map_or(Ok(BTreeSet::new()), set);
    let (allow, deny) = (part("allow")?, part("deny")?);
    if allow.is_empty() && !deny.iter().any(Subject::is_everything) {
        return unexpected(entry);
    }
    Ok(Subjects::new(allow, deny))
}

fn texts<'a>(node: &'a Node, at: &Entry) -> Result<Vec<&'a str>, ConfError> {
    match node {
        Node::Text(text) => Ok(vec![text]),
        Node::List(items) => {
            items.iter().map(|it| it.text().map_or_else(|| unexpected(at), Ok)).collect()
        }
        Node::Map(_) | Node::Word(_) | Node::Variable(_) => unexpected(at),
    }
}

fn unexpected<T>(entry: &Entry) -> Result<T, ConfError> {
    Err(ConfError { line: entry.line, what: "not as pb-nats writes it" })
}
