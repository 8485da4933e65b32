//! The superuser whom `init` and `user` need, from arguments, the environment or a terminal.

use std::{
    env,
    io::{self, IsTerminal as _, Write as _},
};

use anyhow::Context as _;
use pb_nats::{
    options::{PocketBaseOptions, Secret},
    source::{Login, Superuser},
};
use zeroize::Zeroizing;

use super::password_from_stdin;
use crate::Usage;

const PASSWORD: &str = "PB_NATS_SUPERUSER_PASSWORD";
const TOKEN: &str = "PB_NATS_SUPERUSER_TOKEN";

#[derive(clap::Args)]
pub(crate) struct SuperuserArguments {
    /// The email of a superuser of PocketBase. Its password is in `PB_NATS_SUPERUSER_PASSWORD`, or
    /// asked for; a token in `PB_NATS_SUPERUSER_TOKEN` stands for both
    #[arg(long, env = "PB_NATS_SUPERUSER", value_name = "EMAIL")]
    superuser: Option<String>,
    /// Read the superuser's password on stdin
    #[arg(long)]
    superuser_password_stdin: bool,
}

impl SuperuserArguments {
    /// Logs in at the address in the settings.
    pub(crate) async fn log_in(&self, options: &PocketBaseOptions) -> anyhow::Result<Superuser> {
        Ok(Superuser::log_in(options, &self.login()?).await?)
    }

    fn login(&self) -> anyhow::Result<Login> {
        let variable = |name| env::var(name).ok().filter(|it| !it.is_empty()).map(Secret::new);
        if let Some(token) = variable(TOKEN) {
            return Ok(Login::Token(token));
        }
        let hint = format!("give `--superuser EMAIL` and set {PASSWORD}, or set {TOKEN}");
        let identity = match &self.superuser {
            Some(identity) => identity.clone(),
            None => ask("PocketBase superuser's email", "", &hint)?,
        };
        let password = match variable(PASSWORD) {
            _ if self.superuser_password_stdin => {
                Secret::new(password_from_stdin(&format!("Password of {identity}"))?.as_str())
            }
            Some(password) => password,
            None => {
                interactive("a superuser's password is needed", &hint)?;
                let prompt = format!("Password of {identity}: ");
                let typed = rpassword::prompt_password(prompt).context("no password was read")?;
                Secret::new(Zeroizing::new(typed).as_str())
            }
        };
        Ok(Login::Password { identity, password })
    }
}

/// Fails where nobody can be asked.
pub(crate) fn interactive(problem: &str, hint: &str) -> anyhow::Result<()> {
    if io::stdin().is_terminal() && io::stderr().is_terminal() {
        return Ok(());
    }
    let problem = format!("{problem}, and there is no terminal to ask at");
    Err(Usage { problem, hint: Some(hint.into()) }.into())
}

/// Asks at the terminal. An empty answer is the default.
pub(crate) fn ask(question: &str, default: &str, hint: &str) -> anyhow::Result<String> {
    interactive(&format!("{question}: not given"), hint)?;
    let shown = if default.is_empty() { String::new() } else { format!(" [{default}]") };
    let mut stderr = io::stderr();
    let _ = write!(stderr, "{question}{shown}: ").and_then(|()| stderr.flush());
    let mut answer = String::new();
    if io::stdin().read_line(&mut answer).context("no answer was read")? == 0 {
        let problem = format!("{question}: no answer");
        return Err(Usage { problem, hint: Some(hint.into()) }.into());
    }
    Ok(Some(answer.trim()).filter(|it| !it.is_empty()).unwrap_or(default).to_owned())
}
