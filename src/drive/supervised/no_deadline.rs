//! The interface for the flush: no call is abandoned, and every call in progress is registered.

use std::io;
use std::sync::Arc;

use crate::core::{Entry, FileKind, Metadata, Name, RelPath, Space, Timestamp, Xattrs};
use crate::drive::supervised::health::Health;
use crate::drive::supervised::threads::Ticket;
use crate::drive::supervised::{Shared, threads};
use crate::drive::throttle::{over_read, over_write};
use crate::drive::{
    Access, Backend, KeptOpen, Look, ModifyFile, ReadFile, Result, WriteFile, WriteOut,
};
use crate::plan::trust::Trust;

/// The registration of a call in progress without a deadline.
pub(super) struct UnderWay<'a> {
    health: &'a Health,
    call: Arc<Ticket>,
    before: Option<Arc<Ticket>>,
}

impl UnderWay<'_> {
    pub(super) fn begin(health: &Health) -> UnderWay<'_> {
        let call = Ticket::new();
        health.begin(&call);
        let before = threads::enter(Some(call.clone()));
        UnderWay {
            health,
            call,
            before,
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        threads::enter(self.before.take());
        self.health.end(&self.call);
    }
}

/// A backend whose calls have no deadline and are registered while in progress. See [`super`].
#[derive(Clone)]
pub struct Patient {
    pub(super) inner: Arc<dyn Backend>,
    pub(super) shared: Arc<Shared>,
}

impl Backend for Patient {
    fn read_dir(&self, dir: &RelPath) -> Result<Vec<Entry>> {
        self.shared.wait(|| self.inner.read_dir(dir))
    }

    fn metadata(&self, path: &RelPath) -> Result<Metadata> {
        self.shared.wait(|| self.inner.metadata(path))
    }

    fn names_in(&self, dir: &RelPath) -> Result<Vec<Name>> {
        self.shared.wait(|| self.inner.names_in(dir))
    }

    fn metadata_now(&self, path: &RelPath) -> Result<Metadata> {
        self.shared.wait(|| self.inner.metadata_now(path))
    }

    fn open(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        let inner = self.shared.wait(|| self.inner.open(path))?;
        let shared = self.shared.clone();
        Ok(over_read(Box::new(PatientReader { inner, shared })))
    }

    fn open_uncached(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        let inner = self.shared.wait(|| self.inner.open_uncached(path))?;
        let shared = self.shared.clone();
        Ok(over_read(Box::new(PatientReader { inner, shared })))
    }

    fn open_judged(&self, path: &RelPath) -> Result<(Box<dyn ReadFile>, Trust)> {
        let (inner, trust) = self.shared.wait(|| self.inner.open_judged(path))?;
        let shared = self.shared.clone();
        Ok((over_read(Box::new(PatientReader { inner, shared })), trust))
    }

    fn trust(&self, path: &RelPath) -> Result<Trust> {
        self.shared.wait(|| self.inner.trust(path))
    }

    fn create(&self, path: &RelPath) -> Result<Box<dyn WriteFile>> {
        let inner = self.shared.wait(|| self.inner.create(path))?;
        let shared = self.shared.clone();
        Ok(over_write(Box::new(PatientWriter { inner, shared })))
    }

    fn modify(&self, path: &RelPath) -> Result<Box<dyn ModifyFile>> {
        let inner = self.shared.wait(|| self.inner.modify(path))?;
        let shared = self.shared.clone();
        // Not slowed: only what follows a commit changes files in place.
        Ok(Box::new(PatientModifier { inner, shared }))
    }

    fn make_dir(&self, path: &RelPath) -> Result<()> {
        self.shared.wait(|| self.inner.make_dir(path))
    }

    fn rename(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        self.shared.wait(|| self.inner.rename(from, to))
    }

    fn rename_new(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        self.shared.wait(|| self.inner.rename_new(from, to))
    }

    fn exchange(&self, one: &RelPath, other: &RelPath) -> Result<bool> {
        self.shared.wait(|| self.inner.exchange(one, other))
    }

    fn check_changeable(&self, dir: &RelPath) -> Result<()> {
        self.shared.wait(|| self.inner.check_changeable(dir))
    }

    fn check_replaceable(&self, path: &RelPath) -> Result<()> {
        self.shared.wait(|| self.inner.check_replaceable(path))
    }

    fn keep_open(&self) -> KeptOpen {
        self.inner.keep_open()
    }

    fn renames_atomically(&self) -> bool {
        self.shared.wait(|| self.inner.renames_atomically())
    }

    fn links_may_be_copies(&self) -> bool {
        self.shared.wait(|| self.inner.links_may_be_copies())
    }

    fn remove_file(&self, path: &RelPath) -> Result<()> {
        self.shared.wait(|| self.inner.remove_file(path))
    }

    fn remove_dir(&self, path: &RelPath) -> Result<()> {
        self.shared.wait(|| self.inner.remove_dir(path))
    }

    fn set_modified(&self, path: &RelPath, modified: Timestamp) -> Result<()> {
        self.shared.wait(|| self.inner.set_modified(path, modified))
    }

    fn remount(&self, access: Access) -> Result<bool> {
        self.shared.wait(|| self.inner.remount(access))
    }

    fn sync(&self) -> Result<()> {
        self.shared.wait(|| self.inner.sync())
    }

    fn space(&self) -> Result<Space> {
        self.shared.wait(|| self.inner.space())
    }

    fn answers(&self) -> Result<()> {
        self.shared.wait(|| self.inner.answers())
    }

    fn check_alive(&self, look: Look) -> Result<()> {
        self.shared.wait(|| self.inner.check_alive(look))
    }

    fn make_symlink(&self, target: &[u8], path: &RelPath) -> Result<()> {
        self.shared.wait(|| self.inner.make_symlink(target, path))
    }

    fn make_hard_link(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        self.shared.wait(|| self.inner.make_hard_link(from, to))
    }

    fn set_permissions(&self, path: &RelPath, mode: u32) -> Result<()> {
        self.shared.wait(|| self.inner.set_permissions(path, mode))
    }

    fn make_node(&self, kind: FileKind, rdev: u32, path: &RelPath) -> Result<()> {
        self.shared.wait(|| self.inner.make_node(kind, rdev, path))
    }

    fn set_owner(&self, path: &RelPath, owner: Option<u32>, group: Option<u32>) -> Result<()> {
        self.shared
            .wait(|| self.inner.set_owner(path, owner, group))
    }

    fn xattrs(&self, path: &RelPath) -> Result<Xattrs> {
        self.shared.wait(|| self.inner.xattrs(path))
    }

    fn set_xattrs(&self, path: &RelPath, xattrs: &Xattrs) -> Result<()> {
        self.shared.wait(|| self.inner.set_xattrs(path, xattrs))
    }
}

struct PatientReader {
    inner: Box<dyn ReadFile>,
    shared: Arc<Shared>,
}

impl ReadFile for PatientReader {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.shared.wait(|| self.inner.read_at(buf, offset))
    }

    fn metadata(&self) -> io::Result<Metadata> {
        self.shared.wait(|| self.inner.metadata())
    }
}

struct PatientWriter {
    inner: Box<dyn WriteFile>,
    shared: Arc<Shared>,
}

impl WriteFile for PatientWriter {
    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        let PatientWriter { inner, shared } = self;
        shared.wait(|| inner.append(data))
    }

    fn write_out(&mut self, how: WriteOut) -> io::Result<()> {
        let PatientWriter { inner, shared } = self;
        shared.wait(|| inner.write_out(how))
    }

    fn finish(self: Box<Self>, modified: Timestamp) -> io::Result<()> {
        let PatientWriter { inner, shared } = *self;
        shared.wait(|| inner.finish(modified))
    }
}

struct PatientModifier {
    inner: Box<dyn ModifyFile>,
    shared: Arc<Shared>,
}

impl ModifyFile for PatientModifier {
    fn write_at(&mut self, data: &[u8], offset: u64) -> io::Result<()> {
        let PatientModifier { inner, shared } = self;
        shared.wait(|| inner.write_at(data, offset))
    }

    fn set_size(&mut self, size: u64) -> io::Result<()> {
        let PatientModifier { inner, shared } = self;
        shared.wait(|| inner.set_size(size))
    }

    fn finish(self: Box<Self>, modified: Timestamp) -> io::Result<()> {
        let PatientModifier { inner, shared } = *self;
        shared.wait(|| inner.finish(modified))
    }
}
