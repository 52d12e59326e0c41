//! Attributes of operators.

use bytes::Bytes;
use paring_ir::{AttrKind, AttrValue, Attribute, Name, SparseTensor, ValueType, escape};

use super::super::tensors::quoted;
use super::super::{ReadError, proto, types};
use super::{Reader, invalid, optional_name, split};

impl Reader {
    /// The attributes of an operator or function, in order.
    pub(super) fn attributes(&mut self, attributes: &[Bytes]) -> Result<Vec<Attribute>, ReadError> {
        let mut out: Vec<Attribute> = Vec::with_capacity(attributes.len());
        for (i, data) in attributes.iter().enumerate() {
            let attribute = self.attribute(data, i)?;
            out.push(attribute);
        }
        let mut names: Vec<&Name> = out.iter().map(|a| &a.name).collect();
        names.sort_unstable();
        for pair in names.windows(2) {
            if let [a, b] = pair
                && a == b
            {
                let twice = invalid("two attributes have this name; expected one");
                return Err(twice.within(|| quoted("attribute", a)));
            }
        }
        Ok(out)
    }

    fn attribute(&mut self, data: &Bytes, nth: usize) -> Result<Attribute, ReadError> {
        let mut rest = proto::AttributeProto::default();
        let (mut graph, mut graphs) = (Vec::new(), Vec::new());
        split(data, &[6, 11], &mut rest, &mut |number, body| {
            match number {
                6 => graph.push(body),
                _ => graphs.push(body),
            }
            Ok(())
        })?;
        let name = rest.name.take().unwrap_or_default();
        if name.is_empty() {
            return Err(invalid(format!("attribute {nth} has no name")));
        }
        let doc = optional_name(rest.doc_string.take());
        let untyped = matches!(rest.r#type, None | Some(0));
        let (value, defaulted) = self
            .attribute_value(rest, &graph, &graphs)
            .map_err(|e| e.within(|| quoted("attribute", &name)))?;
        Ok(Attribute {
            name: self.tensors.names.get(&name),
            value,
            doc,
            untyped,
            defaulted,
        })
    }

    /// The value, and whether the file left it out.
    fn attribute_value(
        &mut self,
        a: proto::AttributeProto,
        graph: &[Bytes],
        graphs: &[Bytes],
    ) -> Result<(AttrValue, bool), ReadError> {
        let (kind, reference) = attribute_kind(&a, graph, graphs)?;
        if let Some(name) = reference {
            let name = self.tensors.names.get(name);
            return Ok((AttrValue::Ref { name, kind }, false));
        }
        let absent = || invalid(format!("the kind is {kind:?}, but there is no value"));
        let mut defaulted = false;
        let value = match kind {
            AttrKind::Float => {
                defaulted = a.f.is_none();
                AttrValue::Float(a.f.unwrap_or_default())
            }
            AttrKind::Int => {
                defaulted = a.i.is_none();
                AttrValue::Int(a.i.unwrap_or_default())
            }
            AttrKind::String => {
                defaulted = a.s.is_none();
                AttrValue::String(a.s.unwrap_or_default())
            }
            AttrKind::Tensor => {
                let t = *a.t.ok_or_else(absent)?;
                AttrValue::Tensor(self.tensors.named_tensor(t).map_err(invalid)?)
            }
            AttrKind::Graph if graph.is_empty() => return Err(absent()),
            AttrKind::Graph => AttrValue::Graph(Box::new(self.graph(graph)?)),
            AttrKind::SparseTensor => {
                let t = *a.sparse_tensor.ok_or_else(absent)?;
                AttrValue::SparseTensor(Box::new(self.sparse(t)?))
            }
            AttrKind::Type => {
                AttrValue::Type(Box::new(self.type_value(&*a.tp.ok_or_else(absent)?)?))
            }
            _ => self.list(kind, a, graphs)?,
        };
        Ok((value, defaulted))
    }

    /// The value of a kind that holds any number of things.
    fn list(
        &mut self,
        kind: AttrKind,
        a: proto::AttributeProto,
        graphs: &[Bytes],
    ) -> Result<AttrValue, ReadError> {
        Ok(match kind {
            AttrKind::Floats => AttrValue::Floats(a.floats),
            AttrKind::Ints => AttrValue::Ints(a.ints),
            AttrKind::Strings => AttrValue::Strings(a.strings),
            AttrKind::Tensors => {
                let tensors = a.tensors.into_iter();
                let tensors = tensors.map(|t| self.tensors.named_tensor(t).map_err(invalid));
                AttrValue::Tensors(tensors.collect::<Result<_, _>>()?)
            }
            AttrKind::Graphs => {
                let graphs = graphs.iter().map(|g| self.graph(std::slice::from_ref(g)));
                AttrValue::Graphs(graphs.collect::<Result<_, _>>()?)
            }
            AttrKind::SparseTensors => {
                let tensors = a.sparse_tensors.into_iter().map(|t| self.sparse(t));
                AttrValue::SparseTensors(tensors.collect::<Result<_, _>>()?)
            }
            AttrKind::Types => {
                let types = a.type_protos.iter().map(|t| self.type_value(t));
                AttrValue::Types(types.collect::<Result<_, _>>()?)
            }
            _ => return Err(invalid(format!("{kind:?} is no list"))),
        })
    }

    fn sparse(&mut self, t: proto::SparseTensorProto) -> Result<SparseTensor, ReadError> {
        let sparse = self.tensors.sparse(t, true);
        sparse.map(|(_, t)| t).map_err(invalid)
    }

    fn type_value(&mut self, ty: &proto::TypeProto) -> Result<ValueType, ReadError> {
        let (read, _) = types::read_type(ty, &mut self.tensors.names);
        let read = read.ok_or_else(|| invalid("the type says nothing"))?;
        self.lossy_types += u64::from(types::write_type(&read, &None) != *ty);
        Ok(read)
    }
}

/// The kind of an attribute, and the attribute of the function that it stands for.
fn attribute_kind<'a>(
    a: &'a proto::AttributeProto,
    graph: &[Bytes],
    graphs: &[Bytes],
) -> Result<(AttrKind, Option<&'a str>), ReadError> {
    use AttrKind as K;
    let declared = match a.r#type {
        None | Some(0) => None,
        Some(code) => Some(K::from_onnx(code).ok_or_else(|| {
            invalid(format!(
                "the kind is {code}, expected a number from 1 to 14"
            ))
        })?),
    };
    let fields = [
        (K::Float, a.f.is_some()),
        (K::Int, a.i.is_some()),
        (K::String, a.s.is_some()),
        (K::Tensor, a.t.is_some()),
        (K::Graph, !graph.is_empty()),
        (K::SparseTensor, a.sparse_tensor.is_some()),
        (K::Type, a.tp.is_some()),
        (K::Floats, !a.floats.is_empty()),
        (K::Ints, !a.ints.is_empty()),
        (K::Strings, !a.strings.is_empty()),
        (K::Tensors, !a.tensors.is_empty()),
        (K::Graphs, !graphs.is_empty()),
        (K::SparseTensors, !a.sparse_tensors.is_empty()),
        (K::Types, !a.type_protos.is_empty()),
    ];
    let mut used = fields.iter().filter(|(_, set)| *set).map(|&(kind, _)| kind);
    let found = used.next();
    if let (Some(one), Some(other)) = (found, used.next()) {
        return Err(invalid(format!(
            "there are two values, a {one:?} and a {other:?}; expected one"
        )));
    }
    if let Some(reference) = a.ref_attr_name.as_deref().filter(|r| !r.is_empty()) {
        return match (declared, found) {
            (_, Some(found)) => Err(invalid(format!(
                "it stands for the function's attribute \"{}\", and has a {found:?} of its own too",
                escape(reference)
            ))),
            (None, None) => Err(invalid("its kind is not given")),
            (Some(kind), None) => Ok((kind, Some(reference))),
        };
    }
    match (declared, found) {
        (Some(kind), Some(found)) if kind != found => Err(invalid(format!(
            "the kind is {kind:?}, the value is a {found:?}"
        ))),
        (Some(kind), _) | (None, Some(kind)) => Ok((kind, None)),
        (None, None) => Err(invalid("there is neither a kind nor a value")),
    }
}
