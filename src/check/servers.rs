//! The servers: whether they can be reloaded and asked, how long each reload keeps log-ins waiting, and
//! whether they run the file.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{Line, open_servers};
use crate::{
    auth::{ConnectionType, Desired, User, counted},
    causes::chain,
    engine::config::{self, AuthFile, MainConfig, Servers, SyncStatus},
    nats::{CommandLine, Running, ServerError},
    options::Options,
    reconcile::Plan,
    state::{Adopt, StateFile},
    status::{Stranger, short},
};

/// The oldest that we work with.
const OLDEST: (u32, u32) = (2, 10);
/// How long a client waits for its log-in by default.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) async fn look(
    options: &Options,
    file: &mut AuthFile,
    config: Option<&MainConfig>,
    plan: Option<&Plan>,
    lines: &mut Vec<Line>,
) {
    // What is wrong with the settings was told when the rest was opened.
    let Ok(mut servers) = open_servers(options) else { return };
    let answers = servers.running().await;
    if answers.is_empty() {
        let started = options.nats.config_file.as_deref().and_then(CommandLine::of);
        let told = started.and_then(|it| {
            let (url, option) = it.monitor?;
            Some((url, format!("nats-server, process {}, was started with `{option}`", it.pid)))
        });
        let url = || Some((config?.monitor_url()?, "the main config has it".to_owned()));
        let hint = match told.or_else(url) {
            Some((url, why)) => format!("set `monitor_url = {url:?}` in [nats]: {why}"),
            None => {
                "set `monitor_url` or `system_url` in [nats]; where nats-server has no monitor yet, \
                 `http: \"127.0.0.1:8222\"` in its main config (or `-m 8222` on its command line) \
                 opens one"
                    .into()
            }
        };
        lines.push(Line::doubtful(
            "servers.nobody_to_ask",
            "nothing to ask what they run, so nothing will be proven",
            &*hint,
        ));
    }
    for answer in &answers {
        lines.push(match answer {
            Ok(it) => Line::good(
                "servers.answers",
                format!("{} answers, version {}", it.name, it.version),
            ),
            Err(error) => Line::wrong("servers.silent", chain(error), error.hint()),
        });
    }
    for it in servers.strangers() {
        let cluster = if it.cluster.is_empty() { "no cluster" } else { &it.cluster };
        lines.push(Line::good(
            "servers.stranger",
            format!(
                "{}, version {}, of {cluster}: {}; if it is to, list its address in `system_url`",
                it.name,
                it.version,
                Stranger::NOTE
            ),
        ));
    }
    let silent = answers.iter().any(Result::is_err);
    let running: Vec<Running> = answers.into_iter().filter_map(Result::ok).collect();
    versions(&running, file.judge_version().await.as_deref(), lines);
    if let (Some(config), [running]) = (config, &running[..]) {
        for (setting, here, there) in config.not_reloadable(&running.fixed) {
            lines.push(Line::doubtful(
                "servers.needs_restart",
                format!(
                    "`{setting}` is {here:?} in the main config and {there:?} in {}, which refuses \
                     every reload until the two agree",
                    running.name
                ),
                "restart nats-server, or take the change back",
            ));
        }
    }
    for server in plan.iter().flat_map(|it| &it.servers) {
        lines.push(match &server.state {
            SyncStatus::InStep { note: None, .. } => {
                Line::good("servers.in_step", server.to_string())
            }
            SyncStatus::InStep { note: Some(_), .. } => Line::doubtful(
                "servers.in_step_with_note",
                server.to_string(),
                "reload nats-server when the main config is as it should be",
            ),
            // That there is nobody to ask is told above.
            SyncStatus::Unverified { .. } => continue,
            SyncStatus::NotInStep { why } => {
                Line::wrong("servers.not_in_step", server.to_string(), why.hint())
            }
        });
    }
    for way in servers.rehearse() {
        lines.push(match way {
            Ok(way) => Line::good("reload.ready", way),
            Err(error) => Line::wrong("reload.impossible", chain(&error), error.hint()),
        });
    }
    // Without the records, the file has the passwords too.
    let mut former = || file.state.read(Adopt::Yes).ok()?.desired;
    let former = if plan.is_none() { former() } else { None };
    if let Some(desired) = plan.map(|it| &*it.desired).or(former.as_deref()) {
        leaf_nodes(options, config, desired, lines);
        if !silent {
            freeze(options, &mut servers, desired, lines).await;
        }
    }
}

/// What becomes of leaf nodes of users who lose something: no reload looks at them.
fn leaf_nodes(
    options: &Options,
    config: Option<&MainConfig>,
    desired: &Desired,
    lines: &mut Vec<Line>,
) {
    let ways = [ConnectionType::Leafnode, ConnectionType::LeafnodeWs];
    let may = |it: &&User| ways.into_iter().any(|way| it.connects_by(way));
    let count = desired.users.values().filter(may).count();
    if count == 0 || !config.is_some_and(MainConfig::takes_leaf_nodes) {
        return;
    }
    let text =
        format!("{} may connect leaf nodes, at which no reload looks", counted(count, "user"));
    let hint = "set `system_url` in [nats], so that pb-nats closes them; or let \
                `allowed_connection_types` of the records name the other ways only";
    lines.push(if options.nats.system_url.is_some() {
        let closed = "those of a user who has less are closed over the system account";
        Line::good("leaf_nodes.closed", format!("{text}; {closed}"))
    } else if options.nats.monitor_url.is_empty() {
        Line::doubtful(
            "leaf_nodes.unseen",
            format!("{text}; of a user who has less they stay connected, and nobody notices"),
            hint,
        )
    } else {
        Line::doubtful(
            "leaf_nodes.stay",
            format!(
                "{text}; of a user who has less they stay connected, and the file is not called in \
                 force until they are gone"
            ),
            hint,
        )
    });
}

pub(super) async fn try_reload(options: &Options) -> Vec<Line> {
    let mut servers = match open_servers(options) {
        Ok(servers) => servers,
        Err(line) => return vec![line],
    };
    let there = StateFile::new(options).read(Adopt::Yes).ok().and_then(|it| it.desired);
    let expected = match &there {
        Some(desired) => servers.freeze(desired).await,
        None => None,
    };
    let tried = servers.try_reload().await;
    if tried.is_empty() {
        let text = "nothing in [nats] says how to reload";
        let hint = "set `reload_command`, `pid_file` or `system_url` in [nats]";
        return vec![Line::wrong("reload.failed", text, Some(hint.into()))];
    }
    tried.into_iter().map(|(server, outcome)| tried_line(&server, outcome, expected)).collect()
}

fn tried_line(
    server: &str,
    outcome: Result<Option<Duration>, Arc<ServerError>>,
    expected: Option<Duration>,
) -> Line {
    let expected = expected.filter(|it| !it.is_zero());
    let expected = expected.map(|it| format!("; for {} of it nobody was to be let in", short(it)));
    match outcome {
        Ok(Some(took)) => Line::good(
            "reload.proven",
            format!(
                "{server} has reloaded after {took:.1?}, as its load time shows{}",
                expected.unwrap_or_default()
            ),
        ),
        Ok(None) => Line::doubtful(
            "reload.unproven",
            format!("{server}: told to, with nobody to ask whether a server has reloaded"),
            "set `monitor_url` or `system_url` in [nats]",
        ),
        Err(error) => Line::wrong("reload.failed", chain(error.as_ref()), error.hint()),
    }
}

fn versions(running: &[Running], judge: Option<&str>, lines: &mut Vec<Line>) {
    for it in running.iter().filter(|it| number(&it.version).is_some_and(|it| it < OLDEST)) {
        lines.push(Line::wrong(
            "servers.too_old",
            format!("{} is {}; pb-nats works with 2.10 and later", it.name, it.version),
            Some("update nats-server".into()),
        ));
    }
    let versions: BTreeSet<&str> = running.iter().map(|it| &*it.version).collect();
    let all: Vec<&str> = versions.iter().copied().collect();
    if all.len() > 1 {
        lines.push(Line::doubtful(
            "servers.mixed_versions",
            format!("servers of one cluster have different versions: {}", all.join(", ")),
            "fine while an update is under way; digests of different versions prove nothing, so load \
             times have to",
        ));
    } else if let ([server], Some(judge)) = (&all[..], judge)
        && *server != judge
    {
        lines.push(Line::doubtful(
            "servers.other_binary",
            format!(
                "they run {server}, and `nats.server_binary` is {judge}: what it accepts they may not, \
                 and its digests are not theirs"
            ),
            "set `nats.server_binary` to the program that the server runs",
        ));
    }
}

fn number(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map_while(|it| it.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

/// How long each reload keeps new log-ins waiting: it checks the password of every client again, one
/// after another.
async fn freeze(
    options: &Options,
    servers: &mut Servers,
    desired: &Desired,
    lines: &mut Vec<Line>,
) {
    let costs: BTreeMap<&str, u8> = desired
        .users
        .iter()
        .filter_map(|(name, user)| Some((&**name, user.credential.bcrypt_cost()?)))
        .collect();
    let Some(clients) = servers.clients().await else {
        let all: Duration = costs.values().map(|cost| config::checks(1, *cost)).sum();
        let dearest = dearest(costs.iter().map(|(name, cost)| (*name, 1, *cost)));
        lines.push(Line::doubtful(
            "reload.freeze_unknown",
            format!(
                "how many clients are connected cannot be asked, so not how long a reload keeps new \
                 log-ins waiting: {} for one of each user{dearest}",
                about(all)
            ),
            "set `monitor_url` or `system_url` in [nats]",
        ));
        return;
    };
    let on = |clients: &BTreeMap<String, usize>| -> Duration {
        clients.iter().map(|(name, count)| times(*count, costs.get(&**name).copied())).sum()
    };
    // Servers reload side by side.
    let Some(worst) = clients.iter().max_by_key(|it| on(it)) else { return };
    let (takes, count) = (on(worst), worst.values().sum::<usize>());
    let dearest = dearest(
        worst.iter().filter_map(|(name, count)| Some((&**name, *count, *costs.get(&**name)?))),
    );
    let clients = if count == 1 { "1 client".into() } else { format!("{count} clients") };
    let text = format!(
        "with {clients} connected, each reload keeps new log-ins waiting for {}",
        about(takes)
    );
    let cheaper = "hash long random secrets at a low cost (`pb-nats hash --cost 4`), or give those \
                   users nkeys, which cost nothing";
    if takes > options.nats.reload_timeout {
        let hint = format!("raise `nats.reload_timeout`, and {cheaper}");
        lines.push(Line::wrong(
            "reload.longer_than_timeout",
            format!("{text}, more than `nats.reload_timeout`{dearest}"),
            Some(hint),
        ));
    } else if takes > PATIENCE {
        lines.push(Line::doubtful("reload.freeze", format!("{text}{dearest}"), cheaper));
    } else if takes.is_zero() {
        let text = format!("with {clients} connected, a reload keeps nobody waiting");
        lines.push(Line::good("reload.freeze", text));
    } else {
        lines.push(Line::good("reload.freeze", text));
    }
}

/// Whose passwords take longest: name, number of clients, cost.
fn dearest<'a>(users: impl Iterator<Item = (&'a str, usize, u8)>) -> String {
    const MOST: usize = 5;
    let mut users: Vec<_> = users.collect();
    users.sort_by_key(|(_, count, cost)| std::cmp::Reverse(times(*count, Some(*cost))));
    let shown = users.iter().take(MOST).map(|(name, count, cost)| {
        format!("{name:?} {} ({count} × cost {cost})", about(times(*count, Some(*cost))))
    });
    let shown: Vec<String> = shown.collect();
    if shown.is_empty() { String::new() } else { format!("; most for {}", shown.join(", ")) }
}

/// What a reload spends on so many clients of a user.
fn times(count: usize, cost: Option<u8>) -> Duration {
    cost.map_or(Duration::ZERO, |it| config::checks(count, it))
}

fn about(time: Duration) -> String {
    match time.as_secs_f64() {
        0.0 => "no time".into(),
        it if it < 1.0 => "less than a second".into(),
        it if it < 120.0 => format!("about {it:.0} s"),
        it => format!("about {:.0} min", it / 60.0),
    }
}

#[cfg(test)]
mod tests {
    use super::{about, dearest, times};

    #[test]
    fn a_reload_takes_twice_as_long_for_each_step_of_the_cost() {
        assert_eq!(about(times(1000, Some(10))), "about 63 s");
        assert_eq!(about(times(1000, Some(11))), "about 2 min");
        assert_eq!(about(times(3000, Some(4))), "about 3 s");
        assert_eq!(about(times(900, None)), "no time");
        let all = [("a", 1, 4), ("b", 900, 10), ("c", 1, 14)];
        let text = dearest(all.into_iter());
        let at = |name: &str| text.find(name).unwrap();
        assert!(at("\"b\"") < at("\"c\"") && at("\"c\"") < at("\"a\""), "{text}");
    }
}
