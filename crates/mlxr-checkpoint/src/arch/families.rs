//! The families, each a row of tables.

use super::hparams::{self as hp, Default as D};
use super::{ArchSpec, tensors as t};

/// Every family; of those that share a GGUF architecture the plain one comes first.
pub const ALL: &[&ArchSpec] = &[&LLAMA, &MISTRAL, &MIXTRAL, &QWEN2, &QWEN3, &QWEN3_MOE];

/// Buffers that old files carry and every loader computes itself.
const BUFFERS: &[&str] = &["model.layers.{i}.self_attn.rotary_emb.inv_freq"];

const LLAMA: ArchSpec = ArchSpec {
    model_type: "llama",
    aliases: &[],
    hf_class: "LlamaForCausalLM",
    gguf_arch: "llama",
    gguf_permutes_qk: true,
    hf_norm_plus_one: false,
    hf: &[t::HF_EMBED, t::HF_PRE_NORMS, t::HF_ATTN, t::HF_ATTN_BIAS, t::HF_MLP, t::HF_MLP_BIAS],
    gguf: &[
        t::GGUF_EMBED,
        t::GGUF_PRE_NORMS,
        t::GGUF_ATTN,
        t::GGUF_ATTN_BIAS,
        t::GGUF_MLP,
        t::GGUF_MLP_BIAS,
        t::GGUF_ROPE_FREQS,
    ],
    hf_ignored: BUFFERS,
    hparams: &[hp::DECODER, hp::DENSE],
    defaults: &[
        ("hidden_act", D::Str("silu")),
        ("rms_norm_eps", D::Float(1e-6)),
        ("rope_theta", D::Float(1e4)),
    ],
};

const MISTRAL: ArchSpec = ArchSpec {
    model_type: "mistral",
    hf_class: "MistralForCausalLM",
    hparams: &[hp::DECODER, hp::DENSE, hp::SLIDING_WINDOW],
    ..LLAMA
};

const MIXTRAL: ArchSpec = ArchSpec {
    model_type: "mixtral",
    hf_class: "MixtralForCausalLM",
    hf: &[t::HF_EMBED, t::HF_PRE_NORMS, t::HF_ATTN, t::HF_MIXTRAL_MOE],
    gguf: &[t::GGUF_EMBED, t::GGUF_PRE_NORMS, t::GGUF_ATTN, t::GGUF_MOE, t::GGUF_ROPE_FREQS],
    hparams: &[hp::DECODER, hp::DENSE, hp::SLIDING_WINDOW, hp::LOCAL_EXPERTS],
    ..LLAMA
};

const QWEN2: ArchSpec = ArchSpec {
    model_type: "qwen2",
    hf_class: "Qwen2ForCausalLM",
    gguf_arch: "qwen2",
    gguf_permutes_qk: false,
    hf: &[t::HF_EMBED, t::HF_PRE_NORMS, t::HF_ATTN, t::HF_ATTN_BIAS, t::HF_MLP],
    gguf: &[t::GGUF_EMBED, t::GGUF_PRE_NORMS, t::GGUF_ATTN, t::GGUF_ATTN_BIAS, t::GGUF_MLP],
    defaults: &[
        ("hidden_act", D::Str("silu")),
        ("rms_norm_eps", D::Float(1e-6)),
        ("rope_theta", D::Float(1e4)),
        ("use_sliding_window", D::Bool(false)),
    ],
    ..LLAMA
};

const QWEN3: ArchSpec = ArchSpec {
    model_type: "qwen3",
    hf_class: "Qwen3ForCausalLM",
    gguf_arch: "qwen3",
    hf: &[t::HF_EMBED, t::HF_PRE_NORMS, t::HF_ATTN, t::HF_ATTN_BIAS, t::HF_QK_NORM, t::HF_MLP],
    gguf: &[t::GGUF_EMBED, t::GGUF_PRE_NORMS, t::GGUF_ATTN, t::GGUF_ATTN_BIAS, t::GGUF_QK_NORM, t::GGUF_MLP],
    ..QWEN2
};

const QWEN3_MOE: ArchSpec = ArchSpec {
    model_type: "qwen3_moe",
    hf_class: "Qwen3MoeForCausalLM",
    gguf_arch: "qwen3moe",
    hf: &[t::HF_EMBED, t::HF_PRE_NORMS, t::HF_ATTN, t::HF_QK_NORM, t::HF_MLP, t::HF_QWEN_MOE],
    gguf: &[t::GGUF_EMBED, t::GGUF_PRE_NORMS, t::GGUF_ATTN, t::GGUF_QK_NORM, t::GGUF_MLP, t::GGUF_MOE],
    hparams: &[hp::DECODER, hp::DENSE, hp::QWEN_EXPERTS],
    ..QWEN3
};
