//! Which segments of the catalog's log count, what is lost, and what the next one is to be.
//!
//! The log is a *chain*: a full segment and those that follow it number by number, each naming the hash of the one before. The
//! full one with the highest number counts; what is below it is over. Behind the first that is missing, damaged, or follows on
//! another, nothing counts but a later full one. A machine that keeps a copy of what the log says (its *mirror*, as of some
//! *head*) needs less of it: where the log on the drive breaks off, the mirror may still have it all.

use std::collections::BTreeMap;

use super::CatalogBatch;
use crate::base::ContentHash;

/// The last segment of a log, or of what a mirror knows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its number.
    pub number: u64,
    /// Its checksum.
    pub hash: ContentHash,
}

/// A segment that is whole and of this volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its checksum.
    pub hash: ContentHash,
    /// The checksum that it gives for the one before it.
    pub after: Option<ContentHash>,
    /// Whether it begins with nothing known.
    pub full: bool,
    /// Its length in bytes.
    pub bytes: u64,
}

/// What stands under a segment's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A whole segment.
    Whole(Link),
    /// Nothing that counts, and why, in words that go behind "segment 7".
    Bad(String),
}

/// What is to be taken into a mirror, by numbers of segments in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replay {
    /// The mirror has it all.
    Nothing,
    /// These follow on what the mirror has.
    Forward(Vec<u64>),
    /// The mirror forgets what it has and takes these; none, if the drive has nothing that counts.
    Anew(Vec<u64>),
}

impl Replay {
    /// The segments to be taken, in their order.
    pub fn numbers(&self) -> &[u64] {
        match self {
            Replay::Nothing => &[],
            Replay::Forward(numbers) | Replay::Anew(numbers) => numbers,
        }
    }
}

/// How a log stands: what is to be known to write its next segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// The last segment that counts; `None` if there is none, on the drive or in the mirror.
    pub head: Option<Head>,
    /// The highest number that is taken, by whatever.
    pub highest: u64,
    /// Bytes of the segments that count.
    pub bytes: u64,
    /// Whether the next segment must be a full one, because the log on the drive does not lead to `head`.
    pub broken: bool,
}

/// What a log holds and what of it is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// How it stands once `replay` is done.
    pub state: LogState,
    /// What the mirror is to take.
    pub replay: Replay,
    /// What cannot be had any more, a line for people each. Empty if the mirror has all of it.
    pub lost: Vec<String>,
    /// What is wrong with the log and costs nothing, as the mirror has it: for the log of the daemon.
    pub mended: Vec<String>,
}

/// Numbers above this are not counted on from: nobody gets there by counting, and a name that somebody has made up must not bring
/// the log to its end.
const FOLLOWED: u64 = 1 << 62;

/// The highest number from which is counted on.
fn highest(found: &BTreeMap<u64, Found>) -> u64 {
    let counted = found.range(..=FOLLOWED).next_back();
    let mut highest = counted.map_or(0, |(number, _)| *number);
    // What was made up may follow right behind.
    while found.contains_key(&(highest + 1)) {
        highest += 1;
    }
    highest
}

fn whole(found: &BTreeMap<u64, Found>, number: u64) -> Option<&Link> {
    match found.get(&number) {
        Some(Found::Whole(link)) => Some(link),
        _ => None,
    }
}

/// The numbers of those that follow on `head`, one by one.
fn following(found: &BTreeMap<u64, Found>, mut head: Head) -> (Vec<u64>, Head) {
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

/// The last full segment and what follows on it.
fn on_drive(found: &BTreeMap<u64, Found>) -> Option<(Vec<u64>, Head)> {
    let full = |(number, found): (&u64, &Found)| match found {
        Found::Whole(link) if link.full => Some(Head {
            number: *number,
            hash: link.hash,
        }),
        _ => None,
    };
    let begin = found.iter().rev().find_map(full)?;
    let (following, head) = following(found, begin);
    Some(([vec![begin.number], following].concat(), head))
}

/// What the mirror's log is, if the mirror may go on from its head: those that follow on it, and the last of them.
///
/// It may not if the drive has another segment under the head's number: then the log took another way. A head that is not on the
/// drive at all, with nothing behind it, was lost there; the mirror has what it said.
fn on_mirror(found: &BTreeMap<u64, Found>, head: Head) -> Option<(Vec<u64>, Head)> {
    match whole(found, head.number) {
        Some(link) if link.hash != head.hash => None,
        _ => Some(following(found, head)),
    }
}

/// Reads a log as it was found, by number, for a mirror that is as of `mirror`. All batches have been finished before: a segment
/// that was being written when the drive was yanked has been written anew.
pub fn read(found: &BTreeMap<u64, Found>, mirror: Option<Head>) -> Chain {
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
        // The drive's log goes further, from a full segment that the mirror's head does not lead to.
        (Some((numbers, head)), Some((_, our_head))) if head.number > our_head.number => {
            (Replay::Anew(numbers), Some(head))
        }
        (_, Some((following, head))) if following.is_empty() => (Replay::Nothing, Some(head)),
        (_, Some((following, head))) => (Replay::Forward(following), Some(head)),
        (None, None) => (Replay::Anew(Vec::new()), None),
    };
    // Somebody else's machine could not follow the log to where we are.
    let is_led_to = head == drive_head;
    let mut damage = damage(found, drive_head);
    let broken = !is_led_to || !damage.is_empty();
    let mirrored = mirror.is_some() && matches!(replay, Replay::Nothing | Replay::Forward(_));
    // What is damaged behind the point that was come to is lost, whatever the mirror has: it never had that.
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

/// What is wrong behind the last full segment, by number.
fn damage(found: &BTreeMap<u64, Found>, drive_head: Option<Head>) -> Vec<(u64, String)> {
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
            Found::Bad(problem) => problem,
            Found::Whole(_) => "follows on what is missing",
        };
        damage.push((
            *number,
            format!("segment {number} of the catalog {problem}"),
        ));
        expected = number.saturating_add(1);
    }
    damage
}

/// Bytes that the log may have on top of twice what it describes.
const SLACK: u64 = 1 << 20;

impl LogState {
    /// What the next segment is to be, where a full one would take about `live` bytes (see
    /// [`live_bytes`](super::store::live_bytes)): its number, the one that it follows on, and whether it is to be full. So the log
    /// never has more than twice what is described, a MiB, and the last batch.
    pub fn next(&self, live: u64) -> NextSegment {
        let is_long = self.bytes > live.saturating_mul(2).saturating_add(SLACK);
        NextSegment {
            number: self.highest.saturating_add(1),
            after: self.head.map(|head| head.hash),
            full: self.head.is_none() || self.broken || is_long,
        }
    }

    /// How the log stands once `batch`, whose segment has this hash and as many bytes, is on the drive. Taking it twice changes
    /// nothing more.
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

/// What the next segment of a log is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextSegment {
    /// Its number.
    pub number: u64,
    /// The hash of the one before it.
    pub after: Option<ContentHash>,
    /// Whether all that is known is to be written, instead of what has changed.
    pub full: bool,
}
