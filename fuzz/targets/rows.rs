#![no_main]
#![allow(dead_code, unreachable_pub)]

#[path = "../pieces.rs"]
mod pieces;
#[path = "../rows.rs"]
mod rows;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rows::rows(bytes));
