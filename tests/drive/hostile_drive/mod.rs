//! A drive comes from anywhere: whatever stands on it, nothing beside it is read or written,
//! nothing in the cache is lost, and the program ends with a clear word or goes on.

// The modules below are private to this file.
#![allow(unreachable_pub)]

mod caches;
mod names;
mod planted;
mod program;
mod receipts;
mod records;
mod stage;
mod strangers;
mod swapped;
