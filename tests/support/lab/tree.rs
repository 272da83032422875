//! What stands in a directory, so that two of them can be compared; and contents that are known by
//! their seed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use ferryfs::core::{Capabilities, Name};
use ferryfs::plan::names::NameRules;

/// One entry of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    Dir,
    /// A file: its size in bytes and their BLAKE3 hash.
    File(u64, String),
    Symlink(String),
    /// A fifo, socket or device.
    Special,
}

/// Every entry below a directory, by its relative path.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Tree(pub BTreeMap<String, Node>);

impl Tree {
    /// Reads all below `root`, files to their last byte.
    #[track_caller]
    pub fn read(root: &Path) -> Tree {
        let mut tree = Tree::default();
        tree.walk(root, "");
        tree
    }

    fn walk(&mut self, dir: &Path, prefix: &str) {
        let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("list {}: {e}", dir.display()));
        for entry in entries {
            let entry = entry.unwrap_or_else(|e| panic!("list {}: {e}", dir.display()));
            let name = legible(entry.file_name().as_bytes());
            let rel = if prefix.is_empty() {
                name
            } else {
                format!("{prefix}/{name}")
            };
            let path = entry.path();
            let kind = fs::symlink_metadata(&path)
                .unwrap_or_else(|e| panic!("stat {}, which was listed: {e}", path.display()))
                .file_type();
            let node = if kind.is_dir() {
                self.walk(&path, &rel);
                Node::Dir
            } else if kind.is_symlink() {
                let target = fs::read_link(&path).expect("read link");
                Node::Symlink(target.to_string_lossy().into_owned())
            } else if kind.is_fifo() || !kind.is_file() {
                Node::Special
            } else {
                hash_file(&path)
            };
            let twice = self.0.insert(rel.clone(), node);
            assert!(
                twice.is_none(),
                "{rel} is listed twice in {}",
                dir.display()
            );
        }
    }

    /// With each name as a mount of exFAT would show it, where the name alone tells.
    pub fn in_mount_names(self) -> Tree {
        let rules = exfat_rules();
        let read = |path: &String| {
            let mut shown = Vec::new();
            for name in path.split('/') {
                let stored = Name::new(name.as_bytes()).expect("a name");
                let name = rules.decode(&stored, shown.is_empty()).unwrap_or(stored);
                shown.push(legible(name.as_bytes()));
            }
            shown.join("/")
        };
        let nodes = self.0.into_iter();
        Tree(nodes.map(|(path, node)| (read(&path), node)).collect())
    }

    /// Without `name` at the top and all below it.
    pub fn without(mut self, name: &str) -> Tree {
        let below = format!("{name}/");
        self.0
            .retain(|path, _| path != name && !path.starts_with(&below));
        self
    }

    /// Only what any drive can hold: plain files and directories.
    pub fn plain(mut self) -> Tree {
        self.0
            .retain(|_, node| matches!(node, Node::Dir | Node::File(..)));
        self
    }

    /// Says the first differences, not two whole trees.
    #[track_caller]
    pub fn assert_same(&self, other: &Tree, this: &str, that: &str) {
        let mut differences = Vec::new();
        for (path, node) in &self.0 {
            match other.0.get(path) {
                None => differences.push(format!("{path}: only in {this}")),
                Some(twin) if twin != node => {
                    differences.push(format!("{path}: {node:?} in {this}, {twin:?} in {that}"));
                }
                Some(_) => {}
            }
        }
        for path in other.0.keys().filter(|path| !self.0.contains_key(*path)) {
            differences.push(format!("{path}: only in {that}"));
        }
        let count = differences.len();
        differences.truncate(12);
        assert!(
            count == 0,
            "{count} differences:\n  {}",
            differences.join("\n  ")
        );
    }
}

#[track_caller]
fn hash_file(path: &Path) -> Node {
    let mut file = fs::File::open(path).unwrap_or_else(|e| panic!("open {}: {e}", path.display()));
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        let n = file
            .read(&mut buffer)
            .unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
        if n == 0 {
            return Node::File(size, hasher.finalize().to_hex()[..12].to_owned());
        }
        size += n as u64;
        hasher.update(&buffer[..n]);
    }
}

/// A name as a key: itself if it is text, else its bytes spelled out.
fn legible(name: &[u8]) -> String {
    match std::str::from_utf8(name) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("bytes {}", name.escape_ascii()),
    }
}

/// How names are spelled on exFAT.
pub fn exfat_rules() -> NameRules {
    NameRules::new(&Capabilities {
        forbidden: (1..0x20).chain(*b"\"*:<>?\\|").collect(),
        case_insensitive: true,
        utf8_only: true,
        no_trailing_dot: true,
        no_trailing_space: true,
        max_utf16: Some(255),
        ..Capabilities::plain()
    })
}

/// `len` bytes that follow from `seed`: no two seeds share a block, so a mix of two files shows.
pub fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Writes a file and closes it, parents made as needed.
#[track_caller]
pub fn write(path: &Path, bytes: &[u8]) {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).unwrap_or_else(|e| panic!("mkdir {}: {e}", parent.display()));
    }
    fs::write(path, bytes).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
}

/// The file at `path` has just these bytes. On failure it says where they part, not all of them.
#[track_caller]
pub fn assert_content(path: impl AsRef<Path>, expected: impl AsRef<[u8]>) {
    let (path, expected) = (path.as_ref(), expected.as_ref());
    let found = fs::read(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
    if found == expected {
        return;
    }
    let same = found
        .iter()
        .zip(expected)
        .take_while(|(a, b)| a == b)
        .count();
    let near = |bytes: &[u8]| {
        String::from_utf8_lossy(&bytes[same..bytes.len().min(same + 40)]).into_owned()
    };
    panic!(
        "{}: {} bytes instead of {}, other from byte {same} on: {:?} instead of {:?}",
        path.display(),
        found.len(),
        expected.len(),
        near(&found),
        near(expected)
    );
}
