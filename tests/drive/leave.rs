//! The end of a volume: the drive becomes a plain directory with all files, the cache goes, and an
//! interrupted end is finished by the same command.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::lab;
use crate::lab::{Backend, Done, Lab, assert_content, content, exit, text, wait_until, write};

fn leave(lab: &Lab, options: &[&str]) -> Done {
    let mnt = text(&lab.mnt);
    lab.ferryfs(&[&["leave"], options, &[mnt.as_str()]].concat())
}

/// All names below a directory, those of directories with a slash.
fn listing(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(at) = open.pop() {
        for entry in fs::read_dir(dir.join(&at)).expect("list").flatten() {
            let path = at.join(entry.file_name());
            let is_dir = entry.file_type().expect("a type").is_dir();
            let name = text(&path);
            if is_dir {
                open.push(path);
            }
            found.push(if is_dir { format!("{name}/") } else { name });
        }
    }
    found.sort();
    found
}

/// Nothing of ferryfs is left.
#[track_caller]
fn assert_left(lab: &Lab) {
    assert!(!lab.is_mounted(), "still mounted");
    assert!(
        !lab.d(".ferryfs").exists(),
        "{:?}",
        listing(lab.drive.path())
    );
    assert!(!lab.cache.exists(), "{:?}", listing(&lab.cache));
    let pid = lab.pid();
    wait_until("the daemon to end", Duration::from_secs(10), || {
        !lab::alive(pid)
    });
}

/// Nothing was changed.
#[track_caller]
fn assert_stays(lab: &Lab) {
    assert!(lab.is_mounted(), "unmounted");
    assert!(lab.d(".ferryfs/volume.json").exists());
    assert!(lab.cache.join("cache.json").exists());
}

#[test]
fn a_drive_that_was_left_is_a_plain_tree_with_all_files() {
    for backend in [Backend::Ext4Dir, Backend::EXFAT] {
        let Some(mut lab) = Lab::new(backend) else {
            continue;
        };
        let before = fs::metadata(&lab.mnt).expect("stat").permissions().mode();
        lab.mount(&[]);
        write(&lab.m("a"), &content(1, 100_000));
        write(&lab.m("d/b"), &content(2, 5000));
        lab.flush();
        // This waits.
        write(&lab.m("d/e/c"), &content(3, 70_000));
        write(&lab.m("a"), &content(4, 90_000));
        write(&lab.m("what?"), b"a name that exFAT refuses");
        fs::set_permissions(lab.m("d/b"), fs::Permissions::from_mode(0o600)).expect("chmod");
        symlink("a", lab.m("link")).expect("symlink");
        let is_exfat = backend == Backend::EXFAT;

        let shown = leave(&lab, &[]).code(exit::DONE);
        assert_stays(&lab);
        assert!(
            shown.stdout.contains("nothing was changed"),
            "{}",
            shown.stdout
        );
        if is_exfat {
            for line in [
                "symbolic links, which the drive cannot hold: 1",
                "names that the drive spells otherwise",
            ] {
                assert!(shown.stdout.contains(line), "{line:?}: {}", shown.stdout);
            }
        }
        leave(&lab, &["--yes"]).code(exit::DONE);
        assert_left(&lab);
        let mut names = vec!["a", "d/", "d/b", "d/e/", "d/e/c"];
        if !is_exfat {
            names.extend(["link", "what?"]);
        }
        let found = listing(lab.drive.path());
        let found: Vec<&str> = found.iter().map(String::as_str).collect();
        // The odd name has the spelling that the drive could hold.
        let others: Vec<&&str> = found.iter().filter(|name| !names.contains(*name)).collect();
        assert_eq!(others.len(), usize::from(is_exfat), "{found:?}");
        assert_eq!(found.len(), names.len() + others.len(), "{found:?}");
        assert_content(lab.d("a"), content(4, 90_000));
        assert_content(lab.d("d/b"), content(2, 5000));
        assert_content(lab.d("d/e/c"), content(3, 70_000));
        let after = fs::metadata(&lab.mnt).expect("stat").permissions().mode();
        assert_eq!(
            after, before,
            "the mount point is an ordinary directory again"
        );

        // It can be taken up again, as a new volume.
        lab.remount();
        assert_content(lab.m("d/e/c"), content(3, 70_000));
        lab.finish();
    }
}

#[test]
fn what_is_only_here_or_kept_is_not_given_up_unasked() {
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    lab.mount(&["--versions", "--local", "tmp/"]);
    write(&lab.m("a"), b"first");
    lab.flush();
    write(&lab.m("a"), b"second and longer");
    write(&lab.m("tmp/deep/here"), &content(1, 30_000));
    symlink("here", lab.m("tmp/deep/link")).expect("symlink");
    lab.flush();

    let shown = leave(&lab, &[]).code(exit::DONE).stdout;
    assert!(
        shown.contains("tmp/deep/here") && shown.contains("the old versions on the drive, 1 file"),
        "{shown}"
    );
    leave(&lab, &["--yes"]).refuses(exit::FAILED, "in the cache only");
    assert_stays(&lab);
    let out = lab.root().join("out");
    let to = text(&out);
    leave(&lab, &["--yes", "--local-to", &to]).refuses(exit::FAILED, "old versions");
    assert_stays(&lab);
    assert!(!out.exists());

    // A file that a program is writing, and one that is not ours.
    let both = ["--yes", "--drop-versions", "--local-to", &to];
    let open = fs::File::create(lab.m("open")).expect("create");
    leave(&lab, &both).refuses(exit::FAILED, "open for writing");
    assert_stays(&lab);
    drop(open);
    let strange = lab.d(".ferryfs/of the user");
    write(&strange, b"mine");
    leave(&lab, &both).refuses(exit::FAILED, "is not ferryfs's");
    assert_stays(&lab);
    fs::remove_file(strange).expect("rm");
    let lost = lab.d(".ferryfs/lost+found/file");
    write(&lost, b"mine");
    leave(&lab, &both).refuses(exit::FAILED, "lost+found on the drive is not empty");
    assert_stays(&lab);
    fs::remove_file(lost).expect("rm");

    leave(&lab, &both).code(exit::DONE);
    assert_left(&lab);
    assert_eq!(listing(lab.drive.path()), ["a", "open"]);
    assert_content(lab.d("a"), b"second and longer");
    assert_content(out.join("tmp/deep/here"), content(1, 30_000));
    let link = fs::read_link(out.join("tmp/deep/link")).expect("readlink");
    assert_eq!(link, Path::new("here"));
    lab.finish();
}

#[test]
fn what_the_drive_refuses_keeps_it_from_being_left() {
    let Some(lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    if !nix::unistd::geteuid().is_root() {
        return lab::skip("an immutable file needs root");
    }
    write(&lab.m("stuck"), b"old");
    lab.flush();
    let stuck = lab.d("stuck");
    chattr("+i", &stuck);
    write(&lab.m("stuck"), b"new and longer");
    let refused = leave(&lab, &["--yes"]);
    chattr("-i", &stuck);
    refused.refuses(exit::FAILED, "stuck was left behind");
    assert_stays(&lab);
    assert_content(lab.m("stuck"), b"new and longer");
    leave(&lab, &["--yes"]).code(exit::DONE);
    assert_left(&lab);
    assert_content(lab.d("stuck"), b"new and longer");
    lab.finish();
}

fn chattr(flag: &str, path: &Path) {
    lab::run(Command::new("chattr").arg(flag).arg("--").arg(path)).code(0);
}

#[test]
fn a_leave_that_failed_in_the_middle_is_no_volume_any_more_and_is_finished_later() {
    if !nix::unistd::geteuid().is_root() {
        return lab::skip("an immutable file needs root");
    }
    // On the drive, where the marker is still there; and in the cache, after the drive is done.
    for is_on_drive in [true, false] {
        let Some(lab) = Lab::mounted(Backend::Ext4Dir) else {
            return;
        };
        write(&lab.m("a"), &content(1, 50_000));
        lab.flush();
        let stuck = match is_on_drive {
            true => lab.d(".ferryfs/staging/stuck"),
            false => lab.cache.join("blocks/stuck"),
        };
        write(&stuck, b"stuck");
        chattr("+i", &stuck);
        let failed = leave(&lab, &["--yes"]);
        // Both a new and the old name of it are refused, until it is finished.
        let refused = lab.try_mount(&[]);
        chattr("-i", &stuck);
        failed.refuses(exit::FAILED, "cannot remove");
        assert!(!lab.is_mounted());
        assert_eq!(lab.d(".ferryfs/volume.json").exists(), is_on_drive);
        refused.refuses(exit::FAILED, "ferryfs leave");
        assert_content(lab.d("a"), content(1, 50_000));

        let drive = text(lab.drive.path());
        let shown = lab.ferryfs(&["leave", &drive]).code(exit::DONE).stdout;
        assert!(
            shown.contains("interrupted") && shown.contains("--yes"),
            "{shown}"
        );
        assert!(lab.cache.join("leaving.json").exists());
        if is_on_drive {
            assert_checked_again(&lab);
        }
        let done = lab.ferryfs(&["leave", "--yes", &drive]).code(exit::DONE);
        assert!(done.stdout.contains("interrupted"), "{}", done.stdout);
        assert_left(&lab);
        assert_eq!(listing(lab.drive.path()), ["a"]);
        lab.finish();
    }
}

/// What has changed on the drive since a leave was interrupted is not removed with the rest.
#[track_caller]
fn assert_checked_again(lab: &Lab) {
    let (drive, cache) = (text(lab.drive.path()), text(&lab.cache));
    let refuses = |command: &[&str], code: i32, why: &str| {
        lab.ferryfs(&[&["leave", "--yes"], command].concat())
            .refuses(code, why);
        assert!(lab.cache.join("leaving.json").exists());
    };
    let strange = lab.d(".ferryfs/of the user");
    write(&strange, b"mine");
    refuses(&[&drive], exit::FAILED, "is not ferryfs's");
    fs::remove_file(&strange).expect("rm");
    let versions = lab.d(".ferryfs/versions");
    let kept = versions.join("of another machine");
    fs::create_dir_all(&kept).expect("mkdir");
    refuses(&[&drive], exit::FAILED, "old versions are kept");
    fs::remove_dir(&kept).expect("rmdir");
    // One that cannot be listed may have some.
    let _ = fs::remove_dir(&versions);
    write(&versions, b"no directory");
    refuses(&[&drive], exit::FAILED, "cannot be looked at");
    fs::remove_file(&versions).expect("rm");

    // Without its marker it may be any drive.
    let (marker, aside) = (lab.d(".ferryfs/volume.json"), lab.root().join("aside"));
    fs::rename(&marker, &aside).expect("move");
    refuses(&[&drive], exit::FAILED, "has no marker");
    let bare = lab.root().join("bare");
    fs::create_dir(&bare).expect("mkdir");
    let at_bare = ["--cache", &cache, &text(&bare)];
    refuses(&at_bare, exit::NO_BACKEND, "is empty");
    fs::rename(&aside, &marker).expect("move");

    // Another drive is mounted where it was: that one is meant.
    let mnt = text(&lab.mnt);
    let mut mount = Command::new("mount");
    lab::run(mount.args(["-t", "tmpfs", "-o", "mode=700", "other", &mnt])).code(0);
    let refused = lab.ferryfs(&["leave", "--yes", &mnt]);
    lab::run(Command::new("umount").arg(&mnt)).code(0);
    assert!(refused.code != exit::DONE, "{}", refused.stdout);
    assert!(lab.cache.join("leaving.json").exists());
}

#[test]
fn an_empty_cache_directory_that_cannot_be_removed_keeps_nothing_from_being_left() {
    let Some(lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    if !nix::unistd::geteuid().is_root() {
        return lab::skip("an immutable directory needs root");
    }
    write(&lab.m("a"), &content(1, 5000));
    lab.flush();
    let parent = lab.cache.parent().expect("a parent");
    chattr("+i", parent);
    let done = leave(&lab, &["--yes"]);
    chattr("-i", parent);
    let done = done.code(exit::DONE).stdout;
    assert!(
        done.contains("its empty directory") && done.contains("all files are in"),
        "{done}"
    );
    assert_eq!(listing(&lab.cache), Vec::<String>::new());
    fs::remove_dir(&lab.cache).expect("rmdir");
    assert_left(&lab);
    lab.finish();
}

#[test]
fn a_leave_that_is_killed_at_any_moment_is_finished_by_the_next_one() {
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    for round in 0..8_u64 {
        lab.mount(&["--versions"]);
        for n in 0..30 {
            write(&lab.m(format!("d/f{n}")), &content(n, 3000));
        }
        lab.flush();
        for n in 0..30 {
            write(&lab.m(format!("d/f{n}")), &content(n + round, 4000));
        }
        let (mnt, drive) = (text(&lab.mnt), text(lab.drive.path()));
        let command = ["leave", "--yes", "--drop-versions", &mnt];
        let mut killed = (lab.command(&command).stdout(Stdio::null()))
            .stderr(Stdio::null())
            .spawn()
            .expect("start");
        // The moment need not be a certain one: all of them must do.
        std::thread::sleep(Duration::from_millis(60 * (round + 1)));
        let _ = killed.kill();
        killed.wait().expect("wait");
        // The daemon may be about to unmount for the first one; a user tries again.
        let mut last = None;
        for _ in 0..50 {
            if lab.cache.join("leaving.json").exists() {
                last = Some(lab.ferryfs(&["leave", "--yes", &drive]));
            } else if lab.is_mounted() {
                last = Some(lab.ferryfs(&command));
            } else if lab.cache.exists() && !lab::alive(lab.pid()) {
                lab.remount();
            }
            if !lab.cache.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let is_done = last.as_ref().is_none_or(|last| last.code == exit::DONE);
        assert!(is_done && !lab.cache.exists(), "round {round}: {last:?}");
        assert_left(&lab);
        for n in 0..30 {
            assert_content(lab.d(format!("d/f{n}")), content(n + round, 4000));
        }
    }
    lab.finish();
}
