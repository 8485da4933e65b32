//! What we say about a user's rights is what nats-server does: thousands of generated records, and
//! every answer of [`Explain`] held against a real server's.
//!
//! `DIFFERENTIAL_SEED` and `DIFFERENTIAL_USERS` make it another run, or a longer one.

use std::{collections::BTreeSet, env, fmt::Debug, str::FromStr, time::Duration};

use nkeys::{KeyPair, KeyPairType};
use pb_nats::{
    Options,
    auth::{
        Action, ConnectionType, Delivery, Explain, PasswordHash, Permissions, Policy, Question,
        RoleRecord, Snapshot, Subject, UserRecord, Verdict, render,
    },
};
use serde_json::{Value, json};

use crate::support::{Client, Login, Nats, Setup, bcrypt};

const PASSWORD: &str = "open sesame";
/// The user who publishes what others may get.
const WRITER: &str = "the writer";
const QUESTIONS: usize = 12;

#[test]
#[expect(clippy::print_stdout, reason = "what was asked, and how to ask it again")]
fn every_answer_is_nats_servers_own() {
    let seed = number("DIFFERENTIAL_SEED", 20_261_123);
    let count: usize = number("DIFFERENTIAL_USERS", 1_500);
    let mut dice = Dice(seed);
    let records = snapshot(&mut dice, count);
    let explain = Explain::new(records.clone(), policy());
    let nats = Nats::with(Setup { auth: &render(explain.desired()), ..Setup::default() });
    nats.judge().expect("`nats-server -t` takes the file");

    let writer = nats.client(WRITER, PASSWORD);
    let version = writer.info["version"].as_str().unwrap().to_owned();
    let delivery = Delivery::of(&version);
    let mut trial = Trial { nats, explain, writer, delivery, dice, told: Told::default() };
    for user in &records.users {
        trial.user(user);
    }
    let Told { users, left_out, allowed, partly, denied, messages, replies, disagreements } =
        trial.told;
    println!(
        "nats-server {version}, seed {seed}: {users} users ({left_out} left out), {} questions \
         ({allowed} allowed, {partly} partly, {denied} denied), {messages} messages, {replies} \
         replies, {} disagreements",
        allowed + partly + denied,
        disagreements.len()
    );
    assert!(disagreements.is_empty(), "seed {seed}:\n{}", disagreements.join("\n"));
    assert!(allowed > 0 && partly > 0 && denied > 0 && left_out > 0 && replies > 0);
}

/// Asks `explain` and the server the same.
struct Trial {
    nats: Nats,
    explain: Explain,
    writer: Client,
    delivery: Delivery,
    dice: Dice,
    told: Told,
}

#[derive(Default)]
struct Told {
    users: usize,
    left_out: usize,
    allowed: usize,
    partly: usize,
    denied: usize,
    messages: usize,
    replies: usize,
    disagreements: Vec<String>,
}

impl Trial {
    fn user(&mut self, user: &UserRecord) {
        self.told.users += 1;
        let known = self.explain.in_nats(user).map(|(_, it)| it.clone());
        // This client speaks the NATS protocol and no other.
        let types = known.iter().flat_map(|it| it.connection_types.iter());
        let types: Vec<_> = types.map(ConnectionType::as_str).collect();
        let let_in = known.is_some() && (types.is_empty() || types.contains(&"STANDARD"));
        if known.is_none() {
            self.told.left_out += 1;
        }
        let mut client = match (self.connect(user), let_in) {
            (Some(client), true) => client,
            (None, false) => return,
            (found, _) => return self.disagree(user, &"log in", &found.is_some(), &let_in),
        };
        for _ in 0..QUESTIONS {
            let question = self.dice.question(user, &self.explain);
            let answer = self.explain.answer(user, &question, self.delivery);
            match answer.verdict {
                Verdict::Allowed => self.told.allowed += 1,
                Verdict::Partly => self.told.partly += 1,
                Verdict::Denied => self.told.denied += 1,
            }
            match question.action() {
                Action::Publish => {
                    client.publish(question.subject(), b"");
                    let may = !refused(&mut client);
                    if may != (answer.verdict == Verdict::Allowed) {
                        self.disagree(user, &question, &may, &answer);
                    }
                }
                Action::Subscribe => {
                    if self.delivery == Delivery::Within {
                        // There, what is delivered also depends on former subscriptions.
                        client = self.connect(user).expect("whom it let in before");
                    }
                    self.subscription(user, &mut client, &question, answer.verdict);
                }
            }
        }
    }

    fn subscription(
        &mut self,
        user: &UserRecord,
        client: &mut Client,
        question: &Question,
        verdict: Verdict,
    ) {
        let number = client.subscribe_queue(question.subject(), question.queue().unwrap_or(""));
        let may = !refused(client);
        if may != (verdict != Verdict::Denied) {
            return self.disagree(user, question, &may, &verdict);
        }
        if !may {
            return;
        }
        let samples = self.explain.samples(user, question);
        let more =
            (0..3).filter_map(|_| Subject::parse(&self.dice.near(question.subject(), 0)).ok());
        let all: BTreeSet<_> = samples.iter().cloned().chain(more).collect();
        for sample in &all {
            self.writer.publish(sample.as_str(), b"");
        }
        assert!(!refused(&mut self.writer), "the writer may publish everything");
        client.flush().unwrap();
        let came = client.received().into_iter().filter(|it| it.subscription == number);
        let came: BTreeSet<_> = came.map(|it| it.subject).collect();
        for sample in &all {
            self.told.messages += 1;
            let delivered = came.contains(sample.as_str());
            if delivered != self.explain.delivers(user, question, sample, self.delivery) {
                self.disagree(user, &(question, sample), &delivered, &verdict);
            }
        }
        let held_back = samples.iter().any(|it| !came.contains(it.as_str()));
        if held_back != (verdict == Verdict::Partly) {
            self.disagree(user, question, &came, &verdict);
        }
        if let Some(sample) = came.first() {
            self.replies(user, client, sample);
        }
        client.unsubscribe(number);
    }

    /// Who got a request may answer it, as often as is said.
    fn replies(&mut self, user: &UserRecord, client: &mut Client, request: &str) {
        let Some(replies) = self.explain.rights(user).replies.filter(|it| it.max < 5) else {
            return;
        };
        self.told.replies += 1;
        let reply = format!("reply.{}", self.told.replies);
        let question = Question::new(Action::Publish, &reply, None).unwrap();
        let always =
            self.explain.answer(user, &question, self.delivery).verdict == Verdict::Allowed;
        self.writer.publish_with_reply(request, &reply, b"");
        self.writer.flush().unwrap();
        client.flush().unwrap();
        client.received();
        for number in 0..=replies.max {
            client.publish(&reply, b"");
            let may = !refused(client);
            if may != (always || number < replies.max) {
                self.disagree(user, &(&reply, number), &may, &replies);
            }
        }
    }

    fn connect(&self, user: &UserRecord) -> Option<Client> {
        let pair = (!user.nkey.is_empty()).then(|| pair(&user.id));
        let by_password = Login::Password(&user.username, PASSWORD);
        let login = pair.as_ref().map_or(by_password, Login::Nkey);
        match self.nats.connect(login) {
            Ok(client) => Some(client),
            Err(why) if why == "Authorization Violation" => None,
            Err(why) => panic!("{user:?}: {why}"),
        }
    }

    fn disagree(
        &mut self,
        user: &UserRecord,
        question: &dyn Debug,
        found: &dyn Debug,
        said: &dyn Debug,
    ) {
        let known = self.explain.in_nats(user);
        let rules = known.map(|(_, it)| self.explain.desired().rules(it));
        self.told.disagreements.push(format!(
            "{:?} {question:?}: nats-server {found:?}, explain {said:?}\n    by {rules:?}",
            user.username
        ));
    }
}

/// Whether the server said no to what was sent just now.
fn refused(client: &mut Client) -> bool {
    let before = client.errors.len();
    client.flush().unwrap();
    let errors = &client.errors[before..];
    assert!(errors.iter().all(|it| it.starts_with("Permissions Violation")), "{errors:?}");
    !errors.is_empty()
}

fn number<T: FromStr<Err: Debug>>(variable: &str, otherwise: T) -> T {
    env::var(variable).map_or(otherwise, |it| it.parse().expect(variable))
}

/// The nkey of the user with this record.
fn pair(id: &str) -> KeyPair {
    let mut seed = [7; 32];
    seed[..id.len()].copy_from_slice(id.as_bytes());
    KeyPair::new_from_raw(KeyPairType::User, seed).unwrap()
}

fn policy() -> Policy {
    Policy {
        default_publish: vec!["a.*".into(), "a.b.c".into(), "own.{{id}}".into()],
        default_subscribe: vec!["b.*".into(), "b.a.>".into(), "own.{{username}}.>".into()],
        reserved: ["reserved".to_owned()].into(),
        login_timeout: Some(Duration::from_mins(1)),
        ..Policy::from(&Options::default())
    }
}

/// Records of which most are in order and none is dull.
fn snapshot(dice: &mut Dice, users: usize) -> Snapshot {
    let count = users / 5 + 1;
    let roles = (0..count).map(|it| dice.role(it)).collect();
    let hash = PasswordHash(bcrypt(PASSWORD).into());
    let writer = UserRecord {
        id: "writer".into(),
        username: WRITER.into(),
        password: hash.clone(),
        active: true,
        permissions: Permissions { publish: json!([">"]), ..Permissions::default() }.into(),
        ..UserRecord::default()
    };
    let mut all: Vec<_> = (0..users).map(|it| dice.user(it, count, &hash)).collect();
    all.push(writer);
    Snapshot { users: all, roles }
}

/// The same numbers for the same seed.
struct Dice(u64);

const TOKENS: [&str; 4] = ["a", "b", "c", "own"];
const RARE: [&str; 14] = [
    "$SYS", "$JS", "_INBOX", "a-b", "\"", "\\", "}}", "$ADMIN", "#", "//", "'", "日本", "TRUE",
    "1k",
];
const ILLEGAL: [&str; 12] = [
    "",
    ".",
    "a..b",
    "a b c",
    "a*b",
    "c>",
    "a.>.b",
    "a\tb",
    "{{nope}}",
    "{{username",
    "\0",
    "a\u{a0}",
];
const GROUPS: [&str; 6] = ["q", "r", "q.*", "q.>", "*", ">"];

impl Dice {
    /// Vigna's splitmix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut it = self.0;
        it = (it ^ (it >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        it = (it ^ (it >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        it ^ (it >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    fn pick<'a>(&mut self, items: &[&'a str]) -> &'a str {
        items[self.below(items.len())]
    }

    fn token(&mut self) -> &'static str {
        if self.percent(4) { self.pick(&RARE) } else { self.pick(&TOKENS) }
    }

    fn pattern(&mut self, wild: usize) -> String {
        let length = 1 + self.below(4);
        let mut tokens: Vec<&str> =
            (0..length).map(|_| if self.percent(wild) { "*" } else { self.token() }).collect();
        if self.percent(wild) {
            tokens[length - 1] = ">";
        }
        tokens.join(".")
    }

    fn entry(&mut self, action: Action, illegal: usize) -> Value {
        let mut text = match self.below(100) {
            it if it < illegal => return json!(self.pick(&ILLEGAL)),
            it if it < illegal + 1 => return json!(7),
            it if it < illegal + 8 => {
                let placeholder = self.pick(&["{{username}}", "{{id}}", "x-{{username}}"]);
                let end = self.pick(&["", ".>", ".*", ".a"]);
                format!("{}{placeholder}{end}", self.pick(&["", "own.", "own.", "a."]))
            }
            _ => self.pattern(25),
        };
        if action == Action::Subscribe && self.percent(18) {
            text = format!("{text} {}", self.pick(&GROUPS));
        }
        json!(text)
    }

    fn list(&mut self, action: Action, usual: usize, illegal: usize) -> Value {
        if !self.percent(usual) {
            return [json!(null), json!([]), json!("")][self.below(3)].clone();
        }
        if self.percent(illegal) {
            return [json!({}), json!(7), json!(true), json!("x"), json!([1])][self.below(5)]
                .clone();
        }
        let length = 1 + self.below(5);
        let entries: Vec<_> = (0..length).map(|_| self.entry(action, illegal)).collect();
        if self.percent(5) { json!(json!(entries).to_string()) } else { json!(entries) }
    }

    fn permissions(&mut self, usual: usize) -> Permissions {
        Permissions {
            publish: self.list(Action::Publish, usual, 3),
            subscribe: self.list(Action::Subscribe, usual, 3),
            publish_deny: self.list(Action::Publish, usual / 2, 1),
            subscribe_deny: self.list(Action::Subscribe, usual / 2, 1),
        }
    }

    fn role(&mut self, number: usize) -> RoleRecord {
        let mut permissions = self.permissions(90);
        if self.percent(20) {
            // Much, of which something is denied.
            permissions.publish = json!([">"]);
            permissions.subscribe = json!([">"]);
        }
        RoleRecord {
            id: format!("r{number}"),
            name: self.pick(&["clerk", "users", "a b", "$x", "日本", ""]).to_owned(),
            permissions,
            allow_response: [json!(null), json!(false), json!(true), json!(1), json!("x")]
                [self.below(5)]
            .clone(),
            allow_response_max: [json!(null), json!(0), json!(3), json!(-1), json!(9)]
                [self.below(5)]
            .clone(),
            allow_response_ttl: [json!(null), json!(0), json!(3600)][self.below(3)].clone(),
        }
    }

    fn user(&mut self, number: usize, roles: usize, hash: &PasswordHash) -> UserRecord {
        let id = format!("u{number}");
        let username = match self.below(40) {
            0 => format!("a.{number}"),
            1 => format!("$SYS{number}"),
            2 => format!("q\" {{ {number}"),
            3 => format!("日本 {number}"),
            4 => "twin".to_owned(),
            5 => self.pick(&["", "*", ">", "reserved", "new\nline", "_INBOX"]).to_owned(),
            6 => pair(&id).public_key(),
            _ => format!("user-{number}"),
        };
        let role = |it: &mut Dice| match it.below(40) {
            0 => "ghost".to_owned(),
            _ => format!("r{}", it.below(roles)),
        };
        let count = [0, 1, 1, 1, 2, 3][self.below(6)];
        let types = match self.below(30) {
            0 => json!(["MQTT"]),
            1 => json!(["STANDARD", "FAX"]),
            2 => json!(["FAX"]),
            _ => json!(null),
        };
        let mut password = hash.clone();
        if self.percent(2) {
            password = PasswordHash(self.pick(&["", PASSWORD, "$2a$04$"]).into());
        }
        UserRecord {
            generated_hash: PasswordHash::default(),
            nkey: if self.percent(10) { pair(&id).public_key().into() } else { "".into() },
            id,
            username: username.into(),
            password,
            roles: (0..count).map(|_| role(self)).collect(),
            active: self.percent(95),
            permissions: if self.percent(25) {
                self.permissions(50).into()
            } else {
                Permissions::default().into()
            },
            connection_types: types.into(),
        }
    }

    /// Something that the user may be allowed, or nearly.
    fn question(&mut self, user: &UserRecord, explain: &Explain) -> Question {
        loop {
            let action = if self.percent(50) { Action::Publish } else { Action::Subscribe };
            let known = explain.in_nats(user).map(|(_, it)| explain.desired().rules(it));
            let subjects = known.map(|it| match action {
                Action::Publish => &it.publish,
                Action::Subscribe => &it.subscribe,
            });
            let written: Vec<&Subject> =
                subjects.iter().flat_map(|it| it.allow().iter().chain(it.deny())).collect();
            let wild = if action == Action::Publish { 0 } else { 25 };
            let (text, mut queue) = if written.is_empty() || self.percent(30) {
                (self.pattern(wild), None)
            } else {
                let near = written[self.below(written.len())];
                (self.near(near.subject(), wild), near.queue())
            };
            if action == Action::Publish || self.percent(50) {
                queue = None;
            } else if self.percent(30) {
                queue = Some(self.pick(&["q", "r", "q.x", "q.x.y", "z", "_sys_"]));
            }
            let kept = action == Action::Publish && self.percent(1);
            let text = if kept { format!("_GR_.{text}") } else { text };
            // A wildcard in the name of a group that asks is a token like any other.
            if let Ok(question) = Question::new(action, &text, queue) {
                return question;
            }
        }
    }

    /// A subject much like this one.
    fn near(&mut self, subject: &str, wild: usize) -> String {
        let mut tokens: Vec<String> = Vec::new();
        for token in subject.split('.') {
            let keep = wild > 0 && self.percent(50);
            match token {
                "*" | ">" if keep => tokens.push(token.to_owned()),
                "*" => tokens.push(self.token().to_owned()),
                ">" => tokens.extend((0..=self.below(2)).map(|_| self.token().to_owned())),
                _ if self.percent(8) => tokens.push(self.token().to_owned()),
                _ if wild > 0 && self.percent(30) => tokens.push("*".to_owned()),
                _ => tokens.push(token.to_owned()),
            }
        }
        match self.below(12) {
            0 => tokens.push(self.token().to_owned()),
            1 if tokens.len() > 1 => drop(tokens.pop()),
            2..=4 if wild > 0 => {
                tokens.pop();
                tokens.push(">".to_owned());
            }
            _ => (),
        }
        tokens.join(".")
    }
}
