//! A generation read to its end, for answers in one piece.

use mlxr_engine::sampler::Logprobs;
use mlxr_engine::{Event, FinishReason, PromptToken, Timings, Usage};

use crate::ServeError;
use crate::generation::Generation;

/// What became of one prompt.
#[derive(Clone, Debug, Default)]
pub struct Collected {
    /// Log-probabilities of the prompt, if asked for.
    pub prompt: Vec<PromptToken>,
    pub choices: Vec<CollectedChoice>,
    pub usage: Usage,
    pub timings: Timings,
}

/// One continuation.
#[derive(Clone, Debug, Default)]
pub struct CollectedChoice {
    pub text: String,
    pub tokens: Vec<(u32, Option<Logprobs>)>,
    pub reason: Option<FinishReason>,
}

/// Reads everything, for `n_prompts` prompts with `n_choices` choices each.
///
/// # Errors
/// The model failed, or the server ended the requests.
pub async fn collect(
    generation: &mut Generation,
    n_prompts: usize,
    n_choices: usize,
) -> Result<Vec<Collected>, ServeError> {
    let empty = Collected { choices: vec![CollectedChoice::default(); n_choices], ..Collected::default() };
    let mut all = vec![empty; n_prompts];
    while let Some((prompt_idx, event)) = generation.next().await {
        let collected = &mut all[prompt_idx];
        match event {
            Event::Prompt { tokens, .. } => collected.prompt.extend(tokens),
            Event::Token { choice, id, text, logprobs, .. } => {
                let choice = &mut collected.choices[choice as usize];
                choice.text.push_str(&text);
                choice.tokens.push((id, logprobs));
            }
            Event::ChoiceEnd { choice, reason, text, .. } => {
                let choice = &mut collected.choices[choice as usize];
                choice.text.push_str(&text);
                choice.reason = Some(reason);
            }
            Event::Finish { reason: FinishReason::Error(cause), .. } => {
                return Err(ServeError::Internal { cause });
            }
            Event::Finish { reason: FinishReason::DeviceLost(reason), .. } => {
                return Err(ServeError::DeviceLost { reason });
            }
            Event::Finish { reason: FinishReason::Cancelled, .. } => return Err(ServeError::Cancelled),
            Event::Finish { usage, timings, .. } => {
                collected.usage = usage;
                collected.timings = timings;
            }
        }
    }
    Ok(all)
}
