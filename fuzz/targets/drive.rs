#![no_main]
#![allow(dead_code, unreachable_pub)]

#[path = "../checks.rs"]
mod checks;
#[path = "../drive.rs"]
mod drive;
#[path = "../../tests/support/engine/mod.rs"]
mod engine;
#[path = "../pieces.rs"]
mod pieces;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| drive::drive(bytes));
