//! Reads all names of a directory, or fails. It never returns a partial list.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::RawDir;

/// The size of the buffer for one call, in bytes: some hundred names.
const BUFFER: usize = 32 << 10;

/// Returns the names in the directory that `dir` is open on (for reading), without `.` and `..`, in
/// the directory's order.
///
/// Names are bytes and may be longer than 255 of them: exFAT counts UTF-16 units, and 255 of those
/// are up to 765 bytes of UTF-8.
///
/// # Errors
/// If reading fails anywhere before the end; a partial list is never returned.
pub fn read_names(dir: OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut buffer = Vec::with_capacity(BUFFER);
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
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
