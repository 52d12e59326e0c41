//! Edits of single operators and values.

use std::sync::Arc;

use crate::attr::{AttrValue, Attribute};
use crate::op::OpExtra;
use crate::provenance::{Kept, Provenance};
use crate::tensor::Tensor;
use crate::value::{Constant, Name, Spelling, Value, ValueExtra, ValueType};

use super::{Graph, GraphError, OpId, Port, ValueId};

impl Graph {
    /// Puts new inputs into all slots of an operator.
    pub fn set_inputs(&mut self, op: OpId, inputs: &[Option<ValueId>]) -> Result<(), GraphError> {
        for v in inputs.iter().flatten() {
            self.check_value(*v)?;
        }
        self.check_op(op)?;
        self.detach_inputs(op)?;
        self.attach_inputs(op, inputs)?;
        self.touch();
        self.sweep();
        Ok(())
    }

    /// Puts a value into one input slot; slots up to it are added as absent.
    pub fn set_input(
        &mut self,
        op: OpId,
        slot: usize,
        value: Option<ValueId>,
    ) -> Result<(), GraphError> {
        if let Some(v) = value {
            self.check_value(v)?;
        }
        let o = self.op_mut(op)?;
        if o.inputs.len() <= slot {
            if value.is_none() {
                return Ok(());
            }
            o.inputs.resize(slot + 1, None);
        }
        if let Some(old) = o.inputs[slot].take() {
            self.detach_use(old);
        }
        if let Some(v) = value {
            let taken = self.attach_use(v, op, Port::Input(slot as u32));
            self.op_mut(op)?.inputs[slot] = Some(taken);
        }
        let o = self.op_mut(op)?;
        while matches!(o.inputs.last(), Some(None)) {
            o.inputs.pop();
        }
        self.touch();
        self.sweep();
        Ok(())
    }

    /// Sets an attribute.
    pub fn set_attr(
        &mut self,
        op: OpId,
        name: &str,
        value: impl Into<AttrValue>,
    ) -> Result<(), GraphError> {
        let value = value.into();
        self.check_op(op)?;
        self.check_captures(&value)?;
        let o = self.op_mut(op)?;
        match o.attrs.iter_mut().find(|a| &*a.name == name) {
            Some(a) => a.value = value,
            None => o.attrs.push(Attribute::new(name, value)),
        }
        self.attrs_changed(op)
    }

    /// Removes an attribute; does nothing when it is not written out.
    pub fn remove_attr(&mut self, op: OpId, name: &str) -> Result<(), GraphError> {
        let o = self.op_mut(op)?;
        let before = o.attrs.len();
        o.attrs.retain(|a| &*a.name != name);
        if o.attrs.len() == before {
            Ok(())
        } else {
            self.attrs_changed(op)
        }
    }

    pub(super) fn attrs_changed(&mut self, op: OpId) -> Result<(), GraphError> {
        if self.op_mut(op)?.has_subgraphs() {
            self.with_subgraphs.insert(op.node);
            self.sync_captures(op)?;
        } else if self.with_subgraphs.remove(&op.node) {
            self.sync_captures(op)?;
        }
        self.note_change(op)?;
        self.touch();
        Ok(())
    }

    /// Records that the current pass changed an operator.
    pub(super) fn note_change(&mut self, op: OpId) -> Result<(), GraphError> {
        if let Some(p) = self.derive_op_provenance(&[op]) {
            self.op_mut(op)?.provenance = Some(p);
        }
        Ok(())
    }

    /// Renames an operator.
    pub fn set_op_name(&mut self, op: OpId, name: impl Into<Name>) -> Result<(), GraphError> {
        self.op_mut(op)?.name = name.into();
        self.touch();
        Ok(())
    }

    /// Sets what a file says about an operator that is rarely there.
    pub fn set_op_extra(&mut self, op: OpId, extra: OpExtra) -> Result<(), GraphError> {
        self.op_mut(op)?.extra = (extra != OpExtra::default()).then(|| Box::new(extra));
        self.touch();
        Ok(())
    }

    /// Sets or drops the declared type of a value.
    pub fn set_type(&mut self, v: ValueId, ty: Option<ValueType>) -> Result<(), GraphError> {
        let value = self.value_mut(v)?;
        if value.ty.as_deref() != ty.as_ref() {
            value.ty = ty.map(Box::new);
            self.touch();
        }
        Ok(())
    }

    /// Puts a value on the file's list of value infos.
    pub fn declare(&mut self, v: ValueId) -> Result<(), GraphError> {
        self.check_value(v)?;
        self.declared.push(v);
        Ok(())
    }

    /// Takes values off the file's list of value infos, except those that `keep` says yes to.
    pub fn retain_declared(&mut self, mut keep: impl FnMut(ValueId, &Value) -> bool) {
        let mut declared = std::mem::take(&mut self.declared);
        declared.retain(|&v| self.get_value(v).is_some_and(|value| keep(v, value)));
        self.declared = declared;
        self.touch();
    }

    /// Sets what a file says about a value besides name and type.
    pub fn set_value_extra(&mut self, v: ValueId, extra: ValueExtra) -> Result<(), GraphError> {
        self.value_mut(v)?.extra = (extra != ValueExtra::default()).then(|| Box::new(extra));
        self.touch();
        Ok(())
    }

    /// Adds an entry of a file that what is said about a value doesn't give back, for readers.
    pub fn add_spelling(&mut self, v: ValueId, spelling: Spelling) -> Result<(), GraphError> {
        let extra = self.value_mut(v)?.extra.get_or_insert_default();
        extra.spellings.push(spelling);
        self.touch();
        Ok(())
    }

    /// Replaces the elements of an initializer, its shape and element type too if they differ.
    /// `kept` says which indices of the old tensor the new one keeps, for provenance.
    pub fn set_tensor(
        &mut self,
        v: ValueId,
        tensor: Tensor,
        kept: Vec<Kept>,
    ) -> Result<(), GraphError> {
        self.set_constant(v, Constant::Dense(tensor), kept)
    }

    /// As [`Graph::set_tensor`], for a constant that may be sparse.
    pub fn set_constant(
        &mut self,
        v: ValueId,
        constant: Constant,
        kept: Vec<Kept>,
    ) -> Result<(), GraphError> {
        let author = self.author.clone();
        let value = self.value_mut(v)?;
        let Some(old) = &value.constant else {
            return Err(GraphError::NoSuch {
                what: "initializer",
                id: value.name.to_string(),
                graph: self.name.to_string(),
            });
        };
        if old.dims() != constant.dims() || old.dtype() != constant.dtype() {
            value.ty = None;
        }
        value.constant = Some(Box::new(constant));
        if let Some(author) = author {
            let mut p = Provenance::derive(&author, [(&value.name, value.provenance.as_ref())]);
            p.kept = value
                .provenance
                .as_ref()
                .map_or_else(Vec::new, |p| p.kept.clone());
            p.kept.extend(kept);
            value.provenance = Some(Arc::new(p));
        }
        self.touch();
        Ok(())
    }

    /// Records which values a tensor was made from.
    pub fn set_tensor_sources(
        &mut self,
        v: ValueId,
        sources: &[ValueId],
    ) -> Result<(), GraphError> {
        let Some(author) = self.author.clone() else {
            return Ok(());
        };
        let named: Vec<(Name, Option<Arc<Provenance>>)> = sources
            .iter()
            .filter_map(|&s| {
                let s = self.get_value(s)?;
                Some((s.name.clone(), s.provenance.clone()))
            })
            .collect();
        let p = Provenance::derive(&author, named.iter().map(|(n, p)| (n, p.as_ref())));
        self.value_mut(v)?.provenance = Some(Arc::new(p));
        Ok(())
    }

    /// Puts back the origin of an operator that a file records; no edit of the graph.
    pub fn restore_op_provenance(
        &mut self,
        op: OpId,
        origin: Arc<Provenance>,
    ) -> Result<(), GraphError> {
        self.op_mut(op)?.provenance = Some(origin);
        Ok(())
    }

    /// Puts back the origin of a tensor that a file records; no edit of the graph.
    pub fn restore_value_provenance(
        &mut self,
        v: ValueId,
        origin: Arc<Provenance>,
    ) -> Result<(), GraphError> {
        self.value_mut(v)?.provenance = Some(origin);
        Ok(())
    }

    /// Turns the output of an operator into a constant of the same name; the operator's slot
    /// becomes absent.
    pub fn fold_to_constant(&mut self, v: ValueId, tensor: Tensor) -> Result<(), GraphError> {
        self.fold_to_initializer(v, Constant::Dense(tensor))
    }

    /// As [`Graph::fold_to_constant`], for a constant that may be sparse.
    pub fn fold_to_initializer(&mut self, v: ValueId, c: Constant) -> Result<(), GraphError> {
        let sources: Vec<(Name, Option<Arc<Provenance>>)> = match self.check_value(v)?.producer {
            Some((op, _)) => vec![(self.op_label(op), self.op(op).provenance.clone())],
            None => return Err(GraphError::AlreadyProduced(self.value(v).name.to_string())),
        };
        self.detach_output(v)?;
        self.add_initializer(v, c)?;
        if let Some(author) = self.author.clone() {
            let p = Provenance::derive(&author, sources.iter().map(|(n, p)| (n, p.as_ref())));
            self.value_mut(v)?.provenance = Some(Arc::new(p));
        }
        Ok(())
    }

    /// Renames a value, also where graphs in attributes capture it.
    pub fn rename_value(&mut self, v: ValueId, name: impl Into<Name>) -> Result<(), GraphError> {
        let name = name.into();
        if self.check_value(v)?.name == name {
            return Ok(());
        }
        if self.names.contains_key(&name) {
            return Err(GraphError::NameTaken(name.to_string()));
        }
        let value = self.value_mut(v)?;
        let old = std::mem::replace(&mut value.name, name.clone());
        let capturing: Vec<OpId> = value
            .uses
            .iter()
            .filter(|u| u.port == Port::Capture)
            .map(|u| u.op)
            .collect();
        self.names.remove(&old);
        self.names.insert(name.clone(), v.node);
        for op in capturing {
            for graph in self
                .op_mut(op)?
                .attrs
                .iter_mut()
                .flat_map(|a| a.value.graphs_mut())
            {
                let inner = graph.values().find(|&i| graph.value(i).outer == Some(v));
                if let Some(inner) = inner {
                    graph.rename_for_capture(inner, &name)?;
                }
            }
        }
        self.touch();
        Ok(())
    }
}
