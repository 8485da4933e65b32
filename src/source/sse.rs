//! Server-sent events: bytes in, events out. Pure, and bounded whatever the bytes are.

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// The value of its `event` field. Empty: there was none.
    pub name: String,
    /// The values of its `data` fields, one a line.
    pub data: String,
}

/// Nothing that we need is longer. The rest of a longer line, and of longer data, is dropped.
const LIMIT: usize = 16 * 1024;

/// Puts events together from pieces of any size.
#[derive(Debug, Default)]
pub struct Decoder {
    line: Vec<u8>,
    /// The last byte was a CR, so a LF belongs to it.
    after_cr: bool,
    event: Event,
    has_data: bool,
}

impl Decoder {
    /// Takes more bytes. The events that are complete with them come back.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        for &byte in bytes {
            let belongs_to_cr = byte == b'\n' && self.after_cr;
            self.after_cr = byte == b'\r';
            match byte {
                b'\n' if belongs_to_cr => (),
                b'\r' | b'\n' => events.extend(self.end_of_line()),
                _ if self.line.len() < LIMIT => self.line.push(byte),
                _ => (),
            }
        }
        events
    }

    fn end_of_line(&mut self) -> Option<Event> {
        if self.line.is_empty() {
            let event = std::mem::take(&mut self.event);
            return std::mem::take(&mut self.has_data).then_some(event);
        }
        let line = String::from_utf8_lossy(&self.line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event.name),
            "data" => {
                if self.event.data.len() + value.len() < LIMIT {
                    self.event.data.push_str(if self.has_data { "\n" } else { "" });
                    self.event.data.push_str(value);
                }
                self.has_data = true;
            }
            // Comments, ids that PocketBase never takes back, and what we do not know.
            _ => (),
        }
        self.line.clear();
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(text: &str) -> Vec<(String, String)> {
        let mut decoder = Decoder::default();
        decoder.feed(text.as_bytes()).into_iter().map(|it| (it.name, it.data)).collect()
    }

    fn event(name: &str, data: &str) -> Vec<(String, String)> {
        vec![(name.into(), data.into())]
    }

    #[test]
    fn events_are_read_as_the_standard_says() {
        for (text, expected) in [
            ("id:x\nevent:PB_CONNECT\ndata:{\"a\":1}\n\n", event("PB_CONNECT", "{\"a\":1}")),
            ("event: e\ndata: d\n\n", event("e", "d")),
            ("event:  e\ndata:  d\n\n", event(" e", " d")),
            ("event:e\r\ndata:d\r\n\r\n", event("e", "d")),
            ("event:e\rdata:d\r\r", event("e", "d")),
            ("event:e\r\ndata:d\n\r\n", event("e", "d")),
            ("data:a\ndata:b\n\n", event("", "a\nb")),
            ("data\ndata\n\n", event("", "\n")),
            (":comment\n\ndata:d\n\n", event("", "d")),
            ("data:a:b\n\n", event("", "a:b")),
            ("event:lost\n\ndata:d\n\n", event("", "d")),
            ("unknown:1\ndata:d\n\n", event("", "d")),
            ("data:not yet complete\n", vec![]),
            ("\n\n\r\n", vec![]),
        ] {
            assert_eq!(events(text), expected, "{text:?}");
        }
    }

    #[test]
    fn it_makes_no_difference_where_the_bytes_are_split() {
        let text = "id:1\r\nevent:über\r\ndata:a\r\ndata:b\r\n\r\nevent:e\rdata:d\r\rdata:x\n\n";
        let whole = Decoder::default().feed(text.as_bytes());
        assert_eq!(whole.len(), 3);
        for at in 0..text.len() {
            let mut decoder = Decoder::default();
            let (head, tail) = text.as_bytes().split_at(at);
            let parts = [decoder.feed(head), decoder.feed(tail)].concat();
            assert_eq!(parts, whole, "split at {at}");
        }
    }

    #[test]
    fn endless_input_takes_bounded_memory() {
        let mut decoder = Decoder::default();
        for _ in 0..100 {
            decoder.feed(&[b'x'; 4096]);
            assert!(decoder.line.len() <= LIMIT);
        }
        for _ in 0..100_000 {
            decoder.feed(b"\ndata:0123456789\ndata:\nevent:e");
        }
        assert!(decoder.event.data.len() <= 2 * LIMIT, "{}", decoder.event.data.len());
    }
}
