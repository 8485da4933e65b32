//! The address at which the daemon tells how it is. It reads the status and changes nothing.

mod explain;
mod metrics;

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, LazyLock},
    time::Duration,
};

use axum::{
    Extension, Router,
    extract::{Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri,
        header::{
            ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, ORIGIN,
            REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
        },
        uri::Authority,
    },
    middleware::{self, Next},
    response::{
        Html, IntoResponse, Response,
        sse::{Event, Sse},
    },
    routing::get,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::stream;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use reqwest::Url;
use ring::digest;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time,
};
use tracing::{debug, info, warn};

use self::explain::Desk;
pub use self::metrics::reference;
use crate::{
    options::{AdminOptions, Options},
    reconcile::Reconciler,
    source::PocketBase,
    status::{Status, Watch},
    tls,
};

/// How long a client may take to say what it wants.
const HEAD: Duration = Duration::from_secs(5);
/// How long it may take to hear the answer.
const ANSWER: Duration = Duration::from_mins(10);
/// How many clients there may be at once.
const MOST_CLIENTS: usize = 64;
/// The page shows how it is now after this, even if nothing changed.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// That something takes too long is told by nobody, and has to be looked at so often.
const GLANCE: Duration = Duration::from_millis(500);
/// Of many changes in a row, it shows what there is after each of these.
const FRAME: Duration = Duration::from_millis(100);
/// What pages from elsewhere may ask for: a link leads to the page, and neither costs anything.
const FOR_ALL: [&str; 3] = ["/", "/healthz", "/readyz"];
/// How long the daemon may take to tell how it is.
const PATIENCE: Duration = Duration::from_secs(5);

/// The daemon does not tell how it is, or cannot be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// The address is taken, or not one of this machine. Nobody listens there for us.
    #[error("cannot listen at `{listen}` (`admin.listen`)")]
    Listen {
        /// The address.
        listen: String,
        /// Why.
        source: io::Error,
    },
    /// The settings name no address.
    #[error("the daemon listens nowhere: `admin.listen` is empty")]
    Nowhere,
    /// Nobody answers there.
    #[error("no daemon answers at `{listen}` (`admin.listen`)")]
    Unreachable {
        /// The address.
        listen: String,
        /// Why.
        source: reqwest::Error,
    },
    /// Somebody else answers there, or a daemon of another version.
    #[error("what answers at `{listen}` (`admin.listen`) is no pb-nats of this version: {answer}")]
    Stranger {
        /// The address.
        listen: String,
        /// What it answers.
        answer: String,
    },
}

impl AdminError {
    /// What one can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            AdminError::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                "something listens there already, perhaps another pb-nats; set another address, \
                 or \"\" to listen nowhere"
            }
            AdminError::Listen { .. } => {
                "set an address of this machine, with a port from 1024 on, or \"\" to listen nowhere"
            }
            AdminError::Nowhere => "set it, such as \"127.0.0.1:9478\", and send the daemon SIGHUP",
            AdminError::Unreachable { .. } => {
                "is `pb-nats run` running, with these settings? Its log says why not; \
                 `pb-nats check` looks without it"
            }
            AdminError::Stranger { .. } => {
                "is it another program's port? After an update, restart the daemon"
            }
        }
    }
}

/// What listens, while it lives.
#[derive(Debug)]
pub struct Admin {
    options: AdminOptions,
    watch: Watch,
    desk: Desk,
    task: JoinSet<Infallible>,
}

impl Admin {
    /// Listens where the options say, and tells how it is with what this reconciler does.
    pub async fn start(
        options: &Options,
        reconciler: &Reconciler<PocketBase>,
    ) -> Result<Admin, AdminError> {
        let desk = Desk::new(options, reconciler.source());
        let watch = reconciler.status().clone();
        let mut admin = Admin { options: options.admin.clone(), watch, desk, task: JoinSet::new() };
        admin.listen().await?;
        Ok(admin)
    }

    /// Does it by these options instead, in the next reconciler's session with PocketBase, and returns
    /// the former options. On failure those still hold.
    pub async fn change(
        &mut self,
        options: &Options,
        next: &Reconciler<PocketBase>,
    ) -> Result<Options, AdminError> {
        if self.options != options.admin {
            // The new address may overlap the former one.
            self.task.shutdown().await;
            let former = std::mem::replace(&mut self.options, options.admin.clone());
            if let Err(error) = self.listen().await {
                self.options = former;
                self.listen().await?;
                return Err(error);
            }
        }
        Ok(self.desk.change(options, next.source()).await)
    }

    async fn listen(&mut self) -> Result<(), AdminError> {
        let listen = self.options.listen.clone();
        if listen.is_empty() {
            return Ok(());
        }
        let failed = |source| AdminError::Listen { listen: listen.clone(), source };
        let listener = TcpListener::bind(&*listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        if !address.ip().is_loopback() {
            warn!(%address, "whoever reaches this address sees names of users and servers");
        }
        info!("status at http://{address}");
        self.task.spawn(serve(listener, router(&self.options, &self.watch, &self.desk)));
        Ok(())
    }
}

/// How the daemon with these options says it is.
pub async fn ask(options: &AdminOptions) -> Result<Status, AdminError> {
    let listen = options.listen.clone();
    if listen.is_empty() {
        return Err(AdminError::Nowhere);
    }
    let unreachable =
        |error: reqwest::Error| AdminError::Unreachable { listen: listen.clone(), source: error };
    // Who listens everywhere also does so here.
    let near = listen.replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:");
    let url = Url::parse(&format!("http://{near}/status")).expect("checked with the settings");
    let client =
        tls::client(&url, &[]).no_proxy().timeout(PATIENCE).build().map_err(unreachable)?;
    let answer = client.get(url).send().await.map_err(unreachable)?;
    let status = answer.status();
    let text = tls::body(answer, 0, tls::MOST).await.map_err(unreachable)?.unwrap_or_default();
    serde_json::from_slice(&text).map_err(|error| {
        let answer = if status.is_success() { error.to_string() } else { status.to_string() };
        AdminError::Stranger { listen: listen.clone(), answer }
    })
}

/// Lets clients in, so many at a time. When there are more, the one that came first has to go: most
/// need a moment only, and nobody can keep others out by staying.
async fn serve(listener: TcpListener, router: Router) -> Infallible {
    let mut clients = JoinSet::new();
    let mut oldest: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Too many files are open, say.
            time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        while clients.try_join_next().is_some() {}
        oldest.retain(|it| !it.is_finished());
        if oldest.len() >= MOST_CLIENTS
            && let Some(oldest) = oldest.pop_front()
        {
            oldest.abort();
        }
        oldest.push_back(clients.spawn(converse(stream, router.clone())));
    }
}

/// One request, one answer.
async fn converse(stream: TcpStream, router: Router) {
    let Ok(local) = stream.local_addr() else { return };
    let router = router.layer(Extension(local));
    let answered = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Ok(Err(error)) = time::timeout(ANSWER, answered).await {
        debug!(%error, "a client of the status went wrong");
    }
}

fn router(options: &AdminOptions, watch: &Watch, desk: &Desk) -> Router {
    let mut hosts = options.hosts.clone();
    // Where the address is said by a name, that is one of ours. An IP is, if it is the one asked.
    if let Some((name, _)) = options.listen.rsplit_once(':')
        && options.listen.parse::<SocketAddr>().is_err()
    {
        hosts.push(name.into());
    }
    Router::new()
        .route("/", get(page))
        .route("/events", get(events))
        .route("/explain", get(explain::explain).with_state(desk.clone()))
        .route("/explain/users", get(explain::users).with_state(desk.clone()))
        .route("/healthz", get(health))
        .route("/readyz", get(readiness))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .fallback(async || (StatusCode::NOT_FOUND, "there is no such page\n"))
        .method_not_allowed_fallback(async || {
            let allow = [(ALLOW, HeaderValue::from_static("GET, HEAD"))];
            (StatusCode::METHOD_NOT_ALLOWED, allow, "nothing can be changed here\n")
        })
        .with_state(watch.clone())
        .layer(middleware::from_fn_with_state(Arc::<[String]>::from(hosts), guard))
}

/// Whether the loop does what it should: it makes passes, whatever comes of them.
async fn health(State(watch): State<Watch>) -> Response {
    let status = watch.now();
    if status.pass.stuck {
        let why = status.why().unwrap_or_default();
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response();
    }
    "ok\n".into_response()
}

/// Whether everything has been in force since the start.
async fn readiness(State(watch): State<Watch>) -> Response {
    if watch.ready() {
        return "ok\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", watch.now().summary)).into_response()
}

async fn metrics(State(watch): State<Watch>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, HeaderValue::from_static(kind))], metrics::text(&watch)).into_response()
}

async fn status(State(watch): State<Watch>) -> Response {
    let json = serde_json::to_string_pretty(&watch.now()).expect("a status can be written");
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], json + "\n").into_response()
}

/// The page for people, which needs nothing but itself and the events.
async fn page() -> Response {
    const PAGE: &str = include_str!("admin/page.html");
    // Nothing runs in it that is not ours, whatever a record holds.
    static POLICY: LazyLock<String> = LazyLock::new(|| {
        let hash = |tag: &str| {
            let (_, rest) = PAGE.split_once(&format!("<{tag}>")).expect("the page has it");
            let (text, _) = rest.split_once(&format!("</{tag}>")).expect("and ends it");
            STANDARD.encode(digest::digest(&digest::SHA256, text.as_bytes()))
        };
        format!(
            "default-src 'none'; connect-src 'self'; img-src data:; script-src 'sha256-{}'; \
             style-src 'sha256-{}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            hash("script"),
            hash("style")
        )
    });
    ([(CONTENT_SECURITY_POLICY, POLICY.as_str())], Html(PAGE)).into_response()
}

/// The status, again whenever it is another.
async fn events(State(watch): State<Watch>) -> Response {
    let mut changes = watch.changes();
    changes.mark_changed();
    let begun = (watch, changes, String::new());
    let told = stream::unfold(begun, async |(watch, mut changes, summary)| {
        let due = time::Instant::now() + HEARTBEAT;
        let status = loop {
            let changed = time::timeout(GLANCE, changes.changed()).await;
            if changed.is_ok() {
                time::sleep(FRAME).await;
                changes.mark_unchanged();
            }
            let status = watch.now();
            if changed.is_ok() || status.summary != summary || due <= time::Instant::now() {
                break status;
            }
        };
        let json = serde_json::to_string(&status).expect("a status can be written");
        Some((Ok::<_, Infallible>(Event::default().data(json)), (watch, changes, status.summary)))
    });
    Sse::new(told).into_response()
}

/// Answers only to our own names and pages, and sees to it that browsers are careful with the answer.
///
/// A page from elsewhere may have its own name resolve to this address, and its browser would let it
/// read what we say. By our name it could not read it, but have us do it.
async fn guard(
    State(hosts): State<Arc<[String]>>,
    Extension(local): Extension<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let mut response = if !is_ours(request.uri(), request.headers(), local.ip(), &hosts) {
        let text = "this is not a name of this host; names that are: `admin.hosts`\n";
        (StatusCode::MISDIRECTED_REQUEST, text).into_response()
    } else if is_costly(&request) && is_foreign(request.headers()) {
        let text = "pages from elsewhere may not ask; this host's own page is at `/`\n";
        (StatusCode::FORBIDDEN, text).into_response()
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// Whether it is answered with more than whether we live.
fn is_costly(request: &Request) -> bool {
    let is_question = [Method::GET, Method::HEAD].contains(request.method());
    is_question && !FOR_ALL.contains(&request.uri().path())
}

/// Whether a browser asks this for a page of another origin. What is no browser says nothing of it.
fn is_foreign(headers: &HeaderMap) -> bool {
    let ours = |origin: &HeaderValue| {
        let host = headers.get(HOST).and_then(|it| it.to_str().ok());
        // A proxy before us may speak HTTPS.
        let named = origin.to_str().ok().and_then(|it| it.split_once("://"));
        named.zip(host).is_some_and(|((_, origin), host)| origin.eq_ignore_ascii_case(host))
    };
    // `none`: somebody typed the address.
    let mut sites = headers.get_all("sec-fetch-site").iter();
    let same = |it: &HeaderValue| matches!(it.as_bytes(), b"same-origin" | b"none");
    !headers.get_all(ORIGIN).iter().all(ours) || !sites.all(same)
}

/// Whether every name that the request calls us by is one of ours.
fn is_ours(uri: &Uri, headers: &HeaderMap, local: IpAddr, hosts: &[String]) -> bool {
    let mut named = headers.get_all(HOST).iter();
    let (Some(host), None) = (named.next(), named.next()) else { return false };
    let Some(host) = host.to_str().ok().and_then(|it| it.parse::<Authority>().ok()) else {
        return false;
    };
    let ours = |authority: &Authority| {
        let host = authority.host().trim_matches(['[', ']']);
        host.eq_ignore_ascii_case("localhost")
            || hosts.iter().any(|it| it.eq_ignore_ascii_case(host))
            || host.parse().is_ok_and(|it: IpAddr| it.is_loopback() || it == local)
    };
    ours(&host) && uri.authority().is_none_or(ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(host: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().unwrap());
        let local = "192.0.2.7".parse().unwrap();
        is_ours(&Uri::from_static("/"), &headers, local, &["nats.example.com".into()])
    }

    #[test]
    fn only_our_own_names_are_answered_to() {
        for ours in [
            "localhost",
            "LOCALHOST:9478",
            "127.0.0.1:1",
            "127.1.2.3",
            "[::1]:9478",
            "192.0.2.7:9478",
            "nats.example.com",
            "NATS.example.com:443",
        ] {
            assert!(called(ours), "{ours}");
        }
        for other in [
            "",
            "evil.example",
            "localhost.evil.example",
            "evil.localhost.example",
            "127.0.0.1.evil.example",
            "example.com",
            "x.nats.example.com",
            "192.0.2.8",
            "[::2]",
            "0.0.0.0",
            "localhost@evil.example",
            "evil.example@evil.example",
            "localhost evil",
            "2130706433",
        ] {
            assert!(!called(other), "{other}");
        }
    }

    #[test]
    fn a_request_with_no_two_or_contradicting_names_is_refused() {
        let local = IpAddr::from([127, 0, 0, 1]);
        let mut headers = HeaderMap::new();
        assert!(!is_ours(&Uri::from_static("/"), &headers, local, &[]));
        headers.append(HOST, HeaderValue::from_static("localhost"));
        assert!(is_ours(&Uri::from_static("/"), &headers, local, &[]));
        assert!(!is_ours(&Uri::from_static("http://evil.example/"), &headers, local, &[]));
        headers.append(HOST, HeaderValue::from_static("localhost"));
        assert!(!is_ours(&Uri::from_static("/"), &headers, local, &[]));
    }
}
