//! Decides which segments of the catalog's log count, what is lost, and what the next segment must
//! be.
//!
//! The log is a *chain*: a full segment and the segments that follow it number by number. Each
//! contains the hash of the one before. The full segment with the highest number counts; those
//! below it are obsolete. After the first segment that is missing, damaged or names another hash,
//! only a later full one counts. A machine with a copy of the log's contents (its *mirror*, up to
//! some *head*) needs only the segments after that head; the mirror may still have what the drive
//! has lost.

use std::collections::BTreeMap;

use crate::core::ContentHash;
use crate::format::catalog::CatalogBatch;
use crate::format::catalog::segment::SegmentError;

/// The last segment of a log, or the last one that a mirror contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its number.
    pub number: u64,
    /// Its checksum.
    pub hash: ContentHash,
}

/// A complete segment of this volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its checksum.
    pub hash: ContentHash,
    /// The checksum of the segment before it.
    pub after: Option<ContentHash>,
    /// Whether its changes begin with an empty catalog.
    pub full: bool,
    /// Its length in bytes.
    pub bytes: u64,
}

/// The state of a segment's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundSegment {
    /// A complete segment.
    Whole(Link),
    /// A file that does not count, and why.
    Bad(Unusable),
}

/// Why a segment's file does not count. The message follows "segment 7".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// A directory, link or pipe.
    #[error("is not a file; another program has put it there")]
    NotAFile,
    /// A file that ferryfs would not have written.
    #[error("is longer than any can be")]
    TooLong,
    /// An interrupted write, or a failing drive.
    #[error("is damaged")]
    Damaged,
    /// Its header names another volume or number.
    #[error("belongs to another volume or to another number")]
    Elsewhere,
    /// Its contents are invalid.
    #[error("is not to be used: {0}")]
    Senseless(SegmentError),
    /// Its bytes changed between two reads.
    #[error("has changed while it was read")]
    Changed,
    /// The backend cannot read it; the system's message.
    #[error("cannot be read: {0}")]
    Unreadable(String),
}

/// The segments that a mirror must apply, by number, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replay {
    /// The mirror is complete.
    Nothing,
    /// These follow the mirror's head.
    Forward(Vec<u64>),
    /// The mirror discards its contents and applies these: none, if no segment on the drive counts.
    Anew(Vec<u64>),
}

impl Replay {
    /// Returns the segments to apply, in order.
    pub fn numbers(&self) -> &[u64] {
        match self {
            Replay::Nothing => &[],
            Replay::Forward(numbers) | Replay::Anew(numbers) => numbers,
        }
    }
}

/// The state of a log, as needed to write the next segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// The last segment that counts; `None` if there is none, on the drive or in the mirror.
    pub head: Option<Head>,
    /// The highest number in use, by any file.
    pub highest: u64,
    /// Bytes of the segments that count.
    pub bytes: u64,
    /// The next segment must be a full one, because the log on the drive does not lead to `head`.
    pub broken: bool,
}

/// The contents of a log, and its losses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The state after `replay`.
    pub state: LogState,
    /// What the mirror must apply.
    pub replay: Replay,
    /// Losses, one line each for people. Empty if the mirror has everything.
    pub lost: Vec<String>,
    /// Problems of the log without loss, because the mirror has the contents: for the daemon's log.
    pub mended: Vec<String>,
}

/// Higher numbers are ignored unless they follow the others: no counter gets there, and an invented
/// file name must not exhaust the numbers.
const FOLLOWED: u64 = 1 << 62;

/// Returns the highest number from which numbering continues.
fn highest(found: &BTreeMap<u64, FoundSegment>) -> u64 {
    let counted = found.range(..=FOLLOWED).next_back();
    let mut highest = counted.map_or(0, |(number, _)| *number);
    // Invented names may follow directly.
    while found.contains_key(&(highest + 1)) {
        highest += 1;
    }
    highest
}

fn whole(found: &BTreeMap<u64, FoundSegment>, number: u64) -> Option<&Link> {
    match found.get(&number) {
        Some(FoundSegment::Whole(link)) => Some(link),
        _ => None,
    }
}

/// Returns the numbers of the segments that follow `head`, and the new head.
fn following(found: &BTreeMap<u64, FoundSegment>, mut head: Head) -> (Vec<u64>, Head) {
    let mut numbers = Vec::new();
    while let Some(number) = head.number.checked_add(1)
        && let Some(link) = whole(found, number)
        && !link.full
        && link.after == Some(head.hash)
    {
        numbers.push(number);
        head = Head {
            number,
            hash: link.hash,
        };
    }
    (numbers, head)
}

/// Returns the last full segment and those that follow it.
fn on_drive(found: &BTreeMap<u64, FoundSegment>) -> Option<(Vec<u64>, Head)> {
    let full = |(number, found): (&u64, &FoundSegment)| match found {
        FoundSegment::Whole(link) if link.full => Some(Head {
            number: *number,
            hash: link.hash,
        }),
        _ => None,
    };
    let begin = found.iter().rev().find_map(full)?;
    let (following, head) = following(found, begin);
    Some(([vec![begin.number], following].concat(), head))
}

/// Returns the segments that follow the mirror's head, and the last of them, if the mirror may
/// continue from its head.
///
/// It must not if the drive has another segment under the head's number: the log then continued
/// without it. A head that the drive does not have, with nothing after it, was lost there; the
/// mirror has its contents.
fn on_mirror(found: &BTreeMap<u64, FoundSegment>, head: Head) -> Option<(Vec<u64>, Head)> {
    match whole(found, head.number) {
        Some(link) if link.hash != head.hash => None,
        _ => Some(following(found, head)),
    }
}

/// Evaluates the segments `found`, by number, for a mirror at the head `mirror`. All batches are
/// finished before, so that no segment is incomplete because of an interruption.
pub fn read(found: &BTreeMap<u64, FoundSegment>, mirror: Option<Head>) -> Chain {
    let highest = highest(found);
    let mut found = found.clone();
    found.retain(|number, _| *number <= highest);
    let found = &found;
    let drive = on_drive(found);
    let drive_head = drive.as_ref().map(|(_, head)| *head);
    let ours = mirror.and_then(|head| on_mirror(found, head));
    let bytes = (drive.iter().flat_map(|(numbers, _)| numbers))
        .filter_map(|number| whole(found, *number))
        .map(|link| link.bytes)
        .fold(0, u64::saturating_add);
    let (replay, head) = match (drive, ours) {
        (Some((numbers, head)), None) => (Replay::Anew(numbers), Some(head)),
        // The drive's log is longer, and starts from a full segment that the mirror's head does not
        // lead to.
        (Some((numbers, head)), Some((_, our_head))) if head.number > our_head.number => {
            (Replay::Anew(numbers), Some(head))
        }
        (_, Some((following, head))) if following.is_empty() => (Replay::Nothing, Some(head)),
        (_, Some((following, head))) => (Replay::Forward(following), Some(head)),
        (None, None) => (Replay::Anew(Vec::new()), None),
    };
    // Another machine could not follow the log to the mirror's head.
    let is_led_to = head == drive_head;
    let mut damage = damage(found, drive_head);
    let broken = !is_led_to || !damage.is_empty();
    let mirrored = mirror.is_some() && matches!(replay, Replay::Nothing | Replay::Forward(_));
    // Damage after the head is a loss in any case: the mirror never had it.
    let reached = head.map_or(0, |head| head.number);
    if !is_led_to && !found.contains_key(&reached) {
        let missing = format!("segment {reached} of the catalog is missing");
        damage.push((reached, missing));
    }
    let (mended, lost): (Vec<_>, Vec<_>) =
        (damage.into_iter()).partition(|(number, _)| mirrored && *number <= reached);
    let words = |it: Vec<(u64, String)>| it.into_iter().map(|(_, words)| words).collect();
    Chain {
        state: LogState {
            head,
            highest: highest.max(reached),
            bytes,
            broken,
        },
        replay,
        lost: words(lost),
        mended: words(mended),
    }
}

/// Returns the problems after the last full segment, by number.
fn damage(found: &BTreeMap<u64, FoundSegment>, drive_head: Option<Head>) -> Vec<(u64, String)> {
    let reached = drive_head.map_or(0, |head| head.number);
    let mut damage = Vec::new();
    let mut expected = reached + 1;
    for (number, found) in found.range(reached + 1..) {
        if *number > expected {
            let missing = match *number - expected {
                1 => format!("segment {expected} of the catalog is missing"),
                _ => format!(
                    "segments {expected} to {} of the catalog are missing",
                    number - 1
                ),
            };
            damage.push((expected, missing));
        }
        let problem = match found {
            FoundSegment::Bad(problem) => problem.to_string(),
            FoundSegment::Whole(_) => "follows on what is missing".into(),
        };
        damage.push((
            *number,
            format!("segment {number} of the catalog {problem}"),
        ));
        expected = number.saturating_add(1);
    }
    damage
}

/// Bytes that the log may use beyond twice its live contents.
const SLACK: u64 = 1 << 20;

impl LogState {
    /// Returns number, predecessor and fullness of the next segment, if a full one would take about
    /// `live` bytes (see [`live_bytes`](crate::format::catalog::store::live_bytes)). The log
    /// therefore never exceeds twice its live contents plus 1 MiB and the last batch.
    pub fn next(&self, live: u64) -> NextSegment {
        let is_long = self.bytes > live.saturating_mul(2).saturating_add(SLACK);
        NextSegment {
            number: self.highest.saturating_add(1),
            after: self.head.map(|head| head.hash),
            full: self.head.is_none() || self.broken || is_long,
        }
    }

    /// Returns the state after `batch`, whose segment has this hash and length. Idempotent.
    pub fn with(&self, batch: &CatalogBatch, hash: ContentHash, bytes: u64) -> LogState {
        let head = Head {
            number: batch.segment,
            hash,
        };
        if self.head == Some(head) {
            return self.clone();
        }
        LogState {
            head: Some(head),
            highest: self.highest.max(batch.segment),
            bytes: if batch.full {
                bytes
            } else {
                self.bytes.saturating_add(bytes)
            },
            broken: self.broken && !batch.full,
        }
    }
}

/// What the next segment of a log must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextSegment {
    /// Its number.
    pub number: u64,
    /// The hash of the segment before it.
    pub after: Option<ContentHash>,
    /// Whether it contains the whole catalog instead of the changes.
    pub full: bool,
}
