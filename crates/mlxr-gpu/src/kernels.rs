//! The kernels: what each file of `wgsl/` is specialised by, and its bindings.

use mlxr_tensor::{Activation, DType, Gate};
use serde::{Deserialize, Serialize};

use crate::layout::{CODES_CHUNK, Codes, Floats, Layout};
use crate::pipelines::Access::{Read, Write};
use crate::pipelines::{Access, Kernel};

macro_rules! kernels {
    ($($(#[$doc:meta])* $name:ident = $file:literal [$($access:ident),*] $(+ $($flag:ident).+ [$($more:ident),*])* {
        $($(#[$attr:meta])* $field:ident: $type:ty),* $(,)?
    })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
        pub(crate) struct $name { $($(#[$attr])* pub(crate) $field: $type),* }

        impl Kernel for $name {
            const FILE: &'static str = $file;

            fn bindings(&self) -> Vec<Access> {
                let parts: &[&[Access]] =
                    &[&[$($access),*] $(, if self.$($flag).+ { &[$($more),*] } else { &[] })*];
                parts.concat()
            }
        }
    )*};
}

kernels! {
    Add = "add.wgsl" [Write, Read] {}
    Scale = "scale.wgsl" [Write] { is_softcap: bool }
    /// `gate, up, y`, and the codes of y with their scales
    Gated = "gated.wgsl" [Read, Read, Write] + is_quantising [Write, Write] {
        kind: &'static str,
        is_quantising: bool,
    }
    Activate = "activate.wgsl" [Write] { kind: &'static str }
    /// `x, rows, y`
    MoveRows = "move_rows.wgsl" [Read, Read, Write] { is_scattering: bool }
    /// `image, y`
    Patches = "patches.wgsl" [Read, Write] {}
    PadRows = "pad_rows.wgsl" [Read, Write] {}
    CopyWords = "copy_words.wgsl" [Write] {}
    /// `weight, y, x`, the codes of y with their scales, and y as operands of matrices
    RmsNorm = "rms_norm.wgsl" [Read, Write, Read] + is_quantising [Write, Write] + has_fragments [Write] {
        kind: &'static str,
        /// Whether y is in f16.
        is_half: bool,
        is_quantising: bool,
        has_fragments: bool,
        #[serde(flatten)]
        shape: NormShape,
    }
    /// `weight, y`
    RmsNormInPlace = "rms_norm.wgsl" [Read, Write] {
        kind: &'static str,
        /// Whether y is in f16.
        is_half: bool,
        is_quantising: bool,
        has_fragments: bool,
        #[serde(flatten)]
        shape: NormShape,
    }
    /// `weight, y, x, residual`, the codes of y with their scales, and y as operands of matrices
    AddRmsNorm = "rms_norm.wgsl" [Read, Write, Read, Write] + is_quantising [Write, Write] + has_fragments [Write] {
        kind: &'static str,
        /// Whether y is in f16.
        is_half: bool,
        is_quantising: bool,
        has_fragments: bool,
        #[serde(flatten)]
        shape: NormShape,
    }
    /// `x, squares, y`
    ScaleRows = "scale_rows.wgsl" [Read, Read, Write] { lanes: u32, subgroup: u32, n_squares: u32 }
    LayerNorm = "layer_norm.wgsl" [Read, Read, Read, Write] { lanes: u32, subgroup: u32 }
    RotateHeads = "rope.wgsl" [Read, Write] { is_interleaved: bool }
    Argmax = "argmax.wgsl" [Read, Write] { lanes: u32 }
    Largest = "largest.wgsl" [Read, Write] { lanes: u32 }
    ExpSum = "exp_sum.wgsl" [Read, Write] { lanes: u32, subgroup: u32 }
    /// `found, guesses, tokens`
    GuessTokens = "guess.wgsl" [Read, Read, Write] {}
    /// `x, guesses, tokens`
    DrawTokens = "draw.wgsl" [Read, Read, Write] { lanes: u32, subgroup: u32 }
    /// `pairs, chosen, tokens`
    FeedTokens = "feed_tokens.wgsl" [Read, Read, Write] {}
    Route = "route.wgsl" [Read, Write, Write] { softmax_over_all: bool }
    /// `experts, tiles`
    Group = "group.wgsl" [Read, Write] { n_experts: u32, tile: u32 }
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
    /// `codes, high, scales, x codes, x scales, bias, routing, y`, and the squares of an x that is still to be scaled
    MatvecCodes = "matvec_codes.wgsl"
        [Read, Read, Read, Read, Read, Read, Read, Write] + shape.is_unscaled [Read] {
        #[serde(flatten)]
        layout: Codes,
        #[serde(flatten)]
        shape: MatvecShape,
    }
    /// `codes, scales, x, bias, routing, y`, and the squares of an x that is still to be scaled
    MatvecFloats = "matvec_floats.wgsl" [Read, Read, Read, Read, Read, Write] + shape.is_unscaled [Read] {
        #[serde(flatten)]
        layout: Floats,
        #[serde(flatten)]
        shape: MatvecShape,
    }
    /// As `MatvecCodes`, with `up codes, up high, up scales, up bias` behind y, and the codes of y with their scales
    GatedMatvecCodes = "matvec_codes.wgsl"
        [Read, Read, Read, Read, Read, Read, Read, Write, Read, Read, Read, Read]
        + shape.is_unscaled [Read] + is_quantising [Write, Write] {
        #[serde(flatten)]
        layout: Codes,
        #[serde(flatten)]
        shape: MatvecShape,
        kind: &'static str,
        is_quantising: bool,
    }
    /// As `MatvecFloats`, with `up codes, up scales, up bias` behind y, and the codes of y with their scales
    GatedMatvecFloats = "matvec_floats.wgsl"
        [Read, Read, Read, Read, Read, Write, Read, Read, Read]
        + shape.is_unscaled [Read] + is_quantising [Write, Write] {
        #[serde(flatten)]
        layout: Floats,
        #[serde(flatten)]
        shape: MatvecShape,
        kind: &'static str,
        is_quantising: bool,
    }
    /// `codes, high, scales, x codes, x scales, bias, routing, residual, norm, squares, y`, the squares of an x that is still
    /// to be scaled, and the codes of y with their scales
    NormedMatvecCodes = "matvec_codes.wgsl"
        [Read, Read, Read, Read, Read, Read, Read, Write, Read, Write, Write]
        + shape.is_unscaled [Read] + is_quantising [Write, Write] {
        #[serde(flatten)]
        layout: Codes,
        #[serde(flatten)]
        shape: MatvecShape,
        is_normed: bool,
        is_quantising: bool,
    }
    /// `codes, scales, x, bias, routing, residual, norm, squares, y`, the squares of an x that is still to be scaled, and
    /// the codes of y with their scales
    NormedMatvecFloats = "matvec_floats.wgsl"
        [Read, Read, Read, Read, Read, Write, Read, Write, Write]
        + shape.is_unscaled [Read] + is_quantising [Write, Write] {
        #[serde(flatten)]
        layout: Floats,
        #[serde(flatten)]
        shape: MatvecShape,
        is_normed: bool,
        is_quantising: bool,
    }
    HalfRows = "half_rows.wgsl" [Read, Write] {}
    FloatRows = "float_rows.wgsl" [Read, Write] {}
    FragmentRows = "fragment_rows.wgsl" [Read, Write] {}
    /// `codes, high, scales, y`
    UnpackCodes = "unpack.wgsl" [Read, Read, Read, Write] {
        #[serde(flatten)]
        layout: Codes,
        lanes: u32,
        /// Runs of eight columns of a lane.
        n_each: u32,
    }
    /// `codes, scales, unused, y`
    UnpackFloats = "unpack.wgsl" [Read, Read, Read, Write] {
        #[serde(flatten)]
        layout: Floats,
        lanes: u32,
        /// Runs of eight columns of a lane.
        n_each: u32,
    }
    /// `x, w, y`
    Matmul = "matmul.wgsl" [Write, Write, Write] {
        #[serde(flatten)]
        shape: MatmulShape,
    }
    /// `x, gate, up, y`
    GatedMatmul = "matmul.wgsl" [Write, Write, Write, Write] {
        #[serde(flatten)]
        shape: MatmulShape,
        kind: &'static str,
    }
    /// `w, x, y`
    MatmulFew = "matmul_few.wgsl" [Write, Read, Write] {
        #[serde(flatten)]
        shape: FewShape,
    }
    /// `gate, x, y, up`
    GatedMatmulFew = "matmul_few.wgsl" [Write, Read, Write, Write] {
        #[serde(flatten)]
        shape: FewShape,
        kind: &'static str,
    }
    /// `codes, high, scales, x, y`
    MatmulFewCodes = "matmul_few_codes.wgsl" [Read, Read, Read, Read, Write] {
        #[serde(flatten)]
        layout: Codes,
        /// Subgroups that share all columns.
        n_split: u32,
    }
    /// `codes, high, scales, x, y`, y as operands of matrices, two that are unused, `up codes, up high, up scales`
    GatedMatmulFewCodes = "matmul_few_codes.wgsl"
        [Read, Read, Read, Read, Write, Write, Read, Read, Read, Read, Read] {
        #[serde(flatten)]
        layout: Codes,
        /// Subgroups that share all columns.
        n_split: u32,
        kind: &'static str,
    }
    /// `rows, k, v, k cache, v cache`
    StoreKv = "store_kv.wgsl" [Read, Read, Read, Write, Write] {
        #[serde(flatten)]
        heads: KvShape,
        octets: u32,
    }
    /// and `k scales, v scales`
    StoreKvScaled = "store_kv.wgsl" [Read, Read, Read, Write, Write, Write, Write] {
        #[serde(flatten)]
        heads: KvShape,
        octets: u32,
    }
    /// `rows, angles, q, k, v, k cache, v cache`
    RotateAndStore = "rope_store.wgsl" [Read, Read, Write, Read, Read, Write, Write] {
        #[serde(flatten)]
        heads: KvShape,
        n_pairs: u32,
        is_interleaved: bool,
    }
    /// `rows, block tables, tiles, q, k cache, v cache, sinks, y`
    AttendTiles = "attention_tiles.wgsl" [Read, Read, Read, Read, Write, Write, Read, Write] {
        #[serde(flatten)]
        heads: KvShape,
        /// Query heads and rows of a workgroup.
        n_heads: u32,
        n_queries: u32,
        n_subgroups: u32,
        /// Tokens at a time.
        tile: u32,
        /// Whether y is in f16.
        is_half: bool,
    }
    /// `rows, parts, stats, sinks, y`, and the codes of y with their scales
    MergeAttention = "attention_merge.wgsl" [Read, Read, Read, Read, Write] + is_quantising [Write, Write] {
        split: u32,
        v_dim: u32,
        /// Query heads of a workgroup.
        n_heads: u32,
        is_quantising: bool,
    }
}

/// `rows, block tables, q, k cache, v cache`; `parts, stats`, or of a single split `y, sinks`; of a cache in q8_0 `k scales, v scales`, or with pairs that turn
/// `angles, k, v`; where splits are joined `arrivals, sinks, y`, and the codes of y with their scales
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub(crate) struct Attend {
    #[serde(flatten)]
    pub(crate) heads: KvShape,
    #[serde(flatten)]
    pub(crate) shape: AttentionShape,
    /// Pairs of a head that are still to be rotated; 0: queries are rotated, keys and values stored.
    pub(crate) n_pairs: u32,
    pub(crate) is_interleaved: bool,
    pub(crate) is_joining: bool,
    pub(crate) is_quantising: bool,
}

impl Kernel for Attend {
    const FILE: &'static str = "attention.wgsl";

    fn bindings(&self) -> Vec<Access> {
        let cache = if self.n_pairs > 0 { Write } else { Read };
        let second = if self.shape.is_single { Read } else { Write };
        let mut bindings = vec![Read, Read, Read, cache, cache, Write, second];
        if self.heads.has_scales() {
            bindings.extend([Read; 2]);
        }
        if self.n_pairs > 0 {
            bindings.extend([Read; 3]);
        }
        if self.is_joining {
            bindings.extend([Write, Read, Write]);
        }
        if self.is_quantising {
            bindings.extend([Write; 2]);
        }
        bindings
    }
}

/// How a norm is divided among lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub(crate) struct NormShape {
    pub(crate) lanes: u32,
    pub(crate) subgroup: u32,
    /// Whether columns go by fours.
    pub(crate) has_quads: bool,
    /// Columns, or fours of them, of a lane.
    pub(crate) per_lane: u32,
}

/// How a matvec is divided among lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub(crate) struct MatvecShape {
    /// Chunks of a row.
    pub(crate) n_chunks: u32,
    /// Chunks that a lane loads together; they divide what it has.
    pub(crate) n_ahead: u32,
    /// Lanes of a subgroup, and their binary logarithm.
    pub(crate) subgroup: u32,
    pub(crate) subgroup_bits: u32,
    /// Subgroups that share the columns of a row.
    pub(crate) n_split: u32,
    /// Sets of so many subgroups in a workgroup.
    pub(crate) n_sets: u32,
    /// Rows of the weight that a set computes.
    pub(crate) n_out: u32,
    /// Rows of the input that a set meets.
    pub(crate) n_rows: u32,
    /// Whether the row of the weight depends on the row of the input (experts); rows that are met together have the same.
    pub(crate) is_routed: bool,
    /// Whether the input is still to be scaled, see `squares.wgsl`.
    pub(crate) is_unscaled: bool,
}

impl MatvecShape {
    /// For a weight of so many rows of so many chunks, and `n_rows` rows of the input at a time.
    pub(crate) fn new(
        subgroup: u32,
        layout: &Layout,
        [n_weight_rows, n_chunks]: [u32; 2],
        n_rows: u32,
        is_routed: bool,
    ) -> Self {
        /// More would not fit in registers.
        const MAX_AHEAD: u32 = 7;
        // The order of a sum follows from this, so it may not depend on the number of rows.
        let n_split = 2;
        let (lanes, is_few) = (subgroup * n_split, n_rows <= 2);
        let fits = |n: &u32| (n_chunks / lanes).is_multiple_of(*n);
        let n_ahead = if is_few && n_chunks >= lanes && n_chunks.is_multiple_of(lanes) {
            (1..=MAX_AHEAD).rev().find(fits).unwrap_or(1)
        } else {
            1
        };
        // Where there are many rows, what is loaded of them should meet more of the weight; small workgroups leave more
        // registers to each lane, but there should be enough of them. By measurements on an H200.
        let (n_out, n_sets) = match (layout, n_rows, n_weight_rows) {
            (_, 0..=2, _) => (2, 4),
            (Layout::Codes(_), 8, 0..=8192) => (4, 4),
            (Layout::Codes(_), 16, 2048..=8192) if n_chunks >= 256 => (8, 1),
            (Layout::Codes(_), ..) => (4, 2),
            (Layout::Floats(_), 0..16, _) => (4, 4),
            (Layout::Floats(_), ..) => (8, 1),
        };
        let subgroup_bits = subgroup.ilog2();
        Self {
            n_chunks,
            n_ahead,
            subgroup,
            subgroup_bits,
            n_split,
            n_sets,
            n_out,
            n_rows,
            is_routed,
            is_unscaled: false,
        }
    }

    /// For gated products of matrices of so many chunks to a row. A workgroup whose results are quantised has a chunk of
    /// them, divided by measurements on an H200; others are divided as products of one matrix, a row of each matrix taking
    /// the place of two rows.
    pub(crate) fn gated(
        subgroup: u32,
        layout: &Layout,
        size: [u32; 2],
        n_rows: u32,
        is_quantising: bool,
    ) -> Self {
        let usual = Self::new(subgroup, layout, size, n_rows, false);
        if !is_quantising {
            return usual;
        }
        // Registers have room for both chunks of a lane where those are small.
        let is_small = matches!(layout, Layout::Codes(codes) if codes.bits <= 4);
        let n_ahead = if is_small && n_rows == 1 && usual.n_ahead == 2 { 2 } else { 1 };
        Self { n_ahead, n_out: 16, n_sets: 4, ..usual }
    }

    /// For products that are added to a residual and normalised: a workgroup has a chunk of the results.
    pub(crate) fn normed(
        subgroup: u32,
        layout: &Layout,
        size: [u32; 2],
        n_rows: u32,
        max_lanes: u32,
    ) -> Self {
        let usual = Self::new(subgroup, layout, size, n_rows, false);
        let n_sets = (max_lanes / (subgroup * usual.n_split)).clamp(1, 16);
        Self { n_sets, n_out: CODES_CHUNK as u32 / n_sets, ..usual }
    }

    /// Columns of a gated product that a workgroup computes.
    pub(crate) fn gated_columns(&self) -> u32 {
        self.n_sets * self.n_out / 2
    }

    pub(crate) fn division(&self) -> Division {
        Division { n_out: self.n_out, n_sets: self.n_sets }
    }

    /// Divided in another way.
    pub(crate) fn divided(self, Division { n_out, n_sets }: Division) -> Self {
        Self { n_out, n_sets, ..self }
    }
}

/// What of a matvec's shape does not change its results: rows of the weight of a set, and sets of a workgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Division {
    pub(crate) n_out: u32,
    pub(crate) n_sets: u32,
}

/// How a product on matrix units is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub(crate) struct MatmulShape {
    pub(crate) subgroup: u32,
    /// Rows and columns of a workgroup's results; of a gated product half of the columns are each matrix's.
    pub(crate) tile_rows: u32,
    pub(crate) tile_outs: u32,
    /// Subgroups that share them, down the rows and across the columns.
    pub(crate) n_down: u32,
    pub(crate) n_across: u32,
    /// Columns of x and w that are in workgroup memory.
    pub(crate) k_tile: u32,
    /// Rows and columns of the device's matrices.
    pub(crate) size: u32,
    /// Whether workgroup memory goes by fours, which is faster where it is possible.
    pub(crate) has_vectors: bool,
}

/// How a product of few rows on matrix units is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub(crate) struct FewShape {
    pub(crate) subgroup: u32,
    /// Matrices of results of a workgroup, one after the other across the columns.
    pub(crate) n_tiles: u32,
    /// Subgroups that share the columns of x and w.
    pub(crate) n_split: u32,
    /// Columns of a subgroup that are in workgroup memory.
    pub(crate) k_tile: u32,
    /// Whether x is in f16.
    pub(crate) is_half: bool,
}

/// How keys and values of a layer are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub(crate) struct KvShape {
    pub(crate) dtype: &'static str,
    pub(crate) k_dim: u32,
    pub(crate) v_dim: u32,
    pub(crate) block_tokens: u32,
}

impl KvShape {
    /// Whether runs of 32 elements have a scale, in a buffer of its own.
    pub(crate) fn has_scales(&self) -> bool {
        matches!(self.dtype, "q8_0" | "q4_0")
    }
}

/// How attention is divided among lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub(crate) struct AttentionShape {
    /// Query heads of a workgroup.
    pub(crate) n_heads: u32,
    /// Workgroups that all query heads take, and those that share a key head.
    pub(crate) n_tiles: u32,
    pub(crate) tiles_per_kv: u32,
    /// Tokens of a split, and lanes of a workgroup.
    pub(crate) split: u32,
    pub(crate) subgroup: u32,
    /// Whether the rows it serves have one split.
    pub(crate) is_single: bool,
    /// Rounds over keys and values where its code should be short.
    pub(crate) n_rounds: u32,
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
        Activation::QuickGelu => "quick_gelu",
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
        DType::Q4_0 => Some("q4_0"),
        DType::F8E4M3 => Some("f8_e4m3"),
        _ => None,
    }
}
