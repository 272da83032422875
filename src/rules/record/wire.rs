//! Steps as bytes, and a reader that never looks beyond its end nor allocates on the word of a count.

use std::collections::BTreeMap;

use super::{MAX_PATH_BYTES, RecordError, newer_part};
use crate::base::{ContentHash, RelPath, Timestamp};
use crate::rules::known::{Believed, Known};
use crate::rules::steps::{ClearStep, FileContent, PlaceStep, PlainKind, SlotNo, Steps};

const SECTION_CLEAR: u32 = 1;
const SECTION_PLACE: u32 = 2;
/// What was known of files; 3 is kept for the catalog.
const SECTION_KNOWN: u32 = 4;
/// A reader that does not know the section may pass over it.
const FLAG_SKIP: u32 = 1;

const DETACH: u8 = 1;
const REMOVE_FILE: u8 = 2;
const REMOVE_DIR: u8 = 3;

const MAKE_DIR: u8 = 1;
const ATTACH: u8 = 2;
const INSTALL: u8 = 3;
const TOUCH: u8 = 4;

const MOVED: u8 = 1;
const REPLACED: u8 = 2;
const REMOVED: u8 = 3;

const KIND_FILE: u8 = 1;
const KIND_DIRECTORY: u8 = 2;

/// The shortest step: a tag, a path's length and one byte of it.
const MIN_STEP_BYTES: usize = 1 + 4 + 1;

pub(super) fn put_steps(out: &mut Vec<u8>, steps: &Steps<FileContent>) {
    put_section(out, (SECTION_CLEAR, 0), &steps.clear, put_clear_step);
    put_section(out, (SECTION_PLACE, 0), &steps.place, put_place_step);
}

/// What one entry of the section of known files is about.
enum Fact {
    Moved(SlotNo, Believed),
    Replaced(SlotNo, Believed),
    Removed(RelPath, Believed),
}

/// Nothing is written where nothing is known.
pub(super) fn put_known(out: &mut Vec<u8>, known: &Known) {
    if known.is_empty() {
        return;
    }
    let moved = known.moved.iter().map(|(s, f)| Fact::Moved(*s, *f));
    let replaced = known.replaced.iter().map(|(s, f)| Fact::Replaced(*s, *f));
    let removed = (known.removed.iter()).map(|(path, f)| Fact::Removed(path.clone(), *f));
    let facts: Vec<Fact> = moved.chain(replaced).chain(removed).collect();
    put_section(out, (SECTION_KNOWN, FLAG_SKIP), &facts, put_fact);
}

fn put_fact(out: &mut Vec<u8>, fact: &Fact) {
    let (tag, file) = match fact {
        Fact::Moved(_, file) => (MOVED, file),
        Fact::Replaced(_, file) => (REPLACED, file),
        Fact::Removed(_, file) => (REMOVED, file),
    };
    out.push(tag);
    out.extend_from_slice(&file.size.to_le_bytes());
    out.extend_from_slice(&file.modified.0.to_le_bytes());
    out.push(u8::from(file.hash.is_some()));
    if let Some(hash) = file.hash {
        out.extend_from_slice(&hash.0);
    }
    match fact {
        Fact::Moved(slot, _) | Fact::Replaced(slot, _) => {
            out.extend_from_slice(&slot.0.to_le_bytes());
        }
        Fact::Removed(path, _) => put_path(out, path),
    }
}

fn put_section<T>(
    out: &mut Vec<u8>,
    (number, flags): (u32, u32),
    steps: &[T],
    put: fn(&mut Vec<u8>, &T),
) {
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&flags.to_le_bytes());
    let length_at = out.len();
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&(steps.len() as u64).to_le_bytes());
    for step in steps {
        put(out, step);
    }
    let length = (out.len() - length_at - 8) as u64;
    out[length_at..length_at + 8].copy_from_slice(&length.to_le_bytes());
}

fn put_clear_step(out: &mut Vec<u8>, step: &ClearStep) {
    match step {
        ClearStep::Detach { from, slot, kind } => {
            out.push(DETACH);
            put_kind_and_slot(out, *kind, *slot);
            put_path(out, from);
        }
        ClearStep::RemoveFile { path } => {
            out.push(REMOVE_FILE);
            put_path(out, path);
        }
        ClearStep::RemoveDir { path } => {
            out.push(REMOVE_DIR);
            put_path(out, path);
        }
    }
}

fn put_place_step(out: &mut Vec<u8>, step: &PlaceStep<FileContent>) {
    match step {
        PlaceStep::MakeDir { path } => {
            out.push(MAKE_DIR);
            put_path(out, path);
        }
        PlaceStep::Attach { slot, to, kind } => {
            out.push(ATTACH);
            put_kind_and_slot(out, *kind, *slot);
            put_path(out, to);
        }
        PlaceStep::Install { slot, to, content } => {
            out.push(INSTALL);
            out.extend_from_slice(&slot.0.to_le_bytes());
            out.extend_from_slice(&content.size.to_le_bytes());
            out.extend_from_slice(&content.modified.0.to_le_bytes());
            out.extend_from_slice(&content.hash.0);
            put_path(out, to);
        }
        PlaceStep::Touch { path, modified } => {
            out.push(TOUCH);
            out.extend_from_slice(&modified.0.to_le_bytes());
            put_path(out, path);
        }
    }
}

fn put_kind_and_slot(out: &mut Vec<u8>, kind: PlainKind, slot: SlotNo) {
    out.push(match kind {
        PlainKind::File => KIND_FILE,
        PlainKind::Directory => KIND_DIRECTORY,
    });
    out.extend_from_slice(&slot.0.to_le_bytes());
}

fn put_path(out: &mut Vec<u8>, path: &RelPath) {
    let bytes = path.as_bytes();
    // A path whose length does not fit is far beyond the limit: the length written is then one that no reader takes.
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Reads all sections up to the end. They come in ascending order of their numbers, so none comes twice.
pub(super) fn read_sections(
    reader: &mut Reader<'_>,
) -> Result<(Steps<FileContent>, Known), RecordError> {
    let mut clear = None;
    let mut place = None;
    let mut known = Known::default();
    let mut last = 0;
    while !reader.is_at_end() {
        let number = reader.u32()?;
        let flags = reader.u32()?;
        if number <= last {
            return Err(reader.malformed("sections are not in ascending order"));
        }
        last = number;
        if flags & !FLAG_SKIP != 0 {
            return Err(newer_part("section flag", u64::from(flags)));
        }
        let length = reader.u64()?;
        let mut section = reader.split(length)?;
        match number {
            SECTION_CLEAR | SECTION_PLACE if flags != 0 => {
                return Err(reader.malformed("a section of steps is marked as one to pass over"));
            }
            SECTION_CLEAR => clear = Some(section.all(Reader::clear_step)?),
            SECTION_PLACE => place = Some(section.all(Reader::place_step)?),
            SECTION_KNOWN if flags != FLAG_SKIP => {
                return Err(reader.malformed("the section of known files cannot be passed over"));
            }
            SECTION_KNOWN => known = section.known()?,
            _ if flags & FLAG_SKIP != 0 => {}
            unknown => return Err(newer_part("section", u64::from(unknown))),
        }
    }
    match (clear, place) {
        (Some(clear), Some(place)) => Ok((Steps { clear, place }, known)),
        _ => Err(reader.malformed("a section of steps is missing")),
    }
}

/// Whether `key` comes after all that are there already; then it is added.
fn put_last<K: Ord>(map: &mut BTreeMap<K, Believed>, key: K, file: Believed) -> bool {
    let after = map.last_key_value().is_none_or(|(last, _)| *last < key);
    map.insert(key, file);
    after
}

/// A place in a record, with the end that it may not pass. `at <= bytes.len()` always.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Reads `bytes` from `at` on.
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Reader<'a> {
        Reader {
            bytes,
            at: at.min(bytes.len()),
        }
    }

    pub(super) fn malformed(&self, problem: &'static str) -> RecordError {
        RecordError::Malformed {
            offset: self.at,
            problem,
        }
    }

    fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], RecordError> {
        let end = self.at.checked_add(length);
        match end.and_then(|end| self.bytes.get(self.at..end)) {
            Some(taken) => {
                self.at += length;
                Ok(taken)
            }
            None => Err(self.malformed("it says that more follows than does")),
        }
    }

    /// A reader of the next `length` bytes, which this one passes over. Offsets stay those of the whole.
    fn split(&mut self, length: u64) -> Result<Reader<'a>, RecordError> {
        let begin = self.at;
        self.take(usize::try_from(length).unwrap_or(usize::MAX))?;
        Ok(Reader::new(&self.bytes[..self.at], begin))
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u8(&mut self) -> Result<u8, RecordError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(super) fn u16(&mut self) -> Result<u16, RecordError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, RecordError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, RecordError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn i64(&mut self) -> Result<i64, RecordError> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    /// A count and as many steps, to the very end.
    fn all<T>(
        &mut self,
        step: fn(&mut Reader<'a>) -> Result<T, RecordError>,
    ) -> Result<Vec<T>, RecordError> {
        let count = usize::try_from(self.u64()?).unwrap_or(usize::MAX);
        if count > self.remaining() / MIN_STEP_BYTES {
            return Err(self.malformed("it counts more steps than there is room for"));
        }
        let mut steps = Vec::with_capacity(count.min(4096));
        for _ in 0..count {
            steps.push(step(self)?);
        }
        if !self.is_at_end() {
            return Err(self.malformed("bytes are left over behind the last step"));
        }
        Ok(steps)
    }

    fn clear_step(&mut self) -> Result<ClearStep, RecordError> {
        Ok(match self.u8()? {
            DETACH => {
                let (kind, slot) = (self.kind()?, self.slot()?);
                let from = self.path()?;
                ClearStep::Detach { from, slot, kind }
            }
            REMOVE_FILE => ClearStep::RemoveFile { path: self.path()? },
            REMOVE_DIR => ClearStep::RemoveDir { path: self.path()? },
            _ => return Err(self.malformed("there is no such step")),
        })
    }

    fn place_step(&mut self) -> Result<PlaceStep<FileContent>, RecordError> {
        Ok(match self.u8()? {
            MAKE_DIR => PlaceStep::MakeDir { path: self.path()? },
            ATTACH => {
                let (kind, slot) = (self.kind()?, self.slot()?);
                let to = self.path()?;
                PlaceStep::Attach { slot, to, kind }
            }
            INSTALL => {
                let slot = self.slot()?;
                let content = FileContent {
                    size: self.u64()?,
                    modified: self.time()?,
                    hash: ContentHash(self.array()?),
                };
                let to = self.path()?;
                PlaceStep::Install { slot, to, content }
            }
            TOUCH => {
                let modified = self.time()?;
                let path = self.path()?;
                PlaceStep::Touch { path, modified }
            }
            _ => return Err(self.malformed("there is no such step")),
        })
    }

    /// Facts in the order in which they are written: by tag, then by slot or path, none twice; so that equal records have equal
    /// bytes.
    fn known(&mut self) -> Result<Known, RecordError> {
        let mut known = Known::default();
        let facts = self.all(Reader::fact)?;
        if facts.is_empty() {
            return Err(self.malformed("an empty section of known files"));
        }
        let mut last = 0;
        for fact in facts {
            let (tag, in_order) = match fact {
                Fact::Moved(slot, file) => (MOVED, put_last(&mut known.moved, slot, file)),
                Fact::Replaced(slot, file) => (REPLACED, put_last(&mut known.replaced, slot, file)),
                Fact::Removed(path, file) => (REMOVED, put_last(&mut known.removed, path, file)),
            };
            if tag < last || !in_order {
                return Err(self.malformed("known files are not in order"));
            }
            last = tag;
        }
        Ok(known)
    }

    fn fact(&mut self) -> Result<Fact, RecordError> {
        let tag = self.u8()?;
        let (size, modified) = (self.u64()?, self.time()?);
        let hash = match self.u8()? {
            0 => None,
            1 => Some(ContentHash(self.array()?)),
            _ => return Err(self.malformed("a known file neither has a hash nor has none")),
        };
        let file = Believed {
            size,
            modified,
            hash,
        };
        Ok(match tag {
            MOVED => Fact::Moved(self.slot()?, file),
            REPLACED => Fact::Replaced(self.slot()?, file),
            REMOVED => Fact::Removed(self.path()?, file),
            _ => return Err(self.malformed("there is no such fact")),
        })
    }

    fn kind(&mut self) -> Result<PlainKind, RecordError> {
        match self.u8()? {
            KIND_FILE => Ok(PlainKind::File),
            KIND_DIRECTORY => Ok(PlainKind::Directory),
            _ => Err(self.malformed("there is no such kind of entry")),
        }
    }

    fn slot(&mut self) -> Result<SlotNo, RecordError> {
        self.u32().map(SlotNo)
    }

    fn time(&mut self) -> Result<Timestamp, RecordError> {
        self.i64().map(Timestamp)
    }

    fn path(&mut self) -> Result<RelPath, RecordError> {
        let length = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        if length > MAX_PATH_BYTES {
            return Err(self.malformed("a path is longer than any can be"));
        }
        let offset = self.at;
        let bytes = self.take(length)?;
        RelPath::parse(bytes).map_err(|source| RecordError::BadPath { offset, source })
    }
}
