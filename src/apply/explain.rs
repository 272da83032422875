//! Messages to a user about refused steps: what happened, what is safe, and what to do.

use crate::apply::refused::{StepNo, Why};
use crate::core::RelPath;
use crate::drive::inner_mounts::{NOT_MOUNTED, WRITES_LATER};

/// Returns the message to a user about a refused step: what happened, what is safe, and what to do.
/// `at` is the present path on the drive of the file that was to be moved.
pub(crate) fn explain(step: StepNo, why: &Why, at: Option<&RelPath>) -> String {
    let cause = explain_alone(why);
    let rest = match (step, at) {
        (_, Some(at)) => format!("on the drive it is at {at}, and the move waits in the cache"),
        (StepNo::Clear(_), None) => {
            "it stays on the drive as it was, and the change waits in the cache".into()
        }
        (StepNo::Place(_), None) if matches!(why, Why::Patch(_)) => {
            "on the drive it is the old version, or changed in part only; the new version waits \
             in the cache"
                .into()
        }
        (StepNo::Place(_), None) => {
            "the drive keeps what it had, and the new version waits in the cache".into()
        }
    };
    format!("{cause}; {rest}. Put that right and flush again")
}

/// The same on a machine that has the drive without the cache.
pub(crate) fn explain_alone(why: &Why) -> String {
    match why {
        Why::Errno(errno) | Why::Patch(errno) => cause(*errno),
        Why::Link(errno) => cause_of_link(*errno),
        Why::Torn => {
            "another program has changed or removed it while blocks were written into it, \
                      so it may have a part of them"
                .into()
        }
        Why::Occupied => "what has this name on the drive cannot be taken away".into(),
        Why::NoDirectory => "the directory that it belongs in could not be made".into(),
        Why::NoDatabase => "its database could not be written".into(),
    }
}

fn cause_of_link(errno: i32) -> String {
    const COPY: &str =
        "the drive does not take it as a further name of its file; make it a copy, or remove it";
    match errno {
        libc::EXDEV | libc::EMLINK | libc::EOPNOTSUPP | libc::ENOSYS => COPY.into(),
        _ => cause(errno),
    }
}

fn cause(errno: i32) -> String {
    match errno {
        NOT_MOUNTED => {
            return "the file system that was mounted there is not mounted: mount it again; if it \
                    is gone for good, delete the directory in the mount"
                .into();
        }
        WRITES_LATER => {
            return "an `rclone mount` is there that uploads files later than a flush ends: mount \
                    it with --vfs-cache-mode off"
                .into();
        }
        _ => {}
    }
    let hint = match errno {
        libc::EPERM => {
            "it or its directory may be marked immutable (see lsattr), or belong to another user"
        }
        libc::EACCES => "ferryfs has no permission there",
        libc::EROFS => "that part of the drive is read-only",
        libc::EXDEV => "a directory cannot be moved between two file systems",
        libc::EBUSY | libc::ETXTBSY => {
            "another program or computer has it in use, or a file system is mounted on it"
        }
        libc::EFBIG => "it is larger than the drive's file system takes",
        libc::EINVAL | libc::EILSEQ => "the drive's file system does not take this name",
        libc::ENAMETOOLONG => "its name is too long for the drive's file system",
        libc::EMLINK => "the drive's file system does not take so many links or directories",
        libc::EIO | libc::EUCLEAN => "the medium may be damaged there; check it",
        libc::ENOSPC => "others have filled the drive meanwhile; make space on it",
        libc::EDQUOT => "the quota on the drive is used up",
        libc::EEXIST | libc::ENOTEMPTY | libc::EISDIR | libc::ENOTDIR => {
            "something else has its name there"
        }
        libc::ENOENT => "its directory is not there",
        _ => "",
    };
    let said = std::io::Error::from_raw_os_error(errno).to_string();
    let said = said
        .split(" (os error")
        .next()
        .unwrap_or_default()
        .to_string();
    match hint {
        "" => format!("the drive refuses it: {said}"),
        hint => format!("the drive refuses it: {said}; {hint}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_is_told_what_is_safe_and_what_to_do() {
        let text = explain(StepNo::Place(0), &Why::Errno(libc::EPERM), None);
        for part in [
            "Operation not permitted",
            "immutable",
            "waits in the cache",
            "flush again",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("os error"), "{text}");
    }
}
