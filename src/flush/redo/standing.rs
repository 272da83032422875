//! Where things stand while a batch is being redone: which slots are filled, and under which name a directory is found.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::backend::Backend;
use crate::base::{BatchNo, Name, RelPath};
use crate::flush::Result;
use crate::rules::layout;
use crate::rules::steps::SlotNo;

/// Suffix of a copy that was made of what is in a slot, before its number.
const COPY: &str = ".copy";

/// The names in the staging directory under which the content of each slot stands. Beside the slot itself there may be copies,
/// numbered in the order in which they were made: a copy is made of what stood under two names, and takes over from both.
pub(super) struct Slots {
    dir: RelPath,
    /// By slot, the numbers of the names that are there; 0 is the slot itself.
    names: BTreeMap<SlotNo, Vec<u32>>,
    /// Slots of directories that the drive has lost.
    lost: BTreeSet<SlotNo>,
    /// Slots whose content an earlier attempt has found under two names.
    twins: BTreeSet<SlotNo>,
}

impl Slots {
    pub(super) fn read(backend: &dyn Backend, batch: BatchNo) -> Result<Slots> {
        let dir = layout::staging_dir(batch);
        let entries = match backend.read_dir(&dir) {
            Ok(entries) => entries,
            // The drive has lost it: what was in it is made anew.
            Err(error) if error.is_not_found() => {
                backend.make_dir(&dir)?;
                Vec::new()
            }
            Err(error) => return Err(error.into()),
        };
        let mut names: BTreeMap<SlotNo, Vec<u32>> = BTreeMap::new();
        let (mut lost, mut twins) = (BTreeSet::new(), BTreeSet::new());
        for entry in entries {
            if let Some((slot, number)) = parse(&entry.name) {
                names.entry(slot).or_default().push(number);
            } else if let Some(slot) = layout::parse_lost_name(&entry.name) {
                lost.insert(slot);
            } else if let Some(slot) = layout::parse_twin_name(&entry.name) {
                twins.insert(slot);
            }
        }
        for numbers in names.values_mut() {
            numbers.sort_unstable();
            numbers.dedup();
        }
        Ok(Slots {
            dir,
            names,
            lost,
            twins,
        })
    }

    /// Every name under which the content of `slot` stands, in the order in which they were made.
    pub(super) fn all(&self, slot: SlotNo) -> Vec<RelPath> {
        let numbers = self.names.get(&slot).map_or(&[][..], Vec::as_slice);
        numbers.iter().map(|n| self.path(slot, *n)).collect()
    }

    /// The last of them.
    pub(super) fn newest(&self, slot: SlotNo) -> Option<RelPath> {
        let number = self.names.get(&slot)?.last()?;
        Some(self.path(slot, *number))
    }

    /// A name for a copy of the content of `slot`, which nothing has.
    pub(super) fn next_copy(&self, slot: SlotNo) -> RelPath {
        let last = self.names.get(&slot).and_then(|numbers| numbers.last());
        self.path(slot, last.map_or(1, |n| n + 1))
    }

    /// Notes that the content of `slot` stands under `name` and no other.
    pub(super) fn only(&mut self, slot: SlotNo, name: &RelPath) {
        let number = name.split_last().and_then(|(_, name)| parse(&name));
        self.names
            .insert(slot, vec![number.map_or(0, |(_, number)| number)]);
    }

    /// Whether an earlier attempt has found the directory of `slot` lost.
    pub(super) fn is_lost(&self, slot: SlotNo) -> bool {
        self.lost.contains(&slot)
    }

    /// Whether an earlier attempt has found the content of `slot` under two names. What it had not yet removed may stand on clusters
    /// that are marked free.
    pub(super) fn was_twin(&self, slot: SlotNo) -> bool {
        self.twins.contains(&slot)
    }

    /// Notes that nothing of `slot` is left.
    pub(super) fn forget(&mut self, slot: SlotNo) {
        self.names.remove(&slot);
    }

    fn path(&self, slot: SlotNo, number: u32) -> RelPath {
        let mut name = slot.file_name();
        if number > 0 {
            name.push_str(&format!("{COPY}{number}"));
        }
        let name = Name::new(name.as_bytes()).expect("names formed here are well formed");
        self.dir.join(&name)
    }
}

fn parse(name: &Name) -> Option<(SlotNo, u32)> {
    let text = std::str::from_utf8(name.as_bytes()).ok()?;
    let (slot, number) = match text.split_once(COPY) {
        Some((slot, number)) => (slot, number.parse().ok().filter(|n| *n > 0)?),
        None => (text, 0),
    };
    let slot = layout::parse_slot_name(&Name::new(slot.as_bytes()).ok()?)?;
    Some((slot, number))
}

/// Where the directories that a batch moves stand now, by their paths in one of its two trees.
#[derive(Default)]
pub(super) struct Standing {
    elsewhere: HashMap<RelPath, RelPath>,
}

impl Standing {
    /// Notes that the directory which has `path` in the tree stands at `now`.
    pub(super) fn note(&mut self, path: &RelPath, now: RelPath) {
        self.elsewhere.insert(path.clone(), now);
    }

    /// Notes that it stands where it belongs.
    pub(super) fn settle(&mut self, path: &RelPath) {
        self.elsewhere.remove(path);
    }

    /// Where what has `path` in the tree is to be found.
    pub(super) fn locate(&self, path: &RelPath) -> RelPath {
        let mut spelled = RelPath::root();
        let mut now = RelPath::root();
        for bytes in path.components() {
            let Ok(name) = Name::new(bytes) else {
                return path.clone();
            };
            spelled = spelled.join(&name);
            now = match self.elsewhere.get(&spelled) {
                Some(elsewhere) => elsewhere.clone(),
                None => now.join(&name),
            };
        }
        now
    }

    /// Where the directory of what has `path` in the tree is, and its name there. What itself stands elsewhere is not meant.
    pub(super) fn locate_name(&self, path: &RelPath) -> RelPath {
        match path.split_last() {
            Some((dir, name)) => self.locate(&dir).join(&name),
            None => path.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_found_below_the_directory_that_moved() {
        let mut standing = Standing::default();
        standing.note(&RelPath::fixed("a"), RelPath::fixed("s/1"));
        standing.note(&RelPath::fixed("a/b"), RelPath::fixed("s/2"));
        let locate = |path| standing.locate_name(&RelPath::fixed(path)).to_string();
        assert_eq!(locate("a/x"), "s/1/x");
        assert_eq!(locate("a/b/c/x"), "s/2/c/x");
        assert_eq!(locate("a"), "a");
        assert_eq!(locate("a/b"), "s/1/b");
        assert_eq!(locate("other/a/x"), "other/a/x");
    }

    #[test]
    fn a_copy_is_known_by_its_slot_and_number() {
        let name = |text: &str| Name::new(text.as_bytes()).unwrap();
        assert_eq!(parse(&name("s0000000a")), Some((SlotNo(10), 0)));
        assert_eq!(parse(&name("s0000000a.copy2")), Some((SlotNo(10), 2)));
        for other in [
            "cleared",
            "s0000000a.copy0",
            "s0000000a.copy",
            "sA.copy1",
            "s0000000a.tmp",
        ] {
            assert_eq!(parse(&name(other)), None, "{other}");
        }
    }
}
