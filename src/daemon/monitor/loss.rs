//! The drive is gone: noticing it, and telling a drive that was unmounted from one that was pulled.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Monitor, Presence, has_open_batch};
use crate::drive::{BackendError, Look};
use crate::sys::{mounts, superblock};

/// How long the kernel may take to write the dirty flag of a drive that was unmounted.
const LAST_WRITE: Duration = Duration::from_secs(1);

impl Monitor {
    /// Detaches the drive if it is gone. After an error of the drive the check reads from it.
    pub(in crate::daemon) fn look_for_loss(&self) {
        let look = match self.parts.bell.suspicious.swap(false, Ordering::AcqRel) {
            true => Look::Read,
            false => Look::Glance,
        };
        // As readers see it, which answers in bounded time.
        let Some(backend) = self.parts.drive.get() else {
            return;
        };
        match backend.check_alive(look) {
            // A drive that does not answer in time may only be slow.
            Err(error) if error.is_stalled() => {}
            // Without a descriptor or memory the check says nothing about the drive. Try again
            // soon.
            Err(error) if error.is_shortage() => {
                tracing::error!(%error, "cannot look at the drive");
                self.parts.bell.suspicious.store(true, Ordering::Release);
            }
            Err(error) => self.lose(&error),
            Ok(()) => self.note_table(),
        }
    }

    fn lose(&self, error: &BackendError) {
        let is_at_work = self.parts.flusher.is_running() || has_open_batch(&self.parts.cache);
        if !is_at_work && self.was_unmounted() {
            tracing::info!("the drive was unmounted; the mount continues from the cache");
        } else if error.is_not_found() {
            // The top directory is there, and .ferryfs is not.
            tracing::warn!("the folder .ferryfs was deleted; the mount continues from the cache");
            self.folder_deleted.store(true, Ordering::Release);
        } else {
            tracing::warn!(%error, "the drive is gone; the mount continues from the cache");
            self.vanished.store(true, Ordering::Release);
        }
        self.detach(Presence::Gone);
    }

    /// Whether the drive that is gone was unmounted cleanly: its file system is mounted nowhere,
    /// while its block device is still there; the device of a pulled drive is gone. If a FUSE
    /// driver may have died instead, the dirty flag decides. If the flag cannot be read, the drive
    /// was idle and has not been taken out.
    fn was_unmounted(&self) -> bool {
        let (mount, medium) = {
            let site = self.site.lock();
            (site.mount.clone(), site.medium)
        };
        let Some(mount) = mount else { return false };
        let is_mounted =
            mounts::mounts().is_ok_and(|table| table.iter().any(|m| m.dev == mount.dev));
        let Some(device) = mount.block_device().filter(|_| !is_mounted) else {
            return false;
        };
        // A mount leaves the table before its file system has written the flag.
        let end = Instant::now() + LAST_WRITE;
        loop {
            match superblock::read(device) {
                Ok(Some(found)) if found.dirty && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Ok(Some(found)) => return !found.dirty,
                // The same medium is inserted, so what was written to it is on it.
                _ => return medium.is_some() && medium == superblock::medium(device),
            }
        }
    }
}
