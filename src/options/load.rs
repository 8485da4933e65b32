//! From the settings file and the environment to [`Options`].
//!
//! Each value is read alone: so a mistake has a place, and the environment can replace a value
//! before anyone judges it. No message repeats a value that might be a secret; that is why toml's
//! own errors, which quote the line, are never shown.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    io::{self, Read},
    ops::Range,
    path::{self, Path, PathBuf},
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
            if !path.as_os_str().is_empty() {
                *path = folder.join(&path);
            }
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
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
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

fn from_environment(environment: &[(OsString, OsString)]) -> Result<Vec<Given<'_>>, OptionsError> {
    let mut given = Vec::new();
    for (name, value) in environment {
        let Some(name) = name.to_str().filter(|it| it.starts_with("PB_NATS_")) else { continue };
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
                "write `pb-nats.toml` with at least `[pocketbase]`, `url = \"http://…\"` and \
                 `token_file = \"…\"`, or give its path with `--config`"
                    .into(),
            ),
            OptionsError::Unreadable(_) => None,
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
