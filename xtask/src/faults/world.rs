//! A PocketBase, nats-servers, pb-nats between them, and the people who use them.

use std::{
    collections::BTreeSet,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use fastrand::Rng;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    checker::Checker,
    proxy::Proxy,
    truth::{Claim, Truth, Who},
};
use crate::support::{
    Door, Nats, Pb, PbNats, Running, SUPERUSER, SYSTEM_ACCOUNT, SYSTEM_USER, Setup, Signal, bcrypt,
    eventually, free_address, http,
};

/// How pb-nats reads PocketBase, and reaches nats-server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// Over HTTP; by SIGHUP, verified by the monitor.
    Signal,
    /// The same, with an account and a view as `pb-nats init` makes them, and a resync every two
    /// seconds: what gives no hint is found by that alone.
    Resync,
    /// The same, with a reload command.
    Command,
    /// By SIGHUP, a nats-server that shows no digest of its config: only when it loaded one.
    Undigested,
    /// From the database file.
    Database,
    /// Over HTTP; a cluster of three, over the system account.
    Cluster,
}

impl Place {
    pub(super) const ALL: [Place; 6] = [
        Place::Signal,
        Place::Resync,
        Place::Command,
        Place::Undigested,
        Place::Database,
        Place::Cluster,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Place::Signal => "by SIGHUP",
            Place::Resync => "by SIGHUP, resync every 2 s",
            Place::Command => "by command",
            Place::Undigested => "by SIGHUP, nats-server 2.10",
            Place::Database => "from the database file",
            Place::Cluster => "cluster of three",
        }
    }
}

/// All of it, gone when dropped.
pub(super) struct World {
    pub(super) place: Place,
    /// pb-nats, while it runs.
    pub(super) running: Option<Running>,
    pub(super) checker: Checker,
    pub(super) pb_nats: PbNats,
    /// Between pb-nats and PocketBase.
    pub(super) proxy: Proxy,
    pub(super) routes: Vec<Proxy>,
    pub(super) doors: Vec<Proxy>,
    pub(super) nats: Vec<Nats>,
    pub(super) pb: Pb,
    /// Whether PocketBase can be asked.
    pub(super) pb_is_up: bool,
    pub(super) people: People,
    pub(super) ids: Ids,
    /// Where pb-nats tells how it is.
    listen: SocketAddr,
    /// What pb-nats has said before it was started again.
    pub(super) said: Vec<String>,
    pub(super) rng: Rng,
    /// The auth file when the world was made: somebody in it is not allowed any more.
    pub(super) old_file: String,
    /// Where the auth file is, if that is a small disk of its own.
    pub(super) disk: Option<Mount>,
    pub(super) read_only: Option<Mount>,
}

/// What PocketBase allows, as far as it changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct People {
    /// Which password pat has.
    password: usize,
    /// Which guests are active.
    guests: [bool; 3],
    /// Whether rob works late.
    late: bool,
    /// Whether there is a tom.
    tom: bool,
    /// Whether lea is active, whose leaf node may be connected.
    lea: bool,
}

/// Ids of records.
pub(super) struct Ids {
    /// The collections, whatever they are called.
    pub(super) users: String,
    pub(super) roles: String,
    pub(super) staff: String,
    shift: String,
    marker: String,
    pat: String,
    lea: String,
    guests: Vec<String>,
    account: String,
}

const TOM: &str = "tom000000000000";
const PASSWORDS: usize = 4;

impl People {
    /// Everything that they may do.
    fn allowed(&self) -> BTreeSet<Claim> {
        let mut allowed = BTreeSet::new();
        for (who, subject) in keepers() {
            allowed.extend([who.lets_in(), who.publishes(&subject)]);
        }
        allowed.insert(pat(self.password).lets_in());
        let active = (0..self.guests.len()).filter(|it| self.guests[*it]).map(guest);
        for guest in active {
            allowed.extend([guest.lets_in(), guest.publishes("staff.lunch")]);
        }
        let shift = if self.late { "shift.late" } else { "shift.early" };
        allowed.extend([rob().lets_in(), rob().publishes(shift)]);
        if self.tom {
            allowed.insert(tom().lets_in());
        }
        if self.lea {
            allowed.insert(lea().lets_in());
        }
        allowed
    }

    /// Whom the auth file has to name.
    fn names(&self) -> BTreeSet<String> {
        self.allowed().into_iter().map(|it| it.who.name).collect()
    }
}

/// Who is always allowed, and where they talk to themselves.
pub(super) fn keepers() -> Vec<(Who, String)> {
    vec![
        (Who::new("ann", "ann-password"), "staff.ann".into()),
        (Who::new("bob", "bob-password"), "PUBLIC.bob".into()),
    ]
}

fn pat(password: usize) -> Who {
    Who::new("pat", &format!("pat-password-{password}"))
}

fn guest(number: usize) -> Who {
    Who::new(&format!("guest{number}"), "guest-password")
}

fn rob() -> Who {
    Who::new("rob", "rob-password")
}

fn tom() -> Who {
    Who::new("tom", "tom-password")
}

/// Whose leaf node may be connected.
pub(super) fn lea() -> Who {
    Who::new("lea", "lea-password")
}

/// Who was deactivated before the first fault.
fn zoe() -> Who {
    Who::new("zoe", "zoe-password")
}

/// Whom PocketBase has never heard of, but somebody may write into the auth file.
pub(super) fn eve() -> Who {
    Who::new("eve", "eve-password")
}

/// What nobody may ever do.
fn never() -> Vec<Claim> {
    let (ann, _) = keepers().swap_remove(0);
    vec![
        Who::new("", "").lets_in(),
        Who::new("ann", "").lets_in(),
        Who::new("ann", "bob-password").lets_in(),
        Who::new("locked", "").lets_in(),
        Who::new("pb-nats-locked", "").lets_in(),
        zoe().lets_in(),
        eve().lets_in(),
        ann.publishes("payroll"),
        ann.publishes("PUBLIC.ann"),
        rob().publishes("staff.rob"),
    ]
}

impl World {
    /// Starts everything, and waits until it is in step.
    pub(super) fn start(place: Place, binary: &Path, limit: Duration, rng: Rng) -> Result<World> {
        let pb = Pb::start();
        let disk = match place {
            Place::Signal => Mount::disk().ok(),
            _ => None,
        };
        let within = disk.as_ref().map(Mount::path);
        let version = (place == Place::Undigested).then_some("2.10.26");
        let (mut nats, routes, doors) = match place {
            Place::Cluster => cluster(),
            _ => (vec![Nats::with(Setup { version, within, ..Setup::default() })], vec![], vec![]),
        };
        // From now on their configs have the addresses that they chose, and stay the same.
        for server in &mut nats {
            server.stop();
            server.resume();
        }
        let proxy = Proxy::before(pb.address());
        let mut pb_nats = PbNats::between(binary, &pb, &nats[0]);
        let (ids, people) = populate(&pb);
        let zoe_id = pb.user("zoe", &zoe().password, &ids.staff);
        pb_nats.set("pocketbase.url", format!("http://{}", proxy.address));
        let listen = free_address();
        pb_nats.set("admin.listen", listen.to_string());
        settle(place, &mut pb_nats, &pb, &nats, &doors);
        let token = match place {
            Place::Resync => set_up(binary, &pb)?,
            _ => token(&pb, &ids.account),
        };
        fs::write(pb_nats.dir().join("token"), token)?;

        let mut truth = Truth::new(limit);
        let now = Instant::now();
        truth.change_begins(now, &people.allowed());
        truth.change_ends(now);
        let running = pb_nats.run();
        eventually("pb-nats starts", || {
            assert!(running.ended(Duration::ZERO).is_none(), "{:?}", running.lines());
            nats.iter().all(|it| it.accepts("zoe", &zoe().password)).then_some(())
        });
        let old_file = fs::read_to_string(nats[0].auth_file())?;
        pb.update("nats_users", &zoe_id, &json!({ "active": false }));
        eventually("zoe is out", || {
            nats.iter().all(|it| !it.accepts("zoe", &zoe().password)).then_some(())
        });
        let addresses: Vec<SocketAddr> = nats.iter().map(|it| it.address).collect();
        let checker = Checker::start(truth, &addresses, keepers(), never());
        let world = World {
            place,
            running: Some(running),
            checker,
            pb_nats,
            proxy,
            routes,
            doors,
            nats,
            pb,
            pb_is_up: true,
            people,
            ids,
            listen,
            said: Vec::new(),
            rng,
            old_file,
            disk,
            read_only: None,
        };
        if let Err(wrong) = world.in_step(Duration::from_secs(20)) {
            bail!("the beginning is not in step: {wrong}");
        }
        world.checker.seen();
        Ok(world)
    }

    /// Waits until everything is as PocketBase says.
    pub(super) fn in_step(&self, limit: Duration) -> Result<Duration, String> {
        let names = self.people.names();
        let file = self.nats[0].auth_file();
        self.checker.in_step(limit, || {
            let found = named(&fs::read_to_string(&file).unwrap_or_default());
            (found != names).then(|| format!("the auth file names {found:?}, not {names:?}"))
        })
    }

    /// Waits until pb-nats tells of itself what is wanted.
    pub(super) fn says(
        &self,
        limit: Duration,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        /// How long nobody is asked after an answer.
        const REST: Duration = Duration::from_millis(50);
        let deadline = Instant::now() + limit;
        loop {
            let said = self.status();
            if let Some(said) = said.as_ref().filter(|it| wanted(it)) {
                return Ok(said.clone());
            }
            if Instant::now() >= deadline {
                let said = said.map_or_else(
                    || "nothing".into(),
                    |it| {
                        format!(
                            "{}, {}, without live changes {}",
                            it["state"], it["summary"], it["source"]["unheard"]
                        )
                    },
                );
                bail!("pb-nats does not say within {limit:?} {what}, but {said}");
            }
            std::thread::sleep(REST);
        }
    }

    /// Waits until pb-nats says that all is in step.
    pub(super) fn says_in_step(&self, limit: Duration) -> Result<Value> {
        self.says(limit, "that all is in step", |it| it["state"] == "in_step")
    }

    /// What pb-nats tells of itself, if it does.
    fn status(&self) -> Option<Value> {
        const PATIENCE: Duration = Duration::from_secs(1);
        let request = http().get(format!("http://{}/status", self.listen));
        let request = request.config().timeout_global(Some(PATIENCE)).build();
        request.call().ok()?.body_mut().read_json().ok()
    }

    /// Changes something in PocketBase, if that is there.
    pub(super) fn change(&mut self) {
        if !self.pb_is_up {
            return;
        }
        let mut people = self.people.clone();
        match self.rng.u8(0..4) {
            0 => {
                let number = self.rng.usize(0..people.guests.len());
                people.guests[number] ^= true;
            }
            1 => return self.change_password(),
            2 => people.late ^= true,
            _ => people.tom ^= true,
        }
        self.turn_into(people);
    }

    pub(super) fn change_password(&mut self) {
        let mut people = self.people.clone();
        people.password = (people.password + 1) % PASSWORDS;
        self.turn_into(people);
    }

    /// Makes lea active, or not.
    pub(super) fn let_lea(&mut self, active: bool) {
        let people = People { lea: active, ..self.people.clone() };
        self.turn_into(people);
    }

    /// Makes PocketBase say this of the people.
    fn turn_into(&mut self, people: People) {
        let (pb, ids, before) = (&self.pb, &self.ids, &self.people);
        self.checker.change(&people.allowed(), || {
            let wanted = people.guests.iter().zip(&before.guests).zip(&ids.guests);
            for ((now, then), id) in wanted {
                if now != then {
                    pb.update(&ids.users, id, &json!({ "active": now }));
                }
            }
            if people.password != before.password {
                let hash = bcrypt(&pat(people.password).password);
                pb.update(&ids.users, &ids.pat, &json!({ "password": hash }));
            }
            if people.lea != before.lea {
                pb.update(&ids.users, &ids.lea, &json!({ "active": people.lea }));
            }
            if people.late != before.late {
                let subject = if people.late { "shift.late" } else { "shift.early" };
                let role = json!({ "publish_permissions": [subject] });
                pb.update(&ids.roles, &ids.shift, &role);
            }
            match (before.tom, people.tom) {
                (false, true) => {
                    let record = json!({
                        "id": TOM, "username": "tom", "password": bcrypt(&tom().password),
                        "role_id": [ids.staff], "active": true,
                    });
                    pb.create(&ids.users, &record);
                }
                (true, false) => pb.delete(&ids.users, TOM),
                _ => (),
            }
        });
        self.people = people;
    }

    /// Starts pb-nats again, unless it runs.
    pub(super) fn start_pb_nats(&mut self) {
        if self.running.is_none() {
            self.running = Some(self.pb_nats.run());
        }
    }

    /// Stops pb-nats, in an orderly way or not.
    pub(super) fn stop_pb_nats(&mut self, signal: Signal) {
        if let Some(running) = self.running.take() {
            running.signal(signal);
            let ended = running.ended(Duration::from_secs(20));
            self.said.extend(running.lines());
            self.said.push(format!("── ended: {ended:?}"));
        }
    }

    /// Signals pb-nats, if it runs.
    pub(super) fn signal_pb_nats(&self, signal: Signal) {
        if let Some(running) = &self.running {
            running.signal(signal);
        }
    }

    pub(super) fn stop_nats(&mut self, server: usize, signal: Signal) {
        self.checker.outage_begins(server);
        if signal == Signal::KILL { self.nats[server].kill() } else { self.nats[server].stop() }
    }

    pub(super) fn resume_nats(&mut self, server: usize) {
        self.nats[server].resume();
        self.checker.outage_ends(server);
    }

    /// Starts a server again, with further lines in its main config.
    pub(super) fn restart_nats(&mut self, server: usize, lines: &str) {
        self.stop_nats(server, Signal::TERM);
        self.nats[server].configure(lines);
        self.resume_nats(server);
    }

    /// A server by chance.
    pub(super) fn any_server(&mut self) -> usize {
        self.rng.usize(0..self.nats.len())
    }

    /// Does nothing for a while.
    pub(super) fn pause(&mut self, milliseconds: std::ops::Range<u64>) {
        let pause = Duration::from_millis(self.rng.u64(milliseconds));
        std::thread::sleep(pause);
    }

    /// Makes every token that pb-nats may have worthless.
    pub(super) fn revoke_token(&self) {
        let password = format!("account-password-{}", fastrand::u64(..));
        let change = json!({ "password": password, "passwordConfirm": password });
        self.pb.update("_superusers", &self.ids.account, &change);
    }

    /// Gives pb-nats a token that is good.
    pub(super) fn new_token(&self) -> Result<()> {
        let staged = self.pb_nats.dir().join("token.new");
        fs::write(&staged, token(&self.pb, &self.ids.account))?;
        Ok(fs::rename(staged, self.pb_nats.dir().join("token"))?)
    }

    /// Has PocketBase make a backup.
    pub(super) fn back_up(&self) {
        self.pb.request("DELETE", "/api/backups/fault.zip", self.pb.token(), &Value::Null);
        self.mark("before");
        self.pb.ask("POST", "/api/backups", &json!({ "name": "fault.zip" }));
        self.mark("after");
    }

    /// Has PocketBase go back to the backup, when the people were these.
    pub(super) fn restore(&mut self, people: People) {
        let pb = &self.pb;
        let marker = format!("/api/collections/nats_roles/records/{}", self.ids.marker);
        self.checker.change(&people.allowed(), || {
            let (status, answer) =
                pb.request("POST", "/api/backups/fault.zip/restore", pb.token(), &Value::Null);
            assert_eq!(status, 204, "{answer}");
            eventually("PocketBase is as it was", || {
                // It starts again meanwhile.
                let path = format!("{}{marker}", pb.url());
                let request = http().get(path).header("Authorization", pb.token());
                let record: Value = request.call().ok()?.body_mut().read_json().ok()?;
                (record["name"] == "before").then_some(())
            });
        });
        self.people = people;
    }

    fn mark(&self, name: &str) {
        self.pb.update("nats_roles", &self.ids.marker, &json!({ "name": name }));
    }

    /// Keeps what may tell why something was not held.
    pub(super) fn keep_files(&self, folder: &Path, wrongs: &[String]) -> Result<()> {
        fs::create_dir_all(folder)?;
        let mut said = self.said.clone();
        said.extend(self.running.iter().flat_map(Running::lines));
        fs::write(folder.join("pb-nats.log"), said.join("\n"))?;
        fs::write(folder.join("wrong.txt"), wrongs.join("\n"))?;
        let from = [self.nats[0].dir(), self.pb_nats.dir()];
        for from in from {
            run("cp", &["-r", &shown(from), &shown(folder)])?;
        }
        Ok(())
    }

    /// Logs of refused log-ins grow fast.
    pub(super) fn shorten_logs(&self) {
        for server in &self.nats {
            let log = fs::File::options().append(true).open(server.log_file());
            let _ = log.and_then(|it| it.set_len(0));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A process that is stopped would not end in an orderly way.
        if let Some(running) = &self.running {
            running.signal(Signal::KILL);
        }
    }
}

/// The names in an auth file, without those that stand there only because the main config needs them.
fn named(file: &str) -> BTreeSet<String> {
    const LOCKED: &str = "\"$2a$04$pbxnatsxlocked";
    let users = file.lines().filter(|it| !it.contains(LOCKED));
    let users = users.filter_map(|it| it.trim().strip_prefix("{user: \""));
    users.filter_map(|it| it.split('"').next().map(str::to_owned)).collect()
}

/// Makes the records.
fn populate(pb: &Pb) -> (Ids, People) {
    let staff = pb.role("staff", &["staff.>"], &["staff.>", "_INBOX.>"]);
    let shift = pb.role("shift", &["shift.early"], &[]);
    let [(ann, _), (bob, _)] = &keepers()[..] else { unreachable!("there are two") };
    pb.user(&ann.name, &ann.password, &staff);
    pb.user(&bob.name, &bob.password, "");
    pb.user("rob", &rob().password, &shift);
    let lea = pb.user("lea", &lea().password, &staff);
    let pat = pb.user("pat", &pat(0).password, &staff);
    let guests = (0..3).map(guest).map(|it| pb.user(&it.name, &it.password, &staff)).collect();
    let marker = pb.role("before", &[], &[]);
    let account = pb.create(
        "_superusers",
        &json!({
            "email": "account@example.com", "password": "account-password",
            "passwordConfirm": "account-password",
        }),
    );
    let id = |collection: &str| {
        let collection = format!("/api/collections/{collection}");
        let found = pb.ask("GET", &collection, &Value::Null);
        found["id"].as_str().expect("a collection has an id").to_owned()
    };
    let (users, roles) = (id("nats_users"), id("nats_roles"));
    let people = People { password: 0, guests: [true; 3], late: false, tom: false, lea: true };
    (Ids { users, roles, staff, shift, marker, pat, lea, guests, account }, people)
}

/// A token for pb-nats's account.
fn token(pb: &Pb, account: &str) -> String {
    let path = format!("/api/collections/_superusers/impersonate/{account}");
    let answer = pb.ask("POST", &path, &json!({ "duration": 86_400 }));
    answer["token"].as_str().expect("a token").to_owned()
}

/// Has `pb-nats init` make an account of its own and the view. The account's token.
fn set_up(binary: &Path, pb: &Pb) -> Result<String> {
    let (user, password) = SUPERUSER;
    let mut init = PbNats::new(binary);
    init.set_env("PB_NATS_SUPERUSER", user);
    init.set_env("PB_NATS_SUPERUSER_PASSWORD", password);
    fs::remove_file(init.settings_file())?;
    let output = init.command(&["init", "--yes", "--url", &pb.url()]);
    ensure!(output.code == Some(0), "pb-nats init: {}", output.stderr);
    Ok(fs::read_to_string(init.dir().join("pb-nats.token"))?)
}

fn cluster() -> (Vec<Nats>, Vec<Proxy>, Vec<Proxy>) {
    let listen: Vec<SocketAddr> = (0..3).map(|_| free_address()).collect();
    let routes: Vec<Proxy> = listen.iter().copied().map(Proxy::before).collect();
    let doors = listen.iter().zip(&routes);
    let doors = doors.map(|(listen, it)| Door { listen: *listen, advertise: it.address });
    let doors: Vec<Door> = doors.collect();
    let nats = Nats::cluster_behind(&doors, Setup { extra: SYSTEM_ACCOUNT, ..Setup::default() });
    let clients = nats.iter().map(|it| Proxy::before(it.address)).collect();
    (nats, routes, clients)
}

/// What the settings say, where it is not the usual.
fn settle(place: Place, pb_nats: &mut PbNats, pb: &Pb, nats: &[Nats], doors: &[Proxy]) {
    match place {
        Place::Signal | Place::Undigested => (),
        Place::Resync => pb_nats.set("pocketbase.resync_interval", "2s"),
        Place::Command => {
            let script = pb_nats.dir().join("reload.sh");
            let reload = format!("kill -HUP $(cat {})", nats[0].pid_file().display());
            let text = format!(
                "case $(cat mode) in\n\
                 hang) sleep 60;;\nlie) ;;\nlate) (sleep 2; {reload}) & ;;\n*) {reload};;\nesac\n"
            );
            crate::support::write(&script, text);
            crate::support::write(pb_nats.dir().join("mode"), "well");
            pb_nats.unset("nats.pid_file");
            pb_nats.set("nats.reload_command", format!("sh {}", script.display()));
            // A command that hangs has so long.
            pb_nats.set("nats.reload_timeout", "3s");
        }
        Place::Database => {
            pb_nats.unset("pocketbase.url");
            pb_nats.unset("pocketbase.token_file");
            pb_nats.set("pocketbase.data_dir", pb.data_dir().display().to_string());
        }
        Place::Cluster => {
            pb_nats.unset("nats.pid_file");
            pb_nats.unset("nats.monitor_url");
            pb_nats.unset("nats.config_file");
            let urls: Vec<String> =
                doors.iter().map(|it| format!("nats://{}", it.address)).collect();
            pb_nats.set("nats.system_url", urls.join(","));
            pb_nats.set("nats.system_user", SYSTEM_USER.0);
            pb_nats.set("nats.system_password", SYSTEM_USER.1);
        }
    }
}

pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A file system, unmounted when dropped.
pub(super) struct Mount {
    path: PathBuf,
    /// The folder, if it was made for it.
    _folder: Option<TempDir>,
}

impl Mount {
    /// A small disk.
    fn disk() -> Result<Mount> {
        let folder = TempDir::new()?;
        run("mount", &["-t", "tmpfs", "-o", "size=64m", "none", &shown(folder.path())])?;
        Ok(Mount { path: folder.path().to_owned(), _folder: Some(folder) })
    }

    /// The folder, as one that may not be written. It becomes so at once: made read-only in its
    /// place, the mount would be refused as busy while somebody writes there.
    pub(super) fn read_only(folder: &Path) -> Result<Mount> {
        let aside = TempDir::new()?;
        run("mount", &["--bind", &shown(folder), &shown(aside.path())])?;
        let aside = Mount { path: aside.path().to_owned(), _folder: Some(aside) };
        run("mount", &["-o", "remount,bind,ro", &shown(&aside.path)])?;
        run("mount", &["--bind", &shown(&aside.path), &shown(folder)])?;
        Ok(Mount { path: folder.to_owned(), _folder: None })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Fills the disk to the last byte.
    pub(super) fn fill(&self) -> Result<()> {
        let mut filler = fs::File::create(self.filler())?;
        match io::copy(&mut io::repeat(0), &mut filler) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => Ok(()),
            other => bail!("the disk does not become full: {other:?}"),
        }
    }

    pub(super) fn empty(&self) -> Result<()> {
        Ok(fs::remove_file(self.filler())?)
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Whoever still has a file open there keeps it until the end.
        let _ = run("umount", &["-l", &shown(&self.path)]);
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let said = Command::new(program).args(arguments).output();
    let said = said.with_context(|| format!("`{program}` does not start"))?;
    if !said.status.success() {
        bail!("{program}: {}", String::from_utf8_lossy(&said.stderr).trim());
    }
    Ok(())
}
