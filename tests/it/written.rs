//! How PocketBase itself shows how it is, with `write_status = true`.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    PB_NATS,
    init::Init,
    support::{Nats, Optional, Pb, PbNats, Running, SOON, Users, eventually, poll, write},
};

const COLLECTION: &str = "nats_sync_status";
const OVERALL: &str = "natssyncoverall";
/// What goes on for ever is never the same for so long.
const QUIET: Duration = Duration::from_secs(3);
const PASSWORD: &str = "open sesame";
/// None: the default one, which is the latest.
const VERSIONS: [Option<&str>; 3] = [Some("0.23.12"), Some("0.28.4"), None];

/// What `init --write-status` makes, with ann the clerk, and pb-nats with the account of its own.
fn town(version: Option<&str>) -> (Pb, Nats, PbNats, String) {
    let pb = Pb::empty(version);
    let init = Init::of(&pb);
    init.init(&["--write-status"]).success();
    let settings = init.read("pb-nats.toml");
    assert!(settings.contains("\nwrite_status = true\n"), "{settings}");
    let role = pb.role("clerk", &["orders.>"], &["orders.>", "_INBOX.>"]);
    add(&pb, "ann", &role, PASSWORD);
    let nats = Nats::start();
    let mut pb_nats = PbNats::between(PB_NATS, &pb, &nats);
    write(pb_nats.dir().join("token"), init.read("pb-nats.token"));
    pb_nats.set("pocketbase.write_status", true);
    pb_nats.set("pocketbase.resync_interval", "10m");
    pb_nats.set("sync.debounce", "10ms");
    (pb, nats, pb_nats, role)
}

fn add(pb: &Pb, name: &str, role: &str, password: &str) -> String {
    let user = json!({
        "username": name, "active": true, "role_id": [role], "password": password,
        "passwordConfirm": password,
    });
    pb.create("nats_users", &user)
}

fn shown(pb: &Pb) -> Vec<Value> {
    let path = format!("/api/collections/{COLLECTION}/records?perPage=500");
    pb.ask("GET", &path, &Value::Null)["items"].as_array().unwrap().clone()
}

/// The record with this name, once it is like this.
#[track_caller]
fn until(pb: &Pb, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let find = || shown(pb).into_iter().find(|it| it["name"] == name && wanted(it));
    poll(SOON, find).unwrap_or_else(|| panic!("never so: {:#?}", shown(pb)))
}

fn in_force(record: &Value) -> bool {
    record["in_force"] == true
}

fn since(record: &Value) -> jiff::Timestamp {
    record["since"].as_str().unwrap().parse().unwrap()
}

/// How often something was written, and how often a pass found nothing to do.
fn counts(running: &Running) -> (usize, usize) {
    let lines = running.lines();
    let count = |wanted: &str| lines.iter().filter(|it| it.contains(wanted)).count();
    (count("told PocketBase how it is"), count("nothing to do"))
}

#[test]
fn what_is_wrong_with_a_record_is_shown_in_pocketbase_until_it_is_mended() {
    for version in VERSIONS {
        let (pb, nats, pb_nats, role) = town(version);
        let running = pb_nats.run();
        let overall = until(&pb, "everything", in_force);
        assert_eq!((&overall["id"], &overall["state"]), (&json!(OVERALL), &json!("in_step")));
        assert_eq!(overall["reason"], "In force on 1 of 1 server · 1 user · 4 roles");
        assert!(since(&overall) <= jiff::Timestamp::now());

        let bob = add(&pb, "bob", &role, PASSWORD);
        pb.update("nats_users", &bob, &json!({ "nkey": "nonsense" }));
        let left_out = until(&pb, "bob", |_| true);
        assert_eq!(
            (&left_out["collection"], &left_out["record"]),
            (&json!("nats_users"), &json!(bob))
        );
        assert_eq!(
            (&left_out["state"], &left_out["in_force"]),
            (&json!("left_out"), &json!(false))
        );
        assert!(left_out["reason"].as_str().unwrap().contains("nkey"), "{left_out:#}");
        assert!(left_out["mend"].as_str().unwrap().contains("the public key"), "{left_out:#}");
        let bad = pb.role("bad", &["a..b", "a b"], &[]);
        let partly = until(&pb, "bad", |_| true);
        assert_eq!((&partly["record"], &partly["state"]), (&json!(bad), &json!("not_granted")));
        assert!(partly["reason"].as_str().unwrap().contains("\"a..b\""), "{partly:#}");
        assert!(partly["reason"].as_str().unwrap().contains("\"a b\""), "{partly:#}");
        until(&pb, "everything", |it| {
            in_force(it) && it["reason"].as_str().unwrap().ends_with("· 3 findings")
        });

        pb.update("nats_users", &bob, &json!({ "nkey": "" }));
        eventually("bob is not shown", || (shown(&pb).len() == 2).then_some(()));
        pb.update("nats_roles", &bad, &json!({ "publish_permissions": ["a.b"] }));
        eventually("only the whole is shown", || (shown(&pb).len() == 1).then_some(()));
        assert!(nats.accepts("bob", PASSWORD));

        // A reload that fails.
        let before = until(&pb, "everything", in_force);
        assert_eq!(since(&before), since(&overall), "it was in force all the time");
        let pid = fs::read_to_string(nats.pid_file()).unwrap();
        write(nats.pid_file(), "nobody");
        add(&pb, "cleo", &role, PASSWORD);
        let failing = until(&pb, "everything", |it| !in_force(it));
        assert_eq!(failing["state"], "not_in_step");
        assert!(
            failing["reason"].as_str().unwrap().contains("annot read a process id"),
            "{failing:#}"
        );
        assert!(!failing["mend"].as_str().unwrap().is_empty(), "{failing:#}");
        assert!(since(&failing) > since(&before));
        write(nats.pid_file(), &pid);
        let mended = until(&pb, "everything", in_force);
        assert!(since(&mended) > since(&failing));
        assert_eq!(mended["mend"], "");

        // Another process of ours goes on where this one ends.
        running.terminate();
        let _running = pb_nats.run();
        add(&pb, "dora", &role, PASSWORD);
        let later =
            until(&pb, "everything", |it| it["reason"].as_str().unwrap().contains("4 users"));
        assert_eq!(since(&later), since(&mended), "{version:?}");
        assert!(!json!(shown(&pb)).to_string().contains("$2a$"));
    }
}

#[test]
fn only_the_account_of_pb_nats_and_superusers_can_see_and_write_it() {
    for version in VERSIONS {
        let (pb, _nats, pb_nats, _) = town(version);
        let path = format!("/api/collections/{COLLECTION}/records");
        let overall = format!("{path}/{OVERALL}");
        let _running = pb_nats.run();
        until(&pb, "everything", in_force);
        let stranger =
            json!({ "email": "s@example.com", "password": PASSWORD, "passwordConfirm": PASSWORD });
        pb.create("users", &stranger);
        let stranger = pb.log_in("users", "s@example.com", PASSWORD).unwrap();
        for token in ["", &stranger] {
            let (_, listed) = pb.request("GET", &path, token, &Value::Null);
            assert_eq!(listed["items"], json!([]), "{version:?}");
            for (method, path) in
                [("GET", &overall), ("PATCH", &overall), ("DELETE", &overall), ("POST", &path)]
            {
                let (status, _) = pb.request(method, path, token, &json!({ "state": "x" }));
                assert!(status == 400 || status == 404, "{version:?} {method}: {status}");
            }
        }
        assert_eq!(shown(&pb).len(), 1);
    }
}

/// Our own writes are commits in the database that we watch.
#[test]
fn what_is_written_causes_nothing_more_to_be_written() {
    for database in [false, true] {
        let (pb, _nats, mut pb_nats, role) = town(None);
        if database {
            pb_nats.set("pocketbase.data_dir", pb.data_dir().display().to_string());
        }
        let running = pb_nats.run_with(&["-v", "run"]);
        until(&pb, "everything", in_force);
        let bob = add(&pb, "bob", &role, PASSWORD);
        pb.update("nats_users", &bob, &json!({ "nkey": "nonsense" }));
        until(&pb, "bob", |_| true);
        let settled = (0..5).any(|_| {
            let before = counts(&running);
            poll(QUIET, || (counts(&running) != before).then_some(())).is_none()
        });
        let (written, passes) = counts(&running);
        assert!(settled, "{written} writes, {passes} passes:\n{}", running.lines().join("\n"));
        assert!(written >= 2 && passes >= 1, "these lines are not told any more");
    }
}

#[test]
fn a_burst_is_written_at_most_once_a_second() {
    let (pb, _nats, pb_nats, role) = town(None);
    let running = pb_nats.run_with(&["-v", "run"]);
    until(&pb, "everything", in_force);
    let (begin, (before, _)) = (Instant::now(), counts(&running));
    for number in 0..40 {
        let name = format!("user-{number}");
        let user = add(&pb, &name, &role, PASSWORD);
        pb.update("nats_users", &user, &json!({ "nkey": format!("nonsense {number}") }));
    }
    eventually("all are shown", || (shown(&pb).len() == 41).then_some(()));
    let (written, _) = counts(&running);
    let seconds = usize::try_from(begin.elapsed().as_secs()).unwrap();
    assert!(written - before <= seconds + 1, "{written} writes in {seconds} s");
}

#[test]
fn a_missing_right_is_a_warning_and_users_are_kept_in_step() {
    let (pb, nats, pb_nats, role) = town(None);
    let path = format!("/api/collections/{COLLECTION}");
    let rule = pb.ask("GET", &path, &Value::Null)["createRule"].take();
    pb.ask("PATCH", &path, &json!({ "createRule": null }));
    let told = pb_nats.command(&["check"]).stdout;
    let wanted = "`nats_sync_status` cannot be written: the account may not make records";
    assert!(told.contains(wanted) && told.contains("pb-nats init --write-status"), "{told}");

    let running = pb_nats.run();
    let warning = running.wait_for(|it| it.contains("PocketBase does not show how it is"));
    assert!(warning.contains("may not make records") && warning.contains("hint"), "{warning}");
    eventually("ann is let in", || nats.accepts("ann", PASSWORD).then_some(()));
    add(&pb, "bob", &role, PASSWORD);
    eventually("so is bob", || nats.accepts("bob", PASSWORD).then_some(()));
    assert_eq!(shown(&pb), Vec::<Value>::new());

    pb.ask("PATCH", &path, &json!({ "createRule": rule }));
    running.wait_for(|it| it.contains("PocketBase shows again how it is"));
    until(&pb, "everything", in_force);
    let warnings = running.lines().iter().filter(|it| it.contains("does not show")).count();
    assert_eq!(warnings, 1, "{}", running.lines().join("\n"));
    let told = pb_nats.command(&["check"]).success().stdout;
    assert!(told.contains("the account may write `nats_sync_status`"), "{told}");
    assert!(!told.contains("reads records of others"), "{told}");
    pb.ask("PATCH", &path, &json!({ "updateRule": "name = 'nobody'" }));
    let told = pb_nats.command(&["check"]).stdout;
    assert!(told.contains("the account may not change records"), "{told}");
}

#[test]
fn without_its_collection_nothing_is_shown_and_check_says_how_to_get_it() {
    let (pb, nats, pb_nats, _) = town(None);
    pb.ask("DELETE", &format!("/api/collections/{COLLECTION}"), &Value::Null);
    let told = pb_nats.command(&["check"]).success().stdout;
    let wanted = "`nats_sync_status` cannot be written: there is no such collection";
    assert!(told.contains(wanted) && told.contains("pb-nats init --write-status"), "{told}");
    let running = pb_nats.run();
    running.wait_for(|it| it.contains("does not show") && it.contains("no such collection"));
    eventually("ann is let in", || nats.accepts("ann", PASSWORD).then_some(()));
}

#[test]
fn records_of_others_in_a_collection_of_that_name_are_left_alone() {
    let mut pb = Pb::empty(None);
    pb.create_collections(Users::Text, Optional::Absent);
    let fields = json!([{ "name": "diary", "type": "text" }]);
    pb.ask(
        "POST",
        "/api/collections",
        &json!({ "name": COLLECTION, "type": "base", "fields": fields }),
    );
    pb.create(COLLECTION, &json!({ "diary": "dear" }));
    let nats = Nats::start();
    let mut pb_nats = PbNats::between(PB_NATS, &pb, &nats);
    pb_nats.set("pocketbase.write_status", true);
    let running = pb_nats.run();
    running.wait_for(|it| it.contains("it holds other records than pb-nats writes"));
    assert_eq!(shown(&pb).len(), 1);
    assert_eq!(shown(&pb)[0]["diary"], "dear");
}

#[test]
fn with_the_database_file_an_address_is_needed_to_write_to() {
    let mut pb_nats = PbNats::new(PB_NATS);
    pb_nats.set("pocketbase.data_dir", "pb_data");
    pb_nats.set("pocketbase.write_status", true);
    let told = pb_nats.once().exits(2).stderr;
    assert!(told.contains("`write_status` writes over PocketBase's web API"), "{told}");
    assert!(told.contains("hint: set `url` and a credential too"), "{told}");
    pb_nats.set("pocketbase.url", "http://127.0.0.1:1");
    let told = pb_nats.once().exits(2).stderr;
    assert!(told.contains("`pocketbase.url` needs credentials"), "{told}");
    pb_nats.unset("pocketbase.write_status");
    let told = pb_nats.once().exits(2).stderr;
    assert!(told.contains("`url` and `data_dir` are both set"), "{told}");
}
