//! Ops of few rows in one kernel that otherwise take several, each of which waits for the one before: the same bits.

use bytemuck::{Pod, Zeroable};
use mlxr_tensor::{Act, Gate, TensorError};

use crate::backend::{GpuBackend, with_codes};
use crate::bindings::Bound;
use crate::kernels::{GatedMatvecCodes, GatedMatvecFloats, MatvecShape, gate};
use crate::layout::CODES_CHUNK;
use crate::ops::{Input, MatvecParams, Product, row_tile};
use crate::recorder::Grid;

/// Rows up to which this is done. Where there are more, kernels work longer than they wait, and have less to spare.
pub(crate) const FEW_ROWS: usize = 4;

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
    pub(crate) fn is_fused(&self) -> bool {
        let (gate, up) = (self.gate.weight, self.up.weight);
        self.gate.n_rows <= FEW_ROWS
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
        let size = [weight.n_out, weight.cols / weight.layout.chunk()].map(|n| n as u32);
        let n_tile = row_tile(*n_rows);
        let shape = MatvecShape::gated(backend.subgroup(), &weight.layout, size, n_tile, is_quantising);
        let (kind, alpha, limit) = gate(*gate_kind);
        let params = GatedMatvecParams {
            product: self.gate.params(part),
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
        match backend.input(x, &weight.layout)? {
            Input::Codes(layout, [x_codes, x_scales]) => {
                let bound = [
                    w_codes, w_high, w_scales, x_codes, x_scales, bias, none, y, up_codes, up_high,
                    up_scales, up_bias,
                ];
                let kernel = GatedMatvecCodes { layout, shape, kind, is_quantising };
                backend.run(&kernel, &with_codes(&bound, codes), &params, grid)
            }
            Input::Floats(layout, x) => {
                let bound = [w_codes, w_scales, x, bias, none, y, up_codes, up_scales, up_bias];
                let kernel = GatedMatvecFloats { layout, shape, kind, is_quantising };
                backend.run(&kernel, &with_codes(&bound, codes), &params, grid)
            }
        }
    }
}
