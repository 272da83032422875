//! `--keep-clean`: the drive's file system is read-only except during a batch. The drive is ext4 on
//! a loop device, mounted with options of which none may change.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::geteuid;

use crate::lab::{
    Backend, Lab, Tree, assert_content, content, exit, ferryfs_binary, has, run, sh, skip, text,
    wait_until, write,
};

const SOON: Duration = Duration::from_secs(30);

/// A lab whose drive is a file system of its own, mounted; `None` where that cannot be had.
pub(super) fn ext4() -> Option<Lab> {
    if !geteuid().is_root() || !has("mkfs.ext4") {
        skip("a drive that is remounted needs root and mkfs.ext4");
        return None;
    }
    let lab = Lab::new(Backend::Ext4Dir)?;
    let drive = text(lab.drive.path());
    let script = format!(
        "truncate -s 64M disk.img && mkfs.ext4 -q -F disk.img && \
         mount -o loop,nodev,noatime,commit=7,errors=continue disk.img '{drive}'"
    );
    sh(lab.root(), &script).ok();
    Some(lab)
}

/// The options of the drive in the mount table: of the mount, and of the file system.
fn drive_options(lab: &Lab) -> (String, String) {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
    let line = table
        .lines()
        .rfind(|line| line.split(' ').nth(4) == Some(&text(lab.drive.path())));
    let line = line.expect("the drive is mounted");
    let mount = line.split(' ').nth(5).expect("options").to_owned();
    (mount, line.rsplit(' ').next().expect("options").to_owned())
}

fn is_read_only(lab: &Lab) -> bool {
    drive_options(lab).1.split(',').any(|word| word == "ro")
}

fn remount(lab: &Lab, how: &str) {
    let drive = text(lab.drive.path());
    sh(lab.root(), &format!("mount -o remount,{how} '{drive}'")).ok();
}

/// The exit code of a script that may fail.
fn sh_code(lab: &Lab, script: &str) -> i32 {
    let mut command = Command::new("sh");
    run(command.args(["-c", script]).current_dir(lab.root())).code
}

fn attention(lab: &Lab) -> String {
    lab.status()["attention"].to_string()
}

fn assert_drive_is_mount(lab: &Lab) {
    let on_drive = Tree::read(lab.drive.path()).without(".ferryfs");
    let in_mount = Tree::read(&lab.mnt);
    in_mount.assert_same(&on_drive.without("lost+found"), "the mount", "the drive");
}

/// Unmounts all, and lets the checker look at the disk.
fn finish(mut lab: Lab) {
    if lab.is_mounted() {
        lab.unmount();
    }
    let drive = text(lab.drive.path());
    sh(
        lab.root(),
        &format!("umount '{drive}' && e2fsck -f -n disk.img"),
    )
    .ok();
}

#[test]
fn the_drive_is_read_only_except_in_a_batch_and_keeps_its_options() {
    let Some(mut lab) = ext4() else { return };
    let (mount, found) = drive_options(&lab);
    assert!(
        found.starts_with("rw,") && found.contains("commit=7"),
        "{found}"
    );
    lab.mount(&["--keep-clean"]);
    let kept = found.replacen("rw", "ro", 1);
    assert_eq!(drive_options(&lab), (mount.clone(), kept.clone()));
    // Nobody else can make the drive unclean.
    let refused = fs::write(lab.d("by another"), b"x").expect_err("a read-only drive");
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    write(&lab.m("dir/a"), &content(1, 3_000_000));
    assert_eq!(lab.flush()["batch"], 1);
    assert_eq!(drive_options(&lab), (mount.clone(), kept.clone()));
    assert_content(lab.d("dir/a"), content(1, 3_000_000));
    let status = lab.status();
    assert_eq!(status["kept_clean"]["read_only"], true);
    assert_eq!(status["safe_to_unplug"], true);
    assert_eq!(status["warnings"], serde_json::json!([]));
    assert_eq!(attention(&lab), "[]");
    let mnt = text(&lab.mnt);
    let brief = lab.ferryfs(&["status", "--brief", &mnt]).ok().stdout;
    assert_eq!(brief, "safe now\n");
    write(&lab.m("dir/b"), b"waits");
    let brief = lab.ferryfs(&["status", "--brief", &mnt]).ok().stdout;
    assert!(brief.starts_with("safe in about "), "{brief}");
    // An eject leaves it clean; after an attach all goes on.
    lab.eject();
    assert_eq!(drive_options(&lab), (mount.clone(), kept.clone()));
    let drive = text(lab.drive.path());
    lab.ferryfs(&["attach", &drive, &mnt]).code(exit::DONE);
    assert_eq!(drive_options(&lab), (mount.clone(), kept));
    write(&lab.m("dir/c"), b"c");
    lab.flush();
    assert_drive_is_mount(&lab);
    // As it was found.
    lab.unmount();
    assert_eq!(drive_options(&lab), (mount, found));
    finish(lab);
}

#[test]
fn a_program_that_writes_to_the_drive_is_named_and_never_forced() {
    let Some(mut lab) = ext4() else { return };
    // Open for writing since before the mount.
    let theirs = fs::File::create(lab.d("theirs")).expect("create");
    lab.mount(&["--keep-clean"]);
    assert!(!is_read_only(&lab));
    let line = attention(&lab);
    assert!(
        line.contains("not read-only between flushes") && line.contains("fuser -vm"),
        "{line}"
    );
    assert_eq!(lab.status()["safe_to_unplug"], false);
    write(&lab.m("a"), b"a");
    lab.flush();
    assert!(!is_read_only(&lab));
    drop(theirs);
    wait_until("the drive to be read-only", SOON, || is_read_only(&lab));
    wait_until("the line to go", SOON, || attention(&lab) == "[]");
    assert_eq!(lab.status()["safe_to_unplug"], true);
    finish(lab);
}

#[test]
fn a_killed_daemon_leaves_a_drive_that_the_next_mount_keeps_clean() {
    let Some(mut lab) = ext4() else { return };
    lab.mount(&["--keep-clean"]);
    write(&lab.m("a"), b"a");
    lab.flush();
    lab.kill9();
    assert!(is_read_only(&lab));
    lab.remount();
    assert!(is_read_only(&lab));
    // Killed in a batch: the drive is writable, and the batch is not finished.
    write(&lab.m("large"), &content(2, 20_000_000));
    let mut flush = lab
        .command(&["flush", &text(&lab.mnt)])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("flush");
    let begun = Instant::now();
    while is_read_only(&lab) && begun.elapsed() < SOON {}
    lab.kill9();
    let _ = flush.wait();
    lab.remount();
    assert!(is_read_only(&lab));
    lab.flush_interrupted();
    assert!(is_read_only(&lab));
    assert_drive_is_mount(&lab);
    // A mount without the option finds a drive that the last one has left read-only.
    lab.kill9();
    remount(&lab, "rw");
    lab.mount(&[]);
    write(&lab.m("more"), b"more");
    lab.flush();
    assert!(!is_read_only(&lab));
    assert_drive_is_mount(&lab);
    finish(lab);
}

#[test]
fn what_a_user_remounts_is_seen_and_respected() {
    let Some(mut lab) = ext4() else { return };
    lab.mount(&["--keep-clean"]);
    // Writable between two flushes: left so until the next one has ended.
    remount(&lab, "rw");
    fs::write(lab.d("by hand"), b"by hand").expect("write to the drive");
    assert_eq!(lab.status()["kept_clean"]["read_only"], false);
    write(&lab.m("a"), b"a");
    lab.flush();
    assert!(is_read_only(&lab));
    // This very mount read-only: nothing is written, and nothing is lost.
    remount(&lab, "ro");
    write(&lab.m("b"), b"b");
    let failed = lab.flush_code(exit::NO_BACKEND);
    assert!(failed.stderr.contains("read-only"), "{}", failed.stderr);
    let line = attention(&lab);
    assert!(
        line.contains("was not made writable") && line.contains("Nothing is lost"),
        "{line}"
    );
    assert!(is_read_only(&lab));
    assert_content(lab.m("b"), b"b");
    remount(&lab, "rw");
    lab.flush();
    assert!(is_read_only(&lab));
    assert_eq!(attention(&lab), "[]");
    assert_content(lab.d("b"), b"b");
    finish(lab);
}

#[test]
fn a_write_protected_drive_keeps_all_in_the_cache() {
    let Some(mut lab) = ext4() else { return };
    let node = "$(losetup -n -O NAME -j disk.img)";
    lab.mount(&["--keep-clean"]);
    write(&lab.m("a"), b"a");
    sh(lab.root(), &format!("blockdev --setro {node}")).ok();
    let failed = lab.flush_code(exit::NO_BACKEND);
    assert!(failed.stderr.contains("read-only"), "{}", failed.stderr);
    assert!(attention(&lab).contains("was not made writable"));
    assert_content(lab.m("a"), b"a");
    sh(lab.root(), &format!("blockdev --setrw {node}")).ok();
    lab.flush();
    assert_content(lab.d("a"), b"a");
    assert!(is_read_only(&lab));
    finish(lab);
}

#[test]
fn a_drive_that_an_error_has_made_read_only_is_not_made_writable() {
    let Some(mut lab) = ext4() else { return };
    lab.mount(&["--keep-clean"]);
    write(&lab.m("a"), b"a");
    lab.flush();
    lab.kill9();
    // As the kernel leaves it after an error: marked, and the file system read-only by itself.
    remount(&lab, "rw");
    let script = "node=$(losetup -n -O NAME -j disk.img); \
                  echo 1 >/sys/fs/ext4/${node##*/}/trigger_fs_error";
    if sh_code(&lab, script) != 0 {
        return skip("this kernel has no trigger for an error of ext4");
    }
    wait_until("the mark of the error", SOON, || {
        sh_code(
            &lab,
            "sync; dumpe2fs -h disk.img 2>&1 | grep -q 'with errors'",
        ) == 0
    });
    let drive = text(lab.drive.path());
    let script = format!(
        "mkdir other && mount --bind '{drive}' other && mount -o remount,ro other && umount other"
    );
    sh(lab.root(), &script).ok();
    let found = drive_options(&lab);
    assert!(
        found.0.starts_with("rw") && found.1.starts_with("ro"),
        "{found:?}"
    );
    lab.remount();
    assert_eq!(drive_options(&lab), found);
    write(&lab.m("b"), b"b");
    lab.flush_code(exit::NO_BACKEND);
    assert_eq!(drive_options(&lab), found);
    let line = attention(&lab);
    assert!(line.contains("marked as not clean"), "{line}");
    lab.unmount_with(&["--no-flush"]);
    assert_eq!(drive_options(&lab), found);
    // Checked and mounted again, it takes what has waited.
    let script = format!(
        "umount '{drive}'; e2fsck -f -p disk.img || [ $? = 1 ]; mount -o loop disk.img '{drive}'"
    );
    sh(lab.root(), &script).ok();
    lab.remount();
    lab.flush();
    assert_content(lab.d("b"), b"b");
    finish(lab);
}

#[test]
fn a_drive_that_cannot_be_kept_clean_is_refused_before_anything_is_changed() {
    let Some(lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    // On the disk of the system.
    lab.try_mount(&["--keep-clean"])
        .refuses(exit::FAILED, "is on the same file system");
    assert!(!lab.d(".ferryfs").exists());
    if !geteuid().is_root() {
        return;
    }
    let drive = text(lab.drive.path());
    sh(
        lab.root(),
        &format!("mount -t tmpfs -o size=16m none '{drive}'"),
    )
    .ok();
    lab.try_mount(&["--keep-clean"])
        .refuses(exit::FAILED, "only exFAT");
    lab.try_mount(&["--keep-clean", "--lease", "always"])
        .refuses(exit::FAILED, "lease");
    assert!(!lab.d(".ferryfs").exists());
    sh(lab.root(), &format!("umount '{drive}'")).ok();
    let Some(lab) = Lab::new(Backend::Exfat(64)) else {
        return;
    };
    lab.try_mount(&["--keep-clean"])
        .refuses(exit::FAILED, "FUSE");
    assert!(!lab.d(".ferryfs").exists());
    lab.finish();
}

#[test]
fn a_user_without_the_right_is_told_what_is_needed() {
    let Some(mut lab) = ext4() else { return };
    if !has("setpriv") {
        return skip("no setpriv");
    }
    let args = lab.mount_args(&["--keep-clean"]);
    let without = ["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"];
    let mut command = Command::new("setpriv");
    command
        .args(without)
        .arg(ferryfs_binary())
        .args(args)
        .env("HOME", lab.root().join("home"))
        .env("XDG_DATA_HOME", lab.root().join("data"));
    run(&mut command).refuses(exit::FAILED, "CAP_SYS_ADMIN");
    assert!(!is_read_only(&lab));
    lab.mount(&[]);
    finish(lab);
}
