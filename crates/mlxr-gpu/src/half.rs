//! Products of many rows on the device's matrix units, in f16 with sums in f32. Where gate and up of an MLP are such
//! products, one kernel computes both, joins them and writes what the next product reads.
//!
//! Several times as fast as the products that keep a row's result the same in any company, so they are only used when
//! asked for, and only after they have computed what those compute.

use bytemuck::{Pod, Zeroable};
use mlxr_tensor::{Act, Backend, DType, Gate, HostTensor, TensorError};

use crate::backend::GpuBackend;
use crate::bindings::Bound;
use crate::buffers::Pooled;
use crate::fused::GatedProduct;
use crate::kernels::{GatedMatmul, Matmul, MatmulShape, UnpackCodes, UnpackFloats, gate};
use crate::layout::{Element, FLOATS_CHUNK, Floats, Layout};
use crate::mode::Mode;
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
pub(crate) const K_TILE: usize = 64;
/// Workgroup memory that those take, rows being [`TILE`] and a little more than their length apart, and a matrix of
/// results of each subgroup.
const WORKGROUP_BYTES: u32 = (2 * TILE * (K_TILE + 8) * 2 + 4 * 16 * 24 * 4) as u32;
/// Rows and columns of the device's matrices.
const MATRIX: u32 = 16;
/// Lanes of a workgroup that unpacks, and runs of eight columns that each has.
const UNPACK_LANES: usize = 128;
const UNPACK_EACH: usize = 2;
/// How far results may be from those of the other kernels, relative to the largest.
pub(crate) const TOLERANCE: f32 = 1e-2;

/// Rows that results need room for.
pub(crate) fn padded_rows(n_rows: usize) -> usize {
    n_rows.next_multiple_of(TILE)
}

/// Rows from which products go this way, where some weights are codes and where none are.
pub(crate) fn min_half_rows(has_codes: bool) -> usize {
    if has_codes { MIN_ROWS_OF_CODES } else { MIN_ROWS_OF_FLOATS }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GatedMatmulParams {
    cols: u32,
    y_stride: u32,
    y_start: u32,
    alpha: f32,
    limit: f32,
}

impl GatedProduct<'_> {
    /// Whether both products go this way, and together.
    pub(crate) fn is_half(&self, backend: &GpuBackend) -> bool {
        let (gate, up) = (&self.gate, &self.up);
        backend.joins_halves()
            && backend.is_half(gate)
            && backend.is_half(up)
            && gate.weight.n_out == up.weight.n_out
            && [gate, up].iter().all(|product| product.weight.parts.len() == 1)
    }

    /// Writes the result in f16 into `y`, which has room for [`padded_rows`].
    pub(crate) fn run_half(&self, backend: &GpuBackend, x: &Act, y: Bound<'_>) -> Result<(), TensorError> {
        let (gate_weight, up_weight) = (self.gate.weight, self.up.weight);
        let (gate_part, up_part) = (&gate_weight.parts[0], &up_weight.parts[0]);
        let halves = backend.halves(x)?;
        let (gate_made, up_made) =
            (backend.unpacked(gate_weight, gate_part)?, backend.unpacked(up_weight, up_part)?);
        let bound = [halves, half_of(gate_part, &gate_made), half_of(up_part, &up_made), y];
        let (kind, alpha, limit) = gate(self.kind);
        let (cols, n_out) = (gate_weight.cols, gate_weight.n_out);
        let params =
            GatedMatmulParams { cols: cols as u32, y_stride: n_out as u32, y_start: 0, alpha, limit };
        let grid = Grid { x: (n_out / (TILE / 2)) as u32, y: (padded_rows(x.rows()) / TILE) as u32, z: 1 };
        backend.run(&GatedMatmul { shape: backend.matmul_shape(), kind }, &bound, &params, grid)
    }
}

/// A part of a weight in f16: made, or as it is.
fn half_of<'a>(part: &'a Part, made: &'a Option<Pooled>) -> Bound<'a> {
    made.as_ref().map_or_else(|| part.codes.bound(), Pooled::bound)
}

/// Whether kernels compute what others do; if not, says that others take their place.
fn works(what: &str, are_right: Result<bool, TensorError>) -> bool {
    match are_right {
        Ok(true) => return true,
        Ok(false) => {
            tracing::warn!("{what} compute something else on this device; other kernels take their place")
        }
        Err(error) => {
            tracing::warn!(%error, "{what} do not work on this device; other kernels take their place")
        }
    }
    false
}

/// Values between -0.5 and 0.5 to check products with, the same in every run.
pub(crate) fn check_values(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + seed) % 1021) as f32 / 1021.0 - 0.5).collect()
}

impl GpuBackend {
    /// Lets products of many rows be computed in f16 where the device has matrices for it: faster, and rounded to other
    /// bits than products of fewer rows.
    #[must_use]
    pub fn with_half_products(mut self, is_wanted: bool) -> Self {
        if is_wanted && self.gpu().has_matrices {
            self.check_halves();
        }
        self
    }

    /// Finds out what of this works on the device, all kernels for that being compiled side by side.
    fn check_halves(&mut self) {
        self.mode = Mode::Compiling;
        // What fails here fails again below.
        let _ = (
            self.half_products_are_right(),
            self.few_products_are_right(),
            self.few_codes_are_right(),
            self.half_attention_is_right(),
        );
        self.mode = Mode::Comparing;
        self.has_half_products = works("products in f16", self.half_products_are_right());
        self.has_few_products =
            self.has_half_products && works("products of few rows in f16", self.few_products_are_right());
        self.has_few_codes = self.has_half_products
            && self.subgroup() == 2 * MATRIX
            && works("products of few rows with quantised weights in f16", self.few_codes_are_right());
        self.has_half_attention = works("attention in f16", self.half_attention_is_right());
        self.mode = Mode::Computing;
    }

    /// A weight in f16 to check products with.
    pub(crate) fn check_weight(
        &self,
        n_out: usize,
        cols: usize,
        seed: usize,
    ) -> Result<GpuWeight, TensorError> {
        let values = check_values(n_out * cols, seed).into_iter();
        let bytes: Vec<u8> = values.flat_map(|v| half::f16::from_f32(v).to_le_bytes()).collect();
        let tensor = HostTensor::new("check", &[n_out, cols], DType::F16, bytes.into())?;
        GpuWeight::new(self.gpu(), self.buffers(), &tensor)
    }

    /// Compares products with the same by the other kernels.
    fn half_products_are_right(&self) -> Result<bool, TensorError> {
        let (n_rows, n_out, cols) = (TILE, 2 * TILE, 3 * K_TILE);
        let (weight, other) = (self.check_weight(n_out, cols, 3)?, self.check_weight(n_out, cols, 7)?);
        let x = self.act(n_rows, cols, &check_values(n_rows * cols, 5));
        let product = |weight| Product { weight, bias: None, routing: None, n_rows };
        let both = GatedProduct { gate: product(&weight), up: product(&other), kind: Gate::Silu };
        let (ours, theirs) = (self.take(n_rows * n_out * 4)?, self.take(n_rows * n_out * 4)?);
        self.half_product(&x, &weight, ours.bound())?;
        self.product(&x, &both.gate, theirs.bound())?;
        if !self.are_alike(ours.bound(), theirs.bound(), n_rows * n_out)? {
            return Ok(false);
        }
        if !self.joins_halves() {
            return Ok(true);
        }
        let ours = self.new_halves(n_rows, n_out, |y| both.run_half(self, &x, y));
        let [gate, up] = [&both.gate, &both.up]
            .map(|product| self.new_act(n_rows, n_out, |y| self.product(&x, product, y)));
        let theirs = self.gated(&gate, &up, both.kind);
        self.are_alike(self.floats(&ours), self.floats(&theirs), n_rows * n_out)
    }

    /// Whether the kernel that joins two products is made for the device's subgroups: two lanes to a matrix's row.
    fn joins_halves(&self) -> bool {
        self.subgroup() == 2 * MATRIX
    }

    /// Whether a product goes this way.
    pub(crate) fn is_half(&self, product: &Product<'_>) -> bool {
        let Product { weight, bias, routing, n_rows } = product;
        let fits = |part: &Part| {
            let n_bytes = (part.n_rows * weight.cols * 2) as u64;
            part.n_rows.is_multiple_of(TILE) && n_bytes <= self.gpu().limits.max_storage_buffer_binding_size
        };
        let min_rows = min_half_rows(matches!(weight.layout, Layout::Codes(_)));
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
        let kernel = Matmul { shape: self.matmul_shape() };
        for part in &weight.parts {
            let made = self.unpacked(weight, part)?;
            let w = half_of(part, &made);
            let params = [weight.cols as u32, weight.n_out as u32, part.first_row as u32];
            let grid =
                Grid { x: (part.n_rows / TILE) as u32, y: (padded_rows(x.rows()) / TILE) as u32, z: 1 };
            self.run(&kernel, &[halves, w, y], &params, grid)?;
        }
        Ok(())
    }

    /// How products are divided.
    fn matmul_shape(&self) -> MatmulShape {
        let has_room = self.gpu().limits.max_compute_workgroup_storage_size >= WORKGROUP_BYTES;
        MatmulShape {
            subgroup: self.subgroup(),
            tile_rows: TILE as u32,
            tile_outs: TILE as u32,
            n_down: 2,
            n_across: 2,
            k_tile: (if has_room { K_TILE } else { K_TILE / 2 }) as u32,
            size: MATRIX,
            has_vectors: true,
        }
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
        let grid = Grid::flat(n.div_ceil(UNPACK_LANES * UNPACK_EACH));
        let (lanes, n_each) = (UNPACK_LANES as u32, UNPACK_EACH as u32);
        let (codes, high, scales) = (part.codes.bound(), part.high.bound(), part.scales.bound());
        match weight.layout {
            Layout::Codes(layout) => {
                let bound = [codes, high, scales, unpacked.bound()];
                self.run(&UnpackCodes { layout, lanes, n_each }, &bound, &params, grid)?;
            }
            Layout::Floats(layout) => {
                let bound = [codes, scales, self.none(), unpacked.bound()];
                self.run(&UnpackFloats { layout, lanes, n_each }, &bound, &params, grid)?;
            }
        }
        Ok(Some(unpacked))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that meets an unexpected None or Err should stop there")]
mod tests {
    use super::*;
    use crate::AdapterChoice;

    #[test]
    fn checks_ask_for_all_kernels_first_and_a_refused_one_is_no_failure_of_the_device() {
        let Ok(mut gpu) = GpuBackend::new(AdapterChoice::BestOrSoftware) else {
            assert!(std::env::var_os("MLXR_REQUIRE_GPU").is_none(), "no GPU");
            return;
        };
        // What is compared is what was computed.
        for (mode, expected) in [(Mode::Comparing, [2.0, 4.0]), (Mode::Compiling, [0.0, 0.0])] {
            gpu.mode = mode;
            let mut x = gpu.act(1, 2, &[1.0, 2.0]);
            gpu.scale(&mut x, 2.0);
            assert_eq!(gpu.read(&x).unwrap(), expected);
        }
        let check = |gpu: &GpuBackend| {
            [
                gpu.half_products_are_right(),
                gpu.few_products_are_right(),
                gpu.few_codes_are_right(),
                gpu.half_attention_is_right(),
            ]
        };
        assert!(check(&gpu).iter().all(Result::is_ok));
        let n_kernels = gpu.n_kernels();
        assert!(n_kernels > 6, "{n_kernels} kernels");

        // Where there are no matrices, drivers refuse these kernels.
        gpu.check_halves();
        assert_eq!(gpu.n_kernels(), n_kernels, "a kernel was compiled later than the others");
        assert_eq!(gpu.has_half_products, gpu.gpu().has_matrices);
        assert_eq!(gpu.failure(), None);
        let mut x = gpu.act(1, 4, &[1.0, 2.0, 3.0, 4.0]);
        gpu.scale(&mut x, 2.0);
        assert_eq!(gpu.read(&x).unwrap(), [2.0, 4.0, 6.0, 8.0]);
    }
}
