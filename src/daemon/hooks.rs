//! Runs the user's commands when a flush has ended, or when there is something to look at.
//!
//! A command gets a JSON report on stdin and runs as the user of the mount, by `/bin/sh -c`, in a
//! process group of its own. Commands run one after another on one thread, so neither a flush nor a
//! request waits for one. A command that takes longer than the limit is killed with its group.
//!
//! Nothing is stored: a report that waits when the daemon is killed is lost. At an orderly end the
//! waiting ones are run, for a few seconds at most.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Seek, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::unistd::Pid;
use parking_lot::Mutex;
use serde::Serialize;

use super::options::HookCommands;
use super::stop::Stop;
use crate::control::protocol::{Conflict, LeftBehind};
use crate::core::{ForeignText, Timestamp, printable};
use crate::error::FlushError;
use crate::flush::Report;

/// How many reports may wait; further ones are dropped and logged.
const QUEUE: usize = 32;

/// The most files that a report names.
const NAMED: usize = 100;

/// How often a running command is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How long all commands together have once the daemon ends.
const AT_END: Duration = Duration::from_secs(5);

/// How much of a command's last output is kept.
const KEPT_OUTPUT: usize = 400;

/// How long the output of a command that has ended is waited for. A process that it left in the
/// background may keep the pipe open.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// What a command is run for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Event {
    /// A flush failed, or left something behind.
    Failure,
    /// A flush succeeded, or the schedule found nothing to flush.
    Success,
    /// A flush has changed the drive.
    Batch,
    /// There is something that the user must look at.
    Attention,
}

impl Event {
    /// The option that has the command.
    fn option(self) -> &'static str {
        match self {
            Event::Failure => "on_failure",
            Event::Success => "on_success",
            Event::Batch => "on_batch",
            Event::Attention => "on_attention",
        }
    }

    fn command(self, commands: &HookCommands) -> Option<&String> {
        match self {
            Event::Failure => commands.on_failure.as_ref(),
            Event::Success => commands.on_success.as_ref(),
            Event::Batch => commands.on_batch.as_ref(),
            Event::Attention => commands.on_attention.as_ref(),
        }
    }
}

/// The report that a command reads. Fields may be added.
#[derive(Debug, Serialize)]
struct Told<'a> {
    v: u32,
    event: Event,
    /// The drive's name in the configuration.
    name: Option<&'a str>,
    mountpoint: String,
    drive: String,
    /// RFC 3339, UTC.
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flush: Option<Flushed>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attention: Vec<String>,
}

/// The result of a flush in a report.
#[derive(Debug, Default, Serialize)]
struct Flushed {
    batch: Option<u64>,
    files: u64,
    bytes: u64,
    removed: u64,
    moved: u64,
    seconds: f64,
    left_behind: Vec<LeftBehind>,
    left_behind_count: u64,
    conflicts: Vec<Conflict>,
}

impl Flushed {
    fn new(report: &Report) -> Flushed {
        let left = report.left_behind.iter().take(NAMED).cloned();
        let conflicts = report.conflicts.iter().take(NAMED).cloned();
        Flushed {
            batch: report.batch.map(|batch| batch.0),
            files: report.files,
            bytes: report.bytes,
            removed: report.removed,
            moved: report.moved,
            seconds: report.took.as_secs_f64(),
            left_behind: left
                .map(|(path, reason)| LeftBehind { path, reason })
                .collect(),
            left_behind_count: report.left_behind.len() as u64,
            conflicts: conflicts
                .map(|(path, theirs)| Conflict { path, theirs })
                .collect(),
        }
    }
}

/// One command to run.
struct Job {
    event: Event,
    command: String,
    timeout: Duration,
    report: Vec<u8>,
}

/// The mount, as reports name it.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    pub(super) name: Option<String>,
    pub(super) mountpoint: PathBuf,
    pub(super) drive: PathBuf,
}

/// The reports that wait for their command, and how the last commands have ended.
pub(super) struct Hooks {
    subject: Subject,
    commands: Mutex<HookCommands>,
    jobs: (Sender<Job>, Receiver<Job>),
    /// For each event how its last command failed.
    problems: Mutex<BTreeMap<Event, String>>,
    /// The last failure of a flush, so that a drive that stays away is not reported each time.
    last_failure: Mutex<Option<String>>,
    /// What the user has been told of.
    told: Mutex<BTreeSet<String>>,
}

impl Hooks {
    pub(super) fn new(subject: Subject, commands: HookCommands) -> Hooks {
        Hooks {
            subject,
            commands: Mutex::new(commands),
            jobs: bounded(QUEUE),
            problems: Mutex::default(),
            last_failure: Mutex::default(),
            told: Mutex::default(),
        }
    }

    /// Replaces the commands for what happens from now on.
    pub(super) fn set(&self, commands: HookCommands) {
        self.problems.lock().clear();
        *self.commands.lock() = commands;
    }

    /// Whether there is a command for what the user must look at.
    pub(super) fn wants_attention(&self) -> bool {
        self.commands.lock().on_attention.is_some()
    }

    /// How the last commands have failed, a line each.
    pub(super) fn problems(&self) -> Vec<String> {
        self.problems.lock().values().cloned().collect()
    }

    /// A flush has ended. Never waits.
    pub(super) fn flush_ended(&self, result: &Result<Report, FlushError>, time: String) {
        if let Ok(report) = result
            && report.batch.is_some()
        {
            let flushed = Some(Flushed::new(report));
            self.send(Event::Batch, time.clone(), None, flushed, Vec::new());
        }
        match result {
            Ok(report) if report.left_behind.is_empty() => {
                *self.last_failure.lock() = None;
                if report.batch.is_some() {
                    self.send(
                        Event::Success,
                        time,
                        None,
                        Some(Flushed::new(report)),
                        Vec::new(),
                    );
                }
            }
            Ok(report) => {
                let flushed = Flushed::new(report);
                let error = match report.left_behind.len() {
                    1 => "1 file was left behind".to_owned(),
                    count => format!("{count} files were left behind"),
                };
                let names: Vec<&str> = (report.left_behind.iter())
                    .map(|(path, _)| path.as_str())
                    .collect();
                if self.is_new_failure(&names.join("\n")) {
                    self.send(Event::Failure, time, Some(error), Some(flushed), Vec::new());
                }
            }
            Err(FlushError::Cancelled | FlushError::Detached) => {}
            Err(error) => {
                let error = error.to_string();
                if self.is_new_failure(&error) {
                    self.send(Event::Failure, time, Some(error), None, Vec::new());
                }
            }
        }
    }

    /// The schedule has come, and nothing waits for a flush.
    pub(super) fn nothing_to_flush(&self, time: String) {
        let flushed = Some(Flushed::default());
        self.send(Event::Success, time, None, flushed, Vec::new());
    }

    /// Reports those of the lines that were not there the last time.
    pub(super) fn attention(&self, lines: Vec<String>, time: String) {
        let lines: BTreeSet<String> = lines.into_iter().collect();
        let new: Vec<String> = {
            let mut told = self.told.lock();
            let new = lines.difference(&told).cloned().collect();
            *told = lines;
            new
        };
        if !new.is_empty() {
            self.send(Event::Attention, time, None, None, new);
        }
    }

    fn is_new_failure(&self, failure: &str) -> bool {
        let mut last = self.last_failure.lock();
        let is_new = last.as_deref() != Some(failure);
        *last = Some(failure.to_owned());
        is_new
    }

    fn send(
        &self,
        event: Event,
        time: String,
        error: Option<String>,
        flush: Option<Flushed>,
        attention: Vec<String>,
    ) {
        let (command, timeout) = {
            let commands = self.commands.lock();
            match event.command(&commands) {
                Some(command) => (command.clone(), commands.timeout),
                None => return,
            }
        };
        let told = Told {
            v: 1,
            event,
            name: self.subject.name.as_deref(),
            mountpoint: self.subject.mountpoint.to_text(),
            drive: self.subject.drive.to_text(),
            time,
            error,
            flush,
            attention,
        };
        let report = match serde_json::to_vec(&told) {
            Ok(report) => report,
            Err(error) => {
                tracing::error!(%error, "cannot write the report for {}", event.option());
                return;
            }
        };
        let job = Job {
            event,
            command,
            timeout,
            report,
        };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.jobs.0.try_send(job)
        {
            self.note(event, Some("too many wait for the one that runs".into()));
        }
    }

    /// Runs what comes, until `stop` and what has come before it.
    pub(super) fn run(&self, stop: &Stop) {
        let mut end: Option<Instant> = None;
        loop {
            if stop.is_given() {
                end.get_or_insert_with(|| Instant::now() + AT_END);
            }
            let job = match end {
                None => self.jobs.1.recv_timeout(Duration::from_millis(250)).ok(),
                Some(_) => self.jobs.1.try_recv().ok(),
            };
            match (job, end) {
                (Some(job), _) => self.run_job(&job, stop),
                (None, None) => {}
                (None, Some(_)) => return,
            }
            if end.is_some_and(|end| Instant::now() >= end) {
                return;
            }
        }
    }

    fn run_job(&self, job: &Job, stop: &Stop) {
        let problem = match start(job, &self.subject) {
            Ok(child) => wait(child, job.timeout, stop),
            Err(error) => Some(format!("cannot be started: {error}")),
        };
        self.note(job.event, problem);
    }

    fn note(&self, event: Event, problem: Option<String>) {
        let mut problems = self.problems.lock();
        let Some(problem) = problem else {
            problems.remove(&event);
            tracing::debug!(hook = event.option(), "the hook has run");
            return;
        };
        tracing::warn!(hook = event.option(), %problem, "a hook failed");
        let line = format!("the command of {} {problem}", event.option());
        problems.insert(event, line);
    }
}

/// Starts a command. Its report is a file without a name, so writing it waits for no reader.
fn start(job: &Job, subject: &Subject) -> io::Result<Running> {
    let mut report = std::fs::File::from(memfd_create(c"ferryfs-report", MFdFlags::MFD_CLOEXEC)?);
    report.write_all(&job.report)?;
    report.rewind()?;
    let mut command = Command::new("/bin/sh");
    // SAFETY: the closure makes one system call and touches no memory of this process.
    unsafe {
        // The threads of the daemon block the signals that end it; a command must not inherit that.
        command.pre_exec(|| Ok(SigSet::empty().thread_set_mask()?));
    }
    let mut child = command
        .args(["-c", &job.command])
        .current_dir("/")
        .env(
            "FERRYFS_EVENT",
            job.event.option().trim_start_matches("on_"),
        )
        .env("FERRYFS_NAME", subject.name.as_deref().unwrap_or_default())
        .env("FERRYFS_MOUNTPOINT", &subject.mountpoint)
        .env("FERRYFS_DRIVE", &subject.drive)
        .process_group(0)
        .stdin(report)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let (words, said) = bounded(1);
    if let Some(stderr) = child.stderr.take() {
        // Ends with the last process that has the pipe; no one waits for it.
        thread::spawn(move || {
            let _ = words.send(last_words(stderr));
        });
    }
    Ok(Running { child, said })
}

/// A command that runs.
struct Running {
    child: Child,
    said: Receiver<String>,
}

impl Running {
    fn kill(&mut self) {
        // The group has the number of its first process, which has not been waited for yet.
        let group = i32::try_from(self.child.id()).unwrap_or(0);
        if group > 1 {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }

    fn last_words(&self) -> String {
        self.said.recv_timeout(LAST_WORDS).unwrap_or_default()
    }
}

/// Waits for a command, and says how it failed.
fn wait(mut running: Running, timeout: Duration, stop: &Stop) -> Option<String> {
    let begun = Instant::now();
    let mut ending: Option<Instant> = None;
    loop {
        match running.child.try_wait() {
            Ok(Some(status)) => return verdict(status, &running.last_words()),
            Ok(None) => {}
            Err(error) => return Some(format!("cannot be waited for: {error}")),
        }
        if stop.is_given() {
            ending.get_or_insert_with(|| Instant::now() + AT_END);
        }
        if begun.elapsed() >= timeout {
            running.kill();
            return Some(format!(
                "was killed: it had not ended after {} s",
                timeout.as_secs_f64()
            ));
        }
        if ending.is_some_and(|end| Instant::now() >= end) {
            running.kill();
            return Some("was killed at the end of the mount".into());
        }
        thread::sleep(LOOK_EVERY);
    }
}

fn verdict(status: ExitStatus, words: &str) -> Option<String> {
    let what = match (status.code(), status.signal()) {
        (Some(0), _) => return None,
        (Some(code), _) => format!("failed with exit code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended in an unknown way".into(),
    };
    Some(match words.trim() {
        "" => what,
        words => format!("{what}: {}", printable(words)),
    })
}

/// The last line of what a command wrote to stderr. All of it is read: a command that fills a pipe
/// would wait.
fn last_words(mut from: impl Read) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..count]);
        let surplus = kept.len().saturating_sub(KEPT_OUTPUT);
        kept.drain(..surplus);
    }
    let text = String::from_utf8_lossy(&kept);
    let line = text.lines().rfind(|line| !line.trim().is_empty());
    line.unwrap_or_default().to_owned()
}

/// The time for a report.
pub(super) fn now() -> Timestamp {
    Timestamp::from(std::time::SystemTime::now())
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;

    fn hooks(command: &str, timeout: Duration) -> Hooks {
        let subject = Subject {
            name: Some("lab".into()),
            mountpoint: "/home/me/lab".into(),
            drive: "/media/HDD".into(),
        };
        let commands = HookCommands {
            on_success: Some(command.into()),
            on_failure: Some(command.into()),
            on_batch: None,
            on_attention: Some(command.into()),
            timeout,
        };
        Hooks::new(subject, commands)
    }

    /// Runs all that waits, as at the end of a daemon.
    fn run_all(hooks: &Hooks) {
        let stop = Stop::default();
        stop.give();
        hooks.run(&stop);
    }

    fn quoted(path: &Path) -> String {
        crate::core::quoted(path)
    }

    #[test]
    fn a_command_reads_a_report_and_knows_the_mount() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let command = format!(
            "cat > {0}; echo \"$FERRYFS_EVENT $FERRYFS_NAME\" >> {0}",
            quoted(&out)
        );
        let hooks = hooks(&command, Duration::from_secs(20));
        let report = Report {
            files: 3,
            left_behind: vec![("a".into(), "why".into())],
            ..Report::default()
        };
        hooks.flush_ended(&Ok(report), "2026-01-01T00:00:00Z".into());
        run_all(&hooks);
        let text = std::fs::read_to_string(&out).unwrap();
        let (json, rest) = text.rsplit_once("}").unwrap();
        let json: serde_json::Value = serde_json::from_str(&format!("{json}}}")).unwrap();
        assert_eq!(json["event"], "failure");
        assert_eq!(json["mountpoint"], "/home/me/lab");
        assert_eq!(json["flush"]["left_behind"][0]["reason"], "why");
        assert_eq!(json["error"], "1 file was left behind");
        assert_eq!(rest, "failure lab\n");
        assert!(hooks.problems().is_empty());
    }

    #[test]
    fn a_command_that_hangs_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("pid");
        let command = format!("sleep 600 & echo $! > {}; wait", quoted(&out));
        let hooks = hooks(&command, Duration::from_secs(3));
        hooks.nothing_to_flush(String::new());
        run_all(&hooks);
        let problem = hooks.problems().join(" ");
        assert!(
            problem.contains("was killed: it had not ended after 3 s"),
            "{problem}"
        );
        let pid = std::fs::read_to_string(&out).unwrap();
        let is_alive = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
            // Until init has waited for it, it is there as a zombie.
            stat.is_ok_and(|stat| !stat.contains(") Z "))
        };
        let end = Instant::now() + Duration::from_secs(10);
        while is_alive() && Instant::now() < end {
            thread::sleep(Duration::from_millis(20));
        }
        assert!(!is_alive());
    }

    #[test]
    fn a_command_that_fails_says_why_until_it_succeeds() {
        let hooks = hooks(
            "echo noise >&2; echo no network >&2; exit 7",
            Duration::from_secs(20),
        );
        hooks.nothing_to_flush(String::new());
        run_all(&hooks);
        assert_eq!(
            hooks.problems(),
            ["the command of on_success failed with exit code 7: no network"]
        );
        let fixed = HookCommands {
            on_success: Some("true".into()),
            timeout: Duration::from_secs(20),
            ..HookCommands::default()
        };
        hooks.set(fixed);
        hooks.nothing_to_flush(String::new());
        run_all(&hooks);
        assert!(hooks.problems().is_empty());
    }

    #[test]
    fn a_failure_is_reported_once_and_again_after_a_success() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let command = format!("echo \"$FERRYFS_EVENT\" >> {}", quoted(&out));
        let hooks = hooks(&command, Duration::from_secs(20));
        let fail = || hooks.flush_ended(&Err(FlushError::TooLate), String::new());
        fail();
        fail();
        hooks.flush_ended(&Err(FlushError::Detached), String::new());
        let nothing = Report::default();
        hooks.flush_ended(&Ok(nothing), String::new());
        fail();
        hooks.attention(vec!["a".into()], String::new());
        hooks.attention(vec!["a".into()], String::new());
        hooks.attention(vec!["a".into(), "b".into()], String::new());
        run_all(&hooks);
        let text = std::fs::read_to_string(&out).unwrap();
        assert_eq!(text, "failure\nfailure\nattention\nattention\n");
    }

    #[test]
    fn reports_never_wait_for_a_command() {
        let hooks = Arc::new(hooks("sleep 600", Duration::from_secs(600)));
        let begun = Instant::now();
        for _ in 0..QUEUE * 2 {
            hooks.nothing_to_flush(String::new());
        }
        assert!(begun.elapsed() < Duration::from_secs(5));
        let problem = hooks.problems().join(" ");
        assert!(problem.contains("too many wait"), "{problem}");
    }
}
