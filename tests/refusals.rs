//! Names that a real drive refuses, and somebody else at work on it while a large file is carried: one refused name keeps only
//! itself from the drive and is named as the mount spells it; whatever was in the way goes with the next flush.

#[path = "support/lab/mod.rs"]
mod lab;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use lab::{
    Backend, Done, Lab, Tree, assert_content, content, exit, has, sh, skip, wait_until, write,
};
use serde_json::Value;

/// Paths marked immutable; whatever happens they are let go, or nobody could remove them.
#[derive(Default)]
struct Immutable(Vec<PathBuf>);

impl Immutable {
    fn mark(&mut self, path: PathBuf) {
        let done = lab::run(Command::new("chattr").arg("+i").arg(&path));
        assert_eq!(done.code, 0, "{}", done.stderr);
        self.0.push(path);
    }

    /// They may have been moved along with their directories.
    fn release(&mut self, root: &Path) {
        if !self.0.is_empty() {
            let all = lab::run(Command::new("chattr").arg("-R").arg("-i").arg(root));
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
            .args(["-R", "-f", "-i"])
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
    let probe = lab.d("probe");
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
    /// Every name that may be told, a directory for its own time among them; empty where the drive takes it all.
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
];

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
        for locked in case.locked {
            guard.1.mark(lab.d(format!("c{number}/{locked}")));
        }
        sh(&dir, case.change).ok();
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
            for locked in case.locked {
                guard.1.mark(lab.d(format!("c{number}/{locked}")));
            }
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

    // A directory cannot be moved across; that alone stays.
    sh(&lab.mnt, "mv d media/d; echo more >more").ok();
    let done = lab.ferryfs(&["flush", "--json", lab.mnt.to_str().expect("a path")]);
    assert_content(lab.d("more"), b"more\n");
    if done.code != 0 {
        assert_eq!(
            done.code,
            exit::LEFT_BEHIND,
            "{} {}",
            done.stdout,
            done.stderr
        );
        assert!(
            named(&done).iter().all(|name| name.contains('d')),
            "{:?}",
            named(&done)
        );
        // Moved back, it is as it was.
        sh(&lab.mnt, "mv media/d d").ok();
        lab.flush();
    }
    lab.assert_drive_is_mount();
    assert_tidy(&lab);

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
