//! The table of kernels of one instruction set.

use std::fmt;

use mlxr_tensor::{DType, Format};

use crate::lanes::Lanes;
use crate::linear::codes::{CodeKind, CodeRow, QuantRow, QuantRowMut, StoredRow, UnpackedRow};
use crate::linear::tile::{ActRows, TileScratch, UnpackedTile};
use crate::linear::tiled::{PutInOrder, Tiles};
use crate::linear::wide::{WideActs, WideRows};
#[cfg(target_arch = "aarch64")]
use crate::neon;
use crate::scalar;
#[cfg(target_arch = "x86_64")]
use crate::{amx, avx2, avx512};

/// Weight rows, and activation rows, that one call of a dot kernel takes at most.
pub(crate) const TILE: usize = 4;

/// Dot products of up to [`TILE`] weight rows with up to [`TILE`] activation rows: `out[x * TILE + w]`.
///
/// Each product is computed the same way whatever the numbers of rows are.
pub(crate) type DotFloats = unsafe fn(&[&[u8]], &[&[f32]], &mut [f32]);

/// As [`DotFloats`], for unpacked weights and quantised activations.
pub(crate) type DotCodes = unsafe fn(CodeKind, &[CodeRow<'_>], &[QuantRow<'_>], &mut [f32]);

/// Weight rows that one call of a tile kernel takes at most.
pub(crate) const TILE_ROWS: usize = 32;

/// Dot products of up to [`TILE_ROWS`] weight rows of one format in tile order with all activation rows:
/// `out[x * TILE_ROWS + w]`. Each product is computed the same way whatever the numbers of rows are.
pub(crate) type DotTiles = unsafe fn(&Tiles<'_>, &ActRows<'_>, &mut TileScratch, &mut [f32]);

/// As [`DotTiles`], for unpacked rows.
pub(crate) type DotUnpacked =
    unsafe fn(CodeKind, &UnpackedTile<'_>, &ActRows<'_>, &mut TileScratch, &mut [f32]);

/// How quantised weights meet activations.
#[derive(Clone, Copy)]
pub(crate) enum CodeKernels {
    /// A few rows at a time, after unpacking.
    Rows(DotCodes),
    /// Many rows at a time: in tile order where the format has one, after unpacking elsewhere.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only AVX-512 has tile kernels"))]
    Tiles {
        /// Knows every format that [`crate::linear::tiled::BlockCut`] knows.
        tiled: fn(Format) -> Option<DotTiles>,
        put_in_order: PutInOrder,
        unpacked: DotUnpacked,
        /// Activation rows from which on the kernels want them packed as well.
        packs_from: usize,
    },
}

/// Products of up to `WIDE_ROWS` weight rows with all activation rows, both rounded to bf16: `out[x * WIDE_ROWS + w]`,
/// activation rows rounded up to whole blocks. A product does not depend on the numbers of rows.
pub(crate) type DotWide = unsafe fn(&WideRows<'_>, &WideActs, &mut TileScratch, &mut [f32]);

/// Up to sixteen consecutive keys and values of a KV head, and the queries that meet them.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only AVX-512 has a kernel for it"))]
pub(crate) struct Unit<'a> {
    /// F32, F16 or BF16.
    pub(crate) dtype: DType,
    /// `[n_keys, k_dim]`, as stored.
    pub(crate) keys: &'a [u8],
    /// `[n_keys, v_dim]`, as stored.
    pub(crate) values: &'a [u8],
    pub(crate) n_keys: usize,
    pub(crate) k_dim: usize,
    pub(crate) v_dim: usize,
    pub(crate) queries: &'a [&'a [f32]],
    /// Which keys each query sees, the first in the lowest bit.
    pub(crate) masks: &'a [u16],
    pub(crate) scale: f32,
    pub(crate) softcap: Option<f32>,
}

/// One thread's memory for [`Attend`].
#[derive(Default)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only AVX-512 has a kernel for it"))]
pub(crate) struct UnitScratch {
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
    pub(crate) weights: Vec<f32>,
}

/// The softmax of each query so far: largest score, sum of exponentials, weighted values.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only AVX-512 has a kernel for it"))]
pub(crate) struct Softmax<'a> {
    pub(crate) max: &'a mut [f32],
    pub(crate) sum: &'a mut [f32],
    /// `[queries, v_dim]`
    pub(crate) acc: &'a mut [f32],
}

/// Adds a unit to the softmax of its queries, each computed the same way whatever their number is.
pub(crate) type Attend = unsafe fn(&Unit<'_>, &mut UnitScratch, &mut Softmax<'_>);

/// How weights of any format meet many activation rows in bf16.
#[derive(Clone, Copy)]
pub(crate) struct WideKernels {
    /// Activation rows from which on they are used.
    pub(crate) from_rows: usize,
    /// The kernel of a format in tile order.
    pub(crate) tiled: fn(Format) -> Option<DotWide>,
    /// The kernel of a plain float type.
    pub(crate) floats: fn(Format) -> Option<DotWide>,
    pub(crate) unpacked: fn(CodeKind) -> DotWide,
    /// Puts up to `BLOCK_ROWS` rows in a block of [`WideActs`].
    pub(crate) pack: unsafe fn(&[&[f32]], &mut [u8]),
}

impl CodeKernels {
    /// Whether the kernels want `n_rows` activation rows packed.
    pub(crate) fn packs(&self, n_rows: usize) -> bool {
        match self {
            CodeKernels::Rows(_) => false,
            CodeKernels::Tiles { packs_from, .. } => *packs_from <= n_rows,
        }
    }
}

/// Turns a stored row into codes, scales and offsets.
pub(crate) type Unpack = unsafe fn(StoredRow<'_>, UnpackedRow<'_>);

/// Turns as many halves as there are places into floats, exactly.
pub(crate) type WidenHalves = unsafe fn(&[u8], &mut [f32]);

/// Turns floats into halves, to the nearest and among two of these to the even one.
pub(crate) type NarrowHalves = unsafe fn(&[f32], &mut [u8]);

/// An instruction set with a table of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust, any CPU.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
    /// As [`Isa::Avx512`], with AMX's 8-bit tiles.
    Amx,
    /// AArch64 with NEON and the dot product extension.
    Neon,
    /// As [`Isa::Neon`], with 8-bit matrix products.
    NeonI8mm,
}

impl Isa {
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "AVX2",
            Isa::Avx512 => "AVX-512",
            Isa::Amx => "AMX",
            Isa::Neon => "NEON",
            Isa::NeonI8mm => "NEON with I8MM",
        }
    }
}

/// How products of many rows are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Products {
    /// By the operations of products of one row, so a row's result is the same bits in any company.
    #[default]
    Alike,
    /// In bf16 from 32 rows on, where the CPU has tiles of it: several times as fast, and rounded to other bits than
    /// products of fewer rows.
    Bf16,
}

/// The kernels of one instruction set, chosen once; this CPU has what they need.
#[derive(Clone, Copy)]
pub struct Kernels {
    pub(crate) isa: Isa,
    pub(crate) dot_f32: DotFloats,
    pub(crate) dot_f16: DotFloats,
    pub(crate) dot_bf16: DotFloats,
    pub(crate) widen_f16: WidenHalves,
    pub(crate) narrow_f16: NarrowHalves,
    pub(crate) codes: CodeKernels,
    /// Only used where a backend was asked for [`Products::Bf16`].
    pub(crate) wide: Option<WideKernels>,
    /// Attention to sixteen keys at once, of floats in multiples of sixteen; without it keys meet queries by `dot_*`.
    pub(crate) attend: Option<Attend>,
    /// The unpacking kernel of a format, if it has one.
    pub(crate) unpack: fn(Format) -> Option<(CodeKind, Unpack)>,
    pub(crate) lanes: Lanes,
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kernels({})", self.isa.name())
    }
}

impl Kernels {
    /// Every table this CPU can run, slowest first.
    pub fn available() -> Vec<Kernels> {
        let mut tables = vec![scalar::TABLE];
        #[cfg(target_arch = "x86_64")]
        if avx2::is_available() {
            tables.push(avx2::TABLE);
            if avx512::is_available() {
                tables.push(avx512::TABLE);
                if amx::is_available() {
                    tables.push(Kernels { wide: amx::wide(), ..amx::TABLE });
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        if neon::is_available() {
            tables.push(neon::TABLE);
            if neon::has_i8mm() {
                tables.push(neon::I8MM);
            }
        }
        tables
    }

    /// The fastest table this CPU can run.
    pub fn best() -> Kernels {
        *Self::available().last().expect("the scalar table always runs")
    }

    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The dot kernel for weights of a plain float type.
    pub(crate) fn dot_floats(&self, format: Format) -> Option<DotFloats> {
        match format {
            Format::Plain(DType::F32) => Some(self.dot_f32),
            Format::Plain(DType::F16) => Some(self.dot_f16),
            Format::Plain(DType::BF16) => Some(self.dot_bf16),
            _ => None,
        }
    }
}

impl Kernels {
    /// Reads `out.len()` halves.
    #[inline]
    pub(crate) fn widen_f16(&self, halves: &[u8], out: &mut [f32]) {
        // SAFETY: a table is only handed out where the CPU has its features (`available`).
        unsafe { (self.widen_f16)(halves, out) }
    }

    /// Writes `values.len()` halves.
    #[inline]
    pub(crate) fn narrow_f16(&self, values: &[f32], out: &mut [u8]) {
        // SAFETY: a table is only handed out where the CPU has its features (`available`).
        unsafe { (self.narrow_f16)(values, out) }
    }
}

/// Safe calls through the table of [`Lanes`].
macro_rules! lane_methods {
    ($($name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)?;)*) => {
        impl Kernels {
            $(
                #[inline]
                pub(crate) fn $name(&self, $($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: a table is only handed out where the CPU has its features (`available`).
                    unsafe { (self.lanes.$name)($($arg),*) }
                }
            )*
        }
    };
}

lane_methods! {
    quantise(x: &[f32], out: QuantRowMut<'_>);
    max(x: &[f32]) -> f32;
    exp_sum(x: &mut [f32], max: f32) -> f32;
    exp(x: f32) -> f32;
    sum(x: &[f32]) -> f32;
    sum_squares(x: &[f32]) -> f32;
    subtract(out: &mut [f32], x: &[f32], by: f32);
    norm(out: &mut [f32], x: &[f32], weight: &[f32], factor: f32);
    norm_in_place(x: &mut [f32], weight: &[f32], factor: f32);
    gated(out: &mut [f32], gate: &[f32], up: &[f32], kind: mlxr_tensor::Gate);
    activate(x: &mut [f32], kind: mlxr_tensor::Activation);
    softcap(x: &mut [f32], cap: f32);
    add_scaled(x: &mut [f32], y: &[f32], factor: f32);
    scale(x: &mut [f32], factor: f32);
    weighted_sum(acc: &mut [f32], weights: &[f32], rows: &[f32]);
    rotate_half(x: &mut [f32], cos: &[f32], sin: &[f32]);
    rotate_pairs(x: &mut [f32], cos: &[f32], sin: &[f32]);
}
