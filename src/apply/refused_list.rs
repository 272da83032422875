//! The list of refused steps on the drive: beside the mark between the phases, for a replay; and
//! beside the receipt of a batch that was finished without its cache, for that cache.
//!
//! The mark or the receipt, which makes the list count, is written after the list is durable, so a
//! partial list never counts.

use crate::apply::refused::StepNo;
use crate::core::RelPath;
use crate::drive::sealed_file::read_small;
use crate::drive::{Backend, create_with, exists};
use crate::error::Result;

/// The largest list that is read: enough for a batch of a million steps.
const MAX_BYTES: usize = 8 << 20;

/// Makes the list at `path` durable, in place of that of an earlier attempt. Without refused steps
/// there is no file.
///
/// # Errors
/// If the backend fails. There may be a partial list then, which does not count.
pub(crate) fn write(backend: &dyn Backend, path: &RelPath, steps: &[StepNo]) -> Result<()> {
    let is_old = exists(backend, path)?;
    if is_old {
        backend.remove_file(path)?;
    }
    if !steps.is_empty() {
        create_with(backend, path, encode(steps).as_bytes())?;
    }
    if is_old || !steps.is_empty() {
        backend.sync()?;
    }
    Ok(())
}

/// Returns the steps in the list at `path`; none if there is no list, or if it is damaged.
///
/// # Errors
/// If the backend fails.
pub(crate) fn read(backend: &dyn Backend, path: &RelPath) -> Result<Vec<StepNo>> {
    if !exists(backend, path)? {
        return Ok(Vec::new());
    }
    let bytes = read_small(backend, path, MAX_BYTES)?.unwrap_or_default();
    Ok(decode(&bytes).unwrap_or_else(|| {
        tracing::warn!(%path, "the list of refused steps is damaged");
        Vec::new()
    }))
}

/// `c` (clear) or `p` (place) and the number of each step in decimal, separated by blanks; then a
/// line feed and the BLAKE3 of that in hexadecimal.
fn encode(steps: &[StepNo]) -> String {
    let words = steps.iter().map(|step| match step {
        StepNo::Clear(number) => format!("c{number}"),
        StepNo::Place(number) => format!("p{number}"),
    });
    let words = words.collect::<Vec<_>>().join(" ");
    format!("{words}\n{}", hash(&words))
}

fn decode(bytes: &[u8]) -> Option<Vec<StepNo>> {
    let (words, written) = std::str::from_utf8(bytes).ok()?.split_once('\n')?;
    if hash(words) != written {
        return None;
    }
    let step = |word: &str| {
        let number = word.get(1..)?.parse().ok()?;
        match word.get(..1)? {
            "c" => Some(StepNo::Clear(number)),
            "p" => Some(StepNo::Place(number)),
            _ => None,
        }
    };
    words.split(' ').map(step).collect()
}

fn hash(words: &str) -> String {
    blake3::hash(words.as_bytes()).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_as_it_was_written_or_not_at_all() {
        let steps = [StepNo::Clear(4), StepNo::Place(0), StepNo::Clear(123_456)];
        let text = encode(&steps);
        assert_eq!(decode(text.as_bytes()).as_deref(), Some(&steps[..]));
        for end in 0..text.len() {
            assert_eq!(decode(&text.as_bytes()[..end]), None, "{end}");
        }
        for words in ["", "4", "x4", "c", "c-1", "c4  p0", "ö4"] {
            let text = format!("{words}\n{}", hash(words));
            assert_eq!(decode(text.as_bytes()), None, "{words}");
        }
    }
}
