//! Objects whose bytes the SSD failed to store.
//!
//! A failed fsync means that bytes written before are not on the disk. Linux reports this once and
//! may mark their pages clean. The bytes then stay readable until the kernel needs the memory;
//! after that a read returns what the disk has. The next fsync succeeds without having written
//! anything. So the failure belongs to the object, not to the call: from then on the object's fsync
//! fails, no batch writes it to the drive, and `status` names it. The failure is forgotten together
//! with the bytes: when the object is removed or emptied because its file was rewritten or removed,
//! or, if the backend has the same version, because the cache evicted it.
//!
//! The record must outlive the daemon, since the page cache does. The file system keeps it in the
//! index (table `meta`). A crash between the failure and the index's next commit loses the record,
//! but breaks no other promise: no caller was given success.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use parking_lot::Mutex;

use crate::core::ObjectId;

/// A failure of the SSD to store an object's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The errno of the failed call.
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

    /// Returns all of them, each with whether the index has it.
    pub(super) fn all(&self) -> Vec<(ObjectId, Damage, bool)> {
        let all = self.0.lock();
        all.iter()
            .map(|(object, entry)| (*object, entry.damage, entry.noted))
            .collect()
    }

    /// Removes an object. Returns whether it was damaged.
    pub(super) fn remove(&self, object: ObjectId) -> bool {
        self.0.lock().remove(&object).is_some()
    }
}
