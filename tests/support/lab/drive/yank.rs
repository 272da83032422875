//! Pulling a drive without asking, and plugging it in again as the kernel does it: under another
//! device node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::super::run::{kill9, run, wait_until};
use super::{Drive, Kind, attach, is_mount};

/// What is left in the mount table by a yank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Yank {
    /// The mount, dead: every call on it fails. What the file system's driver had not written is
    /// lost.
    StaleMount,
    /// Nothing: an empty directory. Whoever has a file open goes on with it.
    EmptyPlace,
    /// Nothing, and every call on what was open fails.
    Both,
}

impl Drive {
    fn image_and_device(&mut self) -> (PathBuf, &mut Option<String>) {
        match &mut self.kind {
            Kind::Exfat { device, image } => (image.clone(), device),
            Kind::Plain { .. } | Kind::Given(_) => panic!("only an exFAT drive can be pulled"),
        }
    }

    /// Pulls it.
    #[track_caller]
    pub fn yank(&mut self, how: Yank) {
        if let Kind::Given(given) = &self.kind {
            return given.yank();
        }
        let path = self.path.clone();
        let node = self.image_and_device().1.clone().expect("it is plugged in");
        if how != Yank::EmptyPlace {
            kill9(driver_of(&node).expect("a process serves the drive"));
        }
        if how != Yank::StaleMount {
            run(Command::new("umount").arg("-l").arg(&path)).ok();
        }
    }

    /// Plugs it in again, under another device node, and mounts it at `place`: over its own stale
    /// mount if that still stands there. With `fsck` its file system is checked before.
    #[track_caller]
    pub fn plug_in_at(&mut self, place: &Path, fsck: bool) {
        let (image, device) = self.image_and_device();
        let old = device.take();
        if let Some(old) = &old {
            // What it had taken in is on the medium.
            run(Command::new("blockdev").args(["--flushbufs", old])).ok();
        }
        let node = attach(&image).expect("a loop device");
        let _ = device.insert(node.clone());
        self.stale.extend(old);
        self.path = place.to_path_buf();
        if fsck {
            let done = run(Command::new("fsck.exfat").args(["-y", &node]));
            assert!(done.code & !3 == 0, "{}{}", done.stdout, done.stderr);
        }
        self.mount_at_its_place();
    }

    /// exfat-fuse refuses to mount over a dead mount, the kernel does not.
    #[track_caller]
    pub fn mount_at_its_place(&mut self) {
        let node = self.image_and_device().1.clone().expect("it is plugged in");
        let waiting = self.path.with_extension("coming");
        fs::create_dir_all(&waiting).expect("a place to mount it at first");
        run(Command::new("mount.exfat-fuse")
            .args(["-o", "umask=022"])
            .arg(&node)
            .arg(&waiting))
        .ok();
        assert!(is_mount(&waiting), "exfat-fuse did not mount {node}");
        run(Command::new("mount")
            .arg("--move")
            .arg(&waiting)
            .arg(&self.path))
        .ok();
        fs::remove_dir(&waiting).expect("nothing is left there");
    }

    /// Unmounts what stands at `place`, which works only if nobody holds it.
    #[track_caller]
    pub fn unmount_stale(&self, place: &Path) {
        let umount = || run(Command::new("umount").arg(place)).code == 0;
        wait_until("the stale mount to go", Duration::from_secs(20), umount);
    }

    /// The image that it is on; it is unplugged.
    pub fn image(&mut self) -> PathBuf {
        self.image_and_device().0
    }

    /// The node that it is under now.
    pub fn node(&mut self) -> String {
        self.image_and_device().1.clone().expect("it is plugged in")
    }
}

/// The process of exfat-fuse that serves the device `node`.
fn driver_of(node: &str) -> Option<i32> {
    let entries = fs::read_dir("/proc").ok()?;
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .find(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split(|&b| b == 0);
            words
                .next()
                .is_some_and(|name| name.ends_with(b"mount.exfat-fuse"))
                && words.any(|word| word == node.as_bytes())
        })
}
