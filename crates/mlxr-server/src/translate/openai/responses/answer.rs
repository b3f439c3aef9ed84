//! The answer: one reading of its events makes both the items of a whole response and the events of a streamed one.

use std::sync::Arc;

use mlxr_api::openai::chat::{ChatTokenLogprob, Role};
use mlxr_api::openai::responses::{
    ErrorCode, EventKind, FunctionCallItem, IncompleteDetails, InputTokensDetails, Item, ItemStatus,
    MessageItem, OutputTokensDetails, Part, PartContent, ReasoningItem, ReasoningPart, Response,
    ResponseFailure, ResponseUsage, Status, StreamEvent,
};
use mlxr_engine::sampler::Logprobs;
use mlxr_engine::{Event, FinishReason};
use mlxr_text::Tokenizer;
use mlxr_text::tool_calls::{OutputEvent, OutputOptions};

use crate::generation::{Generation, IndexedEvent};
use crate::response_store::{Owner, ResponseStore, Stored};
use crate::stream::Frames;
use crate::translate::openai::chat_answer::settled;
use crate::translate::openai::{finish_reason, logprobs};
use crate::translate::parts::Pieces;
use crate::{ServeError, ids, sse};

/// Items of an answer have one part.
const PART: usize = 0;

/// Where a finished response is kept.
#[derive(Clone, Debug)]
pub struct Keep {
    pub store: Arc<ResponseStore>,
    pub owner: Owner,
}

/// How to answer.
#[derive(Debug)]
pub struct Answer {
    /// As far as it has come.
    response: Response,
    /// What it is the answer to.
    input: Vec<Arc<Item>>,
    pieces: Pieces,
    /// Whether the last item is being written.
    is_open: bool,
    tokenizer: Tokenizer,
    has_logprobs: bool,
    /// Of tokens whose text is still held back.
    logprobs: Vec<ChatTokenLogprob>,
    pub keep: Option<Keep>,
}

impl Answer {
    /// The answer that `response` begins, read as `output` says.
    pub fn new(
        response: Response,
        input: Vec<Arc<Item>>,
        output: OutputOptions,
        tokenizer: Tokenizer,
        has_logprobs: bool,
    ) -> Answer {
        let (pieces, logprobs) = (Pieces::new(output), Vec::new());
        Answer { response, input, pieces, is_open: false, tokenizer, has_logprobs, logprobs, keep: None }
    }

    /// Reads an event and appends what it leads to.
    ///
    /// # Errors
    /// The model failed, or the server ended the request.
    fn read(&mut self, event: Event, out: &mut Vec<EventKind>) -> Result<(), ServeError> {
        match event {
            Event::Prompt { .. } => {}
            Event::Token { text, logprobs, .. } => {
                let events = self.pieces.push(&text);
                self.logprobs.extend(self.logprob(logprobs.as_ref()));
                self.take(events, out);
            }
            Event::ChoiceEnd { reason, text, .. } => {
                let events = settled(self.pieces.finish(&text));
                self.take(events, out);
                let incomplete = match finish_reason(&reason)? {
                    "length" => Some("max_output_tokens"),
                    "loop" => Some("loop"),
                    _ => None,
                };
                if self.response.output.is_empty() {
                    self.begin(Item::Message(empty_message()), out);
                }
                let is_whole = incomplete.is_none();
                self.response.status = if is_whole { Status::Completed } else { Status::Incomplete };
                self.response.incomplete_details = incomplete.map(|reason| IncompleteDetails { reason });
                // A call that is still being written at the end has broken off.
                let is_call = matches!(self.response.output.last(), Some(Item::FunctionCall(_)));
                self.close(is_whole && !is_call, out);
            }
            Event::Finish { reason, usage, .. } => self.finish(&reason, usage)?,
        }
        Ok(())
    }

    fn finish(&mut self, reason: &FinishReason, usage: mlxr_engine::Usage) -> Result<(), ServeError> {
        finish_reason(reason)?;
        self.response.completed_at = (self.response.status == Status::Completed).then(ids::unix_s);
        self.response.usage = Some(ResponseUsage {
            input_tokens: usage.n_prompt,
            input_tokens_details: InputTokensDetails { cached_tokens: usage.n_cached },
            output_tokens: usage.n_completion,
            output_tokens_details: OutputTokensDetails { reasoning_tokens: self.pieces.n_reasoning() },
            total_tokens: usage.n_prompt + usage.n_completion,
        });
        Ok(())
    }

    fn take(&mut self, events: Vec<OutputEvent>, out: &mut Vec<EventKind>) {
        for event in events {
            match event {
                OutputEvent::Content(text) => {
                    if !matches!(self.current(), Some(Item::Message(_))) {
                        self.begin(Item::Message(empty_message()), out);
                    }
                    self.append(text, out);
                }
                OutputEvent::Reasoning(text) => {
                    if !matches!(self.current(), Some(Item::Reasoning(_))) {
                        self.begin(Item::Reasoning(empty_reasoning()), out);
                    }
                    self.append(text, out);
                }
                OutputEvent::ToolCallStart { id, name, .. } => {
                    self.begin(Item::FunctionCall(empty_call(id, name)), out);
                }
                OutputEvent::ToolCallArguments { delta, .. } => self.append(delta, out),
                OutputEvent::ToolCallEnd { is_complete, .. } => self.close(is_complete, out),
            }
        }
    }

    /// The item that is being written.
    fn current(&self) -> Option<&Item> {
        self.response.output.last().filter(|_| self.is_open)
    }

    fn begin(&mut self, item: Item, out: &mut Vec<EventKind>) {
        self.close(true, out);
        // Of the markup that was held back before, only the last token can be part of what begins.
        let n_markup = self.logprobs.len().saturating_sub(1);
        if !self.response.output.is_empty() {
            self.logprobs.drain(..n_markup);
        }
        self.response.output.push(item.clone());
        self.is_open = true;
        let part = match &item {
            Item::Message(_) => Some(Part::output(String::new(), Vec::new())),
            Item::Reasoning(_) => Some(Part::ReasoningText { text: String::new() }),
            _ => None,
        };
        let output_index = self.response.output.len() - 1;
        let item_id = item.id().unwrap_or_default().to_owned();
        out.push(EventKind::ItemAdded { output_index, item });
        if let Some(part) = part {
            self.set_part(&part);
            out.push(EventKind::PartAdded { item_id, output_index, content_index: PART, part });
        }
    }

    fn set_part(&mut self, part: &Part) {
        match (self.response.output.last_mut(), part) {
            (Some(Item::Message(item)), part) => item.content = PartContent::Parts(vec![part.clone()]),
            (Some(Item::Reasoning(item)), Part::ReasoningText { text }) => {
                item.content = Some(vec![ReasoningPart::ReasoningText { text: text.clone() }]);
            }
            _ => {}
        }
    }

    fn append(&mut self, delta: String, out: &mut Vec<EventKind>) {
        let Some(output_index) = self.response.output.len().checked_sub(1) else { return };
        let item = &mut self.response.output[output_index];
        let item_id = item.id().unwrap_or_default().to_owned();
        match item {
            Item::Message(MessageItem { content: PartContent::Parts(parts), .. }) => {
                let logprobs = std::mem::take(&mut self.logprobs);
                if let Some(Part::OutputText { text, logprobs: all, .. }) = parts.last_mut() {
                    text.push_str(&delta);
                    all.extend(logprobs.iter().cloned());
                }
                out.push(EventKind::TextDelta {
                    item_id,
                    output_index,
                    content_index: PART,
                    delta,
                    logprobs,
                });
            }
            Item::Reasoning(item) => {
                if let Some(ReasoningPart::ReasoningText { text }) = item.content.iter_mut().flatten().last()
                {
                    text.push_str(&delta);
                }
                self.logprobs.clear();
                out.push(EventKind::ReasoningDelta { item_id, output_index, content_index: PART, delta });
            }
            Item::FunctionCall(item) => {
                item.arguments.push_str(&delta);
                self.logprobs.clear();
                out.push(EventKind::ArgumentsDelta { item_id, output_index, delta });
            }
            _ => {}
        }
    }

    /// Ends the item that is being written, if there is one.
    fn close(&mut self, is_whole: bool, out: &mut Vec<EventKind>) {
        if !std::mem::take(&mut self.is_open) {
            return;
        }
        let Some(output_index) = self.response.output.len().checked_sub(1) else { return };
        let item = &mut self.response.output[output_index];
        item.set_status(if is_whole { ItemStatus::Completed } else { ItemStatus::Incomplete });
        let (item, content_index) = (item.clone(), PART);
        let item_id = item.id().unwrap_or_default().to_owned();
        match &item {
            Item::Message(MessageItem { content: PartContent::Parts(parts), .. }) => {
                if let Some(part @ Part::OutputText { text, logprobs, .. }) = parts.last().cloned().as_ref() {
                    let (text, logprobs, part) = (text.clone(), logprobs.clone(), part.clone());
                    let id = item_id.clone();
                    out.push(EventKind::TextDone {
                        item_id: id,
                        output_index,
                        content_index,
                        text,
                        logprobs,
                    });
                    out.push(EventKind::PartDone { item_id, output_index, content_index, part });
                }
            }
            Item::Reasoning(ReasoningItem { content: Some(parts), .. }) => {
                for ReasoningPart::ReasoningText { text } in parts {
                    let (id, part) = (item_id.clone(), Part::ReasoningText { text: text.clone() });
                    let text = text.clone();
                    out.push(EventKind::ReasoningDone {
                        item_id: id.clone(),
                        output_index,
                        content_index,
                        text,
                    });
                    out.push(EventKind::PartDone { item_id: id, output_index, content_index, part });
                }
            }
            Item::FunctionCall(call) => {
                let (name, arguments) = (call.name.clone(), call.arguments.clone());
                out.push(EventKind::ArgumentsDone { item_id, output_index, name, arguments });
            }
            _ => {}
        }
        out.push(EventKind::ItemDone { output_index, item });
    }

    fn logprob(&self, found: Option<&Logprobs>) -> Option<ChatTokenLogprob> {
        // The token that ends the answer is none of its content.
        let found =
            found.filter(|found| self.has_logprobs && !self.tokenizer.eog_ids().contains(&found.token.id));
        found.map(|found| logprobs::chat_token(&self.tokenizer, found))
    }

    fn fail(&mut self, error: &ServeError) {
        error.log();
        self.response.status = Status::Failed;
        self.response.error =
            Some(ResponseFailure { code: ErrorCode::ServerError, message: error.to_string() });
    }

    /// Keeps the response, if that was asked for.
    fn store(&self) {
        if let Some(Keep { store, owner }) = &self.keep {
            store.put(self.stored(), owner.clone());
        }
    }

    fn stored(&self) -> Stored {
        Stored { response: self.response.clone(), input: self.input.clone() }
    }

    /// Reads everything.
    async fn read_all(&mut self, mut generation: Generation) -> Result<(), ServeError> {
        let mut events = Vec::new();
        while let Some((_, event)) = generation.next().await {
            self.read(event, &mut events)?;
            events.clear();
        }
        Ok(())
    }

    /// The answer in one piece.
    ///
    /// # Errors
    /// The model failed, or the server ended the request.
    pub async fn whole(mut self, generation: Generation) -> Result<Response, ServeError> {
        self.read_all(generation).await?;
        self.store();
        Ok(self.response)
    }

    /// The answer in the background: what there is of it now. The rest is found where it is kept.
    pub fn background(mut self, generation: Generation) -> Response {
        let begun = self.response.clone();
        let Some(Keep { store, .. }) = self.keep.clone() else { return begun };
        self.store();
        let work = tokio::spawn({
            let store = store.clone();
            async move {
                if let Err(error) = self.read_all(generation).await {
                    self.fail(&error);
                }
                store.finish(self.stored());
            }
        });
        store.attach(&begun.id, work.abort_handle());
        begun
    }

    /// The answer as it comes.
    pub fn stream(self) -> ResponseFrames {
        ResponseFrames { answer: self, n_events: 0, failed: false }
    }
}

fn empty_message() -> MessageItem {
    MessageItem {
        id: Some(ids::unique("msg_")),
        status: Some(ItemStatus::InProgress),
        role: Role::Assistant,
        content: PartContent::Parts(Vec::new()),
        other: Default::default(),
    }
}

fn empty_reasoning() -> ReasoningItem {
    ReasoningItem {
        id: Some(ids::unique("rs_")),
        status: Some(ItemStatus::InProgress),
        summary: Vec::new(),
        content: Some(Vec::new()),
        other: Default::default(),
    }
}

fn empty_call(call_id: String, name: String) -> FunctionCallItem {
    FunctionCallItem {
        id: Some(ids::unique("fc_")),
        status: Some(ItemStatus::InProgress),
        call_id,
        name,
        arguments: String::new(),
        other: Default::default(),
    }
}

/// A streamed answer.
#[derive(Debug)]
pub struct ResponseFrames {
    answer: Answer,
    n_events: usize,
    failed: bool,
}

impl ResponseFrames {
    fn send(&mut self, kind: EventKind, out: &mut Vec<u8>) {
        let event = StreamEvent { sequence_number: self.n_events, kind };
        sse::event(out, event.kind.name(), &event);
        self.n_events += 1;
    }

    /// The first event says what was begun.
    fn begin(&mut self, out: &mut Vec<u8>) {
        if self.n_events == 0 {
            let response = self.answer.response.clone();
            self.send(EventKind::Created { response: response.clone() }, out);
            self.send(EventKind::InProgress { response }, out);
        }
    }
}

impl Frames for ResponseFrames {
    fn event(&mut self, (_, event): IndexedEvent, out: &mut Vec<u8>) {
        if self.failed {
            return;
        }
        self.begin(out);
        let mut kinds = Vec::new();
        let read = self.answer.read(event, &mut kinds);
        for kind in kinds {
            self.send(kind, out);
        }
        if let Err(error) = read {
            self.answer.fail(&error);
            let response = self.answer.response.clone();
            self.send(EventKind::Failed { response }, out);
            self.failed = true;
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        if self.failed {
            return;
        }
        // Whoever reads the last event may go on from the response at once.
        self.answer.store();
        let response = self.answer.response.clone();
        let kind = match response.status {
            Status::Incomplete => EventKind::Incomplete { response },
            _ => EventKind::Completed { response },
        };
        self.send(kind, out);
    }

    fn keep_alive(&self) -> &'static [u8] {
        sse::KEEP_ALIVE
    }
}
