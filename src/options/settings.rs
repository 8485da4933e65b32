//! The known settings, as the commented `dist/pb-nats.toml` tells them.
//!
//! That file is the one list of settings outside the types: the environment's names, the hints for
//! mistyped keys and the reference are all made from it.

use std::{fmt::Write, sync::LazyLock};

use toml::Table;

const TEMPLATE: &str = include_str!("../../dist/pb-nats.toml");

pub(super) static SETTINGS: LazyLock<Vec<Setting>> =
    LazyLock::new(|| sections().into_iter().flat_map(|it| it.settings).collect());

/// One key of the settings file.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) section: &'static str,
    pub(super) key: &'static str,
    /// A right value in TOML: the default, or for an unset one an example.
    pub(super) value: &'static str,
    unset: bool,
    meaning: String,
}

struct Section {
    name: &'static str,
    meaning: String,
    settings: Vec<Setting>,
}

impl Setting {
    pub(super) fn name(&self) -> String {
        format!("{}.{}", self.section, self.key)
    }

    pub(super) fn variable(&self) -> String {
        format!("PB_NATS_{}_{}", self.section, self.key).to_uppercase()
    }
}

/// A page of all settings in Markdown: key, default, environment variable and meaning.
pub fn reference() -> String {
    let mut page = String::from(
        "<!-- Made from dist/pb-nats.toml; `cargo xtask docs` writes it. -->\n\n\
         # Settings\n\n\
         pb-nats reads the file given with `--config`; without it `./pb-nats.toml`, then \
         `/etc/pb-nats/pb-nats.toml`. A commented file with all defaults to start from is \
         [`dist/pb-nats.toml`](../dist/pb-nats.toml).\n\n\
         - The environment wins over the file. There a string is written without quotes, an array \
         in TOML form: `PB_NATS_SYNC_IGNORE_EVENTS='[\"user_update\"]'`. One newline at the end is \
         not part of the value.\n\
         - An empty string means \"unset\" wherever a setting can be unset, also in the \
         environment; for arrays it means the empty array.\n\
         - Relative paths, those of the environment included, start at the settings file's folder; \
         without a file, at the working folder.\n\
         - Durations are written like `\"250ms\"`, `\"10s\"` or `\"1h 30m\"`.\n\
         - An unknown key is an error, and so is `PB_NATS_<SECTION>_<KEY>` with a known section and \
         an unknown key. Other variables that begin with `PB_NATS_` are left alone.\n",
    );
    for Section { name, meaning, settings } in sections() {
        let _ = write!(
            page,
            "\n## `[{name}]`\n\n{meaning}\n\n\
             | key | default | environment | meaning |\n| --- | --- | --- | --- |\n"
        );
        for setting in settings {
            let (key, value, variable) = (setting.key, setting.value, setting.variable());
            let default = if setting.unset { "unset".into() } else { format!("`{value}`") };
            let example = if setting.unset && !value.contains('…') {
                format!(" Example: `{value}`")
            } else {
                String::new()
            };
            let meaning = setting.meaning + &example;
            let _ = writeln!(page, "| `{key}` | {default} | `{variable}` | {meaning} |");
        }
    }
    page
}

/// The template with these values in TOML, by names such as `nats.pid_file`. All other settings are
/// remarks, so that they follow the defaults.
pub fn settings_file(values: &[(&str, String)]) -> String {
    let mut text = String::from(
        "# Settings of pb-nats. What begins with `#` is not set: it shows the default, or an example\n\
         # where there is none. The environment wins over this file: PB_NATS_, the section, the key, as\n\
         # in PB_NATS_POCKETBASE_TOKEN. Relative paths start at this file's folder.\n",
    );
    let (_, template) = TEMPLATE.split_once("\n\n").expect("the template begins with a remark");
    let mut section = "";
    for line in template.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
            section = name;
        }
        let setting = line.split_once(" = ").filter(|_| !line.starts_with("# "));
        let key = setting.map(|(key, _)| format!("{section}.{}", key.trim_start_matches('#')));
        let line = match key.map(|key| values.iter().find(|(name, _)| *name == key)) {
            Some(Some((name, value))) => format!("{} = {value}", &name[section.len() + 1..]),
            Some(None) => format!("#{}", line.trim_start_matches('#')),
            None => line.to_owned(),
        };
        let _ = write!(text, "\n{line}");
    }
    text + "\n"
}

/// The text of a settings file with these values too, each below the remark that tells of it, or else
/// below its section. `None`: it is written in a way in which that cannot be done, or has them.
pub fn with_settings(text: &str, values: &[(&str, String)]) -> Option<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let mut wanted: Table = text.parse().ok()?;
    for (name, value) in values {
        let (section, key) = name.split_once('.')?;
        let line = format!("{key} = {value}");
        let bare = |it: &str| it.split('#').next().unwrap_or_default().trim().to_owned();
        let is_header = |it: &String| bare(it).starts_with('[');
        let begins = lines.iter().position(|it| {
            let inner = bare(it);
            let inner = inner.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
            inner.is_some_and(|it| it.trim() == section)
        });
        if let Some(begins) = begins {
            let rest = &lines[begins + 1..];
            let rest = &rest[..rest.iter().position(is_header).unwrap_or(rest.len())];
            let told = rest.iter().position(|it| {
                let remark = it.trim_start().strip_prefix('#').and_then(|it| it.split_once('='));
                remark.is_some_and(|(it, _)| it.trim() == key)
            });
            lines.insert(begins + 1 + told.map_or(0, |it| it + 1), line);
        } else {
            lines.extend([String::new(), format!("[{section}]"), line]);
        }
        let value: Table = format!("it = {value}").parse().ok()?;
        let section = wanted.entry(section).or_insert_with(|| Table::new().into());
        section.as_table_mut()?.insert(key.to_owned(), value["it"].clone());
    }
    let text = lines.join("\n") + "\n";
    // Whatever it looks like, it has to say what it said, and these, and nothing else.
    (text.parse::<Table>().ok()? == wanted).then_some(text)
}

/// Reads the template: `# prose`, `[section]`, `key = default`, `#key = example`.
fn sections() -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    let mut prose: Vec<&str> = Vec::new();
    for line in TEMPLATE.lines() {
        if let Some(text) = line.strip_prefix("# ") {
            prose.push(text);
        } else if let Some(name) = line.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
            let meaning = prose.join(" ");
            sections.push(Section { name, meaning, settings: Vec::new() });
            prose.clear();
        } else if let Some((key, value)) = line.split_once(" = ") {
            let section = sections.last_mut().expect("the template begins with a section");
            section.settings.push(Setting {
                section: section.name,
                key: key.trim_start_matches('#'),
                value,
                unset: key.starts_with('#'),
                meaning: prose.join(" "),
            });
            prose.clear();
        } else {
            // An empty line ends a remark that belongs to no setting.
            prose.clear();
        }
    }
    sections
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::options::Options;

    /// Whoever starts from the template changes nothing by it.
    #[test]
    fn the_template_shows_the_defaults() {
        let template: Options = toml::from_str(TEMPLATE).unwrap();
        assert_eq!(format!("{template:#?}"), format!("{:#?}", Options::default()));
    }

    /// The types and the template name the same settings.
    #[test]
    fn the_template_has_every_setting_and_no_other() {
        // "unknown field `…`, expected one of `…`, `…`"
        let known = |text: &str| -> BTreeSet<String> {
            let error = toml::from_str::<Options>(text).unwrap_err();
            error.message().split('`').skip(3).step_by(2).map(str::to_owned).collect()
        };
        let sections = sections();
        let names: BTreeSet<_> = sections.iter().map(|it| it.name.to_owned()).collect();
        assert_eq!(names, known("unknown = 1"));
        for Section { name, settings, .. } in sections {
            let keys: BTreeSet<_> = settings.iter().map(|it| it.key.to_owned()).collect();
            assert_eq!(keys, known(&format!("{name}.unknown = 1")));
            assert_eq!(keys.len(), settings.len(), "a key twice in [{name}]");
        }
    }

    #[test]
    fn a_settings_file_sets_what_it_is_given_and_nothing_else() {
        let values = [("nats.pid_file", "\"n.pid\"".into()), ("pocketbase.url", "\"u\"".into())];
        let text = settings_file(&values);
        let found: Options = toml::from_str(&text).unwrap();
        let mut wanted = Options::default();
        wanted.nats.pid_file = vec!["n.pid".into()];
        wanted.pocketbase.url = Some("u".into());
        assert_eq!(format!("{found:#?}"), format!("{wanted:#?}"));
        assert_eq!(text.lines().count(), TEMPLATE.lines().count());
    }

    #[test]
    fn a_settings_file_gains_values_and_keeps_all_else() {
        let values = [
            ("nats.config_file", "\"n.conf\"".to_owned()),
            ("nats.pid_file", "\"n.pid\"".to_owned()),
            ("auth_file.path", "\"a.conf\"".to_owned()),
        ];
        let full = settings_file(&[("pocketbase.url", "\"u\"".into())]);
        let text = with_settings(&full, &values).unwrap();
        let all = [&[("pocketbase.url", "\"u\"".to_owned())], &values[..]].concat();
        let options = |text: &str| format!("{:#?}", toml::from_str::<Options>(text).unwrap());
        assert_eq!(options(&text), options(&settings_file(&all)));
        // Every line that was there is there, in its order.
        let mut left = text.lines();
        assert!(full.lines().all(|line| left.any(|it| it == line)), "{text}");
        let told = "#config_file = \"nats-server.conf\"\nconfig_file = \"n.conf\"\n";
        assert!(text.contains(told), "{text}");

        let pid_file = &values[1..2];
        let short = "# mine\n[ nats ] # here\nreload_timeout = \"3s\" # long\n[sync]";
        let longer = "# mine\n[ nats ] # here\npid_file = \"n.pid\"\nreload_timeout = \"3s\" # long\n[sync]\n";
        assert_eq!(with_settings(short, pid_file).as_deref(), Some(longer));
        let alone = "\n[nats]\npid_file = \"n.pid\"\n";
        assert_eq!(with_settings("", pid_file).as_deref(), Some(alone));
        for cannot in [
            "nats.x = 1",
            "nats = {}",
            "[nats]\npid_file = \"b\"",
            "x = \"\"\"\n[nats]\n\"\"\"",
            "=",
        ] {
            assert_eq!(with_settings(cannot, pid_file), None, "{cannot}");
        }
    }

    #[test]
    fn every_example_is_right_and_every_setting_is_explained() {
        for setting in SETTINGS.iter() {
            let text = format!("{} = {}", setting.name(), setting.value);
            toml::from_str::<Options>(&text).expect(&text);
            assert!(setting.meaning.ends_with('.'), "{text}: {}", setting.meaning);
            assert!(!setting.meaning.contains('|'), "{text} would break the table");
        }
    }
}
