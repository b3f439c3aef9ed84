//! What an answer consists of, as it comes: text, reasoning, and whole calls of tools.

use mlxr_text::tool_calls::{OutputEvent, OutputOptions, OutputParser, ParsedCall};

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Text(String),
    Thinking(String),
    Call(ParsedCall),
}

/// Reads an answer as it comes: the one way from text to what dialects send, streamed or whole.
#[derive(Debug)]
pub struct Pieces {
    parser: Option<OutputParser>,
    n_reasoning: usize,
    has_calls: bool,
}

impl Pieces {
    pub fn new(options: OutputOptions) -> Pieces {
        Pieces { parser: Some(OutputParser::new(options)), n_reasoning: 0, has_calls: false }
    }

    /// The text that came with one more token.
    pub fn push(&mut self, text: &str) -> Vec<OutputEvent> {
        let Some(parser) = &mut self.parser else { return Vec::new() };
        let was_reasoning = parser.is_reasoning();
        let events = parser.push(text);
        self.n_reasoning += usize::from(was_reasoning || parser.is_reasoning());
        self.note(events)
    }

    /// The end of the answer, with the text that was held back until now.
    pub fn finish(&mut self, text: &str) -> Vec<OutputEvent> {
        let Some(mut parser) = self.parser.take() else { return Vec::new() };
        let mut events = parser.push(text);
        events.extend(parser.finish());
        self.note(events)
    }

    fn note(&mut self, events: Vec<OutputEvent>) -> Vec<OutputEvent> {
        let is_call =
            |event: &OutputEvent| matches!(event, OutputEvent::ToolCallEnd { is_complete: true, .. });
        self.has_calls |= events.iter().any(is_call);
        events
    }

    /// Tokens of reasoning so far.
    pub fn n_reasoning(&self) -> usize {
        self.n_reasoning
    }

    /// Whether a call is complete.
    pub fn has_calls(&self) -> bool {
        self.has_calls
    }
}

/// Cuts an answer into pieces. A call comes out when it is complete, for one that breaks off is no call.
#[derive(Debug)]
pub struct Parts {
    pieces: Pieces,
    call: ParsedCall,
}

impl Parts {
    pub fn new(options: OutputOptions) -> Parts {
        Parts { pieces: Pieces::new(options), call: ParsedCall::default() }
    }

    /// The text that came with one more token.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        let events = self.pieces.push(text);
        self.read(events)
    }

    /// The end of the answer, with the text that was held back until now.
    pub fn finish(&mut self, text: &str) -> Vec<Part> {
        let events = self.pieces.finish(text);
        self.read(events)
    }

    /// Whether there was a call.
    pub fn has_calls(&self) -> bool {
        self.pieces.has_calls()
    }

    fn read(&mut self, events: Vec<OutputEvent>) -> Vec<Part> {
        let mut parts = Vec::with_capacity(events.len());
        for event in events {
            match event {
                OutputEvent::Content(text) => parts.push(Part::Text(text)),
                OutputEvent::Reasoning(text) => parts.push(Part::Thinking(text)),
                OutputEvent::ToolCallStart { id, name, .. } => {
                    self.call = ParsedCall { id, name, arguments: String::new() };
                }
                OutputEvent::ToolCallArguments { delta, .. } => self.call.arguments.push_str(&delta),
                OutputEvent::ToolCallEnd { is_complete, .. } => {
                    let call = std::mem::take(&mut self.call);
                    if is_complete {
                        parts.push(Part::Call(call));
                    }
                }
            }
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use mlxr_text::reasoning::ReasoningTags;
    use mlxr_text::tool_calls::{ToolFormat, ToolSpec};
    use serde_json::json;

    use super::*;

    fn options() -> OutputOptions {
        let tool = ToolSpec::from_openai(&json!({"name": "f"})).unwrap();
        OutputOptions {
            format: Some(ToolFormat::Hermes),
            tools: vec![tool],
            reasoning: Some(ReasoningTags::new("<think>", "</think>")),
            id_seed: 1,
        }
    }

    /// Pieces of one kind joined.
    fn read(text: &str, n_bytes: usize) -> (String, String, Vec<String>) {
        let mut parts = Parts::new(options());
        let mut found = Vec::new();
        for piece in text.as_bytes().chunks(n_bytes) {
            found.extend(parts.push(std::str::from_utf8(piece).unwrap()));
        }
        found.extend(parts.finish(""));
        let (mut said, mut thought, mut calls) = (String::new(), String::new(), Vec::new());
        for part in found {
            match part {
                Part::Text(text) => said += &text,
                Part::Thinking(text) => thought += &text,
                Part::Call(call) => calls.push(format!("{}{}", call.name, call.arguments)),
            }
        }
        (said, thought, calls)
    }

    #[test]
    fn an_answer_falls_apart_the_same_way_however_it_comes() {
        let text = "<think>hm</think>Yes.<tool_call>{\"name\": \"f\", \"arguments\": {\"x\": 1}}</tool_call>";
        for n_bytes in [1, 3, 7, 1000] {
            let (said, thought, calls) = read(text, n_bytes);
            assert_eq!((said.as_str(), thought.as_str()), ("Yes.", "hm"));
            assert_eq!(calls.len(), 1);
            assert!(calls[0].starts_with("f{") && calls[0].contains("\"x\""), "{calls:?}");
        }
    }

    #[test]
    fn tokens_of_reasoning_are_counted() {
        let mut pieces = Pieces::new(options());
        for token in ["<th", "ink>", "h", "m", "</think", ">", "Yes"] {
            pieces.push(token);
        }
        // From the one that completes the opening tag to the one that completes the closing tag.
        assert_eq!(pieces.n_reasoning(), 5);
    }

    #[test]
    fn a_call_that_breaks_off_is_text() {
        let text = "<tool_call>{\"name\": \"f\", \"argu";
        for n_bytes in [1, 1000] {
            assert_eq!(read(text, n_bytes), (text.to_owned(), String::new(), Vec::new()));
        }
    }
}
