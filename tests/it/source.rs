//! What is in PocketBase, as we read it.

use std::{
    collections::{HashMap, HashSet},
    io::Write as _,
    net::TcpListener,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use pb_nats::{
    auth::Snapshot,
    options::{PocketBaseOptions, Secret},
    source::{
        Login, PocketBase, Schema, Source as _, SourceError, Superuser, view::export_view_query,
    },
};
use serde_json::{Value, json};
use tokio::{
    runtime::{Builder, Runtime},
    time,
};

use crate::{
    middlebox::{Fate, Middlebox, read_request},
    support::{Optional, Pb, SOON, SUPERUSER, Users, bcrypt, free_address, poll, write},
};

/// The oldest and the newest we promise to work with.
const VERSIONS: [Option<&str>; 2] = [Some("0.23.12"), None];

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap());

/// A service account, whose password and token are these.
struct Service {
    id: String,
    token: String,
}

const SERVICE: &str = "sync@example.com";
const PASSWORD: &str = "service-password";
/// Only the service account sees anything.
const RULE: &str = "@request.auth.collectionName = 'nats_sync'";

fn started(version: Option<&str>, users: Users, optional: Optional) -> Pb {
    let mut pb = Pb::empty(version);
    pb.create_collections(users, optional);
    pb
}

fn over_http(pb: &Pb) -> PocketBaseOptions {
    PocketBaseOptions {
        url: Some(pb.url()),
        token: Some(Secret::new(pb.token())),
        ..Default::default()
    }
}

fn through(middlebox: &Middlebox, pb: &Pb) -> PocketBaseOptions {
    PocketBaseOptions { url: Some(middlebox.url()), ..over_http(pb) }
}

fn from_file(pb: &Pb) -> PocketBaseOptions {
    PocketBaseOptions { data_dir: Some(pb.data_dir()), ..Default::default() }
}

fn open(options: &PocketBaseOptions) -> PocketBase {
    PocketBase::open(options).unwrap()
}

/// What it says, in the order of ids: each way of reading has its own.
fn read(source: &mut PocketBase) -> Result<Snapshot, SourceError> {
    let mut result = RUNTIME.block_on(source.snapshot());
    match &mut result {
        Ok(Snapshot { users, roles }) => {
            users.sort_by(|one, other| one.id.cmp(&other.id));
            roles.sort_by(|one, other| one.id.cmp(&other.id));
        }
        Err(error) => check_words(error),
    }
    result
}

fn snapshot(options: &PocketBaseOptions) -> Snapshot {
    read(&mut open(options)).unwrap()
}

fn error(options: &PocketBaseOptions) -> SourceError {
    read(&mut open(options)).unwrap_err()
}

/// Every error can be printed as it is: one line, nothing secret, and a hint.
fn check_words(error: &SourceError) {
    let words = format!("{error} {error:?} {:?}", error.hint());
    for secret in [SUPERUSER.1, PASSWORD, "eyJ"] {
        assert!(!words.contains(secret), "{words}");
    }
    let line = error.to_string();
    assert!(!line.contains('\n') && line.len() < 400 && !line.ends_with('.'), "{line}");
    assert!(error.hint().is_some(), "{line}");
}

fn hinted(source: &mut PocketBase) -> bool {
    hinted_within(SOON, source)
}

fn hinted_within(patience: Duration, source: &mut PocketBase) -> bool {
    RUNTIME.block_on(async { time::timeout(patience, source.changed()).await.is_ok() })
}

/// Waits until there is nothing new: what was before is no reason for the next hint.
fn settled(source: &mut PocketBase) {
    assert!(hinted(source), "the connection itself is a hint");
    while hinted_within(Duration::from_millis(300), source) {}
}

fn schema(pb: &Pb, collection: &str) -> Schema {
    let path = format!("/api/collections/{collection}");
    serde_json::from_value(pb.ask("GET", &path, &Value::Null)).unwrap()
}

fn make_view(pb: &Pb) {
    let options = PocketBaseOptions::default();
    let (users, roles) = (schema(pb, "nats_users"), schema(pb, "nats_roles"));
    let query = export_view_query(&options, &users, &roles).unwrap();
    let view = json!({ "name": "nats_export", "type": "view", "viewQuery": query });
    pb.ask("POST", "/api/collections", &view);
}

/// As versions made it that had it say nothing of itself.
fn make_former_view(pb: &Pb) {
    let options = PocketBaseOptions::default();
    let (users, roles) = (schema(pb, "nats_users"), schema(pb, "nats_roles"));
    let mut query = export_view_query(&options, &users, &roles).unwrap();
    for (start, end) in
        [("'made', ", "'users'"), ("'columns', ", "'fields'"), ("'columns', ", "'fields'")]
    {
        let from = query.find(start).unwrap();
        let to = from + query[from..].find(end).unwrap();
        query.replace_range(from..to, "");
    }
    let view = json!({ "name": "nats_export", "type": "view", "viewQuery": query });
    pb.ask("POST", "/api/collections", &view);
}

fn remove_view(pb: &Pb) {
    pb.ask("DELETE", "/api/collections/nats_export", &Value::Null);
}

fn change_collection(pb: &Pb, name: &str, changes: &Value) {
    pb.ask("PATCH", &format!("/api/collections/{name}"), changes);
}

fn add_field(pb: &Pb, collection: &str, field: Value) {
    change_fields(pb, collection, |fields| fields.push(field));
}

fn remove_field(pb: &Pb, collection: &str, name: &str) {
    change_fields(pb, collection, |fields| fields.retain(|it| it["name"] != name));
}

fn change_fields(pb: &Pb, collection: &str, change: impl FnOnce(&mut Vec<Value>)) {
    let path = format!("/api/collections/{collection}");
    let mut fields = pb.ask("GET", &path, &Value::Null)["fields"].take();
    change(fields.as_array_mut().unwrap());
    change_collection(pb, collection, &json!({ "fields": fields }));
}

/// Makes a service account and lets it, and nobody else, see these collections.
fn service(pb: &Pb, collections: &[&str]) -> Service {
    pb.ask("POST", "/api/collections", &json!({ "name": "nats_sync", "type": "auth" }));
    let id = pb.create(
        "nats_sync",
        &json!({ "email": SERVICE, "password": PASSWORD, "passwordConfirm": PASSWORD }),
    );
    for name in collections {
        change_collection(pb, name, &json!({ "listRule": RULE }));
    }
    let token = pb.log_in("nats_sync", SERVICE, PASSWORD).unwrap();
    Service { id, token }
}

impl Service {
    /// The account gets the same password again, which ends its tokens.
    fn end_tokens(&self, pb: &Pb) {
        let again = json!({ "password": PASSWORD, "passwordConfirm": PASSWORD });
        pb.update("nats_sync", &self.id, &again);
    }

    /// A token that lasts.
    fn impersonate(&self, pb: &Pb) -> String {
        let path = format!("/api/collections/nats_sync/impersonate/{}", self.id);
        pb.ask("POST", &path, &json!({ "duration": 3600 }))["token"].as_str().unwrap().into()
    }

    fn by_token(&self, pb: &Pb) -> PocketBaseOptions {
        PocketBaseOptions { token: Some(Secret::new(&*self.token)), ..over_http(pb) }
    }

    fn by_password(url: String) -> PocketBaseOptions {
        PocketBaseOptions {
            url: Some(url),
            identity: Some(SERVICE.into()),
            password: Some(Secret::new(PASSWORD)),
            auth_collection: "nats_sync".into(),
            ..Default::default()
        }
    }
}

/// JSON of every kind, as it may be in a JSON field.
fn all_sorts() -> Vec<Value> {
    vec![
        json!(["a.b", "c.>"]),
        json!([]),
        json!(null),
        json!("x"),
        json!(""),
        json!("[\"text\", \"that\", \"is\", \"JSON\"]"),
        json!("\"[1]\""),
        json!({ "z": 1, "a": { "b": [null, true, "é\u{2028}\"<&>"] } }),
        json!(7),
        json!(-2.5),
        json!(9_007_199_254_740_991_u64),
        json!(false),
        json!([1, "a", null, ["b"]]),
    ]
}

/// PocketBase takes text that is JSON for that JSON.
fn as_stored(value: Value) -> Value {
    value.as_str().and_then(|it| serde_json::from_str(it).ok()).unwrap_or(value)
}

/// Roles and users that hold whatever can be held.
fn fill(pb: &Pb, users: Users) {
    let roles: Vec<_> = all_sorts()
        .into_iter()
        .enumerate()
        .map(|(number, value)| {
            pb.create(
                "nats_roles",
                &json!({
                    "name": format!("role \"{number}\" é"),
                    "publish_permissions": value,
                    "subscribe_permissions": [value],
                    "subscribe_deny_permissions": { "deny": value },
                    "allow_response": number % 2 == 0,
                    "allow_response_max": number * 1000,
                    "allow_response_ttl": f64::from(u32::try_from(number).unwrap()) / 4.0 - 1.0,
                }),
            )
        })
        .collect();
    for (number, value) in all_sorts().into_iter().enumerate() {
        let id = pb.user(&format!("user{number}@example.com"), "some-password", "");
        let mut changes = json!({
            "role_id": roles[..number % 3],
            "active": number % 3 != 0,
            "publish_permissions": value,
            "publish_deny_permissions": value,
            "allowed_connection_types": value,
            "nkey": format!("U{number}"),
        });
        if users == Users::Text && number == 5 {
            changes["password"] = "plain 'text' with \"quotes\"".into();
        }
        pb.update("nats_users", &id, &changes);
    }
}

#[test]
fn every_way_of_reading_gives_the_same_snapshot() {
    for version in VERSIONS {
        for users in [Users::Text, Users::Password, Users::Auth, Users::AuthByEmail] {
            let mut pb = started(version, users, Optional::Present);
            fill(&pb, users);
            let listed = read(&mut open(&over_http(&pb)));
            make_view(&pb);
            let viewed = snapshot(&over_http(&pb));
            let from_file = snapshot(&from_file(&pb));

            assert_eq!(viewed, from_file, "{version:?} {users:?}");
            match (users, listed) {
                (Users::Text, listed) => assert_eq!(listed.unwrap(), viewed, "{version:?}"),
                (_, Err(SourceError::PasswordsHidden { .. })) => (),
                (_, other) => panic!("{version:?} {users:?}: {other:?}"),
            }
            assert_eq!((viewed.users.len(), viewed.roles.len()), (13, 13));
            let named = |number: usize| {
                let name = format!("user{number}@example.com");
                viewed.users.iter().find(|it| *it.username == name).unwrap()
            };
            for (number, value) in all_sorts().into_iter().enumerate() {
                let user = named(number);
                assert_eq!(user.permissions.publish, as_stored(value));
                assert_eq!(user.active, number % 3 != 0);
                assert_eq!(user.roles.len(), number % 3);
                let hashed = user.password.0.starts_with("$2");
                assert_eq!(hashed, users != Users::Text || number != 5);
            }

            // The file alone holds all that, also when PocketBase is gone, one way or the other.
            pb.kill();
            assert_eq!(snapshot(&self::from_file(&pb)), viewed, "{version:?} after a crash");
            pb.resume();
            pb.stop();
            let folder = names_in(&pb);
            assert_eq!(snapshot(&self::from_file(&pb)), viewed, "{version:?} after a stop");
            assert_eq!(names_in(&pb), folder, "nothing is made in PocketBase's folder");
        }
    }
}

fn names_in(pb: &Pb) -> Vec<String> {
    let files = fs_err::read_dir(pb.data_dir()).unwrap();
    let mut names: Vec<_> =
        files.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn optional_fields_may_be_absent() {
    for version in VERSIONS {
        let pb = started(version, Users::Text, Optional::Absent);
        let role = pb.role("r", &["a"], &["b"]);
        pb.user("ann", "x", &role);
        let listed = snapshot(&over_http(&pb));
        make_view(&pb);
        assert_eq!(listed, snapshot(&over_http(&pb)));
        assert_eq!(listed, snapshot(&from_file(&pb)));
        assert_eq!(*listed.users[0].roles, [role]);
        assert_eq!(listed.users[0].permissions.publish, Value::Null);
        assert_eq!(listed.roles[0].permissions.subscribe, json!(["b"]));
        assert_eq!(listed.roles[0].allow_response, Value::Null);
    }
}

#[test]
fn collections_that_exist_already_are_read_by_their_own_names() {
    for version in VERSIONS {
        let pb = started(version, Users::Text, Optional::Present);
        let role = pb.role("r", &["a"], &["b"]);
        let fields = json!([
            { "name": "group", "type": "relation", "collectionId": schema_id(&pb, "nats_roles"),
              "maxSelect": 1 },
            { "name": "login", "type": "text" },
            { "name": "hash", "type": "text", "hidden": true },
            { "name": "order", "type": "number" },
            { "name": "email", "type": "email" },
        ]);
        let people = json!({ "name": "people", "type": "base", "fields": fields });
        pb.ask("POST", "/api/collections", &people);
        let hash = bcrypt("x");
        for (login, group, order) in [("ann", &*role, 1), ("bob", "", 0)] {
            let person = json!({
                "login": login, "group": group, "order": order, "hash": hash, "email": "a@b.co",
            });
            pb.create("people", &person);
        }
        let names = PocketBaseOptions {
            user_collection: "people".into(),
            username_field: "login".into(),
            password_field: "hash".into(),
            role_field: "group".into(),
            active_field: "order".into(),
            ..Default::default()
        };
        let over_http = PocketBaseOptions {
            url: Some(pb.url()),
            token: Some(Secret::new(pb.token())),
            ..names.clone()
        };
        let from_file = PocketBaseOptions { data_dir: Some(pb.data_dir()), ..names.clone() };
        let listed = snapshot(&over_http);
        let query =
            export_view_query(&names, &schema(&pb, "people"), &schema(&pb, "nats_roles")).unwrap();
        let view = json!({ "name": "nats_export", "type": "view", "viewQuery": query });
        pb.ask("POST", "/api/collections", &view);
        assert_eq!(listed, snapshot(&over_http));
        assert_eq!(listed, snapshot(&from_file));
        let mut users: Vec<_> =
            listed.users.iter().map(|it| (&*it.username, it.active, &*it.roles)).collect();
        users.sort();
        assert_eq!(users, [("ann", true, &[role.clone()][..]), ("bob", false, &[][..])]);
        assert!(listed.users.iter().all(|it| *it.password.0 == *hash));
    }
}

fn schema_id(pb: &Pb, collection: &str) -> Value {
    pb.ask("GET", &format!("/api/collections/{collection}"), &Value::Null)["id"].take()
}

#[test]
fn what_the_view_lacks_is_an_error_and_not_an_empty_field() {
    let pb = started(None, Users::Text, Optional::Absent);
    pb.user("ann", "x", "");
    make_view(&pb);
    let options = PocketBaseOptions { resync_interval: Duration::ZERO, ..over_http(&pb) };
    let mut source = open(&options);
    assert_eq!(read(&mut source).unwrap().users.len(), 1);
    let service = service(&pb, &["nats_users", "nats_export"]);
    let mut little =
        open(&PocketBaseOptions { resync_interval: Duration::ZERO, ..service.by_token(&pb) });
    assert_eq!(read(&mut little).unwrap().users.len(), 1);

    add_field(&pb, "nats_users", json!({ "name": "nkey", "type": "text" }));
    for source in [&mut source, &mut little] {
        let error = read(source).unwrap_err();
        let SourceError::ViewLacks { field, collection, .. } = error else { panic!("{error:?}") };
        assert_eq!((&*collection, &*field), ("nats_users", "nkey"));
    }
    // A field that means nothing to us is not missed.
    remove_view(&pb);
    make_view(&pb);
    add_field(&pb, "nats_users", json!({ "name": "comment", "type": "text" }));
    assert_eq!(read(&mut source).unwrap().users.len(), 1);
}

/// Neither a field that is added nor a rename is told to anybody.
#[test]
fn a_field_that_was_just_added_is_missed_at_the_next_reading() {
    for version in VERSIONS {
        let pb = started(version, Users::Text, Optional::Absent);
        let ann = pb.user("ann", "x", "");
        let service = service(&pb, &["nats_users"]);
        let rule = json!({ "listRule": RULE });
        let missed = |source: &mut PocketBase, field: &str| {
            let error = read(source).unwrap_err();
            let SourceError::ViewLacks { field: of, .. } = &error else { panic!("{error:?}") };
            assert_eq!(of, field, "{version:?}");
        };
        make_view(&pb);
        change_collection(&pb, "nats_export", &rule);
        let mut sources = [open(&over_http(&pb)), open(&service.by_token(&pb))];
        for (collection, field) in
            [("nats_users", "publish_deny_permissions"), ("nats_roles", "allow_response")]
        {
            for source in &mut sources {
                assert_eq!(read(source).unwrap().users.len(), 1);
            }
            add_field(&pb, collection, json!({ "name": field, "type": "json" }));
            for source in &mut sources {
                missed(source, field);
            }
            remove_field(&pb, collection, field);
        }
        // A view that does not tell is compared once something has happened.
        remove_view(&pb);
        make_former_view(&pb);
        change_collection(&pb, "nats_export", &rule);
        for (options, field) in
            [(over_http(&pb), "publish_deny_permissions"), (service.by_token(&pb), "nkey")]
        {
            let mut source = open(&options);
            assert_eq!(read(&mut source).unwrap().users.len(), 1);
            settled(&mut source);
            assert_eq!(read(&mut source).unwrap().users.len(), 1);
            add_field(&pb, "nats_users", json!({ "name": field, "type": "text" }));
            pb.update("nats_users", &ann, &json!({ field: ["secret"] }));
            assert!(hinted(&mut source), "{version:?}");
            missed(&mut source, field);
            remove_field(&pb, "nats_users", field);
        }
    }
}

/// PocketBase lets people rename what the settings name, while all goes on.
#[test]
fn what_was_renamed_is_told_with_its_new_name_whichever_way_it_is_read() {
    for version in [Some("0.23.12"), Some("0.28.4"), None] {
        let pb = started(version, Users::Text, Optional::Present);
        pb.user("ann", "x", &pb.role("r", &["a"], &[]));
        let service = service(&pb, &["nats_users", "nats_roles"]);
        make_view(&pb);
        change_collection(&pb, "nats_export", &json!({ "listRule": RULE }));
        let unviewed = |it| PocketBaseOptions { export_view: String::new(), ..it };
        let ways = [
            ("view", over_http(&pb)),
            ("view for the service", service.by_token(&pb)),
            ("listing", unviewed(over_http(&pb))),
            ("listing for the service", unviewed(service.by_token(&pb))),
            ("file", from_file(&pb)),
        ];
        let mut open_ones = ways.each_ref().map(|(_, options)| open(options));
        for (source, (way, _)) in open_ones.iter_mut().zip(&ways) {
            assert_eq!(read(source).unwrap().users.len(), 1, "{version:?} {way}");
        }
        for (from, to) in [("nats_users", "people"), ("nats_roles", "groups")] {
            change_collection(&pb, from, &json!({ "name": to }));
            for (source, (way, options)) in open_ones.iter_mut().zip(&ways) {
                // One that knew it before, and one that is started now.
                for error in [read(source).unwrap_err(), error(options)] {
                    let SourceError::Renamed { collection, now } = &error else {
                        panic!("{version:?} {way}: {error:?}")
                    };
                    assert_eq!((&**collection, &**now), (from, to), "{version:?} {way}");
                    assert!(error.hint().unwrap().contains(to), "{error:?}");
                }
                let mut set = options.clone();
                let name = if from == "nats_users" {
                    &mut set.user_collection
                } else {
                    &mut set.role_collection
                };
                *name = to.into();
                assert_eq!(snapshot(&set).users.len(), 1, "{version:?} {way}");
            }
            change_collection(&pb, to, &json!({ "name": from }));
            for (source, (way, _)) in open_ones.iter_mut().zip(&ways) {
                assert_eq!(read(source).unwrap().users.len(), 1, "{version:?} {way}");
            }
        }
        let rename = |from: &str, to: &str| {
            change_fields(&pb, "nats_users", |fields| {
                fields.iter_mut().find(|it| it["name"] == from).unwrap()["name"] = to.into();
            });
        };
        for (from, to) in [("active", "enabled"), ("publish_deny_permissions", "denied")] {
            rename(from, to);
            for source in &mut open_ones[..2] {
                let error = read(source).unwrap_err();
                let SourceError::NoField { field, now, .. } = &error else { panic!("{error:?}") };
                assert_eq!((&**field, now.as_deref()), (from, Some(to)), "{version:?}");
                assert!(error.hint().unwrap().contains(to), "{error:?}");
            }
            // Another field gets the name, and people mean that one from now on.
            add_field(&pb, "nats_users", json!({ "name": from, "type": "bool" }));
            for source in &mut open_ones[..2] {
                let error = read(source).unwrap_err();
                assert!(matches!(error, SourceError::ViewLacks { .. }), "{version:?} {error:?}");
            }
            remove_field(&pb, "nats_users", from);
            rename(to, from);
            assert_eq!(read(&mut open_ones[0]).unwrap().users.len(), 1, "{version:?} {from}");
        }
        // The same with a whole collection: what the view shows is not what is meant.
        change_collection(&pb, "nats_users", &json!({ "name": "people" }));
        let mut other = pb.ask("GET", "/api/collections/people", &Value::Null);
        for key in ["id", "name", "indexes", "created", "updated"] {
            other.as_object_mut().unwrap().remove(key);
        }
        for field in other["fields"].as_array_mut().unwrap() {
            field.as_object_mut().unwrap().remove("id");
        }
        other["name"] = "nats_users".into();
        pb.ask("POST", "/api/collections", &other);
        for (source, (way, _)) in open_ones.iter_mut().zip(&ways) {
            let now = read(source);
            if way.starts_with("view") {
                let Err(SourceError::ViewOfOther { carried, .. }) = now else { panic!("{now:?}") };
                assert_eq!(carried, "people", "{version:?}");
            } else if let Ok(now) = now {
                assert!(now.users.is_empty(), "{version:?} {way}: it is another collection");
            }
        }
    }
}

#[test]
fn a_view_that_is_not_ours_is_not_believed() {
    let pb = started(None, Users::Text, Optional::Present);
    let query = "SELECT id, username FROM nats_users";
    let view = json!({ "name": "nats_export", "type": "view", "viewQuery": query });
    pb.ask("POST", "/api/collections", &view);
    pb.user("ann", "x", "");
    assert!(matches!(error(&over_http(&pb)), SourceError::ViewUnknown { .. }));
    remove_view(&pb);
    make_view(&pb);
    change_collection(&pb, "nats_users", &json!({ "name": "people" }));
    let renamed = PocketBaseOptions { user_collection: "people".into(), ..over_http(&pb) };
    assert_eq!(snapshot(&renamed).users.len(), 1, "it knows its collections by the names of now");
    let other = PocketBaseOptions { role_collection: "people".into(), ..renamed.clone() };
    assert!(matches!(error(&other), SourceError::ViewOfOther { .. }));
    remove_view(&pb);
    change_collection(&pb, "people", &json!({ "name": "nats_users" }));
    make_former_view(&pb);
    change_collection(&pb, "nats_users", &json!({ "name": "people" }));
    assert!(
        matches!(error(&renamed), SourceError::ViewOfOther { .. }),
        "it says what it was made of"
    );
    // Without a view, the listing serves.
    let without = PocketBaseOptions { export_view: String::new(), ..renamed };
    assert_eq!(snapshot(&without).users.len(), 1);
}

#[test]
fn a_guest_sees_nothing_and_that_is_never_believed() {
    for version in VERSIONS {
        let pb = started(version, Users::Text, Optional::Present);
        let service = service(&pb, &["nats_users", "nats_roles"]);
        let nobody = snapshot(&service.by_token(&pb));
        assert_eq!(nobody, Snapshot::default(), "with a good token it is");
        pb.user("ann", "x", "");
        let mut source = open(&service.by_token(&pb));
        assert_eq!(read(&mut source).unwrap().users.len(), 1);

        service.end_tokens(&pb);
        let refused = |error| matches!(error, SourceError::TokenRefused);
        assert!(refused(read(&mut source).unwrap_err()), "{version:?}: a guest sees no records");
        // The same for collections that only superusers, or that all may list; and for a view.
        change_collection(&pb, "nats_users", &json!({ "listRule": null }));
        assert!(refused(read(&mut source).unwrap_err()), "{version:?}: a guest may not ask");
        change_collection(&pb, "nats_users", &json!({ "listRule": "username = 'nobody'" }));
        change_collection(&pb, "nats_roles", &json!({ "listRule": "" }));
        assert!(refused(read(&mut source).unwrap_err()), "{version:?}: a guest sees a part");
        make_view(&pb);
        assert!(refused(read(&mut source).unwrap_err()), "{version:?}: a guest sees no view");
        change_collection(&pb, "nats_export", &json!({ "listRule": RULE }));
        assert!(refused(read(&mut source).unwrap_err()), "{version:?}: a guest sees no row");
        for bad in ["bad", "x.y.z", "tab\tand\nline"] {
            let token = Some(Secret::new(bad));
            let options = PocketBaseOptions { token, ..over_http(&pb) };
            assert!(refused(error(&options)), "{version:?}: {bad}");
        }
        let again = PocketBaseOptions {
            token: Some(Secret::new(pb.log_in("nats_sync", SERVICE, PASSWORD).unwrap())),
            ..over_http(&pb)
        };
        assert_eq!(snapshot(&again).users.len(), 1);
    }
}

#[test]
fn what_the_account_may_not_see_is_named() {
    let pb = started(None, Users::Text, Optional::Present);
    pb.user("ann", "x", "");
    let service = service(&pb, &["nats_users"]);
    let SourceError::Forbidden { collection, .. } = error(&service.by_token(&pb)) else { panic!() };
    assert_eq!(collection, "nats_roles");
    make_view(&pb);
    let SourceError::Forbidden { collection, .. } = error(&service.by_token(&pb)) else { panic!() };
    assert_eq!(collection, "nats_export");
    change_collection(&pb, "nats_export", &json!({ "listRule": "id = 'other'" }));
    assert!(matches!(error(&service.by_token(&pb)), SourceError::ViewHidden { .. }));
    change_collection(&pb, "nats_export", &json!({ "listRule": RULE }));
    assert_eq!(snapshot(&service.by_token(&pb)).users.len(), 1);
}

#[test]
fn impersonation_tokens_serve_and_can_be_revoked() {
    for version in [Some("0.23.12"), Some("0.28.4"), None] {
        let pb = started(version, Users::Text, Optional::Present);
        let service = service(&pb, &["nats_users", "nats_roles"]);
        let token = Some(Secret::new(service.impersonate(&pb)));
        let mut source = open(&PocketBaseOptions { token, ..over_http(&pb) });
        assert_eq!(read(&mut source).unwrap(), Snapshot::default(), "{version:?}");
        service.end_tokens(&pb);
        assert!(matches!(read(&mut source).unwrap_err(), SourceError::TokenRefused), "{version:?}");
    }
}

#[test]
fn a_token_file_is_read_again_when_it_changes() {
    let pb = started(None, Users::Text, Optional::Present);
    pb.user("ann", "x", "");
    let service = service(&pb, &["nats_users", "nats_roles"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let options =
        PocketBaseOptions { token: None, token_file: Some(file.clone()), ..over_http(&pb) };
    let mut source = open(&options);
    assert!(matches!(read(&mut source).unwrap_err(), SourceError::Credentials(_)));
    write(&file, "\n");
    let empty = read(&mut source).unwrap_err();
    assert!(matches!(empty, SourceError::Credentials(_)), "not that PocketBase refuses it");
    write(&file, format!("{}\r\n", service.token));
    assert_eq!(read(&mut source).unwrap().users.len(), 1);
    service.end_tokens(&pb);
    assert!(matches!(read(&mut source).unwrap_err(), SourceError::TokenRefused));
    write(&file, format!("{}\n", pb.log_in("nats_sync", SERVICE, PASSWORD).unwrap()));
    assert_eq!(read(&mut source).unwrap().users.len(), 1);
}

/// PocketBase tells nobody that a token is of no use any more: the live connection stands, silent.
#[test]
fn a_token_or_password_is_used_as_soon_as_its_file_is_replaced() {
    let pb = started(None, Users::Text, Optional::Present);
    pb.user("ann", "x", "");
    let service = service(&pb, &["nats_users", "nats_roles"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    let by_token =
        PocketBaseOptions { token: None, token_file: Some(file.clone()), ..over_http(&pb) };
    let by_password = PocketBaseOptions {
        password: None,
        password_file: Some(file.clone()),
        ..Service::by_password(pb.url())
    };
    for (options, first) in [(by_token, &*service.token), (by_password, PASSWORD)] {
        write(&file, first);
        let mut source = open(&options);
        read(&mut source).unwrap();
        settled(&mut source);
        service.end_tokens(&pb);
        let token = || pb.log_in("nats_sync", SERVICE, PASSWORD).unwrap();
        let next = if options.token_file.is_some() { token() } else { PASSWORD.to_owned() };
        write(&file, next);
        assert!(hinted(&mut source));
        read(&mut source).unwrap();
        settled(&mut source);
        pb.user("bob", "x", "");
        assert!(hinted(&mut source), "the connection is one of the token that counts");
        assert!(!hinted_within(Duration::from_secs(2), &mut source), "once is enough");
    }
}

#[test]
fn one_log_in_serves_until_its_token_is_refused() {
    for version in VERSIONS {
        let pb = started(version, Users::Text, Optional::Present);
        pb.user("ann", "x", "");
        let service = service(&pb, &["nats_users", "nats_roles"]);
        let log_ins = Arc::new(AtomicUsize::new(0));
        let count = log_ins.clone();
        let middlebox = Middlebox::start(pb.address(), move |head| {
            count.fetch_add(usize::from(head.contains("auth-with-password")), Ordering::SeqCst);
            Fate::Pass
        });
        let mut source = open(&Service::by_password(middlebox.url()));
        for _ in 0..3 {
            assert_eq!(read(&mut source).unwrap().users.len(), 1);
        }
        assert_eq!(log_ins.load(Ordering::SeqCst), 1);
        service.end_tokens(&pb);
        for _ in 0..3 {
            assert_eq!(read(&mut source).unwrap().users.len(), 1);
        }
        assert_eq!(log_ins.load(Ordering::SeqCst), 2);
    }
}

#[test]
fn a_log_in_that_fails_says_why() {
    for version in VERSIONS {
        let pb = started(version, Users::Text, Optional::Present);
        service(&pb, &["nats_users", "nats_roles"]);
        let right = Service::by_password(pb.url());
        assert_eq!(snapshot(&right), Snapshot::default());
        let wrong = PocketBaseOptions { password: Some(Secret::new("wrong")), ..right.clone() };
        assert!(matches!(error(&wrong), SourceError::LoginRefused { .. }), "{version:?}");
        let other = PocketBaseOptions { auth_collection: "other".into(), ..right.clone() };
        assert!(matches!(error(&other), SourceError::NoAuthCollection { .. }), "{version:?}");
        let base = PocketBaseOptions { auth_collection: "nats_users".into(), ..right.clone() };
        assert!(matches!(error(&base), SourceError::NoAuthCollection { .. }), "{version:?}");
        for rule in [json!("email = 'other@example.com'"), Value::Null] {
            change_collection(&pb, "nats_sync", &json!({ "authRule": rule }));
            assert!(matches!(error(&right), SourceError::RuledOut { .. }), "{version:?} {rule}");
        }
        let off = json!({ "authRule": "", "passwordAuth": { "enabled": false } });
        change_collection(&pb, "nats_sync", &off);
        assert!(matches!(error(&right), SourceError::NoPasswordLogin { .. }), "{version:?}");
        let on = json!({ "passwordAuth": { "enabled": true, "identityFields": ["email"] } });
        change_collection(&pb, "nats_sync", &on);
        assert_eq!(snapshot(&right), Snapshot::default());
        let otp_and_mfa = json!({
            "authRule": "", "mfa": { "enabled": true }, "otp": { "enabled": true },
        });
        change_collection(&pb, "nats_sync", &otp_and_mfa);
        assert!(matches!(error(&right), SourceError::SecondFactor), "{version:?}");
    }
}

/// Neither the password nor the token is wrong then, and both would be changed in vain.
#[test]
fn a_superuser_from_an_address_that_is_not_listed_is_told_so() {
    let pb = started(None, Users::Text, Optional::Present);
    let service = service(&pb, &["nats_users", "nats_roles"]);
    let by_password = PocketBaseOptions {
        token: None,
        identity: Some(SUPERUSER.0.into()),
        password: Some(Secret::new(SUPERUSER.1)),
        ..over_http(&pb)
    };
    let ways = [over_http(&pb), by_password.clone()];
    for options in &ways {
        assert_eq!(snapshot(options), Snapshot::default());
    }
    let listed = json!({ "superuserIPs": ["203.0.113.7"] });
    pb.ask("PATCH", "/api/settings", &listed);
    for options in &ways {
        let error = error(options);
        assert!(matches!(error, SourceError::AddressRefused), "{error:?}");
        let hint = error.hint().unwrap();
        assert!(hint.contains("superuser IPs") && !hint.contains("upsert"), "{hint}");
    }
    for login in [
        Login::Password { identity: SUPERUSER.0.into(), password: Secret::new(SUPERUSER.1) },
        Login::Token(Secret::new(pb.token())),
    ] {
        let refused = RUNTIME.block_on(Superuser::log_in(&ways[0], &login)).unwrap_err();
        assert!(matches!(refused, SourceError::AddressRefused), "{refused:?}");
    }
    let wrong = PocketBaseOptions { password: Some(Secret::new("wrong")), ..by_password };
    assert!(matches!(error(&wrong), SourceError::LoginRefused { .. }), "the password comes first");
    assert_eq!(snapshot(&service.by_token(&pb)), Snapshot::default(), "others are let in");
}

#[test]
fn each_cause_has_its_own_hint() {
    let pb = started(None, Users::Text, Optional::Present);
    let fate = Arc::new(Mutex::new(""));
    let decide = fate.clone();
    let middlebox = Middlebox::start(pb.address(), move |_| match *decide.lock().unwrap() {
        "" => Fate::Pass,
        answer => Fate::Answer(answer.to_owned()),
    });
    let mut source = open(&through(&middlebox, &pb));
    let ours = |status: u16| {
        let words = json!({ "data": {}, "message": "Something.", "status": status });
        &*Box::leak(format!("{status} X\n{words}").into_boxed_str())
    };
    let mut hints = HashMap::new();
    for (answer, wanted) in [
        ("404 Not Found\n<html>nothing here", "base path"),
        ("403 Forbidden\n<html>a firewall's page", "in front of PocketBase refuses"),
        ("407 Log in\n<html>a proxy's page", "in front of PocketBase refuses"),
        ("429 Many\n<html>a proxy's page", "in front of PocketBase limits"),
        ("502 Bad\n<html>a proxy's page", "in front of PocketBase answers in its place"),
        (ours(429), "Rate limiting"),
        (ours(400), "says why"),
        (ours(500), "PocketBase itself failed"),
    ] {
        *fate.lock().unwrap() = answer;
        let hint = read(&mut source).unwrap_err().hint().unwrap();
        assert!(hint.contains(wanted), "{answer}: {hint}");
        hints.insert(wanted, hint);
        *fate.lock().unwrap() = "";
        assert_eq!(read(&mut source).unwrap(), Snapshot::default(), "after {answer}");
    }
    for (url, wanted) in [
        (pb.url().replace("http:", "https:"), "does not speak TLS"),
        ("http://pocketbase.invalid:8090".into(), "does not know the host"),
        (format!("http://{}", free_address()), "is PocketBase running"),
    ] {
        let error = error(&PocketBaseOptions { url: Some(url.clone()), ..over_http(&pb) });
        let hint = error.hint().unwrap();
        assert!(hint.contains(wanted), "{url}: {error:?} {hint}");
        hints.insert(wanted, hint);
    }
    let different: HashSet<_> = hints.values().collect();
    assert_eq!(different.len(), hints.len(), "{hints:#?}");
}

/// Rules go by the name of the account's collection, which can be renamed as well.
#[test]
fn who_is_shown_nothing_is_told_of_what_collection_they_are() {
    for version in VERSIONS {
        let pb = started(version, Users::Text, Optional::Present);
        let service = service(&pb, &["nats_users", "nats_roles"]);
        make_view(&pb);
        change_collection(&pb, "nats_export", &json!({ "listRule": RULE }));
        let mut source = open(&service.by_token(&pb));
        assert_eq!(read(&mut source).unwrap(), Snapshot::default());
        change_collection(&pb, "nats_sync", &json!({ "name": "nats_robots" }));
        let error = read(&mut source).unwrap_err();
        assert!(error.hint().unwrap().contains("`nats_robots`"), "{version:?} {error:?}");
        change_collection(&pb, "nats_robots", &json!({ "name": "nats_sync" }));
        assert_eq!(read(&mut source).unwrap(), Snapshot::default());
    }
}

/// Whatever stands at the address may answer for ever.
#[test]
fn an_answer_without_an_end_is_given_up() {
    for (begin, forever, wanted) in [
        ("200 OK", "{\"items\":[", "larger than 16 MiB"),
        ("200 OK", "<html>", "is not PocketBase's"),
        ("500 Oops", "{\"message\":\"", "answered with 500"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let sent = Arc::new(AtomicUsize::new(0));
        let count = sent.clone();
        let server = thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            read_request(&mut client).unwrap();
            let head =
                format!("HTTP/1.1 {begin}\r\nContent-Type: application/json\r\n\r\n{forever}");
            client.write_all(head.as_bytes()).unwrap();
            let piece = vec![b' '; 1 << 16];
            while client.write_all(&piece).is_ok() {
                count.fetch_add(piece.len(), Ordering::SeqCst);
            }
        });
        let options = PocketBaseOptions {
            request_timeout: SOON,
            ..Service::by_password(format!("http://{address}"))
        };
        let error = error(&options).to_string();
        assert!(error.contains(wanted), "{begin} {forever}: {error}");
        // It was hung up on, so that it ends, and soon.
        server.join().unwrap();
        let sent = sent.load(Ordering::SeqCst);
        assert!(sent < 40 << 20, "{sent} bytes were taken");
    }
}

/// Events that go nowhere are as endless, and are no connection.
#[test]
fn a_live_connection_that_is_noise_is_given_up() {
    let pb = started(None, Users::Text, Optional::Present);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let noise = listener.local_addr().unwrap();
    let (begun, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (begun.clone(), over.clone());
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            counts.0.fetch_add(1, Ordering::SeqCst);
            let _ = client.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n");
            while client.write_all(&[b':'; 4096]).is_ok() {}
            counts.1.fetch_add(1, Ordering::SeqCst);
        }
    });
    let middlebox = Middlebox::start(pb.address(), move |head| {
        if head.starts_with("GET /api/realtime") { Fate::At(noise) } else { Fate::Pass }
    });
    let options =
        PocketBaseOptions { request_timeout: Duration::from_secs(1), ..through(&middlebox, &pb) };
    let mut source = open(&options);
    read(&mut source).unwrap();
    let given_up = poll(SOON, || {
        hinted_within(Duration::from_millis(200), &mut source);
        (over.load(Ordering::SeqCst) > 0).then_some(())
    });
    assert!(given_up.is_some() && begun.load(Ordering::SeqCst) > 0);
    assert!(source.link().borrow().connected.is_none());
    assert_eq!(read(&mut source).unwrap(), Snapshot::default(), "the rest goes on");
}

#[test]
fn missing_collections_and_fields_are_named() {
    for version in VERSIONS {
        let pb = Pb::empty(version);
        for options in [over_http(&pb), from_file(&pb)] {
            let error = error(&options);
            let SourceError::NoCollection { collection } = error else { panic!("{error:?}") };
            assert!(
                ["nats_users", "nats_roles"].contains(&&*collection),
                "whichever is read first"
            );
        }
        let mut pb = pb;
        pb.create_collections(Users::Text, Optional::Absent);
        let ways = [over_http(&pb), from_file(&pb)];
        // First without any record, when only the schema tells; then with one.
        for records in [0, 1] {
            if records == 1 {
                pb.user("ann", "x", "");
                pb.role("r", &[], &[]);
            }
            for (collection, field) in [
                ("nats_users", "username"),
                ("nats_users", "password"),
                ("nats_users", "role_id"),
                ("nats_users", "active"),
                ("nats_roles", "name"),
                ("nats_roles", "publish_permissions"),
                ("nats_roles", "subscribe_permissions"),
            ] {
                let rename = |from: &str, to: &str| {
                    change_fields(&pb, collection, |fields| {
                        let field = fields.iter_mut().find(|it| it["name"] == from);
                        field.unwrap()["name"] = to.into();
                    });
                };
                rename(field, "other");
                for options in &ways {
                    let error = error(options);
                    let SourceError::NoField { collection: in_, field: of, .. } = &error else {
                        panic!("{version:?} {field}: {error:?}")
                    };
                    assert_eq!((&**in_, &**of), (collection, field));
                    let named = |it: &str| error.hint().unwrap().contains(it);
                    for setting in ["username", "password", "role", "active"] {
                        let its = collection == "nats_users" && field.starts_with(setting);
                        assert_eq!(named(&format!("`{setting}_field`")), its, "{error:?}");
                    }
                }
                rename("other", field);
            }
            for options in &ways {
                assert_eq!(snapshot(options).users.len(), records);
            }
        }
        change_collection(&pb, "nats_roles", &json!({ "name": "groups" }));
        for options in ways {
            let error = error(&options);
            let SourceError::Renamed { collection, now } = error else { panic!("{error:?}") };
            assert_eq!((&*collection, &*now), ("nats_roles", "groups"));
            let renamed = PocketBaseOptions { role_collection: "groups".into(), ..options };
            assert_eq!(snapshot(&renamed).roles.len(), 1);
        }
    }
}

#[test]
fn active_that_is_no_bool_is_an_error() {
    for version in VERSIONS {
        let pb = started(version, Users::Text, Optional::Absent);
        remove_field(&pb, "nats_users", "active");
        add_field(&pb, "nats_users", json!({ "name": "active", "type": "text" }));
        let id = pb.create("nats_users", &json!({ "username": "ann", "active": "true" }));
        // A second one has a password, so that their absence is not the matter.
        let hash = bcrypt("x");
        pb.create("nats_users", &json!({ "username": "bob", "active": "1", "password": hash }));
        pb.delete("nats_users", &id);
        let listed = error(&over_http(&pb));
        make_view(&pb);
        for error in [listed, error(&over_http(&pb)), error(&from_file(&pb))] {
            let SourceError::WrongType { field, .. } = &error else { panic!("{error:?}") };
            assert_eq!(field, "active");
        }
    }
}

#[test]
fn users_without_passwords_are_believed_only_if_passwords_would_be_shown() {
    for version in VERSIONS {
        let pb = started(version, Users::Text, Optional::Present);
        pb.create("nats_users", &json!({ "username": "ann", "active": true }));
        assert_eq!(snapshot(&over_http(&pb)).users.len(), 1, "it is a text field");
        let service = service(&pb, &["nats_users", "nats_roles"]);
        let error = error(&service.by_token(&pb));
        assert!(matches!(error, SourceError::PasswordsHidden { .. }), "the account cannot know");
        pb.user("bob", "x", "");
        assert_eq!(snapshot(&service.by_token(&pb)).users.len(), 2, "now it can");
    }
}

#[test]
fn long_listings_follow_the_ids() {
    for version in VERSIONS {
        let pb = started(version, Users::Text, Optional::Absent);
        for number in 0..7 {
            pb.user(&format!("user{number}"), "x", "");
        }
        let pages = Arc::new(AtomicUsize::new(0));
        let count = pages.clone();
        // PocketBase tells how large its pages really are.
        let middlebox = Middlebox::start(pb.address(), move |head| {
            let path = head.split(' ').nth(1).unwrap();
            count.fetch_add(usize::from(path.contains("nats_users/records")), Ordering::SeqCst);
            Fate::Instead(path.replace("perPage=1000", "perPage=3"))
        });
        assert_eq!(snapshot(&through(&middlebox, &pb)), snapshot(&from_file(&pb)));
        assert_eq!(pages.load(Ordering::SeqCst), 6, "three pages, twice");
    }
}

#[test]
fn a_listing_that_changes_meanwhile_is_read_again() {
    let pb = Arc::new(started(None, Users::Text, Optional::Absent));
    let role = pb.role("before", &[], &[]);
    pb.user("ann", "x", &role);
    let changes = Arc::new(Mutex::new(0));
    let (writer, left) = (pb.clone(), changes.clone());
    // Between the users and the roles, the one loses its role and the role its name.
    let middlebox = Middlebox::start(pb.address(), move |head| {
        let mut left = left.lock().unwrap();
        if head.contains("nats_roles/records") && *left > 0 {
            *left -= 1;
            let user = &snapshot(&from_file(&writer)).users[0];
            writer.update("nats_users", &user.id, &json!({ "role_id": [] }));
            writer.update("nats_roles", &role, &json!({ "name": format!("after{left}") }));
            writer.update("nats_users", &user.id, &json!({ "username": format!("ann{left}") }));
        }
        Fate::Pass
    });
    let mut source = open(&through(&middlebox, &pb));
    *changes.lock().unwrap() = 2;
    assert_eq!(read(&mut source).unwrap(), snapshot(&from_file(&pb)));
    assert_eq!(*changes.lock().unwrap(), 0);
    *changes.lock().unwrap() = 1000;
    assert!(matches!(read(&mut source).unwrap_err(), SourceError::Torn { .. }));
    *changes.lock().unwrap() = 0;
    assert_eq!(read(&mut source).unwrap(), snapshot(&from_file(&pb)));
}

fn token_in(head: &str) -> &str {
    head.lines().find(|it| it.to_lowercase().starts_with("authorization:")).unwrap()
}

#[test]
fn failures_on_the_way_are_told_and_pass() {
    type Expected<'a> = &'a dyn Fn(&SourceError) -> bool;
    let pb = started(None, Users::Text, Optional::Present);
    for number in 0..30 {
        pb.user(&format!("user{number}"), "x", "");
    }
    let fate = Arc::new(Mutex::new(None));
    let decide = fate.clone();
    let middlebox = Middlebox::start(pb.address(), move |head| {
        match (&*decide.lock().unwrap(), head.contains("nats_users/records")) {
            (None, _) | (Some(_), false) => Fate::Pass,
            (Some("hang"), _) => Fate::Hang,
            (Some("cut"), _) => Fate::Cut(2000),
            (Some("echo"), _) => Fate::Answer(format!("200 OK\n<pre>{}", token_in(head))),
            (Some("echo JSON"), _) => {
                Fate::Answer(format!("200 OK\n{}", json!({ "head": token_in(head) })))
            }
            (Some("echo failure"), _) => Fate::Answer(format!("502 Bad\n<pre>{}", token_in(head))),
            (Some("redirect"), _) => Fate::Redirect(301, "https://other.example/pb?secret".into()),
            (Some(answer), _) => Fate::Answer((*answer).to_owned()),
        }
    });
    let options = PocketBaseOptions {
        // Only one of them is to have to wait for it, on a busy machine too.
        request_timeout: Duration::from_secs(3),
        ..through(&middlebox, &pb)
    };
    let mut source = open(&options);
    let long = format!("502 Bad\n<html>\n{}", "<p>sorry\n".repeat(500));
    let status = |error: &SourceError, it| matches!(error, SourceError::Status { status, .. } if *status == it);
    let cases: [(&'static str, Expected<'_>); 12] = [
        ("500 Oops\n{\"status\":500,\"message\":\"Something went wrong.\"}", &|it| status(it, 500)),
        ("429 Many\n{\"status\":429,\"message\":\"Too many requests.\"}", &|it| status(it, 429)),
        ("403 No\n<html>a proxy's page</html>", &|it| status(it, 403)),
        (Box::leak(long.into_boxed_str()), &|it| status(it, 502)),
        ("200 OK\n<html>hello</html>", &|it| matches!(it, SourceError::NotPocketBase { .. })),
        ("200 OK\n{\"items\":[]}", &|it| matches!(it, SourceError::NotPocketBase { .. })),
        ("echo", &|it| matches!(it, SourceError::NotPocketBase { .. })),
        ("echo JSON", &|it| matches!(it, SourceError::NotPocketBase { .. })),
        ("echo failure", &|it| status(it, 502)),
        ("hang", &|it| matches!(it, SourceError::Slow { .. })),
        ("cut", &|it| matches!(it, SourceError::Unreachable { .. })),
        (
            "redirect",
            &|it| matches!(it, SourceError::Redirected { to, .. } if to == "https://other.example/pb"),
        ),
    ];
    for (case, expected) in cases {
        *fate.lock().unwrap() = Some(case);
        let error = read(&mut source).unwrap_err();
        assert!(expected(&error), "{case}: {error:?}");
        *fate.lock().unwrap() = None;
        assert_eq!(read(&mut source).unwrap().users.len(), 30, "after {case}");
    }
}

#[test]
fn a_redirect_never_carries_the_token_away() {
    let pb = started(None, Users::Text, Optional::Present);
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = heads.clone();
    let other = Middlebox::start(pb.address(), move |head| {
        seen.lock().unwrap().push(head.to_owned());
        Fate::Pass
    });
    for status in [301, 302, 303, 307, 308] {
        let to = other.url();
        let redirecting = Middlebox::start(pb.address(), move |head| {
            let path = head.split(' ').nth(1).unwrap();
            Fate::Redirect(status, format!("{to}{path}"))
        });
        let by_token = through(&redirecting, &pb);
        for options in [by_token, Service::by_password(redirecting.url())] {
            assert!(matches!(error(&options), SourceError::Redirected { .. }));
        }
    }
    assert_eq!(*heads.lock().unwrap(), [""; 0]);
    assert_eq!(snapshot(&through(&other, &pb)), Snapshot::default());
}

#[test]
fn the_url_may_have_a_base_path() {
    let pb = started(None, Users::Text, Optional::Present);
    pb.user("ann", "x", "");
    let middlebox = Middlebox::start(pb.address(), |head| {
        let path = head.split(' ').nth(1).unwrap();
        match path.strip_prefix("/some/base") {
            Some(path) => Fate::Instead(path.into()),
            None => Fate::Answer("404 Not Found\nnothing here".into()),
        }
    });
    for base in ["/some/base", "/some/base/"] {
        let url = Some(format!("{}{base}", middlebox.url()));
        let options = PocketBaseOptions { url, ..over_http(&pb) };
        assert_eq!(snapshot(&options).users.len(), 1);
    }
    let error = error(&through(&middlebox, &pb));
    assert!(matches!(error, SourceError::Status { status: 404, .. }), "{error:?}");
}

#[test]
fn without_pocketbase_there_is_an_error_and_with_it_a_snapshot() {
    let mut pb = started(None, Users::Text, Optional::Present);
    pb.user("ann", "x", "");
    let mut source = open(&over_http(&pb));
    pb.kill();
    assert!(matches!(read(&mut source).unwrap_err(), SourceError::Unreachable { .. }));
    pb.resume();
    assert_eq!(read(&mut source).unwrap().users.len(), 1);
    let nobody = Some(format!("http://{}", free_address()));
    let error = error(&PocketBaseOptions { url: nobody, ..over_http(&pb) });
    assert!(matches!(error, SourceError::Unreachable { .. }));
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let url = Some("http://127.0.0.1:1".to_owned());
    let token = || Some(Secret::new("t"));
    let some = PocketBaseOptions { url: url.clone(), token: token(), ..Default::default() };
    assert!(PocketBase::open(&some).is_ok());
    let none = PocketBaseOptions::default();
    let wrong = HashMap::from([
        ("nothing", none.clone()),
        ("both", PocketBaseOptions { data_dir: Some("x".into()), ..some.clone() }),
        ("no credentials", PocketBaseOptions { token: None, ..some.clone() }),
        ("two tokens", PocketBaseOptions { token_file: Some("x".into()), ..some.clone() }),
        ("token and identity", PocketBaseOptions { identity: Some("x".into()), ..some.clone() }),
        (
            "no password",
            PocketBaseOptions { token: None, identity: Some("x".into()), ..some.clone() },
        ),
        ("no identity", PocketBaseOptions { token: None, password: token(), ..some.clone() }),
        ("no address", PocketBaseOptions { url: Some("nonsense".into()), ..some.clone() }),
        ("another scheme", PocketBaseOptions { url: Some("ftp://x/".into()), ..some.clone() }),
        (
            "secret in the url",
            PocketBaseOptions { url: Some("http://a:b@x/".into()), ..some.clone() },
        ),
    ]);
    for (what, options) in wrong {
        let error = PocketBase::open(&options).unwrap_err();
        assert!(matches!(error, SourceError::Settings(_)), "{what}: {error:?}");
        check_words(&error);
    }
    let ca_file = Some("nowhere.pem".into());
    let error = PocketBase::open(&PocketBaseOptions { ca_file, ..some }).unwrap_err();
    assert!(matches!(error, SourceError::Certificates(_)));
}

#[test]
fn every_change_is_hinted_at() {
    for version in VERSIONS {
        let pb = started(version, Users::Text, Optional::Present);
        let service = service(&pb, &["nats_users", "nats_roles"]);
        for options in [over_http(&pb), service.by_token(&pb), from_file(&pb)] {
            let mut source = open(&options);
            read(&mut source).unwrap();
            settled(&mut source);
            let mut hinted_at = |what: &str, change: &dyn Fn()| {
                change();
                assert!(hinted(&mut source), "{version:?}: {what}");
                while hinted_within(Duration::from_millis(100), &mut source) {}
            };
            let (user, role) = (Mutex::new(String::new()), Mutex::new(String::new()));
            let user_id = || user.lock().unwrap().clone();
            let role_id = || role.lock().unwrap().clone();
            hinted_at("role create", &|| *role.lock().unwrap() = pb.role("r", &["a"], &[]));
            hinted_at("user create", &|| *user.lock().unwrap() = pb.user("ann", "x", &role_id()));
            hinted_at("user update", &|| {
                pb.update("nats_users", &user_id(), &json!({ "active": false }));
            });
            hinted_at("role update", &|| {
                pb.update("nats_roles", &role_id(), &json!({ "publish_permissions": ["b"] }));
            });
            hinted_at("user delete", &|| pb.delete("nats_users", &user_id()));
            hinted_at("role delete", &|| pb.delete("nats_roles", &role_id()));
        }
    }
}

/// Most of them: the machine may be busy. The periodic look alone would be in time for few.
#[test]
fn changes_are_noticed_in_milliseconds() {
    let pb = started(None, Users::Text, Optional::Present);
    let role = pb.role("r", &[], &[]);
    for options in [over_http(&pb), from_file(&pb)] {
        let mut source = open(&options);
        read(&mut source).unwrap();
        settled(&mut source);
        let in_time = (0..20).filter(|number| {
            pb.update("nats_roles", &role, &json!({ "name": format!("r{number}") }));
            let in_time = hinted_within(Duration::from_millis(50), &mut source);
            while hinted_within(Duration::from_millis(100), &mut source) {}
            in_time
        });
        assert!(in_time.count() >= 15);
    }
}

#[test]
fn a_hint_that_nobody_waits_for_is_kept() {
    let pb = started(None, Users::Text, Optional::Present);
    for options in [over_http(&pb), from_file(&pb)] {
        let mut source = open(&options);
        read(&mut source).unwrap();
        settled(&mut source);
        pb.user("ann", "x", "");
        poll(Duration::from_millis(500), || None::<()>);
        assert!(hinted_within(Duration::from_millis(1), &mut source));
        assert!(!hinted_within(Duration::from_millis(1), &mut source), "once");
    }
}

#[test]
fn every_reconnect_is_a_hint_and_the_connection_lives_on() {
    for version in VERSIONS {
        let mut pb = started(version, Users::Text, Optional::Present);
        let mut source = open(&over_http(&pb));
        let mut file = open(&from_file(&pb));
        for source in [&mut source, &mut file] {
            read(source).unwrap();
            settled(source);
        }
        for (name, end) in [("ann", Pb::kill as fn(&mut Pb)), ("bob", Pb::stop)] {
            end(&mut pb);
            pb.resume();
            settled(&mut source);
            // Another PocketBase has opened the file; that need not be a change.
            while hinted_within(Duration::from_millis(300), &mut file) {}
            pb.user(name, "x", "");
            assert!(hinted(&mut source), "{version:?}");
            assert!(hinted(&mut file), "{version:?}");
            assert_eq!(read(&mut source).unwrap(), read(&mut file).unwrap());
        }
    }
}

#[test]
fn a_connection_that_went_deaf_is_noticed() {
    let pb = started(None, Users::Text, Optional::Present);
    let service = service(&pb, &["nats_users", "nats_roles"]);
    let resync_interval = Duration::from_secs(6);
    let options = PocketBaseOptions { resync_interval, ..Service::by_password(pb.url()) };
    let mut source = open(&options);
    read(&mut source).unwrap();
    settled(&mut source);
    service.end_tokens(&pb);
    assert!(hinted(&mut source), "the token was found to be refused");
    // Whoever is told so looks, and gets another token, and with it another connection.
    read(&mut source).unwrap();
    settled(&mut source);
    pb.user("ann", "x", "");
    assert!(hinted(&mut source));
}

#[test]
fn a_restored_database_is_noticed() {
    for version in VERSIONS {
        let pb = started(version, Users::Text, Optional::Present);
        pb.user("ann", "x", "");
        pb.ask("POST", "/api/backups", &json!({ "name": "one.zip" }));
        pb.user("bob", "x", "");
        let mut source = open(&from_file(&pb));
        assert_eq!(read(&mut source).unwrap().users.len(), 2);
        settled(&mut source);
        pb.ask("POST", "/api/backups/one.zip/restore", &Value::Null);
        let restored = poll(SOON, || {
            hinted_within(Duration::from_secs(1), &mut source)
                .then(|| read(&mut source).ok())
                .flatten()
                .filter(|it| it.users.len() == 1)
        });
        assert!(restored.is_some(), "{version:?}");
        while hinted_within(Duration::from_secs(1), &mut source) {}
        // The new file is the one that is followed.
        crate::support::eventually("PocketBase is back", || {
            let path = "/api/health";
            std::panic::catch_unwind(|| pb.request("GET", path, "", &Value::Null)).ok()
        });
        pb.user("carl", "x", "");
        assert!(hinted(&mut source), "{version:?}");
        assert_eq!(read(&mut source).unwrap().users.len(), 2);
    }
}

/// Where there are many records, it takes a while to see that a commit was for something else. What
/// comes meanwhile is not to wait for a rest from that, unless it goes on and on.
#[test]
fn a_removal_right_behind_a_write_that_is_nothing_to_us_is_noticed_at_once() {
    let pb = started(None, Users::Text, Optional::Absent);
    pb.user("ann", "x", "");
    pb.ask("POST", "/api/collections", &json!({ "name": "other", "type": "base", "fields": [] }));
    let database = rusqlite::Connection::open(pb.data_dir().join("data.db")).unwrap();
    database.busy_timeout(SOON).unwrap();
    let many = "INSERT INTO nats_users (id, username, password, role_id, active) \
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30000) \
        SELECT 'user' || i, 'user' || i, '$2a$05$' || hex(randomblob(27)), '[]', 1 FROM n";
    database.execute(many, []).unwrap();
    let mut source = open(&from_file(&pb));
    assert_eq!(read(&mut source).unwrap().users.len(), 30_001);
    settled(&mut source);
    pb.create("other", &json!({}));
    assert!(hinted(&mut source), "nobody knows what the first one is for");
    read(&mut source).unwrap();
    while hinted_within(Duration::from_millis(300), &mut source) {}
    pb.create("other", &json!({}));
    assert!(!hinted_within(Duration::from_millis(600), &mut source), "it is looked at by now");
    database.execute("UPDATE nats_users SET active = 0 WHERE username = 'ann'", []).unwrap();
    assert!(hinted_within(Duration::from_millis(1500), &mut source));
}

/// Any commit shows in the file. What it was for does not, until one has looked.
#[test]
fn writes_that_are_nothing_to_us_wake_nobody_and_hide_nothing() {
    let pb = started(None, Users::Text, Optional::Present);
    let ann = pb.user("ann", "x", "");
    let other = json!({ "name": "other", "type": "base", "fields": [] });
    pb.ask("POST", "/api/collections", &other);
    let mut source = open(&from_file(&pb));
    read(&mut source).unwrap();
    settled(&mut source);
    pb.create("other", &json!({}));
    assert!(hinted(&mut source), "nobody knows what the first one is for");
    read(&mut source).unwrap();
    while hinted_within(Duration::from_millis(300), &mut source) {}
    for _ in 0..20 {
        pb.create("other", &json!({}));
        assert!(!hinted_within(Duration::from_millis(100), &mut source));
    }

    // No `updated` tells of this one.
    let database = rusqlite::Connection::open(pb.data_dir().join("data.db")).unwrap();
    database.busy_timeout(SOON).unwrap();
    for active in [0, 1] {
        database.execute("UPDATE nats_users SET active = ?1", [active]).unwrap();
        assert!(hinted(&mut source), "it is told though the one before was in vain");
        assert_eq!(read(&mut source).unwrap().users[0].active, active == 1);
        pb.create("other", &json!({}));
        hinted_within(Duration::from_secs(1), &mut source);
        read(&mut source).unwrap();
    }
    pb.update("nats_roles", &pb.role("new", &[], &[]), &json!({ "name": "newer" }));
    assert!(hinted(&mut source), "roles count as well");
    pb.delete("nats_users", &ann);
    read(&mut source).unwrap();
    assert!(read(&mut source).unwrap().users.is_empty());
}

#[test]
fn a_data_folder_that_is_none_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| PocketBaseOptions {
        data_dir: Some(folder.path().join(path)),
        ..Default::default()
    };
    let mut missing = open(&at("missing"));
    let error = read(&mut missing).unwrap_err();
    let SourceError::NoDatabase(cause) = &error else { panic!("{error:?}") };
    assert!(cause.to_string().contains("missing/data.db"), "{cause}");
    assert!(matches!(read(&mut open(&at(""))).unwrap_err(), SourceError::NoDatabase(_)));
    write(folder.path().join("data.db"), "this is not a database\n".repeat(100));
    let error = read(&mut open(&at(""))).unwrap_err();
    assert!(matches!(error, SourceError::NotPocketBaseData { .. }), "{error:?}");
    write(folder.path().join("data.db"), "");
    let error = read(&mut open(&at(""))).unwrap_err();
    assert!(matches!(error, SourceError::NotPocketBaseData { .. }), "{error:?}");
    // It may come later.
    let mut pb = started(None, Users::Text, Optional::Present);
    pb.user("ann", "x", "");
    pb.stop();
    let mut source = open(&at("later"));
    assert!(read(&mut source).is_err());
    settled(&mut source);
    std::os::unix::fs::symlink(pb.data_dir(), folder.path().join("later")).unwrap();
    assert!(hinted(&mut source));
    assert_eq!(read(&mut source).unwrap().users.len(), 1);
}
