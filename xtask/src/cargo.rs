//! What cargo does for us.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::PathBuf,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::tools;

/// Runs all tests, doc tests included.
pub(crate) fn test(arguments: &[String]) -> Result<()> {
    run(with_servers(cargo().args(["test", "--workspace"]))?.args(arguments))
}

/// Tries the recipes of the cookbook with nats.js, which needs Node.js.
pub(crate) fn clients() -> Result<()> {
    if !["node", "npm"].iter().all(there) {
        println!("left out: nats.js, since there is no Node.js (Debian: apt install nodejs npm)");
        return Ok(());
    }
    let packages = tools::install_nats_js()?;
    let mut command = cargo();
    command.args(["test", "--package", "pb-nats", "--test", "it", "nats_js"]);
    run(with_servers(&mut command)?.env("PB_NATS_TEST_NATS_JS", packages))
}

/// Measures the whole: how fast a change is in force, and what that costs.
pub(crate) fn bench(quick: bool, million: bool, users: Option<usize>) -> Result<()> {
    let mut command = cargo();
    command.args(["bench", "--package", "pb-nats", "--bench", "whole", "--"]);
    let arguments = [(quick, "--quick"), (million, "--million")];
    let arguments = arguments.iter().filter(|it| it.0).map(|it| it.1);
    if let Some(users) = users {
        command.arg(format!("--users={users}"));
    }
    run(with_servers(&mut command)?.args(arguments))
}

/// Installs the servers, and says where they are. Whoever has named others gets those.
fn with_servers(command: &mut Command) -> Result<&mut Command> {
    let tools = tools::install()?;
    for (variable, program) in
        [("NATS_SERVER_BIN", "nats-server"), ("POCKETBASE_BIN", "pocketbase")]
    {
        if env::var_os(variable).is_none() {
            command.env(variable, tools.join(program));
        }
    }
    Ok(command)
}

/// Everything a change has to pass.
pub(crate) fn ci() -> Result<()> {
    step("formatting", cargo().args(["fmt", "--all", "--check"]))?;
    step(
        "lints",
        cargo().args(["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]),
    )?;
    // The advisories are left out: their database is not in a package registry.
    let mut deny = Command::new(tools::install()?.join("cargo-deny"));
    deny.args(["check", "licenses", "bans", "sources"]);
    step(
        "licences, bans and sources",
        deny.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")),
    )?;
    let mut test = cargo();
    test.args(["xtask", "test"]);
    if is_root() {
        test.env("PB_NATS_TEST_ROOT", "1");
    } else {
        println!("not root: tests that mount, or run as another user, are left out");
    }
    step("tests, generated docs among them", &mut test)?;
    step(
        "documentation",
        cargo().args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    install(&["systemd-analyze"], &["systemd"]);
    step("what is handed out", cargo().args(["xtask", "dist"]))?;
    step("demo", cargo().args(["xtask", "demo", "--check"]))?;
    install(&["chromium", "chromedriver"], &["chromium", "chromium-driver"]);
    step("page, metrics and alert rules", cargo().args(["xtask", "browser"]))?;
    install(&["node", "npm"], &["nodejs", "npm"]);
    step("recipes, with nats.js", cargo().args(["xtask", "clients"]))?;
    install(&["strace", "faketime"], &["strace", "faketime"]);
    step("faults", cargo().args(["xtask", "faults", "--quick"]))?;
    step("benchmarks, in small", cargo().args(["xtask", "bench", "--quick"]))
}

/// Installs what a step needs, where that can be done. What is missing is skipped, and said so.
fn install(programs: &[&str], packages: &[&str]) {
    if is_root() && !programs.iter().all(there) {
        let install = [&["install", "--yes", "--no-install-recommends"], packages].concat();
        for words in [&["update"][..], &install] {
            let _ = Command::new("apt-get").args(words).output();
        }
    }
}

/// Whether this program runs here.
pub(crate) fn there(program: impl AsRef<OsStr>) -> bool {
    let said = Command::new(program).arg("--version").stdout(Stdio::null()).status();
    said.is_ok_and(|it| it.success())
}

/// Writes the generated pages, or says whether they are up to date. A test knows which they are.
pub(crate) fn docs(check: bool) -> Result<()> {
    let mut command = cargo();
    command.args(["test", "--quiet", "--package", "pb-nats", "--test", "it", "generated_pages"]);
    if !check {
        command.env("UPDATE_DOCS", "1");
    }
    run(&mut command)
}

/// Builds pb-nats and returns where it is.
pub(crate) fn build() -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--package", "pb-nats", "--bin", "pb-nats"]);
    command.arg("--message-format=json-render-diagnostics");
    let said = command.stderr(Stdio::inherit()).output().context("cargo does not start")?;
    ensure!(said.status.success(), "pb-nats does not build");
    String::from_utf8_lossy(&said.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find_map(|it| it["executable"].as_str().map(PathBuf::from))
        .context("cargo built no program")
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|it| it.stdout.trim_ascii() == b"0")
}

fn step(name: &str, command: &mut Command) -> Result<()> {
    println!("\n── {name}");
    let start = Instant::now();
    run(command).with_context(|| format!("failed: {name}"))?;
    println!("── {name}: ok, {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

pub(crate) fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("`{program}` does not start"))?;
    let words: Vec<_> = command.get_args().map(|it| it.to_string_lossy()).collect();
    ensure!(status.success(), "{program} {}: {status}", words.join(" "));
    Ok(())
}

/// Cargo, in the repository, as whoever called us has set it up.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    // What describes the build of xtask would make cargo build other things anew.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command
}
