//! Reports to systemd, for units of `Type=notify`: one datagram to the socket in `NOTIFY_SOCKET`
//! for each report, see sd_notify(3). Without that variable nothing is sent.
//!
//! A report that cannot be sent is dropped: it helps the service manager, and nothing here depends
//! on it.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::monitor::Presence;
use super::service::Service;
use super::stop::Stop;
use crate::core::human_bytes;

/// How often the state is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often more time is asked for at the end, and how much.
const EXTEND_EVERY: Duration = Duration::from_secs(5);
const EXTENSION: Duration = Duration::from_secs(60);

/// The connection to the service manager.
#[derive(Debug)]
pub(super) struct Notifier {
    socket: UnixDatagram,
    to: SocketAddr,
    /// How long the manager waits for a sign of life.
    watchdog: Option<Duration>,
}

impl Notifier {
    /// The one that the environment names, if it does.
    pub(super) fn from_env() -> Option<Notifier> {
        let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
        let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|&time| is_ours && time > 0);
        let to = std::env::var_os("NOTIFY_SOCKET")?;
        let made = Notifier::new(&to, watchdog.map(Duration::from_micros));
        made.inspect_err(|error| tracing::warn!(%error, "NOTIFY_SOCKET cannot be used"))
            .ok()
    }

    fn new(to: &OsString, watchdog: Option<Duration>) -> io::Result<Notifier> {
        let to = match to.as_bytes() {
            // An abstract name is written with an @ in place of its first byte.
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(to)?,
            _ => {
                return Err(io::Error::other(
                    "it is neither a path nor an abstract name",
                ));
            }
        };
        let socket = UnixDatagram::unbound()?;
        // The manager may be busy; a thread that reports must not wait for it.
        socket.set_nonblocking(true)?;
        Ok(Notifier {
            socket,
            to,
            watchdog,
        })
    }

    fn send(&self, report: &str) {
        if let Err(error) = self.socket.send_to_addr(report.as_bytes(), &self.to) {
            tracing::debug!(%error, "cannot report to the service manager");
        }
    }

    /// Reports that the mount works.
    pub(super) fn ready(&self) {
        let pid = std::process::id();
        self.send(&format!("READY=1\nMAINPID={pid}\n"));
    }

    /// Reports that the mount ends, and asks for time for it.
    pub(super) fn stopping(&self) {
        self.send("STOPPING=1\n");
        self.extend();
    }

    fn extend(&self) {
        self.send(&format!("EXTEND_TIMEOUT_USEC={}\n", EXTENSION.as_micros()));
    }
}

/// Reports the state of the mount when it changes, signs of life, and at the end that more time is
/// needed, until `stop`.
pub(super) fn report(notifier: &Notifier, service: &Service, stop: &Stop) {
    let mut said = String::new();
    let mut extended: Option<Instant> = None;
    // Twice as often as the manager wants it, as sd_watchdog_enabled(3) advises.
    let every = (notifier.watchdog).map_or(LOOK_EVERY, |time| LOOK_EVERY.min(time / 2));
    while !stop.is_given() {
        // A daemon in which this blocks serves nobody: it gets no sign of life.
        let state = state(service);
        if notifier.watchdog.is_some() {
            notifier.send("WATCHDOG=1\n");
        }
        if state != said {
            notifier.send(&format!("STATUS={state}\n"));
            said = state;
        }
        let is_ending = service.ending.load(Ordering::Acquire);
        if is_ending && extended.is_none_or(|at| at.elapsed() >= EXTEND_EVERY) {
            // Not that it stops: an unmount of a mount in use fails, and the daemon goes on.
            notifier.extend();
            extended = Some(Instant::now());
        }
        stop.rest(every);
    }
}

/// The state in one line.
fn state(service: &Service) -> String {
    let (bytes, is_dirty) = {
        let state = service.index.lock();
        // An unknown state must not look safe.
        let is_dirty = state.anything_dirty().unwrap_or(true);
        (state.totals().dirty_bytes, is_dirty)
    };
    let waits = match is_dirty {
        true => format!("{} wait", human_bytes(bytes)),
        false => "nothing waits".into(),
    };
    if service.monitor.presence() != Presence::Attached {
        return format!("the drive is away, {waits}");
    }
    if service.drive.stalled().is_some() {
        return format!("the drive does not answer, {waits}");
    }
    match service.running.get() {
        Some((step, _)) if step.bytes_total > 0 => {
            let percent = step.bytes_done.saturating_mul(100) / step.bytes_total;
            format!("writing a batch, {}%", percent.min(100))
        }
        Some(_) => "writing a batch".into(),
        None if is_dirty => format!("not safe to unplug, {waits}"),
        None => "safe to unplug, nothing waits".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let mut bytes = [0; 256];
        let got = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..got]).into_owned()
    }

    #[test]
    fn reports_reach_a_path_and_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::new(&path.into_os_string(), None).unwrap();
        notifier.ready();
        assert!(heard(&socket).starts_with("READY=1\n"));
        let name = format!("ferryfs-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        let notifier = Notifier::new(&format!("@{name}").into(), None).unwrap();
        notifier.stopping();
        assert_eq!(heard(&socket), "STOPPING=1\n");
        assert!(heard(&socket).starts_with("EXTEND_TIMEOUT_USEC="));
    }

    #[test]
    fn a_manager_that_is_gone_or_busy_holds_nothing_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let notifier = Notifier::new(&path.clone().into_os_string(), None).unwrap();
        notifier.ready();
        let _socket = UnixDatagram::bind(&path).unwrap();
        for _ in 0..10_000 {
            notifier.ready();
        }
        assert!(Notifier::new(&"relative".into(), None).is_err());
    }
}
