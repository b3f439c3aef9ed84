//! How many multiplications with weights a token takes: what any program has to do, beside attention.

use mlxr_checkpoint::Checkpoint;
use mlxr_tensor::Format;

use crate::config::{DecoderConfig, MlpConfig};

/// Multiplications with the weights of one format, each with its addition.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Multiplications {
    pub format: Format,
    /// For a token.
    pub of_token: f64,
    /// For the logits of a token, beside those.
    pub of_logits: f64,
}

impl Multiplications {
    /// One entry for each format that has matrices.
    pub fn of(config: &DecoderConfig, ckpt: &Checkpoint) -> Vec<Multiplications> {
        let mut all: Vec<Multiplications> = Vec::new();
        let matrices =
            ckpt.tensors().filter(|tensor| tensor.name().ends_with(".weight") && tensor.shape().len() > 1);
        for tensor in matrices {
            let n = tensor.shape().iter().product::<usize>() as f64;
            let (of_token, of_logits) = match tensor.name() {
                "embed_tokens.weight" if !config.tied => continue,
                "embed_tokens.weight" | "lm_head.weight" => (0.0, n),
                name if config.is_for_logits(name) => (0.0, n * config.share_met(name)),
                name => (n * config.share_met(name), 0.0),
            };
            let format = tensor.format();
            match all.iter_mut().find(|entry| entry.format == format) {
                Some(entry) => {
                    entry.of_token += of_token;
                    entry.of_logits += of_logits;
                }
                None => all.push(Multiplications { format, of_token, of_logits }),
            }
        }
        all
    }
}

impl DecoderConfig {
    /// Whether a layer's tensor is met by tokens whose logits are wanted alone: it is behind the last keys and values.
    fn is_for_logits(&self, name: &str) -> bool {
        let last = format!("layers.{}.", self.layers.len() - 1);
        let part = name.strip_prefix(&last);
        part.is_some_and(|part| !["attn.q", "attn.k", "attn.v"].iter().any(|before| part.starts_with(before)))
    }

    /// The share of a layer's tensor that a token meets: of experts those that are chosen.
    fn share_met(&self, name: &str) -> f64 {
        let expert = name.strip_prefix("layers.").and_then(|rest| rest.split_once(".moe."));
        let Some((layer, part)) = expert else { return 1.0 };
        match layer.parse().ok().and_then(|layer: usize| self.layers.get(layer)).map(|layer| &layer.mlp) {
            Some(MlpConfig::Experts { n_experts, router, .. }) if !part.starts_with("router") => {
                router.top_k as f64 / *n_experts as f64
            }
            _ => 1.0,
        }
    }
}
