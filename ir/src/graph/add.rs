//! Adding values, inputs, outputs, constants and operators.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::op::{NewOp, NewOutput, Op};
use crate::provenance::Provenance;
use crate::tensor::Tensor;
use crate::value::{Constant, Name, Value, ValueType};

use super::{Graph, GraphError, Node, OpId, RANK_STEP, ValueId};

impl Graph {
    pub(super) fn new_node(&mut self, node: Node) -> Result<u32, GraphError> {
        self.touch();
        let index = self
            .net
            .try_add_node(node)
            .map_err(|_| GraphError::TooLarge)?;
        Ok(index.index() as u32)
    }

    /// A value of exactly this name without a source, or the one that is there.
    pub fn value_or_add(&mut self, name: &str) -> Result<ValueId, GraphError> {
        match self.find_value(name) {
            Some(v) => Ok(v),
            None => self.add_value(name),
        }
    }

    /// A new value of exactly this name without a source.
    pub fn add_value(&mut self, name: impl Into<Name>) -> Result<ValueId, GraphError> {
        let name = name.into();
        if self.names.contains_key(&name) {
            return Err(GraphError::NameTaken(name.to_string()));
        }
        let value = Value {
            name: name.clone(),
            ty: None,
            constant: None,
            producer: None,
            producer_edge: u32::MAX,
            uses: SmallVec::new(),
            input: false,
            outputs: 0,
            outer: None,
            extra: None,
            provenance: None,
        };
        let node = self.new_node(Node::Value(Box::new(value)))?;
        self.names.insert(name, node);
        self.value_count += 1;
        Ok(ValueId {
            graph: self.id,
            node,
        })
    }

    /// A name that no value of this graph has, made from a hint.
    pub fn fresh_name(&mut self, hint: &str) -> Name {
        let hint = if hint.is_empty() { "value" } else { hint };
        if !self.names.contains_key(hint) {
            return hint.into();
        }
        let counter = self.fresh.entry(hint.into()).or_insert(0);
        loop {
            *counter += 1;
            let name = format!("{hint}_{counter}");
            if !self.names.contains_key(name.as_str()) {
                return name.into();
            }
        }
    }

    /// A new value whose name is made from a hint.
    pub fn add_fresh_value(&mut self, hint: &str) -> Result<ValueId, GraphError> {
        let name = self.fresh_name(hint);
        self.add_value(name)
    }

    /// A new graph input, the last one.
    pub fn add_input(
        &mut self,
        name: impl Into<Name>,
        ty: Option<ValueType>,
    ) -> Result<ValueId, GraphError> {
        let name = name.into();
        let v = self.value_or_add(&name)?;
        let value = self.value_mut(v)?;
        if value.input || value.producer.is_some() || value.outer.is_some() {
            return Err(GraphError::AlreadyProduced(name.to_string()));
        }
        value.input = true;
        if ty.is_some() {
            value.ty = ty.map(Box::new);
        }
        let unlisted = value.constant.is_none();
        self.inputs.push(v);
        if !self.listed_inputs.is_empty() && unlisted {
            self.listed_inputs.push(v);
        }
        self.touch();
        Ok(v)
    }

    /// Turns the inputs that have an initializer into plain constants which the file lists as
    /// inputs: what a model of IR version 3 means by listing its initializers there.
    pub fn fix_listed_initializers(&mut self) {
        self.listed_inputs = self.inputs.clone();
        let (fixed, inputs) = std::mem::take(&mut self.inputs)
            .into_iter()
            .partition::<Vec<_>, _>(|&v| self.get_value(v).is_some_and(|v| v.constant.is_some()));
        self.inputs = inputs;
        for v in fixed {
            if let Ok(value) = self.value_mut(v) {
                value.input = false;
            }
        }
        self.touch();
    }

    /// Makes a value a graph output, the last one.
    pub fn add_output(&mut self, v: ValueId) -> Result<(), GraphError> {
        self.value_mut(v)?.outputs += 1;
        self.outputs.push(v);
        self.touch();
        Ok(())
    }

    /// A new constant whose name is made from a hint.
    pub fn add_constant(&mut self, hint: &str, tensor: Tensor) -> Result<ValueId, GraphError> {
        let v = self.add_fresh_value(hint)?;
        self.add_initializer(v, Constant::Dense(tensor))?;
        if let Some(pass) = self.author.clone() {
            let p = Arc::new(Provenance {
                passes: vec![pass],
                ..Provenance::default()
            });
            self.value_mut(v)?.provenance = Some(p);
        }
        Ok(v)
    }

    /// Gives a value without producer an initializer. For a graph input it becomes the default.
    pub fn add_initializer(&mut self, v: ValueId, c: Constant) -> Result<(), GraphError> {
        let value = self.value_mut(v)?;
        if value.producer.is_some() || value.constant.is_some() || value.outer.is_some() {
            return Err(GraphError::AlreadyProduced(value.name.to_string()));
        }
        value.constant = Some(Box::new(c));
        let unlisted = !value.input;
        self.initializers.push(v);
        if !self.listed_inputs.is_empty() && unlisted {
            self.listed_inputs.push(v);
        }
        self.touch();
        Ok(())
    }

    /// Adds an operator.
    pub fn add_op(&mut self, new: NewOp) -> Result<OpId, GraphError> {
        for v in new.inputs.iter().flatten() {
            self.check_value(*v)?;
        }
        for attr in &new.attrs {
            self.check_captures(&attr.value)?;
        }
        for output in &new.outputs {
            match output {
                NewOutput::Existing(v) => {
                    let value = self.check_value(*v)?;
                    if value.producer.is_some()
                        || value.input
                        || value.constant.is_some()
                        || value.outer.is_some()
                    {
                        return Err(GraphError::AlreadyProduced(value.name.to_string()));
                    }
                }
                NewOutput::Named(name) if self.names.contains_key(name) => {
                    return Err(GraphError::NameTaken(name.to_string()));
                }
                _ => {}
            }
        }
        let rank = match new.after.or_else(|| new.from.last().copied()) {
            Some(op) => self.get_op(op).map(|op| op.rank),
            None => None,
        };
        let rank = rank.unwrap_or_else(|| {
            self.next_rank += RANK_STEP;
            self.next_rank
        });
        let provenance = self.derive_op_provenance(&new.from);
        let domain = if &*new.domain == "ai.onnx" {
            "".into()
        } else {
            new.domain
        };
        let op = Op {
            name: new.name,
            op_type: new.op_type,
            domain,
            attrs: new.attrs,
            inputs: SmallVec::new(),
            outputs: SmallVec::new(),
            captures: Vec::new(),
            rank,
            extra: new.extra,
            provenance,
        };
        let has_subgraphs = op.has_subgraphs();
        let node = self.new_node(Node::Op(Box::new(op)))?;
        let id = OpId {
            graph: self.id,
            node,
        };
        self.op_count += 1;
        self.attach_inputs(id, &new.inputs)?;
        for (i, output) in new.outputs.into_iter().enumerate() {
            let v = match output {
                NewOutput::Existing(v) => Some(v),
                NewOutput::Named(name) => Some(self.add_value(name)?),
                NewOutput::Fresh(hint) => Some(self.add_fresh_value(&hint)?),
                NewOutput::Absent => None,
            };
            self.op_mut(id)?.outputs.push(None);
            if let Some(v) = v {
                self.attach_output(id, i, v)?;
            }
        }
        if has_subgraphs {
            self.with_subgraphs.insert(node);
            self.sync_captures(id)?;
        }
        Ok(id)
    }

    pub(super) fn derive_op_provenance(&self, from: &[OpId]) -> Option<Arc<Provenance>> {
        let author = self.author.as_ref()?;
        let sources: Vec<(Name, Option<Arc<Provenance>>)> = from
            .iter()
            .filter_map(|&op| Some((self.op_label(op), self.get_op(op)?.provenance.clone())))
            .collect();
        Some(Arc::new(Provenance::derive(
            author,
            sources.iter().map(|(n, p)| (n, p.as_ref())),
        )))
    }
}
