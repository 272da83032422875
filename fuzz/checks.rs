//! What must hold of any bytes whatsoever, for each thing that ferryfs reads from a drive or a
//! socket. Shared by the fuzz targets and by `tests/parsers`, which runs the same checks over the
//! seeds and their mutations on every machine.

use ferryfs::control::protocol;
use ferryfs::control::protocol::{Reply, Request};
use ferryfs::core::{Capabilities, Name, RelPath};
use ferryfs::format::catalog::segment::Segment;
use ferryfs::format::catalog::store::CatalogStore;
use ferryfs::format::catalog::{CatalogBatch, CatalogTree, segment};
use ferryfs::format::{catalog, layout, marker, record};
use ferryfs::plan::names::{NameRules, safe_names};

const CHECKSUM: usize = 32;
const HEADER: usize = 64;
const SECTION_HEADER: usize = 16;
/// Type of the one section that may be passed over and is not.
const KNOWN_FILES: [u8; 4] = [4, 0, 0, 0];

/// A batch record: as it is, and under a checksum that is right, without which nothing behind the
/// checksum is ever reached.
pub fn record(bytes: &[u8]) {
    whole_record(bytes);
    whole_record(&resealed(&bytes[..bytes.len().saturating_sub(CHECKSUM)]));
}

/// `body` under a checksum that is right.
pub fn resealed(body: &[u8]) -> Vec<u8> {
    let mut bytes = body.to_vec();
    bytes.extend_from_slice(blake3::hash(body).as_bytes());
    bytes
}

fn whole_record(bytes: &[u8]) {
    let record = match record::decode(bytes) {
        Ok(record) => record,
        Err(error) => return drop(error.to_string()),
    };
    record::check(&record).expect("what is read passes the check");
    let written = record::seal(&record).expect("what is read can be committed");
    assert_eq!(record::decode(&written).as_ref(), Ok(&record));
    let alike = resealed(&without_skipped(bytes));
    assert_eq!(written, alike, "what is read is written alike");
}

/// A record that was accepted, less its checksum and the sections that a reader passes over.
fn without_skipped(bytes: &[u8]) -> Vec<u8> {
    let mut body = bytes[..HEADER].to_vec();
    let mut rest = &bytes[HEADER..bytes.len() - CHECKSUM];
    while !rest.is_empty() {
        let flags = u32::from_le_bytes(rest[4..8].try_into().expect("four bytes"));
        let length = u64::from_le_bytes(rest[8..16].try_into().expect("eight bytes"));
        let (section, behind) = rest.split_at(SECTION_HEADER + length as usize);
        if flags == 0 || section[..4] == KNOWN_FILES {
            body.extend_from_slice(section);
        }
        rest = behind;
    }
    body
}

/// Longest that the paths of a segment may be together, spelled out, to be looked at further: a few
/// bytes of it may stand for a long path.
const SPELLED_OUT: usize = 1 << 20;

/// A segment of the catalog: as it is, and under a checksum that is right.
pub fn segment(bytes: &[u8]) {
    whole_segment(bytes);
    whole_segment(&resealed(&bytes[..bytes.len().saturating_sub(CHECKSUM)]));
}

fn whole_segment(bytes: &[u8]) {
    let segment = match Segment::decode(bytes) {
        Ok(segment) => segment,
        Err(error) => return drop(error.to_string()),
    };
    let header = &segment.header;
    let (mut count, mut length) = (0, 0);
    for change in segment.changes() {
        count += 1;
        length += change.expect("looked at before").path().as_bytes().len();
    }
    assert_eq!(count, header.count);
    if length > SPELLED_OUT {
        return;
    }
    let changes = segment.changes().collect::<Result<_, _>>();
    let batch = CatalogBatch {
        segment: header.number,
        after: header.after,
        full: header.full,
        changes: changes.expect("looked at before"),
    };
    catalog::check_changes(&batch.changes, batch.full).expect("what is read passes the check");
    let written = segment::encode(header.volume, &batch);
    assert_eq!(written, bytes, "what is read is written alike");
    let mut tree = CatalogTree::new();
    for change in &batch.changes {
        let Ok(()) = tree.take(change);
    }
    if batch.full {
        assert_eq!(tree.whole(), batch.changes);
    }
}

/// A volume marker.
pub fn marker(bytes: &[u8]) {
    match marker::decode(bytes) {
        Ok(found) => {
            assert!(bytes.len() <= marker::MAX_BYTES);
            let written = marker::encode(&found);
            // Its text for people may grow by being escaped; then it is as long as a reader takes,
            // or it is refused.
            if written.len() <= marker::MAX_BYTES {
                assert_eq!(marker::decode(&written), Ok(found));
            }
        }
        Err(error) => drop(error.to_string()),
    }
}

/// Names and paths, and the names of ours among them.
pub fn names(bytes: &[u8]) {
    if let Ok(path) = RelPath::parse(bytes) {
        assert_eq!(path.as_bytes(), bytes);
        assert_eq!(path.depth(), path.components().count());
        for component in path.components() {
            assert!(Name::new(component).is_ok() && component != b"..");
        }
        if let Some((parent, name)) = path.split_last() {
            assert_eq!(parent.join(&name), path);
            assert_eq!(parent.depth() + 1, path.depth());
        }
        let _ = (layout::is_reserved(&path), path.to_string());
    }
    let Ok(name) = Name::new(bytes) else { return };
    stored_names(&name);
    assert!(!bytes.contains(&b'/') && !bytes.contains(&0));
    let last = |path: RelPath| path.split_last().expect("not the root").1;
    if let Some(batch) = layout::parse_record_name(&name) {
        assert_eq!(last(layout::record_path(batch)), name);
    }
    if let Some(batch) = layout::parse_staging_name(&name) {
        assert_eq!(last(layout::staging_dir(batch)), name);
    }
    if let Some(number) = layout::parse_segment_name(&name) {
        assert_eq!(last(layout::segment_path(number)), name);
    }
    if let Some(slot) = layout::parse_slot_name(&name) {
        assert_eq!(slot.file_name().as_bytes(), name.as_bytes());
    }
}

/// Any bytes may be found on a drive as a name, and any that are short enough may become one there.
fn stored_names(name: &Name) {
    for capabilities in [Capabilities::everything(), exfat()] {
        let rules = NameRules::new(&capabilities);
        for in_root in [true, false] {
            if let Some(read) = rules.decode(name, in_root) {
                assert!(read.is_mountable());
                assert!(
                    rules
                        .spellings(&read, in_root)
                        .take(4)
                        .any(|again| again == *name)
                );
            }
            if name.is_mountable() {
                for spelling in rules.spellings(name, in_root).take(5) {
                    assert_eq!(rules.check(&spelling, in_root), Ok(()));
                }
            }
        }
    }
    assert!(safe_names(name).take(5).all(|safe| safe.is_mountable()));
}

fn exfat() -> Capabilities {
    Capabilities {
        forbidden: (1..0x20).chain(*b"\"*:<>?\\|").collect(),
        case_insensitive: true,
        utf8_only: true,
        no_trailing_dot: true,
        no_trailing_space: true,
        max_utf16: Some(255),
        ..Capabilities::plain()
    }
}

/// A line of the control protocol, at either end.
pub fn control(bytes: &[u8]) {
    match protocol::decode::<Request>(bytes) {
        Ok(request) => {
            let mut line = protocol::encode(&request).expect("what was read can be written");
            assert_eq!(line.pop(), Some(b'\n'));
            assert!(!line.contains(&b'\n'));
            let again = protocol::decode::<Request>(&line).expect("what was written can be read");
            assert_eq!(again, request);
        }
        Err(error) => drop(error.to_string()),
    }
    match protocol::decode::<Reply>(bytes) {
        Ok(reply) => {
            let mut line = protocol::encode(&reply).expect("what was read can be written");
            assert_eq!(line.pop(), Some(b'\n'));
            assert!(!line.contains(&b'\n'));
            protocol::decode::<Reply>(&line).expect("what was written can be read");
        }
        Err(error) => drop(error.to_string()),
    }
}
