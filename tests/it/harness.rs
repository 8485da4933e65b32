//! The servers and clients of the other tests do what those tests rely on.

use std::{sync::mpsc, thread, time::Duration};

use serde_json::json;

use crate::support::{
    Login, Nats, Optional, Pb, SOON, SYSTEM_ACCOUNT, Setup, Users, bcrypt, eventually,
};

const VERSIONS: [&str; 3] = ["2.10.26", "2.11.11", "2.12.8"];

/// To nats-server an `authorization` block without users means that everybody may do everything.
/// The main config's locked user stands against that, unless the included file says it in so many
/// words.
#[test]
fn the_main_config_lets_nobody_in_while_the_auth_file_is_empty() {
    for version in [None].into_iter().chain(VERSIONS.map(Some)) {
        let nats = Nats::with(Setup { version, ..Setup::default() });
        assert!(!nats.is_open(), "{version:?}");
        assert!(!nats.accepts("locked", ""));
        nats.load(&format!(
            "authorization {{ users = [ {{user: ann, password: \"{}\"}} ] }}",
            bcrypt("ann's"),
        ))
        .unwrap();
        assert!(nats.accepts("ann", "ann's"));
        assert!(!nats.accepts("ann", "bob's"));
        nats.load("").unwrap();
        assert!(!nats.accepts("ann", "ann's"));
        assert!(!nats.is_open(), "{version:?}");
        nats.load("authorization { users = [] }").unwrap();
        assert!(nats.is_open(), "{version:?}");
    }
}

#[test]
fn a_client_sees_what_it_may_and_may_not_do() {
    let pair = nkeys::KeyPair::new_user();
    let nats = Nats::with(Setup {
        extra: SYSTEM_ACCOUNT,
        auth: &format!(
            r#"authorization {{ users = [
              {{user: ann, password: "{}", permissions: {{
                publish: {{allow: ["news.>", "_INBOX.>"], deny: "news.secret"}}, subscribe: ["news.*", "work q", "_INBOX.>"]
              }}}}
              {{nkey: {}, permissions: {{publish: "_INBOX.>", subscribe: "news.>"}}}}
            ] }}"#,
            bcrypt("ann's"),
            pair.public_key(),
        ),
        ..Setup::default()
    });
    let mut ann = nats.client("ann", "ann's");
    assert!(ann.may_publish("news.today"));
    assert!(!ann.may_publish("news.secret"));
    assert!(!ann.may_publish("other"));
    assert!(ann.may_subscribe("news.*"));
    assert!(!ann.may_subscribe("news.today.late"));
    assert!(ann.may_subscribe_queue("work", "q"));
    assert!(!ann.may_subscribe_queue("work", "other"));

    let mut service = nats.connect(Login::Nkey(&pair)).unwrap();
    service.subscribe("news.>");
    service.flush().unwrap();
    ann.publish("news.today", b"rain");
    assert_eq!(service.next(SOON).unwrap().payload, b"rain");
    assert!(!nats.lets_in(Login::Nkey(&nkeys::KeyPair::new_user())));

    let mut system = nats.system();
    let reply = system.request("$SYS.REQ.SERVER.PING.VARZ", b"", SOON).unwrap();
    assert!(String::from_utf8(reply.payload).unwrap().contains("\"nats-server\""));

    // A narrower file is in force at once on the connection that is there, and closes others.
    nats.load(&format!(
        r#"authorization {{ users = [
          {{user: ann, password: "{}", permissions: {{publish: "other", subscribe: {{deny: ">"}}}}}}
        ] }}"#,
        bcrypt("ann's"),
    ))
    .unwrap();
    assert!(ann.may_publish("other"));
    assert!(!ann.may_publish("news.today"));
    assert!(!ann.may_subscribe("news.today"));
    assert!(service.closed(SOON).is_some());
}

#[test]
fn a_refused_file_is_told_and_changes_nothing() {
    let auth =
        format!("authorization {{ users = [ {{user: ann, password: \"{}\"}} ] }}", bcrypt("ann's"));
    let nats = Nats::with(Setup { auth: &auth, ..Setup::default() });
    assert!(nats.judge().is_ok());
    assert!(nats.load("authorization { users = {} }").is_err());
    assert!(nats.judge().is_err());
    assert!(nats.accepts("ann", "ann's"));
}

/// Whoever logs in at the very time of a reload is turned away by it, and that says nothing.
#[test]
fn a_reload_is_not_taken_for_a_refusal() {
    let auth =
        format!("authorization {{ users = [ {{user: ann, password: \"{}\"}} ] }}", bcrypt("a"));
    let nats = Nats::with(Setup { auth: &auth, ..Setup::default() });
    thread::scope(|scope| {
        // One reload for each question.
        let (ask, asked) = mpsc::sync_channel(0);
        let nats = &nats;
        scope.spawn(move || asked.iter().for_each(|()| nats.reload().unwrap()));
        for _ in 0..300 {
            ask.send(()).unwrap();
            assert!(nats.accepts("ann", "a"));
        }
        drop(ask);
    });
    assert!(!nats.accepts("ann", "b"));
}

#[test]
fn a_server_comes_back_at_its_old_address() {
    let auth =
        format!("authorization {{ users = [ {{user: ann, password: \"{}\"}} ] }}", bcrypt("ann's"));
    let mut nats = Nats::with(Setup { auth: &auth, ..Setup::default() });
    let (address, monitor) = (nats.address, nats.monitor);
    let mut ann = nats.client("ann", "ann's");
    nats.kill();
    assert!(ann.closed(SOON).is_some());
    nats.resume();
    assert_eq!((address, monitor), (nats.address, nats.monitor));
    assert!(nats.accepts("ann", "ann's"));
}

#[test]
fn a_cluster_shares_one_auth_file_and_answers_as_one() {
    let mut nats = Nats::cluster(3, Setup::default());
    let auth =
        format!("authorization {{ users = [ {{user: ann, password: \"{}\"}} ] }}", bcrypt("ann's"));
    for server in &nats {
        server.load(&auth).unwrap();
    }
    let mut here = nats[0].client("ann", "ann's");
    let mut there = nats[2].client("ann", "ann's");
    there.subscribe("news");
    there.flush().unwrap();
    eventually("a message crosses the cluster", || {
        here.publish("news", b"rain");
        there.next(Duration::from_millis(50))
    });
    nats[1].stop();
    nats[1].resume();
    assert!(nats[1].accepts("ann", "ann's"));
}

#[test]
fn pocketbase_keeps_its_records_over_a_restart() {
    for version in [None, Some("0.23.12"), Some("0.28.4")] {
        for users in [Users::Text, Users::Password, Users::Auth, Users::AuthByEmail] {
            let mut pb = Pb::empty(version);
            pb.create_collections(users, Optional::Present);
            let role = pb.role("reader", &[], &["news.>"]);
            let ann = pb.user("ann@example.com", "ann's password", &role);
            if users == Users::Password {
                pb.kill();
            } else {
                pb.stop();
            }
            pb.resume();
            pb.update("nats_users", &ann, &json!({ "active": false }));
            let path = format!("/api/collections/nats_users/records/{ann}");
            let record = pb.ask("GET", &path, &json!(null));
            assert_eq!(record["active"], false, "{version:?} {users:?}");
            assert_eq!(record["role_id"], json!([role]));
            pb.delete("nats_users", &ann);
            assert_eq!(pb.request("GET", &path, pb.token(), &json!(null)).0, 404);
            assert!(pb.data_dir().join("data.db").is_file());
        }
    }
}
