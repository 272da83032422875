//! One daemon per volume on this machine.
//!
//! Two mechanisms keep daemons apart. The daemons of one user lock files in directories that belong
//! to that user alone ([`mod@file`]); these are visible from every network namespace. The daemons
//! of different users make sockets with abstract names ([`socket`]), which all users see. Any user
//! can make one, so a claim is believed only if its user could write to the drive anyway, and so
//! could harm it without ferryfs. The kernel removes both when the process ends; a process that is
//! stuck in a call to the drive keeps them. There is no lock on the drive, because it would keep
//! the drive from being ejected.
//!
//! Two daemons that claim a volume at the same moment may see each other's claim. Then each drops
//! its own claim and tries again after a random pause. A claim is made before others are looked
//! for, so at least one of two sees the other, and never do both continue.

mod file;
mod socket;

use std::fmt;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::Uid;
use parking_lot::Mutex;
use uuid::Uuid;

use self::file::LockFile;
use self::socket::{Claim, Other};
use crate::core::Failure;
use crate::drive::Backend;
use crate::format::layout;

/// How long a killed daemon may take to end: it may be in a sync of the drive.
const ENDING: Duration = Duration::from_secs(3);

/// How long a drive that comes back is claimed. The next look tries again.
const COMING_BACK: Duration = Duration::from_millis(300);

/// The permission bits that let other users than the owner write.
const OTHERS_WRITE: u32 = 0o022;

/// Who can write to a drive. A claim of such a user is believed, because it does no more harm than
/// the user could do without ferryfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writers {
    /// It is unknown.
    Unknown,
    /// This user.
    User(u32),
    /// A group or all users.
    Many,
}

impl Writers {
    /// The writers of the volume at `backend`, by the permissions of our own folder on it.
    pub(super) fn of(backend: &dyn Backend) -> Writers {
        match backend.metadata(&layout::dir()) {
            Ok(meta) if meta.permissions & OTHERS_WRITE != 0 => Writers::Many,
            Ok(meta) => Writers::User(meta.uid),
            Err(_) => Writers::Unknown,
        }
    }

    /// Whether user `own` believes a claim of user `uid`.
    fn believe(self, uid: u32, own: u32) -> bool {
        let can_write = match self {
            Writers::Unknown => false,
            Writers::User(owner) => uid == owner,
            Writers::Many => true,
        };
        uid == 0 || uid == own || can_write
    }
}

/// Why a volume is not locked. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum VolumeLockError {
    /// Another daemon serves it.
    #[error(
        "volume {volume} is in use by another ferryfs{}{}",
        optional(" of user ", user.as_ref(), ""),
        optional(" (pid ", pid.as_ref(), ")")
    )]
    InUse {
        /// The volume.
        volume: Uuid,
        /// The user whose daemon it is, if it is another user.
        user: Option<u32>,
        /// The process, if it is known.
        pid: Option<String>,
    },
    /// The claim cannot be made.
    #[error("cannot lock volume {volume}: {source}")]
    Claim {
        /// The volume.
        volume: Uuid,
        /// The error of the system.
        source: io::Error,
    },
}

impl From<VolumeLockError> for Failure {
    fn from(error: VolumeLockError) -> Failure {
        let failure = Failure::failed(error.to_string());
        match error {
            VolumeLockError::InUse { .. } => {
                failure.hint("see `ferryfs status`; unmount it there first")
            }
            VolumeLockError::Claim { .. } => failure,
        }
    }
}

/// A volume that no other daemon serves, as long as this lives.
#[derive(Debug)]
pub(super) struct VolumeLock {
    volume: Uuid,
    /// Empty if this user has no directory for them.
    _files: Vec<LockFile>,
    /// The claim that other users see, once the drive has been there.
    claim: Mutex<Option<Claim>>,
}

impl VolumeLock {
    /// Locks the volume, whose drive is at `backend`. Waits a little for a daemon that is about to
    /// end.
    ///
    /// # Errors
    /// If another daemon serves it.
    pub(super) fn acquire(
        volume: Uuid,
        backend: &dyn Backend,
    ) -> Result<VolumeLock, VolumeLockError> {
        let end = Instant::now() + ENDING;
        let lock = VolumeLock::acquire_file(volume, end)?;
        lock.claim_until(Writers::of(backend), end)?;
        Ok(lock)
    }

    /// Locks the volume while its drive is away. Claims of other users do not count until
    /// [`VolumeLock::claim`], because it is unknown who can write to the drive.
    ///
    /// # Errors
    /// If another daemon of this user serves it.
    pub(super) fn acquire_away(volume: Uuid) -> Result<VolumeLock, VolumeLockError> {
        VolumeLock::acquire_file(volume, Instant::now() + ENDING)
    }

    /// Claims the volume against daemons of other users, after its drive has come back at
    /// `backend`.
    ///
    /// # Errors
    /// If one serves it.
    pub(super) fn claim(&self, backend: &dyn Backend) -> Result<(), VolumeLockError> {
        self.claim_until(Writers::of(backend), Instant::now() + COMING_BACK)
    }

    fn acquire_file(volume: Uuid, end: Instant) -> Result<VolumeLock, VolumeLockError> {
        loop {
            match LockFile::acquire(volume) {
                Ok(files) => {
                    return Ok(VolumeLock {
                        volume,
                        _files: files,
                        claim: Mutex::default(),
                    });
                }
                Err(_) if Instant::now() < end => pause(),
                Err(held) => {
                    return Err(VolumeLockError::InUse {
                        volume,
                        user: None,
                        pid: held.pid,
                    });
                }
            }
        }
    }

    fn claim_until(&self, writers: Writers, end: Instant) -> Result<(), VolumeLockError> {
        let mut held = self.claim.lock();
        if held.is_some() {
            return Ok(());
        }
        loop {
            let claim = Claim::make(self.volume).map_err(|source| VolumeLockError::Claim {
                volume: self.volume,
                source,
            })?;
            match self.believed(&claim, writers) {
                None => {
                    *held = Some(claim);
                    return Ok(());
                }
                Some(other) if Instant::now() >= end => {
                    let own = Uid::effective().as_raw();
                    let user = Some(other.uid).filter(|uid| *uid != own);
                    return Err(VolumeLockError::InUse {
                        volume: self.volume,
                        user,
                        pid: Some(other.pid.to_string()),
                    });
                }
                Some(_) => {
                    drop(claim);
                    pause();
                }
            }
        }
    }

    /// The first claim of another process that is believed.
    fn believed(&self, own: &Claim, writers: Writers) -> Option<Other> {
        let user = Uid::effective().as_raw();
        let (believed, ignored): (Vec<Other>, Vec<Other>) = own
            .others()
            .into_iter()
            .partition(|other| writers.believe(other.uid, user));
        if let Some(first) = ignored.first() {
            tracing::warn!(
                uid = first.uid,
                pid = first.pid,
                claims = ignored.len(),
                "users who cannot write to the drive claim the volume; they are ignored"
            );
        }
        believed.into_iter().next()
    }
}

/// Waits for a random time, so that two daemons that wait for each other get out of step.
fn pause() {
    let chance = u64::from(Uuid::new_v4().as_bytes()[0]);
    thread::sleep(Duration::from_millis(20 + chance / 4));
}

/// Formats `value` between `before` and `after`, if there is one.
fn optional(before: &str, value: Option<&impl fmt::Display>, after: &str) -> String {
    value.map_or_else(String::new, |value| format!("{before}{value}{after}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn only_who_could_write_to_the_drive_is_believed() {
        let [root, me, other, third] = [0, 1000, 1001, 1002];
        for writers in [Writers::Unknown, Writers::User(other), Writers::Many] {
            assert!(writers.believe(root, me) && writers.believe(me, me));
        }
        assert!(!Writers::Unknown.believe(other, me));
        assert!(Writers::User(other).believe(other, me));
        assert!(!Writers::User(other).believe(third, me));
        assert!(!Writers::User(root).believe(other, root));
        assert!(Writers::Many.believe(third, me));
    }

    fn alone(volume: Uuid) -> VolumeLock {
        VolumeLock {
            volume,
            _files: Vec::new(),
            claim: Mutex::default(),
        }
    }

    #[test]
    fn of_several_that_claim_at_once_never_two_go_on_and_all_get_their_turn() {
        let (volume, start) = (Uuid::new_v4(), Barrier::new(6));
        let (inside, turns) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    start.wait();
                    let lock = alone(volume);
                    let end = Instant::now() + Duration::from_secs(60);
                    lock.claim_until(Writers::Unknown, end).unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    thread::sleep(Duration::from_millis(5));
                    inside.fetch_sub(1, Ordering::SeqCst);
                    turns.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        assert_eq!(turns.into_inner(), 6);
    }

    #[test]
    fn a_second_claim_is_refused_and_names_the_process() {
        let volume = Uuid::new_v4();
        let (first, second) = (alone(volume), alone(volume));
        let soon = || Instant::now() + Duration::from_millis(50);
        first.claim_until(Writers::Unknown, soon()).unwrap();
        let refused = second.claim_until(Writers::Unknown, soon()).unwrap_err();
        let pid = format!("(pid {})", std::process::id());
        assert!(refused.to_string().contains(&pid), "{refused}");
        alone(Uuid::new_v4())
            .claim_until(Writers::Unknown, soon())
            .unwrap();
        drop(first);
        second.claim_until(Writers::Unknown, soon()).unwrap();
    }
}
