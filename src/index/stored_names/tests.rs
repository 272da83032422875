use super::*;
use crate::core::{Capabilities, Timestamp};
use crate::index::{Index, Inode};

fn exfat() -> NameRules {
    NameRules::new(&Capabilities {
        forbidden: b":?".to_vec(),
        case_insensitive: true,
        utf8_only: true,
        max_utf16: Some(255),
        ..Capabilities::plain()
    })
}

fn posix() -> NameRules {
    NameRules::new(&Capabilities::everything())
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn open(dir: &tempfile::TempDir, rules: NameRules) -> Index {
    Index::open(&dir.path().join("index.db"), rules).unwrap()
}

fn file(state: &mut IndexWriter) -> Inode {
    let ino = state.new_ino().unwrap();
    let inode = Inode::new(ino, libc::S_IFREG | 0o644, 0, 0, Timestamp(0));
    state.put_inode(inode.clone());
    inode
}

/// Adds a name to the root; returns its stored name.
fn add(state: &mut IndexWriter, text: &str) -> Name {
    let inode = file(state);
    state.add_name(Ino::ROOT, &name(text), &inode).unwrap();
    state.stored_name(Ino::ROOT, &name(text)).unwrap().unwrap()
}

#[test]
fn a_name_keeps_its_spelling_when_siblings_come_and_go() {
    for rules in [exfat(), posix()] {
        let dir = tempfile::tempdir().unwrap();
        let index = open(&dir, rules.clone());
        let mut state = index.lock();
        assert_eq!(add(&mut state, "README"), name("README"));
        let other = add(&mut state, "readme");
        assert_eq!(other == name("readme"), rules.fold(&other).is_empty());
        let form = (add(&mut state, "\u{e9}"), add(&mut state, "E\u{301}"));
        assert_ne!(
            rules.fold(&form.0).is_empty(),
            rules.fold(&form.0) != rules.fold(&form.1)
        );
        state.remove_name(Ino::ROOT, &name("README")).unwrap();
        assert_eq!(
            state.stored_name(Ino::ROOT, &name("readme")).unwrap(),
            Some(other.clone())
        );
        // New names do not collide with earlier ones, nor the other way round.
        assert_eq!(add(&mut state, "ReadMe"), name("ReadMe"));
        assert_eq!(
            state.stored_name(Ino::ROOT, &name("readme")).unwrap(),
            Some(other)
        );
    }
}

#[test]
fn each_name_is_found_under_either_spelling_and_under_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(&dir, exfat());
    let mut state = index.lock();
    for text in ["plain", "a:b", "A:B", "\u{201b}", "Plain"] {
        let stored = add(&mut state, text);
        let ino = state.lookup(Ino::ROOT, &name(text)).unwrap();
        assert!(ino.is_some());
        assert_eq!(state.lookup_stored(Ino::ROOT, &stored).unwrap(), ino);
        let key = NameKey {
            parent: Ino::ROOT,
            name: stored.clone(),
        };
        assert_eq!(state.mount_name(&key).unwrap(), name(text));
        assert_eq!(state.key_path(&key).unwrap().unwrap().to_string(), text);
        if stored != name(text) {
            assert_eq!(state.lookup(Ino::ROOT, &stored).unwrap(), None);
            assert_eq!(state.lookup_stored(Ino::ROOT, &name(text)).unwrap(), None);
        }
        state.commit().unwrap();
        let snapshot = index_snapshot(&dir);
        let fold = exfat().fold(&stored);
        assert_eq!(snapshot.lookup(&key, &fold).unwrap(), ino);
        assert_eq!(snapshot.names_of(ino.unwrap()).unwrap(), [key]);
    }
}

fn index_snapshot(dir: &tempfile::TempDir) -> crate::index::Snapshot {
    let path = dir.path().join("index.db");
    crate::index::Snapshot::open(
        crate::index::connect(&path, rusqlite::OpenFlags::empty()).unwrap(),
    )
    .unwrap()
}

#[test]
fn no_look_up_of_a_name_grows_with_the_number_of_names() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(&dir, exfat());
    let state = index.lock();
    for sql in [TAKEN, TAKEN_BY_KEY, LOOK_UP_STORED] {
        let mut plan = state
            .conn
            .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))
            .unwrap();
        let steps: Vec<String> = plan
            .query_map(
                rusqlite::params_from_iter(vec!["x"; plan.parameter_count()]),
                |row| row.get(3),
            )
            .unwrap()
            .collect::<rusqlite::Result<_>>()
            .unwrap();
        let steps = steps.join("; ");
        assert!(!steps.contains("SCAN dirents"), "{sql}: {steps}");
        // Not by the directory alone.
        let by_parent_only = steps.split("; ").any(|step| step.ends_with("(parent=?)"));
        assert!(!by_parent_only, "{sql}: {steps}");
        assert_eq!(steps.matches("SEARCH dirents").count(), 2, "{sql}: {steps}");
    }
}

#[test]
fn what_is_marked_for_the_backend_is_the_stored_name() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(&dir, exfat());
    let mut state = index.lock();
    let stored = add(&mut state, "a:b");
    state.commit().unwrap();
    let marked = index_snapshot(&dir).dirty_names().unwrap();
    assert_eq!(marked.len(), 1);
    assert_eq!(marked[0].0.name, stored);
    // Nothing is on the backend yet, so nothing must be done.
    assert_eq!(state.remove_name(Ino::ROOT, &name("a:b")).unwrap(), stored);
    state.commit().unwrap();
    assert!(index_snapshot(&dir).dirty_names().unwrap().is_empty());
}

#[test]
fn what_is_found_on_the_backend_gets_a_name_whatever_stands_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(&dir, exfat());
    let mut state = index.lock();
    let mut shown = |stored: &str, exact: Option<&str>| {
        let inode = file(&mut state);
        let exact = exact.map(name);
        let found = state
            .mount_name_for(Ino::ROOT, &name(stored), exact.as_ref())
            .unwrap();
        state
            .add_clean_name(Ino::ROOT, &found, &name(stored), inode.ino)
            .unwrap();
        found.to_string()
    };
    assert_eq!(shown("a\u{ff1a}b", None), "a:b");
    assert_eq!(shown("plain", None), "plain");
    assert_eq!(
        shown("cut\u{201b}~deadbeef", Some("cut and whole")),
        "cut and whole"
    );
    assert_eq!(shown("cut\u{201b}~deadbee0", None), "cut\u{201b}~deadbee0");
    let taken = shown("foreign", Some("plain"));
    assert_eq!(taken, "foreign");
    let twice = shown("PLAIN2", Some("a:b"));
    assert_eq!(twice, "PLAIN2");
    let long = "\u{20ac}".repeat(255);
    let short = shown(&long, None);
    assert!(short.len() <= 255 && short.contains("\u{201b}~"));
    let again = shown(&format!("{long}x"), Some(&short));
    assert!(again.len() <= 255 && again != short);
    assert_eq!(shown("a:b", None).split('\u{201b}').next(), Some("a:b"));
}

#[test]
fn keys_follow_what_the_backend_is_found_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let texts = ["README", "readme", "a:b", "\u{e9}"];
    drop_state(open(&dir, posix()), &texts);
    for rules in [exfat(), posix(), exfat()] {
        let index = open(&dir, rules.clone());
        let mut state = index.lock();
        for text in texts {
            assert!(
                state.lookup(Ino::ROOT, &name(text)).unwrap().is_some(),
                "{text}"
            );
        }
        let fresh = add(&mut state, "ReAdMe");
        assert_eq!(fresh == name("ReAdMe"), rules.fold(&fresh).is_empty());
        state.remove_name(Ino::ROOT, &name("ReAdMe")).unwrap();
        state.commit().unwrap();
    }
}

fn drop_state(index: Index, texts: &[&str]) {
    let mut state = index.lock();
    for text in texts {
        add(&mut state, text);
    }
    state.commit().unwrap();
}

#[test]
fn two_names_that_are_stored_alike_are_found_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    {
        let index = open(&dir, exfat());
        let mut state = index.lock();
        let root = Inode::new(Ino::ROOT, libc::S_IFDIR | 0o755, 0, 0, Timestamp(0));
        state.put_inode(root);
        add(&mut state, "a\u{201b}b");
        add(&mut state, "c:d");
        state.commit().unwrap();
    }
    let path = dir.path().join("index.db");
    crate::index::check(&path, false).unwrap();
    let conn = crate::index::connect(&path, rusqlite::OpenFlags::empty()).unwrap();
    let same = "UPDATE dirents SET stored=(SELECT stored FROM dirents WHERE name=CAST('c:d' AS BLOB)) WHERE stored IS NOT NULL";
    conn.execute_batch(same).unwrap();
    drop(conn);
    let error = crate::index::check(&path, false).unwrap_err().to_string();
    assert!(error.contains("under one name"), "{error}");
}
