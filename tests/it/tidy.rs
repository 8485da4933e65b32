//! What the repository promises about itself.

use std::{
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// `cargo xtask docs` lets this test write the pages instead.
#[test]
fn generated_pages_are_up_to_date() {
    let pages = [
        ("docs/settings.md", pb_nats::options::reference()),
        ("docs/metrics.md", pb_nats::admin::reference()),
        ("docs/commands.md", commands()),
    ];
    for (path, page) in pages {
        if env::var_os("UPDATE_DOCS").is_some() {
            crate::support::write(path, &page);
        }
        let found = fs::read_to_string(path).unwrap_or_default();
        assert!(found == page, "{path} is out of date; `cargo xtask docs` writes it anew");
    }
}

/// Who draws or alerts by a metric that is gone never hears of it.
#[test]
fn dashboard_and_alerts_name_metrics_that_exist() {
    let page = fs::read_to_string("docs/metrics.md").unwrap();
    for file in ["dist/grafana/pb-nats.json", "dist/prometheus/pb-nats.rules.yml"] {
        let text = fs::read_to_string(file).unwrap();
        let mut named = 0;
        for (at, _) in text.match_indices("pb_nats_") {
            let end = |it: char| !it.is_ascii_alphanumeric() && it != '_';
            let name = text[at..].split(end).next().unwrap();
            let metric = name.trim_end_matches("_bucket");
            assert!(page.contains(&format!("| `{metric}` |")), "{file} names {metric}");
            named += 1;
        }
        assert!(named > 5, "{file} names metrics");
    }
}

/// What each command says to `--help`.
fn commands() -> String {
    let mut page = String::from(
        "<!-- Made from `pb-nats --help`; `cargo xtask docs` writes it. -->\n\n# Commands\n",
    );
    let mut asked = vec![Vec::new()];
    while let Some(command) = asked.pop() {
        let said = Command::new(crate::PB_NATS).args(&command).arg("--help").output().unwrap();
        let help = String::from_utf8(said.stdout).unwrap();
        let title = [&["pb-nats"][..], &command.iter().map(String::as_str).collect::<Vec<_>>()];
        let _ = write!(page, "\n## `{}`\n\n```text\n{help}```\n", title.concat().join(" "));
        let listed = help.lines().skip_while(|it| *it != "Commands:").skip(1);
        let names = listed.take_while(|it| it.starts_with("  "));
        let names =
            names.filter(|it| !it.starts_with("   ")).filter_map(|it| it.split_whitespace().next());
        let below: Vec<Vec<String>> = names
            .filter(|it| *it != "help")
            .map(|it| [&command[..], &[it.to_owned()]].concat())
            .collect();
        asked.extend(below.into_iter().rev());
    }
    page
}

/// What the README shows and links is what is there.
#[test]
fn the_readme_names_tests_that_exist_and_shows_the_example_as_it_is() {
    let readme = fs::read_to_string("README.md").unwrap();
    let example = fs::read_to_string("examples/embed.rs").unwrap();
    assert!(readme.contains(&format!("```rust,no_run\n{example}```\n")), "README's example");
    let mut links = 0;
    for (before, after) in readme.match_indices("`](tests/it/").map(|(at, _)| readme.split_at(at)) {
        let name = before.rsplit('`').next().unwrap();
        let file = after.split(['(', ')']).nth(1).unwrap();
        let code = fs::read_to_string(file).unwrap_or_default();
        assert!(code.contains(&format!("fn {name}() {{")), "{file} has no `{name}`");
        links += 1;
    }
    assert!(links > 10, "each promise has a test");
}

/// `src/auth` is pure: what it decides depends on its arguments and on nothing else.
#[test]
fn what_nats_should_allow_is_decided_without_looking_outside() {
    const OUTSIDE: &[&str] = &[
        "tokio",
        "tracing",
        "fs_err",
        "std::fs",
        "std::net",
        "std::env",
        "std::process",
        "SystemTime",
        "Instant",
        "Timestamp::now",
    ];
    for file in room("auth") {
        let code = code(&file);
        for word in OUTSIDE {
            assert!(!code.contains(word), "{} mentions {word}", file.display());
        }
    }
}

/// A room knows the rooms behind it, and none that is in front.
#[test]
fn rooms_know_only_what_is_behind_them() {
    const ROOMS: &[(&str, &[&str])] = &[
        ("auth", &[]),
        ("causes", &[]),
        ("options", &["auth", "source"]),
        ("tls", &[]),
        ("source", &["auth", "causes", "options", "tls"]),
        ("state", &["auth", "options"]),
        ("nats", &["auth", "options", "tls"]),
        ("engine", &["auth", "causes", "nats", "options", "state"]),
        ("status", &["auth", "causes", "engine", "nats", "options", "source"]),
        (
            "reconcile",
            &["auth", "causes", "engine", "nats", "options", "source", "state", "status"],
        ),
        ("admin", &["auth", "causes", "options", "reconcile", "source", "status", "tls"]),
        (
            "check",
            &[
                "auth",
                "causes",
                "engine",
                "nats",
                "options",
                "reconcile",
                "source",
                "state",
                "status",
            ],
        ),
    ];
    for (name, behind) in ROOMS {
        for file in room(name) {
            let code = code(&file);
            for named in code.split("crate::").skip(1).flat_map(rooms_at) {
                let known = ROOMS.iter().any(|(room, _)| *room == named);
                let allowed = !known || named == *name || behind.contains(&named);
                assert!(allowed, "{} knows `{named}`", file.display());
            }
        }
    }
}

/// Everything but the auth file and its backups may be out of reach for writing.
#[test]
fn only_the_auth_file_is_written() {
    const WRITING: &[&str] = &[
        "fs::write",
        "File::create",
        "OpenOptions",
        "DirBuilder",
        "create_dir",
        "remove_dir",
        "remove_file",
        "rename(",
        "hard_link",
        "symlink(",
        "set_len",
        "set_permissions",
        "chown(",
        "fs::copy",
        "tempfile::",
    ];
    only_in(&["state"], WRITING);
}

/// A library leaves stdout, stderr and the exit code to the program.
#[test]
fn only_main_prints_and_ends_the_process() {
    const PRINTING: &[&str] =
        &["print!(", "println!(", "dbg!(", "stdout()", "stderr()", "process::exit", "ExitCode"];
    only_in(&["main", "commands"], PRINTING);
}

fn only_in(may: &[&str], words: &[&str]) {
    for entry in fs::read_dir("src").unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        if may.contains(&name) || path.is_dir() {
            continue;
        }
        for file in room(name) {
            let code = code(&file);
            for word in words {
                assert!(!code.contains(word), "{} mentions {word}", file.display());
            }
        }
    }
}

/// What `crate::` is followed by: one name, or a list of them in braces.
fn rooms_at(code: &str) -> Vec<&str> {
    let no_name = |it: char| !it.is_alphanumeric();
    match code.strip_prefix('{').and_then(|list| list.split(';').next()) {
        Some(list) => list.split(no_name).collect(),
        None => code.split(no_name).take(1).collect(),
    }
}

/// The files of a room: its door and what is behind it.
fn room(name: &str) -> Vec<PathBuf> {
    let mut files = vec![Path::new("src").join(format!("{name}.rs"))];
    let mut folders = vec![Path::new("src").join(name)];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).into_iter().flatten().map(|it| it.unwrap().path()) {
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.retain(|it| it.extension().is_some_and(|it| it == "rs") && !it.ends_with("tests.rs"));
    files
}

/// A file without its tests and without comments.
fn code(file: &Path) -> String {
    let text =
        fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    code.lines().filter(|it| !it.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}
