//! Calibration data in two parts: one to fit to, and one to judge by what was fitted.
//!
//! What was chosen because it does well on some samples does worse on others, so a limit that is
//! checked on the samples that everything was fitted to is not kept elsewhere.

use paring_ir::engine::{DataSource, EngineError, Sample};

/// Of so many runs of the model one is held out.
pub(crate) const HELD_OUT: u64 = 4;
/// Less data stays whole.
const LEAST: usize = 16;

/// Whether a run, by its position, is held out.
pub(crate) fn is_held_out(position: u64) -> bool {
    position % HELD_OUT == HELD_OUT - 1
}

/// One of the two parts.
pub(crate) struct Part<'a> {
    all: &'a dyn DataSource,
    held_out: bool,
}

impl<'a> Part<'a> {
    /// The part to fit to and the part to judge by; `None` where there are too few samples.
    pub(crate) fn both(all: &'a dyn DataSource) -> Option<(Part<'a>, Part<'a>)> {
        let part = |held_out| Part { all, held_out };
        (all.len() >= LEAST).then(|| (part(false), part(true)))
    }
}

impl DataSource for Part<'_> {
    fn len(&self) -> usize {
        let held_out = self.all.len() / HELD_OUT as usize;
        match self.held_out {
            true => held_out,
            false => self.all.len() - held_out,
        }
    }

    fn describe(&self) -> String {
        let part = match self.held_out {
            true => "every fourth run",
            false => "three of four runs",
        };
        format!("{}, {part}", self.all.describe())
    }

    fn has_labels(&self) -> bool {
        self.all.has_labels()
    }

    fn for_each(
        &self,
        limit: Option<usize>,
        f: &mut dyn FnMut(&Sample) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let (mut position, mut given) = (0u64, 0usize);
        let read = limit.map(|l| l.saturating_mul(HELD_OUT as usize));
        self.all.for_each(read, &mut |sample| {
            let own = is_held_out(position) == self.held_out;
            position += 1;
            if !own || limit.is_some_and(|l| given >= l) {
                return Ok(());
            }
            given += sample.count;
            f(sample)
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use paring_ir::Tensor;

    use super::*;
    use crate::testing::Samples;

    fn seen(part: &Part<'_>, limit: Option<usize>) -> Vec<i64> {
        let mut out = Vec::new();
        let each = &mut |s: &Sample| {
            out.extend(s.inputs[0].to_i64s().unwrap());
            Ok(())
        };
        part.for_each(limit, each).unwrap();
        out
    }

    #[test]
    fn every_fourth_run_is_held_out() {
        let all = Samples::of((0..16).map(|i| vec![Tensor::vector(vec![i as i64])]));
        let (fit, held) = Part::both(&all).unwrap();
        assert_eq!(seen(&held, None), [3, 7, 11, 15]);
        assert_eq!((fit.len(), held.len()), (12, 4));
        assert_eq!(seen(&fit, Some(4)), [0, 1, 2, 4]);
        assert_eq!(seen(&held, Some(2)), [3, 7]);
    }

    #[test]
    fn few_samples_stay_whole() {
        let all = Samples::of((0..15).map(|i| vec![Tensor::vector(vec![i as i64])]));
        assert!(Part::both(&all).is_none());
    }
}
