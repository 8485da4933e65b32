//! `pb-nats completions` and `pb-nats man`: what shells and `man` want to know.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;

use super::print;
use crate::{Cli, Usage};

#[derive(clap::Args)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

#[derive(clap::Args)]
pub(crate) struct Man {
    /// The command; none: pb-nats itself
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
}

pub(crate) fn completions(arguments: &Completions) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "pb-nats", &mut script);
    let script = String::from_utf8(script).context("the script is not text")?;
    // clap_complete 4.6 takes the hyphen for the edge of a subcommand, in one of two places.
    print(&script.replace("pb__subcmd__nats", "pb__nats"))
}

pub(crate) fn man(arguments: &Man) -> anyhow::Result<ExitCode> {
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    let mut command = &program;
    for name in &arguments.command {
        command = command.find_subcommand(name).ok_or_else(|| Usage {
            problem: format!("there is no command `{}`", arguments.command.join(" ")),
            hint: Some("`pb-nats --help` lists the commands".into()),
        })?;
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page).context("no page could be made")?;
    print(&String::from_utf8(page).context("the page is not text")?)
}
