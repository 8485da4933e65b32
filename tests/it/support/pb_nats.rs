//! The real pb-nats.

use std::{
    env,
    io::{BufRead as _, BufReader, Read, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tempfile::TempDir;
use toml::{Table, Value};

use super::{Nats, Pb, Process, SOON, Signal, poll, write};

/// A settings file, and the program to use it with.
pub(crate) struct PbNats {
    binary: PathBuf,
    dir: TempDir,
    settings: Table,
    environment: Vec<(String, String)>,
    through: Vec<String>,
}

/// What a command said, and how it ended.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    /// None: ended by a signal.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A `pb-nats run`, killed when dropped.
pub(crate) struct Running {
    process: Process,
    lines: Arc<Mutex<Vec<String>>>,
}

impl PbNats {
    /// With an empty settings file.
    pub(crate) fn new(binary: impl Into<PathBuf>) -> PbNats {
        let dir = TempDir::new().expect("there is room for a folder");
        let pb_nats = PbNats {
            binary: binary.into(),
            dir,
            settings: Table::new(),
            environment: Vec::new(),
            through: Vec::new(),
        };
        pb_nats.write_settings("");
        pb_nats
    }

    /// Between these two, over HTTP, by pid file, verified by the monitor, with nothing listening.
    pub(crate) fn between(binary: impl Into<PathBuf>, pb: &Pb, nats: &Nats) -> PbNats {
        let mut pb_nats = PbNats::new(binary);
        write(pb_nats.dir().join("token"), pb.token());
        pb_nats.set("pocketbase.url", pb.url());
        pb_nats.set("pocketbase.token_file", "token");
        pb_nats.set("auth_file.path", nats.auth_file().display().to_string());
        pb_nats.set("nats.config_file", nats.config_file().display().to_string());
        pb_nats.set("nats.server_binary", nats.binary().display().to_string());
        pb_nats.set("nats.pid_file", nats.pid_file().display().to_string());
        pb_nats.set("nats.monitor_url", nats.monitor_url());
        pb_nats.set("admin.listen", "");
        pb_nats
    }

    /// Sets one setting, such as `sync.debounce`.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<Value>) {
        let (section, key) = name.split_once('.').expect("a setting is in a section");
        let section = self.settings.entry(section).or_insert_with(|| Value::Table(Table::new()));
        section.as_table_mut().expect("a section").insert(key.into(), value.into());
        self.write_settings(&self.settings.to_string());
    }

    /// Takes one setting out again.
    pub(crate) fn unset(&mut self, name: &str) {
        let (section, key) = name.split_once('.').expect("a setting is in a section");
        if let Some(section) = self.settings.get_mut(section).and_then(Value::as_table_mut) {
            section.remove(key);
        }
        self.write_settings(&self.settings.to_string());
    }

    /// Makes the settings file hold this text.
    pub(crate) fn write_settings(&self, text: &str) {
        write(self.settings_file(), text);
    }

    /// Sets an environment variable for the program. Of our own, it gets none that it would read.
    pub(crate) fn set_env(&mut self, name: &str, value: &str) {
        self.environment.push((name.into(), value.into()));
    }

    /// Lets the program be started by another, such as a tracer. Nothing: by us again.
    pub(crate) fn start_through(&mut self, words: &[String]) {
        self.through = words.to_vec();
    }

    /// Sets no environment variables any more.
    pub(crate) fn clear_env(&mut self) {
        self.environment.clear();
    }

    /// The folder of the settings file.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn settings_file(&self) -> PathBuf {
        self.dir().join("pb-nats.toml")
    }

    /// One pass.
    pub(crate) fn once(&self) -> Output {
        self.command(&["once"])
    }

    /// Runs a command to its end.
    pub(crate) fn command(&self, arguments: &[&str]) -> Output {
        self.command_with_input(arguments, "")
    }

    /// Runs a command to its end, with this on its stdin.
    pub(crate) fn command_with_input(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = spawn(self.program(arguments).stdin(Stdio::piped()));
        // A program that reads no stdin may have closed it.
        let _ = child.stdin.take().expect("stdin is piped").write_all(input.as_bytes());
        let stdout = collect(child.stdout.take().expect("stdout is piped"));
        let stderr = collect(child.stderr.take().expect("stderr is piped"));
        let process = Process::of(child);
        let status = poll(SOON, || process.ended());
        // With the process its ends of the pipes are gone, and the readers come to an end.
        drop(process);
        let (stdout, stderr) = (stdout.join().expect("a reader"), stderr.join().expect("a reader"));
        let Some(status) = status else {
            panic!("{arguments:?} does not end\n{stdout}\n{stderr}");
        };
        Output { code: status.code(), stdout, stderr }
    }

    /// Starts `pb-nats run`.
    pub(crate) fn run(&self) -> Running {
        self.run_with(&["run"])
    }

    /// Starts a command that stays.
    pub(crate) fn run_with(&self, arguments: &[&str]) -> Running {
        Running::start(&mut self.program(arguments))
    }

    fn program(&self, arguments: &[&str]) -> Command {
        let mut command = match &self.through[..] {
            [] => Command::new(&self.binary),
            [program, arguments @ ..] => {
                let mut command = Command::new(program);
                command.args(arguments).arg(&self.binary);
                command
            }
        };
        command.arg("--config").arg(self.settings_file()).args(arguments);
        command.current_dir(self.dir()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("PB_NATS_") || text == "RUST_LOG" {
                command.env_remove(name);
            }
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

impl Output {
    /// Asserts that all went well.
    #[track_caller]
    pub(crate) fn success(self) -> Output {
        self.exits(0)
    }

    /// Asserts how it ended.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Output {
        let Output { code: found, stdout, stderr } = &self;
        assert_eq!(*found, Some(code), "\nstdout: {stdout}\nstderr: {stderr}");
        self
    }
}

/// Whether this line of `run` says that what it found is in force. Others say that the last good
/// state stays in force, or that something is not proven to be.
pub(crate) fn says_in_force(line: &str) -> bool {
    line.contains(" INFO in force ")
}

impl Running {
    /// Starts a command that stays.
    pub(crate) fn start(command: &mut Command) -> Running {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn(command);
        let lines = Arc::default();
        follow(child.stdout.take().expect("stdout is piped"), &lines);
        follow(child.stderr.take().expect("stderr is piped"), &lines);
        Running { process: Process::of(child), lines }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Everything it has said so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        locked(&self.lines).clone()
    }

    /// Waits for a line, of those before as well, and returns it.
    #[track_caller]
    pub(crate) fn wait_for(&self, wanted: impl Fn(&str) -> bool) -> String {
        self.wait_from(0, wanted)
    }

    /// Waits for a line behind the first so many, and returns it.
    #[track_caller]
    pub(crate) fn wait_from(&self, from: usize, wanted: impl Fn(&str) -> bool) -> String {
        let found = poll(SOON, || {
            let lines = locked(&self.lines);
            lines.iter().skip(from).find(|it| wanted(it)).cloned()
        });
        found.unwrap_or_else(|| panic!("no such line:\n{}", self.lines().join("\n")))
    }

    /// How it ended, if it does in time.
    pub(crate) fn ended(&self, patience: Duration) -> Option<ExitStatus> {
        poll(patience, || self.process.ended())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn terminate(&self) -> ExitStatus {
        self.process.end(Signal::TERM)
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill(&self) {
        self.process.end(Signal::KILL);
    }
}

fn spawn(command: &mut Command) -> Child {
    command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn collect(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut text = Vec::new();
        let _ = pipe.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    })
}

fn follow(pipe: impl Read + Send + 'static, lines: &Arc<Mutex<Vec<String>>>) {
    let lines = lines.clone();
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            locked(&lines).push(line);
        }
    });
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
