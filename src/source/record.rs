//! What is read of a record, whichever way it came.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::SourceError;
use crate::{
    auth::{PasswordHash, Permissions, RoleRecord, UserRecord},
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

/// The collections and fields to read, by the names the settings give them.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub(super) users: String,
    pub(super) roles: String,
    username: String,
    pub(super) password: String,
    role: String,
    active: String,
    no_permissions: Arc<Permissions>,
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
            no_permissions: Arc::default(),
        }
    }

    /// The fields of a user that mean something to us.
    pub(super) fn of_user(&self) -> Vec<&str> {
        let mut names =
            vec!["id", &self.username, "email", &self.password, &self.role, &self.active, "nkey"];
        names.extend(PERMISSIONS);
        names.extend(["allowed_connection_types", "generated_hash"]);
        names
    }

    /// The fields of a role that mean something to us.
    pub(super) fn of_role() -> Vec<&'static str> {
        let mut names = vec!["id", "name"];
        names.extend(PERMISSIONS);
        names.extend(["allow_response", "allow_response_max", "allow_response_ttl"]);
        names
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

    /// The fields to read of the roles collection. One that is needed and not there is an error.
    pub(super) fn role_fields(it: &Schema) -> Result<Vec<&Field>, SourceError> {
        it.need(&["id", "name", PERMISSIONS[0], PERMISSIONS[1]])?;
        Ok(Names::known_role_fields(it))
    }

    /// The fields of the users collection that mean something to us.
    pub(super) fn known_user_fields<'a>(&self, it: &'a Schema) -> Vec<&'a Field> {
        let mut known = self.of_user();
        known.retain(|name| *name != "email" || self.username == "email" || self.by_email(it));
        it.fields.iter().filter(|field| known.contains(&&*field.name)).collect()
    }

    /// The fields of the roles collection that mean something to us.
    pub(super) fn known_role_fields(it: &Schema) -> Vec<&Field> {
        it.fields.iter().filter(|field| Names::of_role().contains(&&*field.name)).collect()
    }

    /// Whether the email serves as the name: in auth collections one can log in with it.
    fn by_email(&self, it: &Schema) -> bool {
        it.kind == "auth" && it.field(&self.username).is_none()
    }

    /// Makes a user of the fields that `field` gives: each once, `None` if it is not there.
    ///
    /// The email must only be given where it may serve as the name.
    pub(super) fn user(
        &self,
        mut field: impl FnMut(&str) -> Option<Value>,
    ) -> Result<UserRecord, SourceError> {
        let missing = |name: &str| self.missing(name);
        let id = text(field("id").ok_or_else(|| missing("id"))?);
        let active = match field(&self.active).ok_or_else(|| missing(&self.active))? {
            Value::Bool(active) => active,
            Value::Number(number) if number.as_u64() == Some(0) => false,
            Value::Number(number) if number.as_u64() == Some(1) => true,
            _ => {
                return Err(SourceError::WrongType {
                    collection: self.users.clone(),
                    field: self.active.clone(),
                    wanted: "a bool",
                    record: id,
                });
            }
        };
        let username = field(&self.username).or_else(|| field("email"));
        Ok(UserRecord {
            id,
            username: text(username.ok_or_else(|| missing(&self.username))?),
            password: hash(field(&self.password).ok_or_else(|| missing(&self.password))?),
            generated_hash: hash(field("generated_hash").unwrap_or_default()),
            nkey: text(field("nkey").unwrap_or_default()),
            roles: references(field(&self.role).ok_or_else(|| missing(&self.role))?),
            active,
            connection_types: field("allowed_connection_types").unwrap_or_default(),
            permissions: self.shared(permissions(field)),
        })
    }

    fn shared(&self, permissions: Permissions) -> Arc<Permissions> {
        if permissions == *self.no_permissions {
            Arc::clone(&self.no_permissions)
        } else {
            Arc::new(permissions)
        }
    }

    /// Makes a role of the fields that `field` gives: each once, `None` if it is not there.
    pub(super) fn role(
        &self,
        mut field: impl FnMut(&str) -> Option<Value>,
    ) -> Result<RoleRecord, SourceError> {
        let mut needed = |name: &str| field(name).ok_or_else(|| missing(&self.roles, name, None));
        let id = text(needed("id")?);
        let name = text(needed("name")?);
        let publish = needed(PERMISSIONS[0])?;
        let subscribe = needed(PERMISSIONS[1])?;
        Ok(RoleRecord {
            id,
            name,
            allow_response: field("allow_response").unwrap_or_default(),
            allow_response_max: field("allow_response_max").unwrap_or_default(),
            allow_response_ttl: field("allow_response_ttl").unwrap_or_default(),
            permissions: Permissions { publish, subscribe, ..permissions(field) },
        })
    }
}

fn missing(collection: &str, field: &str, setting: Option<&'static str>) -> SourceError {
    SourceError::NoField { collection: collection.into(), field: field.into(), setting }
}

fn permissions(mut field: impl FnMut(&str) -> Option<Value>) -> Permissions {
    let [publish, subscribe, publish_deny, subscribe_deny] =
        PERMISSIONS.map(|name| field(name).unwrap_or_default());
    Permissions { publish, subscribe, publish_deny, subscribe_deny }
}

/// All who have none share one.
fn hash(value: Value) -> PasswordHash {
    match text(value) {
        it if it.is_empty() => PasswordHash::default(),
        it => PasswordHash(it.into()),
    }
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
        // Boxed on the way: else they keep the room of the JSON values, a hundred bytes for one id.
        Value::Array(many) => many.into_iter().map(text).collect::<Box<[_]>>().into_vec(),
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
    fn active_is_a_bool_or_its_number_and_nothing_else() {
        let names = Names::new(&PocketBaseOptions::default());
        let active = |value: Value| {
            let mut record = json!({
                "id": "u1", "username": "ann", "password": "", "role_id": "", "active": value,
            });
            names.user(|name| record.as_object_mut()?.remove(name)).map(|user| user.active).ok()
        };
        assert_eq!(active(json!(true)), Some(true));
        assert_eq!(active(json!(1)), Some(true));
        assert_eq!(active(json!(0)), Some(false));
        for other in [json!("true"), json!(2), json!(-1), json!(1.5), json!(null), json!([])] {
            assert_eq!(active(other.clone()), None, "{other}");
        }
    }
}
