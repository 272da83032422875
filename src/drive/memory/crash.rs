//! The effect of a crash on a [`crate::drive::memory::MemoryBackend`]: it keeps everything,
//! nothing, or some of the writes since the last sync, as exFAT may.
//!
//! exFAT has no journal, and dirty blocks reach the medium in any order until a sync. So each place
//! of the medium that was written since the last sync has, independently, its last content, or any
//! earlier one, back to that of the last sync:
//! - *a slot of a directory.* A rename writes two (the new entry, then the old one is removed), a
//!   rename over a name three (then the replaced entry is removed). So a file may be under both
//!   names, the new, the old or neither, and a name may exist twice, for the old file and the new
//!   one. An entry that was written several times may have an earlier form: shorter, empty, with
//!   another time;
//! - *a file's bytes.* Lost bytes read as zeros or garbage, even if the entry has the full size;
//!   where bytes were written over, each sector has the old ones or the new ones;
//! - *the mark that clusters are free.* An entry whose removal was lost may point at clusters that
//!   are marked free: the next file may get them. A file that was created before the crash may
//!   already have them.
//!
//! Two entries from one rename share their clusters. The removal of either entry frees these: see
//! `Tree::release`.
//!
//! Not simulated: loss of the mark of *used* clusters (then the next file can overwrite a sound
//! one; only a check of the file system finds that), broken sets of entries, and damage to places
//! that were not touched since the sync.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::core::RelPath;
use crate::drive::memory::medium::{
    ChainNo, Cluster, DirEntry, DirSlot, DirSlots, Medium, ROOT, garbage,
};
use crate::drive::memory::tree::{MemoryTree, Update};

/// The writes that have reached the medium when the power fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// None since the last sync.
    LoseAll,
    /// All, as if they were synced.
    KeepAll,
    /// A random selection by this seed, as exFAT may leave it. The same operations and the same
    /// seed give the same result.
    Random(u64),
}

/// Random numbers (SplitMix64).
#[derive(Clone, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `end`, which must not be 0.
    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    pub(super) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn percent(&mut self, rate: usize) -> bool {
        self.below(100) < rate
    }
}

/// How many writes reach the medium, in percent.
#[derive(Clone, Copy, Debug)]
struct Rates {
    entries: usize,
    bytes: usize,
    freed: usize,
}

impl MemoryTree {
    /// Applies `crash`. For a random crash it returns the fate of each update, one line each.
    pub(super) fn crash(&mut self, durable: &Medium, crash: Crash) -> Vec<String> {
        let mut story = Vec::new();
        match crash {
            Crash::LoseAll => self.medium = durable.clone(),
            Crash::KeepAll => {}
            Crash::Random(seed) => {
                let mut dice = Dice::new(seed);
                let mut rate = || [0, 20, 50, 80, 100][dice.below(5)];
                let rates = Rates {
                    entries: rate(),
                    bytes: rate(),
                    freed: rate(),
                };
                self.draw(durable, rates, &mut dice, &mut story);
                self.dice = dice;
            }
        }
        self.log.clear();
        story
    }

    /// Leaves the names of one of the `moments` since the last sync, as a journal does; bytes
    /// written since may be lost.
    pub(super) fn crash_journaled(
        &mut self,
        durable: &Medium,
        moments: &[Medium],
        seed: u64,
    ) -> Vec<String> {
        let mut dice = Dice::new(seed);
        let (mut story, at) = (Vec::new(), dice.below(moments.len() + 1));
        let mut drawn = match at.checked_sub(1) {
            Some(at) => moments[at].clone(),
            None => durable.clone(),
        };
        story.push(format!("{at} of {} changes", moments.len()));
        let rates = Rates {
            entries: 100,
            bytes: [0, 50, 100][dice.below(3)],
            freed: 0,
        };
        draw_bytes(
            &mut drawn,
            &self.medium,
            &self.log,
            rates,
            &mut dice,
            &mut story,
        );
        let media = (&self.medium, durable);
        draw_overwritten(&mut drawn, media, &self.log, rates, &mut dice, &mut story);
        forget_unreachable(&mut drawn);
        self.medium = drawn;
        self.log.clear();
        story
    }

    fn draw(&mut self, durable: &Medium, rates: Rates, dice: &mut Dice, story: &mut Vec<String>) {
        let mut drawn = durable.clone();
        draw_entries(&mut drawn, &self.log, rates, dice, story);
        draw_bytes(&mut drawn, &self.medium, &self.log, rates, dice, story);
        let media = (&self.medium, durable);
        draw_overwritten(&mut drawn, media, &self.log, rates, dice, story);
        draw_freed(&mut drawn, &self.log, rates, dice, story);
        shuffle_duplicates(&mut drawn, &self.log, dice);
        forget_unreachable(&mut drawn);
        for cluster in drawn.chains.values_mut() {
            if let Cluster::Directory(slots) = cluster {
                for entry in slots.values_mut() {
                    self.last_number += 1;
                    entry.id = self.last_number;
                }
            }
        }
        self.medium = drawn;
        self.crashed = true;
    }
}

/// The writes to one slot, in order.
type History<'a> = (Vec<&'a Option<DirEntry>>, &'a RelPath);

fn draw_entries(
    drawn: &mut Medium,
    log: &[Update],
    rates: Rates,
    dice: &mut Dice,
    story: &mut Vec<String>,
) {
    let mut histories: BTreeMap<(ChainNo, DirSlot), History<'_>> = BTreeMap::new();
    for update in log {
        match update {
            Update::Entry {
                dir,
                slot,
                after,
                path,
            } => {
                let history = histories.entry((*dir, *slot));
                history.or_insert((Vec::new(), path)).0.push(after);
            }
            // Its clusters are zeroed, whatever they held.
            Update::Allocated {
                chain,
                directory: true,
            } => {
                let empty = Cluster::Directory(DirSlots::new());
                drawn.chains.insert(*chain, empty);
            }
            _ => {}
        }
    }
    for ((dir, slot), (versions, path)) in histories {
        let all = versions.len();
        let kept = match dice.percent(rates.entries) {
            true => all,
            false if rates.entries == 0 => 0,
            false => dice.below(all),
        };
        match kept.checked_sub(1).map(|last| versions[last]) {
            None => {}
            Some(Some(entry)) => drop(drawn.slots_mut(dir).insert(slot, entry.clone())),
            Some(None) => {
                if let Some(Cluster::Directory(slots)) = drawn.chains.get_mut(&dir) {
                    slots.remove(&slot);
                }
            }
        }
        let now = match drawn.slots(dir).get(&slot) {
            Some(entry) => format!("there, {:?} at {:?}", entry.kind, entry.chain),
            None => "not there".to_string(),
        };
        story.push(format!(
            "{path} (slot {slot}): {kept} of {all} updates: {now}"
        ));
    }
}

/// Bytes of a file that reach the medium together.
const SECTOR: usize = 512;

/// Decides for each sector that was written over. A sector that is not written keeps the bytes of
/// the last sync; beyond the end of these it has zeros.
fn draw_overwritten(
    drawn: &mut Medium,
    (live, durable): (&Medium, &Medium),
    log: &[Update],
    rates: Rates,
    dice: &mut Dice,
    story: &mut Vec<String>,
) {
    let bytes_of = |medium: &Medium, chain| match medium.chains.get(&chain) {
        Some(Cluster::Bytes(bytes)) => Arc::clone(bytes),
        _ => Arc::default(),
    };
    for update in log {
        let Update::Overwritten { chain, from, to } = update else {
            continue;
        };
        let (new, old) = (bytes_of(live, *chain), bytes_of(durable, *chain));
        let Some(Cluster::Bytes(bytes)) = drawn.chains.get_mut(chain) else {
            continue;
        };
        let bytes = Arc::make_mut(bytes);
        let (mut at, mut lost, end) = (*from, 0, (*to).min(new.len()));
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        while at < end {
            let next = (at / SECTOR + 1) * SECTOR;
            let next = next.min(end);
            let is_written = dice.percent(rates.bytes);
            lost += usize::from(!is_written);
            for place in at..next {
                bytes[place] = match is_written {
                    true => new[place],
                    false => old.get(place).copied().unwrap_or(0),
                };
            }
            at = next;
        }
        story.push(format!(
            "bytes {from}..{to} of clusters {chain}: {lost} sectors lost"
        ));
    }
}

fn draw_bytes(
    drawn: &mut Medium,
    live: &Medium,
    log: &[Update],
    rates: Rates,
    dice: &mut Dice,
    story: &mut Vec<String>,
) {
    for update in log {
        if let Update::Allocated {
            chain,
            directory: false,
        } = update
            && let Some(cluster) = live.chains.get(chain)
        {
            drawn.chains.insert(*chain, cluster.clone());
        }
    }
    for update in log {
        let Update::Bytes { chain, from, to } = update else {
            continue;
        };
        if dice.percent(rates.bytes) {
            continue;
        }
        let zeros = dice.one_in(2);
        if let Some(Cluster::Bytes(bytes)) = drawn.chains.get_mut(chain) {
            let bytes = Arc::make_mut(bytes);
            for at in *from..(*to).min(bytes.len()) {
                bytes[at] = if zeros { 0 } else { garbage(*chain, at) };
            }
        }
        let what = if zeros { "zeros" } else { "garbage" };
        story.push(format!("bytes {from}..{to} of clusters {chain}: {what}"));
    }
}

/// Chooses which clusters are marked free, and which of these another file has got.
fn draw_freed(
    drawn: &mut Medium,
    log: &[Update],
    rates: Rates,
    dice: &mut Dice,
    story: &mut Vec<String>,
) {
    for (at, update) in log.iter().enumerate() {
        let chain = match update {
            Update::Allocated { chain, .. } => {
                drawn.loose.remove(chain);
                continue;
            }
            Update::Released { chain } => *chain,
            _ => continue,
        };
        if !dice.percent(rates.freed) || !drawn.is_referenced(chain) {
            continue;
        }
        drawn.loose.insert(chain);
        story.push(format!("clusters {chain}: marked free"));
        let later = log[at..].iter().filter_map(|update| match update {
            Update::Allocated { chain, .. } => Some(*chain),
            _ => None,
        });
        let later: Vec<ChainNo> = later.filter(|other| *other != chain).collect();
        if !later.is_empty() && dice.one_in(4) {
            let heir = later[dice.below(later.len())];
            reassign(drawn, chain, heir);
            story.push(format!("clusters {chain}: used again, by {heir}"));
        }
    }
}

/// Redirects every entry that points at `from` to `to`.
fn reassign(drawn: &mut Medium, from: ChainNo, to: ChainNo) {
    for cluster in drawn.chains.values_mut() {
        if let Cluster::Directory(slots) = cluster {
            for entry in slots.values_mut().filter(|e| e.chain == Some(from)) {
                entry.chain = Some(to);
            }
        }
    }
}

/// If a name exists twice, a driver may find either entry first.
fn shuffle_duplicates(drawn: &mut Medium, log: &[Update], dice: &mut Dice) {
    let touched = log.iter().filter_map(|update| match update {
        Update::Entry { dir, .. } => Some(*dir),
        _ => None,
    });
    for dir in touched.collect::<BTreeSet<ChainNo>>() {
        let Some(Cluster::Directory(slots)) = drawn.chains.get_mut(&dir) else {
            continue;
        };
        let mut by_key: BTreeMap<Vec<u8>, Vec<DirSlot>> = BTreeMap::new();
        for (slot, entry) in slots.iter() {
            by_key.entry(entry.key.clone()).or_default().push(*slot);
        }
        for duplicates in by_key.values().filter(|duplicates| duplicates.len() > 1) {
            let (one, other) = (duplicates[0], duplicates[duplicates.len() - 1]);
            if dice.one_in(2)
                && let (Some(a), Some(b)) = (slots.remove(&one), slots.remove(&other))
            {
                slots.insert(one, b);
                slots.insert(other, a);
            }
        }
    }
}

/// Removes clusters without an entry: they are leaked until a check of the file system, and no
/// driver can reach them.
fn forget_unreachable(drawn: &mut Medium) {
    let mut reached = BTreeSet::from([ROOT]);
    drawn.walk(&mut |_, _, entry| reached.extend(entry.chain));
    drawn.chains.retain(|chain, _| reached.contains(chain));
    drawn.loose.retain(|chain| reached.contains(chain));
}

#[cfg(test)]
mod tests;
