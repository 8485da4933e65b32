//! `pb-nats dev`: everything by one command, and nothing of it left behind.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::process::{Pid, kill_process, kill_process_group};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    PB_NATS,
    init::ended,
    support::{Client, Login, Output, Running, SOON, Signal, eventually, http, tool, write},
};

/// These tests take the same usual ports, and what is free when it is chosen is to be free when a
/// server listens there.
static ALONE: Mutex<()> = Mutex::new(());

/// Where `dev` is started.
struct Place {
    dir: TempDir,
    _alone: MutexGuard<'static, ()>,
}

/// What the card says, and who says it.
struct Stage {
    running: Running,
    dashboard: String,
    nats: SocketAddr,
    /// The superuser's password, if it is told.
    superuser: Option<String>,
    /// The example user's, if it is told.
    example: Option<String>,
    folder: PathBuf,
}

impl Place {
    fn new() -> Place {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let place = Place { dir: TempDir::new().unwrap(), _alone: alone };
        // Their own folder, since there may be others of the name on the `PATH`.
        fs::create_dir(place.dir.path().join("bin")).unwrap();
        for name in ["pocketbase", "nats-server"] {
            symlink(tool(name, None), place.bin(name)).unwrap();
        }
        place
    }

    fn bin(&self, name: &str) -> PathBuf {
        self.dir.path().join("bin").join(name)
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("pb-nats-dev")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        // Whatever lies beside the program under test is not looked at.
        let program = self.dir.path().join("bin/pb-nats");
        if !program.exists() {
            fs::hard_link(PB_NATS, &program)
                .or_else(|_| fs::copy(PB_NATS, &program).map(drop))
                .unwrap();
        }
        let mut command = Command::new(program);
        command.current_dir(self.dir.path()).env_clear().env("PATH", self.dir.path().join("bin"));
        command.env("TMPDIR", self.dir.path()).args(arguments).process_group(0);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        ended(&mut self.command(arguments), "")
    }

    fn start(&self, more: &[&str]) -> Stage {
        self.started(&mut self.command(&[&["dev"], more].concat()))
    }

    fn started(&self, command: &mut Command) -> Stage {
        let new = !self.folder().exists();
        let running = eventually("nobody else takes a port meanwhile", || {
            let running = Running::start(command);
            let says = |what: &str| running.lines().iter().any(|it| it.contains(what));
            eventually("it is up, or has ended", || {
                let up = says("Ctrl-C ends it all.");
                (up || running.ended(Duration::ZERO).is_some()).then_some(())
            });
            if says("already in use") {
                if new {
                    let _ = fs::remove_dir_all(self.folder());
                }
                return None;
            }
            Some(running)
        });
        running.wait_for(|it| it == "Ctrl-C ends it all.");
        let lines = running.lines();
        let value = |name: &str, number: usize| {
            let line = lines.iter().filter_map(|it| it.trim().strip_prefix(name)).nth(number);
            line.unwrap_or_else(|| panic!("no {name}:\n{}", lines.join("\n"))).trim().to_owned()
        };
        let password = |text: &str, name: &str| {
            text.strip_prefix(name).map(str::trim).filter(|it| !it.contains(' ')).map(str::to_owned)
        };
        Stage {
            dashboard: value("Dashboard", 0).trim_end_matches("/_/").to_owned(),
            nats: value("NATS", 0).trim_start_matches("nats://").parse().unwrap(),
            superuser: password(&value("log in", 0), "dev@example.com"),
            example: password(&value("log in", 1), "example"),
            folder: value("Data, logs", 0).trim_end_matches(", gone at the end").into(),
            running,
        }
    }
}

impl Stage {
    /// The processes that it has started.
    fn children(&self) -> Vec<i32> {
        let pid = self.running.pid();
        let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let children: Vec<i32> = text.split_whitespace().map(|it| it.parse().unwrap()).collect();
        assert_eq!(children.len(), 2, "{text}");
        children
    }

    fn child(&self, name: &str) -> Pid {
        let is = |pid: &i32| program(*pid).is_some_and(|it| it.starts_with(name));
        Pid::from_raw(self.children().into_iter().find(is).unwrap()).unwrap()
    }

    fn accepts(&self, user: &str, password: &str) -> bool {
        Client::connect(self.nats, Login::Password(user, password)).is_ok()
    }

    fn ask(&self, method: &str, path: &str, token: &str, body: &Value) -> Value {
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.dashboard))
            .header("Authorization", token)
            .header("Content-Type", "application/json");
        let body = if method == "GET" { Vec::new() } else { body.to_string().into_bytes() };
        let answer = http().run(request.body(body).unwrap()).unwrap().body_mut().read_to_string();
        serde_json::from_str(&answer.unwrap()).unwrap()
    }

    fn token(&self, password: &str) -> Option<String> {
        let who = json!({ "identity": "dev@example.com", "password": password });
        let path = "/api/collections/_superusers/auth-with-password";
        self.ask("POST", path, "", &who)["token"].as_str().map(str::to_owned)
    }

    /// Asserts that it ends well by this signal, and everything with it.
    ///
    /// As a terminal does, the signal goes to the whole group, to which the servers are not to belong.
    fn ends(self, signal: Signal) {
        let children = self.children();
        let group = Pid::from_raw(self.running.pid().cast_signed()).unwrap();
        kill_process_group(group, signal).unwrap();
        let status = self.running.ended(SOON).expect("it ends");
        assert!(status.success(), "{status}\n{}", self.running.lines().join("\n"));
        for pid in children {
            assert_eq!(program(pid), None, "{pid} is still there");
        }
        // It was asked, not killed. With a folder that is gone nobody can look.
        if let Ok(log) = fs::read_to_string(self.folder.join("nats-server.log")) {
            assert!(log.trim_end().ends_with("Server Exiting.."), "{log}");
        }
    }
}

/// The name of a process, if there is such a process.
fn program(pid: i32) -> Option<String> {
    let exe = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    Some(exe.file_name()?.to_str()?.to_owned())
}

fn password_file(folder: &Path) -> String {
    fs::read_to_string(folder.join("superuser-password")).unwrap().trim().to_owned()
}

#[test]
fn one_command_and_users_of_pocketbase_are_in_nats() {
    let place = Place::new();
    let stage = place.start(&[]);
    let example = stage.example.clone().unwrap();
    let mut client = Client::connect(stage.nats, Login::Password("example", &example)).unwrap();
    assert!(client.may_publish("services.hello"));
    assert!(!client.may_publish("news.today"));
    assert!(Client::connect(stage.nats, Login::Nobody).is_err());

    let superuser = stage.superuser.clone().unwrap();
    assert_eq!(password_file(&place.folder()), superuser);
    for secret in ["superuser-password", "system-password", "pb-nats.token", "nats-server.conf"] {
        let mode = fs::metadata(place.folder().join(secret)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
    }
    let token = stage.token(&superuser).unwrap();
    let roles = stage.ask("GET", "/api/collections/nats_roles/records", &token, &Value::Null);
    let role = roles["items"].as_array().unwrap().iter().find(|it| it["name"] == "service");
    let path =
        format!("/api/collections/nats_roles/records/{}", role.unwrap()["id"].as_str().unwrap());
    stage.ask("PATCH", &path, &token, &json!({ "publish_permissions": ["news.>"] }));
    // Whoever has less is sent away, and comes back.
    let mut client = eventually("the role is in force", || {
        let login = Login::Password("example", &example);
        let mut client = Client::connect(stage.nats, login).ok()?;
        client.try_to_publish("news.today").ok()?.then_some(client)
    });
    assert!(!client.may_publish("services.hello"));

    // The commands of the card.
    let settings = place.folder().join("pb-nats.toml");
    let settings = settings.to_str().unwrap();
    let said = place.run(&["-c", settings, "explain", "example", "pub", "news.today"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let mut add = place.command(&["-c", settings, "user", "add", "ann", "--role", "device"]);
    add.args(["--generate", "--superuser", "dev@example.com", "--superuser-password-stdin"]);
    let said = ended(&mut add, &format!("{superuser}\n"));
    assert_eq!(said.code, Some(0), "{said:?}");
    eventually("ann is let in", || stage.accepts("ann", said.stdout.trim()).then_some(()));
    let said = place.run(&["-c", settings, "check"]);
    assert!(!said.stdout.contains('✗'), "{}", said.stdout);
    stage.ends(Signal::INT);
}

#[test]
fn a_second_start_keeps_what_is_there_and_takes_other_ports_if_it_must() {
    let place = Place::new();
    let stage = place.start(&[]);
    let (example, superuser) = (stage.example.clone().unwrap(), stage.superuser.clone().unwrap());
    let (nats, settings) = (stage.nats, place.folder().join("pb-nats.toml"));
    let mut edited = fs::read_to_string(&settings).unwrap();
    stage.ends(Signal::TERM);

    edited += "# mine\n";
    write(&settings, &edited);
    // Another test may have it for a while.
    let taken = eventually("the port is taken", || TcpListener::bind(nats).ok());
    let stage = place.start(&[]);
    assert_ne!(stage.nats, nats);
    assert_eq!((&stage.example, &stage.superuser), (&None, &None), "they were told once");
    assert!(stage.accepts("example", &example));
    assert!(stage.token(&superuser).is_some());
    assert!(fs::read_to_string(&settings).unwrap().ends_with("# mine\n"));
    let other = stage.nats;
    stage.ends(Signal::INT);

    drop(taken);
    let stage = place.start(&[]);
    assert_eq!(stage.nats, other, "it is free, so it stays");
    stage.ends(Signal::INT);
}

#[test]
fn a_second_one_in_the_folder_is_refused_and_the_first_stays() {
    let place = Place::new();
    let stage = place.start(&[]);
    let second = Running::start(&mut place.command(&["dev"]));
    assert_eq!(second.ended(SOON).expect("it does not stay").code(), Some(1));
    let pid = stage.running.pid().to_string();
    second.wait_for(|it| it.contains("at work in") && it.contains(&pid));
    second.wait_for(|it| it.starts_with("hint: "));
    let example = stage.example.clone().unwrap();
    assert!(stage.accepts("example", &example));
    stage.ends(Signal::INT);
}

#[test]
fn a_server_that_dies_ends_everything_and_is_named() {
    let place = Place::new();
    for name in ["nats-server", "pocketbase"] {
        let stage = place.start(&[]);
        let children = stage.children();
        kill_process(stage.child(name), Signal::KILL).unwrap();
        let status = stage.running.ended(SOON).expect("it ends");
        assert_eq!(status.code(), Some(1));
        stage.running.wait_for(|it| it.starts_with(&format!("error: {name} has ended (signal: 9")));
        stage
            .running
            .wait_for(|it| it.starts_with("hint: ") && it.contains(&format!("{name}.log")));
        assert!(children.into_iter().all(|it| program(it).is_none()));
    }
}

/// What is meant for pb-nats is neither followed nor passed on.
#[test]
#[cfg(target_os = "linux")]
fn what_the_environment_has_for_others_stays_with_us() {
    let place = Place::new();
    let mut dev = place.command(&["dev"]);
    dev.env("PB_NATS_POCKETBASE_TOKEN", "t0ps3cret").env("PB_NATS_NATS_SYSTEM_URL", "nats://far");
    let stage = place.started(&mut dev);
    for pid in stage.children() {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
        let environment = String::from_utf8_lossy(&environment).into_owned();
        assert!(environment.contains("TMPDIR=") && !environment.contains("PB_NATS_"));
    }
    stage.ends(Signal::INT);
}

/// A program that ends at once has said why.
#[test]
fn the_last_words_of_a_server_are_told() {
    let place = Place::new();
    place.start(&[]).ends(Signal::INT);
    let config = place.folder().join("nats-server.conf");
    let text = fs::read_to_string(&config).unwrap();
    write(&config, text.replace("store_dir: \"jetstream\"", "store_dir: \"superuser-password\""));
    let said = place.run(&["dev"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("error: nats-server has ended (exit status: 1)"), "{said:?}");
    assert!(said.stderr.contains("its last words:\n") && said.stderr.contains("not a directory"));
    fs::remove_file(place.bin("nats-server")).unwrap();
    symlink("/bin/true", place.bin("nats-server")).unwrap();
    let said = place.run(&["dev", "--nats-server", "bin/nats-server"]);
    assert!(said.stderr.contains("everything was; it said nothing\nhint: "), "{said:?}");
}

#[test]
#[cfg(target_os = "linux")]
fn servers_do_not_outlive_a_kill_and_the_next_start_goes_on() {
    let place = Place::new();
    let stage = place.start(&[]);
    let children = stage.children();
    let example = stage.example.clone().unwrap();
    stage.running.kill();
    eventually("its children end", || {
        children.iter().all(|it| program(*it).is_none()).then_some(())
    });
    let stage = place.start(&[]);
    assert!(stage.accepts("example", &example));
    stage.ends(Signal::INT);
}

#[test]
fn a_temporary_folder_is_gone_at_the_end() {
    let place = Place::new();
    let stage = place.start(&["--temporary"]);
    let folder = stage.folder.clone();
    assert!(folder.join("pb_data").is_dir());
    assert!(stage.accepts("example", &stage.example.clone().unwrap()));
    stage.ends(Signal::INT);
    assert!(!folder.exists());
    assert!(!place.folder().exists());
}

#[test]
fn missing_programs_are_named_and_where_to_get_them() {
    let place = Place::new();
    fs::remove_file(place.bin("nats-server")).unwrap();
    let said = place.run(&["dev"]);
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains("no program `nats-server`"), "{}", said.stderr);
    assert!(said.stderr.contains("github.com/nats-io/nats-server/releases"), "{}", said.stderr);
    assert!(!said.stderr.contains("no program `pocketbase`"), "{}", said.stderr);
    let nowhere = place.run(&["dev", "--pocketbase", "nowhere"]);
    assert!(nowhere.stderr.contains("`pocketbase` at nowhere"), "{}", nowhere.stderr);
    assert!(!place.folder().exists(), "nothing was made");

    let given = tool("nats-server", None);
    place.start(&["--nats-server", given.to_str().unwrap()]).ends(Signal::INT);
    // It is remembered.
    place.start(&[]).ends(Signal::INT);
}

#[test]
fn what_others_made_is_left_alone() {
    for name in ["nats-server.conf", "pb-nats.toml", "pb_data"] {
        let place = Place::new();
        fs::create_dir(place.folder()).unwrap();
        write(place.folder().join(name), "mine");
        let running = Running::start(&mut place.command(&["dev"]));
        assert_eq!(running.ended(SOON).expect("it does not stay").code(), Some(1));
        running.wait_for(|it| it.contains("was not made by `pb-nats dev`"));
        let all: Vec<_> = fs::read_dir(place.folder()).unwrap().collect();
        assert_eq!(all.len(), 1, "nothing was made beside {name}");
    }
}

#[test]
fn a_changed_superuser_password_is_told_and_a_new_one_can_be_had() {
    let place = Place::new();
    let stage = place.start(&[]);
    let (folder, example) = (stage.folder.clone(), stage.example.clone().unwrap());
    stage.ends(Signal::INT);
    write(folder.join("superuser-password"), "another");
    let said = place.run(&["dev"]);
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains("does not take the password in"), "{}", said.stderr);
    fs::remove_file(folder.join("superuser-password")).unwrap();
    let stage = place.start(&[]);
    assert!(stage.token(stage.superuser.as_deref().unwrap()).is_some());
    assert!(stage.accepts("example", &example));
    stage.ends(Signal::INT);
}
