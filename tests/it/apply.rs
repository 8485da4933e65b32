//! The file: replaced whole or not at all, and never another's.

use std::{
    env, fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::Path,
    process::Command,
};

use serde_json::json;

use crate::{
    PB_NATS,
    support::{
        HIDDEN, Nats, Pb, PbNats, SOON, SYSTEM_ACCOUNT, SYSTEM_USER, Setup, eventually, write,
    },
};

const PASSWORD: &str = "open sesame";
/// A user of an account, where only nats-server finds it.
const HIDING: &str = "accounts { A { users = $HIDDEN } }\n";

/// A PocketBase with ann, a nats-server, and pb-nats between them, read from the database file.
fn town(setup: Setup<'_>) -> (Pb, Nats, PbNats) {
    let (pb, nats) = (Pb::start(), Nats::with(setup));
    pb.user("ann", PASSWORD, "");
    let mut pb_nats = PbNats::between(PB_NATS, &pb, &nats);
    pb_nats.set_env(HIDDEN.0, HIDDEN.1);
    (pb, nats, pb_nats)
}

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

fn names(folder: impl AsRef<Path>) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_new_file_has_the_mode_that_is_set_and_an_old_one_keeps_its_own() {
    let (pb, nats, pb_nats) = town(Setup::default());
    fs::remove_file(nats.auth_file()).unwrap();
    pb_nats.once().success();
    assert_eq!(mode(nats.auth_file()), 0o640);
    fs::set_permissions(nats.auth_file(), fs::Permissions::from_mode(0o604)).unwrap();
    pb.user("bob", PASSWORD, "");
    pb_nats.once().success();
    assert!(nats.accepts("bob", PASSWORD));
    assert_eq!(mode(nats.auth_file()), 0o604);
}

#[test]
fn backups_are_kept_pruned_and_no_wider_than_the_file() {
    let (pb, nats, mut pb_nats) = town(Setup::default());
    pb_nats.set("auth_file.max_backups", 2);
    pb_nats.once().success();
    let before = fs::read_to_string(nats.auth_file()).unwrap();
    let backups = pb_nats.dir().join("backups");
    fs::create_dir(&backups).unwrap();
    write(backups.join("auth.conf.mine"), "not theirs to prune");
    for name in ["bob", "cat", "dan"] {
        pb.user(name, PASSWORD, "");
        pb_nats.once().success();
    }
    let kept = names(&backups);
    assert_eq!(kept.len(), 3, "{kept:?}");
    assert!(kept.contains(&"auth.conf.mine".to_owned()));
    let text = |name: &String| fs::read_to_string(backups.join(name)).unwrap();
    assert!(!kept.iter().any(|it| text(it) == before), "the oldest is gone: {kept:?}");
    assert!(text(&kept[0]).contains("\"bob\"") && !text(&kept[0]).contains("\"cat\""));
    assert_eq!(mode(backups.join(&kept[0])) & !mode(nats.auth_file()), 0);

    pb_nats.set("auth_file.create_backups", false);
    pb.user("eve", PASSWORD, "");
    pb_nats.once().success();
    assert_eq!(names(&backups), kept);
}

#[test]
fn a_link_stays_a_link() {
    let (_pb, nats, pb_nats) = town(Setup::default());
    let real = nats.dir().join("real.conf");
    fs::copy(nats.auth_file(), &real).unwrap();
    fs::remove_file(nats.auth_file()).unwrap();
    symlink(&real, nats.auth_file()).unwrap();
    pb_nats.once().success();
    assert!(fs::symlink_metadata(nats.auth_file()).unwrap().is_symlink());
    assert!(fs::read_to_string(real).unwrap().contains("\"ann\""));
    assert!(nats.accepts("ann", PASSWORD));
}

#[test]
fn a_torn_edited_or_deleted_file_is_put_right() {
    let (_pb, nats, pb_nats) = town(Setup::default());
    pb_nats.once().success();
    let whole = fs::read_to_string(nats.auth_file()).unwrap();
    let edited = whole.replace("users = [", "users = [\n    {user: \"eve\", password: \"eve\"}");
    for broken in [&whole[..whole.len() - 10], &whole[..60], "", &edited] {
        write(nats.auth_file(), broken);
        let _ = nats.reload();
        assert!(!nats.is_open());
        pb_nats.once().success();
        assert!(nats.accepts("ann", PASSWORD) && !nats.accepts("eve", "eve"), "{broken}");
    }
    fs::remove_file(nats.auth_file()).unwrap();
    pb_nats.once().success();
    nats.reload().unwrap();
    assert!(nats.accepts("ann", PASSWORD));
}

#[test]
fn a_file_that_cannot_be_written_is_said_so_and_nothing_is_lost() {
    let (pb, nats, mut pb_nats) = town(Setup::default());
    pb_nats.once().success();
    let before = fs::read_to_string(nats.auth_file()).unwrap();
    pb.user("bob", PASSWORD, "");

    // A limit on the size of files is a disk that is full.
    let full = Command::new("sh")
        .arg("-c")
        .arg("trap '' XFSZ; ulimit -f 0; exec \"$0\" -c \"$1\" once")
        .args([PB_NATS.as_ref(), pb_nats.settings_file().as_os_str()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&full.stderr);
    assert_eq!(full.status.code(), Some(1), "{said}");
    assert!(said.contains("auth.conf") && said.contains("hint: "), "{said}");
    assert_eq!(fs::read_to_string(nats.auth_file()).unwrap(), before);
    assert!(!names(nats.dir()).iter().any(|it| it.starts_with(".pb-nats-")), "no litter");
    assert!(nats.accepts("ann", PASSWORD) && !nats.is_open());

    let real = nats.auth_file().display().to_string();
    pb_nats.set("auth_file.path", nats.dir().join("missing/auth.conf").display().to_string());
    let missing = pb_nats.once().exits(1);
    assert!(
        missing.stderr.contains("missing/") && missing.stderr.contains("hint: "),
        "{missing:?}"
    );

    pb_nats.set("auth_file.path", real);
    pb_nats.once().success();
    assert!(nats.accepts("bob", PASSWORD), "and all is well when the cause is gone");
}

#[test]
fn a_record_named_like_an_account_user_blocks_nobody_else() {
    let listed = "LIST = [ {user: \"sys\", password: x} ]\naccounts { A { users = $LIST } }\n";
    for extra in [SYSTEM_ACCOUNT, listed] {
        let (pb, nats, pb_nats) = town(Setup { extra, ..Setup::default() });
        pb.user("sys", PASSWORD, "");
        let output = pb_nats.once().success();
        let told = output.stderr.contains("finding: ") && output.stderr.contains("\"sys\"");
        assert!(told, "{output:?}");
        assert!(nats.accepts("ann", PASSWORD) && !nats.accepts("sys", PASSWORD));
    }
}

/// Nothing of somebody else's is ever lost.
#[test]
fn a_file_is_adopted_only_if_it_can_be_kept() {
    let (_pb, nats, mut pb_nats) = town(Setup::default());
    let theirs = b"authorization { users = [ {user: \xfftheirs, password: theirs} ] }\n";
    write(nats.auth_file(), theirs);
    pb_nats.set("auth_file.create_backups", false);
    pb_nats.set("auth_file.backup_dir", "token/none");
    let refused = pb_nats.command(&["once", "--adopt"]).exits(1);
    assert!(refused.stderr.contains("token/none"), "{refused:?}");
    assert_eq!(fs::read(nats.auth_file()).unwrap(), theirs);

    pb_nats.set("auth_file.backup_dir", "kept");
    pb_nats.command(&["once", "--adopt"]).success();
    let kept = names(pb_nats.dir().join("kept"));
    assert_eq!(fs::read(pb_nats.dir().join("kept").join(&kept[0])).unwrap(), theirs);
    assert!(nats.accepts("ann", PASSWORD));
}

#[test]
fn a_file_of_a_later_version_is_left_alone_until_it_is_adopted() {
    let (pb, nats, pb_nats) = town(Setup::default());
    pb_nats.once().success();
    let newer = fs::read_to_string(nats.auth_file()).unwrap().replace("format: 1", "format: 2");
    write(nats.auth_file(), &newer);
    pb.user("bob", PASSWORD, "");
    let refused = pb_nats.once().exits(1);
    assert!(
        refused.stderr.contains("format 2") && refused.stderr.contains("--adopt"),
        "{refused:?}"
    );
    assert_eq!(fs::read_to_string(nats.auth_file()).unwrap(), newer);
    pb_nats.command(&["once", "--adopt"]).success();
    let backups = pb_nats.dir().join("backups");
    assert_eq!(fs::read_to_string(backups.join(&names(&backups)[0])).unwrap(), newer);
    assert!(nats.accepts("bob", PASSWORD));
}

/// To give a file away one has to be root: `cargo xtask ci` asks for it.
#[test]
fn a_file_keeps_its_owner() {
    if env::var_os("PB_NATS_TEST_ROOT").is_none() {
        return;
    }
    let (_pb, nats, pb_nats) = town(Setup::default());
    chown(nats.auth_file(), Some(65534), Some(65534)).unwrap();
    pb_nats.once().success();
    let written = fs::metadata(nats.auth_file()).unwrap();
    assert_eq!((written.uid(), written.gid()), (65534, 65534));
}

/// What only nats-server can know is known before anything is renamed.
#[test]
fn a_file_that_nats_server_refuses_for_its_own_sake_is_never_in_place() {
    let (pb, nats, pb_nats) = town(Setup { extra: HIDING, ..Setup::default() });
    pb_nats.once().success();
    let before = fs::metadata(nats.auth_file()).unwrap().ino();
    let hidden = pb.user("hidden", PASSWORD, "");
    let refused = pb_nats.once().exits(1);
    assert!(refused.stderr.contains("nats-server rejects the new file"), "{refused:?}");
    assert_eq!(fs::metadata(nats.auth_file()).unwrap().ino(), before);
    assert!(nats.judge().is_ok() && nats.accepts("ann", PASSWORD));
    pb.delete("nats_users", &hidden);
    pb.user("bob", PASSWORD, "");
    pb_nats.once().success();
    assert!(nats.accepts("bob", PASSWORD));
}

/// In `run`, nats-server is asked beside the reload; what it refuses for its own sake goes back.
#[test]
fn a_file_refused_after_the_rename_is_taken_back() {
    let (pb, nats, mut pb_nats) = town(Setup { extra: HIDING, ..Setup::default() });
    pb_nats.set("sync.debounce", "10ms");
    pb_nats.set("nats.reload_timeout", "2s");
    let running = pb_nats.run_with(&["-v", "run"]);
    eventually("ann is let in", || nats.accepts("ann", PASSWORD).then_some(()));
    let hidden = pb.user("hidden", PASSWORD, "");
    running.wait_for(|it| it.contains("the former auth file was put back"));
    assert!(nats.judge().is_ok(), "a restart would start");
    running.wait_for(|it| it.contains("still failing") && it.contains("retry=1s"));
    let backs = running.lines().iter().filter(|it| it.contains("was put back")).count();
    assert_eq!(backs, 1, "and it is asked about before it is in place again");
    let refused = |it: &&String| it.contains("stays in force") && it.contains("rejects the new");
    let told = running.lines().iter().filter(refused).count();
    assert_eq!(told, 1, "what has been said is not said at each try");
    assert!(nats.accepts("ann", PASSWORD));
    pb.delete("nats_users", &hidden);
    pb.user("bob", PASSWORD, "");
    eventually("bob is let in", || nats.accepts("bob", PASSWORD).then_some(()));
}

/// Of all that is refused, only what is given is in doubt.
#[test]
fn who_is_to_go_goes_though_nats_server_refuses_the_new_file() {
    let hiding = HIDING.trim_end().trim_end_matches('}');
    let extra = SYSTEM_ACCOUNT.replace("accounts {", &format!("{hiding}\n"));
    let (pb, nats, mut pb_nats) = town(Setup { extra: &extra, ..Setup::default() });
    pb_nats.unset("nats.monitor_url");
    pb_nats.set("nats.system_url", nats.url());
    pb_nats.set("nats.system_user", SYSTEM_USER.0);
    pb_nats.set("nats.system_password", SYSTEM_USER.1);
    let bob = pb.user("bob", PASSWORD, "");
    let role = pb.role("clerk", &["a", "b"], &[]);
    pb.user("cat", PASSWORD, &role);
    // Before anything is renamed, and after.
    pb_nats.once().success();
    let (mut connected, mut cat) = (nats.client("bob", PASSWORD), nats.client("cat", PASSWORD));
    assert!(cat.may_publish("b"));
    let hidden = pb.user("hidden", PASSWORD, "");
    pb.update("nats_users", &bob, &json!({"active": false}));
    pb.update("nats_roles", &role, &json!({"publish_permissions": ["a"]}));
    let refused = pb_nats.once().exits(1);
    assert!(refused.stderr.contains("nats-server rejects the new file"), "{refused:?}");
    assert!(connected.closed(SOON).is_some() && !nats.accepts("bob", PASSWORD));
    let mut cat = nats.client("cat", PASSWORD);
    assert!(cat.may_publish("a") && !cat.may_publish("b"));
    assert!(nats.accepts("ann", PASSWORD) && nats.judge().is_ok());
    let written = fs::metadata(nats.auth_file()).unwrap().ino();
    pb_nats.once().exits(1);
    assert_eq!(fs::metadata(nats.auth_file()).unwrap().ino(), written, "and that is that");

    pb.delete("nats_users", &hidden);
    pb.update("nats_users", &bob, &json!({"active": true}));
    pb_nats.set("sync.debounce", "10ms");
    let running = pb_nats.run();
    eventually("bob is let in", || nats.accepts("bob", PASSWORD).then_some(()));
    let mut connected = nats.client("bob", PASSWORD);
    pb.user("hidden", PASSWORD, "");
    pb.update("nats_users", &bob, &json!({"active": false}));
    eventually("bob is out", || (!nats.accepts("bob", PASSWORD)).then_some(()));
    assert!(connected.closed(SOON).is_some());
    running.wait_for(|it| it.contains("put back"));
    eventually("a restart would start", || nats.judge().is_ok().then_some(()));
    assert!(nats.accepts("ann", PASSWORD) && !nats.accepts("hidden", PASSWORD));
}

/// As when pb-nats ended between putting a file in place and finding out that it is refused.
#[test]
fn a_refused_file_of_another_process_is_taken_back() {
    for pocketbase_is_there in [true, false] {
        let (mut pb, mut nats, pb_nats) = town(Setup { extra: HIDING, ..Setup::default() });
        let bob = pb.user("bob", PASSWORD, "");
        pb_nats.once().success();
        pb.user("hidden", PASSWORD, "");
        pb.update("nats_users", &bob, &json!({"active": false}));
        write(nats.auth_file(), pb_nats.command(&["render"]).success().stdout);
        assert!(nats.judge().is_err());
        if !pocketbase_is_there {
            pb.stop();
        }
        let said = pb_nats.once().exits(1);
        assert!(said.stderr.contains("put back"), "{said:?}");
        assert!(!nats.accepts("bob", PASSWORD), "the server runs it");
        nats.kill();
        nats.resume();
        assert!(nats.accepts("ann", PASSWORD) && !nats.accepts("hidden", PASSWORD));
        assert!(!nats.accepts("bob", PASSWORD));
    }
}

#[test]
fn the_last_good_file_is_kept_as_carefully_and_not_written_needlessly() {
    let (pb, nats, pb_nats) = town(Setup::default());
    fs::set_permissions(nats.auth_file(), fs::Permissions::from_mode(0o604)).unwrap();
    pb_nats.once().success();
    let good = nats.dir().join(".auth.conf.good");
    assert_eq!(fs::read(&good).unwrap(), fs::read(nats.auth_file()).unwrap());
    assert_eq!(mode(&good), 0o604);
    let inode = fs::metadata(&good).unwrap().ino();
    pb_nats.once().success();
    assert_eq!(fs::metadata(&good).unwrap().ino(), inode);

    // What no server runs is not good.
    let before = fs::read(&good).unwrap();
    let pid = fs::read_to_string(nats.pid_file()).unwrap();
    write(nats.pid_file(), "nobody");
    pb.user("bob", PASSWORD, "");
    pb_nats.once().exits(1);
    assert_eq!(fs::read(&good).unwrap(), before);
    write(nats.pid_file(), pid);
    pb_nats.once().success();
    assert_eq!(fs::read(&good).unwrap(), fs::read(nats.auth_file()).unwrap());
}

#[test]
fn the_go_library_that_writes_the_same_file_is_named() {
    let (_pb, nats, pb_nats) = town(Setup::default());
    let theirs = "\n# Authentication Configuration\n# Auto-generated by pb-nats\n\
                  # Generated at: 2025-05-11T10:00:00Z\n\nauthorization {\n  users = [ {user: ann, password: x} ]\n}\n";
    write(nats.auth_file(), theirs);
    let refused = pb_nats.once().exits(1);
    assert!(
        refused.stderr.contains("Go library") && refused.stderr.contains("--adopt"),
        "{refused:?}"
    );
    assert_eq!(fs::read_to_string(nats.auth_file()).unwrap(), theirs);
    pb_nats.command(&["once", "--adopt"]).success();
    assert!(nats.accepts("ann", PASSWORD));
}

#[test]
fn a_main_config_that_is_broken_elsewhere_keeps_nobody_in() {
    let (pb, nats, mut pb_nats) = town(Setup::default());
    let bob = pb.user("bob", PASSWORD, "");
    pb_nats.once().success();
    // Only this pass is for nothing.
    pb_nats.set("nats.reload_timeout", "1s");
    let good = fs::read_to_string(nats.config_file()).unwrap();
    write(nats.config_file(), format!("{good}\nno_such_setting: 1\n"));
    pb.update("nats_users", &bob, &json!({"active": false}));
    let failed = pb_nats.once().exits(1);
    assert!(
        failed.stderr.contains("no_such_setting") || failed.stderr.contains("its log says why"),
        "{failed:?}"
    );
    let file = fs::read_to_string(nats.auth_file()).unwrap();
    assert!(!file.contains("\"bob\""), "so that bob does not return with a restart");
    write(nats.config_file(), &good);
    pb_nats.unset("nats.reload_timeout");
    pb_nats.once().success();
    assert!(!nats.accepts("bob", PASSWORD) && nats.accepts("ann", PASSWORD));
}

/// `check` asks nats-server itself, and says if it could not.
#[test]
fn what_nats_server_has_against_the_main_config_is_told_beforehand() {
    let (_pb, nats, mut pb_nats) = town(Setup::default());
    pb_nats.once().success();
    let check = |it: &PbNats| it.command(&["check"]).success().stdout;
    let accepted = "nats-server starts with it";
    assert!(check(&pb_nats).contains(accepted));
    let good = fs::read_to_string(nats.config_file()).unwrap();
    write(nats.config_file(), format!("{good}\nno_such_setting: 1\n"));
    let refused = check(&pb_nats);
    assert!(refused.contains("no_such_setting") && !refused.contains(accepted));
    write(nats.config_file(), &good);
    pb_nats.set("nats.server_binary", "nats-servr");
    assert!(check(&pb_nats).contains("! main config  `nats-servr` cannot be run"));
}

#[test]
fn a_main_config_that_does_not_use_the_file_is_named() {
    let (_pb, nats, pb_nats) = town(Setup::default());
    let good = fs::read_to_string(nats.config_file()).unwrap();
    write(nats.config_file(), good.replace("include \"auth.conf\"", ""));
    let without = pb_nats.once().exits(1);
    assert!(without.stderr.contains("does not include the auth file"), "{without:?}");
    assert!(
        pb_nats
            .command(&["check"])
            .exits(1)
            .stdout
            .contains("✗ main config  the main config does not include")
    );
    write(
        nats.config_file(),
        format!("{good}\nauthorization {{ users = [ {{user: late, password: late}} ] }}\n"),
    );
    let overridden = pb_nats.once().exits(1);
    assert!(overridden.stderr.contains("stands behind the include"), "{overridden:?}");
    write(nats.config_file(), &good);
    pb_nats.once().success();
    assert!(nats.accepts("ann", PASSWORD));
}

/// Needs to mount, which needs root: `cargo xtask ci` asks for it.
#[test]
fn a_bind_mount_is_written_in_place() {
    if env::var_os("PB_NATS_TEST_ROOT").is_none() {
        return;
    }
    let (_pb, nats, pb_nats) = town(Setup::default());
    let inode = fs::metadata(nats.auth_file()).unwrap().ino();
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", "mount --bind \"$2\" \"$2\" && exec \"$0\" -c \"$1\" once"])
        .args([PB_NATS.as_ref(), pb_nats.settings_file().as_os_str(), nats.auth_file().as_os_str()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("written in place"), "{said}");
    assert_eq!(fs::metadata(nats.auth_file()).unwrap().ino(), inode);
    assert!(nats.accepts("ann", PASSWORD));
}

/// As another user: to root no mode is an obstacle. `cargo xtask ci` asks for it.
#[test]
fn a_folder_that_may_not_be_written_is_named() {
    if env::var_os("PB_NATS_TEST_ROOT").is_none() {
        return;
    }
    let (_pb, nats, pb_nats) = town(Setup::default());
    let nobody = |command: &str| {
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", PB_NATS, "-c"])
            .args([pb_nats.settings_file().as_os_str(), command.as_ref()])
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for folder in [pb_nats.dir(), nats.dir()] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let (code, said) = nobody("once");
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("auth.conf") && said.contains("Permission denied") && said.contains("hint: "),
        "{said}"
    );
    assert!(!nats.is_open());
}

/// To give a file to another group takes root: `cargo xtask ci` asks for it.
#[test]
fn a_new_file_has_the_group_that_is_set() {
    if env::var_os("PB_NATS_TEST_ROOT").is_none() {
        return;
    }
    let (_pb, nats, mut pb_nats) = town(Setup::default());
    fs::remove_file(nats.auth_file()).unwrap();
    pb_nats.set("auth_file.group", "no-such-group");
    let refused = pb_nats.once().exits(1);
    assert!(refused.stderr.contains("there is no group `no-such-group`"), "{refused:?}");
    assert!(!nats.auth_file().exists());
    pb_nats.set("auth_file.group", "daemon");
    pb_nats.once().success();
    let file = fs::metadata(nats.auth_file()).unwrap();
    let groups = fs::read_to_string("/etc/group").unwrap();
    let daemon = groups.lines().find_map(|it| it.strip_prefix("daemon:")).unwrap();
    assert_eq!(file.gid().to_string(), daemon.split(':').nth(1).unwrap());
    assert_eq!(mode(nats.auth_file()), 0o640);
}
