//! The whole program in surroundings that are not as it would like them.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use super::stage::Stage;
use crate::engine::rng::Rng;
use crate::lab::{Backend, Lab, assert_content, content, ferryfs_binary, run, skip, text, write};

/// Becomes the program of its arguments, to which the system denies `openat2` (with EPERM, as older
/// sandboxes do).
const WITHOUT_OPENAT2: &str = r#"
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
call, errno = 437, 1
filter = b"".join(struct.pack("HBBI", *i) for i in [
    (0x20, 0, 0, 0), (0x15, 0, 1, call), (0x06, 0, 0, 0x00050000 | errno), (0x06, 0, 0, 0x7fff0000)])
buffer = ctypes.create_string_buffer(filter)
class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
program = Program(4, ctypes.addressof(buffer))
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(program), 0, 0):
    sys.exit("seccomp: errno %d" % ctypes.get_errno())
os.execv(sys.argv[1], sys.argv[1:])
"#;

#[test]
fn a_mount_works_where_openat2_is_denied_and_follows_no_link_there() {
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    let outside = lab.root().join("outside");
    fs::create_dir(&outside).expect("mkdir");
    write(&outside.join("secret"), b"outside");
    fs::create_dir(lab.d("dir")).expect("mkdir");
    write(&lab.d("dir/there"), b"there");
    let args = lab.mount_args(&[]);
    let mut mount = Command::new("python3");
    mount
        .args(["-c", WITHOUT_OPENAT2])
        .arg(ferryfs_binary())
        .args(&args)
        .env("HOME", lab.root().join("home"));
    run(&mut mount).ok();
    lab.adopt();
    assert_content(lab.m("dir/there"), b"there");
    write(&lab.m("dir/new"), &content(1, 3 << 20));
    fs::create_dir(lab.m("made")).expect("mkdir");
    fs::rename(lab.m("dir/there"), lab.m("made/moved")).expect("rename");
    lab.flush();
    lab.assert_drive_is_mount();
    // A directory becomes a link under the daemon's hands.
    write(&lab.m("dir/new"), b"shorter");
    fs::rename(lab.d("dir"), lab.root().join("kept")).expect("rename");
    symlink(&outside, lab.d("dir")).expect("symlink");
    // It is taken in as what it is, beside the directory with what was changed here, which is made
    // again.
    lab.flush();
    assert_eq!(fs::read_dir(&outside).expect("list").count(), 1);
    let dir = fs::symlink_metadata(lab.d("dir")).expect("stat");
    assert!(dir.is_dir(), "the link is not followed");
    assert_content(lab.d("dir/new"), b"shorter");
    let link = fs::read_dir(lab.drive.path())
        .expect("list")
        .map(|entry| entry.expect("entry").path())
        .find(|path| text(path).contains("dir.sync-conflict-"));
    let target = fs::read_link(link.expect("the link")).expect("a link");
    assert_eq!(target, outside);
    lab.finish();
}

/// Names hold what they like; a terminal obeys what it is sent.
#[test]
fn names_that_would_command_a_terminal_are_shown_and_not_sent() {
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    lab.mount(&[]);
    let evil = "\u{1b}]0;owned\u{7}\u{1b}[2J\r\n\u{9b}31mname";
    let held = fs::File::create(lab.m(evil)).expect("create");
    write(&lab.m("plain"), b"plain");
    let mnt = text(&lab.mnt);
    let flush = vec!["flush", "--wait-closed", &*mnt];
    for command in [flush, vec!["status", &mnt], vec!["flush", &mnt]] {
        let said = lab.ferryfs(&command);
        let text = format!("{}{}", said.stdout, said.stderr);
        let sent: Vec<char> = text
            .chars()
            .filter(|c| c.is_control() && *c != '\n')
            .collect();
        assert!(sent.is_empty(), "{command:?} sends {sent:?}");
    }
    std::io::Write::write_all(&mut &held, b"more").expect("write");
    let left = lab.flush_closed();
    let copied = lab.flush();
    for path in [
        &left["left_behind"][0]["path"],
        &copied["copied_open"][0]["path"],
    ] {
        assert_eq!(path, evil, "JSON has the name itself");
    }
    drop(held);
    // The drive's own names get into messages as well.
    lab.unmount();
    let missing = lab.ferryfs(&["recover", &format!("{}/{evil}", lab.root().display())]);
    assert!(!missing.stderr.contains('\u{1b}'), "{}", missing.stderr);
    lab.finish();
}

/// A marker whose every text would command a terminal.
#[test]
fn a_marker_is_not_quoted_to_the_terminal() {
    let Some(mut stage) = Stage::new() else {
        return;
    };
    let marker = stage.lab.d(".ferryfs/volume.json");
    let sound = fs::read_to_string(&marker).expect("read");
    let mut rng = Rng::new(7);
    for _ in 0..8 {
        let at = rng.below(sound.len());
        let mut evil = sound.clone();
        evil.insert_str(at, "\u{1b}[2J\u{9b}31m");
        write(&marker, evil.as_bytes());
        let drive = text(stage.lab.drive.path());
        let said = stage.lab.ferryfs(&["recover", &drive]);
        assert!(
            !said.stderr.contains(['\u{1b}', '\u{9b}']),
            "{}",
            said.stderr
        );
        stage.ends_well(&format!("a marker with escapes at {at}"));
    }
    write(&marker, sound.as_bytes());
    stage.end_sound();
}

/// A drive that is mounted into itself: what is seen there twice is carried nowhere twice.
#[test]
fn a_drive_mounted_into_itself_does_not_keep_anything_going_round() {
    if !nix::unistd::geteuid().is_root() {
        return skip("a bind mount needs root");
    }
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    let inner = lab.d("dir/loop");
    fs::create_dir_all(&inner).expect("mkdir");
    write(&lab.d("file"), b"file");
    run(Command::new("mount")
        .args(["--rbind"])
        .arg(lab.drive.path())
        .arg(&inner))
    .ok();
    lab.mount(&[]);
    assert_content(lab.m("dir/loop/file"), b"file");
    write(&lab.m("new"), b"new");
    lab.flush();
    assert_content(lab.d("new"), b"new");
    lab.unmount();
    run(Command::new("umount").arg(&inner)).ok();
    lab.finish();
}
