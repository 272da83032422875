//! The end of a volume: its drive becomes a plain directory again, and its cache goes.
//!
//! The daemon has flushed and ended before. Everything is checked once more with the locks of cache
//! and volume held, as a daemon holds them: the cache must have nothing that the drive does not
//! have, but for local files, which are copied out first. Only then something is removed, and in
//! this order:
//!
//! 1. [`Note`] is written into the cache, durably. From here on no mount takes the cache up
//!    ([`super::volume::CacheFacts::read`] refuses it), so none can take what follows for a loss.
//! 2. What is in `.ferryfs`, then the marker, then `.ferryfs` itself; a sync after each. As long as
//!    the marker is there, it proves that this is the volume. Without it the folder must be empty
//!    or gone, and the file system the same.
//! 3. What is in the cache; the note last.
//!
//! A crash leaves one of these states. [`go_on`] checks the folder again, as others may have used
//! the drive since, and takes the rest of the steps. Another machine
//! that mounts the drive in step 2 finds a volume without a catalog: all files, without attributes.

mod copy_out;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::copy_out::copy_out;
pub(super) use self::copy_out::{amount, local_files};
use super::drive_identity::Same;
use super::lease::Keeper;
use super::options::Protect;
use super::volume::{CACHE_FILE, CacheFacts};
use super::volume_lock::VolumeLock;
use super::{
    already_running, first_contact, known_caches, lease_for_recovery, monitor, mountpoint, verify,
    volume,
};
use crate::cache::{CacheLock, Store, private};
use crate::control::mounts;
use crate::core::{Exit, Failure, FileKind, ForeignText, Name, RelPath, quoted};
use crate::drive::mounted::MountedDir;
use crate::drive::{Backend, is_absent};
use crate::error::FlushError;
use crate::flush::remove_below;
use crate::format::layout;
use crate::index::Index;
use crate::plan::names::NameRules;

/// The name of the note in the cache.
const NOTE: &str = "leaving.json";

/// What the user has agreed to.
#[derive(Clone, Debug, Default)]
pub struct LeaveWish {
    /// The kept versions are deleted.
    pub drop_versions: bool,
    /// Local files are copied there.
    pub local_to: Option<PathBuf>,
}

/// A leave whose checks have been passed.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Note {
    facts: CacheFacts,
    drive: PathBuf,
    mountpoint: PathBuf,
    name: Option<String>,
    /// The kept versions may be deleted.
    #[serde(default)]
    drop_versions: bool,
}

/// A leave that was interrupted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// The cache.
    pub cache: PathBuf,
    /// The drive's directory.
    pub drive: PathBuf,
    /// Where it was mounted.
    pub mountpoint: PathBuf,
    /// Its name in the configuration.
    pub name: Option<String>,
}

/// Which volume is left.
#[derive(Clone, Debug)]
pub struct Volume<'a> {
    /// Its cache.
    pub cache: &'a Path,
    /// The drive's directory.
    pub drive: &'a Path,
    /// Where it was mounted.
    pub mountpoint: &'a Path,
    /// Its name in the configuration.
    pub name: Option<String>,
}

/// Refuses a cache whose volume is being left.
///
/// # Errors
/// If it is.
pub(super) fn check_not_left(dir: &Path) -> Result<(), Failure> {
    match fs::symlink_metadata(dir.join(NOTE)) {
        Err(_) => Ok(()),
        Ok(_) => Err(Failure::failed(format!(
            "a `ferryfs leave` of the drive with the cache {} was interrupted",
            dir.escaped()
        ))
        .hint(format!(
            "nothing is lost: all files are on the drive. Finish it: ferryfs leave --yes --cache {}",
            quoted(dir)
        ))),
    }
}

/// Returns the interrupted leaves of this user, or the one of the cache `only`.
pub fn unfinished(only: Option<&Path>) -> Vec<Unfinished> {
    let dirs = match only {
        Some(dir) => vec![dir.to_path_buf()],
        None => known_caches::dirs(),
    };
    let found = dirs.into_iter().filter_map(|cache| {
        let note = read(&cache).ok().flatten()?;
        Some(Unfinished {
            cache,
            drive: note.drive,
            mountpoint: note.mountpoint,
            name: note.name,
        })
    });
    found.collect()
}

fn read(cache: &Path) -> Result<Option<Note>, Failure> {
    if fs::symlink_metadata(cache.join(NOTE)).is_err() {
        return Ok(None);
    }
    volume::check_private(cache)?;
    let bytes = private::read(&cache.join(NOTE)).map_err(|error| of_cache(cache, &error))?;
    let decoded = serde_json::from_slice(&bytes);
    decoded.map(Some).map_err(|error| {
        Failure::failed(format!(
            "{NOTE} in {} cannot be decoded: {error}",
            cache.escaped()
        ))
        .hint(
            "nothing was changed; look at the drive, and remove the cache by hand if all is there",
        )
    })
}

fn of_cache(cache: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!("the cache {}: {error}", cache.escaped()))
        .hint("nothing is lost; try again")
}

/// The locks of a volume and its cache.
struct Held {
    _cache: CacheLock,
    _volume: VolumeLock,
    lease: Option<Arc<Keeper>>,
}

/// Leaves a volume whose daemon has ended. `say` gets a line for each step.
///
/// # Errors
/// If something is only in the cache, or is in the way. Nothing was removed then; or why it cannot
/// be finished, which [`go_on`] does later.
pub fn leave(of: &Volume<'_>, wish: &LeaveWish, say: &mut dyn FnMut(&str)) -> Result<(), Failure> {
    let facts = CacheFacts::read(of.cache)?
        .ok_or_else(|| Failure::failed(format!("{} is no cache of ferryfs", of.cache.escaped())))?;
    let lock = CacheLock::acquire(of.cache)
        .map_err(|error| already_running::explain(facts.volume, error.into()))?;
    let found = verify::verify(of.drive, &facts, false)?;
    let backend = found.dir;
    let held = Held {
        _volume: VolumeLock::acquire(facts.volume, &backend)?,
        lease: Some(lease_for_recovery(of.drive, &backend, facts.volume)?),
        _cache: lock,
    };
    let hint = "nothing was removed; `ferryfs mount` takes the drive up again";
    check_folder(&backend, wish.drop_versions, hint)?;
    let index = check_cache(of.cache, &facts)?;
    copy_out(of.cache, &index, wish.local_to.as_deref(), say)?;
    drop(index);
    let note = Note {
        facts,
        drive: of.drive.into(),
        mountpoint: of.mountpoint.into(),
        name: of.name.clone(),
        drop_versions: wish.drop_versions,
    };
    write(of.cache, &note)?;
    finish(of.cache, &note, Some(&backend), held, say)
}

/// Finishes a leave that was interrupted. The drive may be at another place by now, and another
/// machine may have used it: its folder is checked again. Kept versions are deleted if that was
/// agreed to then, or is now.
///
/// # Errors
/// Why not.
pub fn go_on(
    cache: &Path,
    drive: Option<&Path>,
    drop_versions: bool,
    say: &mut dyn FnMut(&str),
) -> Result<(), Failure> {
    let note = read(cache)?.ok_or_else(|| {
        Failure::failed(format!("no leave of {} was interrupted", cache.escaped()))
    })?;
    let lock = CacheLock::acquire(cache)
        .map_err(|error| already_running::explain(note.facts.volume, error.into()))?;
    let drive = drive.unwrap_or(&note.drive);
    let is_left = !cache.join(CACHE_FILE).exists();
    let (backend, lease) = match verify::verify(drive, &note.facts, false) {
        _ if is_left => (None, None),
        Ok(found) => {
            let lease = lease_for_recovery(drive, &found.dir, note.facts.volume)?;
            let hint = "nothing more was removed, and all files are on the drive";
            check_folder(&found.dir, note.drop_versions || drop_versions, hint)?;
            (Some(found.dir), Some(lease))
        }
        Err(verify::Refusal::Unmarked(_) | verify::Refusal::MarkerDeleted(_)) => {
            (Some(unmarked(drive, &note.facts)?), None)
        }
        Err(refusal) => return Err(refusal.into()),
    };
    let volume = match &backend {
        Some(backend) => VolumeLock::acquire(note.facts.volume, backend)?,
        None => VolumeLock::acquire_away(note.facts.volume)?,
    };
    let held = Held {
        _cache: lock,
        _volume: volume,
        lease,
    };
    finish(cache, &note, backend.as_ref(), held, say)
}

/// Opens the drive after its marker was removed: the same file system, with an empty folder or
/// none.
fn unmarked(drive: &Path, facts: &CacheFacts) -> Result<MountedDir, Failure> {
    let absent = |what: &str, hint: String| Failure {
        code: Exit::BackendAbsent,
        message: format!("{} {what}", drive.escaped()),
        hint: Some(hint),
    };
    let same = verify::file_system_at(drive, facts);
    if same == Same::No {
        let hint = "mount that one there, or name its directory; nothing was changed";
        return Err(absent("is not the drive that was being left", hint.into()));
    }
    // Nothing but its files says that it is the drive.
    let is_sure = same == Same::Yes && facts.was_at(drive);
    if !is_sure && first_contact::is_bare(drive) {
        let hint = "mount the drive that was being left there; nothing was changed. If it is \
                    there and has no files, remove the cache by hand";
        return Err(absent("is empty", hint.into()));
    }
    let backend = MountedDir::open(drive).map_err(FlushError::from)?;
    match backend.names_in(&layout::dir()) {
        Err(error) if is_absent(&error) => Ok(backend),
        Err(error) => Err(FlushError::from(error).into()),
        Ok(names) if names.is_empty() => Ok(backend),
        Ok(_) => Err(Failure::failed(format!(
            "not left: {} has no marker, but is not empty",
            quoted(&drive.join(layout::dir().as_os_str()))
        ))
        .hint(
            "nothing was changed. It may be another drive: name the right one. If it is the right \
             one, look at what is there, and remove it by hand",
        )),
    }
}

fn write(cache: &Path, note: &Note) -> Result<(), Failure> {
    let written = serde_json::to_vec(note)
        .map_err(io::Error::from)
        .and_then(|bytes| private::replace(&cache.join(NOTE), &bytes))
        .and_then(|()| File::open(cache)?.sync_all());
    written.map_err(|error| of_cache(cache, &error))
}

/// Checks that all of the cache is on the drive, but for local files. Returns its index.
fn check_cache(cache: &Path, facts: &CacheFacts) -> Result<Index, Failure> {
    let refuse = |what: String| {
        Err(Failure::failed(format!("not left: {what}"))
            .hint("nothing was removed. Mount the drive again, and see `ferryfs status`"))
    };
    if monitor::has_open_batch(cache) {
        return refuse("a batch on the drive is not finished".into());
    }
    let index = Index::open(&cache.join("index.db"), NameRules::new(&facts.capabilities))
        .map_err(of_index)?;
    let (unclean, is_dirty) = {
        let state = index.lock();
        let unclean = state.meta("unclean").map_err(of_index)?;
        (unclean, state.anything_dirty().map_err(of_index)?)
    };
    if unclean.is_some() {
        return refuse("the daemon did not end cleanly".into());
    }
    index.commit().map_err(of_index)?;
    let here = index.snapshot().and_then(|it| it.only_here());
    let here = here.map_err(of_index)?;
    if is_dirty || here > 0 {
        return refuse("something in the cache is not on the drive".into());
    }
    let store = Store::open(cache).map_err(|error| Failure::failed(error.to_string()))?;
    match store.lost_and_found() {
        Ok((0, _)) => Ok(index),
        Ok((count, path)) => refuse(lost_line(count as u64, path)),
        Err(error) => refuse(error.to_string()),
    }
}

fn of_index(error: crate::index::IndexError) -> Failure {
    Failure::failed(error.to_string()).hint("nothing was removed")
}

/// What is said of files in the cache that belong to no file of the mount.
pub(super) fn lost_line(count: u64, path: &Path) -> String {
    format!(
        "{count} files that belong to no file of the mount are in {}: look at them, and move or \
         delete them",
        path.escaped()
    )
}

/// The names that ferryfs gives in its folder, besides the marker and what a lease needs.
const OWN: [&str; 9] = [
    ".nomedia",
    ".metadata_never_index",
    "staging",
    "batches",
    "catalog",
    "reserve",
    "probe",
    "lost+found",
    "versions",
];

/// The files of a lease.
const LEASE: [&str; 3] = ["lease", "lease.new", "lease.knock"];

/// Returns what is in the way of removing `.ferryfs` from the drive, a line each. The batch of a
/// flush under way is not, as `is_flushing` says.
pub(super) fn in_the_way(
    backend: &dyn Backend,
    is_flushing: bool,
) -> Result<Vec<String>, FlushError> {
    let mut lines = Vec::new();
    for name in backend.names_in(&layout::dir())? {
        let is_known = [layout::marker_path()]
            .iter()
            .any(|path| ends_with(path, &name))
            || OWN
                .iter()
                .chain(&LEASE)
                .any(|own| name.as_bytes() == own.as_bytes());
        if !is_known {
            let path = layout::dir().join(&name);
            lines.push(format!(
                "{} on the drive is not ferryfs's: move it elsewhere",
                path.as_os_str().escaped()
            ));
        }
    }
    let what = [
        (
            layout::lost_found(),
            "look at what is in it, and move or delete it",
        ),
        (
            layout::batches_dir(),
            "a batch there is not finished: flush, or `ferryfs recover`",
        ),
    ];
    for (path, what) in what {
        match backend.names_in(&path) {
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(error.into()),
            Ok(names) if names.is_empty() || (is_flushing && path == layout::batches_dir()) => {}
            Ok(_) => lines.push(format!("{path} on the drive is not empty: {what}")),
        }
    }
    Ok(lines)
}

fn ends_with(path: &RelPath, name: &Name) -> bool {
    path.split_last().is_some_and(|(_, last)| last == *name)
}

/// Refuses a folder with something that must not be removed. A folder that was removed in part
/// passes, too.
fn check_folder(backend: &dyn Backend, drop_versions: bool, hint: &str) -> Result<(), Failure> {
    let refuse = |what: &str, more: &str| {
        Failure::failed(format!("not left: {what}")).hint(format!("{hint}{more}"))
    };
    if let Some(line) = in_the_way(backend, false)?.first() {
        return Err(refuse(line, ""));
    }
    match backend.names_in(&layout::versions_root()) {
        // Not so if it is no directory.
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(refuse(
            &format!("the old versions on the drive cannot be looked at: {error}"),
            "",
        )),
        Ok(names) if names.is_empty() || drop_versions => Ok(()),
        Ok(_) => Err(refuse(
            "old versions are kept on the drive",
            ". Copy those that you want, then add --drop-versions",
        )),
    }
}

/// Removes what is to be removed, in the order of the head of this file.
fn finish(
    cache: &Path,
    note: &Note,
    backend: Option<&MountedDir>,
    held: Held,
    say: &mut dyn FnMut(&str),
) -> Result<(), Failure> {
    let again = |failure: Failure| {
        failure.hint(format!(
            "nothing is lost: all files are on the drive. Run it again to finish: ferryfs leave \
             --yes --cache {}",
            quoted(cache)
        ))
    };
    if let Some(backend) = backend {
        remove_folder(backend, held.lease.as_deref()).map_err(|error| {
            let message = format!("cannot remove .ferryfs from the drive: {error}");
            again(Failure::failed(message))
        })?;
        say(&format!("removed .ferryfs from {}", note.drive.escaped()));
    }
    release_mountpoint(cache, &note.mountpoint);
    remove_cache(cache).map_err(|error| {
        let message = format!("cannot remove the cache {}: {error}", cache.escaped());
        again(Failure::failed(message))
    })?;
    // What is interrupted before is found by this.
    known_caches::forget(&note.facts);
    // An empty directory is no cache, and there is no note by which this could be tried again.
    match fs::remove_dir(cache) {
        Ok(()) => say(&format!("removed the cache {}", cache.escaped())),
        Err(error) => say(&format!(
            "removed the cache; its empty directory {} stays: {error}",
            cache.escaped()
        )),
    }
    Ok(())
}

/// Removes `.ferryfs`: the marker after all else.
fn remove_folder(backend: &MountedDir, lease: Option<&Keeper>) -> Result<(), FlushError> {
    let dir = layout::dir();
    let names = match backend.names_in(&dir) {
        Err(error) if is_absent(&error) => return Ok(()),
        names => names?,
    };
    for name in names {
        let own = OWN.iter().any(|own| name.as_bytes() == own.as_bytes());
        if own {
            remove(backend, &dir.join(&name))?;
        }
    }
    backend.sync()?;
    if let Some(lease) = lease {
        lease.release();
    }
    for path in [
        layout::lease_path(),
        layout::lease_new_path(),
        layout::knock_path(),
    ] {
        remove(backend, &path)?;
    }
    remove(backend, &layout::marker_path())?;
    backend.sync()?;
    backend.remove_dir(&dir)?;
    Ok(backend.sync()?)
}

fn remove(backend: &dyn Backend, path: &RelPath) -> Result<(), FlushError> {
    let meta = match backend.metadata(path) {
        Err(error) if is_absent(&error) => return Ok(()),
        meta => meta?,
    };
    match meta.kind {
        FileKind::Directory => remove_below(backend, path),
        _ => Ok(backend.remove_file(path)?),
    }
}

/// Gives the bare mount point the permissions back that it had before it was protected. What is
/// mounted there by now is left alone.
fn release_mountpoint(cache: &Path, path: &Path) {
    if mounts::is_mount_point(path) {
        return;
    }
    let mut note = mountpoint::Note::read(cache, path);
    if let Ok(bare) = File::open(path) {
        mountpoint::protect(&bare, &mut note, cache, Protect::No);
    }
}

/// Removes all that is in the cache. The note goes last; without it and without `cache.json` what
/// is left is nothing.
fn remove_cache(cache: &Path) -> io::Result<()> {
    // First what makes it a cache: what is removed in part must never be used.
    remove_if_there(&cache.join(CACHE_FILE))?;
    File::open(cache)?.sync_all()?;
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        if entry.file_name() == NOTE {
            continue;
        }
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false => remove_if_there(&entry.path())?,
        }
    }
    remove_if_there(&cache.join(NOTE))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
