//! Finding out what a backend can do, by trying it in a directory of its own.
//!
//! File systems refuse in many words: exFAT's drivers alone answer EINVAL or ENOENT to a name they
//! do not take. So the kind of error decides nothing here. A refusal counts as the backend's nature
//! only if an ordinary name is taken right afterwards; otherwise something else is wrong, the first
//! error is passed on, and nothing is concluded.

use std::thread;
use std::time::Duration;

use crate::core::{Capabilities, FileKind, NAME_MAX, Name, RelPath, Timestamp};
use crate::drive::{Backend, BackendError, Result};
mod attributes;

/// Value of [`Capabilities::time_granularity_ns`] where no chosen time is kept at all: about 292
/// years.
pub const TIME_NOT_KEPT: u64 = i64::MAX as u64;

/// Printable bytes that some file system refuses (exFAT's list; NTFS and SMB have the same).
const PRINTABLE: &[u8] = b"\"*:<>?\\|";

/// A name of so many bytes is taken by all: below, what ferryfs itself writes would not fit.
const SHORT: usize = 64;

/// How often, and how long after one another, the control is tried after an I/O error.
const CONTROLS: usize = 4;
const BETWEEN_CONTROLS: Duration = Duration::from_millis(100);

/// Steps in which file systems count time, in nanoseconds, coarsest first: old FAT, HFS+ and
/// exfat-fuse, the kernel's exFAT, milliseconds and microseconds of network servers, NTFS and SMB,
/// everything else.
const GRANULARITIES: [u64; 7] = [
    2_000_000_000,
    1_000_000_000,
    10_000_000,
    1_000_000,
    1_000,
    100,
    1,
];

/// Finds what `backend` can do. `scratch_dir` is made for it, and removed; its parent must be
/// there. What an interrupted probe left in it is removed first.
///
/// # Errors
/// Any error that is not a refusal by nature, as when the medium goes or is full or read-only. The
/// scratch directory is then removed as far as possible.
pub fn probe(backend: &dyn Backend, scratch_dir: &RelPath) -> Result<Capabilities> {
    match remove_scratch(backend, scratch_dir) {
        Err(error) if error.is_not_found() => {}
        answer => answer?,
    }
    backend.make_dir(scratch_dir)?;
    let found = Probe {
        backend,
        scratch_dir,
    }
    .run();
    let removed = remove_scratch(backend, scratch_dir);
    // The first failure is the one that explains.
    let found = found?;
    removed?;
    Ok(found)
}

/// Removes the scratch directory and the entries in it. Directories in it are not ours, and stop
/// the removal unless empty.
fn remove_scratch(backend: &dyn Backend, scratch_dir: &RelPath) -> Result<()> {
    clear(backend, scratch_dir)?;
    backend.remove_dir(scratch_dir)
}

fn clear(backend: &dyn Backend, dir: &RelPath) -> Result<()> {
    for entry in backend.read_dir(dir)? {
        let path = dir.join(&entry.name);
        match entry.meta.kind {
            FileKind::Directory => backend.remove_dir(&path)?,
            _ => backend.remove_file(&path)?,
        }
    }
    Ok(())
}

struct Probe<'a> {
    backend: &'a dyn Backend,
    scratch_dir: &'a RelPath,
}

impl Probe<'_> {
    fn run(&self) -> Result<Capabilities> {
        self.make_plain()?;
        clear(self.backend, self.scratch_dir)?;
        let forbidden = self.forbidden()?;
        // Where `:` is refused the medium is of the FAT family. One driver of exFAT keeps a
        // trailing dot and another drops it, and Windows drops a trailing space: a name that only
        // this machine could find again is none.
        let fat_like = forbidden.contains(&b':');
        Ok(Capabilities {
            forbidden,
            case_insensitive: self.case_insensitive()?,
            utf8_only: !self.keeps(b"p\xffq")?,
            no_trailing_dot: fat_like || !self.keeps(b"pq.")?,
            no_trailing_space: fat_like || !self.keeps(b"pq ")?,
            form_insensitive: self.form_insensitive()?,
            max_utf16: self.max_utf16()?,
            max_bytes: self.max_bytes()?,
            symlinks: self.symlinks()?,
            hard_links: self.hard_links()?,
            permissions: self.permissions()?,
            time_granularity_ns: self.time_granularity()?,
            probed: crate::core::PROBE_VERSION,
            owners: self.owners()?,
            own: Some(self.own()?),
            special_files: self.makes(FileKind::Fifo)? && self.makes(FileKind::Socket)?,
            devices: self.makes(FileKind::CharDevice)?,
            set_ids: true,
            target_bytes: self.target_bytes()?,
            xattrs: self.xattr_spaces()?,
            xattr_bytes: self.xattr_bytes()?,
        })
    }

    fn path(&self, name: &[u8]) -> Result<RelPath> {
        let name = Name::new(name).map_err(|_| {
            let source = std::io::Error::from_raw_os_error(libc::EINVAL);
            BackendError::new("probe", self.scratch_dir, source)
        })?;
        Ok(self.scratch_dir.join(&name))
    }

    /// Makes a file that every backend can hold.
    fn make_plain(&self) -> Result<RelPath> {
        let path = self.path(b"plain")?;
        // Dropping the writer closes it; only the name matters.
        drop(self.backend.create(&path)?);
        Ok(path)
    }

    /// Turns the outcome of a trial into an answer: `None` if the backend refused by nature.
    fn refusable<T>(&self, outcome: Result<T>) -> Result<Option<T>> {
        let error = match outcome {
            Ok(value) => return Ok(Some(value)),
            Err(error) if error.is_gone() || error.is_full() => return Err(error),
            Err(error) => error,
        };
        match self.control() {
            Ok(()) => Ok(None),
            // Where the medium went in between, that is the better explanation.
            Err(later) if later.is_gone() || later.is_full() => Err(later),
            Err(_) => Err(error),
        }
    }

    /// Turns the outcome of something odd into an answer, likewise: rclone says EIO to a name that
    /// its remote cannot hold, and to hard links. It is done once more; a medium that fails does
    /// not do what every backend does in between.
    fn odd(&self, make: impl Fn() -> Result<()>) -> Result<Option<()>> {
        let error = match make() {
            Err(error) if is_io_error(&error) => error,
            outcome => return self.refusable(outcome),
        };
        if !self.control_soon() {
            return Err(error);
        }
        match make() {
            Err(again) if is_io_error(&again) => Ok(None),
            // It was done after all: then the first answer was a failure.
            Err(again) if again.source.kind() == std::io::ErrorKind::AlreadyExists => Err(error),
            again => self.refusable(again),
        }
    }

    /// The control: what every backend takes must work at this very moment.
    fn control(&self) -> Result<()> {
        let control = self.path(b"control")?;
        drop(self.backend.create(&control)?);
        self.backend.remove_file(&control)
    }

    /// Returns whether the control works now or in a moment: rclone may still be busy with the file
    /// that was closed last, and then refuses to remove it.
    fn control_soon(&self) -> bool {
        for _ in 0..CONTROLS {
            if self.control().is_ok() {
                return true;
            }
            thread::sleep(BETWEEN_CONTROLS);
            if let Ok(control) = self.path(b"control") {
                // If it is still there, or cannot be removed, the next control tells.
                let _ = self.backend.remove_file(&control);
            }
        }
        false
    }

    /// Turns the outcome of making something odd at `path` into an answer. There are drivers that
    /// say EIO to it: the kernel's SMB client where the server has no links, those that make an
    /// ordinary file of a special one. A medium that fails does not take the next ordinary file,
    /// and need not fail again.
    fn unless_io_error(&self, path: &RelPath, make: impl Fn() -> Result<()>) -> Result<Option<()>> {
        match make() {
            Err(error) if is_io_error(&error) => {}
            outcome => return self.refusable(outcome),
        }
        clear(self.backend, self.scratch_dir)?;
        drop(self.backend.create(path)?);
        self.backend.remove_file(path)?;
        match make() {
            Err(error) if is_io_error(&error) => Ok(None),
            again => self.refusable(again),
        }
    }

    /// Whether a file of this name can be made and is then listed under it. Leaves the scratch
    /// directory empty.
    fn keeps(&self, name: &[u8]) -> Result<bool> {
        let path = self.path(name)?;
        let made = self.odd(|| self.backend.create(&path).map(drop))?.is_some();
        let listed = self.backend.read_dir(self.scratch_dir)?;
        clear(self.backend, self.scratch_dir)?;
        Ok(made && listed.iter().any(|entry| entry.name.as_bytes() == name))
    }

    fn forbidden(&self) -> Result<Vec<u8>> {
        let mut forbidden = Vec::new();
        // One control character stands for all below the space; the last one is a case of its own.
        if !self.keeps(b"p\x01q")? {
            forbidden.extend(0x01..=0x1f);
        }
        for &byte in PRINTABLE.iter().chain(b"\x7f") {
            if !self.keeps(&[b'p', byte, b'q'])? {
                forbidden.push(byte);
            }
        }
        forbidden.sort_unstable();
        Ok(forbidden)
    }

    fn case_insensitive(&self) -> Result<bool> {
        drop(self.backend.create(&self.path(b"aA")?)?);
        let other = self.backend.metadata(&self.path(b"Aa")?);
        let found = self.refusable(other)?.is_some();
        clear(self.backend, self.scratch_dir)?;
        Ok(found)
    }

    fn form_insensitive(&self) -> Result<bool> {
        // Where not even the first form can be made, there is nothing to confuse.
        let made = self.backend.create(&self.path("p\u{e9}q".as_bytes())?);
        let made = self.refusable(made.map(drop))?.is_some();
        let other = self.path("pe\u{301}q".as_bytes())?;
        let found = made && self.refusable(self.backend.metadata(&other))?.is_some();
        clear(self.backend, self.scratch_dir)?;
        Ok(found)
    }

    /// A name of 255 units that are three bytes each tells who counts units from who counts bytes.
    fn max_utf16(&self) -> Result<Option<usize>> {
        let long = "\u{20ac}".repeat(NAME_MAX);
        Ok(self.keeps(long.as_bytes())?.then_some(NAME_MAX))
    }

    /// Some that encrypt names have room for fewer than Linux.
    fn max_bytes(&self) -> Result<usize> {
        if self.keeps(&[b'n'; NAME_MAX])? {
            return Ok(NAME_MAX);
        }
        let (mut kept, mut refused) = (SHORT, NAME_MAX);
        while refused - kept > 1 {
            let middle = kept + (refused - kept) / 2;
            match self.keeps(&vec![b'n'; middle])? {
                true => kept = middle,
                false => refused = middle,
            }
        }
        Ok(kept)
    }

    /// Some drives take any link, and do not let those be read that lead up or away (sshfs).
    fn symlinks(&self) -> Result<bool> {
        let targets = [
            &b"where it points"[..],
            b"../where it points",
            b"/where/it/points",
        ];
        for target in targets {
            if !self.keeps_symlink(target)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn keeps_symlink(&self, target: &[u8]) -> Result<bool> {
        let path = self.path(b"symlink")?;
        let made = self.unless_io_error(&path, || self.backend.make_symlink(target, &path))?;
        let kept = match made {
            Some(()) => self.backend.metadata(&path)?.target.as_deref() == Some(target),
            None => false,
        };
        clear(self.backend, self.scratch_dir)?;
        Ok(kept)
    }

    /// A drive that makes them and then shows two files, as sshfs does, counts as one without: the
    /// next to import it would not know that they are one.
    fn hard_links(&self) -> Result<bool> {
        let first = self.make_plain()?;
        let second = self.path(b"second")?;
        let made = self.odd(|| self.backend.make_hard_link(&first, &second))?;
        let kept = match made {
            Some(()) => {
                let meta = self.backend.metadata(&second)?;
                meta.nlink == 2 && meta.file.is_some()
            }
            None => false,
        };
        clear(self.backend, self.scratch_dir)?;
        Ok(kept)
    }

    /// Two different settings must both be read back: one alone could be what the mount gives to
    /// every file.
    fn permissions(&self) -> Result<bool> {
        let path = self.make_plain()?;
        let mut kept = true;
        for mode in [0o600, 0o751] {
            let set = self.refusable(self.backend.set_permissions(&path, mode))?;
            kept &= set.is_some() && self.backend.metadata(&path)?.permissions == mode;
        }
        clear(self.backend, self.scratch_dir)?;
        Ok(kept)
    }

    fn time_granularity(&self) -> Result<u64> {
        let path = self.make_plain()?;
        let mut readings = Vec::new();
        // Odd seconds tell one second from two; no digit of the fractions is a zero.
        for wanted in [1_700_000_001_123_456_789, 1_600_000_003_987_654_321] {
            let set = self.backend.set_modified(&path, Timestamp(wanted));
            if self.refusable(set)?.is_some() {
                readings.push((Timestamp(wanted), self.backend.metadata(&path)?.modified));
            }
        }
        clear(self.backend, self.scratch_dir)?;
        Ok(granularity_of(&readings))
    }
}

fn is_io_error(error: &BackendError) -> bool {
    error.source.raw_os_error() == Some(libc::EIO)
}

/// The coarsest step that all times read back are multiples of, if each is less than that step from
/// the time that was set.
fn granularity_of(readings: &[(Timestamp, Timestamp)]) -> u64 {
    let fits = |step: &u64| {
        readings
            .iter()
            .all(|(set, read)| read.0.unsigned_abs() % step == 0 && set.0.abs_diff(read.0) < *step)
    };
    if readings.is_empty() {
        return TIME_NOT_KEPT;
    }
    GRANULARITIES
        .into_iter()
        .find(fits)
        .unwrap_or(TIME_NOT_KEPT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drive::faulty::{Fault, FaultyBackend};
    use crate::drive::memory::{MemoryBackend, MemoryOptions};

    #[test]
    fn each_granularity_is_recognised_by_what_it_cuts_off() {
        let set = [1_700_000_001_123_456_789_i64, 1_600_000_003_987_654_321];
        for step in GRANULARITIES {
            let cut = |t: i64| Timestamp(t - t % step as i64);
            let readings: Vec<_> = set.iter().map(|&t| (Timestamp(t), cut(t))).collect();
            assert_eq!(granularity_of(&readings), step);
        }
        let stuck: Vec<_> = set.iter().map(|&t| (Timestamp(t), Timestamp(0))).collect();
        assert_eq!(granularity_of(&stuck), TIME_NOT_KEPT);
        assert_eq!(granularity_of(&[]), TIME_NOT_KEPT);
    }

    #[test]
    fn a_failure_at_any_call_is_reported_and_never_becomes_a_capability() {
        let scratch = RelPath::fixed("scratch");
        let truth = probe(&MemoryBackend::new(MemoryOptions::default()), &scratch).unwrap();
        let mut n = 0;
        loop {
            n += 1;
            let memory = MemoryBackend::new(MemoryOptions::default());
            let faulty = FaultyBackend::new(memory.clone());
            faulty.fail_at(n, libc::EIO);
            let outcome = probe(&faulty, &scratch);
            if faulty.calls() < n {
                assert_eq!(outcome.unwrap(), truth);
                break;
            }
            // Only what is odd is tried again.
            match outcome {
                Ok(capabilities) => assert_eq!(capabilities, truth),
                Err(error) => assert_eq!(error.source.raw_os_error(), Some(libc::EIO)),
            }
            // What one more failure in the removal leaves behind goes with the next probe.
            assert_eq!(probe(&memory, &scratch).unwrap(), truth);
            assert!(memory.tree().is_empty(), "call {n}");
        }
        assert!(n > 50);
    }

    #[test]
    fn a_failed_probe_leaves_nothing_behind() {
        let memory = MemoryBackend::new(MemoryOptions::default());
        let faulty = FaultyBackend::new(memory.clone());
        faulty.fail_at(20, libc::ENOMEDIUM);
        assert!(probe(&faulty, &RelPath::fixed("scratch")).is_err());
        assert!(memory.tree().is_empty());
    }

    #[test]
    fn a_medium_that_turns_read_only_in_mid_probe_is_not_a_picky_one() {
        for errno in [libc::EACCES, libc::EROFS, libc::ENOSPC] {
            let faulty = FaultyBackend::new(MemoryBackend::new(MemoryOptions::default()));
            faulty.arm(Fault {
                stays_dead: true,
                ..Fault::at(10, errno)
            });
            let error = probe(&faulty, &RelPath::fixed("scratch")).unwrap_err();
            assert_eq!(error.source.raw_os_error(), Some(errno));
        }
    }
}
