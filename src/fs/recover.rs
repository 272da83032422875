//! After an unclean end: making rows and objects agree again, before the first request.

use std::path::PathBuf;

use super::content::Measured;
use super::{Fs, Result};
use crate::base::ObjectId;
use crate::index::{Flags, Inode, State};

/// What was found and set right.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Files whose size and time were taken from their objects.
    pub measured: usize,
    /// Inodes without a name, which were removed.
    pub orphans: usize,
    /// Objects without a row, now in lost+found.
    pub quarantined: Vec<PathBuf>,
}

impl Fs {
    /// Sets right what an unclean end may have left:
    /// - a file that was being written: its object knows size and time. Whatever reached the disk is what it has now;
    /// - a file that was closed, but whose object is shorter or longer than its row says, or missing: its bytes were never made
    ///   durable. If the backend has an older version, that is what it has now; else what there is;
    /// - an inode without a name that was still open: it goes;
    /// - an object that no row vouches for: it goes to lost+found.
    ///
    /// Running it again changes nothing.
    ///
    /// # Errors
    /// If the index or the objects cannot be read.
    pub fn recover(&self) -> Result<Recovered> {
        let mut recovered = Recovered::default();
        let mut state = self.index.lock();
        for mut inode in state.unsettled()? {
            if inode.nlink == 0 {
                // What the batch under way may still read is buried, not removed.
                state.remove_inode(inode.ino)?;
                recovered.orphans += 1;
                continue;
            }
            let measured = match inode.object {
                Some(object) => self.measure_object(object)?,
                None => None,
            };
            let was_writing = inode.flags.has(Flags::WRITING);
            match measured {
                Some(measured) if was_writing => measured.apply(&mut inode),
                Some(measured) if measured.size() == inode.size => continue,
                None if inode.object.is_none() && !was_writing => continue,
                None if inode.object.is_none() => {}
                found => self.fall_back(&mut state, &mut inode, found)?,
            }
            inode.flags.clear(Flags::WRITING);
            state.inode(inode.ino)?; // So that the sums know what is replaced.
            state.put_inode(inode);
            recovered.measured += 1;
        }
        state.commit()?;
        let known = state.known_objects()?;
        drop(state);
        recovered.quarantined = self.store.quarantine(&known)?;
        Ok(recovered)
    }

    /// What the object's file says of it; `None` if there is no such file.
    fn measure_object(&self, object: ObjectId) -> Result<Option<Measured>> {
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
    ) -> Result<()> {
        let ino = inode.ino.0;
        if let Some((_, placed)) = state.a_place_of(inode.ino)? {
            tracing::error!(
                ino,
                "the last bytes of a file never reached the disk; it is what the drive has of it"
            );
            inode.object = None; // A file that is there goes to lost+found: no row names it any more.
            inode.size = placed.size;
            inode.blocks = placed.size.div_ceil(512);
            inode.mtime = placed.mtime;
            inode.flags.clear(Flags::DATA_DIRTY);
        } else if let Some(found) = found {
            tracing::error!(
                ino,
                "the last bytes of a file never reached the disk; it is cut short"
            );
            found.apply(inode);
        } else {
            tracing::error!(ino, "a file's object is missing; it is empty now");
            inode.object = None;
            inode.size = 0;
            inode.blocks = 0;
        }
        Ok(())
    }
}
