//! The catalog on the drive: its log is read when a volume is attached, and each batch that changes the catalog writes one segment.
//!
//! A segment is written once, under its final name, under the cover of its batch's record, which has everything that the segment says.
//! What a crash leaves, and who repairs it:
//!
//! | after | the drive has | repaired by |
//! |---|---|---|
//! | commit | the record | the redo: it writes the segment |
//! | the segment's file, not synced | the record; the file, or a part of it | the redo: it keeps the file if it is whole, else removes it, syncs, and writes it anew |
//! | the batch's last sync | the record, the segment; of a full one also those below it | the redo, or nobody: what is below a full segment does not count |
//! | removing what a full one has superseded | the record, the full segment, some of the others, perhaps on clusters that are marked free | the redo: it removes them before it writes anything |
//! | the sync after that | the record and the log | clean-up: the record goes |
//!
//! So while there is no record every segment is as it was written, and a segment that is not whole was damaged later. The log is read
//! only when all batches have been finished.
//!
//! A reader trusts nothing: a damaged segment costs what it said and what follows on it, up to the next full one, and nothing else;
//! contents are never touched for it. One of a newer format stops all writing instead: to go on without it would lose what it says.

mod read;
#[cfg(test)]
mod tests;
mod write;

pub use read::{CatalogLog, read_catalog};
pub(super) use write::{make_dir, make_way, remove_superseded, write};
