//! Large files of which little has changed: only the changed blocks are staged, as a patch, and
//! written into the file on the drive after the commit ([`crate::apply::patch`]). The hashes that
//! are kept are of large blocks; of one that has changed the old bytes are on the drive, so that
//! the patch needs only the parts of it that differ.
//!
//! A file is patched only if nothing speaks against it. In doubt it is written whole:
//! - its blocks on the drive are known ([`crate::cache::BlockLists`]), of the very content that the
//!   index has there. The blocks that would be written over are read from the drive and compared:
//!   others may have changed them without changing size or time;
//! - less than half of it differs, in no more blocks than a patch may have, and it has not become
//!   smaller (freed clusters could be given away before a sync);
//! - its name stays where it is. Neither the mount nor the drive has a further name of it, and no
//!   program reads the old version under another inode;
//! - the file on the drive can be opened for writing, and its present mode shows its bytes to
//!   nobody who may not read them afterwards.
//!
//! The list of the new content is written when it is staged. It is found by that content only, so
//! it says nothing before the index notes that the drive has it. A file that has outgrown its
//! blocks gets a list of larger ones with its next patch: the patch reads all of it in any case.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::apply::patch::{Access, may_be_patched};
use crate::apply::staging::{EMPTY, Source};
use crate::cache::{BlockList, BlockLists, Cutter, MOST_BLOCKS, block_size};
use crate::core::{Capabilities, ContentHash, RelPath, Timestamp};
use crate::drive::{Backend, BackendError, CLOSE, ReadFile, WRITE, WriteFile, WriteOut};
use crate::error::{FlushError, Result};
use crate::flush::FlusherParts;
use crate::flush::diff::Gathered;
use crate::flush::expectations::Before;
use crate::format::patch::{
    Block, FRAME_BYTES, Header, MARK_BYTES, MAX_BLOCK, MAX_BLOCKS, MIN_BLOCK, SECTOR, mark_of,
};
use crate::format::steps::{ClearStep, FileContent, PatchFile, PlaceStep, PlainKind, SlotNo};
use crate::index::{Inode, PlacedEntry};
use crate::plan::planner::{Plan, StageSource};

/// Smaller files are written whole: a patch costs a few calls more than a file.
const SMALLEST: u64 = 8 << 20;

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
        let blocks = size.div_ceil(u64::from(self.block(size)));
        self.is_on
            && size >= self.smallest
            && blocks <= MOST_BLOCKS
            && matches!(source, StageSource::Object { .. })
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

/// The blocks of a file as it is written. Beyond the most that a list may have they are not kept.
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
                if hashes.len() as u64 <= MOST_BLOCKS {
                    hashes.push(hash_of(block));
                }
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

    fn write_out(&mut self, how: WriteOut) -> std::io::Result<()> {
        self.inner.write_out(how)
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
        if !is_it || !access_of(inode, capabilities).may_be_given_later(&found) {
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

/// Returns who is to have access to the file of `inode`, as far as the drive keeps that. Right
/// before the file is patched the same is compared with what the batch sets.
fn access_of(inode: &Inode, capabilities: &Capabilities) -> Access {
    Access {
        mode: capabilities.permissions.then_some(inode.mode),
        owner: capabilities.owners.then_some(inode.uid),
        group: capabilities.owners.then_some(inode.gid),
    }
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
    /// Of larger blocks, if the file has outgrown the old ones.
    larger: Option<Hashes>,
    offset: u64,
    /// The blocks in the patch.
    count: u64,
    changed: u64,
    most: u64,
    /// The file is better written whole.
    is_given_up: bool,
    /// Bytes of a block of the patch: a part of one of the list.
    part: u32,
    /// A block as the drive has it.
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
        let wanted = self.patching.block(self.size);
        let larger = (wanted > old.block).then_some(wanted);
        let mut writing = Writing {
            old: &old,
            there,
            to: self.backend.create(self.patch)?,
            path: self.patch,
            hasher: blake3::Hasher::new(),
            written: 0,
            hashes: Vec::new(),
            larger: larger.map(Hashes::new),
            offset: 0,
            count: 0,
            changed: 0,
            most: self.size / 2,
            is_given_up: false,
            part: part_size(self.size).min(old.block),
            buffer: Vec::new(),
        };
        let header = Header {
            block: writing.part,
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
            block: wanted.max(old.block),
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
        let before = self
            .old
            .hashes
            .get((offset / u64::from(self.old.block)) as usize);
        self.offset += bytes.len() as u64;
        match &mut self.larger {
            Some(larger) => larger.feed(bytes),
            None => self.hashes.push(hash),
        }
        if before == Some(&hash) {
            return Ok(());
        }
        let is_known = match before {
            Some(old) => self.read_old(offset, old),
            None => {
                self.buffer.clear();
                true
            }
        };
        if !is_known {
            return Err(self.give_up());
        }
        let old = std::mem::take(&mut self.buffer);
        let part = self.part as usize;
        for (number, bytes) in bytes.chunks(part).enumerate() {
            let at = number * part;
            let old = &old[at.min(old.len())..(at + bytes.len()).min(old.len())];
            if old != bytes {
                self.part(offset + at as u64, old, bytes)?;
            }
        }
        self.buffer = old;
        Ok(())
    }

    /// Takes a part of the new content that differs from the `old` bytes there.
    fn part(&mut self, offset: u64, old: &[u8], bytes: &[u8]) -> Result<()> {
        self.changed += bytes.len() as u64;
        self.count += 1;
        if self.changed > self.most || self.count > MAX_BLOCKS {
            return Err(self.give_up());
        }
        let block = Block {
            offset,
            length: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            hash: hash_of(bytes),
        };
        self.put(&block.encode())?;
        let marks: Vec<u8> = old.chunks(SECTOR).flat_map(mark_of).collect();
        self.put(&marks)?;
        self.put(bytes)
    }

    fn give_up(&mut self) -> FlushError {
        self.is_given_up = true;
        let source = std::io::Error::from(std::io::ErrorKind::Interrupted);
        BackendError::new(WRITE, self.path, source).into()
    }

    /// Reads the block that the file has at `offset` into the buffer. Returns false if it is not
    /// the one that the drive should have there.
    fn read_old(&mut self, offset: u64, hash: &ContentHash) -> bool {
        let length = (self.old.size - offset).min(u64::from(self.old.block));
        // It is not more than a block.
        self.buffer.resize(length as usize, 0);
        let read = self.there.read_at(&mut self.buffer, offset);
        let is_there =
            matches!(read, Ok(got) if got == self.buffer.len()) && hash_of(&self.buffer) == *hash;
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

    /// Returns the patch, and the hashes of the blocks of the new content.
    fn finish(self, modified: Timestamp) -> Result<(PatchFile, Vec<ContentHash>)> {
        self.to
            .finish(modified)
            .map_err(|source| BackendError::new(CLOSE, self.path, source))?;
        let patch = PatchFile {
            size: self.written,
            hash: ContentHash(*self.hasher.finalize().as_bytes()),
        };
        let hashes = self.larger.map_or(self.hashes, Hashes::end);
        Ok((patch, hashes))
    }
}

/// Returns the bytes of a block of a patch for a file of `size` bytes: the smallest of which a
/// patch of half of the file has no more than it may have.
fn part_size(size: u64) -> u32 {
    let mut part = MIN_BLOCK;
    while part < MAX_BLOCK && (size / 2).div_ceil(u64::from(part)) > MAX_BLOCKS {
        part *= 2;
    }
    part
}

/// Returns the most bytes of a patch for a file of `size` bytes.
pub(super) fn most_bytes(size: u64) -> u64 {
    let half = size / 2;
    half.saturating_add(half / u64::from(MIN_BLOCK) * FRAME_BYTES as u64)
        .saturating_add(half / SECTOR as u64 * MARK_BYTES as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_patch_are_as_small_as_their_number_allows() {
        assert_eq!(part_size(0), 4096);
        assert_eq!(part_size(8 << 30), 4096);
        assert_eq!(part_size((8 << 30) + 8192), 8192);
        assert_eq!(part_size(50 << 30), 32 << 10);
        assert_eq!(part_size(u64::MAX), MAX_BLOCK);
    }
}
