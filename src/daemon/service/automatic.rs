//! Pauses, reloads, and what `status` says of the flushes that begin by themselves.

use std::time::Duration;

use super::{Service, rfc3339};
use crate::control::protocol::{Automatic, ConfigOrigin, ControlError, ErrorCode};
use crate::daemon::options::{Live, Origin};
use crate::daemon::when::Hold;

impl Service {
    /// Pauses automatic flushes.
    pub(super) fn pause_automatic(
        &self,
        time: Option<Duration>,
    ) -> Result<Automatic, ControlError> {
        self.timing.pause(time).map_err(|error| {
            not_stored(&error).with_hint("they are paused for as long as this daemon runs")
        })?;
        Ok(self.automatic())
    }

    /// Ends a pause.
    pub(super) fn resume_automatic(&self) -> Result<Automatic, ControlError> {
        self.timing.resume().map_err(|error| {
            not_stored(&error).with_hint("they go on for as long as this daemon runs")
        })?;
        Ok(self.automatic())
    }

    /// Replaces the options that may change while the mount is there.
    pub(super) fn take_up(
        &self,
        live: &serde_json::Value,
        config: &ConfigOrigin,
    ) -> Result<Automatic, ControlError> {
        let live: Live = serde_json::from_value(live.clone()).map_err(|error| {
            let message = format!("the options cannot be decoded: {error}");
            ControlError::new(ErrorCode::BadRequest, message)
                .with_hint("nothing was changed; use a ferryfs of the same version as the daemon")
        })?;
        self.set_local_patterns(&live.keeping)?;
        self.hooks.set(live.hooks.clone());
        self.drive.throttle().set(live.throttle());
        *self.live.write() = live;
        *self.origin.lock() = Some(Origin {
            name: config.name.clone(),
            settings: config.settings.clone(),
        });
        tracing::info!("took up the changes of the configuration");
        Ok(self.automatic())
    }

    /// The time between two looks for external changes; `None` for none.
    pub(in crate::daemon) fn refresh_every(&self) -> Option<Duration> {
        self.live.read().refresh.every(self.on_network)
    }

    /// Why no flush may begin by itself now.
    pub(in crate::daemon) fn hold(&self) -> Option<Hold> {
        let live = self.live.read();
        self.timing.hold(&live.quiet_hours, live.only_on_mains)
    }

    pub(super) fn config_origin(&self) -> Option<ConfigOrigin> {
        self.origin.lock().clone().map(|origin| ConfigOrigin {
            name: origin.name,
            settings: origin.settings,
        })
    }

    pub(super) fn automatic(&self) -> Automatic {
        let live = self.live.read().clone();
        let hold = self.hold();
        let (paused, paused_until) = match &hold {
            Some(Hold::Paused(until)) => (true, until.map(rfc3339)),
            _ => (false, None),
        };
        let schedule = live.schedule.as_ref();
        let next = schedule.and_then(|schedule| self.timing.next_run(schedule));
        Automatic {
            enabled: live.auto_flush,
            paused,
            paused_until,
            held: hold.map(|hold| match hold {
                Hold::Paused(_) => "paused".to_owned(),
                Hold::Quiet(until) => format!("quiet hours until {until}"),
                Hold::Battery => "the machine runs on its battery".to_owned(),
            }),
            schedule: schedule.map(ToString::to_string),
            next_run: next.map(rfc3339),
            hook_problems: self.hooks.problems(),
        }
    }

    /// Whether a flush has something to do.
    pub(in crate::daemon) fn is_anything_waiting(&self) -> bool {
        let waiting = self.waiting();
        waiting.names + waiting.inodes > 0
    }

    /// What a command for the user's attention reports, a line each.
    pub(in crate::daemon) fn worth_a_look(&self) -> Vec<String> {
        let mut lines = self.attention();
        lines.extend(self.monitor.warnings());
        if let Some(last) = &*self.last_flush.lock() {
            let left = last.left_behind.iter();
            lines
                .extend(left.map(|left| format!("{} was left behind: {}", left.path, left.reason)));
            let both = last.conflicts.iter();
            lines.extend(both.map(|both| {
                format!(
                    "{} was changed on both sides; the other is {}",
                    both.path, both.theirs
                )
            }));
        }
        lines
    }
}

fn not_stored(error: &std::io::Error) -> ControlError {
    let message = format!("cannot write to the cache: {error}");
    ControlError::new(ErrorCode::Failed, message)
}
