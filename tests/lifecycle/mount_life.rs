//! How a mount comes, stays and goes: by itself to the drive, in the background, with its cache
//! where it belongs.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;
use std::time::Duration;

use crate::lab::{Backend, Lab, assert_content, exit, text, wait_until, write};

#[test]
fn changes_reach_the_drive_by_themselves_when_it_is_quiet() {
    let Some(mut lab) = Lab::new(Backend::EXFAT) else {
        return;
    };
    lab.mount(&["--flush-after", "1s"]);
    write(&lab.m("left alone"), b"and carried");
    wait_until(
        "the file to be flushed by itself",
        Duration::from_secs(30),
        || lab.d("left alone").exists(),
    );
    wait_until("all to be safe", Duration::from_secs(10), || {
        lab.status()["safe_to_unplug"] == true
    });
    assert_content(lab.d("left alone"), b"and carried");
    lab.finish();
}

#[test]
fn mount_lets_go_of_the_output_it_was_given() {
    let Some(lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    let mut child = lab
        .command(&lab.mount_args(&[]))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()
        .expect("start");
    let mut pipes = (
        child.stdout.take().expect("piped"),
        child.stderr.take().expect("piped"),
    );
    let (sender, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut said = String::new();
        let _ = pipes.0.read_to_string(&mut said);
        let _ = pipes.1.read_to_string(&mut said);
        let _ = sender.send(said);
    });
    assert!(child.wait().expect("wait").success());
    // `$(ferryfs mount ...)` in a script would hang for ever otherwise.
    ended
        .recv_timeout(Duration::from_secs(10))
        .expect("the daemon holds on to the caller's output");
    lab.finish();
}

#[test]
fn the_cache_lies_below_xdg_data_home_and_survives() {
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    lab.mount(&["--default-cache"]);
    let volume = lab.status()["volume_id"]
        .as_str()
        .expect("volume_id")
        .to_owned();
    let cache = lab.root().join("data/ferryfs").join(&volume);
    assert!(cache.is_dir(), "{} should be the cache", cache.display());
    let mode = fs::metadata(&cache).expect("stat").mode() & 0o777;
    assert_eq!(mode, 0o700, "the cache is nobody else's to read");
    write(&lab.m("kept"), b"kept");
    lab.unmount_with(&["--no-flush"]);
    lab.remount();
    assert_content(lab.m("kept"), b"kept");
    lab.finish();
}

#[test]
fn mount_point_may_be_left_out_only_where_it_is_clear() {
    let Some(lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    // Other labs may be mounted at this moment: either answer is right, a guess is not.
    let done = lab.ferryfs(&["status", "--json"]);
    if done.code == exit::DONE {
        assert_eq!(done.json()["mountpoint"], text(&lab.mnt));
    } else {
        assert!(done.stderr.contains("mount"), "{}", done.stderr);
    }
    lab.finish();
}
