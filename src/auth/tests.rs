//! The pure room's tables: records in, a file and findings out.

#![expect(clippy::needless_pass_by_value, reason = "so that tables can be written with `json!`")]

use std::{collections::BTreeMap, time::Duration};

use insta::assert_snapshot;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// A well-formed hash of nobody knows what.
const HASH: &str = "$2a$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy";
/// Public nkeys.
const NKEY: &str = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";

pub(super) fn policy() -> Policy {
    Policy {
        user_collection: "nats_users".into(),
        role_collection: "nats_roles".into(),
        username_field: "username".into(),
        password_field: "password".into(),
        role_field: "role_id".into(),
        default_publish: vec!["PUBLIC.>".into()],
        default_subscribe: vec!["PUBLIC.>".into(), "_INBOX.>".into()],
        reserved: ["sys".to_owned()].into(),
        needed: None,
        login_timeout: None,
    }
}

/// A record as one would write it down; what is not said is as a new record has it.
pub(super) fn user(id: &str, fields: Value) -> UserRecord {
    let text = |key: &str| fields[key].as_str().unwrap_or_default().to_owned();
    let roles = fields["roles"].as_array().cloned().unwrap_or_default();
    UserRecord {
        id: id.into(),
        username: text("username").into(),
        password: PasswordHash(fields["password"].as_str().unwrap_or(HASH).into()),
        generated_hash: PasswordHash(text("generated_hash").into()),
        nkey: text("nkey").into(),
        roles: roles.iter().map(|it| it.as_str().unwrap().into()).collect(),
        active: fields["active"].as_bool().unwrap_or(true),
        permissions: permissions(&fields).into(),
        connection_types: fields["types"].clone().into(),
    }
}

pub(super) fn role(id: &str, name: &str, fields: Value) -> RoleRecord {
    RoleRecord {
        id: id.into(),
        name: name.into(),
        permissions: permissions(&fields),
        allow_response: fields["respond"].clone(),
        allow_response_max: fields["max"].clone(),
        allow_response_ttl: fields["ttl"].clone(),
    }
}

fn permissions(fields: &Value) -> Permissions {
    Permissions {
        publish: fields["pub"].clone(),
        subscribe: fields["sub"].clone(),
        publish_deny: fields["pubdeny"].clone(),
        subscribe_deny: fields["subdeny"].clone(),
    }
}

/// The file for these records, with what had to be left out behind it.
fn rendered(users: Vec<UserRecord>, roles: Vec<RoleRecord>) -> String {
    let snapshot = Snapshot { users, roles };
    let (desired, findings) = Desired::new(&snapshot, &policy());
    let text = render(&desired);
    assert_eq!(parse(&text), Found::Ours(Box::new(desired)), "reads back");
    findings.iter().fold(text, |text, it| text + &format!("! {it}\n"))
}

/// The lines of users, and the findings, without the rest.
fn users_of(users: Vec<UserRecord>, roles: Vec<RoleRecord>) -> String {
    let text = rendered(users, roles);
    let lines = text.lines().filter(|it| it.starts_with("    {") || it.starts_with('!'));
    let lines = lines.filter(|it| !it.contains("pb-nats-locked\","));
    lines.map(|it| it.trim().replace(HASH, "HASH") + "\n").collect()
}

#[test]
fn the_file_is_as_promised() {
    assert_snapshot!(rendered(
        vec![
            user("u1", json!({"username": "plain"})),
            user("u2", json!({"username": "admin", "roles": ["r1"]})),
            user("u3", json!({"username": "off", "roles": ["r1"], "active": false})),
        ],
        vec![role("r1", "admin", json!({"pub": [">"], "sub": [">"]})), role("r2", "unused", json!({}))],
    ), @r#"
    # Authorization for nats-server, written by pb-nats. Edits are overwritten.
    # format: 1

    authorization {
      default_permissions = {
        publish = "PUBLIC.>"
        subscribe = ["PUBLIC.>", "_INBOX.>"]
      }

      # Roles
      ADMIN = {
        publish = ">"
        subscribe = ">"
      }

      # Users
      users = [
        {user: "admin", password: "$2a$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy", permissions: $ADMIN}
        {user: "plain", password: "$2a$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy"}
      ]
    }
    "#);
}

#[test]
fn no_users_is_a_locked_server_not_an_open_one() {
    let text = rendered(vec![], vec![]);
    assert!(text.contains(r#"{user: "pb-nats-locked", password: "$2a$04$"#), "{text}");
    assert!(text.contains(r#"permissions: {publish = {deny: ">"}, subscribe = {deny: ">"}}}"#));
    let Found::Ours(desired) = parse(&text) else { panic!("not ours") };
    assert!(desired.users.is_empty(), "and the locked one is never counted");
}

#[test]
fn nothing_allowed_is_written_as_a_denial() {
    for nothing in [
        json!(null),
        json!([]),
        json!(""),
        json!({}),
        json!("x"),
        json!([1]),
        json!(["a..b"]),
        json!(7),
        json!(true),
    ] {
        let roles = vec![role("r", "r", json!({"pub": nothing, "sub": ["a"]}))];
        let text = rendered(vec![user("u", json!({"username": "ann", "roles": ["r"]}))], roles);
        assert!(
            text.contains("    publish = {deny: \">\"}\n    subscribe = \"a\"\n"),
            "{nothing}: {text}"
        );
    }
}

#[test]
fn a_denial_in_doubt_denies_its_direction() {
    for doubt in [
        json!({}),
        json!("x"),
        json!([1]),
        json!(["a..b"]),
        json!(["ok", "a b c"]),
        json!(7),
        json!(false),
        json!([">"]),
    ] {
        let fields = json!({"pub": ["a"], "pubdeny": doubt, "sub": ["s"]});
        let text = rendered(
            vec![user("u", json!({"username": "ann", "roles": ["r"]}))],
            vec![role("r", "r", fields)],
        );
        assert!(
            text.contains("    publish = {deny: \">\"}\n    subscribe = \"s\"\n"),
            "{doubt}: {text}"
        );
    }
    for none in [json!(null), json!([]), json!("")] {
        let fields = json!({"pub": ["a"], "pubdeny": none});
        let text = rendered(
            vec![user("u", json!({"username": "ann", "roles": ["r"]}))],
            vec![role("r", "r", fields)],
        );
        assert!(text.contains("    publish = \"a\"\n"), "{none}: {text}");
    }
}

#[test]
fn what_a_user_may_do_comes_from_roles_and_own_permissions() {
    let roles = || {
        vec![
            role("a", "a", json!({"pub": ["a.>"], "sub": ["x q"], "pubdeny": ["a.b"]})),
            role("b", "b", json!({"pub": ["b"], "respond": true, "max": 3, "ttl": 1.5})),
            role("c", "c", json!({"respond": 1})),
            role(
                "t",
                "t",
                json!({"pub": ["d.{{username}}.>", "i.{{id}}"], "sub": "[\"in.json.text\"]"}),
            ),
        ]
    };
    let ann = |fields: Value| {
        let mut record = json!({"username": "ann"});
        record.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        users_of(vec![user("u1", record)], roles())
    };
    assert_snapshot!(ann(json!({})), @r#"{user: "ann", password: "HASH"}"#);
    assert_snapshot!(ann(json!({"roles": ["a"]})), @r#"{user: "ann", password: "HASH", permissions: $A}"#);
    assert_snapshot!(ann(json!({"roles": ["a", "b"]})), @r#"{user: "ann", password: "HASH", permissions: {publish = {allow: ["a.>", "b"], deny: "a.b"}, subscribe = "x q", allow_responses = {max: 3, expires: "1500ms"}}}"#);
    assert_snapshot!(ann(json!({"roles": ["b", "c"]})), @r#"{user: "ann", password: "HASH", permissions: {publish = "b", subscribe = {deny: ">"}, allow_responses = {max: 3}}}"#);
    assert_snapshot!(ann(json!({"roles": ["t"]})), @r#"{user: "ann", password: "HASH", permissions: {publish = ["d.ann.>", "i.u1"], subscribe = "in.json.text"}}"#);
    assert_snapshot!(ann(json!({"roles": ["b"], "pub": ["own.{{username}}"], "pubdeny": ["b"]})), @r#"{user: "ann", password: "HASH", permissions: {publish = {allow: ["b", "own.ann"], deny: "b"}, subscribe = {deny: ">"}, allow_responses = {max: 3, expires: "1500ms"}}}"#);
    assert_snapshot!(ann(json!({"sub": ["own"]})), @r#"{user: "ann", password: "HASH", permissions: {publish = "PUBLIC.>", subscribe = ["PUBLIC.>", "_INBOX.>", "own"]}}"#);
    assert_snapshot!(ann(json!({"types": ["mqtt", "STANDARD"], "roles": ["a"]})), @r#"{user: "ann", password: "HASH", permissions: $A, allowed_connection_types: ["STANDARD", "MQTT"]}"#);
    assert_snapshot!(ann(json!({"nkey": NKEY, "roles": ["a"]})), @r#"{nkey: "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4", permissions: $A} # record "u1""#);
    assert_snapshot!(ann(json!({"roles": ["ghost"]})), @r#"! nats_users/u1 "ann": role_id "ghost": there is no role with this id; left out of NATS; choose a role that exists, or none for the default permissions"#);
    assert_snapshot!(ann(json!({"roles": ["a", "ghost"]})), @r#"! nats_users/u1 "ann": role_id "ghost": there is no role with this id; left out of NATS; choose a role that exists, or none for the default permissions"#);
}

#[test]
fn one_level_is_not_all_levels() {
    let subscribing = |to: Value| {
        let roles = vec![role("r", "r", json!({ "sub": to }))];
        let text = rendered(vec![user("u", json!({"username": "ann", "roles": ["r"]}))], roles);
        let mut rules = text.lines().skip_while(|it| !it.starts_with("  R = "));
        let finding = text.lines().any(|it| it.starts_with("! nats_roles/r"));
        (rules.nth(2).unwrap().trim().to_owned(), finding)
    };
    for (to, written, finding) in [
        (json!(["a.*"]), r#"subscribe = {allow: "a.*", deny: "a.*.>"}"#, false),
        (json!(["*"]), r#"subscribe = {allow: "*", deny: "*.>"}"#, false),
        (json!(["a.* q"]), r#"subscribe = {allow: "a.* q", deny: "a.*.>"}"#, false),
        (json!(["a.*", "a.>"]), r#"subscribe = ["a.*", "a.>"]"#, false),
        (json!(["*", ">"]), r#"subscribe = ["*", ">"]"#, false),
        (json!(["a.*.c"]), r#"subscribe = "a.*.c""#, false),
        (json!(["a.*", "a.b.c"]), r#"subscribe = ["a.*", "a.b.c"]"#, true),
        (json!(["a.*", "a.> q"]), r#"subscribe = ["a.*", "a.> q"]"#, true),
        (json!(["a.* q", "a.> q"]), r#"subscribe = ["a.* q", "a.> q"]"#, false),
        (json!(["a.* q", "a.> *"]), r#"subscribe = ["a.* q", "a.> *"]"#, false),
        (json!(["a.* q", "a.> r"]), r#"subscribe = ["a.* q", "a.> r"]"#, true),
    ] {
        assert_eq!(subscribing(to.clone()), (written.to_owned(), finding), "{to}");
    }
}

/// Older servers do not see a subject that stands below a `*` and above another one.
#[test]
fn what_is_denied_is_written_so_that_older_servers_see_it() {
    let ruling = |fields: Value| {
        let roles = vec![role("r", "r", fields)];
        let text = rendered(vec![user("u", json!({"username": "ann", "roles": ["r"]}))], roles);
        let mut rules = text.lines().skip_while(|it| !it.starts_with("  R = "));
        [rules.nth(1).unwrap().trim().to_owned(), rules.next().unwrap().trim().to_owned()]
    };
    let publish =
        |allow: Value, deny: Value| ruling(json!({"pub": allow, "pubdeny": deny}))[0].clone();
    for (denied, written) in [
        (json!(["a.*", "a.b.c"]), r#"["a.*", "a.b", "a.b.c"]"#),
        (json!(["a.*", "a.b.>"]), r#"["a.*", "a.b", "a.b.>"]"#),
        (json!(["*", "a.b", "b.*.c"]), r#"["*", "a", "a.b", "b", "b.*.c"]"#),
        (json!(["*.*", "*.b.c", "a.b.c"]), r#"["*.*", "*.b", "*.b.c", "a.b.c"]"#),
        (json!(["a.*", "a.*.c"]), r#"["a.*", "a.*.c"]"#),
        (json!(["a.*", "b.b.c"]), r#"["a.*", "b.b.c"]"#),
        (json!(["a.>", "a.b.c"]), r#"["a.>", "a.b.c"]"#),
    ] {
        let expected = format!("publish = {{allow: \"ok\", deny: {written}}}");
        assert_eq!(publish(json!(["ok"]), denied.clone()), expected, "{denied}");
        assert_eq!(
            publish(denied.clone(), json!(null)),
            format!("publish = {written}"),
            "{denied}"
        );
    }
    let subscribe = |denied: Value| ruling(json!({"sub": ["ok"], "subdeny": denied}))[1].clone();
    for (denied, written) in [
        (json!(["a.*", "a.b.c"]), r#"["a.*", "a.b", "a.b.c"]"#),
        // A group that is not named must not slip past what is denied to all.
        (json!(["a.b", "a.> q"]), r#"["a.> q", "a.b", "a.b >"]"#),
        (json!(["a.>", "a.b q"]), r#""a.>""#),
        (json!(["b", "a.b q"]), r#"["a.b q", "b"]"#),
    ] {
        let expected = format!("subscribe = {{allow: \"ok\", deny: {written}}}");
        assert_eq!(subscribe(denied.clone()), expected, "{denied}");
    }
}

#[test]
fn a_placeholder_never_widens_what_it_stands_in() {
    let roles = || {
        vec![role(
            "t",
            "t",
            json!({"pub": ["d.{{username}}", "ok"], "subdeny": ["s.{{username}}"], "sub": ["s.>"]}),
        )]
    };
    let named =
        |name: &str| users_of(vec![user("u1", json!({"username": name, "roles": ["t"]}))], roles());
    assert_snapshot!(named("*"), @r#"
    {user: "*", password: "HASH", permissions: {publish = "ok", subscribe = {deny: ">"}}}
    ! nats_users/u1 "*": publish_permissions "d.{{username}}": the user's value for its placeholder is empty or has `.`, `*`, `>`, white space or a control character; not granted; use {{id}} instead, or rename the user
    ! nats_users/u1 "*": subscribe_deny_permissions "s.{{username}}": the user's value for its placeholder is empty or has `.`, `*`, `>`, white space or a control character; denies this whole direction; use {{id}} instead, or rename the user
    "#);
    assert_snapshot!(named("ann"), @r#"{user: "ann", password: "HASH", permissions: {publish = ["d.ann", "ok"], subscribe = {allow: "s.>", deny: "s.ann"}}}"#);
}

#[test]
fn only_bcrypt_hashes_become_passwords() {
    let ok = |hash: &str| {
        users_of(vec![user("u", json!({"username": "ann", "password": hash}))], vec![])
            .starts_with('{')
    };
    let body = &HASH[7..];
    for good in ["$2a$10$", "$2b$04$", "$2x$10$", "$2y$14$"] {
        assert!(ok(&format!("{good}{body}")), "{good}");
    }
    for bad in ["", "secret", "$argon2id$v=19$m=1,t=1,p=1$aaaa$bbbb"] {
        assert!(!ok(bad), "{bad}");
    }
    for prefix in [
        " $2a$10$", "$2a$9$", "$2a$03$", "$2a$15$", "$2a$16$", "$2a$32$", "$2a$1 $", "$2c$10$",
        "$2$10$", "2a$10$", "$2a10$", "$2aa$10$", "$2a$+9$",
    ] {
        assert!(!ok(&format!("{prefix}{body}")), "{prefix}");
    }
    for bad in [
        &HASH[..59],
        &format!("{HASH}x"),
        &format!("{HASH} "),
        &format!("{}!", &HASH[..59]),
        &HASH.replace('N', "é"),
        &format!("{HASH}\n"),
    ] {
        assert!(!ok(bad), "{bad}");
    }
    for secret in [json!({"password": "open sesame"}), json!({"nkey": "SUAopensesame"})] {
        let mut record = json!({"username": "ann"});
        record.as_object_mut().unwrap().extend(secret.as_object().unwrap().clone());
        let twin = json!({"username": "bob", "nkey": record["nkey"]});
        let shown = users_of(vec![user("u", record), user("v", twin)], vec![]);
        assert!(!shown.contains("sesame"), "nor is what may be a secret shown: {shown}");
    }
}

#[test]
fn names_in_doubt_are_left_out_and_names_that_deceive_are_reported() {
    let record = |id: &str, name: &str| user(id, json!({"username": name}));
    let users = vec![
        record("1", ""),
        record("2", "a\nb"),
        record("3", "sys"),
        record("4", "pb-nats-locked"),
        record("5", NKEY),
        record("6", "twin"),
        record("7", "twin"),
        record("8", " space"),
        record("9", "zero\u{200b}width"),
        record("10", "Case"),
        record("11", "case"),
        user("12", json!({"username": "twin", "active": false})),
        record("13", "we\"ird\\$FOO {#"),
        user("14", json!({"username": "k1", "nkey": "UABC"})),
        user("15", json!({"username": "k2", "nkey": &NKEY[..55]})),
    ];
    let text = users_of(users, vec![]).replace('\u{200b}', r"\u{200b}");
    // Each finding in short: record, and what came of it.
    let short: String = text
        .lines()
        .map(|it| match it.split_once(" \"") {
            Some((at, rest)) if it.starts_with('!') => {
                format!("{at} {}\n", rest.rsplit("; ").nth(1).unwrap())
            }
            _ => format!("{it}\n"),
        })
        .collect();
    assert_snapshot!(short, @r#"
    {user: " space", password: "HASH"}
    {user: "Case", password: "HASH"}
    {user: "case", password: "HASH"}
    {user: "we\"ird\\$FOO {#", password: "HASH"}
    {user: "zero\u{200b}width", password: "HASH"}
    ! nats_users/1 left out of NATS
    ! nats_users/10 kept as it is
    ! nats_users/11 kept as it is
    ! nats_users/14 left out of NATS
    ! nats_users/15 left out of NATS
    ! nats_users/2 left out of NATS
    ! nats_users/3 left out of NATS
    ! nats_users/4 left out of NATS
    ! nats_users/5 left out of NATS
    ! nats_users/6 left out of NATS
    ! nats_users/7 left out of NATS
    ! nats_users/8 kept as it is
    ! nats_users/9 kept as it is
    "#);
}

#[test]
fn an_nkey_is_one_users_and_nobody_elses() {
    let holder = |id: &str, nkey: &str| user(id, json!({"username": id, "nkey": nkey}));
    assert!(users_of(vec![holder("ann", NKEY)], vec![]).starts_with("{nkey: "));
    let twins = users_of(vec![holder("ann", NKEY), holder("bob", NKEY)], vec![]);
    assert!(!twins.contains("{nkey: ") && twins.contains("nats_users/bob"), "{twins}");

    // Whose it is stays so, whatever else becomes of them, and until they give it up.
    let next = |former: &Desired, users: Vec<UserRecord>| {
        let (next, findings) = former.next(&Snapshot { users, roles: vec![] }, &policy());
        let effects = findings.iter().map(|it| format!("{} {}", it.id, it.effect.as_str()));
        let whose = next.users.get(NKEY).map(|it| match &it.credential {
            Credential::Nkey { record } => record.to_string(),
            Credential::Password(_) => panic!("{it:?}"),
        });
        (whose, effects.collect::<Vec<_>>().join(", "), next)
    };
    let (whose, _, alone) = next(&Desired::default(), vec![holder("ann", NKEY)]);
    assert_eq!(whose.as_deref(), Some("ann"));
    let narrower = user("ann", json!({"username": "anna", "nkey": NKEY, "pubdeny": ["PUBLIC.a"]}));
    let (whose, effects, both) = next(&alone, vec![holder("bob", NKEY), narrower]);
    assert_eq!(whose.as_deref(), Some("ann"));
    assert_eq!(effects, "ann kept as it is, bob left out of NATS");
    assert_eq!(Changes::between(&alone, &both).users_losing, [NKEY], "a rename and fewer rights");
    let inactive = user("ann", json!({"username": "ann", "nkey": NKEY, "active": false}));
    let (whose, effects, other) = next(&both, vec![holder("bob", NKEY), inactive]);
    assert_eq!((whose.as_deref(), &*effects), (Some("bob"), ""));
    let (whose, ..) = next(&other, vec![holder("bob", NKEY), holder("ann", NKEY)]);
    assert_eq!(whose.as_deref(), Some("bob"), "it is theirs now");
    let (whose, ..) = next(&other, vec![holder("eve", NKEY), holder("ann", NKEY)]);
    assert_eq!(whose, None, "there is no telling");
    let moved = Changes::between(&alone, &other);
    assert_eq!((moved.users_changed, moved.users_losing), (vec![NKEY.into()], vec![]));
    // Nobody else's name can be written there.
    let awkward = "\"\n} # record \"ann";
    let (whose, _, it) =
        next(&Desired::default(), vec![user(awkward, json!({"username": "ann", "nkey": NKEY}))]);
    assert_eq!(whose.as_deref(), Some(awkward));
    assert_eq!(parse(&render(&it)), Found::Ours(Box::new(it)));

    let policy = Policy { reserved: [NKEY.to_owned()].into(), ..policy() };
    let snapshot = Snapshot { users: vec![holder("ann", NKEY), holder("bob", "")], roles: vec![] };
    let (desired, findings) = Desired::new(&snapshot, &policy);
    assert!(desired.users.keys().map(|it| &**it).eq(["bob"]));
    assert_eq!(findings[0].problem, Problem::NameReserved);
}

#[test]
fn an_unknown_connection_type_never_means_any() {
    let types = |types: Value| {
        users_of(vec![user("u", json!({"username": "ann", "types": types}))], vec![])
    };
    for any in [json!(null), json!([]), json!("")] {
        assert_eq!(types(any), "{user: \"ann\", password: \"HASH\"}\n");
    }
    assert!(types(json!(["MQTT", "FAX"])).starts_with(
        "{user: \"ann\", password: \"HASH\", allowed_connection_types: [\"MQTT\"]}\n!"
    ));
    for nothing in [json!(["FAX"]), json!("MQTT"), json!({}), json!([1])] {
        assert!(types(nothing).starts_with('!'));
    }
}

#[test]
fn roles_get_identifiers_that_nats_server_can_have() {
    let names =
        ["users", "TIMEOUT", "a-b", "a b", "A_B", "", "1st", "日本", "include", "dup", "dup"];
    let roles: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(n, name)| role(&format!("r{n}"), name, json!({"pub": [format!("s{n}")]})))
        .collect();
    let users: Vec<_> = (0..names.len())
        .map(|n| {
            user(
                &n.to_string(),
                json!({"username": format!("u{n:02}"), "roles": [format!("r{n}")]}),
            )
        })
        .collect();
    let text = users_of(users.clone(), roles.clone());
    let used: Vec<_> =
        text.lines().map(|it| it.split_once('$').unwrap().1.trim_end_matches('}')).collect();
    assert_eq!(
        used,
        [
            "ROLE_USERS",
            "ROLE_TIMEOUT",
            "A_B_3",
            "A_B_2",
            "A_B",
            "ROLE_",
            "ROLE_1ST",
            "__",
            "ROLE_INCLUDE",
            "DUP_2",
            "DUP"
        ]
    );

    let backwards = users_of(users.into_iter().rev().collect(), roles.into_iter().rev().collect());
    assert_eq!(text, backwards, "whatever the order of records");
}

#[test]
fn responses_are_granted_as_said_or_not_at_all() {
    let respond = |fields: Value| {
        let text = rendered(
            vec![user("u", json!({"username": "ann", "roles": ["r"]}))],
            vec![role("r", "r", fields)],
        );
        text.lines().find_map(|it| it.trim().strip_prefix("allow_responses = ").map(str::to_owned))
    };
    for (fields, said) in [
        (json!({"respond": true}), Some("{max: 1}")),
        (json!({"respond": true, "max": 0, "ttl": 0}), Some("{max: 1}")),
        (json!({"respond": true, "max": 5, "ttl": 60}), Some("{max: 5, expires: \"60000ms\"}")),
        (json!({"respond": false, "max": 5}), None),
        (json!({"max": 5}), None),
        (json!({"respond": true, "max": -1}), None),
        (json!({"respond": true, "ttl": -1}), None),
        (json!({"respond": true, "ttl": 1e30}), None),
        (json!({"respond": "yes"}), None),
    ] {
        assert_eq!(respond(fields.clone()).as_deref(), said, "{fields}");
    }
}

#[test]
fn a_file_that_is_not_just_what_we_write_is_not_taken_for_it() {
    let whole = rendered(vec![user("u", json!({"username": "ann"}))], vec![]);
    let is_ours = |text: &str| matches!(parse(text), Found::Ours(_));
    assert!(is_ours(&whole) && is_ours(&format!("{whole}# a comment\n")));
    assert!(is_ours(&dated(whole.clone(), "2026-01-01T00:00:00Z", Some("abc"))));
    assert_eq!(stamp(&dated(whole.clone(), "now", Some("abc"))).as_deref(), Some("abc"));
    for edited in [
        format!("{whole}authorization {{}}\n"),
        format!("{whole}include 'x'\n"),
        whole.replace("\"PUBLIC.>\"\n", "[]\n"),
        whole.replace("publish = \"PUBLIC.>\"\n", ""),
        whole.replace("{user:", "{nme: 1, user:"),
        whole
            .replace("    {user:", "    {user: \"u\", password: \"x\"}\n    {user:")
            .replace("ann", "u"),
        whole.replace("password: \"", "password: $X, p: \""),
    ] {
        assert!(matches!(parse(&edited), Found::Torn(_)), "{edited}");
    }
    let locked = rendered(vec![], vec![]);
    let nobody = locked.lines().filter(|it| !it.contains("pb-nats-locked\","));
    let role = "FOO = {\npublish = \">\"\nsubscribe = \">\"\n}\n";
    for open in [
        nobody.collect::<Vec<_>>().join("\n"),
        locked.replace("{deny: \">\"}, subscribe", "\">\", subscribe"),
        whole.replace("default_permissions", "FOO"),
        whole.replace("  # Users", role),
        whole.replace("  # Users", &role.replace("FOO", "permissions")),
    ] {
        assert!(matches!(parse(&open), Found::Torn(_)), "it may let in more than it says: {open}");
    }
    assert_eq!(parse(" \n"), Found::Empty);
    assert_eq!(parse("authorization {}"), Found::Foreign(None));
    assert_eq!(parse(&whole.replace("# format: 1", "# format: 2")), Found::Newer(2));
    let head = whole.find("authorization").unwrap();
    for end in (head..whole.trim_end().len()).filter(|it| whole.is_char_boundary(*it)) {
        assert!(matches!(parse(&whole[..end]), Found::Torn(_)), "torn at {end}");
    }
}

#[test]
fn changes_are_of_meaning() {
    let desired = |users: Vec<UserRecord>, roles: Vec<RoleRecord>| {
        Desired::new(&Snapshot { users, roles }, &policy()).0
    };
    let ann = |roles: Value| user("u", json!({"username": "ann", "roles": roles}));
    let clerk = |name: &str, subject: &str| role("r", name, json!({"pub": [subject]}));
    let old = desired(vec![ann(json!(["r"]))], vec![clerk("clerk", "a")]);

    let same = Changes::between(&old, &old);
    assert!(same.is_empty());
    let renamed =
        Changes::between(&old, &desired(vec![ann(json!(["r"]))], vec![clerk("boss", "a")]));
    assert!(renamed.is_empty(), "the rights are the same: {renamed}");
    let wider =
        Changes::between(&old, &desired(vec![ann(json!(["r"]))], vec![clerk("clerk", "b")]));
    assert!(!wider.is_empty());
    assert_eq!(wider.to_string(), "1 role changed (\"CLERK\")");
    let without = Changes::between(&old, &desired(vec![ann(json!([]))], vec![clerk("clerk", "a")]));
    assert_eq!(without.to_string(), "1 user changed (\"ann\"), 1 role removed (\"CLERK\")");
    for (fields, said) in [
        (json!({"password": HASH.replace("$10$", "$11$")}), "1 user changed (\"ann\")"),
        (json!({"types": ["MQTT"]}), "1 user changed (\"ann\")"),
        (json!({"sub": ["own"]}), "1 user changed (\"ann\"), 1 role removed (\"CLERK\")"),
    ] {
        let mut record = json!({"username": "ann", "roles": ["r"]});
        record.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let other =
            Changes::between(&old, &desired(vec![user("u", record)], vec![clerk("clerk", "a")]));
        assert!(!other.is_empty());
        assert_eq!(other.to_string(), said);
    }
    let defaults = Rules {
        publish: Subjects::new([Subject::everything()].into(), [].into()),
        ..old.defaults.clone()
    };
    for other in [
        Desired { defaults, ..old.clone() },
        Desired { login_timeout: Some(Duration::from_secs(1)), ..old.clone() },
    ] {
        assert!(!Changes::between(&old, &other).is_empty());
    }
    let gone = Changes::between(&old, &desired(vec![], vec![]));
    assert_eq!(gone.users_removed, ["ann"]);
}

/// Else nats-server would refuse the file, and with it each removal.
#[test]
fn a_name_that_is_needed_is_there_for_a_user_or_for_nobody() {
    let needing = |names: &[&str]| {
        let needed = Some(names.iter().map(|it| (*it).to_owned()).collect());
        Policy { needed, ..policy() }
    };
    let snapshot = |active: bool| Snapshot {
        users: vec![
            user("a", json!({"username": "ann", "active": active})),
            user("b", json!({"username": "bob"})),
        ],
        ..Snapshot::default()
    };
    let locked = |it: &Desired| it.locked.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (there, findings) = Desired::new(&snapshot(true), &needing(&["ann"]));
    assert!(there.locked.is_empty() && findings.is_empty(), "{findings:?}");

    let (gone, findings) = there.next(&snapshot(false), &needing(&["ann", "nemo", "sys", ""]));
    assert_eq!(locked(&gone), ["ann", "nemo"], "`sys` is the main config's own");
    let about: Vec<_> = findings.iter().map(|it| (&*it.id, &*it.name, it.effect)).collect();
    assert_eq!(about, [("a", "ann", Effect::Locked), ("", "nemo", Effect::Locked)]);
    let changes = Changes::between(&there, &gone);
    assert_eq!(
        (&*changes.users_removed, &*changes.users_losing),
        (&["ann".into()][..], &["ann".into()][..])
    );
    assert_eq!(changes.names_locked, ["ann", "nemo"]);
    assert_eq!(locked(&there.reduced_by(&gone)), ["ann", "nemo"], "what goes back needs them too");

    let nobody = Desired { locked: gone.locked.clone(), ..Desired::default() };
    for desired in [&there, &gone, &nobody] {
        let text = render(desired);
        assert_eq!(parse(&text), Found::Ours(Box::new(desired.clone())), "{text}");
        assert!(reads_back(&text, desired).is_ok());
    }
    assert!(reads_back(&render(&there), &gone).is_err());
    let unknown = Policy { needed: None, ..policy() };
    assert_eq!(locked(&gone.next(&snapshot(false), &unknown).0), ["ann", "nemo"], "nobody knows");
    assert!(gone.next(&snapshot(false), &needing(&[])).0.locked.is_empty());
    assert!(!Changes::between(&gone, &gone.next(&snapshot(false), &needing(&[])).0).is_empty());
}

/// Who has less than before, or another key, must not go on with what there was.
#[test]
fn only_who_has_less_is_losing() {
    let losing = |old: Value, new: Value| {
        let desired = |of: Value| {
            let ann = user("a", json!({"username": "ann", "roles": ["r"]}));
            let mut fields = json!({"username": "bob", "roles": ["r"]});
            fields
                .as_object_mut()
                .unwrap()
                .extend(of["bob"].as_object().cloned().unwrap_or_default());
            let mut users = vec![ann, user("b", fields)];
            users.truncate(of["users"].as_u64().map_or(2, |it| it.try_into().unwrap()));
            let roles =
                vec![role("r", "clerk", of.clone()), role("s", "other", json!({"pub": ["a"]}))];
            Desired::new(&Snapshot { users, roles }, &policy()).0
        };
        Changes::between(&desired(old), &desired(new)).users_losing.join(" ")
    };
    for (old, new, expected) in [
        // The user alone.
        (json!({}), json!({}), ""),
        (json!({}), json!({"users": 1}), "bob"),
        (json!({"users": 1}), json!({}), ""),
        (json!({}), json!({"bob": {"password": HASH.replace("$10$", "$11$")}}), "bob"),
        (json!({}), json!({"bob": {"types": ["MQTT"]}}), "bob"),
        (json!({"bob": {"types": ["MQTT"]}}), json!({}), ""),
        (json!({"bob": {"types": ["MQTT"]}}), json!({"bob": {"types": ["STANDARD"]}}), "bob"),
        (json!({"bob": {"types": ["MQTT"]}}), json!({"bob": {"types": ["MQTT", "STANDARD"]}}), ""),
        (json!({"pub": ["a"]}), json!({"pub": ["a"], "bob": {"pub": ["own"]}}), ""),
        (json!({"pub": ["a"], "bob": {"pub": ["own"]}}), json!({"pub": ["a"]}), "bob"),
        (json!({"pub": ["a"]}), json!({"pub": ["a"], "bob": {"roles": ["s"]}}), ""),
        (json!({"pub": ["b"]}), json!({"pub": ["b"], "bob": {"roles": ["s"]}}), "bob"),
        (json!({"pub": ["a"]}), json!({"pub": ["a"], "bob": {"roles": []}}), "bob"),
        // The role of both.
        (json!({"pub": ["a"]}), json!({"pub": ["a", "b"]}), ""),
        (json!({"pub": ["a", "b"]}), json!({"pub": ["a"]}), "ann bob"),
        (json!({"pub": ["a.b"]}), json!({"pub": ["a.>"]}), ""),
        (json!({"pub": ["a.>"]}), json!({"pub": ["a.b"]}), "ann bob"),
        (json!({"pub": ["a"]}), json!({"pub": []}), "ann bob"),
        (json!({"pub": []}), json!({"pub": ["a"]}), ""),
        (json!({"sub": ["a"]}), json!({"sub": ["a q"]}), "ann bob"),
        (json!({"sub": ["a q"]}), json!({"sub": ["a"]}), ""),
        (json!({"sub": ["a"]}), json!({"sub": ["a", "b.*"]}), ""),
        (json!({"sub": ["a.>"]}), json!({"sub": ["a.>"], "subdeny": ["a.b"]}), "ann bob"),
        (json!({"sub": ["a.>"], "subdeny": ["a.b"]}), json!({"sub": ["a.>"]}), ""),
        (
            json!({"pub": ["a.>"], "pubdeny": ["a.*"]}),
            json!({"pub": ["a.>"], "pubdeny": ["a.b"]}),
            "",
        ),
        (json!({"pub": ["a"]}), json!({"pub": ["a"], "pubdeny": ["b"]}), ""),
        (json!({}), json!({"respond": true}), ""),
        (json!({"respond": true}), json!({}), "ann bob"),
        (json!({"respond": true, "max": 2}), json!({"respond": true, "max": 3}), ""),
        (json!({"respond": true, "max": 2}), json!({"respond": true, "max": 1}), "ann bob"),
        (json!({"respond": true, "ttl": 120}), json!({"respond": true}), ""),
        (json!({"respond": true}), json!({"respond": true, "ttl": 1}), "ann bob"),
    ] {
        assert_eq!(losing(old.clone(), new.clone()), expected, "{old} → {new}");
    }
}

#[test]
fn the_guard_holds_back_accidents() {
    let users = |n: usize| -> Vec<_> {
        (0..n).map(|n| user(&n.to_string(), json!({"username": format!("u{n}")}))).collect()
    };
    let snapshot = |n: usize| Snapshot { users: users(n), roles: vec![] };
    let refused = |before: usize, after: &Snapshot, max_removed, min_removed| {
        let old = Desired::new(&snapshot(before), &policy()).0;
        let new = Desired::new(after, &policy()).0;
        Changes::between(&old, &new).check(Limits { max_removed, min_removed }, after).is_err()
    };
    let half = MaxRemoved::Share(0.5);
    assert!(!refused(20, &snapshot(10), half, 10), "half is not more than half");
    assert!(refused(20, &snapshot(9), half, 10));
    assert!(!refused(18, &snapshot(9), half, 10), "below min_removed");
    assert!(!refused(5, &snapshot(1), half, 10), "few enough");
    assert!(refused(1, &snapshot(0), half, 10), "but never down to no record at all");
    assert!(!refused(0, &snapshot(0), half, 10));
    assert!(refused(20, &snapshot(15), MaxRemoved::Count(4), 1));
    assert!(!refused(20, &snapshot(16), MaxRemoved::Count(4), 1));
    let mut off = snapshot(5);
    off.users.iter_mut().for_each(|it| it.active = false);
    assert!(!refused(5, &off, half, 10), "deactivated records are ordinary removals");
}

#[test]
fn events_are_what_happened_to_records() {
    let ann = |fields: Value| user("u", fields);
    let look = |users: Vec<UserRecord>, roles: Vec<RoleRecord>| Snapshot { users, roles };
    let clerk = |subject: &str| role("r", "clerk", json!({"pub": [subject]}));
    let base = json!({"username": "ann", "roles": ["r"]});
    let old = look(vec![ann(base.clone())], vec![clerk("a")]);
    let kinds =
        |new: &Snapshot| Event::between(&old, new).iter().map(|it| it.kind).collect::<Vec<_>>();
    assert_eq!(kinds(&old), []);
    assert_eq!(kinds(&look(vec![ann(base.clone())], vec![clerk("b")])), [EventType::RoleUpdate]);
    assert_eq!(kinds(&look(vec![ann(base.clone())], vec![])), [EventType::RoleDelete]);
    assert_eq!(kinds(&look(vec![], vec![clerk("a")])), [EventType::UserDelete]);
    let off = json!({"username": "ann", "roles": ["r"], "active": false});
    assert_eq!(kinds(&look(vec![ann(off)], vec![clerk("a")])), [EventType::UserDelete]);
    let other = json!({"username": "ann", "roles": []});
    assert_eq!(kinds(&look(vec![ann(other)], vec![clerk("a")])), [EventType::UserUpdate]);
}

#[test]
fn the_login_timeout_is_written() {
    let policy = Policy { login_timeout: Some(Duration::from_mins(1)), ..policy() };
    let (desired, _) = Desired::new(&Snapshot::default(), &policy);
    let text = render(&desired);
    assert!(text.contains("\n  timeout = 60\n"), "{text}");
    assert_eq!(parse(&text), Found::Ours(Box::new(desired)));
}

/// JSON of any kind, with what matters here made likely.
fn any_json() -> impl Strategy<Value = Value> {
    let word = prop_oneof![
        Just("a.b".to_owned()),
        Just(">".to_owned()),
        Just("d.{{username}}.>".to_owned()),
        Just("x q".to_owned()),
        Just("MQTT".to_owned()),
        any::<String>(),
    ];
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word.clone().prop_map(Value::from),
        Just(json!({})),
        Just(json!([1, null, {}])),
        prop::collection::vec(word, 0..4).prop_map(Value::from),
    ]
}

fn any_permissions() -> impl Strategy<Value = Permissions> {
    (any_json(), any_json(), any_json(), any_json()).prop_map(
        |(publish, subscribe, publish_deny, subscribe_deny)| Permissions {
            publish,
            subscribe,
            publish_deny,
            subscribe_deny,
        },
    )
}

fn any_user() -> impl Strategy<Value = UserRecord> {
    let name =
        prop_oneof![Just("ann".to_owned()), Just(NKEY.to_owned()), "[a-c]{1,2}", any::<String>()];
    let hash = prop_oneof![8 => Just(HASH.to_owned()), 1 => any::<String>()];
    let nkey =
        prop_oneof![5 => Just(String::new()), 4 => Just(NKEY.to_owned()), 1 => any::<String>()];
    let roles = prop::collection::vec("r[0-3]", 0..3);
    ("[a-z]{6}", name, hash, nkey, roles, any::<bool>(), any_permissions(), any_json()).prop_map(
        |(id, username, hash, nkey, roles, active, permissions, connection_types)| UserRecord {
            id,
            username: username.into(),
            password: PasswordHash(hash.into()),
            generated_hash: PasswordHash::default(),
            nkey: nkey.into(),
            roles: roles.into(),
            active,
            permissions: permissions.into(),
            connection_types: connection_types.into(),
        },
    )
}

fn any_roles() -> impl Strategy<Value = Vec<RoleRecord>> {
    let role = (any::<String>(), any_permissions(), any_json(), any_json(), any_json());
    prop::collection::vec(role, 0..4).prop_map(|roles| {
        let numbered = roles.into_iter().enumerate();
        numbered
            .map(
                |(
                    n,
                    (name, permissions, allow_response, allow_response_max, allow_response_ttl),
                )| RoleRecord {
                    id: format!("r{n}"),
                    name,
                    permissions,
                    allow_response,
                    allow_response_max,
                    allow_response_ttl,
                },
            )
            .collect()
    })
}

/// What each user of the snapshot may do, by login.
fn rights(users: &[UserRecord], roles: &[RoleRecord]) -> BTreeMap<String, (Credential, Rules)> {
    let snapshot = Snapshot { users: users.to_vec(), roles: roles.to_vec() };
    rights_in(&Desired::new(&snapshot, &policy()).0)
}

fn rights_in(desired: &Desired) -> BTreeMap<String, (Credential, Rules)> {
    desired
        .users
        .iter()
        .map(|(login, it)| (login.to_string(), (it.credential.clone(), desired.rules(it).clone())))
        .collect()
}

proptest! {
    #[test]
    fn whatever_the_records_say_the_file_reads_back(users in prop::collection::vec(any_user(), 0..6), roles in any_roles()) {
        let (desired, _) = Desired::new(&Snapshot { users, roles }, &policy());
        let text = render(&desired);
        prop_assert_eq!(reads_back(&text, &desired), Ok(()));
        for login in desired.users.keys() {
            let mut other = desired.clone();
            other.users.remove(login);
            prop_assert!(reads_back(&text, &other).is_err(), "{} is one too many", login);
            prop_assert!(reads_back(&render(&other), &desired).is_err(), "{} is missing", login);
        }
        prop_assert_eq!(parse(&text), Found::Ours(Box::new(desired)));
    }

    #[test]
    fn the_order_of_records_says_nothing(users in prop::collection::vec(any_user(), 0..6), roles in any_roles()) {
        let told = Desired::new(&Snapshot { users: users.clone(), roles: roles.clone() }, &policy());
        let (users, roles) = (users.into_iter().rev().collect(), roles.into_iter().rev().collect());
        prop_assert_eq!(Desired::new(&Snapshot { users, roles }, &policy()), told);
    }

    /// Quarantine, not blockade.
    #[test]
    fn a_record_with_a_name_of_its_own_changes_nobody_else(users in prop::collection::vec(any_user(), 0..6), roles in any_roles(), hostile in any_user()) {
        prop_assume!(users.iter().all(|it| it.username != hostile.username && it.id != hostile.id));
        let (before, _) = Desired::new(&Snapshot { users: users.clone(), roles: roles.clone() }, &policy());
        let mut more = users.clone();
        more.push(hostile.clone());
        // As the one who wrote the file knows it, and as another one does who reads it.
        let Found::Ours(read) = parse(&render(&before)) else { panic!("it is torn") };
        let after = before.next(&Snapshot { users: more.clone(), roles: roles.clone() }, &policy());
        prop_assert_eq!(&read.next(&Snapshot { users: more, roles }, &policy()), &after);
        let (before, mut after) = (rights_in(&before), rights_in(&after.0));
        after.retain(|login, _| before.contains_key(login) || (**login != *hostile.username && **login != *hostile.nkey));
        prop_assert_eq!(before, after);
    }

    /// What is gone back to is no way around what was taken away, and takes no more away.
    #[test]
    fn what_is_reduced_has_no_more_than_the_newer_and_keeps_the_rest(
        users in prop::collection::vec(any_user(), 0..6), newer in prop::collection::vec(any_user(), 0..6),
        roles in any_roles(), others in any_roles(),
    ) {
        let (old, _) = Desired::new(&Snapshot { users, roles }, &policy());
        let (new, _) = Desired::new(&Snapshot { users: newer, roles: others }, &policy());
        let reduced = old.reduced_by(&new);
        prop_assert_eq!(Changes::between(&reduced, &new).users_losing, Vec::<String>::new());
        let losing = Changes::between(&old, &new).users_losing;
        for (login, user) in &old.users {
            if !losing.iter().any(|it| **it == **login) {
                let now = &reduced.users[login];
                prop_assert_eq!((&now.credential, reduced.rules(now)), (&user.credential, old.rules(user)));
            }
            prop_assert_eq!(reduced.users.contains_key(login), new.users.contains_key(login));
        }
        prop_assert_eq!(parse(&render(&reduced)), Found::Ours(Box::new(reduced)));
    }

    #[test]
    fn removing_a_role_gives_nobody_more(users in prop::collection::vec(any_user(), 0..6), roles in any_roles()) {
        prop_assume!(!roles.is_empty());
        let before = rights(&users, &roles);
        for (login, right) in rights(&users, &roles[..roles.len() - 1]) {
            prop_assert_eq!(before.get(&login), Some(&right));
        }
    }
}
