//! How a mount begins and ends, and how its drive is detached and attached again.
//!
//! `detach`, `ending`, `lease` and `mounting` make mount namespaces, which hold the mounts of every
//! other test that runs at the same time. `scripts/tests.py` runs these four one by one, after all
//! others; with cargo: `cargo test --test lifecycle -- --test-threads 1`.

#[path = "../support/lab/mod.rs"]
mod lab;

mod detach;
mod ending;
mod keep_clean;
mod lease;
mod mount_life;
mod mounting;
mod offline;
mod plugging;
mod polite;
mod read_only;
mod second_copy;
mod systemd;
mod when;
