//! The one file that is ours, and the only code that writes it.

mod backups;
mod lock;
mod main_config;
mod setup;
mod staged;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fmt::Write as _,
    future,
    io::{self, Read as _, Seek as _, Write as _},
    iter, mem,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use fs_err::{self as fs, os::unix::fs::OpenOptionsExt as _};
use ring::digest;
use tempfile::NamedTempFile;
use tokio::{
    process::Command,
    sync::{OnceCell, oneshot},
    time,
};
use tracing::{debug, warn};

use backups::Backups;
pub use backups::{Backup, Held};
pub use lock::Lock;
pub use main_config::{MainConfig, NoAuthUser, NotUnderstood, Place, Placement, Unresolved};
pub use setup::{
    Existing, add_to_main_config, judge, lock_folder, log_file, place, private_folder,
    temporary_folder,
};
use staged::{Scratch, stage, sweep, sweep_scratch, text_file};

use crate::{
    auth::{
        ConnectionType, Desired, Found, User, conf::ConfError, dated, parse, reads_back, render,
        stamp,
    },
    nats::LeafNode,
    options::{Options, keep_settings_from},
};

/// How often the file is looked at between passes.
const WATCH: Duration = Duration::from_secs(1);
/// How long nats-server may think about a config; half a million users take it 13 s.
const CHECK_DEADLINE: Duration = Duration::from_mins(2);

/// The file that nats-server includes.
#[derive(Debug)]
pub struct AuthFile {
    path: PathBuf,
    mode: u32,
    group: String,
    backups: Backups,
    main_config: Option<PathBuf>,
    server_binary: PathBuf,
    /// What the file said last, so that the same file need not be read through twice.
    said: Option<Said>,
    /// The main config and nats-server that the last whole check was made with.
    checked_with: Option<(MainConfig, String)>,
    asked: Option<Asked>,
    judge: Option<Judge>,
    /// The hash of the file that was last kept as good, or could not be.
    kept: String,
    /// How the file was when it was last read, replaced or found to be disturbed.
    left: Option<Shape>,
    /// Where a process that was killed may have left something, until that was looked for.
    unswept: BTreeSet<PathBuf>,
}

/// What shows that a file was touched: its inode, when it was changed, its length.
type Shape = (u64, SystemTime, u64);

/// What a file with this hash says, and its stamp.
#[derive(Clone, Debug)]
struct Said {
    hash: String,
    stamp: Option<String>,
    desired: Arc<Desired>,
}

/// What the file holds now.
#[derive(Debug, Default)]
pub struct Current {
    /// What it says. `None`: nothing that counts, since it is missing, empty or torn.
    pub desired: Option<Arc<Desired>>,
    /// What servers show once they run it, if it has such a thing.
    pub stamp: Option<String>,
    /// Its text, if it says nothing that counts. Else it is long, and hardly ever needed.
    rest: String,
    /// Names the text.
    hash: String,
    /// Whether somebody else wrote it.
    foreign: bool,
    /// Whether it is as the last look left it.
    pub known: bool,
    /// When it was last replaced. Read at once with what it holds: it may be gone a moment later.
    written: Option<SystemTime>,
}

/// The file as it is now on disk, and how a server shows that it runs it.
#[derive(Debug)]
pub struct Applied {
    /// Whether this pass replaced the file.
    pub changed: bool,
    /// When the file was last replaced.
    pub written: SystemTime,
    /// The value of `pb_nats` in the file's `server_metadata`, if the file has one.
    pub stamp: Option<String>,
    /// When the main config, or what it includes, was last changed, if it is known.
    pub main_changed: Option<SystemTime>,
    /// What servers that were proven to run this very file said of their config.
    pub proven: BTreeSet<String>,
    /// Who lost something, and may have leaf nodes connected as before.
    pub losing: BTreeSet<String>,
    /// Leaf nodes that were connected with more rights than their users have.
    pub leaf_nodes: BTreeSet<LeafNode>,
    /// Names what it holds.
    pub hash: String,
    desired: Option<Arc<Desired>>,
    judge: Option<Judge>,
    main_config: Option<PathBuf>,
    main: Option<MainConfig>,
    said: Arc<OnceCell<Verdict>>,
}

/// The digest of a config, or why nats-server refuses it.
type Verdict = Result<Option<Digest>, String>;

/// What nats-server was asked about, so that it need not think about the same again.
#[derive(Debug)]
struct Asked {
    hash: String,
    with: Option<(MainConfig, Judge)>,
    said: Arc<OnceCell<Verdict>>,
}

/// nats-server's own fingerprint of a whole config, includes resolved.
///
/// `nats-server -t` prints the digest of a config on disk and a server tells the digest of the
/// config it runs. Only digests that the same version made can be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// The version of the nats-server that made it, such as `2.15.1`.
    pub version: String,
    /// `sha256:…`
    pub value: String,
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
#[derive(Clone, Copy, PartialEq)]
enum Keep {
    IfWanted,
    Always,
}

/// The file could not be replaced. It still holds what it held.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
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
    /// nats-server would not accept the new contents; it accepts the former.
    #[error("nats-server rejects the new file: {0}")]
    Rejected(String),
    /// The main config could not be read.
    #[error("the main config could not be read")]
    MainConfig(#[source] io::Error),
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
        /// The process that holds it, if it said so.
        pid: Option<u32>,
    },
    /// The file system said no.
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

impl AuthFile {
    /// The file that the settings name. Nothing is touched yet.
    pub fn new(options: &Options) -> AuthFile {
        let file = &options.auth_file;
        AuthFile {
            path: file.path.clone(),
            mode: file.mode,
            group: file.group.clone(),
            backups: Backups {
                ours: file.create_backups,
                dir: file.backup_dir.clone(),
                most: file.max_backups,
            },
            main_config: options.nats.config_file.clone(),
            server_binary: options.nats.server_binary.clone(),
            said: None,
            checked_with: None,
            asked: None,
            judge: None,
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
        let Said { desired, .. } = self.said.as_ref()?;
        Some((Arc::clone(desired), self.left.map_or(0, |(.., length)| length)))
    }

    /// Keeps every other `run` away from the file, for as long as the lock lives.
    pub fn lock_for_life(&self) -> Result<Lock, ApplyError> {
        self.try_lock("run.lock")
    }

    /// Keeps every other pass away from the file, waiting for one that is under way.
    pub async fn lock_for_a_pass(&self) -> Result<Lock, ApplyError> {
        let wait = async {
            loop {
                match self.try_lock("lock") {
                    Err(ApplyError::Locked { .. }) => time::sleep(Duration::from_millis(20)).await,
                    other => return other,
                }
            }
        };
        time::timeout(CHECK_DEADLINE, wait).await.unwrap_or_else(|_| self.try_lock("lock"))
    }

    /// The process that keeps the file in step for its life, if there is one: its pid, if it is
    /// known.
    pub fn keeper(&self) -> Option<Option<u32>> {
        match self.lock_for_life() {
            Err(ApplyError::Locked { pid, .. }) => Some(pid),
            Ok(_) | Err(_) => None,
        }
    }

    /// The files that this one replaced, as far as they were kept, the newest first.
    pub fn backups(&self) -> Result<Vec<Backup>, ApplyError> {
        self.backups.list(&self.name())
    }

    /// What a backup holds. `name` is its name in the backup folder, and nothing else.
    pub fn backup(&self, name: &str) -> Result<Box<Desired>, ApplyError> {
        let Backup { name, held, .. } = self.backups.find(&self.name(), name)?;
        match held {
            Held::Rights(desired) => Ok(desired),
            Held::Other { what } => Err(ApplyError::NotRestorable { name, what }),
        }
    }

    /// What the file holds now. A file that we did not write is an error, unless it is adopted.
    pub fn read(&mut self, adopt: Adopt) -> Result<Current, ApplyError> {
        let file = self.opened()?;
        let now = match (&file, &self.said) {
            (Some(file), Some(_)) => hash_of(file).ok(),
            (None, _) | (_, None) => None,
        };
        self.read_as(file, now, adopt)
    }

    /// The same, without keeping anybody waiting who has something else to do meanwhile.
    pub async fn read_aside(&mut self, adopt: Adopt) -> Result<Current, ApplyError> {
        let file = self.opened()?;
        let again = file.as_ref().filter(|_| self.said.is_some());
        let now = match again.and_then(|it| it.file().try_clone().ok()).map(Arc::new) {
            Some(file) => aside(move || hash_of(&*file)).await.ok(),
            None => None,
        };
        self.read_as(file, now, adopt)
    }

    /// The file as it is now, which need not be there. What happens to it from then on is news.
    fn opened(&mut self) -> Result<Option<fs::File>, ApplyError> {
        self.left = shape(&self.path);
        let file = text_file(&self.path).map_err(|err| self.io("read", err))?;
        self.left = file.as_ref().and_then(|it| shape_of(&it.metadata().ok()?));
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
    ) -> Result<Current, ApplyError> {
        let written = file.as_ref().and_then(|it| it.metadata().ok()).map(|it| replaced(&it));
        if let Some(said) = &self.said
            && now.is_some_and(|it| it == said.hash)
        {
            return Ok(Current { written, ..Current::ours(said.clone(), true) });
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
            Found::Newer(format) => return Err(ApplyError::Newer { path: path(), format }),
            Found::Foreign(by) => return Err(ApplyError::Foreign { path: path(), by }),
        };
        let hash = hash(&text);
        self.said =
            desired.map(|desired| Said { hash: hash.clone(), stamp: stamp(&text), desired });
        Ok(match &self.said {
            Some(said) => Current { written, ..Current::ours(said.clone(), false) },
            None => Current { rest: text, hash, foreign, written, ..Current::default() },
        })
    }

    /// Returns, once for each time, when the file is not as it was left. May be dropped at any time.
    pub async fn disturbed(&mut self) {
        // There are mounts that tell nobody about changes, and to look costs next to nothing.
        loop {
            let now = shape(&self.path);
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
        shape(&self.path) != self.left
    }

    /// Returns that, once they have: what servers are waited for may then never be.
    pub fn meddling(&self) -> impl Future<Output = ApplyError> + use<> {
        let (path, left) = (self.path.clone(), self.left);
        async move {
            while shape(&path) == left {
                time::sleep(WATCH / 10).await;
            }
            ApplyError::Meddled { path }
        }
    }

    /// Its text now. Empty: there is no file.
    fn text(&self) -> Result<String, ApplyError> {
        self.text_of(text_file(&self.path).map_err(|err| self.io("read", err))?)
    }

    fn text_of(&self, file: Option<fs::File>) -> Result<String, ApplyError> {
        let Some(file) = file else { return Ok(String::new()) };
        let bytes = bytes_of(&file).map_err(|err| self.io("read", err))?;
        // What is not UTF-8 is not ours, or torn, and that shows all the same.
        Ok(String::from_utf8(bytes)
            .unwrap_or_else(|it| String::from_utf8_lossy(it.as_bytes()).into_owned()))
    }

    /// The main config as it is now, if the settings name one.
    pub fn main_config(&self) -> Result<Option<MainConfig>, ApplyError> {
        let Some(path) = &self.main_config else { return Ok(None) };
        MainConfig::read(path, &self.path).map(Some).map_err(ApplyError::MainConfig)
    }

    /// What the nats-server program makes of the main config as it is: nothing against it, or
    /// something. `None` without such a program.
    pub async fn judgement(&mut self) -> Option<Result<(), String>> {
        let judge = self.judge().await?;
        let Some(path) = &self.main_config else { return Some(Ok(())) };
        Some(judge.ask(path).await.map(drop))
    }

    /// The file as it is, for servers that may not run it yet.
    pub async fn as_it_is(&mut self, current: &Current) -> Result<Applied, ApplyError> {
        let judge = self.judge().await;
        // Where it is not known, it may be as late as now.
        let written = current.written.unwrap_or_else(SystemTime::now);
        self.applied(false, written, current.hash.clone(), current.stamp.clone(), judge)
    }

    /// The version of the nats-server program that judges configs, if there is one.
    pub async fn judge_version(&mut self) -> Option<String> {
        Some(self.judge().await?.version)
    }

    /// Makes the file, which holds `former`, hold `desired`; or leaves it alone.
    ///
    /// With `stamped`, servers can show by their metadata that they run it.
    pub async fn replace(
        &mut self,
        desired: Arc<Desired>,
        former: &Current,
        stamped: bool,
    ) -> Result<Applied, ApplyError> {
        self.put(desired, former, stamped, Keep::IfWanted).await
    }

    /// As [`AuthFile::replace`], but not without a backup, whatever the settings say.
    pub async fn restore(
        &mut self,
        desired: Arc<Desired>,
        former: &Current,
        stamped: bool,
    ) -> Result<Applied, ApplyError> {
        self.put(desired, former, stamped, Keep::Always).await
    }

    async fn put(
        &mut self,
        desired: Arc<Desired>,
        former: &Current,
        stamped: bool,
        keep: Keep,
    ) -> Result<Applied, ApplyError> {
        let (text, stamp) = ready(&desired, stamped);
        let text = Arc::new(text);
        let sound = sound(&text, &desired);

        let begun = Instant::now();
        let hash = hash(&text);
        let judge = self.judge().await;
        let main = self.main_config()?;
        let with = judge.as_ref().zip(main).map(|(judge, main)| (main, judge.version.clone()));
        if with != self.checked_with || with.is_none() {
            // Not seen together before, so nothing is renamed before nats-server has seen it.
            // Of many users each is large, and hardly ever needed.
            let good = iter::once_with(|| self.good_text()).flatten();
            let formers = iter::once_with(|| former.text()).chain(good);
            self.check(judge.as_ref(), &text, formers).await?;
            self.checked_with = with;
        }
        debug!(took = ?begun.elapsed(), "checked");

        let begun = Instant::now();
        let there = former.desired.is_some() || !former.rest.trim().is_empty();
        if there && (former.foreign || keep == Keep::Always) {
            self.back_up().map_err(|err| self.io("backed up", err))?;
        } else if there && self.backups.ours {
            // That it cannot be kept is no reason to let a removed user stay.
            if let Err(err) = self.back_up() {
                warn!(%err, "no backup of the former auth file");
            }
        }
        let written = self.write_sound(&text, sound).await?;
        self.said = Some(Said { hash: hash.clone(), stamp: stamp.clone(), desired });
        debug!(took = ?begun.elapsed(), bytes = text.len(), "written");
        self.applied(true, written, hash, stamp, judge)
    }

    /// Returns if nats-server refuses the file for its own sake: with `former`, or with the last good
    /// file, it takes the same main config.
    ///
    /// If it takes it with neither, the file stays, so that nobody who was removed returns with
    /// a restart.
    pub async fn refused(&mut self, new: &Applied, former: &Current) -> ApplyError {
        new.digest().await;
        if let Some(said) = new.refusal().filter(|_| !self.is_disturbed()) {
            if new.changed {
                // Whatever it was, the next file is asked about before it is put in place.
                self.checked_with = None;
            }
            match self.refused_itself(new, former).await {
                Err(error) => return error,
                Ok(()) if new.changed => {
                    warn!(said, "nats-server refuses the main config, with the former file too");
                }
                Ok(()) => (),
            }
        }
        future::pending().await
    }

    async fn refused_itself(&self, new: &Applied, former: &Current) -> Result<(), ApplyError> {
        let text = self.text()?;
        let formers = iter::once(former).filter(|it| it.hash != hash(&text)).map(Current::text);
        let mut formers = formers.chain(self.good_text().filter(|it| *it != text)).peekable();
        if formers.peek().is_none() {
            return Ok(());
        }
        self.check(new.judge.as_ref(), &text, formers).await
    }

    /// Makes the file hold `former`, or else the last good file, if nats-server takes it; less what
    /// `refused` takes away, so that nobody stays, or comes back, who was to go.
    ///
    /// `None`: it takes neither, and the file holds what it held.
    pub async fn go_back(
        &mut self,
        refused: &Desired,
        former: &Current,
    ) -> Result<Option<Applied>, ApplyError> {
        let now = self.text()?;
        if let Found::Foreign(_) | Found::Newer(_) = parse(&now) {
            // It was to be adopted, and is nobody's to lose.
            return Ok(None);
        }
        let judge = self.judge().await;
        let good = self.good();
        for former in iter::once(former).chain(&good) {
            let Some(desired) = &former.desired else { continue };
            let reduced = Arc::new(desired.reduced_by(refused));
            let same = reduced == *desired;
            let (text, stamp) = ready(&reduced, former.stamp.is_some());
            if self.check(judge.as_ref(), &text, iter::once(String::new())).await.is_err() {
                continue;
            }
            // Servers that run the very same already are not to reload.
            if same && hash(&now) == former.hash {
                return self.as_it_is(former).await.map(Some);
            }
            let text = Arc::new(text);
            let written = self.write_sound(&text, sound(&text, &reduced)).await?;
            warn!("the former auth file was put back, less what was taken away since");
            return self.applied(!same, written, hash(&text), stamp, judge).map(Some);
        }
        Ok(None)
    }

    /// Asks nats-server about `text`, in the place of the auth file, where no server can see it.
    ///
    /// A refusal counts only if the same main config with one of `formers` is accepted, or if `text`
    /// is refused on its own: `-t` also refuses what has nothing to do with us, such as a variable
    /// that only the server's environment has.
    async fn check(
        &self,
        judge: Option<&Judge>,
        text: &str,
        formers: impl Iterator<Item = String>,
    ) -> Result<(), ApplyError> {
        let Some(judge) = judge else { return Ok(()) };
        let scratch = Scratch::new().map_err(|err| self.io("checked", err))?;
        let main = self.main_config()?;
        let in_place = async |text: &str, name: &str| {
            let Some(files) = main.as_ref().and_then(|it| it.with_auth_file(text)) else {
                return Ok(None);
            };
            let dir = scratch.path().join(name);
            fs::create_dir(&dir).map_err(|err| self.io("checked", err))?;
            for (name, contents) in files {
                self.scratch(&dir.join(name), &contents)?;
            }
            let asked = judge.ask(&dir.join(MainConfig::FIRST)).await;
            Ok::<_, ApplyError>(Some(asked.map_err(|said| reasons(&said, &dir))))
        };
        let asked = in_place(text, "new").await?;
        if matches!(asked, Some(Ok(_))) {
            return Ok(());
        }
        let alone = scratch.path().join("auth.conf");
        self.scratch(&alone, text)?;
        if let Err(said) = judge.ask(&alone).await {
            return Err(ApplyError::Rejected(reasons(&said, scratch.path())));
        }
        if let Some(Err(said)) = asked {
            for (n, former) in formers.enumerate() {
                if matches!(in_place(&former, &format!("former-{n}")).await?, Some(Ok(_))) {
                    return Err(ApplyError::Rejected(said));
                }
            }
        }
        Ok(())
    }

    fn scratch(&self, path: &Path, text: &str) -> Result<(), ApplyError> {
        let mut file = fs::OpenOptions::new();
        let written = file.write(true).create_new(true).mode(0o600).open(path);
        written
            .and_then(|mut it| it.write_all(text.as_bytes()))
            .map_err(|err| self.io("checked", err))
    }

    /// The nats-server program, looked at again when it was replaced.
    async fn judge(&mut self) -> Option<Judge> {
        let program = find(&self.server_binary)?;
        let modified = fs::metadata(&program).and_then(|it| it.modified()).ok()?;
        match &self.judge {
            Some(judge) if judge.program == program && judge.modified == modified => (),
            _ => self.judge = Judge::new(program, modified).await,
        }
        self.judge.clone()
    }

    fn applied(
        &mut self,
        changed: bool,
        written: SystemTime,
        hash: String,
        stamp: Option<String>,
        judge: Option<Judge>,
    ) -> Result<Applied, ApplyError> {
        let main = self.main_config()?;
        let main_changed = main.as_ref().map(MainConfig::changed);
        let with = main.clone().zip(judge.clone());
        let said = match &self.asked {
            // A refusal may have had to do with more than these.
            Some(it)
                if it.hash == hash && it.with == with && !matches!(it.said.get(), Some(Err(_))) =>
            {
                Arc::clone(&it.said)
            }
            _ => Arc::default(),
        };
        self.asked = Some(Asked { hash: hash.clone(), with, said: Arc::clone(&said) });
        // Whoever cannot read it has to prove more again, and that is all.
        let noted = text_at(&self.beside("proven")).unwrap_or_default();
        let proven = noted.strip_prefix(&hash).map(|it| it.lines().skip(1).map(str::to_owned));
        let (losing, leaf_nodes) = self.noted_leaf_nodes();
        let desired = self.said.as_ref().filter(|it| it.hash == hash).map(|it| it.desired.clone());
        Ok(Applied {
            losing,
            leaf_nodes,
            desired,
            changed,
            written,
            stamp,
            main_changed,
            proven: proven.map(Iterator::collect).unwrap_or_default(),
            hash,
            judge,
            main_config: self.main_config.clone(),
            main,
            said,
        })
    }

    /// Notes what servers that were proven to run the file say of their config.
    ///
    /// With it a later process can tell an operator's edit elsewhere in the main config, which is
    /// not ours to load, from a server that never ran this file.
    pub fn remember(&self, applied: &Applied, proven: &BTreeSet<String>) {
        if applied.proven == *proven {
            return;
        }
        let marks = proven.iter().map(String::as_str);
        let lines = [applied.hash.as_str()].into_iter().chain(marks).collect::<Vec<_>>().join("\n");
        let path = self.beside("proven");
        let noted =
            stage(folder(&path), &lines).and_then(|it| it.persist(&path).map_err(|it| it.error));
        if let Err(err) = noted {
            warn!(path = %path.display(), %err, "what was proven could not be noted");
        }
    }

    /// Notes that these users are to lose something, if one may be connected as a leaf node: a reload
    /// would not notice, and nobody else would know.
    pub fn note_losing(&self, losing: &[String], main_config: Option<&MainConfig>) {
        if losing.is_empty() {
            return;
        }
        let (mut noted, leaf_nodes) = self.noted_leaf_nodes();
        noted.extend(losing.iter().cloned());
        self.note_leaf_nodes(&noted, &leaf_nodes, main_config);
    }

    /// Notes who lost something and may be connected by a leaf node as before, and which leaf nodes
    /// are.
    pub fn note_leaf_nodes(
        &self,
        losing: &BTreeSet<String>,
        leaf_nodes: &BTreeSet<LeafNode>,
        main_config: Option<&MainConfig>,
    ) {
        let nobody = BTreeSet::new();
        let possible = main_config.is_none_or(MainConfig::takes_leaf_nodes);
        let losing = if possible { losing } else { &nobody };
        let (noted, were) = self.noted_leaf_nodes();
        if noted == *losing && were == *leaf_nodes {
            return;
        }
        let path = self.beside("leafs");
        let done = if losing.is_empty() && leaf_nodes.is_empty() {
            fs::remove_file(&path)
        } else {
            // No name has a tab or a line break in it.
            let losing = losing.iter().map(|it| format!("losing\t{it}\n"));
            let left = leaf_nodes.iter().map(|LeafNode { server, number, user }| {
                format!("left\t{server}\t{number}\t{user}\n")
            });
            let lines: String = losing.chain(left).collect();
            stage(folder(&path), &lines)
                .and_then(|it| it.persist(&path).map(drop).map_err(|it| it.error))
        };
        if let Err(err) = done {
            warn!(path = %path.display(), %err, "whose leaf nodes may be left could not be noted");
        }
    }

    fn noted_leaf_nodes(&self) -> (BTreeSet<String>, BTreeSet<LeafNode>) {
        let (mut losing, mut left) = (BTreeSet::new(), BTreeSet::new());
        for line in fs::read_to_string(self.beside("leafs")).unwrap_or_default().lines() {
            match line.split('\t').collect::<Vec<_>>()[..] {
                ["losing", user] => drop(losing.insert(user.to_owned())),
                ["left", server, number, user] => {
                    let Ok(number) = number.parse() else { continue };
                    left.insert(LeafNode { server: server.into(), number, user: user.into() });
                }
                _ => (),
            }
        }
        (losing, left)
    }

    /// Keeps the file as the last good one: nats-server starts with it.
    ///
    /// It is gone back to if a later file turns out to be refused, even by another process.
    pub fn keep_as_good(&mut self, applied: &Applied) {
        if self.kept == applied.hash {
            return;
        }
        let path = self.beside("good");
        let keep = || {
            if let Ok(Some(kept)) = text_file(&path)
                && hash_of(&kept).is_ok_and(|it| it == applied.hash)
            {
                return Ok(true);
            }
            // Somebody may have deleted or edited it since, and that is for the next pass.
            let Some(file) = text_file(&self.path)? else { return Ok(false) };
            let mut staged = stage(folder(&path), "")?;
            if read_through(file.file(), |piece| staged.write_all(piece))? != applied.hash {
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
        self.kept.clone_from(&applied.hash);
    }

    /// The last good file, if there is one.
    fn good(&self) -> Option<Current> {
        let text = self.good_text()?;
        match parse(&text) {
            Found::Ours(desired) => {
                let said =
                    Said { hash: hash(&text), stamp: stamp(&text), desired: Arc::from(desired) };
                Some(Current::ours(said, false))
            }
            Found::Torn(_) | Found::Empty | Found::Foreign(_) | Found::Newer(_) => None,
        }
    }

    fn good_text(&self) -> Option<String> {
        text_at(&self.beside("good"))
    }

    /// The path of a file of ours beside the auth file; hidden, since people list folders.
    fn beside(&self, extension: &str) -> PathBuf {
        beside(&self.path, extension)
    }

    fn name(&self) -> String {
        name(&self.path)
    }

    /// As [`AuthFile::write`], but not unless the text is sound.
    async fn write_sound(
        &mut self,
        text: &str,
        sound: impl Future<Output = Result<(), ConfError>>,
    ) -> Result<SystemTime, ApplyError> {
        let staged = self.stage(text);
        sound.await.map_err(ApplyError::NotReadBack)?;
        self.put_in_place(text, staged)
    }

    /// Replaces the file in one step, so that a server reading it sees the old or the new.
    fn write(&mut self, text: &str) -> Result<SystemTime, ApplyError> {
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
    ) -> Result<SystemTime, ApplyError> {
        let written = staged.and_then(|it| replace(&it.path, it.file, it.kept, text));
        // Even if it could not be: half of it may be there.
        self.left = match &written {
            Ok(file) => shape_of(file),
            Err(_) => shape(&self.path),
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

    fn back_up(&self) -> io::Result<()> {
        self.backups.keep(&self.name(), &self.path)
    }

    fn try_lock(&self, extension: &str) -> Result<Lock, ApplyError> {
        // The file may have several names; a lock is for all of them.
        Lock::take(beside(&in_place(&self.path), extension))
    }

    fn io(&self, what: &'static str, source: io::Error) -> ApplyError {
        ApplyError::Io { path: self.path.clone(), what, source }
    }
}

impl Current {
    fn ours(Said { hash, stamp, desired }: Said, known: bool) -> Current {
        let desired = Some(desired);
        Current { desired, stamp, hash, known, ..Current::default() }
    }

    /// Its text, or one that says the same.
    fn text(&self) -> String {
        match &self.desired {
            Some(desired) => ready(desired, self.stamp.is_some()).0,
            None => self.rest.clone(),
        }
    }
}

impl ApplyError {
    /// What one can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            ApplyError::Foreign { by: Some(_), .. } => {
                "two programs that write one file undo each other: stop the other one, then \
                 `pb-nats once --adopt`; or set another `auth_file.path`"
            }
            ApplyError::Foreign { by: None, .. } => {
                "`pb-nats once --adopt` backs it up and takes it over; or set another `auth_file.path`"
            }
            ApplyError::Newer { .. } => {
                "update pb-nats, or let this version take the file over with `pb-nats once --adopt`"
            }
            ApplyError::NotReadBack(_) => "this is a mistake in pb-nats; please report it",
            ApplyError::Rejected(_) => {
                "what was in force stays, less what has been taken away since; a record may have \
                 a name that nats-server's own config has too (`nats.reserved_users`)"
            }
            ApplyError::MainConfig(_) => {
                "`nats.config_file` is nats-server's main config; what it includes is looked for in \
                 its own folder, even a path that begins with `/`"
            }
            ApplyError::NoBackup { .. } => "`pb-nats backups list` lists those there are",
            ApplyError::NotRestorable { .. } => {
                "the file stays as it is; what the backup holds can be put in place by hand"
            }
            ApplyError::Meddled { .. } => {
                "find out who else writes it, or cleans up there: pb-nats puts it right each time"
            }
            ApplyError::Locked { .. } => {
                "one `pb-nats run` for each auth file; `pb-nats once` works beside it"
            }
            ApplyError::Io { source, .. } if source.kind() == io::ErrorKind::InvalidInput => {
                "`auth_file.group` is a group on this machine, by name or number"
            }
            ApplyError::Io { source, .. }
                if matches!(
                    source.kind(),
                    io::ErrorKind::IsADirectory | io::ErrorKind::FileTooLarge
                ) =>
            {
                "move away what is in its place, and pb-nats makes the file"
            }
            ApplyError::Io { what: "locked", source, .. }
                if source.kind() != io::ErrorKind::NotFound =>
            {
                "pb-nats makes its lock files itself; delete what is in the place of this one"
            }
            ApplyError::Io { .. } => {
                "pb-nats needs to write to the file's folder, which must exist and have room"
            }
        })
    }
}

impl Applied {
    /// What `nats-server -t` makes of the main config as it is on disk.
    ///
    /// `None` if it cannot be asked, refuses the config, or prints no digest (before 2.11).
    pub async fn digest(&self) -> Option<Digest> {
        let (judge, config) = (self.judge.as_ref()?, self.main_config.as_ref()?);
        let said = self.said.get_or_init(|| judge.ask(config)).await;
        said.as_ref().ok().cloned().flatten()
    }

    /// Whether nats-server takes the main config as it is on disk, as far as it was asked.
    pub fn accepted(&self) -> bool {
        matches!(self.said.get(), Some(Ok(_)))
    }

    /// Why nobody knows whether a server that runs the file takes its users from it.
    pub fn doubt(&self) -> Option<String> {
        let placement = self.main.as_ref()?.placement();
        matches!(placement, Placement::Unknown(_)).then(|| placement.to_string())
    }

    /// Why a server refuses to reload until it is started anew, as far as that is sure; to
    /// `nats-server -t` it is nothing.
    ///
    /// Other settings of this kind may be set on a server's command line too.
    pub fn needs_restart(&self, running: &BTreeMap<&'static str, String>) -> Option<String> {
        let differing = self.main.as_ref()?.not_reloadable(running);
        let sure = |it: &&(&str, _, _)| matches!(it.0, "system_account" | "http_base_path");
        let (setting, here, there) = differing.iter().find(sure)?;
        Some(format!("`{setting}` is {here:?} in the main config, {there:?} since its start"))
    }

    /// Whether whoever is connected as a leaf node is a user of the file, so that it says who may be.
    pub fn tells_leaf_nodes(&self) -> bool {
        self.desired.is_some() && self.main.as_ref().is_some_and(MainConfig::takes_leaf_nodes)
    }

    /// Whether the file lets this user connect as a leaf node. `None`: it is not known.
    pub fn lets_in_leaf_node(&self, user: &str) -> Option<bool> {
        let desired = self.desired.as_ref().filter(|_| self.tells_leaf_nodes())?;
        let ways = [ConnectionType::Leafnode, ConnectionType::LeafnodeWs];
        let lets_in = |it: &User| ways.into_iter().any(|way| it.connects_by(way));
        Some(desired.users.get(user).is_some_and(lets_in))
    }

    /// What nats-server said if it refused the main config as it is on disk.
    pub fn refusal(&self) -> Option<&str> {
        self.said.get()?.as_ref().err().map(String::as_str)
    }
}

/// The nats-server program that judges configs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Judge {
    program: PathBuf,
    modified: SystemTime,
    version: String,
}

impl Judge {
    /// `None` if the program is not a nats-server.
    async fn new(program: PathBuf, modified: SystemTime) -> Option<Judge> {
        let output = run(&program, &[OsStr::new("--version")]).await.ok()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = said.trim().strip_prefix("nats-server: v")?.to_owned();
        Some(Judge { program, modified, version })
    }

    /// The digest of the config, or why it is refused.
    async fn ask(&self, config: &Path) -> Verdict {
        let output = run(&self.program, &["-t".as_ref(), "-c".as_ref(), config.as_ref()])
            .await
            .map_err(|err| format!("{}: {err}", self.program.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            let name = self.program.file_name().unwrap_or_default().to_string_lossy();
            return Err(said.trim().trim_start_matches(&format!("{name}: ")).to_owned());
        }
        let digest = said.rsplit_once("(sha256:").and_then(|(_, rest)| rest.split_once(')'));
        Ok(digest.map(|(value, _)| Digest {
            version: self.version.clone(),
            value: format!("sha256:{value}"),
        }))
    }
}

async fn run(program: &Path, arguments: &[&OsStr]) -> io::Result<std::process::Output> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    // Variables that the main config names are resolved as they are for us.
    keep_settings_from(command.as_std_mut());
    time::timeout(CHECK_DEADLINE, command.output()).await?
}

/// What nats-server said of files in a scratch folder, without the places: nobody can look there, and
/// of two users with one name it names the one or the other.
fn reasons(said: &str, folder: &Path) -> String {
    let folder = format!("{}/", folder.display());
    let reason = |line: &str| match line.strip_prefix(&folder) {
        Some(placed) => placed.split_once(": ").map_or(placed, |(_, reason)| reason).to_owned(),
        None => line.to_owned(),
    };
    said.lines().map(reason).collect::<Vec<_>>().join("\n")
}

/// The text that says this, and its stamp, if it is to have one.
fn ready(desired: &Desired, stamped: bool) -> (String, Option<String>) {
    let begun = Instant::now();
    let text = render(desired);
    debug!(took = ?begun.elapsed(), "rendered");
    let stamp = stamped.then(|| hash(&text));
    let now = format!("{:.0}", jiff::Timestamp::now());
    (dated(text, &now, stamp.as_deref()), stamp)
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
fn sound(
    text: &Arc<String>,
    desired: &Arc<Desired>,
) -> impl Future<Output = Result<(), ConfError>> + use<> {
    let (text, desired) = (Arc::clone(text), Arc::clone(desired));
    aside(move || reads_back(&text, &desired))
}

/// Does this in a thread of its own, from now on; or, if there can be none, when it is waited for. The
/// runtime keeps its threads, and each of them the memory that it once had.
fn aside<T, W>(work: W) -> impl Future<Output = T>
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

/// Names the text, so that the same text is known again.
fn hash(text: &str) -> String {
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

/// The program, in `PATH` if it is a mere name.
fn find(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return Some(program.to_owned());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|it| it.join(program)).find(|it| it.is_file())
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
fn folder(path: &Path) -> &Path {
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
fn shape(path: &Path) -> Option<Shape> {
    shape_of(&fs::metadata(path).ok()?)
}

fn shape_of(file: &std::fs::Metadata) -> Option<Shape> {
    Some((file.ino(), file.modified().ok()?, file.len()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// A file for a test to find.
    pub(super) fn put(path: &Path, text: &str) {
        use std::io::Write as _;
        fs_err::File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
    }
}
