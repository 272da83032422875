//! Facts about a thread that waits for an answer, from `/proc`.

use std::fs;

/// Returns the supplementary groups of the thread `pid`. Returns none if the thread has ended or is
/// not visible.
pub fn groups(pid: u32) -> Vec<u32> {
    if pid == 0 {
        return Vec::new();
    }
    let status = fs::read(format!("/proc/{pid}/status")).unwrap_or_default();
    groups_in(&status)
}

/// Returns the groups in the text of `/proc/PID/status`. The text also contains the thread's name,
/// with its line ends escaped.
fn groups_in(status: &[u8]) -> Vec<u32> {
    let lines = status.split(|&byte| byte == b'\n');
    let listed = lines.filter_map(|line| line.strip_prefix(b"Groups:"));
    let words = listed.flat_map(|list| list.split(u8::is_ascii_whitespace));
    words
        .filter_map(|word| std::str::from_utf8(word).ok()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_from_their_line() {
        let status = b"Name:\tx\\nGroups:\t7\nUid:\t1\t1\t1\t1\nGroups:\t4 27 1000 \nNStgid:\t5\n";
        assert_eq!(groups_in(status), [4, 27, 1000]);
        assert!(groups_in(b"Name:\tx\nGroups:\t \n").is_empty());
    }

    #[test]
    fn a_thread_that_cannot_be_seen_is_in_no_group() {
        assert!(groups(0).is_empty());
        assert!(groups(u32::MAX).is_empty());
        let own = nix::unistd::getgroups().unwrap();
        let own: Vec<u32> = own.into_iter().map(nix::unistd::Gid::as_raw).collect();
        assert_eq!(groups(std::process::id()), own);
    }
}
