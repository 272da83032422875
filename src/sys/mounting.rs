//! What mount(2) cannot do: a mount that takes the place of another one without a moment between them, and a look at the
//! directory that a mount covers. Both need root.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::{OFlag, openat};
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::stat::Mode;

/// Numbers from `linux/mount.h`.
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const CLOEXEC: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x4;
const MOVE_MOUNT_BENEATH: libc::c_uint = 0x200;
const OPEN_TREE_CLONE: libc::c_uint = 1;
const MOUNT_ATTR_NOSUID: libc::c_uint = 0x2;
const MOUNT_ATTR_NODEV: libc::c_uint = 0x4;
const MOUNT_ATTR_NOEXEC: libc::c_uint = 0x8;

/// Mounts a file system of the type `fs_type`.`subtype` beneath the mount that is at `mountpoint`, and takes that one away:
/// from one instant to the next a path leads to the new mount. `data` holds the file system's options as mount(2) takes them.
///
/// # Errors
/// EINVAL or ENOSYS before Linux 6.5. The old mount is still there then. What `data` names, such as a FUSE device, may have
/// been used up and does not serve for a second attempt.
pub fn replace_mount(
    source: &str,
    mountpoint: &Path,
    (fs_type, subtype): (&str, &str),
    flags: MsFlags,
    data: &str,
) -> io::Result<()> {
    let context = open_context(fs_type)?;
    set(&context, "source", Some(source))?;
    set(&context, "subtype", Some(subtype))?;
    for option in data.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some((key, value)) => set(&context, key, Some(value))?,
            None => set(&context, option, None)?,
        }
    }
    configure(&context, FSCONFIG_CMD_CREATE, None, None)?;
    let mount = detached_mount(&context, flags)?;
    move_beneath(&mount, mountpoint)?;
    let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
    umount2(mountpoint, flags).map_err(|error| {
        // The new one must not stay under the old one, where nobody serves it.
        let beneath = format!("/proc/self/fd/{}", mount.as_raw_fd());
        let _ = umount2(beneath.as_str(), MntFlags::MNT_DETACH);
        error.into()
    })
}

/// Opens the directory that the mounts at `mountpoint` cover, by way of a private copy of the mount above it.
///
/// # Errors
/// EPERM without root; ENOSYS before Linux 5.2; else what the system said.
pub fn open_covered(mountpoint: &Path) -> io::Result<File> {
    let (Some(parent), Some(name)) = (mountpoint.parent(), mountpoint.file_name()) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    let parent = c_string(parent.as_os_str().as_bytes())?;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC.cast_unsigned();
    // SAFETY: the path is a C string that outlives the call; the rest are integers.
    let tree = descriptor(unsafe {
        libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, parent.as_ptr(), flags)
    })?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(&tree, name, flags, Mode::empty())?.into())
}

fn open_context(fs_type: &str) -> io::Result<OwnedFd> {
    let fs_type = c_string(fs_type.as_bytes())?;
    // SAFETY: the name is a C string that outlives the call.
    descriptor(unsafe { libc::syscall(libc::SYS_fsopen, fs_type.as_ptr(), CLOEXEC) })
}

fn set(context: &OwnedFd, key: &str, value: Option<&str>) -> io::Result<()> {
    let command = match value {
        Some(_) => FSCONFIG_SET_STRING,
        None => FSCONFIG_SET_FLAG,
    };
    configure(context, command, Some(key), value)
}

fn configure(
    context: &OwnedFd,
    command: libc::c_uint,
    key: Option<&str>,
    value: Option<&str>,
) -> io::Result<()> {
    let key = key.map(|key| c_string(key.as_bytes())).transpose()?;
    let value = value.map(|value| c_string(value.as_bytes())).transpose()?;
    let pointer = |text: &Option<CString>| text.as_ref().map_or(std::ptr::null(), |t| t.as_ptr());
    // SAFETY: key and value are null or C strings that outlive the call; the descriptor is borrowed and therefore open.
    done(unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            command,
            pointer(&key),
            pointer(&value),
            0,
        )
    })
}

fn detached_mount(context: &OwnedFd, flags: MsFlags) -> io::Result<OwnedFd> {
    let attribute = |flag, attribute| if flags.contains(flag) { attribute } else { 0 };
    let attributes = attribute(MsFlags::MS_NOSUID, MOUNT_ATTR_NOSUID)
        | attribute(MsFlags::MS_NODEV, MOUNT_ATTR_NODEV)
        | attribute(MsFlags::MS_NOEXEC, MOUNT_ATTR_NOEXEC);
    // SAFETY: passes integers only; the descriptor is borrowed and therefore open.
    descriptor(unsafe {
        libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), CLOEXEC, attributes)
    })
}

fn move_beneath(mount: &OwnedFd, mountpoint: &Path) -> io::Result<()> {
    let mountpoint = c_string(mountpoint.as_os_str().as_bytes())?;
    // SAFETY: both paths are C strings that outlive the call; the descriptor is borrowed and therefore open.
    done(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            mountpoint.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_BENEATH,
        )
    })
}

fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn done(result: libc::c_long) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    done(result)?;
    let number = RawFd::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the call succeeded, so the number is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
