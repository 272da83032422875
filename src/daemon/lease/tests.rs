use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::drive::faulty::FaultyBackend;
use crate::drive::memory::{MemoryBackend, MemoryOptions};

const SILENCE: Duration = Duration::from_secs(60);

fn share() -> Arc<dyn Backend> {
    let backend = MemoryBackend::new(MemoryOptions::default());
    backend.make_dir(&layout::dir()).unwrap();
    Arc::new(backend)
}

fn keeper(cache: u128) -> Keeper {
    let of = (Uuid::from_u128(1), Uuid::from_u128(cache));
    let mut keeper = Keeper::new(LeaseMode::Auto, SILENCE, of, Timestamp(0));
    keeper.me.host = format!("host{cache}");
    keeper.pause = Duration::ZERO;
    keeper
}

fn put(backend: &dyn Backend, path: &RelPath, bytes: &[u8]) {
    let _ = backend.remove_file(path);
    let mut file = backend.create(path).unwrap();
    file.append(bytes).unwrap();
    file.finish(Timestamp(0)).unwrap();
}

/// A claim with a clock of the test's own.
struct Rival {
    keeper: Keeper,
    claim: Claim,
}

impl Rival {
    fn new(cache: u128, take_over: bool) -> Rival {
        let keeper = keeper(cache);
        let claim = Claim::new(&keeper.me, take_over);
        Rival { keeper, claim }
    }

    /// Steps on from `now` until it is decided, with `meanwhile` after each wait. Gives the outcome
    /// and the time it took.
    fn run(
        &mut self,
        backend: &Arc<dyn Backend>,
        mut meanwhile: impl FnMut(),
    ) -> (Result<()>, Duration) {
        let begun = Instant::now();
        let mut now = begun;
        loop {
            match self.claim.step(&**backend, now) {
                Ok(Step::Held) => {
                    *self.keeper.hold.lock() = Hold::Held(backend.clone());
                    return (Ok(()), now - begun);
                }
                Ok(Step::Wait { left, .. }) => {
                    now += left.clamp(Duration::from_millis(1), Duration::from_secs(1));
                    meanwhile();
                }
                Err(error) => return (Err(error), now - begun),
            }
            assert!(now - begun < Duration::from_secs(600), "never decided");
        }
    }
}

fn holder(backend: &Arc<dyn Backend>, cache: u128) -> Keeper {
    let mut rival = Rival::new(cache, false);
    rival.run(backend, || {}).0.unwrap();
    rival.keeper
}

#[test]
fn a_directory_that_nobody_has_is_had_within_a_second() {
    let share = share();
    let (outcome, took) = Rival::new(1, false).run(&share, || {});
    outcome.unwrap();
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn one_who_answers_keeps_it_and_is_named() {
    let share = share();
    let first = holder(&share, 1);
    let (outcome, took) = Rival::new(2, false).run(&share, || first.look_after());
    let error = outcome.unwrap_err();
    assert!(matches!(error, LeaseFailure::Held(_)), "{error}");
    let message = error.to_string();
    assert!(
        message.contains("host1") && message.contains("1970-01-01T00:00:00Z"),
        "{message}"
    );
    assert!(took < SILENCE);
    first.check(&*share).unwrap();
}

#[test]
fn one_who_does_not_answer_is_replaced_after_his_silence_and_no_earlier() {
    let share = share();
    let first = holder(&share, 1);
    let mut second = Rival::new(2, false);
    let (outcome, took) = second.run(&share, || {});
    outcome.unwrap();
    assert!(took >= SILENCE, "{took:?}");
    // He wakes up.
    let lost = first.check(&*share).unwrap_err();
    assert!(lost.to_string().contains("host2"), "{lost}");
    assert!(first.is_lost() && first.take_loss().is_some());
    second.keeper.check(&*share).unwrap();
}

#[test]
fn the_same_cache_on_the_same_machine_does_not_wait_for_its_own_past() {
    let share = share();
    let _killed = std::mem::ManuallyDrop::new(holder(&share, 1));
    let (outcome, took) = Rival::new(1, false).run(&share, || {});
    outcome.unwrap();
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn the_same_cache_on_another_machine_is_a_copy_and_asks() {
    let share = share();
    let first = holder(&share, 1);
    let mut copy = Rival::new(1, false);
    copy.keeper.me.host = "elsewhere".into();
    copy.claim = Claim::new(&copy.keeper.me, false);
    let (outcome, _) = copy.run(&share, || first.look_after());
    assert!(matches!(outcome, Err(LeaseFailure::Held(_))));
}

#[test]
fn taking_over_asks_nobody_and_the_one_who_had_it_notices() {
    let share = share();
    let first = holder(&share, 1);
    let mut second = Rival::new(2, true);
    let (outcome, took) = second.run(&share, || first.look_after());
    outcome.unwrap();
    assert!(took < SILENCE);
    assert!(first.is_lost(), "noticed before the second begins");
    assert!(matches!(first.check(&*share), Err(LeaseFailure::NotHeld)));
}

#[test]
fn what_is_let_go_of_is_free_at_once() {
    let share = share();
    holder(&share, 1).release();
    assert!(share.metadata(&layout::lease_path()).is_err());
    let (outcome, took) = Rival::new(2, false).run(&share, || {});
    outcome.unwrap();
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn one_who_lost_it_takes_nothing_away_when_he_lets_go() {
    let share = share();
    let first = holder(&share, 1);
    Rival::new(2, true).run(&share, || {}).0.unwrap();
    let before = files::read(&*share).unwrap();
    first.release();
    assert_eq!(files::read(&*share).unwrap(), before);
}

#[test]
fn a_knock_that_was_left_behind_is_no_answer_when_it_is_met() {
    let share = share();
    let first = holder(&share, 1);
    put(&*share, &layout::knock_path(), b"");
    let (outcome, took) = Rival::new(2, false).run(&share, || {});
    outcome.unwrap();
    assert!(took >= SILENCE);
    drop(first);
}

#[test]
fn a_lease_that_was_removed_or_damaged_is_written_anew_by_who_holds_it() {
    let share = share();
    let first = holder(&share, 1);
    let whole = files::read(&*share).unwrap();
    share.remove_file(&layout::lease_path()).unwrap();
    first.check(&*share).unwrap();
    assert_eq!(files::read(&*share).unwrap(), whole);
    put(&*share, &layout::lease_path(), b"rubbish");
    first.check(&*share).unwrap();
    assert_eq!(files::read(&*share).unwrap(), whole);
}

#[test]
fn a_newer_lease_is_refused_and_left_alone_even_with_force() {
    let share = share();
    let mut newer = br#"{"ferryfs":"lease","format":9}"#.to_vec();
    newer.push(b'\n');
    let check = blake3::hash(&newer).to_hex();
    newer.extend_from_slice(format!("{check}\n").as_bytes());
    put(&*share, &layout::lease_path(), &newer);
    for force in [false, true] {
        let (outcome, _) = Rival::new(1, force).run(&share, || {});
        let error = outcome.unwrap_err();
        assert!(
            Failure::from(error)
                .hint
                .unwrap()
                .contains("update ferryfs")
        );
    }
    let bytes =
        crate::drive::sealed_file::read_small(&*share, &layout::lease_path(), 4096).unwrap();
    assert_eq!(bytes.unwrap(), newer);
}

#[test]
fn a_link_or_a_directory_in_the_place_of_a_file_is_refused_and_stays() {
    for path in [layout::lease_path(), layout::knock_path()] {
        for link in [false, true] {
            let share = share();
            if path == layout::knock_path() {
                std::mem::forget(holder(&share, 1));
            }
            match link {
                true => share.make_symlink(b"../somebody", &path).unwrap(),
                false => share.make_dir(&path).unwrap(),
            }
            let (outcome, _) = Rival::new(2, false).run(&share, || {});
            let error = outcome.unwrap_err();
            assert!(matches!(error, LeaseFailure::NotOurs { .. }), "{error}");
            share.metadata(&path).unwrap();
        }
    }
}

#[test]
fn a_lease_that_was_copied_along_with_the_files_is_nobodys_once_nobody_answers() {
    let share = share();
    let mut other = keeper(7);
    other.me.volume = Uuid::from_u128(99);
    put(&*share, &layout::lease_path(), &lease::encode(&other.me));
    let (outcome, took) = Rival::new(1, false).run(&share, || {});
    outcome.unwrap();
    assert!(took >= SILENCE);
}

#[test]
fn on_a_disk_no_lease_is_made_but_one_that_stands_is_respected() {
    let share = share();
    let lone = keeper(1);
    assert_eq!(lone.advance(&share, false, false).unwrap(), Step::Held);
    lone.check(&*share).unwrap();
    assert!(share.metadata(&layout::lease_path()).is_err());
    let _first = holder(&share, 2);
    assert!(matches!(
        lone.advance(&share, false, false),
        Ok(Step::Wait { .. })
    ));
}

#[test]
fn damage_at_any_byte_hands_a_live_lease_to_nobody() {
    let share = share();
    let first = holder(&share, 1);
    let whole = lease::encode(&first.me);
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        if at % 3 == 0 {
            bytes.truncate(at);
        }
        put(&*share, &layout::lease_path(), &bytes);
        // Whoever comes is answered before the damage is noticed, or after.
        let mut looks = 0;
        let (outcome, _) = Rival::new(2, false).run(&share, || {
            looks += 1;
            if looks % 2 == at % 2 {
                first.look_after();
            }
        });
        let error = outcome.unwrap_err();
        assert!(matches!(error, LeaseFailure::Held(_)), "{at}: {error}");
        first.check(&*share).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Several who come at once, in every order of their looks, with and without a dead one's lease
    /// in the way: in the end one has it.
    #[test]
    fn of_several_who_come_at_once_one_has_it(
        order in prop::collection::vec(0..3usize, 20..200),
        dead in any::<bool>(),
        force in any::<[bool; 3]>(),
    ) {
        let share = share();
        if dead {
            std::mem::forget(holder(&share, 9));
        }
        let mut rivals: Vec<Rival> = (0..3).map(|i| Rival::new(i as u128 + 1, force[i])).collect();
        let mut open: [bool; 3] = [true; 3];
        let mut now = Instant::now();
        let mut order: VecDeque<usize> = order.into();
        let mut turn = 0;
        while open.iter().any(|open| *open) {
            let i = order.pop_front().unwrap_or_else(|| { turn += 1; turn % 3 });
            now += Duration::from_millis(100);
            for rival in &rivals {
                rival.keeper.look_after();
            }
            if !open[i] {
                continue;
            }
            match rivals[i].claim.step(&*share, now) {
                Ok(Step::Held) => {
                    *rivals[i].keeper.hold.lock() = Hold::Held(share.clone());
                    open[i] = false;
                }
                Ok(Step::Wait { .. }) => {}
                Err(LeaseFailure::Held(_)) => open[i] = false,
                Err(error) => prop_assert!(false, "{error}"),
            }
        }
        let holders = rivals.iter().filter(|rival| rival.keeper.check(&*share).is_ok()).count();
        prop_assert_eq!(holders, 1);
    }
}

#[test]
fn a_full_share_is_had_in_the_space_that_is_held_there() {
    let memory = MemoryBackend::new(MemoryOptions {
        capacity: Some(40 * 4096),
        cluster: Some(4096),
        ..MemoryOptions::default()
    });
    memory.make_dir(&layout::dir()).unwrap();
    put(&memory, &layout::reserve_path(), &[0; 2 * 4096]);
    let free = memory.space().unwrap().available;
    put(&memory, &RelPath::fixed("theirs"), &vec![7; free as usize]);
    let share: Arc<dyn Backend> = Arc::new(memory.clone());
    let first = holder(&share, 1);
    assert!(memory.metadata(&layout::reserve_path()).is_err());
    assert!(memory.metadata(&layout::lease_path()).is_ok());
    // Nor does a part of a lease stay where there is nothing to be had. The first one takes his
    // away.
    drop(first);
    let free = memory.space().unwrap().available;
    put(&memory, &RelPath::fixed("more"), &vec![7; free as usize]);
    assert!(Rival::new(1, false).run(&share, || {}).0.is_err());
    assert!(memory.metadata(&layout::lease_path()).is_err());
}

#[test]
fn on_a_read_only_share_none_is_needed_until_it_can_be_written() {
    let read_only = (1..).find_map(|call| {
        let share = MemoryBackend::new(MemoryOptions::default());
        share.make_dir(&layout::dir()).unwrap();
        let backend = Arc::new(FaultyBackend::new(share));
        backend.refuse_from(call, libc::EROFS);
        let keeper = keeper(1);
        let held = keeper.advance(&(backend.clone() as Arc<dyn Backend>), true, false);
        let refused = backend.refused();
        let is_made = refused.is_some_and(|it| it == ("create", layout::lease_path()));
        is_made.then_some((backend, keeper, held))
    });
    let (backend, keeper, held) = read_only.unwrap();
    assert_eq!(held.unwrap(), Step::Held);
    keeper.check(&*backend).unwrap();
    backend.heal();
    // From here on it is asked for, and nothing may be written before it is held.
    assert!(matches!(
        keeper.check(&*backend),
        Err(LeaseFailure::NotHeld)
    ));
    let begun = Instant::now();
    while keeper.check(&*backend).is_err() {
        assert!(begun.elapsed() < SILENCE, "it is never held");
        thread::sleep(Duration::from_millis(20));
    }
    assert!(keeper.holds());
}
