//! Random calls get the same answers in the mount as on the machine's own file system, and leave
//! the same behind: by several users, with batches cut and objects evicted in between.

use std::fs;
use std::process::Command;
use std::time::Duration;

use super::survey::{Open, Survey};
use super::{AS_GIVEN, OPEN_ON_EXFAT, OPEN_ON_EXT4};
use crate::lab::{Backend, Lab, ferryfs_binary, run_for, skip};

/// Calls per seed.
const STEPS: usize = 1200;

/// More with `FERRYFS_NATIVE_SEEDS`.
fn seeds() -> u64 {
    let asked = std::env::var("FERRYFS_NATIVE_SEEDS");
    asked.ok().and_then(|text| text.parse().ok()).unwrap_or(3)
}

fn compare(backend: Backend, first: u64, names: &str, open: Open) {
    if !nix::unistd::geteuid().is_root() {
        return skip("changing users needs root");
    }
    let Some(mut lab) = Lab::new(backend) else {
        return;
    };
    // Next to nothing stays in the cache that is on the drive.
    lab.mount(&[AS_GIVEN, &["--cache-size", "1K"]].concat());
    for seed in first..first + seeds() {
        let (ours, native) = (
            lab.m(seed.to_string()),
            lab.root().join(format!("native-{seed}")),
        );
        for dir in [&ours, &native] {
            fs::create_dir(dir).expect("mkdir");
        }
        let mut command = Command::new("python3");
        command.args(["-c", include_str!("native.py")]);
        command.args([&ours, &native]);
        command.args([&seed.to_string(), &STEPS.to_string(), names]);
        command.arg(ferryfs_binary()).arg(&lab.mnt);
        let done = run_for(&mut command, Duration::from_secs(300));
        assert!(done.code == 0, "{}{}", done.stdout, done.stderr);
    }
    // What has come of it all is what another machine sees.
    lab.flush();
    if names == "plain" {
        lab.assert_drive_is_mount();
    }
    let left = Survey::of(&lab.mnt, &[]);
    lab.unmount();
    lab.take_new_cache();
    lab.mount(AS_GIVEN);
    let found = left.differences(&Survey::of(&lab.mnt, &[]));
    found.assert_only(open, "on another machine");
    lab.finish();
}

#[test]
fn any_calls_are_answered_as_by_a_native_file_system_over_exfat() {
    compare(Backend::EXFAT, 1, "plain", OPEN_ON_EXFAT);
}

#[test]
fn any_names_are_answered_for_as_by_a_native_file_system_over_exfat() {
    compare(Backend::EXFAT, 2001, "any", OPEN_ON_EXFAT);
}

#[test]
fn any_calls_are_answered_as_by_a_native_file_system_over_a_plain_directory() {
    compare(Backend::Ext4Dir, 1001, "any", OPEN_ON_EXT4);
}
