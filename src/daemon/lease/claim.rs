//! Coming by the lease, one look at a time: who wants it must not sit in here while a minute goes by.
//!
//! | what stands there | what is done |
//! |---|---|
//! | nothing | it is made, which only one can do; after a moment it is read back |
//! | our own | it is ours |
//! | one of the same cache on the same machine | its daemon has ended, as the cache is locked by us: it is replaced |
//! | somebody else's, or a damaged one | we knock. Answered, or replaced by another: refused. Not answered for as long as its holder may be silent, by our clock: it is replaced |
//! | a newer one's; a link or directory | refused, also with `--take-over` |
//!
//! After a lease has been replaced, the one who had it is given time to notice, and only then is it read back: of several who
//! replaced it at once the last one has it. A crash at any point leaves a lease that nobody answers for, a knock, or a
//! `lease.new`; the next one copes with each.

use std::time::{Duration, Instant};

use super::files::{self, Standing};
use super::{Holder, LeaseFailure, Result, Step};
use crate::backend::Backend;
use crate::rules::lease::{self, LONGEST_SILENCE, Lease};

/// How long after a lease was made it is read back, should the file system have let two make it at once.
const SETTLE: Duration = Duration::from_millis(500);

/// What the one who had a lease is given beyond the time between two of his looks.
const MARGIN: Duration = Duration::from_secs(1);

enum State {
    /// Nothing has been looked at yet, or all has changed.
    New,
    /// There is a knock, and it has not been answered since.
    Asking {
        seen: Vec<u8>,
        since: Instant,
        silence: Duration,
    },
    /// Ours was written, and is to be read back then.
    Settling { until: Instant },
}

/// An attempt to come by the lease.
pub(super) struct Claim {
    me: Lease,
    bytes: Vec<u8>,
    take_over: bool,
    state: State,
}

impl Claim {
    /// An attempt of `me`; with `take_over` nobody is asked.
    pub(super) fn new(me: &Lease, take_over: bool) -> Claim {
        Claim {
            bytes: lease::encode(me),
            me: me.clone(),
            take_over,
            state: State::New,
        }
    }

    /// Goes on as far as can be gone at `now`.
    ///
    /// # Errors
    /// If somebody holds it, or the backend fails.
    pub(super) fn step(&mut self, backend: &dyn Backend, now: Instant) -> Result<Step> {
        if let State::Settling { until } = self.state
            && now < until
        {
            return Ok(Step::Wait {
                holder: Holder::Nobody,
                left: until - now,
            });
        }
        let standing = files::read(backend)?;
        if standing.bytes() == self.bytes {
            return Ok(Step::Held);
        }
        match &self.state {
            // Somebody was later than we were.
            State::Settling { .. } => self.settled(backend, standing, now),
            State::New => self.begin(backend, standing, now),
            State::Asking { .. } => self.ask(backend, standing, now),
        }
    }

    fn begin(&mut self, backend: &dyn Backend, standing: Standing, now: Instant) -> Result<Step> {
        let silence = match &standing {
            Standing::Nothing => {
                if files::write_first(backend, &self.bytes)? {
                    return Ok(self.settle(now, SETTLE));
                }
                // It has just come: the next look finds out whose it is.
                return Ok(Step::Wait {
                    holder: Holder::Nobody,
                    left: Duration::ZERO,
                });
            }
            Standing::Whole(other, _) if self.me.is_successor_of(other) => {
                return self.replace(backend, SETTLE, now);
            }
            Standing::Whole(other, _) => other.silence(),
            Standing::Damaged(_) => LONGEST_SILENCE,
        };
        if self.take_over {
            return self.replace(backend, silence / 12 + MARGIN, now);
        }
        // A knock that is there already may be anybody's; what counts is that it stays from here on.
        files::knock(backend)?;
        self.state = State::Asking {
            seen: standing.bytes().to_vec(),
            since: now,
            silence,
        };
        Ok(Step::Wait {
            holder: Holder::of(&standing),
            left: silence,
        })
    }

    fn ask(&mut self, backend: &dyn Backend, standing: Standing, now: Instant) -> Result<Step> {
        let State::Asking {
            seen,
            since,
            silence,
        } = &self.state
        else {
            return self.begin(backend, standing, now);
        };
        let (silence, asked) = (*silence, now.saturating_duration_since(*since));
        if standing.bytes() != seen {
            self.state = State::New;
            return match standing {
                // Somebody has just come by it.
                Standing::Whole(..) => Err(held(&standing)),
                // It was let go of; or is just being written.
                _ => self.begin(backend, standing, now),
            };
        }
        if !files::is_knocked(backend)? {
            self.state = State::New;
            return Err(held(&standing));
        }
        if asked < silence {
            return Ok(Step::Wait {
                holder: Holder::of(&standing),
                left: silence - asked,
            });
        }
        tracing::warn!(
            holder = %Holder::of(&standing),
            "whoever had the directory has not answered; it is taken over"
        );
        self.replace(backend, silence / 12 + MARGIN, now)
    }

    fn settled(&mut self, backend: &dyn Backend, standing: Standing, now: Instant) -> Result<Step> {
        self.state = State::New;
        match standing {
            Standing::Whole(..) => Err(held(&standing)),
            _ => {
                // What was settled once with force is not to be forced for ever.
                self.take_over = false;
                self.begin(backend, standing, now)
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

fn held(standing: &Standing) -> LeaseFailure {
    LeaseFailure::Held(Holder::of(standing))
}
