//! The collection that shows in PocketBase how it is: all that we write there while we run.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use reqwest::{RequestBuilder, StatusCode, Url};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use super::{Http, SourceError, api::Answer};
use crate::options::PocketBaseOptions;

/// Its name.
pub const STATUS_COLLECTION: &str = "nats_sync_status";
/// What lets us write it.
pub(super) const MENDED_BY: &str = "`pb-nats init --write-status` makes `nats_sync_status`; where it \
     is there, let its list, create, update and delete rules admit the account, or set `write_status = \
     false`";
/// The id of the record about everything. PocketBase wants so many letters.
pub(crate) const OVERALL: &str = "natssyncoverall";

/// Its records, by their ids.
pub(crate) type Records = BTreeMap<String, StatusRecord>;

/// One of its records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StatusRecord {
    /// The user or role, or `everything`.
    pub(crate) name: String,
    /// Whether it is in force as it stands in PocketBase.
    pub(crate) in_force: bool,
    /// In a word, as in `/status`.
    pub(crate) state: String,
    /// Since when that is so, to the millisecond.
    #[serde(deserialize_with = "date")]
    pub(crate) since: Timestamp,
    /// Why, or where.
    pub(crate) reason: String,
    /// What one can do about it.
    pub(crate) mend: String,
    /// The collection of the record that this is about.
    pub(crate) collection: String,
    /// The id of the record that this is about.
    pub(crate) record: String,
}

/// PocketBase, as far as that collection goes.
#[derive(Debug)]
pub(crate) struct StatusCollection {
    http: Http,
    /// What it holds, and when that was read. `None`: nobody knows.
    there: Option<(Records, Instant)>,
    resync: Duration,
}

impl StatusCollection {
    /// Asks nobody yet.
    pub(crate) fn open(options: &PocketBaseOptions) -> Result<StatusCollection, SourceError> {
        let http = Http::open(options.url.as_deref().unwrap_or_default(), options)?;
        Ok(StatusCollection { http, there: None, resync: options.resync_interval })
    }

    /// Whether it is so long since it was read that others may have changed it.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.there.as_ref().is_none_or(|(_, read)| read.elapsed() >= self.resync)
    }

    /// What it holds.
    pub(crate) async fn read(&mut self) -> Result<&Records, SourceError> {
        self.http.authenticate().await?;
        if self.is_doubtful() {
            let listed = self.list().await;
            // A guest might be shown nothing.
            self.there = Some((self.confirmed(listed).await?, Instant::now()));
        }
        let (there, _) = self.there.as_ref().expect("it was read");
        Ok(there)
    }

    /// Makes it hold these records and no others. Returns how many were made, changed or deleted.
    pub(crate) async fn hold(&mut self, wanted: &Records) -> Result<usize, SourceError> {
        self.read().await?;
        let held = self.write(wanted).await;
        if held.is_err() {
            self.there = None;
            return self.confirmed(held).await;
        }
        held
    }

    /// Whether it can be written, as far as that is told without doing so.
    ///
    /// PocketBase looks at its rules first, and only then at what the record holds. So how it refuses
    /// a record that nobody could make tells whether we may make others.
    pub(crate) async fn try_out(&mut self) -> Result<(), SourceError> {
        let known = self.read().await?.contains_key(OVERALL);
        let bad = self.http.api.client.post(self.records()).json(&json!({ "id": "?" }));
        refused(&self.http.ask(bad).await?, "id", "make records")?;
        if known {
            let bad = self.http.api.client.patch(self.record(OVERALL));
            let answer = self.http.ask(bad.json(&json!({ "state": "" }))).await?;
            refused(&answer, "state", "change records")?;
        }
        Ok(())
    }

    async fn list(&self) -> Result<Records, SourceError> {
        let (mut there, mut strange) = (Records::new(), false);
        let listed = self.http.list(STATUS_COLLECTION, |record| {
            let id = record.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
            match serde_json::from_value(Value::Object(record)) {
                Ok(record) => drop(there.insert(id, record)),
                Err(_) => strange = true,
            }
            Ok(())
        });
        listed.await.map_err(|error| match error {
            SourceError::NoCollection { .. } => unwritable("there is no such collection".into()),
            SourceError::Forbidden { .. } => unwritable("the account may not list records".into()),
            other => other,
        })?;
        // The records of others are neither changed nor deleted.
        if strange {
            return Err(unwritable("it holds other records than pb-nats writes".into()));
        }
        Ok(there)
    }

    async fn write(&mut self, wanted: &Records) -> Result<usize, SourceError> {
        let (mut there, read) = self.there.take().expect("it was read");
        let before = there.clone();
        let mut written = 0;
        for id in before.keys().filter(|it| !wanted.contains_key(*it)) {
            self.order(self.http.api.client.delete(self.record(id)), "delete records").await?;
            there.remove(id);
            written += 1;
        }
        for (id, record) in wanted.iter().filter(|(id, it)| before.get(*id) != Some(it)) {
            let client = &self.http.api.client;
            if before.contains_key(id) {
                let request = client.patch(self.record(id)).json(record);
                self.order(request, "change records").await?;
            } else {
                let mut body = json!(record);
                body["id"] = id.as_str().into();
                self.order(client.post(self.records()).json(&body), "make records").await?;
            }
            there.insert(id.clone(), record.clone());
            written += 1;
        }
        self.there = Some((there, read));
        Ok(written)
    }

    async fn order(&self, request: RequestBuilder, what: &str) -> Result<(), SourceError> {
        let answer = self.http.ask(request).await?;
        match answer.status {
            StatusCode::OK | StatusCode::NO_CONTENT => Ok(()),
            StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND
                if answer.message().is_some() =>
            {
                Err(may_not(what, &answer))
            }
            _ => Err(answer.failure()),
        }
    }

    /// The result, unless PocketBase took us for a guest.
    async fn confirmed<T>(&mut self, result: Result<T, SourceError>) -> Result<T, SourceError> {
        if let Err(SourceError::Unreachable { .. } | SourceError::Slow { .. }) = result {
            return result;
        }
        let confirmed = self.http.confirm().await;
        if confirmed.is_err() {
            // So that the next attempt logs in again.
            self.http.token.send_replace(None);
        }
        confirmed.and(result)
    }

    fn records(&self) -> Url {
        self.http.api.url(&["collections", STATUS_COLLECTION, "records"])
    }

    fn record(&self, id: &str) -> Url {
        self.http.api.url(&["collections", STATUS_COLLECTION, "records", id])
    }
}

/// Whether this answer refuses a record for what it holds in the field, and not for who we are.
fn refused(answer: &Answer, field: &str, what: &str) -> Result<(), SourceError> {
    let for_the_field = answer.complaints().iter().any(|(name, _)| name == field);
    if for_the_field { Ok(()) } else { Err(may_not(what, answer)) }
}

fn may_not(what: &str, answer: &Answer) -> SourceError {
    unwritable(format!("the account may not {what} ({})", answer.failure()))
}

fn unwritable(why: String) -> SourceError {
    SourceError::Unwritable { collection: STATUS_COLLECTION.into(), why }
}

/// A date as PocketBase writes it. Of one that somebody else wrote nothing is believed.
fn date<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    let text = String::deserialize(deserializer)?;
    Ok(text.parse().unwrap_or(Timestamp::UNIX_EPOCH))
}
