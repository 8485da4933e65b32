//! The promises, while everything breaks that can break: real servers, the real pb-nats, real
//! clients, and faults one by one and several at once.

mod alone;
mod checker;
mod fault;
mod proxy;
mod self_test;
mod steps;
mod truth;
mod world;

use std::{
    collections::BTreeMap,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum as _;
use fastrand::Rng;

use crate::{cargo, support::Signal, tools};
use fault::{Broken, Fault};
use steps::Step;
use truth::Harm;
use world::{Place, World};

/// Within this, what PocketBase says has to be in force.
const LIMIT: Duration = Duration::from_secs(10);
/// Whether we were asked to end. What was started and mounted is then put away first.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// So many faults at once, at most.
const AT_ONCE: usize = 3;

/// Break everything that can break, and see whether the promises hold.
#[derive(clap::Args)]
pub(crate) struct Faults {
    /// Each fault once and briefly, in two minutes.
    #[arg(long)]
    quick: bool,
    /// What is left to chance comes out the same with the same seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Only the faults whose name contains this, such as `live-` or `step`.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// How often everything is tried.
    #[arg(long, default_value_t = 1)]
    rounds: u64,
    /// Only see whether the checker notices what it is there to notice.
    #[arg(long)]
    self_test: bool,
}

/// One thing to try.
enum Trial {
    /// Faults that overlap. Most have one.
    Faults(Place, Vec<Fault>),
    /// pb-nats ends at a step of a pass, or is held there while another fault begins.
    AtStep(Place, Step, Option<Fault>),
}

/// What became of a trial.
enum Verdict {
    Held { took: Duration, latest: Duration },
    Skipped(String),
    Not(Vec<String>),
}

/// What was tried, and what came of it.
#[derive(Default)]
struct Tally {
    held: usize,
    skipped: BTreeMap<String, usize>,
    not: Vec<String>,
    slowest: (Duration, String),
    latest: (Duration, String),
    answers: usize,
}

/// Tries it all, and says what held.
pub(crate) fn run(arguments: &Faults) -> Result<()> {
    tools::install()?;
    let binary = cargo::build()?;
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(0..1_000_000));
    println!("seed {seed}");
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::SeqCst))?;
    let begun = Instant::now();
    self_test::run(&binary, Rng::with_seed(seed)).context("the checker is not to be trusted")?;
    println!("the checker notices an intruder, a lapse, what is not in step, and what is not said");
    if arguments.self_test {
        return Ok(());
    }
    let mut tally = Tally::default();
    for round in 0..arguments.rounds.max(1) {
        Round { arguments, binary: &binary, seed: seed + round, tally: &mut tally }.run()?;
    }
    tally.tell(begun.elapsed());
    ensure!(tally.not.is_empty(), "not held: {}", tally.not.join(", "));
    ensure!(tally.held > 0, "nothing was tried");
    Ok(())
}

/// Everything once.
struct Round<'a> {
    arguments: &'a Faults,
    binary: &'a Path,
    seed: u64,
    tally: &'a mut Tally,
}

impl Round<'_> {
    fn run(&mut self) -> Result<()> {
        for place in Place::ALL {
            let mut rng = Rng::with_seed(self.seed ^ place as u64);
            let mut world = None;
            for (number, trial) in self.trials(place, &mut rng).into_iter().enumerate() {
                // Each has a seed of its own, so that it is the same without the others.
                let seed = self.seed.wrapping_mul(1_000_003).wrapping_add(number as u64);
                self.attempt(&trial, &mut world, Rng::with_seed(seed))?;
            }
            if matches!(place, Place::Signal | Place::Cluster) {
                self.steps(place, &mut world, &mut rng)?;
            }
        }
        Ok(())
    }

    /// What is tried in a place, apart from the steps of a pass.
    fn trials(&self, place: Place, rng: &mut Rng) -> Vec<Trial> {
        let here: Vec<Fault> = Fault::value_variants()
            .iter()
            .copied()
            .filter(|it| it.places().contains(&place))
            .collect();
        let mut trials: Vec<Trial> =
            here.iter().map(|it| Trial::Faults(place, vec![*it])).collect();
        let combinations = if self.arguments.quick { 1 } else { 6 };
        for _ in 0..combinations {
            let mut several: Vec<Fault> = Vec::new();
            let mut candidates = here.clone();
            candidates.retain(|it| !it.is_alone());
            rng.shuffle(&mut candidates);
            for fault in candidates {
                let clash = several.iter().any(|it| it.about() == fault.about());
                if !clash && several.len() < AT_ONCE {
                    several.push(fault);
                }
            }
            if several.len() > 1 {
                trials.push(Trial::Faults(place, several));
            }
        }
        trials
    }

    /// Interrupts a pass at its steps.
    fn steps(&mut self, place: Place, world: &mut Option<World>, rng: &mut Rng) -> Result<()> {
        let others = [
            Fault::NatsKilled,
            Fault::NatsStopped,
            Fault::NatsSlow,
            Fault::NatsRestarted,
            Fault::PocketBaseKilled,
            Fault::PocketBaseStopped,
            Fault::PocketBaseSlow,
            Fault::PocketBaseRestarted,
        ];
        let names = |fault: Option<Fault>| Trial::step_name(place, fault, "");
        let wanted: Vec<Option<Fault>> = [None]
            .into_iter()
            .chain(others.map(Some))
            .filter(|it| self.wants_some(&names(*it)))
            .collect();
        if wanted.is_empty() {
            return Ok(());
        }
        if !steps::can_trace() {
            for fault in wanted {
                self.tally.skip(&names(fault), "no strace");
            }
            return Ok(());
        }
        let world_here = self.world(place, world, rng.fork())?;
        let all = steps::survey(world_here)?;
        for fault in wanted {
            let mut steps = all.clone();
            if self.arguments.quick && self.arguments.only.is_none() {
                steps = match (place, fault) {
                    (Place::Signal, None) => most_important(&all),
                    _ => vec![all[rng.usize(0..all.len())].clone()],
                };
            }
            for step in steps {
                let rng = rng.fork();
                self.attempt(&Trial::AtStep(place, step, fault), world, rng)?;
            }
        }
        Ok(())
    }

    fn wants(&self, name: &str) -> bool {
        self.arguments.only.as_ref().is_none_or(|it| name.contains(it.as_str()))
    }

    /// Whether one of the steps may be wanted. What they are called is not known yet.
    fn wants_some(&self, name: &str) -> bool {
        let step = self.arguments.only.as_ref().and_then(|it| it.split_once(" at step "));
        step.map_or_else(|| self.wants(name), |(fault, _)| name.starts_with(fault))
    }

    fn world<'a>(
        &self,
        place: Place,
        world: &'a mut Option<World>,
        rng: Rng,
    ) -> Result<&'a mut World> {
        if world.is_none() {
            *world = Some(World::start(place, self.binary, LIMIT, rng)?);
        }
        world.as_mut().context("it was just made")
    }

    /// Tries one thing, and takes down what came of it.
    fn attempt(&mut self, trial: &Trial, world: &mut Option<World>, rng: Rng) -> Result<()> {
        let name = trial.name();
        if !self.wants(&name) {
            return Ok(());
        }
        ensure!(!INTERRUPTED.load(Ordering::SeqCst), "interrupted");
        let here = self.world(trial.place(), world, rng.clone())?;
        here.rng = rng;
        let quick = self.arguments.quick;
        // The servers' helpers in the tests give up loudly.
        let verdict = panic::catch_unwind(AssertUnwindSafe(|| trial.run(here, quick)));
        let verdict = verdict.unwrap_or_else(|_| bail!("it could not be tried to its end"));
        let verdict = verdict.unwrap_or_else(|error| Verdict::Not(vec![format!("{error:#}")]));
        self.tally.answers += here.checker.answers();
        match verdict {
            Verdict::Held { took, latest } => {
                here.shorten_logs();
                self.tally.hold(&name, took, latest);
            }
            Verdict::Skipped(why) => self.tally.skip(&name, &why),
            Verdict::Not(wrongs) => {
                let folder = self.folder(&name)?;
                here.keep_files(&folder, &wrongs)?;
                // Nobody knows what state it is in.
                *world = None;
                println!("✗ {name}");
                for wrong in &wrongs {
                    println!("    {wrong}");
                }
                println!("    files: {}", folder.display());
                println!(
                    "    again: cargo xtask faults --seed {} --only '{name}'{}",
                    self.seed,
                    if quick { " --quick" } else { "" }
                );
                self.tally.not.push(name);
            }
        }
        Ok(())
    }

    /// Where the files of a trial are kept.
    fn folder(&self, name: &str) -> Result<PathBuf> {
        let name = name.replace(|it: char| !it.is_ascii_alphanumeric() && it != '-', "_");
        Ok(tools::target_folder()?.join("faults").join(format!("{}-{name}", self.seed)))
    }
}

impl Trial {
    fn place(&self) -> Place {
        match self {
            Trial::Faults(place, _) | Trial::AtStep(place, ..) => *place,
        }
    }

    fn name(&self) -> String {
        match self {
            Trial::Faults(place, faults) => {
                let names: Vec<String> = faults.iter().map(|it| it.name()).collect();
                format!("{} ({})", names.join(" + "), place.name())
            }
            Trial::AtStep(place, step, fault) => Trial::step_name(*place, *fault, &step.what),
        }
    }

    fn step_name(place: Place, fault: Option<Fault>, what: &str) -> String {
        let fault = fault.map_or_else(|| "pb-nats-killed".into(), Fault::name);
        format!("{fault} at step {what} ({})", place.name())
    }

    fn run(&self, world: &mut World, quick: bool) -> Result<Verdict> {
        match self {
            Trial::Faults(_, faults) => at_once(world, faults, quick),
            Trial::AtStep(_, step, fault) => at_step(world, step, *fault),
        }
    }
}

/// Begins the faults one after the other, ends them in any order, and looks what became of it.
fn at_once(world: &mut World, faults: &[Fault], quick: bool) -> Result<Verdict> {
    if let Some(why) = faults.iter().find_map(|it| it.lacks(world)) {
        return Ok(Verdict::Skipped(why.into()));
    }
    let silent = faults.iter().all(|it| it.is_silent());
    let mut broken = Vec::new();
    for fault in faults {
        broken.push((*fault, fault.begin(world)?));
        if !silent && world.rng.bool() {
            world.change();
        }
    }
    let mut wrongs = Vec::new();
    let mut ask = |world: &mut World, broken: &[(Fault, Broken)]| {
        for (fault, broken) in broken {
            wrongs.extend(fault.ask(world, broken).err().map(|it| format!("{it:#}")));
        }
    };
    ask(world, &broken);
    let longest = match faults {
        // Longer than it takes to notice by oneself.
        [Fault::LiveHeld | Fault::LiveDeaf] if !quick => 150_000,
        // Longer than the others may wait for it.
        [Fault::NodeCutOff | Fault::NodeUnheard] if !quick => 15_000,
        [Fault::ReloadHangs] => 4_000,
        [fault] if !quick && fault.is_alone() => 6_000,
        _ if quick => world.rng.u64(100..700),
        _ => world.rng.u64(100..4_000),
    };
    let over = Instant::now() + Duration::from_millis(longest);
    while Instant::now() < over {
        world.pause(0..longest.min(3_000));
        if !silent {
            world.change();
        }
    }
    // What was said has to stay said.
    if !quick {
        ask(world, &broken);
    }
    world.rng.clone().shuffle(&mut broken);
    for (fault, broken) in broken {
        wrongs.extend(fault.end(world, broken).err().map(|it| format!("{it:#}")));
    }
    let afterwards = |world: &mut World| {
        if faults.iter().any(|it| it.is_about_the_file()) {
            world.stop_nats(0, Signal::KILL);
            world.resume_nats(0);
        }
    };
    let verdict = judge(world, wrongs, afterwards);
    if faults.contains(&Fault::ClockSetBack) {
        world.pb_nats.clear_env();
        world.stop_pb_nats(Signal::TERM);
        world.start_pb_nats();
    }
    Ok(verdict)
}

/// Interrupts a pass at a step.
fn at_step(world: &mut World, step: &Step, fault: Option<Fault>) -> Result<Verdict> {
    world.checker.trouble_begins(Harm::Late, None);
    let signal = if fault.is_some() { Signal::STOP } else { Signal::KILL };
    let reached = steps::interrupt(world, step, signal)?;
    if !reached {
        // It would be stopped there later, when nobody lets it go on.
        world.stop_pb_nats(Signal::KILL);
        world.start_pb_nats();
        return Ok(match judge(world, Vec::new(), |_| ()) {
            Verdict::Held { .. } => Verdict::Skipped("the step was not reached".into()),
            verdict => verdict,
        });
    }
    if let Some(fault) = fault {
        let broken = fault.begin(world)?;
        world.signal_pb_nats(Signal::CONT);
        world.pause(100..700);
        fault.end(world, broken)?;
    } else {
        world.change();
        world.stop_pb_nats(Signal::KILL); // it has ended already
        world.start_pb_nats();
    }
    let verdict = judge(world, Vec::new(), |_| ());
    if fault.is_some() {
        steps::stop(world);
    }
    Ok(verdict)
}

/// Whether all is in step in time after the faults, and was never otherwise than it may be.
///
/// `wrongs`: what was seen already.
fn judge(
    world: &mut World,
    mut wrongs: Vec<String>,
    afterwards: impl FnOnce(&mut World),
) -> Verdict {
    world.checker.trouble_ends();
    let mut slowest = Duration::ZERO;
    let mut wait = |world: &World, what: &str| match world.in_step(LIMIT) {
        Ok(took) => slowest = slowest.max(took),
        Err(wrong) => wrongs.push(format!("not in step within {LIMIT:?} of {what}: {wrong}")),
    };
    wait(world, "the end of the fault");
    // What works, works also for what comes next.
    world.change();
    wait(world, "a change after the fault");
    afterwards(world);
    wait(world, "a restart of nats-server after the fault");
    // What is so has to be said, too.
    wrongs.extend(world.says_in_step(LIMIT).err().map(|it| format!("{it:#}")));
    let seen = world.checker.seen();
    wrongs.extend(seen.wrongs);
    if let Some(ended) = world.running.as_ref().and_then(|it| it.ended(Duration::ZERO)) {
        wrongs.push(format!("pb-nats has ended: {ended}"));
    }
    if wrongs.is_empty() {
        Verdict::Held { took: slowest, latest: seen.latest }
    } else {
        Verdict::Not(wrongs)
    }
}

/// Those that everything hangs on: write, fsync, rename, reload, verify.
fn most_important(steps: &[Step]) -> Vec<Step> {
    const WHAT: [&str; 8] = [
        "openat a staged file",
        "fchmod",
        "fsync",
        "renameat auth.conf",
        "openat .auth.conf.proven",
        "kill SIGHUP",
        "write to another thread",
        "renameat .auth.conf.proven",
    ];
    let first = |what: &&str| steps.iter().find(|it| it.what == **what).cloned();
    WHAT.iter().filter_map(first).collect()
}

impl Tally {
    fn hold(&mut self, name: &str, took: Duration, latest: Duration) {
        self.held += 1;
        println!(
            "✓ {name}: in step after {:.2} s, nobody in longer than {:.2} s",
            took.as_secs_f64(),
            latest.as_secs_f64()
        );
        if took > self.slowest.0 {
            self.slowest = (took, name.into());
        }
        if latest > self.latest.0 {
            self.latest = (latest, name.into());
        }
    }

    fn skip(&mut self, name: &str, why: &str) {
        println!("- {name}: skipped: {why}");
        *self.skipped.entry(why.into()).or_default() += 1;
    }

    fn tell(&self, took: Duration) {
        let skipped: usize = self.skipped.values().sum();
        let tried = self.held + self.not.len();
        println!(
            "\n{tried} faults tried, {} held, {skipped} skipped, in {:.0} s; {} answers of \
             nats-server looked at",
            self.held,
            took.as_secs_f64(),
            self.answers
        );
        for (why, times) in &self.skipped {
            println!("  {times} × {why}");
        }
        let (slowest, name) = &self.slowest;
        println!("longest until in step: {:.2} s, {name}", slowest.as_secs_f64());
        let (latest, name) = &self.latest;
        println!("longest in after being withdrawn: {:.2} s, {name}", latest.as_secs_f64());
        for name in &self.not {
            println!("✗ {name}");
        }
    }
}
