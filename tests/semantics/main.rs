//! What a program may expect of the mount (docs/semantics.md). Most of it is compared with ext4,
//! with POSIX test suites, or with a reference model.

#[path = "../support/engine/mod.rs"]
mod engine;
#[path = "../support/lab/mod.rs"]
mod lab;

mod apps;
mod cut;
mod faithful;
mod handles;
mod kernel;
mod listings;
mod local;
mod model;
mod mount_basics;
mod mount_calls;
mod mount_live;
mod mount_names;
mod names;
mod open_files;
mod posix;
