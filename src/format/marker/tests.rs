use proptest::prelude::*;

use super::*;

const FIXTURE: &[u8] = include_bytes!("../../../tests/fixtures/volume-v1.json");

/// The contents of the fixture.
fn known() -> Marker {
    Marker {
        id: Uuid::from_u128(0x6f1d_3a52_8c0e_4b7a_9d24_51c3_e07f_88b1),
        nonce: *b"\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f",
        created: Timestamp(1_763_661_600_123_456_789),
        version: "0.1.0".to_owned(),
    }
}

/// The fixture's text with one replacement.
fn altered(from: &str, to: &str) -> Vec<u8> {
    let text = std::str::from_utf8(FIXTURE).unwrap();
    assert!(text.contains(from), "{from}");
    text.replace(from, to).into_bytes()
}

#[test]
fn the_fixture_is_read_and_written_alike() {
    assert_eq!(decode(FIXTURE), Ok(known()));
    assert_eq!(encode(&known()), FIXTURE);
}

#[test]
fn members_that_are_unknown_are_ignored() {
    let more = altered("\"format\"", "\"label\": {\"a\": [1]}, \"format\"");
    assert_eq!(decode(&more), Ok(known()));
}

#[test]
fn another_format_is_named_whatever_else_it_changed() {
    for text in [
        altered("\"format\": 1", "\"format\": 2"),
        br#"{"ferryfs":"volume","format":2}"#.to_vec(),
        br#"{"ferryfs":"volume","format":2,"id":7,"nonce":[]}"#.to_vec(),
    ] {
        assert_eq!(decode(&text), Err(MarkerError::Newer { format: 2 }));
    }
    let lower = altered("\"format\": 1", "\"format\": 0");
    let refused = Err(MarkerError::OtherFormat { format: 0 });
    assert_eq!(decode(&lower), refused);
}

#[test]
fn what_ferryfs_did_not_write_is_no_marker() {
    let large = [FIXTURE, &[b' '; MAX_BYTES]].concat();
    for bad in [
        &b""[..],
        &[0; 512],
        b"\xff\xd8\xff",
        b"[]",
        b"{}",
        br#"{"name":"left-pad","format":1}"#,
        br#"{"ferryfs":"config","format":1}"#,
        &[b'['; 10_000],
        &large,
    ] {
        let found = decode(bad);
        assert!(
            matches!(found, Err(MarkerError::NotAMarker { .. })),
            "{found:?}"
        );
    }
}

#[test]
fn a_marker_that_is_not_whole_is_damaged() {
    for bad in [
        altered("\"format\": 1", "\"format\": \"1\""),
        altered("\"format\": 1,", ""),
        altered("6f1d3a52", "6f1d3a5"),
        altered("0001020304", "000102030"),
        altered("0001020304", "+001020304"),
        altered("1763661600123456789", "\"today\""),
        altered("\"nonce\"", "\"once\""),
        FIXTURE[..FIXTURE.len() / 2].to_vec(),
    ] {
        let found = decode(&bad);
        assert!(
            matches!(found, Err(MarkerError::Damaged { .. })),
            "{found:?}"
        );
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(id: u128, nonce: [u8; 16], created: i64, version in "[ -~]{0,20}|\\PC{0,20}") {
        let marker = Marker { id: Uuid::from_u128(id), nonce, created: Timestamp(created), version };
        prop_assert_eq!(decode(&encode(&marker)), Ok(marker));
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_never_pass(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(decode(&bytes).is_err());
    }

    #[test]
    fn a_marker_cut_short_never_passes(at in 0..FIXTURE.len() - 2) {
        prop_assert!(decode(&FIXTURE[..at]).is_err());
    }
}
