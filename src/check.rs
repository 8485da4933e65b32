//! Everything that can be wrong, one line each, with the way to mend it.

use std::fmt;

use serde::Serialize;

use crate::{
    apply::{Adopt, AuthFile, Placement},
    auth::counted,
    options::Options,
    reconcile::{Plan, Reconciler},
    server::{Servers, State},
    source::PocketBase,
    status::chain,
};

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// How it is.
    pub verdict: Verdict,
    /// What was looked at, and what was found.
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

/// Looks at all of it. Writes nothing, and tells no server to reload.
pub async fn check(options: &Options) -> Vec<Line> {
    let mut lines = vec![Line::good("settings: read and understood")];
    lines.extend(options.notes().into_iter().map(|it| Line::doubtful(it, None)));
    lines.push(Line::good(
        "users: in nats-server's global account; its other accounts are not touched",
    ));
    main_config(options, &mut lines).await;
    servers(options, &mut lines).await;
    match plan(options).await {
        Ok(plan) => records(&plan, &mut lines),
        Err(line) => lines.push(line),
    }
    lines
}

/// What a pass would do, or why there would be none.
async fn plan(options: &Options) -> Result<Plan, Line> {
    let source =
        PocketBase::open(&options.pocketbase).map_err(|it| Line::wrong(chain(&it), it.hint()))?;
    let mut reconciler =
        Reconciler::new(source, options).map_err(|it| Line::wrong(chain(&it), it.hint()))?;
    reconciler.plan(Adopt::No).await.map_err(|it| Line::wrong(chain(&it), it.hint()))
}

/// Whether servers can be told to reload, and asked what they run.
async fn servers(options: &Options, lines: &mut Vec<Line>) {
    let mut servers = match Servers::new(&options.nats, &options.folder) {
        Ok(servers) => servers,
        Err(error) => return lines.push(Line::wrong(chain(&error), error.hint())),
    };
    for way in servers.rehearse() {
        lines.push(match way {
            Ok(way) => Line::good(&format!("reload: {way}")),
            Err(error) => Line::wrong(format!("reload: {}", chain(&error)), error.hint()),
        });
    }
    let answers = servers.running().await;
    if answers.is_empty() {
        let text = "servers: nothing to ask what they run, so nothing will be proven";
        let hint = "set `monitor_url` or `system_url` in [nats]";
        lines.push(Line::doubtful(text.into(), Some(hint.into())));
    }
    for answer in answers {
        lines.push(match answer {
            Ok(it) => Line::good(&format!("servers: {} answers, version {}", it.name, it.version)),
            Err(error) => Line::wrong(format!("servers: {}", chain(&error)), error.hint()),
        });
    }
}

/// Whether nats-server takes its users from the auth file.
async fn main_config(options: &Options, lines: &mut Vec<Line>) {
    let mut file = AuthFile::new(options);
    match file.judgement().await {
        None => {
            let program = options.nats.server_binary.display();
            let text = format!("`{program}` cannot be run, so nothing judges a config beforehand");
            let hint = "set `nats.server_binary`, if nats-server is on this machine";
            lines.push(Line::doubtful(text, Some(hint.into())));
        }
        Some(Err(said)) => {
            let text = format!("`nats-server -t` has something against the main config: {said}");
            let hint = "mend it, else nats-server may neither reload nor start";
            lines.push(Line::doubtful(text, Some(hint.into())));
        }
        Some(Ok(())) => (),
    }
    let config = match file.main_config() {
        Ok(Some(config)) => config,
        Ok(None) => {
            let text = "`nats.config_file` is not set, so nobody looks whether nats-server includes the auth file";
            lines.push(Line::doubtful(text.into(), Some("set it to the main config".into())));
            return;
        }
        Err(error) => {
            let hint = error.hint().map(str::to_owned);
            return lines.push(Line::wrong(chain(&error), hint));
        }
    };
    let placement = config.placement();
    let text = placement.to_string();
    let in_force = placement == Placement::InForce;
    lines.push(match placement {
        Placement::InForce => Line::good(&text),
        Placement::Unknown(_) => Line::doubtful(text, None),
        Placement::NotIncluded | Placement::Overridden { .. } => {
            Line::wrong(text, Some(Placement::HINT.into()))
        }
    });
    let vanishing = config.replaced_users();
    if in_force && !vanishing.is_empty() {
        let names = vanishing.join(", ");
        let text =
            format!("users in the main config's own `authorization` block have no effect: {names}");
        lines.push(Line::doubtful(text, Some("make records for them in PocketBase".into())));
    }
}

/// What the records amount to, and how far NATS is from it.
fn records(plan: &Plan, lines: &mut Vec<Line>) {
    let (users, roles) = (plan.desired.users.len(), plan.desired.roles.len());
    let (users, roles) = (counted(users, "user"), counted(roles, "role"));
    lines.push(Line::good(&format!("records: {users}, {roles} in use")));
    for finding in &plan.findings {
        lines.push(Line::doubtful(finding.to_string(), None));
    }
    if let Some(refused) = &plan.refused {
        lines.push(Line::wrong(format!("held back: {refused}"), Some(refused.hint().into())));
    } else if plan.write {
        let text = format!("the auth file is behind: {}", plan.changes);
        lines.push(Line::doubtful(text, Some("`pb-nats once`, or `pb-nats run` and wait".into())));
    } else {
        lines.push(Line::good("the auth file says what the records say"));
    }
    for server in &plan.servers {
        lines.push(match &server.state {
            State::InStep { note: None, .. } => Line::good(&server.to_string()),
            State::InStep { note: Some(_), .. } | State::Unverified { .. } => {
                Line::doubtful(server.to_string(), None)
            }
            State::NotInStep { why } => Line::wrong(server.to_string(), why.hint()),
        });
    }
}

impl Line {
    fn good(text: &str) -> Line {
        Line { verdict: Verdict::Good, text: text.to_owned(), hint: None }
    }

    fn doubtful(text: String, hint: Option<String>) -> Line {
        Line { verdict: Verdict::Doubtful, text, hint }
    }

    fn wrong(text: String, hint: Option<String>) -> Line {
        Line { verdict: Verdict::Wrong, text, hint }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.verdict {
            Verdict::Good => '✓',
            Verdict::Doubtful => '!',
            Verdict::Wrong => '✗',
        };
        write!(f, "{sign} {}", self.text)?;
        self.hint.as_ref().map_or(Ok(()), |it| write!(f, "\n  hint: {it}"))
    }
}
