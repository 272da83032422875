//! `ferryfs doctor`: looks at the machine, a cache, a drive and a daemon, and says what is wrong
//! and what to do.
//!
//! It changes nothing: it takes no lock and no lease, makes no name, and starts no recovery. What
//! the drive is asked is asked on a thread of its own, because it may not answer.

mod cache;
mod drive;
mod machine;
mod running;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::flush_job::within;
use super::known_caches;
use super::volume;
use crate::control::protocol::Status;
use crate::core::{Exit, path_of_text};

/// How long the drive may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How good or bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Nothing to do.
    Ok,
    /// It works, and something may go wrong.
    Warning,
    /// Something does not work.
    Problem,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How good or bad it is.
    pub level: Level,
    /// What was looked at: "machine", "cache", "drive" or "daemon".
    pub area: &'static str,
    /// What was found, in one line.
    pub text: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// Findings about one area.
struct Findings {
    area: &'static str,
    found: Vec<Finding>,
}

impl Findings {
    fn of(area: &'static str) -> Findings {
        Findings {
            area,
            found: Vec::new(),
        }
    }

    fn add(&mut self, level: Level, text: impl Into<String>, advice: Option<String>) {
        self.found.push(Finding {
            level,
            area: self.area,
            text: text.into(),
            advice,
        });
    }

    fn ok(&mut self, text: impl Into<String>) {
        self.add(Level::Ok, text, None);
    }

    fn warn(&mut self, text: impl Into<String>, advice: impl Into<String>) {
        self.add(Level::Warning, text, Some(advice.into()));
    }

    fn problem(&mut self, text: impl Into<String>, advice: impl Into<String>) {
        self.add(Level::Problem, text, Some(advice.into()));
    }
}

/// What is looked at. Without a drive it is the machine alone.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    /// The drive's directory.
    pub drive: Option<PathBuf>,
    /// What its daemon says, if one answers.
    pub status: Option<Box<Status>>,
    /// Its daemon has died, and the mount is still here.
    pub dead_mount: Option<PathBuf>,
    /// The cache, if the user names it.
    pub cache: Option<PathBuf>,
}

/// Looks at everything.
pub fn examine(subject: &Subject) -> Vec<Finding> {
    let mut all = machine::examine();
    let status = subject.status.as_deref();
    let drive = subject
        .drive
        .clone()
        .or_else(|| status.map(|status| path_of_text(&status.backend)));
    let cache = (subject.cache.clone())
        .or_else(|| status.map(|status| path_of_text(&status.cache)))
        .or_else(|| cache_of(drive.as_deref()?));
    all.extend(cache::examine(cache.as_deref(), status));
    if let Some(drive) = drive {
        let is_away = status.is_some_and(|status| status.drive.is_none());
        all.extend(look_at_drive(drive, cache, status.cloned(), is_away));
    }
    all.extend(running::examine(subject));
    all
}

/// The exit code for what was found: 0 if all is well, 3 for warnings, 1 for problems.
pub fn exit(findings: &[Finding]) -> Exit {
    match findings.iter().map(|finding| finding.level).max() {
        Some(Level::Problem) => Exit::Failed,
        Some(Level::Warning) => Exit::LeftBehind,
        _ => Exit::Done,
    }
}

fn look_at_drive(
    drive: PathBuf,
    cache: Option<PathBuf>,
    status: Option<Status>,
    is_away: bool,
) -> Vec<Finding> {
    let begun = Instant::now();
    let look = move || drive::examine(&drive, cache.as_deref(), status.as_ref(), is_away);
    within(look, || begun.elapsed() > PATIENCE).unwrap_or_else(|| {
        let mut findings = Findings::of("drive");
        findings.problem(
            format!("it has not answered for {} s", PATIENCE.as_secs()),
            "check the NAS or the drive and its cable; cached files can be used meanwhile",
        );
        findings.found
    })
}

/// The cache of the volume at `drive`, of those that this user has.
fn cache_of(drive: &Path) -> Option<PathBuf> {
    let drive = drive.to_path_buf();
    let begun = Instant::now();
    let find = move || {
        let opened = crate::drive::mounted::MountedDir::open(&drive).ok()?;
        let volume = volume::peek(&opened).ok().flatten().map(|marker| marker.id);
        let known = known_caches::all();
        let by_id = (known.iter()).find(|(_, facts)| Some(facts.volume) == volume);
        let by_place = || known.iter().find(|(_, facts)| facts.was_at(&drive));
        Some(by_id.or_else(by_place)?.0.clone())
    };
    within(find, || begun.elapsed() > PATIENCE).flatten()
}
