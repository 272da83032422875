//! Going back to what was replaced by bytes that never became durable.
//!
//! The index notes each replacement until a sync has covered the new bytes (`index/replaced.rs`). Where a note is still there and
//! the new object is missing or of another size than its row says, the name or the file gets back what it had. The damaged object
//! is left without a row and so goes to lost+found.

use super::super::{Fs, Result};
use super::{Recovered, UncleanEnd, note_damage};
use crate::base::Seq;
use crate::index::{Flags, Inode, Replaced, State};
use crate::rules::plan::NameKey;

/// Above every change.
const ALL: Seq = Seq(i64::MAX as u64);

impl Fs {
    pub(super) fn undo_replacements(
        &self,
        state: &mut State,
        end: UncleanEnd,
        recovered: &mut Recovered,
    ) -> Result<()> {
        let notes = state.replaced()?;
        if notes.is_empty() {
            return Ok(());
        }
        for note in &notes {
            let Some(by) = state.inode(note.by)? else {
                continue;
            };
            if by.data_seq != note.by_seq || self.is_whole(&by, end)? {
                continue;
            }
            let Some((name, before)) = self.whole_version(state, &notes, note)? else {
                continue;
            };
            let ino = before.ino;
            let done = match name {
                Some(key) if ino != by.ino => give_name_back(state, &key, by, before)?,
                _ if ino == by.ino => give_bytes_back(state, &by, before)?,
                _ => false,
            };
            if done {
                let now = "it is what it was before it was replaced";
                note_damage(state, ino, now, recovered)?;
            }
        }
        state.forget_replaced(ALL)?;
        state.commit()?;
        Ok(())
    }

    /// Whether all is there that the row promises. What was being written promises nothing but what was noted of it, and if the
    /// machine went on, it has all that was written.
    fn is_whole(&self, inode: &Inode, end: UncleanEnd) -> Result<bool> {
        let Some(object) = inode.object else {
            return Ok(true);
        };
        let Some(measured) = self.measure_object(object)? else {
            return Ok(false);
        };
        Ok(match (inode.flags.has(Flags::WRITING), end) {
            (false, _) => measured.size() == inode.size,
            (true, UncleanEnd::Killed) => true,
            (true, UncleanEnd::PowerCut) => measured.size() > 0 && measured.size() >= inode.size,
        })
    }

    /// The youngest version before `note` that is still whole, and the name that it had if that became another file's.
    fn whole_version(
        &self,
        state: &mut State,
        notes: &[Replaced],
        note: &Replaced,
    ) -> Result<Option<(Option<NameKey>, Inode)>> {
        let mut at = note;
        let mut name = None;
        // Each step leads to an earlier change, so this ends.
        loop {
            name = at.name.clone().or(name);
            let before = &at.before;
            let whole = match before.object {
                Some(object) => self
                    .measure_object(object)?
                    .is_some_and(|found| found.size() == before.size),
                None => state.a_place_of(before.ino)?.is_some(),
            };
            if whole {
                return Ok(Some((name, before.clone())));
            }
            let earlier = notes.iter().find(|other| {
                other.change < at.change
                    && other.by == before.ino
                    && other.by_seq == before.data_seq
            });
            match earlier {
                Some(earlier) => at = earlier,
                None => return Ok(None),
            }
        }
    }
}

/// A file that was rewritten gets its bytes back; its names are those that it has now.
fn give_bytes_back(state: &mut State, by: &Inode, mut before: Inode) -> Result<bool> {
    before.nlink = by.nlink;
    bring_to_life(state, &mut before, Some(by))?;
    Ok(true)
}

/// A name that became another file's is that of the file before again. False if it is not the other's any more.
fn give_name_back(
    state: &mut State,
    key: &NameKey,
    mut by: Inode,
    mut before: Inode,
) -> Result<bool> {
    if state.lookup(key.parent, &key.name)? != Some(by.ino) {
        return Ok(false);
    }
    let stored = state.remove_name(key.parent, &key.name)?;
    match state.inode(before.ino)? {
        // It has other names, and may have been changed under these since.
        Some(mut now) if now.nlink > 0 => {
            now.nlink = now.nlink.saturating_add(1);
            state.put_inode(now.clone());
            before = now;
        }
        _ => {
            before.nlink = 1;
            bring_to_life(state, &mut before, None)?;
        }
    }
    state.add_name_as(key.parent, &key.name, &stored, &before)?;
    by.nlink = by.nlink.saturating_sub(1);
    if by.nlink == 0 {
        state.abandon_inode(by)?;
    } else {
        state.put_inode(by);
    }
    Ok(true)
}

/// Writes the row of an inode as it was, as one that is to be carried. `now` is its present row, if it still has one.
fn bring_to_life(state: &mut State, before: &mut Inode, now: Option<&Inode>) -> Result<()> {
    before.flags.clear(Flags::WRITING);
    before.flags.clear(Flags::INTERRUPTED);
    let placed = state.a_place_of(before.ino)?.is_some();
    for (flag, set) in [
        (Flags::ON_BACKEND, placed),
        // Those of an inode that was removed went with it.
        (Flags::XATTRS, state.has_xattrs(before.ino)?),
    ] {
        match set {
            true => before.flags.set(flag),
            false => before.flags.clear(flag),
        }
    }
    if let Some(object) = before.object {
        state.unbury_object(object)?;
        // Whether the backend has this very version is not looked into: carrying it again does no harm.
        before.flags.set(Flags::DATA_DIRTY);
        state.mark_inode(before)?;
    }
    if let Some(now) = now {
        before.ctime = now.ctime;
    }
    state.inode(before.ino)?; // So that the sums know what is replaced.
    state.put_inode(before.clone());
    Ok(())
}
