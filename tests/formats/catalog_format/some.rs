//! Descriptions and changes to test with: fixed ones, and any.

use ferryfs::core::{FileKind, Name, RelPath, Timestamp, Xattrs};
use ferryfs::format::catalog::{CatalogChange, Description, Extent, Principal};
use ferryfs::format::steps::SlotNo;
use proptest::prelude::*;
use uuid::Uuid;

pub(crate) const VOLUME: Uuid = Uuid::from_u128(0x6f1d_3a52_8c0e_4b7a_9d24_51c3_e07f_88b1);

pub(crate) fn path(text: &str) -> RelPath {
    RelPath::parse(text.as_bytes()).unwrap()
}

fn bytes(text: &str) -> Box<[u8]> {
    text.as_bytes().into()
}

/// A plain description.
pub(crate) fn plain(kind: FileKind, permissions: u32) -> Description {
    let nobody = Principal { id: 0, name: None };
    Description {
        kind,
        permissions,
        owner: nobody.clone(),
        group: nobody,
        modified: Timestamp(1_763_661_600_123_456_789),
        size: 0,
        target: None,
        rdev: 0,
        link: None,
        xattrs: Xattrs::new(),
        name: None,
        holes: vec![],
    }
}

/// A regular file with everything that one can have.
pub(crate) fn rich_file() -> Description {
    Description {
        owner: Principal {
            id: 1000,
            name: Some(bytes("anna")),
        },
        group: Principal {
            id: 4_000_000_000,
            name: None,
        },
        modified: Timestamp(-1),
        size: 10_000,
        link: Some(0x0102_0304_0506_0708),
        xattrs: [(bytes("user.a"), bytes("")), (bytes("user.b"), bytes("b"))].into(),
        name: Name::new(b"what?.mkv").ok(),
        holes: vec![Extent {
            offset: 4096,
            length: 4096,
        }],
        ..plain(FileKind::Regular, 0o4755)
    }
}

pub(crate) fn link_to(target: &str) -> Description {
    Description {
        target: Some(bytes(target)),
        ..plain(FileKind::Symlink, 0o777)
    }
}

pub(crate) fn device() -> Description {
    Description {
        rdev: 0x501,
        group: Principal {
            id: 5,
            name: Some(bytes("tty")),
        },
        ..plain(FileKind::CharDevice, 0o620)
    }
}

pub(crate) fn set(at: &str, description: Description) -> CatalogChange {
    CatalogChange::Set {
        path: path(at),
        description: Box::new(description),
    }
}

pub(crate) fn detach(from: &str, slot: u32) -> CatalogChange {
    let (from, slot) = (path(from), SlotNo(slot));
    CatalogChange::Detach { from, slot }
}

pub(crate) fn attach(slot: u32, to: &str) -> CatalogChange {
    let (to, slot) = (path(to), SlotNo(slot));
    CatalogChange::Attach { slot, to }
}

pub(crate) fn remove(at: &str) -> CatalogChange {
    CatalogChange::Remove { path: path(at) }
}

fn any_bytes(length: std::ops::Range<usize>) -> impl Strategy<Value = Box<[u8]>> {
    proptest::collection::vec(1_u8.., length).prop_map(Vec::into_boxed_slice)
}

fn principals() -> impl Strategy<Value = Principal> {
    let name = proptest::option::of(any_bytes(1..9));
    (any::<u32>(), name).prop_map(|(id, name)| Principal { id, name })
}

/// Any description of what a regular file can be.
fn files() -> impl Strategy<Value = Description> {
    let xattrs = proptest::collection::btree_map(any_bytes(1..9), any_bytes(0..40), 0..3);
    let holes = proptest::collection::vec((1_u64..1 << 40, 1_u64..1 << 40), 0..4);
    let name = proptest::option::of(any_bytes(1..20));
    (any::<Option<u64>>(), xattrs, name, holes, 0_u64..1 << 40).prop_map(
        |(link, xattrs, name, gaps, tail)| {
            let mut holes = Vec::new();
            let mut at = 0;
            for (gap, length) in gaps {
                let offset = at + gap;
                holes.push(Extent { offset, length });
                at = offset + length;
            }
            Description {
                size: at + tail,
                link,
                xattrs,
                name: name.and_then(|name| Name::new(&name).ok()),
                holes,
                ..plain(FileKind::Regular, 0)
            }
        },
    )
}

/// Any description.
pub(crate) fn descriptions() -> impl Strategy<Value = Description> {
    let other = prop_oneof![
        Just(FileKind::Directory),
        Just(FileKind::Fifo),
        Just(FileKind::Socket),
    ];
    let device = prop_oneof![Just(FileKind::CharDevice), Just(FileKind::BlockDevice)];
    let what = prop_oneof![
        4 => files(),
        2 => other.prop_map(|kind| plain(kind, 0)),
        1 => (device, any::<u32>()).prop_map(|(kind, rdev)| Description {
            rdev,
            ..plain(kind, 0)
        }),
        1 => any_bytes(1..100).prop_map(|target| Description {
            target: Some(target),
            ..plain(FileKind::Symlink, 0)
        }),
    ];
    let of_all = (0_u32..0o10000, principals(), principals(), any::<i64>());
    (what, of_all).prop_map(|(what, (permissions, owner, group, time))| Description {
        permissions,
        owner,
        group,
        modified: Timestamp(time),
        ..what
    })
}

/// Any path that may be described, of few names, so that some meet.
pub(crate) fn paths() -> impl Strategy<Value = RelPath> {
    let name = prop_oneof![
        8 => "[abc]",
        1 => "[a-c ]{2,9}",
        1 => "\\PC{1,8}",
    ];
    proptest::collection::vec(name, 1..6)
        .prop_filter_map("no path", |names| {
            RelPath::parse(names.join("/").as_bytes()).ok()
        })
        .prop_filter("reserved", |path| {
            !ferryfs::format::layout::is_reserved(path)
        })
}
