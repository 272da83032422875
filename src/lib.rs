//! ferryfs: one path for scripts. Writes land on the local SSD and are carried to the drive in atomic batches.
//!
//! `docs/architecture.md` shows how the rooms of this crate fit together.

pub mod backend;
pub mod base;
pub mod cache;
pub mod cli;
pub mod control;
pub mod daemon;
pub mod flush;
pub mod fs;
pub mod index;
pub mod kernel;
pub mod rules;
pub mod sys;
