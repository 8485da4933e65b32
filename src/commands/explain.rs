//! `pb-nats explain`.

use std::{env, fmt, fmt::Write as _, process::ExitCode};

use anyhow::bail;
use clap::ValueEnum;
use pb_nats::{
    Options,
    auth::{
        Action, Answer, ConnectionType, Delivery, Explain as Explained, Question, Subject, User,
        UserRecord, Verdict, counted,
        explain::{BadQuestion, Reason, Rights, WhoCan},
    },
    nats::Trial,
};
use serde_json::json;

use super::{password_from_stdin, print, reconciler};
use crate::{Cli, Usage};

#[derive(clap::Args)]
pub(crate) struct Explain {
    /// A user: name, nkey or record id. Alone: all that they may do
    #[arg(required_unless_present = "who_can")]
    user: Option<String>,
    /// What to do
    #[arg(value_enum, requires = "subject")]
    action: Option<Verb>,
    /// Where; quote `*` and `>`, which mean something to the shell
    subject: Option<String>,
    /// As one of this queue group
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,
    /// Who may do this
    #[arg(long, num_args = 2, value_names = ["pub|sub", "SUBJECT"], conflicts_with_all = ["user", "live"])]
    who_can: Option<Vec<String>>,
    /// Ask a real nats-server too: one that is started for it, on loopback, with the same file
    #[arg(long, requires = "subject")]
    live: bool,
    /// With --live: ask the server in service, as the user with this password
    #[arg(long, requires = "live")]
    password_stdin: bool,
    /// That server's address; without it, `system_url` in [nats]
    #[arg(long, value_name = "URL", requires = "password_stdin")]
    server: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Verb {
    #[value(alias = "publish")]
    Pub,
    #[value(alias = "subscribe")]
    Sub,
}

impl From<Verb> for Action {
    fn from(verb: Verb) -> Action {
        match verb {
            Verb::Pub => Action::Publish,
            Verb::Sub => Action::Subscribe,
        }
    }
}

/// What a real server said.
struct Heard {
    server: String,
    version: Option<String>,
    /// What it says otherwise than we do.
    otherwise: Option<String>,
}

pub(crate) async fn explain(cli: &Cli, arguments: &Explain) -> anyhow::Result<ExitCode> {
    let question = question(arguments)?;
    // What there is to note is about servers and files, of which this needs none.
    let options = Options::load(cli.config.as_deref(), env::vars_os())?;
    let mut reconciler = reconciler(&options)?;
    let explain = reconciler.explain().await?;
    let Some(name) = &arguments.user else {
        let question = question.expect("without a user there is a question");
        let who = explain.who_can(&question, Delivery::default(), usize::MAX);
        print(&if arguments.json { format!("{:#}\n", json!(who)) } else { who_text(&who) })?;
        return Ok(code(!who.may.is_empty()));
    };
    let Some(user) = explain.user(name) else {
        return Err(Usage {
            problem: format!("there is no user {name:?} in {}", options.pocketbase.user_collection),
            hint: Some(match explain.similar(name) {
                Some(it) => format!("did you mean {it:?}?"),
                None => "`pb-nats user list` shows them all; names are case-sensitive".into(),
            }),
        }
        .into());
    };
    let Some(question) = question else {
        let rights = explain.rights(user);
        print(&if arguments.json {
            format!("{:#}\n", json!(rights))
        } else {
            rights_text(&rights)
        })?;
        return Ok(code(rights.login.is_some()));
    };
    let (answer, heard) = if arguments.live {
        let (answer, heard) = ask(arguments, &options, &explain, user, &question).await?;
        (answer, heard)
    } else {
        (explain.answer(user, &question, Delivery::default()), None)
    };
    if arguments.json {
        let mut object = json!(answer);
        object["text"] = json!(answer.to_string());
        if let Some(Heard { server, version, otherwise }) = &heard {
            object["live"] = json!({
                "server": server, "version": version, "agrees": otherwise.is_none(), "otherwise": otherwise,
            });
        }
        print(&format!("{object:#}\n"))?;
    } else {
        print(&text(&answer, heard.as_ref()))?;
    }
    if let Some(heard @ Heard { otherwise: Some(otherwise), .. }) = &heard {
        bail!("{heard} says otherwise than the records: {otherwise}");
    }
    Ok(code(answer.verdict != Verdict::Denied))
}

fn code(allowed: bool) -> ExitCode {
    if allowed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What is asked. `None`: everything about a user.
fn question(arguments: &Explain) -> Result<Option<Question>, Usage> {
    let (action, subject) = match (&arguments.who_can, arguments.action, &arguments.subject) {
        (Some(words), ..) => {
            let verb = Verb::from_str(&words[0], true).map_err(|_| Usage {
                problem: format!("{:?} is neither `pub` nor `sub`", words[0]),
                hint: Some("write it like `pb-nats explain --who-can pub orders.new`".into()),
            })?;
            (verb, &words[1])
        }
        (None, Some(verb), Some(subject)) => (verb, subject),
        (None, ..) if arguments.queue.is_some() => {
            return Err(Usage {
                problem: "`--queue` is a part of a question".into(),
                hint: Some("write it like `pb-nats explain ann sub jobs --queue workers`".into()),
            });
        }
        (None, ..) => return Ok(None),
    };
    let asked = Question::new(action.into(), subject, arguments.queue.as_deref());
    let bad = |error: BadQuestion| Usage {
        problem: match error {
            BadQuestion::Queue(_) | BadQuestion::QueueOfPublisher => format!("{error}"),
            BadQuestion::Subject(_) | BadQuestion::Wildcard => format!("{subject:?}: {error}"),
        },
        hint: Some(error.hint().into()),
    };
    asked.map(Some).map_err(bad)
}

/// Asks a real server the same.
async fn ask(
    arguments: &Explain,
    options: &Options,
    explain: &Explained,
    user: &UserRecord,
    question: &Question,
) -> anyhow::Result<(Answer, Option<Heard>)> {
    let answer = |delivery| explain.answer(user, question, delivery);
    let known = explain.in_nats(user);
    let mut trial = if arguments.password_stdin {
        let Some(trial) = in_service(arguments, options, user).await? else {
            let by_types = |it: &User| it.connects_by(ConnectionType::Standard);
            let otherwise = known.is_some_and(|(_, it)| by_types(it));
            let otherwise = otherwise.then_some("it does not let the user in with this password");
            let heard = Heard {
                server: "in service".into(),
                version: None,
                otherwise: otherwise.map(Into::into),
            };
            return Ok((answer(Delivery::default()), Some(heard)));
        };
        trial
    } else {
        // Who is not in the file cannot be asked about.
        let Some((login, _)) = known else { return Ok((answer(Delivery::default()), None)) };
        Trial::private(&options.nats.server_binary, explain.desired(), login).await?
    };
    let delivery = Delivery::of(trial.version());
    let answer = answer(delivery);
    let otherwise = match (trial.may(question).await?, answer.verdict) {
        _ if known.is_none() => Some("it lets the user in".to_owned()),
        (true, Verdict::Denied) => Some("it allows it".to_owned()),
        (false, Verdict::Allowed | Verdict::Partly) => Some("it denies it".to_owned()),
        (false, Verdict::Denied) => None,
        (true, _) if question.action() == Action::Publish => None,
        (true, _) => {
            let samples = explain.samples(user, question);
            trial.delivered(question, &samples).await?.and_then(|came| {
                let differs = |it: &&Subject| {
                    came.contains(it.as_str()) != explain.delivers(user, question, it, delivery)
                };
                let sample = samples.iter().find(differs)?;
                let verb = if came.contains(sample.as_str()) { "delivers" } else { "holds back" };
                Some(format!("it {verb} {:?}", sample.as_str()))
            })
        }
    };
    let (server, version) = (trial.server().to_owned(), Some(trial.version().to_owned()));
    Ok((answer, Some(Heard { server, version, otherwise })))
}

/// The server in service, as this user. `None`: it does not let them in.
async fn in_service(
    arguments: &Explain,
    options: &Options,
    user: &UserRecord,
) -> anyhow::Result<Option<Trial>> {
    let refused =
        |problem: &str, hint: &str| Usage { problem: problem.into(), hint: Some(hint.into()) };
    if !user.nkey.is_empty() {
        let hint = "leave `--password-stdin` out, and a private nats-server is asked";
        return Err(
            refused("the user logs in with an nkey, so no password can prove it", hint).into()
        );
    }
    let server = arguments.server.as_ref().or(options.nats.system_url.as_ref());
    let hint = "name it: `--server nats://127.0.0.1:4222`";
    let server = server.ok_or_else(|| refused("nothing says which server is in service", hint))?;
    let password = password_from_stdin(&format!("Password of {:?} in NATS", user.username))?;
    Ok(Trial::in_service(server, &user.username, &password).await?)
}

fn text(answer: &Answer, heard: Option<&Heard>) -> String {
    let mut text = format!("{answer}\n");
    for reason in &answer.because {
        let _ = writeln!(text, "  {reason}");
    }
    for change in &answer.change {
        let _ = writeln!(text, "  to change it: {change}");
    }
    for note in &answer.notes {
        let _ = writeln!(text, "  note: {note}");
    }
    if let Some(heard @ Heard { otherwise: None, .. }) = heard {
        let _ = writeln!(text, "  live: {heard} says the same");
    }
    text
}

fn rights_text(rights: &Rights) -> String {
    let Rights { user, login, connection_types, .. } = rights;
    let Some(login) = login else {
        let mut text = format!("{:?} is not in NATS\n", user.name);
        for reason in &rights.because {
            let _ = writeln!(text, "  {reason}");
        }
        for change in &rights.change {
            let _ = writeln!(text, "  to change it: {change}");
        }
        return text;
    };
    let article = if *login == "nkey" { "an" } else { "a" };
    let mut text = format!("{:?} logs in with {article} {login}", user.name);
    if !connection_types.is_empty() {
        let _ = write!(text, ", by {} only", connection_types.join(" or "));
    }
    text.push('\n');
    for (action, reasons) in [("publish", &rights.publish), ("subscribe", &rights.subscribe)] {
        let _ = writeln!(text, "{action}");
        if !reasons.iter().any(|it| matches!(it, Reason::Allowed { .. })) {
            let _ = writeln!(text, "  nothing");
        }
        for reason in reasons {
            let _ = match reason {
                Reason::Allowed { line } => writeln!(text, "  + {line}"),
                Reason::Denied { line } => writeln!(text, "  - {line}"),
                other => writeln!(text, "  - {other}"),
            };
        }
    }
    if let Some(replies) = &rights.replies {
        let _ = writeln!(text, "replies\n  + {replies}");
    }
    for finding in &rights.findings {
        let _ = writeln!(text, "finding: {finding}");
    }
    text
}

fn who_text(who: &WhoCan) -> String {
    let mut text = String::new();
    for answer in &who.may {
        let partly = if answer.verdict == Verdict::Partly { ", but not all of it" } else { "" };
        let _ = writeln!(text, "{:?}{partly}", answer.user.name);
        for reason in &answer.because {
            let _ = writeln!(text, "  {reason}");
        }
    }
    let (may, all) = (who.may.len(), who.may.len() + who.may_not);
    let _ = writeln!(text, "{may} of {} may {}", counted(all, "user"), who.question);
    text
}

impl fmt::Display for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Some(version) => write!(f, "nats-server {version} ({})", self.server),
            None => write!(f, "nats-server ({})", self.server),
        }
    }
}
