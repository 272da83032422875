//! Calls on objects that fail on demand, for tests. Without the feature `testing` the check
//! compiles to nothing.

#[cfg(any(test, feature = "testing"))]
use std::fmt;
use std::io;
#[cfg(any(test, feature = "testing"))]
use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(any(test, feature = "testing"))]
use parking_lot::Mutex;

use crate::core::ObjectId;

#[cfg(any(test, feature = "testing"))]
/// Decides whether a call (`read`, `write`, `fsync`) on an object succeeds.
pub type ObjectFault = Box<dyn Fn(&'static str, ObjectId) -> io::Result<()> + Send + Sync>;

#[cfg(any(test, feature = "testing"))]
/// The place where a test injects its fault.
#[derive(Default)]
pub(super) struct Faults {
    armed: AtomicBool,
    fault: Mutex<Option<ObjectFault>>,
}

#[cfg(any(test, feature = "testing"))]
impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faults(armed: {})", self.armed.load(Ordering::Relaxed))
    }
}

#[cfg(any(test, feature = "testing"))]
impl Faults {
    pub(super) fn set(&self, fault: Option<ObjectFault>) {
        self.armed.store(fault.is_some(), Ordering::Release);
        *self.fault.lock() = fault;
    }

    pub(super) fn check(&self, operation: &'static str, object: ObjectId) -> io::Result<()> {
        if !self.armed.load(Ordering::Acquire) {
            return Ok(());
        }
        match &*self.fault.lock() {
            Some(fault) => fault(operation, object),
            None => Ok(()),
        }
    }
}

/// The same without the feature `testing`: no fault can be injected.
#[cfg(not(any(test, feature = "testing")))]
#[derive(Debug, Default)]
pub(super) struct Faults(());

#[cfg(not(any(test, feature = "testing")))]
impl Faults {
    pub(super) fn check(&self, _: &'static str, _: ObjectId) -> io::Result<()> {
        Ok(())
    }
}
