//! The space that is held for work which must still succeed on a full SSD: a margin in the WAL, and
//! the reserve file ([`crate::cache::Reserve`]).
//!
//! Both are space on the SSD, so they survive a crash. A start takes up what is left of them and
//! allocates the rest when there is space.

use std::sync::atomic::Ordering;

use crate::vfs::Result;
use crate::vfs::cache_space::CacheSpace;

/// Divisor: this part of the reserve is also allocated for the index's WAL (8 MiB of 64).
const WAL_SHARE: u64 = 8;

impl CacheSpace {
    /// Allocates the space that is held for a full SSD.
    pub(in crate::vfs) fn hold_reserve(&self) {
        if self.limits.reserve > 0 {
            self.store.reserve().want(self.limits.reserve);
            let store = self.store.clone();
            let margin = self.limits.reserve / WAL_SHARE;
            self.index
                .keep_margin(margin, Box::new(move || store.reserve().give_up()));
            self.refill_reserve();
        }
    }

    /// Runs `work`, which frees space or needs hardly any. If the SSD has no space at all, releases
    /// parts of the reserve and runs it again from its start.
    pub(in crate::vfs) fn with_reserve<T>(&self, work: impl Fn() -> Result<T>) -> Result<T> {
        loop {
            match work() {
                Err(error) if error.errno() == libc::ENOSPC => {
                    self.pressure.full.store(true, Ordering::Relaxed);
                    if !self.store.reserve().give_up() {
                        return Err(error);
                    }
                }
                result => return result,
            }
        }
    }

    /// Allocates released parts of the reserve again when there is space.
    pub(super) fn refill_reserve(&self) {
        if let Ok((_, free)) = self.store.space() {
            self.store
                .reserve()
                .refill(free, self.limits.reserve.saturating_mul(2));
        }
        self.index.top_up();
    }

    /// Releases a part of the reserve for a flush; returns false if there is none.
    pub(in crate::vfs) fn give_up_reserve(&self) -> bool {
        self.store.reserve().give_up()
    }
}
