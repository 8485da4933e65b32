//! The static program and its Debian package.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    cargo::{cargo, run as run_command},
    tools::target_folder,
};

/// Of cargo-deb.
const VERSION: &str = "3.8.0";

/// What is true of the package on a clean Debian, and of what it leaves there.
const CHECK: &str = include_str!("package.sh");

/// Builds the package, and with `check` installs, removes and purges it.
pub(crate) fn run(check: bool) -> Result<()> {
    let package = build()?;
    println!("{}", package.display());
    if check { try_out(&package) } else { Ok(()) }
}

fn build() -> Result<PathBuf> {
    let target = target_folder()?;
    let host = output(Command::new("rustc").arg("-vV"))?;
    let host =
        host.lines().find_map(|it| it.strip_prefix("host: ")).context("rustc has no host")?;
    let mut command = cargo();
    // With a target, the flag is not for what runs while building.
    command.args(["build", "--release", "--package", "pb-nats", "--target", host]);
    run_command(command.env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    let program = target.join(host).join("release/pb-nats");
    let linked = Command::new("ldd").arg(&program).output().context("`ldd` does not start")?;
    let linked = String::from_utf8_lossy(&[linked.stdout, linked.stderr].concat()).into_owned();
    let is_static = ["statically linked", "not a dynamic"].iter().any(|it| linked.contains(it));
    ensure!(is_static, "`{}` is not static:\n{linked}", program.display());

    let folder = target.join("package");
    describe(&program, &folder)?;
    let mut command = cargo();
    command.env("PATH", path_with_cargo_deb(&target)?);
    command.args(["deb", "--package", "pb-nats", "--no-build", "--no-strip", "--target", host]);
    let said = output(command.arg("--output").arg(&folder))?;
    Ok(said.lines().last().context("cargo-deb names no file")?.into())
}

/// Writes the manual pages and the completions.
fn describe(program: &Path, folder: &Path) -> Result<()> {
    let (manual, completions) = (folder.join("man"), folder.join("completions"));
    for folder in [&manual, &completions] {
        fs::create_dir_all(folder)?;
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = output(Command::new(program).args(["completions", shell]))?;
        fs::write(completions.join(format!("pb-nats.{shell}")), script)?;
    }
    // Each page names those of its subcommands.
    let mut pages = vec!["pb-nats".to_owned()];
    let mut written = BTreeSet::new();
    while let Some(name) = pages.pop() {
        let words = name.split('-').skip(2);
        let page = output(Command::new(program).arg("man").args(words))?;
        let plain = page.replace("\\-", "-");
        let named = plain.lines().filter_map(|it| it.strip_suffix("(1)"));
        pages.extend(named.filter(|it| it.starts_with(&format!("{name}-"))).map(str::to_owned));
        fs::write(manual.join(format!("{name}.1")), page)?;
        ensure!(written.insert(name), "a manual page names itself");
    }
    Ok(())
}

/// `PATH` with cargo-deb in it, at the version that is known to do.
fn path_with_cargo_deb(target: &Path) -> Result<OsString> {
    let root = target.join("tools/cargo-deb");
    let program = root.join("bin/cargo-deb");
    let version = Command::new(&program).arg("--version").output().ok();
    if version.is_none_or(|it| it.stdout.trim_ascii() != VERSION.as_bytes()) {
        let mut command = cargo();
        command.args(["install", "cargo-deb", "--locked", "--debug", "--version", VERSION]);
        run_command(command.arg("--force").arg("--root").arg(&root))?;
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = [root.join("bin")].into_iter().chain(env::split_paths(&path));
    Ok(env::join_paths(folders)?)
}

/// Makes a Debian as small as can be, from where this machine has its own packages, and looks what
/// the package does there. Nothing of it stays.
fn try_out(package: &Path) -> Result<()> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let suite = release.lines().find_map(|it| it.strip_prefix("VERSION_CODENAME="));
    let sources = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
    let sources = sources.iter().find(|it| Path::new(it).is_file());
    let (Some(suite), Some(sources)) = (suite, sources) else {
        anyhow::bail!("this is no Debian, where the package could be tried");
    };
    let scratch = tempfile::tempdir()?;
    let script = scratch.path().join("package.sh");
    fs::write(&script, CHECK)?;
    let copy =
        |file: &Path, to: &str| format!("--customize-hook=upload '{}' /{to}", file.display());
    let mut command = Command::new("mmdebstrap");
    command.args(["--variant=apt", "--include=adduser,procps,systemd", "--format=null"]);
    command.arg(copy(package, "pb-nats.deb")).arg(copy(&script, "package.sh"));
    command.arg("--customize-hook=chroot \"$1\" sh -eu /package.sh");
    run_command(command.args([suite, "/dev/null", sources])).context(
        "the package does not do on a clean Debian (for this, be root and `apt install mmdebstrap`)",
    )
}

fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let said = command.output().with_context(|| format!("`{program}` does not start"))?;
    ensure!(said.status.success(), "`{program}`: {}", String::from_utf8_lossy(&said.stderr));
    Ok(String::from_utf8(said.stdout)?)
}
