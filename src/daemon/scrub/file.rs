//! A look at one file of the drive.
//!
//! A file is damaged only if all of this holds: size and time are what the index says, before it
//! was read and after; the index says the same after the read as before; and it was read twice with
//! wrong bytes. Whatever has changed meanwhile is left out.

use std::io;

use super::pass::{Halt, Pass};
use crate::core::{ContentHash, FileKind, RelPath};
use crate::drive::{BackendError, Look, ReadFile};
use crate::index::PlacedEntry;
use crate::plan::merge::{Comparison, compare};
use crate::plan::planner::NameKey;
use crate::vfs::drive_files::expected;
use crate::vfs::{Damage, FsError};

/// The size of one read in bytes.
const BLOCK: usize = 1 << 20;

/// No hash is noted of a file that was changed less than this long ago, in nanoseconds: a change
/// within the granularity of its time would not show.
const YOUNG: i64 = 10_000_000_000;

/// How often a file is begun again that could not be read because the drive did not answer.
pub(super) const TRIES: u32 = 3;

/// What was seen of a file.
#[derive(Debug)]
pub(super) enum Seen {
    /// It was not read, or has changed meanwhile.
    LeftOut,
    /// It was read to its end.
    Whole {
        /// It has the bytes that are known.
        compared: bool,
        /// They are known from now on.
        recorded: bool,
    },
    /// It was wrong once, and right the second time.
    Unsteady(String),
    /// It has wrong bytes, or cannot be read; in words.
    Damaged(Damage, String),
    /// It cannot be read, and that is no damage; or it is unknown which bytes are right.
    Unreadable(String),
}

/// The result of a read.
pub(super) enum Reading {
    Bytes(ContentHash),
    /// The medium does not return a part.
    Bad(String),
    /// Another reason.
    Refused(String),
    Gone,
    /// The drive did not answer for a while.
    Again,
}

impl Pass<'_> {
    /// Looks at the file at `path`, of which the index says `entry`.
    ///
    /// # Errors
    /// If the scrub is halted.
    pub(super) fn look_at(
        &mut self,
        key: &NameKey,
        entry: &PlacedEntry,
        path: &RelPath,
    ) -> Result<Seen, Halt> {
        if self.service.fs.is_at_rest(entry.ino)? != Some(true) {
            return Ok(Seen::LeftOut);
        }
        if let Some(seen) = self.differs(entry, path)? {
            return Ok(seen);
        }
        let first = self.read(path, entry.size)?;
        if !self.is_as_before(key, entry, path)? {
            return Ok(Seen::LeftOut);
        }
        match (&first, entry.hash) {
            (Reading::Bytes(found), None) => self.record(key, entry, *found),
            (Reading::Bytes(found), Some(known)) if *found == known => Ok(Seen::Whole {
                compared: true,
                recorded: false,
            }),
            (Reading::Bytes(_) | Reading::Bad(_), _) => self.confirm(key, entry, path, first),
            (Reading::Gone, _) => Ok(Seen::LeftOut),
            (Reading::Refused(why), _) => Ok(Seen::Unreadable(why.clone())),
            (Reading::Again, _) => Ok(Seen::Unreadable(
                "the drive did not answer while it was read".into(),
            )),
        }
    }

    /// Notes the hash of a file of which none was known.
    fn record(&self, key: &NameKey, entry: &PlacedEntry, found: ContentHash) -> Result<Seen, Halt> {
        let age = self.service.fs.now().0.saturating_sub(entry.mtime.0);
        if age < YOUNG || self.service.read_only {
            return Ok(Seen::Whole {
                compared: false,
                recorded: false,
            });
        }
        Ok(match self.service.fs.note_hash(key, entry, found)? {
            true => Seen::Whole {
                compared: false,
                recorded: true,
            },
            false => Seen::Unreadable(
                "it differs from its copy in the cache, and no hash says which one is right; \
                 compare both, and write the right one again through the mount"
                    .into(),
            ),
        })
    }

    /// Reads a file a second time that was wrong the `first` time.
    fn confirm(
        &mut self,
        key: &NameKey,
        entry: &PlacedEntry,
        path: &RelPath,
        first: Reading,
    ) -> Result<Seen, Halt> {
        let second = self.read(path, entry.size)?;
        if !self.is_as_before(key, entry, path)? {
            return Ok(Seen::LeftOut);
        }
        let (what, found) = match (first, second) {
            (_, Reading::Bytes(found)) if entry.hash.is_none_or(|known| known == found) => {
                return Ok(Seen::Unsteady(
                    "the drive returned it wrongly at first, and rightly the second time; check \
                     the drive and its cable"
                        .into(),
                ));
            }
            (Reading::Bytes(one), Reading::Bytes(other)) if one == other => (CHANGED, Some(one)),
            (Reading::Bytes(_), Reading::Bytes(_)) => (UNSTEADY, None),
            (Reading::Bad(why), _) | (_, Reading::Bad(why)) => {
                let damage = damage(key, entry, None);
                return Ok(Seen::Damaged(damage, why));
            }
            (_, Reading::Refused(why)) => return Ok(Seen::Unreadable(why)),
            _ => return Ok(Seen::LeftOut),
        };
        Ok(Seen::Damaged(damage(key, entry, found), what.into()))
    }

    /// Returns what there is to say of a file that is not the one in the index.
    fn differs(&self, entry: &PlacedEntry, path: &RelPath) -> Result<Option<Seen>, Halt> {
        let found = match self.backend.metadata_now(path) {
            Ok(found) => found,
            Err(error) => {
                return Ok(Some(match self.judge(error)? {
                    Reading::Bad(why) | Reading::Refused(why) => Seen::Unreadable(why),
                    _ => Seen::LeftOut,
                }));
            }
        };
        let granularity = self.service.fs.capabilities.time_granularity_ns;
        let compared = compare(entry.kind, &expected(entry), &found, granularity);
        let is_same = compared == Comparison::Same && found.kind == FileKind::Regular;
        Ok((!is_same).then_some(Seen::LeftOut))
    }

    /// Returns whether drive and index say what they said before the file was read.
    fn is_as_before(
        &self,
        key: &NameKey,
        entry: &PlacedEntry,
        path: &RelPath,
    ) -> Result<bool, Halt> {
        if self.differs(entry, path)?.is_some() {
            return Ok(false);
        }
        let placed = (self.service.index.lock()).placed(key.parent, &key.name)?;
        let is_at_rest = self.service.fs.is_at_rest(entry.ino)? == Some(true);
        Ok(placed.as_ref() == Some(entry) && is_at_rest)
    }

    /// Reads a file of `size` bytes to its end, past the page cache.
    fn read(&mut self, path: &RelPath, size: u64) -> Result<Reading, Halt> {
        for _ in 0..TRIES {
            let read = match self.backend.open_uncached(path) {
                Ok(file) => self.read_file(&*file, path, size)?,
                Err(error) => self.judge(error)?,
            };
            if !matches!(read, Reading::Again) {
                return Ok(read);
            }
            self.gate()?;
        }
        Ok(Reading::Again)
    }

    fn read_file(
        &mut self,
        file: &dyn ReadFile,
        path: &RelPath,
        size: u64,
    ) -> Result<Reading, Halt> {
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; BLOCK];
        let mut at = 0;
        loop {
            self.gate()?;
            let got = match file.read_at(&mut buffer, at) {
                Ok(0) if at < size => return Ok(Reading::Bad(ends_after(at))),
                Ok(0) => return Ok(Reading::Bytes(ContentHash(*hasher.finalize().as_bytes()))),
                Ok(got) => got,
                Err(source) => {
                    let read = self.judge(BackendError::new("read", path, source))?;
                    return Ok(match read {
                        Reading::Bad(why) => Reading::Bad(format!("{why}, after {at} bytes")),
                        read => read,
                    });
                }
            };
            hasher.update(&buffer[..got]);
            at += got as u64;
            self.note_read(at, got as u64)?;
        }
    }

    /// Returns what an error means for the file.
    ///
    /// # Errors
    /// If it is one of the whole drive.
    pub(super) fn judge(&self, error: BackendError) -> Result<Reading, Halt> {
        if error.is_not_found() {
            return Ok(Reading::Gone);
        }
        if error.is_stalled() || error.is_shortage() {
            return Ok(Reading::Again);
        }
        if error.is_gone() && self.backend.check_alive(Look::Read).is_err() {
            return Err(Halt::Failed(FsError::Backend(error)));
        }
        let why = format!("it cannot be read: {}", in_words(&error.source));
        Ok(match is_of_medium(&error.source) {
            true => Reading::Bad(why),
            false => Reading::Refused(why),
        })
    }
}

const CHANGED: &str = "its bytes have changed on the drive, and its size and time have not";
const UNSTEADY: &str = "the drive returns other bytes each time";

/// A file whose bytes end before its size is damaged, and has no hash.
fn ends_after(bytes: u64) -> String {
    format!("it ends after {bytes} bytes")
}

fn damage(key: &NameKey, entry: &PlacedEntry, found: Option<ContentHash>) -> Damage {
    Damage {
        key: key.clone(),
        was: entry.clone(),
        found,
    }
}

/// Returns whether an error says that the medium does not return what was written to it.
fn is_of_medium(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::EUCLEAN | libc::EBADMSG | libc::ENODATA | libc::EILSEQ)
    )
}

/// Returns the message of the system without the number.
fn in_words(error: &io::Error) -> String {
    let text = error.to_string();
    let words = text
        .split_once(" (os error")
        .map(|(words, _)| words.to_lowercase());
    words.unwrap_or(text)
}
