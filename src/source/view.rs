//! The export view: a view collection of one row that carries both collections, so that one
//! request reads them as of one moment. It is made and read here.
//!
//! The row has the id [`VIEW_ID`] and three columns:
//!
//! ```json
//! {
//!   "carries": {
//!     "format": 1, "made": "CREATE VIEW `nats_export` AS …",
//!     "users": {
//!       "collection": "nats_users", "columns": ["active", "id", …], "common": 5,
//!       "fields": ["id", "username", "password", "role_id", "active", "nkey", "publish_permissions"],
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
//! records have nothing in any of them, and `null` for it. The two are text, and not what PocketBase
//! takes for JSON, as that it looks through again and again: of all ways to have it make them, this
//! one takes it the least time.
//!
//! `made` and `columns` are what the database itself says at that moment. Whoever renames a collection
//! or a field takes the view along, and nobody is told of it, nor of a field that is added; so each
//! reading looks whether what is read is still what the settings name, and all of it.

use std::{
    fmt::{self, Write as _},
    ops::Range,
    sync::Mutex,
    thread,
};

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{
    SourceError,
    record::{Before, Field, Names, Raw, Records, Schema, Stored},
};
use crate::{auth::Snapshot, options::PocketBaseOptions};

/// The id of the only row of an export view.
pub const VIEW_ID: &str = "pb-nats";

const FORMAT: u32 = 1;

/// Fields beside those of the type `json` that most users have nothing in.
const RARE: [&str; 2] = ["nkey", "generated_hash"];

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
        "SELECT '{VIEW_ID}' AS id, json_object('format', {FORMAT}, 'made', (SELECT sql FROM \
         sqlite_schema WHERE type = 'view' AND name = '{}'), 'users', {}, 'roles', {}) \
         AS carries, {} AS users, {} AS roles",
        options.export_view.replace('\'', "''"),
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
    let export = serde_json::from_str(row).map(|it| Export::new(it, row.as_bytes()));
    let export = export.map_err(unknown)?;
    export.snapshot(view, &Names::new(options), row.as_bytes().to_vec(), &Before::default())
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
            fields.into_iter().partition(|it| it.kind == "json" || RARE.contains(&&*it.name));
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
            "json_object('collection', '{}', 'columns', json((SELECT json_group_array(name) FROM \
             pragma_table_info('{}'))), 'fields', {}, 'common', {}, 'json', {}, 'bool', {})",
            self.collection,
            self.collection,
            names(|_| true),
            self.common,
            names(|it| matches!(it, Stored::Json)),
            names(|it| matches!(it, Stored::Bool)),
        )
    }

    fn rows(&self) -> String {
        let list = |fields: &[&Field], value: fn(&Field) -> String| {
            fields.iter().map(|it| value(it)).collect::<Vec<_>>().join(", ")
        };
        // JSON that says nothing is `NULL` already.
        let something = |it: &Field| match it.kind.as_str() {
            "json" => column(it),
            _ => format!("nullif({}, '')", column(it)),
        };
        let (common, rare) = self.fields.split_at(self.common);
        let mut values = list(common, column);
        if !rare.is_empty() {
            let _ = write!(
                values,
                ", CASE WHEN coalesce({}, NULL) IS NOT NULL THEN json_array({}) END",
                list(rare, something),
                list(rare, column)
            );
        }
        format!(
            "CAST((SELECT json_group_array(json_array({values})) FROM \"{}\" t) AS TEXT)",
            self.collection
        )
    }
}

/// A field of the table `t` in the query.
fn column(field: &Field) -> String {
    format!("t.\"{}\"", field.name)
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
    /// The view as the database has it. Views of former versions do not say.
    made: Option<String>,
    users: Carried,
    roles: Carried,
}

#[derive(Deserialize)]
struct Carried {
    collection: String,
    /// All columns of that collection, by names only. Empty: there is none of that name.
    #[serde(default)]
    columns: Vec<String>,
    fields: Vec<String>,
    /// Those behind so many are in an array of their own, or `null` where there is nothing in any.
    common: Option<usize>,
    #[serde(default)]
    json: Vec<String>,
    #[serde(default)]
    bool: Vec<String>,
}

impl Row<'_> {
    /// Refuses the view if it reads something else than it was made for, or not all that is known to us.
    /// `false`: it does not tell, and other questions have to be asked.
    pub(super) fn compare_itself(
        &mut self,
        view: &str,
        names: &Names,
    ) -> Result<bool, SourceError> {
        let Carries { made, users, roles, .. } = &mut self.carries;
        let reads = made.as_deref().map(reads).unwrap_or_default();
        let Ok([of_users, of_roles]) = <[Read; 2]>::try_from(reads) else { return Ok(false) };
        users.follow(view, &of_users, &names.users, &names.of_user(), |it| names.missing(it))?;
        let missing = |it: &str| Names::missing_of_role(&names.roles, it);
        roles.follow(view, &of_roles, &names.roles, &Names::of_role(), missing)?;
        let [(users, of_users), (roles, of_roles)] =
            [&*users, &*roles].map(|it| (it, Schema::of_columns(&it.collection, &it.columns)));
        // A name that it was not made for has no columns there.
        if users.columns.is_empty() || roles.columns.is_empty() {
            return Ok(false);
        }
        names.user_fields(&of_users)?;
        Names::role_fields(&of_roles)?;
        users.lacks_nothing(view, &names.known_user_fields(&of_users))?;
        roles.lacks_nothing(view, &Names::known_role_fields(&of_roles))?;
        Ok(true)
    }

    /// Refuses the view if the collections have fields, known to us, that it lacks.
    pub(super) fn compare(
        &self,
        view: &str,
        users: &[&Field],
        roles: &[&Field],
    ) -> Result<(), SourceError> {
        self.carries.users.lacks_nothing(view, users)?;
        self.carries.roles.lacks_nothing(view, roles)
    }
}

/// A collection that a view reads, by the names of now: its own, and those of the fields in their order.
type Read = (String, Vec<String>);

/// What a view that is made as ours are reads.
fn reads(made: &str) -> Vec<Read> {
    let (mut reads, mut fields) = (Vec::new(), Vec::new());
    let mut rest = made;
    // The names stand in quotes, and hold none.
    while let Some(at) = rest.find('"') {
        let (before, quoted) = (&rest[..at], &rest[at + 1..]);
        let Some((name, behind)) = quoted.split_once('"') else { break };
        rest = behind;
        if before.ends_with("t.") {
            if !fields.iter().any(|it| it == name) {
                fields.push(name.to_owned());
            }
        } else if before.ends_with("FROM ") {
            reads.push((name.to_owned(), std::mem::take(&mut fields)));
        }
    }
    reads
}

impl Export {
    /// A row that was read from this answer.
    pub(super) fn new(row: Row<'_>, answer: &[u8]) -> Export {
        let place = |raw: &RawValue| {
            let start = raw.get().as_ptr() as usize - answer.as_ptr() as usize;
            start..start + raw.get().len()
        };
        Export { users: place(row.users), roles: place(row.roles), carries: row.carries }
    }

    /// Everything that the row of the view named `view` says. The answer is used up, as it may be
    /// large. What was read before is shared.
    pub(super) fn snapshot(
        self,
        view: &str,
        names: &Names,
        mut answer: Vec<u8>,
        before: &Before,
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
        let none = Before::default();
        let mut records = Records::new(names, &none);
        let rows = Rows::within(&mut answer[roles]).and_then(Rows::text).ok_or_else(unknown)?;
        carries.roles.each(view, rows, &Names::of_role(), |row| records.role(row))?;
        let roles = records.made().roles;

        let read = |rows: &str| {
            let mut records = Records::new(names, before);
            carries.users.each(view, rows, &names.of_user(), |row| records.user(row))?;
            Ok(records.made().users)
        };
        let rows = Rows::within(&mut answer[users]).ok_or_else(unknown)?;
        let (rows, other) = rows.halves();
        let Some(other) = other else {
            let rows = rows.text().ok_or_else(unknown)?;
            return Ok(Snapshot { users: read(rows)?, roles });
        };
        let other = Mutex::new(Some(other));
        let other = || other.lock().ok()?.take()?.read(read);
        let (one, other) = thread::scope(|scope| {
            let there = thread::Builder::new().spawn_scoped(scope, other);
            let one = rows.read(read);
            // If there can be no thread, it is done in this one.
            (one, there.map_or_else(|_| other(), |it| it.join().expect("nothing in there panics")))
        });
        let ((one, first), (other, second)) = one.zip(other).ok_or_else(unknown)?;
        let (Ok(mut users), Ok(more)) = (first, second) else {
            // Together they may be whole rows; and if not, it shows what is wrong.
            let users = read(&format!("{one},{other}"))?;
            return Ok(Snapshot { users, roles });
        };
        drop(answer);
        users.extend(more);
        Ok(Snapshot { users, roles })
    }
}

/// Rows divided by commas, in JSON or in the text of a JSON string.
struct Rows<'a> {
    json: &'a mut [u8],
    quoted: bool,
}

impl<'a> Rows<'a> {
    /// Those of an array.
    fn within(json: &'a mut [u8]) -> Option<Rows<'a>> {
        let (json, quoted) = match json {
            [b'"', text @ .., b'"'] => (text, true),
            json => (json, false),
        };
        match json {
            [b'[', json @ .., b']'] => Some(Rows { json, quoted }),
            _ => None,
        }
    }

    /// If there are many, in two parts, to be read at the same time. Where they are divided may be in
    /// the middle of one, as a string may hold anything: then the first part is no whole rows.
    fn halves(self) -> (Rows<'a>, Option<Rows<'a>>) {
        const MANY: usize = 1 << 18;
        let Rows { json, quoted } = self;
        let middle = json.len() / 2;
        let between = json[middle..].windows(3).position(|it| it == b"],[");
        match between.filter(|_| json.len() > MANY) {
            None => (Rows { json, quoted }, None),
            Some(at) => {
                let (one, other) = json.split_at_mut(middle + at + 1);
                let other = Rows { json: &mut other[1..], quoted };
                (Rows { json: one, quoted }, Some(other))
            }
        }
    }

    /// What `read` makes of them, and their text.
    fn read<T>(self, read: impl FnOnce(&str) -> T) -> Option<(&'a str, T)> {
        let text = self.text()?;
        Some((text, read(text)))
    }

    /// In JSON.
    fn text(self) -> Option<&'a str> {
        if self.quoted { unescaped(self.json) } else { str::from_utf8(self.json).ok() }
    }
}

impl Carried {
    /// Takes the names of now for those that it was made with, where the settings have them. Where they
    /// have not, it is an error: people may mean something else by a name than what it stood for.
    fn follow(
        &mut self,
        view: &str,
        (collection, fields): &Read,
        wanted: &str,
        known: &[&str],
        missing: impl Fn(&str) -> SourceError,
    ) -> Result<(), SourceError> {
        if *collection != self.collection {
            if *collection == wanted {
                self.columns.clear();
            } else if self.columns.is_empty() && self.collection == wanted {
                let (collection, now) = (wanted.to_owned(), collection.clone());
                return Err(SourceError::Renamed { collection, now });
            } else {
                let (view, carried) = (view.into(), collection.clone());
                return Err(SourceError::ViewOfOther { view, carried, wanted: wanted.into() });
            }
            self.collection.clone_from(collection);
        }
        if fields.len() != self.fields.len() {
            return Err(SourceError::ViewUnknown { view: view.into() });
        }
        for (said, now) in self.fields.iter_mut().zip(fields) {
            if said == now {
                continue;
            }
            if known.contains(&&**said) {
                return Err(if self.columns.contains(said) {
                    let (collection, field) = (self.collection.clone(), said.clone());
                    SourceError::ViewLacks { view: view.into(), collection, field }
                } else {
                    missing(said).now_called(now)
                });
            }
            for names in [&mut self.json, &mut self.bool] {
                names.iter_mut().filter(|it| *it == said).for_each(|it| it.clone_from(now));
            }
            said.clone_from(now);
        }
        Ok(())
    }

    fn lacks_nothing(&self, view: &str, there: &[&Field]) -> Result<(), SourceError> {
        match there.iter().find(|it| !self.fields.contains(&it.name)) {
            Some(field) => Err(SourceError::ViewLacks {
                view: view.into(),
                collection: self.collection.clone(),
                field: field.name.clone(),
            }),
            None => Ok(()),
        }
    }

    /// Calls `make` for each of these rows with what gives those of its fields that are `wanted`, by
    /// their place there.
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
        let unknown = |_| SourceError::ViewUnknown { view: view.into() };
        let mut rows = Each { rest: rows, row: Vec::new() };
        while let Some(row) = rows.next().map_err(unknown)? {
            if let Some(common) = self.common
                && let Some(rare) = row.get(common)
            {
                let rare: Option<Vec<&RawValue>> = match rare.get() {
                    "null" => None,
                    json => serde_json::from_str(json).map_err(unknown)?,
                };
                row.truncate(common);
                match rare {
                    Some(rare) => row.extend(rare),
                    None => row.resize(self.fields.len(), RawValue::NULL),
                }
            }
            // What it lacks would be nothing, denials included.
            if row.len() != self.fields.len() {
                return Err(unknown(de::Error::custom("not as many as there are fields")));
            }
            make(&mut |at| {
                let (place, stored) = places[at]?;
                let json = row.get(place)?.get();
                Some(match (stored, json) {
                    (Stored::Json, _) => Raw::JsonInJson(json),
                    (Stored::Bool, "0") => Raw::Value(false.into()),
                    (Stored::Bool, "1") => Raw::Value(true.into()),
                    (Stored::AsIs | Stored::Bool, _) => Raw::Json(json),
                })
            })?;
        }
        Ok(())
    }
}

/// What a JSON string, here without its quotes, says, in its own room.
fn unescaped(json: &mut [u8]) -> Option<&str> {
    let (mut read, mut written, end) = (0, 0, json.len());
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

/// One row after the other, so that a large collection is never there as JSON values.
struct Each<'r> {
    /// Those that come next, divided by commas.
    rest: &'r str,
    row: Vec<&'r RawValue>,
}

impl<'r> Each<'r> {
    fn next(&mut self) -> serde_json::Result<Option<&mut Vec<&'r RawValue>>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let mut json = serde_json::Deserializer::from_str(self.rest);
        Fill(&mut self.row).deserialize(&mut json)?;
        let length = json.into_iter::<IgnoredAny>().byte_offset();
        let rest = self.rest[length..].trim_start();
        self.rest = match rest.strip_prefix(',') {
            Some(more) if !more.is_empty() => more,
            None if rest.is_empty() => rest,
            Some(_) | None => return Err(de::Error::custom("not between rows")),
        };
        Ok(Some(&mut self.row))
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
    use serde_json::{Value, json};

    use super::*;
    use crate::auth::UserRecord;

    /// So many users, of whom some are as awkward as they can be, in a row of a view.
    fn export(users: usize, quoted: bool, last: &Value) -> String {
        let name = |n: usize| match n % 3 {
            0 => format!("user-{n}"),
            1 => format!("],[{n}"),
            _ => format!("\"],[\"],[\\{n}"),
        };
        let rows = (0..users).map(|n| json!([format!("id{n}"), name(n), "", "r", 1, null]));
        let rows: Value = rows.chain([last.clone()]).collect();
        let text = |rows: Value| if quoted { json!(rows.to_string()) } else { rows };
        let users = json!({
            "format": 1, "collection": "nats_users", "common": 5, "json": ["nkey"], "bool": ["active"],
            "fields": ["id", "username", "password", "role_id", "active", "nkey"],
        });
        let roles = json!({
            "collection": "nats_roles", "json": [],
            "fields": ["id", "name", "publish_permissions", "subscribe_permissions"],
        });
        let carries = json!({ "format": 1, "users": users, "roles": roles });
        json!({ "carries": carries, "users": text(rows), "roles": text(json!([])) }).to_string()
    }

    #[test]
    fn many_users_are_read_wherever_they_are_divided() {
        let options = PocketBaseOptions::default();
        let last = json!(["last", "zoe", "hash", "r", 0, ["nkey"]]);
        for quoted in [true, false] {
            // Where the middle is, there is now a row's end, and now a text that looks like one.
            for users in (6000..6012).chain([0, 1]) {
                let export = export(users, quoted, &last);
                let read = read_export(&export, &options).unwrap().users;
                let ids: Vec<_> = (0..users).map(|n| format!("id{n}")).collect();
                assert!(read.iter().map(|it| &it.id).eq(ids.iter().chain([&"last".into()])));
                assert!(read[..users].iter().all(|it| it.active && it.nkey.is_empty()));
                let UserRecord { username, active, nkey, .. } = &read[users];
                assert_eq!((&**username, *active, &**nkey), ("zoe", false, "nkey"));
                if users > 4 {
                    assert_eq!(&*read[users - users % 3 - 1].username, {
                        let n = users - users % 3 - 1;
                        format!("\"],[\"],[\\{n}")
                    });
                }
            }
            // What is wrong in either part is told.
            let wrong = export(6000, quoted, &json!(["last", "zoe", "hash", "r", "yes", null]));
            let error = read_export(&wrong, &options).unwrap_err();
            assert!(matches!(&error, SourceError::WrongType { record, .. } if record == "last"));
            for short in
                [json!(["last", "zoe", "", "r", 1]), json!(["last", "zoe", "", "r", 1, []])]
            {
                assert!(read_export(&export(2, quoted, &short), &options).is_err(), "{short}");
            }
            let whole = export(6000, quoted, &last);
            for torn in [whole.replace("zoe", "\"zoe"), whole.replace("\"last", "[\"last")] {
                assert!(read_export(&torn, &options).is_err());
            }
        }
    }

    #[test]
    fn a_string_is_read_in_its_own_room_as_any_reader_reads_it() {
        let inner = |json: &str| json.as_bytes()[1..json.len() - 1].to_vec();
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
            assert_eq!(unescaped(&mut inner(json)), Some(&*wanted), "{json}");
        }
        for json in [r#""\ud83d""#, r#""\ud83d\u0041""#, r#""\ude00\ud83d""#, r#""\ud83dx""#] {
            assert!(serde_json::from_str::<String>(json).is_err(), "{json}");
            assert_eq!(unescaped(&mut inner(json)), None, "{json}");
        }
    }
}
