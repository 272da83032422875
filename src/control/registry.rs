//! The registry of this machine's running daemons: one link per volume, named by its id, to the
//! cache of the daemon that serves it.
//!
//! A mount names its daemon by itself. The registry serves for a daemon whose mount is gone while a
//! container or a bind mount still uses the file system. The links are neither secret nor proof: a
//! command decides whom it trusts when it connects. The link of a daemon that was killed leads to a
//! socket without a listener.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{Uid, UnlinkatFlags, symlinkat, unlinkat};
use uuid::Uuid;

use super::protocol::SOCKET_NAME;
use crate::sys;
use crate::sys::mounts::facts_of;
use crate::sys::way;

/// A daemon's link, removed on drop.
#[derive(Debug)]
pub struct Noted {
    dir: PathBuf,
    volume: Uuid,
    cache: PathBuf,
}

/// Registers that the volume is served from `cache`, until the returned value is dropped.
///
/// # Errors
/// If no directory for it is usable. The daemon is then found by its mount and by its cache only.
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
    let held = made(dir)?;
    remove_left_over(&held);
    let name = volume.to_string();
    let fresh = format!(".{volume}.{}", std::process::id());
    let remove = |name: &str| unlinkat(&held, name, UnlinkatFlags::NoRemoveDir);
    let _ = remove(&fresh);
    symlinkat(cache, &held, fresh.as_str())?;
    if let Err(errno) = renameat(&held, fresh.as_str(), &held, name.as_str()) {
        let _ = remove(&fresh);
        return Err(errno.into());
    }
    Ok(Noted {
        dir: dir.into(),
        volume,
        cache: cache.into(),
    })
}

/// Opens the directory `dir`, and creates it if it is missing. It must belong to this user. For
/// root, its path must be safe too, so that no other user makes root create something at a place of
/// his choice.
fn made(dir: &Path) -> io::Result<OwnedFd> {
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let above = way::walk(parent)?;
    let of_others = Uid::effective().is_root() && facts_of(&above.dir)?.uid != 0;
    if above.danger().is_some() || of_others {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    match mkdirat(&above.dir, name, Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let held = openat(&above.dir, name, DIRECTORY, Mode::empty())?;
    match facts_of(&held)?.uid == Uid::effective().as_raw() {
        true => Ok(held),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

/// The flags to open a directory of links.
const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// Removes links of daemons that were killed and whose socket is gone.
fn remove_left_over(dir: &OwnedFd) {
    for (volume, cache) in links_in(dir) {
        let socket = fs::symlink_metadata(cache.join(SOCKET_NAME));
        if socket.is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            let _ = unlinkat(dir, volume.to_string().as_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        let name = self.volume.to_string();
        // Opened again here: a descriptor kept open would prevent the system from unmounting the
        // runtime directory of a user who has logged out.
        let Ok(dir) = made(&self.dir) else { return };
        if readlinkat(&dir, name.as_str()).is_ok_and(|cache| cache == *self.cache) {
            let _ = unlinkat(&dir, name.as_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// Returns the registered volumes and their caches, of this user and, for root, of all users.
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
    let Ok(held) = open(dir, DIRECTORY, Mode::empty()) else {
        return Vec::new();
    };
    // Links that another user has created lead where he wants.
    let is_trusted = |uid| own.is_root() || uid == own.as_raw() || uid == 0;
    match facts_of(&held).is_ok_and(|facts| is_trusted(facts.uid)) {
        true => links_in(&held),
        false => Vec::new(),
    }
}

fn links_in(dir: &OwnedFd) -> Vec<(Uuid, PathBuf)> {
    let names = openat(dir, ".", DIRECTORY, Mode::empty())
        .map_err(io::Error::from)
        .and_then(sys::dir::read_names);
    names
        .unwrap_or_default()
        .iter()
        .filter_map(|name| {
            let volume = Uuid::parse_str(std::str::from_utf8(name).ok()?).ok()?;
            let cache = readlinkat(dir, OsStr::from_bytes(name)).ok()?;
            Some((volume, cache.into()))
        })
        .collect()
}

/// Returns the directories of this user's links, the best one first. A command may run in another
/// environment than the daemon did, so it reads all of them.
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
        // A killed daemon leaves its link, and the next daemon of the volume replaces it.
        std::mem::forget(second);
        let next = note_in(&place, other, &c).unwrap();
        assert_eq!(noted_in(&place), [(other, c)]);
        drop(next);
        assert!(noted_in(&place).is_empty());
    }

    #[test]
    fn root_makes_nothing_where_another_user_leads_it() {
        if !Uid::effective().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (theirs, victim) = (dir.path().join("theirs"), dir.path().join("victim"));
        for made in [&theirs, &victim] {
            fs::create_dir(made).unwrap();
        }
        let cache = cache(dir.path(), "cache");
        let empty = || fs::read_dir(&victim).unwrap().count() == 0;
        // Root's environment may name such a directory: `sudo -E`.
        std::os::unix::fs::chown(&theirs, Some(12_345), None).unwrap();
        note_in(&theirs.join("ferryfs"), Uuid::new_v4(), &cache).unwrap_err();
        assert!(!theirs.join("ferryfs").exists());
        std::os::unix::fs::symlink(&victim, theirs.join("ferryfs")).unwrap();
        note_in(&theirs.join("ferryfs"), Uuid::new_v4(), &cache).unwrap_err();
        note_in(&theirs.join("ferryfs/x"), Uuid::new_v4(), &cache).unwrap_err();
        assert!(empty());
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
