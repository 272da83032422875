//! No call leaves the root, whatever is below it: each call is tried through every kind of link,
//! with `openat2` and without it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::*;
use crate::drive::mounted::alive::allocation_unit;
use crate::sys::forbid::without_openat2;

/// A root with links that lead out of it, and a directory beside it that must not change.
struct Place {
    dir: tempfile::TempDir,
    backend: MountedDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let outside = dir.path().join("outside");
        for made in ["root/dir/sub", "outside/sub"] {
            fs::create_dir_all(dir.path().join(made)).unwrap();
        }
        fs::write(root.join("dir/file"), b"inside").unwrap();
        fs::write(outside.join("secret"), b"outside").unwrap();
        for (link, target) in LINKS {
            let target = target.replace("OUTSIDE", outside.to_str().unwrap());
            symlink(target, root.join(link)).unwrap();
        }
        nix::unistd::mkfifo(&root.join("pipe"), Mode::from_bits_truncate(0o666)).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(root.join("socket"));
        drop(socket.unwrap());
        let backend = MountedDir::open(&root).unwrap();
        Place { dir, backend }
    }

    /// Returns the state outside the root: names, types, sizes, permissions, times.
    fn outside(&self) -> Vec<String> {
        let mut seen = Vec::new();
        look(&self.dir.path().join("outside"), &mut seen);
        for entry in fs::read_dir(self.dir.path()).unwrap() {
            seen.push(format!("{:?}", entry.unwrap().file_name()));
        }
        seen.sort();
        seen
    }
}

/// Links by name, and their targets: a directory outside, by a relative and by an absolute path;
/// upwards; within the root.
const LINKS: [(&str, &str); 6] = [
    ("relative", "../outside"),
    ("absolute", "OUTSIDE"),
    ("up", "../outside/sub/.."),
    ("dir/twice", "../relative"),
    ("within", "dir"),
    ("self", "self"),
];

fn look(dir: &Path, seen: &mut Vec<String>) {
    let meta = fs::symlink_metadata(dir).unwrap();
    seen.push(format!(
        "{} {:o} {} {:?} {:?}",
        dir.display(),
        meta.permissions().mode(),
        meta.len(),
        meta.modified().unwrap(),
        meta.is_file().then(|| fs::read(dir).unwrap()),
    ));
    if meta.is_dir() {
        for entry in fs::read_dir(dir).unwrap() {
            look(&entry.unwrap().path(), seen);
        }
    }
}

fn path(text: &str) -> RelPath {
    RelPath::parse(text.as_bytes()).unwrap()
}

/// Runs `check` as usual, and without `openat2`.
fn either_way(check: impl Fn() + Sync) {
    check();
    without_openat2(Errno::ENOSYS, &check);
    without_openat2(Errno::EPERM, &check);
}

/// Makes every call on `path`; each must fail.
fn calls_on(backend: &MountedDir, path: &RelPath) -> Vec<(&'static str, bool)> {
    let sound = RelPath::fixed("dir/file");
    let new = RelPath::fixed("new");
    vec![
        ("read_dir", backend.read_dir(path).is_ok()),
        ("metadata", backend.metadata(path).is_ok()),
        ("open", backend.open(path).is_ok()),
        ("create", backend.create(path).is_ok()),
        ("make_dir", backend.make_dir(path).is_ok()),
        ("rename from", backend.rename(path, &new).is_ok()),
        ("rename to", backend.rename(&sound, path).is_ok()),
        ("remove_file", backend.remove_file(path).is_ok()),
        ("remove_dir", backend.remove_dir(path).is_ok()),
        (
            "set_modified",
            backend.set_modified(path, Timestamp(1)).is_ok(),
        ),
        ("make_symlink", backend.make_symlink(b"x", path).is_ok()),
        ("link from", backend.make_hard_link(path, &new).is_ok()),
        ("link to", backend.make_hard_link(&sound, path).is_ok()),
        (
            "set_permissions",
            backend.set_permissions(path, 0o777).is_ok(),
        ),
        (
            "make_node",
            backend.make_node(FileKind::Fifo, 0, path).is_ok(),
        ),
        (
            "set_owner",
            backend.set_owner(path, Some(1), Some(1)).is_ok(),
        ),
        ("xattrs", backend.xattrs(path).is_ok()),
        ("set_xattrs", backend.set_xattrs(path, &an_xattr()).is_ok()),
    ]
}

fn an_xattr() -> Xattrs {
    Xattrs::from([(b"user.x"[..].into(), b"x"[..].into())])
}

#[test]
fn no_call_goes_through_a_link() {
    either_way(|| {
        let place = Place::new();
        let before = place.outside();
        for (link, _) in LINKS {
            for below in ["secret", "sub", "file", "new"] {
                let through = path(&format!("{link}/{below}"));
                for (call, went_through) in calls_on(&place.backend, &through) {
                    assert!(!went_through, "{call} {through}");
                }
            }
        }
        assert_eq!(place.outside(), before);
        let inside = fs::read(place.backend.root_path().join("dir/file")).unwrap();
        assert_eq!(inside, b"inside");
    });
}

#[test]
fn a_call_on_a_link_is_a_call_on_the_link_itself() {
    either_way(|| {
        let place = Place::new();
        let (backend, before) = (&place.backend, place.outside());
        for (link, _) in LINKS {
            let link = path(link);
            let kind = backend.metadata(&link).unwrap().kind;
            assert_eq!(kind, FileKind::Symlink, "{link}");
            assert!(backend.open(&link).is_err(), "{link}");
            assert!(backend.read_dir(&link).is_err(), "{link}");
            assert!(backend.create(&link).is_err(), "{link}");
            assert!(backend.make_dir(&link).is_err(), "{link}");
            assert!(backend.remove_dir(&link).is_err(), "{link}");
            backend.set_modified(&link, Timestamp(1)).unwrap();
            // Most kernels refuse this; else it changes the link itself.
            let _ = backend.set_permissions(&link, 0o700);
            // The same, if the caller has the right.
            let _ = backend.set_owner(&link, Some(1), Some(1));
            assert!(backend.set_xattrs(&link, &an_xattr()).is_err());
            assert_eq!(backend.xattrs(&link).unwrap(), Xattrs::new());
            assert!(backend.make_node(FileKind::Fifo, 0, &link).is_err());
            backend
                .make_hard_link(&link, &RelPath::fixed("further"))
                .unwrap();
            let further = backend.metadata(&RelPath::fixed("further")).unwrap();
            assert_eq!(further.kind, FileKind::Symlink);
            backend.remove_file(&RelPath::fixed("further")).unwrap();
            backend.rename(&link, &RelPath::fixed("moved")).unwrap();
            backend.remove_file(&RelPath::fixed("moved")).unwrap();
        }
        assert_eq!(place.outside(), before);
    });
}

#[test]
fn what_is_no_file_is_not_opened_and_nobody_waits_for_it() {
    either_way(|| {
        let place = Place::new();
        for name in ["pipe", "socket", "dir", "self"] {
            assert!(place.backend.open(&path(name)).is_err(), "{name}");
        }
    });
}

#[test]
fn a_tree_deeper_than_one_call_reaches_is_reached() {
    either_way(|| {
        let place = Place::new();
        let (backend, name) = (&place.backend, Name::new(&[b'd'; 150]).unwrap());
        let mut levels = vec![RelPath::fixed("deep")];
        while levels.last().is_some_and(|p| p.as_bytes().len() <= 5000) {
            levels.push(levels.last().unwrap().join(&name));
        }
        for level in &levels {
            backend.make_dir(level).unwrap();
        }
        let file = levels.last().unwrap().join(&name);
        let made = backend.create(&file).unwrap();
        made.finish(Timestamp(0)).unwrap();
        assert_eq!(backend.read_dir(levels.last().unwrap()).unwrap().len(), 1);
        assert!(backend.open(&file).is_ok());
        let top = RelPath::fixed("top");
        backend.rename(&file, &top).unwrap();
        assert!(backend.metadata(&top).is_ok());
        for level in levels.iter().rev() {
            backend.remove_dir(level).unwrap();
        }
    });
}

/// The replacements of the root: each call must fail with ENOMEDIUM, and no replacement may change.
#[test]
fn another_directory_in_the_place_of_the_root_is_a_missing_medium() {
    either_way(|| {
        for swap in ["link", "link above", "directory", "file", "nothing"] {
            let place = Place::new();
            let top = fs::canonicalize(place.dir.path()).unwrap();
            fs::create_dir(top.join("above")).unwrap();
            fs::rename(top.join("root"), top.join("above/root")).unwrap();
            let root = top.join("above/root");
            let backend = MountedDir::open(&root).unwrap();
            fs::create_dir_all(top.join("outside/root/dir")).unwrap();
            fs::write(top.join("outside/root/dir/file"), b"secret").unwrap();
            let before = place.outside();
            match swap {
                "link above" => {
                    fs::rename(top.join("above"), top.join("away")).unwrap();
                    symlink(top.join("outside"), top.join("above")).unwrap();
                }
                _ => fs::rename(&root, top.join("away")).unwrap(),
            }
            match swap {
                "link" => symlink(top.join("outside/root"), &root).unwrap(),
                "directory" => fs::rename(top.join("outside/root"), &root).unwrap(),
                "file" => fs::write(&root, b"").unwrap(),
                _ => {}
            }
            let file = RelPath::fixed("dir/file");
            for (call, went) in calls_on(&backend, &file) {
                assert!(!went, "{swap}: {call}");
            }
            let error = backend.metadata(&file).unwrap_err();
            assert!(error.is_gone(), "{swap}: {error}");
            if swap == "directory" {
                fs::rename(&root, top.join("outside/root")).unwrap();
            }
            let _ = fs::remove_file(&root);
            match swap {
                "link above" => {
                    fs::remove_file(top.join("above")).unwrap();
                    fs::rename(top.join("away"), top.join("above")).unwrap();
                }
                _ => fs::rename(top.join("away"), &root).unwrap(),
            }
            let inside = fs::read(root.join("dir/file")).unwrap();
            assert_eq!(inside, b"inside", "{swap}");
            assert!(backend.metadata(&file).is_ok(), "{swap}: it is back");
            fs::remove_dir_all(top.join("above")).unwrap();
            let after: Vec<String> = place.outside();
            let of = |seen: &[String]| -> Vec<String> {
                let outside = top.join("outside").display().to_string();
                let is_file = |line: &&String| line.starts_with(&outside) && line.contains("Some");
                seen.iter().filter(is_file).cloned().collect()
            };
            assert_eq!(of(&after), of(&before), "{swap}");
        }
    });
}

#[test]
fn links_in_the_path_are_followed_once_when_it_is_opened() {
    let place = Place::new();
    let top = place.dir.path();
    symlink("root", top.join("link")).unwrap();
    let backend = MountedDir::open(&top.join("link")).unwrap();
    fs::remove_file(top.join("link")).unwrap();
    symlink("outside", top.join("link")).unwrap();
    assert!(backend.metadata(&RelPath::fixed("dir/file")).is_ok());
    assert!(backend.metadata(&RelPath::fixed("secret")).is_err());
}

#[test]
fn root_opens_nothing_to_which_another_user_can_change_the_way() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let place = Place::new();
    let theirs = place.dir.path().join("theirs");
    fs::create_dir_all(theirs.join("drive")).unwrap();
    std::os::unix::fs::chown(theirs.join("drive"), Some(12_345), None).unwrap();
    MountedDir::open(&theirs.join("drive")).unwrap();
    std::os::unix::fs::chown(&theirs, Some(12_345), None).unwrap();
    let refused = MountedDir::open(&theirs.join("drive")).unwrap_err();
    assert!(
        refused.to_string().contains("belongs to user 12345"),
        "{refused}"
    );
}

#[test]
fn the_allocation_unit_is_what_a_small_file_takes_else_what_statfs_says() {
    const MIB: u64 = 1 << 20;
    for (fragment, size, taken, unit) in [
        // ext4, exFAT with large clusters, ext4 with clusters of 64 KiB
        (4096, 300, 4096, 4096),
        (MIB, 300, MIB, MIB),
        (4096, 300, 65536, 65536),
        // NFS whose server reports it, and one whose server does not; SMB; no marker yet
        (MIB, 300, 4096, 4096),
        (4 * MIB, 300, 512, 4096),
        (65536, 300, 512, 65536),
        (32768, 0, 0, 32768),
        (0, 0, 0, 4096),
    ] {
        assert_eq!(
            allocation_unit(fragment, size, taken),
            unit,
            "{fragment}, {size} bytes in {taken}"
        );
    }
}

#[test]
fn a_fresh_look_and_a_list_of_names_say_what_the_others_say() {
    let place = Place::new();
    let backend = &place.backend;
    for path in ["", "dir", "dir/file", "pipe", "relative"].map(RelPath::fixed) {
        let known = backend.metadata(&path).unwrap();
        assert_eq!(backend.metadata_now(&path).unwrap(), known, "{path}");
    }
    for (link, _) in LINKS {
        let below = RelPath::fixed(link).join_path(&RelPath::fixed("secret"));
        assert!(backend.metadata_now(&below).is_err());
        assert!(backend.names_in(&RelPath::fixed(link)).is_err());
    }
    let missing = backend.metadata_now(&RelPath::fixed("dir/none"));
    assert!(missing.unwrap_err().is_not_found());
    let listed = backend.read_dir(&RelPath::root()).unwrap();
    let names: Vec<Name> = listed.into_iter().map(|entry| entry.name).collect();
    assert_eq!(backend.names_in(&RelPath::root()).unwrap(), names);
}

/// Another user puts another directory in the place of the root, or of the staging directory.
#[test]
fn what_a_phase_keeps_open_leads_nowhere_else() {
    let place = Place::new();
    let (backend, root) = (&place.backend, place.dir.path().join("root"));
    let staging = layout::staging_dir(crate::core::BatchNo(1));
    fs::create_dir_all(root.join(staging.as_os_str())).unwrap();
    let slot = |name: &str| staging.join(&Name::new(name.as_bytes()).unwrap());
    let before = place.outside();

    let phase = backend.keep_open();
    drop(backend.create(&slot("one")).unwrap());
    let moved = root.join(".ferryfs/moved");
    fs::rename(root.join(staging.as_os_str()), &moved).unwrap();
    symlink(
        place.dir.path().join("outside"),
        root.join(staging.as_os_str()),
    )
    .unwrap();
    drop(backend.create(&slot("two")).unwrap());
    assert_eq!(fs::read_dir(&moved).unwrap().count(), 2);
    assert!(
        backend.read_dir(&staging).is_err(),
        "a link is not followed"
    );

    let aside = place.dir.path().join("aside");
    fs::rename(&root, &aside).unwrap();
    symlink("outside", &root).unwrap();
    backend.make_dir(&RelPath::fixed("dir/made")).unwrap();
    assert!(aside.join("dir/made").is_dir());
    let gone = backend.check_alive(Look::Glance).unwrap_err();
    assert_eq!(gone.source.raw_os_error(), Some(libc::ENOMEDIUM));
    drop(phase);
    let gone = backend.make_dir(&RelPath::fixed("dir/late")).unwrap_err();
    assert_eq!(gone.source.raw_os_error(), Some(libc::ENOMEDIUM));

    fs::remove_file(&root).unwrap();
    fs::rename(&aside, &root).unwrap();
    assert_eq!(place.outside(), before);
}
