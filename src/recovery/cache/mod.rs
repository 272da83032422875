//! After an unclean end: makes rows and objects agree again, before the first request.

use std::path::PathBuf;

use crate::core::{Ino, ObjectId};
use crate::index::{Flags, IndexWriter, Inode};
use crate::vfs::measured::Measured;
use crate::vfs::{Fs, Result};

mod rollback;

/// How the daemon before ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UncleanEnd {
    /// It died and the machine went on: everything that was written is in the objects.
    Killed,
    /// The machine may have lost power: bytes that were not synced may be lost.
    PowerCut,
}

/// What was found and repaired.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Files whose size and time were taken from their objects.
    pub measured: usize,
    /// Inodes without a name, which were removed.
    pub orphans: usize,
    /// Objects without a row, now in lost+found.
    pub quarantined: Vec<PathBuf>,
    /// Files that lost bytes which were never durable, and what each is now: a line each, with the
    /// path.
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

    /// Repairs what an unclean end may have left:
    /// - a file that was replaced or rewritten, and whose new bytes never became durable: it gets
    ///   its old version back;
    /// - a file that was being written: its object knows size and time, and the file is what
    ///   reached the disk. If a program was in the middle of writing it, it is held back from the
    ///   drive until it is opened for writing and closed, or until the user says that it must be
    ///   flushed as it is. A file that was closed, or synced and not written since, when the daemon
    ///   was killed is not held back;
    /// - a file that was closed, but whose object is shorter or longer than its row says: its last
    ///   bytes were never durable. It keeps what is there, since earlier bytes may have been
    ///   durable; if the drive has an older version, the file is held back from it;
    /// - a file that was closed, and whose object is empty or missing: if the drive has an older
    ///   version, it gets that; otherwise it keeps what is there;
    /// - an inode without a name that was still open: it is removed;
    /// - an object that no row names: it goes to lost+found.
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
        state: &mut IndexWriter,
        mut inode: Inode,
        end: UncleanEnd,
        recovered: &mut Recovered,
    ) -> Result<()> {
        if inode.nlink == 0 {
            // Objects that the open batch may still read are buried, not removed.
            state.remove_inode(inode.ino)?;
            recovered.orphans += 1;
            return Ok(());
        }
        let measured = match inode.object {
            Some(object) => self.measure_object(object)?,
            None => None,
        };
        let was_writing = inode.flags.has(Flags::WRITING);
        // A file that was closed, or synced as it is, right before the kill is whole, though its
        // row does not say so.
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
        let waits = inode.flags.has(Flags::DATA_DIRTY) && !inode.flags.has(Flags::LOCAL);
        if was_writing && !acknowledged && waits {
            // It was never closed like this. Its owner may go on with it, but the drive must not
            // get it (P3).
            inode.flags.set(Flags::INTERRUPTED);
        }
        inode.flags.clear(Flags::WRITING);
        state.inode(inode.ino)?; // So that the sums know what is replaced.
        state.put_inode(inode);
        recovered.measured += 1;
        Ok(())
    }

    /// Returns whether nothing has been written to the object since a program last closed its file
    /// or had it synced. In doubt it returns false: then the file is held back, and named.
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

    /// Resets clean files whose objects are gone to the drive's version.
    fn set_back_what_lacks(
        &self,
        state: &mut IndexWriter,
        recovered: &mut Recovered,
    ) -> Result<()> {
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

    /// Returns the metadata of the object's file; `None` if there is no such file.
    pub(crate) fn measure_object(&self, object: ObjectId) -> Result<Option<Measured>> {
        match self.store.open_object(object) {
            Ok(file) => Ok(Some(crate::vfs::measured::measure(&file)?)),
            Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives an inode whose last bytes were lost what is left of it or, without any, the drive's
    /// version.
    fn fall_back(
        &self,
        state: &mut IndexWriter,
        inode: &mut Inode,
        found: Option<Measured>,
        recovered: &mut Recovered,
    ) -> Result<()> {
        let placed = state.a_place_of(inode.ino)?;
        let found = found.filter(|found| found.size() > 0 || placed.is_none());
        let now = if let Some(found) = found {
            found.apply(inode);
            if placed.is_some() {
                // The drive's version is whole.
                inode.flags.set(Flags::INTERRUPTED);
            }
            "it is cut short"
        } else if let Some((_, placed)) = placed {
            // No row names it any more, so a file that is there goes to lost+found.
            inode.object = None;
            inode.size = placed.size;
            inode.blocks = placed.size.div_ceil(512);
            inode.mtime = placed.mtime;
            inode.flags.clear(Flags::DATA_DIRTY);
            "it is what the drive has of it"
        } else {
            inode.object = None;
            inode.size = 0;
            inode.blocks = 0;
            "its object is missing, and it is empty now"
        };
        note_damage(state, inode.ino, now, recovered)
    }
}

/// Reports, in the log and for `status`, that a file lost bytes and what it is now.
fn note_damage(
    state: &mut IndexWriter,
    ino: Ino,
    now: &str,
    recovered: &mut Recovered,
) -> Result<()> {
    let path = match state.mount_path(ino)? {
        Some(path) => path.to_string(),
        None => format!("inode {}", ino.0),
    };
    let line = format!("the last bytes of {path} never reached the disk; {now}");
    tracing::error!(ino = ino.0, "{line}");
    recovered.damaged.push(line);
    Ok(())
}
