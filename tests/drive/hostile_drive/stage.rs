//! What all of these tests stand on: an enrolled drive, and beside it what nobody may touch.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::lab::{Backend, Lab, assert_content, exit, run_for, text, write};

/// No command may take longer than this, however slow the machine: it is there to tell a hang.
const HANG: Duration = Duration::from_secs(120);

/// A lab whose drive is enrolled and unmounted, with something in the cache that the drive does not
/// have.
pub struct Stage {
    pub lab: Lab,
    before: Vec<String>,
    rounds: u32,
}

impl Stage {
    pub fn new() -> Option<Stage> {
        let mut lab = Lab::new(Backend::Ext4Dir)?;
        lab.mount(&[]);
        write(&lab.m("a"), b"a");
        fs::create_dir(lab.m("dir")).expect("mkdir");
        write(&lab.m("dir/b"), b"b");
        lab.flush();
        write(&lab.m("dirty"), b"dirty");
        lab.unmount_with(&["--no-flush"]);
        let mut stage = Stage {
            lab,
            before: Vec::new(),
            rounds: 0,
        };
        stage.set_outside();
        Some(stage)
    }

    /// How many flushes there were over something planted.
    pub fn rounds(&self) -> u32 {
        self.rounds
    }

    /// Where a hostile drive would like to reach: a tree that looks like what is looked for in each
    /// place.
    pub fn outside(&self) -> PathBuf {
        self.lab.root().join("outside")
    }

    fn set_outside(&mut self) {
        let outside = self.outside();
        for dir in ["0000000000000063", "dir", "sub"] {
            fs::create_dir_all(outside.join(dir)).expect("mkdir");
        }
        for file in [
            "secret",
            "dir/b",
            "0000000000000063/s00000000",
            "0000000000000063/cleared",
            "sub/precious",
        ] {
            write(&outside.join(file), b"outside");
        }
        let marker = fs::read(self.lab.d(".ferryfs/volume.json")).expect("read the marker");
        write(&outside.join("volume.json"), &marker);
        self.before = self.look_outside();
    }

    fn look_outside(&self) -> Vec<String> {
        let mut seen = Vec::new();
        look(&self.outside(), &mut seen);
        for entry in fs::read_dir(self.lab.root()).expect("list the lab") {
            let name = entry.expect("list").file_name();
            seen.push(format!("{name:?}"));
        }
        seen.retain(|line| !line.contains("kept"));
        seen.sort();
        seen
    }

    #[track_caller]
    pub fn nothing_outside_was_touched(&self, what: &str) {
        assert_eq!(self.look_outside(), self.before, "outside, after {what}");
    }

    /// Runs `recover`, then `mount` and a flush, over what has been planted: each ends well or with
    /// a word that helps. Tells whether the mount took the drive as it is, with nothing on it left
    /// to be finished.
    #[track_caller]
    pub fn ends_well(&mut self, what: &str) -> bool {
        let drive = text(self.lab.drive.path());
        let recovered = run_for(
            &mut within_memory(&self.lab.command(&["recover", &drive])),
            HANG,
        );
        helps(&recovered, &format!("recover over {what}"));
        self.nothing_outside_was_touched(what);
        let mount = self.lab.mount_args(&[]);
        let mounted = run_for(&mut self.lab.command(&mount), HANG);
        helps(&mounted, &format!("mount over {what}"));
        let attached = mounted.code == exit::DONE;
        if attached {
            self.lab.adopt();
            self.works_while_mounted(what);
        }
        self.nothing_outside_was_touched(what);
        for (file, bytes) in [("a", b"a"), ("dir/b", b"b")] {
            assert_content(self.lab.d(file), bytes);
        }
        attached && !mounted.stdout.contains("not finished")
    }

    /// Mounts with a cache that does not know the volume yet, if that is possible.
    #[track_caller]
    pub fn a_new_cache_helps(&mut self, what: &str) {
        self.lab.take_new_cache();
        let mount = self.lab.mount_args(&[]);
        let mounted = run_for(&mut self.lab.command(&mount), HANG);
        helps(&mounted, &format!("mount over {what}"));
        if mounted.code == exit::DONE {
            self.lab.adopt();
            assert_content(self.lab.m("a"), b"a");
            self.lab.unmount_with(&["--no-flush"]);
        }
        fs::remove_dir_all(&self.lab.cache).expect("remove the new cache");
        self.nothing_outside_was_touched(what);
    }

    #[track_caller]
    fn works_while_mounted(&mut self, what: &str) {
        self.rounds += 1;
        assert_content(self.lab.m("dirty"), b"dirty");
        write(&self.lab.m(format!("round{}", self.rounds)), b"more");
        let mnt = text(&self.lab.mnt);
        let flushed = run_for(&mut self.lab.command(&["flush", &mnt]), HANG);
        helps(&flushed, &format!("flush over {what}"));
        if flushed.code == exit::DONE {
            assert_content(self.lab.d(format!("round{}", self.rounds)), b"more");
        }
        self.lab.unmount_with(&["--no-flush"]);
    }

    /// After all has been moved away again, everything that was written is in the mount and gets to
    /// the drive.
    #[track_caller]
    pub fn end_sound(mut self) {
        self.lab.mount(&[]);
        assert_content(self.lab.m("dirty"), b"dirty");
        // What was planted in the tree and is gone may have been taken in by a mount that served
        // the cache meanwhile.
        let mnt = text(&self.lab.mnt);
        self.lab.ferryfs(&["refresh", &mnt]).code(exit::DONE);
        self.lab.flush();
        for round in 1..=self.rounds {
            assert_content(self.lab.d(format!("round{round}")), b"more");
        }
        self.lab.assert_drive_is_mount();
        self.nothing_outside_was_touched("all of it");
        self.lab.finish();
    }
}

/// The same command with 512 MiB of address space: what is on a drive must not decide how much
/// memory is taken.
fn within_memory(command: &Command) -> Command {
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "ulimit -v 524288; exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(key, value),
            None => limited.env_remove(key),
        };
    }
    limited
}

/// The command did what it was to do, or failed in one line and one hint.
#[track_caller]
fn helps(done: &crate::lab::Done, what: &str) {
    assert!(!done.stderr.contains("panicked"), "{what}: {}", done.stderr);
    if done.code == exit::DONE {
        return;
    }
    if done.code == exit::LEFT_BEHIND {
        let named = done
            .stdout
            .lines()
            .any(|line| line.starts_with("  ") && line.contains(": "));
        assert!(
            named,
            "{what}: left something behind and did not name it:\n{}",
            done.stdout
        );
        return;
    }
    // A mount that gives up shows what it has logged before.
    let logged = |line: &&str| line.starts_with("20") && line.contains("ferryfs::");
    let lines: Vec<&str> = done.stderr.lines().filter(|line| !logged(line)).collect();
    let clear = [exit::FAILED, exit::NO_BACKEND].contains(&done.code)
        && lines.len() == 2
        && lines[0].starts_with("ferryfs: ")
        && lines[1].trim_start().starts_with("hint: ");
    assert!(clear, "{what}: exit {}, said:\n{}", done.code, done.stderr);
}

fn look(path: &Path, seen: &mut Vec<String>) {
    let meta = fs::symlink_metadata(path).expect("look outside");
    let bytes = meta.is_file().then(|| fs::read(path).expect("read"));
    let times = (
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec(),
    );
    let mode = meta.permissions().mode();
    seen.push(format!("{} {mode:o} {times:?} {bytes:?}", path.display()));
    if meta.is_dir() {
        for entry in fs::read_dir(path).expect("list outside") {
            look(&entry.expect("list").path(), seen);
        }
    }
}
