//! What should be in force, kept in one file: the durable memory of every engine.
//!
//! It is read, replaced in one step, backed up and locked here, and nowhere else is a file written.

mod backups;
mod lock;
mod setup;
mod staged;

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fmt::Write as _,
    io::{self, Read as _, Seek as _, Write as _},
    mem,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use fs_err as fs;
use ring::digest;
use tempfile::NamedTempFile;
use tokio::{sync::oneshot, time};
use tracing::{debug, warn};

pub(crate) use self::staged::{Scratch, stage, sweep};
use self::{
    backups::Backups,
    staged::{sweep_scratch, text_file},
};
pub use self::{
    backups::{Backup, Held},
    lock::Lock,
    setup::{
        Existing, add_to_settings, lock_folder, log_file, place, private_folder, temporary_folder,
    },
};
use crate::{
    auth::{Desired, Found, conf::ConfError, dated, parse, reads_back, render, stamp},
    options::Options,
};

/// How often the file is looked at between passes.
const WATCH: Duration = Duration::from_secs(1);

/// How long a pass of another process may take.
const LONGEST_PASS: Duration = Duration::from_mins(2);

/// The file that holds what should be in force.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    mode: u32,
    group: String,
    backups: Backups,
    /// What the file parsed last, so that the same file need not be read through twice.
    parsed: Option<Parsed>,
    /// The hash of the file that was last kept as good, or could not be.
    kept: String,
    /// How the file was when it was last read, replaced or found to be disturbed.
    left: Option<FileStamp>,
    /// Folders in which a process that was killed may have left something.
    unswept: BTreeSet<PathBuf>,
}

/// What shows that a file was touched: its inode, when it was changed, its length.
type FileStamp = (u64, SystemTime, u64);

/// What a file with this hash says, and its stamp.
#[derive(Clone, Debug)]
pub(crate) struct Parsed {
    pub(crate) hash: String,
    pub(crate) stamp: Option<String>,
    pub(crate) desired: Arc<Desired>,
}

/// What the file holds now.
#[derive(Debug, Default)]
pub struct Current {
    /// What it says. `None`: nothing that counts, since it is missing, empty or torn.
    pub desired: Option<Arc<Desired>>,
    /// What servers show once they run it, if it has such a thing.
    pub stamp: Option<String>,
    /// Its text, if it says nothing that counts. Else it is long, and hardly ever needed.
    pub(crate) rest: String,
    /// Names the text.
    pub(crate) hash: String,
    /// Whether somebody else wrote it.
    pub(crate) foreign: bool,
    /// Whether it is as the last look left it.
    pub known: bool,
    /// When it was last replaced. Read at once with what it holds: it may be gone a moment later.
    pub(crate) written: Option<SystemTime>,
}

/// Whether a file that we did not write may be taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Adopt {
    /// It is left alone.
    #[default]
    No,
    /// It is backed up and replaced.
    Yes,
}

/// Whether a file of ours may be replaced without a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It may, if the settings want no backups, or if none can be made.
    IfWanted,
    /// It is backed up first, or stays.
    Always,
}

/// The file could not be replaced. It still holds what it held.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The file is somebody else's.
    #[error("`{path}` was not written by pb-nats{}", by.map(|it| format!(", but by {it}")).unwrap_or_default())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Who wrote it, if that is known.
        by: Option<&'static str>,
    },
    /// The file was written by a later version of pb-nats.
    #[error("`{path}` has format {format}, which is newer than this pb-nats knows")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
    /// What we rendered does not read back the same. It was not written.
    #[error("the rendered file does not read back the same: {0}")]
    NotReadBack(ConfError),
    /// There is no such backup of ours.
    #[error("there is no backup `{}` in `{dir}`", name.escape_debug())]
    NoBackup {
        /// What was asked for.
        name: String,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// The backup holds nothing that can be restored.
    #[error("the backup `{name}` is {what}")]
    NotRestorable {
        /// The backup.
        name: String,
        /// What it is instead.
        what: &'static str,
    },
    /// Somebody deleted the file, or changed it, while servers were to load it.
    #[error("`{path}` was deleted or changed by somebody else during the pass")]
    Meddled {
        /// The file.
        path: PathBuf,
    },
    /// Another pass holds the lock.
    #[error("another pb-nats{} holds `{lock}`", pid.map(|it| format!(" (pid {it})")).unwrap_or_default())]
    Locked {
        /// The lock file.
        lock: PathBuf,
        /// The process that holds it, if it parsed so.
        pid: Option<u32>,
    },
    /// The file system parsed no.
    #[error("`{path}` could not be {what}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried: read, replaced …
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl StateFile {
    /// The file that the settings name. Nothing is touched yet.
    pub fn new(options: &Options) -> StateFile {
        let file = &options.auth_file;
        StateFile {
            path: file.path.clone(),
            mode: file.mode,
            group: file.group.clone(),
            backups: Backups {
                ours: file.create_backups,
                dir: file.backup_dir.clone(),
                most: file.max_backups,
            },
            parsed: None,
            kept: String::new(),
            left: None,
            unswept: [Some(&file.path), Some(&options.folder.join("pb-nats.toml"))]
                .into_iter()
                .chain([options.nats.config_file.as_ref()])
                .flatten()
                .map(|it| folder(it).to_owned())
                .chain([folder(&in_place(&file.path)).to_owned(), file.backup_dir.clone()])
                .collect(),
        }
    }

    /// Another file, written and backed up as carefully.
    pub(crate) fn at(path: &Path, options: &Options) -> StateFile {
        StateFile { path: path.to_owned(), ..StateFile::new(options) }
    }

    /// Removes what a process that was killed has left of files that it was about to write. Those of
    /// living processes stay.
    pub fn sweep(&mut self) {
        let folders = mem::take(&mut self.unswept);
        if !folders.is_empty() {
            sweep_scratch();
        }
        for folder in folders {
            sweep(&folder);
        }
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file was last seen to say, and how many bytes it takes for that.
    pub fn holds(&self) -> Option<(Arc<Desired>, u64)> {
        let Parsed { desired, .. } = self.parsed.as_ref()?;
        Some((Arc::clone(desired), self.left.map_or(0, |(.., length)| length)))
    }

    /// Keeps every other `run` away from the file, for as long as the lock lives.
    pub fn lock_for_life(&self) -> Result<Lock, StateError> {
        self.try_lock("run.lock")
    }

    /// Keeps every other pass away from the file, waiting for one that is under way.
    pub async fn lock_for_a_pass(&self) -> Result<Lock, StateError> {
        let wait = async {
            loop {
                match self.try_lock("lock") {
                    Err(StateError::Locked { .. }) => time::sleep(Duration::from_millis(20)).await,
                    other => return other,
                }
            }
        };
        time::timeout(LONGEST_PASS, wait).await.unwrap_or_else(|_| self.try_lock("lock"))
    }

    /// The process that keeps the file in step for its life, if there is one: its pid, if it is
    /// known.
    pub fn keeper(&self) -> Option<Option<u32>> {
        match self.lock_for_life() {
            Err(StateError::Locked { pid, .. }) => Some(pid),
            Ok(_) | Err(_) => None,
        }
    }

    /// The files that this one replaced, as far as they were kept, the newest first.
    pub fn backups(&self) -> Result<Vec<Backup>, StateError> {
        self.backups.list(&self.name())
    }

    /// What a backup holds. `name` is its name in the backup folder, and nothing else.
    pub fn backup(&self, name: &str) -> Result<Box<Desired>, StateError> {
        let Backup { name, held, .. } = self.backups.find(&self.name(), name)?;
        match held {
            Held::Rights(desired) => Ok(desired),
            Held::Other { what } => Err(StateError::NotRestorable { name, what }),
        }
    }

    /// What the file holds now. A file that we did not write is an error, unless it is adopted.
    pub fn read(&mut self, adopt: Adopt) -> Result<Current, StateError> {
        let file = self.opened()?;
        let now = match (&file, &self.parsed) {
            (Some(file), Some(_)) => hash_of(file).ok(),
            (None, _) | (_, None) => None,
        };
        self.read_as(file, now, adopt)
    }

    /// The same, without keeping anybody waiting who has something else to do meanwhile.
    pub async fn read_on_thread(&mut self, adopt: Adopt) -> Result<Current, StateError> {
        let file = self.opened()?;
        let again = file.as_ref().filter(|_| self.parsed.is_some());
        let now = match again.and_then(|it| it.file().try_clone().ok()).map(Arc::new) {
            Some(file) => on_thread(move || hash_of(&*file)).await.ok(),
            None => None,
        };
        self.read_as(file, now, adopt)
    }

    /// The file as it is now, which need not be there. What happens to it from then on is news.
    fn opened(&mut self) -> Result<Option<fs::File>, StateError> {
        self.left = file_stamp(&self.path);
        let file = text_file(&self.path).map_err(|err| self.io("read", err))?;
        self.left = file.as_ref().and_then(|it| stamp_of(&it.metadata().ok()?));
        Ok(file)
    }

    /// What it says, if it says anything that counts, whoever wrote it.
    pub fn in_force(&mut self) -> Arc<Desired> {
        self.read(Adopt::Yes).ok().and_then(|it| it.desired).unwrap_or_default()
    }

    /// What it holds, of which this is the hash, as far as there is one to compare. It is all read from
    /// one file, whatever becomes of its name meanwhile.
    fn read_as(
        &mut self,
        file: Option<fs::File>,
        now: Option<String>,
        adopt: Adopt,
    ) -> Result<Current, StateError> {
        let written = file.as_ref().and_then(|it| it.metadata().ok()).map(|it| replaced(&it));
        if let Some(parsed) = &self.parsed
            && now.is_some_and(|it| it == parsed.hash)
        {
            return Ok(Current { written, ..Current::ours(parsed.clone(), true) });
        }
        let text = self.text_of(file)?;
        let path = || self.path.clone();
        let mut foreign = false;
        let desired = match parse(&text) {
            Found::Ours(desired) => Some(Arc::from(desired)),
            Found::Empty => None,
            Found::Torn(err) => {
                warn!(path = %self.path.display(), %err, "the auth file is torn or was edited");
                None
            }
            Found::Newer(_) | Found::Foreign(_) if adopt == Adopt::Yes => {
                foreign = true;
                None
            }
            Found::Newer(format) => return Err(StateError::Newer { path: path(), format }),
            Found::Foreign(by) => return Err(StateError::Foreign { path: path(), by }),
        };
        let hash = hash(&text);
        self.parsed =
            desired.map(|desired| Parsed { hash: hash.clone(), stamp: stamp(&text), desired });
        Ok(match &self.parsed {
            Some(parsed) => Current { written, ..Current::ours(parsed.clone(), false) },
            None => Current { rest: text, hash, foreign, written, ..Current::default() },
        })
    }

    /// Returns, once for each time, when the file is not as it was left. May be dropped at any time.
    pub async fn disturbed(&mut self) {
        // There are mounts that tell nobody about changes, and to look costs next to nothing.
        loop {
            let now = file_stamp(&self.path);
            if now != self.left {
                // A pass that cannot even look at it is not to be made again and again.
                self.left = now;
                return;
            }
            time::sleep(WATCH).await;
        }
    }

    /// Whether others did something to the file since it was read or replaced.
    pub fn is_disturbed(&self) -> bool {
        file_stamp(&self.path) != self.left
    }

    /// An error if they did: what servers are waited for may then never be.
    pub(crate) fn undisturbed(&self) -> Result<(), StateError> {
        if self.is_disturbed() {
            return Err(StateError::Meddled { path: self.path.clone() });
        }
        Ok(())
    }

    /// Its text now. Empty: there is no file.
    pub(crate) fn text(&self) -> Result<String, StateError> {
        self.text_of(text_file(&self.path).map_err(|err| self.io("read", err))?)
    }

    fn text_of(&self, file: Option<fs::File>) -> Result<String, StateError> {
        let Some(file) = file else { return Ok(String::new()) };
        let bytes = bytes_of(&file).map_err(|err| self.io("read", err))?;
        // What is not UTF-8 is not ours, or torn, and that shows all the same.
        Ok(String::from_utf8(bytes)
            .unwrap_or_else(|it| String::from_utf8_lossy(it.as_bytes()).into_owned()))
    }

    /// Makes the file, which holds `former`, hold `text`, or leaves it alone; it is backed up first, if
    /// that is wanted. Returns when it was replaced.
    ///
    /// `roundtrip` says whether the text reads back the same. Until then nothing is renamed.
    pub(crate) async fn replace(
        &mut self,
        text: &str,
        parsed: Parsed,
        former: &Current,
        keep: Keep,
        roundtrip: impl Future<Output = Result<(), ConfError>>,
    ) -> Result<SystemTime, StateError> {
        let there = former.desired.is_some() || !former.rest.trim().is_empty();
        if there && (former.foreign || keep == Keep::Always) {
            self.back_up().map_err(|err| self.io("backed up", err))?;
        } else if there && self.backups.ours {
            // That it cannot be kept is no reason to let a removed user stay.
            if let Err(err) = self.back_up() {
                warn!(%err, "no backup of the former auth file");
            }
        }
        let written = self.write_verified(text, roundtrip).await?;
        self.parsed = Some(parsed);
        Ok(written)
    }

    /// What the file with this hash says, if it is the one that was read or replaced last.
    pub(crate) fn says(&self, hash: &str) -> Option<Arc<Desired>> {
        let parsed = self.parsed.as_ref().filter(|it| it.hash == hash)?;
        Some(Arc::clone(&parsed.desired))
    }

    /// A note beside the file. Empty: there is none.
    pub(crate) fn noted(&self, extension: &str) -> String {
        text_at(&self.beside(extension)).unwrap_or_default()
    }

    /// Notes something beside the file, in one step. Nothing to note: there is to be no note.
    pub(crate) fn note(&self, extension: &str, text: &str) -> io::Result<()> {
        let path = self.beside(extension);
        if text.is_empty() {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                Ok(()) | Err(_) => Ok(()),
            };
        }
        stage(folder(&path), text)?.persist(&path).map(drop).map_err(|it| it.error)
    }

    /// Keeps the file as the last good one: nats-server starts with it.
    ///
    /// It is gone back to if a later file turns out to be refused, even by another process.
    pub fn keep_as_good(&mut self, expected: &str) {
        if self.kept == expected {
            return;
        }
        let path = self.beside("good");
        let keep = || {
            if let Ok(Some(kept)) = text_file(&path)
                && hash_of(&kept).is_ok_and(|it| it == expected)
            {
                return Ok(true);
            }
            // Somebody may have deleted or edited it since, and that is for the next pass.
            let Some(file) = text_file(&self.path)? else { return Ok(false) };
            let mut staged = stage(folder(&path), "")?;
            if read_through(file.file(), |piece| staged.write_all(piece))? != expected {
                return Ok(false);
            }
            self.keep_mode_and_owner(file.metadata().ok().as_ref(), &staged)?;
            staged.as_file().sync_all()?;
            staged.persist(&path).map(|_| true).map_err(|it| it.error)
        };
        match keep() {
            Ok(true) => (),
            Ok(false) => return,
            Err(err) => {
                warn!(path = %path.display(), %err, "the file could not be kept as the last good one");
            }
        }
        expected.clone_into(&mut self.kept);
    }

    /// The last good file, if there is one.
    pub(crate) fn good(&self) -> Option<Current> {
        let text = self.good_text()?;
        match parse(&text) {
            Found::Ours(desired) => {
                let parsed =
                    Parsed { hash: hash(&text), stamp: stamp(&text), desired: Arc::from(desired) };
                Some(Current::ours(parsed, false))
            }
            Found::Torn(_) | Found::Empty | Found::Foreign(_) | Found::Newer(_) => None,
        }
    }

    pub(crate) fn good_text(&self) -> Option<String> {
        text_at(&self.beside("good"))
    }

    /// The path of a file of ours beside the auth file; hidden, since people list folders.
    pub(crate) fn beside(&self, extension: &str) -> PathBuf {
        beside(&self.path, extension)
    }

    fn name(&self) -> String {
        name(&self.path)
    }

    /// As [`StateFile::write`], but not unless the text is sound.
    pub(crate) async fn write_verified(
        &mut self,
        text: &str,
        roundtrip: impl Future<Output = Result<(), ConfError>>,
    ) -> Result<SystemTime, StateError> {
        let staged = self.stage(text);
        roundtrip.await.map_err(StateError::NotReadBack)?;
        self.put_in_place(text, staged)
    }

    /// Replaces the file in one step, so that a server reading it sees the old or the new.
    pub(crate) fn write(&mut self, text: &str) -> Result<SystemTime, StateError> {
        let staged = self.stage(text);
        self.put_in_place(text, staged)
    }

    /// Writes the text beside the file, where it survives a power cut.
    fn stage(&self, text: &str) -> io::Result<Staged> {
        let path = in_place(&self.path);
        let file = stage(folder(&path), text)?;
        let kept = self.keep_mode_and_owner(fs::metadata(&path).ok().as_ref(), &file)?;
        file.as_file().sync_all()?;
        Ok(Staged { path, file, kept })
    }

    /// Returns when it was replaced.
    fn put_in_place(
        &mut self,
        text: &str,
        staged: io::Result<Staged>,
    ) -> Result<SystemTime, StateError> {
        let written = staged.and_then(|it| replace(&it.path, it.file, it.kept, text));
        // Even if it could not be: half of it may be there.
        self.left = match &written {
            Ok(file) => stamp_of(file),
            Err(_) => file_stamp(&self.path),
        };
        written.map(|it| replaced(&it)).map_err(|err| self.io("replaced", err))
    }

    /// `false` if the file's owner cannot be kept by a new file.
    fn keep_mode_and_owner(
        &self,
        existing: Option<&std::fs::Metadata>,
        staged: &NamedTempFile,
    ) -> io::Result<bool> {
        let set_mode =
            |mode| staged.as_file().set_permissions(std::fs::Permissions::from_mode(mode));
        let Some(existing) = existing else {
            if let Some(group) = self.group_id()? {
                chown(staged.path(), None, Some(group))?;
            }
            set_mode(self.mode)?;
            return Ok(true);
        };
        let new = staged.as_file().metadata()?;
        let same = (existing.uid(), existing.gid()) == (new.uid(), new.gid());
        if !same && chown(staged.path(), Some(existing.uid()), Some(existing.gid())).is_err() {
            return Ok(false);
        }
        // After the owner, as a change of owner takes bits away.
        set_mode(existing.mode() & 0o777)?;
        Ok(true)
    }

    fn group_id(&self) -> io::Result<Option<u32>> {
        if self.group.is_empty() {
            return Ok(None);
        }
        if let Ok(id) = self.group.parse() {
            return Ok(Some(id));
        }
        match nix::unistd::Group::from_name(&self.group)? {
            Some(group) => Ok(Some(group.gid.as_raw())),
            None => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("there is no group `{}` (auth_file.group)", self.group),
            )),
        }
    }

    pub(crate) fn back_up(&self) -> io::Result<()> {
        self.backups.keep(&self.name(), &self.path)
    }

    fn try_lock(&self, extension: &str) -> Result<Lock, StateError> {
        // The file may have several names; a lock is for all of them.
        Lock::take(beside(&in_place(&self.path), extension))
    }

    pub(crate) fn io(&self, what: &'static str, source: io::Error) -> StateError {
        StateError::Io { path: self.path.clone(), what, source }
    }
}

impl Current {
    fn ours(Parsed { hash, stamp, desired }: Parsed, known: bool) -> Current {
        let desired = Some(desired);
        Current { desired, stamp, hash, known, ..Current::default() }
    }

    /// Its text, or one that says the same.
    pub(crate) fn text(&self) -> String {
        match &self.desired {
            Some(desired) => ready(desired, self.stamp.is_some()).0,
            None => self.rest.clone(),
        }
    }
}

impl StateError {
    /// Whether it can come of what others do to the file meanwhile.
    pub(crate) fn may_be_meddling(&self) -> bool {
        match self {
            StateError::Meddled { .. } | StateError::Io { .. } => true,
            StateError::Foreign { .. }
            | StateError::Newer { .. }
            | StateError::NotReadBack(_)
            | StateError::NoBackup { .. }
            | StateError::NotRestorable { .. }
            | StateError::Locked { .. } => false,
        }
    }

    /// What one can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            StateError::Foreign { by: Some(_), .. } => {
                "two programs that write one file undo each other: stop the other one, then \
                 `pb-nats once --adopt`; or set another `auth_file.path`"
            }
            StateError::Foreign { by: None, .. } => {
                "`pb-nats once --adopt` backs it up and takes it over; or set another `auth_file.path`"
            }
            StateError::Newer { .. } => {
                "update pb-nats, or let this version take the file over with `pb-nats once --adopt`"
            }
            StateError::NotReadBack(_) => "this is a mistake in pb-nats; please report it",
            StateError::NoBackup { .. } => "`pb-nats backups list` lists those there are",
            StateError::NotRestorable { .. } => {
                "the file stays as it is; what the backup holds can be put in place by hand"
            }
            StateError::Meddled { .. } => {
                "find out who else writes it, or cleans up there: pb-nats puts it right each time"
            }
            StateError::Locked { .. } => {
                "one `pb-nats run` for each auth file; `pb-nats once` works beside it"
            }
            StateError::Io { source, .. } if source.kind() == io::ErrorKind::InvalidInput => {
                "`auth_file.group` is a group on this machine, by name or number"
            }
            StateError::Io { source, .. }
                if matches!(
                    source.kind(),
                    io::ErrorKind::IsADirectory | io::ErrorKind::FileTooLarge
                ) =>
            {
                "move away what is in its place, and pb-nats makes the file"
            }
            StateError::Io { what: "locked", source, .. }
                if source.kind() != io::ErrorKind::NotFound =>
            {
                "pb-nats makes its lock files itself; delete what is in the place of this one"
            }
            StateError::Io { .. } => {
                "pb-nats needs to write to the file's folder, which must exist and have room"
            }
        })
    }
}

/// A text that waits beside a file to replace it.
struct Staged {
    path: PathBuf,
    file: NamedTempFile,
    /// Whether it has the mode and owner that the file is to have.
    kept: bool,
}

/// Finds out whether a text reads back as what it was made of, beside whatever else there is to do:
/// with many users it takes as long.
pub(crate) fn verify_roundtrip(
    text: &Arc<String>,
    desired: &Arc<Desired>,
) -> impl Future<Output = Result<(), ConfError>> + use<> {
    let (text, desired) = (Arc::clone(text), Arc::clone(desired));
    on_thread(move || reads_back(&text, &desired))
}

/// Does this in a thread of its own, from now on; or, if there can be none, when it is waited for. The
/// runtime keeps its threads, and each of them the memory that it once had.
pub(crate) fn on_thread<T, W>(work: W) -> impl Future<Output = T>
where
    T: Send + 'static,
    W: FnOnce() -> T + Clone + Send + 'static,
{
    let (done, result) = oneshot::channel();
    let there = work.clone();
    // Nobody may wait for it any more.
    let _ = thread::Builder::new().spawn(|| drop(done.send(there())));
    async { result.await.unwrap_or_else(|_| work()) }
}

/// The text that says this, and its stamp, if it is to have one.
pub(crate) fn ready(desired: &Desired, stamped: bool) -> (String, Option<String>) {
    let begun = Instant::now();
    let text = render(desired);
    debug!(took = ?begun.elapsed(), "rendered");
    let stamp = stamped.then(|| hash(&text));
    let now = format!("{:.0}", jiff::Timestamp::now());
    (dated(text, &now, stamp.as_deref()), stamp)
}

/// Names the text, so that the same text is known again.
pub(crate) fn hash(text: &str) -> String {
    hex(&digest::digest(&digest::SHA256, text.as_bytes()))
}

/// The hash of a file's text.
fn hash_of(file: impl io::Read + io::Seek) -> io::Result<String> {
    read_through(file, |_| Ok(()))
}

/// Calls `each` for one piece of a file after the other, as the whole may be large. Returns the hash of
/// its text.
fn read_through(
    mut file: impl io::Read + io::Seek,
    mut each: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<String> {
    file.rewind()?;
    let mut context = digest::Context::new(&digest::SHA256);
    let mut piece = vec![0; 1 << 16];
    loop {
        let length = file.read(&mut piece)?;
        if length == 0 {
            return Ok(hex(&context.finish()));
        }
        context.update(&piece[..length]);
        each(&piece[..length])?;
    }
}

fn hex(digest: &digest::Digest) -> String {
    let mut hash = String::new();
    for byte in &digest.as_ref()[..16] {
        write!(hash, "{byte:02x}").expect("a String takes everything");
    }
    hash
}

/// All that a file holds.
fn bytes_of(mut file: &fs::File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The text of a file of ours, if there is one.
fn text_at(path: &Path) -> Option<String> {
    String::from_utf8(bytes_of(&text_file(path).ok()??).ok()?).ok()
}

/// Gives the staged file, which holds `text`, its name; if that is not to be, writes the text in place.
fn replace(
    path: &Path,
    staged: NamedTempFile,
    rename: bool,
    text: &str,
) -> io::Result<std::fs::Metadata> {
    let in_place = || io::Error::from(io::ErrorKind::ResourceBusy);
    let renamed =
        if rename { staged.persist(path).map_err(|it| it.error) } else { Err(in_place()) };
    let file = match renamed {
        Ok(file) => file,
        // A bind mount cannot be renamed onto.
        Err(err)
            if matches!(
                err.kind(),
                io::ErrorKind::ResourceBusy | io::ErrorKind::CrossesDevices
            ) =>
        {
            warn!(path = %path.display(), "written in place: it cannot be renamed onto");
            let mut file = fs::OpenOptions::new().write(true).open(path)?;
            file.write_all(text.as_bytes())?;
            file.file().set_len(text.len() as u64)?;
            file.sync_all()?;
            file.into_parts().0
        }
        Err(err) => return Err(err),
    };
    // The rename itself must survive a power cut.
    fs::File::open(folder(path))?.sync_all()?;
    file.metadata()
}

/// Where the file is that this path leads to: a link stays a link.
fn in_place(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// The path of a file of ours beside this one.
fn beside(path: &Path, extension: &str) -> PathBuf {
    path.with_file_name(format!(".{}.{extension}", name(path)))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or(OsStr::new("auth.conf")).to_string_lossy().into_owned()
}

/// The folder that a file is in.
pub(crate) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => Path::new("/"),
    }
}

/// When a file was last replaced or touched. Its contents were written before it got its name, which
/// only the inode's own time tells.
fn replaced(it: &std::fs::Metadata) -> SystemTime {
    let [seconds, nanoseconds] = [it.ctime(), it.ctime_nsec()].map(|it| it.max(0).unsigned_abs());
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds)
}

/// `None`: there is no such file.
fn file_stamp(path: &Path) -> Option<FileStamp> {
    stamp_of(&fs::metadata(path).ok()?)
}

fn stamp_of(file: &std::fs::Metadata) -> Option<FileStamp> {
    Some((file.ino(), file.modified().ok()?, file.len()))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    /// A file for a test to find.
    pub(crate) fn put(path: &Path, text: &str) {
        use std::io::Write as _;
        fs_err::File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
    }
}
