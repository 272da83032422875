//! Staging: contents go to the batch's own directory on the backend, hashed on the way.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use super::gather::EMPTY;
use super::report::{FlushError, Result};
use crate::backend::{Backend, BackendError, ReadFile};
use crate::base::{BatchNo, ContentHash, Ino, Name, RelPath, Timestamp};
use crate::cache::Store;
use crate::control::protocol::{Phase, Progress};
use crate::rules::layout;
use crate::rules::plan::StageSource;
use crate::rules::steps::{FileContent, PlaceStep, SlotNo, Steps};
use crate::sys;

/// Bytes read and written at a time.
const BUFFER: usize = 1 << 20;

/// A batch whose contents are on the backend, synced, under no final name.
pub(super) struct Staged {
    pub(super) steps: Steps<FileContent>,
    pub(super) sources: BTreeMap<SlotNo, StageSource>,
    pub(super) files: u64,
    pub(super) bytes: u64,
}

/// Where bytes to be staged come from, opened.
enum Source {
    Empty,
    Object(File),
    Backend(Box<dyn ReadFile>),
}

impl Source {
    fn open(backend: &dyn Backend, store: &Store, source: &StageSource) -> Result<Source> {
        Ok(match source {
            StageSource::Object { object, .. } if *object == EMPTY => Source::Empty,
            StageSource::Object { object, .. } => {
                let file = store.open_object(*object)?;
                // Only advice; reading works without it.
                let _ = sys::file::advise(&file, 0, 0, sys::file::Advice::Sequential);
                Source::Object(file)
            }
            StageSource::Backend { path, .. } => Source::Backend(backend.open(path)?),
        })
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64, path: &RelPath) -> Result<usize> {
        match self {
            Source::Empty => Ok(0),
            Source::Object(file) => {
                file.read_at(buffer, offset)
                    .map_err(|source| FlushError::Cache {
                        operation: format!("read the object of {path}"),
                        source,
                    })
            }
            Source::Backend(file) => file
                .read_at(buffer, offset)
                .map_err(|source| BackendError::new("read", path, source).into()),
        }
    }
}

/// Copies one file into its slot and tells what it was. If it is not of the `expected` size it is not what the index vouches for,
/// and must not take the place of anything. `done` is told the bytes of each step.
pub(super) fn stage_file(
    backend: &dyn Backend,
    store: &Store,
    source: &StageSource,
    slot: &RelPath,
    expected: Option<u64>,
    buffer: &mut [u8],
    mut done: impl FnMut(u64) -> Result<()>,
) -> Result<FileContent> {
    let from = Source::open(backend, store, source)?;
    let mut to = backend.create(slot)?;
    let mut hasher = blake3::Hasher::new();
    let mut size = 0;
    loop {
        let got = from.read_at(buffer, size, slot)?;
        if got == 0 {
            break;
        }
        hasher.update(&buffer[..got]);
        to.append(&buffer[..got])
            .map_err(|source| BackendError::new("write", slot, source))?;
        size += got as u64;
        done(got as u64)?;
    }
    if expected.is_some_and(|expected| expected != size) {
        return Err(FlushError::Cache {
            operation: format!(
                "read the object of {slot}: {size} bytes where the index has {}",
                expected.unwrap_or(0)
            ),
            source: std::io::Error::from(std::io::ErrorKind::UnexpectedEof),
        });
    }
    let modified = modified(source);
    to.finish(modified)
        .map_err(|source| BackendError::new("close", slot, source))?;
    Ok(FileContent {
        size,
        hash: ContentHash(*hasher.finalize().as_bytes()),
        modified,
    })
}

fn modified(source: &StageSource) -> Timestamp {
    match source {
        StageSource::Object { modified, .. } | StageSource::Backend { modified, .. } => *modified,
    }
}

/// Stages every file of the plan, in the order of its final path, and syncs once.
pub(super) struct Stager<'a> {
    pub(super) backend: &'a dyn Backend,
    pub(super) store: &'a Store,
    pub(super) batch: BatchNo,
    pub(super) sizes: &'a BTreeMap<Ino, u64>,
    pub(super) deadline: Option<Instant>,
    pub(super) progress: &'a dyn Fn(Progress),
}

impl Stager<'_> {
    pub(super) fn stage(&self, plan: Steps<StageSource>) -> Result<Staged> {
        let mut staged = Staged {
            steps: Steps {
                clear: plan.clear,
                place: Vec::with_capacity(plan.place.len()),
            },
            sources: BTreeMap::new(),
            files: 0,
            bytes: 0,
        };
        self.backend.make_dir(&layout::staging_dir(self.batch))?;
        let mut progress = self.totals(&plan.place);
        let mut buffer = vec![0; BUFFER];
        for step in plan.place {
            let step = match step {
                PlaceStep::Install { slot, to, content } => {
                    let measured =
                        self.stage_one(&content, slot, &to, &mut buffer, &mut progress)?;
                    staged.files += 1;
                    staged.bytes += measured.size;
                    staged.sources.insert(slot, content);
                    PlaceStep::Install {
                        slot,
                        to,
                        content: measured,
                    }
                }
                PlaceStep::MakeDir { path } => PlaceStep::MakeDir { path },
                PlaceStep::Attach { slot, to, kind } => PlaceStep::Attach { slot, to, kind },
                PlaceStep::Touch { path, modified } => PlaceStep::Touch { path, modified },
            };
            staged.steps.place.push(step);
        }
        self.backend.sync()?;
        Ok(staged)
    }

    fn totals(&self, place: &[PlaceStep<StageSource>]) -> Progress {
        let mut progress = Progress {
            phase: Phase::Stage,
            files_done: 0,
            files_total: 0,
            bytes_done: 0,
            bytes_total: 0,
        };
        for step in place {
            if let PlaceStep::Install { content, .. } = step {
                progress.files_total += 1;
                progress.bytes_total += self.size_of(content);
            }
        }
        progress
    }

    fn expected_size(&self, source: &StageSource) -> Option<u64> {
        match source {
            StageSource::Object { ino, .. } | StageSource::Backend { ino, .. } => {
                self.sizes.get(ino).copied()
            }
        }
    }

    fn size_of(&self, source: &StageSource) -> u64 {
        self.expected_size(source).unwrap_or(0)
    }

    fn stage_one(
        &self,
        source: &StageSource,
        slot: SlotNo,
        to: &RelPath,
        buffer: &mut [u8],
        progress: &mut Progress,
    ) -> Result<FileContent> {
        let path = layout::slot_path(self.batch, slot);
        let expected = self.expected_size(source);
        let result = stage_file(
            self.backend,
            self.store,
            source,
            &path,
            expected,
            buffer,
            |bytes| {
                progress.bytes_done += bytes;
                (self.progress)(*progress);
                match self.deadline {
                    Some(deadline) if Instant::now() > deadline => Err(FlushError::TimedOut),
                    _ => Ok(()),
                }
            },
        );
        progress.files_done += 1;
        (self.progress)(*progress);
        result.map_err(|error| match error {
            FlushError::Backend(error) if error.is_full() => FlushError::Full {
                path: to.clone(),
                size: self.size_of(source),
                available: self.backend.space().map_or(0, |space| space.available),
                needed: progress.bytes_total,
            },
            other => other,
        })
    }
}

/// Removes a staging directory with what is staged in it; fine if it is not there. What was set aside from under somebody's name
/// is kept in `.ferryfs/lost+found`, whatever has brought it to this: directories, and all once clearing was over.
pub(super) fn discard(backend: &dyn Backend, dir: &RelPath) -> Result<()> {
    let entries = match backend.read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    // With the mark, clearing was over: what is in a slot then was moved there from under its name, unless the batch was finished.
    let cleared = entries
        .iter()
        .any(|entry| entry.name.as_bytes() == layout::BARRIER.as_bytes());
    for entry in entries {
        let path = dir.join(&entry.name);
        match entry.meta.kind {
            _ if cleared && layout::parse_slot_name(&entry.name).is_some() => {
                keep(backend, dir, &path, &entry.name)?;
            }
            crate::base::FileKind::Directory => keep(backend, dir, &path, &entry.name)?,
            _ => backend.remove_file(&path)?,
        }
    }
    Ok(backend.remove_dir(dir)?)
}

fn keep(backend: &dyn Backend, dir: &RelPath, path: &RelPath, slot: &Name) -> Result<()> {
    let lost_found = layout::lost_found();
    match backend.make_dir(&lost_found) {
        Err(error) if error.source.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(error.into());
        }
        _ => {}
    }
    let batch = dir
        .split_last()
        .map_or_else(String::new, |(_, name)| name.to_string());
    let name = Name::new(format!("{batch}-{slot}").as_bytes())
        .map_err(|_| FlushError::WrongDrive(format!("{path} has an impossible name")))?;
    tracing::error!(%path, "something was left in a staging directory; it is kept in .ferryfs/lost+found on the drive");
    Ok(backend.rename(path, &lost_found.join(&name))?)
}
