use proptest::prelude::*;

use super::*;
use crate::core::{Name, Timestamp};

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

/// 2026-11-20 23:59:58 UTC.
const TIME: Timestamp = Timestamp(1_795_219_198_000_000_000);

#[test]
fn the_other_version_keeps_its_extension_behind_the_mark() {
    for (from, to) in [
        ("report.txt", "report.sync-conflict-20261120-235958-nas.txt"),
        ("Makefile", "Makefile.sync-conflict-20261120-235958-nas"),
        (".bashrc", ".bashrc.sync-conflict-20261120-235958-nas"),
        ("a.tar.gz", "a.tar.sync-conflict-20261120-235958-nas.gz"),
        ("ends.", "ends..sync-conflict-20261120-235958-nas"),
    ] {
        let made = conflict_name(&name(from), TIME, "nas", 0, false).unwrap();
        assert_eq!(made, name(to));
        assert!(is_conflict_name(&made) && !is_conflict_name(&name(from)));
    }
    let dir = conflict_name(&name("v1.2"), TIME, "my host.local", 1, true).unwrap();
    assert_eq!(
        dir,
        name("v1.2.sync-conflict-20261120-235958-myhostlocal-2")
    );
}

/// The result depends on who has seen a version, never on the order of the cases.
#[test]
fn nothing_goes_that_its_remover_has_not_seen() {
    let files = [false, true].into_iter().flat_map(|dirty| {
        [false, true].into_iter().flat_map(move |renamed| {
            [false, true].map(|cached| Here::File {
                dirty,
                renamed,
                cached,
            })
        })
    });
    for here in files.chain([Here::Nothing, Here::Other]) {
        for there in [There::Gone, There::Changed, There::New] {
            let verdict = decide(there, here);
            let dirty = matches!(here, Here::File { dirty: true, .. });
            let theirs_unseen = there != There::Gone;
            // A local version that the backend never had must not be removed or overwritten.
            if dirty || here == Here::Other {
                assert!(
                    !matches!(verdict, Verdict::Remove | Verdict::Update),
                    "{there:?} {here:?}: {verdict:?}"
                );
            }
            // The other side's version gets some name.
            if theirs_unseen {
                let known = matches!(
                    verdict,
                    Verdict::TakeIn | Verdict::Update | Verdict::KeepBoth
                );
                assert!(known, "{there:?} {here:?}: {verdict:?}");
            }
        }
    }
}

proptest! {
    #[test]
    fn a_conflict_name_is_a_name_that_is_free_and_fits(
        bytes in proptest::collection::vec(any::<u8>(), 1..255),
        host in ".{0,40}",
        secs in -10_000_000_000_i64..10_000_000_000,
        attempt in 0_u32..1000,
        is_dir: bool,
    ) {
        prop_assume!(Name::new(&bytes).is_ok());
        let from = Name::new(&bytes).unwrap();
        let time = Timestamp::from_parts(secs, 0);
        let made = conflict_name(&from, time, &host, attempt, is_dir).unwrap();
        prop_assert!(is_conflict_name(&made));
        prop_assert!(made.as_bytes().len() <= 255);
        let next = conflict_name(&from, time, &host, attempt + 1, is_dir).unwrap();
        prop_assert_ne!(&made, &next);
        if let Ok(text) = std::str::from_utf8(&bytes) {
            prop_assert!(std::str::from_utf8(made.as_bytes()).is_ok(), "{}", text);
        }
    }

    #[test]
    fn pairs_are_of_one_size_and_time_and_no_file_is_in_two(
        vanished in traces(), appeared in traces(), granularity in 1_u64..4, told in 0_u8..3,
    ) {
        let tell = |from: usize, to: usize| match told {
            0 => None,
            1 => Some((from + to).is_multiple_of(2)),
            _ => (!(from + to).is_multiple_of(3)).then_some(true),
        };
        let pairs = pair(&vanished, &appeared, granularity, tell);
        let mut used = (std::collections::HashSet::new(), std::collections::HashSet::new());
        for found in &pairs {
            prop_assert!(used.0.insert(found.vanished) && used.1.insert(found.appeared));
            let (from, to) = (&vanished[found.vanished], &appeared[found.appeared]);
            prop_assert_eq!(from.size, to.size);
            prop_assert!(from.modified.abs_diff(to.modified) <= granularity);
            match (from.size, tell(found.vanished, found.appeared)) {
                (0, _) => prop_assert_eq!(&from.name, &to.name),
                (_, said) => {
                    prop_assert_ne!(said, Some(false));
                    prop_assert_eq!(found.certain, said == Some(true));
                }
            }
        }
        let again = pair(&vanished, &appeared, granularity, tell);
        prop_assert_eq!(pairs, again);
    }
}

fn traces() -> impl Strategy<Value = Vec<Trace>> {
    let one = ("[abc]", 0_u64..4, 0_i64..6).prop_map(|(text, size, modified)| Trace {
        name: name(&text),
        size,
        modified,
    });
    proptest::collection::vec(one, 0..12)
}

#[test]
fn a_file_that_cannot_be_told_from_another_is_not_guessed() {
    let trace = |text: &str| Trace {
        name: name(text),
        size: 5,
        modified: 7,
    };
    let unknown = |_, _| None;
    let two = [trace("a"), trace("b")];
    assert_eq!(pair(&two, &[trace("x")], 1, unknown), []);
    assert_eq!(
        pair(&[trace("a")], &[trace("x"), trace("y")], 1, unknown),
        []
    );
    // An unchanged name decides.
    let kept = pair(&two, &[trace("b"), trace("x")], 1, unknown);
    assert_eq!(kept.len(), 1);
    assert_eq!((kept[0].vanished, kept[0].appeared), (1, 0));
    assert_eq!(pair(&[trace("a")], &[trace("x")], 1, unknown).len(), 1);
}

/// A drive that cannot store a time reports another one, at every attach: the file is unchanged.
#[test]
fn a_time_that_the_drive_cannot_tell_is_no_change() {
    let file = |secs: i64| Metadata {
        kind: FileKind::Regular,
        size: 5,
        modified: Timestamp::from_parts(secs, 0),
        permissions: 0o644,
        target: None,
        uid: 0,
        gid: 0,
        rdev: 0,
        nlink: 1,
        file: None,
    };
    let standing = |meant: i64, found: i64| {
        let believed = ExpectedFile {
            size: 5,
            modified: Timestamp::from_parts(meant, 0),
            hash: None,
        };
        assert_eq!(
            believed.agrees(&file(found)),
            compare(PlainKind::File, &believed, &file(found), 1) == Comparison::Same
        );
        compare(PlainKind::File, &believed, &file(found), 1)
    };
    let (exfat_begins, ext4_begins) = (315_532_800, -2_147_483_648);
    for (meant, found) in [
        (-1, exfat_begins),
        (-8_520_336_000, exfat_begins),
        (-8_520_336_000, ext4_begins),
        (5_680_281_600, 1_640_908_800),
        (9_214_646_400, 4_354_819_199),
        (9_214_646_400, 1_135_900_800),
    ] {
        assert_eq!(standing(meant, found), Comparison::Same, "{meant}");
        assert_eq!(standing(meant, 1_795_219_198), Comparison::Touched);
    }
    assert_eq!(standing(1_600_000_000, exfat_begins), Comparison::Touched);
    assert_eq!(standing(1_600_000_000, 1_600_000_100), Comparison::Touched);
}

const HOUR: i64 = 3_600_000_000_000;
const DAY: i64 = 24 * HOUR;

/// Rows: granularity, expected times, found times, and the result: the shift of the clock, and
/// whether it is proven.
#[test]
fn only_a_clock_shifts_all_files_alike() {
    const COARSE: u64 = 2_000_000_000;
    let at = TIME.0;
    let shifted = |by: i64, times: &[i64]| -> Vec<(i64, i64)> {
        times.iter().map(|time| (*time, time + by)).collect()
    };
    let seen = |files: &[(i64, i64)], step| {
        let shift = shift_of(files, step);
        shift.map(|shift| (shift.by, shift.proven))
    };
    let far = [at, at - 3 * DAY, at - 400 * DAY];
    let near = [at, at - HOUR, at - 7 * HOUR];
    for by in [HOUR, -HOUR, HOUR / 4 * 3, 14 * HOUR, -11 * HOUR / 2] {
        assert_eq!(seen(&shifted(by, &far), COARSE), Some((by, true)));
        assert_eq!(seen(&shifted(by, &near), COARSE), Some((by, false)));
        assert_eq!(seen(&shifted(by, &near), 1), Some((by, true)));
        assert_eq!(seen(&shifted(by, &[at]), 1), Some((by, false)));
    }
    // Not a difference of zones, no difference, or not for all files.
    for by in [0, HOUR / 3, HOUR + 5_000_000_000, 16 * HOUR, 30 * DAY] {
        assert_eq!(seen(&shifted(by, &far), COARSE), None, "{by}");
    }
    let mut all = shifted(HOUR, &far);
    all.push((at - 5 * DAY, at - 5 * DAY));
    assert_eq!(seen(&all, COARSE), None);
    all.pop();
    all.push((at - 5 * DAY, at - 5 * DAY + 2 * HOUR));
    assert_eq!(seen(&all, COARSE), None);
    assert_eq!(seen(&[], COARSE), None);
    assert_eq!(seen(&shifted(HOUR, &far), u64::MAX), None);
    assert_eq!(seen(&[(i64::MIN, i64::MAX)], 1), None);
}
