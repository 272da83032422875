//! Names and paths: bytes that are checked once, so that no other code meets `..`, a slash or a
//! NUL.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;

use crate::core::escape::ForeignText;

/// Longest name that Linux passes to a file system, in bytes (`NAME_MAX`); the longest in a mount.
pub const NAME_MAX: usize = 255;

/// Longest name on a backend, in bytes. 255 UTF-16 units, where a backend counts these, are up to
/// 765 bytes of UTF-8.
pub const STORED_NAME_MAX: usize = 1024;

/// Greatest depth of a directory below a root. A deeper one has no usable absolute path:
/// `PATH_MAX`, which includes the NUL, has space for this many one-byte names, each with a slash.
pub const MAX_DEPTH: usize = 2048;

/// One component of a path: 1 to [`STORED_NAME_MAX`] bytes without `/` and NUL, and not `.` or
/// `..`. Names of a mount are shorter, see [`Name::is_mountable`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Box<[u8]>);

/// Why bytes are not a valid [`Name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty, `.`, `..`, or with a slash or NUL.
    #[error("not a valid file name")]
    Invalid,
    /// Longer than [`NAME_MAX`], or [`STORED_NAME_MAX`] for a name on a backend.
    #[error("file name is too long")]
    TooLong,
}

impl Name {
    /// Checks `bytes` as a name of a mount or of a backend.
    ///
    /// # Errors
    /// [`NameError`] if they are not valid.
    pub fn new(bytes: &[u8]) -> Result<Name, NameError> {
        if bytes.len() > STORED_NAME_MAX {
            return Err(NameError::TooLong);
        }
        if bytes.is_empty() || bytes == b"." || bytes == b".." {
            return Err(NameError::Invalid);
        }
        if bytes.iter().any(|&b| b == b'/' || b == 0) {
            return Err(NameError::Invalid);
        }
        Ok(Name(bytes.into()))
    }

    /// Checks `bytes` as a name of a mount.
    ///
    /// # Errors
    /// [`NameError`] if they are not valid, or longer than [`NAME_MAX`].
    pub fn of_mount(bytes: &[u8]) -> Result<Name, NameError> {
        if bytes.len() > NAME_MAX {
            return Err(NameError::TooLong);
        }
        Name::new(bytes)
    }

    /// Returns whether it is not too long for a mount ([`NAME_MAX`]).
    pub fn is_mountable(&self) -> bool {
        self.0.len() <= NAME_MAX
    }

    /// Returns the bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the name for system calls.
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.escaped())
    }
}

/// For people, see [`ForeignText::escaped`]; not suitable for making names.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.escaped())
    }
}

/// A path relative to some root: names joined by `/`; empty for the root itself. Never absolute,
/// never with `.` or `..`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct RelPath(Vec<u8>);

impl RelPath {
    /// Returns the root itself.
    pub fn root() -> RelPath {
        RelPath::default()
    }

    /// Parses names joined by `/`.
    ///
    /// # Errors
    /// [`NameError`] if a component is not a valid [`Name`].
    ///
    /// # Examples
    ///
    /// ```
    /// use ferryfs::core::RelPath;
    ///
    /// assert!(RelPath::parse(b"photos/2026").is_ok());
    /// assert!(RelPath::parse(b"").is_ok_and(|path| path.is_root()));
    /// assert!(RelPath::parse(b"/etc/passwd").is_err());
    /// assert!(RelPath::parse(b"photos/../..").is_err());
    /// ```
    pub fn parse(bytes: &[u8]) -> Result<RelPath, NameError> {
        if !bytes.is_empty() {
            for component in bytes.split(|&b| b == b'/') {
                Name::new(component)?;
            }
        }
        Ok(RelPath(bytes.to_vec()))
    }

    /// Returns a path that is a literal in the source, as in `RelPath::fixed(".ferryfs/staging")`.
    ///
    /// # Panics
    /// If the literal is not a valid path, which is a mistake in the source.
    pub fn fixed(literal: &'static str) -> RelPath {
        RelPath::parse(literal.as_bytes()).expect("a literal path is well formed")
    }

    /// Returns the path of these names, outermost first.
    pub fn of_names<'n>(names: impl Iterator<Item = &'n Name> + Clone) -> RelPath {
        let length = names.clone().map(|name| name.0.len() + 1).sum();
        let mut bytes = Vec::with_capacity(length);
        for name in names {
            if !bytes.is_empty() {
                bytes.push(b'/');
            }
            bytes.extend_from_slice(&name.0);
        }
        RelPath(bytes)
    }

    /// Returns this path with one more component.
    pub fn join(&self, name: &Name) -> RelPath {
        self.join_bytes(name.as_bytes())
    }

    /// Returns the path `below`, relative to this directory.
    pub fn join_path(&self, below: &RelPath) -> RelPath {
        if below.is_root() {
            return self.clone();
        }
        self.join_bytes(&below.0)
    }

    fn join_bytes(&self, below: &[u8]) -> RelPath {
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + below.len());
        bytes.extend_from_slice(&self.0);
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(below);
        RelPath(bytes)
    }

    /// Returns the parent directory and the last name; `None` for the root.
    ///
    /// # Examples
    ///
    /// ```
    /// use ferryfs::core::RelPath;
    ///
    /// let (dir, name) = RelPath::fixed("photos/2026/a.jpg").split_last().unwrap();
    /// assert_eq!(dir, RelPath::fixed("photos/2026"));
    /// assert_eq!(name.as_bytes(), b"a.jpg");
    /// assert_eq!(RelPath::root().split_last(), None);
    /// ```
    pub fn split_last(&self) -> Option<(RelPath, Name)> {
        if self.0.is_empty() {
            return None;
        }
        let (parent, last) = match self.0.iter().rposition(|&b| b == b'/') {
            Some(slash) => (&self.0[..slash], &self.0[slash + 1..]),
            None => (&[][..], &self.0[..]),
        };
        Some((RelPath(parent.to_vec()), Name(last.into())))
    }

    /// Returns the number of components: 0 for the root.
    pub fn depth(&self) -> usize {
        if self.0.is_empty() {
            0
        } else {
            1 + self.0.iter().filter(|&&b| b == b'/').count()
        }
    }

    /// Returns the components, outermost first.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|&b| b == b'/').filter(|c| !c.is_empty())
    }

    /// Compares in tree order: a directory before its contents, siblings by the bytes of their
    /// names.
    pub fn in_tree_order(&self, other: &RelPath) -> Ordering {
        let (one, other) = (&self.0[..], &other.0[..]);
        let same = common_prefix(one, other);
        match (one.get(same), other.get(same)) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) => Ordering::Less,
            (Some(_), None) => Ordering::Greater,
            // A name that ends here comes before a longer one.
            (Some(b'/'), Some(_)) => Ordering::Less,
            (Some(_), Some(b'/')) => Ordering::Greater,
            (Some(one), Some(other)) => one.cmp(other),
        }
    }

    /// Returns whether this is `dir` or below it.
    ///
    /// # Examples
    ///
    /// ```
    /// use ferryfs::core::RelPath;
    ///
    /// let dir = RelPath::fixed("photos");
    /// assert!(dir.is_in_or_at(&dir));
    /// assert!(RelPath::fixed("photos/2026").is_in_or_at(&dir));
    /// assert!(!RelPath::fixed("photos-old").is_in_or_at(&dir));
    /// ```
    pub fn is_in_or_at(&self, dir: &RelPath) -> bool {
        match self.0.strip_prefix(&dir.0[..]) {
            Some(rest) => rest.is_empty() || rest[0] == b'/' || dir.is_root(),
            None => false,
        }
    }

    /// Returns whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the path for system calls, relative.
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }
}

/// Returns the length of the common prefix. Compares in chunks, because paths of one tree have long
/// common prefixes.
fn common_prefix(one: &[u8], other: &[u8]) -> usize {
    const PIECE: usize = 64;
    let pieces = one.chunks_exact(PIECE).zip(other.chunks_exact(PIECE));
    let begin = PIECE * pieces.take_while(|(one, other)| one == other).count();
    let rest = one[begin..].iter().zip(&other[begin..]);
    begin + rest.take_while(|(one, other)| one == other).count()
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.escaped())
    }
}

/// For people, see [`ForeignText::escaped`]; not suitable for making paths.
impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.escaped())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_leaves_a_directory_is_a_name() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
            assert_eq!(Name::new(bad), Err(NameError::Invalid), "{bad:?}");
        }
        assert!(Name::of_mount(&[0xff; 255]).is_ok());
        assert_eq!(Name::of_mount(&[b'x'; 256]), Err(NameError::TooLong));
        assert!(Name::new(&[b'x'; 1024]).is_ok_and(|name| !name.is_mountable()));
        assert_eq!(Name::new(&[b'x'; 1025]), Err(NameError::TooLong));
    }

    #[test]
    fn a_path_with_a_hole_or_a_way_out_is_refused() {
        for bad in [&b"/a"[..], b"a//b", b"a/", b"a/../b", b"./a"] {
            assert!(RelPath::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn split_last_undoes_join() {
        let dir = RelPath::fixed("a/b");
        let name = Name::new(b"c").unwrap();
        assert_eq!(dir.join(&name).split_last(), Some((dir, name)));
        assert_eq!(RelPath::root().split_last(), None);
        assert_eq!(RelPath::fixed("a/b").depth(), 2);
    }
}
