//! The drive after a sleep of the machine: is it still the same?
//!
//! Whoever exchanges a drive while the machine sleeps may go unnoticed: the kernel compares what a
//! USB device says of itself, and two drives of one model may say the same. The file system goes on
//! with what it has in memory, and would write it to the other drive. So the first call after a
//! sleep reads the volume's marker from the medium, past every cache, and compares it with the one
//! that was there at the attach. What has been exchanged is a medium that is gone.
//!
//! The kernel itself may still write what it has in memory. ferryfs has nothing there between two
//! batches, as each ends with a sync.
//!
//! Invariant: `known` grows only after the marker was read and is the same.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::drive::{Backend, BackendError, Result};
use crate::format::{layout, marker};

/// The time that the two clocks of the kernel may differ by without a sleep.
const TOLERANCE_MS: u64 = 500;

/// Returns how long the machine has slept since its boot.
pub type Asleep = dyn Fn() -> Duration + Send + Sync;

/// Compares the drive with what it was before a sleep.
pub(super) struct AfterSleep {
    inner: Arc<dyn Backend>,
    asleep: Box<Asleep>,
    /// How long the machine had slept when the drive was known to be the same, in milliseconds.
    known: AtomicU64,
    marker: Vec<u8>,
    one_at_a_time: Mutex<()>,
}

/// What is known of the drive now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is the one that was attached.
    Same,
    /// It is another one.
    Exchanged,
    /// It cannot be read. The next call looks again.
    Unknown,
}

impl AfterSleep {
    /// Remembers the marker of `inner`; `None` if it has none that can be read.
    pub(super) fn new(inner: Arc<dyn Backend>, asleep: Box<Asleep>) -> Option<AfterSleep> {
        let known = in_ms(asleep());
        let marker = on_medium(&*inner).ok()?;
        Some(AfterSleep {
            inner,
            asleep,
            known: AtomicU64::new(known),
            marker,
            one_at_a_time: Mutex::new(()),
        })
    }

    /// Looks at the drive if the machine has slept since the last time.
    pub(super) fn verdict(&self) -> Verdict {
        if !self.has_slept(in_ms((self.asleep)())) {
            return Verdict::Same;
        }
        let _one = self.one_at_a_time.lock();
        let slept = in_ms((self.asleep)());
        if !self.has_slept(slept) {
            return Verdict::Same;
        }
        match on_medium(&*self.inner) {
            Ok(found) if found == self.marker => {
                self.known.store(slept, Ordering::Release);
                Verdict::Same
            }
            Ok(_) => Verdict::Exchanged,
            Err(error) if error.is_not_found() => Verdict::Exchanged,
            Err(_) => Verdict::Unknown,
        }
    }

    fn has_slept(&self, now: u64) -> bool {
        now > self.known.load(Ordering::Acquire) + TOLERANCE_MS
    }
}

fn in_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 2)
}

/// Reads the marker of `backend` past every cache.
///
/// # Errors
/// If it cannot be opened or read.
pub(crate) fn on_medium(backend: &dyn Backend) -> Result<Vec<u8>> {
    let path = layout::marker_path();
    let file = backend.open_uncached(&path)?;
    let mut bytes = vec![0; marker::MAX_BYTES + 1];
    let mut at = 0;
    loop {
        match file.read_at(&mut bytes[at..], at as u64) {
            Ok(got) if got > 0 && at + got < bytes.len() => at += got,
            Ok(got) => {
                bytes.truncate(at + got);
                return Ok(bytes);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(BackendError::new("read", &path, error)),
        }
    }
}
