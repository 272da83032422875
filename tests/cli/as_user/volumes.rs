//! Who keeps whom off a volume: daemons of one user, of several users, and users who only claim to
//! have it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use super::paths::python_as;
use super::*;

/// Binds each name and listens. The queue of every other one is filled up.
const CLAIM: &str = r#"
import socket, sys, time
held = []
for n, name in enumerate(sys.argv[1:]):
    s = socket.socket(socket.AF_UNIX)
    s.bind("\0" + name)
    s.listen(1 if n % 2 else 1000)
    held.append(s)
    while n % 2:
        c = socket.socket(socket.AF_UNIX)
        c.setblocking(False)
        held.append(c)
        try:
            c.connect("\0" + name)
        except BlockingIOError:
            break
print("ready", flush=True)
time.sleep(600)
"#;

struct Claimer(Child);

impl Drop for Claimer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn claim_as(user: &User, names: &[String]) -> Claimer {
    let mut child = python_as(user, CLAIM)
        .args(names)
        .stdout(Stdio::piped())
        .spawn()
        .expect("start");
    let mut line = String::new();
    let out = child.stdout.take().expect("stdout");
    BufReader::new(out).read_line(&mut line).expect("read");
    assert_eq!(line, "ready\n");
    Claimer(child)
}

fn volume_of(drive: &Path) -> String {
    let marker = fs::read(drive.join(".ferryfs/volume.json")).expect("marker");
    let marker = ferryfs::format::marker::decode(&marker).expect("marker");
    marker.id.to_string()
}

#[test]
fn who_claims_the_volumes_of_others_keeps_nobody_off_them() {
    let Some(user) = nobody() else { return };
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    lab.unmount();
    let volume = volume_of(lab.drive.path());
    let mut names = vec![format!("ferryfs-volume-{volume}")];
    names.extend((0..40).map(|n| format!("ferryfs-volume/{volume}/{n:032x}")));
    let _claimer = claim_as(&user, &names);
    lab.mount(&[]);
    let log = fs::read_to_string(lab.cache.join("ferryfs.log")).expect("the log");
    for ignored in ["cannot write to the drive claim", "do not answer"] {
        assert!(log.contains(ignored), "{ignored:?} is not in: {log}");
    }
    lab.unmount();
    lab.ferryfs(&["recover", &text(lab.drive.path())])
        .code(exit::DONE);
    // Of one who can write to the drive it is believed: he could harm it anyway.
    chown(lab.d(".ferryfs"), Some(user.uid), None).expect("chown");
    let refused = lab
        .try_mount(&[])
        .refuses(exit::FAILED, "in use by another ferryfs");
    assert!(
        refused.stderr.contains(&format!("of user {}", user.uid)),
        "{refused:?}"
    );
    chown(lab.d(".ferryfs"), Some(0), None).expect("chown");
    lab.finish();
}

/// `mount` by the user in a network namespace of its own, with a cache of its own.
fn mount_apart(lab: &Lab, user: &User, program: &Path, name: &str) -> Done {
    let home = lab.root().join("home");
    let mnt = home.join(format!("mnt-{name}"));
    fs::create_dir_all(&mnt).expect("mkdir");
    chown(&mnt, Some(user.uid), Some(user.gid)).expect("chown");
    let mut command = Command::new("unshare");
    command
        .args(["--net", "--", "setpriv"])
        .args(becoming(user))
        .arg("--")
        .arg(program)
        .args(["mount", "--no-auto-flush", "--cache"])
        .arg(home.join(format!("cache-{name}")))
        .args([lab.drive.path(), &mnt])
        .current_dir("/")
        .env("XDG_DATA_HOME", home.join("data"))
        .env("HOME", &home);
    run(&mut command)
}

#[test]
fn two_daemons_of_one_user_in_two_network_namespaces_do_not_share_a_volume() {
    let Some(nobody) = nobody() else { return };
    if !users_can_mount() {
        return;
    }
    let _fuse = OpenFuse::new();
    for user in [User { uid: 0, gid: 0 }, nobody] {
        let Some((mut lab, program)) = lab_of(&user) else {
            return;
        };
        mount_apart(&lab, &user, &program, "a").code(exit::DONE);
        let status = [
            "status",
            "--json",
            "--cache",
            &text(&lab.root().join("home/cache-a")),
        ];
        let pid = as_user(&lab, &user, &program, &status).json()["pid"]
            .as_i64()
            .expect("pid");
        let refused = mount_apart(&lab, &user, &program, "b");
        let refused = refused.refuses(exit::FAILED, "in use by another ferryfs");
        assert!(
            refused.stderr.contains("mnt-a") || refused.stderr.contains(&pid.to_string()),
            "{refused:?}"
        );
        // Its lock is gone with it.
        lab.kill(pid as i32);
        mount_apart(&lab, &user, &program, "b").code(exit::DONE);
        let mnt = text(&lab.root().join("home/mnt-b"));
        as_user(&lab, &user, &program, &["unmount", &mnt]).code(exit::DONE);
        lab::sh(lab.root(), "umount -l home/mnt-a");
    }
}

#[test]
fn two_users_do_not_work_on_one_drive_at_once() {
    let Some(first) = nobody() else { return };
    if !users_can_mount() {
        return;
    }
    let Some(second) = nix::unistd::User::from_name("daemon").ok().flatten() else {
        return skip("there is no user daemon");
    };
    let second = User {
        uid: second.uid.as_raw(),
        gid: second.gid.as_raw(),
    };
    let _fuse = OpenFuse::new();
    let Some((lab, program)) = lab_of(&first) else {
        return;
    };
    let (drive, mnt) = (text(lab.drive.path()), text(&lab.mnt));
    let other = lab.root().join("other");
    fs::create_dir_all(other.join("mnt")).expect("mkdir");
    for dir in [&other, &other.join("mnt")] {
        chown(dir, Some(second.uid), Some(second.gid)).expect("chown");
    }
    let (theirs, cache) = (text(&other.join("mnt")), text(&other.join("cache")));
    let mount = ["mount", "--no-auto-flush", &drive, &mnt];
    let their_mount = [
        "mount",
        "--no-auto-flush",
        "--cache",
        &cache,
        &drive,
        &theirs,
    ];
    as_user(&lab, &first, &program, &mount).code(exit::DONE);
    // Shared, as an exFAT drive with umask 0 is.
    lab::sh(lab.drive.path(), "chmod -R a+rwX . ");
    let done = as_user(&lab, &second, &program, &their_mount);
    let refused = done.refuses(exit::FAILED, "in use by another ferryfs");
    assert!(
        refused
            .stderr
            .contains(&format!("of user {} (pid ", first.uid)),
        "{refused:?}"
    );
    as_user(&lab, &first, &program, &["unmount", &mnt]).code(exit::DONE);
    as_user(&lab, &second, &program, &their_mount).code(exit::DONE);
    let done = as_user(&lab, &first, &program, &mount);
    done.refuses(exit::FAILED, "in use by another ferryfs");
    as_user(&lab, &second, &program, &["unmount", &theirs]).code(exit::DONE);
}

/// A daemon that began without the drive cannot tell whom to believe before it is there. Then it
/// asks.
#[test]
fn a_drive_that_comes_back_is_not_taken_while_another_user_has_it() {
    let Some(user) = nobody() else { return };
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    lab.unmount();
    let volume = volume_of(lab.drive.path());
    lab::sh(lab.drive.path(), "chmod -R a+rwX .");
    let away = lab.root().join("away");
    fs::rename(lab.drive.path(), &away).expect("rename");
    lab.mount(&[]);
    let claim = format!("ferryfs-volume/{volume}/{:032x}", 0);
    let claimer = claim_as(&user, &[claim]);
    fs::rename(&away, lab.drive.path()).expect("rename");
    let refused = || {
        let status = lab.status();
        let told = status["last_error"].as_str().unwrap_or_default().to_owned();
        assert_ne!(status["backend_state"], "attached", "{status}");
        told.contains("in use by another ferryfs of user")
    };
    lab::wait_until("it to be told", Duration::from_secs(30), refused);
    let attach = ["attach".to_owned(), text(lab.drive.path()), text(&lab.mnt)];
    lab.ferryfs(&attach)
        .refuses(exit::FAILED, "in use by another ferryfs");
    drop(claimer);
    lab::wait_until("it to be attached", Duration::from_secs(90), || {
        lab.status()["backend_state"] == "attached"
    });
    lab.finish();
}
