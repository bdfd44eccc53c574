//! The screen's states as texts: what `draw` paints, compared with the files beside it. `HALLWAY_FIXTURES=write` writes them
//! anew; look at the difference before you keep it.
#![allow(clippy::panic)]
