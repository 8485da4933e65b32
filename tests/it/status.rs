//! How the daemon says it is, and to whom.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    PB_NATS,
    middlebox::{Fate, Middlebox},
    support::{
        Nats, Pb, PbNats, Running, SOON, SUPERUSER, SYSTEM_ACCOUNT, SYSTEM_USER, Setup, Signal,
        bcrypt, eventually, free_address, http, poll, write,
    },
};

const PASSWORD: &str = "open sesame";

/// A PocketBase with ann the clerk, a nats-server, and pb-nats between them, which tells how it is.
pub(crate) fn town() -> (Pb, Nats, PbNats, String) {
    let pb = Pb::start();
    let nats = Nats::with(Setup { extra: SYSTEM_ACCOUNT, ..Setup::default() });
    let role = pb.role("clerk", &["orders.>"], &["orders.>", "_INBOX.>"]);
    let ann = pb.user("ann", PASSWORD, &role);
    let mut pb_nats = PbNats::between(PB_NATS, &pb, &nats);
    pb_nats.set("admin.listen", "127.0.0.1:0");
    pb_nats.set("sync.debounce", "10ms");
    (pb, nats, pb_nats, ann)
}

/// Where it listens.
pub(crate) fn address(running: &Running) -> SocketAddr {
    let line = running.wait_for(|it| it.contains("status at http://"));
    line.rsplit('/').next().unwrap().parse().unwrap()
}

/// A page, by its status and text.
pub(crate) fn page(address: SocketAddr, path: &str) -> (u16, String) {
    let mut answer = http().get(format!("http://{address}{path}")).call().unwrap();
    (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
}

pub(crate) fn status(address: SocketAddr) -> Value {
    let (code, text) = page(address, "/status");
    assert_eq!(code, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// The status, once it is like this.
#[track_caller]
pub(crate) fn until(address: SocketAddr, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let found = poll(SOON, || {
        last = status(address);
        wanted(&last).then(|| last.clone())
    });
    found.unwrap_or_else(|| panic!("never so: {last:#}"))
}

pub(crate) fn is(state: &str) -> impl Fn(&Value) -> bool + '_ {
    move |it| it["state"] == state
}

/// What is answered to these words, as they are.
fn said(address: SocketAddr, words: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(words.as_bytes()).unwrap();
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => (),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => (),
        Err(error) => panic!("{words:?}: {error}"),
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn every_field_tells_what_is_so() {
    let (pb, nats, mut pb_nats, ann) = town();
    pb_nats.set("nats.system_url", nats.url());
    pb_nats.set("nats.system_user", SYSTEM_USER.0);
    pb_nats.set("nats.system_password", SYSTEM_USER.1);
    pb_nats.unset("nats.monitor_url");
    // So that nobody is gone before the kick: that comes before the order to reload.
    pb_nats.unset("nats.pid_file");
    let bad = pb.create("nats_users", &json!({"username": "b&d", "active": true}));
    let running = pb_nats.run();
    let address = address(&running);
    let first = until(address, is("in_step"));
    assert_eq!(page(address, "/readyz"), (200, "ok\n".into()));
    assert_eq!(page(address, "/healthz"), (200, "ok\n".into()));

    assert_eq!(first["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(first["users"], 1);
    assert_eq!(first["roles"], 1);
    assert_eq!(first["users_per_role"], json!({"clerk": 1}));
    assert_eq!(first["source"]["kind"], "pocketbase");
    assert_eq!(first["source"]["address"], pb.url());
    assert!(first["source"]["last_read_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(first["pass"]["failure"], Value::Null);
    let time = |it: &Value| it.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let (passed, source) = (&first["pass"], &first["source"]);
    let order = [&first["started"], &passed["last_attempt"], &source["last_read"]];
    let times: Vec<_> =
        order.into_iter().chain([&passed["last_success"], &first["now"]]).map(time).collect();
    assert!(times.is_sorted(), "{times:?}");

    let (server, varz) = (&first["servers"][0], nats.varz());
    assert_eq!(server["server"], varz["server_name"]);
    assert_eq!(server["version"], varz["version"]);
    assert_eq!(server["config_digest"], varz["config_digest"]);
    assert_eq!(time(&server["config_loaded"]), time(&varz["config_load_time"]));
    assert_eq!(server["state"], "in_step");
    assert!(server["last_reload_seconds"].as_f64().unwrap() > 0.0);

    let findings = &first["findings"];
    assert_eq!(findings["by_kind"], json!({"no_credential": 1}));
    assert_eq!((&findings["count"], &findings["left_out"]), (&json!(1), &json!(1)));
    let record = &findings["records"][0];
    assert_eq!((&record["id"], &record["name"]), (&json!(bad), &json!("b&d")));
    assert!(record["mend"].as_str().unwrap().contains("set a password"));
    let link =
        format!("{}/_/#/collections?collection=nats_users&recordId={bad}&record={bad}", pb.url());
    assert_eq!(record["link"], link);
    let change = &first["changes"][0];
    assert!(change["what"].as_str().unwrap().contains("1 user added (\"ann\")"), "{change}");
    assert!(change["enforced_seconds"].as_f64().unwrap() > 0.0);

    // Ann connects and is sent away.
    until(address, |it| it["source"]["connected_since"].is_string());
    let mut client = nats.client("ann", PASSWORD);
    pb.update("nats_users", &ann, &json!({"active": false}));
    assert!(client.closed(SOON).is_some());
    let second = until(address, |it| it["users"] == 0 && it["changes"][0]["cut_off"].is_object());
    let change = &second["changes"][0];
    assert!(change["what"].as_str().unwrap().contains("1 user removed (\"ann\")"), "{change}");
    assert_eq!(change["cut_off"]["users"], json!(["ann"]));
    assert_eq!(
        (&change["cut_off"]["connections"], &change["cut_off"]["servers"]),
        (&json!(1), &json!(1))
    );
    assert!(change["cut_off"]["seconds"].as_f64().unwrap() > 0.0);
    pb_nats.set("admin.listen", address.to_string());
    let told = pb_nats.command(&["status"]).success().stdout;
    assert!(told.contains("; 1 connection of \"ann\" on 1 server closed after "), "{told}");
    running.wait_for(|it| it.contains("cut off") && it.contains("who=\"ann\""));
    assert_eq!(second["changes"].as_array().unwrap().len(), 2);
    assert!(second["source"]["last_hint"].is_string());
    let sentence = second["summary"].as_str().unwrap();
    assert!(sentence.starts_with("In force on 1 of 1 server · 0 users · 1 role · "), "{sentence}");
}

/// The server does not tell us who is connected, and closes connections when its reload gets to them.
#[test]
fn it_is_told_where_nobody_knows_whether_all_are_cut_off() {
    let pb = Pb::start();
    let silent = r#"
        accounts { SYS { users = [ {
          user: "sys", password: "sys-password"
          permissions: { publish: { deny: "$SYS.REQ.SERVER.*.CONNZ" } }
        } ] } }
        system_account: SYS
    "#;
    let nats = Nats::with(Setup { extra: silent, ..Setup::default() });
    let ann = pb.user("ann", PASSWORD, &pb.role("clerk", &["orders.>"], &["_INBOX.>"]));
    let mut pb_nats = PbNats::between(PB_NATS, &pb, &nats);
    let listen = free_address();
    pb_nats.set("admin.listen", listen.to_string());
    pb_nats.set("nats.system_url", nats.url());
    pb_nats.set("nats.system_user", SYSTEM_USER.0);
    pb_nats.set("nats.system_password", SYSTEM_USER.1);
    pb_nats.set("nats.reload_timeout", "2s");
    pb_nats.unset("nats.pid_file");
    let _running = pb_nats.run();
    eventually("it listens", || TcpStream::connect(listen).ok());
    until(listen, is("in_step"));
    let mut client = nats.client("ann", PASSWORD);
    pb.update("nats_users", &ann, &json!({"active": false}));
    assert!(client.closed(SOON).is_some());
    let told = until(listen, |it| it["changes"][0]["cut_off"]["failure"].is_string());
    let why = told["changes"][0]["cut_off"]["failure"].as_str().unwrap();
    let page = pb_nats.command(&["status"]).stdout;
    assert!(page.contains(&format!("; not proven that all are cut off: {why}\n")), "{page}");
    assert!(page.contains(", config loaded ") && page.contains(", last reload took "), "{page}");
}

#[test]
fn a_change_is_not_told_to_be_in_force_before_it_is() {
    let (_pb, nats, mut pb_nats, _) = town();
    pb_nats.set("nats.reload_timeout", "1s");
    let pid = fs::read_to_string(nats.pid_file()).unwrap();
    write(nats.pid_file(), "nobody");
    let running = pb_nats.run();
    let address = address(&running);
    let failing = until(address, is("not_in_step"));
    let (code, why) = page(address, "/readyz");
    assert!(code == 503 && why.contains("cannot read a process id"), "{code} {why}");
    assert_eq!(page(address, "/healthz").0, 200, "it tries again and again, as it should");
    assert_eq!(failing["pass"]["failure"]["step"], "servers");
    assert_eq!(failing["pass"]["last_success"], Value::Null);
    assert_eq!(failing["servers"][0]["state"], "not_in_step");
    assert!(failing["servers"][0]["hint"].is_string(), "{failing:#}");
    assert_eq!(failing["changes"][0]["enforced_seconds"], Value::Null);
    assert!(failing["summary"].as_str().unwrap().contains("cannot read a process id"));

    write(nats.pid_file(), &pid);
    let mended = until(address, is("in_step"));
    assert_eq!(page(address, "/readyz").0, 200);
    assert_eq!(mended["changes"].as_array().unwrap().len(), 1);
    assert!(mended["changes"][0]["enforced_seconds"].as_f64().unwrap() > 0.0);
    let metrics = metrics(address);
    assert!(value(&metrics, "pb_nats_passes_total{outcome=\"servers\"}") >= 1.0);
    assert!(value(&metrics, "pb_nats_passes_total{outcome=\"success\"}") >= 1.0);
    assert!((value(&metrics, "pb_nats_change_to_enforced_seconds_count") - 1.0).abs() < 0.1);
    assert!((value(&metrics, "pb_nats_in_step") - 1.0).abs() < 0.1);
}

/// PocketBase takes any subscription, and says nothing where a rule keeps its word from us.
#[test]
fn a_change_that_nobody_told_of_has_no_time_and_what_is_missing_is_named() {
    let (pb, nats, mut pb_nats, ann) = town();
    let rule = "@request.auth.collectionName = 'nats_sync'";
    pb.ask("POST", "/api/collections", &json!({"name": "nats_sync", "type": "auth"}));
    let who = json!({"email": "s@example.com", "password": PASSWORD, "passwordConfirm": PASSWORD});
    pb.create("nats_sync", &who);
    crate::check::make_view(&pb);
    let list_rule = |collection: &str, rule: Value| {
        let path = format!("/api/collections/{collection}");
        pb.ask("PATCH", &path, &json!({"listRule": rule}));
    };
    list_rule("nats_export", rule.into());
    list_rule("nats_roles", rule.into());
    // Deactivated, a user is out of the rule, so that there is no word of it.
    list_rule("nats_users", format!("{rule} && active = true").into());
    pb.user("bob", PASSWORD, "");
    pb.update("nats_users", &pb.user("eve", PASSWORD, ""), &json!({"active": false}));
    let token = pb.log_in("nats_sync", "s@example.com", PASSWORD).unwrap();
    pb_nats.unset("pocketbase.token_file");
    pb_nats.set("pocketbase.token", token);
    pb_nats.set("pocketbase.resync_interval", "4s");
    let running = pb_nats.run();
    let address = address(&running);
    let deaf = until(address, |it| it["source"]["unheard"]["nats_users"].is_string());
    let why = &deaf["source"]["unheard"]["nats_users"];
    assert_eq!(why, "its list rule shows pb-nats's account 2 of 3 records");
    assert_eq!(deaf["source"]["unheard"]["nats_roles"], Value::Null, "there is word of roles");
    let line = running.wait_for(|it| it.contains("live changes are missing"));
    assert!(line.contains("nats_users") && line.contains("admit pb-nats's account"), "{line}");
    let metrics = metrics(address);
    assert!((value(&metrics, "pb_nats_source_unheard_collections") - 1.0).abs() < 0.1);
    let check = pb_nats.command(&["check"]).stdout;
    assert!(check.contains("live changes of `nats_users` do not reach pb-nats"), "{check}");

    assert!(nats.accepts("ann", PASSWORD));
    pb.update("nats_users", &ann, &json!({"active": false}));
    let changed = until(address, |it| it["changes"][0]["in_force"] == true && it["users"] == 1);
    assert!(!nats.accepts("ann", PASSWORD));
    assert_eq!(changed["changes"][0]["by_resync"], true, "{changed:#}");
    assert_eq!(changed["changes"][0]["enforced_seconds"], Value::Null);
    pb_nats.set("admin.listen", address.to_string());
    let page = pb_nats.command(&["status"]).stdout;
    assert!(page.contains("in force, noticed by the resync only"), "{page}");
    assert!(page.contains("live changes of `nats_users` are missing"), "{page}");
    // It is in force, whatever a later pass waits for.
    nats.signal(Signal::STOP);
    let waits =
        |it: &Value| it["summary"].as_str()?.contains("not shown yet what they run").then_some(());
    until(address, |it| waits(it).is_some());
    nats.signal(Signal::CONT);
    until(address, is("in_step"));

    for (closed, wanted) in [(Value::Null, "superusers only"), ("id = 'other'".into(), "0 of 3")] {
        list_rule("nats_users", closed);
        until(address, |it| {
            it["source"]["unheard"]["nats_users"].as_str().is_some_and(|it| it.contains(wanted))
        });
    }
    // Once the rule is right, it is told at once, and how long it took.
    list_rule("nats_users", rule.into());
    until(address, |it| it["source"]["unheard"] == json!({}));
    pb.update("nats_users", &ann, &json!({"active": true}));
    let told = until(address, |it| it["users"] == 2 && it["changes"][0]["in_force"] == true);
    assert_eq!(told["changes"][0]["by_resync"], false, "{told:#}");
    assert!(told["changes"][0]["enforced_seconds"].as_f64().unwrap() > 0.0);
    assert!(nats.accepts("ann", PASSWORD));
    let check = pb_nats.command(&["check"]).stdout;
    assert!(!check.contains("do not reach"), "{check}");
}

/// What stands in PocketBase's log is for people to read.
#[test]
fn while_nothing_happens_pocketbase_is_asked_twice_in_a_resync_interval_at_most() {
    for (view, resync, patience) in [(true, 6, 31), (false, 6, 31)] {
        let (pb, _nats, mut pb_nats, _) = town();
        if view {
            crate::check::make_view(&pb);
        }
        pb_nats.set("pocketbase.resync_interval", format!("{resync}s"));
        let running = pb_nats.run();
        let address = address(&running);
        until(address, is("in_step"));
        until(address, |it| it["source"]["connected_since"].is_string());
        let filter = "data.userAgent%20~%20%22pb-nats%22";
        let logged = || {
            let path = format!("/api/logs?perPage=1&filter={filter}");
            pb.ask("GET", &path, &Value::Null)["totalItems"].as_u64().unwrap()
        };
        // What it asks at the start is written to the log within three seconds.
        poll(Duration::from_secs(5), || None::<()>);
        let before = logged();
        assert!(before > 0, "it stands in the log");
        poll(Duration::from_secs(patience), || None::<()>);
        let asked = logged() - before;
        let most = 2 * (patience / resync + 1);
        let last = pb.ask(
            "GET",
            &format!("/api/logs?perPage=20&filter={filter}&sort=-created"),
            &Value::Null,
        );
        let last: Vec<_> = last["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| (&it["created"], &it["message"]))
            .collect();
        assert!(asked <= most, "view: {view}, asked {asked} times in {patience} s: {last:#?}");
        assert!(asked >= patience / resync / 2, "view: {view}, it does look: {asked}");
    }
}

#[test]
fn who_would_go_is_told_while_the_guard_holds_it_back() {
    let (pb, _nats, mut pb_nats, ann) = town();
    let listen = free_address();
    pb_nats.set("admin.listen", listen.to_string());
    let _running = pb_nats.run();
    eventually("it listens", || TcpStream::connect(listen).ok());
    until(listen, is("in_step"));
    pb_nats.command(&["status"]).success();
    pb.delete("nats_users", &ann);
    let held = until(listen, is("not_in_step"));
    let failure = &held["pass"]["failure"];
    assert_eq!(failure["step"], "guard");
    assert_eq!(failure["held_back"], json!({"count": 1, "users": ["ann"]}));
    assert_eq!(held["users"], 1, "she still is in force");
    let told = pb_nats.command(&["status"]).exits(1).stdout;
    assert!(told.contains("held back, 1 user would go:\n  \"ann\"\n"), "{told}");
    assert!(told.contains("hint: ") && told.contains("--accept-removals"), "{told}");
    assert!((value(&metrics(listen), "pb_nats_held_back_users") - 1.0).abs() < 0.1);
}

/// A file system that does not answer holds the loop up, and nothing else would notice.
#[test]
fn health_fails_while_the_loop_is_stuck_and_not_for_longer() {
    let (pb, _nats, mut pb_nats, _) = town();
    pb_nats.set("pocketbase.request_timeout", "500ms");
    pb_nats.set("pocketbase.resync_interval", "500ms");
    pb_nats.set("nats.reload_timeout", "1s");
    let running = pb_nats.run();
    let address = address(&running);
    until(address, is("in_step"));
    assert_eq!(page(address, "/healthz").0, 200);

    let token = pb_nats.dir().join("token");
    fs::remove_file(&token).unwrap();
    assert!(Command::new("mkfifo").arg(&token).status().unwrap().success());
    let why = eventually("health fails", || {
        let (code, why) = page(address, "/healthz");
        (code == 503).then_some(why)
    });
    assert!(
        why.contains("a pass has been busy for") && why.contains("reading PocketBase"),
        "{why}"
    );
    assert_eq!(page(address, "/readyz").0, 200, "it was in force once");
    let stuck = status(address);
    assert_eq!((&stuck["state"], &stuck["pass"]["stuck"]), (&json!("not_in_step"), &json!(true)));

    // It waits at the pipe, and gets the token from there; later ones read the file.
    let mut pipe = fs::File::options().write(true).open(&token).unwrap();
    fs::remove_file(&token).unwrap();
    write(&token, pb.token());
    pipe.write_all(pb.token().as_bytes()).unwrap();
    drop(pipe);
    eventually("health is back", || (page(address, "/healthz").0 == 200).then_some(()));
    until(address, is("in_step"));
}

/// Where the first change is waited for, that is what the loop should do.
#[test]
fn waiting_for_the_first_change_is_not_being_stuck() {
    let (pb, _nats, mut pb_nats, ann) = town();
    pb_nats.set("auth_file.generate_initial", false);
    pb_nats.set("pocketbase.request_timeout", "300ms");
    pb_nats.set("pocketbase.resync_interval", "100ms");
    pb_nats.set("nats.reload_timeout", "300ms");
    let running = pb_nats.run();
    let address = address(&running);
    let next =
        |it: &Value| it["pass"]["next"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let first = next(&until(address, |it| it["pass"]["next"].is_string()));
    let later = until(address, |it| next(it).duration_since(first).as_secs() >= 2);
    assert_eq!(later["state"], "starting");
    assert_eq!(page(address, "/healthz").0, 200);
    assert_eq!(page(address, "/readyz").0, 503);
    pb.update("nats_users", &ann, &json!({"active": false}));
    until(address, |it| it["pass"]["last_attempt"].is_string());
}

/// The way of DNS rebinding: a page's own name comes to mean this machine.
#[test]
fn only_our_own_names_are_answered_to_and_nothing_can_be_changed() {
    let (_pb, _nats, mut pb_nats, _) = town();
    pb_nats.set("admin.hosts", vec!["status.example.com"]);
    let running = pb_nats.run();
    let address = address(&running);
    until(address, is("in_step"));
    let get = |host: &str| said(address, &format!("GET /status HTTP/1.1\r\n{host}\r\n"));
    for host in ["localhost", "status.example.com:1", &address.to_string(), "[::1]"] {
        let answer = get(&format!("Host: {host}\r\n"));
        assert!(answer.starts_with("HTTP/1.1 200 "), "{host}: {answer}");
    }
    for hosts in [
        "Host: evil.example\r\n",
        "Host: localhost.evil.example\r\n",
        "Host: status.example.com.evil.example\r\n",
        "Host: 192.0.2.1\r\n",
        "Host: \r\n",
        "",
        "Host: localhost\r\nHost: evil.example\r\n",
        "Host: evil.example\r\nX-Forwarded-Host: localhost\r\n",
    ] {
        let answer = get(hosts);
        assert!(answer.starts_with("HTTP/1.1 4"), "{hosts}: {answer}");
        assert!(!answer.contains("clerk") && !answer.contains("in_step"), "{hosts}: {answer}");
    }
    let absolute = "GET http://evil.example/status HTTP/1.1\r\nHost: localhost\r\n\r\n";
    assert!(said(address, absolute).starts_with("HTTP/1.1 421 "));

    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"] {
        let words = format!(
            "{method} /status HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\
             Content-Length: 0\r\n\r\n"
        );
        let answer = said(address, &words).to_lowercase();
        assert!(answer.starts_with("http/1.1 405 ") && answer.contains("allow: get, head"));
        assert!(!answer.contains("access-control"), "{answer}");
    }
    let head = said(address, "HEAD /status HTTP/1.1\r\nHost: localhost\r\n\r\n").to_lowercase();
    assert!(head.starts_with("http/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    for path in ["/status", "/metrics", "/healthz", "/nowhere"] {
        let answer = said(address, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        let answer = answer.to_lowercase();
        for header in [
            "content-security-policy: default-src 'none'; ",
            "frame-ancestors 'none'",
            "x-content-type-options: nosniff",
            "x-frame-options: deny",
            "referrer-policy: no-referrer",
            "cache-control: no-store",
            "cross-origin-resource-policy: same-origin",
        ] {
            assert!(answer.contains(header), "{path} lacks {header}: {answer}");
        }
    }
    assert!(said(address, "GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n").contains(" 404 "));
    let long = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(1_000_000));
    let mut stream = TcpStream::connect(address).unwrap();
    let _ = stream.write_all(long.as_bytes());
    assert_eq!(page(address, "/healthz").0, 200);
}

/// `127.1` is no address in the settings, but a name that every machine finds itself by.
#[test]
fn the_name_it_listens_at_is_one_of_ours() {
    let (_pb, _nats, mut pb_nats, _) = town();
    pb_nats.set("admin.listen", format!("127.1:{}", free_address().port()));
    let running = pb_nats.run();
    let address = address(&running);
    let get = |host: &str| said(address, &format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    assert!(get("127.1").starts_with("HTTP/1.1 200 "));
    assert!(get("evil.example").starts_with("HTTP/1.1 421 "));
}

#[test]
fn the_page_needs_nothing_but_itself_and_hears_of_every_change() {
    let (pb, _nats, pb_nats, ann) = town();
    let running = pb_nats.run();
    let address = address(&running);
    until(address, is("in_step"));
    let (head, page) = {
        let answer = said(address, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let (head, page) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_lowercase(), page.to_owned())
    };
    assert!(head.contains("content-type: text/html; charset=utf-8"), "{head}");
    assert!(head.contains("content-security-policy: default-src 'none'; connect-src 'self';"));
    assert!(head.contains("script-src 'sha256-") && !head.contains("unsafe"), "{head}");
    for foreign in
        ["https://", "//cdn", " src=", "@import", "url(", "style=\"", "innerHTML", "eval("]
    {
        assert!(!page.contains(foreign), "{foreign}");
    }
    assert!(!page.replace("http://www.w3.org/2000/svg", "").contains("http://"));

    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut text = Vec::new();
    let mut hear = |wanted: &str| {
        while !String::from_utf8_lossy(&text).contains(wanted) {
            let mut some = [0; 4096];
            let length = stream.read(&mut some).expect(wanted);
            assert!(length > 0, "the events end before {wanted}");
            text.extend_from_slice(&some[..length]);
        }
    };
    hear("text/event-stream");
    hear("data: {\"state\":\"in_step\"");
    pb.update("nats_users", &ann, &json!({"active": false}));
    hear("1 user removed");
}

#[test]
fn who_may_do_what_is_told_as_of_now_and_without_secrets() {
    let (mut pb, _nats, mut pb_nats, ann) = town();
    let role = pb.role("trader", &["trade.>"], &["jobs workers"]);
    let bob = pb.user("bob & co", PASSWORD, &role);
    let running = pb_nats.run();
    let address = address(&running);
    until(address, is("in_step"));
    let ask = |question: &str| {
        let (code, text) = page(address, &format!("/explain{question}"));
        assert!(!text.contains("$2") && !text.contains(pb.token()), "{text}");
        (code, serde_json::from_str::<Value>(&text).unwrap_or_else(|_| panic!("{text}")))
    };
    let may = |question: &str| {
        let (code, answer) = ask(question);
        assert_eq!(code, 200, "{question}: {answer:#}");
        answer["verdict"].as_str().unwrap().to_owned()
    };

    let (_, answer) = ask("?user=ann&action=pub&subject=orders.1");
    assert_eq!(answer["text"], "\"ann\" may publish to \"orders.1\"");
    let because = answer["because"][0]["text"].as_str().unwrap();
    assert!(because.contains("\"clerk\": publish_permissions[0] \"orders.>\""), "{because}");
    assert!(answer["read"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    assert_eq!(may("?user=ann&action=publish&subject=payroll"), "denied");
    assert_eq!(may("?user=ann&action=sub&subject=orders.%3E"), "allowed");
    let jobs = format!("?user={bob}&action=sub&subject=jobs");
    assert_eq!((&*may(&jobs), &*may(&format!("{jobs}&queue=workers"))), ("denied", "allowed"));
    let (_, rights) = ask("?user=bob+%26+co");
    assert_eq!((&rights["login"], &rights["user"]["id"]), (&json!("password"), &json!(bob)));
    let (_, who) = ask("?action=sub&subject=orders.1");
    assert_eq!(who["text"], "1 of 2 users may subscribe to \"orders.1\"");
    assert_eq!((&who["may"][0]["user"]["id"], &who["more"]), (&json!(ann), &json!(0)));
    assert_eq!(ask("/users").1["names"], json!(["ann", "bob & co"]));
    assert_eq!(ask("/users?like=B").1["names"], json!(["bob & co"]));

    for (question, code, why, hint) in [
        ("?user=anm&action=pub&subject=x", 404, "no user \"anm\"", "did you mean \"ann\"?"),
        ("?user=ann&action=pub&subject=a.*", 400, "has a wildcard", "ask for one"),
        ("?user=ann&action=pub&subject=a..b", 400, "it is not a subject", "tokens with dots"),
        ("?user=ann&action=pub&subject=x&queue=q", 400, "only subscribers", "leave the queue"),
        ("?user=ann&action=pub", 400, "a part of the question is missing", "/explain?user=ann"),
        ("?user=ann&queue=q", 400, "a part of the question is missing", "/explain?user=ann"),
        ("", 400, "a part of the question is missing", "/explain?user=ann"),
        ("?user=ann&action=eat&subject=x", 400, "unknown variant `eat`", "/explain?user=ann"),
        ("?user=ann&user=bob", 400, "duplicate field", "/explain?user=ann"),
        ("?user=ann&as=root", 400, "unknown field `as`", "/explain?user=ann"),
        ("/users?name=ann", 400, "unknown field `name`", ""),
        (&format!("?user={}", "x".repeat(2000)), 414, "more than 1024 bytes", ""),
    ] {
        let (told, answer) = ask(question);
        assert_eq!(told, code, "{question}: {answer:#}");
        let said = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
        assert!(said("why").contains(why), "{question}: {answer:#}");
        assert!(said("hint").contains(hint), "{question}: {answer:#}");
    }
    let strange = "GET /explain?user=ann HTTP/1.1\r\nHost: evil.example\r\n\r\n";
    assert!(said(address, strange).starts_with("HTTP/1.1 421 "));
    let post = "POST /explain?user=ann HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
    assert!(said(address, post).starts_with("HTTP/1.1 405 "));

    // What was read for one question does not answer for ever, and neither do former settings.
    pb.update("nats_users", &ann, &json!({"active": false}));
    let question = "?user=ann&action=pub&subject=orders.1";
    eventually("ann is off", || (may(question) == "denied").then_some(()));
    pb.update("nats_users", &bob, &json!({"role_id": ""}));
    pb_nats.set("permissions.default_publish", vec!["lobby.>"]);
    running.signal(Signal::HUP);
    let question = format!("?user={bob}&action=pub&subject=lobby.1");
    eventually("bob is in the lobby", || (may(&question) == "allowed").then_some(()));
    pb.stop();
    let unread = || Some(page(address, "/explain?user=ann")).filter(|it| it.0 == 503);
    let (_, told) = eventually("there are no records", unread);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert!(told["why"].as_str().unwrap().starts_with("the records could not be read"));
    assert!(told["hint"].is_string(), "{told}");
}

#[test]
fn clients_who_say_nothing_keep_nobody_out() {
    let (_pb, _nats, pb_nats, _) = town();
    let running = pb_nats.run();
    let address = address(&running);
    let half = |_| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /status HTTP/1.1\r\nHost: local").unwrap();
        stream
    };
    let mut idle: Vec<_> = (0..200).map(half).collect();
    assert_eq!(page(address, "/healthz").0, 200);
    // Those who came first have been sent away, and the last are when their time is over.
    for stream in [0, 199] {
        let stream = &mut idle[stream];
        stream.set_read_timeout(Some(SOON)).unwrap();
        let over = stream.read(&mut [0; 1024]);
        let reset = |it: &std::io::Error| it.kind() == ErrorKind::ConnectionReset;
        assert!(over.as_ref().map_or_else(reset, |_| true), "{over:?}");
    }
}

#[test]
fn a_taken_port_is_told_at_the_start_and_the_settings_can_do_without() {
    let (_pb, nats, mut pb_nats, _) = town();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_at = taken.local_addr().unwrap().to_string();
    pb_nats.set("admin.listen", taken_at.as_str());
    let refused = pb_nats.command(&["run"]).exits(1);
    let told = format!("error: cannot listen at `{taken_at}` (`admin.listen`)\ncause: ");
    assert!(refused.stderr.contains(&told), "{refused:?}");
    assert!(refused.stderr.contains("\nhint: something listens there already"), "{refused:?}");
    assert!(!nats.accepts("ann", PASSWORD));
    // One pass needs no port.
    pb_nats.once().success();

    pb_nats.set("admin.listen", "");
    let running = pb_nats.run();
    running.wait_for(|it| it.contains("keeps NATS in step"));
    let nowhere = pb_nats.command(&["status"]).exits(2);
    assert!(nowhere.stderr.contains("hint: set it"), "{nowhere:?}");
}

/// Started twice with the same settings, the port is in the way as well, and tells less.
#[test]
fn a_second_run_is_told_of_the_first_and_not_of_its_port() {
    let (_pb, _nats, mut pb_nats, _) = town();
    pb_nats.set("admin.listen", free_address().to_string());
    let running = pb_nats.run();
    until(address(&running), is("in_step"));
    let second = pb_nats.command(&["run"]).exits(1);
    assert!(second.stderr.contains(&format!("(pid {})", running.pid())), "{second:?}");
}

#[test]
fn hangup_moves_the_address_and_what_was_told_stays_told() {
    let (_pb, _nats, mut pb_nats, _) = town();
    let (first, second) = (free_address(), free_address());
    pb_nats.set("admin.listen", first.to_string());
    let running = pb_nats.run();
    running.wait_for(|it| it.contains("status at"));
    let before = until(first, is("in_step"));

    // The same port again, with another name.
    pb_nats.set("admin.hosts", vec!["status.example.com"]);
    let ask = "GET /healthz HTTP/1.1\r\nHost: status.example.com\r\n\r\n";
    assert!(said(first, ask).contains(" 421 "));
    running.signal(Signal::HUP);
    eventually("it has the name", || {
        TcpStream::connect(first).ok()?;
        said(first, ask).contains(" 200 ").then_some(())
    });

    pb_nats.set("admin.listen", second.to_string());
    running.signal(Signal::HUP);
    eventually("it listens there", || TcpStream::connect(second).ok());
    eventually("and no longer here", || TcpStream::connect(first).is_err().then_some(()));
    let after = until(second, is("in_step"));
    assert_eq!((&after["started"], &after["changes"]), (&before["started"], &before["changes"]));
    assert_eq!(page(second, "/readyz").0, 200);
    let passes = || value(&metrics(second), "pb_nats_passes_total{outcome=\"success\"}");
    eventually("its passes are counted on", || (passes() >= 2.0).then_some(()));
    pb_nats.command(&["status"]).success();

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let said = running.lines().len();
    pb_nats.set("admin.listen", taken.local_addr().unwrap().to_string());
    running.signal(Signal::HUP);
    running
        .wait_from(said, |it| it.contains("cannot listen at") && it.contains("former ones stay"));
    until(second, is("in_step"));

    pb_nats.set("admin.listen", "");
    running.signal(Signal::HUP);
    eventually("nothing listens", || TcpStream::connect(second).is_err().then_some(()));
    assert!(running.terminate().success());
}

#[test]
fn the_status_command_says_the_same_and_ends_accordingly() {
    let (_pb, nats, mut pb_nats, _) = town();
    let listen = free_address();
    pb_nats.set("admin.listen", listen.to_string());
    let nobody = pb_nats.command(&["status"]).exits(1);
    assert!(nobody.stderr.contains("error: no daemon answers at"), "{nobody:?}");
    assert!(nobody.stderr.contains("hint: is `pb-nats run` running"), "{nobody:?}");
    let watching = pb_nats.run_with(&["status", "--watch"]);
    watching.wait_for(|it| it.contains("no daemon answers"));

    let running = pb_nats.run();
    running.wait_for(|it| it.contains("status at"));
    let told = until(listen, is("in_step"));
    let page = pb_nats.command(&["status"]).success().stdout;
    assert!(
        page.starts_with(
            "In force on 1 of 1 server · 1 user · 1 role · last change in force after "
        ),
        "{page}"
    );
    assert!(page.contains("in step, shown by the digest of its config"), "{page}");
    assert!(page.contains("1 user added (\"ann\")") && page.contains("in force after"), "{page}");
    let json: Value =
        serde_json::from_str(&pb_nats.command(&["status", "--json"]).success().stdout).unwrap();
    assert_eq!((&json["changes"], &json["servers"]), (&told["changes"], &told["servers"]));
    watching.wait_for(|it| it.starts_with("In force on 1 of 1 server"));

    // It says so as well when no server can be asked; that is a warning.
    pb_nats.unset("nats.monitor_url");
    running.signal(Signal::HUP);
    until(listen, is("unverified"));
    let told = pb_nats.command(&["status"]).success();
    assert!(told.stderr.contains("warning: not every server can be asked"), "{told:?}");
    assert!(told.stdout.starts_with("Written, and proven to be in force on 0 of 1 server"));
    drop(nats);

    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    pb_nats.set("admin.listen", other.local_addr().unwrap().to_string());
    let answer = std::thread::spawn(move || {
        let (mut stream, _) = other.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
    });
    let stranger = pb_nats.command(&["status"]).exits(1);
    assert!(stranger.stderr.contains("is no pb-nats of this version"), "{stranger:?}");
    answer.join().unwrap();
}

#[test]
fn no_page_holds_a_secret() {
    let (pb, nats, mut pb_nats, ann) = town();
    let listen = free_address();
    pb_nats.set("admin.listen", listen.to_string());
    pb_nats.set("nats.system_url", nats.url());
    pb_nats.set("nats.system_user", SYSTEM_USER.0);
    pb_nats.set("nats.system_password", SYSTEM_USER.1);
    // One who wrote the password itself where its hash belongs, and one in the wrong field.
    let hash = bcrypt("another one");
    pb.create(
        "nats_users",
        &json!({"username": "p", "password": "plain-password", "active": true}),
    );
    pb.create(
        "nats_users",
        &json!({"username": "q", "password": hash, "nkey": hash, "active": true}),
    );
    let running = pb_nats.run();
    running.wait_for(|it| it.contains("status at"));
    until(listen, is("in_step"));
    let mut client = nats.client("ann", PASSWORD);
    pb.update("nats_users", &ann, &json!({"password": bcrypt("changed")}));
    assert!(client.closed(SOON).is_some());
    let file = fs::read_to_string(nats.auth_file()).unwrap();
    let mut told = running.lines().join("\n");
    let mut collect = || {
        for path in ["/", "/status", "/metrics", "/healthz", "/readyz"] {
            told += &page(listen, path).1;
        }
        told += &pb_nats.command(&["status"]).stdout;
        told += &pb_nats.command(&["status", "--json"]).stdout;
    };
    until(listen, |it| it["changes"].as_array().is_some_and(|it| it.len() == 2));
    collect();
    // And while things fail: another token, which is none.
    write(pb_nats.dir().join("token"), format!("{}x", pb.token()));
    running.signal(Signal::HUP);
    until(listen, is("not_in_step"));
    collect();
    assert!(told.contains("not_bcrypt") && told.contains("the token"), "{told}");
    let hashes = file.match_indices("$2").map(|(at, _)| &file[at..at + 60]);
    let secrets = ["plain-password", &hash[..20], SYSTEM_USER.1, PASSWORD, pb.token()];
    for secret in hashes.chain(secrets) {
        assert!(!told.contains(secret), "{secret} in {told}");
    }
    assert!(!told.contains("$2a$") && !told.contains("$2b$") && !told.contains("eyJ"), "{told}");
}

#[test]
fn metrics_are_what_prometheus_reads() {
    let (pb, nats, pb_nats, _) = town();
    pb.create("nats_users", &json!({"username": "nobody", "active": true}));
    let running = pb_nats.run();
    let address = address(&running);
    until(address, is("in_step"));
    let _client = nats.client("ann", PASSWORD);
    let answer = said(address, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").to_lowercase();
    assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0"));
    let metrics = metrics(address);
    for (name, wanted) in [
        ("pb_nats_in_step", 1.0),
        ("pb_nats_users", 1.0),
        ("pb_nats_roles", 1.0),
        ("pb_nats_findings{kind=\"no_credential\"}", 1.0),
        ("pb_nats_records_left_out", 1.0),
        ("pb_nats_servers{state=\"in_step\"}", 1.0),
        ("pb_nats_servers{state=\"not_in_step\"}", 0.0),
        ("pb_nats_reloads_total", 1.0),
        ("pb_nats_passes_total{outcome=\"guard\"}", 0.0),
    ] {
        assert!((value(&metrics, name) - wanted).abs() < 0.1, "{name}: {metrics:#?}");
    }
    assert!(value(&metrics, "pb_nats_pass_duration_seconds_sum") > 0.0);
    assert!(value(&metrics, "pb_nats_last_success_timestamp_seconds") > 1.6e9);
}

/// Samples by name and labels. What Prometheus would not take stops the test.
pub(crate) fn metrics(address: SocketAddr) -> Vec<(String, f64)> {
    let (code, text) = page(address, "/metrics");
    assert_eq!(code, 200);
    let text = text.strip_suffix("# EOF\n").expect("the end is marked");
    let (mut family, mut kind) = ("", "");
    let mut families: Vec<&str> = Vec::new();
    let mut samples: Vec<(String, f64)> = Vec::new();
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let [what, name, rest] = comment.splitn(3, ' ').collect::<Vec<_>>()[..] else {
                panic!("{line}");
            };
            match what {
                "HELP" => {
                    assert!(!families.contains(&name), "{name} twice");
                    families.push(name);
                    family = name;
                }
                "TYPE" => kind = rest,
                "UNIT" => assert!(name.ends_with(&format!("_{rest}")), "{line}"),
                _ => panic!("{line}"),
            }
            assert_eq!(name, family, "{line}");
            continue;
        }
        let (name, number) = line.rsplit_once(' ').expect(line);
        let number: f64 = number.parse().expect(line);
        let suffix = name.split('{').next().and_then(|it| it.strip_prefix(family)).expect(line);
        let suffixes: &[&str] = match kind {
            "gauge" => &[""],
            "counter" => &["_total"],
            "info" => &["_info"],
            "histogram" => &["_sum", "_count", "_bucket"],
            _ => panic!("{kind}"),
        };
        assert!(suffixes.contains(&suffix), "{line}");
        if suffix == "_bucket" && !name.contains("le=\"0.005\"") {
            let (_, before) = samples.last().expect("a smaller bucket");
            assert!(number >= *before, "{line}: buckets hold what smaller ones hold");
        }
        assert!(samples.iter().all(|(it, _)| it != name), "{name} twice");
        samples.push((name.to_owned(), number));
    }
    samples
}

#[track_caller]
pub(crate) fn value(metrics: &[(String, f64)], name: &str) -> f64 {
    let found = metrics.iter().find(|(it, _)| it == name);
    found.unwrap_or_else(|| panic!("no {name}: {metrics:#?}")).1
}

/// A reload checks forty passwords of cost 8, and lets nobody in for two thirds of a second.
#[test]
fn who_gains_waits_for_log_ins_and_who_loses_does_not() {
    let (pb, nats, mut pb_nats, ann) = town();
    let role = pb.role("crowd", &["crowd"], &[]);
    let crowd = pb.user("crowd", PASSWORD, &role);
    let hash = ::bcrypt::hash(PASSWORD, 8).unwrap();
    pb.update("nats_users", &crowd, &json!({ "password": hash }));
    let listen = free_address();
    pb_nats.set("admin.listen", listen.to_string());
    pb_nats.set("pocketbase.resync_interval", "1h");
    // With the one for more than a minute, with the other for a few seconds.
    for (share, by_itself) in [("1%", false), ("15%", true)] {
        pb_nats.set("sync.max_reload_share", share);
        let running = pb_nats.run();
        eventually("it listens", || TcpStream::connect(listen).ok());
        until(listen, is("in_step"));
        let _crowd: Vec<_> = (0..40).map(|_| nats.client("crowd", PASSWORD)).collect();
        let [first, second] = ["first", "second"].map(|it| format!("{it} of {by_itself}"));
        pb.user(&first, PASSWORD, &role);
        eventually("the first does not wait", || nats.accepts(&first, PASSWORD).then_some(()));
        let predicted = || value(&metrics(listen), "pb_nats_reload_freeze_predicted_seconds");
        eventually("it is known what a reload takes", || (predicted() > 0.4).then_some(()));

        pb.user(&second, PASSWORD, &role);
        let waiting = until(listen, |it| !it["pass"]["waiting"].is_null());
        assert!(waiting["pass"]["waiting"]["freeze_seconds"].as_f64().unwrap() > 0.4, "{waiting}");
        assert!(value(&metrics(listen), "pb_nats_reload_waiting_seconds") > 0.0);
        let told = pb_nats.command(&["status"]).success().stdout;
        assert!(told.contains("changes are waiting\n") && told.contains("hint: give"), "{told}");
        if !by_itself {
            assert!(!nats.accepts(&second, PASSWORD));
            let mut client = nats.client("ann", PASSWORD);
            pb.update("nats_users", &ann, &json!({ "active": false }));
            assert!(client.closed(SOON).is_some(), "who loses something does not wait");
        }
        eventually("what waited is in force", || nats.accepts(&second, PASSWORD).then_some(()));
        until(listen, |it| it["pass"]["waiting"].is_null());
        assert!(running.terminate().success());
    }
}

/// A browser says for whose page it asks. To have us ask PocketBase is for ours alone.
#[test]
fn pages_from_elsewhere_learn_nothing_and_cost_nothing() {
    let (pb, _nats, mut pb_nats, _) = town();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let hears = asked.clone();
    let middlebox = Middlebox::start(pb.address(), move |head| {
        hears.lock().unwrap().push(head.lines().next().unwrap_or_default().to_owned());
        Fate::Pass
    });
    pb_nats.set("pocketbase.url", middlebox.url());
    pb_nats.unset("pocketbase.token_file");
    pb_nats.set("pocketbase.identity", SUPERUSER.0);
    pb_nats.set("pocketbase.password", SUPERUSER.1);
    pb_nats.set("pocketbase.resync_interval", "1h");
    let running = pb_nats.run();
    let address = address(&running);
    until(address, is("in_step"));
    until(address, |it| it["source"]["connected_since"].is_string());
    let log_ins = || {
        let asked = asked.lock().unwrap();
        asked.iter().filter(|it| it.contains("auth-with-password")).count()
    };
    // Its signs of life cost PocketBase nothing, and go on.
    let costs = |it: &&String| !it.starts_with("OPTIONS ");
    let count = || asked.lock().unwrap().iter().filter(costs).count();
    eventually("all is quiet", || {
        let before = count();
        poll(Duration::from_secs(2), || (count() > before).then_some(())).is_none().then_some(())
    });
    let (first, before) = (log_ins(), count());

    let explain = "/explain?user=ann&action=pub&subject=orders.1";
    let costly = [explain, "/explain/users", "/status", "/metrics", "/events", "/nothing"];
    let get = |path: &str, headers: &str| {
        let words = format!("GET {path} HTTP/1.1\r\nHost: localhost:9478\r\n{headers}\r\n");
        said(address, &words)
    };
    for headers in [
        "Origin: https://evil.example\r\n",
        "Origin: null\r\n",
        "Origin: http://localhost:3000\r\n",
        "Origin: http://localhost:94780\r\n",
        "Origin: http://localhost:9478.evil.example\r\n",
        "Origin: http://localhost:9478\r\nOrigin: http://evil.example\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
        "Sec-Fetch-Site: same-site\r\n",
        "Sec-Fetch-Site: none\r\nSec-Fetch-Site: cross-site\r\n",
        "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: iframe\r\n",
        "Origin: http://evil.example\r\nSec-Fetch-Site: same-origin\r\n",
        "sec-fetch-site: whatever\r\n",
    ] {
        for path in costly {
            let answer = get(path, headers);
            assert!(answer.starts_with("HTTP/1.1 403 "), "{path} {headers}: {answer}");
            assert!(!answer.contains("ann") && !answer.contains("clerk"), "{answer}");
        }
        // A link leads to the page, which asks for itself.
        for path in ["/", "/healthz", "/readyz"] {
            assert!(get(path, headers).starts_with("HTTP/1.1 200 "), "{path} {headers}");
        }
    }
    assert_eq!(count(), before, "nobody was asked");

    for headers in [
        "",
        "Sec-Fetch-Site: same-origin\r\n",
        "Sec-Fetch-Site: none\r\n",
        "Origin: http://localhost:9478\r\nSec-Fetch-Site: same-origin\r\n",
        "Origin: https://LOCALHOST:9478\r\n",
    ] {
        for path in [explain, "/status", "/metrics"] {
            assert!(get(path, headers).starts_with("HTTP/1.1 200 "), "{path} {headers}");
        }
    }
    let begun = Instant::now();
    for _ in 0..100 {
        assert_eq!(page(address, explain).0, 200);
    }
    let looks = 2 + usize::try_from(begun.elapsed().as_secs()).unwrap() / 5;
    let cost = count() - before;
    assert!(cost <= looks * 6, "{cost} requests in {:?}", begun.elapsed());
    assert_eq!(log_ins(), first, "it is the session that is there");
}
