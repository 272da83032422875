//! A reader of untrusted bytes, for the record of a batch and the segments of the catalog. It never
//! reads beyond its end, nor allocates memory because of a count alone.

use crate::core::{Name, NameError, RelPath, Timestamp};

/// The longest path in a record or segment, in bytes: 16 times `PATH_MAX`, because renames can make
/// a tree deeper than the longest path of a system call.
pub(crate) const MAX_PATH_BYTES: usize = 65_536;

/// Why bytes cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReadError {
    /// The layout is invalid.
    Malformed {
        /// The position, in bytes from the beginning.
        offset: usize,
        /// The problem.
        problem: &'static str,
    },
    /// A path or name is invalid.
    BadPath {
        /// The position, in bytes from the beginning.
        offset: usize,
        /// The reason.
        source: NameError,
    },
}

pub(crate) type Result<T> = std::result::Result<T, ReadError>;

/// A position in bytes, and the end that it must not pass. `at <= bytes.len()` always.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Reads `bytes` from `at` on.
    pub(crate) fn new(bytes: &'a [u8], at: usize) -> Reader<'a> {
        Reader {
            bytes,
            at: at.min(bytes.len()),
        }
    }

    pub(crate) fn malformed(&self, problem: &'static str) -> ReadError {
        ReadError::Malformed {
            offset: self.at,
            problem,
        }
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(length);
        match end.and_then(|end| self.bytes.get(self.at..end)) {
            Some(taken) => {
                self.at += length;
                Ok(taken)
            }
            None => Err(self.malformed("it says that more follows than does")),
        }
    }

    /// Returns a reader of the next `length` bytes, and skips them here. Offsets stay those of the
    /// whole.
    pub(crate) fn split(&mut self, length: u64) -> Result<Reader<'a>> {
        let begin = self.at;
        self.take(usize::try_from(length).unwrap_or(usize::MAX))?;
        Ok(Reader::new(&self.bytes[..self.at], begin))
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(crate) fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn i64(&mut self) -> Result<i64> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    pub(crate) fn time(&mut self) -> Result<Timestamp> {
        self.i64().map(Timestamp)
    }

    /// Reads a length (2 bytes) and that many bytes.
    pub(crate) fn short(&mut self) -> Result<Box<[u8]>> {
        let length = usize::from(self.u16()?);
        Ok(self.take(length)?.into())
    }

    /// Reads a length (4 bytes) and that many bytes, at most `most`.
    pub(crate) fn long(&mut self, most: usize, problem: &'static str) -> Result<Box<[u8]>> {
        let length = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        if length > most {
            return Err(self.malformed(problem));
        }
        Ok(self.take(length)?.into())
    }

    /// Reads a length (4 bytes) and a path.
    pub(crate) fn path(&mut self) -> Result<RelPath> {
        let length = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        if length > MAX_PATH_BYTES {
            return Err(self.malformed("a path is longer than any can be"));
        }
        let bytes = self.take(length)?;
        self.as_path(bytes)
    }

    /// Checks `bytes`, whose end has just been read, as a path.
    pub(crate) fn as_path(&self, bytes: &[u8]) -> Result<RelPath> {
        let offset = self.at.saturating_sub(bytes.len());
        RelPath::parse(bytes).map_err(|source| ReadError::BadPath { offset, source })
    }

    /// Reads a length (2 bytes) and a name.
    pub(crate) fn name(&mut self) -> Result<Name> {
        let length = usize::from(self.u16()?);
        let offset = self.at;
        let bytes = self.take(length)?;
        Name::new(bytes).map_err(|source| ReadError::BadPath { offset, source })
    }

    /// Reads `count` items of at least `least` bytes each.
    pub(crate) fn items<T>(
        &mut self,
        count: u64,
        least: usize,
        item: impl Fn(&mut Reader<'a>) -> Result<T>,
    ) -> Result<Vec<T>> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if count > self.remaining() / least {
            return Err(self.malformed("it counts more than there is room for"));
        }
        let mut items = Vec::with_capacity(count.min(4096));
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }

    /// Reads a count (8 bytes) and that many items, up to the end.
    pub(crate) fn all<T>(
        &mut self,
        least: usize,
        item: impl Fn(&mut Reader<'a>) -> Result<T>,
    ) -> Result<Vec<T>> {
        let count = self.u64()?;
        let items = self.items(count, least, item)?;
        if !self.is_at_end() {
            return Err(self.malformed("bytes are left over at the end"));
        }
        Ok(items)
    }
}

/// Writes a length (4 bytes) and the bytes.
pub(crate) fn put_long(out: &mut Vec<u8>, bytes: &[u8]) {
    // A length that does not fit becomes a length that every reader refuses.
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Writes a length (2 bytes) and the bytes.
pub(crate) fn put_short(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Writes a path as [`Reader::path`] reads it.
pub(crate) fn put_path(out: &mut Vec<u8>, path: &RelPath) {
    put_long(out, path.as_bytes());
}
