//! After an unclean end: making rows and objects agree again, before the first request.

use std::path::PathBuf;

use super::{Fs, Result};
use crate::index::Flags;

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
        for found in state.unsettled()? {
            // Read as everybody reads it, so that the sums over all inodes know what it was.
            let mut inode = state.expect_inode(found.ino)?;
            if inode.nlink == 0 {
                state.remove_inode(inode.ino)?;
                recovered.orphans += 1;
                continue;
            }
            if let Some(object) = inode.object {
                match self.store.open_object(object) {
                    Ok(file) => super::content::measure(&file)?.apply(&mut inode),
                    Err(error) => {
                        tracing::error!(ino = inode.ino.0, %error, "a file's object is missing; it is empty now");
                        inode.object = None;
                        inode.size = 0;
                        inode.blocks = 0;
                    }
                }
            }
            inode.flags.clear(Flags::WRITING);
            state.put_inode(inode);
            recovered.measured += 1;
        }
        state.commit()?;
        let known = state.known_objects()?;
        drop(state);
        recovered.quarantined = self.store.quarantine(&known)?;
        Ok(recovered)
    }
}
