//! What the program is like to live with: plans that read like a diff, backups, a terminal.

use serde_json::{Value, json};

use crate::{
    PB_NATS,
    support::{Nats, Pb, PbNats, SYSTEM_ACCOUNT, SYSTEM_USER, Setup},
};

const PASSWORD: &str = "open sesame";

/// A PocketBase with clerks, a nats-server with a system account, and pb-nats between them.
fn town(users: &[&str]) -> (Pb, Nats, PbNats, String, Vec<String>) {
    let pb = Pb::start();
    let nats = Nats::with(Setup { extra: SYSTEM_ACCOUNT, ..Setup::default() });
    let role = pb.role("clerk", &["orders.>"], &["orders.>", "_INBOX.>"]);
    let users = users.iter().map(|it| pb.user(it, PASSWORD, &role)).collect();
    let mut pb_nats = PbNats::between(PB_NATS, &pb, &nats);
    pb_nats.unset("nats.monitor_url");
    pb_nats.set("nats.system_url", nats.url());
    pb_nats.set("nats.system_user", SYSTEM_USER.0);
    pb_nats.set("nats.system_password", SYSTEM_USER.1);
    (pb, nats, pb_nats, role, users)
}

fn json_of(pb_nats: &PbNats, arguments: &[&str]) -> Value {
    let output = pb_nats.command(arguments).success();
    serde_json::from_str(&output.stdout).unwrap()
}

#[test]
fn a_plan_says_who_gains_and_loses_what_and_how_many_connections_that_touches() {
    let (pb, nats, mut pb_nats, role, users) = town(&["ann", "bob", "cleo"]);
    let plan = pb_nats.command(&["plan"]).success();
    assert_eq!(
        plan.stdout,
        r#"+ role "CLERK"
~ default permissions
    + publish "PUBLIC.>"
    + subscribe "PUBLIC.>"
    + subscribe "_INBOX.>"
+ 3 users, role "CLERK": "ann", "bob", "cleo"
    + publish "orders.>"
    + subscribe "_INBOX.>"
    + subscribe "orders.>"
touches 0 live connections; closes 0, of users who lose something
"#
    );
    pb_nats.once().success();
    let _connected = ["ann", "ann", "bob", "cleo"].map(|name| nats.client(name, PASSWORD));

    // Who only gains keeps their connections.
    let wider = json!({"publish_permissions": ["orders.>", "news"]});
    pb.update("nats_roles", &role, &wider);
    pb.update("nats_users", &users[2], &json!({"role_id": ""}));
    let plan = pb_nats.command(&["plan"]).success();
    assert_eq!(
        plan.stdout,
        r#"~ role "CLERK", of 2 users: "ann" (2 connections), "bob" (1 connection)
    + publish "news"
~ user "cleo" (1 connection), default permissions instead of role "CLERK"
    - publish "orders.>"
    - subscribe "orders.>"
    + publish "PUBLIC.>"
    + subscribe "PUBLIC.>"
touches 4 live connections; closes 1, of users who lose something
"#
    );

    pb.update("nats_users", &users[0], &json!({"active": false}));
    let plan = json_of(&pb_nats, &["plan", "--json"]);
    assert_eq!(
        plan["connections"],
        json!({"touched": 4, "closed": 3, "by_user": {"ann": 2, "bob": 1, "cleo": 1}})
    );
    assert_eq!(plan["changes"]["users_removed"], json!(["ann"]));
    let gone = plan["diff"].as_array().unwrap().last().unwrap();
    assert_eq!((&gone["change"], &gone["users"]), (&json!("removed"), &json!(["ann"])));
    assert_eq!(gone["losses"]["publish"], json!(["orders.>"]));
    assert!(!plan.to_string().contains("$2"), "no hash is shown: {plan}");

    // Without the system account nobody knows, and nothing is said.
    for setting in ["system_url", "system_user", "system_password"] {
        pb_nats.unset(&format!("nats.{setting}"));
    }
    assert_eq!(json_of(&pb_nats, &["plan", "--json"])["connections"], Value::Null);
    assert!(!pb_nats.command(&["plan"]).success().stdout.contains("connection"));
    // Where nobody answers, that is said, and the plan is no worse for it.
    pb_nats.set("nats.system_url", "nats://127.0.0.1:9");
    let plan = pb_nats.command(&["plan"]).success().stdout;
    assert!(plan.contains("- user \"ann\", role \"CLERK\"\n"), "{plan}");
    assert!(plan.contains("how many connections that touches is not known: "), "{plan}");
}

#[test]
fn a_long_plan_is_cut_for_people_and_whole_for_programs() {
    let (pb, _nats, pb_nats, role, _) = town(&[]);
    let subjects: Vec<String> = (0..30).map(|n| format!("topic.{n:02}")).collect();
    pb.update("nats_roles", &role, &json!({"publish_permissions": subjects}));
    for n in 0..12 {
        pb.user(&format!("user{n:02}"), PASSWORD, &role);
    }
    let plan = pb_nats.command(&["plan"]).success().stdout;
    assert!(plan.contains("+ 12 users, role \"CLERK\": \"user00\", "), "{plan}");
    assert!(plan.contains("\"user07\" and 4 more\n") && !plan.contains("user08"), "{plan}");
    assert!(
        plan.contains("publish \"topic.09\"\n    + publish … and 20 subjects more\n"),
        "{plan}"
    );
    let plan = json_of(&pb_nats, &["plan", "--json"]);
    let last = plan["diff"].as_array().unwrap().last().unwrap();
    assert_eq!(last["users"].as_array().unwrap().len(), 12);
    assert_eq!(last["gains"]["publish"], json!(subjects));
}
