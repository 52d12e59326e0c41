//! Which channels of a model can be removed, and what goes with each of them.
//!
//! Every index along every axis of known size is a *unit*. Each operator says which units of its
//! inputs and outputs are the same: a residual Add unifies the channels of both sides, a Concat
//! puts them side by side, a convolution ends its input's channels in one axis of the weight and
//! begins new ones in the other. Units that are the same form a *class*; removing a channel is
//! removing a class: its indices go from every tensor. Classes that touch the same axes of the
//! same constants form a *group*, within which channels can be chosen freely.
//!
//! ```text
//! y = Conv (x, w)      w[O, I]: the O indices are those of y's channels and of v's second axis
//! z = Conv (y, v)      v[P, O]: so w[i, :] and v[:, i] form a class, and all of them a group
//! ```
//!
//! A class that reaches something that can't shrink (the border of the model, an operator
//! without an index map, a recurrent state, a shape that can't be proved) is *refused*, with a
//! [`Reason`]. Where a Reshape splits an axis, one of the factors shrinks; see [`Heads`].
//!
//! Numbers that say how large such axes are (targets of Reshape, sizes of Split, bounds of
//! Slice, groups of Conv, ...) are listed as [`Rewrite`]s.
//!
//! Dependency groups: Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Analysis, AnalysisCache, Shapes};
use crate::graph::{Graph, GraphId, OpId, Port, ValueId};
use crate::model::Model;
use crate::schema::{self, Class};
use crate::value::Use;

mod products;
mod rules;
mod units;
mod walk;

#[cfg(test)]
mod tests;

pub use units::{Reason, Why};
pub use walk::Place;

use units::{Axis, Unit, Units};
use walk::{Number, Walk};

/// What shrinks where heads of attention are split off an axis of channels.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Heads {
    /// Whole heads go: query, key, value and output together.
    #[default]
    Whole,
    /// Each head keeps fewer channels: those of query and key together, those of value and
    /// output together, the same ones in every head.
    Within,
}

/// How to group.
#[derive(Clone, Debug, Default)]
pub struct ChannelOptions {
    /// What shrinks in attention.
    pub heads: Heads,
}

/// A channel: a class of indices that go together.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ChannelId(u32);

impl ChannelId {
    /// Stands for an index that stays.
    const STAYS: ChannelId = ChannelId(u32::MAX);

    /// A small number, for tables.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The channel of every index along an axis; `None` for those that stay.
#[derive(Clone, Debug)]
pub struct AxisChannels(Arc<[ChannelId]>);

impl AxisChannels {
    /// The number of indices.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no indices.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The channel of each index.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Option<ChannelId>> + '_ {
        let known = |&c: &ChannelId| Some(c).filter(|c| *c != ChannelId::STAYS);
        self.0.iter().map(known)
    }

    /// The indices that stay when these channels go.
    pub fn kept(&self, removed: &Removed) -> Vec<u32> {
        let stays = |(_, c): &(u32, &ChannelId)| !removed.contains(**c);
        let indices = (0u32..).zip(self.0.iter());
        indices.filter(stays).map(|(i, _)| i).collect()
    }

    /// How many indices stay when these channels go.
    pub fn count(&self, removed: &Removed) -> usize {
        self.0.iter().filter(|c| !removed.contains(**c)).count()
    }
}

/// Channels that go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    gone: Vec<bool>,
    count: usize,
}

impl Removed {
    /// None of the channels of an analysis.
    pub fn none(channels: &Channels) -> Removed {
        Removed {
            gone: vec![false; channels.count],
            count: 0,
        }
    }

    /// Whether a channel goes.
    pub fn contains(&self, channel: ChannelId) -> bool {
        self.gone.get(channel.index()).copied().unwrap_or(false)
    }

    /// Lets a channel go, or keeps it.
    pub fn set(&mut self, channel: ChannelId, goes: bool) {
        if let Some(gone) = self.gone.get_mut(channel.index())
            && std::mem::replace(gone, goes) != goes
        {
            if goes {
                self.count += 1;
            } else {
                self.count -= 1;
            }
        }
    }

    /// How many channels go.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether no channel goes.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// An axis of a constant that the channels of a group are indices of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Member {
    /// The constant.
    pub value: ValueId,
    /// The axis.
    pub axis: usize,
    /// How many indices each channel has there: more than one for heads, shuffled and grouped
    /// channels, and what a Flatten leaves.
    pub width: usize,
}

/// Channels that can be chosen freely among each other.
#[derive(Clone, Debug)]
pub struct Group {
    /// The first operator whose weight makes the channels.
    pub op: OpId,
    /// The channels, in the order of their first index.
    pub channels: Vec<ChannelId>,
    /// The axes of constants that shrink with them.
    pub members: Vec<Member>,
    /// A normalization over the channels or a sum of them takes them too, so that what stays is
    /// normalized otherwise.
    pub statistic: bool,
    /// Equal for groups of equal structure: the operators that take the members.
    pub structure: String,
}

/// Channels that can't be removed.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The operator whose weight makes the channels, or else the first that takes them.
    pub op: OpId,
    /// How many there are.
    pub channels: usize,
    /// Why they stay.
    pub why: Why,
}

/// One integer that changes with channels.
#[derive(Clone, Debug)]
pub enum Entry {
    /// It stays.
    Keep,
    /// It is this number, whatever computes it.
    Literal(i64),
    /// How many of these indices are kept.
    Count(AxisChannels),
    /// How many of these indices are kept; it goes with the channel.
    Position(AxisChannels, Option<ChannelId>),
}

/// The integers at one place of an operator that change with channels.
#[derive(Clone, Debug)]
pub struct Rewrite {
    /// The graph of the operator.
    pub graph: GraphId,
    /// The operator.
    pub op: OpId,
    /// Where the integers stand.
    pub place: Place,
    /// The integers.
    pub entries: Vec<Entry>,
    /// They are written anew when a channel of these goes, or when `computed`.
    pub watched: Vec<AxisChannels>,
    /// The place is computed from the size of an axis with channels.
    pub computed: bool,
}

/// The channels of a model. Functions are not looked into.
#[derive(Debug)]
pub struct Channels {
    count: usize,
    groups: Vec<Group>,
    refused: Vec<Refusal>,
    axes: HashMap<ValueId, Vec<Option<AxisChannels>>>,
    rewrites: Vec<Rewrite>,
}

impl Analysis for Channels {
    type Options = ChannelOptions;

    fn compute(model: &Model, options: &ChannelOptions, cache: &mut AnalysisCache) -> Channels {
        let shapes = cache.get::<Shapes>(model);
        let mut walk = Walk::new(model, shapes);
        walk.main(&model.graph);
        let products = std::mem::take(&mut walk.products);
        products::resolve(products, &mut walk.units, options.heads);
        Collector::new(model, walk).collect()
    }
}

impl Channels {
    /// The groups, in the order of the data flow.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// What can't be removed.
    pub fn refused(&self) -> &[Refusal] {
        &self.refused
    }

    /// The number of channels of all groups.
    pub fn channel_count(&self) -> usize {
        self.count
    }

    /// The channels along the axes of a value of any graph; `None` for an axis without channels,
    /// an empty slice for a value without. A captured value answers where it stands outermost.
    pub fn axes(&self, value: ValueId) -> &[Option<AxisChannels>] {
        self.axes.get(&value).map_or(&[], Vec::as_slice)
    }

    /// The channels along one axis of a value.
    pub fn axis(&self, value: ValueId, axis: usize) -> Option<&AxisChannels> {
        self.axes(value).get(axis)?.as_ref()
    }

    /// The numbers that change with channels, in the order of the data flow.
    pub fn rewrites(&self) -> &[Rewrite] {
        &self.rewrites
    }
}

/// A constant and the roles of its axes in the operators that take it.
struct Weight {
    value: ValueId,
    /// For each axis: whether a linear operator makes outputs along it, or takes inputs.
    roles: Vec<(bool, bool)>,
    /// The first operator that makes outputs along an axis of it, else the first that takes it.
    op: OpId,
    text: String,
}

/// What is found out about a class while constants are visited.
#[derive(Default)]
struct Found {
    members: Vec<(usize, usize, usize)>,
    weight: bool,
}

struct Collector<'m> {
    model: &'m Model,
    walk: Walk<'m>,
    weights: Vec<Weight>,
    /// By root; ordered by the first unit.
    found: BTreeMap<Unit, Found>,
}

impl<'m> Collector<'m> {
    fn new(model: &'m Model, walk: Walk<'m>) -> Collector<'m> {
        Collector {
            model,
            walk,
            weights: Vec::new(),
            found: BTreeMap::new(),
        }
    }

    fn collect(mut self) -> Channels {
        self.visit_constants();
        let (groups, refused, ids) = self.group();
        let mut translate = Translate {
            ids,
            known: HashMap::new(),
        };
        let count = groups.iter().map(|g| g.channels.len()).sum();
        let rewrites = self.rewrites(&mut translate);
        let axes = self.axes(&mut translate);
        Channels {
            count,
            groups,
            refused,
            axes,
            rewrites,
        }
    }

    /// The members of every class, in the order of the graphs and their constants.
    fn visit_constants(&mut self) {
        let mut constants = Vec::new();
        let model = self.model;
        model.for_each_graph(&mut |graph| {
            let order: HashMap<OpId, usize> = graph
                .topological_order()
                .unwrap_or_default()
                .into_iter()
                .enumerate()
                .map(|(i, op)| (op, i))
                .collect();
            let mut own: Vec<(usize, ValueId, Vec<Use>)> = Vec::new();
            for v in graph.initializers() {
                let mut uses = graph.sorted_uses(v);
                let place = |u: &Use| order.get(&u.op).copied().unwrap_or(usize::MAX);
                uses.sort_by_key(|u| (place(u), u.port));
                if let Some(first) = uses.first() {
                    own.push((place(first), v, uses));
                }
            }
            own.sort_by_key(|(place, v, _)| (*place, *v));
            constants.extend(own.into_iter().map(|(_, v, uses)| (graph, v, uses)));
        });
        for (graph, v, uses) in constants {
            let Some(axes) = self.walk.axes.get(&v).cloned() else {
                continue;
            };
            let at = self.weights.len();
            let Some(first) = uses.first() else { continue };
            let weight = weight(graph, v, (first.op, &uses), axes.len());
            for (axis, units) in axes.iter().enumerate() {
                let (out, taken) = weight.roles.get(axis).copied().unwrap_or_default();
                for (index, &u) in units.units().unwrap_or_default().iter().enumerate() {
                    let root = self.walk.units.find(u);
                    let found = self.found.entry(root).or_default();
                    found.weight |= out || taken;
                    found.members.push((at, axis, index));
                }
            }
            self.weights.push(weight);
        }
    }

    /// Puts classes together that have the same members.
    fn group(&mut self) -> (Vec<Group>, Vec<Refusal>, HashMap<Unit, ChannelId>) {
        let mut groups: Vec<Group> = Vec::new();
        let mut refused: Vec<Refusal> = Vec::new();
        let mut by_members: HashMap<Vec<Member>, usize> = HashMap::new();
        let mut by_why: HashMap<(Vec<Member>, Why), usize> = HashMap::new();
        let mut members_of: Vec<(Vec<Member>, Vec<Unit>)> = Vec::new();
        for (&root, found) in self.found.iter().filter(|(_, f)| f.weight) {
            let members = members(&found.members, &self.weights);
            let Some(op) = maker(&found.members, &self.weights) else {
                continue;
            };
            if let Some(why) = self.walk.units.frozen(root) {
                let at = *by_why.entry((members, why)).or_insert_with(|| {
                    refused.push(Refusal {
                        op,
                        channels: 0,
                        why,
                    });
                    refused.len() - 1
                });
                refused[at].channels += 1;
                continue;
            }
            let at = *by_members.entry(members.clone()).or_insert_with(|| {
                groups.push(Group {
                    op,
                    channels: Vec::new(),
                    structure: structure(&found.members, &self.weights),
                    members: members.clone(),
                    statistic: false,
                });
                members_of.push((members, Vec::new()));
                groups.len() - 1
            });
            groups[at].statistic |= self.walk.units.is_statistic(root);
            members_of[at].1.push(root);
        }
        let mut ids = HashMap::new();
        for (group, (_, roots)) in groups.iter_mut().zip(&members_of) {
            for &root in roots {
                let id = ChannelId(u32::try_from(ids.len()).unwrap_or(u32::MAX - 1));
                ids.insert(root, id);
                group.channels.push(id);
            }
        }
        (groups, refused, ids)
    }

    fn rewrites(&mut self, translate: &mut Translate) -> Vec<Rewrite> {
        let units = &mut self.walk.units;
        let computed: &HashSet<OpId> = &self.walk.computed;
        let numbers = std::mem::take(&mut self.walk.numbers);
        let mut out = Vec::new();
        for n in numbers {
            let watched: Vec<AxisChannels> =
                n.watched.iter().map(|u| translate.axis(u, units)).collect();
            let entries = n
                .all
                .iter()
                .map(|number| match number {
                    Number::Keep => Entry::Keep,
                    Number::Literal(v) => Entry::Literal(*v),
                    Number::Count(u) => Entry::Count(translate.axis(u, units)),
                    Number::Position(before, own) => {
                        let own = translate.channel(*own, units);
                        Entry::Position(translate.axis(before, units), own)
                    }
                })
                .collect();
            out.push(Rewrite {
                graph: n.graph,
                op: n.op,
                place: n.place,
                entries,
                watched,
                computed: computed.contains(&n.op),
            });
        }
        out
    }

    fn axes(&mut self, translate: &mut Translate) -> HashMap<ValueId, Vec<Option<AxisChannels>>> {
        let axes = std::mem::take(&mut self.walk.axes);
        let mut out = HashMap::new();
        for (v, axes) in axes {
            let all: Vec<Option<AxisChannels>> = axes
                .iter()
                .map(|axis| match axis {
                    Axis::Units(units) => Some(translate.axis(units, &mut self.walk.units))
                        .filter(|a| a.0.iter().any(|c| *c != ChannelId::STAYS)),
                    Axis::Fixed(_) => None,
                })
                .collect();
            if all.iter().any(Option::is_some) {
                out.insert(v, all);
            }
        }
        out
    }
}

/// From units to channels.
struct Translate {
    ids: HashMap<Unit, ChannelId>,
    /// Axes share their units, and so do their channels. The units are kept, so that no other
    /// list can come to stand at the same address.
    known: HashMap<(usize, usize), Translated>,
}

/// The units of an axis, and its channels.
type Translated = (Arc<[Unit]>, AxisChannels);

impl Translate {
    fn channel(&self, unit: Unit, units: &mut Units) -> Option<ChannelId> {
        self.ids.get(&units.find(unit)).copied()
    }

    fn axis(&mut self, axis: &Arc<[Unit]>, units: &mut Units) -> AxisChannels {
        let key = (axis.as_ptr() as usize, axis.len());
        if let Some((_, known)) = self.known.get(&key) {
            return known.clone();
        }
        let all = axis
            .iter()
            .map(|&u| self.channel(u, units).unwrap_or(ChannelId::STAYS));
        let made = AxisChannels(all.collect());
        self.known.insert(key, (axis.clone(), made.clone()));
        made
    }
}

/// The roles of a constant's axes.
fn weight(graph: &Graph, value: ValueId, (first, uses): (OpId, &[Use]), rank: usize) -> Weight {
    let mut roles = vec![(false, false); rank];
    let mut maker = None;
    let mut text = String::new();
    for u in uses {
        let Port::Input(slot) = u.port else { continue };
        let op = graph.op(u.op);
        text.push_str(op.op_type());
        text.push_str(&format!(".{slot} "));
        let linear =
            schema::of(op).is_some_and(|k| matches!(k.class, Class::Linear | Class::Recurrent));
        let slot = slot as usize;
        if !linear || !schema::weight_slots(op).contains(&slot) {
            continue;
        }
        if let Some(layout) = schema::weight_layout_at(op, slot, rank) {
            if let Some((out, _)) = roles.get_mut(layout.output_axis) {
                *out = true;
            }
            if let Some((_, taken)) = roles.get_mut(layout.input_axis) {
                *taken = true;
            }
            maker = maker.or(Some(u.op));
        }
    }
    Weight {
        value,
        roles,
        op: maker.unwrap_or(first),
        text,
    }
}

/// The operator that makes a channel: the first whose weight has it on the axis of outputs.
fn maker(members: &[(usize, usize, usize)], weights: &[Weight]) -> Option<OpId> {
    let role = |&&(w, axis, _): &&(usize, usize, usize)| weights.get(w)?.roles.get(axis).copied();
    let first = |test: fn((bool, bool)) -> bool| {
        members
            .iter()
            .find(|m| role(m).is_some_and(test))
            .and_then(|&(w, ..)| Some(weights.get(w)?.op))
    };
    first(|(out, _)| out).or_else(|| first(|(_, taken)| taken))
}

fn members(found: &[(usize, usize, usize)], weights: &[Weight]) -> Vec<Member> {
    let mut out: Vec<Member> = Vec::new();
    for &(w, axis, _) in found {
        let Some(value) = weights.get(w).map(|w| w.value) else {
            continue;
        };
        match out.iter_mut().find(|m| m.value == value && m.axis == axis) {
            Some(member) => member.width += 1,
            None => out.push(Member {
                value,
                axis,
                width: 1,
            }),
        }
    }
    out
}

fn structure(found: &[(usize, usize, usize)], weights: &[Weight]) -> String {
    let mut parts: Vec<String> = Vec::new();
    for &(w, axis, _) in found {
        if let Some(w) = weights.get(w) {
            let part = format!("{}@{axis}", w.text);
            if parts.last() != Some(&part) {
                parts.push(part);
            }
        }
    }
    parts.sort();
    parts.join("|")
}
