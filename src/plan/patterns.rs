//! Patterns of paths, in the syntax of `.gitignore`. Pure: the patterns come from the
//! configuration, never from a file on a drive.

use std::fmt;
use std::path::Path;

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use crate::core::RelPath;

/// A list of patterns. A later one counts more; `!` at its beginning takes an earlier one back.
#[derive(Clone)]
pub struct Patterns(Gitignore);

/// A pattern that is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the pattern '{pattern}' is not accepted: {reason}")]
pub struct PatternError {
    /// The pattern.
    pub pattern: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Patterns {
    /// Parses the lines of a list.
    ///
    /// # Errors
    /// [`PatternError`] for the first line that is not accepted.
    ///
    /// # Examples
    ///
    /// ```
    /// use ferryfs::core::RelPath;
    /// use ferryfs::plan::patterns::Patterns;
    ///
    /// let patterns = Patterns::parse(["*.tmp", "/cache/"]).unwrap();
    /// assert!(patterns.matches(&RelPath::parse(b"a/b.tmp").unwrap(), false));
    /// assert!(patterns.matches(&RelPath::parse(b"cache/x").unwrap(), false));
    /// assert!(!patterns.matches(&RelPath::parse(b"a/cache").unwrap(), false));
    /// ```
    pub fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Patterns, PatternError> {
        let refused = |pattern: &str, error: ignore::Error| PatternError {
            pattern: pattern.into(),
            reason: error.to_string(),
        };
        let mut builder = GitignoreBuilder::new("");
        for line in lines {
            (builder.add_line(None, line)).map_err(|error| refused(line, error))?;
        }
        Ok(Patterns(builder.build().map_err(|e| refused("", e))?))
    }

    /// Returns whether the file or directory at `path`, or a directory above it, matches.
    pub fn matches(&self, path: &RelPath, is_dir: bool) -> bool {
        use std::os::unix::ffi::OsStrExt;
        let path = Path::new(std::ffi::OsStr::from_bytes(path.as_bytes()));
        self.0.matched_path_or_any_parents(path, is_dir).is_ignore()
    }
}

impl fmt::Debug for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} patterns", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_covers_what_is_below_it_and_can_be_taken_back() {
        let patterns = Patterns::parse(["node_modules/", "*.log", "!keep.log"]).unwrap();
        for (path, expected) in [
            ("a/node_modules/b/c", true),
            ("a/x.log", true),
            ("keep.log", false),
            ("node_modules.txt", false),
        ] {
            let path = RelPath::parse(path.as_bytes()).unwrap();
            assert_eq!(patterns.matches(&path, false), expected, "{path}");
        }
        let odd = RelPath::parse(b"\xff/x.log").unwrap();
        assert!(patterns.matches(&odd, false));
        assert!(Patterns::parse(["[z-a]"]).is_err());
        assert!(!Patterns::parse([]).unwrap().matches(&odd, false));
    }
}
