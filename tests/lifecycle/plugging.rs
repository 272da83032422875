//! The drive is switched off by an eject, and the machine does not sleep in a batch.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use crate::keep_clean::ext4;
use crate::lab::{
    Backend, Lab, assert_content, content, exit, has, run, sh, skip, text, wait_until, write,
};

const SOON: Duration = Duration::from_secs(30);

/// A program `name` in front of all others: a shell script, with `$LOG` for its log. The new PATH,
/// and the log.
fn program(lab: &Lab, name: &str, script: &str) -> (String, PathBuf) {
    let (dir, log) = (
        lab.root().join("bin"),
        lab.root().join(format!("{name}.log")),
    );
    fs::create_dir_all(&dir).expect("make bin");
    fs::write(&log, "").expect("make the log");
    let script = format!("#!/bin/sh\nLOG='{}'\n{script}\n", text(&log));
    fs::write(dir.join(name), script).expect("write the program");
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(dir.join(name), mode).expect("chmod");
    let path = std::env::var("PATH").expect("PATH");
    (format!("{}:{path}", text(&dir)), log)
}

fn is_drive_mounted(lab: &Lab) -> bool {
    sh(
        lab.root(),
        &format!("mountpoint -q '{}' || echo no", text(lab.drive.path())),
    )
    .stdout
    .is_empty()
}

#[test]
fn an_eject_lets_udisks_unmount_the_drive_and_switch_it_off() {
    let Some(mut lab) = ext4() else { return };
    let script = r#"echo "$1 $2" >>"$LOG"; [ "$1" != unmount ] || exec umount "$3""#;
    let (path, log) = program(&lab, "udisksctl", script);
    lab.mount(&[]);
    write(&lab.m("a"), b"a");
    let mut eject = lab.command(&["eject", "--power-off", &text(&lab.mnt)]);
    let done = run(eject.env("PATH", &path)).code(exit::DONE);
    assert!(
        done.stdout.contains("is switched off: unplug it"),
        "{}",
        done.stdout
    );
    let log = fs::read_to_string(log).expect("the log");
    assert!(log.ends_with("unmount -b\npower-off -b\n"), "{log}");
    assert!(!is_drive_mounted(&lab));
    assert_eq!(lab.status()["backend_state"], "detached");
    // Plugged in again.
    let drive = text(lab.drive.path());
    sh(lab.root(), &format!("mount -o loop disk.img '{drive}'")).ok();
    wait_until("the drive to be back", SOON, || {
        lab.status()["backend_state"] == "attached"
    });
    assert_content(lab.d("a"), b"a");
    lab.unmount();
    sh(lab.root(), &format!("umount '{drive}'")).ok();
}

#[test]
fn a_drive_that_cannot_be_switched_off_is_unmounted_and_said_to_be_safe() {
    if has("udisksctl") {
        return skip("udisksctl is installed");
    }
    let Some(mut lab) = ext4() else { return };
    lab.mount(&["--keep-clean"]);
    write(&lab.m("a"), b"a");
    let mnt = text(&lab.mnt);
    let done = lab
        .ferryfs(&["eject", "--power-off", &mnt])
        .code(exit::FAILED);
    assert!(
        done.stderr.contains("was unmounted, and not switched off"),
        "{}",
        done.stderr
    );
    assert!(done.stderr.contains("safe to unplug"), "{}", done.stderr);
    assert!(!is_drive_mounted(&lab));
    lab.unmount();
    sh(lab.root(), "e2fsck -f -n disk.img").ok();
}

#[test]
fn a_directory_is_ejected_and_said_not_to_be_a_drive_that_can_be_switched_off() {
    let Some(lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    write(&lab.m("a"), b"a");
    let mnt = text(&lab.mnt);
    lab.ferryfs(&["eject", "--power-off", &mnt])
        .refuses(exit::FAILED, "not switched off");
    assert_eq!(lab.status()["backend_state"], "detached");
    assert_content(lab.d("a"), b"a");
    lab.finish();
}

#[test]
fn a_batch_delays_the_sleep_of_the_machine_and_a_dead_daemon_does_not() {
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    let script = r#"echo "held $*" >>"$LOG"; while [ "$1" != cat ]; do shift; done; "$@"; echo released >>"$LOG""#;
    let (path, log) = program(&lab, "systemd-inhibit", script);
    let mount = lab.mount_args(&[]);
    run(lab.command(&mount).env("PATH", &path)).code(exit::DONE);
    lab.adopt();
    let count = |word: &str| {
        let log = fs::read_to_string(&log).expect("the log");
        log.lines().filter(|line| line.starts_with(word)).count()
    };
    write(&lab.m("a"), b"a");
    lab.flush();
    wait_until("the lock to be released", SOON, || {
        count("released") == count("held") && count("held") >= 2
    });
    let words = fs::read_to_string(&log).expect("the log");
    assert!(words.contains("--what=sleep --mode=delay"), "{words}");
    // Between batches none is held.
    let before = count("held");
    write(&lab.m("large"), &content(1, 30_000_000));
    assert_eq!(count("held"), before);
    let mut flush = lab
        .command(&["flush", &text(&lab.mnt)])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("flush");
    wait_until("the lock to be taken", SOON, || count("held") > before);
    lab.kill9();
    let _ = flush.wait();
    wait_until("the lock to go with the daemon", SOON, || {
        count("released") == count("held")
    });
    lab.mount(&[]);
    lab.flush_interrupted();
    lab.finish();
}
