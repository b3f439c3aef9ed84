//! The chat on a terminal: read an input, do what it says, until the person leaves.

mod command;
mod editor;
mod images;

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser};
use mlxr_engine::{Event, Request};
use mlxr_text::ChatTemplate;
use serde_json::{Map, Value};

use self::command::{COMMANDS, Input};
use self::editor::{Line, LineEditor, history_path};
pub use self::images::ChatImages;
use crate::commands::run::request;
use crate::conversation::Conversation;
use crate::failure::Report;
use crate::generate::Generator;
use crate::model_source::ModelSource;
use crate::output::{self, DIM, HEADING, Section};
use crate::sampling::SamplingArgs;

/// A chat in progress.
pub struct Chat {
    pub source: ModelSource,
    pub generator: Generator,
    pub template: ChatTemplate,
    pub generation: Map<String, Value>,
    pub images: ChatImages,
    pub conversation: Conversation,
    pub sampling: SamplingArgs,
    pub verbose: bool,
}

const PROMPT: &str = ">>> ";

/// Runs the chat until it is left.
pub fn run(mut chat: Chat) -> anyhow::Result<ExitCode> {
    let wants_colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let mut editor = LineEditor::new(history_path(), wants_colour && std::io::stdout().is_terminal())?;
    say(&format!("chat with {}; /help lists the commands, Ctrl-D leaves", chat.source))?;
    let mut was_interrupted = false;
    loop {
        let line = editor.read(PROMPT)?;
        let is_second = std::mem::replace(&mut was_interrupted, line == Line::Interrupted);
        match line {
            Line::Ended => return Ok(ExitCode::SUCCESS),
            Line::Interrupted if is_second => return Ok(ExitCode::SUCCESS),
            Line::Interrupted => say("Ctrl-C again, Ctrl-D or /exit leaves")?,
            Line::Text(text) => match Input::parse(&text) {
                Input::Exit => return Ok(ExitCode::SUCCESS),
                input => chat.act(input)?,
            },
        }
    }
}

/// A line of ours, set apart from what the model says.
fn say(text: &str) -> anyhow::Result<()> {
    writeln!(output::styled(), "{DIM}{text}{DIM:#}")?;
    Ok(())
}

impl Chat {
    /// Does what an input says. What goes wrong is told and the chat goes on; only a lost terminal ends it.
    fn act(&mut self, input: Input) -> anyhow::Result<()> {
        let done = match input {
            Input::Empty | Input::Exit => Ok(()),
            Input::Message(text) => self.message(text),
            Input::Help => help(),
            Input::Set(words) => self.set(&words),
            Input::Show => self.show(),
            Input::System(text) => self.set_system(text),
            Input::Image(path) => self.images.add(path).and_then(|said| say(&said)),
            Input::Clear => {
                self.conversation.clear();
                self.images.clear();
                say("the conversation is forgotten")
            }
            Input::Regenerate => self.regenerate(),
            Input::Undo => match self.conversation.undo() {
                true => say("the last message is taken back"),
                false => say("there is no message to take back"),
            },
            Input::Save(path) => self.save(&path),
            Input::Load(path) => self.load(&path),
            Input::Wrong(why) => say(&why),
        };
        match done {
            Err(error) if !crate::failure::is_broken_pipe(&error) => {
                Report::new(&error).print(false);
                Ok(())
            }
            done => done,
        }
    }

    fn message(&mut self, text: String) -> anyhow::Result<()> {
        self.conversation.push_user(text, std::mem::take(&mut self.images.pending));
        let answered = self.answer();
        if answered.is_err() {
            // The message could not be answered: it must not stand in the way of the next one.
            self.conversation.undo();
        }
        answered
    }

    fn regenerate(&mut self) -> anyhow::Result<()> {
        if !self.conversation.drop_answer() {
            return say("there is no message to answer");
        }
        self.answer()
    }

    /// Generates the answer to the last message, and keeps what was said even when Ctrl-C ended it.
    fn answer(&mut self) -> anyhow::Result<()> {
        let prompt = self.conversation.render(&self.template, self.images.placeholder())?;
        let images = self.conversation.images().map(|path| self.images.read(path));
        let images = images.collect::<anyhow::Result<_>>()?;
        let request = Request { images, ..request(prompt, true, &self.sampling, &self.generation)? };
        crate::interrupt::take();
        let answer = self.generator.generate(request, |event| match event {
            Event::Token { text, .. } | Event::ChoiceEnd { text, .. } => output::raw(text),
            _ => Ok(()),
        })?;
        let text: String = answer.choices.iter().map(|choice| choice.text.as_str()).collect();
        output::raw(if text.ends_with('\n') { "\n" } else { "\n\n" })?;
        if answer.was_cancelled() {
            say("stopped; /regenerate answers again")?;
        }
        if self.verbose {
            say(&self.generator.speed(&answer).describe(&answer))?;
        }
        self.conversation.push_assistant(text);
        Ok(())
    }

    /// `/set NAME VALUE`: the sampling flags of `run`, without their dashes.
    fn set(&mut self, words: &[String]) -> anyhow::Result<()> {
        let Some((name, values)) = words.split_first() else { return list_settings() };
        let name = name.trim_start_matches('-').replace('_', "-");
        if name == "verbose" {
            self.verbose = values.first().is_none_or(|value| value != "off" && value != "false");
            return say(if self.verbose { "verbose is on" } else { "verbose is off" });
        }
        let flag = format!("--{name}");
        let words = ["/set", &flag].into_iter().chain(values.iter().map(String::as_str));
        let mut command = Settings::command();
        let matches = match command.try_get_matches_from_mut(words) {
            Ok(matches) => matches,
            Err(error) => {
                let text = error.to_string();
                let why = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
                return say(&format!("{why}; /set alone lists the settings"));
            }
        };
        let mut settings = Settings { sampling: self.sampling.clone() };
        settings.update_from_arg_matches(&matches)?;
        settings.sampling.resolve(&self.generation)?;
        self.sampling = settings.sampling;
        say(&format!("{name} is {}", if values.is_empty() { "on".to_owned() } else { values.join(" ") }))
    }

    fn show(&self) -> anyhow::Result<()> {
        let params = self.sampling.resolve(&self.generation)?;
        let mut section = Section::new("chat");
        section
            .row("model", &self.source)
            .row("system message", self.conversation.system.as_deref().unwrap_or("none"))
            .row("messages", self.conversation.len())
            .row("context", format!("{} tokens", self.generator.engine.n_ctx()))
            .row("temperature", params.temperature)
            .row("top-k", params.top_k)
            .row("top-p", params.top_p)
            .row("min-p", params.min_p)
            .row("repeat-penalty", params.penalties.repeat)
            .row("seed", params.seed.map_or("new every time".to_owned(), |seed| seed.to_string()));
        Ok(section.write(&mut output::styled())?)
    }

    fn set_system(&mut self, text: Option<String>) -> anyhow::Result<()> {
        let said = if text.is_some() { "the system message is set" } else { "the system message is removed" };
        self.conversation = Conversation::new(text);
        say(&format!("{said}, the conversation starts anew"))
    }

    fn save(&self, path: &Path) -> anyhow::Result<()> {
        self.conversation.save(path)?;
        say(&format!("{} messages are in {}", self.conversation.len(), path.display()))
    }

    fn load(&mut self, path: &Path) -> anyhow::Result<()> {
        self.conversation = Conversation::load(path)?;
        say(&format!("{} messages from {}", self.conversation.len(), path.display()))
    }
}

/// The sampling flags as a command of their own.
#[derive(Debug, Parser)]
#[command(disable_help_flag = true)]
struct Settings {
    #[command(flatten)]
    sampling: SamplingArgs,
}

fn help() -> anyhow::Result<()> {
    let mut out = output::styled();
    for (name, argument, what) in COMMANDS {
        writeln!(
            out,
            "  {HEADING}{name}{HEADING:#} {argument:<width$}  {DIM}{what}{DIM:#}",
            width = 24 - name.len()
        )?;
    }
    writeln!(
        out,
        "  {DIM}\"\"\" begins and ends a message of several lines; so does a backslash at a line's end{DIM:#}"
    )?;
    writeln!(out, "  {DIM}Ctrl-C stops an answer{DIM:#}")?;
    Ok(())
}

fn list_settings() -> anyhow::Result<()> {
    let command = Settings::command();
    let mut out = output::styled();
    for argument in command.get_arguments() {
        let (Some(name), Some(help)) = (argument.get_long(), argument.get_help()) else { continue };
        writeln!(out, "  {name:<22} {DIM}{help}{DIM:#}")?;
    }
    writeln!(out, "  {:<22} {DIM}Say how fast every answer was (on, off){DIM:#}", "verbose")?;
    Ok(())
}
