//! nats-server's side and ours: what goes into the main config, and what into the settings.

use std::{
    fmt::Write as _,
    net::TcpListener,
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
    engine::config::{MainConfig, Placement, Unresolved, judge},
    nats::CommandLine,
    options::{Options, settings_file},
    state::StateError,
};

/// The address of a monitor that is added to a main config.
const MONITOR: &str = "127.0.0.1:8222";

/// What the main config needs at its end. `None`: it includes the auth file already.
///
/// With new settings they are filled in by what the main config says.
pub(super) async fn addition(
    path: &Path,
    options: &mut Options,
    new: bool,
    notes: &mut Vec<String>,
) -> Result<Option<String>, InitError> {
    let path = &std::path::absolute(path).map_err(EngineError::MainConfig)?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    if new {
        options.auth_file.path = dir.join(&options.auth_file.path);
        options.auth_file.backup_dir = dir.join(&options.auth_file.backup_dir);
        options.nats.config_file = Some(path.to_owned());
    }
    let config =
        MainConfig::read(path, &options.auth_file.path).map_err(EngineError::MainConfig)?;
    let cannot = |why: String| InitError::MainConfig { path: path.to_owned(), why };
    let placement = config.placement();
    match &placement {
        Placement::InForce | Placement::NotIncluded => (),
        Placement::Overridden { .. } | Placement::Beside { .. } | Placement::Unknown(_) => {
            return Err(cannot(format!("{placement}; {}", placement.hint())));
        }
    }
    let included = placement == Placement::InForce;
    let mut lines = String::from("\n# Added by `pb-nats init`.\n");
    // What a server's command line says counts more than its config.
    let started = CommandLine::of(path);
    let (their_monitor, their_pid_file) =
        started.map_or((None, None), |it| (it.monitor.map(|it| it.0), it.pid_file));
    let told = (their_monitor.is_some(), their_pid_file.is_some());
    let mut pid_file = their_pid_file.or_else(|| config.pid_file());
    let mut monitor = their_monitor.or_else(|| config.monitor_url());
    if !included {
        if let Some((line, users)) = config.occupied() {
            return Err(InitError::Occupied { path: path.to_owned(), line, users });
        }
        match judge(options, path).await {
            Some(Err(said)) => {
                let why = match config.unresolved().first() {
                    Some(variable) => format!("{variable}; {}", Unresolved::HINT),
                    None => format!("nats-server refuses it as it is: {said}"),
                };
                return Err(cannot(why));
            }
            Some(Ok(())) => (),
            None => notes.push(format!(
                "`{}` cannot be run, so nobody looks whether nats-server accepts the main config \
                 with the include",
                options.nats.server_binary.display(),
            )),
        }
        notes.push(
            "once nats-server loads the main config with the include, only users of PocketBase are \
             let in; until the first pass, nobody"
                .into(),
        );
        // nats-server does not start if it cannot write its pid file, and below /etc it seldom can.
        let theirs = told.1 || config.has(&["pid_file", "pidfile"]);
        let pid_path = dir.join("nats-server.pid");
        if !theirs && new && pid_path.is_absolute() && !pid_path.starts_with("/etc") {
            let _ = writeln!(lines, "pid_file: {}", quote(&pid_path.display().to_string()));
            pid_file = Some(pid_path);
        }
        let keys = ["http", "http_port", "monitor_port", "https", "https_port"];
        let theirs = told.0 || config.has(&keys);
        // Where somebody listens already, a second server would not start.
        if !theirs && new && TcpListener::bind(MONITOR).is_ok() {
            let _ = writeln!(lines, "http: {MONITOR:?}");
            monitor = Some(format!("http://{MONITOR}"));
        }
    }
    let nats = &mut options.nats;
    if new {
        nats.pid_file.extend(pid_file);
        nats.monitor_url.extend(monitor);
    }
    if nats.pid_file.is_empty() && nats.reload_command.is_none() && nats.system_url.is_none() {
        notes.push(
            "nothing tells nats-server to reload: set `pid_file` in its main config, to a path that \
             nats-server may write, and the same as `nats.pid_file`; or set `nats.reload_command`"
                .into(),
        );
    }
    if included {
        return Ok(None);
    }
    let include = relative(&options.auth_file.path, dir);
    Ok(Some(lines + &include_lines(&include)))
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
    let file = |path: &Path| {
        // What is beside the settings moves with them.
        text(&path.strip_prefix(folder).unwrap_or(path).display().to_string())
    };
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
    if let Some(path) = &nats.config_file {
        values.push(("auth_file.path", file(&auth_file.path)));
        values.push(("auth_file.backup_dir", file(&auth_file.backup_dir)));
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
