//! A drive that the environment names, so that the tests can be held against any file system:
//!
//! - `FERRYFS_TEST_DRIVE`: the directory. It is emptied for each test.
//! - `FERRYFS_TEST_DRIVE_AWAY`, `..._BACK`: shell commands that unmount it and mount it.
//! - `FERRYFS_TEST_DRIVE_YANK`: one that takes it away while it is in use.
//! - `FERRYFS_TEST_DRIVE_CHECK`: a shell command that checks its file system while it is away.
//!
//! `scripts/drives.py` makes such drives. With them every lab has that drive, whichever it asked
//! for; a test is chosen by its name (`plain_directory::`, `exfat::`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::super::run::{Done, run_for, wait_until};
use super::super::text;
use super::is_mount;

/// A drive with commands that take it away and bring it back. Labs have it one after another, in
/// whichever process they are: the lock goes with the last of the lab.
pub(super) struct Given {
    away: String,
    yank: String,
    back: String,
    check: Option<String>,
    turn: Option<fs::File>,
}

/// Where the drive of the environment is, if there is one.
pub(super) fn path() -> Option<PathBuf> {
    std::env::var_os("FERRYFS_TEST_DRIVE").map(PathBuf::from)
}

fn variable(name: &str) -> Option<String> {
    std::env::var(format!("FERRYFS_TEST_DRIVE_{name}")).ok()
}

fn shell(command: &str) -> Done {
    run_for(
        Command::new("bash").args(["-euo", "pipefail", "-c", command]),
        Duration::from_secs(120),
    )
}

impl Given {
    /// The drive at `path` that the environment names, emptied.
    pub(super) fn of_the_environment(path: &Path) -> Result<Given, String> {
        let lock = format!("ferryfs-drive-{}", text(path).replace('/', "-"));
        let turn = fs::File::create(std::env::temp_dir().join(lock)).map_err(|e| e.to_string())?;
        turn.lock().map_err(|e| e.to_string())?;
        let given = Given {
            away: variable("AWAY").ok_or("FERRYFS_TEST_DRIVE_AWAY is not set")?,
            yank: variable("YANK").ok_or("FERRYFS_TEST_DRIVE_YANK is not set")?,
            back: variable("BACK").ok_or("FERRYFS_TEST_DRIVE_BACK is not set")?,
            check: variable("CHECK"),
            turn: Some(turn),
        };
        empty(path).map_err(|e| format!("empty {}: {e}", path.display()))?;
        Ok(given)
    }

    /// A small ext4 of the lab's own at `path`, in place of one that the environment names.
    pub(super) fn small_ext4(path: &Path) -> Result<Given, String> {
        let (image, path) = (text(&path.with_extension("img")), text(path));
        let made = shell(&format!(
            "truncate --size 256M {image}; mkfs.ext4 -q -F -m 0 {image}"
        ));
        if made.code != 0 {
            return Err(made.stderr);
        }
        let given = Given {
            away: format!("umount {path}"),
            yank: format!("umount --lazy {path}"),
            back: format!("mount -o loop {image} {path}"),
            check: Some(format!("e2fsck -f -n {image}")),
            turn: None,
        };
        given.put_back(Path::new(&path))?;
        empty(Path::new(&path)).map_err(|e| e.to_string())?;
        Ok(given)
    }

    pub(super) fn put_back(&self, path: &Path) -> Result<(), String> {
        if is_mount(path) {
            return Ok(());
        }
        match shell(&self.back) {
            done if done.code == 0 => Ok(()),
            done => Err(format!("{}: {}{}", self.back, done.stdout, done.stderr)),
        }
    }

    /// Unmounts it; a call that is under way holds it for a moment.
    #[track_caller]
    pub(super) fn take_away(&self, path: &Path) {
        if is_mount(path) {
            wait_until("the drive to be unmounted", Duration::from_secs(20), || {
                shell(&self.away).code == 0
            });
        }
    }

    #[track_caller]
    pub(super) fn yank(&self) {
        shell(&self.yank).ok();
    }

    #[track_caller]
    pub(super) fn assert_clean(&self) {
        if let Some(check) = &self.check {
            shell(check).ok();
        }
    }

    /// The next lab finds it at its place, if it is not this lab's own. Runs while a test may be
    /// panicking.
    pub(super) fn clean_up(&self, path: &Path) {
        if self.turn.is_some() {
            let _ = self.put_back(path);
        } else {
            let _ = Command::new("umount").arg("--lazy").arg(path).output();
        }
    }
}

/// Removes all below `dir`.
pub(super) fn empty(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
