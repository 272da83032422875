//! From a name of the mount to how the backend spells it, and back.
//!
//! The spelling is the one that rclone has published, whose users know it: what a backend refuses is replaced by a look-alike, and a
//! look-alike that is meant is quoted. Only what this backend refuses is replaced, and only what could be taken for a replacement is
//! quoted:
//!
//! | in the mount | on the backend |
//! |---|---|
//! | a printable character that is refused | its full-width form, U+FF01 to U+FF5E |
//! | a control character that is refused | its symbol, U+2401 to U+241F, U+2421 |
//! | a dot at the end, the dot of `.ferryfs` at the root | U+FF0E |
//! | a space at the end | U+2420 |
//! | a byte that is no UTF-8 | the quote and two upper-case hexadecimal digits |
//! | one of these look-alikes, where it stands for something | the quote and the look-alike |
//! | the quote, U+201B | twice the quote |
//!
//! A backend that refuses nothing has names as they are but for three kinds, which are spelled in full: `.ferryfs` at the root, what
//! looks like its replacement, and what holds the quote with a tilde, which looks like a suffix ([`super::suffix`]).

use std::borrow::Cow;

use super::{NameRules, suffix};
use crate::base::{Name, STORED_NAME_MAX};
use crate::rules::{hidden, layout};

/// Says that what follows is not what it looks like.
pub(super) const QUOTE: char = '\u{201b}';

/// The same in UTF-8.
pub(super) const QUOTE_BYTES: &[u8] = "\u{201b}".as_bytes();

/// What stands for a dot, in UTF-8.
const DOT_BYTES: &[u8] = "\u{ff0e}".as_bytes();

/// What stands for `byte` where it is refused.
fn look_alike(byte: u8) -> Option<char> {
    let code = match byte {
        0x01..=0x20 => 0x2400 + u32::from(byte),
        0x21..=0x7e => 0xfee0 + u32::from(byte),
        0x7f => 0x2421,
        _ => return None,
    };
    char::from_u32(code)
}

/// For which byte `c` would stand, were it refused.
fn stands_for(c: char) -> Option<u8> {
    let byte = match u32::from(c) {
        code @ 0x2401..=0x2420 => code - 0x2400,
        code @ 0xff01..=0xff5e => code - 0xfee0,
        0x2421 => 0x7f,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// What a name is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// A character.
    Char(char),
    /// A byte that is no UTF-8.
    Byte(u8),
}

impl Piece {
    /// Its length in bytes.
    pub(super) fn len(self) -> usize {
        match self {
            Piece::Char(c) => c.len_utf8(),
            Piece::Byte(_) => 1,
        }
    }
}

/// The pieces of `name`, in order.
pub(super) fn pieces(name: &[u8]) -> impl Iterator<Item = Piece> {
    name.utf8_chunks().flat_map(|chunk| {
        let bytes = chunk.invalid().iter().map(|&byte| Piece::Byte(byte));
        chunk.valid().chars().map(Piece::Char).chain(bytes)
    })
}

fn push(out: &mut Vec<u8>, c: char) {
    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

/// What is special about where a piece stands.
#[derive(Clone, Copy)]
struct Position {
    /// First in `.ferryfs` at the root, or in what looks like it.
    leads_ours: bool,
    /// Last in the name.
    last: bool,
}

impl NameRules {
    /// Every spelling under which `name` may be stored in the backend's root directory (`in_root`) or in another, the best first. The
    /// first one that is not taken is to be used: there is no end to them, so some are free.
    ///
    /// The first is the plain one unless it is too long, or in the root one that another system uses for itself
    /// ([`hidden::is_system_name`]); the others have a suffix. The three after it can be read back without help
    /// ([`NameRules::decode`]) unless they had to be cut. Those after these are for drives that somebody has filled with just these
    /// names.
    pub fn spellings(&self, name: &Name, in_root: bool) -> impl Iterator<Item = Name> {
        let bytes = name.as_bytes();
        let plain = self.spell(bytes, in_root).into_owned();
        let fits = self.fits(&plain) && !(in_root && hidden::is_system_name(&plain));
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

    /// Whether the best spelling of `name` is the name itself.
    pub fn is_plain(&self, name: &Name, in_root: bool) -> bool {
        let bytes = name.as_bytes();
        self.fits(bytes)
            && *self.spell(bytes, in_root) == *bytes
            && !(in_root && hidden::is_system_name(bytes))
    }

    /// The name of the mount whose spelling, one of the first [`suffix::READABLE`] of [`NameRules::spellings`] or the plain one,
    /// `stored` is. `None` if it is none of these: something else, or cut.
    ///
    /// So a name that comes out of this is stored under `stored` again if nothing else is in its way; and what is not, is taken for
    /// somebody else's and shown as it is.
    pub fn decode(&self, stored: &Name, in_root: bool) -> Option<Name> {
        let spelling = stored.as_bytes();
        if !self.fits(spelling) || (in_root && hidden::is_system_name(spelling)) {
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

    /// Whether the backend takes a name of this length.
    pub(super) fn fits(&self, spelling: &[u8]) -> bool {
        let (length, max) = self.measure(spelling);
        length <= max && spelling.len() <= STORED_NAME_MAX
    }

    /// Whether there are names that this backend does not hold as they are, in every directory.
    fn restricts(&self) -> bool {
        self.forbidden != 0
            || self.case_insensitive
            || self.form_insensitive
            || self.utf8_only
            || self.no_trailing_dot
            || self.no_trailing_space
    }

    /// Whether a name, in either spelling, is one in which quotes count. The same answer comes for both spellings of a name.
    fn quotes(&self, name: &[u8], in_root: bool) -> bool {
        self.restricts()
            || (in_root && resembles_ours(name))
            || (!name.is_ascii() && suffix::may_be_in(name))
    }

    /// `name` as it is stored, however long that is.
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

    /// `name` as it is stored where quotes count.
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

    /// Whether `byte` is refused there.
    fn replaces(&self, byte: u8, position: Position) -> bool {
        self.forbids(byte)
            || (byte == b'.' && (position.leads_ours || (position.last && self.no_trailing_dot)))
            || (byte == b' ' && position.last && self.no_trailing_space)
    }

    /// What `spelling`, which has no suffix, is read as.
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

/// Reads what stands after a quote; gives how many pieces that was.
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
        // Not of our making; it will not be taken for that, as what is read here would be spelled otherwise.
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

/// Whether `name` is `.ferryfs`, in any case and with the dot or its look-alike.
fn is_ours(name: &[u8]) -> bool {
    let rest = name.strip_prefix(b".").or(name.strip_prefix(DOT_BYTES));
    rest.is_some_and(|rest| {
        layout::DIR
            .strip_prefix('.')
            .is_some_and(|ours| rest.eq_ignore_ascii_case(ours.as_bytes()))
    })
}

/// Whether a name, with any number of quotes in front, is that of our own directory or stands for it.
fn resembles_ours(name: &[u8]) -> bool {
    let mut rest = name;
    while let Some(behind) = rest.strip_prefix(QUOTE_BYTES) {
        rest = behind;
    }
    is_ours(rest)
}
