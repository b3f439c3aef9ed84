//! The parser: reasoning first, then content with calls in it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Waker};

use super::reader::{IdStyle, Ids, Reader};
use super::{OutputEvent, ToolFormat, ToolSpec, calls, harmony, python};
use crate::Tokenizer;
use crate::reasoning::ReasoningTags;

/// What to look for in an answer.
#[derive(Clone, Debug, Default)]
pub struct OutputOptions {
    /// The model's wire format; `None` where no call is to be found.
    pub format: Option<ToolFormat>,
    /// The functions there are. A call of another one is text; of any if there are none.
    pub tools: Vec<ToolSpec>,
    pub reasoning: Option<ReasoningTags>,
    /// Ids of calls are made from it; another one for every answer.
    pub id_seed: u64,
}

impl OutputOptions {
    /// Texts that must reach the parser although they may be control tokens.
    pub fn control_texts(&self) -> Vec<&str> {
        let mut texts: Vec<&str> =
            self.format.map(|format| format.control_texts().to_vec()).unwrap_or_default();
        if let Some(tags) = &self.reasoning {
            texts.extend([tags.open.as_str(), tags.close.as_str()]);
        }
        texts
    }

    /// The ids of those that are, for the detokeniser to show.
    pub fn control_ids(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let ids = self.control_texts().into_iter().filter_map(|text| tokenizer.id_of(text));
        ids.filter(|&id| tokenizer.is_special(id)).collect()
    }
}

/// Takes an answer apart as it comes.
pub struct OutputParser {
    reader: Reader,
    /// The code that reads; `None` once it has read to the end. Only ever touched through `&mut`: the lock makes the
    /// parser shareable between threads.
    reading: Mutex<Option<Reading>>,
}

type Reading = Pin<Box<dyn Future<Output = ()> + Send>>;

impl OutputParser {
    pub fn new(options: OutputOptions) -> OutputParser {
        let style = match options.format {
            Some(ToolFormat::MistralList | ToolFormat::MistralName | ToolFormat::MistralArgs) => {
                IdStyle::Nine
            }
            Some(ToolFormat::KimiK2) => IdStyle::Kimi,
            _ => IdStyle::Call,
        };
        let names = options.tools.iter().map(|tool| tool.name.clone()).collect();
        let reader = Reader::new(names, Ids { seed: options.id_seed, style });
        let reading: Reading = Box::pin(read(reader.clone(), options));
        OutputParser { reader, reading: Mutex::new(Some(reading)) }
    }

    /// Adds a piece of text. Events of one kind that follow each other are one.
    pub fn push(&mut self, piece: &str) -> Vec<OutputEvent> {
        self.reader.feed(piece);
        self.run()
    }

    /// The answer is over: what was still held back.
    pub fn finish(mut self) -> Vec<OutputEvent> {
        self.reader.end();
        self.run()
    }

    /// Whether the text ends inside the reasoning, as far as it has been read.
    pub fn is_reasoning(&self) -> bool {
        self.reader.is_reasoning()
    }

    /// A whole answer.
    pub fn parse(options: OutputOptions, text: &str) -> ParsedOutput {
        let mut parser = OutputParser::new(options);
        let mut output = ParsedOutput::default();
        output.extend(parser.push(text));
        output.extend(parser.finish());
        output
    }

    fn run(&mut self) -> Vec<OutputEvent> {
        let reading = self.reading.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut context = Context::from_waker(Waker::noop());
        if reading.as_mut().is_some_and(|reading| reading.as_mut().poll(&mut context).is_ready()) {
            *reading = None;
        }
        self.reader.take_events()
    }
}

impl std::fmt::Debug for OutputParser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OutputParser").field("reader", &self.reader).finish_non_exhaustive()
    }
}

/// An answer taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParsedOutput {
    pub content: String,
    pub reasoning: String,
    /// The complete calls.
    pub calls: Vec<ParsedCall>,
}

/// A call with all of its arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParsedCall {
    pub id: String,
    pub name: String,
    /// A JSON object.
    pub arguments: String,
}

impl ParsedOutput {
    /// Adds events in order.
    pub fn extend(&mut self, events: Vec<OutputEvent>) {
        for event in events {
            match event {
                OutputEvent::Content(text) => self.content.push_str(&text),
                OutputEvent::Reasoning(text) => self.reasoning.push_str(&text),
                OutputEvent::ToolCallStart { id, name, .. } => {
                    self.calls.push(ParsedCall { id, name, arguments: String::new() });
                }
                OutputEvent::ToolCallArguments { delta, .. } => {
                    if let Some(call) = self.calls.last_mut() {
                        call.arguments.push_str(&delta);
                    }
                }
                OutputEvent::ToolCallEnd { is_complete, .. } => {
                    if !is_complete {
                        self.calls.pop();
                    }
                }
            }
        }
    }
}

async fn read(reader: Reader, options: OutputOptions) {
    let r = &reader;
    if options.format == Some(ToolFormat::Harmony) || is_harmony(options.reasoning.as_ref()) {
        return harmony::read(r).await;
    }
    let markers = options.format.map(ToolFormat::markers).unwrap_or_default();
    if let Some(tags) = &options.reasoning {
        reasoning(r, tags, options.format).await;
    }
    let mut is_start = true;
    while r.peek().await.is_some() {
        let Some(found) = next_marker(r, markers, options.format, &mut is_start).await else { continue };
        // What comes before the call stays out of the content only if it is a call.
        r.skip_blanks().await;
        let read = match (found, options.format) {
            (Found::Marker(i), Some(format)) => calls::read(r, format, &options.tools, markers[i]).await,
            (_, Some(ToolFormat::Pythonic)) => python::call_list(r, "<|python_end|>").await,
            _ => calls::llama_json(r).await,
        };
        match read {
            Ok(()) => r.skip_last_blanks().await,
            Err(_) => r.give_back(),
        }
        r.done();
    }
}

fn is_harmony(tags: Option<&ReasoningTags>) -> bool {
    tags.is_some_and(|tags| tags.open.starts_with("<|channel|>"))
}

enum Found {
    Marker(usize),
    /// The answer begins like a call, in a format without markers.
    Bare,
}

/// Puts out content up to a place where a call begins, with the white space before it unread. `None` where none does:
/// one character has been put out, or the answer is over.
async fn next_marker(
    r: &Reader,
    markers: &[&str],
    format: Option<ToolFormat>,
    is_start: &mut bool,
) -> Option<Found> {
    if !markers.is_empty() {
        if let Some(i) = r.sees_after_blanks(markers, true).await {
            return Some(Found::Marker(i));
        }
        let opening = match format {
            Some(ToolFormat::Llama3Json) => "{",
            Some(ToolFormat::Pythonic) => "[",
            _ => "",
        };
        if std::mem::take(is_start)
            && !opening.is_empty()
            && r.sees_after_blanks(&[opening], true).await.is_some()
        {
            return Some(Found::Bare);
        }
    }
    r.pass(|c| r.content(c)).await;
    None
}

/// The reasoning at the beginning of an answer, if there is any. White space around it is the template's.
async fn reasoning(r: &Reader, tags: &ReasoningTags, format: Option<ToolFormat>) {
    if !tags.is_open {
        if r.sees_after_blanks(&[&tags.open], true).await.is_none() {
            return;
        }
        r.skip_blanks().await;
    }
    r.set_reasoning(true);
    // The prompt may have opened it and the model may do so again.
    r.eat(&tags.open).await;
    // These begin a section of calls without closing their reasoning.
    let section = match format {
        Some(ToolFormat::KimiK2 | ToolFormat::DeepSeekV31) => format.map(|f| f.markers()[0]),
        _ => None,
    };
    let mut ends = vec![tags.close.as_str()];
    ends.extend(section);
    r.skip_blanks().await;
    r.done();
    loop {
        match r.sees_after_blanks(&ends, true).await {
            Some(0) => {
                r.skip_blanks().await;
                r.eat(&tags.close).await;
                r.set_reasoning(false);
                r.skip_blanks().await;
                break;
            }
            Some(_) => break,
            None => {}
        }
        if r.peek().await.is_none() {
            break;
        }
        r.pass(|c| r.reasoning(c.encode_utf8(&mut [0; 4]))).await;
    }
    r.set_reasoning(false);
    r.done();
}
