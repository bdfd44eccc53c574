//! The mouse.

use ratatui::{
    crossterm::event::{KeyCode, MouseButton, MouseEvent, MouseEventKind},
    layout::Position,
};

use super::{begin_line, keys::choose, mute, scroll};
use crate::{
    node::Command,
    tui::{
        draw::{regions, row_at},
        view::{Pane, View},
    },
};

pub(super) fn handle_mouse(view: &mut View, mouse: MouseEvent) -> Option<Command> {
    let at = Position { x: mouse.column, y: mouse.row };
    let regions = regions(view);
    match mouse.kind {
        MouseEventKind::ScrollUp => scroll(view, 3),
        MouseEventKind::ScrollDown => scroll(view, -3),
        MouseEventKind::Down(MouseButton::Left) if regions.own.contains(at) => return Some(mute(view)),
        MouseEventKind::Down(MouseButton::Left) if regions.talk.contains(at) && view.pane != Pane::Talk => {
            let row = row_at(view, &regions, at.y)?;
            view.stale = true;
            return click(view, row);
        }
        MouseEventKind::Down(MouseButton::Left) if regions.people.contains(at) => {
            let row = usize::from(at.y.saturating_sub(regions.people.y)).saturating_add(regions.first_person);
            view.selected = view.people.get(row).map(|person| person.peer).or(view.selected);
        }
        MouseEventKind::Down(MouseButton::Left)
            if regions.draft.contains(at) || (regions.talk.contains(at) && view.pane == Pane::Talk) =>
        {
            begin_line(view);
        }
        _ => return None,
    }
    view.stale = true;
    None
}

/// A row is chosen by the first click, and taken by the next.
fn click(view: &mut View, row: usize) -> Option<Command> {
    let chosen = match &mut view.pane {
        Pane::Devices(devices) => std::mem::replace(&mut devices.at, row),
        Pane::Settings(at) => std::mem::replace(at, row),
        _ => {
            let before = view.selected;
            view.selected = view.people.get(row).map(|person| person.peer);
            if before == view.selected { row } else { usize::MAX }
        }
    };
    if chosen == row { choose(view, KeyCode::Enter)? } else { None }
}
