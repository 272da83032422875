//! Metrics in the text format of Prometheus: in a file, and over a socket.
//!
//! All that is shown is known without an access to the drive: a sample must not wake it. The text
//! of an idle mount does not change, because it has times and no ages.
//!
//! [`Totals`] is fed by the flusher, [`Running`] by the flush under way; their locks are held for
//! one access, and no other lock is taken under them. All of it is in memory: counters begin at
//! zero with each daemon, as Prometheus expects it.

mod families;
mod file;
mod listen;
mod running;
mod text;
mod totals;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use parking_lot::Mutex;

pub use self::file::check_file;
pub(super) use self::listen::Door;
pub use self::listen::{Address, AddressError};
pub(super) use self::running::Running;
pub(super) use self::totals::Totals;
use super::monitor::Presence;
use super::service::Service;
use super::stop::Stop;
use crate::core::Timestamp;
use crate::fuse::RequestTimes;

/// How often the file is written while no batch ends.
const WRITE_EVERY: Duration = Duration::from_secs(15);

/// How often the threads look whether they are to stop.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Where metrics go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetricsOptions {
    /// The file that they are written to.
    pub file: Option<PathBuf>,
    /// The address where they can be read.
    pub listen: Option<Address>,
}

/// What is shown, and where.
pub(super) struct Outlets {
    pub(super) source: Source,
    pub(super) file: Option<PathBuf>,
    pub(super) door: Option<Door>,
}

/// The state of the drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DriveState {
    Attached,
    Away,
    Unfinished,
    Stalled,
}

/// What the metrics of a mount are made of.
pub(super) struct Source {
    service: Arc<Service>,
    times: RequestTimes,
    started: Timestamp,
    /// The oldest change that was seen last, and its time: the time is computed once, so that it
    /// does not change with the clock.
    oldest: Mutex<Option<(Instant, Timestamp)>>,
}

impl Source {
    pub(super) fn new(service: &Arc<Service>, times: &RequestTimes) -> Source {
        Source {
            service: service.clone(),
            times: times.clone(),
            started: now(),
            oldest: Mutex::new(None),
        }
    }

    /// The metrics of this moment.
    fn text(&self) -> String {
        let service = &self.service;
        families::text(&families::Sample {
            status: service.current_status(),
            drive_state: self.drive_state(),
            running: service.running.get(),
            totals: service.totals.get(),
            requests: self.times.counts(),
            started: self.started,
            oldest_change: self.oldest_change(),
            scrubbed: service.scrubber.last_ended(),
        })
    }

    fn drive_state(&self) -> DriveState {
        let service = &self.service;
        if service.monitor.presence() != Presence::Attached {
            DriveState::Away
        } else if service.drive.stalled().is_some() {
            DriveState::Stalled
        } else if service.monitor.is_unfinished() {
            DriveState::Unfinished
        } else {
            DriveState::Attached
        }
    }

    fn oldest_change(&self) -> Option<Timestamp> {
        let since = self.service.index.lock().dirty_since();
        let mut known = self.oldest.lock();
        let (_, since) = match since {
            Some(since) => since,
            None => {
                *known = None;
                return None;
            }
        };
        match *known {
            Some((at, time)) if at == since => Some(time),
            _ => {
                let age = i64::try_from(since.elapsed().as_nanos()).unwrap_or(i64::MAX);
                let time = Timestamp(now().0.saturating_sub(age));
                *known = Some((since, time));
                Some(time)
            }
        }
    }
}

fn now() -> Timestamp {
    std::time::SystemTime::now().into()
}

/// Writes the file after each flush and every [`WRITE_EVERY`], until `stop`; then removes it, so
/// that it does not report a mount that has ended.
pub(super) fn write_file(source: &Source, path: &std::path::Path, stop: &Stop) {
    let mut output = file::Output::new(path);
    while !stop.is_given() {
        output.write(&source.text());
        let next = Instant::now() + WRITE_EVERY;
        while !stop.is_given() && Instant::now() < next {
            match source.service.running.wait(LOOK_EVERY) {
                Ok(()) => break,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => stop.rest(LOOK_EVERY),
            }
        }
    }
    output.remove();
}

/// Answers at `door` until `stop`.
pub(super) fn answer(source: &Source, door: &Door, stop: &Stop) {
    while !stop.is_given() {
        door.answer_one(LOOK_EVERY, &|| source.text());
    }
}
