//! The auth file as nats-server sees it: in its place in the main config, judged before it is put
//! there, and taken back if nats-server refuses it for its own sake.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
    path::PathBuf,
    sync::Arc,
    time::{Instant, SystemTime},
};

use fs_err as fs;
use tokio::sync::OnceCell;
use tracing::{debug, warn};

use super::{
    EngineError, MainConfig, Placement,
    judge::{Digest, Judge, Verdict, find, reasons},
};
use crate::{
    auth::{ConnectionType, Desired, Found, User, parse},
    nats::LeafNode,
    options::Options,
    state::{Adopt, Current, Keep, Parsed, Scratch, StateFile, hash, ready, verify_roundtrip},
};

/// The file that nats-server includes.
#[derive(Debug)]
pub struct AuthFile {
    /// The file itself.
    pub state: StateFile,
    main_config_path: Option<PathBuf>,
    /// The main config that includes it, as it was at the last look.
    pub(super) main_config: Option<MainConfig>,
    server_binary: PathBuf,
    /// The main config and nats-server that the last whole check was made with.
    checked_with: Option<(MainConfig, String)>,
    asked: Option<Asked>,
    judge: Option<Judge>,
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
    verdict: Arc<OnceCell<Verdict>>,
}

/// What nats-server was asked about, so that it need not think about the same again.
#[derive(Debug)]
struct Asked {
    hash: String,
    with: Option<(MainConfig, Judge)>,
    verdict: Arc<OnceCell<Verdict>>,
}

impl AuthFile {
    /// The file that the settings name. Nothing is touched yet.
    pub fn new(options: &Options) -> AuthFile {
        AuthFile {
            state: StateFile::new(options),
            main_config_path: options.nats.config_file.clone(),
            main_config: None,
            server_binary: options.nats.server_binary.clone(),
            checked_with: None,
            asked: None,
            judge: None,
        }
    }

    /// What the file holds now, and the main config with it. A file that we did not write is an error,
    /// unless it is adopted.
    pub fn read(&mut self, adopt: Adopt) -> Result<Current, EngineError> {
        self.main_config = self.main_config_now()?;
        Ok(self.state.read(adopt)?)
    }

    /// The same, without keeping anybody waiting who has something else to do meanwhile.
    pub(super) async fn read_on_thread(&mut self, adopt: Adopt) -> Result<Current, EngineError> {
        let current = self.state.read_on_thread(adopt).await?;
        self.main_config = self.main_config_now()?;
        Ok(current)
    }

    /// The main config as it is now, if the settings name one.
    pub fn main_config_now(&self) -> Result<Option<MainConfig>, EngineError> {
        let Some(path) = &self.main_config_path else { return Ok(None) };
        MainConfig::read(path, self.state.path()).map(Some).map_err(EngineError::MainConfig)
    }

    /// What the nats-server program makes of the main config as it is: nothing against it, or
    /// something. `None` without such a program.
    pub async fn judgement(&mut self) -> Option<Result<(), String>> {
        let judge = self.judge().await?;
        let Some(path) = &self.main_config_path else { return Some(Ok(())) };
        Some(judge.ask(path).await.map(drop))
    }

    /// The file as it is, for servers that may not run it yet.
    pub async fn as_it_is(&mut self, current: &Current) -> Applied {
        let judge = self.judge().await;
        // Where it is not known, it may be as late as now.
        let written = current.written.unwrap_or_else(SystemTime::now);
        let (hash, stamp) = (current.hash.clone(), current.stamp.clone());
        self.applied(false, written, hash, stamp, judge)
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
        desired: &Arc<Desired>,
        former: &Current,
        stamped: bool,
        keep: Keep,
    ) -> Result<Applied, EngineError> {
        let (text, stamp) = ready(desired, stamped);
        let text = Arc::new(text);
        let roundtrip = verify_roundtrip(&text, desired);

        let begun = Instant::now();
        let hash = hash(&text);
        let judge = self.judge().await;
        // As it is by now: the records may have taken long to read.
        let main = self.main_config_now()?;
        let with = judge.as_ref().zip(main).map(|(judge, main)| (main, judge.version.clone()));
        if with != self.checked_with || with.is_none() {
            // Not seen together before, so nothing is renamed before nats-server has seen it.
            // Of many users each is large, and hardly ever needed.
            let good = iter::once_with(|| self.state.good_text()).flatten();
            let formers = iter::once_with(|| former.text()).chain(good);
            self.check(judge.as_ref(), &text, formers).await?;
            self.checked_with = with;
        }
        debug!(took = ?begun.elapsed(), "checked");

        let begun = Instant::now();
        let desired = Arc::clone(desired);
        let parsed = Parsed { hash: hash.clone(), stamp: stamp.clone(), desired };
        let written = self.state.replace(&text, parsed, former, keep, roundtrip).await?;
        debug!(took = ?begun.elapsed(), bytes = text.len(), "written");
        Ok(self.applied(true, written, hash, stamp, judge))
    }

    /// Why nats-server refuses the file for its own sake, if it said so: with `former`, or with the last
    /// good file, it takes the same main config.
    ///
    /// If it takes it with neither, the file stays, so that nobody who was removed returns with
    /// a restart.
    pub(super) async fn refused(&mut self, new: &Applied, former: &Current) -> Option<EngineError> {
        let said = new.refusal().filter(|_| !self.state.is_disturbed())?;
        if new.changed {
            // Whatever it was, the next file is asked about before it is put in place.
            self.checked_with = None;
        }
        let refused = self.refused_itself(new, former).await.err();
        if refused.is_none() && new.changed {
            warn!(said, "nats-server refuses the main config, with the former file too");
        }
        refused
    }

    async fn refused_itself(&self, new: &Applied, former: &Current) -> Result<(), EngineError> {
        let text = self.state.text()?;
        let formers = iter::once(former).filter(|it| it.hash != hash(&text)).map(Current::text);
        let mut formers = formers.chain(self.state.good_text().filter(|it| *it != text)).peekable();
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
    ) -> Result<Option<Applied>, EngineError> {
        let now = self.state.text()?;
        if let Found::Foreign(_) | Found::Newer(_) = parse(&now) {
            // It was to be adopted, and is nobody's to lose.
            return Ok(None);
        }
        let judge = self.judge().await;
        let good = self.state.good();
        for former in iter::once(former).chain(&good) {
            let Some(desired) = &former.desired else { continue };
            let reduced = Arc::new(desired.reduced_by(refused));
            let same = reduced == *desired;
            let (text, stamp) = ready(&reduced, former.stamp.is_some());
            let empty = iter::once(String::new());
            if self.check(judge.as_ref(), &text, empty).await.is_err() {
                continue;
            }
            // Servers that run the very same already are not to reload.
            if same && hash(&now) == former.hash {
                return Ok(Some(self.as_it_is(former).await));
            }
            let text = Arc::new(text);
            let written =
                self.state.write_verified(&text, verify_roundtrip(&text, &reduced)).await?;
            warn!("the former auth file was put back, less what was taken away since");
            let hash = hash(&text);
            return Ok(Some(self.applied(!same, written, hash, stamp, judge)));
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
    ) -> Result<(), EngineError> {
        let Some(judge) = judge else { return Ok(()) };
        let main = self.main_config_now()?;
        let scratch = Scratch::new().map_err(|err| self.state.io("checked", err))?;
        let in_place = async |text: &str, name: &str| {
            let files = main.as_ref().and_then(|it| it.with_auth_file(text));
            let Some(files) = files else {
                return Ok(None);
            };
            let dir = scratch.path().join(name);
            for (file, contents) in files {
                let put = scratch.put(dir.join(file), &contents);
                put.map_err(|err| self.state.io("checked", err))?;
            }
            let asked = judge.ask(&dir.join(MainConfig::FIRST)).await;
            Ok::<_, EngineError>(Some(asked.map_err(|said| reasons(&said, &dir))))
        };
        let asked = in_place(text, "new").await?;
        if matches!(asked, Some(Ok(_))) {
            return Ok(());
        }
        let alone = scratch.put("auth.conf", text).map_err(|err| self.state.io("checked", err))?;
        if let Err(said) = judge.ask(&alone).await {
            return Err(EngineError::Rejected(reasons(&said, scratch.path())));
        }
        if let Some(Err(said)) = asked {
            for (n, former) in formers.enumerate() {
                if matches!(in_place(&former, &format!("former-{n}")).await?, Some(Ok(_))) {
                    return Err(EngineError::Rejected(said));
                }
            }
        }
        Ok(())
    }

    /// The nats-server program, looked at again when it was replaced.
    pub(super) async fn judge(&mut self) -> Option<Judge> {
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
    ) -> Applied {
        let main = self.main_config.clone();
        let main_changed = main.as_ref().map(MainConfig::changed);
        let with = main.clone().zip(judge.clone());
        let verdict = match &self.asked {
            // A refusal may have had to do with more than these.
            Some(it)
                if it.hash == hash
                    && it.with == with
                    && !matches!(it.verdict.get(), Some(Err(_))) =>
            {
                Arc::clone(&it.verdict)
            }
            _ => Arc::default(),
        };
        self.asked = Some(Asked { hash: hash.clone(), with, verdict: Arc::clone(&verdict) });
        // Whoever cannot read it has to prove more again, and that is all.
        let noted = self.state.noted("proven");
        let proven = noted.strip_prefix(&hash).map(|it| it.lines().skip(1).map(str::to_owned));
        let (losing, leaf_nodes) = self.noted_leaf_nodes();
        let desired = self.state.says(&hash);
        Applied {
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
            main_config: self.main_config_path.clone(),
            main,
            verdict,
        }
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
        if let Err(err) = self.state.note("proven", &lines) {
            warn!(%err, "what was proven could not be noted");
        }
    }

    /// Notes that these users are to lose something, if one may be connected as a leaf node: a reload
    /// would not notice, and nobody else would know.
    pub fn note_losing(&self, losing: &[String]) {
        if losing.is_empty() {
            return;
        }
        let (mut noted, leaf_nodes) = self.noted_leaf_nodes();
        noted.extend(losing.iter().cloned());
        self.note_leaf_nodes(&noted, &leaf_nodes);
    }

    /// Notes who lost something and may be connected by a leaf node as before, and which leaf nodes
    /// are.
    pub fn note_leaf_nodes(&self, losing: &BTreeSet<String>, leaf_nodes: &BTreeSet<LeafNode>) {
        let nobody = BTreeSet::new();
        let possible = self.main_config.as_ref().is_none_or(MainConfig::takes_leaf_nodes);
        let losing = if possible { losing } else { &nobody };
        let (noted, were) = self.noted_leaf_nodes();
        if noted == *losing && were == *leaf_nodes {
            return;
        }
        // No name has a tab or a line break in it.
        let losing = losing.iter().map(|it| format!("losing\t{it}\n"));
        let left = leaf_nodes
            .iter()
            .map(|LeafNode { server, number, user }| format!("left\t{server}\t{number}\t{user}\n"));
        let lines: String = losing.chain(left).collect();
        if let Err(err) = self.state.note("leafs", &lines) {
            warn!(%err, "whose leaf nodes may be left could not be noted");
        }
    }

    fn noted_leaf_nodes(&self) -> (BTreeSet<String>, BTreeSet<LeafNode>) {
        let (mut losing, mut left) = (BTreeSet::new(), BTreeSet::new());
        for line in self.state.noted("leafs").lines() {
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
}

impl Applied {
    /// What `nats-server -t` makes of the main config as it is on disk.
    ///
    /// `None` if it cannot be asked, refuses the config, or prints no digest (before 2.11).
    pub async fn digest(&self) -> Option<Digest> {
        let (judge, config) = (self.judge.as_ref()?, self.main_config.as_ref()?);
        let verdict = self.verdict.get_or_init(|| judge.ask(config)).await;
        verdict.as_ref().ok().cloned().flatten()
    }

    /// Whether nats-server takes the main config as it is on disk, as far as it was asked.
    pub fn accepted(&self) -> bool {
        matches!(self.verdict.get(), Some(Ok(_)))
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
        self.verdict.get()?.as_ref().err().map(String::as_str)
    }
}
