//! Finishing or repairing what was interrupted.
//!
//! | module | interrupted | repaired from |
//! |---|---|---|
//! | [`interrupted`] | a batch on a drive: reads its record, decides whether it was committed | the record |
//! | [`replay`] | takes the steps of a committed batch again: [`clear`], [`judge`], [`take_away`], [`directories`], [`place`], [`nodes`] | staging, the SSD, what is at the old and new names |
//! | [`patched`] | blocks that a batch writes into a file | the staged blocks, the SSD |
//! | [`put_back`] | a refused move whose file was put back | the drive |
//! | [`locate`] | which slots are filled, where a moved directory is | the drive |
//! | [`cross_linked`] | a rename that left two names on the same clusters | a copy |
//! | [`restore`] | a moved directory that is incomplete | the backup made before the move |
//! | [`cache`] | the daemon died: rows and objects of the cache disagree | marks of closes, old rows |
//! | [`rescue`] | a cache that is damaged: copies out what can be read | objects and rows |
//!
//! [`crate::flush`] calls this for its own open batch, `ferryfs recover` for a drive whose cache is
//! elsewhere. All steps are idempotent: an interrupted recovery is itself recovered by the next
//! one.

pub mod cache;
pub(crate) mod clear;
pub(crate) mod cross_linked;
pub(crate) mod directories;
pub mod interrupted;
pub(crate) mod judge;
pub(crate) mod locate;
pub(crate) mod nodes;
pub(crate) mod patched;
pub(crate) mod place;
pub(crate) mod put_back;
pub(crate) mod replay;
pub mod rescue;
pub(crate) mod restore;
pub(crate) mod take_away;

#[cfg(test)]
mod tests;
