//! What is handed out in `dist/` works as it is.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Stdio},
};

use tempfile::TempDir;

use crate::{
    PB_NATS,
    support::{
        Client, Login, Pb, PbNats, Process, Running, SOON, eventually, free_address, poll,
        says_in_force, tool, write,
    },
};

const DOCKER: &str = "dist/docker";
const KUBERNETES: &str = "dist/kubernetes/pb-nats.yaml";
const PASSWORD: &str = "open sesame";

/// The containers' own files, with the folders and addresses of this machine in place of theirs.
#[test]
fn the_containers_settings_make_nats_server_let_users_in() {
    let pb = Pb::start();
    let role = pb.role("clerk", &["orders.>"], &["orders.>", "_INBOX.>"]);
    pb.user("ann", PASSWORD, &role);
    let pb_nats = PbNats::new(PB_NATS);
    let folder = pb_nats.dir();
    let nats = free_address();
    let at_home = |text: String| {
        [
            ("/etc/nats/", format!("{}/", folder.display())),
            ("/run/secrets/", format!("{}/", folder.display())),
            ("nats://nats:4222", format!("nats://{nats}")),
            ("http://host.docker.internal:8090", pb.url()),
            ("0.0.0.0:4222", nats.to_string()),
        ]
        .iter()
        .fold(text, |text, (theirs, ours)| text.replace(theirs, ours))
    };
    let read = |name: &str| at_home(fs::read_to_string(Path::new(DOCKER).join(name)).unwrap());
    write(folder.join("pocketbase-token"), pb.token());
    write(folder.join("system-password"), "s3cret");
    // As compose.yaml has it made.
    write(folder.join("system.conf"), "SYSTEM_PASSWORD: \"s3cret\"\n");
    write(folder.join("nats-server.conf"), read("nats-server.conf"));
    fs::create_dir(folder.join("auth")).unwrap();
    pb_nats.write_settings(&read("pb-nats.toml"));
    let running = pb_nats.run();
    lets_users_in(&pb, &role, &running, &folder.join("nats-server.conf"), nats);
}

/// The pod's own files, where a volume puts them: behind links, in a folder that is only read.
#[test]
fn the_pods_settings_make_nats_server_let_users_in() {
    let pb = Pb::start();
    let role = pb.role("clerk", &["orders.>"], &["orders.>", "_INBOX.>"]);
    pb.user("ann", PASSWORD, &role);
    let folder = TempDir::new().unwrap();
    let nats = free_address();
    let pod = fs::read_to_string(KUBERNETES).unwrap();
    let (config, volume) = (folder.path().join("config"), folder.path().join("config/..data"));
    fs::create_dir_all(&volume).unwrap();
    fs::create_dir(folder.path().join("auth")).unwrap();
    for (name, text) in [
        ("nats-server.conf", embedded(&pod, "nats-server.conf")),
        ("pb-nats.toml", embedded(&pod, "pb-nats.toml")),
        ("system.conf", "SYSTEM_PASSWORD: \"s3cret\"".into()),
        ("system-password", "s3cret".into()),
        ("pocketbase-token", pb.token().into()),
    ] {
        let text = text
            .replace("http://pocketbase:8090", &pb.url())
            .replace("nats://127.0.0.1:4222", &format!("nats://{nats}"))
            .replace("0.0.0.0:4222", &nats.to_string());
        write(volume.join(name), text);
        symlink(Path::new("..data").join(name), config.join(name)).unwrap();
    }
    let mut run = Command::new(PB_NATS);
    run.arg("--config").arg(config.join("pb-nats.toml")).arg("run");
    let running = Running::start(&mut run);
    lets_users_in(&pb, &role, &running, &config.join("nats-server.conf"), nats);
    assert_eq!(fs::read_dir(&config).unwrap().count(), 6, "nothing is written there");
}

/// The text below `name: |` in a YAML file.
fn embedded(yaml: &str, name: &str) -> String {
    let head = format!("  {name}: |");
    let lines = yaml.lines().skip_while(|it| *it != head).skip(1);
    let lines = lines.take_while(|it| it.is_empty() || it.starts_with("    "));
    let lines: Vec<_> = lines.map(|it| it.trim_start_matches("    ")).collect();
    assert!(!lines.is_empty(), "{name}");
    lines.join("\n")
}

/// pb-nats runs, and now nats-server is started, to which ann is to get.
#[track_caller]
fn lets_users_in(pb: &Pb, role: &str, running: &Running, config: &Path, nats: SocketAddr) {
    // pb-nats first: nats-server does not start without the auth file.
    let text = fs::read_to_string(config).unwrap();
    let include = text.lines().filter_map(|it| it.strip_prefix("include ")).next_back().unwrap();
    let auth_file = config.parent().unwrap().join(include.trim_matches('"'));
    let written = poll(SOON, || auth_file.is_file().then_some(()));
    assert!(written.is_some(), "{}", running.lines().join("\n"));
    let mut server = Command::new(tool("nats-server", None));
    server.arg("--config").arg(config);
    let _server = Process::start(server.stdout(Stdio::null()).stderr(Stdio::null()));
    let login = || Client::connect(nats, Login::Password("ann", PASSWORD));
    let mut ann = eventually("ann is let in", || login().ok());
    assert!(ann.may_publish("orders.1") && !ann.may_publish("payroll"));
    // Which is said of what is proven only.
    running.wait_for(says_in_force);
    pb.user("bob", PASSWORD, role);
    let bob = || Client::connect(nats, Login::Password("bob", PASSWORD));
    eventually("bob is let in, by a reload over NATS", || bob().ok());
}

/// Every file that compose.yaml mounts is there, but for the secrets, which it says how to make.
#[test]
fn what_compose_mounts_is_there() {
    let compose = fs::read_to_string(Path::new(DOCKER).join("compose.yaml")).unwrap();
    let lines = compose.lines().filter_map(|it| it.trim_start().strip_prefix("- ./"));
    let mounted: Vec<_> = lines.map(|it| it.split(':').next().unwrap()).collect();
    assert!(mounted.len() > 3, "{mounted:?}");
    for file in mounted {
        let there = Path::new(DOCKER).join(file).is_file();
        assert!(there || compose.contains(&format!("> {file}")), "{file}");
    }
    let file = compose.lines().find_map(|it| it.trim_start().strip_prefix("dockerfile: "));
    assert!(Path::new(file.unwrap()).is_file());
}
