//! What is said within seconds while something does not answer.
//!
//! Passes are an hour apart here, so that none of them finds it out.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::{
    PB_NATS,
    status::{address, is, metrics, page, town, until, value},
    support::{
        Nats, Pb, PbNats, Running, SYSTEM_ACCOUNT, SYSTEM_USER, Setup, Signal, eventually,
        free_address, write,
    },
};

const PASSWORD: &str = "open sesame";

fn is_about(number: f64, wanted: f64) -> bool {
    (number - wanted).abs() < 0.1
}

/// Runs, listening where `pb-nats status` asks.
fn run(pb_nats: &mut PbNats) -> (Running, SocketAddr) {
    let listen = free_address();
    pb_nats.set("admin.listen", listen.to_string());
    pb_nats.set("pocketbase.resync_interval", "1h");
    let running = pb_nats.run();
    assert_eq!(address(&running), listen);
    // The live connection is a hint as well: what is changed before it is followed may have been there
    // before, and has no time.
    let time = |it: &Value| it.as_str()?.parse::<jiff::Timestamp>().ok();
    let follows = |it: &Value| {
        let (hint, pass) = (time(&it["source"]["last_hint"])?, time(&it["pass"]["last_attempt"])?);
        Some(hint < pass && it["pass"]["running"].is_null())
    };
    until(listen, |it| {
        it["source"]["connected_since"].is_string()
            && is("in_step")(it)
            && follows(it) == Some(true)
    });
    (running, listen)
}

/// What is told in the first line: with the exit code, the metric and the page's answer to that.
fn first_line(pb_nats: &PbNats, listen: SocketAddr, state: &str) -> String {
    let good = state == "in_step";
    let told = pb_nats.command(&["status"]).exits(i32::from(!good)).stdout;
    let in_step = value(&metrics(listen), "pb_nats_in_step");
    assert!(is_about(in_step, f64::from(good)), "{in_step} and {told}");
    assert_eq!(page(listen, "/readyz").0, 200, "that it was ready once stays so");
    assert_eq!(page(listen, "/healthz").0, 200, "it does what it should");
    told.lines().next().unwrap().to_owned()
}

fn by_system_account(pb_nats: &mut PbNats, url: &str) {
    pb_nats.unset("nats.monitor_url");
    pb_nats.set("nats.system_url", url);
    pb_nats.set("nats.system_user", SYSTEM_USER.0);
    pb_nats.set("nats.system_password", SYSTEM_USER.1);
}

/// It accepts connections, and never answers; or it is gone.
#[test]
fn a_server_that_is_dead_or_hangs_is_told_within_seconds_and_so_is_that_it_is_back() {
    for system in [false, true] {
        let (pb, mut nats, mut pb_nats, _) = town();
        if system {
            by_system_account(&mut pb_nats, &nats.url());
        }
        let (running, listen) = run(&mut pb_nats);
        let loaded = nats.varz()["config_load_time"].clone();
        for signal in [Signal::STOP, Signal::KILL] {
            let before = until(listen, is("in_step"));
            if signal == Signal::STOP {
                nats.signal(signal);
            } else {
                nats.kill();
            }
            let told = until(listen, |it| it["servers"][0]["silent_since"].is_string());
            assert_eq!(told["state"], "not_in_step");
            let since = told["servers"][0]["silent_since"].as_str().unwrap();
            let since: jiff::Timestamp = since.parse().unwrap();
            assert!(since >= before["started"].as_str().unwrap().parse().unwrap(), "{told:#}");
            assert_eq!(told["servers"][0]["clients"], Value::Null, "nobody knows: {told:#}");
            let line = first_line(&pb_nats, listen, "not_in_step");
            assert!(line.starts_with("A nats-server is silent, "), "{line}");
            assert!(line.ends_with("; known to be in force on 0 of 1 server"), "{line}");
            let servers = metrics(listen);
            assert!(is_about(value(&servers, "pb_nats_servers{state=\"not_in_step\"}"), 1.0));
            // It depends on whether a pass was under way who says so.
            running.wait_for(|it| it.contains("a nats-server is silent") || it.contains("ERROR"));

            if signal == Signal::STOP {
                nats.signal(Signal::CONT);
                until(listen, is("in_step"));
                assert_eq!(nats.varz()["config_load_time"], loaded, "it was told to reload");
            } else {
                nats.resume();
                until(listen, is("in_step"));
            }
            let line = first_line(&pb_nats, listen, "in_step");
            assert!(line.starts_with("In force on 1 of 1 server · 1 user · 1 role"), "{line}");
            assert!(nats.accepts("ann", PASSWORD));
        }
        drop(pb);
    }
}

/// Whichever of them we are connected to.
#[test]
fn of_two_servers_the_one_that_hangs_is_named() {
    let pb = Pb::start();
    pb.user("ann", PASSWORD, &pb.role("clerk", &["orders.>"], &["_INBOX.>"]));
    let servers = Nats::cluster(2, Setup { extra: SYSTEM_ACCOUNT, ..Setup::default() });
    let mut pb_nats = PbNats::between(PB_NATS, &pb, &servers[0]);
    pb_nats.unset("nats.pid_file");
    by_system_account(&mut pb_nats, &format!("{},{}", servers[0].url(), servers[1].url()));
    let (_running, listen) = run(&mut pb_nats);
    for hangs in &servers {
        let name = hangs.varz()["server_name"].as_str().unwrap().to_owned();
        hangs.signal(Signal::STOP);
        let silent =
            |it: &Value| it["summary"].as_str().unwrap().contains(&format!("{name} since "));
        until(listen, |it| {
            silent(it) && it["summary"].as_str().unwrap().ends_with("force on 1 of 2 servers")
        });
        hangs.signal(Signal::CONT);
        until(listen, is("in_step"));
    }
}

/// The order goes to another process, so that it comes to nothing, as far as anybody sees.
#[test]
fn a_reload_that_does_not_come_about_is_told_while_it_is_waited_for() {
    let (pb, nats, mut pb_nats, ann) = town();
    let decoy = Nats::start();
    let (_running, listen) = run(&mut pb_nats);
    write(nats.pid_file(), decoy.pid().to_string());
    pb.update("nats_users", &ann, &json!({ "active": false }));
    let late = until(listen, is("not_in_step"));
    assert_eq!(late["pass"]["failure"], Value::Null, "the pass is still waiting: {late:#}");
    let line = first_line(&pb_nats, listen, "not_in_step");
    assert!(line.starts_with("Not known to be in force yet, and under way since "), "{line}");
    assert!(line.contains("1 user removed (\"ann\")"), "{line}");
    assert!(nats.accepts("ann", PASSWORD), "so it is");

    nats.signal(Signal::HUP);
    until(listen, is("in_step"));
    let line = first_line(&pb_nats, listen, "in_step");
    assert!(line.contains(" · last change in force after "), "{line}");
    assert!(!nats.accepts("ann", PASSWORD));
}

/// What it says is in force as it was last read; whether it says something else now, nobody knows.
#[test]
fn pocketbase_that_is_dead_or_hangs_is_told_within_seconds_and_so_is_that_it_is_back() {
    let (mut pb, nats, mut pb_nats, ann) = town();
    let (_running, listen) = run(&mut pb_nats);
    for signal in [Signal::STOP, Signal::KILL] {
        if signal == Signal::STOP {
            pb.signal(signal);
        } else {
            pb.kill();
        }
        let told = until(listen, |it| it["source"]["silent_since"].is_string());
        assert_eq!(told["state"], "not_in_step");
        assert_eq!(told["source"]["connected_since"], Value::Null, "{told:#}");
        assert!(told["source"]["hint"].is_string() && told["source"]["silence"].is_string());
        let line = first_line(&pb_nats, listen, "not_in_step");
        assert!(line.starts_with("PocketBase has been silent since "), "{line}");
        let stands = "; the last good state stands, known to be in force on 1 of 1 server";
        assert!(line.ends_with(stands), "{line}");
        assert!(is_about(value(&metrics(listen), "pb_nats_source_connected"), 0.0));
        assert!(nats.accepts("ann", PASSWORD));

        if signal == Signal::STOP {
            pb.signal(Signal::CONT);
        } else {
            pb.resume();
        }
        until(listen, is("in_step"));
        let line = first_line(&pb_nats, listen, "in_step");
        assert!(line.starts_with("In force on 1 of 1 server · "), "{line}");
    }
    // Nor is anything lost by it.
    pb.update("nats_users", &ann, &json!({ "active": false }));
    eventually("ann is out", || (!nats.accepts("ann", PASSWORD)).then_some(()));

    // To be asked so often leaves nothing in its log, where people look for what others did.
    let logs = pb.ask("GET", "/api/logs?perPage=500&filter=data.method='OPTIONS'", &Value::Null);
    assert_eq!(logs["items"], json!([]));
}

/// Its database is read by ourselves.
#[test]
fn with_the_database_file_pocketbase_may_be_down() {
    let (mut pb, nats, mut pb_nats, _) = town();
    for name in ["url", "token_file"] {
        pb_nats.unset(&format!("pocketbase.{name}"));
    }
    pb_nats.set("pocketbase.data_dir", pb.data_dir().display().to_string());
    let listen = free_address();
    pb_nats.set("admin.listen", listen.to_string());
    let running = pb_nats.run();
    assert_eq!(address(&running), listen);
    until(listen, is("in_step"));
    pb.stop();
    let read = until(listen, is("in_step"))["source"]["last_read"].clone();
    running.signal(Signal::HUP);
    until(listen, |it| it["state"] == "in_step" && it["source"]["last_read"] != read);
    let line = first_line(&pb_nats, listen, "in_step");
    assert!(line.starts_with("In force on 1 of 1 server · 1 user"), "{line}");
    nats.signal(Signal::STOP);
    until(listen, is("not_in_step"));
    nats.signal(Signal::CONT);
    until(listen, is("in_step"));
}
