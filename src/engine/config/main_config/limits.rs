//! What else in a main config has to do with users in a file: what rules them out, and what limits
//! them. `nats-server -t` has nothing against any of it.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::{MainConfig, Place, Setting, Target, all, folded, folder, joined, logins};
use crate::auth::{Found, conf::Node, parse};

/// Something with which nats-server takes no users from a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// Operator mode: nats-server does not start with users in a file.
    Operator {
        /// Where it stands.
        place: Place,
        /// The key.
        key: String,
    },
    /// Trusted keys without an operator: it starts, and lets none of the users in.
    TrustedKeys {
        /// Where it stands.
        place: Place,
        /// The key.
        key: String,
    },
    /// A log-in of its own for one kind of client: nats-server does not start with users beside it.
    OwnLogin {
        /// Where the block begins.
        place: Place,
        /// `mqtt` or `websocket`, as it is written.
        block: String,
        /// What clients log in with there.
        key: &'static str,
    },
}

/// Accounts of the main config beside the global one, in which PocketBase's users live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Apart(Vec<(String, Vec<String>)>);

const OPERATOR: [&str; 6] =
    ["operator", "operators", "roots", "root", "root_operators", "root_operator"];
const TRUSTED: [&str; 2] = ["trusted", "trusted_keys"];
const WEBSOCKET: [&str; 2] = ["websocket", "ws"];
const MQTT: [&str; 1] = ["mqtt"];

impl MainConfig {
    /// Everything with which nats-server takes no users from a file.
    pub fn conflicts(&self) -> Vec<Conflict> {
        let named = |keys: &'static [&str]| {
            let is_empty = |it: &Node<'_>| matches!(it, Node::List(items) if items.is_empty());
            let is_one = |it: &&Setting| keys.contains(&&*folded(&it.key)) && !is_empty(&it.value);
            self.effective().find(is_one).map(|it| (it.place.clone(), it.key.clone()))
        };
        let operator = named(&OPERATOR).map(|(place, key)| Conflict::Operator { place, key });
        let trusted = || named(&TRUSTED).map(|(place, key)| Conflict::TrustedKeys { place, key });
        let own = self.effective().filter_map(own_login);
        operator.or_else(trusted).into_iter().chain(own).collect()
    }

    /// Accounts that PocketBase's users have nothing in common with. The system account is none.
    pub fn apart(&self) -> Option<Apart> {
        let system = self.one_of(&["system_account", "system"]).unwrap_or_else(|| "$SYS".into());
        // Beside accounts there may be variables, such as permissions that their users share.
        let variable = |it: &Node<'_>| !all(it, &["publish", "subscribe"]).is_empty();
        let mut apart: Vec<(String, Vec<String>)> = Vec::new();
        for accounts in self.values(&["accounts"]) {
            let listed = accounts.items().iter().filter_map(Node::text);
            apart.extend(listed.map(|it| (it.to_owned(), Vec::new())));
            for it in accounts.entries() {
                if matches!(it.value, Node::Map(_)) && !variable(&it.value) {
                    let users = all(&it.value, &["users", "nkeys"]);
                    let users = users.into_iter().flat_map(Node::items).flat_map(logins);
                    apart.push((it.key.to_string(), users.collect()));
                }
            }
        }
        apart.retain(|(name, _)| *name != system);
        (!apart.is_empty()).then_some(Apart(apart))
    }

    /// The blocks whose clients log in by their certificate alone: nobody asks for a password there.
    pub fn by_certificate(&self) -> Vec<&str> {
        let mapped = self.effective().filter(|it| {
            let tls = match &*folded(&it.key) {
                "tls" => vec![&it.value],
                key if WEBSOCKET.contains(&key) || MQTT.contains(&key) => all(&it.value, &["tls"]),
                _ => Vec::new(),
            };
            let mapped = tls.into_iter().flat_map(|it| all(it, &["verify_and_map"]));
            let mut mapped = mapped.filter_map(Node::text).map(str::to_ascii_lowercase);
            mapped.any(|it| ["true", "yes", "on"].contains(&&*it))
        });
        mapped.map(|it| &*it.key).collect()
    }

    /// The file that the config, which is at `path`, includes and that we wrote.
    pub fn includes_ours(&self, path: &Path) -> Option<PathBuf> {
        let main = self.files.first()?;
        main.includes.iter().find_map(|(at, length, target)| match target {
            Target::File(n) if matches!(parse(&self.files[*n].text), Found::Ours(_)) => {
                Some(joined(folder(path), &main.text[*at..at + length]))
            }
            Target::File(_) | Target::AuthFile => None,
        })
    }

    /// Whether the text has this anywhere, remarks included.
    pub fn mentions(&self, text: &str) -> bool {
        self.files.iter().any(|it| it.text.contains(text))
    }
}

/// What clients of a block that listens have to log in with instead of a user's name.
fn own_login(block: &Setting) -> Option<Conflict> {
    let Setting { key, value, place, .. } = block;
    let known = folded(key);
    if !WEBSOCKET.contains(&&*known) && !MQTT.contains(&&*known) {
        return None;
    }
    // To nats-server the whole block is nothing without a port.
    let none = |it: &Node<'_>| it.text().is_some_and(|it| it.rsplit(':').next() == Some("0"));
    if all(value, &["port", "listen"]).into_iter().all(none) {
        return None;
    }
    let logins = all(value, &["authorization", "authentication"]);
    let filled = |key: &&str| {
        let values = logins.iter().flat_map(|it| all(it, &[key]));
        values.into_iter().any(|it| it.text().is_none_or(|it| !it.is_empty()))
    };
    let login = ["user", "username", "token"].into_iter().find(filled)?;
    Some(Conflict::OwnLogin { place: place.clone(), block: key.clone(), key: login })
}

impl Conflict {
    /// What one can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Conflict::Operator { .. } | Conflict::TrustedKeys { .. } => {
                "use a nats-server without operator mode for PocketBase's users: one of its own, which \
                 can be joined to this one as a leaf node"
            }
            Conflict::OwnLogin { .. } => {
                "take that log-in out of the block, and make a user in PocketBase for each of its clients \
                 (`pb-nats user add`): these then log in by name and password, as all others do"
            }
        }
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Conflict::Operator { place, key } => write!(
                f,
                "`{key}` ({place}) sets operator mode, in which nats-server takes users from \
                 signed tokens only: with users in a file it does not start"
            ),
            Conflict::TrustedKeys { place, key } => write!(
                f,
                "`{key}` ({place}) makes nats-server take users from signed tokens only: it lets in \
                 nobody whom a file names"
            ),
            Conflict::OwnLogin { place, block, key } => write!(
                f,
                "`{block}` ({place}) has an `authorization` of its own with a `{key}`, which \
                 nats-server does not take beside users: it does not start with both"
            ),
        }
    }
}

impl Apart {
    /// What one can do about it.
    pub const HINT: &str = "whoever has to talk to PocketBase's users needs to be one of them: make records for \
        them (`pb-nats user add`) and take these accounts out. The system account may stay";
}

impl Apart {
    /// Whether anybody logs in by them.
    pub fn has_users(&self) -> bool {
        self.0.iter().any(|(_, users)| !users.is_empty())
    }
}

impl fmt::Display for Apart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let accounts: Vec<String> = self
            .0
            .iter()
            .map(|(name, users)| match &users[..] {
                [] => format!("`{name}` (without users)"),
                users => format!("`{name}` ({})", users.join(", ")),
            })
            .collect();
        write!(
            f,
            "PocketBase's users live in the global account, apart from the main config's accounts: {}. \
             Neither side gets a message of the other, on any subject. JetStream answers PocketBase's \
             users with 503: beside other accounts the global one does not have it.",
            accounts.join(", ")
        )?;
        if self.has_users() {
            f.write_str(" The users of these accounts still log in, by the main config")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::config;

    fn conflicts(text: &str) -> Vec<String> {
        config(&[("main.conf", text)]).conflicts().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_rules_users_out_is_found_and_what_does_not_is_left_alone() {
        for (text, found) in [
            ("operator: a.jwt", "`operator` (line 1 of "),
            ("\nRoots: [a, b]", "`Roots` (line 2 of "),
            ("trusted_keys: [O]\nresolver: MEMORY", "`trusted_keys` (line 1 of "),
            ("mqtt { port: 1, authorization { token: x } }", "`mqtt` (line 1 of "),
            ("ws { port: 1, authorization { token: x } }", "`ws` (line 1 of "),
            ("MQTT { PORT: 1, port: 0, authorization {}, Authorization { token: x } }", "`MQTT` ("),
            ("mqtt { listen: \"h:1\", authentication { username: x } }", "with a `username`"),
            ("T: x\nWebSocket { port: 1, AUTHORIZATION { TOKEN: $T } }", "`WebSocket` (line 2 of "),
        ] {
            let conflicts = conflicts(text);
            assert!(matches!(&conflicts[..], [it] if it.contains(found)), "{text}: {conflicts:?}");
        }
        for text in [
            "resolver: MEMORY",
            "operator: []\ntrusted: []",
            "mqtt { authorization { token: x } }",
            "mqtt { port: 0, authorization { token: x } }",
            "mqtt { port: 1, authorization { timeout: 3 } }",
            "websocket { port: 1, authorization { token: \"\" } }",
            "cluster { port: 1, authorization { user: a, password: b } }",
            "leafnodes { port: 1, authorization { user: a, password: b } }",
        ] {
            assert_eq!(conflicts(text), [""; 0], "{text}");
        }
    }

    #[test]
    fn accounts_beside_the_global_one_are_told_with_their_users() {
        let apart = |text: &str| config(&[("main.conf", text)]).apart().map(|it| it.to_string());
        let told = apart(
            "accounts { R { publish: x }\n APP { users: [{user: a, permissions: $R}, {nkey: U}] }\n \
             B {}\n SYS { users: [{user: s}] } }\nsystem_account: SYS",
        );
        let told = told.unwrap();
        assert!(told.contains(": `APP` (a, U), `B` (without users). "), "{told}");
        for text in ["", "accounts { SYS {} }\nsystem: SYS", "accounts { $SYS { users: [] } }"] {
            assert_eq!(apart(text), None, "{text}");
        }
        assert!(apart("accounts: [A]").unwrap().ends_with("the global one does not have it."));
    }

    #[test]
    fn blocks_that_go_by_certificate_are_told() {
        let text = "tls { verify_and_map: true }\nmqtt { tls { verify_and_map: false } }";
        assert_eq!(config(&[("main.conf", text)]).by_certificate(), ["tls"]);
    }
}
