//! The drive changes under a batch, between its cut and its end. In process, on a real directory.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use ferryfs::core::Phase;
use ferryfs::drive::mounted::MountedDir;
use ferryfs::drive::{Backend, ReadFile};
use ferryfs::format::layout;

use crate::engine::{Engine, Kind, World};

/// An engine whose drive is the directory `root`, which is enrolled as the world's volume.
fn on_directory(world: &World, root: &Path) -> Engine {
    let marker = layout::marker_path();
    if !root.exists() {
        for dir in [layout::dir(), layout::staging_root(), layout::batches_dir()] {
            fs::create_dir_all(root.join(dir.as_os_str())).expect("mkdir");
        }
        let file: Box<dyn ReadFile> = world.memory.open(&marker).expect("the marker");
        let mut bytes = vec![0; 4096];
        let got = file.read_at(&mut bytes, 0).expect("read");
        fs::write(root.join(marker.as_os_str()), &bytes[..got]).expect("write");
    }
    let engine = world.start(false);
    let backend = MountedDir::open(root).expect("open");
    engine.drive.attach(Arc::new(backend));
    engine.flusher.recover().expect("recover");
    engine
}

/// What of ours, or of the user's, becomes a link to the tree outside; and when.
#[test]
fn a_directory_that_becomes_a_link_under_a_batch_leads_it_nowhere() {
    for phase in [Phase::Stage, Phase::Commit, Phase::Apply] {
        for swapped in [
            "dir",
            "dir/sub",
            ".ferryfs",
            ".ferryfs/staging",
            ".ferryfs/batches",
        ] {
            swap(phase, swapped);
        }
    }
}

fn swap(phase: Phase, swapped: &str) {
    let what = format!("{swapped} at {phase:?}");
    let place = tempfile::tempdir().expect("a directory");
    let (root, outside, kept) = (
        place.path().join("root"),
        place.path().join("outside"),
        place.path().join("kept"),
    );
    for dir in ["sub", "staging", "batches"] {
        fs::create_dir_all(outside.join(dir)).expect("mkdir");
        for file in ["old", "gone", "moved"] {
            fs::write(outside.join(dir).join(file), b"outside").expect("write");
            fs::write(outside.join(file), b"outside").expect("write");
        }
    }
    let before = list(&outside);
    let world = World::new(Kind::Plain);
    let engine = on_directory(&world, &root);
    engine.mkdir("dir");
    engine.mkdir("dir/sub");
    for file in [
        "dir/old",
        "dir/gone",
        "dir/moved",
        "dir/sub/old",
        "dir/sub/gone",
    ] {
        engine.put(file, b"first");
    }
    engine.flush_all();
    engine.put("dir/old", b"second");
    engine.put("dir/sub/old", b"second");
    engine.put("dir/sub/new", b"second");
    engine.unlink("dir/gone");
    engine.unlink("dir/sub/gone");
    engine.rename("dir/moved", "dir/sub/moved");

    let done = Cell::new(false);
    let flushed = engine.flush_with(&|progress| {
        if progress.phase == phase && !done.replace(true) {
            fs::rename(root.join(swapped), &kept).expect("move it away");
            symlink(&outside, root.join(swapped)).expect("symlink");
        }
    });
    assert!(done.get(), "{what}: the flush never came so far");
    assert_eq!(list(&outside), before, "{what}");
    // What was ours is not there any more: it is made anew beside the link, or waits. Of our own
    // directory nothing may be missed.
    let is_user_part = !swapped.starts_with(".ferryfs");
    if let (true, Ok(report)) = (is_user_part, &flushed) {
        let waits = !report.left_behind.is_empty();
        assert!(
            waits || !root.join(swapped).is_symlink(),
            "{what}: {report:?}"
        );
    }
    let _ = engine.flush();
    assert_eq!(list(&outside), before, "{what}");

    if root.join(swapped).is_symlink() {
        fs::remove_file(root.join(swapped)).expect("remove the link");
        fs::rename(&kept, root.join(swapped)).expect("move it back");
    }
    engine.flusher.recover().expect("recover");
    engine.refresh();
    engine.flush_all();
    for (file, bytes) in [
        ("dir/old", &b"second"[..]),
        ("dir/sub/old", b"second"),
        ("dir/sub/new", b"second"),
        ("dir/sub/moved", b"first"),
    ] {
        let found = fs::read(root.join(file)).unwrap_or_else(|e| panic!("{what}: {file}: {e}"));
        assert_eq!(found, bytes, "{what}: {file}");
        assert_eq!(engine.read(file), bytes, "{what}: {file} in the mount");
    }
    for file in ["dir/gone", "dir/sub/gone", "dir/moved"] {
        // What was to be removed behind the link was taken for removed, and so may be there again.
        let behind = file.starts_with(&format!("{swapped}/"));
        assert!(behind || !root.join(file).exists(), "{what}: {file}");
    }
}

fn list(dir: &Path) -> Vec<String> {
    let mut seen = Vec::new();
    for entry in fs::read_dir(dir).expect("list") {
        let entry = entry.expect("list");
        let meta = entry.metadata().expect("stat");
        if meta.is_dir() {
            seen.extend(list(&entry.path()));
        }
        let bytes = meta
            .is_file()
            .then(|| fs::read(entry.path()).expect("read"));
        let path = entry.path();
        seen.push(format!(
            "{} {bytes:?} {:?}",
            path.display(),
            meta.modified().expect("mtime")
        ));
    }
    seen.sort();
    seen
}
