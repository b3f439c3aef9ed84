//! Templates for models that come without one.

const CHATML: &str = include_str!("chatml.jinja");
const LLAMA3: &str = include_str!("llama3.jinja");
const LLAMA2: &str = include_str!("llama2.jinja");
const MISTRAL: &str = include_str!("mistral.jinja");
const GEMMA: &str = include_str!("gemma.jinja");

/// The template whose markers the vocabulary has; without any, the family's, and ChatML for the rest.
pub(super) fn choose(model_type: &str, has_token: impl Fn(&str) -> bool) -> &'static str {
    if has_token("<|im_start|>") {
        return CHATML;
    }
    if has_token("<|start_header_id|>") {
        return LLAMA3;
    }
    if has_token("<start_of_turn>") {
        return GEMMA;
    }
    if has_token("[INST]") {
        return MISTRAL;
    }
    match model_type {
        "llama" => LLAMA2,
        "mistral" | "mixtral" => MISTRAL,
        family if family.starts_with("gemma") => GEMMA,
        _ => CHATML,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_decide_before_the_family_does() {
        assert_eq!(choose("llama", |t| t == "<|im_start|>"), CHATML);
        assert_eq!(choose("llama", |t| t == "<|start_header_id|>"), LLAMA3);
        assert_eq!(choose("llama", |_| false), LLAMA2);
        assert_eq!(choose("mistral", |_| false), MISTRAL);
        assert_eq!(choose("gemma3_text", |_| false), GEMMA);
        assert_eq!(choose("qwen3", |_| false), CHATML);
    }
}
