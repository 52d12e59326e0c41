//! Which weights of a layer become zero together, and which of them have the lowest score.

use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::layers::Layer;

/// Which weights become zero together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Pattern {
    /// Each for itself.
    #[default]
    Unstructured,
    /// Of so many inputs in a row, for one output, some stay.
    NOfM {
        /// So many stay at the most.
        keep: usize,
        /// Of so many.
        of: usize,
    },
    /// Blocks go as a whole.
    Blocks {
        /// Outputs of a block.
        rows: usize,
        /// Inputs of a block.
        cols: usize,
    },
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Unstructured => f.write_str("unstructured"),
            Pattern::NOfM { keep, of } => write!(f, "{keep}:{of}"),
            Pattern::Blocks { rows, cols } => write!(f, "{rows}x{cols}"),
        }
    }
}

/// The largest M of N:M, and the most rows or columns of a block.
const LARGEST: usize = 1024;

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Pattern, String> {
        let expected = || {
            format!(
                "expected unstructured, N:M with N below M (2:4) or RxC (16x1), up to {LARGEST}, found \"{text}\""
            )
        };
        let pair = |separator| -> Option<(usize, usize)> {
            let (a, b) = text.split_once(separator)?;
            let number = |s: &str| s.parse().ok().filter(|n| (1..=LARGEST).contains(n));
            Some((number(a)?, number(b)?))
        };
        if text == "unstructured" {
            return Ok(Pattern::Unstructured);
        }
        match (pair(':'), pair('x')) {
            (Some((keep, of)), _) if keep < of => Ok(Pattern::NOfM { keep, of }),
            (_, Some((1, 1))) => Ok(Pattern::Unstructured),
            (_, Some((rows, cols))) => Ok(Pattern::Blocks { rows, cols }),
            _ => Err(expected()),
        }
    }
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Pattern, String> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> String {
        pattern.to_string()
    }
}

impl JsonSchema for Pattern {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Pattern".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "`unstructured`, `N:M` such as `2:4`, or `RxC` such as `16x1`.",
            "pattern": "^(unstructured|[0-9]+:[0-9]+|[0-9]+x[0-9]+)$"
        })
    }
}

/// The elements of a layer by place: `blocks` of `rows` of `cols`, each row in one piece. The
/// columns are inputs x kernel, the kernel innermost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grid {
    pub(super) blocks: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Places of the kernel.
    kernel: usize,
}

impl Grid {
    pub(super) fn of(layer: &Layer) -> Grid {
        // The input axis of a transposed convolution counts the channels of all groups, and
        // its columns are channels alone.
        let inputs = layer.dims.get(layer.layout.input_axis).copied();
        Grid {
            blocks: layer.blocks,
            rows: layer.rows,
            cols: layer.cols,
            kernel: (layer.cols / inputs.unwrap_or(1).max(1)).max(1),
        }
    }

    /// The same with other rows.
    pub(super) fn with_rows(self, blocks: usize, rows: usize) -> Grid {
        Grid {
            blocks,
            rows,
            ..self
        }
    }

    pub(super) fn len(&self) -> usize {
        self.blocks * self.rows * self.cols
    }

    /// The column that stands at a place when channels are innermost. Channels are what
    /// neighbours are counted along, whatever the kernel.
    fn column(&self, place: usize) -> usize {
        let channels = (self.cols / self.kernel).max(1);
        place % channels * self.kernel + place / channels
    }

    /// Runs of up to `size` places that stay within one place of the kernel.
    fn runs(&self, size: usize) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let channels = (self.cols / self.kernel).max(1);
        let kernel = self.kernel;
        (0..kernel).flat_map(move |k| {
            (0..channels)
                .step_by(size.max(1))
                .map(move |c| k * channels + c..k * channels + (c + size).min(channels))
        })
    }
}

/// Which elements stay, in the order of a [`Grid`].
pub(super) type Mask = Vec<bool>;

/// The order of scores as numbers: squares or magnitudes, never negative. NaN is the largest.
fn key(score: f32) -> u32 {
    score.abs().to_bits()
}

/// Keeps the elements of the highest scores as a pattern allows: at least `zeros` elements go
/// (with N:M as many as the pattern wants), of equal scores the first. `scores` has one number
/// for each element; those of a block add up.
pub(super) fn mask(pattern: Pattern, grid: &Grid, scores: &[f32], zeros: usize) -> Mask {
    match pattern {
        Pattern::Unstructured => lowest(scores, zeros),
        Pattern::NOfM { keep, of } => n_of_m(grid, scores, keep, of),
        Pattern::Blocks { rows, cols } => blocks(grid, scores, zeros, rows, cols),
    }
}

/// Of each output the same number of elements goes.
pub(super) fn mask_by_row(pattern: Pattern, grid: &Grid, scores: &[f32], zeros: usize) -> Mask {
    if pattern != Pattern::Unstructured {
        return mask(pattern, grid, scores, zeros);
    }
    let rows = (grid.blocks * grid.rows).max(1);
    let mut out = Vec::with_capacity(scores.len());
    for (row, scores) in scores.chunks(grid.cols.max(1)).enumerate() {
        // What doesn't divide evenly goes to the first rows.
        let own = zeros / rows + usize::from(row < zeros % rows);
        out.extend(lowest(scores, own));
    }
    out
}

fn lowest(scores: &[f32], zeros: usize) -> Mask {
    if zeros == 0 {
        return vec![true; scores.len()];
    }
    if zeros >= scores.len() {
        return vec![false; scores.len()];
    }
    let mut keys: Vec<u32> = scores.iter().map(|&s| key(s)).collect();
    let (below, threshold, _) = keys.select_nth_unstable(zeros - 1);
    let threshold = *threshold;
    let mut ties = zeros - below.iter().filter(|&&k| k < threshold).count();
    let stays = |&s: &f32| {
        let k = key(s);
        let tied = k == threshold && ties > 0;
        ties -= usize::from(tied);
        k >= threshold && !tied
    };
    scores.iter().map(stays).collect()
}

fn n_of_m(grid: &Grid, scores: &[f32], keep: usize, of: usize) -> Mask {
    let mut out = vec![true; scores.len()];
    let mut order: Vec<(u32, usize)> = Vec::with_capacity(of);
    for row in 0..grid.blocks * grid.rows {
        for run in grid.runs(of) {
            order.clear();
            order.extend(run.map(|place| {
                let at = row * grid.cols + grid.column(place);
                (key(scores[at]), at)
            }));
            order.sort_unstable();
            let gone = order.len().saturating_sub(keep);
            for &(_, at) in &order[..gone] {
                out[at] = false;
            }
        }
    }
    out
}

fn blocks(grid: &Grid, scores: &[f32], zeros: usize, height: usize, width: usize) -> Mask {
    let runs: Vec<std::ops::Range<usize>> = grid.runs(width).collect();
    let bands = grid.rows.div_ceil(height.max(1));
    let members = |id: usize| {
        let (band, run) = (id / runs.len(), &runs[id % runs.len()]);
        let (block, band) = (band / bands, band % bands);
        let rows = band * height..(band * height + height).min(grid.rows);
        rows.flat_map(move |row| {
            let start = (block * grid.rows + row) * grid.cols;
            run.clone().map(move |place| start + grid.column(place))
        })
    };
    let count = grid.blocks * bands * runs.len();
    let mut order: Vec<(u32, usize)> = (0..count)
        .map(|id| {
            let (sum, size) = members(id).fold((0.0f32, 0usize), |(sum, size), at| {
                (sum + scores[at].abs(), size + 1)
            });
            // Blocks at the edge are smaller.
            (key(sum / size.max(1) as f32), id)
        })
        .collect();
    order.sort_unstable();
    let mut out = vec![true; scores.len()];
    let mut left = zeros;
    for (_, id) in order {
        // Blocks of zeros are no loss.
        if left == 0 {
            break;
        }
        for at in members(id) {
            out[at] = false;
            left = left.saturating_sub(1);
        }
    }
    out
}

/// How many elements go at the least when a pattern has its way with the layer, of a wish.
pub(super) fn zeros_of(pattern: Pattern, grid: &Grid, wanted: usize) -> usize {
    match pattern {
        Pattern::NOfM { keep, of } => {
            let of_row: usize = grid.runs(of).map(|r| r.len().saturating_sub(keep)).sum();
            grid.blocks * grid.rows * of_row
        }
        _ => wanted.min(grid.len()),
    }
}

/// Whether zeros already stand as a pattern wants them: at least `zeros` of them.
pub(super) fn fulfils(pattern: Pattern, grid: &Grid, is_zero: &[bool], zeros: usize) -> bool {
    let scores: Vec<f32> = is_zero.iter().map(|&z| f32::from(u8::from(!z))).collect();
    let mask = mask(pattern, grid, &scores, zeros);
    mask.iter()
        .zip(is_zero)
        .all(|(&stays, &zero)| stays || zero)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;

    fn grid(rows: usize, cols: usize, kernel: usize) -> Grid {
        Grid {
            blocks: 1,
            rows,
            cols,
            kernel,
        }
    }

    fn shown(mask: &[bool]) -> String {
        mask.iter().map(|&m| if m { 'x' } else { '.' }).collect()
    }

    #[test]
    fn patterns_are_read_and_written() {
        for text in ["unstructured", "2:4", "16x1", "4x4"] {
            assert_eq!(text.parse::<Pattern>().unwrap().to_string(), text);
        }
        assert_eq!("1x1".parse(), Ok(Pattern::Unstructured));
        for text in [
            "", "4:2", "4:4", "0:4", "0x1", "2:4:8", "2x", "x", "9999x1", "-1:4",
        ] {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
    }

    #[test]
    fn of_equal_scores_the_first_go() {
        let scores = [1.0, 0.0, 1.0, f32::NAN, 1.0];
        assert_eq!(shown(&lowest(&scores, 0)), "xxxxx");
        assert_eq!(shown(&lowest(&scores, 2)), "..xxx");
        assert_eq!(shown(&lowest(&scores, 4)), "...x.");
        assert_eq!(shown(&lowest(&scores, 9)), ".....");
    }

    #[test]
    fn n_of_m_runs_along_channels_and_the_rest_is_short() {
        // Six channels of a kernel of two places: at the first place scores fall, at the second
        // they rise.
        let scores = [6.0, 1.0, 5.0, 2.0, 4.0, 3.0, 3.0, 4.0, 2.0, 5.0, 1.0, 6.0];
        let made = mask("2:4".parse().unwrap(), &grid(1, 12, 2), &scores, 0);
        // Channels 0 to 3 in fours, 4 and 5 stay as they are only two.
        assert_eq!(shown(&made), "x.x..x.xxxxx");
        assert_eq!(zeros_of("2:4".parse().unwrap(), &grid(3, 12, 2), 0), 12);
    }

    #[test]
    fn blocks_go_as_a_whole() {
        let scores = [1.0, 9.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.5, 5.0, 5.0, 5.0, 0.0];
        let made = mask("2x1".parse().unwrap(), &grid(3, 4, 1), &scores, 3);
        // The pair in the last column goes, then the single element below it.
        assert_eq!(shown(&made), "xxx.xxx.xxx.");
        let made = mask("1x2".parse().unwrap(), &grid(3, 4, 1), &scores, 3);
        assert_eq!(shown(&made), "xx..xx..xxxx");
    }

    #[test]
    fn zeros_that_stand_in_the_pattern_are_enough() {
        let zero = |text: &str| text.chars().map(|c| c == '.').collect::<Vec<bool>>();
        let two_four = "2:4".parse().unwrap();
        assert!(fulfils(two_four, &grid(1, 8, 1), &zero("x..xx.x."), 0));
        assert!(!fulfils(two_four, &grid(1, 8, 1), &zero("x...xxx."), 0));
        let blocks = "1x4".parse().unwrap();
        assert!(fulfils(blocks, &grid(1, 8, 1), &zero("....xxxx"), 4));
        assert!(!fulfils(blocks, &grid(1, 8, 1), &zero("..x...xx"), 4));
    }
}
