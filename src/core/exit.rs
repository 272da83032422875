//! Exit codes of the commands. Scripts rely on them: their meaning never changes.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done; after `flush` and `eject`: everything is on the backend, synced |
//! | 1 | failed |
//! | 2 | wrong usage |
//! | 3 | done, but something was left behind and named |
//! | 4 | the backend is absent |
//! | 130 | cancelled by Ctrl-C; the command has said what was done and what continues |

use std::fmt;
use std::process::ExitCode;

use crate::core::printable;

/// The exit code of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done. After `flush` and `eject`: everything is on the backend, synced.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// Wrong usage.
    Usage = 2,
    /// Done, but something was left behind and named.
    LeftBehind = 3,
    /// The backend is absent.
    BackendAbsent = 4,
    /// Cancelled by Ctrl-C; the code that shells use for it.
    Cancelled = 130,
}

impl Exit {
    /// Returns the meaning of an exit code, if ferryfs uses it.
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

/// The reason why a command failed, for its user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub code: Exit,
    /// The problem: one line, without a full stop.
    pub message: String,
    /// What the user can do.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure without a more specific code.
    pub fn failed(message: impl Into<String>) -> Failure {
        Failure {
            code: Exit::Failed,
            message: message.into(),
            hint: None,
        }
    }

    /// Wrong usage.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure {
            code: Exit::Usage,
            ..Failure::failed(message)
        }
    }

    /// Adds a hint.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Failure {
        Failure {
            hint: Some(hint.into()),
            ..self
        }
    }
}

impl std::error::Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A message may contain a path with any bytes; the message must stay one line.
        write!(f, "ferryfs: {}", printable(&self.message))?;
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {}", printable(hint)),
            None => Ok(()),
        }
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
}
