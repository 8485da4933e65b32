//! The program at its edge: what it prints where, and how it ends.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

const COMMANDS: [&str; 15] = [
    "run",
    "once",
    "plan",
    "render",
    "check",
    "explain",
    "status",
    "backups",
    "init",
    "user",
    "role",
    "dev",
    "hash",
    "completions",
    "man",
];
const SETTINGS: &str = "[pocketbase]\nurl = \"http://127.0.0.1:9\"\ntoken = \"t0ps3cret\"\n";

/// A run of the program, with no variables but its own, in a folder without settings.
struct Call {
    command: Command,
    folder: TempDir,
}

struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

fn call(arguments: &[&str]) -> Call {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pb-nats"));
    command.args(arguments).env_clear().current_dir(&folder);
    Call { command, folder }
}

impl Call {
    fn variable(mut self, name: &str, value: &str) -> Call {
        self.command.env(name, value);
        self
    }

    fn settings(self, text: &str) -> Call {
        put(&self.folder.path().join("pb-nats.toml"), text);
        self
    }

    #[track_caller]
    fn stdin(mut self, bytes: impl AsRef<[u8]>) -> Ended {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap();
        // Who refuses its arguments does not read.
        let _ = child.stdin.take().unwrap().write_all(bytes.as_ref());
        ended(child.wait_with_output().unwrap())
    }

    #[track_caller]
    fn end(mut self) -> Ended {
        ended(self.command.stdin(Stdio::null()).output().unwrap())
    }
}

impl Ended {
    #[track_caller]
    fn refused(&self, parts: &[&str]) {
        let Ended { code, stdout, stderr } = self;
        assert_eq!((*code, &**stdout), (2, ""), "{stderr}");
        assert!(stderr.starts_with("error: "), "{stderr}");
        for part in parts {
            assert!(stderr.contains(part), "`{part}` has to be in:\n{stderr}");
        }
    }
}

#[track_caller]
fn ended(output: Output) -> Ended {
    Ended {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn put(path: &Path, text: &str) {
    fs::File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
}

#[test]
fn wrong_usage_ends_with_2() {
    for arguments in [
        &["nonsense"][..],
        &["plan", "--nonsense"],
        &["plan", "-q", "-v"],
        &["plan", "--log-format", "xml"],
        &["hash", "--cost", "3"],
        &["hash", "--cost", "15"],
        &["hash", "password"],
    ] {
        call(arguments).end().refused(&["--help"]);
    }
    let ended = call(&[]).end();
    assert_eq!((ended.code, &*ended.stdout), (2, ""));
    assert!(ended.stderr.contains("Usage: pb-nats"));
}

#[test]
fn help_has_every_command_with_an_example() {
    let ended = call(&["--help"]).end();
    let (_, list) = ended.stdout.split_once("Commands:\n").unwrap();
    let (list, _) = list.split_once("\n\n").unwrap();
    // What does not fit goes on, further in.
    let commands = list.lines().filter(|it| !it.starts_with("   "));
    let listed: Vec<_> = commands.map(|it| it.split_whitespace().next().unwrap()).collect();
    assert_eq!(listed, [&COMMANDS[..], &["help"]].concat());
    for command in COMMANDS.into_iter().chain(["backups list", "backups restore"]) {
        let words: Vec<_> = command.split(' ').chain(["--help"]).collect();
        let ended = call(&words).end();
        assert_eq!((ended.code, &*ended.stderr), (0, ""));
        let (_, example) = ended.stdout.split_once("Example:\n").expect(command);
        assert!(example.contains(&format!(" {command}")), "{example}");
    }
    let version = call(&["--version"]).end();
    assert_eq!(version.stdout, format!("pb-nats {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_mistyped_command_is_told_what_may_have_been_meant() {
    call(&["pln"]).end().refused(&["'pln'", "'plan'"]);
    call(&["backups", "lst"]).end().refused(&["'lst'", "'list'"]);
    call(&["plan", "--jsn"]).end().refused(&["'--jsn'", "'--json'"]);
}

#[test]
fn shells_and_man_are_told_of_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ended = call(&["completions", shell]).end();
        assert_eq!((ended.code, &*ended.stderr), (0, ""));
        for word in COMMANDS.into_iter().chain(["restore", "accept-removals"]) {
            assert!(ended.stdout.contains(word), "{shell}: {word}");
        }
    }
    let script = call(&["completions", "bash"]).end().stdout;
    let complete = "\nCOMP_WORDS=(pb-nats backups re); COMP_CWORD=2\n\
                    _pb__nats pb-nats re backups; echo \"${COMPREPLY[@]}\"";
    let said = Command::new("bash").args(["-c", &(script + complete)]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout), "restore\n", "{said:?}");

    let page = call(&["man"]).end().stdout;
    for command in COMMANDS {
        assert!(page.contains(&format!("pb\\-nats\\-{command}(1)")), "{command}:\n{page}");
    }
    let page = call(&["man", "backups", "restore"]).end().stdout;
    assert!(page.contains(".TH pb-nats-backups-restore 1") && page.contains("Example:"), "{page}");
    call(&["man", "nonsense"]).end().refused(&["`nonsense`", "hint: "]);
}

/// As in `pb-nats … | head -1`.
#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    for arguments in [&["completions", "bash"][..], &["man"], &["--help"]] {
        let mut call = call(arguments);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ended = ended(call.command.stdout(writer).output().unwrap());
        assert_eq!((ended.code, &*ended.stderr), (0, ""), "{arguments:?}");
    }
    // Nor is one of what is said on stderr, be it a log line or an error.
    let mut call = call(&["plan"]).settings(SETTINGS);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(ended(call.command.stderr(writer).output().unwrap()).code, 1);
}

#[test]
fn bad_settings_end_every_command_with_2_and_the_line() {
    for command in &COMMANDS[..5] {
        let text = format!("{SETTINGS}[sync]\nmax_wiat = \"2s\"\n");
        call(&[command]).settings(&text).end().refused(&[
            "error: pb-nats.toml, line 5, column 1: unknown key `max_wiat` in `[sync]`\n",
            "hint: did you mean `max_wait`?\n",
        ]);
    }
}

#[test]
fn no_settings_at_all_is_told_with_where_they_were_looked_for() {
    if Path::new("/etc/pb-nats/pb-nats.toml").exists() {
        return;
    }
    let ended = call(&["plan"]).end();
    ended.refused(&[
        "`pb-nats.toml`",
        "`/etc/pb-nats/pb-nats.toml`",
        "hint: `pb-nats init`",
        "--config",
    ]);
}

#[test]
fn a_missing_settings_file_is_named_once() {
    let ended = call(&["plan", "-c", "there/is/none.toml"]).end();
    ended.refused(&["\ncause: ", "there/is/none.toml", "No such file", "hint: "]);
    assert_eq!(ended.stderr.matches("none.toml").count(), 1, "{}", ended.stderr);
}

/// The environment alone will do, and its own mistakes are told by name.
#[test]
fn a_mistake_in_the_environment_is_told_by_name() {
    call(&["plan"])
        .variable("PB_NATS_POCKETBASE_URL", "http://127.0.0.1:9")
        .variable("PB_NATS_POCKETBASE_TOKEN", "t0ps3cret")
        .variable("PB_NATS_SYNC_DEBOUNCE", "soon")
        .end()
        .refused(&["error: PB_NATS_SYNC_DEBOUNCE: ", "hint: ", "PB_NATS_SYNC_DEBOUNCE=250ms"]);
}

#[test]
fn no_output_shows_a_secret() {
    let secret = "t0ps3cret";
    let bad = [
        SETTINGS.replace("t0ps3cret\"", "t0ps3cret"),
        SETTINGS.replace("\"t0ps3cret", "t0ps3cret"),
        SETTINGS.replace("token", "tokne"),
        format!("{SETTINGS}token_file = \"f\"\n"),
        format!("{SETTINGS}[nats]\nsystem_url = \"nats://u:t0ps3cret@127.0.0.1\"\n"),
    ];
    for text in bad.iter().map(String::as_str).chain([SETTINGS]) {
        for command in ["plan", "render", "check", "once"] {
            let call = call(&[command, "-vv"]).settings(text).variable("RUST_LOG", "trace");
            let Ended { stdout, stderr, .. } = call.variable("RUST_BACKTRACE", "1").end();
            assert!(!stdout.contains(secret) && !stderr.contains(secret), "{text}\n{stderr}");
        }
    }
}

/// The one thing that `hash` is for: what it prints lets exactly this password in.
#[test]
fn hash_prints_a_hash_of_the_password_without_its_newline() {
    let longest = "x".repeat(72);
    for (input, password, doubtful) in [
        ("pässword", "pässword", false),
        ("my secret\n", "my secret", false),
        ("my secret\r\n", "my secret", false),
        ("my secret\n\n", "my secret\n", true),
        (" secret \t", " secret \t", true),
        ("secret", "secret", true),
        (&longest, &longest, false),
    ] {
        let ended = call(&["hash", "--cost", "4"]).stdin(input);
        assert_eq!(ended.code, 0, "{input:?}");
        let warned = ended.stderr.starts_with("warning: the password ");
        assert_eq!((warned, ended.stderr.is_empty()), (doubtful, !doubtful), "{input:?}");
        let hash = ended.stdout.strip_suffix('\n').unwrap();
        assert_eq!((&hash[..7], hash.len()), ("$2b$04$", 60));
        assert!(bcrypt::verify(password, hash).unwrap(), "{input:?}");
        assert!(!bcrypt::verify(format!("{password}x"), hash).unwrap() || password.len() == 72);
    }
    assert!(call(&["hash"]).stdin("secret").stdout.starts_with("$2b$10$"));
}

#[test]
fn hash_refuses_what_would_not_be_the_password_meant() {
    call(&["hash"]).stdin("").refused(&["empty", "hint: "]);
    call(&["hash"]).stdin("\r\n").refused(&["empty"]);
    call(&["hash"]).stdin("x".repeat(73)).refused(&["only the first 72 would count"]);
    call(&["hash"]).stdin(vec![b'x'; 1_000_000]).refused(&["longer than 72 bytes"]);
    call(&["hash"]).stdin(b"caf\xe9").refused(&["UTF-8"]);
}

#[test]
fn a_full_disk_behind_stdout_is_a_failure() {
    let mut call = call(&["hash", "--cost", "4"]);
    let password = call.folder.path().join("password");
    put(&password, "my secret");
    call.command.stdin(fs::File::open(password).unwrap());
    call.command.stdout(fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    let ended = ended(call.command.output().unwrap());
    assert_eq!(ended.code, 1);
    assert_eq!(
        ended.stderr,
        "error: stdout cannot be written\ncause: No space left on device (os error 28)\n"
    );
}

/// With these settings there is something to warn of.
#[test]
fn logs_are_lines_on_stderr_in_the_form_asked_for() {
    let part = "nothing reloads the server";
    let warned = |arguments: &[&str], variables: &[(&str, &str)]| -> Option<String> {
        let mut call = call(&[&["plan"], arguments].concat()).settings(SETTINGS);
        for (name, value) in variables {
            call = call.variable(name, value);
        }
        let ended = call.end();
        assert!(!ended.stdout.contains(part));
        ended.stderr.lines().find(|it| it.contains(part)).map(str::to_owned)
    };
    let text = warned(&[], &[]).unwrap();
    assert!(text.starts_with("20") && text.contains(" WARN ") && !text.contains('\x1b'), "{text}");
    assert!(warned(&["-q"], &[]).is_some());
    assert!(warned(&["-q"], &[("RUST_LOG", "off")]).is_none());
    assert!(warned(&[], &[("RUST_LOG", "")]).is_some());

    let text = warned(&[], &[("JOURNAL_STREAM", "8:1234")]).unwrap();
    assert!(text.trim_start().starts_with("WARN "), "{text}");

    let json = warned(&["--log-format", "json"], &[]).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["level"], "WARN");
    assert!(json["message"].as_str().unwrap().contains(part), "{json}");
    assert!(json["timestamp"].is_string(), "{json}");

    let bad = call(&["plan"]).settings(SETTINGS).variable("RUST_LOG", "a=b=c").end();
    bad.refused(&["`RUST_LOG`", "hint: "]);
}
