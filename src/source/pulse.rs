//! What the live connection does not tell, but stands, silent: that PocketBase hangs, and that the token
//! is not good any more.

use std::{
    fs::Metadata,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use reqwest::{Method, StatusCode};
use tokio::{
    sync::{Notify, watch},
    time,
};
use tracing::{info, warn};

use super::{Link, Silence, SourceError, api::Api};

/// How often it is asked.
const PERIOD: Duration = Duration::from_millis(1500);
/// How long it may take to answer what takes it no time.
const PATIENCE: Duration = Duration::from_secs(2);

/// Tells on the link since when it has been silent, for as long as it is. That it is back is a hint.
pub(super) async fn watch(api: Api, hint: Arc<Notify>, link: watch::Sender<Link>) {
    let mut heard = SystemTime::now();
    loop {
        time::sleep(PERIOD).await;
        let before = link.borrow().silence.is_some();
        match beat(&api).await {
            Ok(()) => {
                heard = SystemTime::now();
                if before {
                    info!("PocketBase answers again");
                    link.send_modify(|it| it.silence = None);
                    hint.notify_one();
                }
            }
            Err(error) => {
                if !before {
                    let hint = error.hint();
                    warn!(%error, hint, "PocketBase is silent; the last good state stands");
                }
                let silence = Silence { since: heard, error: Arc::new(error) };
                link.send_modify(|it| it.silence = Some(silence));
            }
        }
    }
}

/// Hints when this file was replaced: a token or password that is set anew is used at once, as nobody
/// tells that the former one is of no use any more.
pub(super) async fn watch_secret(file: PathBuf, hint: Arc<Notify>) {
    let print = |it: Metadata| (it.dev(), it.ino(), it.len(), it.ctime(), it.ctime_nsec());
    let mut before = fs_err::tokio::metadata(&file).await.ok().map(print);
    loop {
        time::sleep(PERIOD).await;
        let now = fs_err::tokio::metadata(&file).await.ok().map(print);
        if now.is_some() && now != before {
            before = now;
            hint.notify_one();
        }
    }
}

/// Asks what PocketBase answers by itself, without a look at its data, and leaves out of its log.
async fn beat(api: &Api) -> Result<(), SourceError> {
    let url = api.url(&["health"]);
    let request = api.client.request(Method::OPTIONS, url).timeout(PATIENCE);
    let answer = request.send().await.map_err(|error| match api.failed(error) {
        SourceError::Slow { url, .. } => SourceError::Slow { url, timeout: PATIENCE },
        other => other,
    })?;
    match answer.status() {
        // So says what stands before it.
        status @ (StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT) => Err(SourceError::Status {
            request: "OPTIONS /api/health".into(),
            status: status.as_u16(),
            answer: String::new(),
            foreign: true,
        }),
        _ => Ok(()),
    }
}
