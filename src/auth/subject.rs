use std::fmt;

/// A NATS subject that nats-server and we read alike, with a queue group behind it at times.
///
/// Wildcards are whole tokens. The text is legal, since only [`Subject::parse`] and
/// [`Subject::parse_subscription`] make one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject(Box<str>);

/// Why a text is not a [`Subject`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadSubject {
    /// There is nothing.
    Empty,
    /// Nothing between two dots, before the first, or behind the last.
    EmptyToken,
    /// White space, which no subject has.
    Space,
    /// A control character.
    Control,
    /// `>` stands before the last token.
    NotLast,
    /// `*` or `>` is part of a token, where nats-server would take it literally.
    PartOfToken,
    /// A queue group behind a subject that may be published to.
    Queue,
    /// `{{…}}` with something in it that is not known here.
    UnknownPlaceholder,
    /// The user's own value has a character that would change the shape of the subject.
    UnsafeValue,
    /// Filling in would make the first token `$…` or `_INBOX`.
    SystemByValue,
}

impl Subject {
    /// Reads a subject that may be published to.
    pub fn parse(text: &str) -> Result<Subject, BadSubject> {
        if let Some((subject, queue)) = text.split_once(' ')
            && check(subject).is_ok()
            && check(queue).is_ok()
        {
            return Err(BadSubject::Queue);
        }
        check(text)?;
        Ok(Subject(text.into()))
    }

    /// Reads a subject that may be subscribed to: `subject`, or `subject queue`.
    pub fn parse_subscription(text: &str) -> Result<Subject, BadSubject> {
        if let Some((subject, queue)) = text.split_once(' ') {
            check(subject)?;
            check(queue)?;
        } else {
            check(text)?;
        }
        Ok(Subject(text.into()))
    }

    /// `>`: what every subject matches.
    pub fn everything() -> Subject {
        Subject(">".into())
    }

    /// Whether this is `>` for every subscriber, in a queue group or not.
    pub fn is_everything(&self) -> bool {
        &*self.0 == ">"
    }

    /// The subject alone, without a queue group.
    pub fn subject(&self) -> &str {
        self.0.split(' ').next().unwrap_or_default()
    }

    /// The queue group behind it.
    pub fn queue(&self) -> Option<&str> {
        self.0.split_once(' ').map(|(_, queue)| queue)
    }

    /// Whether more than one subject matches this.
    pub fn has_wildcard(&self) -> bool {
        self.subject().split('.').any(|it| matches!(it, "*" | ">"))
    }

    /// What a subscription to `a.>` gets beyond an allowed `a.*`: `a.*.>`. `None` if the last token
    /// is not `*`.
    ///
    /// nats-server asks of the subscription's text whether it matches what is allowed, and there its
    /// `>` is a token like any other. What is denied is also held against each message.
    pub(super) fn beyond(&self) -> Option<Subject> {
        let subject = self.subject();
        (subject == "*" || subject.ends_with(".*")).then(|| Subject(format!("{subject}.>").into()))
    }

    /// Whether it is for a queue group, and `group`, which may have wildcards, is or holds that.
    pub(super) fn is_for(&self, group: &str) -> bool {
        self.queue().is_some_and(|it| covers(group, it))
    }

    /// The same subject for every queue group. Without one it is for those that are in none, too.
    pub(super) fn for_every_group(&self) -> Subject {
        Subject(format!("{} >", self.subject()).into())
    }

    /// A subject, without wildcards, that matches both.
    pub(super) fn meeting(&self, other: &Subject) -> Option<Subject> {
        let (mut one, mut two) = (self.subject().split('.'), other.subject().split('.'));
        let plain = |it: &str| if matches!(it, "*" | ">") { "x".to_owned() } else { it.to_owned() };
        let mut met = Vec::new();
        loop {
            match (one.next(), two.next()) {
                (Some(">"), Some(token)) => {
                    met.extend([token].into_iter().chain(two).map(plain));
                    break;
                }
                (Some(token), Some(">")) => {
                    met.extend([token].into_iter().chain(one).map(plain));
                    break;
                }
                (Some("*"), Some(token)) | (Some(token), Some("*")) => met.push(plain(token)),
                (Some(a), Some(b)) if a == b => met.push(plain(a)),
                (None, None) => break,
                (Some(_) | None, Some(_) | None) => return None,
            }
        }
        Some(Subject(met.join(".").into()))
    }

    /// The same with another last token.
    pub(super) fn sibling(&self, token: &str) -> Subject {
        let above = self.subject().rsplit_once('.').map(|(above, _)| format!("{above}."));
        Subject((above.unwrap_or_default() + token).into())
    }

    /// Whether some subject matches both, queue groups aside.
    pub(super) fn overlaps(&self, other: &Subject) -> bool {
        let (mut one, mut two) = (self.subject().split('.'), other.subject().split('.'));
        loop {
            match (one.next(), two.next()) {
                (None, None) | (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
                (Some("*"), Some(_)) | (Some(_), Some("*")) => (),
                (Some(a), Some(b)) if a == b => (),
                (Some(_) | None, Some(_) | None) => return false,
            }
        }
    }

    /// Whether everything that matches `other` matches this, queue groups aside.
    pub(super) fn covers(&self, other: &Subject) -> bool {
        covers(self.subject(), other.subject())
    }

    /// Whether nats-server finds `text` in this, queue groups aside: wildcards of the text are to it
    /// tokens like any other, so that `a.*` takes `a.>`.
    pub(super) fn takes(&self, text: &Subject) -> bool {
        let (mut one, mut two) = (self.subject().split('.'), text.subject().split('.'));
        loop {
            match (one.next(), two.next()) {
                (None, None) | (Some(">"), Some(_)) => return true,
                (Some("*"), Some(_)) => (),
                (Some(a), Some(b)) if a == b => (),
                (Some(_) | None, Some(_) | None) => return false,
            }
        }
    }

    /// The text, as NATS writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether everything that matches `other` matches `one`. Both are subjects, or both queue groups.
pub(super) fn covers(one: &str, other: &str) -> bool {
    let (mut one, mut two) = (one.split('.'), other.split('.'));
    loop {
        match (one.next(), two.next()) {
            (None, None) | (Some(">"), Some(_)) => return true,
            (Some("*"), Some(b)) if b != ">" => (),
            (Some(a), Some(b)) if a == b => (),
            (Some(_) | None, Some(_) | None) => return false,
        }
    }
}

/// Whether the text is one subject, by the rules of nats-server and the ones it forgot.
fn check(text: &str) -> Result<(), BadSubject> {
    if text.is_empty() {
        return Err(BadSubject::Empty);
    }
    let mut tokens = text.split('.').peekable();
    while let Some(token) = tokens.next() {
        if token.is_empty() {
            return Err(BadSubject::EmptyToken);
        }
        if token.contains(char::is_control) {
            return Err(BadSubject::Control);
        }
        if token.contains(char::is_whitespace) {
            return Err(BadSubject::Space);
        }
        if token == ">" && tokens.peek().is_some() {
            return Err(BadSubject::NotLast);
        }
        if token.len() > 1 && token.contains(['*', '>']) {
            return Err(BadSubject::PartOfToken);
        }
    }
    Ok(())
}

/// Whether the text is a subject once its placeholders are filled in with something harmless.
///
/// `parse` is [`Subject::parse`] or [`Subject::parse_subscription`].
pub fn check_template(
    text: &str,
    parse: fn(&str) -> Result<Subject, BadSubject>,
) -> Result<(), BadSubject> {
    parse(&fill(text, Values { username: "x", id: "x" })?).map(drop)
}

/// The values that placeholders in a subject stand for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Values<'a> {
    pub(super) username: &'a str,
    pub(super) id: &'a str,
}

/// Whether the text has something to be filled in.
pub(super) fn is_template(text: &str) -> bool {
    text.contains("{{")
}

/// Replaces `{{username}}` and `{{id}}`, in one pass, so that a value is never filled in itself.
pub(super) fn fill(template: &str, values: Values<'_>) -> Result<String, BadSubject> {
    let mut filled = String::with_capacity(template.len() + 16);
    let mut rest = template;
    while let Some((before, placeholder)) = rest.split_once("{{") {
        let (name, after) = placeholder.split_once("}}").ok_or(BadSubject::UnknownPlaceholder)?;
        let value = match name {
            "username" => values.username,
            "id" => values.id,
            _ => return Err(BadSubject::UnknownPlaceholder),
        };
        let shapes =
            |it: char| matches!(it, '.' | '*' | '>') || it.is_whitespace() || it.is_control();
        if value.is_empty() || value.contains(shapes) {
            return Err(BadSubject::UnsafeValue);
        }
        filled.push_str(before);
        filled.push_str(value);
        rest = after;
    }
    filled.push_str(rest);

    let first = |text: &str| text.split('.').next().unwrap_or_default().to_owned();
    let (was, is) = (first(template), first(&filled));
    // Whoever can choose a name must not choose their way into the system's own subjects.
    if is_template(&was) && (is.starts_with('$') || is == "_INBOX") {
        return Err(BadSubject::SystemByValue);
    }
    Ok(filled)
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for BadSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BadSubject::Empty => "it is empty",
            BadSubject::EmptyToken => "a token between its dots is empty",
            BadSubject::Space => "it has white space",
            BadSubject::Control => "it has a control character",
            BadSubject::NotLast => "`>` may only be its last token",
            BadSubject::PartOfToken => "`*` and `>` are only wildcards as whole tokens",
            BadSubject::Queue => {
                "it has white space; only a subscription has a queue group behind it"
            }
            BadSubject::UnknownPlaceholder => "its placeholder is not `{{username}}` or `{{id}}`",
            BadSubject::UnsafeValue => {
                "the user's value for its placeholder has `.`, `*`, `>`, white space or a control \
                 character"
            }
            BadSubject::SystemByValue => "filled in, it would begin with `$` or `_INBOX`",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{BadSubject::*, Subject, Values, fill};

    #[test]
    fn subjects_are_read_as_nats_reads_them() {
        for good in ["a", "a.b", "a.*.c", "a.>", ">", "*", "$SYS.>", "_INBOX.>", "ü.日本", "a-b_c"]
        {
            assert_eq!(Subject::parse(good).unwrap().as_str(), good);
        }
        for (bad, why) in [
            ("", Empty),
            ("a..b", EmptyToken),
            (".a", EmptyToken),
            ("a.", EmptyToken),
            (".", EmptyToken),
            ("a b", Queue),
            ("a b c", Space),
            ("a\u{a0}b", Space),
            (" a", Space),
            ("a\tb", Control),
            ("a\nb", Control),
            ("a\0b", Control),
            ("a\u{7f}", Control),
            ("a.>.b", NotLast),
            ("a*b", PartOfToken),
            ("c>", PartOfToken),
            ("**", PartOfToken),
        ] {
            assert_eq!(Subject::parse(bad), Err(why), "{bad:?}");
        }
    }

    #[test]
    fn only_subscriptions_have_queue_groups() {
        for good in ["a", "a.> workers", "> q.*"] {
            assert_eq!(Subject::parse_subscription(good).unwrap().as_str(), good);
        }
        for bad in ["a  q", "a q r", " a", "a ", "a\u{a0}q", "a..b q", "a q..r"] {
            assert!(Subject::parse_subscription(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn wildcards_meet_and_contain_each_other() {
        let subject = |text| Subject::parse(text).unwrap();
        for (one, two, overlaps, covers) in [
            ("a.*.>", "a.b.c", true, true),
            ("a.>", "a.*.>", true, true),
            (">", "*.>", true, true),
            ("*.>", "a.*.>", true, true),
            ("a.b.>", "a.*.>", true, false),
            ("a.*", "a.*.>", false, false),
            ("a.*.*", "a.*.>", true, false),
            ("b.>", "a.*.>", false, false),
            ("a", "a.*.>", false, false),
        ] {
            assert_eq!(subject(one).overlaps(&subject(two)), overlaps, "{one} {two}");
            assert_eq!(subject(two).overlaps(&subject(one)), overlaps, "{two} {one}");
            assert_eq!(subject(one).covers(&subject(two)), covers, "{one} {two}");
        }
        let beyond =
            |text| Subject::parse_subscription(text).unwrap().beyond().map(|it| it.to_string());
        assert_eq!(beyond("a.* q").as_deref(), Some("a.*.>"));
        assert_eq!(beyond("*").as_deref(), Some("*.>"));
        assert_eq!((beyond("a.>"), beyond("a.*.b"), beyond("a")), (None, None, None));
    }

    #[test]
    fn a_value_cannot_change_the_shape_of_a_subject() {
        let fill = |template, username| fill(template, Values { username, id: "r1" });
        for (template, username, filled) in [
            ("devices.{{username}}.>", "d1", "devices.d1.>"),
            ("devices.x-{{username}}-{{id}}", "d1", "devices.x-d1-r1"),
            ("_INBOX_{{username}}.>", "d1", "_INBOX_d1.>"),
            ("a.{{username}}", "{{id}}", "a.{{id}}"),
            ("a.}}.b", "d1", "a.}}.b"),
        ] {
            assert_eq!(fill(template, username).as_deref(), Ok(filled));
        }
        for (template, username, why) in [
            ("d.{{username}}", "a.b", UnsafeValue),
            ("d.{{username}}", "*", UnsafeValue),
            ("d.{{username}}", ">", UnsafeValue),
            ("d.{{username}}", "a b", UnsafeValue),
            ("d.{{username}}", "a\u{a0}b", UnsafeValue),
            ("d.{{username}}", "", UnsafeValue),
            ("{{username}}.>", "$SYS", SystemByValue),
            ("{{username}}.>", "_INBOX", SystemByValue),
            ("_{{username}}.>", "INBOX", SystemByValue),
            ("${{username}}.>", "SYS", SystemByValue),
            ("d.{{user}}", "d1", UnknownPlaceholder),
            ("d.{{ username }}", "d1", UnknownPlaceholder),
            ("d.{{username", "d1", UnknownPlaceholder),
        ] {
            assert_eq!(fill(template, username), Err(why), "{template} {username}");
        }
    }
}
