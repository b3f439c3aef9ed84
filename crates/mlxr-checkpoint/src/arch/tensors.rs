//! Tensor names: what a file calls a tensor, and what we call its parts.

/// How the canonical tensors lie in the file's tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The one canonical tensor as it is.
    Whole,
    /// Query, key and value rows one after another; their counts follow from the head counts.
    Qkv,
    /// Equal parts, one after another along the rows.
    Halves,
    /// Rows (of a stack: of each item) taken in turn: gate, up, gate, up, ...
    Interleaved,
    /// Elements of a vector (of a stack: of each row) taken in turn.
    InterleavedColumns,
    /// A stack of matrices stored `[n, in, out]`.
    Transposed,
    /// A stack of matrices stored `[n, in, out]`, the columns taken in turn.
    TransposedInterleaved,
}

/// One tensor of a file and the canonical tensors it holds.
#[derive(Debug)]
pub struct TensorRule {
    /// Name in the file; `{i}` is the layer, `{e}` the expert.
    pub file: &'static str,
    /// Canonical names, in file order.
    pub parts: &'static [&'static str],
    pub layout: Layout,
}

macro_rules! rules {
    ($($file:literal => $($part:literal),+ $(; $layout:ident)?)*) => {
        &[$(TensorRule {
            file: $file,
            parts: &[$($part),+],
            layout: rules!(@layout $($layout)?),
        }),*]
    };
    (@layout) => { Layout::Whole };
    (@layout $layout:ident) => { Layout::$layout };
}

type Rules = &'static [TensorRule];

// --- Hugging Face ---

pub const HF_EMBED: Rules = rules! {
    "model.embed_tokens.weight" => "embed_tokens.weight"
    "model.norm.weight" => "norm.weight"
    "lm_head.weight" => "lm_head.weight"
};

pub const HF_ATTN: Rules = rules! {
    "model.layers.{i}.self_attn.q_proj.weight" => "layers.{i}.attn.q.weight"
    "model.layers.{i}.self_attn.k_proj.weight" => "layers.{i}.attn.k.weight"
    "model.layers.{i}.self_attn.v_proj.weight" => "layers.{i}.attn.v.weight"
    "model.layers.{i}.self_attn.o_proj.weight" => "layers.{i}.attn.o.weight"
};

pub const HF_ATTN_BIAS: Rules = rules! {
    "model.layers.{i}.self_attn.q_proj.bias" => "layers.{i}.attn.q.bias"
    "model.layers.{i}.self_attn.k_proj.bias" => "layers.{i}.attn.k.bias"
    "model.layers.{i}.self_attn.v_proj.bias" => "layers.{i}.attn.v.bias"
    "model.layers.{i}.self_attn.o_proj.bias" => "layers.{i}.attn.o.bias"
};

pub const HF_QK_NORM: Rules = rules! {
    "model.layers.{i}.self_attn.q_norm.weight" => "layers.{i}.attn.q_norm.weight"
    "model.layers.{i}.self_attn.k_norm.weight" => "layers.{i}.attn.k_norm.weight"
};

/// Norms before attention and before the MLP.
pub const HF_PRE_NORMS: Rules = rules! {
    "model.layers.{i}.input_layernorm.weight" => "layers.{i}.attn_norm.weight"
    "model.layers.{i}.post_attention_layernorm.weight" => "layers.{i}.mlp_norm.weight"
};

pub const HF_MLP: Rules = rules! {
    "model.layers.{i}.mlp.gate_proj.weight" => "layers.{i}.mlp.gate.weight"
    "model.layers.{i}.mlp.up_proj.weight" => "layers.{i}.mlp.up.weight"
    "model.layers.{i}.mlp.down_proj.weight" => "layers.{i}.mlp.down.weight"
};

pub const HF_MLP_BIAS: Rules = rules! {
    "model.layers.{i}.mlp.gate_proj.bias" => "layers.{i}.mlp.gate.bias"
    "model.layers.{i}.mlp.up_proj.bias" => "layers.{i}.mlp.up.bias"
    "model.layers.{i}.mlp.down_proj.bias" => "layers.{i}.mlp.down.bias"
};

pub const HF_MIXTRAL_MOE: Rules = rules! {
    "model.layers.{i}.block_sparse_moe.gate.weight" => "layers.{i}.moe.router.weight"
    "model.layers.{i}.block_sparse_moe.experts.{e}.w1.weight" => "layers.{i}.moe.gate.{e}.weight"
    "model.layers.{i}.block_sparse_moe.experts.{e}.w2.weight" => "layers.{i}.moe.down.{e}.weight"
    "model.layers.{i}.block_sparse_moe.experts.{e}.w3.weight" => "layers.{i}.moe.up.{e}.weight"
};

pub const HF_QWEN_MOE: Rules = rules! {
    "model.layers.{i}.mlp.gate.weight" => "layers.{i}.moe.router.weight"
    "model.layers.{i}.mlp.experts.{e}.gate_proj.weight" => "layers.{i}.moe.gate.{e}.weight"
    "model.layers.{i}.mlp.experts.{e}.up_proj.weight" => "layers.{i}.moe.up.{e}.weight"
    "model.layers.{i}.mlp.experts.{e}.down_proj.weight" => "layers.{i}.moe.down.{e}.weight"
};

/// Experts of all layers' MLPs as two stacks.
pub const HF_STACKED_MOE: Rules = rules! {
    "model.layers.{i}.mlp.experts.gate_up_proj" => "layers.{i}.moe.gate.weight", "layers.{i}.moe.up.weight"; Halves
    "model.layers.{i}.mlp.experts.down_proj" => "layers.{i}.moe.down.weight"
};

/// Norms on the outputs of attention and MLP.
pub const HF_POST_NORMS: Rules = rules! {
    "model.layers.{i}.post_attention_layernorm.weight" => "layers.{i}.post_attn_norm.weight"
    "model.layers.{i}.post_feedforward_layernorm.weight" => "layers.{i}.post_mlp_norm.weight"
};

/// Norms before attention and MLP where both outputs have one too.
pub const HF_SANDWICH_PRE_NORMS: Rules = rules! {
    "model.layers.{i}.input_layernorm.weight" => "layers.{i}.attn_norm.weight"
    "model.layers.{i}.pre_feedforward_layernorm.weight" => "layers.{i}.mlp_norm.weight"
};

pub const HF_FUSED: Rules = rules! {
    "model.layers.{i}.self_attn.qkv_proj.weight"
        => "layers.{i}.attn.q.weight", "layers.{i}.attn.k.weight", "layers.{i}.attn.v.weight"; Qkv
    "model.layers.{i}.self_attn.o_proj.weight" => "layers.{i}.attn.o.weight"
    "model.layers.{i}.mlp.gate_up_proj.weight" => "layers.{i}.mlp.gate.weight", "layers.{i}.mlp.up.weight"; Halves
    "model.layers.{i}.mlp.down_proj.weight" => "layers.{i}.mlp.down.weight"
};

pub const HF_GPT_OSS: Rules = rules! {
    "model.layers.{i}.self_attn.sinks" => "layers.{i}.attn.sinks"
    "model.layers.{i}.mlp.router.weight" => "layers.{i}.moe.router.weight"
    "model.layers.{i}.mlp.router.bias" => "layers.{i}.moe.router.bias"
    "model.layers.{i}.mlp.experts.gate_up_proj"
        => "layers.{i}.moe.gate.weight", "layers.{i}.moe.up.weight"; TransposedInterleaved
    "model.layers.{i}.mlp.experts.gate_up_proj_blocks"
        => "layers.{i}.moe.gate.weight", "layers.{i}.moe.up.weight"; Interleaved
    "model.layers.{i}.mlp.experts.gate_up_proj_bias"
        => "layers.{i}.moe.gate.bias", "layers.{i}.moe.up.bias"; InterleavedColumns
    "model.layers.{i}.mlp.experts.down_proj" => "layers.{i}.moe.down.weight"; Transposed
    "model.layers.{i}.mlp.experts.down_proj_blocks" => "layers.{i}.moe.down.weight"
    "model.layers.{i}.mlp.experts.down_proj_bias" => "layers.{i}.moe.down.bias"
};

// Encoders.

pub const HF_BERT_EMBED: Rules = rules! {
    "embeddings.word_embeddings.weight" => "embed_tokens.weight"
    "embeddings.token_type_embeddings.weight" => "embed_types.weight"
    "embeddings.LayerNorm.weight" => "embed_norm.weight"
    "embeddings.LayerNorm.bias" => "embed_norm.bias"
};

pub const HF_BERT: Rules = rules! {
    "embeddings.position_embeddings.weight" => "embed_positions.weight"
    "encoder.layer.{i}.attention.self.query.weight" => "layers.{i}.attn.q.weight"
    "encoder.layer.{i}.attention.self.query.bias" => "layers.{i}.attn.q.bias"
    "encoder.layer.{i}.attention.self.key.weight" => "layers.{i}.attn.k.weight"
    "encoder.layer.{i}.attention.self.key.bias" => "layers.{i}.attn.k.bias"
    "encoder.layer.{i}.attention.self.value.weight" => "layers.{i}.attn.v.weight"
    "encoder.layer.{i}.attention.self.value.bias" => "layers.{i}.attn.v.bias"
    "encoder.layer.{i}.attention.output.dense.weight" => "layers.{i}.attn.o.weight"
    "encoder.layer.{i}.attention.output.dense.bias" => "layers.{i}.attn.o.bias"
    "encoder.layer.{i}.attention.output.LayerNorm.weight" => "layers.{i}.attn_out_norm.weight"
    "encoder.layer.{i}.attention.output.LayerNorm.bias" => "layers.{i}.attn_out_norm.bias"
    "encoder.layer.{i}.intermediate.dense.weight" => "layers.{i}.mlp.up.weight"
    "encoder.layer.{i}.intermediate.dense.bias" => "layers.{i}.mlp.up.bias"
    "encoder.layer.{i}.output.dense.weight" => "layers.{i}.mlp.down.weight"
    "encoder.layer.{i}.output.dense.bias" => "layers.{i}.mlp.down.bias"
    "encoder.layer.{i}.output.LayerNorm.weight" => "layers.{i}.out_norm.weight"
    "encoder.layer.{i}.output.LayerNorm.bias" => "layers.{i}.out_norm.bias"
};

/// What files made from TensorFlow's call the norms.
pub const HF_BERT_OLD_NORMS: Rules = rules! {
    "embeddings.LayerNorm.gamma" => "embed_norm.weight"
    "embeddings.LayerNorm.beta" => "embed_norm.bias"
    "encoder.layer.{i}.attention.output.LayerNorm.gamma" => "layers.{i}.attn_out_norm.weight"
    "encoder.layer.{i}.attention.output.LayerNorm.beta" => "layers.{i}.attn_out_norm.bias"
    "encoder.layer.{i}.output.LayerNorm.gamma" => "layers.{i}.out_norm.weight"
    "encoder.layer.{i}.output.LayerNorm.beta" => "layers.{i}.out_norm.bias"
};

/// The head that scores a pair of texts: a layer on the first token, then one output per label.
pub const HF_BERT_CLASSIFIER: Rules = rules! {
    "pooler.dense.weight" => "cls.dense.weight"
    "pooler.dense.bias" => "cls.dense.bias"
    "classifier.weight" => "cls.out.weight"
    "classifier.bias" => "cls.out.bias"
};

pub const HF_ROBERTA_CLASSIFIER: Rules = rules! {
    "classifier.dense.weight" => "cls.dense.weight"
    "classifier.dense.bias" => "cls.dense.bias"
    "classifier.out_proj.weight" => "cls.out.weight"
    "classifier.out_proj.bias" => "cls.out.bias"
};

/// As the transformers library writes it since version 5, and as the model's makers do.
pub const HF_NOMIC_BERT: Rules = rules! {
    "layers.{i}.self_attn.q_proj.weight" => "layers.{i}.attn.q.weight"
    "layers.{i}.self_attn.k_proj.weight" => "layers.{i}.attn.k.weight"
    "layers.{i}.self_attn.v_proj.weight" => "layers.{i}.attn.v.weight"
    "layers.{i}.self_attn.o_proj.weight" => "layers.{i}.attn.o.weight"
    "layers.{i}.post_attention_layernorm.weight" => "layers.{i}.attn_out_norm.weight"
    "layers.{i}.post_attention_layernorm.bias" => "layers.{i}.attn_out_norm.bias"
    "layers.{i}.mlp.gate_proj.weight" => "layers.{i}.mlp.gate.weight"
    "layers.{i}.mlp.up_proj.weight" => "layers.{i}.mlp.up.weight"
    "layers.{i}.mlp.down_proj.weight" => "layers.{i}.mlp.down.weight"
    "layers.{i}.post_mlp_layernorm.weight" => "layers.{i}.out_norm.weight"
    "layers.{i}.post_mlp_layernorm.bias" => "layers.{i}.out_norm.bias"
    "emb_ln.weight" => "embed_norm.weight"
    "emb_ln.bias" => "embed_norm.bias"
    "encoder.layers.{i}.attn.Wqkv.weight"
        => "layers.{i}.attn.q.weight", "layers.{i}.attn.k.weight", "layers.{i}.attn.v.weight"; Qkv
    "encoder.layers.{i}.attn.out_proj.weight" => "layers.{i}.attn.o.weight"
    "encoder.layers.{i}.norm1.weight" => "layers.{i}.attn_out_norm.weight"
    "encoder.layers.{i}.norm1.bias" => "layers.{i}.attn_out_norm.bias"
    "encoder.layers.{i}.mlp.fc12.weight" => "layers.{i}.mlp.gate.weight"
    "encoder.layers.{i}.mlp.fc11.weight" => "layers.{i}.mlp.up.weight"
    "encoder.layers.{i}.mlp.fc2.weight" => "layers.{i}.mlp.down.weight"
    "encoder.layers.{i}.norm2.weight" => "layers.{i}.out_norm.weight"
    "encoder.layers.{i}.norm2.bias" => "layers.{i}.out_norm.bias"
};

pub const HF_MODERN_BERT: Rules = rules! {
    "embeddings.tok_embeddings.weight" => "embed_tokens.weight"
    "embeddings.norm.weight" => "embed_norm.weight"
    "embeddings.norm.bias" => "embed_norm.bias"
    "layers.{i}.attn_norm.weight" => "layers.{i}.attn_norm.weight"
    "layers.{i}.attn_norm.bias" => "layers.{i}.attn_norm.bias"
    "layers.{i}.attn.Wqkv.weight"
        => "layers.{i}.attn.q.weight", "layers.{i}.attn.k.weight", "layers.{i}.attn.v.weight"; Qkv
    "layers.{i}.attn.Wqkv.bias"
        => "layers.{i}.attn.q.bias", "layers.{i}.attn.k.bias", "layers.{i}.attn.v.bias"; Qkv
    "layers.{i}.attn.Wo.weight" => "layers.{i}.attn.o.weight"
    "layers.{i}.attn.Wo.bias" => "layers.{i}.attn.o.bias"
    "layers.{i}.mlp_norm.weight" => "layers.{i}.mlp_norm.weight"
    "layers.{i}.mlp_norm.bias" => "layers.{i}.mlp_norm.bias"
    "layers.{i}.mlp.Wi.weight" => "layers.{i}.mlp.gate.weight", "layers.{i}.mlp.up.weight"; Halves
    "layers.{i}.mlp.Wi.bias" => "layers.{i}.mlp.gate.bias", "layers.{i}.mlp.up.bias"; Halves
    "layers.{i}.mlp.Wo.weight" => "layers.{i}.mlp.down.weight"
    "layers.{i}.mlp.Wo.bias" => "layers.{i}.mlp.down.bias"
    "final_norm.weight" => "norm.weight"
    "final_norm.bias" => "norm.bias"
    "head.dense.weight" => "cls.dense.weight"
    "head.dense.bias" => "cls.dense.bias"
    "head.norm.weight" => "cls.norm.weight"
    "head.norm.bias" => "cls.norm.bias"
    "classifier.weight" => "cls.out.weight"
    "classifier.bias" => "cls.out.bias"
};

// Vision towers.

pub const HF_CLIP_VISION: Rules = rules! {
    "vision_tower.embeddings.class_embedding" => "vision.class"
    "vision_tower.embeddings.patch_embedding.weight" => "vision.patches.weight"
    "vision_tower.embeddings.position_embedding.weight" => "vision.positions.weight"
    "vision_tower.pre_layrnorm.weight" => "vision.embed_norm.weight"
    "vision_tower.pre_layrnorm.bias" => "vision.embed_norm.bias"
    "vision_tower.post_layernorm.weight" => "vision.norm.weight"
    "vision_tower.post_layernorm.bias" => "vision.norm.bias"
    "vision_tower.encoder.layers.{i}.layer_norm1.weight" => "vision.layers.{i}.attn_norm.weight"
    "vision_tower.encoder.layers.{i}.layer_norm1.bias" => "vision.layers.{i}.attn_norm.bias"
    "vision_tower.encoder.layers.{i}.self_attn.q_proj.weight" => "vision.layers.{i}.attn.q.weight"
    "vision_tower.encoder.layers.{i}.self_attn.q_proj.bias" => "vision.layers.{i}.attn.q.bias"
    "vision_tower.encoder.layers.{i}.self_attn.k_proj.weight" => "vision.layers.{i}.attn.k.weight"
    "vision_tower.encoder.layers.{i}.self_attn.k_proj.bias" => "vision.layers.{i}.attn.k.bias"
    "vision_tower.encoder.layers.{i}.self_attn.v_proj.weight" => "vision.layers.{i}.attn.v.weight"
    "vision_tower.encoder.layers.{i}.self_attn.v_proj.bias" => "vision.layers.{i}.attn.v.bias"
    "vision_tower.encoder.layers.{i}.self_attn.out_proj.weight" => "vision.layers.{i}.attn.o.weight"
    "vision_tower.encoder.layers.{i}.self_attn.out_proj.bias" => "vision.layers.{i}.attn.o.bias"
    "vision_tower.encoder.layers.{i}.layer_norm2.weight" => "vision.layers.{i}.mlp_norm.weight"
    "vision_tower.encoder.layers.{i}.layer_norm2.bias" => "vision.layers.{i}.mlp_norm.bias"
    "vision_tower.encoder.layers.{i}.mlp.fc1.weight" => "vision.layers.{i}.mlp.up.weight"
    "vision_tower.encoder.layers.{i}.mlp.fc1.bias" => "vision.layers.{i}.mlp.up.bias"
    "vision_tower.encoder.layers.{i}.mlp.fc2.weight" => "vision.layers.{i}.mlp.down.weight"
    "vision_tower.encoder.layers.{i}.mlp.fc2.bias" => "vision.layers.{i}.mlp.down.bias"
};

pub const HF_LLAVA_PROJECTOR: Rules = rules! {
    "multi_modal_projector.linear_1.weight" => "projector.up.weight"
    "multi_modal_projector.linear_1.bias" => "projector.up.bias"
    "multi_modal_projector.linear_2.weight" => "projector.down.weight"
    "multi_modal_projector.linear_2.bias" => "projector.down.bias"
};

/// How MLX stores the experts of mixtral.
pub const MLX_MIXTRAL_MOE: Rules = rules! {
    "model.layers.{i}.block_sparse_moe.switch_mlp.gate_proj.weight" => "layers.{i}.moe.gate.weight"
    "model.layers.{i}.block_sparse_moe.switch_mlp.up_proj.weight" => "layers.{i}.moe.up.weight"
    "model.layers.{i}.block_sparse_moe.switch_mlp.down_proj.weight" => "layers.{i}.moe.down.weight"
};

/// How MLX stores the experts of the qwens.
pub const MLX_QWEN_MOE: Rules = rules! {
    "model.layers.{i}.mlp.switch_mlp.gate_proj.weight" => "layers.{i}.moe.gate.weight"
    "model.layers.{i}.mlp.switch_mlp.up_proj.weight" => "layers.{i}.moe.up.weight"
    "model.layers.{i}.mlp.switch_mlp.down_proj.weight" => "layers.{i}.moe.down.weight"
};

/// How MLX stores the experts of gpt-oss.
pub const MLX_GPT_OSS: Rules = rules! {
    "model.layers.{i}.mlp.experts.gate_proj.weight" => "layers.{i}.moe.gate.weight"
    "model.layers.{i}.mlp.experts.up_proj.weight" => "layers.{i}.moe.up.weight"
    "model.layers.{i}.mlp.experts.down_proj.weight" => "layers.{i}.moe.down.weight"
    "model.layers.{i}.mlp.experts.gate_proj.bias" => "layers.{i}.moe.gate.bias"
    "model.layers.{i}.mlp.experts.up_proj.bias" => "layers.{i}.moe.up.bias"
    "model.layers.{i}.mlp.experts.down_proj.bias" => "layers.{i}.moe.down.bias"
};

// --- GGUF ---

pub const GGUF_EMBED: Rules = rules! {
    "token_embd.weight" => "embed_tokens.weight"
    "output_norm.weight" => "norm.weight"
    "output.weight" => "lm_head.weight"
};

pub const GGUF_ATTN: Rules = rules! {
    "blk.{i}.attn_q.weight" => "layers.{i}.attn.q.weight"
    "blk.{i}.attn_k.weight" => "layers.{i}.attn.k.weight"
    "blk.{i}.attn_v.weight" => "layers.{i}.attn.v.weight"
    "blk.{i}.attn_output.weight" => "layers.{i}.attn.o.weight"
};

pub const GGUF_ATTN_BIAS: Rules = rules! {
    "blk.{i}.attn_q.bias" => "layers.{i}.attn.q.bias"
    "blk.{i}.attn_k.bias" => "layers.{i}.attn.k.bias"
    "blk.{i}.attn_v.bias" => "layers.{i}.attn.v.bias"
    "blk.{i}.attn_output.bias" => "layers.{i}.attn.o.bias"
};

pub const GGUF_QK_NORM: Rules = rules! {
    "blk.{i}.attn_q_norm.weight" => "layers.{i}.attn.q_norm.weight"
    "blk.{i}.attn_k_norm.weight" => "layers.{i}.attn.k_norm.weight"
};

pub const GGUF_PRE_NORMS: Rules = rules! {
    "blk.{i}.attn_norm.weight" => "layers.{i}.attn_norm.weight"
    "blk.{i}.ffn_norm.weight" => "layers.{i}.mlp_norm.weight"
};

pub const GGUF_MLP: Rules = rules! {
    "blk.{i}.ffn_gate.weight" => "layers.{i}.mlp.gate.weight"
    "blk.{i}.ffn_up.weight" => "layers.{i}.mlp.up.weight"
    "blk.{i}.ffn_down.weight" => "layers.{i}.mlp.down.weight"
};

pub const GGUF_MLP_BIAS: Rules = rules! {
    "blk.{i}.ffn_gate.bias" => "layers.{i}.mlp.gate.bias"
    "blk.{i}.ffn_up.bias" => "layers.{i}.mlp.up.bias"
    "blk.{i}.ffn_down.bias" => "layers.{i}.mlp.down.bias"
};

/// Experts as stacks, and one tensor per expert as files before 2024-04 have them.
pub const GGUF_MOE: Rules = rules! {
    "blk.{i}.ffn_gate_inp.weight" => "layers.{i}.moe.router.weight"
    "blk.{i}.ffn_gate_exps.weight" => "layers.{i}.moe.gate.weight"
    "blk.{i}.ffn_up_exps.weight" => "layers.{i}.moe.up.weight"
    "blk.{i}.ffn_down_exps.weight" => "layers.{i}.moe.down.weight"
    "blk.{i}.ffn_gate.{e}.weight" => "layers.{i}.moe.gate.{e}.weight"
    "blk.{i}.ffn_up.{e}.weight" => "layers.{i}.moe.up.{e}.weight"
    "blk.{i}.ffn_down.{e}.weight" => "layers.{i}.moe.down.{e}.weight"
};

/// What converters write when told to fuse.
pub const GGUF_FUSED_QKV: Rules = rules! {
    "blk.{i}.attn_qkv.weight"
        => "layers.{i}.attn.q.weight", "layers.{i}.attn.k.weight", "layers.{i}.attn.v.weight"; Qkv
    "blk.{i}.attn_qkv.bias"
        => "layers.{i}.attn.q.bias", "layers.{i}.attn.k.bias", "layers.{i}.attn.v.bias"; Qkv
};

pub const GGUF_FUSED_MOE: Rules = rules! {
    "blk.{i}.ffn_gate_up_exps.weight" => "layers.{i}.moe.gate.weight", "layers.{i}.moe.up.weight"; Halves
};

/// The MLP where gate and up are one matrix.
pub const GGUF_FUSED_MLP: Rules = rules! {
    "blk.{i}.ffn_up.weight" => "layers.{i}.mlp.gate.weight", "layers.{i}.mlp.up.weight"; Halves
    "blk.{i}.ffn_down.weight" => "layers.{i}.mlp.down.weight"
};

pub const GGUF_POST_NORMS: Rules = rules! {
    "blk.{i}.post_attention_norm.weight" => "layers.{i}.post_attn_norm.weight"
    "blk.{i}.post_ffw_norm.weight" => "layers.{i}.post_mlp_norm.weight"
};

pub const GGUF_GPT_OSS: Rules = rules! {
    "blk.{i}.attn_norm.weight" => "layers.{i}.attn_norm.weight"
    "blk.{i}.post_attention_norm.weight" => "layers.{i}.mlp_norm.weight"
    "blk.{i}.attn_sinks.weight" => "layers.{i}.attn.sinks"
    "blk.{i}.ffn_gate_inp.bias" => "layers.{i}.moe.router.bias"
    "blk.{i}.ffn_gate_exps.bias" => "layers.{i}.moe.gate.bias"
    "blk.{i}.ffn_up_exps.bias" => "layers.{i}.moe.up.bias"
    "blk.{i}.ffn_down_exps.bias" => "layers.{i}.moe.down.bias"
};

pub const GGUF_LONG_ROPE: Rules = rules! {
    "rope_factors_long.weight" => "rope_factors.long"
    "rope_factors_short.weight" => "rope_factors.short"
};

pub const GGUF_ROPE_FREQS: Rules = rules! {
    "rope_freqs.weight" => "rope_factors.llama3"
};

// Encoders.

pub const GGUF_BERT_EMBED: Rules = rules! {
    "token_embd.weight" => "embed_tokens.weight"
    "token_types.weight" => "embed_types.weight"
    "position_embd.weight" => "embed_positions.weight"
    "token_embd_norm.weight" => "embed_norm.weight"
    "token_embd_norm.bias" => "embed_norm.bias"
};

pub const GGUF_BERT_NORMS: Rules = rules! {
    "blk.{i}.attn_output_norm.weight" => "layers.{i}.attn_out_norm.weight"
    "blk.{i}.attn_output_norm.bias" => "layers.{i}.attn_out_norm.bias"
    "blk.{i}.layer_output_norm.weight" => "layers.{i}.out_norm.weight"
    "blk.{i}.layer_output_norm.bias" => "layers.{i}.out_norm.bias"
};

/// The MLP without a gate.
pub const GGUF_BERT_MLP: Rules = rules! {
    "blk.{i}.ffn_up.weight" => "layers.{i}.mlp.up.weight"
    "blk.{i}.ffn_up.bias" => "layers.{i}.mlp.up.bias"
    "blk.{i}.ffn_down.weight" => "layers.{i}.mlp.down.weight"
    "blk.{i}.ffn_down.bias" => "layers.{i}.mlp.down.bias"
};

pub const GGUF_CLASSIFIER: Rules = rules! {
    "cls.weight" => "cls.dense.weight"
    "cls.bias" => "cls.dense.bias"
    "cls.norm.weight" => "cls.norm.weight"
    "cls.norm.bias" => "cls.norm.bias"
    "cls.output.weight" => "cls.out.weight"
    "cls.output.bias" => "cls.out.bias"
};

pub const GGUF_MODERN_BERT: Rules = rules! {
    "token_embd.weight" => "embed_tokens.weight"
    "token_embd_norm.weight" => "embed_norm.weight"
    "token_embd_norm.bias" => "embed_norm.bias"
    "output_norm.weight" => "norm.weight"
    "output_norm.bias" => "norm.bias"
    "blk.{i}.attn_norm.weight" => "layers.{i}.attn_norm.weight"
    "blk.{i}.attn_norm.bias" => "layers.{i}.attn_norm.bias"
    "blk.{i}.ffn_norm.weight" => "layers.{i}.mlp_norm.weight"
    "blk.{i}.ffn_norm.bias" => "layers.{i}.mlp_norm.bias"
};
