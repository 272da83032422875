//! Encoding of the sections of a record.

mod catalog;
mod expectations;
mod nodes;

use crate::core::ContentHash;
use crate::format::catalog::CatalogBatch;
use crate::format::codec::{Reader, Result, put_path};
use crate::format::expectations::Expectations;
use crate::format::record::{BatchRecord, newer_part};
use crate::format::steps::{
    ClearStep, FileContent, PatchFile, PlaceStep, PlainKind, SlotNo, Steps,
};

const SECTION_CLEAR: u32 = 1;
const SECTION_PLACE: u32 = 2;
/// Changes of the catalog.
const SECTION_CATALOG: u32 = 3;
/// Expected files.
const SECTION_KNOWN: u32 = 4;
/// Attributes.
const SECTION_ATTRIBUTES: u32 = 5;
/// A reader that does not know the section may skip it.
const FLAG_SKIP: u32 = 1;

const DETACH: u8 = 1;
const REMOVE_FILE: u8 = 2;
const REMOVE_DIR: u8 = 3;

const MAKE_DIR: u8 = 1;
const ATTACH: u8 = 2;
const INSTALL: u8 = 3;
const TOUCH: u8 = 4;
const INSTALL_NODE: u8 = 5;
const LINK: u8 = 6;
const PATCH: u8 = 7;

const KIND_FILE: u8 = 1;
const KIND_DIRECTORY: u8 = 2;

/// The shortest step: a tag and the length of a path. Any step except one for the root has at least
/// one byte more.
const MIN_STEP_BYTES: usize = 1 + 4;

/// Encodes everything after the header. An empty section is omitted, except the clear and the place
/// steps.
pub(super) fn put_sections(out: &mut Vec<u8>, record: &BatchRecord) {
    let steps = &record.steps;
    put_section(out, (SECTION_CLEAR, 0), |out| {
        put_all(out, &steps.clear, put_clear_step);
    });
    put_section(out, (SECTION_PLACE, 0), |out| {
        put_all(out, &steps.place, put_place_step);
    });
    if let Some(changes) = &record.catalog {
        put_section(out, (SECTION_CATALOG, 0), |out| {
            catalog::put_catalog(out, changes);
        });
    }
    if !record.known.is_empty() {
        put_section(out, (SECTION_KNOWN, FLAG_SKIP), |out| {
            crate::format::record::wire::expectations::put_known(out, &record.known);
        });
    }
    if !steps.attributes.is_empty() {
        put_section(out, (SECTION_ATTRIBUTES, 0), |out| {
            put_all(out, &steps.attributes, nodes::put_attributes);
        });
    }
}

fn put_section(out: &mut Vec<u8>, (number, flags): (u32, u32), put: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&flags.to_le_bytes());
    let length_at = out.len();
    out.extend_from_slice(&[0; 8]);
    put(out);
    let length = (out.len() - length_at - 8) as u64;
    out[length_at..length_at + 8].copy_from_slice(&length.to_le_bytes());
}

/// Encodes a count (8 bytes) and that many items.
fn put_all<T>(out: &mut Vec<u8>, items: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    out.extend_from_slice(&(items.len() as u64).to_le_bytes());
    for item in items {
        put(out, item);
    }
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
            put_content(out, content);
            put_path(out, to);
        }
        PlaceStep::Patch {
            slot,
            to,
            content,
            patch,
        } => {
            out.push(PATCH);
            out.extend_from_slice(&slot.0.to_le_bytes());
            put_content(out, content);
            out.extend_from_slice(&patch.size.to_le_bytes());
            out.extend_from_slice(&patch.hash.0);
            put_path(out, to);
        }
        PlaceStep::InstallNode { slot, to, node } => {
            out.push(INSTALL_NODE);
            out.extend_from_slice(&slot.0.to_le_bytes());
            nodes::put_node(out, node);
            put_path(out, to);
        }
        PlaceStep::Link { from, to } => {
            out.push(LINK);
            put_path(out, from);
            put_path(out, to);
        }
        PlaceStep::Touch { path, modified } => {
            out.push(TOUCH);
            out.extend_from_slice(&modified.0.to_le_bytes());
            put_path(out, path);
        }
    }
}

fn put_content(out: &mut Vec<u8>, content: &FileContent) {
    out.extend_from_slice(&content.size.to_le_bytes());
    out.extend_from_slice(&content.modified.0.to_le_bytes());
    out.extend_from_slice(&content.hash.0);
}

fn put_kind_and_slot(out: &mut Vec<u8>, kind: PlainKind, slot: SlotNo) {
    out.push(match kind {
        PlainKind::File => KIND_FILE,
        PlainKind::Directory => KIND_DIRECTORY,
    });
    out.extend_from_slice(&slot.0.to_le_bytes());
}

/// The decoded sections.
#[derive(Default)]
pub(super) struct Sections {
    pub(super) steps: Steps<FileContent>,
    pub(super) known: Expectations,
    pub(super) catalog: Option<CatalogBatch>,
}

/// Decodes all sections. They are in ascending order of their numbers, so that none occurs twice.
pub(super) fn read_sections(
    reader: &mut Reader<'_>,
) -> std::result::Result<Sections, crate::format::record::RecordError> {
    let mut sections = Sections::default();
    let mut seen = Vec::new();
    while !reader.is_at_end() {
        let number = reader.u32()?;
        let flags = reader.u32()?;
        if seen.last().copied().unwrap_or(0) >= number {
            let problem = "sections are not in ascending order";
            return Err(reader.malformed(problem).into());
        }
        seen.push(number);
        if flags & !FLAG_SKIP != 0 {
            return Err(newer_part("section flag", u64::from(flags)));
        }
        let length = reader.u64()?;
        let mut section = reader.split(length)?;
        let right = match number {
            SECTION_CLEAR | SECTION_PLACE | SECTION_CATALOG | SECTION_ATTRIBUTES => 0,
            SECTION_KNOWN => FLAG_SKIP,
            _ if flags & FLAG_SKIP != 0 => continue,
            unknown => return Err(newer_part("section", u64::from(unknown))),
        };
        if flags != right {
            let problem = "a section is wrongly marked as one to pass over, or not to";
            return Err(reader.malformed(problem).into());
        }
        sections.read(number, &mut section)?;
    }
    if !seen.starts_with(&[SECTION_CLEAR, SECTION_PLACE]) {
        return Err(reader.malformed("a section of steps is missing").into());
    }
    Ok(sections)
}

impl Sections {
    /// Decodes one known section, up to its end.
    fn read(&mut self, number: u32, section: &mut Reader<'_>) -> Result<()> {
        match number {
            SECTION_CLEAR => self.steps.clear = section.all(MIN_STEP_BYTES, clear_step)?,
            SECTION_PLACE => self.steps.place = section.all(MIN_STEP_BYTES, place_step)?,
            SECTION_CATALOG => self.catalog = Some(catalog::read_catalog(section)?),
            SECTION_KNOWN => {
                self.known = crate::format::record::wire::expectations::read_known(section)?
            }
            SECTION_ATTRIBUTES => {
                self.steps.attributes = section.all(MIN_STEP_BYTES, nodes::read_attributes)?;
                if self.steps.attributes.is_empty() {
                    return Err(section.malformed("an empty section of attributes"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn clear_step(reader: &mut Reader<'_>) -> Result<ClearStep> {
    Ok(match reader.u8()? {
        DETACH => {
            let (kind, slot) = (kind(reader)?, slot(reader)?);
            let from = reader.path()?;
            ClearStep::Detach { from, slot, kind }
        }
        REMOVE_FILE => ClearStep::RemoveFile {
            path: reader.path()?,
        },
        REMOVE_DIR => ClearStep::RemoveDir {
            path: reader.path()?,
        },
        _ => return Err(reader.malformed("there is no such step")),
    })
}

fn place_step(reader: &mut Reader<'_>) -> Result<PlaceStep<FileContent>> {
    Ok(match reader.u8()? {
        MAKE_DIR => PlaceStep::MakeDir {
            path: reader.path()?,
        },
        ATTACH => {
            let (kind, slot) = (kind(reader)?, slot(reader)?);
            let to = reader.path()?;
            PlaceStep::Attach { slot, to, kind }
        }
        INSTALL => {
            let (slot, content) = (slot(reader)?, content(reader)?);
            let to = reader.path()?;
            PlaceStep::Install { slot, to, content }
        }
        PATCH => {
            let (slot, content) = (slot(reader)?, content(reader)?);
            let patch = PatchFile {
                size: reader.u64()?,
                hash: ContentHash(reader.array()?),
            };
            let to = reader.path()?;
            PlaceStep::Patch {
                slot,
                to,
                content,
                patch,
            }
        }
        INSTALL_NODE => {
            let slot = slot(reader)?;
            let node = nodes::read_node(reader)?;
            let to = reader.path()?;
            PlaceStep::InstallNode { slot, to, node }
        }
        LINK => {
            let (from, to) = (reader.path()?, reader.path()?);
            PlaceStep::Link { from, to }
        }
        TOUCH => {
            let modified = reader.time()?;
            let path = reader.path()?;
            PlaceStep::Touch { path, modified }
        }
        _ => return Err(reader.malformed("there is no such step")),
    })
}

fn content(reader: &mut Reader<'_>) -> Result<FileContent> {
    Ok(FileContent {
        size: reader.u64()?,
        modified: reader.time()?,
        hash: ContentHash(reader.array()?),
    })
}

fn kind(reader: &mut Reader<'_>) -> Result<PlainKind> {
    match reader.u8()? {
        KIND_FILE => Ok(PlainKind::File),
        KIND_DIRECTORY => Ok(PlainKind::Directory),
        _ => Err(reader.malformed("there is no such kind of entry")),
    }
}

fn slot(reader: &mut Reader<'_>) -> Result<SlotNo> {
    reader.u32().map(SlotNo)
}
