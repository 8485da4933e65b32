//! What `pb-nats init` and `pb-nats dev` write beside the auth file, each time with consent: files
//! that are not there yet, and an include in the operator's main config.

use std::{
    env, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use fs_err::{self as fs, os::unix::fs::OpenOptionsExt as _};
use tempfile::TempDir;

use super::{ApplyError, AuthFile, Lock, MainConfig, Placement, folder, reasons, stage, sweep};
use crate::options::Options;

/// Whether a file that is there already is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It stays, and that is an error.
    Stays,
    /// It is replaced.
    Replaced,
}

/// Writes a whole file in one step, with this mode; its folder is made if need be.
pub fn place(path: &Path, text: &str, mode: u32, existing: Existing) -> Result<(), ApplyError> {
    let place = || {
        let folder = folder(path);
        fs::create_dir_all(folder)?;
        sweep(folder);
        // Nobody else may read it before it has its mode.
        let staged = stage(folder, text)?;
        staged.as_file().set_permissions(std::fs::Permissions::from_mode(mode))?;
        staged.as_file().sync_all()?;
        match existing {
            Existing::Stays => staged.persist_noclobber(path).map_err(|it| it.error)?,
            Existing::Replaced => staged.persist(path).map_err(|it| it.error)?,
        };
        fs::File::open(folder)?.sync_all()
    };
    place().map_err(|source: io::Error| ApplyError::Io {
        path: path.to_owned(),
        what: "written",
        source,
    })
}

/// Makes a folder, if need be, that nobody else may look into.
pub fn private_folder(path: &Path) -> Result<(), ApplyError> {
    let made = fs::create_dir_all(folder(path)).and_then(|()| {
        match std::fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if !path.is_dir() => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    });
    made.map_err(|source| ApplyError::Io { path: path.to_owned(), what: "made", source })
}

/// A folder that nobody else may look into, and that is gone with what is in it when dropped.
pub fn temporary_folder() -> Result<TempDir, ApplyError> {
    let made = tempfile::Builder::new().prefix("pb-nats-").tempdir();
    made.map_err(|source| ApplyError::Io { path: env::temp_dir(), what: "written", source })
}

/// Keeps whoever calls this for the same folder away from it, for as long as the lock lives.
pub fn lock_folder(folder: &Path) -> Result<Lock, ApplyError> {
    AuthFile { path: folder.join("folder"), ..AuthFile::new(&Options::default()) }.try_lock("lock")
}

/// An empty file for what a program says, which nobody else may read.
pub fn log_file(path: &Path) -> Result<std::fs::File, ApplyError> {
    let mut options = fs::OpenOptions::new();
    let opened = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    let opened = opened.map(|it| it.into_parts().0);
    opened.map_err(|source| ApplyError::Io { path: path.to_owned(), what: "written", source })
}

impl AuthFile {
    /// Makes the file, where there is none, hold the one user whom nobody can be, so that
    /// nats-server starts with it and lets nobody in.
    pub async fn lock_out(&mut self) -> Result<(), ApplyError> {
        let _lock = self.lock_for_a_pass().await?;
        let current = self.read(super::Adopt::No)?;
        if current.desired.is_none() {
            self.replace(Arc::default(), &current, false).await?;
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
) -> Result<PathBuf, ApplyError> {
    // Written as carefully as the auth file, and backed up into the same folder.
    let mut main = AuthFile { path: config.to_owned(), ..AuthFile::new(options) };
    let former = fs::read_to_string(config).map_err(ApplyError::MainConfig)?;
    let newline = if former.is_empty() || former.ends_with('\n') { "" } else { "\n" };
    let text = format!("{former}{newline}{lines}");

    let dir = folder(config);
    sweep(dir);
    let staged = stage(dir, &text).map_err(|err| main.io("staged", err))?;
    let read = MainConfig::read(staged.path(), &options.auth_file.path);
    let placement = read.map_err(ApplyError::MainConfig)?.placement();
    if placement != Placement::InForce {
        return Err(ApplyError::Rejected(placement.to_string()));
    }
    if let Some(judge) = main.judge().await {
        let said = judge.ask(staged.path()).await;
        said.map_err(|said| ApplyError::Rejected(reasons(&said, dir)))?;
    }
    main.back_up().map_err(|err| main.io("backed up", err))?;
    main.write(&text)?;
    Ok(options.auth_file.backup_dir.clone())
}
