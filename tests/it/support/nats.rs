//! A nats-server, or a cluster of them.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use serde_json::Value;
use tempfile::TempDir;

use super::{Client, Login, Process, Signal, eventually, tool, write};

/// Lines of a main config that give the system account a user, [`SYSTEM_USER`].
///
/// With them a server is never open to everybody; without, only the `authorization` block counts.
pub(crate) const SYSTEM_ACCOUNT: &str = r#"
accounts { SYS { users = [ {user: "sys", password: "sys-password"} ] } }
system_account: SYS
"#;

/// A variable of each server's environment: users of an account, in words that only nats-server
/// understands.
pub(crate) const HIDDEN: (&str, &str) = ("HIDDEN", "[ {user: hidden / password: x} ]");

/// The name and password of the system account's user.
pub(crate) const SYSTEM_USER: (&str, &str) = ("sys", "sys-password");

/// A real nats-server whose main config lets nobody in, and includes `auth.conf`.
pub(crate) struct Nats {
    dir: Arc<TempDir>,
    /// Of the server, and of its files.
    name: String,
    binary: PathBuf,
    extra: String,
    /// Lines behind those, which may change from start to start.
    further: String,
    /// Where clients connect. It stays the same when the server is started again.
    pub(crate) address: SocketAddr,
    /// Where `/varz` is.
    pub(crate) monitor: SocketAddr,
    routes: Option<SocketAddr>,
    process: Option<Process>,
}

/// Where a server of a cluster listens for the others, and where they are told to find it.
pub(crate) struct Door {
    pub(crate) listen: SocketAddr,
    pub(crate) advertise: SocketAddr,
}

/// What to start, where it is not the usual.
#[derive(Clone, Copy, Default)]
pub(crate) struct Setup<'a> {
    /// One of the versions in `target/tools`; none: the default one.
    pub(crate) version: Option<&'a str>,
    /// Further lines of the main config, before its `authorization` block: [`SYSTEM_ACCOUNT`], say.
    pub(crate) extra: &'a str,
    /// What `auth.conf` holds at first.
    pub(crate) auth: &'a str,
    /// In which folder its own is made; none: the usual one for such.
    pub(crate) within: Option<&'a Path>,
}

impl Setup<'_> {
    /// A folder with the `auth.conf`.
    fn folder(&self) -> Arc<TempDir> {
        let dir = self.within.map_or_else(TempDir::new, TempDir::new_in);
        let dir = dir.expect("there is room for a folder");
        write(dir.path().join("auth.conf"), self.auth);
        Arc::new(dir)
    }
}

impl Nats {
    /// Starts the default version with an empty `auth.conf`.
    pub(crate) fn start() -> Nats {
        Nats::with(Setup::default())
    }

    pub(crate) fn with(setup: Setup<'_>) -> Nats {
        Nats::launch(setup.folder(), "nats-server", setup)
    }

    /// Starts so many servers that know each other and include the same `auth.conf`.
    pub(crate) fn cluster(size: usize, setup: Setup<'_>) -> Vec<Nats> {
        let dir = setup.folder();
        let mut servers: Vec<Nats> = Vec::new();
        for number in 1..=size {
            let routes: Vec<String> = servers
                .iter()
                .map(|it| format!("\"nats-route://{}\"", it.routes.expect("it is in a cluster")))
                .collect();
            let extra = format!(
                "cluster {{ name: \"test\", listen: \"127.0.0.1:-1\", routes: [{}] }}\n{}",
                routes.join(", "),
                setup.extra
            );
            let name = format!("nats-server-{number}");
            servers.push(Nats::launch(dir.clone(), &name, Setup { extra: &extra, ..setup }));
        }
        acquainted(&servers);
        servers
    }

    /// A cluster whose servers reach each other, and are told of, through these doors only.
    pub(crate) fn cluster_behind(doors: &[Door], setup: Setup<'_>) -> Vec<Nats> {
        let dir = setup.folder();
        let launch = |(number, door): (usize, &Door)| {
            let routes: Vec<String> = doors[..number]
                .iter()
                .map(|it| format!("\"nats-route://{}\"", it.advertise))
                .collect();
            let extra = format!(
                "cluster {{ name: \"test\", listen: \"{}\", advertise: \"{}\", no_advertise: true, \
                 routes: [{}] }}\n{}",
                door.listen,
                door.advertise,
                routes.join(", "),
                setup.extra
            );
            let name = format!("nats-server-{}", number + 1);
            Nats::launch(dir.clone(), &name, Setup { extra: &extra, ..setup })
        };
        let servers: Vec<Nats> = doors.iter().enumerate().map(launch).collect();
        acquainted(&servers);
        servers
    }

    fn launch(dir: Arc<TempDir>, name: &str, setup: Setup<'_>) -> Nats {
        // Until the server has told its ports, they are -1.
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut nats = Nats {
            dir,
            name: name.into(),
            binary: tool("nats-server", setup.version),
            extra: setup.extra.into(),
            further: String::new(),
            address: unknown,
            monitor: unknown,
            routes: None,
            process: None,
        };
        nats.resume();
        nats
    }

    /// Starts the server again, at the addresses it had.
    pub(crate) fn resume(&mut self) {
        self.process = None;
        let config = self.config();
        if fs::read_to_string(self.config_file()).ok().as_ref() != Some(&config) {
            write(self.config_file(), config);
        }
        let log = fs::File::options().append(true).create(true).open(self.path("log"));
        let mut command = Command::new(&self.binary);
        command.arg("-c").arg(self.config_file()).stdin(Stdio::null()).stdout(Stdio::null());
        command.env(HIDDEN.0, HIDDEN.1);
        let process = Process::start(command.stderr(log.expect("a log can be written")));
        let ports = eventually("nats-server starts", || {
            assert!(process.ended().is_none(), "nats-server ended: {}", self.log());
            self.ports(process.pid())
        });
        let address = |kind: &str| -> Option<SocketAddr> {
            let url = ports[kind][0].as_str()?;
            url.rsplit('/').next()?.parse().ok()
        };
        self.address = address("nats").expect("it listens for clients");
        self.monitor = address("monitoring").expect("it has a monitor");
        self.routes = address("cluster");
        self.process = Some(process);
    }

    /// Gives the main config further lines, in place of those that it was given last. They count from
    /// its next start on.
    pub(crate) fn configure(&mut self, lines: &str) {
        lines.clone_into(&mut self.further);
    }

    /// Stops the server in an orderly way.
    pub(crate) fn stop(&mut self) {
        self.end(Signal::TERM);
    }

    /// Stops the server as a power cut would.
    pub(crate) fn kill(&mut self) {
        self.end(Signal::KILL);
    }

    fn end(&mut self, signal: Signal) {
        let process = self.process.take().expect("the server runs");
        process.end(signal);
    }

    /// What it is called, by the servers too.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The folder that holds everything.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The main config.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.path("conf")
    }

    pub(crate) fn auth_file(&self) -> PathBuf {
        self.dir().join("auth.conf")
    }

    pub(crate) fn pid_file(&self) -> PathBuf {
        self.path("pid")
    }

    pub(crate) fn binary(&self) -> &Path {
        &self.binary
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().expect("the server runs").pid()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.as_ref().expect("the server runs").signal(signal);
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    pub(crate) fn monitor_url(&self) -> String {
        format!("http://{}", self.monitor)
    }

    pub(crate) fn log_file(&self) -> PathBuf {
        self.path("log")
    }

    /// Everything the server has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Writes `auth.conf` by hand and makes the server load it.
    pub(crate) fn load(&self, auth: &str) -> Result<(), String> {
        write(self.auth_file(), auth);
        self.reload()
    }

    /// Makes the server load its config. An error: it refuses, and says why.
    pub(crate) fn reload(&self) -> Result<(), String> {
        let before = self.log().len();
        self.signal(Signal::HUP);
        eventually("nats-server reloads", || {
            let log = self.log();
            log[before..].lines().find_map(|line| {
                if line.contains("Reloaded server configuration") {
                    return Some(Ok(()));
                }
                let (_, why) = line.split_once("Failed to reload server configuration: ")?;
                Some(Err(why.to_owned()))
            })
        })
    }

    /// What `nats-server -t` says to the main config. An error: that it is not acceptable.
    pub(crate) fn judge(&self) -> Result<String, String> {
        let mut command = Command::new(&self.binary);
        let said =
            command.arg("-t").arg("-c").arg(self.config_file()).env(HIDDEN.0, HIDDEN.1).output();
        let said = said.expect("nats-server starts");
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        if said.status.success() { Ok(text) } else { Err(text) }
    }

    /// What the server tells about itself.
    pub(crate) fn varz(&self) -> Value {
        self.ask("varz")
    }

    /// Connects as this user. An error: why not.
    pub(crate) fn connect(&self, login: Login<'_>) -> Result<Client, String> {
        Client::connect(self.address, login)
    }

    /// Connects as this user, who is let in.
    pub(crate) fn client(&self, user: &str, password: &str) -> Client {
        self.connect(Login::Password(user, password)).unwrap_or_else(|why| panic!("{user}: {why}"))
    }

    /// Connects as the user of [`SYSTEM_ACCOUNT`].
    pub(crate) fn system(&self) -> Client {
        self.client(SYSTEM_USER.0, SYSTEM_USER.1)
    }

    /// Asks the server whether it lets this user in.
    pub(crate) fn accepts(&self, user: &str, password: &str) -> bool {
        self.lets_in(Login::Password(user, password))
    }

    /// Asks the server whether it lets anybody in who says no name.
    pub(crate) fn is_open(&self) -> bool {
        self.lets_in(Login::Nobody)
    }

    /// Asks the server whether it lets this client in.
    pub(crate) fn lets_in(&self, login: Login<'_>) -> bool {
        match self.connect(login) {
            Ok(_) => true,
            Err(why) if why == "Authorization Violation" => false,
            Err(why) => panic!("the server neither lets in nor refuses: {why}"),
        }
    }

    /// Reads a page of the monitor.
    pub(crate) fn ask(&self, page: &str) -> Value {
        let url = format!("{}/{page}", self.monitor_url());
        let mut answer = super::http().get(&url).call().expect("the monitor answers");
        answer.body_mut().read_json().expect("the monitor speaks JSON")
    }

    fn path(&self, extension: &str) -> PathBuf {
        self.dir().join(format!("{}.{extension}", self.name))
    }

    fn config(&self) -> String {
        let listen = |it: SocketAddr| match it.port() {
            0 => "127.0.0.1:-1".into(),
            _ => it.to_string(),
        };
        let extra = match self.routes {
            Some(routes) => {
                self.extra.replace("listen: \"127.0.0.1:-1\"", &format!("listen: \"{routes}\""))
            }
            None => self.extra.clone(),
        };
        format!(
            r#"server_name: "{name}"
listen: "{address}"
http: "{monitor}"
ports_file_dir: "{dir}"
pid_file: "{pid}"
{extra}{further}
# Should the included file ever be empty, this one lets nobody in.
authorization {{
  users = [ {{user: "locked", password: "{LOCKED}", permissions: {{publish: {{deny: ">"}}, subscribe: {{deny: ">"}}}}}} ]
}}
include "auth.conf"
"#,
            name = self.name,
            further = self.further,
            address = listen(self.address),
            monitor = listen(self.monitor),
            dir = self.dir().display(),
            pid = self.pid_file().display(),
        )
    }

    /// The file that nats-server writes once it listens: nothing is guessed.
    fn ports(&self, pid: u32) -> Option<Value> {
        let files = fs::read_dir(self.dir()).expect("the folder is there");
        let file = files
            .filter_map(Result::ok)
            .find(|it| it.file_name().to_string_lossy().ends_with(&format!("_{pid}.ports")))?;
        serde_json::from_str(&fs::read_to_string(file.path()).ok()?).ok()
    }
}

/// Waits until each server of a cluster knows all others.
fn acquainted(servers: &[Nats]) {
    for server in servers {
        // Servers may hold several connections to each other.
        eventually("the servers of a cluster find each other", || {
            let routes = server.ask("routez")["routes"].as_array()?.clone();
            let peers: std::collections::BTreeSet<&str> =
                routes.iter().filter_map(|it| it["remote_name"].as_str()).collect();
            (peers.len() == servers.len() - 1).then_some(())
        });
    }
}

/// A hash that no password has.
const LOCKED: &str = "$2a$10$.....................................................";

/// Answers over the system account what all servers are asked, or the one with this id: with what
/// this says, as long as `nats` runs.
pub(crate) fn answering(nats: &Nats, id: &str, answer: impl Fn(&str) -> Vec<u8> + Send + 'static) {
    let mut client = nats.system();
    client.subscribe("$SYS.REQ.SERVER.PING.VARZ");
    client.subscribe(&format!("$SYS.REQ.SERVER.{id}.*"));
    client.flush().expect("it may");
    std::thread::spawn(move || {
        while client.closed(std::time::Duration::from_millis(50)).is_none() {
            while let Some(asked) = client.heard() {
                if let Some(reply) = asked.reply {
                    client.publish(&reply, &answer(&asked.subject));
                }
            }
        }
    });
}
