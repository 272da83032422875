//! Patterns in the syntax of gitignore(5), for what stays local, what is pinned and what expires.
//!
//! As in git a pattern is compared with the path from the root of the mount, the last one that
//! matches counts, and nothing below a directory that matches is included again by `!`. Case
//! counts.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use crate::core::RelPath;

/// Why a pattern is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It has no characters, or is a comment.
    #[error("is empty or a comment, and matches nothing")]
    Empty,
    /// It is not in the syntax.
    #[error("is no pattern of gitignore(5): {0}")]
    Syntax(String),
    /// All files match.
    #[error("matches everything")]
    Everything,
}

/// Names that no pattern of a sensible list matches all of.
const UNRELATED: [&str; 5] = ["a", "Zw-17_k", "notes.txt", "7.tar.gz", ".q"];

/// A list of patterns.
#[derive(Clone, Debug, Default)]
pub struct Patterns {
    matcher: Option<Gitignore>,
    lines: Vec<String>,
    /// A pattern names a path and not only a name, so that a moved directory may have other
    /// matches below it than before.
    has_paths: bool,
}

impl PartialEq for Patterns {
    fn eq(&self, other: &Patterns) -> bool {
        self.lines == other.lines
    }
}

impl Patterns {
    /// Compiles a list. An empty one matches nothing.
    ///
    /// # Errors
    /// The first pattern that is not accepted, with the reason.
    ///
    /// # Examples
    ///
    /// ```
    /// use ferryfs::core::RelPath;
    /// use ferryfs::plan::patterns::Patterns;
    ///
    /// let lines = ["tmp/".to_owned(), "*.part".to_owned()];
    /// let patterns = Patterns::new(&lines).unwrap();
    /// assert!(patterns.matches(&RelPath::fixed("a/tmp/b.mkv"), false));
    /// assert!(patterns.matches(&RelPath::fixed("b.mkv.part"), false));
    /// assert!(!patterns.matches(&RelPath::fixed("b.mkv"), false));
    /// ```
    pub fn new(lines: &[String]) -> Result<Patterns, (String, PatternError)> {
        if lines.is_empty() {
            return Ok(Patterns::default());
        }
        let mut builder = GitignoreBuilder::new("");
        for line in lines {
            check(line).map_err(|error| (line.clone(), error))?;
            builder
                .add_line(None, line)
                .map_err(|error| (line.clone(), PatternError::Syntax(error.to_string())))?;
        }
        let matcher = builder.build().map_err(|error| {
            let all = lines.join(", ");
            (all, PatternError::Syntax(error.to_string()))
        })?;
        Ok(Patterns {
            matcher: Some(matcher),
            lines: lines.to_vec(),
            has_paths: lines.iter().any(|line| names_a_path(line)),
        })
    }

    /// Returns whether there are no patterns.
    pub fn is_empty(&self) -> bool {
        self.matcher.is_none()
    }

    /// Returns the patterns as they were written.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// Returns whether a pattern is about more than the last name of a path.
    pub fn has_paths(&self) -> bool {
        self.has_paths
    }

    /// Returns whether the path matches: itself, or a directory above it.
    pub fn matches(&self, path: &RelPath, is_dir: bool) -> bool {
        let Some(matcher) = &self.matcher else {
            return false;
        };
        let bytes = path.as_bytes();
        let ends = (bytes.iter().enumerate())
            .filter(|(_, byte)| **byte == b'/')
            .map(|(at, _)| at);
        // From the top, as git does: what is in an excluded directory is not looked at.
        ends.map(|end| (&bytes[..end], true))
            .chain([(bytes, is_dir)])
            .any(|(part, is_dir)| is_excluded(matcher, part, is_dir))
    }

    /// Returns whether the last name of the path matches, for a caller that knows that no directory
    /// above it does.
    pub fn matches_itself(&self, path: &RelPath, is_dir: bool) -> bool {
        (self.matcher.as_ref()).is_some_and(|it| is_excluded(it, path.as_bytes(), is_dir))
    }

    /// Returns whether all files, or all directories at the root, match. A list that includes some
    /// again by `!` is not everything.
    pub fn is_everything(&self) -> bool {
        if self.lines.iter().any(|line| line.starts_with('!')) {
            return false;
        }
        let all = |is_dir| {
            (UNRELATED.iter()).all(|name| {
                (self.matcher.as_ref()).is_some_and(|it| is_excluded(it, name.as_bytes(), is_dir))
            })
        };
        all(false) || all(true)
    }
}

fn is_excluded(matcher: &Gitignore, path: &[u8], is_dir: bool) -> bool {
    let path = Path::new(OsStr::from_bytes(path));
    matches!(matcher.matched(path, is_dir), Match::Ignore(_))
}

/// Returns whether there is a slash in the pattern before its end.
fn names_a_path(line: &str) -> bool {
    let line = line.trim_start_matches('!').trim_end();
    line.strip_suffix('/').unwrap_or(line).contains('/')
}

/// Checks one pattern by itself.
///
/// # Errors
/// [`PatternError::Empty`] or [`PatternError::Syntax`].
pub fn check(line: &str) -> Result<(), PatternError> {
    let mut builder = GitignoreBuilder::new("");
    let syntax = |error: ignore::Error| PatternError::Syntax(reason(&error));
    builder.add_line(None, line).map_err(syntax)?;
    let matcher = builder.build().map_err(syntax)?;
    let is_nothing = line
        .trim_start_matches('!')
        .trim()
        .trim_matches('/')
        .is_empty();
    match matcher.is_empty() || is_nothing || line.contains(['\n', '\0']) {
        true => Err(PatternError::Empty),
        false => Ok(()),
    }
}

/// The reason in an error, without the pattern, which the caller names.
fn reason(error: &ignore::Error) -> String {
    match error {
        ignore::Error::Glob { err, .. } => err.clone(),
        ignore::Error::WithLineNumber { err, .. } | ignore::Error::WithPath { err, .. } => {
            reason(err)
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(lines: &[&str]) -> Patterns {
        let lines: Vec<String> = lines.iter().map(|line| (*line).into()).collect();
        Patterns::new(&lines).unwrap()
    }

    fn path(text: &str) -> RelPath {
        RelPath::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn patterns_mean_what_they_mean_in_git() {
        let some = patterns(&[
            "tmp/",
            "*.part",
            "/build",
            "a/b/c",
            "**/deep/x",
            "!keep.part",
        ]);
        for (text, is_dir, wanted) in [
            ("tmp", true, true),
            ("tmp", false, false),
            ("x/tmp/y", false, true),
            ("x/film.part", false, true),
            ("x/keep.part", false, false),
            // Nothing below an excluded directory is included again.
            ("tmp/keep.part", false, true),
            ("build", false, true),
            ("build/x", false, true),
            ("x/build", false, false),
            ("a/b/c", false, true),
            ("x/a/b/c", false, false),
            ("q/deep/x", false, true),
            ("film.mkv", false, false),
        ] {
            assert_eq!(some.matches(&path(text), is_dir), wanted, "{text}");
        }
        assert!(!Patterns::default().matches(&path("a"), false));
    }

    #[test]
    fn names_that_are_no_text_are_compared_by_their_bytes() {
        let some = patterns(&["*.part"]);
        let odd = RelPath::parse(b"d/\xff\xfe.part").unwrap();
        assert!(some.matches(&odd, false));
        assert!(!some.matches(&RelPath::parse(b"\xff.par").unwrap(), false));
    }

    #[test]
    fn what_matches_everything_is_known() {
        for lines in [
            &["*"][..],
            &["**"],
            &["/*"],
            &["/**"],
            &["?*"],
            &["*/"],
            &["a", "*"],
        ] {
            assert!(patterns(lines).is_everything(), "{lines:?}");
        }
        for lines in [&["*.part"][..], &["*", "!*.mkv"], &["tmp/"], &[".*"]] {
            assert!(!patterns(lines).is_everything(), "{lines:?}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for line in ["", "  ", "# x", "/", "!", "!/", "//"] {
            assert_eq!(check(line), Err(PatternError::Empty), "{line:?}");
        }
        for line in ["[z-a]", "x/[9-0]y"] {
            let found = check(line);
            assert!(
                matches!(found, Err(PatternError::Syntax(_))),
                "{line} {found:?}"
            );
        }
        assert_eq!(check("*.part"), Ok(()));
        assert!(patterns(&["a/b"]).has_paths() && patterns(&["/a"]).has_paths());
        assert!(!patterns(&["a/", "*.x", "!b/"]).has_paths());
    }
}
