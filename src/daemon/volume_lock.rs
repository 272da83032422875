//! One daemon per volume on this machine.
//!
//! Two things keep daemons apart. Those of one user by locked files in directories that are that user's alone ([`file`]): they are
//! seen from every network namespace. Those of different users by sockets with abstract names ([`socket`]), which all users see
//! and any user can make: so one is believed only of a user who could write to the drive anyway, and could harm it without
//! ferryfs. The kernel takes both away when their holder dies; a process that is stuck in a call to the drive keeps them. A lock
//! on the drive would keep it from being ejected.
//!
//! Of two that claim a volume in the same moment each may see the other. The rule: whoever sees another claim takes the own one
//! back, and tries again after a random pause. A claim stands before others are looked for, so of two at least one sees the
//! other, and never do both go on.

mod file;
mod socket;

use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::Uid;
use parking_lot::Mutex;
use uuid::Uuid;

use self::file::LockFile;
use self::socket::{Claim, Other};
use super::DaemonError;
use crate::backend::Backend;
use crate::rules::layout;

/// How long a daemon that has been killed may take to end: it may sit in a sync of the drive.
const ENDING: Duration = Duration::from_secs(3);

/// How long a drive that comes back is claimed: the next look tries again.
const COMING_BACK: Duration = Duration::from_millis(300);

/// Permission bits that let others than the owner write.
const OTHERS_WRITE: u32 = 0o022;

/// Who can write to a drive, so that keeping others off it is no more than they could do without ferryfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writers {
    /// It cannot be told.
    Unknown,
    /// This user.
    User(u32),
    /// A group or everybody.
    Many,
}

impl Writers {
    /// Those of the volume at `backend`, by the permissions of our directory on it.
    pub(super) fn of(backend: &dyn Backend) -> Writers {
        match backend.metadata(&layout::dir()) {
            Ok(meta) if meta.permissions & OTHERS_WRITE != 0 => Writers::Many,
            Ok(meta) => Writers::User(meta.uid),
            Err(_) => Writers::Unknown,
        }
    }

    /// Whether a claim of user `uid` is believed by user `own`.
    fn believe(self, uid: u32, own: u32) -> bool {
        let can_write = match self {
            Writers::Unknown => false,
            Writers::User(owner) => uid == owner,
            Writers::Many => true,
        };
        uid == 0 || uid == own || can_write
    }
}

/// A volume that no other daemon has, as long as this lives.
#[derive(Debug)]
pub(super) struct VolumeLock {
    volume: Uuid,
    /// None where there is no place for them.
    _files: Vec<LockFile>,
    /// What other users see; from the first time on that the drive was there.
    claim: Mutex<Option<Claim>>,
}

impl VolumeLock {
    /// Takes the volume, whose drive is at `backend`. Waits a little for a daemon that is just ending.
    ///
    /// # Errors
    /// If another daemon has it.
    pub(super) fn acquire(volume: Uuid, backend: &dyn Backend) -> Result<VolumeLock, DaemonError> {
        let end = Instant::now() + ENDING;
        let lock = VolumeLock::acquire_file(volume, end)?;
        lock.claim_until(Writers::of(backend), end)?;
        Ok(lock)
    }

    /// Takes the volume while its drive is away: nothing tells then whom to believe, so other users' daemons do not count until
    /// [`VolumeLock::claim`].
    ///
    /// # Errors
    /// If another daemon of this user has it.
    pub(super) fn acquire_away(volume: Uuid) -> Result<VolumeLock, DaemonError> {
        VolumeLock::acquire_file(volume, Instant::now() + ENDING)
    }

    /// Makes sure that no other user's daemon has the volume, whose drive has come back at `backend`.
    ///
    /// # Errors
    /// If one has it.
    pub(super) fn claim(&self, backend: &dyn Backend) -> Result<(), DaemonError> {
        self.claim_until(Writers::of(backend), Instant::now() + COMING_BACK)
    }

    fn acquire_file(volume: Uuid, end: Instant) -> Result<VolumeLock, DaemonError> {
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
                Err(held) => return Err(in_use(volume, held.pid.as_deref(), None)),
            }
        }
    }

    fn claim_until(&self, writers: Writers, end: Instant) -> Result<(), DaemonError> {
        let mut held = self.claim.lock();
        if held.is_some() {
            return Ok(());
        }
        loop {
            let claim = Claim::make(self.volume).map_err(|error| {
                DaemonError::failed(format!("cannot take volume {}: {error}", self.volume))
            })?;
            match self.believed(&claim, writers) {
                None => {
                    *held = Some(claim);
                    return Ok(());
                }
                Some(other) if Instant::now() >= end => {
                    let own = Uid::effective().as_raw();
                    let user = Some(other.uid).filter(|uid| *uid != own);
                    return Err(in_use(self.volume, Some(&other.pid.to_string()), user));
                }
                Some(_) => {
                    drop(claim);
                    pause();
                }
            }
        }
    }

    /// The first claim beside our own that is believed.
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

/// Waits for a random moment, so that two who wait for one another do not go on in step.
fn pause() {
    let chance = u64::from(Uuid::new_v4().as_bytes()[0]);
    thread::sleep(Duration::from_millis(20 + chance / 4));
}

fn in_use(volume: Uuid, pid: Option<&str>, user: Option<u32>) -> DaemonError {
    let pid = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
    let user = user
        .map(|uid| format!(" of user {uid}"))
        .unwrap_or_default();
    DaemonError::failed(format!(
        "volume {volume} is in use by another ferryfs{user}{pid}"
    ))
    .hint("see `ferryfs status`; unmount it there first")
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
    fn a_second_claim_is_refused_and_told_who_has_the_volume() {
        let volume = Uuid::new_v4();
        let (first, second) = (alone(volume), alone(volume));
        let soon = || Instant::now() + Duration::from_millis(50);
        first.claim_until(Writers::Unknown, soon()).unwrap();
        let refused = second.claim_until(Writers::Unknown, soon()).unwrap_err();
        let pid = format!("(pid {})", std::process::id());
        assert!(refused.message.contains(&pid), "{refused}");
        alone(Uuid::new_v4())
            .claim_until(Writers::Unknown, soon())
            .unwrap();
        drop(first);
        second.claim_until(Writers::Unknown, soon()).unwrap();
    }
}
