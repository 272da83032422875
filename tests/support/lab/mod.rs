//! A laboratory per test: a drive, an empty cache, a mount point, and the real program between
//! them.
//!
//! Everything lives below one temporary directory of its own, so labs run beside each other.
//! Whatever happens, a panic included, [`Lab`]'s drop ends this lab's daemon, lets go of its mounts
//! and loop devices, and says so if it could not. The order matters: daemon, mount, drive,
//! directory; the other way round each step would be busy.

// Each test file takes what it needs of this, the rest is unused there.
#![allow(dead_code, unreachable_pub, unused_imports)]

mod drive;
mod run;
mod tree;

pub use drive::{Drive, SmallSsd, Yank, small_disk};
pub use run::{Done, alive, has, kill9, only_mounts_of, python, run, run_for, sh, wait_until};
pub use tree::{Node, Tree, assert_content, content, write};

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

/// Exit codes of the program, as its charter names them.
pub mod exit {
    pub const DONE: i32 = 0;
    pub const FAILED: i32 = 1;
    pub const USAGE: i32 = 2;
    pub const LEFT_BEHIND: i32 = 3;
    pub const NO_BACKEND: i32 = 4;
    pub const CANCELLED: i32 = 130;
}

/// Which slow side a lab has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A plain directory of the machine's own file system.
    Ext4Dir,
    /// An exFAT image of this many MiB on a loop device.
    Exfat(u64),
    /// The same, with clusters of so many KiB.
    ExfatClusters(u64, u64),
    /// The drive that the environment names (see `drive/given.rs`), else a small ext4 of its own.
    Any,
}

impl Backend {
    /// An exFAT drive large enough for any test that does not want it small.
    pub const EXFAT: Backend = Backend::Exfat(1024);
}

/// A drive, a cache, a mount point. See the head of this file.
pub struct Lab {
    pub drive: Drive,
    pub mnt: PathBuf,
    pub cache: PathBuf,
    args: Vec<String>,
    pid: Option<i32>,
    cleaned: bool,
    // Last: the directory goes when nothing is mounted in it any more.
    root: tempfile::TempDir,
}

/// The program under test: this build's, or the one that `FERRYFS_TEST_BIN` names.
pub fn ferryfs_binary() -> PathBuf {
    std::env::var_os("FERRYFS_TEST_BIN")
        .map_or_else(|| env!("CARGO_BIN_EXE_ferryfs").into(), PathBuf::from)
}

/// Says loudly that a test did not run. With `FERRYFS_TEST_NO_SKIP` set, as in CI, that is a
/// failure.
#[track_caller]
pub fn skip(why: &str) {
    if std::env::var_os("FERRYFS_TEST_NO_SKIP").is_some() {
        panic!("may not be skipped here: {why}");
    }
    // Not eprintln: the test runner would swallow it for a test that passes.
    let _ = fs::write("/dev/stderr", format!("SKIPPED: {why}\n"));
}

/// What keeps this machine from running mount tests, if anything does.
pub fn obstacle(backend: Backend) -> Option<String> {
    if !Path::new("/dev/fuse").exists() {
        return Some("no /dev/fuse on this machine".into());
    }
    if backend == Backend::Any && !nix::unistd::geteuid().is_root() {
        return Some("a drive on a loop device needs root".into());
    }
    if let Backend::Exfat(_) | Backend::ExfatClusters(..) = backend {
        if !nix::unistd::geteuid().is_root() {
            return Some("an exFAT loop device needs root".into());
        }
        for tool in ["mkfs.exfat", "fsck.exfat", "mount.exfat-fuse", "losetup"] {
            if !run::has(tool) {
                return Some(format!("{tool} is not installed"));
            }
        }
    }
    None
}

impl Lab {
    /// A lab with nothing mounted but the drive; `None`, and said loudly, where the machine cannot
    /// have one.
    pub fn new(backend: Backend) -> Option<Lab> {
        if let Some(why) = obstacle(backend) {
            skip(&why);
            return None;
        }
        let root = tempfile::Builder::new()
            .prefix("ferryfs-lab.")
            .tempdir()
            .expect("a temporary directory");
        // Other users walk through it in the tests about users.
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).expect("chmod lab");
        let path = root.path();
        for dir in ["mnt", "home", "run"] {
            fs::create_dir(path.join(dir)).expect("make lab directory");
        }
        let drive = match Drive::new(path, backend) {
            Ok(drive) => drive,
            Err(why) => {
                skip(&why);
                return None;
            }
        };
        Some(Lab {
            drive,
            mnt: path.join("mnt"),
            cache: path.join("cache"),
            args: Vec::new(),
            pid: None,
            cleaned: false,
            root,
        })
    }

    /// [`Lab::new`] and mounted.
    pub fn mounted(backend: Backend) -> Option<Lab> {
        let mut lab = Lab::new(backend)?;
        lab.mount(&[]);
        Some(lab)
    }

    /// A lab whose cache is on a disk of its own, of `mib` MiB. Ends with
    /// [`Lab::finish_on_small_ssd`].
    pub fn on_small_ssd(backend: Backend, mib: u64) -> Option<(Lab, SmallSsd)> {
        let mut lab = Lab::new(backend)?;
        let ssd = small_disk(lab.root(), mib, 0)?;
        lab.cache = ssd.path().join("cache");
        Some((lab, ssd))
    }

    /// This mounted lab with a new cache, mounted with `extra`. It knows `shelf/film` of `size`
    /// bytes, which only the drive has, and `shelf/kept`, which is cached.
    pub fn with_an_uncached_film(mut self, size: usize, extra: &[&str]) -> Lab {
        write(&self.m("shelf/film"), &content(1, size));
        write(&self.m("shelf/kept"), &content(2, 10_000));
        self.flush();
        self.unmount();
        self.take_new_cache();
        self.mount(extra);
        // Listed, so that the names are known without the drive.
        assert_eq!(fs::read_dir(self.m("shelf")).expect("list").count(), 2);
        write(&self.m("shelf/kept"), &content(3, 20_000));
        self.flush();
        self
    }

    /// The directory that everything of this lab is in.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// A path in the mount.
    pub fn m(&self, rel: impl AsRef<Path>) -> PathBuf {
        self.mnt.join(rel)
    }

    /// A path on the drive.
    pub fn d(&self, rel: impl AsRef<Path>) -> PathBuf {
        self.drive.path().join(rel)
    }

    /// The program with `args`, and with a home of the lab's own.
    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(ferryfs_binary());
        command
            .args(args)
            .env("HOME", self.root().join("home"))
            .env("XDG_DATA_HOME", self.root().join("data"))
            .env("XDG_CONFIG_HOME", self.root().join("config"))
            .env("XDG_RUNTIME_DIR", self.root().join("run"))
            .env_remove("RUST_LOG");
        command
    }

    /// Runs the program with `args` and returns what it said.
    pub fn ferryfs<S: AsRef<OsStr>>(&self, args: &[S]) -> Done {
        run(&mut self.command(args))
    }

    /// The arguments that mount this lab, `extra` among them. Tests flush when they want to, not
    /// when a timer does.
    pub fn mount_args(&self, extra: &[&str]) -> Vec<String> {
        let mut args = vec!["mount".to_owned()];
        if !extra.contains(&"--flush-after") {
            args.push("--no-auto-flush".into());
        }
        if !extra.contains(&"--cache") && !extra.contains(&"--default-cache") {
            args.extend(["--cache".into(), text(&self.cache)]);
        }
        if let Ok(io) = std::env::var("FERRYFS_TEST_IO") {
            args.extend(["--io".into(), io]);
        }
        args.extend(
            extra
                .iter()
                .filter(|a| **a != "--default-cache")
                .map(|a| (*a).to_owned()),
        );
        args.extend([text(self.drive.path()), text(&self.mnt)]);
        args
    }

    /// Tries to mount, for tests in which that is to fail.
    pub fn try_mount(&self, extra: &[&str]) -> Done {
        self.ferryfs(&self.mount_args(extra))
    }

    /// Mounts; the mount must be usable when the command returns.
    #[track_caller]
    pub fn mount(&mut self, extra: &[&str]) {
        self.args = self.mount_args(extra);
        self.remount();
    }

    /// Mounts as the last time.
    #[track_caller]
    pub fn remount(&mut self) {
        self.ferryfs(&self.args).code(exit::DONE);
        self.adopt();
    }

    /// Takes over a mount that the test made by [`Lab::try_mount`].
    #[track_caller]
    pub fn adopt(&mut self) {
        assert!(
            self.is_mounted(),
            "`ferryfs mount` returned 0 but {} is no mount",
            self.mnt.display()
        );
        self.pid = self.status()["pid"].as_i64().map(|pid| pid as i32);
        assert!(self.pid.is_some(), "status --json names no pid");
    }

    /// Forgets the cache and goes on with a new, empty one, as another machine would.
    pub fn take_new_cache(&mut self) {
        self.cache = (2..)
            .map(|n| self.root().join(format!("cache{n}")))
            .find(|path| !path.exists())
            .expect("some number is free");
    }

    /// Whether the mount table has the mount point.
    pub fn is_mounted(&self) -> bool {
        drive::is_mount(&self.mnt)
    }

    /// The daemon's process, while it is thought to run.
    pub fn pid(&self) -> i32 {
        self.pid.expect("the lab is mounted")
    }

    /// `status --json`.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.ferryfs(&["status", "--json", &text(&self.mnt)])
            .code(exit::DONE)
            .json()
    }

    /// `flush --json`, everything carried over.
    #[track_caller]
    pub fn flush(&self) -> Value {
        self.flush_code(exit::DONE).json()
    }

    /// The same after a kill: what was being written then goes along as it is.
    #[track_caller]
    pub fn flush_interrupted(&self) -> Value {
        let flush = ["flush", "--json", "--include-interrupted", &text(&self.mnt)];
        self.ferryfs(&flush).code(exit::DONE).json()
    }

    /// `flush --json` that ends with `code`.
    #[track_caller]
    pub fn flush_code(&self, code: i32) -> Done {
        self.ferryfs(&["flush", "--json", &text(&self.mnt)])
            .code(code)
    }

    /// `flush --json --wait-closed` that leaves something behind.
    #[track_caller]
    pub fn flush_closed(&self) -> Value {
        let flush = ["flush", "--json", "--wait-closed", &text(&self.mnt)];
        self.ferryfs(&flush).code(exit::LEFT_BEHIND).json()
    }

    /// `eject`.
    #[track_caller]
    pub fn eject(&self) {
        self.ferryfs(&["eject", &text(&self.mnt)]).code(exit::DONE);
    }

    /// `unmount`: flushes; the daemon ends.
    #[track_caller]
    pub fn unmount(&mut self) {
        self.unmount_with(&[]);
    }

    /// `unmount` with options.
    #[track_caller]
    pub fn unmount_with(&mut self, options: &[&str]) {
        let mut args = vec!["unmount".to_owned()];
        args.extend(options.iter().map(|o| (*o).to_owned()));
        args.push(text(&self.mnt));
        self.ferryfs(&args).code(exit::DONE);
        assert!(
            !self.is_mounted(),
            "`ferryfs unmount` returned 0 but the mount is still there"
        );
        if let Some(pid) = self.pid.take() {
            wait_until(
                "the daemon to end after unmount",
                Duration::from_secs(10),
                || !run::alive(pid),
            );
        }
    }

    /// Kills the daemon as a crash would; the mount point stays behind, dead.
    pub fn kill9(&mut self) {
        if let Some(pid) = self.pid.take() {
            run::kill9(pid);
        }
    }

    /// The drive's tree without our own directory is the mount's, but for what exFAT has in the
    /// catalog only.
    #[track_caller]
    pub fn assert_drive_is_mount(&self) {
        let mut on_drive = Tree::read(self.drive.path()).without(".ferryfs");
        let mut in_mount = Tree::read(&self.mnt);
        if self.drive.is_exfat() {
            on_drive = on_drive.in_mount_names();
            in_mount = in_mount.plain();
        }
        in_mount.assert_same(&on_drive, "the mount", "the drive");
    }

    /// Unmounts all and lets fsck look at the drive. Every test that went well ends with it.
    #[track_caller]
    pub fn finish(mut self) {
        if self.is_mounted() {
            self.unmount();
        }
        self.drive.take_away();
        self.drive.assert_clean();
    }

    /// Flushes, and finishes with the mount's tree on the drive.
    #[track_caller]
    pub fn finish_flushed(self) {
        self.flush();
        self.assert_drive_is_mount();
        self.finish();
    }

    /// The end of a lab of [`Lab::on_small_ssd`]: the disk goes when the daemon has left it.
    #[track_caller]
    pub fn finish_on_small_ssd(mut self, ssd: SmallSsd) {
        self.unmount();
        drop(ssd);
        self.finish();
    }

    /// Kills a daemon that the test started by itself.
    pub fn kill(&mut self, pid: i32) {
        self.pid = Some(pid);
        self.kill9();
    }

    fn clean_up(&mut self) {
        if std::mem::replace(&mut self.cleaned, true) {
            return;
        }
        self.kill9();
        for pid in run::processes_of(&ferryfs_binary(), self.root.path()) {
            run::kill9(pid);
        }
        drive::detach_below(self.root.path(), &self.mnt);
        self.drive.clean_up();
        drive::detach_below(self.root.path(), self.root.path());
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let script = format!("tail -n 40 {}/cache*/*.log", self.root.path().display());
            if let Ok(log) = Command::new("sh").args(["-c", &script]).output() {
                eprintln!(
                    "--- the daemon's log\n{}---",
                    String::from_utf8_lossy(&log.stdout)
                );
            }
        }
        self.clean_up();
    }
}

/// A path of the lab as text; the lab chose it, so it is.
pub fn text(path: &Path) -> String {
    path.to_str().expect("lab paths are UTF-8").to_owned()
}

/// Makes one test per kind of drive of each function `fn(Lab)`; it gets a mounted lab.
#[macro_export]
macro_rules! on_both_drives {
    ($($name:ident),* $(,)?) => {
        mod plain_directory {
            $(#[test] fn $name() {
                if let Some(lab) = $crate::lab::Lab::mounted($crate::lab::Backend::Ext4Dir) { super::$name(lab); }
            })*
        }
        mod exfat {
            $(#[test] fn $name() {
                if let Some(lab) = $crate::lab::Lab::mounted($crate::lab::Backend::EXFAT) { super::$name(lab); }
            })*
        }
    };
}

/// Makes a test of each function `fn(Lab)`, on a plain directory: for what the drive has no part
/// in.
#[macro_export]
macro_rules! on_plain_directory {
    ($($name:ident),* $(,)?) => {
        mod plain {
            $(#[test] fn $name() {
                if let Some(lab) = $crate::lab::Lab::mounted($crate::lab::Backend::Ext4Dir) { super::$name(lab); }
            })*
        }
    };
}
