//! The batch record as other versions and other machines meet it: fixture, damage, hostility.

mod hostile;
mod properties;
mod versions;

use ferryfs::base::{BatchNo, ContentHash, RelPath, Timestamp};
use ferryfs::rules::known::Known;
use ferryfs::rules::record::BatchRecord;
use ferryfs::rules::steps::{ClearStep, FileContent, PlaceStep, PlainKind, SlotNo, Steps};
use uuid::Uuid;

const FIXTURE: &[u8] = include_bytes!("../fixtures/record-v1.bin");

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

/// What the fixture says: every kind of step.
fn known() -> BatchRecord {
    BatchRecord {
        volume: Uuid::from_u128(0x6f1d_3a52_8c0e_4b7a_9d24_51c3_e07f_88b1),
        batch: BatchNo(42),
        created: Timestamp(1_763_661_600_123_456_789),
        origin: *b"origin of record",
        known: Known::default(),
        steps: Steps {
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

fn with_steps(clear: Vec<ClearStep>, place: Vec<PlaceStep<FileContent>>) -> BatchRecord {
    let steps = Steps { clear, place };
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
