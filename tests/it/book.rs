//! The book in `docs/`: what it says to type is typed here.

use std::{
    collections::HashSet,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use async_nats::jetstream::{self, consumer::pull, kv, stream};
use futures_util::StreamExt as _;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    PB_NATS,
    support::{self, Nats, Pb, PbNats, Setup, free_address},
};

/// A fenced block, with the line that it begins at and what stands before it.
struct Block<'a> {
    language: &'a str,
    text: String,
    line: usize,
    before: &'a str,
}

/// Every recipe is a role, and its questions have the answers that stand behind them: by our own
/// reckoning, and by a real connection.
#[test]
fn the_cookbook_tells_the_truth() {
    let page = fs::read_to_string("docs/cookbook.md").unwrap();
    let (pb, nats) = (Pb::start(), Nats::start());
    let pb_nats = PbNats::between(PB_NATS, &pb, &nats);
    let (mut role, mut users, mut questions) = (None, HashSet::new(), 0);
    for block in blocks(&page) {
        match block.language {
            "json" => {
                let record: Value = serde_json::from_str(&block.text).unwrap();
                role = Some(pb.create("nats_roles", &record));
            }
            "sh" => {
                let role = role.as_ref().expect("a role before its questions");
                for (line, command) in (block.line + 1..).zip(block.text.lines()) {
                    let user = command.split(' ').nth(2).unwrap();
                    if users.insert(user.to_owned()) {
                        pb.user(user, "secret", role);
                    }
                    ask(&pb_nats, command).unwrap_or_else(|problem| {
                        panic!("docs/cookbook.md:{line}: {command}\n{problem}")
                    });
                    questions += 1;
                }
            }
            other => panic!("docs/cookbook.md:{}: a block of `{other}`", block.line),
        }
    }
    assert!(questions > 30, "{questions} questions");
}

/// `pb-nats explain USER … # allowed`, by records and for real.
fn ask(pb_nats: &PbNats, command: &str) -> Result<(), String> {
    let (command, answer) = command.split_once(" # ").ok_or("no answer")?;
    let words = shlex::split(command).ok_or("no shell would take this")?;
    let arguments: Vec<&str> = words[1..].iter().map(String::as_str).collect();
    let code = match answer.trim() {
        "allowed" => 0,
        "denied" => 1,
        other => return Err(format!("`{other}` is no answer")),
    };
    for live in [&[][..], &["--live"]] {
        let said = pb_nats.command(&[&arguments, live].concat());
        if said.code != Some(code) {
            return Err(format!("{live:?}: exit {:?}\n{}{}", said.code, said.stdout, said.stderr));
        }
    }
    Ok(())
}

/// The recipes whose subjects a client library chooses, tried with one.
#[tokio::test(flavor = "multi_thread")]
async fn the_jetstream_and_key_value_recipes_serve_a_real_client() {
    let setting = Setting::new();
    for (user, role) in [
        ("till", "stream-publisher"),
        ("packer", "stream-worker"),
        ("lamp", "config-reader"),
        ("admin-panel", "config-writer"),
    ] {
        setting.user(user, role);
    }
    setting.pb.user("chief", PASSWORD, &setting.pb.role("chief", &[">"], &[">"]));
    setting.pass();
    let chief = setting.jetstream("chief").await;
    let orders = stream::Config {
        name: "ORDERS".into(),
        subjects: vec!["orders.>".into()],
        ..stream::Config::default()
    };
    let orders = chief.create_stream(orders).await.unwrap();
    let worker = pull::Config { durable_name: Some("worker".into()), ..pull::Config::default() };
    orders.create_consumer(worker).await.unwrap();
    let config = kv::Config { bucket: "config".into(), ..kv::Config::default() };
    chief.create_key_value(config).await.unwrap();

    let till = setting.jetstream("till").await;
    till.publish("orders.new", "one".into()).await.unwrap().await.unwrap();

    let packer = setting.jetstream("packer").await;
    let stream = packer.get_stream("ORDERS").await.unwrap();
    let worker = stream.get_consumer::<pull::Config>("worker").await.unwrap();
    let mut messages = worker.fetch().max_messages(1).messages().await.unwrap();
    let message = messages.next().await.unwrap().unwrap();
    assert_eq!(message.payload.as_ref(), b"one");
    message.double_ack().await.unwrap();

    let panel = setting.jetstream("admin-panel").await.get_key_value("config").await.unwrap();
    panel.put("colour", "red".into()).await.unwrap();

    let lamp = setting.jetstream("lamp").await.get_key_value("config").await.unwrap();
    assert_eq!(lamp.get("colour").await.unwrap().as_deref(), Some(&b"red"[..]));
    let mut changes = lamp.watch_with_history("colour").await.unwrap();
    assert_eq!(changes.next().await.unwrap().unwrap().value.as_ref(), b"red");
    panel.delete("colour").await.unwrap();
    assert_eq!(changes.next().await.unwrap().unwrap().operation, kv::Operation::Delete);
    assert!(lamp.put("colour", "green".into()).await.is_err(), "a reader does not write");
}

/// The filter `commands/meter-1/#` needs both subjects, and quality 1 nothing more.
#[test]
fn the_mqtt_recipe_serves_a_real_client() {
    let setting = Setting::new();
    setting.user("meter-1", "mqtt-device");
    setting.user("backend", "collector");
    setting.pass();
    let mut backend = setting.nats.client("backend", PASSWORD);
    backend.subscribe("devices.>");
    backend.flush().unwrap();
    let mut meter = Mqtt::connect(setting.mqtt, "meter-1", PASSWORD);
    assert_eq!(meter.subscribe("commands/#", 1), 0x80, "not all commands");
    assert_eq!(meter.subscribe("commands/meter-1/#", 1), 1);
    meter.publish("devices/meter-1/power", b"7");
    let message = backend.next(support::SOON).expect("the backend hears it");
    assert_eq!((&*message.subject, &*message.payload), ("devices.meter-1.power", &b"7"[..]));
    backend.publish("commands.meter-1.reboot", b"now");
    assert_eq!(meter.message(), (String::from("commands/meter-1/reboot"), b"now".to_vec()));
}

const PASSWORD: &str = "a password";

/// A nats-server with streams and MQTT, and roles from the cookbook.
struct Setting {
    pb: Pb,
    nats: Nats,
    mqtt: SocketAddr,
    pb_nats: PbNats,
    _store: TempDir,
}

impl Setting {
    fn new() -> Setting {
        let (store, mqtt) = (TempDir::new().unwrap(), free_address());
        let extra = format!(
            "server_name: one\njetstream {{ store_dir: \"{}\" }}\nmqtt {{ listen: \"{mqtt}\" }}\n",
            store.path().display()
        );
        let (pb, nats) = (Pb::start(), Nats::with(Setup { extra: &extra, ..Setup::default() }));
        let pb_nats = PbNats::between(PB_NATS, &pb, &nats);
        Setting { pb, nats, mqtt, pb_nats, _store: store }
    }

    /// Makes a user with the role of this name in the cookbook.
    fn user(&self, name: &str, role: &str) {
        let page = fs::read_to_string("docs/cookbook.md").unwrap();
        let role = blocks(&page)
            .into_iter()
            .filter(|it| it.language == "json")
            .map(|it| serde_json::from_str::<Value>(&it.text).unwrap())
            .find(|it| it["name"] == role)
            .expect("a recipe of this name");
        self.pb.user(name, PASSWORD, &self.pb.create("nats_roles", &role));
    }

    fn pass(&self) {
        let said = self.pb_nats.once();
        assert_eq!(said.code, Some(0), "{said:?}");
    }

    async fn jetstream(&self, user: &str) -> jetstream::Context {
        let options =
            async_nats::ConnectOptions::with_user_and_password(user.into(), PASSWORD.into());
        jetstream::new(options.connect(self.nats.url()).await.unwrap())
    }
}

/// As much of an MQTT 3.1.1 client as the recipe needs.
struct Mqtt(TcpStream);

impl Mqtt {
    fn connect(address: SocketAddr, user: &str, password: &str) -> Mqtt {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(support::SOON)).unwrap();
        let mut mqtt = Mqtt(stream);
        let with_user_password_and_a_clean_session = 0xc2;
        let head =
            [&text("MQTT")[..], &[4, with_user_password_and_a_clean_session, 0, 60]].concat();
        mqtt.send(0x10, &[&head[..], &text(user), &text(user), &text(password)].concat());
        assert_eq!(mqtt.packet(), (0x20, vec![0, 0]), "connected");
        mqtt
    }

    /// Returns what quality was granted.
    fn subscribe(&mut self, filter: &str, quality: u8) -> u8 {
        self.send(0x82, &[&[0, 1][..], &text(filter), &[quality]].concat());
        let (kind, granted) = self.packet();
        assert_eq!((kind, granted.len()), (0x90, 3));
        granted[2]
    }

    /// With quality 1, acknowledged.
    fn publish(&mut self, topic: &str, payload: &[u8]) {
        self.send(0x32, &[&text(topic)[..], &[0, 2], payload].concat());
        assert_eq!(self.packet(), (0x40, vec![0, 2]), "acknowledged");
    }

    fn message(&mut self) -> (String, Vec<u8>) {
        let (kind, body) = self.packet();
        assert_eq!(kind & 0xf0, 0x30, "a message");
        let (length, rest) = body.split_at(2);
        let (topic, rest) = rest.split_at(u16::from_be_bytes([length[0], length[1]]).into());
        let packet_number = if kind & 0x06 == 0 { 0 } else { 2 };
        (String::from_utf8(topic.to_vec()).unwrap(), rest[packet_number..].to_vec())
    }

    fn send(&mut self, kind: u8, body: &[u8]) {
        let length = u8::try_from(body.len()).ok().filter(|it| *it < 128).expect("a short packet");
        self.0.write_all(&[&[kind, length], body].concat()).unwrap();
    }

    fn packet(&mut self) -> (u8, Vec<u8>) {
        let mut head = [0; 2];
        self.0.read_exact(&mut head).unwrap();
        let mut body = vec![0; head[1].into()];
        self.0.read_exact(&mut body).unwrap();
        (head[0], body)
    }
}

/// A string as MQTT writes it.
fn text(text: &str) -> Vec<u8> {
    [&u16::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat()
}

/// Typed literally, in an empty folder, with only the ports changed.
#[test]
fn the_quick_start_leads_to_a_user_with_rights() {
    let mut page = fs::read_to_string("docs/quick-start.md").unwrap();
    let free = [(); 3].map(|()| free_address().port());
    for (usual, free) in ["8090", "4222", "8222"].into_iter().zip(free) {
        page = page.replace(&format!(":{usual}"), &format!(":{free}"));
    }
    let typed: Vec<String> =
        blocks(&page).into_iter().filter(|it| it.language == "sh").map(|it| it.text).collect();
    let folder = TempDir::new().unwrap();
    let programs = folder.path().join("bin");
    fs::create_dir(&programs).unwrap();
    for (name, program) in [
        ("pb-nats", PathBuf::from(PB_NATS)),
        ("pocketbase", support::tool("pocketbase", None)),
        ("nats-server", support::tool("nats-server", None)),
    ] {
        symlink(program, programs.join(name)).unwrap();
    }
    // People type slowly: a server that was started is up when the next line is typed.
    let listens = |port| format!("(exec 3<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null");
    let waits = [
        ("pocketbase serve", listens(free[0])),
        ("nats-server -c", listens(free[1])),
        ("pb-nats run", "pb-nats status".to_owned()),
    ];
    let mut script =
        format!("set -ex; trap 'kill $(jobs -p); wait' EXIT; PATH={}:$PATH\n", programs.display());
    for block in typed {
        script += &block;
        let started = waits.iter().filter(|(command, _)| block.contains(command));
        script.extend(started.map(|(_, up)| format!("until {up}; do sleep 0.1; done\n")));
    }
    let ran = Command::new("timeout")
        .args(["180", "bash", "-c", &script])
        .current_dir(folder.path())
        .env("PB_NATS_ADMIN_LISTEN", free_address().to_string())
        .output()
        .unwrap();
    let (out, log) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{out}\n{log}");
    assert!(out.contains("In force on 1 of 1 server · 1 user"), "{out}\n{log}");
    assert!(out.contains("says the same"), "{out}\n{log}");
}

/// What is not run is marked, with the reason.
#[test]
fn every_command_in_the_book_is_run_or_says_why_not() {
    const RUN_AS_A_WHOLE: &[&str] = &["cookbook.md", "quick-start.md"];
    for page in pages() {
        if RUN_AS_A_WHOLE.contains(&page.as_str()) {
            continue;
        }
        let text = fs::read_to_string(format!("docs/{page}")).unwrap();
        for block in blocks(&text).into_iter().filter(|it| it.language == "sh") {
            let marked = block.before.trim().starts_with("<!-- not run here: ");
            assert!(marked, "docs/{page}:{}: neither run nor marked", block.line);
            let read = Command::new("bash").args(["-n", "-c", &block.text]).status().unwrap();
            assert!(read.success(), "docs/{page}:{}: no shell would take this", block.line);
            for word in block.text.split_whitespace().filter(|it| it.starts_with("dist/")) {
                assert!(Path::new(word).exists(), "docs/{page}:{}: no {word}", block.line);
            }
        }
    }
}

/// In the text as in the blocks, and down to the last flag.
#[test]
fn every_command_that_the_book_names_is_one() {
    let mut tried = 0;
    let pages = pages().into_iter().filter(|it| it != "commands.md");
    for page in pages.map(|it| format!("docs/{it}")).chain(["README.md".into()]) {
        let text = fs::read_to_string(&page).unwrap();
        let quoted = text.lines().flat_map(|it| it.split('`').skip(1).step_by(2));
        let blocks = blocks(&text);
        let typed = blocks.iter().flat_map(|it| it.text.lines());
        let typed = typed.map(|it| it.trim_start_matches("$ ").trim_end_matches([' ', '&']));
        for command in quoted.chain(typed) {
            let Some(words) = command.strip_prefix("pb-nats ") else { continue };
            let words = words.split(" # ").next().unwrap();
            let words = shlex::split(words).expect("a shell would take it");
            // Only if all before it is understood is this answered.
            let help = Command::new(PB_NATS).args(&words).arg("--help").output().unwrap();
            let said = String::from_utf8_lossy(&help.stderr);
            assert!(help.status.success(), "{page}: {command}\n{said}");
            tried += 1;
        }
    }
    assert!(tried > 80, "{tried} commands");
}

/// The pages that the summary names, and it names all there are.
fn pages() -> Vec<String> {
    let summary = fs::read_to_string("docs/SUMMARY.md").unwrap();
    let mut named: Vec<String> = summary
        .lines()
        .filter_map(|it| it.split_once("](")?.1.strip_suffix(')'))
        .map(str::to_owned)
        .collect();
    let mut found: Vec<String> = fs::read_dir("docs")
        .unwrap()
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .filter(|it| *it != *"SUMMARY.md" && Path::new(it).extension().is_some_and(|it| it == "md"))
        .collect();
    found.sort();
    named.sort();
    assert_eq!(named, found, "docs/SUMMARY.md names the pages there are");
    named
}

fn blocks(page: &str) -> Vec<Block<'_>> {
    let (mut blocks, mut open, mut before) = (Vec::new(), None::<Block>, "");
    for (number, line) in (1..).zip(page.lines()) {
        match (&mut open, line.trim().strip_prefix("```")) {
            (None, Some(language)) => {
                open = Some(Block { language, text: String::new(), line: number, before });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => {
                block.text += line;
                block.text.push('\n');
            }
            (None, None) => before = line,
        }
    }
    assert!(open.is_none(), "a block that does not end");
    blocks
}
