//! The steps of a pass, as the kernel sees them, and how to stop or end pb-nats at one of them.
//!
//! Nothing in pb-nats helps with that: strace delivers a signal as the n-th call of a kind begins.
//! The pass runs on the main thread, so only that is looked at.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};

use super::world::World;
use crate::support::{Signal, poll, says_in_force};

/// What a pass does to files and processes.
const CALLS: &str = "openat,write,fsync,fdatasync,rename,renameat,renameat2,fchmod,chmod,fchown,\
                     chown,flock,ftruncate,kill,unlink,unlinkat,mkdir,clone3,clone,vfork,connect";

/// A call to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    call: String,
    /// The how-manieth of its kind.
    number: usize,
    /// What it does, as far as it is the same each time.
    pub(super) what: String,
}

/// Whether pb-nats can be looked at.
pub(super) fn can_trace() -> bool {
    Command::new("strace")
        .args(["-o", "/dev/null", "true"])
        .output()
        .is_ok_and(|it| it.status.success())
}

/// What pb-nats does in a pass that changes something, step by step.
pub(super) fn survey(world: &mut World) -> Result<Vec<Step>> {
    world.stop_pb_nats(Signal::TERM);
    world.change();
    let log = start(world, &[])?;
    let told = poll(Duration::from_secs(20), || {
        let running = world.running.as_ref()?;
        running.lines().iter().any(|it| says_in_force(it)).then_some(())
    });
    told.context("pb-nats makes no pass while it is traced")?;
    let text = fs::read_to_string(log)?;
    stop(world);
    let steps = parse(&text);
    if steps.len() < 10 {
        bail!("strace shows too little of a pass:\n{text}");
    }
    Ok(steps)
}

/// Starts pb-nats with something to do, and has it killed or stopped as it begins this step.
/// Whether it came so far.
pub(super) fn interrupt(world: &mut World, step: &Step, signal: Signal) -> Result<bool> {
    world.stop_pb_nats(Signal::TERM);
    world.change();
    let name = if signal == Signal::KILL { "KILL" } else { "STOP" };
    let inject = format!("inject={}:signal={name}:when={}", step.call, step.number);
    let log = start(world, &["-e", &inject])?;
    let reached = poll(Duration::from_secs(5), || {
        let text = fs::read_to_string(&log).ok()?;
        let ends = ["+++ killed by SIGKILL", "--- stopped by SIGSTOP"];
        ends.iter().any(|it| text.contains(it)).then_some(())
    });
    Ok(reached.is_some())
}

/// Starts pb-nats without all that again, if it was traced.
pub(super) fn stop(world: &mut World) {
    world.stop_pb_nats(Signal::TERM);
    world.pb_nats.start_through(&[]);
    world.start_pb_nats();
}

fn start(world: &mut World, more: &[&str]) -> Result<std::path::PathBuf> {
    let log = world.pb_nats.dir().join("strace.log");
    let _ = fs::remove_file(&log);
    let mut words = vec!["strace", "-D", "-o", path(&log)?, "-e"];
    let trace = format!("trace={}", calls());
    words.push(&trace);
    words.extend(more);
    let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
    world.pb_nats.start_through(&words);
    world.start_pb_nats();
    // Only this one; whoever starts it later means the usual.
    world.pb_nats.start_through(&[]);
    Ok(log)
}

/// Not every machine has every call.
fn calls() -> String {
    CALLS.split(',').map(|it| format!("?{it}")).collect::<Vec<_>>().join(",")
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("the temporary folder's name is not UTF-8")
}

/// The calls between the lock of the first pass and its end.
fn parse(log: &str) -> Vec<Step> {
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    let mut steps = Vec::new();
    let (mut begun, mut ordered) = (false, false);
    for line in log.lines() {
        let Some((call, rest)) = line.split_once('(') else { continue };
        if !call.bytes().all(|it| it.is_ascii_alphanumeric()) {
            continue;
        }
        let count = counts.entry(call).or_default();
        *count += 1;
        begun |= line.contains(".auth.conf.lock");
        ordered |= call == "kill";
        // A note to another thread of its own. While it waits for the proof, there is little else.
        let wakes = call == "write" && rest.contains("\\1\\0\\0\\0\\0\\0\\0\\0");
        let logs = call == "write" && rest.starts_with("2,");
        if begun && !logs && (!wakes || ordered) {
            steps.push(Step { call: call.into(), number: *count, what: what(line) });
        }
        if begun && logs && line.contains("INF") {
            break;
        }
    }
    steps
}

/// A call without what differs from one time to the next.
fn what(line: &str) -> String {
    let (call, rest) = line.split_once('(').unwrap_or((line, ""));
    let names = rest.split('"').skip(1).step_by(2).filter_map(|it| it.rsplit('/').next());
    let name = names.last().unwrap_or_default();
    let name = match name {
        _ if call == "write" && rest.contains("\\1\\0\\0\\0") => "to another thread",
        _ if call == "write" => "contents",
        _ if name.starts_with(".pb-nats-") => "a staged file",
        _ if name.starts_with(".tmp") => "a scratch folder",
        _ if name.starts_with("auth.conf.2") => "a backup",
        _ if call == "kill" => "SIGHUP",
        _ if call.starts_with("clone") => "",
        "" if call == "fsync" => "",
        name => name,
    };
    format!("{call} {name}").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_counted_from_the_start_and_told_from_the_first_pass() {
        let log = r##"openat(AT_FDCWD, "/etc/ld.so.cache", O_RDONLY|O_CLOEXEC) = 3
write(2, "2026  INFO pb-nats"..., 124) = 124
openat(AT_FDCWD, "/tmp/x/.auth.conf.lock", O_RDWR|O_CREAT|O_CLOEXEC, 0644) = 11
write(4, "\1\0\0\0\0\0\0\0", 8)   = 8
openat(AT_FDCWD, "/tmp/x/.pb-nats-FxsXM6", O_RDWR|O_CREAT|O_EXCL|O_CLOEXEC, 0600) = 17
write(17, "# Authorization for nats-server,"..., 749) = 749
fsync(17)                         = 0
renameat(AT_FDCWD, "/tmp/x/.pb-nats-FxsXM6", AT_FDCWD, "/tmp/x/auth.conf") = 0
kill(17673, SIGHUP)               = 0
--- SIGCHLD {si_signo=SIGCHLD} ---
write(4, "\1\0\0\0\0\0\0\0", 8)   = 8
write(2, "2026-11-23T19:35:30.190121Z  INF"..., 181) = 181
fsync(17)                         = 0
"##;
        let steps = parse(log);
        let told: Vec<_> = steps.iter().map(|it| (it.number, &*it.what)).collect();
        assert_eq!(
            told,
            [
                (2, "openat .auth.conf.lock"),
                (3, "openat a staged file"),
                (3, "write contents"),
                (1, "fsync"),
                (1, "renameat auth.conf"),
                (1, "kill SIGHUP"),
                (4, "write to another thread"),
            ]
        );
    }
}
