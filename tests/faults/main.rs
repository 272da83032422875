//! A disk fails, hangs or is full, or the cache is damaged: the errors are reported, and nothing
//! acknowledged is lost.

#[path = "../support/engine/mod.rs"]
mod engine;
#[path = "../support/lab/mod.rs"]
mod lab;

mod evict;
mod full;
mod index_damage;
mod io_errors;
mod ssd_dies;
mod stall;
