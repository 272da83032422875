//! For tests: calls on objects that fail on command. Without one the cost is a look at a flag.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::base::ObjectId;

/// Says whether a call (`read`, `write`, `fsync`) on an object is to work.
pub type Fault = Box<dyn Fn(&'static str, ObjectId) -> io::Result<()> + Send + Sync>;

/// Where a test puts its fault.
#[derive(Default)]
pub(super) struct Faults {
    armed: AtomicBool,
    fault: Mutex<Option<Fault>>,
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faults(armed: {})", self.armed.load(Ordering::Relaxed))
    }
}

impl Faults {
    pub(super) fn set(&self, fault: Option<Fault>) {
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
