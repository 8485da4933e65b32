//! nats-server's side and ours: what goes into the main config, and what into the settings.

use std::{
    fmt::Write as _,
    net::TcpListener,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
};

use fs_err as fs;

use super::{
    InitError,
    schema::{self, There},
};
use crate::{
    auth::{closed, conf::quote},
    engine::EngineError,
    engine::config::{Apart, MainConfig, Placement, Unresolved, starts, would_start},
    nats::CommandLine,
    options::{Options, settings_file},
    state::StateError,
};

/// The address of a monitor that is added to a main config.
const MONITOR: &str = "127.0.0.1:8222";

/// What the main config needs at its end. `None`: it has everything.
///
/// The settings are filled in by what the main config says, where they say nothing; `new`: there are
/// none yet.
pub(super) async fn addition(
    path: &Path,
    options: &mut Options,
    new: bool,
    notes: &mut Vec<String>,
) -> Result<Option<String>, InitError> {
    let path = &std::path::absolute(path).map_err(EngineError::MainConfig)?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    let read = |options: &Options| MainConfig::read(path, &options.auth_file.path);
    if new {
        let included = read(options).ok().and_then(|it| it.includes_ours(path));
        options.auth_file.path = included.unwrap_or_else(|| dir.join(&options.auth_file.path));
        options.auth_file.backup_dir = dir.join(&options.auth_file.backup_dir);
    }
    options.nats.config_file.get_or_insert_with(|| path.to_owned());
    let config = read(options).map_err(EngineError::MainConfig)?;
    let cannot = |why: String| InitError::MainConfig { path: path.to_owned(), why };
    let placement = config.placement();
    match &placement {
        Placement::InForce | Placement::NotIncluded => (),
        Placement::Overridden { .. } | Placement::Beside { .. } | Placement::Unknown(_) => {
            return Err(cannot(format!("{placement}; {}", placement.hint())));
        }
    }
    if let Some(conflict) = config.conflicts().into_iter().next() {
        return Err(InitError::Conflict { path: path.to_owned(), conflict });
    }
    let included = placement == Placement::InForce;
    if !included && let Some((line, users)) = config.occupied() {
        return Err(InitError::Occupied { path: path.to_owned(), line, users });
    }
    limits(&config, notes);
    let lines = further_lines(&config, path, options, new, notes);
    let end = |include: &str| {
        let end = if included { String::new() } else { include_lines(include) };
        format!("\n# Added by `pb-nats init`.\n{lines}{end}")
    };
    if included && lines.is_empty() {
        return Ok(None);
    }
    if !included {
        let (who, meanwhile) = if config.apart().is_some_and(|it| it.has_users()) {
            ("users of PocketBase and of the main config's accounts", "only the latter")
        } else {
            ("users of PocketBase", "nobody")
        };
        notes.push(format!(
            "once nats-server loads the main config with the include, only {who} are let in; until the \
             first pass, {meanwhile}"
        ));
    }
    let refused = |what: &str, said: String| {
        cannot(match config.unresolved().first() {
            Some(variable) => format!("{variable}; {}", Unresolved::HINT),
            None => format!("nats-server {what}: {said}"),
        })
    };
    match starts(options, path).await? {
        // Without its auth file it cannot.
        Some(Err(said)) if !included => return Err(refused("refuses it as it is", said)),
        Some(Ok(()) | Err(_)) => (),
        None => notes.push(format!(
            "`{}` cannot be run, so nobody looks whether nats-server starts with these lines",
            options.nats.server_binary.display(),
        )),
    }
    if let Some(Err(said)) = would_start(options, &config, &end("auth.conf")).await? {
        return Err(refused("would no longer start", said));
    }
    Ok(Some(end(&relative(&options.auth_file.path, dir))))
}

/// What users of a file cannot do beside what the main config has.
fn limits(config: &MainConfig, notes: &mut Vec<String>) {
    notes.extend(config.apart().map(|it| format!("{it}; {}", Apart::HINT)));
    let blocks = config.by_certificate();
    if !blocks.is_empty() {
        notes.push(format!(
            "whoever connects by `{}` is the user whom the client's certificate names \
             (`verify_and_map`): no password is asked there",
            blocks.join("`, `"),
        ));
    }
}

/// Lines that tell where the pid file and the monitor are, where nothing tells yet. The settings are
/// told the same.
fn further_lines(
    config: &MainConfig,
    path: &Path,
    options: &mut Options,
    new: bool,
    notes: &mut Vec<String>,
) -> String {
    let mut lines = String::new();
    let nats = &mut options.nats;
    let dir = path.parent().unwrap_or(Path::new("/"));
    // What a server's command line says counts more than its config.
    let started = CommandLine::of(path);
    let pid_path = dir.join("nats-server.pid");
    // Whoever has chosen the system account needs neither.
    let other_way = nats.system_url.is_some() && !new;
    let untold = nats.pid_file.is_empty() && nats.reload_command.is_none() && !other_way;
    // Settings that name it are of a run that came no further.
    if untold || nats.pid_file == [pid_path.clone()] {
        let told = started.as_ref().and_then(|it| it.pid_file.clone());
        let theirs = told.is_some() || config.has(&["pid_file", "pidfile"]);
        // nats-server does not start if it cannot write its pid file, and below /etc it seldom can.
        let fit = pid_path.is_absolute() && !pid_path.starts_with("/etc");
        if theirs {
            let pid_file = told.or_else(|| config.pid_file()).filter(|_| untold);
            nats.pid_file.extend(pid_file);
        } else if fit && started.as_ref().is_none_or(|it| may_write(it.pid, dir)) {
            let _ = writeln!(lines, "pid_file: {}", quote(&pid_path.display().to_string()));
            notes.push(format!(
                "nats-server's user has to be able to write {}: with a pid file that it cannot write \
                 it does not start",
                pid_path.display()
            ));
            nats.pid_file = vec![pid_path];
        }
    }
    let monitor = format!("http://{MONITOR}");
    let untold = nats.monitor_url.is_empty() && !other_way;
    if untold || nats.monitor_url == [monitor.clone()] {
        let told = started.and_then(|it| it.monitor).map(|(url, _)| url);
        let keys = ["http", "http_port", "monitor_port", "https", "https_port"];
        let theirs = told.is_some() || config.has(&keys);
        // Where somebody listens already, or is going to, a second listener would not start.
        let free = || !config.mentions("8222") && TcpListener::bind(MONITOR).is_ok();
        if theirs {
            nats.monitor_url.extend(told.or_else(|| config.monitor_url()).filter(|_| untold));
        } else if free() {
            let _ = writeln!(lines, "http: {MONITOR:?}");
            nats.monitor_url = vec![monitor];
        }
    }
    if nats.pid_file.is_empty() && nats.reload_command.is_none() && nats.system_url.is_none() {
        notes.push(
            "nothing tells nats-server to reload: set `pid_file` in its main config, to a path that \
             nats-server may write, and the same as `nats.pid_file`; or set `nats.reload_command`"
                .into(),
        );
    }
    lines
}

/// Whether this process, as far as the system shows it, could write a file into the folder.
fn may_write(pid: i32, folder: &Path) -> bool {
    let found = fs::metadata(format!("/proc/{pid}")).and_then(|it| Ok((it, fs::metadata(folder)?)));
    let Ok((process, folder)) = found else { return true };
    let shift = if process.uid() == folder.uid() {
        6
    } else if process.gid() == folder.gid() {
        3
    } else {
        0
    };
    process.uid() == 0 || (folder.mode() >> shift) & 0o3 == 0o3
}

/// What the settings at `path` lack of what they amount to by now.
pub(super) fn gained(
    before: &Options,
    after: &Options,
    path: &Path,
) -> Vec<(&'static str, String)> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let (before, after) = (&before.nats, &after.nats);
    let mut values = Vec::new();
    if let (None, Some(path)) = (&before.config_file, &after.config_file) {
        values.push(("nats.config_file", beside(path, folder)));
    }
    if let ([], [path]) = (&before.pid_file[..], &after.pid_file[..]) {
        values.push(("nats.pid_file", beside(path, folder)));
    }
    if let ([], [url]) = (&before.monitor_url[..], &after.monitor_url[..]) {
        values.push(("nats.monitor_url", toml::Value::from(&**url).to_string()));
    }
    values
}

/// A path for the settings. What is beside them moves with them.
fn beside(path: &Path, folder: &Path) -> String {
    let path = path.strip_prefix(folder).unwrap_or(path);
    toml::Value::from(path.display().to_string()).to_string()
}

/// Lines for a main config that nobody adds to: where there is none, or it lacks the include.
pub(super) fn by_hand(options: &Options) -> Option<String> {
    let Some(path) = &options.nats.config_file else { return Some(include_lines("auth.conf")) };
    let config = MainConfig::read(path, &options.auth_file.path).ok()?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    let missing = config.placement() == Placement::NotIncluded;
    missing.then(|| include_lines(&relative(&options.auth_file.path, dir)))
}

/// What is to happen to an auth file that somebody else wrote.
pub(super) fn foreign(error: &StateError, path: &Path) -> String {
    // Who stands in it is told; what else it is, nobody needs to know.
    let users = MainConfig::read(path, Path::new("")).ok().and_then(|it| it.occupied());
    let users = users.map(|(_, users)| users).filter(|it| !it.is_empty());
    let users = users.map_or(String::new(), |it| {
        format!(". Of these, whoever has no record there is locked out by that: {}", it.join(", "))
    });
    format!(
        "{error}, and stays as it is for now. Next, `pb-nats once --adopt` backs it up and puts \
         PocketBase's users in its place; then `pb-nats init --nats-config FILE` does what is left{users}"
    )
}

/// The end of every main config: closed, unless the included file says otherwise.
pub(super) fn include_lines(path: &str) -> String {
    format!(
        "# Should the included file ever be empty, this one lets nobody in.\n{}include {}\n",
        closed(),
        quote(path),
    )
}

/// The path as seen from a folder: nats-server joins the two, whatever the path begins with.
fn relative(path: &Path, folder: &Path) -> String {
    let path = real(path);
    let folder = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    let shared = path.components().zip(folder.components()).take_while(|(a, b)| a == b).count();
    let up = folder.components().skip(shared).map(|_| Component::ParentDir);
    let down = path.components().skip(shared);
    up.chain(down).collect::<PathBuf>().display().to_string()
}

fn real(path: &Path) -> PathBuf {
    let folder = path.parent().and_then(|it| fs::canonicalize(it).ok());
    match (folder, path.file_name()) {
        (Some(folder), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    }
}

/// The text of the settings file at `path`, and the settings that it amounts to.
pub(super) fn settings(
    options: &mut Options,
    path: &Path,
    there: &There,
) -> Result<String, InitError> {
    let defaults = Options::default();
    let folder = std::path::absolute(path).map_err(|source| StateError::Io {
        path: path.to_owned(),
        what: "found",
        source,
    })?;
    let folder = folder.parent().unwrap_or(Path::new("/"));
    let mut values: Vec<(&str, String)> = Vec::new();
    let text = |text: &str| toml::Value::from(text).to_string();
    let file = |path: &Path| beside(path, folder);
    let Options { pocketbase, auth_file, nats, admin, .. } = &mut *options;
    values.push(("pocketbase.url", text(pocketbase.url.as_deref().unwrap_or_default())));
    let token = pocketbase.token_file.get_or_insert_with(|| "pb-nats.token".into());
    values.push(("pocketbase.token_file", file(token)));
    let mut named = |name, value: &str, default: &str| {
        if value != default {
            values.push((name, text(value)));
        }
    };
    let it = &defaults.pocketbase;
    named("pocketbase.user_collection", &pocketbase.user_collection, &it.user_collection);
    named("pocketbase.role_collection", &pocketbase.role_collection, &it.role_collection);
    if pocketbase.write_status {
        values.push(("pocketbase.write_status", "true".into()));
    }
    if !schema::is_told(there) {
        // Nothing tells of changes, so they are looked for.
        values.push(("pocketbase.resync_interval", text("10s")));
    }
    // Who has no role was given none, or has lost it; by neither anybody is to gain anything.
    values.push(("permissions.default_publish", "[]".into()));
    values.push(("permissions.default_subscribe", "[]".into()));
    if auth_file.path != defaults.auth_file.path {
        values.push(("auth_file.path", file(&auth_file.path)));
        values.push(("auth_file.backup_dir", file(&auth_file.backup_dir)));
    }
    if let Some(path) = &nats.config_file {
        values.push(("nats.config_file", file(path)));
    }
    if nats.server_binary != defaults.nats.server_binary {
        values.push(("nats.server_binary", file(&nats.server_binary)));
    }
    if let [path] = &*nats.pid_file {
        values.push(("nats.pid_file", file(path)));
    }
    if let [url] = &*nats.monitor_url {
        values.push(("nats.monitor_url", text(url)));
    }
    if let Some(url) = &nats.system_url {
        values.push(("nats.system_url", text(url)));
    }
    if let Some(user) = &nats.system_user {
        values.push(("nats.system_user", text(user)));
    }
    if let Some(path) = &nats.system_password_file {
        values.push(("nats.system_password_file", file(path)));
    }
    if admin.listen != defaults.admin.listen {
        values.push(("admin.listen", text(&admin.listen)));
    }
    let text = settings_file(&values);
    *options = Options::from_toml(&text, folder)
        .map_err(|error| InitError::MainConfig { path: path.to_owned(), why: error.to_string() })?;
    Ok(text)
}
