//! Names that attack a terminal or a log: whatever a stranger has named, no command prints it raw,
//! nor do the log and `--foreground`.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ferryfs::core::Timestamp;
use ferryfs::format::lease::Lease;
use ferryfs::format::{lease, marker};
use uuid::Uuid;

use crate::lab::{Backend, Done, Lab, exit, run, run_for, wait_until, write};

/// Of each kind one: C0, DEL, C1, overrides and isolates, ends of lines, what is invisible, tags.
const EVIL: &str = "\x01\x07\x08\t\n\r\x1b[2J\x7f\u{80}\u{9b}1m\u{9f}\u{61c}\u{200b}\u{200d}\u{200e}\u{200f}\
    \u{2028}\u{2029}\u{202a}\u{202e}\u{2066}\u{2069}\u{feff}\u{e0001}\u{e0041}";

/// The same for where only a few bytes are to be had, with two that are no UTF-8.
const SHORT: &[u8] = b"x\x1b[2J\xc2\x9b\xe2\x80\xae\xff\x9by";

fn evil(what: &str) -> OsString {
    format!("{what}{EVIL}").into()
}

/// A name that is not UTF-8 besides.
fn worse(what: &str) -> OsString {
    OsString::from_vec([what.as_bytes(), EVIL.as_bytes(), b"\xff\xc2\x9b\xc0\xaf"].concat())
}

/// Whether a terminal might obey or hide it. Our own lines end with line feeds.
fn is_raw(c: char) -> bool {
    let c = u32::from(c);
    (c < 0x20 && c != 0x0a)
        || (0x7f..=0x9f).contains(&c)
        || (0x200b..=0x200f).contains(&c)
        || (0x2028..=0x202e).contains(&c)
        || (0x2060..=0x206f).contains(&c)
        || (0xe0000..=0xe0fff).contains(&c)
        || (0x10ff80..=0x10ffff).contains(&c)
        || [0x61c, 0xfeff, 0xfffd].contains(&c)
}

#[track_caller]
fn assert_harmless(text: &str, what: &str) {
    if let Some(line) = text.lines().find(|line| line.contains(is_raw)) {
        panic!("{what} printed raw: {line:?}");
    }
}

#[track_caller]
fn harmless(done: Done, what: &str) -> Done {
    assert_harmless(&done.stdout, what);
    assert_harmless(&done.stderr, what);
    let json = done.stdout.starts_with('{');
    assert!(
        json || !done.stderr.contains("panicked"),
        "{what}: {}",
        done.stderr
    );
    done
}

/// Directories with names of an attacker, and the program at work between them.
struct Scene {
    lab: Lab,
    drive: PathBuf,
    mnt: PathBuf,
    cache: PathBuf,
}

impl Scene {
    fn new() -> Option<Scene> {
        let lab = Lab::new(Backend::Ext4Dir)?;
        // The mount point is UTF-8: programs that read the mount table as text run beside this.
        let mnt = lab.root().join("mnt").join(evil("m"));
        let drive = lab.d(evil("d"));
        for dir in [&mnt, &drive] {
            fs::create_dir(dir).expect("mkdir");
        }
        let cache = lab.root().join(worse("c"));
        Some(Scene {
            lab,
            drive,
            mnt,
            cache,
        })
    }

    #[track_caller]
    fn ferryfs(&self, args: &[&OsStr]) -> Done {
        let mut command = self.lab.command(args);
        command.env("FERRYFS_LOG", "debug");
        harmless(run(&mut command), &format!("{args:?}"))
    }

    #[track_caller]
    fn at_mount(&self, args: &[&str]) -> Done {
        let mut args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
        args.push(self.mnt.as_os_str());
        self.ferryfs(&args)
    }

    #[track_caller]
    fn mount(&self, extra: &[&str]) -> Done {
        let mut args = vec![OsStr::new("mount"), OsStr::new("--no-auto-flush")];
        args.extend(extra.iter().map(OsStr::new));
        args.extend([OsStr::new("--cache"), self.cache.as_os_str()]);
        args.extend([self.drive.as_os_str(), self.mnt.as_os_str()]);
        self.ferryfs(&args)
    }

    fn pid(&self) -> i32 {
        let status = self.at_mount(&["status", "--json"]).code(exit::DONE).json();
        status["pid"].as_i64().expect("a pid") as i32
    }

    #[track_caller]
    fn assert_log_is_harmless(&self) {
        let log = fs::read(self.cache.join("ferryfs.log")).expect("read the log");
        let log = String::from_utf8(log).expect("the log is text");
        assert_harmless(&log, "the log");
        for line in log.lines() {
            assert!(
                line.starts_with("20"),
                "a line of the log was forged: {line}"
            );
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // The lab knows plain names only.
        let _ = nix::mount::umount2(&self.mnt, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Somebody in the mount whose program has an evil name.
fn holder(dir: &Path) -> Child {
    const SIT: &str = "
import ctypes, os, sys, time
ctypes.CDLL(None).prctl(15, os.fsencode(sys.argv[2]), 0, 0, 0)
os.chdir(sys.argv[1])
print('ready', flush=True)
time.sleep(100)
";
    let mut child = Command::new("python3")
        .args(["-c", SIT])
        .arg(dir)
        .arg(OsStr::from_bytes(&SHORT[..15.min(SHORT.len())]))
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3");
    let mut ready = [0; 6];
    let out = child.stdout.as_mut().expect("a pipe");
    std::io::Read::read_exact(out, &mut ready).expect("it is ready");
    child
}

fn chattr(flag: &str, path: &Path) -> bool {
    run(Command::new("chattr").arg(flag).arg("--").arg(path)).code == 0
}

#[test]
fn no_command_and_no_log_prints_a_strangers_name_raw() {
    let Some(scene) = Scene::new() else { return };
    for name in [evil("theirs"), worse("theirs")] {
        fs::create_dir(scene.drive.join(&name)).expect("mkdir");
        write(&scene.drive.join(&name).join(worse("file")), b"theirs");
    }
    for name in [worse("stuck"), worse("both")] {
        write(&scene.drive.join(name), b"1");
    }
    scene.mount(&[]).code(exit::DONE);
    for name in [evil("mine"), worse("mine")] {
        write(&scene.mnt.join(name), b"mine");
    }
    scene.at_mount(&["status"]).code(exit::DONE);
    scene.at_mount(&["flush"]).code(exit::DONE);
    // Both sides change one; another one is refused by the drive; a directory cannot be read.
    for name in [worse("stuck"), worse("both")] {
        write(&scene.mnt.join(&name), b"22");
    }
    write(&scene.drive.join(worse("both")), b"333");
    let stuck = scene.drive.join(worse("stuck"));
    let is_stuck = chattr("+i", &stuck);
    let flushed = scene.at_mount(&["flush", "--json"]);
    let flushed_again = scene.at_mount(&["flush"]);
    let status = scene.at_mount(&["status"]).code(exit::DONE);
    let json = scene
        .at_mount(&["status", "--json"])
        .code(exit::DONE)
        .json();
    chattr("-i", &stuck);
    assert!(status.stdout.contains("\\x1b[2J"), "{}", status.stdout);
    assert!(status.stdout.contains("\\u{202e}"), "{}", status.stdout);
    assert!(status.stdout.contains("sync-conflict"), "{}", status.stdout);
    let place = json["mountpoint"].as_str().expect("text");
    assert_eq!(Path::new(place), scene.mnt, "JSON has the exact name");
    if is_stuck {
        flushed_again.code(exit::LEFT_BEHIND);
        let left = flushed.json()["left_behind"][0]["path"].clone();
        let left = left.as_str().expect("text");
        assert_eq!(
            ferryfs::core::path_of_text(left).as_os_str(),
            worse("stuck"),
            "JSON has the exact name"
        );
    }
    write(&scene.drive.join(worse("new")), b"new");
    scene.at_mount(&["refresh"]).code(exit::DONE);
    scene.at_mount(&["refresh", "--json"]).code(exit::DONE);
    let mut holder = holder(&scene.mnt);
    let refused = scene.at_mount(&["unmount"]);
    assert_ne!(refused.code, exit::DONE);
    let said = [&*refused.stdout, &*refused.stderr].concat();
    assert!(said.contains("x\\x1b[2J\\u{9b}"), "{said}");
    holder.kill().expect("kill");
    holder.wait().expect("wait");
    scene.at_mount(&["eject"]);
    scene.ferryfs(&[
        OsStr::new("attach"),
        scene.drive.as_os_str(),
        scene.mnt.as_os_str(),
    ]);
    for word in ["status", "flush", "refresh", "unmount", "eject"] {
        scene.ferryfs(&[OsStr::new(word), &worse("no such place")]);
    }
    // What is no text is told by the parser of the command line with U+FFFD in its place.
    scene.ferryfs(&[&evil("no such command")]);
    scene.ferryfs(&[OsStr::new("flush"), &evil("--no-such-option")]);
    scene.ferryfs(&[
        OsStr::new("mount"),
        OsStr::new("-o"),
        &evil("opt"),
        OsStr::new("/a"),
        OsStr::new("/b"),
    ]);
    scene.assert_log_is_harmless();
    let pid = scene.pid();
    write(&scene.mnt.join(worse("dirty")), b"dirty");
    crate::lab::kill9(pid);
    damage_an_object(&scene.cache);
    let out = scene.lab.root().join(worse("out"));
    let rescue = |extra: &[&str]| {
        let mut args = vec![OsStr::new("rescue")];
        args.extend(extra.iter().map(OsStr::new));
        args.extend([OsStr::new("--cache"), scene.cache.as_os_str()]);
        args.extend([OsStr::new("--to"), out.as_os_str()]);
        scene.ferryfs(&args)
    };
    rescue(&[]);
    rescue(&["--json"]);
    scene.ferryfs(&[OsStr::new("recover"), scene.drive.as_os_str()]);
    scene.mount(&[]);
    scene.at_mount(&["unmount", "--no-flush"]);
    scene.at_mount(&["unmount"]);
    scene.assert_log_is_harmless();
}

fn damage_an_object(cache: &Path) {
    let dirs = fs::read_dir(cache.join("objects")).expect("list");
    for dir in dirs.flatten().filter(|dir| dir.path().is_dir()) {
        for object in fs::read_dir(dir.path()).expect("list").flatten() {
            write(&object.path(), b"!");
        }
    }
}

#[test]
fn what_a_drive_says_of_itself_is_never_printed_raw() {
    let Some(scene) = Scene::new() else { return };
    scene.mount(&[]).code(exit::DONE);
    write(&scene.mnt.join(worse("f")), b"f");
    std::os::unix::fs::symlink("f", scene.mnt.join(worse("link"))).expect("symlink");
    scene.at_mount(&["unmount"]).code(exit::DONE);
    let ours = scene.drive.join(".ferryfs");
    let whole = fs::read(ours.join("volume.json")).expect("the marker");
    let id = marker::decode(&whole).expect("a marker").id;
    // A lease of a host with a name; nobody answers for it.
    let of_host = lease::encode(&Lease {
        volume: id,
        daemon: Uuid::new_v4(),
        cache: Uuid::new_v4(),
        host: format!("host{EVIL}"),
        pid: 1,
        since: Timestamp::from_parts(0, 0),
        silence: Duration::from_secs(1),
    });
    write(&ours.join("lease"), &of_host);
    let waited = scene.mount(&["--lease-timeout", "1s"]);
    assert!(
        waited.stderr.contains("host\\x01\\x07"),
        "{}",
        waited.stderr
    );
    scene.at_mount(&["unmount"]);
    let _ = fs::remove_file(ours.join("lease"));
    // Markers, leases, records and segments that quote themselves in the error.
    let json = format!(
        "{{\"ferryfs\":\"{0}\",\"{0}\":{0}}}\n",
        EVIL.replace(['\n', '\r'], "")
    );
    let quoting = json.replace(|c: char| c < ' ', "");
    for bad in [quoting.as_bytes(), SHORT] {
        for place in [
            "volume.json",
            "lease",
            "batches/0000000000000009.rec",
            "catalog/0000000000000001.seg",
        ] {
            let path = ours.join(place);
            let before = fs::read(&path).ok();
            let _ = fs::create_dir_all(path.parent().expect("a parent"));
            write(&path, bad);
            // A lease that is damaged is waited for.
            if place != "lease" {
                scene.ferryfs(&[OsStr::new("recover"), scene.drive.as_os_str()]);
            }
            scene.mount(&["--take-over"]);
            scene.at_mount(&["status"]);
            scene.at_mount(&["unmount", "--no-flush"]);
            match before {
                Some(before) => write(&path, &before),
                None => fs::remove_file(&path).unwrap_or_default(),
            }
        }
    }
    scene.assert_log_is_harmless();
}

#[test]
fn a_daemon_in_the_foreground_prints_no_name_raw() {
    let Some(scene) = Scene::new() else { return };
    write(&scene.drive.join(worse("both")), b"1");
    let err = scene.lab.root().join("stderr");
    let to = |path: &Path| Stdio::from(fs::File::create(path).expect("a file"));
    let mut command = scene
        .lab
        .command(&["mount", "--foreground", "--no-auto-flush", "--cache"]);
    command.arg(&scene.cache).arg(&scene.drive).arg(&scene.mnt);
    command.env("FERRYFS_LOG", "debug").arg0(worse("ferryfs"));
    let out = scene.lab.root().join("stdout");
    let mut daemon = command
        .stderr(to(&err))
        .stdout(to(&out))
        .spawn()
        .expect("start");
    wait_until("the mount", Duration::from_secs(60), || {
        fs::read_to_string(&err).is_ok_and(|said| said.contains("mounted"))
    });
    write(&scene.mnt.join(worse("mine")), b"1");
    write(&scene.mnt.join(worse("both")), b"22");
    write(&scene.drive.join(worse("both")), b"333");
    scene.at_mount(&["flush"]);
    scene.at_mount(&["refresh"]);
    scene.at_mount(&["unmount"]);
    daemon.wait().expect("wait");
    for path in [err, out] {
        let said = String::from_utf8(fs::read(path).expect("read")).expect("it is text");
        assert_harmless(&said, "--foreground");
    }
}

/// What `ferryfs` and its help say is the same on any terminal.
#[test]
fn the_name_that_the_program_was_started_by_is_not_printed() {
    for args in [&["--help"][..], &["mount", "--help"], &["--no-such"], &[]] {
        let mut command = Command::new(crate::lab::ferryfs_binary());
        command.arg0(evil("ferryfs")).args(args);
        let done = run_for(&mut command, Duration::from_secs(30));
        harmless(done, "help");
    }
}
