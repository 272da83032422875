//! The names that a backend can store, those that it considers equal, and the spelling of all
//! others.
//!
//! A name of the mount is any name that Linux allows. A name that the backend cannot store has
//! another spelling there, the *stored name*. It is chosen when the name is created, so that no
//! later batch fails because of it. [`NameRules::spellings`] encodes and [`NameRules::decode`]
//! decodes; both are pure.

mod mapping;
#[cfg(test)]
mod properties;
mod suffix;
pub mod system_names;
pub(crate) mod upcase;

pub use crate::plan::names::suffix::safe_names;

use unicode_normalization::UnicodeNormalization;

use crate::core::{Capabilities, Name};
use crate::format::layout;
use crate::plan::names::upcase::upcase;

/// Why a backend cannot store a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameRefusal {
    /// It is that of the directory of ferryfs.
    #[error("the name .ferryfs at the root of a volume belongs to ferryfs")]
    Reserved,
    /// Another system uses it.
    #[error("the name at the root of a volume belongs to another system")]
    System,
    /// The backend accepts UTF-8 only.
    #[error("the drive holds only names in UTF-8")]
    NotUtf8,
    /// It contains a character that the backend refuses.
    #[error("the drive holds no name with the character '{}'", byte.escape_ascii())]
    Forbidden {
        /// The first refused byte.
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
        /// Its length in UTF-16 code units if the backend counts those, else in bytes.
        length: usize,
        /// The longest length on the backend.
        max: usize,
    },
}

/// The spellings that a backend may consider equal to a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variants {
    /// There are none.
    None,
    /// Only those in another case of ASCII letters.
    Case,
    /// Others, too.
    Any,
}

/// The rules for names of one backend.
#[derive(Clone, Debug)]
pub struct NameRules {
    /// One bit for each byte below 0x80 that names must not contain.
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
    /// Returns the rules of a backend with these capabilities.
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

    /// Checks that the backend can store the stored name `name`, in its root directory (`in_root`)
    /// or another.
    ///
    /// `.ferryfs` in the root is refused in upper and lower case on every backend, as in
    /// [`layout::is_reserved`].
    ///
    /// # Errors
    /// The first reason against it.
    pub fn check(&self, name: &Name, in_root: bool) -> Result<(), NameRefusal> {
        let bytes = name.as_bytes();
        if in_root && layout::is_reserved_name(bytes) {
            return Err(NameRefusal::Reserved);
        }
        if in_root && system_names::is_system_name(bytes) {
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

    /// Returns the length of a name and the longest length, both in the backend's unit.
    fn measure(&self, name: &[u8]) -> (usize, usize) {
        match self.max_utf16 {
            Some(max) => (utf16_units(name), max),
            None => (name.len(), self.max_bytes),
        }
    }

    /// Returns the key that identifies a name on the backend: no two names of one directory are
    /// stored with the same key.
    ///
    /// If the backend distinguishes case and Unicode forms, names are compared unchanged, and the
    /// key is always empty and unused.
    ///
    /// If it ignores case, the key is the name in upper case by the table of exFAT volumes,
    /// decomposed (NFD), and again in upper case. The first step makes names equal that exFAT
    /// considers equal. The others add names that differ only in their Unicode form, which exFAT
    /// distinguishes but macOS and some servers do not: such a pair could not be distinguished
    /// there. If only forms are ignored, the key is the decomposed name. Bytes that are not UTF-8
    /// are unchanged. The key may be longer than a name. Other case-insensitive servers (SMB)
    /// compare in the same way except for letters of rare and recent scripts.
    ///
    /// The index stores keys: a change of the keys needs a change of [`NameRules::fold_id`].
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

    /// Returns which other names have the same key as `name`.
    ///
    /// An ASCII name may equal one with other characters: decomposed, the Kelvin sign is a `K`, the
    /// Greek question mark a semicolon, and the Greek varia a backtick.
    pub fn variants(&self, name: &Name) -> Variants {
        let bytes = name.as_bytes();
        let is_plain = |byte: &u8| byte.is_ascii() && !matches!(byte, b'K' | b'k' | b';' | b'`');
        let (cases, forms) = (self.case_insensitive, self.form_insensitive);
        if !cases && !forms {
            Variants::None
        } else if !bytes.iter().all(is_plain) {
            Variants::Any
        } else if cases && bytes.iter().any(u8::is_ascii_alphabetic) {
            Variants::Case
        } else {
            Variants::None
        }
    }

    /// Identifies how [`NameRules::fold`] makes keys. Keys made under different identities must not
    /// be compared.
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

/// Applies `change` to each run of UTF-8 in `name`.
fn mapped(name: &[u8], change: impl Fn(&str) -> String) -> Vec<u8> {
    let mut key = Vec::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        key.extend_from_slice(change(chunk.valid()).as_bytes());
        key.extend_from_slice(chunk.invalid());
    }
    key
}

/// Returns the length in UTF-16 code units; a byte that is not UTF-8 counts as one.
fn utf16_units(name: &[u8]) -> usize {
    name.utf8_chunks()
        .map(|chunk| {
            chunk.valid().chars().map(char::len_utf16).sum::<usize>() + chunk.invalid().len()
        })
        .sum()
}

#[cfg(test)]
mod tests;
