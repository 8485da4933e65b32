use std::fmt;

use serde::{Deserialize, Deserializer, de};

/// Something that happened in the source between two looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What kind of thing.
    pub kind: EventType,
    /// The name of the user or role.
    pub name: String,
}

/// The kinds of [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventType {
    /// A user may connect who could not before.
    UserCreate,
    /// A user's credential or own permissions differ, or the roles they have.
    UserUpdate,
    /// A user may no longer connect.
    UserDelete,
    /// There is a new role.
    RoleCreate,
    /// A role's name or permissions differ.
    RoleUpdate,
    /// A role is gone.
    RoleDelete,
}

/// How many users one pass may remove without being told twice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MaxRemoved {
    /// So many.
    Count(usize),
    /// Such a part of all, from 0 to 1.
    Share(f64),
}

impl<'de> Deserialize<'de> for MaxRemoved {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Amount;
        impl de::Visitor<'_> for Amount {
            type Value = MaxRemoved;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a count such as 20 or a share such as \"50%\"")
            }
            fn visit_i64<E: de::Error>(self, count: i64) -> Result<MaxRemoved, E> {
                let count = usize::try_from(count);
                count.map(MaxRemoved::Count).map_err(|_| E::custom("expected no negative count"))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<MaxRemoved, E> {
                if let Ok(count) = text.parse() {
                    return Ok(MaxRemoved::Count(count));
                }
                let percent = text.strip_suffix('%').and_then(|it| it.trim().parse::<f64>().ok());
                match percent {
                    Some(percent) if (0.0..=100.0).contains(&percent) => {
                        Ok(MaxRemoved::Share(percent / 100.0))
                    }
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(Amount)
    }
}
