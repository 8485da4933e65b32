//! The system account: every server at once, over one connection.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, SystemTime},
};

use async_nats::{Client, ConnectOptions, Message, StatusCode, Subscriber, connection::State};
use futures_util::{StreamExt as _, future::join_all};
use serde::{Deserialize, de};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    net::TcpStream,
    time::{self, Instant},
};

use super::{
    Answer, Connection, GLANCE, LeafNode, Running, ServerError,
    connz::{Connected, GLOBAL, Pages},
    varz::{Varz, unanswered},
};
use crate::{
    options::{NatsOptions, Secret},
    tls,
};

/// How long to wait for servers of other clusters, of which nobody knows how many there are.
const QUIET: Duration = Duration::from_millis(500);

/// How long a server that is not ours, and does not answer any more, is still told of.
const REMEMBERED: Duration = Duration::from_mins(1);

/// No server says more first than this many bytes.
const MOST_GREETED: u64 = 1 << 16;

/// The connections of more users than this are not asked for by name.
const FEW: usize = 8;

/// The system account, over one connection that is made when it is needed.
#[derive(Debug)]
pub(crate) struct System {
    urls: Vec<String>,
    /// The same without passwords.
    pub(super) address: String,
    login: Login,
    client: Option<Client>,
    /// Who listens at the `urls`, as far as that was asked.
    greetings: Vec<Greeting>,
    /// The ids of servers about which the `urls` were asked.
    asked_about: BTreeSet<String>,
    /// Who answers as well, and is not ours: by id, and when it last did.
    pub(super) strangers: BTreeMap<String, (Running, Instant)>,
}

/// Connections that their servers were told to close.
#[derive(Debug)]
pub(crate) struct Kicks {
    pub(crate) connections: Vec<Connection>,
    replies: Subscriber,
}

#[derive(Debug)]
enum Login {
    Nobody,
    Credentials(PathBuf),
    Password(String, Secret),
    PasswordFile(String, PathBuf),
}

/// A server as it is said first to whoever connects.
#[derive(Clone, Debug, Deserialize)]
struct Greeting {
    server_id: String,
    /// Its cluster, if it is in one.
    #[serde(default)]
    cluster: String,
}

impl System {
    pub(super) fn new(url: &str, options: &NatsOptions) -> Result<System, ServerError> {
        let unusable = |reason: String| ServerError::Setting { setting: "system_url", reason };
        let mut urls = Vec::new();
        let mut addresses = Vec::new();
        for url in url.split(',').map(str::trim) {
            let parsed: async_nats::ServerAddr =
                url.parse().map_err(|it: std::io::Error| unusable(it.to_string()))?;
            addresses.push(format!("{}:{}", parsed.host(), parsed.port()));
            urls.push(url.to_owned());
        }
        let login = match options {
            NatsOptions { system_credentials_file: Some(path), .. } => {
                Login::Credentials(path.clone())
            }
            NatsOptions { system_user: Some(user), system_password: Some(password), .. } => {
                Login::Password(user.clone(), password.clone())
            }
            NatsOptions { system_user: Some(user), system_password_file: Some(path), .. } => {
                Login::PasswordFile(user.clone(), path.clone())
            }
            _ => Login::Nobody,
        };
        tls::provide();
        Ok(System {
            urls,
            address: addresses.join(", "),
            login,
            client: None,
            greetings: Vec::new(),
            asked_about: BTreeSet::new(),
            strangers: BTreeMap::new(),
        })
    }

    /// What every server runs that is ours and can be reached, and which of them are not understood.
    ///
    /// Each tells how many others its cluster has, so that we know when all have answered.
    pub(super) async fn everyone(
        &mut self,
        patience: Duration,
    ) -> Result<Vec<Answer>, ServerError> {
        let deadline = Instant::now() + patience;
        let client = self.client(deadline).await?;
        let connected = client.server_info();
        let mut ours = self.greetings.clone();
        ours.push(Greeting {
            server_id: connected.server_id,
            cluster: connected.cluster.unwrap_or_default(),
        });
        // Who is not ours may be slow, and nothing waits for that.
        let linger = patience > GLANCE || self.urls.len() > 1;
        let mut answers: Vec<Running> = Vec::new();
        let mut garbled: BTreeMap<String, (Sender, ServerError)> = BTreeMap::new();
        let collect = async {
            let lost = || ServerError::Lost { address: self.address.clone() };
            let inbox = client.new_inbox();
            let mut replies = client.subscribe(inbox.clone()).await.map_err(|_| lost())?;
            let sent = SystemTime::now();
            client
                .publish_with_reply("$SYS.REQ.SERVER.PING.VARZ", inbox, "".into())
                .await
                .map_err(|_| lost())?;
            loop {
                let beyond = answers.iter().any(|it: &Running| it.beyond);
                let quiet = if linger && beyond { QUIET } else { Duration::ZERO };
                let mut ours = answers.iter().filter(|it| is_ours(it, &ours)).peekable();
                // Who is not understood has answered, too.
                let next = if ours.peek().is_some() && unanswered(ours) <= garbled.len() {
                    match time::timeout(quiet, replies.next()).await {
                        Ok(next) => next,
                        Err(_elapsed) => return Ok(()),
                    }
                } else {
                    replies.next().await
                };
                let message = next.ok_or_else(lost)?;
                if message.status == Some(StatusCode::NO_RESPONDERS) {
                    return Err(ServerError::NotSystem { address: self.address.clone() });
                }
                let error = match understand::<SystemAnswer<Varz>>(&message, &self.address) {
                    Ok(SystemAnswer { data: Some(varz), .. }) => {
                        answers.push(varz.running(sent));
                        continue;
                    }
                    Ok(SystemAnswer { error, .. }) => ServerError::Refused {
                        server: sender(&message, &self.address).name,
                        reason: error.map(|it| it.description).unwrap_or_default(),
                    },
                    Err(error) => error,
                };
                let sender = sender(&message, &self.address);
                garbled.insert(sender.name.clone(), (sender, error));
            }
        };
        let collected = time::timeout_at(deadline, collect).await;
        if let Ok(Err(error)) = collected {
            self.client = None;
            return Err(error);
        }
        ours.extend(self.greeted(&answers, &ours).await);
        let (answers, strangers): (Vec<_>, Vec<_>) =
            answers.into_iter().partition(|it| is_ours(it, &ours));
        let now = Instant::now();
        self.strangers.extend(strangers.into_iter().map(|it| (it.id.clone(), (it, now))));
        self.strangers.retain(|id, (_, heard)| {
            heard.elapsed() < REMEMBERED && answers.iter().all(|it| it.id != *id)
        });
        // Who is not understood may be one of ours, unless it says otherwise.
        garbled.retain(|_, (it, _)| {
            let id = it.id.as_deref().unwrap_or_default();
            !self.strangers.contains_key(id)
                && (it.cluster.is_empty() || ours.iter().any(|ours| ours.is(id, &it.cluster)))
        });
        if answers.is_empty() && garbled.is_empty() {
            self.client = None;
            return Err(ServerError::Silent { server: self.address.clone(), after: patience });
        }
        // Who has not answered is missing, and whoever knows of it says so.
        let ok = |it: Running| Answer { server: it.name.clone(), running: Ok(it) };
        let not = |(server, (_, error))| Answer { server, running: Err(error) };
        Ok(answers.into_iter().map(ok).chain(garbled.into_iter().map(not)).collect())
    }

    /// Who listens at the `urls`, if there are several and one of these servers may be meant by them:
    /// they may lead to several clusters, all of which are to run the file then.
    async fn greeted(&mut self, answers: &[Running], ours: &[Greeting]) -> Vec<Greeting> {
        let unknown = |it: &&Running| !is_ours(it, ours) && !self.asked_about.contains(&it.id);
        let unknown: Vec<&Running> = answers.iter().filter(unknown).collect();
        if self.urls.len() < 2 || unknown.is_empty() {
            return Vec::new();
        }
        let greetings = join_all(self.urls.iter().map(|it| greeting(it))).await;
        if greetings.iter().all(Option::is_some) {
            self.asked_about.extend(unknown.into_iter().map(|it| it.id.clone()));
        }
        for greeting in greetings.into_iter().flatten() {
            self.greetings.retain(|it| it.server_id != greeting.server_id);
            self.greetings.push(greeting);
        }
        self.greetings.clone()
    }

    /// Orders one server to reload, and returns when it has.
    pub(crate) async fn reload(
        &self,
        running: &Running,
        deadline: Instant,
    ) -> Result<(), ServerError> {
        tokio::select! {
            answer = self.request::<de::IgnoredAny>(running, "RELOAD", "", deadline) => answer.map(drop),
            gone = self.gone(running) => Err(gone),
        }
    }

    /// Returns once there is nobody who could answer for this server.
    ///
    /// One that reloads answers nothing until it has, so that it is silent says nothing. But of one
    /// that has ended, the others know that it listens no more.
    async fn gone(&self, running: &Running) -> ServerError {
        loop {
            time::sleep(GLANCE).await;
            let asked =
                self.request::<de::IgnoredAny>(running, "STATSZ", "", Instant::now() + GLANCE);
            if let Err(gone @ ServerError::Missing { .. }) = asked.await {
                return gone;
            }
        }
    }

    /// The connections that these users have to one server.
    pub(crate) async fn connections(
        &self,
        running: &Running,
        users: &BTreeSet<String>,
        deadline: Instant,
    ) -> Result<Vec<Connection>, ServerError> {
        let all = || vec![None];
        let few = || users.iter().map(Some).collect();
        let mut found = Vec::new();
        for user in if users.len() <= FEW { few() } else { all() } {
            let connected = self.connected(running, user, deadline).await?;
            let theirs = connected
                .into_iter()
                .filter(|it| it.is_of_ours() && users.contains(&it.authorized_user));
            found.extend(theirs.map(|it| it.on(&running.id)));
        }
        Ok(found)
    }

    /// The connections of users of the global account to one server that are listed under this name; without one,
    /// all.
    pub(super) async fn connected(
        &self,
        running: &Running,
        user: Option<&String>,
        deadline: Instant,
    ) -> Result<Vec<Connected>, ServerError> {
        let mut pages = Pages::new();
        loop {
            let (offset, limit) = pages.next();
            // Before 2.12, leaf nodes are listed only where an account is asked for.
            let query = json!({
                "auth": true, "user": user, "acc": GLOBAL, "sort": "cid", "offset": offset, "limit": limit,
            });
            let page = self.request(running, "CONNZ", &query.to_string(), deadline).await?;
            if pages.add(page.unwrap_or_default()) {
                return Ok(pages.found);
            }
        }
    }

    /// Tells servers to close these leaf nodes, and waits until they have answered.
    pub(crate) async fn close(&self, leaf_nodes: &BTreeSet<LeafNode>, deadline: Instant) {
        let connection = |it: &LeafNode| Connection {
            server: it.server.clone(),
            number: it.number,
            user: it.user.clone(),
            start: SystemTime::UNIX_EPOCH,
            leaf: true,
        };
        if let Ok(kicks) = self.kick(leaf_nodes.iter().map(connection).collect()).await {
            self.kicked(kicks, deadline).await;
        }
    }

    /// Tells servers to close connections. Whatever is asked of them later comes after that.
    pub(crate) async fn kick(&self, connections: Vec<Connection>) -> Result<Kicks, ServerError> {
        let lost = || ServerError::Lost { address: self.address.clone() };
        let client = self.client.as_ref().ok_or_else(lost)?;
        let inbox = client.new_inbox();
        let replies = client.subscribe(format!("{inbox}.*")).await.map_err(|_| lost())?;
        for (place, Connection { server, number, .. }) in connections.iter().enumerate() {
            let subject = format!("$SYS.REQ.SERVER.{server}.KICK");
            let payload = json!({ "cid": number }).to_string();
            let reply = format!("{inbox}.{place}");
            let sent = client.publish_with_reply(subject, reply, payload.into());
            sent.await.map_err(|_| lost())?;
        }
        Ok(Kicks { connections, replies })
    }

    /// The connections whose servers have answered, and why the others may still be there. One that
    /// says that it has no such connection has closed it itself.
    pub(crate) async fn kicked(
        &self,
        kicks: Kicks,
        deadline: Instant,
    ) -> (Vec<Connection>, Option<ServerError>) {
        let begun = Instant::now();
        let Kicks { connections, mut replies } = kicks;
        let mut left: BTreeMap<usize, Connection> = connections.into_iter().enumerate().collect();
        let mut closed = Vec::new();
        while !left.is_empty() {
            let reply = match time::timeout_at(deadline, replies.next()).await {
                Ok(Some(reply)) => reply,
                Ok(None) => {
                    return (closed, Some(ServerError::Lost { address: self.address.clone() }));
                }
                Err(_elapsed) => {
                    let server = self.address.clone();
                    let silent = ServerError::Silent { server, after: begun.elapsed() };
                    return (closed, Some(silent));
                }
            };
            let place = reply.subject.rsplit('.').next().and_then(|it| it.parse().ok());
            closed.extend(place.and_then(|it: usize| left.remove(&it)));
        }
        (closed, None)
    }

    /// Asks one server for something.
    async fn request<T: de::DeserializeOwned>(
        &self,
        running: &Running,
        what: &str,
        payload: &str,
        deadline: Instant,
    ) -> Result<Option<T>, ServerError> {
        let Running { id, name, .. } = running;
        let begun = Instant::now();
        let Some(client) = &self.client else {
            return Err(ServerError::Lost { address: self.address.clone() });
        };
        let request = async_nats::Request::new().payload(payload.to_owned().into()).timeout(None);
        let request = client.send_request(format!("$SYS.REQ.SERVER.{id}.{what}"), request);
        let message = match time::timeout_at(deadline, request).await {
            Ok(Ok(message)) => message,
            Ok(Err(error)) if error.kind() == async_nats::RequestErrorKind::NoResponders => {
                return Err(ServerError::Missing { server: name.clone() });
            }
            Ok(Err(_)) => return Err(ServerError::Lost { address: self.address.clone() }),
            Err(_elapsed) => {
                let server = name.clone();
                return Err(ServerError::Silent { server, after: begun.elapsed() });
            }
        };
        let answer = understand::<SystemAnswer<T>>(&message, name)?;
        match answer.error {
            None => Ok(answer.data),
            Some(Failure { description }) => {
                Err(ServerError::Refused { server: name.clone(), reason: description })
            }
        }
    }

    /// The connection. One that was lost is made anew, with the password of now.
    async fn client(&mut self, deadline: Instant) -> Result<Client, ServerError> {
        if let Some(client) = &self.client
            && client.connection_state() == State::Connected
        {
            return Ok(client.clone());
        }
        let patience = deadline.saturating_duration_since(Instant::now());
        let options = ConnectOptions::new()
            .name("pb-nats")
            // One that hangs leaves time for the next.
            .connection_timeout(patience / u32::try_from(self.urls.len()).unwrap_or(1))
            // It may move to another server of the cluster; but it must not try for ever, with a
            // password that may be an old one.
            .max_reconnects(self.urls.len() + 3);
        let unreadable =
            |path: &PathBuf, source| ServerError::Credentials { path: path.clone(), source };
        let options = match &self.login {
            Login::Nobody => options,
            Login::Credentials(path) => {
                let text = Secret::new(
                    tokio::fs::read_to_string(path).await.map_err(|it| unreadable(path, it))?,
                );
                options.credentials(text.reveal()).map_err(|it| unreadable(path, it))?
            }
            Login::Password(user, password) => {
                options.user_and_password(user.clone(), password.reveal().into())
            }
            Login::PasswordFile(user, path) => {
                let text =
                    tokio::fs::read_to_string(path).await.map_err(|it| unreadable(path, it))?;
                let text = Secret::new(text);
                options.user_and_password(
                    user.clone(),
                    text.reveal().trim_end_matches(['\r', '\n']).into(),
                )
            }
        };
        let silent = |_| ServerError::Silent { server: self.address.clone(), after: patience };
        let connected =
            time::timeout_at(deadline, options.connect(&self.urls[..])).await.map_err(silent)?;
        let client = connected
            .map_err(|source| ServerError::Connect { address: self.address.clone(), source })?;
        self.client = Some(client.clone());
        Ok(client)
    }
}

/// What a message over the system account says; `asked` is who should have sent it.
fn understand<T: de::DeserializeOwned>(message: &Message, asked: &str) -> Result<T, ServerError> {
    serde_json::from_slice(&message.payload)
        .map_err(|source| ServerError::Unreadable { server: sender(message, asked).name, source })
}

/// Who says that it sent the message; else, who should have.
fn sender(message: &Message, asked: &str) -> Sender {
    let envelope = serde_json::from_slice::<Envelope>(&message.payload);
    let nobody = |_| Sender { name: asked.to_owned(), id: None, cluster: String::new() };
    envelope.map_or_else(nobody, |it| it.server)
}

/// Who sent an answer over the system account.
#[derive(Deserialize)]
struct Envelope {
    server: Sender,
}

#[derive(Deserialize)]
struct Sender {
    name: String,
    id: Option<String>,
    #[serde(default)]
    cluster: String,
}

/// An answer over the system account.
#[derive(Deserialize)]
struct SystemAnswer<T> {
    data: Option<T>,
    error: Option<Failure>,
}

#[derive(Deserialize)]
struct Failure {
    #[serde(default)]
    description: String,
}

/// Whether a server is one of these, or in a cluster with one.
///
/// Whoever else shares the system account, a leaf node or a cluster behind a gateway, has a config of
/// its own, which need not include our file.
fn is_ours(running: &Running, ours: &[Greeting]) -> bool {
    ours.iter().any(|it| it.is(&running.id, &running.cluster))
}

impl Greeting {
    /// Whether a server of this id, in this cluster, is this one, or in a cluster with it.
    fn is(&self, id: &str, cluster: &str) -> bool {
        self.server_id == id || !self.cluster.is_empty() && self.cluster == cluster
    }
}

/// What a nats-server says first, before anybody has logged in.
async fn greeting(url: &str) -> Option<Greeting> {
    let address: async_nats::ServerAddr = url.parse().ok()?;
    let greeting = async {
        let stream = TcpStream::connect((address.host(), address.port())).await.ok()?;
        let mut line = String::new();
        BufReader::new(stream.take(MOST_GREETED)).read_line(&mut line).await.ok()?;
        serde_json::from_str(line.strip_prefix("INFO ")?).ok()
    };
    time::timeout(GLANCE, greeting).await.ok().flatten()
}
