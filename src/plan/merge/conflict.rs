//! The name of the other version if both sides have changed a file.

use crate::core::{Name, Timestamp, Utc};

/// The marker of such a name, as in Syncthing.
const MARK: &str = ".sync-conflict-";

/// The longest extension that stays after the marker, without its dot.
const LONGEST_EXTENSION: usize = 16;

/// The longest host name that is not cut.
const LONGEST_HOST: usize = 32;

/// Returns `name.sync-conflict-<YYYYMMDD>-<HHMMSS>-<host>.ext`, in UTC, for the version of `name`
/// found at `time`. `attempt` counts from 0; from 1 on it is part of the name, for when the one
/// before is taken. A directory's name has no extension. The result has at most 255 bytes: the end
/// of the stem is cut, between two characters.
pub fn conflict_name(
    name: &Name,
    time: Timestamp,
    host: &str,
    attempt: u32,
    is_dir: bool,
) -> Option<Name> {
    let bytes = name.as_bytes();
    let (stem, extension) = match is_dir {
        true => (bytes, &b""[..]),
        false => split(bytes),
    };
    let mut mark = format!("{MARK}{}-{}", stamp(time), plain(host));
    if attempt > 0 {
        mark.push_str(&format!("-{}", attempt + 1));
    }
    let room = crate::core::NAME_MAX.saturating_sub(mark.len() + extension.len());
    let mut whole = cut(stem, room).to_vec();
    whole.extend_from_slice(mark.as_bytes());
    whole.extend_from_slice(extension);
    Name::new(&whole).ok()
}

/// Returns whether a name looks like one from [`conflict_name`].
pub fn is_conflict_name(name: &Name) -> bool {
    let mark = MARK.as_bytes();
    name.as_bytes()
        .windows(mark.len())
        .any(|window| window == mark)
}

/// Returns the stem, and the extension with its dot; none for `.bashrc`, `name.`, and an extension
/// that is too long.
fn split(name: &[u8]) -> (&[u8], &[u8]) {
    match name.iter().rposition(|&byte| byte == b'.') {
        Some(dot) if dot > 0 && (2..=LONGEST_EXTENSION + 1).contains(&(name.len() - dot)) => {
            name.split_at(dot)
        }
        _ => (name, b""),
    }
}

/// Returns at most `room` bytes from the front, without an incomplete character.
fn cut(stem: &[u8], room: usize) -> &[u8] {
    let mut end = room.min(stem.len());
    while end > 0 && end < stem.len() && stem[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    &stem[..end]
}

fn plain(host: &str) -> String {
    let kept: String = host
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .take(LONGEST_HOST)
        .collect();
    match kept.is_empty() {
        true => "unknown".into(),
        false => kept,
    }
}

/// Formats `YYYYMMDD-HHMMSS`.
fn stamp(time: Timestamp) -> String {
    let Utc {
        year,
        month,
        day,
        hour,
        minute,
        second,
    } = time.utc();
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}")
}
