//! Which caches this user has, wherever they are: a place that one of them knows is not enrolled for another one.
//!
//! Caches in the default directory are found there. Of one that `--cache` names elsewhere, a small file in that directory tells
//! its path. What is missing, damaged or stale there is passed over: it only helps to refuse more.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::MountOptions;
use super::volume::{self, CacheFacts};
use crate::cache::private;

/// The directory of these files, beside the caches.
const DIR: &str = "known-caches";

/// Where a cache is.
#[derive(Serialize, Deserialize)]
struct Known {
    cache: PathBuf,
}

/// Notes that the cache of `facts` is in `dir`. A failure is logged and changes nothing else.
pub(super) fn note(dir: &Path, facts: &CacheFacts) {
    let Ok(caches) = volume::default_caches() else {
        return;
    };
    if dir.parent() == Some(&caches) {
        return;
    }
    if let Err(error) = write(&caches, dir, facts) {
        tracing::warn!(%error, "the cache's place is not noted for other mounts of this user");
    }
}

/// Forgets the cache of `facts`: it is taken back before anything was in it.
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

fn all_in(caches: &Path) -> Vec<(PathBuf, CacheFacts)> {
    let paths = |dir: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    // Another user could name a cache of his there.
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
        .into_iter()
        .filter_map(|dir| {
            let facts = CacheFacts::read(&dir).ok()??;
            Some((dir, facts))
        })
        .collect()
}

/// The cache that this mount goes on with, also without its drive: the one that is named, or the one in the default directory whose
/// volume was at that place.
pub(super) fn for_mount(options: &MountOptions) -> Option<(PathBuf, CacheFacts)> {
    let place = &options.backend;
    match &options.cache {
        Some(dir) => {
            let facts = CacheFacts::read(dir).ok()??;
            facts.was_at(place).then(|| (dir.clone(), facts))
        }
        None => {
            let caches = volume::default_caches().ok()?;
            all()
                .into_iter()
                .find(|(dir, facts)| dir.parent() == Some(&caches) && facts.was_at(place))
        }
    }
}

/// The cache of this user whose volume was at `place`, if there is one.
pub(super) fn cache_made_for(place: &Path) -> Option<(PathBuf, CacheFacts)> {
    all().into_iter().find(|(_, facts)| facts.was_at(place))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;
    use crate::backend::memory::{MemoryBackend, MemoryOptions};
    use crate::base::Timestamp;
    use crate::rules::layout;
    use crate::rules::marker::Marker;
    use uuid::Uuid;

    fn facts(place: &str) -> CacheFacts {
        let drive = MemoryBackend::new(MemoryOptions::linux_like());
        drive.make_dir(&layout::dir()).unwrap();
        let marker = Marker::new(Uuid::new_v4(), [7; 16], Timestamp(0));
        CacheFacts::new(&drive, Path::new(place), &marker, Uuid::new_v4()).unwrap()
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
