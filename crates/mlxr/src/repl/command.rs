//! What a line typed into the chat means.

use std::path::PathBuf;

/// The slash commands: name, what it takes, what it does. The order is that of `/help`.
pub const COMMANDS: &[(&str, &str, &str)] = &[
    ("/help", "", "list the commands"),
    ("/set", "NAME VALUE", "set a sampling option, such as /set temperature 0.2; /set alone lists them"),
    ("/show", "", "show the model, the system message and the settings"),
    ("/system", "[TEXT]", "set the system message, without TEXT remove it; starts the chat anew"),
    ("/image", "FILE", "show the model an image with the next message"),
    ("/clear", "", "forget the conversation"),
    ("/regenerate", "", "answer the last message again"),
    ("/undo", "", "take back the last message and its answer"),
    ("/save", "FILE", "write the conversation to a file"),
    ("/load", "FILE", "go on with a conversation from a file"),
    ("/exit", "", "leave (also Ctrl-D)"),
];

/// What to do with an input.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    /// Nothing was typed.
    Empty,
    /// A message to the model.
    Message(String),
    Help,
    Set(Vec<String>),
    Show,
    System(Option<String>),
    Image(PathBuf),
    Clear,
    Regenerate,
    Undo,
    Save(PathBuf),
    Load(PathBuf),
    Exit,
    /// Something that begins with a slash and is no command; says why.
    Wrong(String),
}

impl Input {
    /// Reads a whole input: continuation lines are joined and block quotes taken off.
    pub fn parse(text: &str) -> Input {
        let text = text.trim();
        if let Some(block) = text.strip_prefix(QUOTES) {
            return Input::Message(block.strip_suffix(QUOTES).unwrap_or(block).trim_matches('\n').to_owned());
        }
        if text.is_empty() {
            return Input::Empty;
        }
        if !text.starts_with('/') {
            return Input::Message(text.replace("\\\n", "\n"));
        }
        let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let rest = rest.trim();
        let file = |make: fn(PathBuf) -> Input| match rest {
            "" => Input::Wrong(format!("{name} needs a file name")),
            path => make(path.into()),
        };
        match name {
            "/help" | "/?" => Input::Help,
            "/set" => Input::Set(rest.split_whitespace().map(str::to_owned).collect()),
            "/show" => Input::Show,
            "/system" => Input::System((!rest.is_empty()).then(|| unquoted(rest).to_owned())),
            "/image" => file(Input::Image),
            "/clear" => Input::Clear,
            "/regenerate" => Input::Regenerate,
            "/undo" => Input::Undo,
            "/save" => file(Input::Save),
            "/load" => file(Input::Load),
            "/exit" | "/bye" | "/quit" => Input::Exit,
            _ => Input::Wrong(format!("unknown command {name}; /help lists the commands")),
        }
    }
}

const QUOTES: &str = "\"\"\"";

fn unquoted(text: &str) -> &str {
    text.strip_prefix(QUOTES).and_then(|t| t.strip_suffix(QUOTES)).map_or(text, str::trim)
}

/// Whether more lines belong to the input: an open `"""` block, or a backslash at the end of the line.
pub fn is_unfinished(text: &str) -> bool {
    let begins_block = text.trim_start().starts_with(QUOTES) || text.trim_start().starts_with("/system");
    let is_open = text.matches(QUOTES).count() == 1;
    (begins_block && is_open) || (text.ends_with('\\') && !text.ends_with("\\\\"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_may_span_lines() {
        assert!(is_unfinished("\"\"\"one"));
        assert!(!is_unfinished("\"\"\"one\ntwo\"\"\""));
        assert_eq!(Input::parse("\"\"\"\none\n  two\n\"\"\""), Input::Message("one\n  two".to_owned()));
        assert!(is_unfinished("one\\"));
        assert_eq!(Input::parse("one\\\ntwo"), Input::Message("one\ntwo".to_owned()));
        assert!(!is_unfinished("say \"\"\" aloud"), "quotes inside a message mean themselves");
    }

    #[test]
    fn commands_take_what_they_need() {
        assert_eq!(Input::parse("/set top-k 3"), Input::Set(vec!["top-k".to_owned(), "3".to_owned()]));
        assert_eq!(Input::parse("/system Be brief."), Input::System(Some("Be brief.".to_owned())));
        assert_eq!(Input::parse("/system"), Input::System(None));
        assert_eq!(Input::parse("/save a b.json"), Input::Save("a b.json".into()));
        assert_eq!(Input::parse("/save"), Input::Wrong("/save needs a file name".to_owned()));
        assert!(matches!(Input::parse("/nope"), Input::Wrong(_)));
        assert_eq!(Input::parse("  "), Input::Empty);
    }

    #[test]
    fn every_listed_command_is_understood() {
        for (name, argument, _) in COMMANDS {
            let text = format!("{name} {}", argument.trim_matches(['[', ']']));
            assert!(!matches!(Input::parse(&text), Input::Wrong(_) | Input::Message(_)), "{name}");
        }
    }
}
