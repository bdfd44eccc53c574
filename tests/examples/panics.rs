//! Takes the terminal as the screen does and fails in another thread: what is left must be a terminal to work in.
//! A test runs it; see `tests/screen.rs`.
#![allow(clippy::panic, clippy::unwrap_used)]

fn main() {
    hallway::tui::terminal::take(|_| {}).unwrap();
    eprintln!("a scolding of a sound library");
    let _ = std::thread::spawn(|| panic!("the sky is falling")).join();
    std::process::exit(1);
}
