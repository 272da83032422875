//! The bytes on the drive: encoding and decoding of the files in `.ferryfs/`. No I/O. Every reader
//! is bounded and trusts nothing that it reads. `docs/on-drive-format.md` describes each format
//! byte by byte.

pub mod catalog;
pub(crate) mod codec;
pub mod expectations;
pub mod layout;
pub mod lease;
pub mod marker;
pub mod patch;
pub mod record;
pub mod steps;
pub mod versions;
