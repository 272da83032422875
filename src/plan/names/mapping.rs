//! Maps a name of the mount to its spelling on the backend, and back.
//!
//! The spelling is that of rclone, which users know: a character that the backend refuses is
//! replaced by a look-alike, and a literal look-alike is quoted. Only characters that this backend
//! refuses are replaced, and only characters that could be taken for replacements are quoted:
//!
//! | in the mount | on the backend |
//! |---|---|
//! | a refused printable character | its full-width form, U+FF01 to U+FF5E |
//! | a refused control character | its symbol, U+2401 to U+241F, U+2421 |
//! | a dot at the end, the dot of `.ferryfs` at the root | U+FF0E |
//! | a space at the end | U+2420 |
//! | a byte that is not UTF-8 | the quote and two upper-case hexadecimal digits |
//! | one of these look-alikes, where it would be decoded | the quote and the look-alike |
//! | the quote, U+201B | the quote twice |
//!
//! A backend without restrictions stores names unchanged, with three exceptions that follow the
//! full table: `.ferryfs` at the root, names like its replacement, and names with the quote and a
//! tilde, which look like a suffix ([`crate::plan::names::suffix`]).

use std::borrow::Cow;

use crate::core::{Name, STORED_NAME_MAX};
use crate::format::layout;
use crate::plan::names::{NameRules, suffix, system_names};

/// Marks the next character as literal, or as a byte.
pub(super) const QUOTE: char = '\u{201b}';

/// The same in UTF-8.
pub(super) const QUOTE_BYTES: &[u8] = "\u{201b}".as_bytes();

/// The replacement of a dot, in UTF-8.
const DOT_BYTES: &[u8] = "\u{ff0e}".as_bytes();

/// Returns the replacement of `byte` where it is refused.
fn look_alike(byte: u8) -> Option<char> {
    let code = match byte {
        0x01..=0x20 => 0x2400 + u32::from(byte),
        0x21..=0x7e => 0xfee0 + u32::from(byte),
        0x7f => 0x2421,
        _ => return None,
    };
    char::from_u32(code)
}

/// Returns the byte that `c` replaces where that byte is refused.
fn stands_for(c: char) -> Option<u8> {
    let byte = match u32::from(c) {
        code @ 0x2401..=0x2420 => code - 0x2400,
        code @ 0xff01..=0xff5e => code - 0xfee0,
        0x2421 => 0x7f,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// A part of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// A character.
    Char(char),
    /// A byte that is not UTF-8.
    Byte(u8),
}

impl Piece {
    /// Returns its length in bytes.
    pub(super) fn len(self) -> usize {
        match self {
            Piece::Char(c) => c.len_utf8(),
            Piece::Byte(_) => 1,
        }
    }
}

/// Returns the pieces of `name`, in order.
pub(super) fn pieces(name: &[u8]) -> impl Iterator<Item = Piece> {
    name.utf8_chunks().flat_map(|chunk| {
        let bytes = chunk.invalid().iter().map(|&byte| Piece::Byte(byte));
        chunk.valid().chars().map(Piece::Char).chain(bytes)
    })
}

fn push(out: &mut Vec<u8>, c: char) {
    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

/// The properties of a piece's position.
#[derive(Clone, Copy)]
struct Position {
    /// First in `.ferryfs` at the root, or in a name like it.
    leads_ours: bool,
    /// Last in the name.
    last: bool,
}

impl NameRules {
    /// Returns every spelling of `name` for the backend's root directory (`in_root`) or another,
    /// the best first. The caller uses the first free one; the sequence is endless, so there is
    /// one.
    ///
    /// The first is the plain spelling, unless it is too long or, in the root, another system uses
    /// it ([`system_names::is_system_name`]). The others have a suffix. The next three can be
    /// decoded by [`NameRules::decode`] unless they were cut. The rest serves drives on which
    /// exactly these names are taken.
    pub fn spellings(&self, name: &Name, in_root: bool) -> impl Iterator<Item = Name> {
        let bytes = name.as_bytes();
        let plain = self.spell(bytes, in_root).into_owned();
        let fits = self.fits(&plain) && !(in_root && system_names::is_system_name(&plain));
        let full = self.spell_in_full(bytes, in_root);
        let name = name.clone();
        let suffixed = (0..).map(move |round| {
            let digits = suffix::digits(name.as_bytes(), round);
            suffix::attach(&full, &digits, |all| self.fits(all))
        });
        let plain = fits.then_some(plain).into_iter();
        plain
            .chain(suffixed)
            .filter_map(|spelling| Name::new(&spelling).ok())
    }

    /// Returns whether the best spelling of `name` is the name itself.
    pub fn is_plain(&self, name: &Name, in_root: bool) -> bool {
        let bytes = name.as_bytes();
        self.fits(bytes)
            && *self.spell(bytes, in_root) == *bytes
            && !(in_root && system_names::is_system_name(bytes))
    }

    /// Returns the name of the mount for `stored`, if `stored` is its plain spelling or one of the
    /// first [`suffix::READABLE`] of [`NameRules::spellings`]; `None` for any other name, or one
    /// that was cut.
    ///
    /// A decoded name is therefore stored as `stored` again if that is free. Any other name is
    /// taken for another program's and shown unchanged.
    pub fn decode(&self, stored: &Name, in_root: bool) -> Option<Name> {
        let spelling = stored.as_bytes();
        if !self.fits(spelling) || (in_root && system_names::is_system_name(spelling)) {
            return None;
        }
        let Some((full, digits)) =
            suffix::detach(spelling).filter(|_| self.quotes(spelling, in_root))
        else {
            let name = Name::of_mount(&self.read(spelling, in_root)).ok()?;
            let again = self.spell(name.as_bytes(), in_root);
            return (*again == *spelling).then_some(name);
        };
        let name = Name::of_mount(&self.read_in_full(&full, in_root)).ok()?;
        let again = self.spell_in_full(name.as_bytes(), in_root);
        let matches = suffix::is_of(digits, name.as_bytes())
            && suffix::attach(&again, digits, |all| self.fits(all)) == spelling;
        matches.then_some(name)
    }

    /// Returns whether the backend accepts a name of this length.
    pub(super) fn fits(&self, spelling: &[u8]) -> bool {
        let (length, max) = self.measure(spelling);
        length <= max && spelling.len() <= STORED_NAME_MAX
    }

    /// Returns whether the backend cannot store some names unchanged, in any directory.
    fn restricts(&self) -> bool {
        self.forbidden != 0
            || self.case_insensitive
            || self.form_insensitive
            || self.utf8_only
            || self.no_trailing_dot
            || self.no_trailing_space
    }

    /// Returns whether quotes have a meaning in a name, in either spelling. The answer is the same
    /// for both spellings.
    fn quotes(&self, name: &[u8], in_root: bool) -> bool {
        self.restricts()
            || (in_root && resembles_ours(name))
            || (!name.is_ascii() && suffix::may_be_in(name))
    }

    /// Returns the spelling of `name`, of any length.
    pub(super) fn spell<'a>(&self, name: &'a [u8], in_root: bool) -> Cow<'a, [u8]> {
        let special = !name.is_ascii()
            || name.iter().any(|&byte| self.forbids(byte))
            || matches!(name.last(), Some(b'.' | b' '))
            || (in_root && resembles_ours(name));
        if !special || !self.quotes(name, in_root) {
            return Cow::Borrowed(name);
        }
        Cow::Owned(self.spell_in_full(name, in_root))
    }

    /// Returns the spelling of `name` where quotes have a meaning.
    pub(super) fn spell_in_full(&self, name: &[u8], in_root: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(name.len() + 16);
        let ours = in_root && is_ours(name);
        let mut end = 0;
        for piece in pieces(name) {
            let position = Position {
                leads_ours: ours && end == 0,
                last: end + piece.len() == name.len(),
            };
            end += piece.len();
            match piece {
                Piece::Byte(byte) if self.utf8_only => {
                    push(&mut out, QUOTE);
                    out.extend_from_slice(format!("{byte:02X}").as_bytes());
                }
                Piece::Byte(byte) => out.push(byte),
                Piece::Char(c) => self.spell_char(c, position, &mut out),
            }
        }
        out
    }

    fn spell_char(&self, c: char, position: Position, out: &mut Vec<u8>) {
        let replaced = u8::try_from(c).ok().filter(|&b| self.replaces(b, position));
        if let Some(other) = replaced.and_then(look_alike) {
            return push(out, other);
        }
        if c == QUOTE || stands_for(c).is_some_and(|byte| self.replaces(byte, position)) {
            push(out, QUOTE);
        }
        push(out, c);
    }

    /// Returns whether `byte` is refused at this position.
    fn replaces(&self, byte: u8, position: Position) -> bool {
        self.forbids(byte)
            || (byte == b'.' && (position.leads_ours || (position.last && self.no_trailing_dot)))
            || (byte == b' ' && position.last && self.no_trailing_space)
    }

    /// Decodes `spelling`, which has no suffix.
    fn read<'a>(&self, spelling: &'a [u8], in_root: bool) -> Cow<'a, [u8]> {
        if spelling.is_ascii() || !self.quotes(spelling, in_root) {
            return Cow::Borrowed(spelling);
        }
        Cow::Owned(self.read_in_full(spelling, in_root))
    }

    fn read_in_full(&self, spelling: &[u8], in_root: bool) -> Vec<u8> {
        let all: Vec<Piece> = pieces(spelling).collect();
        let ours = in_root && is_ours(spelling);
        let mut out = Vec::with_capacity(spelling.len());
        let mut at = 0;
        while let Some(&piece) = all.get(at) {
            let position = Position {
                leads_ours: ours && at == 0,
                last: at + 1 == all.len(),
            };
            at += 1;
            match piece {
                Piece::Byte(byte) => out.push(byte),
                Piece::Char(QUOTE) => at += read_quoted(&all[at..], &mut out),
                Piece::Char(c) => match stands_for(c).filter(|&b| self.replaces(b, position)) {
                    Some(byte) => out.push(byte),
                    None => push(&mut out, c),
                },
            }
        }
        out
    }
}

/// Decodes what follows a quote, and returns the number of pieces.
fn read_quoted(rest: &[Piece], out: &mut Vec<u8>) -> usize {
    match rest {
        [Piece::Char(c), ..] if *c == QUOTE || stands_for(*c).is_some() => {
            push(out, *c);
            1
        }
        [Piece::Char(high), Piece::Char(low), ..] => match upper_hex(*high, *low) {
            Some(byte) => {
                out.push(byte);
                2
            }
            None => {
                push(out, QUOTE);
                0
            }
        },
        // Not a spelling of ferryfs. It is not mistaken for one, because the result would be
        // spelled differently.
        _ => {
            push(out, QUOTE);
            0
        }
    }
}

fn upper_hex(high: char, low: char) -> Option<u8> {
    let digit = |c: char| c.to_digit(16).filter(|_| !c.is_ascii_lowercase());
    u8::try_from(digit(high)? << 4 | digit(low)?).ok()
}

/// Returns whether `name` is `.ferryfs`, in any case, with the dot or its look-alike.
fn is_ours(name: &[u8]) -> bool {
    let rest = name.strip_prefix(b".").or(name.strip_prefix(DOT_BYTES));
    rest.is_some_and(|rest| {
        layout::DIR
            .strip_prefix('.')
            .is_some_and(|ours| rest.eq_ignore_ascii_case(ours.as_bytes()))
    })
}

/// Returns whether a name, after any number of quotes, is that of the directory of ferryfs or its
/// replacement.
fn resembles_ours(name: &[u8]) -> bool {
    let mut rest = name;
    while let Some(behind) = rest.strip_prefix(QUOTE_BYTES) {
        rest = behind;
    }
    is_ours(rest)
}
