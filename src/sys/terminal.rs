//! Output to the terminal of the user who started this process.

use std::io::{self, Write};

use crate::core::printable;

/// Returns the width and the height of the terminal that stdout is, in columns and lines; `None` if
/// it is none, or does not know.
pub fn size_of_stdout() -> Option<(usize, usize)> {
    // SAFETY: winsize is plain data, for which all zeros is a value.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: the call writes a winsize, and `size` outlives it.
    let result = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    let known = result == 0 && size.ws_col > 0 && size.ws_row > 0;
    known.then(|| (size.ws_col.into(), size.ws_row.into()))
}

/// Writes one line to stderr, escaped. A failure is ignored: there is no other place to report it.
pub fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "{}", printable(line));
}
