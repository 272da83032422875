//! `ferryfs doctor`: what it finds, that it says what to do, and that it changes nothing.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::lab::{Backend, Done, Lab, Tree, content, run, skip, text, write};

/// The findings, and the exit code that must follow from them.
fn findings(done: Done) -> Vec<Value> {
    let found = serde_json::from_str::<Value>(&done.stdout).expect("JSON");
    let found = found.as_array().expect("a list").clone();
    let has = |level: &str| found.iter().any(|one| one["level"] == level);
    let code = match (has("problem"), has("warning")) {
        (true, _) => 1,
        (false, true) => 3,
        (false, false) => 0,
    };
    assert_eq!(done.code, code, "{found:#?}");
    for one in &found {
        let text = one["text"].as_str().expect("a text");
        assert!(!text.is_empty() && !text.contains('\n'), "{one}");
        if one["level"] != "ok" {
            assert!(
                one["advice"].as_str().is_some_and(|it| !it.is_empty()),
                "{one}"
            );
        }
    }
    found
}

fn doctor(lab: &Lab, args: &[&str]) -> Vec<Value> {
    let mut all = vec!["doctor", "--json"];
    all.extend(args);
    findings(lab.ferryfs(&all))
}

/// The finding of this area with these words in it.
#[track_caller]
fn find<'a>(found: &'a [Value], area: &str, words: &str) -> &'a Value {
    let is_it = |one: &&Value| {
        one["area"] == area
            && one["text"]
                .as_str()
                .is_some_and(|text| text.contains(words))
    };
    let finding = found.iter().find(is_it);
    finding.unwrap_or_else(|| panic!("no {words:?} of {area} in {found:#?}"))
}

#[test]
fn before_the_first_mount_it_says_what_will_be_and_makes_nothing() {
    let Some(lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    write(&lab.d("theirs"), b"before");
    let before = Tree::read(lab.root());
    let found = doctor(&lab, &[&text(lab.drive.path())]);
    assert_eq!(find(&found, "machine", "/dev/fuse")["level"], "ok");
    assert_eq!(find(&found, "machine", "Linux ")["level"], "ok");
    assert_eq!(find(&found, "machine", "clock")["level"], "ok");
    find(&found, "cache", "there is none for this yet");
    find(&found, "drive", "it is no volume yet");
    find(&found, "drive", "read-write");
    find(&found, "daemon", "none serves this drive");
    Tree::read(lab.root()).assert_same(&before, "after the look", "before it");
    // For people: the same levels, and a last line that sums up.
    let said = lab.ferryfs(&["doctor", &text(lab.drive.path())]).stdout;
    assert!(said.starts_with("machine\n  ok "), "{said}");
    let last = said.lines().last().unwrap_or_default();
    assert!(
        ["All is well.", "It works", "Problems"]
            .iter()
            .any(|it| last.starts_with(it)),
        "{said}"
    );
    lab.finish();
}

#[test]
fn a_mount_is_looked_at_with_its_cache_and_drive_and_a_dead_one_is_a_problem() {
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    let mnt = text(&lab.mnt);
    write(&lab.m("one"), &content(1, 5_000));
    lab.flush();
    write(&lab.m("two"), &content(2, 5_000));
    let found = doctor(&lab, &[&mnt]);
    find(&found, "daemon", &format!("pid {}", lab.pid()));
    find(&found, "daemon", "wait for the next flush");
    find(&found, "cache", &format!("it is {}", text(&lab.cache)));
    assert_eq!(
        find(&found, "cache", "the last batch was number 1")["level"],
        "ok"
    );
    find(&found, "drive", "it is volume ");
    find(&found, "drive", "it keeps permissions");
    assert_eq!(find(&found, "drive", "no unfinished batch")["level"], "ok");
    assert_eq!(
        lab.status()["safe_to_unplug"],
        false,
        "it has flushed something"
    );

    lab.kill9();
    let found = doctor(&lab, &[&mnt]);
    let dead = find(&found, "daemon", "is gone");
    assert_eq!(dead["level"], "problem");
    let advice = dead["advice"].as_str().expect("advice");
    assert!(
        advice.contains("ferryfs mount ") && advice.contains(&mnt),
        "{advice}"
    );
    lab.remount();
    lab.finish_flushed();
}

#[test]
fn a_cache_in_memory_and_a_read_only_drive_are_problems() {
    if !nix::unistd::geteuid().is_root() {
        return skip("mounting a tmpfs needs root");
    }
    let Some(lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    let (memory, drive) = (lab.root().join("memory"), lab.root().join("read-only"));
    for dir in [&memory, &drive] {
        fs::create_dir(dir).expect("make a directory");
    }
    run(Command::new("mount")
        .args(["-t", "tmpfs", "tmpfs"])
        .arg(&memory))
    .ok();
    run(Command::new("mount")
        .arg("--bind")
        .arg(lab.drive.path())
        .arg(&drive))
    .ok();
    run(Command::new("mount")
        .args(["-o", "remount,bind,ro"])
        .arg(&drive))
    .ok();
    let found = doctor(&lab, &["--cache", &text(&memory), &text(&drive)]);
    assert_eq!(find(&found, "cache", "in memory")["level"], "problem");
    assert_eq!(
        find(&found, "drive", "mounted read-only")["level"],
        "problem"
    );
    for dir in [&memory, &drive] {
        run(Command::new("umount").arg(dir)).ok();
    }
    let found = doctor(&lab, &["/no/such/drive"]);
    assert_eq!(find(&found, "drive", "/no/such/drive")["level"], "problem");
    lab.finish();
}

#[test]
fn another_volume_at_the_place_and_an_unfinished_batch_are_named() {
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    write(&lab.m("one"), &content(1, 5_000));
    lab.flush();
    lab.unmount();
    let (drive, cache) = (text(lab.drive.path()), text(&lab.cache));
    // What a batch that was interrupted while it was staged leaves.
    let staged = lab.d(".ferryfs/staging/0000000000000002");
    fs::create_dir_all(&staged).expect("make a staging directory");
    let found = doctor(&lab, &["--cache", &cache, &drive]);
    let batch = find(&found, "drive", "unfinished batch");
    assert_eq!(batch["level"], "warning");
    assert!(
        batch["advice"]
            .as_str()
            .is_some_and(|it| it.contains("ferryfs recover")),
        "{batch}"
    );
    assert!(staged.exists());
    fs::remove_dir(&staged).expect("remove it");
    fs::remove_file(lab.d(".ferryfs/volume.json")).expect("remove the marker");
    let found = doctor(&lab, &["--cache", &cache, &drive]);
    assert_eq!(find(&found, "drive", "has no marker")["level"], "problem");
    assert!(!lab.d(".ferryfs/volume.json").exists());
}
