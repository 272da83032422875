//! A directory that an ordinary user owns, and root at work on it: what that user has planted in
//! `.ferryfs` gives him no rights and shows him nothing. And root's own drive, on which the same is
//! done as it is written.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use ferryfs::core::{BatchNo, ContentHash, RelPath, Timestamp};
use ferryfs::format::expectations::Expectations;
use ferryfs::format::record::BatchRecord;
use ferryfs::format::steps::{
    AttributeStep, ClearStep, FileContent, Node, PlaceStep, PlainKind, SlotNo, Steps,
};
use ferryfs::format::{marker, record};

use crate::lab::{Backend, Done, Lab, assert_content, exit, run, skip, text, write};

const BATCH: BatchNo = BatchNo(0x63);
const RECORD: &str = ".ferryfs/batches/0000000000000063.rec";
const STAGED: &str = ".ferryfs/staging/0000000000000063";

/// One effective capability, as `setcap cap_setuid+ep` gives it.
const CAPABILITY: [u8; 20] = [
    1, 0, 0, 2, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

fn path(text: &str) -> RelPath {
    RelPath::parse(text.as_bytes()).expect("a path")
}

/// A drive that root has enrolled, and the user who is to have it.
struct Scene {
    lab: Lab,
    user: (u32, u32),
}

impl Scene {
    fn new() -> Option<Scene> {
        if !nix::unistd::geteuid().is_root() {
            skip("working on another user's directory needs root");
            return None;
        }
        let Some(nobody) = nix::unistd::User::from_name("nobody").ok().flatten() else {
            skip("there is no user nobody");
            return None;
        };
        let mut lab = Lab::mounted(Backend::Ext4Dir)?;
        write(&lab.m("a"), b"a");
        lab.unmount();
        let user = (nobody.uid.as_raw(), nobody.gid.as_raw());
        Some(Scene { lab, user })
    }

    /// All of the drive becomes the user's, as if he had made it.
    fn give_away(&self) {
        for path in all(self.lab.drive.path()) {
            fs::set_permissions(&path, private(&path)).expect("chmod");
            self.own(&path);
        }
    }

    fn own(&self, path: &Path) {
        chown(path, Some(self.user.0), Some(self.user.1)).expect("chown");
    }

    /// Plants a record of some other cache, with what is staged for it, as whoever has the drive's
    /// directory.
    fn plant(&self, steps: Steps<FileContent>, staged: &[&[u8]]) {
        let bytes = fs::read(self.lab.d(".ferryfs/volume.json")).expect("read the marker");
        let record = BatchRecord {
            volume: marker::decode(&bytes).expect("a marker").id,
            batch: BATCH,
            created: Timestamp(0),
            origin: *b"of another cache",
            steps,
            known: Expectations::default(),
            catalog: None,
        };
        let bytes = record::encode(&record);
        record::decode(&bytes).expect("a record that may be carried out");
        write(&self.lab.d(RECORD), &bytes);
        fs::create_dir_all(self.lab.d(STAGED)).expect("mkdir");
        for (slot, bytes) in staged.iter().enumerate() {
            write(&self.lab.d(STAGED).join(format!("s{slot:08x}")), bytes);
        }
        let owner = fs::metadata(self.lab.drive.path()).expect("stat").uid();
        if owner == self.user.0 {
            self.own(&self.lab.d(RECORD));
            for path in all(&self.lab.d(STAGED)) {
                self.own(&path);
            }
        }
    }

    fn recover(&self) -> Done {
        let drive = text(self.lab.drive.path());
        self.lab.ferryfs(&["recover", &drive])
    }

    /// Has root's own mount meet the drive; gives what it says of it.
    fn mount(&mut self) -> String {
        self.lab.remount();
        let said = self.lab.status()["attention"].to_string();
        self.lab.unmount();
        said
    }
}

/// A directory and everything in it.
fn all(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![dir.to_path_buf()];
    if fs::symlink_metadata(dir).expect("stat").is_dir() {
        for entry in fs::read_dir(dir).expect("list") {
            found.extend(all(&entry.expect("list").path()));
        }
    }
    found
}

/// Nothing but its owner's.
fn private(path: &Path) -> fs::Permissions {
    let is_dir = fs::symlink_metadata(path).expect("stat").is_dir();
    fs::Permissions::from_mode(if is_dir { 0o755 } else { 0o644 })
}

fn install(slot: u32, to: &str, bytes: &[u8]) -> PlaceStep<FileContent> {
    PlaceStep::Install {
        slot: SlotNo(slot),
        to: path(to),
        content: FileContent {
            size: bytes.len() as u64,
            hash: ContentHash(*blake3::hash(bytes).as_bytes()),
            modified: Timestamp(1_700_000_000_000_000_000),
        },
    }
}

/// A file that is root's, with every bit and a capability, and a device that is the memory of the
/// machine.
fn greedy() -> (Steps<FileContent>, [&'static [u8]; 2]) {
    let shell: &[u8] = b"a shell";
    let mut attributes = AttributeStep::new(path("shell"));
    attributes.mode = Some(0o6755);
    (attributes.owner, attributes.group) = (Some(0), Some(0));
    attributes.xattrs = Some(vec![
        (b"security.capability"[..].into(), CAPABILITY.into()),
        (b"trusted.x"[..].into(), b"1"[..].into()),
        (b"user.kept"[..].into(), b"1"[..].into()),
    ]);
    let mut device = AttributeStep::new(path("memory"));
    device.mode = Some(0o666);
    let steps = Steps {
        clear: vec![],
        place: vec![
            PlaceStep::MakeDir { path: path("new") },
            install(0, "shell", shell),
            install(1, "new/data", b"data"),
            PlaceStep::InstallNode {
                slot: SlotNo(2),
                to: path("memory"),
                node: Node::CharDevice { rdev: 0x101 },
            },
        ],
        attributes: vec![device, attributes],
    };
    (steps, [shell, b"data"])
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let path = CString::new(text(path)).expect("no NUL");
    let name = CString::new(name).expect("no NUL");
    let mut value = vec![0_u8; 4096];
    // SAFETY: both names end with NUL, and the buffer has the length that is told.
    let got = unsafe {
        libc::lgetxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    value.truncate(usize::try_from(got).ok()?);
    Some(value)
}

#[track_caller]
fn assert_nothing_was_gained(scene: &Scene) {
    let lab = &scene.lab;
    assert!(
        fs::symlink_metadata(lab.d("memory")).is_err(),
        "a device was made"
    );
    assert_content(lab.d("shell"), b"a shell");
    assert_content(lab.d("new/data"), b"data");
    let shell = fs::metadata(lab.d("shell")).expect("stat");
    assert_eq!(shell.mode() & 0o7777, 0o755);
    assert_eq!((shell.uid(), shell.gid()), scene.user);
    assert_eq!(xattr(&lab.d("shell"), "security.capability"), None);
    assert_eq!(xattr(&lab.d("shell"), "trusted.x"), None);
    assert_eq!(
        xattr(&lab.d("shell"), "user.kept").as_deref(),
        Some(&b"1"[..])
    );
    for path in all(lab.drive.path()) {
        let meta = fs::symlink_metadata(&path).expect("stat");
        let kind = meta.file_type();
        assert!(!kind.is_char_device() && !kind.is_block_device());
        assert!(
            meta.is_dir() || meta.mode() & 0o6000 == 0,
            "{}",
            path.display()
        );
    }
}

#[test]
fn a_record_that_another_user_planted_gives_no_rights_by_recover() {
    let Some(scene) = Scene::new() else { return };
    scene.give_away();
    let (steps, staged) = greedy();
    scene.plant(steps, &staged);
    let done = scene.recover().code(exit::LEFT_BEHIND);
    for word in [
        "memory",
        "a device",
        "shell",
        "set-user-ID",
        "owner and group",
        "security.*",
    ] {
        assert!(done.stdout.contains(word), "{word}: {}", done.stdout);
    }
    assert_nothing_was_gained(&scene);
    // What root made in it is his who wrote the record.
    let made = fs::metadata(scene.lab.d("new")).expect("stat");
    assert_eq!((made.uid(), made.gid()), scene.user);
    scene.lab.finish();
}

#[test]
fn a_record_that_another_user_planted_gives_no_rights_by_mount() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.give_away();
    let (steps, staged) = greedy();
    scene.plant(steps, &staged);
    let said = scene.mount();
    for word in ["memory", "a device", "set-user-ID", "security.*"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert_nothing_was_gained(&scene);
    scene.lab.finish();
}

/// One directory of many on the way is another user's, or may be written to by all: that is enough.
#[test]
fn one_directory_that_others_may_write_to_is_enough() {
    let Some(scene) = Scene::new() else { return };
    let (steps, staged) = greedy();
    for (at, mode) in [
        (".ferryfs/batches", 0o777),
        (".ferryfs", 0o777),
        ("", 0o777),
    ] {
        let dir = scene.lab.d(at);
        let before = fs::metadata(&dir).expect("stat").permissions();
        fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).expect("chmod");
        scene.plant(steps.clone(), &staged);
        scene.recover();
        fs::set_permissions(&dir, before).expect("chmod");
        assert!(fs::symlink_metadata(scene.lab.d("memory")).is_err(), "{at}");
        let shell = fs::metadata(scene.lab.d("shell"));
        assert!(shell.is_err() || shell.is_ok_and(|meta| meta.mode() & 0o6000 == 0));
        for left in ["shell", RECORD] {
            let _ = fs::remove_file(scene.lab.d(left));
        }
        for left in ["new", STAGED, ".ferryfs/lost+found"] {
            let _ = fs::remove_dir_all(scene.lab.d(left));
        }
        let _ = fs::remove_file(scene.lab.d(".ferryfs/batches/0000000000000063.done"));
    }
    scene.lab.finish();
}

/// The user owns the top of the drive, and root keeps something in it that the user cannot reach.
#[test]
fn a_record_reaches_only_what_its_author_could_reach() {
    let Some(scene) = Scene::new() else { return };
    let lab = &scene.lab;
    scene.give_away();
    fs::create_dir(lab.d("roots")).expect("mkdir");
    write(&lab.d("roots/secret"), b"of root");
    write(&lab.d("mine"), b"of root, in his directory");
    fs::set_permissions(lab.d("roots"), fs::Permissions::from_mode(0o700)).expect("chmod");
    fs::set_permissions(lab.d("mine"), fs::Permissions::from_mode(0o600)).expect("chmod");
    let mut open = AttributeStep::new(path("mine"));
    open.mode = Some(0o666);
    open.xattrs = Some(vec![(b"user.x"[..].into(), b"1"[..].into())]);
    let mut reach = AttributeStep::new(path("roots"));
    reach.mode = Some(0o777);
    (reach.owner, reach.group) = (Some(scene.user.0), Some(scene.user.1));
    let stolen = PlaceStep::Attach {
        slot: SlotNo(1),
        to: path("stolen"),
        kind: PlainKind::File,
    };
    let moved = PlaceStep::Attach {
        slot: SlotNo(2),
        to: path("taken"),
        kind: PlainKind::Directory,
    };
    let detach = |from: &str, slot, kind| ClearStep::Detach {
        from: path(from),
        slot: SlotNo(slot),
        kind,
    };
    let linked = PlaceStep::Link {
        from: path("mine"),
        to: path("linked"),
    };
    for (what, steps) in [
        (
            "attributes",
            Steps {
                attributes: vec![open, reach],
                ..Steps::default()
            },
        ),
        (
            "a file moved out",
            Steps {
                clear: vec![detach("roots/secret", 1, PlainKind::File)],
                place: vec![stolen],
                ..Steps::default()
            },
        ),
        (
            "a directory moved",
            Steps {
                clear: vec![detach("roots", 2, PlainKind::Directory)],
                place: vec![moved],
                ..Steps::default()
            },
        ),
        (
            "a file replaced",
            Steps {
                place: vec![install(0, "roots/secret", b"planted")],
                ..Steps::default()
            },
        ),
        (
            "a further name",
            Steps {
                place: vec![linked],
                ..Steps::default()
            },
        ),
        (
            "a file removed",
            Steps {
                clear: vec![ClearStep::RemoveFile {
                    path: path("roots/secret"),
                }],
                ..Steps::default()
            },
        ),
    ] {
        scene.plant(steps, &[b"planted"]);
        scene.recover();
        assert_content(lab.d("roots/secret"), b"of root");
        assert_content(lab.d("mine"), b"of root, in his directory");
        let roots = fs::metadata(lab.d("roots")).expect("stat");
        assert_eq!((roots.mode() & 0o7777, roots.uid()), (0o700, 0), "{what}");
        let mine = fs::metadata(lab.d("mine")).expect("stat");
        assert_eq!((mine.mode() & 0o7777, mine.uid()), (0o600, 0), "{what}");
        assert_eq!(xattr(&lab.d("mine"), "user.x"), None, "{what}");
        assert!(!lab.d("stolen").is_file(), "{what}");
        let taken = fs::read_dir(lab.d("taken")).map_or(0, Iterator::count);
        assert_eq!(taken, 0, "{what}");
        for left in [RECORD, ".ferryfs/batches/0000000000000063.done", "linked"] {
            let _ = fs::remove_file(lab.d(left));
        }
        for left in [STAGED, "stolen", "taken", ".ferryfs/lost+found"] {
            let _ = fs::remove_dir_all(lab.d(left));
        }
    }
    scene.lab.finish();
}

#[test]
fn roots_own_interrupted_batch_is_finished_as_it_is_written() {
    let Some(scene) = Scene::new() else { return };
    let (steps, staged) = greedy();
    scene.plant(steps, &staged);
    scene.recover().code(exit::DONE);
    let lab = &scene.lab;
    let memory = fs::symlink_metadata(lab.d("memory")).expect("stat");
    assert!(memory.file_type().is_char_device());
    assert_eq!((memory.rdev(), memory.mode() & 0o7777), (0x101, 0o666));
    let shell = fs::metadata(lab.d("shell")).expect("stat");
    assert_eq!((shell.mode() & 0o7777, shell.uid()), (0o6755, 0));
    let capability = xattr(&lab.d("shell"), "security.capability");
    assert_eq!(capability.as_deref(), Some(&CAPABILITY[..]));
    fs::remove_file(lab.d("memory")).expect("remove the device");
    scene.lab.finish();
}

/// What root writes to a directory that a user owns: that user could put his own bytes under a name
/// before it gets its bits.
#[test]
fn nothing_that_gives_rights_is_written_where_others_could_swap_it() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.give_away();
    scene.lab.remount();
    let lab = &scene.lab;
    write(&lab.m("shell"), b"a shell");
    run(std::process::Command::new("mknod").args([&text(&lab.m("null")), "c", "1", "3"])).ok();
    fs::set_permissions(lab.m("shell"), fs::Permissions::from_mode(0o4755)).expect("chmod");
    fs::create_dir(lab.m("shared")).expect("mkdir");
    fs::set_permissions(lab.m("shared"), fs::Permissions::from_mode(0o2775)).expect("chmod");
    lab.flush();
    assert_content(lab.d("shell"), b"a shell");
    let on_drive = |name: &str| fs::symlink_metadata(lab.d(name));
    let mode = |name: &str| on_drive(name).expect("stat").mode() & 0o7777;
    assert_eq!(mode("shell"), 0o755);
    assert_eq!(mode("shared"), 0o2775, "it gives no rights to anybody");
    assert!(on_drive("null").is_err());
    scene.lab.unmount();
    scene.lab.remount();
    let lab = &scene.lab;
    let shell = fs::metadata(lab.m("shell")).expect("stat");
    assert_eq!(shell.mode() & 0o7777, 0o4755, "the mount keeps it");
    let null = fs::symlink_metadata(lab.m("null")).expect("stat");
    assert!(null.file_type().is_char_device());
    assert_eq!(lab.status()["dirty_files"], 0, "{}", lab.status());
    scene.lab.unmount();
    // Another cache does not believe what the user could have written.
    scene.lab.take_new_cache();
    scene.lab.mount(&[]);
    let lab = &scene.lab;
    let shell = fs::metadata(lab.m("shell")).expect("stat");
    assert_eq!(shell.mode() & 0o7777, 0o755);
    assert!(fs::symlink_metadata(lab.m("null")).is_err());
    scene.lab.finish();
}

/// The user swaps root's program for his own, and root changes something about it in the mount.
#[test]
fn other_bytes_under_the_name_of_a_program_do_not_inherit_its_rights() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.lab.remount();
    write(&scene.lab.m("shell"), b"a shell");
    fs::set_permissions(scene.lab.m("shell"), fs::Permissions::from_mode(0o4755)).expect("chmod");
    scene.lab.unmount();
    assert_eq!(
        fs::metadata(scene.lab.d("shell")).expect("stat").mode() & 0o7777,
        0o4755
    );
    fs::remove_file(scene.lab.d("shell")).expect("remove");
    write(&scene.lab.d("shell"), b"the user's own program");
    scene.own(&scene.lab.d("shell"));
    scene.lab.remount();
    let lab = &scene.lab;
    lab.ferryfs(&["refresh", &text(&lab.mnt)]).code(exit::DONE);
    assert_content(lab.m("shell"), b"the user's own program");
    let mode = fs::metadata(lab.m("shell")).expect("stat").mode();
    assert_eq!(mode & 0o7777, 0o755);
    fs::set_permissions(lab.m("shell"), fs::Permissions::from_mode(0o751)).expect("chmod");
    lab.flush();
    let shell = fs::metadata(lab.d("shell")).expect("stat");
    assert_eq!(shell.mode() & 0o7777, 0o751);
    scene.lab.finish();
}
