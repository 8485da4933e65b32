//! What converging does to real servers: they run the file, or it is said why not.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    path::Path,
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use pb_nats::{
    auth::{ConnectionTypes, Credential, Desired, Grant, PasswordHash, User},
    engine::{
        EngineError,
        config::{Applied, AuthFile, Outcome, Proof, Servers, SyncStatus},
    },
    nats::{Running, ServerError},
    options::{NatsOptions, Options, Secret},
    state::{Adopt, Keep},
};
use serde_json::Value;

use crate::support::{
    Nats, Process, SOON, SYSTEM_ACCOUNT, SYSTEM_USER, Setup, Signal, answering, bcrypt, eventually,
    free_address, write,
};

/// Time enough for a reload that will not come.
const NO_TIME: Duration = Duration::from_millis(300);

/// The auth file of a server, and what it takes to make the server run it.
struct House {
    options: Options,
    file: AuthFile,
    servers: Servers,
    /// Whether the file has a stamp.
    stamped: bool,
}

impl House {
    /// A house whose settings know the server's files. Nothing says yet how to ask or to reload.
    fn of(nats: &Nats, settings: impl FnOnce(&mut NatsOptions)) -> House {
        let mut options = Options::default();
        options.auth_file.path = nats.auth_file();
        options.auth_file.create_backups = false;
        options.nats.config_file = Some(nats.config_file());
        options.nats.server_binary = nats.binary().into();
        options.nats.reload_timeout = SOON;
        settings(&mut options.nats);
        let servers = Servers::new(&options.nats, nats.dir()).unwrap();
        House { file: AuthFile::new(&options), servers, options, stamped: false }
    }

    /// Other settings, as after a restart.
    fn again(&mut self, folder: &Path, settings: impl FnOnce(&mut NatsOptions)) {
        settings(&mut self.options.nats);
        self.servers = Servers::new(&self.options.nats, folder).unwrap();
    }

    /// Makes the file let in exactly these users, each with the own name for a password.
    async fn write(&mut self, users: &[&str]) -> Applied {
        self.hold(&letting_in(users)).await
    }

    /// Makes the file say this.
    async fn hold(&mut self, desired: &Desired) -> Applied {
        let current = self.file.read(Adopt::No).unwrap();
        self.file
            .replace(&Arc::new(desired.clone()), &current, self.stamped, Keep::IfWanted)
            .await
            .unwrap()
    }

    async fn changed(&mut self, users: &[&str]) -> Vec<Outcome> {
        let applied = self.write(users).await;
        self.converge(&applied).await
    }

    async fn unchanged(&mut self) -> Vec<Outcome> {
        let current = self.file.read(Adopt::No).unwrap();
        let applied = self.file.as_it_is(&current).await;
        self.converge(&applied).await
    }

    async fn converge(&mut self, applied: &Applied) -> Vec<Outcome> {
        let outcomes = self.servers.converge(applied).await;
        self.file.remember(applied, &self.servers.proven());
        outcomes
    }
}

fn letting_in(users: &[&str]) -> Desired {
    let user = |name: &&str| {
        let credential = Credential::Password(PasswordHash(bcrypt(name).into()));
        let user = User {
            credential,
            grant: Grant::Defaults,
            connection_types: ConnectionTypes::default(),
        };
        ((*name).into(), user)
    };
    Desired { users: users.iter().map(user).collect(), ..Desired::default() }
}

fn by_pid_file(nats: &Nats) -> impl FnOnce(&mut NatsOptions) {
    let (pid_file, monitor) = (nats.pid_file(), nats.monitor_url());
    move |it| {
        it.pid_file = vec![pid_file];
        it.monitor_url = vec![monitor];
    }
}

fn by_system_account(nats: &Nats) -> impl FnOnce(&mut NatsOptions) {
    let url = nats.url();
    move |it| {
        it.system_url = Some(url);
        it.system_user = Some(SYSTEM_USER.0.into());
        it.system_password = Some(Secret::new(SYSTEM_USER.1));
    }
}

/// How the only server proved to run the file.
fn proof(outcomes: &[Outcome]) -> Proof {
    match outcomes {
        [Outcome { state: SyncStatus::InStep { proof, .. }, .. }] => *proof,
        _ => panic!("{outcomes:#?}"),
    }
}

fn note(outcomes: &[Outcome]) -> Option<&'static str> {
    match outcomes {
        [Outcome { state: SyncStatus::InStep { note, .. }, .. }] => *note,
        _ => panic!("{outcomes:#?}"),
    }
}

/// Why the only server does not run the file, with its cause and hint.
fn why(outcomes: &[Outcome]) -> String {
    match outcomes {
        [Outcome { state: SyncStatus::NotInStep { why }, .. }] => told(why),
        _ => panic!("{outcomes:#?}"),
    }
}

fn told(error: &ServerError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    format!("{text}\nhint: {}", error.hint().unwrap_or_default())
}

fn is_unverified(outcomes: &[Outcome]) -> bool {
    matches!(outcomes, [Outcome { state: SyncStatus::Unverified { .. }, .. }])
}

fn in_step(outcomes: &[Outcome]) -> Vec<&str> {
    let in_step = outcomes.iter().filter(|it| matches!(it.state, SyncStatus::InStep { .. }));
    in_step.map(|it| &*it.server).collect()
}

fn loaded(nats: &Nats) -> Value {
    nats.varz()["config_load_time"].clone()
}

/// Adds a line to the main config, as an operator would who has not reloaded yet.
fn edit(nats: &Nats, line: &str) -> String {
    let before = fs::read_to_string(nats.config_file()).unwrap();
    write(nats.config_file(), format!("{line}\n{before}"));
    before
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_server_proves_by_its_digest_that_it_runs_the_file() {
    for version in [None, Some("2.11.11"), Some("2.12.8")] {
        let nats = Nats::with(Setup { version, ..Setup::default() });
        let mut house = House::of(&nats, by_pid_file(&nats));

        let outcomes = house.changed(&["ann"]).await;
        assert_eq!(proof(&outcomes), Proof::Digest, "{version:?}");
        assert_eq!(outcomes[0].server, nats.monitor.to_string());
        assert!(outcomes[0].took.is_some());
        assert!(nats.accepts("ann", "ann"));

        house.changed(&["bob"]).await;
        assert!(nats.accepts("bob", "bob"));
        assert!(!nats.accepts("ann", "ann"));

        let before = loaded(&nats);
        assert_eq!(proof(&house.unchanged().await), Proof::Digest);
        assert_eq!(loaded(&nats), before, "it was in step and has been disturbed");
    }
}

/// The records may have taken long to read, and the operator not.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_file_is_judged_in_the_main_config_as_it_is_when_it_is_put_in_its_place() {
    let nats = Nats::start();
    let mut house = House::of(&nats, by_pid_file(&nats));
    house.changed(&["ann"]).await;
    let before = fs::read_to_string(nats.auth_file()).unwrap();

    let current = house.file.read(Adopt::No).unwrap();
    let config = fs::read_to_string(nats.config_file()).unwrap();
    let theirs = "accounts { A { users: [ {user: bob, password: b} ] } }\n";
    write(nats.config_file(), format!("{config}{theirs}"));
    let desired = Arc::new(letting_in(&["ann", "bob"]));
    let refused = house.file.replace(&desired, &current, false, Keep::IfWanted).await;
    assert!(matches!(refused, Err(EngineError::Rejected(_))), "{refused:?}");
    assert_eq!(fs::read_to_string(nats.auth_file()).unwrap(), before);
    assert!(nats.judge().is_ok(), "a restart would start");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_server_proves_by_its_stamp_that_it_runs_the_file() {
    let nats = Nats::start();
    let mut house = House::of(&nats, by_pid_file(&nats));
    house.stamped = true;
    house.options.nats.config_file = None;
    house.file = AuthFile::new(&house.options);

    assert_eq!(proof(&house.changed(&["ann"]).await), Proof::Stamp);
    assert!(nats.accepts("ann", "ann"));
    let before = loaded(&nats);
    assert_eq!(proof(&house.unchanged().await), Proof::Stamp);
    assert_eq!(loaded(&nats), before);

    house.again(nats.dir(), |it| {
        it.pid_file.clear();
        it.reload_command = Some("true".into());
        it.reload_timeout = NO_TIME;
    });
    let applied = house.write(&["bob"]).await;
    why(&house.converge(&applied).await);
    // Loaded later than the file was replaced, but without it.
    let file = fs::read_to_string(nats.auth_file()).unwrap();
    nats.load("").unwrap();
    write(nats.auth_file(), &file);
    fs::File::open(nats.auth_file()).unwrap().set_modified(applied.written).unwrap();
    why(&house.unchanged().await);
    assert!(!nats.accepts("bob", "bob"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_server_without_digests_proves_by_its_load_time_that_it_runs_the_file() {
    let nats = Nats::with(Setup { version: Some("2.10.26"), ..Setup::default() });
    let mut house = House::of(&nats, by_pid_file(&nats));
    assert_eq!(proof(&house.changed(&["ann"]).await), Proof::LoadTime);
    assert!(nats.accepts("ann", "ann"));
    assert_eq!(proof(&house.changed(&["bob"]).await), Proof::LoadTime);
    assert!(!nats.accepts("ann", "ann"));
    assert!(nats.accepts("bob", "bob"));

    let before = loaded(&nats);
    assert_eq!(proof(&house.unchanged().await), Proof::LoadTime);
    assert_eq!(loaded(&nats), before);
}

/// A reload that began before the file was replaced ends after it: the load time moves, and the
/// server runs the former file all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_reload_that_began_before_the_file_was_replaced_proves_nothing() {
    for (version, config, by, expected) in [
        (None, true, by_signal as fn(&mut NatsOptions, &Nats), Proof::Digest),
        (None, true, by_system, Proof::Digest),
        // Nothing but the load time is left to go by.
        (None, false, by_signal, Proof::LoadTime),
        (Some("2.10.26"), true, by_signal, Proof::LoadTime),
    ] {
        let nats = Nats::with(Setup { version, extra: SYSTEM_ACCOUNT, ..Setup::default() });
        let mut house = House::of(&nats, |it| by(it, &nats));
        if !config {
            house.options.nats.config_file = None;
            house.file = AuthFile::new(&house.options);
        }
        let mut desired = letting_in(&["ann"]);
        let costly = bcrypt::hash("busy", 10).unwrap();
        let busy = Credential::Password(PasswordHash(costly.into()));
        let busy = User {
            credential: busy,
            grant: Grant::Defaults,
            connection_types: ConnectionTypes::default(),
        };
        desired.users.insert("busy".into(), busy);
        let applied = house.hold(&desired).await;
        house.servers.converge(&applied).await;
        let _clients: Vec<_> = (0..12).map(|_| nats.client("busy", "busy")).collect();

        let (before, log) = (nats.varz(), nats.log().len());
        if config {
            // Then not even the digest is the former one.
            edit(&nats, "max_payload: 1000000");
        }
        nats.signal(Signal::HUP);
        eventually("it reads the file", || (!nats.log()[log..].is_empty()).then_some(()));
        desired.users.remove("ann");
        let applied = house.hold(&desired).await;
        let load_time = &before["config_load_time"];
        assert_eq!(loaded(&nats), *load_time, "the first reload was too fast for this test");
        let digest = &before["config_digest"];
        if digest.is_null() {
            // Only the order tells this reload from ours, so it has to come first.
            eventually("it ends", || (loaded(&nats) != *load_time).then_some(()));
        }
        let between = loaded(&nats);
        assert_eq!(proof(&house.servers.converge(&applied).await), expected);
        assert_ne!(loaded(&nats), between);
        assert!(digest.is_null() || nats.varz()["config_digest"] != *digest, "it is the former");
        assert!(!nats.accepts("ann", "ann"));
    }
}

/// Then the digest stays as it was, and only one more reload tells that it was read.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_file_that_says_the_same_again_is_proven_by_the_second_reload() {
    let nats = Nats::start();
    let mut house = House::of(&nats, by_pid_file(&nats));
    house.again(nats.dir(), |it| {
        it.config_file = None;
        it.reload_timeout = Duration::from_secs(2);
    });
    house.file = AuthFile::new(&house.options);
    let desired = letting_in(&["ann"]);
    let applied = house.hold(&desired).await;
    assert_eq!(proof(&house.servers.converge(&applied).await), Proof::LoadTime);
    let applied = house.hold(&desired).await;
    why(&house.servers.converge(&applied).await);
    assert_eq!(proof(&house.unchanged().await), Proof::LoadTime);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_server_of_a_cluster_is_reloaded_over_the_system_account() {
    for version in [None, Some("2.10.26")] {
        let setup = Setup { version, extra: SYSTEM_ACCOUNT, ..Setup::default() };
        let nats = Nats::cluster(3, setup);
        let mut house = House::of(&nats[0], by_system_account(&nats[0]));
        let outcomes = house.changed(&["ann"]).await;
        assert_eq!(in_step(&outcomes), ["nats-server-1", "nats-server-2", "nats-server-3"]);
        assert!(nats.iter().all(|it| it.accepts("ann", "ann")));

        // One has been reloaded by hand; it is left alone, and the others are not.
        house.write(&["bob"]).await;
        nats[1].reload().unwrap();
        let before: Vec<Value> = nats.iter().map(loaded).collect();
        let outcomes = house.unchanged().await;
        assert_eq!(in_step(&outcomes).len(), 3, "{outcomes:#?}");
        assert!(nats.iter().all(|it| it.accepts("bob", "bob") && !it.accepts("ann", "ann")));
        let after: Vec<bool> = nats.iter().zip(before).map(|(it, was)| loaded(it) == was).collect();
        // Where its digest is another than that of the config at hand, who loaded what by hand is
        // not known.
        assert_eq!(after, [false, version.is_some(), false], "{version:?}");
    }
}

/// If one of them is listed. Nobody tells how many other clusters there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn servers_of_other_clusters_are_reloaded_too() {
    let gateway = free_address();
    let near = format!("gateway {{ name: near, listen: \"{gateway}\" }}\n{SYSTEM_ACCOUNT}");
    let near = Nats::with(Setup { extra: &near, ..Setup::default() });
    let far = format!(
        "server_name: far-server\ngateway {{ name: far, listen: \"127.0.0.1:-1\", \
         gateways: [ {{name: near, urls: [\"nats://{gateway}\"]}} ] }}\n{SYSTEM_ACCOUNT}"
    );
    let far = Nats::with(Setup { extra: &far, ..Setup::default() });
    fs::remove_file(far.auth_file()).unwrap();
    std::os::unix::fs::symlink(near.auth_file(), far.auth_file()).unwrap();
    let both = format!("{},{}", near.url(), far.url());
    let log_in = by_system_account(&near);
    let mut house = House::of(&near, |it| {
        log_in(it);
        it.system_url = Some(both);
    });
    eventually("they find each other", || {
        let answer = near.system().request("$SYS.REQ.SERVER.PING.GATEWAYZ", b"", SOON)?;
        let answer: Value = serde_json::from_slice(&answer.payload).ok()?;
        answer["data"]["outbound_gateways"].get("far").map(|_| ())
    });
    for user in ["ann", "bob"] {
        let outcomes = house.changed(&[user]).await;
        assert_eq!(in_step(&outcomes).len(), 2, "{outcomes:#?}");
        assert!(near.accepts(user, user) && far.accepts(user, user));
        assert!(outcomes.iter().all(|it| it.took.unwrap() < SOON));
    }
}

/// Waits until the first of these servers hears all of them: one that was away takes a while.
fn all_answer(nats: &[Nats]) {
    let mut system = nats[0].system();
    system.subscribe("pong");
    let mut heard = BTreeSet::new();
    eventually("all servers of the cluster answer", || {
        system.publish_with_reply("$SYS.REQ.SERVER.PING.VARZ", "pong", b"");
        while let Some(answer) = system.next(Duration::from_millis(100)) {
            let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
            heard.insert(answer["server"]["name"].as_str().unwrap().to_owned());
        }
        (heard.len() == nats.len()).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_server_that_left_its_cluster_is_missed_until_it_is_back() {
    let setup = Setup { extra: SYSTEM_ACCOUNT, ..Setup::default() };
    let mut nats = Nats::cluster(3, setup);
    let mut house = House::of(&nats[0], by_system_account(&nats[0]));
    house.changed(&["ann"]).await;

    nats[2].kill();
    let begun = Instant::now();
    let outcomes = house.changed(&["bob"]).await;
    assert!(begun.elapsed() < SOON, "the others waited for it");
    assert_eq!(in_step(&outcomes), ["nats-server-1", "nats-server-2"]);
    assert_eq!(outcomes[2].server, "nats-server-3");
    let SyncStatus::NotInStep { why } = &outcomes[2].state else { panic!("{outcomes:#?}") };
    assert!(told(why).contains("nats-server-3 does not answer"), "{}", told(why));
    assert!(nats[0].accepts("bob", "bob") && !nats[1].accepts("ann", "ann"));

    nats[2].resume();
    all_answer(&nats);
    let outcomes = house.unchanged().await;
    assert_eq!(in_step(&outcomes).len(), 3, "{outcomes:#?}");
    assert_eq!(outcomes.len(), 3, "{outcomes:#?}");
}

/// One that has never answered may run anything; its cluster tells that it is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_server_that_is_busy_whenever_it_is_asked_is_not_overlooked() {
    let nats = Nats::cluster(3, Setup { extra: SYSTEM_ACCOUNT, ..Setup::default() });
    let mut house = House::of(&nats[0], by_system_account(&nats[0]));
    nats[2].signal(Signal::STOP);
    let outcomes = house.changed(&["ann"]).await;
    assert_eq!(in_step(&outcomes), ["nats-server-1", "nats-server-2"]);
    assert_eq!(outcomes.len(), 3, "{outcomes:#?}");
    nats[2].signal(Signal::CONT);
    all_answer(&nats);
    let outcomes = house.unchanged().await;
    assert_eq!(in_step(&outcomes).len(), 3, "{outcomes:#?}");
    assert!(nats[2].accepts("ann", "ann"));

    // Awake again when the others have their orders, it gets its own in the same pass.
    house.again(nats[0].dir(), |_| ());
    let mut spy = nats[0].system();
    spy.subscribe("$SYS.REQ.SERVER.*.RELOAD");
    spy.flush().unwrap();
    nats[2].signal(Signal::STOP);
    let applied = house.write(&["bob"]).await;
    let outcomes = thread::scope(|scope| {
        scope.spawn(|| {
            spy.next(SOON);
            nats[2].signal(Signal::CONT);
        });
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(house.converge(&applied))
        })
    });
    assert_eq!(in_step(&outcomes).len(), 3, "{outcomes:#?}");
    assert!(nats[2].accepts("bob", "bob") && !nats[2].accepts("ann", "ann"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_server_that_was_down_is_brought_in_step_when_it_is_back() {
    let mut nats = Nats::with(Setup { extra: SYSTEM_ACCOUNT, ..Setup::default() });
    for over_system_account in [false, true] {
        let mut house = if over_system_account {
            House::of(&nats, by_system_account(&nats))
        } else {
            House::of(&nats, by_pid_file(&nats))
        };
        house.changed(&["ann"]).await;
        nats.stop();
        let said = why(&house.changed(&["bob"]).await);
        assert!(said.contains("cannot"), "{said}");
        assert!(house.servers.need_stamp(None).await, "it knew stamps");
        nats.resume();
        proof(&house.unchanged().await);
        assert!(nats.accepts("bob", "bob") && !nats.accepts("ann", "ann"));
        // Not only because it read the file when it started.
        proof(&house.changed(&["eve"]).await);
        assert!(nats.accepts("eve", "eve"));
    }
}

/// It may have read the former file the moment before, as only the digest or a stamp would show.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_server_that_starts_while_the_file_is_replaced_reads_it_once_more() {
    let mut nats = Nats::with(Setup { version: Some("2.10.26"), ..Setup::default() });
    let mut house = House::of(&nats, by_pid_file(&nats));
    house.changed(&["ann"]).await;
    nats.stop();
    house.write(&["bob"]).await;
    nats.resume();
    let started = loaded(&nats);
    house.again(nats.dir(), |_| ());
    assert_eq!(proof(&house.unchanged().await), Proof::LoadTime);
    assert_ne!(loaded(&nats), started);
    let reloaded = loaded(&nats);
    assert_eq!(proof(&house.unchanged().await), Proof::LoadTime);
    assert_eq!(loaded(&nats), reloaded, "once is enough");
}

/// It read what was there when it began to start, whatever the present file's contents are as old as.
/// To a clock that was set back an hour, a load is never later than a file from before that.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_clock_that_was_set_back_costs_one_reload_and_no_more() {
    for version in [None, Some("2.10.26")] {
        for by_system in [false, true] {
            let setup = Setup { version, extra: SYSTEM_ACCOUNT, ..Setup::default() };
            let nats = Nats::with(setup);
            let reloads = || nats.log().matches("Reloaded server configuration").count();
            let mut house = if by_system {
                House::of(&nats, by_system_account(&nats))
            } else {
                House::of(&nats, by_pid_file(&nats))
            };
            // Digests would show it anyway.
            house.options.nats.config_file = None;
            house.file = AuthFile::new(&house.options);
            house.options.nats.reload_timeout = Duration::from_secs(2);
            house.again(nats.dir(), |_| ());
            let hour = Duration::from_hours(1);
            let mut applied = house.write(&["ann"]).await;
            applied.written += hour;
            assert_eq!(proof(&house.converge(&applied).await), Proof::LoadTime, "{version:?}");
            assert!(nats.accepts("ann", "ann"));
            assert_eq!(reloads(), 1);
            // Another process, which knows nothing of all that; and none of them does it twice.
            fs::remove_file(nats.dir().join(".auth.conf.proven")).unwrap();
            house.again(nats.dir(), |_| ());
            for _ in 0..3 {
                let current = house.file.read(Adopt::No).unwrap();
                let mut applied = house.file.as_it_is(&current).await;
                applied.written += hour;
                house.converge(&applied).await;
                assert_eq!(proof(&house.converge(&applied).await), Proof::LoadTime, "{version:?}");
                assert!(reloads() <= 2, "{}", nats.log());
            }
            // And it goes on.
            let mut applied = house.write(&["bob"]).await;
            applied.written += hour;
            assert_eq!(proof(&house.converge(&applied).await), Proof::LoadTime, "{version:?}");
            assert!(nats.accepts("bob", "bob") && !nats.accepts("ann", "ann"));
            assert!(reloads() <= 3, "{}", nats.log());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_file_is_as_new_as_its_name() {
    let mut nats = Nats::with(Setup { version: Some("2.10.26"), ..Setup::default() });
    let mut house = House::of(&nats, by_pid_file(&nats));
    house.changed(&["ann"]).await;
    let long_ago = house.write(&["bob"]).await.written - Duration::from_mins(1);
    let next = fs::read_to_string(nats.auth_file()).unwrap();
    house.changed(&["ann"]).await;
    nats.stop();
    nats.resume();
    let started = loaded(&nats);
    write(nats.auth_file(), next);
    fs::File::open(nats.auth_file()).unwrap().set_modified(long_ago).unwrap();
    house.again(nats.dir(), |_| ());
    assert_eq!(proof(&house.unchanged().await), Proof::LoadTime);
    assert_ne!(loaded(&nats), started);
    assert!(nats.accepts("bob", "bob") && !nats.accepts("ann", "ann"));
}

/// Else a file that a pass cannot get to would be looked at without a rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn that_the_file_is_another_is_told_once() {
    let nats = Nats::start();
    let mut house = House::of(&nats, |_| ());
    house.write(&["ann"]).await;
    assert!(house.file.state.disturbed().now_or_never().is_none(), "it was us");
    write(nats.auth_file(), "torn");
    assert!(house.file.state.disturbed().now_or_never().is_some());
    assert!(house.file.state.disturbed().now_or_never().is_none());
    fs::remove_file(nats.auth_file()).unwrap();
    assert!(house.file.state.disturbed().now_or_never().is_some());
    assert!(house.file.state.disturbed().now_or_never().is_none());
}

/// It was there when it was told to reload, and may be starting again; but not for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_server_that_falls_silent_is_not_waited_for_to_the_end() {
    let (nats, mute) = (Nats::start(), Nats::start());
    let (pid, muted) = (nats.pid(), mute.pid());
    let mut house = House::of(&nats, |it| {
        it.monitor_url = vec![nats.monitor_url(), mute.monitor_url()];
        it.reload_timeout = Duration::from_hours(1);
        it.reload_command = Some(format!("sh -c 'kill -STOP {muted}; kill -HUP {pid}'"));
    });
    let outcomes = tokio::time::timeout(SOON, house.changed(&["ann"])).await;
    mute.signal(Signal::CONT);
    let outcomes = outcomes.expect("it comes to an end long before `reload_timeout`");
    assert_eq!(in_step(&outcomes).len(), 1, "{outcomes:#?}");
    assert!(nats.accepts("ann", "ann"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_reload_command_runs_in_its_folder_with_its_words_as_a_shell_splits_them() {
    let nats = Nats::start();
    let mut house = House::of(&nats, |it| {
        it.monitor_url = vec![nats.monitor_url()];
        it.reload_command = Some("sh -c 'kill -HUP \"$(cat nats-server.pid)\"'".into());
    });
    assert_eq!(proof(&house.changed(&["ann"]).await), Proof::Digest);
    assert!(nats.accepts("ann", "ann"));
    let before = loaded(&nats);
    proof(&house.unchanged().await);
    assert_eq!(loaded(&nats), before);

    let binary = nats.binary().display();
    let command = format!("'{binary}' --signal 'reload=nats-server.pid'");
    house.again(nats.dir(), |it| it.reload_command = Some(command));
    proof(&house.changed(&["bob"]).await);
    assert!(nats.accepts("bob", "bob") && !nats.accepts("ann", "ann"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_reload_command_that_does_not_work_is_said_so_and_tried_again() {
    let nats = Nats::start();
    let mut house = House::of(&nats, by_pid_file(&nats));
    house.changed(&["ann"]).await;
    house.again(nats.dir(), |it| {
        it.pid_file.clear();
        it.reload_timeout = NO_TIME;
    });
    let trying = |command: &'static str| {
        move |it: &mut NatsOptions| it.reload_command = Some(command.into())
    };

    house.again(nats.dir(), trying("no-such-program --token=secret"));
    let said = why(&house.changed(&["bob"]).await);
    assert!(said.contains("cannot run the reload command `no-such-program`"), "{said}");
    assert!(said.contains("PATH") && !said.contains("secret"), "{said}");

    house.again(nats.dir(), trying("sh -c 'echo no; echo idea >&2; exit 3' secret"));
    let said = why(&house.unchanged().await);
    assert!(said.contains("`sh` failed (exit status: 3): no\nidea"), "{said}");
    assert!(!said.contains("secret"), "{said}");

    house.again(nats.dir(), trying("false"));
    let said = why(&house.unchanged().await);
    assert!(said.contains("`false` failed (exit status: 1)"), "{said}");
    assert!(!said.contains("status: 1):"), "of nothing nothing is told: {said}");

    house.again(nats.dir(), trying("sh -c 'echo $$ >pid; echo waiting; sleep 1000 & wait'"));
    let said = why(&house.unchanged().await);
    assert!(said.contains("`sh` did not end within") && said.contains("waiting"), "{said}");
    let pid = fs::read_to_string(nats.dir().join("pid")).unwrap();
    let group = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    eventually("what the command started is ended, too", || {
        rustix::process::test_kill_process_group(group).err()
    });

    house.again(nats.dir(), trying("true"));
    let said = why(&house.unchanged().await);
    assert!(said.contains("does not run the file 300ms after it was told to reload"), "{said}");

    assert!(nats.accepts("ann", "ann") && !nats.accepts("bob", "bob"));
    house.again(nats.dir(), |it| {
        it.reload_command = Some("sh -c 'kill -HUP $(cat nats-server.pid)'".into());
        it.reload_timeout = SOON;
    });
    proof(&house.unchanged().await);
    assert!(nats.accepts("bob", "bob") && !nats.accepts("ann", "ann"));
}

/// It may leave a process behind that holds its output open.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_reload_command_is_done_when_it_ends_whoever_else_still_writes() {
    let nats = Nats::start();
    let mut house = House::of(&nats, |it| {
        it.monitor_url = vec![nats.monitor_url()];
        it.reload_command =
            Some("sh -c 'sleep 25 & echo $! >left; kill -HUP $(cat nats-server.pid)'".into());
    });
    let outcomes = house.changed(&["ann"]).await;
    assert_eq!(proof(&outcomes), Proof::Digest);
    assert!(outcomes[0].took.unwrap() < SOON);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nobody_but_a_nats_server_is_signalled() {
    let nats = Nats::start();
    let mut house = House::of(&nats, by_pid_file(&nats));
    house.changed(&["ann"]).await;
    house.write(&["bob"]).await;
    let sleep = Process::start(Command::new("sleep").arg("1000"));
    let gone = {
        let ended = Process::start(&mut Command::new("true"));
        eventually("it ends", || ended.ended());
        ended.pid()
    };
    // A name is not enough: a script has one, and it is its shell that would be signalled.
    let named = nats.dir().join("nats-server");
    std::os::unix::fs::symlink("/bin/sleep", &named).unwrap();
    let named = Process::start(Command::new(&named).arg("1000"));

    let pid_file = nats.dir().join("a.pid");
    for (text, complaint) in [
        (sleep.pid().to_string(), "is `sleep`, not a nats-server"),
        (named.pid().to_string(), "not a nats-server"),
        (gone.to_string(), "does not exist"),
        (std::process::id().to_string(), "is pb-nats itself"),
        ("1".into(), "process 1,"),
        ("0".into(), "`0` is not a process id"),
        ("-1".into(), "`-1` is not a process id"),
        (String::new(), "`` is not a process id"),
        ("<html>".into(), "`<html>` is not a process id"),
    ] {
        write(&pid_file, &text);
        house.again(nats.dir(), |it| it.pid_file = vec![pid_file.clone()]);
        let said = why(&house.unchanged().await);
        assert!(said.contains(complaint), "{text}: {said}");
        assert!(!said.ends_with("hint: "), "{text}: {said}");
    }
    house.again(nats.dir(), |it| it.pid_file = vec![nats.dir().join("none.pid")]);
    let said = why(&house.unchanged().await);
    assert!(said.contains("none.pid") && said.contains("written at its start"), "{said}");
    assert!(sleep.ended().is_none() && named.ended().is_none());
    assert!(nats.accepts("ann", "ann"));

    house.again(nats.dir(), |it| it.pid_file = vec![nats.pid_file()]);
    proof(&house.unchanged().await);
    assert!(nats.accepts("bob", "bob") && !nats.accepts("ann", "ann"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn without_anybody_to_ask_an_order_is_given_once_and_nothing_is_claimed() {
    let nats = Nats::start();
    let mut house = House::of(&nats, |it| it.pid_file = vec![nats.pid_file()]);
    // Nobody knows what was before we started.
    house.write(&["ann"]).await;
    assert!(is_unverified(&house.unchanged().await));
    eventually("it is reloaded", || nats.accepts("ann", "ann").then_some(()));

    assert!(is_unverified(&house.changed(&["bob"]).await));
    eventually("it is reloaded", || nats.accepts("bob", "bob").then_some(()));

    // An order that failed is given again.
    fs_err::rename(nats.pid_file(), nats.dir().join("away")).unwrap();
    assert!(why(&house.changed(&["eve"]).await).contains("cannot read a process id"));
    assert!(why(&house.unchanged().await).contains("cannot read a process id"));
    fs_err::rename(nats.dir().join("away"), nats.pid_file()).unwrap();
    assert!(is_unverified(&house.unchanged().await));
    eventually("it is reloaded", || nats.accepts("eve", "eve").then_some(()));

    // A file that somebody before us wrote is ordered once, and that is known after a restart.
    house.write(&["zoe"]).await;
    let command = |it: &mut NatsOptions| {
        it.pid_file.clear();
        it.reload_command = Some("sh -c 'echo once >>orders'".into());
    };
    for _ in 0..2 {
        house.again(nats.dir(), command);
        assert!(is_unverified(&house.unchanged().await));
        assert!(is_unverified(&house.unchanged().await));
    }
    assert_eq!(fs::read_to_string(nats.dir().join("orders")).unwrap(), "once\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn without_a_way_to_reload_it_is_said_which_server_is_not_in_step() {
    let nats = Nats::start();
    let mut house = House::of(&nats, |it| it.monitor_url = vec![nats.monitor_url()]);
    let said = why(&house.changed(&["ann"]).await);
    assert!(said.contains("nothing in [nats] says how to reload"), "{said}");
    assert!(said.contains("`reload_command`, `pid_file` or `system_url`"), "{said}");
    nats.reload().unwrap();
    proof(&house.unchanged().await);

    house.again(nats.dir(), |it| it.monitor_url.clear());
    assert!(is_unverified(&house.unchanged().await));
}

/// What `-t` lets pass and a reload does not is refused as a whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_refused_reload_leaves_the_old_rights_until_the_cause_is_mended() {
    let nats = Nats::with(Setup { extra: SYSTEM_ACCOUNT, ..Setup::default() });
    for broken in ["http_base_path: \"/elsewhere\"", "max_payload: \"oops\"", "no_such_key: 1"] {
        for over_system_account in [true, false] {
            let mut house = if over_system_account {
                House::of(&nats, by_system_account(&nats))
            } else {
                House::of(&nats, by_pid_file(&nats))
            };
            proof(&house.changed(&["ann"]).await);
            house.again(nats.dir(), |it| it.reload_timeout = NO_TIME);
            let sound = edit(&nats, broken);
            let outcomes = house.changed(&["bob"]).await;
            let said = why(&outcomes);
            if over_system_account {
                assert!(said.contains("refuses to reload: "), "{said}");
            } else if broken.starts_with("http") {
                assert!(said.contains("before it is restarted: `http_base_path`"), "{said}");
            } else {
                assert!(said.contains("nats-server.conf:1:"), "{said}");
            }
            assert!(nats.accepts("ann", "ann") && !nats.accepts("bob", "bob"), "{broken}");
            why(&house.unchanged().await);

            write(nats.config_file(), &sound);
            house.again(nats.dir(), |it| it.reload_timeout = SOON);
            proof(&house.unchanged().await);
            assert!(nats.accepts("bob", "bob") && !nats.accepts("ann", "ann"), "{broken}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_edit_elsewhere_in_the_main_config_is_noted_and_not_loaded() {
    let nats = Nats::start();
    let mut house = House::of(&nats, by_pid_file(&nats));
    house.changed(&["ann"]).await;
    let before = loaded(&nats);
    edit(&nats, "max_payload: 1000");
    let outcomes = house.unchanged().await;
    assert_eq!(proof(&outcomes), Proof::Digest);
    assert!(note(&outcomes).unwrap().contains("main config on disk differs"));
    // Nor after a restart, when less is known.
    house.again(nats.dir(), |_| ());
    let outcomes = house.unchanged().await;
    assert_eq!(proof(&outcomes), Proof::Earlier);
    assert!(note(&outcomes).unwrap().contains("main config on disk differs"));
    assert_eq!(loaded(&nats), before);

    // The operator loads it, and edits on.
    house.again(nats.dir(), |_| ());
    nats.reload().unwrap();
    assert_eq!(proof(&house.unchanged().await), Proof::Digest);
    edit(&nats, "max_connections: 1000");
    nats.reload().unwrap();
    edit(&nats, "ping_max: 5");
    let before = loaded(&nats);
    assert!(note(&house.unchanged().await).is_some());
    assert_eq!(loaded(&nats), before);
    assert_eq!(nats.varz()["max_payload"], 1000);

    // A change of ours takes it along: there is no reload by halves.
    assert_eq!(proof(&house.changed(&["bob"]).await), Proof::Digest);
    assert!(nats.accepts("bob", "bob"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_answers_nonsense_is_not_believed_and_keeps_nobody_waiting() {
    let nats = Nats::start();
    let http = |status: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let addresses = [
        (speaking(&http("200 OK", "<html>"), true), "is not a nats-server"),
        (speaking(&http("200 OK", "{}"), true), "is not a nats-server"),
        (speaking(&http("500 Oops", "{}"), true), "500"),
        (speaking(&http("302 Found\r\nLocation: http://127.0.0.1:1/", ""), true), "not a nats"),
        (speaking("SSH-2.0-OpenSSH_9.9\r\n", true), "cannot ask"),
        (speaking("", false), "cannot ask"),
        (free_address().to_string(), "cannot ask"),
    ];
    let mut house = House::of(&nats, by_pid_file(&nats));
    house.again(nats.dir(), |it| {
        let nonsense = addresses.iter().map(|it| format!("http://me:secret@{}/base/", it.0));
        it.monitor_url.extend(nonsense);
    });
    let begun = Instant::now();
    let outcomes = house.changed(&["ann"]).await;
    assert!(begun.elapsed() < SOON, "the others waited for it");
    assert_eq!(in_step(&outcomes), [nats.monitor.to_string()]);
    assert!(nats.accepts("ann", "ann"));
    let outcomes: BTreeMap<&str, &SyncStatus> =
        outcomes.iter().map(|it| (&*it.server, &it.state)).collect();
    for (address, complaint) in &addresses {
        let SyncStatus::NotInStep { why } = outcomes[&**address] else { panic!("{outcomes:#?}") };
        let said = told(why);
        assert!(said.contains(complaint) && said.contains(address), "{complaint}: {said}");
        assert!(!said.contains("secret"), "{said}");
    }
}

/// Of two servers one is stopped, and somebody answers in its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_answer_that_nobody_understands_costs_no_other_server_its_own() {
    let sender = r#""server": {"name": "nats-server-2", "id": "ODD"}"#;
    for (answer, wanted) in [
        ("{".to_owned(), "is not understood"),
        (format!(r#"{{{sender}, "data": {{"now": 5}}}}"#), "nats-server-2 is not understood"),
        (
            format!(r#"{{{sender}, "error": {{"code": 500, "description": "no"}}}}"#),
            "nats-server-2",
        ),
    ] {
        let servers = Nats::cluster(2, Setup { extra: SYSTEM_ACCOUNT, ..Setup::default() });
        let mut house = House::of(&servers[0], by_system_account(&servers[0]));
        servers[1].signal(Signal::STOP);
        answering(&servers[0], "ODD", move |_| answer.clone().into_bytes());
        let outcomes = house.changed(&["ann"]).await;
        assert_eq!(in_step(&outcomes), ["nats-server-1"], "{outcomes:#?}");
        assert!(servers[0].accepts("ann", "ann"));
        let other = outcomes.iter().find(|it| it.server != "nats-server-1").expect("it is told");
        let SyncStatus::NotInStep { why } = &other.state else { panic!("{outcomes:#?}") };
        assert!(told(why).contains(wanted), "{wanted}: {}", told(why));
        assert_eq!(outcomes.len(), 2, "{outcomes:#?}");
    }
}

/// Something that is not a nats-server. It answers every connection with this, or keeps it open.
fn speaking(answer: &str, close: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let answer = answer.to_owned();
    thread::spawn(move || {
        let mut open = Vec::new();
        for mut stream in listener.incoming().map_while(Result::ok) {
            if close {
                let _ = stream.read(&mut [0; 1024]);
                let _ = stream.write_all(answer.as_bytes());
            } else {
                open.push(stream);
            }
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_log_in_that_is_refused_is_said_so_and_a_mended_password_is_used() {
    let extra = SYSTEM_ACCOUNT
        .replace("accounts {", "accounts { OTHER { users = [ {user: other, password: other} ] },");
    let nats = Nats::with(Setup { extra: &extra, ..Setup::default() });
    let password_file = nats.dir().join("password");
    let mut house = House::of(&nats, by_system_account(&nats));
    house.again(nats.dir(), |it| {
        it.system_password = None;
        it.system_password_file = Some(password_file.clone());
    });
    let said = why(&house.changed(&["ann"]).await);
    assert!(said.contains(&format!("cannot read {}", password_file.display())), "{said}");
    write(&password_file, "wrong-password\n");
    let said = why(&house.unchanged().await);
    assert!(said.contains("cannot connect to the system account"), "{said}");
    assert!(said.contains("the log-in is refused") && !said.contains("wrong-password"), "{said}");
    write(&password_file, format!("{}\n", SYSTEM_USER.1));
    proof(&house.unchanged().await);
    assert!(nats.accepts("ann", "ann"));
    assert!(!format!("{:?}", house.servers).contains(SYSTEM_USER.1));

    house.again(nats.dir(), |it| {
        it.system_user = Some("other".into());
        it.system_password = Some(Secret::new("other"));
    });
    let said = why(&house.unchanged().await);
    assert!(said.contains("is not in the system account"), "{said}");
    house.again(nats.dir(), |it| {
        it.system_user = Some("ann".into());
        it.system_password = Some(Secret::new("ann"));
    });
    let said = why(&house.unchanged().await);
    assert!(said.contains("must have all its rights"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_server_tells_what_it_runs() {
    let nats = Nats::with(Setup { extra: SYSTEM_ACCOUNT, ..Setup::default() });
    let _ann = nats.system();
    for settings in [by_monitor, by_system] {
        let mut house = House::of(&nats, |it| settings(it, &nats));
        let running = house.servers.running().await;
        let [Ok(Running { name, version, config_digest, connections, .. })] = &running[..] else {
            panic!("{running:#?}")
        };
        assert_eq!(name, "nats-server");
        assert_eq!(*version, nats.varz()["version"]);
        assert_eq!(config_digest.as_deref(), nats.varz()["config_digest"].as_str());
        assert!(*connections >= 1);
    }
    let mut house = House::of(&nats, |_| ());
    assert!(house.servers.running().await.is_empty());
}

fn by_monitor(options: &mut NatsOptions, nats: &Nats) {
    options.monitor_url = vec![nats.monitor_url()];
}

fn by_signal(options: &mut NatsOptions, nats: &Nats) {
    by_pid_file(nats)(options);
}

fn by_system(options: &mut NatsOptions, nats: &Nats) {
    by_system_account(nats)(options);
}

#[test]
fn settings_that_cannot_be_used_are_named() {
    for (settings, complaint) in [
        (("reload_command", "kill -HUP 'oops"), "`reload_command`"),
        (("reload_command", " "), "`reload_command`"),
        (("monitor_url", "nats://127.0.0.1:4222"), "`monitor_url`"),
        (("monitor_url", "127.0.0.1"), "`monitor_url`"),
        (("system_url", "http://127.0.0.1:8222"), "`system_url`"),
    ] {
        let mut options = NatsOptions::default();
        match settings {
            ("reload_command", it) => options.reload_command = Some(it.into()),
            ("monitor_url", it) => options.monitor_url = vec![it.into()],
            (_, it) => options.system_url = Some(it.into()),
        }
        let error = Servers::new(&options, Path::new("")).unwrap_err();
        assert!(error.to_string().contains(complaint), "{error}");
    }
}
