use std::sync::Arc;

use serde_json::Value;

/// Everything the source said, at one moment, in any order.
///
/// Fields hold what the source holds, unjudged. Judging is [`Desired`](super::Desired)'s work.
#[derive(Clone, Debug, Default, PartialEq, Hash)]
pub struct Snapshot {
    /// The people and programs that may connect.
    pub users: Vec<UserRecord>,
    /// The grants users refer to by id.
    pub roles: Vec<RoleRecord>,
}

/// One record of the users collection.
///
/// Optional fields that the collection lacks are [`Value::Null`] or empty.
#[derive(Clone, Debug, Default, PartialEq, Hash)]
pub struct UserRecord {
    /// The record's id.
    pub id: String,
    /// The name the client connects with. What is worked out of the record shares it with that.
    pub username: Arc<str>,
    /// What the password field holds: a bcrypt hash, one hopes. Empty: none.
    pub password: PasswordHash,
    /// A cheaper hash of the same password, a space, and what the password field held when it was
    /// made. It counts as long as that is what the field holds. Empty: none.
    pub generated_hash: PasswordHash,
    /// A public user nkey, used instead of a password. Empty: none.
    pub nkey: Arc<str>,
    /// Ids of the roles referred to. Empty: no role. Shared by all who refer to the same.
    pub roles: Arc<[String]>,
    /// Whether the user may connect at all.
    pub active: bool,
    /// What is granted beside the roles. Shared by all to whom it is nothing, which may be many.
    pub permissions: Arc<Permissions>,
    /// The ways to connect, such as `["STANDARD", "MQTT"]`. Shared as well.
    pub connection_types: Arc<Value>,
}

/// One record of the roles collection.
#[derive(Clone, Debug, Default, PartialEq, Hash)]
pub struct RoleRecord {
    /// The id users refer to.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// What it grants and denies.
    pub permissions: Permissions,
    /// Whether a request may be answered on its reply subject.
    pub allow_response: Value,
    /// How many answers a request may have.
    pub allow_response_max: Value,
    /// For how many seconds it may be answered.
    pub allow_response_ttl: Value,
}

/// The four subject lists of a record, as JSON of any kind.
#[derive(Clone, Debug, Default, PartialEq, Hash)]
pub struct Permissions {
    /// Subjects that may be published to.
    pub publish: Value,
    /// Subjects that may be subscribed to.
    pub subscribe: Value,
    /// Subjects that may not be published to, whatever else is allowed.
    pub publish_deny: Value,
    /// Subjects that may not be subscribed to, whatever else is allowed.
    pub subscribe_deny: Value,
}

/// The text of a password field. It is not shown by `Debug`: often it is a hash, at times a mistake.
///
/// What is worked out of a record shares it with that.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct PasswordHash(pub Arc<str>);

impl std::fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}
