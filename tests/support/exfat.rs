//! A real exFAT volume for tests: an image file behind a loop device, mounted with the userspace
//! driver (Debian's `exfat-fuse`). Needs root, `/dev/fuse`, loop devices, and exfatprogs.

#![allow(dead_code, unreachable_pub)] // Each test crate uses its own part of this.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

/// A mounted exFAT image. Dropping it unmounts it and gives the loop device back.
pub struct ExfatImage {
    // Dropped last: the image and the mount point are in it.
    dir: tempfile::TempDir,
    loop_device: Option<PathBuf>,
    mounted: bool,
}

impl ExfatImage {
    /// Makes and mounts an empty volume of `size_mib` MiB; `None`, said loudly on standard error,
    /// where that cannot be done.
    pub fn new(size_mib: u64) -> Option<ExfatImage> {
        match ExfatImage::try_new(size_mib) {
            Ok(image) => Some(image),
            Err(why) => {
                eprintln!("SKIPPED: no exFAT image on this machine: {why}");
                None
            }
        }
    }

    fn try_new(size_mib: u64) -> Result<ExfatImage, String> {
        if !nix::unistd::Uid::effective().is_root() {
            return Err("not root".to_string());
        }
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        let mut image = ExfatImage {
            dir,
            loop_device: None,
            mounted: false,
        };
        let make = || -> io::Result<()> {
            let file = std::fs::File::create(image.image())?;
            file.set_len(size_mib << 20)?;
            std::fs::create_dir(image.path())
        };
        make().map_err(|e| e.to_string())?;
        run(Command::new("mkfs.exfat").arg(image.image()))?;
        let shown = run(Command::new("losetup")
            .args(["--find", "--show"])
            .arg(image.image()))?;
        let device = String::from_utf8_lossy(&shown.stdout).trim().to_string();
        image.loop_device = Some(device.into());
        image.remount()?;
        Ok(image)
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// The mount point, whether something is mounted there or not.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// The block device that the volume is on.
    pub fn device(&self) -> &Path {
        self.loop_device.as_deref().expect("the image is attached")
    }

    /// The bytes that have reached the medium by now, without what the driver or the device's cache
    /// still holds back.
    ///
    /// # Errors
    /// If the image cannot be read.
    pub fn medium(&self) -> io::Result<Vec<u8>> {
        std::fs::read(self.image())
    }

    /// Unmounts, and waits until the driver has let go of the device.
    ///
    /// # Errors
    /// If the volume is busy.
    pub fn unmount(&mut self) -> Result<(), String> {
        if self.mounted {
            run(Command::new("umount").arg(self.path()))?;
            self.mounted = false;
            self.wait_for_driver();
        }
        Ok(())
    }

    /// Mounts the volume again at the same path.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn remount(&mut self) -> Result<(), String> {
        if !self.mounted {
            // Root uses no directory on it that anybody may exchange.
            run(Command::new("mount.exfat-fuse")
                .args(["-o", "umask=022"])
                .arg(self.device())
                .arg(self.path()))?;
            self.mounted = true;
        }
        Ok(())
    }

    /// Unmounts, checks the volume without changing it, and mounts it again if it was mounted.
    ///
    /// # Errors
    /// What the checker found.
    pub fn fsck(&mut self) -> Result<(), String> {
        let was_mounted = self.mounted;
        self.unmount()?;
        // Through the loop device, whose cache holds what the driver wrote last.
        let verdict = run(Command::new("fsck.exfat").arg("-n").arg(self.device()));
        if was_mounted {
            self.remount()?;
        }
        verdict.map(drop)
    }

    /// umount returns before the driver's process has closed the device, and a device in use is not
    /// given back. It can be opened exclusively once it is free.
    fn wait_for_driver(&self) {
        use std::os::unix::fs::OpenOptionsExt;
        for _ in 0..100 {
            let mut options = std::fs::OpenOptions::new();
            let free = options
                .read(true)
                .custom_flags(libc::O_EXCL)
                .open(self.device());
            if free.is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for ExfatImage {
    fn drop(&mut self) {
        if let Err(busy) = self.unmount() {
            eprintln!("exFAT image still busy, detaching it lazily: {busy}");
            let lazy = run(Command::new("umount").arg("--lazy").arg(self.path()));
            lazy.map(drop).unwrap_or_else(|e| eprintln!("{e}"));
        }
        if let Some(device) = &self.loop_device {
            let detached = run(Command::new("losetup").arg("--detach").arg(device));
            detached.map(drop).unwrap_or_else(|e| eprintln!("{e}"));
        }
    }
}

fn run(command: &mut Command) -> Result<Output, String> {
    let output = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(output);
    }
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    Err(format!(
        "{command:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&said)
    ))
}
