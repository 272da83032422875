//! All that programs can tell of a tree.

use std::collections::BTreeMap;

use ferryfs::core::{FileKind, Ino, RelPath, Timestamp};
use ferryfs::vfs::{NewNode, SetAttr, SetTime, SetXattr};

use crate::engine::{CTX, Engine, World, call};

/// What is told of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fact {
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) rdev: u32,
    pub(crate) nlink: u32,
    pub(crate) size: u64,
    pub(crate) is_sparse: bool,
    pub(crate) mtime: Timestamp,
    pub(crate) target: Option<Box<[u8]>>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) bytes: Option<Vec<u8>>,
    /// The first name of the same inode.
    pub(crate) same_as: RelPath,
}

pub(crate) type Facts = BTreeMap<RelPath, Fact>;

/// Everything, the root included.
pub(crate) fn facts(engine: &Engine) -> Facts {
    let mut inos: BTreeMap<RelPath, Ino> = engine
        .names()
        .into_iter()
        .map(|path| (path.clone(), engine.ino(&path.to_string())))
        .collect();
    inos.insert(RelPath::root(), Ino::ROOT);
    let mut first: BTreeMap<Ino, RelPath> = BTreeMap::new();
    for (path, ino) in &inos {
        first.entry(*ino).or_insert_with(|| path.clone());
    }
    let fact = |ino: Ino| {
        let inode = engine.fs.getattr(ino).expect("attributes");
        let names = engine.fs.listxattr(&CTX, ino).expect("xattrs");
        let names = names
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty());
        let value = |name: &[u8]| engine.fs.getxattr(ino, name).expect("an xattr");
        let is_file = inode.kind() == FileKind::Regular;
        Fact {
            mode: inode.mode,
            owner: (inode.uid, inode.gid),
            rdev: inode.rdev,
            nlink: inode.nlink,
            size: if inode.is_dir() { 0 } else { inode.size },
            is_sparse: is_file && inode.blocks * 512 < inode.size,
            mtime: inode.mtime,
            target: inode.target.clone(),
            xattrs: names.map(|name| (name.to_vec(), value(name))).collect(),
            bytes: is_file.then(|| engine.read_ino(ino).expect("read")),
            same_as: first[&ino].clone(),
        }
    };
    inos.iter()
        .map(|(path, ino)| (path.clone(), fact(*ino)))
        .collect()
}

/// Where two trees differ, a line each.
pub(crate) fn differences(found: &Facts, wanted: &Facts) -> Vec<String> {
    let mut lines = Vec::new();
    for path in found
        .keys()
        .chain(wanted.keys())
        .collect::<std::collections::BTreeSet<_>>()
    {
        let (a, b) = (found.get(path), wanted.get(path));
        if a != b {
            let short = |it: Option<&Fact>| match it {
                Some(fact) => format!(
                    "{:?}",
                    Fact {
                        bytes: None,
                        ..fact.clone()
                    }
                ),
                None => "nothing".into(),
            };
            let bytes = a.map(|it| &it.bytes) != b.map(|it| &it.bytes);
            lines.push(format!(
                "{path}:\n    found  {}\n    wanted {}\n    other bytes: {bytes}",
                short(a),
                short(b)
            ));
        }
    }
    lines
}

#[track_caller]
pub(crate) fn assert_same(found: &Facts, wanted: &Facts, what: &str) {
    let lines = differences(found, wanted);
    assert!(lines.is_empty(), "{what}:\n  {}", lines.join("\n  "));
}

/// Another machine, with an empty cache, to which the drive was taken.
pub(crate) fn elsewhere(world: &World) -> (World, Engine) {
    let other = World::on(world.kind, world.memory.clone());
    let engine = other.start(false);
    engine.flusher.recover().expect("attach");
    (other, engine)
}

impl Engine {
    pub(crate) fn setattr(&self, path: &str, set: SetAttr) {
        let ino = self.ino_of(path);
        call(|ctx| self.fs.setattr(ctx, ino, &set)).expect("setattr");
    }

    fn ino_of(&self, path: &str) -> Ino {
        match path {
            "" => Ino::ROOT,
            path => self.ino(path),
        }
    }

    pub(crate) fn chmod(&self, path: &str, mode: u32) {
        self.setattr(
            path,
            SetAttr {
                mode: Some(mode),
                ..SetAttr::default()
            },
        );
    }

    pub(crate) fn chown(&self, path: &str, uid: u32, gid: u32) {
        let set = SetAttr {
            uid: Some(uid),
            gid: Some(gid),
            ..SetAttr::default()
        };
        self.setattr(path, set);
    }

    pub(crate) fn set_time(&self, path: &str, ns: i64) {
        let mtime = Some(SetTime::At(Timestamp(ns)));
        self.setattr(
            path,
            SetAttr {
                mtime,
                ..SetAttr::default()
            },
        );
    }

    pub(crate) fn xattr(&self, path: &str, name: &str, value: &[u8]) {
        let ino = self.ino_of(path);
        let set = self.fs.setxattr(ino, name.as_bytes(), value, SetXattr::Any);
        set.expect("setxattr");
    }

    /// Gives user `uid` the rights `bits`, in an ACL with the mode 0750.
    pub(crate) fn acl(&self, path: &str, name: &[u8], uid: u32, bits: u16) {
        let none = u32::MAX;
        let entries = [
            (1, 7, none),
            (2, bits, uid),
            (4, 5, none),
            (16, 5, none),
            (32, 0, none),
        ];
        let mut value = vec![2, 0, 0, 0];
        for (tag, bits, id) in entries {
            value.extend(u16::to_le_bytes(tag));
            value.extend(u16::to_le_bytes(bits));
            value.extend(u32::to_le_bytes(id));
        }
        let ino = self.ino_of(path);
        call(|ctx| self.fs.set_acl(ctx, ino, name, &value)).expect("set an ACL");
    }

    pub(crate) fn special(&self, path: &str, mode: u32, rdev: u32, target: Option<&[u8]>) {
        let (parent, name) = self.place(path);
        let node = NewNode {
            mode,
            rdev,
            target: target.map(Into::into),
        };
        call(|ctx| self.fs.make_node(ctx, parent, &name, node.clone())).expect("mknod");
    }

    pub(crate) fn symlink(&self, path: &str, target: &str) {
        self.special(path, libc::S_IFLNK | 0o777, 0, Some(target.as_bytes()));
    }

    /// A file with bytes at both ends of a hole, and a hole at its end.
    pub(crate) fn sparse(&self, path: &str) {
        let handle = self.open(path, crate::engine::script::REWRITE);
        self.write_at(handle, 0, b"head");
        self.write_at(handle, 3 << 20, b"tail");
        self.close_handle(handle);
        self.truncate(path, 5 << 20);
    }
}
