//! Operators that are only in one of the models, put together: what was replaced by what.

use std::collections::{BTreeMap, HashMap, HashSet};

use paring_ir::schema::{self, Class};
use paring_ir::{Name, ValueId};

use super::PatternKind;
use super::align::Alignment;
use super::net::{From, Net, type_name};

/// What became of a run of operators, as its neighbours tell. Later ones outweigh earlier ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Fate {
    Merged,
    Bypassed,
    Folded,
    Inserted,
}

/// One replacement: operators by their places.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    pub(super) before: Vec<usize>,
    pub(super) after: Vec<usize>,
    /// Aligned operators that took up what was removed: both places.
    pub(super) context: Vec<(usize, usize)>,
    pub(super) kind: PatternKind,
    pub(super) types_before: Vec<String>,
    pub(super) types_after: Vec<String>,
    pub(super) by: Vec<String>,
}

/// The operators of both graphs that are not aligned. Those of the second graph have the numbers
/// after those of the first.
pub(super) struct Regions {
    first: usize,
    /// Runs of such operators, whatever provenance says: for each the number of its run.
    runs: Vec<Option<usize>>,
    /// What goes into each run.
    frontier: Vec<HashSet<From>>,
    joined: UnionFind,
    fates: Vec<Option<Fate>>,
    /// Provenance says what the operator became or was made from.
    known: Vec<bool>,
    /// An operator of a run, and an aligned one that took it up: both places.
    context: Vec<(usize, usize, usize)>,
    /// An operator of a run, and the constant of the second graph that its result is now.
    constants: Vec<(usize, ValueId)>,
}

impl Regions {
    pub(super) fn new(a: &Net<'_>, b: &Net<'_>, al: &Alignment) -> Regions {
        let (first, all) = (a.ops.len(), a.ops.len() + b.ops.len());
        let mut out = Regions {
            first,
            runs: vec![None; all],
            frontier: Vec::new(),
            joined: UnionFind::new(all),
            fates: vec![None; all],
            known: vec![false; all],
            context: Vec::new(),
            constants: Vec::new(),
        };
        out.find_runs(a, &al.to_b, 0);
        out.find_runs(b, &al.to_a, first);
        out.join_by_provenance(a, b, al);
        out.join_neighbours(a, &al.to_b, 0);
        out.join_neighbours(b, &al.to_a, first);
        out
    }

    fn find_runs(&mut self, net: &Net<'_>, taken: &[Option<usize>], offset: usize) {
        let open = |from: &From| match from {
            From::Op(p, _) => taken[*p].is_none().then_some(*p),
            _ => None,
        };
        let mut runs = UnionFind::new(net.ops.len());
        for place in (0..net.ops.len()).filter(|&i| taken[i].is_none()) {
            for maker in sources(net, place).filter_map(open) {
                runs.join(maker, place);
            }
        }
        let mut numbers: HashMap<usize, usize> = HashMap::new();
        for place in (0..net.ops.len()).filter(|&i| taken[i].is_none()) {
            let number = *numbers.entry(runs.root(place)).or_insert_with(|| {
                self.frontier.push(HashSet::new());
                self.frontier.len() - 1
            });
            self.runs[offset + place] = Some(number);
            let outside = sources(net, place).filter(|f| open(f).is_none()).copied();
            self.frontier[number].extend(outside);
        }
    }

    fn join_by_provenance(&mut self, a: &Net<'_>, b: &Net<'_>, al: &Alignment) {
        let mut named: HashMap<Name, usize> = HashMap::new();
        for i in (0..a.ops.len()).rev().filter(|&i| al.to_b[i].is_none()) {
            named.insert(a.label(i), i);
        }
        for j in 0..b.ops.len() {
            let Some(origin) = b.op(j).provenance() else {
                continue;
            };
            for &i in origin.from.iter().filter_map(|n| named.get(n)) {
                self.known[i] = true;
                match al.to_a[j] {
                    None => {
                        self.known[self.first + j] = true;
                        self.join(i, self.first + j);
                    }
                    Some(partner) => self.context.push((i, partner, j)),
                }
            }
        }
        // What one aligned operator took up is one group.
        let mut taken: HashMap<usize, usize> = HashMap::new();
        for at in 0..self.context.len() {
            let (i, partner, _) = self.context[at];
            let other = *taken.entry(partner).or_insert(i);
            self.join(other, i);
        }
    }

    /// Notes that an aligned operator, given by both places, takes something else because of an
    /// operator of the first graph that is gone.
    pub(super) fn involve_before(&mut self, lost: usize, pair: (usize, usize)) {
        self.context.push((lost, pair.0, pair.1));
    }

    /// The same for an operator of the second graph that is new.
    pub(super) fn involve_after(&mut self, new: usize, pair: (usize, usize)) {
        self.context.push((self.first + new, pair.0, pair.1));
    }

    fn join_neighbours(&mut self, net: &Net<'_>, taken: &[Option<usize>], offset: usize) {
        for place in (0..net.ops.len()).filter(|&i| taken[i].is_none()) {
            for from in sources(net, place) {
                if let From::Op(maker, _) = *from
                    && taken[maker].is_none()
                    && !self.known[offset + maker]
                    && !self.known[offset + place]
                {
                    self.join(offset + maker, offset + place);
                }
            }
        }
    }

    fn root(&mut self, x: usize) -> usize {
        self.joined.root(x)
    }

    fn join(&mut self, x: usize, y: usize) {
        let (x, y) = (self.root(x), self.root(y));
        self.joined.join(x, y);
        let (low, high) = (x.min(y), x.max(y));
        self.fates[low] = self.fates[low].max(self.fates[high]);
    }

    /// Notes what the place where a run was, or is, tells of it.
    fn note(&mut self, x: usize, fate: Fate) {
        let x = self.root(x);
        self.fates[x] = self.fates[x].max(Some(fate));
    }

    pub(super) fn note_before(&mut self, i: usize, fate: Fate) {
        self.note(i, fate);
    }

    /// Notes that the result of an operator of the first graph is a constant in the second.
    pub(super) fn fold(&mut self, i: usize, constant: ValueId) {
        self.note(i, Fate::Folded);
        self.constants.push((i, constant));
    }

    pub(super) fn note_after(&mut self, j: usize, fate: Fate) {
        self.note(self.first + j, fate);
    }

    /// One operator of each graph that make the same value for what takes it.
    pub(super) fn meet(&mut self, i: usize, j: usize) {
        let j = self.first + j;
        match (self.known[i], self.known[j]) {
            (false, false) => self.join(i, j),
            (false, true) => self.note(i, Fate::Bypassed),
            (true, false) => self.note(j, Fate::Inserted),
            (true, true) => {}
        }
    }

    /// Whether a value goes into the run that an operator of the first graph is in.
    pub(super) fn reaches_before(&self, i: usize, from: From) -> bool {
        self.reaches(i, from)
    }

    /// Whether a value goes into the run that an operator of the second graph is in.
    pub(super) fn reaches_after(&self, j: usize, from: From) -> bool {
        self.reaches(self.first + j, from)
    }

    /// Whether nothing but constants goes into the run that an operator of the second graph is in.
    pub(super) fn is_constant_after(&self, j: usize) -> bool {
        let run = self.runs[self.first + j];
        let constant = |from: &From| matches!(from, From::Constant(_) | From::Absent);
        run.is_some_and(|r| self.frontier[r].iter().all(constant))
    }

    fn reaches(&self, x: usize, from: From) -> bool {
        self.runs[x].is_some_and(|r| self.frontier[r].contains(&from))
    }

    /// The groups, in the order of their first operators.
    pub(super) fn groups(
        mut self,
        a: &Net<'_>,
        b: &Net<'_>,
        al: &Alignment,
        altered: &dyn Fn(usize) -> Altered,
    ) -> Vec<Group> {
        let mut groups: BTreeMap<usize, Group> = BTreeMap::new();
        for x in 0..self.runs.len() {
            if self.runs[x].is_none() {
                continue;
            }
            let group = groups.entry(self.root(x)).or_default();
            match x.checked_sub(self.first) {
                None => group.before.push(x),
                Some(j) => group.after.push(j),
            }
        }
        for (i, partner, j) in std::mem::take(&mut self.context) {
            let root = self.root(i);
            let group = groups.get_mut(&root);
            if let Some(group) = group
                && !group.context.contains(&(partner, j))
            {
                group.context.push((partner, j));
            }
        }
        // Where the file records what was changed, what it says nothing of took nothing up.
        let recorded = b
            .graph
            .ops()
            .any(|op| b.graph.op(op).provenance().is_some())
            || b.graph
                .initializers()
                .any(|v| b.graph.value(v).provenance().is_some());
        let mut made = self.makers(b);
        let mut out = Vec::new();
        for (root, mut group) in groups {
            if group.after.is_empty() && group.context.is_empty() {
                group.context = absorbers(a, al, &group.before, altered);
                let told = |j: usize| !recorded || !passes(b, j).is_empty();
                group.context.retain(|&(_, j)| told(j));
            }
            self.describe(a, b, root, &mut group);
            if group.kind == PatternKind::Folded {
                group.by = made.remove(&root).unwrap_or_default();
            }
            out.push(group);
        }
        out
    }

    /// The passes that made the constants which results of removed operators became, by group.
    fn makers(&mut self, b: &Net<'_>) -> HashMap<usize, Vec<String>> {
        let mut out: HashMap<usize, Vec<String>> = HashMap::new();
        for (i, constant) in std::mem::take(&mut self.constants) {
            let by = out.entry(self.root(i)).or_default();
            let origin = b.graph.get_value(constant).and_then(|v| v.provenance());
            for pass in origin.into_iter().flat_map(|o| &o.passes) {
                if by.iter().all(|p| **p != **pass) {
                    by.push(pass.to_string());
                }
            }
        }
        out
    }

    fn describe(&self, a: &Net<'_>, b: &Net<'_>, root: usize, group: &mut Group) {
        let fate = self.fates[root];
        let leads_on = |i: &usize| !a.users[*i].is_empty() || a.leaves.contains_key(i);
        group.kind = match (group.before.is_empty(), group.after.is_empty(), fate) {
            (false, false, _) => PatternKind::Replaced,
            (false, true, _) if !group.context.is_empty() => PatternKind::Replaced,
            (false, true, Some(Fate::Folded)) => PatternKind::Folded,
            (false, true, Some(Fate::Merged)) => PatternKind::Merged,
            (false, true, Some(_)) => PatternKind::Bypassed,
            (false, true, None) if group.before.iter().any(leads_on) => PatternKind::Bypassed,
            (false, true, None) => PatternKind::Dropped,
            (true, _, Some(_)) => PatternKind::Inserted,
            (true, _, None) => PatternKind::Appended,
        };
        let context = &group.context;
        let before = group
            .before
            .iter()
            .copied()
            .chain(context.iter().map(|c| c.0));
        group.types_before = types(a, before);
        let after = group
            .after
            .iter()
            .copied()
            .chain(context.iter().map(|c| c.1));
        let after: Vec<usize> = after.collect();
        for &j in &after {
            for pass in passes(b, j) {
                if !group.by.contains(&pass) {
                    group.by.push(pass);
                }
            }
        }
        group.types_after = types(b, after.into_iter());
    }
}

/// The passes that made an operator, or else those that made its constants.
fn passes(net: &Net<'_>, place: usize) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut add = |origin: Option<&std::sync::Arc<paring_ir::Provenance>>| {
        for pass in origin.into_iter().flat_map(|o| &o.passes) {
            if out.iter().all(|p| **p != **pass) {
                out.push(pass.to_string());
            }
        }
    };
    let op = net.op(place);
    if op.provenance().is_some() {
        add(op.provenance());
        return out;
    }
    for from in &net.inputs[place] {
        if let From::Constant(root) = from {
            add(net.graph.get_value(*root).and_then(|v| v.provenance()));
        }
    }
    out
}

/// How an aligned operator differs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Altered {
    /// Its constants do.
    pub(super) constants: bool,
    /// Its attributes or inputs do.
    pub(super) itself: bool,
}

/// Where no provenance says it: the neighbours of what was removed that took it up, going by what
/// of them changed.
fn absorbers(
    a: &Net<'_>,
    al: &Alignment,
    removed: &[usize],
    altered: &dyn Fn(usize) -> Altered,
) -> Vec<(usize, usize)> {
    let class = |i: usize| schema::of(a.op(i)).map(|k| k.class);
    let scales = |i: &usize| matches!(class(*i), Some(Class::Norm | Class::Binary | Class::Linear));
    let moves = |i: &usize| matches!(class(*i), Some(Class::Layout));
    let (scaling, moving) = (removed.iter().any(scales), removed.iter().any(moves));
    let mut out = Vec::new();
    let mut consider = |i: usize| {
        let Some(j) = al.to_b[i] else { return };
        let how = altered(i);
        let linear = matches!(class(i), Some(Class::Linear | Class::Norm));
        let took = linear && ((scaling && how.constants) || (moving && how.itself));
        if took && !out.contains(&(i, j)) {
            out.push((i, j));
        }
    };
    for &i in removed {
        for from in sources(a, i) {
            if let From::Op(maker, _) = from {
                consider(*maker);
            }
        }
        for u in &a.users[i] {
            consider(u.user);
        }
    }
    out
}

fn sources<'n>(net: &'n Net<'_>, place: usize) -> impl Iterator<Item = &'n From> {
    net.inputs[place].iter().chain(&net.captures[place])
}

/// Operator types in the order of the data flow.
fn types(net: &Net<'_>, places: impl Iterator<Item = usize>) -> Vec<String> {
    let mut list: Vec<(usize, String)> = places
        .map(|p| (net.levels[p], type_name(net.op(p))))
        .collect();
    list.sort();
    list.into_iter().map(|(_, t)| t).collect()
}

struct UnionFind(Vec<usize>);

impl UnionFind {
    fn new(n: usize) -> UnionFind {
        UnionFind((0..n).collect())
    }

    fn root(&mut self, mut x: usize) -> usize {
        while self.0[x] != x {
            self.0[x] = self.0[self.0[x]];
            x = self.0[x];
        }
        x
    }

    fn join(&mut self, x: usize, y: usize) {
        let (x, y) = (self.root(x), self.root(y));
        self.0[x.max(y)] = x.min(y);
    }
}
