//! What lies in the directory under the mount is moved into the mount: a program that retried while nothing was mounted has
//! written it there, and was told that it succeeded.
//!
//! Each file is copied into the mount beside its final name, synced, named without replacing anything, and only then removed
//! below. A crash at any point leaves it in both places at worst: the next pass finds the same bytes and removes the lower
//! ones. A name that is taken gives way to a conflict name; nothing is overwritten. Nothing here can fail the mount.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, readlinkat, renameat, renameat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};

use super::mountpoint::{self, Note};
use super::options::Protect;
use super::service::Service;
use crate::base::{ForeignText, Ino, Name, Timestamp};
use crate::rules::merge::conflict_name;
use crate::sys;
use crate::sys::mounts::{self, Place};

/// How long a file that somebody is still writing is waited for.
const WRITER: Duration = Duration::from_secs(5);

/// How long ago a file must have changed to be moved where the system does not tell whether
/// somebody has it open for writing.
const OLD: Duration = Duration::from_secs(600);

/// Bytes that are copied between two looks whether to stop.
const PIECE: usize = 1 << 20;

/// Names that are tried for a conflict.
const ATTEMPTS: u32 = 1000;

/// Names that are told one by one.
const NAMED: usize = 10;

/// What a pass has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// Paths in the mount that came in.
    pub(super) files: Vec<PathBuf>,
    /// Those of them that have got a conflict name.
    pub(super) conflicts: Vec<PathBuf>,
    /// What could not be moved, and why.
    pub(super) left: Vec<(PathBuf, String)>,
}

impl Taken {
    /// Adds what another pass has done; of what stays behind only the latest counts.
    pub(super) fn add(&mut self, later: Taken) {
        self.files.extend(later.files);
        self.conflicts.extend(later.conflicts);
        self.left = later.left;
    }

    /// For people, a line each.
    pub(super) fn lines(&self, mountpoint: &Path) -> Vec<String> {
        let mut lines = Vec::new();
        let list = |paths: &[PathBuf]| {
            let shown: Vec<String> = paths
                .iter()
                .take(NAMED)
                .map(|path| path.escaped().to_string())
                .collect();
            match paths.len().saturating_sub(NAMED) {
                0 => shown.join(", "),
                more => format!("{} and {more} more", shown.join(", ")),
            }
        };
        if !self.files.is_empty() {
            lines.push(format!(
                "{} files were in the bare directory {} while nothing was mounted there; they are in the mount now: {}",
                self.files.len(),
                mountpoint.escaped(),
                list(&self.files)
            ));
        }
        if !self.conflicts.is_empty() {
            lines.push(format!(
                "{} of them have a conflict name, because the mount has another file of the name: {}",
                self.conflicts.len(),
                list(&self.conflicts)
            ));
        }
        if let Some((path, reason)) = self.left.first() {
            lines.push(format!(
                "{} files in the bare directory {} are hidden under the mount and could not be moved into it: {}: {reason}; unmount, and move them away",
                self.left.len(),
                mountpoint.escaped(),
                path.escaped()
            ));
        }
        lines
    }
}

/// How long the first pass is waited for before the mount is said to be ready.
const FIRST_PASS: Duration = Duration::from_secs(3);

/// When a directory in which something was found, or could have come in just now, is looked into again.
const AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];

/// The thread that moves what is under a mount into it.
pub(super) struct Below {
    service: Arc<Service>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    first: Option<Receiver<()>>,
    /// The directory, if it could be had.
    bare: Option<Arc<File>>,
    /// Whether the daemon before died.
    is_later: bool,
    /// Whether the directory is protected for the first time.
    is_news: bool,
}

impl Below {
    /// Protects the directory `bare` under the mount of `service`, and begins to move what is in it into the mount. With `is_later`
    /// the daemon before died, and programs may be at work in it: it is looked into again.
    pub(super) fn begin(
        service: &Arc<Service>,
        bare: Option<File>,
        note: &mut Note,
        protect: Protect,
        cache: &Path,
        is_later: bool,
    ) -> Below {
        let mut below = Below {
            service: service.clone(),
            stop: Arc::default(),
            thread: None,
            first: None,
            bare: bare.map(Arc::new),
            is_later,
            is_news: false,
        };
        let Some(bare) = below.bare.clone() else {
            return below;
        };
        below.is_news = mountpoint::protect(&bare, note, cache, protect);
        if is_empty(&bare) && !is_later {
            return below;
        }
        let (done, first) = bounded(1);
        let (service, stop, note) = (service.clone(), below.stop.clone(), note.clone());
        let spawned = thread::Builder::new()
            .name("ferryfs-below".into())
            .spawn(move || run(&service, (&bare, is_later), &note, &stop, &done));
        match spawned {
            Ok(thread) => (below.thread, below.first) = (Some(thread), Some(first)),
            Err(error) => tracing::error!(%error, "what lies under the mount stays there"),
        }
        below
    }

    /// What whoever mounts is told: once that the directory is protected, and what the first pass has done, if that took no long
    /// time.
    pub(super) fn first_lines(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.is_news {
            lines.push(format!(
                "while nothing is mounted at {}, it cannot be written to, so that no file gets there by mistake; it is given back by `ferryfs mount --no-protect-mountpoint`",
                self.service.mountpoint.escaped()
            ));
        }
        let Some(first) = self.first.take() else {
            return lines;
        };
        lines.extend(match first.recv_timeout(FIRST_PASS) {
            Err(RecvTimeoutError::Timeout) => vec![
                "files that were in the bare mount point are being moved into the mount; `ferryfs status` tells how it went".into(),
            ],
            _ => self.service.from_below.lock().lines(&self.service.mountpoint),
        });
        lines
    }

    /// Stops it, waiting a while. Whether the next mount has something to move.
    pub(super) fn stop(self, patience: Duration) -> bool {
        self.stop.store(true, Ordering::Release);
        let end = Instant::now() + patience;
        if let Some(thread) = self.thread {
            while !thread.is_finished() && Instant::now() < end {
                thread::sleep(Duration::from_millis(5));
            }
        }
        // What was not seen stays as it was.
        (self.bare).map_or(self.is_later, |bare| !is_empty(&bare))
    }
}

fn run(
    service: &Service,
    (bare, is_later): (&File, bool),
    note: &Note,
    stop: &AtomicBool,
    done: &Sender<()>,
) {
    let is_over = || stop.load(Ordering::Acquire);
    let is_ending = || service.ending.load(Ordering::Acquire);
    let is_interrupted = || is_over() || is_ending();
    let mut pauses = [Duration::ZERO].into_iter().chain(AGAIN).peekable();
    while let Some(pause) = pauses.next_if(|_| !is_over()) {
        let end = Instant::now() + pause;
        // An unmount that finds the mount in use takes back that it ends.
        while !is_over() && (Instant::now() < end || is_ending()) {
            thread::sleep(Duration::from_millis(50));
        }
        while !is_over() && !is_empty(bare) {
            if let Err(error) = one_pass(service, bare, note, is_later, &is_interrupted) {
                tracing::warn!(%error, "what lies under the mount stays there for now");
            }
            if !is_ending() {
                break;
            }
            while !is_over() && is_ending() {
                thread::sleep(Duration::from_millis(50));
            }
        }
        let _ = done.try_send(());
    }
}

fn one_pass(
    service: &Service,
    bare: &File,
    note: &Note,
    is_later: bool,
    is_over: &dyn Fn() -> bool,
) -> io::Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    let mount = File::from(sys::path::open_place_for(&service.mountpoint, flags)?);
    // Whatever is mounted there now, into the bare directory itself nothing is moved.
    let there = mount.metadata()?;
    if service.device.get() != Some(&there.dev()) || there.ino() != Ino::ROOT.0 {
        return Err(io::Error::other("the mount is not there any more"));
    }
    mountpoint::unlock(bare, note);
    let is_written = |ino| service.index.lock().is_writing(Ino(ino));
    let taken = take_in(
        bare,
        &mount,
        &hostname(),
        Watch {
            is_later,
            is_written: &is_written,
            stop: is_over,
        },
    );
    mountpoint::lock_again(bare, note);
    service.from_below.lock().add(taken);
    Ok(())
}

/// The name of this machine, for the names of conflicts.
fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_string())
        .unwrap_or_default()
}

/// Moves all that is in `bare` into the directory `mount`. `host` goes into conflict names.
fn take_in(bare: &File, mount: &File, host: &str, watch: Watch<'_>) -> Taken {
    let mut mover = Mover {
        now: Timestamp::from(SystemTime::now()),
        host,
        watch,
        place: Place::default(),
        taken: Taken::default(),
    };
    let moved = mounts::place_of(bare).and_then(|place| {
        mover.place = place;
        mover.directory(bare.as_fd(), mount.as_fd(), Path::new(""))
    });
    if let Err(error) = moved {
        mover.leave(Path::new("."), &error);
    }
    mover.taken
}

/// What a move goes by.
struct Watch<'a> {
    /// What is below was written after all that is in the mount: since the daemon before died.
    is_later: bool,
    /// Whether somebody has this file of the mount open for writing.
    is_written: &'a dyn Fn(u64) -> bool,
    /// Whether to stop.
    stop: &'a dyn Fn() -> bool,
}

/// Whether anything is in `bare`.
pub(super) fn is_empty(bare: &File) -> bool {
    names(bare.as_fd()).is_ok_and(|names| names.is_empty())
}

struct Mover<'a> {
    now: Timestamp,
    host: &'a str,
    watch: Watch<'a>,
    /// Where the bare directory is.
    place: Place,
    taken: Taken,
}

fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<Vec<u8>>> {
    // Opened anew: a descriptor that was read once is at its end.
    sys::dir::read_names(openat(
        dir,
        ".",
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?)
}

fn directory_in(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(dir, name, flags, Mode::empty())?.into())
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT)
}

fn stat_in(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<FileStat> {
    Ok(fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)?)
}

fn is_taken(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AlreadyExists
}

impl Mover<'_> {
    fn is_over(&self) -> bool {
        (self.watch.stop)()
    }

    /// Makes sure that `file` is of the bare directory. What is mounted somewhere in it has its
    /// files there on purpose.
    fn check_place(&self, file: impl AsFd) -> io::Result<()> {
        match mounts::place_of(file)? == self.place {
            true => Ok(()),
            false => Err(io::Error::other("something else is mounted there")),
        }
    }

    fn leave(&mut self, path: &Path, error: &io::Error) {
        tracing::warn!(path = %path.escaped(), %error, "what lies under the mount stays there");
        self.taken.left.push((path.into(), error.to_string()));
    }

    fn note(&mut self, wanted: &Path, got: Option<Name>) {
        let path = match &got {
            Some(name) => wanted.with_file_name(name.as_os_str()),
            None => wanted.to_path_buf(),
        };
        tracing::info!(path = %path.escaped(), "moved into the mount from under it");
        if got.is_some() {
            self.taken.conflicts.push(path.clone());
        }
        self.taken.files.push(path);
    }

    /// Moves the contents of `from` into `to`, which both are the directory `at`.
    fn directory(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, at: &Path) -> io::Result<()> {
        for name in names(from)? {
            if self.is_over() {
                return Err(io::Error::other("the mount is ending"));
            }
            let name = OsStr::from_bytes(&name);
            let path = at.join(name);
            if let Err(error) = self.entry(from, to, name, &path) {
                self.leave(&path, &error);
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
    ) -> io::Result<()> {
        let stat = match stat_in(from, name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            stat => stat?,
        };
        let own = Name::new(name.as_bytes())
            .map_err(|_| io::Error::other("the name cannot be in a mount"))?;
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        self.check_place(openat(from, name, flags, Mode::empty())?)?;
        match kind(&stat) {
            SFlag::S_IFDIR => return self.subdirectory(from, to, &own, path, &stat),
            SFlag::S_IFREG => self.file(from, to, &own, path)?,
            SFlag::S_IFLNK => {
                let target = readlinkat(from, name)?;
                let is_same = |name: &Name| {
                    readlinkat(to, name.as_os_str()).is_ok_and(|there| there == target)
                };
                let got = self.named(&own, false, is_same, |name| {
                    Ok(symlinkat(target.as_os_str(), to, name.as_os_str())?)
                })?;
                self.note(path, got);
            }
            other => {
                let permissions = Mode::from_bits_truncate(stat.st_mode & 0o7777);
                let got = self.named(
                    &own,
                    false,
                    |_| false,
                    |name| {
                        Ok(mknodat(
                            to,
                            name.as_os_str(),
                            other,
                            permissions,
                            stat.st_rdev,
                        )?)
                    },
                )?;
                self.note(path, got);
            }
        }
        Ok(unlinkat(from, name, UnlinkatFlags::NoRemoveDir)?)
    }

    /// Gives something `wanted`, or the first conflict name that is free: `make` says whether it was. `None` for the name itself, also
    /// if what has it `is_same`.
    fn named(
        &self,
        wanted: &Name,
        is_dir: bool,
        is_same: impl Fn(&Name) -> bool,
        make: impl Fn(&Name) -> io::Result<()>,
    ) -> io::Result<Option<Name>> {
        match make(wanted) {
            Err(error) if is_taken(&error) && is_same(wanted) => return Ok(None),
            Err(error) if is_taken(&error) => {}
            result => return result.map(|()| None),
        }
        for attempt in 0..ATTEMPTS {
            let Some(name) = conflict_name(wanted, self.now, self.host, attempt, is_dir) else {
                break;
            };
            match make(&name) {
                Err(error) if is_taken(&error) => {}
                result => return result.map(|()| Some(name)),
            }
        }
        Err(io::Error::other("no free name for it"))
    }

    fn subdirectory(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &Name,
        path: &Path,
        stat: &FileStat,
    ) -> io::Result<()> {
        let lower = directory_in(from, name.as_os_str())?;
        self.check_place(&lower)?;
        let permissions = Mode::from_bits_truncate(stat.st_mode & 0o7777);
        let is_directory = |name: &Name| {
            stat_in(to, name.as_os_str()).is_ok_and(|there| kind(&there) == SFlag::S_IFDIR)
        };
        let is_new = std::cell::Cell::new(false);
        let got = self.named(name, true, is_directory, |name| {
            mkdirat(to, name.as_os_str(), permissions | Mode::S_IRWXU)?;
            is_new.set(true);
            Ok(())
        })?;
        let target = got.as_ref().unwrap_or(name);
        let upper = directory_in(to, target.as_os_str())?;
        let path = path.with_file_name(target.as_os_str());
        self.directory(lower.as_fd(), upper.as_fd(), &path)?;
        if is_new.get() {
            give_owner(to, target, stat);
            upper.set_permissions(std::fs::Permissions::from_mode(stat.st_mode & 0o7777))?;
            upper.set_modified(modified(stat))?;
        }
        match unlinkat(from, name.as_os_str(), UnlinkatFlags::RemoveDir) {
            // What is in it is named already, or has just come in and is found by the next pass.
            Err(nix::Error::ENOTEMPTY) => Ok(()),
            result => Ok(result?),
        }
    }

    fn file(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &Name,
        path: &Path,
    ) -> io::Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let mut source = File::from(openat(from, name.as_os_str(), flags, Mode::empty())?);
        self.check_place(&source)?;
        let meta = self.wait_for_writers(&source)?;
        let stat = stat_in(from, name.as_os_str())?;
        let temporary = format!(".ferryfs-moving-{}", meta.ino());
        // One that a crash has left. What others have made must not become the copy: they may have it open.
        let _ = unlinkat(to, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
        let flags =
            OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut copy = File::from(openat(
            to,
            temporary.as_str(),
            flags,
            Mode::S_IRUSR | Mode::S_IWUSR,
        )?);
        let copied = self.copy(&mut source, &mut copy).and_then(|()| {
            let own = Name::new(temporary.as_bytes()).map_err(io::Error::other)?;
            give_xattrs((from, name), (to, &own));
            give_owner(to, &own, &stat);
            copy.set_permissions(meta.permissions())?;
            copy.set_modified(meta.modified()?)?;
            copy.sync_all()?;
            let now = source.metadata()?;
            match (now.len(), now.mtime(), now.mtime_nsec())
                == (meta.len(), meta.mtime(), meta.mtime_nsec())
            {
                true => Ok(()),
                false => Err(io::Error::other("it is being written to")),
            }
        });
        drop(copy);
        let placed = copied.and_then(|()| {
            let is_same = |name: &Name| compare(&source, to, name) == Some(Overlap::Same);
            self.named(name, false, is_same, |name| {
                let named = renameat2(
                    to,
                    temporary.as_str(),
                    to,
                    name.as_os_str(),
                    RenameFlags::RENAME_NOREPLACE,
                );
                // Begun in the mount, cut off there by the death of the daemon, and written whole below by a program that retried.
                if named == Err(nix::Error::EEXIST)
                    && self.watch.is_later
                    && !stat_in(to, name.as_os_str())
                        .is_ok_and(|there| (self.watch.is_written)(there.st_ino))
                    && compare(&source, to, name) == Some(Overlap::Beginning)
                {
                    return Ok(renameat(to, temporary.as_str(), to, name.as_os_str())?);
                }
                Ok(named?)
            })
        });
        // Gone under its own name, unless it came to nothing.
        let _ = unlinkat(to, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
        self.note(path, placed?);
        Ok(())
    }

    /// Waits a while until nobody writes to the file any more. Where the system does not tell, as
    /// of files of others and on some network file systems, only one that has not changed for long
    /// counts as unwritten.
    fn wait_for_writers(&self, file: &File) -> io::Result<std::fs::Metadata> {
        let end = Instant::now() + WRITER;
        while !is_unwritten(sys::file::is_unwritten(file), &file.metadata()?)? {
            if Instant::now() > end || self.is_over() {
                return Err(io::Error::other("somebody has it open and writes to it"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        file.metadata()
    }

    fn copy(&self, source: &mut File, copy: &mut File) -> io::Result<()> {
        let mut piece = vec![0; PIECE];
        loop {
            if self.is_over() {
                return Err(io::Error::other("the mount is ending"));
            }
            match source.read(&mut piece)? {
                0 => return Ok(()),
                length => copy.write_all(&piece[..length])?,
            }
        }
    }
}

/// Whether nobody writes to the file with `meta`, by what the system has `told`.
fn is_unwritten(told: io::Result<bool>, meta: &std::fs::Metadata) -> io::Result<bool> {
    // One from the future is not old.
    let age = |time: SystemTime| time.elapsed().unwrap_or_default();
    let is_old = || meta.modified().is_ok_and(|time| age(time) > OLD);
    match told {
        Err(_) if is_old() => Ok(true),
        Err(error) => Err(io::Error::other(format!(
            "it has changed in the last {} minutes, and whether somebody still writes to it cannot be told ({error})",
            OLD.as_secs() / 60
        ))),
        told => told,
    }
}

fn modified(stat: &FileStat) -> SystemTime {
    Timestamp::from_parts(
        stat.st_mtime,
        u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
    )
    .into()
}

/// Gives what is `name` in `dir` its owner, where this process may.
fn give_owner(dir: BorrowedFd<'_>, name: &Name, stat: &FileStat) {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    let _ = fchownat(
        dir,
        name.as_os_str(),
        Some(uid),
        Some(gid),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    );
}

/// Copies the extended attributes that the mount takes.
fn give_xattrs((from, source): (BorrowedFd<'_>, &Name), (to, copy): (BorrowedFd<'_>, &Name)) {
    for attribute in sys::xattr::list_at(&from, Some(source)).unwrap_or_default() {
        if let Ok(Some(value)) = sys::xattr::get_at(&from, Some(source), &attribute) {
            let _ = sys::xattr::set_at(&to, Some(copy), &attribute, &value);
        }
    }
}

/// What a file in the mount has of one below.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Overlap {
    /// The very bytes: a pass before this one has moved it.
    Same,
    /// Only its beginning, perhaps nothing, and from an earlier time.
    Beginning,
}

/// What the file `name` in `dir` has of `source`; `None` if it has bytes that `source` has not.
fn compare(source: &File, dir: BorrowedFd<'_>, name: &Name) -> Option<Overlap> {
    use std::os::unix::fs::FileExt;
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let there = File::from(openat(dir, name.as_os_str(), flags, Mode::empty()).ok()?);
    let (ours, theirs) = (there.metadata().ok()?, source.metadata().ok()?);
    if !ours.is_file() || ours.len() > theirs.len() {
        return None;
    }
    let (mut a, mut b) = (vec![0; PIECE], vec![0; PIECE]);
    let mut at = 0;
    while at < ours.len() {
        let step = PIECE.min(usize::try_from(ours.len() - at).unwrap_or(PIECE));
        there.read_exact_at(&mut a[..step], at).ok()?;
        source.read_exact_at(&mut b[..step], at).ok()?;
        if a[..step] != b[..step] {
            return None;
        }
        at += step as u64;
    }
    if ours.len() == theirs.len() {
        return Some(Overlap::Same);
    }
    (ours.modified().ok()? <= theirs.modified().ok()?).then_some(Overlap::Beginning)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const ALL: Watch<'static> = Watch {
        is_later: true,
        is_written: &|_| false,
        stop: &|| false,
    };

    struct Scene {
        _dir: tempfile::TempDir,
        bare: PathBuf,
        mount: PathBuf,
    }

    impl Scene {
        fn new() -> Scene {
            let dir = tempfile::tempdir().unwrap();
            let (bare, mount) = (dir.path().join("bare"), dir.path().join("mount"));
            fs::create_dir(&bare).unwrap();
            fs::create_dir(&mount).unwrap();
            Scene {
                _dir: dir,
                bare,
                mount,
            }
        }

        fn move_all(&self, watch: Watch<'_>) -> Taken {
            let (bare, mount) = (File::open(&self.bare), File::open(&self.mount));
            take_in(&bare.unwrap(), &mount.unwrap(), "host", watch)
        }
    }

    #[test]
    fn a_file_that_is_open_for_writing_in_the_mount_is_not_replaced() {
        for is_open in [true, false] {
            let scene = Scene::new();
            fs::write(scene.mount.join("a"), b"abc").unwrap();
            fs::write(scene.bare.join("a"), b"abcdef").unwrap();
            let number = fs::metadata(scene.mount.join("a")).unwrap().ino();
            let taken = scene.move_all(Watch {
                is_written: &|ino| is_open && ino == number,
                ..ALL
            });
            assert_eq!(taken.left, []);
            assert_eq!(taken.conflicts.len(), usize::from(is_open));
            let expected: &[u8] = if is_open { b"abc" } else { b"abcdef" };
            assert_eq!(fs::read(scene.mount.join("a")).unwrap(), expected);
            let moved = fs::read(scene.mount.join(&taken.files[0])).unwrap();
            assert_eq!(moved, b"abcdef");
            assert!(!scene.bare.join("a").exists());
        }
    }

    #[test]
    fn what_somebody_has_put_under_the_name_of_the_copy_does_not_get_the_bytes() {
        use std::io::Seek;
        let scene = Scene::new();
        fs::write(scene.bare.join("secret"), b"secret").unwrap();
        let number = fs::metadata(scene.bare.join("secret")).unwrap().ino();
        let planted = scene.mount.join(format!(".ferryfs-moving-{number}"));
        let mut planted = File::create_new(planted).unwrap();
        planted.write_all(b"x").unwrap();
        scene.move_all(ALL);
        let moved = scene.mount.join("secret");
        assert_eq!(fs::read(&moved).unwrap(), b"secret");
        planted.rewind().unwrap();
        planted.write_all(b"forged").unwrap();
        assert_eq!(fs::read(&moved).unwrap(), b"secret");
    }

    #[test]
    fn what_is_mounted_in_the_bare_directory_stays_whole() {
        use nix::mount::{MntFlags, MsFlags, mount, umount2};
        if !Uid::effective().is_root() {
            return;
        }
        let scene = Scene::new();
        let (theirs, place) = (
            scene.mount.with_file_name("theirs"),
            scene.bare.join("d/in"),
        );
        fs::create_dir(&theirs).unwrap();
        fs::create_dir_all(&place).unwrap();
        fs::write(theirs.join("film"), b"film").unwrap();
        fs::write(scene.bare.join("d/ours"), b"ours").unwrap();
        // Of the same file system: its number does not tell.
        let none = None::<&str>;
        mount(Some(&theirs), &place, none, MsFlags::MS_BIND, none).unwrap();
        let taken = scene.move_all(ALL);
        umount2(&place, MntFlags::MNT_DETACH).unwrap();
        assert_eq!(taken.left.len(), 1, "{taken:?}");
        assert_eq!(taken.left[0].0, Path::new("d/in"));
        assert!(taken.left[0].1.contains("mounted"), "{taken:?}");
        assert_eq!(fs::read(theirs.join("film")).unwrap(), b"film");
        assert!(!scene.mount.join("d/in").exists());
        assert_eq!(fs::read(scene.mount.join("d/ours")).unwrap(), b"ours");
    }

    #[test]
    fn where_writers_cannot_be_seen_only_what_is_old_counts_as_unwritten() {
        let file = tempfile::tempfile().unwrap();
        let told = || Err(io::Error::from_raw_os_error(libc::EACCES));
        let now = SystemTime::now();
        for (time, is_old) in [
            (now, false),
            (now - OLD / 2, false),
            (now + 2 * OLD, false),
            (now - 2 * OLD, true),
        ] {
            file.set_modified(time).unwrap();
            let meta = file.metadata().unwrap();
            assert_eq!(is_unwritten(told(), &meta).is_ok_and(|is| is), is_old);
            assert!(!is_unwritten(Ok(false), &meta).unwrap());
            assert!(is_unwritten(Ok(true), &meta).unwrap());
        }
    }
}
