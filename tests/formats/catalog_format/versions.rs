//! What other versions wrote, and what a yank leaves of it.

use ferryfs::core::{ContentHash, FileKind};
use ferryfs::format::catalog::CatalogBatch;
use ferryfs::format::catalog::segment::{Header, Segment, SegmentError, encode, hash_of};

use super::some::{VOLUME, attach, detach, device, link_to, path, plain, remove, rich_file, set};
use super::{CHANGES, CHECKSUM, FIXTURE, FULL, body, full, log, read, resealed};

/// What the fixture says.
fn known() -> CatalogBatch {
    log(
        7,
        ContentHash([0xa7; 32]),
        vec![
            detach("films/a.mkv", 0),
            remove("films/old"),
            attach(0, "films/new/a.mkv"),
            set("films/new/b.mkv", rich_file()),
            set("l", link_to("../b.db")),
            set("tty", device()),
            set("", plain(FileKind::Directory, 0o755)),
        ],
    )
}

/// What the full fixture says.
fn known_full() -> CatalogBatch {
    full(
        8,
        vec![
            set("", plain(FileKind::Directory, 0o755)),
            set("films", plain(FileKind::Directory, 0o700)),
            set("films/a.mkv", plain(FileKind::Regular, 0o644)),
            set("films/pipe", plain(FileKind::Fifo, 0o600)),
            set("films.txt", plain(FileKind::Regular, 0o600)),
        ],
    )
}

fn write_fixture(name: &str, bytes: &[u8]) {
    if std::env::var_os("FERRYFS_WRITE_FIXTURES").is_some() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/");
        std::fs::write(format!("{dir}{name}"), bytes).unwrap();
    }
}

#[test]
fn the_fixtures_are_read_and_written_alike() {
    write_fixture("segment-v1.bin", &encode(VOLUME, &known()));
    write_fixture("segment-full-v1.bin", &encode(VOLUME, &known_full()));
    for (fixture, batch) in [(FIXTURE, known()), (FULL, known_full())] {
        assert_eq!(encode(VOLUME, &batch), fixture);
        let header = Header {
            volume: VOLUME,
            number: batch.segment,
            after: batch.after,
            full: batch.full,
            count: batch.changes.len() as u64,
        };
        assert_eq!(read(fixture), Ok((header, batch.changes)));
        assert_eq!(
            Segment::decode(fixture).map(|it| Some(it.hash)),
            Ok(hash_of(fixture))
        );
    }
}

#[test]
fn every_flipped_byte_truncation_and_added_byte_is_taken_for_damage() {
    for fixture in [FIXTURE, FULL] {
        for at in 0..fixture.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut bytes = fixture.to_vec();
                bytes[at] ^= flip;
                let error = read(&bytes).expect_err("a flipped byte passed");
                assert!(error.is_torn(), "byte {at}: {error}");
            }
            assert!(read(&fixture[..at]).is_err_and(|e| e.is_torn()));
            // What a file system gives for blocks that never reached the disk.
            let mut zeros = fixture[..at].to_vec();
            zeros.resize(fixture.len(), 0);
            assert!(read(&zeros).is_err_and(|e| e.is_torn()));
        }
        let longer = [fixture, &[0]].concat();
        assert_eq!(read(&longer), Err(SegmentError::Damaged));
    }
}

#[test]
fn what_a_newer_version_wrote_is_said_to_be_newer() {
    let newer = |at: usize, byte: u8| {
        let mut bytes = body(FIXTURE);
        bytes[at] = byte;
        match read(&resealed(bytes)) {
            Err(SegmentError::Newer { part, number }) => (part, number),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(newer(8, 2), ("format", 2));
    assert_eq!(newer(10, 6), ("flag", 6));
    // Nothing behind the format number need be as it is here.
    let other_layout = [&b"ferrycat\x07\x00"[..], b"other"].concat();
    let error = read(&resealed(other_layout)).unwrap_err();
    assert!(!error.is_torn() && error.to_string().contains("newer ferryfs"));
    assert!(error.is_of_another_version());
    let mut lower = body(FIXTURE);
    lower[8] = 0;
    let error = read(&resealed(lower)).unwrap_err();
    assert_eq!(error, SegmentError::OtherFormat(0));
    assert!(error.is_of_another_version());
}

#[test]
fn a_path_takes_what_it_does_not_share_with_the_one_before() {
    let deep = vec!["directory"; 100].join("/");
    let one = |changes| encode(VOLUME, &full(1, changes)).len() - CHANGES - CHECKSUM;
    let mut changes = vec![set(&deep, plain(FileKind::Directory, 0))];
    let first = one(changes.clone());
    for n in 0..10 {
        changes.push(set(&format!("{deep}/{n}"), plain(FileKind::Regular, 0)));
    }
    assert!(first > 1000);
    assert!(one(changes) - first < 10 * 50);
    assert_eq!(path(&deep).depth(), 100);
}
