//! Staged patches: how they are read, and written into the file on the drive.
//!
//! A patch is written in place, so between its first write and the next sync the file is neither
//! the old version nor the new one. Three steps, each durable before the next begins:
//! 1. a note in the staging directory ([`note_begun`]);
//! 2. what the file grows by ([`Patch::grow`]). If there is no space for it, the file gets its old
//!    size again, and none of the old bytes has been touched ([`Failure::Unchanged`]);
//! 3. the blocks that are written over ([`Patch::write`]). Right before each of them is written, it
//!    is compared with the marks of its old sectors: what another program has written there a
//!    moment ago is left alone ([`Failure::Foreign`]).
//!
//! The notes go when all of it is durable and compared ([`forget_begun`]), before the record goes.
//!
//! What a crash leaves:
//! - *no note*: the file is as it was, or has the new content. It must still be what the batch
//!   expects, as any file that a batch replaces;
//! - *a note*: each sector of the patched blocks is old or new. Only if none is new may something
//!   be missing of what the file grows by. If this is so, and the rest of the file with the blocks
//!   of the patch has the hash of the new content ([`Patch::completes`]), the patch is written
//!   again, as often as needed. Otherwise others have written into the file: it is kept as theirs,
//!   and ours is written whole from the SSD.

use crate::apply::refused::is_local;
use crate::core::{BatchNo, ContentHash, FileKind, Metadata, RelPath, Timestamp};
use crate::drive::{
    Backend, BackendError, CLOSE, ModifyFile, ReadFile, WRITE, create_with, exists, hash_file,
    is_absent,
};
use crate::error::Result;
use crate::format::layout;
use crate::format::patch::{
    Block, FRAME_BYTES, HEADER_BYTES, Header, MARK_BYTES, Order, SECTOR, mark_of,
};
use crate::format::steps::{AttributeStep, FileContent, PatchFile, PlaceStep, SlotNo, Steps};

/// Bytes of unchanged parts that are read at a time.
const BUFFER: usize = 1 << 20;

/// A staged patch that is whole, and open.
pub(crate) struct Patch {
    file: Box<dyn ReadFile>,
    path: RelPath,
    header: Header,
    /// The blocks, with the places of their marks in the patch.
    blocks: Vec<(Block, u64)>,
}

/// Why a patch was not written.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The bytes of the file are as they were before this step.
    Unchanged(BackendError),
    /// Some of the blocks may have been written.
    Torn(BackendError),
    /// Another program has written into the file. Some of the blocks may have been written before
    /// that was seen.
    Foreign,
}

/// What is known of the file before it is compared with a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begun {
    /// No block of it has been written.
    No,
    /// An earlier attempt may have written any of them.
    Maybe,
}

/// How a patch is opened: as any file, or past every cache.
pub(crate) type Open = dyn Fn(&dyn Backend, &RelPath) -> crate::drive::Result<Box<dyn ReadFile>>;

/// Opens a file as any other.
pub(crate) fn usual(
    backend: &dyn Backend,
    path: &RelPath,
) -> crate::drive::Result<Box<dyn ReadFile>> {
    backend.open(path)
}

/// Opens a file so that its reads come from the medium.
pub(crate) fn uncached(
    backend: &dyn Backend,
    path: &RelPath,
) -> crate::drive::Result<Box<dyn ReadFile>> {
    backend.open_uncached(path)
}

impl Patch {
    /// Opens the patch at `path`; `None` if there is none, or if it is not the `wanted` one, whole.
    ///
    /// # Errors
    /// If the backend fails.
    pub(crate) fn open(
        backend: &dyn Backend,
        open: &Open,
        path: &RelPath,
        wanted: &PatchFile,
    ) -> Result<Option<Patch>> {
        match backend.metadata(path) {
            Ok(meta) if meta.kind == FileKind::Regular && meta.size == wanted.size => {}
            Err(error) if !is_absent(&error) => return Err(error.into()),
            _ => return Ok(None),
        }
        let file = open(backend, path)?;
        if hash_file(&*file, path)? != wanted.hash {
            return Ok(None);
        }
        let read = |buffer: &mut [u8], at| read_all(&*file, path, buffer, at);
        let mut bytes = [0; HEADER_BYTES];
        if !read(&mut bytes, 0)? {
            return Ok(None);
        }
        let Ok(header) = Header::decode(&bytes) else {
            return Ok(None);
        };
        let (mut blocks, mut order) = (Vec::new(), Order::new(header));
        let mut at = HEADER_BYTES as u64;
        while at < wanted.size {
            let mut bytes = [0; FRAME_BYTES];
            if !read(&mut bytes, at)? {
                return Ok(None);
            }
            let Ok(block) = Block::decode(&bytes) else {
                return Ok(None);
            };
            if order.next(&block).is_err() {
                return Ok(None);
            }
            at += FRAME_BYTES as u64;
            blocks.push((block, at));
            at += header.mark_bytes(&block) as u64 + u64::from(block.length);
        }
        if at != wanted.size || order.end().is_err() {
            return Ok(None);
        }
        Ok(Some(Patch {
            file,
            path: path.clone(),
            header,
            blocks,
        }))
    }

    /// Returns whether the patch makes `content` of the file at `target`, and others have written
    /// nothing into it: the file with the blocks of the patch has the bytes of `content`, and each
    /// block is what it was before, or what an interrupted attempt leaves of it. False also if
    /// there is no such file.
    ///
    /// # Errors
    /// If the backend fails.
    pub(crate) fn completes(
        &self,
        (backend, open): (&dyn Backend, &Open),
        target: &RelPath,
        content: &FileContent,
        begun: Begun,
    ) -> Result<bool> {
        let header = &self.header;
        let sizes = header.old_size..=header.new_size;
        if header.new_size != content.size {
            return Ok(false);
        }
        let size = match backend.metadata(target) {
            Ok(meta) if meta.kind == FileKind::Regular && sizes.contains(&meta.size) => meta.size,
            Err(error) if !is_absent(&error) => return Err(error.into()),
            _ => return Ok(false),
        };
        let file = open(backend, target)?;
        let mut hasher = blake3::Hasher::new();
        let mut buffers = Buffers::new(header);
        let mut unchanged = vec![0; BUFFER];
        let mut at = 0;
        let mut seen = Seen::default();
        for (block, place) in &self.blocks {
            let before = (at, block.offset);
            if !hash_range(&*file, target, before, &mut unchanged, &mut hasher)?
                || !self.read_block(block, *place, &mut buffers)?
                || !self.look_at(&*file, target, block, &mut buffers, &mut seen)?
            {
                return Ok(false);
            }
            hasher.update(&buffers.new);
            at = block.offset + u64::from(block.length);
        }
        let rest = (at, content.size);
        let is_there = hash_range(&*file, target, rest, &mut unchanged, &mut hasher)?;
        let is_it = is_there && ContentHash(*hasher.finalize().as_bytes()) == content.hash;
        Ok(is_it && self.may_be_left(size, seen, begun))
    }

    /// Returns whether an attempt that came as far as `begun` says leaves a file of `size` bytes in
    /// which this was `seen`.
    fn may_be_left(&self, size: u64, seen: Seen, begun: Begun) -> bool {
        let header = &self.header;
        match begun {
            Begun::No => !seen.has_new && size == header.old_size,
            // What the file grows by is durable before any old byte is written over.
            Begun::Maybe if seen.has_new => size == header.new_size && !seen.lacks_growth,
            // It grows by whole blocks, of which the file system may keep the first sectors.
            Begun::Maybe => {
                let is_size = size == header.old_size || size == header.new_size;
                is_size || size.is_multiple_of(SECTOR as u64)
            }
        }
    }

    /// Compares a block in `file`, which is open at `target`, with what it may be. Returns false if
    /// a sector of it, as far as the file had it before, is neither old nor new.
    fn look_at(
        &self,
        file: &dyn ReadFile,
        target: &RelPath,
        block: &Block,
        buffers: &mut Buffers,
        seen: &mut Seen,
    ) -> crate::drive::Result<bool> {
        let Buffers { marks, new, there } = buffers;
        there.resize(block.length as usize, 0);
        let got = (file.read_at(there, block.offset))
            .map_err(|source| BackendError::new("read", target, source))?;
        let old = self.header.old_part(block);
        if got < old {
            return Ok(false);
        }
        seen.lacks_growth |= there[old..got] != new[old..];
        let sectors = there[..old].chunks(SECTOR).zip(new[..old].chunks(SECTOR));
        for ((is, will_be), mark) in sectors.zip(marks.chunks(MARK_BYTES)) {
            if mark_of(is) == *mark {
                continue;
            }
            if is != will_be {
                return Ok(false);
            }
            seen.has_new = true;
        }
        Ok(true)
    }

    /// Returns whether the file at `target` has nothing of the patch.
    ///
    /// # Errors
    /// If the backend fails.
    pub(crate) fn is_unwritten(&self, backend: &dyn Backend, target: &RelPath) -> Result<bool> {
        let has_old_size = backend.metadata(target)?.size == self.header.old_size;
        Ok(has_old_size && self.is_untouched(backend, target)?)
    }

    /// Returns whether no sector of the old bytes has been written over. What follows them may be
    /// anything.
    ///
    /// # Errors
    /// If the backend fails.
    pub(crate) fn is_untouched(
        &self,
        backend: &dyn Backend,
        target: &RelPath,
    ) -> crate::drive::Result<bool> {
        let file = backend.open(target)?;
        let mut buffers = Buffers::new(&self.header);
        let mut seen = Seen::default();
        for (block, place) in &self.blocks {
            if !self.read_block(block, *place, &mut buffers)?
                || !self.look_at(&*file, target, block, &mut buffers, &mut seen)?
                || seen.has_new
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns whether all blocks are in the file at `target`.
    ///
    /// # Errors
    /// If the backend fails.
    pub(crate) fn is_written(
        &self,
        (backend, open): (&dyn Backend, &Open),
        target: &RelPath,
    ) -> Result<bool> {
        if backend.metadata(target)?.size != self.header.new_size {
            return Ok(false);
        }
        let file = open(backend, target)?;
        let mut buffer = Vec::new();
        for (block, _) in &self.blocks {
            buffer.resize(block.length as usize, 0);
            let is_whole = read_all(&*file, target, &mut buffer, block.offset)?;
            if !is_whole || blake3::hash(&buffer) != block.hash.0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns whether the file becomes longer.
    pub(crate) fn grows(&self) -> bool {
        self.header.new_size > self.header.old_size
    }

    /// Writes what the file at `target`, which had the time `before`, grows by. Its time stays so.
    /// Must be durable before [`Patch::write`].
    ///
    /// # Errors
    /// [`Failure`].
    pub(crate) fn grow(
        &self,
        backend: &dyn Backend,
        target: &RelPath,
        before: Timestamp,
    ) -> std::result::Result<(), Failure> {
        if !self.grows() {
            return Ok(());
        }
        let mut file = backend.modify(target).map_err(Failure::Unchanged)?;
        let Err(error) = self.write_growth(backend, (&mut *file, target)) else {
            return file
                .finish(before)
                .map_err(|source| Failure::Torn(BackendError::new(CLOSE, target, source)));
        };
        // An earlier attempt may have come further: then the file keeps its size.
        let is_untouched = matches!(self.is_untouched(backend, target), Ok(true));
        let old = self.header.old_size;
        let undone = is_untouched
            && file
                .set_size(old)
                .and_then(|()| file.finish(before))
                .is_ok();
        // Nothing may get the clusters that it has given back before they are durably free.
        Err(match undone && backend.sync().is_ok() {
            true => Failure::Unchanged(error),
            false => Failure::Torn(error),
        })
    }

    /// Takes back, durably, what [`Patch::grow`] has done to the file at `target`, none of whose
    /// old bytes has been written over. It has the time `before` again.
    ///
    /// # Errors
    /// If the backend refuses, or fails.
    pub(crate) fn shrink(
        &self,
        backend: &dyn Backend,
        target: &RelPath,
        before: Timestamp,
    ) -> crate::drive::Result<()> {
        let mut file = backend.modify(target)?;
        file.set_size(self.header.old_size)
            .and_then(|()| file.finish(before))
            .map_err(|source| BackendError::new(CLOSE, target, source))?;
        backend.sync()
    }

    /// Writes all blocks over the old bytes of the file at `target`, and sets its time. Durable
    /// after the next sync.
    ///
    /// # Errors
    /// [`Failure`].
    pub(crate) fn write(
        &self,
        backend: &dyn Backend,
        target: &RelPath,
        modified: Timestamp,
    ) -> std::result::Result<(), Failure> {
        let mut file = backend.modify(target).map_err(Failure::Unchanged)?;
        let there = backend.open(target).map_err(Failure::Unchanged)?;
        let mut buffers = Buffers::new(&self.header);
        // Until something has been written.
        let mut failure: fn(BackendError) -> Failure = Failure::Unchanged;
        for (block, place) in &self.blocks {
            let old = self.header.old_part(block);
            if old == 0 {
                continue;
            }
            self.read_whole_block(block, *place, &mut buffers)
                .map_err(failure)?;
            let looked = self.look_at(&*there, target, block, &mut buffers, &mut Seen::default());
            if !looked.map_err(failure)? {
                return Err(Failure::Foreign);
            }
            failure = Failure::Torn;
            write_relieved(
                backend,
                (&mut *file, target),
                &buffers.new[..old],
                block.offset,
            )
            .map_err(Failure::Torn)?;
        }
        file.finish(modified)
            .map_err(|source| Failure::Torn(BackendError::new(CLOSE, target, source)))
    }

    fn write_growth(
        &self,
        backend: &dyn Backend,
        (file, target): (&mut dyn ModifyFile, &RelPath),
    ) -> crate::drive::Result<()> {
        let mut buffers = Buffers::new(&self.header);
        for (block, place) in &self.blocks {
            let old = self.header.old_part(block);
            if old == block.length as usize {
                continue;
            }
            self.read_whole_block(block, *place, &mut buffers)?;
            let at = block.offset + old as u64;
            write_relieved(backend, (&mut *file, target), &buffers.new[old..], at)?;
        }
        Ok(())
    }

    fn read_whole_block(
        &self,
        block: &Block,
        place: u64,
        buffers: &mut Buffers,
    ) -> crate::drive::Result<()> {
        match self.read_block(block, place, buffers)? {
            true => Ok(()),
            false => {
                let damaged = std::io::Error::from_raw_os_error(libc::EIO);
                Err(BackendError::new("read", &self.path, damaged))
            }
        }
    }

    /// Reads the marks and the new bytes of a block. Returns false if the bytes are not those that
    /// it should have.
    fn read_block(
        &self,
        block: &Block,
        place: u64,
        buffers: &mut Buffers,
    ) -> crate::drive::Result<bool> {
        let Buffers { marks, new, .. } = buffers;
        marks.resize(self.header.mark_bytes(block), 0);
        new.resize(block.length as usize, 0);
        let is_whole = read_all(&*self.file, &self.path, marks, place)?
            && read_all(&*self.file, &self.path, new, place + marks.len() as u64)?;
        Ok(is_whole && blake3::hash(new) == block.hash.0)
    }
}

/// One block at a time.
struct Buffers {
    /// The marks of its old sectors.
    marks: Vec<u8>,
    /// Its new bytes.
    new: Vec<u8>,
    /// Its bytes in the file.
    there: Vec<u8>,
}

impl Buffers {
    fn new(header: &Header) -> Buffers {
        let block = header.block as usize;
        Buffers {
            marks: Vec::with_capacity(block / SECTOR * MARK_BYTES),
            new: Vec::with_capacity(block),
            there: Vec::with_capacity(block),
        }
    }
}

/// What the blocks of a file have shown so far.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// An old sector has been written over.
    has_new: bool,
    /// Something is missing of what the file grows by.
    lacks_growth: bool,
}

/// Writes `data`; if the backend is full, again after it has given up held space.
fn write_relieved(
    backend: &dyn Backend,
    (file, target): (&mut dyn ModifyFile, &RelPath),
    data: &[u8],
    offset: u64,
) -> crate::drive::Result<()> {
    loop {
        let written = file.write_at(data, offset);
        let Err(source) = written else {
            return Ok(());
        };
        let error = BackendError::new(WRITE, target, source);
        if !error.is_full() || !backend.relieve()? {
            return Err(error);
        }
    }
}

/// Fills `buffer` from `at` on. Returns false if the file ends before.
fn read_all(
    file: &dyn ReadFile,
    path: &RelPath,
    buffer: &mut [u8],
    at: u64,
) -> crate::drive::Result<bool> {
    let got = file
        .read_at(buffer, at)
        .map_err(|source| BackendError::new("read", path, source))?;
    Ok(got == buffer.len())
}

/// Hashes a part of a file. Returns false if the file ends before the part.
fn hash_range(
    file: &dyn ReadFile,
    path: &RelPath,
    (from, to): (u64, u64),
    buffer: &mut [u8],
    hasher: &mut blake3::Hasher,
) -> crate::drive::Result<bool> {
    let mut at = from;
    while at < to {
        let now = usize::try_from(to - at)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if !read_all(file, path, &mut buffer[..now], at)? {
            return Ok(false);
        }
        hasher.update(&buffer[..now]);
        at += now as u64;
    }
    Ok(true)
}

/// Notes that the patch in `slot` may be written from now on. The caller syncs before it is.
///
/// # Errors
/// If the backend refuses, or fails.
pub(crate) fn note_begun(
    backend: &dyn Backend,
    batch: BatchNo,
    slot: SlotNo,
) -> crate::drive::Result<()> {
    let note = layout::begun_path(batch, slot);
    match exists(backend, &note)? {
        true => Ok(()),
        false => create_with(backend, &note, b""),
    }
}

/// Removes the notes of the patches of a batch, all of which are durable in their files, and syncs.
/// From then on what others write into these files is no longer taken for a part of a patch. It
/// comes before the record is removed: a note without a record says that the drive has lost the
/// record.
///
/// # Errors
/// If the backend fails. A note that it refuses to remove stays: what was written is durable all
/// the same, and the batch must not wait for that.
pub(crate) fn forget_begun(
    backend: &dyn Backend,
    batch: BatchNo,
    steps: &Steps<FileContent>,
) -> crate::drive::Result<()> {
    let mut is_any = false;
    for step in &steps.place {
        let PlaceStep::Patch { slot, .. } = step else {
            continue;
        };
        match backend.remove_file(&layout::begun_path(batch, *slot)) {
            Err(error) if is_absent(&error) => {}
            Err(error) if is_local(backend, batch, &error) => {
                tracing::warn!(%error, "the note of a patch stays");
            }
            removed => {
                removed?;
                is_any = true;
            }
        }
    }
    match is_any {
        true => backend.sync(),
        false => Ok(()),
    }
}

/// Permission bits of others, and those that give a program its owner's rights.
const OTHERS: u32 = 0o077;
const SET_IDS: u32 = 0o6000;

/// Who a file belongs to, and who may read it. `None` where the backend does not keep it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) mode: Option<u32>,
    pub(crate) owner: Option<u32>,
    pub(crate) group: Option<u32>,
}

impl Access {
    /// Returns what a batch with these steps gives to the file at `path`.
    pub(crate) fn given(attributes: &[AttributeStep], path: &RelPath) -> Access {
        let step = attributes.iter().find(|step| step.path == *path);
        Access {
            mode: step.and_then(|step| step.mode),
            owner: step.and_then(|step| step.owner),
            group: step.and_then(|step| step.group),
        }
    }

    /// Returns whether the file that was `found` may get the new bytes before it gets these
    /// attributes: it has the owner that it is to have, and shows them to nobody who may not read
    /// them afterwards.
    pub(crate) fn may_be_given_later(&self, found: &Metadata) -> bool {
        let shows_more = (self.mode).is_some_and(|mode| found.permissions & OTHERS & !mode != 0);
        let has_set_ids = (self.mode).is_some_and(|mode| (found.permissions | mode) & SET_IDS != 0);
        let is_anothers = self.owner.is_some_and(|uid| uid != found.uid)
            || self.group.is_some_and(|gid| gid != found.gid);
        !shows_more && !has_set_ids && !is_anothers
    }
}

/// Returns whether `found` is a file that could be patched: a regular one with one name.
pub(crate) fn may_be_patched(found: &Metadata) -> bool {
    found.kind == FileKind::Regular && found.nlink <= 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drive::faulty::FaultyBackend;
    use crate::drive::memory::{MemNode, MemoryBackend, MemoryOptions};
    use crate::drive::mounted::MountedDir;

    const BLOCK: usize = 4096;
    const TIME: Timestamp = Timestamp(7_000_000_000);
    const BEFORE: Timestamp = Timestamp(5_000_000_000);

    fn hash(bytes: &[u8]) -> ContentHash {
        ContentHash(*blake3::hash(bytes).as_bytes())
    }

    fn content(bytes: &[u8]) -> FileContent {
        FileContent {
            size: bytes.len() as u64,
            hash: hash(bytes),
            modified: TIME,
        }
    }

    /// Returns a patch from `old` to `new`.
    fn between(old: &[u8], new: &[u8]) -> Vec<u8> {
        let header = Header {
            block: BLOCK as u32,
            old_size: old.len() as u64,
            new_size: new.len() as u64,
        };
        let mut out = header.encode().to_vec();
        for (number, bytes) in new.chunks(BLOCK).enumerate() {
            let at = number * BLOCK;
            if old.get(at..(at + BLOCK).min(old.len())) != Some(bytes) {
                let block = Block {
                    offset: at as u64,
                    length: bytes.len() as u32,
                    hash: hash(bytes),
                };
                out.extend_from_slice(&block.encode());
                let before = old.get(at..).unwrap_or_default();
                let before = &before[..before.len().min(bytes.len())];
                out.extend(before.chunks(SECTOR).flat_map(mark_of));
                out.extend_from_slice(bytes);
            }
        }
        out
    }

    fn put(backend: &dyn Backend, path: &'static str, bytes: &[u8]) -> RelPath {
        let path = RelPath::fixed(path);
        let _ = backend.remove_file(&path);
        create_with(backend, &path, bytes).unwrap();
        backend.set_modified(&path, BEFORE).unwrap();
        path
    }

    fn opened(backend: &dyn Backend, patch: &[u8]) -> Option<Patch> {
        let path = put(backend, "patch", patch);
        let wanted = PatchFile {
            size: patch.len() as u64,
            hash: hash(patch),
        };
        Patch::open(backend, &usual, &path, &wanted).unwrap()
    }

    /// Writes all of a patch.
    fn write(
        patch: &Patch,
        backend: &dyn Backend,
        target: &RelPath,
    ) -> std::result::Result<(), Failure> {
        patch.grow(backend, target, BEFORE)?;
        let written = patch.write(backend, target, TIME);
        written.map_err(|failure| match failure {
            Failure::Unchanged(error) if patch.grows() => {
                match patch.shrink(backend, target, BEFORE) {
                    Ok(()) => Failure::Unchanged(error),
                    Err(_) => Failure::Torn(error),
                }
            }
            failure => failure,
        })
    }

    fn completes(
        patch: &Patch,
        backend: &dyn Backend,
        target: &RelPath,
        new: &[u8],
        begun: Begun,
    ) -> bool {
        let by = (backend, &usual as &Open);
        patch.completes(by, target, &content(new), begun).unwrap()
    }

    fn file(backend: &MemoryBackend, path: &RelPath) -> (Vec<u8>, Timestamp) {
        match backend.tree().remove(path) {
            Some(MemNode::File { bytes, modified }) => (bytes.to_vec(), modified),
            other => panic!("{other:?}"),
        }
    }

    /// Pairs of an old content and a new one that is not shorter.
    fn pairs() -> Vec<(Vec<u8>, Vec<u8>)> {
        let old: Vec<u8> = (0..3 * BLOCK + 100).map(|n| (n / 16) as u8).collect();
        let mut inside = old.clone();
        inside[BLOCK + 1] ^= 1;
        let grown = [&inside[..], &[9; 2 * BLOCK]].concat();
        vec![
            (old.clone(), old.clone()),
            (old.clone(), inside),
            (old, grown),
            (vec![1; BLOCK], vec![1; BLOCK + 1]),
            (vec![], vec![3; 10]),
        ]
    }

    #[test]
    fn a_patch_makes_the_new_content_of_the_old_one_however_often_it_is_written() {
        for (old, new) in pairs() {
            let backend = MemoryBackend::new(MemoryOptions::exfat_like());
            let target = put(&backend, "f", &old);
            let patch = opened(&backend, &between(&old, &new)).expect("a patch");
            assert!(completes(&patch, &backend, &target, &new, Begun::No));
            for _ in 0..2 {
                assert!(completes(&patch, &backend, &target, &new, Begun::Maybe));
                write(&patch, &backend, &target).unwrap();
                assert_eq!(file(&backend, &target), (new.clone(), TIME));
                assert!(patch.is_written((&backend, &usual), &target).unwrap());
            }
            let is_same = old == new;
            assert_eq!(
                completes(&patch, &backend, &target, &new, Begun::No),
                is_same
            );
        }
    }

    /// Torn in every way that a crash may leave: any of the sectors, and, before any of them is
    /// written, any size in between.
    #[test]
    fn a_torn_file_is_completed_and_one_that_others_have_written_into_is_not() {
        for (old, new) in pairs() {
            let backend = MemoryBackend::new(MemoryOptions::exfat_like());
            let patch = opened(&backend, &between(&old, &new)).expect("a patch");
            let is_it = |torn: &[u8], begun| {
                let target = put(&backend, "f", torn);
                completes(&patch, &backend, &target, &new, begun)
            };
            for garbage in [0, 0xaa] {
                for end in (old.len()..=new.len()).step_by(SECTOR).chain([new.len()]) {
                    let mut grown = old.clone();
                    grown.resize(end, garbage);
                    let is_size = [old.len(), new.len()].contains(&end) || end % SECTOR == 0;
                    assert_eq!(is_it(&grown, Begun::Maybe), is_size, "{end}");
                    assert_eq!(is_it(&grown, Begun::No), end == old.len(), "{end}");
                }
            }
            for step in 1..4 {
                let mut torn = new.clone();
                for at in (0..old.len()).step_by(step * SECTOR) {
                    let end = (at + SECTOR).min(old.len());
                    torn[at..end].copy_from_slice(&old[at..end]);
                }
                assert!(is_it(&torn, Begun::Maybe));
            }
            // As if somebody had written into it, in a part that is patched and in any other.
            for at in (0..old.len()).step_by(300) {
                for torn in [&old, &new] {
                    let mut theirs = torn.clone();
                    theirs[at] ^= 0x55;
                    assert!(!is_it(&theirs, Begun::Maybe), "{at}");
                    assert!(!is_it(&theirs, Begun::No), "{at}");
                }
            }
            if let Some(less) = old.len().checked_sub(1) {
                assert!(!is_it(&old[..less], Begun::Maybe));
            }
            let more = [&new[..], b"x"].concat();
            assert!(!is_it(&more, Begun::Maybe));
            let nothing = RelPath::fixed("nothing");
            assert!(!completes(&patch, &backend, &nothing, &new, Begun::Maybe));
        }
    }

    /// The old bytes are written over only when all that the file grows by is durable.
    #[test]
    fn a_file_with_new_blocks_that_lacks_what_it_grows_by_was_written_by_others() {
        let (old, new) = pairs().remove(2);
        let backend = MemoryBackend::new(MemoryOptions::exfat_like());
        let patch = opened(&backend, &between(&old, &new)).expect("a patch");
        let last = new.len() - 1;
        for torn in [&new[..new.len() - SECTOR], &[&new[..last], b"x"].concat()] {
            let target = put(&backend, "f", torn);
            assert!(!completes(&patch, &backend, &target, &new, Begun::Maybe));
        }
    }

    #[test]
    fn what_others_write_before_a_block_is_written_over_is_left_alone() {
        let (old, new) = pairs().remove(2);
        let backend = MemoryBackend::new(MemoryOptions::exfat_like());
        let patch = opened(&backend, &between(&old, &new)).expect("a patch");
        let mut theirs = old;
        theirs[BLOCK + 1000] ^= 1;
        let target = put(&backend, "f", &theirs);
        let failed = write(&patch, &backend, &target).unwrap_err();
        assert!(matches!(failed, Failure::Foreign), "{failed:?}");
        let there = file(&backend, &target).0;
        assert_eq!(there[..theirs.len()], theirs);
    }

    /// An earlier attempt has come further: then the old version is nowhere.
    #[test]
    fn a_file_that_is_partly_new_keeps_its_size_when_there_is_no_space_left() {
        let (old, new) = pairs().remove(2);
        let memory = MemoryBackend::new(MemoryOptions::exfat_like());
        let faulty = FaultyBackend::new(memory.clone());
        let patch = opened(&faulty, &between(&old, &new)).expect("a patch");
        let target = put(&memory, "f", &new);
        faulty.refuse("write", target.clone(), libc::ENOSPC);
        let failed = patch.grow(&faulty, &target, BEFORE).unwrap_err();
        assert!(matches!(failed, Failure::Torn(error) if error.is_full()));
        assert_eq!(file(&memory, &target), (new, BEFORE));
    }

    #[test]
    fn what_is_no_whole_patch_is_not_opened() {
        let (old, new) = pairs().remove(2);
        let whole = between(&old, &new);
        let backend = MemoryBackend::new(MemoryOptions::exfat_like());
        let wanted = PatchFile {
            size: whole.len() as u64,
            hash: hash(&whole),
        };
        for at in (0..whole.len()).step_by(97) {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            let path = put(&backend, "patch", &damaged);
            assert!(
                Patch::open(&backend, &usual, &path, &wanted)
                    .unwrap()
                    .is_none()
            );
        }
        let nothing = RelPath::fixed("nothing");
        assert!(
            Patch::open(&backend, &usual, &nothing, &wanted)
                .unwrap()
                .is_none()
        );
        // Under a right hash, as a stranger could make it.
        assert!(opened(&backend, b"").is_none());
        for length in (0..whole.len()).step_by(61) {
            assert!(opened(&backend, &whole[..length]).is_none(), "{length}");
        }
        assert!(opened(&backend, &[&whole[..], b"x"].concat()).is_none());
        let mut outside = whole.clone();
        outside[HEADER_BYTES..HEADER_BYTES + 8].copy_from_slice(&(1_u64 << 62).to_le_bytes());
        assert!(opened(&backend, &outside).is_none());
    }

    /// The bytes of a block are compared once more when they are written.
    #[test]
    fn a_block_that_is_not_what_its_patch_says_is_not_written() {
        let (old, new) = pairs().remove(1);
        let mut wrong = between(&old, &new);
        let last = wrong.len() - 1;
        wrong[last] ^= 1;
        let backend = MemoryBackend::new(MemoryOptions::exfat_like());
        let target = put(&backend, "f", &old);
        let patch = opened(&backend, &wrong).expect("its own hash is right");
        assert!(!completes(&patch, &backend, &target, &new, Begun::Maybe));
        let failed = write(&patch, &backend, &target).unwrap_err();
        assert!(matches!(failed, Failure::Unchanged(_)));
        assert_eq!(file(&backend, &target).0, old);
    }

    #[test]
    fn on_a_full_drive_the_file_stays_as_it_was() {
        let (old, new) = pairs().remove(2);
        for capacity in 0..3 {
            let patch = between(&old, &new);
            let backend = MemoryBackend::new(MemoryOptions {
                capacity: Some((old.len() + patch.len() + capacity * BLOCK / 2) as u64),
                ..MemoryOptions::exfat_like()
            });
            let target = put(&backend, "f", &old);
            let patch = opened(&backend, &patch).expect("a patch");
            let failed = write(&patch, &backend, &target).unwrap_err();
            assert!(matches!(failed, Failure::Unchanged(error) if error.is_full()));
            assert_eq!(file(&backend, &target), (old.clone(), BEFORE));
        }
    }

    #[test]
    fn a_write_that_fails_is_told_from_one_that_has_changed_nothing() {
        let (old, new) = pairs().remove(2);
        let memory = MemoryBackend::new(MemoryOptions::exfat_like());
        let faulty = FaultyBackend::new(memory.clone());
        for n in 1.. {
            let target = put(&memory, "f", &old);
            let patch = opened(&faulty, &between(&old, &new)).expect("a patch");
            let at = faulty.calls() + n;
            faulty.fail_at(at, libc::EIO);
            let written = write(&patch, &faulty, &target);
            let over = faulty.calls() < at;
            faulty.heal();
            match written {
                Ok(()) => assert_eq!(file(&memory, &target), (new.clone(), TIME)),
                Err(Failure::Unchanged(_)) => {
                    assert_eq!(file(&memory, &target), (old.clone(), BEFORE));
                }
                Err(Failure::Torn(_)) => {
                    assert!(completes(&patch, &memory, &target, &new, Begun::Maybe));
                }
                Err(Failure::Foreign) => panic!("nobody else has written"),
            }
            if over {
                break;
            }
        }
    }

    #[test]
    fn a_file_that_shows_its_bytes_to_others_or_is_anothers_is_not_patched() {
        let backend = MemoryBackend::new(MemoryOptions::linux_like());
        let found = backend.metadata(&put(&backend, "f", b"old")).unwrap();
        let path = RelPath::fixed("f");
        let given = |mode, owner| {
            let mut step = AttributeStep::new(path.clone());
            (step.mode, step.owner) = (mode, owner);
            Access::given(&[step], &path).may_be_given_later(&found)
        };
        let same = found.permissions;
        assert!(given(None, None));
        assert!(given(Some(same), Some(found.uid)));
        assert!(
            given(Some(same | 0o077), None),
            "they may read it afterwards"
        );
        assert!(!given(Some(same), Some(found.uid + 1)));
        assert!(!given(Some(same | 0o4000), None));
        let shown = Metadata {
            permissions: 0o604,
            ..found.clone()
        };
        let step = AttributeStep {
            mode: Some(0o600),
            ..AttributeStep::new(path.clone())
        };
        assert!(!Access::given(&[step], &path).may_be_given_later(&shown));
    }

    #[test]
    fn nothing_is_written_through_links_or_to_what_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let secret = outside.path().join("secret");
        let (old, new) = pairs().remove(1);
        std::fs::write(&secret, &old).unwrap();
        std::fs::create_dir(dir.path().join("dir")).unwrap();
        std::os::unix::fs::symlink(&secret, dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("way")).unwrap();
        std::fs::hard_link(&secret, dir.path().join("hard")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let backend = MountedDir::open(dir.path()).unwrap();
        let patch = opened(&backend, &between(&old, &new)).expect("a patch");
        for path in ["link", "way/secret", "hard", "dir", "pipe", "nothing"] {
            let target = RelPath::fixed(path);
            let failed = write(&patch, &backend, &target).unwrap_err();
            assert!(matches!(failed, Failure::Unchanged(_)), "{path}");
        }
        assert_eq!(std::fs::read(&secret).unwrap(), old);
        let plain = put(&backend, "plain", &old);
        write(&patch, &backend, &plain).unwrap();
        assert_eq!(std::fs::read(dir.path().join("plain")).unwrap(), new);
    }
}
