//! What is left behind, who else is let in, and what others get to know: nothing, nobody, nothing.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::json;

use crate::{
    PB_NATS,
    middlebox::{Fate, Middlebox},
    support::{Nats, Pb, PbNats, Running, SOON, Setup, bcrypt, eventually, poll, tool, write},
};

const PASSWORD: &str = "open sesame";

/// A PocketBase with ann, a nats-server, and pb-nats between them.
fn town() -> (Pb, Nats, PbNats) {
    let (pb, nats) = (Pb::start(), Nats::start());
    pb.user("ann", PASSWORD, "");
    let pb_nats = PbNats::between(PB_NATS, &pb, &nats);
    (pb, nats, pb_nats)
}

fn lets_in(nats: &Nats, user: &str) {
    eventually("the user is let in", || nats.accepts(user, PASSWORD).then_some(()));
}

fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) {
    #[expect(clippy::disallowed_methods, reason = "others may do what we do not")]
    fs::rename(from, to).unwrap();
}

/// All files and folders below, that are named like this.
fn named(folder: &Path, wanted: fn(&str) -> bool) -> BTreeSet<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return BTreeSet::new() };
    let each = entries.flatten().flat_map(|entry| {
        let mut found = named(&entry.path(), wanted);
        if wanted(&entry.file_name().to_string_lossy()) {
            found.insert(entry.path());
        }
        found
    });
    each.collect()
}

fn is_temporary(name: &str) -> bool {
    name.starts_with(".pb-nats-") || name.starts_with("pb-nats-check-") || name.starts_with(".tmp")
}

/// Whoever cleans up does not let a second daemon in, and the first goes on.
#[test]
fn a_lock_file_that_others_touch_lets_no_second_daemon_in() {
    let (pb, nats, pb_nats) = town();
    let running = pb_nats.run();
    lets_in(&nats, "ann");
    let lock = nats.dir().join(".auth.conf.run.lock");
    let precious = pb_nats.dir().join("precious");
    write(&precious, "not theirs");
    let deleted = || fs::remove_file(&lock).unwrap();
    let replaced: [&dyn Fn(); 6] = [
        &deleted,
        &|| {
            deleted();
            write(&lock, "1\n");
        },
        &|| {
            deleted();
            symlink(&precious, &lock).unwrap();
        },
        &|| {
            deleted();
            fs::create_dir(&lock).unwrap();
        },
        &|| {
            deleted();
            assert!(Command::new("mkfifo").arg(&lock).status().unwrap().success());
        },
        &|| {
            let moved = lock.with_extension("moved");
            rename(&lock, &moved);
            fs::copy(&moved, &lock).unwrap();
        },
    ];
    for (n, touch) in replaced.into_iter().enumerate() {
        touch();
        // At once, and once the first one has noticed.
        for _ in 0..3 {
            let second = pb_nats.command(&["run"]).exits(1);
            assert!(second.stderr.contains(".auth.conf"), "{n}: {second:?}");
        }
        assert_eq!(fs::read_to_string(&precious).unwrap(), "not theirs");
        let name = format!("user-{n}");
        pb.user(&name, PASSWORD, "");
        lets_in(&nats, &name);
        if !lock.is_file() || lock.is_symlink() {
            let _ = fs::remove_file(&lock).or_else(|_| fs::remove_dir(&lock));
        }
        let own =
            || fs::read_to_string(&lock).is_ok_and(|it| it.trim() == running.pid().to_string());
        eventually("the lock is the first one's again", || own().then_some(()));
    }
    assert!(running.ended(Duration::ZERO).is_none(), "{:?}", running.lines());
    assert!(running.terminate().success());
    let next = pb_nats.run();
    next.wait_for(|it| it.contains("keeps NATS in step"));
}

#[test]
fn a_pass_keeps_others_out_though_its_lock_file_is_deleted() {
    let (pb, nats, mut pb_nats) = town();
    let silent = Middlebox::start(pb.address(), |_| Fate::Hang);
    pb_nats.set("pocketbase.url", silent.url());
    pb_nats.set("pocketbase.request_timeout", "1h");
    let first = pb_nats.run_with(&["once"]);
    let lock = nats.dir().join(".auth.conf.lock");
    let own = || fs::read_to_string(&lock).is_ok_and(|it| it.trim() == first.pid().to_string());
    eventually("the first has begun", || (own() && silent.open() > 0).then_some(()));
    fs::remove_file(&lock).unwrap();
    pb_nats.set("pocketbase.url", pb.url());
    let second = pb_nats.run_with(&["once"]);
    assert!(second.ended(Duration::from_secs(1)).is_none(), "{:?}", second.lines());
    first.kill();
    assert!(second.ended(SOON).unwrap().success(), "{:?}", second.lines());
    assert!(nats.accepts("ann", PASSWORD));
}

/// A file is one file, whatever it is called.
#[test]
fn by_another_name_a_file_is_locked_too() {
    let (_pb, nats, mut pb_nats) = town();
    let real = nats.dir().join("real.conf");
    rename(nats.auth_file(), &real);
    symlink("real.conf", nats.auth_file()).unwrap();
    let folder = pb_nats.dir().join("another-way");
    symlink(nats.dir(), &folder).unwrap();
    let running = pb_nats.run();
    lets_in(&nats, "ann");
    let by_the_link = nats.auth_file().display().to_string();
    for name in
        [by_the_link, real.display().to_string(), folder.join("auth.conf").display().to_string()]
    {
        pb_nats.set("auth_file.path", name);
        let second = pb_nats.command(&["run"]).exits(1);
        assert!(second.stderr.contains(&format!("(pid {})", running.pid())), "{second:?}");
    }
    // Another file in the same folder is another's.
    let other = nats.dir().join("other.conf");
    pb_nats.set("auth_file.path", other.display().to_string());
    let _other = pb_nats.run();
    eventually("the other one is written", || other.exists().then_some(()));
}

/// With the folder goes all that keeps another out, so the one that comes late ends.
#[test]
fn in_a_folder_that_was_made_anew_only_one_stays() {
    let (_pb, nats, mut pb_nats) = town();
    let folder = nats.dir().join("auth");
    fs::create_dir(&folder).unwrap();
    let config = fs::read_to_string(nats.config_file()).unwrap();
    write(nats.config_file(), config.replace("\"auth.conf\"", "\"auth/auth.conf\""));
    pb_nats.set("auth_file.path", folder.join("auth.conf").display().to_string());
    let first = pb_nats.run();
    lets_in(&nats, "ann");
    rename(&folder, nats.dir().join("former"));
    fs::create_dir(&folder).unwrap();
    let second = pb_nats.run();
    let ended = |it: &Running| it.ended(Duration::ZERO);
    let status = eventually("one of them ends", || ended(&first).or(ended(&second)));
    assert_eq!(status.code(), Some(1));
    let (gone, left) = if ended(&first).is_some() { (&first, &second) } else { (&second, &first) };
    gone.wait_for(|it| it.contains("another pb-nats"));
    eventually("the file is there", || folder.join("auth.conf").exists().then_some(()));
    assert!(ended(left).is_none() && nats.accepts("ann", PASSWORD));
}

/// As a power cut would, but for the memory of the machine.
#[test]
fn what_a_killed_process_leaves_is_swept_and_backups_are_whole() {
    let (pb, nats, mut pb_nats) = town();
    let hash = bcrypt(PASSWORD);
    for n in 0..400 {
        let name = format!("user-{n}");
        pb.create("nats_users", &json!({"username": name, "password": hash, "active": true}));
    }
    let temporary = pb_nats.dir().join("tmp");
    fs::create_dir(&temporary).unwrap();
    pb_nats.set_env("TMPDIR", temporary.to_str().unwrap());
    pb_nats.set("auth_file.max_backups", 0);
    pb_nats.once().success();
    let role = pb.role("clerk", &["orders.0"], &[]);
    let changing = pb.user("bob", PASSWORD, &role);
    let folders = [nats.dir(), pb_nats.dir()];
    let left = || folders.iter().flat_map(|it| named(it, is_temporary)).collect::<BTreeSet<_>>();

    let mut kinds = BTreeSet::new();
    for n in 0..40 {
        let name = format!("changed-{n}");
        pb.update("nats_users", &changing, &json!({"username": name}));
        let before = left();
        let once = pb_nats.run_with(&["once"]);
        // At another moment each time, most of them while something is there.
        let watched = n % 4;
        eventually("there is something, or all is over", || {
            let found = left().difference(&before).any(|it| {
                let name = it.file_name().unwrap().to_str().unwrap();
                match watched {
                    0 => true,
                    1 => name.starts_with("pb-nats-check-"),
                    2 => name.starts_with(".pb-nats-") && it.starts_with(nats.dir()),
                    _ => name.starts_with(".pb-nats-") && it.starts_with(pb_nats.dir()),
                }
            });
            (found || once.ended(Duration::ZERO).is_some()).then_some(())
        });
        let _ = poll(Duration::from_millis(n / 4), || None::<()>);
        once.kill();
        kinds.extend(left().iter().map(|it| {
            let parent = it.parent().unwrap().file_name().unwrap().to_str().unwrap();
            if it.starts_with(nats.dir()) { "auth".to_owned() } else { parent.to_owned() }
        }));
        for scratch in left().iter().filter(|it| it.is_dir()) {
            assert_eq!(fs::metadata(scratch).unwrap().mode() & 0o077, 0, "{}", scratch.display());
        }
    }
    // Else nothing was tried.
    for kind in ["auth", "tmp"] {
        assert!(kinds.contains(kind), "{kinds:?}");
    }
    let listed = pb_nats.command(&["backups", "list"]).success().stdout;
    assert!(!listed.contains("torn") && !listed.contains("empty"), "{listed}");
    pb_nats.once().success();
    assert_eq!(left(), BTreeSet::new());
    assert!(nats.accepts("changed-39", PASSWORD) && !nats.accepts("changed-38", PASSWORD));
}

/// What looks alike may be precious, and what is in use is needed.
#[test]
fn only_what_dead_processes_left_is_swept() {
    let (pb, nats, mut pb_nats) = town();
    let temporary = pb_nats.dir().join("tmp");
    fs::create_dir(&temporary).unwrap();
    pb_nats.set_env("TMPDIR", temporary.to_str().unwrap());
    let precious = pb_nats.dir().join("precious");
    fs::create_dir(&precious).unwrap();
    write(precious.join("file"), "theirs");
    let theirs = [".pb-nats-notes", ".pb-nats-abcdef.txt", "pb-nats-check-abcdef.txt", "abcdef"];
    for name in theirs {
        write(nats.dir().join(name), "theirs");
        write(temporary.join(name), "theirs");
    }
    symlink(precious.join("file"), nats.dir().join(".pb-nats-LINKED")).unwrap();
    symlink(&precious, temporary.join("pb-nats-check-LINKED")).unwrap();
    fs::create_dir(nats.dir().join(".pb-nats-FOLDER")).unwrap();

    // A process that lives is in the middle of it, and a daemon starts beside it.
    let slow = pb_nats.dir().join("slow-nats-server");
    let gate = pb_nats.dir().join("gate");
    let real = nats.binary().display().to_string();
    write(
        &slow,
        format!(
            "#!/bin/sh\n[ \"$1\" = -t ] && for _ in $(seq 600); do [ -e {} ] && break; sleep 0.1; done\n\
             exec {real} \"$@\"\n",
            gate.display()
        ),
    );
    fs::set_permissions(&slow, fs::Permissions::from_mode(0o755)).unwrap();
    pb_nats.set("nats.server_binary", slow.display().to_string());
    let once = pb_nats.run_with(&["once"]);
    let scratch = || {
        let found = named(&temporary, |it| it.starts_with("pb-nats-check-"));
        found.into_iter().find(|it| it.join("new").join("main-0.conf").exists())
    };
    let scratch = eventually("it asks nats-server", scratch);
    write(nats.dir().join(".pb-nats-000000"), "left by a dead process");
    fs::create_dir_all(temporary.join("pb-nats-check-000000/new")).unwrap();
    pb_nats.set("pocketbase.resync_interval", "1h");
    let running = pb_nats.run();
    let swept = || {
        !nats.dir().join(".pb-nats-000000").exists()
            && !temporary.join("pb-nats-check-000000").exists()
    };
    eventually("what a dead one left is swept", || swept().then_some(()));
    assert!(scratch.join("new/main-0.conf").exists(), "this one lives");
    write(&gate, "");
    assert!(once.ended(SOON).unwrap().success(), "{:?}", once.lines());
    lets_in(&nats, "ann");
    pb.user("bob", PASSWORD, "");
    lets_in(&nats, "bob");
    drop(running);
    for name in theirs {
        assert_eq!(fs::read_to_string(nats.dir().join(name)).unwrap(), "theirs");
        assert_eq!(fs::read_to_string(temporary.join(name)).unwrap(), "theirs");
    }
    assert_eq!(fs::read_to_string(precious.join("file")).unwrap(), "theirs");
    assert!(nats.dir().join(".pb-nats-FOLDER").is_dir());
    assert!(nats.dir().join(".pb-nats-LINKED").is_symlink());
}

/// What the environment says to us is for nobody else; what the main config names is there.
#[test]
fn programs_that_are_started_do_not_get_our_secrets() {
    let pb = Pb::start();
    let nats = Nats::with(Setup { extra: "server_name: nobody\n", ..Setup::default() });
    pb.user("ann", PASSWORD, "");
    let mut pb_nats = PbNats::between(PB_NATS, &pb, &nats);
    pb_nats.unset("pocketbase.token_file");
    pb_nats.unset("nats.pid_file");
    pb_nats.set_env("PB_NATS_POCKETBASE_TOKEN", pb.token());
    pb_nats.set_env("PB_NATS_SUPERUSER_PASSWORD", "a superuser's");
    pb_nats.set_env("SHOWN_TO_ALL", "port");
    let heard = pb_nats.dir().join("heard");
    let spy = |name: &str, real: String| {
        let path = pb_nats.dir().join(name);
        let text =
            format!("#!/bin/sh\n(echo \"{name} $1\"; env) >> {}\nexec {real}\n", heard.display());
        write(&path, text);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    };
    let server = spy("nats-server-spy", format!("{} \"$@\"", tool("nats-server", None).display()));
    let pid = fs::read_to_string(nats.pid_file()).unwrap();
    let reload = spy("reload-spy", format!("kill -HUP {}", pid.trim()));
    pb_nats.set("nats.server_binary", server);
    pb_nats.set("nats.reload_command", reload);
    let once = pb_nats.once().success();
    assert!(once.stdout.contains("shown by the digest"), "{once:?}");
    let live = ["explain", "ann", "pub", "PUBLIC.x", "--live"];
    pb_nats.command(&live).success();
    let heard = fs::read_to_string(&heard).unwrap();
    for program in ["nats-server-spy -t", "nats-server-spy -c", "reload-spy "] {
        assert!(heard.contains(&format!("{program}\n")), "{program}: {heard}");
    }
    let started = heard.matches("-spy ").count();
    assert_eq!(heard.matches("SHOWN_TO_ALL=port").count(), started, "{heard}");
    assert!(!heard.contains("PB_NATS_") && !heard.contains(pb.token()), "{heard}");
}

/// Each pass reads the file once; and whatever becomes of it then, the next one sees.
#[test]
fn a_file_that_is_deleted_again_and_again_is_written_and_no_error() {
    let (pb, nats, mut pb_nats) = town();
    // Which is read in one piece, however often it changes.
    pb_nats.unset("pocketbase.url");
    pb_nats.unset("pocketbase.token_file");
    pb_nats.set("pocketbase.data_dir", pb.data_dir().display().to_string());
    pb_nats.set("sync.debounce", "1ms");
    let role = pb.role("clerk", &["orders.0"], &[]);
    let running = pb_nats.run_with(&["-v", "run"]);
    lets_in(&nats, "ann");
    for n in 0..60 {
        // So that there is a pass now.
        pb.update("nats_roles", &role, &json!({"publish_permissions": [format!("orders.{n}")]}));
        let _ = poll(Duration::from_millis(n % 30), || None::<()>);
        let _ = fs::remove_file(nats.auth_file());
    }
    pb.user("bob", PASSWORD, "");
    let bob = poll(SOON, || nats.accepts("bob", PASSWORD).then_some(()));
    assert!(bob.is_some(), "{:#?}", running.lines());
    eventually("the file is there", || nats.auth_file().exists().then_some(()));
    let errors: Vec<_> = running.lines().into_iter().filter(|it| it.contains("ERROR")).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    assert!(nats.accepts("ann", PASSWORD) && !nats.is_open());
}

#[test]
fn what_is_in_the_place_of_the_file_is_told_at_once_and_a_free_place_is_filled() {
    let (_pb, nats, pb_nats) = town();
    pb_nats.once().success();
    let file = nats.auth_file();
    let good = fs::read_to_string(&file).unwrap();
    let huge = || {
        let file = fs::File::create(&file).unwrap();
        file.set_len(1 << 40).unwrap();
    };
    let fifo = || assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
    let folder = || fs::create_dir(&file).unwrap();
    let full = || {
        fs::create_dir(&file).unwrap();
        write(file.join("theirs"), "theirs");
    };
    let cases: [(&dyn Fn(), &str); 4] = [
        (&folder, "it is a folder"),
        (&full, "it is a folder"),
        (&fifo, "it is not a file"),
        (&huge, "more than any file of pb-nats"),
    ];
    for (put, why) in cases {
        fs::remove_file(&file).unwrap();
        put();
        for command in [&["once"][..], &["once", "--adopt"], &["plan"]] {
            let refused = pb_nats.command(command).exits(1);
            assert!(refused.stderr.contains(why), "{refused:?}");
            assert!(refused.stderr.contains("hint: move away"), "{refused:?}");
        }
        let running = pb_nats.run();
        running.wait_for(|it| it.contains(why));
        assert!(nats.accepts("ann", PASSWORD));
        rename(&file, file.with_extension("away"));
        eventually("it is written", || file.is_file().then_some(()));
        running.wait_for(|it| it.contains("recovered"));
        assert!(nats.accepts("ann", PASSWORD));
        let _ = fs::remove_file(file.with_extension("away"));
        let _ = fs::remove_dir_all(file.with_extension("away"));
    }
    assert!(fs::read_to_string(&file).unwrap().lines().next() == good.lines().next());

    // A link to nothing, and no folder at all.
    fs::remove_file(&file).unwrap();
    symlink("nothing", &file).unwrap();
    pb_nats.once().success();
    assert!(fs::read_to_string(&file).unwrap().contains("\"ann\""));
}
