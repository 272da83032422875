//! Metrics in a file, for the textfile collector of the node exporter.
//!
//! The file is replaced by a rename, so a reader sees all of a text or all of the one before. A
//! text that has not changed is not written again; the file gets a new modification time, from
//! which a reader sees that the daemon lives. A crash leaves the last text, which gets no newer
//! time, and perhaps a temporary file, which the next daemon replaces.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::core::{Failure, ForeignText};

/// The file with the metrics.
pub(super) struct Output {
    path: PathBuf,
    new: PathBuf,
    written: Option<String>,
    /// The error of the last attempt, which is logged once.
    said: Option<String>,
}

impl Output {
    pub(super) fn new(path: &Path) -> Output {
        Output {
            path: path.into(),
            new: temporary(path),
            written: None,
            said: None,
        }
    }

    /// Makes `text` the text of the file.
    pub(super) fn write(&mut self, text: &str) {
        let done = match self.written.as_deref() == Some(text) {
            true => self.touch(text),
            false => self.replace(text),
        };
        match done {
            Ok(()) => {
                self.said = None;
                self.written = Some(text.into());
            }
            Err(error) => {
                self.written = None;
                let said = error.to_string();
                if self.said.as_ref() != Some(&said) {
                    tracing::warn!(path = %self.path.escaped(), %error, "cannot write the metrics");
                    self.said = Some(said);
                }
            }
        }
    }

    /// Says that the text is still right. A file that was removed is written again.
    fn touch(&self, text: &str) -> io::Result<()> {
        let now = SystemTime::now();
        let opened = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&self.path);
        match opened.and_then(|file| file.set_modified(now)) {
            Err(_) => self.replace(text),
            touched => touched,
        }
    }

    fn replace(&self, text: &str) -> io::Result<()> {
        let mut file = make(&self.new)?;
        let written = file.write_all(text.as_bytes());
        drop(file);
        let replaced = written.and_then(|()| fs::rename(&self.new, &self.path));
        replaced.inspect_err(|_| drop(fs::remove_file(&self.new)))
    }

    /// Removes the file, if this daemon has written it.
    pub(super) fn remove(self) {
        if self.written.is_some() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The name of the next text. Collectors read only names that end in `.prom`.
fn temporary(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    path.with_file_name(name)
}

/// Makes a file that all may read. In a directory that others may write to, a link in its place is
/// not followed.
fn make(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(path)
}

/// Checks that metrics can be written to `path` while a mount at `mountpoint` of the drive
/// `backend` is served. Without `backend` the drive does not answer and is not looked at.
///
/// # Errors
/// Why not.
pub fn check_file(path: &Path, mountpoint: &Path, backend: Option<&Path>) -> Result<(), Failure> {
    let place = path.escaped();
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Failure::usage(format!("--metrics {place} names no file"))
            .hint("name a file such as /var/lib/prometheus/node-exporter/ferryfs.prom"));
    };
    let dir = fs::canonicalize(dir).map_err(|error| {
        Failure::failed(format!("the directory of --metrics {place}: {error}"))
            .hint("make the directory first; the file is made by the mount")
    })?;
    let inside =
        |above: &Path| dir.starts_with(fs::canonicalize(above).as_deref().unwrap_or(above));
    if inside(mountpoint) || backend.is_some_and(inside) {
        return Err(
            Failure::usage(format!("--metrics {place} is in the mount or on the drive")).hint(
                "name a file on another file system: the metrics must not keep the mount busy",
            ),
        );
    }
    let there = dir.join(name);
    if fs::symlink_metadata(&there).is_ok_and(|meta| !meta.is_file()) {
        return Err(
            Failure::usage(format!("--metrics {place} is there and is no plain file"))
                .hint("name a file that the mount may replace"),
        );
    }
    match make(&temporary(&there)) {
        Ok(_) => {
            let _ = fs::remove_file(temporary(&there));
            Ok(())
        }
        Err(error) => Err(Failure::failed(format!(
            "cannot write to the directory of --metrics {place}: {error}"
        ))
        .hint("name a directory that this user may write to")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn age(path: &Path) -> SystemTime {
        fs::metadata(path).unwrap().modified().unwrap()
    }

    #[test]
    fn an_unchanged_text_gets_a_new_time_and_a_changed_one_a_new_file() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.prom");
        let mut output = Output::new(&path);
        output.write("a 1\n");
        let first = fs::metadata(&path).unwrap().ino();
        let old = SystemTime::UNIX_EPOCH;
        File::open(&path).unwrap().set_modified(old).unwrap();
        output.write("a 1\n");
        assert_ne!(age(&path), old);
        assert_eq!(fs::metadata(&path).unwrap().ino(), first);
        fs::remove_file(&path).unwrap();
        output.write("a 1\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "a 1\n");
        output.write("a 2\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "a 2\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        output.remove();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_link_in_place_of_the_temporary_file_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("m.prom"), dir.path().join("other"));
        fs::write(&other, "theirs").unwrap();
        std::os::unix::fs::symlink(&other, temporary(&path)).unwrap();
        Output::new(&path).write("a 1\n");
        assert_eq!(fs::read_to_string(&other).unwrap(), "theirs");
        assert_eq!(fs::read_to_string(&path).unwrap(), "a 1\n");
    }

    #[test]
    fn a_file_in_the_mount_or_in_no_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["mnt", "drive"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let check = |name: &str| {
            let at = |name: &str| dir.path().join(name);
            check_file(&at(name), &at("mnt"), Some(&at("drive")))
        };
        check("m.prom").unwrap();
        for wrong in ["mnt/m.prom", "drive/m.prom", "none/m.prom", "mnt"] {
            let failure = check(wrong).unwrap_err();
            assert!(failure.hint.is_some(), "{failure}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
