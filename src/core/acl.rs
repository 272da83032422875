//! POSIX ACLs: the format in which Linux passes them as extended attributes, and their relation to
//! the mode.
//!
//! An access ACL and the permission bits of the mode contain the same facts: the owner's entry
//! equals the owner's bits, the entry for others equals the bits for others, and the mask (or,
//! without one, the owning group's entry) equals the group's bits. Each function that changes one
//! side also returns the other, as on local file systems.

/// The extended attribute of the access ACL: permissions are checked against it.
pub const ACCESS: &[u8] = b"system.posix_acl_access";

/// The extended attribute of the default ACL: new entries of a directory inherit it.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

/// The namespace of both.
pub const SPACE: &str = "system.posix_acl_";

/// The only version of the format.
const VERSION: u32 = 2;

/// Bytes of the version number, and of each entry.
const HEADER: usize = 4;
const ENTRY: usize = 8;

/// The largest value that the kernel accepts from a FUSE file system, in bytes.
const MAX_BYTES: usize = 4096;

/// The id of an entry without a user or group.
const NO_ID: u32 = u32::MAX;

/// The subject of an entry. The numbers are those of the format, and entries are sorted by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
enum Tag {
    Owner = 0x01,
    User = 0x02,
    OwningGroup = 0x04,
    Group = 0x08,
    Mask = 0x10,
    Other = 0x20,
}

impl Tag {
    fn new(number: u16) -> Option<Tag> {
        [
            Tag::Owner,
            Tag::User,
            Tag::OwningGroup,
            Tag::Group,
            Tag::Mask,
            Tag::Other,
        ]
        .into_iter()
        .find(|tag| *tag as u16 == number)
    }

    fn is_named(self) -> bool {
        matches!(self, Tag::User | Tag::Group)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AclEntry {
    tag: Tag,
    /// Read, write and execute.
    permissions: u16,
    id: u32,
}

/// A valid ACL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    entries: Vec<AclEntry>,
}

/// A value that is not a valid ACL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid POSIX ACL")]
pub struct NotAnAcl;

/// Returns whether `name` is one of the two attributes.
pub fn is_acl(name: &[u8]) -> bool {
    name == ACCESS || name == DEFAULT
}

impl Acl {
    /// Parses the value of an extended attribute. Returns `None` for an ACL without entries, which
    /// means no ACL.
    ///
    /// # Errors
    /// [`NotAnAcl`] where Linux returns `EINVAL`: another version, an unknown, superfluous or
    /// missing entry, or entries out of order.
    pub fn parse(value: &[u8]) -> Result<Option<Acl>, NotAnAcl> {
        if value.len() > MAX_BYTES {
            return Err(NotAnAcl);
        }
        let (version, rest) = value.split_first_chunk().ok_or(NotAnAcl)?;
        if u32::from_le_bytes(*version) != VERSION || rest.len() % ENTRY != 0 {
            return Err(NotAnAcl);
        }
        let entries = rest
            .chunks_exact(ENTRY)
            .map(AclEntry::parse)
            .collect::<Result<Vec<_>, _>>()?;
        if entries.is_empty() {
            return Ok(None);
        }
        let acl = Acl { entries };
        match acl.is_valid() {
            true => Ok(Some(acl)),
            false => Err(NotAnAcl),
        }
    }

    /// Returns the value of the extended attribute.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + ENTRY * self.entries.len());
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        for entry in &self.entries {
            bytes.extend_from_slice(&(entry.tag as u16).to_le_bytes());
            bytes.extend_from_slice(&entry.permissions.to_le_bytes());
            bytes.extend_from_slice(&entry.id.to_le_bytes());
        }
        bytes
    }

    /// Returns whether the entries are in order, the three required ones occur once, and there is a
    /// mask if an entry names a user or group.
    fn is_valid(&self) -> bool {
        let is_ordered = self.entries.windows(2).all(|pair| {
            pair[0].tag < pair[1].tag || (pair[0].tag == pair[1].tag && pair[0].tag.is_named())
        });
        let has = |tag| self.entries.iter().any(|entry| entry.tag == tag);
        let names_any = self.entries.iter().any(|entry| entry.tag.is_named());
        is_ordered
            && has(Tag::Owner)
            && has(Tag::OwningGroup)
            && has(Tag::Other)
            && (!names_any || has(Tag::Mask))
    }

    fn permissions_of(&self, tag: Tag) -> Option<u32> {
        let entry = self.entries.iter().find(|entry| entry.tag == tag);
        entry.map(|entry| entry.permissions.into())
    }

    /// Returns the permission bits (`0o777`) that match this access ACL.
    pub fn mode(&self) -> u32 {
        let of = |tag| self.permissions_of(tag).unwrap_or(0);
        let group = self.permissions_of(Tag::Mask);
        of(Tag::Owner) << 6 | group.unwrap_or_else(|| of(Tag::OwningGroup)) << 3 | of(Tag::Other)
    }

    /// Returns whether the permission bits express this access ACL completely.
    pub fn is_mode_only(&self) -> bool {
        self.entries.len() == 3
    }

    /// Returns this access ACL after chmod(2) to `mode`.
    #[must_use]
    pub fn with_mode(&self, mode: u32) -> Acl {
        let mut acl = self.clone();
        let has_mask = self.permissions_of(Tag::Mask).is_some();
        for entry in &mut acl.entries {
            let bits = match entry.tag {
                Tag::Owner => mode >> 6,
                Tag::Mask => mode >> 3,
                Tag::OwningGroup if !has_mask => mode >> 3,
                Tag::Other => mode,
                _ => continue,
            };
            entry.permissions = (bits & 0o7) as u16;
        }
        acl
    }

    /// Returns the access ACL and permission bits of a new entry with `mode` in a directory with
    /// this default ACL: only what both allow is allowed. The ACL is `None` if the bits express it
    /// completely.
    pub fn inherited(&self, mode: u32) -> (Option<Acl>, u32) {
        let permissions = self.mode() & mode & 0o777;
        let acl = self.with_mode(permissions);
        ((!acl.is_mode_only()).then_some(acl), permissions)
    }
}

impl AclEntry {
    fn parse(bytes: &[u8]) -> Result<AclEntry, NotAnAcl> {
        let (tag, rest) = bytes.split_first_chunk().ok_or(NotAnAcl)?;
        let (permissions, rest) = rest.split_first_chunk().ok_or(NotAnAcl)?;
        let id = rest.try_into().map_err(|_| NotAnAcl)?;
        let tag = Tag::new(u16::from_le_bytes(*tag)).ok_or(NotAnAcl)?;
        let permissions = u16::from_le_bytes(*permissions);
        let id = u32::from_le_bytes(id);
        if permissions > 0o7 || (tag.is_named() && id == NO_ID) {
            return Err(NotAnAcl);
        }
        Ok(AclEntry {
            tag,
            permissions,
            // Linux ignores the id of other entries, and sets it to this value.
            id: if tag.is_named() { id } else { NO_ID },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&permissions.to_le_bytes());
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        bytes
    }

    fn acl(entries: &[(u16, u16, u32)]) -> Acl {
        Acl::parse(&value(entries)).unwrap().unwrap()
    }

    const PLAIN: [(u16, u16, u32); 3] = [(1, 6, NO_ID), (4, 4, NO_ID), (0x20, 4, NO_ID)];
    const NAMED: [(u16, u16, u32); 5] = [
        (1, 6, NO_ID),
        (2, 7, 1000),
        (4, 4, NO_ID),
        (0x10, 5, NO_ID),
        (0x20, 0, NO_ID),
    ];

    #[test]
    fn the_bytes_are_those_of_linux() {
        let wanted = [
            2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 7, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255,
            255, 255, 255, 16, 0, 5, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
        ];
        assert_eq!(acl(&NAMED).to_bytes(), wanted);
        assert_eq!(Acl::parse(&value(&[])), Ok(None));
    }

    #[test]
    fn what_linux_refuses_is_refused() {
        let swapped = [PLAIN[1], PLAIN[0], PLAIN[2]];
        let no_mask = [PLAIN[0], (2, 7, 1000), PLAIN[1], PLAIN[2]];
        let two_owners = [PLAIN[0], PLAIN[0], PLAIN[1], PLAIN[2]];
        let bad_bits = [(1, 8, NO_ID), PLAIN[1], PLAIN[2]];
        let bad_tag = [PLAIN[0], PLAIN[1], PLAIN[2], (0x40, 0, NO_ID)];
        let nobody = [NAMED[0], (2, 7, NO_ID), NAMED[2], NAMED[3], NAMED[4]];
        let many: Vec<_> = (0..600).map(|id| (2, 7, id)).collect();
        let many = [&NAMED[..1], &many, &NAMED[2..]].concat();
        for entries in [
            &swapped[..],
            &no_mask,
            &two_owners,
            &bad_bits,
            &bad_tag,
            &nobody,
            &many,
            &PLAIN[..2],
            &PLAIN[1..],
        ] {
            assert_eq!(Acl::parse(&value(entries)), Err(NotAnAcl), "{entries:?}");
        }
        for bytes in [&b""[..], b"\x02\0\0", b"\x01\0\0\0", b"\x02\0\0\0x"] {
            assert_eq!(Acl::parse(bytes), Err(NotAnAcl), "{bytes:?}");
        }
    }

    #[test]
    fn mode_and_acl_follow_each_other() {
        assert_eq!(acl(&PLAIN).mode(), 0o644);
        assert!(acl(&PLAIN).is_mode_only() && !acl(&NAMED).is_mode_only());
        assert_eq!(acl(&NAMED).mode(), 0o650, "the mask stands for the group");
        let changed = acl(&NAMED).with_mode(0o4712);
        assert_eq!(changed.mode(), 0o712);
        assert_eq!(changed.permissions_of(Tag::OwningGroup), Some(4));
        assert_eq!(acl(&PLAIN).with_mode(0o712).mode(), 0o712);
    }

    #[test]
    fn what_is_inherited_allows_no_more_than_either_side() {
        let (inherited, mode) = acl(&NAMED).inherited(0o666);
        assert_eq!(mode, 0o640);
        let inherited = inherited.unwrap();
        assert_eq!(inherited.mode(), 0o640);
        assert_eq!(
            inherited.permissions_of(Tag::User),
            Some(7),
            "but for the mask"
        );
        assert_eq!(acl(&PLAIN).inherited(0o777), (None, 0o644));
    }

    fn any_acl() -> impl Strategy<Value = Acl> {
        let bits = 0u16..8;
        let named = |tag| {
            prop::collection::vec((0u16..8, 0u32..NO_ID), 0..4).prop_map(move |all| {
                all.into_iter()
                    .map(|(permissions, id)| (tag, permissions, id))
                    .collect::<Vec<_>>()
            })
        };
        let mask = prop::option::of(0u16..8);
        let three = (bits.clone(), bits.clone(), bits);
        (three, named(2), named(8), mask).prop_map(
            |((owner, group, other), users, groups, mask)| {
                let needs_mask = !users.is_empty() || !groups.is_empty();
                let mask = mask.or(needs_mask.then_some(5));
                let mut entries = vec![(1, owner, NO_ID)];
                entries.extend(users);
                entries.push((4, group, NO_ID));
                entries.extend(groups);
                entries.extend(mask.map(|mask| (0x10, mask, NO_ID)));
                entries.push((0x20, other, NO_ID));
                acl(&entries)
            },
        )
    }

    proptest! {
        #[test]
        fn an_acl_reads_back_as_it_was_written(acl in any_acl()) {
            prop_assert_eq!(Acl::parse(&acl.to_bytes()), Ok(Some(acl)));
        }

        #[test]
        fn after_chmod_the_acl_says_the_mode(acl in any_acl(), mode in 0u32..0o10000) {
            prop_assert_eq!(acl.with_mode(mode).mode(), mode & 0o777);
            prop_assert_eq!(acl.with_mode(acl.mode()), acl);
        }

        #[test]
        fn nothing_is_inherited_beyond_either(acl in any_acl(), mode in 0u32..0o10000) {
            let (inherited, permissions) = acl.inherited(mode);
            prop_assert_eq!(permissions & !acl.mode(), 0);
            prop_assert_eq!(permissions & !mode, 0);
            prop_assert_eq!(inherited.is_none(), acl.is_mode_only());
            if let Some(inherited) = inherited {
                prop_assert_eq!(inherited.mode(), permissions);
            }
        }

        #[test]
        fn any_bytes_are_an_acl_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Some(acl)) = Acl::parse(&bytes) {
                prop_assert_eq!(acl.to_bytes().len(), bytes.len());
            }
        }
    }
}
