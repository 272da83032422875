//! Rolls back replacements whose new bytes never became durable.
//!
//! The index notes each replacement until a sync has covered the new bytes (`index/replaced.rs`).
//! If a note is still there and the new object is missing or has another size than its row says,
//! the name or the file gets its old version back. The damaged object is left without a row and so
//! goes to lost+found.

use crate::core::Seq;
use crate::index::{Flags, IndexWriter, Inode, Replaced};
use crate::plan::planner::NameKey;
use crate::recovery::cache::{Recovered, UncleanEnd, note_damage};
use crate::vfs::{Fs, Result};

/// Above every change.
const ALL: Seq = Seq(i64::MAX as u64);

impl Fs {
    pub(super) fn undo_replacements(
        &self,
        state: &mut IndexWriter,
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

    /// Returns whether the object is as its row says. For a file that was being written only the
    /// noted size counts, and if the machine went on, its object has everything that was written.
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

    /// Returns the youngest version before `note` that is still whole, and the name that it had if
    /// that became another file's.
    fn whole_version(
        &self,
        state: &mut IndexWriter,
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

/// Gives a file that was rewritten its bytes back; it keeps its present names.
fn give_bytes_back(state: &mut IndexWriter, by: &Inode, mut before: Inode) -> Result<bool> {
    before.nlink = by.nlink;
    bring_to_life(state, &mut before, Some(by))?;
    Ok(true)
}

/// Gives a name that became another file's back to the file before. Returns false if it is not the
/// other's any more.
fn give_name_back(
    state: &mut IndexWriter,
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

/// Writes the old row of an inode, as a dirty one. `now` is its present row, if it still has one.
fn bring_to_life(state: &mut IndexWriter, before: &mut Inode, now: Option<&Inode>) -> Result<()> {
    before.flags.clear(Flags::WRITING);
    before.flags.clear(Flags::INTERRUPTED);
    let placed = state.a_place_of(before.ino)?.is_some();
    for (flag, set) in [
        (Flags::ON_BACKEND, placed),
        // The attributes of an inode that was removed are gone.
        (Flags::XATTRS, state.has_xattrs(before.ino)?),
    ] {
        match set {
            true => before.flags.set(flag),
            false => before.flags.clear(flag),
        }
    }
    if let Some(object) = before.object {
        state.unbury_object(object)?;
        // The backend may have this very version; writing it again does no harm.
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
