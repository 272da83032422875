//! Names and paths: bytes, checked once, so that nothing behind this door meets `..`, a slash or a NUL again.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;

use super::escape::ForeignText;

/// Longest name that Linux hands to a file system, in bytes (`NAME_MAX`), and so the longest in a mount.
pub const NAME_MAX: usize = 255;

/// Longest name on a backend, in bytes. Where names are counted in UTF-16 units, 255 of those are up to 765 bytes of UTF-8.
pub const STORED_NAME_MAX: usize = 1024;

/// How many directories may be one in the other below a root. Deeper ones could be named by no absolute path: `PATH_MAX`, which counts
/// the NUL at its end, has room for as many names of one byte, each with a slash.
pub const MAX_DEPTH: usize = 2048;

/// One component of a path: 1 to [`STORED_NAME_MAX`] bytes, any but `/` and NUL, and neither `.` nor `..`. Those of a mount are
/// shorter, see [`Name::is_mountable`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Box<[u8]>);

/// Why bytes are no [`Name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty, `.`, `..`, or with a slash or NUL inside.
    #[error("not a valid file name")]
    Invalid,
    /// Longer than [`NAME_MAX`], or [`STORED_NAME_MAX`] for a name on a backend.
    #[error("file name is too long")]
    TooLong,
}

impl Name {
    /// Takes `bytes` as a name, be it of a mount or of a backend.
    ///
    /// # Errors
    /// [`NameError`] if they are none.
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

    /// Takes `bytes` as a name of a mount.
    ///
    /// # Errors
    /// [`NameError`] if they are none, also if they are longer than [`NAME_MAX`].
    pub fn of_mount(bytes: &[u8]) -> Result<Name, NameError> {
        if bytes.len() > NAME_MAX {
            return Err(NameError::TooLong);
        }
        Name::new(bytes)
    }

    /// Whether a mount can show it: whether it is no longer than [`NAME_MAX`].
    pub fn is_mountable(&self) -> bool {
        self.0.len() <= NAME_MAX
    }

    /// The name's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name as the operating system takes it.
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.escaped())
    }
}

/// As people are shown it, see [`ForeignText::escaped`]. Not for making names of it.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.escaped())
    }
}

/// A path below some root: names joined by `/`, empty for the root itself. Never absolute, never with `.` or `..`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct RelPath(Vec<u8>);

impl RelPath {
    /// The root itself.
    pub fn root() -> RelPath {
        RelPath::default()
    }

    /// Parses names joined by `/`.
    ///
    /// # Errors
    /// [`NameError`] if any component is no [`Name`].
    pub fn parse(bytes: &[u8]) -> Result<RelPath, NameError> {
        if !bytes.is_empty() {
            for component in bytes.split(|&b| b == b'/') {
                Name::new(component)?;
            }
        }
        Ok(RelPath(bytes.to_vec()))
    }

    /// A path spelled out in the source, as in `RelPath::fixed(".ferryfs/staging")`.
    ///
    /// # Panics
    /// If the literal is no path, which is a mistake in the source.
    pub fn fixed(literal: &'static str) -> RelPath {
        RelPath::parse(literal.as_bytes()).expect("a literal path is well formed")
    }

    /// The path of these names, outermost first.
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

    /// This path with one more component.
    pub fn join(&self, name: &Name) -> RelPath {
        self.join_bytes(name.as_bytes())
    }

    /// What has the path `below` in the directory that has this one.
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

    /// The directory that holds this path and its last name; `None` for the root.
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

    /// How many names deep: 0 for the root.
    pub fn depth(&self) -> usize {
        if self.0.is_empty() {
            0
        } else {
            1 + self.0.iter().filter(|&&b| b == b'/').count()
        }
    }

    /// The components, outermost first.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|&b| b == b'/').filter(|c| !c.is_empty())
    }

    /// The order of a walk through a tree: a directory before what is in it, by the bytes of the names.
    pub fn in_tree_order(&self, other: &RelPath) -> Ordering {
        let (one, other) = (&self.0[..], &other.0[..]);
        let same = common_prefix(one, other);
        match (one.get(same), other.get(same)) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) => Ordering::Less,
            (Some(_), None) => Ordering::Greater,
            // A name that ends here stands before one that goes on.
            (Some(b'/'), Some(_)) => Ordering::Less,
            (Some(_), Some(b'/')) => Ordering::Greater,
            (Some(one), Some(other)) => one.cmp(other),
        }
    }

    /// Whether this is `dir`, or in it at any depth.
    pub fn is_in_or_at(&self, dir: &RelPath) -> bool {
        match self.0.strip_prefix(&dir.0[..]) {
            Some(rest) => rest.is_empty() || rest[0] == b'/' || dir.is_root(),
            None => false,
        }
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The path's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The path as the operating system takes it, relative.
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }
}

/// How many bytes two paths begin with in common. Compared in pieces, as paths of one tree share most of what they are.
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

/// As people are shown it, see [`ForeignText::escaped`]. Not for making paths of it.
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
