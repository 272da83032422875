//! Large files of which little has changed, on a real exFAT drive: what reaches the device, and
//! what another machine reads from the drive.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt;

use crate::lab::{Backend, Lab, assert_content, content, has, sh, skip};

const MIB: u64 = 1 << 20;

/// Bytes written to the block device that the drive is on, since it was made.
fn written_to(lab: &Lab) -> u64 {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("the mount table");
    let drive = lab.drive.path().display().to_string();
    let device = mounts
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(_, rest)| rest.split(' ').next() == Some(&drive))
        .map(|(device, _)| device.trim_start_matches("/dev/").to_owned())
        .expect("the drive is mounted");
    let stat = fs::read_to_string(format!("/sys/block/{device}/stat")).expect("its counters");
    let sectors = stat.split_whitespace().nth(6).expect("sectors written");
    sectors.parse::<u64>().expect("a number") * 512
}

fn written_by(lab: &Lab, work: impl FnOnce()) -> u64 {
    let before = written_to(lab);
    work();
    written_to(lab) - before
}

#[test]
fn a_small_change_in_a_large_file_costs_the_drive_little_and_arrives() {
    let Some(mut lab) = Lab::new(Backend::Exfat(256)) else {
        return;
    };
    if !has("cmp") {
        return skip("there is no cmp");
    }
    lab.mount(&[]);
    let mut image = content(7, 64 << 20);
    fs::write(lab.m("image"), &image).expect("write the image");
    let whole = written_by(&lab, || drop(lab.flush()));
    assert!(whole >= 64 * MIB, "the whole file: {whole}");
    // 4 KiB in the middle.
    let edit = content(8, 4096);
    let file = OpenOptions::new().write(true).open(lab.m("image"));
    let file = file.expect("open the image");
    file.write_at(&edit, 33 << 20).expect("change the image");
    drop(file);
    image[33 << 20..(33 << 20) + 4096].copy_from_slice(&edit);
    let changed = written_by(&lab, || drop(lab.flush()));
    assert!(changed < 2 * MIB, "4 KiB of 64 MiB: {changed}");
    assert_content(lab.d("image"), &image);
    // 100 KiB at the end.
    let more = content(9, 100 << 10);
    let file = OpenOptions::new().append(true).open(lab.m("image"));
    file.and_then(|mut file| file.write_all(&more))
        .expect("append to the image");
    image.extend_from_slice(&more);
    let grown = written_by(&lab, || drop(lab.flush()));
    assert!(grown < 4 * MIB, "100 KiB more: {grown}");
    assert_content(lab.d("image"), &image);
    let same_time = |path: &str| {
        let (ours, theirs) = (fs::metadata(lab.m(path)), fs::metadata(lab.d(path)));
        let secs = |meta: std::io::Result<fs::Metadata>| {
            let time = meta.and_then(|meta| meta.modified()).expect("its time");
            time.duration_since(std::time::UNIX_EPOCH)
                .expect("later")
                .as_secs()
        };
        assert!(secs(ours).abs_diff(secs(theirs)) <= 2);
    };
    same_time("image");
    // A new start knows the blocks as well, and without patches the file is written whole.
    lab.unmount();
    lab.mount(&["--delta", "never"]);
    let file = OpenOptions::new().write(true).open(lab.m("image"));
    file.and_then(|file| file.write_all_at(b"x", 5))
        .expect("change the image");
    image[5] = b'x';
    let whole = written_by(&lab, || drop(lab.flush()));
    assert!(whole >= 64 * MIB, "the whole file again: {whole}");
    assert_content(lab.d("image"), &image);
    lab.finish();
}

/// Killed in the middle of a flush of a large file that grows and changes.
#[test]
fn a_daemon_that_is_killed_while_it_patches_leaves_a_whole_file_after_the_next_start() {
    let Some(mut lab) = Lab::new(Backend::Exfat(256)) else {
        return;
    };
    lab.mount(&[]);
    let mut image = content(1, 32 << 20);
    fs::write(lab.m("image"), &image).expect("write the image");
    lab.flush();
    for round in 0..6_u64 {
        let file = OpenOptions::new().write(true).open(lab.m("image"));
        let file: File = file.expect("open the image");
        for at in 0..40_u64 {
            let (at, bytes) = (at * 700_001 + round, content(round * 100 + at, 3000));
            file.write_all_at(&bytes, at).expect("change the image");
            let at = at as usize;
            image[at..at + 3000].copy_from_slice(&bytes);
        }
        let more = content(round, 500_000);
        file.write_all_at(&more, image.len() as u64)
            .expect("grow the image");
        image.extend_from_slice(&more);
        file.sync_all().expect("sync");
        drop(file);
        let mut flush = lab.command(&["flush"]).spawn().expect("start a flush");
        std::thread::sleep(std::time::Duration::from_millis(40 * round));
        lab.kill9();
        let _ = flush.wait();
        lab.remount();
        lab.flush();
        assert_content(lab.m("image"), &image);
        assert_content(lab.d("image"), &image);
    }
    let left = sh(
        lab.drive.path(),
        "find .ferryfs/staging .ferryfs/batches -type f",
    );
    assert_eq!(left.ok().stdout, "", "left of the batches");
    lab.finish();
}
