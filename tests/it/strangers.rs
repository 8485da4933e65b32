//! Servers that share the system account with ours, and have a config of their own.

use std::fs;

use serde_json::{Value, json};

use crate::{
    PB_NATS,
    status::{address, metrics, until, value},
    support::{
        Nats, Pb, PbNats, Running, SYSTEM_ACCOUNT, SYSTEM_USER, Setup, eventually, free_address,
    },
};

const PASSWORD: &str = "open sesame";

fn loaded(nats: &Nats) -> Value {
    nats.varz()["config_load_time"].clone()
}

/// A PocketBase with ann the clerk, and pb-nats for these servers, over the system account.
fn town(servers: &[Nats], url: &str) -> (Pb, PbNats) {
    let pb = Pb::start();
    pb.user("ann", PASSWORD, &pb.role("clerk", &["orders.>"], &["_INBOX.>"]));
    let mut pb_nats = PbNats::between(PB_NATS, &pb, &servers[0]);
    pb_nats.unset("nats.monitor_url");
    pb_nats.unset("nats.pid_file");
    pb_nats.set("nats.system_url", url);
    pb_nats.set("nats.system_user", SYSTEM_USER.0);
    pb_nats.set("nats.system_password", SYSTEM_USER.1);
    pb_nats.set("pocketbase.resync_interval", "500ms");
    pb_nats.set("admin.listen", "127.0.0.1:0");
    (pb, pb_nats)
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|it| it["server"].as_str().unwrap()).collect()
}

/// Several passes after it is in force and this stranger is known, nobody has reloaded any more.
fn nobody_reloads(running: &Running, servers: &[&Nats], stranger: &str) -> Value {
    let listen = address(running);
    let told =
        until(listen, |it| it["state"] == "in_step" && names(&it["strangers"]).contains(&stranger));
    let before: Vec<Value> = servers.iter().map(|it| loaded(it)).collect();
    let passes = || value(&metrics(listen), "pb_nats_passes_total{outcome=\"success\"}");
    let begun = passes();
    eventually("there are passes", || (passes() >= begun + 5.0).then_some(()));
    let after: Vec<Value> = servers.iter().map(|it| loaded(it)).collect();
    assert_eq!(before, after);
    told
}

/// Its config is its owner's, and it takes no users from our file.
#[test]
fn a_leaf_node_that_shares_the_system_account_is_left_alone() {
    let door = free_address();
    let hub = format!("leafnodes {{ listen: \"{door}\" }}\n{SYSTEM_ACCOUNT}");
    for clustered in ["", "cluster { name: \"test\", listen: \"127.0.0.1:-1\" }"] {
        let extra = format!("{clustered}\n{hub}");
        let servers = [Nats::with(Setup { extra: &extra, ..Setup::default() })];
        let (user, password) = SYSTEM_USER;
        let leaf = format!(
            "server_name: \"leaf\"\nleafnodes {{ remotes: [ \
             {{ url: \"nats-leaf://{user}:{password}@{door}\", account: SYS }} ] }}\n{SYSTEM_ACCOUNT}"
        );
        let leaf = Nats::with(Setup { extra: &leaf, ..Setup::default() });
        eventually("the leaf is there", || (servers[0].varz()["leafnodes"] == 1).then_some(()));
        let started = loaded(&leaf);

        let (_pb, mut pb_nats) = town(&servers, &servers[0].url());
        for signal in [false, true] {
            if signal {
                pb_nats.set("nats.pid_file", servers[0].pid_file().display().to_string());
            }
            let running = pb_nats.run();
            let told = nobody_reloads(&running, &[&servers[0], &leaf], "leaf");
            assert_eq!(names(&told["servers"]).len(), 1, "{told:#}");
            assert!(told["summary"].as_str().unwrap().starts_with("In force on 1 of 1 server"));
            assert_eq!(loaded(&leaf), started, "it was told to reload");
            assert!(servers[0].accepts("ann", PASSWORD));
            running.terminate();
        }
        let checked = pb_nats.command(&["check"]).success().stdout;
        let line = checked.lines().find(|it| it.contains("leaf, version ")).expect(&checked);
        assert!(line.contains("need not run the auth file, and is told nothing"), "{line}");
        assert!(checked.contains(": in step, shown by "), "{checked}");
    }
}

/// A supercluster: another cluster's servers count where one of them is listed.
#[test]
fn of_two_clusters_behind_gateways_those_count_that_the_settings_lead_to() {
    let doors = [free_address(), free_address()];
    let cluster = |name: &str, mine: usize| {
        format!(
            "server_name: \"{name}-1\"\ncluster {{ name: \"{name}\", listen: \"127.0.0.1:-1\" }}\n\
             gateway {{ name: \"{name}\", listen: \"{}\", gateways: [ \
             {{ name: \"east\", url: \"nats://{}\" }}, {{ name: \"west\", url: \"nats://{}\" }} ] }}\n\
             {SYSTEM_ACCOUNT}",
            doors[mine], doors[0], doors[1]
        )
    };
    let east = cluster("east", 0);
    let west = cluster("west", 1);
    let servers = [
        Nats::with(Setup { extra: &east, ..Setup::default() }),
        Nats::with(Setup { extra: &west, ..Setup::default() }),
    ];
    let started = loaded(&servers[1]);
    let (_pb, mut pb_nats) = town(&servers, &servers[0].url());
    let running = pb_nats.run();
    let told = nobody_reloads(&running, &[&servers[0], &servers[1]], "west-1");
    assert_eq!(names(&told["servers"]), ["east-1"], "{told:#}");
    assert_eq!(told["strangers"][0]["cluster"], "west");
    assert_eq!(loaded(&servers[1]), started, "it was told to reload");
    assert!(servers[0].accepts("ann", PASSWORD));
    running.terminate();

    // Where it takes its users from our file too, it is ours as soon as it is named.
    fs::remove_file(servers[1].auth_file()).unwrap();
    std::os::unix::fs::symlink(servers[0].auth_file(), servers[1].auth_file()).unwrap();
    assert!(!servers[1].accepts("ann", PASSWORD));
    pb_nats.set("nats.system_url", format!("{},{}", servers[0].url(), servers[1].url()));
    let running = pb_nats.run();
    let told = until(address(&running), |it| {
        it["state"] == "in_step" && names(&it["servers"]) == ["east-1", "west-1"]
    });
    assert_eq!(told["strangers"], json!([]), "{told:#}");
    assert!(servers.iter().all(|it| it.accepts("ann", PASSWORD)));
}
