//! How much rank each layer gets.

use super::candidates::{Candidate, Cost, Form};

/// One way to store a layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    pub(super) form: Form,
    pub(super) rank: usize,
    pub(super) cost: Cost,
    /// The part of the energy of the layer's outputs that is lost, from 0 to 1.
    pub(super) error: f64,
}

/// A layer whose rank is open.
#[derive(Debug)]
pub(super) struct Item<'a> {
    /// What it costs as it is.
    pub(super) dense: Cost,
    /// The ways to factorize it.
    pub(super) choices: &'a [Choice],
    /// What an error of 1 in this layer is to the model.
    pub(super) importance: f64,
}

/// What limits a sum of costs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    pub(super) metric: fn(&Cost) -> f64,
    /// The sum over all layers may be so much.
    pub(super) most: f64,
}

/// Of a layer's choices the cheapest that keeps a share of the energy.
pub(super) fn by_energy(choices: &[Choice], energy: f64) -> Option<usize> {
    let enough = choices
        .iter()
        .enumerate()
        .filter(|(_, c)| 1.0 - c.error >= energy);
    enough
        .min_by(|(_, a), (_, b)| a.cost.macs.total_cmp(&b.cost.macs))
        .map(|(i, _)| i)
}

/// Of a layer's choices the best that keeps at most a share of its elements, else the smallest.
pub(super) fn by_ratio(choices: &[Choice], dense: &Cost, ratio: f64) -> Option<usize> {
    if ratio >= 1.0 {
        return None;
    }
    let most = ratio * dense.params;
    let fitting = choices
        .iter()
        .enumerate()
        .filter(|(_, c)| c.cost.params <= most);
    let best = fitting.min_by(|(_, a), (_, b)| a.error.total_cmp(&b.error));
    let smallest = || {
        let all = choices.iter().enumerate();
        all.min_by(|(_, a), (_, b)| a.cost.params.total_cmp(&b.cost.params))
    };
    best.or_else(smallest).map(|(i, _)| i)
}

/// Spends rank where the error falls most for its cost, until a limit is reached. Every layer
/// starts at its cheapest choice; `None` is a layer that stays as it is. The second part of the
/// result says whether the limits hold.
pub(super) fn spend(items: &[Item<'_>], limits: &[Limit]) -> (Vec<Option<usize>>, bool) {
    let weigh = |cost: &Cost| -> f64 {
        let parts = limits
            .iter()
            .map(|l| (l.metric)(cost) / l.most.max(f64::MIN_POSITIVE));
        parts.sum()
    };
    let mut state = State::new(items, limits, &weigh);
    // First along the convex hulls, where steps are worth less and less; then what is left goes
    // to any choice that still fits.
    while state.step(true) {}
    while state.step(false) {}
    let fits = state.fits(&Cost::default(), &Cost::default());
    let chosen = state.at.iter().zip(&state.points);
    let chosen = chosen.map(|(&at, points)| points[at].choice).collect();
    (chosen, fits)
}

/// A way to store a layer, with the weighed cost.
#[derive(Clone, Copy, Debug)]
struct Point {
    /// `None`: as it is.
    choice: Option<usize>,
    weight: f64,
    error: f64,
    cost: Cost,
    on_hull: bool,
}

struct State<'a> {
    limits: &'a [Limit],
    /// By layer: the ways to store it, by cost.
    points: Vec<Vec<Point>>,
    at: Vec<usize>,
    total: Cost,
}

impl<'a> State<'a> {
    fn new(items: &[Item<'_>], limits: &'a [Limit], weigh: &dyn Fn(&Cost) -> f64) -> State<'a> {
        let points: Vec<Vec<Point>> = items.iter().map(|i| points(i, weigh)).collect();
        let mut total = Cost::default();
        for p in &points {
            total.add(&p[0].cost);
        }
        State {
            limits,
            at: vec![0; points.len()],
            points,
            total,
        }
    }

    fn fits(&self, less: &Cost, more: &Cost) -> bool {
        // Sums of many numbers come out a little different from the limit that they make up.
        self.limits.iter().all(|l| {
            let sum = (l.metric)(&self.total) - (l.metric)(less) + (l.metric)(more);
            sum <= l.most * (1.0 + 1e-9)
        })
    }

    /// Takes the best step that fits; says whether there was one.
    fn step(&mut self, hull: bool) -> bool {
        let mut best: Option<(f64, usize, usize)> = None;
        for (i, points) in self.points.iter().enumerate() {
            let now = points[self.at[i]];
            let later = points.iter().enumerate().skip(self.at[i] + 1);
            let mut next = later.filter(|(_, p)| p.error < now.error && (!hull || p.on_hull));
            let taken = if hull {
                next.next().filter(|(_, p)| self.fits(&now.cost, &p.cost))
            } else {
                next.rfind(|(_, p)| self.fits(&now.cost, &p.cost))
            };
            let Some((to, p)) = taken else { continue };
            let value = (now.error - p.error) / (p.weight - now.weight).max(1e-300);
            if best.is_none_or(|b| value > b.0) {
                best = Some((value, i, to));
            }
        }
        let Some((_, i, to)) = best else {
            return false;
        };
        let (before, after) = (self.points[i][self.at[i]].cost, self.points[i][to].cost);
        self.total.params += after.params - before.params;
        self.total.bytes += after.bytes - before.bytes;
        self.total.macs += after.macs - before.macs;
        self.at[i] = to;
        true
    }
}

/// A layer's ways by cost, those left out that cost more for no less error.
fn points(item: &Item<'_>, weigh: &dyn Fn(&Cost) -> f64) -> Vec<Point> {
    let point = |choice: Option<usize>, cost: Cost, error: f64| Point {
        choice,
        weight: weigh(&cost),
        error: error * item.importance,
        cost,
        on_hull: false,
    };
    let choices = item.choices.iter().enumerate();
    let mut all: Vec<Point> = choices
        .map(|(i, c)| point(Some(i), c.cost, c.error))
        .collect();
    all.push(point(None, item.dense, 0.0));
    all.sort_by(|a, b| {
        a.weight
            .total_cmp(&b.weight)
            .then(a.error.total_cmp(&b.error))
    });
    let mut kept: Vec<Point> = Vec::new();
    for p in all {
        if kept.last().is_none_or(|last| p.error < last.error) {
            kept.push(p);
        }
    }
    let mut hull: Vec<usize> = Vec::new();
    for i in 0..kept.len() {
        while let [.., a, b] = hull[..] {
            let slope = |from: usize, to: usize| {
                (kept[from].error - kept[to].error)
                    / (kept[to].weight - kept[from].weight).max(1e-300)
            };
            if slope(a, b) >= slope(b, i) {
                break;
            }
            hull.pop();
        }
        hull.push(i);
    }
    for i in hull {
        kept[i].on_hull = true;
    }
    kept
}

/// The ways to factorize a layer whose error at each rank is known.
pub(super) fn choices(
    candidate: &Candidate<'_>,
    error: &dyn Fn(Form, usize) -> Option<f64>,
) -> Vec<Choice> {
    let mut out = Vec::new();
    for shape in &candidate.shapes {
        for rank in candidate.ranks(shape) {
            if let Some(error) = error(shape.form, rank) {
                out.push(Choice {
                    form: shape.form,
                    rank,
                    cost: candidate.cost(shape, rank),
                    error,
                });
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;

    fn cost(n: f64) -> Cost {
        Cost {
            params: n,
            bytes: 4.0 * n,
            macs: 10.0 * n,
        }
    }

    fn choices(errors: &[f64]) -> Vec<Choice> {
        let all = errors.iter().enumerate();
        all.map(|(i, &error)| Choice {
            form: Form::Channel,
            rank: i + 1,
            cost: cost((i + 1) as f64),
            error,
        })
        .collect()
    }

    fn item(choices: &[Choice], dense: f64) -> Item<'_> {
        Item {
            dense: cost(dense),
            choices,
            importance: 1.0,
        }
    }

    const PARAMS: fn(&Cost) -> f64 = |c| c.params;

    #[test]
    fn rank_goes_where_the_error_falls_most() {
        let (steep, flat) = (choices(&[0.9, 0.1, 0.05]), choices(&[0.2, 0.19, 0.18]));
        let items = [item(&steep, 4.0), item(&flat, 4.0)];
        let limit = |most| {
            [Limit {
                metric: PARAMS,
                most,
            }]
        };
        assert_eq!(spend(&items, &limit(3.0)), (vec![Some(1), Some(0)], true));
        // One of them can stay as it is, which brings its error to 0.
        assert_eq!(spend(&items, &limit(6.0)), (vec![Some(1), None], true));
        assert_eq!(spend(&items, &limit(8.0)), (vec![None, None], true));
        assert_eq!(spend(&items, &limit(1.0)), (vec![Some(0), Some(0)], false));
    }

    #[test]
    fn what_matters_more_to_the_model_gets_more() {
        let (a, b) = (choices(&[0.5, 0.4, 0.3]), choices(&[0.5, 0.4, 0.3]));
        let mut items = [item(&a, 9.0), item(&b, 9.0)];
        items[1].importance = 10.0;
        let limit = [Limit {
            metric: PARAMS,
            most: 4.0,
        }];
        assert_eq!(spend(&items, &limit), (vec![Some(0), Some(2)], true));
    }

    #[test]
    fn what_the_hull_leaves_over_is_spent_too() {
        // The second rank is above the line from the first to the third.
        let only = choices(&[0.9, 0.85, 0.1]);
        let limit = [Limit {
            metric: PARAMS,
            most: 2.0,
        }];
        assert_eq!(spend(&[item(&only, 4.0)], &limit), (vec![Some(1)], true));
    }

    #[test]
    fn several_limits_hold_at_once() {
        let only = choices(&[0.9, 0.5, 0.1]);
        let limits = [
            Limit {
                metric: PARAMS,
                most: 3.0,
            },
            Limit {
                metric: |c| c.macs,
                most: 25.0,
            },
        ];
        assert_eq!(spend(&[item(&only, 4.0)], &limits), (vec![Some(1)], true));
    }

    #[test]
    fn a_share_of_the_energy_takes_the_cheapest_form() {
        let mut all = choices(&[0.4, 0.2, 0.05]);
        all.push(Choice {
            form: Form::Spatial,
            rank: 2,
            cost: cost(1.5),
            error: 0.1,
        });
        assert_eq!(by_energy(&all, 0.9), Some(3));
        assert_eq!(by_energy(&all, 0.95), Some(2));
        assert_eq!(by_energy(&all, 0.99), None);
    }

    #[test]
    fn a_share_of_the_elements_takes_the_best_that_fits() {
        let all = choices(&[0.4, 0.2, 0.05]);
        assert_eq!(by_ratio(&all, &cost(4.0), 0.5), Some(1));
        assert_eq!(by_ratio(&all, &cost(4.0), 0.1), Some(0));
        assert_eq!(by_ratio(&all, &cost(4.0), 1.0), None);
    }
}
