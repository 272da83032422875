//! Section 4: what the batch knew of the files that it moves, replaces and removes.

use std::collections::BTreeMap;

use super::{put_all, slot};
use crate::base::{ContentHash, RelPath};
use crate::rules::bytes::{Reader, Result, put_path};
use crate::rules::known::{Believed, Known};
use crate::rules::steps::SlotNo;

const MOVED: u8 = 1;
const REPLACED: u8 = 2;
const REMOVED: u8 = 3;

/// A tag, size, time, no hash, a slot.
const MIN_FACT_BYTES: usize = 1 + 8 + 8 + 1 + 4;

/// What one entry of the section of known files is about.
enum Fact {
    Moved(SlotNo, Believed),
    Replaced(SlotNo, Believed),
    Removed(RelPath, Believed),
}

pub(super) fn put_known(out: &mut Vec<u8>, known: &Known) {
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

/// Whether `key` comes after all that are there already; then it is added.
fn put_last<K: Ord>(map: &mut BTreeMap<K, Believed>, key: K, file: Believed) -> bool {
    let after = map.last_key_value().is_none_or(|(last, _)| *last < key);
    map.insert(key, file);
    after
}

/// Facts in the order in which they are written: by tag, then by slot or path, none twice; so that equal records have equal
/// bytes.
pub(super) fn read_known(reader: &mut Reader<'_>) -> Result<Known> {
    let mut known = Known::default();
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
    let file = Believed {
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
