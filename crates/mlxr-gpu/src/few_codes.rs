//! Products of few rows with weights in codes on the device's matrix units, sums in f32: weights are unpacked where the
//! matrices are, in registers (`registers.rs`), and rows come as operands of matrices. Where gate and up of an MLP are such
//! products, one kernel computes both and joins them.
//!
//! As products of many rows (`half.rs`) only when asked for, and only after they have computed what the other kernels do.

use std::sync::atomic::Ordering;

use bytemuck::{Pod, Zeroable};
use mlxr_tensor::{Act, Backend, DType, Gate, HostTensor, TensorError};

use crate::backend::GpuBackend;
use crate::bindings::Bound;
use crate::fused::GatedProduct;
use crate::half::{check_values, min_half_rows};
use crate::kernels::{GatedMatmulFewCodes, MatmulFewCodes, gate};
use crate::layout::{CODES_CHUNK, Codes, Layout};
use crate::ops::Product;
use crate::recorder::Grid;
use crate::weight::{GpuWeight, Part};

/// Rows from which products go this way: other kernels compute as many of them as if they were sixteen, which takes longer on
/// an H200; up to eight take less.
const MIN_ROWS: usize = 9;
/// Weights of a matrix from which it goes this way. On an H200 integer products of 4096 by 4096 are a little faster.
const MIN_WEIGHTS: usize = 24 << 20;
/// Rows and columns of the device's matrices.
const MATRIX: usize = 16;
/// Columns of a run, of which each lane has a chunk.
const RUN: usize = 4 * CODES_CHUNK;

/// Bytes of so many rows as operands of matrices.
pub(crate) fn fragments_bytes(rows: usize, cols: usize) -> usize {
    rows.next_multiple_of(MATRIX) * cols * 2
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct FewCodesParams {
    n_chunks: u32,
    n_groups: u32,
    n_rows: u32,
    y_stride: u32,
    y_start: u32,
    /// Of a gated product.
    alpha: f32,
    limit: f32,
}

impl FewCodesParams {
    fn new(weight: &GpuWeight, part: &Part, n_rows: usize) -> Self {
        Self {
            n_chunks: (weight.cols / CODES_CHUNK) as u32,
            n_groups: weight.layout.groups(weight.cols) as u32,
            n_rows: n_rows as u32,
            y_stride: weight.n_out as u32,
            y_start: part.first_row as u32,
            alpha: 0.0,
            limit: 0.0,
        }
    }
}

/// Subgroups that share the columns of so long rows, by measurements on an H200.
fn n_split(cols: usize) -> u32 {
    if cols >= 8192 { 16 } else { 8 }
}

/// Workgroups for so many rows of the weight and of the input.
fn grid(n_out: usize, n_rows: usize) -> Grid {
    Grid::tiles(n_out / MATRIX, n_rows.div_ceil(MATRIX))
}

fn codes_of(weight: &GpuWeight) -> Option<Codes> {
    match weight.layout {
        Layout::Codes(codes) => Some(codes),
        Layout::Floats(_) => None,
    }
}

impl GatedProduct<'_> {
    /// Whether both products go this way, and together.
    pub(crate) fn is_few_codes(&self, backend: &GpuBackend) -> bool {
        let (gate, up) = (&self.gate, &self.up);
        backend.is_few_codes(gate)
            && backend.is_few_codes(up)
            && gate.weight.layout == up.weight.layout
            && gate.weight.n_out == up.weight.n_out
            && gate.weight.n_out.is_multiple_of(RUN)
            && [gate, up].iter().all(|product| product.weight.parts.len() == 1)
    }

    /// Writes the result in f32 and as operands of matrices.
    pub(crate) fn run_few_codes(
        &self,
        backend: &GpuBackend,
        x: &Act,
        y: Bound<'_>,
        fragments: Bound<'_>,
    ) -> Result<(), TensorError> {
        let (weight, n_rows) = (self.gate.weight, x.rows());
        let Some(layout) = codes_of(weight) else { unreachable!("asked for by `is_few_codes`") };
        let (part, up_part) = (&weight.parts[0], &self.up.weight.parts[0]);
        let (kind, alpha, limit) = gate(self.kind);
        let params = FewCodesParams { alpha, limit, ..FewCodesParams::new(weight, part, n_rows) };
        let kernel = GatedMatmulFewCodes { layout, n_split: n_split(weight.cols), kind };
        let [w_codes, w_high, w_scales] = part.planes();
        let [up_codes, up_high, up_scales] = up_part.planes();
        let (x, none) = (backend.fragments(x)?, backend.none());
        let bound = [w_codes, w_high, w_scales, x, y, fragments, none, none, up_codes, up_high, up_scales];
        backend.run(&kernel, &bound, &params, grid(weight.n_out, n_rows))
    }
}

impl GpuBackend {
    /// Whether products that are likely to come next want so many rows as operands of matrices.
    pub(crate) fn wants_fragments(&self, rows: usize, cols: usize) -> bool {
        self.has_few_codes
            && self.wants_codes.load(Ordering::Relaxed)
            && (MIN_ROWS..min_half_rows(false)).contains(&rows)
            && cols.is_multiple_of(RUN)
    }

    /// Whether a product goes this way.
    pub(crate) fn is_few_codes(&self, product: &Product<'_>) -> bool {
        let Product { weight, bias, routing, n_rows } = product;
        self.wants_fragments(*n_rows, weight.cols)
            && bias.is_none()
            && routing.is_none()
            && codes_of(weight).is_some()
            && weight.n_out * weight.cols >= MIN_WEIGHTS
            && weight.parts.iter().all(|part| part.n_rows.is_multiple_of(MATRIX))
            && self.max_lanes() >= n_split(weight.cols) * self.subgroup()
    }

    /// The product of `x` and a weight in codes.
    pub(crate) fn few_codes_product(
        &self,
        x: &Act,
        weight: &GpuWeight,
        y: Bound<'_>,
    ) -> Result<(), TensorError> {
        let Some(layout) = codes_of(weight) else { unreachable!("asked for by `is_few_codes`") };
        let kernel = MatmulFewCodes { layout, n_split: n_split(weight.cols) };
        let input = self.fragments(x)?;
        for part in &weight.parts {
            let params = FewCodesParams::new(weight, part, x.rows());
            let [codes, high, scales] = part.planes();
            self.run(&kernel, &[codes, high, scales, input, y], &params, grid(part.n_rows, x.rows()))?;
        }
        Ok(())
    }

    /// A weight of signed nibbles to check products with, and the same in f16.
    fn check_nibbles(&self, n_out: usize, cols: usize, seed: usize) -> Result<[GpuWeight; 2], TensorError> {
        let scales = check_values(n_out * cols / CODES_CHUNK, seed).into_iter();
        let (mut nibbles, mut halves) = (vec![], vec![]);
        for (i, scale) in scales.enumerate() {
            let scale = half::f16::from_f32(scale / 8.0);
            let bytes: [u8; 16] = std::array::from_fn(|j| ((i * 31 + j * 57 + seed * 101) % 256) as u8);
            nibbles.extend_from_slice(&scale.to_le_bytes());
            nibbles.extend_from_slice(&bytes);
            let codes = bytes.iter().map(|byte| byte & 15).chain(bytes.iter().map(|byte| byte >> 4));
            for code in codes {
                let value = scale.to_f32() * (f32::from(code) - 8.0);
                halves.extend_from_slice(&half::f16::from_f32(value).to_le_bytes());
            }
        }
        let of = |dtype, bytes: Vec<u8>| {
            let tensor = HostTensor::new("check", &[n_out, cols], dtype, bytes.into())?;
            GpuWeight::new(self.gpu(), self.buffers(), &tensor)
        };
        Ok([of(DType::Q4_0, nibbles)?, of(DType::F16, halves)?])
    }

    /// Compares such products with those of the same weights in f16 by the kernels of floats, which round no row to eight bits.
    pub(crate) fn few_codes_are_right(&self) -> Result<bool, TensorError> {
        // Columns that are not the same number of runs for each subgroup, and results that are operands themselves.
        let (n_out, cols) = (2 * RUN, 11 * RUN);
        let ([gate, gate_halves], [up, up_halves]) =
            (self.check_nibbles(n_out, cols, 3)?, self.check_nibbles(n_out, cols, 7)?);
        fn product(weight: &GpuWeight, n_rows: usize) -> Product<'_> {
            Product { weight, bias: None, routing: None, n_rows }
        }
        let plain = |x: &Act, weight: &GpuWeight| {
            self.new_act(x.rows(), n_out, |y| self.product(x, &product(weight, x.rows()), y))
        };

        // Gate and up of fewer rows than a matrix has.
        let n_rows = MIN_ROWS;
        let x = self.act(n_rows, cols, &check_values(n_rows * cols, 5));
        let both = GatedProduct { gate: product(&gate, n_rows), up: product(&up, n_rows), kind: Gate::Silu };
        let ours = self
            .new_act_as_fragments(n_rows, n_out, |y, fragments| both.run_few_codes(self, &x, y, fragments));
        let theirs = self.gated(&plain(&x, &gate_halves), &plain(&x, &up_halves), both.kind);
        if !self.are_alike(self.floats(&ours), self.floats(&theirs), n_rows * n_out)? {
            return Ok(false);
        }

        // What that wrote as operands.
        let [down, down_halves] = self.check_nibbles(n_out, n_out, 13)?;
        let ours = self.new_act(n_rows, n_out, |y| self.few_codes_product(&ours, &down, y));
        let theirs = plain(&theirs, &down_halves);
        if !self.are_alike(self.floats(&ours), self.floats(&theirs), n_rows * n_out)? {
            return Ok(false);
        }

        // One weight and more rows than a matrix has.
        let n_rows = MATRIX + 3;
        let x = self.act(n_rows, cols, &check_values(n_rows * cols, 11));
        let ours = self.new_act(n_rows, n_out, |y| self.few_codes_product(&x, &gate, y));
        let theirs = plain(&x, &gate_halves);
        self.are_alike(self.floats(&ours), self.floats(&theirs), n_rows * n_out)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that meets an unexpected None or Err should stop there")]
mod tests {
    use mlxr_tensor::conformance::data::{self, Noise};

    use super::*;
    use crate::AdapterChoice;

    /// Where there are matrices; no software driver has them.
    #[test]
    fn products_of_all_codes_are_those_of_the_other_kernels() {
        let Ok(gpu) = GpuBackend::new(AdapterChoice::BestOrSoftware) else {
            assert!(std::env::var_os("MLXR_REQUIRE_GPU").is_none(), "no GPU");
            return;
        };
        let has_matrices = gpu.gpu().has_matrices;
        let gpu = gpu.with_half_products(true);
        assert_eq!(gpu.has_few_codes, has_matrices && gpu.subgroup() == 32);
        if !gpu.has_few_codes {
            return;
        }
        let mut noise = Noise::new(17);
        for format in data::formats() {
            if !matches!(Layout::of(format), Some(Layout::Codes(_))) {
                continue;
            }
            for (n_rows, n_out, cols) in [(16, 64, 1024), (21, 48, 8192)] {
                let tensor = data::tensor(format, &[n_out, cols], &mut noise);
                let weight = GpuWeight::new(gpu.gpu(), gpu.buffers(), &tensor).unwrap();
                let x = gpu.act(n_rows, cols, &noise.values(n_rows * cols));
                let ours = gpu.new_act(n_rows, n_out, |y| gpu.few_codes_product(&x, &weight, y));
                let values = tensor.to_f32().unwrap();
                let floats = HostTensor::from_f32("floats", &[n_out, cols], &values).unwrap();
                let floats = GpuWeight::new(gpu.gpu(), gpu.buffers(), &floats).unwrap();
                let product = Product { weight: &floats, bias: None, routing: None, n_rows };
                let theirs = gpu.new_act(n_rows, n_out, |y| gpu.product(&x, &product, y));
                let n = n_rows * n_out;
                assert!(gpu.are_alike(gpu.floats(&ours), gpu.floats(&theirs), n).unwrap(), "{format:?}");
            }
        }
    }
}
