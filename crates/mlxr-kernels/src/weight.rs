//! What stands behind a weight: the tensor as the file stores it, or in tile order, and its values as numbers.

use std::sync::OnceLock;

use bytes::Bytes;
use mlxr_tensor::{Format, HostTensor, TensorError, Weight, codec};

use crate::kernels::Kernels;
use crate::linear::tiled::{BlockCut, PutInOrder, TiledMatrix};
use crate::pool::ThreadPool;
use crate::room::Room;

/// Bytes up to which a tensor is copied.
const SMALL_BYTES: usize = 256 << 10;

/// How a tensor is put in tile order, if it is a matrix and the kernels read it so.
fn tile_order(tensor: &HostTensor, kernels: &Kernels) -> Option<(BlockCut, PutInOrder)> {
    let put = kernels.codes.put_in_order(tensor.format()).filter(|_| tensor.shape().len() > 1)?;
    BlockCut::of(tensor.format(), tensor.cols()).map(|cut| (cut, put))
}

/// A matrix as the kernels read it.
pub(crate) enum Matrix {
    /// The file's own bytes.
    Stored(HostTensor),
    /// In tile order, which the kernels of its format read.
    Tiled(TiledMatrix),
}

impl Matrix {
    /// A vector stays as it is stored. Small ones are copied: the file need not stay mapped for them.
    ///
    /// # Errors
    /// When a copy is not a tensor, which would be a bug.
    pub(crate) fn new(
        tensor: &HostTensor,
        kernels: &Kernels,
        pool: &ThreadPool,
        room: &Room,
    ) -> Result<Self, TensorError> {
        let format = tensor.format();
        match tile_order(tensor, kernels) {
            Some((cut, put)) => Ok(Matrix::Tiled(TiledMatrix::new(tensor, cut, put, pool, room))),
            None if tensor.n_bytes() <= SMALL_BYTES => {
                let [data, scales, biases] = [tensor.data(), tensor.scales(), tensor.biases()]
                    .map(|bytes| Bytes::copy_from_slice(bytes));
                let copy =
                    HostTensor::with_scales(tensor.name(), tensor.shape(), format, data, scales, biases)?;
                Ok(Matrix::Stored(copy))
            }
            None => Ok(Matrix::Stored(tensor.clone())),
        }
    }

    pub(crate) fn format(&self) -> Format {
        match self {
            Matrix::Stored(tensor) => tensor.format(),
            Matrix::Tiled(tiled) => tiled.format(),
        }
    }

    pub(crate) fn rows(&self) -> usize {
        match self {
            Matrix::Stored(tensor) => tensor.rows(),
            Matrix::Tiled(tiled) => tiled.rows(),
        }
    }

    /// Row `row` as numbers.
    pub(crate) fn dequantise_row(&self, row: usize, out: &mut [f32]) {
        match self {
            Matrix::Stored(tensor) => {
                codec::dequantise_rows(tensor, row..row + 1, out).expect("the format was checked at upload");
            }
            Matrix::Tiled(tiled) => tiled.dequantise_row(row, out),
        }
    }

    /// All elements.
    fn dequantised(&self) -> Vec<f32> {
        match self {
            Matrix::Stored(tensor) => codec::dequantise(tensor).expect("the format was checked at upload"),
            Matrix::Tiled(tiled) => {
                let mut values = vec![0.0; tiled.rows() * tiled.cols()];
                let rows = values.chunks_exact_mut(tiled.cols().max(1)).enumerate();
                rows.for_each(|(i, row)| tiled.dequantise_row(i, row));
                values
            }
        }
    }
}

/// A matrix or vector, or the matrices of all experts of one projection.
pub(crate) struct CpuWeight {
    pub(crate) parts: Vec<Matrix>,
    values: OnceLock<Vec<f32>>,
}

impl CpuWeight {
    pub(crate) fn new(parts: Vec<Matrix>) -> Self {
        Self { parts, values: OnceLock::new() }
    }

    /// The only part of a weight that is not a stack of experts.
    pub(crate) fn matrix(&self) -> &Matrix {
        &self.parts[0]
    }

    /// All elements as f32: for vectors (norms, biases, sinks), converted on first use.
    pub(crate) fn values(&self) -> &[f32] {
        self.values.get_or_init(|| self.parts.iter().flat_map(Matrix::dequantised).collect())
    }
}

/// The values of a vector (or of a small matrix of biases).
pub(crate) fn vector(weight: &Weight) -> &[f32] {
    weight.handle::<CpuWeight>().values()
}

/// Refuses formats without numbers, by trying the first row.
pub(crate) fn check_format(tensor: &HostTensor) -> Result<(), TensorError> {
    if tensor.rows() == 0 {
        return Ok(());
    }
    codec::dequantise(&tensor.row_slice(0..1)).map(drop).map_err(|e| match e {
        TensorError::NoCodec { name, dtype } => TensorError::Unsupported {
            name,
            backend: "cpu",
            reason: format!("type {dtype} cannot be converted to numbers"),
        },
        other => other,
    })
}
