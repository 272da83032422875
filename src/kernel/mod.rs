//! The only room that names `fuser`: it turns requests into calls of [`crate::fs::Fs`] and answers into replies.
//!
//! An operation runs on the event thread that received it, and once more on a worker if it says that it would have to wait for
//! the backend. A panic in one request answers EIO to that request and is logged; it takes nobody along.

mod adapter;
mod convert;
mod fatal;
mod shown;
mod teller;
mod workers;

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use fuser::{BackgroundSession, Config, INodeNo, MountOption, Notifier, SessionACL};
use nix::mount::MsFlags;

use crate::fs::{Fs, Syncer};
use crate::sys::mounting::{self, Spot};

pub use shown::Shown;
pub use workers::Workers;

/// Options of the mount that the kernel is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// Shown as the source in the mount table: the backend's path.
    pub source: OsString,
    /// Everybody may enter, not only the owner.
    pub allow_other: bool,
    /// Set-user-id bits count.
    pub suid: bool,
    /// Device nodes work.
    pub dev: bool,
    /// Programs may be run.
    pub exec: bool,
    /// What is shown in the place of owners and modes.
    pub shown: Shown,
    /// A dead mount of ours is at the mount point; this one takes its place.
    pub replaces_dead: bool,
    /// Tells the inode numbers of this cache from those of another.
    pub generation: u32,
}

/// A mounted file system with its event loops running.
pub struct Session {
    background: BackgroundSession,
    teller: teller::Teller,
}

impl Session {
    /// Mounts `fs` at `spot` and serves it from threads of its own.
    ///
    /// As root on the very directory that is held; for others fusermount3 makes sure, with their own rights, that the directory
    /// at that path may be used by them.
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
        let adapter = adapter::Adapter::new(fs.clone(), workers, syncer, options.shown, numbers);
        let session = if nix::unistd::geteuid().is_root() {
            let device = mount_as_root(spot, options)?;
            fuser::Session::from_fd(adapter, device, config.acl, config.clone())
                // Nobody serves it; the error that counts is the first.
                .inspect_err(|_| take_back(spot))
        } else {
            fuser::Session::new(adapter, spot.path(), &config)
        };
        let session = session?;
        tell_at_once(&fs, session.notifier());
        let background = session.spawn().inspect_err(|_| take_back(spot))?;
        let teller = teller::Teller::start(fs, background.notifier())?;
        Ok(Session { background, teller })
    }

    /// Whether the kernel has ended the session, because somebody has unmounted it.
    pub fn is_over(&self) -> bool {
        self.background.guard.is_finished()
    }

    /// Leaves it to the end of the process, which cuts off whoever still has files open.
    pub fn abandon(self) {
        // Dropped, it would wait for them.
        std::mem::forget(self.background);
        drop(self.teller);
    }

    /// Waits until the last request is answered, after the mount has been taken away.
    ///
    /// # Errors
    /// If an event loop ended with an error.
    pub fn end(self) -> io::Result<()> {
        drop(self.teller);
        self.background.join()
    }
}

/// A value for fusermount3, which takes all options in one word: a comma in it would begin another
/// option, such as one that the owner of the drive's directory has chosen by its name.
fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace(',', r"\,")
}

/// Lets requests tell the kernel that attributes are stale, before they are answered. That waits
/// for nobody: without a range of bytes the kernel takes no lock of pages, and the inode is held by
/// whoever asks.
fn tell_at_once(fs: &Fs, notifier: Notifier) {
    const NO_BYTES: i64 = -1;
    fs.tell_of_stale_attributes(move |ino| {
        if let Err(error) = notifier.inval_inode(INodeNo(ino.0), NO_BYTES, 0) {
            // ENODEV: the mount is gone.
            tracing::debug!(%error, ino = ino.0, "the kernel has not been told of stale attributes");
        }
    });
}

/// Takes away the mount that has just been made at `spot`, as far as this process may.
fn take_back(spot: &Spot) {
    let _ = spot.again().and_then(|mounted| mounted.detach());
}

/// Mounts as root, without a helper, and gives the session's end. The type in the mount table is `fuse.ferryfs`, as
/// fusermount3 makes it for ordinary users; `fuser` itself leaves the part after the dot out here.
fn mount_as_root(spot: &Spot, options: &SessionOptions) -> io::Result<OwnedFd> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")?;
    let flag = |on, flag| if on { MsFlags::empty() } else { flag };
    let flags = flag(options.suid, MsFlags::MS_NOSUID)
        | flag(options.dev, MsFlags::MS_NODEV)
        | flag(options.exec, MsFlags::MS_NOEXEC);
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
                tracing::debug!(%error, "the dead mount is taken away before the new one is made");
                let options = SessionOptions {
                    replaces_dead: false,
                    ..options.clone()
                };
                spot.detach()?;
                // With a device of its own: this one may be bound to the mount that came to nothing.
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
