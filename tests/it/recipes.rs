//! Each recipe of the cookbook, tried with the clients that people use, on the oldest and on the
//! newest nats-server: what it allows works, and what it must not, fails.
//!
//! The roles, their users and the questions come from the page itself. What a client has to do
//! beside that is in `recipes/`, a function for each recipe whose subjects a library chooses.

use std::{
    env, fs,
    io::Write as _,
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Stdio},
};

use async_nats::jetstream::{self, consumer::pull, kv, stream};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    PB_NATS,
    book::{Recipe, recipes},
    support::{Nats, Pb, PbNats, Setup, free_address},
};

const PASSWORD: &str = "a password";
/// Whose every right makes streams and buckets, and witnesses what the others do.
const CHIEF: &str = "chief";
const OLDEST: Option<&str> = Some("2.10.26");
const NEWEST: Option<&str> = None;

#[test]
fn the_recipes_serve_python_clients_on_the_oldest_server() {
    python(OLDEST);
}

#[test]
fn the_recipes_serve_python_clients_on_the_newest_server() {
    python(NEWEST);
}

/// nats-py, and paho-mqtt for MQTT.
fn python(version: Option<&str>) {
    let clients = target("python").expect("nats-py is there; install it with `cargo xtask tools`");
    let mut python = Command::new("python3");
    python.arg("-").env("PYTHONPATH", clients).env("PYTHONDONTWRITEBYTECODE", "1");
    Kitchen::new(version).tried_by(&mut python, "clients.py");
}

/// Where Node.js is: `cargo xtask clients`.
#[test]
fn the_recipes_serve_nats_js_on_the_oldest_and_on_the_newest_server() {
    let Some(packages) = env::var_os("PB_NATS_TEST_NATS_JS") else { return };
    for version in [OLDEST, NEWEST] {
        let mut node = Command::new("node");
        // Where a program comes from stdin, its packages are looked for in the current folder.
        node.args(["--experimental-websocket", "--input-type=module"]).current_dir(&packages);
        Kitchen::new(version).tried_by(&mut node, "clients.mjs");
    }
}

/// The same in Rust, for the recipes whose subjects a library chooses.
#[tokio::test(flavor = "multi_thread")]
async fn the_jetstream_and_key_value_recipes_serve_async_nats() {
    let kitchen = Kitchen::new(NEWEST);
    let chief = kitchen.jetstream(CHIEF).await;
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

    let till = kitchen.jetstream("till").await;
    till.publish("orders.new", "one".into()).await.unwrap().await.unwrap();

    let packer = kitchen.jetstream("packer").await;
    let stream = packer.get_stream("ORDERS").await.unwrap();
    let worker = stream.get_consumer::<pull::Config>("worker").await.unwrap();
    let mut messages = worker.fetch().max_messages(1).messages().await.unwrap();
    let message = messages.next().await.unwrap().unwrap();
    assert_eq!(message.payload.as_ref(), b"one");
    message.double_ack().await.unwrap();

    let panel = kitchen.jetstream("admin-panel").await.get_key_value("config").await.unwrap();
    panel.put("colour", "red".into()).await.unwrap();

    let lamp = kitchen.jetstream("lamp").await.get_key_value("config").await.unwrap();
    assert_eq!(lamp.get("colour").await.unwrap().as_deref(), Some(&b"red"[..]));
    let mut changes = lamp.watch_with_history("colour").await.unwrap();
    assert_eq!(changes.next().await.unwrap().unwrap().value.as_ref(), b"red");
    panel.delete("colour").await.unwrap();
    assert_eq!(changes.next().await.unwrap().unwrap().operation, kv::Operation::Delete);
    assert!(lamp.put("colour", "green".into()).await.is_err(), "a reader does not write");
}

/// A nats-server with streams, MQTT and WebSocket, every role of the cookbook, and its users.
struct Kitchen {
    nats: Nats,
    mqtt: SocketAddr,
    websocket: SocketAddr,
    recipes: Vec<Recipe>,
    _pb: Pb,
    _store: TempDir,
}

impl Kitchen {
    fn new(version: Option<&str>) -> Kitchen {
        let store = TempDir::new().unwrap();
        let (mqtt, websocket) = (free_address(), free_address());
        let extra = format!(
            "jetstream {{ store_dir: \"{}\" }}\nmqtt {{ listen: \"{mqtt}\" }}\n\
             websocket {{ listen: \"{websocket}\", no_tls: true }}\n",
            store.path().display()
        );
        let (pb, nats) =
            (Pb::start(), Nats::with(Setup { version, extra: &extra, ..Setup::default() }));
        let recipes = recipes();
        for recipe in &recipes {
            recipe.make(&pb, PASSWORD);
        }
        pb.user(CHIEF, PASSWORD, &pb.role(CHIEF, &[">"], &[">"]));
        PbNats::between(PB_NATS, &pb, &nats).once().success();
        Kitchen { nats, mqtt, websocket, recipes, _pb: pb, _store: store }
    }

    /// Everything is tried by this interpreter with this program. It says which recipes it has tried.
    fn tried_by(&self, interpreter: &mut Command, program: &str) {
        let program = fs::read_to_string(format!("tests/it/recipes/{program}")).unwrap();
        let recipes = self.recipes.iter().map(|it| {
            let questions: Vec<Value> = it.questions.iter().map(|it| question(&it.1)).collect();
            json!({ "role": it.name(), "user": it.user, "users": it.users, "questions": questions })
        });
        let task = json!({
            "nats": self.nats.address.to_string(),
            "mqtt": { "host": self.mqtt.ip(), "port": self.mqtt.port() },
            "websocket": format!("ws://{}", self.websocket),
            "version": self.nats.varz()["version"],
            "chief": CHIEF, "password": PASSWORD,
            "recipes": recipes.collect::<Vec<_>>(),
        });
        interpreter.env("RECIPES", task.to_string());
        interpreter.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = interpreter.spawn().unwrap_or_else(|why| panic!("{interpreter:?}: {why}"));
        child.stdin.take().unwrap().write_all(program.as_bytes()).unwrap();
        // It ends itself when it has taken far too long.
        let said = child.wait_with_output().unwrap();
        let (out, log) =
            (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
        let version = self.nats.varz()["version"].to_string();
        assert!(said.status.success(), "nats-server {version}:\n{out}\n{log}");
        let tried: Vec<&str> = out.lines().collect();
        let all: Vec<&str> = self.recipes.iter().map(Recipe::name).collect();
        assert_eq!(tried, all, "nats-server {version}: every recipe is tried\n{log}");
    }

    async fn jetstream(&self, user: &str) -> jetstream::Context {
        let options =
            async_nats::ConnectOptions::with_user_and_password(user.into(), PASSWORD.into());
        let options = options.custom_inbox_prefix(format!("_INBOX_{user}"));
        jetstream::new(options.connect(self.nats.url()).await.unwrap())
    }
}

/// What `pb-nats explain USER … # allowed` asks, in parts.
fn question(command: &str) -> Value {
    let (command, answer) = command.split_once(" # ").expect("an answer");
    let words = shlex::split(command).expect("a shell would take this");
    let queue = (words.get(5).map(String::as_str) == Some("--queue")).then(|| &words[6]);
    json!({
        "verb": words[3], "subject": words[4], "queue": queue,
        "allowed": answer.trim() == "allowed",
    })
}

/// What `cargo xtask tools` has put there.
fn target(name: &str) -> Option<PathBuf> {
    let ourselves = env::current_exe().unwrap();
    let found = ourselves.ancestors().map(|it| it.join("tools").join(name));
    found.into_iter().find(|it| it.is_dir())
}
