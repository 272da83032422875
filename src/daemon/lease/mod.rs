//! The lease: only one machine at a time uses a directory that several machines can reach.
//!
//! The format of the file is in [`crate::format::lease`], how it is taken in [`claim`]. The holder
//! checks several times a minute whether it still holds the lease, and removes the knocks of
//! machines that ask for it. The lease is read again before anything of a batch is written, and
//! again before the batch's record: no clock and no promise of the network is relied on. A call
//! that was under way when the lease was lost may take effect later; the batch's record exists
//! then, and the machine that has taken over has finished the batch.
//!
//! A drive has no lease, because only one machine can mount it. A lease would make each mount write
//! to a drive that may never be written to, would stay when the drive is pulled, and would make the
//! next machine wait for a minute. If one exists nevertheless (made by `--lease always`), it is
//! respected.
//!
//! The state is in memory only. A crash leaves a lease for which no daemon answers; the same cache
//! takes it at once, other machines when it has not been answered for. No lock is held during a
//! call to the drive.

mod claim;
mod files;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use uuid::Uuid;

use self::claim::Claim;
use self::files::LeaseFile;
use super::options::LeaseMode;
use super::service::rfc3339;
use crate::core::{Exit, Failure, RelPath, Timestamp, printable};
use crate::drive::{Backend, BackendError};
use crate::format::lease::{Lease, LeaseError};
use crate::format::{layout, lease};

/// The time between two looks while the lease is being asked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How often a damaged lease is read again before it counts as damaged.
const REREADS: u32 = 5;

/// The holder of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// The daemon in this lease.
    Known(Box<Lease>),
    /// Unknown, because the lease is damaged.
    Unknown,
    /// No daemon, as far as is known.
    Nobody,
}

impl Holder {
    fn of(found: &LeaseFile) -> Holder {
        match found {
            LeaseFile::Whole(lease, _) => Holder::Known(lease.clone()),
            LeaseFile::Damaged(_) => Holder::Unknown,
            LeaseFile::Absent => Holder::Nobody,
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Known(lease) => write!(
                f,
                "ferryfs on {} (process {}, since {})",
                printable(&lease.host),
                lease.pid,
                rfc3339(lease.since)
            ),
            Holder::Unknown => f.write_str("a ferryfs whose lease (.ferryfs/lease) is damaged"),
            Holder::Nobody => f.write_str("no ferryfs"),
        }
    }
}

/// The result of one step towards the lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is held, or none is needed.
    Held,
    /// Look again; the result is known in `left` at the latest.
    Wait {
        /// The daemon that is asked; `Nobody` while only a moment must pass.
        holder: Holder,
        /// How long this may still take.
        left: Duration,
    },
}

/// Why this daemon does not hold the lease.
#[derive(Debug, thiserror::Error)]
pub(super) enum LeaseFailure {
    /// Another daemon holds it.
    #[error("the directory is in use by {0}, last heard of just now")]
    Held(Holder),
    /// This daemon held it, and another one has taken it.
    #[error("the directory was taken over by {0}: this mount does not write to it any more")]
    Lost(Holder),
    /// It is not held at the moment, because the drive is being detached.
    #[error("the directory is being released")]
    NotHeld,
    /// Another version of ferryfs holds it.
    #[error("another version of ferryfs uses the directory (its lease is of {0})")]
    OtherVersion(LeaseError),
    /// A file of the lease is not a regular file.
    #[error("{path} on the drive is not a regular file; ferryfs keeps a file of its own there")]
    NotOurs {
        /// Its path.
        path: RelPath,
    },
    /// The drive failed.
    #[error("the lease of the directory: {0}")]
    Backend(#[from] BackendError),
}

type Result<T> = std::result::Result<T, LeaseFailure>;

impl LeaseFailure {
    /// What the user can do.
    fn hint(&self) -> &'static str {
        match self {
            LeaseFailure::Held(_) => {
                "unmount it there first; or, if you know that no ferryfs uses it any more, add \
                 --take-over"
            }
            LeaseFailure::Lost(_) => {
                "nothing is lost: what waits is in the cache. When the other machine releases the \
                 directory, this mount attaches it without a command"
            }
            LeaseFailure::OtherVersion(_) => {
                "update ferryfs on the machine that has the older one; nothing was changed. \
                 If the other one is not in use any more, remove .ferryfs/lease there"
            }
            LeaseFailure::NotOurs { .. } => {
                "ferryfs did not make it: look at it and move it away; it was not followed, and \
                 nothing was changed"
            }
            LeaseFailure::NotHeld | LeaseFailure::Backend(_) => {
                "check the NAS or drive, and try again"
            }
        }
    }
}

impl From<LeaseFailure> for Failure {
    fn from(failure: LeaseFailure) -> Failure {
        let code = match &failure {
            LeaseFailure::Backend(error) if error.is_gone() || error.is_stalled() => {
                Exit::BackendAbsent
            }
            _ => Exit::Failed,
        };
        Failure {
            code,
            message: failure.to_string(),
            hint: Some(failure.hint().into()),
        }
    }
}

/// The state of the lease.
enum Hold {
    /// Not held, or not yet.
    Nothing,
    /// None is needed here.
    NotNeeded,
    /// The drive is read-only: no lease can be made, and nothing else can be written either.
    ReadOnly(Arc<dyn Backend>),
    /// Held.
    Held(Arc<dyn Backend>),
}

/// Holds the lease of one daemon, across detaching and attaching.
pub(super) struct Keeper {
    mode: LeaseMode,
    me: Lease,
    hold: Mutex<Hold>,
    claim: Mutex<Option<Claim>>,
    /// The daemon that has taken it; [`Keeper::take_loss`] returns it once.
    loss: Mutex<Option<String>>,
    is_lost: AtomicBool,
    stop: AtomicBool,
    /// Locked by the thread while it looks, so that it does not write a lease again that is being
    /// released.
    looking: Mutex<()>,
    /// The pause before a damaged lease is read again.
    pause: Duration,
}

impl Keeper {
    /// A keeper for the daemon of `cache` on `volume`. Its thread looks after the lease while it is
    /// held.
    ///
    /// # Errors
    /// If the system provides no thread.
    pub(super) fn start(
        mode: LeaseMode,
        silence: Duration,
        (volume, cache): (Uuid, Uuid),
        now: Timestamp,
    ) -> std::io::Result<Arc<Keeper>> {
        let keeper = Arc::new(Keeper::new(mode, silence, (volume, cache), now));
        let weak = Arc::downgrade(&keeper);
        let interval = keeper.me.interval();
        thread::Builder::new()
            .name("ferryfs-lease".into())
            .spawn(move || {
                // It ends with its keeper; if it is in a call then, with the process.
                while let Some(keeper) = weak.upgrade() {
                    if keeper.stop.load(Ordering::Acquire) {
                        return;
                    }
                    keeper.look_after();
                    drop(keeper);
                    thread::sleep(interval);
                }
            })?;
        Ok(keeper)
    }

    fn new(
        mode: LeaseMode,
        silence: Duration,
        (volume, cache): (Uuid, Uuid),
        now: Timestamp,
    ) -> Keeper {
        Keeper {
            mode,
            me: Lease {
                volume,
                daemon: Uuid::new_v4(),
                cache,
                host: host(),
                pid: std::process::id(),
                since: now,
                silence,
            },
            hold: Mutex::new(Hold::Nothing),
            claim: Mutex::new(None),
            loss: Mutex::new(None),
            is_lost: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            looking: Mutex::new(()),
            pause: LOOK_EVERY,
        }
    }

    /// Takes one step towards the lease of `backend`, which other machines can reach if it is
    /// `shared`. Does not wait.
    ///
    /// # Errors
    /// If another daemon holds it, or the drive fails.
    pub(super) fn advance(
        &self,
        backend: &Arc<dyn Backend>,
        shared: bool,
        take_over: bool,
    ) -> Result<Step> {
        if !self.is_needed(&**backend, shared)? {
            *self.hold.lock() = Hold::NotNeeded;
            return Ok(Step::Held);
        }
        let mut claim = self
            .claim
            .lock()
            .take()
            .unwrap_or_else(|| Claim::new(&self.me, take_over));
        let step = match claim.step(&**backend, Instant::now()) {
            Err(LeaseFailure::Backend(error)) if is_read_only(&error) => {
                *self.hold.lock() = Hold::ReadOnly(backend.clone());
                return Ok(Step::Held);
            }
            step => step?,
        };
        match &step {
            Step::Held => {
                *self.hold.lock() = Hold::Held(backend.clone());
                self.is_lost.store(false, Ordering::Release);
            }
            Step::Wait { .. } => *self.claim.lock() = Some(claim),
        }
        Ok(step)
    }

    /// The same, and waits. `asking` is called once with the daemon that is asked and the longest
    /// time.
    ///
    /// # Errors
    /// As [`Keeper::advance`].
    pub(super) fn take(
        &self,
        backend: &Arc<dyn Backend>,
        shared: bool,
        take_over: bool,
        asking: impl FnOnce(&Holder, Duration),
    ) -> Result<()> {
        let mut asking = Some(asking);
        *self.claim.lock() = None;
        loop {
            match self.advance(backend, shared, take_over)? {
                Step::Held => return Ok(()),
                Step::Wait { holder, left } => {
                    if holder != Holder::Nobody
                        && let Some(asking) = asking.take()
                    {
                        asking(&holder, left);
                    }
                    thread::sleep(left.min(LOOK_EVERY));
                }
            }
        }
    }

    fn is_needed(&self, backend: &dyn Backend, shared: bool) -> Result<bool> {
        if shared || self.mode == LeaseMode::Always {
            return Ok(true);
        }
        match backend.metadata(&layout::lease_path()) {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Checks that this daemon may still write to the directory behind `backend`, by its lease.
    ///
    /// # Errors
    /// If another daemon holds it now, or it cannot be read.
    pub(super) fn check(&self, backend: &dyn Backend) -> Result<()> {
        self.claim_if_writable()?;
        if !self.holds() {
            return match *self.hold.lock() {
                // Each call that writes returns the error itself.
                Hold::NotNeeded | Hold::ReadOnly(_) => Ok(()),
                _ => Err(LeaseFailure::NotHeld),
            };
        }
        let mine = lease::encode(&self.me);
        let mut found = files::read(backend)?;
        for _ in 0..REREADS {
            // A daemon that makes its lease writes it in more than one step.
            if !matches!(found, LeaseFile::Damaged(_)) {
                break;
            }
            thread::sleep(self.pause);
            found = files::read(backend)?;
        }
        match &found {
            LeaseFile::Whole(_, bytes) if *bytes == mine => Ok(()),
            LeaseFile::Whole(..) => Err(self.lose(Holder::of(&found))),
            LeaseFile::Absent if !self.holds() => Err(LeaseFailure::NotHeld),
            LeaseFile::Absent => {
                // It was removed by hand, or lost by the server. Only one machine can make it
                // again.
                if files::write_first(backend, &mine)? {
                    tracing::warn!("the lease was gone; it is written again");
                    return Ok(());
                }
                match files::read(backend)? {
                    LeaseFile::Whole(_, bytes) if bytes == mine => Ok(()),
                    other => Err(self.lose(Holder::of(&other))),
                }
            }
            LeaseFile::Damaged(_) => {
                tracing::warn!("the lease is damaged; it is written again");
                files::write_over(backend, &mine)
            }
        }
    }

    /// Takes one step towards the lease of a drive that was read-only and may be writable now.
    fn claim_if_writable(&self) -> Result<()> {
        let backend = match &*self.hold.lock() {
            Hold::ReadOnly(backend) => backend.clone(),
            _ => return Ok(()),
        };
        match self.advance(&backend, true, false)? {
            Step::Held => Ok(()),
            Step::Wait { .. } => Err(LeaseFailure::NotHeld),
        }
    }

    fn holds(&self) -> bool {
        matches!(*self.hold.lock(), Hold::Held(_))
    }

    fn lose(&self, to: Holder) -> LeaseFailure {
        let failure = LeaseFailure::Lost(to);
        *self.hold.lock() = Hold::Nothing;
        *self.loss.lock() = Some(failure.to_string());
        self.is_lost.store(true, Ordering::Release);
        failure
    }

    /// One look of the keeper's own thread.
    fn look_after(&self) {
        let _looking = self.looking.lock();
        let backend = match &*self.hold.lock() {
            Hold::Held(backend) | Hold::ReadOnly(backend) => backend.clone(),
            _ => return,
        };
        let looked = self
            .check(&*backend)
            .and_then(|()| match files::is_knocked(&*backend)? {
                true => files::answer(&*backend),
                false => Ok(()),
            });
        match looked {
            Ok(()) => {}
            Err(LeaseFailure::Lost(to)) => tracing::error!(%to, "the directory was taken over"),
            // The monitor reports a drive that does not answer or is gone.
            Err(error) => tracing::warn!(%error, "the lease cannot be checked"),
        }
    }

    /// Whether another daemon has taken it, and that has not been reported.
    pub(super) fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Acquire)
    }

    /// Reports once which daemon has taken it.
    pub(super) fn take_loss(&self) -> Option<String> {
        self.is_lost.store(false, Ordering::Release);
        self.loss.lock().take()
    }

    /// The drive is gone: the lease stays there, because it cannot be reached, and is looked for
    /// when the drive is back.
    pub(super) fn suspend(&self) {
        *self.hold.lock() = Hold::Nothing;
        *self.claim.lock() = None;
    }

    /// Removes the lease, so that other machines need not wait. On a failure it stays, and they
    /// find that no daemon answers for it.
    pub(super) fn release(&self) {
        let held = std::mem::replace(&mut *self.hold.lock(), Hold::Nothing);
        let Hold::Held(backend) = held else { return };
        let _looking = self.looking.lock();
        let mine = lease::encode(&self.me);
        let released = files::read(&*backend).and_then(|found| match found.bytes() == mine {
            true => files::remove_lease(&*backend),
            false => Ok(()),
        });
        if let Err(error) = released {
            tracing::info!(%error, "the lease cannot be removed");
        }
    }

    /// The same, but waits no longer than `patience`.
    pub(super) fn release_within(self: &Arc<Keeper>, patience: Duration) {
        let (begun, keeper) = (Instant::now(), self.clone());
        // Nothing more can be done if it has failed.
        let _ = crate::daemon::flush_job::within(
            move || keeper.release(),
            || begun.elapsed() > patience,
        );
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // A start that failed must not make other machines wait.
        self.release();
    }
}

fn is_read_only(error: &BackendError) -> bool {
    error.source.raw_os_error() == Some(libc::EROFS)
}

/// This machine's name.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "an unnamed machine".into(),
        name => name.chars().take(255).collect(),
    }
}

#[cfg(test)]
mod tests;
