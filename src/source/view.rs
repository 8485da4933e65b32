//! The export view: a view collection of one row that carries both collections, so that one
//! request reads them as of one moment. It is made and read here.
//!
//! The row has the id [`VIEW_ID`] and three JSON columns:
//!
//! ```json
//! {
//!   "carries": {
//!     "format": 1,
//!     "users": {"collection": "nats_users", "fields": ["id", "username", "password", "active"]},
//!     "roles": {"collection": "nats_roles", "fields": ["id", "name"]}
//!   },
//!   "users": [["u5k2…", "ann", "$2a$10$…", true]],
//!   "roles": [["r8d1…", "admin"]]
//! }
//! ```
//!
//! `carries` says what the arrays of the other two hold, in which order. Values look as in the
//! API, except that hidden and password-type fields are there too: an expression in a view is no
//! longer the field it reads.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, SeqAccess, Visitor},
};
use serde_json::{Value, value::RawValue};

use super::{
    SourceError,
    record::{Field, Names, Schema, Stored},
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
    let row: Row<'_> =
        serde_json::from_str(row).map_err(|_| SourceError::ViewUnknown { view: view.clone() })?;
    row.snapshot(view, &Names::new(options))
}

/// One collection in the query.
struct Carrier<'a> {
    collection: &'a str,
    fields: Vec<&'a Field>,
}

impl<'a> Carrier<'a> {
    fn new(schema: &'a Schema, fields: Vec<&'a Field>) -> Result<Carrier<'a>, SourceError> {
        // PocketBase has no other names, and these need no quoting anywhere.
        let plain = |name: &str| name.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'_');
        let mut names = fields.iter().map(|field| &field.name).chain([&schema.name]);
        match names.find(|name| !plain(name)) {
            Some(name) => Err(SourceError::Settings(format!(
                "`{name}` is not a name that PocketBase gives a collection or a field"
            ))),
            None => Ok(Carrier { collection: &schema.name, fields }),
        }
    }

    fn description(&self) -> String {
        let names: Vec<_> = self.fields.iter().map(|field| format!("'{}'", field.name)).collect();
        let names = names.join(", ");
        format!("json_object('collection', '{}', 'fields', json_array({names}))", self.collection)
    }

    fn rows(&self) -> String {
        let values: Vec<_> = self.fields.iter().map(|field| value(field)).collect();
        let values = values.join(", ");
        format!("(SELECT json_group_array(json_array({values})) FROM \"{}\" t)", self.collection)
    }
}

fn value(field: &Field) -> String {
    let column = format!("t.\"{}\"", field.name);
    match field.stored() {
        Stored::AsIs => column,
        Stored::Bool => format!("json(CASE WHEN {column} THEN 'true' ELSE 'false' END)"),
        Stored::Json => format!(
            "CASE WHEN json_valid({column}) THEN json({column}) ELSE nullif({column}, '') END"
        ),
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
}

impl Row<'_> {
    /// Everything that the row of the view named `view` says.
    pub(super) fn snapshot(&self, view: &str, names: &Names) -> Result<Snapshot, SourceError> {
        if self.carries.format != FORMAT {
            return Err(SourceError::ViewUnknown { view: view.into() });
        }
        for (carried, wanted) in
            [(&self.carries.users, &names.users), (&self.carries.roles, &names.roles)]
        {
            if carried.collection != *wanted {
                return Err(SourceError::ViewOfOther {
                    view: view.into(),
                    carried: carried.collection.clone(),
                    wanted: wanted.clone(),
                });
            }
        }
        let mut snapshot = Snapshot::default();
        self.carries.users.each(view, self.users, |field| {
            snapshot.users.push(names.user(field)?);
            Ok(())
        })?;
        self.carries.roles.each(view, self.roles, |field| {
            snapshot.roles.push(names.role(field)?);
            Ok(())
        })?;
        Ok(snapshot)
    }

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

impl Carried {
    /// Calls `make` for each record with what looks up its fields.
    fn each(
        &self,
        view: &str,
        rows: &RawValue,
        mut make: impl FnMut(&mut dyn FnMut(&str) -> Option<Value>) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        let mut failed = None;
        let each = |mut row: Vec<Value>| {
            let field = &mut |name: &str| {
                let position = self.fields.iter().position(|it| it == name)?;
                row.get_mut(position).map(Value::take)
            };
            if failed.is_none() {
                failed = make(field).err();
            }
        };
        match (Rows { each }).deserialize(&mut serde_json::Deserializer::from_str(rows.get())) {
            Ok(()) => failed.map_or(Ok(()), Err),
            Err(_) => Err(SourceError::ViewUnknown { view: view.into() }),
        }
    }
}

/// Hands on one row after the other, so that a large collection is never there as JSON values.
struct Rows<F> {
    each: F,
}

impl<'de, F: FnMut(Vec<Value>)> DeserializeSeed<'de> for Rows<F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, F: FnMut(Vec<Value>)> Visitor<'de> for Rows<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of arrays")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut rows: A) -> Result<(), A::Error> {
        while let Some(row) = rows.next_element()? {
            (self.each)(row);
        }
        Ok(())
    }
}
