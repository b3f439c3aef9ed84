//! The prefix cache and the books of KV blocks, as people ask about them.

use mlxr_api::native::cache::{
    CacheStats, ExplainAnswer, ExplainReason, ExplainRequest, ModelIntegrity, TokenText,
};
use mlxr_api::native::requests::RunningRequest;
use mlxr_engine::{PrefixExplanation, PrefixStop, Prompt, RequestInfo};
use mlxr_text::EncodeOptions;

use super::template::Spoken;
use super::text::check_ids;
use super::unknown_fields;
use crate::ServeError;
use crate::loaded::LoadedModel;
use crate::notices::Notices;

pub fn running(model: &str, info: RequestInfo) -> RunningRequest {
    RunningRequest {
        model: model.to_owned(),
        id: info.id.0,
        label: info.label,
        state: info.state.name().to_owned(),
        priority: info.priority,
        n_choices: info.n_choices,
        n_prompt: info.n_prompt,
        n_done_prompt: info.n_done_prompt,
        n_cached: info.n_cached,
        n_generated: info.n_generated,
        age_s: info.age.as_secs_f64(),
    }
}

pub fn stats(model: &LoadedModel, block_tokens: usize) -> CacheStats {
    let stats = model.engine.cache_stats();
    let rate = |hits: u64, all: u64| (all > 0).then(|| hits as f64 / all as f64);
    CacheStats {
        model: model.name.clone(),
        is_on: stats.is_on,
        block_tokens,
        n_lookups: stats.n_lookups,
        n_lookup_tokens: stats.n_lookup_tokens,
        n_hit_tokens: stats.n_hit_tokens,
        hit_rate: rate(stats.n_hit_tokens, stats.n_lookup_tokens),
        n_blocks: stats.n_blocks,
        n_idle_blocks: stats.n_idle_blocks,
        n_evictions: stats.n_evictions,
    }
}

/// The prompt somebody asks about.
///
/// # Errors
/// It is not given in exactly one way, or cannot be read.
pub fn prompt(
    wire: &ExplainRequest,
    model: &LoadedModel,
    strict: bool,
) -> Result<(Prompt, Notices), ServeError> {
    let mut notices = unknown_fields(&wire.unknown, strict || wire.strict == Some(true))?;
    if wire.messages.is_none() {
        let names = [
            ("tools", wire.tools.is_some()),
            ("chat_template_kwargs", wire.chat_template_kwargs.is_some()),
            ("continue_final_message", wire.continue_final_message.is_some()),
        ];
        for (name, _) in names.iter().filter(|(_, is_said)| *is_said) {
            notices.add(*name, "only messages go through the chat template");
        }
    }
    let prompt = match (&wire.prompt, &wire.messages, &wire.tokens) {
        (Some(text), None, None) => {
            Prompt::Text(text.clone(), EncodeOptions { add_special: true, parse_special: true })
        }
        (None, None, Some(tokens)) => {
            check_ids("tokens", tokens, &model.tokenizer)?;
            Prompt::Tokens(tokens.clone())
        }
        (None, Some(messages), None) => {
            let spoken = Spoken {
                messages,
                tools: wire.tools.as_deref(),
                variables: wire.chat_template_kwargs.as_ref(),
                goes_on: wire.continue_final_message == Some(true),
            };
            Prompt::Tokens(spoken.written(model, &mut notices)?.tokens)
        }
        _ => {
            let reason = "exactly one of prompt, messages and tokens must be given";
            return Err(ServeError::Invalid { field: None, reason: reason.to_owned() });
        }
    };
    notices.enforce(strict || wire.strict == Some(true))?;
    Ok((prompt, notices))
}

pub fn explained(model: &LoadedModel, found: PrefixExplanation, warnings: Vec<String>) -> ExplainAnswer {
    let (reason, explanation) = reason(&found);
    let token = |text: mlxr_engine::TokenText| TokenText { id: text.id, text: text.text };
    let (cached, prompt) = found.differing.map(|(cached, prompt)| (token(cached), token(prompt))).unzip();
    ExplainAnswer {
        model: model.name.clone(),
        n_prompt: found.n_prompt,
        n_matched: found.n_matched,
        block_tokens: found.block_tokens,
        token_idx: found.token_idx,
        char_idx: found.char_idx,
        reason,
        explanation,
        cached,
        prompt,
        warnings,
    }
}

fn reason(found: &PrefixExplanation) -> (ExplainReason, String) {
    let place = format!("token {} (character {})", found.token_idx, found.char_idx);
    match found.stop {
        PrefixStop::Off => (ExplainReason::Off, "the prefix cache is switched off".to_owned()),
        PrefixStop::BlockNotFull { n_left } => {
            let size = found.block_tokens;
            let text = format!(
                "the last {n_left} tokens do not fill a block of {size}, and only full blocks are cached"
            );
            (ExplainReason::BlockNotFull, text)
        }
        PrefixStop::LastToken => {
            let text =
                "everything is cached; the block of the last token is computed again, for what follows it";
            (ExplainReason::LastToken, text.to_owned())
        }
        PrefixStop::NeverSeen => {
            (ExplainReason::NeverSeen, "no prompt that is cached begins like this".to_owned())
        }
        PrefixStop::CachedTextEnds => {
            (ExplainReason::CachedTextEnds, format!("what is cached ends before {place}"))
        }
        PrefixStop::Diverges { .. } => {
            let text = found.differing.as_ref().map_or_else(
                || format!("what is cached goes on differently from {place}"),
                |(cached, prompt)| {
                    format!("at {place} is {:?}, but cached is {:?}", prompt.text, cached.text)
                },
            );
            (ExplainReason::Diverges, text)
        }
        PrefixStop::Evicted => {
            (ExplainReason::Evicted, format!("what was cached from {place} on was given up"))
        }
    }
}

/// # Errors
/// The engine is gone.
pub async fn integrity(model: &LoadedModel) -> Result<ModelIntegrity, ServeError> {
    let error = model.engine.check_integrity().await?.err().map(|error| error.to_string());
    if let Some(error) = &error {
        tracing::error!(model = model.name, error, "the books of KV blocks do not balance");
    }
    let blocks = model.engine.stats().blocks;
    let model = model.name.clone();
    Ok(ModelIntegrity {
        model,
        is_ok: error.is_none(),
        error,
        n_blocks: blocks.n_blocks,
        n_free: blocks.n_free,
    })
}
