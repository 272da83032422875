//! Capabilities of a backend.

use crate::core::{NAME_MAX, is_privileged};

/// Longest target of a symbolic link in bytes, as in Linux (`PATH_MAX` without the NUL).
pub const MAX_TARGET_BYTES: usize = 4095;

/// Value of [`Capabilities::xattr_bytes`] if each attribute may have Linux's full length,
/// independent of the others.
pub const XATTR_UNBOUNDED: u32 = 65_536;

/// Version of the probe, see [`Capabilities::probed`].
pub const PROBE_VERSION: u32 = 2;

/// The capabilities of a backend, found by a probe. The planner and the name check receive them as
/// data; no code has a list of file systems.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Capabilities {
    /// Bytes below 0x80 that names must not contain.
    pub forbidden: Vec<u8>,
    /// Names that differ only in case are equal.
    pub case_insensitive: bool,
    /// Names must be UTF-8.
    pub utf8_only: bool,
    /// A trailing dot is dropped or refused.
    pub no_trailing_dot: bool,
    /// A trailing space is dropped or refused.
    pub no_trailing_space: bool,
    /// Names that differ only in their Unicode form (composed or decomposed) are equal.
    pub form_insensitive: bool,
    /// Longest name in UTF-16 code units, if the backend counts those instead of bytes.
    pub max_utf16: Option<usize>,
    /// Longest name in bytes, if the backend counts bytes.
    pub max_bytes: usize,
    /// Symbolic links are supported.
    pub symlinks: bool,
    /// Hard links are supported.
    pub hard_links: bool,
    /// Permission bits are stored.
    pub permissions: bool,
    /// Granularity of times in nanoseconds.
    pub time_granularity_ns: u64,
    /// The [`PROBE_VERSION`] of the probe that found these. The next attach probes the attributes
    /// again if an earlier version found them.
    pub probed: u32,
    /// Files can be given to other owners and groups.
    pub owners: bool,
    /// Owner and group that the backend reports for files created by ferryfs.
    pub own: Option<(u32, u32)>,
    /// Named pipes and sockets are supported.
    pub special_files: bool,
    /// Devices are supported.
    pub devices: bool,
    /// Set-user-id and set-group-id bits of files may be stored. The probe always sets this; see
    /// [`Capabilities::without_privileges`].
    pub set_ids: bool,
    /// Longest target of a symbolic link, in bytes.
    pub target_bytes: u32,
    /// Supported namespaces of extended attributes ("user.").
    pub xattrs: Vec<String>,
    /// Bytes available for the extended attributes of one file, see [`crate::plan::representable`].
    pub xattr_bytes: u32,
}

impl Capabilities {
    /// Those of a Linux file system, used as root.
    pub fn everything() -> Capabilities {
        Capabilities {
            forbidden: Vec::new(),
            case_insensitive: false,
            utf8_only: false,
            no_trailing_dot: false,
            no_trailing_space: false,
            form_insensitive: false,
            max_utf16: None,
            max_bytes: NAME_MAX,
            symlinks: true,
            hard_links: true,
            permissions: true,
            time_granularity_ns: 1,
            probed: PROBE_VERSION,
            owners: true,
            own: Some((0, 0)),
            special_files: true,
            devices: true,
            set_ids: true,
            target_bytes: MAX_TARGET_BYTES as u32,
            xattrs: ["user.", "trusted.", "security.", crate::core::acl::SPACE]
                .map(String::from)
                .into(),
            xattr_bytes: XATTR_UNBOUNDED,
        }
    }

    /// Returns these, with all except names and times taken from `found` by a newer probe.
    pub fn with_attributes_of(self, found: Capabilities) -> Capabilities {
        Capabilities {
            forbidden: self.forbidden,
            case_insensitive: self.case_insensitive,
            utf8_only: self.utf8_only,
            no_trailing_dot: self.no_trailing_dot,
            no_trailing_space: self.no_trailing_space,
            form_insensitive: self.form_insensitive,
            max_utf16: self.max_utf16,
            max_bytes: self.max_bytes,
            time_granularity_ns: self.time_granularity_ns,
            ..found
        }
    }

    /// Returns what of these is used on a drive that other users may write to: nothing that would
    /// give a user's rights to whoever replaces a file. The catalog stores the rest.
    #[must_use]
    pub fn without_privileges(&self) -> Capabilities {
        let mut left = self.clone();
        (left.devices, left.set_ids) = (false, false);
        left.xattrs.retain(|space| !is_privileged(space.as_bytes()));
        left
    }

    /// Those of a file system with names, bytes and times only, such as FAT.
    pub fn plain() -> Capabilities {
        Capabilities {
            symlinks: false,
            hard_links: false,
            permissions: false,
            owners: false,
            special_files: false,
            devices: false,
            target_bytes: 0,
            xattrs: Vec::new(),
            xattr_bytes: 0,
            ..Capabilities::everything()
        }
    }
}
