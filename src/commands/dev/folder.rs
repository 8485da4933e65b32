//! What `dev` keeps in its folder, and at which ports.

use std::{
    fmt::Write as _,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

use fs_err as fs;
use pb_nats::{
    Options,
    state::StateError,
    state::{Existing, place},
    users::secret,
};

use super::DevError;

/// How the main config begins, by which it is known that the folder is ours.
const OURS: &str = "# Made by `pb-nats dev`";
/// The system account's user.
const SYSTEM_USER: &str = "pb-nats-system";
const LOOPBACK: &str = "127.0.0.1:";

/// Where PocketBase, nats-server, its monitor and the status page listen, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ports([u16; 4]);

const USUAL: Ports = Ports([8090, 4222, 8222, 9478]);

impl Ports {
    pub(super) fn pocketbase(self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.0[0]).into()
    }

    pub(super) fn nats(self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.0[1]).into()
    }

    fn monitor(self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.0[2]).into()
    }

    fn admin(self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.0[3]).into()
    }

    /// Those that the settings name.
    fn of(options: &Options, settings: &Path) -> Result<Ports, DevError> {
        let port = |setting, text: Option<&str>| {
            let port = text.and_then(|it| it.trim_end_matches('/').rsplit_once(LOOPBACK));
            let port = port.and_then(|(_, port)| port.parse().ok());
            port.ok_or_else(|| DevError::Elsewhere { setting, settings: settings.to_owned() })
        };
        let Options { pocketbase, nats, admin, .. } = options;
        Ok(Ports([
            port("pocketbase.url", pocketbase.url.as_deref())?,
            port("nats.system_url", nats.system_url.as_deref())?,
            port("nats.monitor_url", nats.monitor_url.first().map(String::as_str))?,
            port("admin.listen", Some(&admin.listen))?,
        ]))
    }

    /// These, with another that is free instead of each that is taken.
    fn free(self) -> io::Result<Ports> {
        let listen = |port| {
            let usual = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
            usual.or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        };
        // All are held until all are chosen, so that no port is chosen twice.
        let mut listeners = Vec::new();
        let mut ports = self;
        for port in &mut ports.0 {
            let listener = listen(*port)?;
            *port = listener.local_addr()?.port();
            listeners.push(listener);
        }
        Ok(ports)
    }

    /// The text with each of these ports that it has on loopback replaced by that of `new`.
    fn replaced(self, new: Ports, text: &str) -> String {
        let mut parts = text.split(LOOPBACK);
        let mut replaced = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (port, rest) = part.split_at(part.len() - part.trim_start_matches(digit).len());
            let at = self.0.iter().position(|it| port.parse() == Ok(*it));
            let port = at.map_or_else(|| port.to_owned(), |at| new.0[at].to_string());
            let _ = write!(replaced, "{LOOPBACK}{port}{rest}");
        }
        replaced
    }
}

fn digit(it: char) -> bool {
    it.is_ascii_digit()
}

/// A folder that `dev` made, or makes now.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    /// Whether it is gone at the end.
    pub(super) temporary: bool,
}

impl Folder {
    pub(super) fn settings(&self) -> PathBuf {
        self.path.join("pb-nats.toml")
    }

    pub(super) fn main_config(&self) -> PathBuf {
        self.path.join("nats-server.conf")
    }

    pub(super) fn superuser_password(&self) -> PathBuf {
        self.path.join("superuser-password")
    }

    fn system_password(&self) -> PathBuf {
        self.path.join("system-password")
    }

    /// The settings of a former start, if there was one. The environment has no say in them: it is
    /// meant for another PocketBase and another nats-server.
    pub(super) fn options(&self) -> anyhow::Result<Option<Options>> {
        let config = self.main_config();
        let ours = fs::read_to_string(&config).is_ok_and(|it| it.starts_with(OURS));
        let foreign = [config, self.settings(), self.path.join("pb_data")];
        if !ours && let Some(path) = foreign.into_iter().find(|it| it.exists()) {
            return Err(DevError::Foreign { path }.into());
        }
        let settings = self.settings();
        if !settings.exists() {
            return Ok(None);
        }
        Ok(Some(Options::load(Some(&settings), [])?))
    }

    /// Makes the files agree on ports that are free, as they were before or as usual if they are,
    /// and returns the settings with them.
    pub(super) fn settle(&self, former: Option<Options>) -> anyhow::Result<(Options, Ports)> {
        let Some(options) = former else { return self.begin() };
        let settings = self.settings();
        let former = Ports::of(&options, &settings)?;
        let ports = former.free()?;
        if ports == former {
            return Ok((options, ports));
        }
        for (path, mode) in [(self.main_config(), 0o600), (settings.clone(), 0o644)] {
            let text = former.replaced(ports, &fs::read_to_string(&path)?);
            place(&path, &text, mode, Existing::Replaced)?;
        }
        Ok((Options::load(Some(&settings), [])?, ports))
    }

    /// The main config, and what `init` makes the settings of.
    fn begin(&self) -> anyhow::Result<(Options, Ports)> {
        let ports = USUAL.free()?;
        let password = secret();
        let secret_file = self.system_password();
        place(&secret_file, &format!("{}\n", password.reveal()), 0o600, Existing::Replaced)?;
        let (nats, monitor, password) = (ports.nats(), ports.monitor(), password.reveal());
        let config = format!(
            "{OURS}, which changes ports here and in pb-nats.toml if they are taken.\n\n\
             listen: \"{nats}\"\n\
             http: \"{monitor}\"\n\
             pid_file: \"nats-server.pid\"\n\
             jetstream {{ store_dir: \"jetstream\" }}\n\n\
             # By it pb-nats sees what the server runs, and cuts off whoever has less.\n\
             accounts {{ SYS {{ users = [ {{user: \"{SYSTEM_USER}\", password: \"{password}\"}} ] }} }}\n\
             system_account: SYS\n"
        );
        place(&self.main_config(), &config, 0o600, Existing::Replaced)?;
        let mut options = Options::default();
        options.pocketbase.url = Some(format!("http://{}", ports.pocketbase()));
        options.pocketbase.token_file = Some(self.path.join("pb-nats.token"));
        options.nats.pid_file = vec![self.path.join("nats-server.pid")];
        options.nats.system_url = Some(format!("nats://{nats}"));
        options.nats.system_user = Some(SYSTEM_USER.into());
        options.nats.system_password_file = Some(secret_file);
        options.admin.listen = ports.admin().to_string();
        Ok((options, ports))
    }

    /// The superuser's password, if it is known.
    pub(super) fn known_password(&self) -> Result<Option<String>, StateError> {
        let path = self.superuser_password();
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned()).filter(|it| !it.is_empty())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError::Io { path, what: "read", source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_change_places_and_others_stay() {
        let text = "http://127.0.0.1:1 127.0.0.1:2/ 127.0.0.1:12 10.0.0.1:1 127.0.0.1:";
        let changed = Ports([1, 2, 3, 4]).replaced(Ports([2, 1, 3, 4]), text);
        assert_eq!(changed, "http://127.0.0.1:2 127.0.0.1:1/ 127.0.0.1:12 10.0.0.1:1 127.0.0.1:");
    }
}
