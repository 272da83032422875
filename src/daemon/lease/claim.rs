//! Takes the lease step by step, so that no caller must wait here for a minute.
//!
//! | lease file | action |
//! |---|---|
//! | none | make it, which only one machine can do; after a moment read it back |
//! | our own | we hold it |
//! | of the same cache on this machine | its daemon has ended, as we lock the cache: replace it |
//! | of another machine, or damaged | knock, and wait for an answer |
//! | of a newer version; a link or directory | refuse, also with `--take-over` |
//!
//! If a knock is answered, or another machine replaces the lease, the claim is refused. If it is
//! not answered for as long as the holder may be silent, by our clock, the lease is replaced.
//!
//! After a lease was replaced, its holder gets time to notice that, and only then the lease is read
//! back: of several machines that replace it at once the last one holds it. A crash at any point
//! leaves a lease for which no daemon answers, a knock, or a `lease.new`; the next claim handles
//! each.

use std::time::{Duration, Instant};

use super::files::LeaseFile;
use super::{Holder, LeaseFailure, Result, Step, files};
use crate::drive::Backend;
use crate::format::lease;
use crate::format::lease::{LONGEST_SILENCE, Lease};

/// How long after a lease was made it is read back, in case the file system let two machines make
/// it at once.
const SETTLE: Duration = Duration::from_millis(500);

/// The time that the holder of a replaced lease gets in addition to the time between two of its
/// looks.
const MARGIN: Duration = Duration::from_secs(1);

enum State {
    /// The lease has not been read yet, or has changed.
    New,
    /// There is a knock, and it has not been answered since.
    Asking {
        seen: Vec<u8>,
        since: Instant,
        silence: Duration,
    },
    /// Our lease was written, and is read back at this time.
    Settling { until: Instant },
}

/// An attempt to take the lease.
pub(super) struct Claim {
    me: Lease,
    bytes: Vec<u8>,
    take_over: bool,
    state: State,
}

impl Claim {
    /// An attempt by `me`. With `take_over` no holder is asked.
    pub(super) fn new(me: &Lease, take_over: bool) -> Claim {
        Claim {
            bytes: lease::encode(me),
            me: me.clone(),
            take_over,
            state: State::New,
        }
    }

    /// Takes the steps that are possible at `now`.
    ///
    /// # Errors
    /// If another machine holds it, or the drive fails.
    pub(super) fn step(&mut self, backend: &dyn Backend, now: Instant) -> Result<Step> {
        if let State::Settling { until } = self.state
            && now < until
        {
            return Ok(Step::Wait {
                holder: Holder::Nobody,
                left: until - now,
            });
        }
        let found = files::read(backend)?;
        if found.bytes() == self.bytes {
            return Ok(Step::Held);
        }
        match &self.state {
            // Another machine has replaced it after us.
            State::Settling { .. } => self.settled(backend, found, now),
            State::New => self.begin(backend, found, now),
            State::Asking { .. } => self.ask(backend, found, now),
        }
    }

    fn begin(&mut self, backend: &dyn Backend, found: LeaseFile, now: Instant) -> Result<Step> {
        let silence = match &found {
            LeaseFile::Absent => {
                if files::write_first(backend, &self.bytes)? {
                    return Ok(self.settle(now, SETTLE));
                }
                // Another machine has just made it: the next look reads it.
                return Ok(Step::Wait {
                    holder: Holder::Nobody,
                    left: Duration::ZERO,
                });
            }
            LeaseFile::Whole(other, _) if self.me.is_successor_of(other) => {
                return self.replace(backend, SETTLE, now);
            }
            LeaseFile::Whole(other, _) => other.silence(),
            LeaseFile::Damaged(_) => LONGEST_SILENCE,
        };
        if self.take_over {
            return self.replace(backend, silence / 12 + MARGIN, now);
        }
        // A knock that exists already may be of any machine. It counts as unanswered if it stays
        // from here on.
        files::knock(backend)?;
        self.state = State::Asking {
            seen: found.bytes().to_vec(),
            since: now,
            silence,
        };
        Ok(Step::Wait {
            holder: Holder::of(&found),
            left: silence,
        })
    }

    fn ask(&mut self, backend: &dyn Backend, found: LeaseFile, now: Instant) -> Result<Step> {
        let State::Asking {
            seen,
            since,
            silence,
        } = &self.state
        else {
            return self.begin(backend, found, now);
        };
        let (silence, asked) = (*silence, now.saturating_duration_since(*since));
        if found.bytes() != seen {
            self.state = State::New;
            return match found {
                // Another machine has just taken it.
                LeaseFile::Whole(..) => Err(held(&found)),
                // Its holder has released it, or it is being written now.
                _ => self.begin(backend, found, now),
            };
        }
        if !files::is_knocked(backend)? {
            self.state = State::New;
            return Err(held(&found));
        }
        if asked < silence {
            return Ok(Step::Wait {
                holder: Holder::of(&found),
                left: silence - asked,
            });
        }
        tracing::warn!(
            holder = %Holder::of(&found),
            "the holder of the directory has not answered; the directory is taken over"
        );
        self.replace(backend, silence / 12 + MARGIN, now)
    }

    fn settled(&mut self, backend: &dyn Backend, found: LeaseFile, now: Instant) -> Result<Step> {
        self.state = State::New;
        match found {
            LeaseFile::Whole(..) => Err(held(&found)),
            _ => {
                // `--take-over` counts once.
                self.take_over = false;
                self.begin(backend, found, now)
            }
        }
    }

    fn replace(&mut self, backend: &dyn Backend, time: Duration, now: Instant) -> Result<Step> {
        files::write_over(backend, &self.bytes)?;
        Ok(self.settle(now, time))
    }

    fn settle(&mut self, now: Instant, time: Duration) -> Step {
        self.state = State::Settling { until: now + time };
        Step::Wait {
            holder: Holder::Nobody,
            left: time,
        }
    }
}

fn held(found: &LeaseFile) -> LeaseFailure {
    LeaseFailure::Held(Holder::of(found))
}
