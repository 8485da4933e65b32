//! What only a superuser may do in PocketBase: look at collections, and change them and records.

use reqwest::{Method, StatusCode, header::HeaderValue};
use serde::Deserialize;
use serde_json::Value;

use super::{
    SourceError,
    api::{Answer, Api, SUPERUSERS, header},
};
use crate::options::{PocketBaseOptions, Secret};

/// How a superuser shows who they are.
#[derive(Clone, Debug)]
pub enum Login {
    /// By email and password.
    Password {
        /// The email.
        identity: String,
        /// The password.
        password: Secret,
    },
    /// By a token.
    Token(Secret),
}

/// A superuser who is logged in.
#[derive(Debug)]
pub struct Superuser {
    api: Api,
    token: HeaderValue,
    name: String,
}

impl Superuser {
    /// Logs in at the address in the settings, whose credentials are not looked at.
    pub async fn log_in(
        options: &PocketBaseOptions,
        login: &Login,
    ) -> Result<Superuser, SourceError> {
        let Some(url) = &options.url else {
            return Err(SourceError::Settings("`url` is not set".into()));
        };
        let api = Api::open(url, options)?;
        let (token, name) = match login {
            Login::Password { identity, password } => {
                (api.log_in(SUPERUSERS, identity, password).await?, identity.clone())
            }
            Login::Token(token) => (header(token.reveal())?, "a token".into()),
        };
        let superuser = Superuser { api, token, name };
        match superuser.ask(Method::GET, &["collections"], None).await?.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                superuser.api.refresh(&superuser.token).await?;
                Err(SourceError::NotSuperuser)
            }
            _ => Ok(superuser),
        }
    }

    /// Who it is, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// PocketBase's address, as errors show it.
    pub fn origin(&self) -> String {
        self.api.origin()
    }

    /// What PocketBase says about a collection. `None`: there is none of that name.
    pub async fn collection(&self, name: &str) -> Result<Option<Value>, SourceError> {
        let answer = self.ask(Method::GET, &["collections", name], None).await?;
        match answer.status {
            StatusCode::NOT_FOUND if answer.message().is_some() => Ok(None),
            _ => json(&answer).map(Some),
        }
    }

    /// What PocketBase says about all collections; of very many, about the first thousand.
    pub async fn collections(&self) -> Result<Vec<Value>, SourceError> {
        let mut url = self.api.url(&["collections"]);
        url.query_pairs_mut().append_pair("skipTotal", "1").append_pair("perPage", "1000");
        let answer = self.api.ask(self.api.client.get(url), Some(&self.token)).await?;
        Ok(answer.of("collections")?.json::<Page>()?.items)
    }

    /// The first so many records of a collection, without an order.
    pub async fn records(&self, collection: &str, most: usize) -> Result<Vec<Value>, SourceError> {
        let mut url = self.api.url(&["collections", collection, "records"]);
        url.query_pairs_mut()
            .append_pair("skipTotal", "1")
            .append_pair("perPage", &most.to_string());
        let answer = self.api.ask(self.api.client.get(url), Some(&self.token)).await?;
        Ok(answer.of(collection)?.json::<Page>()?.items)
    }

    /// Makes something, and returns what PocketBase says of it.
    pub async fn create(&self, path: &[&str], body: &Value) -> Result<Value, SourceError> {
        json(&self.ask(Method::POST, path, Some(body)).await?)
    }

    /// Changes something, and returns what PocketBase says of it.
    pub async fn update(&self, path: &[&str], body: &Value) -> Result<Value, SourceError> {
        json(&self.ask(Method::PATCH, path, Some(body)).await?)
    }

    /// Whether PocketBase takes this token, of whomever.
    pub async fn accepts(&self, token: &str) -> Result<bool, SourceError> {
        let Ok(token) = header(token) else { return Ok(false) };
        match self.api.refresh(&token).await {
            Ok(_) => Ok(true),
            Err(SourceError::TokenRefused) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn ask(
        &self,
        method: Method,
        path: &[&str],
        body: Option<&Value>,
    ) -> Result<Answer, SourceError> {
        let request = self.api.client.request(method, self.api.url(path));
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        let mut answer = self.api.ask(request, Some(&self.token)).await?;
        // What stands in front of PocketBase may repeat what it was sent.
        for secret in ["password", "generated_hash"] {
            answer.hide(body.and_then(|it| it[secret].as_str()).unwrap_or_default());
        }
        Ok(answer)
    }
}

#[derive(Deserialize)]
struct Page {
    items: Vec<Value>,
}

fn json(answer: &Answer) -> Result<Value, SourceError> {
    if answer.status != StatusCode::OK {
        return Err(answer.failure());
    }
    answer.json()
}
