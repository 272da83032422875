//! The journal of a batch on the SSD: what the index may conclude once the batch is on the backend,
//! the steps, and the sources of the staged files. It is written and synced before the record on
//! the backend, so every record of this cache has a journal.
//!
//! A file `<batch>.journal`: 32 bytes BLAKE3 of the rest, the length of the first part (u64, little
//! endian), the first part (JSON), the second (the record, as on the backend). Written under
//! another name, synced, renamed, directory synced.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::apply::move_backup;
use crate::cache::private;
use crate::core::{BatchNo, ContentHash, ForeignText, Ino, Name, ObjectId, RelPath, Timestamp};
use crate::error::{FlushError, Result};
use crate::format::record;
use crate::format::record::BatchRecord;
use crate::format::steps::{PlaceStep, PlainKind, SlotNo};
use crate::index::{Confirmed, PlacedEntry};
use crate::plan::planner::{NameKey, StageSource, StepKeys};

/// Everything that recovery needs to know of a committed batch.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    pub(crate) record: BatchRecord,
    pub(crate) confirmed: Vec<Confirmed>,
    /// Inodes whose attributes on the backend are those of the cut once the batch is applied.
    pub(crate) attributes: Vec<Ino>,
    pub(crate) sources: BTreeMap<SlotNo, StageSource>,
    /// The name that each step is about. Nothing is concluded of those that the backend refuses.
    pub(crate) keys: StepKeys,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct Facts {
    files: u64,
    bytes: u64,
    confirmed: Vec<ConfirmedFact>,
    attributes: Vec<u64>,
    sources: Vec<SourceFact>,
    clear_keys: Vec<KeyFact>,
    place_keys: Vec<KeyFact>,
}

/// Directory, name, inode.
#[derive(Serialize, Deserialize)]
struct KeyFact(u64, Vec<u8>, u64);

impl KeyFact {
    fn all(keys: &[(NameKey, Ino)]) -> Vec<KeyFact> {
        let fact = |(key, ino): &(NameKey, Ino)| {
            KeyFact(key.parent.0, key.name.as_bytes().to_vec(), ino.0)
        };
        keys.iter().map(fact).collect()
    }

    fn restore(self) -> Option<(NameKey, Ino)> {
        let key = NameKey {
            parent: Ino(self.0),
            name: Name::new(&self.1).ok()?,
        };
        Some((key, Ino(self.2)))
    }
}

#[derive(Serialize, Deserialize)]
struct ConfirmedFact {
    parent: u64,
    name: Vec<u8>,
    placed: Option<PlacedFact>,
    settled: bool,
    inode_settled: bool,
}

#[derive(Serialize, Deserialize)]
struct PlacedFact {
    ino: u64,
    directory: bool,
    size: u64,
    mtime: i64,
    hash: Option<[u8; 32]>,
}

#[derive(Serialize, Deserialize)]
struct SourceFact {
    slot: u32,
    ino: u64,
    object: Option<u64>,
    path: Option<Vec<u8>>,
    modified: i64,
}

impl From<&Confirmed> for ConfirmedFact {
    fn from(c: &Confirmed) -> ConfirmedFact {
        ConfirmedFact {
            parent: c.key.parent.0,
            name: c.key.name.as_bytes().to_vec(),
            placed: c.placed.as_ref().map(|entry| PlacedFact {
                ino: entry.ino.0,
                directory: entry.kind == PlainKind::Directory,
                size: entry.size,
                mtime: entry.mtime.0,
                hash: entry.hash.map(|hash| hash.0),
            }),
            settled: c.settled,
            inode_settled: c.inode_settled,
        }
    }
}

impl ConfirmedFact {
    fn restore(self) -> Option<Confirmed> {
        Some(Confirmed {
            key: NameKey {
                parent: Ino(self.parent),
                name: Name::new(&self.name).ok()?,
            },
            placed: self.placed.map(|fact| PlacedEntry {
                ino: Ino(fact.ino),
                kind: if fact.directory {
                    PlainKind::Directory
                } else {
                    PlainKind::File
                },
                size: fact.size,
                mtime: Timestamp(fact.mtime),
                hash: fact.hash.map(ContentHash),
            }),
            settled: self.settled,
            inode_settled: self.inode_settled,
        })
    }
}

impl SourceFact {
    fn of(slot: SlotNo, source: &StageSource) -> SourceFact {
        match source {
            StageSource::Object {
                ino,
                object,
                modified,
            } => SourceFact {
                slot: slot.0,
                ino: ino.0,
                object: Some(object.0),
                path: None,
                modified: modified.0,
            },
            StageSource::Backend {
                ino,
                path,
                modified,
            } => SourceFact {
                slot: slot.0,
                ino: ino.0,
                object: None,
                path: Some(path.as_bytes().to_vec()),
                modified: modified.0,
            },
        }
    }

    fn restore(self) -> Option<(SlotNo, StageSource)> {
        let (ino, modified) = (Ino(self.ino), Timestamp(self.modified));
        let source = match (self.object, self.path) {
            (Some(object), None) => StageSource::Object {
                ino,
                object: ObjectId(object),
                modified,
            },
            (None, Some(path)) => StageSource::Backend {
                ino,
                path: RelPath::parse(&path).ok()?,
                modified,
            },
            _ => return None,
        };
        Some((SlotNo(self.slot), source))
    }
}

fn restore_keys(facts: Vec<KeyFact>) -> Option<Vec<(NameKey, Ino)>> {
    facts.into_iter().map(KeyFact::restore).collect()
}

fn path(dir: &Path, batch: BatchNo) -> PathBuf {
    dir.join(format!("{:016x}.journal", batch.0))
}

/// The batches that have a journal in `dir`, which need not exist.
///
/// # Errors
/// If the SSD fails.
pub(crate) fn batches_in(dir: &Path) -> Result<Vec<BatchNo>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed("list", dir))?,
    };
    let mut batches = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed("list", dir))?.file_name();
        let digits = name.to_str().and_then(|name| name.strip_suffix(".journal"));
        batches.extend(
            digits
                .and_then(|digits| u64::from_str_radix(digits, 16).ok())
                .map(BatchNo),
        );
    }
    Ok(batches)
}

/// Moves a damaged journal to the cache's lost+found, where `ferryfs rescue` looks for names. A
/// damaged journal is never removed.
fn keep_aside(dir: &Path, damaged: &Path) -> io::Result<PathBuf> {
    let lost_found = dir.with_file_name("lost+found");
    fs::create_dir_all(&lost_found)?;
    let name = damaged
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let free = (0u32..).map(|n| match n {
        0 => lost_found.join(format!("{name}.journal")),
        n => lost_found.join(format!("{name}-{n}.journal")),
    });
    let target = free
        .take(1000)
        .find(|path| !path.exists())
        .ok_or(io::ErrorKind::AlreadyExists)?;
    fs::rename(damaged, &target)?;
    Ok(target)
}

fn failed(operation: &str, path: &Path) -> impl FnOnce(io::Error) -> FlushError {
    let operation = format!("{operation} {}", path.escaped());
    move |source| FlushError::Cache { operation, source }
}

impl Journal {
    /// Writes and syncs the journal in `dir`.
    ///
    /// # Errors
    /// If the SSD fails; there is then no journal.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let facts = Facts {
            files: self.files,
            bytes: self.bytes,
            confirmed: self.confirmed.iter().map(ConfirmedFact::from).collect(),
            attributes: self.attributes.iter().map(|ino| ino.0).collect(),
            sources: self
                .sources
                .iter()
                .map(|(slot, source)| SourceFact::of(*slot, source))
                .collect(),
            clear_keys: KeyFact::all(&self.keys.clear),
            place_keys: KeyFact::all(&self.keys.place),
        };
        let target = path(dir, self.record.batch);
        let json =
            serde_json::to_vec(&facts).map_err(|error| failed("write", &target)(error.into()))?;
        let mut body = (json.len() as u64).to_le_bytes().to_vec();
        body.extend_from_slice(&json);
        body.extend_from_slice(&record::seal(&self.record)?);
        let temporary = target.with_extension("tmp");
        (|| {
            let mut file = private::make_new(&temporary)?;
            file.write_all(blake3::hash(&body).as_bytes())?;
            file.write_all(&body)?;
            file.sync_all()?;
            fs::rename(&temporary, &target)?;
            File::open(dir)?.sync_all()
        })()
        .inspect_err(|_| {
            // On a full SSD the part that was written would be in the way of the next journal.
            let _ = fs::remove_file(&temporary);
        })
        .map_err(failed("write", &target))
    }

    /// The journal of `batch` in `dir`; `None` if there is none, or it was never finished.
    ///
    /// # Errors
    /// If the SSD fails.
    pub(crate) fn read(dir: &Path, batch: BatchNo) -> Result<Option<Journal>> {
        let target = path(dir, batch);
        let bytes = match private::read(&target) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", &target)(error)),
        };
        let journal = Journal::parse(&bytes);
        if journal.is_none() {
            let kept = keep_aside(dir, &target).map_err(failed("keep", &target))?;
            tracing::error!(kept = %kept.escaped(), "the journal of a batch is damaged; it counts \
                as not written, and is kept");
        }
        Ok(journal)
    }

    fn parse(bytes: &[u8]) -> Option<Journal> {
        let (hash, body) = bytes.split_at_checked(32)?;
        if blake3::hash(body).as_bytes() != hash {
            return None;
        }
        Journal::parse_body(body)
    }

    fn parse_body(body: &[u8]) -> Option<Journal> {
        let (length, rest) = body.split_at_checked(8)?;
        let length = usize::try_from(u64::from_le_bytes(length.try_into().ok()?)).ok()?;
        let (json, record) = rest.split_at_checked(length)?;
        let facts: Facts = serde_json::from_slice(json).ok()?;
        Some(Journal {
            record: record::decode(record).ok()?,
            files: facts.files,
            bytes: facts.bytes,
            confirmed: facts
                .confirmed
                .into_iter()
                .map(ConfirmedFact::restore)
                .collect::<Option<_>>()?,
            attributes: facts.attributes.into_iter().map(Ino).collect(),
            sources: facts
                .sources
                .into_iter()
                .map(SourceFact::restore)
                .collect::<Option<_>>()?,
            keys: StepKeys {
                clear: restore_keys(facts.clear_keys)?,
                place: restore_keys(facts.place_keys)?,
            },
        })
    }

    /// Returns the paths of objects in the journal in `bytes`: where the batch puts their bytes.
    /// This serves to name files only, so a wrong checksum is ignored, and an unreadable journal
    /// has no paths.
    pub(crate) fn names_in(bytes: &[u8]) -> Vec<(ObjectId, RelPath)> {
        let Some(journal) = bytes.get(32..).and_then(Journal::parse_body) else {
            return Vec::new();
        };
        let steps = journal.record.steps.place.into_iter();
        steps
            .filter_map(|step| match step {
                PlaceStep::Install { slot, to, .. } | PlaceStep::Patch { slot, to, .. } => {
                    match journal.sources.get(&slot) {
                        Some(StageSource::Object { object, .. }) => Some((*object, to)),
                        _ => None,
                    }
                }
                _ => None,
            })
            .collect()
    }

    /// Removes the journal of `batch`, then the backup beside it; no error if there is none.
    ///
    /// # Errors
    /// If the SSD fails.
    pub(crate) fn remove(dir: &Path, batch: BatchNo) -> Result<()> {
        let target = path(dir, batch);
        match fs::remove_file(&target) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", &target)(error))
            }
            _ => move_backup::remove(dir, batch),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_journal_counts_as_not_written_and_is_kept() {
        let cache = tempfile::tempdir().unwrap();
        let dir = cache.path().join("batches");
        fs::create_dir(&dir).unwrap();
        for round in 0..2 {
            fs::write(path(&dir, BatchNo(7)), format!("damaged {round}")).unwrap();
            assert!(Journal::read(&dir, BatchNo(7)).unwrap().is_none());
            assert!(!path(&dir, BatchNo(7)).exists());
        }
        let mut kept: Vec<_> = fs::read_dir(cache.path().join("lost+found"))
            .unwrap()
            .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
            .collect();
        kept.sort();
        assert_eq!(kept, ["damaged 0", "damaged 1"]);
    }
}
