//! Changes made by others: what is on the drive before the first mount, and what other programs and
//! machines change there later.

#[path = "../support/engine/mod.rs"]
mod engine;
#[path = "../support/lab/mod.rs"]
mod lab;

mod elsewhere;
mod foreign;
mod import;
mod refresh;
