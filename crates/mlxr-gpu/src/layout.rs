//! How weights lie on the device.
//!
//! Quantised weights are cut into chunks of 32 columns, row after row, and each chunk into planes that live in buffers
//! of their own, so that a lane loads 16 aligned bytes at a time whatever the format:
//!
//! - 8 bits: eight words; byte `b` of word `j` is column `4j + b`.
//! - 4 to 6 bits: four words whose low nibbles are columns 0..16 and whose high nibbles are columns 16..32, in that
//!   order; a fifth bit or a fifth and sixth in the high plane. Those of Q4_0 are 8 less than in the file, as signed numbers.
//! - 2 and 3 bits: two words; pair of bits `j` of byte `b` of the first is column `4j + b`, the second has columns
//!   16..32; a third bit in the high plane.
//! - The high plane has one bit per column in one word (bit `j` of byte `b`: column `4j + b`) or two in two words, laid
//!   out like the 2-bit plane.
//!
//! Scales have a buffer of their own in the form that [`Scale`] names. Floats are chunks of 8 columns, rows filled up
//! with zeros. Formats with neither codes nor floats of their own become floats.

use mlxr_tensor::{Codebook, DType, Format, MlxFloat, codec};
use serde::Serialize;

/// Columns of a chunk of codes.
pub(crate) const CODES_CHUNK: usize = 32;
/// Columns of a chunk of floats.
pub(crate) const FLOATS_CHUNK: usize = 8;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Layout {
    Codes(Codes),
    Floats(Floats),
}

/// Integer codes with scales; the fields are those `weight_codes.wgsl` is specialised by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub(crate) struct Codes {
    pub(crate) bits: u32,
    pub(crate) high_bits: u32,
    pub(crate) scale: Scale,
    /// The code that stands for zero; 128 more than the code where codes were made signed.
    pub(crate) zero: u32,
    /// Whether nibbles are signed; codes are then sixteen times as large, see `weight_codes.wgsl`.
    pub(crate) is_signed: bool,
    /// Whether scales count half, as the table is doubled.
    pub(crate) is_doubled: bool,
    /// Columns that share a scale, where that is not fixed by [`Scale`].
    pub(crate) group: u32,
    /// What 4-bit codes stand for.
    pub(crate) table: Option<[i8; 16]>,
    /// Whether the halves of a chunk have scales of their own.
    pub(crate) has_halves: bool,
    pub(crate) has_offset: bool,
}

/// The form of the scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Scale {
    /// f16 per chunk.
    Half,
    /// f16 scale and f16 minimum per chunk.
    HalfMin,
    /// E8M0 per chunk.
    E8m0,
    /// f32 per group of `group` columns; the last group of a row may be short.
    Float,
    /// Two f32 per chunk, one for each half.
    FloatHalves,
    /// f32 scale and bias per group.
    MlxF32,
    /// f16 scale and bias per group.
    MlxF16,
    /// bf16 scale and bias per group.
    MlxBf16,
    /// Per 256 columns: f16 `d` and `dmin`, then eight pairs of bytes (scale, minimum).
    KAffine,
    /// Per 256 columns: f16 `d` and `dmin`, then sixteen bytes (scale low, minimum high nibble).
    KAffine16,
    /// Per 256 columns: f16 `d` and a pad, then sixteen signed bytes.
    KSigned16,
}

/// Floats; the fields are those `weight_floats.wgsl` is specialised by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub(crate) struct Floats {
    pub(crate) element: Element,
    pub(crate) has_scales: bool,
    /// What 4-bit codes stand for, with [`Element::Table`].
    #[serde(serialize_with = "table_values")]
    pub(crate) table: Option<Codebook>,
    /// Columns that share a scale; `None` is the whole row.
    #[serde(skip)]
    pub(crate) group: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Element {
    F32,
    F16,
    Bf16,
    F8E4m3,
    F8E5m2,
    /// Eight nibbles a word, first column lowest.
    Table,
}

impl Codes {
    const fn new(bits: u32, scale: Scale) -> Self {
        let high_bits = match bits {
            3 | 5 => 1,
            6 => 2,
            _ => 0,
        };
        Self {
            bits,
            high_bits,
            scale,
            zero: 0,
            is_signed: false,
            is_doubled: false,
            group: CODES_CHUNK as u32,
            table: None,
            has_halves: false,
            has_offset: false,
        }
    }

    const fn signed(bits: u32, scale: Scale, zero: u32) -> Self {
        Self { zero, has_offset: zero != 0, ..Self::new(bits, scale) }
    }

    const fn affine(bits: u32, scale: Scale) -> Self {
        Self { has_offset: true, ..Self::new(bits, scale) }
    }

    const fn halves(self) -> Self {
        Self { has_halves: true, ..self }
    }

    fn table(scale: Scale, values: [i8; 16]) -> Self {
        Self { table: Some(values), ..Self::new(4, scale) }
    }

    /// Columns that share what the scales buffer holds as a unit.
    pub(crate) fn block(&self) -> usize {
        match self.scale {
            Scale::KAffine | Scale::KAffine16 | Scale::KSigned16 => 256,
            _ => CODES_CHUNK,
        }
    }
}

impl Layout {
    /// Of a format that has none of its own, whose weights are dequantised when they are uploaded. Wide numbers may be larger
    /// than f16 takes.
    pub(crate) fn dequantised(format: Format) -> Layout {
        let element = match format {
            Format::Plain(DType::F64 | DType::I16 | DType::I32 | DType::I64) => Element::F32,
            _ => Element::F16,
        };
        Layout::Floats(Floats { element, has_scales: false, table: None, group: None })
    }

    /// The layout of a format, or `None` when there is none.
    pub(crate) fn of(format: Format) -> Option<Layout> {
        let codes = |codes| Some(Layout::Codes(codes));
        let fp4 = codec::FP4_DOUBLED.map(|v| v as i8);
        match format {
            Format::Plain(dtype) => match dtype {
                DType::Q4_0 => codes(Codes { is_signed: true, ..Codes::new(4, Scale::Half) }),
                DType::Q4_1 => codes(Codes::affine(4, Scale::HalfMin)),
                DType::Q5_0 => codes(Codes::signed(5, Scale::Half, 16)),
                DType::Q5_1 => codes(Codes::affine(5, Scale::HalfMin)),
                DType::Q8_0 => codes(Codes::new(8, Scale::Half)),
                DType::Q2_K => codes(Codes::affine(2, Scale::KAffine16).halves()),
                DType::Q3_K => codes(Codes::signed(3, Scale::KSigned16, 4).halves()),
                DType::Q4_K => codes(Codes::affine(4, Scale::KAffine)),
                DType::Q5_K => codes(Codes::affine(5, Scale::KAffine)),
                DType::Q6_K => codes(Codes::signed(6, Scale::KSigned16, 32).halves()),
                DType::IQ4_NL => codes(Codes::table(Scale::Half, codec::IQ4_LEVELS)),
                DType::IQ4_XS => codes(Codes::table(Scale::Float, codec::IQ4_LEVELS)),
                DType::MXFP4 => codes(Codes { is_doubled: true, ..Codes::table(Scale::E8m0, fp4) }),
                DType::NVFP4 => codes(Codes::table(Scale::FloatHalves, fp4).halves()),
                _ => Layout::plain(dtype),
            },
            Format::MlxAffine { bits, group_size, scale } => {
                let scale = match scale {
                    DType::F16 => Scale::MlxF16,
                    DType::BF16 => Scale::MlxBf16,
                    DType::F32 => Scale::MlxF32,
                    _ => return None,
                };
                if !matches!(bits, 2..=6 | 8) || !usize::from(group_size).is_multiple_of(CODES_CHUNK) {
                    return None;
                }
                // Codes of 8 bits are unsigned here; as signed bytes they are 128 less.
                let zero = if bits == 8 { 128 } else { 0 };
                let affine = Codes::affine(bits.into(), scale);
                codes(Codes { group: group_size.into(), zero, ..affine })
            }
            Format::MlxFloat(MlxFloat::Mxfp4) => {
                codes(Codes { is_doubled: true, ..Codes::table(Scale::E8m0, fp4) })
            }
            Format::MlxFloat(MlxFloat::Nvfp4) => codes(Codes::table(Scale::FloatHalves, fp4).halves()),
            Format::MlxFloat(MlxFloat::Mxfp8) => {
                let group = Some(MlxFloat::Mxfp8.group_size() as u32);
                let element = Element::F8E4m3;
                Some(Layout::Floats(Floats { element, has_scales: true, table: None, group }))
            }
            Format::Scaled { element, group_size } => {
                let group = group_size.map(std::num::NonZeroU32::get);
                let element = match element {
                    DType::F8E4M3 => Element::F8E4m3,
                    DType::F8E5M2 => Element::F8E5m2,
                    _ => return None,
                };
                let is_whole = group.is_none_or(|n| (n as usize).is_multiple_of(FLOATS_CHUNK));
                is_whole.then_some(Layout::Floats(Floats { element, has_scales: true, table: None, group }))
            }
            Format::Codebook { table, group_size } => Some(Layout::Floats(Floats {
                element: Element::Table,
                has_scales: true,
                table: Some(table),
                group: Some(group_size.into()),
            })),
        }
    }

    fn plain(dtype: DType) -> Option<Layout> {
        let element = match dtype {
            DType::F32 => Element::F32,
            DType::F16 => Element::F16,
            DType::BF16 => Element::Bf16,
            DType::F8E4M3 => Element::F8E4m3,
            DType::F8E5M2 => Element::F8E5m2,
            _ => return None,
        };
        Some(Layout::Floats(Floats { element, has_scales: false, table: None, group: None }))
    }

    /// Columns of a chunk.
    pub(crate) fn chunk(&self) -> usize {
        match self {
            Layout::Codes(_) => CODES_CHUNK,
            Layout::Floats(_) => FLOATS_CHUNK,
        }
    }

    /// Columns that share a scale in rows of `cols`, where it is not fixed.
    pub(crate) fn group(&self, cols: usize) -> u32 {
        match self {
            Layout::Codes(codes) => codes.group,
            Layout::Floats(floats) => floats.group.unwrap_or(cols as u32),
        }
    }

    /// Scales of a row of `cols`, where [`Codes::group`] or [`Floats::group`] says how many columns share one.
    pub(crate) fn groups(&self, cols: usize) -> usize {
        cols.div_ceil(self.group(cols).max(1) as usize)
    }
}

fn table_values<S: serde::Serializer>(table: &Option<Codebook>, serializer: S) -> Result<S::Ok, S::Error> {
    table.map(Codebook::values).serialize(serializer)
}
