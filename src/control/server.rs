//! The daemon's end of the control socket.
//!
//! Access: the socket has mode 0600. Its directory has mode 0700 if ferryfs created it; in any
//! other directory no other user may write. The server also checks the peer's user as the kernel
//! reports it, so the instant between bind and chmod opens no gap.
//!
//! Threads: a request runs on its connection's own thread. Progress messages never block, so a
//! client that stops reading, or disconnects, delays nothing. Only the last line of an answer
//! waits, for a bounded time.
//!
//! Lock order: `connections` is the only lock, and no other code is called while it is held.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{Shutdown, getsockopt};
use nix::unistd::Uid;
use parking_lot::{Condvar, Mutex};

use super::address::at_socket;
use super::connection;
use super::connection::Limits;
use super::protocol::{
    AttachReport, Automatic, ConfigOrigin, ControlError, ErrorCode, FlushReport, FlushWish,
    LeavePlan, LocalReport, RefreshReport, SOCKET_NAME, ScrubStatus, ScrubWish, Status,
};
use crate::core::{ForeignText, Progress, quoted};

/// The client that waits for an answer.
pub struct Asker<'a> {
    progress: &'a dyn Fn(Progress),
    cancelled: &'a dyn Fn() -> bool,
}

impl<'a> Asker<'a> {
    /// Creates a client that gets progress messages through `progress`, and has cancelled its
    /// request once `cancelled` returns `true`.
    pub fn new(progress: &'a dyn Fn(Progress), cancelled: &'a dyn Fn() -> bool) -> Asker<'a> {
        Asker {
            progress,
            cancelled,
        }
    }

    /// Reports progress. Never waits.
    pub fn tell(&self, step: Progress) {
        (self.progress)(step);
    }

    /// Returns whether the client has cancelled its request. A client that has disconnected has not
    /// cancelled it.
    pub fn has_cancelled(&self) -> bool {
        (self.cancelled)()
    }
}

/// The operations of the daemon. Many threads call them at once.
pub trait Handler: Send + Sync {
    /// Returns the status. Must not wait for the backend.
    fn status(&self) -> Status;

    /// Flushes pending changes. Returns when they are on the backend, or when `timeout` has passed.
    ///
    /// # Errors
    /// If nothing can be promised about what waits; what was merely left behind is named in the
    /// report.
    fn flush(&self, wish: &FlushWish, asker: &Asker<'_>) -> Result<FlushReport, ControlError>;

    /// Allows the files that were being written when the previous daemon died to be flushed as they
    /// are. Returns their number.
    ///
    /// # Errors
    /// If they are still held back.
    fn include_interrupted(&self) -> Result<u64, ControlError> {
        Ok(0)
    }

    /// Flushes, then releases the backend.
    ///
    /// # Errors
    /// If the backend is still in use.
    fn eject(&self, asker: &Asker<'_>) -> Result<FlushReport, ControlError>;

    /// Attaches the volume at `path`, an absolute path, as the backend; see
    /// [`super::protocol::Request::Attach`].
    ///
    /// # Errors
    /// If it is not the volume, or is attached elsewhere, or an interrupted batch on it cannot be
    /// finished.
    fn attach(
        &self,
        path: &Path,
        accept_copy: bool,
        fsck: bool,
        take_over: bool,
    ) -> Result<AttachReport, ControlError> {
        let _ = (path, accept_copy, fsck, take_over);
        let message = "nothing can be attached here";
        Err(ControlError::new(ErrorCode::BadRequest, message))
    }

    /// The same for a volume whose marker was deleted; see [`super::protocol::Request::ReEnroll`].
    ///
    /// # Errors
    /// As for [`Handler::attach`], or if it cannot be accepted as the volume.
    fn re_enroll(&self, path: &Path, accept_copy: bool) -> Result<AttachReport, ControlError> {
        let _ = (path, accept_copy);
        let message = "nothing can be attached here";
        Err(ControlError::new(ErrorCode::BadRequest, message))
    }

    /// Scans the backend for external changes, at `path` from the mount's root (empty for all) and
    /// below it.
    ///
    /// # Errors
    /// If the backend is not there, or cannot be read.
    fn refresh(&self, path: &str) -> Result<RefreshReport, ControlError> {
        let _ = path;
        let message = "there is no drive to compare";
        Err(ControlError::new(ErrorCode::BadRequest, message))
    }

    /// Pauses the flushes that begin by themselves, for `time` or until [`Handler::resume`].
    ///
    /// # Errors
    /// If the pause would end with the daemon.
    fn pause(&self, time: Option<Duration>) -> Result<Automatic, ControlError> {
        let _ = time;
        Err(no_automatic_flushes())
    }

    /// Ends a pause.
    ///
    /// # Errors
    /// If the pause would come back with the next daemon.
    fn resume(&self) -> Result<Automatic, ControlError> {
        Err(no_automatic_flushes())
    }

    /// Replaces the options that a running mount can change.
    ///
    /// # Errors
    /// If they cannot be decoded; nothing has changed then.
    fn reload(
        &self,
        live: &serde_json::Value,
        config: &ConfigOrigin,
    ) -> Result<Automatic, ControlError> {
        let _ = (live, config);
        Err(no_automatic_flushes())
    }

    /// Reads and compares the files of the drive, and returns when all of them have been.
    ///
    /// # Errors
    /// If it is stopped before.
    fn scrub(&self, wish: &ScrubWish, asker: &Asker<'_>) -> Result<ScrubStatus, ControlError> {
        let _ = (wish, asker);
        let message = "there is no drive to read";
        Err(ControlError::new(ErrorCode::BadRequest, message))
    }

    /// Stops the scrub under way.
    ///
    /// # Errors
    /// If that cannot be stored.
    fn stop_scrub(&self) -> Result<ScrubStatus, ControlError> {
        let message = "there is no drive to read";
        Err(ControlError::new(ErrorCode::BadRequest, message))
    }

    /// Says what an end of the volume would remove, and what is in its way.
    ///
    /// # Errors
    /// If the drive or the index cannot be read.
    fn leave_plan(&self) -> Result<LeavePlan, ControlError> {
        let message = "there is no drive to leave";
        Err(ControlError::new(ErrorCode::BadRequest, message))
    }

    /// Lists what stays local, and says what the patterns `instead` would change.
    ///
    /// # Errors
    /// If a pattern is not accepted, or the index cannot be read.
    fn local(&self, instead: Option<&[String]>) -> Result<LocalReport, ControlError> {
        let _ = instead;
        Err(no_automatic_flushes())
    }

    /// Flushes if `flush` is set, then ends the mount; with `force` also for processes that still
    /// use it. If the file system stays in use elsewhere, the report names its users, and the
    /// daemon continues. The answer is sent after this function returns. So the code that ends the
    /// process first calls [`ServerHandle::stop`], from another thread.
    ///
    /// # Errors
    /// If the mount stays.
    fn unmount(
        &self,
        flush: bool,
        force: bool,
        asker: &Asker<'_>,
    ) -> Result<FlushReport, ControlError>;
}

fn no_automatic_flushes() -> ControlError {
    ControlError::new(ErrorCode::BadRequest, "there are no automatic flushes here")
}

/// The open connections, each by its own number.
type Connections = HashMap<u64, Arc<UnixStream>>;

struct Shared {
    handler: Arc<dyn Handler>,
    limits: Limits,
    stopping: AtomicBool,
    connections: Mutex<Connections>,
    /// Notified when a connection has ended.
    ended: Condvar,
}

/// A running server. It stops on drop.
pub struct ServerHandle {
    shared: Arc<Shared>,
    listener: Arc<UnixListener>,
    acceptor: Option<JoinHandle<()>>,
    socket: PathBuf,
}

/// Listens in `socket_dir`, which is the cache directory, and answers through `handler`.
///
/// It removes the socket of an earlier daemon: the caller holds the cache's lock, so no process
/// listens on it.
///
/// # Errors
/// If other users may write to the directory or it belongs to another user, if the path exists and
/// is not a socket, or the error of the system.
pub fn serve(socket_dir: &Path, handler: Arc<dyn Handler>) -> io::Result<ServerHandle> {
    serve_within(socket_dir, handler, Limits::default())
}

/// As [`serve`], with other limits.
///
/// # Errors
/// As for [`serve`].
pub fn serve_within(
    socket_dir: &Path,
    handler: Arc<dyn Handler>,
    limits: Limits,
) -> io::Result<ServerHandle> {
    must_be_private(socket_dir)?;
    let socket = socket_dir.join(SOCKET_NAME);
    remove_stale(&socket)?;
    let listener = Arc::new(at_socket(socket_dir, |short| UnixListener::bind(short))?);
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o600))?;
    let shared = Arc::new(Shared {
        handler,
        limits,
        stopping: AtomicBool::new(false),
        connections: Mutex::default(),
        ended: Condvar::new(),
    });
    let (theirs, for_acceptor) = (Arc::clone(&shared), Arc::clone(&listener));
    let acceptor = thread::Builder::new()
        .name("control".into())
        .spawn(move || accept_all(&theirs, &for_acceptor))?;
    Ok(ServerHandle {
        shared,
        listener,
        acceptor: Some(acceptor),
        socket,
    })
}

impl ServerHandle {
    /// Accepts no more requests, removes the socket, and waits a bounded time for answers in
    /// progress.
    ///
    /// A [`Handler`] must not call this, since the call would wait for the handler's own answer.
    pub fn stop(mut self) {
        self.shut();
    }

    /// Accepts no more connections and removes the socket. Open connections stay until
    /// [`ServerHandle::stop`], so a client that waits for the end of its connection also waits for
    /// everything that happens in between.
    pub fn close_door(&mut self) {
        let Some(acceptor) = self.acceptor.take() else {
            return;
        };
        self.shared.stopping.store(true, Ordering::SeqCst);
        let _ = fs::remove_file(&self.socket);
        // On Linux this wakes a thread that waits in accept, which then fails with EINVAL.
        let _ = nix::sys::socket::shutdown(
            std::os::fd::AsRawFd::as_raw_fd(&*self.listener),
            Shutdown::Read,
        );
        let _ = acceptor.join();
    }

    fn shut(&mut self) {
        self.close_door();
        let deadline = Instant::now() + self.shared.limits.drain;
        let mut connections = self.shared.connections.lock();
        for stream in connections.values() {
            // An idle client sees the end of the stream. A client with a request in progress still
            // gets its answer.
            let _ = stream.shutdown(std::net::Shutdown::Read);
        }
        while !connections.is_empty() {
            let waited = self.shared.ended.wait_until(&mut connections, deadline);
            if waited.timed_out() {
                tracing::warn!(
                    left = connections.len(),
                    "aborted control requests at the end"
                );
                return;
            }
        }
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        self.shut();
    }
}

/// Checks that no other user may write to the directory. Otherwise he could replace the socket by
/// his own.
fn must_be_private(dir: &Path) -> io::Result<()> {
    let meta = fs::metadata(dir)?;
    let refused = |why: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    let (owner, own) = (Uid::from_raw(meta.uid()), Uid::effective());
    if owner != own {
        return refused(format!("{} belongs to user {owner}", dir.escaped()));
    }
    if meta.permissions().mode() & 0o022 != 0 {
        return refused(format!(
            "other users may write to {}; choose a directory of your own, or remove that \
             permission: chmod go-w {}",
            dir.escaped(),
            quoted(dir)
        ));
    }
    Ok(())
}

fn remove_stale(socket: &Path) -> io::Result<()> {
    match fs::symlink_metadata(socket) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(socket),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!("{} exists and is not a socket", socket.escaped()),
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn accept_all(shared: &Arc<Shared>, listener: &UnixListener) {
    for number in 0.. {
        match listener.accept() {
            _ if shared.stopping.load(Ordering::SeqCst) => return,
            Ok((stream, _)) => admit(shared, number, stream),
            Err(error) => {
                // Mostly EMFILE: the connection stays in the queue, so without a pause this would
                // spin.
                tracing::warn!(%error, "cannot accept a connection on the control socket");
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Returns whether a process of user `peer` may command a daemon of user `own`.
fn may_command(peer: Uid, own: Uid) -> bool {
    peer == own || peer.is_root()
}

fn admit(shared: &Arc<Shared>, number: u64, stream: UnixStream) {
    let allowed = getsockopt(&stream, PeerCredentials)
        .is_ok_and(|peer| may_command(Uid::from_raw(peer.uid()), Uid::effective()));
    if !allowed {
        let error = ControlError::new(ErrorCode::Failed, "this mount belongs to another user");
        return connection::turn_away(&stream, error);
    }
    let stream = Arc::new(stream);
    let Some(slot) = Slot::take(shared, number, &stream) else {
        let error = ControlError::new(ErrorCode::Busy, "too many commands at once")
            .with_hint("wait until some of them have ended");
        return connection::turn_away(&stream, error);
    };
    let spawned = thread::Builder::new()
        .name("control-request".into())
        .spawn(move || {
            let shared = &slot.shared;
            connection::converse(&stream, &*shared.handler, &shared.limits, &shared.stopping);
        });
    if let Err(error) = spawned {
        tracing::warn!(%error, "cannot start a thread for a control request");
    }
}

/// One of the limited connections. Its drop frees the slot in every case in which its thread ends.
struct Slot {
    shared: Arc<Shared>,
    number: u64,
}

impl Slot {
    fn take(shared: &Arc<Shared>, number: u64, stream: &Arc<UnixStream>) -> Option<Slot> {
        let mut connections = shared.connections.lock();
        if connections.len() >= shared.limits.connections {
            return None;
        }
        connections.insert(number, Arc::clone(stream));
        Some(Slot {
            shared: Arc::clone(shared),
            number,
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.shared.connections.lock().remove(&self.number);
        self.shared.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_user_and_root_may_command() {
        let (me, other, root) = (Uid::from_raw(1000), Uid::from_raw(1001), Uid::from_raw(0));
        assert!(may_command(me, me));
        assert!(may_command(root, me));
        assert!(!may_command(other, me));
        assert!(!may_command(other, root));
    }

    #[test]
    fn what_is_no_socket_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SOCKET_NAME);
        fs::write(&path, "precious").unwrap();
        let error = remove_stale(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
