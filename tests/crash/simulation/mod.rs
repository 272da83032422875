//! Mixed work for as long as one likes, from a seed: programs that write, flushes, a drive that
//! comes and goes, crashes of the daemon and of the drive, full disks. One thread, a clock of its
//! own, so a seed plays the same each time.
//!
//! After every step the mount is what the reference says; after every recovery and every flush the
//! drive is the tree of a cut, and the checker finds nothing. `scripts/soak.sh` plays it for
//! minutes with fresh seeds, and a seed again.

mod breaks;
mod model;
mod ops;
mod sim;
mod watch;

use std::time::{Duration, Instant};

use sim::{Counts, Sim};

const STEPS: usize = 300;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn play(seed: u64) -> (u64, Counts) {
    let steps = number("FERRYFS_SIM_STEPS").map_or(STEPS, |steps| steps as usize);
    let mut sim = Sim::new(seed);
    sim.play(steps);
    (sim.digest, sim.counts)
}

#[derive(Default)]
struct Total(Vec<Counts>);

impl Total {
    fn tell(&self) -> String {
        let sum = |of: fn(&Counts) -> usize| self.0.iter().map(of).sum::<usize>();
        format!(
            "{} runs: {} operations, {} flushes, {} broken off, {} deaths, {} power cuts of the drive, {} recoveries; \
             {} files under no name after a crash, {} of them gone for good and named",
            self.0.len(),
            sum(|it| it.operations),
            sum(|it| it.flushes),
            sum(|it| it.broken_flushes),
            sum(|it| it.deaths),
            sum(|it| it.yanks),
            sum(|it| it.recoveries),
            sum(|it| it.on_nothing),
            sum(|it| it.gone)
        )
    }
}

#[test]
fn mixed_work_with_crashes_keeps_every_promise() {
    let seeds = match number("FERRYFS_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..30,
    };
    let mut total = Total::default();
    for seed in seeds {
        total.0.push(play(seed).1);
    }
    println!("{}", total.tell());
}

#[test]
fn one_seed_plays_the_same_twice() {
    for seed in [3, 4] {
        assert_eq!(play(seed).0, play(seed).0);
    }
}

/// For `scripts/soak.sh`: `FERRYFS_SOAK_MINUTES` of it.
#[test]
#[ignore = "takes as long as it is told to"]
fn soak() {
    let minutes = number("FERRYFS_SOAK_MINUTES").unwrap_or(1);
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    let first = number("FERRYFS_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.expect("a clock").as_secs() * 10_000
    });
    let mut total = Total::default();
    let mut told = Instant::now();
    for seed in first.. {
        if Instant::now() >= end && seed > first {
            break;
        }
        total.0.push(play(seed).1);
        if told.elapsed() > Duration::from_secs(30) {
            told = Instant::now();
            println!("seed {seed} is over; {}", total.tell());
        }
    }
    println!("{}", total.tell());
}
