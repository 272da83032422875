//! The batch record as other versions and other machines meet it: fixture, damage, hostility.

mod hostile;
mod properties;
mod versions;

use ferryfs::core::{BatchNo, ContentHash, FileKind, Name, RelPath, Timestamp};
use ferryfs::format::catalog::{CatalogBatch, CatalogChange, Description, Extent, Principal};
use ferryfs::format::expectations::{Expectations, ExpectedFile};
use ferryfs::format::record::BatchRecord;
use ferryfs::format::steps::{
    AttributeStep, ClearStep, FileContent, Node, PatchFile, PlaceStep, PlainKind, SlotNo, Steps,
};
use uuid::Uuid;

const FIXTURE: &[u8] = include_bytes!("../../fixtures/record-v3.bin");
const FULL: &[u8] = include_bytes!("../../fixtures/record-full-v3.bin");

const CHECKSUM: usize = 32;
/// Where the first section begins, and its length.
const SECTIONS: usize = 64;

fn path(text: &str) -> RelPath {
    RelPath::parse(text.as_bytes()).unwrap()
}

fn content(byte: u8) -> FileContent {
    FileContent {
        size: u64::from(byte),
        hash: ContentHash([byte; 32]),
        modified: Timestamp(1_763_661_600_000_000_000 + i64::from(byte)),
    }
}

/// What the fixture says: the steps of a plain batch.
fn known() -> BatchRecord {
    BatchRecord {
        volume: Uuid::from_u128(0x6f1d_3a52_8c0e_4b7a_9d24_51c3_e07f_88b1),
        batch: BatchNo(42),
        created: Timestamp(1_763_661_600_123_456_789),
        origin: *b"origin of record",
        known: Expectations::default(),
        catalog: None,
        steps: Steps {
            attributes: vec![],
            clear: vec![
                ClearStep::Detach {
                    from: path("films/a.mkv"),
                    slot: SlotNo(1),
                    kind: PlainKind::File,
                },
                ClearStep::RemoveFile {
                    path: path("old/\u{fc}.txt"),
                },
                ClearStep::RemoveDir { path: path("old") },
            ],
            place: vec![
                PlaceStep::MakeDir { path: path("new") },
                PlaceStep::Install {
                    slot: SlotNo(0),
                    to: path("new/b.db"),
                    content: content(0x5a),
                },
                PlaceStep::Attach {
                    slot: SlotNo(1),
                    to: path("new/a.mkv"),
                    kind: PlainKind::File,
                },
                PlaceStep::Touch {
                    path: path("kept"),
                    modified: Timestamp(-1),
                },
            ],
        },
    }
}

fn bytes(text: &str) -> Box<[u8]> {
    text.as_bytes().into()
}

/// A description with every part that a regular file's can have.
fn of_a_file() -> Description {
    Description {
        kind: FileKind::Regular,
        permissions: 0o4755,
        owner: Principal {
            id: 1000,
            name: Some(bytes("anna")),
        },
        group: Principal {
            id: 4_000_000_000,
            name: None,
        },
        modified: Timestamp(-1),
        size: 1 << 40,
        target: None,
        rdev: 0,
        link: Some(0x0102_0304_0506_0708),
        xattrs: [
            (bytes("user.a"), bytes("")),
            (bytes("user.b"), bytes("\0\x01")),
        ]
        .into(),
        name: Name::new(b"what:is?.mkv").ok(),
        holes: vec![
            Extent {
                offset: 0,
                length: 4096,
            },
            Extent {
                offset: 8192,
                length: 1,
            },
        ],
    }
}

/// A description of what has a target or a device number.
fn of_a_node(kind: FileKind, target: Option<&str>, rdev: u32) -> Description {
    let nobody = Principal { id: 0, name: None };
    Description {
        kind,
        permissions: 0o777,
        owner: nobody.clone(),
        group: Principal {
            id: 0,
            name: Some(bytes("root")),
        },
        modified: Timestamp(i64::MAX),
        size: 0,
        target: target.map(bytes),
        rdev,
        link: None,
        xattrs: Default::default(),
        name: None,
        holes: vec![],
    }
}

fn set(at: &str, description: Description) -> CatalogChange {
    CatalogChange::Set {
        path: path(at),
        description: Box::new(description),
    }
}

/// What the full fixture says: every section, step and attribute.
fn known_full() -> BatchRecord {
    let mut record = known();
    let node = |slot, to: &str, node| PlaceStep::InstallNode {
        slot: SlotNo(slot),
        to: path(to),
        node,
    };
    record.steps.place.splice(
        3..3,
        [
            node(
                2,
                "new/link",
                Node::Symlink {
                    target: bytes("../b.db"),
                },
            ),
            node(3, "new/pipe", Node::Fifo),
            node(4, "new/socket", Node::Socket),
            node(5, "new/tty", Node::CharDevice { rdev: 0x501 }),
            node(6, "new/disk", Node::BlockDevice { rdev: 0x800 }),
            PlaceStep::Link {
                from: path("new/b.db"),
                to: path("new/c.db"),
            },
        ],
    );
    record.steps.attributes = vec![
        AttributeStep {
            mode: Some(0o640),
            owner: Some(1000),
            group: Some(100),
            modified: Some(Timestamp(5)),
            xattrs: Some(vec![(bytes("user.a"), bytes("1"))]),
            ..AttributeStep::new(path("new/b.db"))
        },
        AttributeStep {
            xattrs: Some(vec![]),
            ..AttributeStep::new(path("new"))
        },
        AttributeStep {
            mode: Some(0o755),
            ..AttributeStep::new(path(""))
        },
    ];
    let removed = ExpectedFile {
        size: 3,
        modified: Timestamp(4),
        hash: None,
    };
    record.known.removed.insert(path("old/\u{fc}.txt"), removed);
    record.steps.place.insert(
        2,
        PlaceStep::Patch {
            slot: SlotNo(7),
            to: path("vm.img"),
            content: content(0x77),
            patch: PatchFile {
                size: 4184,
                hash: ContentHash([0x70; 32]),
            },
        },
    );
    let before = ExpectedFile {
        size: 0x70,
        modified: Timestamp(6),
        hash: Some(ContentHash([0x60; 32])),
    };
    record.known.replaced.insert(SlotNo(7), before);
    let slot = SlotNo(0);
    record.catalog = Some(CatalogBatch {
        segment: 7,
        after: Some(ContentHash([0xa7; 32])),
        full: false,
        changes: vec![
            CatalogChange::Detach {
                from: path("films/a.mkv"),
                slot,
            },
            CatalogChange::Remove { path: path("old") },
            CatalogChange::Attach {
                slot,
                to: path("new/a.mkv"),
            },
            set("new/b.db", of_a_file()),
            set("l", of_a_node(FileKind::Symlink, Some("../b.db"), 0)),
            set("tty", of_a_node(FileKind::CharDevice, None, 0x501)),
            set("", of_a_node(FileKind::Directory, None, 0)),
        ],
    });
    record
}

fn with_steps(clear: Vec<ClearStep>, place: Vec<PlaceStep<FileContent>>) -> BatchRecord {
    let steps = Steps {
        clear,
        place,
        ..Steps::default()
    };
    BatchRecord { steps, ..known() }
}

fn detach(from: &str, slot: u32, kind: PlainKind) -> ClearStep {
    let (from, slot) = (path(from), SlotNo(slot));
    ClearStep::Detach { from, slot, kind }
}

fn attach(slot: u32, to: &str, kind: PlainKind) -> PlaceStep<FileContent> {
    let (to, slot) = (path(to), SlotNo(slot));
    PlaceStep::Attach { slot, to, kind }
}

fn install(slot: u32, to: &str) -> PlaceStep<FileContent> {
    let (slot, to, content) = (SlotNo(slot), path(to), content(1));
    PlaceStep::Install { slot, to, content }
}

/// The bytes of `body`, whatever they say, under a checksum that is right.
fn resealed(mut body: Vec<u8>) -> Vec<u8> {
    let checksum = blake3::hash(&body);
    body.extend_from_slice(checksum.as_bytes());
    body
}

/// The fixture without its checksum.
fn body() -> Vec<u8> {
    FIXTURE[..FIXTURE.len() - CHECKSUM].to_vec()
}

/// The fixture with `bytes` put at `at`, under a right checksum.
fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut body = body();
    body[at..at + bytes.len()].copy_from_slice(bytes);
    resealed(body)
}

fn section(number: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend(flags.to_le_bytes());
    bytes.extend((payload.len() as u64).to_le_bytes());
    bytes.extend(payload);
    bytes
}

/// A record whose one clear step removes a file at a path of these bytes.
fn removing(raw_path: &[u8]) -> Vec<u8> {
    let mut payload = 1_u64.to_le_bytes().to_vec();
    payload.push(2);
    payload.extend((raw_path.len() as u32).to_le_bytes());
    payload.extend(raw_path);
    let mut bytes = body()[..SECTIONS].to_vec();
    bytes.extend(section(1, 0, &payload));
    bytes.extend(section(2, 0, &0_u64.to_le_bytes()));
    resealed(bytes)
}
