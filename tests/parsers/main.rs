//! What ferryfs reads from drives and sockets, held to the checks of the fuzz targets: every seed
//! of `fuzz/seeds`, and many mutations of each that a printed seed brings back. In a process of its
//! own, because it limits the process's memory.

// The modules below are shared with others, or private to this file.
#![allow(unreachable_pub)]

#[path = "../../fuzz/checks.rs"]
mod checks;
#[path = "../../fuzz/drive.rs"]
mod drive;
#[path = "../support/engine/mod.rs"]
mod engine;
mod mutate;
#[path = "../../fuzz/pieces.rs"]
mod pieces;
#[path = "../../fuzz/rows.rs"]
mod rows;
mod seeds;
#[path = "../../fuzz/server.rs"]
mod server;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use mutate::Mutator;

/// Mutations of each seed; `FERRYFS_TEST_MUTATIONS` asks for more.
const MUTATIONS: u64 = 1000;

/// What all of this may take on top of what the process has when it begins. The inputs are of some
/// kilobytes: an allocation on the word of a count or a length is beyond it at once, and ends the
/// process.
const MEMORY: u64 = 256 << 20;

/// A check of a parser, and whether inputs are put under a right checksum again.
type Check = (fn(&[u8]), bool);

fn checks() -> BTreeMap<&'static str, Check> {
    BTreeMap::from([
        ("record", (checks::record as fn(&[u8]), true)),
        ("segment", (checks::segment as fn(&[u8]), true)),
        ("marker", (checks::marker as fn(&[u8]), false)),
        ("names", (checks::names as fn(&[u8]), false)),
        ("control", (checks::control as fn(&[u8]), false)),
    ])
}

/// A check of something larger, and how many mutations of each seed it is given for each thousand
/// that a parser is.
type LargeCheck = (fn(&[u8]), u64);

fn large_checks() -> BTreeMap<&'static str, LargeCheck> {
    BTreeMap::from([
        ("drive", (drive::drive as fn(&[u8]), 30)),
        ("server", (server::server as fn(&[u8]), 200)),
        ("rows", (rows::rows as fn(&[u8]), 100)),
    ])
}

fn seeds_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds")
}

fn corpus(target: &str) -> BTreeMap<String, Vec<u8>> {
    let dir = seeds_dir().join(target);
    let files = fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    files
        .map(|file| {
            let file = file.expect("list the seeds");
            let name = file.file_name().to_string_lossy().into_owned();
            (name, fs::read(file.path()).expect("read a seed"))
        })
        .collect()
}

/// Limits the process's address space to what it has and [`MEMORY`].
fn limit_memory() {
    let status = fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    let size = status
        .lines()
        .find_map(|line| line.strip_prefix("VmSize:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok())
        .expect("the size of this process");
    let (_, hard) = getrlimit(Resource::RLIMIT_AS).expect("getrlimit");
    setrlimit(Resource::RLIMIT_AS, (size << 10) + MEMORY, hard).expect("setrlimit");
}

/// One test, since the limit is the whole process's.
#[test]
fn no_bytes_make_a_parser_panic_or_allocate_what_they_claim() {
    limit_memory();
    let mutations = mutations();
    for (target, (check, sealed)) in checks() {
        feed(target, mutations, |bytes, is_seed| {
            match sealed && !is_seed {
                true => check(&checks::resealed(bytes)),
                false => check(bytes),
            }
        });
    }
}

/// Gives `check` each seed of a target, and so many mutations of each; true with a seed itself. How
/// many seeds there are.
fn feed(target: &'static str, mutations: u64, check: impl Fn(&[u8], bool)) -> usize {
    let corpus = corpus(target);
    assert!(corpus.len() >= 8, "{target} has seeds");
    let all: Vec<Vec<u8>> = corpus.values().cloned().collect();
    for (name, bytes) in &corpus {
        let _seed = mutate::Case::new(target, name, None);
        check(bytes, true);
        for number in 0..mutations {
            let seed = mutate::seed_of(name, number);
            let _seed = mutate::Case::new(target, name, Some(number));
            check(&Mutator::new(seed).mutate(bytes, &all), false);
        }
    }
    corpus.len()
}

fn mutations() -> u64 {
    let asked = std::env::var("FERRYFS_TEST_MUTATIONS").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(MUTATIONS)
}

/// The same limit, which more than one thread shares here.
#[test]
fn no_drive_no_client_and_no_index_makes_what_reads_it_panic_or_write_elsewhere() {
    limit_memory();
    let started = std::time::Instant::now();
    for (target, (check, share)) in large_checks() {
        let seeds = feed(target, mutations() * share / 1000, |bytes, _| check(bytes));
        println!("{target}: {seeds} seeds, after {:?}", started.elapsed());
    }
}

/// The seeds that the project builds itself are those that are checked in; a changed format shows
/// here. Others, found by fuzzing, may lie beside them.
#[test]
fn the_seeds_that_are_checked_in_are_the_ones_that_are_built() {
    for (target, seeds) in seeds::all() {
        let found = corpus(target);
        for (name, bytes) in seeds {
            let same = found.get(name).is_some_and(|there| *there == bytes);
            assert!(
                same,
                "{target}/{name} is missing or another; FERRYFS_WRITE_SEEDS=1 cargo test --test parsers -- --ignored"
            );
        }
    }
}

/// Writes the seeds. Not a test: to be run by hand when there are new ones.
#[test]
#[ignore = "writes into the source tree"]
fn write_the_seeds() {
    if std::env::var_os("FERRYFS_WRITE_SEEDS").is_none() {
        return;
    }
    for (target, seeds) in seeds::all() {
        let dir = seeds_dir().join(target);
        fs::create_dir_all(&dir).expect("make the directory");
        for (name, bytes) in seeds {
            fs::write(dir.join(name), bytes).expect("write a seed");
        }
    }
}
