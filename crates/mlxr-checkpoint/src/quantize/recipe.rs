//! Which tensor gets which type in a mixed recipe. The rules are those of the GGML ecosystem (llama-quant.cpp), so
//! a file of a given name has the same types whoever made it.

use mlxr_tensor::DType;

use crate::convert::stays_f32;
use crate::file_type::FileType;

/// What the rules ask about a model.
#[derive(Clone, Copy, Debug)]
pub(super) struct ModelFacts {
    pub n_layers: usize,
    /// Query heads per key-value head.
    pub n_gqa: usize,
    pub n_experts: usize,
    /// No `output.weight`: the embedding is the output too.
    pub is_tied: bool,
    /// The 80-layer llama with grouped heads, whose value matrices are small.
    pub is_llama_70b: bool,
    pub has_importance: bool,
    /// Tensors that hold attention values.
    pub n_values: usize,
}

/// The role of a tensor, from its GGUF name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    TokenEmbedding,
    Output,
    Value,
    Key,
    Query,
    AttentionOutput,
    FfnUp,
    FfnGate,
    FfnDown,
    Other,
}

impl Role {
    pub fn of(name: &str) -> Role {
        const BY_PART: [(&str, Role); 9] = [
            ("attn_qkv.weight", Role::Value),
            ("attn_kv_b.weight", Role::Value),
            ("attn_v.weight", Role::Value),
            ("attn_k.weight", Role::Key),
            ("attn_q.weight", Role::Query),
            ("attn_output.weight", Role::AttentionOutput),
            ("ffn_up", Role::FfnUp),
            ("ffn_gate", Role::FfnGate),
            ("ffn_down", Role::FfnDown),
        ];
        match name {
            "output.weight" => Role::Output,
            "token_embd.weight" => Role::TokenEmbedding,
            _ => BY_PART.iter().find(|(part, _)| name.contains(part)).map_or(Role::Other, |(_, role)| *role),
        }
    }
}

/// The layer in `blk.7.attn_v.weight`.
pub(super) fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// Whether a tensor is quantised at all.
pub(super) fn is_quantised(name: &str, shape: &[usize]) -> bool {
    !stays_f32(name, shape)
}

/// The type the recipe gives a tensor; `n_seen_values` value tensors came before it.
pub(super) fn type_for(
    recipe: FileType,
    facts: &ModelFacts,
    name: &str,
    shape: &[usize],
    n_seen_values: usize,
) -> DType {
    let role = Role::of(name);
    let base = recipe.base();
    if !base.is_quantised() {
        return base;
    }
    if role == Role::Output || (facts.is_tied && role == Role::TokenEmbedding) {
        return output_type(recipe, shape);
    }
    if recipe == FileType::MXFP4_MOE {
        return if shape.len() == 3 { DType::MXFP4 } else { DType::Q8_0 };
    }
    let layer = layer_of(name).unwrap_or(0);
    if role == Role::TokenEmbedding {
        return embedding_type(recipe);
    }
    if is_two_bit(recipe) {
        return two_bit_type(recipe, facts, role, layer);
    }
    match role {
        Role::Value => value_type(recipe, facts, n_seen_values),
        Role::Key | Role::Query => key_query_type(recipe, facts, role),
        Role::FfnDown => down_type(recipe, facts, layer),
        Role::AttentionOutput => attention_output_type(recipe, facts),
        Role::FfnGate | Role::FfnUp => match recipe {
            FileType::IQ3_XS if layer >= facts.n_layers / 8 && layer < 7 * facts.n_layers / 8 => {
                DType::IQ3_XXS
            }
            _ => base,
        },
        _ => base,
    }
}

fn is_two_bit(recipe: FileType) -> bool {
    use FileType::{IQ1_M, IQ1_S, IQ2_M, IQ2_S, IQ2_XS, IQ2_XXS};
    matches!(recipe, IQ1_M | IQ1_S | IQ2_M | IQ2_S | IQ2_XS | IQ2_XXS)
}

fn output_type(recipe: FileType, shape: &[usize]) -> DType {
    let cols = shape.last().copied().unwrap_or(1);
    let base = recipe.base();
    if recipe == FileType::MXFP4_MOE || !cols.is_multiple_of(base.block_len()) {
        DType::Q8_0
    } else if is_two_bit(recipe) || recipe == FileType::IQ3_XXS {
        DType::Q5_K
    } else if base != DType::Q8_0 {
        DType::Q6_K
    } else {
        base
    }
}

fn embedding_type(recipe: FileType) -> DType {
    use FileType::{IQ1_M, IQ1_S, IQ2_M, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_XXS, TQ1_0, TQ2_0};
    match recipe {
        IQ2_XXS | IQ2_XS | IQ1_S | IQ1_M => DType::Q2_K,
        IQ2_S | IQ2_M | IQ3_XXS => DType::IQ3_S,
        TQ1_0 | TQ2_0 => DType::Q4_K,
        _ => recipe.base(),
    }
}

fn two_bit_type(recipe: FileType, facts: &ModelFacts, role: Role, layer: usize) -> DType {
    let better = if matches!(recipe, FileType::IQ2_S | FileType::IQ2_M) { DType::IQ3_S } else { DType::Q2_K };
    match role {
        Role::Value if facts.n_gqa >= 4 || facts.n_experts >= 4 => DType::Q4_K,
        Role::Value => better,
        Role::Key if facts.n_experts == 8 => DType::Q4_K,
        Role::FfnDown if layer < facts.n_layers / 8 => better,
        Role::AttentionOutput if facts.n_experts == 8 => DType::Q5_K,
        Role::AttentionOutput => match recipe {
            FileType::IQ1_S | FileType::IQ1_M => DType::IQ2_XXS,
            FileType::IQ2_S | FileType::IQ2_M => DType::IQ3_S,
            _ => recipe.base(),
        },
        _ => recipe.base(),
    }
}

/// The first and last eighth of the layers and every third between them.
fn more_bits(i: usize, n: usize) -> bool {
    i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2
}

fn value_type(recipe: FileType, facts: &ModelFacts, i: usize) -> DType {
    let grouped = facts.n_gqa >= 4;
    let chosen = match recipe {
        FileType::Q2_K => {
            if grouped {
                DType::Q4_K
            } else {
                DType::Q3_K
            }
        }
        FileType::Q2_K_S | FileType::IQ3_XS | FileType::IQ3_S if grouped => DType::Q4_K,
        FileType::IQ3_XXS if grouped => DType::Q4_K,
        FileType::IQ3_XXS if !facts.has_importance => DType::IQ3_S,
        FileType::IQ3_M => DType::Q4_K,
        FileType::Q3_K_M => {
            if i < 2 {
                DType::Q5_K
            } else {
                DType::Q4_K
            }
        }
        FileType::Q3_K_L => DType::Q5_K,
        FileType::IQ4_NL | FileType::IQ4_XS if grouped => DType::Q5_K,
        FileType::Q4_K_M | FileType::Q5_K_M if more_bits(i, facts.n_values) => DType::Q6_K,
        FileType::Q4_K_S if i < 4 => DType::Q5_K,
        _ => recipe.base(),
    };
    if facts.n_experts == 8 {
        DType::Q8_0
    } else if facts.is_llama_70b && matches!(chosen, DType::Q3_K | DType::Q4_K) {
        DType::Q5_K
    } else {
        chosen
    }
}

fn key_query_type(recipe: FileType, facts: &ModelFacts, role: Role) -> DType {
    match recipe {
        _ if role == Role::Key && facts.n_experts == 8 => DType::Q8_0,
        FileType::IQ3_XS => DType::IQ3_XXS,
        FileType::IQ3_XXS => DType::IQ2_S,
        _ => recipe.base(),
    }
}

fn down_type(recipe: FileType, facts: &ModelFacts, i: usize) -> DType {
    let n = facts.n_layers;
    let early = i < n / 8;
    match recipe {
        FileType::Q2_K => DType::Q3_K,
        FileType::Q2_K_S if early => DType::Q4_K,
        FileType::IQ3_XXS if !facts.has_importance => {
            if early {
                DType::Q4_K
            } else {
                DType::Q3_K
            }
        }
        FileType::Q3_K_M => {
            if i < n / 16 {
                DType::Q5_K
            } else {
                DType::Q4_K
            }
        }
        FileType::IQ3_M if early || (facts.n_experts == 8 && more_bits(i, n)) => DType::Q4_K,
        FileType::Q3_K_L => DType::Q5_K,
        FileType::Q4_K_M | FileType::Q5_K_M if more_bits(i, n) => DType::Q6_K,
        FileType::IQ4_NL | FileType::IQ4_XS if early && !facts.has_importance => DType::Q5_K,
        FileType::Q4_K_S if early => DType::Q5_K,
        // The first layers can go wrong when importance is followed.
        FileType::Q4_0 if facts.has_importance && early => DType::Q4_1,
        FileType::Q5_0 if facts.has_importance && early => DType::Q5_1,
        _ => recipe.base(),
    }
}

fn attention_output_type(recipe: FileType, facts: &ModelFacts) -> DType {
    use FileType::{
        IQ3_M, IQ3_S, IQ3_XS, IQ3_XXS, IQ4_NL, IQ4_XS, Q2_K, Q3_K_L, Q3_K_M, Q3_K_S, Q4_K_M, Q4_K_S,
    };
    if facts.n_experts == 8 {
        return match recipe {
            Q2_K | IQ3_XS | IQ3_XXS | Q3_K_S | Q3_K_M | IQ4_NL | Q4_K_S | Q4_K_M | IQ3_S | IQ3_M | IQ4_XS => {
                DType::Q5_K
            }
            _ => recipe.base(),
        };
    }
    match recipe {
        Q2_K => DType::Q3_K,
        IQ3_XXS => DType::IQ3_S,
        Q3_K_M | IQ3_M => DType::Q4_K,
        Q3_K_L => DType::Q5_K,
        _ => recipe.base(),
    }
}

/// The type for rows that are no whole number of `wanted`'s blocks: the nearest one with small blocks.
pub(super) fn fallback(wanted: DType, cols: usize) -> DType {
    if cols.is_multiple_of(wanted.block_len()) {
        return wanted;
    }
    let smaller = match wanted {
        DType::IQ1_S | DType::IQ1_M | DType::IQ2_XXS | DType::IQ2_XS | DType::IQ2_S => DType::IQ4_NL,
        DType::IQ3_XXS | DType::IQ3_S | DType::IQ4_XS => DType::IQ4_NL,
        DType::Q2_K | DType::Q3_K | DType::TQ1_0 | DType::TQ2_0 => DType::Q4_0,
        DType::Q4_K => DType::Q5_0,
        DType::Q5_K => DType::Q5_1,
        DType::Q6_K => DType::Q8_0,
        _ => DType::F16,
    };
    if cols.is_multiple_of(smaller.block_len()) { smaller } else { DType::F16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: ModelFacts = ModelFacts {
        n_layers: 32,
        n_gqa: 1,
        n_experts: 0,
        is_tied: false,
        is_llama_70b: false,
        has_importance: false,
        n_values: 32,
    };

    fn types(recipe: FileType, facts: &ModelFacts, part: &str) -> Vec<DType> {
        let of = |i: usize| type_for(recipe, facts, &format!("blk.{i}.{part}.weight"), &[4096, 4096], i);
        (0..facts.n_layers).map(of).collect()
    }

    #[test]
    fn q4_k_m_of_a_7b_has_sixteen_better_value_and_down_matrices() {
        for part in ["attn_v", "ffn_down"] {
            let types = types(FileType::Q4_K_M, &FACTS, part);
            assert_eq!(types.iter().filter(|&&t| t == DType::Q6_K).count(), 16, "{part}");
            assert_eq!(types.iter().filter(|&&t| t == DType::Q4_K).count(), 16, "{part}");
        }
        assert!(types(FileType::Q4_K_M, &FACTS, "attn_q").iter().all(|&t| t == DType::Q4_K));
        let head = |facts| type_for(FileType::Q4_K_M, facts, "token_embd.weight", &[32000, 4096], 0);
        assert_eq!(head(&FACTS), DType::Q4_K);
        assert_eq!(head(&ModelFacts { is_tied: true, ..FACTS }), DType::Q6_K);
        assert_eq!(type_for(FileType::Q4_0, &FACTS, "output.weight", &[32000, 4096], 0), DType::Q6_K);
        assert_eq!(type_for(FileType::Q8_0, &FACTS, "output.weight", &[32000, 4096], 0), DType::Q8_0);
    }

    #[test]
    fn eight_experts_get_better_attention() {
        let facts = ModelFacts { n_experts: 8, n_gqa: 4, ..FACTS };
        assert_eq!(types(FileType::Q4_K_M, &facts, "attn_v")[9], DType::Q8_0);
        assert_eq!(types(FileType::Q4_K_M, &facts, "attn_k")[9], DType::Q8_0);
        assert_eq!(types(FileType::Q4_K_M, &facts, "attn_output")[9], DType::Q5_K);
    }

    #[test]
    fn norms_biases_and_routers_stay() {
        assert!(!is_quantised("blk.0.attn_norm.weight", &[64]));
        assert!(!is_quantised("blk.0.ffn_gate_inp.weight", &[4, 64]));
        assert!(!is_quantised("blk.0.attn_q.bias", &[64]));
        assert!(!is_quantised("blk.0.ffn_up_exps.bias", &[4, 64]));
        assert!(is_quantised("blk.0.ffn_up_exps.weight", &[4, 64, 64]));
    }

    #[test]
    fn short_rows_fall_back_to_small_blocks() {
        assert_eq!(fallback(DType::Q4_K, 512), DType::Q4_K);
        assert_eq!(fallback(DType::Q4_K, 288), DType::Q5_0);
        assert_eq!(fallback(DType::Q6_K, 288), DType::Q8_0);
        assert_eq!(fallback(DType::Q4_K, 40), DType::F16);
        assert_eq!(fallback(DType::Q4_0, 40), DType::F16);
    }
}
