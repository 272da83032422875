//! Decides who could have written a file in `.ferryfs`, and how far it is trusted.
//!
//! Records and segments decide which modes, owners and devices the user's files get. A checksum is
//! no signature, so anyone who may write to `.ferryfs` could have written them. They are *ours* if
//! only this process's user and root could: they, and each directory from the backend's root down
//! to them, belong to one of the two and are not writable by others. On a file system with POSIX
//! ACLs the group's bits are the mask of the ACL, so the mode is enough.
//!
//! Any other file is a *stranger's*. It is executed all the same, since a drive may come from
//! another machine, but without everything that gives rights: no devices, no set-user-id and
//! set-group-id bits, no owners, no `security.*` and `trusted.*` attributes.

/// Permission bits that let others write.
const GROUP_WRITES: u32 = 0o020;
const ALL_WRITE: u32 = 0o002;

/// In a directory with this bit only the owner of an entry, or of the directory, can move or remove
/// it.
const STICKY: u32 = 0o1000;

/// The owner and permissions of a file or directory on the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ownership {
    /// Number of its owner.
    pub uid: u32,
    /// Number of its group.
    pub gid: u32,
    /// Its permission bits.
    pub permissions: u32,
}

/// A user who could have written a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Author {
    /// Number of the user.
    pub uid: u32,
    /// Number of the group of the user's files.
    pub gid: u32,
}

/// A user whose permissions on a drive are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Number of the user.
    pub uid: u32,
    /// The user's groups.
    pub groups: Vec<u32>,
}

impl Credentials {
    /// Returns the user's rights: read (4), write (2), execute or search (1).
    pub fn rights(&self, holder: &Ownership) -> u32 {
        let shift = match () {
            () if self.uid == holder.uid => 6,
            () if self.groups.contains(&holder.gid) => 3,
            () => 0,
        };
        holder.permissions >> shift & 0o7
    }

    /// Returns whether the user owns it.
    pub fn owns(&self, holder: &Ownership) -> bool {
        self.uid == holder.uid
    }
}

/// The author of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// This process's user, or root.
    Ours,
    /// Another user; `None` if it may be any user.
    Stranger(Option<Author>),
}

impl Trust {
    /// Any user.
    pub const ANYBODY: Trust = Trust::Stranger(None);

    /// Judges by all directories from the backend's root to the file, and the file itself, in this
    /// order. `us` is the number of this process's user; `is_ours_alone` returns whether a group
    /// has no other member.
    ///
    /// Only root can change an owner, so a file of another user was written by that user. The owner
    /// of a directory on the path, or a user who may write to it, could have put any file there,
    /// whoever wrote it. In a directory with the sticky bit no other user can replace our entries.
    pub fn judge(us: u32, is_ours_alone: impl Fn(u32) -> bool, way: &[Ownership]) -> Trust {
        let is_theirs = |holder: &&Ownership| holder.uid != us && holder.uid != 0;
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
        let is_open = |(at, holder): (usize, &Ownership)| {
            let by_group = holder.permissions & GROUP_WRITES != 0 && !is_ours_alone(holder.gid);
            let by_others = by_group || holder.permissions & ALL_WRITE != 0;
            by_others && (at == last || holder.permissions & STICKY == 0)
        };
        match way.iter().enumerate().any(is_open) {
            true => Trust::ANYBODY,
            false => Trust::Ours,
        }
    }

    /// Returns whether it is ours.
    pub fn is_ours(self) -> bool {
        self == Trust::Ours
    }

    /// Returns the trust in two things together.
    #[must_use]
    pub fn and(self, other: Trust) -> Trust {
        match self {
            Trust::Ours => other,
            Trust::Stranger(_) => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{is_privileged, without_set_ids};

    const US: u32 = 1000;

    fn judge(way: &[(u32, u32, u32)]) -> Trust {
        let holder = |&(uid, gid, permissions): &(u32, u32, u32)| Ownership {
            uid,
            gid,
            permissions,
        };
        let way: Vec<Ownership> = way.iter().map(holder).collect();
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
        // Its contents may be any user's, but no other user can replace ours.
        assert_eq!(judge(&[(0, 0, 0o1777)]), Trust::ANYBODY);
        assert_eq!(judge(&[(0, 0, 0o1777), (US, US, 0o700)]), Trust::Ours);
    }

    #[test]
    fn rights_are_those_that_the_kernel_would_give() {
        let holder = |uid, gid, permissions| Ownership {
            uid,
            gid,
            permissions,
        };
        let user = Credentials {
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
