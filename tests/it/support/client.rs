//! A NATS client that says what the server said.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use data_encoding::BASE64URL_NOPAD;
use nkeys::KeyPair;
use serde_json::{Value, json};

use super::{SOON, eventually};

/// A connection to a nats-server.
pub(crate) struct Client {
    stream: TcpStream,
    /// What was read and is not understood yet.
    unread: Vec<u8>,
    /// What the server said when the connection was opened.
    pub(crate) info: Value,
    /// Messages that nobody has asked for yet.
    inbox: Vec<Message>,
    /// Every error the server has told, without the quotes.
    pub(crate) errors: Vec<String>,
    /// The error it has told just now, after which nothing else came.
    last_words: Option<String>,
    subscriptions: u64,
    /// How long the server may take to answer.
    patience: Duration,
}

/// How a client says who it is.
#[derive(Clone, Copy)]
pub(crate) enum Login<'a> {
    Nobody,
    Password(&'a str, &'a str),
    Nkey(&'a KeyPair),
}

/// A message that a subscription got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) subject: String,
    pub(crate) reply: Option<String>,
    pub(crate) payload: Vec<u8>,
    /// The subscription's number.
    pub(crate) subscription: u64,
}

/// What the server sends.
enum Said {
    Info(Value),
    Message(Message),
    Error(String),
    Ping,
    Pong,
    Ok,
}

impl Client {
    /// Connects and logs in. If the server does not want that, it says why.
    ///
    /// A reload turns away whoever is just logging in, without a word or as one who may not come
    /// in, and lets them in right after it. So that counts when it is said twice.
    pub(crate) fn connect(address: SocketAddr, login: Login<'_>) -> Result<Client, String> {
        let mut refused = false;
        eventually("the server lets in or refuses", || {
            match Client::connect_within(SOON, address, login) {
                Err(why) if why == "the server closed the connection" => None,
                Err(why) if why == "Authorization Violation" && !refused => {
                    refused = true;
                    None
                }
                said => Some(said),
            }
        })
    }

    /// As [`Client::connect`], once, with a server that has so much time for this and each later
    /// answer.
    pub(crate) fn connect_within(
        patience: Duration,
        address: SocketAddr,
        login: Login<'_>,
    ) -> Result<Client, String> {
        let stream = TcpStream::connect_timeout(&address, patience).map_err(|it| it.to_string())?;
        stream.set_nodelay(true).map_err(|it| it.to_string())?;
        let mut client = Client {
            stream,
            unread: Vec::new(),
            info: Value::Null,
            inbox: Vec::new(),
            errors: Vec::new(),
            last_words: None,
            subscriptions: 0,
            patience,
        };
        match client.said(Instant::now() + patience) {
            Ok(Some(Said::Info(info))) => client.info = info,
            Ok(_) => return Err("the server does not introduce itself".into()),
            Err(closed) => return Err(closed),
        }
        let mut words = json!({
            "verbose": false, "pedantic": false, "lang": "rust", "version": "0", "protocol": 1,
        });
        match login {
            Login::Nobody => (),
            Login::Password(user, password) => {
                words["user"] = user.into();
                words["pass"] = password.into();
            }
            Login::Nkey(pair) => {
                let nonce = client.info["nonce"].as_str().ok_or("the server wants no nkeys")?;
                let signature = pair.sign(nonce.as_bytes()).expect("a seed can sign");
                words["nkey"] = pair.public_key().into();
                words["sig"] = BASE64URL_NOPAD.encode(&signature).into();
            }
        }
        client.send(format!("CONNECT {words}\r\nPING\r\n").as_bytes())?;
        client.pong()?;
        Ok(client)
    }

    pub(crate) fn publish(&mut self, subject: &str, payload: &[u8]) {
        self.publish_with_reply(subject, "", payload);
    }

    pub(crate) fn publish_with_reply(&mut self, subject: &str, reply: &str, payload: &[u8]) {
        let mut words = format!("PUB {subject} {reply} {}\r\n", payload.len()).into_bytes();
        words.extend_from_slice(payload);
        words.extend_from_slice(b"\r\n");
        self.send(&words).expect("the connection is open");
    }

    /// Subscribes and returns the subscription's number, whether the server likes it or not.
    pub(crate) fn subscribe(&mut self, subject: &str) -> u64 {
        self.subscribe_queue(subject, "")
    }

    pub(crate) fn subscribe_queue(&mut self, subject: &str, queue: &str) -> u64 {
        open(self.try_to_subscribe(subject, queue))
    }

    /// As [`Client::subscribe_queue`]. An error: the server closed the connection.
    pub(crate) fn try_to_subscribe(&mut self, subject: &str, queue: &str) -> Result<u64, String> {
        self.subscriptions += 1;
        let number = self.subscriptions;
        self.send(format!("SUB {subject} {queue} {number}\r\n").as_bytes())?;
        Ok(number)
    }

    /// Whether the server lets this client publish there. A message without content goes out if so.
    pub(crate) fn may_publish(&mut self, subject: &str) -> bool {
        open(self.try_to_publish(subject))
    }

    /// As [`Client::may_publish`]. An error: the server closed the connection, or does not answer.
    pub(crate) fn try_to_publish(&mut self, subject: &str) -> Result<bool, String> {
        self.send(format!("PUB {subject} 0\r\n\r\n").as_bytes())?;
        self.permitted(&format!("Permissions Violation for Publish to {subject:?}"))
    }

    /// Whether the server lets this client subscribe to it.
    pub(crate) fn may_subscribe(&mut self, subject: &str) -> bool {
        self.may_subscribe_queue(subject, "")
    }

    /// Whether the server lets this client subscribe to it as one of a queue group.
    pub(crate) fn may_subscribe_queue(&mut self, subject: &str, queue: &str) -> bool {
        let number = self.subscribe_queue(subject, queue);
        let violation = format!("Permissions Violation for Subscription to {subject:?}");
        let may = open(self.permitted(&violation));
        self.unsubscribe(number);
        may
    }

    pub(crate) fn unsubscribe(&mut self, number: u64) {
        self.send(format!("UNSUB {number}\r\n").as_bytes()).expect("the connection is open");
    }

    /// The messages that have come so far.
    pub(crate) fn received(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.inbox)
    }

    /// The next message, if one comes in time.
    pub(crate) fn next(&mut self, patience: Duration) -> Option<Message> {
        let deadline = Instant::now() + patience;
        while self.inbox.is_empty() {
            let said = self.said(deadline).expect("the connection is open")?;
            self.take(said);
        }
        Some(self.inbox.remove(0))
    }

    /// The next message of those that have come already.
    pub(crate) fn heard(&mut self) -> Option<Message> {
        (!self.inbox.is_empty()).then(|| self.inbox.remove(0))
    }

    /// The first answer to a request, if one comes in time. It may be the server's "no responders".
    pub(crate) fn request(
        &mut self,
        subject: &str,
        payload: &[u8],
        patience: Duration,
    ) -> Option<Message> {
        let inbox = format!("_INBOX.{}.{}", std::process::id(), self.subscriptions);
        let number = self.subscribe(&inbox);
        self.publish_with_reply(subject, &inbox, payload);
        let deadline = Instant::now() + patience;
        let answer = loop {
            if let Some(at) = self.inbox.iter().position(|it| it.subscription == number) {
                break Some(self.inbox.remove(at));
            }
            match self.said(deadline).expect("the connection is open") {
                Some(said) => self.take(said),
                None => break None,
            }
        };
        self.unsubscribe(number);
        answer
    }

    /// Waits for the server to close the connection. Its last words, if it does so in time.
    pub(crate) fn closed(&mut self, patience: Duration) -> Option<String> {
        let deadline = Instant::now() + patience;
        loop {
            match self.said(deadline) {
                Ok(Some(said)) => self.take(said),
                Ok(None) => return None,
                Err(closed) => return Some(closed),
            }
        }
    }

    /// Waits until the server has dealt with all that was sent. An error: it closed the connection.
    pub(crate) fn flush(&mut self) -> Result<(), String> {
        self.send(b"PING\r\n")?;
        self.pong()
    }

    fn pong(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + self.patience;
        loop {
            match self.said(deadline)? {
                Some(Said::Pong) => return Ok(()),
                Some(said) => self.take(said),
                None => return Err(format!("no answer within {:?}", self.patience)),
            }
        }
    }

    fn permitted(&mut self, violation: &str) -> Result<bool, String> {
        let before = self.errors.len();
        self.flush()?;
        Ok(!self.errors[before..].iter().any(|it| it.starts_with(violation)))
    }

    fn take(&mut self, said: Said) {
        match said {
            Said::Message(message) => self.inbox.push(message),
            Said::Error(error) => self.errors.push(error),
            Said::Info(info) => self.info = info,
            Said::Ping => {
                // If the connection is closed, the next read says so.
                let _ = self.send(b"PONG\r\n");
            }
            Said::Pong | Said::Ok => (),
        }
    }

    /// A failed write is not an error while there is something to read: the server's reason.
    fn send(&mut self, words: &[u8]) -> Result<(), String> {
        match self.stream.write_all(words) {
            Ok(()) => Ok(()),
            Err(error) => {
                Err(self.closed(Duration::from_secs(1)).unwrap_or_else(|| error.to_string()))
            }
        }
    }

    /// The next thing the server says. None: nothing in time. An error: it closed the connection,
    /// and these were its last words.
    fn said(&mut self, deadline: Instant) -> Result<Option<Said>, String> {
        loop {
            if let Some((said, length)) = parse(&self.unread) {
                self.unread.drain(..length);
                self.last_words = if let Said::Error(it) = &said { Some(it.clone()) } else { None };
                return Ok(Some(said));
            }
            let patience = deadline.saturating_duration_since(Instant::now());
            // A time-out of zero would mean none.
            let patience = patience.max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(patience)).expect("a time-out above zero");
            let mut some = [0; 16 * 1024];
            match self.stream.read(&mut some) {
                Ok(0) => return Err(self.farewell("the server closed the connection")),
                Ok(length) => self.unread.extend_from_slice(&some[..length]),
                Err(it) if matches!(it.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if Instant::now() >= deadline {
                        return Ok(None);
                    }
                }
                Err(it) if it.kind() == ErrorKind::Interrupted => (),
                // It did so before it had read all that was sent.
                Err(it) if it.kind() == ErrorKind::ConnectionReset => {
                    return Err(self.farewell("the server closed the connection"));
                }
                Err(it) => return Err(self.farewell(&it.to_string())),
            }
        }
    }

    fn farewell(&self, otherwise: &str) -> String {
        self.last_words.clone().unwrap_or_else(|| otherwise.into())
    }
}

/// What came of a question to a server that has no reason to close the connection.
fn open<T>(answer: Result<T, String>) -> T {
    answer.unwrap_or_else(|closed| panic!("the connection is closed: {closed}"))
}

/// The first thing in the text and its length, if it is there completely.
fn parse(text: &[u8]) -> Option<(Said, usize)> {
    let end = text.windows(2).position(|it| it == b"\r\n")?;
    let line = String::from_utf8_lossy(&text[..end]);
    let (verb, rest) = line.split_once(' ').unwrap_or((&line, ""));
    let said = match verb.to_ascii_uppercase().as_str() {
        "INFO" => Said::Info(serde_json::from_str(rest).expect("INFO is JSON")),
        "MSG" => {
            let words: Vec<&str> = rest.split(' ').collect();
            let length: usize = words.last()?.parse().expect("MSG ends with a length");
            let payload = text.get(end + 2..end + 2 + length)?.to_vec();
            text.get(end + 2 + length..end + 4 + length)?;
            let message = Message {
                subject: words[0].into(),
                subscription: words[1].parse().expect("MSG has the subscription's number"),
                reply: (words.len() == 4).then(|| words[2].into()),
                payload,
            };
            return Some((Said::Message(message), end + 4 + length));
        }
        "-ERR" => Said::Error(rest.trim_matches('\'').into()),
        "PING" => Said::Ping,
        "PONG" => Said::Pong,
        "+OK" => Said::Ok,
        _ => panic!("not a word of a nats-server: {line}"),
    };
    Some((said, end + 2))
}
