//! Products of many rows on the device's matrix units, in f16 with sums in f32.
//!
//! Several times as fast as the products that keep a row's result the same in any company, so they are only used when
//! asked for, and only after they have computed what those compute.

use mlxr_tensor::{Act, Backend, DType, HostTensor, TensorError};

use crate::backend::{GpuAct, GpuBackend, act};
use crate::bindings::Bound;
use crate::buffers::Pooled;
use crate::kernels::{HalfRows, Matmul, UnpackCodes, UnpackFloats};
use crate::layout::{Element, FLOATS_CHUNK, Floats, Layout};
use crate::ops::Product;
use crate::recorder::Grid;
use crate::weight::{GpuWeight, Part};

/// Rows from which products go this way: with codes, which are unpacked first, and with floats. Fewer are faster by the
/// other kernels, as these compute whole tiles. Estimated from the times of both on an H200.
const MIN_ROWS_OF_CODES: usize = 128;
const MIN_ROWS_OF_FLOATS: usize = 48;
/// Rows and columns of the results that a workgroup computes.
const TILE: usize = 128;
/// What columns of the input are a multiple of: as many as are in workgroup memory, or half as many where it is small.
const K_TILE: usize = 64;
/// Workgroup memory that those take, rows being [`TILE`] and a little more than their length apart.
const WORKGROUP_BYTES: u32 = (2 * TILE * (K_TILE + 8) * 2) as u32;
/// Rows and columns of the device's matrices.
const MATRIX: u32 = 16;
/// How far results may be from those of the other kernels, relative to the largest.
pub(crate) const TOLERANCE: f32 = 1e-2;

/// Rows that results need room for.
pub(crate) fn padded_rows(n_rows: usize) -> usize {
    n_rows.next_multiple_of(TILE)
}

impl GpuBackend {
    /// Lets products of many rows be computed in f16 where the device has matrices for it: faster, and rounded to other
    /// bits than products of fewer rows.
    #[must_use]
    pub fn with_half_products(mut self, is_wanted: bool) -> Self {
        if is_wanted && self.gpu().has_matrices {
            self.has_half_products = self.half_products_are_right().unwrap_or_else(|error| {
                tracing::warn!(%error, "products in f16 do not work on this device");
                false
            });
            self.has_half_attention = self.half_attention_is_right().unwrap_or_else(|error| {
                tracing::warn!(%error, "attention in f16 does not work on this device");
                false
            });
        }
        self
    }

    /// Compares products with the same by the other kernels.
    fn half_products_are_right(&self) -> Result<bool, TensorError> {
        let (n_rows, n_out, cols) = (TILE, 2 * TILE, 3 * K_TILE);
        let values = |n: usize, seed: usize| -> Vec<f32> {
            (0..n).map(|i| ((i * 7919 + seed) % 1021) as f32 / 1021.0 - 0.5).collect()
        };
        let bytes: Vec<u8> =
            values(n_out * cols, 3).iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
        let tensor = HostTensor::new("check", &[n_out, cols], DType::F16, bytes.into())?;
        let weight = GpuWeight::new(self.gpu(), self.buffers(), &tensor)?;
        let x = self.act(n_rows, cols, &values(n_rows * cols, 5));
        let product = Product { weight: &weight, bias: None, routing: None, n_rows };
        let (ours, theirs) = (self.take(n_rows * n_out * 4)?, self.take(n_rows * n_out * 4)?);
        self.half_product(&x, &weight, ours.bound())?;
        self.product(&x, &product, theirs.bound())?;
        self.are_alike(ours.bound(), theirs.bound(), n_rows * n_out)
    }

    /// Whether a product goes this way.
    pub(crate) fn is_half(&self, product: &Product<'_>) -> bool {
        let Product { weight, bias, routing, n_rows } = product;
        let fits = |part: &Part| {
            let n_bytes = (part.n_rows * weight.cols * 2) as u64;
            part.n_rows.is_multiple_of(TILE) && n_bytes <= self.gpu().limits.max_storage_buffer_binding_size
        };
        let min_rows = match weight.layout {
            Layout::Codes(_) => MIN_ROWS_OF_CODES,
            Layout::Floats(_) => MIN_ROWS_OF_FLOATS,
        };
        self.has_half_products
            && bias.is_none()
            && routing.is_none()
            && *n_rows >= min_rows
            && weight.cols.is_multiple_of(K_TILE)
            && weight.parts.iter().all(fits)
    }

    /// The product of `x` and a weight into `y`, which has room for [`padded_rows`].
    pub(crate) fn half_product(&self, x: &Act, weight: &GpuWeight, y: Bound<'_>) -> Result<(), TensorError> {
        let halves = self.halves(x)?;
        let has_room = self.gpu().limits.max_compute_workgroup_storage_size >= WORKGROUP_BYTES;
        let kernel = Matmul {
            subgroup: self.subgroup(),
            tile_rows: TILE as u32,
            tile_outs: TILE as u32,
            n_down: 2,
            n_across: 2,
            k_tile: (if has_room { K_TILE } else { K_TILE / 2 }) as u32,
            size: MATRIX,
            has_vectors: true,
        };
        for part in &weight.parts {
            let unpacked = self.unpacked(weight, part)?;
            let w = unpacked.as_ref().map_or_else(|| part.codes.bound(), Pooled::bound);
            let params = [weight.cols as u32, weight.n_out as u32, part.first_row as u32];
            let grid =
                Grid { x: (part.n_rows / TILE) as u32, y: (padded_rows(x.rows()) / TILE) as u32, z: 1 };
            self.run(&kernel, &[halves, w, y], &params, grid)?;
        }
        Ok(())
    }

    /// Rows of f16, with room for [`padded_rows`].
    fn halves<'a>(&self, x: &'a Act) -> Result<Bound<'a>, TensorError> {
        let known = &x.handle::<GpuAct>().halves;
        if known.get().is_none() {
            let made = self.take(padded_rows(x.rows()) * x.cols() * 2)?;
            let n_quads = x.rows() * x.cols() / 4;
            let grid = Grid::flat(n_quads.div_ceil(256));
            self.run(&HalfRows {}, &[act(x), made.bound()], &[n_quads as u32], grid)?;
            // When another thread was faster its rows serve as well.
            let _ = known.set(made);
        }
        Ok(known.get().expect("just set").bound())
    }

    /// A part of a weight as f16, unless that is what it is.
    fn unpacked(&self, weight: &GpuWeight, part: &Part) -> Result<Option<Pooled>, TensorError> {
        if let Layout::Floats(Floats { element: Element::F16, has_scales: false, .. }) = weight.layout {
            return Ok(None);
        }
        let unpacked = self.take(part.n_rows * weight.cols * 2)?;
        let n_chunks = weight.cols / weight.layout.chunk();
        let n = part.n_rows * weight.cols / FLOATS_CHUNK;
        let params = [
            n as u32,
            n_chunks as u32,
            weight.layout.groups(weight.cols) as u32,
            weight.layout.group(weight.cols),
        ];
        let grid = Grid::flat(n.div_ceil(64));
        let (codes, high, scales) = (part.codes.bound(), part.high.bound(), part.scales.bound());
        match weight.layout {
            Layout::Codes(layout) => {
                self.run(&UnpackCodes { layout }, &[codes, high, scales, unpacked.bound()], &params, grid)?;
            }
            Layout::Floats(layout) => {
                let bound = [codes, scales, self.none(), unpacked.bound()];
                self.run(&UnpackFloats { layout }, &bound, &params, grid)?;
            }
        }
        Ok(Some(unpacked))
    }
}
