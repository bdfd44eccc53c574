//! `hallway config`: write a commented file, show what holds and why, check.

use std::{
    fs::{DirBuilder, OpenOptions},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    process::ExitCode,
};

use clap::{ArgMatches, Args, CommandFactory, Subcommand, parser::ValueSource};
use serde_json::json;

use super::{Cli, DataDir, Failure, info::say, layers};
use crate::config::{self, KEYS, Key, Kind};

#[derive(Args, Debug)]
pub struct ConfigArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Write a file with every key, explained and commented out
    Init {
        #[command(flatten)]
        data_dir: DataDir,
    },
    /// Print what holds now, and whether file, environment or nobody said so
    Show {
        #[command(flatten)]
        data_dir: DataDir,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Read the file and say everything that is wrong with it
    Check {
        #[command(flatten)]
        data_dir: DataDir,
    },
}

/// Runs one of them.
pub fn run(args: &ConfigArgs, matches: &ArgMatches) -> Result<ExitCode, Failure> {
    // The data folder stands one command deeper than the others have it.
    let inner = matches.subcommand().map_or(matches, |(_, inner)| inner);
    match &args.what {
        What::Init { .. } => init(inner),
        What::Show { json, .. } => show(inner, *json),
        What::Check { .. } => check(inner),
    }
}

fn init(matches: &ArgMatches) -> Result<ExitCode, Failure> {
    let named = matches.get_one::<std::path::PathBuf>("config").map(std::path::PathBuf::as_path);
    let path = config::locate(named, layers::data_dir(matches).as_deref())
        .ok_or_else(|| Failure::usage("no home folder is known here", "Name a file with --config."))?;
    let failed = |error: std::io::Error| {
        let hint = match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                "It is left as it is. Move it away, or name another with --config."
            }
            _ => "Name another with --config.",
        };
        Failure::other(format!("cannot write {}: {error}", path.display()), hint)
    };
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
    let plain = Cli::command();
    let text = config::commented_file(|key| layers::default_of(&plain, key));
    file.write_all(text.as_bytes()).map_err(failed)?;
    say(format_args!("{}\n", path.display()))
}

fn show(matches: &ArgMatches, as_json: bool) -> Result<ExitCode, Failure> {
    let loaded = layers::load(matches)?;
    let mut text = match &loaded.path {
        Some(path) if loaded.exists => format!("# {}\n", path.display()),
        Some(path) => format!("# {} (not there)\n", path.display()),
        None => String::new(),
    };
    let mut object = serde_json::Map::new();
    let mut section = "";
    for key in KEYS {
        if key.section != section {
            section = key.section;
            text += &format!("\n[{section}]\n");
        }
        let (values, from) = held(key, &loaded);
        if as_json {
            object.insert(key.path(), json!({ "value": as_value(key, &values), "from": from }));
        } else if values.is_empty() {
            text += &format!("# {}: {}\n", key.name, key.unset);
        } else {
            text += &format!("{} = {}  # {from}\n", key.name, as_value(key, &values));
        }
    }
    if as_json {
        say(format_args!("{}\n", serde_json::Value::Object(object)))?;
    } else {
        say(format_args!("{text}"))?;
    }
    loaded.problems.first().map_or(Ok(ExitCode::SUCCESS), |problem| Err(layers::refused(&loaded, problem)))
}

/// What holds for a key, and who says so.
fn held(key: &Key, loaded: &layers::Loaded) -> (Vec<String>, String) {
    let command =
        if key.section.is_empty() { vec!["hallway", "join", "x"] } else { vec!["hallway", key.section] };
    let variable = key.variable();
    if let Ok(matches) = layers::command().try_get_matches_from(command)
        && let Some((_, inner)) = matches.subcommand()
        && layers::source(inner, &key.id()) == Some(ValueSource::EnvVariable)
    {
        let values = inner.get_raw(&key.id()).into_iter().flatten();
        return (values.map(|value| value.to_string_lossy().into_owned()).collect(), variable);
    }
    if let Some(entry) =
        loaded.entries.iter().find(|e| e.key.section == key.section && e.key.name == key.name)
    {
        return (entry.values.clone(), format!("line {}", entry.line));
    }
    let default = layers::default_of(&Cli::command(), key);
    (default.into_iter().collect(), "default".to_owned())
}

/// JSON and TOML write texts, numbers and lists of texts alike.
fn as_value(key: &Key, values: &[String]) -> serde_json::Value {
    match (key.kind, values.first()) {
        (Kind::List, _) => json!(values),
        (_, None) => serde_json::Value::Null,
        (Kind::Number, Some(number)) => serde_json::from_str(number).unwrap_or_else(|_| json!(number)),
        (Kind::Text, Some(text)) => json!(text),
    }
}

fn check(matches: &ArgMatches) -> Result<ExitCode, Failure> {
    let loaded = layers::load(matches)?;
    let Some(path) = loaded.path.as_ref().filter(|_| loaded.exists) else {
        return Err(Failure::usage("there is no configuration file", "`hallway config init` makes one."));
    };
    let mut text = String::new();
    for problem in &loaded.problems {
        text += &format!("{}:{}: {}\n", path.display(), problem.line, problem.message);
        if let Some(line) = problem.line.checked_sub(1).and_then(|at| loaded.text.lines().nth(at)) {
            text += &format!("    {}\n", crate::text::clean_line(line));
        }
        text += &format!("    {}\n", problem.hint);
    }
    match loaded.problems.len() {
        0 => say(format_args!("{}: {} set, nothing wrong\n", path.display(), keys(loaded.entries.len()))),
        wrong => {
            say(format_args!("{text}"))?;
            let problem = &loaded.problems[0];
            let mut failure = layers::refused(&loaded, problem);
            if wrong > 1 {
                failure.message += &format!(" (and {} more)", wrong - 1);
            }
            Err(failure)
        }
    }
}

fn keys(count: usize) -> String {
    if count == 1 { "1 key".into() } else { format!("{count} keys") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_an_option_and_says_what_holds_without_it() {
        let plain = Cli::command();
        for key in KEYS {
            assert!(layers::option(&plain, key).is_some(), "{} is no option", key.path());
            let default = layers::default_of(&plain, key);
            assert_eq!(default.is_some(), key.unset.is_empty(), "{}: one default, said once", key.path());
            assert!(key.about.iter().all(|line| line.len() <= 110), "{}", key.path());
        }
    }

    #[test]
    fn the_commented_file_reads_back_empty_and_with_every_comment_taken_away_whole() {
        let plain = Cli::command();
        let text = config::commented_file(|key| layers::default_of(&plain, key));
        let (entries, problems) = config::parse(&text, |_, _| Ok(()));
        assert!(entries.is_empty() && problems.is_empty(), "{problems:?}\n{text}");
        let open: String = text
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let (entries, problems) = config::parse(&open, |_, _| Ok(()));
        assert_eq!((entries.len(), problems), (KEYS.len(), vec![]), "{open}");
    }

    #[test]
    fn the_manual_s_page_is_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
        let plain = Cli::command();
        let table = config::page(|key| layers::default_of(&plain, key));
        let document = std::fs::read_to_string(path).unwrap();
        let wanted = config::replace(&document, &table).expect("the marks of the table");
        if std::env::var_os("HALLWAY_WRITE_DOCS").is_some() {
            return std::fs::write(path, &wanted).unwrap();
        }
        assert!(
            document == wanted,
            "docs/configuration.md is behind: run this test with HALLWAY_WRITE_DOCS=1"
        );
    }
}
