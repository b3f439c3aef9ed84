//! The families, each a row of tables.

use super::hparams::{self as hp, Default as D};
use super::{ArchSpec, tensors as t};

/// Every family; of those that share a GGUF architecture the plain one comes first.
pub const ALL: &[&ArchSpec] = &[
    &LLAMA,
    &MISTRAL,
    &MIXTRAL,
    &QWEN2,
    &QWEN3,
    &QWEN3_MOE,
    &GEMMA,
    &GEMMA2,
    &GEMMA3,
    &PHI3,
    &GRANITE,
    &OLMO2,
    &SMOLLM3,
    &GPT_OSS,
    &BERT,
    &XLM_ROBERTA,
    &NOMIC_BERT,
    &MODERN_BERT,
];

/// Buffers that old files carry and every loader computes itself.
const BUFFERS: &[&str] = &["model.layers.{i}.self_attn.rotary_emb.inv_freq"];

/// Embedding models are published without the part that generates, and then without its prefix.
const BARE: &[(&str, &str)] =
    &[("layers.", "model.layers."), ("embed_tokens.", "model.embed_tokens."), ("norm.", "model.norm.")];

/// Buffers, and the parts of a multimodal model that text does not pass through.
const VISION: &[&str] = &[
    "model.layers.{i}.self_attn.rotary_emb.inv_freq",
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
];

const SILU: (&str, D) = ("hidden_act", D::Str("silu"));
const GELU: (&str, D) = ("hidden_act", D::Str("gelu"));
const GELU_TANH: (&str, D) = ("hidden_act", D::Str("gelu_pytorch_tanh"));
const EPS_1E_6: (&str, D) = ("rms_norm_eps", D::Float(1e-6));
const EPS_1E_5: (&str, D) = ("rms_norm_eps", D::Float(1e-5));
const THETA_1E4: (&str, D) = ("rope_theta", D::Float(1e4));

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
        t::GGUF_FUSED_QKV,
        t::GGUF_MLP,
        t::GGUF_MLP_BIAS,
        t::GGUF_ROPE_FREQS,
    ],
    mlx: &[],
    hf_renames: BARE,
    hf_ignored: BUFFERS,
    hparams: &[hp::DECODER, hp::DENSE],
    defaults: &[SILU, EPS_1E_6, THETA_1E4],
    gguf_defaults: &[],
    swa_period: 0,
    query_scalar_layers: None,
    encoder: false,
    config_names: &[],
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
    mlx: &[t::MLX_MIXTRAL_MOE],
    gguf: &[
        t::GGUF_EMBED,
        t::GGUF_PRE_NORMS,
        t::GGUF_ATTN,
        t::GGUF_FUSED_QKV,
        t::GGUF_MOE,
        t::GGUF_FUSED_MOE,
        t::GGUF_ROPE_FREQS,
    ],
    hparams: &[hp::DECODER, hp::DENSE, hp::SLIDING_WINDOW, hp::LOCAL_EXPERTS],
    defaults: &[SILU, EPS_1E_5, ("rope_theta", D::Float(1e6))],
    ..LLAMA
};

const QWEN2: ArchSpec = ArchSpec {
    model_type: "qwen2",
    hf_class: "Qwen2ForCausalLM",
    gguf_arch: "qwen2",
    gguf_permutes_qk: false,
    hf: &[t::HF_EMBED, t::HF_PRE_NORMS, t::HF_ATTN, t::HF_ATTN_BIAS, t::HF_MLP],
    gguf: &[
        t::GGUF_EMBED,
        t::GGUF_PRE_NORMS,
        t::GGUF_ATTN,
        t::GGUF_ATTN_BIAS,
        t::GGUF_FUSED_QKV,
        t::GGUF_MLP,
    ],
    defaults: &[SILU, EPS_1E_6, THETA_1E4, ("use_sliding_window", D::Bool(false))],
    ..LLAMA
};

const QWEN3: ArchSpec = ArchSpec {
    model_type: "qwen3",
    hf_class: "Qwen3ForCausalLM",
    gguf_arch: "qwen3",
    hf: &[t::HF_EMBED, t::HF_PRE_NORMS, t::HF_ATTN, t::HF_ATTN_BIAS, t::HF_QK_NORM, t::HF_MLP],
    gguf: &[
        t::GGUF_EMBED,
        t::GGUF_PRE_NORMS,
        t::GGUF_ATTN,
        t::GGUF_ATTN_BIAS,
        t::GGUF_FUSED_QKV,
        t::GGUF_QK_NORM,
        t::GGUF_MLP,
    ],
    ..QWEN2
};

const QWEN3_MOE: ArchSpec = ArchSpec {
    model_type: "qwen3_moe",
    hf_class: "Qwen3MoeForCausalLM",
    gguf_arch: "qwen3moe",
    hf: &[
        t::HF_EMBED,
        t::HF_PRE_NORMS,
        t::HF_ATTN,
        t::HF_ATTN_BIAS,
        t::HF_QK_NORM,
        t::HF_MLP,
        t::HF_QWEN_MOE,
        t::HF_STACKED_MOE,
    ],
    mlx: &[t::MLX_QWEN_MOE],
    gguf: &[
        t::GGUF_EMBED,
        t::GGUF_PRE_NORMS,
        t::GGUF_ATTN,
        t::GGUF_ATTN_BIAS,
        t::GGUF_FUSED_QKV,
        t::GGUF_QK_NORM,
        t::GGUF_MLP,
        t::GGUF_MOE,
        t::GGUF_FUSED_MOE,
    ],
    hparams: &[hp::DECODER, hp::DENSE, hp::QWEN_EXPERTS],
    defaults: &[
        SILU,
        EPS_1E_6,
        THETA_1E4,
        ("use_sliding_window", D::Bool(false)),
        ("norm_topk_prob", D::Bool(false)),
        ("decoder_sparse_step", D::Int(1)),
    ],
    // llama.cpp always normalises the chosen experts' weights, as every released checkpoint of the family does.
    gguf_defaults: &[("norm_topk_prob", D::Bool(true))],
    ..QWEN3
};

const GEMMA: ArchSpec = ArchSpec {
    model_type: "gemma",
    hf_class: "GemmaForCausalLM",
    gguf_arch: "gemma",
    gguf_permutes_qk: false,
    hf_norm_plus_one: true,
    hf: &[t::HF_EMBED, t::HF_PRE_NORMS, t::HF_ATTN, t::HF_MLP],
    gguf: &[t::GGUF_EMBED, t::GGUF_PRE_NORMS, t::GGUF_ATTN, t::GGUF_FUSED_QKV, t::GGUF_MLP],
    defaults: &[GELU_TANH, EPS_1E_6, THETA_1E4, ("tie_word_embeddings", D::Bool(true))],
    ..LLAMA
};

const GEMMA2: ArchSpec = ArchSpec {
    model_type: "gemma2",
    hf_class: "Gemma2ForCausalLM",
    gguf_arch: "gemma2",
    hf: &[t::HF_EMBED, t::HF_SANDWICH_PRE_NORMS, t::HF_POST_NORMS, t::HF_ATTN, t::HF_MLP],
    gguf: &[
        t::GGUF_EMBED,
        t::GGUF_PRE_NORMS,
        t::GGUF_POST_NORMS,
        t::GGUF_ATTN,
        t::GGUF_FUSED_QKV,
        t::GGUF_MLP,
    ],
    hparams: &[hp::DECODER, hp::DENSE, hp::SLIDING_WINDOW, hp::SOFTCAPS],
    defaults: &[
        ("hidden_activation", D::Str("gelu_pytorch_tanh")),
        GELU_TANH,
        EPS_1E_6,
        THETA_1E4,
        ("tie_word_embeddings", D::Bool(true)),
        ("sliding_window", D::Int(4096)),
        ("query_pre_attn_scalar", D::Int(256)),
        ("attn_logit_softcapping", D::Float(50.0)),
        ("final_logit_softcapping", D::Float(30.0)),
    ],
    swa_period: 2,
    query_scalar_layers: Some(46),
    ..GEMMA
};

const GEMMA3: ArchSpec = ArchSpec {
    model_type: "gemma3_text",
    aliases: &["gemma3"],
    hf_class: "Gemma3ForCausalLM",
    gguf_arch: "gemma3",
    hf: &[t::HF_EMBED, t::HF_SANDWICH_PRE_NORMS, t::HF_POST_NORMS, t::HF_ATTN, t::HF_QK_NORM, t::HF_MLP],
    gguf: &[
        t::GGUF_EMBED,
        t::GGUF_PRE_NORMS,
        t::GGUF_POST_NORMS,
        t::GGUF_ATTN,
        t::GGUF_FUSED_QKV,
        t::GGUF_QK_NORM,
        t::GGUF_MLP,
    ],
    hf_renames: &[
        ("language_model.model.", "model."),
        ("language_model.lm_head.", "lm_head."),
        ("model.language_model.", "model."),
        ("layers.", "model.layers."),
        ("embed_tokens.", "model.embed_tokens."),
        ("norm.", "model.norm."),
    ],
    hf_ignored: VISION,
    hparams: &[hp::DECODER, hp::DENSE, hp::SLIDING_WINDOW, hp::SOFTCAPS, hp::LOCAL_ROPE],
    defaults: &[
        ("hidden_activation", D::Str("gelu_pytorch_tanh")),
        GELU_TANH,
        EPS_1E_6,
        ("num_attention_heads", D::Int(8)),
        ("num_key_value_heads", D::Int(4)),
        ("head_dim", D::Int(256)),
        ("query_pre_attn_scalar", D::Int(256)),
        ("max_position_embeddings", D::Int(131_072)),
        ("rope_theta", D::Float(1e6)),
        ("rope_local_base_freq", D::Float(1e4)),
        ("tie_word_embeddings", D::Bool(true)),
    ],
    swa_period: 6,
    query_scalar_layers: Some(62),
    ..GEMMA
};

const PHI3: ArchSpec = ArchSpec {
    model_type: "phi3",
    hf_class: "Phi3ForCausalLM",
    gguf_arch: "phi3",
    gguf_permutes_qk: false,
    hf: &[t::HF_EMBED, t::HF_PRE_NORMS, t::HF_FUSED],
    gguf: &[
        t::GGUF_EMBED,
        t::GGUF_PRE_NORMS,
        t::GGUF_FUSED_QKV,
        t::GGUF_ATTN,
        t::GGUF_FUSED_MLP,
        t::GGUF_LONG_ROPE,
    ],
    hparams: &[hp::DECODER, hp::DENSE, hp::SLIDING_WINDOW, hp::ORIGINAL_CONTEXT],
    defaults: &[SILU, EPS_1E_5, THETA_1E4],
    ..LLAMA
};

const GRANITE: ArchSpec = ArchSpec {
    model_type: "granite",
    hf_class: "GraniteForCausalLM",
    gguf_arch: "granite",
    hparams: &[hp::DECODER, hp::DENSE, hp::MULTIPLIERS],
    defaults: &[
        SILU,
        EPS_1E_6,
        THETA_1E4,
        ("attention_multiplier", D::Float(1.0)),
        ("embedding_multiplier", D::Float(1.0)),
        ("residual_multiplier", D::Float(1.0)),
        ("logits_scaling", D::Float(1.0)),
    ],
    ..LLAMA
};

const OLMO2: ArchSpec = ArchSpec {
    model_type: "olmo2",
    hf_class: "Olmo2ForCausalLM",
    gguf_arch: "olmo2",
    gguf_permutes_qk: false,
    hf: &[t::HF_EMBED, t::HF_POST_NORMS, t::HF_ATTN, t::HF_ATTN_BIAS, t::HF_QK_NORM, t::HF_MLP],
    gguf: &[
        t::GGUF_EMBED,
        t::GGUF_POST_NORMS,
        t::GGUF_ATTN,
        t::GGUF_ATTN_BIAS,
        t::GGUF_FUSED_QKV,
        t::GGUF_QK_NORM,
        t::GGUF_MLP,
    ],
    hparams: &[hp::DECODER, hp::DENSE, hp::SLIDING_WINDOW],
    defaults: &[SILU, EPS_1E_5, THETA_1E4],
    swa_period: 4,
    ..LLAMA
};

const SMOLLM3: ArchSpec = ArchSpec {
    model_type: "smollm3",
    hf_class: "SmolLM3ForCausalLM",
    gguf_arch: "smollm3",
    defaults: &[SILU, EPS_1E_6, ("rope_theta", D::Float(2e6)), ("no_rope_layer_interval", D::Int(4))],
    ..LLAMA
};

const GPT_OSS: ArchSpec = ArchSpec {
    model_type: "gpt_oss",
    hf_class: "GptOssForCausalLM",
    gguf_arch: "gpt-oss",
    gguf_permutes_qk: false,
    hf: &[t::HF_EMBED, t::HF_PRE_NORMS, t::HF_ATTN, t::HF_ATTN_BIAS, t::HF_GPT_OSS],
    mlx: &[t::MLX_GPT_OSS],
    gguf: &[
        t::GGUF_EMBED,
        t::GGUF_ATTN,
        t::GGUF_ATTN_BIAS,
        t::GGUF_FUSED_QKV,
        t::GGUF_MOE,
        t::GGUF_FUSED_MOE,
        t::GGUF_GPT_OSS,
    ],
    hparams: &[hp::DECODER, hp::DENSE, hp::SLIDING_WINDOW, hp::LOCAL_EXPERTS, hp::EXPERT_WIDTH],
    defaults: &[
        SILU,
        EPS_1E_5,
        ("rope_theta", D::Float(150_000.0)),
        ("sliding_window", D::Int(128)),
        ("swiglu_limit", D::Float(7.0)),
        ("attention_bias", D::Bool(true)),
    ],
    swa_period: 2,
    ..LLAMA
};

const BERT: ArchSpec = ArchSpec {
    model_type: "bert",
    hf_class: "BertModel",
    gguf_arch: "bert",
    gguf_permutes_qk: false,
    hf: &[t::HF_BERT_EMBED, t::HF_BERT, t::HF_BERT_CLASSIFIER, t::HF_BERT_OLD_NORMS],
    gguf: &[
        t::GGUF_BERT_EMBED,
        t::GGUF_ATTN,
        t::GGUF_ATTN_BIAS,
        t::GGUF_FUSED_QKV,
        t::GGUF_BERT_NORMS,
        t::GGUF_BERT_MLP,
        t::GGUF_CLASSIFIER,
    ],
    hf_renames: &[("bert.", "")],
    // The heads of the pre-training tasks.
    hf_ignored: &["embeddings.position_ids", "cls.predictions.", "cls.seq_relationship."],
    hparams: &[hp::ENCODER, hp::DENSE],
    defaults: &[GELU, ("layer_norm_eps", D::Float(1e-12))],
    encoder: true,
    ..LLAMA
};

/// RoBERTa too. A GGUF file of one is no different from BERT's: its positions have been counted from 0.
const XLM_ROBERTA: ArchSpec = ArchSpec {
    model_type: "xlm-roberta",
    aliases: &["roberta"],
    hf_class: "XLMRobertaModel",
    hf: &[t::HF_BERT_EMBED, t::HF_BERT, t::HF_ROBERTA_CLASSIFIER],
    hf_renames: &[("roberta.", "")],
    hf_ignored: &["embeddings.position_ids", "lm_head.", "pooler."],
    defaults: &[GELU, ("layer_norm_eps", D::Float(1e-5)), ("pad_token_id", D::Int(1))],
    ..BERT
};

const NOMIC_BERT: ArchSpec = ArchSpec {
    model_type: "nomic_bert",
    hf_class: "NomicBertModel",
    gguf_arch: "nomic-bert",
    hf: &[t::HF_BERT_EMBED, t::HF_NOMIC_BERT],
    gguf: &[t::GGUF_BERT_EMBED, t::GGUF_FUSED_QKV, t::GGUF_ATTN, t::GGUF_BERT_NORMS, t::GGUF_MLP],
    hf_renames: &[("nomic_bert.", ""), ("bert.", "")],
    hf_ignored: &["embeddings.position_ids", "cls.predictions.", "pooler."],
    hparams: &[hp::ENCODER, hp::DENSE, hp::ROPE],
    defaults: &[
        ("hidden_act", D::Str("silu")),
        ("layer_norm_eps", D::Float(1e-12)),
        ("rope_theta", D::Float(1000.0)),
        ("max_position_embeddings", D::Int(2048)),
    ],
    config_names: &[
        ("n_embd", "hidden_size"),
        ("n_head", "num_attention_heads"),
        ("n_inner", "intermediate_size"),
        ("n_layer", "num_hidden_layers"),
        ("n_positions", "max_position_embeddings"),
        ("layer_norm_epsilon", "layer_norm_eps"),
        ("rotary_emb_base", "rope_theta"),
        ("activation_function", "hidden_act"),
    ],
    ..BERT
};

const MODERN_BERT: ArchSpec = ArchSpec {
    model_type: "modernbert",
    hf_class: "ModernBertModel",
    gguf_arch: "modern-bert",
    hf: &[t::HF_MODERN_BERT],
    gguf: &[
        t::GGUF_MODERN_BERT,
        t::GGUF_FUSED_QKV,
        t::GGUF_ATTN,
        t::GGUF_ATTN_BIAS,
        t::GGUF_FUSED_MLP,
        t::GGUF_CLASSIFIER,
    ],
    hf_renames: &[("model.", "")],
    hf_ignored: &["decoder.", "rotary_emb."],
    hparams: &[hp::ENCODER, hp::DENSE, hp::ROPE, hp::LOCAL_ROPE, hp::LOCAL_ATTENTION],
    defaults: &[
        ("hidden_activation", D::Str("gelu")),
        ("layer_norm_eps", D::Float(1e-5)),
        ("rope_theta", D::Float(160_000.0)),
        ("rope_local_base_freq", D::Float(1e4)),
        ("local_attention", D::Int(128)),
    ],
    swa_period: 3,
    config_names: &[
        ("norm_eps", "layer_norm_eps"),
        ("global_rope_theta", "rope_theta"),
        ("local_rope_theta", "rope_local_base_freq"),
        ("global_attn_every_n_layers", "sliding_window_pattern"),
    ],
    ..BERT
};

/// CLIP's vision tower with LLaVA's projector, which is no model by itself.
pub(super) const CLIP_VISION: ArchSpec = ArchSpec {
    model_type: "clip_vision_model",
    hf_class: "CLIPVisionModel",
    gguf_arch: "clip",
    gguf_permutes_qk: false,
    hf: &[t::HF_CLIP_VISION, t::HF_LLAVA_PROJECTOR],
    gguf: &[],
    hf_renames: &[
        ("vision_tower.vision_model.", "vision_tower."),
        ("model.vision_tower.vision_model.", "vision_tower."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ],
    hf_ignored: &["vision_tower.embeddings.position_ids"],
    hparams: &[],
    defaults: &[],
    ..LLAMA
};
