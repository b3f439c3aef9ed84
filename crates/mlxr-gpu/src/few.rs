//! Products of few rows with weights in f16 on the device's matrix units, sums in f32. Where gate and up of an MLP are such
//! products, one kernel computes both and joins them.
//!
//! As products of many rows (`half.rs`) only when asked for, and only after they have computed what the other kernels do.

use bytemuck::{Pod, Zeroable};
use mlxr_tensor::{Act, Backend, Gate, TensorError};

use crate::acts::GpuAct;
use crate::backend::GpuBackend;
use crate::bindings::Bound;
use crate::fused::GatedProduct;
use crate::half::{check_values, min_half_rows};
use crate::kernels::{FewShape, GatedMatmulFew, MatmulFew, gate};
use crate::layout::{Element, Floats, Layout};
use crate::ops::Product;
use crate::recorder::Grid;
use crate::weight::{GpuWeight, Part};

/// Rows from which products go this way: other kernels compute five rows as eight, which take longer on an H200.
const MIN_ROWS: usize = 5;
/// Rows and columns of the device's matrices.
const MATRIX: usize = 16;
/// Columns of a subgroup that are in workgroup memory, and subgroups that share all columns. By measurements on an H200, as
/// is that a workgroup has one matrix of columns of each weight.
const K_TILE: usize = 64;
const N_SPLIT: usize = 4;

/// Whether so many rows may go this way.
pub(crate) fn are_few_rows(n_rows: usize) -> bool {
    (MIN_ROWS..min_half_rows(false)).contains(&n_rows)
}

/// Whether a weight is in f16 on the device.
pub(crate) fn is_plain_half(weight: &GpuWeight) -> bool {
    matches!(weight.layout, Layout::Floats(Floats { element: Element::F16, has_scales: false, .. }))
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct FewParams {
    cols: u32,
    n_rows: u32,
    y_stride: u32,
    y_start: u32,
    /// Of a gated product.
    alpha: f32,
    limit: f32,
}

impl FewParams {
    fn new(weight: &GpuWeight, part: &Part, n_rows: usize) -> Self {
        Self {
            cols: weight.cols as u32,
            n_rows: n_rows as u32,
            y_stride: weight.n_out as u32,
            y_start: part.first_row as u32,
            alpha: 0.0,
            limit: 0.0,
        }
    }
}

impl FewShape {
    /// For rows in f16 or not, and one weight or two.
    pub(crate) fn new(subgroup: u32, is_half: bool, n_weights: u32) -> Self {
        Self { subgroup, n_tiles: n_weights, n_split: N_SPLIT as u32, k_tile: K_TILE as u32, is_half }
    }

    /// Workgroup memory that it takes: rows of f16, a little more than their length apart, and matrices of results.
    fn workgroup_bytes(&self) -> u32 {
        let matrix = MATRIX as u32;
        let strips = (1 + self.n_tiles) * matrix * (self.k_tile + 8) * 2;
        self.n_split * (strips + self.n_tiles * matrix * (matrix + 4) * 4)
    }
}

/// Workgroups for so many rows of the weight and of the input.
fn grid(n_out: usize, n_rows: usize) -> Grid {
    Grid::tiles(n_out / MATRIX, n_rows.div_ceil(MATRIX))
}

impl GatedProduct<'_> {
    /// Whether both products go this way, and together.
    pub(crate) fn is_few(&self, backend: &GpuBackend) -> bool {
        let (gate, up) = (&self.gate, &self.up);
        backend.is_few(gate)
            && backend.is_few(up)
            && gate.weight.n_out == up.weight.n_out
            && [gate, up].iter().all(|product| product.weight.parts.len() == 1)
    }

    /// Writes the result in f16.
    pub(crate) fn run_few(&self, backend: &GpuBackend, x: &Act, y: Bound<'_>) -> Result<(), TensorError> {
        let (weight, n_rows) = (self.gate.weight, x.rows());
        let (part, up_part) = (&weight.parts[0], &self.up.weight.parts[0]);
        let (kind, alpha, limit) = gate(self.kind);
        let params = FewParams { alpha, limit, ..FewParams::new(weight, part, n_rows) };
        let (x, is_half) = backend.few_input(x);
        let kernel = GatedMatmulFew { shape: FewShape::new(backend.subgroup(), is_half, 2), kind };
        let bound = [part.codes.bound(), x, y, up_part.codes.bound()];
        backend.run(&kernel, &bound, &params, grid(weight.n_out, n_rows))
    }
}

impl GpuBackend {
    /// Rows as such a product reads them, and whether they are in f16.
    fn few_input<'a>(&self, x: &'a Act) -> (Bound<'a>, bool) {
        let halves = x.handle::<GpuAct>().made_halves();
        halves.map_or_else(|| (self.floats(x), false), |halves| (halves, true))
    }

    /// Whether a product goes this way.
    pub(crate) fn is_few(&self, product: &Product<'_>) -> bool {
        let Product { weight, bias, routing, n_rows } = product;
        let n_bytes = FewShape::new(self.subgroup(), true, 2).workgroup_bytes();
        self.has_few_products
            && are_few_rows(*n_rows)
            && bias.is_none()
            && routing.is_none()
            && is_plain_half(weight)
            && weight.cols.is_multiple_of(K_TILE)
            && weight.cols >= N_SPLIT * K_TILE
            && weight.parts.iter().all(|part| part.n_rows.is_multiple_of(MATRIX))
            && self.gpu().limits.max_compute_workgroup_storage_size >= n_bytes
    }

    /// The product of `x` and a weight.
    pub(crate) fn few_product(&self, x: &Act, weight: &GpuWeight, y: Bound<'_>) -> Result<(), TensorError> {
        let (input, is_half) = self.few_input(x);
        let kernel = MatmulFew { shape: FewShape::new(self.subgroup(), is_half, 1) };
        for part in &weight.parts {
            let params = FewParams::new(weight, part, x.rows());
            let bound = [part.codes.bound(), input, y];
            self.run(&kernel, &bound, &params, grid(part.n_rows, x.rows()))?;
        }
        Ok(())
    }

    /// Compares such products with the same by the other kernels.
    pub(crate) fn few_products_are_right(&self) -> Result<bool, TensorError> {
        // Columns that are not the same number of runs for each subgroup.
        let (n_out, cols) = (2 * MATRIX, (N_SPLIT + 1) * K_TILE);
        let (weight, other) = (self.check_weight(n_out, cols, 3)?, self.check_weight(n_out, cols, 7)?);
        let plain =
            |x: &Act, product: &Product<'_>| self.new_act(x.rows(), n_out, |y| self.product(x, product, y));

        // Gate and up of rows in f32, fewer than a matrix has.
        let n_rows = MIN_ROWS;
        let x = self.act(n_rows, cols, &check_values(n_rows * cols, 5));
        let product = |weight| Product { weight, bias: None, routing: None, n_rows };
        let both = GatedProduct { gate: product(&weight), up: product(&other), kind: Gate::Silu };
        let ours = self.new_halves(n_rows, n_out, |y| both.run_few(self, &x, y));
        let theirs = self.gated(&plain(&x, &both.gate), &plain(&x, &both.up), both.kind);
        if !self.are_alike(self.floats(&ours), self.floats(&theirs), n_rows * n_out)? {
            return Ok(false);
        }

        // One weight and rows in f16, more than a matrix has.
        let n_rows = MATRIX + 3;
        let x = self.act(n_rows, cols, &check_values(n_rows * cols, 11));
        self.halves(&x)?;
        let ours = self.new_act(n_rows, n_out, |y| self.few_product(&x, &weight, y));
        let theirs = plain(&x, &Product { weight: &weight, bias: None, routing: None, n_rows });
        self.are_alike(self.floats(&ours), self.floats(&theirs), n_rows * n_out)
    }
}
