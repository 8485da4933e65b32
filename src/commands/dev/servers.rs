//! The programs that `dev` starts: where they are, how they are started, and that they end.

use std::{
    env,
    ffi::OsString,
    io,
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use pb_nats::{options::keep_settings_from, state::log_file};
use rustix::process::{Pid, Signal, getppid, kill_process};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    time::{self, Instant},
};

use super::DevError;

/// How long a server may take to listen.
const START: Duration = Duration::from_mins(1);
/// How long a server may take to end before it is killed.
const END: Duration = Duration::from_secs(10);
/// How often is looked.
const LOOK: Duration = Duration::from_millis(20);
/// How many of the last lines of a log are shown.
const LAST_LINES: usize = 10;

/// A program, and how one comes by it.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) name: &'static str,
    releases: &'static str,
    /// How the file for this platform ends.
    archive: fn(os: &str, arch: &str) -> String,
}

pub(super) static POCKETBASE: Program = Program {
    name: "pocketbase",
    releases: "https://github.com/pocketbase/pocketbase/releases",
    archive: |os, arch| format!("_{os}_{arch}.zip"),
};

pub(super) static NATS_SERVER: Program = Program {
    name: "nats-server",
    releases: "https://github.com/nats-io/nats-server/releases",
    archive: |os, arch| format!("-{os}-{arch}.tar.gz"),
};

impl Program {
    /// The program: as it was given, or else as it was before, or else beside pb-nats or on the
    /// `PATH`.
    pub(super) fn find(&self, given: Option<&Path>, former: Option<&Path>) -> Option<PathBuf> {
        if let Some(path) = given {
            return path.is_file().then(|| std::path::absolute(path).ok())?;
        }
        let ours = env::current_exe().ok();
        let beside = ours.as_deref().and_then(Path::parent).map(Path::to_owned);
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = beside.into_iter().chain(env::split_paths(&path));
        let found = folders.map(|it| it.join(self.name)).find(|it| it.is_file());
        let former = former.filter(|it| it.is_absolute() && it.is_file()).map(Path::to_owned);
        former.or(found).and_then(|it| std::path::absolute(it).ok())
    }

    /// How to get it for this machine.
    pub(super) fn how_to_get(&self) -> String {
        let os = match env::consts::OS {
            "macos" => "darwin",
            os => os,
        };
        let arch = match env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "arm" => "armv7",
            arch => arch,
        };
        let Program { name, releases, archive } = self;
        format!("`{name}` is in the file that ends with `{}` at {releases}", archive(os, arch))
    }
}

/// A server that was started. It is killed when dropped, and on Linux when this process ends
/// in whatever way.
#[derive(Debug)]
pub(super) struct Server {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts a program in this folder, with what it says in a file there.
    pub(super) fn start(
        program: &Program,
        path: &Path,
        arguments: &[&str],
        folder: &Path,
    ) -> anyhow::Result<Server> {
        let log = folder.join(format!("{}.log", program.name));
        let output = log_file(&log)?;
        let mut command = Command::new(env::current_exe()?);
        command.args(["dev", "--child-of", &std::process::id().to_string(), "--"]);
        command.arg(path).args(arguments).current_dir(folder);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // A terminal's Ctrl-C is for us; we end them in order.
        command.process_group(0).kill_on_drop(true);
        keep_settings_from(command.as_std_mut());
        Ok(Server { name: program.name, child: command.spawn()?, log })
    }

    /// Waits until it listens there.
    pub(super) async fn listens(&mut self, address: SocketAddr) -> Result<(), DevError> {
        let deadline = Instant::now() + START;
        while TcpStream::connect(address).await.is_err() {
            if let Some(error) = self.ended() {
                return Err(error);
            }
            if Instant::now() > deadline {
                return Err(DevError::Slow { name: self.name, address, log: self.log.clone() });
            }
            time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<DevError> {
        let status = self.child.try_wait().ok().flatten()?;
        Some(self.obituary(status))
    }

    fn obituary(&self, status: ExitStatus) -> DevError {
        let said = fs_err::read(&self.log).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        // In the terminal they are to be text and nothing else.
        let lines = said.lines().map(|it| it.replace(char::is_control, " "));
        let lines: Vec<String> = lines.filter(|it| !it.trim().is_empty()).collect();
        let last_words = match &lines[lines.len().saturating_sub(LAST_LINES)..] {
            [] => "it said nothing".into(),
            last => format!("its last words:\n  {}", last.join("\n  ")),
        };
        DevError::Ended { name: self.name, status, last_words, log: self.log.clone() }
    }

    /// Asks it to end, and sees to it that it does.
    pub(super) async fn end(mut self) {
        let pid = self.child.id().and_then(|it| Pid::from_raw(it.cast_signed()));
        if let Some(pid) = pid {
            // It may have ended just now.
            let _ = kill_process(pid, Signal::TERM);
        }
        if time::timeout(END, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

/// Becomes the program, which is told to end when the process `parent` does. Returns if it cannot.
pub(super) fn become_child(parent: i32, words: &[OsString]) -> io::Error {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::TERM)) {
        return error.into();
    }
    if getppid().map(Pid::as_raw_pid) != Some(parent) {
        return io::Error::other("pb-nats has ended meanwhile");
    }
    match words {
        [program, arguments @ ..] => {
            let error = std::process::Command::new(program).args(arguments).exec();
            io::Error::new(error.kind(), format!("{} cannot be run: {error}", program.display()))
        }
        [] => io::ErrorKind::InvalidInput.into(),
    }
}
