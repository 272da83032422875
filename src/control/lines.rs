//! Lines from a socket, with a limit on their length and a deadline.
//!
//! The deadline counts for the whole line, not for each read: a peer that sends a byte now and then
//! does not extend it.

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, recv};

/// The reason why there is no line.
#[derive(Debug)]
pub(super) enum LineError {
    /// It is longer than the limit. The stream is no longer usable.
    TooLong,
    /// The deadline has passed; `partial` if a part of the line had arrived.
    TimedOut { partial: bool },
    /// The peer closed the connection in the middle of a line.
    Truncated,
    /// What the system said.
    Io(io::Error),
}

/// Received bytes that no call has returned yet.
///
/// Invariant: the first `scanned` bytes of `buffer` hold no newline.
#[derive(Default)]
pub(super) struct LineReader {
    buffer: Vec<u8>,
    scanned: usize,
}

impl LineReader {
    /// Returns the next line without its newline; `None` if the peer closed between two lines.
    ///
    /// It buffers at most `limit` bytes and a chunk. A `deadline` of `None` waits for ever.
    pub(super) fn next_line(
        &mut self,
        mut stream: &UnixStream,
        limit: usize,
        deadline: Option<Instant>,
    ) -> Result<Option<Vec<u8>>, LineError> {
        let mut chunk = [0; 8192];
        loop {
            if let Some(line) = self.take_line(limit)? {
                return Ok(Some(line));
            }
            self.arm(stream, deadline)?;
            match stream.read(&mut chunk) {
                Ok(0) if self.buffer.is_empty() => return Ok(None),
                Ok(0) => return Err(LineError::Truncated),
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
                Err(error) => match error.kind() {
                    // The deadline is checked before the next read.
                    io::ErrorKind::Interrupted
                    | io::ErrorKind::WouldBlock
                    | io::ErrorKind::TimedOut => {}
                    _ => return Err(LineError::Io(error)),
                },
            }
        }
    }

    /// Removes and accepts the next line if it is `wanted`; any other line stays for
    /// [`LineReader::next_line`]. Never waits.
    ///
    /// It buffers at most `limit` bytes and a chunk.
    pub(super) fn take_if(
        &mut self,
        stream: &UnixStream,
        limit: usize,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> bool {
        let mut chunk = [0; 8192];
        while self.buffer.len() <= limit {
            match recv(stream.as_raw_fd(), &mut chunk, MsgFlags::MSG_DONTWAIT) {
                // The next ordinary read meets the end of the stream or the error again.
                Ok(0) | Err(_) => break,
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
            }
        }
        let Some(end) = self.buffer.iter().position(|&b| b == b'\n') else {
            return false;
        };
        let taken = wanted(&self.buffer[..end]);
        if taken {
            self.buffer.drain(..=end);
            self.scanned = 0;
        }
        taken
    }

    fn take_line(&mut self, limit: usize) -> Result<Option<Vec<u8>>, LineError> {
        let found = self.buffer[self.scanned..].iter().position(|&b| b == b'\n');
        let Some(end) = found.map(|at| at + self.scanned) else {
            self.scanned = self.buffer.len();
            return if self.buffer.len() > limit {
                Err(LineError::TooLong)
            } else {
                Ok(None)
            };
        };
        if end > limit {
            return Err(LineError::TooLong);
        }
        let rest = self.buffer.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.buffer, rest);
        line.truncate(end);
        self.scanned = 0;
        Ok(Some(line))
    }

    fn arm(&self, stream: &UnixStream, deadline: Option<Instant>) -> Result<(), LineError> {
        let left = match deadline {
            None => None,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    let partial = !self.buffer.is_empty();
                    return Err(LineError::TimedOut { partial });
                }
                // The system counts in microseconds and takes zero for "never".
                Some(left.max(Duration::from_millis(1)))
            }
        };
        stream.set_read_timeout(left).map_err(LineError::Io)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn lines_come_one_by_one_however_they_were_sent() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"one\ntw").unwrap();
        let mut reader = LineReader::default();
        assert_eq!(
            reader.next_line(&theirs, 10, None).unwrap().unwrap(),
            b"one"
        );
        ours.write_all(b"o\n\nend").unwrap();
        drop(ours);
        assert_eq!(
            reader.next_line(&theirs, 10, None).unwrap().unwrap(),
            b"two"
        );
        assert_eq!(reader.next_line(&theirs, 10, None).unwrap().unwrap(), b"");
        let end = reader.next_line(&theirs, 10, None);
        assert!(matches!(end, Err(LineError::Truncated)), "{end:?}");
    }

    #[test]
    fn a_line_of_the_limit_passes_and_one_byte_more_does_not() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"1234\n12345\n").unwrap();
        let mut reader = LineReader::default();
        assert_eq!(
            reader.next_line(&theirs, 4, None).unwrap().unwrap(),
            b"1234"
        );
        let end = reader.next_line(&theirs, 4, None);
        assert!(matches!(end, Err(LineError::TooLong)), "{end:?}");
    }

    #[test]
    fn only_the_wanted_line_is_taken_out_of_turn() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut reader = LineReader::default();
        let take = |reader: &mut LineReader| reader.take_if(&theirs, 100, |line| line == b"stop");
        assert!(!take(&mut reader), "nothing has come");
        ours.write_all(b"st").unwrap();
        assert!(!take(&mut reader));
        ours.write_all(b"op\nnext\nstop\n").unwrap();
        assert!(take(&mut reader));
        assert!(!take(&mut reader), "another request precedes it");
        assert_eq!(
            reader.next_line(&theirs, 100, None).unwrap().unwrap(),
            b"next"
        );
        assert!(take(&mut reader));
        drop(ours);
        assert!(!take(&mut reader), "an end is no request");
        assert!(reader.next_line(&theirs, 100, None).unwrap().is_none());
    }

    #[test]
    fn a_byte_now_and_then_does_not_push_the_deadline_back() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let dripper = std::thread::spawn(move || {
            for _ in 0..40 {
                std::thread::sleep(Duration::from_millis(25));
                if ours.write_all(b"x").is_err() {
                    break;
                }
            }
        });
        let begun = Instant::now();
        let deadline = begun + Duration::from_millis(150);
        let end = LineReader::default().next_line(&theirs, 1000, Some(deadline));
        assert!(
            matches!(end, Err(LineError::TimedOut { partial: true })),
            "{end:?}"
        );
        assert!(begun.elapsed() < Duration::from_millis(900));
        drop(theirs);
        dripper.join().unwrap();
    }
}
