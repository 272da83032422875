//! What replaying a log gives: the catalog that a plain model has, however it is cut into segments
//! and compacted.

use std::collections::BTreeMap;

use ferryfs::core::RelPath;
use ferryfs::format::catalog::chain::{FoundSegment, Link, LogState, Replay};
use ferryfs::format::catalog::segment::{Segment, encode, hash_of};
use ferryfs::format::catalog::store::CatalogStore;
use ferryfs::format::catalog::{
    CatalogBatch, CatalogChange, CatalogTree, Description, chain, check_changes,
};
use ferryfs::format::steps::SlotNo;
use proptest::prelude::*;

use super::some::{VOLUME, descriptions, paths};

/// What is known of each path; a move goes through all of them.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model(BTreeMap<RelPath, Description>);

fn is_below(path: &RelPath, dir: &RelPath) -> bool {
    let mut names = path.components();
    dir.components().all(|name| names.next() == Some(name))
}

/// A change as someone would make it in one go.
#[derive(Clone, Debug)]
enum Deed {
    Set(RelPath, Box<Description>),
    Remove(RelPath),
    Move(RelPath, RelPath),
    Swap(RelPath, RelPath),
}

impl Model {
    fn take(&mut self, at: &RelPath) -> Vec<(RelPath, Description)> {
        let below: Vec<_> = self
            .0
            .keys()
            .filter(|it| is_below(it, at))
            .cloned()
            .collect();
        let mut taken = Vec::new();
        for path in below {
            let rest: Vec<&[u8]> = path.components().skip(at.depth()).collect();
            let rest = RelPath::parse(&rest.join(&b'/')).unwrap();
            taken.push((rest, self.0.remove(&path).unwrap()));
        }
        taken
    }

    fn put(&mut self, at: &RelPath, what: Vec<(RelPath, Description)>) {
        self.take(at);
        for (rest, description) in what {
            self.0.insert(at.join_path(&rest), description);
        }
    }

    fn apply(&mut self, deed: &Deed) {
        match deed {
            Deed::Set(path, description) => {
                self.0.insert(path.clone(), (**description).clone());
            }
            Deed::Remove(path) => drop(self.take(path)),
            Deed::Move(from, to) => {
                let what = self.take(from);
                self.put(to, what);
            }
            Deed::Swap(a, b) => {
                let (of_a, of_b) = (self.take(a), self.take(b));
                self.put(a, of_b);
                self.put(b, of_a);
            }
        }
    }
}

fn changes(deeds: &[Deed]) -> Vec<CatalogChange> {
    let mut changes = Vec::new();
    let mut next = 0;
    let mut move_to = |from: &RelPath| {
        next += 1;
        let (slot, from) = (SlotNo(next), from.clone());
        (CatalogChange::Detach { from, slot }, slot)
    };
    let attach = |slot, to: &RelPath| CatalogChange::Attach {
        slot,
        to: to.clone(),
    };
    for deed in deeds {
        match deed.clone() {
            Deed::Set(path, description) => {
                changes.push(CatalogChange::Set { path, description });
            }
            Deed::Remove(path) => changes.push(CatalogChange::Remove { path }),
            Deed::Move(from, to) => {
                let (detach, slot) = move_to(&from);
                changes.extend([detach, attach(slot, &to)]);
            }
            Deed::Swap(a, b) => {
                let ((of_a, slot_a), (of_b, slot_b)) = (move_to(&a), move_to(&b));
                changes.extend([of_a, of_b, attach(slot_b, &a), attach(slot_a, &b)]);
            }
        }
    }
    changes
}

fn deeds() -> impl Strategy<Value = Deed> {
    let apart = |(a, b): &(RelPath, RelPath)| !is_below(a, b) && !is_below(b, a);
    prop_oneof![
        6 => (paths(), descriptions()).prop_map(|(path, it)| Deed::Set(path, Box::new(it))),
        1 => paths().prop_map(Deed::Remove),
        2 => (paths(), paths()).prop_filter("apart", apart).prop_map(|(a, b)| Deed::Move(a, b)),
        1 => (paths(), paths()).prop_filter("apart", apart).prop_map(|(a, b)| Deed::Swap(a, b)),
    ]
}

/// The catalog's directory on a drive, and what a machine that writes it keeps.
#[derive(Default)]
struct Drive {
    segments: BTreeMap<u64, Vec<u8>>,
    log: LogState,
    mirror: CatalogTree,
}

impl Drive {
    fn write(&mut self, deeds: &[Deed]) -> u64 {
        let next = self.log.next(self.mirror.live_bytes());
        let changes = changes(deeds);
        check_changes(&changes, false).expect("changes that can be meant");
        for change in &changes {
            let Ok(()) = self.mirror.take(change);
        }
        let batch = CatalogBatch {
            segment: next.number,
            after: next.after,
            full: next.full,
            changes: if next.full {
                self.mirror.whole()
            } else {
                changes
            },
        };
        check_changes(&batch.changes, batch.full).expect("a whole that can be meant");
        let bytes = encode(VOLUME, &batch);
        let hash = hash_of(&bytes).unwrap();
        if next.full {
            self.segments.clear();
        }
        self.log = self.log.with(&batch, hash, bytes.len() as u64);
        assert_eq!(self.log.with(&batch, hash, bytes.len() as u64), self.log);
        let length = bytes.len() as u64;
        self.segments.insert(next.number, bytes);
        length
    }

    fn found(&self) -> BTreeMap<u64, FoundSegment> {
        let link = |bytes: &Vec<u8>| {
            let segment = Segment::decode(bytes).expect("whole");
            FoundSegment::Whole(Link {
                hash: segment.hash,
                after: segment.header.after,
                full: segment.header.full,
                bytes: bytes.len() as u64,
            })
        };
        let all = self.segments.iter();
        all.map(|(number, bytes)| (*number, link(bytes))).collect()
    }

    fn replay(&self, numbers: &[u64], tree: &mut CatalogTree) {
        for number in numbers {
            let segment = Segment::decode(&self.segments[number]).expect("whole");
            if segment.header.full {
                let Ok(()) = tree.clear();
            }
            for change in segment.changes() {
                let Ok(()) = tree.take(&change.expect("looked at before"));
            }
        }
    }
}

fn as_model(tree: &CatalogTree) -> Model {
    let sets = tree.whole().into_iter().map(|change| match change {
        CatalogChange::Set { path, description } => (path, *description),
        other => panic!("{other:?}"),
    });
    Model(sets.collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn replaying_the_log_gives_what_was_described(
        batches in proptest::collection::vec(proptest::collection::vec(deeds(), 0..12), 1..12),
        whole: prop::sample::Index,
        known: prop::sample::Index,
    ) {
        let (mut model, mut drive) = (Model::default(), Drive::default());
        let (whole, known) = (whole.index(batches.len()), known.index(batches.len()));
        let (mut head, mut mirror) = (None, CatalogTree::new());
        for (nth, batch) in batches.iter().enumerate() {
            drive.log.broken |= nth == whole;
            batch.iter().for_each(|deed| model.apply(deed));
            drive.write(batch);
            if nth == known {
                (head, mirror) = (drive.log.head, drive.mirror.clone());
            }
        }
        prop_assert_eq!(as_model(&drive.mirror), model.clone());

        // A machine that knows nothing, and one that was there at some point.
        let fresh = chain::read(&drive.found(), None);
        prop_assert_eq!((&fresh.state, fresh.lost.len()), (&drive.log, 0));
        let Replay::Anew(numbers) = fresh.replay else { panic!("{:?}", fresh.replay) };
        let mut tree = CatalogTree::new();
        drive.replay(&numbers, &mut tree);
        prop_assert_eq!(as_model(&tree), model.clone());

        let again = chain::read(&drive.found(), head);
        prop_assert_eq!(again.state, drive.log.clone());
        match again.replay {
            Replay::Nothing => {}
            Replay::Forward(numbers) | Replay::Anew(numbers) => drive.replay(&numbers, &mut mirror),
        }
        prop_assert_eq!(as_model(&mirror), model);
        prop_assert!(mirror == drive.mirror);
    }

    #[test]
    fn what_a_whole_takes_is_what_is_reckoned(all in proptest::collection::vec(deeds(), 0..60)) {
        let mut tree = CatalogTree::new();
        for change in changes(&all) {
            let Ok(()) = tree.take(&change);
        }
        let bytes = encode(VOLUME, &super::full(1, tree.whole())).len() as u64;
        let frame = (super::CHANGES + super::CHECKSUM) as u64;
        prop_assert!(bytes <= tree.live_bytes() + frame);
        // Names without a description on the way to one are counted as well, so a little more is.
        let described = tree.whole().iter().map(|it| it.path().depth() as u64 + 1).sum::<u64>();
        prop_assert!(tree.live_bytes() <= bytes + 10 * described + 16);
    }
}

#[test]
fn the_log_never_takes_more_than_twice_what_it_describes_a_mib_and_a_batch() {
    let mut drive = Drive::default();
    let (mut most_over, mut fulls) = (0, 0);
    for round in 0..400_u32 {
        let set = |n: u32| {
            let path = format!("directory {}/file {n}", n % 7);
            let mut description = super::some::rich_file();
            description
                .xattrs
                .insert(Box::from(&b"user.c"[..]), vec![1; 2000].into());
            description.permissions = round % 0o1000;
            Deed::Set(
                RelPath::parse(path.as_bytes()).unwrap(),
                Box::new(description),
            )
        };
        let mut deeds: Vec<Deed> = (0..20).map(|n| set(round * 13 % 500 + n)).collect();
        if round % 100 == 99 {
            // What is gone takes its share of the log with it.
            deeds = (0..7)
                .map(|n| Deed::Remove(RelPath::parse(format!("directory {n}").as_bytes()).unwrap()))
                .collect();
        }
        let batch = drive.write(&deeds);
        fulls += u32::from(drive.segments.len() == 1);
        let total: u64 = drive.segments.values().map(|it| it.len() as u64).sum();
        assert_eq!(total, drive.log.bytes);
        let bound = 2 * drive.mirror.live_bytes() + (1 << 20) + batch;
        most_over = most_over.max(total);
        // What a removal frees is compacted by the batch after it.
        if round % 100 != 99 {
            assert!(total <= bound, "round {round}: {total} > {bound}");
        }
    }
    assert!(most_over > 1 << 20, "it never grew");
    assert!((2..100).contains(&fulls), "{fulls} full segments");
}
