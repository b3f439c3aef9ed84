//! Completions: the request, and both shapes of the answer.

use mlxr_api::openai::completions::{
    Completion, CompletionChoice, CompletionLogprobs, CompletionRequest, PromptItem,
};
use mlxr_api::openai::usage::Usage;
use mlxr_engine::{Event, FinishReason, Prompt, PromptToken, Request};
use mlxr_text::tool_calls::OutputOptions;
use mlxr_text::{Detokenizer, EncodeOptions, Tokenizer};

use super::logprobs::push_completion_token;
use super::sampling::{Documented, apply};
use super::{FINGERPRINT, error_body, fill_in, finish_reason, form};
use crate::ServeError;
use crate::generation::{Generation, IndexedEvent};
use crate::loaded::LoadedModel;
use crate::notices::Notices;
use crate::stream::Frames;
use crate::translate::collect::{Collected, collect};
use crate::translate::sampling::{max_tokens, stop};
use crate::translate::structure::Structure;
use crate::{ids, sse};

/// OpenAI's documented length of an answer when nobody says.
const DEFAULT_MAX_TOKENS: usize = 16;

/// The most prompts of a request.
const MAX_PROMPTS: usize = 64;

/// What a request asks for.
#[derive(Debug)]
pub struct Task {
    /// One per prompt.
    pub requests: Vec<Request>,
    pub answer: Answer,
    pub notices: Notices,
    pub is_stream: bool,
}

/// How to answer.
#[derive(Debug)]
pub struct Answer {
    id: String,
    created: u64,
    model: String,
    tokenizer: Tokenizer,
    /// What each choice's text begins with: the prompt when echoed, else nothing.
    echoes: Vec<String>,
    /// The prompts' tokens, which the first token of a text follows.
    prompts: Vec<Vec<u32>>,
    n: usize,
    is_echo: bool,
    has_logprobs: bool,
    include_usage: bool,
    warnings: Vec<String>,
}

/// Whether reading the request takes longer than its size tells: a grammar is compiled.
pub fn is_structured(wire: &CompletionRequest) -> bool {
    wire.response_format.is_some() || form::is_asked_for(&wire.extensions)
}

/// Reads a request for a model.
///
/// # Errors
/// [`ServeError`] names the field that cannot be honoured.
pub fn read(wire: &CompletionRequest, model: &LoadedModel, strict: bool) -> Result<Task, ServeError> {
    check(wire)?;
    let mut notices = Notices::default();
    note_without_effect(wire, &mut notices);
    let form =
        form::read(form::of_response_format(wire.response_format.as_ref())?, &wire.extensions, &mut notices)?;
    notices.enforce(strict || wire.extensions.strict == Some(true))?;

    let is_echo = wire.echo == Some(true);
    let limit = wire.max_tokens.or_else(|| max_tokens(&model.generation)).unwrap_or(DEFAULT_MAX_TOKENS);
    let id = ids::unique("cmpl-");
    let mut template = Request {
        label: Some(id.clone()),
        max_tokens: Some(limit),
        stop: wire.stop.clone().map_or_else(|| stop(&model.generation), |texts| texts.0),
        n: wire.n.unwrap_or(1),
        best_of: wire.best_of,
        logprobs: wire.logprobs,
        prompt_logprobs: wire.logprobs.filter(|_| is_echo),
        constraint: Structure { form, ..Structure::default() }
            .constraint(model, &OutputOptions::default())?,
        ..Request::new(Prompt::Tokens(Vec::new()))
    };
    let documented = Documented {
        temperature: wire.temperature,
        top_p: wire.top_p,
        frequency_penalty: wire.frequency_penalty,
        presence_penalty: wire.presence_penalty,
        seed: wire.seed,
        logit_bias: wire.logit_bias.as_ref(),
    };
    apply(&mut template, &documented, &wire.extensions, &model.generation)?;

    let items = &wire.prompt.0;
    let prompts = items.iter().map(|item| prompt_tokens(model, item, wire.suffix.as_deref()));
    let prompts: Vec<Vec<u32>> = prompts.collect::<Result<_, _>>()?;
    let echoes = items.iter().map(|item| echo(model, item, is_echo)).collect();
    let requests =
        prompts.iter().map(|tokens| Request { prompt: Prompt::Tokens(tokens.clone()), ..template.clone() });
    let requests = requests.collect();
    let answer = Answer {
        id,
        created: ids::unix_s(),
        model: model.name.clone(),
        tokenizer: model.tokenizer.clone(),
        echoes,
        prompts,
        n: template.n,
        is_echo,
        has_logprobs: template.logprobs.is_some(),
        include_usage: wire.stream_options.unwrap_or_default().include_usage == Some(true),
        warnings: notices.warnings(),
    };
    Ok(Task { requests, answer, notices, is_stream: wire.stream == Some(true) })
}

fn check(wire: &CompletionRequest) -> Result<(), ServeError> {
    let refuse = |field: &str, reason: &str| Err(ServeError::invalid(field, format!("{field} {reason}")));
    let n_prompts = wire.prompt.0.len();
    if n_prompts > MAX_PROMPTS {
        let reason = format!("prompt has {n_prompts} entries, but at most {MAX_PROMPTS} are allowed");
        return Err(ServeError::invalid("prompt", reason));
    }
    if wire.n == Some(0) {
        return refuse("n", "is 0, but must be 1 or more");
    }
    let is_ranked = wire.best_of.is_some_and(|best_of| best_of > wire.n.unwrap_or(1));
    if is_ranked && wire.stream == Some(true) {
        return refuse("best_of", "above n cannot be streamed: the best are known only at the end");
    }
    if wire.stream_options.is_some() && wire.stream != Some(true) {
        return refuse("stream_options", "needs stream to be true");
    }
    let is_text = |item: &PromptItem| matches!(item, PromptItem::Text(_));
    if wire.suffix.is_some() && !wire.prompt.0.iter().all(is_text) {
        return refuse("suffix", "needs the prompt to be text");
    }
    Ok(())
}

fn note_without_effect(wire: &CompletionRequest, notices: &mut Notices) {
    if wire.user.is_some() {
        notices.add("user", "users are not told apart");
    }
    if wire.stream_options.unwrap_or_default().include_obfuscation == Some(true) {
        notices.add("stream_options.include_obfuscation", "chunks are not padded");
    }
    if wire.extensions.thinking_budget.is_some() {
        notices.add("thinking_budget", "reasoning is not told from the rest of a completion");
    }
    if wire.extensions.chat_template_kwargs.is_some() {
        notices.add("chat_template_kwargs", "completions have no chat template");
    }
    for field in wire.unknown.keys() {
        notices.add(field, "the field is unknown");
    }
}

fn prompt_tokens(
    model: &LoadedModel,
    item: &PromptItem,
    suffix: Option<&str>,
) -> Result<Vec<u32>, ServeError> {
    match (item, suffix) {
        (PromptItem::Ids(ids), _) => Ok(ids.clone()),
        (PromptItem::Text(prefix), Some(suffix)) => fill_in::tokens(&model.tokenizer, prefix, suffix),
        (PromptItem::Text(text), None) => {
            let options = EncodeOptions { add_special: true, parse_special: true };
            let encoded = model.tokenizer.encode(text, options);
            encoded.map_err(|error| ServeError::invalid("prompt", error.to_string()))
        }
    }
}

fn echo(model: &LoadedModel, item: &PromptItem, is_echo: bool) -> String {
    match item {
        _ if !is_echo => String::new(),
        PromptItem::Text(text) => text.clone(),
        PromptItem::Ids(ids) => model.tokenizer.decode(ids, false),
    }
}

/// The log-probabilities of a choice as they grow, and where in the text the next token begins.
#[derive(Clone, Debug)]
struct LogprobList {
    list: CompletionLogprobs,
    text: Detokenizer,
    offset: usize,
}

impl LogprobList {
    /// An empty list for a choice that continues `prompt`; echoed, its text begins with it.
    fn new(answer: &Answer, prompt_idx: usize) -> LogprobList {
        let tokenizer = &answer.tokenizer;
        let text = match answer.is_echo {
            true => Detokenizer::new(tokenizer).skip_special(false),
            false => Detokenizer::after(tokenizer, &answer.prompts[prompt_idx]),
        };
        LogprobList { list: CompletionLogprobs::default(), text, offset: 0 }
    }

    fn push(&mut self, tokenizer: &Tokenizer, id: u32, logprobs: Option<&mlxr_engine::sampler::Logprobs>) {
        push_completion_token(&mut self.list, tokenizer, id, logprobs, self.offset);
        self.offset += self.text.push(id).chars().count();
    }

    fn push_prompt(&mut self, tokenizer: &Tokenizer, tokens: &[PromptToken]) {
        for token in tokens {
            self.push(tokenizer, token.id, token.logprobs.as_ref());
        }
    }

    /// What came since the last call.
    fn take(&mut self) -> CompletionLogprobs {
        std::mem::take(&mut self.list)
    }
}

impl Answer {
    /// The answer in one piece.
    ///
    /// # Errors
    /// The model failed, or the server ended the request.
    pub async fn whole(self, mut generation: Generation) -> Result<Completion, ServeError> {
        let collected = collect(&mut generation, self.prompts.len(), self.n).await?;
        let mut usage = Usage::default();
        let mut choices = Vec::with_capacity(collected.len() * self.n);
        for (prompt_idx, collected) in collected.iter().enumerate() {
            usage += super::usage(&collected.usage);
            for choice_idx in 0..self.n {
                choices.push(self.choice(prompt_idx, choice_idx, collected)?);
            }
        }
        Ok(self.completion(choices, Some(Some(usage)), self.warnings.clone()))
    }

    fn choice(
        &self,
        prompt_idx: usize,
        choice_idx: usize,
        collected: &Collected,
    ) -> Result<CompletionChoice, ServeError> {
        let choice = &collected.choices[choice_idx];
        let reason = choice.reason.as_ref().unwrap_or(&FinishReason::Cancelled);
        let logprobs = self.has_logprobs.then(|| {
            let mut list = LogprobList::new(self, prompt_idx);
            list.push_prompt(&self.tokenizer, &collected.prompt);
            for (id, logprobs) in &choice.tokens {
                list.push(&self.tokenizer, *id, logprobs.as_ref());
            }
            list.take()
        });
        Ok(CompletionChoice {
            text: format!("{}{}", self.echoes[prompt_idx], choice.text),
            index: prompt_idx * self.n + choice_idx,
            logprobs,
            finish_reason: Some(finish_reason(reason)?),
        })
    }

    fn completion(
        &self,
        choices: Vec<CompletionChoice>,
        usage: Option<Option<Usage>>,
        warnings: Vec<String>,
    ) -> Completion {
        Completion {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.model.clone(),
            system_fingerprint: FINGERPRINT.to_owned(),
            choices,
            usage,
            warnings,
        }
    }

    /// The answer as it comes.
    pub fn stream(self) -> CompletionFrames {
        let n_prompts = self.prompts.len();
        let lists = (0..n_prompts * self.n).map(|index| LogprobList::new(&self, index / self.n)).collect();
        CompletionFrames {
            lists,
            has_begun: vec![false; n_prompts * self.n],
            echoed: vec![Vec::new(); n_prompts],
            usage: Usage::default(),
            failed: false,
            answer: self,
        }
    }
}

/// A streamed answer.
#[derive(Debug)]
pub struct CompletionFrames {
    answer: Answer,
    /// By choice.
    lists: Vec<LogprobList>,
    /// Whether the echo is out, by choice.
    has_begun: Vec<bool>,
    /// Log-probabilities of the prompts, which every choice of a prompt begins with.
    echoed: Vec<Vec<PromptToken>>,
    usage: Usage,
    failed: bool,
}

impl CompletionFrames {
    fn chunk(&mut self, choices: Vec<CompletionChoice>, usage: Option<Usage>, out: &mut Vec<u8>) {
        let usage = self.answer.include_usage.then_some(usage);
        let warnings = std::mem::take(&mut self.answer.warnings);
        sse::data(out, &self.answer.completion(choices, usage, warnings));
    }

    /// Sends the echo of a choice that has not begun.
    fn begin(&mut self, prompt_idx: usize, index: usize, out: &mut Vec<u8>) {
        let has_begun = std::mem::replace(&mut self.has_begun[index], true);
        if has_begun || !self.answer.is_echo {
            return;
        }
        let list = &mut self.lists[index];
        list.push_prompt(&self.answer.tokenizer, &self.echoed[prompt_idx]);
        let logprobs = self.answer.has_logprobs.then(|| list.take());
        let text = self.answer.echoes[prompt_idx].clone();
        self.chunk(vec![CompletionChoice { text, index, logprobs, finish_reason: None }], None, out);
    }

    fn fail(&mut self, error: &ServeError, out: &mut Vec<u8>) {
        error.log();
        sse::data(out, &error_body(error));
        self.failed = true;
    }
}

impl Frames for CompletionFrames {
    fn event(&mut self, (prompt_idx, event): IndexedEvent, out: &mut Vec<u8>) {
        if self.failed {
            return;
        }
        let index_of = |choice: u32| prompt_idx * self.answer.n + choice as usize;
        match event {
            Event::Prompt { tokens, .. } => self.echoed[prompt_idx].extend(tokens),
            Event::Token { choice, id, text, logprobs, .. } => {
                let index = index_of(choice);
                self.begin(prompt_idx, index, out);
                let logprobs = self.answer.has_logprobs.then(|| {
                    let list = &mut self.lists[index];
                    list.push(&self.answer.tokenizer, id, logprobs.as_ref());
                    list.take()
                });
                if !text.is_empty() || logprobs.is_some() {
                    self.chunk(
                        vec![CompletionChoice { text, index, logprobs, finish_reason: None }],
                        None,
                        out,
                    );
                }
            }
            Event::ChoiceEnd { choice, reason, text, .. } => match finish_reason(&reason) {
                Ok(reason) => {
                    let index = index_of(choice);
                    self.begin(prompt_idx, index, out);
                    let finish_reason = Some(reason);
                    self.chunk(
                        vec![CompletionChoice { text, index, logprobs: None, finish_reason }],
                        None,
                        out,
                    );
                }
                Err(error) => self.fail(&error, out),
            },
            Event::Finish { usage, .. } => self.usage += super::usage(&usage),
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        if self.failed {
            return;
        }
        if self.answer.include_usage {
            self.chunk(Vec::new(), Some(self.usage), out);
        }
        sse::done(out);
    }

    fn keep_alive(&self) -> &'static [u8] {
        sse::KEEP_ALIVE
    }
}
