//! Who has less than before is sent away at once, and nobody else is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, LazyLock, Mutex},
    thread,
    time::Duration,
};

use pb_nats::{
    auth::{
        Changes, ConnectionTypes, Credential, Desired, Grant, PasswordHash, Rules, Subject,
        Subjects, User,
    },
    engine::config::AuthFile,
    engine::config::{Outcome, Servers, SyncStatus},
    nats::Receipt,
    options::{NatsOptions, Options, Secret},
    state::{Adopt, Keep},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::{
    PB_NATS,
    support::{
        Client, Login, Nats, Pb, PbNats, SOON, SYSTEM_ACCOUNT, SYSTEM_USER, Setup, Signal,
        answering, bcrypt, eventually, free_address, http, poll, write,
    },
};

/// The versions that might differ in this.
const VERSIONS: [Option<&str>; 3] = [None, Some("2.12.8"), Some("2.10.26")];
/// Who is to lose something, each in another way.
const LOSING: [&str; 3] = ["gone", "newkey", "narrowed"];
/// Who is not.
const KEEPING: [&str; 2] = ["widened", "same"];

/// Servers, and what they are made to run.
struct Town {
    nats: Vec<Nats>,
    file: AuthFile,
    servers: Servers,
}

/// Clients of one server.
struct Clients {
    losing: Vec<Client>,
    keeping: Vec<Client>,
    busy: Vec<Client>,
}

impl Town {
    fn options(nats: &[Nats], settings: impl FnOnce(&mut NatsOptions, &Nats)) -> Options {
        let mut options = Options::default();
        options.auth_file.path = nats[0].auth_file();
        options.auth_file.create_backups = false;
        options.nats.config_file = (nats.len() == 1).then(|| nats[0].config_file());
        options.nats.server_binary = nats[0].binary().into();
        options.nats.reload_timeout = SOON;
        settings(&mut options.nats, &nats[0]);
        options
    }

    async fn of(nats: Vec<Nats>, settings: impl FnOnce(&mut NatsOptions, &Nats)) -> Town {
        let options = Town::options(&nats, settings);
        let servers = Servers::new(&options.nats, nats[0].dir()).unwrap();
        let mut town = Town { file: AuthFile::new(&options), servers, nats };
        assert!(in_step(&town.write(&Desired::default(), &before()).await));
        town.servers.receipt();
        town
    }

    /// Makes the file say something else, and the servers run it, as a pass does.
    async fn write(&mut self, former: &Desired, desired: &Desired) -> Vec<Outcome> {
        let current = self.file.read(Adopt::No).unwrap();
        let applied = self
            .file
            .replace(&Arc::new(desired.clone()), &current, false, Keep::IfWanted)
            .await
            .unwrap();
        self.servers.cut_off(&Changes::between(former, desired).users_losing);
        let outcomes = self.servers.converge(&applied).await;
        self.note();
        outcomes
    }

    /// A pass that finds nothing to change.
    async fn unchanged(&mut self) -> Vec<Outcome> {
        let current = self.file.read(Adopt::No).unwrap();
        let applied = self.file.as_it_is(&current).await;
        let outcomes = self.servers.converge(&applied).await;
        self.note();
        outcomes
    }

    fn note(&self) {
        let (losing, left) = self.servers.leaf_nodes();
        self.file.note_leaf_nodes(losing, left);
    }

    /// Another process goes on.
    fn restart(&mut self, settings: impl FnOnce(&mut NatsOptions, &Nats)) {
        let options = Town::options(&self.nats, settings);
        self.servers = Servers::new(&options.nats, self.nats[0].dir()).unwrap();
        self.file = AuthFile::new(&options);
    }

    /// So many clients whom a reload takes long to look at, and one of each other user, on each.
    fn clients(&self, busy: usize) -> Vec<Clients> {
        let of = |nats: &Nats, names: &[&str]| -> Vec<Client> {
            names.iter().map(|it| nats.client(it, it)).collect()
        };
        let on = |nats| Clients {
            losing: of(nats, &LOSING),
            keeping: of(nats, &KEEPING),
            busy: of(nats, &vec!["busy"; busy]),
        };
        self.nats.iter().map(on).collect()
    }

    /// Takes away, and sees that whoever has less is closed before any reload is over, that they
    /// come back with the new rights only, and that all others stay.
    async fn take_away(&mut self, clients: Vec<Clients>) -> Receipt {
        let former: Vec<Value> = self.nats.iter().map(loaded).collect();
        let (mut watched, mut staying) = (Vec::new(), Vec::new());
        for (nats, clients) in self.nats.iter().zip(clients) {
            let losing = clients.losing.into_iter().zip(LOSING);
            watched.extend(losing.map(|(client, name)| watch(client, name, nats)));
            staying.push((clients.keeping, clients.busy));
        }
        let outcomes = self.write(&before(), &after()).await;
        assert!(in_step(&outcomes), "{outcomes:#?}");
        for (number, watched) in watched.into_iter().enumerate() {
            let (name, nats) = (LOSING[number % 3], &self.nats[number / 3]);
            let (loaded, back) = watched.await.unwrap();
            assert_eq!(loaded, former[number / 3], "{name} is closed when the reload is over");
            let Some(mut back) = back else {
                assert_ne!(name, "narrowed", "is not let in any more");
                continue;
            };
            if back.flush().is_ok() {
                assert_eq!(name, "narrowed", "is let in as before");
                assert!(back.may_publish("a") && !back.may_publish("b"), "has the former rights");
            }
            assert!(nats.accepts("narrowed", "narrowed") && nats.accepts("newkey", "other"));
        }
        for (mut keeping, busy) in staying {
            assert!(keeping[0].may_publish("c"), "more was allowed");
            for mut client in keeping.into_iter().chain(busy) {
                client.flush().expect("nothing was taken from this one");
            }
        }
        self.servers.receipt().expect("somebody lost something")
    }
}

/// Waits until the client is closed, notes what its server has loaded by then, and comes back.
fn watch(
    mut client: Client,
    name: &'static str,
    nats: &Nats,
) -> JoinHandle<(Value, Option<Client>)> {
    let (address, monitor): (SocketAddr, _) = (nats.address, nats.monitor_url());
    spawn_blocking(move || {
        client.closed(SOON).unwrap_or_else(|| panic!("{name} is not closed"));
        let mut varz = http().get(format!("{monitor}/varz")).call().unwrap();
        let varz: Value = varz.body_mut().read_json().unwrap();
        let back = eventually("it lets in or refuses", || {
            match Client::connect(address, Login::Password(name, name)) {
                // A reload says so, too, to whoever is just logging in.
                Err(_) if name == "narrowed" => None,
                other => Some(other.ok()),
            }
        });
        (varz["config_load_time"].clone(), back)
    })
}

fn loaded(nats: &Nats) -> Value {
    nats.varz()["config_load_time"].clone()
}

fn in_step(outcomes: &[Outcome]) -> bool {
    outcomes.iter().all(|it| matches!(it.state, SyncStatus::InStep { .. }))
}

/// Each user's password is the name.
fn before() -> Desired {
    // A reload takes long to look at clients of this one.
    static BUSY: LazyLock<String> = LazyLock::new(|| bcrypt::hash("busy", 10).unwrap());
    static LISTENER: LazyLock<String> = LazyLock::new(|| bcrypt("listener"));
    static QUICK: LazyLock<Vec<String>> =
        LazyLock::new(|| LOSING.iter().chain(&KEEPING).map(|it| bcrypt(it)).collect());
    let names = LOSING.iter().chain(&KEEPING).zip(&*QUICK);
    let quick = names.map(|(name, hash)| ((*name).into(), user(hash, &["a", "b"])));
    let busy = ("busy".into(), user(&BUSY, &["a", "b"]));
    let mut listener = user(&LISTENER, &[]);
    let subscribe = ["a", "b"].map(|it| Subject::parse(it).unwrap());
    let subscribe = Subjects::new(subscribe.into(), [].into());
    listener.grant = Grant::Own(Box::new(Rules { subscribe, ..Rules::default() }));
    let listener = ("listener".into(), listener);
    Desired { users: quick.chain([busy, listener]).collect(), ..Desired::default() }
}

fn after() -> Desired {
    let mut desired = before();
    desired.users.remove("gone");
    desired.users.insert("newkey".into(), user(&bcrypt("other"), &["a", "b"]));
    desired.users.get_mut("narrowed").unwrap().grant = may_publish(&["a"]);
    desired.users.get_mut("widened").unwrap().grant = may_publish(&["a", "b", "c"]);
    desired
}

fn user(hash: &str, subjects: &[&str]) -> User {
    let credential = Credential::Password(PasswordHash(hash.into()));
    User { credential, grant: may_publish(subjects), connection_types: ConnectionTypes::default() }
}

fn may_publish(subjects: &[&str]) -> Grant {
    let allow = subjects.iter().map(|it| Subject::parse(it).unwrap()).collect();
    let publish = Subjects::new(allow, [].into());
    Grant::Own(Box::new(Rules { publish, ..Rules::default() }))
}

fn by_system(options: &mut NatsOptions, nats: &Nats) {
    options.system_url = Some(nats.url());
    options.system_user = Some(SYSTEM_USER.0.into());
    options.system_password = Some(Secret::new(SYSTEM_USER.1));
}

fn by_signal(options: &mut NatsOptions, nats: &Nats) {
    by_system(options, nats);
    options.pid_file = vec![nats.pid_file()];
}

fn without_system(options: &mut NatsOptions, nats: &Nats) {
    options.pid_file = vec![nats.pid_file()];
    options.monitor_url = vec![nats.monitor_url()];
}

fn server(version: Option<&str>) -> Vec<Nats> {
    vec![Nats::with(Setup { version, extra: SYSTEM_ACCOUNT, ..Setup::default() })]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_has_less_is_sent_away_before_the_reload_by_signal_is_over() {
    for version in VERSIONS {
        let mut town = Town::of(server(version), by_signal).await;
        let clients = town.clients(30);
        let receipt = town.take_away(clients).await;
        // To the others the server itself may have got first.
        assert!(receipt.users.contains("narrowed"), "{receipt:?}");
        assert!(receipt.failure.is_none() && receipt.servers == 1, "{receipt:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_has_less_is_sent_away_before_the_reload_over_the_system_account_is_over() {
    for version in VERSIONS {
        let mut town = Town::of(server(version), by_system).await;
        let clients = town.clients(30);
        let receipt = town.take_away(clients).await;
        assert_eq!(receipt.users, LOSING.map(str::to_owned).into());
        assert!(receipt.failure.is_none() && receipt.servers == 1, "{receipt:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_has_less_is_sent_away_from_every_server_of_a_cluster() {
    let nats = Nats::cluster(3, Setup { extra: SYSTEM_ACCOUNT, ..Setup::default() });
    let mut town = Town::of(nats, by_system).await;
    let clients = town.clients(10);
    let receipt = town.take_away(clients).await;
    assert_eq!(receipt.users, LOSING.map(str::to_owned).into());
    assert!(receipt.failure.is_none(), "{receipt:?}");
    assert!(receipt.connections >= 9 && receipt.servers == 3, "{receipt:?}");
}

/// Whoever connects between the file and the proof may have the former rights; later, nobody has.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_connects_after_the_reload_stays() {
    let mut town = Town::of(server(None), by_signal).await;
    let mut narrowed = town.nats[0].client("narrowed", "narrowed");
    let current = town.file.read(Adopt::No).unwrap();
    town.file.replace(&Arc::new(after()), &current, false, Keep::IfWanted).await.unwrap();
    town.servers.cut_off(&Changes::between(&before(), &after()).users_losing);
    town.nats[0].reload().unwrap();
    let mut later = town.nats[0].client("narrowed", "narrowed");
    // It runs the file already: nobody orders it to, and nothing was changed by this process.
    let current = town.file.read(Adopt::No).unwrap();
    let unchanged = town.file.as_it_is(&current).await;
    assert!(in_step(&town.servers.converge(&unchanged).await));
    assert!(narrowed.closed(SOON).is_some(), "it connected before");
    assert!(later.flush().is_ok(), "it connected after the reload");
    assert_eq!(town.servers.receipt().unwrap().connections, 1);
}

/// More users than are asked for one by one.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn many_users_are_sent_away_and_nobody_else() {
    let mut town = Town::of(server(None), by_system).await;
    let names: Vec<String> = (0..20).map(|it| format!("user-{it}")).collect();
    let hash = bcrypt("pass");
    let with = |subjects: &[&str]| {
        let mut desired = before();
        desired.users.extend(names.iter().map(|it| (it.as_str().into(), user(&hash, subjects))));
        desired
    };
    assert!(in_step(&town.write(&before(), &with(&["a", "b"])).await));
    let mut losing: Vec<_> = names.iter().map(|it| town.nats[0].client(it, "pass")).collect();
    let mut same = town.nats[0].client("same", "same");
    assert!(in_step(&town.write(&with(&["a", "b"]), &with(&["a"])).await));
    assert!(losing.iter_mut().all(|it| it.closed(SOON).is_some()));
    assert!(same.flush().is_ok());
    assert_eq!(town.servers.receipt().unwrap().connections, names.len());
}

/// More than a server lists at once, and those who are to go at the end of the list.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nobody_is_overlooked_among_very_many_connections() {
    const MANY: usize = 1100;
    // Many systems let a process have 1,024 at first.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let mut town = Town::of(server(None), by_system).await;
    let names: Vec<String> = (0..20).map(|it| format!("user-{it}")).collect();
    let hash = bcrypt("pass");
    let with = |subjects: &[&str], same: &[&str]| {
        let mut desired = before();
        desired.users.extend(names.iter().map(|it| (it.as_str().into(), user(&hash, subjects))));
        desired.users.get_mut("same").unwrap().grant = may_publish(same);
        desired
    };
    let [all, fewer, none] = [with(&["a"], &["a"]), with(&[], &["a"]), with(&[], &[])];
    assert!(in_step(&town.write(&before(), &all).await));
    town.servers.receipt();
    let mut same: Vec<_> = (0..MANY).map(|_| town.nats[0].client("same", "same")).collect();
    let mut losing: Vec<_> = names.iter().map(|it| town.nats[0].client(it, "pass")).collect();
    assert!(in_step(&town.write(&all, &fewer).await));
    assert!(losing.iter_mut().all(|it| it.closed(SOON).is_some()));
    assert_eq!(town.servers.receipt().unwrap().connections, names.len());
    assert!(same.iter_mut().all(|it| it.flush().is_ok()), "nothing was taken from these");

    assert!(in_step(&town.write(&fewer, &none).await));
    assert!(same.iter_mut().all(|it| it.closed(SOON).is_some()));
    let receipt = town.servers.receipt().unwrap();
    assert!(receipt.failure.is_none() && receipt.connections == MANY, "{receipt:?}");
}

/// Who was not cut off since the reload failed, is with the one that comes about.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_failed_reload_sends_nobody_away_and_the_next_one_does() {
    let mut town = Town::of(server(None), by_signal).await;
    let mut narrowed = town.nats[0].client("narrowed", "narrowed");
    let pid_file = town.nats[0].pid_file();
    let pid = fs::read_to_string(&pid_file).unwrap();
    write(&pid_file, "");
    assert!(!in_step(&town.write(&before(), &after()).await));
    assert!(narrowed.flush().is_ok(), "it would only come back");
    write(&pid_file, pid);
    let current = town.file.read(Adopt::No).unwrap();
    let unchanged = town.file.as_it_is(&current).await;
    assert!(in_step(&town.servers.converge(&unchanged).await));
    assert!(narrowed.closed(SOON).is_some());
}

/// The order is taken and comes to nothing, over and over.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_retry_sends_nobody_away_before_the_server_runs_the_file() {
    let nats = server(None);
    let script = nats[0].dir().join("reload");
    write(&script, format!("kill -HUP {}", nats[0].pid()));
    let mut town = Town::of(nats, |options, nats| {
        by_system(options, nats);
        options.reload_command = Some(format!("sh {}", script.display()));
        options.reload_timeout = Duration::from_secs(1);
    })
    .await;
    let narrowed = town.nats[0].client("narrowed", "narrowed");
    let lets_reload = fs::read_to_string(&script).unwrap();
    write(&script, "true");
    let watched = watch(narrowed, "narrowed", &town.nats[0]);
    assert!(!in_step(&town.write(&before(), &after()).await));
    let back = watched.await.unwrap().1;
    let mut back = back.expect("the order was taken, and nothing was loaded");
    assert!(back.closed(SOON).is_some(), "slipped back in before the reload");

    let mut back = town.nats[0].client("narrowed", "narrowed");
    let current = town.file.read(Adopt::No).unwrap();
    let unchanged = town.file.as_it_is(&current).await;
    assert!(!in_step(&town.servers.converge(&unchanged).await));
    assert!(back.flush().is_ok(), "it would only come back again");
    write(&script, lets_reload);
    assert!(in_step(&town.servers.converge(&unchanged).await));
    assert!(back.closed(SOON).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn without_the_system_account_the_reload_alone_sees_to_it() {
    let mut town = Town::of(server(None), without_system).await;
    let mut narrowed = town.nats[0].client("narrowed", "narrowed");
    let mut gone = town.nats[0].client("gone", "gone");
    assert!(in_step(&town.write(&before(), &after()).await));
    assert!(narrowed.may_publish("a") && !narrowed.may_publish("b"));
    assert!(gone.closed(SOON).is_some());
    assert!(town.servers.receipt().is_none());
}

#[test]
fn once_says_whom_it_cut_off() {
    let pb = Pb::start();
    let nats = Nats::with(Setup { extra: SYSTEM_ACCOUNT, ..Setup::default() });
    let role = pb.role("clerk", &["a"], &["a"]);
    pb.user("ann", "ann", &role);
    let mut pb_nats = PbNats::between(PB_NATS, &pb, &nats);
    pb_nats.unset("nats.monitor_url");
    pb_nats.set("nats.system_url", nats.url());
    pb_nats.set("nats.system_user", SYSTEM_USER.0);
    pb_nats.set("nats.system_password", SYSTEM_USER.1);
    assert!(!pb_nats.once().success().stdout.contains("cut off"));
    let mut ann = nats.client("ann", "ann");
    pb.update("nats_roles", &role, &json!({ "publish_permissions": ["a", "b"] }));
    assert!(!pb_nats.once().success().stdout.contains("cut off"));
    assert!(ann.may_publish("b"));
    pb.update("nats_roles", &role, &json!({ "publish_permissions": ["a"] }));
    let said = pb_nats.once().success();
    let line = "cut off: 1 connection of 1 user (\"ann\") on 1 server, after ";
    assert!(said.stdout.contains(line), "{said:?}");
    assert!(said.stderr.contains("cut off"), "{said:?}");
    assert!(ann.closed(SOON).is_some());
}

/// Where a server with this address takes leaf nodes, and a way to be closed to everybody else.
fn taking_leaf_nodes(address: SocketAddr) -> String {
    format!("leafnodes {{ listen: \"{address}\" }}\n{SYSTEM_ACCOUNT}")
}

/// A second server that is connected to the first by this user's name, which is the password too.
fn leaf_node(hub: SocketAddr, user: &str) -> Nats {
    leaf_node_at(&format!("nats://{user}:{user}@{hub}"), user)
}

fn leaf_node_at(url: &str, user: &str) -> Nats {
    // Of two of one name the second is turned away.
    let extra = format!(
        "server_name: \"leaf-{user}\"\n\
         leafnodes {{ reconnect: 1, remotes: [ {{url: \"{url}\"}} ] }}"
    );
    let auth = "authorization { users = [ {user: edge, password: edge} ] }";
    Nats::with(Setup { extra: &extra, auth, ..Setup::default() })
}

/// Whose leaf nodes are connected to the server, by the connections' numbers.
fn leaf_nodes(nats: &Nats) -> BTreeMap<u64, String> {
    let url = format!("{}/connz?auth=true&acc=$G", nats.monitor_url());
    let listed: Value = http().get(url).call().unwrap().body_mut().read_json().unwrap();
    let listed = listed["connections"].as_array().unwrap().iter();
    let leafs = listed.filter(|it| it["kind"] == "Leafnode");
    leafs
        .map(|it| (it["cid"].as_u64().unwrap(), it["authorized_user"].as_str().unwrap().into()))
        .collect()
}

/// As [`leaf_nodes`], once all of these are there.
fn connected(nats: &Nats, users: &[&str]) -> BTreeMap<u64, String> {
    eventually("the leaf nodes are connected", || {
        let found = leaf_nodes(nats);
        users.iter().all(|it| found.values().any(|user| user == it)).then_some(found)
    })
}

/// Whether what is published at one server arrives at another.
fn passes(from: &Nats, to: &Nats, who: [&str; 2], subject: &str) -> bool {
    let [sender, receiver] = who;
    let mut receiver = to.client(receiver, receiver);
    receiver.subscribe(subject);
    receiver.flush().unwrap();
    let mut sender = from.client(sender, sender);
    poll(Duration::from_secs(3), || {
        sender.publish(subject, b"hello");
        sender.flush().unwrap();
        receiver.next(Duration::from_millis(20)).map(drop)
    })
    .is_some()
}

/// A reload looks at clients only, so these are closed by us.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn leaf_nodes_of_those_who_have_less_are_sent_away_too() {
    for version in VERSIONS {
        for settings in [by_signal, by_system] {
            let hub = free_address();
            let extra = taking_leaf_nodes(hub);
            let nats = Nats::with(Setup { version, extra: &extra, ..Setup::default() });
            let mut town = Town::of(vec![nats], settings).await;
            let users: Vec<&str> = LOSING.into_iter().chain(KEEPING).collect();
            let spokes: Vec<Nats> = users.iter().map(|it| leaf_node(hub, it)).collect();
            let before_it = connected(&town.nats[0], &users);
            assert!(passes(&spokes[0], &town.nats[0], ["edge", "listener"], "a"), "it is of use");
            let outcomes = town.write(&before(), &after()).await;
            assert!(in_step(&outcomes), "{version:?}: {outcomes:#?}");
            let after_it = leaf_nodes(&town.nats[0]);
            for (number, user) in &before_it {
                let stays = KEEPING.contains(&&**user);
                assert_eq!(after_it.contains_key(number), stays, "{version:?}: {user}");
            }
            assert!(!passes(&spokes[0], &town.nats[0], ["edge", "listener"], "a"), "gone is out");
            assert!(passes(&spokes[4], &town.nats[0], ["edge", "listener"], "a"), "same is not");
            // Who may do less comes back, and may.
            connected(&town.nats[0], &["narrowed"]);
            assert!(passes(&spokes[2], &town.nats[0], ["edge", "listener"], "a"));
            assert!(!passes(&spokes[2], &town.nats[0], ["edge", "listener"], "b"));
            let receipt = town.servers.receipt().expect("somebody lost something");
            assert!(receipt.failure.is_none(), "{receipt:?}");
            assert_eq!(receipt.users, LOSING.map(str::to_owned).into());
        }
    }
}

/// Without the system account nobody can close them. That is told until they are gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_server_that_keeps_a_leaf_node_from_before_is_not_called_in_force() {
    for version in VERSIONS {
        for loses in LOSING {
            let hub = free_address();
            let extra = taking_leaf_nodes(hub);
            let nats = Nats::with(Setup { version, extra: &extra, ..Setup::default() });
            let mut town = Town::of(vec![nats], without_system).await;
            let spokes = [leaf_node(hub, loses), leaf_node(hub, "same")];
            connected(&town.nats[0], &[loses, "same"]);
            let mut client = town.nats[0].client("gone", "gone");
            let outcomes = town.write(&before(), &after()).await;
            let [Outcome { state: SyncStatus::NotInStep { why }, .. }] = &outcomes[..] else {
                panic!("{version:?}, {loses}: {outcomes:#?}");
            };
            let said = why.to_string();
            assert!(said.contains("1 leaf node ") && said.contains(loses), "{said}");
            assert!(!said.contains("same"), "{said}");
            assert!(why.hint().unwrap().contains("restart nats-server"), "{why:?}");
            assert!(client.closed(SOON).is_some(), "for all others it is in force");

            // Nobody is reloaded for it again, and it is not forgotten either.
            let former = loaded(&town.nats[0]);
            assert!(!in_step(&town.unchanged().await));
            town.restart(without_system);
            assert!(!in_step(&town.unchanged().await), "another process knows, too");
            drop(spokes);
            eventually("they are gone", || leaf_nodes(&town.nats[0]).is_empty().then_some(()));
            assert!(in_step(&town.unchanged().await));
            assert_eq!(loaded(&town.nats[0]), former);
        }
    }
}

/// The operator says who may be a leaf node, so that those have nothing to do with our users.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn leaf_nodes_of_the_main_configs_own_users_are_left_alone() {
    let hub = free_address();
    let extra = format!(
        "leafnodes {{ listen: \"{hub}\", authorization {{ users = [ {{user: spoke, password: spoke}} ] }} }}\n{SYSTEM_ACCOUNT}"
    );
    for settings in [by_signal, without_system] {
        let nats = Nats::with(Setup { extra: &extra, ..Setup::default() });
        let mut town = Town::of(vec![nats], settings).await;
        let spoke = leaf_node(hub, "spoke");
        let there = connected(&town.nats[0], &["spoke"]);
        assert!(in_step(&town.write(&before(), &after()).await));
        assert!(in_step(&town.unchanged().await));
        assert_eq!(leaf_nodes(&town.nats[0]), there);
        assert!(passes(&spoke, &town.nats[0], ["edge", "listener"], "a"));
    }
}

/// The whole of it, as who runs it sees it.
#[test]
fn once_and_check_tell_of_leaf_nodes_that_stay() {
    let pb = Pb::start();
    let hub = free_address();
    let extra = format!("leafnodes {{ listen: \"{hub}\" }}");
    let nats = Nats::with(Setup { extra: &extra, ..Setup::default() });
    let role = pb.role("clerk", &["a"], &["a"]);
    let ann = pb.user("ann", "ann", &role);
    pb.user("bob", "bob", &role);
    let mut pb_nats = PbNats::between(PB_NATS, &pb, &nats);
    pb_nats.once().success();
    let stays = pb_nats.command(&["check"]).success().stdout;
    assert!(
        stays.contains("2 users may connect leaf nodes") && stays.contains("`system_url`"),
        "{stays}"
    );
    let spoke = leaf_node(hub, "ann");
    connected(&nats, &["ann"]);

    // As if it had been killed right after it replaced the file.
    pb_nats.unset("nats.monitor_url");
    let pid_file = pb_nats.dir().join("none");
    write(&pid_file, "");
    pb_nats.set("nats.pid_file", pid_file.display().to_string());
    pb.update(
        "nats_users",
        &ann,
        &json!({ "publish_permissions": ["b"], "password": bcrypt("other") }),
    );
    pb_nats.once().exits(1);
    pb_nats.set("nats.monitor_url", nats.monitor_url());
    pb_nats.set("nats.pid_file", nats.pid_file().display().to_string());
    for _ in 0..2 {
        let said = pb_nats.once().exits(1).stderr;
        assert!(said.contains("keeps 1 leaf node connected, of \"ann\""), "{said}");
        assert!(said.contains("restart nats-server"), "{said}");
    }
    assert!(nats.accepts("ann", "other") && nats.accepts("bob", "bob"));
    let checked = pb_nats.command(&["check"]).exits(1);
    assert!(checked.stdout.contains("keeps 1 leaf node connected"), "{checked:?}");
    drop(spoke);
    eventually("it is gone", || leaf_nodes(&nats).is_empty().then_some(()));
    pb_nats.once().success();
    assert!(!nats.dir().join(".auth.conf.leafs").exists());
}

/// They are listed like others.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn leaf_nodes_in_a_web_socket_are_no_exception() {
    for version in VERSIONS {
        let (hub, web) = (free_address(), free_address());
        let extra =
            format!("websocket {{ listen: \"{web}\", no_tls: true }}\n{}", taking_leaf_nodes(hub));
        for closes in [true, false] {
            let nats = Nats::with(Setup { version, extra: &extra, ..Setup::default() });
            let settings = if closes { by_signal } else { without_system };
            let mut town = Town::of(vec![nats], settings).await;
            let spokes =
                ["gone", "same"].map(|it| leaf_node_at(&format!("ws://{it}:{it}@{web}"), it));
            connected(&town.nats[0], &["gone", "same"]);
            assert_eq!(in_step(&town.write(&before(), &after()).await), closes, "{version:?}");
            let left: Vec<String> = leaf_nodes(&town.nats[0]).into_values().collect();
            assert_eq!(!left.contains(&"gone".into()), closes, "{version:?}: {left:?}");
            assert!(left.contains(&"same".into()), "{version:?}: {left:?}");
            drop(spokes);
        }
    }
}

/// Passes on what a client and a server say to each other. Before it passes on something of the
/// client's with these words in it, for the first time, it does this.
fn between(
    server: SocketAddr,
    words: &'static str,
    first: impl FnOnce() + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let first = Arc::new(Mutex::new(Some(first)));
    thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let mut server = TcpStream::connect(server).unwrap();
            let (mut back, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || io::copy(&mut back, &mut to));
            let first = Arc::clone(&first);
            thread::spawn(move || {
                let mut some = [0; 16 * 1024];
                while let Ok(length @ 1..) = client.read(&mut some) {
                    if String::from_utf8_lossy(&some[..length]).contains(words)
                        && let Some(first) = first.lock().unwrap().take()
                    {
                        first();
                    }
                    if server.write_all(&some[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// Those behind them move up in the list.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nobody_is_overlooked_while_others_go_from_one_page_to_the_next() {
    // Many systems let a process have 1,024 at first.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let names: BTreeSet<String> = (0..20).map(|it| format!("user-{it}")).collect();
    let hash = bcrypt("pass");
    let mut desired = before();
    desired.users.extend(names.iter().map(|it| (it.as_str().into(), user(&hash, &["a"]))));
    let mut town = Town::of(server(None), by_system).await;
    assert!(in_step(&town.write(&before(), &desired).await));

    let nats = &town.nats[0];
    let connect =
        |count: usize| -> Vec<Client> { (0..count).map(|_| nats.client("same", "same")).collect() };
    // They are listed in the order in which they come, 1,024 at first.
    let (early, _others) = (connect(600), connect(440));
    let _wanted: Vec<Client> = names.iter().map(|it| nats.client(it, "pass")).collect();
    let (all, monitor) = (nats.varz()["connections"].as_u64().unwrap(), nats.monitor_url());
    let many = early.len() as u64;
    let go = move || {
        drop(early);
        eventually("they are gone", || {
            let mut varz = http().get(format!("{monitor}/varz")).call().unwrap();
            let varz: Value = varz.body_mut().read_json().unwrap();
            (varz["connections"].as_u64().unwrap() <= all - many).then_some(())
        });
    };
    let address = between(nats.address, "\"limit\":2048", go);
    town.restart(|options, nats| {
        by_system(options, nats);
        options.system_url = Some(format!("nats://{address}"));
    });
    let (found, failure) = town.servers.connections(&names).await.expect("it can be asked");
    assert!(failure.is_none(), "{failure:?}");
    let missed: Vec<_> = names.iter().filter(|it| found.get(*it) != Some(&1)).collect();
    assert!(missed.is_empty(), "{missed:?}");
    assert!(town.nats[0].varz()["connections"].as_u64().unwrap() <= all - many + 2);
}

/// Of two servers one is stopped, and somebody answers in its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_unreadable_list_of_one_server_keeps_nobody_at_another() {
    let nats = Nats::cluster(2, Setup { extra: SYSTEM_ACCOUNT, ..Setup::default() });
    let mut town = Town::of(nats, by_system).await;
    let id = town.nats[1].varz()["server_id"].as_str().unwrap().to_owned();
    let asked = format!("$SYS.REQ.SERVER.{id}.VARZ");
    let varz = town.nats[0].system().request(&asked, b"", SOON).expect("it answers");
    town.nats[1].signal(Signal::STOP);
    answering(&town.nats[0], &id, move |subject| {
        let list = subject.ends_with("CONNZ");
        if list { b"nonsense".to_vec() } else { varz.payload.clone() }
    });
    assert_eq!(town.servers.running().await.iter().filter(|it| it.is_ok()).count(), 2);
    let counts = town.servers.clients().await.expect("one of them tells");
    assert_eq!(counts.len(), 1, "{counts:?}");
    let names = LOSING.map(str::to_owned).into();
    let mut losing: Vec<_> = LOSING.iter().map(|it| town.nats[0].client(it, it)).collect();
    let (counts, failure) = town.servers.connections(&names).await.expect("it can be asked");
    assert_eq!(counts.len(), 3, "{counts:?}");
    assert!(failure.expect("of one").to_string().contains("nats-server-2"));

    let mut same = town.nats[0].client("same", "same");
    let outcomes = town.write(&before(), &after()).await;
    assert!(matches!(outcomes[0].state, SyncStatus::InStep { .. }), "{outcomes:#?}");
    assert!(losing.iter_mut().all(|it| it.closed(SOON).is_some()));
    assert!(same.flush().is_ok());
}
