//! Chooses the changes for one batch, if they are too many for one. A pure function.
//!
//! Changes that make sense only together are *joined*: a batch takes all of them or none. A change
//! may *need* another: it comes in the same batch or a later one. The cheapest changes come first,
//! so that one large change, or many, cannot delay the others.

use std::collections::HashMap;

/// The result for one change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// This batch has it.
    Taken,
    /// It waits for a later batch.
    Later,
    /// It fits into no batch.
    Never,
}

/// The waiting changes, by number, and the relations between them.
#[derive(Debug, Default)]
pub struct WaitingChanges {
    /// The costs; `None` for a change that no batch can hold.
    costs: Vec<Option<u64>>,
    /// The change that each is joined to; itself, if there is none with a lower number.
    joined: Vec<usize>,
    needs: Vec<(usize, usize)>,
}

/// A set of joined changes.
#[derive(Debug, Default)]
struct Group {
    cost: Option<u64>,
    needs: Vec<usize>,
    fate: Option<Fate>,
}

impl WaitingChanges {
    /// Adds a change and returns its number.
    pub fn add(&mut self, cost: Option<u64>) -> usize {
        self.costs.push(cost);
        self.joined.push(self.joined.len());
        self.joined.len() - 1
    }

    /// Joins two changes.
    pub fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.first(one), self.first(other));
        self.joined[one.max(other)] = one.min(other);
    }

    /// Makes `one` need `other`.
    pub fn need(&mut self, one: usize, other: usize) {
        self.needs.push((one, other));
    }

    /// Returns the total cost.
    pub fn cost(&self) -> u64 {
        let costs = self.costs.iter().flatten();
        costs.fold(0, |sum, cost| sum.saturating_add(*cost))
    }

    /// Returns the lowest number among the changes joined to `of`.
    fn first(&mut self, of: usize) -> usize {
        let mut first = of;
        while self.joined[first] != first {
            // Path halving, for later calls.
            self.joined[first] = self.joined[self.joined[first]];
            first = self.joined[first];
        }
        first
    }

    /// Chooses changes within `budget`. If it chooses none although some wait, these never fit.
    pub fn choose(mut self, budget: u64) -> Vec<Fate> {
        let firsts: Vec<usize> = (0..self.joined.len()).map(|of| self.first(of)).collect();
        let mut groups = self.groups(&firsts, budget);
        let mut order: Vec<usize> = groups.keys().copied().collect();
        order.sort_by_key(|of| (groups[of].cost, *of));
        let mut left = budget;
        for of in order {
            take(&mut groups, of, &mut left);
        }
        let none_taken = !groups.values().any(|group| group.fate == Some(Fate::Taken));
        let fate = |of: &usize| match groups[of].fate {
            Some(Fate::Later) | None if none_taken => Fate::Never,
            fate => fate.unwrap_or(Fate::Later),
        };
        firsts.iter().map(fate).collect()
    }

    fn groups(&self, firsts: &[usize], budget: u64) -> HashMap<usize, Group> {
        let mut groups: HashMap<usize, Group> = HashMap::new();
        for (of, cost) in firsts.iter().zip(&self.costs) {
            let group = groups.entry(*of).or_insert_with(|| Group {
                cost: Some(0),
                ..Group::default()
            });
            group.cost = match (group.cost, cost) {
                (Some(sum), Some(cost)) => Some(sum.saturating_add(*cost)),
                _ => None,
            };
        }
        for group in groups.values_mut() {
            if group.cost.is_none_or(|cost| cost > budget) {
                group.fate = Some(Fate::Never);
            }
        }
        for (one, other) in &self.needs {
            let (one, other) = (firsts[*one], firsts[*other]);
            if let (true, Some(group)) = (one != other, groups.get_mut(&one)) {
                group.needs.push(other);
            }
        }
        groups
    }
}

/// Takes the group `of` with everything that it needs, if the rest of the budget allows. Otherwise
/// marks the group as not taken; this is final, because the rest only shrinks.
fn take(groups: &mut HashMap<usize, Group>, of: usize, left: &mut u64) {
    let mut wanted = vec![of];
    let mut at = 0;
    let mut cost: u64 = 0;
    let mut seen = std::collections::HashSet::from([of]);
    let mut fate = Fate::Taken;
    while let (Some(&next), Fate::Taken) = (wanted.get(at), fate) {
        at += 1;
        let Some(group) = groups.get(&next) else {
            continue;
        };
        match group.fate {
            Some(Fate::Taken) => continue,
            Some(other) => fate = other,
            None => cost = cost.saturating_add(group.cost.unwrap_or(u64::MAX)),
        }
        if cost > *left && fate == Fate::Taken {
            fate = Fate::Later;
        }
        wanted.extend(group.needs.iter().filter(|need| seen.insert(**need)));
    }
    match fate {
        Fate::Taken => {
            *left -= cost;
            for of in wanted {
                if let Some(group) = groups.get_mut(&of) {
                    group.fate = Some(Fate::Taken);
                }
            }
        }
        // The groups that it needs may still be taken for themselves.
        _ => {
            if let Some(group) = groups.get_mut(&of) {
                group.fate.get_or_insert(fate);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_light_comes_first_and_what_is_too_large_never() {
        let mut parts = WaitingChanges::default();
        for cost in [Some(60), Some(5), Some(101), Some(50), None] {
            parts.add(cost);
        }
        let fates = parts.choose(100);
        use Fate::{Later, Never, Taken};
        assert_eq!(fates, [Later, Taken, Never, Taken, Never]);
    }

    #[test]
    fn what_needs_something_waits_for_it() {
        let mut parts = WaitingChanges::default();
        let dir = parts.add(Some(90));
        let light = parts.add(Some(1));
        let far = parts.add(Some(20));
        let lost = parts.add(Some(1));
        let never = parts.add(None);
        parts.need(light, dir);
        parts.need(far, light);
        parts.need(lost, never);
        use Fate::{Later, Never, Taken};
        assert_eq!(parts.choose(100), [Taken, Taken, Later, Never, Never]);
    }

    #[test]
    fn what_can_only_go_together_and_is_too_much_is_said_to_fit_never() {
        let mut parts = WaitingChanges::default();
        let (one, other) = (parts.add(Some(60)), parts.add(Some(60)));
        parts.need(one, other);
        parts.need(other, one);
        assert_eq!(parts.choose(100), [Fate::Never; 2]);
    }

    proptest! {
        #[test]
        fn a_part_holds_what_it_needs_and_no_more_than_it_may(
            costs in prop::collection::vec(prop::option::weighted(0.9, 0..60_u64), 1..30),
            joins in prop::collection::vec((0..30_usize, 0..30_usize), 0..10),
            needs in prop::collection::vec((0..30_usize, 0..30_usize), 0..30),
            budget in 0..200_u64,
        ) {
            let count = costs.len();
            let within = |pairs: Vec<(usize, usize)>| -> Vec<(usize, usize)> {
                pairs.into_iter().map(|(a, b)| (a % count, b % count)).collect()
            };
            let (joins, needs) = (within(joins), within(needs));
            let mut parts = WaitingChanges::default();
            for cost in &costs { parts.add(*cost); }
            for (a, b) in &joins { parts.join(*a, *b); }
            for (a, b) in &needs { parts.need(*a, *b); }
            let fates = parts.choose(budget);
            let taken = |of: usize| fates[of] == Fate::Taken;
            for (a, b) in &joins { prop_assert_eq!(fates[*a], fates[*b]); }
            for (a, b) in &needs { prop_assert!(!taken(*a) || taken(*b)); }
            let all: u64 = (0..count).filter(|of| taken(*of)).map(|of| costs[of].unwrap()).sum();
            prop_assert!(all <= budget);
            let waits = fates.contains(&Fate::Later);
            prop_assert!(!waits || fates.contains(&Fate::Taken), "there is no end to it");
        }
    }
}
