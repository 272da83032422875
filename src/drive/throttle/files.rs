//! The files of the drive that a flush reads and writes, in requests that ask the throttle.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::core::{Metadata, Timestamp};
use crate::drive::throttle::{Section, Tempo, current};
use crate::drive::{ReadFile, WriteFile, WriteOut};

/// After so many bytes the system is made to begin with writing them.
const BEGIN_AFTER: u64 = 4 << 20;

/// So many bytes may be on their way to the drive, of all files of a flush.
const MOST_ON_THEIR_WAY: u64 = 8 << 20;

/// A flush that yields waits for so many bytes together: each wait is a sync of a FUSE drive, and
/// patches are written in parts of a few bytes. The end of the file waits for the rest.
const FINISH_AFTER: u64 = 256 << 10;

/// Puts a file that is read under the throttle of this thread's flush.
pub(in crate::drive) fn over_read(inner: Box<dyn ReadFile>) -> Box<dyn ReadFile> {
    match current() {
        Some(section) => Box::new(SlowReader { inner, section }),
        None => inner,
    }
}

/// The same for a new file.
pub(in crate::drive) fn over_write(inner: Box<dyn WriteFile>) -> Box<dyn WriteFile> {
    match current() {
        Some(section) => Box::new(SlowWriter {
            inner,
            section,
            on_their_way: OnTheirWay::default(),
        }),
        None => inner,
    }
}

/// The bytes of a file that may not have reached the drive.
#[derive(Debug, Default)]
struct OnTheirWay {
    /// Those with which the system need not have begun.
    waiting: u64,
    /// All of them.
    all: u64,
}

impl OnTheirWay {
    /// Counts `bytes` more, here and in `of_all`, those of all files of the flush. Returns what the
    /// system has to do at this tempo.
    fn note(&mut self, bytes: usize, tempo: Tempo, of_all: &AtomicU64) -> Option<WriteOut> {
        self.waiting += bytes as u64;
        self.all += bytes as u64;
        of_all.fetch_add(bytes as u64, Ordering::Relaxed);
        let due = match tempo {
            Tempo::Full => None,
            Tempo::Yielding => (self.all >= FINISH_AFTER).then_some(WriteOut::Finish),
            Tempo::Bounded if is_most(of_all) => Some(WriteOut::Finish),
            Tempo::Early | Tempo::Bounded => {
                (self.waiting >= BEGIN_AFTER).then_some(WriteOut::Begin)
            }
        };
        self.passed(due, of_all)
    }

    /// Returns what the system has to do at the end of the file.
    fn end(&mut self, tempo: Tempo, of_all: &AtomicU64) -> Option<WriteOut> {
        let due = match tempo {
            // On a FUSE drive nothing else bounds what waits of many small files.
            Tempo::Bounded if is_most(of_all) => Some(WriteOut::Finish),
            // Of many small files the sync at the end would find all bytes waiting.
            Tempo::Bounded => Some(WriteOut::Begin),
            Tempo::Yielding => Some(WriteOut::Finish),
            Tempo::Full | Tempo::Early => None,
        };
        let due = due.filter(|_| self.all > 0);
        self.passed(due, of_all)
    }

    /// The system has begun with the earlier files before. So once this one is done, they are, or
    /// nearly.
    fn passed(&mut self, due: Option<WriteOut>, of_all: &AtomicU64) -> Option<WriteOut> {
        match due {
            Some(WriteOut::Begin) => self.waiting = 0,
            Some(WriteOut::Finish) => {
                (self.waiting, self.all) = (0, 0);
                of_all.store(0, Ordering::Relaxed);
            }
            None => {}
        }
        due
    }
}

fn is_most(of_all: &AtomicU64) -> bool {
    of_all.load(Ordering::Relaxed) >= MOST_ON_THEIR_WAY
}

struct SlowReader {
    inner: Box<dyn ReadFile>,
    section: Arc<Section>,
}

impl ReadFile for SlowReader {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            // The limit may have changed meanwhile.
            let most = self.section.request();
            let end = buf.len().min(filled.saturating_add(most));
            let part = &mut buf[filled..end];
            let wanted = part.len();
            let at = offset.saturating_add(filled as u64);
            let ours = &self.section.throttle.ours;
            ours.fetch_add(wanted as u64, Ordering::Relaxed);
            let read = |_| self.inner.read_at(part, at);
            let got = self.section.run(wanted, read)?;
            filled += got;
            if got < wanted {
                break;
            }
        }
        Ok(filled)
    }

    fn metadata(&self) -> io::Result<Metadata> {
        self.inner.metadata()
    }
}

struct SlowWriter {
    inner: Box<dyn WriteFile>,
    section: Arc<Section>,
    on_their_way: OnTheirWay,
}

impl WriteFile for SlowWriter {
    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        let SlowWriter {
            inner,
            section,
            on_their_way,
        } = self;
        let mut rest = data;
        while !rest.is_empty() {
            // The limit may have changed meanwhile.
            let (part, after) = rest.split_at(rest.len().min(section.request()));
            section.run(part.len(), |tempo| {
                inner.append(part)?;
                match on_their_way.note(part.len(), tempo, &section.on_their_way) {
                    Some(how) => inner.write_out(how),
                    None => Ok(()),
                }
            })?;
            rest = after;
        }
        Ok(())
    }

    fn write_out(&mut self, how: WriteOut) -> io::Result<()> {
        self.inner.write_out(how)
    }

    fn finish(self: Box<Self>, modified: Timestamp) -> io::Result<()> {
        let SlowWriter {
            mut inner,
            section,
            mut on_their_way,
        } = *self;
        section.run(0, |tempo| {
            if let Some(how) = on_their_way.end(tempo, &section.on_their_way) {
                inner.write_out(how)?;
            }
            inner.finish(modified)
        })
    }
}
