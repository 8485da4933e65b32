//! The main job: what PocketBase says is what nats-server enforces.

use std::{fs, os::unix::fs::MetadataExt as _, thread, time::Duration};

use serde_json::json;

use crate::{
    PB_NATS,
    middlebox::{Fate, Middlebox},
    support::{
        Login, Nats, Optional, Pb, PbNats, Process, SOON, SYSTEM_ACCOUNT, SYSTEM_USER, Setup,
        Signal, Users, bcrypt, eventually, poll, says_in_force, tool, write,
    },
};

const PASSWORD: &str = "open sesame";

/// A PocketBase with ann the clerk, a nats-server, and pb-nats between them.
fn town() -> (Pb, Nats, PbNats, Clerk) {
    let (pb, nats) = (Pb::start(), Nats::start());
    let role = pb.role("clerk", &["orders.>"], &["orders.>", "_INBOX.>"]);
    let ann = pb.user("ann", PASSWORD, &role);
    let pb_nats = PbNats::between(PB_NATS, &pb, &nats);
    (pb, nats, pb_nats, Clerk { role, ann })
}

/// Ids of records.
struct Clerk {
    role: String,
    ann: String,
}

#[test]
fn once_makes_a_user_do_what_the_role_says_and_nothing_else() {
    let (pb, nats, pb_nats, _) = town();
    pb.user("bob", PASSWORD, "");
    let plan = pb_nats.command(&["plan", "--exit-code"]).exits(3);
    assert!(plan.stdout.contains("\n+ user \"ann\", role \"CLERK\"\n"), "{plan:?}");
    assert!(!nats.accepts("ann", PASSWORD), "a plan writes nothing");

    let output = pb_nats.once().success();
    assert!(output.stdout.contains("in step, shown by the digest of its config"), "{output:?}");
    let mut ann = nats.client("ann", PASSWORD);
    assert!(ann.may_publish("orders.1") && !ann.may_publish("payroll"));
    assert!(ann.may_subscribe("orders.*") && !ann.may_subscribe("payroll"));
    let mut bob = nats.client("bob", PASSWORD);
    assert!(bob.may_publish("PUBLIC.x") && !bob.may_publish("orders.1"));
    assert!(!nats.accepts("ann", "wrong") && !nats.is_open());

    let written = fs::metadata(nats.auth_file()).unwrap();
    let again = pb_nats.once().success();
    assert!(again.stdout.starts_with("nothing to change\n"), "{again:?}");
    let still = fs::metadata(nats.auth_file()).unwrap();
    assert_eq!((written.ino(), written.mtime_nsec()), (still.ino(), still.mtime_nsec()));
    assert!(
        pb_nats.command(&["plan", "--exit-code"]).success().stdout.ends_with("nothing to change\n")
    );

    let rendered = pb_nats.command(&["render"]).success().stdout;
    let file = fs::read_to_string(nats.auth_file()).unwrap();
    let (head, rest) = file.split_once("# Generated at: ").unwrap();
    let undated = format!("{head}{}", rest.split_once('\n').unwrap().1);
    assert_eq!(rendered, undated);
    let checked = pb_nats.command(&["check"]).success().stdout;
    assert!(checked.contains("in step, shown by the digest"), "{checked}");
}

#[test]
fn run_puts_each_change_in_force_and_cuts_off_who_is_deactivated() {
    let (pb, nats, mut pb_nats, clerk) = town();
    pb_nats.set("sync.debounce", "10ms");
    let running = pb_nats.run();
    eventually("ann is let in", || nats.accepts("ann", PASSWORD).then_some(()));

    let mut ann = nats.client("ann", PASSWORD);
    assert!(!ann.may_publish("payroll"));
    pb.update("nats_roles", &clerk.role, &json!({"publish_permissions": ["payroll"]}));
    eventually("the role's change is in force", || ann.may_publish("payroll").then_some(()));
    assert!(!ann.may_publish("orders.1"));

    pb.user("bob", PASSWORD, &clerk.role);
    eventually("bob is let in", || nats.accepts("bob", PASSWORD).then_some(()));

    pb.update("nats_users", &clerk.ann, &json!({"active": false}));
    assert!(ann.closed(SOON).is_some(), "ann is cut off");
    assert!(!nats.accepts("ann", PASSWORD) && nats.accepts("bob", PASSWORD));

    running.wait_for(|it| says_in_force(it) && it.contains("1 user removed (\"ann\")"));
    assert!(running.terminate().success());
    assert!(nats.accepts("bob", PASSWORD), "what is in force stays in force");
}

#[test]
fn a_change_in_the_database_file_is_noticed_too() {
    let (pb, nats, mut pb_nats, clerk) = town();
    pb_nats.unset("pocketbase.url");
    pb_nats.unset("pocketbase.token_file");
    pb_nats.set("pocketbase.data_dir", pb.data_dir().display().to_string());
    pb_nats.set("sync.debounce", "10ms");
    let _running = pb_nats.run();
    eventually("ann is let in", || nats.accepts("ann", PASSWORD).then_some(()));
    pb.update("nats_users", &clerk.ann, &json!({"active": false}));
    eventually("ann is out", || (!nats.accepts("ann", PASSWORD)).then_some(()));
}

/// What comes behind the damage would be fewer than the guard holds back.
#[test]
fn a_database_that_is_damaged_in_the_middle_removes_nobody() {
    let (mut pb, nats, mut pb_nats, clerk) = town();
    let hash = |n: usize| format!("$2a$04$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad6{n:012}");
    pb.stop();
    let mut database = rusqlite::Connection::open(pb.data_dir().join("data.db")).unwrap();
    let all = database.transaction().unwrap();
    for n in 0..2000 {
        let role = json!([clerk.role]).to_string();
        all.execute(
            "INSERT INTO nats_users (id, username, password, role_id, active) VALUES (?1, ?2, ?3, ?4, 1)",
            (format!("seeded{n:09}"), format!("user-{n}"), hash(n), role),
        )
        .unwrap();
    }
    all.commit().unwrap();
    database.close().unwrap();
    pb.resume();
    pb.user("zoe", PASSWORD, "");
    pb.stop();
    pb_nats.unset("pocketbase.url");
    pb_nats.unset("pocketbase.token_file");
    pb_nats.set("pocketbase.data_dir", pb.data_dir().display().to_string());
    pb_nats.once().success();
    assert!(nats.accepts("ann", PASSWORD) && nats.accepts("zoe", PASSWORD));
    let written = fs::read(nats.auth_file()).unwrap();

    let file = pb.data_dir().join("data.db");
    let mut bytes = fs::read(&file).unwrap();
    let wanted = hash(1500);
    let at = bytes.windows(wanted.len()).position(|it| it == wanted.as_bytes()).unwrap();
    let page = at / 4096 * 4096;
    bytes[page..page + 4096].fill(0xff);
    write(&file, bytes);
    let failed = pb_nats.once().exits(1);
    assert!(failed.stderr.contains("malformed"), "{failed:?}");
    assert_eq!(fs::read(nats.auth_file()).unwrap(), written);
    assert!(nats.accepts("ann", PASSWORD) && nats.accepts("zoe", PASSWORD));
}

/// The file being right is not the goal; the server running it is.
#[test]
fn a_failed_reload_is_retried_until_it_holds() {
    let (_pb, nats, pb_nats, _) = town();
    let pid = fs::read_to_string(nats.pid_file()).unwrap();
    write(nats.pid_file(), "nobody");
    let failed = pb_nats.once().exits(1);
    assert!(failed.stderr.contains("cannot read a process id"), "{failed:?}");
    assert!(fs::read_to_string(nats.auth_file()).unwrap().contains("\"ann\""));
    assert!(!nats.accepts("ann", PASSWORD) && !nats.is_open());
    pb_nats.command(&["plan", "--exit-code"]).exits(3);

    let running = pb_nats.run();
    running.wait_for(|it| it.contains("cannot read a process id"));
    write(nats.pid_file(), &pid);
    eventually("ann is let in", || nats.accepts("ann", PASSWORD).then_some(()));
    running.wait_for(|it| it.contains("recovered"));
}

#[test]
fn losing_most_users_is_held_back_until_it_is_accepted() {
    let (pb, nats, mut pb_nats, clerk) = town();
    pb_nats.set("sync.min_removed", 2);
    let others: Vec<_> =
        ["bob", "cat"].iter().map(|it| pb.user(it, PASSWORD, &clerk.role)).collect();
    pb_nats.once().success();
    for other in others {
        pb.update("nats_users", &other, &json!({"active": false}));
    }

    let held = pb_nats.once().exits(4);
    assert!(held.stderr.contains("it would remove 2 of 3 users"), "{held:?}");
    assert!(
        held.stderr.contains("hint: ") && held.stderr.contains("--accept-removals"),
        "{held:?}"
    );
    assert!(nats.accepts("cat", PASSWORD), "the last good state stays");
    pb_nats.command(&["plan", "--exit-code"]).exits(4);
    pb_nats.command(&["once", "--accept-removals"]).success();
    assert!(!nats.accepts("cat", PASSWORD) && nats.accepts("ann", PASSWORD));
}

/// A role that cannot be found any more takes its users with it, so that is a removal as well.
#[test]
fn users_whose_role_is_gone_count_as_removed() {
    let (pb, nats, mut pb_nats, clerk) = town();
    let path = "/api/collections/nats_users";
    let mut fields = pb.ask("GET", path, &json!(null))["fields"].take();
    fields.as_array_mut().unwrap().push(json!({"name": "role", "type": "text"}));
    pb.ask("PATCH", path, &json!({"fields": fields}));
    for user in [clerk.ann, pb.user("bob", PASSWORD, "")] {
        pb.update("nats_users", &user, &json!({"role": clerk.role}));
    }
    pb_nats.set("pocketbase.role_field", "role");
    pb_nats.set("sync.min_removed", 2);
    pb_nats.once().success();

    pb.delete("nats_roles", &clerk.role);
    let held = pb_nats.once().exits(4);
    assert!(held.stderr.contains("it would remove 2 of 2 users"), "{held:?}");
    let mut bob = nats.client("bob", PASSWORD);
    assert!(bob.may_publish("orders.1") && !bob.may_publish("PUBLIC.x"), "as before");
    pb_nats.command(&["once", "--accept-removals"]).success();
    assert!(!nats.accepts("bob", PASSWORD) && !nats.is_open());
}

#[test]
fn run_says_who_would_go_and_goes_on_once_it_is_settled() {
    let (pb, nats, mut pb_nats, _) = town();
    pb_nats.set("sync.min_removed", 1);
    pb_nats.set("sync.max_removed", 0);
    let names: Vec<String> = (0..120).map(|it| format!("user-{it:03}")).collect();
    let hash = bcrypt(PASSWORD);
    let add = |name: &String| {
        pb.create("nats_users", &json!({"username": name, "password": hash, "active": true}))
    };
    let records: Vec<_> = names.iter().map(add).collect();
    let running = pb_nats.run();
    eventually("all are let in", || nats.accepts(&names[119], PASSWORD).then_some(()));
    let set = |active: bool| {
        for it in &records {
            pb.update("nats_users", it, &json!({"active": active}));
        }
    };
    set(false);
    // Only the last such line is of all of them, and it depends on the burst when that comes.
    let told = running.wait_for(|it| it.contains("would_go") && it.contains("and 20 more"));
    assert!(told.contains("user-099") && !told.contains("user-100"), "{told}");
    assert!(told.contains("--accept-removals"), "{told}");
    set(true);
    running.wait_for(|it| it.contains("recovered"));
    assert!(nats.accepts("user-119", PASSWORD));
}

#[test]
fn no_records_at_all_are_held_back_and_accepted_they_lock_the_server() {
    let (pb, nats, pb_nats, clerk) = town();
    pb_nats.once().success();
    pb.delete("nats_users", &clerk.ann);
    pb_nats.once().exits(4);
    assert!(nats.accepts("ann", PASSWORD));
    pb_nats.command(&["once", "--accept-removals"]).success();
    assert!(!nats.accepts("ann", PASSWORD));
    assert!(
        !nats.is_open()
            && !nats.accepts("pb-nats-locked", "")
            && !nats.accepts("pb-nats-locked", PASSWORD)
    );
}

/// Without the unique index that `init` makes.
#[test]
fn an_nkey_that_another_record_claims_stays_whose_it_is() {
    let (pb, nats, pb_nats, clerk) = town();
    let pair = nkeys::KeyPair::new_user();
    let user = |name: &str, more: serde_json::Value| {
        let mut user = json!({"username": name, "nkey": pair.public_key(), "active": true});
        user.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        pb.create("nats_users", &user)
    };
    let device = user("device", json!({"role_id": [clerk.role]}));
    pb_nats.once().success();
    let mut client = nats.connect(Login::Nkey(&pair)).unwrap();
    assert!(client.may_publish("orders.1") && !client.may_publish("anything"));

    user("thief", json!({"publish_permissions": [">"]}));
    let once = pb_nats.once().success();
    assert!(once.stdout.starts_with("nothing to change\n"), "{once:?}");
    let checked = pb_nats.command(&["check"]).success().stdout;
    for said in ["\"device\": nkey", "kept as it is", "\"thief\": nkey", "left out of NATS"] {
        assert!(checked.contains(said), "{said}: {checked}");
    }
    let listed = pb_nats.command(&["user", "list"]).success().stdout;
    let state = |name: &str| listed.lines().find(|it| it.starts_with(name)).unwrap().to_owned();
    assert!(state("device").contains(" in force "), "{listed}");
    assert!(state("thief").contains(" left out "), "{listed}");
    pb_nats.command(&["explain", "device", "pub", "orders.1"]).success();
    pb_nats.command(&["explain", "thief", "pub", "anything"]).exits(1);

    // It is the device's, and follows what becomes of it.
    pb.update("nats_roles", &clerk.role, &json!({"publish_permissions": ["payroll"]}));
    pb_nats.once().success();
    let mut client = nats.connect(Login::Nkey(&pair)).unwrap();
    assert!(client.may_publish("payroll") && !client.may_publish("orders.1"));
    pb.update("nats_users", &device, &json!({"active": false}));
    pb_nats.once().success();
    let mut client = nats.connect(Login::Nkey(&pair)).unwrap();
    assert!(client.may_publish("anything"), "now only one record has it");
}

#[test]
fn a_file_that_we_did_not_write_is_left_alone_until_it_is_adopted() {
    let (_pb, nats, mut pb_nats, _) = town();
    pb_nats.set("auth_file.backup_dir", "kept");
    let theirs = "authorization { users = [ {user: theirs, password: theirs} ] }\n";
    nats.load(theirs).unwrap();
    let refused = pb_nats.once().exits(1);
    assert!(
        refused.stderr.contains("was not written by pb-nats") && refused.stderr.contains("--adopt")
    );
    assert_eq!(fs::read_to_string(nats.auth_file()).unwrap(), theirs);
    assert!(nats.accepts("theirs", "theirs"));

    pb_nats.command(&["once", "--adopt"]).success();
    assert!(!nats.accepts("theirs", "theirs") && nats.accepts("ann", PASSWORD));
    let kept: Vec<_> = fs::read_dir(pb_nats.dir().join("kept")).unwrap().collect();
    assert_eq!(fs::read_to_string(kept[0].as_ref().unwrap().path()).unwrap(), theirs);
}

#[test]
fn when_pocketbase_is_gone_the_last_good_state_stays_and_it_all_comes_back() {
    let (mut pb, nats, mut pb_nats, clerk) = town();
    pb_nats.set("sync.debounce", "10ms");
    let running = pb_nats.run();
    eventually("ann is let in", || nats.accepts("ann", PASSWORD).then_some(()));
    pb.kill();
    let failed = pb_nats.once().exits(1);
    assert!(
        failed.stderr.contains("cannot be reached") && failed.stderr.contains("hint: "),
        "{failed:?}"
    );
    assert!(nats.accepts("ann", PASSWORD) && !nats.is_open());
    pb.resume();
    pb.update("nats_users", &clerk.ann, &json!({"active": false}));
    eventually("ann is out", || (!nats.accepts("ann", PASSWORD)).then_some(()));
    assert!(running.ended(Duration::ZERO).is_none());
}

#[test]
fn a_second_run_is_refused_and_once_works_beside_the_first() {
    let (_pb, nats, pb_nats, _) = town();
    let running = pb_nats.run();
    eventually("ann is let in", || nats.accepts("ann", PASSWORD).then_some(()));
    let refused = pb_nats.command(&["run"]).exits(1);
    assert!(refused.stderr.contains(&format!("(pid {})", running.pid())), "{refused:?}");
    pb_nats.once().success();
    running.kill();
    let next = pb_nats.run();
    next.wait_for(|it| it.contains("keeps NATS in step"));
    assert!(next.terminate().success(), "a lock does not outlive its holder");
}

/// Whoever wrote the file may have failed to load it.
#[test]
fn a_file_that_another_process_wrote_has_to_be_proven_anew() {
    let (pb, nats, mut pb_nats, clerk) = town();
    pb.user("bob", PASSWORD, &clerk.role);
    pb_nats.set("pocketbase.resync_interval", "1s");
    let running = pb_nats.run();
    eventually("ann is let in", || nats.accepts("ann", PASSWORD).then_some(()));
    // So that it is not stopped in the middle of a pass.
    let lock = fs::File::open(nats.dir().join(".auth.conf.lock")).unwrap();
    lock.lock().unwrap();
    running.signal(Signal::STOP);
    lock.unlock().unwrap();
    pb.update("nats_users", &clerk.ann, &json!({"active": false}));
    pb_nats.set("nats.pid_file", "nowhere.pid");
    pb_nats.once().exits(1);
    assert!(nats.accepts("ann", PASSWORD));
    running.signal(Signal::CONT);
    eventually("ann is out", || (!nats.accepts("ann", PASSWORD)).then_some(()));
    assert!(nats.accepts("bob", PASSWORD));
}

/// Else it would write what another pass has since found out to be wrong.
#[test]
fn a_pass_reads_the_records_when_no_other_is_under_way() {
    let (mut pb, nats, pb_nats, _) = town();
    let other = fs::File::create(nats.dir().join(".auth.conf.lock")).unwrap();
    other.lock().unwrap();
    pb.stop();
    let once = pb_nats.run_with(&["once"]);
    assert!(once.ended(Duration::from_secs(1)).is_none(), "{:?}", once.lines());
    pb.resume();
    other.unlock().unwrap();
    once.wait_for(|it| it.contains("1 user added"));
    assert!(nats.accepts("ann", PASSWORD));
}

/// What is held back keeps nothing else from being put in force.
#[test]
fn a_failed_reload_is_retried_while_a_removal_is_held_back() {
    let (pb, nats, pb_nats, clerk) = town();
    pb.user("bob", PASSWORD, &clerk.role);
    pb_nats.once().success();
    let pid = fs::read_to_string(nats.pid_file()).unwrap();
    write(nats.pid_file(), "nobody");
    pb.update("nats_users", &clerk.ann, &json!({"active": false}));
    pb_nats.once().exits(1);
    assert!(nats.accepts("ann", PASSWORD));
    write(nats.pid_file(), &pid);
    for record in pb.ask("GET", "/api/collections/nats_users/records", &json!(null))["items"]
        .as_array()
        .unwrap()
    {
        pb.delete("nats_users", record["id"].as_str().unwrap());
    }
    pb_nats.once().exits(4);
    assert!(!nats.accepts("ann", PASSWORD) && nats.accepts("bob", PASSWORD));
}

#[test]
fn a_plan_names_a_main_config_that_does_not_use_the_file() {
    let (_pb, nats, pb_nats, _) = town();
    pb_nats.once().success();
    let good = fs::read_to_string(nats.config_file()).unwrap();
    write(nats.config_file(), good.replace("include \"auth.conf\"", ""));
    nats.reload().unwrap();
    let plan = pb_nats.command(&["plan"]);
    assert!(!plan.stdout.contains("in step, shown"), "{plan:?}");
}

#[test]
fn hangup_with_an_auth_file_in_no_folder_changes_nothing() {
    let (pb, nats, mut pb_nats, _) = town();
    let running = pb_nats.run();
    eventually("ann is let in", || nats.accepts("ann", PASSWORD).then_some(()));
    let good = nats.auth_file().display().to_string();
    pb_nats.set("auth_file.path", nats.dir().join("missing/auth.conf").display().to_string());
    running.signal(Signal::HUP);
    running.wait_for(|it| it.contains("missing/"));
    pb_nats.set("auth_file.path", good);
    running.signal(Signal::HUP);
    pb.user("bob", PASSWORD, "");
    eventually("bob is let in", || nats.accepts("bob", PASSWORD).then_some(()));
    assert!(running.terminate().success());
}

/// The settings are read again, but the program does not begin again.
#[test]
fn hangup_does_not_make_a_failed_pass_wait_for_a_change() {
    let (pb, nats, mut pb_nats, clerk) = town();
    pb_nats.once().success();
    pb_nats.set("auth_file.generate_initial", false);
    pb_nats.set("sync.debounce", "10ms");
    let pid = fs::read_to_string(nats.pid_file()).unwrap();
    write(nats.pid_file(), "nobody");
    let running = pb_nats.run_with(&["-v", "run"]);
    running.wait_for(|it| it.contains("keeps NATS in step"));
    eventually("the change is seen", || {
        pb.update("nats_users", &clerk.ann, &json!({"active": false}));
        pb.update("nats_users", &clerk.ann, &json!({"active": true}));
        pb.update("nats_users", &clerk.ann, &json!({"active": false}));
        running.lines().iter().any(|it| it.contains("cannot read a process id")).then_some(())
    });
    running.signal(Signal::HUP);
    running.wait_for(|it| it.contains("the settings were read again"));
    write(nats.pid_file(), &pid);
    eventually("ann is out", || (!nats.accepts("ann", PASSWORD)).then_some(()));
}

#[test]
fn hangup_reads_the_settings_again_and_bad_ones_change_nothing() {
    let (pb, nats, mut pb_nats, _) = town();
    pb.user("bob", PASSWORD, "");
    let running = pb_nats.run();
    eventually("bob is let in", || nats.accepts("bob", PASSWORD).then_some(()));
    let mut bob = nats.client("bob", PASSWORD);
    assert!(!bob.may_publish("elsewhere"));

    pb_nats.write_settings("[sync]\ndebounse = '1s'\n");
    running.signal(Signal::HUP);
    running.wait_for(|it| it.contains("unknown") && it.contains("the former ones stay"));
    assert!(nats.accepts("bob", PASSWORD));

    pb_nats.set("permissions.default_publish", "elsewhere");
    running.signal(Signal::HUP);
    eventually("the new defaults are in force", || bob.may_publish("elsewhere").then_some(()));
    assert!(running.terminate().success());
}

#[test]
fn hangup_with_another_address_leaves_the_former_one() {
    let (pb, nats, mut pb_nats, clerk) = town();
    let former = Middlebox::start(pb.address(), |_| Fate::Pass);
    pb_nats.set("pocketbase.url", former.url());
    let running = pb_nats.run();
    eventually("ann is let in", || nats.accepts("ann", PASSWORD).then_some(()));
    eventually("the live connection is there", || (former.open() > 0).then_some(()));
    pb_nats.set("pocketbase.url", pb.url());
    running.signal(Signal::HUP);
    eventually("nothing goes to the former address", || (former.open() == 0).then_some(()));
    running.wait_for(|it| it.contains("the settings were read again"));
    pb.update("nats_users", &clerk.ann, &json!({"active": false}));
    eventually("ann is out", || (!nats.accepts("ann", PASSWORD)).then_some(()));
}

#[test]
fn without_a_live_connection_changes_come_with_the_resync_and_that_is_said() {
    let (pb, nats, mut pb_nats, clerk) = town();
    let middlebox = Middlebox::start(pb.address(), |head| {
        if head.contains("/api/realtime") {
            return Fate::Answer("404 Not Found\n<html>no such page</html>".into());
        }
        Fate::Pass
    });
    pb_nats.set("pocketbase.url", middlebox.url());
    pb_nats.set("pocketbase.resync_interval", "1s");
    let running = pb_nats.run();
    running.wait_for(|it| it.contains("no live connection") && it.contains("404"));
    eventually("ann is let in", || nats.accepts("ann", PASSWORD).then_some(()));
    pb.update("nats_users", &clerk.ann, &json!({"active": false}));
    eventually("ann is out", || (!nats.accepts("ann", PASSWORD)).then_some(()));
}

#[test]
fn a_burst_that_never_ends_is_not_waited_for() {
    let (pb, nats, mut pb_nats, clerk) = town();
    pb_nats.set("sync.debounce", "1s");
    pb_nats.set("sync.max_wait", "2s");
    let _running = pb_nats.run();
    eventually("ann is let in", || nats.accepts("ann", PASSWORD).then_some(()));
    pb.user("bob", PASSWORD, "");
    eventually("bob is let in while there is more to come", || {
        pb.update("nats_roles", &clerk.role, &json!({"name": "clerk"}));
        nats.accepts("bob", PASSWORD).then_some(())
    });
}

#[test]
fn who_is_to_have_less_does_not_wait_for_the_end_of_a_burst() {
    let (pb, nats, mut pb_nats, clerk) = town();
    pb_nats.set("sync.debounce", "1h");
    pb_nats.set("sync.max_wait", "1h");
    let eve = pb.user("eve", PASSWORD, &clerk.role);
    let _running = pb_nats.run();
    eventually("ann is let in", || nats.accepts("ann", PASSWORD).then_some(()));
    let mut ann = nats.client("ann", PASSWORD);
    assert!(ann.may_publish("orders.1"));

    pb.user("bob", PASSWORD, &clerk.role);
    let early = poll(Duration::from_secs(2), || nats.accepts("bob", PASSWORD).then_some(()));
    assert!(early.is_none(), "what is given can wait");
    pb.update("nats_users", &eve, &json!({"active": false}));
    eventually("eve is out", || (!nats.accepts("eve", PASSWORD)).then_some(()));
    assert!(nats.accepts("bob", PASSWORD), "a file is of all");
    pb.update("nats_roles", &clerk.role, &json!({"publish_permissions": ["invoices"]}));
    eventually("it is narrowed", || (!ann.may_publish("orders.1")).then_some(()));
    pb.update("nats_users", &clerk.ann, &json!({"password": bcrypt("another")}));
    eventually("the password is another", || nats.accepts("ann", "another").then_some(()));
    assert!(!nats.accepts("ann", PASSWORD));
}

/// A reload takes long where many are connected, and whoever is to have less is not to wait for it.
#[test]
fn who_is_to_have_less_does_not_wait_for_a_reload_that_is_under_way() {
    for version in [Some("2.10.26"), None] {
        let pb = Pb::start();
        let nats = Nats::with(Setup { version, extra: SYSTEM_ACCOUNT, ..Setup::default() });
        let role = pb.role("clerk", &["orders.>"], &["orders.>"]);
        let narrow = pb.role("narrow", &["orders.>", "bills.>"], &["orders.>"]);
        let busy = bcrypt::hash("busy", 10).unwrap();
        pb.create(
            "nats_users",
            &json!({"username": "busy", "password": busy, "role_id": role, "active": true}),
        );
        let ann = pb.user("ann", PASSWORD, &role);
        pb.user("eve", PASSWORD, &narrow);
        let mut pb_nats = PbNats::between(PB_NATS, &pb, &nats);
        pb_nats.unset("nats.monitor_url");
        pb_nats.set("nats.system_url", nats.url());
        pb_nats.set("nats.system_user", SYSTEM_USER.0);
        pb_nats.set("nats.system_password", SYSTEM_USER.1);
        pb_nats.set("nats.reload_timeout", "5m");
        let running = pb_nats.run_with(&["-v", "run"]);
        eventually("ann is let in", || nats.accepts("ann", PASSWORD).then_some(()));
        let mut many: Vec<_> = (0..60).map(|_| nats.client("busy", "busy")).collect();
        let (mut gone, mut less) = (nats.client("ann", PASSWORD), nats.client("eve", PASSWORD));
        let loaded = || nats.varz()["config_load_time"].clone();
        let before = loaded();

        // A gain, for which the server looks at everybody.
        let from = running.lines().len();
        pb.update("nats_roles", &role, &json!({"publish_permissions": ["orders.>", "extra"]}));
        running.wait_from(from, |it| it.contains("ordered to reload"));
        pb.update("nats_users", &ann, &json!({"active": false}));
        assert!(gone.closed(SOON).is_some(), "ann is not closed");
        assert_eq!(loaded(), before, "{version:?}: ann had to wait for the reload");
        pb.update("nats_roles", &narrow, &json!({"publish_permissions": ["orders.>"]}));
        assert!(less.closed(SOON).is_some(), "eve is not closed");
        assert_eq!(loaded(), before, "{version:?}: eve had to wait for the reload");

        // After the reload that was under way, the server lets in by the file of then.
        let mut slipped_in = Vec::new();
        let proven = thread::scope(|scope| {
            let back = scope.spawn(|| {
                // Each of these reloads takes a core for four seconds.
                let back = poll(SOON * 6, || {
                    let mut eve = nats.connect(Login::Password("eve", PASSWORD)).ok()?;
                    if !eve.try_to_publish("bills.1").ok()? {
                        return Some(());
                    }
                    assert!(eve.closed(SOON).is_some(), "{version:?}: eve has the former rights");
                    slipped_in.push(loaded());
                    None
                });
                assert!(back.is_some(), "eve is not let in with less");
            });
            let proven = |it: &String| says_in_force(it) && it.contains("NARROW");
            let proven = || running.lines()[from..].iter().any(proven).then_some(());
            assert!(poll(SOON * 6, proven).is_some(), "{}", running.lines().join("\n"));
            let proven = loaded();
            back.join().unwrap();
            proven
        });
        assert!(!nats.accepts("ann", PASSWORD));
        let mut eve = nats.client("eve", PASSWORD);
        assert!(eve.may_publish("orders.1") && !eve.may_publish("bills.1"));
        // A digest shows what a server is loading; all else, only what it has loaded.
        assert!(version.is_none() || loaded() == proven, "that was an earlier file");
        assert!(!slipped_in.contains(&loaded()), "eve was back until the reload was over");
        assert!(many.iter_mut().all(|it| it.flush().is_ok()), "nothing was taken from these");
        assert!(many[0].may_publish("extra"));
    }
}

/// The pass under way has read the records already, and looks at what comes then for revocations only.
#[test]
fn who_is_given_more_while_a_reload_is_under_way_need_not_wait_for_the_resync() {
    let (pb, nats, mut pb_nats, Clerk { role, .. }) = town();
    pb_nats.set("pocketbase.resync_interval", "1h");
    pb_nats.set("nats.reload_timeout", "5m");
    let running = pb_nats.run_with(&["-v", "run"]);
    // The second pass is for the live connection.
    running.wait_for(|it| it.contains("nothing to do"));

    // The order to reload goes to another server.
    let decoy = Nats::start();
    let pid = fs::read_to_string(nats.pid_file()).unwrap();
    write(nats.pid_file(), decoy.pid().to_string());
    let from = running.lines().len();
    pb.user("bob", PASSWORD, &role);
    running.wait_from(from, |it| it.contains("ordered to reload"));
    pb.user("eve", PASSWORD, &role);
    // The pass has looked at her record, and goes on waiting.
    poll(Duration::from_secs(1), || None::<()>);
    write(nats.pid_file(), pid);
    nats.signal(Signal::HUP);
    for name in ["bob", "eve"] {
        eventually("they are let in", || nats.accepts(name, PASSWORD).then_some(()));
    }
    let untold = |it: &String| it.contains("nobody told of this change") && it.contains("eve");
    assert!(!running.lines().iter().any(untold), "PocketBase told of her: {:?}", running.lines());
}

/// Each reload costs every client of the server.
#[test]
fn a_burst_is_few_reloads_even_of_removals() {
    let (pb, nats, mut pb_nats, clerk) = town();
    pb_nats.set("sync.min_removed", 100_000);
    pb_nats.set("pocketbase.resync_interval", "1h");
    let hash = bcrypt(PASSWORD);
    let add = |number: usize| {
        let name = format!("user-{number}");
        pb.create("nats_users", &json!({"username": name, "password": hash, "active": true}))
    };
    let mut records: Vec<String> = (0..2).map(add).collect();
    let running = pb_nats.run();
    eventually("user-1 is let in", || nats.accepts("user-1", PASSWORD).then_some(()));
    let reloads = || running.lines().iter().filter(|it| says_in_force(it)).count();
    let before = reloads();
    records.extend((2..300).map(add));
    eventually("the last is let in", || nats.accepts("user-299", PASSWORD).then_some(()));
    let given = reloads() - before;
    assert!(given < records.len() / 4, "{given} reloads");
    for record in &records {
        pb.update("nats_users", record, &json!({"active": false}));
    }
    eventually("the last is out", || (!nats.accepts("user-299", PASSWORD)).then_some(()));
    let taken = reloads() - before - given;
    assert!(taken < records.len() / 4, "{taken} reloads");
    assert!(nats.accepts("ann", PASSWORD), "{}", clerk.ann);
}

/// Who deletes record by record is as much of an accident as who deletes them all at once.
#[test]
fn the_guard_sees_a_burst_of_removals_as_a_whole() {
    let (pb, nats, mut pb_nats, _) = town();
    let hash = bcrypt(PASSWORD);
    let add = |number: usize| {
        let name = format!("user-{number}");
        pb.create("nats_users", &json!({"username": name, "password": hash, "active": true}))
    };
    let records: Vec<String> = (0..40).map(add).collect();
    pb_nats.set("sync.debounce", "1h");
    pb_nats.set("sync.max_wait", "1h");
    let running = pb_nats.run();
    eventually("all are let in", || nats.accepts("user-39", PASSWORD).then_some(()));
    let gone = |number: usize| (!nats.accepts(&format!("user-{number}"), PASSWORD)).then_some(());
    let delete = |number: usize| pb.delete("nats_users", &records[number]);
    for number in 0..9 {
        delete(number);
        eventually("the first few go at once, as the guard lets so few pass", || gone(number));
    }
    delete(9);
    assert!(poll(Duration::from_secs(2), || gone(9)).is_none(), "{:?}", running.lines());
    (10..40).for_each(delete);
    pb_nats.once().exits(4);
    assert!(nats.accepts("user-9", PASSWORD));
}

/// The file is what it was, and has been another in between.
#[test]
fn a_file_that_was_another_for_a_moment_proves_nothing() {
    let (_pb, nats, pb_nats, _) = town();
    let running = pb_nats.run();
    running.wait_for(says_in_force);
    let good = fs::read_to_string(nats.auth_file()).unwrap();
    // So that no pass comes in between.
    let lock = fs::File::open(nats.dir().join(".auth.conf.lock")).unwrap();
    lock.lock().unwrap();
    nats.load(&good.replace("\"ann\"", "\"eve\"")).unwrap();
    assert!(nats.accepts("eve", PASSWORD) && !nats.accepts("ann", PASSWORD));
    write(nats.auth_file(), &good);
    lock.unlock().unwrap();
    eventually("ann is let in again", || nats.accepts("ann", PASSWORD).then_some(()));
    assert!(!nats.accepts("eve", PASSWORD));
}

#[test]
fn what_others_do_to_the_file_or_to_a_server_is_put_right_without_a_hint() {
    let (_pb, nats, mut pb_nats, _) = town();
    pb_nats.set("pocketbase.resync_interval", "1h");
    let running = pb_nats.run();
    running.wait_for(says_in_force);
    let whole = fs::read_to_string(nats.auth_file()).unwrap();

    let eve = format!("users = [\n    {{user: \"eve\", password: \"{}\"}}", bcrypt("eve"));
    write(nats.auth_file(), whole.replace("users = [", &eve));
    let _ = nats.reload();
    eventually("eve is out", || (!nats.accepts("eve", "eve")).then_some(()));
    assert!(nats.accepts("ann", PASSWORD));
    let in_force = || running.lines().iter().filter(|it| says_in_force(it)).count();
    eventually("the pass is over", || (in_force() >= 2).then_some(()));
    let before = in_force();
    fs::remove_file(nats.auth_file()).unwrap();
    eventually("the file is back", || nats.auth_file().exists().then_some(()));
    eventually("the pass is over", || (in_force() > before).then_some(()));

    // The file is as it was, and the server does not run it.
    let config = fs::read_to_string(nats.config_file()).unwrap();
    write(nats.config_file(), config.replace("include \"auth.conf\"", ""));
    nats.reload().unwrap();
    running.wait_for(|it| it.contains("does not include the auth file"));
    write(nats.config_file(), config);
    eventually("ann is let in again", || nats.accepts("ann", PASSWORD).then_some(()));
}

/// It would refuse the file, and not start with it.
#[test]
fn a_stamp_goes_when_a_server_joins_that_knows_none() {
    let (pb, nats) = (Pb::start(), Nats::start());
    let older = Nats::with(Setup { version: Some("2.11.11"), ..Setup::default() });
    pb.user("ann", PASSWORD, "");
    let mut pb_nats = PbNats::between(PB_NATS, &pb, &nats);
    let judge = tool("nats-server", Some("2.12.8")).display().to_string();
    pb_nats.set("nats.server_binary", judge);
    pb_nats.once().success();
    let text = || fs::read_to_string(nats.auth_file()).unwrap();
    assert!(text().contains("pb_nats:"));
    fs::remove_file(older.auth_file()).unwrap();
    std::os::unix::fs::symlink(nats.auth_file(), older.auth_file()).unwrap();
    assert!(older.judge().is_err());

    let both = |of: fn(&Nats) -> String| vec![of(&nats), of(&older)];
    pb_nats.set("nats.monitor_url", both(Nats::monitor_url));
    pb_nats.set("nats.pid_file", both(|it| it.pid_file().display().to_string()));
    pb_nats.once().success();
    assert!(!text().contains("pb_nats:") && older.judge().is_ok());
    assert!(nats.accepts("ann", PASSWORD) && older.accepts("ann", PASSWORD));
}

/// What a server ran while its config left the file out says nothing of the file.
#[test]
fn a_main_config_that_is_mended_is_loaded() {
    let (_pb, nats, mut pb_nats, _) = town();
    pb_nats.set("pocketbase.resync_interval", "1s");
    let running = pb_nats.run();
    running.wait_for(says_in_force);
    let good = fs::read_to_string(nats.config_file()).unwrap();
    write(nats.config_file(), good.replace("include \"auth.conf\"", ""));
    nats.reload().unwrap();
    assert!(!nats.accepts("ann", PASSWORD) && !nats.is_open());
    running.wait_for(|it| it.contains("does not include the auth file"));
    write(nats.config_file(), &good);
    eventually("ann is let in again", || nats.accepts("ann", PASSWORD).then_some(()));
}

/// Of two `server_metadata` one is lost, so a stamp is only for who has none.
#[test]
fn metadata_of_the_operators_own_is_never_lost() {
    let other = tool("nats-server", Some("2.12.8")).display().to_string();
    let metadata = "server_metadata { rack: \"a\" }\n";
    let stamped = |nats: &Nats| fs::read_to_string(nats.auth_file()).unwrap().contains("pb_nats:");
    let town = |extra| {
        let (pb, nats) = (Pb::start(), Nats::with(Setup { extra, ..Setup::default() }));
        let mut pb_nats = PbNats::between(PB_NATS, &pb, &nats);
        // Its digests say nothing about a server of another version.
        pb_nats.set("nats.server_binary", other.as_str());
        (pb, nats, pb_nats)
    };
    let (_pb, nats, pb_nats) = town("");
    pb_nats.once().success();
    assert!(stamped(&nats));

    // The server tells of it, and the file with it is not looked into.
    let (_pb, nats, mut pb_nats) = town(metadata);
    pb_nats.unset("nats.config_file");
    pb_nats.once().success();
    assert!(!stamped(&nats));
    assert_eq!(nats.varz()["metadata"], json!({"rack": "a"}));

    // It is in the file, and no server has loaded it yet.
    let (_pb, nats, pb_nats) = town("");
    let config = fs::read_to_string(nats.config_file()).unwrap();
    write(nats.config_file(), format!("{metadata}{config}"));
    pb_nats.once().success();
    assert!(!stamped(&nats));
}

#[test]
fn filtered_events_wait_for_one_that_is_not() {
    let (pb, nats, mut pb_nats, clerk) = town();
    pb_nats.set("sync.debounce", "10ms");
    pb_nats.set("pocketbase.resync_interval", "1s");
    pb_nats.set("sync.ignore_events", vec!["role_update"]);
    let _running = pb_nats.run();
    eventually("ann is let in", || nats.accepts("ann", PASSWORD).then_some(()));
    let mut ann = nats.client("ann", PASSWORD);
    pb.update("nats_roles", &clerk.role, &json!({"publish_permissions": ["payroll"]}));
    let early = poll(Duration::from_secs(2), || ann.may_publish("payroll").then_some(()));
    assert!(early.is_none(), "not even at a resync");
    pb.user("bob", PASSWORD, "");
    eventually("both are in force", || {
        (ann.may_publish("payroll") && nats.accepts("bob", PASSWORD)).then_some(())
    });
}

#[test]
fn a_missing_file_is_written_whatever_the_filter_says() {
    let (pb, nats, mut pb_nats, clerk) = town();
    pb_nats.set("sync.debounce", "10ms");
    pb_nats.set("sync.ignore_events", vec!["role_update"]);
    let _running = pb_nats.run();
    eventually("ann is let in", || nats.accepts("ann", PASSWORD).then_some(()));
    fs::remove_file(nats.auth_file()).unwrap();
    pb.update("nats_roles", &clerk.role, &json!({"publish_permissions": ["payroll"]}));
    eventually("the file is back", || nats.auth_file().exists().then_some(()));
}

#[test]
fn an_edited_file_is_put_right_whatever_the_filter_says() {
    let (pb, nats, mut pb_nats, clerk) = town();
    pb_nats.set("sync.debounce", "10ms");
    pb_nats.set("sync.ignore_events", vec!["role_update"]);
    let running = pb_nats.run();
    running.wait_for(says_in_force);
    let mut ann = nats.client("ann", PASSWORD);
    pb.update("nats_roles", &clerk.role, &json!({"publish_permissions": ["payroll"]}));
    let early = poll(Duration::from_secs(2), || ann.may_publish("payroll").then_some(()));
    assert!(early.is_none(), "it is filtered");
    let good = fs::read_to_string(nats.auth_file()).unwrap();
    let eve = format!("users = [\n    {{user: \"eve\", password: \"{}\"}}", bcrypt("eve"));
    write(nats.auth_file(), good.replace("users = [", &eve));
    let text = || fs::read_to_string(nats.auth_file()).unwrap();
    eventually("eve is out of the file", || (!text().contains("\"eve\"")).then_some(()));
    eventually("ann is let in", || nats.accepts("ann", PASSWORD).then_some(()));
}

#[test]
fn the_first_change_is_waited_for_if_so_set() {
    let (pb, nats, mut pb_nats, clerk) = town();
    pb_nats.set("sync.debounce", "10ms");
    pb_nats.set("pocketbase.resync_interval", "1s");
    pb_nats.set("auth_file.generate_initial", false);
    let _running = pb_nats.run();
    assert!(poll(Duration::from_secs(2), || nats.accepts("ann", PASSWORD).then_some(())).is_none());
    pb.update("nats_roles", &clerk.role, &json!({"publish_permissions": ["payroll"]}));
    eventually("ann is let in", || nats.accepts("ann", PASSWORD).then_some(()));
}

#[test]
fn hidden_passwords_and_auth_collections_serve_as_well() {
    for users in [Users::Password, Users::Auth, Users::AuthByEmail] {
        let (pb, nats) = (Pb::with(users, Optional::Absent), Nats::start());
        let role = pb.role("clerk", &["orders.>"], &[]);
        let name = if users == Users::AuthByEmail { "ann@example.com" } else { "ann" };
        pb.user(name, PASSWORD, &role);
        let mut pb_nats = PbNats::between(PB_NATS, &pb, &nats);
        let refused = pb_nats.once().exits(1);
        assert!(refused.stderr.contains("does not show the field `password`"), "{refused:?}");
        pb_nats.unset("pocketbase.url");
        pb_nats.unset("pocketbase.token_file");
        pb_nats.set("pocketbase.data_dir", pb.data_dir().display().to_string());
        pb_nats.once().success();
        assert!(nats.client(name, PASSWORD).may_publish("orders.1"), "{users:?}");
    }
}

#[test]
fn the_example_embeds_it() {
    let (_pb, nats, pb_nats, _) = town();
    // Cargo builds the examples beside the program before it runs the tests.
    let example = std::path::Path::new(PB_NATS).with_file_name("examples").join("embed");
    assert!(example.is_file(), "`cargo build --examples` makes {}", example.display());
    let mut command = std::process::Command::new(example);
    let _running = Process::start(command.arg(pb_nats.settings_file()));
    eventually("ann is let in", || nats.accepts("ann", PASSWORD).then_some(()));
}

/// Nothing has changed in PocketBase, and the file is right.
#[test]
fn a_server_that_was_started_with_a_former_file_is_put_right() {
    let (_pb, mut nats, pb_nats, _) = town();
    let running = pb_nats.run();
    running.wait_for(says_in_force);
    let good = fs::read_to_string(nats.auth_file()).unwrap();
    // Else it may put the file right before the server has read it.
    running.signal(Signal::STOP);
    nats.stop();
    write(nats.auth_file(), good.replace("\"ann\"", "\"eve\""));
    nats.resume();
    assert!(nats.accepts("eve", PASSWORD) && !nats.accepts("ann", PASSWORD));
    write(nats.auth_file(), &good);
    running.signal(Signal::CONT);
    eventually("ann is let in again", || nats.accepts("ann", PASSWORD).then_some(()));
    assert!(!nats.accepts("eve", PASSWORD));
}

/// PocketBase says nothing to a live connection whose token is not good any more.
#[test]
fn a_token_that_is_replaced_is_noticed_though_nothing_happens() {
    let (pb, nats, pb_nats, clerk) = town();
    let account = json!({
        "email": "a@example.com", "password": "a password", "passwordConfirm": "a password",
    });
    let account = pb.create("_superusers", &account);
    let token = || {
        let path = format!("/api/collections/_superusers/impersonate/{account}");
        pb.ask("POST", &path, &json!({"duration": 3600}))["token"].as_str().unwrap().to_owned()
    };
    write(pb_nats.dir().join("token"), token());
    let running = pb_nats.run();
    running.wait_for(says_in_force);
    let mut ann = nats.client("ann", PASSWORD);
    eventually("the live connection is there", || {
        pb.update("nats_roles", &clerk.role, &json!({"publish_permissions": ["news"]}));
        ann.may_publish("news").then_some(())
    });
    let new = json!({"password": "another one", "passwordConfirm": "another one"});
    pb.update("_superusers", &account, &new);
    pb.update("nats_users", &clerk.ann, &json!({"active": false}));
    write(pb_nats.dir().join("token"), token());
    eventually("ann is out", || (!nats.accepts("ann", PASSWORD)).then_some(()));
}

#[test]
fn of_several_servers_for_the_system_account_one_is_enough() {
    let (pb, mut nats) =
        (Pb::start(), Nats::cluster(2, Setup { extra: SYSTEM_ACCOUNT, ..Setup::default() }));
    pb.user("ann", PASSWORD, "");
    let mut pb_nats = PbNats::between(PB_NATS, &pb, &nats[1]);
    pb_nats.unset("nats.pid_file");
    pb_nats.unset("nats.monitor_url");
    pb_nats.set("nats.system_url", format!("{}, {}", nats[0].url(), nats[1].url()));
    pb_nats.set("nats.system_user", SYSTEM_USER.0);
    pb_nats.set("nats.system_password", SYSTEM_USER.1);
    pb_nats.once().success();
    assert!(nats[0].accepts("ann", PASSWORD) && nats[1].accepts("ann", PASSWORD));
    nats[0].stop();
    pb.user("bob", PASSWORD, "");
    pb_nats.once().success();
    assert!(nats[1].accepts("bob", PASSWORD));
    pb_nats.set("nats.system_url", format!("{},", nats[1].url()));
    pb_nats.once().exits(2);
}

/// The file is right already; that PocketBase is down is no reason not to enforce it.
#[test]
fn a_failed_reload_is_retried_while_pocketbase_is_down() {
    let (mut pb, nats, mut pb_nats, clerk) = town();
    pb_nats.once().success();
    pb_nats.set("nats.reload_timeout", "2s");
    let pid = fs::read_to_string(nats.pid_file()).unwrap();
    write(nats.pid_file(), "nobody");
    pb.user("bob", PASSWORD, &clerk.role);
    pb.update("nats_users", &clerk.ann, &json!({"active": false}));
    pb_nats.once().exits(1);
    assert!(nats.accepts("ann", PASSWORD));
    write(nats.pid_file(), pid);
    pb.kill();
    let running = pb_nats.run();
    eventually("ann is out", || (!nats.accepts("ann", PASSWORD)).then_some(()));
    running.wait_for(|it| it.contains("cannot be reached"));
    assert!(nats.accepts("bob", PASSWORD) && !nats.is_open());
}
