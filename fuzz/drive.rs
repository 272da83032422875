//! A hostile drive end to end: what the input says is planted on an enrolled drive, which is
//! attached by a cache that knows it, by a new one, and recovered by a machine without one.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use ferryfs::core::{BatchNo, ContentHash, Ino, Name, RelPath, Timestamp};
use ferryfs::drive::Backend;
use ferryfs::drive::memory::MemoryBackend;
use ferryfs::drive::mounted::MountedDir;
use ferryfs::format::marker::Marker;
use ferryfs::format::steps::SlotNo;
use ferryfs::format::{layout, marker};
use ferryfs::recovery::interrupted::recover_without_cache;
use uuid::Uuid;

use crate::checks::resealed;
use crate::engine::{CTX, Engine, Kind, World, call};
use crate::pieces::{Piece, pieces};

/// Most pieces that are looked at: an input is to take milliseconds.
const MOST: usize = 40;

/// Kinds of pieces.
pub mod kind {
    /// A segment of the catalog as it is.
    pub const RAW_SEGMENT: u8 = 0;
    /// One with the drive's volume, its number and its predecessor, under a right checksum.
    pub const SEGMENT: u8 = 1;
    /// A record as it is.
    pub const RAW_RECORD: u8 = 2;
    /// One with the drive's volume and its number, under a right checksum.
    pub const RECORD: u8 = 3;
    /// A staged file of the batch of the last record.
    pub const SLOT: u8 = 4;
    /// The mark that clearing was over.
    pub const BARRIER: u8 = 5;
    /// A file among the user's.
    pub const FILE: u8 = 6;
    /// A file of ours: marker, lease, knock, reserve.
    pub const OURS: u8 = 7;
    /// A link out of the drive in the place of something of ours. On real directories only.
    pub const LINK: u8 = 8;
    /// How many there are.
    pub const COUNT: u8 = 9;
}

/// Something planted: a path on the drive, and a file's bytes or a link.
enum Planted {
    File(RelPath, Vec<u8>),
    Link(RelPath),
}

fn patch(bytes: &[u8], at: usize, patch: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if let Some(there) = bytes.get_mut(at..at + patch.len()) {
        there.copy_from_slice(patch);
    }
    bytes
}

/// Offsets in the heads of segments and records.
const VOLUME: usize = 16;
const SEGMENT_NUMBER: usize = 32;
const PREDECESSOR: usize = 40;
const BATCH: usize = 48;

fn plan(input: &[u8], volume: Uuid) -> Vec<Planted> {
    let (mut before, mut batch) = (ContentHash([0; 32]), BatchNo(1));
    let all = pieces(input);
    all.iter()
        .take(MOST)
        .map(|piece| planted(piece, volume, &mut before, &mut batch))
        .collect()
}

fn planted(
    piece: &Piece<'_>,
    volume: Uuid,
    before: &mut ContentHash,
    batch: &mut BatchNo,
) -> Planted {
    let number = u64::from(piece.number % 8) + 1;
    let body = &piece.bytes[..piece.bytes.len().saturating_sub(32)];
    let of_volume = patch(body, VOLUME, volume.as_bytes());
    match piece.kind % kind::COUNT {
        kind::RAW_SEGMENT => Planted::File(layout::segment_path(number), piece.bytes.to_vec()),
        kind::SEGMENT => {
            let numbered = patch(&of_volume, SEGMENT_NUMBER, &number.to_le_bytes());
            let chained = match piece.number < 128 {
                true => patch(&numbered, PREDECESSOR, &before.0),
                false => numbered,
            };
            let bytes = resealed(&chained);
            *before = ferryfs::format::catalog::segment::hash_of(&bytes).unwrap_or(*before);
            Planted::File(layout::segment_path(number), bytes)
        }
        kind::RAW_RECORD | kind::RECORD => {
            *batch = BatchNo(number);
            let bytes = match piece.kind % kind::COUNT {
                kind::RECORD => resealed(&patch(&of_volume, BATCH, &number.to_le_bytes())),
                _ => piece.bytes.to_vec(),
            };
            Planted::File(layout::record_path(*batch), bytes)
        }
        kind::SLOT => {
            let slot = layout::slot_path(*batch, SlotNo(u32::from(piece.number)));
            Planted::File(slot, piece.bytes.to_vec())
        }
        kind::BARRIER => Planted::File(layout::barrier_path(*batch), piece.bytes.to_vec()),
        kind::FILE => {
            let name = ["a", "b", "dir/a", "dir/b", "new/x", "films", "old", "A"]
                [usize::from(piece.number % 8)];
            Planted::File(RelPath::fixed(name), piece.bytes.to_vec())
        }
        kind::OURS => Planted::File(ours(piece.number, *batch), piece.bytes.to_vec()),
        _ => Planted::Link(ours(piece.number, *batch)),
    }
}

/// Something of ours.
fn ours(number: u8, batch: BatchNo) -> RelPath {
    match number % 10 {
        0 => layout::marker_path(),
        1 => layout::lease_path(),
        2 => layout::knock_path(),
        3 => RelPath::fixed(layout::RESERVE),
        4 => layout::staging_dir(batch),
        5 => layout::record_path(batch),
        6 => layout::catalog_dir(),
        7 => layout::staging_root(),
        8 => layout::lost_found(),
        _ => layout::dir(),
    }
}

fn in_memory(memory: &MemoryBackend, planted: &[Planted]) {
    for thing in planted {
        let Planted::File(path, bytes) = thing else {
            continue;
        };
        make_parents(memory, path);
        let _ = memory.remove_file(path);
        if let Ok(mut file) = memory.create(path) {
            let _ = file.append(bytes);
            let _ = file.finish(Timestamp(1_600_000_000_000_000_000));
        }
    }
}

fn make_parents(memory: &MemoryBackend, path: &RelPath) {
    if let Some((parent, _)) = path.split_last().filter(|(parent, _)| !parent.is_root()) {
        make_parents(memory, &parent);
        let _ = memory.make_dir(&parent);
    }
}

/// A drive that holds what the input says: nobody panics, nothing outside is touched, and what only
/// the cache has stays there.
pub fn drive(input: &[u8]) {
    // One of them, as each takes a while.
    match input.len() % 2 {
        0 => attached(input, Kind::Exfat),
        _ => attached(input, Kind::Linux),
    }
    recovered_alone(input);
}

fn attached(input: &[u8], kind: Kind) {
    let world = World::new(kind);
    let engine = world.start(false);
    let _ = engine.flusher.recover();
    engine.put("kept", b"only here");
    engine.close();
    in_memory(&world.memory, &plan(input, world.volume));
    let engine = world.start(false);
    live(&engine);
    let path = engine
        .find("kept")
        .expect("the name of what only the cache has");
    assert_eq!(engine.read_ino(path.ino).expect("its bytes"), b"only here");
    engine.close();
    // Another machine. A marker that is none is looked at before a cache is made.
    if is_enrolled(&world.memory) {
        let other = World::on(kind, world.memory.clone());
        live(&other.start(false));
    }
}

fn is_enrolled(memory: &MemoryBackend) -> bool {
    let Ok(file) = memory.open(&layout::marker_path()) else {
        return false;
    };
    let mut bytes = vec![0; marker::MAX_BYTES];
    let got = file.read_at(&mut bytes, 0).unwrap_or(0);
    marker::decode(&bytes[..got]).is_ok()
}

/// Recovers, looks at all that is shown, and flushes. Each of it may fail with a word.
fn live(engine: &Engine) {
    if let Err(error) = engine.flusher.recover() {
        let _ = error.to_string();
    }
    let mut after = Ino(0);
    for _ in 0..MOST * 2 {
        match engine.fs.import_next(after) {
            Ok(Some(dir)) | Err((dir, _)) => after = dir,
            Ok(None) => break,
        }
    }
    look_at_all(engine);
    if let Err(error) = engine.flush() {
        let _ = error.to_string();
    }
    let _ = engine.flusher.refresh(Ino::ROOT, true, &|| false);
}

/// Lists every directory and reads every file, as far as that is possible.
fn look_at_all(engine: &Engine) {
    let mut open = vec![Ino::ROOT];
    let mut looks = 0;
    while let Some(dir) = open.pop()
        && looks < 1000
    {
        let Ok(opened) = call(|ctx| engine.fs.opendir(ctx, dir)) else {
            continue;
        };
        let mut found = Vec::new();
        let _ = engine.fs.readdir(opened.handle, 0, |entry| {
            if Name::new(&entry.name).is_ok() {
                found.push((entry.inode.ino, entry.inode.is_dir()));
            }
            true
        });
        engine.fs.releasedir(opened.handle);
        for (ino, is_dir) in found {
            looks += 1;
            match is_dir {
                true => open.push(ino),
                false => drop(engine.read_ino(ino)),
            }
            let _ = engine.fs.listxattr(&CTX, ino);
        }
    }
}

/// The real thing for once: what stands beside the drive's directory is as before.
fn recovered_alone(input: &[u8]) {
    let shm = Path::new("/dev/shm");
    let top = match shm.is_dir() {
        true => tempfile::tempdir_in(shm),
        false => tempfile::tempdir(),
    };
    let top = top.expect("a directory");
    let (root, outside) = (top.path().join("drive"), top.path().join("outside"));
    fs::create_dir_all(root.join(layout::STAGING)).expect("mkdir");
    fs::create_dir_all(root.join(layout::BATCHES)).expect("mkdir");
    fs::create_dir(&outside).expect("mkdir");
    fs::write(outside.join("precious"), b"precious").expect("write");
    let volume = Uuid::from_u128(7);
    let marker = Marker::new(volume, [7; 16], Timestamp(0));
    fs::write(root.join(layout::MARKER), marker::encode(&marker)).expect("write");
    for thing in plan(input, volume) {
        let (Planted::File(path, _) | Planted::Link(path)) = &thing;
        let at = root.join(path.as_os_str());
        // Not through a link that was planted before, neither the thing nor its directory.
        let is_below = at.parent().is_some_and(|dir| {
            let there = dir.ancestors().find_map(|dir| dir.canonicalize().ok());
            there.is_some_and(|there| there.starts_with(&root)) && fs::create_dir_all(dir).is_ok()
        });
        if !is_below {
            continue;
        }
        let _ = fs::remove_file(&at);
        match &thing {
            Planted::File(_, bytes) => drop(fs::write(&at, bytes)),
            Planted::Link(_) => {
                let _ = fs::remove_dir_all(&at);
                let _ = symlink(&outside, &at);
            }
        }
    }
    if let Ok(backend) = MountedDir::open(&root)
        && let Err(error) = recover_without_cache(&backend)
    {
        let _ = error.to_string();
    }
    let seen: Vec<_> = fs::read_dir(&outside)
        .expect("list")
        .map(|e| e.expect("list").file_name())
        .collect();
    assert_eq!(seen, ["precious"], "something was made or removed outside");
    assert_eq!(
        fs::read(outside.join("precious")).expect("read"),
        b"precious"
    );
}
