//! `pb-nats dev`.

mod folder;
mod servers;

use std::{
    ffi::OsString,
    fmt::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::pin,
    process::{ExitCode, ExitStatus},
    time::Duration,
};

use pb_nats::{
    Options,
    admin::Admin,
    init::{self, Settings, Wanted},
    options::{Secret, keep_settings_from},
    source::{Login, SourceError, Superuser},
    state::StateError,
    state::{Existing, lock_folder, place, private_folder, temporary_folder},
    users::{self, NewUser, Password},
};
use serde_json::json;
use tokio::{process::Command, time};

use self::{
    folder::{Folder, Ports},
    servers::{NATS_SERVER, POCKETBASE, Program, Server, become_child},
};
use super::{print, reconciler, run::shutdown, terminal};
use crate::{Cli, Usage, block_on};

pub(crate) const EXAMPLES: &str = "\
Example:
  pb-nats dev
  pb-nats dev --temporary --pocketbase ~/Downloads/pocketbase";

/// The superuser of PocketBase.
const SUPERUSER: &str = "dev@example.com";
const SUPERUSERS: &str = "_superusers";
/// The user to begin with, and their role, one of those that `init` makes.
const USER: &str = "example";
const ROLE: &str = "service";
/// How often is looked whether a server has ended.
const LOOK: Duration = Duration::from_millis(100);

#[derive(clap::Args)]
pub(crate) struct Dev {
    /// The folder for everything; made if need be, and used again by the next start
    #[arg(long, value_name = "DIR", default_value = "pb-nats-dev")]
    dir: PathBuf,
    /// Use a new folder, and throw it away at the end
    #[arg(long, conflicts_with = "dir")]
    temporary: bool,
    /// The PocketBase program; without it the one beside pb-nats or on the PATH
    #[arg(long, value_name = "FILE")]
    pocketbase: Option<PathBuf>,
    /// The nats-server program; without it that of the former start, or as for PocketBase
    #[arg(long, value_name = "FILE")]
    nats_server: Option<PathBuf>,
    /// Become PROGRAM, and end with the process PID: so servers are started
    #[arg(long, value_name = "PID", hide = true, requires = "program")]
    child_of: Option<i32>,
    #[arg(last = true, value_name = "PROGRAM", hide = true, requires = "child_of")]
    program: Vec<OsString>,
}

/// The servers could not be started, or one did not stay. All that was started is stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DevError {
    /// Programs are missing.
    #[error("there is no {}", .0.iter().map(|(missing, _)| missing.as_str()).collect::<Vec<_>>().join(", and no "))]
    Missing(Vec<(String, String)>),
    /// Another `dev` uses the folder.
    #[error("a `pb-nats dev`{} is at work in {} already", pid.map(|it| format!(" (process {it})")).unwrap_or_default(), folder.display())]
    AtWork { folder: PathBuf, pid: Option<u32> },
    /// The folder holds what is not from here. It was left alone.
    #[error("{} was not made by `pb-nats dev`, and is left alone", path.display())]
    Foreign { path: PathBuf },
    /// The settings were changed to something that `dev` does not start.
    #[error("`{setting}` in {} names no port on 127.0.0.1", settings.display())]
    Elsewhere { setting: &'static str, settings: PathBuf },
    /// The superuser's password is another one now.
    #[error("PocketBase does not take the password in {} for {SUPERUSER}", file.display())]
    Superuser { file: PathBuf, source: SourceError },
    /// A command to PocketBase failed.
    #[error("PocketBase could not make a superuser, {status}: {said}")]
    NoSuperuser { status: ExitStatus, said: String },
    /// A server does not come up.
    #[error("{name} does not listen at {address}")]
    Slow { name: &'static str, address: SocketAddr, log: PathBuf },
    /// A server has ended by itself, and so all were ended.
    #[error("{name} has ended ({status}), and so everything was; {last_words}")]
    Ended { name: &'static str, status: ExitStatus, last_words: String, log: PathBuf },
}

impl DevError {
    /// What one can do about it.
    pub(crate) fn hint(&self) -> String {
        match self {
            DevError::Missing(missing) => {
                let hows: Vec<&str> = missing.iter().map(|(_, how)| how.as_str()).collect();
                format!(
                    "{}; put it on the PATH or beside pb-nats, or name it with `--pocketbase FILE`, \
                     `--nats-server FILE`",
                    hows.join("; ")
                )
            }
            DevError::AtWork { .. } => {
                "use that one, end it with Ctrl-C, or start another with `--dir DIR` or \
                 `--temporary`"
                    .into()
            }
            DevError::Foreign { .. } => "name another folder with `--dir DIR`".into(),
            DevError::Elsewhere { .. } => {
                "write it as it was, or delete that file: it is made anew, and the data stays"
                    .into()
            }
            DevError::Superuser { file, .. } => format!(
                "write the right one into it; or delete {}, and a new password is made",
                file.display()
            ),
            DevError::NoSuperuser { .. } => {
                "PocketBase has to be 0.23 or later; is this the right program?".into()
            }
            DevError::Slow { log, .. } | DevError::Ended { log, .. } => {
                format!("everything that it said is in {}", log.display())
            }
        }
    }
}

/// Starts it all; or, as one of its children, a server.
pub(crate) fn start(cli: &Cli, arguments: &Dev) -> anyhow::Result<ExitCode> {
    match arguments.child_of {
        Some(parent) => Err(become_child(parent, &arguments.program).into()),
        None => block_on(dev(cli, arguments)),
    }
}

async fn dev(cli: &Cli, arguments: &Dev) -> anyhow::Result<ExitCode> {
    if let Some(file) = &cli.config {
        return Err(Usage {
            problem: format!("`dev` has settings of its own, and does not read {}", file.display()),
            hint: Some("leave `--config` out; the settings are in the folder of `--dir`".into()),
        }
        .into());
    }
    let mut shutdown = pin!(shutdown()?);
    let temporary = arguments.temporary.then(temporary_folder).transpose()?;
    let path = temporary.as_ref().map_or(arguments.dir.as_path(), |it| it.path());
    let folder = Folder { path: std::path::absolute(path)?, temporary: arguments.temporary };
    let former = folder.options()?;
    let programs = programs(arguments, former.as_ref())?;
    private_folder(&folder.path)?;
    let _lock = lock_folder(&folder.path).map_err(|error| match error {
        StateError::Locked { pid, .. } => {
            DevError::AtWork { folder: folder.path.clone(), pid }.into()
        }
        other => anyhow::Error::from(other),
    })?;

    let mut servers = Vec::new();
    let done = Box::pin(async {
        let stage = tokio::select! {
            () = &mut shutdown => return Ok(()),
            it = set_up(&folder, former, &programs, &mut servers) => it?,
        };
        keep(&folder, &stage, shutdown, &mut servers).await
    })
    .await;
    // Why a server is gone explains whatever came of it.
    let fallen = servers.iter_mut().find_map(Server::ended);
    // The last first: nats-server goes before what its users are from.
    while let Some(server) = servers.pop() {
        server.end().await;
    }
    match fallen {
        Some(error) => Err(error.into()),
        None => done.map(|()| ExitCode::SUCCESS),
    }
}

struct Programs {
    pocketbase: PathBuf,
    nats_server: PathBuf,
}

fn programs(arguments: &Dev, former: Option<&Options>) -> Result<Programs, DevError> {
    let mut missing = Vec::new();
    let mut find = |program: &Program, given: Option<&Path>, former: Option<&Path>| {
        let found = program.find(given, former);
        if found.is_none() {
            let what = match given {
                Some(path) => format!("`{}` at {}", program.name, path.display()),
                None => format!("program `{}` on the PATH or beside pb-nats", program.name),
            };
            missing.push((what, program.how_to_get()));
        }
        found
    };
    let pocketbase = find(&POCKETBASE, arguments.pocketbase.as_deref(), None);
    let former = former.map(|it| it.nats.server_binary.as_path());
    let nats_server = find(&NATS_SERVER, arguments.nats_server.as_deref(), former);
    match (pocketbase, nats_server) {
        (Some(pocketbase), Some(nats_server)) => Ok(Programs { pocketbase, nats_server }),
        _ => Err(DevError::Missing(missing)),
    }
}

/// What is there when all is set up.
struct Stage {
    options: Options,
    ports: Ports,
    /// The superuser's password, if it is new.
    superuser: Option<Secret>,
    /// The example user's, if they are.
    user: Option<Secret>,
}

/// Makes what is missing, and starts the servers.
async fn set_up(
    folder: &Folder,
    former: Option<Options>,
    programs: &Programs,
    servers: &mut Vec<Server>,
) -> anyhow::Result<Stage> {
    let begins = former.is_none();
    terminal::say("note: starting PocketBase and nats-server …");
    let (mut options, ports) = folder.settle(former)?;
    options.nats.server_binary.clone_from(&programs.nats_server);

    let known = folder.known_password()?;
    let is_new = known.is_none();
    let password = match known {
        Some(password) => Secret::new(password),
        None => make_superuser(folder, &programs.pocketbase).await?,
    };
    let address = ports.pocketbase().to_string();
    let arguments = ["serve", "--http", &address, "--dir", "pb_data"];
    servers.push(Server::start(&POCKETBASE, &programs.pocketbase, &arguments, &folder.path)?);
    servers.last_mut().expect("it was just started").listens(ports.pocketbase()).await?;
    let password =
        if is_new { change_password(folder, &options, password).await? } else { password };

    let wanted = Wanted {
        options,
        settings: if begins {
            Settings::New(folder.settings())
        } else {
            Settings::There(folder.settings())
        },
        main_config: Some(folder.main_config()),
    };
    let superuser = log_in(folder, &wanted.options, &password).await?;
    let plan = init::plan(&wanted, superuser).await?;
    plan.carry_out(|_| ()).await?;
    let options = plan.options;

    let mut user = None;
    let roles = users::list_roles(&options).await?;
    if users::list(&options).await?.is_empty() && roles.iter().any(|it| it.name == ROLE) {
        let superuser = log_in(folder, &options, &password).await?;
        let secret = users::secret();
        let generated = Password::Generated(secret.clone());
        let new = NewUser { name: USER, email: None, roles: &[ROLE.to_owned()] };
        users::add(&options, &superuser, &new, &generated).await?;
        user = Some(secret);
    }

    let arguments = ["-c", "nats-server.conf"];
    servers.push(Server::start(&NATS_SERVER, &programs.nats_server, &arguments, &folder.path)?);
    servers.last_mut().expect("it was just started").listens(ports.nats()).await?;
    let superuser = is_new.then_some(password);
    Ok(Stage { options, ports, superuser, user })
}

/// Makes the superuser, or gives them another password, while PocketBase does not run.
///
/// Others on this machine can read the words of a command, so this password is not to stay.
async fn make_superuser(folder: &Folder, pocketbase: &Path) -> anyhow::Result<Secret> {
    let password = users::secret();
    let mut command = Command::new(pocketbase);
    command.args(["superuser", "upsert", SUPERUSER, password.reveal(), "--dir", "pb_data"]);
    command.current_dir(&folder.path).kill_on_drop(true);
    keep_settings_from(command.as_std_mut());
    let output = command.output().await?;
    if output.status.success() {
        return Ok(password);
    }
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let said = said.replace(password.reveal(), "…").trim().to_owned();
    Err(DevError::NoSuperuser { status: output.status, said }.into())
}

/// Gives the superuser a password that nobody has seen, and keeps it in a file.
async fn change_password(
    folder: &Folder,
    options: &Options,
    former: Secret,
) -> anyhow::Result<Secret> {
    let superuser = log_in(folder, options, &former).await?;
    let all = superuser.records(SUPERUSERS, 1000).await?;
    let own = all.iter().find(|it| it["email"] == SUPERUSER).and_then(|it| it["id"].as_str());
    let password = users::secret();
    let body = json!({ "password": password.reveal(), "passwordConfirm": password.reveal() });
    let path = ["collections", SUPERUSERS, "records", own.unwrap_or_default()];
    superuser.update(&path, &body).await?;
    let file = folder.superuser_password();
    place(&file, &format!("{}\n", password.reveal()), 0o600, Existing::Replaced)?;
    Ok(password)
}

async fn log_in(
    folder: &Folder,
    options: &Options,
    password: &Secret,
) -> anyhow::Result<Superuser> {
    let login = Login::Password { identity: SUPERUSER.into(), password: password.clone() };
    Superuser::log_in(&options.pocketbase, &login).await.map_err(|error| match error {
        SourceError::LoginRefused { .. } => {
            let file = folder.superuser_password();
            DevError::Superuser { file, source: error }.into()
        }
        other => other.into(),
    })
}

/// Keeps NATS in step until it is told to end, or a server ends.
async fn keep(
    folder: &Folder,
    stage: &Stage,
    mut shutdown: impl Future<Output = ()> + Unpin,
    servers: &mut [Server],
) -> anyhow::Result<()> {
    let mut reconciler = reconciler(&stage.options)?;
    let watch = reconciler.status().clone();
    let _admin = Admin::start(&stage.options, &reconciler).await?;
    let mut told = Ok(ExitCode::SUCCESS);
    let stop = async {
        let mut shown = false;
        loop {
            if !shown && watch.ready() {
                shown = true;
                told = print(&card(folder, stage));
            }
            if servers.iter_mut().any(|it| it.ended().is_some()) {
                return;
            }
            tokio::select! {
                () = &mut shutdown => return,
                () = time::sleep(LOOK) => (),
            }
        }
    };
    reconciler.run(stop).await?;
    told.map(drop)
}

/// What one needs to know to begin.
fn card(folder: &Folder, stage: &Stage) -> String {
    let Stage { options, ports, superuser, user } = stage;
    let quoted = |path: &Path| {
        let path = path.display().to_string();
        shlex::try_quote(&path).map_or_else(|_| path.clone(), Into::into)
    };
    let (settings, file) = (quoted(&folder.settings()), quoted(&folder.superuser_password()));
    let nats = format!("nats://{}", ports.nats());
    let mut text = String::from("\n✓ PocketBase users and roles are in force in nats-server\n\n");
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "  {name:<12} {value}");
    };
    line("Dashboard", &format!("http://{}/_/", ports.pocketbase()));
    let password = superuser.as_ref().map_or("the password is in", |it| it.reveal());
    line("  log in", &format!("{SUPERUSER}  {password}"));
    line("", &format!("kept in {file}"));
    line("NATS", &nats);
    match user {
        Some(password) => line("  log in", &format!("{USER}  {}", password.reveal())),
        None => line("  log in", "any user; for another password: pb-nats user passwd NAME"),
    }
    line("Status page", &format!("http://{}/", options.admin.listen));
    let gone = if folder.temporary { ", gone at the end" } else { "" };
    line("Data, logs", &format!("{}{gone}", folder.path.display()));
    let password = user.as_ref().map_or("…", |it| it.reveal());
    let _ = write!(
        text,
        "\nTo try:\n\
         \x20 pb-nats -c {settings} explain {USER} pub services.hello\n\
         \x20 pb-nats -c {settings} user add ann --role device --generate \\\n\
         \x20     --superuser {SUPERUSER} --superuser-password-stdin < {file}\n\
         \x20 nats --server {nats} --user {USER} --password {password} sub 'services.>'\n\
         Who asks is answered in an inbox of their own: nats --inbox-prefix _INBOX_{USER} …\n\n\
         Ctrl-C ends it all.\n"
    );
    text
}
