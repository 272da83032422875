//! Finds the file of the configuration, and opens it if no other user may have written it.
//!
//! The file names commands that are run and places that are written to. So root reads it only if
//! root alone can change it, and the directories and links that lead to it. Other users read only
//! their own files and those of root, unless all users may write to them.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::Uid;

use super::parse::{check_together, parse, place};
use super::{Config, Problem};
use crate::core::{Failure, ForeignText, quoted};
use crate::sys::way;

/// The file for the whole machine.
const SYSTEM: &str = "/etc/ferryfs/config.toml";

/// The longest file that is read.
const LONGEST: u64 = 1 << 20;

/// The most links that are followed to the file, as in the kernel.
const MOST_LINKS: usize = 40;

/// Permission bits that let the group and all users write.
const GROUP_WRITES: u32 = 0o020;
const ALL_WRITE: u32 = 0o002;

/// Reads the configuration of this user, else that of the machine.
///
/// # Errors
/// If there is none, or it cannot be read, or another user may have written it. A mistake in its
/// text is no error here: [`Config::problems`] has it.
pub(in crate::cli) fn load() -> Result<Config, Failure> {
    let own = own_file();
    let places: Vec<PathBuf> = own.iter().cloned().chain([SYSTEM.into()]).collect();
    for path in &places {
        if let Some(text) = read(path)? {
            let mut config = understood(path, &text);
            check_together(&mut config, &|path| {
                fs::canonicalize(path).unwrap_or_else(|_| path.into())
            });
            return Ok(config);
        }
    }
    let place = own.unwrap_or_else(|| SYSTEM.into());
    Err(
        Failure::failed(format!("there is no configuration {}", place.escaped())).hint(
            "make it, see `ferryfs config --help`; or name a drive and a mount point: `ferryfs \
             mount DRIVE MOUNTPOINT`",
        ),
    )
}

fn understood(path: &Path, text: &[u8]) -> Config {
    match std::str::from_utf8(text) {
        Ok(text) => parse(path, text, home().as_deref()),
        Err(error) => {
            let valid = text.get(..error.valid_up_to()).unwrap_or_default();
            let valid = String::from_utf8_lossy(valid);
            let mut config = Config {
                path: path.into(),
                ..Config::default()
            };
            config.problems.push(Problem {
                path: path.into(),
                place: place(&valid, valid.len()),
                section: None,
                message: "not UTF-8 text".into(),
                hint: Some("write the file again with an editor that uses UTF-8".into()),
            });
            config
        }
    }
}

fn absolute(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
}

fn home() -> Option<PathBuf> {
    absolute("HOME")
}

fn own_file() -> Option<PathBuf> {
    let dir = absolute("XDG_CONFIG_HOME").or_else(|| home().map(|home| home.join(".config")))?;
    Some(dir.join("ferryfs/config.toml"))
}

/// The contents of a file that no other user may have written; `None` if it is missing.
fn read(path: &Path) -> Result<Option<Vec<u8>>, Failure> {
    let cannot = |error: io::Error| {
        Failure::failed(format!("cannot read {}: {error}", path.escaped()))
            .hint("check the path, and who may use it")
    };
    match fs::symlink_metadata(path) {
        Err(error) if is_missing(&error) => return Ok(None),
        found => found.map_err(cannot)?,
    };
    let real = checked_way(path, cannot)?;
    let mut options = fs::OpenOptions::new();
    // A FIFO is not waited for.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = options
        .read(true)
        .custom_flags(flags)
        .open(&real)
        .map_err(cannot)?;
    let meta = file.metadata().map_err(cannot)?;
    if !meta.is_file() {
        return Err(cannot(io::Error::other("it is no plain file")));
    }
    check_owner(&real, &meta)?;
    let mut bytes = Vec::new();
    file.take(LONGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(cannot)?;
    if bytes.len() as u64 > LONGEST {
        return Err(cannot(io::Error::other("it is longer than 1 MiB")));
    }
    Ok(Some(bytes))
}

fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Follows links to the file. As root, checks that no other user can make one lead elsewhere.
fn checked_way(path: &Path, cannot: impl Fn(io::Error) -> Failure) -> Result<PathBuf, Failure> {
    let mut at = path.to_path_buf();
    for _ in 0..MOST_LINKS {
        let (Some(parent), Some(name)) = (at.parent(), at.file_name()) else {
            return Err(cannot(io::Error::other("it is no plain file")));
        };
        let way = way::walk(parent).map_err(&cannot)?;
        if let Some(exposed) = way.danger() {
            return Err(refused(path, &exposed.to_string()));
        }
        check_directory(path, &way.place)?;
        let here = way.place.join(name);
        match fs::symlink_metadata(&here).map_err(&cannot)?.is_symlink() {
            true => at = way.place.join(fs::read_link(&here).map_err(&cannot)?),
            false => return Ok(here),
        }
    }
    Err(cannot(io::Error::other("too many links lead to it")))
}

/// As root, checks the directory that the file is in: who may write there can replace the file.
fn check_directory(path: &Path, dir: &Path) -> Result<(), Failure> {
    if !Uid::effective().is_root() {
        return Ok(());
    }
    let meta = fs::metadata(dir)
        .map_err(|error| Failure::failed(format!("cannot look at {}: {error}", dir.escaped())))?;
    match writer(&meta, 0) {
        Some(who) => Err(refused(path, &format!("{} {who}", dir.escaped()))),
        None => Ok(()),
    }
}

fn check_owner(path: &Path, meta: &fs::Metadata) -> Result<(), Failure> {
    match writer(meta, Uid::effective().as_raw()) {
        Some(who) => Err(refused(path, &format!("it {who}"))),
        None => Ok(()),
    }
}

/// Who else may write, as the end of a sentence.
fn writer(meta: &fs::Metadata, user: u32) -> Option<String> {
    let (owner, mode) = (meta.uid(), meta.mode());
    if owner != 0 && owner != user {
        return Some(format!("belongs to user {owner}"));
    }
    if mode & ALL_WRITE != 0 {
        return Some("can be written to by everybody".into());
    }
    // A user's own group is often his alone; root's group is trusted elsewhere, too.
    if user == 0 && mode & GROUP_WRITES != 0 && meta.gid() != 0 {
        return Some(format!("can be written to by group {}", meta.gid()));
    }
    None
}

fn refused(path: &Path, why: &str) -> Failure {
    Failure::failed(format!(
        "the configuration {} is not used: {why}",
        path.escaped()
    ))
    .hint(format!(
        "another user may have written the commands in it. Look at it, then make it yours alone: \
         chown {} {path}; chmod go-w {path}",
        Uid::effective(),
        path = quoted(path)
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let file = fs::canonicalize(dir.path()).unwrap().join("config.toml");
        fs::write(&file, b"text").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        (dir, file)
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_file_that_others_may_write_is_refused() {
        let (_dir, file) = place();
        assert_eq!(read(&file).unwrap().unwrap(), b"text");
        set_mode(&file, 0o646);
        let failure = read(&file).unwrap_err();
        assert!(failure.message.contains("by everybody"), "{failure}");
        set_mode(&file, 0o644);
        if !Uid::effective().is_root() {
            return;
        }
        chown(&file, Some(12_345), None).unwrap();
        assert!(read(&file).unwrap_err().message.contains("user 12345"));
        chown(&file, Some(0), Some(7)).unwrap();
        set_mode(&file, 0o664);
        assert!(read(&file).unwrap_err().message.contains("group 7"));
    }

    #[test]
    fn root_follows_no_way_that_another_user_can_change() {
        if !Uid::effective().is_root() {
            return;
        }
        let (dir, file) = place();
        let theirs = dir.path().join("theirs");
        fs::create_dir(&theirs).unwrap();
        symlink(&file, theirs.join("config.toml")).unwrap();
        assert!(
            read(&theirs.join("config.toml")).unwrap().is_some(),
            "a link of root's"
        );
        chown(&theirs, Some(12_345), None).unwrap();
        let failure = read(&theirs.join("config.toml")).unwrap_err();
        assert!(failure.message.contains("user 12345"), "{failure}");
        // The same through a link of root's to a link of theirs.
        symlink(theirs.join("config.toml"), dir.path().join("link")).unwrap();
        assert!(read(&dir.path().join("link")).is_err());
    }

    #[test]
    fn what_is_no_file_is_said_and_what_is_missing_is_none() {
        let (dir, file) = place();
        assert_eq!(read(&dir.path().join("missing/config.toml")).unwrap(), None);
        assert_eq!(read(&file.join("below")).unwrap(), None);
        assert!(read(&fs::canonicalize(dir.path()).unwrap()).is_err());
        let fifo = file.with_file_name("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(read(&fifo).unwrap_err().message.contains("no plain file"));
        let cycle = file.with_file_name("cycle");
        symlink("cycle", &cycle).unwrap();
        assert!(read(&cycle).is_err());
        fs::write(&file, vec![b'#'; 1 + (1 << 20)]).unwrap();
        assert!(read(&file).unwrap_err().message.contains("1 MiB"));
    }
}
