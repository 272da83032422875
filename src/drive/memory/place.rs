//! Paths in the form that the tree uses: components folded, names accepted or refused.

use std::io;

use crate::core::{NAME_MAX, Name, RelPath};
use crate::drive::memory::{MemoryOptions, errno};

/// A path in the form that the tree uses.
pub(super) struct FoldedPath {
    /// The folded components above the last one.
    pub(super) parents: Vec<Vec<u8>>,
    /// The last component, folded; `None` for the root.
    last: Option<(Vec<u8>, Name)>,
    /// The original path, for messages.
    pub(super) path: RelPath,
}

impl FoldedPath {
    pub(super) fn new(path: &RelPath, options: &MemoryOptions) -> io::Result<FoldedPath> {
        let mut parents = Vec::new();
        let mut last: Option<(Vec<u8>, Name)> = None;
        for component in path.components() {
            if is_too_long(component, options) {
                return Err(errno(libc::ENAMETOOLONG));
            }
            let kept = accept(component, options).ok_or_else(|| errno(libc::EINVAL))?;
            let key = fold(kept.as_bytes(), options);
            parents.extend(last.replace((key, kept)).map(|(key, _)| key));
        }
        let path = path.clone();
        Ok(FoldedPath {
            parents,
            last,
            path,
        })
    }

    pub(super) fn is_root(&self) -> bool {
        self.last.is_none()
    }

    /// Returns the last component: folded, and as it is spelled.
    ///
    /// # Errors
    /// `if_root` for the root.
    pub(super) fn last(&self, if_root: i32) -> io::Result<(&[u8], &Name)> {
        let last = self.last.as_ref().ok_or_else(|| errno(if_root))?;
        Ok((&last.0, &last.1))
    }
}

fn is_too_long(component: &[u8], options: &MemoryOptions) -> bool {
    match options.max_utf16 {
        Some(max) => String::from_utf8_lossy(component).encode_utf16().count() > max,
        None => component.len() > NAME_MAX,
    }
}

/// Returns the name as the backend stores it, if it accepts it.
fn accept(component: &[u8], options: &MemoryOptions) -> Option<Name> {
    let refused = component.iter().any(|b| options.forbidden.contains(b));
    if refused || (options.utf8_only && std::str::from_utf8(component).is_err()) {
        return None;
    }
    let mut kept = component;
    while options.drops_trailing_dots && kept.ends_with(b".") {
        kept = &kept[..kept.len() - 1];
    }
    Name::new(kept).ok()
}

fn fold(name: &[u8], options: &MemoryOptions) -> Vec<u8> {
    match std::str::from_utf8(name) {
        Ok(text) if options.case_insensitive => text.to_lowercase().into_bytes(),
        _ => name.to_vec(),
    }
}
