//! Mounting and unmounting at a place that descriptors hold, so that a change of the path does not
//! redirect the call.
//!
//! It also does what mount(2) cannot: replace a mount without a moment in between, and open the
//! directory that a mount covers. All functions except [`Spot::hold`] need root.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, openat};
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::stat::Mode;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::holders;

/// A mount point, present or future. Descriptors hold its directory and the parent directory, so
/// that a link or another directory in the path cannot lead a mount elsewhere.
#[derive(Debug)]
pub struct Spot {
    path: PathBuf,
    parent: OwnedFd,
    name: OsString,
    dir: OwnedFd,
}

impl Spot {
    /// Opens the directory at `path`, an absolute path without symbolic links. A path that has
    /// become a link since is not followed. If something is mounted there, the descriptor holds its
    /// root directory.
    ///
    /// # Errors
    /// ELOOP or ENOTDIR if a component is a symbolic link; EINVAL for the root directory; else what
    /// the system said.
    pub fn hold(path: &Path) -> io::Result<Spot> {
        let (parent, name) = split(path)?;
        let dir = directory_in(&parent, &name, OFlag::O_PATH)?;
        Ok(Spot {
            path: path.into(),
            parent,
            name,
            dir,
        })
    }

    /// Returns the path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the descriptor of the directory.
    pub fn dir(&self) -> &OwnedFd {
        &self.dir
    }

    /// Opens the held directory for reading.
    ///
    /// # Errors
    /// What the system said.
    pub fn open(&self) -> io::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(openat(&self.dir, ".", flags, Mode::empty())?.into())
    }

    /// Opens the same name in the same parent directory again. The result holds what is there now:
    /// a mount made since, or another directory.
    ///
    /// # Errors
    /// What the system said.
    pub fn again(&self) -> io::Result<Spot> {
        Ok(Spot {
            path: self.path.clone(),
            parent: self.parent.try_clone()?,
            name: self.name.clone(),
            dir: directory_in(&self.parent, &self.name, OFlag::O_PATH)?,
        })
    }

    /// Mounts on the held directory, as mount(2) does.
    ///
    /// # Errors
    /// What the system said.
    pub fn mount(
        &self,
        source: &OsStr,
        fs_type: &str,
        flags: MsFlags,
        data: &str,
    ) -> io::Result<()> {
        let target = link_to(&self.dir);
        Ok(nix::mount::mount(
            Some(source),
            target.as_str(),
            Some(fs_type),
            flags,
            Some(data),
        )?)
    }

    /// Detaches the mount whose root directory is held. Processes that use it keep it until they
    /// are done.
    ///
    /// # Errors
    /// EINVAL if that directory is not the root of a mount; else what the system said.
    pub fn detach(&self) -> io::Result<()> {
        Ok(umount2(link_to(&self.dir).as_str(), MntFlags::MNT_DETACH)?)
    }
}

/// Unmounts `path`, an absolute path without symbolic links, if `is_meant` accepts the `st_dev` of
/// the mounted file system. Follows no link in the path.
///
/// # Errors
/// ELOOP or ENOTDIR if a component is a symbolic link; EINVAL if something else is mounted there;
/// else what the system said.
pub fn unmount(path: &Path, flags: MntFlags, is_meant: impl Fn(u64) -> bool) -> io::Result<()> {
    let (parent, name) = split(path)?;
    // A descriptor of the mount itself would keep it in use, so only the parent is held.
    let target = Path::new(&link_to(&parent)).join(name);
    if !is_meant(holders::device_there(&target)?) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok(umount2(&target, flags | MntFlags::UMOUNT_NOFOLLOW)?)
}

/// Opens the parent directory of `path` and returns it with the last name.
fn split(path: &Path) -> io::Result<(OwnedFd, OsString)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    Ok((super::path::open_place(parent)?, name.to_owned()))
}

fn directory_in(parent: &OwnedFd, name: &OsStr, flags: OFlag) -> io::Result<OwnedFd> {
    let flags = flags | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

/// Returns a path that leads to the very directory that a descriptor of this process is open on.
fn link_to(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Mounts a file system of the type `fs_type`.`subtype` beneath the mount that `spot` holds, then
/// detaches that one. From one instant to the next the path leads to the new mount. `data` holds
/// the file system's options as mount(2) takes them.
///
/// # Errors
/// EINVAL or ENOSYS before Linux 6.5. The old mount is still there then. A resource that `data`
/// names, such as a FUSE device, may be used up and does not serve for a second attempt.
pub fn replace_mount(
    source: &OsStr,
    spot: &Spot,
    (fs_type, subtype): (&str, &str),
    flags: MsFlags,
    data: &str,
) -> io::Result<()> {
    let context = fsopen(fs_type, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, c"source", source)?;
    fsconfig_set_string(&context, c"subtype", subtype)?;
    for option in data.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(&context, key, value)?,
            None => fsconfig_set_flag(&context, option)?,
        }
    }
    fsconfig_create(&context)?;
    let mount = detached_mount(&context, flags)?;
    move_beneath(&mount, &spot.dir)?;
    spot.detach().inspect_err(|_| {
        // The new mount must not stay under the old one, where no session serves it.
        let _ = umount2(link_to(&mount).as_str(), MntFlags::MNT_DETACH);
    })
}

/// Opens the directory that the mounts at `spot` cover, through a private copy of the mount above
/// it.
///
/// # Errors
/// EPERM without root; ENOSYS before Linux 5.2; else what the system said.
pub fn open_covered(spot: &Spot) -> io::Result<File> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(&spot.parent, c"", flags)?;
    Ok(directory_in(&tree, &spot.name, OFlag::O_RDONLY)?.into())
}

fn detached_mount(context: &OwnedFd, flags: MsFlags) -> io::Result<OwnedFd> {
    let mut attributes = MountAttrFlags::empty();
    for (flag, attribute) in [
        (MsFlags::MS_NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (MsFlags::MS_NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (MsFlags::MS_NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
    ] {
        attributes.set(attribute, flags.contains(flag));
    }
    Ok(fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// Moves `mount` beneath the mount whose root directory is `top`.
fn move_beneath(mount: &OwnedFd, top: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH
        | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH
        | MoveMountFlags::MOVE_MOUNT_BENEATH;
    Ok(move_mount(mount, c"", top, c"", flags)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn device(path: &Path) -> u64 {
        fs::metadata(path).unwrap().dev()
    }

    /// A directory whose path is replaced by links, and the directory that they lead to, with a
    /// mount in it.
    struct Scene {
        dir: tempfile::TempDir,
        at: PathBuf,
        victim: PathBuf,
    }

    impl Scene {
        fn new() -> Option<Scene> {
            if !nix::unistd::geteuid().is_root() {
                return None;
            }
            let dir = tempfile::tempdir().unwrap();
            let top = fs::canonicalize(dir.path()).unwrap();
            let (at, victim) = (top.join("a/mnt"), top.join("victim"));
            fs::create_dir_all(&at).unwrap();
            fs::create_dir_all(victim.join("mnt")).unwrap();
            let spot = Spot::hold(&victim.join("mnt")).unwrap();
            mount_there(&spot);
            Some(Scene { dir, at, victim })
        }

        fn swap_parent(&self) {
            fs::rename(self.dir.path().join("a"), self.dir.path().join("moved")).unwrap();
            symlink(&self.victim, self.dir.path().join("a")).unwrap();
        }
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            for place in ["victim/mnt", "victim", "moved/mnt", "a/mnt"] {
                let place = self.dir.path().join(place);
                while umount2(&place, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_ok() {}
            }
        }
    }

    fn mount_there(spot: &Spot) {
        let none = MsFlags::empty();
        spot.mount("none".as_ref(), "tmpfs", none, "size=64k")
            .unwrap();
    }

    #[test]
    fn a_mount_goes_to_the_directory_that_was_held_whatever_becomes_of_its_path() {
        let Some(scene) = Scene::new() else { return };
        let below = device(&scene.victim.join("mnt"));
        let spot = Spot::hold(&scene.at).unwrap();
        scene.swap_parent();
        mount_there(&spot);
        assert_eq!(
            device(&scene.victim.join("mnt")),
            below,
            "mounted on what is not meant"
        );
        let mounted = scene.dir.path().join("moved/mnt");
        assert_ne!(device(&mounted), device(scene.dir.path()));
        let new = spot.again().unwrap();
        assert_eq!(
            fs::metadata(&mounted).unwrap().dev(),
            new.open().unwrap().metadata().unwrap().dev()
        );
        new.detach().unwrap();
        assert_eq!(device(&mounted), device(scene.dir.path()));
        assert!(Spot::hold(&scene.at).is_err(), "a link is not followed");
    }

    #[test]
    fn what_is_unmounted_is_what_is_meant_or_nothing() {
        let Some(scene) = Scene::new() else { return };
        let theirs = device(&scene.victim.join("mnt"));
        mount_there(&Spot::hold(&scene.at).unwrap());
        let ours = device(&scene.at);
        let none = MntFlags::empty();
        unmount(&scene.at, none, |found| found == theirs).unwrap_err();
        scene.swap_parent();
        unmount(&scene.at, none, |_| true).unwrap_err();
        assert_eq!(device(&scene.victim.join("mnt")), theirs);
        let moved = fs::canonicalize(scene.dir.path())
            .unwrap()
            .join("moved/mnt");
        unmount(&moved, none, |found| found == ours).unwrap();
        assert_eq!(device(&moved), device(scene.dir.path()));
    }
}
