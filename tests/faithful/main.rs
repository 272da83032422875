//! What a script wrote is what any machine with ferryfs reads back: a tree with something of everything that Linux allows goes
//! through a flush, the cache is thrown away, and another machine looks at the drive.

#[path = "../support/lab/mod.rs"]
mod lab;
mod native;
mod survey;

use lab::{Backend, Lab, skip};
use survey::{Differences, Survey, build};

/// What may differ on exFAT after a round trip, and why. What is listed and does not differ is an error, too.
const OPEN_ON_EXFAT: &[(&str, &str)] = &[
    ("cannot be made", "names are not mapped yet"),
    ("data", "nobody tells of holes yet"),
    ("gid", NO_CATALOG),
    ("missing", NO_CATALOG),
    ("mode", NO_CATALOG),
    ("mtime of dir", NO_CATALOG),
    ("mtime of file", NO_CATALOG),
    ("nlink", NO_CATALOG),
    ("same_as", NO_CATALOG),
    ("sparse", NO_CATALOG),
    ("uid", NO_CATALOG),
    ("xattrs", NO_CATALOG),
];

const NO_CATALOG: &str = "the catalog is not written yet";

/// The same on a directory that keeps modes and links itself.
const OPEN_ON_EXT4: &[(&str, &str)] = OPEN_ON_EXFAT;

#[track_caller]
fn assert_only_open(found: &Differences, open: &[(&str, &str)], when: &str) {
    let closed: Vec<&String> = found
        .0
        .keys()
        .filter(|what| !open.iter().any(|(listed, _)| listed == what))
        .collect();
    assert!(
        closed.is_empty(),
        "{when}, these should not differ: {closed:?}\n{}",
        found.table()
    );
    let outlived: Vec<_> = open
        .iter()
        .filter(|(listed, _)| !found.0.contains_key(*listed))
        .collect();
    assert!(
        outlived.is_empty(),
        "listed as differing, but do not: {outlived:?}"
    );
}

fn round_trip(backend: Backend, open: &[(&str, &str)]) {
    if !nix::unistd::geteuid().is_root() {
        return skip("owners and devices need root");
    }
    let Some(mut lab) = Lab::new(backend) else {
        return;
    };
    const AS_GIVEN: &[&str] = &["-o", "allow_other,suid,dev"];
    lab.mount(AS_GIVEN);
    let refused = build(&lab.mnt, &[]);
    let written = Survey::of(&lab.mnt, &[]);
    assert!(written.len() > 2000, "only {} entries", written.len());
    lab.flush();
    written.assert_same(&Survey::of(&lab.mnt, &[]), "after a flush");
    lab.unmount();
    lab.remount();
    written.assert_same(&Survey::of(&lab.mnt, &[]), "after a remount");
    lab.unmount();
    lab.take_new_cache();
    lab.mount(AS_GIVEN);
    let mut found = written.differences(&Survey::of(&lab.mnt, &[]));
    if !refused.is_empty() {
        found.0.insert("cannot be made".into(), refused);
    }
    assert_only_open(&found, open, "on another machine");
    let dirty = lab.status()["dirty_files"].clone();
    assert_eq!(dirty, 0, "looking makes nothing dirty");
    lab.finish();
}

#[test]
fn everything_comes_back_from_exfat() {
    round_trip(Backend::EXFAT, OPEN_ON_EXFAT);
}

#[test]
fn everything_comes_back_from_a_plain_directory() {
    round_trip(Backend::Ext4Dir, OPEN_ON_EXT4);
}
