//! `pb-nats user` and `pb-nats role`.

use std::fs;

use serde_json::{Value, json};

use crate::{
    init::{Init, ended, record},
    status::town,
    support::{Optional, Output, Pb, PbNats, SUPERUSER, Signal, Users, write},
};

/// None: the default one, which is the latest.
const VERSIONS: [Option<&str>; 3] = [Some("0.23.12"), Some("0.28.4"), None];

/// The hash by which NATS will let the user in.
fn hash(init: &Init, name: &str) -> Option<String> {
    let file = init.run(&["render"]).success().stdout;
    let line = file.lines().find(|it| it.contains(&format!("{{user: {name:?}, ")))?;
    Some(line.split('"').nth(3).unwrap().to_owned())
}

fn lets_in(init: &Init, name: &str, password: &str) -> bool {
    hash(init, name).is_some_and(|it| bcrypt::verify(password, &it).unwrap())
}

/// Runs a `user` command as superuser, with this on its stdin.
fn user(init: &Init, arguments: &[&str], input: &str) -> Output {
    let mut command = init.command(&[&["user"], arguments].concat());
    command.env("PB_NATS_SUPERUSER", SUPERUSER.0).env("PB_NATS_SUPERUSER_PASSWORD", SUPERUSER.1);
    ended(&mut command, input)
}

fn listed(init: &Init) -> Vec<Value> {
    let list = init.run(&["user", "list", "--json"]).success().stdout;
    serde_json::from_str(&list).unwrap()
}

/// As the dashboard does it.
fn set_password(pb: &Pb, id: &str, password: &str) {
    let both = json!({ "password": password, "passwordConfirm": password });
    pb.update("nats_users", id, &both);
}

fn id_of(pb: &Pb, name: &str) -> String {
    let users = pb.ask("GET", "/api/collections/nats_users/records", &Value::Null);
    let user = users["items"].as_array().unwrap().iter().find(|it| it["username"] == name);
    user.unwrap()["id"].as_str().unwrap().to_owned()
}

/// It is cheap to check, and ends as soon as anybody sets another one, by whichever way.
#[test]
fn a_generated_password_is_cheap_and_ends_with_the_next_one() {
    for version in VERSIONS {
        let pb = Pb::empty(version);
        let init = Init::of(&pb);
        init.init(&[]).success();
        let made = user(&init, &["add", "ann", "--role", "device", "--generate"], "").success();
        let secret = made.stdout.trim().to_owned();
        assert_eq!((made.stdout.lines().count(), secret.len()), (1, 26), "{version:?}");
        assert!(!made.stderr.contains(&secret) && made.stderr.contains("cost 4"));
        assert!(
            lets_in(&init, "ann", &secret) && hash(&init, "ann").unwrap().starts_with("$2b$04$")
        );

        // As somebody does in the dashboard, who sees nothing of all this.
        set_password(&pb, &id_of(&pb, "ann"), "typed by hand");
        assert!(!lets_in(&init, "ann", &secret), "{version:?}");
        assert!(lets_in(&init, "ann", "typed by hand"));
        assert_eq!(listed(&init)[0]["cost"], 10);
        // Nor does it come back when it is set to the same again: the hash is another one.
        set_password(&pb, &id_of(&pb, "ann"), &secret);
        assert!(lets_in(&init, "ann", &secret) && listed(&init)[0]["cost"] == 10, "{version:?}");

        let changed = user(&init, &["passwd", "ann", "--generate", "--json"], "").success().stdout;
        let changed: Value = serde_json::from_str(&changed).unwrap();
        let second = changed["password"].as_str().unwrap();
        assert_eq!(changed["cost"], 4);
        assert!(lets_in(&init, "ann", second) && !lets_in(&init, "ann", &secret), "{version:?}");
        user(&init, &["passwd", "ann", "--password-stdin"], "chosen one\n").success();
        assert!(
            lets_in(&init, "ann", "chosen one") && !lets_in(&init, "ann", second),
            "{version:?}"
        );
    }
}

/// Who may write their own record cannot set a cheap hash for themselves or others.
#[test]
fn the_cheap_hash_counts_only_for_the_password_that_is_set() {
    let pb = Pb::empty(None);
    let init = Init::of(&pb);
    init.init(&[]).success();
    user(&init, &["add", "ann", "--role", "device", "--password-stdin"], "ann's password")
        .success();
    let own = hash(&init, "ann").unwrap();
    let cheap = bcrypt::hash("other", 4).unwrap();
    for wrong in [
        cheap.clone(),
        format!("{cheap} "),
        format!("{cheap} {}", own.replace("$2a$", "$2b$")),
        format!("plain {own}"),
        format!(" {own}"),
        own.clone(),
    ] {
        pb.update("nats_users", &id_of(&pb, "ann"), &json!({ "generated_hash": wrong }));
        assert_eq!(hash(&init, "ann").as_ref(), Some(&own), "{wrong}");
    }
    let right = format!("{cheap} {own}");
    pb.update("nats_users", &id_of(&pb, "ann"), &json!({ "generated_hash": right }));
    assert_eq!(hash(&init, "ann"), Some(cheap));
}

/// Whatever the collection is like.
#[test]
fn users_are_made_in_collections_of_every_kind() {
    for (kind, name, cost) in [
        (Users::Text, "ann", 4),
        (Users::Password, "ann", 5),
        (Users::AuthByEmail, "ann@example.com", 10),
    ] {
        let pb = Pb::with(kind, Optional::Absent);
        pb.role("r", &["a"], &["a"]);
        let init = Init::of(&pb);
        init.init(&[]).success();
        let made = user(&init, &["add", name, "--role", "r", "--generate"], "").success();
        assert!(made.stderr.contains(&format!("cost {cost}")), "{kind:?}: {}", made.stderr);
        assert!(lets_in(&init, name, made.stdout.trim()), "{kind:?}");
        let can_be_cheaper = made.stderr.contains("hint: PocketBase hashes");
        assert_eq!(can_be_cheaper, cost > 4, "{kind:?}: {}", made.stderr);
        let typed = ["add", &format!("x{name}"), "--role", "r", "--password-stdin"];
        user(&init, &typed, "typed by hand").success();
        assert!(lets_in(&init, &format!("x{name}"), "typed by hand"), "{kind:?}");
        assert!(!lets_in(&init, &format!("x{name}"), "typed by han"), "{kind:?}");
        if can_be_cheaper {
            let users = pb.ask("GET", "/api/collections/nats_users", &Value::Null);
            let mut fields = users["fields"].clone();
            let hidden = json!({ "name": "generated_hash", "type": "text", "hidden": true });
            fields.as_array_mut().unwrap().push(hidden);
            pb.ask("PATCH", "/api/collections/nats_users", &json!({ "fields": fields }));
            init.init(&[]).success();
            let changed = user(&init, &["passwd", name, "--generate"], "").success();
            assert!(changed.stderr.ends_with("cost 4\n"), "{kind:?}: {}", changed.stderr);
            assert!(lets_in(&init, name, changed.stdout.trim()), "{kind:?}");
        }
    }
}

/// An app's own `users`, whom PocketBase does not take without an email.
#[test]
fn who_needs_an_email_is_given_one() {
    for version in VERSIONS {
        let mut pb = Pb::empty(version);
        pb.create_collections(Users::Auth, Optional::Absent);
        let users = pb.ask("GET", "/api/collections/nats_users", &Value::Null);
        let mut fields = users["fields"].clone();
        let email = fields.as_array_mut().unwrap().iter_mut().find(|it| it["name"] == "email");
        email.unwrap()["required"] = true.into();
        pb.ask("PATCH", "/api/collections/nats_users", &json!({ "fields": fields }));
        pb.role("r", &["a"], &["a"]);
        let init = Init::of(&pb);
        init.init(&[]).success();

        let add = |more: &[&str]| {
            user(&init, &[&["add", "ann", "--role", "r", "--generate"], more].concat(), "")
        };
        let refused = add(&[]).exits(2);
        assert!(refused.stderr.contains("error: a user in `nats_users` needs an email\n"));
        assert!(refused.stderr.contains("hint: add `--email ADDRESS`"), "{}", refused.stderr);
        let wrong = add(&["--email", "nonsense"]).exits(1);
        assert!(wrong.stderr.contains("email"), "{}", wrong.stderr);
        let made = add(&["--email", "ann@example.com"]).success();
        assert!(lets_in(&init, "ann", made.stdout.trim()), "{version:?}");
        let records = pb.ask("GET", "/api/collections/nats_users/records", &Value::Null);
        assert_eq!(records["items"][0]["email"], "ann@example.com", "{version:?}");
        assert_eq!(records["totalItems"], 1);
    }
    for (kind, name, told) in [
        (Users::Text, "ann", "`nats_users` has no field `email`"),
        (Users::AuthByEmail, "ann@example.com", "in `nats_users` the name is the email"),
    ] {
        let pb = Pb::with(kind, Optional::Absent);
        pb.role("r", &["a"], &["a"]);
        let init = Init::of(&pb);
        init.init(&[]).success();
        let email = ["add", name, "--role", "r", "--generate", "--email", "ann@example.com"];
        let refused = user(&init, &email, "").exits(2);
        assert!(refused.stderr.contains(told) && refused.stderr.contains("hint: leave `--email`"));
        assert_eq!(listed(&init), [] as [Value; 0]);
    }
}

#[test]
fn names_may_be_odd_but_not_of_no_use_to_nats() {
    let pb = Pb::empty(None);
    let init = Init::of(&pb);
    write(
        init.path("n.conf"),
        "port: 4222\naccounts { SYS { users = [ {user: sys, password: s} ] } }\nsystem_account: SYS\n",
    );
    init.init(&["--nats-config", "n.conf"]).success();
    let odd = ["a'b", "a\"b\\", "' || 1=1 || '", "päul 🐈", "{{username}}", "$2a$10$", "-x"];
    for name in odd {
        user(&init, &["add", "--role", "observer", "--generate", "--", name], "").success();
        user(&init, &["passwd", "--generate", "--", name], "").success();
        assert!(hash(&init, name).is_some(), "{name}");
    }
    let users = || listed(&init).len();
    assert_eq!(users(), odd.len());
    for (name, told) in [
        ("", "no name"),
        ("a\nb", "control characters"),
        ("pb-nats-locked", "used by"),
        ("sys", "used by"),
        ("a'b", "already"),
    ] {
        let refused = user(&init, &["add", name, "--role", "observer", "--generate"], "").exits(2);
        assert!(refused.stderr.contains(told), "{name}: {}", refused.stderr);
        assert!(refused.stderr.contains("\nhint: ") && refused.stdout.is_empty());
        assert!(refused.stderr.matches("choose another name").count() < 2, "told once");
    }
    assert_eq!(users(), odd.len());
    let table = init.run(&["user", "list"]).success().stdout;
    assert_eq!(table.lines().count(), odd.len() + 1, "{table}");
}

#[test]
fn what_is_wrong_is_told_before_anything_is_made() {
    let pb = Pb::empty(None);
    let init = Init::of(&pb);
    init.init(&[]).success();
    for (arguments, input, parts) in [
        (&["add", "ann", "--role", "devise", "--generate"][..], "", &["devise", "`device`"][..]),
        (&["add", "ann", "--generate"], "", &["needs a role", "device, "]),
        (&["add", "ann", "--role", "device"], "x", &["no terminal", "--generate"]),
        (&["add", "ann", "--role", "device", "--password-stdin"], "", &["empty"]),
        (&["passwd", "ann", "--generate"], "", &["no users", "ann", "user list"]),
        (&["passwd", "ann", "--generate", "--password-stdin"], "x", &["--help"]),
        (&["passwd", "ann", "--superuser-password-stdin", "--password-stdin"], "x", &["--help"]),
    ] {
        let refused = user(&init, arguments, input).exits(2);
        for part in parts {
            assert!(refused.stderr.contains(part), "{arguments:?}: {}", refused.stderr);
        }
        assert_eq!(refused.stdout, "");
    }
    let wrong = init
        .run_as((SUPERUSER.0, "wr0ng"), &["user", "add", "a", "--role", "device", "--generate"]);
    let wrong = wrong.exits(1);
    assert!(wrong.stderr.contains("superuser upsert") && wrong.stdout.is_empty());
    let nobody =
        ended(&mut init.command(&["user", "add", "a", "--role", "device", "--generate"]), "");
    nobody.exits(2);
    assert_eq!(listed(&init), [] as [Value; 0]);
}

/// By the records alone nobody knows it.
#[test]
fn a_user_is_listed_as_in_force_where_the_servers_show_it_and_nowhere_else() {
    let (pb, nats, mut pb_nats, ann) = town();
    pb.create("nats_users", &json!({ "username": "bob", "password": "?", "active": true }));
    let list = |pb_nats: &PbNats| {
        let Output { stdout, stderr, .. } = pb_nats.command(&["user", "list"]).success();
        let ann = stdout.lines().find(|it| it.starts_with("ann ")).unwrap().to_owned();
        (ann, stderr)
    };
    // There is a file without users, which nats-server runs, and no daemon.
    let (row, told) = list(&pb_nats);
    assert!(row.contains(" not yet in the auth file "), "{row}");
    assert!(told.contains("warning: the auth file is not proven to be in force"), "{told}");
    pb_nats.once().success();
    let (row, told) = list(&pb_nats);
    assert!(row.contains(" in force ") && told.is_empty(), "{row} {told}");
    let json = pb_nats.command(&["user", "list", "--json"]).success().stdout;
    let json: Vec<Value> = serde_json::from_str(&json).unwrap();
    let standings: Vec<&Value> = json.iter().map(|it| &it["standing"]).collect();
    assert_eq!(standings, ["in_force", "absent"]);

    nats.signal(Signal::STOP);
    let (row, told) = list(&pb_nats);
    assert!(row.contains(" in the auth file ") && told.contains("not in step"), "{row} {told}");
    nats.signal(Signal::CONT);
    pb.update("nats_users", &ann, &json!({ "active": false }));
    let (row, told) = list(&pb_nats);
    assert!(row.contains(" inactive, still in the auth file ") && told.is_empty(), "{row} {told}");
    pb.update("nats_users", &ann, &json!({ "active": true }));
    let role = pb.ask("GET", "/api/collections/nats_roles/records", &Value::Null);
    let role = role["items"][0]["id"].as_str().unwrap();
    pb.update("nats_roles", role, &json!({ "publish_permissions": ["orders.new"] }));
    let (row, _) = list(&pb_nats);
    assert!(row.contains(" not yet in the auth file "), "with other rights: {row}");
    pb_nats.once().success();

    let monitor = nats.monitor_url();
    pb_nats.unset("nats.monitor_url");
    let (row, told) = list(&pb_nats);
    assert!(row.contains(" in the auth file ") && told.contains("nothing to ask"), "{row} {told}");
    pb_nats.set("nats.monitor_url", monitor);
    assert!(list(&pb_nats).0.contains(" in force "));
    let config = fs::read_to_string(nats.config_file()).unwrap();
    let behind =
        format!("{config}\nauthorization {{ users = [ {{user: \"x\", password: \"y\"}} ] }}\n");
    write(nats.config_file(), behind);
    let (row, told) = list(&pb_nats);
    assert!(row.contains(" in the auth file "), "{row}");
    assert!(told.contains("stands behind the include"), "{told}");
}

/// With the service account alone.
#[test]
fn the_lists_show_how_nats_has_them_and_why_not() {
    let pb = Pb::empty(None);
    let init = Init::of(&pb);
    init.init(&[]).success();
    let own = pb.role("own", &["a"], &[]);
    let other = pb.role("other", &[], &["b"]);
    let nkey = nkeys::KeyPair::new_user().public_key();
    let with = |name: &str, roles: &[&str], more: Value| {
        let mut made = record(name, "");
        made["role_id"] = json!(roles);
        made.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        made
    };
    for record in [
        with("ann", &[&own, &other], json!({ "active": true })),
        with("bob", &[&own], json!({})),
        with("dan", &[&other], json!({ "active": true, "nkey": nkey })),
        with("eve", &[&other], json!({ "active": true, "nkey": "nonsense" })),
        with("pb-nats-locked", &[&own], json!({ "active": true })),
    ] {
        pb.create("nats_users", &record);
    }
    let list = ended(&mut init.command(&["user", "list", "--json"]), "").success().stdout;
    let list: Vec<Value> = serde_json::from_str(&list).unwrap();
    let short = |it: &Value| {
        json!([
            it["name"],
            it["state"],
            it["credential"],
            it["cost"],
            it["roles"],
            it["why"] != json!([])
        ])
    };
    assert_eq!(
        list.iter().map(short).collect::<Vec<_>>(),
        [
            json!(["ann", "active", "password", 10, ["own", "other"], false]),
            json!(["bob", "inactive", "password", null, ["own"], false]),
            json!(["dan", "active", "nkey", null, ["other"], false]),
            json!(["eve", "left_out", "nkey", null, ["other"], true]),
            json!(["pb-nats-locked", "left_out", "password", null, ["own"], true]),
        ]
    );
    let table = ended(&mut init.command(&["user", "list"]), "").success().stdout;
    assert!(table.contains("pb-nats-locked  left out  "), "{table}");
    assert!(table.contains("\n  username: the name is used by nats-server's own"), "{table}");
    let roles = ended(&mut init.command(&["role", "list", "--json"]), "").success().stdout;
    let roles: Vec<Value> = serde_json::from_str(&roles).unwrap();
    let own = roles.iter().find(|it| it["name"] == "own").unwrap();
    assert_eq!((&own["users"], &own["publish"]), (&json!(3), &json!(["a"])));
}

/// By whatever its role loses to it; and whoever only loses a part of it is told.
#[test]
fn a_name_by_which_a_user_could_do_nothing_is_refused_at_once() {
    let pb = Pb::empty(None);
    let init = Init::of(&pb);
    init.init(&[]).success();
    let add = |name: &str, role: &str| {
        user(&init, &["add", "--role", role, "--generate", "--", name], "")
    };
    for name in ["a.b", "a b", "*", "a>"] {
        let refused = add(name, "device").exits(2);
        let told = ["could do nothing in NATS", "devices.{{username}}.>", "hint: use {{id}}"];
        for part in told {
            assert!(refused.stderr.contains(part), "{name}: {}", refused.stderr);
        }
        assert_eq!(refused.stdout, "");
    }
    assert_eq!(listed(&init), [] as [Value; 0]);
    let made = add("a.b", "service").success();
    assert!(made.stderr.contains("note: ") && made.stderr.contains("_INBOX_{{username}}.>"));
    // Where the role has the id, any name will do.
    pb.role("by-id", &["devices.{{id}}.>"], &["_INBOX_{{id}}.>"]);
    for (name, role) in [("a-b", "device"), ("c.d", "by-id"), ("sensor-7", "service")] {
        let made = add(name, role).success();
        assert!(!made.stderr.contains("note: "), "{name}: {}", made.stderr);
    }
}

/// What PocketBase makes of the record counts, and not what was asked for.
#[test]
fn by_what_a_new_user_has_less_is_told_with_the_password() {
    let pb = Pb::empty(None);
    let init = Init::of(&pb);
    init.init(&[]).success();
    pb.role("idle", &[], &[]);
    pb.role("faulty", &["a..b"], &["own"]);
    let told = |arguments: &[&str], parts: &[&str]| {
        let said = user(&init, &[arguments, &["--generate"]].concat(), "").success();
        for part in parts {
            assert!(said.stderr.contains(part), "{arguments:?}: {}", said.stderr);
        }
        assert_eq!(said.stdout.lines().count(), 1, "the password is there all the same");
        assert_eq!(said.stderr.contains("note: "), !parts.is_empty(), "{}", said.stderr);
    };
    told(&["add", "ann", "--role", "device"], &[]);
    told(&["add", "Ann", "--role", "device"], &["note: ", "differs only in case"]);
    told(&["add", "bob", "--role", "idle"], &["note: ", "their roles allow nothing"]);
    told(&["add", "cat", "--role", "faulty"], &["note: ", "\"faulty\"", "\"a..b\""]);
    told(&["passwd", "ann"], &["differs only in case"]);
    pb.update("nats_users", &id_of(&pb, "bob"), &json!({ "active": false }));
    told(&["passwd", "bob"], &["note: ", "not in NATS", "switch `active` on"]);
    let nkey = nkeys::KeyPair::new_user().public_key();
    pb.update("nats_users", &id_of(&pb, "cat"), &json!({ "nkey": nkey }));
    told(&["passwd", "cat"], &["by their nkey"]);

    let json = user(&init, &["passwd", "bob", "--generate", "--json"], "").success().stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["notes"].as_array().unwrap().len(), 1, "{json}");

    // The field need not be required, and then the settings say what it means to have no role.
    let users = pb.ask("GET", "/api/collections/nats_users", &Value::Null);
    let mut fields = users["fields"].clone();
    let role = fields.as_array_mut().unwrap().iter_mut().find(|it| it["name"] == "role_id");
    role.unwrap()["required"] = false.into();
    pb.ask("PATCH", "/api/collections/nats_users", &json!({ "fields": fields }));
    told(&["add", "dan"], &["note: ", "no role", "[permissions] gives nothing"]);
}

/// Nothing slows down who guesses at nats-server.
#[test]
fn a_password_that_is_guessed_or_mistyped_is_refused() {
    let pb = Pb::empty(None);
    let init = Init::of(&pb);
    init.init(&[]).success();
    user(&init, &["add", "hannelore", "--role", "device", "--password-stdin"], "eight ch\n")
        .success();
    let before = hash(&init, "hannelore");
    for (password, told) in [
        ("abcd", "fewer than 8"),
        ("seven c\n", "fewer than 8"),
        ("ääääää", "fewer than 8"),
        ("Hannelore", "own name"),
        ("long enough ", "white space"),
        (" long enough", "white space"),
        ("long enough\r\r\n", "control characters"),
        ("long\tenough", "control characters"),
        ("long\0enough", "control characters"),
        ("two lines\nof a file\n", "control characters"),
        ("", "empty"),
        (&"x".repeat(73), "longer than 72 bytes"),
        (&"ä".repeat(37), "longer than 72 bytes"),
    ] {
        for command in [
            &["add", "hannelore2", "--role", "device", "--password-stdin"][..],
            &["passwd", "hannelore", "--password-stdin"],
        ] {
            // What is the one's own name is not the other's.
            if told == "own name" && command[0] == "add" {
                continue;
            }
            let refused = user(&init, command, password).exits(2);
            assert!(refused.stderr.contains(told), "{password:?}: {}", refused.stderr);
            assert!(refused.stderr.contains("\nhint: "), "{password:?}: {}", refused.stderr);
            assert!(password.len() < 8 || !refused.stderr.contains(password));
        }
    }
    assert_eq!((listed(&init).len(), hash(&init, "hannelore")), (1, before));
    for password in ["Hannelore7", "ä b c d e", &"ä".repeat(36), "x".repeat(71).as_str()] {
        user(&init, &["passwd", "hannelore", "--password-stdin"], password).success();
        assert!(lets_in(&init, "hannelore", password), "{password}");
    }

    // What `hash` is for it does not know, so it makes the hash, and says so.
    for (password, told) in [("abcd", "fewer than 8"), ("long enough ", "white space")] {
        let said = ended(&mut init.command(&["hash", "--cost", "4"]), password).success();
        assert!(bcrypt::verify(password, said.stdout.trim()).unwrap());
        assert!(said.stderr.contains("warning: ") && said.stderr.contains(told), "{}", said.stderr);
    }
    let said = ended(&mut init.command(&["hash", "--cost", "4"]), "long enough").success();
    assert_eq!(said.stderr, "");
}
