//! The book in `docs/`: what it says to type is typed here.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    PB_NATS,
    support::{self, Nats, Pb, PbNats, free_address},
};

/// A fenced block, with the line that it begins at and what stands before it.
struct Block<'a> {
    language: &'a str,
    text: String,
    line: usize,
    before: &'a str,
}

/// Every recipe is a role, and its questions have the answers that stand behind them: by our own
/// reckoning, and by a real connection.
#[test]
fn the_cookbook_tells_the_truth() {
    let (pb, nats) = (Pb::start(), Nats::start());
    let pb_nats = PbNats::between(PB_NATS, &pb, &nats);
    let mut questions = 0;
    for recipe in recipes() {
        recipe.make(&pb, "secret");
        for (line, command) in &recipe.questions {
            ask(&pb_nats, command)
                .unwrap_or_else(|problem| panic!("docs/cookbook.md:{line}: {command}\n{problem}"));
            questions += 1;
        }
    }
    assert!(questions > 40, "{questions} questions");
}

/// A role of the cookbook, and what is said of it.
pub(crate) struct Recipe {
    /// The fields of the role.
    pub(crate) role: Value,
    /// Further fields of those who have it.
    pub(crate) users: Value,
    /// The one who is asked about.
    pub(crate) user: String,
    /// Commands with their answers, and the lines that they stand on.
    pub(crate) questions: Vec<(usize, String)>,
}

impl Recipe {
    pub(crate) fn name(&self) -> &str {
        self.role["name"].as_str().expect("a role has a name")
    }

    /// Makes the role, and the user who is asked about.
    pub(crate) fn make(&self, pb: &Pb, password: &str) {
        let id = pb.user(&self.user, password, &pb.create("nats_roles", &self.role));
        pb.update("nats_users", &id, &self.users);
    }
}

/// What the cookbook has: a role, what its users have beside it, and questions.
pub(crate) fn recipes() -> Vec<Recipe> {
    let page = fs::read_to_string("docs/cookbook.md").unwrap();
    let mut recipes: Vec<Recipe> = Vec::new();
    for block in blocks(&page) {
        let here = format!("docs/cookbook.md:{}", block.line);
        match block.language {
            "json" => {
                let fields: Value = serde_json::from_str(&block.text).unwrap();
                if fields["name"].is_null() {
                    recipes.last_mut().expect("a role before its users").users = fields;
                } else {
                    let (users, user, questions) = (json!({}), String::new(), Vec::new());
                    recipes.push(Recipe { role: fields, users, user, questions });
                }
            }
            "sh" => {
                let recipe = recipes.last_mut().expect("a role before its questions");
                for (line, command) in (block.line + 1..).zip(block.text.lines()) {
                    let user = command.split(' ').nth(2).unwrap();
                    assert!([user, ""].contains(&&*recipe.user), "{here}: one user a recipe");
                    user.clone_into(&mut recipe.user);
                    recipe.questions.push((line, command.to_owned()));
                }
            }
            other => panic!("{here}: a block of `{other}`"),
        }
    }
    for recipe in &recipes {
        assert!(!recipe.questions.is_empty(), "nothing is said of {}", recipe.name());
    }
    recipes
}

/// `pb-nats explain USER … # allowed`, by records and for real.
fn ask(pb_nats: &PbNats, command: &str) -> Result<(), String> {
    let (command, answer) = command.split_once(" # ").ok_or("no answer")?;
    let words = shlex::split(command).ok_or("no shell would take this")?;
    let arguments: Vec<&str> = words[1..].iter().map(String::as_str).collect();
    let code = match answer.trim() {
        "allowed" => 0,
        "denied" => 1,
        other => return Err(format!("`{other}` is no answer")),
    };
    for live in [&[][..], &["--live"]] {
        let said = pb_nats.command(&[&arguments, live].concat());
        if said.code != Some(code) {
            return Err(format!("{live:?}: exit {:?}\n{}{}", said.code, said.stdout, said.stderr));
        }
    }
    Ok(())
}

/// Typed literally, in an empty folder, with only the ports changed.
#[test]
fn the_quick_start_leads_to_a_user_with_rights() {
    let mut page = fs::read_to_string("docs/quick-start.md").unwrap();
    let free = [(); 3].map(|()| free_address().port());
    for (usual, free) in ["8090", "4222", "8222"].into_iter().zip(free) {
        page = page.replace(&format!(":{usual}"), &format!(":{free}"));
    }
    let typed: Vec<String> =
        blocks(&page).into_iter().filter(|it| it.language == "sh").map(|it| it.text).collect();
    let folder = TempDir::new().unwrap();
    let programs = folder.path().join("bin");
    fs::create_dir(&programs).unwrap();
    for (name, program) in [
        ("pb-nats", PathBuf::from(PB_NATS)),
        ("pocketbase", support::tool("pocketbase", None)),
        ("nats-server", support::tool("nats-server", None)),
    ] {
        symlink(program, programs.join(name)).unwrap();
    }
    // People type slowly: a server that was started is up when the next line is typed.
    let listens = |port| format!("(exec 3<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null");
    let waits = [
        ("pocketbase serve", listens(free[0])),
        ("nats-server -c", listens(free[1])),
        ("pb-nats run", "pb-nats status".to_owned()),
    ];
    let mut script =
        format!("set -ex; trap 'kill $(jobs -p); wait' EXIT; PATH={}:$PATH\n", programs.display());
    for block in typed {
        script += &block;
        let started = waits.iter().filter(|(command, _)| block.contains(command));
        script.extend(started.map(|(_, up)| format!("until {up}; do sleep 0.1; done\n")));
    }
    let ran = Command::new("timeout")
        .args(["180", "bash", "-c", &script])
        .current_dir(folder.path())
        .env("PB_NATS_ADMIN_LISTEN", free_address().to_string())
        .output()
        .unwrap();
    let (out, log) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{out}\n{log}");
    assert!(out.contains("In force on 1 of 1 server · 1 user"), "{out}\n{log}");
    assert!(out.contains("says the same"), "{out}\n{log}");
}

/// What is not run is marked, with the reason.
#[test]
fn every_command_in_the_book_is_run_or_says_why_not() {
    const RUN_AS_A_WHOLE: &[&str] = &["cookbook.md", "quick-start.md"];
    for page in pages() {
        if RUN_AS_A_WHOLE.contains(&page.as_str()) {
            continue;
        }
        let text = fs::read_to_string(format!("docs/{page}")).unwrap();
        for block in blocks(&text).into_iter().filter(|it| it.language == "sh") {
            let marked = block.before.trim().starts_with("<!-- not run here: ");
            assert!(marked, "docs/{page}:{}: neither run nor marked", block.line);
            let read = Command::new("bash").args(["-n", "-c", &block.text]).status().unwrap();
            assert!(read.success(), "docs/{page}:{}: no shell would take this", block.line);
            for word in block.text.split_whitespace().filter(|it| it.starts_with("dist/")) {
                assert!(Path::new(word).exists(), "docs/{page}:{}: no {word}", block.line);
            }
        }
    }
}

/// In the text as in the blocks, and down to the last flag.
#[test]
fn every_command_that_the_book_names_is_one() {
    let mut tried = 0;
    let pages = pages().into_iter().filter(|it| it != "commands.md");
    for page in pages.map(|it| format!("docs/{it}")).chain(["README.md".into()]) {
        let text = fs::read_to_string(&page).unwrap();
        let quoted = text.lines().flat_map(|it| it.split('`').skip(1).step_by(2));
        let blocks = blocks(&text);
        let typed = blocks.iter().flat_map(|it| it.text.lines());
        let typed = typed.map(|it| it.trim_start_matches("$ ").trim_end_matches([' ', '&']));
        for command in quoted.chain(typed) {
            let Some(words) = command.strip_prefix("pb-nats ") else { continue };
            let words = words.split(" # ").next().unwrap();
            let words = shlex::split(words).expect("a shell would take it");
            // Only if all before it is understood is this answered.
            let help = Command::new(PB_NATS).args(&words).arg("--help").output().unwrap();
            let said = String::from_utf8_lossy(&help.stderr);
            assert!(help.status.success(), "{page}: {command}\n{said}");
            tried += 1;
        }
    }
    assert!(tried > 80, "{tried} commands");
}

/// The pages that the summary names, and it names all there are.
fn pages() -> Vec<String> {
    let summary = fs::read_to_string("docs/SUMMARY.md").unwrap();
    let mut named: Vec<String> = summary
        .lines()
        .filter_map(|it| it.split_once("](")?.1.strip_suffix(')'))
        .map(str::to_owned)
        .collect();
    let mut found: Vec<String> = fs::read_dir("docs")
        .unwrap()
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .filter(|it| *it != *"SUMMARY.md" && Path::new(it).extension().is_some_and(|it| it == "md"))
        .collect();
    found.sort();
    named.sort();
    assert_eq!(named, found, "docs/SUMMARY.md names the pages there are");
    named
}

fn blocks(page: &str) -> Vec<Block<'_>> {
    let (mut blocks, mut open, mut before) = (Vec::new(), None::<Block>, "");
    for (number, line) in (1..).zip(page.lines()) {
        match (&mut open, line.trim().strip_prefix("```")) {
            (None, Some(language)) => {
                open = Some(Block { language, text: String::new(), line: number, before });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => {
                block.text += line;
                block.text.push('\n');
            }
            (None, None) => before = line,
        }
    }
    assert!(open.is_none(), "a block that does not end");
    blocks
}
