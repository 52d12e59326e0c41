//! Plots as inline SVG, with axes and units.
//!
//! The marks are stretched to whatever width the page has; labels are HTML around them, so they
//! stay readable on a narrow screen, and lines keep their width.

use maud::{Markup, Render, html};

/// The side of the square that marks are drawn in.
const SIDE: f64 = 1000.0;

/// An axis.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    log: bool,
    label: String,
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// A linear axis over a range, with about `count` ticks at round numbers.
    pub(super) fn linear(low: f64, high: f64, count: usize, label: impl Into<String>) -> Axis {
        let (low, high) = widened(low, high);
        let step = round_step((high - low) / count.max(1) as f64);
        Axis::stepped(low, high, step, label.into())
    }

    fn stepped(low: f64, high: f64, step: f64, label: String) -> Axis {
        let digits = digits_of(step);
        let first = (low / step).ceil() as i64;
        // A multiple of the step may miss the end by a rounding.
        let last = (high / step + 1e-9).floor() as i64;
        let ticks = (first..=last.min(first.saturating_add(50))).map(|i| {
            let at = i as f64 * step;
            (at, tick_text(at, step, digits))
        });
        Axis {
            low,
            high,
            log: false,
            label,
            ticks: ticks.collect(),
        }
    }

    /// As [`Axis::linear`], from the smallest to the largest round number around the range.
    pub(super) fn rounded(low: f64, high: f64, count: usize, label: impl Into<String>) -> Axis {
        let (low, high) = widened(low, high);
        let step = round_step((high - low) / count.max(1) as f64);
        let (low, high) = ((low / step).floor() * step, (high / step).ceil() * step);
        Axis::stepped(low, high, step, label.into())
    }

    /// A logarithmic axis over whole powers of ten.
    pub(super) fn log(low: f64, high: f64, label: impl Into<String>) -> Axis {
        let first = low.max(f64::MIN_POSITIVE).log10().floor();
        let last = high.max(f64::MIN_POSITIVE).log10().ceil().max(first + 1.0);
        let every = ((last - first) / 5.0).ceil().max(1.0) as i64;
        let (first, last) = (first as i64, last as i64);
        let ticks = (first..=last)
            .filter(|i| (last - i) % every == 0)
            .map(|i| (i as f64, power_of_ten(i)));
        Axis {
            low: first as f64,
            high: last as f64,
            log: true,
            label: label.into(),
            ticks: ticks.collect(),
        }
    }

    /// Where a number lies, from 0 to 1.
    fn place(&self, x: f64) -> f64 {
        let x = if self.log {
            x.max(f64::MIN_POSITIVE).log10()
        } else {
            x
        };
        ((x - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    /// Where the number of a tick, which for a logarithmic axis is a power, lies.
    fn place_of_tick(&self, at: f64) -> f64 {
        ((at - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }
}

fn widened(low: f64, high: f64) -> (f64, f64) {
    match (low.is_finite() && high.is_finite(), low < high) {
        (true, true) => (low, high),
        (true, false) => (low - 0.5, low + 0.5),
        (false, _) => (0.0, 1.0),
    }
}

/// 1, 2 or 5 times a power of ten, at least as large as asked for.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.max(f64::MIN_POSITIVE).log10().floor());
    let mantissa = step / power;
    let round = match mantissa {
        m if m <= 1.0 => 1.0,
        m if m <= 2.0 => 2.0,
        m if m <= 5.0 => 5.0,
        _ => 10.0,
    };
    (round * power).max(f64::MIN_POSITIVE)
}

/// Digits behind the point that tell the multiples of a step apart.
fn digits_of(step: f64) -> usize {
    (-step.log10().floor()).clamp(0.0, 12.0) as usize
}

fn tick_text(at: f64, step: f64, digits: usize) -> String {
    let largest = at.abs().max(step);
    if at == 0.0 {
        "0".to_owned()
    } else if largest >= 10_000.0 && step >= 1.0 {
        let (x, unit) = match largest {
            x if x >= 1e9 => (at / 1e9, " G"),
            x if x >= 1e6 => (at / 1e6, " M"),
            _ => (at / 1e3, " k"),
        };
        let text = format!("{x:.2}");
        format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
    } else if digits > 4 {
        format!("{at:.1e}")
    } else {
        format!("{at:.digits$}").replace('-', "\u{2212}")
    }
}

fn power_of_ten(power: i64) -> String {
    match power {
        -3..=3 => format!(
            "{:.*}",
            usize::try_from(-power).unwrap_or(0),
            10f64.powi(power as i32)
        ),
        _ => {
            let digits = "⁰¹²³⁴⁵⁶⁷⁸⁹";
            let raised = |c: char| match c.to_digit(10) {
                Some(d) => digits.chars().nth(d as usize).unwrap_or(c),
                None => '⁻',
            };
            format!(
                "10{}",
                power.to_string().chars().map(raised).collect::<String>()
            )
        }
    }
}

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// Bars without gaps, of which each point gives the left end and the height; the last ends at
    /// the end of the axis.
    Bars,
    /// A line.
    Line,
    /// Dots, each with a text that shows when the mouse rests on it.
    Dots,
}

/// What is drawn.
#[derive(Clone, Debug)]
pub(super) struct Series {
    /// What the legend says.
    pub(super) name: &'static str,
    pub(super) style: Style,
    pub(super) points: Vec<(f64, f64)>,
    /// The texts of dots.
    pub(super) texts: Vec<String>,
}

/// A plot.
pub(super) struct Plot<'a> {
    /// What is shown, in a few words.
    pub(super) title: &'a str,
    /// More about it.
    pub(super) about: &'a str,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) series: Vec<Series>,
    /// A vertical line, with what it says.
    pub(super) mark: Option<(f64, String)>,
    /// The height in pixels.
    pub(super) height: u32,
}

impl Render for Plot<'_> {
    fn render(&self) -> Markup {
        let legend = self.series.len() > 1;
        html! {
            figure.plot {
                figcaption { b { (self.title) } @if !self.about.is_empty() { " " (self.about) } }
                @if legend {
                    div.legend { @for (i, s) in self.series.iter().enumerate() {
                        span class=[class_of(i)] { (s.name) }
                    } }
                }
                div.frame style={ "--h:" (self.height) "px" } {
                    (self.marks())
                    @for (at, text) in &self.y.ticks {
                        span.y style={ "bottom:" (percent(self.y.place_of_tick(*at))) } { (text) }
                    }
                    @for (at, text) in &self.x.ticks {
                        span.x style={ "left:" (percent(self.x.place_of_tick(*at))) } { (text) }
                    }
                    span.xl { (self.x.label) }
                    span.yl { (self.y.label) }
                }
            }
        }
    }
}

impl Plot<'_> {
    fn marks(&self) -> Markup {
        html! {
            svg viewBox={ "0 0 " (SIDE) " " (SIDE) } preserveAspectRatio="none" role="img" aria-label=(self.title) {
                @for (at, _) in &self.y.ticks {
                    @let y = coordinate(1.0 - self.y.place_of_tick(*at));
                    line.grid x1="0" x2=(SIDE) y1=(y) y2=(y) {}
                }
                @for (i, s) in self.series.iter().enumerate() { (self.series(i, s)) }
                @if let Some((at, text)) = &self.mark {
                    @let x = coordinate(self.x.place(*at));
                    line.mark x1=(x) x2=(x) y1="0" y2=(SIDE) { title { (text) } }
                }
            }
        }
    }

    fn point(&self, (x, y): (f64, f64)) -> (String, String) {
        (
            coordinate(self.x.place(x)),
            coordinate(1.0 - self.y.place(y)),
        )
    }

    fn series(&self, index: usize, s: &Series) -> Markup {
        let class = class_of(index).unwrap_or_default();
        match s.style {
            Style::Bars => html! { path class={ "area " (class) } d=(self.bars(&s.points)) {} },
            Style::Line => {
                let mut d = String::new();
                for (i, &p) in s.points.iter().enumerate() {
                    let (x, y) = self.point(p);
                    d += &format!("{}{x} {y}", if i == 0 { 'M' } else { 'L' });
                }
                html! { path class={ "line " (class) } d=(d) {} }
            }
            Style::Dots => html! {
                g class={ "dots " (class) } {
                    @for (i, &p) in s.points.iter().enumerate() {
                        @let (x, y) = self.point(p);
                        path d={ "M" (x) " " (y) "h0" } {
                            @if let Some(text) = s.texts.get(i) { title { (text) } }
                        }
                    }
                }
            },
        }
    }

    fn bars(&self, points: &[(f64, f64)]) -> String {
        let Some(&first) = points.first() else {
            return String::new();
        };
        let mut d = format!("M{} {SIDE}", self.point(first).0);
        for (i, &p) in points.iter().enumerate() {
            let (_, y) = self.point(p);
            let end = points
                .get(i + 1)
                .map_or_else(|| coordinate(1.0), |&next| self.point(next).0);
            d += &format!("V{y}H{end}");
        }
        d + &format!("V{SIDE}Z")
    }
}

fn class_of(series: usize) -> Option<&'static str> {
    (series > 0).then_some("s2")
}

fn coordinate(share: f64) -> String {
    let text = format!("{:.1}", SIDE * share);
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

fn percent(share: f64) -> String {
    format!("{:.2}%", 100.0 * share)
}

/// The shape of a histogram, small enough for a cell.
pub(super) fn spark(counts: &[u64]) -> Markup {
    const BARS: usize = 30;
    const HEIGHT: f64 = 20.0;
    let each = counts.len().div_ceil(BARS).max(1);
    let joined: Vec<u64> = counts.chunks(each).map(|c| c.iter().sum()).collect();
    let most = joined.iter().copied().max().unwrap_or(0).max(1);
    let mut d = format!("M0 {HEIGHT}");
    for (i, &n) in joined.iter().enumerate() {
        let y = HEIGHT * (1.0 - n as f64 / most as f64);
        // What is there at all shows.
        let y = if n > 0 { y.min(HEIGHT - 0.7) } else { y };
        d += &format!("V{y:.1}H{}", i + 1);
    }
    d += &format!("V{HEIGHT}Z");
    html! {
        svg.spark viewBox={ "0 0 " (joined.len().max(1)) " " (HEIGHT) } preserveAspectRatio="none" aria-hidden="true" {
            path d=(d) {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_stand_at_round_numbers() {
        let texts = |a: &Axis| a.ticks.iter().map(|t| t.1.clone()).collect::<Vec<_>>();
        let axis = Axis::linear(-0.32, 0.41, 4, "");
        assert_eq!(texts(&axis), ["−0.2", "0", "0.2", "0.4"]);
        let axis = Axis::rounded(0.0, 123_456.0, 4, "");
        assert_eq!(texts(&axis), ["0", "50 k", "100 k", "150 k"]);
        assert_eq!(
            texts(&Axis::log(0.003, 1.0, "")),
            ["0.001", "0.01", "0.1", "1"]
        );
        let axis = Axis::log(1e-9, 1.0, "");
        assert_eq!(texts(&axis), ["10⁻⁸", "10⁻⁶", "10⁻⁴", "0.01", "1"]);
        // Nothing to spread over.
        assert!(!texts(&Axis::linear(2.0, 2.0, 4, "")).is_empty());
        assert!(!texts(&Axis::linear(f64::NAN, 2.0, 4, "")).is_empty());
    }

    #[test]
    fn bars_start_and_end_on_the_axis() {
        let plot = Plot {
            title: "t",
            about: "",
            x: Axis::linear(0.0, 2.0, 2, "x"),
            y: Axis::linear(0.0, 4.0, 2, "y"),
            series: Vec::new(),
            mark: None,
            height: 100,
        };
        assert_eq!(
            plot.bars(&[(0.0, 1.0), (1.0, 4.0)]),
            "M0 1000V750H500V0H1000V1000Z"
        );
        assert!(
            spark(&[0, 2, 1])
                .into_string()
                .contains("M0 20V20.0H1V0.0H2V10.0H3V20Z")
        );
    }
}
