//! Decides which attributes of an entry a backend gets, by its capabilities; the catalog stores the
//! rest. Both sides use this decision, so that no attribute is lost between them: the backend gets
//! [`Given`], and [`Given::is_all`] returns whether that is everything.

use crate::core::acl::Acl;
use crate::core::{Capabilities, FileKind, XATTR_UNBOUNDED, Xattrs, acl, without_set_ids};

/// The most bytes of names and values of all extended attributes of one file.
pub const MAX_XATTRS: u64 = 1 << 20;

/// The longest list of attribute names that listxattr(2) returns, in bytes, each name with a NUL.
pub const MAX_XATTR_LIST: u64 = 65_536;

/// The most bytes that an extended attribute takes in addition to name and value.
const XATTR_OVERHEAD: usize = 32;

/// Labels that each system assigns to files itself.
const LABELS: [&[u8]; 5] = [
    b"security.selinux",
    b"security.ima",
    b"security.evm",
    b"security.apparmor",
    b"security.SMACK64",
];

/// Returns whether an extended attribute belongs to the file and is written with it.
pub fn is_carried(name: &[u8]) -> bool {
    let carried: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    let is_plain = carried.iter().any(|prefix| name.starts_with(prefix))
        && !LABELS.iter().any(|label| name.starts_with(label));
    is_plain || acl::is_acl(name)
}

/// Returns whether the backend can store such an entry; `size` is the length of a symbolic link's
/// target, in bytes.
pub fn has_kind(capabilities: &Capabilities, kind: FileKind, size: u64) -> bool {
    match kind {
        FileKind::Regular | FileKind::Directory => true,
        FileKind::Symlink => capabilities.symlinks && size <= capabilities.target_bytes.into(),
        FileKind::Fifo | FileKind::Socket => capabilities.special_files,
        FileKind::CharDevice | FileKind::BlockDevice => capabilities.devices,
    }
}

/// Returns whether the backend stores any attributes except a file's time.
pub fn has_attributes(capabilities: &Capabilities) -> bool {
    capabilities.permissions || capabilities.owners || !capabilities.xattrs.is_empty()
}

/// Attributes in the mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The kind.
    pub kind: FileKind,
    /// Permission bits (`0o7777`).
    pub permissions: u32,
    /// Number of the owner.
    pub uid: u32,
    /// Number of the group.
    pub gid: u32,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

/// The attributes that the backend gets; `None` for those that it need not store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// Permission bits.
    pub permissions: Option<u32>,
    /// Owner and group.
    pub owner: Option<(u32, u32)>,
    /// The whole set of extended attributes.
    pub xattrs: Option<Xattrs>,
    is_all: bool,
}

impl Given {
    /// Returns what a backend with these `capabilities` gets.
    ///
    /// Without the right to change owners ferryfs is an ordinary user there, who must be able to
    /// read his files and change his directories: the user's own bits are never removed.
    pub fn new(capabilities: &Capabilities, attributes: &Attributes) -> Given {
        let wanted = attributes.permissions & 0o7777;
        let is_link = attributes.kind == FileKind::Symlink;
        let own = match attributes.kind {
            _ if capabilities.owners => 0,
            FileKind::Directory => 0o700,
            _ => 0o600,
        };
        // A link has no permission bits to set.
        let takes_bits = match capabilities.set_ids {
            true => wanted,
            false => without_set_ids(attributes.kind == FileKind::Directory, wanted),
        };
        let permissions = (capabilities.permissions && !is_link).then_some(takes_bits | own);
        let owner = capabilities
            .owners
            .then_some((attributes.uid, attributes.gid));
        let is_owned =
            owner.is_some() || capabilities.own == Some((attributes.uid, attributes.gid));
        // An ACL sets the mode on the backend, so the backend gets it with exactly that mode or not
        // at all.
        let takes_acls = permissions == Some(wanted);
        let takes = |name: &[u8], value: &[u8]| {
            !acl::is_acl(name) || (takes_acls && leaves_own(value, own))
        };
        let (fitting, fits) = fitting(capabilities, &attributes.xattrs, takes);
        let xattrs = (!capabilities.xattrs.is_empty()).then_some(fitting);
        Given {
            is_all: (is_link || permissions == Some(wanted)) && is_owned && fits,
            permissions,
            owner,
            xattrs,
        }
    }

    /// Returns whether the backend stores all of it.
    pub fn is_all(&self) -> bool {
        self.is_all
    }

    /// Returns whether there is nothing to set.
    pub fn is_nothing(&self) -> bool {
        self.permissions.is_none() && self.owner.is_none() && self.xattrs.is_none()
    }
}

/// Returns whether an ACL gives the owner the bits `own`.
fn leaves_own(value: &[u8], own: u32) -> bool {
    Acl::parse(value).is_ok_and(|acl| acl.is_none_or(|acl| acl.mode() & own == own))
}

/// Returns the extended attributes that the backend can store together and `takes`, in the order of
/// their names, and whether these are all.
fn fitting(
    capabilities: &Capabilities,
    xattrs: &Xattrs,
    takes: impl Fn(&[u8], &[u8]) -> bool,
) -> (Xattrs, bool) {
    let mut fitting = Xattrs::new();
    let mut used = 0;
    for (name, value) in xattrs {
        let size = name.len() + value.len() + XATTR_OVERHEAD;
        let room = match capabilities.xattr_bytes {
            XATTR_UNBOUNDED => true,
            bytes => used + size <= bytes as usize,
        };
        let known = capabilities
            .xattrs
            .iter()
            .any(|space| name.starts_with(space.as_bytes()));
        if room && known && is_carried(name) && takes(name, value) {
            used += size;
            fitting.insert(name.clone(), value.clone());
        }
    }
    let all = fitting.len() == xattrs.len();
    (fitting, all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ext4(owners: bool) -> Capabilities {
        Capabilities {
            owners,
            own: Some((1000, 1000)),
            xattrs: vec!["user.".into()],
            xattr_bytes: 1000,
            ..Capabilities::everything()
        }
    }

    fn attributes(permissions: u32, uid: u32, xattrs: &[(&str, usize)]) -> Attributes {
        let xattr =
            |&(name, size): &(&str, usize)| (name.as_bytes().into(), vec![b'x'; size].into());
        Attributes {
            kind: FileKind::Regular,
            permissions,
            uid,
            gid: 1000,
            xattrs: xattrs.iter().map(xattr).collect(),
        }
    }

    #[test]
    fn a_backend_that_can_hold_everything_is_given_everything() {
        let given = Given::new(&ext4(true), &attributes(0o4000, 7, &[("user.a", 9)]));
        assert!(given.is_all());
        assert_eq!(given.permissions, Some(0o4000));
        assert_eq!(given.owner, Some((7, 1000)));
        assert_eq!(given.xattrs.unwrap().len(), 1);
    }

    #[test]
    fn an_ordinary_user_keeps_the_use_of_his_files_and_the_catalog_is_told() {
        let given = Given::new(&ext4(false), &attributes(0o040, 1000, &[]));
        assert_eq!((given.permissions, given.owner), (Some(0o640), None));
        assert!(!given.is_all());
        assert!(Given::new(&ext4(false), &attributes(0o640, 1000, &[])).is_all());
        assert!(!Given::new(&ext4(false), &attributes(0o640, 1001, &[])).is_all());
    }

    #[test]
    fn an_acl_goes_to_a_backend_that_has_them_with_the_mode_that_it_says() {
        // rwx for the owner or not, r-x for user 7 and the group.
        let acl = |owner: u8| {
            let mut value = vec![2, 0, 0, 0, 1, 0, owner, 0, 255, 255, 255, 255];
            value.extend([2, 0, 5, 0, 7, 0, 0, 0, 4, 0, 5, 0, 255, 255, 255, 255]);
            value.extend([
                16, 0, 5, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
            ]);
            value
        };
        let of = |name: &[u8], owner: u8| Attributes {
            kind: FileKind::Directory,
            xattrs: Xattrs::from([(name.into(), acl(owner).into())]),
            ..attributes(0o050 | u32::from(owner) << 6, 1000, &[])
        };
        let with_acls = |owners| {
            let mut capabilities = ext4(owners);
            capabilities.xattrs.push(acl::SPACE.into());
            capabilities
        };
        for (capabilities, name, owner, is_given) in [
            (with_acls(true), acl::ACCESS, 7, true),
            (with_acls(true), acl::ACCESS, 0, true),
            (with_acls(true), acl::DEFAULT, 0, true),
            (ext4(true), acl::ACCESS, 7, false),
            // An ordinary user would lose access.
            (with_acls(false), acl::ACCESS, 7, true),
            (with_acls(false), acl::ACCESS, 0, false),
            (with_acls(false), acl::DEFAULT, 0, false),
        ] {
            let given = Given::new(&capabilities, &of(name, owner));
            assert_eq!(given.is_all(), is_given, "{name:?} {owner}");
            assert_eq!(given.xattrs.unwrap().len(), usize::from(is_given));
        }
    }

    #[test]
    fn what_does_not_fit_is_left_for_the_catalog_and_labels_are_the_systems_own() {
        let all = [("user.a", 400), ("user.b", 700), ("user.c", 100)];
        let given = Given::new(&ext4(true), &attributes(0o644, 0, &all));
        let names: Vec<_> = given
            .xattrs
            .iter()
            .flatten()
            .map(|it| it.0.clone())
            .collect();
        assert_eq!(
            names,
            [b"user.a"[..].into(), b"user.c"[..].into()] as [Box<[u8]>; 2]
        );
        assert!(!given.is_all());
        assert!(!Given::new(&ext4(true), &attributes(0o644, 0, &[("trusted.a", 1)])).is_all());
        assert!(!is_carried(b"security.selinux") && is_carried(b"security.capability"));
        assert!(is_carried(b"system.posix_acl_access") && !is_carried(b"system.nfs4_acl"));
    }
}
