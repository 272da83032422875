//! Mutations that a number brings back: what a worn medium and what somebody with a hex editor
//! does.

use crate::engine::rng::Rng;

/// Longest input that is made.
const LONGEST: usize = 64 << 10;

/// Values that lengths, counts and times are set to.
const EXTREMES: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

/// Names the case if its check panics.
pub struct Case(String);

impl Case {
    pub fn new(target: &str, name: &str, number: Option<u64>) -> Case {
        Case(match number {
            None => format!("seed {target}/{name}"),
            Some(number) => format!("mutation {number} of {target}/{name}"),
        })
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed on {}", self.0);
        }
    }
}

/// The same for the same seed file and number, whatever else there is.
pub fn seed_of(name: &str, number: u64) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325_u64 ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    name.bytes().fold(start, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

pub struct Mutator(Rng);

impl Mutator {
    pub fn new(seed: u64) -> Mutator {
        Mutator(Rng::new(seed))
    }

    /// `bytes` after one to four changes; pieces come from `others`.
    pub fn mutate(mut self, bytes: &[u8], others: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.0.below(4) {
            self.change(&mut bytes, others);
            bytes.truncate(LONGEST);
        }
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
        let rng = &mut self.0;
        let at = rng.below(bytes.len());
        match rng.below(8) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << rng.below(8),
            1 if !bytes.is_empty() => bytes[at] = rng.next() as u8,
            2 => bytes.truncate(at),
            // A length, a count or a time, of every width.
            3 | 4 => {
                let value = rng.pick(&EXTREMES).to_le_bytes();
                let width = rng.pick(&[2, 4, 8]);
                let end = bytes.len().min(at + width);
                bytes[at..end].copy_from_slice(&value[..end - at]);
            }
            5 => {
                let end = at + rng.below(bytes.len() - at + 1);
                bytes.drain(at..end);
            }
            6 => {
                let end = at + rng.below(bytes.len() - at + 1);
                let piece = bytes[at..end].to_vec();
                let to = rng.below(bytes.len() + 1);
                bytes.splice(to..to, piece);
            }
            _ => {
                let other = rng.pick(others);
                let from = rng.below(other.len());
                let end = from + rng.below(other.len() - from + 1);
                bytes.splice(at..at, other[from..end].iter().copied());
            }
        }
    }
}
