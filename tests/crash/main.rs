//! The daemon is killed or the drive loses power, at any step: nothing acknowledged is lost, and
//! after recovery the drive is the tree of one cut.

#[path = "../support/engine/mod.rs"]
mod engine;
#[path = "../support/lab/mod.rs"]
mod lab;
#[path = "../support/writer.rs"]
mod writer;

mod crash_kill;
mod crash_loop;
mod daemon_dies;
mod replaced;
mod simulation;
