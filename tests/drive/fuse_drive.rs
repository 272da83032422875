//! Drives of FUSE without a block device: `syncfs` never reaches their daemons, and what was not
//! synced file by file is lost when the machine that they run on loses power.

use crate::{lab, lossy_fuse};

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::lab::{Backend, Lab, Tree, content, exit, write};
use ferryfs::core::{RelPath, Timestamp};
use ferryfs::drive::Backend as _;
use ferryfs::drive::mounted::MountedDir;
use lossy_fuse::LossyFuse;

fn rel(path: &str) -> RelPath {
    RelPath::parse(path.as_bytes()).expect("a path")
}

/// A lab whose drive's directory is such a file system.
fn lab_on_fuse() -> Option<(Lab, LossyFuse)> {
    if !nix::unistd::geteuid().is_root() {
        lab::skip("mounting a FUSE drive needs root");
        return None;
    }
    let mut lab = Lab::new(Backend::Ext4Dir)?;
    let drive = LossyFuse::mount(lab.drive.path()).expect("mount the FUSE drive");
    lab.mount(&[]);
    Some((lab, drive))
}

fn put(backend: &MountedDir, path: &str, bytes: &[u8]) {
    let mut file = backend.create(&rel(path)).expect("create");
    file.append(bytes).expect("append");
    file.finish(Timestamp::from_parts(1_700_000_000, 0))
        .expect("finish");
}

#[test]
fn what_was_synced_outlives_a_crash_of_the_fuse_daemon() {
    let Some(lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    if !nix::unistd::geteuid().is_root() {
        return lab::skip("mounting a FUSE drive needs root");
    }
    let mut drive = LossyFuse::mount(lab.drive.path()).expect("mount the FUSE drive");
    let backend = MountedDir::open(lab.drive.path()).expect("open");
    backend.make_dir(&rel("dir")).expect("mkdir");
    backend.make_dir(&rel("dir/old")).expect("mkdir");
    put(&backend, "dir/old/moved", b"moved");
    put(&backend, "dir/gone", b"gone");
    backend.sync().expect("sync");
    // A directory that changed is renamed before anything is synced.
    put(&backend, "dir/old/new", b"new");
    backend.rename(&rel("dir/old"), &rel("new")).expect("mv");
    backend.remove_file(&rel("dir/gone")).expect("rm");
    backend
        .set_permissions(&rel("new/moved"), 0o640)
        .expect("chmod");
    backend.sync().expect("sync");
    put(&backend, "not synced", b"lost");
    drop(backend);
    drive.crash();

    let backend = MountedDir::open(lab.drive.path()).expect("open");
    let found = |path: &str| fs::read(lab.d(path)).ok();
    assert_eq!(found("new/moved").as_deref(), Some(&b"moved"[..]));
    assert_eq!(found("new/new").as_deref(), Some(&b"new"[..]));
    assert_eq!(found("dir/gone"), None);
    assert!(!lab.d("dir/old").exists());
    let moved = backend.metadata(&rel("new/moved")).expect("stat");
    assert_eq!(moved.permissions, 0o640);
    assert_eq!(moved.modified, Timestamp::from_parts(1_700_000_000, 0));
    // That this drive forgets is what makes the rest of it mean something.
    assert_eq!(found("not synced"), None);
    drop(drive);
    lab.finish();
}

#[test]
fn a_flushed_batch_outlives_a_crash_of_the_fuse_daemon() {
    let Some((mut lab, mut drive)) = lab_on_fuse() else {
        return;
    };
    for n in 0..40 {
        write(&lab.m(format!("d{}/f{n}", n % 5)), &content(n, 3000));
    }
    lab.flush();
    fs::rename(lab.m("d1"), lab.m("renamed")).expect("mv");
    fs::remove_dir_all(lab.m("d2")).expect("rm -r");
    write(&lab.m("d3/f3"), &content(99, 5000));
    lab.flush();
    let expected = Tree::read(&lab.mnt);
    lab.unmount();
    drive.crash();

    lab.take_new_cache();
    lab.mount(&[]);
    let found = Tree::read(&lab.mnt);
    expected.assert_same(&found, "before the crash", "after it");
    lab.assert_drive_is_mount();
    lab.unmount();
    drop(drive);
    lab.finish();
}

#[test]
fn a_batch_that_the_fuse_daemon_crashes_in_is_there_as_a_whole_after_recovery() {
    let Some((mut lab, mut drive)) = lab_on_fuse() else {
        return;
    };
    for n in 0..30 {
        write(&lab.m(format!("d{}/f{n}", n % 3)), &content(n, 2000));
    }
    lab.flush();
    for round in 0..5 {
        for n in 0..30 {
            write(
                &lab.m(format!("d{}/f{n}", n % 3)),
                &content(round * 100 + n, 2500),
            );
        }
        let (from, to) = (lab.m(format!("m{round}")), lab.m(format!("m{}", round + 1)));
        match round {
            0 => fs::create_dir(to).expect("mkdir"),
            _ => fs::rename(from, to).expect("mv"),
        }
        let begun = drive.syncs();
        let mut flush = lab
            .command(&["flush", &lab::text(&lab.mnt)])
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("flush");
        // Somewhere between the first staged file and the end.
        let so_far = begun + 1 + round * 17;
        lab::wait_until("the flush to get on", Duration::from_secs(60), || {
            drive.syncs() >= so_far || flush.try_wait().expect("wait").is_some()
        });
        lab.kill9();
        let _ = flush.wait();
        drive.crash();
        lab.remount();
        lab.flush_interrupted();
        lab.assert_drive_is_mount();
    }
    lab.unmount();
    drop(drive);
    lab.finish();
}

#[test]
fn a_file_system_mounted_inside_the_drive_is_synced_as_well() {
    let Some(lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    if !nix::unistd::geteuid().is_root() {
        return lab::skip("mounting a FUSE drive needs root");
    }
    fs::create_dir(lab.d("inside")).expect("mkdir");
    let mut drive = LossyFuse::mount(&lab.d("inside")).expect("mount the FUSE drive");
    let backend = MountedDir::open(lab.drive.path()).expect("open");
    put(&backend, "outside", b"outside");
    put(&backend, "inside/file", b"inside");
    backend.sync().expect("sync");
    drive.crash();
    assert_eq!(
        fs::read(lab.d("inside/file")).ok().as_deref(),
        Some(&b"inside"[..])
    );
    let synced = drive.syncs();
    // What has not changed is not synced again.
    put(&backend, "outside too", b"outside");
    backend.sync().expect("sync");
    assert_eq!(drive.syncs(), synced);
    // What was written to is gone: that is no success.
    put(&backend, "inside/more", b"inside");
    drop(drive);
    let error = backend.sync().expect_err("not mounted any more");
    assert_eq!(error.source.raw_os_error(), Some(libc::ENODEV));
    assert!(backend.sync().is_ok());

    lab.finish();
}

/// An `rclone mount` of a directory, as a drive.
struct Rclone {
    place: PathBuf,
    served: std::process::Child,
}

impl Rclone {
    /// As the drive of the lab.
    fn mount(lab: &Lab, options: &[&str]) -> Rclone {
        Rclone::mount_at(lab, lab.drive.path().into(), options)
    }

    fn mount_at(lab: &Lab, place: PathBuf, options: &[&str]) -> Rclone {
        let remote = lab.root().join("remote");
        fs::create_dir_all(&remote).expect("mkdir");
        fs::create_dir_all(&place).expect("mkdir");
        let home = lab.root().join("rclone");
        let served = std::process::Command::new("rclone")
            .arg("mount")
            .args([&remote, &place])
            .args(options)
            .args(["--attr-timeout", "0s", "--dir-cache-time", "0s"])
            .arg("--cache-dir")
            .arg(&home)
            .env("RCLONE_CONFIG", home.with_extension("conf"))
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("rclone");
        let rclone = Rclone { place, served };
        lab::wait_until("rclone to mount", Duration::from_secs(60), || {
            rclone.is_mounted()
        });
        rclone
    }

    fn is_mounted(&self) -> bool {
        let table = ferryfs::sys::mounts::mounts().expect("mount table");
        table.iter().any(|mount| mount.mount_point == self.place)
    }
}

impl Drop for Rclone {
    fn drop(&mut self) {
        let place = &self.place;
        let unmount = std::process::Command::new("umount").arg(place).status();
        if !unmount.is_ok_and(|status| status.success()) {
            let _ = self.served.kill();
            let _ = std::process::Command::new("umount")
                .args(["-l"])
                .arg(place)
                .status();
        }
        let _ = self.served.wait();
    }
}

#[test]
fn an_rclone_mount_that_uploads_later_is_refused_with_a_way_out() {
    let Some(lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    if !lab::has("rclone") {
        return lab::skip("rclone is not installed");
    }
    for mode in ["writes", "full"] {
        let rclone = Rclone::mount(&lab, &["--vfs-cache-mode", mode]);
        let refused = lab.try_mount(&[]).refuses(exit::FAILED, "rclone");
        assert!(refused.stderr.contains(&format!("--vfs-cache-mode {mode}")));
        assert!(
            refused.stderr.contains("--vfs-cache-mode off"),
            "{}",
            refused.stderr
        );
        assert!(
            !lab.d(".ferryfs").exists(),
            "a drive that is refused is left alone"
        );
        drop(rclone);
    }
    let rclone = Rclone::mount(&lab, &["--vfs-cache-mode=writes"]);
    lab.try_mount(&["--allow-write-back-drive"])
        .code(exit::DONE);
    write(&lab.m("file"), b"bytes");
    lab.flush();
    lab.ferryfs(&["unmount", &lab::text(&lab.mnt)])
        .code(exit::DONE);
    drop(rclone);
    lab.finish();
}

#[test]
fn an_rclone_mount_that_uploads_later_inside_the_drive_is_not_written_to() {
    let Some(lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    if !lab::has("rclone") {
        return lab::skip("rclone is not installed");
    }
    let rclone = Rclone::mount_at(&lab, lab.d("cloud"), &["--vfs-cache-mode", "full"]);
    lab.try_mount(&[]).code(exit::DONE);
    write(&lab.m("cloud/a"), b"a");
    write(&lab.m("b"), b"b");
    let done = lab.flush_code(exit::LEFT_BEHIND);
    assert!(done.stdout.contains("\"cloud/a\""), "{}", done.stdout);
    assert!(done.stdout.contains("rclone"), "{}", done.stdout);
    lab::assert_content(lab.d("b"), b"b");
    assert!(!lab.d("cloud/a").exists());
    assert!(lab.status()["warnings"].to_string().contains("cloud: "));
    lab.ferryfs(&["unmount", "--no-flush", &lab::text(&lab.mnt)])
        .code(exit::DONE);
    drop(rclone);
    lab.finish();
}

#[test]
fn an_rclone_mount_without_a_cache_is_a_drive() {
    let Some(lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    if !lab::has("rclone") {
        return lab::skip("rclone is not installed");
    }
    let rclone = Rclone::mount(&lab, &["--vfs-cache-mode", "off"]);
    lab.try_mount(&[]).code(exit::DONE);
    for n in 0..10 {
        write(&lab.m(format!("d{}/f{n}", n % 3)), &content(n, 3000));
    }
    lab.flush();
    fs::rename(lab.m("d1"), lab.m("renamed")).expect("mv");
    write(&lab.m("d2/f2"), b"other bytes");
    lab.flush();
    lab.ferryfs(&["unmount", &lab::text(&lab.mnt)])
        .code(exit::DONE);
    // Without a wait: what was flushed is on the remote.
    let remote = lab.root().join("remote");
    assert_eq!(
        fs::read(remote.join("d2/f2")).expect("read"),
        b"other bytes"
    );
    assert_eq!(
        fs::read(remote.join("renamed/f1")).expect("read"),
        content(1, 3000)
    );
    assert!(!remote.join("d1").exists());
    drop(rclone);
    lab.finish();
}
