//! The short form of a pass on the command line: `name[:key=value,...]`.
//!
//! Values are YAML scalars or flow collections (`0.5`, `[1, 2]`, `{a: b}`); dots nest keys
//! (`budget.macs=0.5`); a key or a part of one may stand in double quotes, where dots and
//! commas mean themselves (`by-name."block.0.*"=skip`).

use serde_json::{Map, Value as Json};

/// Splits a short form into the pass's name and its options. The error says what is wrong.
pub fn parse_pass(text: &str) -> Result<(String, Map<String, Json>), String> {
    let (name, rest) = match text.split_once(':') {
        Some((name, rest)) => (name, Some(rest)),
        None => (text, None),
    };
    if name.trim().is_empty() {
        return Err("a pass's name comes first".to_owned());
    }
    let mut options = Map::new();
    let parts = match rest {
        Some(rest) if !rest.trim().is_empty() => split_outside(rest, ',')?,
        _ => Vec::new(),
    };
    for part in parts {
        let halves = split_outside(part, '=')?;
        let [key, value @ ..] = halves.as_slice() else {
            continue;
        };
        if value.is_empty() {
            return Err(format!("expected key=value, found \"{part}\""));
        }
        // Only the first = outside quotes separates; the value may hold more of them.
        let value = &part[key.len() + 1..];
        let value: Json = super::yaml::read(value)
            .map_err(|e| format!("the value of {key} is no YAML scalar or list: {e}"))?;
        let keys: Vec<String> = split_outside(key.trim(), '.')?
            .iter()
            .map(|k| unquote(k))
            .collect();
        insert(&mut options, &keys, value)?;
    }
    Ok((name.trim().to_owned(), options))
}

/// Splits at a separator that stands outside quotes and brackets.
fn split_outside(text: &str, separator: char) -> Result<Vec<&str>, String> {
    let mut parts = Vec::new();
    let (mut depth, mut quote, mut start) = (0usize, None, 0);
    for (i, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '[' | '{') => depth += 1,
            (None, ']' | '}') => {
                depth = depth
                    .checked_sub(1)
                    .ok_or(format!("\"{c}\" closes nothing"))?;
            }
            (None, c) if c == separator && depth == 0 => {
                parts.push(&text[start..i]);
                start = i + c.len_utf8();
            }
            _ => {}
        }
    }
    if depth > 0 || quote.is_some() {
        return Err("a bracket or quote is not closed".to_owned());
    }
    parts.push(&text[start..]);
    Ok(parts)
}

fn unquote(key: &str) -> String {
    key.strip_prefix('"')
        .and_then(|k| k.strip_suffix('"'))
        .unwrap_or(key)
        .to_owned()
}

fn insert(map: &mut Map<String, Json>, keys: &[String], value: Json) -> Result<(), String> {
    let (first, rest) = match keys {
        [] => return Ok(()),
        [first, rest @ ..] => (first, rest),
    };
    if first.is_empty() {
        return Err("a key is empty".to_owned());
    }
    if rest.is_empty() {
        if map.insert(first.clone(), value).is_some() {
            return Err(format!("{first} is given twice"));
        }
        return Ok(());
    }
    match map
        .entry(first.clone())
        .or_insert_with(|| Json::Object(Map::new()))
    {
        Json::Object(inner) => insert(inner, rest, value),
        _ => Err(format!("{first} is given both a value and nested keys")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn options(text: &str) -> Json {
        Json::Object(parse_pass(text).expect(text).1)
    }

    #[test]
    fn values_are_yaml() {
        assert_eq!(parse_pass("fold-pad").expect("name only").0, "fold-pad");
        assert_eq!(
            options("p:a=0.5,b=true,c=word,d=[1, 2],e={f: null},g=-3"),
            json!({"a": 0.5, "b": true, "c": "word", "d": [1, 2], "e": {"f": null}, "g": -3})
        );
        assert_eq!(options("p:k=a=b"), json!({"k": "a=b"}));
    }

    #[test]
    fn dots_nest_and_quotes_keep_them() {
        assert_eq!(
            options("p:budget.macs=0.5,budget.size=0.2"),
            json!({"budget": {"macs": 0.5, "size": 0.2}})
        );
        assert_eq!(
            options("p:by-name.\"block.0.*\"=skip,by-type.Gemm.sparsity=0.7"),
            json!({"by-name": {"block.0.*": "skip"}, "by-type": {"Gemm": {"sparsity": 0.7}}})
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            (":a=1", "name comes first"),
            ("p:a", "expected key=value"),
            ("p:a=[1", "not closed"),
            ("p:a=1]", "closes nothing"),
            ("p:a=1,a=2", "given twice"),
            ("p:a=1,a.b=2", "both a value and nested keys"),
            ("p:.a=1", "a key is empty"),
        ] {
            let e = parse_pass(text).expect_err(text);
            assert!(e.contains(part), "{text}: {e}");
        }
    }
}
