//! The operator's main config: it is read as nats-server reads it, or not called understood; and what of
//! it decides who gets in is found.

use std::{
    fs,
    net::TcpListener,
    process::{Command, Stdio},
};

use nkeys::KeyPair;
use pb_nats::{
    auth::{Desired, conf::Node, render},
    engine::config::MainConfig,
};
use ring::digest;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    PB_NATS,
    support::{
        Login, Nats, Optional, Pb, PbNats, Process, SOON, Setup, Users, eventually, tool, write,
    },
};

const PASSWORD: &str = "open sesame";
const OLDEST: Option<&str> = Some("2.10.26");

/// What nats-server takes, to the last byte; each has what its reader has a rule of its own for.
const UNDERSTOOD: &[&str] = &[
    r#"a: "\xc3\xa9 \xff \x41\n\t\"\\""#,
    "a: 'raw \\n é # // $X { \n second line'",
    "a: \\x41b\\n, b: x\\\"y; c: é",
    "a: $b'\nb: [\"x\" # comment\n // another\n \"y\"\n\n 'z',]",
    "a: word{with[(\"=:things\nb: #no-comment\nc = //neither",
    "a: (\n block { ) string\n )\n ) \n)\nb: 1",
    "a: (\n to the end\n)",
    "a: 1, b: 1k; c: 1KB\nd: 1Mib\ne: -1g\nf: -1.5\ng: 12.25\nh: 0",
    "a: 127.0.0.1:4222\nb: 1.2.3-4\nc: 0.0.0.0:-1\nd: 12]ab\ne: 12ab",
    "a: [1k]\nb: [-1]\nc: [1.5]\nd: [1 , 2 ]\ne: [1.2.3.4:5]\n",
    "a: 2016-05-04T18:53:41Z\nb: [2016-05-04T18:53:41Z]",
    "a: true, b: OFF, c: Yes\nd: \"true\"\ne: [no]\nf: trueish\n",
    "a: $2a$04$abcdefg\nb: \"$2a$04$abc\"\n",
    "{ a: 1, b: {c: 2, d: 3 } }",
    "{ a: 1\nb: 2;}\n{c: 3\n} d: 4",
    "{\n a: 1 # comment\n // another\n}\n# end",
    "{ a: 1\n",
    "a: 1 }\nb: 2",
    "a: 1\n}\n",
    "a {\n b: 1\n c: [ {d: 1}, {e: {f: 'g'}}\n {h: 1} ]\n i:\n 5 }",
    "a {b: 1, # comment\n // another\n c: 2; d: 3}, e {}",
    "a\n\n 1\n 'quoted key' = 2\n\"other # key\": 3\nb{c: 4\n}x: 5\n",
    "a: 1\na: 2\nA: 3\nb { c: 1, c: 2, C: 3 }",
    "a: 5\nb { c: $a, a: 6, d: $a, e: [ $a, {a: 7, f: $a} ] }\ng: $b\na: 8\n",
    "b: ;c: ,d: }e: 1",
    "a:\u{a0}x\u{a0}y\n\u{a0}b\u{3000}: 1\nc\u{b}2",
    "a: x\rb: 2 # comment\rc: 3\r\n",
    "\u{feff}a: 1\nb\u{feff}: é",
    "include: 'x', 'include' y\nINCLUDE= z\n",
    "include sub.conf\nb: $deep",
    "b: 1\nInclude 'sub.conf'; b: 3 }",
    "x { y: 1, include \"sub.conf\" }\nz: [ {include sub.conf}, {include 'sub.conf' } ]",
    "deep: 9\ninclude ./nowhere/../sub.conf # sub.conf\n",
    "include /sub.conf\n",
];

/// What nats-server refuses.
const REFUSED: &[&str] = &[
    "a: [1]",
    "a: [1, 2]",
    "a: [ 1 2 ]",
    "a: 1 b: 2",
    "a: {b: 1 c: 2}",
    "a: 'x' y",
    "a: 1,, b 2",
    "a: \"\\u0041\"",
    "a: \"\\xg1\"",
    "a: (\n x\n )\n",
    "a: 1kbb",
    "a: .5",
    "a: 1.",
    "a: -x",
    "a: 2016-05-04",
    "a =\n 1",
    "a: {b: 1",
    "a: [",
    "a: $NOWHERE_TO_BE_FOUND",
    "include 5.conf",
    "= 1",
    "a: {]: 1}",
];

/// What nats-server takes by an accident of how it is made, and our reader refuses.
const ODD: &[&str] = &[
    "a: [\"x\" / \"y\"]",
    "a: {b: 1 / c: 2}",
    "a: {b: }\n",
    "a: 1\n}\0b: 2",
    "{ { a: 1 } }",
    "a: [ \"",
    "a: 1kbb\nb: 2",
];

const SUB: &str = "deep: 7\ninner { a: $deep, b: 'x' }\n";

/// What a config says, as our reader has it; and as nats-server has it, which tells by a digest.
struct Read {
    ours: Option<(String, Vec<String>)>,
    theirs: Result<String, String>,
}

impl Read {
    fn new(text: &str, dir: &TempDir) -> Read {
        let path = dir.path().join("main.conf");
        write(dir.path().join("sub.conf"), SUB);
        write(&path, text);
        let config = MainConfig::read(&path, &dir.path().join("auth.conf"));
        let config = config.ok().filter(|it| it.unresolved().is_empty());
        let ours = config.as_ref().and_then(|it| it.settings().ok()).map(|settings| {
            let keys = settings.iter().map(|(key, _)| (*key).to_owned()).collect();
            let mut members: Vec<_> = settings.into_iter().map(|(key, it)| (key, go(it))).collect();
            members.sort();
            (object(&members), keys)
        });
        let said = Command::new(tool("nats-server", None)).arg("-t").arg("-c").arg(&path).output();
        let said = String::from_utf8_lossy(&said.unwrap().stderr).into_owned();
        let digest = said.split_once("(sha256:").and_then(|(_, rest)| rest.split_once(')'));
        let theirs = digest.map(|(it, _)| it.to_owned()).ok_or(said);
        Read { ours, theirs }
    }

    /// With each setting used by a known one, so that nats-server does not mind that it knows none.
    fn used(text: &str, dir: &TempDir) -> Read {
        let alone = Read::new(text, dir);
        let Some((_, keys)) = &alone.ours else { return alone };
        let plain = |it: &&String| it.chars().all(char::is_alphanumeric);
        let uses: Vec<_> = keys.iter().filter(plain).map(|it| format!("port: ${it}")).collect();
        let uses = uses.join("\n");
        let used = Read::new(&format!("{text}\n{uses}\nport: 4222\n"), dir);
        // Behind some ends there can be nothing.
        if used.ours.is_some() { used } else { alone }
    }

    fn agrees(&self) -> bool {
        let (Some((ours, _)), Ok(theirs)) = (&self.ours, &self.theirs) else { return true };
        let hash = digest::digest(&digest::SHA256, format!("{ours}\n").as_bytes());
        data_encoding::HEXLOWER.encode(hash.as_ref()) == *theirs
    }
}

/// As Go writes it.
fn go(node: &Node<'_>) -> String {
    match node {
        Node::Map(entries) => {
            let members = entries.iter().map(|it| (&*it.key, go(&it.value)));
            let mut members: Vec<_> = members.collect();
            members.sort();
            object(&members)
        }
        Node::List(items) => format!("[{}]", items.iter().map(go).collect::<Vec<_>>().join(",")),
        Node::Text(text) => quoted(text),
        Node::Word(word) => number(word),
        Node::Variable(name) | Node::Include(name) => panic!("{name} is still there"),
    }
}

fn object(members: &[(&str, String)]) -> String {
    let members: Vec<_> = members.iter().map(|(key, it)| format!("{}:{it}", quoted(key))).collect();
    format!("{{{}}}", members.join(","))
}

fn quoted(text: &str) -> String {
    let text = Value::from(text).to_string();
    text.replace('&', "\\u0026").replace('<', "\\u003c").replace('>', "\\u003e")
}

fn number(word: &str) -> String {
    let lower = word.to_ascii_lowercase();
    match &*lower {
        "true" | "yes" | "on" => return "true".into(),
        "false" | "no" | "off" => return "false".into(),
        it if it.ends_with('z') => return quoted(word),
        it if it.contains('.') => return it.parse::<f64>().unwrap().to_string(),
        _ => (),
    }
    let (digits, unit) = lower.split_at(lower.find(char::is_alphabetic).unwrap_or(lower.len()));
    let base: i64 = if unit.len() > 1 { 1024 } else { 1000 };
    let power = " kmgtpe".find(unit.chars().next().unwrap_or(' ')).unwrap();
    (digits.parse::<i64>().unwrap() * base.pow(u32::try_from(power).unwrap())).to_string()
}

#[test]
fn a_config_is_read_as_nats_server_reads_it() {
    let dir = TempDir::new().unwrap();
    let mut wrong = Vec::new();
    for text in UNDERSTOOD {
        let read = Read::used(text, &dir);
        // Of keys that no variable can be called by it minds that it does not know them, having read all.
        let taken = match &read.theirs {
            Ok(_) => read.agrees(),
            Err(said) => said.contains("unknown field"),
        };
        if read.ours.is_none() || !taken {
            wrong.push(format!("{text:?} means {:?}, and {:?}", read.ours, read.theirs));
        }
    }
    for text in REFUSED.iter().chain(ODD) {
        let read = Read::new(text, &dir);
        if read.ours.is_some() {
            wrong.push(format!("{text:?} is not refused, but means {:?}", read.ours));
        }
    }
    for text in REFUSED {
        let theirs = Read::new(text, &dir).theirs;
        if !theirs.as_ref().is_err_and(|it| !it.contains("unknown field")) {
            wrong.push(format!("{text:?} is not refused by nats-server: {theirs:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whatever is put together of such pieces: it means the same to both, or one of them refuses it.
#[test]
fn no_config_means_something_else_to_nats_server() {
    const PIECES: &[&str] = &[
        "a",
        "b",
        "'k'",
        ":",
        "=",
        " ",
        " ",
        "\n",
        "\n",
        ",",
        ";",
        "{",
        "}",
        "[",
        "]",
        "\"x\"",
        "'y'",
        "1",
        "1k",
        "1.5",
        "-2",
        "1.2.3.4:5",
        "true",
        "$a",
        "$b",
        "# c",
        "//d",
        "\\x41",
        "/",
        "a: 1\n",
        "b: x,",
        "c {\n",
        "}\n",
        "d [",
        "]\n",
        "include sub.conf",
        "(\n",
        "\n)\n",
        "é",
        "\t",
    ];
    let dir = TempDir::new().unwrap();
    let mut state = 20_261_129_u64;
    let mut dice = move |below: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    let (mut understood, mut both) = (0, 0);
    // Most are nonsense, and that costs no process.
    for _ in 0..60_000 {
        let text: String = (0..3 + dice(10)).map(|_| PIECES[dice(PIECES.len())]).collect();
        write(dir.path().join("sub.conf"), SUB);
        write(dir.path().join("main.conf"), &text);
        let config = MainConfig::read(&dir.path().join("main.conf"), &dir.path().join("auth.conf"));
        if config.is_ok_and(|it| it.settings().is_ok_and(|it| it.len() > 1)) {
            understood += 1;
            let read = Read::used(&text, &dir);
            both += usize::from(read.ours.is_some() && read.theirs.is_ok());
            assert!(read.agrees(), "{text:?} means {:?}", read.ours);
        }
        if understood == 80 {
            break;
        }
    }
    assert!(both > 8, "{both} of {understood} are taken by both");
}

/// A PocketBase with ann, a nats-server, and pb-nats between them, in step.
fn town(version: Option<&str>) -> (Pb, Nats, PbNats, String) {
    let (pb, nats) = (Pb::start(), Nats::with(Setup { version, ..Setup::default() }));
    let role = pb.role("clerk", &["orders.>"], &["orders.>"]);
    let ann = pb.user("ann", PASSWORD, &role);
    pb.user("bob", PASSWORD, &role);
    let pb_nats = PbNats::between(PB_NATS, &pb, &nats);
    pb_nats.once().success();
    (pb, nats, pb_nats, ann)
}

/// What `check --json` says by this code: all that is not good, or what is.
fn said(pb_nats: &PbNats, code: &str) -> Vec<String> {
    let lines: Value = serde_json::from_str(&pb_nats.command(&["check", "--json"]).stdout).unwrap();
    let lines = lines.as_array().unwrap().iter().filter(|it| it["code"] == code);
    lines.map(ToString::to_string).collect()
}

#[test]
fn an_authorization_block_in_other_letters_lets_others_in_and_that_is_told() {
    const BLOCK: &str = "Authorization { users = [ {user: \"op\", password: \"operators\"} ] }\n";
    for version in [OLDEST, None] {
        let (_pb, nats, pb_nats, _) = town(version);
        let good = fs::read_to_string(nats.config_file()).unwrap();
        let line = good.lines().count() + 1;
        for (text, line) in [(format!("{BLOCK}{good}"), 1), (format!("{good}{BLOCK}"), line)] {
            write(nats.config_file(), &text);
            nats.reload().unwrap();
            assert!(
                nats.accepts("op", "operators") && nats.accepts("ann", PASSWORD),
                "both get in"
            );
            let output = pb_nats.once().exits(1);
            let place = format!("(line {line} of {})", nats.config_file().display());
            assert!(output.stderr.contains("its users get in too"), "{output:?}");
            assert!(output.stderr.contains(&place), "{output:?}");
            assert!(output.stderr.contains("hint: take that block out"), "{output:?}");
            let plan = pb_nats.command(&["plan", "--exit-code"]).exits(3);
            assert!(plan.stdout.contains(&place) && !plan.stdout.contains("in step"), "{plan:?}");
            let found = said(&pb_nats, "main_config.beside");
            assert!(found[0].contains(&place) && found[0].contains("wrong"), "{found:?}");
        }
        // In lower case and in front it is replaced.
        write(nats.config_file(), format!("{}{good}", BLOCK.to_lowercase()));
        nats.reload().unwrap();
        let output = pb_nats.once().success();
        assert!(output.stdout.contains("in step, shown by"), "{output:?}");
        assert!(!nats.accepts("op", "operators") && nats.accepts("ann", PASSWORD));
    }
}

/// nats-server takes these, and with them none of our users.
#[test]
fn what_is_not_understood_is_not_in_step() {
    const BEHIND: &str = "authorization { users = [ {user: \"op\", password: \"operators\"} ] }\n";
    for version in [OLDEST, None] {
        let (_pb, nats, pb_nats, _) = town(version);
        let good = fs::read_to_string(nats.config_file()).unwrap();
        write(nats.config_file(), format!("server_tags: [\"a\" / \"b\"]\n{good}{BEHIND}"));
        nats.reload().unwrap();
        assert!(nats.accepts("op", "operators") && !nats.accepts("ann", PASSWORD));
        let output = pb_nats.once().success();
        let place = format!("({}, line 1: ", nats.config_file().display());
        assert!(output.stderr.contains("nobody knows whether nats-server takes"), "{output:?}");
        assert!(output.stderr.contains(&place), "{output:?}");
        assert!(!output.stdout.contains("in step"), "{output:?}");
        let plan = pb_nats.command(&["plan"]).success();
        assert!(
            plan.stdout.contains("unverified: ") && !plan.stdout.contains("in step"),
            "{plan:?}"
        );
        let found = said(&pb_nats, "main_config.not_understood");
        assert!(found[0].contains(&place) && found[0].contains("doubtful"), "{found:?}");
        assert!(said(&pb_nats, "servers.in_step").is_empty());

        // The same in other words.
        write(nats.config_file(), format!("server_tags: [\"\\xc3\\xa9\"]\n{good}{BEHIND}"));
        let output = pb_nats.once().exits(1);
        assert!(output.stderr.contains("stands behind the include"), "{output:?}");
        write(nats.config_file(), format!("server_tags: [\"\\xc3\\xa9\"]\n{good}"));
        nats.reload().unwrap();
        let output = pb_nats.once().success();
        assert!(output.stdout.contains("in step, shown by"), "{output:?}");
        assert!(nats.accepts("ann", PASSWORD) && !nats.accepts("op", "operators"));
    }
}

#[test]
fn a_daemon_does_not_call_in_force_what_it_does_not_understand() {
    let (pb, nats, mut pb_nats, ann) = town(None);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    pb_nats.set("admin.listen", port.to_string());
    pb_nats.set("pocketbase.resync_interval", "1s");
    let running = pb_nats.run();
    let status = |word: &str| {
        eventually(&format!("the status is {word}"), || {
            let said = pb_nats.command(&["status", "--json"]);
            let said: Value = serde_json::from_str(&said.stdout).ok()?;
            (said["state"] == word).then_some(said)
        })
    };
    status("in_step");
    let good = fs::read_to_string(nats.config_file()).unwrap();
    write(nats.config_file(), format!("server_tags: [\"a\" / \"b\"]\n{good}"));
    nats.reload().unwrap();
    let said = status("unverified").to_string();
    assert!(said.contains("nobody knows whether nats-server takes"), "{said}");
    // What it can do it still does.
    pb.update("nats_users", &ann, &json!({ "active": false }));
    eventually("ann is out", || (!nats.accepts("ann", PASSWORD)).then_some(()));
    assert!(nats.accepts("bob", PASSWORD));
    write(nats.config_file(), &good);
    nats.reload().unwrap();
    status("in_step");
    assert!(running.terminate().success());
}

/// Else nats-server would refuse every reload from then on, and nobody else could be removed. It lets in
/// whoever has no name as a user with an nkey, but never as one whose password is hashed.
#[test]
fn whom_the_main_config_names_stays_as_one_who_may_do_nothing() {
    let web = KeyPair::new_user().public_key();
    for version in [OLDEST, None] {
        // Only a start takes the setting.
        let auth = render(&Desired { locked: [web.as_str().into()].into(), ..Desired::default() });
        let extra = format!("no_auth_user: \"{web}\"");
        let setup = Setup { version, extra: &extra, auth: &auth, within: None };
        let (pb, nats) = (Pb::with(Users::Text, Optional::Present), Nats::with(setup));
        assert!(!nats.is_open());
        let role = pb.role("clerk", &["orders.>"], &["orders.>"]);
        pb.user("bob", PASSWORD, &role);
        let record = json!({ "username": "web", "nkey": web, "role_id": role, "active": true });
        let record = pb.create("nats_users", &record);
        let pb_nats = PbNats::between(PB_NATS, &pb, &nats);
        pb_nats.once().success();

        let mut nobody = nats.connect(Login::Nobody).unwrap();
        assert!(nobody.may_publish("orders.1") && nobody.may_subscribe("orders.*"));
        let mut bob = nats.client("bob", PASSWORD);
        bob.subscribe("orders.>");
        bob.flush().unwrap();
        pb.update("nats_users", &record, &json!({ "active": false }));
        let output = pb_nats.once().success();
        for part in ["in step, shown by", "1 user removed", "\n1 user\n", "1 needed name locked"] {
            assert!(
                output.stdout.contains(part),
                "who may do nothing is no user: {part} {output:?}"
            );
        }
        for part in [&format!("nats_users/{record} \"web\": nkey \"{web}\""), "no_auth_user"] {
            assert!(output.stderr.contains(part), "{part} {output:?}");
        }
        assert!(nobody.closed(SOON).is_some(), "who came in without a name is cut off");
        assert!(!nats.is_open() && !nats.accepts(&web, "") && !nats.accepts("web", ""));
        // They stay, and others go on.
        assert!(bob.may_publish("orders.2") && bob.next(SOON).is_some());
        let again = pb_nats.once().success();
        assert!(again.stdout.starts_with("nothing to change\n"), "{again:?}");

        let found = said(&pb_nats, "main_config.no_auth_user");
        assert!(
            found[0].contains("line 6 of ") && found[0].contains("may do nothing"),
            "{found:?}"
        );
        assert!(said(&pb_nats, "records.needed")[0].contains("web"));
        let plan = pb_nats.command(&["plan"]).success();
        assert!(plan.stderr.contains("a user who may do nothing"), "{plan:?}");
        let list = pb_nats.command(&["user", "list"]).success();
        assert!(!list.stdout.contains("locked"), "{list:?}");

        // The next to go is cut off too, though nobody is left; and nats-server starts.
        let all = pb.ask("GET", "/api/collections/nats_users/records", &Value::Null);
        for it in all["items"].as_array().unwrap() {
            pb.update("nats_users", it["id"].as_str().unwrap(), &json!({ "active": false }));
        }
        pb_nats.once().success();
        assert!(!nats.accepts("bob", PASSWORD) && bob.closed(SOON).is_some());
        assert!(starts(&nats) && !nats.is_open());

        // And back again.
        pb.update("nats_users", &record, &json!({ "active": true }));
        pb_nats.once().success();
        assert!(nats.connect(Login::Nobody).unwrap().may_publish("orders.1"));

        // The name of one with a password lets nobody in without it, removed or not.
        let config = fs::read_to_string(nats.config_file()).unwrap();
        write(nats.config_file(), config.replace(&web, "bob"));
        assert!(said(&pb_nats, "main_config.no_auth_user")[0].contains("locked"));
    }
}

/// It may do nothing, should nats-server ever let anybody in by it.
#[test]
fn a_locked_name_is_denied_everything() {
    for version in [OLDEST, None] {
        let auth = render(&Desired { locked: ["web".into()].into(), ..Desired::default() });
        let (before, rest) = auth.split_once("password: \"").unwrap();
        let auth = format!("{before}password: \"x{}", rest.split_once('$').unwrap().1);
        let setup = Setup { version, extra: "no_auth_user: web", auth: &auth, within: None };
        let nats = Nats::with(setup);
        let mut client = nats.connect(Login::Nobody).unwrap();
        for subject in ["orders.1", "_INBOX.x", "$SYS.REQ.USER.INFO"] {
            assert!(!client.may_publish(subject), "{version:?} {subject}");
        }
        for subject in ["orders.1", ">", "_INBOX.>"] {
            assert!(!client.may_subscribe(subject), "{version:?} {subject}");
            assert!(!client.may_subscribe_queue(subject, "q"), "{version:?} {subject}");
        }
    }
}

/// Whichever block names them, and whether there ever was such a record.
#[test]
fn no_name_that_the_main_config_needs_is_ever_missing() {
    let port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for version in [OLDEST, None] {
        let (pb, nats, mut pb_nats, _) = town(version);
        // A running server would not take such a setting before it is started anew.
        pb_nats.unset("nats.pid_file");
        pb_nats.unset("nats.monitor_url");
        let good = fs::read_to_string(nats.config_file()).unwrap();
        let jetstream = format!("jetstream {{ store_dir: \"{}\" }}", nats.dir().display());
        for needed in [
            "No_Auth_User: nemo".into(),
            format!(
                "NAME: nemo\nwebsocket {{ port: {}, no_tls: true, no_auth_user: $NAME }}",
                port()
            ),
            format!("WS {{ port: {}, no_tls: true, \"NO_AUTH_USER\" = nemo }}", port()),
            format!("mqtt {{ port: {}, no_auth_user: 'nemo' }}\n{jetstream}", port()),
        ] {
            write(nats.config_file(), format!("{needed}\n{good}"));
            let output = pb_nats.once();
            assert!(
                output.stdout.contains("1 needed name locked (\"nemo\")"),
                "{needed} {output:?}"
            );
            let text = fs::read_to_string(nats.auth_file()).unwrap();
            assert!(text.contains("{user: \"nemo\", "), "{text}");
            assert!(starts(&nats), "{needed}");
            assert!(output.stderr.contains("nats_users \"nemo\": username"), "{output:?}");
            write(nats.config_file(), &good);
            let output = pb_nats.once();
            assert!(output.stdout.contains("no longer locked (\"nemo\")"), "{output:?}");
        }
        // Where accounts have the user, another of the name would be one too many.
        let theirs = "accounts { A { users: [{user: nemo, password: x}] } }\nno_auth_user: nemo";
        write(nats.config_file(), format!("{theirs}\n{good}"));
        pb_nats.once();
        assert!(!fs::read_to_string(nats.auth_file()).unwrap().contains("nemo"));
        assert!(starts(&nats));

        // A record whose password is what marks such a name is no such name.
        let locked = "$2a$04$pbxnatsxlockedxnobodyexxlogsxinxwithxthisxhashxxxxxx9";
        let record = json!({ "username": "odd", "password": locked, "active": true });
        pb.create("nats_users", &record);
        write(nats.config_file(), &good);
        let output = pb_nats.once();
        assert!(output.stderr.contains("not a bcrypt hash"), "{output:?}");
        nats.reload().unwrap();
        assert!(nats.accepts("ann", PASSWORD), "others are served");
    }
}

/// Whether a nats-server would start with its config, on other ports.
fn starts(nats: &Nats) -> bool {
    let mut command = Command::new(nats.binary());
    command.args(["-a", "127.0.0.1", "-p", "-1", "-m", "-1", "-P", "", "--ports_file_dir"]);
    let ports = TempDir::new().unwrap();
    command.arg(ports.path()).arg("-c").arg(nats.config_file());
    let process = Process::start(command.stdin(Stdio::null()).stderr(Stdio::null()));
    eventually("it starts or ends", || {
        let started = fs::read_dir(ports.path()).unwrap().next().is_some();
        (started || process.ended().is_some()).then_some(started)
    })
}

#[test]
fn a_variable_that_only_nats_server_has_is_named_with_whose_it_must_be() {
    let (_pb, nats, mut pb_nats, _) = town(None);
    let good = fs::read_to_string(nats.config_file()).unwrap();
    write(nats.config_file(), format!("\nserver_tags: [$RACK_OF_THIS]\n{good}"));
    let found = said(&pb_nats, "main_config.unresolved_variable");
    let place = format!("(line 2 of {})", nats.config_file().display());
    for part in ["`$RACK_OF_THIS`", &place, "pb-nats's environment", "EnvironmentFile="] {
        assert!(found[0].contains(part), "{part} {found:?}");
    }
    assert!(said(&pb_nats, "main_config.refused").is_empty(), "it is told once");
    pb_nats.set_env("RACK_OF_THIS", "\"\\xc3\\xa9\"");
    assert!(said(&pb_nats, "main_config.unresolved_variable").is_empty());
    assert_eq!(said(&pb_nats, "main_config.accepted").len(), 1);
}

#[test]
fn a_monitor_that_only_the_command_line_has_is_found() {
    let (_pb, nats, mut pb_nats, _) = town(None);
    pb_nats.unset("nats.monitor_url");
    let found = said(&pb_nats, "servers.nobody_to_ask");
    let url = nats.monitor_url();
    assert!(found[0].contains(&url) || found[0].contains("-m 8222"), "{found:?}");

    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    write(at("auth.conf"), "");
    write(at("main.conf"), "listen: \"127.0.0.1:-1\"\ninclude auth.conf\n");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = Command::new(tool("nats-server", None));
    command.current_dir(dir.path()).args(["-c", "main.conf", "-m", &port.to_string()]);
    let process = Process::start(command.stdin(Stdio::null()).stderr(Stdio::null()));
    pb_nats.set("nats.config_file", at("main.conf").display().to_string());
    eventually("it is found", || {
        let found = said(&pb_nats, "servers.nobody_to_ask");
        let wanted = format!("http://127.0.0.1:{port}");
        let option = format!("process {}, was started with `-m {port}`", process.pid());
        (found[0].contains(&wanted) && found[0].contains(&option)).then_some(())
    });
}

#[test]
fn init_takes_what_the_command_line_of_a_running_server_says() {
    let pb = Pb::empty(None);
    let init = crate::init::Init::of(&pb);
    write(init.path("nats.conf"), "listen: \"127.0.0.1:-1\"\n");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = Command::new(tool("nats-server", None));
    command.arg(format!("--http_port={port}")).arg("-P").arg(init.path("their.pid"));
    command.current_dir(init.path("")).args(["-c", "nats.conf"]);
    let _process = Process::start(command.stdin(Stdio::null()).stderr(Stdio::null()));
    eventually("it has a pid file", || init.path("their.pid").exists().then_some(()));
    init.init(&["--nats-config", "nats.conf"]).success();
    let settings = init.read("pb-nats.toml");
    assert!(settings.contains(&format!("monitor_url = \"http://127.0.0.1:{port}\"")), "{settings}");
    assert!(settings.contains("pid_file = \"their.pid\""), "{settings}");
    let config = init.read("nats.conf");
    assert!(!config.contains("http:") && !config.contains("pid_file"), "{config}");
    init.once().success();
}
