//! What is read of a record, whichever way it came.

use std::{
    array,
    borrow::Cow,
    collections::{HashMap, HashSet},
    sync::Arc,
};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::SourceError;
use crate::{
    auth::{PasswordHash, Permissions, RoleRecord, Snapshot, UserRecord},
    options::PocketBaseOptions,
};

/// What PocketBase says about a collection: the answer to `GET /api/collections/{name}`, in part.
#[derive(Clone, Debug, Deserialize)]
pub struct Schema {
    /// Its name.
    pub name: String,
    /// `base`, `auth` or `view`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its fields.
    pub fields: Vec<Field>,
}

/// A field of a collection.
#[derive(Clone, Debug, Deserialize)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// `text`, `json`, `bool`, `relation` …
    #[serde(rename = "type")]
    pub kind: String,
    /// How many values it holds. Above one they are stored as a JSON array.
    #[serde(default, rename = "maxSelect")]
    pub max_select: Option<u64>,
}

/// How SQLite holds a field, as far as it differs from what the API shows.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stored {
    AsIs,
    Bool,
    Json,
}

impl Schema {
    /// As much of it as a record shows.
    pub(super) fn of(collection: &str, record: &Map<String, Value>) -> Schema {
        let field =
            |name: &String| Field { name: name.clone(), kind: String::new(), max_select: None };
        let kind = if is_of_auth_collection(record) { "auth" } else { "base" };
        Schema {
            name: collection.into(),
            kind: kind.into(),
            fields: record.keys().map(field).collect(),
        }
    }

    /// As much of it as the names of its columns show.
    pub(super) fn of_columns(collection: &str, columns: &[String]) -> Schema {
        let record = columns.iter().map(|it| (it.clone(), Value::Null)).collect();
        Schema::of(collection, &record)
    }

    pub(super) fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    fn need(&self, fields: &[&str]) -> Result<(), SourceError> {
        if self.kind == "view" {
            return Err(SourceError::IsView { collection: self.name.clone() });
        }
        match fields.iter().find(|name| self.field(name).is_none()) {
            Some(name) => Err(missing(&self.name, name, None)),
            None => Ok(()),
        }
    }
}

/// Auth collections, and only they, tell whether an email is verified.
pub(super) fn is_of_auth_collection(record: &Map<String, Value>) -> bool {
    record.contains_key("verified")
}

impl Field {
    pub(super) fn stored(&self) -> Stored {
        match self.kind.as_str() {
            "bool" => Stored::Bool,
            "json" | "geoPoint" => Stored::Json,
            "relation" | "select" | "file" if self.max_select > Some(1) => Stored::Json,
            _ => Stored::AsIs,
        }
    }
}

/// So many fields of a collection mean something to us.
pub(super) const MOST_FIELDS: usize = 13;

/// The collections and fields to read, by the names the settings give them.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub(super) users: String,
    pub(super) roles: String,
    username: String,
    pub(super) password: String,
    role: String,
    active: String,
}

const PERMISSIONS: [&str; 4] = [
    "publish_permissions",
    "subscribe_permissions",
    "publish_deny_permissions",
    "subscribe_deny_permissions",
];

impl Names {
    pub(super) fn new(options: &PocketBaseOptions) -> Names {
        Names {
            users: options.user_collection.clone(),
            roles: options.role_collection.clone(),
            username: options.username_field.clone(),
            password: options.password_field.clone(),
            role: options.role_field.clone(),
            active: options.active_field.clone(),
        }
    }

    /// The fields of a user that mean something to us, in the order in which [`Records::user`] takes
    /// them.
    pub(super) fn of_user(&self) -> [&str; MOST_FIELDS] {
        let Names { username, password, role, active, .. } = self;
        let [publish, subscribe, publish_deny, subscribe_deny] = PERMISSIONS;
        [
            "id",
            username,
            "email",
            password,
            "generated_hash",
            "nkey",
            role,
            active,
            publish,
            subscribe,
            publish_deny,
            subscribe_deny,
            "allowed_connection_types",
        ]
    }

    /// The fields of a role that mean something to us, in the order in which [`Records::role`] takes
    /// them.
    pub(super) fn of_role() -> [&'static str; 9] {
        let [publish, subscribe, publish_deny, subscribe_deny] = PERMISSIONS;
        [
            "id",
            "name",
            publish,
            subscribe,
            publish_deny,
            subscribe_deny,
            "allow_response",
            "allow_response_max",
            "allow_response_ttl",
        ]
    }

    /// The fields to read of the users collection. One that is needed and not there is an error.
    pub(super) fn user_fields<'a>(&self, it: &'a Schema) -> Result<Vec<&'a Field>, SourceError> {
        let username = if self.by_email(it) { "email" } else { &self.username };
        let needed = ["id", username, &self.password, &self.role, &self.active];
        it.need(&needed).map_err(|error| match error {
            SourceError::NoField { field, .. } => self.missing(&field),
            other => other,
        })?;
        Ok(self.known_user_fields(it))
    }

    /// The error that the users collection has no such field.
    pub(super) fn missing(&self, field: &str) -> SourceError {
        let settings = [
            ("username_field", &self.username),
            ("password_field", &self.password),
            ("role_field", &self.role),
            ("active_field", &self.active),
        ];
        let setting = settings.iter().find(|(_, name)| *name == field).map(|(setting, _)| *setting);
        missing(&self.users, field, setting)
    }

    /// The error that the roles collection has no such field.
    pub(super) fn missing_of_role(collection: &str, field: &str) -> SourceError {
        missing(collection, field, None)
    }

    /// The fields to read of the roles collection. One that is needed and not there is an error.
    pub(super) fn role_fields(it: &Schema) -> Result<Vec<&Field>, SourceError> {
        it.need(&["id", "name", PERMISSIONS[0], PERMISSIONS[1]])?;
        Ok(Names::known_role_fields(it))
    }

    /// The fields of the users collection that mean something to us.
    pub(super) fn known_user_fields<'a>(&self, it: &'a Schema) -> Vec<&'a Field> {
        let known = self.of_user();
        let named = |name: &str| name != "email" || self.username == "email" || self.by_email(it);
        let known = |field: &&Field| known.contains(&&*field.name) && named(&field.name);
        it.fields.iter().filter(known).collect()
    }

    /// The fields of the roles collection that mean something to us.
    pub(super) fn known_role_fields(it: &Schema) -> Vec<&Field> {
        it.fields.iter().filter(|field| Names::of_role().contains(&&*field.name)).collect()
    }

    /// Whether the email serves as the name: in auth collections one can log in with it.
    fn by_email(&self, it: &Schema) -> bool {
        it.kind == "auth" && it.field(&self.username).is_none()
    }
}

/// What a field holds, as it came.
#[derive(Debug)]
pub(super) enum Raw<'a> {
    Text(&'a str),
    /// JSON of any kind, not looked into.
    Json(&'a str),
    /// A JSON string that holds such.
    JsonInJson(&'a str),
    Value(Value),
}

impl<'a> Raw<'a> {
    pub(super) const NULL: Raw<'static> = Raw::Value(Value::Null);

    fn is_null(&self) -> bool {
        matches!(self, Raw::Json("null") | Raw::JsonInJson("null") | Raw::Value(Value::Null))
    }

    fn value(self) -> Value {
        match self {
            Raw::Text(text) => text.into(),
            // A database may hold what is no JSON where there should be some.
            Raw::Json(json) => serde_json::from_str(json).unwrap_or_else(|_| json.into()),
            Raw::JsonInJson(json) => match Raw::Json(json).value() {
                Value::String(text) if text.is_empty() => Value::Null,
                Value::String(text) => Raw::Json(&text).value(),
                other => other,
            },
            Raw::Value(value) => value,
        }
    }

    /// As [`text`].
    fn text(self) -> Cow<'a, str> {
        if let Raw::Text(text) = self {
            return text.into();
        }
        if let Raw::Json(json) = self
            && let Some(text) = json.strip_prefix('"').and_then(|it| it.strip_suffix('"'))
            && !text.contains('"')
            && !text.contains('\\')
        {
            return text.into();
        }
        text(self.value()).into()
    }
}

/// The names and hashes of the reading before, in its order. Most are the same again, and of many
/// users they are almost half of what a snapshot takes.
#[derive(Debug, Default)]
pub(super) struct Before(Vec<(Arc<str>, PasswordHash)>);

impl Before {
    /// These users were read. The next reading may share what they have.
    pub(super) fn keep(&mut self, users: &[UserRecord]) {
        self.0.clear();
        self.0.extend(users.iter().map(|it| (Arc::clone(&it.username), it.password.clone())));
    }
}

/// A snapshot in the making. What many records have alike is held once.
pub(super) struct Records<'a> {
    names: &'a Names,
    /// Those of the reading before that may still come.
    before: &'a [(Arc<str>, PasswordHash)],
    no_permissions: Arc<Permissions>,
    no_types: Arc<Value>,
    /// What fields refer to, and the same by the text that they hold.
    references: HashSet<Arc<[String]>>,
    by_text: HashMap<String, Arc<[String]>>,
    made: Snapshot,
}

impl<'a> Records<'a> {
    /// None yet; about as many users are expected as there were before.
    pub(super) fn new(names: &'a Names, Before(before): &'a Before) -> Records<'a> {
        Records {
            names,
            before,
            no_permissions: Arc::default(),
            no_types: Arc::default(),
            references: HashSet::new(),
            by_text: HashMap::new(),
            made: Snapshot { users: Vec::with_capacity(before.len()), roles: Vec::new() },
        }
    }

    /// All records so far.
    pub(super) fn made(self) -> Snapshot {
        self.made
    }

    /// Makes a user of the fields that `field` gives, by their place in [`Names::of_user`]; `None` if
    /// it is not there.
    ///
    /// The email must only be given where it may serve as the name.
    pub(super) fn user<'v>(
        &mut self,
        field: impl FnMut(usize) -> Option<Raw<'v>>,
    ) -> Result<(), SourceError> {
        let names = self.names;
        let missing = |name: &str| names.missing(name);
        let mut fields = (0..).map(field);
        // One after the other, and each used up at once: of many records an array would cost a third.
        let mut next = || fields.next().expect("it has no end");
        let id = next().ok_or_else(|| missing("id"))?.text().into_owned();
        let (username, email) = (next(), next());
        let username = username.or(email).ok_or_else(|| missing(&names.username))?;
        let password = next().ok_or_else(|| missing(&names.password))?;
        let (username, password) = self.login(&username.text(), &password.text());
        let generated_hash = next().map(hash).unwrap_or_default();
        let nkey = next().map(|it| shared(&it.text())).unwrap_or_default();
        let roles = self.references(next().ok_or_else(|| missing(&names.role))?);
        let active = match next().ok_or_else(|| missing(&names.active))?.value() {
            Value::Bool(active) => active,
            Value::Number(number) if number.as_u64() == Some(0) => false,
            Value::Number(number) if number.as_u64() == Some(1) => true,
            _ => {
                return Err(SourceError::WrongType {
                    collection: names.users.clone(),
                    field: names.active.clone(),
                    wanted: "a bool",
                    record: id,
                });
            }
        };
        let rights = [next(), next(), next(), next()];
        let permissions = if rights.iter().flatten().all(Raw::is_null) {
            Arc::clone(&self.no_permissions)
        } else {
            permissions(rights).into()
        };
        let connection_types = match next() {
            Some(types) if !types.is_null() => types.value().into(),
            Some(_) | None => Arc::clone(&self.no_types),
        };
        let record = UserRecord {
            id,
            username,
            password,
            generated_hash,
            nkey,
            roles,
            active,
            permissions,
            connection_types,
        };
        self.made.users.push(record);
        Ok(())
    }

    /// Makes a role of the fields that `field` gives, by their place in [`Names::of_role`]; `None` if
    /// it is not there.
    pub(super) fn role<'v>(
        &mut self,
        field: impl FnMut(usize) -> Option<Raw<'v>>,
    ) -> Result<(), SourceError> {
        let [id, name, rights @ .., respond, max, ttl] = array::from_fn::<_, 9, _>(field);
        let needed = [id.is_some(), name.is_some(), rights[0].is_some(), rights[1].is_some()];
        if let Some(at) = needed.iter().position(|there| !there) {
            return Err(missing(&self.names.roles, Names::of_role()[at], None));
        }
        let text = |it: Option<Raw<'_>>| it.unwrap_or(Raw::NULL).text().into_owned();
        let value = |it: Option<Raw<'_>>| it.unwrap_or(Raw::NULL).value();
        self.made.roles.push(RoleRecord {
            id: text(id),
            name: text(name),
            permissions: permissions(rights),
            allow_response: value(respond),
            allow_response_max: value(max),
            allow_response_ttl: value(ttl),
        });
        Ok(())
    }

    /// A name and a hash. If the same were read before, about here, they are those.
    fn login(&mut self, name: &str, hash: &str) -> (Arc<str>, PasswordHash) {
        /// So many records may be gone between two that are still there.
        const NEAR: usize = 8;
        let new = || PasswordHash(shared(hash));
        // The first may be anywhere, as several may read a part each.
        let near = if self.made.users.is_empty() { usize::MAX } else { NEAR };
        let found = self.before.iter().take(near).position(|(it, _)| **it == *name);
        let Some(at) = found else { return (shared(name), new()) };
        let (name, before) = &self.before[at];
        self.before = &self.before[at + 1..];
        (Arc::clone(name), if *before.0 == *hash { before.clone() } else { new() })
    }

    /// The ids that a field refers to.
    fn references(&mut self, field: Raw<'_>) -> Arc<[String]> {
        let text = match field {
            Raw::Text(it) | Raw::Json(it) | Raw::JsonInJson(it) => Some(it),
            Raw::Value(_) => None,
        };
        if let Some(known) = text.and_then(|it| self.by_text.get(it)) {
            return Arc::clone(known);
        }
        let ids = references(field.value());
        let known = self.references.get(&*ids).cloned().unwrap_or_else(|| {
            let new: Arc<[String]> = ids.into();
            self.references.insert(Arc::clone(&new));
            new
        });
        if let Some(text) = text {
            self.by_text.insert(text.to_owned(), Arc::clone(&known));
        }
        known
    }
}

fn missing(collection: &str, field: &str, setting: Option<&'static str>) -> SourceError {
    let (collection, field) = (collection.into(), field.into());
    SourceError::NoField { collection, field, setting, now: None }
}

fn permissions(rights: [Option<Raw<'_>>; 4]) -> Permissions {
    let [publish, subscribe, publish_deny, subscribe_deny] =
        rights.map(|it| it.unwrap_or(Raw::NULL).value());
    Permissions { publish, subscribe, publish_deny, subscribe_deny }
}

fn hash(field: Raw<'_>) -> PasswordHash {
    PasswordHash(shared(&field.text()))
}

/// All that is empty is one.
fn shared(text: &str) -> Arc<str> {
    if text.is_empty() { Arc::default() } else { text.into() }
}

/// What a field that should hold text holds. Anything else stays visible as its JSON.
fn text(value: Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// The ids that a field refers to. Whatever is not an id stays as one that nothing has, since a
/// user with an unknown role must not become one without a role.
fn references(value: Value) -> Vec<String> {
    match value {
        Value::Array(many) => many.into_iter().map(text).collect(),
        one => Some(text(one)).filter(|id| !id.is_empty()).into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_reference_that_is_not_an_id_is_never_no_reference() {
        for (value, ids) in [
            (json!(null), &[][..]),
            (json!(""), &[]),
            (json!([]), &[]),
            (json!("r1"), &["r1"]),
            (json!(["r1", "r2"]), &["r1", "r2"]),
            (json!(7), &["7"]),
            (json!({}), &["{}"]),
            (json!([""]), &[""]),
            (json!([["r1"]]), &["[\"r1\"]"]),
        ] {
            assert_eq!(references(value.clone()), ids, "{value}");
        }
    }

    #[test]
    fn what_has_not_changed_is_not_held_twice() {
        let names = Names::new(&PocketBaseOptions::default());
        let read = |before: &Before, users: &[(&str, &str)]| {
            let mut records = Records::new(&names, before);
            for (name, password) in users {
                let mut record = json!({
                    "id": "u1", "username": name, "password": password, "role_id": ["r1"], "active": true,
                });
                let fields = names.of_user();
                let field = |at: usize| record.as_object_mut()?.remove(fields[at]).map(Raw::Value);
                records.user(field).unwrap();
            }
            records.made().users
        };
        let first = [("ann", "1"), ("ben", "2"), ("cat", "3"), ("dan", "4"), ("eve", "5")];
        let mut before = Before::default();
        before.keep(&read(&before, &first));
        for (now, shared) in [
            (&first[..], 10),
            // The second half, as a second thread reads it.
            (&first[3..], 4),
            (&[("ann", "1"), ("new", "9"), ("ben", "2"), ("dan", "4")], 6),
            (&[("ann", "1"), ("ben", "other"), ("cat", "3")], 5),
            (&[("eve", "5"), ("dan", "4"), ("", "")], 2),
            (&[], 0),
        ] {
            let users = read(&before, now);
            let read: Vec<_> = users.iter().map(|it| (&*it.username, &*it.password.0)).collect();
            assert_eq!(read, now);
            let known = |it: &Arc<str>| {
                before
                    .0
                    .iter()
                    .any(|(name, hash)| Arc::ptr_eq(name, it) || Arc::ptr_eq(&hash.0, it))
            };
            let texts = users.iter().flat_map(|it| [&it.username, &it.password.0]);
            assert_eq!(texts.filter(|it| known(it)).count(), shared, "{now:?}");
            assert!(users.windows(2).all(|it| Arc::ptr_eq(&it[0].roles, &it[1].roles)), "{now:?}");
        }
    }

    #[test]
    fn active_is_a_bool_or_its_number_and_nothing_else() {
        let names = Names::new(&PocketBaseOptions::default());
        let active = |value: Value| {
            let mut record = json!({
                "id": "u1", "username": "ann", "password": "", "role_id": "", "active": value,
            });
            let none = Before::default();
            let mut records = Records::new(&names, &none);
            let fields = names.of_user();
            let field = |at: usize| record.as_object_mut()?.remove(fields[at]).map(Raw::Value);
            records.user(field).is_ok().then(|| records.made().users[0].active)
        };
        assert_eq!(active(json!(true)), Some(true));
        assert_eq!(active(json!(1)), Some(true));
        assert_eq!(active(json!(0)), Some(false));
        for other in [json!("true"), json!(2), json!(-1), json!(1.5), json!(null), json!([])] {
            assert_eq!(active(other.clone()), None, "{other}");
        }
    }
}
