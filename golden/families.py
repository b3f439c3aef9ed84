"""The tiny checkpoints: one `config.json` per family, in the style of the model makers' own files.

Every entry is small enough to commit and large enough to tell a wrong forward from a right one:
windows and original context lengths are shorter than the prompts, multipliers are not one.
"""

VOCAB = 288

BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "use_cache": True,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}


def config(model_type, architecture, drop=(), **changes):
    out = {"architectures": [architecture], "model_type": model_type, **BASE, **changes}
    return {key: value for key, value in out.items() if key not in drop}


LLAMA3_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_type": "llama3",
}
GEMMA = {
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": True,
}
# twelve of sixteen head dimensions turn: six factors each
LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0, 1.05, 1.1, 1.3, 1.6, 2.0],
    "long_factor": [1.1, 1.4, 2.3, 4.7, 9.1, 16.0],
}

FAMILIES = {
    "llama": config("llama", "LlamaForCausalLM", intermediate_size=96, attention_bias=False, mlp_bias=False, rope_scaling=None),
    "llama3": config(
        "llama",
        "LlamaForCausalLM",
        attention_bias=False,
        mlp_bias=False,
        head_dim=16,
        rope_theta=500000.0,
        rope_scaling=LLAMA3_ROPE,
        tie_word_embeddings=True,
    ),
    "llama_bias": config(
        "llama",
        "LlamaForCausalLM",
        attention_bias=True,
        mlp_bias=True,
        head_dim=32,
        num_key_value_heads=1,
        rope_scaling={"type": "linear", "factor": 2.0},
        tie_word_embeddings=True,
    ),
    "mistral": config("mistral", "MistralForCausalLM", sliding_window=16),
    "mixtral": config(
        "mixtral",
        "MixtralForCausalLM",
        num_local_experts=4,
        num_experts_per_tok=2,
        output_router_logits=False,
        router_aux_loss_coef=0.02,
        rope_theta=1000000.0,
        sliding_window=None,
    ),
    "qwen2": config(
        "qwen2",
        "Qwen2ForCausalLM",
        rope_theta=1000000.0,
        rms_norm_eps=1e-06,
        sliding_window=512,
        use_sliding_window=False,
        max_window_layers=2,
        tie_word_embeddings=True,
    ),
    "qwen3": config(
        "qwen3",
        "Qwen3ForCausalLM",
        attention_bias=False,
        head_dim=32,
        rope_theta=1000000.0,
        rope_scaling=None,
        rms_norm_eps=1e-06,
        sliding_window=None,
        use_sliding_window=False,
        max_window_layers=2,
        tie_word_embeddings=True,
    ),
    "qwen3_moe": config(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        attention_bias=False,
        head_dim=16,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        moe_intermediate_size=32,
        norm_topk_prob=True,
        num_experts=5,
        num_experts_per_tok=3,
        output_router_logits=False,
        router_aux_loss_coef=0.001,
        rope_theta=1000000.0,
        rope_scaling=None,
        rms_norm_eps=1e-06,
        sliding_window=None,
        use_sliding_window=False,
        max_window_layers=2,
    ),
    "gemma": config("gemma", "GemmaForCausalLM", attention_bias=False, head_dim=32, num_key_value_heads=1, **GEMMA),
    "gemma2": config(
        "gemma2",
        "Gemma2ForCausalLM",
        attention_bias=False,
        head_dim=32,
        query_pre_attn_scalar=32,
        attn_logit_softcapping=10.0,
        final_logit_softcapping=20.0,
        cache_implementation="hybrid",
        sliding_window=16,
        **GEMMA,
    ),
    "gemma3_text": config(
        "gemma3_text",
        "Gemma3ForCausalLM",
        attention_bias=False,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        cache_implementation="hybrid",
        head_dim=16,
        num_hidden_layers=7,
        num_key_value_heads=1,
        query_pre_attn_scalar=24,
        rope_local_base_freq=10000.0,
        rope_scaling={"factor": 8.0, "rope_type": "linear"},
        rope_theta=1000000.0,
        sliding_window=16,
        sliding_window_pattern=6,
        **{**GEMMA, "hidden_size": 32},
    ),
    "phi3": config(
        "phi3",
        "Phi3ForCausalLM",
        attention_bias=False,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        num_key_value_heads=4,
        original_max_position_embeddings=512,
        rope_scaling=None,
        sliding_window=16,
        pad_token_id=0,
    ),
    "phi3_longrope": config(
        "phi3",
        "Phi3ForCausalLM",
        attention_bias=False,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        partial_rotary_factor=0.75,
        original_max_position_embeddings=48,
        rope_scaling=LONGROPE,
        sliding_window=512,
        tie_word_embeddings=True,
        pad_token_id=0,
    ),
    "granite": config(
        "granite",
        "GraniteForCausalLM",
        intermediate_size=64,
        attention_bias=False,
        mlp_bias=False,
        attention_multiplier=0.4,
        embedding_multiplier=3.0,
        logits_scaling=0.75,
        residual_multiplier=0.6,
        rope_scaling=None,
        tie_word_embeddings=True,
    ),
    "olmo2": config("olmo2", "Olmo2ForCausalLM", attention_bias=False, rope_theta=500000.0, rms_norm_eps=1e-06, rope_scaling=None),
    "smollm3": config(
        "smollm3",
        "SmolLM3ForCausalLM",
        attention_bias=False,
        mlp_bias=False,
        num_hidden_layers=4,
        layer_types=["full_attention"] * 4,
        no_rope_layer_interval=4,
        pad_token_id=0,
        no_rope_layers=[1, 1, 1, 0],
        rope_scaling=None,
        rope_theta=5000000.0,
        rms_norm_eps=1e-06,
        sliding_window=None,
        use_sliding_window=False,
        max_window_layers=4,
        tie_word_embeddings=True,
    ),
    "gpt_oss": config(
        "gpt_oss",
        "GptOssForCausalLM",
        attention_bias=True,
        experts_per_token=2,
        head_dim=32,
        initial_context_length=32,
        intermediate_size=64,
        layer_types=["sliding_attention", "full_attention"],
        num_experts_per_tok=2,
        num_local_experts=4,
        output_router_logits=False,
        rope_scaling={
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 16.0,
            "original_max_position_embeddings": 32,
            "rope_type": "yarn",
            "truncate": False,
        },
        rope_theta=150000,
        router_aux_loss_coef=0.9,
        sliding_window=16,
        swiglu_limit=7.0,
    ),
}

# Ids generated per prompt where not 64: LongRoPE changes its factors past the original context of 48,
# so the first two prompts stay below it and the third starts above it.
N_GREEDY = {"phi3_longrope": [43, 25, 64]}

# What a GGUF cannot say or what llama.cpp fixes by name: the same weights under these changes are the truth for the GGUF.
GGUF_CHANGES = {
    "gpt_oss": {"rope_scaling": {**FAMILIES["gpt_oss"]["rope_scaling"], "truncate": True}},
    "mistral": {"sliding_window": None},
    "gemma3_text": {"query_pre_attn_scalar": 16},
}

# How the tensors of real files are called; a checkpoint here may hold no other name.
NAMES = {
    "mixtral": [r"block_sparse_moe\.experts\.\d+\.w[123]\.weight", r"block_sparse_moe\.gate\.weight"],
    "qwen3_moe": [r"mlp\.experts\.\d+\.(gate|up|down)_proj\.weight", r"mlp\.gate\.weight"],
    "phi3": [r"self_attn\.qkv_proj\.weight", r"mlp\.(gate_up|down)_proj\.weight"],
    "gpt_oss": [
        r"self_attn\.sinks",
        r"mlp\.router\.(weight|bias)",
        r"mlp\.experts\.(gate_up|down)_proj(_bias)?",
    ],
}
NAMES["phi3_longrope"] = NAMES["phi3"]
COMMON_NAMES = [
    r"self_attn\.[qkvo]_proj\.(weight|bias)",
    r"self_attn\.[qk]_norm\.weight",
    r"(input|post_attention|pre_feedforward|post_feedforward)_layernorm\.weight",
]
DENSE_NAMES = [r"mlp\.(gate|up|down)_proj\.(weight|bias)"]
