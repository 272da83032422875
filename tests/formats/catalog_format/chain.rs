//! Which segments count when some are missing, damaged, doubled or of another way.

use std::collections::BTreeMap;

use ferryfs::core::ContentHash;
use ferryfs::format::catalog::chain::{Chain, FoundSegment, Head, Link, Replay, Unusable, read};

fn hash(number: u64) -> ContentHash {
    ContentHash([number as u8; 32])
}

fn head(number: u64) -> Option<Head> {
    let hash = hash(number);
    Some(Head { number, hash })
}

fn segment(number: u64, full: bool) -> (u64, FoundSegment) {
    let link = Link {
        hash: hash(number),
        after: Some(hash(number - 1)),
        full,
        bytes: 100,
    };
    (number, FoundSegment::Whole(link))
}

fn bad(number: u64) -> (u64, FoundSegment) {
    (number, FoundSegment::Bad(Unusable::Damaged))
}

/// Segment 5, full, and those up to `last`.
fn log(last: u64) -> BTreeMap<u64, FoundSegment> {
    (5..=last)
        .map(|number| segment(number, number == 5))
        .collect()
}

fn read_all(found: &BTreeMap<u64, FoundSegment>, mirror: Option<Head>) -> Chain {
    let chain = read(found, mirror);
    // Whoever comes next and knows nothing is led by the next segment to where we are, or it is a
    // full one.
    let next = chain.state.next(0);
    assert!(next.full || next.number == chain.state.head.unwrap().number + 1);
    assert!(!found.contains_key(&next.number));
    chain
}

#[test]
fn a_sound_log_is_replayed_from_its_last_full_segment() {
    let mut found = log(9);
    found.extend([segment(3, true), segment(4, false), bad(2)]);
    let chain = read_all(&found, None);
    assert_eq!(chain.replay, Replay::Anew(vec![5, 6, 7, 8, 9]));
    assert_eq!((chain.state.head, chain.state.bytes), (head(9), 500));
    assert!(!chain.state.broken && chain.lost.is_empty());
    assert_eq!(read_all(&found, head(9)).replay, Replay::Nothing);
    assert_eq!(
        read_all(&found, head(7)).replay,
        Replay::Forward(vec![8, 9])
    );
    // What is below the last full segment leads nowhere any more.
    assert_eq!(
        read_all(&found, head(4)).replay,
        Replay::Anew(vec![5, 6, 7, 8, 9])
    );
}

#[test]
fn an_empty_log_is_begun_with_a_full_segment() {
    let chain = read_all(&BTreeMap::new(), None);
    assert_eq!(chain.replay, Replay::Anew(vec![]));
    let next = chain.state.next(0);
    assert_eq!((next.number, next.after, next.full), (1, None, true));
    assert!(chain.lost.is_empty());
}

#[test]
fn behind_a_damaged_or_missing_segment_all_is_lost_and_said() {
    for damaged in [true, false] {
        let mut found = log(9);
        found.remove(&7);
        found.extend(damaged.then(|| bad(7)));
        let chain = read_all(&found, None);
        assert_eq!(chain.replay, Replay::Anew(vec![5, 6]));
        assert_eq!(chain.state.head, head(6));
        assert!(chain.state.broken);
        assert_eq!(chain.lost.len(), 3, "{:?}", chain.lost);
        assert!(chain.lost[0].contains("segment 7"));
        let next = chain.state.next(0);
        assert_eq!((next.number, next.full), (10, true));
        // A later full segment makes up for it.
        found.extend([segment(10, true), segment(11, false)]);
        let chain = read_all(&found, None);
        assert_eq!(chain.replay, Replay::Anew(vec![10, 11]));
        assert!(!chain.state.broken && chain.lost.is_empty());
    }
}

#[test]
fn what_is_damaged_on_the_drive_is_made_up_for_by_a_mirror() {
    let mut found = log(9);
    found.extend([bad(7)]);
    for (mirror, replay) in [
        (9, Replay::Nothing),
        (8, Replay::Forward(vec![9])),
        (7, Replay::Forward(vec![8, 9])),
    ] {
        let chain = read_all(&found, head(mirror));
        assert_eq!((chain.replay, chain.state.head), (replay, head(9)));
        assert!(chain.lost.is_empty() && !chain.mended.is_empty());
        assert!(chain.state.broken, "the next machine has no mirror");
    }
    // One that never had it has lost it as well.
    let chain = read_all(&found, head(6));
    assert_eq!((chain.replay, chain.state.head), (Replay::Nothing, head(6)));
    assert_eq!(chain.lost.len(), 3);
}

#[test]
fn a_log_that_is_gone_or_shorter_than_the_mirror_takes_nothing_from_it() {
    for found in [BTreeMap::new(), log(8), BTreeMap::from([bad(9)])] {
        let chain = read_all(&found, head(9));
        assert_eq!((chain.replay, chain.state.head), (Replay::Nothing, head(9)));
        assert!(chain.state.broken && chain.lost.is_empty());
        assert!(!chain.mended.is_empty());
        assert_eq!(chain.state.next(0).number, 10);
    }
}

#[test]
fn a_log_that_has_taken_another_way_counts_and_not_the_mirror() {
    let other = Some(Head {
        number: 9,
        hash: ContentHash([0xff; 32]),
    });
    let chain = read_all(&log(9), other);
    assert_eq!(chain.replay, Replay::Anew(vec![5, 6, 7, 8, 9]));
    assert_eq!(chain.state.head, head(9));
    assert!(!chain.state.broken);
}

#[test]
fn segments_without_any_full_one_count_for_nothing() {
    let mut found = log(9);
    found.remove(&5);
    let chain = read_all(&found, None);
    assert_eq!(
        (chain.replay, chain.state.head),
        (Replay::Anew(vec![]), None)
    );
    assert!(!chain.lost.is_empty() && chain.state.broken);
    assert_eq!(chain.state.next(0).number, 10);
}

#[test]
fn a_segment_that_follows_on_another_than_the_one_before_it_does_not_count() {
    let mut found = log(9);
    let stray = Link {
        hash: hash(8),
        after: Some(hash(99)),
        full: false,
        bytes: 100,
    };
    found.insert(8, FoundSegment::Whole(stray));
    let chain = read_all(&found, None);
    assert_eq!(chain.replay, Replay::Anew(vec![5, 6, 7]));
    assert!(chain.state.broken && chain.lost.len() == 2);
}

#[test]
fn a_number_that_somebody_has_made_up_does_not_bring_the_log_to_its_end() {
    let mut found = log(9);
    found.extend([bad(i64::MAX as u64), segment(i64::MAX as u64 - 7, true)]);
    let chain = read_all(&found, None);
    assert_eq!(chain.state.head, head(9));
    assert_eq!(chain.state.next(0).number, 10);
    assert!(!chain.state.broken);
}

#[test]
fn thousands_of_segments_are_one_chain() {
    let found: BTreeMap<u64, FoundSegment> = (1..=20_000)
        .map(|number| {
            let link = Link {
                hash: ContentHash(*blake3::hash(&number.to_string().into_bytes()).as_bytes()),
                after: Some(ContentHash(
                    *blake3::hash(&(number - 1).to_string().into_bytes()).as_bytes(),
                )),
                full: number == 1,
                bytes: 200,
            };
            (number, FoundSegment::Whole(link))
        })
        .collect();
    let chain = read_all(&found, None);
    assert_eq!(chain.state.head.unwrap().number, 20_000);
    assert!(chain.lost.is_empty());
}
