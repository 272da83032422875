//! Decisions without I/O: the steps of a batch, stored names, merges with external changes. Pure
//! functions only.

pub mod batch_parts;
pub mod delta;
pub mod describe;
pub mod merge;
pub mod names;
pub mod patterns;
pub mod planner;
pub mod representable;
pub mod retention;
pub mod space;
pub mod touched;
pub mod trust;
pub mod units;
