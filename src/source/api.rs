//! PocketBase's web API, one request at a time: whom it goes to, and what the answer means.

use std::{fmt::Write as _, net::SocketAddr, path::Path, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use reqwest::{
    Certificate, Client, RequestBuilder, StatusCode, Url,
    header::{AUTHORIZATION, HeaderValue, LOCATION},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::SourceError;
use crate::{
    options::{PocketBaseOptions, Secret},
    tls,
};

/// The collection that superusers are in, since PocketBase 0.23.
pub(super) const SUPERUSERS: &str = "_superusers";

/// Its id, the same in every PocketBase.
const SUPERUSERS_ID: &str = "pbc_3142635823";

/// So much is read of an answer that is one of failure, or not PocketBase's,
const FAILURE: usize = 1 << 16;

/// and of one to a question that is not for all records. A thousand collections take less.
const SOME: usize = 1 << 24;

/// How large an answer may be, and what is likely. One that grows while it comes takes up to three times
/// its room.
#[derive(Clone, Copy)]
pub(super) struct Room {
    pub(super) expected: usize,
    pub(super) most: usize,
}

/// The address, and how to talk to it.
#[derive(Clone, Debug)]
pub(super) struct Api {
    base: Url,
    authorities: Vec<Certificate>,
    pub(super) client: Client,
    pub(super) timeout: Duration,
}

impl Api {
    pub(super) fn open(url: &str, options: &PocketBaseOptions) -> Result<Api, SourceError> {
        let wrong = |problem: &str| SourceError::Settings(format!("`url` {problem}"));
        let base = Url::parse(url).map_err(|_| wrong("is not an address such as `http://…`"))?;
        if !matches!(base.scheme(), "http" | "https") || !base.has_host() {
            return Err(wrong("does not begin with `http://` or `https://`"));
        }
        if !base.username().is_empty() || base.password().is_some() {
            return Err(wrong("holds a user name or password, which have settings of their own"));
        }
        let authorities = match &options.ca_file {
            Some(path) => authorities(path)?,
            None => Vec::new(),
        };
        let client = client(&base, &authorities, None)?;
        Ok(Api { base, authorities, client, timeout: options.request_timeout })
    }

    /// The same address, but all requests go to one IP address of its host: PocketBase wants the
    /// parts of a realtime connection from one client address, which differs by theirs.
    pub(super) async fn pinned(&self) -> Api {
        let (Some(host), Some(port)) = (self.base.host_str(), self.base.port_or_known_default())
        else {
            return self.clone();
        };
        let Ok(addresses) = tokio::net::lookup_host((host, port)).await else {
            return self.clone();
        };
        let addresses: Vec<_> = addresses.collect();
        if addresses.len() > 1 {
            let connect = tokio::net::TcpStream::connect(&*addresses);
            if let Ok(Ok(stream)) = tokio::time::timeout(self.timeout, connect).await
                && let Ok(address) = stream.peer_addr()
                && let Ok(client) = client(&self.base, &self.authorities, Some((host, address)))
            {
                return Api { client, ..self.clone() };
            }
        }
        self.clone()
    }

    /// The address as errors show it.
    pub(super) fn origin(&self) -> String {
        origin(&self.base)
    }

    pub(super) fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        url.set_query(None);
        url.set_fragment(None);
        url.path_segments_mut().expect("http has paths").pop_if_empty().push("api").extend(path);
        url
    }

    /// Asks, and waits for the complete answer.
    pub(super) async fn ask(
        &self,
        request: RequestBuilder,
        token: Option<&HeaderValue>,
    ) -> Result<Answer, SourceError> {
        self.ask_for(Room { expected: 0, most: SOME }, request, token).await
    }

    /// The same, for an answer that takes more room.
    pub(super) async fn ask_for(
        &self,
        room: Room,
        request: RequestBuilder,
        token: Option<&HeaderValue>,
    ) -> Result<Answer, SourceError> {
        let request = match token {
            Some(token) => request.header(AUTHORIZATION, token),
            None => request,
        };
        let request = request.timeout(self.timeout).build().map_err(|it| self.failed(it))?;
        let name = format!("{} {}", request.method(), request.url().path());
        let mut response = self.client.execute(request).await.map_err(|it| self.failed(it))?;
        let status = response.status();
        if let (true, Some(to)) = (status.is_redirection(), response.headers().get(LOCATION)) {
            let to = self.base.join(&String::from_utf8_lossy(to.as_bytes()));
            let to = to.map_or_else(|_| "…".into(), |it| origin(&it));
            return Err(SourceError::Redirected { request: name, to });
        }
        // As its pieces come, so that a large one is there once.
        let mut answer = Answer { request: name, status, body: Vec::with_capacity(room.expected) };
        while let Some(piece) = response.chunk().await.map_err(|it| self.failed(it))? {
            answer.body.extend_from_slice(&piece);
            let long = answer.body.len();
            // Of what is not PocketBase's good news the beginning says enough.
            if long > FAILURE && !(status.is_success() && answer.is_json()) {
                answer.body.truncate(FAILURE);
                break;
            }
            if long > room.most {
                return Err(SourceError::TooLarge { request: answer.request, most: room.most });
            }
        }
        if let Some(token) = token.and_then(|it| it.to_str().ok()) {
            answer.hide(token);
        }
        Ok(answer)
    }

    /// Exchanges a password for a token, which takes PocketBase 70 ms and may mail an alert.
    pub(super) async fn log_in(
        &self,
        collection: &str,
        identity: &str,
        password: &Secret,
    ) -> Result<HeaderValue, SourceError> {
        let url = self.url(&["collections", collection, "auth-with-password"]);
        let body = json!({ "identity": identity, "password": password.reveal() });
        let mut answer = self.ask(self.client.post(url).json(&body), None).await?;
        answer.hide(password.reveal());
        match (answer.status, answer.message()) {
            (StatusCode::OK, _) => answer.token(),
            (StatusCode::UNAUTHORIZED, _) if answer.json::<SecondFactor>().is_ok() => {
                Err(SourceError::SecondFactor)
            }
            (StatusCode::NOT_FOUND, Some(_)) if collection == SUPERUSERS => {
                Err(SourceError::TooOld { url: self.origin() })
            }
            (StatusCode::NOT_FOUND, Some(_)) => {
                Err(SourceError::NoAuthCollection { collection: collection.to_owned() })
            }
            (StatusCode::FORBIDDEN, Some(message)) => {
                Err(refused(collection, collection == SUPERUSERS, &message, &answer))
            }
            (StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED, Some(message)) => {
                let (collection, answer) = (collection.to_owned(), excerpt(&message));
                Err(SourceError::LoginRefused { collection, answer })
            }
            _ => Err(answer.failure()),
        }
    }

    /// Asks whether the token is good.
    pub(super) async fn refresh(&self, token: &HeaderValue) -> Result<Confirmed, SourceError> {
        let claims = Claims::of(token).ok_or(SourceError::TokenRefused)?;
        let url = self.url(&["collections", &claims.collection, "auth-refresh"]);
        let answer = self.ask(self.client.post(url), Some(token)).await?;
        match (answer.status, answer.message()) {
            (StatusCode::OK, _) => {
                let account = answer.json::<OfAccount>().ok().map(|it| it.record.collection);
                Ok(Confirmed { token: Some(answer.token()?), account })
            }
            // PocketBase up to 0.28 at least says so of an impersonation token, if it is good.
            (StatusCode::FORBIDDEN, Some(message))
                if !claims.refreshable && message.contains("not refreshable") =>
            {
                Ok(Confirmed { token: None, account: None })
            }
            (StatusCode::FORBIDDEN, Some(message)) => {
                let collection = &claims.collection;
                Err(refused(collection, collection == SUPERUSERS_ID, &message, &answer))
            }
            (StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND, Some(_)) => {
                Err(SourceError::TokenRefused)
            }
            _ => Err(answer.failure()),
        }
    }

    /// How many records of a collection are shown to the bearer of the token, or to a guest.
    pub(super) async fn shown(
        &self,
        collection: &str,
        token: Option<&HeaderValue>,
    ) -> Result<usize, SourceError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Page {
            total_items: usize,
        }
        let mut url = self.url(&["collections", collection, "records"]);
        url.query_pairs_mut().append_pair("perPage", "1").append_pair("fields", "id");
        let answer = self.ask(self.client.get(url), token).await?.of(collection)?;
        answer.json::<Page>().map(|it| it.total_items)
    }

    pub(super) fn failed(&self, error: reqwest::Error) -> SourceError {
        let url = self.origin();
        if error.is_timeout() {
            return SourceError::Slow { url, timeout: self.timeout };
        }
        SourceError::Unreachable { url, source: error.without_url() }
    }
}

/// What it means that PocketBase does not let somebody in, though nothing is wrong with what they showed.
fn refused(collection: &str, superuser: bool, message: &str, answer: &Answer) -> SourceError {
    let collection = collection.to_owned();
    if message.contains("not configured to allow password") {
        SourceError::NoPasswordLogin { collection }
    } else if message.contains("requirements to authenticate") {
        SourceError::RuledOut { collection }
    } else if superuser && message.starts_with("You are not allowed to perform this request") {
        // That is what it says where it gives no reason, and superusers are refused for no other.
        SourceError::AddressRefused
    } else {
        answer.failure()
    }
}

/// What PocketBase says of a good token.
pub(super) struct Confirmed {
    /// A new one, if it is of the kind that is renewed.
    pub(super) token: Option<HeaderValue>,
    /// The name that the account's collection has now, where it is told.
    pub(super) account: Option<String>,
}

#[derive(Deserialize)]
struct OfAccount {
    record: InCollection,
}

/// A record, as far as it says where it is from.
#[derive(Deserialize)]
pub(super) struct InCollection {
    #[serde(rename = "collectionName")]
    pub(super) collection: String,
}

/// The authorities in this file, which has one at least.
fn authorities(path: &Path) -> Result<Vec<Certificate>, SourceError> {
    let text = fs_err::read(path).map_err(|error| SourceError::Certificates(error.into()))?;
    match Certificate::from_pem_bundle(&text) {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) | Err(_) => {
            let problem = format!("`{}` holds no certificate in PEM form", path.display());
            Err(SourceError::Certificates(problem.into()))
        }
    }
}

fn client(
    base: &Url,
    authorities: &[Certificate],
    pin: Option<(&str, SocketAddr)>,
) -> Result<Client, SourceError> {
    let mut builder = tls::client(base, authorities);
    if is_loopback(base) {
        builder = builder.no_proxy();
    }
    if let Some((host, address)) = pin {
        builder = builder.resolve(host, address);
    }
    builder.build().map_err(|error| SourceError::Certificates(error.into()))
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse().is_ok_and(|it: std::net::IpAddr| it.is_loopback())
}

/// The address without what may be secret in it.
fn origin(url: &Url) -> String {
    format!("{}{}", url.origin().ascii_serialization(), url.path().trim_end_matches('/'))
}

/// What PocketBase answers to a right password if that is not enough.
#[derive(Deserialize)]
struct SecondFactor {
    #[serde(rename = "mfaId")]
    _id: String,
}

/// What a token says about itself.
#[derive(Deserialize)]
pub(super) struct Claims {
    #[serde(rename = "collectionId")]
    collection: String,
    #[serde(default)]
    refreshable: bool,
    /// The id of the account.
    #[serde(default)]
    pub(super) id: String,
    /// When it ends, in seconds since 1970.
    #[serde(default)]
    pub(super) exp: u64,
}

impl Claims {
    pub(super) fn of(token: &HeaderValue) -> Option<Claims> {
        let token = token.to_str().ok()?;
        let claims = token.trim_start_matches("Bearer ").split('.').nth(1)?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
    }
}

/// A complete answer.
pub(super) struct Answer {
    request: String,
    pub(super) status: StatusCode,
    body: Vec<u8>,
}

impl Answer {
    /// The answer to a question about a collection, if it is one of success.
    pub(super) fn of(self, collection: &str) -> Result<Answer, SourceError> {
        let collection = collection.to_owned();
        match self.status {
            StatusCode::OK => Ok(self),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if self.message().is_some() => {
                Err(SourceError::Forbidden { collection, account: None })
            }
            StatusCode::NOT_FOUND if self.message().is_some() => {
                Err(SourceError::NoCollection { collection })
            }
            _ => Err(self.failure()),
        }
    }

    pub(super) fn json<'a, T: Deserialize<'a>>(&'a self) -> Result<T, SourceError> {
        serde_json::from_slice(&self.body).map_err(|_| self.not_pocketbase())
    }

    /// What it says.
    pub(super) fn body(&self) -> &[u8] {
        &self.body
    }

    pub(super) fn into_body(self) -> Vec<u8> {
        self.body
    }

    /// What PocketBase says of a failure. `None`: it was not PocketBase that answered.
    pub(super) fn message(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Failure {
            message: String,
        }
        self.json::<Failure>().ok().map(|it| it.message)
    }

    pub(super) fn token(&self) -> Result<HeaderValue, SourceError> {
        #[derive(Deserialize)]
        struct Session {
            token: String,
        }
        header(&self.json::<Session>()?.token)
    }

    pub(super) fn failure(&self) -> SourceError {
        let mut answer = self
            .message()
            .map_or_else(|| String::from_utf8_lossy(&self.body).into_owned(), |it| excerpt(&it));
        for (field, complaint) in self.complaints() {
            let _ = write!(answer, "; {field}: {complaint}");
        }
        SourceError::Status {
            request: self.request.clone(),
            status: self.status.as_u16(),
            answer: excerpt(&answer),
            foreign: self.message().is_none(),
        }
    }

    /// What PocketBase has against single fields of what it was sent.
    pub(super) fn complaints(&self) -> Vec<(String, String)> {
        #[derive(Deserialize)]
        struct Failure {
            data: Map<String, Value>,
        }
        let fields = self.json::<Failure>().map(|it| it.data).unwrap_or_default();
        let complaints = fields.into_iter().map(|(field, it)| {
            let said = it["message"].as_str().map_or_else(|| it.to_string(), excerpt);
            (field, said)
        });
        complaints.collect()
    }

    pub(super) fn not_pocketbase(&self) -> SourceError {
        // JSON may be records, which are nothing to print.
        let answer = if self.is_json() {
            "JSON of another kind".into()
        } else {
            excerpt(&String::from_utf8_lossy(&self.body))
        };
        SourceError::NotPocketBase { request: self.request.clone(), answer }
    }

    /// What stands in front of PocketBase may repeat what we sent, and errors are printed.
    pub(super) fn hide(&mut self, secret: &str) {
        if !secret.is_empty() && (self.status != StatusCode::OK || !self.is_json()) {
            self.body = String::from_utf8_lossy(&self.body).replace(secret, "…").into_bytes();
        }
    }

    fn is_json(&self) -> bool {
        matches!(self.body.trim_ascii_start().first(), Some(b'{' | b'['))
    }
}

/// The beginning of a text, in one line and without a full stop.
pub(super) fn excerpt(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.trim_end_matches('.').to_owned(),
    }
}

/// A token as it is sent. `Debug` does not show it.
pub(super) fn header(token: &str) -> Result<HeaderValue, SourceError> {
    let mut value = HeaderValue::from_str(token).map_err(|_| SourceError::TokenRefused)?;
    value.set_sensitive(true);
    Ok(value)
}
