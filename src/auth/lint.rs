use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
};

use serde_json::Value;

use super::{
    BadSubject, Permissions, Policy, RoleRecord, Snapshot, Subject, UserRecord, check_template,
    decide::array, subject::is_template,
};

/// Longer lists are not compared entry by entry: that takes the square of their length.
const LONGEST: usize = 1000;

/// Something in the permissions that is honoured as it stands, but rarely meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// The collection that the record is in.
    pub collection: String,
    /// The record's id.
    pub id: String,
    /// The name of the user or role.
    pub name: String,
    /// The field in question. Empty: the record as a whole.
    pub field: String,
    /// The entry in question.
    pub value: String,
    /// What is to be thought about.
    pub advice: Advice,
}

/// What a [`Remark`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Advice {
    /// The role allows nothing, and somebody has nothing else.
    AllowsNothing,
    /// Every subject may be published to.
    PublishesEverything,
    /// Every subject may be subscribed to.
    ReadsEverything,
    /// A wildcard below `$SYS`.
    System,
    /// All of the API of `JetStream`.
    JetStreamApi,
    /// An allowed entry of which nothing is left.
    Shadowed {
        /// What denies it.
        by: Subject,
    },
    /// An entry that adds nothing.
    Covered {
        /// What says the same and more.
        by: Subject,
    },
    /// An entry that stands in its list twice.
    Twice,
    /// Nothing is left of all that is allowed.
    DeniesAll,
    /// Another role says the same.
    SameRules {
        /// Its name.
        name: String,
        /// Its id.
        id: String,
    },
    /// No user has the role.
    Unused,
    /// Several users may subscribe to everybody's replies.
    SharedInbox {
        /// How many.
        users: usize,
    },
}

/// Looks for permissions that are rarely meant as they stand.
pub fn lint(snapshot: &Snapshot, policy: &Policy) -> Vec<Remark> {
    let active: Vec<&UserRecord> = snapshot.users.iter().filter(|it| it.active).collect();
    let had: HashSet<&str> =
        snapshot.users.iter().flat_map(|it| &*it.roles).map(String::as_str).collect();

    let roles: HashMap<&str, Lists> =
        snapshot.roles.iter().map(|it| (it.id.as_str(), Lists::of(&it.permissions))).collect();
    let defaults = Lists::of(&Permissions {
        publish: Value::from(&policy.default_publish[..]),
        subscribe: Value::from(&policy.default_subscribe[..]),
        ..Permissions::default()
    });

    let mut remarks = Vec::new();
    let mut inboxes = Vec::new();
    let mut sort = |remark: Remark| match remark.advice {
        Advice::SharedInbox { .. } => inboxes.push(remark),
        _ => remarks.push(remark),
    };
    defaults.look(None, |field, value, advice| {
        let field = format!("default_{}", field.trim_end_matches("_permissions"));
        sort(remark("settings", "permissions", "default", &field, value, advice));
    });
    let mut by_name: Vec<&RoleRecord> = snapshot.roles.iter().collect();
    by_name.sort_by_key(|it| (&it.name, &it.id));
    for role in &by_name {
        let about = |field: &str, value: &str, advice| {
            remark(&policy.role_collection, &role.id, &role.name, field, value, advice)
        };
        if !had.contains(&*role.id) {
            // Whoever has just begun has roles before there are users.
            if !snapshot.users.is_empty() {
                sort(about("", "", Advice::Unused));
            }
            continue;
        }
        let lists = &roles[&*role.id];
        let alone = |it: &&UserRecord| *it.roles == [&*role.id] && Lists::of(&it.permissions).empty;
        if lists.empty && active.iter().any(alone) {
            sort(about("", "", Advice::AllowsNothing));
        }
        lists.look(None, |field, value, advice| sort(about(field, value, advice)));
    }
    for user in &active {
        let own = Lists::of(&user.permissions);
        if own.empty && own.denies_nothing() {
            continue;
        }
        let name = if user.username.is_empty() { &user.id } else { &*user.username };
        let with = Lists::together(user.roles.iter().filter_map(|it| roles.get(&**it)));
        let with = if user.roles.is_empty() { &defaults } else { &with };
        own.look(Some(with), |field, value, advice| {
            sort(remark(&policy.user_collection, &user.id, name, field, value, advice));
        });
    }
    by_name.retain(|it| had.contains(&*it.id));
    same_rules(&by_name, &roles, policy, &mut remarks);

    let places: HashSet<String> = inboxes.iter().map(|it| it.id.clone()).collect();
    let by_default = places.contains("permissions") && active.iter().any(|it| it.roles.is_empty());
    inboxes.retain(|it| by_default || it.id != "permissions");
    let shares = |it: &&&UserRecord| {
        let from_role = it.roles.iter().any(|role| places.contains(&**role));
        from_role || by_default && it.roles.is_empty() || places.contains(&*it.id)
    };
    let users = active.iter().filter(shares).count();
    // Who is alone with it reads their own replies.
    if users > 1 {
        let told = |it| Remark { advice: Advice::SharedInbox { users }, ..it };
        remarks.extend(inboxes.into_iter().map(told));
    }
    remarks
}

fn remark(
    collection: &str,
    id: &str,
    name: &str,
    field: &str,
    value: &str,
    advice: Advice,
) -> Remark {
    let [collection, id, name, field, value] =
        [collection, id, name, field, value].map(str::to_owned);
    Remark { collection, id, name, field, value, advice }
}

/// Roles that can be told from an earlier one by their name only.
fn same_rules(
    roles: &[&RoleRecord],
    lists: &HashMap<&str, Lists>,
    policy: &Policy,
    remarks: &mut Vec<Remark>,
) {
    let mut first: BTreeMap<_, &RoleRecord> = BTreeMap::new();
    for role in roles.iter().filter(|it| !lists[&*it.id].empty) {
        let responses = [&role.allow_response, &role.allow_response_max, &role.allow_response_ttl];
        let rules = (lists[&*role.id].as_sets(), responses.map(Value::to_string));
        if let Some(first) = first.get(&rules) {
            let advice = Advice::SameRules { name: first.name.clone(), id: first.id.clone() };
            remarks.push(remark(&policy.role_collection, &role.id, &role.name, "", "", advice));
        } else {
            first.insert(rules, role);
        }
    }
}

/// The four lists of a record, without what is no subject: findings tell of that.
#[derive(Default)]
struct Lists {
    publish: List,
    subscribe: List,
    /// Whether nothing at all is written where it would be allowed.
    empty: bool,
}

#[derive(Default)]
struct List {
    allow: Vec<Subject>,
    deny: Vec<Subject>,
}

impl Lists {
    fn of(permissions: &Permissions) -> Lists {
        let Permissions { publish, subscribe, publish_deny, subscribe_deny } = permissions;
        let list = |parse, allow, deny| List { allow: read(parse, allow), deny: read(parse, deny) };
        let nothing = |it| array(it).is_ok_and(|it| it.is_empty());
        Lists {
            publish: list(Subject::parse, publish, publish_deny),
            subscribe: list(Subject::parse_subscription, subscribe, subscribe_deny),
            empty: nothing(publish) && nothing(subscribe),
        }
    }

    fn together<'a>(all: impl Iterator<Item = &'a Lists>) -> Lists {
        let mut sum = Lists::default();
        for it in all {
            for (to, from) in [(&mut sum.publish, &it.publish), (&mut sum.subscribe, &it.subscribe)]
            {
                to.allow.extend(from.allow.iter().cloned());
                to.deny.extend(from.deny.iter().cloned());
            }
        }
        sum
    }

    fn denies_nothing(&self) -> bool {
        self.publish.deny.is_empty() && self.subscribe.deny.is_empty()
    }

    fn as_sets(&self) -> [BTreeSet<&Subject>; 4] {
        let Lists { publish, subscribe, .. } = self;
        [&publish.allow, &publish.deny, &subscribe.allow, &subscribe.deny]
            .map(|it| it.iter().collect())
    }

    /// Tells field, entry and advice. `with`: what the record is added to.
    fn look(&self, with: Option<&Lists>, mut tell: impl FnMut(&str, &str, Advice)) {
        self.publish.look("publish", with.map(|it| &it.publish), &mut tell);
        self.subscribe.look("subscribe", with.map(|it| &it.subscribe), &mut tell);
    }
}

impl List {
    fn look(
        &self,
        direction: &str,
        with: Option<&List>,
        tell: &mut impl FnMut(&str, &str, Advice),
    ) {
        let List { allow, deny } = self;
        let none: &[Subject] = &[];
        let (with_allow, with_deny) = with.map_or((none, none), |it| (&it.allow, &it.deny));
        let length = allow.len() + deny.len() + with_allow.len() + with_deny.len();
        if length > LONGEST {
            return;
        }
        let (allow_field, deny_field) =
            (format!("{direction}_permissions"), format!("{direction}_deny_permissions"));
        let denier = |it: &Subject| {
            deny.iter().chain(with_deny).find(|deny| !has_queue(deny) && deny.covers(it))
        };

        let mut allowed = allow.iter().chain(with_allow).peekable();
        let denies_all =
            allowed.peek().is_some() && !deny.is_empty() && allowed.all(|it| denier(it).is_some());
        if denies_all {
            let all: Vec<&str> = deny.iter().map(Subject::as_str).collect();
            tell(&deny_field, &all.join(", "), Advice::DeniesAll);
        }
        for (n, entry) in deny.iter().enumerate() {
            if let Some(advice) = redundant(n, deny, none) {
                tell(&deny_field, entry.as_str(), advice);
            }
        }
        for (n, entry) in allow.iter().enumerate() {
            let advice = match denier(entry) {
                Some(_) if denies_all => None,
                Some(by) => Some(Advice::Shadowed { by: by.clone() }),
                None => redundant(n, allow, with_allow)
                    .or_else(|| reach(entry, direction, |it| denier(it).is_some())),
            };
            if let Some(advice) = advice {
                tell(&allow_field, entry.as_str(), advice);
            }
        }
    }
}

/// Whether an entry says nothing that another one, or one of `with`, does not say too.
fn redundant(n: usize, entries: &[Subject], with: &[Subject]) -> Option<Advice> {
    let entry = &entries[n];
    if entries[..n].contains(entry) {
        return Some(Advice::Twice);
    }
    // To nats-server a queue group beside the plain subject is a restriction.
    let covers = |it: &&Subject| !has_queue(it) && !has_queue(entry) && it.covers(entry);
    let by = entries.iter().filter(|it| *it != entry).chain(with).find(covers)?;
    Some(Advice::Covered { by: by.clone() })
}

/// Whether the entry reaches what rarely anybody should reach, but for what is denied.
fn reach(entry: &Subject, direction: &str, denied: impl Fn(&Subject) -> bool) -> Option<Advice> {
    let literal = |text| Subject::parse(text).expect("a literal subject");
    let deletes_streams = literal("$JS.API.STREAM.DELETE.*");
    let publishes = direction == "publish";
    let mut tokens = entry.subject().split('.');
    let is_wildcard = |it: Option<&str>| matches!(it, Some("*" | ">"));
    match tokens.next().unwrap_or_default() {
        "*" | ">" if publishes => (entry.covers(&deletes_streams) && !denied(&deletes_streams))
            .then_some(Advice::PublishesEverything),
        "*" | ">" => {
            let inbox = literal("_INBOX.*.*");
            (entry.covers(&inbox) && !denied(&inbox)).then_some(Advice::ReadsEverything)
        }
        "$SYS" => tokens.any(|it| is_wildcard(Some(it))).then_some(Advice::System),
        "$JS" => (publishes && entry.covers(&deletes_streams) && !denied(&deletes_streams))
            .then_some(Advice::JetStreamApi),
        "_INBOX" => {
            (!publishes && is_wildcard(tokens.next())).then_some(Advice::SharedInbox { users: 0 })
        }
        _ => None,
    }
}

fn has_queue(subject: &Subject) -> bool {
    subject.subject() != subject.as_str()
}

/// The subjects of a list. A placeholder stands for a token, or a part of one, and for nothing else.
fn read(parse: fn(&str) -> Result<Subject, BadSubject>, value: &Value) -> Vec<Subject> {
    let entries = array(value).unwrap_or_default();
    let texts = entries.iter().filter_map(Value::as_str);
    let legal = texts.filter(|it| !is_template(it) || check_template(it, parse).is_ok());
    legal.filter_map(|it| parse(it).ok()).collect()
}

impl Advice {
    /// A short name for it, for scripts.
    pub fn kind(&self) -> &'static str {
        match self {
            Advice::AllowsNothing => "allows_nothing",
            Advice::PublishesEverything => "publishes_everything",
            Advice::ReadsEverything => "reads_everything",
            Advice::System => "system",
            Advice::JetStreamApi => "jetstream_api",
            Advice::Shadowed { .. } => "shadowed",
            Advice::Covered { .. } => "covered",
            Advice::Twice => "twice",
            Advice::DeniesAll => "denies_all",
            Advice::SameRules { .. } => "same_rules",
            Advice::Unused => "unused",
            Advice::SharedInbox { .. } => "shared_inbox",
        }
    }

    /// How to mend it.
    pub fn mend(&self) -> &'static str {
        match self {
            Advice::AllowsNothing => {
                "list subjects in `publish_permissions` or `subscribe_permissions`, such as \
                 [\"news.>\"]; if nothing is meant, deactivate its users"
            }
            Advice::PublishesEverything => {
                "list the subjects that are needed, or deny \"$JS.API.>\" beside it"
            }
            Advice::ReadsEverything => {
                "list the subjects that are needed, or deny \"_INBOX.>\" beside it and set another \
                 inbox prefix in its clients"
            }
            Advice::System => {
                "take it out: whoever watches the servers needs a user of the system account, in \
                 the main config"
            }
            Advice::JetStreamApi => {
                "list the calls that are needed, such as \"$JS.API.CONSUMER.MSG.NEXT.ORDERS.*\", or \
                 deny \"$JS.API.STREAM.DELETE.>\" and what else is not"
            }
            Advice::Shadowed { .. } => "take one of the two out",
            Advice::Covered { .. } => "take it out, or the wider one if this is what is meant",
            Advice::Twice => "take one out",
            Advice::DeniesAll => {
                "deny less; if nothing is meant, empty the list of what is allowed"
            }
            Advice::SameRules { .. } => "give its users the other one and delete it",
            Advice::Unused => {
                "give it to those it is meant for; until then it lets nobody do anything"
            }
            Advice::SharedInbox { .. } => {
                "allow \"_INBOX_{{username}}.>\" instead, and set that inbox prefix in the clients \
                 ({{id}}, where names have a `.`)"
            }
        }
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Advice::AllowsNothing => {
                f.write_str("it allows nothing, and is all that some user has")
            }
            Advice::PublishesEverything => {
                f.write_str("it reaches every subject: other users' inboxes, all of JetStream")
            }
            Advice::ReadsEverything => {
                f.write_str("it reads every message, the replies to other users included")
            }
            Advice::System => f.write_str("`$SYS` belongs to nats-server itself"),
            Advice::JetStreamApi => {
                f.write_str("it reads, empties and deletes every stream, and makes new ones")
            }
            Advice::Shadowed { by } => {
                write!(f, "of what it allows, {by:?} denies all", by = by.as_str())
            }
            Advice::Covered { by } => write!(f, "{by:?} says the same and more", by = by.as_str()),
            Advice::Twice => f.write_str("it is in the list twice"),
            Advice::DeniesAll => f.write_str("nothing is left of what is allowed"),
            Advice::SameRules { name, id } => write!(f, "it has the same rules as {name:?} ({id})"),
            Advice::Unused => f.write_str("no user has this role"),
            Advice::SharedInbox { users } => {
                write!(
                    f,
                    "{users} users may subscribe to it: each can read the replies to the others"
                )
            }
        }
    }
}

/// One line: where, what, why. How to mend it is [`Advice::mend`].
impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Remark { collection, id, name, field, value, advice } = self;
        write!(f, "{collection}/{id} {name:?}: ")?;
        if !field.is_empty() {
            write!(f, "{field} {value:?}: ")?;
        }
        write!(f, "{advice}")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use insta::assert_snapshot;
    use serde_json::json;

    use super::*;
    use crate::auth::tests::policy;

    /// What is said of these lists of a role that one user has: kind, field and entry.
    fn said(
        publish: Value,
        publish_deny: Value,
        subscribe: Value,
        subscribe_deny: Value,
    ) -> String {
        let role = role("r1", "R", [publish, publish_deny, subscribe, subscribe_deny]);
        told(&[user("u1", &["r1"])], &[role])
    }

    fn told(users: &[UserRecord], roles: &[RoleRecord]) -> String {
        let snapshot = Snapshot { users: users.to_vec(), roles: roles.to_vec() };
        let remarks = lint(&snapshot, &policy());
        let line = |it: &Remark| {
            assert!(!it.advice.mend().is_empty() && !it.to_string().contains('\n'));
            format!("{} {} {} {}", it.id, it.advice.kind(), it.field, it.value)
                .trim_end()
                .to_owned()
        };
        remarks.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    fn user(id: &str, roles: &[&str]) -> UserRecord {
        let roles = roles.iter().map(|it| (*it).to_owned()).collect();
        UserRecord { id: id.into(), username: id.into(), active: true, roles, ..Default::default() }
    }

    fn role(id: &str, name: &str, lists: [Value; 4]) -> RoleRecord {
        let [publish, publish_deny, subscribe, subscribe_deny] = lists;
        let permissions = Permissions { publish, subscribe, publish_deny, subscribe_deny };
        RoleRecord { id: id.into(), name: name.into(), permissions, ..Default::default() }
    }

    #[test]
    fn each_list_is_looked_at_entry_by_entry() {
        let none = || Value::Null;
        for (allow, deny, publishing, subscribing) in [
            (json!(["a", "b.*", "c.>"]), json!(["d", "b.secret"]), "", ""),
            (json!([">"]), none(), "publishes_everything >", "reads_everything >"),
            (json!(["*.>"]), none(), "publishes_everything *.>", "reads_everything *.>"),
            (json!(["*"]), none(), "", ""),
            (json!([">"]), json!(["$JS.API.>", "_INBOX.>"]), "", ""),
            (json!([">"]), json!(["$JS.>"]), "", "reads_everything >"),
            (
                json!([">"]),
                json!(["$JS.API.STREAM.INFO.*"]),
                "publishes_everything >",
                "reads_everything >",
            ),
            (json!(["$SYS.>"]), none(), "system $SYS.>", "system $SYS.>"),
            (json!(["$SYS.REQ.USER.INFO"]), none(), "", ""),
            (json!(["$JS.API.>"]), none(), "jetstream_api $JS.API.>", ""),
            (json!(["$JS.>"]), none(), "jetstream_api $JS.>", ""),
            (json!(["$JS.*.STREAM.>"]), none(), "jetstream_api $JS.*.STREAM.>", ""),
            (json!(["$JS.API.>"]), json!(["$JS.API.STREAM.DELETE.>"]), "", ""),
            (json!(["$JS.API.STREAM.DELETE.ORDERS", "$JS.ACK.>"]), none(), "", ""),
            (json!(["a.b"]), json!(["a.*", "c"]), "denies_all a.*, c", "denies_all a.*, c"),
            (json!(["a.b", "c"]), json!(["a.*"]), "shadowed a.b", "shadowed a.b"),
            (json!(["a.>", "c"]), json!(["a.*"]), "", ""),
            (json!(["a.*", "c"]), json!(["a.>"]), "shadowed a.*", "shadowed a.*"),
            (json!(["$SYS.>", "c"]), json!(["$SYS.>"]), "shadowed $SYS.>", "shadowed $SYS.>"),
            (json!(["a.>", "a.b"]), none(), "covered a.b", "covered a.b"),
            (json!(["a.b", "a.>"]), none(), "covered a.b", "covered a.b"),
            (json!(["a", "b", "a"]), none(), "twice a", "twice a"),
            (json!(["x", "a"]), json!(["b.>", "b.c"]), "covered b.c", "covered b.c"),
            (
                json!(["d.*.x", "d.{{username}}.x"]),
                none(),
                "covered d.{{username}}.x",
                "covered d.{{username}}.x",
            ),
            (json!(["d.{{username}}.x", "d.{{id}}.x"]), none(), "", ""),
            // What is no subject is a finding's.
            (json!(["a..b", 7, null, "{{x}}", "a"]), json!("x"), "", ""),
            (json!({}), none(), "", ""),
            (json!("[\"a.>\", \"a.b\"]"), none(), "covered a.b", "covered a.b"),
        ] {
            let kinds = |text: String| {
                let words = text.lines().map(|it| {
                    let words: Vec<&str> = it.splitn(4, ' ').collect();
                    format!("{} {}", words[1], words[3])
                });
                words.collect::<Vec<_>>().join("\n")
            };
            let other = || json!(["other"]);
            let published = kinds(said(allow.clone(), deny.clone(), other(), none()));
            assert_eq!(published, publishing, "{allow} {deny}");
            let subscribed = kinds(said(other(), none(), allow.clone(), deny.clone()));
            assert_eq!(subscribed, subscribing, "{allow} {deny}");
        }
    }

    /// Beside the plain subject, to nats-server a queue group is a restriction and no repetition; but
    /// what is denied to all is denied to a group.
    #[test]
    fn a_queue_group_is_not_taken_for_its_subject() {
        let said = |allow, deny| said(json!(["x"]), Value::Null, allow, deny);
        assert_eq!(said(json!(["a", "a q"]), Value::Null), "");
        assert_eq!(said(json!(["a.> q", "a.b q"]), Value::Null), "");
        assert_eq!(said(json!(["a.b", "c"]), json!(["a.> q"])), "");
        assert_eq!(
            said(json!(["a.b q", "c"]), json!(["a.>"])),
            "r1 shadowed subscribe_permissions a.b q"
        );
    }

    #[test]
    fn roles_are_looked_at_among_each_other_and_with_those_who_have_them() {
        let news = || [json!(["news.>"]), Value::Null, json!(["b", "a"]), Value::Null];
        let nothing = || [json!([]), Value::Null, Value::Null, json!(["x"])];
        let mut answers = role("r6", "answers", news());
        answers.allow_response = json!(true);
        let roles = [
            role("r1", "reader", news()),
            role("r2", "listener", [json!(["news.>"]), json!([]), json!(["a", "b"]), json!("")]),
            role("r3", "nobody", nothing()),
            role("r4", "base", nothing()),
            role("r5", "unused", news()),
            answers,
        ];
        let mut own = user("u4", &["r4"]);
        Arc::make_mut(&mut own.permissions).publish = json!(["own"]);
        let mut gone = user("u5", &["r6"]);
        gone.active = false;
        let users =
            [user("u1", &["r1", "r4"]), user("u2", &["r2"]), user("u3", &["r3"]), own, gone];
        assert_snapshot!(told(&users, &roles), @r"
        r3 allows_nothing
        r5 unused
        r1 same_rules
        ");
        assert_eq!(told(&[], &roles), "", "who has just begun is left in peace");
    }

    #[test]
    fn what_a_user_has_beside_the_roles_is_held_against_them() {
        let roles = [role(
            "r1",
            "R",
            [json!(["a.>", "b.>"]), json!(["a.secret"]), json!(["s"]), Value::Null],
        )];
        let mut ann = user("u1", &["r1"]);
        Arc::make_mut(&mut ann.permissions).publish = json!(["a.b", "a.secret", "c"]);
        let mut bob = user("u2", &["r1"]);
        Arc::make_mut(&mut bob.permissions).publish_deny = json!([">"]);
        let mut cat = user("u3", &[]);
        Arc::make_mut(&mut cat.permissions).publish = json!(["PUBLIC.x"]);
        let mut gone = user("u4", &["r1"]);
        Arc::make_mut(&mut gone.permissions).publish = json!([">"]);
        gone.active = false;
        assert_snapshot!(told(&[ann, bob, cat, gone], &roles), @r"
        u1 covered publish_permissions a.b
        u1 shadowed publish_permissions a.secret
        u2 denies_all publish_deny_permissions >
        u3 covered publish_permissions PUBLIC.x
        ");
    }

    #[test]
    fn an_inbox_is_shared_from_the_second_user_on() {
        let inbox =
            |id, list: &[&str]| role(id, id, [json!(["a"]), Value::Null, json!(list), Value::Null]);
        let roles = [
            inbox("all", &["_INBOX.>"]),
            inbox("own", &["_INBOX_{{username}}.>"]),
            inbox("some", &["_INBOX.{{id}}.>"]),
        ];
        let none =
            told(&[user("u1", &["all"]), user("u2", &["own"]), user("u3", &["some"])], &roles);
        assert_eq!(none, "");
        let users =
            [user("u1", &["all"]), user("u2", &[]), user("u3", &["own"]), user("u4", &["some"])];
        assert_snapshot!(told(&users, &roles), @r"
        permissions shared_inbox default_subscribe _INBOX.>
        all shared_inbox subscribe_permissions _INBOX.>
        ");
        let snapshot = Snapshot { users: users.to_vec(), roles: roles.to_vec() };
        let shared = lint(&snapshot, &policy());
        assert!(
            shared.iter().all(|it| it.advice == Advice::SharedInbox { users: 2 }),
            "{shared:?}"
        );
    }

    #[test]
    fn a_list_of_any_length_is_no_trouble() {
        let many: Vec<String> = (0..100_000).map(|n| format!("a.{n}")).collect();
        assert_eq!(said(json!(many), json!(many), Value::Null, Value::Null), "");
    }
}
