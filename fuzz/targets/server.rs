#![no_main]
#![allow(dead_code, unreachable_pub)]

#[path = "../server.rs"]
mod server;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| server::server(bytes));
