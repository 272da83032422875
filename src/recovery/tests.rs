//! Segments on a drive that loses power at every call, as exFAT does; and logs that somebody has
//! changed.

use std::sync::Arc;

use uuid::Uuid;

use crate::apply::place::Manners;
use crate::apply::staging::discard;
use crate::apply::{Applied, Applier};
use crate::catalog::{make_dir, read_catalog};
use crate::core::{BatchNo, ContentHash, FileKind, RelPath, Timestamp, Xattrs};
use crate::drive::faulty::{Fault, FaultyBackend};
use crate::drive::memory::{Crash, MemoryBackend, MemoryOptions};
use crate::drive::{Backend, create_with};
use crate::error::{FlushError, Result};
use crate::format::catalog::chain::{Head, LogState, Replay};
use crate::format::catalog::store::CatalogStore;
use crate::format::catalog::{
    CatalogBatch, CatalogChange, CatalogTree, Description, Principal, segment,
};
use crate::format::expectations::{Expectations, ExpectedFile};
use crate::format::marker::Marker;
use crate::format::record::BatchRecord;
use crate::format::steps::{ClearStep, PlaceStep, Steps};
use crate::format::{layout, marker, record};
use crate::recovery::interrupted::recover_without_cache;

const VOLUME: Uuid = Uuid::from_u128(0x6f1d_3a52_8c0e_4b7a_9d24_51c3_e07f_88b1);

fn path(text: &str) -> RelPath {
    RelPath::parse(text.as_bytes()).unwrap()
}

fn set(at: &str, permissions: u32) -> CatalogChange {
    let nobody = Principal { id: 0, name: None };
    let description = Description {
        kind: FileKind::Directory,
        permissions,
        owner: nobody.clone(),
        group: nobody,
        modified: Timestamp(7),
        size: 0,
        target: None,
        rdev: 0,
        link: None,
        xattrs: Xattrs::from([(Box::from(&b"user.x"[..]), vec![b'x'; 300].into())]),
        name: None,
        holes: vec![],
    };
    CatalogChange::Set {
        path: path(at),
        description: Box::new(description),
    }
}

/// A drive, and the state of its only writer. Batch `n` removes the directory of the one before and
/// a file, makes its own, and describes it.
#[derive(Clone)]
struct Lab {
    memory: MemoryBackend,
    log: LogState,
    tree: CatalogTree,
}

impl Lab {
    fn new() -> Lab {
        let memory = MemoryBackend::new(MemoryOptions::exfat_like());
        for dir in [layout::dir(), layout::staging_root(), layout::batches_dir()] {
            memory.make_dir(&dir).unwrap();
        }
        let marker = Marker::new(VOLUME, [7; 16], Timestamp(0));
        create_with(&memory, &layout::marker_path(), &marker::encode(&marker)).unwrap();
        memory.make_dir(&path("d0")).unwrap();
        for n in 1..10 {
            let mut file = memory.create(&path(&format!("old{n}"))).unwrap();
            file.append(&[b'o'; 5000]).unwrap();
            file.finish(Timestamp(0)).unwrap();
        }
        memory.sync().unwrap();
        Lab {
            memory,
            log: LogState::default(),
            tree: CatalogTree::new(),
        }
    }

    /// Returns batch `n`, and the catalog after it.
    fn batch(&self, n: u64) -> (BatchRecord, CatalogTree) {
        let (own, before, old) = (format!("d{n}"), format!("d{}", n - 1), format!("old{n}"));
        let mut changes = vec![
            CatalogChange::Remove {
                path: path(&before),
            },
            set(&own, n as u32),
        ];
        let mut tree = self.tree.clone();
        for change in &changes {
            let Ok(()) = tree.take(change);
        }
        let next = self.log.next(tree.live_bytes());
        if next.full {
            changes = tree.whole();
        }
        let removed = ExpectedFile {
            size: 5000,
            ..ExpectedFile::ANYTHING
        };
        let record = BatchRecord {
            volume: VOLUME,
            batch: BatchNo(n),
            created: Timestamp(0),
            origin: [1; 16],
            steps: Steps {
                clear: vec![
                    ClearStep::RemoveFile { path: path(&old) },
                    ClearStep::RemoveDir {
                        path: path(&before),
                    },
                ],
                place: vec![PlaceStep::MakeDir { path: path(&own) }],
                attributes: vec![],
            },
            known: Expectations {
                removed: [(path(&old), removed)].into(),
                ..Expectations::default()
            },
            catalog: Some(CatalogBatch {
                segment: next.number,
                after: next.after,
                full: next.full,
                changes,
            }),
        };
        (record, tree)
    }

    /// Notes that a batch is on the drive.
    fn done(&mut self, record: &BatchRecord, tree: CatalogTree) {
        let batch = record.catalog.as_ref().unwrap();
        let bytes = segment::encode(VOLUME, batch);
        let hash = segment::hash_of(&bytes).unwrap();
        self.log = self.log.with(batch, hash, bytes.len() as u64);
        self.tree = tree;
    }

    fn run_batch(&mut self, n: u64) {
        let (record, tree) = self.batch(n);
        run(&self.memory, &record).unwrap();
        self.done(&record, tree);
    }

    fn read(&self, mirror: Option<Head>) -> (crate::catalog::CatalogLog, CatalogTree) {
        let log = read_catalog(&self.memory, VOLUME, mirror).unwrap();
        let mut tree = CatalogTree::new();
        log.replay(&self.memory, &mut tree).unwrap();
        (log, tree)
    }

    fn overwrite(&self, number: u64, bytes: &[u8]) {
        let path = layout::segment_path(number);
        let _ = self.memory.remove_file(&path);
        create_with(&self.memory, &path, bytes).unwrap();
    }

    fn segment(&self, number: u64) -> Vec<u8> {
        let path = layout::segment_path(number);
        let size = self.memory.metadata(&path).unwrap().size as usize;
        let mut bytes = vec![0; size];
        let file = self.memory.open(&path).unwrap();
        assert_eq!(file.read_at(&mut bytes, 0).unwrap(), size);
        bytes
    }
}

/// Runs a batch from its commit to its end, as the flusher does.
fn run(backend: &dyn Backend, record: &BatchRecord) -> Result<()> {
    apply(backend, record)?;
    backend.remove_file(&layout::record_path(record.batch))?;
    backend.sync()?;
    discard(backend, &layout::staging_dir(record.batch))
}

/// The same up to its application.
fn apply(backend: &dyn Backend, record: &BatchRecord) -> Result<()> {
    let staging = layout::staging_dir(record.batch);
    backend.make_dir(&staging)?;
    backend.sync()?;
    make_dir(backend)?;
    let sealed = record::seal(record).unwrap();
    create_with(backend, &layout::record_path(record.batch), &sealed)?;
    backend.sync()?;
    let manners = Manners {
        time: record.created,
        host: "here".into(),
        slack: 1,
        full_is_refusal: false,
        keeps_versions: false,
    };
    let applier = Applier {
        backend,
        batch: record.batch,
        volume: record.volume,
        steps: &record.steps,
        known: &record.known,
        catalog: record.catalog.as_ref(),
        manners: &manners,
    };
    applier.apply(&mut Applied::default(), |_| {})
}

/// After a crash in batch `n` the drive is finished elsewhere: its tree and its catalog are both
/// those of before, or both those of the batch, and sound.
fn check_recovered(
    lab: &Lab,
    n: u64,
    after: &CatalogTree,
    size: Size,
) -> std::result::Result<(), String> {
    recover_without_cache(&lab.memory).map_err(|error| error.to_string())?;
    recover_without_cache(&lab.memory).map_err(|error| error.to_string())?;
    let tree = lab.memory.tree();
    let has = |name: String| tree.contains_key(&path(&name));
    let (log, found) = lab.read(None);
    if !log.lost.is_empty() || log.state.broken {
        return Err(format!("lost: {:?}", log.lost));
    }
    let dirs = (has(format!("d{}", n - 1)), has(format!("d{n}")));
    let wanted = match (dirs, has(format!("old{n}")), size) {
        ((true, false), true, _) => &lab.tree,
        ((false, true), false, Size::Whole) | ((true, false), false, Size::OneRemoval) => after,
        other => return Err(format!("neither before nor after: {other:?}")),
    };
    if found != *wanted {
        return Err("tree and catalog are not of one cut".into());
    }
    // A reader that was there before takes it from its mirror.
    let (_, from_mirror) = (log, lab.read(lab.log.head));
    if !matches!(from_mirror.0.replay, Replay::Nothing) || found == lab.tree {
        let mut mirror = lab.tree.clone();
        let again = from_mirror.0.replay(&lab.memory, &mut mirror);
        again.map_err(|error| error.to_string())?;
        if mirror != *wanted {
            return Err("the mirror is another".into());
        }
    }
    lab.memory.sync().map_err(|error| error.to_string())?;
    // A record under both of its names stays so until its cache comes.
    let mut damage = lab.memory.damage();
    damage.retain(|told| !told.starts_with(layout::BATCHES));
    match damage.is_empty() {
        true => Ok(()),
        false => Err(format!("damaged: {damage:?}")),
    }
}

/// What batch 4 does to the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    /// As the others.
    Whole,
    /// It removes a file and nothing else, so that nothing is synced between the removal and the
    /// end.
    OneRemoval,
}

/// Stops batch 4 at each of its calls to the drive, which loses what `crash` says, and once more in
/// the recovery.
fn lose_at_every_call(full: bool, size: Size, draws: u64, crash: impl Fn(u64) -> Option<Crash>) {
    let mut cases = 0;
    let mut start = Lab::new();
    for n in 1..4 {
        start.run_batch(n);
    }
    start.log.broken = full;
    for call in 1.. {
        let mut failed = false;
        for draw in 0..draws {
            let lab = Lab {
                memory: start.memory.snapshot(),
                ..start.clone()
            };
            let lose = |seed: u64| match crash(seed) {
                Some(crash) => lab.memory.crash(crash),
                None => {
                    lab.memory.crash_to_durable();
                    Vec::new()
                }
            };
            let (mut record, after) = lab.batch(4);
            if size == Size::OneRemoval {
                record.steps.clear.truncate(1);
                record.steps.place.clear();
                assert!(!record.steps.needs_barrier() && !record.steps.needs_sync_between());
            }
            assert_eq!(record.catalog.as_ref().unwrap().full, full);
            let faulty = FaultyBackend::new(lab.memory.clone());
            faulty.arm(Fault {
                stays_dead: true,
                takes_effect: draw % 2 == 0,
                ..Fault::at(call, libc::EIO)
            });
            failed |= apply(&faulty, &record).is_err();
            let mut story = lose(call * 1000 + draw);
            // The recovery is interrupted as well, at another call each time.
            faulty.heal();
            faulty.arm(Fault {
                stays_dead: true,
                takes_effect: draw % 3 == 0,
                ..Fault::at(faulty.calls() + 1 + draw, libc::EIO)
            });
            if recover_without_cache(&faulty).is_err() {
                story.push("-- and in the recovery".into());
                story.extend(lose(call * 2000 + draw));
            }
            cases += 1;
            if let Err(problem) = check_recovered(&lab, 4, &after, size) {
                panic!(
                    "call {call}, draw {draw}: {problem}\n  {}",
                    story.join("\n  ")
                );
            }
        }
        if !failed {
            break;
        }
    }
    assert!(cases >= 60, "{cases} cases");
}

#[test]
fn a_segment_and_its_batch_are_there_both_or_neither_when_all_is_lost() {
    lose_at_every_call(false, Size::Whole, 8, |_| None);
    lose_at_every_call(true, Size::Whole, 8, |_| None);
}

#[test]
fn a_segment_and_its_batch_are_there_both_or_neither_after_any_loss() {
    lose_at_every_call(false, Size::Whole, 20, |seed| Some(Crash::Random(seed)));
}

#[test]
fn a_segment_is_never_on_clusters_that_a_crash_gives_back_to_what_its_batch_removes() {
    for full in [false, true] {
        lose_at_every_call(full, Size::OneRemoval, 60, |seed| Some(Crash::Random(seed)));
    }
}

#[test]
fn a_compaction_that_loses_power_anywhere_keeps_the_state_and_leaves_no_damage() {
    lose_at_every_call(true, Size::Whole, 20, |seed| Some(Crash::Random(seed)));
}

/// Four batches: segment 1, full, to 4.
fn four() -> Lab {
    let mut lab = Lab::new();
    for n in 1..5 {
        lab.run_batch(n);
    }
    lab
}

#[test]
fn a_log_is_read_by_who_knows_nothing_and_by_who_knows_a_part() {
    let mut lab = Lab::new();
    lab.run_batch(1);
    let (head, mut mirror) = (lab.log.head, lab.tree.clone());
    for n in 2..5 {
        lab.run_batch(n);
    }
    let (log, tree) = lab.read(None);
    assert!(tree == lab.tree && log.lost.is_empty());
    assert_eq!(
        (log.state, log.replay.numbers()),
        (lab.log.clone(), &[1, 2, 3, 4][..])
    );
    let log = read_catalog(&lab.memory, VOLUME, head).unwrap();
    assert_eq!(log.replay, Replay::Forward(vec![2, 3, 4]));
    log.replay(&lab.memory, &mut mirror).unwrap();
    assert!(mirror == lab.tree);
    let log = read_catalog(&lab.memory, VOLUME, lab.log.head).unwrap();
    assert_eq!((log.replay, log.state), (Replay::Nothing, lab.log));
}

#[test]
fn a_compaction_leaves_one_segment_and_what_is_damaged() {
    let mut lab = four();
    lab.overwrite(2, b"damaged");
    lab.log = lab.read(None).0.state;
    assert!(lab.log.broken);
    lab.tree = lab.read(None).1;
    lab.run_batch(5);
    let left: Vec<u64> = crate::catalog::reader::segments(&lab.memory)
        .unwrap()
        .iter()
        .filter_map(|entry| layout::parse_segment_name(&entry.name))
        .collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left.contains(&2) && left.contains(&5));
    let (log, tree) = lab.read(None);
    assert!(tree == lab.tree && log.lost.is_empty() && !log.state.broken);
}

#[test]
fn a_segment_that_is_damaged_at_any_byte_costs_attributes_and_is_said() {
    let lab = four();
    let bytes = lab.segment(3);
    for at in (0..bytes.len()).step_by(7).chain([bytes.len() - 1]) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x40;
        lab.overwrite(3, &damaged);
        let (log, tree) = lab.read(None);
        assert_eq!(log.replay, Replay::Anew(vec![1, 2]));
        assert!(log.state.broken && tree != lab.tree);
        assert!(log.lost[0].contains("segment 3"), "{:?}", log.lost);
        // The machine that wrote it has lost nothing.
        let log = read_catalog(&lab.memory, VOLUME, lab.log.head).unwrap();
        assert_eq!(
            (log.replay, log.state.head),
            (Replay::Nothing, lab.log.head)
        );
        assert!(log.state.broken && log.lost.is_empty());
    }
}

#[test]
fn what_is_no_segment_under_a_segments_name_counts_for_nothing() {
    type Plant = Box<dyn Fn(&Lab, &RelPath)>;
    let sealed = |mut body: Vec<u8>| {
        let checksum = blake3::hash(&body);
        body.extend_from_slice(checksum.as_bytes());
        body
    };
    let good = four().segment(4);
    let body = &good[..good.len() - 32];
    let mut other_volume = body.to_vec();
    other_volume[16] ^= 1;
    let mut senseless = body.to_vec();
    senseless.truncate(body.len() - 1);
    let files = [
        vec![],
        b"ferrycat".to_vec(),
        good.repeat(2),
        sealed(other_volume),
        sealed(senseless),
        four().segment(3),
    ];
    let mut plants: Vec<Plant> = vec![Box::new(|lab, path| lab.memory.make_dir(path).unwrap())];
    for bytes in files {
        plants.push(Box::new(move |lab, path| {
            create_with(&lab.memory, path, &bytes).unwrap();
        }));
    }
    for (nth, plant) in plants.iter().enumerate() {
        let lab = four();
        let path = layout::segment_path(4);
        lab.memory.remove_file(&path).unwrap();
        plant(&lab, &path);
        let (log, _) = lab.read(None);
        assert_eq!(log.replay, Replay::Anew(vec![1, 2, 3]), "plant {nth}");
        assert!(log.state.broken && log.lost.len() == 1, "plant {nth}");
        assert_eq!(log.state.next(0).number, 5);
    }
}

#[test]
fn a_link_in_the_place_of_a_segment_is_not_followed() {
    let lab = four();
    let options = MemoryOptions::default();
    let memory = MemoryBackend::new(options);
    for dir in [layout::dir(), layout::catalog_dir()] {
        memory.make_dir(&dir).unwrap();
    }
    create_with(&memory, &path("elsewhere"), &lab.segment(1)).unwrap();
    memory
        .make_symlink(b"../../elsewhere", &layout::segment_path(1))
        .unwrap();
    let log = read_catalog(&memory, VOLUME, None).unwrap();
    assert_eq!(log.replay, Replay::Anew(vec![]));
    assert!(log.lost[0].contains("is not a file"), "{:?}", log.lost);
}

#[test]
fn a_newer_segment_stops_all_writing_and_says_what_to_do() {
    let lab = four();
    let mut newer = lab.segment(4);
    newer.truncate(newer.len() - 32);
    newer[8] = 2;
    let checksum = blake3::hash(&newer);
    newer.extend_from_slice(checksum.as_bytes());
    lab.overwrite(4, &newer);
    for mirror in [None, lab.log.head] {
        let error = read_catalog(&lab.memory, VOLUME, mirror).unwrap_err();
        assert!(matches!(error, FlushError::Catalog(_)));
        assert!(error.to_string().contains("update ferryfs"), "{error}");
    }
    assert_eq!(lab.segment(4), newer);
}

#[test]
fn what_is_no_directory_in_the_place_of_the_log_is_named() {
    let memory = MemoryBackend::new(MemoryOptions::default());
    memory.make_dir(&layout::dir()).unwrap();
    assert_eq!(
        read_catalog(&memory, VOLUME, None).unwrap().state,
        LogState::default()
    );
    create_with(&memory, &layout::catalog_dir(), b"x").unwrap();
    let error = read_catalog(&memory, VOLUME, None).unwrap_err();
    assert!(matches!(error, FlushError::NotOurs { .. }), "{error}");
}

#[test]
fn names_that_no_segment_has_are_left_alone() {
    let lab = four();
    for name in [
        "1.seg",
        "000000000000000A.seg",
        "0000000000000009.seg.tmp",
        "x",
    ] {
        create_with(
            &lab.memory,
            &layout::catalog_dir().join_path(&path(name)),
            b"x",
        )
        .unwrap();
    }
    let (log, tree) = lab.read(None);
    assert!(tree == lab.tree && !log.state.broken);
    assert_eq!(log.state, lab.log);
}

#[test]
fn thousands_of_segments_are_read() {
    let memory = Arc::new(MemoryBackend::new(MemoryOptions::default()));
    for dir in [layout::dir(), layout::catalog_dir()] {
        memory.make_dir(&dir).unwrap();
    }
    let mut log = LogState::default();
    let mut after: Option<ContentHash> = None;
    for number in 1..=3000 {
        let batch = CatalogBatch {
            segment: number,
            after,
            full: number == 1,
            changes: vec![set(&format!("d{}", number % 5), number as u32 % 0o1000)],
        };
        crate::catalog::writer::write(&*memory, VOLUME, &batch).unwrap();
        let bytes = segment::encode(VOLUME, &batch);
        after = segment::hash_of(&bytes);
        log = log.with(&batch, after.unwrap(), bytes.len() as u64);
    }
    let found = read_catalog(&*memory, VOLUME, None).unwrap();
    assert_eq!(found.state, log);
    let mut tree = CatalogTree::new();
    found.replay(&*memory, &mut tree).unwrap();
    assert_eq!(tree.get(&path("d0")).unwrap().permissions, 3000 % 0o1000);
    assert!(log.next(tree.live_bytes()).full, "it is to be compacted");
}

#[test]
fn a_redo_leaves_alone_what_another_machine_has_written_since() {
    for full in [false, true] {
        let mut lab = four();
        lab.log.broken = full;
        let (record, _) = lab.batch(5);
        // The record was torn when the drive was elsewhere, and is taken from the journal now.
        let mut theirs = record.catalog.clone().unwrap();
        (theirs.full, theirs.after) = (false, lab.log.head.map(|head| head.hash));
        theirs.changes = vec![set("theirs", 0o700)];
        crate::catalog::writer::write(&lab.memory, VOLUME, &theirs).unwrap();
        let sealed = record::seal(&record).unwrap();
        create_with(&lab.memory, &layout::record_path(record.batch), &sealed).unwrap();
        recover_without_cache(&lab.memory).unwrap();
        let (log, tree) = lab.read(None);
        assert_eq!(log.replay, Replay::Anew(vec![1, 2, 3, 4, 5]));
        assert!(tree.get(&path("theirs")).is_some() && log.lost.is_empty());
    }
}
