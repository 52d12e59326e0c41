//! Codes, codebooks and scales of a weight.

use std::collections::HashSet;
use std::sync::Arc;

use half::{bf16, f16};
use paring_ir::{DType, PassError};
use rayon::prelude::*;

use super::kmeans::{self, MAX_POINTS, Weighted};
use crate::layers::Layer;

/// The elements of a weight by output channel.
///
/// In memory a weight is `[outer, inputs, outputs, kernel]` when `swapped`, else
/// `[outer, outputs, inputs, kernel]`, which is by channel already. There are `outer` x `outputs`
/// channels of `inputs` x `kernel` elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) outer: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) kernel: usize,
    pub(super) swapped: bool,
}

impl Order {
    /// Of a layer's weight.
    pub(super) fn of(layer: &Layer) -> Order {
        let layout = &layer.layout;
        let kernel: usize = layer.dims[layout.kernel_axes.clone()].iter().product();
        if layout.output_axis < layout.input_axis {
            let inner = layer.dims[layout.input_axis] * kernel;
            return Order::rows(layer.len() / inner.max(1), inner);
        }
        let batches: usize = layer.dims[layout.batch_axes.clone()].iter().product();
        let outer = layout.groups * batches;
        let inputs = layer.dims[layout.input_axis] / layout.groups.max(1);
        Order {
            outer,
            inputs,
            outputs: layer.dims[layout.output_axis],
            kernel,
            swapped: true,
        }
    }

    /// Of a matrix whose rows are the channels.
    pub(super) fn rows(channels: usize, elements: usize) -> Order {
        Order {
            outer: 1,
            inputs: elements,
            outputs: channels,
            kernel: 1,
            swapped: false,
        }
    }

    pub(super) fn channels(&self) -> usize {
        self.outer * self.outputs
    }

    /// The elements of a channel.
    pub(super) fn width(&self) -> usize {
        self.inputs * self.kernel
    }

    /// Where an element of a channel stands in memory.
    pub(super) fn place(&self, channel: usize, element: usize) -> usize {
        if !self.swapped {
            return channel * self.width() + element;
        }
        let (a, o) = (channel / self.outputs, channel % self.outputs);
        let (i, k) = (element / self.kernel, element % self.kernel);
        ((a * self.inputs + i) * self.outputs + o) * self.kernel + k
    }

    /// Elements in memory, by channel.
    pub(super) fn by_channel<T: Copy>(&self, memory: &[T]) -> Vec<T> {
        if !self.swapped {
            return memory.to_vec();
        }
        (0..self.channels())
            .flat_map(|c| (0..self.width()).map(move |e| (c, e)))
            .map(|(c, e)| memory[self.place(c, e)])
            .collect()
    }

    /// Elements by channel, as they stand in memory.
    pub(super) fn in_memory<T: Copy>(&self, by_channel: &[T]) -> Vec<T> {
        let mut out = by_channel.to_vec();
        if self.swapped {
            for (i, &x) in by_channel.iter().enumerate() {
                out[self.place(i / self.width().max(1), i % self.width().max(1))] = x;
            }
        }
        out
    }
}

/// A weight as codes, by channel.
#[derive(Clone, Debug)]
pub(super) struct Coded {
    /// The element type of the weight.
    pub(super) dtype: DType,
    /// Bits of a code.
    pub(super) bits: u32,
    /// The elements of a channel.
    pub(super) width: usize,
    /// Channels that share a codebook.
    pub(super) group: usize,
    /// The codebooks, at most `2^bits` centroids each; ascending until codes are renumbered for the
    /// file.
    pub(super) books: Vec<Vec<f64>>,
    /// What a channel's centroids are multiplied by.
    pub(super) scales: Option<Vec<f64>>,
    /// The codes.
    pub(super) codes: Vec<u8>,
    /// Whether other weights have the same codebook, whose order and centroids stay.
    pub(super) shared: bool,
}

impl Coded {
    pub(super) fn scale(&self, channel: usize) -> f64 {
        self.scales.as_ref().map_or(1.0, |s| s[channel])
    }

    /// What the codes stand for, by channel, as an engine computes it.
    pub(super) fn decoded(&self) -> Vec<f64> {
        let channels = self.codes.chunks(self.width.max(1)).enumerate();
        channels
            .flat_map(|(c, codes)| {
                let (book, scale) = (&self.books[c / self.group], self.scale(c));
                let scaled = self.scales.is_some();
                codes.iter().map(move |&code| {
                    let x = book[usize::from(code)];
                    // Products of two floats are exact in double precision, so this rounds once.
                    if scaled {
                        round(self.dtype, x * scale)
                    } else {
                        x
                    }
                })
            })
            .collect()
    }

    /// Puts the centroids of each codebook into another order: by codebook, the old place of each.
    pub(super) fn renumber(&mut self, orders: &[Vec<usize>]) {
        let len = (self.width * self.group).max(1);
        let books = self.books.iter_mut().zip(orders);
        for ((book, order), codes) in books.zip(self.codes.chunks_mut(len)) {
            let mut places = vec![0u8; order.len()];
            for (new, &old) in order.iter().enumerate() {
                places[old] = u8::try_from(new).unwrap_or(u8::MAX);
            }
            *book = order.iter().map(|&old| book[old]).collect();
            for code in codes {
                *code = places[usize::from(*code)];
            }
        }
    }

    /// Lets the centroids of each codebook ascend.
    pub(super) fn sort(&mut self) {
        let ascending = |book: &Vec<f64>| {
            let mut order: Vec<usize> = (0..book.len()).collect();
            order.sort_by(|&i, &j| book[i].total_cmp(&book[j]));
            order
        };
        let orders: Vec<Vec<usize>> = self.books.iter().map(ascending).collect();
        self.renumber(&orders);
    }

    /// Numbers the centroids of each codebook by falling use. Bytes of codes of different weights
    /// then look alike, which lets a compressor describe them all together.
    pub(super) fn by_use(mut self) -> Coded {
        if self.shared {
            return self;
        }
        let by_use = |uses: Vec<u64>| {
            let mut order: Vec<usize> = (0..uses.len()).collect();
            order.sort_by_key(|&code| (std::cmp::Reverse(uses[code]), code));
            order
        };
        let orders: Vec<Vec<usize>> = self.uses().into_iter().map(by_use).collect();
        self.renumber(&orders);
        self
    }

    /// How many weights have each code, by codebook.
    fn uses(&self) -> Vec<Vec<u64>> {
        let groups = self.codes.chunks((self.width * self.group).max(1));
        let count = |(book, codes): (&Vec<f64>, &[u8])| {
            let mut uses = vec![0u64; book.len()];
            codes.iter().for_each(|&c| uses[usize::from(c)] += 1);
            uses
        };
        self.books.iter().zip(groups).map(count).collect()
    }

    /// About how many bits each code takes after compression, by codebook.
    pub(super) fn bits_of_codes(&self) -> Vec<Vec<f64>> {
        let bits = |uses: Vec<u64>| {
            // Half a use more keeps codes that no weight has within reach.
            let all = uses.iter().map(|&n| n as f64 + 0.5).sum::<f64>();
            let bits = |&n: &u64| (all / (n as f64 + 0.5)).log2();
            uses.iter().map(bits).collect()
        };
        self.uses().into_iter().map(bits).collect()
    }

    /// The bits of all codes after compression.
    pub(super) fn total_bits(&self) -> f64 {
        let uses = self.uses();
        let bits = self.bits_of_codes();
        let codes = uses.iter().flatten().zip(bits.iter().flatten());
        codes.map(|(&n, b)| n as f64 * b).sum()
    }

    /// Rounds centroids and scales to the weight's type.
    pub(super) fn rounded(mut self) -> Coded {
        let dtype = self.dtype;
        let all = self.books.iter_mut().flatten();
        for x in all.chain(self.scales.iter_mut().flatten()) {
            *x = round(dtype, *x);
        }
        self
    }
}

/// The nearest number of a type.
pub(super) fn round(dtype: DType, x: f64) -> f64 {
    match dtype {
        DType::F32 => f64::from(x as f32),
        DType::F16 => f64::from(f16::from_f64(x)),
        DType::BF16 => f64::from(bf16::from_f64(x)),
        _ => x,
    }
}

/// How a weight is clustered.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) bits: u32,
    /// Channels that share a codebook.
    pub(super) group: usize,
    /// Zeros get a centroid of their own.
    pub(super) keep_zeros: bool,
    /// Each channel gets a scale.
    pub(super) scales: bool,
    /// What a bit of a code costs after compression, in mean squared errors of rounding.
    pub(super) entropy: f64,
    /// The codebook that the weight shares with others, ascending.
    pub(super) shared: Option<Arc<[f64]>>,
}

impl Settings {
    pub(super) fn clusters(&self) -> usize {
        1 << self.bits
    }
}

/// How much the elements of a channel count, by block: all channels of a block alike.
#[derive(Clone, Debug, Default)]
pub(super) struct Importance {
    pub(super) blocks: Vec<Vec<f64>>,
}

impl Importance {
    fn of(&self, channel: usize, channels: usize) -> Option<&[f64]> {
        let block = channel * self.blocks.len() / channels.max(1);
        self.blocks.get(block).map(Vec::as_slice)
    }
}

/// A weight whose codebooks hold every value that it has, so that nothing is lost.
pub(super) fn exact(
    values: &[f64],
    width: usize,
    dtype: DType,
    settings: &Settings,
) -> Option<Coded> {
    let mut books = Vec::new();
    for group in values.chunks(group_len(width, settings)) {
        let mut seen = HashSet::new();
        for x in group {
            // Both zeros are one value.
            if seen.insert((x + 0.0).to_bits()) && seen.len() > settings.clusters() {
                return None;
            }
        }
        let mut book: Vec<f64> = seen.into_iter().map(f64::from_bits).collect();
        book.sort_by(f64::total_cmp);
        books.push(book);
    }
    let mut coded = Coded {
        dtype,
        bits: settings.bits,
        width,
        group: settings.group,
        books,
        scales: None,
        codes: Vec::new(),
        shared: false,
    };
    assign(&mut coded, values);
    Some(coded)
}

fn group_len(width: usize, settings: &Settings) -> usize {
    (width * settings.group).max(1)
}

/// A codebook for weights of channels that are scaled to a mean square of one: that of all their
/// elements together, given by channel with the elements of each.
pub(super) fn common_book(
    weights: &[(Vec<f64>, usize)],
    keep_zeros: bool,
    clusters: usize,
) -> Vec<f64> {
    let mut numbers: Vec<Weighted> = Vec::new();
    let mut zeros = false;
    for (values, width) in weights {
        for channel in values.chunks((*width).max(1)) {
            let scale = root_mean_square(channel);
            for x in channel {
                zeros |= *x == 0.0;
                if *x != 0.0 || !keep_zeros {
                    numbers.push(((x / scale) as f32, 1.0));
                }
            }
        }
    }
    let zeros = zeros && keep_zeros;
    let mut book = match numbers.is_empty() {
        true => Vec::new(),
        false => kmeans::centres(&mut numbers, clusters - usize::from(zeros), MAX_POINTS),
    };
    if zeros && !book.contains(&0.0) {
        book.push(0.0);
    }
    book.iter_mut().for_each(|x| *x = round(DType::F32, *x));
    book.sort_by(f64::total_cmp);
    book
}

/// Clusters a weight, whose elements are given by channel and finite. `importance` weighs the
/// squared errors. Must run inside a thread pool.
pub(super) fn fit(
    values: &[f64],
    width: usize,
    dtype: DType,
    importance: &Importance,
    settings: &Settings,
) -> Result<Coded, PassError> {
    let channels = values.len() / width.max(1);
    let mut scales = settings.scales.then(|| {
        values
            .chunks(width.max(1))
            .map(root_mean_square)
            .collect::<Vec<f64>>()
    });
    // Rough codebooks are enough to find scales.
    let rounds = if settings.scales { 3 } else { 1 };
    let mut coded = None;
    for round in 1..=rounds {
        let points = if round == rounds { MAX_POINTS } else { 1 << 12 };
        let job = Job {
            values,
            width,
            channels,
            importance,
            scales: scales.as_deref(),
            settings,
            points,
        };
        let groups: Vec<usize> = (0..channels.div_ceil(settings.group)).collect();
        let books: Vec<Vec<f64>> = match &settings.shared {
            Some(book) => groups.iter().map(|_| book.to_vec()).collect(),
            None => groups.into_par_iter().map(|g| job.book(g)).collect(),
        };
        let mut next = Coded {
            dtype,
            bits: settings.bits,
            width,
            group: settings.group,
            books,
            scales: scales.clone(),
            codes: Vec::new(),
            shared: settings.shared.is_some(),
        };
        if round == rounds {
            next = next.rounded();
        }
        assign(&mut next, values);
        if round < rounds {
            scales = scales.map(|s| rescaled(&next, values, importance, &s));
        }
        coded = Some(next);
    }
    let coded = coded.ok_or_else(|| PassError::Bug("no round of clustering ran".to_owned()))?;
    Ok(match settings.entropy > 0.0 {
        true => thrifty(coded, values, importance, settings),
        false => coded,
    })
}

/// Codes and centroids that trade errors for codes that compress well.
fn thrifty(
    mut coded: Coded,
    values: &[f64],
    importance: &Importance,
    settings: &Settings,
) -> Coded {
    let width = coded.width.max(1);
    let channels = values.len() / width;
    let weight = |at: usize| {
        let weights = importance.of(at / width, channels);
        weights.map_or(1.0, |w| w[at % width])
    };
    let free = values.iter().filter(|x| **x != 0.0).count();
    let error = |coded: &Coded| -> f64 {
        (coded.decoded().iter().zip(values).enumerate())
            .map(|(at, (d, x))| weight(at) * (d - x) * (d - x))
            .sum()
    };
    let first = error(&coded);
    let price = settings.entropy * first / free.max(1) as f64;
    for _ in 0..THRIFTY_ROUNDS {
        let before = coded.clone();
        let bits = coded.bits_of_codes();
        let mut codes = std::mem::take(&mut coded.codes);
        let rows = codes.par_chunks_mut(width).zip(values.par_chunks(width));
        rows.enumerate().for_each(|(c, (codes, values))| {
            let (group, scale) = (c / coded.group, coded.scale(c));
            let chooser = Chooser::new(&coded.books[group], Some(&bits[group]));
            for (e, (code, &x)) in codes.iter_mut().zip(values).enumerate() {
                *code = match x == 0.0 && settings.keep_zeros {
                    true => chooser.nearest(0.0),
                    false => {
                        let unit = weight(c * width + e) * scale * scale;
                        chooser.cheapest(x / scale, price / unit)
                    }
                };
            }
        });
        coded.codes = codes;
        centre(&mut coded, values, &weight, settings.keep_zeros);
        coded = coded.rounded();
        if error(&coded) > MOST_LOST * first {
            return before;
        }
    }
    coded
}

/// Moves centroids to the mean of what has their code; those of zero stay, if zeros are kept.
fn centre(coded: &mut Coded, values: &[f64], weight: &dyn Fn(usize) -> f64, keep_zeros: bool) {
    let mut sums: Vec<Vec<[f64; 2]>> = (coded.books.iter())
        .map(|b| vec![[0.0; 2]; b.len()])
        .collect();
    for (at, (&code, &x)) in coded.codes.iter().zip(values).enumerate() {
        let channel = at / coded.width.max(1);
        let scale = coded.scale(channel);
        let sum = &mut sums[channel / coded.group][usize::from(code)];
        sum[0] += weight(at) * scale * x;
        sum[1] += weight(at) * scale * scale;
    }
    for (x, [dot, square]) in coded.books.iter_mut().flatten().zip(sums.iter().flatten()) {
        if *square > 0.0 && !(keep_zeros && *x == 0.0) {
            *x = dot / square;
        }
    }
    coded.sort();
}

fn root_mean_square(values: &[f64]) -> f64 {
    let sum: f64 = values.iter().map(|x| x * x).sum();
    let mean = (sum / values.len().max(1) as f64).sqrt();
    // A channel that training switched off needs no scale.
    if mean > 1e-30 { mean } else { 1.0 }
}

struct Job<'a> {
    values: &'a [f64],
    width: usize,
    channels: usize,
    importance: &'a Importance,
    scales: Option<&'a [f64]>,
    settings: &'a Settings,
    points: usize,
}

impl Job<'_> {
    /// The codebook of one group.
    fn book(&self, group: usize) -> Vec<f64> {
        let first = group * self.settings.group;
        let channels = first..(first + self.settings.group).min(self.channels);
        let mut numbers: Vec<Weighted> = Vec::with_capacity(channels.len() * self.width);
        let mut zeros = false;
        for c in channels {
            let scale = self.scales.map_or(1.0, |s| s[c]);
            let weights = self.importance.of(c, self.channels);
            let row = &self.values[c * self.width..(c + 1) * self.width];
            for (e, &x) in row.iter().enumerate() {
                if x == 0.0 && self.settings.keep_zeros {
                    zeros = true;
                    continue;
                }
                let weight = weights.map_or(1.0, |w| w[e]) * scale * scale;
                // Below the range of the type all weights would be nothing.
                numbers.push(((x / scale) as f32, (weight as f32).max(f32::MIN_POSITIVE)));
            }
        }
        let clusters = self.settings.clusters() - usize::from(zeros);
        let mut book = match numbers.is_empty() {
            true => Vec::new(),
            false => kmeans::centres(&mut numbers, clusters, self.points),
        };
        if zeros && !book.contains(&0.0) {
            book.push(0.0);
            book.sort_by(f64::total_cmp);
        }
        book
    }
}

/// For codes that compress well, errors grow to so many times what they were at the most. Beyond,
/// few codes are left and it goes fast.
pub(super) const MOST_LOST: f64 = 6.0;

/// Rounds of choosing codes by what they take, and of fitting centroids to them. Centroids drift
/// apart slowly, since each round only moves the borders between them a little.
const THRIFTY_ROUNDS: usize = 40;

/// Gives each value the code of the nearest centroid.
pub(super) fn assign(coded: &mut Coded, values: &[f64]) {
    let mut codes = vec![0u8; values.len()];
    let width = coded.width.max(1);
    let rows = codes.par_chunks_mut(width).zip(values.par_chunks(width));
    rows.enumerate().for_each(|(c, (codes, values))| {
        let chooser = Chooser::new(&coded.books[c / coded.group], None);
        let scale = coded.scale(c);
        for (code, &x) in codes.iter_mut().zip(values) {
            *code = chooser.nearest(x / scale);
        }
    });
    coded.codes = codes;
}

/// Chooses codes out of one codebook, whose centroids ascend.
pub(super) struct Chooser<'a> {
    book: &'a [f64],
    middles: Vec<f64>,
    bits: Option<&'a [f64]>,
}

impl<'a> Chooser<'a> {
    /// `bits` are what the codes take after compression, where that counts.
    pub(super) fn new(book: &'a [f64], bits: Option<&'a [f64]>) -> Chooser<'a> {
        let middles = book.windows(2).map(|b| b[0] + (b[1] - b[0]) / 2.0);
        Chooser {
            book,
            middles: middles.collect(),
            bits,
        }
    }

    /// The code of the nearest centroid.
    pub(super) fn nearest(&self, x: f64) -> u8 {
        u8::try_from(self.middles.partition_point(|&m| m < x)).unwrap_or(u8::MAX)
    }

    /// The code for which squared distance plus `price` times bits are the least.
    pub(super) fn cheapest(&self, x: f64, price: f64) -> u8 {
        let Some(bits) = self.bits.filter(|_| price > 0.0) else {
            return self.nearest(x);
        };
        let costs = (self.book.iter().zip(bits)).map(|(c, b)| (x - c) * (x - c) + price * b);
        let least = costs.enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
        least.map_or(0, |(code, _)| u8::try_from(code).unwrap_or(u8::MAX))
    }
}

/// Scales that fit the codes best.
fn rescaled(coded: &Coded, values: &[f64], importance: &Importance, old: &[f64]) -> Vec<f64> {
    let channels = old.len();
    let width = coded.width.max(1);
    let rows = coded.codes.chunks(width).zip(values.chunks(width));
    let fitted = rows.enumerate().map(|(c, (codes, values))| {
        let book = &coded.books[c / coded.group];
        let weights = importance.of(c, channels);
        let (mut dot, mut square) = (0.0, 0.0);
        for (e, (&code, &x)) in codes.iter().zip(values).enumerate() {
            let (q, w) = (book[usize::from(code)], weights.map_or(1.0, |w| w[e]));
            dot += w * q * x;
            square += w * q * q;
        }
        let scale = dot / square;
        if scale.is_finite() && scale > 1e-30 {
            scale
        } else {
            old[c]
        }
    });
    fitted.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;

    const PLAIN: Settings = Settings {
        bits: 1,
        group: 1,
        keep_zeros: true,
        scales: false,
        entropy: 0.0,
        shared: None,
    };

    fn values(n: usize) -> Vec<f64> {
        (0..n).map(|i| f64::from((i as f32 * 0.7).sin())).collect()
    }

    #[test]
    fn orders_are_undone() {
        let order = Order {
            outer: 2,
            inputs: 3,
            outputs: 2,
            kernel: 2,
            swapped: true,
        };
        let memory: Vec<usize> = (0..24).collect();
        let by_channel = order.by_channel(&memory);
        assert_eq!(by_channel[..6], [0, 1, 4, 5, 8, 9]);
        assert_eq!(order.in_memory(&by_channel), memory);
    }

    #[test]
    fn zeros_have_a_centroid_of_their_own() {
        let values = [0.0, 1.0, 1.1, 0.0, -3.0, 0.0];
        let coded = fit(&values, 6, DType::F64, &Importance::default(), &PLAIN).unwrap();
        let decoded = coded.decoded();
        assert!(
            values
                .iter()
                .zip(&decoded)
                .all(|(x, d)| (*x == 0.0) == (*d == 0.0) || *d == 0.0)
        );
        assert_eq!(coded.books[0].len(), 2);
    }

    #[test]
    fn scales_make_channels_alike() {
        let base = values(64);
        let scaled: Vec<f64> = (0..4)
            .flat_map(|c| base.iter().map(move |x| x * 10f64.powi(c)))
            .collect();
        let settings = Settings {
            bits: 4,
            group: 4,
            scales: true,
            ..PLAIN
        };
        let error = |s: Settings| {
            let coded = fit(&scaled, 64, DType::F32, &Importance::default(), &s).unwrap();
            let small = coded.decoded();
            let off = small
                .iter()
                .zip(&scaled)
                .take(64)
                .map(|(a, b)| (a - b).powi(2));
            off.sum::<f64>()
        };
        let with = error(settings.clone());
        let without = error(Settings {
            scales: false,
            ..settings.clone()
        });
        assert!(with < 0.01 * without, "{with} and {without}");
    }

    #[test]
    fn what_fits_into_the_codebooks_is_exact() {
        let values = [3.0, -1.5, 3.0, 0.1, 0.1, -0.0];
        let coded = exact(&values, 3, DType::F64, &PLAIN).unwrap();
        assert_eq!(coded.decoded(), values);
        assert!(exact(&[1.0, 2.0, 3.0], 3, DType::F64, &PLAIN).is_none());
    }
}
