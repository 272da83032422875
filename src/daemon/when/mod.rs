//! When the daemon flushes by itself: the schedule, quiet hours, pauses, and the kind of power.
//!
//! The decisions are functions of the time and of what is given; [`Timing`] holds their state for
//! the thread that flushes. A pause and the schedule's progress are in a file of the cache
//! ([`memory`]), so both survive the end of the daemon: a pause lasts as long as was said, and a
//! run that was missed while nothing was mounted is made up once. A file that is missing or cannot
//! be decoded means no pause, and that nothing was missed.

mod memory;
mod power;
mod quiet;
mod schedule;
mod timing;

pub use self::quiet::{QuietError, QuietHours};
pub use self::schedule::{Schedule, ScheduleError};
pub(in crate::daemon) use self::timing::{Hold, Timing};
