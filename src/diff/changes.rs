//! What differs of aligned operators: attributes, and what they take.

use std::collections::{BTreeMap, HashMap, HashSet};

use paring_ir::analysis::Constants;
use paring_ir::analysis::structure::is_transparent;
use paring_ir::schema::{self, Class, Role};
use paring_ir::{AttrValue, Graph, GraphError, Model, Op, OpsetImport, ValueId};

use super::align::{Alignment, Env, align, pairs};
use super::net::{From, Net, type_name};
use super::patterns::{Altered, Fate, Group, Regions};
use super::weights::{self, Carrier, Codes, carrier, short_text};
use super::{Difference, Place};

/// Two graphs that are compared.
pub(super) struct Part<'a> {
    pub(super) path: String,
    pub(super) a: Net<'a>,
    pub(super) b: Net<'a>,
    pub(super) al: Alignment,
    /// What differs, by the place of the operator in the first graph.
    pub(super) changes: BTreeMap<usize, Vec<Difference>>,
    pub(super) groups: Vec<Group>,
    /// What makes an output of the graph is another value.
    pub(super) outputs: Vec<Difference>,
}

/// A tensor of the first model and what stands for it in the second.
pub(super) struct TensorPair {
    pub(super) part: usize,
    pub(super) from_a: From,
    pub(super) from_b: From,
    pub(super) a: Carrier,
    pub(super) b: Carrier,
    pub(super) role: &'static str,
    pub(super) places: Vec<Place>,
    /// The product of two constants stands for it.
    pub(super) factors: Option<(From, From)>,
    /// It holds the codes of an integer operator.
    pub(super) codes: Option<Codes>,
}

impl TensorPair {
    /// Takes the constant of the second model for codes.
    fn set_codes(&mut self, codes: Option<Codes>, constants: (&Constants, &Constants)) {
        let first = self.a.main.and_then(|v| constants.0.get(v));
        // Codes are compared with codes as they are.
        let float = first.is_some_and(|c| c.dtype().is_float());
        let Some(codes) = codes.filter(|_| float && self.b.through.is_empty()) else {
            return;
        };
        self.b.parts.push(codes.scale);
        self.b.parts.extend(codes.zero_point);
        self.b.quantization = weights::quantization_of(constants.1, &codes);
        self.codes = Some(codes);
    }

    fn set_factors(&mut self, factors: Option<(From, From)>) {
        let roots = factors.map(|(u, v)| [u, v]);
        for from in roots.into_iter().flatten() {
            if let From::Constant(root) = from
                && self.b.main != Some(root)
            {
                self.b.parts.push(root);
            }
        }
        self.factors = factors;
    }
}

/// Both models, and what was found so far.
pub(super) struct Comparison<'a> {
    pub(super) models: (&'a Model, &'a Model),
    pub(super) constants: (&'a Constants, &'a Constants),
    pub(super) parts: Vec<Part<'a>>,
    pub(super) tensors: Vec<TensorPair>,
    index: HashMap<(Option<ValueId>, Option<ValueId>), usize>,
    /// The constants of the first model that are in some pair.
    paired: HashSet<ValueId>,
}

impl<'a> Comparison<'a> {
    pub(super) fn new(
        models: (&'a Model, &'a Model),
        constants: (&'a Constants, &'a Constants),
    ) -> Comparison<'a> {
        Comparison {
            models,
            constants,
            parts: Vec::new(),
            tensors: Vec::new(),
            index: HashMap::new(),
            paired: HashSet::new(),
        }
    }

    /// Compares two graphs and all inside them.
    pub(super) fn graphs(
        &mut self,
        path: String,
        (x, y): (&'a Graph, &'a Graph),
        (opsets_x, opsets_y): (&'a [OpsetImport], &'a [OpsetImport]),
        (env_x, env_y): (&Env, &Env),
    ) -> Result<(), GraphError> {
        let a = Net::new(self.models.0, x, opsets_x, self.constants.0)?;
        let b = Net::new(self.models.1, y, opsets_y, self.constants.1)?;
        let al = align(&a, &b, env_x, env_y);
        let regions = Regions::new(&a, &b, &al);
        let part = self.parts.len();
        self.parts.push(Part {
            path,
            a,
            b,
            al,
            changes: BTreeMap::new(),
            groups: Vec::new(),
            outputs: Vec::new(),
        });
        self.operators(part, regions, env_x, env_y);
        self.inside(part, env_x, env_y)
    }

    /// Goes through the aligned operators of a part.
    fn operators(&mut self, part: usize, mut regions: Regions, env_x: &Env, env_y: &Env) {
        let aligned: Vec<(usize, usize)> = pairs(&self.parts[part].al.to_b).collect();
        for &(i, j) in &aligned {
            let p = &self.parts[part];
            let mut changes = attributes(p, i, j);
            let mut tensors = Vec::new();
            for slot in 0..p.a.inputs[i].len().max(p.b.inputs[j].len()) {
                let (x, y) = (p.a.input(i, slot), p.b.input(j, slot));
                match p.source(x, y, &mut regions, env_x, env_y) {
                    Wiring::Same => {}
                    Wiring::Tensors => tensors.push((x, y, slot)),
                    Wiring::Other => {
                        p.involve(&mut regions, (x, y), (i, j));
                        changes.push(p.wiring(i, j, slot));
                    }
                }
            }
            p.captures(i, j, &mut regions);
            let outputs = |op: &Op| op.outputs().iter().filter(|v| v.is_some()).count();
            let (n, m) = (outputs(p.a.op(i)), outputs(p.b.op(j)));
            if n != m {
                changes.push(Difference {
                    what: "outputs".to_owned(),
                    before: Some(n.to_string()),
                    after: Some(m.to_string()),
                });
            }
            let place = Place {
                graph: part,
                before: Some(i),
                after: Some(j),
            };
            let role = |slot| role(p.b.op(j), slot);
            let tensors: Vec<_> = tensors
                .into_iter()
                .map(|(x, y, slot)| (x, y, slot, role(slot)))
                .collect();
            if !changes.is_empty() {
                self.parts[part].changes.insert(i, changes);
            }
            for (x, y, slot, role) in tensors {
                let factors = self.parts[part].split(x, y, j, slot);
                let before = self.tensors.len();
                self.tensor(part, x, y, role, place);
                let codes = weights::codes(&self.parts[part].b, j, slot);
                if let Some(t) = self.tensors.get_mut(before) {
                    t.set_factors(factors);
                    t.set_codes(codes, self.constants);
                }
            }
        }
        self.outputs(part, &mut regions, env_x, env_y);
        let mut altered: Vec<Altered> = vec![Altered::default(); self.parts[part].a.ops.len()];
        for &i in self.parts[part].changes.keys() {
            altered[i].itself = true;
        }
        for t in &self.tensors {
            let differs = self.digests(t).is_none_or(|(x, y)| x != y);
            for place in t.places.iter().filter(|p| p.graph == part && differs) {
                if let Some(i) = place.before {
                    altered[i].constants = true;
                }
            }
        }
        let p = &mut self.parts[part];
        p.groups = regions.groups(&p.a, &p.b, &p.al, &|i| altered[i]);
        for g in 0..self.parts[part].groups.len() {
            self.replaced_tensors(part, g);
        }
    }

    fn outputs(&mut self, part: usize, regions: &mut Regions, env_x: &Env, env_y: &Env) {
        for (o, q) in pairs(&self.parts[part].al.outputs_to_b.clone()) {
            let p = &self.parts[part];
            let (x, y) = (p.a.outputs[o], p.b.outputs[q]);
            match p.source(x, y, regions, env_x, env_y) {
                Wiring::Same => {}
                Wiring::Tensors => {
                    let place = Place {
                        graph: part,
                        ..Place::default()
                    };
                    self.tensor(part, x, y, "output", place);
                }
                Wiring::Other => {
                    let what = match p.b.graph.outputs().get(q) {
                        Some(&v) => format!("source of output {}", p.b.graph.value(v).name()),
                        None => "source of an output".to_owned(),
                    };
                    let difference = Difference {
                        what,
                        before: Some(source_text(&p.a, x)),
                        after: Some(source_text(&p.b, y)),
                    };
                    self.parts[part].outputs.push(difference);
                }
            }
        }
    }

    /// Notes that two sources stand for one tensor.
    fn tensor(&mut self, part: usize, x: From, y: From, role: &'static str, place: Place) {
        let p = &self.parts[part];
        let (Some(a), Some(b)) = (carrier(&p.a, x), carrier(&p.b, y)) else {
            return;
        };
        let key = (a.main, b.main);
        if let Some(&at) = self.index.get(&key) {
            let known = &mut self.tensors[at].places;
            if !known.contains(&place) {
                known.push(place);
            }
            return;
        }
        self.index.insert(key, self.tensors.len());
        self.paired.extend(a.main);
        self.tensors.push(TensorPair {
            part,
            from_a: x,
            from_b: y,
            a,
            b,
            role,
            places: vec![place],
            factors: None,
            codes: None,
        });
    }

    /// Hashes of both tensors of a pair, when both are plain constants.
    pub(super) fn digests(&self, t: &TensorPair) -> Option<(u128, u128)> {
        if !t.a.through.is_empty() || !t.b.through.is_empty() || t.factors.is_some() {
            return None;
        }
        Some((
            self.constants.0.digest(t.a.main?)?,
            self.constants.1.digest(t.b.main?)?,
        ))
    }

    /// Pairs the weights of operators that were replaced with those of what replaced them: of the
    /// same elements, of the same shape, the other way round, or as the product of two.
    fn replaced_tensors(&mut self, part: usize, group: usize) {
        let p = &self.parts[part];
        let g = &p.groups[group];
        if g.before.is_empty() || g.after.is_empty() {
            return;
        }
        let first = large(&p.a, g.before.iter().copied());
        let second = large(&p.b, g.after.iter().copied());
        // Beyond that it is another model, and there is no telling what became of each weight.
        const MOST: usize = 256;
        if first.len().max(second.len()) > MOST {
            return;
        }
        let mut open: Vec<(usize, usize, From)> = second;
        let mut found = Vec::new();
        for (i, slot, x) in first {
            let (Some(a), From::Constant(root)) = (carrier(&p.a, x), x) else {
                continue;
            };
            if a.main.is_some_and(|v| self.paired.contains(&v)) {
                continue;
            }
            let dims = |n: &Net<'_>, from: From| match from {
                From::Constant(v) => n.constant(v).map(|c| c.dims().to_vec()),
                _ => None,
            };
            let Some(shape) = dims(&p.a, x) else { continue };
            let turned: Vec<usize> = shape.iter().rev().copied().collect();
            let digest = p.a.constants.digest(root);
            let same = |from: &From| match from {
                From::Constant(v) => p.b.constants.digest(*v) == digest,
                _ => false,
            };
            let kind = role(p.a.op(i), slot);
            let alike = |o: &(usize, usize, From)| {
                // Codes are data for integer operators.
                let other = role(p.b.op(o.0), o.1);
                kind == other || (shape.len() > 1 && other != "scale" && other != "zero point")
            };
            let name = p.a.constant_name(root);
            let named = |o: &(usize, usize, From)| match o.2 {
                From::Constant(v) => p.b.constant_name(v).starts_with(&name),
                _ => false,
            };
            let of_shape = |o: &(usize, usize, From)| dims(&p.b, o.2).as_ref() == Some(&shape);
            let at = open
                .iter()
                .position(|o| same(&o.2))
                .or_else(|| open.iter().position(|o| of_shape(o) && named(o)))
                .or_else(|| open.iter().position(|o| of_shape(o) && alike(o)))
                .or_else(|| {
                    open.iter()
                        .position(|o| dims(&p.b, o.2).as_ref() == Some(&turned) && alike(o))
                });
            let role = kind;
            if let Some(at) = at {
                let (j, slot, y) = open.remove(at);
                let codes = weights::codes(&p.b, j, slot);
                found.push((x, y, None, codes, role, (i, j)));
            } else if let Some((k, l)) = factors(&p.b, &shape, &open) {
                let (j, _, u) = open[k];
                let v = open[l].2;
                found.push((x, u, Some((u, v)), None, role, (i, j)));
                let (low, high) = (k.min(l), k.max(l));
                open.remove(high);
                open.remove(low);
            }
        }
        for (x, y, factors, codes, role, (i, j)) in found {
            let place = Place {
                graph: part,
                before: Some(i),
                after: Some(j),
            };
            let before = self.tensors.len();
            self.tensor(part, x, y, role, place);
            let Some(t) = self.tensors.get_mut(before) else {
                continue;
            };
            t.set_factors(factors);
            t.set_codes(codes, self.constants);
        }
    }

    /// Compares the graphs inside aligned operators.
    fn inside(&mut self, part: usize, env_x: &Env, env_y: &Env) -> Result<(), GraphError> {
        let aligned: Vec<(usize, usize)> = pairs(&self.parts[part].al.to_b).collect();
        for (i, j) in aligned {
            let p = &self.parts[part];
            let (x, y) = (p.a.op(i), p.b.op(j));
            if !x.has_subgraphs() && !y.has_subgraphs() {
                continue;
            }
            let (inner_x, inner_y) = p.environments(i, j, env_x, env_y);
            let opsets = (p.a.opsets, p.b.opsets);
            let path = match p.path.as_str() {
                "" => String::new(),
                path => format!("{path} / "),
            };
            let label = p.b.label(j);
            for a in x.attrs() {
                let graphs = a.value.graphs();
                let others = y.attr(&a.name).map_or(&[][..], AttrValue::graphs);
                for (k, (g, h)) in graphs.iter().zip(others).enumerate() {
                    let nth = if graphs.len() > 1 {
                        format!(" {k}")
                    } else {
                        String::new()
                    };
                    let name = &a.name;
                    let path = format!("{path}{} \"{label}\" / {name}{nth}", type_name(y));
                    self.graphs(path, (g, h), opsets, (&inner_x, &inner_y))?;
                }
            }
        }
        Ok(())
    }
}

/// How two sources relate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wiring {
    Same,
    /// Both are tensors made of constants.
    Tensors,
    Other,
}

impl Part<'_> {
    /// Whether what one operator takes is what the other takes, but for what was removed and
    /// added in between, which is noted in the regions.
    fn source(&self, x: From, y: From, regions: &mut Regions, env_x: &Env, env_y: &Env) -> Wiring {
        let (a, b) = (&self.a, &self.b);
        let lost = |from: From| match from {
            From::Op(p, _) => self.al.to_b[p].is_none().then_some(p),
            _ => None,
        };
        let new = |from: From| match from {
            From::Op(q, _) => self.al.to_a[q].is_none().then_some(q),
            _ => None,
        };
        match (x, y) {
            (From::Absent, From::Absent) => Wiring::Same,
            (From::Constant(_), From::Constant(_)) => Wiring::Tensors,
            (From::Input(p), From::Input(q)) if self.al.inputs_to_b[p] == Some(q) => Wiring::Same,
            (From::Outer(v), From::Outer(w)) => outer(a, b, (v, w), env_x, env_y),
            _ => match (lost(x), new(y)) {
                (Some(p), Some(q)) => {
                    regions.meet(p, q);
                    if carrier(a, x).is_some() && carrier(b, y).is_some() {
                        Wiring::Tensors
                    } else {
                        Wiring::Same
                    }
                }
                (Some(p), None) => self.removed(p, x, y, regions),
                (None, Some(q)) => self.added(q, x, y, regions),
                (None, None) => self.both_there(x, y),
            },
        }
    }

    /// What made the value is gone.
    fn removed(&self, p: usize, x: From, y: From, regions: &mut Regions) -> Wiring {
        if let From::Constant(constant) = y {
            regions.fold(p, constant);
            return match carrier(&self.a, x) {
                Some(_) => Wiring::Tensors,
                None => Wiring::Same,
            };
        }
        let twin = match (x, self.counterpart_of_after(y)) {
            (From::Op(p, s), Some(From::Op(i, t))) => {
                s == t && self.al.up_a.get(p) == self.al.up_a.get(i)
            }
            _ => false,
        };
        if twin || self.same_up(x, y) {
            regions.note_before(p, Fate::Merged);
            return Wiring::Same;
        }
        if let Some(from) = self.counterpart_of_after(y)
            && (regions.reaches_before(p, from) || leads_to(&self.a, x, from))
        {
            regions.note_before(p, Fate::Bypassed);
            return Wiring::Same;
        }
        Wiring::Other
    }

    /// What makes the value is new.
    fn added(&self, q: usize, x: From, y: From, regions: &mut Regions) -> Wiring {
        if let From::Constant(_) = x {
            return match carrier(&self.b, y) {
                Some(_) => {
                    regions.note_after(q, Fate::Inserted);
                    Wiring::Tensors
                }
                None if regions.is_constant_after(q) => {
                    regions.note_after(q, Fate::Inserted);
                    Wiring::Same
                }
                None => Wiring::Other,
            };
        }
        if self.same_up(x, y) {
            regions.note_after(q, Fate::Inserted);
            return Wiring::Same;
        }
        if let Some(from) = self.counterpart_of_before(x)
            && regions.reaches_after(q, from)
        {
            regions.note_after(q, Fate::Inserted);
            return Wiring::Same;
        }
        Wiring::Other
    }

    /// Puts an operator that takes something else to what is gone or new because of that.
    fn involve(&self, regions: &mut Regions, (x, y): (From, From), pair: (usize, usize)) {
        match (x, y) {
            (From::Op(p, _), _) if self.al.to_b[p].is_none() => regions.involve_before(p, pair),
            (_, From::Op(q, _)) if self.al.to_a[q].is_none() => regions.involve_after(q, pair),
            _ => {}
        }
    }

    fn both_there(&self, x: From, y: From) -> Wiring {
        let same = match (x, y) {
            (From::Op(p, s), From::Op(q, t)) => self.al.to_b[p] == Some(q) && s == t,
            _ => false,
        };
        if same || self.same_up(x, y) {
            return Wiring::Same;
        }
        let constant = |n: &Net<'_>, from: From| match from {
            From::Constant(_) => true,
            From::Op(..) => carrier(n, from).is_some(),
            _ => false,
        };
        // A constant that is dequantized in place, say, in the one and not in the other model.
        if constant(&self.a, x) && constant(&self.b, y) {
            return Wiring::Tensors;
        }
        Wiring::Other
    }

    /// Whether both values are computed in the same way from the same things.
    fn same_up(&self, x: From, y: From) -> bool {
        match (x, y) {
            (From::Op(p, s), From::Op(q, t)) => {
                s == t && self.al.up_a.get(p) == self.al.up_b.get(q)
            }
            _ => false,
        }
    }

    fn counterpart_of_after(&self, y: From) -> Option<From> {
        match y {
            From::Op(q, t) => Some(From::Op(self.al.to_a[q]?, t)),
            From::Input(q) => Some(From::Input(self.al.inputs_to_a[q]?)),
            From::Outer(w) => {
                let name = self.b.graph.value(w).name();
                Some(From::Outer(self.a.graph.find_value(name)?))
            }
            _ => None,
        }
    }

    fn counterpart_of_before(&self, x: From) -> Option<From> {
        match x {
            From::Op(p, s) => Some(From::Op(self.al.to_b[p]?, s)),
            From::Input(p) => Some(From::Input(self.al.inputs_to_b[p]?)),
            From::Outer(v) => {
                let name = self.a.graph.value(v).name();
                Some(From::Outer(self.b.graph.find_value(name)?))
            }
            _ => None,
        }
    }

    /// The two constants whose product takes the place of a weight: that of the operator, and
    /// that of an operator which is new beside it.
    fn split(&self, x: From, y: From, j: usize, slot: usize) -> Option<(From, From)> {
        let (From::Constant(v), From::Constant(w)) = (x, y) else {
            return None;
        };
        let (a, b) = (self.a.constant(v)?, self.b.constant(w)?);
        if a.dims() == b.dims() || a.dims().len() < 2 {
            return None;
        }
        let makers = self.b.inputs[j].iter().filter_map(|from| match from {
            From::Op(q, _) => Some(*q),
            _ => None,
        });
        let users = self.b.users[j].iter().map(|u| u.user);
        let new = makers.chain(users).filter(|&q| self.al.to_a[q].is_none());
        let mut open = vec![(j, slot, y)];
        open.extend(large(&self.b, new));
        let (k, l) = factors(&self.b, a.dims(), &open)?;
        (k == 0 || l == 0).then(|| (open[k].2, open[l].2))
    }

    /// Notes what became of operators whose results only graphs inside operators take.
    fn captures(&self, i: usize, j: usize, regions: &mut Regions) {
        let open = |list: &[From], taken: &[Option<usize>]| -> Vec<usize> {
            let open = list.iter().filter_map(|from| match from {
                From::Op(p, _) => taken[*p].is_none().then_some(*p),
                _ => None,
            });
            open.collect()
        };
        let lost = open(&self.a.captures[i], &self.al.to_b);
        let new = open(&self.b.captures[j], &self.al.to_a);
        match (lost.as_slice(), new.as_slice()) {
            (&[p], &[q]) => regions.meet(p, q),
            _ => {
                lost.iter()
                    .for_each(|&p| regions.note_before(p, Fate::Bypassed));
                new.iter()
                    .for_each(|&q| regions.note_after(q, Fate::Inserted));
            }
        }
    }

    fn wiring(&self, i: usize, j: usize, slot: usize) -> Difference {
        let (mut before, mut after) =
            (self.a.name_of_input(i, slot), self.b.name_of_input(j, slot));
        let (x, y) = (self.a.input(i, slot), self.b.input(j, slot));
        let plain = |from: From| matches!(from, From::Absent | From::Constant(_));
        if before == after || !(plain(x) || plain(y)) {
            before = Some(source_text(&self.a, x));
            after = Some(source_text(&self.b, y));
        }
        Difference {
            what: format!("input {slot}"),
            before,
            after,
        }
    }

    /// Numbers for the values that the graphs inside two operators take.
    fn environments(&self, i: usize, j: usize, env_x: &Env, env_y: &Env) -> (Env, Env) {
        let number = |kind: u64, place: usize, slot: usize| {
            let n = (place as u64).rotate_left(24) ^ (slot as u64) ^ (kind << 62);
            n.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1
        };
        let side = |n: &Net<'_>, place: usize, env: &Env, first: &dyn Fn(From) -> Option<From>| {
            let captured = n.op(place).captures();
            let numbered = captured.filter_map(|v| {
                let from = n.source(v);
                let n = match first(from)? {
                    From::Op(p, s) => number(1, p, s),
                    From::Input(p) => number(2, p, 0),
                    From::Outer(w) => *env.get(&n.graph.value(w).captured_from()?)?,
                    _ => return None,
                };
                Some((v, n))
            });
            numbered.collect::<Env>()
        };
        let of_before = |from: From| match from {
            From::Op(p, _) if self.al.to_b[p].is_none() => None,
            From::Input(p) if self.al.inputs_to_b[p].is_none() => None,
            other => Some(other),
        };
        let of_after = |from: From| match from {
            From::Op(q, s) => Some(From::Op(self.al.to_a[q]?, s)),
            From::Input(q) => Some(From::Input(self.al.inputs_to_a[q]?)),
            other => Some(other),
        };
        (
            side(&self.a, i, env_x, &of_before),
            side(&self.b, j, env_y, &of_after),
        )
    }
}

/// Whether a value is another one, moved about: what cancelled with an operator that is still there
/// for others.
fn leads_to(net: &Net<'_>, mut from: From, to: From) -> bool {
    const STEPS: usize = 16;
    for _ in 0..STEPS {
        let From::Op(place, 0) = from else {
            return false;
        };
        let class = schema::of(net.op(place)).map(|k| k.class);
        if class != Some(Class::Layout) && !is_transparent(net.op(place)) {
            return false;
        }
        from = net.input(place, 0);
        if from == to {
            return true;
        }
    }
    false
}

/// Whether two values of the enclosing graphs are one. What made them there may be gone or new,
/// which is told where it was; then they are taken as one.
fn outer(a: &Net<'_>, b: &Net<'_>, (v, w): (ValueId, ValueId), env_x: &Env, env_y: &Env) -> Wiring {
    let number = |n: &Net<'_>, v: ValueId, env: &Env| {
        n.graph
            .value(v)
            .captured_from()
            .and_then(|o| env.get(&o).copied())
    };
    match (number(a, v, env_x), number(b, w, env_y)) {
        (Some(x), Some(y)) if x != y => Wiring::Other,
        _ => Wiring::Same,
    }
}

/// The constants of operators that have a good number of elements, each once: the operator, the
/// slot, and where it comes from.
fn large(net: &Net<'_>, places: impl Iterator<Item = usize>) -> Vec<(usize, usize, From)> {
    const FEWEST: usize = 2;
    let mut out: Vec<(usize, usize, From)> = Vec::new();
    let mut seen: HashSet<ValueId> = HashSet::new();
    for place in places {
        for (slot, &from) in net.inputs[place].iter().enumerate() {
            let From::Constant(root) = from else { continue };
            let count = net
                .constant(root)
                .map_or(0, |c| c.dims().iter().product::<usize>());
            if count >= FEWEST && seen.insert(root) {
                out.push((place, slot, from));
            }
        }
    }
    out
}

/// Two of the constants whose product, as matrices of rows by everything else, has the shape.
fn factors(
    net: &Net<'_>,
    shape: &[usize],
    open: &[(usize, usize, From)],
) -> Option<(usize, usize)> {
    let matrix = |dims: &[usize]| match dims {
        [rows, rest @ ..] if !rest.is_empty() => Some((*rows, rest.iter().product::<usize>())),
        _ => None,
    };
    let (m, n) = matrix(shape)?;
    let of = |at: usize| match open[at].2 {
        From::Constant(v) => net.constant(v).and_then(|c| matrix(c.dims())),
        _ => None,
    };
    for k in 0..open.len() {
        for l in 0..open.len() {
            if let (true, Some((p, r)), Some((s, q))) = (k != l, of(k), of(l))
                && (p, q) == (m, n)
                && r == s
                && r > 1
            {
                return Some((k, l));
            }
        }
    }
    None
}

/// A source for people.
fn source_text(n: &Net<'_>, from: From) -> String {
    match from {
        From::Absent => "nothing".to_owned(),
        From::Op(p, slot) => {
            let v = n.op(p).output(slot);
            let name = v.map_or_else(String::new, |v| n.graph.value(v).name().to_string());
            format!("{name} (output {slot} of {})", n.label(p))
        }
        From::Input(i) => {
            let v = n.graph.inputs().get(i);
            let name = v.map_or_else(String::new, |&v| n.graph.value(v).name().to_string());
            format!("{name} (an input)")
        }
        From::Constant(root) => match short_text(n.constants, root) {
            Some(text) => text,
            None => "a constant".to_owned(),
        },
        From::Outer(v) => format!("{} (of the enclosing graph)", n.graph.value(v).name()),
    }
}

/// What an input is for, in a word.
pub(super) fn role(op: &Op, slot: usize) -> &'static str {
    match schema::role(op, slot) {
        Role::Data | Role::State => "data",
        Role::Weight | Role::RecurrentWeight => "weight",
        Role::Bias => "bias",
        Role::Shape => "shape",
        Role::Index => "index",
        Role::Scale => "scale",
        Role::ZeroPoint => "zero point",
        Role::Mask => "mask",
        Role::Parameter => "parameter",
    }
}

/// What differs between the attributes of two operators. An attribute that says what holds
/// anyway is as if absent.
fn attributes(p: &Part<'_>, i: usize, j: usize) -> Vec<Difference> {
    let (x, y) = (p.a.op(i), p.b.op(j));
    let list = |op: &Op, opsets: &[OpsetImport]| -> BTreeMap<String, String> {
        let version = opsets.iter().find(|o| o.domain == *op.domain());
        let known = version.and_then(|o| schema::lookup(op.domain(), op.op_type(), o.version));
        let default = |a: &paring_ir::Attribute| {
            known.is_some_and(|k| {
                let default = k.attr(&a.name).and_then(|a| a.default.as_ref());
                default.is_some_and(|d| d.is(&a.value))
            })
        };
        op.attrs()
            .iter()
            .filter(|a| !default(a))
            .map(|a| (a.name.to_string(), attr_text(&a.value)))
            .collect()
    };
    let (before, after) = (list(x, p.a.opsets), list(y, p.b.opsets));
    let mut out = Vec::new();
    let names = before
        .keys()
        .chain(after.keys().filter(|n| !before.contains_key(*n)));
    for name in names {
        let (u, v) = (before.get(name), after.get(name));
        let graphs = |op: &Op| op.attr(name).map_or(0, |v| v.graphs().len());
        // Graphs are compared operator by operator.
        if graphs(x) > 0 && graphs(x) == graphs(y) {
            continue;
        }
        if u != v {
            out.push(Difference {
                what: format!("attribute {name}"),
                before: u.cloned(),
                after: v.cloned(),
            });
        }
    }
    out.sort();
    if x.overload() != y.overload() {
        out.push(Difference {
            what: "overload".to_owned(),
            before: Some(x.overload().to_owned()),
            after: Some(y.overload().to_owned()),
        });
    }
    out
}

/// An attribute's value as text.
fn attr_text(value: &AttrValue) -> String {
    match value {
        AttrValue::Float(v) => format!("{v:?}"),
        AttrValue::Int(v) => v.to_string(),
        AttrValue::String(s) => format!("{:?}", String::from_utf8_lossy(s)),
        AttrValue::Floats(v) => format!("{v:?}"),
        AttrValue::Ints(v) => format!("{v:?}"),
        AttrValue::Graph(g) => format!("graph of {} operators", g.op_count()),
        AttrValue::Graphs(g) => format!("{} graphs", g.len()),
        other => format!("{other:?}"),
    }
}
