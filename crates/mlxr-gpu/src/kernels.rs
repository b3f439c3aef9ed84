//! The kernels: what each file of `wgsl/` is specialised by, and its bindings.

use mlxr_tensor::{Activation, DType, Gate};
use serde::Serialize;

use crate::layout::{Codes, Floats};
use crate::pipelines::Access::{Read, Write};
use crate::pipelines::{Access, Kernel};

macro_rules! kernels {
    ($($(#[$doc:meta])* $name:ident = $file:literal [$($access:ident),*] {
        $($(#[$attr:meta])* $field:ident: $type:ty),* $(,)?
    })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
        pub(crate) struct $name { $($(#[$attr])* pub(crate) $field: $type),* }

        impl Kernel for $name {
            const FILE: &'static str = $file;
            const BINDINGS: &'static [Access] = &[$($access),*];
        }
    )*};
}

kernels! {
    Add = "add.wgsl" [Write, Read] {}
    Scale = "scale.wgsl" [Write] { is_softcap: bool }
    Gated = "gated.wgsl" [Read, Read, Write] { kind: &'static str }
    Activate = "activate.wgsl" [Write] { kind: &'static str }
    GatherRows = "gather_rows.wgsl" [Read, Read, Write] {}
    PadRows = "pad_rows.wgsl" [Read, Write] {}
    CopyWords = "copy_words.wgsl" [Write] {}
    /// `weight, y, x`
    RmsNorm = "rms_norm.wgsl" [Read, Write, Read] { kind: &'static str, lanes: u32, n_subgroups: u32 }
    /// `weight, y`
    RmsNormInPlace = "rms_norm.wgsl" [Read, Write] { kind: &'static str, lanes: u32, n_subgroups: u32 }
    /// `weight, y, x, residual`
    AddRmsNorm = "rms_norm.wgsl" [Read, Write, Read, Write] { kind: &'static str, lanes: u32, n_subgroups: u32 }
    LayerNorm = "layer_norm.wgsl" [Read, Read, Read, Write] { lanes: u32, n_subgroups: u32 }
    RotateHeads = "rope.wgsl" [Read, Write] { is_interleaved: bool }
    Argmax = "argmax.wgsl" [Read, Write] {}
    Largest = "largest.wgsl" [Read, Write] {}
    Route = "route.wgsl" [Read, Write, Write] { softmax_over_all: bool }
    Combine = "combine.wgsl" [Read, Read, Write] {}
    QuantiseRows = "quantise_rows.wgsl" [Read, Write, Write] {}
    /// `codes, high, scales, tokens, y`
    EmbedCodes = "embed.wgsl" [Read, Read, Read, Read, Write] {
        #[serde(flatten)]
        layout: Codes,
    }
    /// `codes, scales, unused, tokens, y`
    EmbedFloats = "embed.wgsl" [Read, Read, Read, Read, Write] {
        #[serde(flatten)]
        layout: Floats,
    }
    /// `codes, high, scales, x codes, x scales, bias, routing, y`
    MatvecCodes = "matvec_codes.wgsl" [Read, Read, Read, Read, Read, Read, Read, Write] {
        #[serde(flatten)]
        layout: Codes,
        #[serde(flatten)]
        shape: MatvecShape,
    }
    /// `codes, scales, x, bias, routing, y`
    MatvecFloats = "matvec_floats.wgsl" [Read, Read, Read, Read, Read, Write] {
        #[serde(flatten)]
        layout: Floats,
        #[serde(flatten)]
        shape: MatvecShape,
    }
    /// `rows, k, v, k cache, v cache`
    StoreKv = "store_kv.wgsl" [Read, Read, Read, Write, Write] {
        #[serde(flatten)]
        heads: KvShape,
        octets: u32,
    }
    /// and `k scales, v scales`
    StoreKvQ8 = "store_kv.wgsl" [Read, Read, Read, Write, Write, Write, Write] {
        #[serde(flatten)]
        heads: KvShape,
        octets: u32,
    }
    /// `rows, block tables, q, k cache, v cache, parts`
    Attend = "attention.wgsl" [Read, Read, Read, Read, Read, Write] {
        #[serde(flatten)]
        heads: KvShape,
        #[serde(flatten)]
        shape: AttentionShape,
    }
    /// and `k scales, v scales`
    AttendQ8 = "attention.wgsl" [Read, Read, Read, Read, Read, Write, Read, Read] {
        #[serde(flatten)]
        heads: KvShape,
        #[serde(flatten)]
        shape: AttentionShape,
    }
    /// `rows, parts, sinks, y`
    MergeAttention = "attention_merge.wgsl" [Read, Read, Read, Write] { split: u32, v_dim: u32 }
}

/// How a matvec is divided among lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub(crate) struct MatvecShape {
    /// Lanes of a subgroup.
    pub(crate) subgroup: u32,
    /// Subgroups that share the columns of a row.
    pub(crate) n_split: u32,
    /// Sets of so many subgroups in a workgroup.
    pub(crate) n_sets: u32,
    /// Rows of the weight that a set computes.
    pub(crate) n_out: u32,
    /// Rows of the input that a set meets.
    pub(crate) n_rows: u32,
    /// Whether the row of the weight depends on the row of the input (experts).
    pub(crate) is_routed: bool,
}

/// How keys and values of a layer are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub(crate) struct KvShape {
    pub(crate) dtype: &'static str,
    pub(crate) k_dim: u32,
    pub(crate) v_dim: u32,
    pub(crate) block_tokens: u32,
}

/// How attention is divided among lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub(crate) struct AttentionShape {
    /// Query heads of a workgroup.
    pub(crate) n_heads: u32,
    /// Tokens of a split.
    pub(crate) split: u32,
    pub(crate) lanes: u32,
    pub(crate) n_subgroups: u32,
}

/// The function of `gated.wgsl`, with its parameters.
pub(crate) fn gate(kind: Gate) -> (&'static str, f32, f32) {
    match kind {
        Gate::Silu => ("silu", 0.0, 0.0),
        Gate::Gelu => ("gelu", 0.0, 0.0),
        Gate::GeluTanh => ("gelu_tanh", 0.0, 0.0),
        Gate::ClampedSwiglu { alpha, limit } => ("clamped_swiglu", alpha, limit),
    }
}

/// The function of `activate.wgsl`.
pub(crate) fn activation(kind: Activation) -> &'static str {
    match kind {
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_tanh",
        Activation::Silu => "silu",
        Activation::Relu => "relu",
        Activation::Tanh => "tanh_stable",
    }
}

/// The name of a cache type in `kv_types.wgsl`, if it has one.
pub(crate) fn kv_type(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F32 => Some("f32"),
        DType::F16 => Some("f16"),
        DType::BF16 => Some("bf16"),
        DType::Q8_0 => Some("q8_0"),
        _ => None,
    }
}
