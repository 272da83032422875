//! A drive with a past: what stood on it before is taken in, in the background and whatever is
//! wrong with it.

use crate::{lab, on_both_drives};

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::lab::{Backend as Kind, Lab, exit, text, wait_until};
use ferryfs::cache::Store;
use ferryfs::core::{Capabilities, Clock, Entry, Ino, Metadata, Name, RelPath, Space, Timestamp};
use ferryfs::drive::connection::Drive;
use ferryfs::drive::memory::{MemoryBackend, MemoryOptions};
use ferryfs::drive::{Backend, BackendError, ModifyFile, ReadFile, Result, WriteFile};
use ferryfs::index::Index;
use ferryfs::plan::names::NameRules;
use ferryfs::vfs::{CacheLimits, Ctx, Fs, FsError, FsParts, OpenMode};

/// A drive whose file system is damaged: a directory `loop` is the one that it is in, and one named
/// `bad` cannot be read.
struct Damaged(MemoryBackend);

fn sound(path: &RelPath) -> RelPath {
    let names = path.components().filter(|name| *name != b"loop");
    names.fold(RelPath::root(), |path, name| {
        path.join(&Name::new(name).unwrap())
    })
}

impl Backend for Damaged {
    fn read_dir(&self, dir: &RelPath) -> Result<Vec<Entry>> {
        if dir.components().last() == Some(b"bad") {
            let source = std::io::Error::from_raw_os_error(libc::EUCLEAN);
            return Err(BackendError::new("read_dir", dir, source));
        }
        self.0.read_dir(&sound(dir))
    }

    fn metadata(&self, path: &RelPath) -> Result<Metadata> {
        self.0.metadata(&sound(path))
    }

    fn open(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        self.0.open(&sound(path))
    }

    fn create(&self, path: &RelPath) -> Result<Box<dyn WriteFile>> {
        self.0.create(path)
    }

    fn modify(&self, path: &RelPath) -> Result<Box<dyn ModifyFile>> {
        self.0.modify(path)
    }

    fn make_dir(&self, path: &RelPath) -> Result<()> {
        self.0.make_dir(path)
    }

    fn rename(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        self.0.rename(from, to)
    }

    fn remove_file(&self, path: &RelPath) -> Result<()> {
        self.0.remove_file(path)
    }

    fn remove_dir(&self, path: &RelPath) -> Result<()> {
        self.0.remove_dir(path)
    }

    fn set_modified(&self, path: &RelPath, modified: Timestamp) -> Result<()> {
        self.0.set_modified(path, modified)
    }

    fn sync(&self) -> Result<()> {
        self.0.sync()
    }

    fn space(&self) -> Result<Space> {
        self.0.space()
    }
}

struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp(1)
    }
}

fn dir(backend: &MemoryBackend, path: &'static str) {
    backend.make_dir(&RelPath::fixed(path)).unwrap();
}

fn file(backend: &MemoryBackend, path: &'static str) {
    let mut file = backend.create(&RelPath::fixed(path)).unwrap();
    file.append(path.as_bytes()).unwrap();
    file.finish(Timestamp(7)).unwrap();
}

/// A file system with an empty cache in front of `backend`.
fn served(backend: Arc<dyn Backend>, cache: &std::path::Path) -> Fs {
    let drive = Arc::new(Drive::detached());
    drive.attach(backend);
    served_from(drive, cache)
}

fn served_from(drive: Arc<Drive>, cache: &std::path::Path) -> Fs {
    let capabilities = Capabilities::plain();
    Fs::new(FsParts {
        index: Arc::new(
            Index::open(&cache.join("index.db"), NameRules::new(&capabilities)).unwrap(),
        ),
        store: Arc::new(Store::open(cache).unwrap()),
        drive,
        clock: Arc::new(Still),
        capabilities,
        owner: (0, 0),
        limits: CacheLimits {
            max_bytes: u64::MAX,
            keep_free: 0,
            reserve: 0,
        },
        io_timeout: Duration::from_secs(10),
        cache_path: Vec::new(),
    })
    .unwrap()
}

/// The walk of the background, once through.
fn walk(fs: &Fs) -> usize {
    let (mut after, mut failed) = (Ino(0), 0);
    for _ in 0..100_000 {
        match fs.import_next(after) {
            Ok(Some(_)) => {}
            Ok(None) => return failed,
            Err((dir, _)) => {
                after = dir;
                failed += 1;
            }
        }
    }
    panic!("the walk does not end");
}

const CTX: Ctx = Ctx {
    uid: 0,
    gid: 0,
    pid: 0,
    umask: 0,
    may_block: true,
    may_wait: true,
};

fn found(fs: &Fs, path: &str) -> bool {
    let mut at = Ino::ROOT;
    for name in path.split('/') {
        match fs.lookup(&CTX, at, &Name::new(name.as_bytes()).unwrap()) {
            Ok(Some(inode)) => at = inode.ino,
            _ => return false,
        }
    }
    true
}

#[test]
fn a_directory_that_contains_itself_is_named_and_ends_the_walk_nowhere_else() {
    let cache = tempfile::tempdir().unwrap();
    let memory = MemoryBackend::new(MemoryOptions::default());
    for path in ["loop", "films", "films/loop", "films/old"] {
        dir(&memory, path);
    }
    for path in ["a", "b", "films/x", "films/old/y"] {
        file(&memory, path);
    }
    let fs = served(Arc::new(Damaged(memory)), cache.path());
    assert!(walk(&fs) > 0);
    let progress = fs.import_progress().unwrap();
    assert!(progress.dirs_done < 100, "{progress:?}");
    assert_eq!(progress.dirs_left, progress.unreadable_count);
    let (path, reason) = &progress.unreadable[0];
    assert!(
        path.contains("loop") && reason.contains("damaged"),
        "{path}: {reason}"
    );
    assert!(found(&fs, "films/old/y") && found(&fs, "a"));
}

#[test]
fn an_unreadable_directory_is_named_and_the_rest_goes_on() {
    let cache = tempfile::tempdir().unwrap();
    let memory = MemoryBackend::new(MemoryOptions::default());
    for path in ["bad", "good", "good/bad", "good/better"] {
        dir(&memory, path);
    }
    file(&memory, "good/better/x");
    let fs = served(Arc::new(Damaged(memory)), cache.path());
    assert_eq!(walk(&fs), 2);
    let progress = fs.import_progress().unwrap();
    let names: Vec<&str> = progress
        .unreadable
        .iter()
        .map(|(path, _)| path.as_str())
        .collect();
    assert_eq!(names, ["bad", "good/bad"]);
    assert_eq!((progress.dirs_left, progress.dirs_done), (2, 3));
    assert!(found(&fs, "good/better/x"));
}

#[test]
fn what_has_been_taken_in_is_counted_over_a_restart() {
    let cache = tempfile::tempdir().unwrap();
    let memory = Arc::new(MemoryBackend::new(MemoryOptions::default()));
    for path in ["a", "b", "b/c"] {
        dir(&memory, path);
    }
    for path in ["a/1", "a/2", "b/c/3"] {
        file(&memory, path);
    }
    let fs = served(memory.clone(), cache.path());
    fs.import_next(Ino(0)).unwrap();
    let progress = fs.import_progress().unwrap();
    assert_eq!(
        (progress.dirs_done, progress.dirs_left, progress.entries),
        (1, 2, 2)
    );
    drop(fs);
    let fs = served(memory, cache.path());
    walk(&fs);
    let progress = fs.import_progress().unwrap();
    assert_eq!(
        (progress.dirs_done, progress.dirs_left, progress.entries),
        (4, 0, 6)
    );
}

#[test]
fn a_chain_of_directories_with_nothing_else_in_them_is_no_loop() {
    let cache = tempfile::tempdir().unwrap();
    let memory = MemoryBackend::new(MemoryOptions::default());
    let mut path = RelPath::root();
    for _ in 0..300 {
        path = path.join(&Name::new(b"x").unwrap());
        memory.make_dir(&path).unwrap();
    }
    let fs = served(Arc::new(memory), cache.path());
    assert_eq!(walk(&fs), 0);
    assert_eq!(fs.import_progress().unwrap().dirs_done, 301);
}

/// Makes what other systems leave on a drive.
fn with_a_past(lab: &Lab) {
    lab::sh(
        lab.drive.path(),
        "mkdir -p 'System Volume Information' '$RECYCLE.BIN/S-1-5' .Spotlight-V100/Store .Trashes .fseventsd found.000 \
           .Trash-1000/files dir 'dir/System Volume Information'
         echo x > 'System Volume Information/IndexerVolumeGuid'; echo x > '$RECYCLE.BIN/S-1-5/$R1'; echo x > found.000/file0000.chk
         echo x > ._a; echo x > a; echo x > dir/b; echo x > dir/._b; echo x > .Trash-1000/files/gone",
    );
}

const SYSTEM: [&str; 6] = [
    "System Volume Information",
    "$RECYCLE.BIN",
    ".Spotlight-V100",
    ".Trashes",
    ".fseventsd",
    "found.000",
];

fn names(dir: &std::path::Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn complete(lab: &Lab) {
    wait_until("the import", Duration::from_secs(60), || {
        lab.status()["import"]["complete"] == true
    });
}

fn the_systems_own_folders_are_hidden_and_stay_on_the_drive(mut lab: Lab) {
    lab.unmount();
    lab.take_new_cache();
    with_a_past(&lab);
    lab.mount(&[]);
    complete(&lab);
    assert_eq!(names(&lab.mnt), [".Trash-1000", "._a", "a", "dir"]);
    assert_eq!(
        names(&lab.m("dir")),
        ["._b", "System Volume Information", "b"]
    );
    // What a program writes beside a file it reads back, and it goes with its directory.
    fs::write(lab.m("._new"), "mine").unwrap();
    assert_eq!(fs::read(lab.m("._new")).unwrap(), b"mine");
    lab::sh(&lab.mnt, "rm -r dir .Trash-1000");
    lab.flush();
    for name in SYSTEM {
        assert!(lab.d(name).exists(), "{name}");
    }
    assert!(!lab.d("dir").exists());
    assert_eq!(fs::read(lab.d("found.000/file0000.chk")).unwrap(), b"x\n");
    lab.finish();
}

fn a_program_may_use_such_a_name_without_meeting_what_is_there(mut lab: Lab) {
    lab.unmount();
    lab.take_new_cache();
    with_a_past(&lab);
    lab.mount(&[]);
    for name in SYSTEM {
        fs::create_dir(lab.m(name)).unwrap();
        fs::write(lab.m(name).join("mine"), name).unwrap();
    }
    lab.flush();
    lab.unmount();
    lab.take_new_cache();
    lab.mount(&[]);
    for name in SYSTEM {
        assert_eq!(names(&lab.m(name)), ["mine"], "{name}");
        assert!(!lab.d(name).join("mine").exists(), "{name}");
    }
    lab.finish();
}

fn they_are_shown_to_who_asks_for_them(mut lab: Lab) {
    lab.unmount();
    lab.take_new_cache();
    with_a_past(&lab);
    lab.mount(&["--show-system"]);
    let shown = names(&lab.mnt);
    for name in SYSTEM {
        assert!(shown.iter().any(|shown| shown == name), "{name}");
    }
    assert!(!shown.iter().any(|name| name == ".ferryfs"));
    assert_eq!(fs::read(lab.m("found.000/file0000.chk")).unwrap(), b"x\n");
    lab.finish();
}

on_both_drives!(
    the_systems_own_folders_are_hidden_and_stay_on_the_drive,
    a_program_may_use_such_a_name_without_meeting_what_is_there,
    they_are_shown_to_who_asks_for_them,
);

#[test]
fn the_checkers_own_lost_and_found_is_hidden_and_what_a_check_has_rescued_is_not() {
    let Some(mut lab) = Lab::new(Kind::Ext4Dir) else {
        return;
    };
    lab::sh(
        lab.drive.path(),
        "mkdir -m 700 lost+found; mkdir LOST+FOUND; echo x > LOST+FOUND/rescued",
    );
    lab.mount(&[]);
    complete(&lab);
    assert_eq!(names(&lab.mnt), ["LOST+FOUND"]);
    let shown = lab
        .ferryfs(&["status", &text(&lab.mnt)])
        .code(exit::DONE)
        .stdout;
    assert!(!shown.contains("importing"), "{shown}");
    lab.finish();
}

#[test]
fn a_file_that_is_read_in_sequence_is_soon_answered_without_waiting() {
    const PART: usize = 128 << 10;
    let cache = tempfile::tempdir().unwrap();
    let memory = MemoryBackend::new(MemoryOptions::default());
    let bytes: Vec<u8> = (0..16 * PART).map(|n| (n / 300 % 251) as u8).collect();
    let mut file = memory.create(&RelPath::fixed("film")).unwrap();
    file.append(&bytes).unwrap();
    file.finish(Timestamp(7)).unwrap();
    let drive = Arc::new(Drive::guarded(Duration::from_secs(60)).unwrap());
    drive.attach(Arc::new(memory));
    let fs = served_from(drive.clone(), cache.path());
    let film = Name::new(b"film").unwrap();
    let film = fs.lookup(&CTX, Ino::ROOT, &film).unwrap().unwrap();
    let mode = OpenMode {
        write: false,
        truncate: false,
    };
    let handle = fs.open(&CTX, film.ino, mode).unwrap();
    let mut buffer = vec![0; PART];
    let mut reads_right = |ctx: &Ctx, part: usize| {
        let got = fs.read(ctx, handle, (part * PART) as u64, &mut buffer)?;
        assert!(buffer[..got] == bytes[part * PART..][..PART], "part {part}");
        Ok::<(), FsError>(())
    };
    let hasty = Ctx {
        may_wait: false,
        ..CTX
    };
    assert!(matches!(reads_right(&hasty, 0), Err(FsError::WouldWait)));
    for part in 0..3 {
        reads_right(&CTX, part).unwrap();
    }
    for part in 3..16 {
        let end = Instant::now() + Duration::from_secs(30);
        while let Err(error) = reads_right(&hasty, part) {
            assert!(matches!(error, FsError::WouldWait), "{error}");
            assert!(Instant::now() < end, "part {part} is not read ahead");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    drive.detach();
    assert!(matches!(reads_right(&CTX, 15), Err(FsError::Detached)));
    fs.close_idle_readers(true);
    fs.release(&CTX, handle).unwrap();
}
