//! What goes wrong on the SSD: the daemon dies before some step, or there is no room.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ferryfs::core::cache_step::{CacheStep, StepWatch};
use ferryfs::drive::faulty::{Fault, FaultyBackend};
use ferryfs::drive::memory::MemoryBackend;

use crate::engine::{Engine, World};

/// Of one life of the daemon.
pub(crate) struct Watch {
    /// Steps until the daemon dies; 0: it does not.
    left: AtomicU64,
    dead: AtomicBool,
    pub(crate) full: AtomicBool,
    drive: FaultyBackend<MemoryBackend>,
}

impl Watch {
    pub(crate) fn new(world: &World, engine: &Engine, full: bool) -> Arc<Watch> {
        let watch = Arc::new(Watch {
            left: AtomicU64::new(0),
            dead: AtomicBool::new(false),
            full: AtomicBool::new(full),
            drive: world.faulty.clone(),
        });
        engine.index.steps().watch(watch.clone());
        engine.store.steps().watch(watch.clone());
        watch
    }

    /// Has the daemon die before its n-th step from now; 0 takes that back.
    pub(crate) fn kill_at(&self, n: u64) {
        self.left.store(n, Ordering::Relaxed);
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }
}

impl StepWatch for Watch {
    fn before(&self, step: CacheStep) -> io::Result<()> {
        let errno = |code| Err(io::Error::from_raw_os_error(code));
        if self.is_dead() {
            return errno(libc::EIO);
        }
        let left = self.left.load(Ordering::Relaxed);
        if left > 0 {
            self.left.store(left - 1, Ordering::Relaxed);
        }
        if left == 1 {
            self.dead.store(true, Ordering::Relaxed);
            // The dead do not write to the drive either.
            self.drive.arm(Fault {
                stays_dead: true,
                ..Fault::at(self.drive.calls() + 1, libc::EIO)
            });
            return errno(libc::EIO);
        }
        let takes_room = matches!(step, CacheStep::CreateObject | CacheStep::WriteObject);
        match takes_room && self.full.load(Ordering::Relaxed) {
            true => errno(libc::ENOSPC),
            false => Ok(()),
        }
    }
}
