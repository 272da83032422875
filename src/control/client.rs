//! The command's end of the control socket.
//!
//! A command does not trust every listener. The socket must be a socket and not a link to one, and
//! the kernel must confirm the user of the listening process before anything is sent. A daemon's
//! answer decides exit codes, so no other process may answer in its place.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::Uid;

use super::address::at_socket;
use super::lines::{LineError, LineReader};
use super::protocol;
use super::protocol::{Answer, ControlError, ProtocolError, Reply, Request, SOCKET_NAME};
use crate::core::{ForeignText, Progress};

/// The longest line accepted from the daemon, in bytes: enough for the names of some hundred
/// thousand files left behind.
const REPLY_LIMIT: usize = 64 << 20;

/// How often the client checks whether the request was cancelled.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The reason why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No process listens there.
    #[error("cannot reach the daemon at {}: {source}", path.escaped())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another user's process listens there, or the path is a link. Nothing was sent.
    #[error("{} is not trusted: {problem}", path.escaped())]
    Stranger {
        /// The socket.
        path: PathBuf,
        /// The problem with it.
        problem: String,
    },
    /// The connection failed.
    #[error("cannot {operation} the daemon at {}: {source}", path.escaped())]
    Io {
        /// The failed operation ("write to", "read from").
        operation: &'static str,
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The daemon closed the connection before it answered: it ended, or crashed.
    #[error("the daemon at {} ended before it answered", path.escaped())]
    Closed {
        /// The socket.
        path: PathBuf,
    },
    /// No answer in time. The daemon may still work on the request.
    #[error("no answer within {} s", after.as_secs_f32())]
    TimedOut {
        /// How long the client waited.
        after: Duration,
    },
    /// The answer does not follow this protocol.
    #[error("the answer of the daemon at {} cannot be decoded: {source}", path.escaped())]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// The problem with it.
        source: ProtocolError,
    },
    /// The daemon reported a failure.
    #[error(transparent)]
    Refused(#[from] ControlError),
}

/// A connection to the daemon.
pub struct Client {
    stream: UnixStream,
    reader: LineReader,
    path: PathBuf,
    server: Uid,
}

impl Client {
    /// Connects to the daemon whose cache is `cache`.
    ///
    /// # Errors
    /// [`ClientError::Connect`] if no process listens there, or it may not be reached;
    /// [`ClientError::Stranger`] if the listening process belongs neither to this user, nor to
    /// root, nor, if root asks, to the owner of the cache.
    pub fn connect(cache: &Path) -> Result<Client, ClientError> {
        let path = cache.join(SOCKET_NAME);
        let stranger = |problem: String| ClientError::Stranger {
            path: path.clone(),
            problem,
        };
        // connect(2) follows a link. A user who replaces the socket by a link after this check
        // still has to pass the next one.
        if fs::symlink_metadata(&path).is_ok_and(|found| !found.file_type().is_socket()) {
            return Err(stranger("it is not a socket".into()));
        }
        let connected = at_socket(cache, |short| {
            let stream = UnixStream::connect(short)?;
            let server = Uid::from_raw(getsockopt(&stream, PeerCredentials)?.uid());
            let owner = Uid::from_raw(fs::metadata(cache)?.uid());
            Ok((stream, server, owner))
        });
        let (stream, server, owner) = connected.map_err(|source| ClientError::Connect {
            path: path.clone(),
            source,
        })?;
        if !may_answer(server, Uid::effective(), owner) {
            return Err(stranger(format!("user {server} listens there")));
        }
        Ok(Client {
            stream,
            reader: LineReader::default(),
            path,
            server,
        })
    }

    /// Returns the user of the listening process, as the kernel reports it.
    pub fn server(&self) -> u32 {
        self.server.as_raw()
    }

    /// Returns the client if the listening process belongs to user `uid`.
    ///
    /// # Errors
    /// [`ClientError::Stranger`] if it does not.
    pub fn of_user(self, uid: u32) -> Result<Client, ClientError> {
        if self.server.as_raw() == uid {
            return Ok(self);
        }
        Err(ClientError::Stranger {
            problem: format!("user {} listens there, not user {uid}", self.server),
            path: self.path,
        })
    }

    /// Sends `request` and waits for its result, for at most `timeout` in all. Passes each progress
    /// message to `progress`.
    ///
    /// After an error the connection is no longer usable.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's own words if it failed there; the others if no
    /// answer came.
    pub fn call(
        &mut self,
        request: &Request,
        timeout: Option<Duration>,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Answer, ClientError> {
        self.call_until(request, timeout, progress, &|| false)
    }

    /// As [`Client::call`], and asks the daemon to cancel the request once `cancelled` returns
    /// `true`. The answer says what has become of the request.
    ///
    /// # Errors
    /// As for [`Client::call`].
    pub fn call_until(
        &mut self,
        request: &Request,
        timeout: Option<Duration>,
        progress: &mut dyn FnMut(&Progress),
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Answer, ClientError> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let line = protocol::encode(request).map_err(|source| self.not_understood(source))?;
        let _ = self
            .stream
            .set_write_timeout(timeout.filter(|t| !t.is_zero()));
        // A daemon that refuses the connection may have sent the reason and closed it before this
        // write. So a failed write is reported only if there is no reason to read.
        let written = (&self.stream).write_all(&line);
        let mut asked_to_cancel = false;
        loop {
            if !asked_to_cancel && cancelled() {
                asked_to_cancel = true;
                let cancel = protocol::encode(&Request::Cancel);
                let cancel = cancel.map_err(|source| self.not_understood(source))?;
                // If the write fails, the next read returns the reason.
                let _ = (&self.stream).write_all(&cancel);
            }
            let soon = Instant::now() + LOOK_EVERY;
            let until = Some(deadline.map_or(soon, |deadline| deadline.min(soon)));
            let reply = match self.reader.next_line(&self.stream, REPLY_LIMIT, until) {
                Ok(Some(line)) => protocol::decode::<Reply>(&line),
                Err(LineError::TimedOut { .. })
                    if deadline.is_none_or(|at| Instant::now() < at) =>
                {
                    continue;
                }
                Ok(None) | Err(LineError::Truncated) => return Err(self.closed(written)),
                Err(error) => return Err(self.line_error(error, timeout)),
            };
            match reply.map_err(|source| self.not_understood(source))? {
                Reply::Progress(step) => progress(&step),
                Reply::Done { answer } => return Ok(answer),
                Reply::Error(error) => return Err(error.into()),
            }
        }
    }

    /// Waits, for at most `patience`, until the daemon has closed the connection. After an unmount
    /// the daemon does so when it has released everything.
    pub fn wait_until_closed(mut self, patience: Duration) {
        let deadline = Instant::now().checked_add(patience);
        // Any result ends the wait.
        let _ = self.reader.next_line(&self.stream, REPLY_LIMIT, deadline);
    }

    fn closed(&self, written: io::Result<()>) -> ClientError {
        let path = self.path.clone();
        match written {
            Ok(()) => ClientError::Closed { path },
            Err(source) => ClientError::Io {
                operation: "write to",
                path,
                source,
            },
        }
    }

    fn line_error(&self, error: LineError, timeout: Option<Duration>) -> ClientError {
        let path = self.path.clone();
        match error {
            LineError::TimedOut { .. } => ClientError::TimedOut {
                after: timeout.unwrap_or_default(),
            },
            LineError::Io(source) if source.kind() == io::ErrorKind::ConnectionReset => {
                ClientError::Closed { path }
            }
            LineError::Io(source) => ClientError::Io {
                operation: "read from",
                path,
                source,
            },
            LineError::TooLong | LineError::Truncated => ClientError::Io {
                operation: "read from",
                path,
                source: io::Error::new(io::ErrorKind::InvalidData, "the answer is too long"),
            },
        }
    }

    fn not_understood(&self, source: ProtocolError) -> ClientError {
        ClientError::Protocol {
            path: self.path.clone(),
            source,
        }
    }
}

/// Returns whether a daemon of user `server` may answer a command of user `own` about the cache of
/// user `owner`. Root may ask about other users' mounts, and must not accept the answer of a third
/// user for theirs.
fn may_answer(server: Uid, own: Uid, owner: Uid) -> bool {
    server == own || server.is_root() || (own.is_root() && server == owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_users_own_daemon_and_roots_are_believed() {
        let [root, me, other, third] = [0, 1000, 1001, 1002].map(Uid::from_raw);
        assert!(may_answer(me, me, me));
        assert!(may_answer(root, me, me));
        assert!(!may_answer(other, me, me));
        assert!(!may_answer(other, me, other));
        assert!(may_answer(other, root, other));
        assert!(!may_answer(third, root, other));
    }
}
