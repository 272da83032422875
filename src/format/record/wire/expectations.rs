//! Section 4: the files that the batch moves, replaces and removes, as the index knew them.

use std::collections::BTreeMap;

use crate::core::{ContentHash, RelPath};
use crate::format::codec::{Reader, Result, put_path};
use crate::format::expectations::{Expectations, ExpectedFile};
use crate::format::record::wire::{put_all, slot};
use crate::format::steps::SlotNo;

const MOVED: u8 = 1;
const REPLACED: u8 = 2;
const REMOVED: u8 = 3;

/// A tag, size, time, no hash, a slot.
const MIN_FACT_BYTES: usize = 1 + 8 + 8 + 1 + 4;

/// An entry of the section.
enum Fact {
    Moved(SlotNo, ExpectedFile),
    Replaced(SlotNo, ExpectedFile),
    Removed(RelPath, ExpectedFile),
}

pub(super) fn put_known(out: &mut Vec<u8>, known: &Expectations) {
    let moved = known.moved.iter().map(|(s, f)| Fact::Moved(*s, *f));
    let replaced = known.replaced.iter().map(|(s, f)| Fact::Replaced(*s, *f));
    let removed = (known.removed.iter()).map(|(path, f)| Fact::Removed(path.clone(), *f));
    let facts: Vec<Fact> = moved.chain(replaced).chain(removed).collect();
    put_all(out, &facts, put_fact);
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

/// Adds `key`, and returns whether it comes after all keys so far.
fn put_last<K: Ord>(map: &mut BTreeMap<K, ExpectedFile>, key: K, file: ExpectedFile) -> bool {
    let after = map.last_key_value().is_none_or(|(last, _)| *last < key);
    map.insert(key, file);
    after
}

/// Decodes the entries. They are sorted by tag, then by slot or path, without duplicates, so that
/// equal records have equal bytes.
pub(super) fn read_known(reader: &mut Reader<'_>) -> Result<Expectations> {
    let mut known = Expectations::default();
    let facts = reader.all(MIN_FACT_BYTES, read_fact)?;
    if facts.is_empty() {
        return Err(reader.malformed("an empty section of known files"));
    }
    let mut last = 0;
    for fact in facts {
        let (tag, in_order) = match fact {
            Fact::Moved(slot, file) => (MOVED, put_last(&mut known.moved, slot, file)),
            Fact::Replaced(slot, file) => (REPLACED, put_last(&mut known.replaced, slot, file)),
            Fact::Removed(path, file) => (REMOVED, put_last(&mut known.removed, path, file)),
        };
        if tag < last || !in_order {
            return Err(reader.malformed("known files are not in order"));
        }
        last = tag;
    }
    Ok(known)
}

fn read_fact(reader: &mut Reader<'_>) -> Result<Fact> {
    let tag = reader.u8()?;
    let (size, modified) = (reader.u64()?, reader.time()?);
    let hash = match reader.u8()? {
        0 => None,
        1 => Some(ContentHash(reader.array()?)),
        _ => return Err(reader.malformed("a known file neither has a hash nor has none")),
    };
    let file = ExpectedFile {
        size,
        modified,
        hash,
    };
    Ok(match tag {
        MOVED => Fact::Moved(slot(reader)?, file),
        REPLACED => Fact::Replaced(slot(reader)?, file),
        REMOVED => Fact::Removed(reader.path()?, file),
        _ => return Err(reader.malformed("there is no such fact")),
    })
}
