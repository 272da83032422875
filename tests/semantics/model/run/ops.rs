//! The operations themselves, each on both sides.

use ferryfs::core::Timestamp;
use ferryfs::vfs::{NewNode, OpenMode, RenameMode, SetAttr, SetTime, SetXattr};

use super::super::reference::{Id, Node, What};
use super::{Open, Run, errno};
use crate::engine::call;

impl Run {
    pub(super) fn make_file(&mut self) -> bool {
        let place = self.a_place();
        self.note(format!("create {place:?}"));
        let there = self.reference.find((place.0, &place.1));
        let wanted = self.reference.check_new((place.0, &place.1));
        let (parent, name) = self.at(&place);
        let mode = OpenMode {
            write: true,
            truncate: false,
        };
        let fs = self.e().fs.clone();
        let got = errno(call(|ctx| fs.create(ctx, parent, &name, 0o640, mode, true)));
        let Some((inode, handle)) = self.agree(got, wanted) else {
            return there.is_none();
        };
        self.is_new(inode.ino);
        let node = Node::new(What::File(Vec::new()), inode.ino, 0o640);
        let node = self.reference.add((place.0, &place.1), node);
        self.opens.push(Open {
            handle,
            node,
            write: true,
        });
        false
    }

    fn make_node(&mut self, what: What, mode: u32, target: Option<&[u8]>) -> bool {
        let place = self.a_place();
        self.note(format!("make {what:?} {place:?}"));
        let wanted = self.reference.check_new((place.0, &place.1));
        let (parent, name) = self.at(&place);
        let node = NewNode {
            mode,
            rdev: 0,
            target: target.map(Into::into),
        };
        let fs = self.e().fs.clone();
        let got = errno(call(|ctx| fs.make_node(ctx, parent, &name, node.clone())));
        if let Some(inode) = self.agree(got, wanted) {
            self.is_new(inode.ino);
            let node = Node::new(what, inode.ino, mode & 0o7777);
            self.reference.add((place.0, &place.1), node);
        }
        false
    }

    pub(super) fn make_dir(&mut self) -> bool {
        self.make_node(What::Dir(Default::default()), libc::S_IFDIR | 0o750, None)
    }

    pub(super) fn make_link(&mut self) -> bool {
        let target = self.rng.bytes(20);
        let target = [&b"t"[..], &target].concat();
        self.make_node(
            What::Link(target.clone()),
            libc::S_IFLNK | 0o777,
            Some(&target),
        )
    }

    pub(super) fn open(&mut self) -> bool {
        let Some(node) = self.a_file() else {
            return false;
        };
        let mode = OpenMode {
            write: !self.rng.one_in(3),
            truncate: self.rng.one_in(5),
        };
        let mode = OpenMode {
            truncate: mode.write && mode.truncate,
            ..mode
        };
        self.note(format!("open {node} {mode:?}"));
        let ino = self.reference.nodes[&node].ino;
        let fs = self.e().fs.clone();
        let got = errno(call(|ctx| fs.open(ctx, ino, mode)));
        let handle = self.agree(got, Ok(())).expect("opened");
        if mode.truncate {
            self.reference.bytes_mut(node).clear();
        }
        self.opens.push(Open {
            handle,
            node,
            write: mode.write,
        });
        true
    }

    pub(super) fn write(&mut self) -> bool {
        let writers: Vec<usize> = (0..self.opens.len())
            .filter(|n| self.opens[*n].write)
            .collect();
        if writers.is_empty() {
            return false;
        }
        let open = self.rng.pick(&writers);
        let data = self.rng.bytes(40);
        let node = self.opens[open].node;
        let size = match &self.reference.nodes[&node].what {
            What::File(bytes) => bytes.len(),
            _ => 0,
        };
        let at = match self.rng.below(3) {
            0 => size,
            _ => self.rng.below(size + 20),
        };
        self.note(format!("write {node} at {at}: {} bytes", data.len()));
        let fs = self.e().fs.clone();
        let handle = self.opens[open].handle;
        let got = errno(call(|ctx| fs.write(ctx, handle, at as u64, &data)));
        if self.gone(node, &got) {
            return false;
        }
        self.agree(got, Ok(()));
        if !data.is_empty() {
            self.reference.write(node, at, &data);
        } else {
            self.reference.bytes_mut(node);
        }
        false
    }

    /// The drive in memory, unlike Linux, takes a removed file from those who have it open; then
    /// nothing can be checked.
    pub(super) fn gone<T>(&mut self, node: Id, got: &Result<T, i32>) -> bool {
        if got.is_err() && self.reference.links(node) == 0 {
            while let Some(n) = self.opens.iter().position(|open| open.node == node) {
                self.close_nth(n);
            }
            return true;
        }
        false
    }

    fn close_nth(&mut self, n: usize) {
        let open = self.opens.swap_remove(n);
        self.note(format!("close {} ({})", open.node, open.handle));
        self.e().close_handle(open.handle);
        self.forget_unnamed(open.node);
    }

    fn forget_unnamed(&mut self, node: Id) {
        if self.reference.links(node) == 0 && !self.opens.iter().any(|open| open.node == node) {
            let ino = self.reference.nodes[&node].ino;
            self.e().fs.forget(ino).expect("forget");
        }
    }

    pub(super) fn close(&mut self) -> bool {
        if !self.opens.is_empty() {
            let n = self.rng.below(self.opens.len());
            self.close_nth(n);
        }
        false
    }

    pub(super) fn close_writers(&mut self) {
        while let Some(n) = self.opens.iter().position(|open| open.write) {
            self.close_nth(n);
        }
    }

    pub(super) fn truncate(&mut self) -> bool {
        let Some(node) = self.a_file() else {
            return false;
        };
        let size = if self.rng.one_in(3) {
            0
        } else {
            self.rng.below(60)
        };
        self.note(format!("truncate {node} to {size}"));
        let set = SetAttr {
            size: Some(size as u64),
            ..SetAttr::default()
        };
        self.set(node, &set);
        self.reference.bytes_mut(node).resize(size, 0);
        false
    }

    fn set(&mut self, node: Id, set: &SetAttr) {
        let ino = self.reference.nodes[&node].ino;
        let fs = self.e().fs.clone();
        let got = errno(call(|ctx| fs.setattr(ctx, ino, set)));
        self.agree(got, Ok(()));
    }

    pub(super) fn rename(&mut self) -> bool {
        let (from, to) = (self.a_place(), self.a_place());
        let mode = self.rng.pick(&[
            RenameMode::Replace,
            RenameMode::Replace,
            RenameMode::NoReplace,
            RenameMode::Exchange,
        ]);
        let (f, t) = ((from.0, &from.1[..]), (to.0, &to.1[..]));
        if self.reference.kernel_refuses(f, t, mode) {
            return false;
        }
        self.note(format!("rename {from:?} {to:?} {mode:?}"));
        let replaced = self
            .reference
            .find(t)
            .filter(|_| mode == RenameMode::Replace);
        let (a, b) = (self.at(&from), self.at(&to));
        let fs = self.e().fs.clone();
        let got = errno(call(|ctx| fs.rename(ctx, (a.0, &a.1), (b.0, &b.1), mode)));
        let wanted = self.reference.rename(f, t, mode);
        self.agree(got, wanted);
        if let Some(node) = replaced {
            self.forget_if_gone(node);
        }
        true
    }

    fn forget_if_gone(&mut self, node: Id) {
        let named = self.reference.dirs().contains(&node);
        if self.reference.is_dir(node) && !named {
            let ino = self.reference.nodes[&node].ino;
            self.e().fs.forget(ino).expect("forget");
        } else if !self.reference.is_dir(node) {
            self.forget_unnamed(node);
        }
    }

    pub(super) fn hard_link(&mut self) -> bool {
        let Some(node) = self.a_named() else {
            return false;
        };
        let place = self.a_place();
        self.note(format!("link {node} {place:?}"));
        let (parent, name) = self.at(&place);
        let ino = self.reference.nodes[&node].ino;
        let fs = self.e().fs.clone();
        let got = errno(call(|ctx| fs.link(ctx, ino, parent, &name)));
        let wanted = self.reference.link(node, (place.0, &place.1));
        self.agree(got, wanted);
        false
    }

    pub(super) fn unlink(&mut self) -> bool {
        let place = self.a_place();
        self.note(format!("unlink {place:?}"));
        let node = self.reference.find((place.0, &place.1));
        let (parent, name) = self.at(&place);
        let fs = self.e().fs.clone();
        let got = errno(call(|ctx| fs.unlink(ctx, parent, &name)));
        let wanted = self.reference.unlink((place.0, &place.1));
        self.agree(got, wanted);
        if let (Some(node), Ok(())) = (node, wanted) {
            self.forget_if_gone(node);
        }
        false
    }

    pub(super) fn rmdir(&mut self) -> bool {
        let place = self.a_place();
        self.note(format!("rmdir {place:?}"));
        let node = self.reference.find((place.0, &place.1));
        let (parent, name) = self.at(&place);
        let fs = self.e().fs.clone();
        let got = errno(call(|ctx| fs.rmdir(ctx, parent, &name)));
        let wanted = self.reference.rmdir((place.0, &place.1));
        self.agree(got, wanted);
        if let (Some(node), Ok(())) = (node, wanted) {
            self.forget_if_gone(node);
        }
        false
    }

    pub(super) fn attributes(&mut self) -> bool {
        let Some(node) = self.a_named() else {
            return false;
        };
        if self.rng.one_in(3) {
            let mode = self.rng.pick(&[0o600, 0o755, 0o444]);
            self.note(format!("chmod {node} {mode:o}"));
            let set = SetAttr {
                mode: Some(mode),
                ..SetAttr::default()
            };
            self.set(node, &set);
            self.reference.nodes.get_mut(&node).expect("a node").mode = mode;
            return false;
        }
        let mtime = Timestamp(1_500_000_000_123_456_789 + self.rng.below(1 << 40) as i64);
        self.note(format!("utimes {node}"));
        let set = SetAttr {
            mtime: Some(SetTime::At(mtime)),
            ..SetAttr::default()
        };
        self.set(node, &set);
        if !self.reference.is_dir(node) {
            self.reference.nodes.get_mut(&node).expect("a node").mtime = Some(mtime);
        }
        false
    }

    pub(super) fn xattrs(&mut self) -> bool {
        let Some(node) = self.a_named() else {
            return false;
        };
        let name = self.rng.pick(&[b"user.one".to_vec(), b"user.two".to_vec()]);
        let ino = self.reference.nodes[&node].ino;
        let value = self.rng.bytes(30);
        let remove = self.rng.one_in(3);
        self.note(format!("xattr {node} remove {remove}"));
        let fs = self.e().fs.clone();
        let (got, wanted) = {
            let attrs = &mut self.reference.nodes.get_mut(&node).expect("a node").xattrs;
            if remove {
                let there = attrs.remove(&name).map(|_| ());
                (fs.removexattr(ino, &name), there.ok_or(libc::ENODATA))
            } else {
                attrs.insert(name.clone(), value.clone());
                (fs.setxattr(ino, &name, &value, SetXattr::Any), Ok(()))
            }
        };
        self.agree(errno(got), wanted);
        false
    }
}
