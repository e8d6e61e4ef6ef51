//! Plots as SVG files: dark text on white, so that they can be read in a viewer of any colour.

use std::ops::Range;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::coord::combinators::{IntoLogRange as _, LogCoord};
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::{
    BLACK, ChartBuilder, Circle, Color as _, DrawingArea, IntoDrawingArea as _, IntoFont as _, LineSeries, PathElement,
    RGBColor, SVGBackend, Text, WHITE,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};

const WIDTH_PX: u32 = 1_000;
/// Of the title, and of each panel.
const TITLE_PX: u32 = 40;
const PANEL_PX: u32 = 380;
/// The width of the legend, and of one line's dash in it.
const LEGEND_PX: u32 = 180;
const LEGEND_DASH_PX: i32 = 18;
const LEGEND_TOP_PX: i32 = 24;
const LEGEND_LINE_PX: usize = 22;
// The library makes text smaller than it is asked to, by a quarter.
const TITLE_TEXT: (&str, u32) = ("sans-serif", 24);
const TEXT: (&str, u32) = ("sans-serif", 17);
const LABELS_MAX: usize = 12;
/// Room around what is plotted, as a factor on logarithmic axes.
const MARGIN: f64 = 1.25;
/// Told apart with every kind of colour vision (Okabe and Ito).
const COLORS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

/// One line, with its points.
pub(crate) struct Line {
    pub(crate) name: String,
    /// x and y, in the order of x.
    pub(crate) points: Vec<(f64, f64)>,
}

/// Lines with axes in common.
pub(crate) struct Panel {
    /// What y is, with its unit.
    pub(crate) y: &'static str,
    /// Whether y is logarithmic; else it begins at 0.
    pub(crate) y_log: bool,
    pub(crate) lines: Vec<Line>,
}

/// Panels below each other, whose x is the same.
pub(crate) struct Plot {
    pub(crate) title: String,
    /// What x is, with its unit.
    pub(crate) x: &'static str,
    /// Whether x is logarithmic; else it begins at 0.
    pub(crate) x_log: bool,
    pub(crate) panels: Vec<Panel>,
}

impl Plot {
    /// Writes it to an SVG file.
    ///
    /// # Errors
    /// There is nothing to plot, or the file cannot be written.
    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        let panels = u32::try_from(self.panels.len())?;
        let root = SVGBackend::new(file, (WIDTH_PX, TITLE_PX + panels * PANEL_PX)).into_drawing_area();
        let drawn = || -> Result<()> {
            root.fill(&WHITE).map_err(failed)?;
            let below = root.titled(&self.title, TITLE_TEXT.into_font().color(&BLACK)).map_err(failed)?;
            for (panel, area) in self.panels.iter().zip(below.split_evenly((self.panels.len(), 1))) {
                let (lines, beside) = area.split_horizontally(WIDTH_PX - LEGEND_PX);
                draw(panel, self, &lines)?;
                legend(panel, &beside)?;
            }
            root.present().map_err(failed)
        };
        drawn().map_err(|error| error.context(format!("cannot plot {}", file.display())))
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Both kinds are one type, so that the type of a chart does not depend on them.
enum Axis {
    Linear(RangedCoordf64),
    Log(LogCoord<f64>),
}

impl Axis {
    fn linear(greatest: f64) -> Self {
        Self::Linear((0.0..greatest * MARGIN).into())
    }

    fn log(range: Range<f64>) -> Self {
        Self::Log(range.log_scale().into())
    }
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        match self {
            Self::Linear(axis) => axis.map(value, limit),
            Self::Log(axis) => axis.map(value, limit),
        }
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        match self {
            Self::Linear(axis) => axis.key_points(hint),
            Self::Log(axis) => axis.key_points(hint),
        }
    }

    fn range(&self) -> Range<f64> {
        match self {
            Self::Linear(axis) => axis.range(),
            Self::Log(axis) => axis.range(),
        }
    }
}

fn draw(panel: &Panel, plot: &Plot, area: &Area) -> Result<()> {
    let points = || panel.lines.iter().flat_map(|line| line.points.iter().copied());
    let xs = bounds(points().map(|point| point.0)).ok_or_else(|| anyhow!("there are no points of {}", panel.y))?;
    let ys = bounds(points().map(|point| point.1)).ok_or_else(|| anyhow!("there are no points of {}", panel.y))?;
    let x = if plot.x_log { Axis::log(xs.0 / MARGIN..xs.1 * MARGIN) } else { Axis::linear(xs.1) };
    let y = if panel.y_log { Axis::log(decades(ys)) } else { Axis::linear(ys.1) };
    let mut builder = ChartBuilder::on(area);
    builder.margin(12).x_label_area_size(44).y_label_area_size(64);
    let mut chart = builder.build_cartesian_2d(x, y).map_err(failed)?;
    let mut mesh = chart.configure_mesh();
    mesh.x_desc(plot.x).y_desc(panel.y).x_labels(LABELS_MAX).y_labels(LABELS_MAX).max_light_lines(0);
    mesh.x_label_formatter(&|value| short(*value)).y_label_formatter(&|value| short(*value));
    mesh.axis_desc_style(TEXT.into_font().color(&BLACK)).label_style(TEXT.into_font().color(&BLACK));
    mesh.bold_line_style(BLACK.mix(0.15)).draw().map_err(failed)?;
    for (line, color) in panel.lines.iter().zip(colors()) {
        let stroke = color.stroke_width(2);
        chart.draw_series(LineSeries::new(line.points.iter().copied(), stroke)).map_err(failed)?;
        let dots = line.points.iter().map(|point| Circle::new(*point, 3, color.filled()));
        chart.draw_series(dots).map_err(failed)?;
    }
    Ok(())
}

/// Beside the lines, not on them.
fn legend(panel: &Panel, area: &Area) -> Result<()> {
    for ((line, color), y) in panel.lines.iter().zip(colors()).zip((LEGEND_TOP_PX..).step_by(LEGEND_LINE_PX)) {
        area.draw(&PathElement::new([(0, y), (LEGEND_DASH_PX, y)], color.stroke_width(2))).map_err(failed)?;
        let style = TEXT.into_font().color(&BLACK).pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(line.name.clone(), (LEGEND_DASH_PX + 8, y), style)).map_err(failed)?;
    }
    Ok(())
}

fn colors() -> impl Iterator<Item = RGBColor> {
    COLORS.into_iter().cycle()
}

/// The least and the greatest; None: there are none.
fn bounds(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |bounds, value| {
        let (least, greatest) = bounds.unwrap_or((value, value));
        Some((value.min(least), value.max(greatest)))
    })
}

/// Whole decades around these bounds: however near to each other they are, there is something to read off the axis.
fn decades((least, greatest): (f64, f64)) -> Range<f64> {
    10_f64.powf(least.log10().floor())..10_f64.powf(greatest.log10().floor() + 1.0)
}

/// A number with three digits, thousands as k and millions as M.
fn short(value: f64) -> String {
    let (value, unit) = match value.abs() {
        1e6.. => (value / 1e6, "M"),
        1e3.. => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    let text = if digits > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

/// The library's errors borrow what they tell of.
fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("{error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_on_an_axis_are_short() {
        let shown = [0.0, 0.25, 7.0, 12.5, 120.0, 1_500.0, 20_000.0, 5e6].map(short);
        assert_eq!(shown, ["0", "0.25", "7", "12.5", "120", "1.5k", "20k", "5M"]);
    }

    #[test]
    fn a_plot_is_a_file_with_its_words_in_it() {
        let line = |name: &str| Line { name: name.to_owned(), points: vec![(500.0, 2.0), (1_000.0, 3.5)] };
        let panel = |y_log| Panel { y: "ms", y_log, lines: vec![line("ours"), line("sync")] };
        let panels = vec![panel(true), panel(false)];
        let plot = Plot { title: "Latency".to_owned(), x: "a second", x_log: true, panels };
        let file = std::env::temp_dir().join(format!("boxoffice-plot-{}.svg", std::process::id()));
        plot.write(&file).unwrap();
        let svg = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        for word in ["Latency", "a second", "ours", "sync"] {
            assert!(svg.contains(word), "{word}");
        }
        let panels = vec![Panel { y: "", y_log: true, lines: Vec::new() }];
        let nothing = Plot { title: String::new(), x: "", x_log: true, panels };
        assert!(nothing.write(&file).is_err());
    }

    #[test]
    fn a_linear_axis_has_a_place_for_0() {
        let axis = Axis::linear(80.0);
        assert_eq!([0.0, 50.0, 100.0].map(|x| axis.map(&x, (0, 200))), [0, 100, 200]);
    }
}
