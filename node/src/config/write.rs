//! What is made from the table of keys: the commented file, and the page of the manual.

use std::fmt::Write as _;

use super::{KEYS, Key};

const MARKS: [&str; 2] =
    ["<!-- keys: made from the table in node/src/config, do not edit by hand -->", "<!-- end of keys -->"];

/// A file with every key, each commented out at its default. `default_of` gives what an option itself names.
pub fn commented_file(default_of: impl Fn(&Key) -> Option<String>) -> String {
    let mut out = String::from(
        "# hallway's configuration. Every key is the option of the same name: flags outweigh environment variables,\n\
         # which outweigh this file. `hallway config check` reads it, `hallway config show` tells what holds and why.\n",
    );
    let mut section = "";
    for key in KEYS {
        if key.section != section {
            section = key.section;
            let _ = write!(out, "\n[{section}]\n");
        }
        out.push('\n');
        for line in key.about {
            let _ = writeln!(out, "# {line}");
        }
        let default = default_of(key);
        let held = default.as_deref().map_or(key.unset.to_owned(), |default| format!("{default:?}"));
        let _ = writeln!(out, "# Default: {}. Variable: {}.", held.trim_matches('"'), key.variable());
        let _ = writeln!(out, "#{} = {}", key.name, key.example);
    }
    out
}

/// The table of the manual's page, between two marks.
pub fn page(default_of: impl Fn(&Key) -> Option<String>) -> String {
    let mut out =
        format!("{}\n\n| key | variable | what it does | default |\n| --- | --- | --- | --- |\n", MARKS[0]);
    for key in KEYS {
        let default = default_of(key).map_or(key.unset.to_owned(), |default| format!("`{default}`"));
        let about = key.about.join(" ").replace('|', "\\|");
        let _ = writeln!(out, "| `{}` | `{}` | {about} | {default} |", key.path(), key.variable());
    }
    let _ = write!(out, "\n{}", MARKS[1]);
    out
}

/// The document with what stands between the marks replaced by `table`; `None` where it has no marks.
pub fn replace(document: &str, table: &str) -> Option<String> {
    let (before, rest) = document.split_once(MARKS[0])?;
    let (_, after) = rest.split_once(MARKS[1])?;
    Some(format!("{before}{table}{after}"))
}
