//! The files: those with secrets, nats-server's main config, and the auth file.

use std::{
    collections::BTreeSet,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use fs_err as fs;
use rustix::fs::{Access, access};

use super::{Line, Verdict};
use crate::{
    auth::Credential,
    causes::chain,
    engine::{
        EngineError,
        config::{self, Apart, AuthFile, MainConfig, Placement, Unresolved, starts},
    },
    options::Options,
    reconcile::Plan,
};

/// Files with secrets that others on this machine can read.
pub(super) fn secrets(options: &Options, lines: &mut Vec<Line>) {
    let files = [
        ("pocketbase.token_file", &options.pocketbase.token_file),
        ("pocketbase.password_file", &options.pocketbase.password_file),
        ("nats.system_credentials_file", &options.nats.system_credentials_file),
        ("nats.system_password_file", &options.nats.system_password_file),
    ];
    for (setting, path) in files {
        let Some(path) = path else { continue };
        let Ok(mode) = fs::metadata(path).map(|it| it.mode()) else { continue };
        if mode & 0o004 != 0 && others_reach(path) {
            let path = path.display();
            lines.push(Line::doubtful(
                "settings.secret_readable",
                format!(
                    "every account on this machine can read `{setting}`, {path} ({:04o})",
                    mode & 0o777
                ),
                &*format!("chmod 600 {path}, with pb-nats's user as its owner"),
            ));
        }
    }
}

/// Whether nats-server takes its users from the auth file, and what else of its config matters.
pub(super) async fn main_config(
    options: &Options,
    file: &mut AuthFile,
    config: Result<Option<MainConfig>, EngineError>,
    plan: Option<&Plan>,
    lines: &mut Vec<Line>,
) -> Option<MainConfig> {
    let config = match config {
        Ok(Some(config)) => config,
        Ok(None) => {
            lines.push(Line::doubtful(
                "main_config.not_set",
                "`nats.config_file` is not set, so nobody looks whether nats-server includes the auth file",
                "set it to the main config",
            ));
            judge(options, file, None, plan, lines).await;
            return None;
        }
        Err(error) => {
            let hint = error.hint().map(str::to_owned);
            lines.push(Line::wrong("main_config.unreadable", chain(&error), hint));
            return None;
        }
    };
    let placement = config.placement();
    let (text, hint) = (placement.to_string(), placement.hint());
    let in_force = placement == Placement::InForce;
    lines.push(match placement {
        Placement::InForce => Line::good("main_config.includes", text),
        Placement::Unknown(_) => Line::doubtful("main_config.not_understood", text, hint),
        Placement::NotIncluded => Line::wrong("main_config.not_included", text, Some(hint.into())),
        Placement::Overridden { .. } => {
            Line::wrong("main_config.overridden", text, Some(hint.into()))
        }
        Placement::Beside { .. } => Line::wrong("main_config.beside", text, Some(hint.into())),
    });
    for variable in config.unresolved() {
        lines.push(Line::doubtful(
            "main_config.unresolved_variable",
            variable.to_string(),
            Unresolved::HINT,
        ));
    }
    // What is told here is what a start would tell less plainly.
    for conflict in config.conflicts() {
        let hint = Some(conflict.hint().into());
        lines.push(Line::wrong("main_config.conflict", conflict.to_string(), hint));
    }
    limits(&config, lines);
    if in_force {
        replaced(&config, plan, lines);
    }
    let theirs = config.account_users();
    for it in config.no_auth_users() {
        let user = &*it.user;
        let served = plan.and_then(|it| it.desired.users.get(user));
        let locked = plan.is_some_and(|it| it.desired.locked.contains(user));
        let hashed = served.is_some_and(|it| matches!(it.credential, Credential::Password(_)));
        let hint = "take `no_auth_user` out of the main config and restart nats-server";
        let (text, hint) = if locked {
            (
                format!(
                    "whoever logs in without a name would be {user:?} ({it}), who is no user: they may \
                     do nothing, and the name stays in the auth file, locked, since nats-server would \
                     not load the config without it"
                ),
                format!("make or activate a record for {user:?}, or {hint}"),
            )
        } else if hashed {
            (
                format!(
                    "whoever logs in without a name would be {user:?} ({it}), but nats-server lets \
                     nobody in that way for a user whose password is hashed"
                ),
                format!("name a user's nkey instead, or {hint}"),
            )
        } else if served.is_some() || plan.is_none() || theirs.contains(user) {
            (
                format!("whoever logs in without a name is {user:?} ({it})"),
                format!("{hint}, unless that is meant"),
            )
        } else {
            lines.push(Line::wrong(
                "main_config.no_auth_user",
                format!("{user:?} is no user ({it}): nats-server will not load the config"),
                Some(format!("make a record for {user:?}, or {hint}")),
            ));
            continue;
        };
        lines.push(Line::doubtful("main_config.no_auth_user", text, &*hint));
    }
    judge(options, file, Some(&config), plan, lines).await;
    Some(config)
}

/// Whom PocketBase's users can talk to, and what they log in with.
fn limits(config: &MainConfig, lines: &mut Vec<Line>) {
    lines.push(match config.apart() {
        None => Line::good("main_config.accounts", "all users live in the global account"),
        Some(apart) => Line::doubtful("main_config.accounts", apart.to_string(), Apart::HINT),
    });
    let blocks = config.by_certificate();
    if !blocks.is_empty() {
        lines.push(Line::doubtful(
            "main_config.by_certificate",
            format!(
                "whoever connects by `{}` is the user whom the client's certificate names; no password \
                 is asked there",
                blocks.join("`, `")
            ),
            "take `verify_and_map` out, unless that is meant",
        ));
    }
}

/// What nats-server itself thinks of the config.
async fn judge(
    options: &Options,
    file: &mut AuthFile,
    config: Option<&MainConfig>,
    plan: Option<&Plan>,
    lines: &mut Vec<Line>,
) {
    let unknown = config.is_some_and(|it| matches!(it.placement(), Placement::Unknown(_)));
    let program = options.nats.server_binary.display();
    match file.judgement().await {
        None => lines.push(Line::doubtful(
            "main_config.not_judged",
            format!("`{program}` cannot be run, so nothing judges a config beforehand"),
            "set `nats.server_binary`, if nats-server is on this machine",
        )),
        // The same is told with what to do about it.
        Some(Err(said))
            if config.is_some_and(|it| {
                let named = |it: &Unresolved| said.contains(&format!("'{}'", it.name));
                it.unresolved().iter().any(named)
            }) => {}
        // It also refuses what only warrants a warning, and what it cannot read in our name.
        Some(Err(said)) if !unknown => lines.push(Line::doubtful(
            "main_config.refused",
            format!("`nats-server -t` has something against it: {said}"),
            "mend it, else nats-server may neither reload nor start",
        )),
        Some(Err(said)) => lines.push(Line::wrong(
            "main_config.refused",
            format!("`nats-server -t` does not understand it either: {said}"),
            Some("mend it, else nats-server neither reloads nor starts".into()),
        )),
        Some(Ok(())) => {
            let Some(path) = &options.nats.config_file else { return };
            let told =
                lines.iter().any(|it| it.is_about("main_config") && it.verdict == Verdict::Wrong);
            match starts(options, path).await {
                Ok(Some(Ok(()))) if !told => {
                    lines.push(Line::good("main_config.accepted", "nats-server starts with it"));
                }
                Ok(Some(Err(said))) if !told => {
                    let behind = plan.is_some_and(|it| it.write && it.refused.is_none());
                    let first = if behind {
                        "`pb-nats once`, as the auth file is behind; if that does not help, "
                    } else {
                        ""
                    };
                    lines.push(Line::wrong(
                        "main_config.refused",
                        format!("nats-server neither starts with it nor reloads it: {said}"),
                        Some(format!("{first}fix that before the next restart; `nats-server -t` does not notice")),
                    ));
                }
                Ok(_) => (),
                Err(error) => {
                    lines.push(Line::doubtful(
                        "main_config.not_judged",
                        chain(&error),
                        error.hint(),
                    ));
                }
            }
        }
    }
}

/// What the include of the auth file replaces, and what it leaves if it should ever be empty.
fn replaced(config: &MainConfig, plan: Option<&Plan>, lines: &mut Vec<Line>) {
    let served = |name: &String| plan.is_some_and(|it| it.desired.users.contains_key(&**name));
    let lost: Vec<String> = config.replaced_users().into_iter().filter(|it| !served(it)).collect();
    if !lost.is_empty() {
        let add = match &lost[..] {
            [name] => format!("`pb-nats user add {name}`"),
            _ => "`pb-nats user add NAME` for each".to_owned(),
        };
        lines.push(Line::doubtful(
            "main_config.replaced_users",
            format!(
                "users of its own `authorization` block cannot log in, since the auth file replaces it: {}",
                lost.join(", ")
            ),
            &*format!("create them in PocketBase, with {add}; or take them out"),
        ));
    }
    let settings = config.replaced_settings();
    if !settings.is_empty() {
        let names: Vec<&str> = settings.into_iter().collect();
        let hint = match &names[..] {
            ["timeout"] => "set `auth_file.login_timeout` instead",
            ["default_permissions"] => "set [permissions] instead",
            _ => {
                "set `auth_file.login_timeout` and [permissions] instead; tokens and auth callout do \
                  not go with users of a file"
            }
        };
        lines.push(Line::doubtful(
            "main_config.replaced_settings",
            format!(
                "the auth file replaces its `authorization` block, and with it `{}`",
                names.join("`, `")
            ),
            hint,
        ));
    }
    if !config.is_closed_by_itself() {
        lines.push(Line::doubtful(
            "main_config.open_if_empty",
            "should the auth file ever be empty or cut off, nats-server would let everybody in",
            "before the include put: authorization { users = [ {user: \"locked\", password: \
             \"$2a$10$.....................................................\", permissions: {publish: \
             {deny: \">\"}, subscribe: {deny: \">\"}}} ] }",
        ));
    }
}

/// Whether we can write the auth file, and who can read it.
pub(super) fn auth_file(
    options: &Options,
    file: &AuthFile,
    config: Option<&MainConfig>,
    plan: Option<&Plan>,
    lines: &mut Vec<Line>,
) {
    let before = lines.len();
    let path = fs::canonicalize(file.state.path()).unwrap_or_else(|_| file.state.path().to_owned());
    let folder = parent(&path);
    if !folder.is_dir() {
        let folder = folder.display();
        lines.push(Line::wrong(
            "auth_file.no_folder",
            format!("its folder {folder} is not there"),
            Some(format!("mkdir {folder}, or set `auth_file.path`")),
        ));
        return;
    }
    if access(&folder, Access::WRITE_OK | Access::EXEC_OK).is_err() {
        let folder = folder.display();
        lines.push(Line::wrong(
            "auth_file.folder_not_writable",
            format!("this user may not write to its folder, {folder}"),
            Some(format!(
                "run pb-nats as the folder's owner, or give it the folder: the file is replaced by a \
                 new one beside it (`chgrp pb-nats {folder}; chmod g+w {folder}`)"
            )),
        ));
    }
    let group = match group(&options.auth_file.group) {
        Ok(group) => group,
        Err(problem) => {
            let hint = "`auth_file.group` is a group on this machine, by name or number";
            lines.push(Line::wrong("auth_file.no_group", problem, Some(hint.into())));
            None
        }
    };
    let found = fs::metadata(&path);
    let there = found.is_ok();
    let access = match &found {
        Ok(it) => Owned { mode: it.mode(), user: it.uid(), group: it.gid() },
        Err(_) => Owned {
            mode: options.auth_file.mode,
            user: rustix::process::geteuid().as_raw(),
            group: group.unwrap_or_else(|| rustix::process::getegid().as_raw()),
        },
    };
    if there && access.mode & 0o004 != 0 && others_reach(&path) {
        let path = path.display();
        lines.push(Line::doubtful(
            "auth_file.readable_by_all",
            format!(
                "every account on this machine can read the password hashes in {path} ({:04o})",
                access.mode & 0o777
            ),
            &*format!("chmod 640 {path}, with nats-server's group; it keeps the mode it has"),
        ));
    }
    if let Some(process) = Process::of_server(options, config) {
        lines.extend(unreadable(&process, &path, &access));
    }
    if !there {
        lines.push(Line::doubtful(
            "auth_file.missing",
            format!("{} is not there: nats-server does not start without it", path.display()),
            "`pb-nats once` writes it",
        ));
    } else if lines.len() == before {
        lines.push(Line::good(
            "auth_file.access",
            "it can be replaced by us, and is not shown to all",
        ));
    }
    let Some(plan) = plan else { return };
    if let Some(refused) = &plan.refused {
        lines.push(Line::wrong(
            "auth_file.held_back",
            format!("held back: {refused}"),
            Some(refused.hint().into()),
        ));
    } else if plan.write {
        lines.push(Line::doubtful(
            "auth_file.behind",
            format!("it is behind: {}", plan.changes),
            "`pb-nats once`, or `pb-nats run` and wait",
        ));
    } else {
        lines.push(Line::good("auth_file.up_to_date", "it says what the records say"));
    }
}

/// Says so if the server cannot read the file.
fn unreadable(process: &Process, path: &Path, file: &Owned) -> Option<Line> {
    if process.may(0o4, file) && ancestors(path).iter().all(|it| process.may(0o1, it)) {
        return None;
    }
    let user = user_name(process.user);
    let text = format!(
        "nats-server (process {}) runs as {user}, who may not read {} ({:04o} {}:{})",
        process.id,
        path.display(),
        file.mode & 0o777,
        user_name(file.user),
        group_name(file.group),
    );
    let hint = format!(
        "set `auth_file.group` to a group of {user} and give it the file that is there (chgrp, \
         chmod 640), and let it into the folder"
    );
    Some(Line::wrong("auth_file.server_cannot_read", text, Some(hint)))
}

/// Mode and owner of a file or folder.
#[derive(Clone, Copy, Debug)]
struct Owned {
    mode: u32,
    user: u32,
    group: u32,
}

/// A process, and in whose name it acts.
#[derive(Debug)]
struct Process {
    id: i32,
    user: u32,
    groups: BTreeSet<u32>,
}

impl Process {
    /// The nats-server on this machine, if a pid file tells of one.
    fn of_server(options: &Options, config: Option<&MainConfig>) -> Option<Process> {
        let files = options.nats.pid_file.iter().cloned();
        let own = config.and_then(|it| it.setting("pid_file")).map(PathBuf::from);
        let id = files.chain(own).find_map(|it| config::process(&it))?;
        Process::new(id, &fs::read_to_string(format!("/proc/{id}/status")).ok()?)
    }

    /// From what Linux tells of it.
    fn new(id: i32, status: &str) -> Option<Process> {
        let numbers = |key: &str| -> Option<Vec<u32>> {
            let line = status.lines().find_map(|it| it.strip_prefix(key))?;
            Some(line.split_whitespace().filter_map(|it| it.parse().ok()).collect())
        };
        // Real, effective, saved, and the one for files.
        let (user, group) = (*numbers("Uid:")?.get(3)?, *numbers("Gid:")?.get(3)?);
        let groups = numbers("Groups:")?.into_iter().chain([group]).collect();
        Some(Process { id, user, groups })
    }

    /// Whether it may do this with the file: 4 is to read, 1 to pass through a folder.
    fn may(&self, what: u32, file: &Owned) -> bool {
        let shift = if self.user == file.user {
            6
        } else if self.groups.contains(&file.group) {
            3
        } else {
            0
        };
        self.user == 0 || (file.mode >> shift) & what == what
    }
}

/// Whether everybody may pass the folders above.
fn others_reach(path: &Path) -> bool {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    ancestors(&path).iter().all(|it| it.mode & 0o001 != 0)
}

fn ancestors(path: &Path) -> Vec<Owned> {
    let found = path.ancestors().skip(1).filter_map(|it| {
        let it = fs::metadata(if it.as_os_str().is_empty() { Path::new(".") } else { it }).ok()?;
        Some(Owned { mode: it.mode(), user: it.uid(), group: it.gid() })
    });
    found.collect()
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => ".".into(),
        Some(parent) => parent.to_owned(),
        None => "/".into(),
    }
}

fn group(name: &str) -> Result<Option<u32>, String> {
    if name.is_empty() {
        return Ok(None);
    }
    if let Ok(id) = name.parse() {
        return Ok(Some(id));
    }
    match nix::unistd::Group::from_name(name) {
        Ok(Some(group)) => Ok(Some(group.gid.as_raw())),
        Ok(None) => Err(format!("there is no group `{name}` on this machine")),
        Err(error) => {
            Err(format!("the group `{name}` cannot be looked up: {}", io::Error::from(error)))
        }
    }
}

fn user_name(id: u32) -> String {
    let user = nix::unistd::User::from_uid(id.into()).ok().flatten();
    user.map_or_else(|| format!("user {id}"), |it| it.name)
}

fn group_name(id: u32) -> String {
    let group = nix::unistd::Group::from_gid(id.into()).ok().flatten();
    group.map_or_else(|| id.to_string(), |it| it.name)
}

#[cfg(test)]
mod tests {
    use super::{Owned, Process};

    #[test]
    fn who_may_read_a_file_is_judged_as_the_system_does() {
        let status = "Name:\tnats-server\nUid:\t1\t1\t1\t7\nGid:\t1\t1\t1\t8\nGroups:\t20 21 \n";
        let process = Process::new(1, status).unwrap();
        let may = |mode, user, group| process.may(0o4, &Owned { mode, user, group });
        assert!(may(0o640, 7, 0) && may(0o640, 0, 8) && may(0o640, 0, 21) && may(0o644, 0, 0));
        assert!(!may(0o640, 0, 0) && !may(0o600, 0, 8));
        assert!(!may(0o044, 7, 8), "the owner is judged by the owner's bits alone");
        assert!(!may(0o604, 0, 20), "and so is the group");
        let root = Process::new(1, &status.replace('7', "0")).unwrap();
        assert!(root.may(0o4, &Owned { mode: 0, user: 9, group: 9 }));
        assert!(Process::new(1, "").is_none());
    }
}
