//! The nats-server program as a judge of configs: `nats-server -t`.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, SystemTime},
};

use fs_err as fs;
use tokio::{process::Command, time};

use crate::{options::keep_settings_from, state::Scratch};

/// How long nats-server may think about a config; half a million users take it 13 s.
const CHECK_DEADLINE: Duration = Duration::from_mins(2);

/// nats-server's own fingerprint of a whole config, includes resolved.
///
/// `nats-server -t` prints the digest of a config on disk and a server tells the digest of the
/// config it runs. Only digests that the same version made can be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// The version of the nats-server that made it, such as `2.15.1`.
    pub version: String,
    /// `sha256:…`
    pub value: String,
}

/// The digest of a config, or why nats-server refuses it.
pub(super) type Verdict = Result<Option<Digest>, String>;

/// The nats-server program that judges configs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Judge {
    pub(super) program: PathBuf,
    pub(super) modified: SystemTime,
    pub(super) version: String,
}

impl Judge {
    /// `None` if the program is not a nats-server.
    pub(super) async fn new(program: PathBuf, modified: SystemTime) -> Option<Judge> {
        let output = run(&program, &[OsStr::new("--version")]).await.ok()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = said.trim().strip_prefix("nats-server: v")?.to_owned();
        Some(Judge { program, modified, version })
    }

    /// The digest of the config, or why it is refused.
    pub(super) async fn ask(&self, config: &Path) -> Verdict {
        let output = run(&self.program, &["-t".as_ref(), "-c".as_ref(), config.as_ref()])
            .await
            .map_err(|err| format!("{}: {err}", self.program.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            return Err(self.complaint(&output));
        }
        let digest = said.rsplit_once("(sha256:").and_then(|(_, rest)| rest.split_once(')'));
        Ok(digest.map(|(value, _)| Digest {
            version: self.version.clone(),
            value: format!("sha256:{value}"),
        }))
    }

    /// Whether nats-server starts with the config, as far as it judges one: that is more than `-t`
    /// does, which only reads it, and less is refused for a mere warning.
    ///
    /// It is really started, with a pid file that nobody can write. It comes to that when it has
    /// looked at all of its settings and before it opens anything, and ends there: no port, no file
    /// and no other server is touched.
    pub(super) async fn start(&self, config: &Path, scratch: &Scratch) -> Result<(), String> {
        let log = scratch.path().join("log");
        let failed = |err: io::Error| format!("{}: {err}", self.program.display());
        // Not even root can write a file below a file.
        let pid_file = scratch.put("no-folder", "").map_err(failed)?.join("pid");
        let arguments: [&OsStr; 10] = [
            "-c".as_ref(),
            config.as_ref(),
            "--pid".as_ref(),
            pid_file.as_ref(),
            // Its first line is written once the settings are found to be good.
            "--log".as_ref(),
            log.as_ref(),
            "--addr".as_ref(),
            "127.0.0.1".as_ref(),
            "--port".as_ref(),
            "-1".as_ref(),
        ];
        let output = run(&self.program, &arguments).await.map_err(failed)?;
        if fs::metadata(&log).is_ok_and(|it| it.len() > 0) {
            return Ok(());
        }
        Err(self.complaint(&output))
    }

    /// What the program said, but for its own name.
    fn complaint(&self, output: &std::process::Output) -> String {
        let said = String::from_utf8_lossy(&output.stderr);
        let name = self.program.file_name().unwrap_or_default().to_string_lossy();
        said.trim().trim_start_matches(&format!("{name}: ")).to_owned()
    }
}

async fn run(program: &Path, arguments: &[&OsStr]) -> io::Result<std::process::Output> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    // Variables that the main config names are resolved as they are for us.
    keep_settings_from(command.as_std_mut());
    time::timeout(CHECK_DEADLINE, command.output()).await?
}

/// What nats-server said of files in a scratch folder, without the places: nobody can look there, and
/// of two users with one name it names the one or the other.
pub(super) fn reasons(said: &str, folder: &Path) -> String {
    let folder = format!("{}/", folder.display());
    let reason = |line: &str| match line.strip_prefix(&folder) {
        Some(placed) => placed.split_once(": ").map_or(placed, |(_, reason)| reason).to_owned(),
        None => line.to_owned(),
    };
    said.lines().map(reason).collect::<Vec<_>>().join("\n")
}

/// The program, in `PATH` if it is a mere name.
pub(super) fn find(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return Some(program.to_owned());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|it| it.join(program)).find(|it| it.is_file())
}
