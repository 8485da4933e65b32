//! `pb-nats init`: from nothing, or from what is there already, to a first pass.

use std::{
    fs,
    io::Write as _,
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    PB_NATS,
    middlebox::{Fate, Middlebox},
    support::{
        Client, Login, Optional, Output, Pb, Process, SOON, SUPERUSER, Users, eventually,
        free_address, tool, write,
    },
};

/// None: the default one, which is the latest.
const VERSIONS: [Option<&str>; 3] = [Some("0.23.12"), Some("0.28.4"), None];

/// A folder for the settings, and what `init` is called with.
pub(crate) struct Init {
    dir: TempDir,
    url: String,
}

impl Init {
    pub(crate) fn of(pb: &Pb) -> Init {
        Init { dir: TempDir::new().unwrap(), url: pb.url() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Runs pb-nats, without a terminal and with the superuser in the environment.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.run_as(SUPERUSER, arguments)
    }

    pub(crate) fn run_as(&self, (user, password): (&str, &str), arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        command.env("PB_NATS_SUPERUSER", user).env("PB_NATS_SUPERUSER_PASSWORD", password);
        ended(&mut command, "")
    }

    /// The program, with no variables but the path to find nats-server in.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PB_NATS);
        command.current_dir(self.dir.path()).env_clear().args(arguments);
        let nats_server = tool("nats-server", None);
        command.env("PATH", nats_server.parent().unwrap());
        command
    }

    /// `init`, without asking.
    pub(crate) fn init(&self, more: &[&str]) -> Output {
        self.run(&[&["init", "--yes", "--url", &self.url], more].concat())
    }

    pub(crate) fn once(&self) -> Output {
        self.run(&["once"])
    }
}

pub(crate) fn ended(command: &mut Command, input: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A program that reads no stdin may have closed it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    Output {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A record of `nats_users` as `init` makes it, with a password.
pub(crate) fn record(name: &str, role: &str) -> Value {
    let roles: Vec<&str> = [role].into_iter().filter(|it| !it.is_empty()).collect();
    let password = format!("{name}'s password");
    json!({
        "username": name, "password": password, "passwordConfirm": password, "role_id": roles,
    })
}

/// The same of one who is let in.
fn active(name: &str, role: &str) -> Value {
    let mut record = record(name, role);
    record["active"] = true.into();
    record
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Takes out what differs each time.
fn strip(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for key in ["id", "created", "updated", "collectionId", "secret"] {
                map.remove(key);
            }
            map.values_mut().for_each(strip);
        }
        Value::Array(all) => all.iter_mut().for_each(strip),
        _ => (),
    }
}

/// What PocketBase has, but for what differs each time.
fn collections(pb: &Pb) -> Value {
    let mut all = pb.ask("GET", "/api/collections?perPage=100", &Value::Null)["items"].take();
    strip(&mut all);
    let by_name = |it: &Value| it["name"].as_str().unwrap().to_owned();
    all.as_array_mut().unwrap().sort_by_key(by_name);
    all
}

/// Asserts that PocketBase has these collections, and shows the first difference only.
#[track_caller]
fn same(pb: &Pb, wanted: &Value) {
    let found = collections(pb);
    let names = |it: &Value| {
        let all = it.as_array().unwrap().iter();
        all.map(|it| it["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&found), names(wanted));
    let (found, wanted) = (format!("{found:#}"), format!("{wanted:#}"));
    let differing = found.lines().zip(wanted.lines()).enumerate().find(|(_, (a, b))| a != b);
    if let Some((line, (found, wanted))) = differing {
        panic!("line {line}:\n{found}\ninstead of\n{wanted}");
    }
    assert_eq!(found.len(), wanted.len());
}

/// A nats-server with a main config that is not from here.
struct Server {
    _process: Process,
    address: SocketAddr,
}

impl Server {
    fn of(config: &Path) -> Server {
        let text = fs::read_to_string(config).unwrap();
        let address = text.split("listen: \"").nth(1).unwrap().split('"').next().unwrap();
        let mut command = Command::new(tool("nats-server", None));
        command.arg("-c").arg(config).stdin(Stdio::null()).stdout(Stdio::null());
        let process = Process::start(command.stderr(Stdio::null()));
        let server = Server { _process: process, address: address.parse().unwrap() };
        eventually("nats-server starts", || TcpStream::connect(server.address).ok());
        server
    }

    fn accepts(&self, user: &str, password: &str) -> bool {
        self.lets_in(Login::Password(user, password))
    }

    fn lets_in(&self, login: Login<'_>) -> bool {
        match Client::connect(self.address, login) {
            Ok(_) => true,
            Err(why) if why == "Authorization Violation" => false,
            Err(why) => panic!("the server neither lets in nor refuses: {why}"),
        }
    }
}

/// A nats-server of an operator who has never heard of us, and its main config.
fn fresh_nats(folder: &Path) -> PathBuf {
    let config = folder.join("nats-server.conf");
    let address = free_address();
    let monitor = free_address();
    let pid = folder.join("nats.pid");
    write(
        &config,
        format!(
            "# mine\nlisten: \"{address}\"\nhttp: \"{monitor}\"\npid_file: \"{}\"\n# the end",
            pid.display()
        ),
    );
    config
}

/// From two fresh servers to users who log in with their own rights, on every version.
#[test]
fn from_nothing_to_the_first_log_in() {
    for version in VERSIONS {
        let pb = Pb::empty(version);
        let init = Init::of(&pb);
        let config = fresh_nats(init.dir.path());
        let before = fs::read_to_string(&config).unwrap();
        let done = init.init(&["--nats-config", "nats-server.conf"]).success();
        assert!(done.stdout.contains("delete the collection \"nats_export\""), "{}", done.stdout);
        assert_eq!(mode(&init.path("pb-nats.token")), 0o600);
        assert_eq!(mode(&init.path("auth.conf")), 0o640);
        let after = fs::read_to_string(&config).unwrap();
        assert!(after.starts_with(&before) && after.ends_with("\ninclude \"auth.conf\"\n"));
        let backups = fs::read_dir(init.path("backups")).unwrap();
        let kept: Vec<_> = backups.map(|it| fs::read_to_string(it.unwrap().path())).collect();
        assert!(matches!(&kept[..], [Ok(kept)] if *kept == before));

        // The locked file lets the server start, and nobody in.
        let nats = Server::of(&config);
        assert!(!nats.lets_in(Login::Nobody), "{version:?}");
        init.run(&["check"]).success();
        let again = init.init(&["--nats-config", "nats-server.conf"]).success();
        assert!(again.stdout.starts_with("nothing to do\n"), "{version:?}: {}", again.stdout);
        assert_eq!(fs::read_to_string(&config).unwrap(), after);

        let roles = pb.ask("GET", "/api/collections/nats_roles/records", &Value::Null);
        let role = &roles["items"].as_array().unwrap().iter().find(|it| it["name"] == "device");
        let ann = json!({
            "username": "ann", "password": "ann's password", "passwordConfirm": "ann's password",
            "active": true, "role_id": [role.unwrap()["id"]],
        });
        pb.create("nats_users", &ann);
        init.once().success();
        let login = Login::Password("ann", "ann's password");
        let mut ann = Client::connect(nats.address, login).unwrap();
        assert!(ann.may_publish("devices.ann.temperature") && !ann.may_publish("devices.bob.x"));
        // Replies are between the two who speak.
        assert!(ann.may_subscribe("_INBOX_ann.>") && !ann.may_subscribe("_INBOX.>"));
        assert!(!ann.may_subscribe("_INBOX_bob.>"));

        // Changes are told, long before the next resync.
        let mut command = init.command(&["run"]);
        command.env("PB_NATS_ADMIN_LISTEN", "").stdout(Stdio::null()).stderr(Stdio::null());
        let _run = Process::start(&mut command);
        let id = pb.ask("GET", "/api/collections/nats_users/records", &Value::Null);
        let id = id["items"][0]["id"].as_str().unwrap().to_owned();
        for active in [false, true] {
            pb.update("nats_users", &id, &json!({ "active": active }));
            eventually("the change is in force", || {
                (nats.accepts("ann", "ann's password") == active).then_some(())
            });
        }
    }
}

/// Until somebody gives them a role. The seed's own defaults are for settings that say nothing.
#[test]
fn in_a_new_set_up_a_user_without_a_role_may_do_nothing() {
    let pb = Pb::empty(None);
    let init = Init::of(&pb);
    let config = fresh_nats(init.dir.path());
    init.init(&["--nats-config", "nats-server.conf"]).success();
    let nats = Server::of(&config);
    let users = pb.ask("GET", "/api/collections/nats_users", &Value::Null);
    let mut fields = users["fields"].clone();
    let role = fields.as_array_mut().unwrap().iter_mut().find(|it| it["name"] == "role_id");
    role.unwrap()["required"] = false.into();
    pb.ask("PATCH", "/api/collections/nats_users", &json!({ "fields": fields }));
    let mut plain = record("plain", "");
    plain["active"] = true.into();
    pb.create("nats_users", &plain);
    let may = || {
        init.once().success();
        let mut plain =
            Client::connect(nats.address, Login::Password("plain", "plain's password")).unwrap();
        [
            plain.may_publish("PUBLIC.x"),
            plain.may_subscribe("PUBLIC.x"),
            plain.may_subscribe("_INBOX.x"),
        ]
    };
    assert_eq!(may(), [false; 3]);
    let check = init.run(&["check"]).stdout;
    assert!(check.contains("✓ permissions  users without a role may do nothing\n"), "{check}");

    let settings = init.read("pb-nats.toml");
    let silent: String =
        settings.split_inclusive('\n').filter(|it| !it.starts_with("default_")).collect();
    assert_eq!(settings.lines().count(), silent.lines().count() + 2);
    write(init.path("pb-nats.toml"), silent);
    assert_eq!(may(), [true; 3]);
    let check = init.run(&["check"]).stdout;
    for part in [
        "may publish to PUBLIC.> and subscribe to PUBLIC.>, _INBOX.>: so it is where",
        "`default_publish = []`",
    ] {
        assert!(check.contains(part), "{check}");
    }
}

/// NATS's users are no users of PocketBase, though their collection could have such.
#[test]
fn nobody_logs_in_to_pocketbase_as_a_user_of_nats() {
    for version in VERSIONS {
        let pb = Pb::empty(version);
        let init = Init::of(&pb);
        let done = init.init(&[]).success().stdout;
        assert!(done.contains("updated), by which nobody can log in to PocketBase\n"), "{done}");
        let role = pb.role("mine", &["a"], &["a"]);
        let mut ann = record("ann", &role);
        ann["active"] = true.into();
        let id = pb.create("nats_users", &ann);
        let list = init.run(&["user", "list"]).success().stdout;
        assert!(list.contains("ann   not yet in the auth file  mine"), "{version:?}: {list}");
        let ask = |path: &str, body: &Value| {
            pb.request("POST", &format!("/api/collections/nats_users/{path}"), "", body).0
        };
        let closed = |when: &str| {
            for identity in ["ann", "ann@example.com"] {
                assert_eq!(pb.log_in("nats_users", identity, "ann's password"), None, "{when}");
            }
            let token = pb.ask(
                "POST",
                &format!("/api/collections/nats_users/impersonate/{id}"),
                &json!({ "duration": 60 }),
            );
            let token = token["token"].as_str().unwrap();
            let refresh = "/api/collections/nats_users/auth-refresh";
            let (status, answer) = pb.request("POST", refresh, token, &Value::Null);
            assert_eq!(status, 403, "{version:?} {when} {answer}");
        };
        pb.update("nats_users", &id, &json!({ "email": "ann@example.com" }));
        closed("as it was made");
        let email = json!({ "email": "ann@example.com" });
        assert!([400, 403].contains(&ask("request-otp", &email)), "{version:?}");
        assert!([400, 403].contains(&ask("request-password-reset", &email)), "{version:?}");
        assert!([400, 403].contains(&ask("records", &record("eve", &role))), "{version:?}");
        // Nor does it take only one switch.
        let on =
            json!({ "passwordAuth": { "enabled": true, "identityFields": ["username", "email"] } });
        pb.ask("PATCH", "/api/collections/nats_users", &on);
        closed("with passwords switched on");
    }
}

/// They see it as it was, are told, and can move with all passwords, as the book says.
#[test]
fn a_base_collection_goes_on_and_can_be_moved_to_an_auth_collection() {
    for version in VERSIONS {
        let mut pb = Pb::empty(version);
        pb.create_collections(Users::Password, Optional::Present);
        let users = pb.ask("GET", "/api/collections/nats_users", &Value::Null);
        let mut fields = users["fields"].clone();
        fields.as_array_mut().unwrap().extend([
            json!({ "name": "generated_hash", "type": "text", "hidden": true }),
            json!({ "name": "created", "type": "autodate", "onCreate": true }),
            json!({ "name": "updated", "type": "autodate", "onCreate": true, "onUpdate": true }),
        ]);
        pb.ask("PATCH", "/api/collections/nats_users", &json!({ "fields": fields }));
        let init = Init::of(&pb);
        let told = init.init(&[]).success().stdout;
        assert!(told.contains("! `nats_users` is a base collection"), "{version:?}: {told}");
        assert!(told.contains("`pb-nats user passwd`") && told.contains("move the users"));

        let role = pb.role("mine", &["a"], &["a"]);
        pb.user("ann", "ann's password", &role);
        let add = ["user", "add", "bob", "--role", "mine", "--generate"];
        let secret = init.run(&add).success().stdout;
        let nkey = nkeys::KeyPair::new_user().public_key();
        pb.create("nats_users", &json!({ "username": "cat", "nkey": nkey, "active": true }));
        let before = init.run(&["render"]).success().stdout;
        assert_eq!(before.matches("{user: ").count() + before.matches("{nkey: ").count(), 3);
        let with_data_dir = |init: &Init, pb: &Pb| {
            let data_dir = pb.data_dir();
            let text = init.read("pb-nats.toml");
            let url = format!("url = \"{}\"", pb.url());
            assert!(text.contains(&url), "{text}");
            let text = text.replace(&url, &format!("data_dir = {data_dir:?}"));
            write(init.path("file.toml"), text.replace("token_file", "# token_file"));
            init.run(&["-c", "file.toml", "render"]).success().stdout
        };
        assert_eq!(with_data_dir(&init, &pb), before, "{version:?}");
        let code = |init: &Init| {
            let check = init.run(&["check", "--json"]).stdout;
            check.contains("schema.no_password_input")
        };
        assert!(code(&init), "{version:?}");

        init.once().success();
        let settings = init.read("pb-nats.toml");
        let moved = settings
            .replace("#user_collection = \"nats_users\"", "user_collection = \"nats_logins\"");
        assert_ne!(moved, settings);
        write(init.path("pb-nats.toml"), moved);
        init.init(&[]).success();
        // Nobody is there yet, and those who are in NATS stay.
        init.once().exits(4);
        let page = fs::read_to_string("docs/running.md").unwrap();
        let migration = page.split("```js\n").nth(1).unwrap().split("```").next().unwrap();
        write(pb.data_dir().with_file_name("pb_migrations").join("1_move.js"), migration);
        pb.stop();
        pb.resume();
        assert_eq!(init.run(&["render"]).success().stdout, before, "{version:?}");
        assert_eq!(with_data_dir(&init, &pb), before, "{version:?}");
        assert!(!code(&init), "{version:?}");
        assert!(!init.init(&[]).success().stdout.contains("base collection"));
        // It is theirs as before, and can be changed.
        init.run(&["user", "passwd", "bob", "--generate"]).success();
        let file = init.run(&["render"]).success().stdout;
        assert_ne!(file, before, "{version:?}: {secret}");
    }
}

/// It reads the two collections, and that is all that it can do.
#[test]
fn the_service_account_reads_and_does_nothing_else() {
    for version in VERSIONS {
        let pb = Pb::empty(version);
        let init = Init::of(&pb);
        let secrets = json!({
            "name": "secrets", "type": "base", "listRule": null,
            "fields": [{ "name": "text", "type": "text" }],
        });
        pb.ask("POST", "/api/collections", &secrets);
        pb.create("secrets", &json!({ "text": "hush" }));
        init.init(&[]).success();
        let token = init.read("pb-nats.token");
        let token = token.trim();
        let role = pb.role("mine", &["a"], &["a"]);
        let user = pb.create("nats_users", &record("u", &role));
        let asked = |method: &str, path: &str, body: &Value| {
            pb.request(method, &format!("/api/collections{path}"), token, body)
        };
        for readable in ["nats_users", "nats_roles", "nats_export"] {
            let (status, answer) = asked("GET", &format!("/{readable}/records"), &Value::Null);
            assert_eq!(status, 200, "{version:?} {readable}");
            assert!(!answer["items"].as_array().unwrap().is_empty(), "{version:?} {readable}");
            let (_, guest) = pb.request(
                "GET",
                &format!("/api/collections/{readable}/records"),
                "",
                &Value::Null,
            );
            assert_eq!(guest["items"], json!([]), "{version:?} {readable}");
        }
        let me = pb.ask("GET", "/api/collections/nats_sync/records", &Value::Null);
        let me = me["items"][0]["id"].as_str().unwrap().to_owned();
        let passwords =
            json!({ "password": "ann's password", "passwordConfirm": "ann's password" });
        for (method, path, body) in [
            ("GET", "", json!(null)),
            ("POST", "", json!({ "name": "x", "type": "base" })),
            ("GET", "/secrets/records", json!(null)),
            ("GET", "/nats_sync/records", json!(null)),
            ("GET", "/_superusers/records", json!(null)),
            ("PATCH", &*format!("/nats_sync/records/{me}"), passwords.clone()),
            ("POST", "/nats_sync/records", passwords),
            ("PATCH", &*format!("/nats_users/records/{user}"), json!({ "active": true })),
            ("POST", "/nats_users/records", record("v", &role)),
            ("DELETE", &*format!("/nats_users/records/{user}"), json!(null)),
            ("PATCH", &*format!("/nats_roles/records/{role}"), json!({ "name": "x" })),
            ("POST", "/nats_roles/records", json!({ "name": "x" })),
            ("DELETE", &*format!("/nats_roles/records/{role}"), json!(null)),
            ("PATCH", "/nats_roles", json!({ "listRule": "" })),
            ("POST", &*format!("/nats_sync/impersonate/{me}"), json!({ "duration": 1 })),
        ] {
            let (status, answer) = asked(method, path, &body);
            assert!(
                [401, 403, 404].contains(&status),
                "{version:?} {method} {path} {status} {answer}"
            );
        }
        assert_eq!(pb.request("GET", "/api/settings", token, &Value::Null).0, 403);
        // Nor does anybody become it by guessing.
        assert_eq!(pb.log_in("nats_sync", "pb-nats@nats-sync.invalid", "ann's password"), None);
    }
}

/// By the app's own rules, of which only a superuser is told.
#[test]
fn collections_that_the_service_account_gets_to_like_any_account_are_named() {
    let pb = Pb::empty(None);
    let init = Init::of(&pb);
    for (name, rule) in [
        ("orders", "@request.auth.id != ''"),
        ("posts", "public = true || @request.auth.id!=\"\""),
        ("own", "owner = @request.auth.id"),
        ("kept", "@request.auth.id != '' && @request.auth.collectionName != 'nats_sync'"),
    ] {
        let text = |name: &str| json!({ "name": name, "type": "text" });
        let fields = json!([{ "name": "public", "type": "bool" }, text("owner")]);
        let made = json!({ "name": name, "type": "base", "fields": fields, "listRule": rule });
        pb.ask("POST", "/api/collections", &made);
        pb.create(name, &json!({ "owner": "somebody" }));
    }
    let said = init.init(&[]).success().stdout;
    let named = said.lines().find(|it| it.starts_with("! rules of ")).unwrap();
    assert!(named.contains(" `orders`, `posts` admit ") && said.contains("\n  && @request"));
    let shown = |name: &str| {
        let path = format!("/api/collections/{name}/records");
        let token = init.read("pb-nats.token");
        pb.request("GET", &path, token.trim(), &Value::Null).1["items"] != json!([])
    };
    assert_eq!(["orders", "posts", "own", "kept"].map(shown), [true, true, false, false]);

    for (name, rule) in [
        ("orders", "@request.auth.id != '' && @request.auth.collectionName != 'nats_sync'"),
        ("posts", "public = true"),
    ] {
        let path = format!("/api/collections/{name}");
        pb.ask("PATCH", &path, &json!({ "listRule": rule }));
    }
    let said = init.init(&[]).success().stdout;
    assert!(!said.contains("! rules of"), "{said}");
}

/// A role that somebody has and the only one, cannot go; so nobody gets the defaults by its end.
#[test]
fn no_user_can_be_left_without_a_role() {
    for version in VERSIONS {
        let pb = Pb::empty(version);
        Init::of(&pb).init(&[]).success();
        let role = pb.role("mine", &["a"], &["a"]);
        let made = |record: &Value| {
            pb.request("POST", "/api/collections/nats_users/records", pb.token(), record).0
        };
        let with_nkey = |name: &str| {
            let mut record = record(name, &role);
            record["nkey"] = "U1".into();
            record
        };
        assert_eq!(made(&record("u", "")), 400, "{version:?}");
        assert_eq!(made(&record("u", &role)), 200, "{version:?}");
        assert_eq!(made(&record("u", &role)), 400, "{version:?}: twice");
        assert_eq!(made(&with_nkey("v")), 200);
        assert_eq!(made(&with_nkey("w")), 400);
        let path = format!("/api/collections/nats_roles/records/{role}");
        assert_eq!(pb.request("DELETE", &path, pb.token(), &Value::Null).0, 400, "{version:?}");
    }
}

/// Run by PocketBase, the migration makes what `init` makes; undone, nothing is left of it.
#[test]
fn a_migration_makes_the_same_and_can_be_undone() {
    for version in VERSIONS {
        let direct = Pb::empty(version);
        Init::of(&direct).init(&["--write-status"]).success();

        let mut pb = Pb::empty(version);
        let init = Init::of(&pb);
        let fresh = collections(&pb);
        let folder = pb.data_dir().with_file_name("pb_migrations");
        let folder = folder.to_str().unwrap();
        for _ in 0..2 {
            init.run(&["init", "--write-status", "--migration", folder]).success();
        }
        eventually("another second has begun, and there is nothing to do", || {
            let again = init.run(&["init", "--write-status", "--migration", folder]).success();
            again.stdout.starts_with("nothing to do: ").then_some(())
        });
        let files: Vec<_> = fs::read_dir(folder).unwrap().map(|it| it.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "the same one is not written again");
        assert!(!init.path("pb-nats.toml").exists());
        pb.stop();
        pb.resume();
        same(&pb, &collections(&direct));

        // It is all there but for the token and the files.
        let done = init.init(&["--write-status"]).success();
        assert!(!done.stdout.contains("✓ PocketBase"), "{version:?}: {}", done.stdout);
        let found = init.run(&["role", "list"]).success().stdout;
        assert!(found.contains("observer") && found.contains("device"), "{found}");
        init.run(&["check"]);

        // PocketBase asks at a terminal before it goes back; so its way back is another way on.
        let text = fs::read_to_string(&files[0]).unwrap();
        let (_, back) = text.split_once("\n}, (app) => {").unwrap();
        write(Path::new(folder).join("9999999999_back.js"), format!("migrate((app) => {{{back}"));
        pb.stop();
        pb.resume();
        same(&pb, &fresh);
    }
}

/// An app's own `users` become NATS users without a change of what the app can see or do, and
/// without a way for them to help themselves to rights.
#[test]
fn an_apps_users_can_be_the_nats_users() {
    for version in VERSIONS {
        let pb = Pb::empty(version);
        let init = Init::of(&pb);
        let before = pb.ask("GET", "/api/collections/users", &Value::Null);
        let done = init.init(&["--user-collection", "users"]).success();
        assert!(done.stdout.contains("! the list rule of `users`"), "{}", done.stdout);
        let after = pb.ask("GET", "/api/collections/users", &Value::Null);
        for key in ["listRule", "viewRule", "createRule", "updateRule", "deleteRule", "indexes"] {
            assert_eq!(after[key], before[key], "{version:?} {key}");
        }
        let fields = |it: &Value| it["fields"].as_array().unwrap().clone();
        assert_eq!(fields(&after)[..fields(&before).len()], fields(&before)[..], "{version:?}");
        let settings = init.read("pb-nats.toml");
        for line in ["resync_interval = \"10s\"", "default_publish = []", "default_subscribe = []"]
        {
            assert!(settings.contains(&format!("\n{line}\n")), "{line}");
        }

        // Anybody may sign up, and say what they want.
        let role = pb.ask("GET", "/api/collections/nats_roles/records", &Value::Null);
        let role = &role["items"][0]["id"];
        let eve = json!({
            "email": "eve@example.com", "password": "eve's password",
            "passwordConfirm": "eve's password", "active": true, "role_id": [role],
        });
        let (status, eve) = pb.request("POST", "/api/collections/users/records", "", &eve);
        assert_eq!(status, 200, "{version:?} {eve}");
        let id = eve["id"].as_str().unwrap();
        let token = pb.log_in("users", "eve@example.com", "eve's password").unwrap();
        let path = format!("/api/collections/users/records/{id}");
        let wish = json!({ "active": true, "role_id": [role], "role_id+": role });
        pb.request("PATCH", &path, &token, &wish);
        let list = init.run(&["user", "list"]).success().stdout;
        let line = list.lines().find(|it| it.starts_with("eve@example.com")).unwrap();
        assert!(line.contains("inactive"), "{version:?}: {line}");
        let record = pb.ask("GET", &path, &Value::Null);
        assert_eq!((&record["active"], &record["role_id"]), (&json!(false), &json!([])));
        // A superuser decides.
        pb.update("users", id, &json!({ "active": true, "role_id": [role] }));
        let list = init.run(&["user", "list"]).success().stdout;
        assert!(list.contains("eve@example.com  not yet in the auth file"), "{version:?}: {list}");
        assert!(init.init(&[]).code == Some(0));
    }
}

/// Collections made by hand keep what they have, and get what nobody has set.
#[test]
fn collections_made_by_hand_are_adopted() {
    for kind in [Users::Text, Users::Password, Users::Auth] {
        let pb = Pb::with(kind, Optional::Absent);
        let role = pb.role("r", &["a"], &["a"]);
        pb.user("ann", "ann's password", &role);
        let fields = |name: &str| {
            pb.ask("GET", &format!("/api/collections/{name}"), &Value::Null)["fields"].take()
        };
        let before = [fields("nats_users"), fields("nats_roles")];
        let init = Init::of(&pb);
        let done = init.init(&[]).success();
        assert!(!done.stdout.contains("the role "), "roles are there already: {}", done.stdout);
        let undo =
            "  - in PocketBase, remove from `nats_users`: the index CREATE UNIQUE INDEX `idx_";
        assert!(done.stdout.contains(undo), "{kind:?}: {}", done.stdout);
        assert_eq!([fields("nats_users"), fields("nats_roles")], before, "{kind:?}");
        let list = init.run(&["user", "list"]).success().stdout;
        assert!(list.contains("ann   not yet in the auth file"), "{kind:?}: {list}");
        let again = init.init(&[]).success().stdout;
        assert!(again.starts_with("nothing to do\n"), "{kind:?}: {again}");
        let twice = json!({ "username": "ann", "role_id": [role], "email": "x@example.com",
            "password": "ann's password", "passwordConfirm": "ann's password" });
        let path = "/api/collections/nats_users/records";
        assert_eq!(pb.request("POST", path, pb.token(), &twice).0, 400, "{kind:?}");
    }
}

/// Wherever it ends, the next run does the rest.
#[test]
fn what_is_interrupted_is_finished_by_the_next_run() {
    let direct = Pb::empty(None);
    Init::of(&direct).init(&[]).success();
    let wanted = collections(&direct);
    for writes in 0..9 {
        let pb = Pb::empty(None);
        let seen = AtomicUsize::new(0);
        let middlebox = Middlebox::start(pb.address(), move |head| {
            // The first one is the log-in. PocketBase does the last one, but nobody hears of it.
            let writing = !head.starts_with("GET");
            match seen.fetch_add(usize::from(writing), Ordering::SeqCst) {
                n if writing && n > writes => Fate::Cut(0),
                _ => Fate::Pass,
            }
        });
        let mut init = Init::of(&pb);
        init.url = middlebox.url();
        let cut = init.init(&[]).exits(1);
        assert!(cut.stderr.contains("run it again"), "{writes}: {}", cut.stderr);
        assert!(!init.path("pb-nats.toml").exists() || writes == 9);
        init.url = pb.url();
        // PocketBase may still be at what was cut off.
        eventually("the rest is done", || (init.init(&[]).code == Some(0)).then_some(()));
        same(&pb, &wanted);
        let roles = init.run(&["role", "list"]).success().stdout;
        assert_eq!(roles.lines().count(), 4, "{writes}: {roles}");
        assert!(init.init(&[]).success().stdout.starts_with("nothing to do\n"), "{writes}");
    }
}

/// Whatever would be lost by the include is named, and nothing is done.
#[test]
fn a_main_config_with_users_of_its_own_is_left_alone() {
    let pb = Pb::empty(None);
    let init = Init::of(&pb);
    let before = collections(&pb);
    for (config, told) in [
        (
            "authorization { users = [ {user: ann, password: a}, {user: bob, password: b} ] }",
            "ann, bob",
        ),
        ("port: 1\nauthorization {\n user: ann\n password: a\n}", "line 2"),
        ("authorization { token: \"s3cret\" }", "whoever has the token"),
        ("AUTHORIZATION: { timeout: 3 }", "would replace"),
        (
            "include auth.conf\nauthorization { users = [ {user: ann, password: a} ] }",
            "replaces it",
        ),
        ("authorization {", "not understood"),
        ("prot: 4222", "refuses it as it is"),
    ] {
        write(init.path("n.conf"), config);
        if config.starts_with("include") {
            write(init.path("auth.conf"), "");
        }
        let refused = init.init(&["--nats-config", "n.conf"]).exits(1);
        assert!(refused.stderr.contains(told), "{config}: {}", refused.stderr);
        assert!(refused.stderr.contains("\nhint: ") && !refused.stderr.contains("s3cret"));
        assert_eq!(init.read("n.conf"), config);
        assert!(!init.path("pb-nats.toml").exists() && !init.path("pb-nats.token").exists());
    }
    assert_eq!(collections(&pb), before);
    // One that is closed by itself, with accounts beside, can be added to.
    let closed = "accounts { SYS { users = [ {user: sys, password: s} ] } }\nsystem_account: SYS\n\
        authorization { users = [ {user: locked, password: x, permissions: \
        {publish: {deny: \">\"}, subscribe: {deny: \">\"}}} ] }";
    write(init.path("n.conf"), closed);
    init.init(&["--nats-config", "n.conf"]).success();
    assert!(init.read("n.conf").starts_with(closed));
}

/// `nats-server -t` has nothing against these, and the next start would fail; so nothing is done, in
/// PocketBase either.
#[test]
fn a_main_config_that_would_no_longer_start_is_left_alone_and_so_is_pocketbase() {
    let pb = Pb::empty(None);
    let init = Init::of(&pb);
    let before = collections(&pb);
    let mqtt = "server_name: m\njetstream { store_dir: \"js\" }\nmqtt { port: -1 }";
    let own = mqtt.replace("port: -1", "port: -1, authorization { token: s3cret }");
    let twice = "accounts { A { users = [ {user: pb-nats-locked, password: x} ] } }";
    let key = nkeys::KeyPair::new_operator().public_key();
    for (config, told, by_rule) in [
        (own.clone(), ["`mqtt` (line 3 of ", "take that log-in out"], true),
        (own.replace("mqtt", "websocket"), ["`websocket` (line 3 of ", "`pb-nats user add`"], true),
        ("operator: op.jwt".into(), ["operator mode", "one of its own"], true),
        (format!("trusted_keys: [{key}]"), ["lets in nobody", "one of its own"], true),
        ("server_tags: [$OF_THE_SERVICE]".into(), ["`$OF_THE_SERVICE`", "EnvironmentFile="], false),
        (twice.into(), ["no longer start", "\"pb-nats-locked\""], false),
    ] {
        write(init.path("n.conf"), &config);
        let arguments = ["init", "--yes", "--url", &init.url, "--nats-config", "n.conf"];
        for program in [tool("nats-server", None).parent().unwrap(), Path::new("/nowhere")] {
            if !by_rule && program == Path::new("/nowhere") {
                continue;
            }
            let mut command = init.command(&arguments);
            command.env("PB_NATS_SUPERUSER", SUPERUSER.0).env("PATH", program);
            command.env("PB_NATS_SUPERUSER_PASSWORD", SUPERUSER.1);
            let refused = ended(&mut command, "").exits(1);
            for told in told {
                assert!(refused.stderr.contains(told), "{config}: {}", refused.stderr);
            }
            assert!(refused.stderr.contains("\nhint: ") && !refused.stderr.contains("s3cret"));
            assert_eq!(init.read("n.conf"), config);
            assert!(!init.path("pb-nats.toml").exists() && !init.path("pb-nats.token").exists());
        }
    }
    assert_eq!(collections(&pb), before);

    // What is in the way is taken out, and then it goes; with a name that nats-server does not start
    // without, which stays and nobody is.
    let closed = "authorization { users = [ {user: nemo, password: x, permissions: {publish: \
        {deny: \">\"}, subscribe: {deny: \">\"}}} ] }";
    write(init.path("n.conf"), format!("{}no_auth_user: nemo\n{closed}\n", listening()));
    init.init(&["--nats-config", "n.conf"]).success();
    assert!(init.read("auth.conf").contains("{user: \"nemo\", "));
    let nats = Server::of(&init.path("n.conf"));
    assert!(!nats.lets_in(Login::Nobody) && !nats.accepts("nemo", "x"));
    drop(nats);
    write(init.path("n.conf"), mqtt);
    for name in ["pb-nats.toml", "auth.conf"] {
        fs::remove_file(init.path(name)).unwrap();
    }
    init.init(&["--nats-config", "n.conf"]).success();

    // With the include in place, `check` says the same.
    let good = init.read("n.conf");
    let code = |init: &Init, code: &str| {
        let lines: Value = serde_json::from_str(&init.run(&["check", "--json"]).stdout).unwrap();
        lines.as_array().unwrap().iter().find(|it| it["code"] == code).cloned()
    };
    assert_eq!(code(&init, "main_config.accepted").unwrap()["verdict"], "good");
    for (config, wrong) in [
        (good.replace("port: -1", "port: -1, authorization { token: s3cret }"), "conflict"),
        (format!("trusted_keys: [{key}]\n{good}"), "conflict"),
        (format!("{good}\nmax_payload: 9MB\nmax_pending: 8MB"), "refused"),
    ] {
        write(init.path("n.conf"), &config);
        let line = code(&init, &format!("main_config.{wrong}"));
        assert_eq!(line.unwrap()["verdict"], "wrong", "{config}");
        assert_eq!(code(&init, "main_config.accepted"), None, "{config}");
    }
}

/// Their users go on logging in, and that is all that they have in common with PocketBase's.
#[test]
fn whom_pocketbase_s_users_cannot_talk_to_is_told_before_and_after() {
    let pb = Pb::empty(None);
    let init = Init::of(&pb);
    let accounts = "accounts {\n APP { jetstream: enabled, users = [ {user: app, password: a} ] }\n \
        SYS { users = [ {user: sys, password: s} ] }\n}\nsystem_account: SYS\n";
    let store = init.path("js");
    let config = format!("{}jetstream {{ store_dir: {store:?} }}\n{accounts}", listening());
    write(init.path("n.conf"), &config);
    let said = init.init(&["--nats-config", "n.conf"]).success().stdout;
    let told = ["`APP` (app)", "any subject", "503", "still log in", "take these accounts out"];
    for told in told {
        assert!(said.contains(told), "`{told}` has to be in: {said}");
    }
    assert!(said.contains("only users of PocketBase and of the main config's accounts"), "{said}");
    let role = pb.role("r", &[">"], &[">"]);
    pb.create("nats_users", &active("ann", &role));
    let nats = Server::of(&init.path("n.conf"));
    init.once().success();
    let checked = init.run(&["check"]).stdout;
    let line = checked.lines().find(|it| it.contains("`APP` (app)")).unwrap();
    assert!(line.starts_with("! main config") && line.contains("503"), "{line}");

    // It is so.
    let mut ann = Client::connect(nats.address, Login::Password("ann", "ann's password")).unwrap();
    let mut app = Client::connect(nats.address, Login::Password("app", "a")).unwrap();
    for client in [&mut ann, &mut app] {
        client.subscribe("hello");
        client.flush().unwrap();
    }
    ann.publish("hello", b"from ann");
    app.publish("hello", b"from app");
    for (client, own) in [(&mut ann, "from ann"), (&mut app, "from app")] {
        client.flush().unwrap();
        let came: Vec<_> = client.received().into_iter().map(|it| it.payload).collect();
        assert_eq!(came, [own.as_bytes()]);
    }
    for (client, missing) in [(&mut ann, true), (&mut app, false)] {
        let answer = client.request("$JS.API.INFO", b"", SOON).unwrap().payload;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert_eq!(answer.contains("\"code\":503"), missing, "{answer}");
    }

    // The system account is no limit.
    let init = Init::of(&pb);
    write(init.path("n.conf"), config.replace("APP {", "# APP {"));
    let said = init.init(&["--nats-config", "n.conf"]).success().stdout;
    assert!(!said.contains("503"), "{said}");
    assert!(
        said.contains("only users of PocketBase are let in; until the first pass, nobody"),
        "{said}"
    );
}

/// First without `--nats-config`, as it says itself for a config with users; then with it.
#[test]
fn a_second_run_reaches_what_a_first_one_would_have() {
    let pb = Pb::empty(None);
    let (one, two) = (Init::of(&pb), Init::of(&pb));
    let config = listening();
    for init in [&one, &two] {
        write(init.path("n.conf"), &config);
    }
    one.init(&["--nats-config", "n.conf"]).success();
    two.init(&[]).success();
    assert!(!two.read("pb-nats.toml").contains("\npid_file"));
    // What somebody sets or remarks meanwhile stays.
    let edited =
        two.read("pb-nats.toml").replace("[sync]\n", "[sync]\n# for the shop\nmax_wait = \"5s\"\n");
    write(two.path("pb-nats.toml"), &edited);
    fs::set_permissions(two.path("pb-nats.toml"), fs::Permissions::from_mode(0o600)).unwrap();
    let done = two.init(&["--nats-config", "n.conf"]).success().stdout;
    for told in ["`nats.config_file = \"n.conf\"`", "`nats.pid_file = ", "n.conf: these lines"] {
        assert!(done.contains(told), "`{told}` has to be in: {done}");
    }
    assert_eq!(mode(&two.path("pb-nats.toml")), 0o600);
    let now = two.read("pb-nats.toml");
    let mut left = now.lines();
    assert!(edited.lines().all(|line| left.any(|it| it == line)), "{now}");
    // Both are alike, but for where they are, and for what was edited.
    let of = |init: &Init, name: &str| {
        let here = init.dir.path().canonicalize().unwrap().display().to_string();
        let text = init.read(name).replace(&here, "…");
        let set = text.lines().filter(|it| !it.starts_with(['#', '[']) && !it.is_empty());
        let own = ["listen", "max_wait", "path =", "backup_dir"];
        let set = set.filter(|it| !own.iter().any(|own| it.starts_with(own)));
        set.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(of(&two, "n.conf"), of(&one, "n.conf"));
    assert_eq!(of(&two, "pb-nats.toml"), of(&one, "pb-nats.toml"));
    let text = two.read("n.conf");
    for _ in 0..2 {
        let again = two.init(&["--nats-config", "n.conf"]).success().stdout;
        assert!(again.starts_with("nothing to do\n"), "{again}");
    }
    assert_eq!((two.read("n.conf"), two.read("pb-nats.toml")), (text, now));

    // And it works: a reload is ordered, and proven.
    let nats = Server::of(&two.path("n.conf"));
    let role = pb.role("r", &[">"], &[">"]);
    pb.create("nats_users", &active("ann", &role));
    two.once().success();
    assert!(nats.accepts("ann", "ann's password") && !nats.accepts("ann", "wrong"));
}

/// The start of a main config, with a monitor where nobody else has one.
fn listening() -> String {
    format!("listen: \"{}\"\nhttp: \"{}\"\n", free_address(), free_address())
}

/// Runs that were killed between two steps, and what people do in between.
#[test]
fn whatever_is_missing_is_made_by_the_next_run() {
    let pb = Pb::empty(None);
    let init = Init::of(&pb);
    let before = listening();
    write(init.path("n.conf"), &before);
    let done = || init.init(&["--nats-config", "n.conf"]).success().stdout;
    done();
    let all = || {
        let files = ["n.conf", "pb-nats.toml", "auth.conf", "pb-nats.token"];
        files.map(|it| {
            let text = init.read(it);
            let lines = text.lines().filter(|it| !it.starts_with("# Generated at"));
            lines.collect::<Vec<_>>().join("\n")
        })
    };
    let [config, settings, auth, token] = all();
    let restored = |what: &str| {
        let said = done();
        let [now, set, file, kept] = all();
        assert_eq!(
            (now, set, file),
            (config.clone(), settings.clone(), auth.clone()),
            "{what}: {said}"
        );
        assert!(!kept.is_empty(), "{what}");
        assert!(done().starts_with("nothing to do\n"), "{what}");
    };
    // Killed before the main config was added to.
    write(init.path("n.conf"), &before);
    restored("the main config is as it was");
    fs::remove_file(init.path("auth.conf")).unwrap();
    write(init.path("n.conf"), &before);
    restored("no auth file either");
    fs::remove_file(init.path("pb-nats.toml")).unwrap();
    restored("no settings");
    for name in ["pb-nats.toml", "auth.conf"] {
        fs::remove_file(init.path(name)).unwrap();
    }
    write(init.path("n.conf"), &before);
    restored("a token alone");
    assert_eq!(init.read("pb-nats.token").trim_end(), token);
    fs::remove_file(init.path("pb-nats.token")).unwrap();
    restored("no token");

    // Somebody takes the include out: without `--nats-config` the lines are told, with it added.
    write(init.path("n.conf"), config.replace("include \"auth.conf\"", "# include \"auth.conf\""));
    let told = init.init(&[]).success().stdout;
    assert!(told.contains("\ninclude \"auth.conf\"\n") && told.contains("--nats-config"), "{told}");
    done();
    assert!(init.read("n.conf").ends_with("\ninclude \"auth.conf\"\n"));
    assert!(done().starts_with("nothing to do\n"));

    // Lines that were added by hand, as an earlier run told them.
    write(init.path("n.conf"), format!("{before}include \"auth.conf\"\n"));
    done();
    assert!(
        init.read("n.conf").contains("\npid_file: ")
            && init.read("n.conf").matches("include").count() == 1
    );

    // A port that something else in it is to have is not taken for the monitor.
    let port = Init::of(&pb);
    let listen = format!("listen: \"{}\"\n", free_address());
    write(port.path("n.conf"), format!("{listen}websocket {{ port: 8222, no_tls: true }}\n"));
    port.init(&["--nats-config", "n.conf"]).success();
    let text = port.read("n.conf");
    assert!(text.contains("\npid_file: ") && !text.contains("\nhttp: "), "{text}");

    // An auth file that is elsewhere is found by the include, whatever became of the settings.
    let elsewhere = Init::of(&pb);
    fs::create_dir(elsewhere.path("there")).unwrap();
    fs::copy(init.path("auth.conf"), elsewhere.path("there/mine.conf")).unwrap();
    write(
        elsewhere.path("n.conf"),
        format!("{before}pid_file: /run/x.pid\ninclude there/mine.conf\n"),
    );
    elsewhere.init(&["--nats-config", "n.conf"]).success();
    assert!(elsewhere.read("pb-nats.toml").contains("\npath = \"there/mine.conf\"\n"));
    assert_eq!(elsewhere.read("n.conf").matches("include").count(), 1);

    // Another main config than the one in the settings is not guessed at.
    write(init.path("other.conf"), &before);
    let refused = init.init(&["--nats-config", "other.conf"]).exits(2);
    for part in ["`nats.config_file`", "n.conf", "other.conf", "hint: "] {
        assert!(refused.stderr.contains(part), "{part}: {}", refused.stderr);
    }
    assert_eq!(init.read("other.conf"), before);
    assert_eq!(init.read("pb-nats.toml").trim_end(), settings);

    // Settings in a form that cannot be added to are told instead.
    let token = init.path("pb-nats.token").display().to_string();
    let short =
        format!("pocketbase = {{ url = {:?}, token_file = {token:?} }}\nnats = {{}}\n", pb.url());
    let own = Init::of(&pb);
    write(own.path("pb-nats.toml"), &short);
    write(own.path("n.conf"), &before);
    let said = own.init(&["--nats-config", "n.conf"]).success().stdout;
    assert!(said.contains("pb-nats.toml: `nats.config_file = \"n.conf\"`"), "{said}");
    assert_eq!(own.read("pb-nats.toml"), short);
    assert!(own.read("n.conf").contains("include"));
}

/// A file that something else wrote: each step names the next, and the last one ends well.
#[test]
fn an_auth_file_of_somebody_else_is_taken_over_step_by_step() {
    let pb = Pb::empty(None);
    let init = Init::of(&pb);
    let foreign = "authorization { users = [ {user: old, password: p} ] }\n";
    for included in [false, true] {
        let init = Init { dir: TempDir::new().unwrap(), url: init.url.clone() };
        write(init.path("auth.conf"), foreign);
        let include = if included { "include \"auth.conf\"\n" } else { "" };
        write(init.path("n.conf"), format!("{}{include}", listening()));
        let none = init.run(&["once", "--adopt"]).exits(2);
        assert!(none.stderr.contains("hint: `pb-nats init`"), "{}", none.stderr);
        let told = init.init(&["--nats-config", "n.conf"]).success().stdout;
        for part in
            ["was not written by pb-nats", "`pb-nats once --adopt`", "locked out by that: old"]
        {
            assert!(told.contains(part), "{part}: {told}");
        }
        assert_eq!(init.read("auth.conf"), foreign, "{included}");
        init.run(&["once"]).exits(1);
        assert_eq!(init.read("auth.conf"), foreign, "{included}");
        init.run(&["once", "--adopt"]).success();
        assert!(!init.read("auth.conf").contains("old"), "{included}");
        let kept = fs::read_dir(init.path("backups")).unwrap().flatten();
        let kept: Vec<_> = kept.map(|it| fs::read_to_string(it.path()).unwrap()).collect();
        assert_eq!(kept, [foreign], "{included}");
        init.init(&["--nats-config", "n.conf"]).success();
        assert_eq!(init.read("n.conf").matches("\ninclude \"auth.conf\"").count(), 1, "{included}");
        assert!(
            init.read("pb-nats.toml").contains("\npid_file = \"nats-server.pid\"\n"),
            "{included}"
        );
        let nats = Server::of(&init.path("n.conf"));
        assert!(!nats.accepts("old", "p") && !nats.lets_in(Login::Nobody), "{included}");
    }
}

/// They are there to be used later, and in nobody's way.
#[test]
fn roles_that_were_just_made_are_not_to_be_deleted() {
    let pb = Pb::empty(None);
    let init = Init::of(&pb);
    write(init.path("n.conf"), listening());
    init.init(&["--nats-config", "n.conf"]).success();
    let _nats = Server::of(&init.path("n.conf"));
    let device =
        pb.ask("GET", "/api/collections/nats_roles/records?filter=name='device'", &Value::Null);
    let role = device["items"][0]["id"].as_str().unwrap();
    pb.create("nats_users", &active("ann", role));
    init.once().success();
    let checked = init.run(&["check"]).stdout;
    let lines: Vec<_> = checked.lines().filter(|it| it.contains("no user has this role")).collect();
    assert!(lines.len() >= 2 && lines.iter().all(|it| it.starts_with('✓')), "{checked}");
    assert!(!checked.contains("delete"), "{checked}");
}

/// The main config may be anywhere, and the auth file too.
#[test]
fn the_include_leads_to_the_auth_file_from_any_folder() {
    let pb = Pb::empty(None);
    let init = Init::of(&pb);
    fs::create_dir_all(init.path("a b/nats")).unwrap();
    let real = init.path("a b/nats/main.conf");
    write(&real, "port: 4222");
    std::os::unix::fs::symlink(&real, init.path("link.conf")).unwrap();
    init.init(&["-c", "set/\"here\".toml", "--nats-config", "link.conf"]).success();
    assert!(fs::symlink_metadata(init.path("link.conf")).unwrap().is_symlink());
    assert!(fs::read_to_string(&real).unwrap().contains("\ninclude \"auth.conf\"\n"));
    init.run(&["plan", "-c", "set/\"here\".toml"]).success();

    // With settings that are there already, the include follows them.
    let token = init.path("set/pb-nats.token");
    let settings = format!(
        "[pocketbase]\nurl = {:?}\ntoken_file = {token:?}\n[auth_file]\npath = \"elsewhere/auth.conf\"\n",
        pb.url(),
    );
    write(init.path("pb-nats.toml"), &settings);
    write(&real, "port: 4222");
    fs::create_dir(init.path("elsewhere")).unwrap();
    init.init(&["--nats-config", "a b/nats/main.conf"]).success();
    assert!(init.read("pb-nats.toml").starts_with(&settings));
    let text = fs::read_to_string(&real).unwrap();
    assert!(text.contains("\ninclude \"../../elsewhere/auth.conf\"\n"), "{text}");
    assert!(
        init.init(&["--nats-config", "a b/nats/main.conf"]).success().stdout.contains("nothing")
    );
}

#[test]
fn what_is_missing_or_wrong_is_told_and_nothing_hangs() {
    let mut pb = Pb::empty(None);
    let init = Init::of(&pb);
    let refused = |output: Output, code: i32, parts: &[&str]| {
        let Output { stderr, stdout, .. } = output.exits(code);
        for part in parts.iter().chain(&["error: ", "hint: "]) {
            assert!(stderr.contains(part), "`{part}` has to be in:\n{stderr}");
        }
        assert!(!format!("{stdout}{stderr}").contains(SUPERUSER.1));
    };
    // Nobody to ask.
    let url = ["init", "--yes", "--url", &init.url];
    refused(ended(&mut init.command(&["init"]), ""), 2, &["PocketBase's address", "--url"]);
    refused(ended(&mut init.command(&url), ""), 2, &["PB_NATS_SUPERUSER_PASSWORD"]);
    let email = [&url[..], &["--superuser", "root@example.com"]].concat();
    refused(ended(&mut init.command(&email), ""), 2, &["password is needed"]);
    refused(init.run(&["init", "--url", &init.url]), 2, &["`--yes`"]);
    assert!(!init.path("pb-nats.toml").exists());

    let wrong = init.run_as((SUPERUSER.0, "wr0ng"), &url);
    assert!(!wrong.stderr.contains("wr0ng"));
    refused(wrong, 1, &["Failed to authenticate", "superuser upsert"]);
    let mut token = init.command(&url);
    refused(ended(token.env("PB_NATS_SUPERUSER_TOKEN", "x.y.z"), ""), 1, &["the token"]);
    refused(init.init(&["--user-collection", "no'name"]), 2, &["no'name", "letters"]);
    let unknown = init.init(&["--nats-config", "none.conf"]);
    refused(unknown, 1, &["none.conf", "No such file", "hint: `--nats-config` is the file"]);
    let bare = init.run_as(SUPERUSER, &["init", "--yes", "--url", "127.0.0.1:8090"]);
    refused(bare, 2, &["`url` is not an address", "such as \"http://127.0.0.1:8090\""]);

    // On stdin it goes as well, and without nats-server too.
    write(init.path("n.conf"), "port: 4222\npid_file: /run/n.pid\nhttp: \"127.0.0.1:1\"\n");
    let stdin = [&email[..], &["--superuser-password-stdin", "--nats-config", "n.conf"]].concat();
    let mut command = init.command(&stdin);
    let done = ended(command.env("PATH", "/nowhere"), &format!("{}\n", SUPERUSER.1)).success();
    assert!(done.stdout.contains("cannot be run, so nobody looks"), "{}", done.stdout);
    assert!(!done.stdout.contains(init.read("pb-nats.token").trim()));

    // What is there is not changed.
    let settings = init.read("pb-nats.toml");
    refused(init.init(&["--user-collection", "others"]), 2, &["user_collection", "nats_users"]);
    let json = init.init(&["--json"]).success();
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["done"], json!([]));
    assert_eq!(init.read("pb-nats.toml"), settings);

    // A token that has ended is replaced, and one that works is not.
    let before = init.read("pb-nats.token");
    let account = pb.ask("GET", "/api/collections/nats_sync/records", &Value::Null);
    let password = json!({ "password": "another one", "passwordConfirm": "another one" });
    pb.update("nats_sync", account["items"][0]["id"].as_str().unwrap(), &password);
    init.init(&[]).success();
    assert_ne!(init.read("pb-nats.token"), before);
    init.run(&["user", "list"]).success();

    pb.stop();
    let gone = init.init(&[]);
    // The layers of a web client in between are nobody's business.
    assert_eq!(gone.stderr.matches("\ncause: ").count(), 1, "{}", gone.stderr);
    refused(gone, 1, &["cannot be reached\ncause: Connection refused", "is PocketBase running"]);
}

/// It has another API, in which nothing is where it is asked for.
#[test]
fn a_pocketbase_that_is_too_old_is_told_so() {
    let address = free_address();
    let init = Init { dir: TempDir::new().unwrap(), url: format!("http://{address}") };
    let mut serve = Command::new(tool("pocketbase", Some("0.22.27")));
    serve.args(["serve", "--http", &address.to_string(), "--dir"]).arg(init.path("pb_data"));
    let _old = Process::start(serve.stdin(Stdio::null()).stdout(Stdio::null()));
    eventually("it listens", || TcpStream::connect(address).ok());
    write(
        init.path("s.toml"),
        format!("[pocketbase]\nurl = \"{}\"\nidentity = \"a\"\npassword = \"b\"\n", init.url),
    );
    for said in
        [init.init(&[]), init.run(&["-c", "s.toml", "once"]), init.run(&["-c", "s.toml", "check"])]
    {
        let said = said.exits(1);
        let all = format!("{}{}", said.stdout, said.stderr);
        assert!(all.contains("is older than 0.23") && all.contains("hint: update"), "{all}");
    }
    assert!(!init.path("pb-nats.toml").exists());
}

/// A view of ours follows the collections; another's is not touched.
#[test]
fn the_view_is_brought_up_to_date_and_another_is_left_alone() {
    let pb = Pb::with(Users::Password, Optional::Absent);
    let init = Init::of(&pb);
    init.init(&[]).success();
    let mut users = pb.ask("GET", "/api/collections/nats_users", &Value::Null);
    let fields = users["fields"].as_array_mut().unwrap();
    fields.push(json!({ "name": "nkey", "type": "text" }));
    pb.ask("PATCH", "/api/collections/nats_users", &json!({ "fields": users["fields"] }));
    let role = pb.role("r", &["a"], &["a"]);
    pb.user("ann", "x", &role);
    let stale = init.run(&["plan"]).exits(1);
    assert!(stale.stderr.contains("lacks the field `nkey`"), "{}", stale.stderr);
    assert!(stale.stderr.contains("hint: `pb-nats init`"), "{}", stale.stderr);
    let done = init.init(&[]).success().stdout;
    assert!(done.starts_with("✓ PocketBase: the view `nats_export`"), "{done}");
    assert!(!done.contains("To take it back"), "by nothing: {done}");
    init.run(&["plan"]).success();

    let pb = Pb::empty(None);
    let view = json!({ "name": "nats_export", "type": "view", "viewQuery": "SELECT 'a' AS id" });
    pb.ask("POST", "/api/collections", &view);
    let refused = Init::of(&pb).init(&[]).exits(1);
    assert!(refused.stderr.contains("was not made by pb-nats"), "{}", refused.stderr);
}
