//! One machine at a time: the lease of a directory that others have at hand as well.
//!
//! The file is [`crate::rules::lease`]'s, how it is come by is [`claim`]'s. Whoever holds it looks several times a minute
//! whether it is still his, and takes away the knocks of those who ask for him. Before anything of a batch is written, and
//! again before its record, it is read anew: no clock and no promise of the network is relied upon. What was begun before it was
//! lost and is still on its way may take effect later; the batch's record is there then, and whoever took over has finished
//! the batch by it.
//!
//! Drives have none: nobody else can have one mounted. A lease would make each mount write to a drive that may never be written
//! to, leave it marked as in use when it is pulled, and keep it waiting for a minute at the machine that it is plugged into next.
//! Where one stands all the same (made by `--lease always`), it is respected.
//!
//! State: in memory only. A crash leaves a lease that nobody answers for; the same cache takes it at once, others when it has
//! not been answered for. No lock is held during a call to the backend.

mod claim;
mod files;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use uuid::Uuid;

use self::claim::Claim;
use self::files::Standing;
use super::DaemonError;
use super::options::LeaseMode;
use super::service::rfc3339;
use crate::backend::{Backend, BackendError};
use crate::base::printable;
use crate::base::{RelPath, Timestamp};
use crate::cli::exit::Exit;
use crate::rules::layout;
use crate::rules::lease::{self, Lease, LeaseError};

/// Time between two looks while the lease is being asked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How often a damaged lease is read again before it is believed to be damaged.
const REREADS: u32 = 5;

/// Who holds a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// This one.
    Known(Box<Lease>),
    /// Somebody whose lease is damaged.
    Unknown,
    /// Nobody, as far as is known.
    Nobody,
}

impl Holder {
    fn of(standing: &Standing) -> Holder {
        match standing {
            Standing::Whole(lease, _) => Holder::Known(lease.clone()),
            Standing::Damaged(_) => Holder::Unknown,
            Standing::Nothing => Holder::Nobody,
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
            Holder::Nobody => f.write_str("nobody"),
        }
    }
}

/// How far the claim of a lease is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is held, or none is needed.
    Held,
    /// Look again; it will be known in `left` at the latest.
    Wait {
        /// Who is being asked for a sign of life; `Nobody` while only a moment must pass.
        holder: Holder,
        /// How long this may still take.
        left: Duration,
    },
}

/// Why the lease is not ours.
#[derive(Debug, thiserror::Error)]
pub(super) enum LeaseFailure {
    /// Somebody else has it.
    #[error("the directory is in use by {0}, last heard of just now")]
    Held(Holder),
    /// It was ours and is somebody else's now.
    #[error("the directory was taken over by {0}: nothing is written to it from here any more")]
    Lost(Holder),
    /// It is not held at the moment, as the backend is being let go of.
    #[error("the directory is being let go of")]
    NotHeld,
    /// A newer ferryfs holds it.
    #[error("a newer ferryfs has the directory in use (its lease is of {0})")]
    Newer(LeaseError),
    /// Something that is no file stands where a file of the lease belongs.
    #[error("{path} on the backend is no regular file, where ferryfs keeps a file of its own")]
    NotOurs {
        /// Where.
        path: RelPath,
    },
    /// The backend failed.
    #[error("the lease of the directory: {0}")]
    Backend(#[from] BackendError),
}

type Result<T> = std::result::Result<T, LeaseFailure>;

impl LeaseFailure {
    /// What to do about it.
    fn hint(&self) -> &'static str {
        match self {
            LeaseFailure::Held(_) => {
                "unmount it there first; or, if you know that nothing is at work there any more, add --take-over"
            }
            LeaseFailure::Lost(_) => {
                "nothing is lost: what waits is in the cache. When the other one has let go, this mount goes on by itself"
            }
            LeaseFailure::Newer(_) => {
                "update ferryfs on this machine; nothing was changed. If no newer one is in use any more, remove .ferryfs/lease there"
            }
            LeaseFailure::NotOurs { .. } => {
                "somebody has put it there: look at it and move it away; it was not followed, and nothing was changed"
            }
            LeaseFailure::NotHeld | LeaseFailure::Backend(_) => {
                "see whether the NAS or drive is well, and try again"
            }
        }
    }
}

impl From<LeaseFailure> for DaemonError {
    fn from(failure: LeaseFailure) -> DaemonError {
        let code = match &failure {
            LeaseFailure::Backend(error) if error.is_gone() || error.is_stalled() => {
                Exit::BackendAbsent
            }
            _ => Exit::Failed,
        };
        DaemonError {
            code,
            message: failure.to_string(),
            hint: Some(failure.hint().into()),
        }
    }
}

/// What this daemon has of the lease.
enum Hold {
    /// Nothing, or not yet.
    Nothing,
    /// Nobody needs one here.
    NotNeeded,
    /// It.
    Held(Arc<dyn Backend>),
}

/// Holds the lease of one daemon, across detaching and attaching.
pub(super) struct Keeper {
    mode: LeaseMode,
    me: Lease,
    hold: Mutex<Hold>,
    claim: Mutex<Option<Claim>>,
    /// Who has taken it from us; told to [`Keeper::take_loss`] once.
    loss: Mutex<Option<String>>,
    is_lost: AtomicBool,
    stop: AtomicBool,
    /// Held by the thread while it looks, so that what is let go of is not written anew behind whoever does so.
    looking: Mutex<()>,
    /// Before a damaged lease is read again.
    pause: Duration,
}

impl Keeper {
    /// A keeper for the daemon of `cache` on `volume`, with its thread, which looks after the lease from the moment it is held.
    ///
    /// # Errors
    /// If the system gives no thread.
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
                // It ends with its keeper; should it sit in a call then, with the process.
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

    /// Goes one step towards holding the lease of `backend`, which other machines have at hand or not (`shared`). Does not wait.
    ///
    /// # Errors
    /// If somebody holds it, or the backend fails.
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
        let step = claim.step(&**backend, Instant::now())?;
        match &step {
            Step::Held => {
                *self.hold.lock() = Hold::Held(backend.clone());
                self.is_lost.store(false, Ordering::Release);
            }
            Step::Wait { .. } => *self.claim.lock() = Some(claim),
        }
        Ok(step)
    }

    /// The same, and waits; `asking` is told once who is being asked, and for how long at most.
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

    /// Passes if the directory behind `backend` is still ours to write to, as it says itself.
    ///
    /// # Errors
    /// If somebody else has it by now, or it cannot be read.
    pub(super) fn check(&self, backend: &dyn Backend) -> Result<()> {
        if !self.holds() {
            return match *self.hold.lock() {
                Hold::NotNeeded => Ok(()),
                _ => Err(LeaseFailure::NotHeld),
            };
        }
        let mine = lease::encode(&self.me);
        let mut standing = files::read(backend)?;
        for _ in 0..REREADS {
            // Whoever makes his own writes it in more than one step.
            if !matches!(standing, Standing::Damaged(_)) {
                break;
            }
            thread::sleep(self.pause);
            standing = files::read(backend)?;
        }
        match &standing {
            Standing::Whole(_, bytes) if *bytes == mine => Ok(()),
            Standing::Whole(..) => Err(self.lose(Holder::of(&standing))),
            Standing::Nothing if !self.holds() => Err(LeaseFailure::NotHeld),
            Standing::Nothing => {
                // Removed by hand, or lost by the server. Only one can make it anew.
                if files::write_first(backend, &mine)? {
                    tracing::warn!("the lease was gone; it is written anew");
                    return Ok(());
                }
                match files::read(backend)? {
                    Standing::Whole(_, bytes) if bytes == mine => Ok(()),
                    other => Err(self.lose(Holder::of(&other))),
                }
            }
            Standing::Damaged(_) => {
                tracing::warn!("the lease is damaged; it is written anew");
                files::write_over(backend, &mine)
            }
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
            Hold::Held(backend) => backend.clone(),
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
            // What does not answer, or is gone, is for others to find out.
            Err(error) => tracing::warn!(%error, "the lease cannot be looked after"),
        }
    }

    /// Whether it was taken from us and nobody has been told.
    pub(super) fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Acquire)
    }

    /// Who has taken it, once.
    pub(super) fn take_loss(&self) -> Option<String> {
        self.is_lost.store(false, Ordering::Release);
        self.loss.lock().take()
    }

    /// The backend is gone: the lease stays there, as nobody can reach it, and is looked for when it is back.
    pub(super) fn suspend(&self) {
        *self.hold.lock() = Hold::Nothing;
        *self.claim.lock() = None;
    }

    /// Takes the lease away, so that others need not wait. Best effort: what stays is found not to be answered for.
    pub(super) fn release(&self) {
        let held = std::mem::replace(&mut *self.hold.lock(), Hold::Nothing);
        let Hold::Held(backend) = held else { return };
        let _looking = self.looking.lock();
        let mine = lease::encode(&self.me);
        let released = files::read(&*backend).and_then(|standing| match standing.bytes() == mine {
            true => files::remove_lease(&*backend),
            false => Ok(()),
        });
        if let Err(error) = released {
            tracing::info!(%error, "the lease stays behind");
        }
    }

    /// The same, not longer than for `patience`.
    pub(super) fn release_within(self: &Arc<Keeper>, patience: Duration) {
        let (begun, keeper) = (Instant::now(), self.clone());
        // Whether or not it came to it: there is nothing more to be done.
        let _ = super::flight::within(move || keeper.release(), || begun.elapsed() > patience);
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // A start that has come to nothing keeps nobody waiting.
        self.release();
    }
}

/// This machine's name.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "an unnamed machine".into(),
        name => name.chars().take(255).collect(),
    }
}
