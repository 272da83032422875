//! Names that other systems use at the root of a drive: recycle bins, search indexes, results of
//! file-system checks.
//!
//! These entries are not part of the user's tree: they are hidden unless the mount shows them, and
//! never touched. A file that a program creates in the mount under such a name is an ordinary file.
//! It is stored under another name (see [`crate::plan::names`]), so that the two cannot be confused
//! when the drive is listed again.
//!
//! Not included: `.Trash-1000` and the like, in which file managers keep files deleted *in the
//! mount*; and `._*`, which macOS puts beside files, which programs may use themselves, and which
//! belong to their directory.

/// The names, compared without ASCII case, as these systems' file systems do.
const NAMES: [&[u8]; 8] = [
    b"System Volume Information",
    b"$RECYCLE.BIN",
    b".Spotlight-V100",
    b".Trashes",
    b".fseventsd",
    b".TemporaryItems",
    b".DocumentRevisions-V100",
    LOST_FOUND,
];

/// Created by mke2fs for its checker, and by other checkers for rescued files; see
/// [`is_lost_found`].
const LOST_FOUND: &[u8] = b"lost+found";

/// Returns whether `name`, at the root of a volume, is one that other systems use.
pub fn is_system_name(name: &[u8]) -> bool {
    NAMES.iter().any(|known| name.eq_ignore_ascii_case(known)) || is_chkdsk_dir(name)
}

/// Returns whether `name` is `lost+found`. If only root can enter it, it is the file system's own;
/// on exFAT it contains rescued files that users look for.
pub fn is_lost_found(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(LOST_FOUND)
}

/// Returns whether `name` is `found.000` or the like: the results of Windows' checker.
fn is_chkdsk_dir(name: &[u8]) -> bool {
    let Some((stem, digits)) = name.split_at_checked(b"found.".len()) else {
        return false;
    };
    stem.eq_ignore_ascii_case(b"found.")
        && digits.len() == 3
        && digits.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_names_are_known_in_any_case_and_nothing_else_is() {
        for name in [
            "System Volume Information",
            "$Recycle.Bin",
            ".trashes",
            "FOUND.000",
            "found.123",
            "lost+found",
        ] {
            assert!(is_system_name(name.as_bytes()), "{name}");
        }
        for name in [
            "",
            "found",
            "found.",
            "found.0000",
            "found.00a",
            ".Trash-1000",
            "._a",
            ".DS_Store",
            "System Volume",
            "äfound.000",
        ] {
            assert!(!is_system_name(name.as_bytes()), "{name}");
        }
    }
}
