//! Finds the processes and mounts that keep a file system in use, from `/proc`.
//!
//! An unmount removes a file system from one mount namespace. The file system lives on while
//! another namespace or a bind mount shows it, or while a process has a file of it open. Nothing
//! here sends a request to the file system itself: this process may be the one that serves it.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::mounts;
use super::mounts::Mount;
use crate::core::ForeignText;

/// The way in which a holder uses a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It is mounted there, in this mount namespace or in that of the process.
    Mount,
    /// Another file system is mounted on a directory of it.
    Covered,
    /// The working directory of the process.
    WorkingDirectory,
    /// The root directory of the process.
    Root,
    /// The program that the process runs.
    Program,
    /// An open file.
    Open,
    /// A file that is mapped into memory.
    Mapped,
}

/// A process or mount that keeps a file system in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The process number and program name; `None` for a mount in this process's own namespace.
    pub process: Option<(u32, String)>,
    /// The first path that was found, as that process spells it.
    pub path: PathBuf,
    /// The use of that path.
    pub how: Use,
}

/// Everything that keeps a file system in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    /// The holders: one entry for each process, and one for each mount.
    pub found: Vec<Holder>,
    /// This user may not inspect some processes.
    pub some_unseen: bool,
}

/// Returns the `st_dev` of the file system that `path` is on. Follows links, those of `/proc` too.
///
/// It asks for no attribute and sends no request to the file system. A FUSE daemon may call it for
/// its own mount, and it does not wait for a network share that hangs.
///
/// # Errors
/// What the system said.
pub fn device_of(path: &Path) -> io::Result<u64> {
    device_with(path, AtFlags::empty())
}

/// As [`device_of`], but does not follow the last component of `path` if it is a link.
///
/// # Errors
/// What the system said.
pub fn device_there(path: &Path) -> io::Result<u64> {
    device_with(path, AtFlags::SYMLINK_NOFOLLOW)
}

fn device_with(path: &Path, flags: AtFlags) -> io::Result<u64> {
    let flags = flags | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let found = statx(CWD, path, flags, StatxFlags::empty())?;
    Ok(libc::makedev(found.stx_dev_major, found.stx_dev_minor))
}

/// Returns what keeps the file system with this `st_dev` in use, except this process itself.
pub fn of(dev: u64) -> Holders {
    let mut holders = Holders::default();
    let own = mounts::mounts().unwrap_or_default();
    for (how, mount) in shown(&own, dev) {
        holders.found.push(Holder {
            process: None,
            path: mount.mount_point.clone(),
            how,
        });
    }
    let mut namespaces = HashSet::new();
    if let Ok(own) = fs::read_link("/proc/self/ns/mnt") {
        namespaces.insert(own.into_os_string());
    }
    for pid in processes() {
        if pid == std::process::id() {
            continue;
        }
        match look_into(pid, dev, &mut namespaces) {
            Ok(found) => holders.found.extend(found),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                holders.some_unseen = true;
            }
            // The process has ended meanwhile.
            Err(_) => {}
        }
    }
    holders
}

/// Returns the mounts of `table` that show the file system, or that are mounted on a directory of
/// it.
fn shown(table: &[Mount], dev: u64) -> Vec<(Use, &Mount)> {
    let ours: HashSet<u64> = (table.iter())
        .filter(|mount| mount.dev == dev)
        .map(|mount| mount.id)
        .collect();
    (table.iter())
        .filter_map(|mount| match mount.dev == dev {
            true => Some((Use::Mount, mount)),
            false if ours.contains(&mount.parent) => Some((Use::Covered, mount)),
            false => None,
        })
        .collect()
}

fn processes() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut pids: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    // The lowest number in a container is mostly its main process.
    pids.sort_unstable();
    pids
}

/// Returns how the process `pid` uses the file system, if it does: by a file, else by a mount of
/// its namespace. The mounts of a namespace are read only once: `namespaces` lists those already
/// read.
fn look_into(pid: u32, dev: u64, namespaces: &mut HashSet<OsString>) -> io::Result<Option<Holder>> {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let namespace = fs::read_link(dir.join("ns/mnt"))?;
    let is_new = namespaces.insert(namespace.into_os_string());
    let mut found = by_a_file(&dir, dev)?;
    if is_new && found.is_none() {
        let table = mounts::parse(&fs::read(dir.join("mountinfo"))?);
        // A namespace mostly has a copy of the mount itself. A bind mount of a part of it was made
        // on purpose, so it is the better answer.
        found = (table.iter())
            .filter(|mount| mount.dev == dev)
            .max_by_key(|mount| mount.root != Path::new("/"))
            .map(|mount| (mount.mount_point.clone(), Use::Mount));
    }
    Ok(found.map(|(path, how)| Holder {
        process: Some((pid, program(&dir))),
        path,
        how,
    }))
}

fn program(dir: &Path) -> String {
    let name = fs::read(dir.join("comm")).unwrap_or_default();
    name.strip_suffix(b"\n").unwrap_or(&name).to_text()
}

fn by_a_file(dir: &Path, dev: u64) -> io::Result<Option<(PathBuf, Use)>> {
    let is_on_it = |link: &Path| device_of(link).is_ok_and(|found| found == dev);
    for (name, how) in [
        ("cwd", Use::WorkingDirectory),
        ("root", Use::Root),
        ("exe", Use::Program),
    ] {
        let link = dir.join(name);
        if is_on_it(&link) {
            return Ok(Some((fs::read_link(&link)?, how)));
        }
    }
    for entry in fs::read_dir(dir.join("fd"))?.flatten() {
        let link = entry.path();
        if is_on_it(&link) {
            return Ok(Some((fs::read_link(&link)?, Use::Open)));
        }
    }
    // The kernel asks for more rights for this file than for the others, even of root. Without it
    // the other findings count.
    let maps = fs::read(dir.join("maps")).unwrap_or_default();
    Ok(mapped(&maps, dev).map(|path| (path, Use::Mapped)))
}

/// Returns the first file on `dev` in a table in the format of proc_pid_maps(5).
fn mapped(maps: &[u8], dev: u64) -> Option<PathBuf> {
    maps.split(|&b| b == b'\n').find_map(|line| {
        let text = String::from_utf8_lossy(line);
        let mut fields = text.split_ascii_whitespace();
        let (major, minor) = fields.nth(3)?.split_once(':')?;
        let number = |text| u32::from_str_radix(text, 16).ok();
        let found = libc::makedev(number(major)?, number(minor)?);
        let path = fields.skip(1).collect::<Vec<_>>().join(" ");
        (found == dev && !path.is_empty()).then(|| path.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::process::{Command, Stdio};

    #[test]
    fn the_device_is_told_as_stat_tells_it() {
        for path in ["/", "/proc", "/dev/null"] {
            let expected = fs::metadata(path).unwrap().dev();
            assert_eq!(device_of(Path::new(path)).unwrap(), expected, "{path}");
        }
        assert!(device_of(Path::new("/no/such/file")).is_err());
    }

    #[test]
    fn a_process_with_its_working_directory_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new("sleep")
            .arg("30")
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let dev = fs::metadata(dir.path()).unwrap().dev();
        let holders = of(dev);
        child.kill().unwrap();
        child.wait().unwrap();
        let found = (holders.found.iter())
            .find(|holder| matches!(&holder.process, Some((pid, _)) if *pid == child.id()))
            .expect("the child is found");
        assert_eq!(found.how, Use::WorkingDirectory);
        assert_eq!(found.path, dir.path());
        let own = std::process::id();
        assert!(
            !holders
                .found
                .iter()
                .any(|h| h.process.as_ref().is_some_and(|(pid, _)| *pid == own))
        );
    }

    #[test]
    fn a_mount_of_it_and_a_mount_on_it_are_told_apart() {
        let table = mounts::parse(
            b"20 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
              30 20 0:50 / /lab rw - fuse.ferryfs /hdd rw\n\
              31 30 0:51 / /lab/tmp rw - tmpfs none rw\n\
              32 20 0:50 /app /srv/app rw - fuse.ferryfs /hdd rw\n",
        );
        let found: Vec<(Use, &str)> = shown(&table, libc::makedev(0, 50))
            .into_iter()
            .map(|(how, mount)| (how, mount.mount_point.to_str().unwrap()))
            .collect();
        let expected = [
            (Use::Mount, "/lab"),
            (Use::Covered, "/lab/tmp"),
            (Use::Mount, "/srv/app"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_mapped_file_is_known_by_its_device() {
        let maps = b"7f00-7f01 r--s 00000000 00:32 12   /lab/db file\n\
                     7f02-7f03 rw-p 00000000 00:00 0 \n\
                     7f04-7f05 r-xp 00000000 fe:00 7    /usr/bin/x\n";
        let path = |major, minor| mapped(maps, libc::makedev(major, minor));
        assert_eq!(path(0, 0x32), Some("/lab/db file".into()));
        assert_eq!(path(0xfe, 0), Some("/usr/bin/x".into()));
        assert_eq!(path(0, 0), None);
        assert_eq!(path(9, 9), None);
    }
}
