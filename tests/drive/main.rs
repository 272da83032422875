//! Kinds of drives: what each can store, what it refuses, and what a hostile one may try.

#[path = "../support/conformance.rs"]
mod conformance;
#[path = "../support/engine/mod.rs"]
mod engine;
#[path = "../support/exfat.rs"]
mod exfat;
#[path = "../support/lab/mod.rs"]
mod lab;
#[path = "../support/lossy_fuse.rs"]
mod lossy_fuse;

mod any_drive;
mod backend_conformance;
mod described;
mod fuse_drive;
mod hostile_drive;
mod leave;
mod patches;
mod refusals;
mod rich_drive;
mod rich_mounts;
mod scrub;
