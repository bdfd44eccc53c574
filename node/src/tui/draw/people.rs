//! The people: one row each, in columns, and the stages of the selected one's delay.

use ratatui::{buffer::Buffer, layout::Rect, style::Style};

use super::{Pen, Regions};
use crate::{
    events::PeerState,
    trust::Standing,
    tui::view::{Person, View, path_word},
};

/// Widths of the columns at this width of the terminal; 0: not shown.
#[derive(Debug, Clone, Copy, Default)]
struct Columns {
    name: u16,
    key: u16,
    meter: u16,
    path: u16,
    delay: u16,
    plot: u16,
    loss: u16,
    volume: u16,
}

fn columns(width: u16) -> Columns {
    let mut columns = Columns { name: 10, delay: 8, ..Columns::default() };
    // Marker, safety mark, and a space at the end.
    let mut left = width.saturating_sub(5 + columns.name + columns.delay);
    let mut take = |want: u16, least: u16| {
        let got = if left >= least { want.min(left) } else { 0 };
        left -= got;
        got
    };
    columns.meter = take(10, 5);
    columns.path = take(11, 9);
    columns.key = take(8, 8);
    columns.volume = take(7, 7);
    columns.plot = take(13, 10);
    columns.loss = take(7, 7);
    columns.name += take(14, 1);
    columns.meter += take(14, 1);
    columns.plot += take(60, 1);
    columns.name += take(16, 1);
    columns
}

pub(super) fn draw(view: &View, regions: &Regions, buffer: &mut Buffer) {
    let area = regions.people;
    if view.people.is_empty() {
        let text = match view.joined {
            true => "nobody else is here yet: who joins the same room appears by itself",
            false => "joining; the sound and the network come up",
        };
        Pen::new(buffer, area).write(&format!("   {text}"), view.theme.dim);
    }
    let columns = columns(area.width);
    let rows = view.people.iter().skip(regions.first_person).take(area.height.into());
    for (at, person) in rows.enumerate() {
        row(view, person, columns, Rect { y: area.y + at as u16, height: 1, ..area }, buffer);
    }
    if regions.stages.height > 0
        && let Some(person) = view.selected()
    {
        stages(view, person, regions.stages, buffer);
    }
}

fn row(view: &View, person: &Person, columns: Columns, area: Rect, buffer: &mut Buffer) {
    let (theme, signs) = (&view.theme, &view.theme.signs);
    let mut pen = Pen::new(buffer, area);
    let selected = view.selected == Some(person.peer);
    pen.column(if selected { signs.selected } else { "" }, 2, "", theme.accent);
    let here = matches!(person.state, PeerState::Connected | PeerState::PathChanged);
    let name = match (here, person.is_speaking()) {
        _ if person.trust == Some(Standing::OtherKey) => theme.bad,
        (true, true) => theme.good.patch(theme.name),
        (true, false) => theme.name,
        _ => theme.dim,
    };
    pen.column(&person.label, columns.name.saturating_sub(1), signs.cut, name);
    pen.write(" ", theme.dim);
    let (mark, style) = mark(view, person);
    pen.column(mark, 2, "", style);
    if columns.key > 0 {
        pen.column(&crate::events::short(&person.peer), columns.key, "", theme.dim);
    }
    if columns.meter > 0 {
        pen.meter(view, person.level_dbov, columns.meter - 2, here && !person.hearing.muted, None);
        pen.write("  ", theme.dim);
    }
    if columns.path > 0 {
        let (word, style) = standing(view, person);
        pen.column(&word, columns.path - 1, signs.cut, style);
        pen.write(" ", theme.dim);
    }
    let delay = person.stats.as_ref().filter(|_| here).and_then(|stats| stats.mouth_to_ear_ms);
    let text = delay.map_or(signs.none.to_owned(), |ms| format!("{ms:.0} ms"));
    pen.number(&text, columns.delay - 1, delay.map_or(theme.dim, |ms| how_quick(view, ms)));
    pen.write(" ", theme.dim);
    if columns.plot > 0 {
        plot(view, person, columns.plot - 1, &mut pen);
        pen.write(" ", theme.dim);
    }
    if columns.loss > 0 {
        let loss = person.stats.as_ref().filter(|_| here).and_then(|stats| stats.loss_pct);
        let (text, style) = match loss {
            Some(loss) if loss >= 0.05 => {
                (format!("{loss:.1} %"), if loss < 3.0 { theme.dim } else { theme.fair })
            }
            _ => (String::new(), theme.dim),
        };
        pen.number(&text, columns.loss - 1, style);
        pen.write(" ", theme.dim);
    }
    if columns.volume > 0 {
        let (text, style) = match person.hearing.muted {
            true => ("muted".to_owned(), theme.bad),
            false if person.hearing.volume_db == 0 => (String::new(), theme.dim),
            false => (format!("{:+} dB", person.hearing.volume_db), theme.fair),
        };
        pen.number(&text, columns.volume - 1, style);
    }
}

/// What is known of somebody's key, as a sign.
pub(super) fn mark(view: &View, person: &Person) -> (&'static str, Style) {
    let (theme, signs) = (&view.theme, &view.theme.signs);
    match person.trust {
        Some(Standing::Verified) => (signs.verified, theme.good),
        Some(Standing::Known) => (signs.known, theme.dim),
        Some(Standing::New) => (signs.new, theme.fair),
        Some(Standing::OtherKey) => (signs.trouble, theme.bad),
        None => ("", theme.dim),
    }
}

/// Where somebody stands, in a word.
fn standing(view: &View, person: &Person) -> (String, Style) {
    let theme = &view.theme;
    match person.state {
        PeerState::Discovered => ("found".into(), theme.dim),
        PeerState::Connecting => ("calling".into(), theme.dim),
        PeerState::Reconnecting => ("lost".into(), theme.bad),
        PeerState::Connected | PeerState::PathChanged | PeerState::Left => match person.path {
            Some(path) => {
                let word = path_word(path);
                let style = if word == "direct" { theme.good } else { theme.fair };
                (word, style)
            }
            None => ("no path".into(), theme.bad),
        },
    }
}

/// Under 100 ms a conversation feels like one room, over 200 people talk at once.
fn how_quick(view: &View, ms: f64) -> Style {
    match ms {
        ms if ms < 100.0 => view.theme.good,
        ms if ms < 200.0 => view.theme.fair,
        _ => view.theme.bad,
    }
}

/// The last seconds of delay, newest at the right, from zero to the highest shown.
fn plot(view: &View, person: &Person, width: u16, pen: &mut Pen<'_>) {
    let signs = &view.theme.signs;
    let shown = usize::from(width);
    let skip = person.delays.len().saturating_sub(shown);
    let recent: Vec<Option<f32>> = person.delays.iter().skip(skip).copied().collect();
    // A call of 13 ms that moves by 1 is calm: the scale does not zoom in further than 40 ms.
    let top = recent.iter().flatten().fold(40.0f32, |top, ms| top.max(*ms));
    for _ in recent.len()..shown {
        pen.write(signs.gap, view.theme.dim);
    }
    for ms in recent {
        match ms {
            Some(ms) => {
                let last = signs.plot.len() - 1;
                let step = (ms.max(0.0) / top * last as f32).round() as usize;
                pen.write(
                    signs.plot.get(step.min(last)).copied().unwrap_or_default(),
                    how_quick(view, ms.into()),
                );
            }
            None => pen.write(signs.gap, view.theme.dim),
        }
    }
}

/// Why the voice takes the path that it takes, and when a better one is tried.
fn why_this_path(view: &View, person: &Person, pen: &mut Pen<'_>) {
    let (word, style) = standing(view, person);
    pen.write(&word, style);
    let said = [person.outlook.path_why.map(str::to_owned), person.outlook.next_in_words()];
    for (said, before) in
        said.into_iter().zip([": ", "; "]).filter_map(|(said, before)| Some((said?, before)))
    {
        pen.write(before, view.theme.dim);
        pen.write(&said, Style::new());
    }
}

fn stages(view: &View, person: &Person, area: Rect, buffer: &mut Buffer) {
    let theme = &view.theme;
    let title = format!("{}'s voice to your ear", person.label);
    super::rule(view, Rect { height: 1, ..area }, &title, buffer);
    let line =
        |at: u16| Rect { y: area.y + at, height: 1, x: area.x + 2, width: area.width.saturating_sub(3) };
    if area.height > 4 {
        why_this_path(view, person, &mut Pen::new(buffer, line(4)));
    }
    let figures = person.stats.as_ref();
    let Some((stats, s)) = figures.and_then(|stats| Some((stats, stats.mouth_to_ear_stages_ms?))) else {
        return Pen::new(buffer, line(1)).write("no figures yet: the clocks are not compared", theme.dim);
    };
    let wide = area.width >= 104;
    let stages = [
        ("capture", "mic", s.capture, theme.good),
        ("encode", "enc", s.encode, theme.accent),
        ("send", "send", s.send, theme.dim),
        ("network", "net", s.network, theme.fair),
        ("buffer", "buf", s.jitter_buffer, theme.own),
        ("decode", "dec", s.decode, theme.dim),
        ("playback", "ear", s.playback, theme.good),
    ];
    let total = s.total().max(0.001);
    let mut pen = Pen::new(buffer, line(1));
    let cells = f32::from(pen.left());
    let (mut sum, mut drawn) = (0.0, 0);
    for (at, (_, _, ms, style)) in stages.iter().enumerate() {
        sum += ms.max(0.0);
        let end = (sum / total * cells).round() as u16;
        // Without colours the stages still end somewhere.
        let sign = view.theme.signs.stages.get(at % 2).copied().unwrap_or_default();
        for _ in drawn..end {
            pen.write(sign, *style);
        }
        drawn = drawn.max(end);
    }
    let mut pen = Pen::new(buffer, line(2));
    for (long, short, ms, style) in stages {
        pen.write(if wide { long } else { short }, style);
        pen.write(&format!(" {:.1}  ", ms + 0.0), Style::new());
    }
    pen.write("= ", theme.dim);
    pen.write(&format!("{:.1} ms", s.total()), how_quick(view, s.total().into()));
    let mut pen = Pen::new(buffer, line(3));
    let figure = |value: Option<f64>, unit: &str| {
        value.map_or(theme.signs.none.to_owned(), |v| format!("{v:.1}{unit}"))
    };
    for (what, value) in [
        ("round trip", figure(stats.rtt_ms, "")),
        ("jitter", figure(stats.jitter_ms, "")),
        ("lost", figure(stats.loss_pct, " %")),
        ("made up", figure(stats.concealed_pct, " %")),
        ("recovered", figure(stats.recovered_pct, " %")),
        ("late", figure(stats.late_pct, " %")),
        ("frame", figure(stats.frame_ms, "")),
        ("down", figure(stats.recv_kbps, " kb/s")),
        ("up", figure(stats.send_kbps, " kb/s")),
        ("clock", figure(stats.drift_ppm, " ppm")),
    ] {
        if usize::from(pen.left()) < what.len() + value.len() + 2 {
            break;
        }
        pen.write(what, theme.dim);
        pen.write(&format!(" {value}  "), Style::new());
    }
}
