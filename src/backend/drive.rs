//! The backend as the rest of the daemon meets it: attached, stalled, or gone.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use super::guard::{Stall, Watch};
use super::{Backend, Space};
use crate::rules::touched::Touched;

/// How long names are waited for in one go, between two looks whether the backend answers.
const SLICE: Duration = Duration::from_millis(100);

/// The slot into which a backend is attached. Whoever finds it empty says ENOMEDIUM and concludes nothing.
#[derive(Default)]
pub struct Drive {
    backend: RwLock<Option<Attached>>,
    /// Keeps readers from being held up; `None` in tests, whose backends answer.
    watch: Option<Watch>,
    /// Held for reading while a path is turned into an open file.
    names: RwLock<Withheld>,
    space: Mutex<Space>,
}

/// Which names on the backend may not be what the index says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Withheld {
    /// None: all may be used.
    #[default]
    Nothing,
    /// Those that a batch is moving at this moment. It is worth waiting for.
    Moving(Touched),
    /// Those of a batch that has been interrupted and is not finished yet.
    Unfinished(Touched),
    /// All: nothing is known of the backend yet.
    Everything,
}

impl Withheld {
    /// Whether what `concerned` looks for is among them.
    fn has(&self, concerned: impl FnOnce(&Touched) -> bool) -> bool {
        match self {
            Withheld::Nothing => false,
            Withheld::Moving(touched) | Withheld::Unfinished(touched) => concerned(touched),
            Withheld::Everything => true,
        }
    }
}

/// How long a reader waits before it looks again whether a batch is through with a name.
const AGAIN: Duration = Duration::from_millis(5);

/// The two faces of one backend, see [`super::guard`]; the same one where nothing is guarded.
struct Attached {
    for_readers: Arc<dyn Backend>,
    for_flush: Arc<dyn Backend>,
}

impl Drive {
    /// A drive with nothing attached, whose backends are taken to answer always.
    pub fn detached() -> Drive {
        Drive::default()
    }

    /// A drive with nothing attached, whose readers are told ETIMEDOUT when the backend has not answered for `io_timeout`.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn guarded(io_timeout: Duration) -> std::io::Result<Drive> {
        Ok(Drive {
            watch: Some(Watch::start(io_timeout)?),
            ..Drive::default()
        })
    }

    /// The backend for those who read, if one is attached: its reading calls end in bounded time.
    pub fn get(&self) -> Option<Arc<dyn Backend>> {
        let backend = self.backend.read();
        backend.as_ref().map(|faces| faces.for_readers.clone())
    }

    /// The backend for the flush, if one is attached: its calls take as long as they take. Only to be called where nobody
    /// else waits for this thread.
    pub fn get_patient(&self) -> Option<Arc<dyn Backend>> {
        let backend = self.backend.read();
        backend.as_ref().map(|faces| faces.for_flush.clone())
    }

    /// Attaches `backend`.
    pub fn attach(&self, backend: Arc<dyn Backend>) {
        let faces = match &self.watch {
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
        *self.backend.write() = Some(faces);
    }

    /// Lets go of the backend. Calls under way end by themselves.
    pub fn detach(&self) -> Option<Arc<dyn Backend>> {
        let faces = self.backend.write().take();
        if let Some(watch) = &self.watch {
            watch.rest();
        }
        faces.map(|faces| faces.for_readers)
    }

    /// Since when the attached backend has not answered, if it does not.
    pub fn stalled(&self) -> Option<Stall> {
        self.watch.as_ref().and_then(Watch::stalled)
    }

    /// Waits until files of the backend that were let go of are closed, at most for `patience`. False if some are not.
    pub fn wait_for_closes(&self, patience: Duration) -> bool {
        let watch = self.watch.as_ref();
        watch.is_none_or(|watch| watch.wait_for_closes(patience))
    }

    /// Whether a backend is attached.
    pub fn is_attached(&self) -> bool {
        self.backend.read().is_some()
    }

    /// Keeps names on the backend where they are as long as the guard lives. `find` tells what is to be used, `concerned` whether
    /// a batch that touches these paths may be moving it. `None` if one has been at it for longer than `patience`, or sits in a
    /// call that is not answered, or has been interrupted at it and is not finished.
    ///
    /// What no batch touches is never waited for, but for the moment in which one begins.
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

    /// From here on only what is not `withheld` may be used. Waits for those who are just opening something.
    pub fn withhold(&self, withheld: Withheld) {
        *self.names.write() = withheld;
    }

    /// What is withheld now.
    pub fn withheld(&self) -> Withheld {
        self.names.read().clone()
    }

    /// Space on the backend when it was last asked.
    pub fn space(&self) -> Space {
        *self.space.lock()
    }

    /// Asks the backend for its space, for [`Drive::space`] to tell. Not to be called where nobody may wait.
    pub fn refresh_space(&self) {
        if let Some(backend) = self.get()
            && let Ok(space) = backend.space()
        {
            *self.space.lock() = space;
        }
    }
}
