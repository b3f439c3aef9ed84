//! Log-probabilities as the two endpoints show them.

use mlxr_api::openai::chat::{ChatTokenLogprob, TopLogprob};
use mlxr_api::openai::completions::{CompletionLogprobs, TopLogprobs};
use mlxr_engine::sampler::Logprobs;
use mlxr_text::Tokenizer;

/// JSON has no infinity; OpenAI shows this for a token that cannot be.
const MIN_LOGPROB: f32 = -9999.0;

fn finite(logprob: f32) -> f32 {
    logprob.max(MIN_LOGPROB)
}

/// A token of a chat answer.
pub fn chat_token(tokenizer: &Tokenizer, logprobs: &Logprobs) -> ChatTokenLogprob {
    let top = |id: u32, logprob: f32| {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default().to_vec();
        TopLogprob { token: String::from_utf8_lossy(&bytes).into_owned(), logprob: finite(logprob), bytes }
    };
    let TopLogprob { token, logprob, bytes } = top(logprobs.token.id, logprobs.token.logprob);
    let top_logprobs = logprobs.top.iter().map(|t| top(t.id, t.logprob)).collect();
    ChatTokenLogprob { token, logprob, bytes, top_logprobs }
}

/// Appends a token of a completion, which begins after `offset` characters of the text.
pub fn push_completion_token(
    out: &mut CompletionLogprobs,
    tokenizer: &Tokenizer,
    id: u32,
    logprobs: Option<&Logprobs>,
    offset: usize,
) {
    out.tokens.push(spelling(tokenizer, id));
    out.token_logprobs.push(logprobs.map(|found| finite(found.token.logprob)));
    out.top_logprobs.push(logprobs.map(|found| {
        let mut top: Vec<(String, f32)> = Vec::with_capacity(found.top.len());
        for t in &found.top {
            let token = spelling(tokenizer, t.id);
            // Ids can share a spelling; the likelier one stands for both.
            if top.iter().all(|(known, _)| *known != token) {
                top.push((token, finite(t.logprob)));
            }
        }
        TopLogprobs(top)
    }));
    out.text_offset.push(offset);
}

/// A token's text, or its bytes as OpenAI spells those that are no text by themselves.
pub fn spelling(tokenizer: &Tokenizer, id: u32) -> String {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| text + &format!("\\x{byte:02x}")),
    }
}
