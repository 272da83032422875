//! The SSD fails under a running daemon: its file system is shut down at once, as by a disk that
//! answers no more. Every call on it then gives EIO, and what was not synced is gone. Nothing
//! durable is lost, nobody is told success, and the daemon lives to say so.

use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::lab::{
    Backend, Lab, SmallSsd, content, exit, skip, small_disk, text, wait_until, write,
};
use ferryfs::core::RelPath;
use ferryfs::drive::Backend as _;
use ferryfs::drive::mounted::MountedDir;

/// Bytes that small ext4 file systems keep together.
const BLOCK: usize = 1024;

/// `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH`: as if the power of the disk were cut.
fn shut_down(ssd: &SmallSsd) -> std::io::Result<()> {
    const SHUTDOWN: u64 = 0x8004_587d;
    let dir = fs::File::open(ssd.path())?;
    let flags: u32 = 2;
    // SAFETY: the call reads one u32 behind a pointer that is valid for its duration; the
    // descriptor is open.
    let done = unsafe { libc::ioctl(dir.as_raw_fd(), SHUTDOWN as _, &raw const flags) };
    match done {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[test]
fn ssd_that_answers_no_more_is_told_to_everybody_and_loses_nothing_durable() {
    let Some((mut lab, ssd)) = Lab::on_small_ssd(Backend::Ext4Dir, 96) else {
        return;
    };
    lab.mount(&[]);
    write(&lab.m("carried"), &content(1, 100_000));
    lab.flush();
    let mut durable = fs::File::create(lab.m("durable")).expect("create");
    durable.write_all(&content(2, 300_000)).expect("write");
    durable.sync_all().expect("fsync");
    let drive_before = fs::read(lab.d("carried")).expect("on the drive");

    if let Err(error) = shut_down(&ssd) {
        return skip(&format!("this file system cannot be shut down: {error}"));
    }
    // A write may still go to memory, an fsync may not succeed; not the first, and none after it.
    let _ = durable.write_all(b"never durable");
    for _ in 0..3 {
        let told = durable.sync_all().expect_err("nothing can be durable");
        assert_eq!(told.raw_os_error(), Some(libc::EIO));
    }
    let made = fs::File::create(lab.m("new")).and_then(|file| file.sync_all());
    made.expect_err("nothing new can be made durable");
    let done = lab.ferryfs(&["flush", &text(&lab.mnt)]);
    assert_eq!(done.code, exit::FAILED, "{}", done.stderr);
    assert!(fs::read(lab.d("carried")).expect("there") == drive_before);
    // It answers, and says what is wrong.
    let status = lab.status();
    let error = status["last_error"].as_str().unwrap_or_default();
    assert!(!error.is_empty(), "{status}");
    assert_eq!(status["safe_to_unplug"], false, "{status}");

    drop(durable);
    lab.kill9();
    ssd.mount_anew().expect("the SSD is back");
    wait_until("the SSD to be there", Duration::from_secs(10), || {
        lab.cache.join("index.db").exists()
    });
    lab.remount();
    let kept = fs::read(lab.m("durable")).expect("it was fsynced");
    assert!(
        kept.starts_with(&content(2, 300_000)),
        "{} bytes",
        kept.len()
    );
    assert!(fs::read(lab.m("carried")).expect("read") == content(1, 100_000));
    lab.flush_interrupted();
    lab.assert_drive_is_mount();
    lab.finish_on_small_ssd(ssd);
}

#[test]
fn what_is_read_back_is_what_the_medium_has_not_what_memory_has() {
    let root = tempfile::tempdir().expect("a directory");
    let Some(disk) = small_disk(root.path(), 32, 0) else {
        return;
    };
    let written = content(5, 1 << 20);
    write(&disk.path().join("f"), &written);
    let drive = MountedDir::open(disk.path()).expect("open");
    drive.sync().expect("sync");
    damage(&root.path().join("ssd.img"), &written[4096..4096 + BLOCK]);
    let path = RelPath::parse(b"f").expect("a path");
    let read = |file: Box<dyn ferryfs::drive::ReadFile>| {
        let mut bytes = vec![0; written.len()];
        let got = file.read_at(&mut bytes, 0).expect("read");
        bytes.truncate(got);
        bytes
    };
    assert!(
        read(drive.open(&path).expect("open")) == written,
        "memory has what was written"
    );
    let found = read(drive.open_uncached(&path).expect("open"));
    assert!(found != written, "the damage was not seen");
    assert_eq!(found[..4096], written[..4096]);
}

/// Changes a byte of a disk's image behind the back of the file system that is on it.
fn damage(image: &std::path::Path, block: &[u8]) {
    let disk = fs::read(image).expect("the image");
    let at = disk.chunks(BLOCK).position(|chunk| chunk == block);
    let at = (at.expect("the block is on the disk") * BLOCK) as u64;
    let image = fs::File::options().write(true).open(image).expect("open");
    image.write_all_at(&[!block[0]], at).expect("damage");
    image.sync_all().expect("sync");
}

#[test]
fn every_flush_reads_back_what_it_wrote_if_the_mount_says_so() {
    let Some(mut lab) = Lab::new(Backend::EXFAT) else {
        return;
    };
    lab.mount(&["--verify", "after-flush"]);
    for n in 0..30 {
        write(&lab.m(format!("d/f{n}")), &content(n, 70_000 * n as usize));
    }
    lab.flush();
    lab.assert_drive_is_mount();
    write(&lab.m("d/f3"), &content(99, 3 << 20));
    lab.finish_flushed();
}
