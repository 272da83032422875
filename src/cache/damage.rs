//! Objects of which the SSD has refused bytes.
//!
//! A failed fsync says that bytes which were written before are not on the disk. Linux says it once and may mark their pages
//! clean: they can be read until memory is needed, then what the disk has takes their place; and the next fsync succeeds without
//! having done anything. So the failure is remembered for the object, not for the call: its fsync fails from then on, no batch carries it,
//! `status` names it. It is forgotten when the bytes are: when the object is removed, or emptied, because its file was written
//! anew, removed, or, where the backend has the same version, let go of by the cache.
//!
//! The memory must outlive the daemon, since the page cache does. It is kept in the index (table `meta`) by `fs`; a crash between the
//! failure and the index's next commit loses it along with nothing else that was promised: nobody was told success.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use parking_lot::Mutex;

use crate::base::ObjectId;

/// That the SSD has refused an object's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// What the system said, as errno.
    pub errno: i32,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = io::Error::from_raw_os_error(self.errno);
        write!(f, "the SSD has failed to keep its bytes ({said})")
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    damage: Damage,
    /// The index has it.
    noted: bool,
}

/// The damaged objects of a store.
#[derive(Debug, Default)]
pub(super) struct Damaged(Mutex<BTreeMap<ObjectId, Entry>>);

impl Damaged {
    /// Adds one; `noted` if it was read from the index.
    pub(super) fn add(&self, object: ObjectId, damage: Damage, noted: bool) {
        let mut all = self.0.lock();
        let entry = all.entry(object).or_insert(Entry { damage, noted });
        entry.noted |= noted;
    }

    pub(super) fn get(&self, object: ObjectId) -> Option<Damage> {
        self.0.lock().get(&object).map(|entry| entry.damage)
    }

    /// All of them, and whether the index has each.
    pub(super) fn all(&self) -> Vec<(ObjectId, Damage, bool)> {
        let all = self.0.lock();
        all.iter()
            .map(|(object, entry)| (*object, entry.damage, entry.noted))
            .collect()
    }

    /// True if it was there.
    pub(super) fn remove(&self, object: ObjectId) -> bool {
        self.0.lock().remove(&object).is_some()
    }
}
