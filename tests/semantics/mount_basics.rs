//! The main job, end to end: what is written in the mount is on the drive after a flush, under its
//! own name, whole; and what is on the drive is in the mount.

use crate::on_both_drives;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::lab::{Backend, Lab, Node, Tree, assert_content, content, run, text, write};

/// A tree with what trees have: depth, empty things, names with spaces and letters of other
/// scripts, one larger file.
fn write_tree(lab: &Lab) {
    for n in 0..40 {
        write(
            &lab.m(format!("pages/{}/{n}.html", n % 7)),
            &content(n, 1000 + 97 * n as usize),
        );
    }
    write(&lab.m("empty file"), b"");
    fs::create_dir(lab.m("empty directory")).expect("mkdir");
    write(&lab.m("música/été – ž.txt"), b"names in UTF-8");
    write(&lab.m("日本/映画.mkv"), &content(99, 3 << 20));
    write(&lab.m("a/b/c/d/e/f/deep"), b"deep");
    write(&lab.m(".hidden"), b"dot files travel too");
}

on_both_drives!(
    what_is_written_is_on_the_drive_after_flush,
    drive_root_holds_plain_names_and_one_directory_of_ours,
    renames_and_deletes_reach_the_drive,
    replaced_kinds_reach_the_drive,
    empty_cache_shows_and_reads_what_is_on_the_drive,
    times_of_files_reach_the_drive,
    drive_only_file_opened_for_writing_is_brought_over,
    drive_only_file_that_is_truncated_is_not_fetched,
    flush_with_nothing_to_do_succeeds_and_says_so,
    unmount_flushes_and_frees_the_drive_at_once,
    unmount_without_flush_keeps_everything_for_the_next_mount,
    links_and_fifos_are_kept_and_counted_and_no_error,
);

fn what_is_written_is_on_the_drive_after_flush(lab: Lab) {
    write_tree(&lab);
    let status = lab.status();
    assert!(status["dirty_files"].as_u64() > Some(0), "{status}");
    assert!(status["dirty_bytes"].as_u64() >= Some(3 << 20), "{status}");
    assert_eq!(status["safe_to_unplug"], false, "{status}");

    let report = lab.flush();
    assert!(report["batch"].as_u64() >= Some(1), "{report}");
    assert_eq!(
        report["left_behind"].as_array().map(Vec::len),
        Some(0),
        "{report}"
    );
    assert!(report["files"].as_u64() >= Some(44), "{report}");
    assert!(report["bytes"].as_u64() >= Some(3 << 20), "{report}");
    lab.assert_drive_is_mount();

    let status = lab.status();
    for (field, value) in [
        ("dirty_files", 0),
        ("dirty_bytes", 0),
        ("open_for_write", 0),
    ] {
        assert_eq!(status[field].as_u64(), Some(value), "{field} in {status}");
    }
    assert_eq!(status["safe_to_unplug"], true, "{status}");
    assert_eq!(status["batch_in_progress"], false, "{status}");
    assert_eq!(status["backend_state"], "attached", "{status}");
    assert_eq!(status["mountpoint"], text(&lab.mnt), "{status}");
    assert_eq!(status["backend"], text(lab.drive.path()), "{status}");
    assert_eq!(status["last_batch"]["number"], report["batch"], "{status}");
    lab.finish();
}

fn drive_root_holds_plain_names_and_one_directory_of_ours(lab: Lab) {
    write(&lab.m("one"), b"1");
    write(&lab.m("two/three"), b"3");
    lab.flush();
    let mut names: Vec<_> = fs::read_dir(lab.drive.path())
        .expect("list the drive")
        .map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .into_string()
                .expect("UTF-8")
        })
        .collect();
    names.sort();
    assert_eq!(names, [".ferryfs", "one", "two"]);
    for marker in [".nomedia", ".metadata_never_index"] {
        assert!(
            lab.d(".ferryfs").join(marker).exists(),
            "{marker} keeps players and indexers out"
        );
    }
    assert!(
        !lab.m(".ferryfs").exists(),
        "our directory is not for scripts to see"
    );
    lab.finish();
}

fn renames_and_deletes_reach_the_drive(lab: Lab) {
    write_tree(&lab);
    lab.flush();
    fs::rename(lab.m("pages"), lab.m("old pages")).expect("rename a directory");
    fs::rename(lab.m("empty file"), lab.m("EMPTY FILE")).expect("rename by case alone");
    fs::remove_file(lab.m("old pages/3/3.html")).expect("unlink");
    fs::remove_dir_all(lab.m("a")).expect("remove a tree");
    // A cycle of names: each must end with the other's bytes.
    fs::rename(lab.m("old pages/1/1.html"), lab.m("swap")).expect("rename");
    fs::rename(lab.m("old pages/2/2.html"), lab.m("old pages/1/1.html")).expect("rename");
    fs::rename(lab.m("swap"), lab.m("old pages/2/2.html")).expect("rename");
    lab.flush();
    lab.assert_drive_is_mount();
    assert_content(lab.d("old pages/1/1.html"), content(2, 1000 + 97 * 2));
    assert_content(lab.d("old pages/2/2.html"), content(1, 1000 + 97));
    assert!(!lab.d("pages").exists() && !lab.d("a").exists());
    let names = Tree::read(lab.drive.path());
    assert!(
        names.0.contains_key("EMPTY FILE") && !names.0.contains_key("empty file"),
        "case-only rename"
    );
    lab.finish();
}

fn replaced_kinds_reach_the_drive(lab: Lab) {
    write(&lab.m("was a file"), b"file");
    write(&lab.m("was a directory/inside"), b"inside");
    lab.flush();
    fs::remove_file(lab.m("was a file")).expect("unlink");
    write(&lab.m("was a file/now inside"), b"directory");
    fs::remove_dir_all(lab.m("was a directory")).expect("remove");
    write(&lab.m("was a directory"), b"file");
    lab.finish_flushed();
}

fn empty_cache_shows_and_reads_what_is_on_the_drive(mut lab: Lab) {
    write_tree(&lab);
    lab.flush();
    let before = Tree::read(&lab.mnt);
    lab.unmount();
    // A file that came to the drive without us, from a Mac for instance.
    write(&lab.d("from elsewhere/film.mkv"), &content(7, 2 << 20));

    lab.take_new_cache();
    lab.mount(&[]);
    let mut now = Tree::read(&lab.mnt);
    assert_content(lab.m("from elsewhere/film.mkv"), content(7, 2 << 20));
    now.0.retain(|path, _| !path.starts_with("from elsewhere"));
    now.assert_same(&before, "the mount with a new cache", "the mount before");

    let status = lab.status();
    assert_eq!(
        status["dirty_files"].as_u64(),
        Some(0),
        "looking makes nothing dirty: {status}"
    );
    // Parts of a large file are read through as well as the whole.
    let film = fs::File::open(lab.m("from elsewhere/film.mkv")).expect("open");
    let mut middle = [0; 5000];
    film.read_exact_at(&mut middle, 1_234_567)
        .expect("read in the middle");
    assert_eq!(middle[..], content(7, 2 << 20)[1_234_567..1_239_567]);
    drop(film);
    lab.finish();
}

fn times_of_files_reach_the_drive(mut lab: Lab) {
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_500_000_001);
    write(&lab.m("old"), b"old");
    fs::File::options()
        .write(true)
        .open(lab.m("old"))
        .and_then(|file| file.set_modified(then))
        .expect("set time");
    lab.flush();
    // Two seconds are the coarsest step of any exFAT driver.
    let close = |path: &std::path::Path| {
        let time = fs::metadata(path)
            .and_then(|m| m.modified())
            .expect("mtime");
        let off = time.duration_since(then).unwrap_or_else(|e| e.duration());
        assert!(
            off <= Duration::from_secs(2),
            "{} is {off:?} off",
            path.display()
        );
    };
    close(&lab.d("old"));
    close(&lab.m("old"));
    lab.unmount();
    lab.take_new_cache();
    lab.mount(&[]);
    close(&lab.m("old"));
    lab.finish();
}

fn drive_only_file_opened_for_writing_is_brought_over(mut lab: Lab) {
    let bytes = content(5, 300_000);
    write(&lab.m("log"), &bytes);
    write(&lab.m("table"), &bytes);
    lab.flush();
    lab.unmount();
    lab.take_new_cache();
    lab.mount(&[]);

    let mut log = fs::File::options()
        .append(true)
        .open(lab.m("log"))
        .expect("open for append");
    log.write_all(b"one more line\n").expect("append");
    drop(log);
    let table = fs::File::options()
        .write(true)
        .open(lab.m("table"))
        .expect("open for writing");
    table.write_all_at(b"EDIT", 100_000).expect("edit in place");
    drop(table);

    let mut log = bytes.clone();
    log.extend_from_slice(b"one more line\n");
    let mut table = bytes;
    table[100_000..100_004].copy_from_slice(b"EDIT");
    assert_content(lab.m("log"), &log);
    assert_content(lab.m("table"), &table);
    lab.flush();
    assert_content(lab.d("log"), log);
    assert_content(lab.d("table"), table);
    lab.finish();
}

fn drive_only_file_that_is_truncated_is_not_fetched(mut lab: Lab) {
    write(&lab.m("big"), &content(6, 8 << 20));
    lab.flush();
    lab.unmount();
    lab.take_new_cache();
    lab.mount(&[]);
    fs::write(lab.m("big"), b"small now").expect("rewrite");
    let cached = lab.status()["cached_bytes"].as_u64().expect("cached_bytes");
    assert!(
        cached < 1 << 20,
        "{cached} bytes were fetched for a file that is being emptied"
    );
    lab.flush();
    assert_content(lab.d("big"), b"small now");
    lab.finish();
}

fn flush_with_nothing_to_do_succeeds_and_says_so(lab: Lab) {
    write(&lab.m("x"), b"x");
    lab.flush();
    let report = lab.flush();
    assert_eq!(report["files"].as_u64(), Some(0), "{report}");
    assert!(report["batch"].is_null(), "{report}");
    lab.finish();
}

fn unmount_flushes_and_frees_the_drive_at_once(mut lab: Lab) {
    write_tree(&lab);
    let tree = Tree::read(&lab.mnt).plain();
    lab.ferryfs(&["unmount", &text(&lab.mnt)]).ok();
    // What a script would do next, with no pause in between.
    if lab.drive.is_exfat() {
        run(Command::new("umount").arg(lab.drive.path())).ok();
        lab.drive.assert_clean();
        lab.drive.put_back();
    }
    assert!(!lab.is_mounted());
    tree.assert_same(
        &Tree::read(lab.drive.path()).without(".ferryfs"),
        "the mount",
        "the drive",
    );
    lab.remount();
    lab.finish();
}

fn unmount_without_flush_keeps_everything_for_the_next_mount(mut lab: Lab) {
    write(&lab.m("first"), b"flushed");
    lab.flush();
    write_tree(&lab);
    let tree = Tree::read(&lab.mnt);
    lab.unmount_with(&["--no-flush"]);
    assert!(!lab.d("pages").exists(), "--no-flush carries nothing over");
    lab.remount();
    tree.assert_same(&Tree::read(&lab.mnt), "the mount before", "the mount after");
    lab.finish_flushed();
}

fn links_and_fifos_are_kept_and_counted_and_no_error(mut lab: Lab) {
    write(&lab.m("real"), b"real");
    symlink("real", lab.m("link")).expect("symlink");
    nix::unistd::mkfifo(
        &lab.m("fifo"),
        nix::sys::stat::Mode::from_bits_truncate(0o640),
    )
    .expect("mkfifo");
    fs::set_permissions(
        lab.m("real"),
        std::os::unix::fs::PermissionsExt::from_mode(0o4711),
    )
    .expect("chmod");
    lab.flush();
    assert_eq!(lab.status()["kept_local"].as_u64().unwrap_or(0), 0);
    assert_eq!(lab.d("fifo").exists(), !lab.drive.is_exfat());
    lab.unmount();
    lab.remount();
    let tree = Tree::read(&lab.mnt);
    assert_eq!(tree.0.get("link"), Some(&Node::Symlink("real".into())));
    assert_eq!(tree.0.get("fifo"), Some(&Node::Special));
    assert_eq!(
        fs::metadata(lab.m("real")).expect("stat").mode() & 0o7777,
        0o4711
    );
    lab.finish();
}

#[test]
fn names_that_a_directory_can_hold_are_taken() {
    let Some(lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    for name in [
        "a:b",
        "what?",
        "dot.",
        "Readme",
        "readme",
        "back\\slash",
        "tab\there",
    ] {
        write(&lab.m(name), name.as_bytes());
    }
    lab.finish_flushed();
}
