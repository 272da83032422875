//! The daemon's end of the control socket.
//!
//! Who may talk: the socket is 0600 in a directory that is 0700 where ferryfs made it, and in which nobody else may write where
//! somebody else did; the kernel's word on the peer's user is checked besides, so the instant between bind and chmod opens nothing.
//! Who may wait for whom: a request runs on its connection's own thread. Progress is sent without ever blocking, so a
//! client that stops reading, or goes away, delays nothing; only the last line of an answer waits, for a bounded time.
//! Lock order: `connections` is the only lock, and nothing is called while it is held.

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
use super::connection::{self, Limits};
use super::protocol::{
    AttachReport, ControlError, ErrorCode, FlushReport, FlushWish, Progress, RefreshReport,
    SOCKET_NAME, Status,
};
use crate::base::{ForeignText, quoted};

/// Who waits for an answer.
pub struct Asker<'a> {
    progress: &'a dyn Fn(Progress),
    cancelled: &'a dyn Fn() -> bool,
}

impl<'a> Asker<'a> {
    /// One that is given signs of progress by `progress`, and has cancelled its request once `cancelled`.
    pub fn new(progress: &'a dyn Fn(Progress), cancelled: &'a dyn Fn() -> bool) -> Asker<'a> {
        Asker {
            progress,
            cancelled,
        }
    }

    /// Tells how far it is. Never waits.
    pub fn tell(&self, step: Progress) {
        (self.progress)(step);
    }

    /// Whether the request has been cancelled by the one who made it. One that has gone away has not cancelled it.
    pub fn has_cancelled(&self) -> bool {
        (self.cancelled)()
    }
}

/// What the daemon does when it is asked. Called from many threads at once.
pub trait Handler: Send + Sync {
    /// How things stand. Must not wait for the backend.
    fn status(&self) -> Status;

    /// Carries over what waits and returns when it is on the backend, or `timeout` has passed.
    ///
    /// # Errors
    /// If nothing can be promised about what waits; what was merely left behind is named in the report.
    fn flush(
        &self,
        timeout: Option<Duration>,
        asker: &Asker<'_>,
    ) -> Result<FlushReport, ControlError>;

    /// The same with wishes beyond the time it may take; who knows of none does without.
    ///
    /// # Errors
    /// As [`Handler::flush`].
    fn flush_as(&self, wish: &FlushWish, asker: &Asker<'_>) -> Result<FlushReport, ControlError> {
        self.flush(wish.timeout_ms.map(Duration::from_millis), asker)
    }

    /// Lets what was being written when the daemon before died be carried as it is; tells how many files that are.
    ///
    /// # Errors
    /// If they are still held back.
    fn include_interrupted(&self) -> Result<u64, ControlError> {
        Ok(0)
    }

    /// Flushes, then lets go of the backend.
    ///
    /// # Errors
    /// If the backend is still held.
    fn eject(&self, asker: &Asker<'_>) -> Result<FlushReport, ControlError>;

    /// Takes the volume at `path`, an absolute path, as the backend; see [`super::protocol::Request::Attach`].
    ///
    /// # Errors
    /// If it is not the volume, or is attached elsewhere, or what was interrupted on it cannot be finished.
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
    /// As [`Handler::attach`], or if it cannot be taken for the volume.
    fn re_enroll(&self, path: &Path, accept_copy: bool) -> Result<AttachReport, ControlError> {
        let _ = (path, accept_copy);
        let message = "nothing can be attached here";
        Err(ControlError::new(ErrorCode::BadRequest, message))
    }

    /// Looks for what others have changed on the backend, at `path` from the mount's root (empty for all) and below it.
    ///
    /// # Errors
    /// If the backend is not there, or cannot be looked at.
    fn refresh(&self, path: &str) -> Result<RefreshReport, ControlError> {
        let _ = path;
        let message = "nothing can be looked at here";
        Err(ControlError::new(ErrorCode::BadRequest, message))
    }

    /// Flushes if told to, then ends the mount; with `force` also for those who still use it. If the file system stays in use
    /// elsewhere, the report names who uses it, and the daemon goes on. The answer is sent after this returned, so whoever ends
    /// the process calls [`ServerHandle::stop`] first, from another thread.
    ///
    /// # Errors
    /// If the mount goes on.
    fn unmount(
        &self,
        flush: bool,
        force: bool,
        asker: &Asker<'_>,
    ) -> Result<FlushReport, ControlError>;
}

/// Connections at hand, by a number of their own.
type Connections = HashMap<u64, Arc<UnixStream>>;

struct Shared {
    handler: Arc<dyn Handler>,
    limits: Limits,
    stopping: AtomicBool,
    connections: Mutex<Connections>,
    /// Told whenever a connection has ended.
    ended: Condvar,
}

/// A server at work. Dropping it stops it.
pub struct ServerHandle {
    shared: Arc<Shared>,
    listener: Arc<UnixListener>,
    acceptor: Option<JoinHandle<()>>,
    socket: PathBuf,
}

/// Listens in `socket_dir`, which is the cache directory, and answers through `handler`.
///
/// A socket left by an earlier daemon is removed: the caller holds the cache's lock, so nobody listens on it.
///
/// # Errors
/// If others may write to the directory or it is another user's, if something that is no socket stands there, or what the
/// system said.
pub fn serve(socket_dir: &Path, handler: Arc<dyn Handler>) -> io::Result<ServerHandle> {
    serve_within(socket_dir, handler, Limits::default())
}

/// [`serve`] with other bounds.
///
/// # Errors
/// As [`serve`].
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
    let (theirs, door) = (Arc::clone(&shared), Arc::clone(&listener));
    let acceptor = thread::Builder::new()
        .name("control".into())
        .spawn(move || accept_all(&theirs, &door))?;
    Ok(ServerHandle {
        shared,
        listener,
        acceptor: Some(acceptor),
        socket,
    })
}

impl ServerHandle {
    /// Takes no more requests, removes the socket, and waits a bounded time for answers under way.
    ///
    /// Must not be called from within a [`Handler`], whose own answer would be waited for.
    pub fn stop(mut self) {
        self.shut();
    }

    /// Takes no more connections and removes the socket. Those that are there stay until [`ServerHandle::stop`]: a client
    /// that waits for the end of its connection so waits for everything that is done in between.
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
            // Who is idle sees the end; who is being answered still gets its answer.
            let _ = stream.shutdown(std::net::Shutdown::Read);
        }
        while !connections.is_empty() {
            let waited = self.shared.ended.wait_until(&mut connections, deadline);
            if waited.timed_out() {
                tracing::warn!(left = connections.len(), "control requests were cut off");
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

/// Whoever may write to the directory could put a socket of his own in the place of ours.
fn must_be_private(dir: &Path) -> io::Result<()> {
    let meta = fs::metadata(dir)?;
    let refused = |why: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    let (owner, own) = (Uid::from_raw(meta.uid()), Uid::effective());
    if owner != own {
        return refused(format!("{} belongs to user {owner}", dir.escaped()));
    }
    if meta.permissions().mode() & 0o022 != 0 {
        return refused(format!(
            "others may write to {}; choose a directory of your own, or take that right away: chmod go-w {}",
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
            format!("{} is there and is no socket", socket.escaped()),
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
                // Mostly EMFILE: the connection stays in the queue, so without a pause this would spin.
                tracing::warn!(%error, "accept on the control socket failed");
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Whether a process of user `peer` may command a daemon of user `own`.
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
        tracing::warn!(%error, "no thread for a control request");
    }
}

/// A connection's place among the others, given back however its thread ends.
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
