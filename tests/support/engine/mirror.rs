//! The catalog on the drive, and what the index knows of it.

use ferryfs::format::catalog::CatalogTree;
use ferryfs::format::catalog::store::CatalogStore;

use super::{Engine, World};

/// The mirror is what a replay of the drive's log gives.
#[track_caller]
pub fn assert_mirrored(world: &World, engine: &Engine) {
    let log =
        ferryfs::catalog::read_catalog(&world.memory, world.volume, None).expect("read the log");
    assert_eq!(log.lost, Vec::<String>::new());
    let mut drive = CatalogTree::new();
    log.replay(&world.memory, &mut drive).expect("replay");
    let mut mirror = CatalogTree::new();
    let snapshot = engine.index.snapshot().expect("a snapshot");
    let walked = snapshot.whole_catalog(|path, description| {
        let Ok(()) = mirror.set(&path, &description);
        Ok(())
    });
    walked.expect("walk");
    assert_eq!(mirror.whole(), drive.whole(), "mirror and drive");
    assert_eq!(
        snapshot.catalog_log().expect("the log").head,
        log.state.head
    );
}
