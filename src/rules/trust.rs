//! Whose word something in `.ferryfs` is, and what a stranger's word is worth.
//!
//! Records and segments say what is done to the user's files: which modes, owners and devices they get. A checksum is no signature,
//! so whoever may write to `.ferryfs` could have written them. They are *ours* if nobody but this process's user and root could:
//! each directory from the backend's root down to them, and they themselves, belong to one of the two, and nobody else may write
//! to them. Where a file system has POSIX ACLs the group's bits are the most that an ACL gives, so the mode is enough.
//!
//! Anything else is a *stranger's*. It is carried out all the same, as a drive may come from another machine; but nothing is
//! done for it that gives somebody's rights away: no devices, no set-user-id and set-group-id bits, no owners, no `security.*` and
//! `trusted.*` attributes.

/// Bits with which others may write.
const GROUP_WRITES: u32 = 0o020;
const ALL_WRITE: u32 = 0o002;

/// In a directory with this bit only the owner of an entry, or of the directory, can move or remove it.
const STICKY: u32 = 0o1000;

/// Bits that give the rights of a file's owner or group to who runs it.
pub const SET_IDS: u32 = 0o6000;

/// Who owns something on the way, and who may write to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Number of its owner.
    pub uid: u32,
    /// Number of its group.
    pub gid: u32,
    /// Its permission bits.
    pub permissions: u32,
}

/// A user who could have written something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Author {
    /// Number of the user.
    pub uid: u32,
    /// Number of the group of what is his.
    pub gid: u32,
}

/// Whom the permissions of a drive are asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Number of the user.
    pub uid: u32,
    /// The groups that he is in.
    pub groups: Vec<u32>,
}

impl Subject {
    /// What he may do with something: read (4), write (2), execute or search (1).
    pub fn rights(&self, holder: &Holder) -> u32 {
        let shift = match () {
            () if self.uid == holder.uid => 6,
            () if self.groups.contains(&holder.gid) => 3,
            () => 0,
        };
        holder.permissions >> shift & 0o7
    }

    /// Whether it is his.
    pub fn owns(&self, holder: &Holder) -> bool {
        self.uid == holder.uid
    }
}

/// Whose word something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// That of this process's user, or of root.
    Ours,
    /// Somebody else's; `None` if it can be anybody's.
    Stranger(Option<Author>),
}

impl Trust {
    /// That of anybody.
    pub const ANYBODY: Trust = Trust::Stranger(None);

    /// Judges by everything on the way from the backend's root to the thing itself, in this order. `us` is the number of this
    /// process's user; `is_ours_alone` tells of a group whether nobody else is in it.
    ///
    /// Nobody but root can give a file away, so what is somebody else's was written by him. Who owns a directory on the way could have
    /// put anything there, whoever wrote it; so could whoever may write to it. What is ours in a directory with the sticky bit nobody
    /// else can replace.
    pub fn judge(us: u32, is_ours_alone: impl Fn(u32) -> bool, way: &[Holder]) -> Trust {
        let is_theirs = |holder: &&Holder| holder.uid != us && holder.uid != 0;
        if let Some(author) = way.last().filter(is_theirs) {
            return Trust::Stranger(Some(Author {
                uid: author.uid,
                gid: author.gid,
            }));
        }
        if way.iter().any(|holder| is_theirs(&holder)) {
            return Trust::ANYBODY;
        }
        let last = way.len().saturating_sub(1);
        let is_open = |(at, holder): (usize, &Holder)| {
            let by_group = holder.permissions & GROUP_WRITES != 0 && !is_ours_alone(holder.gid);
            let by_others = by_group || holder.permissions & ALL_WRITE != 0;
            by_others && (at == last || holder.permissions & STICKY == 0)
        };
        match way.iter().enumerate().any(is_open) {
            true => Trust::ANYBODY,
            false => Trust::Ours,
        }
    }

    /// Whether it is ours.
    pub fn is_ours(self) -> bool {
        self == Trust::Ours
    }

    /// What two things are worth together.
    #[must_use]
    pub fn and(self, other: Trust) -> Trust {
        match self {
            Trust::Ours => other,
            Trust::Stranger(_) => self,
        }
    }
}

/// The permission bits of what a stranger describes. In a directory the set-group-id bit gives nobody any right: it says which
/// group new files get.
pub fn without_set_ids(is_dir: bool, permissions: u32) -> u32 {
    match is_dir {
        true => permissions & !0o4000,
        false => permissions & !SET_IDS,
    }
}

/// Whether an extended attribute may give rights, or is for root to set.
pub fn is_privileged(name: &[u8]) -> bool {
    name.starts_with(b"security.") || name.starts_with(b"trusted.")
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: u32 = 1000;

    fn judge(way: &[(u32, u32, u32)]) -> Trust {
        let holder = |&(uid, gid, permissions): &(u32, u32, u32)| Holder {
            uid,
            gid,
            permissions,
        };
        let way: Vec<Holder> = way.iter().map(holder).collect();
        Trust::judge(US, |gid| gid == US, &way)
    }

    #[test]
    fn what_only_we_and_root_could_have_written_is_ours() {
        assert_eq!(judge(&[]), Trust::Ours);
        assert_eq!(judge(&[(0, 0, 0o755), (US, US, 0o755)]), Trust::Ours);
        assert_eq!(judge(&[(US, US, 0o775), (US, 7, 0o600)]), Trust::Ours);
    }

    #[test]
    fn who_owns_it_has_written_it_whoever_owns_the_way() {
        let his = Trust::Stranger(Some(Author { uid: 7, gid: 8 }));
        assert_eq!(judge(&[(0, 0, 0o755), (0, 0, 0o755), (7, 8, 0o600)]), his);
        assert_eq!(judge(&[(0, 0, 0o1777), (7, 8, 0o755)]), his);
        assert_eq!(judge(&[(9, 9, 0o775), (7, 8, 0o755), (7, 8, 0o600)]), his);
    }

    #[test]
    fn what_is_ours_in_a_directory_of_another_user_he_may_have_put_there() {
        let way = [(0, 0, 0o755), (7, 8, 0o700), (0, 0, 0o600)];
        assert_eq!(judge(&way), Trust::ANYBODY);
        assert_eq!(judge(&[(7, 8, 0o755), (US, US, 0o700)]), Trust::ANYBODY);
    }

    #[test]
    fn where_others_may_write_it_is_theirs() {
        assert_eq!(judge(&[(0, 0, 0o755), (US, US, 0o757)]), Trust::ANYBODY);
        assert_eq!(judge(&[(0, 0, 0o777), (0, 0, 0o755)]), Trust::ANYBODY);
        assert_eq!(judge(&[(US, 7, 0o2775), (US, US, 0o755)]), Trust::ANYBODY);
        // What is in it can be anybody's; but nobody can replace what is ours.
        assert_eq!(judge(&[(0, 0, 0o1777)]), Trust::ANYBODY);
        assert_eq!(judge(&[(0, 0, 0o1777), (US, US, 0o700)]), Trust::Ours);
    }

    #[test]
    fn rights_are_those_that_the_kernel_would_give() {
        let holder = |uid, gid, permissions| Holder {
            uid,
            gid,
            permissions,
        };
        let user = Subject {
            uid: 7,
            groups: vec![8, 9],
        };
        assert_eq!(user.rights(&holder(7, 8, 0o170)), 1);
        assert_eq!(user.rights(&holder(1, 9, 0o751)), 5);
        assert_eq!(user.rights(&holder(1, 1, 0o4754)), 4);
    }

    #[test]
    fn bits_that_give_rights_away_are_taken_off() {
        assert_eq!(without_set_ids(false, 0o7755), 0o1755);
        assert_eq!(without_set_ids(true, 0o7775), 0o3775);
        assert!(is_privileged(b"security.capability") && is_privileged(b"trusted.x"));
        assert!(!is_privileged(b"user.security.x") && !is_privileged(b"system.posix_acl_access"));
    }
}
