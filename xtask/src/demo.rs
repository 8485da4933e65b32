//! pb-nats at work, seen by real clients.

use std::{
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use serde_json::json;

use crate::{
    cargo,
    support::{Client, Nats, Pb, PbNats, Running, SUPERUSER, poll},
    tools,
};

/// Within this, a change in PocketBase has to be in force.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Shows it all. With `check` it does not stay, and whatever is not as it should be is an error.
pub(crate) fn run(check: bool) -> Result<()> {
    tools::install()?;
    let binary = cargo::build()?;
    // Ctrl-C is a message, so that everything we start is ended by us, and in order.
    let (interrupt, interrupted) = mpsc::channel();
    ctrlc::set_handler(move || {
        let _ = interrupt.send(());
    })?;

    let pb = Pb::start();
    let nats = Nats::start();
    let news_desk = pb.role("writer", &["news.>"], &["news.>", "_INBOX.>"]);
    let audience = pb.role("reader", &[], &["news.>"]);
    let ann = pb.user("ann", "ann-password", &news_desk);
    pb.user("bob", "bob-password", &audience);
    pb.user("cleo", "cleo-password", "");
    let pb_nats = PbNats::between(binary, &pb, &nats);

    println!(
        "\nA PocketBase with two roles and three users, a nats-server, and pb-nats between them:\n"
    );
    let started = Instant::now();
    let running = pb_nats.run();
    let mut scene = Scene::default();
    scene.since(started, "pb-nats starts, and the users of PocketBase are let in", || {
        let came_up = || {
            let up = nats.accepts("cleo", "cleo-password").then_some(true);
            up.or_else(|| running.ended(Duration::ZERO).map(|_| false))
        };
        poll(10 * AT_ONCE, came_up) == Some(true)
    });
    scene.verdict(&running)?;

    scene.show("nobody else is: without a name, with a wrong one, with a wrong password", || {
        !nats.is_open() && !nats.accepts("eve", "") && !nats.accepts("ann", "bob-password")
    });
    let mut writes = nats.client("ann", "ann-password");
    let mut reads = nats.client("bob", "bob-password");
    let mut plain = nats.client("cleo", "cleo-password");
    reads.subscribe("news.>");
    scene.show("ann, a writer, publishes news, and bob, a reader, gets them", || {
        reads.flush().is_ok() && hears(&mut writes, &mut reads)
    });
    scene.show("ann may do nothing that her role does not say", || {
        !writes.may_publish("orders.new") && !writes.may_subscribe("orders.>")
    });
    scene.show("bob may publish nothing: an empty list is nothing", || {
        !reads.may_publish("news.today") && !reads.may_publish("PUBLIC.hello")
    });
    scene.show("cleo, without a role, has the defaults and no more", || {
        plain.may_publish("PUBLIC.hello") && !plain.may_publish("news.today")
    });

    let changed = Instant::now();
    pb.update("nats_roles", &audience, &json!({ "publish_permissions": ["letters.>"] }));
    scene.since(changed, "PocketBase: readers may write letters. NATS: bob does", || {
        poll(AT_ONCE, || reads.may_publish("letters.bob").then_some(())).is_some()
            && !reads.may_publish("news.today")
    });
    let changed = Instant::now();
    pb.update("nats_roles", &audience, &json!({ "subscribe_permissions": ["weather.>"] }));
    scene.since(changed, "PocketBase: readers get no news any more. NATS: nor does bob", || {
        poll(AT_ONCE, || (!hears(&mut writes, &mut reads)).then_some(())).is_some()
            && reads.may_subscribe("weather.>")
            && !reads.may_subscribe("news.>")
    });
    let changed = Instant::now();
    pb.update("nats_users", &ann, &json!({ "active": false }));
    scene.since(changed, "PocketBase: ann is not active. NATS: her connection is cut", || {
        writes.closed(AT_ONCE).is_some()
    });
    scene.show("and she is not let in again, while bob is", || {
        !nats.accepts("ann", "ann-password") && nats.accepts("bob", "bob-password")
    });
    let changed = Instant::now();
    pb.update("nats_users", &ann, &json!({ "active": true }));
    scene.since(changed, "PocketBase: ann is active again. NATS: she is let in", || {
        poll(AT_ONCE, || nats.accepts("ann", "ann-password").then_some(())).is_some()
    });
    scene.verdict(&running)?;

    if !check {
        let (superuser, password) = SUPERUSER;
        println!(
            "
PocketBase   {}/_/   {superuser} / {password}
nats-server  {}   ann / ann-password, bob / bob-password, cleo / cleo-password
settings     {}
auth file    {}

Change a role or a user in PocketBase, and see what NATS lets them do. Ctrl-C ends it all.",
            pb.url(),
            nats.url(),
            pb_nats.settings_file().display(),
            nats.auth_file().display(),
        );
        while interrupted.recv_timeout(AT_ONCE) == Err(RecvTimeoutError::Timeout) {
            if let Some(status) = running.ended(Duration::ZERO) {
                bail!("pb-nats has ended, {status}:\n{}", running.lines().join("\n"));
            }
        }
        println!();
    }
    // The servers end when they are dropped; pb-nats has to know how to.
    let status = running.terminate();
    ensure!(status.success(), "pb-nats ended badly, {status}:\n{}", running.lines().join("\n"));
    Ok(())
}

/// What was looked at, line by line.
#[derive(Default)]
struct Scene {
    failed: usize,
}

impl Scene {
    /// Looks, and says what was seen and how long it took.
    fn show(&mut self, what: &str, look: impl FnOnce() -> bool) {
        self.since(Instant::now(), what, look);
    }

    /// Looks, and says what was seen and how long ago it began.
    fn since(&mut self, start: Instant, what: &str, look: impl FnOnce() -> bool) {
        let mark = if look() {
            '✓'
        } else {
            self.failed += 1;
            '✗'
        };
        println!("{mark} {:>5} ms  {what}", start.elapsed().as_millis());
    }

    /// An error if anything was not as it should be.
    fn verdict(&self, running: &Running) -> Result<()> {
        let failed = self.failed;
        ensure!(failed == 0, "{failed} × ✗; pb-nats says:\n{}", running.lines().join("\n"));
        Ok(())
    }
}

/// Whether the one gets the news that the other publishes now.
fn hears(writes: &mut Client, reads: &mut Client) -> bool {
    while reads.next(Duration::ZERO).is_some() {}
    // When the server has answered both, the message was either delivered or will never be.
    writes.may_publish("news.today")
        && reads.flush().is_ok()
        && reads.next(Duration::ZERO).is_some()
}
