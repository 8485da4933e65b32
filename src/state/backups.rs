//! The files that were replaced, kept for the day when one of them was right.

use std::{
    io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use fs_err as fs;
use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

use super::{
    StateError,
    staged::{stage, text_file},
};
use crate::auth::{Desired, Found, parse};

/// How the time is written into a name, so that names sort by age.
const DATE: &str = "%Y%m%dT%H%M%S%.3fZ";

/// Where former files are kept, and how many.
#[derive(Debug)]
pub(crate) struct Backups {
    /// Whether files of ours are kept. Another's always is.
    pub(crate) ours: bool,
    pub(crate) dir: PathBuf,
    /// 0: all.
    pub(crate) most: usize,
}

/// A file that was replaced.
#[derive(Debug)]
pub struct Backup {
    /// Its name in the backup folder.
    pub name: String,
    /// When it was replaced.
    pub replaced: Timestamp,
    /// How many bytes it has.
    pub size: u64,
    /// What it holds.
    pub held: Held,
}

/// What a backup holds.
#[derive(Clone, Debug)]
pub enum Held {
    /// Rights that can be restored.
    Rights(Box<Desired>),
    /// Something that we do not restore.
    Other {
        /// What, in a few words.
        what: &'static str,
    },
}

impl Backups {
    /// Keeps what the file of this name, at this path, holds: byte for byte, and with its mode.
    pub(crate) fn keep(&self, name: &str, path: &Path) -> io::Result<()> {
        let Some(mut former) = text_file(path)? else { return Ok(()) };
        let mode = former.metadata()?.mode() & 0o777;
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o700)
            .create(&self.dir)
            .map_err(|err| io::Error::new(err.kind(), format!("{}: {err}", self.dir.display())))?;
        let mut staged = stage(&self.dir, "")?;
        io::copy(&mut former, &mut staged)?;
        staged.as_file().set_permissions(std::fs::Permissions::from_mode(mode))?;
        // So that it has its name only once it is whole, even after a power cut.
        staged.as_file().sync_all()?;
        let now = Timestamp::now().strftime(DATE);
        for n in 0..1000 {
            // The same width for all, so that they sort by age.
            match staged.persist_noclobber(self.dir.join(format!("{name}.{now}-{n:03}"))) {
                Ok(_) => {
                    fs::File::open(&self.dir)?.sync_all()?;
                    return self.prune(name);
                }
                Err(taken) if taken.error.kind() == io::ErrorKind::AlreadyExists => {
                    staged = taken.file;
                }
                Err(other) => return Err(other.error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Removes the oldest of our backups.
    fn prune(&self, name: &str) -> io::Result<()> {
        if self.most == 0 {
            return Ok(());
        }
        let ours = self.names(name)?;
        let surplus = ours.len().saturating_sub(self.most);
        ours[..surplus].iter().try_for_each(|(it, _)| fs::remove_file(self.dir.join(it)))
    }

    /// Our backups of the file of this name, the oldest first, and nothing else that may be in the
    /// folder: no folders, no links.
    fn names(&self, name: &str) -> io::Result<Vec<(String, Timestamp)>> {
        let mut ours = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let Ok(found) = entry.file_name().into_string() else { continue };
            let date = found.strip_prefix(name).and_then(|it| it.strip_prefix('.')).and_then(date);
            if let Some(date) = date
                && entry.file_type()?.is_file()
            {
                ours.push((found, date));
            }
        }
        ours.sort();
        Ok(ours)
    }

    /// All backups of the file of this name, the newest first.
    pub(crate) fn list(&self, name: &str) -> Result<Vec<Backup>, StateError> {
        let names = match self.names(name) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            names => names.map_err(|err| self.io(err))?,
        };
        let unreadable = Held::Other { what: "not readable" };
        let read = |(name, replaced): (String, _)| match self.read(&name) {
            Ok((size, held)) => Backup { name, replaced, size, held },
            Err(_) => Backup { name, replaced, size: 0, held: unreadable.clone() },
        };
        Ok(names.into_iter().rev().map(read).collect())
    }

    /// One of them. The name says nothing but which of those that are there is meant.
    pub(crate) fn find(&self, name: &str, wanted: &str) -> Result<Backup, StateError> {
        let missing = || StateError::NoBackup { name: wanted.into(), dir: self.dir.clone() };
        let names = match self.names(name) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Err(missing()),
            names => names.map_err(|err| self.io(err))?,
        };
        let (name, replaced) =
            names.into_iter().find(|(it, _)| it == wanted).ok_or_else(missing)?;
        let (size, held) = self.read(&name).map_err(|err| self.io(err))?;
        Ok(Backup { name, replaced, size, held })
    }

    /// How large it is, and what it holds.
    fn read(&self, name: &str) -> io::Result<(u64, Held)> {
        let bytes = fs::read(self.dir.join(name))?;
        let other = |what| Held::Other { what };
        let held = match parse(&String::from_utf8_lossy(&bytes)) {
            Found::Ours(desired) => Held::Rights(desired),
            Found::Torn(_) => other("torn or edited"),
            Found::Newer(_) => other("written by a newer pb-nats"),
            Found::Foreign(_) => other("not written by pb-nats"),
            Found::Empty => other("empty"),
        };
        Ok((bytes.len() as u64, held))
    }

    fn io(&self, source: io::Error) -> StateError {
        StateError::Io { path: self.dir.clone(), what: "read", source }
    }
}

/// The time in a name, such as `20261123T123456.789Z-000`.
fn date(text: &str) -> Option<Timestamp> {
    let (time, number) = text.rsplit_once('-')?;
    let numbered = number.len() == 3 && number.bytes().all(|it| it.is_ascii_digit());
    let exact = time.len() == "20261123T123456.789Z".len();
    let time = DateTime::strptime(DATE, time).ok().filter(|_| numbered && exact)?;
    TimeZone::UTC.to_timestamp(time).ok()
}
