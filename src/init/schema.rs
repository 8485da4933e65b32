//! What should be in PocketBase, and what of it is missing. Nothing is asked or changed here.

use serde_json::{Value, json};

use crate::{
    options::PocketBaseOptions,
    source::{
        ROLES_ID, STATUS_COLLECTION, Schema, SourceError, admits_any_account,
        no_input_for_passwords, view::export_view_query,
    },
    users::SHORTEST,
};

/// The auth collection of the service account.
pub const SERVICE_COLLECTION: &str = "nats_sync";
/// The email of the service account. Nothing can be sent to it.
pub const SERVICE_EMAIL: &str = "pb-nats@nats-sync.invalid";
/// Whom the rules admit that are made here.
const RULE: &str = "@request.auth.collectionName = 'nats_sync'";
/// More roles than anybody has, so that a user may have several.
const MOST_ROLES: u32 = 100;

/// The field that every auth collection has.
const EMAIL: &str = "email";

const LISTS: [&str; 4] = [
    "publish_permissions",
    "subscribe_permissions",
    "publish_deny_permissions",
    "subscribe_deny_permissions",
];

/// One thing to be done in PocketBase.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A collection to be made.
    Collection(Value),
    /// What a collection that is there lacks.
    Extend {
        /// The collection.
        collection: String,
        /// The fields that it lacks.
        fields: Vec<Value>,
        /// The indexes that it lacks.
        indexes: Vec<String>,
        /// The list rule, if it has none.
        list_rule: Option<String>,
    },
    /// An export view of ours that is to carry something else.
    View {
        /// The view.
        name: String,
        /// Its new query.
        query: String,
    },
    /// The service account.
    Account,
    /// A role to begin with.
    Role {
        /// The collection of roles.
        collection: String,
        /// The record.
        record: Value,
    },
}

/// What is in PocketBase, as far as it matters here. `None`: it is not there.
#[derive(Clone, Debug, Default)]
pub(super) struct There {
    /// Every collection.
    pub(super) all: Vec<Value>,
    pub(super) users: Option<Value>,
    pub(super) roles: Option<Value>,
    pub(super) service: Option<Value>,
    pub(super) view: Option<Value>,
    pub(super) status: Option<Value>,
    pub(super) account: bool,
    /// The names of the roles, and whether there are any users.
    pub(super) role_names: Vec<String>,
    pub(super) any_user: bool,
}

/// What is missing, in the order in which it can be made, and what someone should know.
pub(super) fn missing(
    options: &PocketBaseOptions,
    there: &There,
) -> Result<(Vec<Change>, Vec<String>), SourceError> {
    let mut changes = Vec::new();
    let mut notes = Vec::new();

    if let Some(service) = &there.service {
        notes.extend(open_rules(service, "may become one whom `nats_export` is shown to"));
    } else {
        changes.push(Change::Collection(service_collection()));
    }
    if !there.account {
        changes.push(Change::Account);
    }

    let roles = match &there.roles {
        None => {
            let roles = roles_collection(&options.role_collection);
            changes.push(Change::Collection(roles.clone()));
            roles
        }
        Some(roles) => {
            notes.extend(open_rules(roles, "decides what NATS allows"));
            let extended = extend(roles, needed_role_fields(), &[], &mut changes);
            notes.extend(deaf(&extended));
            extended
        }
    };
    let users = match &there.users {
        None => {
            let users = users_collection(options, &roles);
            changes.push(Change::Collection(users.clone()));
            notes.extend(untypable(options, &users));
            users
        }
        Some(users) => {
            let fields = needed_user_fields(options, users, &roles);
            let extended = extend(users, fields, &[&options.username_field], &mut changes);
            notes.extend(in_reach(options, users));
            notes.extend(untypable(options, users));
            notes.extend(deaf(&extended));
            extended
        }
    };

    if !options.export_view.is_empty() {
        let query = export_view_query(options, &schema(&users)?, &schema(&roles)?)?;
        changes.extend(view(options, there, query)?);
    }
    if options.write_status {
        changes.extend(there.status.is_none().then(|| Change::Collection(status_collection())));
    }
    changes.extend(starter_roles(options, there, &users));
    notes.extend(admitting(options, &there.all));
    Ok((changes, notes))
}

/// The export view, unless it is there as it should be.
fn view(
    options: &PocketBaseOptions,
    there: &There,
    query: String,
) -> Result<Option<Change>, SourceError> {
    let name = &options.export_view;
    let Some(view) = &there.view else {
        return Ok(Some(Change::Collection(json!({
            "name": name, "type": "view", "viewQuery": query, "listRule": RULE,
        }))));
    };
    let found = view["viewQuery"].as_str().unwrap_or_default();
    // Whatever else it may be, the view of another is not ours to change.
    if !found.contains("AS carries") {
        return Err(SourceError::ViewUnknown { view: name.clone() });
    }
    let differs = found.split_whitespace().ne(query.split_whitespace());
    Ok(differs.then(|| Change::View { name: name.clone(), query }))
}

/// The service account can do nothing but be admitted by rules, and nobody can log in as it.
fn service_collection() -> Value {
    without_log_in(json!({ "name": SERVICE_COLLECTION }))
}

/// The same as an auth collection in which no way of logging in to PocketBase is on.
fn without_log_in(mut collection: Value) -> Value {
    let off = json!({ "enabled": false });
    collection["type"] = "auth".into();
    collection["passwordAuth"] = json!({ "enabled": false, "identityFields": ["email"] });
    for way in ["oauth2", "otp", "mfa", "authAlert"] {
        collection[way] = off.clone();
    }
    collection
}

/// What pb-nats writes, and people read in the dashboard.
fn status_collection() -> Value {
    let text = |name: &str| json!({ "name": name, "type": "text" });
    json!({
        "name": STATUS_COLLECTION, "type": "base",
        "listRule": RULE, "viewRule": RULE,
        "createRule": RULE, "updateRule": RULE, "deleteRule": RULE,
        "fields": [
            text("name"),
            { "name": "in_force", "type": "bool" },
            { "name": "state", "type": "text", "required": true },
            { "name": "since", "type": "date" },
            text("reason"), text("mend"), text("collection"), text("record"),
        ],
    })
}

fn roles_collection(name: &str) -> Value {
    let mut fields = vec![json!({ "name": "name", "type": "text", "required": true })];
    fields.extend(LISTS.map(list));
    fields.push(json!({ "name": "allow_response", "type": "bool" }));
    fields
        .push(json!({ "name": "allow_response_max", "type": "number", "min": 0, "onlyInt": true }));
    fields.push(json!({ "name": "allow_response_ttl", "type": "number", "min": 0 }));
    fields.extend(dates());
    json!({
        "id": ROLES_ID, "name": name, "type": "base", "listRule": RULE, "fields": fields,
        "indexes": [unique(name, "name", "")],
    })
}

/// NATS's own users, as an auth collection in which nobody can log in to PocketBase: in newer
/// dashboards only there a password can be typed.
fn users_collection(options: &PocketBaseOptions, roles: &Value) -> Value {
    let name = &options.user_collection;
    // There PocketBase has set the name of that field.
    let is_auth = options.password_field == "password";
    let by_email = is_auth && options.username_field == EMAIL;
    let mut fields = Vec::new();
    if !by_email {
        fields.push(json!({ "name": options.username_field, "type": "text", "required": true }));
    }
    fields.extend([
        json!({
            "name": options.password_field, "type": "password",
            "min": SHORTEST, "required": is_auth,
        }),
        // A user without a role has the default permissions. So that the end of a role gives nobody
        // more, PocketBase is to refuse it as long as somebody has no other.
        relation(options, roles, true),
        json!({ "name": options.active_field, "type": "bool" }),
        json!({ "name": "nkey", "type": "text" }),
    ]);
    fields.extend(LISTS.map(list));
    fields.push(list("allowed_connection_types"));
    fields.push(json!({ "name": "generated_hash", "type": "text", "hidden": true }));
    if is_auth {
        // It has to be there. Unless it is told otherwise, PocketBase wants one of everybody.
        fields.push(json!({ "name": EMAIL, "type": "email", "required": by_email }));
    }
    fields.extend(dates());
    let collection = json!({
        "name": name, "type": "base", "listRule": RULE, "fields": fields,
        "indexes": [
            unique(name, &options.username_field, ""),
            unique(name, "nkey", " WHERE `nkey` != ''"),
        ],
    });
    if !is_auth {
        return collection;
    }
    let mut collection = without_log_in(collection);
    // This closes the ways that somebody may switch on later, too.
    collection["authRule"] = Value::Null;
    collection
}

fn needed_role_fields() -> Vec<Value> {
    vec![json!({ "name": "name", "type": "text" }), list(LISTS[0]), list(LISTS[1])]
}

/// Who may sign up, or change their own record, cannot set a hidden field.
fn needed_user_fields(options: &PocketBaseOptions, users: &Value, roles: &Value) -> Vec<Value> {
    let mut fields = vec![
        json!({ "name": options.password_field, "type": "password", "hidden": true }),
        // Others make these records too, and could not without knowing of a role.
        relation(options, roles, false),
        json!({ "name": options.active_field, "type": "bool", "hidden": true }),
    ];
    // An auth collection has its emails.
    if users["type"] != "auth" {
        fields.push(json!({ "name": options.username_field, "type": "text", "hidden": true }));
    }
    fields
}

fn relation(options: &PocketBaseOptions, roles: &Value, required: bool) -> Value {
    let id = roles["id"].as_str().unwrap_or(ROLES_ID);
    json!({
        "name": options.role_field, "type": "relation", "collectionId": id,
        "maxSelect": MOST_ROLES, "cascadeDelete": false,
        "required": required, "hidden": !required,
    })
}

fn list(name: &str) -> Value {
    json!({ "name": name, "type": "json" })
}

fn dates() -> [Value; 2] {
    [
        json!({ "name": "created", "type": "autodate", "onCreate": true }),
        json!({ "name": "updated", "type": "autodate", "onCreate": true, "onUpdate": true }),
    ]
}

fn unique(collection: &str, field: &str, only: &str) -> String {
    format!("CREATE UNIQUE INDEX `idx_{collection}_{field}` ON `{collection}` (`{field}`){only}")
}

/// The collection with what it lacks, which is added to `changes`.
fn extend(
    collection: &Value,
    needed: Vec<Value>,
    unique_fields: &[&str],
    changes: &mut Vec<Change>,
) -> Value {
    let name = collection["name"].as_str().unwrap_or_default();
    let fields: Vec<_> =
        needed.into_iter().filter(|it| field(collection, &it["name"]).is_none()).collect();
    let has = |wanted: &str| {
        field(collection, &wanted.into()).is_some() || fields.iter().any(|it| it["name"] == wanted)
    };
    let indexes = unique_fields
        .iter()
        .filter(|it| has(it) && !is_unique(collection, it))
        .map(|it| unique(name, it, ""))
        .collect::<Vec<_>>();
    let list_rule = collection["listRule"].is_null().then(|| RULE.to_owned());
    let mut extended = collection.clone();
    if let Some(all) = extended["fields"].as_array_mut() {
        all.extend(fields.iter().cloned());
    }
    if let Some(rule) = &list_rule {
        extended["listRule"] = rule.as_str().into();
    }
    if !fields.is_empty() || !indexes.is_empty() || list_rule.is_some() {
        let collection = name.to_owned();
        changes.push(Change::Extend { collection, fields, indexes, list_rule });
    }
    extended
}

/// The few roles that show what roles are for; not where somebody has begun already.
fn starter_roles(options: &PocketBaseOptions, there: &There, users: &Value) -> Vec<Change> {
    // An email in a subject would be several tokens of it.
    let by_email = options.username_field == EMAIL
        || field(users, &options.username_field.as_str().into()).is_none();
    let [own, inbox] = if by_email {
        ["devices.{{id}}.>", "_INBOX_{{id}}.>"]
    } else {
        ["devices.{{username}}.>", "_INBOX_{{username}}.>"]
    };
    let roles = [
        json!({
            "name": "service",
            "publish_permissions": ["devices.>", "services.>"],
            "subscribe_permissions": ["devices.>", "services.>", inbox],
            "allow_response": true,
        }),
        json!({
            "name": "device",
            "publish_permissions": [own],
            "subscribe_permissions": [own, inbox],
        }),
        json!({
            "name": "observer",
            "publish_permissions": [],
            "subscribe_permissions": ["devices.>", "services.>"],
        }),
    ];
    let named = |it: &Value, name: &String| it["name"] == name.as_str();
    let begun = there.any_user
        || there.role_names.iter().any(|name| !roles.iter().any(|it| named(it, name)))
        || there.role_names.len() == roles.len();
    let optional =
        there.roles.as_ref().is_none_or(|it| field(it, &"allow_response".into()).is_some());
    if begun || !optional {
        return Vec::new();
    }
    let missing =
        roles.into_iter().filter(|it| !there.role_names.iter().any(|name| named(it, name)));
    let collection = options.role_collection.clone();
    missing.map(|record| Change::Role { collection: collection.clone(), record }).collect()
}

/// Whether changes of the collection are told to the service account. If not, why not.
fn deaf(collection: &Value) -> Option<String> {
    let rule = collection["listRule"].as_str().unwrap_or_default();
    (!rule.contains(RULE) && !rule.is_empty()).then(|| {
        format!(
            "the list rule of `{}` does not admit `{SERVICE_COLLECTION}`, so its changes are seen at \
             each `resync_interval` only; to have them at once, make the rule\n  ({rule}) || {RULE}",
            collection["name"].as_str().unwrap_or_default(),
        )
    })
}

/// Whether both collections tell their changes to the service account.
pub(super) fn is_told(there: &There) -> bool {
    [&there.users, &there.roles].into_iter().flatten().all(|it| deaf(it).is_none())
}

/// Collections of others that the service account gets to, like any account.
fn admitting(options: &PocketBaseOptions, all: &[Value]) -> Option<String> {
    let PocketBaseOptions { user_collection, role_collection, export_view, .. } = options;
    let ours = [user_collection, role_collection, export_view, SERVICE_COLLECTION];
    let rules = ["listRule", "viewRule", "createRule", "updateRule", "deleteRule"];
    let admits =
        |it: &&Value| rules.iter().any(|rule| it[*rule].as_str().is_some_and(admits_any_account));
    let names = all.iter().filter(admits).filter_map(|it| it["name"].as_str());
    let names: Vec<_> = names.filter(|it| !ours.contains(it)).map(|it| format!("`{it}`")).collect();
    (!names.is_empty()).then(|| {
        format!(
            "rules of {} admit whoever has any account, and so pb-nats's own, whose token is in a \
             file; add to each of these rules\n  && @request.auth.collectionName != \
             '{SERVICE_COLLECTION}'",
            names.join(", "),
        )
    })
}

/// A rule by which others than superusers may write.
fn open_rules(collection: &Value, who: &str) -> Option<String> {
    let rules = ["createRule", "updateRule", "deleteRule"];
    let open = rules.into_iter().filter(|it| collection[*it].is_string()).collect::<Vec<_>>();
    (!open.is_empty()).then(|| {
        let name = collection["name"].as_str().unwrap_or_default();
        format!("whom {} of `{name}` admits {who}: should that be anybody?", open.join(", "))
    })
}

/// Fields in an existing collection that others than superusers may set, and that grant rights.
fn in_reach(options: &PocketBaseOptions, users: &Value) -> Option<String> {
    let rules = ["createRule", "updateRule", "manageRule"];
    if !rules.into_iter().any(|it| users[it].is_string()) {
        return None;
    }
    let mut granting = vec![&*options.role_field, &*options.active_field];
    granting.extend(LISTS);
    let shown = granting
        .into_iter()
        .filter(|name| field(users, &(*name).into()).is_some_and(|it| it["hidden"] != true));
    let shown = shown.collect::<Vec<_>>();
    (!shown.is_empty()).then(|| {
        format!(
            "whoever may write a record of `{}` by its rules can set {} and so decides what NATS \
             allows them; hide these fields in PocketBase, and only superusers can",
            users["name"].as_str().unwrap_or_default(),
            shown.join(", "),
        )
    })
}

/// Passwords that newer dashboards have no input for.
fn untypable(options: &PocketBaseOptions, users: &Value) -> Option<String> {
    let field = field(users, &options.password_field.as_str().into())?;
    (users["type"] == "base" && field["type"] == "password").then(|| {
        let [text, hint] = no_input_for_passwords(&options.user_collection);
        format!("{text}; {hint}")
    })
}

fn field<'a>(collection: &'a Value, name: &Value) -> Option<&'a Value> {
    collection["fields"].as_array()?.iter().find(|it| it["name"] == *name)
}

/// Whether an index lets no two records have the same in this field.
fn is_unique(collection: &Value, field: &str) -> bool {
    let indexes = collection["indexes"].as_array().into_iter().flatten();
    indexes.filter_map(Value::as_str).any(|it| {
        let columns = it.split_once('(').and_then(|(_, rest)| rest.split_once(')'));
        let column = columns.map(|(columns, _)| columns.trim_matches([' ', '`', '"', '[', ']']));
        it.to_ascii_uppercase().contains("UNIQUE INDEX") && column == Some(field)
    })
}

/// The collection as the export view's query wants it. PocketBase itself adds the id.
fn schema(collection: &Value) -> Result<Schema, SourceError> {
    let mut collection = collection.clone();
    if let Some(fields) = collection["fields"].as_array_mut()
        && !fields.iter().any(|it| it["name"] == "id")
    {
        fields.insert(0, json!({ "name": "id", "type": "text" }));
    }
    serde_json::from_value(collection).map_err(|_| SourceError::NotPocketBase {
        request: "GET /api/collections".into(),
        answer: "JSON of another kind".into(),
    })
}
