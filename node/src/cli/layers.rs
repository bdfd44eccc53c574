//! File, environment, command line: three places for one setting, each outweighing the one before.
//!
//! The table of keys (`config`) is laid over clap's own description of the program: a key's variable becomes its
//! option's variable, and what the file says becomes its option's default. So one parser reads all three.

use std::{
    ffi::OsString,
    io::ErrorKind::{NotADirectory, NotFound},
    path::{Path, PathBuf},
};

use clap::{
    Arg, ArgMatches, Command, CommandFactory,
    error::{ContextKind, ContextValue},
    parser::ValueSource,
};

use super::{Cli, Failure};
use crate::config::{self, Entry, Key, Kind, Problem};

/// Commands that nothing of the file is for: they print what is built in, or look at the file itself.
const WITHOUT: [&str; 6] = ["bench", "completions", "config", "ctl", "help", "man"];

/// A file that was read.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Where it is, or would be.
    pub path: Option<PathBuf>,
    /// Whether it is there.
    pub exists: bool,
    /// What stands in it.
    pub entries: Vec<Entry>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
    /// Its text.
    pub text: String,
}

/// The program's description with every key's variable.
pub fn command() -> Command {
    overlay(Cli::command(), &[])
}

/// What was typed, with file and environment beneath it.
pub fn matches(typed: Vec<OsString>) -> Result<ArgMatches, Failure> {
    let first = command().try_get_matches_from(typed.clone()).map_err(|error| blamed(&error, &typed))?;
    if first.subcommand_name().is_none_or(|name| WITHOUT.contains(&name)) {
        return Ok(first);
    }
    let loaded = load(&first)?;
    if let Some(problem) = loaded.problems.first() {
        return Err(refused(&loaded, problem));
    }
    if loaded.entries.is_empty() {
        return Ok(first);
    }
    overlay(Cli::command(), &loaded.entries)
        .try_get_matches_from(typed)
        .map_err(|error| Failure::clap(&error))
}

/// What clap says; where the environment is at fault, it is named.
fn blamed(error: &clap::Error, typed: &[OsString]) -> Failure {
    let mut failure = Failure::clap(error);
    let Some(ContextValue::String(arg)) = error.get(ContextKind::InvalidArg) else { return failure };
    let option = arg.split_whitespace().next().unwrap_or_default();
    let is_typed = typed.iter().any(|word| word.to_string_lossy().split('=').next() == Some(option));
    let names = config::KEYS.iter().filter(|key| option.strip_prefix("--") == Some(key.name));
    let mut set = names.map(Key::variable).filter(|name| !is_typed && std::env::var_os(name).is_some());
    if let Some(variable) = set.next() {
        failure.hint = format!("It comes from {variable} in the environment: change or unset it");
    }
    failure
}

/// Reads the file that these arguments mean; one that is not there and was not named is empty.
pub fn load(matches: &ArgMatches) -> Result<Loaded, Failure> {
    let named = matches.get_one::<PathBuf>("config");
    let Some(path) = config::locate(named.map(PathBuf::as_path), data_dir(matches).as_deref()) else {
        return Ok(Loaded::default());
    };
    let text = match config::read(&path) {
        Ok(text) => text,
        // A data folder that cannot be is told where it is made.
        Err(error) if named.is_none() && matches!(error.kind(), NotFound | NotADirectory) => {
            return Ok(Loaded { path: Some(path), ..Loaded::default() });
        }
        Err(error) => {
            let message = format!("the configuration in {} cannot be read: {error}", path.display());
            return Err(Failure::usage(
                message,
                "`hallway config init` makes one; --config FILE names another.",
            ));
        }
    };
    let plain = Cli::command();
    let (entries, problems) = config::parse(&text, |key, value| check(&plain, key, value));
    Ok(Loaded { path: Some(path), exists: true, entries, problems, text })
}

/// The data folder, where one was named.
pub fn data_dir(matches: &ArgMatches) -> Option<PathBuf> {
    let (_, inner) = matches.subcommand()?;
    inner.try_get_one::<PathBuf>("data_dir").ok().flatten().cloned()
}

/// The first thing that is wrong, as the program's last words.
pub fn refused(loaded: &Loaded, problem: &Problem) -> Failure {
    let path = loaded.path.as_deref().unwrap_or(Path::new(config::CONFIG_FILE));
    let message = format!("{}, line {}: {}", path.display(), problem.line, problem.message);
    Failure::usage(message, &problem.hint)
}

/// What an option says of itself about a value.
fn check(plain: &Command, key: &Key, value: &str) -> Result<(), String> {
    let Some(arg) = option(plain, key) else { return Ok(()) };
    let alone = Command::new("value").no_binary_name(true).arg(arg.clone().global(false));
    let Err(error) = alone.try_get_matches_from([format!("--{}={value}", key.name)]) else { return Ok(()) };
    let known = arg.get_possible_values();
    if !known.is_empty() {
        let known: Vec<_> = known.iter().map(|value| value.get_name().to_owned()).collect();
        return Err(format!("{value:?} is not one of: {}", known.join(", ")));
    }
    let why = std::error::Error::source(&error).map(ToString::to_string);
    Err(format!("{value:?} cannot be used: {}", why.unwrap_or_else(|| "it has the wrong form".into())))
}

/// The option that a key stands for.
pub fn option<'a>(command: &'a Command, key: &Key) -> Option<&'a Arg> {
    let has = |command: &'a Command| command.get_arguments().find(|arg| arg.get_id().as_str() == key.id());
    if key.section.is_empty() {
        has(command).or_else(|| has(command.find_subcommand("join")?))
    } else {
        has(command.find_subcommand(key.section)?)
    }
}

/// What an option names as its default by itself.
pub fn default_of(command: &Command, key: &Key) -> Option<String> {
    let values = option(command, key)?.get_default_values();
    let values: Vec<_> = values.iter().map(|value| value.to_string_lossy().into_owned()).collect();
    (!values.is_empty()).then(|| values.join(" "))
}

/// Where a value came from.
pub fn source(matches: &ArgMatches, id: &str) -> Option<ValueSource> {
    matches.try_contains_id(id).ok().and_then(|_| matches.value_source(id))
}

fn overlay(command: Command, entries: &[Entry]) -> Command {
    let names: Vec<String> = command.get_subcommands().map(|inner| inner.get_name().to_owned()).collect();
    let mut command = command.mut_args(|arg| laid(arg, "", entries));
    for name in names.iter().filter(|name| !WITHOUT.contains(&name.as_str())) {
        let own = config::KEYS.iter().any(|key| key.section == name);
        let section = if own { name.as_str() } else { "" };
        command = command.mut_subcommand(name, |inner| inner.mut_args(|arg| laid(arg, section, entries)));
    }
    command
}

fn laid(arg: Arg, section: &str, entries: &[Entry]) -> Arg {
    let name = arg.get_id().as_str().replace('_', "-");
    let Some(key) = config::find(section, &name) else { return arg };
    let arg = arg.env(key.variable());
    let arg = if key.kind == Kind::List { arg.value_delimiter(' ') } else { arg };
    match entries.iter().find(|entry| entry.key.section == section && entry.key.name == name) {
        Some(entry) if !entry.values.is_empty() => arg.default_values(entry.values.clone()),
        _ => arg,
    }
}
