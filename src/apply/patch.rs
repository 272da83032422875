//! Staged patches: how they are read, and written into the file on the drive.
//!
//! A patch is written in place, so between its first write and the next sync the file is neither
//! the old version nor the new one. Before the first write a note in the staging directory is
//! durable ([`note_begun`]). What a crash leaves:
//! - *no note*: the file is as it was. It must still be what the batch expects, as any file that a
//!   batch replaces;
//! - *a note*: any sector of the patched blocks may be old, new, or lost, the size anything from
//!   the old to the new one, the time anything. If the rest of the file with the blocks of the
//!   patch has the hash of the new content ([`Patch::completes`]), the patch is written again, as
//!   often as needed. Otherwise the file is another one, or damaged, and is replaced as a whole
//!   from the SSD;
//! - *all of it written, not confirmed*: the file has the new content, and nothing is left to do.
//!
//! What the file grows by is written first: if there is no space for it, the file gets its old size
//! again, and none of the old bytes has been touched ([`Failure::Unchanged`]).

use crate::core::{BatchNo, ContentHash, FileKind, Metadata, RelPath, Timestamp};
use crate::drive::{
    Backend, BackendError, CLOSE, ModifyFile, ReadFile, WRITE, create_with, exists, hash_file,
    is_absent,
};
use crate::error::Result;
use crate::format::layout;
use crate::format::patch::{Block, FRAME_BYTES, HEADER_BYTES, Header, Order};
use crate::format::steps::{FileContent, PatchFile, SlotNo};

/// Bytes of unchanged parts that are read at a time.
const BUFFER: usize = 1 << 20;

/// A staged patch that is whole, and open.
pub(crate) struct Patch {
    file: Box<dyn ReadFile>,
    path: RelPath,
    header: Header,
    /// The blocks, with the places of their bytes in the patch.
    blocks: Vec<(Block, u64)>,
}

/// Why a patch was not written.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The bytes of the file are as they were.
    Unchanged(BackendError),
    /// Some of the blocks may have been written.
    Torn(BackendError),
}

impl Failure {
    /// Returns the error of the backend.
    pub(crate) fn error(self) -> BackendError {
        match self {
            Failure::Unchanged(error) | Failure::Torn(error) => error,
        }
    }
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
            at += u64::from(block.length);
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

    /// Returns whether the file at `target` with the blocks of the patch has the bytes of
    /// `content`. False also if there is no such file.
    ///
    /// # Errors
    /// If the backend fails.
    pub(crate) fn completes(
        &self,
        backend: &dyn Backend,
        open: &Open,
        target: &RelPath,
        content: &FileContent,
    ) -> Result<bool> {
        if self.header.new_size != content.size {
            return Ok(false);
        }
        match backend.metadata(target) {
            // A longer one has been written by others.
            Ok(meta) if meta.kind == FileKind::Regular && meta.size <= content.size => {}
            Err(error) if !is_absent(&error) => return Err(error.into()),
            _ => return Ok(false),
        }
        let file = open(backend, target)?;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; BUFFER];
        let mut at = 0;
        for (block, place) in &self.blocks {
            if !hash_range(&*file, target, (at, block.offset), &mut buffer, &mut hasher)? {
                return Ok(false);
            }
            let bytes = &mut buffer[..block.length as usize];
            if !self.read_block(block, *place, bytes)? {
                return Ok(false);
            }
            hasher.update(bytes);
            at = block.offset + u64::from(block.length);
        }
        let rest = (at, content.size);
        let is_there = hash_range(&*file, target, rest, &mut buffer, &mut hasher)?;
        Ok(is_there && ContentHash(*hasher.finalize().as_bytes()) == content.hash)
    }

    /// Writes all blocks into the file at `target`, which had `before`, and sets its time. Durable
    /// after the next sync.
    ///
    /// # Errors
    /// [`Failure`].
    pub(crate) fn write(
        &self,
        backend: &dyn Backend,
        target: &RelPath,
        before: Timestamp,
        modified: Timestamp,
    ) -> std::result::Result<(), Failure> {
        let mut file = backend.modify(target).map_err(Failure::Unchanged)?;
        let old = self.header.old_size;
        let grow = self.write_parts(backend, (&mut *file, target), (old, u64::MAX));
        if let Err(error) = grow {
            let undone = file.set_size(old).and_then(|()| file.finish(before));
            // Nothing may get the clusters that it has given back before they are durably free.
            return Err(match undone.is_ok() && backend.sync().is_ok() {
                true => Failure::Unchanged(error),
                false => Failure::Torn(error),
            });
        }
        self.write_parts(backend, (&mut *file, target), (0, old))
            .map_err(Failure::Torn)?;
        file.finish(modified)
            .map_err(|source| Failure::Torn(BackendError::new(CLOSE, target, source)))
    }

    /// Writes the parts of all blocks that are within `range`.
    fn write_parts(
        &self,
        backend: &dyn Backend,
        (file, target): (&mut dyn ModifyFile, &RelPath),
        (from, to): (u64, u64),
    ) -> crate::drive::Result<()> {
        let mut buffer = vec![0; self.header.block as usize];
        for (block, place) in &self.blocks {
            let end = block.offset + u64::from(block.length);
            let (first, last) = (block.offset.max(from), end.min(to));
            if first >= last {
                continue;
            }
            let bytes = &mut buffer[..block.length as usize];
            let damaged = || std::io::Error::from_raw_os_error(libc::EIO);
            match self.read_block(block, *place, bytes) {
                Ok(true) => {}
                Ok(false) => return Err(BackendError::new("read", &self.path, damaged())),
                Err(error) => return Err(error),
            }
            // Both are within the block.
            let part = (first - block.offset) as usize..(last - block.offset) as usize;
            write_relieved(backend, (&mut *file, target), &bytes[part], first)?;
        }
        Ok(())
    }

    /// Reads the bytes of a block. Returns false if they are not those that it should have.
    fn read_block(
        &self,
        block: &Block,
        place: u64,
        bytes: &mut [u8],
    ) -> crate::drive::Result<bool> {
        let is_whole = read_all(&*self.file, &self.path, bytes, place)?;
        Ok(is_whole && blake3::hash(bytes) == block.hash.0)
    }
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

/// Returns whether `found` is a file that could be patched: a regular one with one name.
pub(crate) fn may_be_patched(found: &Metadata) -> bool {
    found.kind == FileKind::Regular && found.nlink <= 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drive::faulty::FaultyBackend;
    use crate::drive::memory::{CHANGED, MemNode, MemoryBackend, MemoryOptions};
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
            for _ in 0..2 {
                let is_it = patch.completes(&backend, &usual, &target, &content(&new));
                assert!(is_it.unwrap());
                patch.write(&backend, &target, BEFORE, TIME).unwrap();
                assert_eq!(file(&backend, &target), (new.clone(), TIME));
            }
        }
    }

    /// Torn in every way that a crash may leave: any of the blocks, any size in between.
    #[test]
    fn a_torn_file_is_completed_and_one_that_differs_elsewhere_is_not() {
        for (old, new) in pairs() {
            let backend = MemoryBackend::new(MemoryOptions::exfat_like());
            let patch = opened(&backend, &between(&old, &new)).expect("a patch");
            for size in [old.len(), old.len().midpoint(new.len()), new.len()] {
                let mut torn = old.clone();
                torn.resize(size, 0);
                for (block, _) in &patch.blocks {
                    let at = block.offset as usize + 1;
                    if at < torn.len() {
                        torn[at] ^= 0xff;
                    }
                }
                let target = put(&backend, "f", &torn);
                let completes = |to: &RelPath| {
                    let is_it = patch.completes(&backend, &usual, to, &content(&new));
                    is_it.unwrap()
                };
                assert!(completes(&target));
                if patch.blocks.len() < new.len().div_ceil(BLOCK) {
                    torn[7] ^= 1;
                    assert!(!completes(&put(&backend, "f", &torn)));
                    assert!(!completes(&put(&backend, "f", &torn[..7])));
                }
                assert!(!completes(&RelPath::fixed("nothing")));
            }
        }
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
        assert!(
            !patch
                .completes(&backend, &usual, &target, &content(&new))
                .unwrap()
        );
        let failed = patch.write(&backend, &target, BEFORE, TIME).unwrap_err();
        assert!(matches!(failed, Failure::Torn(_)));
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
            let failed = patch.write(&backend, &target, BEFORE, TIME).unwrap_err();
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
            let written = patch.write(&faulty, &target, BEFORE, TIME);
            let over = faulty.calls() < at;
            faulty.heal();
            match written {
                Ok(()) => assert_eq!(file(&memory, &target), (new.clone(), TIME)),
                Err(Failure::Unchanged(_)) => {
                    assert_eq!(file(&memory, &target), (old.clone(), BEFORE));
                }
                Err(Failure::Torn(_)) => assert_eq!(file(&memory, &target).1, CHANGED),
            }
            if over {
                break;
            }
        }
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
            let failed = patch.write(&backend, &target, BEFORE, TIME).unwrap_err();
            assert!(matches!(failed, Failure::Unchanged(_)), "{path}");
        }
        assert_eq!(std::fs::read(&secret).unwrap(), old);
        let plain = put(&backend, "plain", &old);
        patch.write(&backend, &plain, BEFORE, TIME).unwrap();
        assert_eq!(std::fs::read(dir.path().join("plain")).unwrap(), new);
    }
}
