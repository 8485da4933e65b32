//! How servers are ordered to reload.

use std::{
    env, io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use rustix::process::{Pid, Signal, getpid, kill_process, kill_process_group, test_kill_process};
use tokio::{io::AsyncReadExt as _, net::unix::pipe, process, time, time::Instant};

use crate::{
    nats::{Access, Running, ServerError},
    options::{NatsOptions, keep_settings_from},
};

/// How much of what a command says is kept: its end.
const OUTPUT: usize = 1024;

/// How servers are ordered to reload.
#[derive(Debug)]
pub(super) enum Reload {
    /// By a command that reaches them all.
    Command(Command),
    /// By SIGHUP to the processes named in these files.
    Signal(Vec<PathBuf>),
    /// One by one, over the system account.
    System,
    /// Not at all.
    Nothing,
}

/// A command, its folder, and nothing of a shell.
#[derive(Debug)]
pub(super) struct Command {
    program: String,
    arguments: Vec<String>,
    folder: PathBuf,
}

/// What became of one order. That it was taken does not say that anything was loaded.
#[derive(Debug)]
pub(super) struct Order {
    /// The id of the server; or the command or pid file, of which nobody knows whom they reach.
    pub(super) target: String,
    pub(super) taken: Result<(), Arc<ServerError>>,
}

impl Reload {
    pub(super) fn new(options: &NatsOptions, folder: &Path) -> Result<Reload, ServerError> {
        let Some(command) = &options.reload_command else {
            return Ok(match (&options.pid_file[..], &options.system_url) {
                ([_, ..], _) => Reload::Signal(options.pid_file.clone()),
                ([], Some(_)) => Reload::System,
                ([], None) => Reload::Nothing,
            });
        };
        let unusable = |reason: &str| ServerError::Setting {
            setting: "reload_command",
            reason: reason.to_owned(),
        };
        let words = shlex::split(command).ok_or_else(|| unusable("a quote is not closed"))?;
        let [program, arguments @ ..] = &words[..] else { return Err(unusable("it is empty")) };
        Ok(Reload::Command(Command {
            program: program.clone(),
            arguments: arguments.to_vec(),
            folder: if folder.as_os_str().is_empty() { ".".into() } else { folder.to_owned() },
        }))
    }

    /// Whom an order goes to when it is not known which servers need it.
    pub(super) fn targets(&self) -> Vec<String> {
        match self {
            Reload::Command(command) => vec![command.program.clone()],
            Reload::Signal(files) => files.iter().map(|it| it.display().to_string()).collect(),
            Reload::System | Reload::Nothing => vec!["nats-server".into()],
        }
    }

    /// Whether an order gets to servers that cannot be asked.
    pub(super) fn reaches_the_silent(&self) -> bool {
        match self {
            Reload::Command(_) | Reload::Signal(_) => true,
            Reload::System | Reload::Nothing => false,
        }
    }

    /// Whether servers still obey while they reload: another order, or one to close a connection.
    pub(super) fn leaves_servers_free(&self) -> bool {
        match self {
            Reload::Command(_) | Reload::Signal(_) => true,
            // All that is asked of them over it waits in one line.
            Reload::System | Reload::Nothing => false,
        }
    }

    /// What an order to reload would do, or why it would come to nothing. Nobody is told anything.
    pub(super) fn rehearse(&self) -> Vec<Result<String, ServerError>> {
        match self {
            Reload::Command(command) => vec![command.found()],
            Reload::Signal(files) => {
                let rehearse = |path: &PathBuf| {
                    let pid = nats_server(path)?;
                    test_kill_process(pid).map_err(|it| cannot_signal(pid, it.into()))?;
                    Ok(format!("by SIGHUP to nats-server, process {}", pid.as_raw_nonzero()))
                };
                files.iter().map(rehearse).collect()
            }
            Reload::System => vec![Ok("over the system account".into())],
            Reload::Nothing => {
                vec![Err(ServerError::NoReload { server: "nats-server".into() })]
            }
        }
    }

    /// Orders the stale servers to reload; or all of them, if they cannot be told apart.
    pub(super) async fn order(
        &self,
        access: &Access,
        stale: &[&Running],
        deadline: Instant,
    ) -> Vec<Order> {
        let order = |target, taken: Result<_, ServerError>| Order {
            target,
            taken: taken.map_err(Arc::new),
        };
        match (self, access) {
            (Reload::Command(command), _) => {
                vec![order(command.program.clone(), command.run(deadline).await)]
            }
            (Reload::Signal(files), _) => {
                files.iter().map(|it| order(it.display().to_string(), hang_up(it))).collect()
            }
            (Reload::System, Access::System(system)) => {
                let each = stale
                    .iter()
                    .map(async |it| order(it.id.clone(), system.reload(it, deadline).await));
                join_all(each).await
            }
            (Reload::System | Reload::Nothing, _) => {
                let no = |it: &&Running| {
                    order(it.id.clone(), Err(ServerError::NoReload { server: it.name.clone() }))
                };
                stale.iter().map(no).collect()
            }
        }
    }
}

impl Command {
    /// Whether there is such a program; what it does is for the first reload to show.
    fn found(&self) -> Result<String, ServerError> {
        let path = env::var_os("PATH").unwrap_or_default();
        let found = if self.program.contains('/') {
            self.folder.join(&self.program).is_file()
        } else {
            env::split_paths(&path).any(|it| it.join(&self.program).is_file())
        };
        let (program, source) = (self.program.clone(), io::ErrorKind::NotFound.into());
        if found {
            Ok(format!("by the command `{program}`"))
        } else {
            Err(ServerError::Command { program, source })
        }
    }

    async fn run(&self, deadline: Instant) -> Result<(), ServerError> {
        let begun = Instant::now();
        let failed = |source| ServerError::Command { program: self.program.clone(), source };
        let (mut child, mut output) = self.spawn().map_err(failed)?;
        let group = child.id().and_then(|it| Pid::from_raw(it.try_into().ok()?));

        let mut said = Vec::new();
        let mut open = true;
        let ended = async {
            loop {
                tokio::select! {
                    status = child.wait() => return status,
                    more = hear(&mut output, &mut said), if open => open = more,
                }
            }
        };
        let status = time::timeout_at(deadline, ended).await;
        // What it started may hold its output open for ever.
        let rest = async { while open && hear(&mut output, &mut said).await {} };
        let _ = time::timeout(Duration::from_millis(100), rest).await;
        let program = self.program.clone();
        let output = String::from_utf8_lossy(&said).trim().to_owned();
        match status {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(ServerError::CommandFailed { program, status, output }),
            Ok(Err(source)) => Err(failed(source)),
            Err(_elapsed) => {
                if let Some(group) = group {
                    let _ = kill_process_group(group, Signal::KILL);
                }
                Err(ServerError::CommandHung { program, after: begun.elapsed(), output })
            }
        }
    }

    fn spawn(&self) -> io::Result<(process::Child, pipe::Receiver)> {
        let (output, writer) = io::pipe()?;
        let mut command = process::Command::new(&self.program);
        command
            .args(&self.arguments)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .process_group(0)
            .kill_on_drop(true);
        keep_settings_from(command.as_std_mut());
        Ok((command.spawn()?, pipe::Receiver::from_owned_fd(output.into())?))
    }
}

/// Reads on, keeping the end. Whether there may be more.
async fn hear(output: &mut pipe::Receiver, said: &mut Vec<u8>) -> bool {
    let more = output.read_buf(said).await.is_ok_and(|length| length > 0);
    said.drain(..said.len().saturating_sub(OUTPUT));
    more
}

/// Sends SIGHUP to the nats-server whose process id is in the file.
fn hang_up(path: &Path) -> Result<(), ServerError> {
    let pid = nats_server(path)?;
    kill_process(pid, Signal::HUP).map_err(|source| cannot_signal(pid, source.into()))
}

/// The nats-server whose process id is in the file.
///
/// To most programs SIGHUP is the end, and a file may name a process of long ago.
fn nats_server(path: &Path) -> Result<Pid, ServerError> {
    let unreadable = |source| ServerError::PidFile { path: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let pid = text.trim().parse().ok().filter(|it| *it > 0).and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| {
        let shown: String = text.trim().chars().take(40).collect();
        unreadable(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("`{shown}` is not a process id"),
        ))
    })?;
    let wrong = |found| {
        let pid = pid.as_raw_nonzero().get();
        Err(ServerError::NotNats { path: path.to_owned(), pid, found })
    };
    if pid == getpid() {
        return wrong("is pb-nats itself".into());
    }
    match program(pid) {
        None => wrong("does not exist".into()),
        Some(name) if !name.starts_with("nats-server") => {
            wrong(format!("is `{name}`, not a nats-server"))
        }
        Some(_) => Ok(pid),
    }
}

/// The id of the nats-server process that the file names, if there is one.
pub(crate) fn process(pid_file: &Path) -> Option<i32> {
    nats_server(pid_file).ok().map(|it| it.as_raw_nonzero().get())
}

fn cannot_signal(pid: Pid, source: io::Error) -> ServerError {
    ServerError::Signal { pid: pid.as_raw_nonzero().get(), source }
}

/// The name of the program that a process runs, if there is such a process.
#[cfg(target_os = "linux")]
fn program(pid: Pid) -> Option<String> {
    let folder = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    // A script's `comm` is its own name, though it is its shell that would get the signal; but only
    // the same user may see `exe`.
    let exe = std::fs::read_link(folder.join("exe")).ok();
    let name = exe.as_deref().and_then(Path::file_name).map(|it| it.to_string_lossy().into_owned());
    name.or_else(|| Some(std::fs::read_to_string(folder.join("comm")).ok()?.trim().to_owned()))
}

/// The name of the program that a process runs, if there is such a process.
#[cfg(not(target_os = "linux"))]
fn program(pid: Pid) -> Option<String> {
    let pid = pid.as_raw_nonzero().to_string();
    let output =
        std::process::Command::new("ps").args(["-p", &pid, "-o", "comm="]).output().ok()?;
    let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let name = Path::new(&path).file_name()?;
    Some(name.to_string_lossy().into_owned())
}
