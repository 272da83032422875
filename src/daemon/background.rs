//! Going to the background.
//!
//! The program starts itself anew rather than forking: a fork of a program with threads may do next to nothing. The
//! first process waits until the second says `ready` on a pipe that is its stdout, or ends; meanwhile it passes on
//! what the second says on stderr. So whoever ran `ferryfs mount` has a working mount when it returns 0, and the
//! reason when it does not.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::base::{EscapingWriter, ForeignText, printable_bytes};
use crate::cli::exit::Exit;
use crate::daemon::DaemonError;

/// The option that tells the program that it is the second process. Not for people.
pub const CHILD_FLAG: &str = "--background-child";

/// What the second process says when the mount works.
const READY: &str = "ready";

/// What it says, with its exit code, when there will be none. Its end itself may be long in coming: a thread of it may sit in a
/// call to a backend that does not answer, and the kernel tells nobody of the end before that has returned.
const ENDED: &str = "ended ";

/// What goes before a line that it has for the person who mounts.
const SAY: &str = "say ";

/// How long the last words of the second process are waited for. A helper that it left running may hold the pipe for
/// ever, so its end cannot be waited for.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How the daemon tells whoever waits that the mount works. Consumed by telling it: it is told once.
#[derive(Debug)]
#[must_use = "whoever started the daemon waits for the signal"]
pub struct Ready(Audience);

#[derive(Debug)]
enum Audience {
    Terminal { message: String },
    Parent,
    Nobody,
}

impl Ready {
    /// For the foreground: says on stderr what is mounted where.
    pub fn foreground(backend: &Path, mountpoint: &Path) -> Ready {
        Ready(Audience::Terminal {
            message: mounted(backend, mountpoint),
        })
    }

    /// For the second process: tells the first one, which [`launch`]ed it.
    pub fn background() -> Ready {
        Ready(Audience::Parent)
    }

    /// For tests: tells nobody.
    pub fn nobody() -> Ready {
        Ready(Audience::Nobody)
    }

    /// Says something on stdout, before the mount works: in the background by the first process.
    pub fn say(&self, line: &str) {
        let line = crate::base::printable(line);
        let _ = match self.0 {
            Audience::Nobody => Ok(()),
            Audience::Terminal { .. } => writeln!(io::stdout(), "ferryfs: {line}"),
            Audience::Parent => writeln!(io::stdout(), "{SAY}{line}"),
        };
        let _ = io::stdout().flush();
    }

    /// Says that the mount works. In the background stdout and stderr go to `log_path` from here on (appended, 0600),
    /// and the working directory becomes `/`, so that the daemon holds nobody else's file system.
    ///
    /// # Errors
    /// If the log cannot be opened, or nobody waits any more: whoever started the mount broke it off, and the daemon
    /// should end.
    pub fn signal(self, log_path: &Path) -> io::Result<()> {
        match self.0 {
            Audience::Nobody => Ok(()),
            Audience::Terminal { message } => {
                crate::cli::complain(&message);
                Ok(())
            }
            Audience::Parent => tell_parent(log_path),
        }
    }
}

/// The line that says that a mount works.
pub fn mounted(backend: &Path, mountpoint: &Path) -> String {
    format!("mounted {} at {}", backend.escaped(), mountpoint.escaped())
}

fn tell_parent(log_path: &Path) -> io::Result<()> {
    let log = crate::cache::private::own()
        .append(true)
        .create(true)
        .open(log_path)?;
    std::env::set_current_dir("/")?;
    // stderr first: once the parent has read the word, all that was meant for it is in the pipe already.
    nix::unistd::dup2_stderr(&log)?;
    let mut stdout = io::stdout().lock();
    stdout.write_all(format!("{READY}\n").as_bytes())?;
    stdout.flush()?;
    nix::unistd::dup2_stdout(&log)?;
    Ok(())
}

/// Tells whoever waits for the mount that there will be none. What is the matter has been said on stderr before.
pub fn give_up(code: Exit) {
    use std::os::unix::fs::FileTypeExt;
    // Once the mount worked, stdout is the log, and nobody waits.
    let waited_for =
        std::fs::metadata("/proc/self/fd/1").is_ok_and(|out| out.file_type().is_fifo());
    if waited_for {
        let mut stdout = io::stdout().lock();
        // If nobody reads it any more, nobody need be told.
        let _ = writeln!(stdout, "{ENDED}{}", code as i32);
        let _ = stdout.flush();
    }
}

/// What the second process does first of all: a session of its own, so that closing the terminal does not end it, and
/// no descriptors of whoever started it.
///
/// # Errors
/// If there can be no session of its own.
pub fn begin_child() -> io::Result<()> {
    nix::unistd::setsid()?;
    // The kernel has named it by the link that it was started through.
    nix::sys::prctl::set_name(c"ferryfs")?;
    if let Err(error) = crate::sys::fds::close_inherited() {
        // Before Linux 5.9; a held descriptor is a nuisance, not a danger.
        tracing::debug!(%error, "inherited descriptors stay open");
    }
    Ok(())
}

/// Starts `command`, which is this program with [`CHILD_FLAG`], and waits until it is ready or has ended.
///
/// # Errors
/// A [`DaemonError`] if it could not be started or died without a word.
///
/// Returns [`Exit::Done`] once it is ready; else what it ended with, having said why on our stderr.
pub fn launch(mut command: Command) -> Result<Exit, DaemonError> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("cannot start the daemon: {error}")))?;
    match wait_for(child) {
        Event::Ready => Ok(Exit::Done),
        Event::GivenUp(Exit::Done) => Err(never_ready()),
        Event::GivenUp(code) => Ok(code),
        Event::Ended(Ok(status)) => verdict(status),
        Event::Ended(Err(error)) => Err(failed(format!("cannot wait for the daemon: {error}"))),
    }
}

enum Event {
    Ready,
    GivenUp(Exit),
    Ended(io::Result<ExitStatus>),
}

/// Three threads, as each pipe and the end of the process must be waited for at once. None is joined: they end with
/// this process, and each only ever sends into a channel with room for it.
fn wait_for(mut child: Child) -> Event {
    let (events, happened) = bounded(3);
    let (silent, silence) = bounded(1);
    if let Some(stderr) = child.stderr.take() {
        thread::spawn(move || forward(stderr, &silent));
    }
    if let Some(stdout) = child.stdout.take() {
        let events = events.clone();
        thread::spawn(move || listen(stdout, &events));
    }
    thread::spawn(move || {
        let _ = events.send(Event::Ended(child.wait()));
    });
    let event = first(&happened);
    let _ = silence.recv_timeout(LAST_WORDS);
    event
}

fn first(happened: &Receiver<Event>) -> Event {
    happened
        .recv()
        .unwrap_or_else(|gone| Event::Ended(Err(io::Error::other(gone))))
}

fn forward(mut from: impl Read, silent: &Sender<()>) {
    // Not by lines, so that a question or a half line shows at once. Besides the daemon, fusermount3 and
    // the loader write here, as they like.
    let mut to = EscapingWriter::new(io::stderr());
    let _ = io::copy(&mut from, &mut to);
    let _ = to.finish();
    let _ = silent.send(());
}

fn listen(stdout: impl Read, events: &Sender<Event>) {
    // Something may print before the daemon proper begins; only the word counts.
    for line in BufReader::new(stdout).split(b'\n') {
        match line {
            Ok(line) if line == READY.as_bytes() => {
                let _ = events.send(Event::Ready);
                return;
            }
            Ok(line) if line.starts_with(SAY.as_bytes()) => {
                let said = printable_bytes(&line[SAY.len()..]);
                let _ = writeln!(io::stdout(), "ferryfs: {said}");
            }
            Ok(line) => {
                let code = line
                    .strip_prefix(ENDED.as_bytes())
                    .and_then(|code| std::str::from_utf8(code).ok()?.parse().ok())
                    .and_then(Exit::from_code);
                if let Some(code) = code {
                    let _ = events.send(Event::GivenUp(code));
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

/// What it means that the second process ended without ever having been ready.
fn verdict(status: ExitStatus) -> Result<Exit, DaemonError> {
    match (status.code(), status.signal()) {
        // Zero would claim a mount that is not there.
        (Some(0), _) => Err(never_ready()),
        (Some(code), _) => Ok(Exit::from_code(code).unwrap_or(Exit::Failed)),
        (None, Some(signal)) => Err(failed(format!(
            "the daemon was killed by signal {signal} before the mount was ready"
        ))),
        (None, None) => Err(failed("the daemon ended in an unknown way".into())),
    }
}

fn never_ready() -> DaemonError {
    failed("the daemon ended before the mount was ready".into())
}

fn failed(message: String) -> DaemonError {
    DaemonError {
        code: Exit::Failed,
        message,
        hint: Some("run the same command with --foreground to see more".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn shell(script: &str) -> Result<Exit, DaemonError> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        launch(command)
    }

    #[test]
    fn the_parent_returns_when_the_child_is_ready_not_when_it_ends() {
        let begun = Instant::now();
        assert_eq!(
            shell("echo noise; echo ready; exec sleep 5"),
            Ok(Exit::Done)
        );
        assert!(begun.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn the_childs_exit_code_is_the_parents_if_it_was_never_ready() {
        assert_eq!(shell("exit 4"), Ok(Exit::BackendAbsent));
        assert_eq!(shell("exit 1"), Ok(Exit::Failed));
        // A panic ends with 101, which is no code of the contract.
        assert_eq!(shell("exit 101"), Ok(Exit::Failed));
    }

    #[test]
    fn a_child_that_cannot_end_has_said_that_there_will_be_no_mount() {
        let begun = Instant::now();
        assert_eq!(
            shell("echo ended 4; exec sleep 20"),
            Ok(Exit::BackendAbsent)
        );
        assert!(begun.elapsed() < Duration::from_secs(15));
        assert!(shell("echo ended 0; exec sleep 1").is_err());
    }

    #[test]
    fn a_child_that_ends_well_without_a_mount_is_no_success() {
        assert_eq!(shell("exit 0").unwrap_err().code, Exit::Failed);
        let error = shell("kill -9 $$").unwrap_err();
        assert!(error.message.contains("signal 9"), "{error}");
    }

    #[test]
    fn a_helper_that_holds_the_pipes_does_not_hold_the_parent() {
        let begun = Instant::now();
        assert_eq!(shell("sleep 5 & exit 4"), Ok(Exit::BackendAbsent));
        assert!(begun.elapsed() < Duration::from_secs(4));
    }
}
