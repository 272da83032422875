//! One look over everything that a crash may leave: whether rows, objects, what is believed of the
//! drive, and the drive itself agree, and whether the drive is the tree of a cut. Shared by all
//! tests that break something.

mod cache;
mod drive;

use std::fmt;

use ferryfs::core::RelPath;

pub use cache::check_cache;
pub use drive::{check_drive, check_mount};

use super::{Engine, World};

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A file on the drive, under its final name, is no version that ever was.
    Torn { path: RelPath, now: String },
    /// The drive is the tree of no cut: how it differs from each that it might be.
    NeitherCut { differs: Vec<(String, Vec<String>)> },
    /// The mount is not what it was told to be.
    Lost { path: RelPath, what: String },
    /// Something of ours is left on the drive or beside the index although no batch is under way.
    Leftover { path: String },
    /// The drive's own structure is broken, as a check of the file system would say.
    Damaged { what: String },
    /// The mount and the drive differ, and nothing says that it waits.
    DirtyDropped { what: String },
    /// Bytes that no row vouches for.
    ObjectWithoutRow { object: u64 },
    /// A row whose bytes are not there.
    RowWithoutObject { ino: i64, object: u64 },
    /// A row and its object that disagree, or two rows with one object.
    ObjectMismatch { ino: i64, what: String },
    /// Names, inodes and link counts that disagree.
    BrokenName { what: String },
    /// The drive is not what the index takes it for.
    Misbelieved { path: String, what: String },
    /// The sums that are kept are not those of the rows.
    WrongTotals { what: String },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Torn { path, now } => {
                write!(f, "torn: {path} is no version that ever was: {now}")
            }
            Finding::NeitherCut { differs } => {
                write!(f, "the drive is the tree of no cut")?;
                for (name, lines) in differs {
                    write!(f, "\n    it differs from {name}:")?;
                    for line in lines {
                        write!(f, "\n      {line}")?;
                    }
                }
                Ok(())
            }
            Finding::Lost { path, what } => write!(f, "lost: {path}: {what}"),
            Finding::Leftover { path } => write!(f, "left over: {path}"),
            Finding::Damaged { what } => write!(f, "drive damaged: {what}"),
            Finding::DirtyDropped { what } => write!(f, "dirty, and no mark: {what}"),
            Finding::ObjectWithoutRow { object } => write!(f, "object {object:x} has no row"),
            Finding::RowWithoutObject { ino, object } => {
                write!(f, "inode {ino} has no object {object:x}")
            }
            Finding::ObjectMismatch { ino, what } => write!(f, "inode {ino}: {what}"),
            Finding::BrokenName { what } => write!(f, "names: {what}"),
            Finding::Misbelieved { path, what } => {
                write!(f, "believed on the drive: {path}: {what}")
            }
            Finding::WrongTotals { what } => write!(f, "sums: {what}"),
        }
    }
}

/// All of them, one below the other; empty if there is none.
pub fn told(findings: &[Finding]) -> String {
    let lines = findings.iter().map(|finding| format!("\n  {finding}"));
    lines.collect()
}

/// Fails, telling them, if there is any.
#[track_caller]
pub fn assert_none(findings: &[Finding], when: &str) {
    assert!(findings.is_empty(), "{when}:{}", told(findings));
}

impl World {
    /// What does not agree in the cache, between it and the drive, and in the drive itself. No
    /// batch may be under way.
    pub fn findings(&self, engine: &Engine) -> Vec<Finding> {
        let mut findings = check_cache(&engine.index, &engine.dir);
        self.check_places(engine, &mut findings);
        let damage = self.memory.damage().into_iter();
        findings.extend(damage.map(|what| Finding::Damaged { what }));
        findings
    }

    /// Fails if there is anything of that kind.
    #[track_caller]
    pub fn check(&self, engine: &Engine) {
        assert_none(&self.findings(engine), "what was found");
    }

    /// What is left of batches although none is under way, on the drive and on the SSD.
    pub fn left_of_batches(&self, engine: &Engine) -> Vec<Finding> {
        let journals = std::fs::read_dir(&engine.journals).expect("list the journals");
        let journals = journals.map(|entry| entry.expect("an entry").path().display().to_string());
        let all = self.leftovers().into_iter().chain(journals);
        all.map(|path| Finding::Leftover { path }).collect()
    }
}
