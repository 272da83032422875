//! The first mount of a directory: whether it may become a volume, what the user is told, and how
//! the enrollment is undone if the mount fails.
//!
//! The usual mistake is a drive that is not mounted: its mount point is an empty directory on the
//! machine's own disk. A path that a cache of this user knows is never enrolled. An empty directory
//! on the disk of the system or of the cache is refused if it is where drives are mounted.
//! `--enroll` overrides both.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::known_caches;
use super::volume::CacheFacts;
use crate::core::{Exit, Failure, ForeignText, RelPath, quoted};
use crate::drive::mounted::MountedDir;
use crate::drive::{Backend, sealed_file};
use crate::format::marker::Marker;
use crate::format::{layout, marker};

/// Directories below which systems mount drives.
const MOUNT_ROOTS: [&str; 4] = ["/media", "/run/media", "/mnt", "/Volumes"];

/// Where systemd looks for units.
const UNIT_DIRS: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
];

/// The refusal to enroll a directory without a marker.
pub(super) fn check(path: &Path, cache: &Path) -> Result<(), Failure> {
    if let Some((dir, facts)) = known_caches::cache_made_for(path) {
        return Err(known_place(path, &dir, &facts));
    }
    let Some(why) = is_on_own_disk(path, cache)
        .then(|| unmounted(path))
        .flatten()
    else {
        return Ok(());
    };
    Err(Failure::failed(format!(
        "{} is empty and on this machine's own disk, and {why}: its drive is probably not mounted",
        path.escaped()
    ))
    .hint(format!(
        "nothing was written. Mount the drive there and try again; or, to use this directory \
         itself: ferryfs mount --enroll {} ...",
        quoted(path)
    )))
}

/// The path is known, and its volume is not there.
pub(super) fn known_place(path: &Path, cache: &Path, facts: &CacheFacts) -> Failure {
    Failure {
        code: Exit::BackendAbsent,
        message: format!(
            "{} is where volume {} was last, and it is not there now: the directory is not made a \
             new volume",
            path.escaped(),
            facts.volume
        ),
        hint: Some(format!(
            "nothing was written. Mount the drive there first; to work without it, mount with its \
             cache: --cache {}. To make this directory a new volume: --enroll",
            quoted(cache)
        )),
    }
}

/// The line that reports a new volume.
fn enrolled(path: &Path, cache: &Path) -> String {
    let said = format!("enrolled a new volume at {}", path.escaped());
    match is_on_own_disk(path, cache) {
        true => format!(
            "{said}; on the same disk as the cache: if a drive should be mounted there, unmount, \
             mount the drive, and mount again"
        ),
        false => said,
    }
}

/// Whether `path` is on the file system of the cache or on the root file system.
fn is_on_own_disk(path: &Path, cache: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev()).ok();
    let existing = cache.ancestors().find_map(device);
    let device_of_path = device(path);
    device_of_path.is_some()
        && (device_of_path == existing || device_of_path == device(Path::new("/")))
}

/// Why an empty directory looks like the mount point of a drive that is not mounted.
fn unmounted(path: &Path) -> Option<String> {
    let path = fs::canonicalize(path).ok()?;
    if !is_bare(&path) {
        return None;
    }
    if let Some(root) = MOUNT_ROOTS
        .iter()
        .find(|root| path.starts_with(root) && path != Path::new(root))
    {
        return Some(format!("{root} is where drives are mounted"));
    }
    is_mounted_by_the_system(&path).then(|| "the system mounts something there".to_owned())
}

/// Whether the directory has only what a new file system has.
pub(super) fn is_bare(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|entries| {
        entries
            .flatten()
            .all(|entry| entry.file_name() == "lost+found")
    })
}

/// Whether fstab or a systemd unit mounts something at `path`.
pub(super) fn is_mounted_by_the_system(path: &Path) -> bool {
    let fstab = fs::read("/etc/fstab").unwrap_or_default();
    if is_in_fstab(&fstab, path) {
        return true;
    }
    let unit = unit_name(path);
    UNIT_DIRS
        .iter()
        .any(|dir| Path::new(dir).join(&unit).exists())
}

fn is_in_fstab(fstab: &[u8], path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let wanted = path.as_os_str().as_bytes();
    fstab
        .split(|&byte| byte == b'\n')
        .filter_map(|line| {
            let mut words = line
                .split(u8::is_ascii_whitespace)
                .filter(|word| !word.is_empty());
            let source = words.next().filter(|word| !word.starts_with(b"#"))?;
            let place = words.next()?;
            (!source.is_empty()).then_some(place)
        })
        .any(|place| crate::sys::mounts::unescape(place) == wanted)
}

/// The name of the unit that mounts at `path`, as systemd-escape(1) makes it.
fn unit_name(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let bytes = path.as_os_str().as_bytes();
    let mut name = String::new();
    for (place, &byte) in bytes.strip_prefix(b"/").unwrap_or(bytes).iter().enumerate() {
        match byte {
            b'/' => name.push('-'),
            b'.' if place == 0 => name.push_str("\\x2e"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b':' | b'_' | b'.' => name.push(byte.into()),
            _ => name.push_str(&format!("\\x{byte:02x}")),
        }
    }
    name + ".mount"
}

/// A volume that this process enrolls, and the cache that it has made for it. If it is dropped
/// before the mount works, both are removed: a mount that failed has enrolled nothing.
#[derive(Debug)]
pub(super) struct Fresh {
    path: PathBuf,
    backend: MountedDir,
    /// The marker that this process writes. Another machine may be faster.
    marker: Marker,
    /// The new cache and its facts, once it is made, if this process has made it.
    cache: Option<(PathBuf, CacheFacts)>,
    /// Whether the cache's directory itself was made.
    made_dir: bool,
    keep: bool,
}

impl Fresh {
    /// The volume that is about to be enrolled at `path` by `marker`, to be removed unless it is
    /// kept.
    pub(super) fn new(path: &Path, backend: &MountedDir, marker: &Marker) -> Fresh {
        Fresh {
            path: path.into(),
            backend: backend.clone(),
            marker: marker.clone(),
            cache: None,
            made_dir: false,
            keep: false,
        }
    }

    /// Sets the cache that has been made for it. `made_dir`: its directory did not exist or was
    /// empty before.
    pub(super) fn with_cache(&mut self, dir: &Path, facts: &CacheFacts, made_dir: bool) {
        self.cache = Some((dir.into(), facts.clone()));
        self.made_dir = made_dir;
    }

    /// Keeps the volume, because the mount works.
    pub(super) fn keep(mut self, cache: &Path) -> String {
        self.keep = true;
        enrolled(&self.path, cache)
    }

    /// Another machine has made the marker at the same moment, so nothing of it is ours.
    pub(super) fn disown(mut self) {
        self.keep = true;
    }

    /// Removes the marker first, without which the rest has no meaning. Only empty directories are
    /// removed, so files that another process has made stay. A marker of another machine stays, and
    /// all that belongs to it.
    fn take_back(&self) {
        let backend = &self.backend;
        let path = layout::marker_path();
        let ours = marker::encode(&self.marker);
        match sealed_file::read_small(backend, &path, marker::MAX_BYTES) {
            Ok(None) => {}
            Ok(Some(found)) if found == ours => {}
            Ok(Some(_)) | Err(_) => return,
        }
        if let Err(error) = backend.remove_file(&path)
            && !error.is_not_found()
        {
            tracing::warn!(
                %error,
                "the new volume's marker cannot be removed, although the mount failed"
            );
            return;
        }
        for path in [layout::NOMEDIA, layout::NO_INDEX] {
            let _ = backend.remove_file(&RelPath::fixed(path));
        }
        for path in [
            layout::lease_path(),
            layout::lease_new_path(),
            layout::knock_path(),
        ] {
            let _ = backend.remove_file(&path);
        }
        for dir in [
            layout::staging_root(),
            layout::batches_dir(),
            layout::catalog_dir(),
            layout::dir(),
        ] {
            let _ = backend.remove_dir(&dir);
        }
        let _ = backend.sync();
        if let Some((dir, facts)) = &self.cache {
            known_caches::forget(facts);
            // cache.json first, so that no later mount counts the path as known.
            let _ = fs::remove_file(dir.join(super::volume::CACHE_FILE));
            if self.made_dir {
                let _ = fs::remove_dir_all(dir);
            }
        }
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if !self.keep {
            self.take_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fstab_is_read_as_the_system_reads_it() {
        let fstab = b"# /dev/sdb1 /mnt/comment ext4 defaults 0 2\n\
            UUID=AB-12\t/srv/my\\040drive  exfat nofail 0 0\n\nbroken\n";
        assert!(is_in_fstab(fstab, Path::new("/srv/my drive")));
        assert!(!is_in_fstab(fstab, Path::new("/mnt/comment")));
        assert!(!is_in_fstab(fstab, Path::new("/srv")));
    }

    #[test]
    fn units_are_named_as_systemd_escape_names_them() {
        assert_eq!(unit_name(Path::new("/mnt/data")), "mnt-data.mount");
        assert_eq!(
            unit_name(Path::new("/srv/my-drive x")),
            "srv-my\\x2ddrive\\x20x.mount"
        );
        assert_eq!(unit_name(Path::new("/.hid/.a")), "\\x2ehid-.a.mount");
    }

    #[test]
    fn a_directory_elsewhere_is_no_unmounted_drive_though_it_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        assert!(is_bare(dir.path()));
        assert_eq!(unmounted(dir.path()), None);
        fs::create_dir(dir.path().join("lost+found")).unwrap();
        assert!(is_bare(dir.path()));
        fs::write(dir.path().join("film.mkv"), b"x").unwrap();
        assert!(!is_bare(dir.path()));
    }

    #[test]
    fn a_mount_that_failed_takes_its_own_marker_back_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let backend = MountedDir::open(dir.path()).unwrap();
        let marker = |id: u128| {
            let time = crate::core::Timestamp::from_parts(1, 0);
            Marker::new(uuid::Uuid::from_u128(id), [0; 16], time)
        };
        let is_there = || dir.path().join(".ferryfs/volume.json").exists();
        let ours = Fresh::new(dir.path(), &backend, &marker(1));
        crate::daemon::volume::enroll(&backend, &marker(1)).unwrap();
        assert!(is_there());
        drop(ours);
        assert!(!is_there() && is_bare(dir.path()));
        let late = Fresh::new(dir.path(), &backend, &marker(2));
        let found = crate::daemon::volume::enroll(&backend, &marker(1)).unwrap();
        drop(late);
        assert_eq!(crate::daemon::volume::peek(&backend).unwrap(), Some(found));
        // Another machine is writing it.
        let half = &marker::encode(&marker(1))[..20];
        fs::write(dir.path().join(".ferryfs/volume.json"), half).unwrap();
        drop(Fresh::new(dir.path(), &backend, &marker(2)));
        assert!(is_there());
    }

    #[test]
    fn an_empty_directory_where_drives_are_mounted_is_one() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let Ok(dir) = tempfile::Builder::new()
            .prefix("ferryfs-test.")
            .tempdir_in("/mnt")
        else {
            return;
        };
        assert!(unmounted(dir.path()).is_some_and(|why| why.contains("/mnt")));
        fs::write(dir.path().join("film.mkv"), b"x").unwrap();
        assert_eq!(unmounted(dir.path()), None);
    }
}
