//! What can go wrong: how each fault begins, and how it ends.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use fastrand::Rng;
use rustix::process::{Pid, kill_process};

use super::{
    proxy::Weather,
    truth::Harm,
    world::{Mount, People, Place, World, eve, is_root},
};
use crate::support::{Nats, Signal, bcrypt, write};

/// Something that breaks and is mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Fault {
    PbNatsKilled,
    PbNatsStopped,
    #[value(name = "pocketbase-killed")]
    PocketBaseKilled,
    #[value(name = "pocketbase-stopped")]
    PocketBaseStopped,
    #[value(name = "pocketbase-restarted")]
    PocketBaseRestarted,
    #[value(name = "pocketbase-slow")]
    PocketBaseSlow,
    #[value(name = "pocketbase-unreachable")]
    PocketBaseUnreachable,
    #[value(name = "pocketbase-dead")]
    PocketBaseDead,
    #[value(name = "pocketbase-hung")]
    PocketBaseHung,
    NatsKilled,
    NatsStopped,
    NatsRestarted,
    NatsSlow,
    NatsDead,
    NatsHung,
    DiskFull,
    FolderReadOnly,
    FileEdited,
    FileDeleted,
    FileOlder,
    FileOlderAndLoaded,
    FileForeign,
    LiveCut,
    LiveHeld,
    LiveDeaf,
    LiveTorn,
    LiveTwice,
    LiveSlow,
    TokenRevoked,
    DatabaseRestored,
    CollectionRenamed,
    ListRuleClosed,
    ClockSetBack,
    ReloadHangs,
    ReloadLies,
    ReloadLate,
    NodeCutOff,
    NodeUnheard,
    LeafNode,
    NoAuthUser,
    Stranger,
}

/// What a fault is about. Two faults of one subject cannot be combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum About {
    PbNats,
    PocketBase,
    /// The nats-server, its disk and its files.
    Nats,
    Live,
    Reload,
}

/// What has to be known until a fault ends.
#[derive(Default)]
pub(super) struct Broken {
    pub(super) server: usize,
    file: String,
    people: Option<People>,
    slow: Option<Slow>,
    /// A server that has joined, and is not ours.
    pub(super) other: Option<Nats>,
    /// Where the broken server listens for something new.
    pub(super) door: Option<SocketAddr>,
    /// The collection, and what it is called meanwhile.
    pub(super) collection: (&'static str, &'static str),
    /// A record.
    pub(super) record: String,
}

/// A process that may do something only now and then. When dropped, it may go on.
struct Slow {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Slow {
    fn begin(pid: u32, mut rng: Rng) -> Slow {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process has a pid");
        let over = Arc::new(AtomicBool::new(false));
        let is_over = over.clone();
        let thread = thread::spawn(move || {
            while !is_over.load(Ordering::SeqCst) {
                // That it has ended is for others to notice.
                let _ = kill_process(pid, Signal::STOP);
                thread::sleep(Duration::from_millis(rng.u64(50..150)));
                let _ = kill_process(pid, Signal::CONT);
                thread::sleep(Duration::from_millis(rng.u64(5..20)));
            }
        });
        Slow { over, thread: Some(thread) }
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

use Fault::{
    ClockSetBack, CollectionRenamed, DatabaseRestored, DiskFull, FileDeleted, FileEdited,
    FileForeign, FileOlder, FileOlderAndLoaded, FolderReadOnly, LeafNode, ListRuleClosed, LiveCut,
    LiveDeaf, LiveHeld, LiveSlow, LiveTorn, LiveTwice, NatsDead, NatsHung, NatsKilled,
    NatsRestarted, NatsSlow, NatsStopped, NoAuthUser, NodeCutOff, NodeUnheard, PbNatsKilled,
    PbNatsStopped, PocketBaseDead, PocketBaseHung, PocketBaseKilled, PocketBaseRestarted,
    PocketBaseSlow, PocketBaseStopped, PocketBaseUnreachable, ReloadHangs, ReloadLate, ReloadLies,
    Stranger, TokenRevoked,
};

/// How a client asks for the live connection.
const LIVE: &str = "GET /api/realtime";

impl Fault {
    pub(super) fn name(self) -> String {
        self.to_possible_value().expect("none is hidden").get_name().to_owned()
    }

    /// Where it can happen, and is worth a look.
    pub(super) fn places(self) -> &'static [Place] {
        match self {
            // Everywhere, so that there is something to combine with.
            PbNatsKilled | NatsKilled => {
                &[Place::Signal, Place::Command, Place::Database, Place::Cluster]
            }
            NatsStopped | NatsRestarted | NatsDead | NatsHung | LeafNode => {
                &[Place::Signal, Place::Cluster]
            }
            PocketBaseKilled | PocketBaseRestarted | DatabaseRestored => {
                &[Place::Signal, Place::Database]
            }
            PbNatsStopped
            | PocketBaseStopped
            | PocketBaseSlow
            | PocketBaseUnreachable
            | PocketBaseDead
            | PocketBaseHung
            | NatsSlow
            | DiskFull
            | FolderReadOnly
            | FileForeign
            | LiveCut
            | LiveHeld
            | LiveTorn
            | LiveTwice
            | LiveSlow
            | TokenRevoked => &[Place::Signal],
            ClockSetBack => &[Place::Signal, Place::Undigested],
            FileEdited | FileDeleted | FileOlder | FileOlderAndLoaded | LiveDeaf
            | CollectionRenamed | ListRuleClosed | NoAuthUser => &[Place::Resync],
            ReloadHangs | ReloadLies | ReloadLate => &[Place::Command],
            NodeCutOff | NodeUnheard | Stranger => &[Place::Cluster],
        }
    }

    pub(super) fn about(self) -> About {
        match self {
            PbNatsKilled | PbNatsStopped | ClockSetBack => About::PbNats,
            PocketBaseKilled | PocketBaseStopped | PocketBaseRestarted | PocketBaseDead
            | PocketBaseHung | TokenRevoked | DatabaseRestored | CollectionRenamed => {
                About::PocketBase
            }
            NatsKilled | NatsStopped | NatsRestarted | NatsSlow | DiskFull | FolderReadOnly
            | FileEdited | FileDeleted | FileOlder | FileOlderAndLoaded | FileForeign
            | NodeCutOff | NodeUnheard | NatsDead | NatsHung | LeafNode | NoAuthUser | Stranger => {
                About::Nats
            }
            PocketBaseSlow
            | PocketBaseUnreachable
            | LiveCut
            | LiveHeld
            | LiveDeaf
            | LiveTorn
            | LiveTwice
            | LiveSlow
            | ListRuleClosed => About::Live,
            ReloadHangs | ReloadLies | ReloadLate => About::Reload,
        }
    }

    /// What it makes impossible.
    fn harm(self) -> Harm {
        match self {
            // There is a resync, or a new connection, and nothing else is broken.
            FileEdited | FileDeleted | FileOlder | LiveCut | LiveDeaf | LiveTorn | LiveTwice
            | LiveSlow | ListRuleClosed | ClockSetBack | PocketBaseSlow => Harm::None,
            FileOlderAndLoaded => Harm::Tampered,
            PbNatsKilled
            | PbNatsStopped
            | PocketBaseKilled
            | PocketBaseStopped
            | PocketBaseRestarted
            | PocketBaseUnreachable
            | NatsKilled
            | NatsStopped
            | NatsRestarted
            | NatsSlow
            | DiskFull
            | FolderReadOnly
            | FileForeign
            | LiveHeld
            | TokenRevoked
            | DatabaseRestored
            | ReloadHangs
            | ReloadLies
            | ReloadLate
            | NodeCutOff
            | NodeUnheard
            | PocketBaseDead
            | PocketBaseHung
            | NatsDead
            | NatsHung
            | CollectionRenamed
            | LeafNode
            | NoAuthUser
            | Stranger => Harm::Late,
        }
    }

    /// What it needs that is not here, if anything.
    pub(super) fn lacks(self, world: &World) -> Option<&'static str> {
        match self {
            DiskFull if world.disk.is_none() => Some("no small disk: not root"),
            ClockSetBack if libfaketime().is_none() => Some("no libfaketime"),
            _ => None,
        }
    }

    /// Begins. From then on until the end nobody is blamed for what it makes impossible.
    pub(super) fn begin(self, world: &mut World) -> Result<Broken> {
        let mut broken = Broken { server: world.any_server(), ..Broken::default() };
        let only_there = matches!(
            self,
            NatsKilled
                | NatsStopped
                | NatsRestarted
                | NatsSlow
                | NatsDead
                | NatsHung
                | NodeCutOff
                | NodeUnheard
                | LeafNode
                | NoAuthUser
                | Stranger
        );
        world.checker.trouble_begins(self.harm(), only_there.then_some(broken.server));
        match self {
            PbNatsKilled => {
                world.change();
                // Somewhere between the hint and the proof.
                world.pause(0..400);
                world.stop_pb_nats(Signal::KILL);
            }
            PbNatsStopped => {
                world.change();
                world.pause(0..400);
                world.signal_pb_nats(Signal::STOP);
            }
            PocketBaseKilled | PocketBaseRestarted | PocketBaseDead => {
                world.change();
                world.pause(0..300);
                world.pb_is_up = false;
                if self == PocketBaseRestarted { world.pb.stop() } else { world.pb.kill() }
            }
            PocketBaseStopped | PocketBaseHung => {
                world.change();
                world.pause(0..300);
                world.pb_is_up = false;
                world.pb.signal(Signal::STOP);
            }
            PocketBaseSlow => world.proxy.set(Weather::Slow, ""),
            PocketBaseUnreachable => world.proxy.set(Weather::Cut, ""),
            NatsKilled | NatsRestarted | NatsDead => {
                world.change();
                world.pause(0..400);
                let signal = if self == NatsRestarted { Signal::TERM } else { Signal::KILL };
                world.stop_nats(broken.server, signal);
            }
            NatsStopped | NatsHung => {
                world.change();
                world.pause(0..400);
                world.checker.outage_begins(broken.server);
                world.nats[broken.server].signal(Signal::STOP);
            }
            NatsSlow => {
                world.change();
                world.pause(0..400);
                world.checker.outage_begins(broken.server);
                let pid = world.nats[broken.server].pid();
                broken.slow = Some(Slow::begin(pid, world.rng.fork()));
            }
            DiskFull | FolderReadOnly | FileEdited | FileDeleted | FileOlder
            | FileOlderAndLoaded | FileForeign => self.spoil(world, &mut broken)?,
            LiveCut => world.proxy.set(Weather::Cut, LIVE),
            LiveHeld => world.proxy.set(Weather::Held, LIVE),
            LiveDeaf => world.proxy.set(Weather::Deaf, LIVE),
            LiveTorn => world.proxy.set(Weather::Torn, LIVE),
            LiveTwice => world.proxy.set(Weather::Twice, LIVE),
            LiveSlow => world.proxy.set(Weather::Slow, LIVE),
            TokenRevoked => world.revoke_token(),
            DatabaseRestored => {
                world.back_up();
                broken.people = Some(world.people.clone());
            }
            ClockSetBack => {
                let library = libfaketime().context("no libfaketime")?;
                let clock = clock(world);
                replace(&clock, "+0")?;
                world.stop_pb_nats(Signal::TERM);
                world.pb_nats.set_env("LD_PRELOAD", &library.display().to_string());
                world.pb_nats.set_env("FAKETIME_TIMESTAMP_FILE", &clock.display().to_string());
                // Only what is set by hand jumps: not the time since the start, nor files' dates.
                for name in ["FAKETIME_NO_CACHE", "DONT_FAKE_MONOTONIC", "NO_FAKE_STAT"] {
                    world.pb_nats.set_env(name, "1");
                }
                world.start_pb_nats();
                world.pause(200..400);
                world.change();
                replace(&clock, "-1h")?;
            }
            ReloadHangs => mode(world, "hang"),
            ReloadLies => mode(world, "lie"),
            ReloadLate => mode(world, "late"),
            NodeCutOff => partition(world, broken.server, Weather::Cut),
            NodeUnheard => partition(world, broken.server, Weather::Held),
            CollectionRenamed | ListRuleClosed | LeafNode | NoAuthUser | Stranger => {
                self.set_up(world, &mut broken)?;
            }
        }
        Ok(broken)
    }

    /// Begins what is about the auth file and its folder.
    fn spoil(self, world: &mut World, broken: &mut Broken) -> Result<()> {
        let auth_file = world.nats[0].auth_file();
        let eve = eve();
        match self {
            DiskFull => world.disk.as_ref().context("no small disk")?.fill()?,
            FolderReadOnly => {
                let folder = world.nats[0].dir().to_owned();
                if is_root() {
                    world.read_only = Some(Mount::read_only(&folder)?);
                } else {
                    fs::set_permissions(&folder, fs::Permissions::from_mode(0o555))?;
                }
            }
            FileEdited => {
                let line = format!(
                    "  users = [\n    {{user: \"{}\", password: \"{}\"}}",
                    eve.name,
                    bcrypt(&eve.password)
                );
                let file = fs::read_to_string(&auth_file)?;
                replace(&auth_file, &file.replace("  users = [", &line))?;
            }
            FileDeleted => fs::remove_file(&auth_file)?,
            FileOlder => replace(&auth_file, &world.old_file)?,
            FileOlderAndLoaded => {
                replace(&auth_file, &world.old_file)?;
                world.stop_nats(broken.server, Signal::KILL);
                world.resume_nats(broken.server);
            }
            FileForeign => {
                broken.file = fs::read_to_string(&auth_file)?;
                let theirs = format!(
                    "authorization {{ users = [ {{user: {}, password: {}}} ] }}\n",
                    eve.name, eve.password
                );
                replace(&auth_file, &theirs)?;
            }
            _ => unreachable!("it is about something else"),
        }
        Ok(())
    }

    pub(super) fn end(self, world: &mut World, broken: Broken) -> Result<()> {
        let auth_file = world.nats[0].auth_file();
        match self {
            PbNatsKilled => world.start_pb_nats(),
            PbNatsStopped => world.signal_pb_nats(Signal::CONT),
            PocketBaseKilled | PocketBaseRestarted | PocketBaseDead => {
                world.pb.resume();
                world.pb_is_up = true;
            }
            PocketBaseStopped | PocketBaseHung => {
                world.pb.signal(Signal::CONT);
                world.pb_is_up = true;
            }
            PocketBaseSlow
            | PocketBaseUnreachable
            | LiveCut
            | LiveHeld
            | LiveDeaf
            | LiveTorn
            | LiveTwice
            | LiveSlow => world.proxy.set(Weather::Fair, ""),
            NatsKilled | NatsRestarted | NatsDead => world.resume_nats(broken.server),
            NatsStopped | NatsHung => {
                world.nats[broken.server].signal(Signal::CONT);
                world.checker.outage_ends(broken.server);
            }
            NatsSlow => {
                drop(broken.slow);
                world.checker.outage_ends(broken.server);
            }
            // There is nothing to mend: pb-nats does.
            FileEdited | FileDeleted | FileOlder | FileOlderAndLoaded => (),
            DiskFull => world.disk.as_ref().context("no small disk")?.empty()?,
            FolderReadOnly => {
                if world.read_only.take().is_none() {
                    let folder = world.nats[0].dir();
                    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
                }
            }
            FileForeign => replace(&auth_file, &broken.file)?,
            TokenRevoked => world.new_token()?,
            DatabaseRestored => world.restore(broken.people.context("there is a backup")?),
            ClockSetBack => replace(&clock(world), "+0")?,
            ReloadHangs | ReloadLies | ReloadLate => mode(world, "well"),
            NodeCutOff | NodeUnheard => partition(world, broken.server, Weather::Fair),
            CollectionRenamed | ListRuleClosed | LeafNode | NoAuthUser | Stranger => {
                self.put_away(world, broken)?;
            }
        }
        Ok(())
    }

    /// Whether pb-nats is to find it out without a change in PocketBase.
    pub(super) fn is_silent(self) -> bool {
        matches!(self, FileEdited | FileDeleted | FileOlder | FileOlderAndLoaded)
    }

    /// Whether a nats-server that starts now could show more than the present one does.
    pub(super) fn is_about_the_file(self) -> bool {
        matches!(
            self,
            PbNatsKilled
                | DiskFull
                | FolderReadOnly
                | FileEdited
                | FileDeleted
                | FileOlder
                | FileForeign
        )
    }
}

/// Makes a file hold something else, in one step.
fn replace(path: &Path, text: &str) -> Result<()> {
    let staged = path.with_extension("by-hand");
    write(&staged, text);
    Ok(fs::rename(staged, path)?)
}

fn mode(world: &World, mode: &str) {
    replace(&world.pb_nats.dir().join("mode"), mode).expect("the folder can be written");
}

/// Where pb-nats's clock is set.
fn clock(world: &World) -> PathBuf {
    world.pb_nats.dir().join("clock")
}

/// Changes the weather for all that comes from or goes to one server of the cluster.
fn partition(world: &World, server: usize, weather: Weather) {
    // What servers say first when they call each other.
    const NAMES: [&str; 3] = ["\"nats-server-1\"", "\"nats-server-2\"", "\"nats-server-3\""];
    for (number, routes) in world.routes.iter().enumerate() {
        routes.set(weather, if number == server { "" } else { NAMES[server] });
    }
    world.doors[server].set(weather, "");
}

/// The library that gives a program another clock, if it is here.
pub(super) fn libfaketime() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").into_iter().flatten().filter_map(Result::ok);
    let folders = folders.map(|it| it.path()).chain(["/usr/local/lib".into(), "/usr/lib".into()]);
    folders.map(|it| it.join("faketime/libfaketimeMT.so.1")).find(|it| it.is_file())
}
