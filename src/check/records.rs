//! The records: what they amount to, what of them is not honoured, and what is rarely meant.

use super::Line;
use crate::{
    auth::{Advice, counted},
    options::{Options, PermissionOptions},
    reconcile::Plan,
};

pub(super) fn look(options: &Options, plan: &Plan, lines: &mut Vec<Line>) {
    let users = counted(plan.desired.users.len(), "user");
    lines.push(Line::good("records.served", format!("by what they say, {users} may log in")));
    for it in &plan.findings {
        let value = if it.value.is_empty() { String::new() } else { format!(" {}", it.value) };
        let slash = if it.id.is_empty() { "" } else { "/" };
        let text = format!(
            "{}{slash}{} {:?}: {}{value}: {}; {}",
            it.collection,
            it.id,
            it.name,
            it.field,
            it.problem,
            it.effect.as_str()
        );
        let code = format!("records.{}", it.problem.kind());
        lines.push(Line::doubtful(&code, text, it.problem.mend()));
    }
    lines.push(defaults(&options.permissions));
    // A role that is kept for later does nothing: it is not even in the auth file.
    let (unused, remarks): (Vec<_>, Vec<_>) =
        plan.remarks.iter().partition(|it| it.advice == Advice::Unused);
    for it in unused {
        lines.push(Line::good("permissions.unused", it.to_string()));
    }
    if remarks.is_empty() {
        lines.push(Line::good("permissions.fine", "nothing that is rarely meant"));
    }
    for it in remarks {
        let code = format!("permissions.{}", it.advice.kind());
        lines.push(Line::doubtful(&code, it.to_string(), it.advice.mend()));
    }
}

/// What it means that a user has no role.
fn defaults(settings: &PermissionOptions) -> Line {
    let code = "permissions.defaults";
    let PermissionOptions { default_publish: publish, default_subscribe: subscribe } = settings;
    if publish.is_empty() && subscribe.is_empty() {
        return Line::good(code, "users without a role may do nothing");
    }
    let listed = |subjects: &[String]| match subjects {
        [] => "nothing".to_owned(),
        subjects => subjects.join(", "),
    };
    let mut text = format!(
        "users without a role may publish to {} and subscribe to {}",
        listed(publish),
        listed(subscribe)
    );
    // Nobody may have chosen what is built in.
    if *settings == PermissionOptions::default() {
        text += ": so it is where the settings' [permissions] say nothing; `default_publish = []` and \
                 `default_subscribe = []` give them nothing";
    }
    Line::good(code, text)
}
