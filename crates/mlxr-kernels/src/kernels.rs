//! The table of kernels of one instruction set.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use mlxr_tensor::{DType, Format};

use crate::lanes::Lanes;
use crate::linear::blocks::BlockRows;
use crate::linear::codes::{CodeKind, CodeRow, QuantRow, QuantRowMut, StoredRow, UnpackedRow};
use crate::linear::tile::{ActRows, TileScratch, UnpackedTile};
use crate::linear::tiled::{PutInOrder, Tiles};
use crate::linear::wide::{BLOCK_FLOATS, WideActs, WideOut, WideRows};
#[cfg(target_arch = "aarch64")]
use crate::neon;
use crate::peak::PeakLoop;
use crate::scalar;
use crate::weight::Matrix;
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

/// As [`DotTiles`], for rows of super-blocks.
pub(crate) type DotBlocks = unsafe fn(&Tiles<'_>, &BlockRows<'_>, &mut TileScratch, &mut [f32]);

/// How super-blocks in tile order meet activations that have one scale for as many columns.
#[derive(Clone, Copy)]
pub(crate) struct BlockKernels {
    /// The kernel of a format.
    pub(crate) tiled: fn(Format) -> Option<DotBlocks>,
    /// Quantises a row of whole blocks.
    pub(crate) quantise: unsafe fn(&[f32], &mut [u8]),
    /// Activation rows from which on the kernels want them packed as well.
    pub(crate) packs_from: usize,
}

/// As [`DotTiles`], for unpacked rows.
pub(crate) type DotUnpacked =
    unsafe fn(CodeKind, &UnpackedTile<'_>, &ActRows<'_>, &mut TileScratch, &mut [f32]);

/// Weight rows that one call of a kernel for floats in tile order takes at most.
pub(crate) const FLOAT_ROWS: usize = 128;

/// As [`DotTiles`], for up to [`FLOAT_ROWS`] rows of a plain float type: `out[x * FLOAT_ROWS + w]`.
pub(crate) type DotFloatTiles = unsafe fn(&Tiles<'_>, &[&[f32]], &mut TileScratch, &mut [f32]);

/// How quantised weights, and floats in tile order, meet activations.
#[derive(Clone, Copy)]
pub(crate) enum CodeKernels {
    /// A few rows at a time, after unpacking.
    Rows(DotCodes),
    /// Many rows at a time: in tile order where the format has one, after unpacking elsewhere.
    #[cfg_attr(
        not(any(target_arch = "x86_64", target_arch = "aarch64")),
        expect(dead_code, reason = "plain Rust has no tile kernels")
    )]
    Tiles {
        /// A format that one of these three knows is put in tile order.
        tiled: fn(Format) -> Option<DotTiles>,
        blocks: BlockKernels,
        floats: fn(Format) -> Option<DotFloatTiles>,
        put_in_order: PutInOrder,
        unpacked: DotUnpacked,
        /// Activation rows from which on the kernels want them packed as well.
        packs_from: usize,
    },
}

/// Products of up to `WIDE_ROWS` weight rows, all but the last of several matrices giving whole pairs of tiles, with all
/// activation rows, both rounded to bf16; the last block of activation rows is whole as well. A product does not depend on
/// the numbers of rows.
pub(crate) type DotWide = unsafe fn(&[WideRows<'_>], &WideActs, &mut TileScratch, &mut WideOut<'_>);

/// Positions that attention kernels meet in one go.
pub(crate) const UNIT_TOKENS: usize = 16;

/// Keys, or values, of consecutive positions of a KV head.
#[derive(Clone, Copy)]
pub(crate) struct Units<'a> {
    pub(crate) dtype: DType,
    /// As stored: values `[UNIT_TOKENS, dim]` each, where the last may have fewer positions; keys as
    /// [`crate::kv::KvLayout::has_units`] says.
    pub(crate) units: &'a [&'a [u8]],
    /// A multiple of sixteen.
    pub(crate) dim: usize,
    /// What to have fetched while each of the units is met, as far as there is something: units lie anywhere in the
    /// arena, so nobody else knows what comes next.
    #[cfg_attr(
        not(any(target_arch = "x86_64", target_arch = "aarch64")),
        expect(dead_code, reason = "plain Rust has no kernels that fetch")
    )]
    pub(crate) ahead: &'a [&'a [u8]],
}

/// Dot products with each query: `out[query * n + key]`, `n` being [`UNIT_TOKENS`] for each unit. What is written for
/// positions that a unit lacks has no meaning. The vector is the kernel's own memory.
pub(crate) type Scores = unsafe fn(&Units<'_>, &[&[f32]], &mut Vec<f32>, &mut [f32]);

/// `acc += weights * values` for each query, position after position, the weights laid out as scores are.
pub(crate) type AddValues = unsafe fn(&Units<'_>, &[f32], &mut Vec<f32>, &mut [f32]);

/// Turns all elements of units into floats: `[UNIT_TOKENS, dim]` of values, `[dim, UNIT_TOKENS]` of keys.
pub(crate) type UnitFloats = unsafe fn(&Units<'_>, &mut [f32]);

/// How queries meet sixteen positions at once, each in the same way whatever the number of queries is.
#[derive(Clone, Copy)]
pub(crate) struct AttendKernels {
    pub(crate) scores: Scores,
    pub(crate) add_values: AddValues,
    pub(crate) key_floats: UnitFloats,
    pub(crate) value_floats: UnitFloats,
}

/// Scores of some queries, laid out as [`Scores`] gives them, of which each sees some positions, and by what they are
/// multiplied.
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "aarch64")),
    expect(dead_code, reason = "plain Rust has no kernels for them")
)]
pub(crate) struct Seen<'a> {
    pub(crate) scores: &'a [f32],
    pub(crate) visible: &'a dyn Fn(usize) -> Range<usize>,
    pub(crate) scale: f32,
}

/// For each query the largest score, the sum of `exp(score - largest)`, and what weighted values are added to.
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "aarch64")),
    expect(dead_code, reason = "plain Rust has no kernels for them")
)]
pub(crate) struct Softened<'a> {
    pub(crate) max: &'a mut [f32],
    pub(crate) sum: &'a mut [f32],
    pub(crate) acc: &'a mut [f32],
}

impl Seen<'_> {
    /// How many queries there are.
    ///
    /// # Panics
    /// When values, or what they are added to, have other sizes, or more positions than [`WIDE_COLS`].
    #[cfg_attr(
        not(any(target_arch = "x86_64", target_arch = "aarch64")),
        expect(dead_code, reason = "plain Rust has no kernels for them")
    )]
    pub(crate) fn checked_queries(&self, values: &Units<'_>, state: &Softened<'_>) -> usize {
        values.check();
        let stride = values.units.len() * UNIT_TOKENS;
        let n_queries = self.scores.len() / stride;
        assert_eq!(
            self.scores.len() * values.dim,
            state.acc.len() * stride,
            "a weight for each query and value"
        );
        assert!(state.max.len() == n_queries && state.sum.len() == n_queries, "a state for each query");
        assert!(stride <= WIDE_COLS, "positions of a panel");
        n_queries
    }
}

/// Softens scores and adds the values weighted by them; queries that see none of the positions stay as they are.
pub(crate) type AddSoftened = unsafe fn(&Units<'_>, Seen<'_>, &mut Vec<f32>, Softened<'_>);

/// As [`AttendKernels`], in bf16.
#[derive(Clone, Copy)]
pub(crate) struct WideAttend {
    pub(crate) scores: Scores,
    pub(crate) add_softened: AddSoftened,
}

impl Units<'_> {
    /// # Panics
    /// When the sizes are not what the documentation says.
    #[cfg_attr(
        not(any(target_arch = "x86_64", target_arch = "aarch64")),
        expect(dead_code, reason = "plain Rust has no kernels for them")
    )]
    pub(crate) fn check(&self) {
        let row = self.checked_row_bytes();
        let fits =
            |unit: &&[u8]| unit.len().is_multiple_of(row) && (1..=UNIT_TOKENS).contains(&(unit.len() / row));
        assert!(self.units.iter().all(fits), "up to sixteen positions a unit");
    }

    /// As [`Self::check`], for keys that lie in units.
    #[cfg_attr(
        not(any(target_arch = "x86_64", target_arch = "aarch64")),
        expect(dead_code, reason = "plain Rust has no kernels for them")
    )]
    pub(crate) fn check_keys(&self) {
        let n = self.checked_row_bytes() * UNIT_TOKENS;
        assert!(self.units.iter().all(|unit| unit.len() == n), "sixteen positions a unit");
    }

    /// As [`Self::check_keys`], for scores of some queries as well.
    #[cfg_attr(
        not(any(target_arch = "x86_64", target_arch = "aarch64")),
        expect(dead_code, reason = "plain Rust has no kernels for them")
    )]
    pub(crate) fn check_scores(&self, queries: &[&[f32]], scores: &[f32]) {
        self.check_keys();
        assert!(queries.iter().all(|query| query.len() == self.dim), "queries as wide as keys");
        let n = queries.len() * self.units.len() * UNIT_TOKENS;
        assert_eq!(scores.len(), n, "a score for each query and key");
    }

    /// Bytes of a position.
    pub(crate) fn row_bytes(&self) -> usize {
        self.dim / self.dtype.block_len() * self.dtype.block_bytes()
    }

    fn checked_row_bytes(&self) -> usize {
        let block = UNIT_TOKENS.max(self.dtype.block_len());
        assert!(self.dim > 0 && self.dim.is_multiple_of(block), "whole vectors and blocks of columns");
        self.row_bytes()
    }
}

/// Columns up to which kernels for many queries in bf16 take keys, and positions up to which they take weights.
pub(crate) const WIDE_COLS: usize = 512;

/// Queries from which on rounding them to bf16 pays.
pub(crate) const WIDE_QUERIES: usize = 16;

/// How weights of any format meet many activation rows in bf16.
#[derive(Clone, Copy)]
pub(crate) struct WideKernels {
    /// Activation rows from which on they are used.
    pub(crate) from_rows: usize,
    /// The kernel of a format in tile order.
    pub(crate) tiled: fn(Format) -> Option<DotWide>,
    /// The kernel of a plain float type.
    pub(crate) floats: fn(Format) -> Option<DotWide>,
    /// The kernel for rows unpacked to codes; without it products of codes stay as they are.
    pub(crate) unpacked: Option<fn(CodeKind) -> DotWide>,
    /// Puts up to `BLOCK_ROWS` rows in a block of [`WideActs`].
    pub(crate) pack: unsafe fn(&[&[f32]], &mut [u8]),
    /// Puts a row, of whole steps of columns, in a block of [`WideActs`]: where its columns begin is given.
    pub(crate) pack_row: unsafe fn(&[f32], *mut u8),
    /// Puts a block's sums, four tiles one after the other, in the step of [`WideActs`] that their columns are.
    pub(crate) pack_sums: unsafe fn(&[f32; BLOCK_FLOATS], &mut [u8]),
    /// Attention of many queries, for rows of up to [`WIDE_COLS`] columns.
    pub(crate) attend: WideAttend,
    pub(crate) peak: PeakLoop,
}

impl CodeKernels {
    /// How matrices of a format are put in tile order, if the kernels read it so.
    pub(crate) fn put_in_order(&self, format: Format) -> Option<PutInOrder> {
        match self {
            CodeKernels::Tiles { tiled, blocks, floats, put_in_order, .. }
                if tiled(format).is_some()
                    || (blocks.tiled)(format).is_some()
                    || floats(format).is_some() =>
            {
                Some(*put_in_order)
            }
            _ => None,
        }
    }

    /// Whether the kernels want `n_rows` activation rows packed.
    pub(crate) fn packs(&self, n_rows: usize) -> bool {
        match self {
            CodeKernels::Rows(_) => false,
            CodeKernels::Tiles { packs_from, .. } => *packs_from <= n_rows,
        }
    }
}

/// What activations are turned into to meet a weight.
#[derive(Clone, Copy)]
pub(crate) enum Meeting<'a> {
    Floats,
    /// Codes with a scale per group.
    Codes,
    /// Codes with a scale per super-block.
    Blocks(&'a BlockKernels, DotBlocks),
    Wide(&'a WideKernels),
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
    /// As [`Isa::Avx2`], with AVX-VNNI's 8-bit products.
    AvxVnni,
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
            Isa::AvxVnni => "AVX-VNNI",
            Isa::Avx512 => "AVX-512",
            Isa::Amx => "AMX",
            Isa::Neon => "NEON",
            Isa::NeonI8mm => "NEON-I8MM",
        }
    }
}

/// How products of many rows are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Products {
    /// By the operations of products of one row, so a row's result is the same bits in any company.
    #[default]
    Alike,
    /// In bf16 from 32 rows on, where the CPU multiplies that faster: plain floats with AVX-512 BF16 (but not on Intel's
    /// CPUs) and with AArch64's BF16, all weights with AMX; attention of many queries likewise. Rounded to other bits than
    /// products of fewer rows.
    Bf16,
}

/// What stands for [`Kernels::best`].
const AUTO: &str = "auto";

/// By [`Isa::name`], in letters of any case and with or without its hyphen, or `auto` for [`Kernels::best`].
impl FromStr for Kernels {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |name: &str| name.replace('-', "").to_ascii_lowercase();
        if plain(text) == AUTO {
            return Ok(Kernels::best());
        }
        let tables = Kernels::available().into_iter();
        tables
            .rev()
            .find(|kernels| plain(kernels.isa.name()) == plain(text))
            .ok_or_else(|| format!("this CPU runs no such kernels; it has {}, and {AUTO}", Kernels::names()))
    }
}

/// What is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operands {
    /// 8-bit codes, added up as integers.
    Codes,
    Floats,
    Bf16,
}

impl Operands {
    pub const ALL: [Operands; 3] = [Operands::Codes, Operands::Floats, Operands::Bf16];

    pub const fn name(self) -> &'static str {
        match self {
            Operands::Codes => "codes",
            Operands::Floats => "floats",
            Operands::Bf16 => "bf16",
        }
    }
}

/// The most that the multiplying instructions for codes and for floats do.
#[derive(Clone, Copy)]
pub(crate) struct PeakLoops {
    pub(crate) codes: PeakLoop,
    pub(crate) floats: PeakLoop,
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
    /// Attention to sixteen positions at once; without it they meet queries by `dot_*` and `weighted_sum`.
    pub(crate) attend: Option<AttendKernels>,
    /// The unpacking kernel of a format, if it has one.
    pub(crate) unpack: fn(Format) -> Option<(CodeKind, Unpack)>,
    pub(crate) lanes: Lanes,
    /// None for plain Rust, which names no instruction.
    pub(crate) peaks: Option<PeakLoops>,
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
            if avx2::has_vnni() {
                tables.push(avx2::VNNI);
            }
            if avx512::is_available() {
                tables.push(Kernels { wide: avx512::wide(), ..avx512::TABLE });
                if amx::is_available() {
                    tables.push(Kernels { wide: amx::wide(), ..amx::TABLE });
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        if neon::is_available() {
            tables.push(Kernels { wide: neon::wide(), ..neon::TABLE });
            if neon::has_i8mm() {
                tables.push(Kernels { wide: neon::wide(), ..neon::I8MM });
            }
        }
        tables
    }

    /// The table of an instruction set, if this CPU has it.
    pub fn of(isa: Isa) -> Option<Kernels> {
        Self::available().into_iter().find(|kernels| kernels.isa == isa)
    }

    /// The fastest table this CPU can run.
    pub fn best() -> Kernels {
        *Self::available().last().expect("the scalar table always runs")
    }

    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The names of the tables this CPU can run, slowest first.
    pub fn names() -> String {
        let names: Vec<&str> = Self::available().iter().map(|kernels| kernels.isa.name()).collect();
        names.join(", ")
    }

    /// What `n_rows` activation rows are turned into to meet a weight.
    pub(crate) fn meeting(&self, weight: &Matrix, n_rows: usize) -> Meeting<'_> {
        let format = weight.format();
        if let Some(wide) = self.wide_for(format, n_rows) {
            return Meeting::Wide(wide);
        }
        if let (Matrix::Tiled(_), CodeKernels::Tiles { blocks, .. }) = (weight, &self.codes)
            && let Some(dot) = (blocks.tiled)(format)
        {
            return Meeting::Blocks(blocks, dot);
        }
        if self.has_codes(format) { Meeting::Codes } else { Meeting::Floats }
    }

    /// What is multiplied where `n_rows` activation rows meet a weight of some format.
    pub fn operands(&self, format: Format, n_rows: usize, products: Products) -> Operands {
        match products {
            Products::Bf16 if self.wide_for(format, n_rows).is_some() => Operands::Bf16,
            _ if self.has_codes(format) => Operands::Codes,
            _ => Operands::Floats,
        }
    }

    pub(crate) fn peak_loop(&self, operands: Operands) -> Option<PeakLoop> {
        match operands {
            Operands::Codes => self.peaks.map(|peaks| peaks.codes),
            Operands::Floats => self.peaks.map(|peaks| peaks.floats),
            Operands::Bf16 => self.wide.map(|wide| wide.peak),
        }
    }

    fn has_codes(&self, format: Format) -> bool {
        (self.unpack)(format).is_some()
    }

    fn wide_for(&self, format: Format, n_rows: usize) -> Option<&WideKernels> {
        let suits = |wide: &&WideKernels| {
            wide.from_rows <= n_rows && (wide.unpacked.is_some() || !self.has_codes(format))
        };
        self.wide.as_ref().filter(suits)
    }

    /// The kernels for super-blocks in tile order, if there are some.
    pub(crate) fn blocks(&self) -> Option<&BlockKernels> {
        match &self.codes {
            CodeKernels::Rows(_) => None,
            CodeKernels::Tiles { blocks, .. } => Some(blocks),
        }
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
    soften(x: &mut [f32], scale: f32, softcap: Option<f32>) -> (f32, f32);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_have_names_of_any_case_with_and_without_hyphens() {
        for kernels in Kernels::available() {
            let name = kernels.isa().name();
            for text in [name.to_owned(), name.to_lowercase(), name.replace('-', "")] {
                assert_eq!(text.parse::<Kernels>().map(|k| k.isa()), Ok(kernels.isa()), "{text}");
            }
        }
        assert_eq!("auto".parse::<Kernels>().map(|k| k.isa()), Ok(Kernels::best().isa()));
        let refused = "z80".parse::<Kernels>().map(|k| k.isa());
        assert!(refused.is_err_and(|error| error.contains("it has scalar")));
    }
}
