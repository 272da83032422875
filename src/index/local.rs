//! What stays local: inodes that match the patterns for it have the flag [`Flags::LOCAL`].
//!
//! *Sorting* gives the flag to inodes that match and takes it from those that match no more. It
//! looks only at names and inodes that were marked since the last time, and at what is below a
//! directory that has got or lost the flag. What is made in a directory with the flag has it from
//! the beginning, and no mark. So a local directory costs a flush nothing, whatever happens in it.
//!
//! What an inode with the flag means for the drive:
//! - *The drive does not have it*: no batch makes it. It is DATA_DIRTY, so it is not evicted.
//! - *The drive has it under the same path* (it was flushed before the pattern was there): the
//!   drive keeps its version. It gets the flag with its first change; until then it is an ordinary
//!   clean file, and may be evicted. A removal is flushed like any other.
//! - *The drive has it under another path*: it was moved to a name that stays local, and the batch
//!   removes the old name. Before that its bytes must be on the SSD. As long as they are not, it is
//!   *held*: it has no flag, and no batch touches it.
//!
//! A file with several names is local if all of them are. If only some are, these are *apart*: no
//! batch makes them.
//!
//! Sorting waits while a batch is open, since the confirmation clears DATA_DIRTY: an inode that got
//! the flag in between would look as if the drive had it. Each cut sorts first, under its lock.
//!
//! A crash loses the lists of what is to be sorted, and the names that are apart. So the next start
//! sorts all that is marked, and every file with a name beside others that the drive does not have.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use rusqlite::params;

use crate::core::{FileKind, Ino, Name, RelPath};
use crate::index::inode::{Flags, Inode, Location};
use crate::index::{Context, Index, IndexWriter, Result, Snapshot, int, statements};
use crate::plan::patterns::Patterns;
use crate::plan::planner::NameKey;
use crate::plan::units::{database_of, database_of_shared_memory, journals_of};

/// The setting with the patterns by which everything was last sorted.
const SORTED_BY: &str = "local_patterns";

/// The value of it while not everything is sorted by one list: no list reads so.
const SORTED_BY_NONE: &str = "\n";

/// Directories without the flag that hold inodes with it lead to these.
const TOPS: &str = "SELECT i.ino FROM inodes i WHERE i.flags & 512 <> 0 AND EXISTS(
   SELECT 1 FROM dirents d JOIN inodes p ON p.ino=d.parent WHERE d.ino=i.ino AND p.flags & 512 = 0)";

/// Files with a name that the drive does not have beside others: it may be apart.
const UNMADE_LINKS: &str = "SELECT d.ino FROM inodes i JOIN dirents d ON d.ino=i.ino
  WHERE i.nlink > 1 AND i.mode & 61440 <> 16384 AND NOT EXISTS(
    SELECT 1 FROM placed p WHERE p.parent=d.parent AND p.name=coalesce(d.stored, d.name))";

/// Journals that the drive has and the mount has not: the drive may have kept them for a database
/// that travels by other patterns.
const REMOVED_JOURNALS: &str = "SELECT p.parent, p.name FROM placed p
  WHERE (substr(p.name, -4) IN (CAST('-wal' AS BLOB), CAST('.wal' AS BLOB))
      OR substr(p.name, -8) = CAST('-journal' AS BLOB))
    AND NOT EXISTS(
      SELECT 1 FROM dirents d WHERE d.parent=p.parent AND coalesce(d.stored, d.name)=p.name)";

/// So many names are read at a time.
const LISTED: u32 = 1000;

/// The most names that are remembered for the next time. Above that all marked ones are sorted.
const REMEMBERED: usize = 100_000;

/// So many names are sorted under one hold of the lock.
const AT_A_TIME: usize = 256;

/// The most files that are waited for below one directory.
const WANTED: usize = 100_000;

/// What is to be sorted, and what sorting has found. In memory.
#[derive(Default)]
pub(super) struct LocalState {
    patterns: Arc<Patterns>,
    /// Marked since the last time.
    names: Vec<NameKey>,
    inodes: Vec<Ino>,
    moved_dirs: Vec<Ino>,
    /// All that is marked or has the flag must be sorted.
    all: bool,
    /// The patterns are others than those by which everything was last sorted.
    has_new_patterns: bool,
    /// The lists have all of it.
    is_sorting_all: bool,
    /// Inodes with the flag in directories without it.
    tops: HashSet<Ino>,
    held: HashSet<Ino>,
    /// For each of them, what must be on the SSD before.
    wanted: HashMap<Ino, HashSet<Ino>>,
    /// For each of them, what was brought for it, and may not be evicted before it is ready.
    brought: HashMap<Ino, HashSet<Ino>>,
    apart: HashSet<NameKey>,
}

impl LocalState {
    fn has_work(&self) -> bool {
        let lists_are_empty =
            self.names.is_empty() && self.inodes.is_empty() && self.moved_dirs.is_empty();
        self.all || !lists_are_empty
    }

    fn remember<T>(&mut self, list: fn(&mut LocalState) -> &mut Vec<T>, item: T) {
        if self.patterns.is_empty() || self.all {
            return;
        }
        list(self).push(item);
        // A list of all names may be longer from the beginning.
        self.all = list(self).len() > REMEMBERED && !self.is_sorting_all;
    }
}

/// What the index knows of local files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalCounts {
    /// Files and other entries that are no directories.
    pub files: u64,
    /// The sizes of the files.
    pub bytes: u64,
}

/// What must be on the SSD before a held inode can leave the drive.
#[derive(Clone, Debug)]
pub struct WantedTogether {
    /// The file or directory.
    pub held: Ino,
    /// What is not there yet.
    pub wanted: Vec<Ino>,
    /// What was brought for it.
    pub brought: Vec<Ino>,
}

impl IndexWriter {
    /// Sets the patterns. If they are others than before, everything is sorted at the next
    /// opportunity.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn set_local_patterns(&mut self, patterns: Arc<Patterns>) -> Result<()> {
        let sorted_by = self.meta(SORTED_BY)?.unwrap_or_default();
        let differs = sorted_by != patterns.lines().join("\n");
        if !differs && self.local.patterns == patterns {
            return Ok(()); // What was found by them holds.
        }
        self.local = LocalState {
            all: differs || !patterns.is_empty(),
            has_new_patterns: differs,
            patterns,
            ..LocalState::default()
        };
        Ok(())
    }

    /// Returns the patterns.
    pub fn local_patterns(&self) -> Arc<Patterns> {
        self.local.patterns.clone()
    }

    /// Remembers a marked name.
    pub(super) fn sort_name_later(&mut self, parent: Ino, name: &Name) {
        if !self.local.patterns.is_empty() {
            let name = name.clone();
            let key = NameKey { parent, name };
            self.local.remember(|local| &mut local.names, key);
        }
    }

    /// Remembers an inode whose names, place or bytes have changed.
    pub fn sort_inode_later(&mut self, ino: Ino) {
        self.local.remember(|local| &mut local.inodes, ino);
    }

    /// Remembers a directory that has got another path.
    pub fn note_moved_dir(&mut self, dir: Ino) {
        self.local.remember(|local| &mut local.moved_dirs, dir);
    }

    /// Returns the inodes that are held, and the names that are apart.
    pub fn held_and_apart(&self) -> (HashSet<Ino>, HashSet<NameKey>) {
        (self.local.held.clone(), self.local.apart.clone())
    }

    /// Returns what must be on the SSD before held inodes can leave the drive: files whose bytes
    /// only the drive has, and directories that were not listed.
    pub fn wanted_for_local(&self) -> Vec<Ino> {
        self.local.wanted.values().flatten().copied().collect()
    }

    /// Returns the same for each held inode by itself.
    pub fn wanted_together(&self) -> Vec<WantedTogether> {
        let local = &self.local;
        let of_held = |(held, wanted): (&Ino, &HashSet<Ino>)| WantedTogether {
            held: *held,
            wanted: wanted.iter().copied().collect(),
            brought: (local.brought.get(held).into_iter().flatten())
                .copied()
                .collect(),
        };
        local.wanted.iter().map(of_held).collect()
    }

    /// Returns whether a file was brought for a held inode that is not ready yet.
    pub fn is_brought(&self, ino: Ino) -> bool {
        self.local.brought.values().any(|it| it.contains(&ino))
    }

    /// Sorts what was marked since the last time; nothing while a batch is open.
    ///
    /// # Errors
    /// If SQLite fails; then everything is sorted the next time.
    pub fn sort_local(&mut self) -> Result<()> {
        while self.sort_some(usize::MAX)? {}
        Ok(())
    }

    /// Sorts at most `limit` marked names, with what they concern. Returns whether there are more.
    fn sort_some(&mut self, limit: usize) -> Result<bool> {
        if self.active.is_some() || !self.local.has_work() {
            return Ok(false);
        }
        let sorted = self.sort_part(limit).and_then(|()| self.finish());
        self.local.all |= sorted.is_err();
        sorted?;
        let more = self.local.has_work();
        if !more && self.waiting.has_begun() && !self.anything_dirty()? {
            self.note_nothing_waits();
        }
        Ok(more)
    }

    fn sort_part(&mut self, limit: usize) -> Result<()> {
        if self.local.all {
            self.note_all()?;
        }
        let from = self.local.names.len().saturating_sub(limit);
        let names = self.local.names.split_off(from);
        let mut inodes = std::mem::take(&mut self.local.inodes);
        for key in names {
            self.sort_name(&key, &mut inodes)?;
        }
        for dir in std::mem::take(&mut self.local.moved_dirs) {
            self.note_all_below(dir, &mut inodes)?;
        }
        while let Some(ino) = inodes.pop() {
            self.sort_inode(ino, &mut inodes)?;
            if !self.local.held.contains(&ino) {
                self.local.brought.remove(&ino);
            }
        }
        if self.local.is_sorting_all && !self.local.has_work() {
            let lines = self.local.patterns.lines().join("\n");
            self.set_meta(SORTED_BY, &lines)?;
            self.local.is_sorting_all = false;
            let held = &self.local.held;
            self.local.brought.retain(|ino, _| held.contains(ino));
        }
        Ok(())
    }

    /// Lists all that is marked or has the flag, to be sorted.
    fn note_all(&mut self) -> Result<()> {
        if self.local.has_new_patterns {
            // Until all of it is done it is sorted by no list, so that going back sorts it again.
            self.set_meta(SORTED_BY, SORTED_BY_NONE)?;
        }
        self.commit()?;
        let local = &mut self.local;
        local.held.clear();
        local.wanted.clear();
        local.apart.clear();
        local.moved_dirs.clear();
        self.local.tops = self.read_inos(TOPS)?.into_iter().collect();
        if self.local.has_new_patterns {
            for journal in self.read_names(REMOVED_JOURNALS)? {
                self.mark_again(&journal)?;
                self.touch_dirty();
            }
        }
        self.local.names = self.read_names("SELECT parent, name FROM dirty_names")?;
        self.local.inodes = self.read_inos("SELECT ino FROM dirty_inodes")?;
        let tops = self.local.tops.iter().copied();
        self.local.inodes.extend(tops);
        // Links and special files have no places on many drives. They are looked at only now.
        let unmade = match self.local.has_new_patterns {
            true => self.read_inos(UNMADE_LINKS)?,
            false => self.read_inos(&format!("{UNMADE_LINKS} AND i.mode & 61440 = 32768"))?,
        };
        self.local.inodes.extend(unmade);
        self.local.has_new_patterns = false;
        self.local.all = false;
        self.local.is_sorting_all = true;
        Ok(())
    }

    /// Notes that a file has come into the cache, or a directory into the index, or is gone: it is
    /// waited for no more.
    pub fn note_arrived(&mut self, ino: Ino) {
        let mut ready = Vec::new();
        let local = &mut self.local;
        for (held, wanted) in &mut local.wanted {
            if !wanted.remove(&ino) {
                continue;
            }
            local.brought.entry(*held).or_default().insert(ino);
            if wanted.is_empty() {
                ready.push(*held);
            }
        }
        for held in ready {
            self.sort_inode_later(held);
        }
    }

    /// Adds the inodes that a marked name concerns.
    fn sort_name(&mut self, key: &NameKey, inodes: &mut Vec<Ino>) -> Result<()> {
        self.local.apart.remove(key);
        let here = self.lookup_stored(key.parent, &key.name)?;
        let there = self.placed(key.parent, &key.name)?.map(|entry| entry.ino);
        inodes.extend(
            here.into_iter()
                .chain(there.filter(|ino| here != Some(*ino))),
        );
        let is_settled = match (here, there) {
            (None, Some(_)) => self.is_journal_of_kept(key)?,
            // No batch looks at a directory that the drive does not have.
            (None, None) => self.is_local_dir(key.parent)?,
            _ => false,
        };
        if is_settled {
            self.forget_mark(key)?;
        }
        self.sort_journals(key, inodes)
    }

    /// The journals of a database go where it goes: adds them, and marks those that are removed
    /// here, and that the drive need not keep any more.
    fn sort_journals(&mut self, database: &NameKey, inodes: &mut Vec<Ino>) -> Result<()> {
        for name in journals_of(&database.name) {
            let parent = database.parent;
            let here = self.lookup_stored(parent, &name)?;
            let is_there = self.placed(parent, &name)?.is_some();
            let journal = NameKey { parent, name };
            match here {
                Some(ino) => inodes.push(ino),
                None if is_there && !self.is_journal_of_kept(&journal)? => {
                    self.mark_again(&journal)?;
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Returns whether the drive keeps an older version of the database that a journal belongs to,
    /// and so must keep the journal.
    fn is_journal_of_kept(&mut self, key: &NameKey) -> Result<bool> {
        let stem = database_of(key.name.as_bytes());
        let Some(name) = Name::new(stem).ok().filter(|name| *name != key.name) else {
            return Ok(false);
        };
        let Some(ino) = self.lookup_stored(key.parent, &name)? else {
            return Ok(false);
        };
        let parent = key.parent;
        Ok(self.is_local_name(parent, &name, false)?
            && self.is_in_place(&NameKey { parent, name }, ino)?)
    }

    /// Adds the inodes below a moved directory whose state may have changed with its path.
    fn note_all_below(&mut self, dir: Ino, inodes: &mut Vec<Ino>) -> Result<()> {
        let local = &self.local;
        let with_flag = local.tops.iter().chain(&local.held).copied();
        let mut places: Vec<(Ino, Ino)> = Vec::new();
        for ino in with_flag.collect::<Vec<_>>() {
            let names = self.names_of(ino)?.into_iter();
            places.extend(names.map(|(parent, _)| (parent, ino)));
        }
        for key in self.local.apart.iter().cloned().collect::<Vec<_>>() {
            let ino = self.lookup_stored(key.parent, &key.name)?;
            places.extend(ino.map(|ino| (key.parent, ino)));
        }
        for (parent, ino) in places {
            let way = self.mount_way(parent)?;
            if way.is_some_and(|way| way.contains(&dir)) {
                inodes.push(ino);
            }
        }
        if self.local.patterns.has_paths() {
            let mut dirs = vec![dir];
            while let Some(dir) = dirs.pop() {
                for child in self.children(dir)? {
                    inodes.push(child);
                    if self.inode(child)?.is_some_and(|inode| inode.is_dir()) {
                        dirs.push(child);
                    }
                }
            }
        }
        Ok(())
    }

    /// Sorts one inode, and adds those that it concerns to `more`.
    fn sort_inode(&mut self, ino: Ino, more: &mut Vec<Ino>) -> Result<()> {
        self.local.held.remove(&ino);
        self.local.wanted.remove(&ino);
        let Some(inode) = self.inode(ino)? else {
            self.local.tops.remove(&ino);
            return Ok(());
        };
        if ino == Ino::ROOT || inode.nlink == 0 {
            self.local.tops.remove(&ino);
            return Ok(());
        }
        let mut local = Vec::new();
        let mut others = Vec::new();
        for (parent, name) in self.names_of(ino)? {
            let is_local = self.is_local_name(parent, &name, inode.is_dir())?;
            if let Some(name) = self.stored_name(parent, &name)? {
                let key = NameKey { parent, name };
                self.local.apart.remove(&key);
                if is_local { &mut local } else { &mut others }.push(key);
            }
        }
        // A name that was apart has lost its mark, also if it is the only one that is left. A link
        // or a special file with one name that the catalog has is nowhere else.
        let is_told_of = !inode.kind().is_plain() && inode.flags.has(Flags::ON_BACKEND);
        if !inode.is_dir() && (inode.nlink > 1 || !is_told_of) {
            for key in &others {
                if self.mark_unmade(key)? {
                    self.touch_dirty();
                }
            }
        }
        if !others.is_empty() || local.is_empty() {
            for key in local {
                if !self.is_in_place(&key, ino)? {
                    self.local.apart.insert(key);
                }
            }
            return self.let_travel(inode, &others, more);
        }
        match inode.is_dir() {
            true => self.keep_dir(inode, &local[0], more),
            false => self.keep_file(inode, &local),
        }
    }

    /// Returns whether a name of the mount is local.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn is_local_name(&mut self, parent: Ino, name: &Name, is_dir: bool) -> Result<bool> {
        if self.is_local_dir(parent)? {
            return Ok(true);
        }
        let mut meant = name.clone();
        if !is_dir {
            if let Some(database) = database_of_shared_memory(name)
                && self.lookup(parent, &database)?.is_some()
            {
                return Ok(true);
            }
            // A journal goes where its database goes.
            if let Ok(database) = Name::new(database_of(name.as_bytes()))
                && self.lookup(parent, &database)?.is_some()
            {
                meant = database;
            }
        }
        let patterns = self.local.patterns.clone();
        let dir = match parent {
            Ino::ROOT => Some(RelPath::root()),
            dir => self.mount_path(dir)?,
        };
        Ok(dir.is_some_and(|dir| patterns.matches(&dir.join(&meant), is_dir)))
    }

    /// Returns whether an inode has the flag, or will have it when it is sorted, for all of its
    /// names are local.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn stays_local(&mut self, ino: Ino) -> Result<bool> {
        let Some(inode) = self.inode(ino)? else {
            return Ok(false);
        };
        if inode.flags.has(Flags::LOCAL) {
            return Ok(true);
        }
        let names = self.names_of(ino)?;
        for (parent, name) in &names {
            if !self.is_local_name(*parent, name, inode.is_dir())? {
                return Ok(false);
            }
        }
        Ok(!names.is_empty())
    }

    pub(super) fn is_local_dir(&mut self, dir: Ino) -> Result<bool> {
        let inode = self.inode(dir)?;
        Ok(inode.is_some_and(|inode| inode.flags.has(Flags::LOCAL)))
    }

    /// Returns whether the drive has `ino` under this name, and will have the directory of it.
    fn is_in_place(&mut self, key: &NameKey, ino: Ino) -> Result<bool> {
        let (mut key, mut ino) = (key.clone(), ino);
        loop {
            let placed = self.placed(key.parent, &key.name)?;
            if placed.is_none_or(|entry| entry.ino != ino) {
                return Ok(false);
            }
            // One with the flag leaves the drive, unless others have made it there under this name.
            if !self.is_local_dir(key.parent)? {
                return Ok(true);
            }
            ino = key.parent;
            match self.stored_key_of(ino)? {
                Some(above) => key = above,
                None => return Ok(false),
            }
        }
    }

    /// Returns the name of a directory, as it is stored.
    fn stored_key_of(&mut self, dir: Ino) -> Result<Option<NameKey>> {
        let Some((parent, name)) = self.a_name_of(dir)? else {
            return Ok(None);
        };
        let stored = self.stored_name(parent, &name)?;
        Ok(stored.map(|name| NameKey { parent, name }))
    }

    /// Takes the flag from an inode with a name that travels.
    fn let_travel(
        &mut self,
        mut inode: Inode,
        names: &[NameKey],
        more: &mut Vec<Ino>,
    ) -> Result<()> {
        self.local.tops.remove(&inode.ino);
        if !inode.flags.has(Flags::LOCAL) {
            return Ok(());
        }
        inode.flags.clear(Flags::LOCAL);
        self.put_inode(inode.clone());
        for key in names {
            if !self.is_in_place(key, inode.ino)? {
                self.mark_again(key)?;
            }
            if !inode.is_dir() {
                self.sort_journals(key, more)?;
            }
        }
        if inode.flags.any(Flags::DIRTY) {
            self.mark_inode_again(&inode)?;
        }
        if inode.is_dir() {
            more.extend(self.children(inode.ino)?);
        }
        self.touch_dirty();
        Ok(())
    }

    /// Keeps a file, or another entry that is no directory, all of whose names are local.
    fn keep_file(&mut self, mut inode: Inode, names: &[NameKey]) -> Result<()> {
        let places = self.places_of(inode.ino)?;
        let mut is_moved = false;
        for (place, _) in &places {
            is_moved |= !names.contains(place) || !self.is_in_place(place, inode.ino)?;
        }
        let is_away = inode.kind() == FileKind::Regular
            && inode.size > 0
            && inode.location() == Location::Backend;
        if is_moved && is_away {
            // Its old name is taken off the drive only together with one that has a mark.
            for key in names {
                self.mark_unmade(key)?;
            }
            self.hold(inode.ino, [inode.ino]);
            return Ok(());
        }
        let is_as_on_drive = !places.is_empty() && !is_moved && !inode.flags.any(Flags::DIRTY);
        if is_as_on_drive && !inode.flags.has(Flags::LOCAL) {
            return Ok(());
        }
        inode.flags.set(Flags::LOCAL);
        if is_moved && inode.kind() == FileKind::Regular {
            // The old name goes, so these are the only bytes.
            inode.flags.set(Flags::DATA_DIRTY);
        }
        self.keep(inode, names)
    }

    /// Keeps a directory with a local name, and what is in it.
    fn keep_dir(&mut self, mut inode: Inode, name: &NameKey, more: &mut Vec<Ino>) -> Result<()> {
        let place = self.a_place_of(inode.ino)?.map(|(key, _)| key);
        if self.is_in_place(name, inode.ino)? {
            if inode.flags.has(Flags::LOCAL) {
                // Another machine has made it on the drive, too.
                inode.flags.clear(Flags::LOCAL);
                self.local.tops.remove(&inode.ino);
                more.extend(self.children(inode.ino)?);
                self.put_inode(inode);
            }
            return Ok(());
        }
        if inode.flags.has(Flags::LOCAL) {
            return self.keep(inode, std::slice::from_ref(name));
        }
        // What moves with a directory was looked at with that.
        let moves_along = place.as_ref().is_some_and(|key| key.parent == name.parent)
            && self.is_local_dir(name.parent)?;
        if place.is_some() && !moves_along {
            let away = self.away_below(inode.ino)?;
            if !away.is_empty() {
                self.hold(inode.ino, away);
                return Ok(());
            }
        }
        inode.flags.set(Flags::LOCAL);
        let ino = inode.ino;
        self.keep(inode, std::slice::from_ref(name))?;
        if place.is_some() {
            // The directory leaves the drive with all that this has in it, also what has no mark:
            // older versions that it kept.
            for (name, _) in self.placed_in(ino)? {
                self.mark_again(&NameKey { parent: ino, name })?;
            }
        }
        more.extend(self.children(ino)?);
        Ok(())
    }

    fn hold(&mut self, ino: Ino, away: impl IntoIterator<Item = Ino>) {
        self.local.held.insert(ino);
        let wanted = away.into_iter().collect();
        self.local.wanted.insert(ino, wanted);
    }

    /// Stores an inode with the flag, and removes the marks at which a batch has nothing to do.
    fn keep(&mut self, inode: Inode, names: &[NameKey]) -> Result<()> {
        let ino = inode.ino;
        self.put_inode(inode);
        let settle = params![int(ino.0)];
        self.change("keep an inode", statements::SETTLE_INODE, settle)?;
        let mut is_top = false;
        for key in names {
            is_top |= !self.is_local_dir(key.parent)?;
            let placed = self.placed(key.parent, &key.name)?.map(|entry| entry.ino);
            let has_a_step = match placed {
                None => false,
                Some(placed) if placed == ino => !self.is_in_place(key, ino)?,
                // An older version, which the drive keeps, unless it has another name now, or
                // its directory leaves the drive.
                Some(other) => {
                    self.is_local_dir(key.parent)?
                        || self.inode(other)?.is_some_and(|inode| inode.nlink > 0)
                }
            };
            match has_a_step {
                true => self.mark_again(key)?,
                false => self.forget_mark(key)?,
            }
        }
        match is_top {
            true => self.local.tops.insert(ino),
            false => self.local.tops.remove(&ino),
        };
        Ok(())
    }

    fn forget_mark(&mut self, key: &NameKey) -> Result<()> {
        let row = params![int(key.parent.0), key.name.as_bytes()];
        self.change("keep a name", statements::FORGET_DIRTY_NAME, row)?;
        Ok(())
    }

    /// Marks a name that was sorted.
    fn mark_again(&mut self, key: &NameKey) -> Result<()> {
        let seq = self.next_seq()?;
        let row = params![int(key.parent.0), key.name.as_bytes(), int(seq.0)];
        self.change("mark a name", statements::MARK_NAME, row)?;
        Ok(())
    }

    /// Marks a name that the drive does not have, if it has no mark. Returns whether it had none.
    fn mark_unmade(&mut self, key: &NameKey) -> Result<bool> {
        let is_unmade = self.placed(key.parent, &key.name)?.is_none();
        if !is_unmade || self.is_marked(key.parent, &key.name)? {
            return Ok(false);
        }
        self.mark_again(key)?;
        Ok(true)
    }

    fn mark_inode_again(&mut self, inode: &Inode) -> Result<()> {
        if inode.flags.has(Flags::ON_BACKEND) {
            let row = params![int(inode.ino.0)];
            self.change("mark an inode", statements::MARK_INODE, row)?;
        }
        Ok(())
    }

    /// Returns the files below a directory whose bytes only the drive has, and the directories
    /// whose names are not known.
    fn away_below(&mut self, dir: Ino) -> Result<Vec<Ino>> {
        let mut away = Vec::new();
        let mut dirs = vec![dir];
        while let Some(dir) = dirs.pop() {
            if away.len() > WANTED {
                break;
            }
            let listed = self
                .inode(dir)?
                .is_some_and(|it| it.flags.has(Flags::LISTED));
            if !listed {
                away.push(dir);
            }
            for child in self.children(dir)? {
                let Some(inode) = self.inode(child)? else {
                    continue;
                };
                let is_file = inode.kind() == FileKind::Regular;
                if inode.is_dir() {
                    dirs.push(child);
                } else if is_file && inode.size > 0 && inode.location() == Location::Backend {
                    away.push(child);
                }
            }
        }
        Ok(away)
    }

    fn children(&mut self, dir: Ino) -> Result<Vec<Ino>> {
        let (mut found, mut after) = (Vec::new(), 0);
        loop {
            let some = self.list(dir, after, u64::MAX, LISTED)?;
            let Some(last) = some.last() else {
                return Ok(found);
            };
            after = last.cookie;
            found.extend(some.iter().map(|entry| entry.ino));
        }
    }

    fn read_inos(&self, sql: &str) -> Result<Vec<Ino>> {
        self.conn
            .prepare(sql)
            .and_then(|mut s| {
                s.query_map([], |row| Ok(Ino(row.get::<_, i64>(0)? as u64)))?
                    .collect()
            })
            .context("list inodes to sort")
    }

    fn read_names(&self, sql: &str) -> Result<Vec<NameKey>> {
        self.conn
            .prepare(sql)
            .and_then(|mut s| s.query_map([], super::tree::key_from_row)?.collect())
            .context("list names to sort")
    }

    /// Returns how many inodes are held.
    pub fn held_count(&self) -> u64 {
        self.local.held.len() as u64
    }

    /// Returns the inodes with the flag in directories without it, and those that are held.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn local_tops(&mut self) -> Result<(Vec<Ino>, Vec<Ino>)> {
        self.commit()?;
        let mut tops = self.read_inos(TOPS)?;
        tops.sort_unstable();
        let mut held: Vec<Ino> = self.local.held.iter().copied().collect();
        held.sort_unstable();
        Ok((tops, held))
    }
}

impl Index {
    /// Sorts as [`IndexWriter::sort_local`], and lets requests pass in between.
    ///
    /// # Errors
    /// The same.
    pub fn sort_local(&self) -> Result<()> {
        while self.lock().sort_some(AT_A_TIME)? {}
        Ok(())
    }
}

impl Snapshot {
    /// Counts what stays local.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn local_counts(&self) -> Result<LocalCounts> {
        // The condition is that of the index `inodes_local`, word for word.
        let sql = "SELECT count(*), total(CASE WHEN mode & 61440 = 32768 THEN size ELSE 0 END)
             FROM inodes WHERE flags & 512 <> 0 AND mode & 61440 <> 16384 AND nlink > 0";
        let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, f64>(1)?));
        let counted = self.conn.query_row(sql, [], read);
        let (files, bytes) = counted.context("count what stays local")?;
        Ok(LocalCounts {
            files: files.cast_unsigned(),
            bytes: bytes as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Capabilities, Timestamp};
    use crate::plan::names::NameRules;

    fn open(dir: &tempfile::TempDir) -> Index {
        let rules = NameRules::new(&Capabilities::everything());
        Index::open(&dir.path().join("index.db"), rules).unwrap()
    }

    fn set(state: &mut IndexWriter, pattern: &str) {
        let patterns = Patterns::new(&[pattern.to_owned()]).unwrap();
        state.set_local_patterns(Arc::new(patterns)).unwrap();
    }

    fn local(state: &mut IndexWriter, files: &[Ino]) -> usize {
        let mut is_local = |ino: Ino| {
            let inode = state.inode(ino).unwrap().unwrap();
            inode.flags.has(Flags::LOCAL)
        };
        files.iter().filter(|ino| is_local(**ino)).count()
    }

    #[test]
    fn patterns_that_come_back_before_all_was_sorted_by_others_sort_all_again() {
        let dir = tempfile::tempdir().unwrap();
        let index = open(&dir);
        let mut state = index.lock();
        let root = Inode::new(Ino::ROOT, libc::S_IFDIR | 0o755, 0, 0, Timestamp(0));
        state.put_inode(root);
        set(&mut state, "tmp/");
        state.sort_local().unwrap();
        let mut files = Vec::new();
        for n in 0..10 {
            let ino = state.new_ino().unwrap();
            let inode = Inode::new(ino, libc::S_IFREG | 0o644, 0, 0, Timestamp(0));
            state.put_inode(inode.clone());
            let name = Name::new(format!("{n}.part").as_bytes()).unwrap();
            state.add_name(Ino::ROOT, &name, &inode).unwrap();
            files.push(ino);
        }
        set(&mut state, "*.part");
        assert!(state.sort_some(3).unwrap(), "there are more");
        assert_eq!(local(&mut state, &files), 3);
        state.commit().unwrap();
        drop(state);
        drop(index);
        let index = open(&dir);
        let mut state = index.lock();
        set(&mut state, "tmp/");
        state.sort_local().unwrap();
        assert_eq!(local(&mut state, &files), 0);
    }
}
