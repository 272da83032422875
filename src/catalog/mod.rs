//! The catalog on the drive. Its log is read when a volume is attached. Each batch that changes the
//! catalog writes one segment.
//!
//! A segment is written once, under its final name, while the batch's record is on the drive. The
//! record contains everything that the segment says. A crash leaves the following, and the replay
//! of the record repairs it:
//!
//! - after the commit: the record. The replay writes the segment;
//! - after the write of the segment, before a sync: the record, and all or a part of the file. The
//!   replay keeps a complete file. Otherwise it removes the file, syncs, and writes it again;
//! - after the batch's last sync: the record and the segment; after a full segment also those below
//!   it, which do not count;
//! - after the removal of superseded segments: the record, the full segment, and some of the
//!   others, possibly on clusters marked free. The replay removes them before it writes anything;
//! - after the sync that follows: the record and the log. The clean-up removes the record.
//!
//! So while there is no record every segment is as it was written, and an incomplete segment was
//! damaged later. The log is read only when all batches are finished.
//!
//! A reader trusts nothing. A damaged segment loses its own entries and those of the segments that
//! follow it, up to the next full one, and nothing else. Contents of files never change because of
//! it. A segment of a newer format stops all writes instead, because a write without it would lose
//! its entries.

pub(crate) mod candidates;
pub(crate) mod mirror;
pub(crate) mod reader;
pub(crate) mod update;
pub(crate) mod writer;

pub use crate::catalog::reader::{CatalogLog, read_catalog};
pub(crate) use crate::catalog::writer::{make_dir, make_way, remove_superseded, write};
