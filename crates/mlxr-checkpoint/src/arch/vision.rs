//! Models that read images: a text model of a family of its own behind a vision tower and a projector.

use super::families::CLIP_VISION;
use super::{ALL, ArchSpec};
use crate::gguf::RawTensor;

/// One such model family.
#[derive(Debug)]
pub struct Multimodal {
    /// `model_type` in a Hugging Face config.json.
    pub model_type: &'static str,
    /// The `model_type`s its text model may have; the first one where nothing is said.
    text: &'static [&'static str],
    /// The tower and the projector.
    pub(crate) tower: &'static ArchSpec,
    /// Prefixes of their tensors.
    tower_prefixes: &'static [&'static str],
    /// Prefixes of the text model's tensors, and what that calls them itself.
    text_prefixes: &'static [(&'static str, &'static str)],
}

const ALL_MULTIMODAL: &[&Multimodal] = &[&LLAVA];

const LLAVA: Multimodal = Multimodal {
    model_type: "llava",
    text: &["llama", "mistral", "qwen2"],
    tower: &CLIP_VISION,
    tower_prefixes: &[
        "vision_tower.",
        "multi_modal_projector.",
        "model.vision_tower.",
        "model.multi_modal_projector.",
    ],
    text_prefixes: &[
        ("language_model.model.", "model."),
        ("language_model.lm_head.", "lm_head."),
        ("model.language_model.", "model."),
    ],
};

impl Multimodal {
    pub fn for_model_type(model_type: &str) -> Option<&'static Multimodal> {
        ALL_MULTIMODAL.iter().copied().find(|family| family.model_type == model_type)
    }

    /// The `model_type`s of all of them.
    pub fn all() -> impl Iterator<Item = &'static str> {
        ALL_MULTIMODAL.iter().map(|family| family.model_type)
    }

    /// The family of the text model, which config.json names in its `text_config`.
    pub fn text_arch(&self, stated: Option<&str>) -> Option<&'static ArchSpec> {
        let name = stated.unwrap_or(self.text[0]);
        ALL.iter().copied().find(|arch| arch.model_type == name && self.text.contains(&name))
    }

    /// The `model_type`s that text models may have, for messages.
    pub fn supported_texts(&self) -> String {
        self.text.join(", ")
    }

    /// The tensors of tower and projector, and those of the text model under its own names.
    pub(crate) fn part(&self, tensors: Vec<RawTensor>) -> (Vec<RawTensor>, Vec<RawTensor>) {
        let is_tower =
            |raw: &RawTensor| self.tower_prefixes.iter().any(|prefix| raw.tensor.name().starts_with(prefix));
        let (tower, text): (Vec<_>, Vec<_>) = tensors.into_iter().partition(is_tower);
        let renamed = |raw: RawTensor| {
            let name = raw.tensor.name();
            let found = self.text_prefixes.iter();
            let own = found
                .filter_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)))
                .next()
                .unwrap_or_else(|| name.to_owned());
            RawTensor { tensor: raw.tensor.renamed(own), path: raw.path }
        };
        (tower, text.into_iter().map(renamed).collect())
    }
}
