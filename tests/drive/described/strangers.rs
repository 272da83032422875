//! A catalog that others could have written: what gives rights is not believed, all else is, and
//! what this cache knows from elsewhere it does not forget.

use ferryfs::core::RelPath;
use ferryfs::drive::memory::{MemoryBackend, MemoryOptions};

use ferryfs::plan::trust::Trust;

use super::facts::{Facts, assert_same, elsewhere, facts};
use crate::engine::{Engine, Kind, World};

const CAPABILITY: &str = "security.capability";

fn shared(kind: Kind) -> (World, Engine) {
    let memory = MemoryBackend::new(MemoryOptions {
        trust: Trust::ANYBODY,
        ..kind.options()
    });
    let world = World::on(kind, memory);
    let engine = world.start(false);
    engine.flusher.recover().expect("attach");
    (world, engine)
}

/// What gives rights, and what does not.
fn rich(engine: &Engine) {
    engine.mkdir("dir");
    engine.chmod("dir", 0o2775);
    engine.put("dir/shell", b"#!/bin/sh");
    engine.chown("dir/shell", 4242, 4343);
    engine.chmod("dir/shell", 0o6751);
    engine.put("tool", b"tool");
    engine.xattr("tool", CAPABILITY, b"what it gives");
    engine.xattr("tool", "trusted.x", b"of root");
    engine.xattr("tool", "user.x", b"of anybody");
    engine.special("null", libc::S_IFCHR | 0o666, 0x103, None);
    engine.special("dir/disk", libc::S_IFBLK | 0o660, 0x802, None);
    engine.special("fifo", libc::S_IFIFO | 0o640, 0, None);
    engine.symlink("link", "dir/shell");
}

/// The same without what gives rights.
fn plain(mut facts: Facts, keeps_owner: bool) -> Facts {
    for device in ["null", "dir/disk"] {
        facts.remove(&RelPath::parse(device.as_bytes()).expect("a path"));
    }
    for fact in facts.values_mut() {
        if fact.mode & libc::S_IFMT != libc::S_IFDIR {
            fact.mode &= !0o6000;
        }
        fact.xattrs.retain(|name, _| name.starts_with(b"user."));
        if !keeps_owner && fact.owner == (4242, 4343) {
            fact.owner = (1000, 1000);
        }
    }
    facts
}

/// Directories tell how many they hold only by their time, which is of no matter here.
fn timeless(mut facts: Facts) -> Facts {
    for fact in facts.values_mut() {
        fact.mtime = ferryfs::core::Timestamp(0);
    }
    facts
}

#[test]
fn a_strangers_catalog_gives_no_rights_to_another_cache() {
    let (world, engine) = shared(Kind::Exfat);
    rich(&engine);
    let wanted = timeless(facts(&engine));
    engine.flush_all();
    assert_same(&timeless(facts(&engine)), &wanted, "after the flush");
    let (_other, there) = elsewhere(&world);
    let found = timeless(facts(&there));
    assert_same(&found, &plain(wanted.clone(), true), "on another machine");
    // The drive cannot store owners, so nobody is given anything.
    assert_eq!(found[&RelPath::fixed("dir/shell")].owner, (4242, 4343));
    engine.close();
    let again = world.start(false);
    again.flusher.recover().expect("attach");
    assert_same(&timeless(facts(&again)), &wanted, "after a restart");
}

/// What one cache has been told by its own user it keeps when another one writes to the catalog.
#[test]
fn rights_known_here_outlive_what_another_cache_says() {
    let (world, engine) = shared(Kind::Exfat);
    rich(&engine);
    engine.flush_all();
    let wanted = timeless(facts(&engine));
    engine.close();
    let (other, there) = elsewhere(&world);
    there.put("more", b"more");
    there.chmod("more", 0o4755);
    there.xattr("dir/shell", "user.y", b"said there");
    there.flush_all();
    there.close();
    let again = world.start(false);
    again.flusher.recover().expect("attach");
    again.refresh();
    let mut found = timeless(facts(&again));
    let more = found.remove(&RelPath::fixed("more")).expect("it is there");
    assert_eq!(more.mode & 0o7777, 0o755, "a stranger says so");
    let shell = found.get_mut(&RelPath::fixed("dir/shell")).expect("there");
    assert!(shell.xattrs.remove(&b"user.y"[..]).is_some());
    // There the bits were not known, and what is said of the file since has none.
    assert_eq!(shell.mode & 0o7777, 0o751);
    shell.mode |= 0o6000;
    assert_same(&found, &wanted, "what was known");
    drop(other);
}

/// A drive that keeps owners itself would be given what a stranger says by root.
#[test]
fn where_the_drive_keeps_owners_a_stranger_names_none() {
    let (world, engine) = shared(Kind::Linux);
    engine.put("file", b"file");
    // More than the drive keeps: so it is described.
    engine.put("shell", b"shell");
    engine.chown("shell", 4242, 4343);
    engine.chmod("shell", 0o4755);
    engine.special("null", libc::S_IFCHR | 0o666, 0x103, None);
    engine.flush_all();
    let on_drive = |path: &str| {
        let path = RelPath::parse(path.as_bytes()).expect("a path");
        ferryfs::drive::Backend::metadata(&world.memory, &path)
    };
    assert_eq!(on_drive("shell").expect("there").permissions, 0o755);
    assert!(on_drive("null").is_err(), "a device is on the drive");
    let shell = &facts(&engine)[&RelPath::fixed("shell")];
    assert_eq!(shell.mode & 0o7777, 0o4755);
    // Somebody has taken the file over on the drive.
    let path = RelPath::fixed("shell");
    ferryfs::drive::Backend::set_owner(&world.memory, &path, Some(7), Some(8)).expect("chown");
    let (_other, there) = elsewhere(&world);
    let found = facts(&there);
    let shell = &found[&path];
    assert_eq!((shell.mode & 0o7777, shell.owner), (0o755, (7, 8)));
    assert!(!found.contains_key(&RelPath::fixed("null")));
}
