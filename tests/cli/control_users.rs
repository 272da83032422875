//! The control socket between different users: neither end takes the other for what it is not. Root
//! starts these, to become others.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ferryfs::control::client::{Client, ClientError};
use ferryfs::control::protocol::{
    ControlError, ErrorCode, FlushReport, FlushWish, Request, Status,
};
use ferryfs::control::server::{Asker, Handler, serve};

use crate::lab::{run, skip, wait_until};

/// Counts what reaches it.
#[derive(Default)]
struct Counting(AtomicUsize);

impl Counting {
    fn asked(&self) -> ControlError {
        self.0.fetch_add(1, Ordering::SeqCst);
        ControlError::new(ErrorCode::Failed, "asked")
    }
}

impl Handler for Counting {
    fn status(&self) -> Status {
        panic!("{}", self.asked())
    }
    fn flush(&self, _: &FlushWish, _: &Asker<'_>) -> Result<FlushReport, ControlError> {
        Err(self.asked())
    }
    fn eject(&self, _: &Asker<'_>) -> Result<FlushReport, ControlError> {
        Err(self.asked())
    }
    fn unmount(&self, _: bool, _: bool, _: &Asker<'_>) -> Result<FlushReport, ControlError> {
        Err(self.asked())
    }
}

/// Sends a request and prints what comes of it.
const ASK: &str = r#"
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(20)
try:
    s.connect(sys.argv[1])
    s.sendall(b'{"v":1,"request":"unmount","flush":false}\n')
except OSError as e:
    print("error:", type(e).__name__)
try:
    print(s.recv(10000).decode())
except OSError as e:
    print("error:", type(e).__name__)
"#;

/// Listens at a path and says to whoever connects that all is well; what is sent to it is written
/// beside it.
const PRETEND: &str = r#"
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen()
while True:
    c, _ = s.accept()
    c.settimeout(5)
    try:
        c.sendall(b'{"v":1,"reply":"done","answer":{"kind":"pong","version":"0","pid":1}}\n')
        got = c.recv(1000)
    except OSError:
        got = b""
    if got:
        open(sys.argv[1] + ".got", "wb").write(got)
    c.close()
"#;

/// A command as the user `nobody`; `None`, said loudly, where that cannot be had.
fn as_nobody(script: &str, socket: &Path) -> Option<Command> {
    if !nix::unistd::geteuid().is_root() {
        skip("becoming another user needs root");
        return None;
    }
    let Some(nobody) = nix::unistd::User::from_name("nobody").ok().flatten() else {
        skip("there is no user nobody");
        return None;
    };
    let mut command = Command::new("setpriv");
    command
        .arg(format!("--reuid={}", nobody.uid))
        .arg(format!("--regid={}", nobody.gid))
        .args(["--clear-groups", "python3", "-c", script])
        .arg(socket)
        .env("PATH", "/usr/bin:/bin")
        .current_dir("/");
    Some(command)
}

fn open_to_all(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

#[test]
fn another_user_gets_no_service_even_where_the_modes_would_let_him() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("control.sock");
    let Some(mut ask) = as_nobody(ASK, &socket) else {
        return;
    };
    let counting = Arc::new(Counting::default());
    let _server = serve(dir.path(), counting.clone()).expect("serve");
    let refused = run(&mut ask).ok();
    assert!(
        refused.stdout.contains("PermissionError"),
        "{}",
        refused.stdout
    );
    open_to_all(dir.path(), 0o755);
    let refused = run(&mut ask).ok();
    assert!(
        refused.stdout.contains("PermissionError"),
        "{}",
        refused.stdout
    );
    open_to_all(&socket, 0o666);
    let refused = run(&mut ask).ok();
    assert!(
        refused.stdout.contains("another user"),
        "{}",
        refused.stdout
    );
    assert_eq!(counting.0.load(Ordering::SeqCst), 0);
}

/// Ends its process on drop.
struct Pretender(Child);

impl Drop for Pretender {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_socket_that_another_user_listens_on_is_told_nothing_and_not_believed() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("control.sock");
    let Some(mut pretend) = as_nobody(PRETEND, &socket) else {
        return;
    };
    open_to_all(dir.path(), 0o777);
    let pretender = pretend.stdin(Stdio::null()).spawn().expect("start");
    let _pretender = Pretender(pretender);
    wait_until("somebody to listen", Duration::from_secs(20), || {
        socket.exists() && std::os::unix::net::UnixStream::connect(&socket).is_ok()
    });
    let Err(error) = Client::connect(dir.path()) else {
        panic!("another user's socket is trusted");
    };
    assert!(matches!(error, ClientError::Stranger { .. }), "{error}");
    assert!(!dir.path().join("control.sock.got").exists());
    // Root asks after this user's own mount: then it is who it should be.
    let nobody = nix::unistd::User::from_name("nobody").ok().flatten();
    let nobody = nobody.expect("looked up before");
    std::os::unix::fs::chown(dir.path(), Some(nobody.uid.as_raw()), None).expect("chown");
    let mut client = Client::connect(dir.path()).expect("the owner of the cache listens");
    assert!(client.call(&Request::Ping, None, &mut |_| {}).is_ok());
}
