//! Reads that bypass the page cache: they return what the medium has, not what the kernel wrote and
//! still caches.
//!
//! There are two ways. With `O_DIRECT` the kernel reads from the device (a network file system:
//! from the server) into our buffer, which must be aligned. Where a file system refuses such an
//! open or read, the file's clean pages are dropped before each read. That is equivalent once
//! everything is synced, but it is only a request. A file system in user space (exfat-fuse) has a
//! cache of its own, which neither way bypasses.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use parking_lot::Mutex;

use super::file::{Advice, advise};

/// The alignment of buffers, offsets and lengths of direct reads. No known device needs more.
const ALIGNMENT: usize = 4096;

/// The size of one read in bytes.
const CHUNK: usize = 1 << 20;

/// A file whose reads bypass the page cache.
#[derive(Debug)]
pub struct DirectFile {
    file: File,
    /// The buffer of direct reads; `None` after the file system has refused one.
    buffer: Mutex<Option<Vec<u8>>>,
}

impl DirectFile {
    /// Takes a file that is open for reading. Its bytes must be synced.
    pub fn new(file: File) -> DirectFile {
        let buffer = set_direct(&file, true).is_ok();
        DirectFile {
            file,
            buffer: Mutex::new(buffer.then(|| vec![0; CHUNK + ALIGNMENT])),
        }
    }

    /// Returns the file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Reads up to `into.len()` bytes at `offset`; fewer only at the end of the file.
    ///
    /// # Errors
    /// What the system said.
    pub fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < into.len() {
            match self.read_some(&mut into[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(got) => done += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn read_some(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut held = self.buffer.lock();
        if let Some(buffer) = &mut *held {
            match read_aligned(&self.file, buffer, into, offset) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    *held = None;
                    set_direct(&self.file, false)?;
                }
                result => return result,
            }
        }
        // The fallback: drop the pages from the page cache, then read through it.
        advise(&self.file, 0, 0, Advice::DontNeed)?;
        self.file.read_at(into, offset)
    }
}

fn set_direct(file: &File, on: bool) -> io::Result<()> {
    let mut flags = OFlag::from_bits_retain(fcntl(file.as_fd(), FcntlArg::F_GETFL)?);
    flags.set(OFlag::O_DIRECT, on);
    fcntl(file.as_fd(), FcntlArg::F_SETFL(flags))?;
    Ok(())
}

/// Makes one direct read through the aligned part of `buffer`. A read that begins inside a block
/// reads the whole block.
fn read_aligned(file: &File, buffer: &mut [u8], into: &mut [u8], offset: u64) -> io::Result<usize> {
    let start = buffer.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
    let window = &mut buffer[start..start + CHUNK];
    let skip = (offset % ALIGNMENT as u64) as usize;
    let got = file.read_at(window, offset - skip as u64)?;
    let usable = got.saturating_sub(skip).min(into.len());
    into[..usable].copy_from_slice(&window[skip..skip + usable]);
    Ok(usable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_range_reads_as_through_the_page_cache() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..3_000_001_u32).map(|n| ((n * 31) >> 5) as u8).collect();
        std::fs::write(file.path(), &bytes).unwrap();
        file.as_file().sync_all().unwrap();
        let direct = DirectFile::new(File::open(file.path()).unwrap());
        for (at, length) in [
            (0, 10),
            (4095, 2),
            (5000, 2_000_000),
            (2_999_000, 5000),
            (4_000_000, 1),
        ] {
            let mut seen = vec![0; length];
            let got = direct.read_at(&mut seen, at as u64).unwrap();
            let end = bytes.len().min(at + length);
            let wanted = &bytes[at.min(end)..end];
            assert_eq!(&seen[..got], wanted, "{length} at {at}");
        }
    }
}
