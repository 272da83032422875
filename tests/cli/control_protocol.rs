//! Server and client of the control socket against each other, and the server against clients that
//! misbehave.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ferryfs::control::Limits;
use ferryfs::control::client::{Client, ClientError};
use ferryfs::control::protocol::{
    Answer, AttachReport, BackendState, ControlError, ErrorCode, FlushReport, FlushWish, IoPath,
    LeftBehind, LocalCounts, Reply, Request, ScrubStatus, Status, decode,
};
use ferryfs::control::server::{Asker, Handler, serve, serve_within};
use ferryfs::core::{Phase, Progress};

/// A daemon that does nothing, but says that it did.
#[derive(Default)]
struct Fake {
    /// How often a flush tells of its progress, with a pause of 5 ms each.
    steps: AtomicU64,
    /// Flushes that were begun.
    begun: AtomicU64,
    /// Flushes that came to their end.
    flushed: AtomicU64,
    /// The timeout that came with the last flush, in milliseconds.
    timeout: AtomicU64,
    unmounted_with_flush: AtomicBool,
}

fn report(files: u64) -> FlushReport {
    FlushReport {
        batch: Some(7),
        files,
        bytes: 1 << 40,
        seconds: 1.5,
        left_behind: vec![LeftBehind {
            path: "Äpfel\n\u{1f34e}".into(),
            reason: "open".into(),
        }],
        kept_local: 0,
        local: LocalCounts::default(),
        ..FlushReport::default()
    }
}

impl Handler for Fake {
    fn status(&self) -> Status {
        Status {
            mountpoint: "/m".into(),
            backend: "/b".into(),
            volume_id: "v".into(),
            backend_state: BackendState::Detached,
            stalled_since: None,
            dirty_files: 1,
            dirty_bytes: 2,
            needed_bytes: 4096,
            open_for_write: 3,
            cached_bytes: 4,
            last_batch: None,
            last_refresh: None,
            conflicts: 0,
            safe_to_unplug: false,
            batch_in_progress: true,
            kept_local: 5,
            local: LocalCounts::default(),
            warnings: vec!["w".into()],
            last_error: Some("e".into()),
            attention: vec!["a".into()],
            import: Default::default(),
            io: IoPath::Passthrough,
            version: "0".into(),
            pid: 6,
            cache: "/c".into(),
            mounted: true,
            users: Default::default(),
            ejected: None,
            last_flush: None,
            ssd: None,
            cache_limit_bytes: 7,
            drive: None,
            running: None,
            oldest_change: None,
            read_only: false,
            config: None,
            automatic: Default::default(),
            versions: false,
            scrub: ScrubStatus::default(),
            kept_clean: None,
        }
    }

    fn flush(&self, wish: &FlushWish, asker: &Asker<'_>) -> Result<FlushReport, ControlError> {
        let millis = wish.timeout_ms.unwrap_or(0);
        self.timeout.store(millis, Ordering::SeqCst);
        self.begun.fetch_add(1, Ordering::SeqCst);
        let steps = self.steps.load(Ordering::SeqCst);
        for step in 0..steps {
            asker.tell(Progress {
                phase: if step % 2 == 0 {
                    Phase::Stage
                } else {
                    Phase::Apply
                },
                files_done: step,
                files_total: steps,
                bytes_done: step,
                bytes_total: steps,
                silent_seconds: 0,
            });
            thread::sleep(Duration::from_millis(5));
        }
        self.flushed.fetch_add(1, Ordering::SeqCst);
        Ok(report(steps))
    }

    fn eject(&self, _: &Asker<'_>) -> Result<FlushReport, ControlError> {
        Err(ControlError::new(ErrorCode::BackendAbsent, "no drive").with_hint("plug it in"))
    }

    fn attach(
        &self,
        path: &std::path::Path,
        accept_copy: bool,
        fsck: bool,
        _take_over: bool,
    ) -> Result<AttachReport, ControlError> {
        Ok(AttachReport {
            backend: path.display().to_string(),
            already: accept_copy,
            checked: fsck,
            warnings: Vec::new(),
        })
    }

    fn unmount(&self, flush: bool, _: bool, _: &Asker<'_>) -> Result<FlushReport, ControlError> {
        self.unmounted_with_flush.store(flush, Ordering::SeqCst);
        Ok(report(0))
    }
}

fn tight() -> Limits {
    Limits {
        read_timeout: Duration::from_millis(200),
        ..Limits::default()
    }
}

fn ask(dir: &Path, request: &Request) -> Result<Answer, ClientError> {
    Client::connect(dir)?.call(request, Some(Duration::from_secs(10)), &mut |_| {})
}

fn raw(dir: &Path) -> UnixStream {
    let stream = UnixStream::connect(dir.join("control.sock")).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream
}

/// What the server answers `bytes`, and that it then closes.
fn refusal(dir: &Path, bytes: &[u8]) -> ControlError {
    let mut stream = raw(dir);
    stream.write_all(bytes).unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line).unwrap();
    line.pop();
    match decode::<Reply>(&line).unwrap() {
        Reply::Error(error) => {
            let after = reader.read_until(b'\n', &mut Vec::new());
            assert!(matches!(after, Ok(0) | Err(_)), "closed after it");
            error
        }
        other => panic!("{other:?}"),
    }
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "waited in vain: {what}"
        );
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn every_request_gets_its_answer_on_one_connection() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake::default());
    let _server = serve(dir.path(), fake.clone()).unwrap();
    let mut client = Client::connect(dir.path()).unwrap();
    let mut call = |request: Request| client.call(&request, None, &mut |_| {});
    assert!(matches!(call(Request::Ping).unwrap(), Answer::Pong { .. }));
    assert_eq!(
        call(Request::Status).unwrap(),
        Answer::Status(fake.status())
    );
    let flush = Request::Flush(FlushWish {
        timeout_ms: Some(1234),
        ..FlushWish::default()
    });
    assert_eq!(call(flush).unwrap(), Answer::Report(report(0)));
    assert_eq!(fake.timeout.load(Ordering::SeqCst), 1234);
    let attach = Request::Attach {
        path: "/media/me/HDD".into(),
        accept_copy: false,
        fsck: true,
        take_over: false,
    };
    let attached = AttachReport {
        backend: "/media/me/HDD".into(),
        already: false,
        checked: true,
        warnings: Vec::new(),
    };
    assert_eq!(call(attach).unwrap(), Answer::Attached(attached));
    match call(Request::Eject).unwrap_err() {
        ClientError::Refused(error) => {
            assert_eq!(error.code, ErrorCode::BackendAbsent);
            assert_eq!(error.hint.as_deref(), Some("plug it in"));
        }
        other => panic!("{other}"),
    }
    assert_eq!(
        call(Request::Unmount {
            flush: true,
            force: false
        })
        .unwrap(),
        Answer::Report(report(0))
    );
    assert!(fake.unmounted_with_flush.load(Ordering::SeqCst));
}

#[test]
fn progress_comes_before_the_answer_in_its_order() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake::default());
    fake.steps.store(10, Ordering::SeqCst);
    let _server = serve(dir.path(), fake).unwrap();
    let mut seen = Vec::new();
    let answer = Client::connect(dir.path()).unwrap().call(
        &Request::Flush(FlushWish::default()),
        None,
        &mut |step| seen.push(step.files_done),
    );
    assert_eq!(answer.unwrap(), Answer::Report(report(10)));
    assert_eq!(seen, (0..10).collect::<Vec<_>>());
}

/// A flush that goes on until it is cancelled, for so long at most.
struct Cancellable {
    begun: AtomicU64,
    at_most: Duration,
}

impl Handler for Cancellable {
    fn status(&self) -> Status {
        Fake::default().status()
    }
    fn flush(&self, _: &FlushWish, asker: &Asker<'_>) -> Result<FlushReport, ControlError> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let end = std::time::Instant::now() + self.at_most;
        while std::time::Instant::now() < end {
            if asker.has_cancelled() {
                assert!(asker.has_cancelled(), "it stays so");
                return Err(ControlError::new(ErrorCode::Cancelled, "cancelled"));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(report(1))
    }
    fn eject(&self, _: &Asker<'_>) -> Result<FlushReport, ControlError> {
        Ok(report(2))
    }
    fn unmount(&self, _: bool, _: bool, _: &Asker<'_>) -> Result<FlushReport, ControlError> {
        Ok(report(3))
    }
}

fn cancellable(at_most: Duration) -> Arc<Cancellable> {
    Arc::new(Cancellable {
        begun: AtomicU64::new(0),
        at_most,
    })
}

#[test]
fn a_request_is_cancelled_by_the_connection_that_made_it_and_by_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let handler = cancellable(Duration::from_secs(60));
    let _server = serve(dir.path(), handler.clone()).unwrap();
    let mut client = Client::connect(dir.path()).unwrap();
    let request = Request::Flush(FlushWish::default());
    let stopped = AtomicBool::new(false);
    let outcome = thread::scope(|scope| {
        scope.spawn(|| {
            until("the flush to begin", || {
                handler.begun.load(Ordering::SeqCst) == 1
            });
            let other = ask(dir.path(), &Request::Cancel).unwrap_err();
            assert!(
                other.to_string().contains("no request to cancel"),
                "{other}"
            );
            stopped.store(true, Ordering::SeqCst);
        });
        client.call_until(&request, None, &mut |_| {}, &|| {
            stopped.load(Ordering::SeqCst)
        })
    });
    let Err(ClientError::Refused(error)) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(error.code, ErrorCode::Cancelled);
    assert!(stopped.load(Ordering::SeqCst), "not before it was asked to");
    // The connection goes on.
    let after = client.call(&Request::Eject, None, &mut |_| {}).unwrap();
    assert_eq!(after, Answer::Report(report(2)));
}

#[test]
fn a_connection_that_closes_cancels_nothing_and_a_request_that_waits_its_turn_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let handler = cancellable(Duration::from_millis(300));
    let _server = serve(dir.path(), handler.clone()).unwrap();
    let mut stream = raw(dir.path());
    let flush = b"{\"v\":1,\"request\":\"flush\"}\n{\"v\":1,\"request\":\"eject\"}\n";
    stream.write_all(flush).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    let answers: Vec<&str> = said.lines().collect();
    assert_eq!(answers.len(), 2, "{said}");
    assert!(answers[0].contains("\"files\":1"), "{said}");
    assert!(answers[1].contains("\"files\":2"), "{said}");
}

#[test]
fn the_socket_is_for_its_owner_only_and_goes_with_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    let server = serve(dir.path(), Arc::new(Fake::default())).unwrap();
    let meta = fs::metadata(&socket).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    server.stop();
    assert!(!socket.exists());
    assert!(matches!(
        Client::connect(dir.path()),
        Err(ClientError::Connect { .. })
    ));
}

#[test]
fn a_socket_left_by_a_dead_daemon_is_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    drop(std::os::unix::net::UnixListener::bind(dir.path().join("control.sock")).unwrap());
    assert!(Client::connect(dir.path()).is_err());
    let _server = serve(dir.path(), Arc::new(Fake::default())).unwrap();
    assert!(ask(dir.path(), &Request::Ping).is_ok());
}

#[test]
fn a_path_too_long_for_a_socket_address_works_at_both_ends() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d".repeat(120)).join("e".repeat(120));
    fs::create_dir_all(&deep).unwrap();
    let server = serve(&deep, Arc::new(Fake::default())).unwrap();
    assert!(ask(&deep, &Request::Ping).is_ok());
    server.stop();
    assert!(!deep.join("control.sock").exists());
}

#[test]
fn garbage_gets_an_error_line_and_harms_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let _server = serve_within(dir.path(), Arc::new(Fake::default()), tight()).unwrap();
    let deep = [vec![b'['; 60_000], vec![b'\n']].concat();
    let long_number = [&b"{\"v\":"[..], &[b'9'; 60_000], b"}\n"].concat();
    let deep_value = [
        &b"{\"v\":1,\"request\":\"ping\",\"x\":"[..],
        &[b'['; 60_000],
        b"\n",
    ]
    .concat();
    let cases: [&[u8]; 17] = [
        b"hello\n",
        b"\n",
        b"\xff\xfe\0\n",
        b"{\"v\":1}\n",
        b"{\"v\":2,\"request\":\"ping\"}\n",
        b"{\"v\":1,\"request\":\"flush\",\"timeout_ms\":-1}\n",
        b"{\"v\":1,\"request\":\"flush\",\"timeout_ms\":1e400}\n",
        b"{\"v\":1,\"request\":\"flush\",\"timeout_ms\":18446744073709551616}\n",
        b"{\"v\":4294967297,\"request\":\"ping\"}\n",
        b"{\"v\":1,\"v\":1,\"request\":\"ping\"}\n",
        b"{\"v\":1,\"request\":\"ping\",\"x\":\"\xff\"}\n",
        b"{\"v\":1,\"request\":\"unmount\"}\n",
        b"{\"v\":1,\"request\":[\"ping\"]}\n",
        b"null\n",
        &long_number,
        &deep_value,
        &deep,
    ];
    for bytes in cases {
        assert_eq!(refusal(dir.path(), bytes).code, ErrorCode::BadRequest);
    }
    assert!(ask(dir.path(), &Request::Ping).is_ok());
}

#[test]
fn an_oversized_line_is_refused_before_it_has_come_in_whole() {
    let dir = tempfile::tempdir().unwrap();
    let _server = serve(dir.path(), Arc::new(Fake::default())).unwrap();
    let error = refusal(dir.path(), &vec![b'x'; (64 << 10) + 1]);
    assert_eq!(error.code, ErrorCode::BadRequest);
    assert!(error.message.contains("too long"), "{error}");
}

#[test]
fn a_client_that_never_ends_its_line_is_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let _server = serve_within(dir.path(), Arc::new(Fake::default()), tight()).unwrap();
    let error = refusal(dir.path(), b"{\"v\":1,");
    assert!(error.message.contains("in time"), "{error}");
    // One that says nothing at all is closed without a word.
    let mut silence = Vec::new();
    BufReader::new(raw(dir.path()))
        .read_until(b'\n', &mut silence)
        .unwrap();
    assert!(silence.is_empty());
}

#[test]
fn a_client_that_goes_away_does_not_stop_its_flush() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake::default());
    fake.steps.store(20, Ordering::SeqCst);
    let _server = serve(dir.path(), fake.clone()).unwrap();
    let mut stream = raw(dir.path());
    stream
        .write_all(b"{\"v\":1,\"request\":\"flush\"}\n")
        .unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    assert!(line.contains("progress"), "it is under way: {line}");
    // The reader owned the stream; it is closed by now.
    until("the flush ends", || {
        fake.flushed.load(Ordering::SeqCst) == 1
    });
    assert!(ask(dir.path(), &Request::Ping).is_ok());
}

#[test]
fn more_clients_than_allowed_are_told_so_and_places_are_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits {
        connections: 2,
        ..Limits::default()
    };
    let _server = serve_within(dir.path(), Arc::new(Fake::default()), limits).unwrap();
    let held: Vec<Client> = (0..2)
        .map(|_| Client::connect(dir.path()).unwrap())
        .collect();
    match ask(dir.path(), &Request::Ping) {
        Err(ClientError::Refused(error)) => assert_eq!(error.code, ErrorCode::Busy),
        other => panic!("{other:?}"),
    }
    drop(held);
    until("a place is free", || {
        ask(dir.path(), &Request::Ping).is_ok()
    });
}

#[test]
fn stop_lets_an_answer_under_way_out_and_does_not_wait_for_idle_clients() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake::default());
    fake.steps.store(40, Ordering::SeqCst);
    let server = serve(dir.path(), fake.clone()).unwrap();
    let _idle = Client::connect(dir.path()).unwrap();
    let path = dir.path().to_path_buf();
    let flush = thread::spawn(move || ask(&path, &Request::Flush(FlushWish::default())));
    until("the flush begins", || {
        fake.begun.load(Ordering::SeqCst) == 1
    });
    let begun = Instant::now();
    server.stop();
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(flush.join().unwrap().unwrap(), Answer::Report(report(40)));
}

#[test]
fn a_client_does_not_wait_longer_than_it_said() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake::default());
    fake.steps.store(100, Ordering::SeqCst);
    let _server = serve(dir.path(), fake.clone()).unwrap();
    let mut client = Client::connect(dir.path()).unwrap();
    let request = Request::Flush(FlushWish::default());
    let patience = Some(Duration::from_millis(100));
    let begun = Instant::now();
    let error = client.call(&request, patience, &mut |_| {}).unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_millis(450));
    drop(client);
    until("the flush goes on", || {
        fake.flushed.load(Ordering::SeqCst) == 1
    });
}

#[test]
fn a_handler_that_panics_costs_one_answer_and_no_place() {
    struct Broken;
    impl Handler for Broken {
        fn status(&self) -> Status {
            panic!("on purpose")
        }
        fn flush(&self, _: &FlushWish, _: &Asker<'_>) -> Result<FlushReport, ControlError> {
            Ok(report(0))
        }
        fn eject(&self, _: &Asker<'_>) -> Result<FlushReport, ControlError> {
            Ok(report(0))
        }
        fn attach(
            &self,
            _: &std::path::Path,
            _: bool,
            _: bool,
            _: bool,
        ) -> Result<AttachReport, ControlError> {
            Err(ControlError::new(ErrorCode::Failed, "no"))
        }
        fn unmount(&self, _: bool, _: bool, _: &Asker<'_>) -> Result<FlushReport, ControlError> {
            Ok(report(0))
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits {
        connections: 1,
        ..Limits::default()
    };
    let _server = serve_within(dir.path(), Arc::new(Broken), limits).unwrap();
    let error = ask(dir.path(), &Request::Status).unwrap_err();
    assert!(matches!(error, ClientError::Closed { .. }), "{error}");
    until("the place is free", || {
        ask(dir.path(), &Request::Ping).is_ok()
    });
}

#[test]
fn fields_that_nobody_knows_do_not_keep_a_request_from_being_understood() {
    let dir = tempfile::tempdir().unwrap();
    let _server = serve(dir.path(), Arc::new(Fake::default())).unwrap();
    let mut stream = raw(dir.path());
    stream
        .write_all(b"{\"later\":{\"a\":[1,null]},\"request\":\"ping\",\"v\":1}\r\n")
        .unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    assert!(line.contains("pong"), "{line}");
}

#[test]
fn random_bytes_never_reach_the_handler_and_never_end_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake::default());
    let _server = serve_within(dir.path(), fake.clone(), tight()).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..300 {
        let length = next() as usize % 3000;
        let garbage: Vec<u8> = (0..length).map(|_| next() as u8).collect();
        let mut stream = raw(dir.path());
        // Some of it comes after it has been let go.
        let _ = stream.write_all(&garbage);
        let _ = stream.write_all(b"\n");
    }
    until("the server has time again", || {
        ask(dir.path(), &Request::Ping).is_ok()
    });
    assert_eq!(fake.begun.load(Ordering::SeqCst), 0);
    assert!(!fake.unmounted_with_flush.load(Ordering::SeqCst));
}

#[test]
fn a_line_without_an_end_is_let_go_after_its_limit_however_much_follows() {
    let dir = tempfile::tempdir().unwrap();
    let _server = serve(dir.path(), Arc::new(Fake::default())).unwrap();
    let mut stream = raw(dir.path());
    stream
        .set_write_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let chunk = vec![b'x'; 1 << 16];
    let sent = (0..1000)
        .take_while(|_| stream.write_all(&chunk).is_ok())
        .count();
    // The limit, and what the socket's buffers hold.
    assert!(sent < 100, "{sent} chunks were taken");
    assert!(ask(dir.path(), &Request::Ping).is_ok());
}

/// A handler whose answer no socket buffer holds.
struct Talkative;

impl Handler for Talkative {
    fn status(&self) -> Status {
        Status {
            last_error: Some("e".repeat(8 << 20)),
            ..Fake::default().status()
        }
    }
    fn flush(&self, _: &FlushWish, _: &Asker<'_>) -> Result<FlushReport, ControlError> {
        Ok(report(0))
    }
    fn eject(&self, _: &Asker<'_>) -> Result<FlushReport, ControlError> {
        Ok(report(0))
    }
    fn unmount(&self, _: bool, _: bool, _: &Asker<'_>) -> Result<FlushReport, ControlError> {
        Ok(report(0))
    }
}

#[test]
fn a_client_that_never_reads_its_answer_gives_its_place_back() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits {
        connections: 1,
        write_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let _server = serve_within(dir.path(), Arc::new(Talkative), limits).unwrap();
    let mut deaf = raw(dir.path());
    deaf.write_all(b"{\"v\":1,\"request\":\"status\"}\n")
        .unwrap();
    // Also where it goes on asking.
    for _ in 0..300 {
        let _ = deaf.write_all(b"{\"v\":1,\"request\":\"status\"}\n");
    }
    let begun = Instant::now();
    while ask(dir.path(), &Request::Ping).is_err() {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "its place is never given back"
        );
        thread::sleep(Duration::from_millis(20));
    }
    drop(deaf);
}

#[test]
fn clients_that_say_nothing_keep_nobody_out_for_longer_than_a_request_may_take() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits {
        connections: 4,
        ..tight()
    };
    let _server = serve_within(dir.path(), Arc::new(Fake::default()), limits).unwrap();
    let _silent: Vec<UnixStream> = (0..100).map(|_| raw(dir.path())).collect();
    until("they are let go", || {
        ask(dir.path(), &Request::Ping).is_ok()
    });
}

#[test]
fn a_directory_in_which_others_may_write_has_no_socket() {
    let dir = tempfile::tempdir().unwrap();
    for mode in [0o777, 0o1777, 0o770, 0o702] {
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
        let Err(error) = serve(dir.path(), Arc::new(Fake::default())) else {
            panic!("listens in a directory of mode {mode:o}");
        };
        assert!(error.to_string().contains("chmod go-w"), "{error}");
        assert!(!dir.path().join("control.sock").exists());
    }
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(serve(dir.path(), Arc::new(Fake::default())).is_ok());
}

#[test]
fn a_link_in_the_place_of_the_socket_is_not_followed_by_either_end() {
    let real = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake::default());
    let _server = serve(real.path(), fake.clone()).unwrap();
    let planted = tempfile::tempdir().unwrap();
    let link = planted.path().join("control.sock");
    std::os::unix::fs::symlink(real.path().join("control.sock"), &link).unwrap();
    let error = ask(
        planted.path(),
        &Request::Unmount {
            flush: true,
            force: false,
        },
    )
    .unwrap_err();
    assert!(matches!(error, ClientError::Stranger { .. }), "{error}");
    assert!(!fake.unmounted_with_flush.load(Ordering::SeqCst));
    assert!(serve(planted.path(), Arc::new(Fake::default())).is_err());
    assert!(ask(real.path(), &Request::Ping).is_ok());
    // Nor is a link that leads nowhere a place for a socket.
    fs::remove_file(&link).unwrap();
    let nowhere = planted.path().join("nowhere");
    std::os::unix::fs::symlink(&nowhere, &link).unwrap();
    assert!(serve(planted.path(), Arc::new(Fake::default())).is_err());
    assert!(!nowhere.exists());
}
