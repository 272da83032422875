//! ferryfs: one path for scripts. Writes land on the local SSD and are carried to the drive in atomic batches.
//!
//! `docs/architecture.md` shows how the rooms of this crate fit together.

pub mod backend;
pub mod base;
pub mod cli;
pub mod control;
pub mod daemon;
pub mod rules;
pub mod sys;
