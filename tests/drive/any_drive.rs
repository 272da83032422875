//! What ferryfs promises of every drive, whatever its file system keeps. `scripts/drives.py` holds
//! the file systems that people have against it; by itself each test has a small ext4.

use crate::conformance::{conformance, path};
use crate::lab;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::lab::{Backend, Lab, Tree, assert_content, content, exit, sh, text, wait_until, write};
use ferryfs::drive::mounted::MountedDir;
use ferryfs::drive::probe::probe;

/// What the drive is found to keep, for the table of `scripts/drives.py`.
fn report(capabilities: &ferryfs::core::Capabilities) {
    if let Some(file) = std::env::var_os("FERRYFS_TEST_DRIVE_REPORT") {
        let json = serde_json::to_vec(capabilities).expect("JSON");
        fs::write(file, json).expect("write the report");
    }
}

fn lab() -> Option<Lab> {
    Lab::mounted(Backend::Any)
}

#[test]
fn it_keeps_what_the_probe_says() {
    let Some(lab) = Lab::new(Backend::Any) else {
        return;
    };
    let make = || {
        lab.drive.empty();
        MountedDir::open(lab.drive.path()).expect("open")
    };
    report(&probe(&make(), &path("scratch")).expect("probe"));
    conformance(make);
    lab.finish();
}

/// All that a program can ask of a name: mode, owner, time, attributes, target, number of names.
fn described(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut left = vec![root.to_path_buf()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).expect("list") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(root).expect("below");
            if name == Path::new("lost+found") {
                continue;
            }
            let meta = fs::symlink_metadata(&path).expect("stat");
            let target = fs::read_link(&path).unwrap_or_default();
            lines.push(format!(
                "{} {:o} {}:{} {}.{:09} {} {target:?}",
                name.as_os_str().as_bytes().escape_ascii(),
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.mtime(),
                meta.mtime_nsec(),
                if meta.is_dir() { 0 } else { meta.nlink() },
            ));
            if meta.is_dir() {
                left.push(path);
            }
        }
    }
    lines.sort();
    let attributes = sh(
        root,
        "getfattr -R -P -h -d -m '^user' . 2>/dev/null | sort || true",
    );
    lines.push(attributes.stdout);
    lines
}

/// A tree with everything that some file systems cannot store.
fn write_everything(lab: &Lab) {
    let m = |name: &str| lab.m(name);
    for (n, size) in [0, 1, 4096, 100_000, 5 << 20].into_iter().enumerate() {
        write(&m(&format!("files/{n}")), &content(n as u64, size));
    }
    for (name, mode) in [("secret", 0o600), ("program", 0o755), ("locked", 0o444)] {
        write(&m(name), name.as_bytes());
        fs::set_permissions(m(name), fs::Permissions::from_mode(mode)).expect("chmod");
    }
    for name in [
        "names/Case",
        "names/cASE",
        "names/with: colon?",
        "names/dot at the end.",
        "names/space at the end ",
        "names/back\\slash",
        "names/emoji 🦀",
        "names/caf\u{e9}",
        "names/cafe\u{301}",
        "names/CON",
        "names/NUL.txt",
        "names/.hidden",
        "names/~$lock",
    ] {
        write(&m(name), name.as_bytes());
    }
    write(&m(&format!("names/{}", "l".repeat(255))), b"long");
    write(&m(&format!("names/{}", "長".repeat(85))), b"long in bytes");
    let not_text = std::ffi::OsStr::from_bytes(b"names/caf\xe9");
    write(&lab.m(not_text), b"not UTF-8");
    fs::create_dir(m("empty")).expect("mkdir");
    symlink("../secret", m("files/link")).expect("symlink");
    symlink("nowhere", m("dangling")).expect("symlink");
    fs::hard_link(m("files/2"), m("files/second name")).expect("link");
    sh(
        &lab.mnt,
        "mkfifo pipe; setfattr -n user.note -v hello secret
         chown 1234:2345 program; touch -h -d '2001-02-03 04:05:06.123456789' files/1 dangling",
    );
}

/// Another machine, with an empty cache, sees what is in this mount.
#[track_caller]
fn assert_another_machine_sees_the_same(lab: &mut Lab) {
    let here = (Tree::read(&lab.mnt), described(&lab.mnt));
    lab.unmount();
    lab.take_new_cache();
    lab.mount(&[]);
    let there = (Tree::read(&lab.mnt), described(&lab.mnt));
    there.0.assert_same(&here.0, "the new mount", "the old one");
    let differs = |(a, b): &(&String, &String)| a != b;
    let first = there.1.iter().zip(&here.1).find(differs);
    assert!(first.is_none(), "(there, here): {first:?}");
    assert_eq!(there.1.len(), here.1.len());
}

#[test]
fn another_machine_sees_all_that_was_in_the_mount() {
    let Some(mut lab) = lab() else { return };
    write_everything(&lab);
    lab.flush();
    for (n, size) in [0, 1, 4096, 100_000, 5 << 20].into_iter().enumerate() {
        assert_content(lab.d(format!("files/{n}")), content(n as u64, size));
    }
    assert_another_machine_sees_the_same(&mut lab);
    sh(
        &lab.mnt,
        "mv names/Case swap; mv names/cASE names/Case; mv swap names/cASE
         mv files other; mkdir files; mv other/3 files/; rm other/0; rmdir empty; echo f >empty
         chmod 700 other secret; chown 0:0 program; setfattr -x user.note secret; rm pipe
         ln -f secret 'second secret'; ln -sfn elsewhere dangling; mv locked locked2
         printf x | dd of=other/4 bs=1 seek=1000000 conv=notrunc status=none",
    );
    lab.flush();
    assert_another_machine_sees_the_same(&mut lab);
    lab.finish();
}

#[test]
fn what_others_change_on_the_drive_is_seen_and_both_sides_of_a_conflict_stay() {
    let Some(lab) = lab() else { return };
    for name in ["a", "b", "dir/c"] {
        write(&lab.m(name), name.as_bytes());
    }
    lab.flush();
    write(&lab.d("new/theirs"), b"theirs");
    write(&lab.d("a"), b"a of theirs");
    write(&lab.d("b"), b"b of theirs");
    fs::remove_file(lab.d("dir/c")).expect("rm");
    // Not every drive takes links, nor lets all be read that it has taken.
    let linked = symlink("../a", lab.d("new/link")).is_ok();
    write(&lab.m("b"), b"b of ours, longer");
    let refresh = ["refresh", &text(&lab.mnt)];
    lab.ferryfs(&refresh).code(exit::DONE);
    assert_content(lab.m("new/theirs"), b"theirs");
    assert_eq!(fs::symlink_metadata(lab.m("new/link")).is_ok(), linked);
    let target = |path| fs::read_link(path).map_err(|error| error.raw_os_error());
    if linked {
        assert_eq!(target(lab.m("new/link")), target(lab.d("new/link")));
    }
    assert_content(lab.m("a"), b"a of theirs");
    assert!(!lab.m("dir/c").exists());
    lab.flush_code(exit::DONE);
    let mut found: Vec<_> = fs::read_dir(&lab.mnt)
        .expect("list")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_file())
        .map(|path| fs::read_to_string(path).expect("read"))
        .collect();
    found.sort();
    assert_eq!(found, ["a of theirs", "b of ours, longer", "b of theirs"]);
    lab.finish();
}

const ROWS: &str = "
import sqlite3, sys
c = sqlite3.connect(sys.argv[1], isolation_level=None)
assert c.execute('pragma journal_mode=wal').fetchone()[0] == 'wal'
c.execute('create table if not exists t(n integer primary key, b blob)')
for _ in range(300):
    c.execute('insert into t(b) values(randomblob(2000))')
print(c.execute('select count(*) from t').fetchone()[0])
";

const SOUND: &str = "
import sqlite3, sys
c = sqlite3.connect(sys.argv[1])
assert c.execute('pragma integrity_check').fetchone()[0] == 'ok'
print(c.execute('select count(*) from t').fetchone()[0])
";

#[test]
fn a_database_in_the_mount_is_sound_on_the_drive() {
    let Some(lab) = lab() else { return };
    for round in 1..=3 {
        lab::python(ROWS, &[&lab.m("db")]);
        lab.flush();
        // A copy, as opening one there would write to it.
        sh(
            lab.root(),
            &format!("rm -f db*; cp '{}'/db* .", lab.d("").display()),
        );
        let rows = lab::python(SOUND, &[&lab.root().join("db")]);
        assert_eq!(rows.stdout.trim(), (300 * round).to_string());
    }
    lab.finish();
}

#[test]
fn a_small_change_of_a_large_file_arrives() {
    let Some(lab) = lab() else { return };
    let mut bytes = content(7, 24 << 20);
    write(&lab.m("large"), &bytes);
    lab.flush();
    let open = fs::File::options().write(true).open(lab.m("large"));
    let open = open.expect("open");
    for at in [0, 9 << 20, (24 << 20) - 5] {
        bytes[at..at + 5].copy_from_slice(b"fresh");
        open.write_all_at(b"fresh", at as u64).expect("write");
    }
    drop(open);
    lab.flush();
    assert_content(lab.d("large"), &bytes);
    lab.finish();
}

fn start_flush(lab: &Lab) -> Child {
    lab.command(&["flush", &text(&lab.mnt)])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start the flush")
}

/// Waits until the batch under way has begun to stage files, or the flush has ended.
fn wait_until_staging(lab: &Lab, flush: &mut Child) {
    wait_until("staged files", Duration::from_secs(30), || {
        let staged = sh(
            lab.root(),
            &format!(
                "find '{}' -type f -size +100k 2>/dev/null | head -1",
                lab.d(".ferryfs/staging").display()
            ),
        );
        !staged.stdout.is_empty() || flush.try_wait().expect("wait").is_some()
    });
}

/// New files, changed ones and moved ones, `round` in each of them.
fn change_much(lab: &Lab, round: u64) {
    for n in 0..30 {
        let seed = round * 1000 + n;
        write(&lab.m(format!("many/{n}")), &content(seed, 300_000));
        write(&lab.m(format!("new{round}/{n}")), &content(seed, 20_000));
    }
    if round > 1 {
        let from = format!("new{}", round - 1);
        fs::rename(lab.m(from), lab.m(format!("moved{round}"))).expect("mv");
    }
}

fn wait_attached(lab: &Lab) {
    wait_until("the drive to be attached", Duration::from_secs(60), || {
        lab.status()["backend_state"] == "attached"
    });
}

#[test]
fn a_drive_that_goes_during_a_flush_and_comes_back_loses_nothing() {
    let Some(mut lab) = lab() else { return };
    for round in 1..=3 {
        change_much(&lab, round);
        let before = Tree::read(&lab.mnt);
        let mut flush = start_flush(&lab);
        wait_until_staging(&lab, &mut flush);
        lab.drive.yank(lab::Yank::EmptyPlace);
        wait_until("the flush to end", Duration::from_secs(60), || {
            flush.try_wait().expect("wait").is_some()
        });
        write(&lab.m("meanwhile"), &content(round, 1000));
        assert_content(lab.m("meanwhile"), content(round, 1000));
        lab.drive.put_back();
        wait_attached(&lab);
        lab.flush();
        let after = Tree::read(&lab.mnt);
        let after_without = after.clone().without("meanwhile");
        after_without.assert_same(&before.without("meanwhile"), "after", "before");
        after.assert_same(
            &Tree::read(lab.drive.path()).without(".ferryfs"),
            "the mount",
            "the drive",
        );
    }
    lab.finish();
}

/// Fills the drive with files of others but for a few MiB, and returns them. They are at the top:
/// a pool may keep all of another directory on one disk.
fn fill(lab: &Lab) -> Vec<PathBuf> {
    let mut fillers = Vec::new();
    for n in 0.. {
        let space = nix::sys::statvfs::statvfs(lab.drive.path()).expect("statvfs");
        let free = (space.blocks_available() * space.fragment_size()) >> 20;
        assert!(free < 4096, "the drive of a test has less than 4 GiB");
        if free < 20 {
            break;
        }
        // Pools have less on each of their disks than they say.
        let mut dd = Command::new("timeout");
        dd.args(["30", "dd", "if=/dev/urandom", "bs=1M", "conv=fsync"])
            .arg(format!("count={}", (free - 12).min(64)))
            .arg(format!("of={}", lab.d(format!("filler{n}")).display()));
        let done = lab::run(&mut dd).code == 0;
        fillers.push(lab.d(format!("filler{n}")));
        if !done {
            break;
        }
    }
    fillers
}

#[test]
fn a_full_drive_refuses_a_flush_and_takes_it_when_there_is_space() {
    let Some(lab) = lab() else { return };
    write(&lab.m("old"), &content(1, 2 << 20));
    lab.flush();
    let fillers = fill(&lab);
    let refresh = ["refresh", &text(&lab.mnt)];
    lab.ferryfs(&refresh).code(exit::DONE);
    for n in 0..20 {
        write(&lab.m(format!("new/{n}")), &content(n, 3 << 20));
    }
    write(&lab.m("old"), &content(2, 2 << 20));
    let wanted = Tree::read(&lab.mnt);
    let refused = lab.ferryfs(&["flush", &text(&lab.mnt)]);
    assert!(
        [exit::FAILED, exit::LEFT_BEHIND].contains(&refused.code),
        "{refused:?}"
    );
    assert!(refused.stderr.contains("space"), "{refused:?}");
    assert_content(lab.d("old"), content(1, 2 << 20));
    Tree::read(&lab.mnt).assert_same(&wanted, "the mount", "before the flush");
    for filler in &fillers {
        fs::remove_file(filler).expect("rm");
    }
    lab.ferryfs(&refresh).code(exit::DONE);
    // Some drives free space a while later.
    wait_until("a flush that fits", Duration::from_secs(90), || {
        lab.ferryfs(&["flush", &text(&lab.mnt)]).code == exit::DONE
    });
    let drive = Tree::read(lab.drive.path()).without(".ferryfs");
    let mut wanted = wanted;
    wanted.0.retain(|path, _| !path.starts_with("filler"));
    drive.assert_same(&wanted, "the drive", "what was written");
    lab.finish();
}

/// A part of the drive fails while a flush writes: one server of several, one disk of a pool.
/// `FERRYFS_TEST_DRIVE_HURT` breaks it, `..._HEAL` brings it back.
#[test]
#[ignore = "needs a drive of several servers, see scripts/drives.py"]
fn a_part_of_the_drive_that_fails_during_a_flush_loses_nothing() {
    let Some(lab) = lab() else { return };
    let variable = |name: &str| std::env::var(format!("FERRYFS_TEST_DRIVE_{name}")).expect(name);
    change_much(&lab, 1);
    lab.flush();
    for round in 2..=3 {
        change_much(&lab, round);
        write(&lab.m("large"), &content(round, 40 << 20));
        let wanted = Tree::read(&lab.mnt);
        let mut flush = start_flush(&lab);
        wait_until_staging(&lab, &mut flush);
        sh(lab.root(), &variable("HURT"));
        wait_until("the flush to end", Duration::from_secs(120), || {
            flush.try_wait().expect("wait").is_some()
        });
        Tree::read(&lab.mnt).assert_same(&wanted, "the mount", "before the flush");
        sh(lab.root(), &variable("HEAL"));
        wait_until("a flush that ends well", Duration::from_secs(120), || {
            lab.ferryfs(&["flush", &text(&lab.mnt)]).code == exit::DONE
        });
        let drive = Tree::read(lab.drive.path()).without(".ferryfs");
        drive.assert_same(&wanted, "the drive", "what was written");
    }
    lab.finish();
}
