//! Faults that are tried alone, since they come with a question of their own: whether pb-nats says
//! what is so, and leaves alone what is none of its business.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nkeys::KeyPair;
use serde_json::{Value, json};

use super::{
    LIMIT,
    fault::{Broken, Fault},
    world::{Place, World, lea},
};
use crate::support::{
    Nats, SYSTEM_ACCOUNT, SYSTEM_USER, Setup, Signal, eventually, free_address, poll,
};

/// Within this pb-nats says that not all is in step. What it is may take longer, where a pass is
/// waiting for it.
const SECONDS: Duration = Duration::from_secs(5);
/// Longer than three of the looks that pb-nats takes at servers between passes.
const THREE_LOOKS: Duration = Duration::from_secs(5);
/// Whom `pb-nats init` lets list what it needs.
const RULE: &str = "@request.auth.collectionName = 'nats_sync'";
/// The name of a server that is not ours.
const STRANGER: &str = "stranger";

use Fault::{
    ClockSetBack, CollectionRenamed, LeafNode, ListRuleClosed, NatsDead, NatsHung, NoAuthUser,
    PocketBaseDead, PocketBaseHung, Stranger,
};

impl Fault {
    /// Whether it has a question of its own, whose answer would be another beside other faults.
    pub(super) fn is_alone(self) -> bool {
        matches!(
            self,
            NatsDead
                | NatsHung
                | PocketBaseDead
                | PocketBaseHung
                | CollectionRenamed
                | ListRuleClosed
                | LeafNode
                | NoAuthUser
                | Stranger
        )
    }

    /// Begins what takes more than a step.
    pub(super) fn set_up(self, world: &mut World, broken: &mut Broken) -> Result<()> {
        match self {
            CollectionRenamed => {
                let names = [("nats_users", "people"), ("nats_roles", "groups")];
                broken.collection = names[world.rng.usize(0..names.len())];
                let (_, now) = broken.collection;
                change_collection(world, broken, &json!({ "name": now }));
            }
            ListRuleClosed => {
                broken.collection.0 = ["nats_users", "nats_roles"][world.rng.usize(0..2)];
                let rules = [Value::Null, "id = 'other'".into(), "1 = 2".into()];
                let rule = &rules[world.rng.usize(0..rules.len())];
                change_collection(world, broken, &json!({ "listRule": rule }));
            }
            LeafNode => {
                let door = open_for_leaf_nodes(world, broken);
                in_step(world)?;
                let lea = lea();
                let at = format!("nats://{}:{}@{door}", lea.name, lea.password);
                let lines = format!(
                    "server_name: \"edge\"\n\
                     leafnodes {{ reconnect: 1, remotes: [ {{ url: \"{at}\" }} ] }}"
                );
                let auth = "authorization { users = [ {user: edge, password: edge} ] }";
                broken.other = Some(Nats::with(Setup { extra: &lines, auth, ..Setup::default() }));
                eventually("the leaf node is connected", || {
                    (leaf_nodes(world, broken) == 1).then_some(())
                });
                world.let_lea(false);
            }
            NoAuthUser => {
                let key = KeyPair::new_user().public_key();
                let record = json!({
                    "username": "web", "nkey": key, "role_id": [world.ids.staff], "active": true,
                });
                broken.record = world.pb.create(&world.ids.users, &record);
                let file = world.nats[0].auth_file();
                eventually("the auth file has the key", || {
                    std::fs::read_to_string(&file).ok()?.contains(&key).then_some(())
                });
                let door = free_address();
                world.restart_nats(
                    0,
                    &format!(
                        "websocket {{ listen: \"{door}\", no_tls: true, no_auth_user: \"{key}\" }}\n"
                    ),
                );
                broken.door = Some(door);
                ensure!(lets_in_nobody(door)?, "it is of no use to name a user there");
                world.pb.update(&world.ids.users, &broken.record, &json!({ "active": false }));
            }
            Stranger => {
                let door = open_for_leaf_nodes(world, broken);
                let (user, password) = SYSTEM_USER;
                let lines = format!(
                    "server_name: \"{STRANGER}\"\nleafnodes {{ remotes: [ {{ url: \
                     \"nats://{user}:{password}@{door}\", account: SYS }} ] }}\n{SYSTEM_ACCOUNT}"
                );
                broken.other = Some(Nats::with(Setup { extra: &lines, ..Setup::default() }));
            }
            _ => unreachable!("it takes a step"),
        }
        Ok(())
    }

    /// Asks what is to be so while it lasts, beside what the checker asks. It may be asked again.
    pub(super) fn ask(self, world: &mut World, broken: &Broken) -> Result<()> {
        match self {
            NatsDead | NatsHung | PocketBaseDead | PocketBaseHung => {
                self.tells(world, broken, LIMIT)
            }
            CollectionRenamed => self.tells(world, broken, LIMIT),
            ListRuleClosed => {
                let (name, _) = broken.collection;
                let unheard = |it: &Value| it["source"]["unheard"][name].is_string();
                world.says(LIMIT, &format!("that changes of {name} are missing"), unheard)?;
                goes_on(world)?;
                world.says_in_step(LIMIT).map(drop)
            }
            LeafNode if world.place == Place::Cluster => {
                let gone = poll(LIMIT, || (leaf_nodes(world, broken) == 0).then_some(()));
                gone.context("the leaf node of who was deactivated is still connected")?;
                goes_on(world)?;
                world.says_in_step(LIMIT).map(drop)
            }
            LeafNode => {
                ensure!(leaf_nodes(world, broken) == 1, "nobody is there to be told of");
                self.tells(world, broken, LIMIT)?;
                // For all others it is in force, and it stays said.
                goes_on(world)?;
                let never = world.says_in_step(Duration::from_secs(2));
                ensure!(never.is_err(), "pb-nats says in step, beside a leaf node that is not");
                Ok(())
            }
            NoAuthUser => {
                let door = broken.door.context("there is a websocket")?;
                for again in [false, true] {
                    if again {
                        world.stop_nats(0, Signal::TERM);
                        world.resume_nats(0);
                    }
                    let closed =
                        poll(LIMIT, || lets_in_nobody(door).is_ok_and(|it| !it).then_some(()));
                    closed.context("who has no name is let in as who was deactivated")?;
                    goes_on(world)?;
                    world.says_in_step(LIMIT)?;
                }
                Ok(())
            }
            Stranger => {
                world.says(LIMIT, "that the stranger is one, and all is in step", |it| {
                    it["state"] == "in_step" && it["strangers"][0]["server"] == STRANGER
                })?;
                let servers = world.nats.iter().chain(&broken.other).collect::<Vec<_>>();
                nobody_reloads(world, &servers, THREE_LOOKS, || {
                    // It looks at everything anew.
                    world.signal_pb_nats(Signal::HUP);
                })
            }
            // Its clock says that no config was loaded since it told to.
            ClockSetBack if world.place == Place::Undigested => {
                nobody_reloads(world, &[&world.nats[0]], THREE_LOOKS, || {
                    world.signal_pb_nats(Signal::HUP);
                })
            }
            _ => Ok(()),
        }
    }

    /// Waits until pb-nats tells of it, and that not all is in step.
    pub(super) fn tells(self, world: &World, broken: &Broken, limit: Duration) -> Result<()> {
        let server = &world.nats[broken.server];
        let words = match self {
            NatsDead | NatsHung if world.place == Place::Cluster => {
                vec!["a nats-server is silent, ".to_owned(), format!("{} since", server.name())]
            }
            // It may be named by its address.
            NatsDead | NatsHung => vec!["a nats-server is silent, ".into()],
            PocketBaseDead | PocketBaseHung => vec!["PocketBase has been silent since ".into()],
            CollectionRenamed => vec![format!("`{}`", broken.collection.1)],
            LeafNode => vec!["leaf node".into(), format!("\"{}\"", lea().name)],
            _ => unreachable!("there is nothing to be told"),
        };
        let what = format!("{words:?}");
        let told = |it: &Value| {
            let line = it["summary"].as_str().unwrap_or_default().to_lowercase();
            it["state"] == "not_in_step" && words.iter().all(|it| line.contains(&it.to_lowercase()))
        };
        world.says(limit.min(SECONDS), "anything else", |it| it["state"] == "not_in_step")?;
        world.says(limit, &what, told).map(drop)
    }

    /// Ends what was set up.
    pub(super) fn put_away(self, world: &mut World, mut broken: Broken) -> Result<()> {
        match self {
            CollectionRenamed => {
                let name = broken.collection.0;
                change_collection(world, &broken, &json!({ "name": name }));
            }
            ListRuleClosed => {
                change_collection(world, &broken, &json!({ "listRule": RULE }));
                let all = |it: &Value| it["source"]["unheard"] == json!({});
                world.says(LIMIT, "that live changes come again", all)?;
            }
            LeafNode => {
                if world.place != Place::Cluster {
                    // What it tells to do helps.
                    world.stop_nats(broken.server, Signal::TERM);
                    world.resume_nats(broken.server);
                    in_step(world)?;
                    world.says_in_step(LIMIT)?;
                    ensure!(leaf_nodes(world, &broken) == 0, "the leaf node is let in again");
                }
                drop(broken.other.take());
                world.let_lea(true);
                world.restart_nats(broken.server, "");
            }
            NoAuthUser => {
                world.restart_nats(0, "");
                world.pb.delete(&world.ids.users, &broken.record);
            }
            Stranger => {
                drop(broken.other.take());
                // It is remembered for a while, and missed by nobody.
                let servers: Vec<&Nats> = world.nats.iter().collect();
                nobody_reloads(world, &servers, THREE_LOOKS / 2, || ())?;
                world.restart_nats(broken.server, "");
            }
            _ => unreachable!("it takes a step"),
        }
        Ok(())
    }
}

/// Asserts that for so long none of these servers loads its config, though this happens meanwhile.
pub(super) fn nobody_reloads(
    world: &World,
    servers: &[&Nats],
    patience: Duration,
    meanwhile: impl Fn(),
) -> Result<()> {
    let loaded = || -> Vec<Value> {
        servers.iter().map(|it| it.varz()["config_load_time"].clone()).collect()
    };
    in_step(world)?;
    let none_under_way =
        |it: &Value| it["state"] == "in_step" && it["changes"][0]["in_force"] != false;
    world.says(LIMIT, "that no change is under way", none_under_way)?;
    let before = loaded();
    thread::sleep(patience / 2);
    meanwhile();
    thread::sleep(patience / 2);
    world.says_in_step(LIMIT)?;
    for ((server, before), after) in servers.iter().zip(before).zip(loaded()) {
        ensure!(before == after, "{} was told to reload, and nothing had changed", server.name());
    }
    Ok(())
}

fn in_step(world: &World) -> Result<()> {
    world.in_step(LIMIT).map(drop).map_err(|it| anyhow::anyhow!("not in step meanwhile: {it}"))
}

/// Whether what changes is put in force.
fn goes_on(world: &mut World) -> Result<()> {
    world.change();
    in_step(world)
}

fn change_collection(world: &World, broken: &Broken, change: &Value) {
    let users = broken.collection.0 == "nats_users";
    let id = if users { &world.ids.users } else { &world.ids.roles };
    world.pb.ask("PATCH", &format!("/api/collections/{id}"), change);
}

/// Has the broken server take leaf nodes. Where.
fn open_for_leaf_nodes(world: &mut World, broken: &mut Broken) -> SocketAddr {
    let door = free_address();
    world.restart_nats(broken.server, &format!("leafnodes {{ listen: \"{door}\" }}\n"));
    broken.door = Some(door);
    door
}

/// How many leaf nodes of users are connected to the broken server.
fn leaf_nodes(world: &World, broken: &Broken) -> usize {
    let listed = world.nats[broken.server].ask("connz?auth=true&acc=$G");
    let listed = listed["connections"].as_array().map(Vec::as_slice).unwrap_or_default();
    listed.iter().filter(|it| it["kind"] == "Leafnode").count()
}

/// Whether a websocket lets in who does not say who it is.
fn lets_in_nobody(address: SocketAddr) -> Result<bool> {
    const PATIENCE: Duration = Duration::from_secs(2);
    const HELLO: &str = "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
                         Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    const WORDS: &[u8] = b"CONNECT {\"verbose\":false,\"pedantic\":false}\r\nPING\r\n";
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut said = String::new();
    let mut some = [0; 4096];
    let mut hear = |stream: &mut TcpStream, words: &[&str]| loop {
        match stream.read(&mut some)? {
            0 => bail!("the websocket was closed: {said:?}"),
            length => said.push_str(&String::from_utf8_lossy(&some[..length])),
        }
        if let Some(heard) = words.iter().position(|it| said.contains(it)) {
            return Ok(heard);
        }
    };
    stream.write_all(HELLO.as_bytes())?;
    hear(&mut stream, &["\r\n\r\n"])?;
    // One frame, with a mask that changes nothing.
    let length = u8::try_from(WORDS.len())?;
    stream.write_all(&[&[0x82, 0x80 | length, 0, 0, 0, 0], WORDS].concat())?;
    Ok(hear(&mut stream, &["PONG\r\n", "-ERR 'Authorization Violation'"])? == 0)
}
