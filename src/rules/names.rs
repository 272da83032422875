//! Which names a backend can hold, which of them it takes for one and the same, and how the others are spelled there.
//!
//! A name of the mount is anything that Linux allows. What the backend cannot hold is spelled otherwise there: the *stored* name. It is
//! chosen when the name is made, so that no batch fails over it later. See [`NameRules::spellings`] for the way there and
//! [`NameRules::decode`] for the way back; both are pure.

mod mapping;
mod suffix;

pub use suffix::safe_names;

use unicode_normalization::UnicodeNormalization;

use crate::backend::Capabilities;
use crate::base::Name;
use crate::rules::upcase::upcase;
use crate::rules::{hidden, layout};

/// Why a backend cannot hold a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameRefusal {
    /// It is that of our own directory.
    #[error("the name .ferryfs at the root of a volume belongs to ferryfs")]
    Reserved,
    /// Another system uses it for itself.
    #[error("the name at the root of a volume belongs to another system")]
    System,
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
    #[error("the name has a length of {length}, the drive holds at most {max}")]
    TooLong {
        /// Its length in UTF-16 code units where the backend counts those, else in bytes.
        length: usize,
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
    form_insensitive: bool,
    utf8_only: bool,
    no_trailing_dot: bool,
    no_trailing_space: bool,
    max_utf16: Option<usize>,
    max_bytes: usize,
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
            form_insensitive: capabilities.form_insensitive,
            utf8_only: capabilities.utf8_only,
            no_trailing_dot: capabilities.no_trailing_dot,
            no_trailing_space: capabilities.no_trailing_space,
            max_utf16: capabilities.max_utf16,
            max_bytes: capabilities.max_bytes,
        }
    }

    /// Whether the backend can hold the stored name `name` in its root directory (`in_root`) or in another.
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
        if in_root && hidden::is_system_name(bytes) {
            return Err(NameRefusal::System);
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
        let (length, max) = self.measure(bytes);
        if length > max {
            return Err(NameRefusal::TooLong { length, max });
        }
        Ok(())
    }

    /// How long a name is, and how long it may be, both in what the backend counts.
    fn measure(&self, name: &[u8]) -> (usize, usize) {
        match self.max_utf16 {
            Some(max) => (utf16_units(name), max),
            None => (name.len(), self.max_bytes),
        }
    }

    /// The key by which names on the backend are told apart: no two names of one directory are stored under one key.
    ///
    /// Where the backend tells case and Unicode forms apart names are compared as they are, and the key, always empty, plays no role.
    ///
    /// Where it ignores case it is the name in upper case by the table that exFAT volumes carry, then decomposed (NFD), then in upper
    /// case again. The first step makes equal whatever exFAT takes for one name. The others add what differs only in its Unicode form,
    /// which exFAT keeps apart but macOS and some servers do not: such a pair could be told apart here and nowhere else. Where only
    /// forms are ignored it is the name decomposed. Bytes that are no UTF-8 stay as they are. It may be longer than a name may be.
    /// Other case-insensitive servers (SMB) compare the same but for letters of rare and of recent scripts.
    ///
    /// The index keeps keys: whenever another key would be made for a name, [`NameRules::fold_id`] has to change.
    pub fn fold(&self, name: &Name) -> Vec<u8> {
        let bytes = name.as_bytes();
        match (self.case_insensitive, self.form_insensitive) {
            (true, _) if bytes.is_ascii() => bytes.to_ascii_uppercase(),
            (true, _) => mapped(bytes, |text| {
                text.chars().map(upcase).nfd().map(upcase).collect()
            }),
            (false, true) => mapped(bytes, |text| text.nfd().collect()),
            (false, false) => Vec::new(),
        }
    }

    /// Says how [`NameRules::fold`] makes its keys: keys made under another identity are not to be compared with these.
    pub fn fold_id(&self) -> String {
        let (major, minor, update) = unicode_normalization::UNICODE_VERSION;
        match (self.case_insensitive, self.form_insensitive) {
            (true, _) => format!("exfat+nfd {major}.{minor}.{update}"),
            (false, true) => format!("nfd {major}.{minor}.{update}"),
            (false, false) => "none".into(),
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

/// `name` with each run of UTF-8 in it changed by `change`.
fn mapped(name: &[u8], change: impl Fn(&str) -> String) -> Vec<u8> {
    let mut key = Vec::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        key.extend_from_slice(change(chunk.valid()).as_bytes());
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
mod properties;
#[cfg(test)]
mod tests;
