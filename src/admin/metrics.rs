//! The status in numbers, as `OpenMetrics`.

use std::{fmt::Write as _, sync::atomic::AtomicU64, time::Duration};

use jiff::Timestamp;
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::{Registry, Unit},
};

use crate::{
    source::Kind,
    status::{Findings, ServerStatus, State, Status, Tally, Watch},
};

type Level = Gauge<f64, AtomicU64>;
type Levels = Family<Vec<(&'static str, String)>, Level>;

/// All metrics, as they are now.
pub(super) fn text(watch: &Watch) -> String {
    written(watch.tally(), &watch.now())
}

/// The page that explains them.
pub fn reference() -> String {
    let watch = Watch::default();
    let mut status = watch.now();
    status.source.kind = Kind::PocketBase;
    let (clients, reload_freeze) = (Some(0), Some(Duration::ZERO));
    status.servers.push(ServerStatus { clients, reload_freeze, ..ServerStatus::default() });
    status.findings =
        Findings { by_kind: [(String::new(), 1)].into(), ..Findings::default() }.into();
    let mut page = String::from(
        "# Metrics\n\n\
         `pb-nats run` tells them at `/metrics` of the address in `admin.listen`, as OpenMetrics. \
         This page is generated: `cargo xtask docs`.\n\n\
         | metric | type | labels | meaning |\n| --- | --- | --- | --- |\n",
    );
    let text = written(watch.tally(), &status);
    let mut help = "";
    for line in text.lines() {
        if let Some(it) = line.strip_prefix("# HELP ") {
            help = it.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some(it) = line.strip_prefix("# TYPE ") {
            let (name, kind) = it.split_once(' ').unwrap_or((it, ""));
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            let labels = text.lines().find_map(|it| it.strip_prefix(name)?.split_once('{'));
            let label = labels.and_then(|(_, it)| it.split('=').next()).filter(|it| *it != "le");
            let label = label.map(|it| format!("`{it}`")).unwrap_or_default();
            let _ = writeln!(page, "| `{name}{suffix}` | {kind} | {label} | {help} |");
        }
    }
    page
}

fn written(tally: &Tally, status: &Status) -> String {
    let mut text = String::new();
    encode(&mut text, &registry(tally, status)).expect("a string takes anything");
    text
}

fn registry(tally: &Tally, status: &Status) -> Registry {
    let Status { source, pass, servers, findings, .. } = status;
    let mut all = Registry::with_prefix("pb_nats");
    let version = Info::new([("version", status.version.clone())]);
    all.register("build", "The version of pb-nats", version);
    let time = |at: Option<Timestamp>| level(at.map_or(0.0, |it| it.as_duration().as_secs_f64()));
    let seconds = Unit::Seconds;

    let help = "Whether all that PocketBase says, but for what the settings let wait or ignore, is proven \
                to be in force on every server, and all of them answer";
    all.register("in_step", help, level(f64::from(status.state == State::InStep)));
    let help = "When the process started, in Unix time";
    all.register_with_unit("start_time", help, seconds.clone(), time(Some(status.started)));
    let help = "When the last pass began that has ended, in Unix time; 0: none has";
    all.register_with_unit(
        "last_attempt_timestamp",
        help,
        seconds.clone(),
        time(pass.last_attempt),
    );
    let help = "When the last pass ended that put everything in force, in Unix time; 0: none has";
    all.register_with_unit(
        "last_success_timestamp",
        help,
        seconds.clone(),
        time(pass.last_success),
    );

    let help = "Passes, by outcome: success, or the step that failed";
    all.register("passes", help, tally.passes.clone());
    let help = "How long a pass took";
    all.register_with_unit("pass_duration", help, seconds.clone(), tally.pass_seconds.clone());
    let help = "How long a step of a pass took";
    all.register_with_unit("step_duration", help, seconds.clone(), tally.steps.clone());
    let help = "From the hint that something changed until every server was proven to run it";
    let enforced = tally.enforced_seconds.clone();
    all.register_with_unit("change_to_enforced", help, seconds.clone(), enforced);

    let help = "Servers, by state: in_step, not_in_step or unverified";
    let of = |state| servers.iter().filter(|it| it.state == state).count();
    let states = [
        ("in_step", of(State::InStep)),
        ("not_in_step", of(State::NotInStep)),
        ("unverified", of(State::Unverified)),
    ];
    let states = states.into_iter().map(|(state, count)| (state, number(count)));
    all.register("servers", help, levels("state", states));
    let each = |value: fn(&ServerStatus) -> Option<f64>| {
        levels("server", servers.iter().filter_map(|it| Some((it.server.as_str(), value(it)?))))
    };
    let help = "Whether this server is proven to run the auth file, and answers";
    all.register("server_in_step", help, each(|it| Some((it.state == State::InStep).into())));
    let help = "Clients connected to this server";
    all.register("server_clients", help, each(|it| Some(number(it.clients?))));
    let help = "For how long a reload of this server would let nobody in, estimated";
    let freeze = each(|it| Some(it.reload_freeze?.as_secs_f64()));
    all.register_with_unit("server_reload_freeze", help, seconds.clone(), freeze);

    all.register("users", "Users in the auth file", level(number(status.users)));
    all.register("roles", "Roles in PocketBase", level(number(status.roles)));
    let help = "What could not be honoured in the records, by kind";
    let kinds = findings.by_kind.iter().map(|(kind, count)| (kind.as_str(), number(*count)));
    all.register("findings", help, levels("kind", kinds));
    let help = "Records that are left out of NATS for a finding";
    all.register("records_left_out", help, level(number(findings.left_out)));
    let help = "Users who would be removed by the pass that is held back; 0: none is";
    let held_back = pass.failure.as_ref().and_then(|it| it.held_back.as_ref());
    all.register("held_back_users", help, level(number(held_back.map_or(0, |it| it.count))));

    all.register("reloads", "Reloads that were ordered and proven", tally.reloads.clone());
    let help = "From the order to reload until the server was proven to run the file";
    let reloads = tally.reload_seconds.clone();
    all.register_with_unit("reload_duration", help, seconds.clone(), reloads);
    let help = "For how long the next reload is expected to let nobody in, by who was connected \
                after the last; 0 where nobody tells";
    let freeze = tally.freeze_predicted.clone();
    all.register_with_unit("reload_freeze_predicted", help, seconds.clone(), freeze);
    let help =
        "The same as the last reload showed it: not less than that, and more on a slower machine";
    let freeze = tally.freeze_measured.clone();
    all.register_with_unit("reload_freeze_measured", help, seconds.clone(), freeze);
    let help = "For how long changes by which nobody has less still wait for `sync.max_reload_share`; \
                0: none do";
    let left = pass.waiting.map_or(0.0, |it| it.until.duration_since(status.now).as_secs_f64());
    all.register_with_unit("reload_waiting", help, seconds, level(left.max(0.0)));
    let help = "Connections closed since their users have less than before";
    all.register("cut_off_connections", help, tally.kicks.clone());

    let help = "Whether there is a live connection to PocketBase, and it answers";
    let connected = f64::from(source.connected_since.is_some());
    // A database file is looked at without one.
    if source.kind == Kind::PocketBase {
        all.register("source_connected", help, level(connected));
    }
    let help = "Collections whose changes do not come over that connection, but are noticed by the resync \
                only";
    if source.kind == Kind::PocketBase {
        let unheard = u32::try_from(source.unheard.len()).unwrap_or(u32::MAX);
        all.register("source_unheard_collections", help, level(unheard.into()));
    }
    let help = "How often that connection broke and had to be made again";
    let reconnects: Counter = Counter::default();
    reconnects.inc_by(source.reconnects);
    all.register("source_reconnects", help, reconnects);
    all
}

fn level(value: f64) -> Level {
    let level = Level::default();
    level.set(value);
    level
}

fn levels<'a>(label: &'static str, values: impl Iterator<Item = (&'a str, f64)>) -> Levels {
    let levels = Levels::default();
    for (name, value) in values {
        levels.get_or_create(&vec![(label, name.to_owned())]).set(value);
    }
    levels
}

#[expect(clippy::cast_precision_loss, reason = "no one has 2^52 of anything")]
fn number(count: impl TryInto<u64>) -> f64 {
    count.try_into().unwrap_or(u64::MAX) as f64
}
