//! A backend on which a batch cannot give away anybody's rights: for the record of a stranger, and
//! for a drive on which other users could change staged files before these get their attributes.
//!
//! What is left out is noted and is no error, so that the rest of the batch goes on. Only a device
//! is refused (EPERM), because nothing would remain of it. A user who is not root gets the same
//! error from the kernel.
//!
//! A stranger's record must not change or show anything either that its author could not reach
//! himself. Root makes its calls with the author's rights, so that the kernel enforces this
//! ([`crate::sys::behalf`]). Any other user cannot; then the permissions on the way are checked
//! before each call. A change by another user between the two is not noticed.

use std::collections::{BTreeMap, HashSet};

use parking_lot::Mutex;

use crate::core::{
    FileKind, Metadata, Name, RelPath, Timestamp, Xattrs, is_privileged, without_set_ids,
};
use crate::drive::{Backend, BackendError, ModifyFile, ReadFile, Result, WriteFile};
use crate::format::layout;
use crate::plan::trust::{Credentials, Ownership};

/// A right that a batch asks for and does not get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum LeftOut {
    Device,
    SetIds,
    Owner,
    Attributes,
}

impl LeftOut {
    fn words(self) -> &'static str {
        match self {
            LeftOut::Device => "a device",
            LeftOut::SetIds => "set-user-ID and set-group-ID bits",
            LeftOut::Owner => "owner and group",
            LeftOut::Attributes => "attributes of security.* and trusted.*",
        }
    }
}

/// Returns why a device is not made.
pub(crate) fn no_device() -> String {
    line(&[LeftOut::Device])
}

fn line(what: &[LeftOut]) -> String {
    let what: Vec<&str> = what.iter().map(|it| it.words()).collect();
    format!(
        "left out, because users other than yours and root may write to .ferryfs on the drive: {}",
        what.join(", ")
    )
}

/// The depth of a slot: `.ferryfs/staging/<batch>/<slot>`.
const SLOT_DEPTH: usize = 4;

fn holder(meta: &Metadata) -> Ownership {
    Ownership {
        uid: meta.uid,
        gid: meta.gid,
        permissions: meta.permissions,
    }
}

/// A backend that gives no privileges.
pub(crate) struct Limited<'a> {
    inner: &'a dyn Backend,
    /// Owners are set.
    gives_owners: bool,
    /// The user whose rights are checked before each call; `None` if the kernel checks them.
    author: Option<Credentials>,
    /// Directories that were made here.
    made: Mutex<HashSet<RelPath>>,
    left_out: Mutex<BTreeMap<RelPath, Vec<LeftOut>>>,
}

impl<'a> Limited<'a> {
    /// Returns `inner` for a record of a stranger.
    pub(crate) fn for_stranger(inner: &'a dyn Backend) -> Limited<'a> {
        Limited {
            inner,
            gives_owners: false,
            author: None,
            made: Mutex::default(),
            left_out: Mutex::default(),
        }
    }

    /// The same, if the kernel does not enforce the author's rights.
    pub(crate) fn for_author(inner: &'a dyn Backend, author: Credentials) -> Limited<'a> {
        Limited {
            author: Some(author),
            ..Limited::for_stranger(inner)
        }
    }

    /// Returns `inner` for a batch of our own, on a drive that others may write to.
    pub(crate) fn for_own(inner: &'a dyn Backend) -> Limited<'a> {
        Limited {
            gives_owners: true,
            ..Limited::for_stranger(inner)
        }
    }

    /// Returns what was left out, by name, as a message to a user.
    pub(crate) fn left_out(&self) -> BTreeMap<RelPath, String> {
        let left_out = self.left_out.lock();
        let line = |(path, what): (&RelPath, &Vec<LeftOut>)| (path.clone(), line(what));
        left_out.iter().map(line).collect()
    }

    /// Passes if `is_allowed` is true of the author, or if there is none to check.
    fn check(
        &self,
        path: &RelPath,
        is_allowed: impl FnOnce(&Credentials) -> Result<bool>,
    ) -> Result<()> {
        let Some(author) = &self.author else {
            return Ok(());
        };
        match is_allowed(author)? {
            true => Ok(()),
            false => {
                let source = std::io::Error::from_raw_os_error(libc::EACCES);
                Err(BackendError::new("change", path, source))
            }
        }
    }

    /// Returns whether the author can reach the files in the directory `dir`.
    fn reaches(&self, author: &Credentials, dir: &RelPath) -> Result<bool> {
        let mut at = RelPath::root();
        for name in std::iter::once(None).chain(dir.components().map(Some)) {
            if let Some(name) = name.and_then(|name| Name::new(name).ok()) {
                at = at.join(&name);
            }
            if author.rights(&holder(&self.inner.metadata(&at)?)) & 1 == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Checks that the author may make, move and remove `path`. Our own directory counts as the
    /// author's, because the record is; the contents of a directory that was moved there do not.
    fn check_name(&self, path: &RelPath) -> Result<()> {
        self.check(path, |author| {
            let Some((dir, _)) = path.split_last() else {
                return Ok(false);
            };
            if layout::is_reserved(path) && path.depth() <= SLOT_DEPTH {
                return Ok(true);
            }
            let is_writable = || -> Result<bool> {
                Ok(author.rights(&holder(&self.inner.metadata(&dir)?)) & 2 != 0)
            };
            Ok(self.reaches(author, &dir)? && is_writable()?)
        })
    }

    /// The same for a move, which also changes a directory that gets another parent.
    fn check_move(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        self.check_name(from)?;
        self.check_name(to)?;
        self.check(from, |author| {
            let parent = |path: &RelPath| path.split_last().map(|(dir, _)| dir);
            let meta = self.inner.metadata(from)?;
            let stays = meta.kind != FileKind::Directory || parent(from) == parent(to);
            Ok(stays || self.is_made_here(from) || author.rights(&holder(&meta)) & 2 != 0)
        })
    }

    fn is_made_here(&self, path: &RelPath) -> bool {
        self.made.lock().contains(path)
    }

    /// Checks that the author may change the attributes of `path`.
    fn check_attributes(&self, path: &RelPath) -> Result<()> {
        self.check(path, |author| {
            Ok(self.is_made_here(path) || author.owns(&holder(&self.inner.metadata(path)?)))
        })
    }

    /// Checks that the author has `rights` to the file at `path`.
    fn check_file(&self, path: &RelPath, rights: u32) -> Result<()> {
        self.check(path, |author| {
            let meta = self.inner.metadata(path)?;
            let dir = path.split_last().map_or_else(RelPath::root, |(dir, _)| dir);
            let is_near = layout::is_reserved(path) && path.depth() <= SLOT_DEPTH;
            let is_reached = is_near || self.reaches(author, &dir)?;
            Ok(is_reached && author.rights(&holder(&meta)) & rights == rights)
        })
    }

    fn leave_out(&self, path: &RelPath, what: LeftOut) {
        let mut left_out = self.left_out.lock();
        let noted = left_out.entry(path.clone()).or_default();
        if !noted.contains(&what) {
            noted.push(what);
        }
    }
}

impl Backend for Limited<'_> {
    crate::drive::pass_on::pass_on_looks!();

    fn make_node(&self, kind: FileKind, rdev: u32, path: &RelPath) -> Result<()> {
        if matches!(kind, FileKind::CharDevice | FileKind::BlockDevice) {
            let source = std::io::Error::from_raw_os_error(libc::EPERM);
            return Err(BackendError::new("mknod", path, source));
        }
        self.check_name(path)?;
        self.inner.make_node(kind, rdev, path)
    }

    fn set_owner(&self, path: &RelPath, owner: Option<u32>, group: Option<u32>) -> Result<()> {
        if self.gives_owners {
            return self.inner.set_owner(path, owner, group);
        }
        let is = self.inner.metadata(path)?;
        let differs = owner.is_some_and(|owner| owner != is.uid)
            || group.is_some_and(|group| group != is.gid);
        if differs {
            self.leave_out(path, LeftOut::Owner);
        }
        Ok(())
    }

    fn set_permissions(&self, path: &RelPath, mode: u32) -> Result<()> {
        self.check_attributes(path)?;
        let is_dir = self.inner.metadata(path)?.kind == FileKind::Directory;
        let given = without_set_ids(is_dir, mode);
        if given != mode {
            self.leave_out(path, LeftOut::SetIds);
        }
        self.inner.set_permissions(path, given)
    }

    /// Attributes that only root may set stay as they are.
    fn set_xattrs(&self, path: &RelPath, xattrs: &Xattrs) -> Result<()> {
        self.check_attributes(path)?;
        let there = match self.inner.xattrs(path) {
            // A file without any keeps none.
            Err(error) if error.is_refusal() => Xattrs::new(),
            there => there?,
        };
        let (wanted, plain): (Xattrs, Xattrs) =
            (xattrs.clone().into_iter()).partition(|(name, _)| is_privileged(name));
        let mut given: Xattrs = there;
        given.retain(|name, _| is_privileged(name));
        if wanted
            .iter()
            .any(|(name, value)| given.get(name) != Some(value))
        {
            self.leave_out(path, LeftOut::Attributes);
        }
        given.extend(plain);
        self.inner.set_xattrs(path, &given)
    }

    fn relieve(&self) -> Result<bool> {
        self.inner.relieve()
    }

    fn open(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        self.check_file(path, 4)?;
        self.inner.open(path)
    }

    fn open_uncached(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        self.check_file(path, 4)?;
        self.inner.open_uncached(path)
    }

    fn create(&self, path: &RelPath) -> Result<Box<dyn WriteFile>> {
        self.check_name(path)?;
        self.inner.create(path)
    }

    fn modify(&self, path: &RelPath) -> Result<Box<dyn ModifyFile>> {
        self.check_file(path, 2)?;
        self.inner.modify(path)
    }

    fn make_dir(&self, path: &RelPath) -> Result<()> {
        self.check_name(path)?;
        self.inner.make_dir(path)?;
        self.made.lock().insert(path.clone());
        Ok(())
    }

    fn rename(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        self.check_move(from, to)?;
        self.inner.rename(from, to)
    }

    fn rename_new(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        self.check_move(from, to)?;
        self.inner.rename_new(from, to)
    }

    fn exchange(&self, one: &RelPath, other: &RelPath) -> Result<bool> {
        self.check_move(one, other)?;
        self.check_move(other, one)?;
        self.inner.exchange(one, other)
    }

    fn remove_file(&self, path: &RelPath) -> Result<()> {
        self.check_name(path)?;
        self.inner.remove_file(path)
    }

    fn remove_dir(&self, path: &RelPath) -> Result<()> {
        self.check_name(path)?;
        self.inner.remove_dir(path)
    }

    fn set_modified(&self, path: &RelPath, modified: Timestamp) -> Result<()> {
        if self.check_attributes(path).is_err() {
            self.check_file(path, 2)?;
        }
        self.inner.set_modified(path, modified)
    }

    fn make_symlink(&self, target: &[u8], path: &RelPath) -> Result<()> {
        self.check_name(path)?;
        self.inner.make_symlink(target, path)
    }

    fn make_hard_link(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        self.check_name(to)?;
        self.check_file(from, 6)?;
        self.inner.make_hard_link(from, to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drive::memory::{MemoryBackend, MemoryOptions};

    const HIS: u32 = 7;

    fn path(text: &'static str) -> RelPath {
        RelPath::fixed(text)
    }

    /// A directory of the author's with a file, and one of another user's.
    fn drive() -> MemoryBackend {
        let backend = MemoryBackend::new(MemoryOptions::linux_like());
        for (dir, owner, mode) in [("", HIS, 0o755), ("his", HIS, 0o755), ("other", 5, 0o755)] {
            let path = RelPath::parse(dir.as_bytes()).unwrap();
            if !path.is_root() {
                backend.make_dir(&path).unwrap();
                backend.set_permissions(&path, mode).unwrap();
            }
            backend.set_owner(&path, Some(owner), Some(owner)).unwrap();
        }
        for (file, owner, mode) in [
            ("his/file", HIS, 0o600),
            ("other/open", 5, 0o644),
            ("secret", 5, 0o600),
        ] {
            drop(backend.create(&path(file)).unwrap());
            backend.set_permissions(&path(file), mode).unwrap();
            let owner = Some(owner);
            backend.set_owner(&path(file), owner, owner).unwrap();
        }
        backend
    }

    fn refused<T>(result: Result<T>) -> bool {
        result.is_err_and(|error| error.source.raw_os_error() == Some(libc::EACCES))
    }

    fn author() -> Credentials {
        Credentials {
            uid: HIS,
            groups: vec![HIS],
        }
    }

    #[test]
    fn a_record_changes_only_names_that_its_author_could_change() {
        let drive = drive();
        let limited = Limited::for_author(&drive, author());
        assert!(refused(limited.remove_file(&path("other/open"))));
        assert!(refused(limited.rename(&path("other/open"), &path("his/x"))));
        assert!(refused(limited.rename(&path("his/file"), &path("other/x"))));
        assert!(refused(limited.rename(&path("other"), &path("his/other"))));
        assert!(refused(
            limited.exchange(&path("his/file"), &path("other/open"))
        ));
        assert!(refused(limited.create(&path("other/x"))));
        assert!(refused(
            limited.make_hard_link(&path("secret"), &path("his/x"))
        ));
        assert!(refused(limited.make_dir(&path("other/x"))));
        limited.rename(&path("his/file"), &path("moved")).unwrap();
        limited.make_dir(&path("his/new")).unwrap();
        limited.set_permissions(&path("his/new"), 0o700).unwrap();
        // He could do so himself: it changes no directory but his own.
        limited.rename(&path("other"), &path("renamed")).unwrap();
        assert!(refused(limited.remove_file(&path("renamed/open"))));
    }

    #[test]
    fn a_record_shows_and_opens_only_what_its_author_could_read() {
        let drive = drive();
        let limited = Limited::for_author(&drive, author());
        assert!(refused(limited.open(&path("secret"))));
        assert!(refused(limited.set_permissions(&path("secret"), 0o644)));
        assert!(refused(limited.set_xattrs(&path("secret"), &Xattrs::new())));
        assert!(refused(limited.set_modified(&path("secret"), Timestamp(1))));
        limited.open(&path("other/open")).unwrap();
        assert!(refused(limited.modify(&path("secret"))));
        assert!(refused(limited.modify(&path("other/open"))));
        limited.modify(&path("his/file")).unwrap();
        limited.open(&path("his/file")).unwrap();
        drive.set_permissions(&path("other"), 0o700).unwrap();
        assert!(refused(limited.open(&path("other/open"))));
    }

    #[test]
    fn what_gives_rights_is_left_out_and_named_and_the_rest_is_done() {
        let drive = drive();
        let limited = Limited::for_stranger(&drive);
        let file = path("his/file");
        let kept: (Box<[u8]>, Box<[u8]>) = (b"trusted.kept"[..].into(), b"1"[..].into());
        drive
            .set_xattrs(&file, &Xattrs::from([kept.clone()]))
            .unwrap();
        limited.set_owner(&file, Some(0), None).unwrap();
        limited.set_permissions(&file, 0o6711).unwrap();
        let plain: (Box<[u8]>, Box<[u8]>) = (b"user.x"[..].into(), b"1"[..].into());
        let capability = (b"security.capability"[..].into(), b"1"[..].into());
        let wanted = Xattrs::from([plain.clone(), capability]);
        limited.set_xattrs(&file, &wanted).unwrap();
        let meta = drive.metadata(&file).unwrap();
        assert_eq!((meta.permissions, meta.uid), (0o711, HIS));
        assert_eq!(drive.xattrs(&file).unwrap(), Xattrs::from([kept, plain]));
        let node = limited.make_node(FileKind::BlockDevice, 0x801, &path("his/disk"));
        assert_eq!(node.unwrap_err().source.raw_os_error(), Some(libc::EPERM));
        let left_out = limited.left_out();
        assert_eq!(left_out.len(), 1);
        for word in ["set-user-ID", "owner and group", "security.*"] {
            assert!(left_out[&file].contains(word), "{left_out:?}");
        }
        // A batch of our own gives owners, and a directory its group's bit.
        let own = Limited::for_own(&drive);
        own.set_owner(&file, Some(3), None).unwrap();
        own.set_permissions(&path("his"), 0o2775).unwrap();
        assert_eq!(drive.metadata(&file).unwrap().uid, 3);
        assert_eq!(drive.metadata(&path("his")).unwrap().permissions, 0o2775);
        assert!(own.left_out().is_empty());
    }
}
