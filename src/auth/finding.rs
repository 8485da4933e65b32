use std::fmt;

use serde::{Deserialize, Serialize, Serializer, ser::SerializeStruct as _};

use super::subject::BadSubject;

/// Something in the source that could not be honoured.
///
/// A finding only ever takes access away, so acting on the rest of the snapshot is safe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The collection that the record is in.
    pub collection: String,
    /// The record's id.
    pub id: String,
    /// The name of the user or role.
    pub name: String,
    /// The field in question.
    pub field: String,
    /// What was found there, shortened; never a password.
    pub value: String,
    /// What is wrong with it.
    pub problem: Problem,
    /// What came of it.
    pub effect: Effect,
}

/// What came of a [`Finding`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// The user is not in NATS.
    LeftOut,
    /// This one permission is not granted.
    NotGranted,
    /// This direction is denied altogether.
    DirectionDenied,
    /// The name stays in NATS, as a user who may do nothing.
    Locked,
    /// Nothing, but someone should look.
    Kept,
}

/// What can be wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// nats-server needs the name to be a user (`no_auth_user`), and it is none.
    Needed,
    /// The user has no name.
    NameEmpty,
    /// The name has control characters.
    NameControl,
    /// The name belongs to nats-server's own config, or to us.
    NameReserved,
    /// The name is a public nkey, which would collide with the user whose nkey it is.
    NameIsNkey,
    /// Several active records have the name.
    NameTwice,
    /// The name begins or ends with white space.
    NameSpace,
    /// The name has characters of no width.
    NameInvisible,
    /// Another name differs only in case.
    NameCase,
    /// No role has the id.
    RoleUnknown,
    /// There is neither a password nor an nkey.
    NoCredential,
    /// The password is not a bcrypt hash; to nats-server it would be the password itself.
    NotBcrypt,
    /// The bcrypt cost is so high that one log-in attempt would hold a core for seconds.
    CostTooHigh,
    /// The nkey is not a public user nkey.
    NotNkey,
    /// Several active records have the nkey.
    NkeyTwice,
    /// The field does not hold a JSON array.
    NotArray,
    /// An entry of the array is not a string.
    NotText,
    /// An entry is not a subject.
    Subject(BadSubject),
    /// nats-server lets a subscription to `a.>` pass for an allowed `a.*`, and here nothing can be
    /// denied against that without denying what is allowed.
    Wider,
    /// nats-server knows no such connection type.
    ConnectionType,
    /// The field is not a bool.
    NotBool,
    /// The field is not a number from zero to something reasonable.
    BadNumber,
}

impl Problem {
    /// A short name for the kind of problem, for scripts and metrics.
    pub fn kind(&self) -> &'static str {
        self.words().0
    }

    /// How to mend it.
    pub fn mend(&self) -> &'static str {
        self.words().2
    }

    /// Kind, what is wrong, how to mend it.
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Problem::Needed => (
                "needed",
                "nats-server's main config names this user (`no_auth_user`) and loads nothing without \
                 them, but no active record that can be honoured has the name",
                "make or activate a record with this name, or take `no_auth_user` out of the main config \
                 and restart nats-server",
            ),
            Problem::NameEmpty => ("name_empty", "the user has no name", "give the record a name"),
            Problem::NameControl => (
                "name_control",
                "the name has control characters",
                "type the name again, without line breaks or tabs",
            ),
            Problem::NameReserved => (
                "name_reserved",
                "the name is used by nats-server's own config, by `reserved_users` or by pb-nats",
                "choose another name",
            ),
            Problem::NameIsNkey => (
                "name_is_nkey",
                "the name is a public nkey",
                "put the nkey into the field `nkey` and choose another name",
            ),
            Problem::NameTwice => (
                "name_twice",
                "several active records have this name, and there is no telling which is meant",
                "rename or deactivate all but one, and make a unique index on the field",
            ),
            Problem::NameSpace => (
                "name_space",
                "the name begins or ends with white space",
                "remove the space, or the client has to send it too",
            ),
            Problem::NameInvisible => (
                "name_invisible",
                "the name has characters that cannot be seen",
                "type the name again",
            ),
            Problem::NameCase => (
                "name_case",
                "another user's name differs only in case, and NATS takes them for two users",
                "rename one of them",
            ),
            Problem::RoleUnknown => (
                "role_unknown",
                "there is no role with this id",
                "choose a role that exists, or none for the default permissions",
            ),
            Problem::NoCredential => (
                "no_credential",
                "there is neither a password nor an nkey",
                "set a password (a bcrypt hash: `pb-nats hash`)",
            ),
            Problem::NotBcrypt => (
                "not_bcrypt",
                "it is not a bcrypt hash, so nats-server would take it for the password itself",
                "store the bcrypt hash of the password (`pb-nats hash`)",
            ),
            Problem::CostTooHigh => (
                "cost_too_high",
                "its bcrypt cost is above 14, so each log-in attempt would hold a core for seconds",
                "hash the password at cost 10 (`pb-nats hash`)",
            ),
            Problem::NotNkey => (
                "not_nkey",
                "it is not a public user nkey",
                "store the public key, which begins with `U` (`nk -inkey user.nk -pubout`)",
            ),
            Problem::NkeyTwice => (
                "nkey_twice",
                "several active records have this nkey",
                "make an nkey for each of them",
            ),
            Problem::NotArray => {
                ("not_array", "it is not a JSON array of strings", "write it as [\"subject\", …]")
            }
            Problem::NotText => (
                "not_text",
                "an entry of the array is not a string",
                "write each subject in double quotes",
            ),
            Problem::Subject(BadSubject::UnsafeValue) => (
                "unsafe_value",
                "the user's value for its placeholder is empty or has `.`, `*`, `>`, white space or \
                 a control character",
                "use {{id}} instead, or rename the user",
            ),
            Problem::Subject(_) => {
                ("bad_subject", "it is not a subject", "correct the subject, such as a.*.c or a.>")
            }
            Problem::Wider => (
                "wider",
                "nats-server takes a subscription with `>` in the place of the last `*` for it, and \
                 denying that would deny another permission",
                "list the subjects one by one, or move those below it elsewhere",
            ),
            Problem::ConnectionType => (
                "connection_type",
                "there is no such connection type",
                "use STANDARD, WEBSOCKET, LEAFNODE, LEAFNODE_WS, MQTT or MQTT_WS",
            ),
            Problem::NotBool => ("not_bool", "it is not true or false", "use a bool field"),
            Problem::BadNumber => {
                ("bad_number", "it is negative, too large or not a number", "use a positive number")
            }
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words().1)?;
        match self {
            Problem::Subject(BadSubject::UnsafeValue) => Ok(()),
            Problem::Subject(why) => write!(f, ": {why}"),
            _ => Ok(()),
        }
    }
}

impl Effect {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Effect::LeftOut => "left out of NATS",
            Effect::NotGranted => "not granted",
            Effect::DirectionDenied => "denies this whole direction",
            Effect::Locked => "kept as a user who may do nothing",
            Effect::Kept => "kept as it is",
        }
    }
}

/// One line: where, what, why, what came of it, and how to mend it.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { collection, id, name, field, value, problem, effect } = self;
        let effect = effect.as_str();
        // An id is as its collection's pattern lets it be. Of a record that is missing there is none.
        let slash = if id.is_empty() { "" } else { "/" };
        write!(f, "{collection}{slash}{} {name:?}: {field}", id.escape_debug())?;
        if !value.is_empty() {
            write!(f, " {value}")?;
        }
        write!(f, ": {problem}; {effect}; {}", problem.mend())
    }
}

/// As an object: its kind, what is wrong, and how to mend it.
impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Problem", 3)?;
        object.serialize_field("kind", self.kind())?;
        object.serialize_field("text", &self.to_string())?;
        object.serialize_field("mend", self.mend())?;
        object.end()
    }
}
