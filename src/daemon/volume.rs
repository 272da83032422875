//! The drive and its cache: enrolls a volume, and connects it with the cache that belongs to it.
//!
//! The marker is written last, after everything else, and synced. A crash before that leaves a
//! directory without a marker, which is enrolled again. `cache.json` in the cache names its volume;
//! it is written before the first object. A cache is never connected to another volume at its
//! drive's path.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::cache::private;
use crate::core::{Capabilities, Exit, Failure, ForeignText, PROBE_VERSION, RelPath, Timestamp};
use crate::daemon::drive_identity::FsIdentity;
use crate::drive::{Backend, BackendError, WRITE, probe, sealed_file};
use crate::error::FlushError;
use crate::format::marker::Marker;
use crate::format::{layout, marker};

/// The file in a cache that names its volume.
pub(super) const CACHE_FILE: &str = "cache.json";

/// The version of that file.
const CACHE_FORMAT: u32 = 1;

/// How often, and how long after one another, a marker that cannot be decoded is read again.
const MARKER_TRIES: u32 = 10;
const BETWEEN_TRIES: Duration = Duration::from_millis(100);

/// Where a probe works, on the drive.
const SCRATCH: &str = ".ferryfs/probe";

/// How many earlier paths of the volume are stored.
const FORMER: usize = 8;

/// What a cache remembers of its volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct CacheFacts {
    format: u32,
    /// The volume's id.
    pub(super) volume: Uuid,
    /// The volume's nonce, of the enrollment that this cache knows.
    pub(super) nonce: [u8; 16],
    /// The nonce that the marker is about to get, or has already: the marker was lost and is
    /// written again.
    renewed: Option<[u8; 16]>,
    /// This cache's own id, which is in the records of its batches.
    pub(super) origin: Uuid,
    /// Where the volume was attached last.
    pub(super) backend: PathBuf,
    /// Where it was before that, the latest last. A directory without a marker there is not a new
    /// volume either.
    pub(super) former: Vec<PathBuf>,
    /// The file system that it is on.
    pub(super) file_system: FsIdentity,
    /// The capabilities of the volume's file system.
    pub(super) capabilities: Capabilities,
}

/// The part of that file that every version has.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// The volume's marker, if the directory has one.
///
/// # Errors
/// If it cannot be read, or if it cannot be decoded for longer than another machine needs to write
/// one.
pub(super) fn peek(backend: &dyn Backend) -> Result<Option<Marker>, Failure> {
    let mut tries = 0;
    let error = loop {
        let bytes = sealed_file::read_small(backend, &layout::marker_path(), marker::MAX_BYTES)
            .map_err(FlushError::from)?;
        let Some(bytes) = bytes else { return Ok(None) };
        match marker::decode(&bytes) {
            Ok(marker) => return Ok(Some(marker)),
            Err(error) if tries == MARKER_TRIES => break error,
            // A marker is not in one piece while another machine writes it.
            Err(_) => thread::sleep(BETWEEN_TRIES),
        }
        tries += 1;
    };
    Err(Failure::failed(error.to_string()).hint(
        "the marker is .ferryfs/volume.json on the drive; nothing was changed. If it cannot be \
         repaired, delete it there, and enroll the drive up again: ferryfs mount --re-enroll \
         (or ferryfs attach --re-enroll)",
    ))
}

/// Makes the directory a volume: our own folder, and last `marker`. If two machines do so at once,
/// one of them makes the marker, and both use that one. Returns the one that is there.
///
/// # Errors
/// If the drive cannot be written.
pub(super) fn enroll(backend: &dyn Backend, marker: &Marker) -> Result<Marker, Failure> {
    write_marker(backend, marker)?;
    Ok(peek(backend)?.unwrap_or_else(|| marker.clone()))
}

/// Writes `marker`, after everything else. An existing one is not changed.
///
/// # Errors
/// If the backend cannot be written.
pub(super) fn write_marker(backend: &dyn Backend, marker: &Marker) -> Result<(), Failure> {
    let write = || -> Result<(), BackendError> {
        for dir in [layout::dir(), layout::staging_root(), layout::batches_dir()] {
            make_dir_if_missing(backend, &dir)?;
        }
        for path in [layout::NOMEDIA, layout::NO_INDEX] {
            write_file(backend, &RelPath::fixed(path), b"")?;
        }
        backend.sync()?;
        write_file(backend, &layout::marker_path(), &marker::encode(marker))?;
        backend.sync()
    };
    write().map_err(not_set_up)
}

/// Why a drive could not be prepared for its first mount. The hint is not to flush again: there was
/// no flush yet.
fn not_set_up(error: BackendError) -> Failure {
    let is_full = error.is_full();
    let failure = Failure::from(FlushError::from(error));
    match is_full {
        true => failure.hint("free some space on the drive, and mount again"),
        false => failure,
    }
}

fn make_dir_if_missing(backend: &dyn Backend, path: &RelPath) -> Result<(), BackendError> {
    match backend.make_dir(path) {
        Err(error) if error.source.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

fn write_file(backend: &dyn Backend, path: &RelPath, bytes: &[u8]) -> Result<(), BackendError> {
    let mut file = match backend.create(path) {
        Err(error) if error.source.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        result => result?,
    };
    file.append(bytes)
        .and_then(|()| file.finish(Timestamp::from(std::time::SystemTime::now())))
        .map_err(|source| {
            // A part of a marker would pass for a damaged one.
            let _ = backend.remove_file(path);
            BackendError::new(WRITE, path, source)
        })
}

/// The default directory of caches: `$XDG_DATA_HOME/ferryfs`, else `~/.local/share/ferryfs`. It is
/// not below a directory for disposable caches, because the data may exist nowhere else.
pub(super) fn default_caches() -> Result<PathBuf, Failure> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_DATA_HOME")
        .or_else(|| {
            absolute("HOME")
                .or_else(home)
                .map(|home| home.join(".local/share"))
        })
        .map(|data| data.join("ferryfs"))
        .ok_or_else(|| {
            Failure::failed(
                "neither XDG_DATA_HOME nor HOME is set, so there is no place for the cache",
            )
            .hint("name a directory for it: --cache DIR")
        })
}

/// The home directory of this user by the system's list of users: mount(8) and units of systemd may
/// set no HOME.
fn home() -> Option<PathBuf> {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok()??;
    Some(user.dir).filter(|home| home.is_absolute())
}

/// Makes the cache directory, with access for its owner only.
///
/// # Errors
/// If it cannot be made.
pub(super) fn make_cache_dir(dir: &Path) -> Result<(), Failure> {
    private::make_dir(dir).map_err(|refused| match refused {
        private::PrivacyError::Io { source, .. } => Failure::failed(format!(
            "cannot make the cache directory {}: {source}",
            dir.escaped()
        ))
        .hint("choose another place with --cache DIR"),
        refused => Failure::failed(refused.to_string()).hint(refused.hint()),
    })
}

/// Checks that only this user can access the cache, before anything in it is opened. Passes if it
/// does not exist.
///
/// # Errors
/// If another user could have put a file there.
pub(super) fn check_private(dir: &Path) -> Result<(), Failure> {
    private::check(dir).map_err(|refused| Failure::failed(refused.to_string()).hint(refused.hint()))
}

/// As root, checks that no other user can change where the path of `dir` leads.
///
/// # Errors
/// If one can.
pub(super) fn check_way(dir: &Path) -> Result<(), Failure> {
    private::check_way(dir)
        .map_err(|refused| Failure::failed(refused.to_string()).hint(refused.hint()))
}

impl CacheFacts {
    /// The facts of a new cache, `origin`, for the volume `marker` at `path`.
    ///
    /// # Errors
    /// If the drive cannot be probed.
    pub(super) fn new(
        backend: &dyn Backend,
        path: &Path,
        marker: &Marker,
        origin: Uuid,
    ) -> Result<CacheFacts, Failure> {
        let capabilities = probe::probe(backend, &RelPath::fixed(SCRATCH)).map_err(not_set_up)?;
        Ok(CacheFacts {
            format: CACHE_FORMAT,
            volume: marker.id,
            nonce: marker.nonce,
            renewed: None,
            origin,
            backend: path.to_path_buf(),
            former: Vec::new(),
            file_system: FsIdentity::default(),
            capabilities,
        })
    }

    /// The facts in the cache in `dir`; `None` if it is new.
    ///
    /// # Errors
    /// If the file exists but cannot be read.
    pub(super) fn read(dir: &Path) -> Result<Option<CacheFacts>, Failure> {
        super::leave::check_not_left(dir)?;
        let path = dir.join(CACHE_FILE);
        if fs::symlink_metadata(&path).is_ok() {
            check_private(dir)?;
        }
        let bytes = match private::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(Failure::failed(format!(
                    "cannot read {}: {error}",
                    path.escaped()
                )));
            }
        };
        let unclear = |error: serde_json::Error| {
            let what = format!("{} cannot be decoded: {error}", path.escaped());
            Failure::failed(what).hint(
                "the cache may hold data that is nowhere else: do not delete it; \
                 restore this file, or copy the data out with `ferryfs rescue`",
            )
        };
        // The format is checked first: other formats may have other members.
        let Format { format } = serde_json::from_slice(&bytes).map_err(unclear)?;
        if format != CACHE_FORMAT {
            return Err(Failure::failed(format!(
                "the cache {} has format {format}, and this ferryfs knows format {CACHE_FORMAT} \
                 alone: it was made by another version",
                dir.escaped()
            ))
            .hint(
                "nothing was changed. Mount and flush with the ferryfs that made it; then move the \
                 cache away and mount again",
            ));
        }
        serde_json::from_slice(&bytes).map(Some).map_err(unclear)
    }

    /// Writes the file, durably.
    ///
    /// # Errors
    /// If the SSD fails.
    pub(super) fn write(&self, dir: &Path) -> Result<(), Failure> {
        let path = dir.join(CACHE_FILE);
        let temporary = dir.join(format!("{CACHE_FILE}.tmp"));
        let write = || -> io::Result<()> {
            let mut file = private::make_new(&temporary)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(dir)?.sync_all()
        };
        write()
            .map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.escaped())))
    }

    /// Checks that the cache belongs to the volume `marker`.
    ///
    /// # Errors
    /// If it does not.
    pub(super) fn check(
        &self,
        dir: &Path,
        backend: &Path,
        marker: Option<&Marker>,
    ) -> Result<(), Failure> {
        match marker {
            Some(marker) if marker.id == self.volume && self.is_enrollment(marker.nonce) => Ok(()),
            Some(marker) => Err(Failure::failed(format!(
                "the cache {} belongs to volume {}, but the drive is volume {}",
                dir.escaped(),
                self.volume,
                marker.id
            ))
            .hint("give this drive a cache of its own with --cache, or leave --cache out")),
            None if self.was_at(backend) => Err(self.absent(backend)),
            None => Err(Failure::failed(format!(
                "the cache {} belongs to volume {}, but {} is not a volume of ferryfs yet",
                dir.escaped(),
                self.volume,
                backend.escaped()
            ))
            .hint("give this drive a cache of its own with --cache, or leave --cache out")),
        }
    }

    /// Probes what an earlier probe has not looked for. Returns whether the facts have changed and
    /// must be written.
    ///
    /// The rules for names are not changed, because the index was made with them. A failure changes
    /// nothing, until the next time.
    pub(super) fn probe_anew(&mut self, backend: &dyn Backend) -> bool {
        if self.capabilities.probed >= PROBE_VERSION {
            return false;
        }
        match probe::probe(backend, &RelPath::fixed(SCRATCH)) {
            Ok(found) => {
                self.capabilities = self.capabilities.clone().with_attributes_of(found);
                true
            }
            Err(error) => {
                tracing::warn!(
                    %error,
                    "the capabilities of the drive could not be probed; the next mount tries again"
                );
                false
            }
        }
    }

    /// Whether the volume has been attached at `path`, as it is written or without symbolic links.
    pub(super) fn was_at(&self, path: &Path) -> bool {
        self.was_spelled(path) || fs::canonicalize(path).is_ok_and(|path| self.was_spelled(&path))
    }

    /// Whether the volume has been attached at `path` as it is written. Accesses the cache only.
    pub(super) fn was_spelled(&self, path: &Path) -> bool {
        self.backend == path || self.former.iter().any(|former| former == path)
    }

    /// Whether `nonce` is that of the enrollment that this cache knows.
    pub(super) fn is_enrollment(&self, nonce: [u8; 16]) -> bool {
        nonce == self.nonce || self.renewed == Some(nonce)
    }

    /// Notes that the marker will be written again with this nonce. The facts must be written
    /// before the marker.
    pub(super) fn renew_enrollment(&mut self, nonce: [u8; 16]) {
        self.renewed = Some(nonce);
    }

    /// Whether it is unknown which of two nonces the marker has.
    pub(super) fn is_renewing(&self) -> bool {
        self.renewed.is_some()
    }

    /// Makes `nonce`, which was found on the drive, the only valid one. Returns whether the facts
    /// have changed; they must be written once the index has noted that the next batch writes the
    /// whole catalog.
    pub(super) fn settle_enrollment(&mut self, nonce: [u8; 16]) -> bool {
        let is_news = self.renewed == Some(nonce);
        if is_news {
            self.nonce = nonce;
            self.renewed = None;
        }
        is_news
    }

    /// Stores where the volume is and on which file system. Returns whether the facts have changed
    /// and must be written.
    pub(super) fn remember(&mut self, path: &Path, file_system: FsIdentity) -> bool {
        let before = self.clone();
        if self.backend != path {
            let left = std::mem::replace(&mut self.backend, path.to_path_buf());
            self.former.retain(|former| former != path);
            self.former.push(left);
        }
        if let Ok(place) = fs::canonicalize(path)
            && !self.was_at(&place)
        {
            self.former.push(place);
        }
        if self.former != before.former {
            let surplus = self.former.len().saturating_sub(FORMER);
            self.former.drain(..surplus);
        }
        self.file_system = file_system;
        self.backend != before.backend
            || self.former != before.former
            || self.file_system != before.file_system
    }

    /// The volume of this cache is not at `path`, where it should be.
    pub(super) fn absent(&self, path: &Path) -> Failure {
        Failure {
            code: Exit::BackendAbsent,
            message: format!(
                "volume {} is not at {}: the directory has no .ferryfs/volume.json",
                self.volume,
                path.escaped()
            ),
            hint: Some(
                "mount the drive there first; what was written to it waits in the cache. To make a \
                 new volume of another drive there: --enroll, with a cache of its own"
                    .into(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drive::memory::{MemoryBackend, MemoryOptions};

    fn facts(drive: &MemoryBackend) -> CacheFacts {
        drive.make_dir(&layout::dir()).unwrap();
        let now = Timestamp(1_763_661_600_000_000_000);
        let marker = Marker::new(Uuid::new_v4(), [7; 16], now);
        CacheFacts::new(drive, Path::new("/media/x"), &marker, Uuid::new_v4()).unwrap()
    }

    #[test]
    fn the_home_of_a_user_without_home_is_in_the_systems_list() {
        let listed = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let own = format!(":{}:", nix::unistd::geteuid());
        let line = listed
            .lines()
            .find(|line| line.contains(&format!(":x{own}")));
        let expected = line
            .and_then(|line| line.split(':').nth(5))
            .map(PathBuf::from);
        if expected.is_some() {
            assert_eq!(home(), expected);
        }
    }

    #[test]
    fn what_a_full_drive_is_told_at_its_first_mount_speaks_of_no_flush() {
        let full = std::io::Error::from_raw_os_error(libc::ENOSPC);
        let failure = not_set_up(BackendError::new("mkdir", &layout::dir(), full));
        let hint = failure.hint.unwrap();
        assert!(hint.contains("mount again") && !hint.contains("flush"));
    }

    #[test]
    fn what_an_earlier_probe_has_found_is_probed_anew_once() {
        let dir = tempfile::tempdir().unwrap();
        let drive = MemoryBackend::new(MemoryOptions::linux_like());
        let mut facts = facts(&drive);
        facts.capabilities = Capabilities {
            case_insensitive: true,
            probed: PROBE_VERSION - 1,
            ..Capabilities::plain()
        };
        facts.write(dir.path()).unwrap();
        let mut facts = CacheFacts::read(dir.path()).unwrap().unwrap();
        let elsewhere = MemoryBackend::new(MemoryOptions::linux_like());
        assert!(
            !facts.probe_anew(&elsewhere),
            "there is no place to probe in"
        );
        assert!(facts.probe_anew(&drive));
        assert!(facts.capabilities.owners && facts.capabilities.hard_links);
        assert!(
            facts.capabilities.case_insensitive,
            "names stay as they are"
        );
        facts.write(dir.path()).unwrap();
        let mut again = CacheFacts::read(dir.path()).unwrap().unwrap();
        assert_eq!(again.capabilities, facts.capabilities);
        assert!(!again.probe_anew(&drive));
    }

    /// With any other members.
    #[test]
    fn the_facts_of_another_format_are_refused_as_such() {
        let dir = tempfile::tempdir().unwrap();
        for other in [0, CACHE_FORMAT + 1] {
            let text = format!(r#"{{"format":{other},"volume":7}}"#);
            fs::write(dir.path().join(CACHE_FILE), &text).unwrap();
            let refused = CacheFacts::read(dir.path()).unwrap_err();
            assert!(refused.message.contains("another version"), "{refused:?}");
            let left = fs::read_to_string(dir.path().join(CACHE_FILE)).unwrap();
            assert_eq!(left, text);
        }
    }
}
