//! Somebody else works on the drive, and the mount comes to show it: a foreign hand on a backend in
//! memory.

mod cases;
mod doubt;
mod during;
mod random;
mod zone;

use std::collections::BTreeMap;

use crate::engine::{self, Engine, Kind, World};
use ferryfs::core::{FileKind, RelPath, Timestamp};
use ferryfs::drive::Backend;
use ferryfs::drive::memory::MemNode;

pub(crate) const KINDS: [Kind; 2] = [Kind::Plain, Kind::Exfat];

/// Time of the foreign hand's work: `n` times 5 seconds after a fixed one.
pub(crate) fn time(n: i64) -> Timestamp {
    Timestamp(1_650_000_000_000_000_000 + n * 5_000_000_000)
}

/// Somebody else's hand.
pub(crate) fn put(world: &World, path: &str, bytes: &[u8], at: i64) {
    let path = engine::script::rel(path);
    let _ = world.memory.remove_file(&path);
    let mut file = world.memory.create(&path).expect("create");
    file.append(bytes).expect("append");
    file.finish(time(at)).expect("finish");
}

pub(crate) fn make_dir(world: &World, path: &str) {
    let path = engine::script::rel(path);
    world.memory.make_dir(&path).expect("mkdir");
}

pub(crate) fn rename(world: &World, from: &str, to: &str) {
    let (from, to) = (engine::script::rel(from), engine::script::rel(to));
    world.memory.rename(&from, &to).expect("rename");
}

/// Removes a file, or a directory with all that is in it.
pub(crate) fn remove(world: &World, path: &str) {
    remove_all(world, &engine::script::rel(path));
}

fn remove_all(world: &World, path: &RelPath) {
    let kind = world.memory.metadata(path).expect("something").kind;
    if kind != FileKind::Directory {
        return world.memory.remove_file(path).expect("rm");
    }
    for entry in world.memory.read_dir(path).expect("list") {
        remove_all(world, &path.join(&entry.name));
    }
    world.memory.remove_dir(path).expect("rmdir");
}

/// The other versions on the drive: paths with the mark taken out, and bytes.
pub(crate) fn others(world: &World) -> BTreeMap<String, Vec<u8>> {
    let tree = world.drive_tree().into_iter();
    let all = tree.filter_map(|(path, node)| {
        let path = path.to_string();
        let (stem, rest) = path.split_once(".sync-conflict-")?;
        let plain = match rest.split_once(['.', '/']) {
            Some((_, rest)) => format!("{stem}.{rest}"),
            None => stem.to_string(),
        };
        match node {
            MemNode::File { bytes, .. } => Some((plain, bytes.to_vec())),
            _ => None,
        }
    });
    all.collect()
}

/// What waits is carried; then the mount shows what is on the drive, and a look finds nothing that
/// is not known.
#[track_caller]
pub(crate) fn at_rest(world: &World, engine: &Engine) {
    engine.flush_all();
    let again = engine.refresh();
    assert!(again.is_nothing(), "{again:?}");
    world.check(engine);
    engine::tree::assert_same(
        &world.drive_tree(),
        &engine.expected_on_drive(),
        "the drive is not what the mount shows",
    );
    assert!(!engine.index.lock().anything_dirty().expect("read"));
}
