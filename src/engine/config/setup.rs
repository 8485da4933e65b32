//! What `pb-nats init` does beside nats-server: a locked auth file, and an include of it in the
//! operator's main config.

use std::{
    env,
    path::{Path, PathBuf},
    sync::Arc,
};

use fs_err as fs;

use super::{AuthFile, EngineError, MainConfig, Placement, judge::reasons};
use crate::{
    auth::{Desired, Found, parse, render},
    options::Options,
    state::{Adopt, Keep, Scratch, StateError, StateFile, folder, stage, sweep},
};

impl AuthFile {
    /// Makes the file, where there is none, hold nobody but names that nobody can log in by,
    /// so that nats-server starts with it and lets nobody in.
    pub async fn lock_out(&mut self) -> Result<(), EngineError> {
        let _lock = self.state.lock_for_a_pass().await?;
        let current = self.read(Adopt::No)?;
        if current.desired.is_none() {
            let nobody = Arc::new(nobody(self.main_config.as_ref()));
            self.replace(&nobody, &current, false, Keep::IfWanted).await?;
        }
        Ok(())
    }
}

/// Nobody, but for the names that nats-server does not start without: they may do nothing.
fn nobody(config: Option<&MainConfig>) -> Desired {
    let needed = config.and_then(MainConfig::needed_names).unwrap_or_default();
    Desired { locked: needed.iter().map(|it| it.as_str().into()).collect(), ..Desired::default() }
}

/// A folder in which nats-server is asked about a config.
fn scratch() -> Result<Scratch, StateError> {
    let made = Scratch::new();
    made.map_err(|source| StateError::Io { path: env::temp_dir(), what: "written", source })
}

/// Whether nats-server starts with the config, or what it has against it. `None` without its program.
///
/// What comes after it has judged its settings is not looked at, such as whether a port is free.
pub async fn starts(
    options: &Options,
    config: &Path,
) -> Result<Option<Result<(), String>>, EngineError> {
    let Some(judge) = AuthFile::new(options).judge().await else { return Ok(None) };
    let scratch = scratch()?;
    Ok(Some(judge.start(config, &scratch).await))
}

/// The same of a config with these lines at its end, in which the auth file is `auth.conf`. Where
/// that is not ours yet, it lets nobody in.
///
/// Everything is looked at in a scratch folder. `None` also if an include is written in a way that
/// cannot be led there.
pub async fn would_start(
    options: &Options,
    config: &MainConfig,
    lines: &str,
) -> Result<Option<Result<(), String>>, EngineError> {
    let mut file = AuthFile::new(options);
    let Some(judge) = file.judge().await else { return Ok(None) };
    let mut auth = file.state.text()?;
    if !matches!(parse(&auth), Found::Ours(_)) {
        auth = render(&nobody(Some(config)));
    }
    let Some(files) = config.with_auth_file(&auth) else { return Ok(None) };
    let scratch = scratch()?;
    for (name, text) in files {
        let more = if name == MainConfig::FIRST { lines } else { "" };
        let put = scratch.put(name, &format!("{text}\n{more}"));
        put.map_err(|err| file.state.io("checked", err))?;
    }
    let said = judge.start(&scratch.path().join(MainConfig::FIRST), &scratch).await;
    Ok(Some(said.map_err(|said| reasons(&said, scratch.path()))))
}

/// Adds these lines to the end of the main config, and returns where the former one is kept.
///
/// They are looked at beside the main config first, where includes lead to the same files: it is
/// replaced only if nats-server, where there is one, starts with it, and takes its users from the
/// auth file by it.
pub async fn add_to_main_config(
    options: &Options,
    config: &Path,
    lines: &str,
) -> Result<PathBuf, EngineError> {
    // Written as carefully as the auth file, and backed up into the same folder.
    let mut main = StateFile::at(config, options);
    let former = fs::read_to_string(config).map_err(EngineError::MainConfig)?;
    let newline = if former.is_empty() || former.ends_with('\n') { "" } else { "\n" };
    let text = format!("{former}{newline}{lines}");

    let dir = folder(config);
    sweep(dir);
    let staged = stage(dir, &text).map_err(|err| main.io("staged", err))?;
    let read = MainConfig::read(staged.path(), &options.auth_file.path);
    let placement = read.map_err(EngineError::MainConfig)?.placement();
    if placement != Placement::InForce {
        return Err(EngineError::Rejected(placement.to_string()));
    }
    if let Some(said) = starts(options, staged.path()).await? {
        said.map_err(|said| EngineError::Rejected(reasons(&said, dir)))?;
    }
    main.back_up().map_err(|err| main.io("backed up", err))?;
    main.write(&text)?;
    Ok(options.auth_file.backup_dir.clone())
}
