//! The live connection: a task that only ever says "look again".

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use reqwest::{
    StatusCode,
    header::{ACCEPT, HeaderValue},
};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time,
};
use tracing::{debug, info, warn};

use super::{
    Link, SourceError,
    api::Api,
    pulse,
    sse::{Decoder, Event},
};

/// PocketBase closes a connection that was silent for 300 s,
const SILENCE: Duration = Duration::from_secs(270);

/// and since 0.38.2 one that is 1,800 s old.
const AGE: Duration = Duration::from_mins(28);

/// How often to ask whether the token is still good. If it is not, the connection stays, silent, and
/// what changes meanwhile is not seen. It takes PocketBase a millisecond.
const CONFIRMATION: Duration = Duration::from_secs(5);

/// How long to wait before the next attempt, doubled with each.
const BACKOFF: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(5)];

/// The task, gone when dropped.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) hint: Arc<Notify>,
    _task: JoinSet<()>,
}

impl Live {
    /// Follows the collections, as the one whose token it is.
    pub(super) fn start(
        api: Api,
        token: watch::Receiver<Option<HeaderValue>>,
        collections: [String; 2],
        link: watch::Sender<Link>,
    ) -> Live {
        let hint = Arc::new(Notify::new());
        let mut task = JoinSet::new();
        task.spawn(pulse::watch(api.clone(), hint.clone(), link.clone()));
        task.spawn(Following { api, token, collections, hint: hint.clone(), link }.run());
        Live { hint, _task: task }
    }
}

struct Following {
    api: Api,
    token: watch::Receiver<Option<HeaderValue>>,
    collections: [String; 2],
    hint: Arc<Notify>,
    /// What we tell of the connection.
    link: watch::Sender<Link>,
}

/// How a connection came to its end.
enum End {
    /// It was time, or there is another token.
    Ours,
    /// PocketBase, or something before it, closed it.
    Theirs,
}

impl Following {
    async fn run(mut self) {
        let [first, longest] = BACKOFF;
        let mut pause = first;
        let mut told = false;
        loop {
            let begun = Instant::now();
            let end = self.follow(&mut told).await;
            self.link.send_modify(|link| {
                // One that we renew goes on, as far as anybody can see.
                let broke = !matches!(end, Ok(End::Ours)) && link.connected.take().is_some();
                link.reconnects += u64::from(broke);
            });
            match &end {
                Ok(End::Ours) => {
                    pause = first;
                    continue;
                }
                Ok(End::Theirs) => debug!("the live connection was closed"),
                Err(error) if told => debug!(%error, "no live connection"),
                Err(error) => {
                    told = true;
                    warn!(%error, "no live connection, changes are seen at the next resync");
                }
            }
            if begun.elapsed() > longest && end.is_ok() {
                pause = first;
            }
            time::sleep(pause).await;
            pause = longest.min(pause * 2);
        }
    }

    /// Connects, subscribes, and leaves a hint for whatever comes.
    async fn follow(&mut self, told: &mut bool) -> Result<End, SourceError> {
        let Ok(Some(token)) = self.token.wait_for(Option::is_some).await.map(|it| it.clone())
        else {
            // Nobody is left who would take a hint.
            return std::future::pending().await;
        };
        let api = self.api.pinned().await;
        let begun = time::Instant::now();
        let slow = || SourceError::Slow { url: api.origin(), timeout: api.timeout };
        let connect = api.client.get(api.url(&["realtime"])).header(ACCEPT, "text/event-stream");
        let mut stream = time::timeout(api.timeout, connect.send())
            .await
            .map_err(|_| slow())?
            .map_err(|error| api.failed(error))?;
        let none = |status: StatusCode| SourceError::NotPocketBase {
            request: "GET /api/realtime".into(),
            answer: status.to_string(),
        };
        let mut decoder = Decoder::default();
        let mut subscribed = false;
        let (mut heard, mut confirmed) = (begun, begun);
        loop {
            let silence = if subscribed { SILENCE } else { api.timeout };
            let chunk = tokio::select! {
                chunk = stream.chunk() => chunk.map_err(|error| api.failed(error))?,
                () = time::sleep_until((begun + AGE).min(heard + silence)) => {
                    return if subscribed { Ok(End::Ours) } else { Err(slow()) };
                }
                () = time::sleep_until(confirmed + CONFIRMATION) => {
                    confirmed = time::Instant::now();
                    let newest = self.token.borrow().clone().unwrap_or_else(|| token.clone());
                    if let Err(SourceError::TokenRefused) = api.refresh(&newest).await {
                        // Whoever looks again finds out too, and may get another one.
                        self.hint.notify_one();
                    }
                    continue;
                }
                _ = self.token.changed() => return Ok(End::Ours),
            };
            let Some(chunk) = chunk else {
                return if subscribed { Ok(End::Theirs) } else { Err(none(stream.status())) };
            };
            heard = time::Instant::now();
            for event in decoder.feed(&chunk) {
                if event.name == "PB_CONNECT" {
                    self.subscribe(&api, &token, &event).await?;
                    subscribed = true;
                    self.link.send_modify(|it| {
                        it.connected.get_or_insert_with(SystemTime::now);
                    });
                    if std::mem::take(told) {
                        info!("the live connection is back");
                    }
                }
                // Nobody knows what was missed before a connection, so that is a hint as well.
                self.hint.notify_one();
            }
        }
    }

    async fn subscribe(
        &self,
        api: &Api,
        token: &HeaderValue,
        connected: &Event,
    ) -> Result<(), SourceError> {
        /// What comes with `PB_CONNECT`.
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Connected {
            client_id: String,
        }
        let Ok(Connected { client_id }) = serde_json::from_str(&connected.data) else {
            let (request, answer) = ("GET /api/realtime".into(), connected.data.clone());
            return Err(SourceError::NotPocketBase { request, answer });
        };
        // `{"query":{"fields":"id"}}`: what changed is not told, only that something did.
        let trimmed = "?options=%7B%22query%22%3A%7B%22fields%22%3A%22id%22%7D%7D";
        let topics = self.collections.each_ref().map(|name| format!("{name}/*{trimmed}"));
        let body = json!({ "clientId": client_id, "subscriptions": topics });
        let request = api.client.post(api.url(&["realtime"])).json(&body);
        let answer = api.ask(request, Some(token)).await?;
        if answer.status == StatusCode::NO_CONTENT { Ok(()) } else { Err(answer.failure()) }
    }
}
