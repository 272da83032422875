//! Finds the directory of a drive that the configuration names by its path, by the label of its
//! file system, or by the id of its volume.
//!
//! What is found is only a place to look: the mount checks the marker there. A directory that does
//! not answer in time is passed over.

use std::fmt;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::flush_job::within;
use super::known_caches;
use super::volume::CacheFacts;
use crate::cache::private;
use crate::core::{Exit, Failure, printable};
use crate::format::{layout, marker};
use crate::sys::mounts;
use crate::sys::mounts::Mount;

/// Where udev shows the labels of block devices.
const LABELS: &str = "/dev/disk/by-label";

/// How long one directory may take to show its marker.
const PATIENCE: Duration = Duration::from_secs(3);

/// File systems that have no drives behind them.
const NO_DRIVES: [&str; 14] = [
    "autofs",
    "bpf",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "fuse.ferryfs",
    "mqueue",
    "proc",
    "pstore",
    "securityfs",
    "sysfs",
    "tracefs",
];

/// The beginning of a label, as in fstab(5).
const LABEL: &str = "LABEL=";

/// How the configuration names a drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DriveName {
    /// Its directory: an absolute path.
    Path(PathBuf),
    /// The label of its file system.
    Label(String),
    /// The id of its volume.
    Volume(Uuid),
}

/// Why text names no drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be an absolute path, LABEL=..., or the id of a volume")]
pub struct NoDrive;

impl FromStr for DriveName {
    type Err = NoDrive;

    fn from_str(text: &str) -> Result<DriveName, NoDrive> {
        if let Some(label) = text.strip_prefix(LABEL).filter(|label| !label.is_empty()) {
            return Ok(DriveName::Label(label.into()));
        }
        if Path::new(text).is_absolute() {
            return Ok(DriveName::Path(text.into()));
        }
        Uuid::parse_str(text)
            .map(DriveName::Volume)
            .map_err(|_| NoDrive)
    }
}

impl fmt::Display for DriveName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DriveName::Path(path) => write!(f, "{}", path.display()),
            DriveName::Label(label) => write!(f, "{LABEL}{label}"),
            DriveName::Volume(id) => write!(f, "{id}"),
        }
    }
}

/// Returns the directory of the drive, or where it was when the cache knows it: a mount can start
/// without its drive.
///
/// # Errors
/// If it is not there, and no cache of this user knows where it was.
pub fn find(name: &DriveName, cache: Option<&Path>) -> Result<PathBuf, Failure> {
    let mounts = mounts::mounts().unwrap_or_default();
    let found = match name {
        DriveName::Path(path) => return Ok(path.clone()),
        DriveName::Label(label) => at_label(Path::new(LABELS), label, &mounts),
        DriveName::Volume(id) => known_place(*id)
            .filter(|place| is_at(*id, place))
            .or_else(|| places(&mounts).into_iter().find(|place| is_at(*id, place))),
    };
    let known = || match name {
        DriveName::Volume(id) => known_place(*id),
        _ => CacheFacts::read(cache?)
            .ok()
            .flatten()
            .map(|facts| facts.backend),
    };
    found.or_else(known).ok_or_else(|| absent(name))
}

fn absent(name: &DriveName) -> Failure {
    let hint = match name {
        DriveName::Label(_) => {
            "plug it in and mount it. If the configuration names the cache of the drive, or the id \
             of its volume instead (`ferryfs status --json` has it), the mount starts without it"
        }
        _ => "plug it in and mount it; no cache of yours knows this volume yet",
    };
    Failure {
        code: Exit::BackendAbsent,
        message: format!("the drive {} is not there", printable(&name.to_string())),
        hint: Some(hint.into()),
    }
}

/// Where the cache of the volume says that its drive was.
fn known_place(volume: Uuid) -> Option<PathBuf> {
    let known = known_caches::all().into_iter();
    known
        .map(|(_, facts)| facts)
        .find(|facts| facts.volume == volume)
        .map(|facts| facts.backend)
}

/// The mount points that may have a drive.
fn places(mounts: &[Mount]) -> Vec<PathBuf> {
    let may_be = |mount: &&Mount| !NO_DRIVES.contains(&mount.fs_type.as_str());
    mounts
        .iter()
        .rev()
        .filter(may_be)
        .map(|mount| mount.mount_point.clone())
        .collect()
}

fn is_at(volume: Uuid, place: &Path) -> bool {
    let (begun, place) = (Instant::now(), place.to_path_buf());
    let found = within(move || volume_at(&place), || begun.elapsed() > PATIENCE).flatten();
    found.is_some_and(|(found, _)| found == volume)
}

/// Returns the id of the volume whose drive is at `path`, and the user to whom its marker belongs.
pub fn volume_at(path: &Path) -> Option<(Uuid, u32)> {
    let place = path.join(layout::marker_path().as_os_str());
    // The user of the drive may have put any file there.
    let marker = private::own().read(true).open(place).ok()?;
    let meta = marker.metadata().ok()?;
    if !meta.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    let most = marker::MAX_BYTES as u64 + 1;
    marker.take(most).read_to_end(&mut bytes).ok()?;
    let marker = marker::decode(&bytes).ok()?;
    Some((marker.id, meta.uid()))
}

/// The mount point of the device that has `label` among the links in `labels`.
fn at_label(labels: &Path, label: &str, mounts: &[Mount]) -> Option<PathBuf> {
    let link = (fs::read_dir(labels).ok()?.flatten())
        .find(|entry| decoded(entry.file_name().as_bytes()) == label.as_bytes())?
        .path();
    let device = fs::canonicalize(&link).ok()?;
    let number = fs::metadata(&device).ok()?.rdev();
    // A driver in user space is mounted under a number of its own, and names the device.
    let is_of_it = |mount: &&Mount| {
        (number != 0 && mount.dev == number)
            || fs::canonicalize(&mount.source).is_ok_and(|source| source == device)
    };
    let mut of_it = mounts.iter().rev().filter(is_of_it);
    let whole = of_it.clone().find(|mount| mount.root == Path::new("/"));
    whole
        .or_else(|| of_it.next())
        .map(|mount| mount.mount_point.clone())
}

/// The name of a link as udev encodes it: `\x20` for a space.
fn decoded(name: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = name;
    while let Some((&first, after)) = rest.split_first() {
        let code = after.strip_prefix(b"x").and_then(|code| code.get(..2));
        let code = code
            .filter(|_| first == b'\\')
            .and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drive_is_named_by_path_label_or_volume() {
        let id = "6f2c8f52-3f3b-4b58-9d4b-7f6b7a1f8a10";
        for text in ["/media/me/HDD", "LABEL=My Drive", id] {
            assert_eq!(text.parse::<DriveName>().unwrap().to_string(), text);
        }
        for text in ["", "media/HDD", "LABEL=", "HDD", "./x"] {
            assert_eq!(text.parse::<DriveName>(), Err(NoDrive), "{text}");
        }
    }

    #[test]
    fn a_label_leads_to_the_mount_of_its_device() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("sdb1");
        fs::write(&device, b"").unwrap();
        std::os::unix::fs::symlink("sdb1", dir.path().join("My\\x20Drive")).unwrap();
        let table = format!(
            "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n\
             2 1 0:50 /part /bound rw - fuseblk {0} rw\n\
             3 1 0:50 / /media/HDD rw - fuseblk {0} rw\n",
            device.display()
        );
        let mounts = mounts::parse(table.as_bytes());
        let found = |label| at_label(dir.path(), label, &mounts);
        assert_eq!(found("My Drive").as_deref(), Some(Path::new("/media/HDD")));
        assert_eq!(found("sdb2"), None);
        assert_eq!(
            found("My\\x20Drive"),
            None,
            "the label, not the name of the link"
        );
        assert_eq!(at_label(dir.path(), "My Drive", &mounts[..1]), None);
    }

    #[test]
    fn only_whole_codes_are_decoded() {
        assert_eq!(decoded(b"a\\x2fb"), b"a/b");
        assert_eq!(decoded(b"a\\x2"), b"a\\x2");
        assert_eq!(decoded(b"\\\\x41"), b"\\A");
        assert_eq!(decoded(b"x41"), b"x41");
    }
}
