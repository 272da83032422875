//! Where files are while a batch is replayed: which slots are filled, and at which path a directory
//! is.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::core::{BatchNo, Name, RelPath};
use crate::drive::Backend;
use crate::error::Result;
use crate::format::layout;
use crate::format::steps::SlotNo;

/// Suffix of a copy of a slot's file, before its number.
const COPY: &str = ".copy";

/// The names in the staging directory that hold the content of each slot. Beside the slot itself
/// there may be copies, numbered in the order in which they were made: a copy is made of a file
/// that was under two names, and replaces both.
pub(crate) struct Slots {
    dir: RelPath,
    /// By slot, the numbers of the names that are there; 0 is the slot itself.
    names: BTreeMap<SlotNo, Vec<u32>>,
    /// Slots of directories that the drive has lost.
    lost: BTreeSet<SlotNo>,
    /// Slots whose content an earlier attempt has found under two names.
    twins: BTreeSet<SlotNo>,
    /// Slots whose patch may have been begun.
    begun: BTreeSet<SlotNo>,
}

impl Slots {
    pub(crate) fn read(backend: &dyn Backend, batch: BatchNo) -> Result<Slots> {
        let dir = layout::staging_dir(batch);
        let entries = match backend.read_dir(&dir) {
            Ok(entries) => entries,
            // The drive has lost it: its contents are written again.
            Err(error) if error.is_not_found() => {
                backend.make_dir(&dir)?;
                Vec::new()
            }
            Err(error) => return Err(error.into()),
        };
        let mut names: BTreeMap<SlotNo, Vec<u32>> = BTreeMap::new();
        let (mut lost, mut twins) = (BTreeSet::new(), BTreeSet::new());
        let mut begun = BTreeSet::new();
        for entry in entries {
            if let Some((slot, number)) = parse(&entry.name) {
                names.entry(slot).or_default().push(number);
            } else if let Some(slot) = layout::parse_lost_name(&entry.name) {
                lost.insert(slot);
            } else if let Some(slot) = layout::parse_twin_name(&entry.name) {
                twins.insert(slot);
            } else if let Some(slot) = layout::parse_begun_name(&entry.name) {
                begun.insert(slot);
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
            begun,
        })
    }

    /// Returns all names that hold the content of `slot`, in the order in which they were made.
    pub(crate) fn all(&self, slot: SlotNo) -> Vec<RelPath> {
        let numbers = self.names.get(&slot).map_or(&[][..], Vec::as_slice);
        numbers.iter().map(|n| self.path(slot, *n)).collect()
    }

    /// Returns the last of them.
    pub(crate) fn newest(&self, slot: SlotNo) -> Option<RelPath> {
        let number = self.names.get(&slot)?.last()?;
        Some(self.path(slot, *number))
    }

    /// Returns a free name for a copy of the content of `slot`.
    pub(crate) fn next_copy(&self, slot: SlotNo) -> RelPath {
        let last = self.names.get(&slot).and_then(|numbers| numbers.last());
        self.path(slot, last.map_or(1, |n| n + 1))
    }

    /// Notes that only `name` holds the content of `slot`.
    pub(crate) fn only(&mut self, slot: SlotNo, name: &RelPath) {
        let number = name.split_last().and_then(|(_, name)| parse(&name));
        self.names
            .insert(slot, vec![number.map_or(0, |(_, number)| number)]);
    }

    /// Returns whether an earlier attempt has found the directory of `slot` lost.
    pub(crate) fn is_lost(&self, slot: SlotNo) -> bool {
        self.lost.contains(&slot)
    }

    /// Returns whether an earlier attempt has found the content of `slot` under two names. A name
    /// that it had not removed yet may be on clusters that are marked free.
    pub(crate) fn was_twin(&self, slot: SlotNo) -> bool {
        self.twins.contains(&slot)
    }

    /// Returns whether the patch in `slot` may have been begun, so that its file may be neither the
    /// old version nor the new one.
    pub(crate) fn was_begun(&self, slot: SlotNo) -> bool {
        self.begun.contains(&slot)
    }

    /// Notes that the patch in `slot` may be begun from now on.
    pub(crate) fn note_begun(&mut self, slot: SlotNo) {
        self.begun.insert(slot);
    }

    /// Returns whether any patch may have been begun.
    pub(crate) fn is_any_begun(&self) -> bool {
        !self.begun.is_empty()
    }

    /// Notes that nothing holds the content of `slot` any more.
    pub(crate) fn forget(&mut self, slot: SlotNo) {
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

/// Returns whether any patch of `batch` may have been begun, by the notes in its staging directory.
/// They go before the record does, so without a record the drive has lost it.
///
/// # Errors
/// If the backend fails.
pub(crate) fn is_any_begun(backend: &dyn Backend, batch: BatchNo) -> Result<bool> {
    match backend.read_dir(&layout::staging_dir(batch)) {
        Ok(entries) => {
            Ok((entries.iter()).any(|entry| layout::parse_begun_name(&entry.name).is_some()))
        }
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error.into()),
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

/// The present paths of the directories that a batch moves, by their paths in one of its two trees.
#[derive(Default)]
pub(crate) struct Standing {
    elsewhere: HashMap<RelPath, RelPath>,
}

impl Standing {
    /// Notes that the directory with `path` in the tree is at `now`.
    pub(crate) fn note(&mut self, path: &RelPath, now: RelPath) {
        self.elsewhere.insert(path.clone(), now);
    }

    /// Notes that it is where the tree has it.
    pub(crate) fn settle(&mut self, path: &RelPath) {
        self.elsewhere.remove(path);
    }

    /// Returns the present path of the file that has `path` in the tree.
    pub(crate) fn locate(&self, path: &RelPath) -> RelPath {
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

    /// Returns the present path of the directory of the file that has `path` in the tree, with the
    /// file's name there. The file itself may be elsewhere.
    pub(crate) fn locate_name(&self, path: &RelPath) -> RelPath {
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
