//! Which plots tell a measurement's story.

use super::lag::link_loss_pct;
use super::live::LiveReport;
use super::log::{STAGES, Second};
use super::page::Page;
use super::plot::{Mark, Plot, Series, histogram, short};
use super::report::{BenchReport, CallReport, DirectionReport, figures, notes, number, title};
use super::signal::median;

/// Calls over links: delay as it was measured, and what the nodes said meanwhile.
pub fn calls(report: &BenchReport) -> Page {
    let mut page = Page::new("Mouth to ear", &report.machine, &report.command);
    if report.calls.iter().any(|call| link_loss_pct(call).is_some()) {
        by_loss(&mut page, report);
    }
    for (link, calls) in report.links() {
        page.heading(&title(link, &calls), "");
        let (mut head, rows) = figures(&calls);
        head.insert(0, String::new());
        let rows: Vec<Vec<String>> =
            rows.into_iter().map(|(label, cells)| [vec![label], cells].concat()).collect();
        page.table(&head, &rows);
        notes(&calls).iter().for_each(|note| page.note(note));
        page.plots(&of_link(&calls));
    }
    page
}

fn of_link(calls: &[&CallReport]) -> Vec<Plot> {
    let named = |call: &CallReport, direction: &DirectionReport| match calls.len() {
        1 => direction.name.clone(),
        _ => format!("{} ({})", direction.name, call.rep + 1),
    };
    let directions = || calls.iter().flat_map(|call| call.directions.iter().map(move |d| (*call, d)));
    let over_time = directions()
        .filter_map(|(call, d)| {
            let windows = &d.signal.as_ref()?.track;
            let points = windows.iter().map(|w| (w.at_ms / 1e3, w.lag_ms)).collect();
            Some(Series { name: named(call, d), points })
        })
        .collect();
    let lags = |name: &str| -> Vec<f64> {
        let reports = directions().filter(|(_, d)| d.name == name).filter_map(|(_, d)| d.signal.as_ref());
        reports.flat_map(|s| s.track.iter().map(|w| w.lag_ms)).collect()
    };
    let mut names: Vec<&str> = directions().map(|(_, d)| d.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let spread = names.iter().filter_map(|name| histogram(name, &lags(name))).collect();
    let mut plots = vec![
        Plot {
            title: "Delay over time, from the signal".into(),
            x: "seconds of speech".into(),
            y: "mouth to ear, ms".into(),
            mark: Mark::Line,
            series: over_time,
        },
        Plot {
            title: "How the delay is spread".into(),
            x: "mouth to ear, ms".into(),
            y: "share of windows, %".into(),
            mark: Mark::Bars,
            series: spread,
        },
    ];
    if let Some((_, first)) = directions().next() {
        plots.extend(of_seconds(&first.timeline, &first.name));
    }
    plots
}

/// What a listener's node said of a talker, second by second.
fn of_seconds(timeline: &[Second], name: &str) -> Vec<Plot> {
    let from = timeline.first().map_or(0, |second| second.at_ns);
    let series = |key: &str, label: &str| Series {
        name: label.to_owned(),
        points: timeline
            .iter()
            .filter_map(|s| Some((s.at_ns.saturating_sub(from) as f64 * 1e-9, *s.figures.get(key)?)))
            .collect(),
    };
    let plot = |what: &str, unit: &str, series: Vec<Series>| Plot {
        title: format!("{what}, {name}"),
        x: "seconds since the first figures".into(),
        y: unit.into(),
        mark: Mark::Line,
        series: series.into_iter().filter(|s| !s.points.is_empty()).collect(),
    };
    let stages = STAGES.iter().map(|stage| series(stage, &stage.replace('_', " "))).collect();
    vec![
        plot("Where the delay is", "ms", stages),
        plot(
            "Lost and made up",
            "%",
            vec![
                series("loss_pct", "lost on the network"),
                series("recovered_pct", "recovered"),
                series("concealed_pct", "concealed"),
                series("late_pct", "late"),
            ],
        ),
        plot(
            "Kept in hand",
            "ms",
            vec![
                series("target_delay_ms", "target"),
                series("buffer_ms", "buffer"),
                series("jitter_ms", "jitter"),
            ],
        ),
        plot("On the wire", "kbit/s", vec![series("send_kbps", "sent"), series("recv_kbps", "received")]),
    ]
}

/// One figure of a direction and what it is called.
type Quality = (&'static str, &'static str, fn(&DirectionReport) -> Option<f64>);

const QUALITIES: [Quality; 6] = [
    ("Delay per loss rate", "mouth to ear, ms", |d| d.signal.as_ref().map(|s| s.lag_ms.p50)),
    ("Speech damaged per loss rate", "% of frames", |d| d.signal.as_ref().map(|s| s.damaged_pct)),
    ("Speech silent per loss rate", "% of frames", |d| d.signal.as_ref().map(|s| s.silent_pct)),
    ("Spectrum off per loss rate", "dB", |d| d.signal.as_ref().map(|s| s.distance_db)),
    ("Concealed per loss rate", "% of played time", |d| d.node.concealed_pct),
    ("On the wire per loss rate", "kbit/s", |d| d.wire_kbps),
];

fn by_loss(page: &mut Page, report: &BenchReport) {
    let mut rates: Vec<f64> = report.calls.iter().filter_map(link_loss_pct).collect();
    rates.sort_by(f64::total_cmp);
    rates.dedup();
    let at = |rate: f64, figure: fn(&DirectionReport) -> Option<f64>| {
        let calls = report.calls.iter().filter(move |call| link_loss_pct(call) == Some(rate));
        let values: Vec<f64> = calls.flat_map(|call| call.directions.iter().filter_map(figure)).collect();
        median(&values)
    };
    page.heading(
        "Quality per loss rate",
        "Medians over calls and directions; the rates are what the links were asked to lose.",
    );
    let head: Vec<String> =
        [String::new()].into_iter().chain(rates.iter().map(|rate| format!("{} %", short(*rate)))).collect();
    let rows: Vec<Vec<String>> = QUALITIES
        .iter()
        .map(|(title, unit, figure)| {
            let cells = rates.iter().map(|rate| at(*rate, *figure).map_or("-".into(), number));
            let what = title.trim_end_matches(" per loss rate");
            [format!("{what}, {unit}")].into_iter().chain(cells).collect()
        })
        .collect();
    page.table(&head, &rows);
    let plots: Vec<Plot> = QUALITIES
        .iter()
        .map(|(title, unit, figure)| Plot {
            title: (*title).into(),
            x: "lost on the link, %".into(),
            y: (*unit).into(),
            mark: Mark::Marked,
            series: vec![Series {
                name: (*title).into(),
                points: rates.iter().filter_map(|rate| Some((*rate, at(*rate, *figure)?))).collect(),
            }],
        })
        .collect();
    page.plots(&plots);
}

/// A live room.
pub fn live(report: &LiveReport) -> Page {
    let mut page = Page::new("Lag in a room", &report.machine, &report.command);
    let head: Vec<String> = super::live::COLUMNS.iter().map(|c| (*c).to_owned()).collect();
    let rows: Vec<Vec<String>> = report.peers.iter().map(super::live::PeerLag::cells).collect();
    page.table(&head, &rows);
    let over_time = |key: &str| {
        let peer_series = |peer: &super::live::PeerLag| {
            let from = peer.timeline.first().map_or(0, |second| second.at_ns);
            let seconds = |s: &Second| s.at_ns.saturating_sub(from) as f64 * 1e-9;
            let points = peer.timeline.iter().filter_map(|s| Some((seconds(s), *s.figures.get(key)?)));
            Series { name: peer.name.clone(), points: points.collect() }
        };
        report.peers.iter().map(peer_series).collect::<Vec<_>>()
    };
    page.plots(&[
        Plot {
            title: "Lag over time".into(),
            x: "seconds".into(),
            y: "mouth to ear, ms".into(),
            mark: Mark::Line,
            series: over_time("mouth_to_ear_ms"),
        },
        Plot {
            title: "Round trip".into(),
            x: "seconds".into(),
            y: "ms".into(),
            mark: Mark::Line,
            series: over_time("rtt_ms"),
        },
    ]);
    for peer in &report.peers {
        page.heading(&peer.name, &peer.peer_id);
        page.plots(&of_seconds(&peer.timeline, &peer.name));
    }
    page
}
