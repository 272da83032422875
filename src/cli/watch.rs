//! `ferryfs status --watch`: the status as it changes.
//!
//! On a terminal the view is drawn again in place when something in it has changed; lines are cut
//! to its width, so that what was drawn before can be found again. Elsewhere one line is printed
//! for each change, or one JSON object a line.

use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::{Duration, Instant};

use super::progress::{Count, Outlook, Pace, message, phase_name};
use super::reach::Which;
use super::units::{human_bytes, human_seconds};
use super::{interrupt, log, reach, render, times};
use crate::control::client::Client;
use crate::control::protocol::{BackendState, Space, Status};
use crate::core::{Exit, Failure, ForeignText, path_of_text, printable, printable_lines};
use crate::daemon::history;
use crate::daemon::history::{Entry, Outcome};
use crate::sys::holders;
use crate::sys::terminal::size_of_stdout;

/// How often the daemon is asked.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// How often it is looked who has files open: that reads all of `/proc`.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How often a Ctrl-C is looked for.
const SLICE: Duration = Duration::from_millis(100);

/// How many batches and programs are shown.
const BATCHES: usize = 3;
const PROGRAMS: usize = 3;

/// From how many batches the speed of the drive is taken.
const MEASURED: usize = 10;

/// A batch takes at least this long.
const LEAST_SECONDS: f64 = 1.0;

/// How the first line is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Safe,
    Wait,
    Trouble,
}

/// What is known at one moment.
struct Snapshot {
    status: Status,
    outlook: Outlook,
    /// The last batches, the newest last.
    batches: Vec<Entry>,
    programs: Vec<String>,
}

pub(super) fn run(which: &Which, json: bool) -> Result<Exit, Failure> {
    let mut client = reach::reach(which)?.client;
    let mut status = reach::status_of(&mut client)?;
    interrupt::watch();
    let mut watcher = Watcher::default();
    let mut output = Output::new(json);
    loop {
        let snapshot = watcher.look(status);
        // A closed stdout (`| head`) ends it.
        if output.show(&snapshot).is_err() || !wait() {
            let _ = output.leave("");
            return Ok(Exit::Done);
        }
        status = match ask_again(&mut client, which) {
            Ok(status) => status,
            Err(failure) => {
                let _ = output.leave("the mount has ended");
                // A daemon that has died is no end that was asked for.
                return match reach::reach(which) {
                    Err(reach::NotReached::Dead(_)) => Err(failure),
                    _ => Ok(Exit::Done),
                };
            }
        };
    }
}

/// The status, on a new connection if the daemon has been restarted meanwhile.
fn ask_again(client: &mut Client, which: &Which) -> Result<Status, Failure> {
    if let Ok(status) = reach::status_of(client) {
        return Ok(status);
    }
    *client = reach::reach(which)?.client;
    reach::status_of(client)
}

/// Waits until the next look. Returns false after a Ctrl-C.
fn wait() -> bool {
    let next = Instant::now() + ASK_EVERY;
    while Instant::now() < next && !interrupt::has_come() {
        thread::sleep(SLICE);
    }
    !interrupt::has_come()
}

/// Collects what the daemon does not say.
#[derive(Default)]
struct Watcher {
    pace: Pace,
    batches: Vec<Entry>,
    /// The number of the last batch when they were read.
    read_at: Option<Option<u64>>,
    programs: Vec<String>,
    looked: Option<Instant>,
}

impl Watcher {
    fn look(&mut self, status: Status) -> Snapshot {
        let now = Instant::now();
        let outlook = match &status.running {
            Some(running) => {
                let count = Count::of(&running.progress);
                self.pace.note_phase(now, &running.progress, &count);
                self.pace.at(now, &count)
            }
            None => {
                self.pace = Pace::default();
                Outlook::Unknown
            }
        };
        let last = status.last_batch.as_ref().map(|batch| batch.number);
        if self.read_at != Some(last) {
            let cache = path_of_text(&status.cache);
            self.batches = history::read(&cache, MEASURED).unwrap_or_default();
            self.read_at = Some(last);
        }
        if self.looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
            self.looked = Some(now);
            self.programs = programs(&status);
        }
        Snapshot {
            status,
            outlook,
            batches: self.batches.clone(),
            programs: self.programs.clone(),
        }
    }
}

/// The programs that use the mount.
fn programs(status: &Status) -> Vec<String> {
    let Ok(device) = holders::device_of(&path_of_text(&status.mountpoint)) else {
        return Vec::new();
    };
    let found = holders::of(device).found;
    let named = found.iter().filter_map(|holder| {
        let (pid, program) = holder.process.as_ref()?;
        let path = holder.path.escaped();
        Some(format!("{} (pid {pid}: {path})", program.escaped()))
    });
    named.collect()
}

/// The first line: may the drive be unplugged?
fn headline(snapshot: &Snapshot) -> (Mood, String) {
    let status = &snapshot.status;
    let waits = match status.dirty_files {
        0 => "nothing waits for it".to_string(),
        count => format!("{} wait in the cache", render::files(count)),
    };
    if status.backend_state == BackendState::Detached {
        let what = match status.ejected.is_some() {
            true => "ejected",
            false => "the drive is away",
        };
        return match status.batch_in_progress {
            // A flush that has not noticed yet.
            true => (Mood::Wait, format!("not safe yet: {what}, {waits}")),
            false => (Mood::Safe, format!("safe to unplug now: {what}, {waits}")),
        };
    }
    if status.stalled_since.is_some() {
        let text = format!("not safe: the drive does not answer; {waits}");
        return (Mood::Trouble, text);
    }
    if status.safe_to_unplug {
        return (Mood::Safe, "safe to unplug now".into());
    }
    if status.batch_in_progress {
        return (Mood::Wait, soon(snapshot));
    }
    let text = match needed(snapshot) {
        Some(seconds) => format!(
            "not safe yet: {waits}; it takes about {} (ferryfs eject)",
            rounded(seconds)
        ),
        None => format!("not safe yet: {waits} (ferryfs eject)"),
    };
    (Mood::Wait, text)
}

/// The answer to `ferryfs status --brief`.
pub(super) fn brief(status: Status) -> String {
    let mut watcher = Watcher {
        // Which programs use the mount is not asked for.
        looked: Some(Instant::now()),
        ..Watcher::default()
    };
    in_brief(&watcher.look(status))
}

/// May the drive be unplugged now, or when?
fn in_brief(snapshot: &Snapshot) -> String {
    let status = &snapshot.status;
    if status.backend_state == BackendState::Detached {
        // A flush may not have noticed yet that the drive is away.
        let is_safe = !status.batch_in_progress;
        return if is_safe { "safe now" } else { "not safe" }.into();
    }
    if status.stalled_since.is_some() {
        return "does not answer".into();
    }
    match needed(snapshot) {
        _ if status.safe_to_unplug => "safe now".into(),
        _ if status.batch_in_progress => soon(snapshot),
        Some(seconds) => format!("safe in about {}", rounded(seconds)),
        None => "not safe".into(),
    }
}

/// How long an eject takes that begins now.
fn needed(snapshot: &Snapshot) -> Option<f64> {
    let status = &snapshot.status;
    let bytes = status.needed_bytes.max(status.dirty_bytes);
    seconds_for(bytes, &snapshot.batches)
}

fn rounded(seconds: f64) -> String {
    human_seconds(seconds.max(LEAST_SECONDS).round())
}

fn soon(snapshot: &Snapshot) -> String {
    let left = match snapshot.outlook {
        Outlook::Expectations { left, .. } => Some(left),
        Outlook::Finishing => return "safe in a moment".into(),
        Outlook::Unknown => {
            let bytes = (snapshot.status.running.as_ref()).map_or(0, |running| {
                let progress = running.progress;
                progress.bytes_total.saturating_sub(progress.bytes_done)
            });
            seconds_for(bytes, &snapshot.batches).filter(|_| bytes > 0)
        }
    };
    match left {
        Some(seconds) => format!("safe in about {}", rounded(seconds)),
        None => "safe soon: a batch is being written".into(),
    }
}

/// How long the drive takes for so many bytes, by what the last batches have taken.
fn seconds_for(bytes: u64, batches: &[Entry]) -> Option<f64> {
    let measured = batches.iter().filter(|batch| {
        let is_written = matches!(batch.outcome, Outcome::Complete | Outcome::LeftBehind);
        is_written && batch.bytes > 0 && !batch.recovered
    });
    let (all, seconds) = measured.fold((0.0, 0.0), |(bytes, seconds), batch| {
        (bytes + batch.bytes as f64, seconds + batch.seconds)
    });
    (all > 0.0 && seconds > 0.0).then(|| bytes as f64 * seconds / all)
}

/// The view: the first line, and the rest.
fn lines(snapshot: &Snapshot) -> Vec<String> {
    let status = &snapshot.status;
    let mut rows: Vec<(&str, String)> = vec![("waiting", waiting(status))];
    if let Some(running) = &status.running {
        let step = &running.progress;
        let phase = phase_name(step.phase).trim_end();
        let rest = message(step, &snapshot.outlook);
        rows.push(("writing", format!("{phase} {rest}").trim_end().into()));
        if let Some(slowed) = running.slowed {
            rows.push(("", slowed.in_words().into()));
        }
    }
    rows.push(("drive", drive(status)));
    rows.push(("SSD", ssd(status)));
    if status.open_for_write > 0 || !snapshot.programs.is_empty() {
        rows.push(("open", open(snapshot)));
    }
    if status.conflicts > 0 {
        let what = "find -name '*.sync-conflict-*'";
        rows.push(("conflicts", format!("{}: {what}", status.conflicts)));
    }
    let troubles = (status.last_error.iter().map(|text| ("error", text)))
        .chain(status.warnings.iter().map(|text| ("warning", text)))
        .chain(status.attention.iter().map(|text| ("attention", text)));
    rows.extend(troubles.map(|(what, text)| (what, printable(text))));
    for entry in snapshot.batches.iter().rev().take(BATCHES) {
        rows.push(("batch", log::line(entry)));
    }
    rows.into_iter()
        .map(|(label, text)| format!("{label:<9}  {text}"))
        .collect()
}

fn waiting(status: &Status) -> String {
    if status.dirty_files == 0 {
        return "nothing".into();
    }
    let mut text = format!(
        "{}, {}",
        render::files(status.dirty_files),
        human_bytes(status.dirty_bytes)
    );
    if let Some(since) = &status.oldest_change {
        let now = std::time::SystemTime::now().into();
        text.push_str(&format!(", the oldest {}", times::at(since, now)));
    }
    text
}

fn drive(status: &Status) -> String {
    let state = match (status.backend_state, status.stalled_since.is_some()) {
        (BackendState::Attached, false) => "attached",
        (BackendState::Attached, true) => "does not answer",
        (BackendState::Detached, _) if status.ejected.is_some() => "ejected",
        (BackendState::Detached, _) => "away",
    };
    match status.drive {
        Some(space) => format!("{state}, {}", free(space)),
        None => state.into(),
    }
}

fn ssd(status: &Status) -> String {
    let mut text = format!("{} cached", human_bytes(status.cached_bytes));
    if let Some(space) = status.ssd {
        text.push_str(&format!(", {}", free(space)));
    }
    text
}

fn free(space: Space) -> String {
    format!(
        "{} of {} free",
        human_bytes(space.free_bytes),
        human_bytes(space.total_bytes)
    )
}

fn open(snapshot: &Snapshot) -> String {
    let mut parts = vec![format!(
        "{} for writing",
        render::files(snapshot.status.open_for_write)
    )];
    parts.extend(snapshot.programs.iter().take(PROGRAMS).cloned());
    if snapshot.programs.len() > PROGRAMS {
        parts.push(format!("{} more", snapshot.programs.len() - PROGRAMS));
    }
    parts.join(", ")
}

/// Where the view goes.
enum Output {
    Terminal(Screen),
    Lines { last: String },
    Json { last: String },
}

impl Output {
    fn new(json: bool) -> Output {
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb" || term.is_empty());
        let last = String::new();
        match (json, io::stdout().is_terminal() && !is_dumb) {
            (true, _) => Output::Json { last },
            (false, true) => Output::Terminal(Screen {
                colored: std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()),
                drawn: Vec::new(),
                size: (0, 0),
            }),
            (false, false) => Output::Lines { last },
        }
    }

    fn show(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        match self {
            Output::Terminal(screen) => screen.draw(snapshot, size_of_stdout()),
            Output::Lines { last } => print_changed(last, &in_one_line(snapshot)),
            Output::Json { last } => print_changed(last, &in_json(&snapshot.status)),
        }
    }

    /// Ends the view with a message.
    fn leave(&mut self, message: &str) -> io::Result<()> {
        match (self, message) {
            (Output::Json { .. }, _) | (_, "") => Ok(()),
            (Output::Terminal(_) | Output::Lines { .. }, message) => print(message),
        }
    }
}

/// The changes in one line. What only counts down is no change.
fn in_one_line(snapshot: &Snapshot) -> String {
    let (mood, text) = headline(snapshot);
    let text = match (mood, snapshot.status.batch_in_progress) {
        (Mood::Wait, true) => "not safe yet: a batch is being written".into(),
        _ => text,
    };
    let batch =
        (snapshot.status.last_batch.as_ref()).map(|batch| format!("batch {}", batch.number));
    let mut parts = vec![text, format!("waiting: {}", waiting(&snapshot.status))];
    parts.extend(batch);
    if snapshot.status.conflicts > 0 {
        parts.push(format!("conflicts: {}", snapshot.status.conflicts));
    }
    parts.extend(snapshot.status.last_error.as_deref().map(printable));
    parts.join("; ")
}

/// The status as JSON in one line, without the seconds of the flush under way, which would make
/// each of them a change.
fn in_json(status: &Status) -> String {
    let mut status = status.clone();
    if let Some(running) = &mut status.running {
        running.seconds = 0.0;
    }
    let text = serde_json::to_string(&status).unwrap_or_default();
    crate::core::printable_json(&text)
}

fn print_changed(last: &mut String, text: &str) -> io::Result<()> {
    if last == text {
        return Ok(());
    }
    *last = text.into();
    print(text)
}

fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", printable_lines(text))?;
    stdout.flush()
}

/// A terminal on which the view is drawn.
struct Screen {
    colored: bool,
    /// The lines that were drawn last.
    drawn: Vec<String>,
    /// The width and height then.
    size: (usize, usize),
}

impl Screen {
    fn draw(&mut self, snapshot: &Snapshot, size: Option<(usize, usize)>) -> io::Result<()> {
        let (width, height) = size.unwrap_or((80, 24));
        let text = self.frame(snapshot, (width.max(1), height.max(2)));
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }

    /// What is written to the terminal: nothing if the view is the same.
    fn frame(&mut self, snapshot: &Snapshot, size: (usize, usize)) -> String {
        let (width, height) = size;
        let (mood, first) = headline(snapshot);
        let mut view = vec![cut(&first, width)];
        view.extend(lines(snapshot).iter().map(|line| cut(line, width)));
        // The cursor is in the line below the view.
        view.truncate(height - 1);
        if view == self.drawn && size == self.size {
            return String::new();
        }
        let mut text = match (self.drawn.len(), size == self.size || self.size == (0, 0)) {
            (0, _) => String::new(),
            (drawn, true) => format!("\x1b[{drawn}A\r\x1b[J"),
            // The terminal may have wrapped what is there anew.
            (_, false) => "\x1b[2J\x1b[H".into(),
        };
        let color = match mood {
            Mood::Safe => "\x1b[1;32m",
            Mood::Wait => "\x1b[1;33m",
            Mood::Trouble => "\x1b[1;31m",
        };
        for (place, line) in view.iter().enumerate() {
            match place == 0 && self.colored {
                true => text.push_str(&format!("{color}{line}\x1b[0m\n")),
                false => text.push_str(&format!("{line}\n")),
            }
        }
        self.drawn = view;
        self.size = size;
        text
    }
}

/// The beginning of `line` that fits into `width` columns. Any character that is not ASCII counts
/// as two columns, which is the most that one takes.
fn cut(line: &str, width: usize) -> String {
    let columns = |c: char| if c.is_ascii() { 1 } else { 2 };
    let mut left = width;
    (line.chars())
        .take_while(|c| {
            let fits = columns(*c) <= left;
            left = left.saturating_sub(columns(*c));
            fits
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::RunningFlush;
    use crate::core::{Phase, Progress};

    fn snapshot() -> Snapshot {
        Snapshot {
            status: Status {
                dirty_files: 0,
                dirty_bytes: 0,
                needed_bytes: 0,
                safe_to_unplug: true,
                ..render::tests::sample()
            },
            outlook: Outlook::Unknown,
            batches: Vec::new(),
            programs: Vec::new(),
        }
    }

    fn batch(bytes: u64, seconds: f64) -> Entry {
        Entry {
            time: "2026-11-20T00:00:00Z".into(),
            batch: 1,
            outcome: Outcome::Complete,
            recovered: false,
            files: 1,
            bytes,
            removed: 0,
            moved: 0,
            conflicts: 0,
            left_behind: 0,
            seconds,
            problem: None,
        }
    }

    fn writing(bytes: u64) -> Snapshot {
        let mut snapshot = snapshot();
        snapshot.status.safe_to_unplug = false;
        snapshot.status.batch_in_progress = true;
        snapshot.status.running = Some(RunningFlush {
            progress: Progress {
                bytes_total: bytes,
                files_total: 2,
                ..crate::flush::phase(Phase::Stage)
            },
            seconds: 1.0,
            slowed: None,
        });
        snapshot
    }

    #[test]
    fn the_first_words_say_whether_the_drive_may_be_unplugged() {
        let first = |snapshot: &Snapshot| headline(snapshot).1;
        assert_eq!(first(&snapshot()), "safe to unplug now");
        let mut waits = snapshot();
        waits.status.safe_to_unplug = false;
        waits.status.dirty_files = 3;
        waits.status.dirty_bytes = 40 << 20;
        waits.status.needed_bytes = 40 << 20;
        assert_eq!(
            first(&waits),
            "not safe yet: 3 files wait in the cache (ferryfs eject)"
        );
        waits.batches = vec![batch(10 << 20, 2.0), batch(30 << 20, 6.0)];
        assert_eq!(
            first(&waits),
            "not safe yet: 3 files wait in the cache; it takes about 8.0 s (ferryfs eject)"
        );
        let mut writes = writing(100 << 20);
        assert_eq!(first(&writes), "safe soon: a batch is being written");
        writes.batches = vec![batch(10 << 20, 2.0)];
        assert_eq!(first(&writes), "safe in about 20 s");
        writes.outlook = Outlook::Expectations {
            per_second: 1.0,
            left: 65.2,
        };
        assert_eq!(first(&writes), "safe in about 1 min 5 s");
        writes.outlook = Outlook::Finishing;
        assert_eq!(first(&writes), "safe in a moment");
        let mut stalled = writing(1);
        stalled.status.stalled_since = Some("2026-11-20T00:00:00Z".into());
        assert!(first(&stalled).starts_with("not safe: the drive does not answer"));
        let mut away = waits;
        away.status.backend_state = BackendState::Detached;
        assert!(first(&away).starts_with("safe to unplug now: the drive is away, 3 files wait"));
    }

    #[test]
    fn one_line_says_whether_it_may_be_unplugged_or_when() {
        assert_eq!(in_brief(&snapshot()), "safe now");
        let mut waits = snapshot();
        waits.status.safe_to_unplug = false;
        waits.status.dirty_files = 3;
        waits.status.dirty_bytes = 80 << 20;
        waits.status.needed_bytes = 0;
        assert_eq!(in_brief(&waits), "not safe");
        waits.batches = vec![batch(10 << 20, 2.0), batch(30 << 20, 8.0)];
        assert_eq!(in_brief(&waits), "safe in about 20 s");
        assert_eq!(
            in_brief(&writing(100 << 20)),
            "safe soon: a batch is being written"
        );
        waits.status.stalled_since = Some("2026-11-20T00:00:00Z".into());
        assert_eq!(in_brief(&waits), "does not answer");
        waits.status.backend_state = BackendState::Detached;
        assert_eq!(in_brief(&waits), "safe now");
    }

    #[test]
    fn a_failed_batch_says_nothing_of_the_speed() {
        let failed = Entry {
            outcome: Outcome::GivenUp,
            ..batch(1 << 30, 1.0)
        };
        assert_eq!(seconds_for(1000, std::slice::from_ref(&failed)), None);
        assert_eq!(seconds_for(1000, &[failed, batch(100, 1.0)]), Some(10.0));
        assert_eq!(seconds_for(1000, &[]), None);
    }

    fn screen() -> Screen {
        Screen {
            colored: false,
            drawn: Vec::new(),
            size: (0, 0),
        }
    }

    #[test]
    fn lines_fit_into_any_terminal_and_nothing_is_drawn_twice() {
        let mut snapshot = writing(100 << 20);
        snapshot.programs = vec!["a program with a long name (pid 1: /大文件夹/大)".into()];
        for (width, height) in [(80, 24), (40, 10), (10, 3), (1, 2)] {
            let mut screen = screen();
            let text = screen.frame(&snapshot, (width, height));
            assert!(text.lines().count() < height, "{text}");
            for line in text.lines() {
                let columns: usize = line.chars().map(|c| if c.is_ascii() { 1 } else { 2 }).sum();
                assert!(columns <= width, "{line:?} in {width}");
            }
            assert_eq!(screen.frame(&snapshot, (width, height)), "");
        }
    }

    #[test]
    fn a_change_is_drawn_in_place_and_a_new_size_on_a_clean_screen() {
        let mut screen = screen();
        let first = screen.frame(&snapshot(), (80, 24));
        let drawn = first.lines().count();
        assert!(!first.contains('\x1b'), "{first:?}");
        let second = screen.frame(&writing(100), (80, 24));
        assert!(
            second.starts_with(&format!("\x1b[{drawn}A\r\x1b[J")),
            "{second:?}"
        );
        let third = screen.frame(&writing(100), (60, 24));
        assert!(third.starts_with("\x1b[2J\x1b[H"), "{third:?}");
        screen.colored = true;
        let fourth = screen.frame(&snapshot(), (60, 24));
        assert!(
            fourth.contains("\x1b[1;32msafe to unplug now\x1b[0m"),
            "{fourth:?}"
        );
    }

    #[test]
    fn the_seconds_of_a_flush_are_no_change() {
        let (mut one, mut two) = (writing(100), writing(100));
        two.status.running.as_mut().unwrap().seconds = 9.0;
        assert_eq!(in_json(&one.status), in_json(&two.status));
        one.outlook = Outlook::Finishing;
        assert_eq!(in_one_line(&one), in_one_line(&two));
        two.status.dirty_files = 1;
        assert_ne!(in_json(&one.status), in_json(&two.status));
        assert_ne!(in_one_line(&one), in_one_line(&two));
    }
}
