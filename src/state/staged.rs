//! Files on their way to their names, and what is left of those that never got there.

use std::{
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use fs_err::{self as fs, os::unix::fs::OpenOptionsExt as _};
use rustix::{fs::OFlags, process::geteuid};
use tempfile::{Builder, NamedTempFile, TempDir};
use tracing::{debug, info};

/// What a file's name begins with until it gets its own.
const STAGED: &str = ".pb-nats-";
/// The same of a folder in which nats-server is asked about a file.
const SCRATCH: &str = "pb-nats-check-";
/// So many letters and digits come after that.
const RANDOM: usize = 6;
/// A million users take a fifth of this.
const LARGEST: u64 = 1 << 30;

/// A file in this folder that holds the text, and is gone unless it is given its name. Nobody else
/// can read it.
pub(crate) fn stage(dir: &Path, text: &str) -> io::Result<NamedTempFile> {
    loop {
        let mut staged = Builder::new().prefix(STAGED).rand_bytes(RANDOM).tempfile_in(dir)?;
        // Whoever sweeps may have been quicker.
        if holds(staged.as_file(), staged.path())? {
            staged.write_all(text.as_bytes())?;
            return Ok(staged);
        }
    }
}

/// A folder for files that only nats-server is to see, gone when dropped.
pub(crate) struct Scratch {
    dir: TempDir,
    /// Says that we live.
    _held: fs::File,
}

impl Scratch {
    pub(crate) fn new() -> io::Result<Scratch> {
        loop {
            let private = std::fs::Permissions::from_mode(0o700);
            let mut builder = Builder::new();
            let dir = builder.prefix(SCRATCH).rand_bytes(RANDOM).permissions(private).tempdir()?;
            let held = fs::File::open(dir.path())?;
            if holds(held.file(), dir.path())? {
                return Ok(Scratch { dir, _held: held });
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file that nobody else may read, in a folder of it if need be. Returns its path.
    pub(crate) fn put(&self, name: impl AsRef<Path>, text: &str) -> io::Result<PathBuf> {
        let path = self.path().join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = fs::OpenOptions::new();
        file.write(true).create_new(true).mode(0o600).open(&path)?.write_all(text.as_bytes())?;
        Ok(path)
    }
}

/// Whether it is ours from now on until it is closed, and still has this path.
fn holds(file: &std::fs::File, path: &Path) -> io::Result<bool> {
    let there = || {
        let (ours, found) = (file.metadata()?, fs::symlink_metadata(path)?);
        io::Result::Ok((ours.dev(), ours.ino()) == (found.dev(), found.ino()))
    };
    match file.try_lock() {
        Err(std::fs::TryLockError::WouldBlock) => Ok(false),
        // Where there are no locks, nothing is swept either.
        Ok(()) | Err(std::fs::TryLockError::Error(_)) => match there() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            there => there,
        },
    }
}

/// Removes what processes that were killed have left in this folder.
pub(crate) fn sweep(dir: &Path) {
    swept(dir, STAGED, |path| {
        let file = open(path, OFlags::empty())?;
        if file.metadata()?.is_file() && is_left(&file, path) {
            fs::remove_file(path)?;
            info!(path = %path.display(), "removed what a process left when it was killed");
        }
        Ok(())
    });
}

/// Removes what processes of this user that were killed have left where scratch folders are.
pub(crate) fn sweep_scratch() {
    swept(&std::env::temp_dir(), SCRATCH, |path| {
        let dir = open(path, OFlags::DIRECTORY)?;
        if dir.metadata()?.uid() == geteuid().as_raw() && is_left(&dir, path) {
            fs::remove_dir_all(path)?;
            info!(path = %path.display(), "removed what a process left when it was killed");
        }
        Ok(())
    });
}

fn swept(dir: &Path, prefix: &str, remove: impl Fn(&Path) -> io::Result<()>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let random = name.to_str().and_then(|it| it.strip_prefix(prefix));
        if random.is_some_and(|it| it.len() == RANDOM && it.bytes().all(is_random))
            && let Err(error) = remove(&entry.path())
        {
            debug!(%error, "what is left of another process stays");
        }
    }
}

fn is_random(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
}

/// Whether no living process holds it.
fn is_left(file: &fs::File, path: &Path) -> bool {
    file.file().try_lock().is_ok() && holds(file.file(), path).unwrap_or(false)
}

/// Opens what is to be a file of text, without waiting for anybody. `None`: there is none.
pub(crate) fn text_file(path: &Path) -> io::Result<Option<fs::File>> {
    let opened = fs::OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let found = file.metadata()?;
    if found.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder"));
    }
    if !found.is_file() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is not a file"));
    }
    if found.len() > LARGEST {
        let text = format!("it has {} bytes, more than any file of pb-nats", found.len());
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(Some(file))
}

fn open(path: &Path, more: OFlags) -> io::Result<fs::File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | more;
    fs::OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}
