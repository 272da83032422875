//! The suffix of a stored name that would otherwise be taken or too long: the quote, a tilde, and
//! digits of the hash of the name in the mount, before the extension: `stem‛~3f2a91c0.ext`.
//!
//! Nothing else makes a quote followed by a tilde, because a literal quote is doubled. If the stem
//! was not cut, the name can be decoded, and the hash proves it.

use crate::core::{NAME_MAX, Name};
use crate::plan::names::mapping::{Piece, QUOTE, QUOTE_BYTES, pieces};

/// The number of digits in the suffixes that can be decoded, in the order in which they are tried.
pub(super) const READABLE: [usize; 3] = [8, 16, 32];

/// The number of digits in all later suffixes.
const MOST: usize = 40;

/// The character between the quote and the digits.
const MARK: u8 = b'~';

/// The longest extension that stays in its place, in characters, without its dot.
const MAX_EXTENSION: usize = 16;

/// Returns the digits of suffix number `round` of `name`.
pub(super) fn digits(name: &[u8], round: u64) -> Vec<u8> {
    let known = usize::try_from(round).ok().and_then(|n| READABLE.get(n));
    match known {
        Some(&count) => hash(name, count),
        // Names contain no slash, so these digits belong to no other name.
        None => hash(&[name, b"/", round.to_string().as_bytes()].concat(), MOST),
    }
}

/// Returns the first `count` digits of the hash of `bytes`.
pub(super) fn hash(bytes: &[u8], count: usize) -> Vec<u8> {
    let hex = blake3::hash(bytes).to_hex();
    hex.as_bytes()[..count.min(hex.len())].to_vec()
}

/// Returns whether these are digits of a suffix of `name` that can be decoded.
pub(super) fn is_of(digits: &[u8], name: &[u8]) -> bool {
    READABLE.contains(&digits.len()) && hash(name, digits.len()) == digits
}

/// Returns whether `name` contains the beginning of a suffix.
pub(super) fn may_be_in(name: &[u8]) -> bool {
    name.windows(QUOTE_BYTES.len() + 1)
        .any(|at| at.starts_with(QUOTE_BYTES) && at.ends_with(&[MARK]))
}

/// Adds a suffix to `spelling`, in which quotes have a meaning, and cuts it if it would be too
/// long.
pub(super) fn attach(spelling: &[u8], digits: &[u8], fits: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let (mut stem, extension) = split_extension(spelling);
    let mark = [QUOTE_BYTES, &[MARK], digits].concat();
    let mut tail = [&mark[..], extension].concat();
    if !fits(&tail) {
        (stem, tail) = (spelling, mark);
    }
    let mut whole = Vec::with_capacity(stem.len() + tail.len());
    for token in tokens(stem) {
        let before = whole.len();
        whole.extend_from_slice(token);
        let length = whole.len();
        whole.extend_from_slice(&tail);
        if !fits(&whole) {
            whole.truncate(before);
            break;
        }
        whole.truncate(length);
    }
    whole.extend_from_slice(&tail);
    whole
}

/// Returns names under which a mount can show the backend's `stored` if no better one is available:
/// the best first, without end.
pub fn safe_names(stored: &Name) -> impl Iterator<Item = Name> {
    (0..).filter_map(|round| {
        let digits = digits(stored.as_bytes(), round);
        let fits = |name: &[u8]| name.len() <= NAME_MAX;
        Name::of_mount(&attach(stored.as_bytes(), &digits, fits)).ok()
    })
}

/// Returns `spelling` without its suffix, and the digits of the suffix; `None` if it has none.
pub(super) fn detach(spelling: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut at = 0;
    for token in tokens(spelling) {
        if token == [QUOTE_BYTES, &[MARK]].concat() {
            let behind = spelling.get(at + token.len()..)?;
            let count = behind
                .iter()
                .take_while(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
                .count();
            let (digits, rest) = behind.split_at(count);
            let is_whole = READABLE.contains(&count) && (rest.is_empty() || rest[0] == b'.');
            return is_whole.then(|| ([&spelling[..at], rest].concat(), digits));
        }
        at += token.len();
    }
    None
}

/// Returns the parts that must not be cut: a piece, with the quote before it if there is one.
fn tokens(spelling: &[u8]) -> Vec<&[u8]> {
    let all: Vec<Piece> = pieces(spelling).collect();
    let (mut tokens, mut at, mut rest) = (Vec::new(), 0, spelling);
    while at < all.len() {
        let count = match all[at..] {
            // The two digits of a byte.
            [
                Piece::Char(QUOTE),
                Piece::Char('0'..='9' | 'A'..='F'),
                _,
                ..,
            ] => 3,
            [Piece::Char(QUOTE), _, ..] => 2,
            _ => 1,
        };
        let length = all[at..at + count].iter().map(|piece| piece.len()).sum();
        let (token, behind) = rest.split_at(length);
        tokens.push(token);
        rest = behind;
        at += count;
    }
    tokens
}

/// Returns the stem, which is never empty, and the extension with its dot, empty if there is none.
fn split_extension(spelling: &[u8]) -> (&[u8], &[u8]) {
    let dot = spelling.iter().rposition(|&b| b == b'.').filter(|&dot| {
        let length = pieces(&spelling[dot + 1..]).count();
        dot > 0 && (1..=MAX_EXTENSION).contains(&length)
    });
    spelling.split_at(dot.unwrap_or(spelling.len()))
}
