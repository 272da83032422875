//! Which names a backend can hold, and which of them it takes for one and the same.
//!
//! Asked when a name is created, so that a script hears of it at once and no batch fails over it later.

use crate::backend::Capabilities;
use crate::base::Name;
use crate::rules::layout;
use crate::rules::upcase::upcase;

/// Why a backend cannot hold a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameRefusal {
    /// It is that of our own directory.
    #[error("the name .ferryfs at the root of a volume belongs to ferryfs")]
    Reserved,
    /// The backend takes UTF-8 only.
    #[error("the drive holds only names in UTF-8")]
    NotUtf8,
    /// It holds a character that the backend refuses.
    #[error("the drive holds no name with the character '{}'", byte.escape_ascii())]
    Forbidden {
        /// The first such byte.
        byte: u8,
    },
    /// The backend would drop the dot.
    #[error("the drive holds no name that ends with a dot")]
    TrailingDot,
    /// The backend would drop the space.
    #[error("the drive holds no name that ends with a space")]
    TrailingSpace,
    /// It is longer than the backend allows.
    #[error("the name has {units} UTF-16 units, the drive holds at most {max}")]
    TooLong {
        /// Its length in UTF-16 code units.
        units: usize,
        /// The longest that the backend holds.
        max: usize,
    },
}

/// The rules for names of one backend.
#[derive(Clone, Debug)]
pub struct NameRules {
    /// One bit for each byte below 0x80 that no name may hold.
    forbidden: u128,
    case_insensitive: bool,
    utf8_only: bool,
    no_trailing_dot: bool,
    no_trailing_space: bool,
    max_utf16: Option<usize>,
}

impl NameRules {
    /// The rules of a backend with these capabilities.
    pub fn new(capabilities: &Capabilities) -> NameRules {
        let forbidden = capabilities
            .forbidden
            .iter()
            .filter(|byte| byte.is_ascii())
            .fold(0, |set, &byte| set | 1 << byte);
        NameRules {
            forbidden,
            case_insensitive: capabilities.case_insensitive,
            utf8_only: capabilities.utf8_only,
            no_trailing_dot: capabilities.no_trailing_dot,
            no_trailing_space: capabilities.no_trailing_space,
            max_utf16: capabilities.max_utf16,
        }
    }

    /// Whether the backend can hold `name`, unchanged, in its root directory (`in_root`) or in another.
    ///
    /// `.ferryfs` is refused in the root in upper and lower case on every backend, as in [`layout::is_reserved`].
    ///
    /// # Errors
    /// The first reason why not.
    pub fn check(&self, name: &Name, in_root: bool) -> Result<(), NameRefusal> {
        let bytes = name.as_bytes();
        if in_root && is_reserved(bytes) {
            return Err(NameRefusal::Reserved);
        }
        if self.utf8_only && std::str::from_utf8(bytes).is_err() {
            return Err(NameRefusal::NotUtf8);
        }
        if let Some(&byte) = bytes.iter().find(|&&byte| self.forbids(byte)) {
            return Err(NameRefusal::Forbidden { byte });
        }
        match bytes.last() {
            Some(b'.') if self.no_trailing_dot => return Err(NameRefusal::TrailingDot),
            Some(b' ') if self.no_trailing_space => return Err(NameRefusal::TrailingSpace),
            _ => {}
        }
        match self.max_utf16 {
            Some(max) if utf16_units(bytes) > max => Err(NameRefusal::TooLong {
                units: utf16_units(bytes),
                max,
            }),
            _ => Ok(()),
        }
    }

    /// The key by which the backend compares names: within one directory two names are one there if and only if their
    /// keys are equal, provided the backend is case-insensitive.
    ///
    /// On a case-sensitive backend names are compared as they are and the key, always empty, plays no role.
    ///
    /// Otherwise it is the name in upper case by the table that exFAT volumes carry, a character of the BMP at a time,
    /// without Unicode normalization. Bytes that are no UTF-8 stay as they are. It may be longer than a name may be.
    /// Other case-insensitive servers (SMB) compare the same but for letters of rare and of recent scripts.
    pub fn fold(&self, name: &Name) -> Vec<u8> {
        if self.case_insensitive {
            upcased(name.as_bytes())
        } else {
            Vec::new()
        }
    }

    fn forbids(&self, byte: u8) -> bool {
        byte.is_ascii() && self.forbidden & (1 << byte) != 0
    }
}

/// Whether a name in the root directory is that of our own directory, in upper or lower case.
pub(super) fn is_reserved(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(layout::DIR.as_bytes())
}

fn upcased(name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            key.extend_from_slice(upcase(c).encode_utf8(&mut [0; 4]).as_bytes());
        }
        key.extend_from_slice(chunk.invalid());
    }
    key
}

/// Length in UTF-16 code units; a byte that is no UTF-8 counts as one.
fn utf16_units(name: &[u8]) -> usize {
    name.utf8_chunks()
        .map(|chunk| {
            chunk.valid().chars().map(char::len_utf16).sum::<usize>() + chunk.invalid().len()
        })
        .sum()
}

#[cfg(test)]
mod tests;
