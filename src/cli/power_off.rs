//! `ferryfs eject --power-off`: unmounts an ejected drive, and switches it off.
//!
//! With `udisksctl`, which every desktop has, the system does it, also for users. Else it is what
//! root does by hand: unmount, and tell the kernel to let go of the disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::core::{Failure, ForeignText, printable, quoted};
use crate::sys::mounts::{self, Mount};
use crate::sys::superblock;

/// How often an unmount is tried: the daemon looks whether the drive is gone, which holds it for a
/// moment.
const TRIES: u32 = 15;
const BETWEEN_TRIES: Duration = Duration::from_millis(200);

/// The program of udisks2.
const UDISKS: &str = "udisksctl";

/// Switches the drive off whose directory is `path`. It has been ejected. Returns what was done.
///
/// # Errors
/// Why it is still on, or still mounted.
pub(super) fn power_off(path: &Path) -> Result<String, Failure> {
    let mount = (mounts::find_mount(path).ok().flatten())
        .ok_or_else(|| not_done(path, "it is not mounted there any more"))?;
    if mount.mount_point == Path::new("/") {
        return Err(not_done(path, "it is on the disk of the system"));
    }
    let device = mount
        .block_device()
        .ok_or_else(|| not_done(path, "it is on no block device of this machine"))?;
    let node = superblock::device_node(device)
        .ok_or_else(|| not_done(path, "its device is not in /dev"))?;
    match has_udisks() {
        true => with_udisks(path, &mount, &node)?,
        false => by_hand(path, &mount, device)?,
    }
    Ok(format!("{} is switched off: unplug it.\n", node.escaped()))
}

fn not_done(path: &Path, why: &str) -> Failure {
    Failure::failed(format!(
        "{} was ejected, and not switched off: {why}",
        path.escaped()
    ))
    .hint(format!(
        "everything that was flushed is on the drive; before you unplug it: umount {}",
        quoted(path)
    ))
}

fn has_udisks() -> bool {
    let found = Command::new(UDISKS)
        .arg("help")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    found.is_ok()
}

fn with_udisks(path: &Path, mount: &Mount, node: &Path) -> Result<(), Failure> {
    let udisks = |word: &str| run(Command::new(UDISKS).arg(word).arg("-b").arg(node));
    while !places(mount.dev).is_empty() {
        let before = places(mount.dev).len();
        again_while_busy(|| udisks("unmount")).map_err(|why| not_done(path, &why))?;
        if places(mount.dev).len() >= before {
            return Err(not_done(path, "udisksctl has not unmounted it"));
        }
    }
    udisks("power-off").map_err(|why| unmounted(path, &why))
}

/// As root, without a desktop.
fn by_hand(path: &Path, mount: &Mount, device: u64) -> Result<(), Failure> {
    let disk = disk_of(device).map_err(|error| not_done(path, &error.to_string()))?;
    for place in places(mount.dev) {
        again_while_busy(|| run(Command::new("umount").arg("--").arg(&place)))
            .map_err(|why| not_done(path, &why))?;
    }
    if let Some(other) = in_use_on(&disk) {
        let why = format!("another part of the disk is mounted at {}", other.escaped());
        return Err(unmounted(path, &why));
    }
    let switch = disk.join("device/delete");
    fs::write(&switch, "1").map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => unmounted(path, "this kind of disk has no switch"),
        io::ErrorKind::PermissionDenied => unmounted(path, "that needs root, or udisks2"),
        _ => unmounted(path, &error.to_string()),
    })
}

fn unmounted(path: &Path, why: &str) -> Failure {
    let message = format!(
        "{} was unmounted, and not switched off: {why}",
        path.escaped()
    );
    Failure::failed(message).hint("it is safe to unplug: everything is on it, and nothing uses it")
}

/// Where the file system with this number is mounted; the last mount first.
fn places(device: u64) -> Vec<PathBuf> {
    let table = mounts::mounts().unwrap_or_default();
    let here = table.into_iter().rev().filter(|mount| mount.dev == device);
    here.map(|mount| mount.mount_point).collect()
}

/// The directory in `/sys` of the disk that a block device is, or is a part of.
fn disk_of(device: u64) -> io::Result<PathBuf> {
    let number = format!("{}:{}", libc::major(device), libc::minor(device));
    let place = fs::canonicalize(Path::new("/sys/dev/block").join(number))?;
    Ok(match (place.join("partition").exists(), place.parent()) {
        (true, Some(disk)) => disk.to_path_buf(),
        _ => place,
    })
}

/// Where a part of the disk is mounted.
fn in_use_on(disk: &Path) -> Option<PathBuf> {
    let table = mounts::mounts().unwrap_or_default();
    let is_part = |mount: &Mount| {
        mount
            .block_device()
            .and_then(|device| disk_of(device).ok())
            .is_some_and(|other| other == disk)
    };
    table
        .into_iter()
        .find(is_part)
        .map(|mount| mount.mount_point)
}

/// Runs `work` until it succeeds, a few times.
fn again_while_busy(mut work: impl FnMut() -> Result<(), String>) -> Result<(), String> {
    for _ in 1..TRIES {
        if work().is_ok() {
            return Ok(());
        }
        thread::sleep(BETWEEN_TRIES);
    }
    work()
}

/// Runs a command. The error is what it said.
fn run(command: &mut Command) -> Result<(), String> {
    let done = command.stdin(Stdio::null()).output();
    let done = done.map_err(|error| error.to_string())?;
    if done.status.success() {
        return Ok(());
    }
    let said = done.stderr.to_text();
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    Err(match said.is_empty() {
        true => done.status.to_string(),
        false => printable(&said),
    })
}
