//! The caches of this user, wherever they are: a path that one of them knows is not enrolled for
//! another one.
//!
//! Caches in the default directory are found there. For a cache that `--cache` puts elsewhere, a
//! small file in that directory has its path. A missing, damaged or stale file is ignored: the
//! files only help to refuse more.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::mountpoint::Note;
use super::volume::CacheFacts;
use super::{MountOptions, volume};
use crate::cache::private;
use crate::core::{Exit, Failure, ForeignText, quoted};

/// The directory of these files, beside the caches.
const DIR: &str = "known-caches";

/// The path of a cache.
#[derive(Serialize, Deserialize)]
struct Known {
    cache: PathBuf,
}

/// Stores that the cache of `facts` is in `dir`. A failure is only logged.
pub(super) fn note(dir: &Path, facts: &CacheFacts) {
    let Ok(caches) = volume::default_caches() else {
        return;
    };
    if dir.parent() == Some(&caches) {
        return;
    }
    if let Err(error) = write(&caches, dir, facts) {
        tracing::warn!(
            %error,
            "the path of the cache cannot be stored for other mounts of this user"
        );
    }
}

/// Removes the file of the cache of `facts`, which is being removed before it was used.
pub(super) fn forget(facts: &CacheFacts) {
    if let Ok(caches) = volume::default_caches() {
        let _ = fs::remove_file(file_of(&caches, facts));
    }
}

fn file_of(caches: &Path, facts: &CacheFacts) -> PathBuf {
    caches.join(DIR).join(format!("{}.json", facts.origin))
}

fn write(caches: &Path, dir: &Path, facts: &CacheFacts) -> io::Result<()> {
    let cache = std::path::absolute(dir)?;
    let path = file_of(caches, facts);
    let text = serde_json::to_vec(&Known { cache })?;
    if private::read(&path).is_ok_and(|found| found == text) {
        return Ok(());
    }
    volume::make_cache_dir(caches).map_err(io::Error::other)?;
    let dir = caches.join(DIR);
    volume::make_cache_dir(&dir).map_err(io::Error::other)?;
    private::check(&dir).map_err(io::Error::other)?;
    let temporary = path.with_extension("tmp");
    private::make_new(&temporary)?.write_all(&text)?;
    fs::rename(&temporary, &path)
}

/// All caches of this user that can be read.
pub(super) fn all() -> Vec<(PathBuf, CacheFacts)> {
    volume::default_caches().map_or_else(|_| Vec::new(), |caches| all_in(&caches))
}

/// The directories in which caches of this user are, or may be.
pub(super) fn dirs() -> Vec<PathBuf> {
    volume::default_caches().map_or_else(|_| Vec::new(), |caches| dirs_in(&caches))
}

fn dirs_in(caches: &Path) -> Vec<PathBuf> {
    let paths = |dir: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    // Another user could name a cache of his own there.
    let known = caches.join(DIR);
    let known = match private::check(&known) {
        Ok(()) => paths(&known),
        Err(_) => Vec::new(),
    };
    let elsewhere = known.into_iter().filter_map(|file| {
        let known: Known = serde_json::from_slice(&private::read(&file).ok()?).ok()?;
        Some(known.cache)
    });
    let mut found: Vec<PathBuf> = paths(caches).into_iter().chain(elsewhere).collect();
    found.sort();
    found.dedup();
    found
}

fn all_in(caches: &Path) -> Vec<(PathBuf, CacheFacts)> {
    dirs_in(caches)
        .into_iter()
        .filter_map(|dir| {
            let facts = CacheFacts::read(&dir).ok()??;
            Some((dir, facts))
        })
        .collect()
}

/// Whether the drive's path may be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It answers, perhaps with an error.
    Answers,
    /// It did not answer in time, and this thread must not wait for it: only the path as it is
    /// written is compared.
    Silent,
}

/// The cache with which a mount at `mountpoint` can start without its drive: the one that `options`
/// name, or the one in the default directory whose volume was at that path. Drives that are used in
/// turn at one path have a cache each; then it is the one that was mounted there last.
///
/// # Errors
/// If there are several, and none of them was ever mounted there.
pub(super) fn for_mount(
    options: &MountOptions,
    mountpoint: &Path,
    place: Place,
) -> Result<Option<(PathBuf, CacheFacts)>, Failure> {
    choose(candidates(options, place), &options.backend, mountpoint)
}

/// Whether a mount can start with an existing cache.
pub(super) fn are_there_any(options: &MountOptions, place: Place) -> bool {
    !candidates(options, place).is_empty()
}

fn candidates(options: &MountOptions, place: Place) -> Vec<(PathBuf, CacheFacts)> {
    let backend = &options.backend;
    let was_there = |facts: &CacheFacts| match place {
        Place::Answers => facts.was_at(backend),
        Place::Silent => facts.was_spelled(backend),
    };
    let mut found = match (&options.cache, volume::default_caches()) {
        (Some(dir), _) => match CacheFacts::read(dir) {
            Ok(Some(facts)) => vec![(dir.clone(), facts)],
            _ => Vec::new(),
        },
        (None, Ok(caches)) => {
            let mut found = all();
            found.retain(|(dir, _)| dir.parent() == Some(&caches));
            found
        }
        (None, Err(_)) => Vec::new(),
    };
    found.retain(|(_, facts)| was_there(facts));
    found
}

fn choose(
    mut found: Vec<(PathBuf, CacheFacts)>,
    backend: &Path,
    mountpoint: &Path,
) -> Result<Option<(PathBuf, CacheFacts)>, Failure> {
    if found.len() < 2 {
        return Ok(found.pop());
    }
    let last_used = found
        .iter()
        .enumerate()
        .filter_map(|(at, (dir, _))| Some((Note::last_used(dir, mountpoint)?, at)))
        .max();
    match last_used {
        Some((_, at)) => Ok(Some(found.swap_remove(at))),
        None => Err(ambiguous(&found, backend, mountpoint)),
    }
}

fn ambiguous(found: &[(PathBuf, CacheFacts)], backend: &Path, mountpoint: &Path) -> Failure {
    let caches: Vec<String> = found
        .iter()
        .map(|(dir, facts)| format!("--cache {} (volume {})", quoted(dir), facts.volume))
        .collect();
    Failure {
        code: Exit::BackendAbsent,
        message: format!(
            "{} volumes were at {}, none of them is there now, and none was mounted at {} before",
            found.len(),
            backend.escaped(),
            mountpoint.escaped()
        ),
        hint: Some(format!(
            "nothing was written. Mount the drive there first; or, to work without it, name the \
             cache: {}",
            caches.join(", ")
        )),
    }
}

/// The cache of this user whose volume was at `place`, if there is one.
pub(super) fn cache_made_for(place: &Path) -> Option<(PathBuf, CacheFacts)> {
    all().into_iter().find(|(_, facts)| facts.was_at(place))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Timestamp;
    use crate::drive::Backend;
    use crate::drive::memory::{MemoryBackend, MemoryOptions};
    use crate::format::layout;
    use crate::format::marker::Marker;
    use uuid::Uuid;

    fn facts(place: &str) -> CacheFacts {
        let drive = MemoryBackend::new(MemoryOptions::linux_like());
        drive.make_dir(&layout::dir()).unwrap();
        let marker = Marker::new(Uuid::new_v4(), [7; 16], Timestamp(0));
        CacheFacts::new(&drive, Path::new(place), &marker, Uuid::new_v4()).unwrap()
    }

    #[test]
    fn of_several_volumes_at_a_place_the_one_mounted_there_last_is_meant_and_else_none() {
        let data = tempfile::tempdir().unwrap();
        let found: Vec<(PathBuf, CacheFacts)> = ["a", "b", "c"]
            .map(|name| (data.path().join(name), facts("/media/usb")))
            .into();
        let (usb, here) = (Path::new("/media/usb"), Path::new("/lab"));
        for (dir, _) in &found {
            fs::create_dir(dir).unwrap();
        }
        let chosen = |found: &[(PathBuf, CacheFacts)]| choose(found.to_vec(), usb, here);
        let refused = chosen(&found).unwrap_err();
        assert_eq!(refused.code, Exit::BackendAbsent);
        let hint = refused.hint.unwrap();
        assert!(
            found.iter().all(|(dir, _)| hint.contains(&quoted(dir))),
            "{hint}"
        );
        assert_eq!(chosen(&found[..1]).unwrap().unwrap().0, found[0].0);
        Note::read(&found[0].0, Path::new("/other")).set_serving(&found[0].0, false);
        assert!(chosen(&found).is_err());
        let mut at = std::time::SystemTime::now();
        for (dir, _) in [&found[1], &found[2], &found[1]] {
            Note::read(dir, here).set_serving(dir, false);
            at += std::time::Duration::from_secs(10);
            let note = fs::File::options()
                .write(true)
                .open(dir.join("mountpoint.json"));
            note.unwrap().set_modified(at).unwrap();
            assert_eq!(chosen(&found).unwrap().unwrap().0, *dir);
        }
    }

    #[test]
    fn a_cache_elsewhere_is_known_by_the_file_that_tells_where_and_a_stale_one_is_passed_over() {
        let data = tempfile::tempdir().unwrap();
        let caches = data.path().join("ferryfs");
        let (here, elsewhere, gone) = (facts("/media/a"), facts("/media/b"), facts("/media/c"));
        let cache = data.path().join("elsewhere");
        fs::create_dir_all(caches.join("one")).unwrap();
        fs::create_dir(&cache).unwrap();
        here.write(&caches.join("one")).unwrap();
        elsewhere.write(&cache).unwrap();
        write(&caches, &cache, &elsewhere).unwrap();
        write(&caches, &data.path().join("gone"), &gone).unwrap();
        fs::write(caches.join(DIR).join("damaged.json"), b"{\"cache\":").unwrap();
        let mut found: Vec<PathBuf> = all_in(&caches)
            .into_iter()
            .map(|(_, facts)| facts.backend)
            .collect();
        found.sort();
        assert_eq!(found, [Path::new("/media/a"), Path::new("/media/b")]);
        assert!(all_in(&data.path().join("nothing")).is_empty());
    }
}
