//! Optimal clustering of weighted numbers.
//!
//! Clusters of numbers on a line are intervals of the sorted numbers, so the best `k` of them
//! are the cheapest path of `k` arcs over the gaps between neighbours (Wang and Song,
//! "Ckmeans.1d.dp", 2011). The cost of an interval fulfils the quadrangle inequality. With a
//! price on each arc the cheapest path of any length then takes `O(n log n)`, the number of its
//! arcs falls as the price rises, and the path of just `k` arcs is found by searching the price
//! (Aggarwal, Schieber and Tokuyama, "Finding a minimum-weight k-link path in graphs with the
//! concave Monge property", 1994; Grønlund et al., "Fast exact k-means, k-medians and Bregman
//! divergence clustering in 1D", 2017). Memory is `O(n)` for any `k`.
//!
//! Up to [`MAX_POINTS`] distinct numbers the result is optimal. Of more, neighbours are put into
//! [`MAX_POINTS`] bins of equally many distinct numbers, and clusters begin and end at bins only.
//! The cost is then at most the optimum plus, for each of the `k - 1` borders, twice the weight of
//! one bin times its width times the distance of the two centres: what it costs to give the
//! numbers of one bin to the neighbour of the cluster that they belong to.

/// So many distinct numbers are clustered exactly.
pub(super) const MAX_POINTS: usize = 1 << 18;

/// A number and its weight, which is positive.
pub(super) type Weighted = (f32, f32);

/// The centres of at most `k` clusters of the numbers with the least weighted sum of squared
/// distances, ascending. The numbers come back sorted. They are finite.
pub(super) fn centres(numbers: &mut [Weighted], k: usize, max_points: usize) -> Vec<f64> {
    numbers.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let points = Points::of(numbers, max_points);
    let borders = points.partition(k);
    borders
        .windows(2)
        .map(|b| points.mean(b[0], b[1]))
        .collect()
}

/// Sums of weights, first and second moments over the points before an index, about a shift
/// that keeps them small.
struct Points {
    sums: Vec<[f64; 3]>,
    shift: f64,
}

impl Points {
    /// Points of sorted numbers: equal ones together, and neighbours too where there are more
    /// than `max` distinct ones.
    fn of(numbers: &[Weighted], max: usize) -> Points {
        let distinct = numbers.chunk_by(|a, b| a.0 == b.0).count();
        let per_bin = distinct.div_ceil(max.max(1)).max(1);
        let total: f64 = numbers.iter().map(|n| f64::from(n.1)).sum();
        let first: f64 = numbers
            .iter()
            .map(|n| f64::from(n.0) * f64::from(n.1))
            .sum();
        let shift = if total > 0.0 { first / total } else { 0.0 };
        let mut sums = Vec::with_capacity(distinct / per_bin + 2);
        let mut sum = [0.0; 3];
        sums.push(sum);
        for (i, equal) in numbers.chunk_by(|a, b| a.0 == b.0).enumerate() {
            let x = f64::from(equal[0].0) - shift;
            let w: f64 = equal.iter().map(|n| f64::from(n.1)).sum();
            sum = [sum[0] + w, sum[1] + w * x, sum[2] + w * x * x];
            if (i + 1) % per_bin == 0 || i + 1 == distinct {
                sums.push(sum);
            }
        }
        Points { sums, shift }
    }

    /// The number of points.
    fn len(&self) -> usize {
        self.sums.len() - 1
    }

    /// The weighted sum of squared distances of points from their mean.
    fn cost(&self, from: usize, to: usize) -> f64 {
        let (a, b) = (&self.sums[from], &self.sums[to]);
        let (w, s) = (b[0] - a[0], b[1] - a[1]);
        if w > 0.0 {
            (b[2] - a[2] - s * s / w).max(0.0)
        } else {
            0.0
        }
    }

    fn mean(&self, from: usize, to: usize) -> f64 {
        let (a, b) = (&self.sums[from], &self.sums[to]);
        let w = b[0] - a[0];
        let off = if w > 0.0 { (b[1] - a[1]) / w } else { 0.0 };
        self.shift + off
    }

    /// The borders of the best clusters, the first 0 and the last the number of points.
    fn partition(&self, k: usize) -> Vec<usize> {
        let (n, k) = (self.len(), k.max(1));
        if n <= k {
            return (0..=n).collect();
        }
        let whole = self.cost(0, n);
        // At a price of nothing each point stands alone, at the price of all there is one cluster.
        let (mut low, mut high) = (0.0f64, whole);
        let mut many: Vec<usize> = (0..=n).collect();
        let mut few: Vec<usize> = vec![0, n];
        if k == 1 || whole <= 0.0 {
            return few;
        }
        // The cost of k clusters of a smooth density falls as 1 / k^2.
        let mut price = 2.0 * whole / (k as f64).powi(3);
        for step in 0..200 {
            let found = self.priced(price);
            let clusters = found.len() - 1;
            match clusters.cmp(&k) {
                std::cmp::Ordering::Equal => return found,
                std::cmp::Ordering::Greater => (low, many) = (price, found),
                std::cmp::Ordering::Less => (high, few) = (price, found),
            }
            if high - low <= high * 1e-14 {
                break;
            }
            let guess = price * (clusters as f64 / k as f64).powi(3);
            let middle = if low > 0.0 {
                (low * high).sqrt()
            } else {
                high * 1e-3
            };
            // Guesses by the law come first; halving is sure to end.
            price = if step < 12 && guess > low && guess < high {
                guess
            } else {
                middle.clamp(low, high)
            };
            if price <= low || price >= high {
                break;
            }
        }
        spliced(&few, &many, k)
    }

    /// The borders of the clusters that are cheapest when each costs `price` on top.
    fn priced(&self, price: f64) -> Vec<usize> {
        let n = self.len();
        let mut best = vec![0.0f64; n + 1];
        let mut parent = vec![0u32; n + 1];
        // Where the last cluster may begin, each with the first end for which it is the best.
        // A later beginning that wins at one end wins at all later ones.
        let mut queue: Vec<(usize, usize)> = vec![(0, 1)];
        let mut front = 0;
        for end in 1..=n {
            while queue.get(front + 1).is_some_and(|next| next.1 <= end) {
                front += 1;
            }
            let from = queue[front].0;
            best[end] = best[from] + self.cost(from, end) + price;
            parent[end] = from as u32;
            let wins = |at: usize, over: usize| {
                best[end] + self.cost(end, at) < best[over] + self.cost(over, at)
            };
            let mut first = None;
            while let Some(&(last, since)) = queue.get(front..).and_then(<[_]>::last) {
                let since = since.max(end + 1);
                if since <= n && wins(since, last) {
                    queue.pop();
                    first = Some(since);
                    continue;
                }
                first = takeover(since, n, |at| wins(at, last));
                break;
            }
            if let Some(first) = first {
                queue.push((end, first));
            }
        }
        let mut borders = vec![n];
        let mut at = n;
        while at > 0 {
            at = parent[at] as usize;
            borders.push(at);
        }
        borders.reverse();
        borders
    }
}

/// The first place after `since` and up to `n` at which a condition holds that stays true once it
/// is. It is looked for in growing steps, since it is most often near.
fn takeover(since: usize, n: usize, holds: impl Fn(usize) -> bool) -> Option<usize> {
    let (mut no, mut step) = (since, 1usize);
    let mut yes = loop {
        let at = no.saturating_add(step);
        if at > n {
            if no >= n || !holds(n) {
                return None;
            }
            break n;
        }
        if holds(at) {
            break at;
        }
        no = at;
        step = step.saturating_mul(2);
    };
    while yes - no > 1 {
        let middle = no + (yes - no) / 2;
        if holds(middle) {
            yes = middle;
        } else {
            no = middle;
        }
    }
    Some(yes)
}

/// A path of `k` arcs out of two that are both the cheapest at one price, of fewer and of more
/// arcs: the one begins as the longer path and goes on as the shorter one.
fn spliced(few: &[usize], many: &[usize], k: usize) -> Vec<usize> {
    let arcs = few.len() - 1;
    let ahead = k - arcs.min(k);
    for i in 0..arcs {
        let j = i + ahead;
        if let (Some(&from), Some(&to)) = (many.get(j), many.get(j + 1))
            && few[i] <= from
            && to <= few[i + 1]
        {
            let mut path = many[..=j].to_vec();
            path.extend(&few[i + 1..]);
            path.dedup();
            return path;
        }
    }
    few.to_vec()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;

    /// Numbers that look random and are the same in every run.
    fn noise(n: usize, seed: u64) -> Vec<Weighted> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        (0..n)
            .map(|_| {
                let x = next() + next() + next() - 1.5;
                (x * x * x, 0.1 + next())
            })
            .collect()
    }

    /// The least cost by the plain recurrence.
    fn brute(points: &Points, k: usize) -> f64 {
        let n = points.len();
        let mut best: Vec<f64> = (0..=n).map(|j| points.cost(0, j)).collect();
        for _ in 1..k {
            best = (0..=n)
                .map(|j| {
                    (0..=j)
                        .map(|i| best[i] + points.cost(i, j))
                        .fold(f64::INFINITY, f64::min)
                })
                .collect();
        }
        best[n]
    }

    fn cost_of(points: &Points, borders: &[usize]) -> f64 {
        borders.windows(2).map(|b| points.cost(b[0], b[1])).sum()
    }

    #[test]
    fn no_partition_is_better() {
        for seed in 0..40 {
            let mut numbers = noise(20 + 7 * seed as usize, seed + 1);
            if seed % 3 == 0 {
                // Many equal distances and equal numbers: many paths cost the same.
                numbers
                    .iter_mut()
                    .for_each(|n| *n = ((n.0 * 8.0).round(), 1.0));
            }
            numbers.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
            let points = Points::of(&numbers, MAX_POINTS);
            for k in [1, 2, 3, 5, 8, 16, 64] {
                let borders = points.partition(k);
                assert!(borders.len() <= k + 1);
                assert!(borders.is_sorted_by(|a, b| a < b), "{borders:?}");
                let (found, least) = (cost_of(&points, &borders), brute(&points, k));
                assert!(
                    found <= least + 1e-9 * points.cost(0, points.len()),
                    "seed {seed}, k {k}: {found} over {least}"
                );
            }
        }
    }

    #[test]
    fn evenly_spaced_numbers_are_cut_evenly() {
        let mut numbers: Vec<Weighted> = (0..12).map(|i| (i as f32, 1.0)).collect();
        assert_eq!(centres(&mut numbers, 4, MAX_POINTS), [1.0, 4.0, 7.0, 10.0]);
        assert_eq!(centres(&mut numbers, 5, MAX_POINTS).len(), 5);
        assert_eq!(centres(&mut numbers, 12, MAX_POINTS)[11], 11.0);
        assert_eq!(centres(&mut numbers, 1, MAX_POINTS), [5.5]);
    }

    #[test]
    fn heavy_numbers_draw_the_centres() {
        let mut numbers = vec![(0.0, 1.0), (1.0, 99.0), (10.0, 1.0)];
        let found = centres(&mut numbers, 2, MAX_POINTS);
        assert!((found[0] - 0.99).abs() < 1e-9 && (found[1] - 10.0).abs() < 1e-9);
    }

    #[test]
    fn bins_keep_to_the_stated_bound() {
        let mut numbers = noise(20_000, 5);
        numbers.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let exact = Points::of(&numbers, MAX_POINTS);
        let binned = Points::of(&numbers, 500);
        assert!(binned.len() <= 500);
        let k = 16;
        let best = exact.partition(k);
        let (least, found) = (
            cost_of(&exact, &best),
            cost_of(&binned, &binned.partition(k)),
        );
        let centres: Vec<f64> = best.windows(2).map(|b| exact.mean(b[0], b[1])).collect();
        let per_bin = numbers.len().div_ceil(500);
        let bound: f64 = (1..k)
            .map(|i| {
                let start = best[i] / per_bin * per_bin;
                let end = (start + per_bin).min(numbers.len());
                let bin = &numbers[start..end];
                let weight: f64 = bin.iter().map(|n| f64::from(n.1)).sum();
                let width = f64::from(bin[bin.len() - 1].0 - bin[0].0);
                2.0 * weight * width * (centres[i] - centres[i - 1])
            })
            .sum();
        assert!(found >= least - 1e-9 && found <= least + bound);
    }
}
