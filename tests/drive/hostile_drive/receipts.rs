//! Receipts: by one a cache learns that its batch was finished on a machine without it, and so that
//! it may let go of the bytes.

use std::cell::Cell;

use ferryfs::core::{BatchNo, Phase, RelPath, Timestamp};
use ferryfs::drive::Backend;
use ferryfs::drive::faulty::Fault;
use ferryfs::format::record::BatchRecord;
use ferryfs::format::steps::Steps;
use ferryfs::format::{layout, record};

use crate::engine::{Kind, World};

/// Leaves a batch that is committed and not applied; gives its record.
fn committed(world: &World) -> BatchRecord {
    let engine = world.start(false);
    engine.put("precious", b"precious");
    let armed = Cell::new(false);
    let flushed = engine.flush_with(&|progress| {
        if progress.phase == Phase::Apply && !armed.replace(true) {
            world.faulty.arm(Fault {
                stays_dead: true,
                ..Fault::at(world.faulty.calls() + 1, libc::EIO)
            });
        }
    });
    assert!(flushed.is_err(), "the batch stays open");
    world.faulty.heal();
    engine.die();
    let records = world.memory.read_dir(&layout::batches_dir()).expect("list");
    let number = records
        .iter()
        .find_map(|entry| layout::parse_record_name(&entry.name))
        .expect("a record");
    let path = layout::record_path(number);
    let size = world.memory.metadata(&path).expect("stat").size;
    let mut bytes = vec![0; size as usize];
    let file = world.memory.open(&path).expect("open");
    file.read_at(&mut bytes, 0).expect("read");
    record::decode(&bytes).expect("a record")
}

/// Puts `receipt` where that of `batch` belongs, and takes away what else there is of the batch.
fn leave(world: &World, batch: BatchNo, receipt: &BatchRecord) {
    let memory = &world.memory;
    let staging = layout::staging_dir(batch);
    for entry in memory.read_dir(&staging).expect("list") {
        memory
            .remove_file(&staging.join(&entry.name))
            .expect("remove");
    }
    memory.remove_dir(&staging).expect("remove");
    memory
        .remove_file(&layout::record_path(batch))
        .expect("remove");
    let name = format!(".ferryfs/batches/{:016x}.done", batch.0);
    let path = RelPath::parse(name.as_bytes()).expect("a path");
    let mut file = memory.create(&path).expect("create");
    file.append(&record::encode(receipt)).expect("write");
    file.finish(Timestamp(0)).expect("close");
    memory.sync().expect("sync");
}

#[test]
fn a_forged_receipt_does_not_make_the_cache_forget_what_was_not_carried() {
    for forge in [
        |record: &mut BatchRecord| record.steps = Steps::default(),
        |record: &mut BatchRecord| record.created = Timestamp(0),
    ] {
        let world = World::new(Kind::Plain);
        let real = committed(&world);
        let mut forged = real.clone();
        forge(&mut forged);
        leave(&world, real.batch, &forged);
        let engine = world.start(true);
        engine.flusher.recover().expect("recover");
        engine.flush_all();
        assert_eq!(
            world.on_drive("precious").as_deref(),
            Some(&b"precious"[..]),
            "it was carried after all"
        );
        assert_eq!(world.leftovers(), Vec::<String>::new());
        world.check(&engine);
    }
}

#[test]
fn the_receipt_of_a_batch_that_was_finished_elsewhere_is_taken() {
    let world = World::new(Kind::Plain);
    committed(&world);
    ferryfs::recovery::interrupted::recover_without_cache(&world.memory)
        .expect("recover elsewhere");
    let engine = world.start(true);
    engine.flusher.recover().expect("recover");
    assert_eq!(engine.flush_all().batch, None, "nothing is carried again");
    assert_eq!(
        world.on_drive("precious").as_deref(),
        Some(&b"precious"[..])
    );
    assert_eq!(world.leftovers(), Vec::<String>::new());
    world.check(&engine);
}
