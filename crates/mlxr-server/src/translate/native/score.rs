//! How likely a model finds texts.

use mlxr_api::native::score::{Alternative, Score, ScoreAnswer, ScoreRequest, ScoredToken};
use mlxr_engine::sampler::Logprobs;
use mlxr_engine::{Prompt, PromptToken, Request};
use mlxr_text::Tokenizer;

use super::text::{check_ids, encode};
use super::unknown_fields;
use crate::ServeError;
use crate::generation::Generation;
use crate::loaded::LoadedModel;
use crate::notices::Notices;
use crate::translate::collect::collect;

/// The most choices of a request.
const MAX_CHOICES: usize = 64;

/// JSON has no infinity; a token that cannot be has this.
const MIN_LOGPROB: f32 = -9999.0;

/// What is read for a request, and how it is answered.
pub struct Task {
    /// One per text.
    pub requests: Vec<Request>,
    pub answer: Answer,
    pub notices: Notices,
}

pub struct Answer {
    model: String,
    tokenizer: Tokenizer,
    texts: Vec<Part>,
    n_top: usize,
    are_choices: bool,
    n_tokens: usize,
    warnings: Vec<String>,
}

/// A text and where in its prompt it begins.
struct Part {
    text: String,
    start: usize,
}

/// # Errors
/// What to score is not said in exactly one way, or there is nothing to score.
pub fn read(wire: &ScoreRequest, model: &LoadedModel, strict: bool) -> Result<Task, ServeError> {
    let mut notices = unknown_fields(&wire.unknown, strict || wire.strict == Some(true))?;
    let prompts = match (&wire.text, &wire.tokens, &wire.choices) {
        (Some(text), None, None) => {
            let tokens = encode(&model.tokenizer, "text", text, wire.add_special, None)?;
            vec![whole("text", text.clone(), tokens, model)?]
        }
        (None, Some(tokens), None) => {
            vec![whole("tokens", model.tokenizer.decode(tokens, true), tokens.clone(), model)?]
        }
        (None, None, Some(choices)) => continuations(wire, choices, model)?,
        _ => {
            let reason = "exactly one of text, tokens and choices must be given";
            return Err(ServeError::Invalid { field: None, reason: reason.to_owned() });
        }
    };
    if wire.context.is_some() && wire.choices.is_none() {
        notices.add("context", "it comes before choices, and there are none");
    }
    if wire.add_special.is_some() && wire.tokens.is_some() {
        notices.add("add_special", "tokens are scored as they are");
    }
    notices.enforce(strict || wire.strict == Some(true))?;
    let n_top = wire.top.unwrap_or(0);
    let request = |tokens: &Vec<u32>| Request {
        max_tokens: Some(0),
        // One at least, to know whether greedy decoding would say the same.
        prompt_logprobs: Some(n_top.max(1)),
        ..Request::new(Prompt::Tokens(tokens.clone()))
    };
    let requests = prompts.iter().map(|(tokens, _)| request(tokens)).collect();
    let answer = Answer {
        model: model.name.clone(),
        tokenizer: model.tokenizer.clone(),
        n_tokens: prompts.iter().map(|(tokens, _)| tokens.len()).sum(),
        texts: prompts.into_iter().map(|(_, part)| part).collect(),
        n_top,
        are_choices: wire.choices.is_some(),
        warnings: notices.warnings(),
    };
    Ok(Task { requests, answer, notices })
}

/// A text by itself: its first token is scored only behind a beginning-of-sequence token.
fn whole(
    field: &str,
    text: String,
    tokens: Vec<u32>,
    model: &LoadedModel,
) -> Result<(Vec<u32>, Part), ServeError> {
    if tokens.len() < 2 {
        let reason = format!("{field} has {} tokens, and the first has nothing before it", tokens.len());
        return Err(ServeError::invalid(field, reason));
    }
    check_ids(field, &tokens, &model.tokenizer)?;
    Ok((tokens, Part { text, start: 1 }))
}

/// Each choice begins where its tokens part from the context's own: a token that spans the border is the choice's.
fn continuations(
    wire: &ScoreRequest,
    choices: &[String],
    model: &LoadedModel,
) -> Result<Vec<(Vec<u32>, Part)>, ServeError> {
    let n_choices = choices.len();
    if n_choices == 0 || n_choices > MAX_CHOICES {
        let reason = format!("choices has {n_choices} entries, but must have 1 to {MAX_CHOICES}");
        return Err(ServeError::invalid("choices", reason));
    }
    let context = wire.context.as_deref().unwrap_or_default();
    let before = encode(&model.tokenizer, "context", context, wire.add_special, None)?;
    let read = |(i, choice): (usize, &String)| {
        let field = format!("choices[{i}]");
        let tokens = encode(&model.tokenizer, &field, &format!("{context}{choice}"), wire.add_special, None)?;
        let start = before.iter().zip(&tokens).take_while(|(a, b)| a == b).count();
        if choice.is_empty() || start == tokens.len() {
            return Err(ServeError::invalid(&field, format!("{field} adds nothing to the context")));
        }
        if start == 0 {
            let reason = "context is empty and this model has no beginning-of-sequence token to stand for it";
            return Err(ServeError::invalid("context", reason));
        }
        Ok((tokens, Part { text: choice.clone(), start }))
    };
    choices.iter().enumerate().map(read).collect()
}

impl Answer {
    /// # Errors
    /// The model failed, or the server ended the request.
    pub async fn whole(self, mut generation: Generation) -> Result<ScoreAnswer, ServeError> {
        let collected = collect(&mut generation, self.texts.len(), 1).await?;
        let scores = self.texts.iter().zip(&collected);
        let scores: Vec<Score> = scores.map(|(part, found)| self.score(part, &found.prompt)).collect();
        let best = |of: fn(&Score) -> f64| {
            let scored = scores.iter().map(of).enumerate().filter(|_| self.are_choices);
            // The first of equals.
            scored.reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(i, _)| i)
        };
        Ok(ScoreAnswer {
            best: best(|score| score.logprob),
            best_per_byte: best(|score| score.logprob_per_byte),
            model: self.model,
            n_tokens: self.n_tokens,
            warnings: self.warnings,
            scores,
        })
    }

    fn score(&self, part: &Part, prompt: &[PromptToken]) -> Score {
        let scored = prompt.iter().skip(part.start).filter_map(|token| token.logprobs.as_ref());
        let is_first =
            |logprobs: &Logprobs| logprobs.top.first().is_some_and(|top| top.id == logprobs.token.id);
        let is_greedy = scored.clone().all(is_first);
        let tokens: Vec<ScoredToken> = scored.map(|logprobs| self.token(logprobs)).collect();
        let logprob: f64 = tokens.iter().map(|token| f64::from(token.logprob)).sum();
        let logprob_per_token = logprob / tokens.len().max(1) as f64;
        Score {
            text: part.text.clone(),
            logprob,
            logprob_per_token,
            logprob_per_byte: logprob / part.text.len().max(1) as f64,
            perplexity: (-logprob_per_token).exp().min(f64::MAX),
            is_greedy,
            tokens,
        }
    }

    fn token(&self, logprobs: &Logprobs) -> ScoredToken {
        let text = |id: u32| {
            let bytes = self.tokenizer.token_bytes(id).unwrap_or_default();
            String::from_utf8_lossy(bytes).into_owned()
        };
        let top = logprobs.top.iter().take(self.n_top);
        let top =
            top.map(|t| Alternative { id: t.id, text: text(t.id), logprob: t.logprob.max(MIN_LOGPROB) });
        let token = &logprobs.token;
        ScoredToken {
            id: token.id,
            text: text(token.id),
            logprob: token.logprob.max(MIN_LOGPROB),
            top: top.collect(),
        }
    }
}
