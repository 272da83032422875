//! Scrubs on request, and what `status` says of them.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use super::Service;
use crate::control::protocol::{ControlError, ErrorCode, ScrubStatus, ScrubWish};
use crate::control::server::Asker;
use crate::daemon::monitor::Presence;

/// How often a scrub that is waited for is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

const GOES_ON: &str = "it goes on by itself, where it was, when the drive is there again";

impl Service {
    /// Begins a scrub, or goes on with one, and waits for its end. A client that goes away stops
    /// nothing.
    pub(super) fn scrub_and_wait(
        &self,
        wish: ScrubWish,
        asker: &Asker<'_>,
    ) -> Result<ScrubStatus, ControlError> {
        if self.monitor.presence() != Presence::Attached || !self.drive.is_attached() {
            return Err(self.absent());
        }
        let round = self.scrubber.begin(wish);
        let mut hurry = None;
        let mut is_first_flush = true;
        loop {
            // It waits for a flush under way, which may be slowed down. Later ones take their time.
            is_first_flush &= self.flusher.is_running();
            self.drive
                .throttle()
                .hurry_while(is_first_flush, &mut hurry);
            if self.scrubber.has_ended(round) {
                return Ok(self.scrub_status());
            }
            if asker.has_cancelled() {
                self.scrubber.stop();
            }
            if !self.scrubber.goes_on(round) && !self.scrubber.has_ended(round) {
                let message = "the scrub was stopped before its end";
                return Err(ControlError::new(ErrorCode::Cancelled, message).with_hint(
                    "`ferryfs scrub` goes on where it was; what it has found is in `ferryfs status`",
                ));
            }
            if self.ending.load(Ordering::Acquire) || self.over.load(Ordering::Acquire) {
                let message = "the mount is ending before the scrub is done";
                let hint = "it goes on by itself, where it was, after the next mount";
                return Err(ControlError::new(ErrorCode::Busy, message).with_hint(hint));
            }
            if self.monitor.presence() != Presence::Attached {
                let absent = self.absent();
                return Err(absent.with_hint(GOES_ON));
            }
            asker.tell(self.scrubber.progress());
            thread::sleep(LOOK_EVERY);
        }
    }

    /// What is known of scrubs.
    pub(super) fn scrub_status(&self) -> ScrubStatus {
        let schedule = self.live.read().scrub.clone();
        self.scrubber.status(schedule.as_ref(), &self.index)
    }
}
