#![expect(clippy::needless_pass_by_value, reason = "so that tables can be written with `json!`")]

use std::fmt::Write as _;

use insta::assert_snapshot;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
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
      change: take "pay.>" out of publish_deny_permissions of nats_roles/r1 "clerk"
    "ann" may not subscribe to "jobs"
      allowed to a queue group only, by nats_roles/r1 "clerk": subscribe_permissions[0] "jobs q"
      change: subscribe in the queue group `q`
      change: or add "jobs" to subscribe_permissions of nats_roles/r1 "clerk" (1 active user), or to subscribe_permissions of nats_users/u1 "ann"
    "ann" may not subscribe to "jobs" in the queue group "r"
      allowed to a queue group only, by nats_roles/r1 "clerk": subscribe_permissions[0] "jobs q"
      change: subscribe in the queue group `q`
      change: or add "jobs r" to subscribe_permissions of nats_roles/r1 "clerk" (1 active user), or to subscribe_permissions of nats_users/u1 "ann"
    "#);
    assert_snapshot!(ann(json!({"roles": ["r2"]}), roles(), &["pub a", "pub b"]), @r#"
    "ann" may not publish to "a"
      denied by nats_roles/r2 "none": publish_deny_permissions[0] ">"
      change: take ">" out of publish_deny_permissions of nats_roles/r2 "none"
      note: each request that comes may be answered up to 3 times within 120s on its reply subject, denied or not, by allow_response of nats_roles/r2 "none"
    "ann" may not publish to "b"
      denied by nats_roles/r2 "none": publish_deny_permissions[0] ">"
      change: take ">" out of publish_deny_permissions of nats_roles/r2 "none"
      change: and add "b" to publish_permissions of nats_roles/r2 "none" (1 active user), or to publish_permissions of nats_users/u1 "ann"
      note: each request that comes may be answered up to 3 times within 120s on its reply subject, denied or not, by allow_response of nats_roles/r2 "none"
    "#);
    assert_snapshot!(ann(json!({"roles": ["r3"]}), roles(), &["pub a", "sub c"]), @r#"
    "ann" may not publish to "a"
      nats_roles/r3 "typo": publish_permissions "b..c": it is not a subject: a token between its dots is empty; not granted; correct the subject, such as a.*.c or a.>
      nats_roles/r3 "typo": publish_deny_permissions "x..y": it is not a subject: a token between its dots is empty; denies this whole direction
      change: mend publish_deny_permissions of nats_roles/r3 "typo": correct the subject, such as a.*.c or a.>
    "ann" may not subscribe to "c"
      no line allows it
      nats_roles/r3 "typo": subscribe_permissions "c d e": it is not a subject: it has white space; not granted; correct the subject, such as a.*.c or a.>
      change: add "c" to subscribe_permissions of nats_roles/r3 "typo" (1 active user), or to subscribe_permissions of nats_users/u1 "ann"
    "#);
    assert_snapshot!(ann(json!({"types": ["MQTT"]}), roles(), &["pub x", "pub $NRG.x", "sub x _sys_"]), @r#"
    "ann" may not publish to "x"
      no line allows it
      change: add "x" to default_publish in the settings (every user without a role), or to publish_permissions of nats_users/u1 "ann"
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
      change: add "news.a.b" to subscribe_permissions of nats_roles/r "reader" (1 active user), or to subscribe_permissions of nats_users/u1 "ann"
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
      change: add "news.a.b" to subscribe_permissions of nats_roles/r "reader" (1 active user), or to subscribe_permissions of nats_users/u1 "ann"
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
