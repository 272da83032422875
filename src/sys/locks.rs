//! The locks of files that programs hold, from `/proc/locks`.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::ops::RangeInclusive;

/// Returns the inode numbers of the files on `device` (an `st_dev`) of which a program holds a lock
/// for writing on a range of bytes that `is_wanted`. Locks of programs in other PID namespaces are
/// not seen if this process is not in the initial one.
///
/// # Errors
/// If `/proc/locks` cannot be read.
pub fn write_locked(
    device: u64,
    is_wanted: impl Fn(RangeInclusive<u64>) -> bool,
) -> io::Result<HashSet<u64>> {
    let table = fs::read_to_string("/proc/locks")?;
    let locked = |line: &str| {
        let (inode, range) = held(line, device)?;
        is_wanted(range).then_some(inode)
    };
    Ok(table.lines().filter_map(locked).collect())
}

/// The inode number and the range of a line about such a lock. The format is that of
/// proc_locks(5): `1: POSIX  ADVISORY  WRITE 4242 00:2f:123 1073741826 1073742335`, with the device
/// in hexadecimal and `EOF` for no end. A lock that a program waits for has `->` after the number.
fn held(line: &str, device: u64) -> Option<(u64, RangeInclusive<u64>)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [_, kind, _, "WRITE", _, file, start, end] = words[..] else {
        return None;
    };
    let (major, minor, inode) = place(file)?;
    let end = match end {
        "EOF" => u64::MAX,
        end => end.parse().ok()?,
    };
    let is_there = kind != "FLOCK" && nix::sys::stat::makedev(major, minor) == device;
    is_there.then_some((inode, start.parse().ok()?..=end))
}

fn place(text: &str) -> Option<(u64, u64, u64)> {
    let mut parts = text.split(':');
    let major = u64::from_str_radix(parts.next()?, 16).ok()?;
    let minor = u64::from_str_radix(parts.next()?, 16).ok()?;
    Some((major, minor, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_line_is_read_as_the_kernel_writes_it() {
        let device = nix::sys::stat::makedev(0, 0x2f);
        for (line, found) in [
            (
                "1: POSIX  ADVISORY  WRITE 42 00:2f:123 150 160",
                Some(150..=160),
            ),
            (
                "1: OFDLCK ADVISORY  WRITE -1 00:2f:123 0 EOF",
                Some(0..=u64::MAX),
            ),
            ("1: POSIX  ADVISORY  READ  42 00:2f:123 150 160", None),
            ("1: POSIX  ADVISORY  WRITE 42 00:30:123 150 160", None),
            ("1: -> POSIX  ADVISORY  WRITE 42 00:2f:123 150 160", None),
            ("1: FLOCK  ADVISORY  WRITE 42 00:2f:123 0 EOF", None),
            ("", None),
        ] {
            let found = found.map(|range| (123, range));
            assert_eq!(held(line, device), found, "{line}");
        }
    }

    #[test]
    fn a_lock_that_is_held_is_seen() {
        let file = tempfile::tempfile().unwrap();
        let meta = file.metadata().unwrap();
        let lock = libc::flock {
            l_type: libc::F_WRLCK as _,
            l_whence: 0,
            l_start: 1000,
            l_len: 10,
            l_pid: 0,
        };
        assert_eq!(
            // SAFETY: the descriptor is open, and the structure lives during the call.
            unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) },
            0
        );
        let locked = |wanted| write_locked(meta.dev(), |range| range == wanted).unwrap();
        assert!(locked(1000..=1009).contains(&meta.ino()));
        assert!(!locked(1000..=1010).contains(&meta.ino()));
    }
}
