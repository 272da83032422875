//! Where the daemons of this machine are: a link per volume, named by its id, to the cache of the daemon that serves it.
//!
//! A mount tells by itself where its daemon is. A daemon whose mount is gone, while a container or a bind mount still uses the
//! file system, is found by this. The links are no secret and no proof: whom a command believes is decided where it connects.
//! A link that a daemon has left behind when it was killed leads to a socket on which nobody listens.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::Uid;
use uuid::Uuid;

use super::protocol::SOCKET_NAME;

/// A daemon's link, taken away when this is dropped.
#[derive(Debug)]
pub struct Noted {
    link: PathBuf,
    cache: PathBuf,
}

/// Notes that the volume is served from `cache`, until what is returned is dropped.
///
/// # Errors
/// If there is no place for it. The daemon is then found by its mount and by its cache only.
pub fn note(volume: Uuid, cache: &Path) -> io::Result<Noted> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for dir in own_places() {
        match note_in(&dir, volume, cache) {
            Ok(noted) => return Ok(noted),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn note_in(dir: &Path, volume: Uuid, cache: &Path) -> io::Result<Noted> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if fs::symlink_metadata(dir)?.uid() != Uid::effective().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    remove_left_over(dir);
    let link = dir.join(volume.to_string());
    let fresh = dir.join(format!(".{volume}.{}", std::process::id()));
    let _ = fs::remove_file(&fresh);
    std::os::unix::fs::symlink(cache, &fresh)?;
    fs::rename(&fresh, &link).inspect_err(|_| drop(fs::remove_file(&fresh)))?;
    Ok(Noted {
        link,
        cache: cache.into(),
    })
}

/// Links of daemons that were killed, and whose socket has gone since.
fn remove_left_over(dir: &Path) {
    for (volume, cache) in noted_in(dir) {
        let socket = fs::symlink_metadata(cache.join(SOCKET_NAME));
        if socket.is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            let _ = fs::remove_file(dir.join(volume.to_string()));
        }
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        if fs::read_link(&self.link).is_ok_and(|cache| cache == self.cache) {
            let _ = fs::remove_file(&self.link);
        }
    }
}

/// The volumes that daemons are noted for, of this user and, for root, of all users; and their caches.
pub fn noted() -> Vec<(Uuid, PathBuf)> {
    let mut found: Vec<(Uuid, PathBuf)> = Vec::new();
    for dir in own_places().into_iter().chain(places_of_others()) {
        for (volume, cache) in noted_in(&dir) {
            if !found.contains(&(volume, cache.clone())) {
                found.push((volume, cache));
            }
        }
    }
    found
}

fn noted_in(dir: &Path) -> Vec<(Uuid, PathBuf)> {
    let own = Uid::effective();
    // Where somebody else has put links, they lead where he wants.
    let is_trusted = fs::symlink_metadata(dir).is_ok_and(|meta| {
        meta.is_dir() && (own.is_root() || meta.uid() == own.as_raw() || meta.uid() == 0)
    });
    let Ok(entries) = (match is_trusted {
        true => fs::read_dir(dir),
        false => return Vec::new(),
    }) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let volume = Uuid::parse_str(entry.file_name().to_str()?).ok()?;
            Some((volume, fs::read_link(entry.path()).ok()?))
        })
        .collect()
}

/// Where this user's daemons are noted, the best place first. A command may run in another environment than the daemon did, so all
/// are looked into.
fn own_places() -> Vec<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let own = Uid::effective();
    let mut places = Vec::new();
    places.extend(absolute("XDG_RUNTIME_DIR").map(|dir| dir.join("ferryfs")));
    places.push(format!("/run/user/{own}/ferryfs").into());
    if own.is_root() {
        places.push("/run/ferryfs".into());
    }
    let data = absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")));
    if let Some(data) = data {
        places.push(data.join("ferryfs").join("running"));
    }
    places
}

fn places_of_others() -> Vec<PathBuf> {
    if !Uid::effective().is_root() {
        return Vec::new();
    }
    let users = fs::read_dir("/run/user").into_iter().flatten().flatten();
    users.map(|user| user.path().join("ferryfs")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(root: &Path, name: &str) -> PathBuf {
        let cache = root.join(name);
        fs::create_dir(&cache).unwrap();
        fs::write(cache.join(SOCKET_NAME), "").unwrap();
        cache
    }

    #[test]
    fn a_daemon_is_found_as_long_as_it_is_noted() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("ferryfs");
        let [a, b, c] = ["a", "b", "c"].map(|name| cache(dir.path(), name));
        let (volume, other) = (Uuid::new_v4(), Uuid::new_v4());
        let noted = note_in(&place, volume, &a).unwrap();
        let second = note_in(&place, other, &b).unwrap();
        fs::write(place.join("something else"), "").unwrap();
        let mut found = noted_in(&place);
        found.sort_by(|a, b| a.1.cmp(&b.1));
        assert_eq!(found, [(volume, a), (other, b.clone())]);
        drop(noted);
        assert_eq!(noted_in(&place), [(other, b.clone())]);
        // One that is killed leaves its link, and the next daemon of the volume replaces it.
        std::mem::forget(second);
        let next = note_in(&place, other, &c).unwrap();
        assert_eq!(noted_in(&place), [(other, c)]);
        drop(next);
        assert!(noted_in(&place).is_empty());
    }

    #[test]
    fn a_late_end_does_not_take_the_link_of_the_next_daemon_away() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| cache(dir.path(), name));
        let volume = Uuid::new_v4();
        let old = note_in(dir.path(), volume, &a).unwrap();
        let _new = note_in(dir.path(), volume, &b).unwrap();
        drop(old);
        assert_eq!(noted_in(dir.path()), [(volume, b)]);
    }

    #[test]
    fn what_a_killed_daemon_left_goes_when_its_cache_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| cache(dir.path(), name));
        let (volume, other) = (Uuid::new_v4(), Uuid::new_v4());
        std::mem::forget(note_in(dir.path(), volume, &a).unwrap());
        fs::remove_dir_all(&a).unwrap();
        let _noted = note_in(dir.path(), other, &b).unwrap();
        assert_eq!(noted_in(dir.path()), [(other, b)]);
    }
}
