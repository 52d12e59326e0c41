//! A pass outside the project: it uses nothing but the public interface of `paring-ir`.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use paring_ir::{
    Changed, Effect, Model, OptionError, OptionSet, Pass, PassContext, PassError, PassInfo,
};

/// Gives every operator without a name one made of its type and a number, so that recipes can
/// address it: `Conv_0`, `Conv_1`, `Relu_0`.
#[derive(Debug)]
pub struct NameOperators {
    options: OptionSet<Options>,
}

/// The options of [`NameOperators`].
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// What stands before the type; nothing by default, so that names are as exporters write them.
    pub prefix: String,
    /// Name operators anew that have a name.
    pub overwrite: bool,
}

impl Pass for NameOperators {
    const INFO: PassInfo = PassInfo::new(
        "name-operators",
        "Give operators without a name one made of their type and a number",
        Effect::Exact,
    );
    type Options = Options;

    fn new(options: OptionSet<Options>) -> Result<Self, OptionError> {
        Ok(NameOperators { options })
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut changed = Changed::No;
        let mut next: BTreeMap<String, usize> = BTreeMap::new();
        model.edit_graphs(&mut |graph| {
            for op in graph.topological_order()? {
                let Some(options) = self.options.for_op(graph, op).options() else {
                    continue;
                };
                if !graph.op(op).name().is_empty() && !options.overwrite {
                    continue;
                }
                let stem = format!("{}{}", options.prefix, graph.op(op).op_type());
                let number = next.entry(stem.clone()).or_insert(0);
                let name = format!("{stem}_{number}");
                *number += 1;
                if **graph.op(op).name() != *name {
                    cx.applied(graph, op, "named", format!("is now called {name}"));
                    graph.set_op_name(op, name)?;
                    changed = Changed::Yes;
                }
            }
            Ok::<(), PassError>(())
        })?;
        Ok(changed)
    }
}

#[cfg(test)]
mod tests {
    use paring_ir::{Registry, analysis::AnalysisCache, text};

    use super::*;

    #[test]
    fn operators_get_names() {
        let registry = Registry::new().with::<NameOperators>();
        let entry = registry.get("name-operators").expect("registered");
        let options = serde_json_map(&[("prefix", "my-")]);
        let pass = entry.make(&options).expect("valid options");
        let source = "<ir_version: 8, opset_import: [\"\": 17]>
            g (float[2] x) => (float[2] y) { a = Relu(x) b = Relu(a) y = Neg(b) }";
        let mut model = text::parse_model(source).expect("valid text");
        let mut cache = AnalysisCache::new();
        let mut cx = PassContext::new(&mut cache);
        assert!(pass.run(&mut model, &mut cx).expect("runs").is_yes());
        let names: Vec<String> = model
            .graph
            .ops()
            .map(|op| model.graph.op(op).name().to_string())
            .collect();
        assert_eq!(names, ["my-Relu_0", "my-Relu_1", "my-Neg_0"]);
        assert_eq!(cx.remarks.applied_count(), 3);
        assert!(!pass.run(&mut model, &mut cx).expect("runs").is_yes());
    }

    fn serde_json_map(entries: &[(&str, &str)]) -> paring_ir::registry::JsonMap {
        entries
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).into()))
            .collect()
    }
}
