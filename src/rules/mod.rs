//! Decisions without I/O: what a batch does, how names and records are formed and read. Pure functions only.

pub mod acl;
pub(crate) mod bytes;
pub mod catalog;
pub mod delta;
pub mod describe;
pub mod given;
pub mod hidden;
pub mod known;
pub mod layout;
pub mod lease;
pub mod marker;
pub mod merge;
pub mod names;
pub mod plan;
pub mod record;
pub mod space;
pub mod steps;
pub mod touched;
pub mod trust;
mod upcase;
