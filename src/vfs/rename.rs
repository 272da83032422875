//! Renames, with replacement and exchange.
//!
//! Invariant: a rename changes the index in one transaction, which is committed before the reply.
//! If it replaces a file by one whose bytes are not durable yet, the index notes what the name was
//! before: after a power cut that loses the bytes the name goes back. Lock order: as in
//! [`crate::vfs`].

use crate::core::{FileKind, Ino, Name, Timestamp};
use crate::index::{Flags, IndexWriter, Inode};
use crate::plan::planner::NameKey;
use crate::vfs::namespace::{check_depth, check_length, drop_link, touch};
use crate::vfs::{Ctx, Fs, FsError, Result, known_dir};

/// How a rename treats an existing target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// Replace it.
    Replace,
    /// Fail.
    NoReplace,
    /// Exchange the two names.
    Exchange,
}

impl Fs {
    /// Renames a dirent.
    ///
    /// # Errors
    /// As rename(2).
    pub fn rename(
        &self,
        ctx: &Ctx,
        from: (Ino, &Name),
        to: (Ino, &Name),
        mode: RenameMode,
    ) -> Result<()> {
        self.importer.ensure_listed(ctx, from.0)?;
        self.importer.ensure_listed(ctx, to.0)?;
        let replaced = self.index.lock().lookup(to.0, to.1)?;
        if let (Some(ino), RenameMode::Replace) = (replaced, mode) {
            self.importer.ensure_listed(ctx, ino)?;
        }
        let moved = self
            .space
            .with_reserve(|| self.rename_once(from, to, mode))?;
        if mode == RenameMode::Replace {
            self.durability.start_writeback(moved);
        }
        Ok(())
    }

    /// Performs the rename and returns the renamed inode.
    fn rename_once(&self, from: (Ino, &Name), to: (Ino, &Name), mode: RenameMode) -> Result<Ino> {
        let mut state = self.index.lock();
        let moved = state.lookup(from.0, from.1)?.ok_or(FsError::NOT_FOUND)?;
        let moved = state.expect_inode(moved)?;
        let moved_ino = moved.ino;
        let replaced = match state.lookup(to.0, to.1)? {
            Some(ino) => Some(state.expect_inode(ino)?),
            None => None,
        };
        let now = self.clock.now();
        match (mode, replaced) {
            (RenameMode::NoReplace, Some(_)) => return Err(FsError::EXISTS),
            (RenameMode::Exchange, None) => return Err(FsError::NOT_FOUND),
            (RenameMode::Exchange, Some(other)) => {
                exchange(&mut state, (from, moved), (to, other), now)?;
            }
            (_, Some(other)) if other.ino == moved.ino => return Ok(moved_ino),
            (_, replaced) => self.move_name(&mut state, from, to, moved, replaced, now)?,
        }
        state.finish()?;
        Ok(moved_ino)
    }

    fn move_name(
        &self,
        state: &mut IndexWriter,
        from: (Ino, &Name),
        to: (Ino, &Name),
        mut moved: Inode,
        replaced: Option<Inode>,
        now: Timestamp,
    ) -> Result<()> {
        if let Some(other) = &replaced {
            match (moved.is_dir(), other.is_dir()) {
                (true, false) => return Err(FsError::NOT_DIR),
                (false, true) => return Err(FsError::IS_DIR),
                (true, true) if !state.is_empty_dir(other.ino)? => return Err(FsError::NOT_EMPTY),
                _ => {}
            }
        } else {
            check_length(to.1)?;
        }
        if known_dir(state, to.0)?.nlink == 0 {
            return Err(FsError::NOT_FOUND);
        }
        if moved.is_dir() && from.0 != to.0 {
            check_depth(state, to.0, Some(moved.ino))?;
        }
        // Removed first, so that a rename that only changes the case does not collide with itself.
        state.remove_name(from.0, from.1)?;
        moved.ctime = now;
        may_travel(state, &mut moved);
        if let Some(other) = replaced {
            self.note_replaced(state, to, &moved, &other)?;
            let stored = state.remove_name(to.0, to.1)?;
            if other.is_dir() {
                add_links(state, to.0, -1)?;
            }
            drop_link(state, other, now)?;
            state.add_name_as(to.0, to.1, &stored, &moved)?;
        } else {
            state.add_name(to.0, to.1, &moved)?;
        }
        if moved.is_dir() && from.0 != to.0 {
            add_links(state, from.0, -1)?;
            add_links(state, to.0, 1)?;
        }
        state.put_inode(moved);
        touch_dir(state, from.0, now)?;
        touch_dir(state, to.0, now)
    }

    /// Records that the name goes back to `other` if the power fails before the bytes of `moved`
    /// are durable.
    fn note_replaced(
        &self,
        state: &mut IndexWriter,
        to: (Ino, &Name),
        moved: &Inode,
        other: &Inode,
    ) -> Result<()> {
        let files = [moved, other].map(Inode::kind) == [FileKind::Regular; 2];
        let open = moved.flags.has(Flags::WRITING);
        if !files
            || !(open
                || moved
                    .object
                    .is_some_and(|object| self.durability.may_be_unsynced(object)))
        {
            return Ok(());
        }
        let key = NameKey {
            parent: to.0,
            name: to.1.clone(),
        };
        Ok(state.note_replaced(Some(&key), (moved.ino, moved.data_seq), other)?)
    }
}

fn exchange(
    state: &mut IndexWriter,
    (at, mut one): ((Ino, &Name), Inode),
    (there, mut other): ((Ino, &Name), Inode),
    now: Timestamp,
) -> Result<()> {
    if one.ino == other.ino {
        return Ok(());
    }
    for (inode, to) in [(&one, there.0), (&other, at.0)] {
        if inode.is_dir() {
            check_depth(state, to, Some(inode.ino))?;
        }
    }
    let here = state.remove_name(at.0, at.1)?;
    let beyond = state.remove_name(there.0, there.1)?;
    state.add_name_as(at.0, at.1, &here, &other)?;
    state.add_name_as(there.0, there.1, &beyond, &one)?;
    if at.0 != there.0 && one.is_dir() != other.is_dir() {
        let (loses, gains) = if one.is_dir() {
            (at.0, there.0)
        } else {
            (there.0, at.0)
        };
        add_links(state, loses, -1)?;
        add_links(state, gains, 1)?;
    }
    for inode in [&mut one, &mut other] {
        inode.ctime = now;
        may_travel(state, inode);
    }
    state.put_inode(one);
    state.put_inode(other);
    touch_dir(state, at.0, now)?;
    touch_dir(state, there.0, now)
}

/// Notes that an inode has another path, so that it may no longer stay local. A directory keeps the
/// flag until it is sorted, because what is in it has the flag, too.
fn may_travel(state: &mut IndexWriter, inode: &mut Inode) {
    match inode.is_dir() {
        true => state.note_moved_dir(inode.ino),
        false => inode.flags.clear(Flags::LOCAL),
    }
}

fn add_links(state: &mut IndexWriter, dir: Ino, change: i32) -> Result<()> {
    let mut dir = known_dir(state, dir)?;
    dir.nlink = dir.nlink.saturating_add_signed(change);
    state.put_inode(dir);
    Ok(())
}

fn touch_dir(state: &mut IndexWriter, dir: Ino, now: Timestamp) -> Result<()> {
    let mut dir = known_dir(state, dir)?;
    touch(state, &mut dir, now)?;
    state.put_inode(dir);
    Ok(())
}
