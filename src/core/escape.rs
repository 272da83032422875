//! Output of text that another user may have chosen, to a terminal, the log or a report.
//!
//! The name of a file, host, program or volume may contain escape sequences for the terminal, a
//! line feed that forges a log line, characters that reverse or hide the text after them, and bytes
//! that are not UTF-8. There are three forms of output:
//!
//! - For people, a name is written through [`ForeignText::escaped`]: a character that a terminal
//!   does not display is written as `\n`, `\r`, `\t`, `\x1b`, `\u{202e}`; a byte that is not UTF-8
//!   as `\xff`; a backslash as `\\`. Different names stay different.
//! - For programs (the control protocol, JSON), a name is [`ForeignText::to_text`]: unchanged if it
//!   is UTF-8. Each other byte `0xNN` becomes the character U+10FFNN, so that different names stay
//!   different here too.
//! - Every line for a terminal or the log passes through [`printable`] or [`printable_lines`] last.
//!   These do not change text that is already escaped.

use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write as _};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::core::{Name, RelPath};

/// The characters for the bytes 0x80 to 0xff of a name that is not UTF-8, see
/// [`ForeignText::to_text`].
const BYTES: std::ops::RangeInclusive<char> = '\u{10ff80}'..='\u{10ffff}';

/// A name that another user may have chosen.
pub trait ForeignText {
    /// Returns the name for people, on one line. [`Display`](fmt::Display) writes it.
    fn escaped(&self) -> Escaped<'_>;

    /// Returns the exact name as text, for programs.
    fn to_text(&self) -> String;
}

/// A name for people, on one line. All characters that a terminal does not display are escaped.
#[derive(Clone, Copy)]
pub struct Escaped<'a>(Form<'a>);

#[derive(Clone, Copy)]
enum Form<'a> {
    Bytes(&'a [u8]),
    /// In the form of [`ForeignText::to_text`].
    Text(&'a str),
}

impl ForeignText for [u8] {
    fn escaped(&self) -> Escaped<'_> {
        Escaped(Form::Bytes(self))
    }

    fn to_text(&self) -> String {
        let mut text = String::with_capacity(self.len());
        let byte = |b: &u8| char::from_u32(0x10_ff00 | u32::from(*b)).unwrap_or('\u{fffd}');
        for chunk in self.utf8_chunks() {
            for c in chunk.valid().chars() {
                match BYTES.contains(&c) {
                    true => text.extend(c.encode_utf8(&mut [0; 4]).as_bytes().iter().map(byte)),
                    false => text.push(c),
                }
            }
            text.extend(chunk.invalid().iter().map(byte));
        }
        text
    }
}

impl ForeignText for OsStr {
    fn escaped(&self) -> Escaped<'_> {
        self.as_bytes().escaped()
    }

    fn to_text(&self) -> String {
        self.as_bytes().to_text()
    }
}

impl ForeignText for Path {
    fn escaped(&self) -> Escaped<'_> {
        self.as_os_str().escaped()
    }

    fn to_text(&self) -> String {
        self.as_os_str().to_text()
    }
}

impl ForeignText for Name {
    fn escaped(&self) -> Escaped<'_> {
        self.as_bytes().escaped()
    }

    fn to_text(&self) -> String {
        self.as_bytes().to_text()
    }
}

impl ForeignText for RelPath {
    fn escaped(&self) -> Escaped<'_> {
        self.as_bytes().escaped()
    }

    fn to_text(&self) -> String {
        self.as_bytes().to_text()
    }
}

/// Text in the form of [`ForeignText::to_text`], for example from a report.
impl ForeignText for str {
    fn escaped(&self) -> Escaped<'_> {
        Escaped(Form::Text(self))
    }

    fn to_text(&self) -> String {
        self.to_owned()
    }
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Form::Text(text) => text.chars().try_for_each(|c| escape_name(f, c)),
            Form::Bytes(bytes) => bytes.utf8_chunks().try_for_each(|chunk| {
                for c in chunk.valid().chars() {
                    match BYTES.contains(&c) {
                        true => escape_bytes(f, c.encode_utf8(&mut [0; 4]).as_bytes())?,
                        false => escape_name(f, c)?,
                    }
                }
                escape_bytes(f, chunk.invalid())
            }),
        }
    }
}

/// In quotes, as in assertions and debug output.
impl fmt::Debug for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Quotes `path` for a shell. If it contains characters that are not displayed, the form is
/// `$'...'`, which bash, ksh and zsh understand.
///
/// # Examples
///
/// ```
/// use std::path::Path;
///
/// use ferryfs::core::quoted;
///
/// assert_eq!(quoted(Path::new("/media/HDD")), "/media/HDD");
/// assert_eq!(quoted(Path::new("/media/My Drive")), "'/media/My Drive'");
/// assert_eq!(quoted(Path::new("a\nb")), r"$'a\x0ab'");
/// ```
pub fn quoted(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    let Some(text) = str::from_utf8(bytes)
        .ok()
        .filter(|text| !text.contains(is_hidden))
    else {
        return quoted_bytes(bytes);
    };
    let plain = |c: char| c.is_alphanumeric() || "/._-+,:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn quoted_bytes(bytes: &[u8]) -> String {
    let inner: String = (bytes.iter())
        .map(|&byte| match byte {
            b'\'' | b'\\' => format!("\\{}", char::from(byte)),
            b' '..=b'~' => char::from(byte).to_string(),
            _ => format!("\\x{byte:02x}"),
        })
        .collect();
    format!("$'{inner}'")
}

/// Returns the path that [`ForeignText::to_text`] converted to `text`.
pub fn path_of_text(text: &str) -> PathBuf {
    OsString::from_vec(bytes_of_text(text)).into()
}

fn bytes_of_text(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for c in text.chars() {
        match BYTES.contains(&c) {
            // The last eight bits are the byte.
            true => bytes.push(u32::from(c) as u8),
            false => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

fn escape_name(out: &mut impl fmt::Write, c: char) -> fmt::Result {
    match c {
        '\\' => out.write_str("\\\\"),
        _ => escape_hidden(out, c),
    }
}

fn escape_bytes(out: &mut impl fmt::Write, bytes: &[u8]) -> fmt::Result {
    bytes
        .iter()
        .try_for_each(|byte| write!(out, "\\x{byte:02x}"))
}

fn escape_hidden(out: &mut impl fmt::Write, c: char) -> fmt::Result {
    match c {
        '\n' => out.write_str("\\n"),
        '\r' => out.write_str("\\r"),
        '\t' => out.write_str("\\t"),
        _ if c.is_ascii_control() => write!(out, "\\x{:02x}", u32::from(c)),
        _ if BYTES.contains(&c) => write!(out, "\\x{:02x}", u32::from(c) & 0xff),
        _ if is_hidden(c) => write!(out, "\\u{{{:x}}}", u32::from(c)),
        _ => out.write_char(c),
    }
}

/// Returns whether a terminal interprets `c` or displays nothing for it: control characters (C0,
/// DEL, C1), line ends, changes of the writing direction, invisible joiners, separators and
/// fillers, and tags.
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || BYTES.contains(&c)
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
            | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// Returns `text` on one line, with all characters escaped that [`is_hidden`]. Text that is already
/// escaped does not change.
///
/// # Examples
///
/// ```
/// use ferryfs::core::printable;
///
/// assert_eq!(printable("one\ntwo"), r"one\ntwo");
/// // The terminal shows the escape sequence instead of obeying it.
/// assert_eq!(printable("\u{1b}[2J"), r"\x1b[2J");
/// assert_eq!(printable("photo\u{202e}gpj.exe"), r"photo\u{202e}gpj.exe");
/// ```
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        // Writing to a String cannot fail.
        let _ = escape_hidden(&mut shown, c);
    }
    shown
}

/// As [`printable`], for text of several lines: line feeds stay.
pub fn printable_lines(text: &str) -> String {
    let lines: Vec<String> = text.split('\n').map(printable).collect();
    lines.join("\n")
}

/// As [`printable`], for bytes from another program.
pub fn printable_bytes(bytes: &[u8]) -> String {
    printable(&bytes.to_text())
}

/// Escapes all characters in strings of `json` that [`is_hidden`], as `\u202e`. The meaning stays
/// the same. Outside strings, `json` contains no such character except line feeds.
pub fn printable_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for c in json.chars() {
        match c != '\n' && is_hidden(c) {
            true => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(shown, "\\u{unit:04x}");
                }
            }
            false => shown.push(c),
        }
    }
    shown
}

/// Forwards another program's output, with all characters escaped that [`is_hidden`], except line
/// feeds. It forwards at once, except an incomplete character at the end.
#[derive(Debug)]
pub struct EscapingWriter<W> {
    to: W,
    begun: Vec<u8>,
}

impl<W: io::Write> EscapingWriter<W> {
    /// Returns a writer to `to`.
    pub fn new(to: W) -> EscapingWriter<W> {
        EscapingWriter {
            to,
            begun: Vec::new(),
        }
    }

    /// Writes an incomplete character at the end.
    ///
    /// # Errors
    /// If the write fails.
    pub fn finish(mut self) -> io::Result<()> {
        let rest = std::mem::take(&mut self.begun);
        self.pass_on(&rest)
    }

    fn pass_on(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to
            .write_all(printable_lines(&bytes.to_text()).as_bytes())?;
        self.to.flush()
    }
}

impl<W: io::Write> io::Write for EscapingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.begun.extend_from_slice(bytes);
        let all = std::mem::take(&mut self.begun);
        let whole = match std::str::from_utf8(&all) {
            // An invalid character counts as complete.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => all.len() - unfinished(&all),
            Ok(_) => all.len(),
        };
        self.begun = all[whole..].to_vec();
        self.pass_on(&all[..whole])?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Returns the number of bytes at the end of `bytes` that may begin a character.
fn unfinished(bytes: &[u8]) -> usize {
    let last = bytes
        .utf8_chunks()
        .last()
        .map_or(&[][..], |chunk| chunk.invalid());
    match std::str::from_utf8(last) {
        Err(error) if error.error_len().is_none() => last.len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    /// One of each kind.
    const HIDDEN: &str = "\0\x07\x08\t\n\r\x1b\x7f\u{80}\u{9b}\u{9f}\u{ad}\u{61c}\u{200b}\u{200c}\u{200d}\u{200e}\u{200f}\
        \u{2028}\u{2029}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2060}\u{2066}\u{2067}\u{2068}\u{2069}\u{3164}\u{feff}\
        \u{fff9}\u{e0001}\u{e0041}\u{e007f}\u{10ff80}\u{10ffff}";

    #[test]
    fn each_kind_of_hidden_character_is_hidden_and_what_people_write_is_not() {
        assert!(HIDDEN.chars().all(is_hidden));
        let plain = "A z0~\\'\"äß€日本語 Привет مرحبا שלום हिन्दी 한국어 e\u{301}❤\u{fe0f}🎬";
        assert!(!plain.chars().any(is_hidden), "{plain:?}");
    }

    #[test]
    fn a_name_is_written_as_documented() {
        let written = |bytes: &[u8]| bytes.escaped().to_string();
        assert_eq!(written(b"plain name.txt"), "plain name.txt");
        assert_eq!(written(b"a\n\t\r\x1b[2J\x7f"), "a\\n\\t\\r\\x1b[2J\\x7f");
        assert_eq!(
            written("\u{9b}2J\u{202e}gpj".as_bytes()),
            "\\u{9b}2J\\u{202e}gpj"
        );
        assert_eq!(written(b"\xff\x9b\\xff"), "\\xff\\x9b\\\\xff");
        let text = b"\xff\x9b\\xff".to_text();
        assert_eq!(text.escaped().to_string(), written(b"\xff\x9b\\xff"));
        assert_eq!(text, "\u{10ffff}\u{10ff9b}\\xff");
        assert_eq!(written("\u{10ffff}".as_bytes()), "\\xf4\\x8f\\xbf\\xbf");
    }

    #[test]
    fn nothing_hidden_is_left_in_a_line_and_a_second_time_changes_nothing() {
        let once = printable(HIDDEN);
        assert!(!once.chars().any(is_hidden), "{once}");
        assert_eq!(printable(&once), once);
        assert_eq!(printable("C:\\dir"), "C:\\dir");
        assert_eq!(printable_lines("a\x1b\nb\r\n"), "a\\x1b\nb\\r\n");
        let name = HIDDEN.escaped().to_string();
        assert_eq!(printable(&name), name);
    }

    #[test]
    fn json_means_the_same_when_it_can_be_printed() {
        let json = serde_json::to_string_pretty(&[HIDDEN, "plain ä"]).unwrap();
        let shown = printable_json(&json);
        assert!(!shown.chars().any(|c| c != '\n' && is_hidden(c)), "{shown}");
        let back: Vec<String> = serde_json::from_str(&shown).unwrap();
        assert_eq!(back, [HIDDEN, "plain ä"]);
    }

    #[test]
    fn what_another_program_writes_in_pieces_is_escaped_as_a_whole() {
        let whole = "a ä\u{9b}2J\x1b\n\u{202e}🎬".as_bytes();
        let whole = [whole, b"\xff\xe2\x80"].concat();
        for size in 1..=whole.len() {
            let mut seen = Vec::new();
            let mut writer = EscapingWriter::new(&mut seen);
            for piece in whole.chunks(size) {
                writer.write_all(piece).unwrap();
            }
            writer.finish().unwrap();
            let seen = String::from_utf8(seen).unwrap();
            assert_eq!(
                seen, "a ä\\u{9b}2J\\x1b\n\\u{202e}🎬\\xff\\xe2\\x80",
                "{size}"
            );
        }
    }

    /// Undoes [`Escaped`].
    fn unescape(text: &str) -> Vec<u8> {
        let (mut bytes, mut rest) = (Vec::new(), text);
        while let Some(c) = rest.chars().next() {
            let mut take = |count: usize| {
                let (head, tail) = rest.split_at(count);
                rest = tail;
                head
            };
            if c != '\\' {
                bytes.extend_from_slice(take(c.len_utf8()).as_bytes());
                continue;
            }
            match take(2) {
                "\\\\" => bytes.push(b'\\'),
                "\\n" => bytes.push(b'\n'),
                "\\r" => bytes.push(b'\r'),
                "\\t" => bytes.push(b'\t'),
                "\\x" => bytes.push(u8::from_str_radix(take(2), 16).unwrap()),
                "\\u" => {
                    let (number, tail) = rest[1..].split_once('}').unwrap();
                    let c = char::from_u32(u32::from_str_radix(number, 16).unwrap()).unwrap();
                    bytes.extend_from_slice(c.to_string().as_bytes());
                    rest = tail;
                }
                other => panic!("{other} in {text}"),
            }
        }
        bytes
    }

    proptest! {
        #[test]
        fn any_name_can_be_told_from_what_is_written(
            bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..40),
                any::<String>().prop_map(String::into_bytes),
                "[\\\\xu{}0-9a-f\u{9b}\u{202e}\u{10ffff}\n]{0,20}".prop_map(String::into_bytes),
            ]
        ) {
            let written = bytes.escaped().to_string();
            prop_assert!(!written.chars().any(is_hidden));
            prop_assert_eq!(unescape(&written), bytes.clone());
            let text = bytes.to_text();
            prop_assert_eq!(text.escaped().to_string(), written);
            prop_assert_eq!(bytes_of_text(&text), bytes);
        }
    }
}
