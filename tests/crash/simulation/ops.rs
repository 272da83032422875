//! What programs do in the mount, on the engine and on the model.

use std::sync::Arc;

use ferryfs::vfs::{FsError, RenameMode};

use super::model::{Model, What, is_within, split};
use super::sim::Sim;

const NAMES: [&str; 6] = ["a", "b", "c", "D", "sub", "x.txt"];

/// One call and what the mount may be after it: the last if it was answered with success; any of
/// them if the daemon died in it.
struct Call {
    text: String,
    done: Result<(), FsError>,
    /// States on the way: made or emptied, but not written.
    between: Vec<Model>,
    after: Model,
}

impl Sim {
    fn a_place(&mut self) -> String {
        let mut dirs = self.model.paths(|what| *what == What::Dir);
        dirs.retain(|dir| dir.matches('/').count() < 3);
        dirs.push(String::new());
        let (dir, name) = (self.rng.pick(&dirs), self.rng.pick(&NAMES));
        match dir.as_str() {
            "" => name.to_string(),
            dir => format!("{dir}/{name}"),
        }
    }

    fn a_file(&mut self) -> Option<String> {
        let files = self.model.paths(|what| matches!(what, What::File(_)));
        (!files.is_empty()).then(|| self.rng.pick(&files))
    }

    fn anything(&mut self) -> Option<String> {
        let all = self.model.paths(|_| true);
        (!all.is_empty()).then(|| self.rng.pick(&all))
    }

    /// One operation; false if none came to mind.
    pub(crate) fn operate(&mut self) -> bool {
        let call = match self.rng.below(20) {
            0..=5 => self.put(),
            6..=8 => self.edit(),
            9 => self.truncate(),
            10..=13 => self.rename(),
            14 => self.exchange(),
            15 => self.link(),
            16 | 17 => self.remove(),
            18 => self.symlink(),
            _ => self.mkdir(),
        };
        let Some(call) = call else { return false };
        self.note(format!("{} -> {:?}", call.text, call.done.as_ref().err()));
        self.settle(call);
        true
    }

    /// Takes over what a call has done.
    fn settle(&mut self, call: Call) {
        if self.watch.is_dead() {
            self.restart_dead();
            let before = std::mem::take(&mut self.model);
            let maybe = [before].into_iter().chain(call.between).chain([call.after]);
            self.model = self.that_is(maybe.collect());
            return;
        }
        let Err(error) = call.done else {
            self.model = call.after;
            return;
        };
        let full = self.ssd_is_full() && error.errno() == libc::ENOSPC;
        let away = !self.drive_is_believed()
            && matches!(error.errno(), libc::ENOMEDIUM | libc::ETIMEDOUT | libc::EIO);
        assert!(full || away, "{}: {error}", call.text);
        let before = std::mem::take(&mut self.model);
        self.model = self.that_is([before].into_iter().chain(call.between).collect());
    }

    fn put(&mut self) -> Option<Call> {
        let old = if self.rng.one_in(2) {
            self.a_file()
        } else {
            None
        };
        let path = match old {
            Some(path) => path,
            None => self.a_place(),
        };
        if matches!(self.model.what(&path), Some(What::Dir | What::Link(_)))
            || self.model.respelled(&path).is_some()
        {
            return None;
        }
        let bytes = self.rng.bytes(60);
        let fsync = self.rng.one_in(6);
        let mut emptied = self.model.clone();
        emptied.put(&path, What::File(Arc::default()));
        let mut after = self.model.clone();
        after.put(&path, What::File(Arc::new(bytes.clone())));
        let text = format!("put {path} {} bytes, fsync {fsync}", bytes.len());
        let done = self.e().try_put(&path, &bytes, fsync);
        Some(Call {
            text,
            done,
            // Written, but the fsync or the close was not answered.
            between: vec![emptied, after.clone()],
            after,
        })
    }

    fn edit(&mut self) -> Option<Call> {
        let path = self.a_file()?;
        let Some(What::File(old)) = self.model.what(&path) else {
            return None;
        };
        let mut new = old.to_vec();
        let at = self.rng.below(new.len() + 10);
        let bytes = self.rng.bytes(30);
        if !bytes.is_empty() {
            new.resize(new.len().max(at + bytes.len()), 0);
            new[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        let mut after = self.model.clone();
        after.put(&path, What::File(Arc::new(new)));
        Some(Call {
            text: format!("edit {path} at {at}, {} bytes", bytes.len()),
            done: self.e().try_edit(&path, at as u64, &bytes),
            between: vec![after.clone()],
            after,
        })
    }

    fn truncate(&mut self) -> Option<Call> {
        let path = self.a_file()?;
        let size = self.rng.below(40);
        let Some(What::File(old)) = self.model.what(&path) else {
            return None;
        };
        let mut new = old.to_vec();
        new.resize(size, 0);
        let mut after = self.model.clone();
        after.put(&path, What::File(Arc::new(new)));
        Some(Call {
            text: format!("truncate {path} to {size}"),
            done: self.e().try_truncate(&path, size as u64),
            between: vec![after.clone()],
            after,
        })
    }

    fn rename(&mut self) -> Option<Call> {
        let from = self.anything()?;
        let (dir, name) = split(&from);
        let to = match self.rng.below(4) {
            0 => {
                let turned: String = name.chars().map(turn_case).collect();
                if dir.is_empty() {
                    turned
                } else {
                    format!("{dir}/{turned}")
                }
            }
            1 => self.anything()?,
            _ => self.a_place(),
        };
        let replaces = self.model.what(&to);
        let moved = self.model.what(&from)?;
        let possible = match (moved, replaces) {
            (_, None) => self.model.respelled(&to).is_none_or(|other| *other == from),
            (What::Dir, Some(What::Dir)) => self.model.is_empty_dir(&to),
            (What::Dir, _) | (_, Some(What::Dir)) => false,
            _ => true,
        };
        if !possible || from == to || is_within(&to, &from) || is_within(&from, &to) {
            return None;
        }
        let mut after = self.model.clone();
        after.rename(&from, &to);
        Some(Call {
            text: format!("rename {from} to {to}"),
            done: self.e().rename_with(&from, &to, RenameMode::Replace),
            between: vec![],
            after,
        })
    }

    fn exchange(&mut self) -> Option<Call> {
        let (one, other) = (self.anything()?, self.anything()?);
        if is_within(&one, &other) || is_within(&other, &one) {
            return None;
        }
        let mut after = self.model.clone();
        after.exchange(&one, &other);
        Some(Call {
            text: format!("exchange {one} and {other}"),
            done: self.e().rename_with(&one, &other, RenameMode::Exchange),
            between: vec![],
            after,
        })
    }

    fn link(&mut self) -> Option<Call> {
        let (from, to) = (self.a_file()?, self.a_place());
        if self.model.what(&to).is_some() || self.model.respelled(&to).is_some() {
            return None;
        }
        let mut after = self.model.clone();
        after.link(&from, &to);
        Some(Call {
            text: format!("link {from} as {to}"),
            done: self.e().try_link(&from, &to),
            between: vec![],
            after,
        })
    }

    fn remove(&mut self) -> Option<Call> {
        let path = self.anything()?;
        let dir = self.model.what(&path) == Some(&What::Dir);
        if dir && !self.model.is_empty_dir(&path) {
            return None;
        }
        let mut after = self.model.clone();
        after.remove(&path);
        Some(Call {
            text: format!("remove {path}"),
            done: self.e().try_remove(&path, dir),
            between: vec![after.clone()],
            after,
        })
    }

    fn make(&mut self, what: What, target: Option<&[u8]>) -> Option<Call> {
        let path = self.a_place();
        if self.model.what(&path).is_some() || self.model.respelled(&path).is_some() {
            return None;
        }
        let mut after = self.model.clone();
        after.put(&path, what);
        Some(Call {
            text: format!("make {path}, link {}", target.is_some()),
            done: self.e().try_make(&path, target),
            between: vec![],
            after,
        })
    }

    fn symlink(&mut self) -> Option<Call> {
        let target = [b"to ", &self.rng.bytes(9)[..]].concat();
        self.make(What::Link(target.clone()), Some(&target))
    }

    fn mkdir(&mut self) -> Option<Call> {
        self.make(What::Dir, None)
    }
}

fn turn_case(c: char) -> char {
    match c.is_ascii_lowercase() {
        true => c.to_ascii_uppercase(),
        false => c.to_ascii_lowercase(),
    }
}
