//! The real servers and clients that the tests run, fetched once, at pinned versions.

use std::{
    env,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

/// The clients in Python.
const CLIENTS: &str = include_str!("../clients.txt");
/// The client for Node.js, and what it needs.
const NATS_JS: [(&str, &str); 2] = [
    ("package.json", include_str!("../nats.js/package.json")),
    ("package-lock.json", include_str!("../nats.js/package-lock.json")),
];

/// Puts every server of `tools.txt` into `target/tools`, unless it is there, and the clients of
/// `clients.txt` into its folder `python`. Returns `target/tools`.
///
/// The first version of a program is `target/tools/PROGRAM`, a further one `PROGRAM-VERSION`.
pub(crate) fn install() -> Result<PathBuf> {
    let folder = target_folder()?.join("tools");
    fs::create_dir_all(&folder).with_context(|| format!("no folder `{}`", folder.display()))?;
    let missing = Tool::all().into_iter().filter(|it| !it.is_at(&folder.join(&it.file)));
    let mut missing = missing.peekable();
    let clients = folder.join("python");
    let no_clients = !holds(&clients, "clients.txt", CLIENTS);
    if missing.peek().is_some() || no_clients {
        let scratch = tempfile::tempdir_in(&folder)?;
        let python = python_with_pip(scratch.path()).context(
            "python3 with pip is needed to fetch the test servers (Debian: apt install python3-pip)",
        )?;
        if no_clients {
            println!("fetching clients in Python");
            install_clients(&python, &clients).context("they could not be fetched")?;
        }
        for tool in missing {
            println!("fetching {} {}", tool.program, tool.version);
            tool.fetch(&python, scratch.path(), &folder.join(&tool.file)).with_context(|| {
                format!("{} {} could not be fetched", tool.program, tool.version)
            })?;
        }
    }
    Ok(folder)
}

fn install_clients(python: &Path, folder: &Path) -> Result<()> {
    empty(folder)?;
    let requirements = folder.join("requirements.txt");
    fs::write(&requirements, CLIENTS)?;
    run(Command::new(python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"])
        .args(["--only-binary=:all:", "--require-hashes", "--requirement"])
        .arg(&requirements)
        .arg("--target")
        .arg(folder))?;
    Ok(fs::rename(requirements, folder.join("clients.txt"))?)
}

/// Puts nats.js into `target/tools/nats.js`, unless it is there, and returns that folder.
pub(crate) fn install_nats_js() -> Result<PathBuf> {
    let folder = target_folder()?.join("tools/nats.js");
    let [(_, _), (lock, text)] = NATS_JS;
    if !holds(&folder.join("node_modules"), lock, text) {
        println!("fetching nats.js");
        empty(&folder)?;
        for (name, text) in NATS_JS {
            fs::write(folder.join(name), text)?;
        }
        let mut npm = Command::new("npm");
        npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]);
        run(npm.current_dir(&folder)).context("npm cannot fetch nats.js")?;
        fs::write(folder.join("node_modules").join(lock), text)?;
    }
    Ok(folder)
}

/// Whether what this file says has been put into the folder, as a whole.
fn holds(folder: &Path, file: &str, text: &str) -> bool {
    fs::read_to_string(folder.join(file)).is_ok_and(|it| it == text)
}

/// Makes the folder anew.
fn empty(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    Ok(fs::create_dir_all(folder)?)
}

/// A program at one version.
struct Tool {
    package: &'static str,
    program: &'static str,
    version: &'static str,
    /// What the file is called in `target/tools`.
    file: String,
    /// What pip has to fetch: name, version and hashes.
    requirement: &'static str,
}

impl Tool {
    fn all() -> Vec<Tool> {
        let mut tools: Vec<Tool> = Vec::new();
        for requirement in include_str!("../tools.txt").split("\n\n").skip(1) {
            let (package, rest) = requirement.split_once("==").expect("a pinned requirement");
            let program = package.strip_prefix("astral-dev-toolchain-");
            let program = program.or(package.strip_suffix("-bin")).expect("a package of binaries");
            let version = rest.split(' ').next().expect("a version");
            let first = tools.iter().all(|it| it.program != program);
            let file = if first { program.into() } else { format!("{program}-{version}") };
            tools.push(Tool { package, program, version, file, requirement });
        }
        tools
    }

    /// Asks the program itself.
    fn is_at(&self, path: &Path) -> bool {
        let said = Command::new(path).arg("--version").stdin(Stdio::null()).output();
        said.is_ok_and(|it| {
            let said = String::from_utf8_lossy(&it.stdout).into_owned();
            said.split_whitespace().last().map(|it| it.trim_start_matches('v'))
                == Some(self.version)
        })
    }

    /// Fetches the wheel, checks its hash, and takes the program out of it.
    fn fetch(&self, python: &Path, scratch: &Path, path: &Path) -> Result<()> {
        let requirement = scratch.join("requirement.txt");
        fs::write(&requirement, self.requirement)?;
        let wheels = tempfile::tempdir_in(scratch)?;
        run(Command::new(python)
            .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check"])
            .args(["--no-deps", "--only-binary=:all:", "--require-hashes", "--requirement"])
            .arg(&requirement)
            .arg("--dest")
            .arg(wheels.path()))?;
        let wheel = fs::read_dir(wheels.path())?.next().context("pip fetched nothing")??.path();
        run(Command::new(python)
            .args(["-m", "zipfile", "--extract"])
            .args([wheel.as_path(), wheels.path()]))?;
        let package = self.package.replace('-', "_");
        let file = format!("{package}-{}.data/scripts/{}", self.version, self.program);
        let unpacked = wheels.path().join(&file);
        fs::set_permissions(&unpacked, Permissions::from_mode(0o755))
            .with_context(|| format!("`{file}` is not in the wheel"))?;
        ensure!(self.is_at(&unpacked), "`{file}` does not run as that version here");
        // Whoever starts it meanwhile gets the old one or the new one, whole.
        fs::rename(&unpacked, path)?;
        Ok(())
    }
}

/// A Python that has pip: the usual one, or else a virtual environment of it.
fn python_with_pip(scratch: &Path) -> Result<PathBuf> {
    let python = PathBuf::from("python3");
    if run(Command::new(&python).args(["-m", "pip", "--version"])).is_ok() {
        return Ok(python);
    }
    let environment = scratch.join("python");
    run(Command::new(&python).args(["-m", "venv"]).arg(&environment))?;
    Ok(environment.join("bin/python"))
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let said = command.stdin(Stdio::null()).output();
    let said = said.with_context(|| format!("`{program}` does not start"))?;
    ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr).trim());
    Ok(())
}

/// Where cargo builds, `CARGO_TARGET_DIR` and cargo's own settings considered.
pub(crate) fn target_folder() -> Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let said = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version=1", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .context("cargo does not start")?;
    ensure!(said.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&said.stderr));
    let said: serde_json::Value = serde_json::from_slice(&said.stdout)?;
    Ok(said["target_directory"].as_str().context("cargo tells no target folder")?.into())
}
