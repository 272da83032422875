//! Old versions: listed, restored and undone through the mount, on this machine and another one, or
//! copied by hand; and flushes that are held back.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::lab::{Backend, Done, Lab, assert_content, content, exit, text, write};

/// A lab whose mount keeps versions.
fn keeping(backend: Backend, more: &[&str]) -> Option<Lab> {
    let mut lab = Lab::new(backend)?;
    lab.mount(&[&["--versions"], more].concat());
    Some(lab)
}

fn on(lab: &Lab, command: &[&str], path: impl AsRef<Path>) -> Done {
    let path = text(&lab.m(path));
    lab.ferryfs(&[command, &[path.as_str()]].concat())
}

/// The directories of versions on the drive, oldest first.
fn kept(lab: &Lab) -> Vec<PathBuf> {
    let entries = fs::read_dir(lab.d(".ferryfs/versions")).expect("list the versions");
    let mut dirs: Vec<PathBuf> = (entries.flatten().map(|entry| entry.path()))
        .filter(|path| path.is_dir())
        .collect();
    dirs.sort();
    dirs
}

fn batch_of(report: &serde_json::Value) -> String {
    report["batch"].as_u64().expect("a batch").to_string()
}

#[test]
fn old_versions_come_back_with_mode_and_time_here_and_on_another_machine() {
    for backend in [Backend::EXFAT, Backend::Ext4Dir] {
        let Some(mut lab) = keeping(backend, &[]) else {
            continue;
        };
        let odd = "what?.txt";
        write(&lab.m("a"), &content(1, 50_000));
        write(&lab.m(odd), b"with a name that exFAT refuses");
        write(&lab.m("d/in/b"), b"deep");
        symlink("a", lab.m("link")).expect("symlink");
        fs::set_permissions(lab.m("a"), fs::Permissions::from_mode(0o640)).expect("chmod");
        let before = fs::metadata(lab.m("a")).expect("stat");
        lab.flush();
        assert!(!lab.d(".ferryfs/versions").exists());

        // As a crash just after it was made would leave it.
        fs::create_dir(lab.d(".ferryfs/versions")).expect("mkdir");
        write(&lab.m("a"), &content(2, 60_000));
        write(&lab.m(odd), b"new");
        fs::remove_dir_all(lab.m("d")).expect("rm -r");
        fs::remove_file(lab.m("link")).expect("rm");
        lab.flush();

        let versions = fs::metadata(lab.d(".ferryfs/versions")).expect("stat");
        assert!(backend == Backend::EXFAT || versions.mode() & 0o777 == 0o700);

        // By hand, without ferryfs.
        let [dir] = &kept(&lab)[..] else {
            panic!("{:?}", kept(&lab));
        };
        assert_content(dir.join("a"), content(1, 50_000));
        assert_content(dir.join("d/in/b"), b"deep");
        // Players do not see them: all of it is in our own hidden directory.
        assert!(!lab.m(".ferryfs").exists());

        let listed = on(&lab, &["versions", "--json"], "")
            .code(exit::DONE)
            .json();
        let listed = listed["versions"].as_array().expect("an array");
        let mut paths: Vec<&str> = listed
            .iter()
            .map(|it| it["path"].as_str().unwrap())
            .collect();
        paths.sort_unstable();
        assert_eq!(paths, ["a", "d", "d/in", "d/in/b", "link", odd]);
        let shown = on(&lab, &["versions"], "a").code(exit::DONE);
        assert!(shown.stdout.contains("replaced"), "{}", shown.stdout);

        on(&lab, &["restore"], "a").code(exit::DONE);
        assert_content(lab.m("a"), content(1, 50_000));
        let after = fs::metadata(lab.m("a")).expect("stat");
        assert_eq!(after.mode(), before.mode());
        assert_eq!(
            (after.mtime(), after.mtime_nsec()),
            (before.mtime(), before.mtime_nsec())
        );
        on(&lab, &["restore"], odd).code(exit::DONE);
        assert_content(lab.m(odd), b"with a name that exFAT refuses");

        // It is a change like any other, and what it has replaced is a version in turn.
        lab.flush();
        assert_eq!(kept(&lab).len(), 2);
        assert_content(kept(&lab)[1].join("a"), content(2, 60_000));

        lab.unmount();
        lab.take_new_cache();
        lab.mount(&["--versions"]);
        on(&lab, &["restore", "--deleted"], "").code(exit::DONE);
        assert_content(lab.m("d/in/b"), b"deep");
        assert_eq!(
            fs::read_link(lab.m("link")).expect("readlink"),
            Path::new("a")
        );
        let out = lab.root().join("out");
        let (to, first) = (text(&out), text(&lab.m("a")));
        let name = kept(&lab)[1]
            .file_name()
            .unwrap()
            .to_string_lossy()
            .into_owned();
        lab.ferryfs(&["restore", "--to", &to, &format!("{first}@{name}")])
            .code(exit::DONE);
        assert_content(out.join("a"), content(2, 60_000));
        lab.flush();
        lab.assert_drive_is_mount();
        lab.finish();
    }
}

#[test]
fn what_was_not_flushed_is_replaced_by_a_restore_only_if_forced() {
    let Some(lab) = keeping(Backend::Ext4Dir, &[]) else {
        return;
    };
    write(&lab.m("a"), b"one");
    lab.flush();
    write(&lab.m("a"), b"two two");
    lab.flush();
    write(&lab.m("a"), b"three three");
    let refused = on(&lab, &["restore"], "a").code(exit::LEFT_BEHIND);
    assert!(
        refused.stderr.contains("not flushed yet"),
        "{}",
        refused.stderr
    );
    assert_content(lab.m("a"), b"three three");
    on(&lab, &["restore", "--force"], "a").code(exit::DONE);
    assert_content(lab.m("a"), b"one");
    // The path of a version must not lead elsewhere.
    write(&lab.m("d/b"), b"inside");
    lab.flush();
    fs::remove_dir_all(lab.m("d")).expect("rm -r");
    lab.flush();
    let outside = lab.root().join("outside");
    fs::create_dir(&outside).expect("mkdir");
    symlink(&outside, lab.m("d")).expect("symlink");
    let refused = on(&lab, &["restore", "--deleted"], "").code(exit::LEFT_BEHIND);
    assert!(
        refused.stderr.contains("a symbolic link leads there"),
        "{}",
        refused.stderr
    );
    assert!(!outside.join("b").exists());
    on(&lab, &["restore"], "never was").refuses(exit::FAILED, "no old version");
    let nothing = on(&lab, &["versions"], "never was").code(exit::DONE);
    assert!(
        nothing.stdout.contains("no old versions"),
        "{}",
        nothing.stdout
    );
    lab.finish();
}

#[test]
fn a_batch_is_undone_after_it_was_shown_and_later_changes_stay() {
    for backend in [Backend::EXFAT, Backend::Ext4Dir] {
        let Some(lab) = keeping(backend, &[]) else {
            continue;
        };
        for path in ["a", "b", "m/x", "m/y", "d/e", "over", "under"] {
            write(&lab.m(path), format!("first {path}").as_bytes());
        }
        lab.flush();
        write(&lab.m("a"), b"second a, and longer");
        write(&lab.m("b"), b"second b, and longer");
        write(&lab.m("new/file"), b"new");
        fs::rename(lab.m("over"), lab.m("under")).expect("rename");
        write(&lab.m("later"), b"new, too");
        fs::remove_dir_all(lab.m("d")).expect("rm -r");
        fs::remove_file(lab.m("m/y")).expect("rm");
        fs::rename(lab.m("m"), lab.m("n")).expect("rename");
        write(&lab.m("n/x"), b"second x, and longer");
        let batch = batch_of(&lab.flush());
        // Since then:
        write(&lab.m("b"), b"third b, which is yet longer");
        write(&lab.m("later"), b"changed since");
        lab.flush();

        let mnt = text(&lab.mnt);
        let shown = lab.ferryfs(&["undo", &batch, &mnt]).code(exit::DONE);
        for line in ["restore  a\n", "remove   new/file\n", "move     n -> m\n"] {
            assert!(shown.stdout.contains(line), "{line:?}: {}", shown.stdout);
        }
        assert!(
            shown.stdout.contains("nothing was changed"),
            "{}",
            shown.stdout
        );
        assert_content(lab.m("a"), b"second a, and longer");

        let done = lab
            .ferryfs(&["undo", "--yes", &batch, &mnt])
            .code(exit::LEFT_BEHIND);
        for path in ["a", "m/x", "m/y", "d/e", "over", "under"] {
            assert_content(lab.m(path), format!("first {path}"));
        }
        assert!(!lab.m("new").exists() && !lab.m("n").exists());
        assert_content(lab.m("b"), b"third b, which is yet longer");
        assert_content(lab.m("later"), b"changed since");
        let lines: Vec<&str> = done.stderr.lines().collect();
        assert_eq!(lines.len(), 2, "{}", done.stderr);
        assert!(
            lines.iter().all(|line| line.contains("changed since")),
            "{}",
            done.stderr
        );
        let unknown = lab.ferryfs(&["undo", "999", &mnt]);
        unknown.refuses(exit::FAILED, "nothing is kept of batch 999");
        lab.flush();
        lab.assert_drive_is_mount();
        lab.finish();
    }
}

#[test]
fn an_undo_leaves_what_has_no_old_version_and_what_has_come_since() {
    let Some(lab) = keeping(Backend::Ext4Dir, &["--versions-exclude", "*.iso"]) else {
        return;
    };
    for path in ["a", "b", "x.iso", "over", "under", "gone.iso"] {
        write(&lab.m(path), format!("first {path}").as_bytes());
    }
    symlink("one", lab.m("link")).expect("symlink");
    lab.flush();
    for path in ["a", "b", "x.iso"] {
        write(&lab.m(path), format!("second {path}, longer").as_bytes());
    }
    fs::remove_file(lab.m("gone.iso")).expect("rm");
    fs::rename(lab.m("over"), lab.m("under")).expect("rename");
    fs::remove_file(lab.m("link")).expect("rm");
    symlink("two", lab.m("link")).expect("symlink");
    let batch = batch_of(&lab.flush());
    // Somebody has removed one version by hand, and the old name of the moved file is taken.
    fs::remove_file(kept(&lab)[0].join("b")).expect("rm");
    write(&lab.m("over"), b"another one");

    let mnt = text(&lab.mnt);
    let shown = lab.ferryfs(&["undo", &batch, &mnt]).code(exit::DONE);
    assert!(
        shown.stdout.contains("leave    x.iso: its old version"),
        "{}",
        shown.stdout
    );
    let done = lab
        .ferryfs(&["undo", "--yes", &batch, &mnt])
        .code(exit::LEFT_BEHIND);
    for line in [
        "not restored: x.iso: its old version is not kept",
        "not restored: b: its old version is not kept",
        "not restored: gone.iso: its old version is not kept",
        "move     under -> over: something else has its old name",
        "restore  under: what has its name now was not moved back",
    ] {
        assert!(done.stderr.contains(line), "{line}: {}", done.stderr);
    }
    assert_eq!(done.stderr.lines().count(), 5, "{}", done.stderr);
    assert_content(lab.m("a"), b"first a");
    assert_content(lab.m("b"), b"second b, longer");
    assert_content(lab.m("x.iso"), b"second x.iso, longer");
    assert_content(lab.m("under"), b"first over");
    assert_content(lab.m("over"), b"another one");
    let target = fs::read_link(lab.m("link")).expect("readlink");
    assert_eq!(target, Path::new("one"));
    // Excluded files have no versions to list or restore.
    let none = on(&lab, &["versions"], "x.iso").code(exit::DONE);
    assert!(none.stdout.contains("no old versions"), "{}", none.stdout);
    on(&lab, &["restore"], "gone.iso").refuses(exit::FAILED, "no old version");
    lab.finish();
}

#[test]
fn a_flush_that_removes_most_files_is_held_until_it_is_released() {
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    lab.mount(&["--hold-if", "more than 50% of files removed or rewritten"]);
    for n in 0..40 {
        write(&lab.m(format!("d/{n}")), &content(n, 100));
    }
    lab.flush();
    for n in 0..20 {
        fs::remove_file(lab.m(format!("d/{n}"))).expect("rm");
    }
    // Half of them is not more than half.
    lab.flush();
    for n in 20..40 {
        write(&lab.m(format!("d/{n}")), b"encrypted");
    }
    write(&lab.m("fresh"), b"fresh");
    let flush = ["flush".to_owned(), text(&lab.mnt)];
    lab.ferryfs(&flush).refuses(exit::FAILED, "held back");
    assert_content(lab.d("d/30"), content(30, 100));
    assert!(!lab.d("fresh").exists());
    let status = lab.status();
    let named = status["last_error"].as_str().expect("an error");
    assert!(named.contains("rewrite 20 of the 20 files"), "{named}");
    lab.ferryfs(&["flush", "--release", &text(&lab.mnt)])
        .code(exit::DONE);
    assert_content(lab.d("d/30"), b"encrypted");
    lab.assert_drive_is_mount();
    lab.finish();
}
