#![expect(clippy::needless_pass_by_value, reason = "so that tables can be written with `json!`")]

use std::{fmt::Write as _, sync::Arc};

use insta::assert_snapshot;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    advice::{Change, Who},
    *,
};
use crate::auth::{
    Problem,
    tests::{policy, role, user},
};

fn explain(users: Vec<UserRecord>, roles: Vec<RoleRecord>) -> Explain {
    Explain::new(Snapshot { users, roles }, policy())
}

/// A question in short: `pub a.b`, `sub a.b`, `sub a.b q`.
fn question(text: &str) -> Question {
    let words: Vec<_> = text.split(' ').collect();
    let action = if words[0] == "pub" { Action::Publish } else { Action::Subscribe };
    Question::new(action, words[1], words.get(2).copied()).unwrap()
}

/// The answer as it is told, a line each.
fn told(answer: &Answer) -> String {
    let mut text = format!("{answer}\n");
    answer.because.iter().for_each(|it| writeln!(text, "  {it}").unwrap());
    answer.change.iter().for_each(|it| writeln!(text, "  change: {it}").unwrap());
    answer.notes.iter().for_each(|it| writeln!(text, "  note: {it}").unwrap());
    text
}

/// The answers for ann, whose record and roles these are.
fn ann(fields: Value, roles: Vec<RoleRecord>, questions: &[&str]) -> String {
    let mut record = json!({"username": "ann"});
    record.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let explain = explain(vec![user("u1", record)], roles);
    let ann = explain.user("ann").unwrap();
    let answers = questions.iter().map(|it| explain.answer(ann, &question(it), Delivery::All));
    answers.map(|it| told(&it)).collect()
}

#[test]
fn what_is_allowed_names_the_line_as_it_is_written() {
    let roles = || {
        vec![
            role("r1", "clerk", json!({"pub": ["x", "orders.>", "d.{{username}}"]})),
            role("r2", "boss", json!({"pub": "[\"orders.*\"]"})),
        ]
    };
    let fields = json!({"roles": ["r1", "r2"], "pub": ["orders.new"]});
    assert_snapshot!(ann(fields, roles(), &["pub orders.new", "pub d.ann"]), @r#"
    "ann" may publish to "orders.new"
      allowed by nats_roles/r1 "clerk": publish_permissions[1] "orders.>"
      allowed by nats_roles/r2 "boss": publish_permissions[0] "orders.*"
      allowed by nats_users/u1 "ann": publish_permissions[0] "orders.new"
    "ann" may publish to "d.ann"
      allowed by nats_roles/r1 "clerk": publish_permissions[2] "d.{{username}}", here "d.ann"
    "#);
    assert_snapshot!(ann(json!({}), roles(), &["pub PUBLIC.x", "sub _INBOX.>"]), @r#"
    "ann" may publish to "PUBLIC.x"
      allowed by the settings' [permissions]: default_publish[0] "PUBLIC.>"
    "ann" may subscribe to "_INBOX.>"
      allowed by the settings' [permissions]: default_subscribe[1] "_INBOX.>"
    "#);
}

#[test]
fn what_is_denied_names_what_would_have_to_change() {
    let roles = || {
        vec![
            role("r1", "clerk", json!({"pub": [">"], "pubdeny": ["pay.>"], "sub": ["jobs q"]})),
            role("r2", "none", json!({"pub": ["a"], "pubdeny": [">"], "respond": true, "max": 3})),
            role(
                "r3",
                "typo",
                json!({"pub": ["a", "b..c"], "pubdeny": ["x..y"], "sub": ["c d e"]}),
            ),
        ]
    };
    assert_snapshot!(ann(json!({"roles": ["r1"]}), roles(), &["pub pay.me", "sub jobs", "sub jobs r"]), @r#"
    "ann" may not publish to "pay.me"
      denied by nats_roles/r1 "clerk": publish_deny_permissions[0] "pay.>"
      change: take "pay.>" out of publish_deny_permissions of nats_roles/r1 "clerk", which lifts it for all who have the role (1 active user)
    "ann" may not subscribe to "jobs"
      allowed to a queue group only, by nats_roles/r1 "clerk": subscribe_permissions[0] "jobs q"
      change: subscribe in the queue group `q`
      change: or add "jobs" to subscribe_permissions of nats_users/u1 "ann", for this user alone
      change: or add "jobs" to subscribe_permissions of nats_roles/r1 "clerk", the same for all who have the role (1 active user)
    "ann" may not subscribe to "jobs" in the queue group "r"
      allowed to a queue group only, by nats_roles/r1 "clerk": subscribe_permissions[0] "jobs q"
      change: subscribe in the queue group `q`
      change: or add "jobs r" to subscribe_permissions of nats_users/u1 "ann", for this user alone
      change: or add "jobs r" to subscribe_permissions of nats_roles/r1 "clerk", the same for all who have the role (1 active user)
    "#);
    assert_snapshot!(ann(json!({"roles": ["r2"]}), roles(), &["pub a", "pub b"]), @r#"
    "ann" may not publish to "a"
      denied by nats_roles/r2 "none": publish_deny_permissions[0] ">"
      change: take ">" out of publish_deny_permissions of nats_roles/r2 "none", which lifts it for all who have the role (1 active user)
      note: each request that comes may be answered up to 3 times within 120s on its reply subject, denied or not, by allow_response of nats_roles/r2 "none"
    "ann" may not publish to "b"
      denied by nats_roles/r2 "none": publish_deny_permissions[0] ">"
      change: take ">" out of publish_deny_permissions of nats_roles/r2 "none", which lifts it for all who have the role (1 active user)
      change: and add "b" to publish_permissions of nats_users/u1 "ann", for this user alone
      change: or add "b" to publish_permissions of nats_roles/r2 "none", the same for all who have the role (1 active user)
      note: each request that comes may be answered up to 3 times within 120s on its reply subject, denied or not, by allow_response of nats_roles/r2 "none"
    "#);
    assert_snapshot!(ann(json!({"roles": ["r3"]}), roles(), &["pub a", "sub c"]), @r#"
    "ann" may not publish to "a"
      nats_roles/r3 "typo": publish_permissions "b..c": it is not a subject: a token between its dots is empty; not granted; correct the subject, such as a.*.c or a.>
      nats_roles/r3 "typo": publish_deny_permissions "x..y": it is not a subject: a token between its dots is empty; denies this whole direction
      change: fix publish_deny_permissions of nats_roles/r3 "typo": correct the subject, such as a.*.c or a.>
    "ann" may not subscribe to "c"
      no line allows it
      nats_roles/r3 "typo": subscribe_permissions "c d e": it is not a subject: it has white space; not granted; correct the subject, such as a.*.c or a.>
      change: add "c" to subscribe_permissions of nats_users/u1 "ann", for this user alone
      change: or add "c" to subscribe_permissions of nats_roles/r3 "typo", the same for all who have the role (1 active user)
    "#);
    assert_snapshot!(ann(json!({"types": ["MQTT"]}), roles(), &["pub x", "pub $NRG.x", "sub x _sys_"]), @r#"
    "ann" may not publish to "x"
      no line allows it
      change: add "x" to publish_permissions of nats_users/u1 "ann", for this user alone
      change: or give the user a role that allows it
      note: the user may only connect by MQTT
    "ann" may not publish to "$NRG.x"
      nats-server keeps it for itself
      change: choose another subject or queue group; no record changes it
      note: the user may only connect by MQTT
    "ann" may not subscribe to "x" in the queue group "_sys_"
      nats-server keeps it for itself
      change: choose another subject or queue group; no record changes it
      note: the user may only connect by MQTT
    "#);
}

/// What ann is told, and, where a question begins with their name, others.
fn advised(fields: Value, questions: &[&str]) -> String {
    let roles = || {
        vec![
            role(
                "r1",
                "device",
                json!({"pub": ["d.{{username}}.temp", "PUBLIC.x"], "sub": ["c.{{username}}.>"]}),
            ),
            role("r2", "asker", json!({"sub": ["_INBOX_{{username}}.>"], "respond": true})),
            role(
                "r3",
                "all",
                json!({"sub": [">"], "subdeny": ["_INBOX.>", "$SYS.>"], "pubdeny": ["$SYS.>"]}),
            ),
        ]
    };

    let mut record = json!({"username": "ann"});
    record.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let others =
        [json!({"username": "bob", "roles": ["r1"]}), json!({"username": "a.c", "roles": ["r1"]})];
    let [bob, ac] = others;
    let users = vec![user("u1", record), user("u2", bob), user("u3", ac)];
    let explain = explain(users, roles());
    let mut told = String::new();
    for it in questions {
        let (name, it) = it.split_once(": ").unwrap_or(("ann", it));
        let user = explain.user(name).unwrap();
        let answer = explain.answer(user, &question(it), Delivery::All);
        writeln!(told, "{answer}").unwrap();
        answer.change.iter().for_each(|it| writeln!(told, "  {it}").unwrap());
        answer.notes.iter().for_each(|it| writeln!(told, "  note: {it}").unwrap());
    }
    told
}

/// Nobody else is to gain.
#[test]
fn who_may_not_is_told_what_a_careful_person_would_do() {
    assert_snapshot!(advised(json!({"roles": ["r1"]}), &[
        "pub d.ann.humid", "pub d.u1.temp", "pub d.bob.temp", "pub d.nobody.temp", "pub gw-ann.up", "pub x.bob",
        "a.c: pub d.a.c.temp", "pub alarm", "sub c.>", "sub >", "sub jobs workers", "sub jobs.ann workers",
    ]), @r#"
    "ann" may not publish to "d.ann.humid"
      add "d.{{username}}.humid" to publish_permissions of nats_roles/r1 "device", for each who has the role their own (3 active users)
      or add "d.ann.humid" to publish_permissions of nats_users/u1 "ann", for this user alone
    "ann" may not publish to "d.u1.temp"
      add "d.{{id}}.temp" to publish_permissions of nats_roles/r1 "device", for each who has the role their own (3 active users)
      or add "d.u1.temp" to publish_permissions of nats_users/u1 "ann", for this user alone
    "ann" may not publish to "d.bob.temp"
      add "d.bob.temp" to publish_permissions of nats_users/u1 "ann", for this user alone
      note: by "d.{{username}}.temp" of nats_roles/r1 "device" each user has their own, and this is not theirs
    "ann" may not publish to "d.nobody.temp"
      add "d.nobody.temp" to publish_permissions of nats_users/u1 "ann", for this user alone
      note: by "d.{{username}}.temp" of nats_roles/r1 "device" each user has their own, and this is not theirs
    "ann" may not publish to "gw-ann.up"
      add "gw-{{username}}.up" to publish_permissions of nats_roles/r1 "device", for each who has the role their own (3 active users)
      or add "gw-ann.up" to publish_permissions of nats_users/u1 "ann", for this user alone
    "ann" may not publish to "x.bob"
      add "x.bob" to publish_permissions of nats_users/u1 "ann", for this user alone
      note: "bob" is another user
    "a.c" may not publish to "d.a.c.temp"
      add "d.a.c.temp" to publish_permissions of nats_users/u3 "a.c", for this user alone
      note: "a.c" is several tokens of a subject, so no role can give each their own
    "ann" may not publish to "alarm"
      add "alarm" to publish_permissions of nats_users/u1 "ann", for this user alone
      or add "alarm" to publish_permissions of nats_roles/r1 "device", the same for all who have the role (3 active users)
    "ann" may not subscribe to "c.>"
      subscribe to "c.ann.>" instead, which is allowed
      or add "c.>" to subscribe_permissions of nats_users/u1 "ann", for this user alone
      note: by "c.{{username}}.>" of nats_roles/r1 "device" each user has their own, and this reaches that of others
    "ann" may not subscribe to ">"
      subscribe to "c.ann.>" instead, which is allowed
      or add ">" to subscribe_permissions of nats_users/u1 "ann", for this user alone
      note: this reaches into everybody's inbox, and into what nats-server keeps there
      note: by "c.{{username}}.>" of nats_roles/r1 "device" each user has their own, and this reaches that of others
    "ann" may not subscribe to "jobs" in the queue group "workers"
      add "jobs workers" to subscribe_permissions of nats_users/u1 "ann", for this user alone
      or add "jobs workers" to subscribe_permissions of nats_roles/r1 "device", the same for all who have the role (3 active users)
    "ann" may not subscribe to "jobs.ann" in the queue group "workers"
      add "jobs.{{username}} workers" to subscribe_permissions of nats_roles/r1 "device", for each who has the role their own (3 active users)
      or add "jobs.ann workers" to subscribe_permissions of nats_users/u1 "ann", for this user alone
    "#);
}

/// What is nats-server's own is left to it, and nobody is led into another's inbox.
#[test]
fn what_clients_need_for_themselves_is_advised_by_its_kind() {
    assert_snapshot!(advised(json!({"roles": ["r1"]}), &[
        "sub _INBOX.x7.*", "sub _INBOX_ann.x7.*", "sub _INBOX_u1.>", "sub _INBOX_bob.>", "a.c: sub _INBOX.>",
        "pub _INBOX.x7.1", "pub $SYS.REQ.SERVER.PING", "sub $SYS.>", "sub $MQTT.sub.x7", "pub $MQTT.sess.x",
        "pub $JS.ACK.ORDERS.worker.1.2.3.4.5", "pub $JS.FC.KV_config.x7.y", "pub $JS.API.CONSUMER.INFO.KV_config.x7",
        "pub $JS.API.CONSUMER.CREATE.KV_config.x7.$KV.config.colour", "pub $JS.API.CONSUMER.CREATE.ORDERS.mine",
        "pub $JS.API.STREAM.DELETE.ORDERS", "pub $KV.config.colour", "pub $KV.config.ann",
    ]), @r#"
    "ann" may not subscribe to "_INBOX.x7.*"
      this is a reply inbox: set the client's inbox prefix to "_INBOX_ann"
      and add "_INBOX_{{username}}.>" to subscribe_permissions of nats_roles/r1 "device", for each who has the role their own (3 active users)
      or add "_INBOX_ann.>" to subscribe_permissions of nats_users/u1 "ann", for this user alone
      note: "_INBOX.>" would be shared: whoever has it reads everybody's replies
    "ann" may not subscribe to "_INBOX_ann.x7.*"
      this is a reply inbox: set the client's inbox prefix to "_INBOX_ann"
      and add "_INBOX_{{username}}.>" to subscribe_permissions of nats_roles/r1 "device", for each who has the role their own (3 active users)
      or add "_INBOX_ann.>" to subscribe_permissions of nats_users/u1 "ann", for this user alone
    "ann" may not subscribe to "_INBOX_u1.>"
      this is a reply inbox: set the client's inbox prefix to "_INBOX_u1"
      and add "_INBOX_{{id}}.>" to subscribe_permissions of nats_roles/r1 "device", for each who has the role their own (3 active users)
      or add "_INBOX_u1.>" to subscribe_permissions of nats_users/u1 "ann", for this user alone
    "ann" may not subscribe to "_INBOX_bob.>"
      this is a reply inbox: set the client's inbox prefix to "_INBOX_ann"
      and add "_INBOX_{{username}}.>" to subscribe_permissions of nats_roles/r1 "device", for each who has the role their own (3 active users)
      or add "_INBOX_ann.>" to subscribe_permissions of nats_users/u1 "ann", for this user alone
    "a.c" may not subscribe to "_INBOX.>"
      this is a reply inbox: set the client's inbox prefix to "_INBOX_u3"
      and add "_INBOX_{{id}}.>" to subscribe_permissions of nats_roles/r1 "device", for each who has the role their own (3 active users)
      or add "_INBOX_u3.>" to subscribe_permissions of nats_users/u3 "a.c", for this user alone
      note: "_INBOX.>" would be shared: whoever has it reads everybody's replies
    "ann" may not publish to "_INBOX.x7.1"
      this is a reply inbox: switch on allow_response of nats_roles/r1 "device" (3 active users), and each may answer what comes to them, and nothing else there
    "ann" may not publish to "$SYS.REQ.SERVER.PING"
      leave it to nats-server: what is below "$SYS" is its own, and no record should allow it; to ask or watch a server, log in as a user of its system account, which the main config has
    "ann" may not subscribe to "$SYS.>"
      leave it to nats-server: what is below "$SYS" is its own, and no record should allow it; to ask or watch a server, log in as a user of its system account, which the main config has
    "ann" may not subscribe to "$MQTT.sub.x7"
      set allowed_connection_types of nats_users/u1 "ann" to ["MQTT", "MQTT_WS"]: this is for MQTT, and by an ordinary connection "$MQTT.sub.>" shows what all others get
      and update nats-server to 2.12 or later, which needs no line for this; before, MQTT's QoS 1 and 2 do
      or add "$MQTT.sub.>" to subscribe_permissions of nats_users/u1 "ann", for this user alone
    "ann" may not publish to "$MQTT.sess.x"
      leave it to nats-server: what is below "$MQTT" is its own, and no record should allow it; to ask or watch a server, log in as a user of its system account, which the main config has
    "ann" may not publish to "$JS.ACK.ORDERS.worker.1.2.3.4.5"
      add "$JS.ACK.ORDERS.worker.>" to publish_permissions of nats_users/u1 "ann", for this user alone
      or add "$JS.ACK.ORDERS.worker.>" to publish_permissions of nats_roles/r1 "device", the same for all who have the role (3 active users)
      note: a client of JetStream needs several subjects: the cookbook lists them
    "ann" may not publish to "$JS.FC.KV_config.x7.y"
      add "$JS.FC.KV_config.>" to publish_permissions of nats_users/u1 "ann", for this user alone
      or add "$JS.FC.KV_config.>" to publish_permissions of nats_roles/r1 "device", the same for all who have the role (3 active users)
      note: a client of JetStream needs several subjects: the cookbook lists them
    "ann" may not publish to "$JS.API.CONSUMER.INFO.KV_config.x7"
      add "$JS.API.CONSUMER.INFO.KV_config.*" to publish_permissions of nats_users/u1 "ann", for this user alone
      or add "$JS.API.CONSUMER.INFO.KV_config.*" to publish_permissions of nats_roles/r1 "device", the same for all who have the role (3 active users)
      note: a client of JetStream needs several subjects: the cookbook lists them
    "ann" may not publish to "$JS.API.CONSUMER.CREATE.KV_config.x7.$KV.config.colour"
      add "$JS.API.CONSUMER.CREATE.KV_config.*.$KV.config.colour" to publish_permissions of nats_users/u1 "ann", for this user alone
      or add "$JS.API.CONSUMER.CREATE.KV_config.*.$KV.config.colour" to publish_permissions of nats_roles/r1 "device", the same for all who have the role (3 active users)
      note: whoever may make a consumer can have it deliver to any subject; the cookbook lists what a client needs beside it
    "ann" may not publish to "$JS.API.CONSUMER.CREATE.ORDERS.mine"
      add "$JS.API.CONSUMER.CREATE.ORDERS.mine" to publish_permissions of nats_users/u1 "ann", for this user alone
      or add "$JS.API.CONSUMER.CREATE.ORDERS.mine" to publish_permissions of nats_roles/r1 "device", the same for all who have the role (3 active users)
      note: whoever may make a consumer can have it deliver to any subject; the cookbook lists what a client needs beside it
    "ann" may not publish to "$JS.API.STREAM.DELETE.ORDERS"
      add "$JS.API.STREAM.DELETE.ORDERS" to publish_permissions of nats_users/u1 "ann", for this user alone
      note: whoever may do this can take away, or copy, what is others'
    "ann" may not publish to "$KV.config.colour"
      add "$KV.config.colour" to publish_permissions of nats_users/u1 "ann", for this user alone
      or add "$KV.config.colour" to publish_permissions of nats_roles/r1 "device", the same for all who have the role (3 active users)
      note: whoever may write one key of a bucket can empty the bucket; the cookbook lists what a client needs beside it
    "ann" may not publish to "$KV.config.ann"
      add "$KV.config.{{username}}" to publish_permissions of nats_roles/r1 "device", for each who has the role their own (3 active users)
      or add "$KV.config.ann" to publish_permissions of nats_users/u1 "ann", for this user alone
      note: whoever may write one key of a bucket can empty the bucket; the cookbook lists what a client needs beside it
    "#);
}

#[test]
fn what_is_there_already_counts_in_what_is_advised() {
    assert_snapshot!(advised(json!({"roles": ["r2"], "types": ["MQTT"]}), &[
        "sub _INBOX.x7.*", "sub _INBOX_bob.>", "pub _INBOX.x7.1", "sub $MQTT.deliver.x7", "pub x",
    ]), @r#"
    "ann" may not subscribe to "_INBOX.x7.*"
      this is a reply inbox, and their own is open to them: set the client's inbox prefix to "_INBOX_ann"
      note: "_INBOX.>" would be shared: whoever has it reads everybody's replies
      note: the user may only connect by MQTT
    "ann" may not subscribe to "_INBOX_bob.>"
      this is a reply inbox, and their own is open to them: set the client's inbox prefix to "_INBOX_ann"
      note: the user may only connect by MQTT
    "ann" may not publish to "_INBOX.x7.1"
      nothing, if this is to answer a request: that is allowed, on the reply subject which the request brings
      note: each request that comes may be answered once within 120s on its reply subject, denied or not, by allow_response of nats_roles/r2 "asker"
      note: the user may only connect by MQTT
    "ann" may not subscribe to "$MQTT.deliver.x7"
      update nats-server to 2.12 or later, which needs no line for this; before, MQTT's QoS 1 and 2 do
      or add "$MQTT.deliver.>" to subscribe_permissions of nats_users/u1 "ann", for this user alone
      or add "$MQTT.deliver.>" to subscribe_permissions of nats_roles/r2 "asker", the same for all who have the role (1 active user)
      note: the user may only connect by MQTT
    "ann" may not publish to "x"
      add "x" to publish_permissions of nats_users/u1 "ann", for this user alone
      or add "x" to publish_permissions of nats_roles/r2 "asker", the same for all who have the role (1 active user)
      note: each request that comes may be answered once within 120s on its reply subject, denied or not, by allow_response of nats_roles/r2 "asker"
      note: the user may only connect by MQTT
    "#);
    assert_snapshot!(advised(json!({"roles": ["r3"]}), &[
        "sub _INBOX.x7.*", "sub $SYS.>", "pub $SYS.x",
    ]), @r#"
    "ann" may not subscribe to "_INBOX.x7.*"
      this is a reply inbox, and their own is open to them: set the client's inbox prefix to "_INBOX_ann"
      note: "_INBOX.>" would be shared: whoever has it reads everybody's replies
    "ann" may not subscribe to "$SYS.>"
      leave it to nats-server: what is below "$SYS" is its own, and no record should allow it; to ask or watch a server, log in as a user of its system account, which the main config has
    "ann" may not publish to "$SYS.x"
      leave it to nats-server: what is below "$SYS" is its own, and no record should allow it; to ask or watch a server, log in as a user of its system account, which the main config has
    "#);
    assert_snapshot!(advised(json!({}), &["sub _INBOX_ann.>", "pub orders.new", "pub _INBOX.x"]), @r#"
    "ann" may not subscribe to "_INBOX_ann.>"
      this is a reply inbox: set the client's inbox prefix to "_INBOX_ann"
      and add "_INBOX_ann.>" to subscribe_permissions of nats_users/u1 "ann", for this user alone
    "ann" may not publish to "orders.new"
      add "orders.new" to publish_permissions of nats_users/u1 "ann", for this user alone
      or give the user a role that allows it
    "ann" may not publish to "_INBOX.x"
      this is a reply inbox: give the user a role with allow_response, by which they may answer what comes to them
    "#);
}

#[test]
fn a_user_who_is_not_in_nats_is_told_why() {
    assert_snapshot!(ann(json!({"active": false}), vec![], &["pub PUBLIC.x"]), @r#"
    "ann" may not publish to "PUBLIC.x"
      the record is not active, so the user is not in NATS
      change: activate the user's record
    "#);
    assert_snapshot!(ann(json!({"roles": ["ghost"]}), vec![], &["pub PUBLIC.x"]), @r#"
    "ann" may not publish to "PUBLIC.x"
      nats_users/u1 "ann": role_id "ghost": there is no role with this id; left out of NATS
      change: choose a role that exists, or none for the default permissions
    "#);
    assert_snapshot!(ann(json!({"password": "sesame"}), vec![], &["sub PUBLIC.x"]), @r#"
    "ann" may not subscribe to "PUBLIC.x"
      nats_users/u1 "ann": password: it is not a bcrypt hash, so nats-server would take it for the password itself; left out of NATS
      change: store the bcrypt hash of the password (`pb-nats hash`)
    "#);

    let twin = |id: &str, active: bool| user(id, json!({"username": "ann", "active": active}));
    let explain = explain(vec![twin("1", false), twin("2", true), twin("3", true)], vec![]);
    let twins = explain.user("ann").unwrap();
    let answer = explain.answer(twins, &question("pub PUBLIC.x"), Delivery::All);
    let Reason::Finding { finding } = &answer.because[0] else { panic!("{answer:?}") };
    assert_eq!((&*finding.id, finding.problem), ("2", Problem::NameTwice));
}

#[test]
fn what_nats_server_delivers_of_a_subscription_is_told() {
    let reader = |sub: Value, deny: Value| {
        ann(
            json!({"roles": ["r"]}),
            vec![role("r", "reader", json!({"sub": sub, "subdeny": deny}))],
            &["sub news.>", "sub news.*", "sub news.a.b", "sub news.> r"],
        )
    };
    assert_snapshot!(reader(json!(["news.*"]), json!(null)), @r#"
    "ann" may subscribe to "news.>", but does not get all of it
      allowed by nats_roles/r "reader": subscribe_permissions[0] "news.*"
      "news.*.>" is denied by pb-nats, since nats-server would take it as allowed by nats_roles/r "reader": subscribe_permissions[0] "news.*"
    "ann" may subscribe to "news.*"
      allowed by nats_roles/r "reader": subscribe_permissions[0] "news.*"
    "ann" may not subscribe to "news.a.b"
      no line allows it
      change: add "news.a.b" to subscribe_permissions of nats_users/u1 "ann", for this user alone
      change: or add "news.a.b" to subscribe_permissions of nats_roles/r "reader", the same for all who have the role (1 active user)
    "ann" may subscribe to "news.>" in the queue group "r", but does not get all of it
      allowed by nats_roles/r "reader": subscribe_permissions[0] "news.*"
      "news.*.>" is denied by pb-nats, since nats-server would take it as allowed by nats_roles/r "reader": subscribe_permissions[0] "news.*"
    "#);
    assert_snapshot!(reader(json!(["*.*"]), json!(null)), @r#"
    "ann" may subscribe to "news.>", but does not get all of it
      allowed by nats_roles/r "reader": subscribe_permissions[0] "*.*"
      "*.*.>" is denied by pb-nats, since nats-server would take it as allowed by nats_roles/r "reader": subscribe_permissions[0] "*.*"
      note: nats-server before 2.11.16, or from 2.12.0 to 2.12.6, delivers `*.*.>` all the same
    "ann" may subscribe to "news.*"
      allowed by nats_roles/r "reader": subscribe_permissions[0] "*.*"
    "ann" may not subscribe to "news.a.b"
      no line allows it
      change: add "news.a.b" to subscribe_permissions of nats_users/u1 "ann", for this user alone
      change: or add "news.a.b" to subscribe_permissions of nats_roles/r "reader", the same for all who have the role (1 active user)
    "ann" may subscribe to "news.>" in the queue group "r", but does not get all of it
      allowed by nats_roles/r "reader": subscribe_permissions[0] "*.*"
      "*.*.>" is denied by pb-nats, since nats-server would take it as allowed by nats_roles/r "reader": subscribe_permissions[0] "*.*"
      note: nats-server before 2.11.16, or from 2.12.0 to 2.12.6, delivers `*.*.>` all the same
    "#);
    assert_snapshot!(reader(json!(["news.*", "news.a.b"]), json!(null)), @r#"
    "ann" may subscribe to "news.>"
      allowed by nats_roles/r "reader": subscribe_permissions[0] "news.*"
      nats-server reads more into it than is said, and delivers all levels, by nats_roles/r "reader": subscribe_permissions[0] "news.*"
    "ann" may subscribe to "news.*"
      allowed by nats_roles/r "reader": subscribe_permissions[0] "news.*"
    "ann" may subscribe to "news.a.b"
      allowed by nats_roles/r "reader": subscribe_permissions[1] "news.a.b"
    "ann" may subscribe to "news.>" in the queue group "r"
      allowed by nats_roles/r "reader": subscribe_permissions[0] "news.*"
      nats-server reads more into it than is said, and delivers all levels, by nats_roles/r "reader": subscribe_permissions[0] "news.*"
    "#);
    assert_snapshot!(reader(json!(["news.>"]), json!(["news.x", "news.> q"])), @r#"
    "ann" may subscribe to "news.>", but does not get all of it
      allowed by nats_roles/r "reader": subscribe_permissions[0] "news.>"
      denied by nats_roles/r "reader": subscribe_deny_permissions[0] "news.x"
    "ann" may subscribe to "news.*", but does not get all of it
      allowed by nats_roles/r "reader": subscribe_permissions[0] "news.>"
      denied by nats_roles/r "reader": subscribe_deny_permissions[0] "news.x"
    "ann" may subscribe to "news.a.b"
      allowed by nats_roles/r "reader": subscribe_permissions[0] "news.>"
    "ann" may subscribe to "news.>" in the queue group "r", but does not get all of it
      allowed by nats_roles/r "reader": subscribe_permissions[0] "news.>"
      denied by nats_roles/r "reader": subscribe_deny_permissions[0] "news.x"
    "#);
}

#[test]
fn versions_are_told_apart_by_what_they_deliver() {
    use Verdict::{Allowed, Denied, Partly};
    for (delivery, versions) in [
        (
            Delivery::Within,
            &["2.10.26", "2.11.0", "2.11.15", "2.12.0", "2.12.6", "2.9.25", "2.12.0-RC.1"][..],
        ),
        (Delivery::ToEveryone, &["2.11.16", "2.11.17", "2.12.7", "2.12.13", "2.14.0", "2.14.3"]),
        (Delivery::All, &["2.12.14", "2.14.4", "2.15.0-dev", "2.15.1", "3.0.0", "what"]),
    ] {
        for version in versions {
            assert_eq!(Delivery::of(version), delivery, "{version}");
        }
    }
    let verdicts = |denied: Value, text| {
        let explain = explain(
            vec![user("u", json!({"username": "ann", "roles": ["r"]}))],
            vec![role("r", "r", json!({"sub": ["*.*", "a.>"], "subdeny": denied}))],
        );
        let ann = explain.user("ann").unwrap();
        [Delivery::Within, Delivery::ToEveryone, Delivery::All]
            .map(|it| explain.answer(ann, &question(text), it).verdict)
    };
    for (denied, text, expected) in [
        (json!(["*.b"]), "sub a.*", [Allowed, Partly, Partly]),
        (json!(["*.b"]), "sub *.*", [Partly, Partly, Partly]),
        (json!(["*.b"]), "sub c.>", [Allowed, Partly, Partly]),
        (json!(["*.b"]), "sub a.x", [Allowed, Allowed, Allowed]),
        (json!(["*.b"]), "sub a.b", [Denied, Denied, Denied]),
        (json!(["a.c q"]), "sub a.* q", [Allowed, Allowed, Partly]),
        (json!(["a.c q"]), "sub a.* r", [Allowed, Allowed, Allowed]),
        (json!(["a.c q"]), "sub a.c q", [Denied, Denied, Denied]),
    ] {
        assert_eq!(verdicts(denied.clone(), text), expected, "{denied} {text}");
    }
}

#[test]
fn a_question_is_one_that_permissions_decide() {
    use Action::{Publish, Subscribe};
    let new =
        |action, subject, queue| Question::new(action, subject, queue).map(|it| it.to_string());
    assert_eq!(new(Publish, "a.b", None).unwrap(), "publish to \"a.b\"");
    assert_eq!(
        new(Subscribe, ">", Some("q")).unwrap(),
        "subscribe to \">\" in the queue group \"q\""
    );
    for (action, subject, queue, why) in [
        (Publish, "a.*", None, BadQuestion::Wildcard),
        (Publish, "a", Some("q"), BadQuestion::QueueOfPublisher),
        (Publish, "", None, BadQuestion::Subject(BadSubject::Empty)),
        (Subscribe, "a b", None, BadQuestion::Subject(BadSubject::Queue)),
        (Subscribe, "a\n", None, BadQuestion::Subject(BadSubject::Control)),
        (Subscribe, "a", Some(""), BadQuestion::Queue(BadSubject::Empty)),
        (Subscribe, "a", Some("a b"), BadQuestion::Queue(BadSubject::Queue)),
    ] {
        assert_eq!(new(action, subject, queue), Err(why), "{subject:?} {queue:?}");
    }
}

#[test]
fn a_user_is_found_by_name_key_or_id_and_a_slip_is_noticed() {
    const NKEY: &str = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";
    let device = user("id1", json!({"username": "device-1", "nkey": NKEY}));
    let explain = explain(vec![device, user("id2", json!({"username": "Marianne"}))], vec![]);
    for name in ["device-1", NKEY, "id1"] {
        assert_eq!(explain.user(name).unwrap().id, "id1");
    }
    assert!(explain.user("").is_none() && explain.user("ghost").is_none());
    assert_eq!(explain.similar("mariane"), Some("Marianne"));
    assert_eq!(explain.similar("xyz"), None);
}

#[test]
fn an_answer_is_an_object_with_texts() {
    let explain = explain(vec![user("u", json!({"username": "ann"}))], vec![]);
    let ann = explain.user("ann").unwrap();
    let answer = explain.answer(ann, &question("pub PUBLIC.x"), Delivery::All);
    let line = json!({
        "collection": "settings", "id": "permissions", "name": "default",
        "field": "default_publish", "index": 0, "entry": "PUBLIC.>", "subject": "PUBLIC.>",
    });
    assert_eq!(
        json!(answer),
        json!({
            "user": {"collection": "nats_users", "id": "u", "name": "ann"},
            "action": "publish", "subject": "PUBLIC.x", "queue": null, "verdict": "allowed",
            "because": [{
                "kind": "allowed", "line": line,
                "text": "allowed by the settings' [permissions]: default_publish[0] \"PUBLIC.>\"",
            }],
            "change": [], "notes": [],
        })
    );
    let who = explain.who_can(&question("sub x"), Delivery::All, 9);
    let expected = json!({
        "action": "subscribe", "subject": "x", "queue": null, "may": [], "more": 0, "may_not": 1,
    });
    assert_eq!(json!(who), expected);
    assert_eq!(json!(explain.rights(ann))["login"], "password");
    let cut = explain.who_can(&question("pub PUBLIC.x"), Delivery::All, 0);
    assert_eq!((cut.may.len(), cut.more, cut.may_not), (0, 1, 0));
    assert_eq!((explain.names("N", 9), explain.names("n", 0)), (vec!["ann"], vec![]));
}

/// Subjects of few tokens, so that they meet often.
fn any_subject() -> impl Strategy<Value = String> {
    let token = prop_oneof![3 => Just("a"), 2 => Just("b"), 2 => Just("*")];
    (prop::collection::vec(token, 1..4), any::<bool>()).prop_map(|(tokens, open)| {
        let open = if open { ".>" } else { "" };
        format!("{}{open}", tokens.join("."))
    })
}

fn any_list(groups: bool) -> impl Strategy<Value = Value> {
    let group = if groups {
        prop_oneof![3 => Just(""), 1 => Just(" q"), 1 => Just(" *")].boxed()
    } else {
        Just("").boxed()
    };
    let entry = (any_subject(), group).prop_map(|(subject, group)| subject + group);
    prop::collection::vec(entry, 0..4).prop_map(Value::from)
}

fn any_fields() -> impl Strategy<Value = Value> {
    (any_list(false), any_list(true), any_list(false), any_list(true)).prop_map(
        |(publish, subscribe, pubdeny, subdeny)| {
            json!({"pub": publish, "sub": subscribe, "pubdeny": pubdeny, "subdeny": subdeny})
        },
    )
}

fn any_question() -> impl Strategy<Value = Question> {
    let queue = prop_oneof![2 => Just(None), 1 => Just(Some("q")), 1 => Just(Some("r"))];
    (any::<bool>(), any_subject(), queue).prop_filter_map(
        "no question",
        |(publish, subject, queue)| {
            let action = if publish { Action::Publish } else { Action::Subscribe };
            let queue = queue.filter(|_| !publish);
            Question::new(action, &subject.replace(if publish { "*" } else { " " }, "c"), queue)
                .ok()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whatever is decided, the lines that decided it are found.
    #[test]
    fn every_answer_has_its_reasons(one in any_fields(), other in any_fields(), question in any_question()) {
        let roles = vec![role("1", "one", one), role("2", "other", other)];
        let explain = explain(vec![user("u", json!({"username": "ann", "roles": ["1", "2"]}))], roles);
        let ann = explain.user("ann").unwrap();
        let answer = explain.answer(ann, &question, Delivery::All);
        let has = |of: fn(&Reason) -> bool| answer.because.iter().any(of);
        let allowed = has(|it| matches!(it, Reason::Allowed { .. }));
        let withheld = has(|it| matches!(it, Reason::Denied { .. } | Reason::Added { .. }));
        match answer.verdict {
            Verdict::Allowed => prop_assert!(allowed && !withheld, "{answer:?}"),
            Verdict::Partly => prop_assert!(allowed && withheld, "{answer:?}"),
            Verdict::Denied => {
                prop_assert!(!allowed && !answer.because.is_empty() && !answer.change.is_empty(), "{answer:?}");
            }
        }
    }

    /// What a user gets, a line of theirs allows; or a finding says that it cannot be kept from them.
    #[test]
    fn nothing_is_delivered_that_no_line_allows(fields in any_fields(), question in any_question()) {
        let explain = explain(
            vec![user("u", json!({"username": "ann", "roles": ["r"]}))],
            vec![role("r", "r", fields)],
        );
        let ann = explain.user("ann").unwrap();
        let lines = explain.lines(ann, Action::Subscribe);
        let wider = explain.findings.iter().any(|it| it.problem == Problem::Wider);
        for message in explain.samples(ann, &question) {
            if explain.delivers(ann, &question, &message, Delivery::All) {
                let group = |it: &Subject| it.queue().is_none_or(|all| question.text.is_for(all));
                let say = |allows| lines.iter().any(|it| it.allows == allows && it.subject.covers(&message) && group(&it.subject));
                prop_assert!(say(true) || wider, "{message} {:?}", explain.desired());
                prop_assert!(!say(false), "{message} {:?}", explain.desired());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// What is advised works, for those whom it names, and takes nothing from anybody.
    #[test]
    fn whoever_follows_the_advice_may_and_nobody_else_gains(
        one in some_fields(), other in some_fields(), own in some_fields(),
        question in some_question(), further in some_question(),
    ) {
        let roles = vec![role("r1", "one", one), role("r2", "other", other)];
        let mut record = json!({"username": "ann", "roles": ["r1", "r2"]});
        record.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        let users = vec![
            user("u1", record),
            user("u2", json!({"username": "bob", "roles": ["r1"]})),
            user("u3", json!({"username": "a.c", "roles": ["r1", "r2"]})),
        ];
        let before = explain(users, roles);
        for asking in &before.snapshot.users {
            let (_, known) = before.in_nats(asking).unwrap();
            let subjects = direction(before.desired.rules(known), question.action);
            let ruling = Ruling::new(subjects, question.action, &question.text);
            if ruling.passes() || ruling.reserved {
                continue;
            }
            let lines = before.lines(asking, question.action);
            let advice = before.advice(asking, known, &question, &ruling, &lines);
            prop_assert!(!advice.told().is_empty(), "{question} {lines:?}");
            if advice.first.iter().any(|it| matches!(it, Change::Fix(_))) {
                continue;
            }
            let takes_out = |it: &&Change| matches!(it, Change::TakeOut { users: Some(_), .. });
            let lifted = advice.first.iter().filter(takes_out).count();
            let none = [Change::Other(String::new())];
            let ways = if advice.ways.is_empty() { &none[..] } else { &advice.ways };
            for way in ways {
                let mut snapshot = before.snapshot.clone();
                advice.first.iter().chain([way]).for_each(|it| follow(it, &mut snapshot));
                let after = Explain::new(snapshot, policy());
                let may = |explain: &Explain, id: &str, question: &Question| {
                    let user = explain.user(id).unwrap();
                    explain.answer(user, question, Delivery::All).verdict != Verdict::Denied
                };
                let said = || format!("{question}: {:#?}\n{way}\n{:?}", advice.told(), before.snapshot);
                if matches!(way, Change::Add { .. }) || !advice.first.is_empty() {
                    let follows = !matches!(way, Change::Other(text) if !text.is_empty());
                    prop_assert!(!follows || may(&after, &asking.id, &question), "{}", said());
                }
                for it in &before.snapshot.users {
                    if it.id != asking.id && lifted == 0 && !matches!(way, Change::Add { who: Who::All(_), .. }) {
                        prop_assert_eq!(may(&before, &it.id, &question), may(&after, &it.id, &question), "{}", said());
                    }
                    let loses = may(&before, &it.id, &further) && !may(&after, &it.id, &further);
                    prop_assert!(!loses, "{} loses {further} by {}", it.username, said());
                }
                if let Change::Add { entry, who: Who::All(_), .. } = way {
                    let names = entry.split(['.', ' ']).any(|it| ["ann", "bob", "u1", "u2", "u3"].contains(&it));
                    prop_assert!(!names && !entry.contains("a.c"), "{}", said());
                }
            }
        }
    }
}

/// Does as it is told.
fn follow(change: &Change, snapshot: &mut Snapshot) {
    fn list<'a>(snapshot: &'a mut Snapshot, id: &str, field: &str) -> &'a mut Value {
        let role = snapshot.roles.iter_mut().find(|it| it.id == id).map(|it| &mut it.permissions);
        let permissions = role.unwrap_or_else(|| {
            let user = snapshot.users.iter_mut().find(|it| it.id == id).unwrap();
            Arc::make_mut(&mut user.permissions)
        });
        match field {
            "publish_permissions" => &mut permissions.publish,
            "subscribe_permissions" => &mut permissions.subscribe,
            "publish_deny_permissions" => &mut permissions.publish_deny,
            "subscribe_deny_permissions" => &mut permissions.subscribe_deny,
            other => panic!("{other}"),
        }
    }
    match change {
        Change::TakeOut { line, .. } => {
            let all = list(snapshot, &line.record.id, &line.field).as_array_mut().unwrap();
            all.retain(|it| *it != *line.entry);
        }
        Change::Add { entry, field, to, .. } => {
            let all = list(snapshot, &to.id, field);
            if all.is_null() {
                *all = json!([]);
            }
            all.as_array_mut().unwrap().push(json!(entry));
        }
        Change::Fix(finding) => panic!("{finding}"),
        Change::Other(_) => (),
    }
}

/// Lists in which people are named, and each has their own.
fn some_fields() -> impl Strategy<Value = Value> {
    let list = |groups| {
        prop::collection::vec((some_subject(true), 0..6), 0..4).prop_map(move |all| {
            let entry = |(subject, group): (String, i32)| match (groups, group) {
                (true, 0) => subject + " q",
                (true, 1) => subject + " *",
                _ => subject,
            };
            Value::from(all.into_iter().map(entry).collect::<Vec<_>>())
        })
    };
    (list(false), list(true), list(false), list(true), 0..3).prop_map(
        |(publish, subscribe, pubdeny, subdeny, denies)| match denies {
            0 => json!({"pub": publish, "sub": subscribe, "pubdeny": pubdeny, "subdeny": subdeny}),
            _ => json!({"pub": publish, "sub": subscribe}),
        },
    )
}

fn some_subject(template: bool) -> impl Strategy<Value = String> {
    let own = if template {
        vec!["{{username}}", "{{id}}", "x-{{username}}"]
    } else {
        vec!["u1", "x-ann"]
    };
    let own = prop::sample::select(own);
    let token = prop_oneof![4 => prop::sample::select(vec!["a", "b", "*", "ann", "bob", "u2", "a.c"]), 1 => own];
    (prop::collection::vec(token, 1..4), 0..4).prop_map(|(tokens, open)| {
        let open = if open == 0 { ".>" } else { "" };
        format!("{}{open}", tokens.join("."))
    })
}

fn some_question() -> impl Strategy<Value = Question> {
    let queue = prop_oneof![2 => Just(None), 1 => Just(Some("q")), 1 => Just(Some("r"))];
    (any::<bool>(), some_subject(false), queue).prop_filter_map(
        "no question",
        |(publish, subject, queue)| {
            let action = if publish { Action::Publish } else { Action::Subscribe };
            Question::new(action, &subject, queue.filter(|_| !publish)).ok()
        },
    )
}
