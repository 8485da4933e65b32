//! What a record grants: its lists of subjects, and the placeholders in them.

use std::{collections::BTreeSet, time::Duration};

use serde_json::Value;

use super::{array, quoted, shown};
use crate::auth::{
    Effect, Finding, Permissions, Policy, Problem, Responses, RoleRecord, Rules, Subjects,
    subject::{self, BadSubject, Subject, Values},
};

/// More answers, or seconds to answer in, than this are a mistake. A year.
const MAX_RESPONSES: f64 = 31_536_000.0;

/// Permissions of a record, judged but for what depends on the user who has them.
#[derive(Clone, Debug, Default)]
pub(super) struct Granted {
    publish: Entries,
    subscribe: Entries,
    responses: Option<Responses>,
}

/// The entries of one direction.
#[derive(Clone, Debug, Default)]
struct Entries {
    allow: BTreeSet<Subject>,
    deny: BTreeSet<Subject>,
    allow_templates: Vec<String>,
    deny_templates: Vec<String>,
}

/// How an entry of one direction is read.
type Parse = fn(&str) -> Result<Subject, BadSubject>;

/// Makes a finding about the record at hand: field, value, problem, effect.
pub(super) type About<'a> = dyn Fn(&str, &str, Problem, Effect) -> Finding + 'a;

impl Granted {
    pub(super) fn new(
        permissions: &Permissions,
        about: &About<'_>,
        findings: &mut Vec<Finding>,
    ) -> Granted {
        let mut entries = |parse: Parse, fields: [&str; 2], allow: &Value, deny: &Value| {
            let [allow_field, deny_field] = fields;
            let mut entries = Entries::default();
            let (plain, templates) = (&mut entries.allow, &mut entries.allow_templates);
            read_list(parse, allow, plain, templates, |value, problem| {
                findings.push(about(allow_field, value, problem, Effect::NotGranted));
            });
            let (plain, templates) = (&mut entries.deny, &mut entries.deny_templates);
            let honoured = read_list(parse, deny, plain, templates, |value, problem| {
                findings.push(about(deny_field, value, problem, Effect::DirectionDenied));
            });
            if !honoured {
                entries.deny.insert(Subject::everything());
            }
            entries
        };
        let Permissions { publish, subscribe, publish_deny, subscribe_deny } = permissions;
        Granted {
            publish: entries(
                Subject::parse,
                ["publish_permissions", "publish_deny_permissions"],
                publish,
                publish_deny,
            ),
            subscribe: entries(
                Subject::parse_subscription,
                ["subscribe_permissions", "subscribe_deny_permissions"],
                subscribe,
                subscribe_deny,
            ),
            responses: None,
        }
    }

    pub(super) fn by_role(
        role: &RoleRecord,
        policy: &Policy,
        findings: &mut Vec<Finding>,
    ) -> Granted {
        let about = |field: &str, value: &str, problem, effect| Finding {
            collection: policy.role_collection.clone(),
            id: role.id.clone(),
            name: role.name.clone(),
            field: field.to_owned(),
            value: value.to_owned(),
            problem,
            effect,
        };
        let granted = Granted::new(&role.permissions, &about, findings);
        granted.report_wider(&about, findings);
        let responses = responses(role).unwrap_or_else(|(field, value, problem)| {
            findings.push(about(field, &shown(value), problem, Effect::NotGranted));
            None
        });
        Granted { responses, ..granted }
    }

    pub(super) fn has_templates(&self) -> bool {
        let some = |it: &Entries| !it.allow_templates.is_empty() || !it.deny_templates.is_empty();
        some(&self.publish) || some(&self.subscribe)
    }

    pub(super) fn is_empty(&self) -> bool {
        let none = |it: &Entries| it.allow.is_empty() && it.deny.is_empty();
        none(&self.publish) && none(&self.subscribe) && !self.has_templates()
    }

    /// As rules for everyone who has them. `None` if they differ from user to user.
    pub(super) fn as_they_are(&self) -> Option<Rules> {
        if self.has_templates() {
            return None;
        }
        let Entries { allow, deny, .. } = &self.subscribe;
        Some(Rules {
            publish: Subjects::publishing(self.publish.allow.clone(), self.publish.deny.clone()),
            subscribe: Subjects::subscribing(allow.clone(), deny.clone()).0,
            responses: self.responses,
        })
    }

    /// Reports what nats-server will not keep apart, for rules that are the same for everyone.
    pub(super) fn report_wider(&self, about: &About<'_>, findings: &mut Vec<Finding>) {
        if !self.has_templates() {
            let Entries { allow, deny, .. } = &self.subscribe;
            let (_, wider) = Subjects::subscribing(allow.clone(), deny.clone());
            findings.extend(wider.iter().map(|it| wider_than_said(it, about)));
        }
    }
}

fn wider_than_said(subject: &Subject, about: &About<'_>) -> Finding {
    let value = quoted(subject.as_str());
    about("subscribe_permissions", &value, Problem::Wider, Effect::Kept)
}

/// Reads one list of subjects. `false` if any of it could not be honoured.
fn read_list(
    parse: Parse,
    value: &Value,
    plain: &mut BTreeSet<Subject>,
    templates: &mut Vec<String>,
    mut finding: impl FnMut(&str, Problem),
) -> bool {
    let Ok(entries) = array(value) else {
        finding(&shown(value), Problem::NotArray);
        return false;
    };
    let mut honoured = true;
    for entry in entries.iter() {
        let read = match entry.as_str() {
            None => Err(Problem::NotText),
            Some(text) if subject::is_template(text) => {
                // Tried once for the role, so that a mistake in it is one finding, not one a user.
                subject::check_template(text, parse)
                    .map(|()| templates.push(text.to_owned()))
                    .map_err(Problem::Subject)
            }
            Some(text) => match parse(text) {
                Ok(subject) => {
                    plain.insert(subject);
                    Ok(())
                }
                Err(why) => Err(Problem::Subject(why)),
            },
        };
        if let Err(problem) = read {
            finding(&shown(entry), problem);
            honoured = false;
        }
    }
    honoured
}

/// The rules of one user, as they come together.
#[derive(Default)]
pub(super) struct Filled {
    publish: (BTreeSet<Subject>, BTreeSet<Subject>),
    subscribe: (BTreeSet<Subject>, BTreeSet<Subject>),
    responses: Option<Responses>,
}

impl Filled {
    pub(super) fn add(
        &mut self,
        granted: &Granted,
        values: Values<'_>,
        about: &About<'_>,
        findings: &mut Vec<Finding>,
    ) {
        let mut add = |to: &mut (BTreeSet<_>, BTreeSet<_>),
                       from: &Entries,
                       parse: Parse,
                       direction| {
            let (allow, deny) = to;
            allow.extend(from.allow.iter().cloned());
            deny.extend(from.deny.iter().cloned());
            let mut fill = |template: &str, list: &str, effect| {
                let filled = subject::fill(template, values).and_then(|filled| parse(&filled));
                let refused = |why| {
                    let field = format!("{direction}_{list}");
                    findings.push(about(&field, &quoted(template), Problem::Subject(why), effect));
                };
                filled.map_err(refused).ok()
            };
            for template in &from.allow_templates {
                allow.extend(fill(template, "permissions", Effect::NotGranted));
            }
            for template in &from.deny_templates {
                let filled = fill(template, "deny_permissions", Effect::DirectionDenied);
                deny.insert(filled.unwrap_or_else(Subject::everything));
            }
        };
        add(&mut self.publish, &granted.publish, Subject::parse, "publish");
        let parse = Subject::parse_subscription;
        add(&mut self.subscribe, &granted.subscribe, parse, "subscribe");
        self.responses = match (self.responses, granted.responses) {
            (Some(one), Some(other)) => Some(one.wider(other)),
            (one, other) => one.or(other),
        };
    }

    pub(super) fn into_rules(self, about: &About<'_>, findings: &mut Vec<Finding>) -> Rules {
        let (subscribe, wider) = Subjects::subscribing(self.subscribe.0, self.subscribe.1);
        findings.extend(wider.iter().map(|it| wider_than_said(it, about)));
        Rules {
            publish: Subjects::publishing(self.publish.0, self.publish.1),
            subscribe,
            responses: self.responses,
        }
    }
}

/// Whether and how the role may answer requests, or the field that says something else.
pub(in crate::auth) fn responses(
    role: &RoleRecord,
) -> Result<Option<Responses>, (&'static str, &Value, Problem)> {
    let allowed = match &role.allow_response {
        Value::Null => false,
        Value::Bool(it) => *it,
        Value::Number(it) if it.as_f64() == Some(0.0) => false,
        Value::Number(it) if it.as_f64() == Some(1.0) => true,
        other => return Err(("allow_response", other, Problem::NotBool)),
    };
    let number = |field, value| match value {
        &Value::Null => Ok(0.0),
        value => match value.as_f64() {
            Some(it) if (0.0..=MAX_RESPONSES).contains(&it) => Ok(it),
            _ => Err((field, value, Problem::BadNumber)),
        },
    };
    let max = number("allow_response_max", &role.allow_response_max)?;
    let ttl = number("allow_response_ttl", &role.allow_response_ttl)?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in 0..=a year")]
    let responses = Responses {
        max: (max as u32).max(1),
        ttl: Duration::from_millis((ttl * 1000.0).round() as u64),
    };
    Ok(allowed.then_some(responses))
}
