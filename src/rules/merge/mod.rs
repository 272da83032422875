//! What becomes of a name that somebody else has changed on the backend: decisions without I/O.
//!
//! Three trees meet: what the index believes that the backend has (`placed`), what a listing found there, and what the mount
//! has. What is in the listing and not believed is *new* there, what is believed and not listed is *gone* there, and what has
//! another size or time is *changed* there. [`decide`] says what the mount does about it. The rule behind all its lines: of two
//! versions that nobody has seen together both stay; something goes only if whoever removed it had seen that very version.

mod conflict;
mod moves;
mod shift;
#[cfg(test)]
mod tests;

pub use conflict::{conflict_name, is_conflict_name};
pub use moves::{Pair, Trace, pair};
pub use shift::{Shift, shift_of};

use crate::backend::Metadata;
use crate::base::{FileKind, Timestamp};
use crate::rules::describe::is_told_oddly;
use crate::rules::known::Believed;
use crate::rules::steps::PlainKind;

/// Conflicts that are named one by one.
pub const NAMED_CONFLICTS: usize = 100;

/// What was found changed on the backend and taken into the index, counted by names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Names that appeared.
    pub new: u64,
    /// Files with other bytes.
    pub changed: u64,
    /// Names that were moved there, and so are moved in the mount.
    pub moved: u64,
    /// Names that are gone, and so go from the mount.
    pub deleted: u64,
    /// Versions that got a name of their own because the mount has another one.
    pub conflicts: u64,
    /// The first of them: the file, and the name of the other version, as paths in the mount.
    pub named: Vec<(String, String)>,
    /// What could not be looked at, by path, with the reason.
    pub skipped: Vec<(String, String)>,
}

impl Changes {
    /// Whether nothing was found, and nothing was left out.
    pub fn is_nothing(&self) -> bool {
        *self == Changes::default()
    }

    /// Adds what another look has found.
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

/// How what stands under a name compares with what is believed to stand there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// As believed, as far as size and time tell.
    Same,
    /// A file of the same size with another time: perhaps other bytes, perhaps another clock or time zone.
    Touched,
    /// A file with other bytes.
    Changed,
    /// A directory where a file is believed, or the other way round.
    OtherKind,
}

/// Compares what was found with what is believed. `granularity` is the backend's step of times, in nanoseconds.
pub fn compare(
    kind: PlainKind,
    believed: &Believed,
    found: &Metadata,
    granularity: u64,
) -> Standing {
    match (kind, found.kind == FileKind::Directory) {
        (PlainKind::Directory, true) => Standing::Same,
        (PlainKind::Directory, false) | (PlainKind::File, true) => Standing::OtherKind,
        (PlainKind::File, false) if found.size != believed.size => Standing::Changed,
        (PlainKind::File, false)
            if is_same_time(found.modified.0, believed.modified.0, granularity) =>
        {
            Standing::Same
        }
        (PlainKind::File, false) => Standing::Touched,
    }
}

/// Whether two times may be one and the same on a backend that keeps them in such steps. `other` is what the file was given; a file
/// system that cannot tell that time tells another.
fn is_same_time(one: i64, other: i64, granularity: u64) -> bool {
    one.abs_diff(other) <= granularity.max(1) || is_told_oddly(Timestamp(other), Timestamp(one))
}

/// What has become of a file on the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum There {
    /// Its name is not there any more.
    Gone,
    /// Other bytes stand there.
    Changed,
    /// Something stands under a name that was not known.
    New,
}

/// What the mount has of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Here {
    /// Nothing: it was removed, or never was.
    Nothing,
    /// The very file, under this name or (renamed here) under another.
    File {
        /// Its bytes are not those that the backend had.
        dirty: bool,
        /// It has another name in the mount than on the backend.
        renamed: bool,
        /// Its bytes are in the cache.
        cached: bool,
    },
    /// Something of the mount's own.
    Other,
}

/// What is to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It comes into the mount under its name.
    TakeIn,
    /// The mount's file gets what stands there.
    Update,
    /// It goes from the mount.
    Remove,
    /// It is not on the backend any more, and is carried there again.
    ComeBack,
    /// The backend has it no more, and neither has the mount.
    Forget,
    /// What stands there gets a name of its own in the mount.
    KeepBoth,
}

/// What is to be done about one file or name.
pub fn decide(there: There, here: Here) -> Verdict {
    match (there, here) {
        (There::Gone, Here::Nothing | Here::Other) => Verdict::Forget,
        (There::Gone, Here::File { dirty: true, .. }) => Verdict::ComeBack,
        // A rename is a change, too; but without its bytes there is nothing to carry.
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
