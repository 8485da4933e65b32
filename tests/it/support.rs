//! Real servers, real clients and the real program: everything here is a process or a connection,
//! and is gone when dropped.

#![allow(dead_code, reason = "each of the test binary and xtask uses a part of it")]

#[path = "support/client.rs"]
mod client;
#[path = "support/nats.rs"]
mod nats;
#[path = "support/pb_nats.rs"]
mod pb_nats;
#[path = "support/pocketbase.rs"]
mod pocketbase;

use std::{
    env, fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, kill_process};
use ureq::Agent;

pub(crate) use rustix::process::Signal;

#[allow(unused_imports, reason = "each of the test binary and xtask uses a part of it")]
pub(crate) use self::{
    client::{Client, Login, Message},
    nats::{Door, HIDDEN, Nats, SYSTEM_ACCOUNT, SYSTEM_USER, Setup, answering},
    pb_nats::{Output, PbNats, Running, says_in_force},
    pocketbase::{Optional, Pb, SUPERUSER, Users},
};

/// Long enough for anything that is going to happen on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Asks again and again until there is an answer, and gives up loudly.
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    poll(SOON, &mut ask).unwrap_or_else(|| panic!("not within {SOON:?}: {what}"))
}

/// Asks again and again until there is an answer or the time is over. The only place that sleeps.
pub(crate) fn poll<T>(patience: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() >= deadline {
            return None;
        }
        #[expect(clippy::disallowed_methods, reason = "nothing else runs on this thread")]
        thread::sleep(Duration::from_millis(2));
    }
}

/// A loopback address nobody listens at, for now.
pub(crate) fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    listener.local_addr().expect("a listener has an address")
}

/// A bcrypt hash at the lowest cost.
pub(crate) fn bcrypt(password: &str) -> String {
    bcrypt::hash(password, 4).expect("a password can be hashed")
}

/// A client for HTTP on this machine: no proxy, no status that is an error.
pub(crate) fn http() -> &'static Agent {
    static AGENT: LazyLock<Agent> = LazyLock::new(|| {
        let config = Agent::config_builder();
        config.proxy(None).http_status_as_error(false).timeout_global(Some(SOON)).build().into()
    });
    &AGENT
}

/// Makes a file hold `text`.
pub(crate) fn write(path: impl AsRef<Path>, text: impl AsRef<[u8]>) {
    let path = path.as_ref();
    #[expect(clippy::disallowed_methods, reason = "these files have no reader yet")]
    fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// A program to test with: at the default version, or at another.
///
/// It is what the environment variable names, or in `target/tools`, or on the `PATH`.
pub(crate) fn tool(program: &str, version: Option<&str>) -> PathBuf {
    let file = version.map_or_else(|| program.into(), |it| format!("{program}-{it}"));
    let variable = format!("{}_BIN", program.replace('-', "_").to_uppercase());
    if version.is_none()
        && let Some(path) = env::var_os(variable)
    {
        return path.into();
    }
    let ourselves = env::current_exe().expect("we are a program");
    let target = ourselves.ancestors().map(|it| it.join("tools"));
    let path = env::var_os("PATH").unwrap_or_default();
    target
        .chain(env::split_paths(&path))
        .map(|it| it.join(&file))
        .find(|it| it.is_file())
        .unwrap_or_else(|| panic!("{file} is not there; install it with `cargo xtask tools`"))
}

/// A child process, killed when dropped.
pub(crate) struct Process(Mutex<Child>);

impl Process {
    pub(crate) fn start(command: &mut Command) -> Process {
        let child = command.spawn();
        Process::of(child.unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    pub(crate) fn of(child: Child) -> Process {
        Process(Mutex::new(child))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child().id()
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&self) -> Option<ExitStatus> {
        self.child().try_wait().expect("a child can be waited for")
    }

    /// Sends a signal, unless the process has ended.
    pub(crate) fn signal(&self, signal: Signal) {
        let mut child = self.child();
        if child.try_wait().expect("a child can be waited for").is_none() {
            let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            kill_process(pid.expect("a child has a pid"), signal)
                .expect("a child can be signalled");
        }
    }

    /// Sends a signal and waits for the end.
    pub(crate) fn end(&self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        eventually("a process ends", || self.ended())
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut child = self.child();
        let _ = child.kill();
        let _ = child.wait();
    }
}
