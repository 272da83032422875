//! The only module that names `fuser`: it turns requests into calls of [`crate::vfs::Fs`], and
//! results into replies.
//!
//! An operation runs on the event thread that received it. If it returns that it would have to copy
//! or wait, it runs once more on a worker. A panic in one request replies EIO to that request and
//! is logged; other requests are not affected.

mod adapter;
mod convert;
mod dispatch;
mod fatal;
mod invalidator;
mod owner_override;
mod read_buffer;
mod request_times;
mod workers;

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use fuser::{BackgroundSession, Config, INodeNo, MountOption, Notifier, SessionACL};
use nix::mount::MsFlags;

use crate::sys::mounting;
use crate::sys::mounting::Spot;
use crate::vfs::{Fs, Syncer};

pub use crate::fuse::owner_override::Shown;
pub use crate::fuse::request_times::{BOUNDS_US, Counts, KINDS, RequestTimes};
pub use crate::fuse::workers::Workers;

/// Options of the mount for the kernel.
#[derive(Clone)]
pub struct SessionOptions {
    /// The source in the mount table: the backend's path.
    pub source: OsString,
    /// All users may access the mount, not only its owner.
    pub allow_other: bool,
    /// Set-user-id bits are effective.
    pub suid: bool,
    /// Device nodes are effective.
    pub dev: bool,
    /// Programs may be executed.
    pub exec: bool,
    /// The kernel refuses every change with `EROFS`.
    pub read_only: bool,
    /// Overrides of owner and mode.
    pub shown: Shown,
    /// A dead mount of ferryfs is at the mount point; the new one replaces it.
    pub replaces_dead: bool,
    /// Distinguishes the inode numbers of this cache from those of another cache.
    pub generation: u32,
    /// Counts the requests.
    pub times: RequestTimes,
}

/// A mounted file system with running event loops.
pub struct Session {
    background: BackgroundSession,
    invalidator: crate::fuse::invalidator::Invalidator,
}

impl Session {
    /// Mounts `fs` at `spot` and serves it on threads of its own.
    ///
    /// As root it mounts on the very directory that `spot` holds. For other users fusermount3
    /// checks, with their own rights, that they may use the directory at that path.
    ///
    /// # Errors
    /// If the kernel or fusermount3 refuses.
    pub fn mount(
        fs: Arc<Fs>,
        workers: Workers,
        syncer: Arc<Syncer>,
        spot: &Spot,
        options: &SessionOptions,
    ) -> io::Result<Session> {
        fatal::end_with_any_event_thread();
        let flag = |on, yes, no| if on { yes } else { no };
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName(escaped(&options.source.to_string_lossy())),
            MountOption::Subtype("ferryfs".into()),
            MountOption::DefaultPermissions,
            flag(options.suid, MountOption::Suid, MountOption::NoSuid),
            flag(options.dev, MountOption::Dev, MountOption::NoDev),
            flag(options.exec, MountOption::Exec, MountOption::NoExec),
            flag(options.read_only, MountOption::RO, MountOption::RW),
        ];
        config.acl = if options.allow_other {
            SessionACL::All
        } else {
            SessionACL::Owner
        };
        config.n_threads = Some(
            std::thread::available_parallelism()
                .map_or(2, usize::from)
                .clamp(2, 8),
        );
        config.clone_fd = true;
        let numbers = adapter::Numbers(options.generation);
        let with = (workers, syncer, options.times.clone());
        let adapter = adapter::Adapter::new(fs.clone(), with, options.shown, numbers);
        let session = if nix::unistd::geteuid().is_root() {
            let device = mount_as_root(spot, options)?;
            fuser::Session::from_fd(adapter, device, config.acl, config.clone())
                // The mount has no server; the first error is the one to report.
                .inspect_err(|_| take_back(spot))
        } else {
            fuser::Session::new(adapter, spot.path(), &config)
        };
        let session = session?;
        invalidate_at_once(&fs, session.notifier());
        let background = session.spawn().inspect_err(|_| take_back(spot))?;
        let invalidator = crate::fuse::invalidator::Invalidator::start(fs, background.notifier())?;
        Ok(Session {
            background,
            invalidator,
        })
    }

    /// Returns whether the kernel has ended the session because of an unmount.
    pub fn is_over(&self) -> bool {
        self.background.guard.is_finished()
    }

    /// Leaves the session to the end of the process, which closes it for programs with open files.
    pub fn abandon(self) {
        // A drop would wait for them.
        std::mem::forget(self.background);
        drop(self.invalidator);
    }

    /// Waits until the last request is answered. Called after the unmount.
    ///
    /// # Errors
    /// If an event loop ended with an error.
    pub fn end(self) -> io::Result<()> {
        drop(self.invalidator);
        self.background.join()
    }
}

/// Escapes a value for fusermount3, which takes all options in one word. A comma would begin
/// another option, for example one chosen by the owner of the drive's directory through its name.
fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace(',', r"\,")
}

/// Lets requests invalidate attributes before they are answered. The call does not block: without a
/// range of bytes the kernel takes no page locks, and the caller of the request holds the inode.
fn invalidate_at_once(fs: &Fs, notifier: Notifier) {
    const NO_BYTES: i64 = -1;
    fs.on_stale_attributes(move |ino| {
        if let Err(error) = notifier.inval_inode(INodeNo(ino.0), NO_BYTES, 0) {
            // ENODEV: the mount is gone.
            tracing::debug!(%error, ino = ino.0, "cannot invalidate attributes in the kernel");
        }
    });
}

/// Removes the mount that was just made at `spot`, as far as this process may.
fn take_back(spot: &Spot) {
    let _ = spot.again().and_then(|mounted| mounted.detach());
}

/// Mounts as root, without a helper, and returns the session's descriptor. The type in the mount
/// table is `fuse.ferryfs`, as fusermount3 sets it for other users; `fuser` itself omits the part
/// after the dot here.
fn mount_as_root(spot: &Spot, options: &SessionOptions) -> io::Result<OwnedFd> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")?;
    let flag = |on, flag| if on { MsFlags::empty() } else { flag };
    let flags = flag(options.suid, MsFlags::MS_NOSUID)
        | flag(options.dev, MsFlags::MS_NODEV)
        | flag(options.exec, MsFlags::MS_NOEXEC)
        | flag(!options.read_only, MsFlags::MS_RDONLY);
    let data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions{}",
        device.as_raw_fd(),
        if options.allow_other {
            ",allow_other"
        } else {
            ""
        }
    );
    if options.replaces_dead {
        let replaced =
            mounting::replace_mount(&options.source, spot, ("fuse", "ferryfs"), flags, &data);
        match replaced {
            Ok(()) => return Ok(device.into()),
            Err(error) => {
                tracing::debug!(%error, "cannot replace the dead mount; removing it first");
                let options = SessionOptions {
                    replaces_dead: false,
                    ..options.clone()
                };
                spot.detach()?;
                // With a new descriptor of the device: this one may be bound to the failed mount.
                return mount_as_root(&spot.again()?, &options);
            }
        }
    }
    spot.mount(&options.source, "fuse.ferryfs", flags, &data)?;
    Ok(device.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_ends_before_its_end_or_hides_the_next_option() {
        assert_eq!(escaped("/media/a drive"), "/media/a drive");
        assert_eq!(escaped(r"/media/a,suid\"), r"/media/a\,suid\\");
        assert_eq!(escaped(r"\,"), r"\\\,");
    }
}
