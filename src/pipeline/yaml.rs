//! YAML read as JSON, without losing anything: what JSON can't say is an error.

use serde_json::{Map, Number, Value as Json};
use serde_yaml::Value as Yaml;

/// What is wrong with a text.
#[derive(Debug)]
pub(super) enum YamlError {
    /// It is no YAML, or has a key twice.
    Syntax(serde_yaml::Error),
    /// It is YAML with something that a recipe can't hold.
    Value {
        /// Where, such as `passes[0].prune-weights`; empty at the top.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

impl std::fmt::Display for YamlError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            YamlError::Syntax(e) => e.fmt(f),
            YamlError::Value { path, reason } if path.is_empty() => f.write_str(reason),
            YamlError::Value { path, reason } => write!(f, "{path}: {reason}"),
        }
    }
}

/// Reads one YAML document.
pub(super) fn read(text: &str) -> Result<Json, YamlError> {
    // Not straight into JSON: that would let the last of equal keys win, and make nulls of
    // infinities.
    let yaml: Yaml = serde_yaml::from_str(text).map_err(YamlError::Syntax)?;
    convert("", yaml)
}

fn convert(path: &str, yaml: Yaml) -> Result<Json, YamlError> {
    let wrong = |reason: String| YamlError::Value {
        path: path.to_owned(),
        reason,
    };
    match yaml {
        Yaml::Null => Ok(Json::Null),
        Yaml::Bool(b) => Ok(Json::Bool(b)),
        Yaml::String(s) => Ok(Json::String(s)),
        Yaml::Number(n) => {
            let number = match (n.as_u64(), n.as_i64(), n.as_f64()) {
                (Some(u), _, _) => Some(Number::from(u)),
                (_, Some(i), _) => Some(Number::from(i)),
                (_, _, Some(x)) => Number::from_f64(x),
                _ => None,
            };
            number
                .map(Json::Number)
                .ok_or_else(|| wrong(format!("expected a finite number, found {n}")))
        }
        Yaml::Sequence(items) => items
            .into_iter()
            .enumerate()
            .map(|(i, item)| convert(&format!("{path}[{i}]"), item))
            .collect::<Result<_, _>>()
            .map(Json::Array),
        Yaml::Mapping(entries) => {
            let mut map = Map::new();
            for (key, value) in entries {
                let Yaml::String(key) = key else {
                    return Err(wrong("a key that is no text; put it in quotes".to_owned()));
                };
                let inner = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                map.insert(key, convert(&inner, value)?);
            }
            Ok(Json::Object(map))
        }
        Yaml::Tagged(t) => Err(wrong(format!("tags such as {} mean nothing here", t.tag))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refused(text: &str) -> String {
        read(text).expect_err(text).to_string()
    }

    #[test]
    fn yaml_becomes_json_in_the_order_of_the_text() {
        let json = read("z: 1\na: [-2, 2.5, yes, true, ~, 'x']\nm: {b: 18446744073709551615}");
        assert_eq!(
            json.expect("valid").to_string(),
            r#"{"z":1,"a":[-2,2.5,"yes",true,null,"x"],"m":{"b":18446744073709551615}}"#
        );
    }

    #[test]
    fn aliases_are_expanded() {
        let json = read("a: &x {k: 1}\nb: *x").expect("valid");
        assert_eq!(json, json!({"a": {"k": 1}, "b": {"k": 1}}));
    }

    #[test]
    fn a_key_that_stands_twice_is_refused() {
        let message = refused("passes: []\npasses: []");
        assert!(
            message.contains("duplicate entry with key \"passes\""),
            "{message}"
        );
        let message = refused("passes:\n  - p: {a: 1, a: 2}");
        assert!(message.contains("duplicate entry"), "{message}");
    }

    #[test]
    fn what_json_can_not_say_is_refused() {
        for (text, message) in [
            (
                "a: {b: [1, .inf]}",
                "a.b[1]: expected a finite number, found .inf",
            ),
            ("a: .nan", "a: expected a finite number, found .nan"),
            ("a: {1: x}", "a: a key that is no text; put it in quotes"),
            ("[a, b]: x", "a key that is no text; put it in quotes"),
            ("a: !secret x", "a: tags such as !secret mean nothing here"),
        ] {
            assert_eq!(refused(text), message);
        }
    }

    #[test]
    fn bombs_are_refused_soon() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for i in 1..40 {
            let inner = vec![format!("*a{}", i - 1); 9].join(", ");
            bomb += &format!("a{i}: &a{i} [{inner}]\n");
        }
        let message = refused(&bomb);
        assert!(message.contains("repetition limit exceeded"), "{message}");
        let message = refused(&"[".repeat(100_000));
        assert!(message.contains("recursion limit exceeded"), "{message}");
    }
}
