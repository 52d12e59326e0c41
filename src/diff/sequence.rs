//! The longest common subsequence of two lists.

/// So many elements of both lists together may be left out; with more the lists have too little
/// in common, and the effort grows with the square.
const MOST_EDITS: usize = 1500;

/// Positions of a longest common subsequence, ascending on both sides; `None` where more than
/// [`MOST_EDITS`] elements are not in common.
///
/// Myers, "An O(ND) difference algorithm and its variations" (1986).
pub(super) fn common(a: &[u64], b: &[u64]) -> Option<Vec<(usize, usize)>> {
    let (n, m) = (a.len(), b.len());
    let most = (n + m).min(MOST_EDITS);
    // How far each diagonal reaches; `x - y` of a diagonal is its index less the offset.
    let offset = most + 1;
    let mut reach = vec![0usize; 2 * most + 3];
    let mut trace: Vec<Vec<usize>> = Vec::new();
    for edits in 0..=most {
        trace.push(reach[offset - edits..=offset + edits].to_vec());
        for step in 0..=edits {
            // Diagonals from -edits to edits in steps of two.
            let at = offset + 2 * step - edits;
            let down = step == 0 || (step < edits && reach[at - 1] < reach[at + 1]);
            let mut x = if down {
                reach[at + 1]
            } else {
                reach[at - 1] + 1
            };
            let Some(mut y) = (x + offset).checked_sub(at) else {
                continue;
            };
            while x < n && y < m && a[x] == b[y] {
                x += 1;
                y += 1;
            }
            reach[at] = x;
            if x >= n && y >= m {
                return Some(walk_back(a, b, &trace));
            }
        }
    }
    None
}

/// Goes from the ends of both lists back to their starts.
fn walk_back(a: &[u64], b: &[u64], trace: &[Vec<usize>]) -> Vec<(usize, usize)> {
    let mut out = Vec::new();
    let (mut x, mut y) = (a.len(), b.len());
    for (edits, reach) in trace.iter().enumerate().rev() {
        // The middle of a row is the diagonal 0. A row holds what the step before reached.
        let get = |diagonal: isize| {
            let at = usize::try_from(diagonal + edits as isize).ok();
            at.and_then(|at| reach.get(at)).copied().unwrap_or(0)
        };
        let diagonal = x as isize - y as isize;
        let edge = edits as isize;
        let down = diagonal == -edge || (diagonal != edge && get(diagonal - 1) < get(diagonal + 1));
        let before = if down { diagonal + 1 } else { diagonal - 1 };
        let from_x = if edits == 0 { 0 } else { get(before) };
        let from_y = if edits == 0 {
            0
        } else {
            usize::try_from(from_x as isize - before).unwrap_or(0)
        };
        while x > from_x && y > from_y {
            x -= 1;
            y -= 1;
            out.push((x, y));
        }
        (x, y) = (from_x, from_y);
    }
    out.reverse();
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;

    fn check(a: &[u64], b: &[u64], length: usize) {
        let found = common(a, b).unwrap();
        assert!(found.iter().all(|&(x, y)| a[x] == b[y]), "{found:?}");
        let ascends = |w: &[(usize, usize)]| w[0].0 < w[1].0 && w[0].1 < w[1].1;
        assert!(found.windows(2).all(ascends), "{found:?}");
        assert_eq!(found.len(), length, "{found:?}");
    }

    #[test]
    fn common_parts_are_found() {
        check(&[1, 2, 3], &[1, 2, 3], 3);
        check(&[1, 2, 3, 1, 2, 2, 1], &[3, 2, 1, 2, 1, 3], 4);
        check(&[], &[1], 0);
        check(&[1, 2], &[3, 4, 5], 0);
        check(&[1, 2, 3, 4, 1, 2, 3, 4], &[1, 3, 4, 1, 2, 3, 4], 7);
        check(&[5, 1, 2], &[1, 2, 6, 7], 2);
        let long: Vec<u64> = (0..5000).map(|i| i % 7).collect();
        let cut: Vec<u64> = long.iter().copied().filter(|i| *i != 3).collect();
        check(&long, &cut, cut.len());
        let other: Vec<u64> = (100_000..105_000).collect();
        assert_eq!(common(&long, &other), None);
    }
}
