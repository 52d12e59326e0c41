//! Copying the contents of one graph into another: how branches and functions are inlined.

use std::collections::{HashMap, HashSet};

use super::{Graph, GraphError, OpId, ValueId};
use crate::attr::AttrValue;
use crate::op::{NewOp, NewOutput};
use crate::value::Name;

/// What [`Graph::splice`] added.
#[derive(Clone, Debug, Default)]
pub struct Spliced {
    /// The new operators, in the order of the data flow.
    pub ops: Vec<OpId>,
    /// What stands for the outputs of the copied graph, in order; `None` where an output is
    /// an absent input.
    pub outputs: Vec<Option<ValueId>>,
}

/// What stands for the values of the copied graph; `None` for an absent value.
type Places = HashMap<ValueId, Option<ValueId>>;

impl Graph {
    /// Copies the operators and initializers of `body` into this graph, beside the operator
    /// `at`, which the copies are recorded as made from. Values get fresh names made from
    /// `prefix` and their old name.
    ///
    /// `bound` says what stands for an input of `body` (`None`: it is absent); an input that it
    /// leaves out is absent. What `body` captures must be values of this graph. Refused, before
    /// anything is edited, when a graph inside `body` captures an absent value.
    pub fn splice(
        &mut self,
        body: &Graph,
        at: OpId,
        bound: &[(ValueId, Option<ValueId>)],
        prefix: &str,
    ) -> Result<Spliced, GraphError> {
        self.check_op(at)?;
        self.check_splice(body, bound)?;
        let mut places: Places = bound.iter().copied().collect();
        let declared: HashSet<ValueId> = body.declared().collect();
        for v in body.values() {
            if places.contains_key(&v) {
                continue;
            }
            let value = body.value(v);
            let place = match (value.outer, value.as_constant()) {
                (Some(outer), _) => Some(outer),
                (None, Some(constant)) => {
                    let new = self.add_fresh_value(&format!("{prefix}{}", value.name))?;
                    self.add_initializer(new, constant.clone())?;
                    self.value_mut(new)?.provenance = value.provenance.clone();
                    Some(new)
                }
                (None, None) => continue,
            };
            places.insert(v, place);
        }
        let mut spliced = Spliced::default();
        for op in body.topological_order()? {
            let new = self.splice_op(body, op, at, &mut places, prefix)?;
            for (&from, &to) in body
                .op(op)
                .outputs()
                .iter()
                .zip(&self.op(new).outputs.clone())
            {
                let (Some(from), Some(to)) = (from, to) else {
                    continue;
                };
                places.insert(from, Some(to));
                let (ty, extra) = (body.value(from).ty.clone(), body.value(from).extra.clone());
                let value = self.value_mut(to)?;
                (value.ty, value.extra) = (ty, extra);
                if declared.contains(&from) {
                    self.declare(to)?;
                }
            }
            spliced.ops.push(new);
        }
        let place = |v: &ValueId| places.get(v).copied().flatten();
        spliced.outputs = body.outputs().iter().map(place).collect();
        self.touch();
        Ok(spliced)
    }

    fn check_splice(
        &self,
        body: &Graph,
        bound: &[(ValueId, Option<ValueId>)],
    ) -> Result<(), GraphError> {
        let there: HashMap<ValueId, bool> = bound.iter().map(|&(v, b)| (v, b.is_some())).collect();
        for outer in body.outer_values().filter_map(|v| body.value(v).outer) {
            self.check_value(outer)?;
        }
        for v in bound.iter().filter_map(|b| b.1) {
            self.check_value(v)?;
        }
        for op in body.ops_with_subgraphs() {
            for v in body.op(op).captures() {
                let value = body.value(v);
                let has_source = value.producer.is_some()
                    || value.outer.is_some()
                    || (value.constant.is_some() && !value.input);
                if !there.get(&v).copied().unwrap_or(has_source) {
                    return Err(GraphError::NoSuch {
                        what: "captured value",
                        id: value.name.to_string(),
                        graph: body.name.to_string(),
                    });
                }
            }
        }
        Ok(())
    }

    fn splice_op(
        &mut self,
        body: &Graph,
        op: OpId,
        at: OpId,
        places: &mut Places,
        prefix: &str,
    ) -> Result<OpId, GraphError> {
        let old = body.op(op);
        let named = |name: &Name| -> Name { format!("{prefix}{name}").into() };
        let mut inputs: Vec<Option<ValueId>> = old
            .inputs()
            .map(|v| v.and_then(|v| places.get(&v).copied().flatten()))
            .collect();
        while matches!(inputs.last(), Some(None)) {
            inputs.pop();
        }
        let mut new = NewOp::new(old.op_type.clone())
            .domain(old.domain.clone())
            .inputs(inputs)
            .from([at])
            .beside(at);
        if !old.name.is_empty() {
            new = new.name(named(&old.name));
        }
        if let Some(extra) = old.extra() {
            new = new.extra(extra.clone());
        }
        for output in old.outputs() {
            new = new.push_output(match output {
                Some(v) => NewOutput::Fresh(named(&body.value(*v).name)),
                None => NewOutput::Absent,
            });
        }
        let mut attrs = old.attrs.clone();
        for attr in &mut attrs {
            match &mut attr.value {
                AttrValue::Graph(g) => **g = self.rehome(g, places)?,
                AttrValue::Graphs(gs) => {
                    for g in gs {
                        *g = self.rehome(g, places)?;
                    }
                }
                _ => {}
            }
        }
        self.add_op(new.attrs(attrs))
    }

    /// A copy of a graph in an attribute that captures the values in their new places.
    fn rehome(&self, graph: &Graph, places: &Places) -> Result<Graph, GraphError> {
        let mut copy = graph.duplicate();
        let captured: Vec<ValueId> = copy
            .outer_values()
            .filter_map(|v| copy.value(v).outer)
            .collect();
        for outer in captured {
            let Some(new) = places.get(&outer).copied().flatten() else {
                return Err(self.no_such("captured value", outer));
            };
            let name = self.check_value(new)?.name.clone();
            copy.repoint_capture(outer, new, &name)?;
        }
        Ok(copy)
    }
}
