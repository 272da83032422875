//! The semantics of the mount against a reference: random operations, files that stay open across
//! them, flushes, evictions and daemons that die in between. Every failure that was ever found
//! lives on as a named regression.

mod reference;
mod regressions;
mod run;

use crate::engine::Kind;

/// More with `FERRYFS_MODEL_SEEDS`.
fn seeds() -> u64 {
    let asked = std::env::var("FERRYFS_MODEL_SEEDS");
    asked.ok().and_then(|text| text.parse().ok()).unwrap_or(12)
}

#[test]
fn any_sequence_of_operations_is_what_posix_says_on_a_plain_drive() {
    for seed in 0..seeds() {
        run::run(Kind::Plain, seed, 150);
    }
}

#[test]
fn any_sequence_of_operations_is_what_posix_says_on_exfat() {
    for seed in 0..seeds() {
        run::run(Kind::Exfat, 1_000_000 + seed, 150);
    }
}
