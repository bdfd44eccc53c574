//! Reading the file: what stands in it, and what is wrong with it, line by line.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{CONFIG_FILE, KEYS, Key, Kind, find, nearest};

/// Largest file read.
pub const MAX_CONFIG_BYTES: u64 = 256 * 1024;

/// A key that is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Which.
    pub key: Name,
    /// As an option would be given: one text, or several for a list.
    pub values: Vec<String>,
    /// Where it stands, from 1.
    pub line: usize,
}

/// A key's table and name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name {
    /// See [`Key::section`].
    pub section: &'static str,
    /// See [`Key::name`].
    pub name: &'static str,
}

/// Something wrong in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where, from 1; 0 concerns the file as a whole.
    pub line: usize,
    /// What.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

/// Where the file is: the one named, else in the data folder that was named, else in the system's configuration folder.
/// `None` where the system names no home.
pub fn locate(named: Option<&Path>, data_dir: Option<&Path>) -> Option<PathBuf> {
    match (named, data_dir) {
        (Some(file), _) => Some(file.to_owned()),
        (None, Some(dir)) => Some(dir.join(CONFIG_FILE)),
        (None, None) => {
            directories::ProjectDirs::from("", "", "hallway").map(|dirs| dirs.config_dir().join(CONFIG_FILE))
        }
    }
}

/// The text of the file.
///
/// # Errors
/// What the system says; a file that anyone may write, or that is too long, is refused.
pub fn read(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    let meta = file.metadata()?;
    #[cfg(unix)]
    if std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o002 != 0 {
        let why =
            format!("anyone on this machine may write it; close it with: chmod o-w '{}'", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    if meta.len() > MAX_CONFIG_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has over {MAX_CONFIG_BYTES} bytes"),
        ));
    }
    let mut text = String::new();
    file.take(MAX_CONFIG_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// Reads the file's text. `check` says what is wrong with a value of a key, if anything.
pub fn parse(text: &str, check: impl Fn(&Key, &str) -> Result<(), String>) -> (Vec<Entry>, Vec<Problem>) {
    let mut found = Found { text, check, entries: Vec::new(), problems: Vec::new() };
    match DeTable::parse(text) {
        Ok(table) => found.table("", table.get_ref()),
        Err(error) => {
            let at = error.span().map_or(0, |span| span.start);
            found.problem(at, error.message().lines().collect::<Vec<_>>().join(", "), SYNTAX.to_owned());
        }
    }
    found.problems.sort_by_key(|problem| problem.line);
    (found.entries, found.problems)
}

const SYNTAX: &str = "A line looks like name = \"ana\" or # a comment; texts stand in quotes.";

struct Found<'a, C> {
    text: &'a str,
    check: C,
    entries: Vec<Entry>,
    problems: Vec<Problem>,
}

impl<C: Fn(&Key, &str) -> Result<(), String>> Found<'_, C> {
    fn table(&mut self, section: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let at = name.span().start;
            let name: &str = name.get_ref();
            if let (Some(key), false) = (find(section, name), value.get_ref().is_table()) {
                self.entry(key, value);
            } else if let (true, Some(inner)) = (section.is_empty(), value.get_ref().as_table()) {
                if KEYS.iter().any(|key| key.section == name) {
                    self.table(name, inner);
                } else {
                    let known = KEYS.iter().map(|key| key.section).filter(|section| !section.is_empty());
                    self.unknown(
                        at,
                        &format!("[{name}]"),
                        nearest(name, known).map(|near| format!("[{near}]")),
                    );
                }
            } else {
                let known = KEYS.iter().filter(|key| key.section == section).map(|key| key.name);
                self.unknown(at, name, nearest(name, known).map(str::to_owned));
            }
        }
    }

    fn unknown(&mut self, at: usize, name: &str, near: Option<String>) {
        let hint = match near {
            Some(near) => format!("Did you mean `{near}`?"),
            None => "`hallway config init` writes a file with every key there is.".to_owned(),
        };
        self.problem(at, format!("there is no key `{}`", crate::text::clean_name(name)), hint);
    }

    fn entry(&mut self, key: &'static Key, value: &Spanned<DeValue<'_>>) {
        let at = value.span().start;
        let values = match (key.kind, value.get_ref()) {
            (Kind::Text, DeValue::String(text)) => Some(vec![text.to_string()]),
            (Kind::Number, DeValue::Integer(number)) if number.radix() == 10 => {
                Some(vec![number.to_string()])
            }
            (Kind::Number, DeValue::Float(number)) => Some(vec![number.to_string()]),
            (Kind::List, DeValue::Array(list)) => {
                list.iter().map(|one| one.get_ref().as_str().map(str::to_owned)).collect()
            }
            _ => None,
        };
        let Some(values) = values else {
            let (path, kind) = (key.path(), key.kind.name());
            let found = value.get_ref().type_str();
            return self.problem(
                at,
                format!("`{path}` is {kind}, not a value of type {found}"),
                example(key),
            );
        };
        for one in &values {
            if let Err(why) = (self.check)(key, one) {
                return self.problem(at, format!("`{}`: {why}", key.path()), example(key));
            }
        }
        let key = Name { section: key.section, name: key.name };
        self.entries.push(Entry { key, values, line: self.line(at) });
    }

    fn problem(&mut self, at: usize, message: String, hint: String) {
        self.problems.push(Problem { line: self.line(at), message, hint });
    }

    /// The line, from 1, of a byte.
    fn line(&self, at: usize) -> usize {
        self.text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
    }
}

fn example(key: &Key) -> String {
    format!("Write it as: {} = {}", key.name, key.example)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<(usize, String, String)> {
        let (_, problems) = parse(text, |_, value| if value == "bad" { Err("no".into()) } else { Ok(()) });
        problems.into_iter().map(|p| (p.line, p.message, p.hint)).collect()
    }

    #[test]
    fn keys_are_read_with_their_lines_and_lists_in_order() {
        let text = "# hello\nname = \"ana\"\nat = [\n  \"one\",\n  \"two\",\n]\nmax-rate = 128\n[rendezvous]\nlisten = []\n";
        let (entries, problems) = parse(text, |_, _| Ok(()));
        assert!(problems.is_empty(), "{problems:?}");
        let read: Vec<_> = entries.iter().map(|e| (e.line, e.key.name, e.values.join(" "))).collect();
        let wanted = [(2, "name", "ana"), (3, "at", "one two"), (7, "max-rate", "128"), (9, "listen", "")];
        let mut read = read;
        read.sort();
        assert_eq!(read, wanted.map(|(line, name, value)| (line, name, value.to_owned())));
        assert_eq!(entries.iter().find(|e| e.key.name == "listen").unwrap().key.section, "rendezvous");
    }

    #[test]
    fn a_slip_of_the_pen_is_named_with_its_line_and_what_was_meant() {
        let all = problems("name = \"ana\"\n\nmax-rte = 3\n");
        assert_eq!((all[0].0, all[0].2.as_str()), (3, "Did you mean `max-rate`?"));
        assert_eq!(problems("max_rate = 3")[0].2, "Did you mean `max-rate`?");
        assert!(problems("colour = 3")[0].2.contains("config init"));
        assert_eq!(problems("[rendevous]\nlisten = []")[0].2, "Did you mean `[rendezvous]`?");
        assert!(problems("[rendezvous]\nname = \"x\"")[0].1.contains("no key `name`"), "of another table");
    }

    #[test]
    fn a_value_of_another_type_and_one_that_the_option_refuses_are_shown_an_example() {
        for (text, line) in
            [("name = 3", 1), ("\nmax-rate = \"fast\"", 2), ("at = \"one\"", 1), ("at = [1]", 1)]
        {
            let all = problems(text);
            assert_eq!((all.len(), all[0].0), (1, line), "{text}");
            assert!(all[0].2.starts_with("Write it as: "), "{all:?}");
        }
        assert!(problems("name = \"bad\"")[0].1.contains("`name`: no"));
        assert!(problems("max-rate = 0x10")[0].1.contains("number"));
    }

    #[test]
    fn every_problem_of_a_file_is_told_at_once_and_bad_syntax_with_its_line() {
        assert_eq!(problems("a = 1\nname = \"bad\"\nb = 2\n").len(), 3);
        let all = problems("name = \"ana\"\nmax-rate =\n");
        assert_eq!((all.len(), all[0].0), (1, 2), "{all:?}");
        assert!(problems("name = \"a\"\nname = \"b\"\n")[0].1.contains("duplicate"));
    }
}
