//! Numbers for people, the same in the terminal and on pages.

/// A duration for people.
pub(crate) fn duration(seconds: f64) -> String {
    if seconds < 1.0 {
        format!("{:.1} ms", 1000.0 * seconds)
    } else {
        format!("{seconds:.2} s")
    }
}

/// A measured number for people: `7.13`, `1.2e-6`.
pub(crate) fn number(x: f64) -> String {
    if x == 0.0 || (0.01..1e4).contains(&x.abs()) {
        format!("{x:.3}")
    } else {
        format!("{x:.1e}")
    }
}

/// Runs of operator types that are told in order; of more each type is told once.
pub(crate) const MOST_RUNS: usize = 8;

/// Operator types with their numbers: equal neighbours, or where those are many all of one type,
/// the most frequent first. Tells which of the two.
pub(crate) fn runs(types: &[String]) -> (Vec<(&String, usize)>, bool) {
    let chunks = types.chunk_by(|a, b| a == b);
    let runs: Vec<_> = chunks
        .filter_map(|run| Some((run.first()?, run.len())))
        .collect();
    if runs.len() <= MOST_RUNS {
        return (runs, false);
    }
    let mut counts: std::collections::BTreeMap<&String, usize> = Default::default();
    for (t, n) in runs {
        *counts.entry(t).or_default() += n;
    }
    let mut list: Vec<_> = counts.into_iter().collect();
    list.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    (list, true)
}

/// `1 thread`, `2 threads`.
pub(crate) fn plural(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// A number of bytes for people: `1.46 MB`.
pub(crate) fn bytes(n: u64) -> String {
    scaled(n as f64, "B")
}

/// A count for people: `4.65 M`.
pub(crate) fn count(n: u64) -> String {
    if n < 10_000 {
        n.to_string()
    } else {
        scaled(n as f64, "").trim_end().to_owned()
    }
}

fn scaled(mut x: f64, unit: &str) -> String {
    for prefix in ["", "k", "M", "G", "T"] {
        if x < 999.5 {
            let digits = if prefix.is_empty() || x >= 100.0 {
                0
            } else if x >= 10.0 {
                1
            } else {
                2
            };
            return format!("{x:.digits$} {prefix}{unit}");
        }
        x /= 1000.0;
    }
    format!("{x:.0} P{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(585_532), "586 kB");
        assert_eq!(bytes(1_460_000), "1.46 MB");
        assert_eq!(count(9_999), "9999");
        assert_eq!(count(4_650_000), "4.65 M");
        assert_eq!(duration(0.0004), "0.4 ms");
        assert_eq!(duration(1.5), "1.50 s");
        assert_eq!(number(7.1251), "7.125");
        assert_eq!(number(1.23e-6), "1.2e-6");
    }
}
