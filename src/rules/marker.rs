//! The volume marker, `.ferryfs/volume.json`: what makes a directory *this* volume (P6).
//!
//! It is written once, at enrollment, and never changed. Whoever attaches reads it and compares [`Marker::id`] and
//! [`Marker::nonce`] with what the cache remembers; any error here means that nothing is written to the directory and
//! nothing is concluded from it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::base::Timestamp;

/// The format that this version writes, and the newest that it reads.
pub const FORMAT: u64 = 1;

/// Longest marker that is read, in bytes. A caller reads no more than one byte beyond it.
pub const MAX_BYTES: usize = 64 * 1024;

/// Value of the member `ferryfs`, which tells a marker from other JSON.
const KIND: &str = "volume";

/// Identity of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// Which volume it is.
    pub id: Uuid,
    /// Random bytes of this enrollment: a drive that was enrolled anew under the same id has others.
    pub nonce: [u8; 16],
    /// When it was enrolled.
    pub created: Timestamp,
    /// Version of the ferryfs that enrolled it, for people to read.
    pub version: String,
}

/// Why bytes are no marker that this version can use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MarkerError {
    /// Nothing in it says that ferryfs wrote it.
    #[error("not a volume marker of ferryfs: {hint}")]
    NotAMarker {
        /// What it looks like instead.
        hint: &'static str,
    },
    /// A newer ferryfs wrote it, in a format that is unknown here.
    #[error(
        "the volume was enrolled by a newer ferryfs (marker format {format}, this one reads {FORMAT}); update it on this machine"
    )]
    Newer {
        /// The format it names.
        format: u64,
    },
    /// It is a marker, but not whole.
    #[error(
        "the volume marker is damaged: {problem}; check the drive for errors, then restore volume.json or enroll it again"
    )]
    Damaged {
        /// What is wrong with it.
        problem: String,
    },
}

/// The members, in the order in which they are written. Unknown ones are ignored when read.
#[derive(Serialize, Deserialize)]
struct Members {
    ferryfs: String,
    format: u64,
    id: Uuid,
    nonce: String,
    /// Nanoseconds since 1970. A number, as it is for the program to compare; people have the file's own date.
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

/// The marker as the file holds it: indented JSON with a line feed at its end.
pub fn encode(marker: &Marker) -> Vec<u8> {
    let members = Members {
        ferryfs: KIND.to_owned(),
        format: FORMAT,
        id: marker.id,
        nonce: hex(marker.nonce),
        created: marker.created.0,
        version: marker.version.clone(),
    };
    // Strings and numbers under literal keys: there is nothing in it that JSON cannot express.
    let mut text = serde_json::to_vec_pretty(&members).expect("a marker is plain JSON");
    text.push(b'\n');
    text
}

/// Reads a marker.
///
/// # Errors
/// [`MarkerError`]: the directory is then not to be touched.
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
    // The format comes before all else: a newer one may have changed every other member.
    match object.get("format").and_then(Value::as_u64) {
        Some(FORMAT) => {}
        Some(format) if format > FORMAT => return Err(MarkerError::Newer { format }),
        _ => return damaged("it names no format".to_owned()),
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

/// What the bytes look like, where a look suffices to tell that they are no marker.
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
        // What begins like our own and does not end like it was ours: worth saying, as it can be mended by hand.
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
