//! Ops of few rows in one kernel that otherwise take several, each of which waits for the one before: the same bits.

use bytemuck::{Pod, Zeroable};
use mlxr_tensor::{Act, Gate, TensorError, Weight};

use crate::backend::{GpuBackend, with};
use crate::bindings::Bound;
use crate::kernels::{
    GatedMatvecCodes, GatedMatvecFloats, MatvecShape, NormedMatvecCodes, NormedMatvecFloats, gate,
};
use crate::layout::CODES_CHUNK;
use crate::ops::{Form, MatvecParams, Product, row_tile};
use crate::recorder::Grid;

/// Rows up to which this is done, measured with one on an H200. Where there are more, kernels work longer than they wait.
const FEW_ROWS: usize = 2;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GatedMatvecParams {
    product: MatvecParams,
    has_up_bias: u32,
    alpha: f32,
    limit: f32,
}

/// The two products of a gated MLP.
pub(crate) struct GatedProduct<'a> {
    pub(crate) gate: Product<'a>,
    pub(crate) up: Product<'a>,
    pub(crate) kind: Gate,
}

impl GatedProduct<'_> {
    /// Whether one kernel computes all.
    pub(crate) fn is_fused(&self, backend: &GpuBackend) -> bool {
        let (gate, up) = (self.gate.weight, self.up.weight);
        backend.gpu().binds_many()
            && self.gate.n_rows <= FEW_ROWS
            && gate.layout == up.layout
            && gate.cols.is_multiple_of(gate.layout.chunk())
            && (gate.cols, gate.n_out) == (up.cols, up.n_out)
            && gate.n_out.is_multiple_of(CODES_CHUNK)
            && [gate, up].iter().all(|weight| weight.parts.len() == 1)
    }

    /// Writes the result and its codes.
    pub(crate) fn run(
        &self,
        backend: &GpuBackend,
        x: &Act,
        y: Bound<'_>,
        codes: Option<[Bound<'_>; 2]>,
    ) -> Result<(), TensorError> {
        let GatedProduct { gate: Product { weight, bias, n_rows, .. }, up, kind: gate_kind } = self;
        let (part, up_part) = (&weight.parts[0], &up.weight.parts[0]);
        let is_quantising = codes.is_some();
        let input = backend.input(x, &weight.layout)?;
        let size = [weight.n_out, weight.cols / weight.layout.chunk()].map(|n| n as u32);
        let n_tile = row_tile(*n_rows);
        let shape = MatvecShape::gated(backend.subgroup(), &weight.layout, size, n_tile, is_quantising);
        let shape = MatvecShape { is_unscaled: input.is_unscaled(), ..shape };
        let (kind, alpha, limit) = gate(*gate_kind);
        let params = GatedMatvecParams {
            product: self.gate.params(part, &input),
            has_up_bias: up.bias.is_some().into(),
            alpha,
            limit,
        };
        let n_groups = weight.n_out.div_ceil(shape.gated_columns() as usize);
        let grid = Grid::tiles(n_groups, n_rows.div_ceil(n_tile as usize));
        let (bias, up_bias) = (backend.values_or_none(*bias)?, backend.values_or_none(up.bias)?);
        let [w_codes, w_high, w_scales] = part.planes();
        let [up_codes, up_high, up_scales] = up_part.planes();
        let none = backend.none();
        let more = input.squares().into_iter().chain(codes.into_iter().flatten());
        match input.form {
            Form::Codes(layout, [x_codes, x_scales]) => {
                let bound = [
                    w_codes, w_high, w_scales, x_codes, x_scales, bias, none, y, up_codes, up_high,
                    up_scales, up_bias,
                ];
                let kernel = GatedMatvecCodes { layout, shape, kind, is_quantising };
                backend.run(&kernel, &with(&bound, more), &params, grid)
            }
            Form::Floats(layout, x) => {
                let bound = [w_codes, w_scales, x, bias, none, y, up_codes, up_scales, up_bias];
                let kernel = GatedMatvecFloats { layout, shape, kind, is_quantising };
                backend.run(&kernel, &with(&bound, more), &params, grid)
            }
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct NormedMatvecParams {
    product: MatvecParams,
    scale: f32,
}

/// A product that is added to a residual, and the norm of that, which those who read it scale.
pub(crate) struct NormedProduct<'a> {
    pub(crate) product: Product<'a>,
    pub(crate) scale: f32,
    pub(crate) norm: &'a Weight,
}

impl NormedProduct<'_> {
    /// Whether one kernel computes all.
    pub(crate) fn is_fused(&self, backend: &GpuBackend) -> bool {
        let Product { weight, n_rows, .. } = self.product;
        backend.gpu().binds_many()
            && n_rows <= FEW_ROWS
            && weight.cols.is_multiple_of(weight.layout.chunk())
            && weight.n_out.is_multiple_of(CODES_CHUNK)
            && weight.parts.len() == 1
    }

    /// Adds to the residual, writes the norm that is still to be scaled, its squares and its codes.
    pub(crate) fn run(
        &self,
        backend: &GpuBackend,
        x: &Act,
        [residual, squares, y]: [Bound<'_>; 3],
        codes: Option<[Bound<'_>; 2]>,
    ) -> Result<(), TensorError> {
        let NormedProduct { product: Product { weight, bias, n_rows, .. }, scale, norm } = self;
        let part = &weight.parts[0];
        let input = backend.input(x, &weight.layout)?;
        let size = [weight.n_out, weight.cols / weight.layout.chunk()].map(|n| n as u32);
        let n_tile = row_tile(*n_rows);
        // A kernel of many registers may have fewer lanes on Metal than the device has.
        let max_lanes = if backend.gpu().info.api == "metal" { 256 } else { backend.max_lanes() };
        let shape = MatvecShape::normed(backend.subgroup(), &weight.layout, size, n_tile, max_lanes);
        let shape = MatvecShape { is_unscaled: input.is_unscaled(), ..shape };
        let params = NormedMatvecParams { product: self.product.params(part, &input), scale: *scale };
        let n_groups = weight.n_out / CODES_CHUNK;
        let grid = Grid::tiles(n_groups, n_rows.div_ceil(n_tile as usize));
        let (bias, norm) = (backend.values_or_none(*bias)?, backend.values(norm)?);
        let [w_codes, w_high, w_scales] = part.planes();
        let (none, is_normed, is_quantising) = (backend.none(), true, codes.is_some());
        let more = input.squares().into_iter().chain(codes.into_iter().flatten());
        match input.form {
            Form::Codes(layout, [x_codes, x_scales]) => {
                let bound =
                    [w_codes, w_high, w_scales, x_codes, x_scales, bias, none, residual, norm, squares, y];
                let kernel = NormedMatvecCodes { layout, shape, is_normed, is_quantising };
                backend.run(&kernel, &with(&bound, more), &params, grid)
            }
            Form::Floats(layout, x) => {
                let bound = [w_codes, w_scales, x, bias, none, residual, norm, squares, y];
                let kernel = NormedMatvecFloats { layout, shape, is_normed, is_quantising };
                backend.run(&kernel, &with(&bound, more), &params, grid)
            }
        }
    }
}
