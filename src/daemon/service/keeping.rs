//! What stays local, as `status` counts it and `ferryfs local` lists it.

use super::Service;
use crate::control::protocol::{
    Amount, ControlError, ErrorCode, LocalChange, LocalCounts, LocalEntry, LocalReport,
};
use crate::core::{ForeignText, Ino, RelPath};
use crate::daemon::keeping::{self, compiled};
use crate::daemon::options::Keeping;
use crate::index::{Flags, IndexError, Snapshot, WalkedName};
use crate::plan::patterns::Patterns;
use crate::plan::units::database_of;

/// The most names that are listed.
const LISTED: usize = 1000;

impl Service {
    /// Gives the flag of local files to what was made or renamed since the last time.
    pub(in crate::daemon) fn sort_local(&self) -> Result<(), IndexError> {
        match self.read_only {
            true => Ok(()),
            false => self.index.sort_local(),
        }
    }

    /// Takes up other patterns.
    pub(super) fn set_local_patterns(&self, options: &Keeping) -> Result<(), ControlError> {
        if self.read_only {
            return Ok(());
        }
        keeping::set_local_patterns(&self.index, options).map_err(|failure| {
            ControlError::new(ErrorCode::Failed, failure.message)
                .with_hint("nothing was changed; try again")
        })
    }

    /// Counts what stays local.
    pub(super) fn local_counts(&self) -> LocalCounts {
        let held = self.index.lock().held_count();
        let counted = (self.index.commit())
            .and_then(|()| self.index.snapshot())
            .and_then(|snapshot| snapshot.local_counts());
        let counted = counted.unwrap_or_else(|error| {
            tracing::error!(%error, "cannot count what stays local");
            crate::index::LocalCounts::default()
        });
        LocalCounts {
            files: counted.files,
            bytes: counted.bytes,
            held,
            expired: self.keeper.expired(),
        }
    }

    /// Lists what stays local, and says what other patterns would change.
    pub(super) fn local_report(
        &self,
        instead: Option<&[String]>,
    ) -> Result<LocalReport, ControlError> {
        let instead = instead.map(compiled).transpose().map_err(|failure| {
            let hint = failure.hint.unwrap_or_default();
            ControlError::new(ErrorCode::BadRequest, failure.message).with_hint(hint)
        })?;
        self.sort_local()
            .and_then(|()| self.report_of(instead.as_deref()))
            .map_err(|error| ControlError::new(ErrorCode::Failed, error.to_string()))
    }

    fn report_of(&self, instead: Option<&Patterns>) -> Result<LocalReport, IndexError> {
        let (tops, held, now, snapshot) = {
            let mut state = self.index.lock();
            let (tops, held) = state.local_tops()?;
            (tops, held, state.local_patterns(), self.index.snapshot()?)
        };
        let mut report = LocalReport {
            patterns: now.lines().to_vec(),
            entries_count: (tops.len() + held.len()) as u64,
            ..LocalReport::default()
        };
        for (ino, held) in
            (tops.iter().map(|ino| (*ino, false))).chain(held.iter().map(|ino| (*ino, true)))
        {
            let Some(path) = self.index.lock().mount_path(ino)? else {
                report.entries_count -= 1;
                continue;
            };
            let amount = amount_below(&snapshot, ino, &path)?;
            report.all.files += amount.files;
            report.all.bytes = report.all.bytes.saturating_add(amount.bytes);
            if report.entries.len() < LISTED {
                let path = path.as_os_str().to_text();
                report.entries.push(LocalEntry { path, amount, held });
            }
        }
        report.entries.sort_by(|a, b| a.path.cmp(&b.path));
        report.change = instead
            .map(|then| change(&snapshot, &now, then))
            .transpose()?;
        Ok(report)
    }
}

/// Returns what is below a name, or the file itself.
fn amount_below(snapshot: &Snapshot, ino: Ino, path: &RelPath) -> Result<Amount, IndexError> {
    let mut amount = Amount::default();
    let Some(inode) = snapshot.inode(ino)? else {
        return Ok(amount);
    };
    if !inode.is_dir() {
        amount.add(size_of(inode.mode, inode.size));
        return Ok(amount);
    }
    snapshot.walk((ino, path.clone()), (), &mut |name, _, _, ()| {
        if !name.is_dir() {
            amount.add(size_of(name.mode, name.size));
        }
        Some(())
    })?;
    Ok(amount)
}

fn size_of(mode: u32, size: u64) -> u64 {
    match mode & libc::S_IFMT == libc::S_IFREG {
        true => size,
        false => 0,
    }
}

/// Returns what other patterns would change, by a look at all names.
fn change(snapshot: &Snapshot, now: &Patterns, then: &Patterns) -> Result<LocalChange, IndexError> {
    let mut change = LocalChange::default();
    let root = (Ino::ROOT, RelPath::root());
    snapshot.walk(root, (false, false), &mut |name, path, others, above| {
        // A journal goes where its database goes.
        let meant = unit_path(name, path, others);
        let is_dir = name.is_dir();
        let is_now = above.0
            || name.flags.has(Flags::LOCAL)
            || now.matches_itself(meant.as_ref().unwrap_or(path), is_dir);
        let is_then = above.1 || then.matches_itself(meant.as_ref().unwrap_or(path), is_dir);
        let size = size_of(name.mode, name.size);
        let is_on_drive = name.flags.has(Flags::ON_BACKEND);
        if !is_dir && !is_now && is_then {
            change.becomes_local.add(size);
            if is_on_drive {
                change.kept_on_drive.add(size);
            }
        }
        // What the drive has as it is here need not be written.
        if !is_dir && is_now && !is_then && (!is_on_drive || name.flags.any(Flags::DIRTY)) {
            change.travels.add(size);
        }
        Some((is_now, is_then))
    })?;
    Ok(change)
}

/// Returns the path of the database that a journal belongs to.
fn unit_path(name: &WalkedName, path: &RelPath, others: &[WalkedName]) -> Option<RelPath> {
    let database = database_of(name.name.as_bytes());
    if name.is_dir() || database == name.name.as_bytes() {
        return None;
    }
    let found = others
        .iter()
        .find(|other| other.name.as_bytes() == database)?;
    let (dir, _) = path.split_last()?;
    Some(dir.join(&found.name))
}
