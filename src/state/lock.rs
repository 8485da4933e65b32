//! Locks beside the auth file: one pass at a time, and one `run` for its life.

use std::{
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use fs_err::{self as fs, os::unix::fs::OpenOptionsExt as _};
use rustix::fs::OFlags;
use tokio::time;
use tracing::warn;

use super::{StateError, folder};

/// How often the lock of a `run` is looked at.
const WATCH: Duration = Duration::from_secs(1);

/// A lock on the auth file, gone when dropped.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    /// Given up before the file is: that is what others try first.
    mark: Option<Mark>,
    file: fs::File,
    /// What was at the path when it was last looked at.
    seen: Option<Id>,
}

/// Names a file, whatever it is called: its device and inode.
type Id = (u64, u64);

impl Lock {
    /// The lock, unless somebody else has it.
    pub(crate) fn take(path: PathBuf) -> Result<Lock, StateError> {
        let file = locked(&path)?;
        let mark = Mark::set(&path)?;
        Ok(Lock { seen: id(&path), path, file, mark })
    }

    /// Returns once another has it, as can be when somebody deleted its file, or the folder. May be
    /// dropped at any time.
    pub(crate) async fn lost(&mut self) -> StateError {
        loop {
            if let Err(error) = self.renew() {
                return error;
            }
            time::sleep(WATCH).await;
        }
    }

    /// Sees to it that the file that others find is the one that is locked. Fails if another has it.
    fn renew(&mut self) -> Result<(), StateError> {
        let now = id(&self.path);
        if now == self.seen {
            return Ok(());
        }
        self.seen = now;
        if now.is_some() && now == self.file.metadata().ok().as_ref().map(id_of) {
            return Ok(());
        }
        let path = self.path.display();
        match locked(&self.path) {
            Ok(file) => {
                if self.mark.as_ref().map(|it| it.folder) != id(folder(&self.path)) {
                    self.mark = Mark::set(&self.path)?;
                }
                (self.file, self.seen) = (file, id(&self.path));
                warn!(%path, "the lock file was deleted or replaced; it is locked again");
                Ok(())
            }
            Err(error @ StateError::Locked { .. }) => Err(error),
            Err(error) => {
                warn!(%path, %error, "the lock file was deleted or replaced");
                Ok(())
            }
        }
    }
}

/// Opens and locks the file that has this path, also when that is over.
fn locked(path: &Path) -> Result<fs::File, StateError> {
    let io = |source| StateError::Io { path: path.to_owned(), what: "locked", source };
    // What a link points to is not ours to write, and nothing else is to be waited for.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut write = fs::OpenOptions::new();
    write.read(true).write(true).create(true).truncate(false).mode(0o644).custom_flags(flags);
    let mut read = fs::OpenOptions::new();
    read.read(true).custom_flags(flags);
    loop {
        // Another user's lock file can be locked all the same.
        let file = write.open(path).or_else(|err| read.open(path).map_err(|_| err)).map_err(io)?;
        let opened = file.metadata().map_err(io)?;
        if !opened.is_file() {
            return Err(io(io::Error::other("it is not a file")));
        }
        match file.file().try_lock() {
            // Else it was deleted meanwhile, and another could lock the next one.
            Ok(()) if id(path) == Some(id_of(&opened)) => {
                // Only for the message that somebody else may get.
                let pid = format!("{}\n", std::process::id());
                let noted =
                    file.file().set_len(0).and_then(|()| file.file().write_all(pid.as_bytes()));
                drop(noted);
                return Ok(file);
            }
            Ok(()) => (),
            Err(std::fs::TryLockError::WouldBlock) => {
                let pid = fs::read_to_string(path).ok().and_then(|it| it.trim().parse().ok());
                return Err(StateError::Locked { lock: path.to_owned(), pid });
            }
            Err(std::fs::TryLockError::Error(err)) => return Err(io(err)),
        }
    }
}

/// Which file has this path, a link counting as itself.
fn id(path: &Path) -> Option<Id> {
    fs::symlink_metadata(path).ok().as_ref().map(id_of)
}

fn id_of(file: &std::fs::Metadata) -> Id {
    (file.dev(), file.ino())
}

/// The same lock once more, on the folder itself: whoever deletes the file does not let another in.
#[derive(Debug)]
struct Mark {
    folder: Id,
    _held: fs::File,
}

impl Mark {
    /// `None` where there are no such marks.
    #[cfg(target_os = "linux")]
    fn set(path: &Path) -> Result<Option<Mark>, StateError> {
        use nix::{
            fcntl::{FcntlArg, fcntl},
            libc,
        };

        let Ok(held) = fs::File::open(folder(path)) else { return Ok(None) };
        let Ok(metadata) = held.metadata() else { return Ok(None) };
        // Of the many places that a folder can be locked at, the one that has to do with this name.
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        let hash = ring::digest::digest(&ring::digest::SHA256, name);
        let start = hash.as_ref()[..6].iter().fold(0, |sum, it| sum << 8 | i64::from(*it));
        let small = |it| i16::try_from(it).expect("these numbers are small");
        let [read, write, none] = [libc::F_RDLCK, libc::F_WRLCK, libc::F_UNLCK].map(small);
        let lock = |kind| libc::flock {
            l_type: kind,
            l_whence: small(libc::SEEK_SET),
            l_start: start,
            l_len: 1,
            l_pid: 0,
        };
        // A folder cannot be locked for one alone, but one can see who else has locked it.
        let mut other = lock(write);
        if fcntl(held.file(), FcntlArg::F_OFD_GETLK(&mut other)).is_err() {
            return Ok(None);
        }
        if other.l_type != none {
            return Err(StateError::Locked { lock: path.to_owned(), pid: None });
        }
        let set = fcntl(held.file(), FcntlArg::F_OFD_SETLK(&lock(read)));
        Ok(set.is_ok().then(|| Mark { folder: id_of(&metadata), _held: held }))
    }

    #[cfg(not(target_os = "linux"))]
    fn set(_: &Path) -> Result<Option<Mark>, StateError> {
        Ok(None)
    }
}
