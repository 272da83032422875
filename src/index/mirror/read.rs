//! Look-ups in the mirror, from the writer's side and from a snapshot.

use std::rc::Rc;

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::core::{ContentHash, Name, RelPath};
use crate::format::catalog::chain::{Head, LogState};
use crate::format::catalog::store::live_bytes;
use crate::format::catalog::{Description, decode_description};
use crate::index::mirror::{HEAD, LOG, ROOT};
use crate::index::tree::name_from_row;
use crate::index::{Context, Corruption, IndexError, IndexWriter, Result, Snapshot};

/// A row at a greater depth counts as its own ancestor.
const DEEP: usize = 40_000;

fn setting(conn: &Connection, key: &str) -> Result<Option<String>> {
    conn.prepare_cached("SELECT CAST(value AS TEXT) FROM meta WHERE key=?")
        .and_then(|mut s| s.query_row([key], |row| row.get(0)).optional())
        .context("read a setting")
}

pub(super) fn log(conn: &Connection) -> Result<LogState> {
    let head = setting(conn, HEAD)?.and_then(|text| parse_head(&text));
    let noted = setting(conn, LOG)?.and_then(|text| {
        let mut numbers = text.split(':').map(|number| number.parse::<u64>().ok());
        Some((numbers.next()??, numbers.next()??, numbers.next()??))
    });
    let (highest, bytes, broken) = noted.unwrap_or_default();
    Ok(LogState {
        head,
        highest,
        bytes,
        broken: broken != 0,
    })
}

fn parse_head(text: &str) -> Option<Head> {
    let (number, hex) = text.split_once(':')?;
    let mut hash = [0; 32];
    for (at, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(Head {
        number: number.parse().ok()?,
        hash: ContentHash(hash),
    })
}

pub(super) fn child(conn: &Connection, parent: i64, name: &[u8]) -> Result<Option<i64>> {
    conn.prepare_cached("SELECT node FROM catalog_nodes WHERE parent=? AND name=?")
        .and_then(|mut s| {
            s.query_row(params![parent, name], |row| row.get(0))
                .optional()
        })
        .context("look up a described name")
}

/// The way from the root to the name that was last looked up. The next name is often beside or
/// below it, and then costs one query instead of one for each directory above it. Must be forgotten
/// when a node gets another parent.
#[derive(Debug, Default)]
pub(crate) struct DescribedWay(Vec<(Box<[u8]>, i64)>);

impl DescribedWay {
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Goes back to where the way to `path` leaves this one. Returns the node there and the
    /// remaining names.
    pub(super) fn join<'p>(&mut self, path: &'p RelPath) -> (i64, Vec<&'p [u8]>) {
        let names: Vec<&[u8]> = path.components().collect();
        let known = self.0.iter().zip(&names);
        let shared = known
            .take_while(|((known, _), name)| **known == ***name)
            .count();
        self.0.truncate(shared);
        let node = self.0.last().map_or(ROOT, |(_, node)| *node);
        (node, names[shared..].to_vec())
    }

    /// Forgets the way below `node`, which gets another parent.
    pub(super) fn leave(&mut self, node: i64) {
        let at = self.0.iter().position(|(_, known)| *known == node);
        self.0.truncate(at.unwrap_or(self.0.len()));
    }

    pub(super) fn push(&mut self, name: &[u8], node: i64) {
        self.0.push((name.into(), node));
    }
}

pub(super) fn find(
    conn: &Connection,
    way: &mut DescribedWay,
    path: &RelPath,
) -> Result<Option<i64>> {
    let (mut node, names) = way.join(path);
    for name in names {
        match child(conn, node, name)? {
            Some(child) => node = child,
            None => return Ok(None),
        }
        way.push(name, node);
    }
    Ok(Some(node))
}

/// Returns the path of a node; `None` for one that is forgotten or in a slot.
pub(super) fn path_of(conn: &Connection, node: i64) -> Result<Option<RelPath>> {
    let mut names = Vec::new();
    let mut at = node;
    while at != ROOT {
        let found: Option<(i64, Name)> = conn
            .prepare_cached("SELECT parent, name FROM catalog_nodes WHERE node=?")
            .and_then(|mut s| {
                s.query_row([at], |row| Ok((row.get(0)?, name_from_row(row, 1))))
                    .optional()
            })
            .context("find a described name")?
            .and_then(|(parent, name)| Some((parent, name.ok()?)));
        match found {
            Some((parent, name)) if parent > 0 => {
                names.push(name);
                at = parent;
            }
            _ => return Ok(None),
        }
        if names.len() > DEEP {
            return Err(IndexError::Corrupt(Corruption::DescribedLoop(node)));
        }
    }
    Ok(Some(RelPath::of_names(names.iter().rev())))
}

fn description(
    conn: &Connection,
    way: &mut DescribedWay,
    path: &RelPath,
) -> Result<Option<Description>> {
    let Some(node) = find(conn, way, path)? else {
        return Ok(None);
    };
    let found: Option<Vec<u8>> = conn
        .prepare_cached("SELECT entry FROM catalog_nodes WHERE node=?")
        .and_then(|mut s| s.query_row([node], |row| row.get(0)).optional())
        .context("read a description")?
        .flatten();
    Ok(found.and_then(|bytes| decode(&bytes)))
}

/// An unreadable description counts as none: that costs attributes, at worst.
fn decode(bytes: &[u8]) -> Option<Description> {
    decode_description(bytes)
}

/// A row of the children of a node: its number, its name, its description.
type Child = (i64, Name, Option<Description>);

fn child_from_row(row: &Row<'_>) -> rusqlite::Result<Child> {
    let bytes: Option<Vec<u8>> = row.get(2)?;
    let described = bytes.and_then(|bytes| decode(&bytes));
    Ok((row.get(0)?, name_from_row(row, 1)?, described))
}

fn children(
    conn: &Connection,
    node: i64,
    after: Option<&Name>,
    limit: usize,
) -> Result<Vec<Child>> {
    let after = after.map_or(&[][..], Name::as_bytes);
    conn.prepare_cached(
        "SELECT node, name, entry FROM catalog_nodes WHERE parent=? AND name>? ORDER BY name LIMIT ?",
    )
    .and_then(|mut s| {
        s.query_map(params![node, after, limit as i64], child_from_row)?
            .collect()
    })
    .context("list what is described")
}

impl IndexWriter {
    /// Returns the description of the backend's name `path`.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn description(&mut self, path: &RelPath) -> Result<Option<Description>> {
        description(&self.conn, &mut self.described_way, path)
    }

    /// Returns up to `limit` names in the backend's directory `dir` that are described or have
    /// something described below them, in order, after `after`.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn described_in(
        &mut self,
        dir: &RelPath,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Vec<(Name, Option<Description>)>> {
        let Some(node) = find(&self.conn, &mut self.described_way, dir)? else {
            return Ok(Vec::new());
        };
        let found = children(&self.conn, node, after, limit)?.into_iter();
        Ok(found.map(|(_, name, told)| (name, told)).collect())
    }
}

impl Snapshot {
    /// Returns the state of the log that the mirror reflects.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn catalog_log(&self) -> Result<LogState> {
        log(&self.conn)
    }

    /// Returns the description of the backend's name `path`.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn description(&self, path: &RelPath) -> Result<Option<Description>> {
        description(&self.conn, &mut self.described_way.borrow_mut(), path)
    }

    /// Returns whether the backend's name `path`, or anything below it, is described.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn is_described(&self, path: &RelPath) -> Result<bool> {
        Ok(find(&self.conn, &mut self.described_way.borrow_mut(), path)?.is_some())
    }

    /// Returns about how many bytes a segment with everything in it would have.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn catalog_bytes(&self) -> Result<u64> {
        let (names, bytes): (i64, i64) = self
            .conn
            .query_row(
                "SELECT count(*), coalesce(sum(length(name) + coalesce(length(entry), 0)), 0) FROM catalog_nodes",
                [],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .context("measure the catalog")?;
        let (names, bytes) = (names.max(0).cast_unsigned(), bytes.max(0).cast_unsigned());
        Ok(bytes.saturating_add(names.saturating_mul(live_bytes(0, 0))))
    }

    /// Returns whether nothing is described.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn catalog_is_empty(&self) -> Result<bool> {
        self.conn
            .query_row(
                "SELECT NOT EXISTS(SELECT 1 FROM catalog_nodes WHERE entry IS NOT NULL)",
                [],
                |row| row.get(0),
            )
            .context("look into the catalog")
    }

    /// Passes everything that is described to `each`: a directory before its contents, in the order
    /// of the names.
    ///
    /// # Errors
    /// If SQLite cannot read; or the error of `each`.
    pub fn whole_catalog(
        &self,
        mut each: impl FnMut(RelPath, Description) -> Result<()>,
    ) -> Result<()> {
        if let Some(told) = self.description(&RelPath::root())? {
            each(RelPath::root(), told)?;
        }
        // Children not looked at yet, the next on top.
        let mut open: Vec<(Rc<RelPath>, Child)> = Vec::new();
        let push = |open: &mut Vec<(Rc<RelPath>, Child)>, dir: RelPath, node: i64| -> Result<()> {
            let found = children(&self.conn, node, None, usize::MAX >> 1)?;
            let dir = Rc::new(dir);
            open.extend(found.into_iter().rev().map(|child| (dir.clone(), child)));
            if open.len() > usize::MAX >> 2 {
                return Err(IndexError::Corrupt(Corruption::EndlessCatalog));
            }
            Ok(())
        };
        push(&mut open, RelPath::root(), ROOT)?;
        while let Some((dir, (node, name, told))) = open.pop() {
            let path = dir.join(&name);
            if let Some(told) = told {
                each(path.clone(), told)?;
            }
            push(&mut open, path, node)?;
        }
        Ok(())
    }
}
