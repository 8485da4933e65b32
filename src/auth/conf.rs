//! nats-server's configuration grammar, as far as it takes to read a file of ours and to look into
//! an operator's: a tree of words, nothing evaluated.

use std::{borrow::Cow, fmt::Write as _};

/// A value in a nats-server config. Its words are the text's own, where nothing is escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node<'a> {
    /// `{ key: value … }`, in the order written.
    Map(Vec<Entry<'a>>),
    /// `[ value, … ]`
    List(Vec<Node<'a>>),
    /// A quoted string, always a string to nats-server.
    Text(Cow<'a, str>),
    /// An unquoted word: a string, a number, a size, a bool.
    Word(Cow<'a, str>),
    /// `$NAME`
    Variable(Cow<'a, str>),
}

/// One `key: value`, or one `include "path"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The key as written; nats-server folds the case of the keys that it knows.
    pub key: Cow<'a, str>,
    /// Its value.
    pub value: Node<'a>,
    /// The line it begins on, from 1.
    pub line: usize,
}

/// The text is not a nats-server config, as far as this reader understands it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct ConfError {
    /// Where, from 1.
    pub line: usize,
    /// What was expected.
    pub what: &'static str,
}

/// Reads a config. `include`s are entries, not followed.
pub fn read(text: &str) -> Result<Vec<Entry<'_>>, ConfError> {
    let mut reader = Reader::new(text);
    reader.blank(",;");
    if reader.take('{') {
        let entries = reader.entries(Some('}'))?;
        reader.blank(",;");
        return if reader.rest.is_empty() { Ok(entries) } else { reader.fail("nothing after `}`") };
    }
    reader.entries(None)
}

/// Writes a string so that nats-server reads back the same one, whatever is in it.
pub fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    write_quoted(&mut quoted, text);
    quoted
}

/// As [`quote`], behind what is written already.
pub(super) fn write_quoted(out: &mut String, text: &str) {
    out.push('"');
    if text.bytes().all(|it| it >= b' ' && !matches!(it, b'"' | b'\\' | 0x7f)) {
        out.push_str(text);
    } else {
        text.chars().for_each(|it| write_escaped(out, it));
    }
    out.push('"');
}

fn write_escaped(out: &mut String, it: char) {
    match it {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\0'..'\x20' | '\x7f' => {
            write!(out, "\\x{:02x}", it as u32).expect("a String takes everything");
        }
        _ => out.push(it),
    }
}

impl<'a> Node<'a> {
    /// The entries, of a map.
    pub fn entries(&self) -> &[Entry<'a>] {
        match self {
            Node::Map(entries) => entries,
            Node::List(_) | Node::Text(_) | Node::Word(_) | Node::Variable(_) => &[],
        }
    }

    /// The items, of a list.
    pub fn items(&self) -> &[Node<'a>] {
        match self {
            Node::List(items) => items,
            Node::Map(_) | Node::Text(_) | Node::Word(_) | Node::Variable(_) => &[],
        }
    }

    /// The text, quoted or not.
    pub fn text(&self) -> Option<&str> {
        match self {
            Node::Text(text) | Node::Word(text) => Some(text),
            Node::Map(_) | Node::List(_) | Node::Variable(_) => None,
        }
    }

    /// The value of the last entry with the key, which is the one that nats-server takes.
    pub fn at(&self, key: &str) -> Option<&Node<'a>> {
        last(self.entries(), key)
    }

    /// The same value, of no text.
    pub fn into_owned(self) -> Node<'static> {
        let owned = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        match self {
            Node::Map(entries) => Node::Map(entries.into_iter().map(Entry::into_owned).collect()),
            Node::List(items) => Node::List(items.into_iter().map(Node::into_owned).collect()),
            Node::Text(text) => Node::Text(owned(text)),
            Node::Word(word) => Node::Word(owned(word)),
            Node::Variable(name) => Node::Variable(owned(name)),
        }
    }
}

impl Entry<'_> {
    /// The same entry, of no text.
    pub fn into_owned(self) -> Entry<'static> {
        let Entry { key, value, line } = self;
        Entry { key: Cow::Owned(key.into_owned()), value: value.into_owned(), line }
    }
}

/// The value of the last entry with the key, in any letter case.
pub fn last<'n, 'a>(entries: &'n [Entry<'a>], key: &str) -> Option<&'n Node<'a>> {
    entries.iter().rfind(|it| it.key.eq_ignore_ascii_case(key)).map(|it| &it.value)
}

/// Reads a config piece by piece, so that a long one need not be there as a tree.
pub(super) struct Reader<'a> {
    rest: &'a str,
    /// The line that is read, from 1.
    pub(super) line: usize,
    depth: usize,
}

impl<'a> Reader<'a> {
    /// Deeper than any config; keeps a hostile one from overflowing the stack.
    const MAX_DEPTH: usize = 64;

    pub(super) fn new(text: &'a str) -> Reader<'a> {
        Reader { rest: text, line: 1, depth: 0 }
    }

    fn entries(&mut self, end: Option<char>) -> Result<Vec<Entry<'a>>, ConfError> {
        let mut entries = Vec::new();
        while let Some((key, line)) = self.entry(end)? {
            entries.push(Entry { key: Cow::Borrowed(key), value: self.value()?, line });
        }
        Ok(entries)
    }

    /// The key and line of the next entry, whose value comes next. `None` behind the last one, with
    /// `end` read.
    pub(super) fn entry(
        &mut self,
        end: Option<char>,
    ) -> Result<Option<(&'a str, usize)>, ConfError> {
        self.blank(",;");
        match (self.rest.chars().next(), end) {
            (None, None) => return Ok(None),
            (None, Some(_)) => return self.fail("expected `}`"),
            (Some(it), Some(end)) if it == end => {
                self.take(end);
                return Ok(None);
            }
            (Some(_), _) => (),
        }
        let line = self.line;
        let key = self.key()?;
        self.blank("");
        if !self.take('=') {
            self.take(':');
        }
        self.blank("");
        Ok(Some((key, line)))
    }

    fn key(&mut self) -> Result<&'a str, ConfError> {
        if let Some(quote) = ['"', '\''].into_iter().find(|it| self.take(*it)) {
            // Keys have no escapes.
            let Some((key, rest)) = self.rest.split_once(quote) else {
                return self.fail("expected the key's closing quote");
            };
            self.rest = rest;
            return Ok(key);
        }
        let end = |it: char| it.is_whitespace() || matches!(it, '=' | ':' | '{' | '}' | '[' | ']');
        let (key, rest) = self.rest.split_at(self.rest.find(end).unwrap_or(self.rest.len()));
        if key.is_empty() {
            return self.fail("expected a key");
        }
        self.rest = rest;
        Ok(key)
    }

    /// The next value.
    pub(super) fn value(&mut self) -> Result<Node<'a>, ConfError> {
        self.depth += 1;
        if self.depth > Reader::MAX_DEPTH {
            return self.fail("expected less nesting");
        }
        let value = if self.take('{') {
            Node::Map(self.entries(Some('}'))?)
        } else if self.take('[') {
            Node::List(self.items()?)
        } else if self.take('"') {
            Node::Text(self.double_quoted()?)
        } else if self.take('\'') {
            let Some((text, rest)) = self.rest.split_once('\'') else {
                return self.fail("expected the closing quote");
            };
            self.line += text.matches('\n').count();
            self.rest = rest;
            Node::Text(text.into())
        } else if self.take('(') {
            // A block string ends with a `)` on a line of its own.
            let closing = |line: &&str| line.trim() == ")";
            let Some(end) = self.rest.split_inclusive('\n').find(closing) else {
                return self.fail("expected `)` on a line of its own");
            };
            let length = end.as_ptr() as usize - self.rest.as_ptr() as usize;
            let text = &self.rest[..length];
            self.line += text.matches('\n').count();
            self.rest = self.rest[length..].trim_start_matches([' ', '\t']).trim_start_matches(')');
            Node::Text(text.into())
        } else {
            let end = |it: char| it.is_whitespace() || matches!(it, ',' | ';' | ']' | '}');
            let (word, rest) = self.rest.split_at(self.rest.find(end).unwrap_or(self.rest.len()));
            if word.is_empty() {
                return self.fail("expected a value");
            }
            self.rest = rest;
            match word.strip_prefix('$') {
                // An unquoted bcrypt hash is a string.
                Some(name) if !word.starts_with("$2") => Node::Variable(name.into()),
                _ => Node::Word(word.into()),
            }
        };
        self.depth -= 1;
        Ok(value)
    }

    fn items(&mut self) -> Result<Vec<Node<'a>>, ConfError> {
        let mut items = Vec::new();
        while let Some(item) = self.item()? {
            items.push(item);
        }
        Ok(items)
    }

    /// The next item of a list. `None` behind the last one, with the `]` read.
    pub(super) fn item(&mut self) -> Result<Option<Node<'a>>, ConfError> {
        self.blank(",");
        if self.rest.is_empty() {
            return self.fail("expected `]`");
        }
        if self.take(']') {
            return Ok(None);
        }
        self.value().map(Some)
    }

    fn double_quoted(&mut self) -> Result<Cow<'a, str>, ConfError> {
        let mut text = Cow::Borrowed("");
        loop {
            let mut lines = 0;
            let end = |it: u8| {
                lines += usize::from(it == b'\n');
                matches!(it, b'"' | b'\\')
            };
            let Some(at) = self.rest.bytes().position(end) else {
                return self.fail("expected the closing quote");
            };
            let (plain, rest) = self.rest.split_at(at);
            text += plain;
            self.line += lines;
            self.rest = rest;
            if self.take('"') {
                return Ok(text);
            }
            self.take('\\');
            let escaped = self.rest.chars().next();
            let hex = || {
                let digits = self.rest.get(1..3)?;
                digits.is_ascii().then(|| u8::from_str_radix(digits, 16).ok())?
            };
            let (it, length) = match escaped {
                Some('n') => ('\n', 1),
                Some('r') => ('\r', 1),
                Some('t') => ('\t', 1),
                Some('"') => ('"', 1),
                Some('\\') => ('\\', 1),
                // Beyond ASCII it would be half a character.
                Some('x') if hex().is_some_and(|it| it.is_ascii()) => {
                    (hex().expect("just seen").into(), 3)
                }
                _ => return self.fail("expected one of the escapes \\n \\r \\t \\\" \\\\ \\xHH"),
            };
            text.to_mut().push(it);
            self.rest = &self.rest[length..];
        }
    }

    /// Passes over white space, comments and the separators given.
    fn blank(&mut self, separators: &str) {
        while let Some(&it) = self.rest.as_bytes().first() {
            let length = match it {
                b'#' => self.comment(),
                b'/' if self.rest.starts_with("//") => self.comment(),
                b'\n' => {
                    self.line += 1;
                    1
                }
                b' ' | b'\t' | b'\r' | b'\x0b' | b'\x0c' => 1,
                _ if it.is_ascii() && separators.as_bytes().contains(&it) => 1,
                // What is no ASCII is rare, and takes longer to look at.
                _ if it.is_ascii() => return,
                _ => match self.rest.chars().next().filter(|it| it.is_whitespace()) {
                    Some(it) => it.len_utf8(),
                    None => return,
                },
            };
            self.rest = &self.rest[length..];
        }
    }

    /// How long the comment is that comes next. A bare CR ends it too.
    fn comment(&self) -> usize {
        self.rest.find(['\n', '\r']).unwrap_or(self.rest.len())
    }

    /// What stands behind what was read last, on the same line.
    pub(super) fn rest_of_line(&self) -> &'a str {
        self.rest.split('\n').next().unwrap_or_default()
    }

    /// Whether this, which is ASCII, comes next. Then it is read.
    pub(super) fn take(&mut self, it: char) -> bool {
        // Not `strip_prefix`, which calls for a comparison of memory: there are millions of these.
        let next = self.rest.as_bytes().first().is_some_and(|next| char::from(*next) == it);
        self.rest = &self.rest[usize::from(next)..];
        next
    }

    pub(super) fn fail<T>(&self, what: &'static str) -> Result<T, ConfError> {
        Err(ConfError { line: self.line, what })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Node, last, quote, read};

    #[test]
    fn an_operators_config_is_understood() {
        let config = r#"
            # comment
            listen: 127.0.0.1:4222, // another
            server_name = "n1"; http: '127.0.0.1:8222'
            accounts {
              SYS: { users = [ {user: sys, password: $SYS_PASSWORD} {nkey: UABC} ] }
              "APP" { users: [ { user: "a\"b\x41", password: $2a$04$abc } ] }
            }
            system_account: SYS
            include "auth.conf"
            banner: (
              text { not parsed
            )
            last: yes
        "#;
        // Entries of a list need a comma to nats-server; this reader does not insist.
        let entries = read(config).unwrap();
        let at = |key| last(&entries, key).unwrap();
        assert_eq!(at("LISTEN").text(), Some("127.0.0.1:4222"));
        assert_eq!(at("include").text(), Some("auth.conf"));
        assert_eq!(at("last").text(), Some("yes"));
        let accounts = at("accounts");
        let user =
            |account, n: usize| &accounts.at(account).unwrap().at("users").unwrap().items()[n];
        assert_eq!(user("SYS", 0).at("password"), Some(&Node::Variable("SYS_PASSWORD".into())));
        assert_eq!(user("SYS", 1).at("nkey").unwrap().text(), Some("UABC"));
        assert_eq!(user("APP", 0).at("user").unwrap().text(), Some("a\"bA"));
        assert_eq!(user("APP", 0).at("password").unwrap().text(), Some("$2a$04$abc"));
        let lines: Vec<_> = entries.iter().map(|it| it.line).collect();
        assert_eq!(lines, [3, 4, 4, 5, 9, 10, 11, 14]);
        assert_eq!(
            read(r#"{"a": {"b": [1, 2]}}"#).unwrap()[0].value.at("b").unwrap().items().len(),
            2
        );
    }

    #[test]
    fn what_is_torn_is_refused() {
        for text in [
            "a {",
            "a [",
            "a \"",
            "a '",
            "a \"\\",
            "a \"\\u0041\"",
            "a \"\\xé\"",
            "a = (\nx",
            "}",
            "a",
        ] {
            assert!(read(text).is_err(), "{text:?}");
        }
        assert!(read(&"a [".repeat(100_000)).is_err(), "nor does depth overflow the stack");
        assert!(read(&"a {".repeat(100_000)).is_err());
    }

    proptest! {
        #[test]
        fn quoted_text_reads_back(text in any::<String>()) {
            let config = format!("a: [{}]", quote(&text));
            let entries = read(&config).unwrap();
            prop_assert_eq!(&entries[0].value.items()[0], &Node::Text(text.into()));
        }

        #[test]
        fn nothing_makes_the_reader_panic(text in any::<String>()) {
            let _ = read(&text);
        }
    }
}
