//! Plots as SVG text: lines, dots and bars on axes with round numbers. Colours come from the page's style sheet, so one
//! picture serves light and dark.

use std::fmt::Write as _;

/// How the points of a plot are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Joined, where they are no further apart than the given share of the axis would be a gap.
    Line,
    /// Joined, each point marked.
    Marked,
    /// Bars from zero, as wide as the given distance of the points.
    Bars,
}

/// Points of one colour.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// What the legend says.
    pub name: String,
    /// x and y; drawn in this order.
    pub points: Vec<(f64, f64)>,
}

/// One picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Plot {
    /// Above it.
    pub title: String,
    /// Below the horizontal axis, with the unit.
    pub x: String,
    /// Above the vertical axis, with the unit.
    pub y: String,
    /// How points are drawn.
    pub mark: Mark,
    /// What is drawn.
    pub series: Vec<Series>,
}

/// Colours of the style sheet; further series take them again.
pub const COLOURS: usize = 7;
/// Points drawn of one series; more are thinned out evenly, their extremes kept.
pub const MAX_POINTS: usize = 1_500;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 40.0;
/// Ticks aimed at on an axis.
const TICKS: f64 = 6.0;
/// Points further apart than this multiple of their usual distance are not joined.
const GAP: f64 = 4.0;

impl Plot {
    /// The picture and its legend, as HTML.
    pub fn html(&self) -> String {
        let mut out = String::new();
        // Writing into a String cannot fail.
        let _ = write!(out, "<figure><figcaption>{}</figcaption>", escape(&self.title));
        out.push_str(&self.svg());
        if self.series.len() > 1 {
            out.push_str("<div class=legend>");
            for (i, series) in self.series.iter().enumerate() {
                let _ = write!(out, "<span class=\"c{}\">{}</span>", i % COLOURS, escape(&series.name));
            }
            out.push_str("</div>");
        }
        out.push_str("</figure>\n");
        out
    }

    fn svg(&self) -> String {
        let bar = self.bar_width();
        let xs = || self.series.iter().flat_map(|s| s.points.iter().map(|p| p.0)).filter(|x| x.is_finite());
        let ys = || self.series.iter().flat_map(|s| s.points.iter().map(|p| p.1)).filter(|y| y.is_finite());
        let half = if self.mark == Mark::Bars { bar / 2.0 } else { 0.0 };
        let x_axis = Axis::over(least(xs()) - half, most(xs()) + half, self.mark != Mark::Bars);
        let y_axis = Axis::over(least(ys()).min(0.0), most(ys()), true);
        let place_x = |x: f64| LEFT + x_axis.share(x) * (WIDTH - LEFT - RIGHT);
        let place_y = |y: f64| HEIGHT - BOTTOM - y_axis.share(y) * (HEIGHT - TOP - BOTTOM);
        let mut out =
            format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=img aria-label=\"{}\">", escape(&self.title));
        for tick in y_axis.ticks() {
            let y = place_y(tick);
            let _ = write!(out, "<path class=grid d=\"M{LEFT} {y:.1}H{:.1}\"/>", WIDTH - RIGHT);
            let _ = write!(
                out,
                "<text x={:.1} y={:.1} class=\"t e\">{}</text>",
                LEFT - 6.0,
                y + 4.0,
                y_axis.label(tick)
            );
        }
        for tick in x_axis.ticks() {
            let x = place_x(tick);
            let _ = write!(out, "<path class=grid d=\"M{x:.1} {TOP}V{:.1}\"/>", HEIGHT - BOTTOM);
            let _ = write!(
                out,
                "<text x={x:.1} y={:.1} class=\"t m\">{}</text>",
                HEIGHT - BOTTOM + 16.0,
                x_axis.label(tick)
            );
        }
        let _ = write!(out, "<text x={LEFT} y=14 class=t>{}</text>", escape(&self.y));
        let _ = write!(
            out,
            "<text x={:.1} y={:.1} class=\"t e\">{}</text>",
            WIDTH - RIGHT,
            HEIGHT - 6.0,
            escape(&self.x)
        );
        for (i, series) in self.series.iter().enumerate() {
            let points = thinned(&series.points);
            let class = i % COLOURS;
            if self.mark == Mark::Bars {
                for (x, y) in &points {
                    let (from, to) = (place_x(x - bar / 2.0), place_x(x + bar / 2.0));
                    let (top, foot) = (place_y(*y), place_y(0.0));
                    let _ = write!(
                        out,
                        "<rect class=\"b{class}\" x={:.1} y={top:.1} width={:.1} height={:.1}><title>{}: {}</title></rect>",
                        from + 0.5,
                        (to - from - 1.0).max(0.5),
                        (foot - top).max(0.0),
                        short(*x),
                        short(*y)
                    );
                }
                continue;
            }
            let usual = usual_distance(&points);
            let mut path = String::new();
            let mut before: Option<f64> = None;
            for (x, y) in &points {
                let joined =
                    before.is_some_and(|b| self.mark == Mark::Marked || (x - b).abs() <= GAP * usual);
                let _ =
                    write!(path, "{}{:.1} {:.1}", if joined { 'L' } else { 'M' }, place_x(*x), place_y(*y));
                before = Some(*x);
            }
            let _ = write!(out, "<path class=\"l{class}\" d=\"{path}\"/>");
            if self.mark == Mark::Marked {
                for (x, y) in &points {
                    let _ = write!(
                        out,
                        "<circle class=\"b{class}\" cx={:.1} cy={:.1} r=3.5><title>{}: {}</title></circle>",
                        place_x(*x),
                        place_y(*y),
                        short(*x),
                        short(*y)
                    );
                }
            }
        }
        out.push_str("</svg>");
        out
    }

    fn bar_width(&self) -> f64 {
        self.series.iter().map(|s| usual_distance(&s.points)).fold(f64::INFINITY, f64::min).min(1e9)
    }
}

/// How often values fall into bins of one width, as percent of all.
pub fn histogram(name: &str, values: &[f64]) -> Option<Series> {
    let (low, high) = (least(values.iter().copied()), most(values.iter().copied()));
    if values.is_empty() || !low.is_finite() || !high.is_finite() {
        return None;
    }
    let width = round_step((high - low).max(1.0) / 40.0);
    let first = (low / width).floor();
    let bins = (((high / width).floor() - first) as usize + 1).min(MAX_POINTS);
    let mut counts = vec![0usize; bins];
    for value in values {
        let at = ((value / width).floor() - first) as usize;
        if let Some(count) = counts.get_mut(at) {
            *count += 1;
        }
    }
    let share = |count: usize| 100.0 * count as f64 / values.len() as f64;
    let points =
        counts.into_iter().enumerate().map(|(i, count)| ((first + i as f64 + 0.5) * width, share(count)));
    Some(Series { name: name.to_owned(), points: points.collect() })
}

/// Text that means nothing to a browser.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// A number as people write it.
pub fn short(x: f64) -> String {
    let text = if x.abs() >= 100.0 {
        format!("{x:.0}")
    } else if x.abs() >= 10.0 {
        format!("{x:.1}")
    } else {
        format!("{x:.2}")
    };
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    if text == "-0" { "0".into() } else { text.to_owned() }
}

struct Axis {
    low: f64,
    high: f64,
    step: f64,
}

impl Axis {
    fn over(low: f64, high: f64, round: bool) -> Self {
        let (low, high) = if low.is_finite() && high.is_finite() { (low, high) } else { (0.0, 1.0) };
        let high = if high - low < 1e-9 { low + 1.0 } else { high };
        let step = round_step((high - low) / TICKS);
        if round {
            Self { low: (low / step).floor() * step, high: (high / step).ceil() * step, step }
        } else {
            Self { low, high, step }
        }
    }

    fn share(&self, value: f64) -> f64 {
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let first = (self.low / self.step).ceil();
        let count = ((self.high / self.step + 1e-9).floor() - first).clamp(0.0, 50.0) as usize;
        let step = self.step;
        (0..=count).map(move |i| (first + i as f64) * step)
    }

    fn label(&self, tick: f64) -> String {
        let digits = if self.step >= 1.0 { 0 } else { (-self.step.log10()).ceil().clamp(0.0, 6.0) as usize };
        format!("{:.digits$}", if tick == 0.0 { 0.0 } else { tick })
    }
}

/// 1, 2 or 5 times a power of ten, at least `x`.
fn round_step(x: f64) -> f64 {
    let power = 10f64.powf(x.max(1e-9).log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|m| m * power)
        .find(|step| *step >= x * 0.999)
        .unwrap_or(10.0 * power)
}

fn least(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(f64::INFINITY, f64::min)
}

fn most(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(f64::NEG_INFINITY, f64::max)
}

/// Median distance of neighbours; 1 where there are none.
fn usual_distance(points: &[(f64, f64)]) -> f64 {
    let distances: Vec<f64> =
        points.windows(2).map(|w| (w[1].0 - w[0].0).abs()).filter(|d| *d > 0.0).collect();
    super::signal::median(&distances).unwrap_or(1.0)
}

fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let points: Vec<(f64, f64)> =
        points.iter().copied().filter(|p| p.0.is_finite() && p.1.is_finite()).collect();
    if points.len() <= MAX_POINTS {
        return points;
    }
    let group = points.len().div_ceil(MAX_POINTS / 2);
    points
        .chunks(group)
        .flat_map(|chunk| {
            let low = chunk.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1));
            let high = chunk.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1));
            let mut pair: Vec<(f64, f64)> = low.into_iter().chain(high).collect();
            pair.sort_by(|a, b| a.0.total_cmp(&b.0));
            pair
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers_around_the_data() {
        let axis = Axis::over(3.0, 96.0, true);
        assert_eq!((axis.low, axis.high, axis.step), (0.0, 100.0, 20.0));
        assert_eq!(axis.ticks().count(), 6);
        let flat = Axis::over(5.0, 5.0, true);
        assert!(flat.high > flat.low);
        assert_eq!(Axis::over(f64::INFINITY, f64::NEG_INFINITY, true).high, 1.0, "no data at all");
        assert_eq!([0.07, 1.0, 3.0, 6.0].map(round_step), [0.1, 1.0, 5.0, 10.0]);
    }

    #[test]
    fn a_histogram_holds_every_value_once() {
        let values: Vec<f64> = (0..1000).map(|i| 20.0 + f64::from(i % 100) * 0.2).collect();
        let series = histogram("x", &values).unwrap();
        assert!((series.points.iter().map(|p| p.1).sum::<f64>() - 100.0).abs() < 1e-9);
        assert!((20..60).contains(&series.points.len()), "{}", series.points.len());
        assert_eq!(histogram("x", &[]), None);
        assert_eq!(histogram("x", &[7.0]).map(|s| s.points.len()), Some(1));
    }

    #[test]
    fn names_of_strangers_stay_text() {
        let series = vec![Series { name: "<script>".into(), points: vec![(0.0, 1.0), (1.0, f64::NAN)] }; 2];
        let plot =
            Plot { title: "a & \"b\"".into(), x: "s".into(), y: "ms".into(), mark: Mark::Line, series };
        let html = plot.html();
        assert!(
            !html.contains("<script>") && html.contains("&lt;script&gt;") && !html.contains("NaN"),
            "{html}"
        );
    }

    #[test]
    fn a_day_of_points_is_thinned_and_its_spikes_stay() {
        let mut points: Vec<(f64, f64)> = (0..86_400).map(|i| (f64::from(i), 20.0)).collect();
        points[40_000].1 = 300.0;
        let thin = thinned(&points);
        assert!(thin.len() <= MAX_POINTS && thin.iter().any(|p| p.1 == 300.0));
    }
}
