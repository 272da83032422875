//! Watching the backend: noticing that it is gone, and that it is back.
//!
//! Present means that its root still is on the file system it was on and carries the marker. What is there instead, an empty
//! mount point or another drive, is never written to. After an eject the drive must first be seen to be gone before it counts
//! as having come back.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use nix::poll::{PollFd, PollFlags, poll};
use parking_lot::Mutex;
use uuid::Uuid;

use crate::backend::Backend;
use crate::backend::drive::Drive;
use crate::backend::mounted::MountedDir;
use crate::flush::Flusher;
use crate::rules::layout;

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// The same while an ejected drive is waited for to go: it may be back within a second.
const EJECTED_INTERVAL: Duration = Duration::from_millis(200);

/// How long one wait for the mount table to change lasts; the request for a look comes to its right after that.
const TABLE_WAIT_MS: u8 = 50;

/// Whether the backend is at hand, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// It is attached.
    Attached,
    /// It is gone; when it is seen again, it is attached.
    Gone,
    /// It was let go of on request and has not been unplugged yet.
    Ejected,
}

/// Watches one backend.
pub(super) struct Monitor {
    drive: Arc<Drive>,
    flusher: Arc<Flusher>,
    backend: PathBuf,
    /// The volume's id and nonce.
    volume: (Uuid, [u8; 16]),
    presence: Mutex<Presence>,
    trouble: Mutex<Option<String>>,
    wake: (Sender<()>, Receiver<()>),
    table: Option<File>,
}

impl Monitor {
    /// A monitor of the volume `volume` at `backend`, which is attached now.
    pub(super) fn new(
        drive: Arc<Drive>,
        flusher: Arc<Flusher>,
        backend: PathBuf,
        volume: (Uuid, [u8; 16]),
    ) -> Monitor {
        Monitor {
            drive,
            flusher,
            backend,
            volume,
            presence: Mutex::new(Presence::Attached),
            trouble: Mutex::new(None),
            wake: bounded(1),
            table: File::open("/proc/self/mountinfo").ok(),
        }
    }

    /// Asks for a look at once.
    pub(super) fn look_now(&self) {
        // If one has been asked for already, that one serves.
        let _ = self.wake.0.try_send(());
    }

    /// What keeps the backend from being attached, if something does.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    /// Lets go of the backend.
    pub(super) fn let_go(&self, presence: Presence) {
        let mut now = self.presence.lock();
        self.drive.detach();
        *now = presence;
        self.look_now();
    }

    /// Waits until the next look is due: some time has passed, somebody asks for it, or the mount table has changed.
    pub(super) fn wait(&self) {
        let interval = match *self.presence.lock() {
            Presence::Ejected => EJECTED_INTERVAL,
            _ => INTERVAL,
        };
        let end = Instant::now() + interval;
        while Instant::now() < end && self.wake.1.try_recv().is_err() {
            if self.table_changes() {
                return;
            }
        }
    }

    /// Waits a moment for the mount table to change. The kernel marks its file when it does (proc(5), mountinfo).
    fn table_changes(&self) -> bool {
        let Some(table) = &self.table else {
            std::thread::sleep(Duration::from_millis(TABLE_WAIT_MS.into()));
            return false;
        };
        let mut fds = [PollFd::new(table.as_fd(), PollFlags::POLLPRI)];
        let changed = poll(&mut fds, TABLE_WAIT_MS).is_ok_and(|count| count > 0);
        changed
            && fds[0]
                .revents()
                .is_some_and(|events| events.contains(PollFlags::POLLPRI))
    }

    /// Looks once.
    pub(super) fn look(&self) {
        let presence = *self.presence.lock();
        match presence {
            Presence::Attached => self.look_for_loss(),
            Presence::Ejected if !self.is_marked() => *self.presence.lock() = Presence::Gone,
            Presence::Ejected => {}
            Presence::Gone => self.look_for_return(),
        }
    }

    fn is_marked(&self) -> bool {
        MountedDir::open(&self.backend)
            .is_ok_and(|backend| backend.metadata(&layout::marker_path()).is_ok())
    }

    fn look_for_loss(&self) {
        let Some(backend) = self.drive.get() else {
            return;
        };
        if let Err(error) = backend.metadata(&layout::marker_path())
            && !error.is_stalled()
        {
            tracing::warn!(%error, "the backend is gone; everything goes on from the cache");
            let mut presence = self.presence.lock();
            if *presence == Presence::Attached {
                self.drive.detach();
                *presence = Presence::Gone;
            }
        }
    }

    fn look_for_return(&self) {
        let Ok(backend) = MountedDir::open(&self.backend) else {
            return;
        };
        match super::volume::peek(&backend) {
            Ok(Some(marker)) if (marker.id, marker.nonce) == self.volume => {}
            Ok(Some(marker)) => {
                return self.note(format!(
                    "another volume is mounted at the backend's path: {}",
                    marker.id
                ));
            }
            Ok(None) => return,
            Err(error) => return self.note(error.to_string()),
        }
        self.drive.names_are_settled(false);
        self.drive.attach(Arc::new(backend));
        if let Err(error) = self.flusher.recover() {
            self.drive.detach();
            return self.note(error.to_string());
        }
        tracing::info!("the backend is back");
        *self.trouble.lock() = None;
        *self.presence.lock() = Presence::Attached;
        self.drive.refresh_space();
    }

    /// Notes, and logs if it is news, what keeps the backend from being attached.
    fn note(&self, problem: String) {
        let mut trouble = self.trouble.lock();
        if trouble.as_ref() != Some(&problem) {
            tracing::warn!(problem, "the backend cannot be attached");
            *trouble = Some(problem);
        }
    }
}
