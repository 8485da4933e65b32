//! Whether the checker notices what it is there to notice.

use std::{fs, path::Path, time::Duration};

use anyhow::{Result, ensure};
use fastrand::Rng;

use super::{
    alone,
    fault::{Broken, Fault},
    world::{Place, World, eve},
};
use crate::support::{Signal, bcrypt, poll};

/// Everything is broken by hand, while pb-nats is stopped, and has to be noticed.
pub(super) fn run(binary: &Path, rng: Rng) -> Result<()> {
    // PocketBase's word has to be in force within less than usual, so that it takes less time.
    let limit = Duration::from_millis(1500);
    let mut world = World::start(Place::Signal, binary, limit, rng)?;
    let wrongs = |world: &World, word: &str| {
        let noticed = poll(Duration::from_secs(10), || {
            world.checker.wrongs().iter().any(|it| it.contains(word)).then_some(())
        });
        let all = world.checker.seen().wrongs;
        ensure!(noticed.is_some(), "the checker does not notice: {word}; only {all:?}");
        Ok(())
    };
    ensure!(world.checker.wrongs().is_empty(), "all was well: {:?}", world.checker.wrongs());
    world.signal_pb_nats(Signal::STOP);
    let good = fs::read_to_string(world.nats[0].auth_file())?;
    let load = |world: &World, text: &str| {
        ensure!(text != good, "the file was to be another");
        world.nats[0].load(text).map_err(anyhow::Error::msg)
    };

    let eve = eve();
    let line = format!("  users = [\n    {{user: eve, password: \"{}\"}}", bcrypt(&eve.password));
    load(&world, &good.replace("  users = [", &line))?;
    wrongs(&world, "intrusion: \"eve\" with \"eve-password\"; it was never allowed")?;

    load(&world, &good.replace("\"staff.>\"", "\">\""))?;
    wrongs(&world, "intrusion: \"ann\" on \"payroll\"")?;

    load(&world, "authorization { users = [] }")?;
    wrongs(&world, "intrusion: \"\" with \"\"")?;

    let without: Vec<&str> = good.lines().filter(|it| !it.contains("\"ann\"")).collect();
    load(&world, &without.join("\n"))?;
    wrongs(&world, "lapse: \"ann\" with \"ann-password\" was refused")?;
    world.nats[0].load(&good).map_err(anyhow::Error::msg)?;
    world.checker.seen();
    ensure!(world.in_step(limit).is_ok(), "all is well again");
    load(&world, &without.join("\n"))?;
    wrongs(&world, "lapse: the connection of ann did not last")?;
    world.nats[0].load(&good).map_err(anyhow::Error::msg)?;
    ensure!(world.in_step(2 * limit).is_ok(), "all is well again");
    world.checker.seen();

    // One that is stopped says nothing; one that goes on says nothing of what is not so.
    ensure!(world.says_in_step(limit).is_err(), "pb-nats is stopped, and is said to say something");
    world.signal_pb_nats(Signal::CONT);
    world.says_in_step(4 * limit)?;
    let silence = Fault::NatsDead.tells(&world, &Broken::default(), limit);
    ensure!(silence.is_err(), "all is well, and pb-nats is said to say otherwise");
    alone::nobody_reloads(&world, &[&world.nats[0]], limit, || ())?;
    let reloads = || world.nats[0].signal(Signal::HUP);
    let quiet = alone::nobody_reloads(&world, &[&world.nats[0]], limit, reloads);
    ensure!(quiet.is_err(), "the reload of a server is not noticed");
    world.signal_pb_nats(Signal::STOP);

    // Nothing of what PocketBase says from now on is put in force.
    world.change_password();
    let stayed = world.in_step(limit);
    ensure!(stayed.is_err(), "the checker takes what is not in step for in step");
    wrongs(&world, "last allowed")?;
    world.signal_pb_nats(Signal::CONT);
    ensure!(world.in_step(4 * limit).is_ok(), "all is well again");
    Ok(())
}
