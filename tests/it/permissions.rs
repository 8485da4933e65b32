//! What the file says is what nats-server enforces: each trap of its configuration, asked of a real
//! server by a real connection.

use std::{sync::Arc, time::Duration};

use nkeys::KeyPair;
use pb_nats::{
    Options,
    auth::{
        Desired, PasswordHash, Permissions, Policy, RoleRecord, Snapshot, UserRecord, dated, render,
    },
};
use serde_json::{Value, json};

use crate::support::{Login, Nats, SOON, Setup, bcrypt, tool, write};

const PASSWORD: &str = "open sesame";
/// The oldest, the youngest, and those between at which something changed.
const VERSIONS: [Option<&str>; 4] = [Some("2.10.26"), Some("2.11.11"), Some("2.12.8"), None];

fn user(name: &str, roles: &[&str]) -> UserRecord {
    UserRecord {
        id: format!("id{}", name.len()),
        username: name.into(),
        password: PasswordHash(bcrypt(PASSWORD).into()),
        roles: roles.iter().map(ToString::to_string).collect(),
        active: true,
        ..UserRecord::default()
    }
}

fn role(name: &str, publish: Value, subscribe: Value) -> RoleRecord {
    RoleRecord {
        id: name.into(),
        name: name.into(),
        permissions: Permissions { publish, subscribe, ..Permissions::default() },
        ..RoleRecord::default()
    }
}

/// The file for these records.
fn file(users: &[UserRecord], roles: &[RoleRecord]) -> String {
    let policy = Policy {
        default_publish: vec!["PUBLIC.>".into()],
        default_subscribe: vec!["PUBLIC.>".into()],
        login_timeout: Some(Duration::from_mins(1)),
        ..Policy::from(&Options::default())
    };
    let snapshot = Snapshot { users: users.to_vec(), roles: roles.to_vec() };
    render(&Desired::new(&snapshot, &policy).0)
}

/// A server of this version with the file for these records.
fn serving(version: Option<&str>, users: &[UserRecord], roles: &[RoleRecord]) -> Nats {
    Nats::with(Setup { version, auth: &file(users, roles), ..Setup::default() })
}

#[test]
fn without_users_nobody_is_let_in() {
    for version in VERSIONS {
        let nats = serving(version, &[], &[]);
        assert!(!nats.is_open(), "{version:?}");
        for password in ["", "pb-nats-locked", PASSWORD] {
            assert!(!nats.accepts("pb-nats-locked", password), "{version:?} {password:?}");
        }
        nats.load(&file(&[user("ann", &[])], &[])).unwrap();
        assert!(nats.accepts("ann", PASSWORD), "{version:?}: and it can still let someone in");
        nats.load(&file(&[], &[])).unwrap();
        assert!(!nats.is_open() && !nats.accepts("ann", PASSWORD), "{version:?}");
    }
}

#[test]
fn no_form_of_nothing_is_everything() {
    let nothings =
        [json!(null), json!([]), json!(""), json!({}), json!("x"), json!([1]), json!(["a..b"])];
    for version in VERSIONS {
        let nats = serving(version, &[], &[]);
        for nothing in &nothings {
            let roles = [
                role("pub", json!(["a"]), nothing.clone()),
                role("sub", nothing.clone(), json!(["a"])),
                role("none", nothing.clone(), nothing.clone()),
            ];
            let users = [user("p", &["pub"]), user("s", &["sub"]), user("n", &["none"])];
            nats.load(&file(&users, &roles)).unwrap();
            let may = |name: &str| {
                let mut client = nats.client(name, PASSWORD);
                let queue = client.may_subscribe_queue("b", "q");
                (
                    client.may_publish("a"),
                    client.may_subscribe("a"),
                    client.may_publish("b") || client.may_subscribe("b") || queue,
                )
            };
            assert_eq!(may("p"), (true, false, false), "{version:?} {nothing}");
            assert_eq!(may("s"), (false, true, false), "{version:?} {nothing}");
            assert_eq!(may("n"), (false, false, false), "{version:?} {nothing}");
        }
    }
}

#[test]
fn defaults_are_for_users_without_a_role_and_only_for_them() {
    for version in VERSIONS {
        let users = [user("plain", &[]), user("clerk", &["clerk"])];
        let nats = serving(version, &users, &[role("clerk", json!(["orders"]), json!([]))]);
        let (mut plain, mut clerk) =
            (nats.client("plain", PASSWORD), nats.client("clerk", PASSWORD));
        assert!(plain.may_publish("PUBLIC.x") && !plain.may_publish("orders"));
        assert!(clerk.may_publish("orders") && !clerk.may_publish("PUBLIC.x"));
        assert!(!clerk.may_subscribe("PUBLIC.x"));
    }
}

#[test]
fn a_denial_wins_over_every_permission() {
    for version in VERSIONS {
        let mut clerk = role("clerk", json!([">"]), json!([">"]));
        clerk.permissions.publish_deny = json!(["payroll.>"]);
        clerk.permissions.subscribe_deny = json!(["payroll.>"]);
        let mut own = user("own", &["clerk"]);
        Arc::make_mut(&mut own.permissions).publish = json!(["payroll.own"]);
        let mut doubt = user("doubt", &["clerk"]);
        Arc::make_mut(&mut doubt.permissions).publish_deny = json!(["a..b"]);
        let nats = serving(version, &[user("ann", &["clerk"]), own, doubt], &[clerk]);
        for name in ["ann", "own"] {
            let mut client = nats.client(name, PASSWORD);
            assert!(client.may_publish("orders") && client.may_subscribe("orders"));
            assert!(!client.may_publish("payroll.own") && !client.may_subscribe("payroll.x"));
        }
        let mut doubt = nats.client("doubt", PASSWORD);
        assert!(!doubt.may_publish("orders") && doubt.may_subscribe("orders"));
    }
}

/// Where nats-server before 2.11.12 and 2.12.4 does not see `a.b` in `a.*` beside `a.b.c`, and where
/// before 2.11.16 and 2.12.7 a queue group slips past what is denied to all but not to it.
#[test]
fn a_denial_is_not_hidden_by_another() {
    for version in VERSIONS {
        let mut clerk = role("clerk", json!([">"]), json!([">"]));
        clerk.permissions.publish_deny = json!(["a.*", "a.b.c"]);
        clerk.permissions.subscribe_deny = json!(["a.b", "a.> q"]);
        let few = role("few", json!(["a.*", "a.b.c"]), json!([]));
        let nats =
            serving(version, &[user("ann", &["clerk"]), user("fred", &["few"])], &[clerk, few]);
        let mut ann = nats.client("ann", PASSWORD);
        assert!(!ann.may_publish("a.b") && !ann.may_publish("a.x"), "{version:?}");
        assert!(ann.may_publish("a.b.d") && !ann.may_publish("a.b.c"), "{version:?}");
        for group in ["q", "r"] {
            assert!(!ann.may_subscribe_queue("a.b", group), "{version:?} {group}");
        }
        assert!(ann.may_subscribe_queue("a.x", "r") && !ann.may_subscribe_queue("a.x", "q"));
        let mut fred = nats.client("fred", PASSWORD);
        assert!(fred.may_publish("a.b") && fred.may_publish("a.b.c"), "{version:?}");
        assert!(!fred.may_publish("a.b.d"), "{version:?}");
    }
}

#[test]
fn only_what_is_a_hash_is_ever_a_password() {
    let body = &bcrypt(PASSWORD)[7..];
    let bad = [
        format!(" $2a$04${body}"),
        format!("$2a$4${body}"),
        format!("$2c$04${body}"),
        "$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA".to_owned(),
        "plain".to_owned(),
        String::new(),
        format!("$2a$04${}", &body[..52]),
        format!("$2a$03${body}"),
        format!("$2a$32${body}"),
        format!("$2a$04${body}trailing"),
    ];
    for version in VERSIONS {
        let mut users = vec![user("ann", &[])];
        for (n, hash) in bad.iter().enumerate() {
            users.push(UserRecord {
                password: PasswordHash(hash.as_str().into()),
                ..user(&format!("bad{n}"), &[])
            });
        }
        let nats = serving(version, &users, &[]);
        for (n, hash) in bad.iter().enumerate() {
            for password in [hash.as_str(), "", PASSWORD] {
                assert!(
                    !nats.accepts(&format!("bad{n}"), password),
                    "{version:?} {hash:?} {password:?}"
                );
            }
        }
        assert!(nats.accepts("ann", PASSWORD), "{version:?}: and one bad hash harms nobody else");
        for prefix in ["$2a$04$", "$2b$04$", "$2x$04$", "$2y$04$"] {
            let good = UserRecord {
                password: PasswordHash(format!("{prefix}{body}").into()),
                ..user("ann", &[])
            };
            nats.load(&file(&[good], &[])).unwrap();
            assert!(nats.accepts("ann", PASSWORD), "{version:?} {prefix}");
        }
    }
}

#[test]
fn names_survive_nats_servers_quoting() {
    let long = "x".repeat(300);
    let names = [
        "a\"b",
        "$ADMIN",
        "users",
        "back\\slash",
        "123",
        "true",
        "# // {",
        "日本 語",
        "o'brien",
        "$2a$x",
        &long,
    ];
    for version in VERSIONS {
        let users: Vec<_> =
            names.iter().map(|it| user(it, &[])).chain([user("new\nline", &[])]).collect();
        let nats = serving(version, &users, &[]);
        for name in names {
            assert!(nats.accepts(name, PASSWORD), "{version:?} {name:?}");
        }
        assert!(!nats.accepts("new\nline", PASSWORD) && !nats.accepts("new", PASSWORD));
    }
}

#[test]
fn no_role_name_breaks_the_file() {
    let names = [
        "users",
        "USER",
        "username",
        "pass",
        "password",
        "token",
        "TIMEOUT",
        "permissions",
        "default_permission",
        "default_permissions",
        "auth_callout",
        "auth_hook",
        "proxy_required",
        "include",
        "authorization",
        "nkey",
        "true",
        "a-b",
        "a b",
        "a.b",
        "",
        "1",
        "日本",
        "$x",
        "a\"b",
        "a\nb",
        "{",
        "#",
        "same",
        "same",
    ];
    for version in VERSIONS {
        let numbered = || names.iter().enumerate();
        let roles: Vec<_> = numbered()
            .map(|(n, name)| RoleRecord {
                id: format!("r{n}"),
                ..role(name, json!([format!("s{n}")]), json!([]))
            })
            .collect();
        let mut users: Vec<_> =
            numbered().map(|(n, _)| user(&format!("u{n}"), &[&format!("r{n}")])).collect();
        users.push(user("lost", &["ghost"]));
        users.push(user("plain", &[]));
        let nats = serving(version, &users, &roles);
        let mut plain = nats.client("plain", PASSWORD);
        assert!(plain.may_publish("PUBLIC.x"), "{version:?}");
        for (n, name) in numbered() {
            let mut client = nats.client(&format!("u{n}"), PASSWORD);
            assert!(client.may_publish(&format!("s{n}")), "{version:?} {name:?}");
            assert!(
                !client.may_publish(&format!("s{}", n + 1)) && !client.may_publish("PUBLIC.x"),
                "{version:?} {name:?}"
            );
            assert!(!plain.may_publish(&format!("s{n}")), "{version:?}: {name:?} is no default");
        }
        assert!(
            !nats.accepts("lost", PASSWORD),
            "{version:?}: a role that is not there is not the defaults"
        );
    }
}

#[test]
fn what_would_reject_the_whole_file_is_left_out_of_it() {
    let subjects = [
        "",
        "a b",
        "a..b",
        ".a",
        "a.",
        "a.>.b",
        "a\tb",
        "a*b",
        "c>",
        "nul\0",
        "del\u{7f}",
        "nb\u{a0}sp",
        "ok",
    ];
    for version in VERSIONS {
        let mut types = user("types", &[]);
        types.connection_types = json!(["FAX", "STANDARD", "IN_PROCESS"]).into();
        let mut fax = user("fax", &[]);
        fax.connection_types = json!(["FAX"]).into();
        let mut mqtt = user("mqtt", &[]);
        mqtt.connection_types = json!(["MQTT"]).into();
        let users = [
            user("ann", &["r"]),
            user("twin", &[]),
            user("twin", &[]),
            user("", &[]),
            types,
            fax,
            mqtt,
        ];
        let unused = role("unused", json!(["x"]), json!([]));
        let nats = serving(version, &users, &[role("r", json!(subjects), json!(subjects)), unused]);
        let mut ann = nats.client("ann", PASSWORD);
        assert!(ann.may_publish("ok") && ann.may_subscribe("ok"), "{version:?}");
        assert!(!ann.may_publish("a*b") && !ann.may_publish("c>") && !ann.may_publish("a"));
        assert!(nats.accepts("types", PASSWORD), "{version:?}");
        for nobody in ["twin", "fax", "mqtt", ""] {
            assert!(!nats.accepts(nobody, PASSWORD), "{version:?} {nobody}");
        }
    }
}

/// nats-server takes a subscription to `news.>` for an allowed `news.*`.
#[test]
fn one_level_is_not_all_levels() {
    for version in VERSIONS {
        let roles = [role("r", json!([]), json!(["news.*"])), role("w", json!([">"]), json!([]))];
        let nats = serving(version, &[user("ann", &["r"]), user("writer", &["w"])], &roles);
        let mut ann = nats.client("ann", PASSWORD);
        ann.subscribe("news.>");
        ann.flush().unwrap();
        let mut writer = nats.client("writer", PASSWORD);
        for subject in ["news.a.secret", "news.a"] {
            writer.publish(subject, b"");
        }
        writer.flush().unwrap();
        let first = ann.next(SOON).expect("what is allowed arrives");
        assert_eq!(first.subject, "news.a", "{version:?}");
    }
}

#[test]
fn queue_groups_are_kept_to() {
    for version in VERSIONS {
        let nats = serving(
            version,
            &[user("worker", &["w"])],
            &[role("w", json!(["jobs q"]), json!(["jobs q"]))],
        );
        let mut worker = nats.client("worker", PASSWORD);
        assert!(worker.may_subscribe_queue("jobs", "q"), "{version:?}");
        assert!(!worker.may_subscribe("jobs") && !worker.may_subscribe_queue("jobs", "other"));
        assert!(!worker.may_publish("jobs"), "a queue is nothing to publish to");
    }
}

#[test]
fn who_may_respond_may_do_so_and_no_more() {
    for version in VERSIONS {
        let mut service = role("service", json!([]), json!(["time"]));
        service.allow_response = json!(true);
        let asker = role("asker", json!(["time"]), json!(["_INBOX.>"]));
        let nats = serving(
            version,
            &[user("clock", &["service"]), user("ann", &["asker"])],
            &[service, asker],
        );
        let mut clock = nats.client("clock", PASSWORD);
        assert!(!clock.may_publish("anything"), "{version:?}: answers only");
        clock.subscribe("time");
        clock.flush().unwrap();
        let mut ann = nats.client("ann", PASSWORD);
        ann.subscribe("_INBOX.1");
        ann.publish_with_reply("time", "_INBOX.1", b"?");
        let question = clock.next(SOON).expect("the question arrives");
        clock.publish(question.reply.as_deref().unwrap(), b"noon");
        let answer = ann.next(SOON).expect("the answer arrives");
        assert_eq!(answer.payload, b"noon", "{version:?}");
        clock.publish("_INBOX.1", b"again");
        clock.flush().unwrap();
        assert!(
            clock.errors.iter().any(|it| it.contains("Permissions Violation")),
            "one answer is one"
        );
    }
}

#[test]
fn an_nkey_lets_in_its_holder_and_nobody_else() {
    let (key, other) = (KeyPair::new_user(), KeyPair::new_user());
    for version in VERSIONS {
        let device = UserRecord { nkey: key.public_key().into(), ..user("device", &["r"]) };
        // Whoever takes the key for a name must not reject the file, nor lock the holder out.
        let squatter = user(&key.public_key(), &[]);
        let broken = UserRecord { nkey: "UBROKEN".into(), ..user("broken", &[]) };
        let nats =
            serving(version, &[device, squatter, broken], &[role("r", json!(["d"]), json!([]))]);
        let mut client = nats.connect(Login::Nkey(&key)).unwrap();
        assert!(client.may_publish("d") && !client.may_publish("e"), "{version:?}");
        assert!(!nats.lets_in(Login::Nkey(&other)) && !nats.accepts("device", PASSWORD));
        assert!(!nats.accepts(&key.public_key(), PASSWORD) && !nats.accepts("broken", PASSWORD));
    }
}

#[test]
fn placeholders_stand_for_the_user_and_nothing_wider() {
    let devices =
        role("devices", json!(["d.{{username}}.>", "i.{{id}}"]), json!(["d.{{username}}.>"]));
    let first = role("first", json!(["{{username}}.>"]), json!(["{{username}}.>"]));
    let users = [
        user("d1", &["devices"]),
        user("*", &["devices"]),
        user(">", &["devices"]),
        user("a.b", &["devices"]),
        user("$SYS", &["first"]),
        user("_INBOX", &["first"]),
    ];
    let nats = serving(None, &users, &[devices, first]);
    let mut d1 = nats.client("d1", PASSWORD);
    assert!(d1.may_publish("d.d1.x") && d1.may_publish("i.id2") && d1.may_subscribe("d.d1.x"));
    assert!(!d1.may_publish("d.d2.x") && !d1.may_subscribe("d.*.x") && !d1.may_publish("i.id1"));
    for name in ["*", ">", "a.b"] {
        let mut client = nats.client(name, PASSWORD);
        assert!(
            !client.may_publish("d.d1.x")
                && !client.may_subscribe("d.d1.x")
                && !client.may_publish("d.a.b.x"),
            "{name}"
        );
        assert!(
            client.may_publish(&format!("i.id{}", name.len())),
            "{name} keeps what is not in doubt"
        );
    }
    for name in ["$SYS", "_INBOX"] {
        let mut client = nats.client(name, PASSWORD);
        assert!(
            !client.may_subscribe(&format!("{name}.x"))
                && !client.may_publish(&format!("{name}.x"))
        );
    }
}

#[test]
fn a_torn_file_never_opens_the_server() {
    let whole =
        dated(file(&[user("ann", &["r"])], &[role("r", json!(["a"]), json!(["a"]))]), "now", None);
    let nats = serving(None, &[user("ann", &[])], &[]);
    for end in (0..whole.len()).step_by(7).chain([whole.len() - 1]) {
        // Refused or not, nobody without a password is let in.
        let _ = nats.load(&whole[..end]);
        assert!(!nats.is_open(), "torn at {end}");
    }
    nats.load(&whole).unwrap();
    assert!(nats.accepts("ann", PASSWORD));
}

#[test]
fn the_file_stands_alone_and_ten_thousand_subjects_fit() {
    let subjects: Vec<_> = (0..10_000).map(|n| format!("s.{n}")).collect();
    let text = file(&[user("ann", &["r"])], &[role("r", json!(subjects), json!(["a"]))]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("auth.conf");
    for version in VERSIONS {
        write(&path, &text);
        let judged = std::process::Command::new(tool("nats-server", version))
            .arg("-t")
            .arg("-c")
            .arg(&path)
            .output()
            .unwrap();
        assert!(
            judged.status.success(),
            "{version:?}: {}",
            String::from_utf8_lossy(&judged.stderr)
        );
    }
    let nats = Nats::with(Setup { auth: &text, ..Setup::default() });
    let mut ann = nats.client("ann", PASSWORD);
    assert!(ann.may_publish("s.9999") && !ann.may_publish("s.10000"));
}
