//! The progress bar of commands that flush.

use std::collections::VecDeque;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::render::files;
use super::units::{human_bytes, human_seconds};
use crate::core::{Phase, Progress};

/// Drawn on stderr, so that stdout has only the result.
const TEMPLATE: &str = "{prefix} {bar:28} {msg}";
/// For phases without a count.
const SPINNER: &str = "{prefix} {spinner} {msg}";

/// The speed is that of the last so many seconds: once a drive's own cache is full, the drive stays
/// slower.
const WINDOW: Duration = Duration::from_secs(20);

/// No time is estimated from less than this.
const TOO_SOON: Duration = Duration::from_secs(3);

/// How often the spinner turns, so that a command that waits is visibly alive.
const TICK: Duration = Duration::from_millis(120);

/// A progress bar that appears with the first progress, on a terminal only.
pub(super) struct Bar {
    wanted: bool,
    quiet: bool,
    /// It has been printed that the drive does not answer.
    complained: bool,
    shown: Option<(Phase, ProgressBar)>,
    pace: Pace,
}

impl Bar {
    /// A bar if stderr is a terminal; otherwise, or when `quiet`, nothing.
    pub(super) fn new(quiet: bool) -> Bar {
        Bar {
            wanted: !quiet && io::stderr().is_terminal(),
            quiet,
            complained: false,
            shown: None,
            pace: Pace::default(),
        }
    }

    /// Shows `step`. A new phase starts a new bar, with a count and a speed of its own.
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
        let now = Instant::now();
        let count = Count::of(step);
        self.pace.note(now, count.done);
        if let Some((_, bar)) = &self.shown {
            bar.set_length(count.total.max(count.done));
            bar.set_position(count.done);
            bar.set_message(message(step, &self.pace.at(now, &count)));
        }
    }

    /// Without a bar, prints one line each time that the drive stops answering.
    fn complain_once(&mut self, step: &Progress) {
        let silent = step.silent_seconds > 0;
        if silent && !self.complained && !self.quiet {
            crate::sys::terminal::complain(&format!("ferryfs: {}", waiting(step.silent_seconds)));
        }
        self.complained = silent;
    }

    /// Removes it from the screen.
    pub(super) fn clear(&mut self) {
        if let Some((_, bar)) = self.shown.take() {
            bar.finish_and_clear();
        }
        self.pace = Pace::default();
    }
}

/// The measure of a phase: bytes if it moves any, else files or names.
pub(super) struct Count {
    done: u64,
    total: u64,
    in_bytes: bool,
}

impl Count {
    pub(super) fn of(step: &Progress) -> Count {
        match step.bytes_total > 0 {
            true => Count {
                done: step.bytes_done,
                total: step.bytes_total,
                in_bytes: true,
            },
            false => Count {
                done: step.files_done,
                total: step.files_total,
                in_bytes: false,
            },
        }
    }
}

/// The speed of a phase in the last seconds.
#[derive(Default)]
pub(super) struct Pace {
    seen: VecDeque<(Instant, u64)>,
    phase: Option<Phase>,
}

/// The estimate for a phase.
#[derive(Debug, PartialEq)]
pub(super) enum Outlook {
    /// Unknown yet.
    Unknown,
    /// So many units a second, and so many seconds left.
    Expectations { per_second: f64, left: f64 },
    /// All of it is written, and the drive stores it.
    Finishing,
}

impl Pace {
    /// Notes a step. A new phase has a speed of its own.
    pub(super) fn note_phase(&mut self, now: Instant, step: &Progress, count: &Count) {
        if self.phase != Some(step.phase) {
            self.seen.clear();
            self.phase = Some(step.phase);
        }
        self.note(now, count.done);
    }

    fn note(&mut self, now: Instant, done: u64) {
        // A count that starts again within a phase is that of another batch.
        if self.seen.back().is_some_and(|&(_, before)| done < before) {
            self.seen.clear();
        }
        self.seen.push_back((now, done));
        // The last sample before the window stays, so that the window is always filled.
        while self.seen.len() > 2 && now.duration_since(self.seen[1].0) > WINDOW {
            self.seen.pop_front();
        }
    }

    pub(super) fn at(&self, now: Instant, count: &Count) -> Outlook {
        if count.total > 0 && count.done >= count.total {
            return Outlook::Finishing;
        }
        let Some(&(first, before)) = self.seen.front() else {
            return Outlook::Unknown;
        };
        let took = now.duration_since(first);
        let moved = count.done.saturating_sub(before);
        if took < TOO_SOON || moved == 0 {
            return Outlook::Unknown;
        }
        let per_second = moved as f64 / took.as_secs_f64();
        Outlook::Expectations {
            per_second,
            left: count.total.saturating_sub(count.done) as f64 / per_second,
        }
    }
}

fn begin(step: &Progress) -> ProgressBar {
    let count = Count::of(step);
    let target = ProgressDrawTarget::stderr();
    let bar = ProgressBar::with_draw_target(Some(count.total), target);
    let template = match count.total > 0 {
        true => TEMPLATE,
        false => SPINNER,
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(phase_name(step.phase));
    bar.enable_steady_tick(TICK);
    bar
}

/// What is to be said of a step, without its phase.
pub(super) fn message(step: &Progress, outlook: &Outlook) -> String {
    if step.silent_seconds > 0 {
        return waiting(step.silent_seconds);
    }
    let count = Count::of(step);
    if count.total == 0 {
        return String::new();
    }
    let counted = match step.phase {
        Phase::Apply => format!("{} of {} names", step.files_done, step.files_total),
        _ => format!("{} of {}", step.files_done, files(step.files_total)),
    };
    let mut parts = vec![counted];
    if count.in_bytes {
        parts.push(format!(
            "{} of {}",
            human_bytes(count.done),
            human_bytes(count.total)
        ));
    }
    match outlook {
        Outlook::Unknown => {}
        Outlook::Finishing => parts.push("waiting for the drive to store it".into()),
        Outlook::Expectations { per_second, left } => {
            if count.in_bytes {
                parts.push(format!("{}/s", human_bytes(*per_second as u64)));
            }
            parts.push(format!(
                "about {} left",
                human_seconds(left.max(1.0).round())
            ));
        }
    }
    parts.join(", ")
}

fn waiting(seconds: u64) -> String {
    let silent = human_seconds(seconds as f64);
    format!("the drive has not answered for {silent}; waiting")
}

/// The phase in one word, with spaces up to a common width.
pub(super) fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Cut => "looking  ",
        Phase::Stage => "copying  ",
        Phase::Verify => "verifying",
        Phase::Commit => "sealing  ",
        Phase::Apply => "placing  ",
        Phase::Confirm => "confirming",
        Phase::Scrub => "reading  ",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(phase: Phase, files: (u64, u64), bytes: (u64, u64)) -> Progress {
        Progress {
            files_done: files.0,
            files_total: files.1,
            bytes_done: bytes.0,
            bytes_total: bytes.1,
            ..crate::flush::phase(phase)
        }
    }

    #[test]
    fn both_templates_are_well_formed() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
        assert!(ProgressStyle::with_template(SPINNER).is_ok());
    }

    #[test]
    fn a_backend_that_does_not_answer_is_said_in_place_of_the_files() {
        let mut at = step(Phase::Stage, (0, 2), (0, 9));
        assert_eq!(message(&at, &Outlook::Unknown), "0 of 2 files, 0 B of 9 B");
        at.silent_seconds = 12;
        assert_eq!(
            message(&at, &Outlook::Unknown),
            "the drive has not answered for 12 s; waiting"
        );
    }

    #[test]
    fn names_are_counted_while_placing_and_all_done_is_no_second_left() {
        let at = step(Phase::Apply, (30, 200), (0, 0));
        let known = Outlook::Expectations {
            per_second: 10.0,
            left: 17.0,
        };
        assert_eq!(message(&at, &known), "30 of 200 names, about 17 s left");
        let all = step(Phase::Apply, (200, 200), (0, 0));
        let outlook = Pace::default().at(Instant::now(), &Count::of(&all));
        assert_eq!(outlook, Outlook::Finishing);
        assert_eq!(
            message(&all, &outlook),
            "200 of 200 names, waiting for the drive to store it"
        );
    }

    #[test]
    fn time_is_foretold_from_what_the_last_seconds_were_like() {
        let begun = Instant::now();
        let at = |second: u64| begun + Duration::from_secs(second);
        let count = |done| Count {
            done,
            total: 10_000,
            in_bytes: true,
        };
        let mut pace = Pace::default();
        pace.note(at(0), 0);
        pace.note(at(1), 1000);
        assert_eq!(pace.at(at(1), &count(1000)), Outlook::Unknown, "too soon");
        // Fast at first, then ten times as slow: the estimate uses the latter.
        let mut done = 5000;
        pace.note(at(5), done);
        for second in 6..40 {
            done += 100;
            pace.note(at(second), done);
        }
        let Outlook::Expectations { per_second, left } = pace.at(at(39), &count(done)) else {
            panic!("known by now");
        };
        assert!((99.0..101.0).contains(&per_second), "{per_second}");
        assert!((15.0..17.0).contains(&left), "{left}");
        // Without progress the estimate grows, and never reports that it is nearly done.
        let Outlook::Expectations { left: later, .. } = pace.at(at(99), &count(done)) else {
            panic!("known by now");
        };
        assert!(later > 3.0 * left, "{later}");
        pace.note(at(100), 0);
        assert_eq!(
            pace.at(at(100), &count(0)),
            Outlook::Unknown,
            "another batch"
        );
    }

    #[test]
    fn no_bar_is_drawn_when_quiet() {
        let mut bar = Bar::new(true);
        bar.show(&step(Phase::Cut, (0, 1), (0, 1)));
        assert!(bar.shown.is_none());
    }
}
