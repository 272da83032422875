//! The exit codes and hints for errors of the control socket.

use crate::core::{Exit, Failure};

use super::client::ClientError;
use super::protocol::{ControlError, ErrorCode};

impl From<ErrorCode> for Exit {
    fn from(code: ErrorCode) -> Exit {
        match code {
            ErrorCode::BackendAbsent => Exit::BackendAbsent,
            ErrorCode::Cancelled => Exit::Cancelled,
            ErrorCode::Failed | ErrorCode::Busy | ErrorCode::BadRequest => Exit::Failed,
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
                "check whether the daemon runs (`pgrep -a ferryfs`), and look at the log in its \
                 cache directory"
            }
            ClientError::Stranger { .. } => {
                "nothing was sent to it: find out which user has put it there (`ls -la` in that \
                 directory)"
            }
            ClientError::TimedOut { .. } => "the daemon may still work on it: see `ferryfs status`",
            ClientError::Protocol { .. } => "unmount, and mount again with this version of ferryfs",
        };
        Failure::failed(error.to_string()).hint(hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_backend_keeps_its_code_on_the_way_from_the_daemon() {
        let error = ControlError::new(ErrorCode::BackendAbsent, "gone").with_hint("plug it in");
        let failure = Failure::from(ClientError::from(error));
        assert_eq!(failure.code, Exit::BackendAbsent);
        assert_eq!(failure.hint.as_deref(), Some("plug it in"));
    }
}
