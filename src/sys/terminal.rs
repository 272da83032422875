//! Output to the terminal of the user who started this process.

use std::io::{self, Write};

use crate::core::printable;

/// Writes one line to stderr, escaped. A failure is ignored: there is no other place to report it.
pub fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "{}", printable(line));
}
