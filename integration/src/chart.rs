//! Charts of figures over versions, as SVG beside the bench's JSON.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

/// What one of those that are compared has had, version by version.
pub struct Line {
    /// Who.
    pub name: String,
    /// Ours are drawn thicker.
    pub ours: bool,
    /// What after each version.
    pub values: Vec<f64>,
}

/// Draws lines over versions, from nothing to the most that any has.
///
/// # Errors
/// A file that cannot be written.
pub fn draw(to: &Path, title: &str, unit: &str, lines: &[Line]) -> Result<()> {
    let all = lines.iter().flat_map(|line| line.values.iter().copied());
    let most = all.fold(0.0, f64::max) * 1.05;
    let versions = lines.iter().map(|line| line.values.len()).max().unwrap_or(1);
    let area = SVGBackend::new(to, (800, 420)).into_drawing_area();
    let drawn = |error: &dyn std::fmt::Display| anyhow!("draw {}: {error}", to.display());
    area.fill(&WHITE).map_err(|error| drawn(&error))?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(14)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(1..versions.max(2), 0.0..most.max(f64::MIN_POSITIVE))
        .map_err(|error| drawn(&error))?;
    chart
        .configure_mesh()
        .x_desc("version")
        .y_desc(unit)
        .light_line_style(TRANSPARENT)
        .draw()
        .map_err(|error| drawn(&error))?;
    for (n, line) in lines.iter().enumerate() {
        let style = Palette99::pick(n).stroke_width(if line.ours { 3 } else { 1 });
        let points = (1..).zip(line.values.iter().copied());
        chart
            .draw_series(LineSeries::new(points, style))
            .map_err(|error| drawn(&error))?
            .label(line.name.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.2))
        .draw()
        .map_err(|error| drawn(&error))?;
    area.present().map_err(|error| drawn(&error))
}
