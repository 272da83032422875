//! What other systems keep for themselves at the root of a drive: recycle bins, search indexes, what a file-system check has found.
//!
//! It is no part of the user's tree: it is not shown unless it is asked for, and nothing of it is ever touched. A file that a program
//! makes in the mount under such a name is a file like another: it is stored under another name (see [`crate::rules::names`]), so
//! that neither is taken for the other when the drive is looked at anew.
//!
//! Not among them: `.Trash-1000` and its like, in which file managers keep what was deleted *in the mount*; and `._*`, which macOS puts
//! beside files, in which programs may keep something of their own, and which go with the directory that they are in.

/// The names, compared without ASCII case: file systems that these systems meet do so.
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

/// Made by mke2fs for its checker, and by other checkers for what they have rescued; see [`is_lost_found`].
const LOST_FOUND: &[u8] = b"lost+found";

/// Whether `name`, at the root of a volume, is one that other systems use for themselves.
pub fn is_system_name(name: &[u8]) -> bool {
    NAMES.iter().any(|known| name.eq_ignore_ascii_case(known)) || is_chkdsk_dir(name)
}

/// Whether it is `lost+found`. One that only root can enter is the file system's own; on exFAT it holds what a check has rescued,
/// which people look for.
pub fn is_lost_found(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(LOST_FOUND)
}

/// `found.000` and so on: what Windows' checker has found.
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
