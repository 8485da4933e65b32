//! `pb-nats user …` and `pb-nats role …`.

use std::{env, fmt::Write as _, process::ExitCode};

use pb_nats::{
    Options,
    options::OptionsError,
    users::{self, Chosen, Kind, Listed, ListedRole, NewUser, Password, Standing, State, Stored},
};
use serde_json::{Value, json};

use super::{
    complain, password_from_stdin, print,
    superuser::{SuperuserArguments, interactive},
};
use crate::{Cli, Usage};

#[derive(clap::Subcommand)]
pub(crate) enum User {
    /// Make an active user
    #[command(after_help = "Example:\n  pb-nats user add ann --role device --generate")]
    Add(Add),
    /// Give a user another password; the former one ends
    #[command(after_help = "Example:\n  pb-nats user passwd ann --generate")]
    Passwd(Passwd),
    /// List the users: who is in force, who is not, and why
    #[command(after_help = "Example:\n  pb-nats user list --json")]
    List(List),
}

#[derive(clap::Subcommand)]
pub(crate) enum Role {
    /// List the roles, and how many users have them
    #[command(after_help = "Example:\n  pb-nats role list --json")]
    List(List),
}

#[derive(clap::Args)]
pub(crate) struct Add {
    /// The user's name in NATS
    name: String,
    /// A role, by name or id; may be given several times
    #[arg(long = "role", value_name = "ROLE")]
    roles: Vec<String>,
    /// The user's email, where the collection has one beside the name
    #[arg(long, value_name = "ADDRESS")]
    email: Option<String>,
    #[command(flatten)]
    change: Change,
}

#[derive(clap::Args)]
pub(crate) struct Passwd {
    /// The user's name in NATS
    name: String,
    #[command(flatten)]
    change: Change,
}

#[derive(clap::Args)]
struct Change {
    /// Make a random password and print it, this once
    #[arg(long)]
    generate: bool,
    /// Read the user's password on stdin
    #[arg(long, conflicts_with_all = ["generate", "superuser_password_stdin"])]
    password_stdin: bool,
    /// PocketBase's address, where the settings have none
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    #[command(flatten)]
    superuser: SuperuserArguments,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(crate) struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn user(cli: &Cli, command: &User) -> anyhow::Result<ExitCode> {
    let options = settings(cli)?;
    let (name, change) = match command {
        User::Add(add) => (&add.name, &add.change),
        User::Passwd(passwd) => (&passwd.name, &passwd.change),
        User::List(list) => {
            let mut users = users::list(&options).await?;
            let in_file = |it: &&mut Listed| it.standing == Standing::InFile;
            match users::doubt(&options).await {
                None => {
                    users.iter_mut().filter(in_file).for_each(|it| it.standing = Standing::InForce);
                }
                Some(why) => {
                    let why = format!("the auth file is not proven to be in force: {why}");
                    complain("warning", &why);
                }
            }
            return if list.json { print_json(&json!(users)) } else { print(&table(&users)) };
        }
    };
    let password = change.password(name)?;
    let mut pocketbase = options.pocketbase.clone();
    pocketbase.url = pocketbase.url.or_else(|| change.url.clone());
    let superuser = change.superuser.log_in(&pocketbase).await?;
    let stored = match command {
        User::Add(Add { email, roles, .. }) => {
            let new = NewUser { name, email: email.as_deref(), roles };
            users::add(&options, &superuser, &new, &password).await?
        }
        User::Passwd(_) | User::List(_) => {
            users::set_password(&options, &superuser, name, &password).await?
        }
    };
    change.tell(name, &password, &stored)
}

pub(crate) async fn role(cli: &Cli, command: &Role) -> anyhow::Result<ExitCode> {
    let Role::List(list) = command;
    let roles = users::list_roles(&settings(cli)?).await?;
    if list.json { print_json(&json!(roles)) } else { print(&roles_table(&roles)) }
}

/// What there is to note is about servers and files, which these commands do not change.
fn settings(cli: &Cli) -> Result<Options, OptionsError> {
    Options::load(cli.config.as_deref(), env::vars_os())
}

impl Change {
    fn password(&self, name: &str) -> anyhow::Result<Password> {
        if self.generate {
            return Ok(Password::Generated(users::secret()));
        }
        if !self.password_stdin {
            let hint = "give `--generate`, or write it to stdin with `--password-stdin`";
            interactive("a password is needed", hint)?;
        }
        let typed = password_from_stdin(&format!("New password of {name:?} in NATS"))?;
        let chosen = Chosen::parse(&typed, name)
            .map_err(|it| Usage { problem: it.to_string(), hint: Some(it.hint().to_owned()) })?;
        Ok(Password::Chosen(chosen))
    }

    fn tell(&self, name: &str, password: &Password, stored: &Stored) -> anyhow::Result<ExitCode> {
        let generated = match password {
            Password::Generated(secret) => Some(secret.reveal()),
            Password::Chosen(_) => None,
        };
        if self.json {
            return print_json(&json!({
                "name": name, "password": generated, "cost": stored.cost, "notes": stored.notes,
            }));
        }
        let cost = stored.cost;
        complain("stored", &format!("the password of {name:?}, at bcrypt cost {cost}"));
        if generated.is_some() && cost > users::CHEAP {
            complain(
                "hint",
                "PocketBase hashes the passwords of this collection. Give it a hidden text field \
                 `generated_hash` and run `pb-nats init`, and generated ones are stored at cost 4",
            );
        }
        for note in &stored.notes {
            complain("note", note);
        }
        generated.map_or(Ok(ExitCode::SUCCESS), |it| print(&format!("{it}\n")))
    }
}

fn print_json(value: &Value) -> anyhow::Result<ExitCode> {
    print(&format!("{value:#}\n"))
}

fn table(users: &[Listed]) -> String {
    let rows = users.iter().map(|it| {
        let state = match (it.state, it.standing) {
            (State::Active, Standing::InForce) => "in force",
            (State::Active, Standing::InFile) => "in the auth file",
            (State::Active, Standing::NotYet | Standing::Still | Standing::Absent) => {
                "not yet in the auth file"
            }
            (State::Active, Standing::Unknown) => "active",
            (State::Inactive, Standing::Still) => "inactive, still in the auth file",
            (State::Inactive, _) => "inactive",
            (State::LeftOut, Standing::Still) => "left out, still in the auth file",
            (State::LeftOut, _) => "left out",
        };
        let login = match (it.credential, it.cost) {
            (Kind::Password, Some(cost)) => format!("password, cost {cost}"),
            (Kind::Password, None) => "password".into(),
            (Kind::Nkey, _) => "nkey".into(),
            (Kind::None, _) => "nothing".into(),
        };
        let roles = it.roles.iter().map(|it| plain(it)).collect::<Vec<_>>().join(", ");
        ([plain(&it.name), state.into(), roles, login], &it.why[..])
    });
    aligned(["NAME", "STATE", "ROLES", "LOGS IN BY"], rows)
}

fn roles_table(roles: &[ListedRole]) -> String {
    let subjects = |allow: &Value, deny: &Value| match deny {
        Value::Array(deny) if !deny.is_empty() => format!("{allow} but {}", Value::from(&**deny)),
        _ => allow.to_string(),
    };
    let rows = roles.iter().map(|it| {
        let publish = subjects(&it.publish, &it.publish_deny);
        let subscribe = subjects(&it.subscribe, &it.subscribe_deny);
        ([plain(&it.name), it.users.to_string(), publish, subscribe], &[][..])
    });
    aligned(["NAME", "USERS", "PUBLISH", "SUBSCRIBE"], rows)
}

/// Rows in columns, with remarks below each.
fn aligned<'a>(head: [&str; 4], rows: impl Iterator<Item = ([String; 4], &'a [String])>) -> String {
    let mut all = vec![(head.map(str::to_owned), &[][..])];
    all.extend(rows);
    let width = |n: usize| all.iter().map(|(row, _)| row[n].chars().count()).max().unwrap_or(0);
    let widths = [0, 1, 2].map(width);
    let mut text = String::new();
    for ([a, b, c, d], remarks) in &all {
        let [x, y, z] = widths;
        let _ = writeln!(text, "{a:x$}  {b:y$}  {c:z$}  {d}");
        for remark in *remarks {
            let _ = writeln!(text, "  {remark}");
        }
    }
    text
}

/// A name as it is, unless it would disturb the terminal or be taken for something else.
fn plain(name: &str) -> String {
    let quoted = format!("{name:?}");
    if quoted.len() == name.len() + 2 && !name.is_empty() && name.trim() == name {
        name.to_owned()
    } else {
        quoted
    }
}
