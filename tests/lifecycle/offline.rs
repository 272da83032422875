//! The drive is away: names list, cached files work, new ones are made, and all of it travels when
//! it is back.

use crate::on_both_drives;

use std::fs;
use std::io::Read;
use std::time::Duration;

use crate::lab::{Lab, Tree, assert_content, content, exit, text, wait_until, write};

on_both_drives!(
    ejected_drive_can_be_unmounted_with_a_reader_open,
    offline_lists_everything_and_reads_what_is_cached,
    uncached_file_offline_fails_with_no_medium,
    work_done_offline_is_carried_when_the_drive_is_back,
    empty_place_of_an_absent_drive_is_never_written_nor_believed,
    offline_mount_point_survives_a_restart_of_the_daemon,
);

fn wait_attached(lab: &Lab) {
    wait_until(
        "the drive to be attached again",
        Duration::from_secs(60),
        || lab.status()["backend_state"] == "attached",
    );
}

fn ejected_drive_can_be_unmounted_with_a_reader_open(lab: Lab) {
    let mut lab = lab.with_an_uncached_film(1 << 20, &[]);
    let mut reader = fs::File::open(lab.m("shelf/film")).expect("open");
    let mut start = [0; 4096];
    reader.read_exact(&mut start).expect("read");
    lab.eject();
    let status = lab.status();
    assert_eq!(status["backend_state"], "detached", "{status}");
    assert_eq!(status["safe_to_unplug"], true, "{status}");
    lab.drive.take_away();
    lab.drive.assert_clean();
    drop(reader);
    lab.drive.put_back();
    lab.finish();
}

fn offline_lists_everything_and_reads_what_is_cached(lab: Lab) {
    let mut lab = lab.with_an_uncached_film(1 << 20, &[]);
    lab.eject();
    lab.drive.take_away();
    let film = fs::metadata(lab.m("shelf/film")).expect("stat what is only on the drive");
    assert_eq!(film.len(), 1 << 20);
    let mut names: Vec<_> = fs::read_dir(lab.m("shelf"))
        .expect("list")
        .map(|e| e.expect("entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["film", "kept"]);
    assert_content(lab.m("shelf/kept"), content(3, 20_000));
    lab.drive.put_back();
    lab.finish();
}

fn uncached_file_offline_fails_with_no_medium(lab: Lab) {
    let mut lab = lab.with_an_uncached_film(1 << 20, &[]);
    lab.eject();
    lab.drive.take_away();
    for writing in [false, true] {
        let error = fs::File::options()
            .read(true)
            .write(writing)
            .open(lab.m("shelf/film"))
            .map(|mut file| file.read(&mut [0; 10]))
            .expect_err("the bytes are nowhere near");
        assert_eq!(error.raw_os_error(), Some(libc::ENOMEDIUM), "{error}");
    }
    lab.ferryfs(&["flush", &text(&lab.mnt)])
        .code(exit::NO_BACKEND);
    lab.drive.put_back();
    wait_attached(&lab);
    assert_content(lab.m("shelf/film"), content(1, 1 << 20));
    lab.finish();
}

fn work_done_offline_is_carried_when_the_drive_is_back(lab: Lab) {
    let mut lab = lab.with_an_uncached_film(1 << 20, &[]);
    lab.eject();
    lab.drive.take_away();
    for n in 0..50 {
        write(&lab.m(format!("offline/{n}")), &content(n, 3000));
    }
    fs::rename(lab.m("shelf/film"), lab.m("offline/film"))
        .expect("rename what is only on the drive");
    fs::remove_file(lab.m("shelf/kept")).expect("unlink");
    assert!(lab.status()["dirty_files"].as_u64() > Some(0));
    lab.drive.put_back();
    wait_attached(&lab);
    lab.flush();
    lab.assert_drive_is_mount();
    assert_content(lab.d("offline/film"), content(1, 1 << 20));
    lab.finish();
}

fn empty_place_of_an_absent_drive_is_never_written_nor_believed(lab: Lab) {
    let mut lab = lab.with_an_uncached_film(1 << 20, &[]);
    lab.eject();
    lab.drive.take_away();
    write(&lab.m("new"), b"new");
    let listed = fs::read_dir(&lab.mnt).expect("list").count();
    lab.flush_code(exit::NO_BACKEND);
    std::thread::sleep(Duration::from_secs(3));
    let stray: Vec<_> = fs::read_dir(lab.drive.path()).expect("list").collect();
    assert!(
        stray.is_empty(),
        "written to a place that is not the drive: {stray:?}"
    );
    assert_eq!(
        fs::read_dir(&lab.mnt).expect("list").count(),
        listed,
        "absent was taken for deleted"
    );
    assert!(
        fs::metadata(lab.m("shelf/film")).is_ok(),
        "absent was taken for deleted"
    );
    lab.drive.put_back();
    wait_attached(&lab);
    lab.flush();
    assert_content(lab.d("shelf/film"), content(1, 1 << 20));
    lab.finish();
}

fn offline_mount_point_survives_a_restart_of_the_daemon(mut lab: Lab) {
    write(&lab.m("a"), b"a");
    lab.flush();
    write(&lab.m("b"), b"b, not flushed");
    let tree = Tree::read(&lab.mnt);
    lab.kill9();
    lab.remount();
    tree.assert_same(&Tree::read(&lab.mnt), "before", "after");
    // The kill may have come before the close was known.
    lab.flush_interrupted();
    lab.finish();
}
