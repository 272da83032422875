//! Batches written by hand, step by step.

mod refused;

use super::*;
use crate::core::{Name, ObjectId};

const D1: Ino = Ino(11);
const D2: Ino = Ino(12);
const D3: Ino = Ino(13);

fn key(parent: Ino, name: &str) -> NameKey {
    let name = Name::new(name.as_bytes()).unwrap();
    NameKey { parent, name }
}

/// The directories by inode, old path and new path; `-` for none. The root is always included.
fn delta(dirs: &[(Ino, &str, &str)], names: Vec<NameChange>) -> Delta {
    let path = |text: &str| (text != "-").then(|| RelPath::parse(text.as_bytes()).unwrap());
    let root = (&Ino::ROOT, &"", &"");
    let all = dirs.iter().map(|(ino, old, new)| (ino, old, new));
    let dirs = all
        .chain([root])
        .map(|(&ino, old, new)| {
            let (old, new) = (path(old), path(new));
            (ino, DirPaths { old, new })
        })
        .collect();
    Delta {
        dirs,
        names,
        hard_links: false,
    }
}

type Old = Option<OldEntry>;
type New = Option<NewEntry>;

fn name(parent: Ino, name: &str, old: Old, new: New) -> NameChange {
    let key = key(parent, name);
    NameChange { key, old, new }
}

fn was(ino: Ino) -> Old {
    let kind = if [D1, D2, D3].contains(&ino) {
        PlainKind::Directory
    } else {
        PlainKind::File
    };
    Some(OldEntry { ino, kind })
}

fn is(ino: Ino, content: NewContent) -> New {
    Some(NewEntry { ino, content })
}

fn same(ino: u64) -> New {
    is(Ino(ino), NewContent::Unchanged { copy: None })
}

fn dir(ino: Ino) -> New {
    is(ino, NewContent::Directory)
}

fn object(ino: u64) -> StageSource {
    StageSource::Object {
        ino: Ino(ino),
        object: ObjectId(ino),
        modified: Timestamp(7),
    }
}

fn changed(ino: u64) -> New {
    is(Ino(ino), NewContent::Changed(object(ino)))
}

fn live(ino: u64) -> New {
    is(Ino(ino), NewContent::Live)
}

/// The steps, one line each.
fn shown(plan: &Plan) -> Vec<String> {
    let clear = plan.steps.clear.iter().map(|step| match step {
        ClearStep::Detach { from, slot, .. } => format!("detach {from} {}", slot.0),
        ClearStep::RemoveFile { path } => format!("remove {path}"),
        ClearStep::RemoveDir { path } => format!("rmdir {path}"),
    });
    let place = plan.steps.place.iter().map(|step| match step {
        PlaceStep::MakeDir { path } => format!("mkdir {path}"),
        PlaceStep::Attach { slot, to, .. } => format!("attach {} {to}", slot.0),
        PlaceStep::Install { slot, to, .. } => format!("install {} {to}", slot.0),
        PlaceStep::Patch { slot, to, .. } => format!("patch {} {to}", slot.0),
        PlaceStep::InstallNode { slot, to, .. } => format!("node {} {to}", slot.0),
        PlaceStep::Link { from, to } => format!("link {from} {to}"),
        PlaceStep::Touch { path, modified } => format!("touch {path} {}", modified.0),
    });
    clear.chain(place).collect()
}

fn placed<'a>(plan: &'a Plan, at: &NameKey) -> Option<&'a Placed> {
    let mut found = plan.outcomes.iter().filter(|it| it.key == *at);
    found.next().map(|it| &it.placed)
}

fn kept(ino: u64, from: NameKey) -> Placed {
    let (ino, modified) = (Ino(ino), None);
    Placed::Kept {
        ino,
        from,
        modified,
    }
}

const ROOT: Ino = Ino::ROOT;

#[test]
fn two_files_swap_through_slots() {
    let names = vec![
        name(ROOT, "a", was(Ino(2)), same(3)),
        name(ROOT, "b", was(Ino(3)), same(2)),
    ];
    let plan = plan(&delta(&[], names)).unwrap();
    let steps = ["detach a 0", "detach b 1", "attach 1 a", "attach 0 b"];
    assert_eq!(shown(&plan), steps);
    let at_a = placed(&plan, &key(ROOT, "a"));
    assert_eq!(at_a, Some(&kept(3, key(ROOT, "b"))));
    assert!(plan.steps.needs_barrier());
}

#[test]
fn two_directories_swap_with_a_change_below_one() {
    let names = vec![
        name(ROOT, "a", was(D1), dir(D2)),
        name(ROOT, "b", was(D2), dir(D1)),
        name(D1, "f", was(Ino(2)), changed(2)),
    ];
    let plan = plan(&delta(&[(D1, "a", "b"), (D2, "b", "a")], names)).unwrap();
    let steps = [
        "detach a 0",
        "detach b 1",
        "attach 1 a",
        "attach 0 b",
        "install 2 b/f",
    ];
    assert_eq!(shown(&plan), steps);
}

#[test]
fn parent_and_child_exchange_places() {
    // a/b becomes b/a.
    let names = vec![
        name(ROOT, "a", was(D1), None),
        name(D1, "b", was(D2), None),
        name(ROOT, "b", None, dir(D2)),
        name(D2, "a", None, dir(D1)),
    ];
    let plan = plan(&delta(&[(D1, "a", "b/a"), (D2, "a/b", "b")], names)).unwrap();
    let steps = ["detach a/b 0", "detach a 1", "attach 0 b", "attach 1 b/a"];
    assert_eq!(shown(&plan), steps);
}

#[test]
fn a_rename_of_case_only_is_an_ordinary_move() {
    let names = vec![
        name(ROOT, "Photo", was(Ino(2)), None),
        name(ROOT, "photo", None, same(2)),
    ];
    let plan = plan(&delta(&[], names)).unwrap();
    assert_eq!(shown(&plan), ["detach Photo 0", "attach 0 photo"]);
    assert_eq!(placed(&plan, &key(ROOT, "Photo")), Some(&Placed::Nothing));
}

#[test]
fn a_directory_and_a_file_take_each_others_name() {
    let names = vec![
        name(ROOT, "x", was(D1), changed(3)),
        name(D1, "f", was(Ino(2)), None),
        name(ROOT, "y", was(Ino(4)), dir(D2)),
        name(D2, "g", None, changed(5)),
    ];
    let plan = plan(&delta(&[(D1, "x", "-"), (D2, "-", "y")], names)).unwrap();
    let steps = [
        "remove x/f",
        "rmdir x",
        "remove y",
        "mkdir y",
        "install 0 x",
        "install 1 y/g",
    ];
    assert_eq!(shown(&plan), steps);
}

#[test]
fn a_file_moved_out_first_survives_the_deletion_of_its_tree() {
    let names = vec![
        name(ROOT, "a", was(D1), None),
        name(D1, "b", was(D2), None),
        name(D2, "keep", was(Ino(2)), None),
        name(D2, "drop", was(Ino(3)), None),
        name(ROOT, "kept", None, same(2)),
    ];
    let plan = plan(&delta(&[(D1, "a", "-"), (D2, "a/b", "-")], names)).unwrap();
    let steps = [
        "remove a/b/drop",
        "detach a/b/keep 0",
        "rmdir a/b",
        "rmdir a",
        "attach 0 kept",
    ];
    assert_eq!(shown(&plan), steps);
}

#[test]
fn a_replaced_file_is_never_cleared_also_where_its_directory_moves() {
    let names = vec![
        name(ROOT, "a", was(D1), None),
        name(ROOT, "b", None, dir(D1)),
        name(D1, "f", was(Ino(2)), changed(3)),
        name(D1, "g", was(Ino(4)), same(5)),
        name(ROOT, "h", was(Ino(5)), None),
    ];
    let plan = plan(&delta(&[(D1, "a", "b")], names)).unwrap();
    let steps = [
        "detach a 0",
        "detach h 1",
        "attach 0 b",
        "install 2 b/f",
        "attach 1 b/g",
    ];
    assert_eq!(shown(&plan), steps);
}

#[test]
fn a_moved_file_gets_its_new_time_where_it_arrives() {
    let touched = NewContent::Touched {
        modified: Timestamp(9),
        copy: None,
    };
    let names = vec![
        name(ROOT, "a", was(Ino(2)), None),
        name(ROOT, "b", None, is(Ino(2), touched)),
    ];
    let plan = plan(&delta(&[], names)).unwrap();
    assert_eq!(shown(&plan), ["detach a 0", "attach 0 b", "touch b 9"]);
}

#[test]
fn a_live_file_without_a_version_leaves_the_one_it_replaced() {
    let names = vec![name(ROOT, "a", was(Ino(2)), live(3))];
    let plan = plan(&delta(&[], names)).unwrap();
    assert!(plan.steps.is_empty());
    assert_eq!(plan.outcomes, []);
    assert_eq!(plan.left_behind[0].reason, LeftReason::OpenForWriting);
    assert_eq!(plan.leftovers, [key(ROOT, "a")]);
}

#[test]
fn a_live_file_leaves_its_name_empty_if_what_it_replaced_moves_on() {
    let names = vec![
        name(ROOT, "a", was(Ino(2)), live(3)),
        name(ROOT, "b", None, same(2)),
    ];
    let plan = plan(&delta(&[], names)).unwrap();
    assert_eq!(shown(&plan), ["detach a 0", "attach 0 b"]);
    assert_eq!(placed(&plan, &key(ROOT, "a")), Some(&Placed::Nothing));
    assert!(plan.leftovers.is_empty());
}

#[test]
fn the_old_version_of_a_live_file_moves_along() {
    let names = vec![
        name(ROOT, "a", was(Ino(2)), None),
        name(ROOT, "b", was(Ino(3)), live(2)),
    ];
    let plan = plan(&delta(&[], names)).unwrap();
    assert_eq!(shown(&plan), ["detach a 0", "attach 0 b"]);
    let at_b = placed(&plan, &key(ROOT, "b"));
    assert_eq!(at_b, Some(&kept(2, key(ROOT, "a"))));
    assert_eq!(plan.left_behind[0].key, key(ROOT, "b"));
}

#[test]
fn a_leftover_is_never_moved_to_where_its_former_inode_goes() {
    // Inode 2 was once `a`, and an earlier batch left its old bytes there; now it moves from `b` to
    // `c`.
    let names = vec![
        name(ROOT, "a", was(NOBODY), live(3)),
        name(ROOT, "b", was(Ino(2)), None),
        name(ROOT, "c", None, same(2)),
    ];
    let plan = plan(&delta(&[], names)).unwrap();
    assert_eq!(shown(&plan), ["detach b 0", "attach 0 c"]);
    assert_eq!(plan.leftovers, [key(ROOT, "a")]);
}

#[test]
fn a_new_hard_link_is_a_copy_or_stays_behind() {
    let copy = Some(object(2));
    let with = vec![name(
        ROOT,
        "b",
        None,
        is(Ino(2), NewContent::Unchanged { copy }),
    )];
    let copied = plan(&delta(&[], with)).unwrap();
    assert_eq!(shown(&copied), ["install 0 b"]);
    let without = plan(&delta(&[], vec![name(ROOT, "b", None, same(2))])).unwrap();
    assert!(without.steps.is_empty());
    assert_eq!(without.left_behind[0].reason, LeftReason::NoSource);
}

#[test]
fn a_hard_link_that_goes_is_removed_and_the_others_stay() {
    let names = vec![
        name(ROOT, "a", was(Ino(2)), same(2)),
        name(ROOT, "b", was(Ino(2)), None),
    ];
    let plan = plan(&delta(&[], names)).unwrap();
    assert_eq!(shown(&plan), ["remove b"]);
    let at_a = placed(&plan, &key(ROOT, "a"));
    assert_eq!(at_a, Some(&kept(2, key(ROOT, "a"))));
}

#[test]
fn writing_through_one_of_three_links_brings_all_three() {
    let links = ["a", "b", "c"].map(|it| name(ROOT, it, was(Ino(2)), changed(2)));
    let plan = plan(&delta(&[], links.to_vec())).unwrap();
    assert_eq!(shown(&plan), ["install 0 a", "install 1 b", "install 2 c"]);
    assert!(!plan.steps.needs_barrier());
}

#[test]
fn replacing_one_of_three_links_brings_only_that_one() {
    let names = vec![name(ROOT, "b", was(Ino(2)), changed(3))];
    let plan = plan(&delta(&[], names)).unwrap();
    assert_eq!(shown(&plan), ["install 0 b"]);
    let slot = SlotNo(0);
    let at_b = placed(&plan, &key(ROOT, "b"));
    assert_eq!(at_b, Some(&Placed::Staged { ino: Ino(3), slot }));
}

#[test]
fn a_listed_directory_that_stays_takes_no_step() {
    let plan = plan(&delta(&[], vec![name(ROOT, "a", was(D1), dir(D1))])).unwrap();
    assert!(plan.steps.is_empty());
    assert_eq!(placed(&plan, &key(ROOT, "a")), Some(&Placed::Directory(D1)));
}

/// The same with hard links.
fn linked(mut delta: Delta) -> Plan {
    delta.hard_links = true;
    plan(&delta).unwrap()
}

fn node(ino: u64) -> New {
    is(Ino(ino), NewContent::Node(Node::Fifo))
}

#[test]
fn a_further_name_is_a_link_and_no_copy() {
    let names = vec![
        name(ROOT, "a", was(Ino(1)), same(1)),
        name(ROOT, "b", None, same(1)),
    ];
    let made = linked(delta(&[], names));
    assert_eq!(shown(&made), ["link a b"]);
    assert_eq!(
        placed(&made, &key(ROOT, "b")),
        Some(&kept(1, key(ROOT, "a")))
    );
    assert!(made.left_behind.is_empty());
}

#[test]
fn a_rewritten_file_is_one_file_again_under_all_its_names() {
    let names = vec![
        name(ROOT, "a", was(Ino(1)), changed(1)),
        name(D1, "b", was(Ino(1)), changed(1)),
        name(D1, "gone", was(Ino(1)), None),
        name(D1, "taken", was(Ino(2)), changed(1)),
    ];
    let made = linked(delta(&[(D1, "d", "d")], names));
    assert_eq!(
        shown(&made),
        [
            "remove d/gone",
            "install 0 a",
            "link a d/b",
            "link a d/taken"
        ]
    );
    let staged = Placed::Staged {
        ino: Ino(1),
        slot: SlotNo(0),
    };
    for at in [key(ROOT, "a"), key(D1, "b"), key(D1, "taken")] {
        assert_eq!(placed(&made, &at), Some(&staged));
    }
}

#[test]
fn a_file_that_moves_is_linked_from_where_it_goes() {
    let names = vec![
        name(ROOT, "a", was(Ino(1)), None),
        name(ROOT, "b", None, same(1)),
        name(ROOT, "c", None, same(1)),
    ];
    let made = linked(delta(&[], names));
    assert_eq!(shown(&made), ["detach a 0", "attach 0 b", "link b c"]);
    assert_eq!(
        placed(&made, &key(ROOT, "c")),
        Some(&kept(1, key(ROOT, "a")))
    );
}

#[test]
fn a_node_is_staged_once_moved_like_a_file_and_linked_like_one() {
    let names = vec![
        name(ROOT, "a", None, node(1)),
        name(ROOT, "b", None, node(1)),
        name(ROOT, "c", was(Ino(2)), None),
        name(ROOT, "d", None, node(2)),
        name(ROOT, "e", was(Ino(3)), node(3)),
    ];
    let made = linked(delta(&[], names.clone()));
    assert_eq!(
        shown(&made),
        ["detach c 0", "node 1 a", "attach 0 d", "link a b"]
    );
    let apart = plan(&delta(&[], names)).unwrap();
    assert_eq!(
        shown(&apart),
        ["detach c 0", "node 1 a", "node 2 b", "attach 0 d"]
    );
}

#[test]
fn a_file_that_is_being_written_gets_no_further_name_yet() {
    let names = vec![
        name(ROOT, "a", was(Ino(1)), live(1)),
        name(ROOT, "b", None, live(1)),
    ];
    let made = linked(delta(&[], names));
    assert!(made.steps.is_empty());
    assert_eq!(made.left_behind.len(), 2);
}
