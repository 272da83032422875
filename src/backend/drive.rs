//! The backend as the rest of the daemon meets it: attached, or gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{Backend, Space};

/// The slot into which a backend is attached. Whoever finds it empty says ENOMEDIUM and concludes nothing.
#[derive(Default)]
pub struct Drive {
    backend: RwLock<Option<Arc<dyn Backend>>>,
    /// Held for writing while a batch moves names on the backend, for reading while a path is turned into an open file.
    names: RwLock<()>,
    /// Names on the backend are not what the index says: a batch has been interrupted while it moved them.
    astray: AtomicBool,
    space: Mutex<Space>,
}

impl Drive {
    /// A drive with nothing attached.
    pub fn detached() -> Drive {
        Drive::default()
    }

    /// The backend, if one is attached.
    pub fn get(&self) -> Option<Arc<dyn Backend>> {
        self.backend.read().clone()
    }

    /// Attaches `backend`.
    pub fn attach(&self, backend: Arc<dyn Backend>) {
        *self.backend.write() = Some(backend);
    }

    /// Lets go of the backend. Calls under way end by themselves.
    pub fn detach(&self) -> Option<Arc<dyn Backend>> {
        self.backend.write().take()
    }

    /// Whether a backend is attached.
    pub fn is_attached(&self) -> bool {
        self.backend.read().is_some()
    }

    /// Keeps names on the backend where they are as long as the guard lives; `None` if a batch has been moving them for
    /// longer than `patience`, or has been interrupted at it and not been recovered.
    pub fn hold_names(&self, patience: Duration) -> Option<RwLockReadGuard<'_, ()>> {
        let guard = self.names.try_read_for(patience)?;
        (!self.astray.load(Ordering::Acquire)).then_some(guard)
    }

    /// Notes whether names on the backend are what the index says.
    pub fn names_are_settled(&self, settled: bool) {
        self.astray.store(!settled, Ordering::Release);
    }

    /// Keeps everybody from turning paths into open files as long as the guard lives.
    pub fn move_names(&self) -> RwLockWriteGuard<'_, ()> {
        self.names.write()
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
