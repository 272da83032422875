//! What other versions wrote, and what a yank leaves of it.

use ferryfs::rules::record::{RecordError, decode, encode, seal};

use crate::{FIXTURE, FIXTURE_2, body, known, known_2, patched, resealed, section};

const SEGMENT: &[u8] = include_bytes!("../fixtures/segment-v1.bin");

const DOCUMENT: &str = include_str!("../../docs/on-drive-format.md");

#[test]
fn a_record_of_format_1_stays_readable_and_is_written_alike() {
    assert_eq!(decode(FIXTURE), Ok(known()));
    assert_eq!(encode(&known()), FIXTURE);
    assert_eq!(seal(&known()).as_deref(), Ok(FIXTURE));
}

#[test]
fn a_record_of_format_2_stays_readable_and_is_written_alike() {
    if std::env::var_os("FERRYFS_WRITE_FIXTURES").is_some() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/record-v2.bin");
        std::fs::write(file, encode(&known_2())).unwrap();
    }
    assert_eq!(decode(FIXTURE_2), Ok(known_2()));
    assert_eq!(encode(&known_2()), FIXTURE_2);
    assert_eq!(seal(&known_2()).as_deref(), Ok(FIXTURE_2));
}

#[test]
fn a_record_says_format_2_only_if_it_has_something_of_it() {
    assert_eq!(FIXTURE[8], 1);
    type Edit = fn(&mut ferryfs::rules::record::BatchRecord);
    let edits: [Edit; 4] = [
        |it| it.catalog = known_2().catalog,
        |it| it.steps.attributes = known_2().steps.attributes,
        |it| it.steps.place.push(known_2().steps.place[3].clone()),
        |it| it.steps.place.push(known_2().steps.place[8].clone()),
    ];
    for edit in edits {
        let mut record = known();
        edit(&mut record);
        let bytes = seal(&record).unwrap();
        assert_eq!(bytes[8], 2, "{record:?}");
        assert_eq!(decode(&bytes).as_ref(), Ok(&record));
        // The same under the number of format 1: what was never in it is not taken for it.
        let mut older = bytes[..bytes.len() - 32].to_vec();
        older[8] = 1;
        let found = decode(&resealed(older));
        assert!(found.is_err_and(|error| !error.is_torn()), "{record:?}");
    }
    // Where nothing needs it, either number will do.
    assert_eq!(decode(&patched(8, &[2])), Ok(known()));
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
    for fixture in [FIXTURE, FIXTURE_2] {
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
    assert_eq!(newer(patched(8, &3_u16.to_le_bytes())), ("format", 3));
    // Nothing behind the format number need be as it is here.
    let other_layout = [&b"ferryrec\x07\x00"[..], b"other"].concat();
    assert_eq!(newer(resealed(other_layout)), ("format", 7));
    let required = [body(), section(3, 0, b"catalog")].concat();
    assert_eq!(newer(resealed(required)), ("section", 3));
    let flagged = [body(), section(9, 3, b"")].concat();
    assert_eq!(newer(resealed(flagged)), ("section flag", 3));
    let error = decode(&patched(8, &[3])).unwrap_err();
    assert!(!error.is_torn() && error.to_string().contains("newer ferryfs"));
}

#[test]
fn an_unknown_section_that_may_be_skipped_is_skipped() {
    let catalog = section(3, 1, b"changes of the catalog");
    let later = section(0x8000_0000, 1, b"");
    let bytes = resealed([body(), catalog, later].concat());
    assert_eq!(decode(&bytes), Ok(known()));
}
