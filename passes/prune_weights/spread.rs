//! How many weights of each layer become zero.

use half::{bf16, f16};
use paring_ir::analysis::{CostOptions, Costs};
use paring_ir::{DType, Model, PassContext, PassError, Tensor};

use super::options::{Budget, Distribution, Options, Storage};
use super::pattern::zeros_of;
use super::targets::{Target, share};

/// Elements of one layer that go together, and what that costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Bin {
    layer: usize,
    count: usize,
    /// Bins of the lowest score go first. Within a layer scores rise.
    score: f64,
}

/// The error of a layer's outputs over their variance, at some shares of zeros, ascending.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Curve(pub(super) Vec<(f64, f64)>);

/// How many elements of each layer become zero, those counted that are so already. `curves` are
/// wanted for the distribution by output error; of layers without one the squares of the weights
/// stand for it.
pub(super) fn counts(
    model: &Model,
    targets: &[Target],
    options: &Options,
    distribution: Distribution,
    curves: &[Option<Curve>],
    cx: &mut PassContext<'_>,
) -> Result<Vec<usize>, PassError> {
    let alone = |t: &Target| {
        let wanted = share(t.sparsity, t.grid.len()).min(t.cap);
        if t.sparsity == 0.0 {
            0
        } else {
            zeros_of(t.pattern, &t.grid, wanted)
        }
    };
    let mut fixed: Vec<usize> = targets.iter().map(alone).collect();
    let pool: Vec<usize> = (0..targets.len()).filter(|&i| !targets[i].apart).collect();
    if options.budget.is_empty() {
        let total: usize = pool.iter().map(|&i| targets[i].grid.len()).sum();
        let spread = Spread::new(targets, pool, distribution, curves, None, cx)?;
        spread.fill(share(options.sparsity, total), &mut fixed);
        return Ok(fixed);
    }
    let meter = Meter::new(model, targets, options, cx);
    let costs = options.budget.macs.map(|_| &meter.macs[..]);
    let most: usize = pool.iter().map(|&i| targets[i].cap).sum();
    let spread = Spread::new(targets, pool, distribution, curves, costs, cx)?;
    within_budget(&spread, &meter, most, fixed)
}

/// The least zeros that keep the budget.
fn within_budget(
    spread: &Spread<'_>,
    meter: &Meter<'_>,
    most: usize,
    fixed: Vec<usize>,
) -> Result<Vec<usize>, PassError> {
    let made = |wanted: usize| {
        let mut counts = fixed.clone();
        spread.fill(wanted, &mut counts);
        counts
    };
    if let Some(found) = meter.beyond(&made(most)) {
        return Err(PassError::Precondition {
            found,
            remedy: "allow more, or raise max-layer-sparsity, or prune more layers \
                     (include-first, include-depthwise, min-elements)"
                .to_owned(),
        });
    }
    let (mut low, mut high) = (0usize, most);
    while low < high {
        let middle = low + (high - low) / 2;
        if meter.beyond(&made(middle)).is_none() {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Ok(made(high))
}

/// A way to spread any number of zeros over the layers of a pool.
struct Spread<'a> {
    targets: &'a [Target],
    pool: Vec<usize>,
    way: Way,
}

enum Way {
    Uniform,
    /// By layer of the pool: the density relative to the others'.
    Kernel(Vec<f64>),
    /// Sorted by score.
    Bins(Vec<Bin>),
}

impl<'a> Spread<'a> {
    fn new(
        targets: &'a [Target],
        pool: Vec<usize>,
        distribution: Distribution,
        curves: &[Option<Curve>],
        costs: Option<&[f64]>,
        cx: &PassContext<'_>,
    ) -> Result<Spread<'a>, PassError> {
        let way = match distribution {
            Distribution::Uniform => Way::Uniform,
            Distribution::ErdosRenyiKernel => {
                Way::Kernel(pool.iter().map(|&i| kernel_density(&targets[i])).collect())
            }
            _ => {
                let mut bins = Vec::new();
                for &i in &pool {
                    cx.check_cancelled()?;
                    let t = &targets[i];
                    bins.extend(match (distribution, &curves[i]) {
                        (Distribution::OutputError, Some(curve)) => {
                            curve_bins(i, t, curve, costs.map(|c| c[i]))
                        }
                        _ => magnitude_bins(i, &t.tensor, distribution),
                    });
                }
                // A stable sort: equal scores stay in the order of layers and magnitudes.
                bins.sort_by(|a, b| a.score.total_cmp(&b.score));
                Way::Bins(bins)
            }
        };
        Ok(Spread { targets, pool, way })
    }

    /// Writes the counts of the pool's layers, `wanted` in all unless caps forbid it.
    fn fill(&self, wanted: usize, counts: &mut [usize]) {
        match &self.way {
            Way::Uniform => {
                let total: usize = self.pool.iter().map(|&i| self.targets[i].grid.len()).sum();
                let each = wanted as f64 / total.max(1) as f64;
                for &i in &self.pool {
                    let t = &self.targets[i];
                    counts[i] = share(each, t.grid.len()).min(t.cap);
                }
            }
            Way::Kernel(densities) => self.fill_by_density(densities, wanted, counts),
            Way::Bins(bins) => {
                for &i in &self.pool {
                    counts[i] = 0;
                }
                let mut left = wanted;
                for bin in bins {
                    let room = self.targets[bin.layer]
                        .cap
                        .saturating_sub(counts[bin.layer]);
                    let taken = bin.count.min(room).min(left);
                    counts[bin.layer] += taken;
                    left -= taken;
                }
            }
        }
    }

    /// Densities in proportion to given ones, none above 1 or below what the cap leaves.
    fn fill_by_density(&self, densities: &[f64], wanted: usize, counts: &mut [usize]) {
        let size = |i: usize| self.targets[i].grid.len() as f64;
        let total: f64 = self.pool.iter().map(|&i| size(i)).sum();
        let keep = total - wanted as f64;
        let kept_at = |scale: f64| -> f64 {
            let layers = self.pool.iter().zip(densities);
            let kept = layers.map(|(&i, d)| {
                let least = 1.0 - self.targets[i].cap as f64 / size(i);
                (scale * d).clamp(least, 1.0) * size(i)
            });
            kept.sum()
        };
        // More scale keeps more; sixty halvings reach the last bit.
        let (mut low, mut high) = (0.0, 1.0);
        while kept_at(high) < keep && high < 1e18 {
            high *= 2.0;
        }
        for _ in 0..60 {
            let middle = (low + high) / 2.0;
            if kept_at(middle) < keep {
                low = middle;
            } else {
                high = middle;
            }
        }
        for (&i, d) in self.pool.iter().zip(densities) {
            let t = &self.targets[i];
            let zeros = share(1.0 - (high * d).min(1.0), t.grid.len());
            counts[i] = zeros.min(t.cap);
        }
    }
}

/// The sum of a layer's sizes over their product (Evci et al., "Rigging the Lottery", 2020).
fn kernel_density(target: &Target) -> f64 {
    let layer = &target.layer;
    let sizes = |axes: std::ops::Range<usize>| layer.dims.get(axes).unwrap_or_default();
    let (outputs, inputs) = (layer.layout.output_axis, layer.layout.input_axis);
    let ends = sizes(outputs..outputs + 1)
        .iter()
        .chain(sizes(inputs..inputs + 1));
    let all: Vec<f64> = ends
        .chain(sizes(layer.layout.kernel_axes.clone()))
        .map(|&d| d as f64)
        .collect();
    all.iter().sum::<f64>() / all.iter().product::<f64>().max(1.0)
}

/// What the next zeros of a layer add to its error, each; per multiply-accumulate that they save
/// where `cost` says how many one weight has.
fn curve_bins(layer: usize, target: &Target, curve: &Curve, cost: Option<f64>) -> Vec<Bin> {
    let size = target.grid.len();
    const STEPS: usize = 100;
    let cap = target.cap as f64 / size as f64;
    let at = |step: usize| {
        let share = cap * step as f64 / STEPS as f64;
        (share, curve.at(share))
    };
    // The lower hull of the curve: what is dear alone may be cheap along with what follows.
    let mut hull: Vec<(f64, f64)> = Vec::new();
    for point in (0..=STEPS).map(at) {
        while let [.., a, b] = hull[..] {
            let turns = (b.1 - a.1) * (point.0 - a.0) >= (point.1 - a.1) * (b.0 - a.0);
            if !turns {
                break;
            }
            hull.pop();
        }
        hull.push(point);
    }
    let worth = cost.filter(|c| *c > 0.0).unwrap_or(1.0);
    let mut before = 0;
    let pairs = hull.iter().zip(hull.iter().skip(1));
    let bins = pairs.map(|(a, b)| {
        let upto = share(b.0, size).max(before);
        let count = upto - before;
        before = upto;
        let score = (b.1 - a.1) / ((b.0 - a.0) * size as f64 * worth);
        Bin {
            layer,
            count,
            score,
        }
    });
    bins.collect()
}

impl Curve {
    /// The error at a share: logarithms of errors between the points are on a line.
    pub(super) fn at(&self, share: f64) -> f64 {
        const LEAST: f64 = 1e-9;
        let mut before = (0.0, 0.0);
        for &point in &self.0 {
            if share <= point.0 {
                let (a, b) = (before.1 + LEAST, point.1.max(before.1) + LEAST);
                let along = (share - before.0) / (point.0 - before.0).max(1e-12);
                return a * (b / a).powf(along.clamp(0.0, 1.0)) - LEAST;
            }
            before = (point.0, point.1.max(before.1));
        }
        before.1
    }
}

/// Calls `f` with the magnitude of every element, as a number that orders magnitudes and is 0
/// for zero alone. NaN is the largest.
pub(super) fn for_each_magnitude(tensor: &Tensor, mut f: impl FnMut(u64)) {
    let key = |v: f64| v.abs().to_bits();
    // Of these types; the caller checked.
    match tensor.dtype() {
        DType::F32 => {
            let all = tensor.view::<f32>();
            all.iter()
                .flat_map(|v| v.iter())
                .for_each(|&v| f(key(v.into())));
        }
        DType::F64 => {
            let all = tensor.view::<f64>();
            all.iter().flat_map(|v| v.iter()).for_each(|&v| f(key(v)));
        }
        DType::F16 => {
            let all = tensor.view::<f16>();
            all.iter()
                .flat_map(|v| v.iter())
                .for_each(|&v| f(key(v.into())));
        }
        DType::BF16 => {
            let all = tensor.view::<bf16>();
            all.iter()
                .flat_map(|v| v.iter())
                .for_each(|&v| f(key(v.into())));
        }
        _ => {}
    }
}

/// The elements of a layer by magnitude, in bins of magnitudes that differ by less than one part
/// in 512.
fn magnitude_bins(layer: usize, tensor: &Tensor, distribution: Distribution) -> Vec<Bin> {
    // A table of the upper nine bits of the fraction for every exponent that is there.
    const EXPONENTS: usize = 1 << 11;
    let mut tables: Vec<Vec<(usize, f64)>> = vec![Vec::new(); EXPONENTS];
    for_each_magnitude(tensor, |m| {
        let value = f64::from_bits(m);
        let table = &mut tables[(m >> 52) as usize];
        if table.is_empty() {
            table.resize(512, (0, 0.0));
        }
        let bin = &mut table[(m >> 43 & 511) as usize];
        bin.0 += 1;
        bin.1 += if value.is_finite() {
            value * value
        } else {
            f64::INFINITY
        };
    });
    let filled: Vec<(usize, f64)> = tables.into_iter().flatten().filter(|b| b.0 > 0).collect();
    let mut bins = Vec::with_capacity(filled.len());
    // The sum of squares of this bin and all larger ones.
    let mut rest = 0.0;
    for (count, squares) in filled.into_iter().rev() {
        let mut score = f64::INFINITY;
        if squares.is_finite() {
            rest += squares;
            let mean = squares / count as f64;
            score = match distribution {
                Distribution::Global => mean,
                _ if rest > 0.0 => mean / rest,
                _ => mean,
            };
        }
        bins.push(Bin {
            layer,
            count,
            score,
        });
    }
    bins.reverse();
    bins
}

/// What a budget looks at.
struct Meter<'a> {
    budget: Budget,
    targets: &'a [Target],
    /// By target: zeros as they are.
    zeros: Vec<usize>,
    /// By target: multiply-accumulates of one weight, over all operators that take it.
    macs: Vec<f64>,
    /// Of what is not pruned, and of the whole model.
    other_zeros: f64,
    parameters: f64,
    other_macs: f64,
    all_macs: f64,
    all_bytes: f64,
    storage: Storage,
}

impl<'a> Meter<'a> {
    fn new(
        model: &Model,
        targets: &'a [Target],
        options: &Options,
        cx: &mut PassContext<'_>,
    ) -> Meter<'a> {
        let counted = CostOptions {
            zeros: true,
            ..CostOptions::default()
        };
        let costs = cx.analyses.get_with::<Costs>(model, &counted);
        let total = costs.total();
        let zeros: Vec<usize> = targets.iter().map(|t| t.tensor.count_zeros()).collect();
        // An operator with several weights (a recurrent network) does its work with all of them.
        let mut weights = std::collections::HashMap::new();
        for t in targets {
            for l in std::iter::once(&t.layer).chain(&t.others) {
                *weights.entry(l.op).or_insert(0usize) += l.len();
            }
        }
        let macs_of = |t: &Target| -> f64 {
            let uses = std::iter::once(&t.layer).chain(&t.others);
            uses.map(|l| {
                let all = costs.op(l.op).macs.unwrap_or(0) as f64;
                all / weights.get(&l.op).copied().unwrap_or(1).max(1) as f64
            })
            .sum()
        };
        let macs: Vec<f64> = targets.iter().map(macs_of).collect();
        let own = targets.iter().zip(&zeros).zip(&macs);
        let own_macs: f64 = own.map(|((t, z), m)| (t.grid.len() - z) as f64 * m).sum();
        let effective = total.effective_macs.unwrap_or(total.macs) as f64;
        Meter {
            budget: options.budget,
            targets,
            other_zeros: total.zeros.unwrap_or(0) as f64 - zeros.iter().sum::<usize>() as f64,
            parameters: (total.parameters as f64).max(1.0),
            other_macs: (effective - own_macs).max(0.0),
            all_macs: (total.macs as f64).max(1.0),
            all_bytes: (total.weight_bytes as f64).max(1.0),
            zeros,
            macs,
            storage: options.storage,
        }
    }

    /// What is over the budget, in words, or `None`.
    fn beyond(&self, counts: &[usize]) -> Option<String> {
        let after = |i: usize| counts[i].max(self.zeros[i]);
        let all = || 0..self.targets.len();
        let zeros: f64 = all().map(|i| after(i) as f64).sum();
        let sparsity = (self.other_zeros + zeros) / self.parameters;
        let left = |i: usize| (self.targets[i].grid.len() - after(i)) as f64;
        let macs: f64 = all().map(|i| left(i) * self.macs[i]).sum();
        let macs = (self.other_macs + macs) / self.all_macs;
        let saved: f64 = all().map(|i| self.saved_bytes(i, left(i))).sum();
        let size = (self.all_bytes - saved) / self.all_bytes;
        let most = "with all layers at their caps";
        match self.budget {
            Budget {
                sparsity: Some(least),
                ..
            } if sparsity < least => Some(format!(
                "{most} {sparsity:.4} of all parameters are zero, and budget.sparsity is {least}"
            )),
            Budget {
                macs: Some(limit), ..
            } if macs > limit => Some(format!(
                "{most} {macs:.4} of the multiply-accumulates remain, and budget.macs is {limit}"
            )),
            Budget {
                size: Some(limit), ..
            } if size > limit => Some(format!(
                "{most} {size:.4} of the bytes remain, and budget.size is {limit}"
            )),
            _ => None,
        }
    }

    fn saved_bytes(&self, i: usize, left: f64) -> f64 {
        let t = &self.targets[i];
        let size = t.tensor.byte_len() as f64 / t.grid.len() as f64;
        let dense = t.tensor.byte_len() as f64;
        let stored = match self.storage {
            Storage::Dense => left * size + t.grid.len() as f64 / 8.0,
            Storage::Sparse => left * (size + 8.0),
        };
        (dense - stored).max(0.0)
    }
}
