//! The records: what they amount to, what of them is not honoured, and what is rarely meant.

use super::Line;
use crate::{auth::counted, reconcile::Plan};

pub(super) fn look(plan: &Plan, lines: &mut Vec<Line>) {
    let users = counted(plan.desired.users.len(), "user");
    lines.push(Line::good("records.served", format!("by what they say, {users} may log in")));
    for it in &plan.findings {
        let value = if it.value.is_empty() { String::new() } else { format!(" {}", it.value) };
        let text = format!(
            "{}/{} {:?}: {}{value}: {}; {}",
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
    if plan.remarks.is_empty() {
        lines.push(Line::good("permissions.fine", "nothing that is rarely meant"));
    }
    for it in &plan.remarks {
        let code = format!("permissions.{}", it.advice.kind());
        lines.push(Line::doubtful(&code, it.to_string(), it.advice.mend()));
    }
}
