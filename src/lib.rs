//! ferryfs: one path for scripts. Writes go to the local SSD first and are flushed to the drive in
//! atomic batches.
//!
//! The modules, from the bottom to the top. A module imports only modules that are listed before
//! it (`tests/formats/layers.rs`); `docs/architecture.md` has a picture.
//!
//! | module | contents |
//! |---|---|
//! | [`core`] | types that all modules share; no I/O |
//! | [`mod@format`] | the bytes on the drive; no I/O |
//! | [`plan`] | decisions without I/O |
//! | [`sys`] | system calls; the only `unsafe` |
//! | [`drive`] | the slow side |
//! | [`cache`] | objects on the SSD |
//! | [`index`] | names, attributes and state; the only module that names `rusqlite` |
//! | [`error`] | the error of all work between cache and drive |
//! | [`catalog`] | what the drive cannot store itself |
//! | [`vfs`] | file-system semantics |
//! | [`external`] | changes made by others |
//! | [`apply`] | the steps of a batch on the drive |
//! | [`recovery`] | what was interrupted, finished or repaired |
//! | [`flush`] | the pipeline from cut to confirmation |
//! | [`fuse`] | the only module that names `fuser` |
//! | [`control`] | the control socket |
//! | [`daemon`] | the process behind a mount |
//! | [`cli`] | the commands |
// The helpers of the tests may do all this, so it is not in the [lints] of Cargo.toml.
#![cfg_attr(
    not(test),
    warn(
        clippy::exit,
        clippy::large_stack_arrays,
        clippy::missing_errors_doc,
        clippy::print_stderr,
        clippy::print_stdout,
        clippy::string_slice,
        clippy::unwrap_used,
    )
)]

pub mod apply;
pub mod cache;
pub mod catalog;
pub mod cli;
pub mod control;
pub mod core;
pub mod daemon;
pub mod drive;
pub mod error;
pub mod external;
pub mod flush;
pub mod format;
pub mod fuse;
pub mod index;
pub mod plan;
pub mod recovery;
pub mod sys;
pub mod vfs;
