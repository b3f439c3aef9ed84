//! Tensors in host memory exactly as a model file stores them: mapped, shared, never converted on the way in.

use std::num::NonZeroU32;
use std::ops::Range;

use bytes::Bytes;

use crate::{DType, TensorError, codec};

/// How the elements of a [`HostTensor`] are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Plain elements or GGML blocks, row after row.
    Plain(DType),
    /// MLX affine quantisation: `data` holds `bits`-wide codes packed little-endian into `u32` words, `scales` and
    /// `biases` hold one value of `scale` type per `group_size` columns; an element is `scale * code + bias`.
    MlxAffine { bits: u8, group_size: u16, scale: DType },
    /// MLX block floating point: `data` holds packed element codes, `scales` one byte per group.
    MlxFloat(MlxFloat),
    /// 8-bit floats or integers, times an f32 in `scales` for every `group_size` columns (the last group may be short),
    /// or for every row where there is no group size.
    Scaled { element: DType, group_size: Option<NonZeroU32> },
    /// 4-bit codes of a table, the first of two in a byte's high half, times an f32 in `scales` for every `group_size`
    /// columns.
    Codebook { table: Codebook, group_size: u16 },
}

/// The tables of 4-bit codes that bitsandbytes knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codebook {
    /// Quantiles of a normal distribution.
    Nf4,
    /// Floats of a sign, two bits of exponent and one of fraction, the largest of them 1.
    Fp4,
}

impl Codebook {
    /// What the codes stand for.
    pub const fn values(self) -> &'static [f32; 16] {
        match self {
            Codebook::Nf4 => &codec::NF4,
            Codebook::Fp4 => &codec::FP4,
        }
    }
}

/// The block-float modes of MLX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MlxFloat {
    /// E2M1 elements, groups of 32, E8M0 scales.
    Mxfp4,
    /// E2M1 elements, groups of 16, E4M3 scales.
    Nvfp4,
    /// E4M3 elements, groups of 32, E8M0 scales.
    Mxfp8,
}

impl MlxFloat {
    /// Columns that share a scale.
    pub const fn group_size(self) -> usize {
        match self {
            MlxFloat::Nvfp4 => 16,
            MlxFloat::Mxfp4 | MlxFloat::Mxfp8 => 32,
        }
    }

    /// Bits of one element code.
    pub const fn bits(self) -> usize {
        match self {
            MlxFloat::Mxfp4 | MlxFloat::Nvfp4 => 4,
            MlxFloat::Mxfp8 => 8,
        }
    }
}

impl Format {
    /// Bytes one row of `cols` elements takes in `data`, or `None` when `cols` does not fit the format's blocks.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        match self {
            Format::Plain(dtype) => dtype.bytes_for(cols),
            Format::MlxAffine { bits, group_size, .. } => {
                packed_row_bytes(cols, bits as usize, group_size as usize)
            }
            Format::MlxFloat(mode) => packed_row_bytes(cols, mode.bits(), mode.group_size()),
            Format::Scaled { element: element @ (DType::F8E4M3 | DType::F8E5M2 | DType::I8), .. } => {
                element.bytes_for(cols)
            }
            Format::Scaled { .. } => None,
            Format::Codebook { group_size, .. } => {
                (group_size > 0 && group_size.is_multiple_of(2) && cols.is_multiple_of(group_size.into()))
                    .then_some(cols / 2)
            }
        }
    }

    /// Bytes one row of `cols` elements takes in `scales` (and in `biases` where the format has them).
    pub fn row_scale_bytes(self, cols: usize) -> usize {
        match self {
            Format::Plain(_) => 0,
            Format::MlxAffine { group_size, scale, .. } => cols / group_size as usize * scale.block_bytes(),
            Format::MlxFloat(mode) => cols / mode.group_size(),
            Format::Scaled { group_size, .. } => {
                group_size.map_or(1, |n| cols.div_ceil(n.get() as usize)) * 4
            }
            Format::Codebook { group_size, .. } => cols / usize::from(group_size) * 4,
        }
    }

    /// The element type of [`Format::Plain`].
    pub const fn plain(self) -> Option<DType> {
        match self {
            Format::Plain(dtype) => Some(dtype),
            _ => None,
        }
    }

    /// Whether a `biases` array belongs to the format.
    pub const fn has_biases(self) -> bool {
        matches!(self, Format::MlxAffine { .. })
    }

    /// The name users read: `Q4_K`, `MLX 4-bit g64`, `MXFP4`.
    pub fn name(self) -> String {
        match self {
            Format::Plain(dtype) => dtype.name().to_owned(),
            Format::MlxAffine { bits, group_size, .. } => format!("MLX {bits}-bit g{group_size}"),
            Format::MlxFloat(MlxFloat::Mxfp4) => "MLX mxfp4".to_owned(),
            Format::MlxFloat(MlxFloat::Nvfp4) => "MLX nvfp4".to_owned(),
            Format::MlxFloat(MlxFloat::Mxfp8) => "MLX mxfp8".to_owned(),
            Format::Scaled { element, group_size: None } => format!("{element} scaled by row"),
            Format::Scaled { element, group_size: Some(n) } => format!("{element} scaled g{n}"),
            Format::Codebook { table: Codebook::Nf4, group_size } => format!("NF4 g{group_size}"),
            Format::Codebook { table: Codebook::Fp4, group_size } => format!("FP4 g{group_size}"),
        }
    }
}

fn packed_row_bytes(cols: usize, bits: usize, group_size: usize) -> Option<usize> {
    let n_bits = cols.checked_mul(bits)?;
    (group_size > 0 && cols.is_multiple_of(group_size) && n_bits.is_multiple_of(32)).then_some(n_bits / 8)
}

/// A named tensor in host memory; cloning shares the bytes.
///
/// `shape` is row-major, outermost first (a linear layer is `[out, in]`, a stack of experts `[n_experts, out, in]`).
/// Invariant: the byte lengths match shape and format, so readers index without further checks.
#[derive(Clone, Debug)]
pub struct HostTensor {
    name: String,
    shape: Vec<usize>,
    format: Format,
    data: Bytes,
    scales: Bytes,
    biases: Bytes,
}

impl HostTensor {
    /// A tensor of plain elements or GGML blocks.
    ///
    /// # Errors
    /// [`TensorError::Shape`] or [`TensorError::ByteLength`] when `data` is not what shape and type demand.
    pub fn new(
        name: impl Into<String>,
        shape: &[usize],
        dtype: DType,
        data: Bytes,
    ) -> Result<Self, TensorError> {
        Self::with_scales(name, shape, Format::Plain(dtype), data, Bytes::new(), Bytes::new())
    }

    /// A tensor of any format; `scales` and `biases` are empty where the format has none.
    ///
    /// # Errors
    /// [`TensorError::Shape`] or [`TensorError::ByteLength`] when a part is not what shape and format demand.
    pub fn with_scales(
        name: impl Into<String>,
        shape: &[usize],
        format: Format,
        data: Bytes,
        scales: Bytes,
        biases: Bytes,
    ) -> Result<Self, TensorError> {
        let name = name.into();
        let cols = shape.last().copied().unwrap_or(1);
        let lead = &shape[..shape.len().saturating_sub(1)];
        let rows = lead.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let sizes = rows.zip(format.row_bytes(cols)).and_then(|(rows, row_bytes)| {
            let scale_bytes = format.row_scale_bytes(cols);
            Some((rows.checked_mul(row_bytes)?, rows.checked_mul(scale_bytes)?))
        });
        let Some((n_data, n_scales)) = sizes else {
            return Err(TensorError::Shape { name, shape: shape.to_vec(), format: format.name() });
        };
        let n_biases = if format.has_biases() { n_scales } else { 0 };
        for (part, bytes, expected) in
            [("data", &data, n_data), ("scales", &scales, n_scales), ("biases", &biases, n_biases)]
        {
            if bytes.len() != expected {
                return Err(TensorError::ByteLength { name, part, expected, found: bytes.len() });
            }
        }
        Ok(Self { name, shape: shape.to_vec(), format, data, scales, biases })
    }

    /// A tensor of f32 values owned by this process.
    ///
    /// # Errors
    /// [`TensorError::ByteLength`] when `values` is not `shape` long.
    pub fn from_f32(name: impl Into<String>, shape: &[usize], values: &[f32]) -> Result<Self, TensorError> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::new(name, shape, DType::F32, bytes.into())
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// The stored elements or packed codes.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// One scale per group (or row), empty for [`Format::Plain`].
    pub fn scales(&self) -> &Bytes {
        &self.scales
    }

    /// One bias per group, only for [`Format::MlxAffine`].
    pub fn biases(&self) -> &Bytes {
        &self.biases
    }

    /// Length of the innermost dimension (1 for a scalar).
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Product of all dimensions but the innermost.
    pub fn rows(&self) -> usize {
        self.shape[..self.shape.len().saturating_sub(1)].iter().product()
    }

    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes in memory, scales and biases included.
    pub fn n_bytes(&self) -> usize {
        self.data.len() + self.scales.len() + self.biases.len()
    }

    /// The same tensor under another name.
    pub fn renamed(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The same bytes read as another shape with the same innermost dimension.
    ///
    /// # Errors
    /// [`TensorError::Shape`] when the element count or the innermost dimension differs.
    pub fn reshaped(mut self, shape: &[usize]) -> Result<Self, TensorError> {
        let same = shape.iter().product::<usize>() == self.n_elements()
            && (shape.last() == self.shape.last() || !self.is_grouped());
        if !same {
            return Err(TensorError::Shape {
                name: self.name,
                shape: shape.to_vec(),
                format: self.format.name(),
            });
        }
        self.shape = shape.to_vec();
        Ok(self)
    }

    fn is_grouped(&self) -> bool {
        !matches!(self.format, Format::Plain(d) if !d.is_quantised())
    }

    /// Rows `range` of the flattened `[rows, cols]` view, sharing the bytes.
    ///
    /// # Panics
    /// When `range` exceeds [`Self::rows`]: callers take it from the shape.
    pub fn row_slice(&self, range: Range<usize>) -> HostTensor {
        assert!(range.start <= range.end && range.end <= self.rows(), "rows {range:?} of {}", self.rows());
        let cut = |bytes: &Bytes| {
            let per_row = bytes.len() / self.rows().max(1);
            bytes.slice(range.start * per_row..range.end * per_row)
        };
        HostTensor {
            name: self.name.clone(),
            shape: vec![range.len(), self.cols()],
            format: self.format,
            data: cut(&self.data),
            scales: cut(&self.scales),
            biases: cut(&self.biases),
        }
    }

    /// Matrix `i` of a stack `[n, rows, cols]`, sharing the bytes.
    ///
    /// # Panics
    /// When the tensor is not three-dimensional or `i` is out of range.
    pub fn stack_item(&self, i: usize) -> HostTensor {
        assert_eq!(self.shape.len(), 3, "{} is not a stack", self.name);
        let rows = self.shape[1];
        let mut item = self.row_slice(i * rows..(i + 1) * rows);
        item.name = format!("{}[{i}]", self.name);
        item
    }

    /// All elements as f32, row-major. Exact for every type f32 can hold.
    ///
    /// # Errors
    /// [`TensorError::NoCodec`] for storage types that are not numbers to compute with.
    pub fn to_f32(&self) -> Result<Vec<f32>, TensorError> {
        codec::dequantise(self)
    }
}
