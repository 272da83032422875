//! Damaged objects: those whose fsync failed, so that bytes of them may be lost.
//!
//! The store has the list in memory. A setting of the index names each damaged object for the next
//! start. It is committed before the failed fsync is answered, so a crash before that leaves an
//! fsync without an answer.

use crate::cache::Damage;
use crate::core::{Ino, ObjectId};
use crate::vfs::durability::Durability;
use crate::vfs::{FsError, Result};

/// Prefix of the index settings that name damaged objects.
const DAMAGED: &str = "damaged/";

/// Number of damaged files that are reported by name.
const NAMED: usize = 5;

fn damage_key(object: ObjectId) -> String {
    format!("{DAMAGED}{object}")
}

impl Durability {
    /// Records damaged objects in the index for the next start.
    pub(super) fn note_damage(&self) {
        for (object, damage, noted) in self.store.damaged() {
            if noted {
                continue;
            }
            let errno = damage.errno.to_string();
            let written = self.index.lock().set_meta(&damage_key(object), &errno);
            match written {
                Ok(()) => self.store.note_damage(object, damage),
                Err(error) => {
                    tracing::error!(%object, %error, "cannot record the damage of an object")
                }
            }
        }
    }

    /// Loads the damage that an earlier daemon recorded.
    pub(in crate::vfs) fn recall_damage(&self) -> Result<()> {
        let noted = self.index.lock().metas(DAMAGED)?;
        for (object, errno) in noted {
            if let (Ok(object), Ok(errno)) = (u64::from_str_radix(&object, 16), errno.parse()) {
                self.store.note_damage(ObjectId(object), Damage { errno });
            }
        }
        Ok(())
    }

    /// Clears the damage of an object that was rewritten or removed.
    pub(in crate::vfs) fn forget_damage(&self, object: ObjectId) -> Result<()> {
        if self.store.forget_damage(object) {
            self.index.lock().set_meta(&damage_key(object), "")?;
        }
        Ok(())
    }

    /// Returns the result of an fsync of the file `ino`, after [`Durability::sync`] has succeeded.
    pub(in crate::vfs) fn sync_verdict(&self, ino: Ino) -> Result<()> {
        let inode = self.index.lock().inode(ino)?;
        match inode.and_then(|inode| inode.object) {
            Some(object) if self.store.damage(object).is_some() => Err(FsError::Errno(libc::EIO)),
            _ => Ok(()),
        }
    }

    /// Returns what the SSD has lost or refused, one line each.
    pub(in crate::vfs) fn troubles(&self) -> Vec<String> {
        let mut troubles = Vec::new();
        if self.index.is_sealed() {
            troubles.push(
                "the SSD has failed to keep the index; nothing more is changed: copy what you need, unmount, check the SSD, mount again"
                    .into(),
            );
        }
        let damaged = self.store.damaged();
        for (object, damage, _) in damaged.iter().take(NAMED) {
            let path = self.path_of_object(*object);
            let path = path.unwrap_or_else(|| format!("object {object}"));
            troubles.push(format!(
                "{path}: {damage}; write it again from another copy, and check the SSD"
            ));
        }
        if damaged.len() > NAMED {
            troubles.push(format!("and {} more files", damaged.len() - NAMED));
        }
        troubles
    }

    fn path_of_object(&self, object: ObjectId) -> Option<String> {
        let mut state = self.index.lock();
        let ino = state.owner_of(object).ok()??;
        Some(state.mount_path(ino).ok()??.to_string())
    }
}
