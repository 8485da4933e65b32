//! What `pb-nats init` and `pb-nats dev` write beside the auth file, each time with consent: files
//! that are not there yet.

use std::{
    env, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
};

use fs_err::{self as fs, os::unix::fs::OpenOptionsExt as _};
use tempfile::TempDir;

use super::{Lock, StateError, StateFile, beside, folder, stage, sweep};
use crate::options::{Options, with_settings};

/// Whether a file that is there already is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It stays, and that is an error.
    Stays,
    /// It is replaced.
    Replaced,
}

/// Writes a whole file in one step, with this mode; its folder is made if need be.
pub fn place(path: &Path, text: &str, mode: u32, existing: Existing) -> Result<(), StateError> {
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
    place().map_err(|source: io::Error| StateError::Io {
        path: path.to_owned(),
        what: "written",
        source,
    })
}

/// Makes a folder, if need be, that nobody else may look into.
pub fn private_folder(path: &Path) -> Result<(), StateError> {
    let made = fs::create_dir_all(folder(path)).and_then(|()| {
        match std::fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if !path.is_dir() => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    });
    made.map_err(|source| StateError::Io { path: path.to_owned(), what: "made", source })
}

/// A folder that nobody else may look into, and that is gone with what is in it when dropped.
pub fn temporary_folder() -> Result<TempDir, StateError> {
    let made = tempfile::Builder::new().prefix("pb-nats-").tempdir();
    made.map_err(|source| StateError::Io { path: env::temp_dir(), what: "written", source })
}

/// Keeps whoever calls this for the same folder away from it, for as long as the lock lives.
pub fn lock_folder(folder: &Path) -> Result<Lock, StateError> {
    Lock::take(beside(&folder.join("folder"), "lock"))
}

/// An empty file for what a program says, which nobody else may read.
pub fn log_file(path: &Path) -> Result<std::fs::File, StateError> {
    let mut options = fs::OpenOptions::new();
    let opened = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    let opened = opened.map(|it| it.into_parts().0);
    opened.map_err(|source| StateError::Io { path: path.to_owned(), what: "written", source })
}

/// Adds values to the settings file, where there are none. What it says already stays.
pub fn add_to_settings(path: &Path, values: &[(&str, String)]) -> Result<(), StateError> {
    let mut file = StateFile::at(path, &Options::default());
    sweep(folder(path));
    let former = file.text()?;
    let text = with_settings(&former, values).ok_or_else(|| {
        let source = io::Error::other("what is there cannot be added to");
        file.io("completed", source)
    })?;
    file.write(&text).map(drop)
}
