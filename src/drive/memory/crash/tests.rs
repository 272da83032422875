use std::collections::BTreeSet;

use super::*;
use crate::core::Timestamp;
use crate::drive::Backend;
use crate::drive::memory::{MemNode, MemoryBackend, MemoryOptions};

const SEEDS: std::ops::Range<u64> = 0..400;

fn path(text: &str) -> RelPath {
    RelPath::parse(text.as_bytes()).unwrap()
}

fn put(backend: &MemoryBackend, at: &str, bytes: &[u8]) {
    let mut file = backend.create(&path(at)).unwrap();
    file.append(bytes).unwrap();
    file.finish(Timestamp(10_000_000)).unwrap();
}

fn get(backend: &MemoryBackend, at: &str) -> Option<Vec<u8>> {
    match backend.tree().remove(&path(at))? {
        MemNode::File { bytes, .. } => Some(bytes.to_vec()),
        _ => None,
    }
}

fn rename(backend: &MemoryBackend, from: &str, to: &str) {
    backend.rename(&path(from), &path(to)).unwrap();
}

fn remove(backend: &MemoryBackend, at: &str) {
    backend.remove_file(&path(at)).unwrap();
}

/// Two directories with a file each, synced.
fn synced() -> MemoryBackend {
    let backend = MemoryBackend::new(MemoryOptions::exfat_like());
    for dir in ["d", "e"] {
        backend.make_dir(&path(dir)).unwrap();
    }
    put(&backend, "d/one", b"the bytes of one");
    put(&backend, "e/two", b"the bytes of two");
    backend.sync().unwrap();
    backend
}

/// Returns the results of `describe` after many crashes, each from the state after `work`.
fn outcomes(
    work: impl Fn(&MemoryBackend),
    describe: impl Fn(&MemoryBackend) -> String,
) -> BTreeSet<String> {
    let results = SEEDS.map(|seed| {
        let backend = synced();
        work(&backend);
        backend.crash(Crash::Random(seed));
        describe(&backend)
    });
    results.collect()
}

fn all_of(wanted: &[&str]) -> BTreeSet<String> {
    wanted.iter().map(ToString::to_string).collect()
}

/// Returns which of these names exist, and the contents of files.
fn seen(backend: &MemoryBackend, names: &[&str]) -> String {
    let one = |name: &&str| match get(backend, name) {
        Some(bytes) if bytes.starts_with(b"the bytes of ") => {
            Some(format!("{name}={}", String::from_utf8_lossy(&bytes[13..])))
        }
        Some(_) => Some(format!("{name}=?")),
        None => backend
            .metadata(&path(name))
            .is_ok()
            .then(|| name.to_string()),
    };
    names.iter().filter_map(one).collect::<Vec<_>>().join(" ")
}

fn many_changes(backend: &MemoryBackend) {
    rename(backend, "d/one", "e/moved");
    put(backend, "d/new", b"the bytes of new");
    remove(backend, "e/two");
    backend.make_dir(&path("f")).unwrap();
    rename(backend, "d", "f/d");
    put(backend, "f/over", b"the bytes of over");
    rename(backend, "f/over", "e/moved");
    backend
        .set_modified(&path("f/d/new"), Timestamp(0))
        .unwrap();
}

fn draw(backend: &MemoryBackend, rate: usize) {
    let mut guard = backend.state.lock();
    let state = &mut *guard;
    let rates = Rates {
        entries: rate,
        bytes: rate,
        freed: rate,
    };
    let durable = state.durable.clone();
    state
        .tree
        .draw(&durable, rates, &mut Dice::new(1), &mut Vec::new());
}

#[test]
fn everything_kept_is_as_if_it_had_been_synced() {
    let backend = synced();
    many_changes(&backend);
    let before = backend.tree();
    let kept = backend.snapshot();
    draw(&backend, 100);
    assert_eq!(backend.tree(), before);
    assert_eq!(backend.damage(), Vec::<String>::new());
    kept.crash(Crash::KeepAll);
    assert_eq!((kept.tree(), kept.durable_tree()), (before.clone(), before));
}

#[test]
fn nothing_kept_is_as_if_it_had_never_been_done() {
    let backend = synced();
    let before = backend.tree();
    many_changes(&backend);
    let lost = backend.snapshot();
    draw(&backend, 0);
    assert_eq!(backend.tree(), before);
    assert_eq!(backend.damage(), Vec::<String>::new());
    lost.crash(Crash::LoseAll);
    assert_eq!(lost.tree(), before);
}

#[test]
fn what_was_synced_and_not_touched_since_is_certain() {
    for seed in SEEDS {
        let backend = synced();
        put(&backend, "keep", b"the bytes of keep");
        rename(&backend, "keep", "kept");
        backend.sync().unwrap();
        many_changes(&backend);
        backend.crash(Crash::Random(seed));
        assert_eq!(get(&backend, "kept").unwrap(), b"the bytes of keep");
        assert_eq!(get(&backend, "keep"), None);
        // A second crash changes nothing more.
        let left = backend.tree();
        backend.crash(Crash::Random(seed + 1));
        assert_eq!(backend.tree(), left);
    }
}

#[test]
fn one_seed_leaves_one_state() {
    for seed in SEEDS.step_by(20) {
        let (one, other) = (synced(), synced());
        many_changes(&one);
        many_changes(&other);
        let results = one.crash(Crash::Random(seed));
        assert_eq!(results, other.crash(Crash::Random(seed)));
        assert_eq!((one.tree(), one.damage()), (other.tree(), other.damage()));
    }
}

#[test]
fn an_interrupted_move_is_under_both_names_one_or_neither() {
    let results = outcomes(
        |backend| rename(backend, "d/one", "e/moved"),
        |backend| {
            let both = get(backend, "d/one").is_some() && get(backend, "e/moved").is_some();
            let shared = backend
                .damage()
                .iter()
                .any(|it| it.contains("the same clusters"));
            assert_eq!(both, shared, "{:?}", backend.damage());
            seen(backend, &["d/one", "e/moved"])
        },
    );
    let wanted = ["", "d/one=one", "e/moved=one", "d/one=one e/moved=one"];
    assert_eq!(results, all_of(&wanted));
}

#[test]
fn an_interrupted_replacement_leaves_the_old_the_new_both_under_one_name_or_neither() {
    let results = outcomes(
        |backend| rename(backend, "d/one", "e/two"),
        |backend| {
            let listed = backend.read_dir(&path("e")).unwrap().len();
            format!("{} of {listed}", seen(backend, &["e/two"]))
        },
    );
    let wanted = [
        " of 0",
        "e/two=one of 1",
        "e/two=two of 1",
        "e/two=one of 2",
        "e/two=two of 2",
    ];
    assert_eq!(results, all_of(&wanted));
}

#[test]
fn an_interrupted_change_of_case_leaves_either_spelling_both_or_neither() {
    let results = outcomes(
        |backend| rename(backend, "d/one", "d/ONE"),
        |backend| {
            let listed = backend.read_dir(&path("d")).unwrap();
            let names: BTreeSet<String> = listed.iter().map(|it| it.name.to_string()).collect();
            names.into_iter().collect::<Vec<_>>().join(" ")
        },
    );
    assert_eq!(results, all_of(&["", "one", "ONE", "ONE one"]));
}

#[test]
fn a_new_file_is_lost_short_or_full_of_zeros_or_garbage() {
    let results = outcomes(
        |backend| {
            let mut file = backend.create(&path("d/new")).unwrap();
            file.append(b"first, ").unwrap();
            file.append(b"second").unwrap();
            file.finish(Timestamp(10_000_000)).unwrap();
        },
        |backend| match get(backend, "d/new") {
            None => "lost".to_string(),
            Some(bytes) if bytes.is_empty() => "empty".to_string(),
            Some(bytes) => {
                let part = |bytes: &[u8]| match bytes {
                    b"first, " | b"second" => "right",
                    [0, ..] => "zeros",
                    [first, ..] if *first >= 128 => "garbage",
                    _ => "wrong",
                };
                let (first, second) = bytes.split_at(7);
                let rest = if second.is_empty() {
                    "short"
                } else {
                    part(second)
                };
                format!("{} {rest}", part(first))
            }
        },
    );
    for wanted in [
        "lost",
        "empty",
        "right short",
        "right right",
        "right zeros",
        "right garbage",
    ] {
        assert!(
            results.contains(wanted),
            "{wanted} never came of {results:?}"
        );
    }
    assert!(
        !results.iter().any(|it| it.contains("wrong")),
        "{results:?}"
    );
}

#[test]
fn a_removal_may_be_undone_and_a_time_may_be_the_old_one() {
    let results = outcomes(
        |backend| remove(backend, "d/one"),
        |backend| seen(backend, &["d/one"]),
    );
    assert_eq!(results, all_of(&["", "d/one=one"]));
    let results = outcomes(
        |backend| backend.set_modified(&path("d/one"), Timestamp(0)).unwrap(),
        |backend| {
            backend
                .metadata(&path("d/one"))
                .unwrap()
                .modified
                .0
                .to_string()
        },
    );
    assert_eq!(results, all_of(&["0", "10000000"]));
}

#[test]
fn a_new_directory_is_absent_empty_or_whole() {
    let results = outcomes(
        |backend| {
            backend.make_dir(&path("f")).unwrap();
            rename(backend, "d/one", "f/one");
        },
        |backend| seen(backend, &["f", "f/one", "d/one"]),
    );
    let wanted = [
        "",
        "d/one=one",
        "f",
        "f d/one=one",
        "f f/one=one",
        "f f/one=one d/one=one",
    ];
    assert_eq!(results, all_of(&wanted));
}

#[test]
fn a_moved_directory_is_one_directory_seen_twice_or_gone_with_all_in_it() {
    let results = outcomes(
        |backend| rename(backend, "d", "e/d"),
        |backend| seen(backend, &["d", "d/one", "e/d", "e/d/one"]),
    );
    let wanted = [
        "",
        "d d/one=one",
        "e/d e/d/one=one",
        "d d/one=one e/d e/d/one=one",
    ];
    assert_eq!(results, all_of(&wanted));

    let twice = until(
        |backend| rename(backend, "d", "e/d"),
        |backend| seen(backend, &["d", "e/d"]) == "d e/d",
    );
    remove(&twice, "d/one");
    assert_eq!(get(&twice, "e/d/one"), None);
}

/// Returns the backend after the first random crash after `work` that `wanted` accepts.
fn until(work: impl Fn(&MemoryBackend), wanted: impl Fn(&MemoryBackend) -> bool) -> MemoryBackend {
    let crashed = SEEDS.map(|seed| {
        let backend = synced();
        work(&backend);
        backend.crash(Crash::Random(seed));
        backend
    });
    crashed
        .into_iter()
        .find(|it| wanted(it))
        .expect("such a crash")
}

fn ghosts() -> MemoryBackend {
    until(
        |backend| rename(backend, "d/one", "e/moved"),
        |backend| seen(backend, &["d/one", "e/moved"]) == "d/one=one e/moved=one",
    )
}

#[test]
fn removing_one_of_two_names_that_share_clusters_ruins_the_other() {
    let backend = ghosts();
    remove(&backend, "d/one");
    assert_ne!(get(&backend, "e/moved").unwrap(), b"the bytes of one");
    assert_eq!(get(&backend, "e/moved").unwrap().len(), 16);
    assert_eq!(backend.damage(), ["e/moved: its clusters are marked free"]);

    // A rename of one over the other has the same effect.
    let backend = ghosts();
    rename(&backend, "d/one", "e/moved");
    assert_ne!(get(&backend, "e/moved").unwrap(), b"the bytes of one");
}

#[test]
fn removing_both_before_anything_is_written_is_sound() {
    let backend = ghosts();
    remove(&backend, "d/one");
    remove(&backend, "e/moved");
    put(&backend, "d/one", b"the bytes of new");
    put(&backend, "e/moved", b"the bytes of old");
    assert_eq!(
        seen(&backend, &["d/one", "e/moved"]),
        "d/one=new e/moved=old"
    );
    assert_eq!(backend.damage(), Vec::<String>::new());
}

#[test]
fn what_is_written_before_both_are_removed_can_be_ruined_by_the_second_removal() {
    let ruined = (0..20).any(|n| {
        let backend = ghosts();
        remove(&backend, "d/one");
        for _ in 0..n {
            backend.state.lock().tree.dice.next();
        }
        put(&backend, "d/new", b"the bytes of new");
        assert_eq!(get(&backend, "d/new").unwrap(), b"the bytes of new");
        remove(&backend, "e/moved");
        get(&backend, "d/new").unwrap() != b"the bytes of new"
    });
    assert!(ruined);
}

#[test]
fn an_entry_whose_removal_was_lost_may_be_overwritten_by_the_next_file() {
    let mut results = BTreeSet::new();
    for seed in SEEDS {
        let backend = synced();
        remove(&backend, "d/one");
        backend.crash(Crash::Random(seed));
        let free = !backend.damage().is_empty();
        let there = get(&backend, "d/one").is_some();
        put(&backend, "d/new", b"the bytes of new");
        if there {
            results.insert(format!("{} {free}", seen(&backend, &["d/one", "d/new"])));
        }
        assert!(there || !free);
    }
    let wanted = [
        "d/one=one d/new=new false",
        "d/one=one d/new=new true",
        "d/one=new d/new=new true",
    ];
    assert_eq!(results, all_of(&wanted));
}

#[test]
fn an_entry_whose_removal_was_lost_may_share_clusters_with_a_file_made_after_it() {
    let results = outcomes(
        |backend| {
            remove(backend, "d/one");
            put(backend, "e/new", b"the bytes of new");
        },
        |backend| seen(backend, &["d/one", "e/new"]),
    );
    assert!(results.contains("d/one=new e/new=new"), "{results:?}");
    assert!(results.contains("d/one=one e/new=new"), "{results:?}");
    assert!(
        !results.iter().any(|it| it.contains("e/new=one")),
        "{results:?}"
    );
}
