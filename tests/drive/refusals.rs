//! Names that a real drive refuses, and somebody else at work on it while a large file is carried:
//! one refused name keeps only itself from the drive and is named as the mount spells it; whatever
//! was in the way goes with the next flush.

use crate::{lab, on_both_drives};

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::lab::{
    Backend, Done, Lab, Tree, assert_content, content, exit, has, sh, skip, wait_until, write,
};
use serde_json::Value;

/// Paths marked immutable; whatever happens they are let go, or nobody could remove them.
#[derive(Default)]
struct Immutable(Vec<PathBuf>);

impl Immutable {
    fn mark(&mut self, path: PathBuf) {
        self.mark_as("+i", path);
    }

    fn mark_as(&mut self, flag: &str, path: PathBuf) {
        let done = lab::run(Command::new("chattr").arg(flag).arg(&path));
        assert_eq!(done.code, 0, "{}", done.stderr);
        self.0.push(path);
    }

    /// Those of a case, whose names below `dir` have a `+` before them if they are only to be
    /// append-only.
    fn mark_all(&mut self, dir: &Path, locked: &[&str]) {
        for name in locked {
            match name.strip_prefix('+') {
                Some(name) => self.mark_as("+a", dir.join(name)),
                None => self.mark(dir.join(name)),
            }
        }
    }

    /// They may have been moved along with their directories.
    fn release(&mut self, root: &Path) {
        if !self.0.is_empty() {
            let all = lab::run(Command::new("chattr").args(["-R", "-i", "-a"]).arg(root));
            assert_eq!(all.code, 0, "{}", all.stderr);
            self.0.clear();
        }
    }
}

/// Releases what is marked below a directory at the end of a test, also of one that failed.
struct Guard<'a>(&'a Path, Immutable);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let _ = Command::new("chattr")
            .args(["-R", "-f", "-i", "-a"])
            .arg(self.0)
            .output();
    }
}

/// A lab of root's on a file system that knows immutable files.
fn lab_with_chattr() -> Option<Lab> {
    if !nix::unistd::geteuid().is_root() || !has("chattr") {
        skip("immutable files need root and chattr");
        return None;
    }
    let lab = Lab::mounted(Backend::Ext4Dir)?;
    // Not in the drive: the mount would find it there.
    let probe = lab.root().join("probe");
    fs::write(&probe, b"x").expect("write");
    let marked = lab::run(Command::new("chattr").arg("+i").arg(&probe));
    let _ = lab::run(Command::new("chattr").arg("-i").arg(&probe));
    fs::remove_file(&probe).expect("remove");
    if marked.code != 0 {
        skip("the file system of temporary files knows no immutable files");
        return None;
    }
    Some(lab)
}

/// One change of the mount that the drive refuses in part.
struct Refused {
    before: &'static str,
    locked: &'static [&'static str],
    change: &'static str,
    /// Every name that may be told, a directory for its own time among them; empty where the drive
    /// takes it all.
    names: &'static [&'static str],
}

const fn refused(
    before: &'static str,
    locked: &'static [&'static str],
    change: &'static str,
    names: &'static [&'static str],
) -> Refused {
    Refused {
        before,
        locked,
        change,
        names,
    }
}

const CASES: &[Refused] = &[
    refused("echo 1 >f", &["f"], "echo 22 >f", &["f"]),
    refused("echo 1 >f", &["f"], "mv f g", &["f", "g"]),
    refused("echo 1 >f", &["f"], "rm f", &["f"]),
    refused("echo 1 >f; echo 2 >g", &["f"], "mv g f", &["f", "g"]),
    refused("mkdir d; echo 1 >d/f", &["d/f"], "mv d e", &[]),
    refused(
        "mkdir d; echo 1 >d/f",
        &["d/f"],
        "mv d e; echo 22 >e/f",
        &["e/f"],
    ),
    refused(
        "mkdir d; echo 1 >d/f; echo 1 >d/g",
        &["d/f"],
        "rm -r d",
        &["d", "d/f"],
    ),
    refused(
        "mkdir d; echo 1 >d/f",
        &["d"],
        "echo 22 >d/new",
        &["d", "d/new"],
    ),
    refused(
        "mkdir d; echo 1 >d/f",
        &["d"],
        "mv d/f f",
        &["d", "d/f", "f"],
    ),
    refused(
        "mkdir d; echo 1 >d/f",
        &["d"],
        "mkdir d/e; echo 1 >d/e/f",
        &["d", "d/e", "d/e/f"],
    ),
    refused("mkdir d; echo 1 >d/f", &["d"], "mv d e", &["d", "e"]),
    refused(
        "mkdir d; echo 1 >d/f",
        &["d"],
        "mv d e; echo 22 >e/f",
        &["d", "e", "e/f", "d/f"],
    ),
    refused("mkdir d", &["d"], "rmdir d", &["d"]),
    refused(
        "echo 1 >f; echo 22 >g",
        &["f"],
        "mv f x; mv g f; mv x g",
        &["f", "g"],
    ),
    refused(
        "echo 1 >a; echo 22 >b; echo 333 >c",
        &["b"],
        "mv b c; mv a b",
        &["a", "b", "c"],
    ),
    refused(
        "mkdir -p d/e/g; echo 1 >d/e/f; echo 1 >d/e/g/h; echo 1 >d/i",
        &["d/e/f"],
        "mv d n; echo 22 >n/i; mv n/e/g n/g; rm n/e/f; rmdir n/e",
        &["n/e", "n/e/f", "d/e", "d/e/f"],
    ),
    refused(
        "mkdir a b; echo 1 >a/x; ln a/x b/x",
        &["b"],
        "echo 22 >>a/x; ln a/x b/y",
        &["a/x", "b", "b/x", "b/y"],
    ),
    refused(
        "ln -s f l; echo 1 >f",
        &["f"],
        "rm l; mkdir l; echo 1 >l/f; echo 22 >f",
        &["f"],
    ),
    refused(
        "mkdir d; echo 1 >d/f",
        &["d/f"],
        "rm -r d; echo 22 >d",
        &["d", "d/f"],
    ),
    refused(
        "echo 1 >f",
        &["f"],
        "rm f; mkdir f; echo 22 >f/g",
        &["f", "f/g"],
    ),
    refused(
        "echo 1 >a; mkdir d; ln a d/d",
        &["+d"],
        "ln d/d d/c; echo 22 >d/c",
        &["d", "d/d"],
    ),
    refused("echo 1 >e; echo 22 >c", &["e"], "rm e; ln c e", &["e"]),
    refused(
        "echo 1 >e; ln e f; echo 22 >c",
        &["e"],
        "rm e; ln c e; rm f",
        &["e", "f"],
    ),
    refused(
        "mkdir -p p/a c/a; echo 1 >c/x",
        &["p"],
        "mv -T c p/a; mv p/a/a p/a/d",
        &["p", "p/a", "p/a/d"],
    ),
    refused(
        "mkdir e f; echo 1 >f/x",
        &["e"],
        "mv f e/f; mkdir f",
        &["e", "e/f"],
    ),
    refused("echo 1 >f", &["f"], "chmod 640 f", &["f"]),
    refused(
        "mkdir -p d/a/b d/e/b f; echo 1 >d/a/b/x",
        &["f"],
        "mv d/a/b f/c; mv -T d/e d/a",
        &["f", "f/c"],
    ),
];

/// All names in a directory and below.
fn names_in(dir: &Path) -> String {
    sh(dir, "find . | sort | tr '\\n' ' '").stdout
}

fn named(done: &Done) -> Vec<String> {
    let report = done.json();
    let list = report["left_behind"].as_array();
    let list = list.unwrap_or_else(|| panic!("no left_behind in {report}"));
    let path = |item: &Value| {
        item["path"]
            .as_str()
            .expect("path")
            .trim_start_matches('/')
            .to_owned()
    };
    list.iter().map(path).collect()
}

/// Nothing of a batch is left on the drive.
#[track_caller]
fn assert_tidy(lab: &Lab) {
    for dir in [
        ".ferryfs/staging",
        ".ferryfs/batches",
        ".ferryfs/lost+found",
    ] {
        let left: Vec<PathBuf> = match fs::read_dir(lab.d(dir)) {
            Ok(entries) => entries.map(|entry| entry.expect("entry").path()).collect(),
            Err(_) => Vec::new(),
        };
        assert!(left.is_empty(), "{left:?}");
    }
}

fn spelled(number: usize, names: &[&str]) -> Vec<String> {
    names
        .iter()
        .map(|name| format!("c{number}/{name}"))
        .collect()
}

/// Everything is on the drive after the reason is gone.
#[track_caller]
fn all_follows(lab: &Lab) {
    lab.flush();
    lab.assert_drive_is_mount();
    assert_tidy(lab);
}

#[test]
fn an_immutable_name_keeps_only_itself_from_the_drive() {
    let Some(lab) = lab_with_chattr() else {
        return;
    };
    let drive = lab.d("");
    let mut guard = Guard(&drive, Immutable::default());
    fs::write(lab.d("film"), b"only on the drive").expect("write");
    lab.ferryfs(&["refresh", lab.mnt.to_str().expect("a path")])
        .ok();
    let mut wrong = Vec::new();
    for (number, case) in CASES.iter().enumerate() {
        let dir = lab.m(format!("c{number}"));
        fs::create_dir(&dir).expect("mkdir");
        sh(&dir, case.before).ok();
        lab.flush();
        guard.1.mark_all(&lab.d(format!("c{number}")), case.locked);
        sh(&dir, case.change).ok();
        let changed = names_in(&dir);
        write(
            &lab.m(format!("other{number}")),
            &content(number as u64, 5000),
        );
        let done = lab.ferryfs(&["flush", "--json", lab.mnt.to_str().expect("a path")]);
        let wanted = if case.names.is_empty() {
            exit::DONE
        } else {
            exit::LEFT_BEHIND
        };
        if done.code != wanted {
            wrong.push(format!(
                "{}: exit {}: {} {}",
                case.change, done.code, done.stdout, done.stderr
            ));
        } else {
            let allowed = spelled(number, case.names);
            let told = named(&done);
            if told.iter().any(|name| !allowed.contains(name)) {
                wrong.push(format!("{}: names {told:?}", case.change));
            }
        }
        if fs::read(lab.d(format!("other{number}"))).ok() != Some(content(number as u64, 5000)) {
            wrong.push(format!("{}: the rest is not on the drive", case.change));
        }
        assert_content(lab.m("film"), b"only on the drive");
        // Again while it is refused.
        let again = lab.ferryfs(&["flush", lab.mnt.to_str().expect("a path")]);
        if again.code != wanted {
            wrong.push(format!("{}: again exit {}", case.change, again.code));
        }
        if names_in(&dir) != changed {
            wrong.push(format!(
                "{}: the mount has {} instead of {changed}",
                case.change,
                names_in(&dir)
            ));
        }
        guard.1.release(&drive);
        let done = lab.ferryfs(&[
            "flush",
            "--verify",
            "--json",
            lab.mnt.to_str().expect("a path"),
        ]);
        if done.code != 0 {
            wrong.push(format!(
                "{}: afterwards {} {}",
                case.change, done.stdout, done.stderr
            ));
        }
        let (there, here) = (Tree::read(&lab.d(format!("c{number}"))), Tree::read(&dir));
        if names_in(&dir) != changed {
            wrong.push(format!(
                "{}: afterwards the mount has {} instead of {changed}",
                case.change,
                names_in(&dir)
            ));
        }
        if there != here {
            wrong.push(format!(
                "{}: the drive {there:?}, the mount {here:?}",
                case.change
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    all_follows(&lab);
    lab.finish();
}

/// An immutable file in a mount with a change of its attributes.
#[test]
fn attributes_that_the_drive_refuses_wait_and_are_described_until_it_takes_them() {
    let Some(mut lab) = lab_with_chattr() else {
        return;
    };
    let drive = lab.d("");
    let mount = lab.mnt.clone();
    let mount = mount.to_str().expect("a path");
    let mut guard = Guard(&drive, Immutable::default());
    write(&lab.m("f"), b"secret");
    lab.flush();
    guard.1.mark(lab.d("f"));
    sh(&lab.mnt, "chmod 600 f; setfattr -n user.k -v 1 f").ok();
    for _ in 0..3 {
        let done = lab.ferryfs(&["flush", "--json", mount]);
        assert_eq!(done.code, exit::LEFT_BEHIND, "{}", done.stdout);
        assert_eq!(named(&done), ["f"]);
    }
    let status = lab.ferryfs(&["status", "--json", mount]).json();
    assert_eq!(status["safe_to_unplug"], false, "{status}");
    // Another machine has them from the catalog.
    let attributes = "stat -c %a f; getfattr --only-values -n user.k f";
    lab.unmount_with(&["--no-flush"]);
    let own = lab.cache.clone();
    lab.take_new_cache();
    lab.mount(&[]);
    assert_eq!(sh(&lab.mnt, attributes).stdout, "600\n1");
    lab.unmount_with(&["--no-flush"]);
    lab.cache = own;
    lab.mount(&[]);
    guard.1.release(&drive);
    all_follows(&lab);
    assert_eq!(sh(&drive, attributes).stdout, "600\n1");
    let done = lab.ferryfs(&["flush", "--json", mount]).ok();
    assert_eq!(done.json()["batch"], Value::Null);
    lab.finish();
}

#[test]
fn what_could_neither_be_moved_nor_put_back_is_named_with_its_place_and_goes_on_when_it_can() {
    let Some(lab) = lab_with_chattr() else {
        return;
    };
    let drive = lab.d("");
    let mount = lab.mnt.to_str().expect("a path");
    let mut guard = Guard(&drive, Immutable::default());
    sh(&lab.mnt, "mkdir e f; echo photos >f/photos").ok();
    lab.flush();
    guard.1.mark(lab.d("e"));
    sh(&lab.mnt, "mv f e/f; mkdir f").ok();
    for _ in 0..2 {
        let done = lab.ferryfs(&["flush", mount]).code(exit::LEFT_BEHIND);
        let status = lab.ferryfs(&["status", mount]).stdout;
        let parked = fs::read_dir(&drive).expect("list");
        let mut parked = parked.map(|entry| entry.expect("entry").file_name());
        let parked = parked
            .find(|name| name.as_encoded_bytes().starts_with(b"ferryfs-"))
            .expect("it is at the root");
        let parked = parked.to_str().expect("text");
        for text in [&done.stdout, &status] {
            assert!(text.contains(parked) && text.contains("e/f"), "{text}");
        }
        assert_content(lab.d(format!("{parked}/photos")), b"photos\n");
        assert_content(lab.m("e/f/photos"), b"photos\n");
    }
    guard.1.release(&drive);
    all_follows(&lab);
    assert_content(lab.d("e/f/photos"), b"photos\n");
    lab.finish();
}

#[test]
fn a_daemon_that_is_killed_amid_refusals_finishes_the_batch_without_them() {
    let Some(mut lab) = lab_with_chattr() else {
        return;
    };
    let drive = lab.d("");
    let mut guard = Guard(&drive, Immutable::default());
    for turn in 0..4_u64 {
        for (number, case) in CASES.iter().enumerate() {
            let dir = lab.m(format!("c{number}"));
            fs::create_dir(&dir).expect("mkdir");
            sh(&dir, case.before).ok();
        }
        lab.flush();
        for (number, case) in CASES.iter().enumerate() {
            guard.1.mark_all(&lab.d(format!("c{number}")), case.locked);
            sh(&lab.m(format!("c{number}")), case.change).ok();
        }
        write(&lab.m("other"), &content(turn, 300_000));
        let before = Tree::read(&lab.mnt);
        let mut flush = lab
            .command(&["flush", lab.mnt.to_str().expect("a path")])
            .spawn()
            .expect("start a flush");
        // Later in each turn; any moment is a good one.
        thread::sleep(Duration::from_millis(40 * turn));
        lab.kill9();
        flush.wait().expect("wait");
        lab.remount();
        Tree::read(&lab.mnt).assert_same(&before, "the mount", "what was in it");
        let done = lab.ferryfs(&[
            "flush",
            "--json",
            "--include-interrupted",
            lab.mnt.to_str().expect("a path"),
        ]);
        assert_eq!(
            done.code,
            exit::LEFT_BEHIND,
            "{} {}",
            done.stdout,
            done.stderr
        );
        assert_content(lab.d("other"), content(turn, 300_000));
        // The way out works meanwhile.
        lab.ferryfs(&["eject", lab.mnt.to_str().expect("a path")])
            .code(exit::LEFT_BEHIND);
        lab.ferryfs(&[
            "attach",
            drive.to_str().expect("a path"),
            lab.mnt.to_str().expect("a path"),
        ])
        .ok();
        guard.1.release(&drive);
        // A kill while a refused link is taken back may leave one more name of its file, which
        // nobody can tell from a user's file any more: it is kept.
        sh(&lab.d(""), "rm -f .ferryfs/lost+found/*-sffff*").ok();
        all_follows(&lab);
        sh(&lab.mnt, "rm -rf c*").ok();
        all_follows(&lab);
    }
    lab.finish();
}

/// A tmpfs inside the drive, taken away at the end of the test.
struct Nested(PathBuf);

impl Nested {
    fn mount(at: PathBuf, options: &str) -> Nested {
        fs::create_dir_all(&at).expect("mkdir");
        let done = lab::run(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", options, "none"])
                .arg(&at),
        );
        assert_eq!(done.code, 0, "{}", done.stderr);
        Nested(at)
    }

    /// Shows the directory `of`, whose contents outlive the mount, as a disk's do.
    fn bind(of: &Path, at: PathBuf) -> Nested {
        fs::create_dir_all(of).expect("mkdir");
        fs::create_dir_all(&at).expect("mkdir");
        let done = lab::run(Command::new("mount").arg("--bind").arg(of).arg(&at));
        assert_eq!(done.code, 0, "{}", done.stderr);
        Nested(at)
    }

    fn remount(&self, options: &str) {
        lab::run(
            Command::new("mount")
                .args(["-o", &format!("remount,{options}")])
                .arg(&self.0),
        )
        .ok();
    }
}

impl Drop for Nested {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn files_and_links_travel_to_and_from_a_file_system_inside_the_drive_and_leave_nothing() {
    if !nix::unistd::geteuid().is_root() {
        return skip("mounting a tmpfs needs root");
    }
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    let nested = Nested::mount(lab.d("media"), "size=8m");
    lab.mount(&[]);
    sh(&lab.mnt, "echo film >media/film; echo a >a; ln -s a l; echo b >b; mkdir -p d media/e; echo 1 >d/f; echo 2 >media/e/f").ok();
    lab.flush();
    // With a directory that is moved the batch has a mark; with a swap as well.
    sh(&lab.mnt, "mv media/film film; mv a media/a; mv l media/l; echo new >media/new; echo bb >b; mv d dd; echo 22 >media/e/f; mv film media/film2; echo anew >film").ok();
    lab.flush();
    lab.assert_drive_is_mount();
    assert_tidy(&lab);
    sh(
        &lab.mnt,
        "mv media/a x; mv b media/a; mv x b; mv dd d; rm media/l",
    )
    .ok();
    lab.flush();
    lab.assert_drive_is_mount();
    assert_tidy(&lab);

    // A directory is copied, and the old one removed.
    sh(&lab.mnt, "mv d media/d; echo more >more").ok();
    lab.flush();
    lab.assert_drive_is_mount();
    assert_tidy(&lab);
    assert!(!lab.d("d").exists());

    // Full: what does not fit stays in the cache, the rest goes.
    write(&lab.m("big"), &content(7, 9_000_000));
    lab.flush();
    sh(&lab.mnt, "mv big media/big; echo evenmore >more").ok();
    lab.ferryfs(&["flush", "--json", lab.mnt.to_str().expect("a path")])
        .code(exit::LEFT_BEHIND);
    assert_content(lab.d("more"), b"evenmore\n");
    assert_content(lab.m("media/big"), content(7, 9_000_000));
    nested.remount("size=32m");
    all_follows(&lab);

    nested.remount("ro");
    sh(
        &lab.mnt,
        "echo 3 >media/new; rm media/film2; mv media/a a; echo last >more",
    )
    .ok();
    lab.ferryfs(&["flush", "--json", lab.mnt.to_str().expect("a path")])
        .code(exit::LEFT_BEHIND);
    assert_content(lab.d("more"), b"last\n");
    nested.remount("rw");
    all_follows(&lab);
    lab.unmount();
    drop(nested);
    lab.finish();
}

#[test]
fn a_top_directory_that_cannot_be_changed_keeps_no_mount_from_coming_up() {
    let Some(mut lab) = lab_with_chattr() else {
        return;
    };
    let drive = lab.d("");
    let mut guard = Guard(&drive, Immutable::default());
    sh(&lab.mnt, "mkdir sub; echo a >sub/a").ok();
    lab.flush();
    guard.1.mark(lab.d(""));
    sh(&lab.mnt, "echo n >n; echo v >sub/v").ok();
    let done = lab.ferryfs(&["flush", lab.mnt.to_str().expect("a path")]);
    let done = done.code(exit::LEFT_BEHIND);
    assert!(!done.stdout.contains("  : "), "{}", done.stdout);
    assert_content(lab.d("sub/v"), b"v\n");
    let (place, mnt) = (lab::text(lab.drive.path()), lab::text(&lab.mnt));
    lab.ferryfs(&["eject", &mnt]).code(exit::LEFT_BEHIND);
    let done = lab.ferryfs(&["attach", &place, &mnt]).code(exit::DONE);
    lab.unmount_with(&["--no-flush"]);
    lab.mount(&[]);
    assert_content(lab.m("n"), b"n\n");
    let warnings = lab.status()["warnings"].to_string();
    assert!(warnings.contains("top directory"), "{warnings}");
    assert!(done.stdout.contains("top directory"), "{}", done.stdout);
    guard.1.release(&drive);
    all_follows(&lab);
    drop(guard);
    lab.finish();
}

/// A lab with a second file system at `p/m` inside the drive, that the mount knows.
fn lab_with_a_known_mount_point() -> Option<(Lab, Nested, PathBuf)> {
    if !nix::unistd::geteuid().is_root() {
        skip("mounting needs root");
        return None;
    }
    let mut lab = Lab::new(Backend::Ext4Dir)?;
    let disk = lab.root().join("disk");
    let nested = Nested::bind(&disk, lab.d("p/m"));
    fs::write(disk.join("film"), b"film").expect("write");
    lab.mount(&[]);
    assert_content(lab.m("p/m/film"), b"film");
    sh(&lab.mnt, "echo a >p/m/a; mkdir p/m/d; echo b >p/m/d/b").ok();
    lab.flush();
    assert_content(disk.join("d/b"), b"b\n");
    Some((lab, nested, disk))
}

#[test]
fn nothing_is_concluded_from_a_mount_point_without_its_file_system_nor_written_into_it() {
    for (remounts, removes) in [(false, false), (true, false), (false, true), (true, true)] {
        let Some((mut lab, nested, disk)) = lab_with_a_known_mount_point() else {
            return;
        };
        let names = |lab: &Lab| sh(&lab.mnt, "find . | sort").ok().stdout;
        let known = names(&lab);
        drop(nested);
        if removes {
            // As automounters do.
            fs::remove_dir(lab.d("p/m")).expect("rmdir");
        }
        if remounts {
            lab.unmount_with(&["--no-flush"]);
            lab.mount(&[]);
        }
        lab.ferryfs(&["refresh", lab.mnt.to_str().expect("a path")]);
        assert_eq!(names(&lab), known, "something was concluded");
        if remounts {
            // Else the kernel may have its bytes.
            let unread = fs::read(lab.m("p/m/film")).expect_err("it is on the other disk");
            assert_eq!(unread.raw_os_error(), Some(libc::ENOMEDIUM));
        }
        sh(&lab.mnt, "echo new >p/m/new; echo aa >p/m/a; rm p/m/d/b; mkdir p/m/e; echo f >p/m/e/f; mv p q; echo o >o").ok();
        let wanted = names(&lab);
        let done = lab.ferryfs(&["flush", "--json", lab.mnt.to_str().expect("a path")]);
        assert_eq!(done.code, exit::LEFT_BEHIND, "{}", done.stdout);
        assert!(
            named(&done).contains(&"q/m/new".to_owned()),
            "{}",
            done.stdout
        );
        assert!(done.stdout.contains("not mounted"), "{}", done.stdout);
        assert_content(lab.d("o"), b"o\n");
        let below = fs::read_dir(lab.d("q/m")).map_or(0, Iterator::count);
        assert_eq!(below, 0, "written below the mount point");
        let warnings = lab.status()["warnings"].to_string();
        assert!(warnings.contains("q/m: "), "{warnings}");
        lab.ferryfs(&["refresh", lab.mnt.to_str().expect("a path")]);
        assert_eq!(names(&lab), wanted, "something was concluded");
        let nested = Nested::bind(&disk, lab.d("q/m"));
        all_follows(&lab);
        assert_content(disk.join("new"), b"new\n");
        assert_content(lab.m("q/m/film"), b"film");
        assert_eq!(names(&lab), wanted);
        assert_eq!(lab.status()["warnings"], serde_json::json!([]));
        lab.unmount();
        drop(nested);
        lab.finish();
    }
}

#[test]
fn a_mount_point_whose_file_system_is_gone_for_good_is_let_go_by_removing_it_in_the_mount() {
    let Some((lab, nested, disk)) = lab_with_a_known_mount_point() else {
        return;
    };
    drop(nested);
    sh(&lab.mnt, "echo new >p/m/new").ok();
    lab.ferryfs(&["flush", lab.mnt.to_str().expect("a path")])
        .code(exit::LEFT_BEHIND);
    sh(&lab.mnt, "rm -r p/m").ok();
    all_follows(&lab);
    assert!(!lab.d("p/m").exists());
    sh(&lab.mnt, "mkdir p/m; echo other >p/m/other").ok();
    all_follows(&lab);
    assert_content(disk.join("film"), b"film");
    assert_content(disk.join("a"), b"a\n");
    lab.finish();
}

#[test]
fn a_refused_move_says_where_the_directory_is_and_ends_when_it_may() {
    let Some(lab) = lab_with_chattr() else {
        return;
    };
    let drive = lab.d("");
    let mut guard = Guard(&drive, Immutable::default());
    sh(&lab.mnt, "mkdir e f; echo photos >f/photos").ok();
    lab.flush();
    guard.1.mark(lab.d("e"));
    sh(&lab.mnt, "mv f e/f; mkdir f; echo other >f/other").ok();
    for _ in 0..2 {
        let done = lab.ferryfs(&["flush", "--json", lab.mnt.to_str().expect("a path")]);
        assert_eq!(done.code, exit::LEFT_BEHIND, "{}", done.stdout);
        let parked = fs::read_dir(&drive)
            .expect("list")
            .map(|entry| entry.expect("entry").path())
            .find(|path| path.join("photos").exists())
            .expect("the directory is somewhere");
        let name = parked.file_name().expect("name").to_str().expect("text");
        let report = done.json();
        let list = report["left_behind"].as_array().expect("a list");
        let item = list.iter().find(|item| item["path"] == "e/f");
        let reason = item.expect("it is named")["reason"].to_string();
        assert!(
            reason.contains(&format!("it is at {name}")),
            "{name}: {reason}"
        );
        let status = lab.status()["last_flush"].to_string();
        assert!(status.contains(name), "{status}");
        assert_content(lab.m("e/f/photos"), b"photos\n");
    }
    guard.1.release(&drive);
    all_follows(&lab);
    lab.finish();
}

#[test]
fn directories_travel_to_and_from_a_file_system_inside_the_drive_with_all_that_is_in_them() {
    if !nix::unistd::geteuid().is_root() {
        return skip("mounting a tmpfs needs root");
    }
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    let nested = Nested::mount(lab.d("media"), "size=8m");
    sh(&lab.d("media"), "mkdir -p series/s1/e1 series/s2; head -c 3000000 /dev/urandom >series/s1/film; echo 1 >series/s1/e1/f; ln series/s1/e1/f series/s2/again; ln -s ../s1 series/s2/link; mkfifo series/pipe; chmod 600 series/s1/e1/f; chmod 710 series/s2; touch -d 2001-02-03 series/s1").ok();
    lab.mount(&[]);
    // Nobody has looked into it: all of it is only on the drive.
    sh(&lab.mnt, "mv media/series series").ok();
    lab.flush();
    lab.assert_drive_is_mount();
    assert_tidy(&lab);
    assert!(!lab.d("media/series").exists());
    let mode = sh(
        &lab.d(""),
        "stat -c %a series/s1/e1/f series/s2; stat -c %h series/s1/e1/f",
    )
    .ok();
    assert_eq!(mode.stdout, "600\n710\n2\n");

    // With changes in it, and something new under its old name; one file is being written.
    let mut open = fs::OpenOptions::new();
    let mut log = open
        .append(true)
        .open(lab.m("series/s1/e1/f"))
        .expect("open");
    log.write_all(b"2\n").expect("write");
    sh(&lab.mnt, "mv series media/back; echo new >media/back/new; rm media/back/pipe; mv media/back/s1/film film; mkdir series; echo x >series/s1").ok();
    let mnt = lab::text(&lab.mnt);
    let done = lab.ferryfs(&["flush", "--json", "--wait-closed", &mnt]);
    assert_eq!(
        done.code,
        exit::LEFT_BEHIND,
        "{} {}",
        done.stdout,
        done.stderr
    );
    let being_written = ["media/back/s1/e1/f", "media/back/s2/again"];
    for name in named(&done) {
        assert!(being_written.contains(&name.as_str()), "{name}");
    }
    assert_content(lab.d("media/back/new"), b"new\n");
    assert_content(lab.d("series/s1"), b"x\n");
    drop(log);
    all_follows(&lab);
    assert_content(lab.d("media/back/s1/e1/f"), b"1\n2\n");

    // Full: it stays where it was, whole, until there is space.
    sh(&lab.mnt, "rm -r series; mkdir big; head -c 5000000 /dev/urandom >big/1; head -c 5000000 /dev/urandom >big/2").ok();
    lab.flush();
    let before = Tree::read(&lab.mnt);
    sh(&lab.mnt, "mv big media/big; echo more >more").ok();
    for _ in 0..2 {
        let done = lab.ferryfs(&["flush", "--json", lab.mnt.to_str().expect("a path")]);
        assert_eq!(
            done.code,
            exit::LEFT_BEHIND,
            "{} {}",
            done.stdout,
            done.stderr
        );
        assert_content(lab.d("more"), b"more\n");
        assert!(lab.d("big/1").exists() && lab.d("big/2").exists());
        assert_tidy(&lab);
    }
    nested.remount("size=32m");
    all_follows(&lab);
    sh(&lab.mnt, "mv media/big big; rm more").ok();
    all_follows(&lab);
    Tree::read(&lab.mnt).assert_same(&before, "the mount", "what was in it");

    // A further name there is a copy, and has the attributes of the file.
    sh(&lab.mnt, "echo 1 >one; ln one media/two").ok();
    lab.flush();
    sh(&lab.mnt, "chmod 600 media/two; touch -d @1000000000 one").ok();
    lab.flush();
    let told = sh(&lab.d(""), "stat -c '%a %Y' one media/two").ok();
    assert_eq!(told.stdout, "600 1000000000\n600 1000000000\n");
    lab.unmount();
    drop(nested);
    lab.finish();
}

/// The other name of a move that is refused has the same reason.
#[test]
fn both_names_of_a_refused_move_have_its_reason() {
    if !nix::unistd::geteuid().is_root() {
        return skip("mounting a tmpfs needs root");
    }
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    let nested = Nested::mount(lab.d("media"), "size=8m");
    lab.mount(&[]);
    sh(&lab.mnt, "ls media; mv media elsewhere").ok();
    let done = lab.ferryfs(&["flush", "--json", lab.mnt.to_str().expect("a path")]);
    assert_eq!(
        done.code,
        exit::LEFT_BEHIND,
        "{} {}",
        done.stdout,
        done.stderr
    );
    let report = done.json();
    for item in report["left_behind"].as_array().expect("a list") {
        let reason = item["reason"].as_str().expect("reason");
        assert!(reason.contains("a file system is mounted on it"), "{item}");
    }
    sh(&lab.mnt, "mv elsewhere media").ok();
    all_follows(&lab);
    lab.unmount();
    drop(nested);
    lab.finish();
}

on_both_drives!(somebody_who_writes_there_while_a_large_file_is_staged_loses_nothing);

fn somebody_who_writes_there_while_a_large_file_is_staged_loses_nothing(lab: Lab) {
    sh(
        &lab.mnt,
        "mkdir d; for f in edited gone moved d/known; do echo $f 1 >$f; done",
    )
    .ok();
    lab.flush();
    let large = content(3, 64_000_000);
    write(&lab.m("large"), &large);
    sh(&lab.mnt, "echo edited here >edited; rm gone; mv moved d/moved; echo here >fresh; rm d/known; mkdir made; echo here >made/f").ok();
    let staging = lab.d(".ferryfs/staging");
    let drive = lab.d("");
    let done = thread::scope(|scope| {
        let flush =
            scope.spawn(|| lab.ferryfs(&["flush", "--json", lab.mnt.to_str().expect("a path")]));
        wait_until("something is staged", Duration::from_secs(60), || {
            let mut batches = fs::read_dir(&staging).into_iter().flatten().flatten();
            batches.any(|batch| fs::read_dir(batch.path()).is_ok_and(|mut it| it.next().is_some()))
        });
        sh(&drive, "echo and there >>edited; echo changed there >>gone; echo there >>moved; echo there >fresh; mkdir made; echo there >made/f; echo there >d/new; mv d/known d/renamed").ok();
        flush.join().expect("the flush")
    });
    assert!(
        [exit::DONE, exit::LEFT_BEHIND].contains(&done.code),
        "{} {}",
        done.stdout,
        done.stderr
    );
    let told = done.stdout.clone();
    lab.ferryfs(&["refresh", lab.mnt.to_str().expect("a path")]);
    lab.flush();
    lab.assert_drive_is_mount();
    assert_tidy(&lab);
    assert_content(lab.d("large"), &large[..]);
    for root in [&lab.mnt, &drive] {
        let found = sh(
            root,
            "find . -name .ferryfs -prune -o -type f ! -name large -exec cat {} +",
        )
        .ok()
        .stdout;
        for line in ["edited here", "and there", "changed there", "there", "here"] {
            assert!(
                found.lines().any(|it| it == line),
                "{line} is not in {}:\n{found}\n{told}",
                root.display()
            );
        }
    }
    // The flush names what made way, and status tells of it.
    let kept = sh(
        &drive,
        "find . -name .ferryfs -prune -o -name '*.sync-conflict-*' -print",
    )
    .ok()
    .stdout;
    assert!(kept.lines().count() > 0, "{told}");
    for path in kept.lines() {
        let path = path.trim_start_matches("./");
        assert!(told.contains(path), "{path} is not named in {told}");
    }
    assert_eq!(
        lab.status()["conflicts"].as_u64(),
        Some(kept.lines().count() as u64)
    );
    lab.finish();
}

/// Two disks pooled under one path, as many do at home.
#[test]
fn a_pool_of_two_disks_takes_all_that_the_mount_does() {
    if !nix::unistd::geteuid().is_root() || !has("mergerfs") {
        return skip("mergerfs is not installed, or this is not root");
    }
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    let one = Nested::mount(lab.root().join("disk1"), "size=64m");
    let two = Nested::mount(lab.root().join("disk2"), "size=64m");
    sh(
        &one.0,
        "mkdir -p both one; echo 1 >one/f; echo 1 >both/a; echo root >r1",
    )
    .ok();
    sh(
        &two.0,
        "mkdir -p both two; echo 2 >two/f; echo 2 >both/b; echo root >r2",
    )
    .ok();
    let branches = format!("{}:{}", one.0.display(), two.0.display());
    let pooled = lab::run(
        Command::new("mergerfs")
            .args(["-o", "category.create=epmfs,minfreespace=1M", &branches])
            .arg(lab.d("")),
    );
    assert_eq!(pooled.code, 0, "{}", pooled.stderr);
    let pool = Nested(lab.d(""));
    lab.mount(&[]);
    let _ = sh(&lab.mnt, "ls -R . >/dev/null");
    let changes = [
        "echo new >new; echo new >two/new; echo new >one/new; mkdir fresh; echo x >fresh/x",
        "echo 11 >one/f; echo 22 >>two/f; echo 33 >both/a; echo 44 >both/b",
        "mv one/f one/g; mv two/f two/g; mv both/a both/c; mv both/b both/d",
        "mv one/g two/h; mv two/g one/h; mv r1 two/r; mv r2 one/r",
        "mv one first; mv two second; mv both second/both",
        "rm first/h; rm -r second/both; mv second/h h; mv first second/first",
    ];
    for change in changes {
        sh(&lab.mnt, change).ok();
        let before = Tree::read(&lab.mnt);
        for _ in 0..2 {
            let done = lab.ferryfs(&["flush", "--json", lab.mnt.to_str().expect("a path")]);
            assert!(
                [exit::DONE, exit::LEFT_BEHIND].contains(&done.code),
                "{change}: {} {}",
                done.stdout,
                done.stderr
            );
            if done.code == exit::LEFT_BEHIND {
                assert!(!named(&done).is_empty());
                eprintln!("{change}: {}", done.stdout);
            } else {
                lab.assert_drive_is_mount();
            }
        }
        Tree::read(&lab.mnt).assert_same(&before, "the mount", "what was in it");
    }
    lab.ferryfs(&["unmount", lab.mnt.to_str().expect("a path")]);
    wait_until("the mount is gone", Duration::from_secs(30), || {
        !lab.is_mounted()
    });
    drop((pool, one, two));
}

/// With its default policies a pool renames and links only on the disk where a file is, and only
/// where the directory is there as well.
#[test]
fn a_pool_with_its_default_policies_takes_links_and_directories_across_its_disks() {
    if !nix::unistd::geteuid().is_root() || !has("mergerfs") {
        return skip("mergerfs is not installed, or this is not root");
    }
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    // The second disk has more space: what is new goes there.
    let one = Nested::mount(lab.root().join("disk1"), "size=64m");
    let two = Nested::mount(lab.root().join("disk2"), "size=80m");
    sh(&one.0, "mkdir -p docs/d; echo 1 >docs/a; echo d >docs/d/1").ok();
    sh(&two.0, "mkdir -p films/f; echo f >films/f/1").ok();
    let branches = format!("{}:{}", one.0.display(), two.0.display());
    let pooled = lab::run(
        Command::new("mergerfs")
            .args(["-o", "minfreespace=1M", &branches])
            .arg(lab.d("")),
    );
    assert_eq!(pooled.code, 0, "{}", pooled.stderr);
    let pool = Nested(lab.d(""));
    lab.mount(&[]);
    sh(&lab.mnt, "ls -R . >/dev/null").ok();
    let changes = [
        "echo n >docs/new; ln docs/new films/link; ln docs/a films/a; ln films/f/1 docs/1",
        "mv films/f docs/f; mv docs/d films/d",
        "mv docs/f films/g; echo more >films/g/more; echo 2 >>films/link",
    ];
    for change in changes {
        sh(&lab.mnt, change).ok();
        let before = Tree::read(&lab.mnt);
        let done = lab.ferryfs(&["flush", "--json", lab.mnt.to_str().expect("a path")]);
        assert_eq!(
            done.code,
            exit::DONE,
            "{change}: {} {}",
            done.stdout,
            done.stderr
        );
        assert_tidy(&lab);
        Tree::read(&lab.mnt).assert_same(&before, "the mount", "what was in it");
        for path in ["films/link", "docs/new", "films/a", "docs/1"] {
            let here = fs::read(lab.m(path)).expect("a file");
            assert_content(lab.d(path), here);
        }
    }
    let missing = ["films/f", "docs/d", "docs/f"];
    assert!(missing.iter().all(|path| !lab.d(path).exists()));
    lab.ferryfs(&["unmount", lab.mnt.to_str().expect("a path")]);
    wait_until("the mount is gone", Duration::from_secs(30), || {
        !lab.is_mounted()
    });
    drop((pool, one, two));
}
