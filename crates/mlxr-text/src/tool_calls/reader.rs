//! The text of an answer as a sequence of characters that is not all there yet.
//!
//! A format is read by straight-line code that waits where the text ends: a future, polled once for every piece that
//! arrives and never by anything else. What it has read in vain it can give back as content.

use std::collections::HashSet;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use super::OutputEvent;

/// A call that breaks its format.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

pub(crate) type Parsed<T> = Result<T, Malformed>;

/// Longest name of a function or parameter, in characters.
const MAX_NAME_CHARS: usize = 256;

/// Shared between the parser, which adds text, and the future, which reads it.
#[derive(Clone, Debug)]
pub(crate) struct Reader(Arc<Mutex<Tape>>);

#[derive(Debug, Default)]
struct Tape {
    text: String,
    at: usize,
    /// From here on the text is unread as far as the output is concerned.
    mark: usize,
    ended: bool,
    events: Vec<OutputEvent>,
    n_calls: usize,
    is_open: bool,
    is_reasoning: bool,
    names: HashSet<String>,
    ids: Ids,
}

/// Ids of calls.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ids {
    pub seed: u64,
    pub style: IdStyle,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum IdStyle {
    /// `call_` and 24 characters.
    #[default]
    Call,
    /// Nine letters and digits, which Mistral's templates insist on.
    Nine,
    /// `functions.f:0`.
    Kimi,
}

impl Ids {
    fn id(self, index: usize, name: &str) -> String {
        // SplitMix64 over seed and index.
        let mut state = self.seed.wrapping_add((index as u64).wrapping_mul(0xd1b5_4a32_d192_ed03));
        let mut letters = std::iter::repeat_with(|| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let alphabet = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
            char::from(alphabet[((z ^ (z >> 31)) % 62) as usize])
        });
        match self.style {
            IdStyle::Call => letters.by_ref().take(24).fold("call_".to_owned(), |id, c| id + &c.to_string()),
            IdStyle::Nine => letters.by_ref().take(9).collect(),
            IdStyle::Kimi => format!("functions.{name}:{index}"),
        }
    }
}

impl Reader {
    pub(crate) fn new(names: HashSet<String>, ids: Ids) -> Reader {
        Reader(Arc::new(Mutex::new(Tape { names, ids, ..Tape::default() })))
    }

    fn tape(&self) -> MutexGuard<'_, Tape> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds text at the end.
    pub(crate) fn feed(&self, piece: &str) {
        let tape = &mut *self.tape();
        tape.text.drain(..tape.mark);
        tape.at -= tape.mark;
        tape.mark = 0;
        tape.text.push_str(piece);
    }

    /// There is no more text.
    pub(crate) fn end(&self) {
        self.tape().ended = true;
    }

    pub(crate) fn take_events(&self) -> Vec<OutputEvent> {
        std::mem::take(&mut self.tape().events)
    }

    /// Whether what is being read is reasoning.
    pub(crate) fn is_reasoning(&self) -> bool {
        self.tape().is_reasoning
    }

    /// Reasoning begins or ends here.
    pub(crate) fn set_reasoning(&self, is_reasoning: bool) {
        self.tape().is_reasoning = is_reasoning;
    }

    /// The next character, once it is known; `None` at the end.
    pub(crate) async fn peek(&self) -> Option<char> {
        poll_fn(|_| {
            let tape = self.tape();
            match tape.text[tape.at..].chars().next() {
                None if !tape.ended => Poll::Pending,
                next => Poll::Ready(next),
            }
        })
        .await
    }

    /// Takes the character that was peeked at.
    pub(crate) fn skip(&self) {
        let tape = &mut *self.tape();
        tape.at += tape.text[tape.at..].chars().next().map_or(0, char::len_utf8);
    }

    /// Takes the next character.
    pub(crate) async fn next(&self) -> Parsed<char> {
        let c = self.peek().await.ok_or(Malformed)?;
        self.skip();
        Ok(c)
    }

    /// Which of some texts come next, if any; waits only while one still could.
    pub(crate) async fn sees(&self, texts: &[&str]) -> Option<usize> {
        self.sees_after_blanks(texts, false).await
    }

    /// The same, looking past white space if asked to.
    pub(crate) async fn sees_after_blanks(&self, texts: &[&str], past_blanks: bool) -> Option<usize> {
        poll_fn(|_| {
            let tape = self.tape();
            let mut rest = &tape.text[tape.at..];
            if past_blanks {
                rest = rest.trim_start();
            }
            if let Some(found) = texts.iter().position(|text| rest.starts_with(text)) {
                return Poll::Ready(Some(found));
            }
            let undecided = !tape.ended && texts.iter().any(|text| text.starts_with(rest));
            if undecided { Poll::Pending } else { Poll::Ready(None) }
        })
        .await
    }

    /// Takes a text that comes next, if it does.
    pub(crate) async fn eat(&self, text: &str) -> bool {
        let found = self.sees(&[text]).await.is_some();
        if found {
            self.tape().at += text.len();
        }
        found
    }

    pub(crate) async fn expect(&self, text: &str) -> Parsed<()> {
        if self.eat(text).await { Ok(()) } else { Err(Malformed) }
    }

    pub(crate) async fn skip_blanks(&self) {
        while self.peek().await.is_some_and(char::is_whitespace) {
            self.skip();
        }
    }

    /// Hands on one character, or all of the white space that comes next.
    pub(crate) async fn pass(&self, on: impl Fn(char)) {
        let is_blank = self.peek().await.is_some_and(char::is_whitespace);
        while let Some(c) = self.peek().await.filter(|c| c.is_whitespace() == is_blank) {
            self.skip();
            on(c);
            self.done();
            if !is_blank {
                return;
            }
        }
    }

    /// Takes white space that ends the answer.
    pub(crate) async fn skip_last_blanks(&self) {
        let is_last = poll_fn(|_| {
            let tape = self.tape();
            let is_blank = tape.text[tape.at..].trim_start().is_empty();
            if is_blank && !tape.ended { Poll::Pending } else { Poll::Ready(is_blank) }
        });
        if is_last.await {
            self.skip_blanks().await;
        }
    }

    /// The end of a call: `text`, or the end of the answer where the model's end token stands for it.
    pub(crate) async fn close(&self, text: &str) -> Parsed<()> {
        if self.sees_after_blanks(&[text], true).await.is_some() {
            self.skip_blanks().await;
            return self.expect(text).await;
        }
        let tape = &mut *self.tape();
        let rest = tape.text[tape.at..].trim_start();
        if tape.ended && text.starts_with(rest) {
            tape.at = tape.text.len();
            return Ok(());
        }
        Err(Malformed)
    }

    /// A name up to `end`, which is taken too.
    pub(crate) async fn name_until(&self, end: &str) -> Parsed<String> {
        let mut name = String::new();
        while !self.eat(end).await {
            let c = self.next().await?;
            name.push(c);
            if !is_name_char(c) || MAX_NAME_CHARS < name.len() {
                return Err(Malformed);
            }
        }
        Ok(name)
    }

    /// The longest name that comes next.
    pub(crate) async fn name(&self) -> Parsed<String> {
        let mut name = String::new();
        while let Some(c) = self.peek().await.filter(|&c| is_name_char(c)) {
            self.skip();
            name.push(c);
            if MAX_NAME_CHARS < name.len() {
                return Err(Malformed);
            }
        }
        if name.is_empty() { Err(Malformed) } else { Ok(name) }
    }

    // What comes out.

    pub(crate) fn content(&self, c: char) {
        let tape = &mut *self.tape();
        push_content(&mut tape.events, c.encode_utf8(&mut [0; 4]));
    }

    pub(crate) fn reasoning(&self, text: &str) {
        let tape = &mut *self.tape();
        match tape.events.last_mut() {
            _ if text.is_empty() => {}
            Some(OutputEvent::Reasoning(last)) => last.push_str(text),
            _ => tape.events.push(OutputEvent::Reasoning(text.to_owned())),
        }
    }

    /// Everything read so far has been dealt with.
    pub(crate) fn done(&self) {
        let tape = &mut *self.tape();
        tape.mark = tape.at;
    }

    /// Puts out what was read since the last [`Self::done`] as content: it was no call.
    pub(crate) fn give_back(&self) {
        let tape = &mut *self.tape();
        if std::mem::take(&mut tape.is_open) {
            let index = tape.n_calls - 1;
            tape.events.push(OutputEvent::ToolCallEnd { index, is_complete: false });
        }
        let text = tape.text[tape.mark..tape.at].to_owned();
        push_content(&mut tape.events, &text);
        tape.mark = tape.at;
    }

    /// The call of a known function begins.
    pub(crate) fn start_call(&self, name: &str) -> Parsed<()> {
        let tape = &mut *self.tape();
        if name.is_empty() || (!tape.names.is_empty() && !tape.names.contains(name)) || tape.is_open {
            return Err(Malformed);
        }
        let index = tape.n_calls;
        let id = tape.ids.id(index, name);
        tape.events.push(OutputEvent::ToolCallStart { index, id, name: name.to_owned() });
        tape.n_calls += 1;
        tape.is_open = true;
        Ok(())
    }

    pub(crate) fn arguments(&self, text: &str) {
        let tape = &mut *self.tape();
        let index = tape.n_calls.saturating_sub(1);
        match tape.events.last_mut() {
            _ if text.is_empty() => {}
            Some(OutputEvent::ToolCallArguments { delta, .. }) => delta.push_str(text),
            _ => tape.events.push(OutputEvent::ToolCallArguments { index, delta: text.to_owned() }),
        }
    }

    /// The call is complete, and so is everything read.
    pub(crate) fn end_call(&self) {
        let tape = &mut *self.tape();
        if std::mem::take(&mut tape.is_open) {
            let index = tape.n_calls - 1;
            tape.events.push(OutputEvent::ToolCallEnd { index, is_complete: true });
        }
        tape.mark = tape.at;
    }
}

fn push_content(events: &mut Vec<OutputEvent>, text: &str) {
    match events.last_mut() {
        _ if text.is_empty() => {}
        Some(OutputEvent::Content(last)) => last.push_str(text),
        _ => events.push(OutputEvent::Content(text.to_owned())),
    }
}

fn is_name_char(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/' | '$')
}
