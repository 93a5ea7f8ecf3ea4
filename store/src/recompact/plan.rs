//! What each of some versions is to stand on, when all of them are known.
//!
//! The one in the middle stands on nothing; before and behind it each stands on its neighbour. Where that would take more
//! steps than are allowed, one further out stands on the middle too, and has those beyond it on itself.

/// In how many steps every object is read.
pub(super) const STEPS: u8 = 8;
/// The most versions of which one alone is written whole: 16 on each side, of which the ninth stands on the middle.
pub(super) const MOST: usize = 33;

/// What each of so many versions stands on, by their places; the order is one in which every base comes before what
/// stands on it.
pub(super) fn plan(versions: usize) -> Vec<(usize, Option<usize>)> {
    let middle = versions.saturating_sub(1) / 2;
    let mut planned = Vec::with_capacity(versions);
    if versions > 0 {
        planned.push((middle, None));
    }
    let behind = |distance: usize| middle + distance;
    side(versions.saturating_sub(middle + 1), behind, &mut planned);
    side(middle, |distance| middle.saturating_sub(distance), &mut planned);
    planned
}

/// One side of the middle, so many long.
fn side(length: usize, place: impl Fn(usize) -> usize, planned: &mut Vec<(usize, Option<usize>)>) {
    let steps = usize::from(STEPS);
    if length <= steps {
        planned.extend((1..=length).map(|at| (place(at), Some(place(at - 1)))));
        return;
    }
    // It is one step up itself.
    let second = length + 1 - steps;
    planned.push((place(second), Some(place(0))));
    let half = second / 2;
    planned.extend((1..=half).map(|at| (place(at), Some(place(at - 1)))));
    planned.extend(
        (half + 1..second)
            .rev()
            .map(|at| (place(at), Some(place(at + 1)))),
    );
    planned.extend((second + 1..=length).map(|at| (place(at), Some(place(at - 1)))));
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn all_are_read_in_few_steps() {
        for versions in 0..=MOST {
            let mut depths: HashMap<usize, u8> = HashMap::new();
            let mut far = 0;
            for (at, base) in plan(versions) {
                let depth = base.map_or(0, |base| depths[&base] + 1);
                far += usize::from(base.is_some_and(|base| base.abs_diff(at) > 1));
                assert!(depth <= STEPS, "{at} of {versions}");
                assert_eq!(depths.insert(at, depth), None);
            }
            assert_eq!(depths.len(), versions);
            assert!((0..versions).all(|at| depths.contains_key(&at)));
            assert_eq!(
                depths.values().filter(|depth| **depth == 0).count(),
                versions.min(1)
            );
            // Only one of each side is not next to what it stands on.
            assert_eq!(
                far,
                usize::from(versions > 17) + usize::from(versions > 18),
                "{versions}"
            );
        }
    }
}
