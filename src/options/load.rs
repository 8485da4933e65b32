//! From the settings file and the environment to [`Options`].
//!
//! Each value is read alone: so a mistake has a place, and the environment can replace a value
//! before anyone judges it. No message repeats a value that might be a secret; that is why toml's
//! own errors, which quote the line, are never shown.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fmt,
    io::{self, Read},
    ops::Range,
    path::{self, Path, PathBuf},
    process::Command,
};

use serde::Deserialize;
use toml::{
    Spanned,
    de::{DeTable, DeValue, Deserializer},
};

use super::{
    Options,
    settings::{SETTINGS, Setting},
};

const FILES: [&str; 2] = ["pb-nats.toml", "/etc/pb-nats/pb-nats.toml"];
/// What the names of our variables begin with.
const VARIABLES: &str = "PB_NATS_";
const LARGEST_FILE: u64 = 1024 * 1024;

/// The settings cannot be used. Nothing was started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// There is neither a settings file nor a setting in the environment.
    #[error("there are no settings: no {}, and nothing in the environment", listed(.looked))]
    Missing {
        /// Where a file was looked for.
        looked: Vec<PathBuf>,
    },
    /// The settings file cannot be read.
    #[error("the settings cannot be read")]
    Unreadable(#[source] io::Error),
    /// The settings file is not TOML, or a variable is not text.
    #[error("{place}: {problem}")]
    Syntax {
        /// Where.
        place: Place,
        /// What the parser says.
        problem: String,
    },
    /// There is no such section, key or variable.
    #[error("{place}: unknown {key}")]
    Unknown {
        /// Where.
        place: Place,
        /// What was found.
        key: String,
        /// What may have been meant.
        hint: String,
    },
    /// A value is of the wrong kind or senseless, or settings contradict each other.
    #[error("{place}: {problem}")]
    Wrong {
        /// Where.
        place: Place,
        /// The setting at fault, such as `sync.max_wait`.
        setting: String,
        /// What is wrong with it.
        problem: String,
        /// The way to mend it.
        hint: String,
    },
}

/// Where a setting was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// A file, an environment variable, or the options themselves if they were built in code.
    pub source: String,
    /// Line and column in the file, counted from 1.
    pub position: Option<(usize, usize)>,
}

/// A setting with its value, not yet judged.
#[derive(Debug)]
struct Given<'t> {
    setting: &'static Setting,
    value: Spanned<DeValue<'t>>,
    place: Place,
}

impl Options {
    /// Reads `file`, or without one `./pb-nats.toml`, or else `/etc/pb-nats/pb-nats.toml`, and then
    /// what the environment says over it.
    ///
    /// Without any file the environment alone may do. The result has been [checked](Self::check).
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Options, OptionsError> {
        let mut environment: Vec<_> = environment.into_iter().collect();
        // It has no order of its own, and the first mistake is the one that is told.
        environment.sort();
        let environment = from_environment(&environment)?;
        let found = match file {
            Some(file) => Some((file, read(file)?)),
            None => first_of(FILES.map(Path::new))?,
        };
        let Some((file, text)) = found else {
            if environment.is_empty() {
                return Err(OptionsError::Missing { looked: FILES.map(PathBuf::from).to_vec() });
            }
            let folder = path::absolute(".").map_err(OptionsError::Unreadable)?;
            return build(environment, &folder, "the environment");
        };
        let source = file.display().to_string();
        let mut given = from_text(&text, &source)?;
        given.extend(environment);
        // The path as it was given decides, not a symlink's target: so does nats-server.
        let file = path::absolute(file).map_err(OptionsError::Unreadable)?;
        build(given, file.parent().unwrap_or(&file), &source)
    }

    /// Where a settings file is looked for, if none is named.
    pub fn files() -> [&'static Path; 2] {
        FILES.map(Path::new)
    }

    /// Reads settings in the form of `pb-nats.toml`. Relative paths start at `folder`.
    ///
    /// The result has been [checked](Self::check).
    pub fn from_toml(text: &str, folder: impl AsRef<Path>) -> Result<Options, OptionsError> {
        const SOURCE: &str = "the settings";
        build(from_text(text, SOURCE)?, folder.as_ref(), SOURCE)
    }

    /// Puts relative paths below `folder`.
    fn start_paths_at(&mut self, folder: &Path) {
        let Options { pocketbase, auth_file, nats, .. } = self;
        let paths = [&mut auth_file.path, &mut auth_file.backup_dir];
        let optional = [
            &mut pocketbase.data_dir,
            &mut pocketbase.token_file,
            &mut pocketbase.password_file,
            &mut pocketbase.ca_file,
            &mut nats.config_file,
            &mut nats.system_credentials_file,
            &mut nats.system_password_file,
        ];
        // A bare name is looked up in PATH.
        let program = Some(&mut nats.server_binary).filter(|it| it.components().count() > 1);
        let paths = paths.into_iter().chain(optional.into_iter().flatten());
        for path in paths.chain(&mut nats.pid_file).chain(program) {
            *path = folder.join(&path);
        }
        folder.clone_into(&mut self.folder);
    }
}

/// What was given later wins.
fn build(given: Vec<Given>, folder: &Path, source: &str) -> Result<Options, OptionsError> {
    let given: BTreeMap<_, _> = given.into_iter().map(|it| (it.setting.name(), it)).collect();
    let mut document = DeTable::new();
    for Given { setting, value, place } in given.values() {
        let mut alone = DeTable::new();
        insert(&mut alone, setting, value.clone());
        if let Err(error) = deserialize(alone) {
            return Err(setting.refused(place, error.message()));
        }
        insert(&mut document, setting, value.clone());
    }
    let mut options = deserialize(document).expect("each value has been read alone");
    options.check().map_err(|error| match error {
        OptionsError::Wrong { setting, problem, hint, .. } => {
            let everywhere = Place { source: source.into(), position: None };
            let place = given.get(&setting).map_or(everywhere, |it| it.place.clone());
            OptionsError::Wrong { place, setting, problem, hint }
        }
        other => other,
    })?;
    options.start_paths_at(folder);
    Ok(options)
}

fn insert<'t>(document: &mut DeTable<'t>, setting: &Setting, value: Spanned<DeValue<'t>>) {
    let section = document
        .entry(Spanned::new(0..0, setting.section.into()))
        .or_insert_with(|| Spanned::new(0..0, DeValue::Table(DeTable::new())));
    if let DeValue::Table(section) = section.get_mut() {
        section.insert(Spanned::new(0..0, setting.key.into()), value);
    }
}

fn deserialize(document: DeTable<'_>) -> Result<Options, toml::de::Error> {
    Options::deserialize(Deserializer::from(Spanned::new(0..0, document)))
}

fn from_text<'t>(text: &'t str, source: &str) -> Result<Vec<Given<'t>>, OptionsError> {
    let place = |span: Range<usize>| Place::in_text(source, text, span.start);
    let document = DeTable::parse(text).map_err(|error| OptionsError::Syntax {
        place: place(error.span().unwrap_or_default()),
        problem: error.message().to_owned(),
    })?;
    let mut given = Vec::new();
    for (section, settings) in document.into_inner() {
        let at = place(section.span());
        let section = section.into_inner();
        let known = SETTINGS.iter().any(|it| it.section == section);
        let settings = match settings.into_inner() {
            DeValue::Table(settings) if known => settings,
            _ => return Err(unknown_section(at, &section, known)),
        };
        for (key, value) in settings {
            let at = place(key.span());
            let key = key.into_inner();
            match SETTINGS.iter().find(|it| it.section == section && it.key == key) {
                Some(setting) => given.push(Given { setting, value, place: at }),
                None => return Err(unknown_key(at, &section, &key)),
            }
        }
    }
    Ok(given)
}

/// Keeps what the environment says to us from a program that we start: it may be a secret.
pub fn keep_settings_from(program: &mut Command) {
    for (name, _) in env::vars_os() {
        if name.as_encoded_bytes().starts_with(VARIABLES.as_bytes()) {
            program.env_remove(name);
        }
    }
}

fn from_environment(environment: &[(OsString, OsString)]) -> Result<Vec<Given<'_>>, OptionsError> {
    let mut given = Vec::new();
    for (name, value) in environment {
        let Some(name) = name.to_str().filter(|it| it.starts_with(VARIABLES)) else { continue };
        let place = Place { source: name.into(), position: None };
        let Some(setting) = SETTINGS.iter().find(|it| it.variable() == name) else {
            // Kubernetes sets PB_NATS_PORT and such for a Service called `pb-nats`. Only what names
            // one of our sections was meant for us.
            match SETTINGS.iter().find(|it| name.starts_with(&it.variable_prefix())) {
                Some(near) => return Err(unknown_variable(place, near)),
                None => continue,
            }
        };
        let Some(value) = value.to_str() else {
            let problem = "the value is not valid UTF-8".into();
            return Err(OptionsError::Syntax { place, problem });
        };
        let value =
            value.strip_suffix('\n').map_or(value, |it| it.strip_suffix('\r').unwrap_or(it));
        given.push(setting.given(value, place)?);
    }
    Ok(given)
}

impl Setting {
    fn variable_prefix(&self) -> String {
        format!("PB_NATS_{}_", self.section.to_uppercase())
    }

    /// Takes a variable as a string, unless the setting wants something else and this is one.
    fn given<'t>(&'static self, text: &'t str, place: Place) -> Result<Given<'t>, OptionsError> {
        let example = DeValue::parse(self.value).expect("the template is TOML").into_inner();
        let array = example.is_array() && text.starts_with('[');
        let value = match DeValue::parse(text) {
            Ok(value) if !example.is_str() && value.get_ref().same_type(&example) => {
                value.into_inner()
            }
            _ if array => return Err(self.refused(&place, "expected an array in TOML form")),
            _ => DeValue::String(text.into()),
        };
        Ok(Given { setting: self, value: Spanned::new(0..0, value), place })
    }

    fn refused(&self, place: &Place, message: &str) -> OptionsError {
        if let Some((word, words)) = unknown_word(message) {
            let hint = match nearest(word, words.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("the words are {}", words.join(", ")),
            };
            return OptionsError::Wrong {
                place: place.clone(),
                setting: self.name(),
                problem: format!("`{}`: there is no `{}`", self.name(), word.escape_debug()),
                hint,
            };
        }
        // Serde's "invalid type: string `…`, expected …" repeats the value, perhaps a secret.
        let expected = message.strip_prefix("invalid type").and_then(|it| it.rsplit_once(", "));
        let problem = expected.map_or(message, |(_, expected)| expected);
        let right = match (place.position, self.value.trim_matches('"')) {
            (None, bare) if place.source == self.variable() => format!("{}={bare}", place.source),
            _ => format!("{} = {}", self.key, self.value),
        };
        OptionsError::Wrong {
            place: place.clone(),
            setting: self.name(),
            problem: format!("`{}`: {problem}", self.name()),
            hint: format!("a right value looks like `{right}`"),
        }
    }
}

impl OptionsError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            OptionsError::Missing { .. } => Some(
                "`pb-nats init` makes `pb-nats.toml`; or write it with at least `[pocketbase]`, `url = \"http://…\"` and \
                 `token_file = \"…\"`, or give its path with `--config`"
                    .into(),
            ),
            OptionsError::Unreadable(_) => {
                Some("give the path of a settings file that pb-nats may read".into())
            }
            OptionsError::Syntax { place, .. } => place
                .position
                .map(|_| "settings are written `key = \"value\"` below their `[section]`".into()),
            OptionsError::Unknown { hint, .. } | OptionsError::Wrong { hint, .. } => {
                Some(hint.clone())
            }
        }
    }
}

impl Place {
    fn in_text(source: &str, text: &str, offset: usize) -> Place {
        let before = text.get(..offset).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Place { source: source.into(), position: Some((line, column)) }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        match self.position {
            Some((line, column)) => write!(f, ", line {line}, column {column}"),
            None => Ok(()),
        }
    }
}

fn unknown_section(place: Place, name: &str, known: bool) -> OptionsError {
    let sections = || SETTINGS.iter().map(|it| it.section);
    let hint = if known {
        format!("`{name}` is a section: write `[{name}]` on a line of its own")
    } else if let Some(setting) = SETTINGS.iter().find(|it| it.key == name) {
        format!("`{name}` belongs below `[{}]`", setting.section)
    } else if let Some(section) = nearest(name, sections()) {
        format!("did you mean `[{section}]`?")
    } else {
        let mut sections: Vec<_> = sections().map(|it| format!("`[{it}]`")).collect();
        sections.dedup();
        format!("the sections are {}", sections.join(", "))
    };
    OptionsError::Unknown { place, key: format!("section `{}`", name.escape_debug()), hint }
}

fn unknown_key(place: Place, section: &str, name: &str) -> OptionsError {
    let keys = || SETTINGS.iter().filter(|it| it.section == section).map(|it| it.key);
    let hint = if let Some(setting) = SETTINGS.iter().find(|it| it.key == name) {
        format!("`{name}` belongs below `[{}]`", setting.section)
    } else if let Some(key) = nearest(name, keys()) {
        format!("did you mean `{key}`?")
    } else {
        format!("the keys of `[{section}]` are {}", keys().collect::<Vec<_>>().join(", "))
    };
    OptionsError::Unknown {
        place,
        key: format!("key `{}` in `[{section}]`", name.escape_debug()),
        hint,
    }
}

fn unknown_variable(place: Place, near: &Setting) -> OptionsError {
    let keys = SETTINGS.iter().filter(|it| it.section == near.section).map(|it| it.key);
    let name = place.source[near.variable_prefix().len()..].to_lowercase();
    let hint = match nearest(&name, keys) {
        Some(key) => format!("did you mean `{}{}`?", near.variable_prefix(), key.to_uppercase()),
        None => "unset it. Kubernetes sets such variables for Services, unless the pod has \
                 `enableServiceLinks: false`"
            .into(),
    };
    OptionsError::Unknown { place, key: format!("setting in `[{}]`", near.section), hint }
}

/// The word that is none of those that a setting may have, and these, in what serde says of it.
fn unknown_word(message: &str) -> Option<(&str, Vec<&str>)> {
    let (word, words) =
        message.strip_prefix("unknown variant `")?.split_once("`, expected one of `")?;
    Some((word, words.trim_end_matches('`').split("`, `").collect()))
}

fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |it: &str| strsim::jaro_winkler(&word.to_lowercase(), it);
    let scored = known.map(|it| (likeness(it), it)).filter(|(likeness, _)| *likeness > 0.8);
    scored.max_by(|(one, _), (other, _)| one.total_cmp(other)).map(|(_, it)| it)
}

fn first_of<const N: usize>(files: [&Path; N]) -> Result<Option<(&Path, String)>, OptionsError> {
    for file in files {
        match read(file) {
            Ok(text) => return Ok(Some((file, text))),
            Err(OptionsError::Unreadable(error)) if error.kind() == io::ErrorKind::NotFound => (),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn read(file: &Path) -> Result<String, OptionsError> {
    let mut bytes = Vec::new();
    let limited = fs_err::File::open(file).map(|it| it.take(LARGEST_FILE + 1));
    let length = limited.and_then(|mut it| it.read_to_end(&mut bytes));
    let syntax = |position, problem: &str| OptionsError::Syntax {
        place: Place { source: file.display().to_string(), position },
        problem: problem.into(),
    };
    if length.map_err(OptionsError::Unreadable)? as u64 > LARGEST_FILE {
        return Err(syntax(None, "larger than 1 MiB; that cannot be a settings file"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].split(|it| *it == b'\n');
        syntax(Some((line.count(), 1)), "not valid UTF-8")
    })
}

fn listed(files: &[PathBuf]) -> String {
    let files: Vec<_> = files.iter().map(|it| format!("`{}`", it.display())).collect();
    files.join(", no ")
}

#[cfg(test)]
mod tests {
    use std::{error::Error, io::Write, os::unix::ffi::OsStringExt, time::Duration};

    use tempfile::TempDir;

    use super::*;
    use crate::auth::{EventType, MaxRemoved};

    const MINIMAL: &str = "[pocketbase]\nurl = \"http://127.0.0.1:8090\"\ntoken_file = \"token\"\n";
    const SECRET: &str = "hunter2";

    fn from_toml(text: &str) -> Result<Options, OptionsError> {
        Options::from_toml(text, "/etc/pb-nats")
    }

    fn from_variables(variables: &[(&str, &str)]) -> Result<Options, OptionsError> {
        from_file_and_variables(MINIMAL.as_bytes(), variables)
    }

    fn from_file_and_variables(
        contents: &[u8],
        variables: &[(&str, &str)],
    ) -> Result<Options, OptionsError> {
        let (_folder, file) = file(contents);
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
        Options::load(Some(&file), variables)
    }

    fn file(contents: &[u8]) -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pb-nats.toml");
        fs_err::File::create(&path).unwrap().write_all(contents).unwrap();
        (folder, path)
    }

    /// Everything that a person gets to see of an error.
    fn told(error: &OptionsError) -> String {
        let cause = error.source().map(ToString::to_string).unwrap_or_default();
        format!("{error}\n{cause}\n{}\n", error.hint().unwrap_or_default())
    }

    #[track_caller]
    fn assert_told(text: &str, error: &OptionsError, parts: &[&str]) {
        let told = told(error);
        for part in parts {
            assert!(told.contains(part), "{text}\n… has to be told `{part}`, but:\n{told}");
        }
    }

    #[track_caller]
    fn assert_not_told(text: &str, error: &OptionsError) {
        let told = told(error) + &format!("{error:?}");
        for secret in [SECRET, "4242", "2042"] {
            assert!(!told.contains(secret), "{text}\n… is told:\n{told}");
        }
    }

    #[test]
    fn a_file_says_everything() {
        let options = from_toml(
            r#"
            [pocketbase]
            url = "https://pb.example.com/base/"
            identity = "sync@example.com"
            password = "hunter2"
            ca_file = "ca.pem"
            resync_interval = "1m30s"
            [permissions]
            default_publish = "A.>"
            default_subscribe = []
            [auth_file]
            mode = "0600"
            create_backups = false
            max_backups = 0
            login_timeout = "60s"
            [nats]
            pid_file = "nats.pid"
            monitor_url = ["http://a:8222", "http://b:8222"]
            [sync]
            ignore_events = ["user_update", "role_delete"]
            max_removed = 20
            max_reload_share = "5%"
            [admin]
            listen = ""
            "#,
        )
        .unwrap();
        assert_eq!(options.pocketbase.password.as_ref().unwrap().reveal(), SECRET);
        assert_eq!(options.pocketbase.resync_interval, Duration::from_secs(90));
        assert_eq!(options.permissions.default_publish, ["A.>"]);
        assert!(options.permissions.default_subscribe.is_empty());
        assert_eq!(options.auth_file.mode, 0o600);
        assert!(!options.auth_file.create_backups);
        assert_eq!(options.auth_file.max_backups, 0);
        assert_eq!(options.auth_file.login_timeout, Some(Duration::from_mins(1)));
        assert_eq!(options.nats.monitor_url.len(), 2);
        assert_eq!(options.sync.ignore_events, [EventType::UserUpdate, EventType::RoleDelete]);
        assert_eq!(options.sync.max_removed, MaxRemoved::Count(20));
        assert!((options.sync.max_reload_share - 0.05).abs() < 1e-9);
        assert_eq!(options.admin.listen, "");
        assert!(!format!("{options:?}").contains(SECRET));
    }

    #[test]
    fn windows_line_ends_and_a_byte_order_mark_change_nothing() {
        let text = format!("\u{feff}{MINIMAL}[sync]\ndebounce = \"1s\"\n").replace('\n', "\r\n");
        let options = from_file_and_variables(text.as_bytes(), &[]).unwrap();
        assert_eq!(options.sync.debounce, Duration::from_secs(1));

        let error = from_toml(&text.replace("debounce", "debonce")).unwrap_err();
        assert_told(&text, &error, &["line 5, column 1:", "did you mean `debounce`?"]);
    }

    /// The line is the first thing to know, the right form the second.
    #[test]
    fn a_mistake_in_the_file_is_named_with_its_line_and_the_right_form() {
        let after_minimal: &[(&str, &[&str])] = &[
            ("max_wait = \"2s\"", &["line 4,", "`max_wait` in `[pocketbase]`", "below `[sync]`"]),
            ("\ntokn = 1", &["line 5,", "unknown key `tokn`", "did you mean `token`?"]),
            ("[sync]\nmax_wiat = 1", &["line 5,", "did you mean `max_wait`?"]),
            ("[sync]\nxyz = 1", &["line 5,", "the keys of `[sync]` are debounce, max_wait,"]),
            ("[snyc]", &["line 4,", "unknown section `snyc`", "did you mean `[sync]`?"]),
            ("[xyz]", &["line 4,", "the sections are `[pocketbase]`, `[permissions]`"]),
            ("[[sync]]", &["line 4,", "write `[sync]` on a line of its own"]),
            ("[sync]\ndebounce = 5", &["line 5,", "expected a string", "`debounce = \"250ms\"`"]),
            ("[sync]\ndebounce = \"5\"", &["line 5,", "`5` is not a duration"]),
            ("[sync]\ndebounce = \"-5s\"", &["line 5,", "`-5s` is not a duration"]),
            ("[sync]\ndebounce = \"9999999h\"", &["line 5,", "longer than a year"]),
            ("[sync]\nmin_removed = -1", &["line 5,", "a whole number, 0 or more"]),
            ("[sync]\nmin_removed = \"1\"", &["line 5,", "a whole number", "`min_removed = 10`"]),
            ("[sync]\nmax_removed = \"150%\"", &["line 5,", "150%", "a share such as"]),
            ("[sync]\nmax_removed = 0.5", &["line 5,", "a share such as"]),
            ("[sync]\nmax_removed = -3", &["line 5,", "negative"]),
            ("[sync]\nmax_reload_share = 20", &["line 5,", "expected a string"]),
            ("[sync]\nmax_reload_share = \"x\"", &["line 5,", "a share such as"]),
            ("[sync]\nmax_reload_share = \"0%\"", &["line 5,", "from 1% to 100%"]),
            ("[sync]\nmax_reload_share = \"NaN%\"", &["line 5,", "from 1% to 100%"]),
            (
                "[sync]\nignore_events = [\"user_creat\"]",
                &["line 5,", "there is no `user_creat`", "did you mean `user_create`?"],
            ),
            (
                "[sync]\nignore_events = [\"all\"]",
                &[
                    "line 5,",
                    "`all`",
                    "the words are user_create, user_update, user_delete, role_create, \
                     role_update, role_delete",
                ],
            ),
            ("[auth_file]\nmode = \"0888\"", &["line 5,", "`0888` is not a file mode"]),
            ("[auth_file]\nmode = \"+640\"", &["line 5,", "not a file mode"]),
            ("[auth_file]\nmode = \"4755\"", &["line 5,", "not a file mode"]),
            ("[auth_file]\nmode = 640", &["line 5,", "expected a string", "`mode = \"0640\"`"]),
            ("[auth_file]\nmode = \"0040\"", &["line 5,", "could not be read back"]),
            ("[auth_file]\npath = \"\"", &["line 5,", "names no file"]),
            ("[auth_file]\nbackup_dir = \"\"", &["line 5,", "create_backups = false"]),
            ("[auth_file]\ncreate_backups = \"yes\"", &["line 5,", "expected a boolean"]),
            ("[auth_file]\nlogin_timeout = \"61s\"", &["line 5,", "\"60s\" or less"]),
            ("[admin]\nlisten = \"9478\"", &["line 5,", "not an address with a port"]),
            ("[admin]\nlisten = \":9478\"", &["line 5,", "0.0.0.0:9478"]),
            ("[admin]\nlisten = \"127.0.0.1:99999\"", &["line 5,", "not an address"]),
            ("[admin]\nhosts = [\"http://a\"]", &["line 5,", "not the name of a host"]),
            ("[admin]\nhosts = [\"a:9478\"]", &["line 5,", "without scheme, port"]),
            ("[nats]\nmonitor_url = \"nats://a\"", &["line 5,", "http:// or https://"]),
            ("[nats]\nsystem_url = \"a:4222\"", &["line 5,", "nats:// or tls://"]),
            ("[nats]\nreload_timeout = \"0s\"", &["line 5,", "no time at all"]),
            ("[nats]\nreload_command = \"a 'b\"", &["line 5,", "cannot be split"]),
            ("[nats]\npid_file = [1]", &["line 5,", "a string or an array of strings"]),
            ("[nats]\npid_file = [\"\"]", &["line 5,", "an empty path"]),
            ("request_timeout = \"0s\"", &["line 4,", "no time at all"]),
            ("user_collection = \"a/b\"", &["line 4,", "letters, digits and `_`"]),
            ("role_field = \"\"", &["line 4,", "letters, digits and `_`"]),
            ("role_collection = \"nats_users\"", &["line 4,", "are the same"]),
            ("url = \"x\"", &["line 4,", "duplicate key"]),
            ("ca_file = ", &["line 4,"]),
            ("ca_file", &["line 4,"]),
            ("\n\n[sync", &["line 6,"]),
        ];
        for (text, parts) in after_minimal {
            let error = from_toml(&format!("{MINIMAL}{text}\n")).expect_err(text);
            assert_told(text, &error, parts);
            assert_told(text, &error, &["the settings, "]);
        }
    }

    #[test]
    fn an_address_is_http_and_holds_no_password() {
        for bad in [
            "pb.example.com",
            "127.0.0.1:8090",
            "ftp://pb.example.com",
            "nats://pb.example.com",
            "http://",
            "http://me:hunter2@pb.example.com",
            "http://me@pb.example.com",
            "http://pb.example.com/?a=hunter2",
            "http://pb.example.com/_/",
        ] {
            let text = format!("[pocketbase]\ntoken = \"t\"\nurl = \"{bad}\"\n");
            let error = from_toml(&text).expect_err(bad);
            assert_told(&text, &error, &["line 3,", "`pocketbase.url`"]);
            assert!(!told(&error).contains(SECRET));
        }
        for good in ["http://pb:8090", "https://pb.example.com/some/base/", "HTTP://[::1]:8090"] {
            from_toml(&format!("[pocketbase]\ntoken = \"t\"\nurl = \"{good}\"\n")).expect(good);
        }
    }

    #[test]
    fn settings_that_contradict_each_other_are_named_with_the_way_out() {
        let url = "[pocketbase]\nurl = \"http://127.0.0.1:8090\"\n";
        let nats = format!("{MINIMAL}[nats]\n");
        let cases: &[(&str, &str, &[&str])] = &[
            ("[sync]\n", "", &["the settings: `pocketbase.url` is not set", "`data_dir`"]),
            (url, "", &["line 2,", "needs credentials", "`token_file`"]),
            (url, "data_dir = \"d\"", &["line 3,", "`url` and `data_dir` are both set"]),
            (MINIMAL, "token = \"t\"", &["line 3,", "`token` and `token_file` are both set"]),
            (MINIMAL, "identity = \"i\"\npassword = \"p\"", &["`token_file` and `identity`"]),
            (MINIMAL, "password = \"p\"", &["line 4,", "without `identity`"]),
            (url, "identity = \"i\"", &["line 3,", "without a password", "`password_file`"]),
            (url, "password_file = \"f\"", &["line 3,", "without `identity`"]),
            (
                url,
                "identity = \"i\"\npassword = \"p\"\npassword_file = \"f\"",
                &["line 5,", "`password` and `password_file` are both set"],
            ),
            (
                &nats,
                "reload_command = \"c\"\npid_file = \"p\"",
                &["line 6,", "`reload_command` and `pid_file` are both set"],
            ),
            (
                &nats,
                "system_credentials_file = \"c\"\nsystem_user = \"u\"\nsystem_password = \"p\"",
                &["line 6,", "`system_credentials_file` and `system_user` are both set"],
            ),
            (&nats, "system_user = \"u\"", &["line 5,", "without a password"]),
            (&nats, "system_password = \"p\"", &["line 5,", "without `system_user`"]),
            (
                &nats,
                "system_user = \"u\"\nsystem_password = \"p\"\nsystem_password_file = \"f\"",
                &["line 7,", "are both set"],
            ),
        ];
        for (before, text, parts) in cases {
            let error = from_toml(&format!("{before}{text}\n")).expect_err(text);
            assert_told(text, &error, parts);
        }
        for good in [
            "[pocketbase]\ndata_dir = \"pb_data\"\n",
            "[pocketbase]\nurl = \"http://a\"\nidentity = \"i\"\npassword_file = \"f\"\n",
            "[pocketbase]\nurl = \"http://a\"\ntoken = \"t\"\ntoken_file = \"\"\ndata_dir = \"\"\n",
        ] {
            from_toml(good).expect(good);
        }
    }

    #[test]
    fn an_empty_string_is_unset() {
        let options = from_toml(&format!(
            "{MINIMAL}data_dir = ''\nca_file = ''\npassword = ''\nidentity = ''\nexport_view = ''\n\
             [auth_file]\nlogin_timeout = ''\ngroup = ''\n\
             [nats]\npid_file = ''\nreload_command = ''\nsystem_url = ''\nserver_binary = ''\n"
        ))
        .unwrap();
        assert!(options.pocketbase.ca_file.is_none() && options.pocketbase.password.is_none());
        assert!(options.auth_file.login_timeout.is_none());
        assert!(options.nats.pid_file.is_empty() && options.nats.reload_command.is_none());
        assert_eq!(options.nats.server_binary, Path::new(""));
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let options = from_file_and_variables(
            format!("{MINIMAL}[sync]\ndebounce = \"not one\"\n").as_bytes(),
            &[
                ("PB_NATS_POCKETBASE_TOKEN_FILE", ""),
                ("PB_NATS_POCKETBASE_TOKEN", "12345\r\n"),
                ("PB_NATS_PERMISSIONS_DEFAULT_PUBLISH", "A.>"),
                ("PB_NATS_PERMISSIONS_DEFAULT_SUBSCRIBE", "[\"A.>\", 'B']"),
                ("PB_NATS_AUTH_FILE_MAX_BACKUPS", "7"),
                ("PB_NATS_AUTH_FILE_CREATE_BACKUPS", "false"),
                ("PB_NATS_AUTH_FILE_GROUP", "true"),
                ("PB_NATS_NATS_MONITOR_URL", ""),
                ("PB_NATS_NATS_RESERVED_USERS", "[]"),
                ("PB_NATS_SYNC_DEBOUNCE", "10ms"),
                ("PB_NATS_SYNC_MAX_REMOVED", "20"),
                ("PB_NATS_SYNC_IGNORE_EVENTS", "user_update"),
                ("PB_NATS_ADMIN_LISTEN", "[::1]:9478"),
            ],
        )
        .unwrap();
        assert!(options.pocketbase.token_file.is_none());
        assert_eq!(options.pocketbase.token.as_ref().unwrap().reveal(), "12345");
        assert_eq!(options.permissions.default_publish, ["A.>"]);
        assert_eq!(options.permissions.default_subscribe, ["A.>", "B"]);
        assert_eq!(options.auth_file.max_backups, 7);
        assert!(!options.auth_file.create_backups);
        assert_eq!(options.auth_file.group, "true");
        assert!(options.nats.monitor_url.is_empty());
        assert_eq!(options.sync.debounce, Duration::from_millis(10));
        assert_eq!(options.sync.max_removed, MaxRemoved::Count(20));
        assert_eq!(options.sync.ignore_events, [EventType::UserUpdate]);
        assert_eq!(options.admin.listen, "[::1]:9478");
    }

    #[test]
    fn every_setting_has_a_variable() {
        for setting in SETTINGS.iter() {
            let (name, value) = (setting.variable(), setting.value.trim_matches('"'));
            let environment = [(name.into(), value.into())];
            let given = from_environment(&environment).unwrap();
            let [Given { setting: found, value, .. }] = &given[..] else { panic!("{given:?}") };
            assert_eq!(found.name(), setting.name());
            let mut alone = DeTable::new();
            insert(&mut alone, found, value.clone());
            deserialize(alone).expect(setting.key);
        }
    }

    #[test]
    fn a_mistake_in_the_environment_is_named_with_its_variable() {
        let cases: &[(&str, &str, &[&str])] = &[
            ("SYNC_MAX_WIAT", "2s", &["did you mean `PB_NATS_SYNC_MAX_WAIT`?"]),
            ("AUTH_FILE_PAHT", "x", &["did you mean `PB_NATS_AUTH_FILE_PATH`?"]),
            ("NATS_SERVICE_HOST", "10.0.0.1", &["`enableServiceLinks: false`"]),
            ("SYNC_DEBOUNCE", "5", &["`5` is not a duration", "`PB_NATS_SYNC_DEBOUNCE=250ms`"]),
            ("SYNC_MIN_REMOVED", "", &["a whole number", "`PB_NATS_SYNC_MIN_REMOVED=10`"]),
            ("SYNC_MIN_REMOVED", "-1", &["a whole number, 0 or more"]),
            ("SYNC_IGNORE_EVENTS", "[user_update]", &["an array in TOML form"]),
            ("SYNC_IGNORE_EVENTS", "user_creat", &["did you mean `user_create`?"]),
            ("AUTH_FILE_CREATE_BACKUPS", "yes", &["expected a boolean"]),
            ("AUTH_FILE_MODE", "rw", &["not a file mode", "`PB_NATS_AUTH_FILE_MODE=0640`"]),
            ("POCKETBASE_URL", "x", &["http:// or https://"]),
            ("POCKETBASE_IDENTITY", "x", &["`token_file` and `identity` are both set"]),
        ];
        for (name, value, parts) in cases {
            let name = format!("PB_NATS_{name}");
            let error = from_variables(&[(&name, value)]).expect_err(&name);
            assert_told(&name, &error, parts);
            assert!(error.to_string().starts_with(&format!("{name}: ")), "{error}");
        }
    }

    /// Kubernetes sets these for a Service called `pb-nats`.
    #[test]
    fn variables_that_name_no_section_are_left_alone() {
        from_variables(&[
            ("PB_NATS_PORT", "tcp://10.0.0.1:9478"),
            ("PB_NATS_PORT_9478_TCP", "tcp://10.0.0.1:9478"),
            ("PB_NATS_PORT_9478_TCP_ADDR", "10.0.0.1"),
            ("PB_NATS_SERVICE_HOST", "10.0.0.1"),
            ("PB_NATS_SERVICE_PORT_ADMIN", "9478"),
            ("PB_NATS_", ""),
            ("PB_NATS_SYNC", "x"),
            ("PB_NATS_SYNCED_AT", "x"),
            ("pb_nats_sync_xyz", "x"),
        ])
        .unwrap();
    }

    #[test]
    fn what_is_not_text_is_refused_by_name_or_left_alone() {
        let bad = || OsString::from_vec(b"a\xffb".to_vec());
        let (_folder, file) = file(MINIMAL.as_bytes());
        Options::load(Some(&file), [(bad(), bad())]).unwrap();
        let error = Options::load(Some(&file), [("PB_NATS_NATS_PID_FILE".into(), bad())]);
        assert_told("", &error.unwrap_err(), &["PB_NATS_NATS_PID_FILE: ", "not valid UTF-8"]);
    }

    /// A message goes to logs, terminals and bug reports.
    #[test]
    fn no_mistake_shows_a_secret() {
        let values = [
            "\"hunter2",
            "\"hunter2\n",
            "'hunter2",
            "\"\"\"hunter2",
            "'''hunter2\n\n",
            "hunter2",
            "hunter2\"",
            "\"hunter2\" \"hunter2\"",
            "\"hunter2\\q\"",
            "\"hunter2\\uD800\"",
            "\"hunter2\u{1}\"",
            "= \"hunter2\"",
            "[\"hunter2\"]",
            "{ hunter2 = \"hunter2\" }",
            "{ a = \"hunter2\" }",
            "\n\"hunter2\"",
            "\"x\"\ntoken = \"hunter2\"\ntoken = \"hunter2\"",
            "\"hunter2\"\n\"hunter2\"",
            // Numbers, dates and such, which serde would like to repeat.
            "4242424242",
            "0x4242424242",
            "-4242424242",
            "4242424242.5",
            "42424242424242424242",
            "4242424242424242424242424242424242424242424242",
            "4242-42-42",
            "2042-04-02T04:24:24Z",
        ];
        for name in ["pocketbase.token", "pocketbase.password", "nats.system_password"] {
            let (section, key) = name.split_once('.').unwrap();
            for value in values {
                for written in [format!("{key} = {value}"), format!("{key}: {value}")] {
                    let text = format!("[{section}]\n{written}\n");
                    let error = from_toml(&text).expect_err(&text);
                    assert_not_told(&text, &error);
                    assert_told(&text, &error, &["line "]);
                }
            }
            for text in [
                format!("[{section}]\n{key}s = \"hunter2\"\n"),
                format!("{key} = \"hunter2\"\n"),
                format!("[{section}.{key}]\na = \"hunter2\"\n"),
                format!("{name} = \"hunter2\"\n"),
                format!("{name} = \"hunter2\\n\"\n"),
                format!("{section} = \"hunter2\"\n"),
            ] {
                assert_not_told(&text, &from_toml(&text).expect_err(&text));
            }
            for value in ["hunter2", "hunter2 hunter2", "[hunter2", "\"hunter2", "hunter2\u{1}"] {
                let right = format!("PB_NATS_{section}_{key}").to_uppercase();
                for name in [&right, &format!("{right}S")] {
                    let url = ("PB_NATS_NATS_SYSTEM_URL", "nats://u:hunter2@127.0.0.1");
                    let error = from_variables(&[(name, value), url]).expect_err(name);
                    assert_not_told(&format!("{name}={value}"), &error);
                }
            }
        }
    }

    #[test]
    fn relative_paths_start_at_the_folder_of_the_file() {
        let (folder, file) = file(
            br#"
            [pocketbase]
            url = "http://127.0.0.1:8090"
            identity = "i"
            password_file = "secrets/password"
            ca_file = "/ca.pem"
            [nats]
            config_file = "../nats-server.conf"
            pid_file = ["nats.pid", "/run/nats.pid"]
            "#,
        );
        let variables = [
            ("PB_NATS_NATS_SYSTEM_CREDENTIALS_FILE", "system.creds"),
            ("PB_NATS_AUTH_FILE_PATH", "generated/auth.conf"),
        ];
        let variables = variables.map(|(name, value)| (name.into(), value.into()));
        let options = Options::load(Some(&file), variables).unwrap();
        let below = |path: &str| folder.path().join(path);
        assert_eq!(options.folder, folder.path());
        assert_eq!(options.pocketbase.password_file, Some(below("secrets/password")));
        assert_eq!(options.pocketbase.ca_file, Some("/ca.pem".into()));
        assert_eq!(options.auth_file.path, below("generated/auth.conf"));
        assert_eq!(options.auth_file.backup_dir, below("backups"));
        assert_eq!(options.nats.config_file, Some(below("../nats-server.conf")));
        assert_eq!(options.nats.pid_file, [below("nats.pid"), "/run/nats.pid".into()]);
        assert_eq!(options.nats.system_credentials_file, Some(below("system.creds")));
        // A program is looked up in PATH, unless its path is given.
        assert_eq!(options.nats.server_binary, Path::new("nats-server"));
        let text = format!("{MINIMAL}[nats]\nserver_binary = \"./nats-server\"\n");
        let options = from_toml(&text).unwrap();
        assert_eq!(options.nats.server_binary, Path::new("/etc/pb-nats/nats-server"));
        assert_eq!(options.pocketbase.token_file, Some("/etc/pb-nats/token".into()));
    }

    #[test]
    fn a_file_that_cannot_be_one_is_refused() {
        let (folder, path) = file(b"[sync]\n# caf\xe9\n");
        let error = Options::load(Some(&path), []).unwrap_err();
        assert_told("", &error, &["pb-nats.toml, line 2,", "not valid UTF-8"]);

        let error = from_file_and_variables(&vec![b'#'; 1024 * 1024 + 1], &[]).unwrap_err();
        assert_told("", &error, &["pb-nats.toml: larger than 1 MiB"]);

        let error = Options::load(Some(folder.path()), []).unwrap_err();
        assert_told("", &error, &[&folder.path().display().to_string(), "s a directory"]);

        let missing = folder.path().join("missing.toml");
        let error = Options::load(Some(&missing), []).unwrap_err();
        assert_told("", &error, &["missing.toml", "No such file"]);
    }

    #[test]
    fn the_first_file_that_exists_is_taken_even_if_it_is_bad() {
        let (folder, file) = file(MINIMAL.as_bytes());
        let missing = folder.path().join("missing");
        let (found, text) = first_of([&missing, &file]).unwrap().unwrap();
        assert_eq!((found, &*text), (&*file, MINIMAL));
        assert!(first_of([folder.path(), &file]).is_err());
        assert!(first_of([&missing, &missing]).unwrap().is_none());
    }

    #[test]
    fn options_built_in_code_are_checked_alike() {
        let error = Options::default().check().unwrap_err();
        assert_told("", &error, &["the options: `pocketbase.url` is not set"]);
        let mut options = from_toml(MINIMAL).unwrap();
        options.check().unwrap();
        options.sync.max_removed = MaxRemoved::Share(f64::NAN);
        assert_told("", &options.check().unwrap_err(), &["`max_removed`"]);
    }

    #[test]
    fn what_is_rarely_meant_is_noted_but_allowed() {
        let notes = |text: &str| {
            let notes = from_toml(text).expect(text).notes();
            notes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        let quiet = format!("{MINIMAL}[nats]\npid_file = \"nats.pid\"\n");
        assert_eq!(notes(&quiet), "");
        assert_eq!(notes(&quiet.replace("127.0.0.1", "[::1]")), "");
        assert_eq!(notes(&quiet.replace("127.0.0.1", "pocketbase")), "");
        assert!(notes(&quiet.replace("127.0.0.1", "pb.example.com")).contains("not https"));
        assert!(notes(&quiet.replace("8090", "8090/api/")).contains("`/api/api/…`"));
        assert!(notes(MINIMAL).contains("nothing reloads the server"));
        for (text, part) in [
            ("system_user = \"u\"\nsystem_password = \"p\"", "`nats.system_url` is not set"),
            ("system_url = \"nats://127.0.0.1\"", "without a log-in"),
            (
                "system_url = \"nats://n.example.com\"\nsystem_user = \"u\"\nsystem_password = \"p\"",
                "does not begin with `tls://`",
            ),
            ("[sync]\ndebounce = \"3s\"", "longer than `sync.max_wait`"),
            ("[sync]\nmax_removed = \"100%\"", "`sync.max_removed`"),
            ("[auth_file]\nmode = \"0644\"", "`auth_file.mode`"),
            ("[permissions]\ndefault_publish = \">\"", "`permissions`"),
        ] {
            let notes = notes(&format!("{quiet}{text}\n"));
            assert!(notes.contains(part) && !notes.contains('\n'), "{text}: {notes}");
        }
        let data_dir = quiet.replace("url = \"http://127.0.0.1:8090\"", "data_dir = \"d\"");
        assert!(notes(&data_dir).contains("needs no credentials"));
    }
}
