//! Everything that can be wrong, one line each, with the way to mend it.

mod files;
mod records;
mod servers;
mod source;

use std::fmt;

use serde::Serialize;

use crate::{
    causes::chain,
    engine::EngineError,
    engine::config::AuthFile,
    engine::config::Servers,
    options::Options,
    reconcile::{ReconcileError, Reconciler},
    source::PocketBase,
    state::Adopt,
};

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// What it is about, for scripts: a topic, a dot, and what was found. It stays the same when the
    /// words change.
    pub code: String,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub text: String,
    /// How to mend it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It works, but someone should look.
    Doubtful,
    /// It does not work.
    Wrong,
}

/// What lines are about, in the order of the lines.
const TOPICS: [&str; 11] = [
    "settings",
    "source",
    "token",
    "rules",
    "schema",
    "records",
    "permissions",
    "main_config",
    "auth_file",
    "servers",
    "reload",
];

/// Looks at all of it. Writes nothing, and tells no server to reload.
pub async fn check(options: &Options) -> Vec<Line> {
    let mut lines = Vec::new();
    settings(options, &mut lines);
    let mut file = AuthFile::new(options);
    let main_config = file.main_config_now();
    let plan = match open(options) {
        Ok(mut reconciler) => {
            let plan = reconciler.plan(Adopt::No).await;
            source::look(options, reconciler.source(), &plan, &mut lines).await;
            Some(plan)
        }
        Err(line) => {
            lines.push(line);
            None
        }
    };
    let plan = match &plan {
        Some(Ok(plan)) => Some(plan),
        // What the source has to do with it has been told.
        Some(Err(ReconcileError::Snapshot(_))) | None => None,
        Some(Err(error)) => {
            // And so will the main config be.
            if !matches!(error, ReconcileError::Engine(EngineError::MainConfig(_))) {
                lines.push(Line::wrong("auth_file.unusable", chain(error), error.hint()));
            }
            None
        }
    };
    if let Some(plan) = plan {
        records::look(options, plan, &mut lines);
    }
    let main_config = files::main_config(options, &mut file, main_config, plan, &mut lines).await;
    files::auth_file(options, &file, main_config.as_ref(), plan, &mut lines);
    servers::look(options, &mut file, main_config.as_ref(), plan, &mut lines).await;
    lines.sort_by_key(|it| TOPICS.iter().position(|topic| it.is_about(topic)));
    lines
}

/// Makes every server reload, and tells how that went.
///
/// While it reloads, a server lets nobody in; [`check`] has said for how long.
pub async fn try_reload(options: &Options) -> Vec<Line> {
    servers::try_reload(options).await
}

/// How many lines are wrong, to be looked at, and fine, in words.
pub fn summary(lines: &[Line]) -> String {
    let count = |verdict| lines.iter().filter(|it| it.verdict == verdict).count();
    let [wrong, doubtful, good] = [Verdict::Wrong, Verdict::Doubtful, Verdict::Good].map(count);
    format!("{wrong} wrong, {doubtful} to look at, {good} fine")
}

fn settings(options: &Options, lines: &mut Vec<Line>) {
    lines.push(Line::good("settings.read", "read and understood"));
    for note in options.notes() {
        let told_elsewhere = match note.code {
            "no_reload" | "everything_by_default" => true,
            "mode" => options.auth_file.path.exists(),
            _ => false,
        };
        if !told_elsewhere {
            lines.push(Line::doubtful(&format!("settings.{}", note.code), note.text, None));
        }
    }
    files::secrets(options, lines);
}

fn open(options: &Options) -> Result<Reconciler<PocketBase>, Line> {
    let source = PocketBase::open(&options.pocketbase)
        .map_err(|it| Line::wrong(source::code(&it), chain(&it), it.hint()))?;
    Reconciler::new(source, options)
        .map_err(|it| Line::wrong("settings.nats", chain(&it), it.hint()))
}

fn open_servers(options: &Options) -> Result<Servers, Line> {
    Servers::new(&options.nats, &options.folder)
        .map_err(|it| Line::wrong("settings.nats", chain(&it), it.hint()))
}

impl Line {
    fn good(code: &str, text: impl Into<String>) -> Line {
        Line { code: code.to_owned(), verdict: Verdict::Good, text: text.into(), hint: None }
    }

    fn doubtful<'a>(code: &str, text: impl Into<String>, hint: impl Into<Option<&'a str>>) -> Line {
        let hint = hint.into().map(str::to_owned);
        Line { code: code.to_owned(), verdict: Verdict::Doubtful, text: text.into(), hint }
    }

    fn wrong(code: &str, text: impl Into<String>, hint: Option<String>) -> Line {
        Line { code: code.to_owned(), verdict: Verdict::Wrong, text: text.into(), hint }
    }

    fn is_about(&self, topic: &str) -> bool {
        self.code.split('.').next() == Some(topic)
    }
}

/// A line, and its hint below it: sign, topic and text each in a column of their own.
impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.verdict {
            Verdict::Good => '✓',
            Verdict::Doubtful => '!',
            Verdict::Wrong => '✗',
        };
        let topic = self.code.split('.').next().unwrap_or_default().replace('_', " ");
        write!(f, "{sign} {topic:<11}  {}", self.text.replace('\n', "\n               "))?;
        self.hint.as_ref().map_or(Ok(()), |it| write!(f, "\n               hint: {it}"))
    }
}
