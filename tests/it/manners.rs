//! What the program is like to live with: plans that read like a diff, backups, a terminal.

use std::{
    fs,
    io::Read as _,
    os::unix::{ffi::OsStrExt as _, fs::symlink},
    path::Path,
    process::{Command, Stdio},
};

use rustix::pty;
use serde_json::{Value, json};

use crate::{
    PB_NATS,
    support::{
        Nats, Pb, PbNats, SYSTEM_ACCOUNT, SYSTEM_USER, Setup, eventually, says_in_force, write,
    },
};

const PASSWORD: &str = "open sesame";

/// A PocketBase with clerks, a nats-server with a system account, and pb-nats between them.
fn town(users: &[&str]) -> (Pb, Nats, PbNats, String, Vec<String>) {
    let pb = Pb::start();
    let nats = Nats::with(Setup { extra: SYSTEM_ACCOUNT, ..Setup::default() });
    let role = pb.role("clerk", &["orders.>"], &["orders.>", "_INBOX.>"]);
    let users = users.iter().map(|it| pb.user(it, PASSWORD, &role)).collect();
    let mut pb_nats = PbNats::between(PB_NATS, &pb, &nats);
    pb_nats.unset("nats.monitor_url");
    pb_nats.set("nats.system_url", nats.url());
    pb_nats.set("nats.system_user", SYSTEM_USER.0);
    pb_nats.set("nats.system_password", SYSTEM_USER.1);
    (pb, nats, pb_nats, role, users)
}

fn json_of(pb_nats: &PbNats, arguments: &[&str]) -> Value {
    let output = pb_nats.command(arguments).success();
    serde_json::from_str(&output.stdout).unwrap()
}

#[test]
fn a_plan_says_who_gains_and_loses_what_and_how_many_connections_that_touches() {
    let (pb, nats, mut pb_nats, role, users) = town(&["ann", "bob", "cleo"]);
    let plan = pb_nats.command(&["plan"]).success();
    assert_eq!(
        plan.stdout,
        r#"+ role "CLERK"
~ default permissions
    + publish "PUBLIC.>"
    + subscribe "PUBLIC.>"
    + subscribe "_INBOX.>"
+ 3 users, role "CLERK": "ann", "bob", "cleo"
    + publish "orders.>"
    + subscribe "_INBOX.>"
    + subscribe "orders.>"
touches 0 live connections; closes 0, of users who lose something
"#
    );
    pb_nats.once().success();
    let _connected = ["ann", "ann", "bob", "cleo"].map(|name| nats.client(name, PASSWORD));

    // Who only gains keeps their connections.
    let wider = json!({"publish_permissions": ["orders.>", "news"]});
    pb.update("nats_roles", &role, &wider);
    pb.update("nats_users", &users[2], &json!({"role_id": ""}));
    let plan = pb_nats.command(&["plan"]).success();
    assert_eq!(
        plan.stdout,
        r#"~ role "CLERK", of 2 users: "ann" (2 connections), "bob" (1 connection)
    + publish "news"
~ user "cleo" (1 connection), default permissions instead of role "CLERK"
    - publish "orders.>"
    - subscribe "orders.>"
    + publish "PUBLIC.>"
    + subscribe "PUBLIC.>"
touches 4 live connections; closes 1, of users who lose something
"#
    );

    pb.update("nats_users", &users[0], &json!({"active": false}));
    let plan = json_of(&pb_nats, &["plan", "--json"]);
    assert_eq!(
        plan["connections"],
        json!({"touched": 4, "closed": 3, "by_user": {"ann": 2, "bob": 1, "cleo": 1}})
    );
    assert_eq!(plan["changes"]["users_removed"], json!(["ann"]));
    let gone = plan["diff"].as_array().unwrap().last().unwrap();
    assert_eq!((&gone["change"], &gone["users"]), (&json!("removed"), &json!(["ann"])));
    assert_eq!(gone["losses"]["publish"], json!(["orders.>"]));
    assert!(!plan.to_string().contains("$2"), "no hash is shown: {plan}");

    // Without the system account nobody knows, and nothing is said.
    for setting in ["system_url", "system_user", "system_password"] {
        pb_nats.unset(&format!("nats.{setting}"));
    }
    assert_eq!(json_of(&pb_nats, &["plan", "--json"])["connections"], Value::Null);
    assert!(!pb_nats.command(&["plan"]).success().stdout.contains("connection"));
    // Where nobody answers, that is said, and the plan is no worse for it.
    pb_nats.set("nats.system_url", "nats://127.0.0.1:9");
    let plan = pb_nats.command(&["plan"]).success().stdout;
    assert!(plan.contains("- user \"ann\", role \"CLERK\"\n"), "{plan}");
    assert!(plan.contains("how many connections that touches is not known: "), "{plan}");
}

#[test]
fn a_long_plan_is_cut_for_people_and_whole_for_programs() {
    let (pb, _nats, pb_nats, role, _) = town(&[]);
    let subjects: Vec<String> = (0..30).map(|n| format!("topic.{n:02}")).collect();
    pb.update("nats_roles", &role, &json!({"publish_permissions": subjects}));
    for n in 0..12 {
        pb.user(&format!("user{n:02}"), PASSWORD, &role);
    }
    let plan = pb_nats.command(&["plan"]).success().stdout;
    assert!(plan.contains("+ 12 users, role \"CLERK\": \"user00\", "), "{plan}");
    assert!(plan.contains("\"user07\" and 4 more\n") && !plan.contains("user08"), "{plan}");
    assert!(
        plan.contains("publish \"topic.09\"\n    + publish … and 20 subjects more\n"),
        "{plan}"
    );
    let plan = json_of(&pb_nats, &["plan", "--json"]);
    let last = plan["diff"].as_array().unwrap().last().unwrap();
    assert_eq!(last["users"].as_array().unwrap().len(), 12);
    assert_eq!(last["gains"]["publish"], json!(subjects));
}

/// The names of all backups, the newest first.
fn backups(pb_nats: &PbNats) -> Vec<String> {
    let listed = json_of(pb_nats, &["backups", "list", "--json"]);
    let name = |it: &Value| it["name"].as_str().unwrap().to_owned();
    listed.as_array().unwrap().iter().map(name).collect()
}

#[test]
fn a_backup_is_restored_and_proven_and_nobody_comes_back_unasked() {
    let (pb, nats, mut pb_nats, role, users) = town(&["ann", "bob"]);
    pb_nats.set("auth_file.create_backups", true);
    let none = pb_nats.command(&["backups", "list"]).success();
    assert!(none.stdout.is_empty() && none.stderr.contains("no backups in "), "{none:?}");
    pb_nats.once().success();
    pb.update("nats_users", &users[0], &json!({"active": false}));
    pb_nats.once().success();
    pb.update("nats_roles", &role, &json!({"publish_permissions": ["orders.>", "news"]}));
    pb_nats.once().success();
    let [narrow, with_ann] = &backups(&pb_nats)[..] else { panic!("two were replaced") };
    let list = pb_nats.command(&["backups", "list"]).success().stdout;
    let lines: Vec<_> = list.lines().collect();
    assert!(
        lines[0].starts_with(narrow.as_str()) && lines[0].ends_with("1 user, 1 role"),
        "{list}"
    );
    assert!(lines[1].starts_with(with_ann.as_str()) && lines[1].ends_with("2 users, 1 role"));

    // Who only loses something loses it at once, and the file as it was is kept, whatever is set.
    pb_nats.set("auth_file.create_backups", false);
    let mut bob = nats.client("bob", PASSWORD);
    assert!(bob.may_publish("news"));
    let restored = pb_nats.command(&["backups", "restore", narrow]).success();
    assert!(
        restored
            .stdout
            .starts_with("~ role \"CLERK\", of 1 user: \"bob\"\n    - publish \"news\"\n")
    );
    assert!(restored.stdout.contains("in step, shown by the digest"), "{restored:?}");
    assert!(restored.stderr.contains("the next `pb-nats run` or `once` brings"), "{restored:?}");
    let mut bob = nats.client("bob", PASSWORD);
    assert!(!bob.may_publish("news") && bob.may_publish("orders.1"));
    assert_eq!(backups(&pb_nats).len(), 3);

    // A user who was deactivated comes back only if that is said.
    let before = fs::read(nats.auth_file()).unwrap();
    let held = pb_nats.command(&["backups", "restore", with_ann]).exits(4);
    assert_eq!(held.stdout.lines().next(), Some("+ user \"ann\", role \"CLERK\""));
    assert!(held.stderr.contains("error: the backup gives back") && held.stderr.contains("--yes"));
    assert_eq!(fs::read(nats.auth_file()).unwrap(), before);
    assert!(!nats.accepts("ann", PASSWORD));
    assert_eq!(backups(&pb_nats).len(), 3, "nothing was done");
    pb_nats.command(&["backups", "restore", with_ann, "--yes"]).success();
    assert!(nats.accepts("ann", PASSWORD) && nats.accepts("bob", PASSWORD));

    // A daemon brings the records' state back, and that is said.
    let running = pb_nats.run();
    eventually("ann is out again", || (!nats.accepts("ann", PASSWORD)).then_some(()));
    running.wait_for(says_in_force);
    let told = pb_nats.command(&["backups", "restore", with_ann]).exits(4).stderr;
    let warning =
        format!("`pb-nats run` (process {}) brings PocketBase's state back", running.pid());
    assert!(told.contains(&warning), "{told}");
}

#[test]
fn nothing_but_a_whole_backup_of_ours_is_restored() {
    let (pb, nats, pb_nats, _, users) = town(&["ann"]);
    pb_nats.once().success();
    pb.update("nats_users", &users[0], &json!({"active": false}));
    pb_nats.once().success();
    let good = backups(&pb_nats).remove(0);
    let folder = pb_nats.dir().join("backups");
    let text = fs::read_to_string(folder.join(&good)).unwrap();
    let put = |number: u8, text: &str| {
        let name = format!("auth.conf.20200101T000000.000Z-00{number}");
        write(folder.join(&name), text);
        name
    };
    let bad = [
        (put(1, &text[..text.len() / 2]), "torn or edited"),
        (put(2, "authorization { users = [] }"), "not written by pb-nats"),
        (put(3, &text.replace("# format: 1", "# format: 9")), "written by a newer pb-nats"),
        (put(4, ""), "empty"),
        // The system account has a user of that name, so nats-server refuses the config.
        (put(5, &text.replace("\"ann\"", "\"sys\"")), "nats-server rejects the new file"),
    ];
    write(folder.join("notes.conf"), &text);
    write(pb_nats.dir().join("auth.conf.20200101T000000.000Z-000"), &text);
    let link = "auth.conf.20200101T000000.000Z-006";
    symlink(folder.join(&good), folder.join(link)).unwrap();
    fs::create_dir(folder.join("auth.conf.20200101T000000.000Z-007")).unwrap();

    let before = fs::read(nats.auth_file()).unwrap();
    for (name, why) in &bad {
        let refused = pb_nats.command(&["backups", "restore", name, "--yes"]).exits(1);
        assert!(refused.stderr.contains(why) && refused.stderr.contains("hint: "), "{refused:?}");
    }
    let absolute = folder.join(&good).display().to_string();
    for name in [
        "",
        ".",
        "notes.conf",
        "../auth.conf.20200101T000000.000Z-000",
        &format!("./{good}"),
        &absolute,
        link,
        "auth.conf.20200101T000000.000Z-007",
        "auth.conf.20200101T000000.000Z-008",
        "auth.conf.20201301T000000.000Z-000",
        "a\u{1b}[31mb",
    ] {
        let refused = pb_nats.command(&["backups", "restore", name, "--yes"]).exits(1);
        assert!(refused.stderr.starts_with("error: "), "{refused:?}");
        assert!(refused.stderr.contains("there is no backup `"), "{refused:?}");
        assert!(!refused.stderr.contains('\u{1b}'), "{refused:?}");
    }
    assert_eq!(fs::read(nats.auth_file()).unwrap(), before);
    assert!(!nats.accepts("ann", PASSWORD));
    pb_nats.command(&["backups", "restore", &good, "--yes"]).success();
    assert!(nats.accepts("ann", PASSWORD), "while a good one is");
}

/// What is seen on a terminal when this is called there.
fn on_a_terminal(pb_nats: &PbNats, arguments: &[&str], variables: &[(&str, &str)]) -> String {
    watched_on_a_terminal(pb_nats, arguments, variables, |_| ())
}

/// The same, for somebody who acts on what is seen so far.
fn watched_on_a_terminal(
    pb_nats: &PbNats,
    arguments: &[&str],
    variables: &[(&str, &str)],
    watch: impl Fn(&str),
) -> String {
    let terminal = pty::openpt(pty::OpenptFlags::RDWR | pty::OpenptFlags::NOCTTY).unwrap();
    pty::grantpt(&terminal).unwrap();
    pty::unlockpt(&terminal).unwrap();
    let name = pty::ptsname(&terminal, Vec::new()).unwrap();
    let path = Path::new(std::ffi::OsStr::from_bytes(name.as_bytes()));
    let screen = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut command = Command::new(PB_NATS);
    command.arg("--config").arg(pb_nats.settings_file()).args(arguments);
    command.env_clear().env("TERM", "xterm").envs(variables.iter().copied());
    command.stdin(Stdio::null()).stdout(screen.try_clone().unwrap()).stderr(screen);
    let mut child = command.spawn().unwrap();
    // So that the terminal is gone with the program.
    drop(command);
    let (mut seen, mut terminal) = (Vec::new(), fs::File::from(terminal));
    let mut some = [0; 4096];
    // The end of a terminal is an error.
    while let Ok(length @ 1..) = terminal.read(&mut some) {
        seen.extend_from_slice(&some[..length]);
        watch(&String::from_utf8_lossy(&seen));
    }
    child.wait().unwrap();
    String::from_utf8(seen).unwrap()
}

#[test]
fn a_person_sees_colour_and_what_is_waited_for_and_a_pipe_neither() {
    let (pb, nats, mut pb_nats, _, _) = town(&["ann"]);
    let plan = on_a_terminal(&pb_nats, &["plan"], &[]);
    assert!(plan.contains("\u{1b}[32m+ user \"ann\", role \"CLERK\"\u{1b}[0m\r\n"), "{plan:?}");
    for variables in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let plain = on_a_terminal(&pb_nats, &["plan"], &[variables]);
        assert!(plain.contains("+ user \"ann\"") && !plain.contains('\u{1b}'), "{plain:?}");
    }
    let checked = on_a_terminal(&pb_nats, &["check"], &[]);
    assert!(checked.contains("\u{1b}[32m✓\u{1b}[0m "), "{checked:?}");
    assert!(!pb_nats.command(&["plan"]).success().stdout.contains('\u{1b}'));

    pb_nats.unset("nats.pid_file");
    let told = "waiting for nats-server … ";
    let (go, pid) = (nats.dir().join("go"), nats.pid());
    let slow = format!("until test -e '{}'; do sleep 0.1; done; kill -HUP {pid}", go.display());
    pb_nats.set("nats.reload_command", format!("sh -c \"{slow}\""));
    let seen = watched_on_a_terminal(&pb_nats, &["once"], &[], |seen| {
        if seen.contains(told) {
            write(&go, "");
        }
    });
    let waited = seen.find(told).expect(&seen);
    let result = seen.find("in step, shown by").expect(&seen);
    assert!(waited < result && seen[waited..result].contains("\r\u{1b}[K"), "{seen:?}");
    // Where nobody looks, or only a program, nothing is said of it.
    pb_nats.set("nats.reload_command", format!("sh -c \"sleep 3; kill -HUP {pid}\""));
    pb.user("bob", PASSWORD, "");
    let piped = pb_nats.once().success();
    assert!(!(piped.stdout + &piped.stderr).contains("waiting for"));
    pb.user("cleo", PASSWORD, "");
    let quiet = on_a_terminal(&pb_nats, &["once", "-q"], &[]);
    assert!(quiet.contains("in step") && !quiet.contains("waiting for"), "{quiet:?}");
    let error = on_a_terminal(&pb_nats, &["backups", "restore", "none"], &[]);
    assert!(error.starts_with("\u{1b}[31merror:\u{1b}[0m the auth file"), "{error:?}");
}
