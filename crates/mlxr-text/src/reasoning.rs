//! How models mark their reasoning.
//!
//! Most put it between two tags; in some templates the prompt already ends with the opening one. gpt-oss has channels,
//! where everything before the final channel's text is reasoning as far as a grammar is concerned.

/// The tags of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReasoningTags {
    pub open: String,
    pub close: String,
    /// The prompt has opened it already.
    pub is_open: bool,
    /// What is put in the model's mouth when its budget is spent.
    pub forced_end: String,
}

/// Pairs of tags in use, the rarer spellings first.
const TAGS: [(&str, &str); 7] = [
    ("<|channel>thought", "<channel|>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<reasoning>", "</reasoning>"),
    ("<thinking>", "</thinking>"),
    ("<think>", "</think>"),
];

const HARMONY_FINAL: &str = "<|channel|>final<|message|>";

impl ReasoningTags {
    /// Tags of one's own.
    pub fn new(open: &str, close: &str) -> ReasoningTags {
        let (open, close) = (open.to_owned(), close.to_owned());
        ReasoningTags { forced_end: format!("\n{close}"), open, close, is_open: false }
    }

    /// The tags a chat template uses.
    pub fn detect(template: &str) -> Option<ReasoningTags> {
        if template.contains("<|channel|>") && template.contains("analysis") {
            return Some(ReasoningTags {
                open: "<|channel|>analysis<|message|>".to_owned(),
                close: HARMONY_FINAL.to_owned(),
                is_open: true,
                forced_end: format!("<|end|><|start|>assistant{HARMONY_FINAL}"),
            });
        }
        let found = TAGS.iter().find(|(open, close)| template.contains(open) && template.contains(close));
        // Some templates only ever take the reasoning of earlier turns out.
        let found = found.or_else(|| TAGS.iter().find(|(_, close)| template.contains(close)));
        found.map(|(open, close)| ReasoningTags::new(open, close))
    }

    /// The same tags, open if that is how the rendered prompt leaves them. `None` if it closes them: the model is not
    /// to reason.
    pub fn after_prompt(mut self, prompt: &str) -> Option<ReasoningTags> {
        if self.close == HARMONY_FINAL {
            self.is_open = !prompt.ends_with(HARMONY_FINAL);
            return self.is_open.then_some(self);
        }
        let end = prompt.trim_end();
        self.is_open = end.ends_with(&self.open);
        (!end.ends_with(&self.close)).then_some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_says_whether_the_tag_is_open() {
        let tags = ReasoningTags::detect("{{ '<think>' }} x {{ '</think>' }}").unwrap();
        assert_eq!((tags.open.as_str(), tags.close.as_str()), ("<think>", "</think>"));
        assert!(!tags.clone().after_prompt("<|im_start|>assistant\n").unwrap().is_open);
        assert!(tags.clone().after_prompt("<|im_start|>assistant\n<think>\n").unwrap().is_open);
        assert_eq!(tags.after_prompt("<|im_start|>assistant\n<think>\n\n</think>\n\n"), None);
    }

    #[test]
    fn a_template_without_tags_has_none() {
        assert_eq!(ReasoningTags::detect("{{ messages }}"), None);
    }
}
