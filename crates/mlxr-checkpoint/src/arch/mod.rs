//! What differs between model families and between file formats, as tables: tensor names, hyperparameter names,
//! defaults and quirks. No code elsewhere names a family.

mod families;
mod hparams;
mod rope;
mod tensors;
mod unread;
mod vision;

use std::collections::HashMap;

pub use families::ALL;
pub(crate) use hparams::{
    CLASSIFIER_POOLING, CLASSIFIER_POOLINGS, complete_config, config_from_gguf, generation_from_gguf,
    normalise_config, sampling_entries,
};
pub use hparams::{Default, HParam, Kind};
pub(crate) use rope::{Llama3, fill_scaling};
pub use tensors::{Layout, TensorRule};
pub(crate) use unread::unread_keys;
pub use vision::Multimodal;

/// One model family.
#[derive(Debug)]
pub struct ArchSpec {
    /// `model_type` in a Hugging Face config.json.
    pub model_type: &'static str,
    /// Other `model_type`s of the same family.
    pub aliases: &'static [&'static str],
    /// `architectures[0]` written to new config.json files.
    pub hf_class: &'static str,
    /// `general.architecture` in a GGUF file.
    pub gguf_arch: &'static str,
    /// The GGUF converter reorders q and k rows so that rotated pairs are neighbours.
    pub gguf_permutes_qk: bool,
    /// Hugging Face files store norm weights as `w` and multiply by `1 + w`.
    pub hf_norm_plus_one: bool,
    /// Names in Hugging Face files; of rules for the same tensor a writer takes the first.
    pub hf: &'static [&'static [TensorRule]],
    /// Names in MLX files where they differ from Hugging Face's.
    pub mlx: &'static [&'static [TensorRule]],
    /// Names in GGUF files; of rules for the same tensor a writer takes the first.
    pub gguf: &'static [&'static [TensorRule]],
    /// Prefixes to replace in Hugging Face tensor names, for wrappers that put the text model inside another one.
    pub hf_renames: &'static [(&'static str, &'static str)],
    /// Prefixes of Hugging Face tensors that a text model does not use: buffers, vision towers.
    pub hf_ignored: &'static [&'static str],
    pub hparams: &'static [&'static [HParam]],
    /// What config.json means when it does not say (and what a GGUF file never says).
    pub defaults: &'static [(&'static str, Default)],
    /// Where a GGUF file that does not say means something else.
    pub gguf_defaults: &'static [(&'static str, Default)],
    /// Of this many layers the last one attends to everything, the others to a window; 0 where all are alike.
    pub swa_period: u64,
    /// GGUF files do not say how queries are scaled: by the head size, except in the variant with this many layers,
    /// by `hidden_size / num_attention_heads`.
    pub query_scalar_layers: Option<u64>,
    /// Rows see the whole text and nothing is generated.
    pub encoder: bool,
    /// Fields of config.json that some makers spell in another way, and our spelling.
    pub config_names: &'static [(&'static str, &'static str)],
}

impl ArchSpec {
    /// The family of a Hugging Face `model_type`.
    pub fn for_model_type(model_type: &str) -> Option<&'static ArchSpec> {
        ALL.iter().copied().find(|a| a.model_type == model_type || a.aliases.contains(&model_type))
    }

    /// The family of a GGUF architecture name; several families share `llama`, told apart by what they
    /// have: experts, a window.
    pub fn for_gguf(name: &str, n_experts: u64, window: u64) -> Option<&'static ArchSpec> {
        let mut same = ALL.iter().copied().filter(|a| a.gguf_arch == name);
        let first = same.next()?;
        let windowed = |a: &&ArchSpec| a.hparams.iter().copied().flatten().any(|h| h.hf == "sliding_window");
        if n_experts > 0 {
            Some(same.find(|a| a.is_moe()).unwrap_or(first))
        } else if window > 0 && !windowed(&first) {
            Some(same.find(windowed).unwrap_or(first))
        } else {
            Some(first)
        }
    }

    /// Whether the family has experts.
    pub fn is_moe(&self) -> bool {
        self.rules(Naming::Gguf).any(|rule| rule.parts.iter().any(|part| part.contains(".moe.")))
    }

    /// The `model_type`s of all families, for messages.
    pub fn supported() -> String {
        ALL.iter().map(|a| a.model_type).chain(Multimodal::all()).collect::<Vec<_>>().join(", ")
    }

    /// The `general.architecture`s of all families, for messages.
    pub fn supported_gguf() -> String {
        let mut names: Vec<_> = ALL.iter().map(|a| a.gguf_arch).collect();
        names.sort_unstable();
        names.dedup();
        names.join(", ")
    }

    pub(crate) fn rules(&self, naming: Naming) -> impl Iterator<Item = &'static TensorRule> + use<> {
        let (first, then) = match naming {
            Naming::Hf => (self.hf, self.mlx),
            Naming::Mlx => (self.mlx, self.hf),
            Naming::Gguf => (self.gguf, &[][..]),
        };
        first.iter().chain(then).copied().flatten()
    }

    /// The rules by file name pattern.
    pub(crate) fn rule_index(&self, naming: Naming) -> HashMap<&'static str, &'static TensorRule> {
        self.rules(naming).map(|rule| (rule.file, rule)).collect()
    }
}

/// Whose tensor names a file uses. Readers take Hugging Face's and MLX's as one; writers prefer their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Naming {
    Hf,
    Mlx,
    Gguf,
}

/// A tensor name with its numbers taken out: `layers.{i}.moe.up.{e}.weight` and `[3, 5]`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    pub text: String,
    pub numbers: Vec<u32>,
}

const PLACEHOLDERS: [&str; 2] = ["{i}", "{e}"];

impl Pattern {
    /// The pattern of a concrete name; numbers beyond the second stay in the text.
    pub fn of(name: &str) -> Pattern {
        let mut numbers = Vec::new();
        let parts = name.split('.').map(|part| match part.parse::<u32>() {
            Ok(n) if numbers.len() < PLACEHOLDERS.len() && n.to_string() == part => {
                numbers.push(n);
                PLACEHOLDERS[numbers.len() - 1]
            }
            _ => part,
        });
        let text = parts.collect::<Vec<_>>().join(".");
        Pattern { text, numbers }
    }

    /// `pattern` with the numbers put in.
    pub fn fill(pattern: &str, numbers: &[u32]) -> String {
        let mut text = pattern.to_owned();
        for (placeholder, n) in PLACEHOLDERS.iter().zip(numbers) {
            text = text.replace(placeholder, &n.to_string());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_patterns_and_back() {
        let name = "model.layers.12.mlp.experts.7.up_proj.weight";
        let pattern = Pattern::of(name);
        assert_eq!(pattern.text, "model.layers.{i}.mlp.experts.{e}.up_proj.weight");
        assert_eq!(Pattern::fill(&pattern.text, &pattern.numbers), name);
        assert_eq!(Pattern::of("blk.01.x").text, "blk.01.x");
    }

    #[test]
    fn every_table_names_each_file_tensor_once_and_agrees_on_the_canonical_names() {
        for arch in ALL {
            for naming in [Naming::Hf, Naming::Gguf] {
                assert_eq!(arch.rule_index(naming).len(), arch.rules(naming).count(), "{}", arch.model_type);
            }
        }
    }

    #[test]
    fn gguf_llama_with_experts_is_mixtral_and_with_a_window_mistral() {
        let found = |n_experts, window| ArchSpec::for_gguf("llama", n_experts, window).map(|a| a.model_type);
        assert_eq!(found(0, 0), Some("llama"));
        assert_eq!(found(8, 0), Some("mixtral"));
        assert_eq!(found(0, 4096), Some("mistral"));
        assert_eq!(ArchSpec::for_gguf("qwen2", 0, 9).map(|a| a.model_type), Some("qwen2"));
        assert!(ArchSpec::for_gguf("rwkv", 0, 0).is_none());
    }
}
