//! A PocketBase with the collections of users and roles.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use ureq::http::{Method, Request};

use super::{Process, Signal, bcrypt, eventually, free_address, http, tool};

/// The superuser, and its password.
pub(crate) const SUPERUSER: (&str, &str) = ("root@example.com", "root-password");

/// A real PocketBase with a superuser.
pub(crate) struct Pb {
    dir: TempDir,
    binary: PathBuf,
    address: SocketAddr,
    token: String,
    users: Users,
    process: Option<Process>,
}

/// What kind of collection `nats_users` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Users {
    /// The writer hashes the password; `password` is a text field.
    Text,
    /// PocketBase hashes it; `password` is a `password` field.
    Password,
    /// An auth collection with a `username`.
    Auth,
    /// An auth collection without one: its `email` is the name.
    AuthByEmail,
}

/// Whether the collections have the optional fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Optional {
    Present,
    Absent,
}

impl Pb {
    /// Starts the default version, without collections.
    pub(crate) fn empty(version: Option<&str>) -> Pb {
        let mut pb = Pb {
            dir: TempDir::new().expect("there is room for a folder"),
            binary: tool("pocketbase", version),
            address: free_address(),
            token: String::new(),
            users: Users::Text,
            process: None,
        };
        let (user, password) = SUPERUSER;
        let made = pb.command(&["superuser", "upsert", user, password]).output();
        let made = made.expect("pocketbase starts");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        // Another process may take the port between our look and PocketBase's.
        for _ in 0..5 {
            if pb.try_start() {
                pb.token = pb.log_in("_superusers", user, password).expect("its superuser exists");
                return pb;
            }
            pb.address = free_address();
        }
        panic!("pocketbase does not start in {}", pb.dir.path().display());
    }

    /// Starts the default version, with the collections.
    pub(crate) fn start() -> Pb {
        Pb::with(Users::Text, Optional::Present)
    }

    /// Starts the default version, with collections of this kind.
    pub(crate) fn with(users: Users, optional: Optional) -> Pb {
        let mut pb = Pb::empty(None);
        pb.create_collections(users, optional);
        pb
    }

    /// Makes `nats_roles` and `nats_users`.
    pub(crate) fn create_collections(&mut self, users: Users, optional: Optional) {
        self.users = users;
        let text = |name: &str| json!({ "name": name, "type": "text" });
        let lists = |names: &[&str]| -> Vec<Value> {
            names.iter().map(|it| json!({ "name": it, "type": "json" })).collect()
        };
        let mut fields = vec![text("name")];
        fields.extend(lists(&["publish_permissions", "subscribe_permissions"]));
        if optional == Optional::Present {
            fields.extend(lists(&["publish_deny_permissions", "subscribe_deny_permissions"]));
            fields.push(json!({ "name": "allow_response", "type": "bool" }));
            fields.push(json!({ "name": "allow_response_max", "type": "number" }));
            fields.push(json!({ "name": "allow_response_ttl", "type": "number" }));
        }
        let roles = json!({ "name": "nats_roles", "type": "base", "fields": fields });
        let roles = self.ask("POST", "/api/collections", &roles);

        let mut fields = vec![json!({
            "name": "role_id", "type": "relation", "collectionId": roles["id"], "maxSelect": 20,
        })];
        fields.push(json!({ "name": "active", "type": "bool" }));
        match users {
            Users::Text => fields.extend([text("username"), text("password")]),
            Users::Password => {
                fields.push(text("username"));
                fields.push(json!({ "name": "password", "type": "password", "cost": 5 }));
            }
            Users::Auth => fields.push(text("username")),
            Users::AuthByEmail => (),
        }
        if optional == Optional::Present {
            fields.push(text("nkey"));
            fields.extend(lists(&[
                "publish_permissions",
                "subscribe_permissions",
                "publish_deny_permissions",
                "subscribe_deny_permissions",
                "allowed_connection_types",
            ]));
        }
        let kind = match users {
            Users::Text | Users::Password => "base",
            Users::Auth | Users::AuthByEmail => "auth",
        };
        let users = json!({ "name": "nats_users", "type": kind, "fields": fields });
        self.ask("POST", "/api/collections", &users);
    }

    /// Makes a role and returns its id.
    pub(crate) fn role(&self, name: &str, publish: &[&str], subscribe: &[&str]) -> String {
        self.create(
            "nats_roles",
            &json!({
                "name": name,
                "publish_permissions": publish,
                "subscribe_permissions": subscribe,
            }),
        )
    }

    /// Makes an active user and returns its id. An empty `role` is none.
    pub(crate) fn user(&self, name: &str, password: &str, role: &str) -> String {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let mut user = json!({ "active": true, "role_id": [role] });
        if role.is_empty() {
            user["role_id"] = json!([]);
        }
        match self.users {
            Users::Text => {
                user["username"] = name.into();
                user["password"] = bcrypt(password).into();
            }
            Users::Password => {
                user["username"] = name.into();
                user["password"] = password.into();
            }
            Users::Auth | Users::AuthByEmail => {
                let email = match self.users {
                    Users::AuthByEmail => name.to_owned(),
                    // It has to be one of its own, and a user name may hold anything.
                    _ => format!("user-{}@example.com", MADE.fetch_add(1, Ordering::Relaxed)),
                };
                user["username"] = name.into();
                user["email"] = email.into();
                user["password"] = password.into();
                user["passwordConfirm"] = password.into();
            }
        }
        self.create("nats_users", &user)
    }

    /// Makes a record and returns its id.
    pub(crate) fn create(&self, collection: &str, record: &Value) -> String {
        let path = format!("/api/collections/{collection}/records");
        let made = self.ask("POST", &path, record);
        made["id"].as_str().expect("a record has an id").into()
    }

    pub(crate) fn update(&self, collection: &str, id: &str, changes: &Value) {
        self.ask("PATCH", &format!("/api/collections/{collection}/records/{id}"), changes);
    }

    pub(crate) fn delete(&self, collection: &str, id: &str) {
        self.ask("DELETE", &format!("/api/collections/{collection}/records/{id}"), &Value::Null);
    }

    /// Makes a request as superuser, which succeeds.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let (status, answer) = self.request(method, path, &self.token, body);
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        answer
    }

    /// Makes a request and returns the status and what was said.
    pub(crate) fn request(
        &self,
        method: &str,
        path: &str,
        token: &str,
        body: &Value,
    ) -> (u16, Value) {
        let method: Method = method.parse().expect("a method");
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url()))
            .header("Authorization", token)
            .header("Content-Type", "application/json");
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = request.body(body).expect("a request");
        let mut answer = http().run(request).expect("PocketBase answers");
        let said = answer.body_mut().read_to_string().expect("PocketBase speaks text");
        let said = serde_json::from_str(&said).unwrap_or(Value::String(said));
        (answer.status().as_u16(), said)
    }

    /// Logs in with a password and returns the token.
    pub(crate) fn log_in(
        &self,
        collection: &str,
        identity: &str,
        password: &str,
    ) -> Option<String> {
        let path = format!("/api/collections/{collection}/auth-with-password");
        let who = json!({ "identity": identity, "password": password });
        let (_, answer) = self.request("POST", &path, "", &who);
        answer["token"].as_str().map(Into::into)
    }

    /// The superuser's token.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The folder with `data.db`.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("pb_data")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().expect("PocketBase runs").pid()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.as_ref().expect("PocketBase runs").signal(signal);
    }

    /// Stops PocketBase in an orderly way.
    pub(crate) fn stop(&mut self) {
        self.end(Signal::TERM);
    }

    /// Stops PocketBase as a power cut would.
    pub(crate) fn kill(&mut self) {
        self.end(Signal::KILL);
    }

    /// Starts PocketBase again, with the same data at the same address.
    pub(crate) fn resume(&mut self) {
        eventually("PocketBase starts again", || self.try_start().then_some(()));
    }

    fn end(&mut self, signal: Signal) {
        let process = self.process.take().expect("PocketBase runs");
        process.end(signal);
    }

    /// Whether it answers at its address. If not, somebody else has that.
    fn try_start(&mut self) -> bool {
        let mut command = self.command(&["serve", "--http", &self.address.to_string()]);
        let process = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
        let health = format!("{}/api/health", self.url());
        let answers = eventually("PocketBase starts", || {
            if process.ended().is_some() {
                return Some(false);
            }
            http().get(&health).call().is_ok_and(|it| it.status() == 200).then_some(true)
        });
        self.process = Some(process);
        answers
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(arguments).arg("--dir").arg(self.data_dir());
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }
}
