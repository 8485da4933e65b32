//! What NATS should allow: the types.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{
    ConnectionType, ConnectionTypes, PasswordHash, Rules, UserRecord, decide::bcrypt_cost,
};

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

impl Desired {
    /// What this user may do, wherever it is written.
    pub fn rules<'a>(&'a self, user: &'a User) -> &'a Rules {
        match &user.grant {
            Grant::Defaults => &self.defaults,
            Grant::Role(name) => &self.roles[name],
            Grant::Own(rules) => rules,
        }
    }
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
