//! `pb-nats explain` at its edge: what it needs, how it ends, and that a real server says the same.

use serde_json::{Value, json};

use crate::{
    PB_NATS,
    support::{Nats, Pb, PbNats, SOON, SYSTEM_ACCOUNT, Setup, tool, write},
};

const PASSWORD: &str = "open sesame";

/// A PocketBase with ann, a clerk, and with bob, who is off.
fn office() -> Pb {
    let pb = Pb::start();
    let clerk = pb.create(
        "nats_roles",
        &json!({
            "id": "clerkclerkclerk", "name": "clerk",
            "publish_permissions": ["orders.>"],
            "publish_deny_permissions": ["orders.secret"],
            "subscribe_permissions": ["news.*", "jobs workers"],
        }),
    );
    pb.user("ann", PASSWORD, &clerk);
    let bob = pb.user("bob", PASSWORD, &clerk);
    pb.update("nats_users", &bob, &json!({ "active": false }));
    pb
}

/// A pb-nats that knows of that PocketBase and of no server.
fn offline(pb: &Pb) -> PbNats {
    let mut pb_nats = PbNats::new(PB_NATS);
    write(pb_nats.dir().join("token"), pb.token());
    pb_nats.set("pocketbase.url", pb.url());
    pb_nats.set("pocketbase.token_file", "token");
    pb_nats.set("nats.server_binary", "/nowhere/nats-server");
    pb_nats
}

/// Asks in short, and expects this exit code and this in stdout; of a question that cannot be decided,
/// in stderr.
#[track_caller]
fn explain(pb_nats: &PbNats, question: &str, code: i32, parts: &[&str]) {
    let words: Vec<_> = ["explain"].into_iter().chain(question.split(' ')).collect();
    let output = pb_nats.command(&words).exits(code);
    let (text, silent) =
        if code == 2 { (output.stderr, output.stdout) } else { (output.stdout, output.stderr) };
    assert_eq!(silent, "", "{question}");
    for part in parts {
        assert!(text.contains(part), "`{part}` has to be in:\n{text}");
    }
}

#[test]
fn an_answer_needs_the_records_and_nothing_else() {
    let pb = office();
    let mut pb_nats = offline(&pb);
    let line =
        "allowed by nats_roles/clerkclerkclerk \"clerk\": publish_permissions[0] \"orders.>\"";
    let (allowed, denied, undecided) = (0, 1, 2);
    for (question, code, parts) in [
        ("ann pub orders.new", allowed, &["\"ann\" may publish to \"orders.new\"\n", line][..]),
        ("ann publish orders.new", allowed, &[]),
        (
            "ann sub news.>",
            allowed,
            &["but does not get all of it", "\"news.*.>\" is denied by pb-nats"],
        ),
        ("ann sub jobs --queue workers", allowed, &["in the queue group \"workers\""]),
        ("ann sub jobs", denied, &["to change it: subscribe in the queue group `workers`"]),
        ("ann pub orders.secret", denied, &["to change it: take \"orders.secret\" out of"]),
        ("bob pub orders.new", denied, &["not active"]),
        (
            "ann",
            allowed,
            &["logs in with a password\n", "publish\n  + ", "  - ", "subscribe\n  + "],
        ),
        ("bob", denied, &["\"bob\" is not in NATS\n", "not active"]),
        ("--who-can pub orders.new", allowed, &["\"ann\"\n", line, "1 of 1 user may publish"]),
        ("--who-can sub orders.new", denied, &["0 of 1 user may subscribe"]),
        ("anm pub x", undecided, &["error: ", "hint: did you mean \"ann\"?"]),
        ("ann pub a..b", undecided, &["error: \"a..b\": it is not a subject", "hint: "]),
        ("ann pub orders.*", undecided, &["hint: ask for one"]),
        ("ann pub x --queue q", undecided, &["hint: leave the queue group out"]),
        ("ann --queue q", undecided, &["hint: "]),
        ("ann pub", undecided, &["<SUBJECT>"]),
        ("--who-can zub x", undecided, &["\"zub\" is neither"]),
        ("--who-can pub x --live", undecided, &["--live"]),
        ("ann pub x --server nats://127.0.0.1:1", undecided, &["--password-stdin"]),
        ("ann --live", undecided, &["<SUBJECT>"]),
    ] {
        explain(&pb_nats, question, code, parts);
    }

    let output = pb_nats.command(&["explain", "ann", "pub", "x", "--json"]).exits(1);
    let answer: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(
        (&answer["verdict"], &answer["because"][0]["kind"]),
        (&json!("denied"), &json!("no_line"))
    );
    for more in [&["ann"][..], &["--who-can", "pub", "orders.new"]] {
        let output = pb_nats.command(&[&["explain", "--json"], more].concat()).success();
        assert!(serde_json::from_str::<Value>(&output.stdout).unwrap().is_object());
    }

    // Names of the main config's accounts are left out of the file, and so of the answers.
    write(
        pb_nats.dir().join("main.conf"),
        "accounts { A { users: [{user: ann, password: x}] } }\n",
    );
    pb_nats.set("nats.config_file", "main.conf");
    explain(&pb_nats, "ann pub orders.new", denied, &["is used by nats-server's own config"]);
}

/// Who follows the advice is allowed by a real server, and nobody else is.
#[test]
fn what_explain_advises_helps_whom_it_is_for_and_nobody_else() {
    let pb = Pb::start();
    let device = pb.role("device", &["devices.{{username}}.temp"], &["commands.{{username}}.>"]);
    let seven = pb.user("sensor-7", PASSWORD, &device);
    pb.user("sensor-8", PASSWORD, &device);
    let mut pb_nats = offline(&pb);
    pb_nats.set("nats.server_binary", tool("nats-server", None).display().to_string());
    let role = format!("of nats_roles/{device} \"device\"");
    let own = format!("of nats_users/{seven} \"sensor-7\", for this user alone");
    for (question, field, advised, theirs) in [
        (
            "pub devices.sensor-7.humid",
            "publish_permissions",
            "devices.{{username}}.humid",
            "pub devices.sensor-8.humid",
        ),
        (
            "sub _INBOX_sensor-7.x7.*",
            "subscribe_permissions",
            "_INBOX_{{username}}.>",
            "sub _INBOX_sensor-8.x7.*",
        ),
        ("pub devices.sensor-8.temp", "publish_permissions", "devices.sensor-8.temp", ""),
    ] {
        let asked = |user: &str, question: &str| {
            let words = format!("explain {user} {question} --json --live");
            let said = pb_nats.command(&words.split(' ').collect::<Vec<_>>());
            let told: Value = serde_json::from_str(&said.stdout).unwrap();
            (said.code, told["change"].to_string().replace("\\\"", "\""))
        };
        let (code, change) = asked("sensor-7", question);
        assert_eq!(code, Some(1), "{question}");
        let shared = !theirs.is_empty();
        let (collection, id, place) =
            if shared { ("nats_roles", &device, &role) } else { ("nats_users", &seven, &own) };
        let line = format!("add {advised:?} to {field} {place}");
        assert!(change.contains(&line), "{line}: {change}");
        assert_eq!(shared, change.contains("nats_roles"), "{change}");
        assert!(!change.contains(&format!("sensor-7.humid\" to {field} {role}")), "{change}");

        let (others, _) = asked("sensor-8", question);
        let path = format!("/api/collections/{collection}/records/{id}");
        let mut list = pb.ask("GET", &path, &Value::Null)[field].clone();
        if list.is_null() {
            list = json!([]);
        }
        list.as_array_mut().unwrap().push(advised.into());
        pb.update(collection, id, &json!({ field: list }));
        assert_eq!(asked("sensor-7", question).0, Some(0), "{question}");
        assert_eq!(asked("sensor-8", question).0, others, "nobody else gains: {question}");
        if shared {
            assert_eq!(asked("sensor-8", theirs).0, Some(0), "{theirs}");
        }
    }
    for (question, advice) in [
        ("sensor-7 sub _INBOX.x7.*", "set the client's inbox prefix to \"_INBOX_sensor-7\""),
        ("sensor-7 sub _INBOX_sensor-8.>", "set the client's inbox prefix to \"_INBOX_sensor-7\""),
        ("sensor-7 pub $SYS.REQ.SERVER.PING", "leave it to nats-server"),
        ("sensor-7 pub _INBOX.x7.1", "switch on allow_response of "),
    ] {
        explain(&pb_nats, question, 1, &[advice]);
        let said = pb_nats
            .command(&["explain"].into_iter().chain(question.split(' ')).collect::<Vec<_>>());
        assert!(!said.stdout.contains(": add "), "{said:?}");
    }
}

#[test]
fn a_private_server_says_the_same_whatever_its_version() {
    let pb = office();
    let mut pb_nats = offline(&pb);
    let output = pb_nats.command(&["explain", "ann", "pub", "x", "--live"]).exits(1);
    assert!(
        output.stderr.contains("error: `/nowhere/nats-server` cannot be started\n"),
        "{output:?}"
    );
    pb_nats.set("nats.server_binary", "/bin/cat");
    let output = pb_nats.command(&["explain", "ann", "pub", "x", "--live"]).exits(1);
    assert!(output.stderr.contains("error: nats-server does not start"), "{output:?}");

    pb.update(
        "nats_roles",
        "clerkclerkclerk",
        &json!({
            "subscribe_permissions": ["news.*", "*.*.b", "jobs workers"],
            "subscribe_deny_permissions": ["news.late", "*.off.*"],
        }),
    );
    let late = "ann sub news.* --live";
    for (version, wide) in [
        (Some("2.10.26"), "\"c.*.b\"\n"),
        (Some("2.11.11"), "\"c.*.b\"\n"),
        (Some("2.12.8"), "\"c.*.b\", but does not get all"),
        (None, "\"c.*.b\", but does not get all"),
    ] {
        pb_nats.set("nats.server_binary", tool("nats-server", version).display().to_string());
        for (question, code, part) in [
            ("ann pub orders.new --live", 0, "may publish"),
            ("ann pub orders.secret --live", 1, "may not publish"),
            (late, 0, "does not get all of it"),
            ("ann sub c.*.b --live", 0, wide),
            ("ann sub jobs --live", 1, "may not subscribe"),
            ("ann sub jobs --queue workers --live", 0, "may subscribe"),
        ] {
            explain(
                &pb_nats,
                question,
                code,
                &[part, "(a nats-server of its own) says the same\n"],
            );
        }
    }
    // Nobody can log in as someone who is not in the file.
    explain(&pb_nats, "bob pub orders.new --live", 1, &["not active"]);
}

#[test]
fn the_server_in_service_is_asked_as_the_user_and_gets_no_message() {
    let pb = office();
    let nats = Nats::with(Setup { extra: SYSTEM_ACCOUNT, ..Setup::default() });
    let mut pb_nats = PbNats::between(PB_NATS, &pb, &nats);
    pb_nats.once().success();
    let live = |pb_nats: &PbNats, question: &str, password: &str| {
        let words = format!("explain {question} --live --password-stdin");
        pb_nats.command_with_input(&words.split(' ').collect::<Vec<_>>(), password)
    };
    let output = live(&pb_nats, "ann pub orders.new", PASSWORD).exits(2);
    assert!(output.stderr.contains("hint: name it: `--server"), "{output:?}");
    let output = live(&pb_nats, "ann pub orders.new --server 127.0.0.1:1", PASSWORD).exits(1);
    assert!(output.stderr.contains("error: cannot connect to"), "{output:?}");

    let server = format!("--server {}", nats.url());
    let says_the_same = format!("({}) says the same\n", nats.address);
    for (question, code) in [
        ("ann pub orders.new", 0),
        ("ann pub orders.secret", 1),
        ("ann sub news.>", 0),
        ("ann sub jobs", 1),
        ("ann sub jobs --queue workers", 0),
    ] {
        let output = live(&pb_nats, &format!("{question} {server}"), PASSWORD).exits(code);
        assert!(output.stdout.contains(&says_the_same), "{output:?}");
    }
    let output = live(&pb_nats, &format!("bob pub orders.new {server}"), PASSWORD).exits(1);
    assert!(output.stdout.contains("says the same"), "{output:?}");

    // The records have moved on, and nobody told the server.
    pb.update(
        "nats_roles",
        "clerkclerkclerk",
        &json!({
            "publish_permissions": ["bills.>"], "subscribe_permissions": ["orders.>"],
        }),
    );
    for (question, otherwise) in [
        ("ann pub orders.new", "it allows it"),
        ("ann pub bills.new", "it denies it"),
        ("ann sub orders.>", "it denies it"),
    ] {
        let output = live(&pb_nats, &format!("{question} {server}"), PASSWORD).exits(1);
        assert!(
            output.stderr.contains(&format!("says otherwise than the records: {otherwise}")),
            "{output:?}"
        );
    }
    let output = live(&pb_nats, &format!("ann pub bills.new {server}"), "wrong").exits(1);
    assert!(output.stderr.contains("it does not let the user in with this password"), "{output:?}");
    assert!(!output.stderr.contains("wrong") && !output.stdout.contains("wrong"));

    // With `system_url` the server is known; the credentials in it are not the user's.
    pb_nats.set("nats.system_url", format!("nats://{}", nats.address));
    pb_nats.set("nats.system_user", "sys");
    pb_nats.set("nats.system_password", "sys-password");
    pb_nats.once().success();
    let output = live(&pb_nats, "ann pub bills.new", PASSWORD).success();
    assert!(output.stdout.contains(&says_the_same), "{output:?}");
    // Who listens never gets what was asked about, and still gets what is sent.
    pb.update("nats_roles", "clerkclerkclerk", &json!({ "subscribe_permissions": ["bills.>"] }));
    pb_nats.once().success();
    let mut ann = nats.client("ann", PASSWORD);
    ann.subscribe("bills.>");
    ann.flush().unwrap();
    live(&pb_nats, "ann pub bills.new", PASSWORD).success();
    ann.publish("bills.sent", b"");
    assert_eq!(ann.next(SOON).unwrap().subject, "bills.sent");
}
