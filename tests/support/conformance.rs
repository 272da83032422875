//! The promises of [`Backend`], as checks that any of them can be held against.

#![allow(unreachable_pub)] // Shared by including the file.

use std::collections::BTreeSet;

use ferryfs::core::{Capabilities, FileKind, Name, RelPath, Timestamp, Xattrs};
use ferryfs::drive::probe::probe;
use ferryfs::drive::{Backend, BackendError};

/// 2023-11-14T22:13:21.123456789Z: an odd second, and every digit of the fraction matters.
pub const WHEN: Timestamp = Timestamp(1_700_000_001_123_456_789);

pub fn path(text: &str) -> RelPath {
    RelPath::parse(text.as_bytes()).unwrap()
}

pub fn put(backend: &dyn Backend, at: &str, bytes: &[u8]) {
    let mut file = backend.create(&path(at)).unwrap();
    file.append(bytes).unwrap();
    file.finish(WHEN).unwrap();
}

pub fn get(backend: &dyn Backend, at: &str) -> Vec<u8> {
    let file = backend.open(&path(at)).unwrap();
    let size = file.metadata().unwrap().size as usize;
    // One byte more than there is, so that a short answer can be told from a full buffer.
    let mut bytes = vec![0; size + 1];
    let n = file.read_at(&mut bytes, 0).unwrap();
    assert_eq!(n, size, "a read is short only at the end of {at}");
    bytes.truncate(n);
    bytes
}

pub fn names(backend: &dyn Backend, dir: &str) -> BTreeSet<String> {
    let entries = backend.read_dir(&path(dir)).unwrap();
    entries.iter().map(|entry| entry.name.to_string()).collect()
}

pub fn errno<T>(outcome: Result<T, BackendError>) -> Option<i32> {
    outcome.map(drop).unwrap_err().source.raw_os_error()
}

/// All that is promised of any backend. `make` gives an empty one each time.
pub fn conformance<B: Backend>(make: impl Fn() -> B) {
    let capabilities = probe(&make(), &path("scratch")).unwrap();
    what_was_written_is_read_back(&make());
    what_stands_is_not_overwritten_by_making(&make());
    a_rename_replaces_files_and_moves_directories(&make());
    a_rename_that_cannot_be_is_refused_and_changes_nothing(&make());
    what_is_missing_is_not_found(&make());
    a_directory_goes_only_when_empty(&make());
    kinds_are_not_mixed_up(&make());
    times_are_kept_as_exactly_as_probed(&make(), &capabilities);
    a_big_file_is_whole(&make());
    a_big_directory_is_listed_whole(&make());
    deep_paths_work(&make());
    the_root_stays(&make());
    names_are_what_the_probe_says(&make(), &capabilities);
    space_is_told(&make());
    attributes_are_what_the_probe_says(&make(), &capabilities);
    further_names_are_of_one_file(&make(), &capabilities);
    special_files_are_what_they_were_made(&make(), &capabilities);
}

fn what_was_written_is_read_back(backend: &dyn Backend) {
    let mut file = backend.create(&path("f")).unwrap();
    file.append(b"one ").unwrap();
    file.append(b"").unwrap();
    file.append(b"two").unwrap();
    file.finish(WHEN).unwrap();
    backend.sync().unwrap();
    assert_eq!(get(backend, "f"), b"one two");
    let meta = backend.metadata(&path("f")).unwrap();
    assert_eq!((meta.kind, meta.size), (FileKind::Regular, 7));
    let file = backend.open(&path("f")).unwrap();
    let mut middle = [0; 3];
    assert_eq!(file.read_at(&mut middle, 4).unwrap(), 3);
    assert_eq!(&middle, b"two");
    assert_eq!(file.read_at(&mut middle, 6).unwrap(), 1);
    assert_eq!(file.read_at(&mut middle, 7).unwrap(), 0);
    assert_eq!(file.read_at(&mut middle, 1 << 30).unwrap(), 0);
    put(backend, "empty", b"");
    assert_eq!(get(backend, "empty"), b"");
}

fn what_stands_is_not_overwritten_by_making(backend: &dyn Backend) {
    put(backend, "f", b"kept");
    backend.make_dir(&path("d")).unwrap();
    for taken in ["f", "d"] {
        assert_eq!(errno(backend.create(&path(taken))), Some(libc::EEXIST));
        assert_eq!(errno(backend.make_dir(&path(taken))), Some(libc::EEXIST));
    }
    assert_eq!(get(backend, "f"), b"kept");
}

fn a_rename_replaces_files_and_moves_directories(backend: &dyn Backend) {
    put(backend, "new", b"new");
    put(backend, "old", b"old and longer");
    backend.rename(&path("new"), &path("old")).unwrap();
    assert_eq!(get(backend, "old"), b"new");
    backend.make_dir(&path("a")).unwrap();
    backend.make_dir(&path("b")).unwrap();
    backend.make_dir(&path("a/sub")).unwrap();
    put(backend, "a/sub/f", b"deep");
    put(backend, "a-beside", b"beside");
    backend.rename(&path("a/sub"), &path("b/moved")).unwrap();
    assert_eq!(get(backend, "b/moved/f"), b"deep");
    backend.rename(&path("old"), &path("b/moved/f")).unwrap();
    assert_eq!(get(backend, "b/moved/f"), b"new");
    backend.rename(&path("b"), &path("c")).unwrap();
    assert_eq!(get(backend, "c/moved/f"), b"new");
    assert_eq!(get(backend, "a-beside"), b"beside");
    let left = BTreeSet::from(["a", "a-beside", "c"].map(String::from));
    assert_eq!(names(backend, ""), left);
    // Only the case differs: one name on some backends, two on others, and the new spelling on all.
    backend.rename(&path("c"), &path("C")).unwrap();
    assert!(names(backend, "").contains("C") && !names(backend, "").contains("c"));
    assert_eq!(get(backend, "C/moved/f"), b"new");
}

fn a_rename_that_cannot_be_is_refused_and_changes_nothing(backend: &dyn Backend) {
    backend.make_dir(&path("full")).unwrap();
    put(backend, "full/f", b"f");
    backend.make_dir(&path("d")).unwrap();
    put(backend, "g", b"g");
    let rename = |from: &str, to: &str| errno(backend.rename(&path(from), &path(to)));
    assert_eq!(rename("missing", "x"), Some(libc::ENOENT));
    assert_eq!(rename("g", "missing/x"), Some(libc::ENOENT));
    assert_eq!(rename("g", "d"), Some(libc::EISDIR));
    assert_eq!(rename("d", "g"), Some(libc::ENOTDIR));
    assert_eq!(rename("d", "d/inside"), Some(libc::EINVAL));
    let full = rename("d", "full");
    assert!(
        matches!(full, Some(libc::ENOTEMPTY | libc::EEXIST)),
        "{full:?}"
    );
    assert_eq!(get(backend, "full/f"), b"f");
    assert_eq!(get(backend, "g"), b"g");
    assert_eq!(names(backend, "d"), BTreeSet::new());
}

fn what_is_missing_is_not_found(backend: &dyn Backend) {
    let missing = path("no/such");
    for outcome in [
        backend.metadata(&path("no")).map(drop),
        backend.metadata(&missing).map(drop),
        backend.open(&missing).map(drop),
        backend.create(&missing).map(drop),
        backend.make_dir(&missing),
        backend.read_dir(&path("no")).map(drop),
        backend.remove_file(&missing),
        backend.remove_dir(&path("no")),
        backend.set_modified(&missing, WHEN),
    ] {
        let error = outcome.unwrap_err();
        assert!(error.is_not_found() && !error.is_gone(), "{error}");
    }
}

fn a_directory_goes_only_when_empty(backend: &dyn Backend) {
    backend.make_dir(&path("d")).unwrap();
    put(backend, "d/f", b"f");
    assert_eq!(errno(backend.remove_dir(&path("d"))), Some(libc::ENOTEMPTY));
    assert_eq!(get(backend, "d/f"), b"f");
    backend.remove_file(&path("d/f")).unwrap();
    backend.remove_dir(&path("d")).unwrap();
    assert_eq!(names(backend, ""), BTreeSet::new());
}

fn kinds_are_not_mixed_up(backend: &dyn Backend) {
    backend.make_dir(&path("d")).unwrap();
    put(backend, "f", b"f");
    assert_eq!(errno(backend.remove_file(&path("d"))), Some(libc::EISDIR));
    assert_eq!(errno(backend.remove_dir(&path("f"))), Some(libc::ENOTDIR));
    assert_eq!(errno(backend.open(&path("d"))), Some(libc::EISDIR));
    assert_eq!(errno(backend.read_dir(&path("f"))), Some(libc::ENOTDIR));
    assert_eq!(errno(backend.create(&path("f/x"))), Some(libc::ENOTDIR));
    let meta = backend.metadata(&path("d")).unwrap();
    assert_eq!((meta.kind, meta.size), (FileKind::Directory, 0));
}

fn times_are_kept_as_exactly_as_probed(backend: &dyn Backend, capabilities: &Capabilities) {
    let step = capabilities.time_granularity_ns as i64;
    let kept = |time: Timestamp| Timestamp(time.0 - time.0.rem_euclid(step));
    put(backend, "f", b"bytes");
    let modified = || backend.metadata(&path("f")).unwrap().modified;
    assert_eq!(modified(), kept(WHEN));
    let other = Timestamp(1_234_567_891_987_654_321);
    backend.set_modified(&path("f"), other).unwrap();
    assert_eq!(modified(), kept(other));
    backend.rename(&path("f"), &path("g")).unwrap();
    let listed = backend.read_dir(&path("")).unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].meta, backend.metadata(&path("g")).unwrap());
    assert_eq!(listed[0].meta.modified, kept(other));
}

fn a_big_file_is_whole(backend: &dyn Backend) {
    // Not periodic in any power of two, so that a misplaced block shows.
    let bytes: Vec<u8> = (0..8u32 << 20).map(|i| (i % 251) as u8).collect();
    let mut file = backend.create(&path("big")).unwrap();
    for chunk in bytes.chunks(3 << 20) {
        file.append(chunk).unwrap();
    }
    file.finish(WHEN).unwrap();
    backend.sync().unwrap();
    assert!(get(backend, "big") == bytes);
}

fn a_big_directory_is_listed_whole(backend: &dyn Backend) {
    backend.make_dir(&path("many")).unwrap();
    let wanted: BTreeSet<String> = (0..500).map(|i| format!("entry number {i}")).collect();
    for name in &wanted {
        drop(backend.create(&path(&format!("many/{name}"))).unwrap());
    }
    assert_eq!(backend.read_dir(&path("many")).unwrap().len(), wanted.len());
    assert_eq!(names(backend, "many"), wanted);
}

fn deep_paths_work(backend: &dyn Backend) {
    let mut dir = RelPath::root();
    let name = Name::new(b"directory").unwrap();
    for _ in 0..40 {
        dir = dir.join(&name);
        backend.make_dir(&dir).unwrap();
    }
    let file = dir.join(&name);
    backend.create(&file).unwrap().finish(WHEN).unwrap();
    assert_eq!(backend.read_dir(&dir).unwrap().len(), 1);
    assert_eq!(backend.metadata(&file).unwrap().kind, FileKind::Regular);
}

fn the_root_stays(backend: &dyn Backend) {
    let root = RelPath::root();
    put(backend, "f", b"f");
    assert_eq!(backend.metadata(&root).unwrap().kind, FileKind::Directory);
    assert_eq!(errno(backend.create(&root)), Some(libc::EEXIST));
    assert_eq!(errno(backend.make_dir(&root)), Some(libc::EEXIST));
    assert_eq!(errno(backend.open(&root)), Some(libc::EISDIR));
    assert_eq!(errno(backend.remove_file(&root)), Some(libc::EISDIR));
    assert_eq!(errno(backend.remove_dir(&root)), Some(libc::EBUSY));
    assert_eq!(errno(backend.rename(&root, &path("x"))), Some(libc::EBUSY));
    assert_eq!(errno(backend.rename(&path("f"), &root)), Some(libc::EBUSY));
    assert_eq!(names(backend, ""), BTreeSet::from(["f".to_string()]));
}

fn names_are_what_the_probe_says(backend: &dyn Backend, capabilities: &Capabilities) {
    let longest = [b'n'; 255];
    let made = backend.create(&RelPath::parse(&longest).unwrap());
    made.unwrap().finish(WHEN).unwrap();
    for &byte in &capabilities.forbidden {
        let name = RelPath::parse(&[b'a', byte, b'b']).unwrap();
        assert!(backend.create(&name).is_err(), "{name:?}");
    }
    put(backend, "Case", b"");
    let other_case = backend.create(&path("cASE")).is_err();
    assert_eq!(other_case, capabilities.case_insensitive);
    let not_text = RelPath::parse(b"caf\xe9").unwrap();
    assert_eq!(backend.create(&not_text).is_err(), capabilities.utf8_only);
}

fn space_is_told(backend: &dyn Backend) {
    let space = backend.space().unwrap();
    assert!(
        space.total > 0 && space.available <= space.total,
        "{space:?}"
    );
}

/// Every kind of thing that has attributes here.
fn things(backend: &dyn Backend, capabilities: &Capabilities) -> Vec<RelPath> {
    put(backend, "f", b"f");
    backend.make_dir(&path("d")).unwrap();
    if capabilities.symlinks {
        backend.make_symlink(b"nowhere", &path("l")).unwrap();
    }
    let names = if capabilities.symlinks {
        &["f", "d", "l"][..]
    } else {
        &["f", "d"]
    };
    names.iter().map(|name| path(name)).collect()
}

fn attributes_are_what_the_probe_says(backend: &dyn Backend, capabilities: &Capabilities) {
    for thing in things(backend, capabilities) {
        let meta = || backend.metadata(&thing).unwrap();
        let kind = meta().kind;
        if capabilities.owners {
            backend.set_owner(&thing, Some(4321), None).unwrap();
            backend.set_owner(&thing, None, Some(5432)).unwrap();
            assert_eq!((meta().uid, meta().gid), (4321, 5432), "{thing}");
        }
        if capabilities.permissions && kind != FileKind::Symlink {
            backend.set_permissions(&thing, 0o4751).unwrap();
            assert_eq!(meta().permissions, 0o4751, "{thing}");
        }
        if !capabilities.xattrs.is_empty() && kind != FileKind::Symlink {
            let one = Xattrs::from([(b"user.one"[..].into(), b"1"[..].into())]);
            let two = Xattrs::from([(b"user.two"[..].into(), b"\0\xff"[..].into())]);
            assert_eq!(backend.xattrs(&thing).unwrap(), Xattrs::new(), "{thing}");
            for set in [one, two, Xattrs::new()] {
                backend.set_xattrs(&thing, &set).unwrap();
                assert_eq!(backend.xattrs(&thing).unwrap(), set, "{thing}");
            }
        }
        if capabilities.symlinks {
            let step = capabilities.time_granularity_ns as i64;
            let kept = Timestamp(WHEN.0 - WHEN.0.rem_euclid(step));
            backend.set_modified(&thing, WHEN).unwrap();
            assert_eq!(meta().modified, kept, "{thing}");
        }
    }
    for outcome in [
        backend.set_owner(&path("none"), Some(1), None),
        backend.set_xattrs(&path("none"), &Xattrs::new()),
        backend.xattrs(&path("none")).map(drop),
    ] {
        assert!(outcome.is_err(), "of nothing");
    }
}

fn further_names_are_of_one_file(backend: &dyn Backend, capabilities: &Capabilities) {
    put(backend, "f", b"f");
    let alone = backend.metadata(&path("f")).unwrap();
    assert_eq!((alone.nlink, alone.file), (1, None));
    let linked = backend.make_hard_link(&path("f"), &path("g"));
    // Some take links and show two files; the probe does not count those.
    assert!(linked.is_ok() || !capabilities.hard_links);
    if !capabilities.hard_links {
        return;
    }
    put(backend, "other", b"other");
    let exists = backend.make_hard_link(&path("f"), &path("other"));
    assert_eq!(errno(exists), Some(libc::EEXIST));
    backend.set_modified(&path("f"), WHEN).unwrap();
    let (f, g) = (
        backend.metadata(&path("f")).unwrap(),
        backend.metadata(&path("g")).unwrap(),
    );
    assert_eq!(f, g, "they are one");
    assert!(f.nlink == 2 && f.file.is_some());
    backend.rename(&path("g"), &path("f")).unwrap();
    assert_eq!(names(backend, "").len(), 3, "both names stay");
    backend.remove_file(&path("f")).unwrap();
    assert_eq!(get(backend, "g"), b"f");
    assert_eq!(backend.metadata(&path("g")).unwrap().nlink, 1);
}

fn special_files_are_what_they_were_made(backend: &dyn Backend, capabilities: &Capabilities) {
    let mut kinds = vec![(FileKind::Fifo, 0), (FileKind::Socket, 0)];
    if capabilities.devices {
        kinds.extend([
            (FileKind::CharDevice, 0x103),
            (FileKind::BlockDevice, 0x12345),
        ]);
    }
    for (kind, rdev) in kinds {
        let made = backend.make_node(kind, rdev, &path("n"));
        assert_eq!(made.is_ok(), capabilities.special_files, "{kind:?}");
        if capabilities.special_files {
            let meta = backend.metadata(&path("n")).unwrap();
            assert_eq!((meta.kind, meta.rdev, meta.size), (kind, rdev, 0));
            assert!(backend.open(&path("n")).is_err(), "{kind:?}");
            let again = backend.make_node(kind, rdev, &path("n"));
            assert_eq!(errno(again), Some(libc::EEXIST));
            backend.remove_file(&path("n")).unwrap();
        }
    }
}
