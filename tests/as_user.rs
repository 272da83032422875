//! An ordinary user mounts by fusermount3, with no privilege of ours: root starts these commands only to become that user.

#[path = "support/lab/mod.rs"]
mod lab;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lab::{Backend, Done, Lab, assert_content, content, exit, run, skip, text};

/// On every Linux there is a user `nobody`, who owns nothing.
struct User {
    uid: u32,
    gid: u32,
}

fn nobody() -> Option<User> {
    if !nix::unistd::geteuid().is_root() {
        skip("becoming another user needs root");
        return None;
    }
    let nobody = nix::unistd::User::from_name("nobody").ok().flatten();
    if nobody.is_none() {
        skip("there is no user nobody");
    }
    let nobody = nobody?;
    Some(User {
        uid: nobody.uid.as_raw(),
        gid: nobody.gid.as_raw(),
    })
}

/// Distributions give /dev/fuse mode 0666; a bare devtmpfs does not. Put back on drop; one test at a time has it.
struct OpenFuse {
    before: Option<u32>,
    _turn: MutexGuard<'static, ()>,
}

static FUSE: Mutex<()> = Mutex::new(());

impl OpenFuse {
    fn new() -> OpenFuse {
        let turn = FUSE.lock().unwrap_or_else(PoisonError::into_inner);
        let mode = fs::metadata("/dev/fuse").expect("/dev/fuse").mode() & 0o777;
        if mode & 0o006 == 0o006 {
            return OpenFuse {
                before: None,
                _turn: turn,
            };
        }
        eprintln!(
            "NOTE: /dev/fuse has mode {mode:o}, no user could mount; it is 666 for the time of this test"
        );
        fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666))
            .expect("chmod /dev/fuse");
        OpenFuse {
            before: Some(mode),
            _turn: turn,
        }
    }
}

impl Drop for OpenFuse {
    fn drop(&mut self) {
        if let Some(mode) = self.before {
            let _ = fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(mode));
        }
    }
}

/// A lab whose directories are the user's, and a copy of the program where the user can reach it.
fn lab_of(user: &User) -> Option<(Lab, PathBuf)> {
    let lab = Lab::new(Backend::Ext4Dir)?;
    for dir in ["mnt", "drive", "home"] {
        chown(lab.root().join(dir), Some(user.uid), Some(user.gid)).expect("chown");
    }
    let program = lab.root().join("ferryfs");
    fs::copy(lab::ferryfs_binary(), &program).expect("copy the program");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("chmod");
    Some((lab, program))
}

fn as_user(lab: &Lab, user: &User, program: &Path, args: &[&str]) -> Done {
    let home = lab.root().join("home");
    let mut command = Command::new("setpriv");
    command
        .arg(format!("--reuid={}", user.uid))
        .arg(format!("--regid={}", user.gid))
        .args(["--clear-groups", "--inh-caps=-all", "--"])
        .arg(program)
        .args(args)
        .current_dir("/")
        .env("XDG_DATA_HOME", home.join("data"))
        .env("HOME", home);
    // The bounding set stays: fusermount3 gains root by its own setuid bit.
    run(&mut command)
}

#[test]
fn ordinary_user_mounts_writes_flushes_and_unmounts() {
    let Some(user) = nobody() else { return };
    if fs::metadata("/usr/bin/fusermount3").map_or(0, |m| m.mode()) & 0o4000 == 0 {
        return skip("fusermount3 is not installed setuid");
    }
    let _fuse = OpenFuse::new();
    let Some((lab, program)) = lab_of(&user) else {
        return;
    };
    let (drive, mnt) = (text(lab.drive.path()), text(&lab.mnt));
    as_user(
        &lab,
        &user,
        &program,
        &["mount", "--no-auto-flush", &drive, &mnt],
    )
    .code(exit::DONE);
    assert!(lab.is_mounted());

    let shell = |script: &str| as_user(&lab, &user, Path::new("/bin/sh"), &["-euc", script]).ok();
    shell(&format!(
        "cd {mnt}; mkdir -p a/b; echo text > a/b/file; cp a/b/file a/copy; mv a/copy moved; echo more >> moved
         ln -s moved link; chmod 600 moved; test \"$(stat -c %U moved)\" = nobody; ls -la > listing; rm listing"
    ));
    let big = lab.root().join("home/big");
    fs::write(&big, content(1, 2 << 20)).expect("write");
    fs::set_permissions(&big, fs::Permissions::from_mode(0o644)).expect("chmod");
    shell(&format!(
        "cp {} {mnt}/big; cmp {} {mnt}/big",
        text(&big),
        text(&big)
    ));

    as_user(&lab, &user, &program, &["flush", &mnt]).code(exit::DONE);
    assert_content(lab.d("a/b/file"), b"text\n");
    assert_content(lab.d("moved"), b"text\nmore\n");
    assert!(fs::read(lab.d("big")).expect("read") == content(1, 2 << 20));
    assert_eq!(fs::metadata(lab.d("big")).expect("stat").uid(), user.uid);

    let status = as_user(&lab, &user, &program, &["status", "--json", &mnt])
        .code(exit::DONE)
        .json();
    assert_eq!(status["safe_to_unplug"], true, "{status}");
    as_user(&lab, &user, &program, &["unmount", &mnt]).code(exit::DONE);
    assert!(!lab.is_mounted());
    lab.finish();
}

#[test]
fn dead_mount_of_a_user_is_cleared_by_the_same_user() {
    let Some(user) = nobody() else { return };
    if fs::metadata("/usr/bin/fusermount3").map_or(0, |m| m.mode()) & 0o4000 == 0 {
        return skip("fusermount3 is not installed setuid");
    }
    let _fuse = OpenFuse::new();
    let Some((mut lab, program)) = lab_of(&user) else {
        return;
    };
    let (drive, mnt) = (text(lab.drive.path()), text(&lab.mnt));
    let mount = ["mount", "--no-auto-flush", &drive, &mnt];
    as_user(&lab, &user, &program, &mount).code(exit::DONE);
    as_user(
        &lab,
        &user,
        Path::new("/bin/sh"),
        &["-euc", &format!("echo kept > {mnt}/file")],
    )
    .ok();
    let pid = as_user(&lab, &user, &program, &["status", "--json", &mnt]).json()["pid"]
        .as_i64()
        .expect("pid");
    lab.kill(pid as i32);
    as_user(&lab, &user, &program, &mount).code(exit::DONE);
    let kept = as_user(&lab, &user, Path::new("/bin/cat"), &[&text(&lab.m("file"))]).ok();
    assert_eq!(kept.stdout, "kept\n");
    as_user(&lab, &user, &program, &["unmount", &mnt]).code(exit::DONE);
    assert_content(lab.d("file"), b"kept\n");
    lab.finish();
}

#[test]
fn another_user_cannot_command_the_daemon() {
    let Some(user) = nobody() else { return };
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    // Others may use the files here, and still not flush, eject or unmount.
    lab.mount(&["-o", "allow_other"]);
    let program = lab.root().join("ferryfs");
    fs::copy(lab::ferryfs_binary(), &program).expect("copy the program");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("chmod");
    let mnt = text(&lab.mnt);
    for command in ["status", "flush", "eject", "unmount"] {
        let done = as_user(&lab, &user, &program, &[command, &mnt]);
        assert_eq!(
            done.code,
            exit::FAILED,
            "{command} by another user: {}{}",
            done.stdout,
            done.stderr
        );
    }
    assert!(lab.is_mounted());
    assert_eq!(lab.status()["backend_state"], "attached");
    lab.finish();
}
