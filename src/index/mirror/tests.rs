use proptest::prelude::*;

use super::*;
use crate::core::{Capabilities, ContentHash, FileKind, Timestamp};
use crate::format::catalog::chain::Head;
use crate::format::catalog::{CatalogChange, CatalogTree, Principal, check_changes};
use crate::plan::names::NameRules;

fn description(number: i64) -> Description {
    let nobody = Principal {
        id: 7,
        name: Some((*b"ada").into()),
    };
    Description {
        kind: FileKind::Regular,
        permissions: 0o644,
        owner: nobody.clone(),
        group: nobody,
        modified: Timestamp(number),
        size: 5,
        target: None,
        rdev: 0,
        link: (number % 3 == 0).then_some(u64::MAX - (number % 2) as u64),
        xattrs: [(b"user.x"[..].into(), b"\0v"[..].into())].into(),
        name: None,
        holes: Vec::new(),
    }
}

fn path() -> impl Strategy<Value = RelPath> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4)
        .prop_map(|names| RelPath::parse(names.join("/").as_bytes()).unwrap())
}

#[derive(Clone, Debug)]
enum Act {
    Move(RelPath, RelPath),
    Remove(RelPath),
    Set(RelPath, i64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (path(), path()).prop_map(|(from, to)| Act::Move(from, to)),
        path().prop_map(Act::Remove),
        (path(), 0..100i64).prop_map(|(path, number)| Act::Set(path, number)),
        (0..100i64).prop_map(|number| Act::Set(RelPath::root(), number)),
    ]
}

fn new_index(dir: &std::path::Path) -> Index {
    let rules = NameRules::new(&Capabilities::plain());
    Index::open(&dir.join("index.db"), rules).unwrap()
}

fn whole(index: &Index) -> Vec<CatalogChange> {
    let mut changes = Vec::new();
    let snapshot = index.snapshot().unwrap();
    snapshot
        .whole_catalog(|path, description| {
            changes.push(CatalogChange::Set {
                path,
                description: Box::new(description),
            });
            Ok(())
        })
        .unwrap();
    changes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_mirror_is_what_the_changes_give_in_memory(acts in prop::collection::vec(act(), 1..40), cleared in 0..40usize) {
        let dir = tempfile::tempdir().unwrap();
        let index = new_index(dir.path());
        let mut tree = CatalogTree::new();
        for (nth, act) in acts.into_iter().enumerate() {
            let slot = SlotNo(nth as u32);
            let changes = match act {
                Act::Move(from, to) => vec![
                    CatalogChange::Detach { from, slot },
                    CatalogChange::Attach { slot, to },
                ],
                Act::Remove(path) => vec![CatalogChange::Remove { path }],
                Act::Set(path, number) => vec![CatalogChange::Set {
                    path,
                    description: Box::new(description(number)),
                }],
            };
            let mut state = index.lock();
            if nth == cleared {
                state.clear().unwrap();
                tree.clear().unwrap();
            }
            for change in &changes {
                state.take(change).unwrap();
                tree.take(change).unwrap();
            }
            // Forgotten rows are removed a few at a time, at any time.
            if nth % 3 == 0 {
                state.sweep_catalog(2).unwrap();
            }
            state.commit().unwrap();
        }
        index.sweep_catalog().unwrap();
        prop_assert_eq!(whole(&index), tree.whole());
        prop_assert_eq!(check_changes(&whole(&index), true), Ok(()));
        let snapshot = index.snapshot().unwrap();
        prop_assert_eq!(snapshot.catalog_is_empty().unwrap(), tree.whole().is_empty());
        let rows: i64 = snapshot.conn.query_row("SELECT count(*) FROM catalog_nodes WHERE parent < 0", [], |row| row.get(0)).unwrap();
        prop_assert_eq!(rows, 0, "what is forgotten is gone");
        let links = |of: u64| whole(&index).iter().filter(|change| matches!(change, CatalogChange::Set { description, .. } if description.link == Some(of))).count();
        for link in [u64::MAX, u64::MAX - 1] {
            prop_assert_eq!(index.lock().described_links(link).unwrap().len(), links(link));
        }
    }
}

#[test]
fn moving_a_large_directory_is_one_row() {
    let dir = tempfile::tempdir().unwrap();
    let index = new_index(dir.path());
    let mut state = index.lock();
    for n in 0..2000 {
        let path = RelPath::parse(format!("big/{n}").as_bytes()).unwrap();
        state.set(&path, &description(n)).unwrap();
    }
    state.commit().unwrap();
    let changes = |state: &IndexWriter| state.conn.total_changes();
    let before = changes(&state);
    state.detach(&RelPath::fixed("big"), SlotNo(0)).unwrap();
    state.attach(SlotNo(0), &RelPath::fixed("moved")).unwrap();
    assert_eq!(changes(&state) - before, 2, "one row, twice");
    state.remove(&RelPath::fixed("moved")).unwrap();
    assert_eq!(changes(&state) - before, 3, "and one to forget it all");
    assert_eq!(state.description(&RelPath::fixed("moved/5")).unwrap(), None);
    assert!(state.sweep_catalog(100).unwrap(), "the rest follows");
}

#[test]
fn what_is_noted_of_the_log_is_read_again_and_a_replay_cut_short_is_of_no_log() {
    let dir = tempfile::tempdir().unwrap();
    let log = LogState {
        head: Some(Head {
            number: 9,
            hash: ContentHash([0xa5; 32]),
        }),
        highest: 11,
        bytes: 1 << 40,
        broken: true,
    };
    {
        let index = new_index(dir.path());
        assert_eq!(index.lock().catalog_log().unwrap(), LogState::default());
        Mirror::begin(&index).unwrap().end(&log).unwrap();
        index.sync().unwrap();
    }
    let index = new_index(dir.path());
    assert_eq!(index.lock().catalog_log().unwrap(), log);
    let mut mirror = Mirror::begin(&index).unwrap();
    mirror.set(&RelPath::fixed("a"), &description(1)).unwrap();
    index.commit().unwrap();
    assert_eq!(index.lock().catalog_log().unwrap().head, None);
}
