//! After an unclean end: making rows and objects agree again, before the first request.

use std::path::PathBuf;

use super::content::Measured;
use super::{Fs, Result};
use crate::base::{Ino, ObjectId};
use crate::index::{Flags, Inode, State};

mod undo;

/// How the daemon before came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UncleanEnd {
    /// It died and the machine went on: what was written is in the objects.
    Killed,
    /// The machine may have lost its power: what was not synced may be lost.
    PowerCut,
}

/// What was found and set right.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Files whose size and time were taken from their objects.
    pub measured: usize,
    /// Inodes without a name, which were removed.
    pub orphans: usize,
    /// Objects without a row, now in lost+found.
    pub quarantined: Vec<PathBuf>,
    /// What lost bytes that were never durable, and what it is now: a line each, with the path.
    pub damaged: Vec<String>,
}

impl Fs {
    /// [`Fs::recover_after`] the daemon's death.
    ///
    /// # Errors
    /// As there.
    pub fn recover(&self) -> Result<Recovered> {
        self.recover_after(UncleanEnd::Killed)
    }

    /// Sets right what an unclean end may have left:
    /// - a file that was replaced or rewritten, and whose new bytes never became durable: it is what it was before;
    /// - a file that was being written: its object knows size and time. Whatever reached the disk is what it has now. If a
    ///   program was in the middle of writing it, it is held back from the drive until somebody opens it for writing and closes
    ///   it, or says that it is to be carried as it is; not so what had been closed, or synced and not written since, when the
    ///   daemon was killed;
    /// - a file that was closed, but whose object is shorter or longer than its row says, or missing: its bytes were never made
    ///   durable. If the backend has an older version, that is what it has now; else what there is;
    /// - an inode without a name that was still open: it goes;
    /// - an object that no row vouches for: it goes to lost+found.
    ///
    /// Running it again changes nothing.
    ///
    /// # Errors
    /// If the index or the objects cannot be read.
    pub fn recover_after(&self, end: UncleanEnd) -> Result<Recovered> {
        let mut recovered = Recovered::default();
        let mut state = self.index.lock();
        self.undo_replacements(&mut state, end, &mut recovered)?;
        for inode in state.unsettled()? {
            self.settle_row(&mut state, inode, end, &mut recovered)?;
        }
        self.set_back_what_lacks(&mut state, &mut recovered)?;
        state.commit()?;
        let known = state.known_objects()?;
        drop(state);
        recovered.quarantined = self.store.quarantine(&known)?;
        Ok(recovered)
    }

    fn settle_row(
        &self,
        state: &mut State,
        mut inode: Inode,
        end: UncleanEnd,
        recovered: &mut Recovered,
    ) -> Result<()> {
        if inode.nlink == 0 {
            // What the batch under way may still read is buried, not removed.
            state.remove_inode(inode.ino)?;
            recovered.orphans += 1;
            return Ok(());
        }
        let measured = match inode.object {
            Some(object) => self.measure_object(object)?,
            None => None,
        };
        let was_writing = inode.flags.has(Flags::WRITING);
        // What was closed, or synced as it is, right before the kill is whole, though its row does not know.
        let acknowledged = was_writing
            && end == UncleanEnd::Killed
            && inode
                .object
                .is_some_and(|object| self.is_acknowledged(object));
        match measured {
            Some(measured) if was_writing => measured.apply(&mut inode),
            Some(measured) if measured.size() == inode.size => return Ok(()),
            None if inode.object.is_none() && !was_writing => return Ok(()),
            None if inode.object.is_none() => {}
            found => self.fall_back(state, &mut inode, found, recovered)?,
        }
        if was_writing && !acknowledged && inode.flags.has(Flags::DATA_DIRTY) {
            // It was never closed like this. Its owner may go on with it; the drive is not to have it (P3).
            inode.flags.set(Flags::INTERRUPTED);
        }
        inode.flags.clear(Flags::WRITING);
        state.inode(inode.ino)?; // So that the sums know what is replaced.
        state.put_inode(inode);
        recovered.measured += 1;
        Ok(())
    }

    /// Whether nothing has been written to the object since a program last closed its file or asked for it to be synced. What
    /// cannot be told is not so: then the file is held back, and named.
    fn is_acknowledged(&self, object: ObjectId) -> bool {
        let marked = self
            .store
            .open_object(object)
            .and_then(|file| self.store.is_marked_whole(object, &file));
        marked.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot tell whether a file is whole");
            false
        })
    }

    /// Clean files whose objects are gone are what the drive has of them.
    fn set_back_what_lacks(&self, state: &mut State, recovered: &mut Recovered) -> Result<()> {
        let present = self.store.present()?;
        for ino in state.lacking(&present)? {
            let Some(mut inode) = state.inode(ino)? else {
                continue;
            };
            self.fall_back(state, &mut inode, None, recovered)?;
            state.put_inode(inode);
        }
        Ok(())
    }

    /// What the object's file says of it; `None` if there is no such file.
    pub(super) fn measure_object(&self, object: ObjectId) -> Result<Option<Measured>> {
        match self.store.open_object(object) {
            Ok(file) => Ok(Some(super::content::measure(&file)?)),
            Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives an inode whose bytes were lost the version that the backend has; without one, what there is.
    fn fall_back(
        &self,
        state: &mut State,
        inode: &mut Inode,
        found: Option<Measured>,
        recovered: &mut Recovered,
    ) -> Result<()> {
        let now = if let Some((_, placed)) = state.a_place_of(inode.ino)? {
            inode.object = None; // A file that is there goes to lost+found: no row names it any more.
            inode.size = placed.size;
            inode.blocks = placed.size.div_ceil(512);
            inode.mtime = placed.mtime;
            inode.flags.clear(Flags::DATA_DIRTY);
            "it is what the drive has of it"
        } else if let Some(found) = found {
            found.apply(inode);
            "it is cut short"
        } else {
            inode.object = None;
            inode.size = 0;
            inode.blocks = 0;
            "its object is missing, and it is empty now"
        };
        note_damage(state, inode.ino, now, recovered)
    }
}

/// Tells, in the log and to whoever asks for the status, that a file lost bytes and what it is now.
fn note_damage(state: &mut State, ino: Ino, now: &str, recovered: &mut Recovered) -> Result<()> {
    let path = match state.mount_path(ino)? {
        Some(path) => path.to_string(),
        None => format!("inode {}", ino.0),
    };
    let line = format!("the last bytes of {path} never reached the disk; {now}");
    tracing::error!(ino = ino.0, "{line}");
    recovered.damaged.push(line);
    Ok(())
}
