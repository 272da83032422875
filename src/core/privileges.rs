//! Mode bits and extended attributes that give a user's rights to others.

/// Set-user-id and set-group-id: who executes the file gets the rights of its owner or group.
pub const SET_IDS: u32 = 0o6000;

/// Returns whether an extended attribute may give rights, or only root may set it.
pub fn is_privileged(name: &[u8]) -> bool {
    name.starts_with(b"security.") || name.starts_with(b"trusted.")
}

/// Removes the bits that an untrusted description must not set. The set-group-id bit of a directory
/// stays: it gives no rights, only new files their group.
pub fn without_set_ids(is_dir: bool, permissions: u32) -> u32 {
    match is_dir {
        true => permissions & !0o4000,
        false => permissions & !SET_IDS,
    }
}
