//! Reads all names of a directory, or fails. It never returns a partial list.

use std::ffi::CStr;
use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};

use nix::errno::Errno;

/// An open directory stream; closed on drop.
struct Stream(*mut libc::DIR);

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `fdopendir`, is owned by this value alone and is not used
        // afterwards.
        unsafe {
            libc::closedir(self.0);
        }
    }
}

/// Returns the names in the directory that `dir` is open on (for reading), without `.` and `..`, in
/// the directory's order.
///
/// Names are bytes and may be longer than 255 of them: exFAT counts UTF-16 units, and 255 of those
/// are up to 765 bytes of UTF-8.
///
/// # Errors
/// If reading fails anywhere before the end; a partial list is never returned.
pub fn read_names(dir: OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let raw = dir.into_raw_fd();
    // SAFETY: `raw` is an open descriptor without another owner; on success the stream owns it.
    let stream = unsafe { libc::fdopendir(raw) };
    if stream.is_null() {
        let error = io::Error::last_os_error();
        // The descriptor is still ours after the failed call. The error of its close does not
        // matter.
        let _ = nix::unistd::close(raw);
        return Err(error);
    }
    let stream = Stream(stream);
    let mut names = Vec::new();
    while let Some(name) = next_name(&stream)? {
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

fn next_name(stream: &Stream) -> io::Result<Option<Vec<u8>>> {
    // The end and an error are both a null pointer. Only errno distinguishes them.
    Errno::clear();
    // SAFETY: the stream is open, and no other thread uses it.
    let entry = unsafe { libc::readdir64(stream.0) };
    if entry.is_null() {
        return match Errno::last_raw() {
            0 => Ok(None),
            code => Err(io::Error::from_raw_os_error(code)),
        };
    }
    // SAFETY: `entry` is valid until the next call on this stream, and its name ends in NUL. The
    // code takes the name's address without a reference to the declared array, because the record
    // may be shorter or longer than that.
    let name = unsafe { CStr::from_ptr((&raw const (*entry).d_name).cast()) };
    Ok(Some(name.to_bytes().to_vec()))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn every_name_is_read_once_and_the_dots_are_not() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..700 {
            File::create(dir.path().join(format!("n{i}"))).unwrap();
        }
        let mut names = read_names(File::open(dir.path()).unwrap().into()).unwrap();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 700);
    }

    #[test]
    fn a_file_is_not_an_empty_directory() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(
            read_names(file.into()).unwrap_err().raw_os_error(),
            Some(libc::ENOTDIR)
        );
    }
}
