//! Whether nats-server starts: what it makes of users in a file beside what else a main config has, and
//! whether we say so beforehand.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use data_encoding::BASE64URL_NOPAD;
use nkeys::KeyPair;
use pb_nats::{
    Options,
    engine::config::{MainConfig, starts, would_start},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Client, Login, Process, SOON, Signal, eventually, tool, write};

/// What nats-server makes of users in a file beside the rest of a config that it runs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Truth {
    /// They log in.
    Served,
    /// It does not start.
    Dead,
    /// It starts, and does not let them in.
    Deaf,
}
use Truth::{Dead, Deaf, Served};

/// The end of a main config, as `init` writes it.
const INCLUDE: &str = "\nauthorization { users = [ {user: locked, password: x, permissions: \
    {publish: {deny: \">\"}, subscribe: {deny: \">\"}}} ] }\ninclude \"auth.conf\"\n";
const JETSTREAM: &str = "jetstream { store_dir: \"js\" }\n";
const APP: &str = "accounts { APP { users = [ {user: app, password: a} ] } }\n";
const SYS: &str = "accounts { SYS { users = [ {user: s, password: s} ] } }\nsystem_account: SYS\n";

/// An operator's token, an account and its token.
fn operator() -> [String; 4] {
    let (operator, account) = (KeyPair::new_operator(), KeyPair::new_account());
    let issuer = operator.public_key();
    let signed = |subject: &str, nats: Value| {
        let part = |it: Value| BASE64URL_NOPAD.encode(it.to_string().as_bytes());
        let header = part(json!({ "typ": "JWT", "alg": "ed25519-nkey" }));
        let claims = part(json!({
            "jti": "x", "iat": 1_700_000_000, "iss": issuer, "sub": subject, "name": "x",
            "nats": nats,
        }));
        let text = format!("{header}.{claims}");
        let signature = BASE64URL_NOPAD.encode(&operator.sign(text.as_bytes()).unwrap());
        format!("{text}.{signature}")
    };
    let all = ["subs", "data", "payload", "imports", "exports", "conn", "leaf"];
    let mut limits: Value = all.iter().map(|it| ((*it).to_owned(), json!(-1))).collect();
    limits["wildcards"] = true.into();
    let limits = json!({ "type": "account", "version": 2, "limits": limits });
    [
        signed(&issuer, json!({ "type": "operator", "version": 2 })),
        signed(&account.public_key(), limits),
        account.public_key(),
        issuer.clone(),
    ]
}

/// Configs that run, and what becomes of users in a file that they include.
fn configs() -> Vec<(String, Truth)> {
    let [operator, token, account, key] = operator();
    let preload = format!("resolver: MEMORY\nresolver_preload {{ {account}: {token} }}");
    let websocket = |more: &str| format!("websocket {{ port: -1, no_tls: true{more} }}");
    let mqtt = |more: &str| format!("{JETSTREAM}server_name: m\nmqtt {{ port: -1{more} }}");
    let own = |text: &str| text.to_owned();
    vec![
        (own(""), Served),
        (own(JETSTREAM), Served),
        (format!("operator: {operator}\n{preload}"), Dead),
        (format!("roots: [{operator}]\nsystem_account: {account}\n{preload}"), Dead),
        (format!("trusted_keys: [{key}]"), Deaf),
        (format!("trusted: [{key}]\n{preload}"), Deaf),
        (format!("trusted_keys: [{key}]\n{}", websocket(", jwt_cookie: j")), Deaf),
        (preload, Served),
        (mqtt(""), Served),
        (mqtt(", authorization { token: x }"), Dead),
        (mqtt(", authentication { username: a, password: b }"), Dead),
        (mqtt(", authorization { timeout: 3 }"), Served),
        (own("mqtt { authorization { token: x } }"), Served),
        (websocket(""), Served),
        (websocket(", authorization { user: a, password: b }"), Dead),
        (websocket(", AUTHORIZATION { TOKEN: x }"), Dead),
        (websocket(", authorization { token: x }").replace("websocket", "WS"), Dead),
        (websocket(", authorization { token: \"\" }"), Served),
        (websocket(", authorization { password: x }"), Served),
        (own("websocket { no_tls: true, authorization { token: x } }"), Served),
        // The name stays in the auth file, locked.
        (format!("no_auth_user: locked{INCLUDE}").replace("include \"auth.conf\"", ""), Served),
        (format!("no_auth_user: app\n{APP}"), Served),
        (format!("{APP}{}", websocket(", no_auth_user: app")), Served),
        (format!("{JETSTREAM}{APP}"), Served),
        (format!("{JETSTREAM}accounts {{ APP {{}} }}"), Served),
        (format!("{JETSTREAM}{SYS}"), Served),
        (
            format!(
                "{JETSTREAM}accounts {{ \"$SYS\" {{ users = [ {{user: s, password: s}} ] }} }}"
            ),
            Served,
        ),
        (own("no_system_account: true"), Served),
        (own("leafnodes { port: -1 }"), Served),
        (own("leafnodes { port: -1, authorization { user: l, password: p } }"), Served),
        (
            own("leafnodes { port: -1, authorization { users = [ {user: ann, password: p} ] } }"),
            Served,
        ),
        (
            format!(
                "{APP}leafnodes {{ port: -1, authorization {{ account: APP, user: l, password: p }} }}"
            ),
            Served,
        ),
        (own("leafnodes { remotes = [ {url: \"nats://127.0.0.1:1\"} ] }"), Served),
        (own("cluster { name: c, port: -1, authorization { user: r, password: p } }"), Served),
        (own("gateway { name: g, port: -1, authorization { user: r, password: p } }"), Served),
        // `-t` refuses it for a warning.
        (own("write_deadline: 5"), Served),
    ]
}

/// A nats-server of this version in this folder.
struct Server {
    process: Process,
    address: SocketAddr,
    log: PathBuf,
}

impl Server {
    /// `None`: it ended.
    fn start(program: &Path, folder: &Path, config: &str) -> Option<Server> {
        let log = folder.join(format!("{config}.log"));
        let mut command = Command::new(program);
        command.current_dir(folder).args(["-c", config, "-a", "127.0.0.1", "-p", "-1"]);
        command.arg("-l").arg(&log);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = Process::start(&mut command);
        let said = || fs::read_to_string(&log).unwrap_or_default();
        let ready = eventually("nats-server starts, or ends", || {
            let ready = said().contains("Server is ready").then_some(true);
            ready.or_else(|| process.ended().map(|_| false))
        });
        let said = said();
        let address = said.split("for client connections on ").nth(1)?.lines().next()?;
        let address = address.parse().ok().filter(|_| ready)?;
        Some(Server { process, address, log })
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn accepts(&self, user: &str) -> bool {
        Client::connect(self.address, Login::Password(user, "p")).is_ok()
    }
}

/// An auth file with these users, and with the names that the main config needs, which nobody can log
/// in by.
fn users(names: &[&str], config: &MainConfig) -> String {
    let theirs = config.account_users();
    let needed = config.no_auth_users().into_iter().map(|it| it.user);
    let needed = needed.filter(|it| !theirs.contains(it)).map(|it| (it, "$2a$04$nobody"));
    let users = names.iter().map(|it| ((*it).to_owned(), "p")).chain(needed);
    let users = users.map(|(name, password)| format!("{{user: {name}, password: {password:?}}}"));
    let users: Vec<_> = users.collect();
    format!("authorization {{ users = [ {} ] }}\n", users.join(", "))
}

/// What we say of a config beforehand is what nats-server does with it: at its start, and at a reload.
#[tokio::test]
async fn whether_users_in_a_file_go_with_a_config_is_known_before_they_are_in_it() {
    for version in [Some("2.10.26"), None] {
        let program = tool("nats-server", version);
        for (text, truth) in configs() {
            let what = format!("{version:?}: {text}");
            let dir = TempDir::new().unwrap();
            let (config, after) = (dir.path().join("main.conf"), dir.path().join("after.conf"));
            write(&config, &text);
            write(&after, format!("{text}{INCLUDE}"));
            let as_it_is = Server::start(&program, dir.path(), "main.conf");
            assert!(as_it_is.is_some(), "it runs: {what}");
            drop(as_it_is);

            let mut options = Options::default();
            options.nats.server_binary.clone_from(&program);
            options.auth_file.path = dir.path().join("auth.conf");
            assert_eq!(starts(&options, &config).await.unwrap(), Some(Ok(())), "{what}");
            let read = MainConfig::read(&config, &options.auth_file.path).unwrap();
            let would = would_start(&options, &read, INCLUDE).await.unwrap().unwrap();
            let conflicts = read.conflicts();
            assert_eq!(would.is_ok() && conflicts.is_empty(), truth == Served, "{what}: {would:?}");
            assert_eq!(would.is_err(), truth == Dead, "{what}: {would:?}");
            let left: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().collect();
            assert!(left.iter().all(|it| it.file_name() != "auth.conf"), "{what}: {left:?}");

            // It is so.
            write(&options.auth_file.path, users(&["ann", "bob"], &read));
            let after = starts(&options, &after).await.unwrap().unwrap();
            assert_eq!(after.is_err(), truth == Dead, "{what}: {after:?}");
            let Some(server) = Server::start(&program, dir.path(), "after.conf") else {
                assert_eq!(truth, Dead, "{what}");
                continue;
            };
            assert_ne!(truth, Dead, "{what}");
            assert_eq!(server.accepts("ann"), truth == Served, "{what}");
            assert!(!server.accepts("eve"), "{what}");
            if truth == Deaf {
                continue;
            }
            // JetStream is told to be missing where it is.
            if text.contains("jetstream {") {
                let login = Login::Password("ann", "p");
                let mut ann = Client::connect(server.address, login).unwrap();
                let answer = ann.request("$JS.API.INFO", b"", SOON).expect("an answer");
                let answer = String::from_utf8_lossy(&answer.payload).into_owned();
                assert_eq!(
                    answer.contains("\"code\":503"),
                    read.apart().is_some(),
                    "{what}: {answer}"
                );
            }
            // And whatever starts can be reloaded.
            write(&options.auth_file.path, users(&["ann"], &read));
            server.process.signal(Signal::HUP);
            eventually("it reloads, or does not", || {
                let log = server.log();
                assert!(!log.contains("Failed to reload"), "{what}: {log}");
                log.contains("Reloaded server").then_some(())
            });
            assert!(server.accepts("ann") && !server.accepts("bob"), "{what}");
        }
    }
}

/// To look whether it starts opens nothing, writes nothing and tells nobody.
#[tokio::test]
async fn a_look_whether_nats_server_starts_touches_nothing() {
    for version in [Some("2.10.26"), Some("2.11.11"), Some("2.12.8"), None] {
        let dir = TempDir::new().unwrap();
        let config = dir.path().join("main.conf");
        let file = |name: &str| format!("{:?}", dir.path().join(name).display().to_string());
        // A port that is taken would end a server that comes so far.
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let text = format!(
            "server_name: n\nlisten: \"127.0.0.1:{port}\"\nhttp: \"127.0.0.1:-1\"\npid_file: {}\nlog_file: {}\n\
             ports_file_dir: {}\njetstream {{ store_dir: {} }}\nwebsocket {{ port: -1, no_tls: true }}\n\
             cluster {{ name: c, port: {port}, routes: [\"nats://127.0.0.1:{port}\"] }}\n",
            file("pid"),
            file("log"),
            file("ports"),
            file("js"),
        );
        write(&config, text);
        let mut options = Options::default();
        options.nats.server_binary = tool("nats-server", version);
        assert_eq!(starts(&options, &config).await.unwrap(), Some(Ok(())), "{version:?}");
        let left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(left, ["main.conf"], "{version:?}");
        taken.set_nonblocking(true).unwrap();
        assert!(taken.accept().is_err(), "{version:?}: nobody was asked for a route");
    }
}
