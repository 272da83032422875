//! What every backend must do, held against all of them: a directory on the machine's own file
//! system, a real exFAT volume, the one in memory in both tempers, and the faulty one while it does
//! not fail.

use crate::{conformance, exfat};

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, symlink};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ferryfs::core::{Capabilities, FileKind, Timestamp};
use ferryfs::drive::Backend;
use ferryfs::drive::faulty::FaultyBackend;
use ferryfs::drive::memory::{Crash, MemNode, MemoryBackend, MemoryOptions, differences};
use ferryfs::drive::mounted::MountedDir;
use ferryfs::drive::probe::probe;
use ferryfs::drive::supervised::Watch;

use conformance::{WHEN, conformance, errno, get, names, path, put};
use exfat::ExfatImage;

/// What a probe finds on a file system made for Linux, in a directory there.
fn everything(dir: &std::path::Path) -> Capabilities {
    let meta = std::fs::metadata(dir).unwrap();
    let is_root = nix::unistd::geteuid().is_root();
    let mut spaces = Capabilities::everything().xattrs;
    if !is_root {
        spaces.truncate(1);
    }
    Capabilities {
        owners: is_root,
        own: Some((meta.uid(), meta.gid())),
        devices: is_root,
        xattrs: spaces,
        ..Capabilities::everything()
    }
}

/// What it finds on exFAT under the driver in userspace, which is laxer than the kernel's about
/// dots at the end, and keeps whole seconds only.
fn exfat_in_userspace() -> Capabilities {
    let controls = 0x01..=0x1f;
    Capabilities {
        forbidden: controls.chain(*b"\"*:<>?\\|").collect(),
        case_insensitive: true,
        utf8_only: true,
        no_trailing_dot: true,
        no_trailing_space: true,
        max_utf16: Some(255),
        time_granularity_ns: 1_000_000_000,
        ..Capabilities::plain()
    }
}

#[test]
fn a_directory_of_this_machine_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let count = AtomicU32::new(0);
    let make = || {
        let n = count.fetch_add(1, Ordering::Relaxed);
        let root = dir.path().join(n.to_string());
        std::fs::create_dir(&root).unwrap();
        MountedDir::open(&root).unwrap()
    };
    conformance(make);
    let found = probe(&make(), &path("scratch")).unwrap();
    // How much room there is for attributes is the file system's own affair.
    assert!(found.xattr_bytes >= 800, "{}", found.xattr_bytes);
    let expected = Capabilities {
        xattr_bytes: found.xattr_bytes,
        ..everything(dir.path())
    };
    assert_eq!(found, expected);
}

#[test]
fn the_backend_in_memory_conforms_in_both_tempers() {
    conformance(|| MemoryBackend::new(MemoryOptions::default()));
    conformance(|| MemoryBackend::new(MemoryOptions::exfat_like()));
    conformance(|| MemoryBackend::new(MemoryOptions::linux_like()));
    let probed = |options| probe(&MemoryBackend::new(options), &path("scratch")).unwrap();
    assert_eq!(
        probed(MemoryOptions::linux_like()),
        Capabilities::everything()
    );
    let between = Capabilities {
        symlinks: true,
        target_bytes: 4095,
        permissions: true,
        ..Capabilities::plain()
    };
    assert_eq!(probed(MemoryOptions::default()), between);
    let expected = Capabilities {
        time_granularity_ns: 10_000_000,
        ..exfat_in_userspace()
    };
    assert_eq!(probed(MemoryOptions::exfat_like()), expected);
}

#[test]
fn a_faulty_backend_without_a_fault_conforms() {
    conformance(|| FaultyBackend::new(MemoryBackend::default()));
}

#[test]
fn a_guarded_backend_that_answers_conforms_for_readers_and_for_the_flush() {
    let watch = Watch::start(Duration::from_secs(60)).unwrap();
    conformance(|| watch.over(Arc::new(MemoryBackend::default())).0);
    conformance(|| watch.over(Arc::new(MemoryBackend::default())).1);
    let dir = tempfile::tempdir().unwrap();
    let count = AtomicU32::new(0);
    conformance(|| {
        let n = count.fetch_add(1, Ordering::Relaxed);
        let root = dir.path().join(n.to_string());
        std::fs::create_dir(&root).unwrap();
        watch.over(Arc::new(MountedDir::open(&root).unwrap())).0
    });
    assert!(watch.stalled().is_none());
    assert_eq!(watch.stuck(), 0);
}

#[test]
fn a_real_exfat_volume_conforms_and_stays_sound() {
    let Some(mut image) = ExfatImage::new(160) else {
        return;
    };
    let count = AtomicU32::new(0);
    let base = image.path();
    let make = || {
        let n = count.fetch_add(1, Ordering::Relaxed);
        let root = base.join(n.to_string());
        std::fs::create_dir(&root).unwrap();
        MountedDir::open(&root).unwrap()
    };
    conformance(make);
    assert_eq!(
        probe(&make(), &path("scratch")).unwrap(),
        exfat_in_userspace()
    );
    image.fsck().unwrap();
}

#[test]
fn probing_leaves_nothing_behind_not_even_what_an_interrupted_probe_left() {
    let dir = tempfile::tempdir().unwrap();
    let backend = MountedDir::open(dir.path()).unwrap();
    backend.make_dir(&path("home")).unwrap();
    backend.make_dir(&path("home/scratch")).unwrap();
    put(&backend, "home/scratch/plain", b"left over");
    backend
        .make_symlink(b"/etc", &path("home/scratch/symlink"))
        .unwrap();
    probe(&backend, &path("home/scratch")).unwrap();
    assert_eq!(names(&backend, "home"), BTreeSet::new());
    assert_eq!(names(&backend, ""), BTreeSet::from(["home".to_string()]));
}

#[test]
fn no_link_leads_out_of_the_backend() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    std::fs::create_dir_all(dir.path().join("root")).unwrap();
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret"), b"secret").unwrap();
    symlink(&outside, dir.path().join("root/out")).unwrap();
    symlink("../outside/secret", dir.path().join("root/link")).unwrap();
    let backend = MountedDir::open(&dir.path().join("root")).unwrap();
    put(&backend, "f", b"f");

    assert!(backend.open(&path("link")).is_err());
    assert!(backend.create(&path("link")).is_err());
    assert!(backend.read_dir(&path("out")).is_err());
    assert!(backend.metadata(&path("out/secret")).is_err());
    assert!(backend.open(&path("out/secret")).is_err());
    assert!(backend.create(&path("out/new")).is_err());
    assert!(backend.make_dir(&path("out/new")).is_err());
    assert!(backend.rename(&path("f"), &path("out/f")).is_err());
    assert!(
        backend
            .rename(&path("out/secret"), &path("stolen"))
            .is_err()
    );
    assert!(backend.remove_file(&path("out/secret")).is_err());
    assert!(backend.set_modified(&path("out/secret"), WHEN).is_err());
    assert!(
        backend
            .make_hard_link(&path("out/secret"), &path("h"))
            .is_err()
    );

    // Setting the time of a link sets the link's own, and its target is told byte for byte.
    backend.set_modified(&path("link"), WHEN).unwrap();
    let meta = backend.metadata(&path("link")).unwrap();
    assert_eq!((meta.kind, meta.modified), (FileKind::Symlink, WHEN));
    assert_eq!(meta.target.as_deref(), Some(&b"../outside/secret"[..]));
    let secret = std::fs::metadata(outside.join("secret")).unwrap();
    assert_ne!(Timestamp::from(secret.modified().unwrap()), WHEN);
    assert_eq!(std::fs::read(outside.join("secret")).unwrap(), b"secret");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    // Replacing and removing act on the link itself.
    backend.rename(&path("f"), &path("link")).unwrap();
    backend.remove_file(&path("out")).unwrap();
    assert_eq!(std::fs::read(outside.join("secret")).unwrap(), b"secret");
}

#[test]
fn a_pipe_is_refused_without_waiting_for_its_other_end() {
    let dir = tempfile::tempdir().unwrap();
    nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let backend = MountedDir::open(dir.path()).unwrap();
    let error = backend.open(&path("pipe")).map(drop).unwrap_err();
    assert!(!error.is_gone() && !error.is_not_found(), "{error}");
    assert_eq!(
        backend.metadata(&path("pipe")).unwrap().kind,
        FileKind::Fifo
    );
}

#[test]
fn a_missing_root_is_a_missing_medium_and_not_a_missing_file() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("drive");
    assert_eq!(errno(MountedDir::open(&root)), Some(libc::ENOMEDIUM));
    std::fs::create_dir(&root).unwrap();
    let backend = MountedDir::open(&root).unwrap();
    std::fs::remove_dir(&root).unwrap();
    let error = backend.metadata(&path("f")).unwrap_err();
    assert!(error.is_gone() && !error.is_not_found(), "{error}");
}

#[test]
fn an_unmounted_drive_is_gone_and_its_empty_mount_point_stays_untouched() {
    let Some(mut image) = ExfatImage::new(64) else {
        return;
    };
    let backend = MountedDir::open(&image.path()).unwrap();
    put(&backend, "f", b"on the drive");
    backend.sync().unwrap();
    // No descriptor is held, so nothing keeps the drive from being ejected.
    image.unmount().unwrap();
    for outcome in [
        backend.metadata(&path("f")).map(drop),
        backend.metadata(&path("")).map(drop),
        backend.read_dir(&path("")).map(drop),
        backend.open(&path("f")).map(drop),
        backend.create(&path("g")).map(drop),
        backend.make_dir(&path("d")),
        backend.rename(&path("f"), &path("g")),
        backend.remove_file(&path("f")),
        backend.set_modified(&path(""), WHEN),
        backend.sync(),
        backend.space().map(drop),
    ] {
        let error = outcome.unwrap_err();
        assert_eq!(
            error.source.raw_os_error(),
            Some(libc::ENOMEDIUM),
            "{error}"
        );
    }
    assert_eq!(std::fs::read_dir(image.path()).unwrap().count(), 0);
    image.remount().unwrap();
    let again = MountedDir::open(&image.path()).unwrap();
    assert_eq!(get(&again, "f"), b"on the drive");
    image.fsck().unwrap();
}

#[test]
fn after_a_sync_the_medium_itself_holds_bytes_and_name() {
    let Some(image) = ExfatImage::new(16) else {
        return;
    };
    let backend = MountedDir::open(&image.path()).unwrap();
    let bytes = b"bytes that stand nowhere else on this volume";
    let on_medium = || {
        let medium = image.medium().unwrap();
        // exFAT writes names as UTF-16, fifteen units to a record.
        let name: Vec<u8> = "SyncedName"
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        let holds = |part: &[u8]| medium.windows(part.len()).any(|window| window == part);
        (holds(bytes), holds(&name))
    };
    put(&backend, "SyncedName", bytes);
    // Not asserted to be absent before: anyone's sync(2) could bring it there. Alone it takes the
    // kernel some 30 s.
    backend.sync().unwrap();
    assert_eq!(on_medium(), (true, true));
}

#[test]
fn names_longer_than_linux_has_them_are_listed_and_reached() {
    let Some(image) = ExfatImage::new(64) else {
        return;
    };
    // 100 characters, 300 bytes: a name that exFAT takes and Linux programs may make there.
    let longest = "\u{20ac}".repeat(255);
    std::fs::write(image.path().join("\u{20ac}".repeat(100)), b"").unwrap();
    let backend = MountedDir::open(&image.path()).unwrap();
    put(&backend, &longest, b"longest");
    let expected: BTreeSet<String> = ["\u{20ac}".repeat(100), longest.clone()].into();
    assert_eq!(names(&backend, ""), expected);
    assert_eq!(get(&backend, &longest), b"longest");
}

#[test]
fn a_crash_takes_what_was_not_synced_and_leaves_what_was() {
    let memory = MemoryBackend::default();
    put(&memory, "old", b"synced");
    memory.sync().unwrap();
    let synced = memory.tree();
    let mut open = memory.create(&path("new")).unwrap();
    open.append(b"never synced").unwrap();
    memory.rename(&path("old"), &path("moved")).unwrap();
    assert_eq!(differences(&memory.tree(), &synced).len(), 3);
    let before_the_crash = memory.snapshot();
    memory.crash_to_durable();
    assert_eq!(differences(&memory.tree(), &synced), Vec::<String>::new());
    assert_eq!(
        open.append(b"x").unwrap_err().raw_os_error(),
        Some(libc::EIO)
    );
    assert_eq!(get(&before_the_crash, "moved"), b"synced");
    let bytes = Arc::new(b"synced".to_vec());
    let old = MemNode::File {
        bytes,
        modified: WHEN,
    };
    assert_eq!(memory.durable_tree().get(&path("old")), Some(&old));
}

/// The draw itself is held by the unit tests beside it.
#[test]
fn after_a_random_crash_what_was_synced_stands_and_the_backend_still_conforms() {
    let (seed, unsound) = (AtomicU32::new(0), AtomicU32::new(0));
    for _ in 0..4 {
        conformance(|| {
            let memory = MemoryBackend::new(MemoryOptions::exfat_like());
            memory.make_dir(&path("dir")).unwrap();
            put(&memory, "dir/old", b"synced");
            put(&memory, "dir/touched", b"to be moved");
            memory.sync().unwrap();
            let mut open = memory.create(&path("dir/new")).unwrap();
            open.append(b"never synced").unwrap();
            memory.make_dir(&path("other")).unwrap();
            memory
                .rename(&path("dir/touched"), &path("other/moved"))
                .unwrap();
            let seed = seed.fetch_add(1, Ordering::Relaxed);
            memory.crash(Crash::Random(u64::from(seed)));
            assert_eq!(
                open.append(b"x").unwrap_err().raw_os_error(),
                Some(libc::EIO)
            );
            assert_eq!(get(&memory, "dir/old"), b"synced");
            unsound.fetch_add(u32::from(!memory.damage().is_empty()), Ordering::Relaxed);
            // All names of what shares clusters are removed before anything is made.
            let mut names: Vec<_> = memory.tree().into_keys().collect();
            names.sort_by_key(|path| std::cmp::Reverse(path.depth()));
            for name in names {
                if memory.remove_file(&name).is_err() {
                    memory.remove_dir(&name).unwrap();
                }
            }
            assert_eq!(memory.damage(), Vec::<String>::new());
            memory
        });
    }
    assert!(unsound.into_inner() > 0, "no crash left anything in doubt");
}

#[test]
fn a_full_backend_says_so_and_has_room_again_after_a_removal() {
    let memory = MemoryBackend::new(MemoryOptions {
        capacity: Some(10),
        ..MemoryOptions::default()
    });
    put(&memory, "f", b"12345678");
    let mut file = memory.create(&path("g")).unwrap();
    assert_eq!(
        file.append(b"12345").unwrap_err().raw_os_error(),
        Some(libc::ENOSPC)
    );
    assert_eq!(memory.space().unwrap().available, 0);
    memory.remove_file(&path("f")).unwrap();
    assert_eq!(memory.space().unwrap().available, 8);
    file.append(b"345").unwrap();
    file.finish(WHEN).unwrap();
    assert_eq!(get(&memory, "g"), b"12345");
}
