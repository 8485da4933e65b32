//! What would have to change for somebody who may not: what a careful person would do.
//!
//! Nobody else is to gain what was asked about. So a subject that names somebody never goes into a
//! role as it is, what is nats-server's own is left to it, and nobody is led into another's inbox.

use std::fmt;

use super::{Action, Entry, Explain, Line, Question, Record, Ruling, allow, denying};
use crate::auth::{
    ConnectionType, Effect, Finding, RoleRecord, Subject, User, UserRecord, counted,
    decide::responses,
    subject::{Values, fill, is_template},
};

/// What to do, and what to know of it.
#[derive(Debug, Default)]
pub(super) struct Advice {
    /// All of this.
    pub(super) first: Vec<Change>,
    /// And one of these.
    pub(super) ways: Vec<Change>,
    pub(super) notes: Vec<String>,
}

/// One thing to do.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// A line that denies has to go; of a role, so many users have it.
    TakeOut { line: Line, users: Option<usize> },
    /// A record has to be put right, since in doubt it denies a whole direction.
    Fix(Finding),
    /// A line is missing.
    Add { entry: String, field: String, to: Record, who: Who },
    /// It is not a line that is missing.
    Other(String),
}

/// Who gets an added line.
#[derive(Clone, Copy, Debug)]
pub(super) enum Who {
    /// The user who was asked about.
    Alone,
    /// All so many users of a role, and it is the same for each.
    All(usize),
    /// All so many users of a role, and for each it is their own.
    EachTheirOwn(usize),
}

/// What a subject is about, as far as it says so itself.
enum Topic {
    /// What nats-server needs for itself.
    System,
    /// Where replies are awaited.
    Inbox,
    /// What nats-server before 2.12 wants of subscribers by MQTT: this entry.
    Mqtt(&'static str),
    /// Anything else: this entry, which leaves open what a client makes anew each time.
    Any(String),
}

impl Explain {
    /// What has to change until the user may.
    pub(super) fn advice(
        &self,
        user: &UserRecord,
        known: &User,
        question: &Question,
        ruling: &Ruling<'_>,
        lines: &[Entry],
    ) -> Advice {
        if ruling.reserved {
            let text = "choose another subject or queue group; no record changes it";
            return Advice::other(text.to_owned());
        }
        match Topic::of(question) {
            Topic::System => Advice::other(format!(
                "leave it to nats-server: what is below {:?} is its own, and no record should allow \
                 it; to ask or watch a server, log in as a user of its system account, which the main \
                 config has",
                question.subject().split('.').next().unwrap_or_default()
            )),
            Topic::Inbox => match question.action {
                // Whoever is asked may answer, without a line for it.
                Action::Publish => self.answering(user, known),
                Action::Subscribe => self.inbox(user, known, question, lines),
            },
            Topic::Mqtt(entry) => self.mqtt(user, known, entry, lines),
            Topic::Any(entry) => self.subject(user, known, question, &entry, ruling, lines),
        }
    }

    /// What it takes to answer requests.
    fn answering(&self, user: &UserRecord, known: &User) -> Advice {
        if self.desired.rules(known).responses.is_some() {
            return Advice::other(
                "nothing, if this is to answer a request: that is allowed, on the reply subject \
                 which the request brings"
                    .to_owned(),
            );
        }
        let silent = self.roles(user).filter(|it| !matches!(responses(it), Ok(Some(_))));
        let mut ways: Vec<_> = silent
            .map(|role| {
                let users = counted(self.having(role.id.as_str()), "active user");
                let role = self.role_record(role);
                Change::Other(format!(
                    "this is a reply inbox: switch on allow_response of {role} ({users}), and each \
                     may answer what comes to them, and nothing else there"
                ))
            })
            .collect();
        if ways.is_empty() {
            let text = "this is a reply inbox: give the user a role with allow_response, by which \
                        they may answer what comes to them";
            ways.push(Change::Other(text.to_owned()));
        }
        Advice { ways, ..Advice::default() }
    }

    /// Replies are awaited in an inbox that is the user's alone.
    fn inbox(
        &self,
        user: &UserRecord,
        known: &User,
        question: &Question,
        lines: &[Entry],
    ) -> Advice {
        let shared = question.subject().starts_with("_INBOX.");
        let notes = if shared {
            vec![
                "\"_INBOX.>\" would be shared: whoever has it reads everybody's replies".to_owned(),
            ]
        } else {
            Vec::new()
        };
        let rules = &self.desired.rules(known).subscribe;
        let opens = |prefix: &str| {
            let inbox = Subject::parse(&format!("{prefix}.x.*")).ok();
            inbox.is_some_and(|it| Ruling::new(rules, Action::Subscribe, &it).passes())
        };
        let told = |prefix: &str| format!("set the client's inbox prefix to {prefix:?}");
        let own = [&*user.username, &user.id].map(|it| format!("_INBOX_{it}"));
        let theirs = lines.iter().filter(|it| {
            it.allows
                && (is_template(&it.line.entry) || it.line.record.id == user.id)
                && it.subject.subject().starts_with("_INBOX")
        });
        let theirs = theirs.filter_map(|it| it.subject.subject().strip_suffix(".>"));
        let theirs: Vec<_> = theirs.filter(|it| *it != "_INBOX").map(str::to_owned).collect();
        if let Some(prefix) = theirs.iter().chain(&own).find(|it| opens(it)) {
            let first = vec![Change::Other(format!(
                "this is a reply inbox, and their own is open to them: {}",
                told(prefix)
            ))];
            return Advice { first, notes, ..Advice::default() };
        }
        let values = Values { username: &user.username, id: &user.id };
        let templates = ["_INBOX_{{username}}.>", "_INBOX_{{id}}.>"];
        let mut filled = templates.iter().filter_map(|it| Some((*it, fill(it, values).ok()?)));
        let by_id = question.subject().split('.').next() == Some(&own[1]);
        let Some((template, inbox)) = (if by_id { filled.next_back() } else { filled.next() })
        else {
            return Advice::other(
                "give the user a name that can be a part of a subject".to_owned(),
            );
        };
        let wanted = Question::new(Action::Subscribe, &inbox, None).expect("it is a subject");
        let mut first = self.unblock(user, &wanted, lines);
        let prefix = inbox.trim_end_matches(".>");
        first.push(Change::Other(format!("this is a reply inbox: {}", told(prefix))));
        let field = "subscribe_permissions";
        let mut ways = self.add_to_roles(user, field, template);
        ways.push(self.add_to_user(user, field, &inbox));
        Advice { first, ways, notes }
    }

    /// Only where a server is older, and by MQTT only: by any other way it shows what all others get.
    fn mqtt(&self, user: &UserRecord, known: &User, entry: &str, lines: &[Entry]) -> Advice {
        let only_mqtt = |it: &User| {
            let mut types = it.connection_types.iter();
            let mqtt = |it| matches!(it, ConnectionType::Mqtt | ConnectionType::MqttWs);
            !it.connection_types.is_empty() && types.all(mqtt)
        };
        let wanted = Question::new(Action::Subscribe, entry, None).expect("it is a subject");
        let mut first = self.unblock(user, &wanted, lines);
        if !only_mqtt(known) {
            first.push(Change::Other(format!(
                "set allowed_connection_types of {} to [\"MQTT\", \"MQTT_WS\"]: this is for MQTT, and \
                 by an ordinary connection {entry:?} shows what all others get",
                self.user_record(user)
            )));
        }
        let newer = "update nats-server to 2.12 or later, which needs no line for this; before, MQTT's \
                     QoS 1 and 2 do";
        let mut ways = vec![Change::Other(newer.to_owned())];
        let all_by_mqtt = |id: &str| {
            let users = self.snapshot.users.iter().filter(|it| it.roles.iter().any(|it| it == id));
            users.filter_map(|it| self.in_nats(it)).all(|(_, it)| only_mqtt(it))
        };
        let field = "subscribe_permissions";
        ways.push(self.add_to_user(user, field, entry));
        let roles = self.roles(user).filter(|it| all_by_mqtt(&it.id)).map(|it| it.id.clone());
        let roles: Vec<_> = roles.collect();
        let to_roles = self.add_to_roles(user, field, entry);
        let by_mqtt = |it: &Change| matches!(it, Change::Add { to, .. } if roles.contains(&to.id));
        ways.extend(to_roles.into_iter().filter(by_mqtt));
        Advice { first, ways, ..Advice::default() }
    }

    /// A subject of people's own, or of streams and buckets.
    fn subject(
        &self,
        user: &UserRecord,
        known: &User,
        question: &Question,
        entry: &str,
        ruling: &Ruling<'_>,
        lines: &[Entry],
    ) -> Advice {
        let mut advice = Advice {
            first: self.unblock(user, question, lines),
            notes: known_of(question).map(str::to_owned).into_iter().collect(),
            ..Advice::default()
        };
        if !ruling.allow.is_empty() || !advice.first.is_empty() && allow(lines, &question.text) {
            return advice;
        }
        let rules = super::direction(self.desired.rules(known), question.action);
        let may = |it: &Subject| Ruling::new(rules, question.action, it).passes();
        for group in ruling.other_groups.iter().filter_map(|it| it.queue()) {
            let member = format!("{} {}", question.subject(), group);
            if Subject::parse_subscription(&member).is_ok_and(|it| may(&it)) {
                advice.ways.push(Change::Other(if group.contains(['*', '>']) {
                    format!("subscribe in a queue group like `{group}`")
                } else {
                    format!("subscribe in the queue group `{group}`")
                }));
            }
        }
        // Of whoever asks for too much, most want what is theirs.
        let narrower = lines.iter().filter(|it| {
            question.text.has_wildcard()
                && it.allows
                && it.subject.queue().is_none()
                && question.text.covers(&it.subject)
                && may(&it.subject)
        });
        for it in narrower.take(3) {
            let text = format!("subscribe to {:?} instead, which is allowed", it.subject.as_str());
            advice.ways.push(Change::Other(text));
        }

        let noun = question.action.noun();
        let field = format!("{noun}_permissions");
        let field = field.as_str();
        let mut own = self.add_to_user(user, field, entry);
        let theirs = lines.iter().find(|it| {
            it.allows && of_each(&it.line.entry).is_some_and(|all| all.overlaps(&question.text))
        });
        let mut to_roles = Vec::new();
        if let Some(template) = template(user, entry) {
            to_roles = self.add_to_roles(user, field, &template);
        } else if let Some(Entry { line, .. }) = theirs {
            let reaches = question.text.has_wildcard();
            let what = if reaches { "reaches that of others" } else { "is not theirs" };
            advice.notes.push(format!(
                "by {:?} of {} each user has their own, and this {what}",
                line.entry, line.record
            ));
        } else if let Some(other) = self.named(user, question) {
            advice.notes.push(if other == &*user.username {
                format!(
                    "{other:?} is several tokens of a subject, so no role can give each their own"
                )
            } else {
                format!("{other:?} is another user")
            });
        } else if !is_for_few(question) {
            to_roles = self.add_to_roles(user, field, entry);
        }
        if ruling.other_groups.is_empty() {
            for it in to_roles.iter_mut().chain([&mut own]) {
                self.spare_groups(it);
            }
        }
        let own_first = !to_roles
            .iter()
            .any(|it| matches!(it, Change::Add { entry, .. } if is_template(entry)));
        let stranger = user.roles.is_empty() && !is_for_few(question);
        let role = "give the user a role that allows it";
        let role = stranger.then(|| Change::Other(role.to_owned()));
        if own_first {
            advice.ways.extend([own].into_iter().chain(role).chain(to_roles));
        } else {
            advice.ways.extend(to_roles.into_iter().chain([own]));
        }
        advice
    }

    /// Takes the queue group out of a line that would shut others out.
    ///
    /// Where groups are named for a subject, no other group has it, though it is allowed to all.
    fn spare_groups(&self, change: &mut Change) {
        let Change::Add { entry, to, .. } = change else { return };
        let Some((subject, _)) = entry.split_once(' ') else { return };
        let Some(all) = of_each(subject).or_else(|| Subject::parse(subject).ok()) else { return };
        let gets = |it: &&UserRecord| it.id == to.id || it.roles.contains(&to.id);
        let mut known = self.snapshot.users.iter().filter(gets).filter_map(|it| self.in_nats(it));
        let shuts_out = known.any(|(_, it)| {
            let allow = self.desired.rules(it).subscribe.allow();
            allow.iter().any(|it| it.queue().is_none() && it.overlaps(&all))
        });
        if shuts_out {
            *entry = subject.to_owned();
        }
    }

    /// What keeps the user from it, whatever is allowed.
    fn unblock(&self, user: &UserRecord, question: &Question, lines: &[Entry]) -> Vec<Change> {
        let out = denying(lines, &question.text).map(|Entry { line, .. }| {
            let shared = line.record.collection == self.policy.role_collection;
            let users = shared.then(|| self.having(&line.record.id));
            Change::TakeOut { line: line.clone(), users }
        });
        let closing = self.in_doubt(user, question.action);
        let closing = closing.filter(|it| it.effect == Effect::DirectionDenied);
        out.chain(closing.map(|it| Change::Fix(it.clone()))).collect()
    }

    /// How many active users have the role.
    fn having(&self, role: &str) -> usize {
        let has = |it: &&UserRecord| it.active && it.roles.iter().any(|it| it == role);
        self.snapshot.users.iter().filter(has).count()
    }

    fn add_to_user(&self, user: &UserRecord, field: &str, entry: &str) -> Change {
        Change::Add {
            entry: entry.to_owned(),
            field: field.to_owned(),
            to: self.user_record(user),
            who: Who::Alone,
        }
    }

    /// A way for each of the user's roles.
    fn add_to_roles(&self, user: &UserRecord, field: &str, entry: &str) -> Vec<Change> {
        let who = if is_template(entry) { Who::EachTheirOwn } else { Who::All };
        let add = |role: &RoleRecord| Change::Add {
            entry: entry.to_owned(),
            field: field.to_owned(),
            to: self.role_record(role),
            who: who(self.having(&role.id)),
        };
        self.roles(user).map(add).collect()
    }

    /// A user who is named in the subject: another, or this one by a name of several tokens.
    fn named<'a>(&'a self, user: &'a UserRecord, question: &Question) -> Option<&'a str> {
        let subject = question.text.as_str();
        let is_in_it = |name: &str| occurrence(subject, name, |it| !it.is_alphanumeric()).is_some();
        if is_in_it(&user.username) || is_in_it(&user.id) {
            return Some(&user.username);
        }
        // Short names are parts of too much.
        let is_token = |name: &str| occurrence(subject, name, |it| ". ".contains(it)).is_some();
        let is_named = |name: &str| if name.len() < 4 { is_token(name) } else { is_in_it(name) };
        let others = self.snapshot.users.iter().filter(|it| it.id != user.id);
        others
            .map(|it| [&*it.username, &it.id])
            .find_map(|them| them.into_iter().find(|it| is_named(it)))
    }
}

impl Topic {
    fn of(question: &Question) -> Topic {
        let subject = question.subject();
        let tokens: Vec<&str> = subject.split('.').collect();
        let below = |head: &str| subject.strip_prefix(head).is_some_and(|it| it.starts_with('.'));
        match tokens[0] {
            "$MQTT" if question.action == Action::Subscribe && below("$MQTT.sub") => {
                Topic::Mqtt("$MQTT.sub.>")
            }
            "$MQTT" if question.action == Action::Subscribe && below("$MQTT.deliver") => {
                Topic::Mqtt("$MQTT.deliver.>")
            }
            "$MQTT" | "$SYS" | "$NRG" | "_GR_" => Topic::System,
            first if first == "_INBOX" || first.starts_with("_INBOX_") => Topic::Inbox,
            _ => Topic::Any(lasting(&tokens).unwrap_or_else(|| question.text.as_str().to_owned())),
        }
    }
}

/// The subject without what a client or nats-server makes anew each time.
fn lasting(tokens: &[&str]) -> Option<String> {
    let head = |length: usize| tokens[..length].join(".");
    match tokens {
        // With the domain and the account before the stream, since 2.12, if it is told to.
        ["$JS", "ACK", _, _, _, _, _, _, _, _, _, ..] => Some(format!("{}.>", head(6))),
        ["$JS", "ACK", _, _, _, ..] => Some(format!("{}.>", head(4))),
        ["$JS", "FC", _, _, ..] => Some(format!("{}.>", head(3))),
        // The consumers of a bucket are made for each call.
        ["$JS", "API", "CONSUMER", "CREATE" | "INFO" | "DELETE", stream, _, rest @ ..]
            if stream.starts_with("KV_") || stream.starts_with("OBJ_") =>
        {
            let rest = rest.iter().flat_map(|it| [".", it]).collect::<String>();
            Some(format!("{}.*{rest}", head(5)))
        }
        _ => None,
    }
}

/// What the subject means beyond what it says.
fn known_of(question: &Question) -> Option<&'static str> {
    let tokens: Vec<&str> = question.subject().split('.').collect();
    match (question.action, &tokens[..]) {
        (Action::Publish, ["$JS", "API", "CONSUMER", "CREATE" | "DURABLE", ..]) => Some(
            "whoever may make a consumer can have it deliver to any subject; the cookbook lists what \
             a client needs beside it",
        ),
        (Action::Publish, ["$JS", "API", ..]) if is_for_few(question) => {
            Some("whoever may do this can take away, or copy, what is others'")
        }
        (Action::Publish, ["$JS", ..]) => {
            Some("a client of JetStream needs several subjects: the cookbook lists them")
        }
        (Action::Publish, ["$KV", ..]) => Some(
            "whoever may write one key of a bucket can empty the bucket; the cookbook lists what a \
             client needs beside it",
        ),
        (Action::Subscribe, ["$KV", ..]) => {
            Some("to watch a bucket takes other subjects: the cookbook lists them")
        }
        (Action::Subscribe, ["*" | ">", ..]) => {
            Some("this reaches into everybody's inbox, and into what nats-server keeps there")
        }
        _ => None,
    }
}

/// What no role should have that is not for administrators.
fn is_for_few(question: &Question) -> bool {
    let tokens: Vec<&str> = question.subject().split('.').collect();
    match (question.action, &tokens[..]) {
        (Action::Publish, ["$JS", "API", rest @ ..]) => !matches!(
            rest,
            ["INFO"]
                | ["STREAM", "INFO" | "NAMES" | "LIST", ..]
                | ["STREAM", "MSG", "GET", ..]
                | ["DIRECT", "GET", ..]
                | ["CONSUMER", "INFO" | "NAMES" | "LIST" | "CREATE", ..]
                | ["CONSUMER", "DURABLE", "CREATE", ..]
                | ["CONSUMER", "MSG", "NEXT", ..]
        ),
        (Action::Publish, ["$JS", "ACK" | "FC", ..]) => false,
        // Of another domain: who knows.
        (Action::Publish, ["$JS", ..]) | (Action::Subscribe, ["*" | ">", ..]) => true,
        _ => false,
    }
}

/// The subject with the user's own name or id left open, if it has them.
fn template(user: &UserRecord, entry: &str) -> Option<String> {
    let values = Values { username: &user.username, id: &user.id };
    let mut template = entry.to_owned();
    for (name, placeholder) in [(values.username, "{{username}}"), (values.id, "{{id}}")] {
        let mut from = 0;
        while let Some(at) = occurrence(&template[from..], name, |it| !it.is_alphanumeric()) {
            template.replace_range(from + at..from + at + name.len(), placeholder);
            from += at + placeholder.len();
        }
    }
    (is_template(&template) && fill(&template, values).as_deref() == Ok(entry)).then_some(template)
}

/// Where the name stands, with an end or an edge on both sides.
fn occurrence(text: &str, name: &str, is_edge: fn(char) -> bool) -> Option<usize> {
    text.match_indices(name).map(|(at, _)| at).filter(|_| !name.is_empty()).find(|at| {
        let (before, after) = (&text[..*at], &text[at + name.len()..]);
        before.chars().next_back().is_none_or(is_edge) && after.chars().next().is_none_or(is_edge)
    })
}

/// Everybody's of what a line with a placeholder gives to each.
fn of_each(entry: &str) -> Option<Subject> {
    let open = |it: &str| if is_template(it) { "*".to_owned() } else { it.to_owned() };
    let subject = entry.split(' ').next().unwrap_or_default();
    let tokens: Vec<_> = subject.split('.').map(open).collect();
    is_template(subject).then(|| Subject::parse(&tokens.join(".")).ok()).flatten()
}

impl Advice {
    fn other(text: String) -> Advice {
        Advice { first: vec![Change::Other(text)], ..Advice::default() }
    }

    /// A line each: what has to be done, and then one way or another.
    pub(super) fn told(&self) -> Vec<String> {
        let first = self.first.iter().map(Change::to_string);
        let ways = self.ways.iter().enumerate().map(|(number, way)| match number {
            0 if self.first.is_empty() => way.to_string(),
            0 => format!("and {way}"),
            _ => format!("or {way}"),
        });
        first.chain(ways).collect()
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::TakeOut { line, users } => {
                let Line { record, field, entry, .. } = line;
                write!(f, "take {entry:?} out of {field} of {record}")?;
                users.map_or(Ok(()), |it| {
                    let users = counted(it, "active user");
                    write!(f, ", which lifts it for all who have the role ({users})")
                })
            }
            Change::Fix(Finding { collection, id, name, field, problem, .. }) => {
                write!(f, "fix {field} of {collection}/{id} {name:?}: {}", problem.mend())
            }
            Change::Add { entry, field, to, who } => {
                write!(f, "add {entry:?} to {field} of {to}")?;
                match who {
                    Who::Alone => f.write_str(", for this user alone"),
                    Who::All(users) => {
                        let users = counted(*users, "active user");
                        write!(f, ", the same for all who have the role ({users})")
                    }
                    Who::EachTheirOwn(users) => {
                        let users = counted(*users, "active user");
                        write!(f, ", for each who has the role their own ({users})")
                    }
                }
            }
            Change::Other(text) => f.write_str(text),
        }
    }
}
