//! The monitoring address: one server by itself.

use std::time::{Duration, SystemTime};

use reqwest::Url;
use tokio::time::Instant;

use super::{
    Running, ServerError,
    connz::{Connected, GLOBAL, Pages},
    varz::Varz,
};
use crate::tls;

/// A server's monitoring address.
#[derive(Debug)]
pub(crate) struct Monitor {
    url: Url,
    /// The same without a password.
    pub(super) address: String,
    client: reqwest::Client,
}

impl Monitor {
    pub(super) fn new(url: &str) -> Result<Monitor, ServerError> {
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

    pub(super) async fn running(&self, patience: Duration) -> Result<Running, ServerError> {
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
    pub(super) async fn connected(&self, deadline: Instant) -> Result<Vec<Connected>, ServerError> {
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
