//! Memory for the answers to reads, which each thread keeps: new memory for each answer would have
//! to be cleared, and mapped, each time.

use std::cell::RefCell;

/// The largest memory that a thread keeps: what the kernel asks for when it reads ahead.
const KEPT: usize = 128 << 10;

thread_local! {
    static SPARE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Memory for one answer. It may hold bytes of earlier answers. Its drop keeps it for the next one
/// on this thread.
#[derive(Debug)]
pub(super) struct ReadBuffer {
    memory: Vec<u8>,
    length: usize,
}

impl ReadBuffer {
    /// Returns `length` bytes of any content.
    pub(super) fn take(length: usize) -> ReadBuffer {
        let mut memory = SPARE.take();
        if memory.len() < length {
            memory.resize(length, 0);
        }
        ReadBuffer { memory, length }
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[..self.length]
    }
}

impl Drop for ReadBuffer {
    fn drop(&mut self) {
        if self.memory.len() <= KEPT {
            // Fails only while the thread ends.
            let memory = std::mem::take(&mut self.memory);
            let _ = SPARE.try_with(|spare| spare.replace(memory));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_has_the_length_asked_for_and_only_small_ones_are_kept() {
        let kept = || SPARE.with_borrow(Vec::len);
        assert_eq!(ReadBuffer::take(5000).bytes().len(), 5000);
        assert_eq!(kept(), 5000);
        assert_eq!(ReadBuffer::take(10).bytes().len(), 10);
        assert_eq!(kept(), 5000);
        let mut two = [ReadBuffer::take(KEPT), ReadBuffer::take(KEPT + 1)];
        assert!(two.iter_mut().all(|it| it.bytes().len() >= KEPT));
        drop(two);
        assert_eq!(kept(), KEPT);
    }
}
