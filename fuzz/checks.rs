//! What has to hold for any bytes whatever: by the fuzz targets, and by the tests for each corpus.

#![allow(dead_code, reason = "each target uses one of them")]

use std::collections::BTreeSet;

use pb_nats::{
    auth::{Credential, Desired, Found, Policy, Snapshot, conf, parse, render},
    options::Options,
    source::{sse::Decoder, view::read_export},
};

/// All the checks, by the name of their target.
pub(crate) const ALL: [(&str, Check); 3] = [("file", file), ("records", records), ("sse", sse)];

type Check = fn(&[u8]);

/// It makes no difference to the live connection where its bytes are split. The first byte says
/// into what pieces.
pub(crate) fn sse(bytes: &[u8]) {
    let Some((size, bytes)) = bytes.split_first() else { return };
    let whole = Decoder::default().feed(bytes);
    let mut decoder = Decoder::default();
    let pieces = bytes.chunks(usize::from(*size) + 1);
    let pieces: Vec<_> = pieces.flat_map(|it| decoder.feed(it)).collect();
    assert_eq!(pieces, whole);
    assert!(whole.iter().all(|it| !it.name.contains(['\r', '\n']) && !it.data.contains('\r')));
    assert!(whole.iter().map(|it| it.name.len() + it.data.len()).sum::<usize>() <= 3 * bytes.len());
}

/// Whatever an export view's row says: the file reads back as what was meant, lets in nobody who is
/// not an active record, and no record takes anything from, or gives it to, one that shares neither
/// its name nor its nkey.
pub(crate) fn records(bytes: &[u8]) {
    let Ok(row) = str::from_utf8(bytes) else { return };
    let Ok(snapshot) = read_export(row, &Options::default().pocketbase) else { return };
    let (desired, findings) = Desired::new(&snapshot, &policy());
    reads_back(&desired);
    assert!(findings.iter().all(|it| !it.to_string().contains(char::is_control)));
    for (login, user) in &desired.users {
        let theirs = snapshot.users.iter().filter(|it| match &user.credential {
            Credential::Password(hash) => it.username == *login && it.password == *hash,
            Credential::Nkey { record } => it.nkey == *login && it.id == **record,
        });
        assert_eq!(theirs.filter(|it| it.active).count(), 1, "{login:?}");
    }
    let Some((last, others)) = snapshot.users.split_last() else { return };
    let shares = |it: &str| [&*last.username, &*last.nkey].contains(&it);
    if others.iter().any(|it| shares(&it.username) || !it.nkey.is_empty() && shares(&it.nkey)) {
        return;
    }
    let fewer = Snapshot { users: others.to_vec(), roles: snapshot.roles.clone() };
    let (fewer, _) = Desired::new(&fewer, &policy());
    let own = BTreeSet::from([&last.username, &last.nkey]);
    for (login, user) in &desired.users {
        if own.contains(login) {
            continue;
        }
        let before = &fewer.users[login];
        assert_eq!(user.credential, before.credential, "{login:?}");
        assert_eq!(desired.rules(user), fewer.rules(before), "{login:?}");
    }
    assert!(fewer.users.keys().all(|it| desired.users.contains_key(it)));
}

/// A file is read, or refused; and what was read is written so that it reads the same.
pub(crate) fn file(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = conf::read(&text);
    if let Found::Ours(desired) = parse(&text) {
        reads_back(&desired);
    }
}

fn reads_back(desired: &Desired) {
    let text = render(desired);
    assert_eq!(parse(&text), Found::Ours(Box::new(desired.clone())), "{text}");
    // Cut off anywhere, it is not taken for a whole one.
    let cut = text.char_indices().map(|it| it.0).nth(text.len() * 2 / 3);
    if let Some(cut) = cut.filter(|it| *it + 5 < text.len()) {
        assert!(!matches!(parse(&text[..cut]), Found::Ours(_)), "{}", &text[..cut]);
    }
}

fn policy() -> Policy {
    let options = Options::default();
    Policy {
        user_collection: options.pocketbase.user_collection,
        role_collection: options.pocketbase.role_collection,
        username_field: options.pocketbase.username_field,
        password_field: options.pocketbase.password_field,
        role_field: options.pocketbase.role_field,
        default_publish: options.permissions.default_publish,
        default_subscribe: options.permissions.default_subscribe,
        reserved: ["sys".to_owned()].into(),
        needed: None,
        login_timeout: None,
    }
}
