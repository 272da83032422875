//! The drive is pulled without an eject, at every kind of moment, and comes back: as another
//! device, at the same or another place, over its own stale mount, or as something that only looks
//! like it.

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::lab::{
    self, Backend, Done, Lab, Tree, Yank, assert_content, content, exit, only_mounts_of, run, sh,
    text, wait_until, write,
};

const LONG: Duration = Duration::from_secs(60);

const ALL: [Yank; 3] = [Yank::StaleMount, Yank::EmptyPlace, Yank::Both];

/// A mounted lab on an exFAT drive, the only kind that can be pulled here.
fn exfat_lab() -> Option<Lab> {
    Lab::mounted(Backend::Exfat(512))
}

fn wait_for(lab: &Lab, state: &str) {
    wait_until(&format!("the drive to be {state}"), LONG, || {
        lab.status()["backend_state"] == state
    });
}

fn attach(lab: &Lab, options: &[&str], path: &Path) -> Done {
    let mut args = vec!["attach"];
    args.extend(options);
    let (path, mnt) = (text(path), text(&lab.mnt));
    args.extend([path.as_str(), mnt.as_str()]);
    lab.ferryfs(&args)
}

/// Everything is carried, the drive is what the mount is, and its file system is sound.
#[track_caller]
fn settle(lab: Lab, expected: &Tree) {
    wait_for(&lab, "attached");
    expected.assert_same(
        &Tree::read(&lab.mnt),
        "before the yank",
        "after the drive came back",
    );
    lab.flush();
    lab.assert_drive_is_mount();
    let leftovers = fs::read_dir(lab.d(".ferryfs/staging")).map_or(0, Iterator::count)
        + fs::read_dir(lab.d(".ferryfs/batches")).map_or(0, Iterator::count);
    assert_eq!(leftovers, 0, "a batch has left something behind");
    lab.finish();
}

/// What is open on the drive in the daemon's process.
fn descriptors_on(lab: &Lab, place: &Path) -> Vec<PathBuf> {
    fs::read_dir(format!("/proc/{}/fd", lab.pid()))
        .expect("the daemon's descriptors")
        .flatten()
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .filter(|target| target.starts_with(place))
        .collect()
}

#[test]
fn yank_while_idle_is_noticed_and_everything_goes_on() {
    for yank in ALL {
        let Some(lab) = exfat_lab() else { return };
        let mut lab = lab.with_an_uncached_film(4 << 20, &[]);
        let place = lab.drive.path().to_path_buf();
        lab.drive.yank(yank);
        wait_for(&lab, "detached");
        let human = lab.ferryfs(&["status", &text(&lab.mnt)]).ok();
        assert!(human.stdout.contains("(detached)"), "{}", human.stdout);
        let error = fs::read(lab.m("shelf/film")).expect_err("it is only on the drive");
        assert_eq!(
            error.raw_os_error(),
            Some(libc::ENOMEDIUM),
            "{yank:?}: {error}"
        );
        assert_content(lab.m("shelf/kept"), content(3, 20_000));
        write(&lab.m("shelf/new"), b"made while it was away");
        lab.flush_code(exit::NO_BACKEND);
        lab.drive.plug_in_at(&place, yank != Yank::EmptyPlace);
        wait_for(&lab, "attached");
        assert_content(lab.m("shelf/film"), content(1, 4 << 20));
        let tree = Tree::read(&lab.mnt);
        settle(lab, &tree);
    }
}

#[test]
fn readers_of_a_pulled_drive_end_with_no_medium_and_hold_nothing_of_it() {
    for yank in [Yank::StaleMount, Yank::EmptyPlace] {
        let Some(lab) = exfat_lab() else { return };
        let mut lab = lab.with_an_uncached_film(4 << 20, &[]);
        let place = lab.drive.path().to_path_buf();
        let mut film = fs::File::open(lab.m("shelf/film")).expect("open");
        film.read_exact(&mut [0; 4096]).expect("read");
        // The flush that wrote it has left its pages in the kernel's memory, where even a dead
        // mount finds them.
        let forget = format!("dd if={} iflag=nocache count=0", text(&lab.d("shelf/film")));
        sh(lab.root(), &forget);
        lab.drive.yank(yank);
        let mut at = 1 << 20;
        // Pages that are in the kernel's memory are still there to be read; others are not.
        let error = loop {
            match film.read_at(&mut [0; 4096], at) {
                Ok(_) if at < 4 << 20 => at += 128 << 10,
                Ok(_) => break None,
                Err(error) => break error.raw_os_error(),
            }
        };
        if yank == Yank::StaleMount {
            assert_eq!(error, Some(libc::ENOMEDIUM));
        }
        wait_for(&lab, "detached");
        wait_until(
            "the daemon to let go of the drive",
            Duration::from_secs(10),
            || descriptors_on(&lab, &place).is_empty(),
        );
        if yank == Yank::StaleMount {
            lab.drive.unmount_stale(&place);
        }
        lab.drive.plug_in_at(&place, true);
        wait_for(&lab, "attached");
        let mut bytes = vec![0; 4096];
        film.read_exact_at(&mut bytes, 3 << 20)
            .expect("the same handle reads on");
        assert_eq!(bytes, content(1, 4 << 20)[3 << 20..][..4096]);
        drop(film);
        let tree = Tree::read(&lab.mnt);
        settle(lab, &tree);
    }
}

/// Fills the mount with changes of all kinds over what is on the drive, enough that a flush takes a
/// while.
fn many_changes(lab: &Lab) {
    for n in 0..300 {
        write(&lab.m(format!("old/{n}")), &content(n, 2000));
    }
    lab.flush();
    for n in 0..300 {
        match n % 3 {
            0 => write(&lab.m(format!("old/{n}")), &content(n + 1000, 3000)),
            1 => fs::remove_file(lab.m(format!("old/{n}"))).expect("unlink"),
            _ => {}
        }
    }
    for n in (2..300).step_by(6) {
        fs::rename(
            lab.m(format!("old/{n}")),
            lab.m(format!("old/{n} has moved")),
        )
        .expect("rename");
    }
    for n in 0..500 {
        write(
            &lab.m(format!("new/{}/{n}", n % 7)),
            &content(n + 2000, 20_000),
        );
    }
}

fn begin_flush(lab: &Lab) -> Child {
    lab.command(&["flush", &text(&lab.mnt)])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start a flush")
}

/// How many names the directory `dir` has; none if it cannot be read.
fn count(dir: PathBuf) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

fn staged(lab: &Lab) -> usize {
    let Ok(batches) = fs::read_dir(lab.d(".ferryfs/staging")) else {
        return 0;
    };
    batches.flatten().map(|batch| count(batch.path())).sum()
}

/// Pulls the drive in the middle of a flush, as soon as `moment` has come, and plugs it in again.
fn yank_in_a_flush(name: &str, yank: Yank, elsewhere: bool, moment: impl Fn(&Lab) -> bool) {
    let Some(mut lab) = exfat_lab() else { return };
    many_changes(&lab);
    let tree = Tree::read(&lab.mnt);
    let mut flush = begin_flush(&lab);
    // A look at the drive costs it time, so not too many of them.
    let mut looks = 0;
    while !moment(&lab) {
        looks += 1;
        let ended = flush.try_wait().expect("wait").is_some();
        assert!(!ended, "{name}: the flush was over after {looks} looks");
        std::thread::sleep(Duration::from_millis(2));
    }
    lab.drive.yank(yank);
    let ended = flush.wait().expect("wait").code();
    // With its files open, what is unmounted lazily may still take the last calls.
    if yank != Yank::EmptyPlace {
        assert_eq!(ended, Some(exit::NO_BACKEND), "{name}");
    }
    wait_for(&lab, "detached");
    let mut place = lab.drive.path().to_path_buf();
    if elsewhere {
        place = lab.root().join("elsewhere");
        fs::create_dir(&place).expect("another place");
    }
    lab.drive.plug_in_at(&place, yank != Yank::EmptyPlace);
    settle(lab, &tree);
}

#[test]
fn yank_while_staging_loses_nothing() {
    for (yank, elsewhere) in [
        (Yank::StaleMount, false),
        (Yank::EmptyPlace, false),
        (Yank::Both, true),
    ] {
        yank_in_a_flush("staging", yank, elsewhere, |lab| staged(lab) > 100);
    }
}

#[test]
fn yank_after_the_commit_loses_nothing() {
    for (yank, elsewhere) in [
        (Yank::StaleMount, true),
        (Yank::EmptyPlace, true),
        (Yank::Both, false),
    ] {
        yank_in_a_flush("commit", yank, elsewhere, |lab| {
            count(lab.d(".ferryfs/batches")) > 0
        });
    }
}

#[test]
fn yank_in_the_middle_of_apply_loses_nothing() {
    for (yank, elsewhere) in [
        (Yank::StaleMount, false),
        (Yank::EmptyPlace, false),
        (Yank::Both, true),
    ] {
        yank_in_a_flush("apply", yank, elsewhere, |lab| count(lab.d("new/3")) > 10);
    }
}

#[test]
fn yank_while_the_drive_is_imported_concludes_nothing() {
    for yank in [Yank::StaleMount, Yank::EmptyPlace] {
        let Some(mut lab) = Lab::new(Backend::Exfat(512)) else {
            return;
        };
        for dir in 0..150 {
            for n in 0..4 {
                write(&lab.d(format!("d{dir}/sub{n}/file")), &content(n, 100));
            }
        }
        run(Command::new("sync").args(["-f", &text(lab.drive.path())])).ok();
        let expected = Tree::read(lab.drive.path());
        let place = lab.drive.path().to_path_buf();
        lab.mount(&[]);
        assert_eq!(fs::read_dir(lab.m("d1")).expect("list").count(), 4);
        lab.drive.yank(yank);
        wait_for(&lab, "detached");
        lab.drive.plug_in_at(&place, true);
        settle(lab, &expected);
    }
}

#[test]
fn a_drive_over_its_stale_mount_or_elsewhere_is_found_without_being_told() {
    let Some(lab) = exfat_lab() else { return };
    let mut lab = lab.with_an_uncached_film(4 << 20, &[]);
    let stale = lab.drive.path().to_path_buf();
    let elsewhere = lab.root().join("HDD1");
    fs::create_dir(&elsewhere).expect("another place");
    lab.drive.yank(Yank::StaleMount);
    wait_for(&lab, "detached");
    lab.drive.plug_in_at(&elsewhere, true);
    wait_for(&lab, "attached");
    let status = lab.status();
    assert_eq!(status["backend"], text(&elsewhere), "{status}");
    write(&lab.m("new"), b"new");
    lab.flush();
    assert_content(elsewhere.join("new"), b"new");
    lab.drive.unmount_stale(&stale);
    // Remembered: told the old place, the next mount finds it at the new one.
    lab.unmount();
    let args = lab.mount_args(&[]);
    let at_old: Vec<String> = args
        .iter()
        .map(|arg| {
            if *arg == text(&elsewhere) {
                text(&stale)
            } else {
                arg.clone()
            }
        })
        .collect();
    lab.ferryfs(&at_old).code(exit::DONE);
    lab.adopt();
    assert_eq!(lab.status()["backend"], text(&elsewhere));
    assert_eq!(
        count(stale),
        0,
        "the empty place was taken for a new volume"
    );
    let tree = Tree::read(&lab.mnt);
    settle(lab, &tree);
}

#[test]
fn attach_refuses_what_is_not_the_drive_and_takes_what_is() {
    let Some(lab) = exfat_lab() else { return };
    let mut lab = lab.with_an_uncached_film(4 << 20, &[]);
    let place = lab.drive.path().to_path_buf();
    let busy = lab.root().join("empty");
    fs::create_dir(&busy).expect("an empty directory");
    attach(&lab, &[], &busy).refuses(exit::FAILED, "answers there");
    lab.eject();
    lab.drive.take_away();

    attach(&lab, &[], &busy).refuses(exit::NO_BACKEND, "no .ferryfs/volume.json");
    attach(&lab, &[], &lab.root().join("nothing")).refuses(exit::NO_BACKEND, "not there");
    let marker = |id: &str, nonce: &str| {
        format!(
            r#"{{"ferryfs":"volume","format":1,"id":"{id}","nonce":"{nonce}","created":0,"version":"0"}}"#
        )
    };
    let other = lab.root().join("other");
    let zeros = "0".repeat(32);
    let id = "00000000-0000-4000-8000-000000000001";
    write(
        &other.join(".ferryfs/volume.json"),
        marker(id, &zeros).as_bytes(),
    );
    attach(&lab, &[], &other).refuses(exit::NO_BACKEND, "another volume");
    let ours = lab.status()["volume_id"].as_str().expect("id").to_owned();
    write(
        &other.join(".ferryfs/volume.json"),
        marker(&ours, &zeros).as_bytes(),
    );
    attach(&lab, &[], &other).refuses(exit::NO_BACKEND, "enrolled again");
    write(&other.join(".ferryfs/volume.json"), b"garbage");
    attach(&lab, &[], &other).refuses(exit::FAILED, "marker");
    assert_eq!(count(other), 1, "something was written to another drive");
    assert_eq!(count(busy), 0, "something was written to an empty place");
    assert_eq!(lab.status()["backend_state"], "detached");

    lab.drive.plug_in_at(&place, false);
    let done = attach(&lab, &["--json"], &place).ok().json();
    assert_eq!(done["backend"], text(&place));
    let again = attach(&lab, &["--json"], &place).ok().json();
    assert_eq!(again["already"], true);
    let tree = Tree::read(&lab.mnt);
    settle(lab, &tree);
}

/// Mounts a second exFAT drive at `root`/`name`; `clone` makes it a copy of the whole image.
struct SecondDrive {
    place: PathBuf,
    node: String,
}

impl SecondDrive {
    fn new(root: &Path, name: &str, clone: Option<&Path>) -> SecondDrive {
        let image = root.join(format!("{name}.img"));
        let place = root.join(name);
        fs::create_dir(&place).expect("a place");
        match clone {
            Some(original) => drop(fs::copy(original, &image).expect("copy the image")),
            None => {
                let file = fs::File::create(&image).expect("image");
                file.set_len(64 << 20).expect("image");
                run(Command::new("mkfs.exfat").arg(&image)).ok();
            }
        }
        let node = run(Command::new("losetup")
            .args(["--find", "--show"])
            .arg(&image))
        .ok()
        .stdout
        .trim()
        .to_owned();
        run(Command::new("mount.exfat-fuse")
            .args(["-o", "umask=022"])
            .arg(&node)
            .arg(&place))
        .ok();
        SecondDrive { place, node }
    }

    fn unmount(&self) {
        run(Command::new("umount").arg(&self.place)).ok();
    }
}

impl Drop for SecondDrive {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.place).output();
        let _ = Command::new("losetup").args(["-d", &self.node]).output();
    }
}

#[test]
fn a_copy_of_the_marker_on_another_drive_is_not_written_to() {
    let Some(lab) = exfat_lab() else { return };
    let mut lab = lab.with_an_uncached_film(4 << 20, &[]);
    write(&lab.m("waits"), b"not flushed");
    let place = lab.drive.path().to_path_buf();
    let copy = SecondDrive::new(lab.root(), "copy", None);
    run(Command::new("cp").arg("-rT").arg(&place).arg(&copy.place)).ok();
    lab.drive.yank(Yank::EmptyPlace);
    wait_for(&lab, "detached");
    attach(&lab, &[], &copy.place).refuses(exit::FAILED, "looks like a copy");

    // At the known place, where a drive is attached without being asked, it is not taken either.
    run(Command::new("mount")
        .arg("--bind")
        .arg(&copy.place)
        .arg(&place))
    .ok();
    wait_until("the copy to be noticed", LONG, || {
        let error = lab.status()["last_error"].clone();
        error.as_str().is_some_and(|error| error.contains("copy"))
    });
    lab.flush_code(exit::NO_BACKEND);
    run(Command::new("umount").arg(&place)).ok();
    let expected = Tree::read(&copy.place);
    assert!(
        !copy.place.join("waits").exists(),
        "the copy was written to"
    );

    // Having looked, the user may say that it is the drive from now on.
    attach(&lab, &["--accept-copy"], &copy.place).ok();
    lab.flush();
    assert_content(copy.place.join("waits"), b"not flushed");
    assert_content(lab.m("shelf/film"), content(1, 4 << 20));
    assert_ne!(
        expected.without(".ferryfs"),
        Tree::read(&copy.place).without(".ferryfs")
    );
    lab.unmount();
    copy.unmount();
    // The old one is the copy now.
    lab.drive.plug_in_at(&place, false);
    lab.try_mount(&[])
        .refuses(exit::FAILED, "looks like a copy");
}

#[test]
fn of_two_drives_with_one_marker_none_is_taken_before_the_user_says_which() {
    let Some(lab) = exfat_lab() else { return };
    let mut lab = lab.with_an_uncached_film(4 << 20, &[]);
    write(&lab.m("waits"), b"not flushed");
    let place = lab.drive.path().to_path_buf();
    lab.eject();
    let image = lab.drive.image();
    let node = lab.drive.node();
    run(Command::new("blockdev").args(["--flushbufs", &node])).ok();
    let clone = SecondDrive::new(lab.root(), "clone", Some(&image));
    attach(&lab, &[], &place).refuses(exit::FAILED, "copy of the other");
    attach(&lab, &[], &clone.place).refuses(exit::FAILED, "copy of the other");
    assert_eq!(lab.status()["backend_state"], "detached");
    // One that was mounted beside the drive all along is not where the drive went to.
    lab.drive.take_away();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(lab.status()["backend_state"], "detached");
    lab.drive.plug_in_at(&place, false);
    wait_until("the two to be noticed", LONG, || {
        let error = lab.status()["last_error"].clone();
        error
            .as_str()
            .is_some_and(|error| error.contains("copy of the other"))
    });
    assert_eq!(lab.status()["backend_state"], "detached");
    clone.unmount();
    wait_for(&lab, "attached");
    let tree = Tree::read(&lab.mnt);
    settle(lab, &tree);
}

#[test]
fn attach_with_fsck_checks_the_unmounted_drive_and_takes_the_warning_away() {
    let Some(mut lab) = exfat_lab() else { return };
    write(&lab.m("a"), &content(1, 100_000));
    lab.flush();
    let place = lab.drive.path().to_path_buf();
    lab.drive.yank(Yank::Both);
    wait_for(&lab, "detached");
    write(&lab.m("b"), b"offline");
    lab.drive.plug_in_at(&place, false);
    wait_for(&lab, "attached");
    let status = lab.status();
    let warning = status["warnings"][0].as_str().unwrap_or_default();
    assert!(warning.contains("ferryfs attach --fsck"), "{status}");
    assert!(warning.contains("fsck.exfat -y"), "{status}");
    let human = lab.ferryfs(&["status", &text(&lab.mnt)]).ok();
    assert!(human.stdout.contains("warning"), "{}", human.stdout);

    let done = attach(&lab, &["--fsck", "--json"], &place).ok().json();
    assert_eq!(done["checked"], true, "{done}");
    assert_eq!(lab.status()["warnings"].as_array().map(Vec::len), Some(0));
    assert_content(lab.m("a"), content(1, 100_000));
    let tree = Tree::read(&lab.mnt);
    settle(lab, &tree);
}

#[test]
fn mount_with_fsck_checks_the_drive_first() {
    let Some(mut lab) = exfat_lab() else { return };
    write(&lab.m("a"), &content(1, 100_000));
    lab.unmount();
    let mounted = lab.try_mount(&["--fsck"]).ok();
    lab.adopt();
    let said = &mounted.stderr;
    assert!(
        said.contains("the drive was checked and has no errors"),
        "{said}"
    );
    assert_content(lab.m("a"), content(1, 100_000));
    let tree = Tree::read(&lab.mnt);
    settle(lab, &tree);
}

#[test]
fn what_was_changed_on_the_drive_while_it_was_away_is_taken_in_and_nothing_is_overwritten() {
    let Some(mut lab) = exfat_lab() else { return };
    for name in ["gone", "changed", "same", "mine"] {
        write(&lab.m(name), &content(1, 5000));
    }
    lab.flush();
    let place = lab.drive.path().to_path_buf();
    lab.drive.yank(Yank::EmptyPlace);
    wait_for(&lab, "detached");
    write(&lab.m("mine"), b"changed in the mount");
    write(&lab.m("changed"), b"changed here, too");
    // Somebody else has the drive meanwhile.
    let other = lab.root().join("tv");
    fs::create_dir(&other).expect("a place");
    let node = lab.drive.node();
    // In a mount namespace of its own: what is mounted here, the daemon would find.
    let script = only_mounts_of(lab.root())
        + &format!(
            "mount.exfat-fuse {node} {0}; rm {0}/gone; \
         echo changed elsewhere > {0}/changed; echo made elsewhere > {0}/theirs; umount {0}",
            text(&other)
        );
    run(Command::new("unshare").args(["--mount", "bash", "-euc", &script])).ok();
    lab.drive.plug_in_at(&place, false);
    wait_for(&lab, "attached");
    wait_until(
        "what was made there to be seen",
        Duration::from_secs(60),
        || lab.m("theirs").exists(),
    );
    lab.flush();
    // Removed there, with the drive at hand that says so, and not touched here.
    assert!(!lab.m("gone").exists());
    assert_content(lab.m("same"), content(1, 5000));
    assert_content(lab.m("theirs"), b"made elsewhere\n");
    assert_content(lab.d("mine"), b"changed in the mount");
    assert_content(lab.d("changed"), b"changed here, too");
    let other = fs::read_dir(lab.drive.path())
        .expect("list")
        .map(|entry| entry.expect("entry").path())
        .find(|path| text(path).contains("changed.sync-conflict-"));
    assert_content(other.expect("the other version"), b"changed elsewhere\n");
    lab.finish();
}

/// The device that is mounted at `place`.
fn device_at(place: &Path) -> String {
    let table = fs::read_to_string("/proc/self/mounts").expect("the mount table");
    let line = table
        .lines()
        .find(|line| line.split(' ').nth(1) == place.to_str())
        .expect("it is mounted");
    line.split(' ').next().expect("a device").to_owned()
}

#[test]
fn a_clean_umount_of_an_idle_drive_is_no_alarm_and_it_is_found_where_it_is_mounted_next() {
    let Some(lab) = exfat_lab() else { return };
    write(&lab.m("f"), b"f");
    lab.flush();
    assert_eq!(lab.status()["safe_to_unplug"], true);
    let (here, there) = (lab.drive.path().to_path_buf(), lab.root().join("HDD1"));
    fs::create_dir(&there).expect("another place");
    let device = device_at(&here);
    for (from, to) in [(&here, &there), (&there, &here)] {
        lab::run(std::process::Command::new("umount").arg(from)).ok();
        wait_for(&lab, "detached");
        let status = lab.status();
        assert_eq!(status["warnings"], serde_json::json!([]), "{status}");
        assert_eq!(status["last_error"], serde_json::Value::Null, "{status}");
        lab::run(std::process::Command::new("mount.exfat-fuse").args([
            "-o",
            "umask=022",
            &device,
            &text(to),
        ]))
        .ok();
        wait_for(&lab, "attached");
        let status = lab.status();
        assert_eq!(status["backend"], text(to), "{status}");
        assert_eq!(status["warnings"], serde_json::json!([]), "{status}");
    }
    let log = fs::read_to_string(lab.cache.join("ferryfs.log")).expect("the log");
    assert!(!log.contains(" WARN ") && !log.contains(" ERROR "), "{log}");
    lab.finish();
}
