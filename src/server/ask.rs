//! What servers run, in their own words: over the system account, or from their monitoring address.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, SystemTime},
};

use async_nats::{Client, ConnectOptions, Message, StatusCode, Subscriber, connection::State};
use futures_util::{StreamExt as _, future::join_all};
use reqwest::Url;
use serde::{Deserialize, Deserializer, de};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    net::TcpStream,
    time::{self, Instant},
};

use super::{GLANCE, ServerError};
use crate::{
    apply::LeafNode,
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
/// How many connections a server tells at once: at first, and at most.
const PAGE: usize = 1024;
const LARGEST_PAGE: usize = 16 * 1024;
/// With how many that are known already the next page begins.
const OVERLAP: usize = 128;
/// How long making a list takes at most. Who began later than that after it is from before the clock
/// was set back.
const LISTING: Duration = Duration::from_secs(5);

/// Whom to ask what the servers run.
#[derive(Debug)]
pub(super) enum Ask {
    /// All servers of the cluster at once.
    System(Box<System>),
    /// Each by itself.
    Monitors(Vec<Monitor>),
    /// Nobody.
    Nothing,
}

/// One server's answer.
#[derive(Debug)]
pub(super) struct Answer {
    /// Its name, or the address that was asked.
    pub(super) server: String,
    pub(super) running: Result<Running, ServerError>,
}

/// A server as it is said first to whoever connects.
#[derive(Clone, Debug, Deserialize)]
struct Greeting {
    server_id: String,
    /// Its cluster, if it is in one.
    #[serde(default)]
    cluster: String,
}

/// What a server runs.
#[derive(Clone, Debug)]
pub struct Running {
    /// What it calls itself until it ends.
    pub id: String,
    /// Its name. Unless one is set, its id.
    pub name: String,
    /// Its version, such as `2.15.1`.
    pub version: String,
    /// The digest of its config, since 2.11.
    pub config_digest: Option<String>,
    /// `pb_nats` in its config's `server_metadata`, since 2.12.
    pub stamp: Option<String>,
    /// Whether its config has metadata of someone else's.
    pub(super) other_metadata: bool,
    /// When it loaded its config, by its own clock.
    pub config_load_time: SystemTime,
    /// Whether it has loaded its config again since it started.
    pub(super) reloaded: bool,
    /// When it said so, by its own clock.
    pub(super) now: SystemTime,
    /// When it loaded its config, by our clock: rather too early than too late.
    pub loaded: SystemTime,
    /// How many clients are connected.
    pub connections: u64,
    /// How many leaf nodes are connected.
    pub(super) leaf_nodes: u64,
    /// Where it listens for clients.
    pub(super) address: String,
    /// Settings that it takes at its start only, by their names in its config.
    pub fixed: BTreeMap<&'static str, String>,
    /// The name of its cluster, if it is in one.
    pub(crate) cluster: String,
    /// How many other servers there are in its cluster.
    remotes: usize,
    /// Whether servers of other clusters may hear us as well, over gateways or leaf nodes.
    beyond: bool,
}

/// A client's connection to a server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Connection {
    /// The server's id.
    pub(super) server: String,
    /// Its number there.
    pub(super) number: u64,
    pub(super) user: String,
    /// Since when, by the server's clock.
    pub(super) start: SystemTime,
    /// Whether a leaf node has it. No reload looks at those.
    pub(super) leaf: bool,
}

/// Connections that their servers were told to close.
#[derive(Debug)]
pub(super) struct Kicks {
    pub(super) connections: Vec<Connection>,
    replies: Subscriber,
}

/// The system account, over one connection that is made when it is needed.
#[derive(Debug)]
pub(super) struct System {
    urls: Vec<String>,
    /// The same without passwords.
    address: String,
    login: Login,
    client: Option<Client>,
    /// Who listens at the `urls`, as far as that was asked.
    greetings: Vec<Greeting>,
    /// The ids of servers about which the `urls` were asked.
    asked_about: BTreeSet<String>,
    /// Who answers as well, and is not ours: by id, and when it last did.
    strangers: BTreeMap<String, (Running, Instant)>,
}

#[derive(Debug)]
enum Login {
    Nobody,
    Credentials(PathBuf),
    Password(String, Secret),
    PasswordFile(String, PathBuf),
}

/// A server's monitoring address.
#[derive(Debug)]
pub(super) struct Monitor {
    url: Url,
    /// The same without a password.
    address: String,
    client: reqwest::Client,
}

impl Ask {
    pub(super) fn new(options: &NatsOptions) -> Result<Ask, ServerError> {
        if let Some(url) = &options.system_url {
            return Ok(Ask::System(Box::new(System::new(url, options)?)));
        }
        if options.monitor_url.is_empty() {
            return Ok(Ask::Nothing);
        }
        options
            .monitor_url
            .iter()
            .map(|it| Monitor::new(it))
            .collect::<Result<_, _>>()
            .map(Ask::Monitors)
    }

    /// The system account, if that is whom we ask.
    pub(super) fn system(&self) -> Option<&System> {
        match self {
            Ask::System(system) => Some(system),
            Ask::Monitors(_) | Ask::Nothing => None,
        }
    }

    /// The servers that answer on the system account, and are not ours.
    pub(super) fn strangers(&self) -> Vec<&Running> {
        self.system().map_or_else(Vec::new, |it| it.strangers.values().map(|(it, _)| it).collect())
    }

    /// The answer of every server that is ours.
    pub(super) async fn everyone(&mut self, patience: Duration) -> Vec<Answer> {
        match self {
            Ask::System(system) => match system.everyone(patience).await {
                Ok(all) => all,
                Err(error) => vec![Answer { server: system.address.clone(), running: Err(error) }],
            },
            Ask::Monitors(monitors) => {
                let each = monitors.iter().map(async |it| Answer {
                    server: it.address.clone(),
                    running: it.running(patience).await,
                });
                join_all(each).await
            }
            Ask::Nothing => Vec::new(),
        }
    }

    /// How many connections each user of the global account has, a map for each server that
    /// [`Ask::everyone`] reached. `None`: nobody tells.
    pub(super) async fn clients(
        &mut self,
        answers: &[Answer],
        patience: Duration,
    ) -> Option<Vec<BTreeMap<String, usize>>> {
        let deadline = Instant::now() + patience;
        // Who does not tell keeps nobody else from it.
        let servers: Vec<_> = match self {
            Ask::System(system) => {
                let all = answers.iter().filter_map(Answer::ok);
                let each = all.map(async |it| system.connected(it, None, deadline).await.ok());
                join_all(each).await
            }
            Ask::Monitors(monitors) => {
                let each = monitors.iter().map(async |it| it.connected(deadline).await.ok());
                join_all(each).await
            }
            Ask::Nothing => return None,
        };
        let servers: Vec<_> = servers.into_iter().flatten().map(counted).collect();
        (!servers.is_empty()).then_some(servers)
    }
}

impl Ask {
    /// The leaf nodes of users of the global account that are connected to a server that answered.
    pub(super) async fn leaf_nodes(
        &self,
        answer: &Answer,
        deadline: Instant,
    ) -> Result<Vec<Connection>, ServerError> {
        let Some(running) = answer.ok().filter(|it| it.leaf_nodes > 0) else {
            return Ok(Vec::new());
        };
        let connected = match self {
            Ask::System(system) => system.connected(running, None, deadline).await?,
            Ask::Monitors(monitors) => {
                let monitor = monitors.iter().find(|it| it.address == answer.server);
                let monitor = monitor.expect("that is who answered");
                monitor.connected(deadline).await?
            }
            Ask::Nothing => Vec::new(),
        };
        // One that the server itself connected to another has nobody's name.
        let users = connected
            .into_iter()
            .filter(|it| it.is_of_ours() && it.is_leaf() && !it.authorized_user.is_empty());
        Ok(users.map(|it| it.on(&running.id)).collect())
    }
}

impl Answer {
    /// What it runs, if it answered.
    pub(super) fn ok(&self) -> Option<&Running> {
        self.running.as_ref().ok()
    }

    /// Who answered, if it did.
    pub(super) fn awake(&self) -> Option<String> {
        self.running.is_ok().then(|| self.server.clone())
    }
}

impl System {
    fn new(url: &str, options: &NatsOptions) -> Result<System, ServerError> {
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
    async fn everyone(&mut self, patience: Duration) -> Result<Vec<Answer>, ServerError> {
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
        // Who does not even say who it is may be one of ours.
        garbled.retain(|_, (it, _)| {
            it.id.as_ref().is_none_or(|id| ours.iter().any(|ours| ours.is(id, &it.cluster)))
        });
        let now = Instant::now();
        self.strangers.extend(strangers.into_iter().map(|it| (it.id.clone(), (it, now))));
        self.strangers.retain(|id, (_, heard)| {
            heard.elapsed() < REMEMBERED && answers.iter().all(|it| it.id != *id)
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
    pub(super) async fn reload(
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
    pub(super) async fn connections(
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
    async fn connected(
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
    pub(super) async fn close(&self, leaf_nodes: &BTreeSet<LeafNode>, deadline: Instant) {
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
    pub(super) async fn kick(&self, connections: Vec<Connection>) -> Result<Kicks, ServerError> {
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
    pub(super) async fn kicked(
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

impl Monitor {
    fn new(url: &str) -> Result<Monitor, ServerError> {
        let unusable = |reason: String| ServerError::Setting { setting: "monitor_url", reason };
        let mut url: Url = url.parse().map_err(|_| unusable("it is not a URL".into()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(unusable("it must begin with http:// or https://".into()));
        }
        let path = format!("{}/varz", url.path().trim_end_matches('/'));
        url.set_path(&path);
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or_default();
        let address = format!("{host}:{port}");
        let client = tls::client(&url, &[])
            .no_proxy()
            .build()
            .map_err(|source| ServerError::Monitor { url: address.clone(), source })?;
        Ok(Monitor { url, address, client })
    }

    async fn running(&self, patience: Duration) -> Result<Running, ServerError> {
        let failed = |source: reqwest::Error| ServerError::Monitor {
            url: self.address.clone(),
            source: source.without_url(),
        };
        let sent = SystemTime::now();
        let request = self.client.get(self.url.clone()).timeout(patience);
        let response = request.send().await.and_then(reqwest::Response::error_for_status);
        let text = tls::body(response.map_err(failed)?, 0, tls::MOST).await.map_err(failed)?;
        let text = text.ok_or_else(|| ServerError::TooMuch { server: self.address.clone() })?;
        let varz: Varz = serde_json::from_slice(&text)
            .map_err(|source| ServerError::Garbled { server: self.address.clone(), source })?;
        Ok(varz.running(sent))
    }
}

impl Monitor {
    /// The connections of users of the global account to the server.
    async fn connected(&self, deadline: Instant) -> Result<Vec<Connected>, ServerError> {
        let failed = |source: reqwest::Error| ServerError::Monitor {
            url: self.address.clone(),
            source: source.without_url(),
        };
        let mut url = self.url.clone();
        let path = url.path().strip_suffix("varz").expect("that is what it asks for").to_owned();
        url.set_path(&format!("{path}connz"));
        let mut pages = Pages::new();
        loop {
            let (offset, limit) = pages.next();
            let query = format!("auth=true&acc={GLOBAL}&sort=cid&offset={offset}&limit={limit}");
            url.set_query(Some(&query));
            let request = self.client.get(url.clone());
            let request = request.timeout(deadline.duration_since(Instant::now())).send();
            let response = request.await.and_then(reqwest::Response::error_for_status);
            let page = tls::body(response.map_err(failed)?, 0, tls::MOST).await.map_err(failed)?;
            // What is longer than any answer is none that can be read.
            let page = serde_json::from_slice(&page.unwrap_or_default()).map_err(|source| {
                ServerError::Unreadable { server: self.address.clone(), source }
            })?;
            if pages.add(page) {
                return Ok(pages.found);
            }
        }
    }
}

/// Connections, as a server lists them: in the order of their numbers, which only grow, a page at a
/// time.
///
/// Who comes meanwhile stands at the end. But where one goes, those behind it move up, and the next
/// page may begin behind some that nobody has seen. So it has to begin with one that is known; else
/// it is asked for again, from further ahead.
struct Pages {
    offset: usize,
    limit: usize,
    found: Vec<Connected>,
}

impl Pages {
    fn new() -> Pages {
        Pages { offset: 0, limit: PAGE, found: Vec::new() }
    }

    /// Where the next page begins, and how long it is at most.
    fn next(&self) -> (usize, usize) {
        (self.offset, self.limit)
    }

    /// Takes the page. Whether it was the last.
    fn add(&mut self, page: Connz) -> bool {
        let Connz { now, connections } = page;
        let known = self.found.last().map_or(0, |it| it.cid);
        if self.offset > 0 && connections.first().is_none_or(|it| it.cid > known) {
            self.offset = self.offset.saturating_sub(self.limit);
            return false;
        }
        let count = connections.len();
        let new = connections.into_iter().filter(|it| it.cid > known);
        self.found.extend(new.map(|it| it.by(now)));
        let last = count < self.limit;
        self.offset += count.saturating_sub(OVERLAP);
        // To a server each page is as much work as all of them.
        self.limit = (self.limit * 2).min(LARGEST_PAGE);
        last
    }
}

/// How many connections each user of the global account has.
fn counted(connections: Vec<Connected>) -> BTreeMap<String, usize> {
    let mut users = BTreeMap::new();
    let clients = connections.into_iter().filter(|it| it.is_of_ours() && !it.is_leaf());
    for it in clients {
        *users.entry(it.authorized_user).or_default() += 1;
    }
    users
}

/// The account that users of `authorization` are in.
const GLOBAL: &str = "$G";

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

/// A page of a server's connections.
#[derive(Deserialize)]
struct Connz {
    /// By the server's clock.
    #[serde(deserialize_with = "timestamp")]
    now: SystemTime,
    connections: Vec<Connected>,
}

impl Default for Connz {
    /// Of nobody.
    fn default() -> Connz {
        Connz { now: SystemTime::UNIX_EPOCH, connections: Vec::new() }
    }
}

#[derive(Deserialize)]
struct Connected {
    cid: u64,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    authorized_user: String,
    /// Unless it is the global one.
    #[serde(default)]
    account: String,
    #[serde(deserialize_with = "timestamp")]
    start: SystemTime,
}

impl Connected {
    /// Another account may have a user of the same name.
    fn is_of_ours(&self) -> bool {
        matches!(&*self.account, "" | GLOBAL)
    }

    fn is_leaf(&self) -> bool {
        self.kind == "Leafnode"
    }

    /// As it is at this time of the server. If it is to begin later, then the server's clock was set
    /// back since, and it began at some time before that.
    fn by(self, now: SystemTime) -> Connected {
        let ahead = self.start.duration_since(now).is_ok_and(|it| it > LISTING);
        let start = if ahead { SystemTime::UNIX_EPOCH } else { self.start };
        Connected { start, ..self }
    }

    fn on(self, server: &str) -> Connection {
        let leaf = self.is_leaf();
        let Connected { cid: number, kind: _, authorized_user: user, account: _, start } = self;
        Connection { server: server.to_owned(), number, user, start, leaf }
    }
}

/// What a server tells of itself, as far as it matters.
#[derive(Deserialize)]
struct Varz {
    server_id: String,
    server_name: String,
    version: String,
    #[serde(deserialize_with = "timestamp")]
    now: SystemTime,
    #[serde(deserialize_with = "timestamp")]
    config_load_time: SystemTime,
    #[serde(deserialize_with = "timestamp")]
    start: SystemTime,
    config_digest: Option<String>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    #[serde(default)]
    connections: u64,
    #[serde(default)]
    leafnodes: u64,
    #[serde(default)]
    remotes: usize,
    host: String,
    port: u16,
    #[serde(default)]
    http_port: i32,
    #[serde(default)]
    http_base_path: String,
    #[serde(default)]
    system_account: String,
    #[serde(default)]
    cluster: Cluster,
    #[serde(default)]
    gateway: Cluster,
}

#[derive(Default, Deserialize)]
struct Cluster {
    #[serde(default)]
    name: String,
}

impl Varz {
    fn running(mut self, sent: SystemTime) -> Running {
        let (received, now) = (SystemTime::now(), self.now);
        let loaded = self.config_load_time;
        let loaded = if loaded > now {
            // Its clock was set back since. Nobody knows by how much.
            SystemTime::UNIX_EPOCH
        } else if (sent..=received).contains(&now) {
            loaded
        } else {
            // Another clock. The answer was made after we asked, so this errs towards too early.
            match sent.duration_since(now) {
                Ok(behind) => loaded + behind,
                Err(ahead) => loaded - ahead.duration(),
            }
        };
        let fixed = [
            ("server_name", self.server_name.clone()),
            ("port", self.port.to_string()),
            ("http_port", self.http_port.to_string()),
            ("http_base_path", self.http_base_path),
            ("system_account", self.system_account),
        ];
        Running {
            id: self.server_id,
            fixed: fixed.into(),
            name: self.server_name,
            version: self.version,
            config_digest: self.config_digest.filter(|it| !it.is_empty()),
            stamp: self.metadata.remove("pb_nats"),
            other_metadata: !self.metadata.is_empty(),
            config_load_time: self.config_load_time,
            reloaded: self.config_load_time != self.start,
            now: self.now,
            loaded,
            connections: self.connections,
            leaf_nodes: self.leafnodes,
            address: format!("{}:{}", self.host, self.port),
            cluster: self.cluster.name,
            remotes: self.remotes,
            beyond: !self.gateway.name.is_empty() || self.leafnodes > 0,
        }
    }
}

fn timestamp<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
    let timestamp: jiff::Timestamp =
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)?;
    timestamp.try_into().map_err(de::Error::custom)
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

/// How many more servers there are in their clusters than these.
pub(super) fn unanswered<'a>(answers: impl Iterator<Item = &'a Running>) -> usize {
    let mut clusters = BTreeMap::<&str, (usize, usize)>::new();
    for running in answers {
        let (answered, size) = clusters.entry(&running.cluster).or_default();
        *answered += 1;
        *size = (*size).max(running.remotes + 1);
    }
    clusters.into_values().map(|(answered, size)| size.saturating_sub(answered)).sum()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::{Connected, Connz, LISTING, OVERLAP, PAGE, Pages};

    fn connected(cid: u64, start: SystemTime) -> Connected {
        let [kind, authorized_user, account] = [const { String::new() }; 3];
        Connected { cid, kind, authorized_user, account, start }
    }

    /// Whom one finds if so many of the first go from each page to the next.
    fn found(mut connections: Vec<u64>, mut going: impl Iterator<Item = usize>) -> Vec<u64> {
        let now = SystemTime::now();
        let mut pages = Pages::new();
        loop {
            let (offset, limit) = pages.next();
            let page = connections.iter().skip(offset).take(limit).map(|it| connected(*it, now));
            if pages.add(Connz { now, connections: page.collect() }) {
                return pages.found.iter().map(|it| it.cid).collect();
            }
            connections.drain(..going.next().unwrap_or_default().min(connections.len()));
        }
    }

    #[test]
    fn nobody_is_missed_though_others_go_from_page_to_page() {
        let all: Vec<u64> = (1..=10_000).map(|it| it * 3).collect();
        assert_eq!(found(all.clone(), std::iter::empty()), all);
        for goes in [1, OVERLAP - 1, OVERLAP, OVERLAP + 1, PAGE, 3 * PAGE, 9_999, 10_000] {
            for times in [1, 2, 20] {
                let found = found(all.clone(), std::iter::repeat_n(goes, times));
                assert!(found.is_sorted_by(|a, b| a < b));
                let stay = &all[(goes * times).min(all.len())..];
                assert!(stay.iter().all(|it| found.contains(it)), "{goes}, {times} times");
            }
        }
    }

    /// Else whoever is to go, and came before that, would count as one who came since.
    #[test]
    fn who_began_after_now_began_before_the_clock_was_set_back() {
        let now = SystemTime::now();
        let start = |it: Duration| connected(1, now + it).by(now).start;
        assert_eq!(start(Duration::from_hours(1)), SystemTime::UNIX_EPOCH);
        assert_eq!(start(LISTING / 2), now + LISTING / 2, "it came while the list was made");
    }
}
