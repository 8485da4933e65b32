//! `pb-nats check`: what is wrong is named with the way to mend it, and what is right is left in peace.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use pb_nats::{options::PocketBaseOptions, source::view::export_view_query};
use serde_json::{Value, json};

use crate::{
    PB_NATS,
    support::{
        Nats, Optional, Output, Pb, PbNats, Process, SYSTEM_ACCOUNT, SYSTEM_USER, Setup, Users,
        eventually, write,
    },
};

const PASSWORD: &str = "open sesame";
/// Only the service account sees anything.
const RULE: &str = "@request.auth.collectionName = 'nats_sync'";
/// A month.
const LASTING: u64 = 30 * 24 * 3600;

/// As `init` makes it.
const NKEY_INDEX: &str =
    "CREATE UNIQUE INDEX `idx_nkey` ON `nats_users` (`nkey`) WHERE `nkey` != ''";

/// Everything as it should be: the least of rights, and nothing left to chance.
struct Town {
    pb: Pb,
    nats: Nats,
    pb_nats: PbNats,
    service: String,
}

impl Town {
    fn new(version: Option<&str>, setup: Setup<'_>) -> Town {
        let mut pb = Pb::empty(version);
        pb.create_collections(Users::Text, Optional::Present);
        let index = "CREATE UNIQUE INDEX `idx_name` ON `nats_users` (`username`)";
        change(&pb, "nats_users", &json!({ "indexes": [index, NKEY_INDEX] }));
        change_field(&pb, "role_id", |it| it["required"] = true.into());

        pb.ask("POST", "/api/collections", &json!({ "name": "nats_sync", "type": "auth" }));
        let who =
            json!({ "email": "s@example.com", "password": PASSWORD, "passwordConfirm": PASSWORD });
        let service = pb.create("nats_sync", &who);
        for name in ["nats_users", "nats_roles"] {
            change(&pb, name, &json!({ "listRule": RULE }));
        }
        make_view(&pb);

        let role = pb.role("clerk", &["orders.>"], &["orders.>", "_INBOX_{{username}}.>"]);
        pb.user("ann", PASSWORD, &role);
        let nats = Nats::with(setup);
        chmod(nats.auth_file(), 0o640);
        let pb_nats = PbNats::between(PB_NATS, &pb, &nats);
        let town = Town { pb, nats, pb_nats, service };
        town.token(LASTING);
        chmod(town.pb_nats.dir().join("token"), 0o600);
        town.pb_nats.once().success();
        town
    }

    fn start() -> Town {
        Town::new(None, Setup::default())
    }

    /// Gives pb-nats a token that is good for so many seconds.
    fn token(&self, seconds: u64) {
        let path = format!("/api/collections/nats_sync/impersonate/{}", self.service);
        let token = self.pb.ask("POST", &path, &json!({ "duration": seconds }));
        write(self.pb_nats.dir().join("token"), token["token"].as_str().unwrap());
    }

    fn check(&self) -> Checked {
        Checked::of(&self.pb_nats.command(&["check", "--json"]))
    }

    /// What a change of one thing adds to nothing.
    #[track_caller]
    fn check_finds(&self, code: &str, parts: &[&str]) {
        self.check().has_only(&[code]).says(code, parts);
    }
}

/// What `check --json` has said.
struct Checked {
    code: i32,
    lines: Vec<Value>,
}

impl Checked {
    #[track_caller]
    fn of(output: &Output) -> Checked {
        let Ok(Value::Array(lines)) = serde_json::from_str(&output.stdout) else {
            panic!("{output:?}");
        };
        assert_eq!(output.stderr, "");
        Checked { code: output.code.unwrap(), lines }
    }

    /// The codes of all lines that are not good.
    fn codes(&self) -> Vec<&str> {
        let bad = self.lines.iter().filter(|it| it["verdict"] != "good");
        bad.map(|it| it["code"].as_str().unwrap()).collect()
    }

    #[track_caller]
    fn has_only(&self, codes: &[&str]) -> &Checked {
        assert_eq!(self.codes(), codes, "{:#}", Value::from(self.lines.clone()));
        let wrong = self.lines.iter().any(|it| it["verdict"] == "wrong");
        assert_eq!(self.code, i32::from(wrong), "only ✗ is a failure");
        self
    }

    fn line(&self, code: &str) -> &Value {
        let found = self.lines.iter().find(|it| it["code"] == code);
        found.unwrap_or_else(|| panic!("no {code} in {:#}", Value::from(self.lines.clone())))
    }

    /// The line has these in its words or its hint, and says how to mend it.
    #[track_caller]
    fn says(&self, code: &str, parts: &[&str]) -> &Checked {
        let line = self.line(code);
        let text = format!("{} hint: {}", line["text"].as_str().unwrap(), line["hint"]);
        assert!(line["verdict"] == "good" || line["hint"].is_string(), "{text}");
        for part in parts {
            assert!(text.contains(part), "`{part}` has to be in: {text}");
        }
        self
    }
}

fn change(pb: &Pb, collection: &str, changes: &Value) {
    pb.ask("PATCH", &format!("/api/collections/{collection}"), changes);
}

fn change_field(pb: &Pb, name: &str, change_it: impl Fn(&mut Value)) {
    let mut fields = pb.ask("GET", "/api/collections/nats_users", &Value::Null)["fields"].take();
    let mut field = fields.as_array_mut().unwrap().iter_mut();
    change_it(field.find(|it| it["name"] == name).unwrap());
    change(pb, "nats_users", &json!({ "fields": fields }));
}

pub(crate) fn make_view(pb: &Pb) {
    let schema = |name: &str| {
        let path = format!("/api/collections/{name}");
        serde_json::from_value(pb.ask("GET", &path, &Value::Null)).unwrap()
    };
    let (users, roles) = (schema("nats_users"), schema("nats_roles"));
    let query = export_view_query(&PocketBaseOptions::default(), &users, &roles).unwrap();
    let view =
        json!({ "name": "nats_export", "type": "view", "viewQuery": query, "listRule": RULE });
    pb.ask("POST", "/api/collections", &view);
}

fn remove(pb: &Pb, collection: &str) {
    pb.ask("DELETE", &format!("/api/collections/{collection}"), &Value::Null);
}

fn chmod(path: impl AsRef<Path>, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Puts the main config on disk as it was, but for this.
fn edit(nats: &Nats, from: &str, to: &str) -> String {
    let good = fs::read_to_string(nats.config_file()).unwrap();
    assert!(good.contains(from), "{good}");
    write(nats.config_file(), good.replace(from, to));
    good
}

#[test]
fn nothing_is_said_against_what_is_as_it_should_be() {
    for (pocketbase, nats_server) in [(None, None), (Some("0.23.12"), Some("2.10.26"))] {
        let setup = Setup { version: nats_server, ..Setup::default() };
        let town = Town::new(pocketbase, setup);
        town.check().has_only(&[]);

        let told = town.pb_nats.command(&["check"]).success();
        let lines: Vec<&str> = told.stdout.lines().collect();
        let (last, lines) = lines.split_last().unwrap();
        assert_eq!(*last, format!("0 wrong, 0 to look at, {} fine", lines.len()));
        for line in lines {
            let text: Vec<char> = line.chars().collect();
            let aligned = text[14] == ' ' && text[15] != ' ';
            assert!(line.starts_with("✓ ") && aligned, "{line}");
        }
        // Those of a topic stand together.
        let mut topics: Vec<&str> =
            lines.iter().map(|it| it[3..].split("  ").next().unwrap()).collect();
        topics.dedup();
        let all = topics.len();
        topics.sort_unstable();
        topics.dedup();
        assert_eq!(topics.len(), all, "{told:?}");
    }
}

#[test]
fn an_account_with_too_many_rights_or_little_time_is_named() {
    let town = Town::start();
    town.token(3600);
    town.check_finds("token.ends_soon", &["it ends at 20", "Impersonate"]);

    write(town.pb_nats.dir().join("token"), town.pb.token());
    town.check()
        .has_only(&["token.superuser", "token.ends_soon"])
        .says("token.superuser", &["service account", "`token_file`"]);

    town.token(LASTING);
    town.pb.create(
        "users",
        &json!({ "password": PASSWORD, "passwordConfirm": PASSWORD, "email": "a@example.com" }),
    );
    change(&town.pb, "users", &json!({ "listRule": format!("id = @request.auth.id || {RULE}") }));
    town.check_finds("token.reads_more", &["`users`"]);
    change(&town.pb, "users", &json!({ "listRule": "id = @request.auth.id" }));

    let token = town.pb_nats.dir().join("token");
    chmod(town.pb_nats.dir(), 0o755);
    chmod(&token, 0o644);
    town.check_finds("settings.secret_readable", &["`pocketbase.token_file`", "0644", "chmod 600"]);
    chmod(town.pb_nats.dir(), 0o700);
    town.check().has_only(&[]);

    write(&token, "nonsense");
    town.check().has_only(&["token.refused"]);
    town.token(LASTING);
    change(&town.pb, "nats_export", &json!({ "listRule": null }));
    town.check().has_only(&["token.forbidden"]).says("token.forbidden", &["`nats_export`"]);
}

/// What a superuser, or the database file, tells of the collections' rules.
#[test]
fn rules_that_let_others_read_or_write_are_named() {
    let mut town = Town::start();
    let rule =
        |name: &str, rule: &str, value: Value| change(&town.pb, name, &json!({ rule: value }));
    rule("nats_users", "listRule", "".into());
    town.check_finds("rules.public", &["`nats_users` without a log-in", "password hashes"]);
    rule("nats_users", "listRule", RULE.into());
    rule("nats_roles", "listRule", "".into());
    assert_eq!(town.check().has_only(&["rules.public"]).code, 0);
    rule("nats_roles", "listRule", RULE.into());

    town.pb_nats.unset("pocketbase.url");
    town.pb_nats.unset("pocketbase.token_file");
    town.pb_nats.set("pocketbase.data_dir", town.pb.data_dir().display().to_string());
    town.check().has_only(&[]);
    let rule =
        |name: &str, rule: &str, value: &str| change(&town.pb, name, &json!({ rule: value }));
    rule("nats_users", "viewRule", "@request.auth.id != \"\"");
    town.check_finds("rules.any_account", &["`nats_users`"]);
    rule("nats_users", "viewRule", RULE);
    rule("nats_users", "updateRule", "username = @request.auth.email");
    town.check_finds("rules.writable", &["change records", "@request.body.role_id:isset = false"]);
    rule("nats_users", "updateRule", "@request.body.role_id:isset = false");
    town.check().has_only(&[]);
    rule("nats_roles", "createRule", "");
    assert_eq!(town.check().has_only(&["rules.writable"]).code, 1, "anybody");
}

#[test]
fn collections_that_are_not_made_as_they_should_be_are_named() {
    let town = Town::start();
    let pb = &town.pb;
    let superuser = || write(town.pb_nats.dir().join("token"), pb.token());
    let also = |code| vec!["token.superuser", "token.ends_soon", code];

    superuser();
    change(pb, "nats_users", &json!({ "indexes": [] }));
    let checked = town.check();
    checked.says("schema.no_unique_index", &["CREATE UNIQUE INDEX `idx_nats_users_username`"]);
    checked.has_only(&[&also("schema.no_unique_index")[..], &["schema.no_unique_index"]].concat());
    for index in ["(`username`, `nkey`)", "(`active`)"] {
        let index = format!("CREATE UNIQUE INDEX `idx_other` ON `nats_users` {index}");
        change(pb, "nats_users", &json!({ "indexes": [index, NKEY_INDEX] }));
        town.check().has_only(&also("schema.no_unique_index"));
    }
    let index =
        "create unique index idx_own on nats_users (username COLLATE NOCASE) WHERE username != ''";
    change(pb, "nats_users", &json!({ "indexes": [index] }));
    let checked = town.check();
    checked.has_only(&also("schema.no_unique_index"));
    checked.says("schema.no_unique_index", &["(`nkey`) WHERE `nkey` != ''"]);
    change(pb, "nats_users", &json!({ "indexes": [index, NKEY_INDEX] }));

    change_field(pb, "role_id", |it| it["required"] = false.into());
    town.check().has_only(&also("schema.role_optional"));
    let bob = pb.user("bob", PASSWORD, "");
    town.pb_nats.once().success();
    let codes = town.check();
    assert!(!codes.codes().contains(&"schema.role_optional"), "it is meant: {:?}", codes.codes());
    pb.delete("nats_users", &bob);
    change_field(pb, "role_id", |it| it["required"] = true.into());
    town.pb_nats.once().success();

    remove(pb, "nats_export");
    town.check().has_only(&also("schema.no_view"));
    // PocketBase drops no field that an index needs.
    change(pb, "nats_users", &json!({ "indexes": [index] }));
    change_field(pb, "nkey", |it| {
        *it = json!({ "name": "nkey", "type": "url" });
    });
    let codes = ["schema.type", "schema.no_unique_index", "schema.no_view"];
    town.check().has_only(&[&["token.superuser", "token.ends_soon"], &codes[..]].concat());
    change_field(pb, "nkey", |it| *it = json!({ "name": "nkey2", "type": "text" }));
    make_view(pb);
    change_field(pb, "nkey2", |it| it["name"] = "nkey".into());
    let checked = town.check();
    checked.says("schema.view_lacks", &["`nkey`"]);
    assert_eq!(checked.code, 1);
    remove(pb, "nats_export");
    change_field(pb, "active", |it| it["name"] = "enabled".into());
    town.check().says("schema.no_field", &["`active`"]);
    remove(pb, "nats_users");
    town.check().says("schema.no_collection", &["`nats_users`"]);
}

#[test]
fn permissions_that_are_rarely_meant_are_named_with_record_and_entry() {
    let town = Town::start();
    let admin = town.pb.role("admin", &[">"], &["news.>", "_INBOX.>"]);
    let each = town.pb.role("each", &["d.{{username}}"], &["_INBOX.>"]);
    let idle = town.pb.role("idle", &["a", "a.b", "a.>"], &[]);
    town.pb.user("root", PASSWORD, &admin);
    let star = town.pb.user("*", PASSWORD, &each);
    town.pb_nats.once().success();
    let checked = town.check();
    checked.has_only(&[
        "records.unsafe_value",
        "permissions.publishes_everything",
        "permissions.shared_inbox",
        "permissions.shared_inbox",
    ]);
    checked
        .says("records.unsafe_value", &[&format!("nats_users/{star} \"*\": publish_permissions")])
        .says("permissions.publishes_everything", &[&format!("nats_roles/{admin} \"admin\"")])
        // It does nothing, and is in nobody's way.
        .says("permissions.unused", &[&idle])
        .says("permissions.shared_inbox", &["2 users", "_INBOX_{{username}}.>"]);
}

#[test]
fn a_main_config_that_loses_something_by_the_include_is_named() {
    let mut town = Town::start();
    let nats = &town.nats;
    let good = edit(nats, "users = [ {user:", "users = [ {user: app, password: x}, {user:");
    let lost = |parts: &[&str]| town.check_finds("main_config.replaced_users", parts);
    lost(&["replaces it: app", "`pb-nats user add app`"]);
    write(nats.config_file(), &good);
    edit(
        nats,
        "users = [ {user: \"locked\", password:",
        "user: solo, password: x, o = [ {user: b, password:",
    );
    lost(&["solo"]);
    write(nats.config_file(), &good);
    edit(nats, "authorization {\n", "authorization {\n timeout: 30\n");
    town.check_finds("main_config.replaced_settings", &["timeout", "`auth_file.login_timeout`"]);
    write(nats.config_file(), &good);

    let (before, after) = (good.find("authorization {").unwrap(), good.find("include \"").unwrap());
    write(nats.config_file(), format!("{}{}", &good[..before], &good[after..]));
    town.check_finds("main_config.open_if_empty", &["would let everybody in", "authorization {"]);
    write(nats.config_file(), format!("no_auth_user: ann\n{good}"));
    let codes = ["main_config.no_auth_user", "servers.in_step_with_note"];
    town.check().has_only(&codes).says(codes[0], &["\"ann\""]);
    write(nats.config_file(), format!("no_auth_user: nemo\n{good}"));
    let checked = town.check();
    let codes = ["records.needed", "main_config.no_auth_user"];
    // A restart would fail until the next pass.
    let behind = ["main_config.refused", "auth_file.behind"];
    checked
        .has_only(&[codes, behind].concat())
        .says(codes[0], &["nats_users \"nemo\""])
        .says(codes[1], &["locked"])
        .says(behind[0], &["neither starts", "nemo", "`pb-nats once`"]);
    // A running server would not take such a setting before it is started anew.
    town.pb_nats.unset("nats.pid_file");
    town.pb_nats.unset("nats.monitor_url");
    town.pb_nats.once();
    town.check().says(codes[1], &["locked"]).says("main_config.accepted", &[]);
}

#[test]
fn a_main_config_that_cannot_be_read_is_told_once() {
    let mut town = Town::start();
    town.pb_nats.set("nats.config_file", "/nowhere/nats.conf");
    let checked = town.check();
    checked.has_only(&["main_config.unreadable"]).says("main_config.unreadable", &["/nowhere"]);
    town.pb_nats.unset("nats.config_file");
    town.check().says("main_config.not_set", &["set it to the main config"]);
}

#[test]
fn a_main_config_that_nobody_understands_is_wrong_and_one_that_is_doubted_is_not() {
    let town = Town::start();
    let codes = ["main_config.not_understood", "main_config.refused"];
    let good = edit(&town.nats, "authorization {\n", "write_deadline: 5\nauthorization {\n");
    let checked = town.check();
    assert_eq!(checked.line(codes[1])["verdict"], "doubtful", "nats-server warns of it");
    write(town.nats.config_file(), format!("{good}\njetstream {{"));
    let checked = town.check();
    checked.says(codes[0], &["expected `}`"]).says(codes[1], &["EOF", "mend it"]);
    assert_eq!((checked.code, &checked.line(codes[1])["verdict"]), (1, &json!("wrong")));
}

/// `nats-server -t` has nothing against them, and every reload would fail.
#[test]
fn a_change_that_takes_a_restart_is_named_before_a_reload_fails() {
    for version in [None, Some("2.10.26")] {
        let town = Town::new(None, Setup { version, ..Setup::default() });
        let good = fs::read_to_string(town.nats.config_file()).unwrap();
        for (text, parts) in [
            (format!("http_base_path: \"/x\"\n{good}"), ["`http_base_path`", "\"/x\""]),
            (format!("{good}\n{SYSTEM_ACCOUNT}"), ["`system_account`", "\"SYS\""]),
            (good.replace("server_name: \"", "server_name: \"new-"), ["`server_name`", "new-"]),
        ] {
            write(town.nats.config_file(), text);
            let checked = town.check();
            checked.says("servers.needs_restart", &parts);
            let also = |it: &&str| *it != "servers.in_step_with_note";
            let codes: Vec<&str> = checked.codes().into_iter().filter(also).collect();
            assert_eq!(codes, ["servers.needs_restart"]);
            assert!(town.nats.reload().is_err(), "it is so");
        }
        write(town.nats.config_file(), &good);
        town.check().has_only(&[]);
    }
}

#[test]
fn an_auth_file_in_a_bad_place_or_seen_by_all_is_named() {
    let mut town = Town::start();
    let file = town.nats.auth_file();
    chmod(town.nats.dir(), 0o755);
    chmod(&file, 0o644);
    town.check_finds("auth_file.readable_by_all", &["0644", "chmod 640"]);
    // Nobody but the owner gets to it.
    chmod(town.nats.dir(), 0o700);
    town.check().has_only(&[]);
    chmod(&file, 0o640);

    town.pb_nats.set("auth_file.group", "no-such-group");
    town.check_finds("auth_file.no_group", &["`no-such-group`", "by name or number"]);
    town.pb_nats.unset("auth_file.group");

    fs::remove_file(&file).unwrap();
    let checked = town.check();
    checked.says("auth_file.missing", &["does not start", "`pb-nats once`"]);
    checked.says("auth_file.behind", &["1 user added"]);
    town.pb_nats.once().success();

    write(&file, "authorization { token: x }\n");
    town.check().says("auth_file.unusable", &["was not written by pb-nats", "--adopt"]);
    town.pb_nats.set("auth_file.path", "/nowhere/auth.conf");
    town.check().says("auth_file.no_folder", &["/nowhere", "mkdir /nowhere"]);
}

/// To act as other users takes root: `cargo xtask ci` asks for it.
#[test]
fn a_file_that_the_server_cannot_read_and_a_folder_that_we_cannot_write_are_named() {
    if env::var_os("PB_NATS_TEST_ROOT").is_none() {
        return;
    }
    let mut town = Town::start();
    let folder = tempfile::tempdir().unwrap();
    chmod(folder.path(), 0o755);
    let config = folder.path().join("its.conf");
    write(&config, "listen: \"127.0.0.1:-1\"\n");
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let mut server = Command::new("setpriv");
    server.args(nobody).arg(town.nats.binary()).arg("-c").arg(&config).stderr(Stdio::null());
    let server = Process::start(&mut server);
    let pid_file = folder.path().join("pid");
    write(&pid_file, server.pid().to_string());
    town.pb_nats.set("nats.pid_file", pid_file.display().to_string());
    let ready = || town.check().lines.iter().any(|it| it["code"] == "reload.ready").then_some(());
    eventually("setpriv has become nats-server", ready);
    town.check_finds(
        "auth_file.server_cannot_read",
        &["nobody", "0640 root:root", "`auth_file.group`"],
    );
    chmod(town.nats.dir(), 0o755);
    chmod(town.nats.auth_file(), 0o604);
    let codes = town.check();
    assert!(!codes.codes().contains(&"auth_file.server_cannot_read"));

    for it in [town.pb_nats.dir(), &town.pb_nats.dir().join("token")] {
        chmod(it, 0o755);
    }
    let output = Command::new("setpriv")
        .args(nobody)
        .args([PB_NATS.as_ref(), "-c".as_ref(), town.pb_nats.settings_file().as_os_str()])
        .arg("check")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("✗ auth file    this user may not write to its folder"), "{said}");
}

/// Each costs a reload a quarter of a second, during which nobody logs in.
#[test]
fn who_makes_reloads_long_is_named() {
    for by_system in [false, true] {
        let mut town = Town::new(None, Setup { extra: SYSTEM_ACCOUNT, ..Setup::default() });
        if by_system {
            town.pb_nats.unset("nats.monitor_url");
            town.pb_nats.set("nats.system_url", town.nats.url());
            town.pb_nats.set("nats.system_user", SYSTEM_USER.0);
            town.pb_nats.set("nats.system_password", SYSTEM_USER.1);
        }
        let role = town.pb.role("slow", &["slow"], &[]);
        let id = town.pb.user("slow", PASSWORD, &role);
        let hash = bcrypt::hash(PASSWORD, 12).unwrap();
        town.pb.update("nats_users", &id, &json!({ "password": hash }));
        town.pb_nats.once().success();
        town.check().has_only(&[]).says("reload.freeze", &["with 0 clients"]);
        let _ann = town.nats.client("ann", PASSWORD);
        let _slow: Vec<_> = (0..9).map(|_| town.nats.client("slow", PASSWORD)).collect();
        town.check_finds(
            "reload.freeze",
            &["10 clients", "about 2 s", "\"slow\" about 2 s (9 × cost 12)", "--cost 4", "nkeys"],
        );
        town.pb_nats.set("nats.reload_timeout", "1s");
        town.check_finds("reload.longer_than_timeout", &["raise `nats.reload_timeout`"]);
    }
}

#[test]
fn with_nobody_to_ask_it_is_said_what_is_not_known() {
    let mut town = Town::start();
    town.pb_nats.unset("nats.monitor_url");
    town.pb_nats.once().success();
    let checked = town.check();
    checked.has_only(&["servers.nobody_to_ask", "reload.freeze_unknown"]);
    checked.says("reload.freeze_unknown", &["\"ann\"", "`monitor_url`"]);
    town.pb_nats.unset("nats.pid_file");
    town.check().says("reload.impossible", &["`reload_command`, `pid_file` or `system_url`"]);
}

#[test]
fn servers_of_different_versions_are_named() {
    let mut town = Town::start();
    let old = Nats::with(Setup { version: Some("2.12.8"), ..Setup::default() });
    town.pb_nats.set("nats.server_binary", old.binary().display().to_string());
    town.check().says("servers.other_binary", &["2.12.8", "`nats.server_binary`"]);
    town.pb_nats.set("nats.monitor_url", vec![town.nats.monitor_url(), old.monitor_url()]);
    town.check().says("servers.mixed_versions", &["2.12.8, 2.15"]);
}

/// The proof is the server's own word, and what it refuses is not taken for done.
#[test]
fn a_reload_is_tried_for_real_if_that_is_asked_for() {
    let loaded = |nats: &Nats| nats.varz()["config_load_time"].clone();
    for (version, by_system) in [(None, false), (None, true), (Some("2.10.26"), false)] {
        let setup = Setup { version, extra: SYSTEM_ACCOUNT, ..Setup::default() };
        let mut town = Town::new(None, setup);
        if by_system {
            town.pb_nats.unset("nats.pid_file");
            town.pb_nats.unset("nats.monitor_url");
            town.pb_nats.set("nats.system_url", town.nats.url());
            town.pb_nats.set("nats.system_user", SYSTEM_USER.0);
            town.pb_nats.set("nats.system_password", SYSTEM_USER.1);
        }
        let before = loaded(&town.nats);
        town.check().has_only(&[]);
        assert_eq!(loaded(&town.nats), before, "nobody asked for a reload");
        let tried = || Checked::of(&town.pb_nats.command(&["check", "--reload", "--json"]));
        tried().has_only(&[]).says("reload.proven", &["as its load time shows"]);
        assert_ne!(loaded(&town.nats), before);

        let told = town.pb_nats.command(&["check", "--reload"]).success().stdout;
        let (freeze, proven) = (told.find("keeps nobody waiting"), told.find("has reloaded after"));
        assert!(freeze.unwrap() < proven.unwrap(), "{told}");

        edit(&town.nats, "server_name", "http_base_path: \"/x\"\nserver_name");
        town.pb_nats.set("nats.reload_timeout", "2s");
        let tried = Checked::of(&town.pb_nats.command(&["check", "--reload", "--json"]));
        let parts = if by_system { "HTTPBasePath" } else { "its log says why" };
        tried.says("reload.failed", &[parts]);
        assert_eq!(tried.code, 1);
    }
    let mut town = Town::start();
    town.pb_nats.unset("nats.monitor_url");
    let tried = Checked::of(&town.pb_nats.command(&["check", "--reload", "--json"]));
    tried.says("reload.unproven", &["nobody to ask"]);
    town.pb_nats.unset("nats.pid_file");
    let tried = Checked::of(&town.pb_nats.command(&["check", "--reload", "--json"]));
    tried.says("reload.failed", &["nothing in [nats] says how to reload"]);
}

#[test]
fn a_source_that_does_not_answer_hides_nothing_else() {
    let mut town = Town::start();
    town.pb.stop();
    edit(&town.nats, "include \"", "# include \"");
    let checked = town.check();
    checked.has_only(&["source.unreachable", "main_config.not_included"]);
    checked.says("main_config.not_included", &["on a line of its own"]);
    assert_eq!(checked.line("auth_file.access")["verdict"], "good");
    town.pb_nats.set("nats.pid_file", "/nowhere.pid");
    town.check().says("reload.impossible", &["/nowhere.pid", "is nats-server running"]);
}

/// Not after a `reload_timeout`, at each pass, in which nothing can happen.
#[test]
fn a_pass_says_soon_that_the_server_has_to_be_restarted() {
    let mut town = Town::start();
    town.pb_nats.set("nats.reload_timeout", "1h");
    let good = fs::read_to_string(town.nats.config_file()).unwrap();
    write(town.nats.config_file(), format!("{SYSTEM_ACCOUNT}{good}"));
    let role = town.pb.role("late", &["late"], &[]);
    town.pb.user("bob", PASSWORD, &role);
    let failed = town.pb_nats.once().exits(1);
    assert!(failed.stderr.contains("`system_account` is \"SYS\" in the main config"), "{failed:?}");
    assert!(failed.stderr.contains("hint: restart nats-server"), "{failed:?}");
    assert!(!town.nats.accepts("bob", PASSWORD));
    write(town.nats.config_file(), &good);
    town.pb_nats.once().success();
    assert!(town.nats.accepts("bob", PASSWORD));
}
