//! How many channels of each group go, and which.

use std::collections::BTreeMap;

use paring_ir::analysis::channels::{ChannelId, Channels, Group, Removed};

use super::{Options, Scope};

/// A group that may shrink.
pub(super) struct Candidate {
    /// The place of the group in the analysis.
    pub(super) group: usize,
    /// The channels with what losing each costs, those that go first first; costs don't fall.
    pub(super) order: Vec<(ChannelId, f64)>,
    /// What is kept is a multiple of this, or everything.
    step: usize,
    /// At least so many are kept.
    least: usize,
    /// The share to remove, where no budget says otherwise.
    ratio: f64,
    /// The ratio was set for this group alone, so it takes no part in a ranking.
    apart: bool,
    /// Groups of equal structure are ranked together by [`Scope::Isomorphic`].
    structure: String,
    /// What a channel saves, for rankings of costs by what they save.
    saving: f64,
}

impl Candidate {
    /// A group under its options. `order` may come in any order.
    pub(super) fn new(
        (at, group): (usize, &Group),
        options: &Options,
        whole: &Options,
        mut order: Vec<(ChannelId, f64)>,
    ) -> Candidate {
        order.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
        let mut highest = 0.0f64;
        for (_, cost) in &mut order {
            highest = highest.max(*cost);
            *cost = highest;
        }
        let n = order.len();
        let width = group.members.iter().map(|m| m.width).min().unwrap_or(1);
        let width = width.max(1);
        let step = step(options.round_to, width, n);
        let floor = ((1.0 - options.max_ratio) * n as f64).ceil() as usize;
        let least = options.min_channels.div_ceil(width).max(floor).max(1);
        Candidate {
            group: at,
            order,
            step,
            least: least.min(n),
            ratio: options.ratio,
            apart: options.ratio != whole.ratio,
            structure: group.structure.clone(),
            saving: 1.0,
        }
    }

    /// Ranks the group's channels by their cost for what each of them saves.
    pub(super) fn weigh(&mut self, saving: f64) {
        self.saving = saving.max(f64::MIN_POSITIVE);
    }

    fn len(&self) -> usize {
        self.order.len()
    }

    /// How many go when so many should.
    fn rounded(&self, wanted: usize) -> usize {
        let n = self.len();
        let keep = n.saturating_sub(wanted).max(self.least);
        let low = keep / self.step * self.step;
        let high = (low + self.step).min(n);
        // Of two multiples at the same distance the lower one.
        let nearer = keep - low <= high.saturating_sub(keep);
        let kept = match low >= self.least && nearer {
            true => low,
            false => high,
        };
        n - kept.min(n)
    }

    fn remove(&self, wanted: usize, removed: &mut Removed) {
        let count = self.rounded(wanted);
        for (channel, _) in self.order.iter().take(count) {
            removed.set(*channel, true);
        }
    }
}

/// The step in channels: `round_to` indices, fewer in groups that would else be left alone.
fn step(round_to: usize, width: usize, n: usize) -> usize {
    let round_to = round_to.max(1);
    let mut step = round_to / gcd(round_to, width);
    while step > 1 && step > n / 2 {
        step /= 2;
    }
    step.max(1)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The channels that go at a level from 0 (none) to 1 (as many as may go).
pub(super) fn at_level(
    channels: &Channels,
    candidates: &[Candidate],
    scope: Scope,
    level: f64,
) -> Removed {
    let mut removed = Removed::none(channels);
    let mut pools: BTreeMap<&str, Vec<&Candidate>> = BTreeMap::new();
    for candidate in candidates {
        match scope {
            Scope::Uniform => candidate.remove(share(level, candidate.len()), &mut removed),
            Scope::Global => pools.entry("").or_default().push(candidate),
            Scope::Isomorphic => pools
                .entry(candidate.structure.as_str())
                .or_default()
                .push(candidate),
        }
    }
    for pool in pools.values() {
        for (candidate, wanted) in pool.iter().zip(ranked(pool, level)) {
            candidate.remove(wanted, &mut removed);
        }
    }
    removed
}

/// The channels that go at the ratios that the options give.
pub(super) fn at_ratios(
    channels: &Channels,
    candidates: Vec<Candidate>,
    scope: Scope,
    ratio: f64,
) -> Removed {
    let (apart, pooled): (Vec<_>, Vec<_>) = candidates
        .into_iter()
        .partition(|c| c.apart || scope == Scope::Uniform);
    let mut removed = at_level(channels, &pooled, scope, ratio);
    for candidate in apart {
        candidate.remove(share(candidate.ratio, candidate.len()), &mut removed);
    }
    removed
}

fn share(level: f64, n: usize) -> usize {
    // A hair above, so that a half of ten is five whatever the last bit says.
    ((level * n as f64 + 1e-9).floor() as usize).min(n)
}

/// How many of each go when those that cost least of all go, up to a share of all.
fn ranked(pool: &[&Candidate], level: f64) -> Vec<usize> {
    let mut all: Vec<(f64, usize)> = Vec::new();
    for (i, candidate) in pool.iter().enumerate() {
        let room = candidate.len() - candidate.least;
        let costs = candidate.order.iter().take(room);
        all.extend(costs.map(|(_, cost)| (cost / candidate.saving, i)));
    }
    // A stable sort: of equal costs the earlier group's go first.
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let total: usize = pool.iter().map(|c| c.len()).sum();
    let mut counts = vec![0usize; pool.len()];
    for (_, i) in all.into_iter().take(share(level, total)) {
        counts[i] += 1;
    }
    counts
}
