//! The volume marker, `.ferryfs/volume.json`: it makes a directory *this* volume (P6).
//!
//! It is written once, at enrollment, and never changed. An attach compares [`Marker::id`] and
//! [`Marker::nonce`] with those that the cache remembers. After any error here nothing is written
//! to the directory and nothing is concluded from it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::core::Timestamp;

/// The format that this version writes and reads.
pub const FORMAT: u64 = 1;

/// The longest marker that is read, in bytes. A caller reads at most one byte more.
pub const MAX_BYTES: usize = 64 * 1024;

/// Value of the member `ferryfs`, which distinguishes a marker from other JSON.
const KIND: &str = "volume";

/// Identity of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// The volume.
    pub id: Uuid,
    /// Random bytes of this enrollment: another enrollment under the same id has others.
    pub nonce: [u8; 16],
    /// When it was enrolled.
    pub created: Timestamp,
    /// Version of the ferryfs that enrolled it, for people.
    pub version: String,
}

/// Why bytes are not a marker that this version can use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MarkerError {
    /// Nothing in it shows that ferryfs wrote it.
    #[error("not a volume marker of ferryfs: {hint}")]
    NotAMarker {
        /// What it seems to be.
        hint: &'static str,
    },
    /// An earlier ferryfs wrote it, in a format that is no longer read.
    #[error(
        "the volume was enrolled by another version of ferryfs (marker format {format}, this one \
         reads {FORMAT} alone); use that one"
    )]
    OtherFormat {
        /// The format.
        format: u64,
    },
    /// A newer ferryfs wrote it, in an unknown format.
    #[error(
        "the volume was enrolled by a newer ferryfs (marker format {format}, this one reads {FORMAT}); update it on this machine"
    )]
    Newer {
        /// The format.
        format: u64,
    },
    /// It is a marker, but incomplete.
    #[error(
        "the volume marker is damaged: {problem}; check the drive for errors, then restore volume.json or enroll it again"
    )]
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
    id: Uuid,
    nonce: String,
    /// Nanoseconds since 1970, for the program; people can read the file's own date.
    created: i64,
    version: String,
}

impl Marker {
    /// A marker for a volume that this version enrolls; `id` and `nonce` are random.
    pub fn new(id: Uuid, nonce: [u8; 16], created: Timestamp) -> Marker {
        Marker {
            id,
            nonce,
            created,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// Encodes the file: indented JSON with a line feed at its end.
pub fn encode(marker: &Marker) -> Vec<u8> {
    let members = Members {
        ferryfs: KIND.to_owned(),
        format: FORMAT,
        id: marker.id,
        nonce: hex(marker.nonce),
        created: marker.created.0,
        version: marker.version.clone(),
    };
    // Strings and numbers under literal keys: JSON can express all of it.
    let mut text = serde_json::to_vec_pretty(&members).expect("a marker is plain JSON");
    text.push(b'\n');
    text
}

/// Decodes the file.
///
/// # Errors
/// [`MarkerError`]: the directory must not be touched.
pub fn decode(bytes: &[u8]) -> Result<Marker, MarkerError> {
    if let Some(hint) = foreign(bytes) {
        return Err(MarkerError::NotAMarker { hint });
    }
    let object = parse_object(bytes)?;
    match object.get("ferryfs").and_then(Value::as_str) {
        Some(KIND) => {}
        Some(_) => return not_a_marker("it is another file of ferryfs"),
        None => return not_a_marker("it is JSON of something else"),
    }
    // The format first: another one may have other members.
    match object.get("format").and_then(Value::as_u64) {
        Some(FORMAT) => {}
        Some(format) if format > FORMAT => return Err(MarkerError::Newer { format }),
        Some(format) => return Err(MarkerError::OtherFormat { format }),
        None => return damaged("it names no format".to_owned()),
    }
    let members: Members = match serde_json::from_value(Value::Object(object)) {
        Ok(members) => members,
        Err(error) => return damaged(error.to_string()),
    };
    let Some(nonce) = parse_hex(&members.nonce) else {
        return damaged("its nonce is not 32 hexadecimal digits".to_owned());
    };
    Ok(Marker {
        id: members.id,
        nonce,
        created: Timestamp(members.created),
        version: members.version,
    })
}

/// Returns what the bytes seem to be, if they obviously are not a marker.
fn foreign(bytes: &[u8]) -> Option<&'static str> {
    if bytes.len() > MAX_BYTES {
        Some("it is larger than 64 KiB")
    } else if bytes.is_empty() {
        Some("it is empty; the drive was perhaps unplugged while it was being enrolled")
    } else if bytes.iter().all(|&b| b == 0) {
        Some("it is all zeros; the drive was perhaps unplugged while it was being enrolled")
    } else {
        None
    }
}

fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, MarkerError> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => not_a_marker("it is JSON, but not an object"),
        // A file that begins like a marker was one: a message helps, because a user can repair it
        // by hand.
        Err(error) if begins_as_ours(bytes) => damaged(error.to_string()),
        Err(_) => not_a_marker("it is not JSON"),
    }
}

fn begins_as_ours(bytes: &[u8]) -> bool {
    let squeezed: Vec<u8> = bytes
        .iter()
        .copied()
        .filter(|b| !b.is_ascii_whitespace())
        .take(19)
        .collect();
    squeezed == br#"{"ferryfs":"volume""#
}

fn not_a_marker<T>(hint: &'static str) -> Result<T, MarkerError> {
    Err(MarkerError::NotAMarker { hint })
}

fn damaged<T>(problem: String) -> Result<T, MarkerError> {
    Err(MarkerError::Damaged { problem })
}

fn hex(bytes: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(bytes))
}

fn parse_hex(text: &str) -> Option<[u8; 16]> {
    let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let number = digits.then(|| u128::from_str_radix(text, 16).ok())??;
    Some(number.to_be_bytes())
}

#[cfg(test)]
mod tests;
