//! One connection of the control socket: it reads requests and sends progress and answers.

use std::cell::{Cell, RefCell};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, send};

use super::lines::{LineError, LineReader};
use super::protocol;
use super::protocol::{Answer, ControlError, ErrorCode, FlushReport, Reply, Request};
use super::server::{Asker, Handler};
use crate::core::{Phase, Progress};

/// Limits on the resources that clients may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The longest request line, in bytes.
    pub request_bytes: usize,
    /// How long a request may take to arrive, and how long a connection may be idle.
    pub read_timeout: Duration,
    /// How long the last line of an answer may take to send.
    pub write_timeout: Duration,
    /// The most connections at once.
    pub connections: usize,
    /// How long a stopping server waits for answers in progress.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            request_bytes: 64 << 10,
            read_timeout: Duration::from_secs(5),
            write_timeout: Duration::from_secs(5),
            connections: 32,
            drain: Duration::from_secs(5),
        }
    }
}

/// The shortest time between progress messages of one phase.
const PROGRESS_EVERY: Duration = Duration::from_millis(50);

/// Sends a client the reason why it gets no service. Never waits.
pub(super) fn turn_away(stream: &UnixStream, error: ControlError) {
    if let Ok(line) = protocol::encode(&Reply::Error(error)) {
        let _ = send_now(stream, &line);
    }
}

/// Answers the requests of one connection until it closes, breaks the protocol, or is idle for too
/// long.
pub(super) fn converse(
    stream: &UnixStream,
    handler: &dyn Handler,
    limits: &Limits,
    stopping: &AtomicBool,
) {
    let mut reader = LineReader::default();
    while !stopping.load(Ordering::SeqCst) {
        let deadline = Instant::now() + limits.read_timeout;
        let line = match reader.next_line(stream, limits.request_bytes, Some(deadline)) {
            Ok(Some(line)) => line,
            Ok(None) | Err(LineError::Io(_) | LineError::TimedOut { partial: false }) => return,
            Err(error) => {
                let message = match error {
                    LineError::TooLong => "the request is too long",
                    LineError::TimedOut { .. } => "the request did not arrive in time",
                    _ => "the request is incomplete",
                };
                let error = ControlError::new(ErrorCode::BadRequest, message);
                Outgoing::new(stream, limits).finish(&Reply::Error(error));
                return;
            }
        };
        match protocol::decode::<Request>(&line) {
            // A client that does not read its answer gets no further answer, though its next
            // request may be there already: each would occupy the connection for as long again.
            // Also, the rest of the first answer would precede the next one.
            Ok(request) => {
                if !respond(stream, handler, limits, &request, &mut reader) {
                    return;
                }
            }
            Err(error) => {
                let error = ControlError::new(ErrorCode::BadRequest, error.to_string())
                    .with_hint("use a ferryfs command of the same version as the daemon");
                Outgoing::new(stream, limits).finish(&Reply::Error(error));
                return;
            }
        }
    }
}

/// Runs one request. Returns whether its answer was sent. Lines that the peer sends meanwhile stay
/// in `reader`, except one that cancels this request.
fn respond(
    stream: &UnixStream,
    handler: &dyn Handler,
    limits: &Limits,
    request: &Request,
    reader: &mut LineReader,
) -> bool {
    let outgoing = RefCell::new(Outgoing::new(stream, limits));
    let progress = |step: Progress| outgoing.borrow_mut().progress(step);
    let (reader, has_cancelled) = (RefCell::new(reader), Cell::new(false));
    let cancelled = || {
        if !has_cancelled.get() {
            let mut reader = reader.borrow_mut();
            has_cancelled.set(reader.take_if(stream, limits.request_bytes, is_cancel));
        }
        has_cancelled.get()
    };
    let asker = Asker::new(&progress, &cancelled);
    let outcome = match request {
        Request::Ping => Ok(Answer::Pong {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
        }),
        Request::Status => Ok(Answer::Status(handler.status())),
        Request::Flush(wish) => report(handler.flush(wish, &asker)),
        Request::IncludeInterrupted => handler
            .include_interrupted()
            .map(|files| Answer::Included { files }),
        Request::Eject => report(handler.eject(&asker)),
        Request::Attach {
            path,
            accept_copy,
            fsck,
            take_over,
        } => handler
            .attach(Path::new(path), *accept_copy, *fsck, *take_over)
            .map(Answer::Attached),
        Request::ReEnroll { path, accept_copy } => handler
            .re_enroll(Path::new(path), *accept_copy)
            .map(Answer::Attached),
        Request::Refresh { path } => handler.refresh(path).map(Answer::Refreshed),
        Request::Pause { time_ms } => {
            let time = time_ms.map(Duration::from_millis);
            handler.pause(time).map(Answer::Automatic)
        }
        Request::Resume => handler.resume().map(Answer::Automatic),
        Request::Reload { live, config } => handler.reload(live, config).map(Answer::Automatic),
        Request::Scrub(wish) => handler.scrub(wish, &asker).map(Answer::Scrubbed),
        Request::StopScrub => handler.stop_scrub().map(Answer::Scrubbed),
        Request::LeavePlan => handler.leave_plan().map(Answer::LeavePlan),
        Request::Local { instead } => handler.local(instead.as_deref()).map(Answer::Local),
        Request::Unmount { flush, force } => report(handler.unmount(*flush, *force, &asker)),
        Request::Cancel => Err(ControlError::new(
            ErrorCode::BadRequest,
            "there is no request to cancel",
        )),
    };
    let reply = match outcome {
        Ok(answer) => Reply::Done { answer },
        Err(error) => Reply::Error(error),
    };
    outgoing.into_inner().finish(&reply)
}

fn is_cancel(line: &[u8]) -> bool {
    matches!(protocol::decode::<Request>(line), Ok(Request::Cancel))
}

fn report(outcome: Result<FlushReport, ControlError>) -> Result<Answer, ControlError> {
    outcome.map(Answer::Report)
}

/// The lines that are being sent.
///
/// Invariant: the bytes sent so far, followed by `pending`, are complete lines. So a line that the
/// socket took only in part is completed before another begins. A progress message that finds no
/// space is dropped, since the next one replaces it.
struct Outgoing<'a> {
    stream: &'a UnixStream,
    write_timeout: Duration,
    pending: Vec<u8>,
    last: Option<(Phase, Instant)>,
}

impl<'a> Outgoing<'a> {
    fn new(stream: &'a UnixStream, limits: &Limits) -> Outgoing<'a> {
        Outgoing {
            stream,
            write_timeout: limits.write_timeout,
            pending: Vec::new(),
            last: None,
        }
    }

    /// Sends a progress message if that needs no waiting. A closed connection shows at the end.
    fn progress(&mut self, step: Progress) {
        let now = Instant::now();
        let too_soon = self
            .last
            .is_some_and(|(phase, at)| phase == step.phase && now - at < PROGRESS_EVERY);
        if too_soon {
            return;
        }
        self.last = Some((step.phase, now));
        self.push_pending();
        if !self.pending.is_empty() {
            return;
        }
        if let Ok(line) = protocol::encode(&Reply::Progress(step)) {
            self.pending = line;
            // No byte of this line has been sent, so it can be dropped as a whole.
            if self.push_pending() == 0 {
                self.pending.clear();
            }
        }
    }

    fn push_pending(&mut self) -> usize {
        if self.pending.is_empty() {
            return 0;
        }
        let sent = send_now(self.stream, &self.pending).unwrap_or(0);
        self.pending.drain(..sent);
        sent
    }

    /// Sends the last line of an answer and waits a bounded time for space in the socket. Returns
    /// whether the line was sent.
    fn finish(mut self, reply: &Reply) -> bool {
        match protocol::encode(reply) {
            Ok(line) => self.pending.extend_from_slice(&line),
            Err(error) => {
                tracing::error!(%error, "cannot encode an answer");
                return false;
            }
        }
        if let Err(error) = self.drain(Instant::now() + self.write_timeout) {
            tracing::debug!(%error, "cannot send an answer to a control client");
            return false;
        }
        true
    }

    fn drain(&mut self, deadline: Instant) -> io::Result<()> {
        let mut stream = self.stream;
        while !self.pending.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            stream.set_write_timeout(Some(left.max(Duration::from_millis(1))))?;
            match stream.write(&self.pending) {
                Ok(sent) => drop(self.pending.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn send_now(stream: &UnixStream, bytes: &[u8]) -> nix::Result<usize> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    send(stream.as_raw_fd(), bytes, flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(n: u64) -> Progress {
        Progress {
            phase: if n.is_multiple_of(2) {
                Phase::Stage
            } else {
                Phase::Apply
            },
            files_done: n,
            files_total: n,
            bytes_done: n,
            bytes_total: n,
            silent_seconds: 0,
        }
    }

    #[test]
    fn progress_to_a_client_that_does_not_read_never_waits_and_never_tears_a_line() {
        let (server, client) = UnixStream::pair().unwrap();
        let limits = Limits::default();
        let mut outgoing = Outgoing::new(&server, &limits);
        // Far more than any socket buffer takes; a blocking write would hang here.
        for n in 0..20_000 {
            outgoing.progress(step(n));
        }
        let reader = std::thread::spawn(move || {
            let (mut lines, mut count) = (LineReader::default(), 0);
            while let Ok(Some(line)) = lines.next_line(&client, 1 << 20, None) {
                count += 1;
                if let Reply::Done { .. } = protocol::decode(&line).expect("a whole line") {
                    return count;
                }
            }
            panic!("no last line");
        });
        outgoing.finish(&Reply::Done {
            answer: Answer::Pong {
                version: "0".into(),
                pid: 1,
            },
        });
        let lines = reader.join().unwrap();
        assert!(lines > 1 && lines < 20_000, "{lines} lines");
    }

    #[test]
    fn an_answer_to_a_client_that_never_reads_is_given_up_in_time() {
        let (server, _client) = UnixStream::pair().unwrap();
        let limits = Limits {
            write_timeout: Duration::from_millis(100),
            ..Limits::default()
        };
        let mut outgoing = Outgoing::new(&server, &limits);
        outgoing.pending = vec![b'x'; 4 << 20];
        let begun = Instant::now();
        let error = ControlError::new(ErrorCode::Failed, "x");
        outgoing.finish(&Reply::Error(error));
        assert!(begun.elapsed() < Duration::from_secs(3));
    }
}
