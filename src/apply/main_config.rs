use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::{Component, Path, PathBuf},
    time::SystemTime,
};

use fs_err as fs;

use super::folder;
use crate::auth::conf::{self, ConfError, Entry, Node};

/// The operator's main config: read, never written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MainConfig {
    /// The main config, then what it includes, but for the auth file.
    files: Vec<ConfFile>,
    /// All entries, those of included files in their place, or why they cannot be told.
    entries: Result<Vec<Entry<'static>>, ConfError>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct ConfFile {
    text: String,
    changed: SystemTime,
    /// Line and value of each `include`, and what it points to.
    includes: Vec<(usize, String, Target)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    AuthFile,
    /// A place in [`MainConfig::files`].
    File(usize),
}

/// Whether the users of the auth file are the ones that nats-server takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// They are.
    InForce,
    /// The main config does not include the auth file at its top level.
    NotIncluded,
    /// An `authorization` block behind the include replaces ours, silently.
    Overridden {
        /// Where that block begins, in the file that it is in.
        line: usize,
    },
    /// This reader does not understand the main config; nats-server may.
    Unknown(ConfError),
}

impl Placement {
    /// How to mend it.
    pub const HINT: &str = "put `include \"auth.conf\"`, with the auth file's path as seen from the main \
        config's folder, on a line of its own at its top level, behind any `authorization` block";
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Placement::InForce => f.write_str("the main config includes the auth file"),
            Placement::NotIncluded => {
                f.write_str("the main config does not include the auth file at its top level")
            }
            Placement::Overridden { line } => write!(
                f,
                "an `authorization` block (line {line}) stands behind the include of the auth file \
                 and replaces it"
            ),
            Placement::Unknown(why) => write!(f, "the main config is not understood: {why}"),
        }
    }
}

/// The key that stands for the auth file among the entries. No key of a config has a space.
const AUTH_FILE: &str = "the auth file";
/// More includes in one another than this are a loop.
const MAX_DEPTH: usize = 16;

impl MainConfig {
    /// The name of the first of [`with_auth_file`](Self::with_auth_file)'s files.
    pub(super) const FIRST: &str = "0.conf";

    /// Reads the config and all that it includes, but for the auth file.
    pub fn read(path: &Path, auth_file: &Path) -> io::Result<MainConfig> {
        let mut files = Vec::new();
        let entries = read(path, &real(auth_file), &mut files, 0)?;
        Ok(MainConfig { files, entries })
    }

    /// The names and nkeys of users in `accounts`, which no user in `authorization` may have.
    pub fn account_users(&self) -> BTreeSet<String> {
        let Ok(entries) = &self.entries else { return BTreeSet::new() };
        let accounts = entries.iter().filter(|it| it.key.eq_ignore_ascii_case("accounts"));
        let accounts = accounts.flat_map(|it| resolved(&it.value, entries).entries());
        let users = accounts.flat_map(|account| {
            let lists = resolved(&account.value, entries).entries().iter();
            lists.filter(|it| matches!(it.key.to_ascii_lowercase().as_str(), "users" | "nkeys"))
        });
        let users = users.flat_map(|it| resolved(&it.value, entries).items());
        let logins = users.flat_map(|user| {
            ["user", "username", "nkey"]
                .into_iter()
                .filter_map(|key| resolved(user, entries).at(key))
        });
        logins.filter_map(|it| word(it, entries)).collect()
    }

    /// Whether the users of the auth file are the ones that nats-server takes.
    pub fn placement(&self) -> Placement {
        let entries = match &self.entries {
            Ok(entries) => entries,
            Err(err) => return Placement::Unknown(err.clone()),
        };
        let Some(at) = entries.iter().rposition(|it| it.key == AUTH_FILE) else {
            return Placement::NotIncluded;
        };
        let later = entries[at..].iter().find(|it| it.key.eq_ignore_ascii_case("authorization"));
        later.map_or(Placement::InForce, |it| Placement::Overridden { line: it.line })
    }

    /// Users of `authorization` blocks that the include replaces, but for one who may do nothing: that
    /// is the locked user of a main config that is closed by itself.
    pub fn replaced_users(&self) -> Vec<String> {
        let Ok(entries) = &self.entries else { return Vec::new() };
        let name = |user: &Node| {
            let name = ["user", "username", "nkey"].into_iter().find_map(|key| user.at(key))?;
            word(name, entries)
        };
        let locked = |user: &&Node| {
            let nothing = |direction| {
                let denied =
                    resolved(user, entries).at("permissions")?.at(direction)?.at("deny")?;
                denied.items().iter().chain([denied]).any(|it| it.text() == Some(">")).then_some(())
            };
            nothing("publish").and(nothing("subscribe")).is_some()
        };
        let users = self.authorizations().filter_map(|it| it.at("users"));
        let users = users.flat_map(|it| resolved(it, entries).items());
        let listed = users.filter(|it| !locked(it)).filter_map(|it| name(resolved(it, entries)));
        // A block may also hold a single user's name and password.
        self.authorizations().filter_map(name).chain(listed).collect()
    }

    /// Other settings of `authorization` blocks that the include replaces.
    pub fn replaced_settings(&self) -> BTreeSet<String> {
        const MATTER: [&str; 4] = ["auth_callout", "default_permissions", "timeout", "token"];
        let keys = self.authorizations().flat_map(Node::entries).map(|it| it.key.to_lowercase());
        keys.filter(|it| MATTER.contains(&&**it)).collect()
    }

    /// Whether somebody has to log in even if the auth file is empty. A config that is not understood
    /// is given the benefit of the doubt.
    pub fn is_closed_by_itself(&self) -> bool {
        let named = |it: &Node| {
            !it.entries().is_empty()
                && !matches!(it.at("users"), Some(Node::List(users)) if users.is_empty())
        };
        self.entries.is_err()
            || self.authorizations().last().is_some_and(named)
            || !self.account_users().is_empty()
    }

    /// The value of a setting at the top level, if it is set.
    pub fn setting(&self, key: &str) -> Option<String> {
        let entries = self.entries.as_ref().ok()?;
        word(conf::last(entries, key)?, entries)
    }

    /// What a running server took at its start only, and the config says otherwise by now: the name of
    /// the setting, here, and there. Such a difference makes it refuse every reload.
    pub fn not_reloadable(
        &self,
        running: &BTreeMap<&'static str, String>,
    ) -> Vec<(&'static str, String, String)> {
        let port = |keys: &[&str]| {
            let value = keys.iter().find_map(|it| self.setting(it))?;
            let port: u16 = value.rsplit(':').next()?.trim().parse().ok()?;
            // 0 and -1 leave it to the system.
            (port > 0).then(|| port.to_string())
        };
        let set = |key: &str| match key {
            "port" => port(&["port", "listen"]),
            "http_port" => port(&["http", "http_port", "monitor_port"]),
            "system_account" => {
                let set = self.setting("system_account").or_else(|| self.setting("system"));
                Some(set.unwrap_or_else(|| "$SYS".into()))
            }
            _ => self.setting(key),
        };
        let runs = |it: &str| if it.is_empty() { "$SYS".into() } else { it.to_owned() };
        let pairs = running.iter().filter_map(|(key, value)| {
            let here = set(key)?;
            let there = if *key == "system_account" { runs(value) } else { value.clone() };
            (here != there).then_some((*key, here, there))
        });
        if self.entries.is_ok() { pairs.collect() } else { Vec::new() }
    }

    fn authorizations(&self) -> impl Iterator<Item = &Node<'static>> {
        let entries = self.entries.as_deref().unwrap_or_default();
        let blocks = entries.iter().filter(|it| it.key.eq_ignore_ascii_case("authorization"));
        blocks.map(|it| resolved(&it.value, entries))
    }

    /// An `authorization` block that an include of the auth file would replace, silently: the line it
    /// begins on, and who may log in by it. Not one that lets nobody in anyway.
    pub fn occupied(&self) -> Option<(usize, Vec<String>)> {
        let entries = self.entries.as_ref().ok()?;
        let block = entries.iter().find(|it| {
            it.key.eq_ignore_ascii_case("authorization")
                && !is_closed(resolved(&it.value, entries), entries)
        })?;
        let value = resolved(&block.value, entries);
        let listed = ["users", "nkeys"].into_iter().filter_map(|key| value.at(key));
        let listed = listed.flat_map(|it| resolved(it, entries).items());
        let logins = listed.chain([value]).filter_map(|user| {
            ["user", "username", "nkey"].into_iter().find_map(|key| user.at(key))
        });
        let mut names: Vec<String> = logins.filter_map(|it| word(it, entries)).collect();
        names.extend(value.at("token").map(|_| "whoever has the token".into()));
        Some((block.line, names))
    }

    /// The pid file that the server writes, if the config says so with an absolute path: a relative
    /// one begins wherever the server was started.
    pub fn pid_file(&self) -> Option<PathBuf> {
        self.first_of(&["pid_file", "pidfile"]).map(PathBuf::from).filter(|it| it.is_absolute())
    }

    /// The address of the server's monitor, as seen from its machine.
    pub fn monitor_url(&self) -> Option<String> {
        let http = self.first_of(&["http", "http_port", "monitor_port"])?;
        let (host, port) = http.rsplit_once(':').unwrap_or(("", &http));
        // Without a host of its own it listens where clients connect.
        let listen = self.first_of(&["host", "net"]).or_else(|| {
            let listen = self.first_of(&["listen"])?;
            listen.rsplit_once(':').map(|(host, _)| host.to_owned())
        });
        let host = if host.is_empty() { listen.unwrap_or_default() } else { host.to_owned() };
        let host = match host.as_str() {
            "" | "0.0.0.0" | "::" | "[::]" => "127.0.0.1",
            host => host,
        };
        // Port -1 is any that is free.
        port.parse::<u16>().ok().filter(|it| *it > 0).map(|port| format!("http://{host}:{port}"))
    }

    /// Whether nats-server takes leaf nodes of the users in the auth file. A config that is not
    /// understood may make it.
    pub fn takes_leaf_nodes(&self) -> bool {
        let Ok(entries) = &self.entries else { return true };
        let mut blocks = entries
            .iter()
            .filter(|it| ["leaf", "leafnodes"].iter().any(|key| it.key.eq_ignore_ascii_case(key)));
        blocks.next_back().is_some_and(|it| {
            let block = resolved(&it.value, entries).entries();
            let has = |keys: &[&str]| keys.iter().any(|key| conf::last(block, key).is_some());
            // Whoever that lists are all that may.
            has(&["port", "listen"]) && !has(&["authorization"])
        })
    }

    /// Whether any of these keys is set.
    pub fn has(&self, keys: &[&str]) -> bool {
        keys.iter().any(|key| {
            self.entries.as_ref().is_ok_and(|entries| conf::last(entries, key).is_some())
        })
    }

    fn first_of(&self, keys: &[&str]) -> Option<String> {
        let entries = self.entries.as_ref().ok()?;
        keys.iter().find_map(|key| conf::last(entries, key).and_then(|it| word(it, entries)))
    }

    /// When the config, or anything that it includes but for the auth file, was last changed.
    pub fn changed(&self) -> SystemTime {
        self.files.iter().map(|it| it.changed).max().expect("there is the main config itself")
    }

    /// Whether the operator's own metadata would be lost if the auth file had some.
    pub fn has_metadata(&self) -> bool {
        self.entries.as_ref().map_or(true, |it| conf::last(it, "server_metadata").is_some())
    }

    /// The same config with another auth file: names and texts, to be written into one folder.
    ///
    /// `None` if an include is written in a way that we cannot replace.
    pub(super) fn with_auth_file<'a>(&self, text: &'a str) -> Option<Vec<(String, Cow<'a, str>)>> {
        const AUTH: &str = "auth.conf";
        let mut files = vec![(AUTH.to_owned(), Cow::Borrowed(text))];
        for (n, file) in self.files.iter().enumerate() {
            let mut lines: Vec<String> = file.text.split('\n').map(str::to_owned).collect();
            for (line, value, target) in &file.includes {
                let line = &mut lines[line - 1];
                let at = line.rfind(value.as_str())?;
                let name = match target {
                    Target::AuthFile => AUTH.to_owned(),
                    Target::File(n) => format!("{n}.conf"),
                };
                line.replace_range(at..at + value.len(), &name);
            }
            files.push((format!("{n}.conf"), lines.join("\n").into()));
        }
        self.entries.is_ok().then_some(files)
    }
}

/// Reads one file into `files`, and returns its entries with those of included files in place.
fn read(
    path: &Path,
    auth_file: &Path,
    files: &mut Vec<ConfFile>,
    depth: usize,
) -> io::Result<Result<Vec<Entry<'static>>, ConfError>> {
    let text = String::from_utf8_lossy(&fs::read(path)?).into_owned();
    let parsed =
        conf::read(&text).map(|it| it.into_iter().map(Entry::into_owned).collect::<Vec<_>>());
    let n = files.len();
    let changed = fs::metadata(path)?.modified()?;
    files.push(ConfFile { text, changed, includes: Vec::new() });
    let entries = match parsed {
        Ok(_) if depth > MAX_DEPTH => Err(ConfError { line: 1, what: "includes itself" }),
        Ok(entries) => expand(entries, path, auth_file, files, n, depth)?,
        Err(err) => Err(err),
    };
    Ok(entries)
}

/// Puts the entries of included files in the place of each `include`, however deep it stands.
fn expand(
    entries: Vec<Entry<'static>>,
    path: &Path,
    auth_file: &Path,
    files: &mut Vec<ConfFile>,
    n: usize,
    depth: usize,
) -> io::Result<Result<Vec<Entry<'static>>, ConfError>> {
    let mut expanded = Vec::new();
    for mut entry in entries {
        let include = entry.value.text().filter(|_| entry.key.eq_ignore_ascii_case("include"));
        if let Some(value) = include.map(str::to_owned) {
            let included = joined(folder(path), &value);
            let target = if real(&included) == *auth_file {
                expanded.push(Entry { key: AUTH_FILE.into(), ..entry.clone() });
                Target::AuthFile
            } else {
                let target = Target::File(files.len());
                match read(&included, auth_file, files, depth + 1)? {
                    Ok(entries) => expanded.extend(entries),
                    Err(err) => return Ok(Err(err)),
                }
                target
            };
            files[n].includes.push((entry.line, value, target));
            continue;
        }
        if let Node::Map(inner) = entry.value {
            match expand(inner, path, auth_file, files, n, depth)? {
                Ok(inner) => entry.value = Node::Map(inner),
                Err(err) => return Ok(Err(err)),
            }
        }
        expanded.push(entry);
    }
    Ok(Ok(expanded))
}

/// As nats-server joins them: an absolute path too begins at the including file's folder.
fn joined(folder: &Path, value: &str) -> PathBuf {
    let parts = Path::new(value).components();
    folder.join(parts.filter(|it| !matches!(it, Component::RootDir)).collect::<PathBuf>())
}

/// The path without links, of a file that need not be there.
fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| match fs::canonicalize(folder(path)) {
        Ok(folder) => folder.join(path.file_name().unwrap_or_default()),
        Err(_) => path.to_owned(),
    })
}

/// A value, variables looked up where nats-server looks, but for inner maps.
fn resolved<'n, 'a>(node: &'n Node<'a>, entries: &'n [Entry<'a>]) -> &'n Node<'a> {
    let Node::Variable(name) = node else { return node };
    entries.iter().rfind(|it| it.key == *name).map_or(node, |it| &it.value)
}

/// Whether an `authorization` block has nothing but users who may do nothing.
fn is_closed(block: &Node, entries: &[Entry]) -> bool {
    let denied = |user: &Node| {
        ["publish", "subscribe"].into_iter().all(|direction| {
            let rules = user.at("permissions").and_then(|it| it.at(direction));
            rules.and_then(|it| it.at("deny")).and_then(Node::text) == Some(">")
        })
    };
    block.entries().iter().all(|it| {
        it.key.eq_ignore_ascii_case("users")
            && resolved(&it.value, entries).items().iter().all(denied)
    })
}

/// The text of a value.
fn word(node: &Node<'_>, entries: &[Entry<'_>]) -> Option<String> {
    match resolved(node, entries) {
        Node::Variable(name) => std::env::var(&**name).ok(),
        other => other.text().map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{MainConfig, Placement};

    /// The config `main.conf` in a folder with these files.
    fn config(files: &[(&str, &str)]) -> MainConfig {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            super::super::tests::put(&dir.path().join(name), text);
        }
        let at = |name: &str| dir.path().join(name);
        MainConfig::read(&at("main.conf"), &at("auth.conf")).unwrap()
    }

    #[test]
    fn the_include_must_be_the_last_word_on_authorization() {
        let locked = "authorization { users = [ {user: locked, password: x} ] }\n";
        for (text, placement) in [
            (format!("{locked}include \"auth.conf\"\n"), Placement::InForce),
            ("include auth.conf".into(), Placement::InForce),
            ("include './auth.conf'; port: 4222".into(), Placement::InForce),
            (format!("include 'auth.conf'\n{locked}"), Placement::Overridden { line: 2 }),
            ("port: 4222".into(), Placement::NotIncluded),
            ("authorization { include 'auth.conf' }".into(), Placement::NotIncluded),
            ("# include 'auth.conf'".into(), Placement::NotIncluded),
        ] {
            assert_eq!(config(&[("main.conf", &text)]).placement(), placement, "{text}");
        }
        let torn = config(&[("main.conf", "a {")]).placement();
        assert!(matches!(torn, Placement::Unknown(_)), "{torn:?}");
    }

    #[test]
    fn users_of_accounts_are_found_wherever_they_are_written() {
        let config = config(&[
            (
                "main.conf",
                "SYSTEM: sys\nLIST: [{user: listed}]\naccounts { include 'accounts.conf' }\n\
                 include 'auth.conf'",
            ),
            (
                "accounts.conf",
                "SYS: {users: [{user: $SYSTEM, password: x}, {nkey: UABC}]}\nAPP { users = [{username: app}] }\nB {users: $LIST}",
            ),
        ]);
        assert_eq!(Vec::from_iter(config.account_users()), ["UABC", "app", "listed", "sys"]);
        let files = config.with_auth_file("new").unwrap();
        let text = |name: &str| &files.iter().find(|(it, _)| it == name).unwrap().1;
        assert_eq!(
            text("0.conf"),
            "SYSTEM: sys\nLIST: [{user: listed}]\naccounts { include '1.conf' }\ninclude 'auth.conf'"
        );
        assert_eq!(text("auth.conf"), "new");
    }

    #[test]
    fn a_config_that_includes_itself_does_not_hang() {
        let config = config(&[("main.conf", "include 'main.conf'")]);
        assert!(matches!(config.placement(), Placement::Unknown(_)));
        assert!(MainConfig::read(Path::new("/nowhere/main.conf"), Path::new("auth.conf")).is_err());
    }
}
