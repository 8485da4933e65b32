//! PocketBase over its web API.
//!
//! PocketBase treats whoever comes with a bad token as a guest, and many a question of a guest is
//! answered with success and no rows. So nothing that a guest might have been told is believed
//! until PocketBase has confirmed the token.

use std::{
    hash::{BuildHasher as _, RandomState},
    io, mem,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Duration, Instant, SystemTime},
};

use reqwest::{RequestBuilder, StatusCode, header::HeaderValue};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::sync::watch;
use tracing::warn;

use super::{
    Kind, Link, Source, SourceError,
    api::{Answer, Api, Claims, Room, header},
    names::Ids,
    realtime::{Known, Live},
    record::{Before, Names, Raw, Records, Schema, is_of_auth_collection},
    view::{Export, Row},
};
use crate::{
    auth::{RoleRecord, Snapshot, UserRecord},
    options::{PocketBaseOptions, Secret},
};

/// PocketBase gives no more records than this at once.
const PAGE: usize = 1000;

/// Room for a page of them. More than 64 KiB a record is not read.
const PAGE_ROOM: Room = Room { expected: 1 << 19, most: 1 << 26 };

/// A listing is believed when two readings in a row are equal; so many are tried.
const READINGS: usize = 6;

/// Room for the first answer. As long as it is not filled, it takes addresses and no memory.
const ROOM: usize = 1 << 24;

/// No view is larger: a million users take a quarter of it.
const MOST: usize = 1 << 30;

/// A token that was got by password is exchanged for a new one when it has lived this part of its life,
/// which by default is a day; but not before it is so old.
const RENEWAL: u32 = 4;
const NEW: Duration = Duration::from_mins(5);

/// A PocketBase at an address.
#[derive(Debug)]
pub struct Http {
    pub(super) api: Api,
    pub(super) names: Names,
    pub(super) view: String,
    credentials: Credentials,
    /// The token in use. Receivers are told when another one replaces it, not when it is renewed.
    pub(super) token: watch::Sender<Option<HeaderValue>>,
    /// When the token that was got by password is to be exchanged.
    renew: watch::Sender<Instant>,
    resync: Duration,
    /// When the view was last compared with the collections, if it does not do that itself.
    compared: Option<Instant>,
    /// Whether there was a hint since.
    hinted: bool,
    /// Whether there is a view, as far as is known.
    viewed: bool,
    /// When it was last seen that there is none.
    absent: Option<Instant>,
    pub(super) ids: Ids,
    /// The print of the last listing that is believed.
    listed: Option<u64>,
    print: RandomState,
    /// What the live connection has to know of what was read.
    pub(super) known: Arc<Known>,
    /// Room for an answer like the last.
    room: usize,
    before: Before,
    live: Option<Live>,
    link: watch::Sender<Link>,
}

/// How we show who we are.
#[derive(Clone, Debug)]
enum Credentials {
    Token(Secret),
    TokenFile(PathBuf),
    Password { collection: String, identity: String, password: Password },
}

#[derive(Clone, Debug)]
enum Password {
    Text(Secret),
    File(PathBuf),
}

impl Http {
    pub(super) fn open(url: &str, options: &PocketBaseOptions) -> Result<Http, SourceError> {
        let api = Api::open(url, options)?;
        let link = Link { kind: Kind::PocketBase, address: api.origin(), ..Link::default() };
        Ok(Http {
            api,
            names: Names::new(options),
            view: options.export_view.clone(),
            credentials: Credentials::new(options)?,
            token: watch::Sender::new(None),
            renew: watch::Sender::new(Instant::now()),
            resync: options.resync_interval,
            compared: None,
            hinted: false,
            viewed: false,
            absent: None,
            ids: Ids::default(),
            listed: None,
            print: RandomState::new(),
            known: Arc::default(),
            room: ROOM,
            before: Before::default(),
            live: None,
            link: watch::Sender::new(link),
        })
    }

    /// Another reader, with the same session.
    pub(super) fn beside(&self) -> Http {
        Http {
            api: self.api.clone(),
            names: self.names.clone(),
            view: self.view.clone(),
            credentials: self.credentials.clone(),
            token: self.token.clone(),
            renew: self.renew.clone(),
            resync: self.resync,
            compared: None,
            absent: self.absent,
            hinted: false,
            viewed: false,
            ids: self.ids.clone(),
            listed: None,
            print: RandomState::new(),
            known: Arc::default(),
            room: ROOM,
            before: Before::default(),
            live: None,
            link: watch::Sender::new(self.link.borrow().clone()),
        }
    }

    async fn read(&mut self) -> Result<Snapshot, SourceError> {
        let result = match self.view().await {
            // A guest would not have seen the row.
            Ok(Some(snapshot)) => {
                self.viewed = true;
                self.known.read(Some([snapshot.users.len(), snapshot.roles.len()]));
                return Ok(snapshot);
            }
            Ok(None) => {
                if mem::take(&mut self.viewed) {
                    let view = &self.view;
                    warn!(%view, "the view is gone, deleted or renamed; both collections are listed");
                }
                self.listing().await
            }
            Err(error) => Err(error),
        };
        if let Err(SourceError::Unreachable { .. } | SourceError::Slow { .. }) = result {
            return result;
        }
        let print = result.as_ref().ok().map(|it| self.print.hash_one(it));
        // Records that are shown as they were before, to whomever, change nothing.
        let same = print.is_some() && print == self.listed;
        if !same || result.as_ref().is_ok_and(|it| it.users.is_empty()) {
            let account = self.confirm().await?;
            return match result {
                Ok(snapshot) => {
                    self.listed = print;
                    self.known.read(None);
                    Ok(snapshot)
                }
                Err(SourceError::Forbidden { collection, .. }) => {
                    Err(SourceError::Forbidden { collection, account })
                }
                Err(SourceError::ViewHidden { view, .. }) => {
                    Err(SourceError::ViewHidden { view, account })
                }
                Err(SourceError::NoCollection { collection }) => Err(self.gone(collection).await),
                Err(error) => Err(error),
            };
        }
        self.known.read(None);
        result
    }

    /// Reads the export view, if there is one.
    async fn view(&mut self) -> Result<Option<Snapshot>, SourceError> {
        /// The answer to a listing of the view.
        #[derive(Deserialize)]
        struct Page<'a> {
            #[serde(borrow)]
            items: Vec<Row<'a>>,
        }
        let view = &self.view;
        // One that was not there may be made, but nobody makes it all the time.
        let absent = self.absent.is_some_and(|it| it.elapsed() < self.resync * 10);
        if view.is_empty() || absent && !self.hinted {
            return Ok(None);
        }
        let room = Room { expected: self.room, most: MOST };
        let answer = self.ask_for(room, self.records(view, &[("perPage", "1")])).await?;
        if answer.status == StatusCode::NOT_FOUND {
            (self.absent, self.hinted) = (Some(Instant::now()), false);
            return Ok(None);
        }
        self.absent = None;
        let answer = answer.of(view)?;
        let mut items = match answer.json() {
            Ok(Page { items }) => items,
            // Any view may have the name, and anything may answer.
            Err(_) if answer.json::<self::Page>().is_ok() => {
                return Err(SourceError::ViewUnknown { view: view.clone() });
            }
            Err(error) => return Err(error),
        };
        let Some(mut row) = items.pop() else {
            return Err(SourceError::ViewHidden { view: view.clone(), account: None });
        };
        let due = self.hinted || self.compared.is_none_or(|it| it.elapsed() >= self.resync);
        if !row.compare_itself(view, &self.names)? && due {
            let users = self.visible_schema(&self.names.users).await?;
            let roles = self.visible_schema(&self.names.roles).await?;
            let users = users.as_ref().map(|it| self.names.known_user_fields(it));
            let roles = roles.as_ref().map(|it| Names::known_role_fields(it));
            row.compare(view, &users.unwrap_or_default(), &roles.unwrap_or_default())?;
            self.compared = Some(Instant::now());
            self.hinted = false;
        }
        let export = Export::new(row, answer.body());
        let answer = answer.into_body();
        // A few more may come.
        self.room = answer.len() + answer.len() / 64;
        let snapshot = export.snapshot(view, &self.names, answer, &self.before)?;
        self.before.keep(&snapshot.users);
        Ok(Some(snapshot))
    }

    /// What this account may know about a collection's fields.
    async fn visible_schema(&self, collection: &str) -> Result<Option<Schema>, SourceError> {
        if let Some(schema) = self.schema(collection).await? {
            return Ok(Some(schema));
        }
        let answer = self.ask(self.records(collection, &[("perPage", "1")])).await?;
        if answer.status == StatusCode::NOT_FOUND && answer.message().is_some() {
            return Err(SourceError::NoCollection { collection: collection.to_owned() });
        }
        if answer.status != StatusCode::OK {
            return Ok(None);
        }
        Ok(answer.json::<Page>()?.items.first().map(|record| Schema::of(collection, record)))
    }

    /// What only superusers are told about a collection.
    pub(super) async fn schema(&self, collection: &str) -> Result<Option<Schema>, SourceError> {
        let url = self.api.url(&["collections", collection]);
        let answer = self.ask(self.api.client.get(url)).await?;
        match answer.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => Ok(None),
            _ => answer.of(collection)?.json().map(Some),
        }
    }

    /// Lists both collections until nothing has changed in between.
    async fn listing(&mut self) -> Result<Snapshot, SourceError> {
        // Of many records it is large, so only its print is kept. Nobody else can make one like it.
        let mut before = None;
        for _ in 0..READINGS {
            let roles = self.roles().await?;
            let (users, pages) = self.users().await?;
            let now = Snapshot { users, roles };
            self.before.keep(&now.users);
            // One page is read as of one moment. With the same roles before and after it, that
            // moment is the snapshot's; several pages have to be the same twice.
            let printed = Some(self.print.hash_one(&now));
            // One that was whole before is so still.
            let whole = printed == self.listed
                || match pages {
                    0 | 1 => self.roles().await? == now.roles,
                    _ => before == printed,
                };
            if whole {
                self.look_closer(&now).await?;
                return Ok(now);
            }
            before = printed;
        }
        Err(SourceError::Torn { readings: READINGS })
    }

    /// The users, and how many pages they were on.
    async fn users(&self) -> Result<(Vec<UserRecord>, usize), SourceError> {
        let names = &self.names;
        let mut records = Records::new(names, &self.before);
        let fields = names.of_user();
        let pages = self.list(&names.users, |mut record| {
            see(&self.ids.users, &record);
            if !is_of_auth_collection(&record) {
                record.remove("email");
            }
            records.user(|at| record.remove(fields[at]).map(Raw::Value))
        });
        match pages.await {
            Err(SourceError::NoField { field, .. }) if field == names.password => {
                Err(self.no_password(self.schema(&names.users).await?.as_ref()))
            }
            pages => pages.map(|it| (records.made().users, it)),
        }
    }

    async fn roles(&self) -> Result<Vec<RoleRecord>, SourceError> {
        let none = Before::default();
        let mut records = Records::new(&self.names, &none);
        let fields = Names::of_role();
        let pages = self.list(&self.names.roles, |mut record| {
            see(&self.ids.roles, &record);
            records.role(|at| record.remove(fields[at]).map(Raw::Value))
        });
        pages.await.map(|_| records.made().roles)
    }

    /// Looks for what cannot be told from these records.
    async fn look_closer(&self, snapshot: &Snapshot) -> Result<(), SourceError> {
        let names = &self.names;
        if snapshot.roles.is_empty()
            && let Some(schema) = self.schema(&names.roles).await?
        {
            Names::role_fields(&schema)?;
        }
        // Some versions show a password-type field as empty.
        if snapshot.users.iter().all(|it| it.password.0.is_empty()) {
            let schema = self.schema(&names.users).await?;
            if let Some(schema) = &schema {
                names.user_fields(schema)?;
            }
            let field = schema.as_ref().and_then(|it| it.field(&names.password));
            let hidden = match field {
                Some(field) => field.kind == "password" && !snapshot.users.is_empty(),
                None => snapshot.users.iter().any(|it| it.nkey.is_empty()),
            };
            if hidden {
                return Err(self.no_password(schema.as_ref()));
            }
        }
        Ok(())
    }

    /// Why no password is shown.
    fn no_password(&self, schema: Option<&Schema>) -> SourceError {
        let collection = self.names.users.clone();
        let field = self.names.password.clone();
        if schema.is_some_and(|it| it.field(&field).is_none()) {
            self.names.missing(&field)
        } else {
            SourceError::PasswordsHidden { collection, field }
        }
    }

    /// Calls `each` for every record of a collection, in the order of their ids. Returns on how many
    /// pages there were any.
    ///
    /// Page numbers would skip records while others are deleted. The last id does not. To ask for
    /// some fields only would take PocketBase twice as long.
    pub(super) async fn list(
        &self,
        collection: &str,
        mut each: impl FnMut(Map<String, Value>) -> Result<(), SourceError>,
    ) -> Result<usize, SourceError> {
        let per_page = PAGE.to_string();
        let (mut pages, mut last) = (0, String::new());
        loop {
            let filter = format!("id>'{}'", last.replace('\'', "\\'"));
            let mut query = vec![("perPage", &*per_page), ("sort", "id")];
            if !last.is_empty() {
                query.push(("filter", &filter));
            }
            let answer = self.ask_for(PAGE_ROOM, self.records(collection, &query)).await?;
            let answer = answer.of(collection)?;
            let page: Page = answer.json()?;
            let id = page.items.last().and_then(|it| it.get("id")?.as_str()).unwrap_or_default();
            if !page.items.is_empty() && id <= &*last {
                return Err(answer.not_pocketbase());
            }
            id.clone_into(&mut last);
            pages += usize::from(!page.items.is_empty());
            let complete = page.items.len() < PAGE.min(page.per_page);
            page.items.into_iter().try_for_each(&mut each)?;
            if complete {
                return Ok(pages);
            }
        }
    }

    pub(super) fn records(&self, collection: &str, query: &[(&str, &str)]) -> RequestBuilder {
        let mut url = self.api.url(&["collections", collection, "records"]);
        url.query_pairs_mut().append_pair("skipTotal", "1").extend_pairs(query);
        self.api.client.get(url)
    }

    pub(super) async fn ask(&self, request: RequestBuilder) -> Result<Answer, SourceError> {
        let token = self.token.borrow().clone();
        self.api.ask(request, token.as_ref()).await
    }

    async fn ask_for(&self, room: Room, request: RequestBuilder) -> Result<Answer, SourceError> {
        let token = self.token.borrow().clone();
        self.api.ask_for(room, request, token.as_ref()).await
    }

    /// Makes sure that there is a token, the newest that we can know of.
    pub(super) async fn authenticate(&mut self) -> Result<(), SourceError> {
        match &self.credentials {
            Credentials::Token(token) => self.take(header(token.reveal())?),
            Credentials::TokenFile(path) => self.take(header(secret(path).await?.reveal())?),
            Credentials::Password { .. } if self.token.borrow().is_none() => self.log_in().await?,
            Credentials::Password { .. } if Instant::now() < *self.renew.borrow() => (),
            Credentials::Password { .. } => match self.confirm().await {
                Err(SourceError::TokenRefused) => self.log_in().await?,
                result => drop(result?),
            },
        }
        Ok(())
    }

    /// Uses this token from now on.
    fn take(&mut self, token: HeaderValue) {
        self.token.send_if_modified(|current| {
            let other = current.as_ref() != Some(&token);
            *current = Some(token);
            other
        });
    }

    /// Has PocketBase confirm the token, and renews one that was got by password. Returns what the
    /// account's collection is called, if that is told.
    pub(super) async fn confirm(&mut self) -> Result<Option<String>, SourceError> {
        let token = self.token.borrow().clone().ok_or(SourceError::TokenRefused)?;
        let confirmed = self.api.refresh(&token).await?;
        if let (Credentials::Password { .. }, Some(renewed)) = (&self.credentials, confirmed.token)
        {
            self.renew.send_replace(renewal(&renewed));
            self.token.send_if_modified(|current| {
                *current = Some(renewed);
                false
            });
        }
        Ok(confirmed.account)
    }

    /// Exchanges the password for a token, which takes PocketBase 70 ms and may mail an alert.
    async fn log_in(&mut self) -> Result<(), SourceError> {
        let Credentials::Password { collection, identity, password } = &self.credentials else {
            return Err(SourceError::TokenRefused);
        };
        let read;
        let password = match password {
            Password::Text(password) => password,
            Password::File(path) => {
                read = secret(path).await?;
                &read
            }
        };
        let token = self.api.log_in(collection, identity, password).await?;
        self.renew.send_replace(renewal(&token));
        self.take(token);
        Ok(())
    }
}

impl Source for Http {
    async fn snapshot(&mut self) -> Result<Snapshot, SourceError> {
        self.authenticate().await?;
        match self.read().await {
            Err(SourceError::TokenRefused) => {
                self.log_in().await?;
                self.read().await
            }
            result => result,
        }
    }

    async fn changed(&mut self) {
        let live = self.live.get_or_insert_with(|| {
            let topics = [&self.names.users, &self.names.roles].map(Clone::clone);
            let (token, link) = (self.token.subscribe(), self.link.clone());
            let secret = self.credentials.file().cloned();
            let known = self.known.clone();
            Live::start(self.api.clone(), token, secret, topics, link, known, self.resync)
        });
        live.hint.notified().await;
        self.hinted = true;
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.link.subscribe()
    }
}

impl Credentials {
    fn new(options: &PocketBaseOptions) -> Result<Credentials, SourceError> {
        let wrong = |problem: &str| Err(SourceError::Settings(problem.into()));
        let password = match (&options.password, &options.password_file) {
            (Some(_), Some(_)) => return wrong("both `password` and `password_file` are set"),
            (Some(text), None) => Some(Password::Text(text.clone())),
            (None, Some(path)) => Some(Password::File(path.clone())),
            (None, None) => None,
        };
        let collection = options.auth_collection.clone();
        match (&options.token, &options.token_file, &options.identity, password) {
            (Some(token), None, None, None) => Ok(Credentials::Token(token.clone())),
            (None, Some(path), None, None) => Ok(Credentials::TokenFile(path.clone())),
            (None, None, Some(identity), Some(password)) => {
                Ok(Credentials::Password { collection, identity: identity.clone(), password })
            }
            (None, None, Some(_), None) => wrong("`identity` is set without a password"),
            (None, None, None, Some(_)) => wrong("a password is set without `identity`"),
            (None, None, None, None) => wrong("there are no credentials beside `url`"),
            _ => wrong("more than one kind of credentials is set"),
        }
    }
}

impl Credentials {
    /// The file that they are in, if they are.
    fn file(&self) -> Option<&PathBuf> {
        match self {
            Credentials::TokenFile(file)
            | Credentials::Password { password: Password::File(file), .. } => Some(file),
            Credentials::Token(_) | Credentials::Password { password: Password::Text(_), .. } => {
                None
            }
        }
    }
}

/// Reads a token or password from a file.
async fn secret(path: &PathBuf) -> Result<Secret, SourceError> {
    let text = fs_err::tokio::read_to_string(path).await.map_err(SourceError::Credentials)?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        let empty = format!("`{}` is empty", path.display());
        return Err(SourceError::Credentials(io::Error::new(io::ErrorKind::InvalidData, empty)));
    }
    Ok(Secret::new(text))
}

/// Keeps the id of the collection that the record is in.
fn see(id: &OnceLock<String>, record: &Map<String, Value>) {
    if let Some(it) = record.get("collectionId").and_then(Value::as_str) {
        id.get_or_init(|| it.to_owned());
    }
}

/// When a token that was got just now is to be exchanged.
fn renewal(token: &HeaderValue) -> Instant {
    let end = Claims::of(token).map_or(0, |it| it.exp);
    let end = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(end));
    let life = end.and_then(|it| it.duration_since(SystemTime::now()).ok()).unwrap_or_default();
    Instant::now() + (life / RENEWAL).max(NEW)
}

/// A page of a listing.
#[derive(Deserialize)]
struct Page {
    items: Vec<Map<String, Value>>,
    #[serde(rename = "perPage")]
    per_page: usize,
}
