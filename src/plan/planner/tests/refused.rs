//! An inconsistent delta gives an error, never a step.

use super::*;

fn error(dirs: &[(Ino, &str, &str)], names: Vec<NameChange>) -> PlanError {
    plan(&delta(dirs, names)).expect_err("a delta that contradicts itself")
}

#[test]
fn a_name_without_paths_for_its_directory() {
    let key = || key(D1, "f");
    let gone = || vec![name(D1, "f", was(Ino(2)), None)];
    let made = || vec![name(D1, "f", None, changed(2))];
    let missing = PlanError::DirectoryMissing { key: key() };
    assert_eq!(error(&[], gone()), missing);
    let no_old = PlanError::NoOldPath { key: key() };
    assert_eq!(error(&[(D1, "-", "d")], gone()), no_old);
    let no_new = PlanError::NoNewPath { key: key() };
    assert_eq!(error(&[(D1, "d", "-")], made()), no_new);
}

#[test]
fn names_that_disagree_on_their_inode() {
    let twice = vec![name(ROOT, "a", None, changed(2)); 2];
    let a = key(ROOT, "a");
    assert_eq!(error(&[], twice), PlanError::NameTwice { key: a });

    let kinds = vec![
        name(ROOT, "a", was(D1), None),
        name(ROOT, "b", None, is(D1, NewContent::Live)),
    ];
    assert_eq!(error(&[], kinds), PlanError::KindsDiffer { ino: D1 });

    let dirs = ["a", "b"].map(|it| name(ROOT, it, None, dir(D1)));
    let expected = PlanError::DirectoryTwice { ino: D1 };
    assert_eq!(error(&[], dirs.to_vec()), expected);

    let contents = vec![
        name(ROOT, "a", None, changed(2)),
        name(ROOT, "b", None, live(2)),
    ];
    let expected = PlanError::ContentsDiffer { ino: Ino(2) };
    assert_eq!(error(&[], contents), expected);
}

#[test]
fn an_entry_of_the_cut_without_an_inode() {
    let names = vec![name(ROOT, "a", None, live(NOBODY.0))];
    let key = key(ROOT, "a");
    assert_eq!(error(&[], names), PlanError::NoInode { key });
}

#[test]
fn paths_that_do_not_follow_from_the_names() {
    let file = |dir| name(dir, "f", was(Ino(2)), None);
    let expected = PlanError::PathsDisagree { ino: D2 };

    // Moved, but neither its own name nor any ancestor is listed.
    assert_eq!(error(&[(D2, "a/b", "c/b")], vec![file(D2)]), expected);
    assert_eq!(error(&[(D2, "a", "-")], vec![file(D2)]), expected);

    let moved = vec![
        name(ROOT, "a", was(D1), None),
        name(ROOT, "c", None, dir(D1)),
        file(D2),
    ];
    // Not moved with its parent; moved elsewhere; moved with it.
    for wrong in ["a/b", "d/b"] {
        let dirs = [(D2, "a/b", wrong)];
        assert_eq!(error(&dirs, moved.clone()), expected, "{wrong}");
    }
    let plan = plan(&delta(&[(D2, "a/b", "c/b")], moved)).unwrap();
    let steps = ["remove a/b/f", "detach a 0", "attach 0 c"];
    assert_eq!(shown(&plan), steps);

    // Removed, but with a path in which an entry could be placed.
    let gone = vec![name(ROOT, "a", was(D2), None)];
    assert_eq!(error(&[(D2, "a", "a")], gone), expected);
}

#[test]
fn two_directories_with_one_path() {
    let names = vec![
        name(D1, "f", None, changed(2)),
        name(D2, "f", None, changed(3)),
    ];
    let path = RelPath::fixed("d");
    let expected = PlanError::PathTwice { path };
    assert_eq!(error(&[(D1, "d", "d"), (D2, "d", "d")], names), expected);
}
