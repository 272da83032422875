//! Two daemons on one directory that do not see each other: each in a network namespace and with a
//! `/run` of its own, as in two containers, and by bind mounts of their own. What two machines on
//! one share meet is the same files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::lab::{self, Backend, Done, Lab, exit, run, text, wait_until};

/// How long the daemons of these tests may be silent: they look twelve times as often.
const SILENCE: &str = "3s";

/// A second machine: its own sockets, its own cache, its own way to the same directory.
struct Second {
    mnt: PathBuf,
    cache: PathBuf,
    drive: PathBuf,
}

impl Second {
    /// `None` where this machine cannot have one.
    fn of(lab: &Lab, name: &str) -> Option<Second> {
        if !nix::unistd::geteuid().is_root() {
            lab::skip("a network namespace of one's own needs root");
            return None;
        }
        share(lab.root());
        let path = |what: &str| lab.root().join(format!("{what}-{name}"));
        let second = Second {
            mnt: path("mnt"),
            cache: path("cache"),
            drive: path("drive"),
        };
        for dir in [&second.mnt, &second.drive] {
            fs::create_dir(dir).unwrap();
        }
        let bound = Command::new("mount")
            .arg("--bind")
            .arg(lab.drive.path())
            .arg(&second.drive)
            .status();
        assert!(bound.unwrap().success(), "bind mount");
        Some(second)
    }

    fn command(&self, lab: &Lab, extra: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command
            .args(["--net", "--mount", "--propagation", "unchanged", "--"])
            .args(["sh", "-euc", ALONE, "sh"])
            .arg(lab::ferryfs_binary())
            .args([
                "mount",
                "--no-auto-flush",
                "--lease",
                "always",
                "--lease-timeout",
                SILENCE,
            ])
            .args(extra)
            .arg("--cache")
            .arg(&self.cache)
            .args([&self.drive, &self.mnt])
            .env("HOME", lab.root().join("home"))
            .env("XDG_DATA_HOME", lab.root().join("data"));
        command
    }

    fn mount(&self, lab: &Lab, extra: &[&str]) -> Done {
        run(&mut self.command(lab, extra))
    }

    fn ferryfs(&self, lab: &Lab, word: &str) -> Done {
        lab.ferryfs(&[word, &text(&self.mnt)])
    }

    fn status(&self, lab: &Lab) -> serde_json::Value {
        let status = lab.ferryfs(&["status", "--json", &text(&self.mnt)]);
        status.code(exit::DONE).json()
    }
}

/// Runs a command with a `/run` that nobody else sees.
const ALONE: &str = r#"mount --make-private / 2>/dev/null || :
    mount --make-private /run 2>/dev/null || :
    mount -t tmpfs none /run
    exec "$@""#;

/// Makes `dir` a mount that tells other mount namespaces what is mounted in it.
fn share(dir: &Path) {
    if !is_mounted(dir) {
        let script = r#"mount --bind "$1" "$1"; mount --make-shared "$1""#;
        let shared = Command::new("sh")
            .args(["-euc", script, "sh"])
            .arg(dir)
            .status();
        assert!(shared.unwrap().success(), "bind mount");
    }
}

fn first(lab: &mut Lab) {
    lab.mount(&["--lease", "always", "--lease-timeout", SILENCE]);
}

fn lease(lab: &Lab) -> PathBuf {
    lab.d(".ferryfs/lease")
}

fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table
        .lines()
        .any(|line| line.split(' ').nth(4) == path.to_str())
}

/// Ends what a test leaves mounted, so that the lab can go.
struct Unbind<'a>(&'a Second);

impl Drop for Unbind<'_> {
    fn drop(&mut self) {
        for path in [&self.0.mnt, &self.0.drive] {
            let _ = Command::new("umount")
                .arg("-l")
                .arg(path)
                .stderr(Stdio::null())
                .status();
        }
    }
}

/// A lab that is mounted once, with a lease, and a second machine beside it.
fn two() -> Option<(Lab, Second)> {
    let mut lab = Lab::new(Backend::Ext4Dir)?;
    let second = Second::of(&lab, "b")?;
    first(&mut lab);
    Some((lab, second))
}

#[test]
fn the_second_is_refused_and_told_who_holds_it() {
    let Some((lab, second)) = two() else { return };
    let _unbind = Unbind(&second);
    fs::write(lab.m("a"), "of the first").unwrap();
    let refused = second.mount(&lab, &[]).code(exit::FAILED);
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    for part in [
        "in use by ferryfs on",
        host.trim(),
        &format!("process {}", lab.pid()),
        "since 20",
        "last heard of just now",
        "--take-over",
    ] {
        assert!(
            refused.stderr.contains(part),
            "{part:?} is not in: {}",
            refused.stderr
        );
    }
    assert!(!is_mounted(&second.mnt));
    lab.flush();
    assert_eq!(fs::read(lab.d("a")).unwrap(), b"of the first");
    assert!(
        !lab.d(".ferryfs/lease.knock").exists(),
        "the knock was answered"
    );
    lab.finish();
}

#[test]
fn after_an_unmount_the_other_has_it_at_once_and_nothing_of_the_lease_is_left() {
    let Some((mut lab, second)) = two() else {
        return;
    };
    let _unbind = Unbind(&second);
    assert!(lease(&lab).exists());
    fs::write(lab.m("a"), "1").unwrap();
    lab.unmount();
    assert!(!lease(&lab).exists(), "let go of");
    second.mount(&lab, &[]).code(exit::DONE);
    assert_eq!(fs::read(second.mnt.join("a")).unwrap(), b"1");
    second.ferryfs(&lab, "unmount").code(exit::DONE);
    assert!(!lease(&lab).exists());
    lab.finish();
}

#[test]
fn an_ejected_directory_is_free_for_the_other() {
    let Some((lab, second)) = two() else { return };
    let _unbind = Unbind(&second);
    lab.eject();
    assert!(!lease(&lab).exists());
    second.mount(&lab, &[]).code(exit::DONE);
    // The first, told to attach it, is refused now.
    let refused = lab.ferryfs(&["attach", &text(lab.drive.path()), &text(&lab.mnt)]);
    refused.refuses(exit::FAILED, "in use by ferryfs on");
    second.ferryfs(&lab, "unmount").code(exit::DONE);
    lab.ferryfs(&["attach", &text(lab.drive.path()), &text(&lab.mnt)])
        .code(exit::DONE);
    lab.finish();
}

#[test]
fn one_that_was_killed_is_taken_over_when_it_has_been_silent_for_long_enough() {
    let Some((mut lab, second)) = two() else {
        return;
    };
    let _unbind = Unbind(&second);
    fs::write(lab.m("mine"), "waits in the cache of the first").unwrap();
    lab.kill9();
    let begun = Instant::now();
    second.mount(&lab, &[]).code(exit::DONE);
    assert!(
        begun.elapsed() >= Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
    fs::write(second.mnt.join("theirs"), "2").unwrap();
    second.ferryfs(&lab, "unmount").code(exit::DONE);
    // What waited is carried when the first is back.
    lab.remount();
    lab.flush_interrupted();
    assert!(lab.d("mine").exists() && lab.d("theirs").exists());
    lab.finish();
}

#[test]
fn one_that_was_killed_has_it_again_at_once_with_its_own_cache() {
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    lab.mount(&["--lease", "always", "--lease-timeout", "2m"]);
    lab.kill9();
    assert!(lease(&lab).exists());
    let begun = Instant::now();
    lab.remount();
    assert!(
        begun.elapsed() < Duration::from_secs(60),
        "it did not wait for itself"
    );
    lab.finish();
}

#[test]
fn who_is_taken_over_lets_go_writes_nothing_more_says_so_and_comes_back_when_the_other_has_gone() {
    let Some((lab, second)) = two() else { return };
    let _unbind = Unbind(&second);
    fs::write(lab.m("mine"), "dirty").unwrap();
    second.mount(&lab, &["--take-over"]).code(exit::DONE);
    wait_until("the first to notice", Duration::from_secs(30), || {
        lab.status()["backend_state"] == "detached"
    });
    let status = lab.status();
    let error = status["last_error"].as_str().unwrap_or_default();
    assert!(error.contains("ferryfs on"), "{status}");
    lab.flush_code(exit::NO_BACKEND);
    assert!(!lab.d("mine").exists(), "nothing more is written");
    assert_eq!(
        fs::read(lab.m("mine")).unwrap(),
        b"dirty",
        "and nothing is lost"
    );
    second.ferryfs(&lab, "unmount").code(exit::DONE);
    wait_until("the first to come back", Duration::from_secs(120), || {
        lab.status()["backend_state"] == "attached"
    });
    assert_eq!(lab.status()["last_error"], serde_json::Value::Null);
    lab.flush();
    assert_eq!(fs::read(lab.d("mine")).unwrap(), b"dirty");
    lab.finish();
}

#[test]
fn a_flush_that_begins_after_a_takeover_writes_nothing() {
    let Some((mut lab, second)) = two() else {
        return;
    };
    let _unbind = Unbind(&second);
    fs::write(lab.m("mine"), "dirty").unwrap();
    // Asleep, as a laptop with its lid closed.
    let pid = nix::unistd::Pid::from_raw(lab.pid());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    second.mount(&lab, &[]).code(exit::DONE);
    // Once it has noticed, it knocks; that may be before the look.
    let tree = || lab::Tree::read(lab.drive.path()).without(".ferryfs/lease.knock");
    let before = tree();
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    let flushed = lab.ferryfs(&["flush", &text(&lab.mnt)]);
    assert_ne!(flushed.code, exit::DONE, "{flushed:?}");
    tree().assert_same(&before, "afterwards", "before");
    assert_eq!(fs::read(lab.m("mine")).unwrap(), b"dirty");
    second.ferryfs(&lab, "unmount").code(exit::DONE);
    lab.kill9();
    lab.remount();
    lab.flush_interrupted();
    assert_eq!(fs::read(lab.d("mine")).unwrap(), b"dirty");
    lab.finish();
}

#[test]
fn of_two_that_begin_at_once_on_a_new_directory_one_has_it() {
    for _ in 0..3 {
        let Some(lab) = Lab::new(Backend::Ext4Dir) else {
            return;
        };
        let (Some(a), Some(b)) = (Second::of(&lab, "a"), Second::of(&lab, "b")) else {
            return;
        };
        let (_a, _b) = (Unbind(&a), Unbind(&b));
        let start = |second: &Second| -> Child {
            let mut command = second.command(&lab, &[]);
            command
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .stdin(Stdio::null());
            command.spawn().unwrap()
        };
        let (mut first, mut other) = (start(&a), start(&b));
        let codes = [first.wait().unwrap().code(), other.wait().unwrap().code()];
        let mounted: Vec<&Second> = [&a, &b]
            .into_iter()
            .filter(|one| is_mounted(&one.mnt))
            .collect();
        assert_eq!(mounted.len(), 1, "{codes:?}");
        assert!(
            codes.contains(&Some(0)) && codes.contains(&Some(1)),
            "{codes:?}"
        );
        fs::write(mounted[0].mnt.join("x"), "1").unwrap();
        mounted[0].ferryfs(&lab, "flush").code(exit::DONE);
        assert_eq!(mounted[0].status(&lab)["backend_state"], "attached");
        mounted[0].ferryfs(&lab, "unmount").code(exit::DONE);
        assert_eq!(fs::read(lab.d("x")).unwrap(), b"1");
    }
}

#[test]
fn what_is_no_lease_file_is_refused_and_left_alone() {
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    first(&mut lab);
    lab.unmount();
    let outside = lab.root().join("outside");
    fs::write(&outside, "not to be touched").unwrap();
    for make in ["ln -s ../../outside lease", "mkfifo lease", "mkdir lease"] {
        lab::sh(&lab.d(".ferryfs"), make);
        let refused = lab.try_mount(&["--lease", "always", "--take-over"]);
        refused.refuses(exit::FAILED, ".ferryfs/lease");
        lab::sh(&lab.d(".ferryfs"), "rm -d lease");
    }
    assert_eq!(fs::read(&outside).unwrap(), b"not to be touched");
    lab.mount(&["--lease", "always"]);
    lab.finish();
}

#[test]
fn on_a_drive_there_is_no_lease() {
    let Some(lab) = Lab::mounted(Backend::EXFAT) else {
        return;
    };
    fs::write(lab.m("a"), "1").unwrap();
    lab.flush();
    assert!(!lease(&lab).exists());
    lab.finish();
}
