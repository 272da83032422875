//! What a crash leaves of a [`super::MemoryBackend`]: everything, nothing, or some of what was done since the last sync, as
//! exFAT may leave it.
//!
//! exFAT journals nothing, and dirty blocks reach the medium in any order until a sync. So each place of the medium that was
//! written since then, on its own, has its last content, or any earlier one, down to that of the last sync:
//! - *a slot of a directory.* A rename writes two (the new entry, then the old one is removed), a rename over a name three
//!   (then what stood there is removed). So a file may be under both names, the new, the old or neither, and a name may be there twice,
//!   for the old file and the new one. An entry that was written several times may be there in an earlier form: shorter,
//!   empty, with another time;
//! - *a file's bytes.* What is lost reads as zeros or garbage, also where the entry has the full size;
//! - *the mark that clusters are free.* An entry whose removal was lost may point at clusters that are marked free: the
//!   next file may be given them. They may even have been given to a file that was made before the crash.
//!
//! Two entries that came of one rename share their clusters. Removing either of them frees these: see `Tree::release`.
//!
//! Not drawn: that the mark of *used* clusters is lost (then a sound file can be overwritten by the next one; only a check of
//! the file system finds that), broken sets of entries, and damage to what was not touched since the sync.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::medium::{Chain, Cluster, Entry, Medium, ROOT, Slot, Slots, garbage};
use super::tree::{Tree, Update};
use crate::base::RelPath;

/// What has reached the medium when the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// Nothing since the last sync.
    LoseAll,
    /// Everything, as if it had been synced.
    KeepAll,
    /// What this seed says, as exFAT may leave it. The same operations and the same seed leave the same.
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

    /// A number below `end`, which must not be 0.
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

/// How much arrives, in percent.
#[derive(Clone, Copy, Debug)]
struct Rates {
    entries: usize,
    bytes: usize,
    freed: usize,
}

impl Tree {
    /// Leaves what `crash` says. Tells what became of each update, one line each, if it was drawn.
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

    /// Leaves the names of one of the `moments` since the last sync, as a journal does; bytes that were written since may be lost.
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
        forget_unreachable(&mut drawn);
        self.medium = drawn;
        self.log.clear();
        story
    }

    fn draw(&mut self, durable: &Medium, rates: Rates, dice: &mut Dice, story: &mut Vec<String>) {
        let mut drawn = durable.clone();
        draw_entries(&mut drawn, &self.log, rates, dice, story);
        draw_bytes(&mut drawn, &self.medium, &self.log, rates, dice, story);
        draw_freed(&mut drawn, &self.log, rates, dice, story);
        shuffle_twins(&mut drawn, &self.log, dice);
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

/// What has been written to one slot, in order.
type History<'a> = (Vec<&'a Option<Entry>>, &'a RelPath);

fn draw_entries(
    drawn: &mut Medium,
    log: &[Update],
    rates: Rates,
    dice: &mut Dice,
    story: &mut Vec<String>,
) {
    let mut histories: BTreeMap<(Chain, Slot), History<'_>> = BTreeMap::new();
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
                let empty = Cluster::Directory(Slots::new());
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

/// Which clusters are marked free, and which of these another file has been given.
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
        let later: Vec<Chain> = later.filter(|other| *other != chain).collect();
        if !later.is_empty() && dice.one_in(4) {
            let heir = later[dice.below(later.len())];
            reassign(drawn, chain, heir);
            story.push(format!("clusters {chain}: used again, by {heir}"));
        }
    }
}

/// Has every entry that points at `from` point at `to`.
fn reassign(drawn: &mut Medium, from: Chain, to: Chain) {
    for cluster in drawn.chains.values_mut() {
        if let Cluster::Directory(slots) = cluster {
            for entry in slots.values_mut().filter(|e| e.chain == Some(from)) {
                entry.chain = Some(to);
            }
        }
    }
}

/// Where a name is there twice since now, either entry may be the first that a driver finds.
fn shuffle_twins(drawn: &mut Medium, log: &[Update], dice: &mut Dice) {
    let touched = log.iter().filter_map(|update| match update {
        Update::Entry { dir, .. } => Some(*dir),
        _ => None,
    });
    for dir in touched.collect::<BTreeSet<Chain>>() {
        let Some(Cluster::Directory(slots)) = drawn.chains.get_mut(&dir) else {
            continue;
        };
        let mut by_key: BTreeMap<Vec<u8>, Vec<Slot>> = BTreeMap::new();
        for (slot, entry) in slots.iter() {
            by_key.entry(entry.key.clone()).or_default().push(*slot);
        }
        for twins in by_key.values().filter(|twins| twins.len() > 1) {
            let (one, other) = (twins[0], twins[twins.len() - 1]);
            if dice.one_in(2)
                && let (Some(a), Some(b)) = (slots.remove(&one), slots.remove(&other))
            {
                slots.insert(one, b);
                slots.insert(other, a);
            }
        }
    }
}

/// Clusters that nothing leads to are leaked until a check of the file system; nobody can tell.
fn forget_unreachable(drawn: &mut Medium) {
    let mut reached = BTreeSet::from([ROOT]);
    drawn.walk(&mut |_, _, entry| reached.extend(entry.chain));
    drawn.chains.retain(|chain, _| reached.contains(chain));
    drawn.loose.retain(|chain| reached.contains(chain));
}

#[cfg(test)]
mod tests;
