//! The export view: a view collection of one row that carries both collections, so that one
//! request reads them as of one moment. It is made and read here.
//!
//! The row has the id [`VIEW_ID`] and three columns:
//!
//! ```json
//! {
//!   "carries": {
//!     "format": 1,
//!     "users": {
//!       "collection": "nats_users", "common": 5,
//!       "fields": ["id", "username", "password", "role_id", "active", "publish_permissions"],
//!       "json": ["role_id", "publish_permissions"], "bool": ["active"]
//!     },
//!     "roles": {"collection": "nats_roles", "common": 2, "fields": ["id", "name"], "json": [], "bool": []}
//!   },
//!   "users": "[[\"u5k2…\",\"ann\",\"$2a$10$…\",\"[\\\"r8d1…\\\"]\",1,null]]",
//!   "roles": "[[\"r8d1…\",\"admin\"]]"
//! }
//! ```
//!
//! `carries` says what the arrays in the other two hold, in which order. They are as the database has
//! them, so hidden and password-type fields are there too; those in `json` are text that holds JSON,
//! those in `bool` 0 or 1. The fields behind the `common` ones are in one array at the end; most
//! records have nothing in any of them, and `null` for it. The two are text, and not what PocketBase takes for JSON, as that it looks
//! through again and again: of all ways to have it make them, this one takes it the least time.

use std::{
    fmt::{self, Write as _},
    ops::Range,
};

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{
    SourceError,
    record::{Field, Names, Raw, Records, Schema, Stored},
};
use crate::{auth::Snapshot, options::PocketBaseOptions};

/// The id of the only row of an export view.
pub const VIEW_ID: &str = "pb-nats";

const FORMAT: u32 = 1;

/// The `viewQuery` of an export view for these collections, as they are now.
///
/// It works in PocketBase 0.23 and later. PocketBase keeps it right when a field is renamed, and
/// refuses to remove a field that it uses.
pub fn export_view_query(
    options: &PocketBaseOptions,
    users: &Schema,
    roles: &Schema,
) -> Result<String, SourceError> {
    let names = Names::new(options);
    let users = Carrier::new(users, names.user_fields(users)?)?;
    let roles = Carrier::new(roles, Names::role_fields(roles)?)?;
    Ok(format!(
        "SELECT '{VIEW_ID}' AS id, json_object('format', {FORMAT}, 'users', {}, 'roles', {}) \
         AS carries, {} AS users, {} AS roles",
        users.description(),
        roles.description(),
        users.rows(),
        roles.rows(),
    ))
}

/// Everything that the row of an export view says, as the API gives it.
pub fn read_export(row: &str, options: &PocketBaseOptions) -> Result<Snapshot, SourceError> {
    let view = &options.export_view;
    let unknown = |_| SourceError::ViewUnknown { view: view.clone() };
    let export = serde_json::from_str(row).map(|it| Export::new(it, row)).map_err(unknown)?;
    export.snapshot(view, &Names::new(options), row.as_bytes().to_vec(), 0)
}

/// One collection in the query.
struct Carrier<'a> {
    collection: &'a str,
    fields: Vec<&'a Field>,
    /// So many of them come first that most records have something in.
    common: usize,
}

impl<'a> Carrier<'a> {
    fn new(schema: &'a Schema, fields: Vec<&'a Field>) -> Result<Carrier<'a>, SourceError> {
        // PocketBase has no other names, and these need no quoting anywhere.
        let plain = |name: &str| name.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'_');
        let mut names = fields.iter().map(|field| &field.name).chain([&schema.name]);
        if let Some(name) = names.find(|name| !plain(name)) {
            return Err(SourceError::Settings(format!(
                "`{name}` is not a name that PocketBase gives a collection or a field"
            )));
        }
        let (rare, mut fields): (Vec<_>, Vec<_>) =
            fields.into_iter().partition(|it| it.kind == "json");
        let common = fields.len();
        fields.extend(rare);
        Ok(Carrier { collection: &schema.name, fields, common })
    }

    fn description(&self) -> String {
        let names = |wanted: fn(Stored) -> bool| {
            let names = self.fields.iter().filter(|it| wanted(it.stored()));
            let names: Vec<_> = names.map(|it| format!("'{}'", it.name)).collect();
            format!("json_array({})", names.join(", "))
        };
        format!(
            "json_object('collection', '{}', 'fields', {}, 'common', {}, 'json', {}, 'bool', {})",
            self.collection,
            names(|_| true),
            self.common,
            names(|it| matches!(it, Stored::Json)),
            names(|it| matches!(it, Stored::Bool)),
        )
    }

    fn rows(&self) -> String {
        let values: Vec<_> = self.fields.iter().map(|it| format!("t.\"{}\"", it.name)).collect();
        let (common, rare) = values.split_at(self.common);
        let mut values = common.join(", ");
        if !rare.is_empty() {
            let rare = rare.join(", ");
            let _ = write!(
                values,
                ", CASE WHEN coalesce({rare}, NULL) IS NOT NULL THEN json_array({rare}) END"
            );
        }
        format!(
            "CAST((SELECT json_group_array(json_array({values})) FROM \"{}\" t) AS TEXT)",
            self.collection
        )
    }
}

/// The export view's row, as the API gives it.
#[derive(Deserialize)]
pub(super) struct Row<'a> {
    carries: Carries,
    #[serde(borrow)]
    users: &'a RawValue,
    #[serde(borrow)]
    roles: &'a RawValue,
}

/// Where an answer has the rows of both collections.
pub(super) struct Export {
    carries: Carries,
    users: Range<usize>,
    roles: Range<usize>,
}

#[derive(Deserialize)]
struct Carries {
    format: u32,
    users: Carried,
    roles: Carried,
}

#[derive(Deserialize)]
struct Carried {
    collection: String,
    fields: Vec<String>,
    /// Those behind so many are in an array of their own, or `null` where there is nothing in any.
    common: Option<usize>,
    #[serde(default)]
    json: Vec<String>,
    #[serde(default)]
    bool: Vec<String>,
}

impl Row<'_> {
    /// Refuses the view if the collections have fields, known to us, that it lacks.
    pub(super) fn compare(
        &self,
        view: &str,
        users: &[&Field],
        roles: &[&Field],
    ) -> Result<(), SourceError> {
        for (carried, there) in [(&self.carries.users, users), (&self.carries.roles, roles)] {
            if let Some(field) = there.iter().find(|it| !carried.fields.contains(&it.name)) {
                return Err(SourceError::ViewLacks {
                    view: view.into(),
                    collection: carried.collection.clone(),
                    field: field.name.clone(),
                });
            }
        }
        Ok(())
    }
}

impl Export {
    /// A row that was read from this answer.
    pub(super) fn new(row: Row<'_>, answer: &str) -> Export {
        let place = |raw: &RawValue| {
            let start = raw.get().as_ptr() as usize - answer.as_ptr() as usize;
            start..start + raw.get().len()
        };
        Export { users: place(row.users), roles: place(row.roles), carries: row.carries }
    }

    /// Everything that the row of the view named `view` says. The answer is used up, as it may be
    /// large. So many users are expected.
    pub(super) fn snapshot(
        self,
        view: &str,
        names: &Names,
        mut answer: Vec<u8>,
        expected: usize,
    ) -> Result<Snapshot, SourceError> {
        let Export { carries, users, roles } = self;
        if carries.format != FORMAT {
            return Err(SourceError::ViewUnknown { view: view.into() });
        }
        for (carried, wanted) in [(&carries.users, &names.users), (&carries.roles, &names.roles)] {
            if carried.collection != *wanted {
                return Err(SourceError::ViewOfOther {
                    view: view.into(),
                    carried: carried.collection.clone(),
                    wanted: wanted.clone(),
                });
            }
        }
        let unknown = || SourceError::ViewUnknown { view: view.into() };
        let mut records = Records::new(names, expected);
        let rows = unquoted(&mut answer[roles]).ok_or_else(unknown)?;
        carries.roles.each(view, rows, &Names::of_role(), |row| records.role(row))?;
        let rows = unquoted(&mut answer[users]).ok_or_else(unknown)?;
        carries.users.each(view, rows, &names.of_user(), |row| records.user(row))?;
        Ok(records.made())
    }
}

impl Carried {
    /// Calls `make` for each record with what gives those of its fields that are `wanted`, by their
    /// place there.
    fn each<'r>(
        &self,
        view: &str,
        rows: &'r str,
        wanted: &[&str],
        mut make: impl FnMut(&mut dyn FnMut(usize) -> Option<Raw<'r>>) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        let place = |name: &&str| {
            let place = self.fields.iter().position(|it| it == name)?;
            let stored = if self.json.iter().any(|it| it == name) {
                Stored::Json
            } else if self.bool.iter().any(|it| it == name) {
                Stored::Bool
            } else {
                Stored::AsIs
            };
            Some((place, stored))
        };
        let places: Vec<Option<(usize, Stored)>> = wanted.iter().map(place).collect();
        let common = self.common.filter(|it| *it < self.fields.len());
        let mut failed = None;
        let each = |row: &mut Vec<&'r RawValue>| {
            if let Some(common) = common
                && let Some(rare) = row.get(common)
            {
                let rare: Option<Vec<&RawValue>> = serde_json::from_str(rare.get())?;
                let none = || vec![RawValue::NULL; self.fields.len() - common];
                row.splice(common.., rare.unwrap_or_else(none));
            }
            if failed.is_none() {
                let mut field = |at: usize| {
                    let (place, stored) = places[at]?;
                    let json = row.get(place)?.get();
                    Some(match (stored, json) {
                        (Stored::Json, _) => Raw::JsonInJson(json),
                        (Stored::Bool, "0") => Raw::Value(false.into()),
                        (Stored::Bool, "1") => Raw::Value(true.into()),
                        (Stored::AsIs | Stored::Bool, _) => Raw::Json(json),
                    })
                };
                failed = make(&mut field).err();
            }
            Ok(())
        };
        match (Each { each }).deserialize(&mut serde_json::Deserializer::from_str(rows)) {
            Ok(()) => failed.map_or(Ok(()), Err),
            Err(_) => Err(SourceError::ViewUnknown { view: view.into() }),
        }
    }
}

/// What a JSON string says, in its own room. What is no string says what it is.
fn unquoted(json: &mut [u8]) -> Option<&str> {
    if json.first() != Some(&b'"') {
        return str::from_utf8(json).ok();
    }
    let (mut read, mut written, end) = (1, 0, json.len() - 1);
    while read < end {
        let plain = json[read..end].iter().position(|it| *it == b'\\').unwrap_or(end - read);
        json.copy_within(read..read + plain, written);
        (read, written) = (read + plain, written + plain);
        if read < end {
            let (it, length) = escaped(&json[read..end])?;
            // An escape is longer than what it stands for.
            written += it.encode_utf8(&mut json[written..]).len();
            read += length;
        }
    }
    str::from_utf8(&json[..written]).ok()
}

/// What the escape at the beginning stands for, and its length.
fn escaped(text: &[u8]) -> Option<(char, usize)> {
    let unit =
        |at: usize| u16::from_str_radix(str::from_utf8(text.get(at..at + 4)?).ok()?, 16).ok();
    let it = match text.get(1)? {
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        it @ (b'"' | b'\\' | b'/') => (*it).into(),
        b'u' => {
            let one = unit(2)?;
            if let Some(it) = char::from_u32(one.into()) {
                return Some((it, 6));
            }
            let other = text[6..].starts_with(b"\\u").then(|| unit(8))??;
            return Some((char::decode_utf16([one, other]).next()?.ok()?, 12));
        }
        _ => return None,
    };
    Some((it, 2))
}

/// Hands on one row after the other, so that a large collection is never there as JSON values.
struct Each<F> {
    each: F,
}

impl<'de, F: FnMut(&mut Vec<&'de RawValue>) -> serde_json::Result<()>> DeserializeSeed<'de>
    for Each<F>
{
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, F: FnMut(&mut Vec<&'de RawValue>) -> serde_json::Result<()>> Visitor<'de> for Each<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of arrays")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut rows: A) -> Result<(), A::Error> {
        let mut row = Vec::new();
        while rows.next_element_seed(Fill(&mut row))?.is_some() {
            (self.each)(&mut row).map_err(de::Error::custom)?;
        }
        Ok(())
    }
}

/// Reads one row, into the room of the one before.
struct Fill<'a, 'de>(&'a mut Vec<&'de RawValue>);

impl<'de> DeserializeSeed<'de> for Fill<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Fill<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<(), A::Error> {
        self.0.clear();
        while let Some(value) = values.next_element()? {
            self.0.push(value);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_is_read_in_its_own_room_as_any_reader_reads_it() {
        for json in [
            r#""""#,
            r#""plain""#,
            r#""[[\"a\",\"b\\\\c\"]]""#,
            r#""\b\f\n\r\t\/\\\"""#,
            r#""\u003c\u00e9\u20ac\ud83d\ude00é€😀""#,
            r#""\u0000""#,
            r#""\\u0041""#,
        ] {
            let wanted: String = serde_json::from_str(json).unwrap();
            assert_eq!(unquoted(&mut json.as_bytes().to_vec()), Some(&*wanted), "{json}");
        }
        for json in [r#""\ud83d""#, r#""\ud83d\u0041""#, r#""\ude00\ud83d""#, r#""\ud83dx""#] {
            assert!(serde_json::from_str::<String>(json).is_err(), "{json}");
            assert_eq!(unquoted(&mut json.as_bytes().to_vec()), None, "{json}");
        }
        assert_eq!(unquoted(&mut b"[[1]]".to_vec()), Some("[[1]]"));
    }
}
