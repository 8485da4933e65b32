//! What an operator should know of PocketBase beyond its records: what our account may do, and how
//! the collections are made. It only reads: what an account may write is told by no answer but a
//! write's.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use reqwest::{StatusCode, header::HeaderValue};
use serde::Deserialize;
use serde_json::{Map, Value};
#[cfg(feature = "sqlite")]
use tokio::task;

#[cfg(feature = "sqlite")]
use super::Sqlite;
use super::{
    Http, PocketBase, SourceError, api::Claims, realtime::why_unheard,
    record::is_of_auth_collection,
};

/// The collection for an app's users that a new PocketBase has.
const APP_USERS: &str = "users";

/// How PocketBase is set up, as far as we are told.
#[derive(Debug, Default)]
pub struct Inspection {
    /// Our account there. `None`: the database file is read, or PocketBase does not know us.
    pub account: Option<Account>,
    /// The collection of users, where we are told how it is made.
    pub users: Option<Collection>,
    /// The collection of roles, where we are told how it is made.
    pub roles: Option<Collection>,
    /// Whether the export view is there. `None`: there is no need for it.
    pub view: Option<bool>,
    /// Those of our collections that are shown to anybody, without a log-in.
    pub public: BTreeSet<String>,
    /// The collections of whose changes we are not told, or not of all, and why.
    pub unheard: BTreeMap<String, String>,
    /// PocketBase is older than 0.23.
    pub too_old: bool,
    /// PocketBase hashes passwords in a base collection, as far as we are told.
    pub hashes_in_base: bool,
}

/// The account that we read with.
#[derive(Debug)]
pub struct Account {
    /// Whether it may do everything.
    pub superuser: bool,
    /// When the token in use ends.
    pub expires: SystemTime,
    /// Records of a collection that is not ours, which it may read all the same.
    pub also_reads: Option<String>,
}

/// How a collection is made.
///
/// A rule that is `None` lets superusers do it, and an empty one everybody.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Collection {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `base`, `auth` or `view`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its fields, as PocketBase describes them.
    pub fields: Vec<Shape>,
    /// Its indexes, in SQL.
    #[serde(default)]
    pub indexes: Vec<String>,
    /// Who may list it.
    pub list_rule: Option<String>,
    /// Who may read a record of it.
    pub view_rule: Option<String>,
    /// Who may make a record in it.
    pub create_rule: Option<String>,
    /// Who may change a record of it.
    pub update_rule: Option<String>,
}

/// How a field is made.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shape {
    /// Its name.
    pub name: String,
    /// `text`, `json`, `bool`, `relation` …
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it may not be empty.
    #[serde(default)]
    pub required: bool,
    /// The collection that a relation refers to.
    #[serde(default)]
    pub collection_id: String,
}

/// Whether a rule admits whoever has an account, of whatever collection: ours among them.
///
/// What a rule with brackets amounts to is not worked out.
pub(crate) fn admits_any_account(rule: &str) -> bool {
    let bare: String = rule.chars().filter(|it| !it.is_whitespace()).collect();
    let any = |it: &str| matches!(it, "@request.auth.id!=\"\"" | "@request.auth.id!=''");
    !bare.contains('(') && bare.split("||").any(any)
}

/// That newer dashboards have no input for the passwords of this base collection, and what to do.
pub(crate) fn no_input_for_passwords(collection: &str) -> [String; 2] {
    [
        format!(
            "`{collection}` is a base collection, and the dashboard of newer PocketBases (0.40 is \
             one) has no input for the password of such a record"
        ),
        "`pb-nats user add` and `pb-nats user passwd` set passwords with every PocketBase; to type \
         them in the dashboard, move the users to an auth collection (in the book: \"Passwords in \
         the dashboard\")"
            .to_owned(),
    ]
}

impl Collection {
    fn hashes_in_base(&self, password: &str) -> bool {
        let hashed = |it: &Shape| it.name == password && it.kind == "password";
        self.kind == "base" && self.fields.iter().any(hashed)
    }
}

impl PocketBase {
    /// How PocketBase is set up, as far as it tells. Nothing is written to find out.
    ///
    /// After a [`snapshot`](super::Source::snapshot): the log-in of then is used.
    pub async fn inspect(&self) -> Inspection {
        match self {
            PocketBase::Http(http) => http.inspect().await,
            #[cfg(feature = "sqlite")]
            PocketBase::Sqlite(sqlite) => sqlite.inspect().await,
        }
    }
}

impl Http {
    async fn inspect(&self) -> Inspection {
        let mut inspection = Inspection {
            account: self.account().await,
            users: self.collection(&self.names.users).await,
            roles: self.collection(&self.names.roles).await,
            too_old: self.is_too_old().await,
            ..Inspection::default()
        };
        inspection.hashes_in_base = match &inspection.users {
            Some(users) => users.hashes_in_base(&self.names.password),
            None => self.shows_no_hash().await,
        };
        if !self.view.is_empty() {
            let there = self.listed(&self.view, self.token.borrow().clone()).await;
            inspection.view = Some(there.is_some());
        }
        for name in [&self.names.users, &self.names.roles, &self.view] {
            if !name.is_empty() && self.listed(name, None).await.is_some_and(|it| !it.is_empty()) {
                inspection.public.insert(name.clone());
            }
        }
        // What is listed anyway is what we are told of.
        for (name, count) in [&self.names.users, &self.names.roles]
            .into_iter()
            .zip(self.known.viewed().into_iter().flatten())
        {
            if let Some(why) = self.unheard(name, count).await {
                inspection.unheard.insert(name.clone(), why);
            }
        }
        inspection
    }

    /// Whether a user of a base collection has a password that is shown as none: so PocketBase does
    /// with those that it has hashed.
    async fn shows_no_hash(&self) -> bool {
        let name = &self.names.password;
        let filter = format!("{name} != ''");
        let query = [("skipTotal", "1"), ("perPage", "1"), ("filter", &filter)];
        let token = self.token.borrow().clone();
        let shown = self.page(&self.names.users, &query, token).await.unwrap_or_default();
        shown.first().is_some_and(|it| {
            !is_of_auth_collection(it) && it.get(name).and_then(Value::as_str) == Some("")
        })
    }

    /// Why we are not told of each change in the collection, if we are not.
    async fn unheard(&self, name: &str, count: usize) -> Option<String> {
        let token = self.token.borrow().clone();
        match self.api.shown(name, token.as_ref()).await {
            Ok(shown) if shown < count => Some(why_unheard(Some(shown), count)),
            Err(SourceError::Forbidden { .. }) => Some(why_unheard(None, count)),
            Ok(_) | Err(_) => None,
        }
    }

    async fn account(&self) -> Option<Account> {
        let token = self.token.borrow().clone()?;
        let claims = Claims::of(&token)?;
        // Only superusers are told which collections there are.
        let mut url = self.api.url(&["collections"]);
        url.query_pairs_mut().append_pair("perPage", "1").append_pair("fields", "id");
        let answer = self.ask(self.api.client.get(url)).await.ok()?;
        let superuser = answer.status == StatusCode::OK;
        let also_reads = if superuser { None } else { self.also_reads(&claims, token).await };
        let expires = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(claims.exp))?;
        Some(Account { superuser, expires, also_reads })
    }

    /// The app's users, if the account reads more of them than itself, and others do not.
    async fn also_reads(&self, claims: &Claims, token: HeaderValue) -> Option<String> {
        if [&self.names.users, &self.names.roles].contains(&&APP_USERS.to_owned()) {
            return None;
        }
        let shown = self.listed(APP_USERS, Some(token)).await?;
        let others =
            shown.iter().any(|it| it.get("id").and_then(Value::as_str) != Some(&claims.id));
        let public = self.listed(APP_USERS, None).await.is_some_and(|it| !it.is_empty());
        (others && !public).then(|| APP_USERS.to_owned())
    }

    /// The first records that are shown to the bearer of the token, or to a guest. `None`: the
    /// question was not answered.
    async fn listed(
        &self,
        collection: &str,
        token: Option<HeaderValue>,
    ) -> Option<Vec<Map<String, Value>>> {
        let query = [("skipTotal", "1"), ("perPage", "2"), ("fields", "id")];
        self.page(collection, &query, token).await
    }

    async fn page(
        &self,
        collection: &str,
        query: &[(&str, &str)],
        token: Option<HeaderValue>,
    ) -> Option<Vec<Map<String, Value>>> {
        #[derive(Deserialize)]
        struct Page {
            items: Vec<Map<String, Value>>,
        }
        let mut url = self.api.url(&["collections", collection, "records"]);
        url.query_pairs_mut().extend_pairs(query);
        let answer = self.api.ask(self.api.client.get(url), token.as_ref()).await.ok()?;
        let answer = (answer.status == StatusCode::OK).then_some(answer)?;
        answer.json::<Page>().ok().map(|it| it.items)
    }

    /// What only superusers are told.
    async fn collection(&self, name: &str) -> Option<Collection> {
        let url = self.api.url(&["collections", name]);
        let answer = self.ask(self.api.client.get(url)).await.ok()?;
        (answer.status == StatusCode::OK).then(|| answer.json().ok()).flatten()
    }

    /// Before 0.23 superusers were in no collection.
    async fn is_too_old(&self) -> bool {
        let url = self.api.url(&["collections", "_superusers", "auth-methods"]);
        let answer = self.api.ask(self.api.client.get(url), None).await;
        answer.is_ok_and(|it| it.status == StatusCode::NOT_FOUND && it.message().is_some())
    }
}

#[cfg(feature = "sqlite")]
impl Sqlite {
    async fn inspect(&self) -> Inspection {
        let (database, names) = (self.database.clone(), self.names.clone());
        let inspect = move || {
            let users: Option<Collection> = database.collection(&names.users);
            Inspection {
                hashes_in_base: users.as_ref().is_some_and(|it| it.hashes_in_base(&names.password)),
                users,
                roles: database.collection(&names.roles),
                ..Inspection::default()
            }
        };
        task::spawn_blocking(inspect).await.expect("reading a database does not panic")
    }
}
