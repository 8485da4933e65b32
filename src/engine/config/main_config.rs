mod limits;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::{Component, Path, PathBuf},
    time::SystemTime,
};

use fs_err as fs;

pub use self::limits::{Apart, Conflict};
use crate::{
    auth::{
        Policy,
        conf::{self, ConfError, Entry, Node, folded},
    },
    state::folder,
};

/// The operator's main config: read, never written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MainConfig {
    /// The main config, then what it includes, but for the auth file.
    files: Vec<ConfFile>,
    /// All settings of the top level, those of included files in their place; or why they cannot be
    /// told.
    top: Result<Vec<Setting>, NotUnderstood>,
    unresolved: Vec<Unresolved>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct ConfFile {
    text: String,
    changed: SystemTime,
    /// Where the path of each `include` begins, how long it is, and what it points to.
    includes: Vec<(usize, usize, Target)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    AuthFile,
    /// A place in [`MainConfig::files`].
    File(usize),
}

/// A key of the top level, or of a map that is being read. Variables in its value are looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Setting {
    key: String,
    value: Node<'static>,
    place: Place,
    /// Whether it is what the auth file has.
    ours: bool,
}

/// Where something stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} of {}", self.line, self.file.display())
    }
}

/// A text that this reader does not understand; nats-server may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotUnderstood {
    /// The main config, or a file that it includes.
    pub file: PathBuf,
    /// Where in it, and why.
    pub why: ConfError,
}

/// A variable that neither the config nor our environment has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unresolved {
    /// Without the `$`.
    pub name: String,
    /// The setting that it is the value of, or part of it.
    pub place: Place,
}

impl Unresolved {
    /// How to fix it.
    pub const HINT: &str = "set it for both: the variable that nats-server's service has (`Environment=` or \
        `EnvironmentFile=`, say) has to be in pb-nats's environment too; or define it in the config, above \
        its use";
}

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`${}` ({}) is neither in the main config nor in pb-nats's environment: nats-server takes it \
             from its own and does not start without it, and without it pb-nats can neither judge the \
             config beforehand (`nats-server -t`) nor compare its digest",
            self.name, self.place
        )
    }
}

/// A setting that makes somebody of whoever connects without a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoAuthUser {
    /// The block that it is in. `None`: the top level.
    pub block: Option<String>,
    /// The user that it names, without whom nats-server neither loads the config nor starts.
    pub user: String,
    /// Where it stands.
    pub place: Place,
}

/// In words, with the place.
impl fmt::Display for NoAuthUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`no_auth_user`")?;
        if let Some(block) = &self.block {
            write!(f, " of `{block}`")?;
        }
        write!(f, ", {}", self.place)
    }
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
        /// Where that block begins.
        place: Place,
    },
    /// A block whose key differs from `authorization` in letter case only is another key to
    /// nats-server, which takes the users of both, or what else they have of the one or the other.
    Beside {
        /// The key as it is written.
        key: String,
        /// Where that block begins.
        place: Place,
    },
    /// This reader does not understand the main config; nats-server may.
    Unknown(NotUnderstood),
}

impl Placement {
    /// How to fix it.
    pub fn hint(&self) -> &'static str {
        match self {
            Placement::NotIncluded => {
                "put `include \"auth.conf\"`, with the auth file's path as seen from the main config's \
                 folder, on a line of its own at its top level, behind any `authorization` block; \
                 `pb-nats init --nats-config FILE` does so"
            }
            Placement::InForce | Placement::Overridden { .. } => {
                "put `include \"auth.conf\"`, with the auth file's path as seen from the main config's \
                 folder, on a line of its own at its top level, behind any `authorization` block"
            }
            Placement::Beside { .. } => {
                "take that block out; or spell it `authorization` and put it in front of the include, \
                 which then replaces it"
            }
            Placement::Unknown(_) => {
                "write that line in another way; if nats-server understands it as it is \
                 (`nats-server -t`), please report this"
            }
        }
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Placement::InForce => f.write_str("the main config includes the auth file"),
            Placement::NotIncluded => {
                f.write_str("the main config does not include the auth file at its top level")
            }
            Placement::Overridden { place } => write!(
                f,
                "an `authorization` block ({place}) stands behind the include of the auth file and \
                 replaces it"
            ),
            Placement::Beside { key, place } => write!(
                f,
                "nats-server takes `{}` ({place}) for another key than the auth file's `authorization`, \
                 and honours both: its users get in too",
                key.escape_debug()
            ),
            Placement::Unknown(NotUnderstood { file, why }) => write!(
                f,
                "the main config is not understood, so nobody knows whether nats-server takes its users \
                 from the auth file ({}, {why})",
                file.display()
            ),
        }
    }
}

/// Why nats-server does not take its users from the auth file, if it is known not to.
pub(super) fn misplaced(main_config: Option<&MainConfig>) -> Option<Placement> {
    match main_config?.placement() {
        // Where nobody knows, servers are not said to be in step.
        Placement::InForce | Placement::Unknown(_) => None,
        misplaced @ (Placement::NotIncluded
        | Placement::Overridden { .. }
        | Placement::Beside { .. }) => Some(misplaced),
    }
}

/// More includes in one another than this are a loop.
const MAX_DEPTH: usize = 16;
const AUTHORIZATION: &str = "authorization";

impl MainConfig {
    /// The name of the first of [`with_auth_file`](Self::with_auth_file)'s files.
    pub(crate) const FIRST: &str = "main-0.conf";

    /// Reads the config and all that it includes, but for the auth file.
    pub fn read(path: &Path, auth_file: &Path) -> io::Result<MainConfig> {
        let mut reading = Reading {
            auth_file: real(auth_file),
            files: Vec::new(),
            unresolved: Vec::new(),
            environment: Vec::new(),
        };
        let top = match reading.file(path, 0) {
            Ok(top) => Ok(top),
            Err(Stop::NotUnderstood(why)) => Err(why),
            Err(Stop::Io(error)) => return Err(error),
        };
        let Reading { files, unresolved, .. } = reading;
        Ok(MainConfig { files, top, unresolved })
    }

    /// All settings that count, with variables looked up, but for those of the auth file.
    pub fn settings(&self) -> Result<Vec<(&str, &Node<'static>)>, &NotUnderstood> {
        self.top.as_ref().map(|_| self.effective().map(|it| (&*it.key, &it.value)).collect())
    }

    /// Adds to the settings what the main config says about records.
    pub fn rule(&self, policy: &mut Policy) {
        policy.needed = self.needed_names();
        policy.reserved.extend(self.account_users());
    }

    /// Names that the auth file must have, since nats-server does not start without them. `None`: not
    /// known.
    pub(super) fn needed_names(&self) -> Option<BTreeSet<String>> {
        let theirs = self.account_users();
        let needed = self.no_auth_users().into_iter().map(|it| it.user);
        self.top.is_ok().then(|| needed.filter(|it| !theirs.contains(it)).collect())
    }

    /// The names and nkeys of users in `accounts`, which no user in `authorization` may have.
    pub fn account_users(&self) -> BTreeSet<String> {
        let accounts = self.values(&["accounts"]).into_iter().flat_map(Node::entries);
        let users = accounts.flat_map(|it| all(&it.value, &["users", "nkeys"]));
        users.flat_map(Node::items).flat_map(logins).collect()
    }

    /// Where whoever connects without a name is made a user, and which.
    pub fn no_auth_users(&self) -> Vec<NoAuthUser> {
        const KEY: &str = "no_auth_user";
        let mut found = Vec::new();
        for Setting { key, value, place, .. } in self.effective() {
            let mut add = |block, value: &Node<'_>, line| {
                let user = value.text().filter(|it| !it.is_empty()).map(str::to_owned);
                let place = Place { line, ..place.clone() };
                found.extend(user.map(|user| NoAuthUser { block, user, place }));
            };
            match &*folded(key) {
                KEY => add(None, value, place.line),
                "websocket" | "ws" | "mqtt" => {
                    for it in value.entries().iter().filter(|it| folded(&it.key) == KEY) {
                        add(Some(key.clone()), &it.value, it.line);
                    }
                }
                _ => (),
            }
        }
        found
    }

    /// Variables that nats-server has to have in its environment, and we have not in ours.
    pub fn unresolved(&self) -> &[Unresolved] {
        &self.unresolved
    }

    /// Whether the users of the auth file are the ones that nats-server takes.
    pub fn placement(&self) -> Placement {
        let top = match &self.top {
            Ok(top) => top,
            Err(why) => return Placement::Unknown(why.clone()),
        };
        let Some(at) = top.iter().rposition(|it| it.ours) else {
            return Placement::NotIncluded;
        };
        if let Some(later) = top[at..].iter().find(|it| !it.ours && it.key == AUTHORIZATION) {
            return Placement::Overridden { place: later.place.clone() };
        }
        match self.authorizations().find(|it| it.key != AUTHORIZATION) {
            Some(Setting { key, place, .. }) => {
                Placement::Beside { key: key.clone(), place: place.clone() }
            }
            None => Placement::InForce,
        }
    }

    /// Users of `authorization` blocks that the include replaces, but for one who may do nothing: that
    /// is the locked user of a main config that is closed by itself.
    pub fn replaced_users(&self) -> Vec<String> {
        // A block may also hold a single user's name and password.
        let single = self.authorizations().flat_map(|it| logins(&it.value));
        let listed = self.authorizations().flat_map(|it| all(&it.value, &["users"]));
        let listed = listed.flat_map(Node::items).filter(|it| !is_locked(it)).flat_map(logins);
        single.chain(listed).collect()
    }

    /// Other settings of `authorization` blocks that the include replaces.
    pub fn replaced_settings(&self) -> BTreeSet<&'static str> {
        let keys = self.authorizations().flat_map(|it| it.value.entries());
        let known = keys.filter_map(|it| match &*folded(&it.key) {
            "auth_callout" | "auth_hook" => Some("auth_callout"),
            "default_permission" | "default_permissions" | "permissions" => {
                Some("default_permissions")
            }
            "timeout" => Some("timeout"),
            "token" => Some("token"),
            _ => None,
        });
        known.collect()
    }

    /// Whether somebody has to log in even if the auth file is empty. A config that is not understood
    /// is given the benefit of the doubt.
    pub fn is_closed_by_itself(&self) -> bool {
        let named = |it: &Node<'_>| {
            !it.entries().is_empty() && !all(it, &["users"]).iter().any(|it| it.items().is_empty())
        };
        self.top.is_err()
            || self.authorizations().last().is_some_and(|it| named(&it.value))
            || !self.account_users().is_empty()
    }

    /// The value of a setting at the top level, if it is set, and to one value only.
    pub fn setting(&self, key: &str) -> Option<String> {
        self.one_of(&[key])
    }

    /// What a running server took at its start only, and the config says otherwise by now: the name of
    /// the setting, here, and there. Such a difference makes it refuse every reload.
    pub fn not_reloadable(
        &self,
        running: &BTreeMap<&'static str, String>,
    ) -> Vec<(&'static str, String, String)> {
        let port = |keys: &[&str]| {
            let value = self.one_of(keys)?;
            let port: u16 = value.rsplit(':').next()?.trim().parse().ok()?;
            // 0 and -1 leave it to the system.
            (port > 0).then(|| port.to_string())
        };
        let set = |key: &str| match key {
            "port" => port(&["port", "listen"]),
            "http_port" => port(&["http", "http_port", "monitor_port"]),
            "system_account" => {
                let keys = ["system_account", "system"];
                self.one_of(&keys).or_else(|| (!self.has(&keys)).then(|| "$SYS".into()))
            }
            _ => self.setting(key),
        };
        let runs = |it: &str| if it.is_empty() { "$SYS".into() } else { it.to_owned() };
        let pairs = running.iter().filter_map(|(key, value)| {
            let here = set(key)?;
            let there = if *key == "system_account" { runs(value) } else { value.clone() };
            (here != there).then_some((*key, here, there))
        });
        if self.top.is_ok() { pairs.collect() } else { Vec::new() }
    }

    /// An `authorization` block that an include of the auth file would replace, silently: the line it
    /// begins on, and who may log in by it. Not one that lets nobody in anyway.
    pub fn occupied(&self) -> Option<(usize, Vec<String>)> {
        let block = self.authorizations().find(|it| !is_closed(&it.value))?;
        let listed = all(&block.value, &["users", "nkeys"]).into_iter().flat_map(Node::items);
        let mut names: Vec<String> = listed.chain([&block.value]).flat_map(logins).collect();
        let token = !all(&block.value, &["token"]).is_empty();
        names.extend(token.then(|| "whoever has the token".into()));
        Some((block.place.line, names))
    }

    /// The pid file that the server writes, if the config says so with an absolute path: a relative
    /// one begins wherever the server was started.
    pub fn pid_file(&self) -> Option<PathBuf> {
        self.one_of(&["pid_file", "pidfile"]).map(PathBuf::from).filter(|it| it.is_absolute())
    }

    /// The address of the server's monitor, as seen from its machine.
    pub fn monitor_url(&self) -> Option<String> {
        let http = self.one_of(&["http", "http_port", "monitor_port"])?;
        let (host, port) = http.rsplit_once(':').unwrap_or(("", &http));
        // Without a host of its own it listens where clients connect.
        let listen = self.one_of(&["host", "net"]).or_else(|| {
            let listen = self.one_of(&["listen"])?;
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
        self.top.is_err()
            || self.values(&["leaf", "leafnodes"]).into_iter().any(|block| {
                let has = |keys: &[&str]| !all(block, keys).is_empty();
                // Whoever that lists are all that may.
                has(&["port", "listen"]) && !has(&["authorization"])
            })
    }

    /// Whether any of these keys is set.
    pub fn has(&self, keys: &[&str]) -> bool {
        !self.values(keys).is_empty()
    }

    /// When the config, or anything that it includes but for the auth file, was last changed.
    pub fn changed(&self) -> SystemTime {
        self.files.iter().map(|it| it.changed).max().expect("there is the main config itself")
    }

    /// Whether the operator's own metadata would be lost if the auth file had some.
    pub fn has_metadata(&self) -> bool {
        self.top.is_err() || self.has(&["server_metadata"])
    }

    /// The same config with another auth file: names and texts, to be written into one folder.
    ///
    /// `None` if the config is not understood.
    pub(crate) fn with_auth_file<'a>(&self, text: &'a str) -> Option<Vec<(String, Cow<'a, str>)>> {
        const AUTH: &str = "auth.conf";
        // A path without quotes may not begin with a digit.
        let named = |n: usize| format!("main-{n}.conf");
        let mut files = vec![(AUTH.to_owned(), Cow::Borrowed(text))];
        for (n, file) in self.files.iter().enumerate() {
            let mut text = file.text.clone();
            for (at, length, target) in file.includes.iter().rev() {
                let name = match target {
                    Target::AuthFile => AUTH.to_owned(),
                    Target::File(n) => named(*n),
                };
                text.replace_range(*at..at + length, &name);
            }
            files.push((named(n), text.into()));
        }
        self.top.is_ok().then_some(files)
    }

    /// The settings that count: of those with the very same key the last. The same in another letter
    /// case is another key, and nats-server honours both, in any order.
    fn effective(&self) -> impl Iterator<Item = &Setting> {
        let top = self.top.as_deref().unwrap_or_default();
        let last = |n: usize, key: &str| !top[n + 1..].iter().any(|it| it.key == key);
        let last = top.iter().enumerate().filter(move |(n, it)| last(*n, &it.key));
        last.map(|(_, it)| it).filter(|it| !it.ours)
    }

    /// The values of all settings that nats-server takes for one of these.
    fn values(&self, keys: &[&str]) -> Vec<&Node<'static>> {
        self.effective()
            .filter(|it| keys.contains(&&*folded(&it.key)))
            .map(|it| &it.value)
            .collect()
    }

    /// What these are set to, which mean the same. `None` if they are not set, or to several values: it
    /// is left to chance then, which nats-server takes.
    fn one_of(&self, keys: &[&str]) -> Option<String> {
        let values = self.values(keys);
        let (first, others) = values.split_first()?;
        let same = others.iter().all(|it| it.text() == first.text());
        first.text().filter(|_| same).map(str::to_owned)
    }

    /// All `authorization` blocks but the auth file's, those that are replaced included.
    fn authorizations(&self) -> impl Iterator<Item = &Setting> {
        let top = self.top.as_deref().unwrap_or_default();
        top.iter().filter(|it| !it.ours && folded(&it.key) == AUTHORIZATION)
    }
}

/// A main config while it is read.
struct Reading {
    auth_file: PathBuf,
    files: Vec<ConfFile>,
    unresolved: Vec<Unresolved>,
    /// The variables of the environment whose value is being read.
    environment: Vec<String>,
}

/// Why it cannot be read any further.
enum Stop {
    Io(io::Error),
    NotUnderstood(NotUnderstood),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Stop {
        Stop::Io(error)
    }
}

/// A file that is being read.
struct Source<'s> {
    /// Its place in [`Reading::files`].
    n: usize,
    path: &'s Path,
    text: &'s str,
    depth: usize,
}

/// The maps around what is read, the innermost last. A variable is looked up in them, as far as they
/// were read.
type Scopes = Vec<Vec<Setting>>;

impl Reading {
    /// The settings of a file, which knows no variables of the one that includes it.
    fn file(&mut self, path: &Path, depth: usize) -> Result<Vec<Setting>, Stop> {
        let text = String::from_utf8_lossy(&fs::read(path)?).into_owned();
        let changed = fs::metadata(path)?.modified()?;
        let not_understood =
            |why| Stop::NotUnderstood(NotUnderstood { file: path.to_owned(), why });
        if depth > MAX_DEPTH {
            return Err(not_understood(ConfError { line: 1, what: "includes itself" }));
        }
        let n = self.files.len();
        self.files.push(ConfFile { text: String::new(), changed, includes: Vec::new() });
        let read = conf::read(&text).map_err(not_understood);
        let mut scopes = vec![Vec::new()];
        let read = read.and_then(|entries| {
            self.entries(entries, &Source { n, path, text: &text, depth }, &mut scopes)
        });
        self.files[n].text = text;
        read?;
        Ok(scopes.pop().unwrap_or_default())
    }

    /// Adds entries to the innermost map, those of included files in the place of each `include`.
    fn entries(
        &mut self,
        entries: Vec<Entry<'_>>,
        source: &Source<'_>,
        scopes: &mut Scopes,
    ) -> Result<(), Stop> {
        for Entry { key, value, line } in entries {
            let place = Place { file: source.path.to_owned(), line };
            let settings = match value {
                Node::Include(path) => self.included(&path, place, source)?,
                value => {
                    let value = self.value(value, &place, source, scopes)?;
                    vec![Setting { key: key.into_owned(), value, place, ours: false }]
                }
            };
            scopes.last_mut().expect("there is the top level").extend(settings);
        }
        Ok(())
    }

    fn included(
        &mut self,
        value: &str,
        place: Place,
        source: &Source<'_>,
    ) -> Result<Vec<Setting>, Stop> {
        if !self.environment.is_empty() {
            let why = ConfError { line: place.line, what: "expected no `include` in a variable" };
            return Err(Stop::NotUnderstood(NotUnderstood { file: place.file, why }));
        }
        let path = joined(folder(source.path), value);
        let ours = real(&path) == self.auth_file;
        let target = if ours { Target::AuthFile } else { Target::File(self.files.len()) };
        // A path has no escapes, so it is part of the text.
        let at = value.as_ptr() as usize - source.text.as_ptr() as usize;
        self.files[source.n].includes.push((at, value.len(), target));
        if !ours {
            return self.file(&path, source.depth + 1);
        }
        let value = Node::Map(Vec::new());
        Ok(vec![Setting { key: AUTHORIZATION.into(), value, place, ours }])
    }

    fn value(
        &mut self,
        value: Node<'_>,
        place: &Place,
        source: &Source<'_>,
        scopes: &mut Scopes,
    ) -> Result<Node<'static>, Stop> {
        Ok(match value {
            Node::Map(entries) => {
                scopes.push(Vec::new());
                self.entries(entries, source, scopes)?;
                Node::Map(unique(scopes.pop().unwrap_or_default()))
            }
            Node::List(items) => {
                let items = items.into_iter().map(|it| self.value(it, place, source, scopes));
                Node::List(items.collect::<Result<_, _>>()?)
            }
            Node::Variable(name) => {
                let here = scopes.iter().rev().find_map(|it| it.iter().rfind(|it| it.key == name));
                match here {
                    Some(it) => it.value.clone(),
                    None => self.variable(name.into_owned(), place, source),
                }
            }
            value @ (Node::Text(_) | Node::Word(_) | Node::Include(_)) => value.into_owned(),
        })
    }

    /// What the environment says, read as the value of a setting. A variable that it has not stays one.
    fn variable(&mut self, name: String, place: &Place, source: &Source<'_>) -> Node<'static> {
        let text = std::env::var(&name).ok().filter(|_| !self.environment.contains(&name));
        let text = text.map(|it| format!("value={it}"));
        let read = text.as_deref().and_then(|text| {
            let entries = conf::read(text).ok()?;
            self.environment.push(name.clone());
            let mut scopes = vec![Vec::new()];
            let read = self.entries(entries, &Source { text, ..*source }, &mut scopes);
            self.environment.pop();
            read.ok()?;
            scopes.pop()?.into_iter().rfind(|it| it.key == "value")
        });
        if let Some(it) = read {
            return it.value;
        }
        self.unresolved.push(Unresolved { name: name.clone(), place: place.clone() });
        Node::Variable(name.into())
    }
}

/// The entries of a map: of those with the very same key the last.
fn unique(settings: Vec<Setting>) -> Vec<Entry<'static>> {
    let mut entries: Vec<Entry<'static>> = Vec::new();
    for Setting { key, value, place, .. } in settings {
        let entry = Entry { key: key.into(), value, line: place.line };
        match entries.iter_mut().find(|it| it.key == entry.key) {
            Some(former) => *former = entry,
            None => entries.push(entry),
        }
    }
    entries
}

/// As nats-server joins them: an absolute path too begins at the including file's folder, and `..`
/// takes a name away, whatever that leads to.
fn joined(folder: &Path, value: &str) -> PathBuf {
    let value = Path::new(value).components().filter(|it| !matches!(it, Component::RootDir));
    let mut joined = PathBuf::new();
    for part in folder.components().chain(value) {
        match (part, joined.components().next_back()) {
            (Component::ParentDir, Some(Component::Normal(_))) => drop(joined.pop()),
            (Component::CurDir, _) | (Component::ParentDir, Some(Component::RootDir)) => (),
            _ => joined.push(part),
        }
    }
    joined
}

/// The path without links, of a file that need not be there.
fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| match fs::canonicalize(folder(path)) {
        Ok(folder) => folder.join(path.file_name().unwrap_or_default()),
        Err(_) => path.to_owned(),
    })
}

/// The values of all entries of a map that nats-server takes for one of these.
fn all<'n, 'a>(map: &'n Node<'a>, keys: &[&str]) -> Vec<&'n Node<'a>> {
    let entries = map.entries().iter().filter(|it| keys.contains(&&*folded(&it.key)));
    entries.map(|it| &it.value).collect()
}

/// What a user logs in with, or by any letter case might.
fn logins(user: &Node<'_>) -> Vec<String> {
    let names = all(user, &["user", "username", "nkey"]);
    names.into_iter().filter_map(Node::text).map(str::to_owned).collect()
}

/// Whether a user may do nothing, whichever of its keys nats-server takes.
fn is_locked(user: &Node<'_>) -> bool {
    let everything =
        |it: &&Node<'_>| it.items().iter().chain([*it]).any(|it| it.text() == Some(">"));
    let permissions = all(user, &["permission", "permissions", "authorization"]);
    let denied = |keys: &[&str]| {
        let rules = permissions.iter().map(|it| all(it, keys));
        rules.into_iter().all(|it| match it[..] {
            [rules] => matches!(all(rules, &["deny"])[..], [ref it] if everything(it)),
            _ => false,
        })
    };
    permissions.len() == 1
        && denied(&["publish", "pub", "import"])
        && denied(&["subscribe", "sub", "export"])
}

/// Whether an `authorization` block has nothing but users who may do nothing.
fn is_closed(block: &Node<'_>) -> bool {
    let closed =
        |it: &Entry<'_>| folded(&it.key) == "users" && it.value.items().iter().all(is_locked);
    block.entries().iter().all(closed)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{MainConfig, Placement};

    /// The config `main.conf` in a folder with these files.
    pub(super) fn config(files: &[(&str, &str)]) -> MainConfig {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            crate::state::tests::put(&dir.path().join(name), text);
        }
        let at = |name: &str| dir.path().join(name);
        MainConfig::read(&at("main.conf"), &at("auth.conf")).unwrap()
    }

    /// What becomes of the auth file, in a word, and where.
    fn placed(files: &[(&str, &str)]) -> String {
        match config(files).placement() {
            Placement::InForce => "in force".into(),
            Placement::NotIncluded => "not included".into(),
            Placement::Overridden { place } => {
                format!("overridden, {} {}", place.file.file_name().unwrap().display(), place.line)
            }
            Placement::Beside { key, place } => format!("beside {key}, {}", place.line),
            Placement::Unknown(why) => {
                format!("unknown, {} {}", why.file.file_name().unwrap().display(), why.why.line)
            }
        }
    }

    #[test]
    fn the_include_must_be_the_last_word_on_authorization() {
        let locked = "authorization { users = [ {user: locked, password: x} ] }\n";
        for (text, placement) in [
            (format!("{locked}include \"auth.conf\"\n"), "in force"),
            ("include auth.conf".into(), "in force"),
            ("include './auth.conf'; port: 4222".into(), "in force"),
            ("INCLUDE x/../auth.conf".into(), "in force"),
            ("include '/auth.conf'".into(), "in force"),
            (format!("include 'auth.conf'\n{locked}"), "overridden, main.conf 2"),
            ("include 'auth.conf'\n\"authorization\" = $NOWHERE".into(), "overridden, main.conf 2"),
            ("{ include 'auth.conf'\n}\n{ authorization {} }".into(), "overridden, main.conf 3"),
            ("a: (\n include 'auth.conf'\n)\n".into(), "not included"),
            ("port: 4222".into(), "not included"),
            ("authorization { include 'auth.conf' }".into(), "not included"),
            ("# include 'auth.conf'".into(), "not included"),
            ("include: 'auth.conf'".into(), "not included"),
            ("'include' 'auth.conf'".into(), "not included"),
            ("authorization{ a: 1 }\ninclude 'auth.conf'".into(), "unknown, main.conf 1"),
            ("a {".into(), "unknown, main.conf 1"),
            ("x: 1\n}\0include 'auth.conf'".into(), "unknown, main.conf 2"),
        ] {
            assert_eq!(placed(&[("main.conf", &text)]), placement, "{text}");
        }
    }

    #[test]
    fn the_include_is_judged_with_all_that_is_included() {
        let main = |text| ("main.conf", text);
        for (files, placement) in [
            (vec![main("include a.conf"), ("a.conf", "include auth.conf")], "in force"),
            (
                vec![main("include a.conf"), ("a.conf", "include auth.conf\nauthorization {}")],
                "overridden, a.conf 2",
            ),
            (
                vec![main("include auth.conf\ninclude a.conf"), ("a.conf", "\n\nauthorization {}")],
                "overridden, a.conf 3",
            ),
            (
                vec![main("include a.conf\ninclude auth.conf"), ("a.conf", "authorization {}")],
                "in force",
            ),
            (
                vec![
                    main("include auth.conf\nx { include a.conf }"),
                    ("a.conf", "authorization {}"),
                ],
                "in force",
            ),
            (
                vec![main("include auth.conf\ninclude a.conf"), ("a.conf", "b: 1\nc {")],
                "unknown, a.conf 2",
            ),
            (vec![main("include 'main.conf'")], "unknown, main.conf 1"),
        ] {
            assert_eq!(placed(&files), placement, "{files:?}");
        }
        assert!(MainConfig::read(Path::new("/nowhere/main.conf"), Path::new("auth.conf")).is_err());
    }

    /// nats-server folds the case of keys when it looks what they are, not when it looks which are one.
    #[test]
    fn a_key_in_another_letter_case_is_another_key() {
        for key in ["Authorization", "AUTHORIZATION", "author\u{130}zation"] {
            let block = format!("'{key}' {{}}");
            let (before, behind) =
                (format!("{block}\ninclude auth.conf"), format!("include auth.conf\n{block}"));
            assert_eq!(placed(&[("main.conf", &before)]), format!("beside {key}, 1"));
            assert_eq!(placed(&[("main.conf", &behind)]), format!("beside {key}, 2"));
        }
        let of = |text: &str| config(&[("main.conf", text)]);
        let users = of("accounts {A {users: [{user: a}]}}\nAccounts {b {Users: [{USER: b}]}}");
        assert_eq!(Vec::from_iter(users.account_users()), ["a", "b"]);
        let users = of("accounts {A {users: [{user: a}]}}\naccounts {B {users: [{user: b}]}}");
        assert_eq!(Vec::from_iter(users.account_users()), ["b"], "the former is replaced");

        // Which of two values counts is left to chance.
        assert_eq!(of("PID_FILE: /a").pid_file(), Some("/a".into()));
        assert_eq!(of("pid_file: /a\npidfile: /a").pid_file(), Some("/a".into()));
        assert_eq!(of("pid_file: /a\npid_file: /b").pid_file(), Some("/b".into()));
        assert_eq!(of("pid_file: /a\nPID_FILE: /b").pid_file(), None);
        assert_eq!(of("HTTP: '1.2.3.4:5'").monitor_url().as_deref(), Some("http://1.2.3.4:5"));
        assert_eq!(of("Monitor_Port: 80\nNET: h").monitor_url().as_deref(), Some("http://h:80"));
        assert_eq!(of("http: 80\nhttp_port: 81").monitor_url(), None);
        assert!(of("Server_Metadata {}").has_metadata() && !of("").has_metadata());
        let running = |key, there: &str| [(key, there.to_owned())].into();
        for text in ["System_Account: B", "system: B", "system_account: B\nSYSTEM: B"] {
            let differing = of(text).not_reloadable(&running("system_account", "A"));
            assert_eq!(differing, [("system_account", "B".into(), "A".into())], "{text}");
        }
        assert_eq!(of("system: B\nSYSTEM: C").not_reloadable(&running("system_account", "A")), []);
        assert_eq!(
            of("Port: 1").not_reloadable(&running("port", "2")),
            [("port", "1".into(), "2".into())]
        );

        let users = "no_auth_user: a\nNo_Auth_User: b\nWS {no_auth_user: c}\nMqtt {NO_AUTH_USER: d}\n\
                     leafnodes {no_auth_user: e}";
        let users = of(users).no_auth_users();
        let users: Vec<_> = users.iter().map(|it| (it.block.as_deref(), &*it.user)).collect();
        assert_eq!(users, [(None, "a"), (None, "b"), (Some("WS"), "c"), (Some("Mqtt"), "d")]);
    }

    #[test]
    fn only_a_user_who_is_denied_everything_by_every_key_is_locked() {
        let lost = |user: &str| {
            let text = format!("authorization {{ Users: [ {user} ] }}");
            config(&[("main.conf", &text)]).replaced_users()
        };
        let deny = "{publish: {deny: '>'}, Subscribe {Deny: ['a', '>']}}";
        assert!(lost(&format!("{{user: a, Permissions: {deny}}}")).is_empty());
        assert_eq!(lost(&format!("{{User: a, permissions: {deny}, PERMISSIONS {{}}}}")), ["a"]);
        assert_eq!(lost(&format!("{{username: a, permissions: {deny}, permission {{}}}}")), ["a"]);
        assert_eq!(
            lost("{user: a, permissions {publish {deny: '>'}, PUB: a, sub {deny: '>'}}}"),
            ["a"]
        );
        assert_eq!(lost("{user: a, permissions {publish {deny: '>'}}}"), ["a"]);
        let settings =
            config(&[("main.conf", "AUTHORIZATION {Auth_Hook {}, permissions {}, Token: x}")]);
        let names = Vec::from_iter(settings.replaced_settings());
        assert_eq!(names, ["auth_callout", "default_permissions", "token"]);
        assert!(!config(&[("main.conf", "authorization {Users: []}")]).is_closed_by_itself());
    }

    #[test]
    fn users_of_accounts_are_found_wherever_they_are_written() {
        let config = config(&[
            (
                "main.conf",
                "SYSTEM: sys\nLIST: [{user: listed}]\naccounts { include accounts.conf }\n\
                 include 'auth.conf' # auth.conf\n",
            ),
            (
                "accounts.conf",
                "SYSTEM: inner\nSYS: {users: [{user: $SYSTEM, password: x}, {nkey: UABC}]}\n\
                 APP { users = [{include app.conf}] }\nB {users: $LIST}",
            ),
            ("app.conf", "username: app"),
        ]);
        // A file knows no variables of the one that includes it.
        assert_eq!(Vec::from_iter(config.account_users()), ["UABC", "app", "inner"]);
        let unresolved: Vec<_> =
            config.unresolved().iter().map(|it| (&*it.name, it.place.line)).collect();
        assert_eq!(unresolved, [("LIST", 4)]);
        let files = config.with_auth_file("new").unwrap();
        let text = |name: &str| &files.iter().find(|(it, _)| it == name).unwrap().1;
        assert_eq!(
            text("main-0.conf"),
            "SYSTEM: sys\nLIST: [{user: listed}]\naccounts { include main-1.conf }\n\
             include 'auth.conf' # auth.conf\n"
        );
        assert!(text("main-1.conf").contains("{include main-2.conf}"), "{files:?}");
        assert_eq!(text("auth.conf"), "new");
    }
}
