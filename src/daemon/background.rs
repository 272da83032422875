//! Starts the daemon in the background.
//!
//! The program starts itself again instead of forking: after a fork, a process with threads may
//! call almost nothing. The first process waits until the second one writes `ready` to a pipe that
//! is its stdout, or ends; meanwhile it copies the second one's stderr. So `ferryfs mount` returns
//! 0 when the mount works, and prints the reason when it does not.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::core::{EscapingWriter, Exit, Failure, ForeignText, printable_bytes};

/// The option that marks the second process. Not for users.
pub const CHILD_FLAG: &str = "--background-child";

/// What the second process writes when the mount works.
const READY: &str = "ready";

/// What it writes, with its exit code, when there will be no mount. The process may end much later:
/// a thread of it may be in a call to a drive that does not answer, and it is reported as ended
/// only after that call.
const ENDED: &str = "ended ";

/// The beginning of a line for the user.
const SAY: &str = "say ";

/// How long to wait for the last output of the second process. A helper process that still runs may
/// keep the pipe open for ever, so its end cannot be waited for.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Reports to the waiting process that the mount works, once.
#[derive(Debug)]
#[must_use = "the process that started the daemon waits for the signal"]
pub struct Ready(Audience);

#[derive(Debug)]
enum Audience {
    Terminal { message: String },
    Parent,
    Nobody,
}

impl Ready {
    /// For the foreground: prints on stderr what is mounted where.
    pub fn foreground(backend: &Path, mountpoint: &Path) -> Ready {
        Ready(Audience::Terminal {
            message: mounted(backend, mountpoint),
        })
    }

    /// For the second process: reports to the first one, which called [`launch`].
    pub fn background() -> Ready {
        Ready(Audience::Parent)
    }

    /// For tests: reports to no one.
    pub fn nobody() -> Ready {
        Ready(Audience::Nobody)
    }

    /// Prints a line on stdout before the mount works; in the background the first process prints
    /// it.
    pub fn say(&self, line: &str) {
        let line = crate::core::printable(line);
        let _ = match self.0 {
            Audience::Nobody => Ok(()),
            Audience::Terminal { .. } => writeln!(io::stdout(), "ferryfs: {line}"),
            Audience::Parent => writeln!(io::stdout(), "{SAY}{line}"),
        };
        let _ = io::stdout().flush();
    }

    /// Reports that the mount works. In the background stdout and stderr go to `log_path` from here
    /// on (appended, 0600), and the working directory becomes `/`, so that the daemon keeps no
    /// other file system in use.
    ///
    /// # Errors
    /// If the log cannot be opened, or the first process is gone: the user has interrupted it, and
    /// the daemon should end.
    pub fn signal(self, log_path: &Path) -> io::Result<()> {
        match self.0 {
            Audience::Nobody => Ok(()),
            Audience::Terminal { message } => {
                crate::sys::terminal::complain(&message);
                Ok(())
            }
            Audience::Parent => tell_parent(log_path),
        }
    }
}

/// The line that reports that a mount works.
pub fn mounted(backend: &Path, mountpoint: &Path) -> String {
    format!("mounted {} at {}", backend.escaped(), mountpoint.escaped())
}

fn tell_parent(log_path: &Path) -> io::Result<()> {
    let log = crate::cache::private::own()
        .append(true)
        .create(true)
        .open(log_path)?;
    std::env::set_current_dir("/")?;
    // stderr first: when the parent has read the word, all output for it is in the pipe already.
    nix::unistd::dup2_stderr(&log)?;
    let mut stdout = io::stdout().lock();
    stdout.write_all(format!("{READY}\n").as_bytes())?;
    stdout.flush()?;
    nix::unistd::dup2_stdout(&log)?;
    Ok(())
}

/// Reports to the waiting process that there will be no mount. The reason has been printed on
/// stderr before.
pub fn give_up(code: Exit) {
    use std::os::unix::fs::FileTypeExt;
    // Once the mount works, stdout is the log, and no process waits.
    let waited_for =
        std::fs::metadata("/proc/self/fd/1").is_ok_and(|out| out.file_type().is_fifo());
    if waited_for {
        let mut stdout = io::stdout().lock();
        // Fails if the first process is gone.
        let _ = writeln!(stdout, "{ENDED}{}", code as i32);
        let _ = stdout.flush();
    }
}

/// The first action of the second process: it starts a session of its own, so that closing the
/// terminal does not end it, and closes the descriptors that it has inherited.
///
/// # Errors
/// If it cannot start a session.
pub fn begin_child() -> io::Result<()> {
    nix::unistd::setsid()?;
    // The kernel has named the process after the link through which it was started.
    nix::sys::prctl::set_name(c"ferryfs")?;
    if let Err(error) = crate::sys::fds::close_inherited() {
        // Before Linux 5.9. An inherited descriptor does no harm.
        tracing::debug!(%error, "inherited descriptors stay open");
    }
    Ok(())
}

/// Starts `command`, which is this program with [`CHILD_FLAG`], and waits until it is ready or has
/// ended.
///
/// # Errors
/// A [`Failure`] if it cannot be started, or ends without a message.
///
/// Returns [`Exit::Done`] once it is ready; otherwise its exit status, after the reason has been
/// printed on stderr.
pub fn launch(mut command: Command) -> Result<Exit, Failure> {
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

/// Three threads, because both pipes and the end of the process are waited for at the same time.
/// None is joined: they end with this process, and each only sends into a channel that has space
/// for it.
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
    // Not by lines, so that a question or a partial line shows at once. Besides the daemon,
    // fusermount3 and the dynamic loader write here.
    let mut to = EscapingWriter::new(io::stderr());
    let _ = io::copy(&mut from, &mut to);
    let _ = to.finish();
    let _ = silent.send(());
}

fn listen(stdout: impl Read, events: &Sender<Event>) {
    // Other output may come before the daemon starts; only the word counts.
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

/// The meaning of the end of a second process that has never been ready.
fn verdict(status: ExitStatus) -> Result<Exit, Failure> {
    match (status.code(), status.signal()) {
        // Zero would claim a mount that does not exist.
        (Some(0), _) => Err(never_ready()),
        (Some(code), _) => Ok(Exit::from_code(code).unwrap_or(Exit::Failed)),
        (None, Some(signal)) => Err(failed(format!(
            "the daemon was killed by signal {signal} before the mount was ready"
        ))),
        (None, None) => Err(failed("the daemon ended in an unknown way".into())),
    }
}

fn never_ready() -> Failure {
    failed("the daemon ended before the mount was ready".into())
}

fn failed(message: String) -> Failure {
    Failure {
        code: Exit::Failed,
        message,
        hint: Some("run the same command with --foreground to see more".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn shell(script: &str) -> Result<Exit, Failure> {
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
        // A panic ends with 101, which is not an exit status of ours.
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
