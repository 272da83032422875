//! The versions that batches keep: `.ferryfs/versions/<time>-<batch>/<path>`, and beside each such
//! directory a list, `<time>-<batch>.json`, with what a plain file cannot say.
//!
//! The files are the user's, under their names on the drive, so they can be copied back by hand.
//! The list is JSON, one object a line: first a head, then one line for each entry, last a line
//! that only a complete list has. A reader takes all of it or nothing. Nothing in it is trusted: a
//! path is checked, and the list never says where a file is written on the drive.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::core::{BatchNo, FileKind, Name, RelPath, Timestamp};
use crate::format::layout;

/// The longest list that is read or written, in bytes.
pub const MAX_LIST_BYTES: usize = 256 << 20;

/// The longest path in a list, in bytes.
const MAX_PATH: usize = 65_536;

/// More directories of one batch than any batch needs.
pub const MAX_PARTS: u32 = 16;

/// The format of a list.
const FORMAT: u32 = 1;

const KIND: &str = "versions";

const DAY: i64 = 86_400;

/// Which directory of versions: of which batch, and when it was made. A batch has a second one only
/// if two of its versions have the same path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VersionsId {
    /// Seconds since the epoch.
    pub secs: i64,
    /// The batch.
    pub batch: BatchNo,
    /// 1, or the number of a further directory.
    pub part: u32,
}

impl VersionsId {
    /// Returns the first directory of `batch`, which was committed at `time`.
    pub fn of(batch: BatchNo, time: Timestamp) -> VersionsId {
        // A year has four digits in a name.
        let secs = time.parts().0.clamp(0, 253_402_300_799);
        VersionsId {
            secs,
            batch,
            part: 1,
        }
    }

    /// Returns the time.
    pub fn time(&self) -> Timestamp {
        Timestamp::from_parts(self.secs, 0)
    }

    /// Returns the name of the directory, which every file system can store:
    /// `2026-11-28T12-14-00Z-42`.
    pub fn to_text(&self) -> String {
        let at = self.time().utc();
        let part = match self.part {
            1 => String::new(),
            part => format!(".{part}"),
        };
        format!(
            "{:04}-{:02}-{:02}T{:02}-{:02}-{:02}Z-{}{part}",
            at.year, at.month, at.day, at.hour, at.minute, at.second, self.batch
        )
    }

    /// Parses the name of a directory; `None` unless [`VersionsId::to_text`] makes it.
    pub fn parse(name: &[u8]) -> Option<VersionsId> {
        let text = std::str::from_utf8(name).ok()?;
        let (at, rest) = text.split_at_checked(20)?;
        let rest = rest.strip_prefix('-')?;
        let (batch, part) = match rest.split_once('.') {
            Some((batch, part)) => (batch, part.parse().ok()?),
            None => (rest, 1),
        };
        let id = VersionsId {
            secs: seconds(at)?,
            batch: BatchNo(batch.parse().ok()?),
            part,
        };
        (id.to_text() == text && (1..=MAX_PARTS).contains(&part)).then_some(id)
    }

    /// Parses the name of a list.
    pub fn parse_list(name: &Name) -> Option<VersionsId> {
        VersionsId::parse(name.as_bytes().strip_suffix(b".json")?)
    }

    fn name(&self, suffix: &str) -> Name {
        Name::new(format!("{}{suffix}", self.to_text()).as_bytes())
            .expect("names formed here are well formed")
    }

    /// Returns the path of the directory on the drive.
    pub fn dir(&self) -> RelPath {
        layout::versions_root().join(&self.name(""))
    }

    /// Returns the path of the list on the drive.
    pub fn list(&self) -> RelPath {
        layout::versions_root().join(&self.name(".json"))
    }
}

/// Parses `2026-11-28T12-14-00Z`. Whether it is a date is found out by writing it again.
fn seconds(text: &str) -> Option<i64> {
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = text.get(from..to)?;
        let all = digits.bytes().all(|digit| digit.is_ascii_digit());
        all.then(|| digits.parse().ok())?
    };
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    if !(1..=12).contains(&month) {
        return None;
    }
    let time = number(11, 13)? * 3600 + number(14, 16)? * 60 + number(17, 19)?;
    // Howard Hinnant's `days_from_civil`.
    let y = year - i64::from(month <= 2);
    let era = y.div_euclid(400);
    let yoe = y.rem_euclid(400);
    let doy = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
    Some((era * 146_097 + doe - 719_468) * DAY + time)
}

/// What a batch did at a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// It removed a file, which is kept.
    Removed,
    /// It replaced a file, which is kept.
    Replaced,
    /// It removed a directory. Nothing but this line is kept of it.
    Directory,
    /// It removed a link or special file that only the catalog had. The same.
    Special,
    /// It wrote a file, in place of another one or of nothing.
    Written,
    /// It made a link or special file, or a further name of a file.
    Made,
    /// It made a directory.
    MadeDirectory,
    /// It moved a file or directory there.
    Moved,
}

impl What {
    /// Returns whether the line is about a file in the directory of versions.
    pub fn is_file(self) -> bool {
        matches!(self, What::Removed | What::Replaced)
    }

    /// Returns whether the line is about something that a restore can bring back.
    pub fn is_version(self) -> bool {
        matches!(
            self,
            What::Removed | What::Replaced | What::Directory | What::Special
        )
    }
}

/// One line of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The path on the drive.
    pub path: RelPath,
    /// The path in the mount, if that is another.
    pub name: Option<RelPath>,
    /// What the batch did there.
    pub what: What,
    /// Size in bytes: of the version, or of the file that was written.
    pub size: u64,
    /// Its modification time.
    pub modified: Timestamp,
    /// Where it was before, in the mount, if it was moved.
    pub from: Option<RelPath>,
    /// There is no such version: a pattern excludes it, the drive has refused it, or it was removed
    /// to make space. Without the line the file would seem to be new.
    pub is_excluded: bool,
    /// What the drive's file system cannot store about the version.
    pub about: Option<About>,
}

impl Entry {
    /// Returns the path in the mount.
    pub fn in_mount(&self) -> &RelPath {
        self.name.as_ref().unwrap_or(&self.path)
    }
}

/// What a plain file on the drive does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    /// Permission bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Number of the owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Number of the group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// "symlink", "fifo", "socket", "char", "block"; files and directories have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Special>,
    /// Target of a symbolic link.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<Text>,
    /// Device number.
    #[serde(skip_serializing_if = "is_zero")]
    pub rdev: u32,
    /// Extended attributes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    xattrs: Vec<(Text, Text)>,
}

/// The kinds that a drive may not be able to store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Special {
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    Char,
    /// A block device.
    Block,
}

impl Special {
    /// Returns the kind that a catalog describes; `None` for files and directories.
    pub fn of(kind: FileKind) -> Option<Special> {
        Some(match kind {
            FileKind::Regular | FileKind::Directory => return None,
            FileKind::Symlink => Special::Symlink,
            FileKind::Fifo => Special::Fifo,
            FileKind::Socket => Special::Socket,
            FileKind::CharDevice => Special::Char,
            FileKind::BlockDevice => Special::Block,
        })
    }
}

impl About {
    /// Returns what a description in the catalog says.
    pub fn of(told: &crate::format::catalog::Description) -> About {
        About {
            mode: Some(told.permissions),
            uid: Some(told.owner.id),
            gid: Some(told.group.id),
            kind: Special::of(told.kind),
            target: told.target.as_deref().map(Text::of),
            rdev: told.rdev,
            xattrs: (told.xattrs.iter())
                .map(|(name, value)| (Text::of(name), Text::of(value)))
                .collect(),
        }
    }

    /// Returns the target of a symbolic link.
    pub fn target(&self) -> Option<Vec<u8>> {
        self.target.as_ref()?.bytes()
    }

    /// Returns the extended attributes.
    pub fn xattrs(&self) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
        (self.xattrs.iter()).filter_map(|(name, value)| Some((name.bytes()?, value.bytes()?)))
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Bytes as JSON: a string if they are text, else `{"hex": "ff"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Text {
    Plain(String),
    Hex { hex: String },
}

impl Text {
    fn of(bytes: &[u8]) -> Text {
        match std::str::from_utf8(bytes) {
            Ok(text) => Text::Plain(text.into()),
            Err(_) => Text::Hex {
                hex: bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
            },
        }
    }

    fn bytes(&self) -> Option<Vec<u8>> {
        match self {
            Text::Plain(text) => Some(text.as_bytes().to_vec()),
            Text::Hex { hex } if hex.len().is_multiple_of(2) && hex.is_ascii() => (0..hex.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok())
                .collect(),
            Text::Hex { .. } => None,
        }
    }
}

/// The head of a list.
#[derive(Serialize, Deserialize)]
struct HeadLine {
    ferryfs: String,
    format: u32,
    volume: Uuid,
    batch: u64,
    /// Nanoseconds since the epoch.
    time: i64,
}

#[derive(Serialize, Deserialize)]
struct EntryLine {
    path: Text,
    what: What,
    #[serde(default)]
    size: u64,
    /// Nanoseconds since the epoch.
    #[serde(default)]
    mtime: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<Text>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<Text>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    excluded: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    about: Option<About>,
}

#[derive(Serialize, Deserialize)]
struct EndLine {
    end: u64,
}

/// What one directory of versions has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionList {
    /// The volume.
    pub volume: Uuid,
    /// The batch.
    pub batch: BatchNo,
    /// When it was committed.
    pub time: Timestamp,
    /// What it did.
    pub entries: Vec<Entry>,
}

/// Why bytes are not a list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// It is too long.
    #[error("the list is longer than {MAX_LIST_BYTES} bytes")]
    TooLong,
    /// It is of another format.
    #[error("the list has format {0}, and this version of ferryfs reads {FORMAT}")]
    Format(u32),
    /// It is cut off, or was tampered with.
    #[error("line {0} of the list is damaged")]
    Damaged(usize),
}

impl VersionList {
    /// Returns the bytes of the list. If it would be too long it is not complete: `None`.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let head = HeadLine {
            ferryfs: KIND.into(),
            format: FORMAT,
            volume: self.volume,
            batch: self.batch.0,
            time: self.time.0,
        };
        line(&mut bytes, &head)?;
        for entry in &self.entries {
            let entry = EntryLine {
                path: Text::of(entry.path.as_bytes()),
                what: entry.what,
                size: entry.size,
                mtime: entry.modified.0,
                name: entry.name.as_ref().map(|it| Text::of(it.as_bytes())),
                from: entry.from.as_ref().map(|it| Text::of(it.as_bytes())),
                excluded: entry.is_excluded,
                about: entry.about.clone(),
            };
            line(&mut bytes, &entry)?;
        }
        let end = self.entries.len() as u64;
        line(&mut bytes, &EndLine { end })?;
        Some(bytes)
    }

    /// Parses a list.
    ///
    /// # Errors
    /// [`ListError`]; nothing of such a list may be used.
    pub fn decode(bytes: &[u8]) -> Result<VersionList, ListError> {
        if bytes.len() > MAX_LIST_BYTES {
            return Err(ListError::TooLong);
        }
        let mut lines = bytes.split(|byte| *byte == b'\n').enumerate();
        let head: HeadLine = (lines.next())
            .and_then(|(_, line)| serde_json::from_slice(line).ok())
            .ok_or(ListError::Damaged(1))?;
        if head.ferryfs != KIND {
            return Err(ListError::Damaged(1));
        }
        if head.format != FORMAT {
            return Err(ListError::Format(head.format));
        }
        let mut list = VersionList {
            volume: head.volume,
            batch: BatchNo(head.batch),
            time: Timestamp(head.time),
            entries: Vec::new(),
        };
        for (number, line) in lines {
            let damaged = || ListError::Damaged(number + 1);
            if let Ok(EndLine { end }) = serde_json::from_slice(line) {
                return match end == list.entries.len() as u64 {
                    true => Ok(list),
                    false => Err(damaged()),
                };
            }
            let entry: EntryLine = serde_json::from_slice(line).map_err(|_| damaged())?;
            list.entries.push(entry.checked().ok_or_else(damaged)?);
        }
        Err(ListError::Damaged(list.entries.len() + 2))
    }
}

impl EntryLine {
    fn checked(self) -> Option<Entry> {
        let path = |text: &Text| -> Option<RelPath> {
            let bytes = text.bytes()?;
            let path = RelPath::parse(&bytes).ok()?;
            let is_valid = bytes.len() <= MAX_PATH && !path.is_root();
            (is_valid && !layout::is_reserved(&path)).then_some(path)
        };
        let optional = |text: &Option<Text>| match text {
            Some(text) => path(text).map(Some),
            None => Some(None),
        };
        Some(Entry {
            path: path(&self.path)?,
            name: optional(&self.name)?,
            what: self.what,
            size: self.size,
            modified: Timestamp(self.mtime),
            from: optional(&self.from)?,
            is_excluded: self.excluded,
            about: self.about,
        })
    }
}

/// Appends a line, unless the list becomes too long.
fn line(bytes: &mut Vec<u8>, value: &impl Serialize) -> Option<()> {
    serde_json::to_writer(&mut *bytes, value).ok()?;
    bytes.push(b'\n');
    (bytes.len() <= MAX_LIST_BYTES).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &'static str, what: What) -> Entry {
        Entry {
            path: RelPath::fixed(path),
            name: None,
            what,
            size: 5,
            modified: Timestamp(7),
            from: None,
            is_excluded: false,
            about: None,
        }
    }

    fn list() -> VersionList {
        let odd = Entry {
            name: Some(RelPath::parse(b"a/\xff?").unwrap()),
            about: Some(About {
                mode: Some(0o750),
                target: Some(Text::of(b"to")),
                kind: Some(Special::Symlink),
                xattrs: vec![(Text::of(b"user.a"), Text::of(b"\x80"))],
                ..About::default()
            }),
            ..entry("a/x", What::Special)
        };
        VersionList {
            volume: Uuid::from_u128(1),
            batch: BatchNo(42),
            time: Timestamp(1),
            entries: vec![entry("a/b", What::Removed), odd],
        }
    }

    #[test]
    fn a_list_is_read_back_as_it_was_written() {
        let bytes = list().encode().unwrap();
        assert_eq!(VersionList::decode(&bytes), Ok(list()));
    }

    #[test]
    fn a_list_that_is_cut_off_or_hostile_is_not_read_at_all() {
        let bytes = list().encode().unwrap();
        for end in 0..bytes.len() - 1 {
            assert!(VersionList::decode(&bytes[..end]).is_err(), "{end}");
        }
        let text = String::from_utf8(bytes).unwrap();
        for path in ["../x", "/etc/passwd", ".ferryfs/volume.json", "", "a//b"] {
            let evil = text.replace("a/b", path);
            let read = VersionList::decode(evil.as_bytes());
            assert_eq!(read, Err(ListError::Damaged(2)), "{path}");
        }
        let newer = text.replace("\"format\":1", "\"format\":2");
        let read = VersionList::decode(newer.as_bytes());
        assert_eq!(read, Err(ListError::Format(2)));
    }

    #[test]
    fn the_name_of_a_directory_is_a_time_and_a_batch() {
        let id = VersionsId::of(BatchNo(42), Timestamp::from_parts(1_795_868_040, 5));
        assert_eq!(id.to_text(), "2026-11-28T12-14-00Z-42");
        assert_eq!(VersionsId::parse(id.to_text().as_bytes()), Some(id));
        let second = VersionsId { part: 2, ..id };
        assert_eq!(
            VersionsId::parse(b"2026-11-28T12-14-00Z-42.2"),
            Some(second)
        );
        for other in [
            "2026-11-28T12-14-00Z-42.1",
            "2026-02-30T12-14-00Z-42",
            "2026-11-28T12-14-00Z-042",
            "2026-11-28T25-14-00Z-42",
            "2026-13-28T12-14-00Z-42",
            "2026-11-28T12-14-00Z-42.17",
            "2026-11-28 12-14-00Z-42",
            "x",
            "",
        ] {
            assert_eq!(VersionsId::parse(other.as_bytes()), None, "{other}");
        }
        for time in [i64::MIN, -1, 0, i64::MAX] {
            let id = VersionsId::of(BatchNo(0), Timestamp(time));
            assert_eq!(VersionsId::parse(id.to_text().as_bytes()), Some(id));
        }
    }
}
