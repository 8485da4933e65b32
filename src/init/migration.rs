//! The same changes as a PocketBase migration, for those who keep theirs in a repository.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::schema::{Change, SERVICE_COLLECTION, SERVICE_EMAIL};

const HEAD: &str = r#"/// <reference path="../pb_data/types.d.ts" />

// Made by `pb-nats init`. What is there already is left as it is.

migrate((app) => {
  const lacks = (name) => {
    try {
      app.findCollectionByNameOrId(name);
      return false;
    } catch {
      return true;
    }
  };
  const make = (spec) => {
    if (lacks(spec.name)) {
      app.save(new Collection(spec));
    }
  };
  const record = (collection, field, values) => {
    try {
      app.findFirstRecordByData(collection, field, values[field]);
      return;
    } catch {
      // There is none: it is made.
    }
    const made = new Record(app.findCollectionByNameOrId(collection), values);
    if (made.collection().isAuth()) {
      // Nobody is to log in with it.
      made.setPassword($security.randomString(50));
    }
    app.save(made);
  };
  const extend = (name, fields, indexes, listRule) => {
    const collection = app.findCollectionByNameOrId(name);
    for (const field of fields) {
      if (!collection.fields.getByName(field.name)) {
        collection.fields.add(new Field(field));
      }
    }
    collection.indexes = [...collection.indexes].concat(indexes);
    if (listRule !== null) {
      collection.listRule = listRule;
    }
    app.save(collection);
  };
"#;

/// The migration's text. Undone, it deletes what it made.
pub(super) fn migration(changes: &[Change]) -> String {
    let (mut up, mut down) = (HEAD.to_owned(), Vec::new());
    for change in changes {
        let (line, undo) = lines(change);
        let _ = write!(up, "\n  {}\n", line.replace('\n', "\n  "));
        down.extend(undo);
    }
    up += "}, (app) => {\n";
    for undo in down.iter().rev() {
        let _ = writeln!(up, "  {}", undo.replace('\n', "\n  "));
    }
    up + "});\n"
}

/// What makes a change, and what takes it back.
fn lines(change: &Change) -> (String, Option<String>) {
    match change {
        Change::Collection(collection) => (
            format!("make({collection:#});"),
            Some(format!("app.delete(app.findCollectionByNameOrId({}));", collection["name"])),
        ),
        Change::Extend { collection, fields, indexes, list_rule } => {
            let names: Vec<&Value> = fields.iter().map(|it| &it["name"]).collect();
            let rule = list_rule.as_ref().map_or("", |_| "\n  collection.listRule = null;");
            (
                format!(
                    "extend({}, {:#}, {:#}, {});",
                    json!(collection),
                    json!(fields),
                    json!(indexes),
                    json!(list_rule),
                ),
                Some(format!(
                    "{{\n  const collection = app.findCollectionByNameOrId({});\n  \
                     collection.indexes = collection.indexes.filter((it) => !{}.includes(it));\n  \
                     {}.forEach((name) => collection.fields.removeByName(name));{rule}\n  \
                     app.save(collection);\n}}",
                    json!(collection),
                    json!(indexes),
                    json!(names),
                )),
            )
        }
        Change::View { name, query } => (
            format!(
                "{{\n  const view = app.findCollectionByNameOrId({});\n  view.viewQuery = {};\n  \
                 app.save(view);\n}}",
                json!(name),
                json!(query),
            ),
            None,
        ),
        Change::Account => {
            let account = json!({ "email": SERVICE_EMAIL, "verified": true });
            (format!("record({}, \"email\", {account});", json!(SERVICE_COLLECTION)), None)
        }
        Change::Role { collection, record } => {
            (format!("record({}, \"name\", {record:#});", json!(collection)), None)
        }
    }
}
