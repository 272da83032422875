//! What the drive has under the names that a batch concerns.
//!
//! The drive is asked for these names only: the cost of a look does not grow with the files that
//! did not change. The names of a directory are listed, without their metadata, in three cases:
//!
//! - many of its names are concerned, so that one listing is cheaper;
//! - a name was not found, and another spelling that counts as the same may be there although the
//!   drive did not find it. A drive that ignores case finds other cases by itself; a Unicode form
//!   that the drive distinguishes is only found in a listing (see
//!   [`crate::plan::names::NameRules::variants`]);
//! - something was found, and the index knows another spelling of that name: only the listing says
//!   which of the two it is.
//!
//! Each directory is looked at before its names, and both answers are asked of the drive itself
//! ([`Backend::metadata_now`]): an NFS client that has just seen that the directory is unchanged
//! may trust what it remembers of missing names, and only then.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::core::{FileKind, Ino, Metadata, Name, RelPath};
use crate::drive::{Backend, BackendError, Look, is_absent};
use crate::error::Result;
use crate::flush::FlusherParts;
use crate::flush::diff::Gathered;
use crate::format::layout;
use crate::index::PlacedEntry;
use crate::plan::names::Variants;
use crate::plan::planner::NameKey;

/// A directory in which the batch concerns at least this many names is listed,
const LIST_FROM: usize = 16;

/// unless it has more than this many names for each of them.
const NAMES_FOR_ONE: usize = 32;

/// The known names of a directory among which one with a letter is looked for.
const SAMPLES: usize = 16;

/// The answer about one name.
pub(super) enum Seen {
    /// Nothing is there.
    Nothing,
    /// No directory is there that could hold the name.
    NoDirectory,
    /// The drive answers, but not about this name.
    Unreadable,
    /// A file or directory is there.
    There(Metadata),
}

impl Seen {
    pub(super) fn found(self) -> Option<Metadata> {
        match self {
            Seen::There(found) => Some(found),
            Seen::Nothing | Seen::NoDirectory | Seen::Unreadable => None,
        }
    }
}

/// The state of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    There,
    Missing,
    /// It, or a name in it, cannot be read. Each name is looked at again when it is changed.
    Unreadable,
}

/// The answer about all that is in a directory.
pub(super) enum SeenAll {
    /// There is no such directory.
    NoDirectory,
    /// The drive answers, but not about this directory.
    Unreadable,
    /// These names are there, without the ones that ferryfs keeps for itself.
    There(BTreeMap<Name, Metadata>),
}

/// What is known of one directory.
struct Dir {
    state: State,
    /// Its names, once they have been listed.
    names: Option<Names>,
    /// Whether it finds names in other cases, once that has been asked.
    ignores_case: Option<bool>,
}

/// The names in a directory.
#[derive(Default)]
struct Names {
    exact: BTreeSet<Name>,
    /// By how the drive compares them.
    folded: HashMap<Vec<u8>, Name>,
}

/// The looks at the names of one batch. Each directory is looked at once.
pub(super) struct Looks<'a> {
    backend: &'a dyn Backend,
    parts: &'a FlusherParts,
    before: &'a BTreeMap<NameKey, PlacedEntry>,
    /// The number of names of the batch in each directory.
    concerned: HashMap<Ino, usize>,
    /// The number of names in `before` that the drive considers equal.
    known: HashMap<(Ino, Vec<u8>), usize>,
    dirs: HashMap<RelPath, Dir>,
}

impl<'a> Looks<'a> {
    pub(super) fn new(
        parts: &'a FlusherParts,
        backend: &'a dyn Backend,
        gathered: &'a Gathered,
    ) -> Looks<'a> {
        let mut concerned = HashMap::new();
        for change in &gathered.delta.names {
            *concerned.entry(change.key.parent).or_default() += 1;
        }
        let mut known = HashMap::new();
        for key in gathered.before.keys() {
            let fold = parts.rules.fold(&key.name);
            if !fold.is_empty() {
                *known.entry((key.parent, fold)).or_default() += 1;
            }
        }
        Looks {
            backend,
            parts,
            before: &gathered.before,
            concerned,
            known,
            dirs: HashMap::new(),
        }
    }

    /// Returns what the drive has under the name `key` in the directory at `path`, also in another
    /// spelling that counts as the same. A spelling that is a known name of its own does not count,
    /// because the batch knows what becomes of that one.
    pub(super) fn find(&mut self, path: &RelPath, key: &NameKey) -> Result<Seen> {
        self.look_at(path, key.parent)?;
        if let Some(blocked) = self.blocked(path) {
            return Ok(blocked);
        }
        if !self.is_listed(path) {
            let seen = self.ask(path, &key.name)?;
            let is_final = match &seen {
                Seen::There(_) => !self.has_known_variant(key),
                Seen::Nothing => !self.may_have_variant(path, key)?,
                Seen::NoDirectory | Seen::Unreadable => true,
            };
            if is_final {
                return Ok(seen);
            }
            self.list(path)?;
        }
        if let Some(blocked) = self.blocked(path) {
            return Ok(blocked);
        }
        match self.spelling(path, key) {
            Some(spelled) => self.ask(path, &spelled),
            None => Ok(Seen::Nothing),
        }
    }

    /// Returns whether the directory `ino` at `path` holds anything that the batch does not know.
    pub(super) fn holds_unknown(&mut self, path: &RelPath, ino: Ino) -> Result<bool> {
        if !self.is_listed(path) {
            self.list(path)?;
        }
        let names = self.dirs.get(path).and_then(|dir| dir.names.as_ref());
        let is_unknown = |name: &Name| {
            let key = NameKey {
                parent: ino,
                name: name.clone(),
            };
            !is_ours(path, name) && !self.before.contains_key(&key)
        };
        Ok(names.is_some_and(|names| names.exact.iter().any(is_unknown)))
    }

    /// Returns all that is in the directory at `path`.
    pub(super) fn all_in(&self, path: &RelPath) -> Result<SeenAll> {
        let entries = match self.backend.read_dir(path) {
            Ok(entries) => entries,
            Err(error) => {
                return Ok(match self.state_after(error)? {
                    State::Missing => SeenAll::NoDirectory,
                    State::There | State::Unreadable => SeenAll::Unreadable,
                });
            }
        };
        let theirs = entries
            .into_iter()
            .filter(|entry| !is_ours(path, &entry.name))
            .map(|entry| (entry.name, entry.meta))
            .collect();
        Ok(SeenAll::There(theirs))
    }

    /// Looks at a directory for the first time, and lists its names if that is cheaper.
    fn look_at(&mut self, path: &RelPath, dir: Ino) -> Result<()> {
        if self.dirs.contains_key(path) {
            return Ok(());
        }
        let state = match self.is_below_missing(path) {
            true => State::Missing,
            false => self.state_of(path)?,
        };
        self.note(path, state);
        if state == State::There && self.is_cheaper_listed(dir)? {
            self.list(path)?;
        }
        Ok(())
    }

    fn state_of(&self, path: &RelPath) -> Result<State> {
        match self.backend.metadata_now(path) {
            Ok(meta) if meta.kind == FileKind::Directory => Ok(State::There),
            // A file or a link in its place is found under the directory's own name.
            Ok(_) => Ok(State::Missing),
            Err(error) => self.state_after(error),
        }
    }

    /// Returns what an error says about a directory.
    fn state_after(&self, error: BackendError) -> Result<State> {
        // A link on the way, which is not followed.
        let is_link = error.source.raw_os_error() == Some(libc::ELOOP);
        if is_absent(&error) || is_link {
            return Ok(State::Missing);
        }
        self.must_answer(error)?;
        Ok(State::Unreadable)
    }

    /// Passes an error of one name or directory, unless it is one of the whole drive.
    fn must_answer(&self, error: BackendError) -> Result<()> {
        if error.is_stalled() || self.backend.check_alive(Look::Read).is_err() {
            return Err(error.into());
        }
        tracing::warn!(%error, "cannot be compared");
        Ok(())
    }

    fn is_below_missing(&self, path: &RelPath) -> bool {
        let above = path
            .split_last()
            .and_then(|(above, _)| self.dirs.get(&above));
        above.is_some_and(|above| above.state == State::Missing)
    }

    fn is_cheaper_listed(&self, dir: Ino) -> Result<bool> {
        let concerned = self.concerned.get(&dir).copied().unwrap_or(0);
        if concerned < LIST_FROM {
            return Ok(false);
        }
        let most = concerned.saturating_mul(NAMES_FOR_ONE);
        let beyond = self.parts.index.lock().placed_names(dir, most, 1)?;
        Ok(beyond.is_empty())
    }

    fn note(&mut self, path: &RelPath, state: State) -> &mut Dir {
        let dir = self.dirs.entry(path.clone()).or_insert(Dir {
            state,
            names: None,
            ignores_case: None,
        });
        dir.state = state;
        dir
    }

    fn blocked(&self, path: &RelPath) -> Option<Seen> {
        match self.dirs.get(path)?.state {
            State::There => None,
            State::Missing => Some(Seen::NoDirectory),
            State::Unreadable => Some(Seen::Unreadable),
        }
    }

    fn is_listed(&self, path: &RelPath) -> bool {
        self.dirs.get(path).is_some_and(|dir| dir.names.is_some())
    }

    /// Asks the drive for one name, in this spelling.
    fn ask(&mut self, path: &RelPath, name: &Name) -> Result<Seen> {
        match self.backend.metadata_now(&path.join(name)) {
            Ok(found) => Ok(Seen::There(found)),
            Err(error) if is_absent(&error) => Ok(Seen::Nothing),
            Err(error) => {
                self.must_answer(error)?;
                self.note(path, State::Unreadable);
                Ok(Seen::Unreadable)
            }
        }
    }

    fn list(&mut self, path: &RelPath) -> Result<()> {
        let listed = match self.backend.names_in(path) {
            Ok(listed) => listed,
            Err(error) => {
                let state = self.state_after(error)?;
                self.note(path, state);
                return Ok(());
            }
        };
        let mut names = Names::default();
        for name in listed {
            let fold = self.parts.rules.fold(&name);
            if !fold.is_empty() {
                names.folded.insert(fold, name.clone());
            }
            names.exact.insert(name);
        }
        self.note(path, State::There).names = Some(names);
        Ok(())
    }

    /// Returns the listed name that stands for `key`; see [`Looks::find`].
    fn spelling(&self, path: &RelPath, key: &NameKey) -> Option<Name> {
        let names = self.dirs.get(path)?.names.as_ref()?;
        if names.exact.contains(&key.name) {
            return Some(key.name.clone());
        }
        let spelled = names.folded.get(&self.parts.rules.fold(&key.name))?;
        let other = NameKey {
            parent: key.parent,
            name: spelled.clone(),
        };
        (!self.before.contains_key(&other)).then(|| spelled.clone())
    }

    /// Returns whether the index knows another spelling of `key`, so that the drive may have
    /// answered about that one.
    fn has_known_variant(&self, key: &NameKey) -> bool {
        let fold = self.parts.rules.fold(&key.name);
        let known = self.known.get(&(key.parent, fold)).copied().unwrap_or(0);
        known > usize::from(self.before.contains_key(key))
    }

    /// Returns whether another spelling of `key` may be there although the drive has not found it.
    fn may_have_variant(&mut self, path: &RelPath, key: &NameKey) -> Result<bool> {
        match self.parts.rules.variants(&key.name) {
            Variants::None => Ok(false),
            Variants::Case => Ok(!self.ignores_case(path, key.parent)?),
            Variants::Any => Ok(true),
        }
    }

    /// Returns whether the directory finds a name in another case than it is spelled. That is not
    /// taken from the drive's rules: they stay those of the enrollment, while this machine may
    /// reach the drive by another driver or share. Nor is it one answer for all directories:
    /// another file system may be mounted in the drive.
    fn ignores_case(&mut self, path: &RelPath, dir: Ino) -> Result<bool> {
        if let Some(known) = self.dirs.get(path).and_then(|dir| dir.ignores_case) {
            return Ok(known);
        }
        let names = self.parts.index.lock().placed_names(dir, 0, SAMPLES)?;
        let sample = names.iter().find_map(|name| Some((name, swap_case(name)?)));
        let ignores = match sample {
            Some((name, swapped)) => {
                let one = self.ask(path, &swapped)?.found();
                one.is_some() && one == self.ask(path, name)?.found()
            }
            None => false,
        };
        if let Some(dir) = self.dirs.get_mut(path) {
            dir.ignores_case = Some(ignores);
        }
        Ok(ignores)
    }
}

/// Whether `name` in the directory `path` is one that ferryfs keeps for itself.
fn is_ours(path: &RelPath, name: &Name) -> bool {
    layout::is_near_name(name) || layout::is_reserved(&path.join(name))
}

/// Returns a name with all its ASCII letters in the other case; `None` if it has none.
fn swap_case(name: &Name) -> Option<Name> {
    let swap = |byte: &u8| match byte.is_ascii_alphabetic() {
        true => byte ^ 0x20,
        false => *byte,
    };
    let swapped: Vec<u8> = name.as_bytes().iter().map(swap).collect();
    match swapped == name.as_bytes() {
        true => None,
        false => Name::new(&swapped).ok(),
    }
}
