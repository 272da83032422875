//! Holds back a flush that would remove or rewrite an unusual share of the files on the drive: an
//! `rm -rf` of the wrong directory, or a program that encrypts everything.
//!
//! Nothing is written by a flush that is held. All of it stays dirty in the cache, until the user
//! undoes it there, or lets it go: [`Wish::release`](crate::flush::Wish::release).

use std::str::FromStr;

use crate::error::{FlushError, Result};
use crate::flush::diff::Gathered;
use crate::flush::{Flusher, Wish};

/// A flush of fewer removed and rewritten files is never held.
const FEWEST: u64 = 20;

/// When a flush is held: if it removes or rewrites more than this share of the files, in percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldIf {
    /// The share, 1 to 99.
    pub percent: u8,
}

/// Why text does not say when to hold a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "write it like \"more than 50% of files removed or rewritten\", or \"50%\"; the share is a \
     whole number from 1% to 99%"
)]
pub struct HoldIfError;

impl FromStr for HoldIf {
    type Err = HoldIfError;

    fn from_str(text: &str) -> std::result::Result<HoldIf, HoldIfError> {
        let text = text.trim();
        let text = text.strip_prefix("more than ").unwrap_or(text);
        let text = (text.strip_suffix(" of files removed or rewritten")).unwrap_or(text);
        let percent = text.trim().strip_suffix('%').and_then(|it| it.parse().ok());
        match percent {
            Some(percent @ 1..=99) => Ok(HoldIf { percent }),
            _ => Err(HoldIfError),
        }
    }
}

impl HoldIf {
    /// Returns whether a flush is held that removes or rewrites `changed` of `total` files.
    fn holds(self, changed: u64, total: u64) -> bool {
        changed >= FEWEST
            && u128::from(changed) * 100 > u128::from(total) * u128::from(self.percent)
    }
}

impl Flusher {
    /// Checks that a batch may go although it, and what waits for further batches, removes and
    /// rewrites files.
    ///
    /// # Errors
    /// [`FlushError::Held`].
    pub(super) fn check_held(&self, gathered: &Gathered, wish: &Wish) -> Result<()> {
        let Some(hold) = self.parts.hold_if.filter(|_| !wish.release) else {
            return Ok(());
        };
        let (removed, rewritten) = gathered.changed;
        if removed + rewritten < FEWEST {
            return Ok(());
        }
        let total = self.parts.index.snapshot()?.placed_files()?;
        match hold.holds(removed + rewritten, total) {
            true => Err(FlushError::Held {
                removed,
                rewritten,
                total,
            }),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_condition_is_read_as_it_is_written() {
        let half = Ok(HoldIf { percent: 50 });
        assert_eq!("more than 50% of files removed or rewritten".parse(), half);
        assert_eq!("50%".parse(), half);
        for wrong in ["", "50", "0%", "100%", "half", "more than", "-1%", "50.5%"] {
            assert_eq!(wrong.parse::<HoldIf>(), Err(HoldIfError), "{wrong}");
        }
    }

    #[test]
    fn a_few_files_are_never_held_and_the_share_itself_is_not_either() {
        let half = HoldIf { percent: 50 };
        assert!(!half.holds(19, 19));
        assert!(half.holds(20, 20));
        assert!(!half.holds(50, 100));
        assert!(half.holds(51, 100));
    }
}
