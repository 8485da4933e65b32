//! One question put to a real nats-server: to one of our own that runs the same file, or, with the
//! user's password, to the one in service.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use async_nats::{
    Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, ServerAddr, Subscriber,
};
use futures_util::{FutureExt as _, StreamExt as _};
use nkeys::KeyPair;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStderr, Command},
    sync::mpsc,
    time,
};

use crate::{
    auth::{
        Action, ConnectionTypes, Credential, Desired, Question, Rules, Subject, Subjects, User,
        render,
    },
    options::keep_settings_from,
    tls,
};

/// How long a server may take to start: it reads half a million users in 13 s.
const START: Duration = Duration::from_mins(1);
/// How long it may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// A message with this reply subject is refused by every nats-server, once it has looked whether its
/// sender may publish it. So a question is answered, and nobody ever gets the message.
const REFUSED: &str = "_R_.pb-nats";
/// Where such a message is sent to learn that all before it was dealt with.
const FENCE: &str = "pb-nats.fence";

/// A connection to a nats-server as the user in question.
#[derive(Debug)]
pub struct Trial {
    user: Seat,
    /// Who publishes what the user may get.
    writer: Option<Seat>,
    address: String,
    version: String,
    /// Ends with us.
    _server: Option<(Child, BufReader<ChildStderr>)>,
}

/// A connection, and what the server has against what is done on it.
#[derive(Debug)]
struct Seat {
    client: Client,
    complaints: mpsc::UnboundedReceiver<String>,
}

/// The server could not be asked. Nothing is known, and nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrialError {
    /// There is no such program, or it may not be run.
    #[error("`{}` cannot be started", program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ended, or said nothing for long.
    #[error("nats-server does not start: {said}")]
    NotStarted {
        /// What it said last.
        said: String,
    },
    /// The address is none.
    #[error("`{address}` is not the address of a server")]
    Address {
        /// As it was given.
        address: String,
    },
    /// There is no connection.
    #[error("cannot connect to {address}")]
    Connect {
        /// Where.
        address: String,
        /// Why.
        source: ConnectError,
    },
    /// There is a connection, but no answer.
    #[error("{address} did not answer within {ANSWER:?}")]
    Silent {
        /// Who.
        address: String,
    },
}

impl TrialError {
    /// What may help.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            TrialError::Program { .. } => {
                "set `nats.server_binary` to a nats-server on this machine, or ask the real one: \
                 `--live --password-stdin`"
                    .into()
            }
            TrialError::Connect { .. } => {
                "is nats-server running there? `--server URL` names another".into()
            }
            TrialError::Address { .. } => "write it like nats://127.0.0.1:4222".into(),
            TrialError::NotStarted { .. } | TrialError::Silent { .. } => return None,
        })
    }
}

impl Trial {
    /// Starts a nats-server on loopback with what it should allow, in which this user logs in with a
    /// key of ours. It gets its config by a pipe, so that nothing is written.
    pub async fn private(
        program: &Path,
        desired: &Desired,
        login: &str,
    ) -> Result<Trial, TrialError> {
        let mut desired = desired.clone();
        let (user, writer) = (KeyPair::new_user(), KeyPair::new_user());
        if let Some(known) = desired.users.remove(login) {
            let known = User {
                credential: Credential::Nkey { record: Arc::default() },
                connection_types: ConnectionTypes::default(),
                ..known
            };
            desired.users.insert(user.public_key().into(), known);
        }
        let everything = Subjects::new([Subject::everything()].into(), [].into());
        let rules = Rules { publish: everything, ..Rules::default() };
        desired.users.insert(writer.public_key().into(), User::with_nkey(rules));
        let config = format!("listen: \"127.0.0.1:-1\"\n{}", render(&desired));

        let starting = time::timeout(START, start(program, &config)).await;
        let silent =
            |_| TrialError::NotStarted { said: format!("it is not ready after {START:?}") };
        let (server, port) = starting.map_err(silent)??;
        let address = vec![format!("nats://127.0.0.1:{port}")];
        let sit = async |pair: &KeyPair| {
            let seed = pair.seed().expect("a new pair has a seed");
            Seat::take(&address, ConnectOptions::with_nkey(seed)).await
        };
        let refused = || TrialError::NotStarted { said: "it does not know our keys".into() };
        let user = sit(&user).await?.ok_or_else(refused)?;
        let writer = sit(&writer).await?.ok_or_else(refused)?;
        Ok(Trial::new(user, Some(writer), Some(server), "a nats-server of its own".into()))
    }

    /// Logs in to the server in service. `None`: it does not let this user in with this password.
    pub async fn in_service(
        servers: &str,
        user: &str,
        password: &str,
    ) -> Result<Option<Trial>, TrialError> {
        tls::provide();
        let (mut urls, mut addresses) = (Vec::new(), Vec::new());
        for server in servers.split(',').map(str::trim) {
            let bad = || TrialError::Address { address: server.into() };
            let mut url = server.parse::<ServerAddr>().map_err(|_| bad())?.into_inner();
            // It may hold another's, which would be taken instead.
            if url.set_username("").and_then(|()| url.set_password(None)).is_err() {
                return Err(bad());
            }
            urls.push(url.to_string());
            let plain = ServerAddr::from_url(url).map_err(|_| bad())?;
            addresses.push(format!("{}:{}", plain.host(), plain.port()));
        }
        let options = ConnectOptions::with_user_and_password(user.into(), password.into());
        let seat = Seat::take(&urls, options).await?;
        Ok(seat.map(|seat| Trial::new(seat, None, None, addresses.join(", "))))
    }

    fn new(
        user: Seat,
        writer: Option<Seat>,
        server: Option<(Child, BufReader<ChildStderr>)>,
        address: String,
    ) -> Trial {
        let version = user.client.server_info().version;
        Trial { user, writer, address, version, _server: server }
    }

    /// Who is asked.
    pub fn server(&self) -> &str {
        &self.address
    }

    /// The version of the server.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether the server takes it.
    pub async fn may(&mut self, question: &Question) -> Result<bool, TrialError> {
        match question.action() {
            Action::Publish => {
                let complaints = self.user.publish(question.subject(), &self.address).await?;
                Ok(!complaints.iter().any(|it| it.contains("for Publish to ")))
            }
            Action::Subscribe => Ok(self.subscribe(question).await?.is_some()),
        }
    }

    /// Which of these messages come by a subscription. `None`: it is refused, or this is a server in
    /// service, where we send nothing to anybody.
    pub async fn delivered(
        &mut self,
        subscription: &Question,
        messages: &[Subject],
    ) -> Result<Option<BTreeSet<String>>, TrialError> {
        let Some(mut subscriber) = self.subscribe(subscription).await? else { return Ok(None) };
        let Some(writer) = &mut self.writer else { return Ok(None) };
        for message in messages {
            let sent = writer.client.publish(message.to_string(), "".into()).await;
            sent.map_err(|_| TrialError::Silent { address: self.address.clone() })?;
        }
        writer.publish(FENCE, &self.address).await?;
        self.user.publish(FENCE, &self.address).await?;
        let mut came = BTreeSet::new();
        while let Some(Some(message)) = subscriber.next().now_or_never() {
            came.insert(message.subject.to_string());
        }
        Ok(Some(came))
    }

    async fn subscribe(&mut self, question: &Question) -> Result<Option<Subscriber>, TrialError> {
        let silent = |address: &String| TrialError::Silent { address: address.clone() };
        let (client, subject) = (&self.user.client, question.subject().to_owned());
        let subscriber = match question.queue() {
            None => client.subscribe(subject).await,
            Some(queue) => client.queue_subscribe(subject, queue.to_owned()).await,
        };
        let subscriber = subscriber.map_err(|_| silent(&self.address))?;
        let complaints = self.user.publish(FENCE, &self.address).await?;
        let refused = complaints.iter().any(|it| it.contains("for Subscription to "));
        Ok((!refused).then_some(subscriber))
    }
}

impl Seat {
    async fn take(urls: &[String], options: ConnectOptions) -> Result<Option<Seat>, TrialError> {
        let (sender, complaints) = mpsc::unbounded_channel();
        let options =
            options.name("pb-nats").connection_timeout(ANSWER).event_callback(move |event| {
                if let Event::ServerError(error) = event {
                    // Who no longer listens needs no answer.
                    let _ = sender.send(error.to_string());
                }
                async {}
            });
        match options.connect(urls).await {
            Ok(client) => Ok(Some(Seat { client, complaints })),
            Err(error) => match error.kind() {
                ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                    Ok(None)
                }
                _ => Err(TrialError::Connect { address: urls.join(", "), source: error }),
            },
        }
    }

    /// Publishes what is refused in any case, and returns what the server has against it and against
    /// all that was done before.
    async fn publish(&mut self, subject: &str, address: &str) -> Result<Vec<String>, TrialError> {
        let silent = || TrialError::Silent { address: address.to_owned() };
        let sent = self.client.publish_with_reply(subject.to_owned(), REFUSED, "".into());
        sent.await.map_err(|_| silent())?;
        let mut complaints = Vec::new();
        loop {
            let next = time::timeout(ANSWER, self.complaints.recv()).await;
            let complaint = next.ok().flatten().ok_or_else(silent)?;
            let last = complaint.contains("for Publish ");
            complaints.push(complaint);
            if last {
                return Ok(complaints);
            }
        }
    }
}

/// Starts the program, and waits until it has told its port and is ready.
async fn start(
    program: &Path,
    config: &str,
) -> Result<((Child, BufReader<ChildStderr>), u16), TrialError> {
    let failed = |source| TrialError::Program { program: program.to_owned(), source };
    let mut command = Command::new(program);
    keep_settings_from(command.as_std_mut());
    let mut child = command
        .args(["-c", "/dev/stdin"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let mut stdin = child.stdin.take().expect("it is piped");
    // One that ends early says why.
    let _ = stdin.write_all(config.as_bytes()).await;
    drop(stdin);
    let mut log = BufReader::new(child.stderr.take().expect("it is piped"));
    let (mut port, mut said) = (None, String::new());
    loop {
        let mut line = String::new();
        if log.read_line(&mut line).await.map_err(failed)? == 0 {
            return Err(TrialError::NotStarted { said });
        }
        let line = line.trim_end();
        if let Some((_, listening)) = line.split_once("for client connections on 127.0.0.1:") {
            port = listening.parse().ok();
        }
        if let (Some(port), true) = (port, line.ends_with("Server is ready")) {
            return Ok(((child, log), port));
        }
        said = line.to_owned();
    }
}
