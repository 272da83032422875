//! Listings of directories: what the kernel keeps of them, and that nobody is told old news.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::lab::{Backend, Lab, sh, text, write};

/// Mounts a drive that has held `count` files in `dir` for years.
fn at_rest(count: usize) -> Option<Lab> {
    let mut lab = Lab::new(Backend::Ext4Dir)?;
    fs::create_dir(lab.d("dir")).expect("mkdir");
    for n in 0..count {
        write(&lab.d(file(n)), b"old");
    }
    sh(&lab.d("."), "touch -d 2020-01-01 dir/* dir").ok();
    let metrics = format!("unix:{}", text(&lab.root().join("metrics")));
    lab.mount(&["--metrics-listen", &metrics]);
    Some(lab)
}

fn file(n: usize) -> String {
    format!("dir/a file with a rather long name, number {n:05}")
}

fn listed(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).expect("list");
    entries
        .map(|entry| name(&entry.expect("an entry")))
        .collect()
}

fn name(entry: &fs::DirEntry) -> String {
    entry.file_name().into_string().expect("a name")
}

/// How many requests the daemon has answered that were neither reads nor writes of files.
fn asked(lab: &Lab) -> u64 {
    let mut stream = UnixStream::connect(lab.root().join("metrics")).expect("connect");
    stream
        .write_all(b"GET /metrics HTTP/1.0\r\n\r\n")
        .expect("ask");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let count = "ferryfs_request_duration_seconds_count{kind=\"other\"} ";
    let line = text.lines().find_map(|line| line.strip_prefix(count));
    line.and_then(|it| it.parse().ok())
        .unwrap_or_else(|| panic!("no count in {text}"))
}

#[test]
fn a_directory_at_rest_is_listed_once_and_every_change_is_seen() {
    let Some(lab) = at_rest(300) else { return };
    let all: BTreeSet<String> = listed(&lab.d("dir"));
    assert_eq!(listed(&lab.m("dir")), all);
    let before = asked(&lab);
    for _ in 0..20 {
        assert_eq!(listed(&lab.m("dir")), all);
    }
    // To open it, 20 times; some room for what other programs look at.
    let more = asked(&lab) - before;
    assert!(
        more < 30,
        "{more} requests: the kernel did not keep the listing"
    );

    // By programs of this machine.
    let mut now = all.clone();
    write(&lab.m("dir/new"), b"new");
    now.insert("new".into());
    assert_eq!(listed(&lab.m("dir")), now);
    fs::remove_file(lab.m(file(7))).expect("remove");
    now.remove(file(7).trim_start_matches("dir/"));
    assert_eq!(listed(&lab.m("dir")), now);
    fs::rename(lab.m(file(8)), lab.m("elsewhere")).expect("rename");
    now.remove(file(8).trim_start_matches("dir/"));
    assert_eq!(listed(&lab.m("dir")), now);
    lab.finish();
}

#[test]
fn a_kept_listing_shows_what_others_do_on_the_drive() {
    let Some(lab) = at_rest(50) else { return };
    let mut now = listed(&lab.d("dir"));
    for _ in 0..2 {
        assert_eq!(listed(&lab.m("dir")), now);
    }
    write(&lab.d("dir/from the Mac"), b"theirs");
    fs::remove_file(lab.d(file(3))).expect("remove");
    lab.ferryfs(&["refresh", &text(&lab.mnt)]).ok();
    now.insert("from the Mac".into());
    now.remove(file(3).trim_start_matches("dir/"));
    assert_eq!(listed(&lab.m("dir")), now);
    lab.finish();
}

/// As when a tree is removed while another program looks at it.
#[test]
fn what_stays_is_listed_once_though_another_listing_begins_after_removals() {
    const FILES: usize = 3000;
    let Some(lab) = at_rest(FILES) else { return };
    // The kernel has a copy.
    for _ in 0..2 {
        assert_eq!(listed(&lab.m("dir")).len(), FILES);
    }
    let mut first = fs::read_dir(lab.m("dir")).expect("list");
    let mut seen: Vec<String> = Vec::new();
    seen.extend(
        first
            .by_ref()
            .take(10)
            .map(|entry| name(&entry.expect("an entry"))),
    );
    let stays = |n: usize| n % 50 == 49;
    for n in (0..FILES).filter(|n| !stays(*n)) {
        fs::remove_file(lab.m(file(n))).expect("remove");
    }
    for _ in 0..2 {
        assert_eq!(listed(&lab.m("dir")).len(), FILES / 50);
    }
    seen.extend(first.map(|entry| name(&entry.expect("an entry"))));
    let kept = |name: &String| {
        let n = name.rsplit(' ').next().and_then(|n| n.parse().ok());
        n.is_some_and(stays)
    };
    let kept: Vec<String> = seen.into_iter().filter(kept).collect();
    let once: BTreeSet<&String> = kept.iter().collect();
    assert_eq!(once.len(), FILES / 50, "entries were not listed");
    assert_eq!(once.len(), kept.len(), "entries were listed twice");
    lab.finish();
}
