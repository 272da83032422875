//! Open files of a mounted directory.

use std::fs::File;
use std::io;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd;

use crate::core::{FileKind, Metadata, Name, Timestamp};
use crate::drive::mounted::metadata::{metadata_at, metadata_from};
use crate::drive::{ModifyFile, ReadFile, WriteFile, WriteOut};
use crate::sys;
use crate::sys::direct::DirectFile;

/// A file that is open for reading; holds one descriptor.
pub(super) struct MountedReader {
    file: File,
}

impl MountedReader {
    pub(super) fn new(file: File) -> MountedReader {
        MountedReader { file }
    }
}

impl ReadFile for MountedReader {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            match self
                .file
                .read_at(&mut buf[filled..], offset.saturating_add(filled as u64))
            {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn metadata(&self) -> io::Result<Metadata> {
        metadata_from(&fstat(&self.file)?)
    }
}

/// A file whose reads bypass the page cache; holds one descriptor.
pub(super) struct UncachedReader(DirectFile);

impl UncachedReader {
    pub(super) fn new(file: File) -> UncachedReader {
        UncachedReader(DirectFile::new(file))
    }
}

impl ReadFile for UncachedReader {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn metadata(&self) -> io::Result<Metadata> {
        metadata_from(&fstat(self.0.file())?)
    }
}

/// A file that is being written; holds one descriptor. A drop without `finish` closes it and leaves
/// the bytes written so far.
pub(super) struct MountedWriter {
    file: File,
    /// No later sync reaches its bytes: see [`crate::drive::unsynced`].
    sync_at_end: bool,
    /// It is on a FUSE file system, whose process does the writing. Found out when it matters.
    is_fuse: Option<bool>,
    early: Early,
}

/// Whether the file system writes a file out early.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Early {
    #[default]
    Unknown,
    Offered,
    Refused,
}

impl Early {
    /// Takes note of the answer to a call. A file system that does not offer it says so at the
    /// first call on a file, and is not asked again. Later the same number can only be an error of
    /// the writing, which the system reports once.
    fn note(&mut self, answer: io::Result<()>) -> io::Result<()> {
        let is_refused = |error: &io::Error| {
            matches!(
                error.raw_os_error(),
                Some(libc::EINVAL | libc::ESPIPE | libc::ENOSYS | libc::EOPNOTSUPP)
            )
        };
        match answer {
            Err(error) if *self == Early::Unknown && is_refused(&error) => {
                *self = Early::Refused;
                Ok(())
            }
            answer => {
                *self = Early::Offered;
                answer
            }
        }
    }
}

impl MountedWriter {
    pub(super) fn new(file: File, sync_at_end: bool) -> MountedWriter {
        MountedWriter {
            file,
            sync_at_end,
            is_fuse: None,
            early: Early::default(),
        }
    }

    /// As the trait says. A FUSE process keeps what it was given in memory of its own, and only an
    /// fsync reaches it. For exfat-fuse and ntfs-3g that writes out the whole device. One without a
    /// device may upload the whole file for it, each time: its files are only synced at their end.
    fn write_out(&mut self, how: WriteOut) -> io::Result<()> {
        if self.sync_at_end || self.early == Early::Refused {
            return Ok(());
        }
        let is_fuse = *(self.is_fuse).get_or_insert_with(|| sys::file::is_fuse(&self.file));
        let answer = match (is_fuse, how) {
            (true, WriteOut::Begin) => return Ok(()),
            (true, WriteOut::Finish) => sys::file::sync_data(&self.file),
            (false, how) => sys::file::write_back(&self.file, how == WriteOut::Finish),
        };
        self.early.note(answer)
    }

    /// If the file system does not allow a chosen time (EPERM on shares that map owners, EOPNOTSUPP
    /// and ENOSYS on those without such a call), the file keeps its own time: its bytes are
    /// complete, and `time_granularity_ns` says that times are unreliable there. Any other error is
    /// returned.
    fn close(self, modified: Timestamp) -> io::Result<()> {
        let timed = match sys::time::set_modified_fd(&self.file, modified) {
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EPERM | libc::EOPNOTSUPP | libc::ENOSYS)
                ) =>
            {
                Ok(())
            }
            answer => answer,
        };
        let synced = match self.sync_at_end {
            true => sys::file::sync_all(&self.file),
            false => Ok(()),
        };
        // NFS and FUSE report failed writes here. EINTR is an error too: the result of the flush is
        // then unknown.
        unistd::close(OwnedFd::from(self.file))?;
        synced.and(timed)
    }
}

impl WriteFile for MountedWriter {
    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        self.file.write_all(data)
    }

    fn write_out(&mut self, how: WriteOut) -> io::Result<()> {
        MountedWriter::write_out(self, how)
    }

    fn finish(self: Box<Self>, modified: Timestamp) -> io::Result<()> {
        self.close(modified)
    }
}

impl ModifyFile for MountedWriter {
    fn write_at(&mut self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn set_size(&mut self, size: u64) -> io::Result<()> {
        self.file.set_len(size)
    }

    fn finish(self: Box<Self>, modified: Timestamp) -> io::Result<()> {
        self.close(modified)
    }
}

pub(super) fn open_regular_at(dir: &OwnedFd, name: &Name) -> io::Result<File> {
    open_as(dir, name, OFlag::O_RDONLY)
}

/// Opens a regular file with one name for writing in place.
pub(super) fn open_to_modify_at(dir: &OwnedFd, name: &Name) -> io::Result<File> {
    let file = open_as(dir, name, OFlag::O_WRONLY)?;
    // By the open file: a name may have been added meanwhile, but not before the open.
    match fstat(&file)?.st_nlink > 1 {
        true => Err(Errno::EMLINK.into()),
        false => Ok(file),
    }
}

fn open_as(dir: &OwnedFd, name: &Name, access: OFlag) -> io::Result<File> {
    // The type is checked first, since opening a device or a pipe can have effects.
    must_be_regular(metadata_at(dir, name)?.kind)?;
    // Non-blocking, in case it has become a pipe in between; without effect on regular files.
    let flags = access | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = File::from(openat(dir, name.as_os_str(), flags, Mode::empty())?);
    must_be_regular(metadata_from(&fstat(&file)?)?.kind)?;
    Ok(file)
}

fn must_be_regular(kind: FileKind) -> io::Result<()> {
    match kind {
        FileKind::Regular => Ok(()),
        FileKind::Directory => Err(Errno::EISDIR.into()),
        FileKind::Symlink => Err(Errno::ELOOP.into()),
        // Not ENXIO, the system's error for sockets: that would mean a missing device.
        _ => Err(Errno::EINVAL.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(number: i32) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(number))
    }

    #[test]
    fn only_the_first_call_may_say_that_the_file_system_writes_nothing_out_early() {
        let mut early = Early::default();
        early.note(failed(libc::EOPNOTSUPP)).unwrap();
        assert_eq!(early, Early::Refused);
        let mut early = Early::default();
        early.note(Ok(())).unwrap();
        for number in [libc::EINVAL, libc::ENOSYS, libc::EOPNOTSUPP, libc::EIO] {
            let error = early.note(failed(number)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(number));
        }
        let error = Early::default().note(failed(libc::ENOSPC)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    }

    #[test]
    fn a_file_that_is_synced_at_its_end_is_not_written_out_before() {
        // Of a pipe no call on the file succeeds, so one would be noted.
        let (_reader, writer) = unistd::pipe().unwrap();
        let again = writer.try_clone().unwrap();
        let mut file = MountedWriter::new(writer.into(), true);
        file.write_out(WriteOut::Finish).unwrap();
        assert_eq!(file.early, Early::Unknown);
        let mut file = MountedWriter::new(again.into(), false);
        file.write_out(WriteOut::Finish).unwrap();
        assert_eq!(file.early, Early::Refused);
    }
}
