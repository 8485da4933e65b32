//! Who may do what, for whoever asks. The records are read when somebody does, and apart from the pass.

use std::{mem, sync::Arc, time::Duration};

use axum::{
    extract::{Query, State, rejection::QueryRejection},
    http::{StatusCode, Uri, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{sync::Mutex, task, time};

use crate::{
    auth::{
        Action, Delivery, Explain, Question, counted,
        explain::{BadQuestion, WhoCan},
    },
    causes::chain,
    options::Options,
    reconcile::Reconciler,
    source::PocketBase,
};

/// So long the records that were read serve for further questions. They may take much memory, and
/// are then let go.
const KEPT: Duration = Duration::from_secs(5);
/// Of those who may do something, so many are told.
const MOST_USERS: usize = 200;
/// Of names that one may mean, so many.
const MOST_NAMES: usize = 20;
/// So many bytes a question may have.
const LONGEST: usize = 1024;

/// Where questions are answered, one at a time.
#[derive(Clone, Debug)]
pub(super) struct Desk {
    reader: Arc<Mutex<Reader>>,
    records: Arc<Mutex<Option<Records>>>,
}

/// How the records are read: by these options, in the session that the passes have.
#[derive(Debug)]
struct Reader {
    options: Options,
    source: PocketBase,
}

/// What the source said, and when.
#[derive(Debug)]
struct Records {
    read: Timestamp,
    explain: Result<Explain, Problem>,
}

/// Why there is no answer.
#[derive(Clone, Debug, Serialize)]
struct Problem {
    #[serde(skip)]
    status: StatusCode,
    why: String,
    hint: Option<String>,
}

/// A question; without an action and a subject, one for everything that a user may do; without a
/// user, one for all who may.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    user: Option<String>,
    action: Option<Action>,
    subject: Option<String>,
    queue: Option<String>,
}

/// Whose name begins or goes on like this?
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Like {
    #[serde(default)]
    like: String,
}

pub(super) async fn explain(
    State(desk): State<Desk>,
    uri: Uri,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Response {
    let told = async {
        let asked = understood(&uri, asked)?;
        let question = question(&asked)?;
        desk.ask(move |it| answer(it, asked.user.as_deref(), question.as_ref())).await
    };
    response(told.await)
}

pub(super) async fn users(
    State(desk): State<Desk>,
    uri: Uri,
    asked: Result<Query<Like>, QueryRejection>,
) -> Response {
    let told = async {
        let Like { like } = understood(&uri, asked)?;
        desk.ask(move |it| Ok(json!({ "names": it.names(&like, MOST_NAMES) }))).await
    };
    response(told.await)
}

impl Desk {
    pub(super) fn new(options: &Options, source: &PocketBase) -> Desk {
        let reader = Reader { options: options.clone(), source: source.beside() };
        Desk { reader: Arc::new(Mutex::new(reader)), records: Arc::default() }
    }

    /// Reads by these options and in this session from now on, and returns the former options.
    pub(super) async fn change(&self, options: &Options, source: &PocketBase) -> Options {
        let mut reader = self.reader.lock().await;
        reader.source = source.beside();
        mem::replace(&mut reader.options, options.clone())
    }

    /// The answer, and as of when it is.
    async fn ask(
        &self,
        answer: impl FnOnce(&Explain) -> Result<Value, Problem> + Send + 'static,
    ) -> Result<Value, Problem> {
        let desk = self.clone();
        let mut records = desk.records.clone().lock_owned().await;
        // It goes on without whoever asked: nobody has the records read again and again by leaving.
        let answered = task::spawn(async move {
            if records.is_none() {
                let (options, source) = {
                    let reader = desk.reader.lock().await;
                    (reader.options.clone(), reader.source.beside())
                };
                let (read, explain) = (Timestamp::now(), look(source, &options).await);
                *records = Some(Records { read, explain });
                task::spawn(async move {
                    time::sleep(KEPT).await;
                    *desk.records.lock().await = None;
                });
            }
            let told = move || {
                let Records { read, explain } = records.as_ref().expect("they have been read");
                let mut told = answer(explain.as_ref().map_err(Problem::clone)?)?;
                told["read"] = json!(read);
                Ok(told)
            };
            task::spawn_blocking(told).await.expect("an answer does not panic")
        });
        answered.await.expect("nobody ends it")
    }
}

/// Reads the records.
async fn look(source: PocketBase, options: &Options) -> Result<Explain, Problem> {
    let mut reconciler =
        Reconciler::new(source, options).map_err(|it| Problem::unread(&it, None))?;
    reconciler.explain().await.map_err(|it| Problem::unread(&it, it.hint()))
}

fn answer(
    explain: &Explain,
    user: Option<&str>,
    question: Option<&Question>,
) -> Result<Value, Problem> {
    let delivery = Delivery::default();
    let user = match (user, question) {
        (Some(user), _) => explain.user(user).ok_or_else(|| Problem {
            status: StatusCode::NOT_FOUND,
            why: format!("there is no user {user:?}"),
            hint: explain.similar(user).map(|it| format!("did you mean {it:?}?")),
        })?,
        (None, Some(question)) => {
            let who = explain.who_can(question, delivery, MOST_USERS);
            let WhoCan { may, more, may_not, .. } = &who;
            let (may, all) = (may.len() + more, may.len() + more + may_not);
            let mut told = json!(who);
            told["text"] = json!(format!("{may} of {} may {question}", counted(all, "user")));
            return Ok(told);
        }
        (None, None) => unreachable!("a question has a user or a subject"),
    };
    let Some(question) = question else { return Ok(json!(explain.rights(user))) };
    let answer = explain.answer(user, question, delivery);
    let mut told = json!(answer);
    told["text"] = json!(answer.to_string());
    Ok(told)
}

/// What is asked. `None`: everything about a user.
fn question(asked: &Asked) -> Result<Option<Question>, Problem> {
    match asked {
        Asked { action: Some(action), subject: Some(subject), queue, .. } => {
            let question = Question::new(*action, subject, queue.as_deref());
            let refused = |it: BadQuestion| Problem::bad(&it.to_string(), it.hint());
            question.map(Some).map_err(refused)
        }
        Asked { user: Some(_), action: None, subject: None, queue: None } => Ok(None),
        Asked { .. } => Err(Problem::bad("a part of the question is missing", HOW)),
    }
}

/// How one asks.
const HOW: &str = "ask like `/explain?user=ann`, `/explain?user=ann&action=pub&subject=orders.new` \
                   or, for all who may, without a user";

/// The words of a question, if they are such.
fn understood<T>(uri: &Uri, words: Result<Query<T>, QueryRejection>) -> Result<T, Problem> {
    if uri.query().is_some_and(|it| it.len() > LONGEST) {
        let status = StatusCode::URI_TOO_LONG;
        let why = format!("the question has more than {LONGEST} bytes");
        return Err(Problem { status, why, hint: None });
    }
    let Query(words) = words.map_err(|it| Problem::bad(&it.body_text(), HOW))?;
    Ok(words)
}

impl Problem {
    fn bad(why: &str, hint: &str) -> Problem {
        let (why, hint) = (why.to_owned(), Some(hint.to_owned()));
        Problem { status: StatusCode::BAD_REQUEST, why, hint }
    }

    fn unread(error: &(dyn std::error::Error + 'static), hint: Option<String>) -> Problem {
        Problem { status: StatusCode::SERVICE_UNAVAILABLE, why: chain(error), hint }
    }
}

fn response(told: Result<Value, Problem>) -> Response {
    let (status, json) = match told {
        Ok(told) => (StatusCode::OK, told),
        Err(problem) => (problem.status, json!(problem)),
    };
    (status, [(CONTENT_TYPE, "application/json")], format!("{json:#}\n")).into_response()
}
