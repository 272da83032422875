//! Large files of which little has changed: only the changed blocks are staged, as a patch, and
//! written into the file on the drive after the commit ([`crate::apply::patch`]).
//!
//! A file is patched only if nothing speaks against it. In doubt it is written whole:
//! - its blocks on the drive are known ([`crate::cache::BlockLists`]), of the very content that the
//!   index has there. The blocks that would be written over are read from the drive and compared:
//!   others may have changed them without changing size or time;
//! - less than half of it differs, and it has not become smaller (freed clusters could be given
//!   away before a sync);
//! - its name stays where it is. Neither the mount nor the drive has a further name of it, and no
//!   program reads the old version under another inode;
//! - the file on the drive can be opened for writing, and its present mode shows its bytes to
//!   nobody who may not read them afterwards.
//!
//! The list of the new content is written when it is staged. It is found by that content only, so
//! it says nothing before the index notes that the drive has it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::apply::patch::may_be_patched;
use crate::apply::staging::{BUFFER, EMPTY, Source};
use crate::cache::{BlockList, BlockLists, Cutter, block_size};
use crate::core::{Capabilities, ContentHash, Metadata, RelPath, Timestamp};
use crate::drive::{Backend, BackendError, CLOSE, ReadFile, WRITE, WriteFile};
use crate::error::{FlushError, Result};
use crate::flush::FlusherParts;
use crate::flush::diff::Gathered;
use crate::flush::expectations::Before;
use crate::format::patch::{Block, FRAME_BYTES, Header};
use crate::format::steps::{ClearStep, FileContent, PatchFile, PlaceStep, PlainKind, SlotNo};
use crate::index::{Inode, PlacedEntry};
use crate::plan::planner::{Plan, StageSource};

/// Smaller files are written whole: a patch costs a few calls more than a file.
const SMALLEST: u64 = 8 << 20;

/// Permission bits of others, and those that give a program its owner's rights.
const OTHERS: u32 = 0o077;
const SET_IDS: u32 = 0o6000;

/// Which files are patched, and what is known of their blocks.
#[derive(Clone, Debug)]
pub struct Patching {
    lists: BlockLists,
    is_on: bool,
    smallest: u64,
    block: Option<u32>,
}

impl Patching {
    /// Patches files if `is_on`; the hashes of their blocks are kept in the directory `dir` on the
    /// SSD.
    pub fn new(dir: std::path::PathBuf, is_on: bool) -> Patching {
        Patching {
            lists: BlockLists::new(dir),
            is_on,
            smallest: SMALLEST,
            block: None,
        }
    }

    /// For tests: patches files of at least `smallest` bytes, in blocks of `block` bytes.
    #[doc(hidden)]
    pub fn sized(self, smallest: u64, block: u32) -> Patching {
        Patching {
            smallest,
            block: Some(block),
            ..self
        }
    }

    /// Forgets the blocks of a content, so that what replaces it is written whole.
    pub(super) fn forget(&self, content: Option<ContentHash>) {
        if let Some(content) = content {
            self.lists.forget(content);
        }
    }

    /// Returns whether the blocks of a staged file of `size` bytes are to be kept.
    fn keeps(&self, source: &StageSource, size: u64) -> bool {
        self.is_on && size >= self.smallest && matches!(source, StageSource::Object { .. })
    }

    fn block(&self, size: u64) -> u32 {
        self.block.unwrap_or_else(|| block_size(size))
    }

    /// Returns `file`, which gets the content of `source`, with a tap on it if its blocks are to be
    /// kept.
    pub(super) fn tap(
        &self,
        file: Box<dyn WriteFile>,
        source: &StageSource,
        size: Option<u64>,
    ) -> (Box<dyn WriteFile>, Option<Tap>) {
        match size {
            Some(size) if self.keeps(source, size) => {
                let block = self.block(size);
                let hashes = Arc::new(Mutex::new(Hashes::new(block)));
                let tap = Tap {
                    hashes: Arc::clone(&hashes),
                    block,
                };
                let inner = file;
                (Box::new(Tapped { inner, hashes }), Some(tap))
            }
            _ => (file, None),
        }
    }

    /// Keeps the hashes of the blocks of `content`, which has just been staged.
    pub(super) fn keep(&self, tap: Option<Tap>, content: &FileContent) {
        let Some(Tap { hashes, block }) = tap else {
            return;
        };
        let hashes = std::mem::replace(&mut *hashes.lock(), Hashes::new(block));
        self.lists.write(&BlockList {
            block,
            size: content.size,
            content: content.hash,
            hashes: hashes.end(),
        });
    }
}

/// The blocks of a file as it is written.
struct Hashes {
    cutter: Cutter,
    hashes: Vec<ContentHash>,
}

impl Hashes {
    fn new(block: u32) -> Hashes {
        Hashes {
            cutter: Cutter::new(block),
            hashes: Vec::new(),
        }
    }

    fn feed(&mut self, bytes: &[u8]) {
        let hashes = &mut self.hashes;
        let fed: std::result::Result<(), std::convert::Infallible> =
            self.cutter.feed(bytes, |block| {
                hashes.push(hash_of(block));
                Ok(())
            });
        let Ok(()) = fed;
    }

    fn end(mut self) -> Vec<ContentHash> {
        let hashes = &mut self.hashes;
        let fed: std::result::Result<(), std::convert::Infallible> = self.cutter.end(|block| {
            hashes.push(hash_of(block));
            Ok(())
        });
        let Ok(()) = fed;
        self.hashes
    }
}

fn hash_of(bytes: &[u8]) -> ContentHash {
    ContentHash(*blake3::hash(bytes).as_bytes())
}

/// Hashes what goes to a file.
pub(super) struct Tap {
    hashes: Arc<Mutex<Hashes>>,
    block: u32,
}

struct Tapped {
    inner: Box<dyn WriteFile>,
    hashes: Arc<Mutex<Hashes>>,
}

impl WriteFile for Tapped {
    fn append(&mut self, data: &[u8]) -> std::io::Result<()> {
        self.inner.append(data)?;
        self.hashes.lock().feed(data);
        Ok(())
    }

    fn finish(self: Box<Self>, modified: Timestamp) -> std::io::Result<()> {
        self.inner.finish(modified)
    }
}

/// The file on the drive that a batch may patch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Base {
    /// Its size in bytes.
    pub(super) size: u64,
    content: ContentHash,
}

/// The files that a batch may patch, by the slots of their new contents.
pub(super) type Bases = BTreeMap<SlotNo, Base>;

/// Returns the files that `plan` may patch. Touches nothing on the drive.
///
/// # Errors
/// If the index fails.
pub(super) fn bases(
    parts: &FlusherParts,
    backend: &dyn Backend,
    plan: &Plan,
    gathered: &Gathered,
    capabilities: &Capabilities,
) -> Result<Bases> {
    let mut bases = Bases::new();
    if !parts.patching.is_on {
        return Ok(bases);
    }
    let cleared: HashSet<&RelPath> = plan.steps.clear.iter().map(ClearStep::path).collect();
    let before = Before::new(gathered);
    for step in &plan.steps.place {
        let PlaceStep::Install { slot, to, content } = step else {
            continue;
        };
        let Some((entry, inode)) = candidate(parts, gathered, &before, (content, to))? else {
            continue;
        };
        let Some(hash) = entry.hash else { continue };
        let xattrs = gathered.xattrs.get(&inode.ino);
        let has_xattrs = xattrs.is_some_and(|xattrs| !xattrs.is_empty());
        if stays(to, &cleared) && is_open_to(backend, to, (entry, inode), has_xattrs, capabilities)
        {
            let base = Base {
                size: entry.size,
                content: hash,
            };
            bases.insert(*slot, base);
        }
    }
    Ok(bases)
}

/// Returns what the drive has at `to`, and the inode whose content goes there, if its blocks are
/// known and no other file is concerned.
fn candidate<'a>(
    parts: &FlusherParts,
    gathered: &'a Gathered,
    before: &Before<'a>,
    (source, to): (&StageSource, &RelPath),
) -> Result<Option<(&'a PlacedEntry, &'a Inode)>> {
    let StageSource::Object { ino, object, .. } = source else {
        return Ok(None);
    };
    let (Some(entry), Some(inode), Some(size)) = (
        before.file_at(to),
        gathered.inodes.get(ino),
        gathered.sizes.get(ino),
    ) else {
        return Ok(None);
    };
    let patching = &parts.patching;
    let is_large = entry.size >= patching.smallest && *size >= entry.size && *object != EMPTY;
    let is_plain = entry.kind == PlainKind::File && inode.nlink == 1;
    let is_known = entry.hash.is_some_and(|hash| patching.lists.has(hash));
    if !is_large || !is_plain || !is_known {
        return Ok(None);
    }
    // A program may have the replaced file open, and goes on reading it as it was.
    let is_alone = entry.ino == *ino || parts.index.lock().inode(entry.ino)?.is_none();
    Ok(is_alone.then_some((entry, inode)))
}

/// Returns whether the batch takes neither the file at `to` away nor a directory above it.
fn stays(to: &RelPath, cleared: &HashSet<&RelPath>) -> bool {
    let mut at = to.clone();
    loop {
        if cleared.contains(&at) {
            return false;
        }
        match at.split_last() {
            Some((dir, _)) if !dir.is_root() => at = dir,
            _ => return true,
        }
    }
}

/// Returns whether the file at `to` can be written in place, and its attributes may stay as they
/// are until the batch sets those of a new file.
fn is_open_to(
    backend: &dyn Backend,
    to: &RelPath,
    (entry, inode): (&PlacedEntry, &Inode),
    has_xattrs: bool,
    capabilities: &Capabilities,
) -> bool {
    let looked = backend.metadata(to).and_then(|found| {
        let is_it = may_be_patched(&found) && found.size == entry.size;
        if !is_it || !keeps_attributes(&found, inode, capabilities) {
            return Ok(false);
        }
        // A new file has none, so that a batch does not set an empty list.
        let has_stale =
            !has_xattrs && !capabilities.xattrs.is_empty() && !backend.xattrs(to)?.is_empty();
        if has_stale {
            return Ok(false);
        }
        // Opening tells what no mode tells: whether it is in use, immutable, or read-only there.
        backend.modify(to).map(|_| true)
    });
    // Whether the drive is there shows when something is staged.
    looked.unwrap_or_else(|error| {
        tracing::debug!(%error, "written whole");
        false
    })
}

/// Returns whether the file on the drive has the owner that it is to have, and shows its bytes to
/// nobody who may not read them afterwards.
fn keeps_attributes(found: &Metadata, inode: &Inode, capabilities: &Capabilities) -> bool {
    let shows_more = capabilities.permissions && found.permissions & OTHERS & !inode.mode != 0;
    let has_set_ids = (found.permissions | inode.mode) & SET_IDS != 0;
    let is_anothers = capabilities.owners && (found.uid, found.gid) != (inode.uid, inode.gid);
    !shows_more && !has_set_ids && !is_anothers
}

/// Stages the difference of one file.
pub(super) struct PatchStager<'a> {
    pub(super) backend: &'a dyn Backend,
    pub(super) patching: &'a Patching,
    /// The path of the file on the drive.
    pub(super) target: &'a RelPath,
    /// The path of the patch.
    pub(super) patch: &'a RelPath,
    /// The size that the new content has by the index.
    pub(super) size: u64,
    pub(super) modified: Timestamp,
}

/// A patch that is being written.
struct Writing<'a> {
    old: &'a BlockList,
    /// The file on the drive.
    there: Box<dyn ReadFile>,
    to: Box<dyn WriteFile>,
    path: &'a RelPath,
    /// The hash of the patch, and its length.
    hasher: blake3::Hasher,
    written: u64,
    /// The hashes of the new blocks.
    hashes: Vec<ContentHash>,
    offset: u64,
    changed: u64,
    most: u64,
    /// The file is better written whole.
    is_given_up: bool,
    buffer: Vec<u8>,
}

impl PatchStager<'_> {
    /// Reads `from`, and stages what differs from `base`. Returns `None`, without a patch, if the
    /// file is better written whole. `done` is asked at each step whether to go on.
    pub(super) fn stage(
        &self,
        from: &Source<'_>,
        base: &Base,
        done: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Option<(FileContent, PatchFile)>> {
        let Some(old) = self.patching.lists.read(base.content, base.size) else {
            return Ok(None);
        };
        let Ok(there) = self.backend.open(self.target) else {
            return Ok(None);
        };
        let mut writing = Writing {
            old: &old,
            there,
            to: self.backend.create(self.patch)?,
            path: self.patch,
            hasher: blake3::Hasher::new(),
            written: 0,
            hashes: Vec::new(),
            offset: 0,
            changed: 0,
            most: self.size / 2,
            is_given_up: false,
            buffer: vec![0; usize::try_from(old.block).unwrap_or(BUFFER)],
        };
        let header = Header {
            block: old.block,
            old_size: old.size,
            new_size: self.size,
        };
        writing.put(&header.encode())?;
        let mut cutter = Cutter::new(old.block);
        let mut read = from.copy_ahead(self.patch, &mut |bytes| {
            done()?;
            cutter.feed(bytes, |block| writing.block(block))
        });
        if read.is_ok()
            && let Err(error) = cutter.end(|block| writing.block(block))
        {
            read = Err(error);
        }
        if writing.is_given_up {
            drop(writing);
            self.backend.remove_file(self.patch)?;
            return Ok(None);
        }
        let (size, hash) = read?;
        if size != self.size {
            // Writing it whole says what is wrong with it.
            drop(writing);
            self.backend.remove_file(self.patch)?;
            return Ok(None);
        }
        let content = FileContent {
            size,
            hash,
            modified: self.modified,
        };
        let (patch, hashes) = writing.finish(self.modified)?;
        self.patching.lists.write(&BlockList {
            block: old.block,
            size,
            content: hash,
            hashes,
        });
        Ok(Some((content, patch)))
    }
}

impl Writing<'_> {
    /// Takes the next block of the new content.
    fn block(&mut self, bytes: &[u8]) -> Result<()> {
        let (offset, hash) = (self.offset, hash_of(bytes));
        let before = self.old.hashes.get(self.hashes.len());
        self.offset += bytes.len() as u64;
        self.hashes.push(hash);
        if before == Some(&hash) {
            return Ok(());
        }
        self.changed += bytes.len() as u64;
        if self.changed > self.most || !before.is_none_or(|old| self.is_there(offset, old)) {
            self.is_given_up = true;
            let source = std::io::Error::from(std::io::ErrorKind::Interrupted);
            return Err(BackendError::new(WRITE, self.path, source).into());
        }
        let block = Block {
            offset,
            length: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            hash,
        };
        self.put(&block.encode())?;
        self.put(bytes)
    }

    /// Returns whether the drive has the block that it should have at `offset`.
    fn is_there(&mut self, offset: u64, hash: &ContentHash) -> bool {
        let length = (self.old.size - offset).min(self.buffer.len() as u64);
        // It is not more than the buffer.
        let bytes = &mut self.buffer[..length as usize];
        let is_there = matches!(self.there.read_at(bytes, offset), Ok(got) if got == bytes.len())
            && hash_of(bytes) == *hash;
        if !is_there {
            tracing::warn!(patch = %self.path, "a block on the drive is not what it was; the file \
                is written whole");
        }
        is_there
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.to
            .append(bytes)
            .map_err(|source| FlushError::from(BackendError::new(WRITE, self.path, source)))?;
        self.hasher.update(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn finish(self, modified: Timestamp) -> Result<(PatchFile, Vec<ContentHash>)> {
        self.to
            .finish(modified)
            .map_err(|source| BackendError::new(CLOSE, self.path, source))?;
        let patch = PatchFile {
            size: self.written,
            hash: ContentHash(*self.hasher.finalize().as_bytes()),
        };
        Ok((patch, self.hashes))
    }
}

/// Returns the most bytes of a patch for a file of `size` bytes.
pub(super) fn most_bytes(size: u64) -> u64 {
    let half = size / 2;
    half.saturating_add(half / u64::from(crate::format::patch::MIN_BLOCK) * FRAME_BYTES as u64)
}
