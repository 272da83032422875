//! Decides about names that others have changed on the backend. No I/O.
//!
//! There are three trees: the index's view of the backend (`placed`), the listing of the backend,
//! and the mount. A name that is listed but not placed is *new* there, one that is placed but not
//! listed is *gone* there, and one with another size or time is *changed* there. [`decide`] returns
//! what the mount does. All its rules follow from one: two versions that no side has both seen both
//! stay; an entry is removed only if whoever removed it had seen that version.

mod conflict;
mod moves;
mod shift;

pub use crate::plan::merge::conflict::{conflict_name, is_conflict_name};
pub use crate::plan::merge::moves::{Pair, Trace, pair};
pub use crate::plan::merge::shift::{Shift, shift_of};

use crate::core::{FileKind, Metadata, Timestamp, is_told_oddly};
use crate::format::expectations::ExpectedFile;
use crate::format::steps::PlainKind;

/// The most conflicts that are named.
pub const NAMED_CONFLICTS: usize = 100;

/// External changes imported into the index, as numbers of names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// New names.
    pub new: u64,
    /// Files with other bytes.
    pub changed: u64,
    /// Names that moved there, and therefore in the mount.
    pub moved: u64,
    /// Names removed there, and therefore from the mount.
    pub deleted: u64,
    /// Versions with a conflict name, because the mount has another version.
    pub conflicts: u64,
    /// The first conflicts: the file, and the name of the other version, as paths in the mount.
    pub named: Vec<(String, String)>,
    /// Paths that could not be compared, with the reason.
    pub skipped: Vec<(String, String)>,
}

impl Changes {
    /// Returns whether there was no change and no path was skipped.
    pub fn is_nothing(&self) -> bool {
        *self == Changes::default()
    }

    /// Adds the result of another scan.
    pub fn add(&mut self, more: Changes) {
        self.new += more.new;
        self.changed += more.changed;
        self.moved += more.moved;
        self.deleted += more.deleted;
        self.conflicts += more.conflicts;
        let free = NAMED_CONFLICTS.saturating_sub(self.named.len());
        self.named.extend(more.named.into_iter().take(free));
        self.skipped.extend(more.skipped);
    }
}

/// The result of comparing an entry with its expectation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// As expected, by size and time.
    Same,
    /// A file of the same size with another time: other bytes, or another clock or time zone.
    Touched,
    /// A file with other bytes.
    Changed,
    /// A directory instead of a file, or the reverse.
    OtherKind,
}

/// Compares an entry with its expectation. `granularity` is the backend's step of times in
/// nanoseconds.
pub fn compare(
    kind: PlainKind,
    believed: &ExpectedFile,
    found: &Metadata,
    granularity: u64,
) -> Comparison {
    match (kind, found.kind == FileKind::Directory) {
        (PlainKind::Directory, true) => Comparison::Same,
        (PlainKind::Directory, false) | (PlainKind::File, true) => Comparison::OtherKind,
        (PlainKind::File, false) if found.size != believed.size => Comparison::Changed,
        (PlainKind::File, false)
            if is_same_time(found.modified.0, believed.modified.0, granularity) =>
        {
            Comparison::Same
        }
        (PlainKind::File, false) => Comparison::Touched,
    }
}

/// Returns whether two times may be equal on a backend with this granularity. `other` is the time
/// that the file was given; a file system that cannot store it reports a different one.
fn is_same_time(one: i64, other: i64, granularity: u64) -> bool {
    one.abs_diff(other) <= granularity.max(1) || is_told_oddly(Timestamp(other), Timestamp(one))
}

/// The change of a file on the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum There {
    /// The name is gone.
    Gone,
    /// It has other bytes.
    Changed,
    /// An entry has a new name.
    New,
}

/// The mount's state of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Here {
    /// It does not have the file: removed, or never there.
    Nothing,
    /// The same file, under this name or (renamed here) another.
    File {
        /// Its bytes are not those that the backend had.
        dirty: bool,
        /// Its name in the mount differs from that on the backend.
        renamed: bool,
        /// Its bytes are in the cache.
        cached: bool,
    },
    /// An entry of the mount's own.
    Other,
}

/// The action for the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Add the backend's entry under its name.
    TakeIn,
    /// Give the mount's file the backend's bytes.
    Update,
    /// Remove it.
    Remove,
    /// Keep it; the next batch writes it to the backend again.
    ComeBack,
    /// Neither side has it: remove it from the index.
    Forget,
    /// Add the backend's entry under a conflict name.
    KeepBoth,
}

/// Returns the action for one file or name.
pub fn decide(there: There, here: Here) -> Verdict {
    match (there, here) {
        (There::Gone, Here::Nothing | Here::Other) => Verdict::Forget,
        (There::Gone, Here::File { dirty: true, .. }) => Verdict::ComeBack,
        // A rename is a change, too; but without the bytes nothing can be written.
        (
            There::Gone,
            Here::File {
                renamed: true,
                cached: true,
                ..
            },
        ) => Verdict::ComeBack,
        (There::Gone, Here::File { .. }) => Verdict::Remove,
        (There::Changed, Here::File { dirty: false, .. }) => Verdict::Update,
        (There::Changed, _) => Verdict::KeepBoth,
        (There::New, Here::Nothing) => Verdict::TakeIn,
        (There::New, Here::File { .. } | Here::Other) => Verdict::KeepBoth,
    }
}

#[cfg(test)]
mod tests;
