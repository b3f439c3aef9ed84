//! Settings on the command line: a flag for every one that has one, and the layers below.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, ValueHint};
use mlxr_server::config::{FlagValue, KEYS, Key, Layers, Loaded, Sets, Text};

/// The flags of `mlxr serve` that are settings, as far as they were given.
#[derive(Clone, Debug, Default)]
pub struct SettingArgs(pub Vec<FlagValue>);

impl clap::Args for SettingArgs {
    fn augment_args(mut command: clap::Command) -> clap::Command {
        for key in KEYS {
            for (i, flag) in key.flags.iter().enumerate() {
                let arg = Arg::new(flag.long).long(flag.long).help_heading(heading(key));
                let arg = match flag.short {
                    Some(short) => arg.short(short),
                    None => arg,
                };
                command = command.arg(match flag.sets {
                    Sets::Given(name) => given(arg, key, name),
                    Sets::Always { about, .. } => {
                        let arg = arg.help(about).action(ArgAction::SetTrue);
                        arg.conflicts_with_all(key.flags[..i].iter().map(|other| other.long))
                    }
                });
            }
        }
        command
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for SettingArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut values = Vec::new();
        for key in KEYS {
            for flag in key.flags {
                let texts: Vec<String> = match flag.sets {
                    Sets::Given(_) => matches.get_many(flag.long).into_iter().flatten().cloned().collect(),
                    Sets::Always { text, .. } if matches.get_flag(flag.long) => vec![text.to_owned()],
                    Sets::Always { .. } => Vec::new(),
                };
                if !texts.is_empty() {
                    values.push(FlagValue { key: key.name, long: flag.long, texts });
                }
            }
        }
        Ok(SettingArgs(values))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn given(arg: Arg, key: &'static Key, value_name: &'static str) -> Arg {
    let is_plain = key.default.is_empty() || key.default == "auto";
    let about =
        if is_plain { key.about.to_owned() } else { format!("{} [default: {}]", key.about, key.default) };
    let action = if key.is_list { ArgAction::Append } else { ArgAction::Set };
    let hint = match value_name {
        "PATH" | "FILE" => ValueHint::FilePath,
        "FOLDER" => ValueHint::DirPath,
        "[NAME=]PATH" => ValueHint::AnyPath,
        _ => ValueHint::Other,
    };
    // Checked here for the sake of the message; the value is read with the other layers.
    let check = |text: &str| (key.check)(&[Text { text, base: None }]).map(|_| text.to_owned());
    arg.help(about).value_name(value_name).value_hint(hint).action(action).value_parser(check)
}

fn heading(key: &Key) -> &'static str {
    match key.section() {
        "listen" => "Listeners",
        "models" => "Models",
        "engine" => "Engine",
        "storage" => "Storage",
        "log" => "Log",
        _ => "Limits",
    }
}

/// All layers: the file, the environment, these flags.
pub fn load(file: Option<PathBuf>, flags: Vec<FlagValue>) -> anyhow::Result<Loaded> {
    Ok(layers(file, flags).load()?)
}

pub fn layers(file: Option<PathBuf>, flags: Vec<FlagValue>) -> Layers<'static> {
    let variables = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect();
    Layers { file, env: &|name| std::env::var_os(name), variables, flags }
}
