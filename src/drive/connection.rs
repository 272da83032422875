//! The connection of the daemon to its backend: attached, stalled, or detached.
//!
//! Invariant: without an attached backend every call fails with ENOMEDIUM, and the caller concludes
//! nothing about files. Lock order: `names` comes before `backend` and before the index lock, which
//! a reader takes to find a path. During a call to the backend a reader may hold `names`; the other
//! locks are free.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use crate::core::Space;
use crate::drive::Backend;
use crate::drive::supervised::{Stall, Watch};
use crate::drive::throttle::Throttle;
use crate::plan::touched::Touched;

/// The longest wait for names before the next check whether the backend answers.
const SLICE: Duration = Duration::from_millis(100);

/// The slot for the attached backend. A caller that finds it empty fails with ENOMEDIUM and
/// concludes nothing.
#[derive(Default)]
pub struct Drive {
    backend: RwLock<Option<Attached>>,
    /// Bounds the waiting of readers; `None` in tests, whose backends always answer.
    watch: Option<Watch>,
    /// Held for reading while a path is resolved to an open file.
    names: RwLock<Withheld>,
    space: Mutex<Space>,
    /// Slows flushes down.
    throttle: Arc<Throttle>,
}

/// The names on the backend that may differ from the index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Withheld {
    /// None: all names may be used.
    #[default]
    Nothing,
    /// The names that a batch is moving at this moment. A caller can wait for them.
    Moving(Touched),
    /// The names of an interrupted batch that is not finished yet.
    Unfinished(Touched),
    /// All names: nothing is known of the backend yet.
    Everything,
}

impl Withheld {
    /// Returns whether `concerned` accepts the withheld names.
    fn has(&self, concerned: impl FnOnce(&Touched) -> bool) -> bool {
        match self {
            Withheld::Nothing => false,
            Withheld::Moving(touched) | Withheld::Unfinished(touched) => concerned(touched),
            Withheld::Everything => true,
        }
    }
}

/// The pause of a reader before it checks again whether a batch has finished with a name.
const AGAIN: Duration = Duration::from_millis(5);

/// The two interfaces of one backend, see [`crate::drive::supervised`]; both are the same backend
/// without supervision.
struct Attached {
    for_readers: Arc<dyn Backend>,
    for_flush: Arc<dyn Backend>,
}

impl Drive {
    /// Returns a drive without a backend. It assumes that its backends always answer.
    pub fn detached() -> Drive {
        Drive::default()
    }

    /// Returns a drive without a backend. Its readers get ETIMEDOUT if the drive has not answered
    /// for `io_timeout`.
    ///
    /// # Errors
    /// If the system cannot create a thread.
    pub fn guarded(io_timeout: Duration) -> std::io::Result<Drive> {
        let watch = Watch::start(io_timeout)?;
        Ok(Drive {
            throttle: watch.throttle().clone(),
            watch: Some(watch),
            ..Drive::default()
        })
    }

    /// Returns what slows flushes to this drive down. Without supervision it slows nothing.
    pub fn throttle(&self) -> &Arc<Throttle> {
        &self.throttle
    }

    /// Returns the backend for readers, if one is attached: its reading calls end in bounded time.
    pub fn get(&self) -> Option<Arc<dyn Backend>> {
        let backend = self.backend.read();
        backend
            .as_ref()
            .map(|attached| attached.for_readers.clone())
    }

    /// Returns the backend for the flush, if one is attached: its calls have no deadline. Call it
    /// only on a thread for which no other thread waits.
    pub fn get_patient(&self) -> Option<Arc<dyn Backend>> {
        let backend = self.backend.read();
        backend.as_ref().map(|attached| attached.for_flush.clone())
    }

    /// Attaches `backend`.
    pub fn attach(&self, backend: Arc<dyn Backend>) {
        let attached = match &self.watch {
            Some(watch) => {
                let (guard, patient) = watch.over(backend);
                Attached {
                    for_readers: Arc::new(guard),
                    for_flush: Arc::new(patient),
                }
            }
            None => Attached {
                for_readers: backend.clone(),
                for_flush: backend,
            },
        };
        *self.backend.write() = Some(attached);
    }

    /// Detaches the backend. Calls in progress end by themselves.
    pub fn detach(&self) -> Option<Arc<dyn Backend>> {
        let attached = self.backend.write().take();
        if let Some(watch) = &self.watch {
            watch.rest();
        }
        attached.map(|attached| attached.for_readers)
    }

    /// Returns the stall of the attached backend, if it does not answer.
    pub fn stalled(&self) -> Option<Stall> {
        self.watch.as_ref().and_then(Watch::stalled)
    }

    /// Waits, for at most `patience`, until released files of the backend are closed. Returns
    /// `false` if some are not.
    pub fn wait_for_closes(&self, patience: Duration) -> bool {
        let watch = self.watch.as_ref();
        watch.is_none_or(|watch| watch.wait_for_closes(patience))
    }

    /// Returns whether a backend is attached.
    pub fn is_attached(&self) -> bool {
        self.backend.read().is_some()
    }

    /// Keeps names on the backend unchanged while the returned guard lives. `find` returns what the
    /// caller wants to use; `concerned` returns whether a batch that touches these paths may be
    /// moving it. Returns `None` if a batch works on it for longer than `patience`, or if a call of
    /// the batch hangs, or if an interrupted batch with it is not finished.
    ///
    /// A name that no batch touches is never waited for, except in the moment in which a batch
    /// begins.
    pub fn hold_names<T>(
        &self,
        patience: Duration,
        mut find: impl FnMut() -> T,
        concerned: impl Fn(&Touched, &T) -> bool,
    ) -> Option<(RwLockReadGuard<'_, Withheld>, T)> {
        let end = Instant::now() + patience;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if let Some(withheld) = self.names.try_read_for(left.min(SLICE)) {
                let found = find();
                if !withheld.has(|touched| concerned(touched, &found)) {
                    return Some((withheld, found));
                }
                if !matches!(*withheld, Withheld::Moving(_)) {
                    return None;
                }
                drop(withheld);
                thread::sleep(left.min(AGAIN));
            }
            if left.is_zero() || self.stalled().is_some() {
                return None;
            }
        }
    }

    /// Sets the withheld names. Waits for readers that are opening a file.
    pub fn withhold(&self, withheld: Withheld) {
        *self.names.write() = withheld;
    }

    /// Returns the withheld names.
    pub fn withheld(&self) -> Withheld {
        self.names.read().clone()
    }

    /// Returns the space on the backend at the last query.
    pub fn space(&self) -> Space {
        *self.space.lock()
    }

    /// Queries the space of the backend, for [`Drive::space`]. This call may wait for the backend.
    pub fn refresh_space(&self) {
        if let Some(backend) = self.get()
            && let Ok(space) = backend.space()
        {
            *self.space.lock() = space;
        }
    }
}
