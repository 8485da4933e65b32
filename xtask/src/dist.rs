//! What is handed out in `dist/`, shown to the programs that know its kind.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    cargo::{build, run as run_command, there},
    tools::target_folder,
};

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// Of pip, each at one version.
const REQUIREMENTS: &str = include_str!("../dist.txt");

/// Where the unit will find pb-nats.
const INSTALLED: &str = "/usr/bin/pb-nats";

/// Looks at everything, and fails for anything that a program has to say against it. A program that
/// cannot be had is left out, and that is said.
pub(crate) fn run() -> Result<()> {
    match python_programs() {
        Ok(programs) => {
            for (program, arguments) in [
                (
                    "check-jsonschema",
                    &["--builtin-schema", "vendor.compose-spec", "dist/docker/compose.yaml"][..],
                ),
                ("kubernetes-validate", &["--strict", "dist/kubernetes/pb-nats.yaml"]),
                ("hadolint", &["dist/docker/Dockerfile"]),
            ] {
                let mut command = Command::new(programs.join(program));
                run_command(command.args(arguments).current_dir(REPOSITORY))?;
            }
        }
        Err(error) => println!("left out: compose, Kubernetes and Dockerfile: {error:#}"),
    }
    if there("systemd-analyze") {
        unit()
    } else {
        println!("left out: the unit, since there is no `systemd-analyze`");
        Ok(())
    }
}

/// Installs them, unless they are there, and says in which folder.
fn python_programs() -> Result<PathBuf> {
    let folder = target_folder()?.join("tools/dist");
    let done = folder.join("requirements.txt");
    if fs::read_to_string(&done).is_ok_and(|it| it == REQUIREMENTS) {
        return Ok(folder.join("bin"));
    }
    let said = Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder).output();
    let said = said.context("`python3` does not start")?;
    ensure!(said.status.success(), "python3 makes no environment (Debian: python3-venv)");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist.txt");
    let mut pip = Command::new(folder.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]);
    let said = pip.arg("--requirement").arg(file).output()?;
    let why = String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.success(), "pip: {}", why.lines().last().unwrap_or_default());
    fs::write(&done, REQUIREMENTS)?;
    Ok(folder.join("bin"))
}

/// The systemd unit, with the program that was built here in the place of the installed one.
fn unit() -> Result<()> {
    let unit = fs::read_to_string(Path::new(REPOSITORY).join("dist/pb-nats.service"))?;
    ensure!(unit.contains(INSTALLED), "the unit does not start {INSTALLED}");
    let scratch = tempfile::tempdir()?;
    let file = scratch.path().join("pb-nats.service");
    fs::write(&file, unit.replace(INSTALLED, &build()?.display().to_string()))?;
    // The manual page is not installed.
    let mut verify = Command::new("systemd-analyze");
    let said = verify.args(["verify", "--man=no"]).arg(&file).output()?;
    // It exits with 0 where systemd would leave out a line.
    let heard = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
    ensure!(said.status.success() && heard.is_empty(), "systemd-analyze: {heard}");
    println!("ok -- dist/pb-nats.service");
    Ok(())
}
