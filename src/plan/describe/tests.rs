use super::*;
use crate::core::time_match::{DAY, FIRST, LAST};

struct Machine(&'static [(u32, &'static str)]);

impl Machine {
    fn called(&self, id: u32) -> Option<Box<[u8]>> {
        let known = self.0.iter().find(|(known, _)| *known == id);
        known.map(|(_, name)| name.as_bytes().into())
    }

    fn number(&self, name: &[u8]) -> Option<u32> {
        let known = self.0.iter().find(|(_, known)| known.as_bytes() == name);
        known.map(|(id, _)| *id)
    }
}

impl Owners for Machine {
    fn user(&self, id: u32) -> Option<Box<[u8]>> {
        self.called(id)
    }
    fn group(&self, id: u32) -> Option<Box<[u8]>> {
        self.called(id)
    }
    fn user_called(&self, name: &[u8]) -> Option<u32> {
        self.number(name)
    }
    fn group_called(&self, name: &[u8]) -> Option<u32> {
        self.number(name)
    }
}

fn exfat() -> Capabilities {
    Capabilities {
        time_granularity_ns: 10_000_000,
        ..Capabilities::plain()
    }
}

fn facts() -> Facts {
    Facts {
        kind: FileKind::Regular,
        permissions: 0o4750,
        uid: 1001,
        gid: 7,
        rdev: 5,
        size: 100_000,
        modified: Timestamp(1_700_000_000_123_456_789),
        target: None,
        link: None,
        xattrs: Xattrs::new(),
        name: None,
        holes: vec![Extent {
            offset: 4096,
            length: 8192,
        }],
    }
}

const A: Machine = Machine(&[(1001, "ada"), (7, "lab")]);
const B: Machine = Machine(&[(501, "ada"), (7, "wheel")]);

#[test]
fn a_backend_that_says_all_itself_needs_no_description() {
    let whole = Facts {
        holes: Vec::new(),
        ..facts()
    };
    let of = |facts| describe(facts, false, &Capabilities::everything(), &A);
    assert_eq!(of(whole.clone()), None);
    assert!(of(facts()).is_some(), "holes are not carried as such");
    let modified = Timestamp(i64::MIN);
    let early = Facts { modified, ..whole };
    assert!(
        of(early).is_some(),
        "who knows whether it can tell that time"
    );
    assert!(describe(facts(), false, &exfat(), &A).is_some());
}

#[test]
fn owners_go_by_name_where_the_name_is_known_else_by_number() {
    let told = describe(facts(), false, &exfat(), &A).unwrap();
    assert_eq!(owner_here(&told.owner, &B), 501);
    assert_eq!(group_here(&told.group, &B), 7, "lab is not known there");
    assert_eq!(owner_here(&told.owner, &Machine(&[])), 1001);
    let nameless = describe(facts(), false, &exfat(), &Machine(&[])).unwrap();
    assert_eq!(owner_here(&nameless.owner, &B), 1001);
}

#[test]
fn a_description_says_nothing_that_its_kind_does_not_have() {
    let pipe = Facts {
        kind: FileKind::Fifo,
        ..facts()
    };
    let told = describe(pipe, false, &exfat(), &A).unwrap();
    assert_eq!((told.size, told.rdev, told.holes), (0, 0, vec![]));
    let dir = Facts {
        kind: FileKind::Directory,
        link: Some(3),
        ..facts()
    };
    assert_eq!(describe(dir, false, &exfat(), &A).unwrap().link, None);
    let disk = Facts {
        kind: FileKind::BlockDevice,
        ..facts()
    };
    assert_eq!(describe(disk, false, &exfat(), &A).unwrap().rdev, 5);
}

#[test]
fn holes_are_told_in_order_within_the_file_and_the_largest_of_many() {
    let hole = |offset, length| Extent { offset, length };
    let odd = vec![
        hole(5, 5),
        hole(0, 2),
        hole(2, 1),
        hole(8, 9),
        hole(90, 20),
        hole(50, 0),
    ];
    assert_eq!(described_holes(odd, 100), [hole(0, 2), hole(5, 5)]);
    let many: Vec<Extent> = (0..10_000).map(|n| hole(n * 100, 1 + n % 50)).collect();
    let told = described_holes(many, u64::MAX);
    assert_eq!(told.len(), MAX_DESCRIBED_HOLES);
    assert!(told.is_sorted() && told.iter().all(|hole| hole.length > 25));
}

#[test]
fn other_bytes_are_known_by_size_or_time_and_odd_times_are_not_held_against_a_drive() {
    let told = describe(facts(), false, &exfat(), &A).unwrap();
    let at = |ns| Timestamp(ns);
    assert!(describes(
        &told,
        100_000,
        at(1_700_000_000_120_000_000),
        10_000_000
    ));
    assert!(!describes(
        &told,
        100_001,
        at(1_700_000_000_120_000_000),
        10_000_000
    ));
    assert!(!describes(
        &told,
        100_000,
        at(1_700_000_900_000_000_000),
        10_000_000
    ));
    let of = |ns| Description {
        modified: Timestamp(ns),
        ..told.clone()
    };
    // 1960 becomes the first moment of 1980; 2200 the last of 2107, or a year that wraps around in
    // seven bits.
    assert!(describes(
        &of(-315_619_200_000_000_000),
        100_000,
        at(FIRST),
        10_000_000
    ));
    let of_2200 = of(7_258_118_400_000_000_000);
    assert!(describes(&of_2200, 100_000, at(LAST), 10_000_000));
    assert!(describes(
        &of_2200,
        100_000,
        at(7_258_118_400_000_000_000 - 46_751 * DAY),
        10_000_000
    ));
    assert!(!describes(
        &of_2200,
        100_000,
        at(1_700_000_000_000_000_000),
        10_000_000
    ));
}

#[test]
fn groups_of_links_have_numbers_of_their_own() {
    assert_eq!(link_group(&[1; 16], 5), link_group(&[1; 16], 5));
    assert_ne!(link_group(&[1; 16], 5), link_group(&[1; 16], 6));
    assert_ne!(link_group(&[1; 16], 5), link_group(&[2; 16], 5));
}

#[test]
fn only_whole_blocks_in_holes_take_no_space() {
    let of = |size, holes: &[(u64, u64)]| {
        let hole = |&(offset, length)| Extent { offset, length };
        blocks(size, &holes.iter().map(hole).collect::<Vec<_>>())
    };
    assert_eq!(of(1000, &[]), 2);
    assert_eq!(of(5000, &[(0, 4096)]), 8);
    assert_eq!(of(5000, &[(100, 200)]), 16);
    assert_eq!(of(5 << 20, &[(4096, (5 << 20) - 4096)]), 8);
    assert_eq!(of(5000, &[(0, 5000)]), 0);
}

#[test]
fn a_link_whose_target_is_not_known_is_not_described() {
    let link = Facts {
        kind: FileKind::Symlink,
        ..facts()
    };
    assert_eq!(describe(link.clone(), true, &exfat(), &A), None);
    let known = Facts {
        target: Some((*b"there").into()),
        ..link
    };
    assert!(describe(known, true, &exfat(), &A).is_some());
}
