//! Reads on ahead of a reader that reads a file from front to back, so that the drive works while
//! the reader does, and most requests find their bytes in memory.
//!
//! State of one open file ([`Ahead`]): a row of blocks without gaps, some behind the reader and the
//! rest ahead of it, and at most one job that adds to their end. The job runs on a thread of the
//! guard's pool. It reads until the window is full and ends; a reader that has used half of the
//! window starts the next one. The window doubles with each job. All open files share one
//! [`Budget`] of memory and jobs; a file that gets nothing of it is read as without this module.
//!
//! Invariant: a block is only kept if the file had the size and the time that it had at its open,
//! after the block was read. If it has not, all blocks are dropped, and the file is not read ahead
//! any more. An error of a job is not an error of any reader: the reader asks the drive itself.
//!
//! Requests of one reader may overtake each other, as the kernel sends several at once, so a read
//! near the last one is no seek. A seek drops all blocks.
//!
//! A job has no deadline while no reader waits for it. A reader that needs its next block waits as
//! for a call of its own. At most [`MOST_JOBS`] jobs can hang without anybody having noticed.
//!
//! Lock order: `state` is the only lock, and it is not held during a call to the drive.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::core::Metadata;
use crate::drive::ReadFile;
use crate::drive::supervised::threads::{Ticket, sign_of_life};

/// Bytes of one block.
pub(super) const BLOCK: usize = 128 << 10;

/// The first window: bytes that are read ahead of the reader.
const FIRST_WINDOW: u64 = 2 * BLOCK as u64;

/// The largest window.
pub(super) const LARGEST_WINDOW: u64 = 4 << 20;

/// A read at most this far from the end of the last one is no seek.
const NEAR: u64 = 4 * BLOCK as u64;

/// Reads in sequence after which the file is read ahead.
const IN_SEQUENCE: u32 = 2;

/// Memory of all blocks of all files.
pub(super) const MOST_BYTES: usize = 32 << 20;

/// Jobs of all files, fewer than the pool has threads.
pub(super) const MOST_JOBS: usize = 4;

/// What all files share.
#[derive(Default)]
pub(super) struct Budget {
    bytes: AtomicUsize,
    jobs: AtomicUsize,
}

impl Budget {
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::SeqCst)
    }

    fn buffer(self: &Arc<Self>) -> Option<Buffer> {
        add_within(&self.bytes, BLOCK, MOST_BYTES).then(|| Buffer {
            bytes: vec![0; BLOCK],
            budget: self.clone(),
        })
    }

    fn slot(self: &Arc<Self>) -> Option<Slot> {
        add_within(&self.jobs, 1, MOST_JOBS).then(|| Slot(self.clone()))
    }
}

/// Adds to a counter, unless it would exceed `most`.
fn add_within(counter: &AtomicUsize, more: usize, most: usize) -> bool {
    let sum = |taken: usize| taken.checked_add(more).filter(|sum| *sum <= most);
    counter
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, sum)
        .is_ok()
}

/// The memory of one block.
struct Buffer {
    bytes: Vec<u8>,
    budget: Arc<Budget>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.budget.bytes.fetch_sub(BLOCK, Ordering::SeqCst);
    }
}

/// The permission to run one job.
struct Slot(Arc<Budget>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.jobs.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Bytes of the file that have been read.
struct Block {
    offset: u64,
    length: usize,
    buffer: Buffer,
    /// Bytes given to readers. A block of which all are given is dropped.
    given: usize,
}

impl Block {
    fn end(&self) -> u64 {
        self.offset + self.length as u64
    }
}

#[derive(Default)]
struct State {
    /// The end of the furthest read since the last seek.
    next: u64,
    /// Reads that began where the one before ended.
    in_sequence: u32,
    window: u64,
    blocks: VecDeque<Block>,
    /// The end of the blocks: what the job reads next.
    end: u64,
    /// Memory of dropped blocks, for the next ones.
    spare: Vec<Buffer>,
    job: Option<Arc<Ticket>>,
    /// Counts the seeks. A job ends when it finds another number than its own.
    seeks: u64,
    /// The file is not read ahead any more.
    stopped: bool,
}

/// The blocks of one open file. See the head of this file.
pub(super) struct Ahead {
    opened: Metadata,
    budget: Arc<Budget>,
    state: Mutex<State>,
    progress: Condvar,
}

/// What [`Ahead::read`] has found.
pub(super) enum Found {
    /// That many bytes, now in the reader's buffer.
    Bytes(usize),
    /// Nothing; the reader must ask the drive.
    Nothing,
    /// A job that would have read it, and has been silent for the whole timeout.
    Silent(Arc<Ticket>),
}

impl Ahead {
    /// Returns the state of a file that had the metadata `opened` at its open.
    pub(super) fn new(opened: Metadata, budget: Arc<Budget>) -> Ahead {
        let window = FIRST_WINDOW;
        Ahead {
            opened,
            budget,
            state: Mutex::new(State {
                window,
                ..State::default()
            }),
            progress: Condvar::new(),
        }
    }

    /// Returns how many of `length` bytes at `offset` the file has.
    pub(super) fn within(&self, offset: u64, length: usize) -> usize {
        let rest = self.opened.size.saturating_sub(offset);
        usize::try_from(rest).unwrap_or(usize::MAX).min(length)
    }

    /// Records that a reader asks, or has asked, for `length` bytes at `offset`.
    pub(super) fn note(&self, offset: u64, length: usize) {
        self.state.lock().note(offset, length);
    }

    /// Copies bytes at `offset` if all that `buf` wants, and the file has, are at hand.
    pub(super) fn read_ready(&self, buf: &mut [u8], offset: u64) -> Option<usize> {
        let wanted = self.within(offset, buf.len());
        let mut state = self.state.lock();
        if wanted == 0 || !state.has_all(offset, wanted) {
            return None;
        }
        // First, since it drops everything if this is a seek.
        let given = state.give(&mut buf[..wanted], offset);
        state.note(offset, wanted);
        state.drop_given(self.opened.size);
        (given == wanted).then_some(given)
    }

    /// Copies bytes at `offset`, as many as are at hand. Waits if a job is about to read the first
    /// of them, while the job has not been silent for `timeout`.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64, timeout: Duration) -> Found {
        let mut state = self.state.lock();
        state.note(offset, buf.len());
        let mut waited_for: Option<Arc<Ticket>> = None;
        loop {
            let given = state.give(buf, offset);
            if given > 0 {
                state.drop_given(self.opened.size);
                return Found::Bytes(given);
            }
            let is_silent = |job: &Arc<Ticket>| job.last_sign() + timeout <= Instant::now();
            // Another reader may have given up the same job a moment before.
            let job = (waited_for.take().filter(is_silent)).or_else(|| state.job_for(offset));
            let Some(job) = job else {
                return Found::Nothing;
            };
            if is_silent(&job) {
                state.stop();
                return Found::Silent(job);
            }
            let silent_at = job.last_sign() + timeout;
            self.progress.wait_until(&mut state, silent_at);
            waited_for = Some(job);
        }
    }

    /// Returns the next job if one is due.
    pub(super) fn next_job(self: &Arc<Self>) -> Option<Job> {
        let mut state = self.state.lock();
        if !state.is_job_due(self.opened.size) {
            return None;
        }
        let slot = self.budget.slot()?;
        if state.end < state.next {
            state.blocks.clear();
            state.end = state.next;
        }
        let ticket = Ticket::new();
        state.job = Some(ticket.clone());
        Some(Job {
            ahead: self.clone(),
            ticket,
            seeks: state.seeks,
            _slot: slot,
        })
    }

    /// Drops all blocks and ends the job after its current read.
    pub(super) fn stop(&self) {
        self.state.lock().stop();
    }
}

impl State {
    fn note(&mut self, offset: u64, length: usize) {
        let end = offset.saturating_add(length as u64);
        let is_ahead = offset - self.next.min(offset) <= NEAR || self.has_all(offset, 1);
        let is_behind = self.next - offset.min(self.next) <= NEAR;
        if offset == self.next {
            self.in_sequence = self.in_sequence.saturating_add(1);
        } else if !(is_ahead && is_behind) {
            self.forget();
            (self.next, self.end, self.in_sequence) = (end, end, 1);
        }
        self.next = self.next.max(end);
    }

    /// Returns whether `length` bytes at `offset` are at hand.
    fn has_all(&self, offset: u64, length: usize) -> bool {
        let begins = self.blocks.front().is_some_and(|it| it.offset <= offset);
        begins && offset + length as u64 <= self.end
    }

    fn give(&mut self, buf: &mut [u8], offset: u64) -> usize {
        let mut done = 0;
        for block in &mut self.blocks {
            let at = offset + done as u64;
            if block.offset > at || done == buf.len() {
                break;
            }
            // Less than the length of a block, if the block has the byte at all.
            let Ok(from) = usize::try_from(at - block.offset) else {
                continue;
            };
            let part = block.length.saturating_sub(from).min(buf.len() - done);
            if part > 0 {
                buf[done..done + part].copy_from_slice(&block.buffer.bytes[from..from + part]);
                block.given += part;
                done += part;
            }
        }
        done
    }

    /// Drops the blocks that no reader needs any more.
    fn drop_given(&mut self, size: u64) {
        let next = self.next;
        let is_over = |it: &Block| it.given >= it.length || it.end() + NEAR < next;
        while self.blocks.front().is_some_and(is_over) {
            let block = self.blocks.pop_front();
            self.spare.extend(block.map(|block| block.buffer));
        }
        if self.end >= size {
            self.spare.clear();
        }
    }

    /// Returns the job if it will read the byte at `offset`.
    fn job_for(&self, offset: u64) -> Option<Arc<Ticket>> {
        let job = self.job.as_ref().filter(|_| !self.stopped)?;
        let will = offset >= self.end && offset < self.next + self.window;
        will.then(|| job.clone())
    }

    fn is_job_due(&self, size: u64) -> bool {
        let left = self.end.saturating_sub(self.next);
        self.job.is_none()
            && !self.stopped
            && self.in_sequence >= IN_SEQUENCE
            && self.end.max(self.next) < size
            && left <= self.window / 2
    }

    fn forget(&mut self) {
        self.seeks += 1;
        self.job = None;
        self.window = FIRST_WINDOW;
        self.blocks.clear();
        self.spare.clear();
    }

    fn stop(&mut self) {
        self.forget();
        self.stopped = true;
    }
}

/// Reads blocks ahead until the window is full.
pub(super) struct Job {
    ahead: Arc<Ahead>,
    ticket: Arc<Ticket>,
    seeks: u64,
    _slot: Slot,
}

impl Job {
    pub(super) fn ticket(&self) -> Arc<Ticket> {
        self.ticket.clone()
    }

    /// Reads the blocks. Returns whether the drive works, as far as the last read shows.
    pub(super) fn run(&self, file: &dyn ReadFile) -> bool {
        while let Some((mut buffer, offset, length)) = self.next_block() {
            let read = read_block(file, &mut buffer.bytes[..length], offset);
            let is_same = read.as_ref().is_ok_and(|(got, now)| {
                let opened = &self.ahead.opened;
                *got == length && (now.size, now.modified) == (opened.size, opened.modified)
            });
            sign_of_life();
            let block = Block {
                offset,
                length,
                buffer,
                given: 0,
            };
            match read {
                Ok(_) if is_same => self.add(block),
                Ok(_) => self.give_up(true),
                Err(_) => {
                    self.give_up(false);
                    return false;
                }
            }
        }
        true
    }

    /// Returns memory for the next block, and what it is; `None` if the job is over.
    fn next_block(&self) -> Option<(Buffer, u64, usize)> {
        let mut state = self.ahead.state.lock();
        let offset = state.end;
        let length = self.ahead.within(offset, BLOCK);
        let is_mine = state.seeks == self.seeks && !state.stopped;
        if !is_mine {
            return None;
        }
        let buffer = match length > 0 && offset < state.next + state.window {
            true => state.spare.pop().or_else(|| self.ahead.budget.buffer()),
            false => None,
        };
        if buffer.is_none() {
            // Under the lock, so that a reader that needs more starts another job.
            state.job = None;
            state.window = (2 * state.window).min(LARGEST_WINDOW);
            self.ahead.progress.notify_all();
        }
        Some((buffer?, offset, length))
    }

    fn add(&self, block: Block) {
        let mut state = self.ahead.state.lock();
        if state.seeks == self.seeks {
            state.end = block.end();
            state.blocks.push_back(block);
            self.ahead.progress.notify_all();
        }
    }

    /// Ends the reading ahead of this file. What has been read stays, unless the file `differs`.
    fn give_up(&self, differs: bool) {
        let mut state = self.ahead.state.lock();
        if differs {
            state.stop();
        }
        state.stopped = true;
        self.ahead.progress.notify_all();
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let mut state = self.ahead.state.lock();
        if (state.job.as_ref()).is_some_and(|job| Arc::ptr_eq(job, &self.ticket)) {
            state.job = None;
        }
        self.ahead.progress.notify_all();
    }
}

/// Fills `buf` as far as the file goes, and returns the file's metadata after that.
fn read_block(file: &dyn ReadFile, buf: &mut [u8], offset: u64) -> io::Result<(usize, Metadata)> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64)? {
            0 => break,
            got => done += got,
        }
    }
    Ok((done, file.metadata()?))
}
