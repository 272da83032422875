//! Root works where a user owns a directory on the way, and that user leads it elsewhere.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::*;
use crate::lab::{Tree, write};

/// A process of the user's that goes on until it is dropped.
struct Attacker(Child);

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A command of the user's that runs `script` in Python.
pub(super) fn python_as(user: &User, script: &str) -> Command {
    let mut command = Command::new("setpriv");
    command
        .arg(format!("--reuid={}", user.uid))
        .arg(format!("--regid={}", user.gid))
        .args(["--clear-groups", "--", "python3", "-c", script])
        .env("PATH", "/usr/bin:/bin")
        .current_dir("/")
        .stdin(Stdio::null());
    command
}

/// Swaps the directory `dir` for a link to `elsewhere` and back, again and again, as its
/// neighbour's owner may.
fn swap_as(user: &User, dir: &Path, elsewhere: &Path) -> Attacker {
    const SWAP: &str = r#"
import os, sys, time
path, elsewhere = sys.argv[1:]
while True:
    try:
        os.rename(path, path + ".away")
        os.symlink(elsewhere, path)
        time.sleep(0.002)
        os.unlink(path)
        os.rename(path + ".away", path)
    except OSError:
        pass
    time.sleep(0.001)
"#;
    let child = python_as(user, SWAP).arg(dir).arg(elsewhere).spawn();
    Attacker(child.expect("start"))
}

fn give(path: &Path, user: &User) {
    chown(path, Some(user.uid), Some(user.gid)).expect("chown");
}

/// Root mounts a drive whose directory is root's at that time. Then the directory above becomes a
/// user's, who swaps the drive, and what is above it, for links to a place of root's that looks the
/// same to the last file.
#[test]
fn whoever_swaps_the_drive_for_a_link_has_root_read_and_write_nothing_there() {
    let Some(user) = nobody() else { return };
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    let top = lab.root().join("theirs");
    let drive = top.join("sub/drive");
    fs::create_dir_all(&drive).expect("mkdir");
    write(&drive.join("film"), b"the film");
    write(&drive.join("dir/other"), b"other");
    let mount = ["mount", "--no-auto-flush", "--enroll"].map(str::to_owned);
    let mount = [&mount[..], &[text(&drive), text(&lab.mnt)]].concat();
    lab.ferryfs(&mount).code(exit::DONE);
    lab.adopt();
    write(&lab.m("new"), b"new");
    lab.flush();
    let outside = lab.root().join("outside");
    lab::sh(
        lab.root(),
        "cp -a theirs/sub outside; echo 'a secret' > outside/drive/film",
    );
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o700)).expect("chmod");
    let before = Tree::read(&outside);

    for (swapped, elsewhere) in [
        (drive.clone(), outside.join("drive")),
        (top.join("sub"), outside.clone()),
    ] {
        let above = swapped.parent().expect("a parent");
        give(above, &user);
        let attacker = swap_as(&user, &swapped, &elsewhere);
        let end = Instant::now() + Duration::from_secs(6);
        let mut round = 0;
        while Instant::now() < end {
            round += 1;
            let name = format!("made-{round}");
            write(&lab.m(&name), &content(round, 3000));
            // Whatever comes of it.
            lab.ferryfs(&["flush", &text(&lab.mnt)]);
            if let Ok(film) = fs::read(lab.m("film")) {
                assert_eq!(film, b"the film", "read elsewhere");
            }
        }
        drop(attacker);
        Tree::read(&outside).assert_same(&before, "outside afterwards", "before");
        lab::sh(
            above,
            &format!(
                "n={0}; if [ -L $n ]; then rm $n; fi; if [ -e $n.away ]; then mv $n.away $n; fi",
                swapped
                    .file_name()
                    .and_then(|name| name.to_str())
                    .expect("a name")
            ),
        );
        // While the directory above is not root's, the drive is not taken up again.
        let attach = lab.ferryfs(&["attach", &text(&drive), &text(&lab.mnt)]);
        attach.refuses(exit::FAILED, &format!("belongs to user {}", user.uid));
        chown(above, Some(0), Some(0)).expect("chown");
        lab.ferryfs(&["attach", &text(&drive), &text(&lab.mnt)])
            .code(exit::DONE);
        lab.flush();
        assert_eq!(
            fs::read(drive.join("made-1")).expect("read"),
            content(1, 3000)
        );
        Tree::read(&outside).assert_same(&before, "outside at the end", "before");
    }
    lab.finish();
}

#[test]
fn root_refuses_a_drive_to_which_another_user_can_change_the_way_and_says_what_to_do() {
    let Some(user) = nobody() else { return };
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    let theirs = lab.root().join("theirs");
    fs::create_dir_all(theirs.join("drive")).expect("mkdir");
    std::os::unix::fs::symlink(lab.drive.path(), theirs.join("link")).expect("symlink");
    give(&theirs, &user);
    // The drive itself may be anybody's.
    give(lab.drive.path(), &user);
    let whose = format!("belongs to user {}", user.uid);
    for name in ["drive", "link"] {
        let backend = text(&theirs.join(name));
        for args in [
            &["mount", &backend, &text(&lab.mnt)][..],
            &["mount", "--enroll", &backend, &text(&lab.mnt)],
            &["mount", "--re-enroll", &backend, &text(&lab.mnt)],
            &["recover", &backend],
        ] {
            let refused = lab.ferryfs(args).refuses(exit::FAILED, &whose);
            assert!(refused.stderr.contains("/mnt/NAME"), "{}", refused.stderr);
            assert!(
                refused.stderr.contains(&text(&theirs)),
                "{}",
                refused.stderr
            );
        }
    }
    for mode in [0o777, 0o770] {
        chown(&theirs, Some(0), Some(12_345)).expect("chown");
        fs::set_permissions(&theirs, fs::Permissions::from_mode(mode)).expect("chmod");
        let recover = ["recover".to_owned(), text(&theirs.join("drive"))];
        lab.ferryfs(&recover)
            .refuses(exit::FAILED, "can be written to by");
    }
    assert_eq!(fs::read_dir(theirs.join("drive")).expect("list").count(), 0);
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o1777)).expect("chmod");
    let recover = ["recover".to_owned(), text(&theirs.join("drive"))];
    lab.ferryfs(&recover).refuses(exit::FAILED, "no volume");

    lab.mount(&[]);
    lab.eject();
    give(&theirs, &user);
    for option in [&[][..], &["--accept-copy"], &["--re-enroll"]] {
        let mut args = vec!["attach".to_owned()];
        args.extend(option.iter().map(|word| (*word).to_owned()));
        args.extend([text(&theirs.join("link")), text(&lab.mnt)]);
        lab.ferryfs(&args).refuses(exit::FAILED, &whose);
    }
    lab.ferryfs(&["attach", &text(lab.drive.path()), &text(&lab.mnt)])
        .code(exit::DONE);
    lab.finish();
}

/// A user has his mount point swapped for a link to an empty directory of root's while root mounts
/// there.
#[test]
fn root_mounts_on_the_directory_that_was_looked_at_or_not_at_all() {
    let Some(user) = nobody() else { return };
    let Some(lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    let (theirs, victim) = (lab.root().join("theirs"), lab.root().join("victim"));
    for dir in [theirs.join("sub/mnt"), victim.join("mnt")] {
        fs::create_dir_all(dir).expect("mkdir");
    }
    std::os::unix::fs::symlink(victim.join("mnt"), theirs.join("link")).expect("symlink");
    for dir in [&theirs, &theirs.join("sub"), &theirs.join("sub/mnt")] {
        give(dir, &user);
    }
    let mount = |at: &Path| {
        let mut args = lab.mount_args(&[]);
        args.pop();
        args.push(text(at));
        lab.ferryfs(&args)
    };
    let is_mounted = |at: &Path| {
        let table = fs::read_to_string("/proc/self/mountinfo").expect("mount table");
        let at = text(at);
        table
            .lines()
            .any(|line| line.split(' ').nth(4) == Some(&at))
    };
    mount(&theirs.join("link")).refuses(exit::FAILED, "a link leads");
    for (swapped, elsewhere) in [("sub/mnt", "mnt"), ("sub", "")] {
        for _ in 0..8 {
            let attacker = swap_as(&user, &theirs.join(swapped), &victim.join(elsewhere));
            let done = mount(&theirs.join("sub/mnt"));
            drop(attacker);
            assert!(!is_mounted(&victim.join("mnt")), "{done:?}");
            assert!(!is_mounted(&victim), "{done:?}");
            let script = format!(
                "n={swapped}; if [ -L $n ]; then rm $n; fi; if [ -e $n.away ]; then mv $n.away $n; fi"
            );
            let put_back = || {
                let _ = Command::new("sh")
                    .args(["-c", &script])
                    .current_dir(&theirs)
                    .status();
            };
            put_back();
            if done.code == exit::DONE {
                let ended = lab.ferryfs(&["unmount", "--cache", &text(&lab.cache)]);
                assert!(
                    ended.code == exit::DONE || !is_mounted(&theirs.join("sub/mnt")),
                    "{ended:?}"
                );
            }
            lab::sh(
                lab.root(),
                "umount -l theirs/sub/mnt theirs/sub*/mnt* 2>/dev/null || :",
            );
            // A directory in which something was mounted could not be moved before.
            put_back();
        }
    }
    // Left alone it works, and ends.
    mount(&theirs.join("sub/mnt")).code(exit::DONE);
    assert!(is_mounted(&theirs.join("sub/mnt")));
    lab.ferryfs(&["unmount", &text(&theirs.join("sub/mnt"))])
        .code(exit::DONE);
    lab.finish();
}
