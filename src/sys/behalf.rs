//! Making calls on files with another user's rights.
//!
//! Linux has this for file servers (`setfsuid(2)`): it counts for one thread, and the kernel then checks each call as if that user
//! had made it. With the number of root the thread also lays down the capabilities that go past permissions on files, among
//! them those to make devices and to give files away. Those that it keeps (to administrate the system, to give
//! capabilities to files) are for the caller not to use.

use std::io;
use std::marker::PhantomData;

use nix::unistd::{Gid, Uid, User, getgrouplist, getgroups, setfsgid, setfsuid};

/// As long as it lives, the thread's calls on files are made with the rights of another user, and so are those of threads that it
/// makes meanwhile. Other threads keep theirs.
#[derive(Debug)]
pub struct OnBehalf {
    groups: Vec<Gid>,
    /// It counts for the thread that has made it.
    _of_this_thread: PhantomData<*const ()>,
}

impl OnBehalf {
    /// Takes on the rights of the user `uid`, with his groups as this machine knows them, or else `gid`.
    ///
    /// # Errors
    /// If this process may not; then nothing has changed.
    pub fn of(uid: u32, gid: u32) -> io::Result<OnBehalf> {
        let before = OnBehalf {
            groups: getgroups()?,
            _of_this_thread: PhantomData,
        };
        let (user, group, groups) = groups_of(uid, gid);
        // From here on its end puts everything back. The user comes last: without root's number the groups cannot be changed.
        set_groups(&groups)?;
        take(user, group)?;
        Ok(before)
    }
}

impl Drop for OnBehalf {
    fn drop(&mut self) {
        let back = take(Uid::effective(), Gid::effective()).and_then(|()| set_groups(&self.groups));
        if let Err(error) = back {
            // Fewer rights than before, never more: what needs them fails, and says so.
            tracing::error!(%error, "this thread has not got its rights back");
        }
    }
}

/// Takes on these numbers. The calls themselves do not say whether they were obeyed.
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

/// The groups that a user is in as this machine knows them, or else `gid`.
pub fn groups(uid: u32, gid: u32) -> Vec<u32> {
    let (_, own, others) = groups_of(uid, gid);
    let all = std::iter::once(own).chain(others);
    all.map(Gid::as_raw).collect()
}

/// The supplementary groups of this thread. The C library would change them for all threads.
fn set_groups(groups: &[Gid]) -> io::Result<()> {
    let numbers: Vec<libc::gid_t> = groups.iter().map(|gid| gid.as_raw()).collect();
    // SAFETY: the kernel reads `numbers.len()` numbers from there, and keeps nothing.
    let answer = unsafe { libc::syscall(libc::SYS_setgroups, numbers.len(), numbers.as_ptr()) };
    match answer {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether a group is the effective user's own and nobody else is in it, as many systems make one for each user.
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
