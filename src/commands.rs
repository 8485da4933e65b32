//! The commands, a file each, and what they share.

pub(crate) mod backups;
pub(crate) mod check;
pub(crate) mod dev;
pub(crate) mod diff;
pub(crate) mod explain;
pub(crate) mod hash;
pub(crate) mod init;
pub(crate) mod once;
pub(crate) mod plan;
pub(crate) mod run;
pub(crate) mod shell;
pub(crate) mod status;
mod superuser;
pub(crate) mod terminal;
pub(crate) mod user;

use std::{
    env,
    io::{self, IsTerminal, Read, Write},
    process::ExitCode,
};

use anyhow::Context;
use pb_nats::{
    Options, PocketBase, Reconciler,
    auth::Finding,
    users::{self, Unfit},
};
use tracing::warn;
use zeroize::Zeroizing;

use crate::{Cli, Usage};

/// The reconciler that the settings amount to.
pub(crate) fn open(cli: &Cli) -> anyhow::Result<(Reconciler<PocketBase>, Options)> {
    let options = options(cli)?;
    Ok((reconciler(&options)?, options))
}

/// The settings that the command line, the environment and the file amount to.
pub(crate) fn options(cli: &Cli) -> anyhow::Result<Options> {
    let options = Options::load(cli.config.as_deref(), env::vars_os())?;
    for note in options.notes() {
        warn!("{note}");
    }
    Ok(options)
}

pub(crate) fn reconciler(options: &Options) -> anyhow::Result<Reconciler<PocketBase>> {
    Ok(Reconciler::new(PocketBase::open(&options.pocketbase)?, options)?)
}

pub(crate) fn tell_findings(findings: &[Finding]) {
    for finding in findings {
        complain("finding", &finding.to_string());
    }
}

pub(crate) fn password_from_stdin(prompt: &str) -> anyhow::Result<Zeroizing<String>> {
    let refused = |problem: &str, hint: &str| {
        let hint = Some(hint.to_owned());
        Err(Usage { problem: problem.to_owned(), hint }.into())
    };
    let mut bytes = Zeroizing::new(Vec::new());
    if io::stdin().is_terminal() {
        let typed =
            rpassword::prompt_password(format!("{prompt}: ")).context("no password was read")?;
        bytes.extend_from_slice(Zeroizing::new(typed).as_bytes());
    } else {
        // Far more than is accepted, so that a file given by mistake is not read to its end.
        let limited = io::stdin().lock().take(64 * 1024).read_to_end(&mut bytes);
        limited.context("stdin cannot be read")?;
    }
    let line =
        bytes.strip_suffix(b"\n").map_or(&bytes[..], |it| it.strip_suffix(b"\r").unwrap_or(it));
    if line.is_empty() {
        return refused("the password is empty", "write it to stdin: printf %s \"$PASSWORD\" | …");
    }
    if line.len() > users::LONGEST {
        return refused(&Unfit::Long.to_string(), Unfit::Long.hint());
    }
    match str::from_utf8(line) {
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        Err(_) => {
            refused("the password is not valid UTF-8", "NATS clients send passwords as UTF-8")
        }
    }
}

/// Data goes to stdout, and a reader that has seen enough is no failure.
pub(crate) fn print(text: &str) -> anyhow::Result<ExitCode> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("stdout cannot be written")
        }
        Ok(()) | Err(_) => Ok(ExitCode::SUCCESS),
    }
}

/// The same for what people read, with colour where they do.
pub(crate) fn show(text: &str) -> anyhow::Result<ExitCode> {
    print(&terminal::painted(&io::stdout(), text))
}

/// Something that is no failure, on stderr.
pub(crate) fn complain(what: &str, text: &str) {
    terminal::say(&format!("{what}: {text}"));
}
