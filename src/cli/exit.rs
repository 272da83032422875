//! What a command ends with. Scripts rely on these numbers: they never change their meaning.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done; after `flush` and `eject`: everything is on the backend, synced |
//! | 1 | failed |
//! | 2 | the command line makes no sense |
//! | 3 | done, but something was left behind, and it was named |
//! | 4 | the backend is not there |
//! | 130 | cancelled by Ctrl-C; what was done and what goes on is said |

use std::fmt;
use std::process::ExitCode;

use crate::base::printable;
use crate::control::client::ClientError;
use crate::control::protocol::{ControlError, ErrorCode};
use crate::daemon::DaemonError;

/// What a command ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done. After `flush` and `eject`: everything is on the backend, synced.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// Done, but something was left behind, and it was named.
    LeftBehind = 3,
    /// The backend is not there.
    BackendAbsent = 4,
    /// Cancelled by Ctrl-C, with the code that shells have for it.
    Cancelled = 130,
}

impl Exit {
    /// The meaning of a process's exit code, if it is one of ours.
    pub fn from_code(code: i32) -> Option<Exit> {
        [
            Exit::Done,
            Exit::Failed,
            Exit::Usage,
            Exit::LeftBehind,
            Exit::BackendAbsent,
            Exit::Cancelled,
        ]
        .into_iter()
        .find(|&exit| exit as i32 == code)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

impl From<ErrorCode> for Exit {
    fn from(code: ErrorCode) -> Exit {
        match code {
            ErrorCode::BackendAbsent => Exit::BackendAbsent,
            ErrorCode::Cancelled => Exit::Cancelled,
            ErrorCode::Failed | ErrorCode::Busy | ErrorCode::BadRequest => Exit::Failed,
        }
    }
}

/// Why a command failed, in words for whoever typed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What it ends with.
    pub code: Exit,
    /// What is wrong: one line, without a full stop.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Failure {
    /// A plain failure.
    pub fn failed(message: impl Into<String>) -> Failure {
        Failure {
            code: Exit::Failed,
            message: message.into(),
            hint: None,
        }
    }

    /// A command line that makes no sense.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure {
            code: Exit::Usage,
            ..Failure::failed(message)
        }
    }

    /// The same failure with what to do about it.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Failure {
        Failure {
            hint: Some(hint.into()),
            ..self
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Messages hold paths, and paths may hold anything: one line stays one line.
        write!(f, "ferryfs: {}", printable(&self.message))?;
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {}", printable(hint)),
            None => Ok(()),
        }
    }
}

impl From<DaemonError> for Failure {
    fn from(error: DaemonError) -> Failure {
        Failure {
            code: error.code,
            message: error.message,
            hint: error.hint,
        }
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Failure {
        Failure {
            code: error.code.into(),
            message: error.message,
            hint: error.hint,
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        let hint = match error {
            ClientError::Refused(error) => return error.into(),
            ClientError::Connect { .. } | ClientError::Closed { .. } | ClientError::Io { .. } => {
                "see whether the daemon runs (`pgrep -a ferryfs`), and the log in its cache directory"
            }
            ClientError::Stranger { .. } => {
                "nothing was sent to it: look who has put it there (`ls -la` in that directory)"
            }
            ClientError::TimedOut { .. } => {
                "the daemon may still be at it: look with `ferryfs status`"
            }
            ClientError::Protocol { .. } => "unmount, and mount again with this version of ferryfs",
        };
        Failure::failed(error.to_string()).hint(hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_the_contract() {
        let numbers = [0, 1, 2, 3, 4, 130].map(|code| Exit::from_code(code).unwrap());
        let meanings = [
            Exit::Done,
            Exit::Failed,
            Exit::Usage,
            Exit::LeftBehind,
            Exit::BackendAbsent,
            Exit::Cancelled,
        ];
        assert_eq!(numbers, meanings);
        assert_eq!(Exit::from_code(101), None);
    }

    #[test]
    fn a_failure_is_one_line_and_a_hint() {
        let failure = Failure::failed("it broke").hint("mend it");
        assert_eq!(failure.to_string(), "ferryfs: it broke\n  hint: mend it");
        let evil = Failure::failed("no such file a\n\x1b[2J").to_string();
        assert_eq!(evil, "ferryfs: no such file a\\n\\x1b[2J");
    }

    #[test]
    fn an_absent_backend_keeps_its_code_on_the_way_from_the_daemon() {
        let error = ControlError::new(ErrorCode::BackendAbsent, "gone").with_hint("plug it in");
        let failure = Failure::from(ClientError::from(error));
        assert_eq!(failure.code, Exit::BackendAbsent);
        assert_eq!(failure.hint.as_deref(), Some("plug it in"));
    }
}
