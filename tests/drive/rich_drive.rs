//! A drive that has modes, owners, links, special files and extended attributes itself is given all
//! of them: what is on it is what is in the mount, also after a flush that failed anywhere, and on
//! another machine.

use std::collections::BTreeMap;

use crate::engine::{CTX, Engine, Kind, World, call};
use ferryfs::core::{FileKind, Ino, Metadata, RelPath, Timestamp, Xattrs};
use ferryfs::drive::Backend;
use ferryfs::drive::faulty::Fault;
use ferryfs::drive::memory::{Crash, MemoryBackend};
use ferryfs::format::layout;
use ferryfs::recovery::interrupted::recover_without_cache;
use ferryfs::vfs::{Ctx, NewNode, SetAttr, SetTime, SetXattr};

/// All that is to be known of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Look {
    kind: FileKind,
    permissions: u32,
    owner: (u32, u32),
    nlink: u32,
    modified: Timestamp,
    target: Option<Vec<u8>>,
    rdev: u32,
    bytes: Option<Vec<u8>>,
    xattrs: Xattrs,
    /// The first name of the same file.
    first: String,
}

/// A caller who is shown everything.
const ROOT: Ctx = Ctx {
    uid: 0,
    gid: 0,
    pid: 0,
    ..CTX
};

type Looks = BTreeMap<String, Look>;

fn read(backend: &dyn Backend, path: &RelPath, meta: &Metadata) -> Option<Vec<u8>> {
    if meta.kind != FileKind::Regular {
        return None;
    }
    let mut bytes = vec![0; usize::try_from(meta.size).unwrap() + 1];
    let got = backend.open(path).unwrap().read_at(&mut bytes, 0).unwrap();
    bytes.truncate(got);
    Some(bytes)
}

/// The drive, without what is ours.
fn on_drive(backend: &MemoryBackend) -> Looks {
    let mut files: BTreeMap<u64, String> = BTreeMap::new();
    let mut looks = Looks::new();
    let mut open = vec![RelPath::root()];
    let mut paths = vec![RelPath::root()];
    while let Some(dir) = open.pop() {
        for entry in backend.read_dir(&dir).unwrap() {
            let path = dir.join(&entry.name);
            if layout::is_reserved(&path) {
                continue;
            }
            if entry.meta.kind == FileKind::Directory {
                open.push(path.clone());
            }
            paths.push(path);
        }
    }
    paths.sort();
    for path in paths {
        let meta = backend.metadata(&path).unwrap();
        let name = path.to_string();
        let first = match meta.file {
            Some(file) => files.entry(file).or_insert(name.clone()).clone(),
            None => name.clone(),
        };
        let look = Look {
            kind: meta.kind,
            permissions: if meta.kind == FileKind::Symlink {
                0
            } else {
                meta.permissions
            },
            owner: (meta.uid, meta.gid),
            nlink: meta.nlink,
            modified: meta.modified,
            target: meta.target.clone(),
            rdev: meta.rdev,
            bytes: read(backend, &path, &meta),
            xattrs: backend.xattrs(&path).unwrap(),
            first,
        };
        looks.insert(name, look);
    }
    looks
}

/// The mount.
fn in_mount(engine: &Engine) -> Looks {
    let mut first: BTreeMap<Ino, String> = BTreeMap::new();
    let mut looks = Looks::new();
    let mut paths = engine.names();
    paths.push(RelPath::root());
    paths.sort();
    for path in paths {
        let name = path.to_string();
        let inode = engine.find(&name).unwrap();
        let mut xattrs = Xattrs::new();
        let list = engine.fs.listxattr(&ROOT, inode.ino).unwrap();
        for attribute in list
            .split(|&byte| byte == 0)
            .filter(|name| !name.is_empty())
        {
            let value = engine.fs.getxattr(inode.ino, attribute).unwrap();
            xattrs.insert(attribute.into(), value.into());
        }
        let kind = inode.kind();
        let is_dir = kind == FileKind::Directory;
        let look = Look {
            kind,
            permissions: if kind == FileKind::Symlink {
                0
            } else {
                inode.mode & 0o7777
            },
            owner: (inode.uid, inode.gid),
            nlink: if is_dir { 1 } else { inode.nlink },
            modified: inode.mtime,
            target: inode.target.as_ref().map(|target| target.to_vec()),
            rdev: inode.rdev,
            bytes: (kind == FileKind::Regular).then(|| engine.read(&name)),
            xattrs,
            first: first.entry(inode.ino).or_insert(name.clone()).clone(),
        };
        looks.insert(name, look);
    }
    looks
}

#[track_caller]
fn assert_same(found: &Looks, wanted: &Looks, what: &str) {
    let paths = found.keys().chain(wanted.keys());
    let differing: Vec<_> = paths
        .filter(|path| found.get(*path) != wanted.get(*path))
        .map(|path| format!("{path}:\n  {:?}\n  {:?}", found.get(path), wanted.get(path)))
        .collect();
    assert!(differing.is_empty(), "{what}:\n{}", differing.join("\n"));
}

fn make(engine: &Engine, path: &str, mode: u32, rdev: u32, target: Option<&[u8]>) {
    let (parent, name) = engine.place(path);
    let node = NewNode {
        mode,
        rdev,
        target: target.map(Into::into),
    };
    call(|ctx| engine.fs.make_node(ctx, parent, &name, node.clone())).expect("make a node");
}

fn set(engine: &Engine, path: &str, set: SetAttr) {
    call(|ctx| engine.fs.setattr(ctx, engine.ino(path), &set)).expect("set attributes");
}

fn chmod(engine: &Engine, path: &str, mode: u32) {
    let mode = Some(mode);
    set(
        engine,
        path,
        SetAttr {
            mode,
            ..SetAttr::default()
        },
    );
}

fn chown(engine: &Engine, path: &str, uid: u32, gid: u32) {
    let (uid, gid) = (Some(uid), Some(gid));
    set(
        engine,
        path,
        SetAttr {
            uid,
            gid,
            ..SetAttr::default()
        },
    );
}

fn xattr(engine: &Engine, path: &str, name: &str, value: &[u8]) {
    let (ino, name) = (engine.ino(path), name.as_bytes());
    engine
        .fs
        .setxattr(ino, name, value, SetXattr::Any)
        .expect("setxattr");
}

fn symlink(engine: &Engine, target: &[u8], path: &str) {
    make(engine, path, libc::S_IFLNK | 0o777, 0, Some(target));
}

/// Something of everything.
fn grow(engine: &Engine) {
    engine.mkdir("d");
    engine.mkdir("d/e");
    engine.put("plain", b"plain");
    engine.put("tool", b"#!/bin/sh\n");
    chmod(engine, "tool", 0o4755);
    engine.put("secret", b"secret");
    chmod(engine, "secret", 0);
    engine.put("theirs", b"theirs");
    chown(engine, "theirs", 1234, 4321);
    engine.put("one", b"one file");
    engine.link("one", "d/two");
    engine.link("one", "d/e/three");
    engine.put("tagged", b"tagged");
    xattr(engine, "tagged", "user.tag", b"\0\xff");
    xattr(engine, "d", "user.dir", b"");
    xattr(engine, "d", "trusted.dir", b"t");
    symlink(engine, b"nowhere/\xff", "d/dangling");
    symlink(engine, b"/etc/passwd", "absolute");
    engine.link("absolute", "d/again");
    make(engine, "d/pipe", libc::S_IFIFO | 0o620, 0, None);
    make(engine, "socket", libc::S_IFSOCK | 0o777, 0, None);
    make(engine, "null", libc::S_IFCHR | 0o666, 0x103, None);
    engine.mkdir("closed");
    engine.put("closed/in", b"in");
    chmod(engine, "closed", 0o700);
    let mtime = Some(SetTime::At(Timestamp(-1_000_000_001)));
    set(
        engine,
        "d/e",
        SetAttr {
            mtime,
            ..SetAttr::default()
        },
    );
    set(
        engine,
        "d/dangling",
        SetAttr {
            mtime,
            ..SetAttr::default()
        },
    );
}

/// And of what may become of it.
fn edit(engine: &Engine) {
    engine.edit("d/two", 4, b"FILE, rewritten");
    engine.link("plain", "d/plain too");
    engine.unlink("d/e/three");
    engine.rename("d/dangling", "moved");
    engine.unlink("absolute");
    engine.put("absolute", b"a file now");
    engine.unlink("plain");
    make(engine, "plain", libc::S_IFIFO | 0o600, 0, None);
    engine.unlink("d/pipe");
    symlink(engine, b"in place of a pipe", "d/pipe");
    chmod(engine, "tool", 0o755);
    chmod(engine, "", 0o1777);
    chown(engine, "theirs", 4321, 1234);
    chown(engine, "moved", 77, 78);
    xattr(engine, "tagged", "user.other", b"other");
    engine
        .fs
        .removexattr(engine.ino("tagged"), b"user.tag")
        .expect("removexattr");
    engine.rename("d/e", "e");
    engine.link("one", "e/one more");
    engine.put("e/fresh", b"fresh");
    engine.mkdir("made");
    chmod(engine, "made", 0o2711);
    engine.link("tool", "made/tool");
    engine.put("made/tool", b"changed under another name");
    engine.rename("closed", "made/closed");
    chmod(engine, "secret", 0o640);
}

#[test]
fn what_is_on_the_drive_is_what_is_in_the_mount_and_another_machine_sees_the_same() {
    let world = World::new(Kind::Linux);
    let engine = world.start(false);
    for step in [grow, edit] {
        step(&engine);
        let report = engine.flush_all();
        assert!(report.batch.is_some());
        let mount = in_mount(&engine);
        assert_same(&on_drive(&world.memory), &mount, "the drive and the mount");
        world.check(&engine);
        assert!(engine.flush_all().batch.is_none(), "nothing waits");

        let other = World::on(Kind::Linux, world.memory.snapshot());
        let engine = other.start(false);
        assert_same(&in_mount(&engine), &mount, "another machine and the mount");
        assert!(
            engine.flush_all().batch.is_none(),
            "looking changes nothing"
        );
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[test]
fn a_file_rewritten_on_another_machine_is_one_file_under_all_its_names() {
    let world = World::new(Kind::Linux);
    let engine = world.start(false);
    grow(&engine);
    engine.flush_all();
    let other = World::on(Kind::Linux, world.memory.clone());
    let engine = other.start(false);
    // All directories are known, as after the walk.
    assert_eq!(engine.names().len(), in_mount(&engine).len() - 1);
    engine.put("d/e/three", b"other bytes");
    engine.flush_all();
    let drive = on_drive(&world.memory);
    for name in ["one", "d/two", "d/e/three"] {
        assert_eq!(
            drive[name].bytes.as_deref(),
            Some(&b"other bytes"[..]),
            "{name}"
        );
        assert_eq!(
            (drive[name].nlink, &*drive[name].first),
            (3, "d/e/three"),
            "{name}"
        );
    }
}

/// What happens between a failure and recovery.
#[derive(Clone, Copy, Debug)]
enum After {
    Heal,
    Death,
    Loss(u64),
    Elsewhere,
    LossElsewhere(u64),
}

/// A flush whose call number `n` fails, and all that may follow. False if it was over before.
fn fail_at(n: u64, after: After, effect: bool) -> bool {
    let world = World::new(Kind::Linux);
    let engine = world.start(false);
    grow(&engine);
    engine.flush_all();
    let before = on_drive(&world.memory);
    edit(&engine);
    engine.index.commit().expect("commit");
    let cut = in_mount(&engine);
    let at = world.faulty.calls() + n;
    world.faulty.arm(Fault {
        at,
        errno: libc::EIO,
        stays_dead: true,
        takes_effect: effect,
    });
    let _ = engine.flush();
    let failed = world.faulty.calls() >= at;
    world.faulty.heal();
    let engine = match after {
        After::Heal | After::Elsewhere => engine,
        After::Death => {
            engine.die();
            world.start(true)
        }
        After::Loss(seed) | After::LossElsewhere(seed) => {
            world.memory.crash(Crash::Random(seed));
            engine.die();
            world.start(true)
        }
    };
    let is_one_cut = |when: &str| {
        let drive = on_drive(&world.memory);
        if drive != before {
            assert_same(&drive, &cut, when);
        }
    };
    if matches!(after, After::Elsewhere | After::LossElsewhere(_)) {
        recover_without_cache(&world.memory).expect("recover without the cache");
        is_one_cut("recovered elsewhere");
    }
    engine.flusher.recover().expect("recover");
    is_one_cut("recovered");
    engine.flusher.recover().expect("recover again");
    is_one_cut("recovered twice");
    assert_same(&in_mount(&engine), &cut, "the mount has changed");
    engine.flush_all();
    assert_same(&on_drive(&world.memory), &cut, "the next flush");
    assert_eq!(world.leftovers(), Vec::<String>::new());
    world.check(&engine);
    world.memory.crash_to_durable();
    assert_same(&on_drive(&world.memory), &cut, "what is durable after it");
    failed
}

/// A flush that fails at each call in turn, with and without effect, and is followed by each of
/// `afters`.
fn fail_everywhere(afters: impl Fn(u64) -> Vec<After>) {
    let mut turn = 0;
    for n in 1.. {
        let mut failed = false;
        for after in afters(n) {
            turn += 1;
            let effect = turn % 2 == 0;
            eprintln!("call {n}, {after:?}, effect {effect}");
            failed |= fail_at(n, after, effect);
        }
        if !failed {
            assert!(n > 100, "the flush had nothing to do: {n}");
            return;
        }
    }
}

#[test]
fn a_flush_that_fails_anywhere_leaves_the_attributes_of_before_or_of_the_cut() {
    fail_everywhere(|_| vec![After::Heal, After::Death, After::Elsewhere]);
}

#[test]
fn a_flush_that_is_cut_off_anywhere_leaves_the_attributes_of_before_or_of_the_cut() {
    // An odd number of turns at each call: whether the call took effect changes from call to call.
    fail_everywhere(|n| {
        vec![
            After::Loss(n),
            After::LossElsewhere(n),
            After::Loss(n + 1000),
        ]
    });
}

#[test]
fn what_somebody_puts_where_a_node_or_a_further_name_goes_while_a_batch_is_interrupted_is_kept() {
    let world = World::new(Kind::Linux);
    let engine = world.start(false);
    grow(&engine);
    engine.flush_all();
    symlink(&engine, b"ours", "link");
    engine.link("one", "name");
    // The record is there, nothing has been placed.
    let mut n = 0;
    loop {
        n += 1;
        let at = world.faulty.calls() + n;
        world.faulty.arm(Fault {
            stays_dead: true,
            ..Fault::at(at, libc::EIO)
        });
        assert!(engine.flush().is_err());
        world.faulty.heal();
        let committed = world.leftovers().iter().any(|path| path.ends_with(".rec"));
        if committed && !on_drive(&world.memory).contains_key("link") {
            break;
        }
        engine.flusher.recover().expect("recover");
        assert!(n < 200, "no batch was ever committed");
    }
    for path in ["link", "name"] {
        let path = RelPath::parse(path.as_bytes()).unwrap();
        if world.memory.metadata(&path).is_ok() {
            world.memory.remove_file(&path).unwrap();
        }
        let mut file = world.memory.create(&path).unwrap();
        file.append(b"somebody else's").unwrap();
        file.finish(Timestamp(1)).unwrap();
    }
    world.memory.sync().unwrap();
    engine.flusher.recover().expect("recover");
    let drive = on_drive(&world.memory);
    assert_eq!(drive["link"].target.as_deref(), Some(&b"ours"[..]));
    assert_eq!(drive["name"].nlink, 4);
    let kept = drive.keys().filter(|path| path.contains(".sync-conflict-"));
    assert_eq!(kept.count(), 2, "{drive:?}");
}
