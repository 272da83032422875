//! The thread that brings files into the cache, lets unused ones go, and removes old ones.
//!
//! - *Brings*: files that are pinned, and those that were moved to names that stay local and that
//!   only the drive has ([`crate::index::local`]). It does so while no flush runs.
//! - *Evicts* clean files that were not used for `evict_after`.
//! - *Removes* local files that match a rule of `expire` and have not changed for its time.
//!
//! Both ages are differences of times on the clock, which may be wrong: after a start, before the
//! network has set it, or when somebody sets it. So nothing goes before the clock has been *steady*
//! for an hour, or for the time of the rule if that is shorter: it has advanced as the time since
//! the boot has, which nothing sets. A file whose time is in the future never is old. What got its
//! time while the clock was behind, as a jump forward shows, counts as changed at the jump; a
//! restart forgets this.
//!
//! All of it is repeated from the index, so a crash leaves nothing to repair.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::options::{Expiry, Keeping};
use super::service::Service;
use super::stop::Stop;
use crate::core::{Failure, Ino, RelPath, Timestamp, human_bytes};
use crate::index::{Flags, Index, WalkedName, WantedTogether};
use crate::plan::patterns::Patterns;
use crate::plan::units::head_of_unit;
use crate::sys::time::since_boot;
use crate::vfs::{Brought, FsError, OlderThan};

/// How often the thread looks whether something is to be done.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The longest time between two looks for files that are to go.
const AGES_EVERY: Duration = Duration::from_secs(60);

/// How often all names are looked at for pinned files, at most.
const PINS_EVERY: Duration = Duration::from_secs(30);

/// Walks over all names take at most this part of the time: one in so many.
const WALK_SHARE: u32 = 20;

/// So many inodes are looked at under one hold of the lock.
const AT_A_TIME: usize = 1000;

/// How long a clock must be steady before an age is believed.
const STEADY: Duration = Duration::from_secs(3600);

/// A clock that is set by less than this between two looks is steady.
const JUMP: Duration = Duration::from_secs(10);

/// The pause after a file could not be brought, for that file, or for all if the drive is gone.
const AFTER_FAILURE: Duration = Duration::from_secs(30);

/// Compiles a list of patterns.
///
/// # Errors
/// If one is not accepted.
pub(super) fn compiled(lines: &[String]) -> Result<Arc<Patterns>, Failure> {
    let refuse = |pattern: &str, why: &dyn std::fmt::Display| {
        Failure::usage(format!("{pattern:?} {why}"))
            .hint("nothing was changed; see gitignore(5) for the syntax")
    };
    let patterns = Patterns::new(lines).map_err(|(line, why)| refuse(&line, &why))?;
    match patterns.is_everything() {
        true => Err(refuse(&lines.join(", "), &"matches everything")),
        false => Ok(Arc::new(patterns)),
    }
}

/// Sets what stays local.
///
/// # Errors
/// If a pattern is not accepted, or the index fails.
pub(super) fn set_local_patterns(index: &Index, options: &Keeping) -> Result<(), Failure> {
    let patterns = compiled(&options.local)?;
    let set = index.lock().set_local_patterns(patterns);
    set.and_then(|()| index.sort_local())
        .map_err(|error| Failure::failed(error.to_string()))
}

/// What the thread has done, for `status`.
#[derive(Default)]
pub(super) struct Keeper {
    expired: AtomicU64,
    /// Files, with their bytes, that do not fit.
    too_large: Mutex<(u64, u64)>,
}

impl Keeper {
    /// Returns how many files were removed since the start.
    pub(super) fn expired(&self) -> u64 {
        self.expired.load(Ordering::Relaxed)
    }

    /// Returns what the user must know.
    pub(super) fn lines(&self) -> Option<String> {
        let (files, bytes) = *self.too_large.lock();
        (files > 0).then(|| {
            format!(
                "{files} files that are to be in the cache do not fit ({}): raise --cache-size, or \
                 pin less",
                human_bytes(bytes)
            )
        })
    }
}

/// A time in which the clock was behind: what has a time in it was changed later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Behind {
    from: Timestamp,
    until: Timestamp,
    /// The first right time after it.
    jumped: Timestamp,
}

/// The most such times that are told apart.
const MOST_BEHIND: usize = 64;

/// Whether the clock can be believed.
struct Steady {
    /// The last look: the clock, and the time since the boot.
    last: (Timestamp, Duration),
    /// The time since the boot from which on the clock has been steady.
    since: Duration,
    /// What the clock showed then.
    showed: Timestamp,
    behind: Vec<Behind>,
}

impl Steady {
    fn new(clock: Timestamp, boot: Duration) -> Steady {
        Steady {
            last: (clock, boot),
            since: boot,
            showed: clock,
            behind: Vec::new(),
        }
    }

    /// Looks at both clocks. Returns for how long the first has been steady.
    fn look(&mut self, clock: Timestamp, boot: Duration) -> Duration {
        let ran = boot.saturating_sub(self.last.1).as_nanos();
        let showed = i128::from(clock.0) - i128::from(self.last.0.0);
        let off = showed.abs_diff(i128::try_from(ran).unwrap_or(i128::MAX));
        if off > JUMP.as_nanos() {
            tracing::warn!("the clock was set; no file expires before it has been steady");
            self.since = boot;
            let ran = i64::try_from(ran).unwrap_or(i64::MAX);
            let until = Timestamp(self.last.0.0.saturating_add(ran));
            if until < clock {
                self.note_behind(until, clock);
            }
            self.showed = clock;
        }
        self.last = (clock, boot);
        boot.saturating_sub(self.since)
    }

    fn note_behind(&mut self, until: Timestamp, jumped: Timestamp) {
        let from = self.showed;
        self.behind.push(Behind {
            from,
            until,
            jumped,
        });
        if self.behind.len() > MOST_BEHIND {
            let (one, other) = (self.behind.remove(0), self.behind[0]);
            self.behind[0] = Behind {
                from: one.from.min(other.from),
                until: one.until.max(other.until),
                jumped: one.jumped.max(other.jumped),
            };
        }
    }

    /// Returns what is older than `before`.
    fn older_than(&self, before: Timestamp) -> OlderThan {
        let later = self.behind.iter().filter(|it| it.jumped >= before);
        OlderThan {
            before,
            later: later.map(|it| (it.from, it.until)).collect(),
        }
    }
}

/// Runs until the end of the mount.
pub(super) fn run(service: &Service, stop: &Stop) {
    let mut steady = Steady::new(service.fs.now(), since_boot());
    let mut pins = Pins::default();
    let mut aged = Instant::now();
    let mut walked = Duration::ZERO;
    let mut not_before = Instant::now();
    while !stop.is_given() {
        stop.rest(LOOK_EVERY);
        if service.read_only || stop.is_given() {
            continue;
        }
        let options = service.live.read().keeping.clone();
        let for_how_long = steady.look(service.fs.now(), since_boot());
        if aged.elapsed() >= ages_every(&options).max(walked * WALK_SHARE) {
            let_go(service, &options, for_how_long);
            let began = Instant::now();
            remove_old(service, &options.expire, (&steady, for_how_long), stop);
            aged = Instant::now();
            walked = began.elapsed();
        }
        if not_before > Instant::now() {
            continue;
        }
        if let Err(error) = bring(service, &mut pins, &options.pin, stop) {
            tracing::debug!(%error, "a file was not brought into the cache");
            not_before = Instant::now() + AFTER_FAILURE;
        }
    }
}

/// How often ages are looked at: a quarter of the shortest.
fn ages_every(options: &Keeping) -> Duration {
    let ages = options.expire.iter().map(|rule| rule.after);
    let shortest = ages.chain(options.evict_after).min();
    shortest.map_or(AGES_EVERY, |age| (age / 4).clamp(LOOK_EVERY, AGES_EVERY))
}

/// Evicts what was not used for long.
fn let_go(service: &Service, options: &Keeping, steady: Duration) {
    let Some(after) = options
        .evict_after
        .filter(|after| steady >= STEADY.min(*after))
    else {
        return;
    };
    let now = service.fs.now().parts().0;
    let before = now.saturating_sub_unsigned(after.as_secs());
    match service.fs.evict_unused(before) {
        Ok(0) => {}
        Ok(files) => tracing::info!(files, "evicted what was not used for --evict-after"),
        Err(error) => tracing::warn!(%error, "cannot evict what was not used"),
    }
}

/// A rule, compiled.
struct Rule {
    patterns: Patterns,
    after: Duration,
}

/// The rules of which the clock has been steady for long enough.
fn rules(expire: &[Expiry], steady: Duration) -> Vec<Rule> {
    let rule = |rule: &Expiry| {
        let patterns = Patterns::new(std::slice::from_ref(&rule.pattern)).ok()?;
        let after = rule.after;
        Some(Rule { patterns, after })
    };
    let all = expire.iter().filter_map(rule);
    // All rules count for the longest time, but none is taken before its own.
    all.map(|mut rule| {
        if steady < STEADY.min(rule.after) {
            rule.after = Duration::MAX;
        }
        rule
    })
    .collect()
}

/// Removes local files that have not changed for the time of the longest rule that matches, and
/// empty directories in a directory that matches.
fn remove_old(
    service: &Service,
    expire: &[Expiry],
    (clock, steady): (&Steady, Duration),
    stop: &Stop,
) {
    let rules = rules(expire, steady);
    if rules.iter().all(|rule| rule.after == Duration::MAX) {
        return;
    }
    // What was made since the last time has no flag yet.
    let sorted = service.sort_local().map_err(FsError::from);
    let old = match sorted.and_then(|()| old_names(service, &rules)) {
        Ok(old) => old,
        Err(error) => {
            tracing::warn!(%error, "cannot look for files that have expired");
            return;
        }
    };
    // What is in a directory comes after it.
    for (name, path, before) in old.into_iter().rev() {
        if stop.is_given() {
            return;
        }
        let (parent, ino) = (name.parent, name.ino);
        let age = clock.older_than(before);
        match service.fs.remove_if_old(parent, &name.name, ino, &age) {
            Ok(0) => {}
            Ok(names) => {
                tracing::info!(%path, names, "removed: it has expired");
                service.keeper.expired.fetch_add(names, Ordering::Relaxed);
            }
            Err(error) => tracing::warn!(%error, %path, "has expired and cannot be removed"),
        }
    }
}

type Old = (WalkedName, RelPath, Timestamp);

/// Returns the names that have expired, each with the time before which it was last changed.
fn old_names(service: &Service, rules: &[Rule]) -> Result<Vec<Old>, FsError> {
    let now = service.fs.now();
    service.index.commit()?;
    let snapshot = service.index.snapshot()?;
    let mut old = Vec::new();
    let root = (Ino::ROOT, RelPath::root());
    // The longest time of the rules that match the directory; zero for none.
    snapshot.walk(root, Duration::ZERO, &mut |name, path, others, above| {
        let matching = rules
            .iter()
            .filter(|rule| rule.patterns.matches_itself(path, name.is_dir()));
        let own = matching.map(|rule| rule.after).max().unwrap_or_default();
        let after = own.max(*above);
        // A directory that a rule names stays; those in it go.
        let is_named = name.is_dir() && above.is_zero();
        let may_go = !after.is_zero() && !is_named;
        if let (true, Some(before)) = (may_go, earlier(now, after))
            && name.flags.has(Flags::LOCAL)
            && name.mtime.max(name.ctime) < before
            && (name.is_dir() || !goes_with_another(name, others))
        {
            old.push((name.clone(), path.clone(), before));
        }
        Some(after)
    })?;
    Ok(old)
}

/// Returns whether a file belongs to a database beside it, with which it goes.
fn goes_with_another(name: &WalkedName, others: &[WalkedName]) -> bool {
    let database = head_of_unit(&name.name);
    let is_it = |other: &WalkedName| other.name == database && !other.is_dir();
    database != name.name && others.iter().any(is_it)
}

fn earlier(now: Timestamp, by: Duration) -> Option<Timestamp> {
    let by = i64::try_from(by.as_nanos()).ok()?;
    now.0.checked_sub(by).map(Timestamp)
}

/// What is known of pinned files, and of those that could not be brought.
#[derive(Default)]
struct Pins {
    patterns: Vec<String>,
    /// The state of the index when all names were last looked at, when that was, and how long it
    /// took.
    looked: Option<(u64, Instant, Duration)>,
    /// Pinned files that are not in the cache.
    away: Vec<Ino>,
    put_off: HashMap<Ino, PutOff>,
    summed: HashMap<Ino, Summed>,
}

/// What is held, and was compared with the space.
#[derive(Clone, Copy)]
struct Summed {
    at: Instant,
    /// So much was wanted.
    wanted: usize,
    /// The missing bytes, if not all of it fits.
    too_large: Option<u64>,
}

/// A file that was not brought.
#[derive(Clone, Copy)]
struct PutOff {
    at: Instant,
    /// It does not fit: its size, and the state of the index at that time.
    too_large: Option<(u64, u64)>,
}

impl PutOff {
    /// Returns whether it is tried again: after a while, and if it did not fit only if something
    /// has changed.
    fn is_over(&self, operations: u64) -> bool {
        let has_changed = self.too_large.is_none_or(|(_, then)| then != operations);
        self.at.elapsed() >= AFTER_FAILURE && has_changed
    }
}

/// Brings what is to be in the cache, one file after another. What is brought for a directory that
/// is held is brought only if all of it fits.
fn bring(
    service: &Service,
    pins: &mut Pins,
    patterns: &[String],
    stop: &Stop,
) -> Result<(), FsError> {
    pins.look(service, patterns)?;
    let (together, operations) = {
        let state = service.index.lock();
        (state.wanted_together(), state.operations())
    };
    pins.forget_others(&together);
    let mut away: Vec<Ino> = Vec::new();
    let (mut files, mut bytes) = (0, 0_u64);
    for it in together {
        match pins.too_large_together(service, &it)? {
            None => away.extend(it.wanted),
            Some(size) => {
                files += it.wanted.len() as u64;
                bytes = bytes.saturating_add(size);
            }
        }
    }
    away.extend(pins.away.iter().copied());
    for ino in away {
        let is_there = service.drive.is_attached() && service.drive.stalled().is_none();
        if stop.is_given() || !is_there || service.flusher.is_running() {
            return Ok(());
        }
        if !pins.may_try(ino, operations) {
            if let Some((size, _)) = pins.put_off.get(&ino).and_then(|it| it.too_large) {
                files += 1;
                bytes = bytes.saturating_add(size);
            }
            continue;
        }
        match service.fs.bring(ino) {
            Ok(Brought::There) => {}
            Ok(Brought::Fetched(_)) => pins.away.retain(|other| *other != ino),
            Ok(Brought::TooLarge(size)) => {
                files += 1;
                bytes = bytes.saturating_add(size);
                pins.put_off(ino, Some((size, operations)));
            }
            Err(error) if !service.drive.is_attached() => return Err(error),
            Err(error) => {
                tracing::debug!(%error, ?ino, "a file was not brought into the cache");
                pins.put_off(ino, None);
            }
        }
    }
    *service.keeper.too_large.lock() = (files, bytes);
    Ok(())
}

/// Returns the bytes that are missing of what is wanted together, if not all of it fits.
fn too_large_together(service: &Service, it: &WantedTogether) -> Result<Option<u64>, FsError> {
    let sum = |files: &[Ino]| -> Result<u64, FsError> {
        let mut bytes = 0_u64;
        for some in files.chunks(AT_A_TIME) {
            let mut state = service.index.lock();
            for ino in some {
                let inode = state.inode(*ino)?.filter(|inode| !inode.is_dir());
                bytes = bytes.saturating_add(inode.map_or(0, |inode| inode.size));
            }
        }
        Ok(bytes)
    };
    let (missing, here) = (sum(&it.wanted)?, sum(&it.brought)?);
    let fits = missing == 0 || service.fs.could_hold(missing.saturating_add(here))?;
    Ok((!fits).then_some(missing))
}

impl Pins {
    fn put_off(&mut self, ino: Ino, too_large: Option<(u64, u64)>) {
        let at = Instant::now();
        self.put_off.insert(ino, PutOff { at, too_large });
    }

    /// Returns whether a file is to be brought now.
    fn may_try(&self, ino: Ino, operations: u64) -> bool {
        (self.put_off.get(&ino)).is_none_or(|it| it.is_over(operations))
    }

    /// The same as the function, looked at once in a while.
    fn too_large_together(
        &mut self,
        service: &Service,
        it: &WantedTogether,
    ) -> Result<Option<u64>, FsError> {
        let wanted = it.wanted.len();
        if let Some(known) = self.summed.get(&it.held)
            && known.at.elapsed() < AFTER_FAILURE
            && known.wanted >= wanted
        {
            return Ok(known.too_large);
        }
        let too_large = too_large_together(service, it)?;
        let at = Instant::now();
        let known = Summed {
            at,
            wanted,
            too_large,
        };
        self.summed.insert(it.held, known);
        Ok(too_large)
    }

    /// Forgets the failures of files that are not wanted any more.
    fn forget_others(&mut self, together: &[WantedTogether]) {
        let held: HashSet<Ino> = together.iter().map(|it| it.held).collect();
        self.summed.retain(|ino, _| held.contains(ino));
        if self.put_off.is_empty() {
            return;
        }
        let wanted = together.iter().flat_map(|it| &it.wanted);
        let wanted: HashSet<Ino> = wanted.chain(&self.away).copied().collect();
        self.put_off.retain(|ino, _| wanted.contains(ino));
    }

    /// Looks for pinned files at all names, if anything has changed since the last time.
    fn look(&mut self, service: &Service, patterns: &[String]) -> Result<(), FsError> {
        let is_same = self.patterns == patterns;
        if is_same && patterns.is_empty() {
            return Ok(());
        }
        let operations = service.index.lock().operations();
        let is_recent = self.looked.is_some_and(|(then, at, took)| {
            then == operations || at.elapsed() < PINS_EVERY.max(took * WALK_SHARE)
        });
        if is_same && is_recent {
            return Ok(());
        }
        // Checked when the options were taken.
        let compiled = Patterns::new(patterns).unwrap_or_default();
        let began = Instant::now();
        service.index.commit()?;
        let snapshot = service.index.snapshot()?;
        let mut pinned = HashSet::new();
        let mut bytes = 0_u64;
        let mut away = Vec::new();
        let root = (Ino::ROOT, RelPath::root());
        snapshot.walk(
            root,
            compiled.is_everything(),
            &mut |name, path, _, above| {
                let is_pinned = *above || compiled.matches_itself(path, name.is_dir());
                if is_pinned && !name.is_dir() && pinned.insert(name.ino) {
                    let is_away = !name.is_cached
                        && name.size > 0
                        && name.flags.has(Flags::ON_BACKEND)
                        && !name.flags.has(Flags::DATA_DIRTY);
                    let is_clean = !name.flags.any(Flags::DIRTY) && !name.flags.has(Flags::LOCAL);
                    if is_away {
                        away.push(name.ino);
                    } else if name.is_cached && is_clean {
                        bytes = bytes.saturating_add(name.size);
                    }
                }
                Some(is_pinned)
            },
        )?;
        service.fs.set_pinned(pinned, bytes);
        self.patterns = patterns.to_vec();
        self.away = away;
        let operations = service.index.lock().operations();
        self.looked = Some((operations, Instant::now(), began.elapsed()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn clock(secs: u64) -> Timestamp {
        Timestamp::from_parts(secs as i64, 0)
    }

    #[test]
    fn a_clock_that_jumps_is_not_believed_until_it_has_been_steady() {
        let start = 1_700_000_000;
        let mut steady = Steady::new(clock(start), HOUR);
        let boot = |secs| HOUR + Duration::from_secs(secs);
        assert_eq!(
            steady.look(clock(start + 60), boot(60)),
            Duration::from_secs(60)
        );
        // A leap second, or a clock that is adjusted slowly.
        assert_eq!(
            steady.look(clock(start + 121), boot(120)),
            Duration::from_secs(120)
        );
        for jumped in [start + 40_000_000, start - 86_400, 0] {
            assert_eq!(
                steady.look(clock(jumped), boot(180)),
                Duration::ZERO,
                "{jumped}"
            );
            assert_eq!(
                steady.look(clock(jumped + 30), boot(210)),
                Duration::from_secs(30)
            );
            steady = Steady::new(clock(start + 120), boot(120));
        }
    }

    #[test]
    fn what_was_written_while_the_clock_was_behind_counts_as_written_when_it_was_set() {
        let mut steady = Steady::new(clock(1000), HOUR);
        let boot = |secs| HOUR + Duration::from_secs(secs);
        steady.look(clock(1060), boot(60));
        // Two seconds later the network sets it.
        let right = 1_700_000_000;
        steady.look(clock(right), boot(62));
        let is_old = |steady: &Steady, before, changed| {
            let age = steady.older_than(clock(before));
            age.has(clock(changed), clock(changed))
        };
        for written in [1000, 1030, 1062] {
            assert!(!is_old(&steady, right - 60, written), "{written}");
            assert!(!is_old(&steady, right, written), "{written}");
            assert!(is_old(&steady, right + 1, written), "{written}");
        }
        assert!(is_old(&steady, right - 60, 999));
        assert!(is_old(&steady, right - 60, 2000));
        assert!(!is_old(&steady, right - 60, right - 1));
        // Set back and forth again, many times.
        for n in 0..200 {
            let now = 62 + 2 * n;
            steady.look(clock(2000 + n), boot(now + 1));
            steady.look(clock(right + n), boot(now + 2));
        }
        assert!(steady.behind.len() <= MOST_BEHIND);
        for written in [1030, 2000, 2150] {
            assert!(!is_old(&steady, right - 60, written), "{written}");
        }
    }

    #[test]
    fn no_rule_is_taken_before_the_clock_was_steady_for_its_time_or_an_hour() {
        let expiry = |pattern: &str, after| Expiry {
            pattern: pattern.into(),
            after,
        };
        let both = [expiry("tmp/", HOUR / 60), expiry("old/", 24 * HOUR)];
        let after = |steady| -> Vec<bool> {
            let rules = rules(&both, steady);
            rules
                .iter()
                .map(|rule| rule.after < Duration::MAX)
                .collect()
        };
        assert_eq!(after(Duration::ZERO), [false, false]);
        assert_eq!(after(HOUR / 60), [true, false]);
        assert_eq!(after(HOUR), [true, true]);
    }

    #[test]
    fn ages_are_looked_at_often_enough_for_the_shortest() {
        let options = |after| Keeping {
            evict_after: Some(after),
            ..Keeping::default()
        };
        assert_eq!(ages_every(&Keeping::default()), AGES_EVERY);
        assert_eq!(ages_every(&options(24 * HOUR)), AGES_EVERY);
        assert_eq!(
            ages_every(&options(Duration::from_secs(40))),
            Duration::from_secs(10)
        );
        assert_eq!(ages_every(&options(Duration::from_secs(1))), LOOK_EVERY);
    }
}
