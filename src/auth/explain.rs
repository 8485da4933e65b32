//! Who may do what, and by which line of which record.
//!
//! What NATS should allow is worked out once, by [`Desired`], for the file as for the answers here.
//! The records are only searched for the lines that it followed.

mod advice;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    time::Duration,
};

use serde::{Deserialize, Serialize, Serializer};

use super::{
    BadSubject, ConnectionType, Credential, Delivery, Desired, Effect, Finding, Permissions,
    Policy, Responses, RoleRecord, Rules, Snapshot, Subject, Subjects, User, UserRecord,
    decide::{array, responses},
    matching::{Ruling, withheld},
    subject::{Values, fill},
};

/// Answers questions about one snapshot, any number of them.
#[derive(Debug)]
pub struct Explain {
    snapshot: Snapshot,
    policy: Policy,
    desired: Desired,
    findings: Vec<Finding>,
    /// Where in the snapshot a role is, by its id.
    roles: HashMap<String, usize>,
}

/// What a client asks of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// To send messages.
    #[serde(alias = "pub")]
    Publish,
    /// To get them.
    #[serde(alias = "sub")]
    Subscribe,
}

/// Something that a client may ask of a server, or may not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Question {
    action: Action,
    subject: String,
    queue: Option<String>,
    #[serde(skip)]
    text: Subject,
}

/// Why something is not a [`Question`] that nats-server decides by its permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadQuestion {
    /// It is no subject.
    #[error("it is not a subject: {0}")]
    Subject(BadSubject),
    /// Messages are published to one subject.
    #[error("messages are published to one subject, and this has a wildcard")]
    Wildcard,
    /// It is no name of a queue group.
    #[error("the queue group has a name that none can have: {0}")]
    Queue(BadSubject),
    /// Only subscribers are in queue groups.
    #[error("only subscribers are in queue groups")]
    QueueOfPublisher,
}

/// A user's right to do one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// The user's record.
    pub user: Record,
    /// What was asked.
    #[serde(flatten)]
    pub question: Question,
    /// Whether they may.
    pub verdict: Verdict,
    /// By what.
    #[serde(serialize_with = "told")]
    pub because: Vec<Reason>,
    /// What would have to change, if they may not: each is one way, or a part of one.
    pub change: Vec<String>,
    /// What else there is to know.
    pub notes: Vec<String>,
}

/// Whether a user may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// They may.
    Allowed,
    /// They may subscribe, but some of what the subscription asks for is not delivered.
    Partly,
    /// They may not.
    Denied,
}

/// Everything a user may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rights {
    /// The user's record.
    pub user: Record,
    /// How they log in: `password` or `nkey`. `None`: they cannot, since they are not in NATS.
    pub login: Option<&'static str>,
    /// Why they cannot.
    #[serde(serialize_with = "told")]
    pub because: Vec<Reason>,
    /// What would have to change.
    pub change: Vec<String>,
    /// What their records say of publishing. Without an allowing line they may publish nothing.
    #[serde(serialize_with = "told")]
    pub publish: Vec<Reason>,
    /// What their records say of subscribing.
    #[serde(serialize_with = "told")]
    pub subscribe: Vec<Reason>,
    /// How they may answer requests.
    pub replies: Option<Replies>,
    /// How they may connect. Empty: in any way.
    pub connection_types: Vec<&'static str>,
    /// What in their records could not be honoured, or someone should look at.
    pub findings: Vec<Finding>,
}

/// Who may do one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WhoCan {
    /// What was asked.
    #[serde(flatten)]
    pub question: Question,
    /// Those who may, in the order of their names.
    pub may: Vec<Answer>,
    /// How many more may, who come after these.
    pub more: usize,
    /// How many others there are in NATS.
    pub may_not: usize,
}

/// A record, or the settings' defaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Record {
    /// Its collection; `settings` for the defaults.
    pub collection: String,
    /// Its id.
    pub id: String,
    /// The user's or role's name.
    pub name: String,
}

/// An entry in a list of subjects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// The record it is in.
    #[serde(flatten)]
    pub record: Record,
    /// The field with the list.
    pub field: String,
    /// Its place in the list, from 0.
    pub index: usize,
    /// The entry as it is written there.
    pub entry: String,
    /// What it is for this user: placeholders are filled in.
    pub subject: String,
}

/// How requests may be answered, on the reply subject that each brings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Replies {
    /// How many answers a request may have.
    pub max: u32,
    /// For how many milliseconds it may be answered. 0: nats-server's two minutes.
    pub ttl_ms: u128,
    /// The roles that say so.
    pub roles: Vec<Record>,
}

/// A part of the reason for an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// This line allows it.
    Allowed {
        /// The line.
        line: Line,
    },
    /// This line denies it, and wins over all that allow it.
    Denied {
        /// The line.
        line: Line,
    },
    /// pb-nats denies it, since nats-server would read more into this line than it says.
    Added {
        /// What is denied.
        subject: String,
        /// The line.
        line: Line,
    },
    /// nats-server reads more into this line than it says, and that cannot be denied.
    Wider {
        /// The line.
        line: Line,
    },
    /// This line allows it to a queue group, and to no other.
    OtherGroup {
        /// The line.
        line: Line,
    },
    /// There is no line that allows it.
    NoLine,
    /// nats-server keeps it for itself.
    Reserved,
    /// The user's record is not active.
    Inactive,
    /// Something in the records could not be honoured.
    Finding {
        /// What.
        finding: Finding,
    },
}

impl BadQuestion {
    /// What one can do about it.
    pub fn hint(self) -> &'static str {
        match self {
            BadQuestion::Wildcard => "ask for one that it matches, such as `orders.new`",
            BadQuestion::QueueOfPublisher => "leave the queue group out",
            BadQuestion::Subject(_) | BadQuestion::Queue(_) => {
                "tokens with dots between them, such as `orders.new`; wildcards are `*` for one \
                 whole token and `>` for all at the end"
            }
        }
    }
}

impl Question {
    /// May a client do this, in this queue group or in none?
    pub fn new(
        action: Action,
        subject: &str,
        queue: Option<&str>,
    ) -> Result<Question, BadQuestion> {
        let mut text = Subject::parse(subject).map_err(BadQuestion::Subject)?;
        if action == Action::Publish {
            if queue.is_some() {
                return Err(BadQuestion::QueueOfPublisher);
            }
            if text.has_wildcard() {
                return Err(BadQuestion::Wildcard);
            }
        }
        if let Some(queue) = queue {
            Subject::parse(queue).map_err(BadQuestion::Queue)?;
            text = Subject::parse_subscription(&format!("{subject} {queue}"))
                .map_err(BadQuestion::Queue)?;
        }
        let queue = queue.map(str::to_owned);
        Ok(Question { action, subject: subject.to_owned(), queue, text })
    }

    /// Whether it is to publish or to subscribe.
    pub fn action(&self) -> Action {
        self.action
    }

    /// The subject.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The queue group.
    pub fn queue(&self) -> Option<&str> {
        self.queue.as_deref()
    }
}

impl Explain {
    /// Works out what NATS should allow where nothing is in force.
    pub fn new(snapshot: Snapshot, policy: Policy) -> Explain {
        Explain::after(&Desired::default(), snapshot, policy)
    }

    /// Works out what NATS should allow where something is in force, as [`Desired::next`] does.
    pub fn after(former: &Desired, snapshot: Snapshot, policy: Policy) -> Explain {
        let (desired, findings) = former.next(&snapshot, &policy);
        let ids = snapshot.roles.iter().enumerate();
        let roles = ids.map(|(at, role)| (role.id.clone(), at)).collect();
        Explain { snapshot, policy, desired, findings, roles }
    }

    /// What NATS should allow.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// The record of a user, by name, nkey or record id. Of several, the active one counts.
    pub fn user(&self, name: &str) -> Option<&UserRecord> {
        let keys: [fn(&UserRecord) -> &str; 3] = [|it| &it.username, |it| &it.nkey, |it| &it.id];
        let found = |key: fn(&UserRecord) -> &str| {
            let mut named = self.snapshot.users.iter().filter(|it| key(it) == name);
            let first = named.clone().next();
            named.find(|it| it.active).or(first)
        };
        keys.into_iter().filter(|_| !name.is_empty()).find_map(found)
    }

    /// Names of users that hold `part`, those that begin with it first. No more than `most`.
    pub fn names(&self, part: &str, most: usize) -> Vec<&str> {
        let part = part.to_lowercase();
        let names = self.snapshot.users.iter().map(|it| (it.username.to_lowercase(), it));
        let held = names.filter(|(lower, _)| !lower.is_empty() && lower.contains(&part));
        let mut names: Vec<_> =
            held.map(|(lower, it)| (!lower.starts_with(&part), &*it.username)).collect();
        names.sort_unstable();
        names.dedup();
        names.into_iter().take(most).map(|(_, name)| name).collect()
    }

    /// The user's name that is most like this one.
    pub fn similar(&self, name: &str) -> Option<&str> {
        let lower = name.to_lowercase();
        let likeness = |it: &str| strsim::jaro_winkler(&it.to_lowercase(), &lower);
        let names = self.snapshot.users.iter().map(|it| &*it.username);
        let alike = names.map(|it| (likeness(it), it)).filter(|(likeness, _)| *likeness > 0.8);
        alike.max_by(|one, other| one.0.total_cmp(&other.0)).map(|(_, name)| name)
    }

    /// What the user logs in with, and what they may do. `None`: they are not in NATS.
    pub fn in_nats(&self, user: &UserRecord) -> Option<(&str, &User)> {
        let login = if user.nkey.is_empty() { &user.username } else { &user.nkey };
        let (login, known) = self.desired.users.get_key_value(login)?;
        (user.active && known.is_of(user)).then_some((login, known))
    }

    /// Whether the user may, on a nats-server that delivers so.
    pub fn answer(&self, user: &UserRecord, question: &Question, delivery: Delivery) -> Answer {
        let answer = |verdict| Answer {
            user: self.user_record(user),
            question: question.clone(),
            verdict,
            because: Vec::new(),
            change: Vec::new(),
            notes: Vec::new(),
        };
        let Some((_, known)) = self.in_nats(user) else {
            let (because, change) = self.why_out(user);
            return Answer { because, change, ..answer(Verdict::Denied) };
        };
        let subjects = direction(self.desired.rules(known), question.action);
        let ruling = Ruling::new(subjects, question.action, &question.text);
        let lines = self.lines(user, question.action);
        let mut answer = if ruling.passes() {
            let withheld = withheld(subjects, &question.text, delivery);
            let verdict = if withheld.is_empty() { Verdict::Allowed } else { Verdict::Partly };
            let because = why_allowed(&question.text, &ruling, &withheld, &lines);
            let notes = elsewhere(subjects, &question.text, delivery);
            Answer { because, notes, ..answer(verdict) }
        } else {
            let because = self.why_denied(user, question, &ruling, &lines);
            let advice = self.advice(user, known, question, &ruling, &lines);
            let (change, notes) = (advice.told(), advice.notes);
            Answer { because, change, notes, ..answer(Verdict::Denied) }
        };
        if question.action == Action::Publish
            && answer.verdict == Verdict::Denied
            && !ruling.reserved
        {
            answer.notes.extend(self.replies(user, known).map(|it| it.to_string()));
        }
        answer.notes.extend(ways(known));
        answer
    }

    /// Who may, on a nats-server that delivers so. Lists no more than `most` of them.
    pub fn who_can(&self, question: &Question, delivery: Delivery, most: usize) -> WhoCan {
        let known = self.snapshot.users.iter().filter_map(|it| Some((it, self.in_nats(it)?.1)));
        let (mut may, mut may_not) = (Vec::new(), 0);
        for (user, known) in known {
            let subjects = direction(self.desired.rules(known), question.action);
            if Ruling::new(subjects, question.action, &question.text).passes() {
                may.push(user);
            } else {
                may_not += 1;
            }
        }
        may.sort_by(|one, other| one.username.cmp(&other.username));
        let more = may.len().saturating_sub(most);
        may.truncate(most);
        let may = may.into_iter().map(|it| self.answer(it, question, delivery)).collect();
        WhoCan { question: question.clone(), may, more, may_not }
    }

    /// Everything the user may do.
    pub fn rights(&self, user: &UserRecord) -> Rights {
        let about: BTreeSet<&str> =
            user.roles.iter().chain([&user.id]).map(String::as_str).collect();
        let known = self.in_nats(user).map(|(_, known)| known);
        let (because, change) = match known {
            Some(_) => Default::default(),
            None => self.why_out(user),
        };
        let all = |action| known.map(|it| self.all(user, it, action)).unwrap_or_default();
        Rights {
            user: self.user_record(user),
            login: known.map(|it| match it.credential {
                Credential::Password(_) => "password",
                Credential::Nkey { .. } => "nkey",
            }),
            because,
            change,
            publish: all(Action::Publish),
            subscribe: all(Action::Subscribe),
            replies: known.and_then(|it| self.replies(user, it)),
            connection_types: known.map(types).unwrap_or_default(),
            findings: self
                .findings
                .iter()
                .filter(|it| about.contains(it.id.as_str()) && it.effect != Effect::LeftOut)
                .cloned()
                .collect(),
        }
    }

    /// Whether a message to `subject` comes to the user by a subscription like this, if it is the
    /// only one of its connection.
    pub fn delivers(
        &self,
        user: &UserRecord,
        subscription: &Question,
        subject: &Subject,
        delivery: Delivery,
    ) -> bool {
        let Some((_, known)) = self.in_nats(user) else { return false };
        let subjects = direction(self.desired.rules(known), subscription.action);
        let text = &subscription.text;
        subscription.action == Action::Subscribe
            && Ruling::new(subjects, subscription.action, text).passes()
            && text.covers(subject)
            && !withheld(subjects, text, delivery).iter().any(|it| it.takes(subject))
    }

    /// Subjects of messages by which a subscription can be tried: one that it asks for, and one for
    /// each denied subject that it reaches into.
    pub fn samples(&self, user: &UserRecord, subscription: &Question) -> Vec<Subject> {
        let rules = self.in_nats(user).map(|(_, known)| self.desired.rules(known));
        let denied = rules.iter().flat_map(|it| it.subscribe.deny());
        let all = Subject::everything();
        let met = denied.chain([&all]).filter_map(|it| subscription.text.meeting(it));
        met.collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn user_record(&self, user: &UserRecord) -> Record {
        Record {
            collection: self.policy.user_collection.clone(),
            id: user.id.clone(),
            name: user.username.to_string(),
        }
    }

    fn role_record(&self, role: &RoleRecord) -> Record {
        Record {
            collection: self.policy.role_collection.clone(),
            id: role.id.clone(),
            name: role.name.clone(),
        }
    }

    /// The user's roles, each once.
    fn roles<'a>(&'a self, user: &'a UserRecord) -> impl Iterator<Item = &'a RoleRecord> {
        let ids: BTreeSet<&String> = user.roles.iter().collect();
        ids.into_iter().filter_map(|id| Some(&self.snapshot.roles[*self.roles.get(id)?]))
    }

    /// The lines that are the user's in one direction, but for those that cannot be honoured.
    fn lines(&self, user: &UserRecord, action: Action) -> Vec<Entry> {
        let values = Values { username: &user.username, id: &user.id };
        let mut lines = Vec::new();
        let mut add = |record: &Record, permissions: &Permissions, named: fn(&str) -> String| {
            let (parse, name, lists): (fn(&str) -> _, _, _) = match action {
                Action::Publish => {
                    (Subject::parse, "publish", [&permissions.publish, &permissions.publish_deny])
                }
                Action::Subscribe => (
                    Subject::parse_subscription,
                    "subscribe",
                    [&permissions.subscribe, &permissions.subscribe_deny],
                ),
            };
            for (allows, list) in [true, false].into_iter().zip(lists) {
                let field = if allows { named(name) } else { format!("{name}_deny_permissions") };
                let texts = array(list).unwrap_or_default();
                for (index, entry) in texts.iter().enumerate() {
                    let Some(entry) = entry.as_str() else { continue };
                    let Ok(subject) = fill(entry, values).and_then(|it| parse(&it)) else {
                        continue;
                    };
                    let line = Line {
                        record: record.clone(),
                        field: field.clone(),
                        index,
                        entry: entry.to_owned(),
                        subject: subject.to_string(),
                    };
                    lines.push(Entry { allows, subject, line });
                }
            }
        };
        let of_record: fn(&str) -> String = |it| format!("{it}_permissions");
        for role in self.roles(user) {
            add(&self.role_record(role), &role.permissions, of_record);
        }
        if user.roles.is_empty() {
            let settings = Record {
                collection: "settings".to_owned(),
                id: "permissions".to_owned(),
                name: "default".to_owned(),
            };
            add(&settings, &self.policy.default_permissions(), |it| format!("default_{it}"));
        }
        add(&self.user_record(user), &user.permissions, of_record);
        lines
    }

    /// Why an active or inactive record is not in NATS, and what would have to change.
    fn why_out(&self, user: &UserRecord) -> (Vec<Reason>, Vec<String>) {
        if !user.active {
            return (vec![Reason::Inactive], vec!["activate the user's record".to_owned()]);
        }
        let findings = self.findings.iter().filter(|it| {
            it.effect == Effect::LeftOut
                && it.id == user.id
                && it.collection == self.policy.user_collection
        });
        findings
            .map(|it| (Reason::Finding { finding: it.clone() }, it.problem.mend().to_owned()))
            .unzip()
    }

    fn why_denied(
        &self,
        user: &UserRecord,
        question: &Question,
        ruling: &Ruling<'_>,
        lines: &[Entry],
    ) -> Vec<Reason> {
        if ruling.reserved {
            return vec![Reason::Reserved];
        }
        let denied = denying(lines, &question.text);
        let mut because: Vec<_> =
            denied.map(|it| Reason::Denied { line: it.line.clone() }).collect();
        // Beside what is not allowed anyway, what we added decides nothing.
        if !ruling.allow.is_empty() {
            let added = denials(lines, &ruling.deny);
            because.extend(added.filter(|it| matches!(it, Reason::Added { .. })));
        }
        if ruling.allow.is_empty() {
            let others = following(lines, true, &ruling.other_groups);
            because.extend(others.map(|it| Reason::OtherGroup { line: it.line.clone() }));
        }
        let in_doubt: Vec<_> = self.in_doubt(user, question.action).collect();
        let closed = in_doubt.iter().any(|it| it.effect == Effect::DirectionDenied);
        if because.is_empty() && !(closed && allow(lines, &question.text)) {
            because.push(Reason::NoLine);
        }
        // What cannot be honoured may be what was meant to allow it.
        because.extend(in_doubt.into_iter().map(|it| Reason::Finding { finding: it.clone() }));
        because
    }

    /// Lines of the user's in this direction that could not be honoured.
    fn in_doubt<'a>(
        &'a self,
        user: &'a UserRecord,
        action: Action,
    ) -> impl Iterator<Item = &'a Finding> {
        let name = action.noun();
        self.findings.iter().filter(move |it| {
            let theirs = match it.collection.as_str() {
                "settings" => user.roles.is_empty(),
                own if own == self.policy.user_collection => it.id == user.id,
                _ => user.roles.contains(&it.id),
            };
            let here =
                it.field.starts_with(name) || it.field.starts_with(&format!("default_{name}"));
            theirs && here && matches!(it.effect, Effect::NotGranted | Effect::DirectionDenied)
        })
    }

    /// All lines of one direction, and what we add to them.
    fn all(&self, user: &UserRecord, known: &User, action: Action) -> Vec<Reason> {
        let lines = self.lines(user, action);
        let subjects = direction(self.desired.rules(known), action);
        let allowed = lines.iter().filter(|it| it.allows && !subjects.is_nothing());
        let allowed = allowed.map(|it| Reason::Allowed { line: it.line.clone() });
        let denied = lines.iter().filter(|it| !it.allows);
        let denied = denied.map(|it| Reason::Denied { line: it.line.clone() });
        let deny: Vec<_> = subjects.deny().iter().collect();
        let added = denials(&lines, &deny).filter(|it| matches!(it, Reason::Added { .. }));
        allowed.chain(denied).chain(added).collect()
    }

    fn replies(&self, user: &UserRecord, known: &User) -> Option<Replies> {
        let Responses { max, ttl } = self.desired.rules(known).responses?;
        let roles = self.roles(user).filter(|it| matches!(responses(it), Ok(Some(_))));
        let roles = roles.map(|it| self.role_record(it)).collect();
        Some(Replies { max, ttl_ms: ttl.as_millis(), roles })
    }
}

/// The lines that allow it, what they are kept from, and what they are taken for.
fn why_allowed(
    text: &Subject,
    ruling: &Ruling<'_>,
    withheld: &[&Subject],
    lines: &[Entry],
) -> Vec<Reason> {
    let allowing = following(lines, true, &ruling.allow);
    let mut because: Vec<_> =
        allowing.clone().map(|it| Reason::Allowed { line: it.line.clone() }).collect();
    because.extend(denials(lines, withheld));
    let wide = ruling.allow.iter().any(|it| it.covers(text));
    let added = because.iter().any(|it| matches!(it, Reason::Added { .. }));
    if !wide && !added {
        because.extend(allowing.map(|it| Reason::Wider { line: it.line.clone() }));
    }
    because
}

/// A line, and what it says.
#[derive(Debug)]
struct Entry {
    allows: bool,
    subject: Subject,
    line: Line,
}

fn direction(rules: &Rules, action: Action) -> &Subjects {
    match action {
        Action::Publish => &rules.publish,
        Action::Subscribe => &rules.subscribe,
    }
}

/// The lines that said one of these subjects.
fn following<'a>(
    lines: &'a [Entry],
    allows: bool,
    subjects: &'a [&Subject],
) -> impl Iterator<Item = &'a Entry> + Clone {
    lines.iter().filter(move |it| it.allows == allows && subjects.contains(&&it.subject))
}

/// The lines that deny it. [`Desired`] keeps no line that another makes needless, and where nothing
/// at all is left it keeps none.
fn denying<'a>(lines: &'a [Entry], text: &Subject) -> impl Iterator<Item = &'a Entry> {
    let group = |it: &Subject| it.queue().is_none_or(|all| text.is_for(all));
    lines.iter().filter(move |it| !it.allows && it.subject.takes(text) && group(&it.subject))
}

/// Whether some line allows it, were nothing denied.
fn allow(lines: &[Entry], text: &Subject) -> bool {
    let group = |it: &Subject| it.queue().is_none_or(|all| text.is_for(all));
    lines.iter().any(|it| it.allows && it.subject.takes(text) && group(&it.subject))
}

/// The lines that said one of these denied subjects, and those beside which we added one.
///
/// What [`Desired`] adds for older servers says nothing that a line does not say.
fn denials(lines: &[Entry], denied: &[&Subject]) -> impl Iterator<Item = Reason> {
    let said = following(lines, false, denied).map(|it| Reason::Denied { line: it.line.clone() });
    let beside = |subject: &Subject| {
        let beside =
            lines.iter().filter(|it| it.allows && it.subject.beyond().as_ref() == Some(subject));
        let reason =
            |it: &Entry| Reason::Added { subject: subject.to_string(), line: it.line.clone() };
        let said = lines.iter().any(|it| !it.allows && it.subject == *subject);
        beside.map(reason).filter(move |_| !said).collect::<Vec<_>>()
    };
    let mut reasons: Vec<_> = said.collect();
    reasons.extend(denied.iter().flat_map(|it| beside(it)));
    reasons.into_iter()
}

/// Where other versions of nats-server deliver more.
fn elsewhere(subjects: &Subjects, text: &Subject, delivery: Delivery) -> Vec<String> {
    let here = withheld(subjects, text, delivery);
    let note = |other: Delivery| {
        let there = withheld(subjects, text, other);
        let more = here.iter().filter(|it| !there.iter().any(|all| all.covers(it)));
        let more: Vec<_> = more.map(|it| format!("`{it}`")).collect();
        let versions = other.versions();
        (!more.is_empty()).then(|| format!("{versions} delivers {} all the same", more.join(", ")))
    };
    Delivery::BEFORE.into_iter().filter_map(note).collect()
}

fn types(user: &User) -> Vec<&'static str> {
    user.connection_types.iter().map(ConnectionType::as_str).collect()
}

/// How the user may connect, if not in any way.
fn ways(user: &User) -> Option<String> {
    let types = types(user);
    (!types.is_empty()).then(|| format!("the user may only connect by {}", types.join(" or ")))
}

/// Each with its text beside its parts.
fn told<T: Serialize + fmt::Display, S: Serializer>(
    items: &[T],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Told<'a, T> {
        text: String,
        #[serde(flatten)]
        parts: &'a T,
    }
    serializer.collect_seq(items.iter().map(|it| Told { text: it.to_string(), parts: it }))
}

impl Action {
    /// What it is called in the names of fields.
    fn noun(self) -> &'static str {
        match self {
            Action::Publish => "publish",
            Action::Subscribe => "subscribe",
        }
    }
}

/// What is asked, without who: `publish to "a.b"`.
impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {:?}", self.action.noun(), self.subject)?;
        self.queue.as_ref().map_or(Ok(()), |it| write!(f, " in the queue group {it:?}"))
    }
}

/// The verdict, in one line.
impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Answer { user, question, .. } = self;
        let name = &user.name;
        match self.verdict {
            Verdict::Allowed => write!(f, "{name:?} may {question}"),
            Verdict::Partly => write!(f, "{name:?} may {question}, but does not get all of it"),
            Verdict::Denied => write!(f, "{name:?} may not {question}"),
        }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record { collection, id, name } = self;
        if collection == "settings" {
            return write!(f, "the settings' [{id}]");
        }
        write!(f, "{collection}/{id} {name:?}")
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Line { record, field, index, entry, subject } = self;
        write!(f, "{record}: {field}[{index}] {entry:?}")?;
        if entry == subject { Ok(()) } else { write!(f, ", here {subject:?}") }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Allowed { line } => write!(f, "allowed by {line}"),
            Reason::Denied { line } => write!(f, "denied by {line}"),
            Reason::Added { subject, line } => write!(
                f,
                "{subject:?} is denied by pb-nats, since nats-server would take it as allowed by {line}"
            ),
            Reason::Wider { line } => write!(
                f,
                "nats-server reads more into it than is said, and delivers all levels, by {line}"
            ),
            Reason::OtherGroup { line } => {
                write!(f, "allowed to a queue group only, by {line}")
            }
            Reason::NoLine => f.write_str("no line allows it"),
            Reason::Reserved => f.write_str("nats-server keeps it for itself"),
            Reason::Inactive => f.write_str("the record is not active, so the user is not in NATS"),
            // How to mend it is among what would have to change, unless it decides nothing.
            Reason::Finding { finding } if finding.effect == Effect::NotGranted => finding.fmt(f),
            Reason::Finding { finding } => {
                let (text, mend) = (finding.to_string(), format!("; {}", finding.problem.mend()));
                f.write_str(text.strip_suffix(&mend).unwrap_or(&text))
            }
        }
    }
}

impl fmt::Display for Replies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Replies { max, ttl_ms, roles } = self;
        let times = if *max == 1 { "once".to_owned() } else { format!("up to {max} times") };
        let millis = u64::try_from(*ttl_ms).unwrap_or(u64::MAX);
        let within =
            if millis == 0 { Duration::from_mins(2) } else { Duration::from_millis(millis) };
        let roles: Vec<_> = roles.iter().map(ToString::to_string).collect();
        write!(
            f,
            "each request that comes may be answered {times} within {within:?} on its reply subject, \
             denied or not, by allow_response of {}",
            roles.join(", ")
        )
    }
}
