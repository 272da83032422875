//! A backend on which nothing is made that gives somebody's rights away, whatever a batch says: for a record that is a stranger's,
//! and for a drive on which others could change what a batch has staged before it gets its attributes.
//!
//! What is left out is noted and no error, so that the rest of a batch goes on; only a device, of which nothing is left then, is
//! refused (EPERM). That is what this process's user would be told who is not root.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::backend::{
    Backend, BackendError, Entry, Look, Metadata, ReadFile, Result, Space, WriteFile, Xattrs,
};
use crate::base::{FileKind, Name, RelPath, Timestamp};
use crate::rules::trust::{Trust, is_privileged, without_set_ids};

/// Something that a batch wants and does not get.
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

/// Why a device is not made.
pub(super) fn no_device() -> String {
    line(&[LeftOut::Device])
}

fn line(what: &[LeftOut]) -> String {
    let what: Vec<&str> = what.iter().map(|it| it.words()).collect();
    format!(
        "left out, because users other than yours and root may write to .ferryfs on the drive: {}",
        what.join(", ")
    )
}

/// A backend without privileges.
pub(super) struct Limited<'a> {
    inner: &'a dyn Backend,
    /// Owners are given.
    gives_owners: bool,
    left_out: Mutex<BTreeMap<RelPath, Vec<LeftOut>>>,
}

impl<'a> Limited<'a> {
    /// For a record of a stranger.
    pub(super) fn for_stranger(inner: &'a dyn Backend) -> Limited<'a> {
        Limited {
            inner,
            gives_owners: false,
            left_out: Mutex::default(),
        }
    }

    /// For a batch of our own, on a drive that others may write to.
    pub(super) fn for_own(inner: &'a dyn Backend) -> Limited<'a> {
        Limited {
            gives_owners: true,
            ..Limited::for_stranger(inner)
        }
    }

    /// What was left out, by name, in words for people.
    pub(super) fn left_out(&self) -> BTreeMap<RelPath, String> {
        let left_out = self.left_out.lock();
        let line = |(path, what): (&RelPath, &Vec<LeftOut>)| (path.clone(), line(what));
        left_out.iter().map(line).collect()
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
    fn make_node(&self, kind: FileKind, rdev: u32, path: &RelPath) -> Result<()> {
        if matches!(kind, FileKind::CharDevice | FileKind::BlockDevice) {
            let source = std::io::Error::from_raw_os_error(libc::EPERM);
            return Err(BackendError::new("mknod", path, source));
        }
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
        let is_dir = self.inner.metadata(path)?.kind == FileKind::Directory;
        let given = without_set_ids(is_dir, mode);
        if given != mode {
            self.leave_out(path, LeftOut::SetIds);
        }
        self.inner.set_permissions(path, given)
    }

    /// Those that are for root to set stay as they are.
    fn set_xattrs(&self, path: &RelPath, xattrs: &Xattrs) -> Result<()> {
        let there = match self.inner.xattrs(path) {
            // What has none keeps none.
            Err(error) if error.is_refusal() => Xattrs::new(),
            there => there?,
        };
        let (wanted, plain): (Xattrs, Xattrs) = (xattrs.clone().into_iter())
            .partition(|(name, _)| is_privileged(name));
        let mut given: Xattrs = there;
        given.retain(|name, _| is_privileged(name));
        if wanted.iter().any(|(name, value)| given.get(name) != Some(value)) {
            self.leave_out(path, LeftOut::Attributes);
        }
        given.extend(plain);
        self.inner.set_xattrs(path, &given)
    }

    fn relieve(&self) -> Result<bool> {
        self.inner.relieve()
    }

    fn read_dir(&self, dir: &RelPath) -> Result<Vec<Entry>> {
        self.inner.read_dir(dir)
    }

    fn metadata(&self, path: &RelPath) -> Result<Metadata> {
        self.inner.metadata(path)
    }

    fn open(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        self.inner.open(path)
    }

    fn open_uncached(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        self.inner.open_uncached(path)
    }

    fn open_judged(&self, path: &RelPath) -> Result<(Box<dyn ReadFile>, Trust)> {
        self.inner.open_judged(path)
    }

    fn trust(&self, path: &RelPath) -> Result<Trust> {
        self.inner.trust(path)
    }

    fn create(&self, path: &RelPath) -> Result<Box<dyn WriteFile>> {
        self.inner.create(path)
    }

    fn make_dir(&self, path: &RelPath) -> Result<()> {
        self.inner.make_dir(path)
    }

    fn rename(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        self.inner.rename(from, to)
    }

    fn rename_new(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        self.inner.rename_new(from, to)
    }

    fn exchange(&self, one: &RelPath, other: &RelPath) -> Result<bool> {
        self.inner.exchange(one, other)
    }

    fn check_changeable(&self, dir: &RelPath) -> Result<()> {
        self.inner.check_changeable(dir)
    }

    fn check_replaceable(&self, path: &RelPath) -> Result<()> {
        self.inner.check_replaceable(path)
    }

    fn renames_atomically(&self) -> bool {
        self.inner.renames_atomically()
    }

    fn remove_file(&self, path: &RelPath) -> Result<()> {
        self.inner.remove_file(path)
    }

    fn remove_dir(&self, path: &RelPath) -> Result<()> {
        self.inner.remove_dir(path)
    }

    fn set_modified(&self, path: &RelPath, modified: Timestamp) -> Result<()> {
        self.inner.set_modified(path, modified)
    }

    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }

    fn space(&self) -> Result<Space> {
        self.inner.space()
    }

    fn answers(&self) -> Result<()> {
        self.inner.answers()
    }

    fn check_alive(&self, look: Look) -> Result<()> {
        self.inner.check_alive(look)
    }

    fn make_symlink(&self, target: &[u8], path: &RelPath) -> Result<()> {
        self.inner.make_symlink(target, path)
    }

    fn make_hard_link(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        self.inner.make_hard_link(from, to)
    }

    fn xattrs(&self, path: &RelPath) -> Result<Xattrs> {
        self.inner.xattrs(path)
    }

    fn xattrs_in(&self, dir: &RelPath, names: &[Name]) -> Result<Vec<(Name, Xattrs)>> {
        self.inner.xattrs_in(dir, names)
    }
}
