//! What deciding costs: the pure room alone, with its allocations.
//!
//! `cargo bench --bench pure`

use divan::{AllocProfiler, Bencher};
use pb_nats::{
    Options,
    auth::{
        Changes, Desired, PasswordHash, Permissions, Policy, RoleRecord, Snapshot, UserRecord,
        parse, reads_back, render,
    },
};
use serde_json::json;

#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

const USERS: [usize; 3] = [1000, 10_000, 100_000];
const ROLES: usize = 50;

fn main() {
    divan::main();
}

/// As many users as that, in fifty roles.
fn snapshot(users: usize) -> Snapshot {
    let role = |n: usize| RoleRecord {
        id: format!("role{n:011}"),
        name: format!("role {n}"),
        permissions: Permissions {
            publish: json!([format!("site{n}.>"), "news.>"]),
            subscribe: json!([format!("site{n}.>"), "_INBOX.>"]),
            ..Permissions::default()
        },
        ..RoleRecord::default()
    };
    let user = |n: usize| UserRecord {
        id: format!("user{:011}", n * 7919 % 1_000_003),
        username: format!("user-{n}").into(),
        password: PasswordHash(
            format!("$2a$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad6{n:012}").into(),
        ),
        roles: [format!("role{:011}", n % ROLES)].into(),
        active: true,
        ..UserRecord::default()
    };
    Snapshot { users: (0..users).map(user).collect(), roles: (0..ROLES).map(role).collect() }
}

fn policy() -> Policy {
    Policy::from(&Options::default())
}

#[divan::bench(args = USERS)]
fn desired(bencher: Bencher<'_, '_>, users: usize) {
    let (snapshot, policy) = (snapshot(users), policy());
    bencher.bench(|| Desired::new(&snapshot, &policy));
}

#[divan::bench(args = USERS)]
fn changes(bencher: Bencher<'_, '_>, users: usize) {
    let (old, _) = Desired::new(&snapshot(users), &policy());
    let (new, _) = Desired::new(&snapshot(users - 1), &policy());
    bencher.bench(|| Changes::between(&old, &new));
}

#[divan::bench(args = USERS)]
fn rendered(bencher: Bencher<'_, '_>, users: usize) {
    let (desired, _) = Desired::new(&snapshot(users), &policy());
    bencher.bench(|| render(&desired));
}

#[divan::bench(args = USERS)]
fn parsed(bencher: Bencher<'_, '_>, users: usize) {
    let text = render(&Desired::new(&snapshot(users), &policy()).0);
    bencher.bench(|| parse(&text));
}

#[divan::bench(args = USERS)]
fn read_back(bencher: Bencher<'_, '_>, users: usize) {
    let (desired, _) = Desired::new(&snapshot(users), &policy());
    let text = render(&desired);
    bencher.bench(|| reads_back(&text, &desired));
}
