//! Which settings are refused, and which are worth a word.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use reqwest::Url;

use super::{
    AdminOptions, AuthFileOptions, NatsOptions, Options, OptionsError, PermissionOptions, Place,
    PocketBaseOptions, Secret, SyncOptions,
};
use crate::auth::{MaxRemoved, Subject, check_template};

/// Something that is allowed but rarely meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// A short name for it, for scripts.
    pub code: &'static str,
    /// What it is.
    pub text: &'static str,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text)
    }
}

impl Options {
    /// Refuses settings that contradict each other or make no sense.
    ///
    /// Who brings a [`Source`](crate::source::Source) of their own checks the other sections.
    pub fn check(&self) -> Result<(), OptionsError> {
        self.pocketbase.check()?;
        self.permissions.check()?;
        self.auth_file.check()?;
        self.nats.check()?;
        self.sync.check()?;
        self.admin.check()
    }

    /// What is allowed but rarely meant.
    pub fn notes(&self) -> Vec<Note> {
        let Options { pocketbase, permissions, auth_file, nats, sync, .. } = self;
        let mut notes = Vec::new();
        let mut note = |code: &'static str, applies: bool, text: &'static str| {
            if applies {
                notes.push(Note { code, text });
            }
        };
        let credentials = pocketbase.token.is_some()
            || pocketbase.token_file.is_some()
            || pocketbase.identity.is_some();
        note(
            "credentials_unused",
            pocketbase.data_dir.is_some() && credentials && !pocketbase.write_status,
            "`pocketbase.data_dir` needs no credentials; those given are not used",
        );
        note(
            "in_the_clear",
            pocketbase.url.as_deref().is_some_and(is_in_the_clear),
            "`pocketbase.url` is not https: credentials and password hashes can be read on the way",
        );
        note(
            "url_ends_in_api",
            pocketbase.url.as_deref().is_some_and(|it| it.trim_end_matches('/').ends_with("/api")),
            "`pocketbase.url` ends in `/api`, which is asked for below it: `/api/api/…`",
        );
        let everything = |subjects: &[String]| subjects.iter().any(|it| it == ">");
        note(
            "everything_by_default",
            everything(&permissions.default_publish) || everything(&permissions.default_subscribe),
            "`permissions`: users without a role have access to every subject (`>`)",
        );
        note(
            "mode",
            auth_file.mode & 0o007 != 0,
            "`auth_file.mode` lets every account on this machine at the password hashes",
        );
        note(
            "no_reload",
            nats.reload_command.is_none() && nats.pid_file.is_empty() && nats.system_url.is_none(),
            "`nats`: nothing reloads the server; set `reload_command`, `pid_file` or `system_url`",
        );
        let system = nats.system_credentials_file.is_some() || nats.system_user.is_some();
        note(
            "system_account_unused",
            system && nats.system_url.is_none(),
            "`nats.system_url` is not set; the system account's credentials are not used",
        );
        note(
            "system_account_in_the_clear",
            nats.system_user.is_some() && nats.system_url.as_deref().is_some_and(is_in_the_clear),
            "`nats.system_url` does not begin with `tls://`: unless the server insists on TLS, the \
             system account's password can be read on the way",
        );
        note(
            "system_account_no_log_in",
            nats.system_url.is_some() && !system,
            "`nats.system_url` is set without `system_credentials_file` or `system_user`: nobody gets \
             into the system account without a log-in",
        );
        note(
            "debounce_cut_short",
            sync.debounce > sync.max_wait,
            "`sync.debounce` is longer than `sync.max_wait`, which is all that a change waits",
        );
        note(
            "no_limit",
            matches!(sync.max_removed, MaxRemoved::Share(share) if share >= 1.0),
            "`sync.max_removed` is 100%: only the loss of all records is held back",
        );
        notes
    }
}

impl PermissionOptions {
    /// See [`Options::check`].
    pub fn check(&self) -> Result<(), OptionsError> {
        let publish = ("permissions.default_publish", &self.default_publish, Subject::parse as _);
        let parse: fn(&str) -> _ = Subject::parse_subscription;
        let subscribe = ("permissions.default_subscribe", &self.default_subscribe, parse);
        for (setting, subjects, parse) in [publish, subscribe] {
            for subject in subjects {
                if let Err(why) = check_template(subject, parse) {
                    let problem = format!("{subject:?} is not a subject: {why}");
                    refuse(true, setting, &problem, "write subjects such as \"a.*.c\" or \"a.>\"")?;
                }
            }
        }
        Ok(())
    }
}

impl PocketBaseOptions {
    /// See [`Options::check`].
    pub fn check(&self) -> Result<(), OptionsError> {
        let password = one_of(
            "pocketbase",
            [
                ("password", self.password.is_some()),
                ("password_file", self.password_file.is_some()),
            ],
        )?;
        let credentials = one_of(
            "pocketbase",
            [
                ("token", self.token.is_some()),
                ("token_file", self.token_file.is_some()),
                ("identity", self.identity.is_some()),
            ],
        )?;
        refuse(
            self.identity.is_some() && password.is_none(),
            "pocketbase.identity",
            "`identity` is set without a password",
            "set `password_file` or `password`",
        )?;
        if let Some(password) = password {
            refuse(
                self.identity.is_none(),
                &format!("pocketbase.{password}"),
                &format!("`{password}` is set without `identity`"),
                "set `identity`, the account's email for example, or take it away",
            )?;
        }
        let graphic = |it: &Secret| it.reveal().bytes().all(|it| it.is_ascii_graphic());
        refuse(
            !self.token.as_ref().is_none_or(graphic),
            "pocketbase.token",
            "`token` holds white space or other characters that no token has",
            "copy it again, without line breaks",
        )?;
        let data_dir = self.data_dir.is_some();
        // Then one is read and the other written.
        if !self.write_status {
            one_of("pocketbase", [("url", self.url.is_some()), ("data_dir", data_dir)])?;
        }
        refuse(
            self.write_status && data_dir && self.url.is_none(),
            "pocketbase.write_status",
            "`write_status` writes over PocketBase's web API, and `url` is not set",
            "set `url` and a credential too; users and roles are still read from `data_dir`",
        )?;
        refuse(
            data_dir && cfg!(not(feature = "sqlite")),
            "pocketbase.data_dir",
            "`data_dir` needs a pb-nats built with the feature `sqlite`",
            "use such a build, or `url`",
        )?;
        refuse(
            self.url.is_none() && !data_dir,
            "pocketbase.url",
            "`pocketbase.url` is not set",
            "set `url` below `[pocketbase]`, or `data_dir` for a PocketBase on this machine",
        )?;
        if let Some(url) = &self.url {
            web_address("pocketbase.url", url)?;
            refuse(
                url.trim_end_matches('/').ends_with("/_"),
                "pocketbase.url",
                "`pocketbase.url` is the address of PocketBase's dashboard",
                "leave the `/_/` at its end out",
            )?;
            refuse(
                credentials.is_none(),
                "pocketbase.url",
                "`pocketbase.url` needs credentials",
                "set `token_file`, or `token`, or `identity` with `password_file`",
            )?;
        }
        for (key, name) in [
            ("auth_collection", &self.auth_collection),
            ("user_collection", &self.user_collection),
            ("role_collection", &self.role_collection),
            ("username_field", &self.username_field),
            ("password_field", &self.password_field),
            ("role_field", &self.role_field),
            ("active_field", &self.active_field),
            ("export_view", &self.export_view),
        ] {
            // Such a name is also safe in an address and in a query.
            let allowed = name.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'_');
            refuse(
                !allowed || name.is_empty() && key != "export_view",
                &format!("pocketbase.{key}"),
                &format!("`{key}` is not a name that PocketBase allows"),
                "use letters, digits and `_`",
            )?;
        }
        refuse(
            self.user_collection == self.role_collection,
            "pocketbase.role_collection",
            "`user_collection` and `role_collection` are the same",
            "name the collection of roles",
        )?;
        positive("pocketbase.resync_interval", self.resync_interval)?;
        positive("pocketbase.request_timeout", self.request_timeout)
    }
}

impl AuthFileOptions {
    /// See [`Options::check`].
    pub fn check(&self) -> Result<(), OptionsError> {
        refuse(
            self.path.file_name().is_none(),
            "auth_file.path",
            "`auth_file.path` names no file",
            "write it like \"auth.conf\"",
        )?;
        refuse(
            self.create_backups && self.backup_dir.as_os_str().is_empty(),
            "auth_file.backup_dir",
            "`backup_dir` is empty",
            "name a folder, or set `create_backups = false`",
        )?;
        refuse(
            self.mode > 0o777 || self.mode & 0o400 == 0,
            "auth_file.mode",
            "with this `mode` the file could not be read back",
            "write \"0640\" or \"0600\"",
        )?;
        let Some(timeout) = self.login_timeout else { return Ok(()) };
        refuse(
            timeout > Duration::from_mins(1),
            "auth_file.login_timeout",
            "`login_timeout` is longer than nats-server's own check accepts",
            "write \"60s\" or less",
        )?;
        positive("auth_file.login_timeout", timeout)
    }
}

impl NatsOptions {
    /// See [`Options::check`].
    pub fn check(&self) -> Result<(), OptionsError> {
        one_of(
            "nats",
            [
                ("reload_command", self.reload_command.is_some()),
                ("pid_file", !self.pid_file.is_empty()),
            ],
        )?;
        let words = self.reload_command.as_ref().map(|it| shlex::split(it).unwrap_or_default());
        refuse(
            words.is_some_and(|it| it.is_empty()),
            "nats.reload_command",
            "`reload_command` cannot be split into words",
            "close its quotes; write a pipeline as `sh -c '…'`",
        )?;
        refuse(
            self.pid_file.iter().any(|it| it.as_os_str().is_empty()),
            "nats.pid_file",
            "`pid_file` holds an empty path",
            "remove it",
        )?;
        for url in &self.monitor_url {
            web_address("nats.monitor_url", url)?;
        }
        for url in self.system_url.iter().flat_map(|it| it.split(',')) {
            address("nats.system_url", url.trim(), &["nats", "tls"])?;
        }
        one_of(
            "nats",
            [
                ("system_credentials_file", self.system_credentials_file.is_some()),
                ("system_user", self.system_user.is_some()),
            ],
        )?;
        let password = one_of(
            "nats",
            [
                ("system_password", self.system_password.is_some()),
                ("system_password_file", self.system_password_file.is_some()),
            ],
        )?;
        refuse(
            self.system_user.is_some() && password.is_none(),
            "nats.system_user",
            "`system_user` is set without a password",
            "set `system_password_file` or `system_password`",
        )?;
        if let Some(password) = password {
            refuse(
                self.system_user.is_none(),
                &format!("nats.{password}"),
                &format!("`{password}` is set without `system_user`"),
                "set `system_user`",
            )?;
        }
        positive("nats.reload_timeout", self.reload_timeout)
    }
}

impl SyncOptions {
    /// See [`Options::check`].
    pub fn check(&self) -> Result<(), OptionsError> {
        refuse(
            matches!(self.max_removed, MaxRemoved::Share(it) if !(0.0..=1.0).contains(&it)),
            "sync.max_removed",
            "`max_removed` is no share from 0 to 1",
            "0.5 is a half",
        )?;
        refuse(
            !(0.01..=1.0).contains(&self.max_reload_share),
            "sync.max_reload_share",
            "`max_reload_share` is no share from 1% to 100%",
            "write a share such as \"20%\"; with \"100%\" no reload waits",
        )
    }
}

impl AdminOptions {
    /// See [`Options::check`].
    pub fn check(&self) -> Result<(), OptionsError> {
        let named = |(host, port): (&str, &str)| {
            let word = |it: u8| it.is_ascii_alphanumeric() || matches!(it, b'-' | b'.');
            !host.is_empty() && host.bytes().all(word) && port.parse::<u16>().is_ok()
        };
        let listen = &self.listen;
        refuse(
            !listen.is_empty()
                && listen.parse::<SocketAddr>().is_err()
                && !listen.rsplit_once(':').is_some_and(named),
            "admin.listen",
            "`listen` is not an address with a port",
            "write \"127.0.0.1:9478\", \"[::1]:9478\", \"0.0.0.0:9478\" for all interfaces, or \"\" \
             for none",
        )?;
        let name = |it: &String| it.parse::<IpAddr>().is_ok() || named((it, "0"));
        refuse(
            !self.hosts.iter().all(name),
            "admin.hosts",
            "`hosts` has an entry that is not the name of a host",
            "write names alone, such as \"nats.example.com\", without scheme, port or path",
        )
    }
}

/// The loader adds the place, if the options came from a file.
fn refuse(when: bool, setting: &str, problem: &str, hint: &str) -> Result<(), OptionsError> {
    if !when {
        return Ok(());
    }
    Err(OptionsError::Wrong {
        place: Place { source: "the options".into(), position: None },
        setting: setting.into(),
        problem: problem.into(),
        hint: hint.into(),
    })
}

/// Of settings that exclude each other, the one that is set.
fn one_of<const N: usize>(
    section: &str,
    settings: [(&'static str, bool); N],
) -> Result<Option<&'static str>, OptionsError> {
    let mut set = settings.into_iter().filter(|(_, set)| *set).map(|(key, _)| key);
    let first = set.next();
    if let (Some(first), Some(second)) = (first, set.next()) {
        refuse(
            true,
            &format!("{section}.{second}"),
            &format!("`{first}` and `{second}` are both set"),
            "keep one of them; \"\" unsets the other",
        )?;
    }
    Ok(first)
}

fn positive(setting: &str, duration: Duration) -> Result<(), OptionsError> {
    let problem = format!("`{setting}` is no time at all");
    refuse(duration.is_zero(), setting, &problem, "write it like \"10s\"")
}

fn web_address(setting: &str, text: &str) -> Result<(), OptionsError> {
    address(setting, text, &["http", "https"])
}

/// The address is not repeated in messages: it may hold a password.
fn address(setting: &str, text: &str, schemes: &[&str]) -> Result<(), OptionsError> {
    let url = Url::parse(text).ok().filter(|it| it.has_host() && schemes.contains(&it.scheme()));
    let begins = format!("{}://", schemes.join(":// or "));
    let Some(url) = url else {
        let problem = format!("`{setting}` is not an address that begins with {begins}");
        return refuse(true, setting, &problem, "write it with scheme, host and port");
    };
    refuse(
        !url.username().is_empty() || url.password().is_some(),
        setting,
        &format!("`{setting}` holds a user or password"),
        "use the settings for credentials, which are never logged",
    )?;
    refuse(
        url.query().is_some() || url.fragment().is_some(),
        setting,
        &format!("`{setting}` holds a `?` or `#`"),
        "end it with its path",
    )
}

fn is_in_the_clear(url: &str) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let near = match host.parse::<IpAddr>() {
        Ok(address) => address.is_loopback(),
        // `localhost`, or a container on a network of its own.
        Err(_) => !host.contains('.'),
    };
    matches!(url.scheme(), "http" | "nats") && !near
}
