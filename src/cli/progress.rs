//! The progress bar of commands that carry files over.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::render::files;
use super::units::human_seconds;
use crate::control::protocol::{Phase, Progress};

/// Bytes, speed and time left; drawn on stderr, so that stdout stays what was asked for.
const TEMPLATE: &str =
    "{prefix} {bar:28} {bytes}/{total_bytes} {binary_bytes_per_sec}, {eta} left, {msg}";
/// For phases that move no bytes.
const SPINNER: &str = "{prefix} {spinner} {msg}";

/// A progress bar that appears with the first sign of progress, on a terminal only.
pub(super) struct Bar {
    wanted: bool,
    quiet: bool,
    /// It has been said that the backend does not answer.
    complained: bool,
    shown: Option<(Phase, ProgressBar)>,
}

impl Bar {
    /// A bar where stderr is a terminal, and nothing elsewhere or when `quiet`.
    pub(super) fn new(quiet: bool) -> Bar {
        Bar {
            wanted: !quiet && io::stderr().is_terminal(),
            quiet,
            complained: false,
            shown: None,
        }
    }

    /// Shows `step`. A new phase begins a new bar: it counts anew, and its speed is another.
    pub(super) fn show(&mut self, step: &Progress) {
        if !self.wanted {
            self.complain_once(step);
            return;
        }
        if self
            .shown
            .as_ref()
            .is_none_or(|(phase, _)| *phase != step.phase)
        {
            self.clear();
            self.shown = Some((step.phase, begin(step)));
        }
        if let Some((_, bar)) = &self.shown {
            bar.set_length(step.bytes_total.max(step.bytes_done));
            bar.set_position(step.bytes_done);
            bar.set_message(message(step));
        }
    }

    /// Where there is no bar, one line each time that the backend stops to answer.
    fn complain_once(&mut self, step: &Progress) {
        let silent = step.silent_seconds > 0;
        if silent && !self.complained && !self.quiet {
            super::complain(&format!("ferryfs: {}", waiting(step.silent_seconds)));
        }
        self.complained = silent;
    }

    /// Takes it off the screen.
    pub(super) fn clear(&mut self) {
        if let Some((_, bar)) = self.shown.take() {
            bar.finish_and_clear();
        }
    }
}

fn begin(step: &Progress) -> ProgressBar {
    let target = ProgressDrawTarget::stderr();
    let bar = ProgressBar::with_draw_target(Some(step.bytes_total), target);
    let template = if step.bytes_total > 0 {
        TEMPLATE
    } else {
        SPINNER
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(name(step.phase));
    bar
}

fn message(step: &Progress) -> String {
    match step.silent_seconds {
        0 => format!("{} of {}", step.files_done, files(step.files_total)),
        seconds => waiting(seconds),
    }
}

fn waiting(seconds: u64) -> String {
    let silent = human_seconds(seconds as f64);
    format!("the backend has not answered for {silent}; waiting")
}

fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Cut => "looking ",
        Phase::Stage => "copying ",
        Phase::Verify => "verifying",
        Phase::Commit => "sealing ",
        Phase::Apply => "placing ",
        Phase::Confirm => "confirming",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_templates_are_well_formed() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
        assert!(ProgressStyle::with_template(SPINNER).is_ok());
    }

    #[test]
    fn a_backend_that_does_not_answer_is_said_in_place_of_the_files() {
        let mut step = crate::flush::phase(Phase::Stage);
        assert_eq!(message(&step), "0 of 0 files");
        step.silent_seconds = 12;
        assert_eq!(
            message(&step),
            "the backend has not answered for 12 s; waiting"
        );
    }

    #[test]
    fn no_bar_is_drawn_when_quiet() {
        let mut bar = Bar::new(true);
        bar.show(&Progress {
            phase: Phase::Cut,
            files_done: 0,
            files_total: 1,
            bytes_done: 0,
            bytes_total: 1,
            silent_seconds: 0,
        });
        assert!(bar.shown.is_none());
    }
}
