//! The lease, `.ferryfs/lease`: the daemon that uses a directory to which other machines have
//! access.
//!
//! The file has two lines: JSON, and the BLAKE3 of the first line (with its line feed) in
//! hexadecimal. So damage is never taken for a newer format or for another daemon's lease. Every
//! future format keeps the second line and the members `ferryfs` and `format`.
//!
//! A lease does not change while it is held, and the holder writes nothing to show that it is
//! alive. Another machine *knocks* (creates [`crate::format::layout::KNOCK`]), and the holder
//! removes the knock. Without a knock the share is only read, from its server's memory, and the
//! disks of a NAS may sleep.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::core::Timestamp;

/// The format that this version writes and reads.
pub const FORMAT: u64 = 1;

/// The longest lease that is read, in bytes. A caller reads at most one byte more.
pub const MAX_BYTES: usize = 4096;

/// The longest silence of a holder, whatever the lease says; also used if the lease cannot be read.
pub const LONGEST_SILENCE: Duration = Duration::from_secs(120);

/// The shortest silence of a holder, whatever the lease says.
pub const SHORTEST_SILENCE: Duration = Duration::from_secs(1);

/// How often a holder looks for knocks within the silence.
const LOOKS: u32 = 12;

/// Value of the member `ferryfs`.
const KIND: &str = "lease";

/// Bytes of the second line: the digits and a line feed.
const CHECK_BYTES: usize = 65;

/// The daemon that uses a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The volume. The lease of another volume was copied there by hand, with the files.
    pub volume: Uuid,
    /// A random number of the daemon process; a restarted daemon has another.
    pub daemon: Uuid,
    /// The cache. It is locked, so two daemons never have the same one.
    pub cache: Uuid,
    /// The machine's name, for people and to qualify `cache`.
    pub host: String,
    /// The daemon's process id, for people.
    pub pid: u32,
    /// When the lease was taken, by that machine's clock; for people.
    pub since: Timestamp,
    /// How long a knock may stay unanswered before the holder counts as gone.
    pub silence: Duration,
}

/// Why bytes are not a lease that this version can read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// Another version of ferryfs wrote it, in an unknown format.
    #[error("format {format}, this one reads {FORMAT} alone")]
    OtherFormat {
        /// The format.
        format: u64,
    },
    /// It is incomplete, or not a lease.
    #[error("{problem}")]
    Damaged {
        /// The problem.
        problem: String,
    },
}

/// The members, in the order in which they are written. Unknown ones are ignored.
#[derive(Serialize, Deserialize)]
struct Members {
    ferryfs: String,
    format: u64,
    volume: Uuid,
    daemon: Uuid,
    cache: Uuid,
    host: String,
    pid: u32,
    since: i64,
    silence_ms: u64,
    version: String,
}

impl Lease {
    /// Returns how often the holder checks that the lease is still its own, and looks for knocks.
    pub fn interval(&self) -> Duration {
        self.silence() / LOOKS
    }

    /// Returns how long a knock may stay unanswered, within bounds: an invented number must neither
    /// make others wait for ever, nor leave the holder no time to answer.
    pub fn silence(&self) -> Duration {
        self.silence.clamp(SHORTEST_SILENCE, LONGEST_SILENCE)
    }

    /// Returns whether `other` is an earlier daemon of the same cache on the same machine. It has
    /// ended, because this daemon has locked the cache.
    pub fn is_successor_of(&self, other: &Lease) -> bool {
        (self.cache, &self.host, self.volume) == (other.cache, &other.host, other.volume)
    }
}

/// Encodes the file.
pub fn encode(lease: &Lease) -> Vec<u8> {
    let members = Members {
        ferryfs: KIND.to_owned(),
        format: FORMAT,
        volume: lease.volume,
        daemon: lease.daemon,
        cache: lease.cache,
        host: lease.host.clone(),
        pid: lease.pid,
        since: lease.since.0,
        silence_ms: u64::try_from(lease.silence.as_millis()).unwrap_or(u64::MAX),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    // Strings and numbers under literal keys: JSON can express all of it.
    let mut text = serde_json::to_vec(&members).expect("a lease is plain JSON");
    text.push(b'\n');
    let check = blake3::hash(&text).to_hex();
    text.extend_from_slice(check.as_bytes());
    text.push(b'\n');
    text
}

/// Decodes the file.
///
/// # Errors
/// [`LeaseError`]. The lease may still be held.
pub fn decode(bytes: &[u8]) -> Result<Lease, LeaseError> {
    let body = checked_body(bytes)?;
    let Ok(Value::Object(object)) = serde_json::from_slice(body) else {
        return damaged("it is not a JSON object");
    };
    if object.get("ferryfs").and_then(Value::as_str) != Some(KIND) {
        return damaged("it is another file of ferryfs");
    }
    match object.get("format").and_then(Value::as_u64) {
        Some(FORMAT) => {}
        Some(format) => return Err(LeaseError::OtherFormat { format }),
        None => return damaged("it names no format"),
    }
    let members: Members = match serde_json::from_value(Value::Object(object)) {
        Ok(members) => members,
        Err(error) => return damaged(error.to_string()),
    };
    Ok(Lease {
        volume: members.volume,
        daemon: members.daemon,
        cache: members.cache,
        host: members.host,
        pid: members.pid,
        since: Timestamp(members.since),
        silence: Duration::from_millis(members.silence_ms),
    })
}

/// Returns the first line, if the second is its checksum and nothing follows.
fn checked_body(bytes: &[u8]) -> Result<&[u8], LeaseError> {
    if bytes.is_empty() {
        return damaged("it is empty");
    }
    if bytes.len() > MAX_BYTES {
        return damaged("it is too long");
    }
    let Some((body, check)) = bytes
        .len()
        .checked_sub(CHECK_BYTES)
        .map(|at| bytes.split_at(at))
    else {
        return damaged("it is cut off");
    };
    let expected = format!("{}\n", blake3::hash(body).to_hex());
    if check != expected.as_bytes() || body.last() != Some(&b'\n') {
        return damaged("its checksum is wrong");
    }
    Ok(body)
}

fn damaged<T>(problem: impl Into<String>) -> Result<T, LeaseError> {
    Err(LeaseError::Damaged {
        problem: problem.into(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lease(host: &str) -> Lease {
        Lease {
            volume: Uuid::from_u128(1),
            daemon: Uuid::from_u128(2),
            cache: Uuid::from_u128(3),
            host: host.to_owned(),
            pid: 4711,
            since: Timestamp(1_795_132_800_000_000_000),
            silence: Duration::from_secs(60),
        }
    }

    fn sealed(json: &str) -> Vec<u8> {
        let mut text = format!("{json}\n").into_bytes();
        let check = blake3::hash(&text).to_hex();
        text.extend_from_slice(check.as_bytes());
        text.push(b'\n');
        text
    }

    #[test]
    fn the_fixture_is_read() {
        let fixture = include_bytes!("../../tests/fixtures/lease-v1");
        assert_eq!(decode(fixture).unwrap(), lease("nas-box"));
    }

    #[test]
    fn damage_at_any_byte_and_a_cut_at_any_length_is_neither_a_lease_nor_one_of_another_format() {
        let whole = encode(&lease("böx \n\"x"));
        for at in 0..whole.len() {
            for flip in [1, 2, 0x20, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                let error = decode(&bytes).unwrap_err();
                assert!(matches!(error, LeaseError::Damaged { .. }), "{at} {flip}");
            }
            let error = decode(&whole[..at]).unwrap_err();
            assert!(matches!(error, LeaseError::Damaged { .. }), "cut at {at}");
        }
        let mut longer = whole.clone();
        longer.push(b'\n');
        assert!(decode(&longer).is_err());
    }

    #[test]
    fn another_format_is_told_from_damage() {
        for format in [0, 2] {
            let text = format!(r#"{{"ferryfs":"lease","format":{format},"whatever":[]}}"#);
            let refused = Err(LeaseError::OtherFormat { format });
            assert_eq!(decode(&sealed(&text)), refused);
        }
        for other in [
            r#"{"ferryfs":"volume","format":1}"#,
            r#"{"ferryfs":"lease"}"#,
            r#"{"ferryfs":"lease","format":1}"#,
            "[]",
            "",
        ] {
            let error = decode(&sealed(other)).unwrap_err();
            assert!(matches!(error, LeaseError::Damaged { .. }), "{other}");
        }
    }

    #[test]
    fn a_made_up_silence_keeps_nobody_waiting_for_ever_and_cuts_nobody_off() {
        for (told, kept) in [
            (Duration::ZERO, SHORTEST_SILENCE),
            (Duration::MAX, LONGEST_SILENCE),
            (Duration::from_secs(60), Duration::from_secs(60)),
        ] {
            let lease = Lease {
                silence: told,
                ..lease("x")
            };
            let read = decode(&encode(&lease)).unwrap();
            assert_eq!(read.silence(), kept);
        }
    }

    proptest! {
        #[test]
        fn any_lease_is_read_back(host in ".*", pid: u32, since: i64, ms in 0..u64::MAX, ids: [u128; 3]) {
            prop_assume!(host.len() < 256);
            let lease = Lease {
                volume: Uuid::from_u128(ids[0]),
                daemon: Uuid::from_u128(ids[1]),
                cache: Uuid::from_u128(ids[2]),
                host,
                pid,
                since: Timestamp(since),
                silence: Duration::from_millis(ms),
            };
            prop_assert_eq!(decode(&encode(&lease)), Ok(lease));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = decode(&bytes);
            let _ = decode(&sealed(&String::from_utf8_lossy(&bytes)));
        }
    }
}
