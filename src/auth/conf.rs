//! nats-server's configuration grammar, as far as it takes to read a file of ours and to look into
//! an operator's: a tree of words, nothing evaluated.

use std::{borrow::Cow, fmt::Write as _, mem};

/// A value in a nats-server config. Its words are the text's own, where nothing is escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node<'a> {
    /// `{ key: value … }`, in the order written.
    Map(Vec<Entry<'a>>),
    /// `[ value, … ]`
    List(Vec<Node<'a>>),
    /// A string, with quotes or without.
    Text(Cow<'a, str>),
    /// A number, a size, a bool or a date.
    Word(Cow<'a, str>),
    /// `$NAME`
    Variable(Cow<'a, str>),
    /// The path behind the word `include`. A key of that name may have any other value too.
    Include(Cow<'a, str>),
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
    // To nats-server it is the end, or not, depending on where it stands.
    if let Some((before, _)) = text.split_once('\0') {
        let line = before.matches('\n').count() + 1;
        return Err(ConfError { line, what: "expected no NUL character" });
    }
    Reader::new(text).entries(None)
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
            Node::List(_)
            | Node::Text(_)
            | Node::Word(_)
            | Node::Variable(_)
            | Node::Include(_) => &[],
        }
    }

    /// The items, of a list.
    pub fn items(&self) -> &[Node<'a>] {
        match self {
            Node::List(items) => items,
            Node::Map(_) | Node::Text(_) | Node::Word(_) | Node::Variable(_) | Node::Include(_) => {
                &[]
            }
        }
    }

    /// The text, quoted or not.
    pub fn text(&self) -> Option<&str> {
        match self {
            Node::Text(text) | Node::Word(text) => Some(text),
            Node::Map(_) | Node::List(_) | Node::Variable(_) | Node::Include(_) => None,
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
            Node::Include(path) => Node::Include(owned(path)),
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
    entries.iter().rfind(|it| folded(&it.key) == folded(key)).map(|it| &it.value)
}

/// A key as nats-server compares it with those that it knows: in lower case. Beyond ASCII two letters
/// have one in ASCII.
pub fn folded(key: &str) -> Cow<'_, str> {
    if key.bytes().all(|it| it.is_ascii() && !it.is_ascii_uppercase()) {
        return key.into();
    }
    let lower = |it| match it {
        '\u{130}' => 'i',
        '\u{212a}' => 'k',
        _ => it.to_ascii_lowercase(),
    };
    key.chars().map(lower).collect::<String>().into()
}

/// Reads a config piece by piece, so that a long one need not be there as a tree.
///
/// It reads what nats-server's lexer reads, or refuses it: a text that nats-server takes otherwise than
/// this is the one thing that must not be. Some of what it takes only by accident is refused here.
pub(super) struct Reader<'a> {
    rest: &'a str,
    /// The line that is read, from 1.
    pub(super) line: usize,
    /// Whether a string was not UTF-8, so that what was read is not quite what it says.
    pub(super) lossy: bool,
    depth: usize,
    next: Next,
    /// Whether the top level is inside of a `{`.
    braced: bool,
}

/// What has to come next.
#[derive(Default, PartialEq)]
enum Next {
    #[default]
    Anything,
    /// The end of the value that has just been read.
    End,
    /// The path of an `include`.
    Path,
}

impl<'a> Reader<'a> {
    /// Deeper than any config; keeps a hostile one from overflowing the stack.
    const MAX_DEPTH: usize = 64;

    pub(super) fn new(text: &'a str) -> Reader<'a> {
        Reader { rest: text, line: 1, lossy: false, depth: 0, next: Next::Anything, braced: false }
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
        let more = match end {
            Some(end) => self.begins_in_map(end)?,
            None => self.begins_on_top()?,
        };
        if !more {
            return Ok(None);
        }
        let line = self.line;
        let (key, quoted) = self.key()?;
        if !quoted && self.rest.starts_with(char::is_whitespace) && folded(key) == "include" {
            self.next = Next::Path;
            return Ok(Some((key, line)));
        }
        // There is no comment here: it would be the value.
        self.space();
        let separated = self.take('=') || self.take(':');
        match end {
            _ if !separated && self.rest.is_empty() => {
                // What is left over where a JSON document ends.
                return if key == "}" && end.is_none() {
                    Ok(None)
                } else {
                    self.fail("expected a value")
                };
            }
            Some(_) => {
                self.space();
                // nats-server takes that for something else altogether.
                if self.rest.starts_with(['}', ',']) {
                    return self.fail("expected a value");
                }
            }
            None => self.blank(),
        }
        Ok(Some((key, line)))
    }

    /// Goes on to the next key of a map. `false`: to its end, which is read.
    fn begins_in_map(&mut self, end: char) -> Result<bool, ConfError> {
        if mem::take(&mut self.next) == Next::End && !self.separator(&[',', ';'], end)? {
            return Ok(false);
        }
        self.space_and_comments();
        if self.take(end) {
            self.next = Next::End;
            return Ok(false);
        }
        match self.rest.chars().next() {
            None => self.fail("expected `}`"),
            Some(']' | '=' | ':' | '/') => self.fail("expected a key"),
            Some(_) => Ok(true),
        }
    }

    /// Goes on to the next key of the top level. `false`: to the text's end.
    fn begins_on_top(&mut self) -> Result<bool, ConfError> {
        if mem::take(&mut self.next) == Next::End {
            if !self.braced {
                self.blank();
                // A comment ends the line, and with it the value.
                if !self.comment() && !self.rest.is_empty() && !self.end_of_line(&[',', ';', '}']) {
                    return self.fail("expected the end of the value: a new line or `,`");
                }
            } else if !self.separator(&[',', ';'], '}')? {
                (self.braced, self.next) = (false, Next::Anything);
            }
        }
        loop {
            self.space_and_comments();
            if !self.braced && self.take('{') {
                self.braced = true;
            } else if self.braced && self.take('}') {
                self.braced = false;
            } else {
                break;
            }
        }
        match self.rest.chars().next() {
            None => Ok(false),
            Some('=' | ':' | '/') => self.fail("expected a key"),
            Some('{') => self.fail("expected a key, not a second `{`"),
            Some(_) => Ok(true),
        }
    }

    /// Passes over what ends a value. `false`: over the end of what it is in.
    fn separator(&mut self, separators: &[char], end: char) -> Result<bool, ConfError> {
        loop {
            self.blank();
            if self.take(end) {
                self.next = Next::End;
                return Ok(false);
            }
            if self.end_of_line(separators) {
                return Ok(true);
            }
            if !self.comment() {
                return self.fail("expected the end of the value: a new line, `,` or a bracket");
            }
        }
    }

    /// A key, and whether it is in quotes.
    fn key(&mut self) -> Result<(&'a str, bool), ConfError> {
        if let Some(quote) = ['"', '\''].into_iter().find(|it| self.take(*it)) {
            // Keys have no escapes.
            return Ok((self.until(quote)?, true));
        }
        // Braces and the like are part of it.
        let end = |it: char| it.is_whitespace() || matches!(it, '=' | ':');
        Ok((self.pass(self.rest.find(end).unwrap_or(self.rest.len())), false))
    }

    /// The next value.
    pub(super) fn value(&mut self) -> Result<Node<'a>, ConfError> {
        self.depth += 1;
        if self.depth > Reader::MAX_DEPTH {
            return self.fail("expected less nesting");
        }
        let value = if mem::take(&mut self.next) == Next::Path {
            Node::Include(self.include()?.into())
        } else if self.take('{') {
            Node::Map(self.entries(Some('}'))?)
        } else if self.take('[') {
            Node::List(self.items()?)
        } else if self.take('"') {
            Node::Text(self.double_quoted()?)
        } else if self.take('\'') {
            Node::Text(self.until('\'')?.into())
        } else if self.take('(') {
            Node::Text(self.block()?.into())
        } else {
            match self.rest.chars().next() {
                Some('.') => return self.fail("expected a digit before the `.`"),
                Some('\n' | '\r') => return self.fail("expected a value, not a new line"),
                Some('-' | '0'..='9') => self.number()?,
                Some(it) if !it.is_ascii() && it.is_numeric() => {
                    return self.fail("expected digits from 0 to 9");
                }
                Some(_) | None => self.word(self.rest)?,
            }
        };
        self.depth -= 1;
        self.next = Next::End;
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
        if mem::take(&mut self.next) == Next::End && !self.separator(&[','], ']')? {
            return Ok(None);
        }
        self.space_and_comments();
        if self.take(']') {
            self.next = Next::End;
            return Ok(None);
        }
        match self.rest.chars().next() {
            None => self.fail("expected `]`"),
            Some(',' | '/') => self.fail("expected a value"),
            Some(_) => self.value().map(Some),
        }
    }

    /// The path of an include, behind the word.
    fn include(&mut self) -> Result<&'a str, ConfError> {
        self.blank();
        if let Some(quote) = ['"', '\''].into_iter().find(|it| self.take(*it)) {
            return self.until(quote);
        }
        let end = |it: char| matches!(it, ' ' | '\t' | '\n' | '\r' | ';' | '}' | '\'');
        let path = self.pass(self.rest.find(end).unwrap_or(self.rest.len()));
        self.take('\'');
        let begins = path.chars().next();
        if begins.is_none_or(|it| matches!(it, '[' | '{' | '(' | '-' | '\\') || it.is_numeric()) {
            return self.fail("expected the path of the file to include, in quotes");
        }
        Ok(path)
    }

    /// A block string, which ends with a `)` that has a line for itself, white space included.
    fn block(&mut self) -> Result<&'a str, ConfError> {
        for (at, _) in self.rest.match_indices("\n)") {
            match self.rest.as_bytes().get(at + 2) {
                Some(b'\n') => {
                    let text = self.lines(at + 1);
                    self.take(')');
                    return Ok(text);
                }
                // At the text's end it is part of the string.
                None => return Ok(self.lines(at + 2)),
                Some(_) => (),
            }
        }
        self.fail("expected `)` on a line of its own")
    }

    /// A number, size or date; or a string that begins like one.
    fn number(&mut self) -> Result<Node<'a>, ConfError> {
        let text = self.rest;
        let bytes = text.as_bytes();
        let digits =
            |from: usize| from + bytes[from..].iter().take_while(|it| it.is_ascii_digit()).count();
        let negative = usize::from(bytes[0] == b'-');
        let at = digits(negative);
        if at == negative {
            return self.fail("expected a digit behind the `-`");
        }
        match text[at..].chars().next() {
            Some('.') => {
                let end = digits(at + 1);
                if end == at + 1 {
                    return self.fail("expected a digit behind the `.`");
                }
                if bytes.get(end) != Some(&b'.') {
                    return Ok(Node::Word(self.pass(end).into()));
                }
                let address = |it: char| !(it.is_ascii_digit() || matches!(it, '.' | ':' | '-'));
                Ok(Node::Text(self.pass(text.find(address).unwrap_or(text.len())).into()))
            }
            Some('k' | 'K' | 'm' | 'M' | 'g' | 'G' | 't' | 'T' | 'p' | 'P' | 'e' | 'E') => {
                let unit = &text[at + 1..];
                let unit =
                    &unit[..unit.len() - unit.trim_start_matches(['b', 'B', 'i', 'I']).len()];
                let end = at + 1 + unit.len();
                if !ends_number(&text[end..]) {
                    return self.word(&text[end..]);
                }
                if !["", "b", "i", "ib"].contains(&&*unit.to_ascii_lowercase()) {
                    return self.fail("expected a size such as 1k, 1KB or 1KiB");
                }
                Ok(Node::Word(self.pass(end).into()))
            }
            Some('-') if negative == 0 => {
                let shape = text.get(at..at + 16).filter(|_| at == 4).is_some_and(|it| {
                    it.bytes().zip(*b"-00-00T00:00:00Z").all(|(it, shape)| match shape {
                        b'0' => it.is_ascii_digit(),
                        _ => it == shape,
                    })
                });
                if !shape {
                    return self.fail("expected a date such as 2026-11-23T12:34:56Z");
                }
                Ok(Node::Word(self.pass(at + 16).into()))
            }
            Some(it) if !it.is_ascii() && it.is_numeric() => {
                self.fail("expected digits from 0 to 9")
            }
            // Whatever it is, it is part of the string: even a `]`.
            Some(it) if negative == 0 && !ends_number(&text[at..]) => {
                self.word(&text[at + it.len_utf8()..])
            }
            Some(_) | None => Ok(Node::Word(self.pass(at).into())),
        }
    }

    /// A string without quotes, from here on; its end is looked for from `from` on, which is behind.
    fn word(&mut self, from: &'a str) -> Result<Node<'a>, ConfError> {
        let passed = self.rest.len() - from.len();
        let mut bytes: Option<Vec<u8>> = None;
        let end =
            |it: char| matches!(it, ' ' | '\t' | '\n' | '\r' | ';' | ',' | ']' | '}' | '\'' | '\\');
        let mut from = passed;
        loop {
            let length = self.rest[from..].find(end).map_or(self.rest.len(), |it| from + it);
            from = 0;
            let part = self.pass(length);
            if self.take('\\') {
                let bytes = bytes.get_or_insert_default();
                bytes.extend(part.as_bytes());
                self.escaped(bytes)?;
                continue;
            }
            let quote = self.take('\'');
            if let Some(mut bytes) = bytes {
                bytes.extend(part.as_bytes());
                return Ok(Node::Text(self.utf8(bytes).into()));
            }
            // A number that turned out to be none is never one of these.
            let is = |it: &&str| part.eq_ignore_ascii_case(it);
            return Ok(match part.strip_prefix('$') {
                _ if quote => Node::Text(part.into()),
                // An unquoted bcrypt hash is a string.
                Some(name) if !name.starts_with("2a$") => Node::Variable(name.into()),
                None if ["true", "false", "on", "off", "yes", "no"].iter().any(is) => {
                    Node::Word(part.into())
                }
                Some(_) | None => Node::Text(part.into()),
            });
        }
    }

    fn double_quoted(&mut self) -> Result<Cow<'a, str>, ConfError> {
        let mut bytes: Option<Vec<u8>> = None;
        loop {
            let end = |it: u8| matches!(it, b'"' | b'\\');
            let Some(at) = self.rest.bytes().position(end) else {
                return self.fail("expected the closing quote");
            };
            let part = self.lines(at);
            let ends = self.take('"');
            match (&mut bytes, ends) {
                (None, true) => return Ok(part.into()),
                (bytes, _) => bytes.get_or_insert_default().extend(part.as_bytes()),
            }
            if ends {
                return Ok(self.utf8(bytes.unwrap_or_default()).into());
            }
            self.take('\\');
            self.escaped(bytes.get_or_insert_default())?;
        }
    }

    /// Reads what stands behind a `\`.
    fn escaped(&mut self, bytes: &mut Vec<u8>) -> Result<(), ConfError> {
        let hex = || {
            let digits = self.rest.get(1..3)?;
            let digits = digits.bytes().all(|it| it.is_ascii_hexdigit()).then_some(digits);
            u8::from_str_radix(digits?, 16).ok()
        };
        let (byte, length) = match self.rest.as_bytes().first() {
            Some(b'n') => (Some(b'\n'), 1),
            Some(b'r') => (Some(b'\r'), 1),
            Some(b't') => (Some(b'\t'), 1),
            Some(it @ (b'"' | b'\\')) => (Some(*it), 1),
            Some(b'x') => (hex(), 3),
            Some(_) | None => (None, 0),
        };
        let Some(byte) = byte else {
            return self.fail("expected one of the escapes \\n \\r \\t \\\" \\\\ \\xHH");
        };
        bytes.push(byte);
        self.pass(length);
        Ok(())
    }

    /// The text of these bytes. What is no UTF-8 in it is replaced.
    fn utf8(&mut self, bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap_or_else(|it| {
            self.lossy = true;
            String::from_utf8_lossy(it.as_bytes()).into_owned()
        })
    }

    /// What stands before the quote, which is read too.
    fn until(&mut self, quote: char) -> Result<&'a str, ConfError> {
        let Some(at) = self.rest.find(quote) else {
            return self.fail("expected the closing quote");
        };
        let text = self.lines(at);
        self.take(quote);
        Ok(text)
    }

    /// Reads so many bytes, over several lines.
    fn lines(&mut self, length: usize) -> &'a str {
        let text = self.pass(length);
        self.line += text.bytes().filter(|it| *it == b'\n').count();
        text
    }

    /// Reads so many bytes of one line.
    fn pass(&mut self, length: usize) -> &'a str {
        let (text, rest) = self.rest.split_at(length);
        self.rest = rest;
        text
    }

    /// Passes over blanks within a line.
    fn blank(&mut self) {
        while self.take(' ') || self.take('\t') {}
    }

    /// Passes over white space of any kind.
    fn space(&mut self) {
        while let Some(&it) = self.rest.as_bytes().first() {
            let length = match it {
                b'\n' => {
                    self.line += 1;
                    1
                }
                b' ' | b'\t' | b'\r' | b'\x0b' | b'\x0c' => 1,
                // What is no ASCII is rare, and takes longer to look at.
                _ if it.is_ascii() => return,
                _ => match self.rest.chars().next().filter(|it| it.is_whitespace()) {
                    Some(it) => it.len_utf8(),
                    None => return,
                },
            };
            self.pass(length);
        }
    }

    fn space_and_comments(&mut self) {
        self.space();
        while self.comment() {
            self.space();
        }
    }

    /// Passes over a comment, if one comes next. A bare CR ends it too.
    fn comment(&mut self) -> bool {
        let is = self.rest.starts_with('#') || self.rest.starts_with("//");
        if is {
            self.pass(self.rest.find(['\n', '\r']).unwrap_or(self.rest.len()));
        }
        is
    }

    /// Passes over one of these, or the end of the line.
    fn end_of_line(&mut self, separators: &[char]) -> bool {
        let newline = self.take('\n');
        self.line += usize::from(newline);
        newline || self.take('\r') || separators.iter().any(|it| self.take(*it))
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

/// Whether what stands here is not part of a number before it.
fn ends_number(rest: &str) -> bool {
    let ends = |it: u8| {
        matches!(it, b' ' | b'\t' | b'\n' | b'\r' | b'}' | b';' | b',') || it.is_ascii_digit()
    };
    rest.bytes().next().is_none_or(ends)
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
              SYS: { users = [ {user: sys, password: $SYS_PASSWORD}, {nkey: UABC} ] }
              "APP" { users: [ { user: "a\"b\x41", password: $2a$04$abc } ] }
            }
            system_account: SYS
            include "auth.conf"
            banner: (
              text { not parsed
              )
)
            last: yes
        "#;
        let entries = read(config).unwrap();
        let at = |key| last(&entries, key).unwrap();
        assert_eq!(at("listen").text(), Some("127.0.0.1:4222"));
        assert_eq!(at("include"), &Node::Include("auth.conf".into()));
        assert_eq!(at("last").text(), Some("yes"));
        let accounts = at("accounts");
        let user =
            |account, n: usize| &accounts.at(account).unwrap().at("users").unwrap().items()[n];
        assert_eq!(user("SYS", 0).at("password"), Some(&Node::Variable("SYS_PASSWORD".into())));
        assert_eq!(user("SYS", 1).at("nkey").unwrap().text(), Some("UABC"));
        assert_eq!(user("APP", 0).at("user").unwrap().text(), Some("a\"bA"));
        assert_eq!(user("APP", 0).at("password").unwrap().text(), Some("$2a$04$abc"));
        let lines: Vec<_> = entries.iter().map(|it| it.line).collect();
        assert_eq!(lines, [3, 4, 4, 5, 9, 10, 11, 15]);
        assert_eq!(
            read(r#"{"a": {"b": [1, "2"]}}"#).unwrap()[0].value.at("b").unwrap().items().len(),
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
            "a = (\nx\n )\n",
            "}}",
            "a",
            "a { b: [1] }",
            "a { b: 1,, c: 2 }",
            "a { b: }",
            "a {b}",
            "a: [ 1 2 ]",
            "a: 1 b: 2",
            "a: 1\0",
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
