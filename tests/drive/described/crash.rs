//! A flush of attributes that stops anywhere, and a log that is damaged.

use ferryfs::core::{RelPath, Timestamp};
use ferryfs::drive::Backend;
use ferryfs::drive::faulty::Fault;
use ferryfs::drive::memory::MemNode;

use super::facts::{Facts, assert_same, differences, elsewhere, facts};
use super::{reshape, rich, start};
use crate::engine::mirror::assert_mirrored;
use crate::engine::rng::Rng;
use crate::engine::{Engine, Kind, World};

/// A world with a rich tree on the drive, and another in the mount.
fn scene() -> (World, Engine, Facts, Facts) {
    let (world, engine) = start(Kind::Exfat);
    rich(&engine);
    engine.flush_all();
    let before = facts(&engine);
    reshape(&engine);
    engine.chmod("dir", 0o555);
    engine.index.commit().expect("commit");
    let cut = facts(&engine);
    (world, engine, before, cut)
}

/// What another machine would see now; it finishes nothing that it cannot.
fn seen_elsewhere(world: &World) -> Facts {
    let (_other, engine) = elsewhere(world);
    facts(&engine)
}

fn after_a_flush_that_fails_at(n: u64, (dies, loses): (bool, bool)) -> bool {
    let (world, mut engine, before, cut) = scene();
    let at = world.faulty.calls() + n;
    world.faulty.arm(Fault {
        at,
        errno: libc::EIO,
        stays_dead: true,
        takes_effect: n.is_multiple_of(2),
    });
    let _ = engine.flush();
    let failed = world.faulty.calls() >= at;
    world.faulty.heal();
    if loses {
        world.memory.crash_to_durable();
    }
    if dies {
        engine.die();
        engine = world.start(true);
    }
    engine.flusher.recover().expect("recover");
    assert_mirrored(&world, &engine);
    let seen = seen_elsewhere(&world);
    let (old, new) = (differences(&seen, &before), differences(&seen, &cut));
    assert!(
        old.is_empty() || new.is_empty(),
        "call {n}: neither the state before:\n  {}\nnor the cut:\n  {}",
        old.join("\n  "),
        new.join("\n  ")
    );
    assert_same(&facts(&engine), &cut, "the mount has changed");
    engine.flush_all();
    assert_mirrored(&world, &engine);
    assert_same(&seen_elsewhere(&world), &cut, "after the next flush");
    failed
}

#[test]
fn a_flush_that_stops_anywhere_leaves_the_attributes_of_one_cut() {
    for how in [(false, false), (true, false), (false, true), (true, true)] {
        let mut n = 1;
        while after_a_flush_that_fails_at(n, how) {
            n += 1;
        }
        assert!(n > 30, "{n}");
    }
}

fn segments(world: &World) -> Vec<(RelPath, Vec<u8>)> {
    let tree = world.memory.tree();
    let of_log = |(path, node): (&RelPath, &MemNode)| match node {
        MemNode::File { bytes, .. } if path.to_string().starts_with(".ferryfs/catalog/") => {
            Some((path.clone(), bytes.to_vec()))
        }
        _ => None,
    };
    tree.iter().filter_map(of_log).collect()
}

fn overwrite(world: &World, path: &RelPath, bytes: &[u8]) {
    world.memory.remove_file(path).expect("remove");
    let mut file = world.memory.create(path).expect("create");
    file.append(bytes).expect("write");
    file.finish(Timestamp(0)).expect("close");
    world.memory.sync().expect("sync");
}

#[test]
fn a_damaged_catalog_costs_attributes_and_never_contents() {
    let mut rng = Rng::new(7);
    for round in 0..12 {
        let (world, engine, _, cut) = scene();
        engine.flush_all();
        let log = segments(&world);
        assert!(log.len() > 1, "{log:?}");
        let (path, mut bytes) = log[round % log.len()].clone();
        let at = rng.below(bytes.len());
        bytes[at] ^= 1 << rng.below(8);
        overwrite(&world, &path, &bytes);
        let (_other, there) = elsewhere(&world);
        assert!(!there.flusher.catalog_losses().is_empty(), "it is said");
        let seen = facts(&there);
        for (path, fact) in &cut {
            // What stands in the catalog only is lost with it.
            if fact.bytes.is_some() {
                assert_eq!(seen[path].bytes, fact.bytes, "{path}");
            }
        }
        // This machine knows it all, and writes it anew with the next change.
        engine.flusher.recover().expect("attach");
        assert_same(&facts(&engine), &cut, "here nothing is lost");
        engine.chmod("dir", 0o711);
        let wanted = facts(&engine);
        engine.flush_all();
        assert_mirrored(&world, &engine);
        let (_third, again) = elsewhere(&world);
        assert_same(&facts(&again), &wanted, "after it was written anew");
    }
}
