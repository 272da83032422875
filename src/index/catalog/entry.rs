//! A description as a row of the mirror has it: a change that sets it at the root, as a record has one.

use crate::base::RelPath;
use crate::rules::bytes::Reader;
use crate::rules::catalog::{CatalogChange, Description, wire};

pub(super) fn encode(description: &Description) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    let change = CatalogChange::Set {
        path: RelPath::root(),
        description: Box::new(description.clone()),
    };
    wire::put_change(&mut bytes, &change);
    bytes
}

/// What cannot be read counts as not described: attributes, at worst.
pub(super) fn decode(bytes: &[u8]) -> Option<Description> {
    let mut reader = Reader::new(bytes, 0);
    match wire::read_change(&mut reader, |reader| reader.path()) {
        Ok(CatalogChange::Set { description, .. }) => Some(*description),
        _ => None,
    }
}
