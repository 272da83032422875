//! Calls on files with the rights of another user.
//!
//! Linux offers this for file servers (`setfsuid(2)`). The setting counts for one thread: the
//! kernel then checks each call on a file as if that user made it. When root takes another number,
//! the thread also loses the capabilities that bypass file permissions, and those to make device
//! nodes and to change owners. It keeps other capabilities, such as those for system administration
//! and for file capabilities. The caller must not use these.

use std::io;
use std::marker::PhantomData;

use nix::unistd::{Gid, Uid, User, getgrouplist, getgroups, setfsgid, setfsuid};

/// Makes the calls of this thread on files with the rights of another user while the value lives.
/// Threads that this thread starts meanwhile inherit the rights. Other threads keep theirs.
#[derive(Debug)]
pub struct OnBehalf {
    groups: Vec<Gid>,
    /// The rights belong to the thread that made the value, so it must not move to another one.
    _of_this_thread: PhantomData<*const ()>,
}

impl OnBehalf {
    /// Takes on the rights of the user `uid`, with the groups that this machine knows for the user.
    /// A user that this machine does not know gets the group `gid` only.
    ///
    /// # Errors
    /// If this process lacks the privilege; nothing has changed then.
    pub fn of(uid: u32, gid: u32) -> io::Result<OnBehalf> {
        let before = OnBehalf {
            groups: getgroups()?,
            _of_this_thread: PhantomData,
        };
        let (user, group, groups) = groups_of(uid, gid);
        // From here on the drop of `before` restores everything. The user comes last: without
        // root's number the groups cannot be changed.
        set_groups(&groups)?;
        take(user, group)?;
        Ok(before)
    }
}

impl Drop for OnBehalf {
    fn drop(&mut self) {
        let back = take(Uid::effective(), Gid::effective()).and_then(|()| set_groups(&self.groups));
        if let Err(error) = back {
            // The thread now has fewer rights than before, never more. A call that needs more
            // fails.
            tracing::error!(%error, "cannot restore the rights of this thread");
        }
    }
}

/// Takes on these numbers. The calls do not report success, so they are read back.
fn take(user: Uid, group: Gid) -> io::Result<()> {
    let invalid = u32::MAX;
    setfsgid(group);
    setfsuid(user);
    let is = (
        setfsuid(Uid::from_raw(invalid)),
        setfsgid(Gid::from_raw(invalid)),
    );
    match is == (user, group) {
        true => Ok(()),
        false => Err(io::Error::from_raw_os_error(libc::EPERM)),
    }
}

fn groups_of(uid: u32, gid: u32) -> (Uid, Gid, Vec<Gid>) {
    let uid = Uid::from_raw(uid);
    let Some(user) = User::from_uid(uid).ok().flatten() else {
        return (uid, Gid::from_raw(gid), Vec::new());
    };
    let groups = std::ffi::CString::new(user.name)
        .ok()
        .and_then(|name| getgrouplist(&name, user.gid).ok());
    (uid, user.gid, groups.unwrap_or_default())
}

/// Returns the groups of a user as this machine knows them, or `gid` alone.
pub fn groups(uid: u32, gid: u32) -> Vec<u32> {
    let (_, own, others) = groups_of(uid, gid);
    let all = std::iter::once(own).chain(others);
    all.map(Gid::as_raw).collect()
}

/// Sets the supplementary groups of this thread. The C library would change them for all threads.
fn set_groups(groups: &[Gid]) -> io::Result<()> {
    let groups: Vec<rustix::thread::Gid> = groups
        .iter()
        .map(|gid| rustix::thread::Gid::from_raw(gid.as_raw()))
        .collect();
    Ok(rustix::thread::set_thread_groups(&groups)?)
}

/// Returns whether a group is the effective user's own group without other members. Many systems
/// make one for each user.
pub fn is_own_group(gid: u32) -> bool {
    let own = Uid::effective();
    if own.is_root() && gid == 0 {
        return true;
    }
    let (Ok(Some(user)), Ok(Some(group))) = (
        User::from_uid(own),
        nix::unistd::Group::from_gid(Gid::from_raw(gid)),
    ) else {
        return false;
    };
    user.gid == group.gid && group.name == user.name && group.mem.iter().all(|it| *it == user.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn a_thread_has_anothers_rights_for_a_while_and_only_that_thread() {
        if !Uid::effective().is_root() {
            eprintln!("SKIP: becoming another user needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        fs::create_dir(&open).unwrap();
        for (path, mode) in [(dir.path(), 0o755), (&*open, 0o777)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let secret = dir.path().join("secret");
        fs::write(&secret, "x").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o640)).unwrap();
        let groups = getgroups().unwrap();
        let (ask, asked) = std::sync::mpsc::channel::<()>();
        let theirs = secret.clone();
        let another = std::thread::spawn(move || asked.recv().is_ok() && fs::read(theirs).is_ok());
        {
            let _other = OnBehalf::of(4_000_000_001, 4_000_000_002).unwrap();
            let denied = fs::read(&secret).unwrap_err();
            assert_eq!(denied.kind(), io::ErrorKind::PermissionDenied);
            fs::write(open.join("his"), "x").unwrap();
            ask.send(()).unwrap();
            assert!(another.join().unwrap());
        }
        assert!(fs::read(&secret).is_ok());
        assert_eq!(getgroups().unwrap(), groups);
        let his = fs::metadata(open.join("his")).unwrap();
        assert_eq!((his.uid(), his.gid()), (4_000_000_001, 4_000_000_002));
    }
}
