//! Finds files that were moved: those that vanished under one name and appeared under another.

use std::collections::HashMap;

use crate::core::Name;

/// A file that vanished or appeared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The last component of its path.
    pub name: Name,
    /// The size in bytes.
    pub size: u64,
    /// The modification time in nanoseconds since 1970.
    pub modified: i64,
}

/// A moved file, as positions in the arguments of [`pair`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Position among the vanished.
    pub vanished: usize,
    /// Position among the appeared.
    pub appeared: usize,
    /// The bytes are known to be equal. Otherwise size, time, and the lack of other candidates
    /// suggest it.
    pub certain: bool,
}

/// With more candidates than this, only names count.
const MANY: usize = 64;

/// Pairs vanished with appeared files of the same size and time. If `same_bytes` (given positions)
/// knows the answer, it decides. Otherwise a pair is formed only if neither has another candidate,
/// or the name is unchanged. Each file is in at most one pair.
pub fn pair(
    vanished: &[Trace],
    appeared: &[Trace],
    granularity: u64,
    mut same_bytes: impl FnMut(usize, usize) -> Option<bool>,
) -> Vec<Pair> {
    let gone = ByTime::new(vanished);
    let come = ByTime::new(appeared);
    let mut taken = vec![false; appeared.len()];
    let mut pairs = Vec::new();
    for (from, trace) in vanished.iter().enumerate() {
        let free = |at: &usize| !taken[*at];
        let mut candidates: Vec<usize> = come.near(trace, granularity).filter(free).collect();
        let keeps_name = |at: &usize| appeared[*at].name == trace.name;
        if trace.size == 0 || candidates.len() > MANY {
            // All empty files are equal: only the name distinguishes them.
            candidates.retain(keeps_name);
        }
        candidates.sort_by_key(|at| (!keeps_name(at), *at));
        let mut unknown = Vec::new();
        let mut found = None;
        for to in candidates {
            let same = match trace.size {
                0 => Some(true),
                _ => same_bytes(from, to),
            };
            match same {
                Some(true) => {
                    found = Some((to, true));
                    break;
                }
                Some(false) => {}
                None => unknown.push(to),
            }
        }
        let found = found.or_else(|| {
            let mut named = unknown.iter().copied().filter(keeps_name);
            let likely = match (unknown.as_slice(), named.next(), named.next()) {
                (_, Some(only), None) => only,
                ([only], None, _) if gone.near(&appeared[*only], granularity).count() == 1 => *only,
                _ => return None,
            };
            Some((likely, false))
        });
        if let Some((to, certain)) = found {
            taken[to] = true;
            pairs.push(Pair {
                vanished: from,
                appeared: to,
                certain,
            });
        }
    }
    pairs
}

/// Traces by size and time.
struct ByTime(HashMap<u64, Vec<(i64, usize)>>);

impl ByTime {
    fn new(traces: &[Trace]) -> ByTime {
        let mut by_size: HashMap<u64, Vec<(i64, usize)>> = HashMap::new();
        for (at, trace) in traces.iter().enumerate() {
            let same_size = by_size.entry(trace.size).or_default();
            same_size.push((trace.modified, at));
        }
        for same_size in by_size.values_mut() {
            same_size.sort_unstable();
        }
        ByTime(by_size)
    }

    /// Returns the positions of those with the size and time of `trace`.
    fn near(&self, trace: &Trace, granularity: u64) -> impl Iterator<Item = usize> {
        let same_size = self.0.get(&trace.size).map_or(&[][..], Vec::as_slice);
        let slack = i64::try_from(granularity.max(1)).unwrap_or(i64::MAX);
        let from = trace.modified.saturating_sub(slack);
        let upto = trace.modified.saturating_add(slack);
        let first = same_size.partition_point(|(time, _)| *time < from);
        let near = same_size[first..].iter();
        near.take_while(move |(time, _)| *time <= upto)
            .map(|(_, at)| *at)
    }
}
