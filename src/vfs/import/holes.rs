//! Holes of files that are only on the backend. exFAT stores the zeros; the catalog says where they
//! are.

use crate::format::catalog::Extent;
use crate::index::{Index, Inode};
use crate::plan::describe::describes;
use crate::vfs::Result;

/// Returns the holes of a file that is only on the backend, according to the catalog. This is a
/// hint: reads return the actual bytes.
pub(in crate::vfs) fn described_holes(index: &Index, inode: &Inode) -> Result<Vec<Extent>> {
    if inode.blocks.saturating_mul(512) >= inode.size {
        return Ok(Vec::new());
    }
    let mut state = index.lock();
    let Some(path) = state.backend_path(inode.ino)? else {
        return Ok(Vec::new());
    };
    let description = state.description(&path)?;
    Ok(description
        .filter(|description| describes(description, inode.size, inode.mtime, 0))
        .map(|description| description.holes)
        .unwrap_or_default())
}

/// Writes `bytes`, which belong at `at`, except for zeros within `holes`. The holes are sorted.
pub(in crate::vfs) fn write_around_holes(
    holes: &[Extent],
    at: u64,
    bytes: &[u8],
    mut write: impl FnMut(u64, &[u8]) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let end = at + bytes.len() as u64;
    let part = |from: u64, to: u64| &bytes[(from - at) as usize..(to - at) as usize];
    let mut done = at;
    for hole in holes {
        let (from, to) = (hole.offset.max(done), hole.end().min(end));
        if from >= to || part(from, to).iter().any(|byte| *byte != 0) {
            continue;
        }
        if done < from {
            write(done, part(done, from))?;
        }
        done = to;
    }
    if done < end {
        write(done, part(done, end))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_zeros_in_holes_are_not_written() {
        let holes = [(2, 4), (8, 4), (14, 2), (90, 5)];
        let holes = holes.map(|(offset, length)| Extent { offset, length });
        let mut file = vec![0xee; 16];
        let bytes: Vec<u8> = vec![1, 0, 0, 0, 0, 0, 2, 3, 0, 9, 0, 0, 4, 5, 0, 0];
        for (at, part) in [(0, &bytes[..5]), (5, &bytes[5..])] {
            write_around_holes(&holes, at, part, |at, bytes| {
                file[at as usize..][..bytes.len()].copy_from_slice(bytes);
                Ok(())
            })
            .unwrap();
        }
        let untouched = 0xee;
        let wanted = [
            1, 0, untouched, untouched, untouched, untouched, 2, 3, 0, 9, 0, 0, 4, 5, untouched,
            untouched,
        ];
        assert_eq!(file, wanted, "a hole that holds bytes is written whole");
    }
}
