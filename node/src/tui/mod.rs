//! The screen: who is here, how they fare, what is said, and every control, in a terminal of any size.
//!
//! 1. [`run`](screen::run) hears from the keyboard, the node and the clock, on a thread of its own.
//! 2. [`update`] changes the [`View`] and says which command follows, if any.
//! 3. [`draw`] paints the view into a buffer and does nothing else, so that every state is a text in a test.
//! 4. [`terminal`] takes the terminal over and gives it back, whatever happens.

pub mod draw;
pub mod screen;
pub mod terminal;
pub mod theme;
pub mod update;
pub mod view;

pub use draw::draw;
pub use screen::{Screen, ScreenHandle};
pub use theme::Theme;
pub use update::{Input, update};
pub use view::View;

#[cfg(test)]
mod tests;
