//! Which drive, which cache: enrollment of a volume, and the cache that belongs to it.
//!
//! Enrolling writes the marker last, after everything it vouches for, and syncs; a crash before that leaves a directory without
//! a marker, which is enrolled again. `cache.json` in the cache says which volume it belongs to; it is written before the first
//! object. A cache whose volume is not where it was is never connected to what is there instead.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::DaemonError;
use super::identity::FsIdentity;
use crate::backend::{Backend, BackendError, Capabilities, probe};
use crate::base::{ForeignText, RelPath, Timestamp};
use crate::cache::private;
use crate::cli::exit::Exit;
use crate::flush::FlushError;
use crate::rules::layout;
use crate::rules::marker::{self, Marker};

/// Name of the file in a cache that says which volume it belongs to.
pub(super) const CACHE_FILE: &str = "cache.json";

/// Version of that file.
const CACHE_FORMAT: u32 = 1;

/// Where a probe works, on the drive.
const SCRATCH: &str = ".ferryfs/probe";

/// How many places are remembered at which the volume was.
const FORMER: usize = 8;

/// What a cache remembers of its volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct CacheFacts {
    format: u32,
    /// The volume's id.
    pub(super) volume: Uuid,
    /// The volume's nonce, of the enrollment that this cache knows.
    pub(super) nonce: [u8; 16],
    /// The nonce that the marker is about to get, or has got already: it was lost and is written again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    renewed: Option<[u8; 16]>,
    /// This cache's own id, which its batch records carry.
    pub(super) origin: Uuid,
    /// Where the volume was attached last.
    pub(super) backend: PathBuf,
    /// Where it was before that, the latest last: an unmarked directory there is no new volume either.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) former: Vec<PathBuf>,
    /// Which file system it is on; unknown in caches of older versions until they are attached.
    #[serde(default)]
    pub(super) file_system: FsIdentity,
    /// What the volume's file system can do.
    pub(super) capabilities: Capabilities,
}

/// The volume's marker, if the directory has one.
///
/// # Errors
/// If it cannot be read or understood.
pub(super) fn peek(backend: &dyn Backend) -> Result<Option<Marker>, DaemonError> {
    let bytes = crate::flush::read_small(backend, &layout::marker_path(), marker::MAX_BYTES)
        .map_err(DaemonError::from)?;
    let Some(bytes) = bytes else { return Ok(None) };
    marker::decode(&bytes).map(Some).map_err(|error| {
        DaemonError::failed(error.to_string()).hint(
            "the marker is .ferryfs/volume.json on the drive; nothing was changed. If it is beyond repair, delete it there, and take the \
             drive up again: ferryfs mount --re-enroll (or ferryfs attach --re-enroll)",
        )
    })
}

/// Makes the directory a volume: our own directory, and last the marker. Of two machines that do so at once one makes the
/// marker, which is what both go by. Says whether it was this one.
///
/// # Errors
/// If the backend cannot be written.
pub(super) fn enroll(backend: &dyn Backend, now: Timestamp) -> Result<(Marker, bool), DaemonError> {
    let marker = Marker::new(Uuid::new_v4(), *Uuid::new_v4().as_bytes(), now);
    write_marker(backend, &marker)?;
    let found = peek(backend)?.unwrap_or_else(|| marker.clone());
    let is_ours = found == marker;
    Ok((found, is_ours))
}

/// Writes `marker`, after everything that it vouches for. One that is there already stays.
///
/// # Errors
/// If the backend cannot be written.
pub(super) fn write_marker(backend: &dyn Backend, marker: &Marker) -> Result<(), DaemonError> {
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
    write().map_err(|error| DaemonError::from(FlushError::from(error)))
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
        .map_err(|source| BackendError::new("write", path, source))
}

/// Where caches are by default: `$XDG_DATA_HOME/ferryfs`, else `~/.local/share/ferryfs`. Not under a cache directory, which
/// people wipe: what is in it may exist nowhere else.
pub(super) fn default_caches() -> Result<PathBuf, DaemonError> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .map(|data| data.join("ferryfs"))
        .ok_or_else(|| {
            DaemonError::failed(
                "neither XDG_DATA_HOME nor HOME is set, so there is no place for the cache",
            )
            .hint("say where it is to be: --cache DIR")
        })
}

/// Makes the cache directory, for its owner only.
///
/// # Errors
/// If it cannot be made.
pub(super) fn make_cache_dir(dir: &Path) -> Result<(), DaemonError> {
    private::make_dir(dir).map_err(|refused| match refused {
        private::PrivacyError::Io { source, .. } => DaemonError::failed(format!(
            "cannot make the cache directory {}: {source}",
            dir.escaped()
        ))
        .hint("choose another place with --cache DIR"),
        refused => DaemonError::failed(refused.to_string()).hint(refused.hint()),
    })
}

/// Checks that the cache is this user's alone, before anything in it is opened. One that is not there passes.
///
/// # Errors
/// If somebody else could have put something there.
pub(super) fn check_private(dir: &Path) -> Result<(), DaemonError> {
    private::check(dir)
        .map_err(|refused| DaemonError::failed(refused.to_string()).hint(refused.hint()))
}

/// As root, checks that no other user can make the path of `dir` lead elsewhere.
///
/// # Errors
/// If one can.
pub(super) fn check_way(dir: &Path) -> Result<(), DaemonError> {
    private::check_way(dir)
        .map_err(|refused| DaemonError::failed(refused.to_string()).hint(refused.hint()))
}

impl CacheFacts {
    /// The facts of a new cache, `origin`, for the volume `marker` at `path`.
    ///
    /// # Errors
    /// If the backend cannot be probed.
    pub(super) fn new(
        backend: &dyn Backend,
        path: &Path,
        marker: &Marker,
        origin: Uuid,
    ) -> Result<CacheFacts, DaemonError> {
        let capabilities = probe::probe(backend, &RelPath::fixed(SCRATCH))
            .map_err(|error| DaemonError::from(FlushError::from(error)))?;
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

    /// What the cache in `dir` remembers; `None` if it is new.
    ///
    /// # Errors
    /// If the file is there but cannot be read.
    pub(super) fn read(dir: &Path) -> Result<Option<CacheFacts>, DaemonError> {
        let path = dir.join(CACHE_FILE);
        if fs::symlink_metadata(&path).is_ok() {
            check_private(dir)?;
        }
        let bytes = match private::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(DaemonError::failed(format!(
                    "cannot read {}: {error}",
                    path.escaped()
                )));
            }
        };
        let facts: CacheFacts = serde_json::from_slice(&bytes).map_err(|error| {
            DaemonError::failed(format!("{} cannot be understood: {error}", path.escaped()))
                .hint("the cache may hold data that is nowhere else: do not delete it; restore this file, or use a newer ferryfs")
        })?;
        if facts.format > CACHE_FORMAT {
            return Err(DaemonError::failed(format!(
                "the cache {} was made by a newer ferryfs",
                dir.escaped()
            ))
            .hint("use that one"));
        }
        Ok(Some(facts))
    }

    /// Writes the file, durably.
    ///
    /// # Errors
    /// If the SSD fails.
    pub(super) fn write(&self, dir: &Path) -> Result<(), DaemonError> {
        let path = dir.join(CACHE_FILE);
        let temporary = dir.join(format!("{CACHE_FILE}.tmp"));
        let write = || -> io::Result<()> {
            let mut file = private::make_new(&temporary)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(dir)?.sync_all()
        };
        write().map_err(|error| {
            DaemonError::failed(format!("cannot write {}: {error}", path.escaped()))
        })
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
    ) -> Result<(), DaemonError> {
        match marker {
            Some(marker) if marker.id == self.volume && self.is_enrollment(marker.nonce) => Ok(()),
            Some(marker) => Err(DaemonError::failed(format!(
                "the cache {} belongs to volume {}, but the drive is volume {}",
                dir.escaped(),
                self.volume,
                marker.id
            ))
            .hint("give this drive a cache of its own with --cache, or leave --cache out")),
            None if self.was_at(backend) => Err(self.absent(backend)),
            None => Err(DaemonError::failed(format!(
                "the cache {} belongs to volume {}, but {} is no volume of ferryfs yet",
                dir.escaped(),
                self.volume,
                backend.escaped()
            ))
            .hint("give this drive a cache of its own with --cache, or leave --cache out")),
        }
    }

    /// Finds out what an older version has not looked for. Says whether there is news, which is then to be written.
    ///
    /// What is known of names stays: the index has been made by it. A failure leaves all as it was, until the next time.
    pub(super) fn probe_anew(&mut self, backend: &dyn Backend) -> bool {
        if self.capabilities.probed >= probe::VERSION {
            return false;
        }
        match probe::probe(backend, &RelPath::fixed(SCRATCH)) {
            Ok(found) => {
                self.capabilities = self.capabilities.clone().with_attributes_of(found);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "what the drive can hold could not be found out; it is tried again at the next mount");
                false
            }
        }
    }

    /// Whether the volume has been attached at `path`, by this spelling or the one without links.
    pub(super) fn was_at(&self, path: &Path) -> bool {
        self.was_spelled(path) || fs::canonicalize(path).is_ok_and(|path| self.was_spelled(&path))
    }

    /// Whether the volume has been attached at `path` by this very spelling, which nothing but the
    /// cache is asked for.
    pub(super) fn was_spelled(&self, path: &Path) -> bool {
        self.backend == path || self.former.iter().any(|former| former == path)
    }

    /// Whether `nonce` is that of the enrollment which this cache knows.
    pub(super) fn is_enrollment(&self, nonce: [u8; 16]) -> bool {
        nonce == self.nonce || self.renewed == Some(nonce)
    }

    /// Notes that the marker is to be written anew with this nonce. To be written before that is done.
    pub(super) fn renew_enrollment(&mut self, nonce: [u8; 16]) {
        self.renewed = Some(nonce);
    }

    /// Whether it is not settled which of two nonces the marker has.
    pub(super) fn is_renewing(&self) -> bool {
        self.renewed.is_some()
    }

    /// Takes `nonce`, which was found on the drive, for the one that counts. Says whether that is news, which is then to be
    /// written once the index knows that the catalog is to be written as a whole.
    pub(super) fn settle_enrollment(&mut self, nonce: [u8; 16]) -> bool {
        let is_news = self.renewed == Some(nonce);
        if is_news {
            self.nonce = nonce;
            self.renewed = None;
        }
        is_news
    }

    /// Notes where the volume is and on which file system. Says whether that is news, which is then to be written.
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
    pub(super) fn absent(&self, path: &Path) -> DaemonError {
        DaemonError {
            code: Exit::BackendAbsent,
            message: format!(
                "volume {} is not at {}: the directory has no .ferryfs/volume.json",
                self.volume,
                path.escaped()
            ),
            hint: Some(
                "mount the drive there first; what was written to it waits in the cache. If another drive is there that is to become a new volume: --enroll, with a cache of its own"
                    .into(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::memory::{MemoryBackend, MemoryOptions};

    /// As the first version wrote it.
    const OLD: &str = r#"{"format":1,"volume":"6f1f8f5e-3c1e-4b5e-9a53-0c7b1a2d3e4f","nonce":[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0],
        "origin":"6f1f8f5e-3c1e-4b5e-9a53-0c7b1a2d3e50","backend":"/media/x","capabilities":{"forbidden":[],"case_insensitive":true,
        "utf8_only":false,"no_trailing_dot":false,"no_trailing_space":false,"max_utf16":null,"symlinks":false,"hard_links":false,
        "permissions":false,"time_granularity_ns":1}}"#;

    #[test]
    fn a_cache_of_an_older_version_is_read_and_its_drive_probed_once_for_what_that_did_not_know() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(CACHE_FILE), OLD).unwrap();
        let mut facts = CacheFacts::read(dir.path()).unwrap().unwrap();
        assert!(!facts.capabilities.owners && facts.capabilities.probed == 0);
        let drive = MemoryBackend::new(MemoryOptions::linux_like());
        assert!(!facts.probe_anew(&drive), "there is no place to probe in");
        drive.make_dir(&layout::dir()).unwrap();
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
}
