//! What other versions wrote, and what a yank leaves of it.

use ferryfs::format::record::{FORMAT, RecordError, decode, encode, seal};

use super::{FIXTURE, FULL, body, known, known_full, patched, resealed, section};

const SEGMENT: &[u8] = include_bytes!("../../fixtures/segment-v1.bin");

const DOCUMENT: &str = include_str!("../../../docs/on-drive-format.md");

#[test]
fn the_fixtures_are_read_and_written_alike() {
    if std::env::var_os("FERRYFS_WRITE_FIXTURES").is_some() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/");
        std::fs::write(format!("{dir}record-v3.bin"), encode(&known())).unwrap();
        std::fs::write(format!("{dir}record-full-v3.bin"), encode(&known_full())).unwrap();
    }
    for (fixture, record) in [(FIXTURE, known()), (FULL, known_full())] {
        assert_eq!(decode(fixture).as_ref(), Ok(&record));
        assert_eq!(encode(&record), fixture);
        assert_eq!(seal(&record).as_deref(), Ok(fixture));
    }
}

/// A batch that such a record has committed is left alone: it is neither torn nor carried out.
#[test]
fn a_record_of_another_format_is_refused_as_such() {
    for other in 0..FORMAT {
        let error = decode(&patched(8, &other.to_le_bytes())).unwrap_err();
        assert_eq!(error, RecordError::OtherFormat(other));
        assert!(!error.is_torn() && error.to_string().contains("the machine that wrote it"));
    }
}

#[test]
fn the_hexdumps_in_the_document_are_the_fixtures() {
    let mut dumps: Vec<Vec<u8>> = Vec::new();
    let lines = DOCUMENT.lines().filter_map(|line| line.split_once(": "));
    for (offset, rest) in lines {
        if offset.len() != 8 || u32::from_str_radix(offset, 16).is_err() {
            continue;
        }
        if offset == "00000000" {
            dumps.push(Vec::new());
        }
        let words = rest.split("  ").next().unwrap_or("").split(' ');
        let digits = words.flat_map(|word| (0..word.len()).step_by(2).map(|at| &word[at..at + 2]));
        let bytes = digits.map(|digits| u8::from_str_radix(digits, 16).unwrap());
        dumps.last_mut().unwrap().extend(bytes);
    }
    assert_eq!(dumps, [FIXTURE, SEGMENT]);
}

#[test]
fn every_flipped_byte_is_found_and_taken_for_damage() {
    for fixture in [FIXTURE, FULL] {
        for at in 0..fixture.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut bytes = fixture.to_vec();
                bytes[at] ^= flip;
                let error = decode(&bytes).expect_err("a flipped byte passed");
                assert!(error.is_torn(), "byte {at}: {error}");
            }
        }
    }
}

#[test]
fn every_truncation_and_every_added_byte_is_taken_for_damage() {
    for length in 0..FIXTURE.len() {
        assert!(decode(&FIXTURE[..length]).is_err_and(|e| e.is_torn()));
        // What a file system gives for blocks that never reached the disk.
        let mut zeros = FIXTURE[..length].to_vec();
        zeros.resize(FIXTURE.len(), 0);
        assert!(decode(&zeros).is_err_and(|e| e.is_torn()));
    }
    let longer = [FIXTURE, &[0]].concat();
    assert_eq!(decode(&longer), Err(RecordError::Damaged));
}

#[test]
fn what_a_newer_version_wrote_is_said_to_be_newer() {
    let newer = |bytes: Vec<u8>| match decode(&bytes) {
        Err(RecordError::Newer { part, number }) => (part, number),
        other => panic!("{other:?}"),
    };
    assert_eq!(newer(patched(8, &4_u16.to_le_bytes())), ("format", 4));
    // Nothing behind the format number need be as it is here.
    let other_layout = [&b"ferryrec\x07\x00"[..], b"other"].concat();
    assert_eq!(newer(resealed(other_layout)), ("format", 7));
    let required = [body(), section(6, 0, b"unknown")].concat();
    assert_eq!(newer(resealed(required)), ("section", 6));
    let flagged = [body(), section(9, 3, b"")].concat();
    assert_eq!(newer(resealed(flagged)), ("section flag", 3));
    let error = decode(&patched(8, &[4])).unwrap_err();
    assert!(!error.is_torn() && error.to_string().contains("newer ferryfs"));
}

#[test]
fn an_unknown_section_that_may_be_skipped_is_skipped() {
    let unknown = section(6, 1, b"whatever it says");
    let last = section(0x8000_0000, 1, b"");
    let bytes = resealed([body(), unknown, last].concat());
    assert_eq!(decode(&bytes), Ok(known()));
}
