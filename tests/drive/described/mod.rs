//! What a drive like exFAT cannot say itself is in the catalog beside the data: with it, another
//! machine with an empty cache shows the same tree.

mod crash;
mod facts;
mod strangers;

use crate::engine::mirror::assert_mirrored;
use crate::engine::{self, Engine, Kind, World};
use facts::{assert_same, elsewhere, facts};
use ferryfs::core::acl;
use ferryfs::vfs::Invalidation;
use std::time::Duration;

fn start(kind: Kind) -> (World, Engine) {
    let world = World::new(kind);
    let engine = world.start(false);
    engine.flusher.recover().expect("attach");
    (world, engine)
}

/// One of everything.
fn rich(engine: &Engine) {
    engine.mkdir("dir");
    engine.mkdir("dir/sub");
    engine.mkdir("empty");
    engine.put("plain", b"plain");
    engine.put("dir/program", b"#!/bin/sh");
    engine.chmod("dir/program", 0o4751);
    engine.chown("dir/program", 4242, 4343);
    engine.put("dir/sub/secret", b"secret");
    engine.chmod("dir/sub/secret", 0);
    engine.chmod("empty", 0o1777);
    engine.put("odd", b"");
    engine.set_time("odd", 1_234_567_890_123_456_789);
    engine.put("old", b"before 1970");
    engine.set_time("old", -77_777_777_777);
    engine.put("late", b"after 2107");
    engine.set_time("late", 9_000_000_000_987_654_321);
    engine.put("one", b"a file with three names");
    engine.link("one", "dir/two");
    engine.link("one", "dir/sub/three");
    engine.symlink("link", "dir/program");
    engine.symlink("dir/dangling", "/nowhere/\u{fc}");
    engine.link("link", "dir/link too");
    engine.special("fifo", libc::S_IFIFO | 0o640, 0, None);
    engine.special("dir/socket", libc::S_IFSOCK | 0o600, 0, None);
    engine.special("dir/null", libc::S_IFCHR | 0o666, 0x103, None);
    engine.special("dir/disk", libc::S_IFBLK | 0o660, 0x802, None);
    engine.xattr("plain", "user.colour", b"green");
    engine.xattr("dir", "user.of a directory", &[0, 255, 7]);
    engine.xattr("plain", "user.large", &vec![b'x'; 60_000]);
    engine.sparse("sparse");
    engine.put("README", b"one");
    engine.put("readme", b"another");
    engine.put("what? a name: with * in it.", b"odd");
    engine.mkdir("dir/a:b");
    engine.symlink("dir/a:b/l:nk", "x");
    engine.put(&format!("dir/{}", "\u{1F600}".repeat(60)), b"emoji");
    engine.put(&format!("dir/{}", "?".repeat(255)), b"does not fit");
    for (dir, ns) in [("dir/sub", 5), ("dir", 6), ("empty", 7), ("", 8)] {
        engine.set_time(dir, 1_600_000_000_000_000_000 + ns);
    }
    engine.chmod("", 0o751);
}

#[test]
fn what_was_written_is_what_another_machine_reads() {
    let (world, engine) = start(Kind::Exfat);
    rich(&engine);
    let wanted = facts(&engine);
    assert!(wanted[&engine::script::rel("sparse")].is_sparse);
    engine.flush_all();
    assert_same(&facts(&engine), &wanted, "after the flush");
    assert_mirrored(&world, &engine);
    assert_eq!(engine.flush_all().batch, None, "nothing waits any more");
    engine.close();
    let (_other, there) = elsewhere(&world);
    assert_same(&facts(&there), &wanted, "on another machine");
    assert_mirrored(&world, &there);
    assert!(
        !there.index.lock().anything_dirty().expect("look"),
        "looking changes nothing"
    );
}

#[test]
fn the_same_cache_shows_the_same_after_a_restart() {
    let (world, engine) = start(Kind::Exfat);
    rich(&engine);
    engine.flush_all();
    let wanted = facts(&engine);
    engine.close();
    let engine = world.start(false);
    engine.flusher.recover().expect("attach");
    assert_same(&facts(&engine), &wanted, "after a restart");
}

#[test]
fn changes_of_attributes_alone_are_carried() {
    let (world, engine) = start(Kind::Exfat);
    rich(&engine);
    engine.flush_all();
    engine.chmod("plain", 0o400);
    engine.chown("fifo", 1, 2);
    engine.xattr("dir/two", "user.new", b"new");
    engine.set_time("dir/sub", 42);
    engine.chmod("", 0o700);
    let wanted = facts(&engine);
    let report = engine.flush_all();
    assert!(report.batch.is_some());
    assert_eq!(report.files, 0, "no bytes are carried for it");
    let (_other, there) = elsewhere(&world);
    assert_same(&facts(&there), &wanted, "on another machine");
    assert_mirrored(&world, &engine);
}

/// Names come, go and move, whatever stands behind them.
fn reshape(engine: &Engine) {
    engine.rename("dir", "moved");
    engine.mkdir("dir");
    engine.rename("moved/sub", "dir/deeper");
    engine.unlink("moved/dangling");
    engine.rename("link", "moved/link");
    engine.unlink("fifo");
    engine.put("fifo", b"a file now");
    engine.unlink("plain");
    engine.symlink("plain", "a link now");
    engine.unlink("one");
    engine.rename("moved/null", "null");
    engine.symlink("to replace", "x");
    engine.rename("odd", "to replace");
    engine.rmdir("empty");
    engine.special("empty", libc::S_IFIFO | 0o600, 0, None);
    engine.put("moved/new", b"new");
    engine.chmod("moved/new", 0o111);
}

#[test]
fn what_moves_keeps_what_is_known_of_it() {
    let (world, engine) = start(Kind::Exfat);
    rich(&engine);
    engine.symlink("to replace", "y");
    engine.flush_all();
    engine.unlink("to replace");
    reshape(&engine);
    let wanted = facts(&engine);
    engine.flush_all();
    assert_same(&facts(&engine), &wanted, "after the flush");
    assert_mirrored(&world, &engine);
    let (_other, there) = elsewhere(&world);
    assert_same(&facts(&there), &wanted, "on another machine");
}

#[test]
fn links_that_come_and_go_are_counted_on_both_machines() {
    let (world, engine) = start(Kind::Exfat);
    engine.mkdir("a");
    engine.mkdir("b");
    engine.put("a/one", b"one");
    engine.link("a/one", "b/two");
    engine.link("a/one", "b/three");
    engine.flush_all();
    engine.close();
    let (other, there) = elsewhere(&world);
    let nlink = |engine: &Engine, path: &str| engine.find(path).expect("a file").nlink;
    assert_eq!(nlink(&there, "a/one"), 3, "before the other names are met");
    there.put("a/one", b"changed under one name");
    there.chmod("a/one", 0o611);
    there.flush_all();
    assert_eq!(
        world.on_drive("b/three").as_deref(),
        Some(&b"changed under one name"[..])
    );
    assert_eq!(there.ino("b/two"), there.ino("a/one"));
    there.unlink("b/two");
    let wanted = facts(&there);
    there.flush_all();
    assert_eq!(nlink(&there, "a/one"), 2);
    there.close();
    drop(other);
    let (_third, again) = elsewhere(&world);
    assert_same(&facts(&again), &wanted, "on a third machine");
}

#[test]
fn a_copy_that_was_changed_elsewhere_is_a_file_of_its_own() {
    let (world, engine) = start(Kind::Exfat);
    engine.mkdir("a");
    engine.put("a/one", b"one");
    engine.link("a/one", "a/two");
    engine.link("a/one", "three");
    engine.chmod("three", 0o640);
    engine.flush_all();
    engine.close();
    let path = engine::script::rel("a/two");
    use ferryfs::drive::Backend;
    world.memory.remove_file(&path).expect("remove");
    let mut file = world.memory.create(&path).expect("create");
    file.append(b"theirs").expect("write");
    file.finish(ferryfs::core::Timestamp(1_650_000_000_000_000_000))
        .expect("close");
    let (_other, there) = elsewhere(&world);
    let all = facts(&there);
    let of = |path: &str| &all[&engine::script::rel(path)];
    assert_eq!(of("a/two").bytes.as_deref(), Some(&b"theirs"[..]));
    assert_eq!((of("a/two").nlink, of("a/two").mode & 0o7777), (1, 0o640));
    assert_eq!((of("a/one").nlink, of("three").nlink), (2, 2));
    assert_eq!(of("a/one").same_as, of("three").same_as);
}

#[test]
fn holes_stay_holes_when_a_file_is_fetched() {
    let (world, engine) = start(Kind::Exfat);
    engine.sparse("sparse");
    engine.flush_all();
    engine.close();
    let (_other, there) = elsewhere(&world);
    let before = there.find("sparse").expect("a file");
    assert!(before.object.is_none() && before.blocks * 512 < before.size);
    // Writing one byte brings all of it into the cache.
    there.edit("sparse", 1, b"E");
    let after = there.find("sparse").expect("a file");
    assert!(after.object.is_some());
    assert!(
        after.blocks * 512 < after.size / 2,
        "{} blocks of {}",
        after.blocks,
        after.size
    );
    let bytes = there.read("sparse");
    assert_eq!(
        (&bytes[..5], &bytes[(3 << 20)..(3 << 20) + 4]),
        (&b"hEad\0"[..], &b"tail"[..])
    );
}

#[test]
fn what_another_machine_has_told_is_taken_in_when_the_drive_comes_back() {
    let (world, engine) = start(Kind::Exfat);
    rich(&engine);
    engine.flush_all();
    engine.close();
    let (_other, there) = elsewhere(&world);
    facts(&there);
    there.chmod("plain", 0o606);
    there.xattr("dir/two", "user.there", b"there");
    there.unlink("fifo");
    there.symlink("dir/sub/new", "new");
    there.put("dir/sub/made", b"made");
    there.link("dir/sub/made", "dir/made too");
    there.mkdir("fresh");
    there.symlink("fresh/only", "a link");
    there.rename("dir/two", "fresh/moved");
    there.set_time("dir/sub/made", 1_600_000_000_000_000_003);
    there.set_time("dir/sub", 1_600_000_000_000_000_005);
    there.set_time("dir", 1_600_000_000_000_000_006);
    there.set_time("fresh", 1_600_000_000_000_000_007);
    there.set_time("", 1_600_000_000_000_000_008);
    there.flush_all();
    let wanted = facts(&there);
    there.close();
    let engine = world.start(false);
    engine.flusher.recover().expect("attach");
    engine.refresh();
    assert_same(&facts(&engine), &wanted, "back on the first machine");
    assert_mirrored(&world, &engine);
}

#[test]
fn an_acl_changed_on_another_machine_is_told_to_the_kernel() {
    let (world, engine) = start(Kind::Exfat);
    rich(&engine);
    engine.acl("dir/program", acl::ACCESS, 7, 5);
    engine.acl("dir", acl::DEFAULT, 7, 5);
    engine.put("dir/inherits", b"");
    engine.flush_all();
    let changed = engine.ino("dir/program");
    engine.close();
    let (_other, there) = elsewhere(&world);
    there.acl("dir/program", acl::ACCESS, 7, 1);
    there.flush_all();
    let wanted = facts(&there);
    there.close();
    let engine = world.start(false);
    engine.fs.invalidations().listen();
    engine.flusher.recover().expect("attach");
    let told: Vec<_> =
        std::iter::from_fn(|| engine.fs.invalidations().next(Duration::ZERO)).collect();
    assert!(
        told.contains(&Invalidation::Inode { ino: changed }),
        "{told:?}"
    );
    engine.refresh();
    assert_same(&facts(&engine), &wanted, "back on the first machine");
}

#[test]
fn an_attribute_that_is_no_acl_is_left_out() {
    let (world, engine) = start(Kind::Exfat);
    for name in ["odd", "well"] {
        engine.put(name, b"");
        engine.acl(name, acl::ACCESS, 7, 5);
    }
    let odd = engine.ino("odd");
    let spoilt = engine
        .index
        .lock()
        .put_xattr(odd, acl::ACCESS, Some(b"no ACL"));
    spoilt.expect("write to the index");
    engine.flush_all();
    let (_other, there) = elsewhere(&world);
    facts(&there);
    let listed = |name| {
        there
            .fs
            .listxattr(&engine::CTX, there.ino(name))
            .expect("list")
    };
    assert_eq!(listed("odd"), b"", "the kernel would refuse every access");
    assert_eq!(listed("well"), [acl::ACCESS, b"\0"].concat());
}
