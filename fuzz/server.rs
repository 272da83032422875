//! The server of the control socket: a connection that sends the input and closes.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ferryfs::control::protocol::{
    Answer, ControlError, ErrorCode, FlushReport, FlushWish, Reply, Request, SOCKET_NAME, Status,
};
use ferryfs::control::server::{Asker, Handler, ServerHandle, serve_within};
use ferryfs::control::{Limits, protocol};
use tempfile::TempDir;

/// Longest answer that a request may get here.
const LONGEST: usize = 1 << 20;

/// Answers everything at once.
struct Instant;

impl Handler for Instant {
    fn status(&self) -> Status {
        let text = include_str!("seeds/control/reply-status");
        match protocol::decode::<Reply>(text.as_bytes()) {
            Ok(Reply::Done {
                answer: Answer::Status(status),
            }) => status,
            other => panic!("the seed is no status: {other:?}"),
        }
    }

    fn flush(&self, _: &FlushWish, asker: &Asker<'_>) -> Result<FlushReport, ControlError> {
        match asker.has_cancelled() {
            true => Err(ControlError::new(ErrorCode::Cancelled, "cancelled")),
            false => Ok(FlushReport::default()),
        }
    }

    fn eject(&self, _: &Asker<'_>) -> Result<FlushReport, ControlError> {
        Err(ControlError::new(ErrorCode::Failed, "no"))
    }

    fn unmount(&self, _: bool, _: bool, _: &Asker<'_>) -> Result<FlushReport, ControlError> {
        Ok(FlushReport::default())
    }
}

struct Served {
    dir: TempDir,
    _server: ServerHandle,
}

fn served() -> &'static Served {
    static SERVED: OnceLock<Served> = OnceLock::new();
    SERVED.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a directory");
        let limits = Limits {
            read_timeout: Duration::from_secs(20),
            ..Limits::default()
        };
        let server = serve_within(dir.path(), Arc::new(Instant), limits).expect("serve");
        Served {
            dir,
            _server: server,
        }
    })
}

/// Each request gets an answer that a client can read, at most one more than there are lines; and
/// the next client is served.
pub fn server(input: &[u8]) {
    let socket = served().dir.path().join(SOCKET_NAME);
    let replies = exchange(&socket, input);
    let lines = input.iter().filter(|byte| **byte == b'\n').count() + 1;
    let last = |reply: &Reply| !matches!(reply, Reply::Progress(_));
    assert!(replies.iter().filter(|reply| last(reply)).count() <= lines);
    let ping = protocol::encode(&Request::Ping).expect("a request");
    let pong = exchange(&socket, &ping);
    assert!(
        matches!(
            pong[..],
            [Reply::Done {
                answer: Answer::Pong { .. }
            }]
        ),
        "{pong:?}"
    );
}

fn exchange(socket: &Path, input: &[u8]) -> Vec<Reply> {
    let mut stream = UnixStream::connect(socket).expect("connect");
    let patience = Some(Duration::from_secs(30));
    stream.set_read_timeout(patience).expect("set");
    stream.set_write_timeout(patience).expect("set");
    let mut reader = stream.try_clone().expect("dup");
    let input = input.to_vec();
    // The server may stop to read, and to be read from.
    let writer = std::thread::spawn(move || {
        let _ = stream.write_all(&input);
        let _ = stream.shutdown(Shutdown::Write);
    });
    let mut answer = Vec::new();
    let read = (&mut reader).take(LONGEST as u64).read_to_end(&mut answer);
    if let Err(error) = read {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    }
    writer.join().expect("the writer");
    assert!(answer.len() < LONGEST, "an endless answer");
    let lines = answer.split_inclusive(|byte| *byte == b'\n');
    lines
        // The connection may be reset in the middle of one.
        .filter(|line| line.ends_with(b"\n"))
        .map(|line| {
            protocol::decode::<Reply>(&line[..line.len() - 1]).expect("a reply can be read")
        })
        .collect()
}
