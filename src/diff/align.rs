//! Which operator of one graph is which of the other.
//!
//! The levels go from what can't be wrong to what merely fits: an operator that is aligned stays
//! so, and helps to align those around it. Each level is linear in the size of the graphs, but
//! for sorting.

use std::collections::HashMap;

use paring_ir::analysis::{Anchors, Detail, Structure};
use paring_ir::{Name, Provenance, ValueId};

use super::net::{CAPTURE, From, Net};
use super::sequence::common;

/// Numbers for the values of an enclosing graph, the same on both sides where they are the same.
pub(super) type Env = HashMap<ValueId, u64>;

/// Which operators, inputs and outputs of two graphs belong together, by their places.
#[derive(Clone, Debug, Default)]
pub(super) struct Alignment {
    /// For each operator of the first graph the one of the second.
    pub(super) to_b: Vec<Option<usize>>,
    /// For each operator of the second graph the one of the first.
    pub(super) to_a: Vec<Option<usize>>,
    /// For each input of the first graph the one of the second.
    pub(super) inputs_to_b: Vec<Option<usize>>,
    /// For each input of the second graph the one of the first.
    pub(super) inputs_to_a: Vec<Option<usize>>,
    /// For each output of the first graph the one of the second.
    pub(super) outputs_to_b: Vec<Option<usize>>,
    /// For each output of the second graph the one of the first.
    pub(super) outputs_to_a: Vec<Option<usize>>,
    /// Hashes of all that each operator computes, elements of constants included.
    pub(super) up_a: Vec<u64>,
    /// The same of the second graph.
    pub(super) up_b: Vec<u64>,
}

/// Aligns two graphs.
pub(super) fn align(a: &Net<'_>, b: &Net<'_>, env_a: &Env, env_b: &Env) -> Alignment {
    let mut aligner = Aligner {
        a,
        b,
        env_a,
        env_b,
        out: Alignment {
            to_b: vec![None; a.ops.len()],
            to_a: vec![None; b.ops.len()],
            inputs_to_b: vec![None; a.graph.inputs().len()],
            inputs_to_a: vec![None; b.graph.inputs().len()],
            outputs_to_b: vec![None; a.outputs.len()],
            outputs_to_a: vec![None; b.outputs.len()],
            ..Alignment::default()
        },
        queue: Vec::new(),
        holds: true,
        labels: (Vec::new(), Vec::new()),
        origins: vec![None; b.ops.len()],
        namesakes: vec![None; a.ops.len()],
    };
    aligner.run();
    aligner.out
}

/// What to do with several operators of one key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// Nothing: only one of each side is taken.
    Unique,
    /// Align them by name and then in order, when there are as many on both sides.
    Even,
    /// Align them by name and then in order, as many as there are.
    Order,
}

struct Aligner<'a> {
    a: &'a Net<'a>,
    b: &'a Net<'a>,
    env_a: &'a Env,
    env_b: &'a Env,
    out: Alignment,
    queue: Vec<(usize, usize)>,
    /// Neighbours wait until everything that is computed in the same way is aligned: where two
    /// inputs were swapped, they would be aligned crosswise.
    holds: bool,
    labels: (Vec<Name>, Vec<Name>),
    /// By operators of the second graph: those of the first that they were made from, where the
    /// file records it. Such an operator is no other one of the first graph.
    origins: Vec<Option<Vec<usize>>>,
    /// By operators of the first graph: the only one of the second with the same name and type.
    namesakes: Vec<Option<usize>>,
}

/// Keys of the operators of both sides, by place.
struct Keys(Vec<u64>, Vec<u64>);

impl Keys {
    fn and(&self, other: &Keys) -> Keys {
        fn both(x: &[u64], y: &[u64]) -> Vec<u64> {
            let mix =
                |(x, y): (&u64, &u64)| x.rotate_left(23) ^ y.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            x.iter().zip(y).map(mix).collect()
        }
        Keys(both(&self.0, &other.0), both(&self.1, &other.1))
    }
}

impl Aligner<'_> {
    fn run(&mut self) {
        let label = |n: &Net<'_>| (0..n.ops.len()).map(|i| n.label(i)).collect();
        self.labels = (label(self.a), label(self.b));
        self.pair_inputs();
        self.pair_outputs();
        let elements = self.structures(Detail::Elements);
        let (own, up, down) = self.keys(&elements);
        // The same graph, weights included, before or after all that was edited.
        self.by_key(&up.and(&down), Rule::Order, &own);
        // What is computed in the same way goes before what is used in the same way. Of several
        // that compute the same, those in the same surroundings belong together.
        for steps in [3, 1] {
            let near = self.neighbourhood(&elements, steps);
            self.by_key(&up.and(&near), Rule::Even, &own);
        }
        self.by_key(&up, Rule::Order, &own);
        self.holds = false;
        self.propagate_all(&own);
        let near = self.neighbourhood(&elements, 3);
        self.by_key(&down.and(&near), Rule::Even, &own);
        self.by_key(&down, Rule::Even, &own);
        self.by_weights(&own);
        self.out.up_a.clone_from(&up.0);
        self.out.up_b.clone_from(&up.1);
        if self.is_done() {
            return;
        }
        self.origins = self.recorded_origins();
        self.namesakes = self.same_names();
        // The same graph but for the elements of weights, or but for their shapes as well.
        let types = self.structures(Detail::Types);
        let (own_types, up_types, down_types) = self.keys(&types);
        self.by_key(&up_types.and(&down_types), Rule::Even, &own_types);
        let kinds = self.structures(Detail::Kinds);
        let (own_kinds, up_kinds, down_kinds) = self.keys(&kinds);
        self.by_key(&up_kinds.and(&down_kinds), Rule::Even, &own_kinds);
        // What the file or the names say, where the surroundings agree.
        self.by_provenance(&own_types);
        self.by_names(&own_types, false);
        self.propagate_all(&own_types);
        let plain = self.plain();
        self.by_key(&plain, Rule::Even, &own_kinds);
        for steps in [4, 3, 2, 1] {
            let near = self.neighbourhood(&types, steps);
            self.by_key(&near, Rule::Unique, &own_types);
        }
        self.propagate_all(&own_types);
        self.propagate_all(&own_kinds);
        for steps in [4, 3, 2] {
            let near = self.neighbourhood(&kinds, steps);
            self.by_key(&near, Rule::Unique, &own_kinds);
        }
        for keys in [up_types, down_types, up_kinds, down_kinds] {
            self.by_key(&keys, Rule::Unique, &own_kinds);
        }
        self.by_sequence(&own_types);
        self.by_sequence(&own_kinds);
        let bare = self.bare();
        self.propagate_all(&bare);
        self.by_names(&own_types, true);
        self.propagate_all(&bare);
    }

    fn is_done(&self) -> bool {
        self.out.to_b.iter().all(Option::is_some) || self.out.to_a.iter().all(Option::is_some)
    }

    // --- Structures and keys -------------------------------------------------------------

    fn anchors(&self) -> (Anchors, Anchors) {
        let (mut a, mut b) = (Anchors::default(), Anchors::default());
        // A number of its own for every pair of inputs, and for every pair of outputs.
        let number = |i: usize, salt: u64| (i as u64 + 1).wrapping_mul(salt);
        for (i, j) in pairs(&self.out.inputs_to_b) {
            let n = number(i, 0xA076_1D64_78BD_642F);
            a.inputs.insert(self.a.graph.inputs()[i], n);
            b.inputs.insert(self.b.graph.inputs()[j], n);
        }
        for (i, j) in pairs(&self.out.outputs_to_b) {
            let n = number(i, 0xE703_7ED1_A0B4_28DB);
            a.outputs.insert(i, n);
            b.outputs.insert(j, n);
        }
        for (net, env, out) in [(self.a, self.env_a, &mut a), (self.b, self.env_b, &mut b)] {
            for v in net.graph.outer_values() {
                let outer = net.graph.value(v).captured_from();
                if let Some(&n) = outer.and_then(|o| env.get(&o)) {
                    out.inputs.insert(v, n);
                }
            }
        }
        (a, b)
    }

    fn structures(&self, detail: Detail) -> (Structure, Structure) {
        let (x, y) = self.anchors();
        let of = |n: &Net<'_>, anchors| {
            Structure::of(n.graph, &n.order, n.opsets, n.constants, anchors, detail)
        };
        (of(self.a, &x), of(self.b, &y))
    }

    fn keys(&self, s: &(Structure, Structure)) -> (Keys, Keys, Keys) {
        let get = |f: fn(paring_ir::analysis::Hashes) -> u64| {
            let side = |n: &Net<'_>, s: &Structure| n.ops.iter().map(|&op| f(s.op(op))).collect();
            Keys(side(self.a, &s.0), side(self.b, &s.1))
        };
        (get(|h| h.own), get(|h| h.up), get(|h| h.down))
    }

    fn neighbourhood(&self, s: &(Structure, Structure), steps: usize) -> Keys {
        Keys(s.0.neighbourhood(steps), s.1.neighbourhood(steps))
    }

    /// Both directions, through quantizers; a key of its own for each operator that is looked
    /// through itself.
    fn plain(&self) -> Keys {
        let s = self.structures(Detail::Plain);
        let (_, up, down) = self.keys(&s);
        let mut keys = up.and(&down);
        let skipped = |n: &Net<'_>, keys: &mut Vec<u64>, side: u64| {
            for (i, key) in keys.iter_mut().enumerate() {
                if paring_ir::analysis::structure::is_transparent(n.op(i)) {
                    *key = (2 * i as u64 + side).wrapping_mul(0x8EBC_6AF0_9C88_C6E3);
                }
            }
        };
        skipped(self.a, &mut keys.0, 0);
        skipped(self.b, &mut keys.1, 1);
        keys
    }

    /// The operator type alone.
    fn bare(&self) -> Keys {
        let mut numbers: HashMap<(Name, Name), u64> = HashMap::new();
        let mut side = |n: &Net<'_>| {
            (0..n.ops.len())
                .map(|i| {
                    let key = (n.op(i).domain().clone(), n.op(i).op_type().clone());
                    let next = numbers.len() as u64;
                    *numbers.entry(key).or_insert(next)
                })
                .collect()
        };
        let first = side(self.a);
        Keys(first, side(self.b))
    }

    // --- Levels --------------------------------------------------------------------------

    fn pair(&mut self, i: usize, j: usize, own: &Keys) {
        self.out.to_b[i] = Some(j);
        self.out.to_a[j] = Some(i);
        if !self.holds {
            self.queue.push((i, j));
            self.propagate(own);
        }
    }

    fn is_open(&self, i: usize, j: usize) -> bool {
        let origin = self.origins.get(j).and_then(Option::as_ref);
        self.out.to_b[i].is_none()
            && self.out.to_a[j].is_none()
            && origin.is_none_or(|from| from.contains(&i) && !self.has_namesake(i, j))
    }

    /// Whether another operator of the second graph still has the name and the type of `i`, so
    /// that `j`, which was made from `i`, stands beside it.
    fn has_namesake(&self, i: usize, j: usize) -> bool {
        let other = self.namesakes.get(i).copied().flatten();
        other.is_some_and(|k| k != j && self.out.to_a[k].is_none())
    }

    /// For each operator of the first graph the only one of the second with its name and type.
    fn same_names(&self) -> Vec<Option<usize>> {
        let mut named: HashMap<&Name, Option<usize>> = HashMap::new();
        for (j, label) in self.labels.1.iter().enumerate() {
            let entry = named.entry(label);
            entry.and_modify(|e| *e = None).or_insert(Some(j));
        }
        let of = |(i, label): (usize, &Name)| {
            let j = named.get(label).copied().flatten()?;
            self.same_type(i, j).then_some(j)
        };
        self.labels.0.iter().enumerate().map(of).collect()
    }

    /// What operators of the second graph were made from. A record that doesn't fit the names of
    /// the first graph, or one that was cut off, says nothing.
    fn recorded_origins(&self) -> Vec<Option<Vec<usize>>> {
        let mut named: HashMap<&Name, Option<usize>> = HashMap::new();
        for (i, label) in self.labels.0.iter().enumerate() {
            let entry = named.entry(label);
            entry.and_modify(|e| *e = None).or_insert(Some(i));
        }
        let origin = |j: usize| {
            let from = &self.b.op(j).provenance()?.from;
            if from.is_empty() || from.len() >= Provenance::MAX_SOURCES {
                return None;
            }
            let places = from.iter().map(|n| named.get(n).copied().flatten());
            places.collect::<Option<Vec<usize>>>()
        };
        (0..self.b.ops.len()).map(origin).collect()
    }

    fn by_key(&mut self, keys: &Keys, rule: Rule, own: &Keys) {
        let mut classes: HashMap<u64, (Vec<usize>, Vec<usize>)> = HashMap::new();
        let mut order: Vec<u64> = Vec::new();
        for (i, &key) in keys.0.iter().enumerate() {
            if self.out.to_b[i].is_none() {
                let class = classes.entry(key).or_default();
                if class.0.is_empty() {
                    order.push(key);
                }
                class.0.push(i);
            }
        }
        for (j, key) in keys.1.iter().enumerate() {
            if self.out.to_a[j].is_none()
                && let Some(class) = classes.get_mut(key)
            {
                class.1.push(j);
            }
        }
        // The unmistakable first: they settle most of the others.
        for many in [false, true] {
            for key in &order {
                let Some((xs, ys)) = classes.get(key) else {
                    continue;
                };
                match (xs.as_slice(), ys.as_slice()) {
                    (&[i], &[j]) => {
                        if !many && self.is_open(i, j) {
                            self.pair(i, j, own);
                        }
                    }
                    (_, []) => {}
                    (xs, ys) => {
                        let fits =
                            rule == Rule::Order || (rule == Rule::Even && xs.len() == ys.len());
                        if many && fits {
                            self.pair_class(xs, ys, own);
                        }
                    }
                }
            }
        }
    }

    /// Aligns operators of one kind: those of one name, and then in order.
    fn pair_class(&mut self, xs: &[usize], ys: &[usize], own: &Keys) {
        let mut named: HashMap<Name, usize> = HashMap::new();
        for &j in ys.iter().rev() {
            named.insert(self.labels.1[j].clone(), j);
        }
        for &i in xs {
            if let Some(&j) = named.get(&self.labels.0[i])
                && self.is_open(i, j)
            {
                self.pair(i, j, own);
            }
        }
        let mut rest = ys.iter().copied();
        for &i in xs {
            if self.out.to_b[i].is_some() {
                continue;
            }
            if let Some(j) = rest.find(|&j| self.is_open(i, j)) {
                self.pair(i, j, own);
            }
        }
    }

    /// Aligns operators by themselves, where large constants make them unmistakable.
    fn by_weights(&mut self, own: &Keys) {
        const LARGE: usize = 16;
        let heavy = |n: &Net<'_>, i: usize| {
            n.inputs[i].iter().any(|from| match from {
                From::Constant(v) => n
                    .constant(*v)
                    .is_some_and(|c| c.dims().iter().product::<usize>() >= LARGE),
                _ => false,
            })
        };
        // Keys that no other operator has stand for those without weights.
        let side = |n: &Net<'_>, own: &[u64], salt: u64| -> Vec<u64> {
            let keys = own.iter().enumerate();
            keys.map(|(i, &k)| match heavy(n, i) {
                true => k,
                false => (2 * i as u64 + salt).wrapping_mul(0x8EBC_6AF0_9C88_C6E3),
            })
            .collect()
        };
        let keys = Keys(side(self.a, &own.0, 0), side(self.b, &own.1, 1));
        self.by_key(&keys, Rule::Unique, own);
    }

    /// Aligns operators of the second graph with those that they were made from.
    fn by_provenance(&mut self, own: &Keys) {
        let mut named: HashMap<Name, Option<usize>> = HashMap::new();
        for (i, label) in self.labels.0.iter().enumerate() {
            let entry = named.entry(label.clone());
            entry.and_modify(|e| *e = None).or_insert(Some(i));
        }
        // How many operators of one type were made from one, of which none may be the one itself.
        let mut claims: HashMap<(&Name, &Name), usize> = HashMap::new();
        for j in 0..self.b.ops.len() {
            let op = self.b.op(j);
            for name in op.provenance().iter().flat_map(|o| &o.from) {
                *claims.entry((name, op.op_type())).or_default() += 1;
            }
        }
        for j in 0..self.b.ops.len() {
            let Some(origin) = self.b.op(j).provenance() else {
                continue;
            };
            if self.out.to_a[j].is_some() {
                continue;
            }
            let names = std::iter::once(&self.labels.1[j]).chain(&origin.from);
            let found = names.filter_map(|n| named.get(n).copied().flatten());
            let of_type = |&i: &usize| {
                self.same_type(i, j) && self.out.to_b[i].is_none() && !self.has_namesake(i, j)
            };
            if let Some(i) = found.filter(of_type).find(|&i| {
                let (support, conflict) = self.agreement(i, j);
                let label = &self.labels.0[i];
                let claim = claims.get(&(label, self.b.op(j).op_type()));
                let alone = *label == self.labels.1[j] || claim.is_none_or(|&n| n < 2);
                (conflict == 0 && alone) || support > conflict
            }) {
                self.pair(i, j, own);
            }
        }
    }

    /// Aligns runs of operators of the same kinds in the same order, as between two places of a
    /// repetitive graph that were edited.
    fn by_sequence(&mut self, keys: &Keys) {
        let open = |n: &Net<'_>, taken: &[Option<usize>], keys: &[u64]| -> Vec<usize> {
            let open = (0..n.ops.len()).filter(|&i| taken[i].is_none());
            let mut open: Vec<usize> = open.collect();
            // Not the order of the file, which says nothing.
            open.sort_by_key(|&i| (n.levels[i], keys[i], i));
            open
        };
        let xs = open(self.a, &self.out.to_b, &keys.0);
        let ys = open(self.b, &self.out.to_a, &keys.1);
        let of = |places: &[usize], keys: &[u64]| -> Vec<u64> {
            places.iter().map(|&p| keys[p]).collect()
        };
        let Some(found) = common(&of(&xs, &keys.0), &of(&ys, &keys.1)) else {
            return;
        };
        for (x, y) in found {
            let (i, j) = (xs[x], ys[y]);
            if self.is_open(i, j) && self.agreement(i, j).1 == 0 {
                self.pair(i, j, keys);
            }
        }
    }

    fn same_type(&self, i: usize, j: usize) -> bool {
        let (x, y) = (self.a.op(i), self.b.op(j));
        x.op_type() == y.op_type() && x.domain() == y.domain()
    }

    /// Aligns operators of one name and type; `all` where nothing speaks against it, otherwise
    /// where something speaks for it as well.
    fn by_names(&mut self, own: &Keys, all: bool) {
        let unique = |labels: &[Name], taken: &[Option<usize>]| {
            let mut out: HashMap<Name, Option<usize>> = HashMap::new();
            for (i, label) in labels
                .iter()
                .enumerate()
                .filter(|(i, _)| taken[*i].is_none())
            {
                let entry = out.entry(label.clone());
                entry.and_modify(|e| *e = None).or_insert(Some(i));
            }
            out
        };
        let first = unique(&self.labels.0, &self.out.to_b);
        let second = unique(&self.labels.1, &self.out.to_a);
        let mut open: Vec<(usize, usize)> = (0..self.a.ops.len())
            .filter_map(|i| {
                let label = &self.labels.0[i];
                first.get(label).copied().flatten()?;
                let j = second.get(label).copied().flatten()?;
                (self.out.to_b[i].is_none() && self.same_type(i, j)).then_some((i, j))
            })
            .collect();
        // What is aligned speaks for what stands beside it, so several rounds find more.
        const ROUNDS: usize = 16;
        for _ in 0..ROUNDS {
            let before = open.len();
            open.retain(|&(i, j)| {
                if !self.is_open(i, j) {
                    return false;
                }
                let (support, conflict) = self.agreement(i, j);
                let alike = own.0[i] == own.1[j];
                let fits = support > conflict || (conflict == 0 && (alike || all));
                if fits {
                    self.pair(i, j, own);
                }
                !fits
            });
            if open.len() == before {
                return;
            }
        }
    }

    /// How many neighbours speak for two operators being one, and how many against it.
    fn agreement(&self, i: usize, j: usize) -> (usize, usize) {
        const MOST_USERS: usize = 64;
        let (mut support, mut conflict) = (0, 0);
        for (x, y) in self.a.inputs[i].iter().zip(&self.b.inputs[j]) {
            match self.compare(*x, *y) {
                Some(true) => support += 1,
                Some(false) => conflict += 1,
                None => {}
            }
        }
        for u in self.a.users[i].iter().take(MOST_USERS) {
            let Some(w) = self.out.to_b[u.user] else {
                continue;
            };
            if u.at != CAPTURE && self.b.input(w, u.at) == From::Op(j, u.slot) {
                support += 1;
            }
        }
        for (slot, position) in self.a.leaves.get(&i).into_iter().flatten() {
            let other = self.out.outputs_to_b[*position];
            if other.is_some_and(|q| self.b.outputs[q] == From::Op(j, *slot)) {
                support += 1;
            }
        }
        (support, conflict)
    }

    /// Whether two sources are the same; `None` when that is open.
    fn compare(&self, x: From, y: From) -> Option<bool> {
        match (x, y) {
            (From::Op(p, s), From::Op(q, t)) => match (self.out.to_b[p], self.out.to_a[q]) {
                (Some(w), _) if w == q => Some(s == t),
                (Some(_), Some(_)) => Some(false),
                _ => None,
            },
            (From::Input(p), From::Input(q)) => Some(self.out.inputs_to_b[p] == Some(q)),
            (From::Constant(v), From::Constant(w)) => {
                let same = self.a.constants.digest(v) == self.b.constants.digest(w);
                let name = |n: &Net<'_>, v: ValueId| n.graph.get_value(v).map(|v| v.name().clone());
                let named = name(self.a, v).is_some() && name(self.a, v) == name(self.b, w);
                (same || named).then_some(true)
            }
            (From::Outer(v), From::Outer(w)) => {
                let outer = |n: &Net<'_>, env: &Env, v: ValueId| {
                    n.graph
                        .value(v)
                        .captured_from()
                        .and_then(|o| env.get(&o).copied())
                };
                let (x, y) = (outer(self.a, self.env_a, v), outer(self.b, self.env_b, w));
                (x.is_some() && y.is_some()).then_some(x == y)
            }
            _ => None,
        }
    }

    // --- Neighbours of what is aligned -----------------------------------------------------

    fn propagate_all(&mut self, own: &Keys) {
        self.queue = pairs(&self.out.to_b).collect();
        self.queue.reverse();
        self.propagate(own);
    }

    /// Aligns what makes the inputs and what takes the outputs of aligned operators, slot by
    /// slot, where the keys are the same and leave no choice.
    fn propagate(&mut self, own: &Keys) {
        while let Some((i, j)) = self.queue.pop() {
            for slot in 0..self.a.inputs[i].len().min(self.b.inputs[j].len()) {
                if let (From::Op(p, s), From::Op(q, t)) =
                    (self.a.inputs[i][slot], self.b.inputs[j][slot])
                    && s == t
                    && own.0[p] == own.1[q]
                    && self.is_open(p, q)
                {
                    self.out.to_b[p] = Some(q);
                    self.out.to_a[q] = Some(p);
                    self.queue.push((p, q));
                }
            }
            self.propagate_down(i, j, own);
        }
    }

    fn propagate_down(&mut self, i: usize, j: usize, own: &Keys) {
        let open = |n: &Net<'_>, place: usize, taken: &[Option<usize>], keys: &[u64]| {
            let users = n.users[place].iter().filter(|u| taken[u.user].is_none());
            let mut users: Vec<(usize, usize, u64, usize)> = users
                .map(|u| (u.slot, u.at, keys[u.user], u.user))
                .collect();
            users.sort_unstable();
            users
        };
        let xs = open(self.a, i, &self.out.to_b, &own.0);
        if xs.is_empty() {
            return;
        }
        let ys = open(self.b, j, &self.out.to_a, &own.1);
        let same = |p: &(usize, usize, u64, usize), q: &(usize, usize, u64, usize)| {
            (p.0, p.1, p.2) == (q.0, q.1, q.2)
        };
        let mut rest = ys.chunk_by(same).peekable();
        for group in xs.chunk_by(same) {
            let key = (group[0].0, group[0].1, group[0].2);
            while rest.next_if(|g| (g[0].0, g[0].1, g[0].2) < key).is_some() {}
            let Some(&other) = rest.peek() else { return };
            if let ([x], [y]) = (group, other)
                && same(x, y)
                && self.is_open(x.3, y.3)
            {
                self.out.to_b[x.3] = Some(y.3);
                self.out.to_a[y.3] = Some(x.3);
                self.queue.push((x.3, y.3));
            }
        }
    }

    // --- Inputs and outputs ----------------------------------------------------------------

    fn pair_inputs(&mut self) {
        let name = |n: &Net<'_>| -> Vec<Name> {
            let inputs = n.graph.inputs().iter();
            inputs.map(|&v| n.graph.value(v).name().clone()).collect()
        };
        let (x, y) = (name(self.a), name(self.b));
        // Inputs of graphs inside operators are known by their positions.
        if !self.is_main() {
            in_order(&mut self.out.inputs_to_b, &mut self.out.inputs_to_a);
            return;
        }
        by_name(&x, &y, &mut self.out.inputs_to_b, &mut self.out.inputs_to_a);
        for detail in [Detail::Elements, Detail::Types, Detail::Kinds] {
            if complete(&self.out.inputs_to_b, &self.out.inputs_to_a) {
                return;
            }
            let s = self.structures(detail);
            let keys = |n: &Net<'_>, s: &Structure| -> Vec<_> {
                let inputs = n.graph.inputs().iter();
                inputs
                    .map(|&v| {
                        let ty = n.graph.value(v).declared_type();
                        let sizes = ty.and_then(|t| t.shape()).map(|s| {
                            let known = s.iter().map(paring_ir::Dim::known);
                            known.collect::<Vec<_>>()
                        });
                        (s.input(v), ty.and_then(|t| t.dtype()), sizes)
                    })
                    .collect()
            };
            let (x, y) = (keys(self.a, &s.0), keys(self.b, &s.1));
            by_name(&x, &y, &mut self.out.inputs_to_b, &mut self.out.inputs_to_a);
        }
        in_order(&mut self.out.inputs_to_b, &mut self.out.inputs_to_a);
    }

    fn pair_outputs(&mut self) {
        let name = |n: &Net<'_>| -> Vec<Name> {
            let outputs = n.graph.outputs().iter();
            outputs.map(|&v| n.graph.value(v).name().clone()).collect()
        };
        if !self.is_main() {
            in_order(&mut self.out.outputs_to_b, &mut self.out.outputs_to_a);
            return;
        }
        let (x, y) = (name(self.a), name(self.b));
        by_name(
            &x,
            &y,
            &mut self.out.outputs_to_b,
            &mut self.out.outputs_to_a,
        );
        for detail in [Detail::Elements, Detail::Types, Detail::Kinds] {
            if complete(&self.out.outputs_to_b, &self.out.outputs_to_a) {
                return;
            }
            let s = self.structures(detail);
            let keys = |n: &Net<'_>, s: &Structure| -> Vec<(u64, usize)> {
                let outputs = n.outputs.iter().enumerate();
                outputs
                    .map(|(i, from)| match from {
                        From::Op(p, slot) => (s.op(n.ops[*p]).up, *slot),
                        From::Constant(v) => (n.constants.digest(*v).unwrap_or(0) as u64, 0),
                        // A key of its own: by position later on.
                        _ => (i as u64, usize::MAX),
                    })
                    .collect()
            };
            let (x, y) = (keys(self.a, &s.0), keys(self.b, &s.1));
            by_name(
                &x,
                &y,
                &mut self.out.outputs_to_b,
                &mut self.out.outputs_to_a,
            );
        }
        in_order(&mut self.out.outputs_to_b, &mut self.out.outputs_to_a);
    }

    fn is_main(&self) -> bool {
        self.a.graph.id() == self.a.model.graph.id()
    }
}

/// The pairs of a table.
pub(super) fn pairs(table: &[Option<usize>]) -> impl Iterator<Item = (usize, usize)> + '_ {
    let entries = table.iter().enumerate();
    entries.filter_map(|(i, j)| Some((i, (*j)?)))
}

fn complete(to_b: &[Option<usize>], to_a: &[Option<usize>]) -> bool {
    to_b.iter().all(Option::is_some) || to_a.iter().all(Option::is_some)
}

/// Pairs what has one key, where no other has it.
fn by_name<K: Eq + std::hash::Hash>(
    x: &[K],
    y: &[K],
    to_b: &mut [Option<usize>],
    to_a: &mut [Option<usize>],
) {
    let mut counts: HashMap<&K, (Vec<usize>, Vec<usize>)> = HashMap::new();
    for (i, k) in x.iter().enumerate().filter(|(i, _)| to_b[*i].is_none()) {
        counts.entry(k).or_default().0.push(i);
    }
    for (j, k) in y.iter().enumerate().filter(|(j, _)| to_a[*j].is_none()) {
        counts.entry(k).or_default().1.push(j);
    }
    // What is paired doesn't depend on the order in which the map is gone through.
    for (_, (xs, ys)) in counts {
        if let ([i], [j]) = (xs.as_slice(), ys.as_slice()) {
            to_b[*i] = Some(*j);
            to_a[*j] = Some(*i);
        }
    }
}

/// Pairs what is left in order.
fn in_order(to_b: &mut [Option<usize>], to_a: &mut [Option<usize>]) {
    let mut j = 0;
    for (i, to) in to_b.iter_mut().enumerate() {
        if to.is_some() {
            continue;
        }
        while to_a.get(j).is_some_and(Option::is_some) {
            j += 1;
        }
        let Some(back) = to_a.get_mut(j) else { return };
        *to = Some(j);
        *back = Some(i);
    }
}
