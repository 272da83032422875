//! The daemon's log.
//!
//! While a mount is being made in the background, stderr leads to the user's terminal, which gets
//! plain messages. Log lines are kept in memory until the log file is known.

use std::fmt::{Debug, Write as _};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::core::printable_bytes;

/// The log filter, unless `FERRYFS_LOG` has another one.
const FILTER: &str = "warn,ferryfs=info,fuser=error";

/// How many bytes are kept until the log file is known.
const KEPT: usize = 256 << 10;

/// Where lines go.
enum Target {
    /// They are kept until the file is known.
    Kept(Vec<u8>),
    File(File),
    Stderr,
}

static TARGET: Mutex<Target> = Mutex::new(Target::Stderr);

/// Starts the log: on stderr in the `foreground`, else in the file that [`to_file`] opens later.
pub(super) fn start(foreground: bool) {
    if !foreground {
        *TARGET.lock() = Target::Kept(Vec::new());
    }
    let filter = EnvFilter::try_from_env("FERRYFS_LOG").unwrap_or_else(|_| EnvFilter::new(FILTER));
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(|| Unfailing);
    // Fails only if a test has started one already.
    let _ = tracing_subscriber::registry()
        .with(Interrupted)
        .with(lines.with_filter(filter))
        .try_init();
}

/// Makes the file at `path` the log, and writes to it what was logged so far. Has no effect in the
/// foreground.
///
/// # Errors
/// If it cannot be opened; log lines are then still kept in memory.
pub(super) fn to_file(path: &Path) -> io::Result<()> {
    let mut target = TARGET.lock();
    let Target::Kept(kept) = &*target else {
        return Ok(());
    };
    let mut file = crate::cache::private::own()
        .append(true)
        .create(true)
        .open(path)?;
    // A line that cannot be written is dropped.
    let _ = file.write_all(kept);
    *target = Target::File(file);
    Ok(())
}

/// A line that cannot be written is dropped. The logger would report an error on stderr, and panic
/// if that failed, too; a full or dead SSD must not end the daemon.
struct Unfailing;

impl Write for Unfailing {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = one_line(event);
        match &mut *TARGET.lock() {
            Target::Kept(kept) if kept.len() + line.len() <= KEPT => kept.extend(line.bytes()),
            Target::Kept(_) => {}
            Target::File(file) => drop(file.write(line.as_bytes())),
            Target::Stderr => drop(io::stderr().write(line.as_bytes())),
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An event as a line of the log. The formatter writes each event as a whole, with a line feed at
/// its end. Any other line feed is part of a name, and would forge a line.
fn one_line(event: &[u8]) -> String {
    let event = event.strip_suffix(b"\n").unwrap_or(event);
    printable_bytes(event) + "\n"
}

/// Drops one message of fuser, which logs an error when the kernel no longer wants a reply
/// (ENOENT). Each request whose program was interrupted by a signal ends so. Other failed replies
/// are logged.
struct Interrupted;

impl<S: Subscriber> Layer<S> for Interrupted {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        // Only events of that crate are checked; they come through the bridge of `log`.
        if *event.metadata().level() != tracing::Level::ERROR
            || event.metadata().target().starts_with("ferryfs")
        {
            return true;
        }
        let mut seen = Seen::default();
        event.record(&mut seen);
        !seen.is_unwanted_answer()
    }
}

#[derive(Default)]
struct Seen(String);

impl Seen {
    fn is_unwanted_answer(&self) -> bool {
        self.0.starts_with("Failed to send FUSE reply") && self.0.contains("(os error 2)")
    }
}

impl Visit for Seen {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            let _ = write!(self.0, "{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The output, as a writer for a formatter like that of the log.
    #[derive(Clone, Default)]
    struct Written(std::sync::Arc<Mutex<String>>);

    impl Write for Written {
        fn write(&mut self, event: &[u8]) -> io::Result<usize> {
            self.0.lock().push_str(&one_line(event));
            Ok(event.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn no_field_of_an_event_can_forge_a_line_or_reach_a_terminal() {
        use std::os::unix::ffi::OsStrExt;
        let evil =
            "a\n2026-01-01T00:00:00Z ERROR forged\x1b[2J\u{9b}1m\u{202e}\u{2028}\u{e0041}\u{feff}";
        let bytes = Path::new(std::ffi::OsStr::from_bytes(b"\xff\x9b\n"));
        let seen = Written::default();
        let to = seen.clone();
        let lines = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(move || to.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || {
            let error = io::Error::other(evil);
            tracing::warn!(evil, shown = %evil, debug = ?evil, %error, path = %bytes.display(), "said {evil}");
            let _span = tracing::info_span!("span", evil).entered();
            tracing::info!("in a span");
        });
        let text = seen.0.lock().clone();
        assert_eq!(text.matches('\n').count(), 2, "{text}");
        let hidden = |c| c != '\n' && crate::core::is_hidden(c);
        assert!(!text.contains(hidden), "{text}");
    }

    #[test]
    fn only_an_answer_that_nobody_wants_any_more_is_left_out() {
        let error = |errno| io::Error::from_raw_os_error(errno);
        let unwanted = |text: String| Seen(text).is_unwanted_answer();
        assert!(unwanted(format!(
            "Failed to send FUSE reply: {}",
            error(libc::ENOENT)
        )));
        assert!(!unwanted(format!(
            "Failed to send FUSE reply: {}",
            error(libc::EINVAL)
        )));
        assert!(!unwanted(format!(
            "Failed to send FUSE reply: {}",
            error(libc::ENOTDIR)
        )));
        assert!(!unwanted(format!(
            "something else: {}",
            error(libc::ENOENT)
        )));
    }
}
