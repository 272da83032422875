//! Metrics over a socket: a loopback port, or a Unix socket that only its owner may use.
//!
//! Each connection gets one answer, one after another. A client has [`PATIENCE`] to ask and to
//! read, and at most [`LONGEST`] bytes are read of it.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::core::{Failure, ForeignText};

/// The pause after a connection that failed.
const AFTER_FAILURE: Duration = Duration::from_millis(200);

/// How long a client may take to ask, and to read the answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How much of a request is read.
const LONGEST: usize = 8 << 10;

/// The type of the answer: the text format, version 0.0.4.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Where metrics can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A port of the loopback interface.
    Loopback(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

/// Why an address is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// It is no address.
    #[error("must be 127.0.0.1:PORT, [::1]:PORT, localhost:PORT or unix:PATH")]
    NoAddress,
    /// Other machines could reach it.
    #[error("must be a loopback address: other machines could read the metrics at {0}")]
    NotLoopback(IpAddr),
    /// The path of the socket is relative.
    #[error("the path after unix: must be absolute")]
    Relative,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match Path::new(path).is_absolute() {
                true => Ok(Address::Unix(path.into())),
                false => Err(AddressError::Relative),
            };
        }
        // Not looked up: the name of the loopback interface may lead anywhere.
        let text = match text.strip_prefix("localhost:") {
            Some(port) => format!("127.0.0.1:{port}"),
            None => text.into(),
        };
        let address: SocketAddr = text.parse().map_err(|_| AddressError::NoAddress)?;
        match address.ip().is_loopback() {
            true => Ok(Address::Loopback(address)),
            false => Err(AddressError::NotLoopback(address.ip())),
        }
    }
}

enum Listener {
    Tcp(TcpListener),
    /// With the path, and the inode of the socket in it.
    Unix(UnixListener, PathBuf, Option<u64>),
}

/// An open socket.
pub(in crate::daemon) struct Door(Listener);

impl Door {
    /// Opens the socket.
    ///
    /// # Errors
    /// If the address is in use, or cannot be used.
    pub(in crate::daemon) fn open(address: &Address) -> Result<Door, Failure> {
        let opened = match address {
            Address::Loopback(address) => open_tcp(*address),
            Address::Unix(path) => open_unix(path),
        };
        opened.map(Door).map_err(|error| {
            let place = match address {
                Address::Loopback(address) => address.to_string(),
                Address::Unix(path) => format!("unix:{}", path.escaped()),
            };
            Failure::failed(format!(
                "cannot listen at --metrics-listen {place}: {error}"
            ))
            .hint("choose another port or path, or leave the option out")
        })
    }

    /// Waits for a connection, at most for `patience`, and answers it with what `text` returns.
    pub(super) fn answer_one(&self, patience: Duration, text: &dyn Fn() -> String) {
        let listener = match &self.0 {
            Listener::Tcp(listener) => listener.as_fd(),
            Listener::Unix(listener, ..) => listener.as_fd(),
        };
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        if !matches!(
            poll(&mut [PollFd::new(listener, PollFlags::POLLIN)], timeout),
            Ok(1)
        ) {
            return;
        }
        let answered = match &self.0 {
            Listener::Tcp(listener) => (listener.accept()).and_then(|(stream, _)| {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                serve(&stream, text)?;
                leave(&stream, TcpStream::shutdown)
            }),
            Listener::Unix(listener, ..) => (listener.accept()).and_then(|(stream, _)| {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                serve(&stream, text)?;
                leave(&stream, UnixStream::shutdown)
            }),
        };
        // A client that has left meanwhile gets no answer. Without descriptors the next attempt
        // would fail at once as well.
        if answered.is_err() {
            std::thread::sleep(AFTER_FAILURE);
        }
    }

    /// The address, with the port that the system has chosen for port 0.
    #[cfg(test)]
    fn port(&self) -> u16 {
        match &self.0 {
            Listener::Tcp(listener) => listener.local_addr().unwrap().port(),
            Listener::Unix(..) => 0,
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Listener::Unix(_, path, inode) = &self.0
            && inode_of(path) == *inode
        {
            let _ = fs::remove_file(path);
        }
    }
}

fn open_tcp(address: SocketAddr) -> io::Result<Listener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(Listener::Tcp(listener))
}

fn open_unix(path: &Path) -> io::Result<Listener> {
    // A socket that a killed daemon has left does not answer.
    if let Ok(meta) = fs::symlink_metadata(path) {
        if !meta.file_type().is_socket() {
            return Err(io::Error::other("something else is there, and no socket"));
        }
        match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path)?;
            }
            Err(error) => return Err(error),
            Ok(_) => return Err(io::Error::other("another program listens there")),
        }
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(Listener::Unix(listener, path.into(), inode_of(path)))
}

fn inode_of(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|meta| meta.ino())
}

/// Reads the head of a request, and writes the answer.
fn serve(mut stream: impl Read + Write, text: &dyn Fn() -> String) -> io::Result<()> {
    let head = read_head(&mut stream, Instant::now() + PATIENCE)?;
    let line = head.split(|&byte| byte == b'\r' || byte == b'\n').next();
    let line = String::from_utf8_lossy(line.unwrap_or_default());
    let mut words = line.split(' ');
    let (method, target) = (words.next(), words.next().unwrap_or_default());
    let path = target.split('?').next();
    let (status, body) = match (method, path) {
        (Some("GET" | "HEAD"), Some("/metrics")) => ("200 OK", text()),
        (Some("GET" | "HEAD"), Some("/")) => ("200 OK", "The metrics are at /metrics.\n".into()),
        (Some("GET" | "HEAD"), _) => ("404 Not Found", "The metrics are at /metrics.\n".into()),
        _ => ("405 Method Not Allowed", "Ask with GET.\n".into()),
    };
    let kind = match path {
        Some("/metrics") => TEXT,
        _ => "text/plain; charset=utf-8",
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.0 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    if method != Some("HEAD") {
        stream.write_all(body.as_bytes())?;
    }
    stream.flush()
}

/// Reads until the empty line after the head.
fn read_head(stream: &mut impl Read, until: Instant) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut some = [0; 1024];
    while head.len() < LONGEST && Instant::now() < until {
        let got = stream.read(&mut some)?;
        head.extend_from_slice(&some[..got]);
        let is_whole = head.windows(4).any(|end| end == b"\r\n\r\n")
            || head.windows(2).any(|end| end == b"\n\n");
        if is_whole {
            return Ok(head);
        }
        if got == 0 {
            break;
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// Says that no more comes, so that a client that waits for the end reads the whole answer.
fn leave<S>(stream: &S, shutdown: impl Fn(&S, Shutdown) -> io::Result<()>) -> io::Result<()> {
    shutdown(stream, Shutdown::Write)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_this_machine_are_accepted() {
        for good in [
            "127.0.0.1:9100",
            "[::1]:80",
            "localhost:1",
            "unix:/run/m.sock",
            "127.9.9.9:5",
        ] {
            good.parse::<Address>().unwrap();
        }
        use AddressError::{NoAddress, NotLoopback, Relative};
        for bad in [
            "",
            "9100",
            ":9100",
            "localhost",
            "example.org:80",
            "127.0.0.1",
        ] {
            assert_eq!(bad.parse::<Address>(), Err(NoAddress), "{bad}");
        }
        for open in ["0.0.0.0:9100", "[::]:9100", "192.168.1.1:80"] {
            assert!(
                matches!(open.parse::<Address>(), Err(NotLoopback(_))),
                "{open}"
            );
        }
        assert_eq!("unix:m.sock".parse::<Address>(), Err(Relative));
    }

    fn ask(door: &Door, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", door.port())).unwrap();
        stream.write_all(request).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        door.answer_one(Duration::from_secs(10), &|| "up 1\n".into());
        let mut answer = String::new();
        // A request that is refused unread may be answered with a reset.
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    #[test]
    fn each_request_gets_one_answer_and_garbage_none() {
        let door = Door::open(&"127.0.0.1:0".parse().unwrap()).unwrap();
        let answer = ask(&door, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nup 1\n"), "{answer}");
        assert!(ask(&door, b"GET /metrics?x=1 HTTP/1.0\r\n\r\n").ends_with("\nup 1\n"));
        assert!(ask(&door, b"GET / HTTP/1.0\n\n").contains("/metrics"));
        assert!(ask(&door, b"GET /etc HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 404"));
        assert!(ask(&door, b"POST /metrics HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 405"));
        let head = ask(&door, b"HEAD /metrics HTTP/1.0\r\n\r\n");
        assert!(
            head.contains("Content-Length: 5\r\n") && !head.contains("up 1"),
            "{head}"
        );
        assert_eq!(ask(&door, b"GET /metrics"), "");
        assert_eq!(ask(&door, &[b'a'; 2 * LONGEST]), "");
        // Still there.
        assert!(ask(&door, b"GET /metrics HTTP/1.0\r\n\r\n").ends_with("up 1\n"));
    }

    #[test]
    fn a_socket_left_behind_is_replaced_and_one_in_use_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.sock");
        let address = Address::Unix(path.clone());
        drop(UnixListener::bind(&path).unwrap());
        let door = Door::open(&address).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let failure = Door::open(&address).err().unwrap();
        assert!(failure.message.contains("another program"), "{failure}");
        drop(door);
        assert!(!path.exists());
        fs::write(&path, "text").unwrap();
        assert!(Door::open(&address).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
    }
}
