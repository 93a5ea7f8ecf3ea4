//! A state's commits as lines: its own straight down, and beside it one from each restore to the commit that it went
//! back to.

/// One commit, newest first.
#[derive(Debug, Clone, Copy)]
pub struct Point<'a> {
    /// Its name.
    pub id: &'a str,
    /// The commit of the same state that it went back to.
    pub origin: Option<&'a str>,
}

/// One line of the drawing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// What is drawn.
    pub drawn: String,
    /// The commit that stands beside it, by its number; none for a line that only connects.
    pub point: Option<usize>,
}

/// Draws commits. An origin that is not among them has no line: the words beside its restore name it.
#[must_use]
pub fn lines(points: &[Point<'_>]) -> Vec<Line> {
    let mut lines = Vec::new();
    // The commits that the open lines go down to.
    let mut open: Vec<Option<&str>> = Vec::new();
    for (n, point) in points.iter().enumerate() {
        while let Some(column) = open.iter().position(|goal| *goal == Some(point.id)) {
            lines.push(turn(&open, column, '╯'));
            if let Some(goal) = open.get_mut(column) {
                *goal = None;
            }
            while open.last() == Some(&None) {
                open.pop();
            }
        }
        let mut drawn = String::from("*");
        for goal in &open {
            drawn.push_str(if goal.is_some() { " │" } else { "  " });
        }
        lines.push(Line {
            drawn,
            point: Some(n),
        });
        let below = points.get(n + 1..).unwrap_or_default();
        if let Some(origin) = point.origin
            && below.iter().any(|point| point.id == origin)
        {
            let column = open.iter().position(Option::is_none).unwrap_or(open.len());
            lines.push(turn(&open, column, '╮'));
            match open.get_mut(column) {
                Some(free) => *free = Some(origin),
                None => open.push(Some(origin)),
            }
        }
    }
    lines
}

/// A line from the state's own to another, over those between.
fn turn(open: &[Option<&str>], column: usize, corner: char) -> Line {
    let mut drawn = String::from("├");
    for n in 0..open.len().max(column + 1) {
        let crossed = open.get(n).is_some_and(Option::is_some);
        drawn.push(if n <= column { '─' } else { ' ' });
        drawn.push(match n {
            _ if n == column => corner,
            _ if n < column && crossed => '┼',
            _ if n < column => '─',
            _ if crossed => '│',
            _ => ' ',
        });
    }
    Line { drawn, point: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(points: &[(&str, Option<&str>)]) -> String {
        let points: Vec<Point<'_>> = points
            .iter()
            .map(|(id, origin)| Point { id, origin: *origin })
            .collect();
        lines(&points)
            .into_iter()
            .map(|line| match line.point {
                Some(n) => format!("{} {}\n", line.drawn, points[n].id),
                None => line.drawn + "\n",
            })
            .collect()
    }

    #[test]
    fn a_restore_points_to_its_origin() {
        let text = drawn(&[("d", Some("b")), ("c", None), ("b", None), ("a", None)]);
        assert_eq!(text, "* d\n├─╮\n* │ c\n├─╯\n* b\n* a\n");
    }

    #[test]
    fn lines_cross() {
        let text = drawn(&[
            ("f", Some("c")),
            ("e", Some("a")),
            ("d", None),
            ("c", None),
            ("b", None),
            ("a", None),
        ]);
        assert_eq!(
            text,
            "* f\n├─╮\n* │ e\n├─┼─╮\n* │ │ d\n├─╯ │\n*   │ c\n*   │ b\n├───╯\n* a\n"
        );
    }

    #[test]
    fn two_restores_of_one_commit_and_one_that_is_not_listed() {
        let text = drawn(&[
            ("d", Some("a")),
            ("c", Some("a")),
            ("b", Some("gone")),
            ("a", None),
        ]);
        assert_eq!(text, "* d\n├─╮\n* │ c\n├─┼─╮\n* │ │ b\n├─╯ │\n├───╯\n* a\n");
    }
}
