//! What `pb-nats init` does beside nats-server: a locked auth file, and an include of it in the
//! operator's main config.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use fs_err as fs;

use super::{AuthFile, EngineError, MainConfig, Placement, judge::reasons};
use crate::{
    options::Options,
    state::{Adopt, Keep, StateFile, folder, stage, sweep},
};

impl AuthFile {
    /// Makes the file, where there is none, hold the one user whom nobody can be, so that
    /// nats-server starts with it and lets nobody in.
    pub async fn lock_out(&mut self) -> Result<(), EngineError> {
        let _lock = self.state.lock_for_a_pass().await?;
        let current = self.read(Adopt::No)?;
        if current.desired.is_none() {
            self.replace(&Arc::default(), &current, false, Keep::IfWanted).await?;
        }
        Ok(())
    }
}

/// What nats-server's program says of a config: `None` without such a program.
pub async fn judge(options: &Options, config: &Path) -> Option<Result<(), String>> {
    let judge = AuthFile::new(options).judge().await?;
    Some(judge.ask(config).await.map(drop))
}

/// Adds these lines to the end of the main config, and returns where the former one is kept.
///
/// They are looked at beside the main config first, where includes lead to the same files: it is
/// replaced only if nats-server, where there is one, accepts it, and takes its users from the auth
/// file by it.
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
    if let Some(judge) = AuthFile::new(options).judge().await {
        let said = judge.ask(staged.path()).await;
        said.map_err(|said| EngineError::Rejected(reasons(&said, dir)))?;
    }
    main.back_up().map_err(|err| main.io("backed up", err))?;
    main.write(&text)?;
    Ok(options.auth_file.backup_dir.clone())
}
