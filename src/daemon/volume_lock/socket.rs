//! Claims that other users see: sockets with abstract names, `ferryfs-volume/<id>/<random>`.
//!
//! No process can take a random name in advance. Any user can make a socket whose name looks like a
//! claim; the kernel says whose it is when one connects to it.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockType, UnixAddr, connect, getsockopt, shutdown, socket,
};
use uuid::Uuid;

/// Where the kernel lists the sockets of this network namespace.
const TABLE: &str = "/proc/net/unix";

/// The field of that table that has the name.
const NAME_FIELD: usize = 7;

/// How often, and after which pause, a claim whose queue is full is asked again.
const ATTEMPTS: u32 = 10;
const AGAIN: Duration = Duration::from_millis(10);

/// A claim of this process, until it is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    volume: Uuid,
    name: String,
    listener: Arc<UnixListener>,
    answering: Option<JoinHandle<()>>,
    ended: Arc<AtomicBool>,
}

/// A claim of another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Other {
    /// The process that has made it.
    pub(super) pid: i32,
    /// Its user.
    pub(super) uid: u32,
}

impl Claim {
    /// Claims `volume`.
    ///
    /// # Errors
    /// If the system provides no socket or no thread.
    pub(super) fn make(volume: Uuid) -> io::Result<Claim> {
        let name = format!("{}{}", prefix(volume), Uuid::new_v4().simple());
        let address = SocketAddr::from_abstract_name(&name)?;
        let listener = Arc::new(UnixListener::bind_addr(&address)?);
        let theirs = listener.clone();
        let ended = Arc::new(AtomicBool::new(false));
        let answering = thread::Builder::new().name("ferryfs-claim".into()).spawn({
            let ended = Arc::clone(&ended);
            move || answer(&theirs, &ended)
        })?;
        Ok(Claim {
            volume,
            name,
            listener,
            answering: Some(answering),
            ended,
        })
    }

    /// All other claims of the volume. A claim that was made before this one is among them.
    pub(super) fn others(&self) -> Vec<Other> {
        let mut names = Vec::new();
        // While the table is read, sockets that are being closed may hide others. That does not
        // happen twice.
        for _ in 0..2 {
            match fs::read(TABLE) {
                Ok(table) => names.extend(names_in(&table, &prefix(self.volume))),
                Err(error) => tracing::warn!(%error, "claims of other users cannot be seen"),
            }
        }
        names.sort();
        names.dedup();
        names.retain(|name| *name != self.name);
        ask_all(names)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Without free descriptors the thread does not see the end of the socket.
        self.ended.store(true, Ordering::Release);
        // Wakes the thread; the name is released with the last of the two.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        if let Some(answering) = self.answering.take() {
            let _ = answering.join();
        }
    }
}

/// Empties the queue. A process that connects has learned the owner from the kernel.
fn answer(listener: &UnixListener, ended: &AtomicBool) {
    while !ended.load(Ordering::Acquire) {
        match listener.accept() {
            Ok(_) => {}
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::ECONNABORTED) => {}
                Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS) => {
                    thread::sleep(AGAIN);
                }
                // Shut down.
                _ => return,
            },
        }
    }
}

fn prefix(volume: Uuid) -> String {
    format!("ferryfs-volume/{volume}/")
}

/// The names of claims in a table of sockets, which shows abstract names with an `@`.
fn names_in<'a>(table: &'a [u8], prefix: &'a str) -> impl Iterator<Item = String> + 'a {
    table.split(|&byte| byte == b'\n').filter_map(move |line| {
        let line = std::str::from_utf8(line).ok()?;
        let name = line
            .split_ascii_whitespace()
            .nth(NAME_FIELD)?
            .strip_prefix('@')?;
        let random = name.strip_prefix(prefix)?;
        let is_claim = random.len() == 32 && random.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_claim.then(|| name.to_owned())
    })
}

/// The owners of these claims, as far as a process listens.
fn ask_all(mut names: Vec<String>) -> Vec<Other> {
    let mut others = Vec::new();
    for _ in 0..ATTEMPTS {
        names.retain(|name| match ask(name) {
            Ok(other) => {
                others.push(other);
                false
            }
            Err(errno) => !matches!(errno, Errno::ECONNREFUSED | Errno::ENOENT),
        });
        if names.is_empty() {
            return others;
        }
        thread::sleep(AGAIN);
    }
    // Daemons empty their queue. The owners of these are unknown, so these claims are ignored.
    tracing::warn!(
        claims = names.len(),
        "claims of the volume do not answer; they are ignored"
    );
    others
}

/// The owner of this claim. EAGAIN if its queue is full.
fn ask(name: &str) -> nix::Result<Other> {
    let socket = stream()?;
    connect(
        socket.as_raw_fd(),
        &UnixAddr::new_abstract(name.as_bytes())?,
    )?;
    let peer = getsockopt(&socket, PeerCredentials)?;
    Ok(Other {
        pid: peer.pid(),
        uid: peer.uid(),
    })
}

fn stream() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    socket(AddressFamily::Unix, SockType::Stream, flags, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_found_in_the_kernels_table_and_nothing_else_is() {
        let volume = Uuid::nil();
        let claim = format!("{}0123456789abcdef0123456789abcdef", prefix(volume));
        let table = format!(
            "Num       RefCount Protocol Flags    Type St Inode Path\n\
             0000000000000000: 00000002 00000000 00010000 0001 01 1 @{claim}\n\
             0000000000000000: 00000002 00000000 00010000 0001 01 2 {claim}\n\
             0000000000000000: 00000002 00000000 00010000 0001 01 3 @{claim}0\n\
             0000000000000000: 00000002 00000000 00010000 0001 01 4\n\
             0000000000000000: 00000002 00000000 00010000 0001 01 5 @ferryfs-volume-{volume}\n"
        );
        let found: Vec<String> = names_in(table.as_bytes(), &prefix(volume)).collect();
        assert_eq!(found, [claim]);
    }

    #[test]
    fn a_claim_is_seen_as_long_as_it_stands_and_answers_any_number() {
        let volume = Uuid::new_v4();
        let (first, second) = (Claim::make(volume).unwrap(), Claim::make(volume).unwrap());
        let own = Other {
            pid: i32::try_from(std::process::id()).unwrap(),
            uid: nix::unistd::getuid().as_raw(),
        };
        for _ in 0..300 {
            assert_eq!(second.others(), [own]);
        }
        drop(first);
        assert_eq!(second.others(), []);
    }
}
