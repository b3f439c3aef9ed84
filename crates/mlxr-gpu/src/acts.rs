//! Activations, in the forms that kernels want them in.

use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use mlxr_tensor::{Act, TensorError};

use crate::backend::GpuBackend;
use crate::bindings::Bound;
use crate::buffers::Pooled;
use crate::few::are_few_rows;
use crate::few_codes::fragments_bytes;
use crate::half::{K_TILE, min_half_rows, padded_rows};
use crate::kernels::{FloatRows, FragmentRows, HalfRows, QuantiseRows, ScaleRows};
use crate::layout::CODES_CHUNK;
use crate::ops::row_tile;
use crate::params::ScaleRowsParams;
use crate::recorder::Grid;

/// What stands behind an activation.
#[derive(Default)]
pub(crate) struct GpuAct {
    /// In f32, in eight bits and in f16: in one of them from the start, in the others once something has made them.
    values: OnceLock<Pooled>,
    codes: OnceLock<ActCodes>,
    halves: OnceLock<Pooled>,
    /// As `fragments.wgsl` has them.
    fragments: OnceLock<Pooled>,
    /// What a product has left in their place.
    unscaled: Option<Unscaled>,
}

/// A norm of which codes and values are still to be scaled, see `squares.wgsl`: products scale what they read of it.
struct Unscaled {
    values: Pooled,
    /// Of each chunk.
    squares: Pooled,
    eps: f32,
}

impl GpuAct {
    pub(crate) fn of_floats(values: Pooled) -> Self {
        Self { values: OnceLock::from(values), ..Self::default() }
    }

    /// The values and codes that were written are still to be scaled.
    pub(crate) fn leave_unscaled(&mut self, squares: Pooled, eps: f32) {
        self.unscaled = self.values.take().map(|values| Unscaled { values, squares, eps });
    }

    /// Squares and epsilon of the norm by which codes and [`GpuBackend::stored`] are still to be scaled.
    pub(crate) fn unscaled(&self) -> Option<(Bound<'_>, f32)> {
        self.unscaled.as_ref().map(|unscaled| (unscaled.squares.bound(), unscaled.eps))
    }

    /// Rows of f16, if there are some.
    pub(crate) fn made_halves(&self) -> Option<Bound<'_>> {
        self.halves.get().map(Pooled::bound)
    }

    /// Rows of f16, with room for [`padded_rows`].
    fn of_halves(halves: Pooled) -> Self {
        Self { halves: OnceLock::from(halves), ..Self::default() }
    }
}

/// An activation as `quantise.wgsl` has it.
pub(crate) struct ActCodes {
    codes: Pooled,
    scales: Pooled,
}

impl ActCodes {
    pub(crate) fn bound(&self) -> [Bound<'_>; 2] {
        [self.codes.bound(), self.scales.bound()]
    }
}

impl GpuBackend {
    /// An activation that `fill` writes. A failure shows at the next read.
    pub(crate) fn new_act(
        &self,
        rows: usize,
        cols: usize,
        fill: impl FnOnce(Bound<'_>) -> Result<(), TensorError>,
    ) -> Act {
        self.new_act_in(rows, rows, cols, fill)
    }

    /// As [`Self::new_act`], with room for `room` rows.
    pub(crate) fn new_act_in(
        &self,
        room: usize,
        rows: usize,
        cols: usize,
        fill: impl FnOnce(Bound<'_>) -> Result<(), TensorError>,
    ) -> Act {
        let values = self.take_or_fail(room * cols * 4);
        let filled = fill(values.bound());
        self.note(filled);
        Act::new(rows, cols, GpuAct::of_floats(values))
    }

    /// As [`Self::new_act`]; where products may want the activation in eight bits, `fill`, which writes columns in runs
    /// of `run`, writes that as well.
    pub(crate) fn new_act_with_codes(
        &self,
        [rows, cols]: [usize; 2],
        run: usize,
        fill: impl FnOnce(Bound<'_>, Option<[Bound<'_>; 2]>) -> Result<(), TensorError>,
    ) -> Act {
        let values = self.take_or_fail(rows * cols * 4);
        let is_wanted = self.wants_codes.load(Ordering::Relaxed) && run.is_multiple_of(CODES_CHUNK);
        let made = if is_wanted { self.act_codes(rows, cols).map(Some) } else { Ok(None) };
        let filled = made.and_then(|codes| {
            fill(values.bound(), codes.as_ref().map(ActCodes::bound))?;
            Ok(codes.map_or_else(OnceLock::new, OnceLock::from))
        });
        let codes = filled.unwrap_or_else(|error| {
            self.note(Err(error));
            OnceLock::new()
        });
        Act::new(rows, cols, GpuAct { codes, ..GpuAct::of_floats(values) })
    }

    /// As [`Self::new_act_with_codes`], of whole rows; where products may want the activation as operands of matrices, `fill`
    /// writes these as well.
    pub(crate) fn new_act_with_fragments(
        &self,
        [rows, cols]: [usize; 2],
        fill: impl FnOnce(Bound<'_>, Option<[Bound<'_>; 2]>, Option<Bound<'_>>) -> Result<(), TensorError>,
    ) -> Act {
        let fragments = OnceLock::new();
        if self.wants_fragments(rows, cols) {
            let _ = fragments.set(self.take_or_fail(fragments_bytes(rows, cols)));
        }
        let mut act = self.new_act_with_codes([rows, cols], cols, |y, codes| {
            fill(y, codes, fragments.get().map(Pooled::bound))
        });
        act.handle_mut::<GpuAct>().fragments = fragments;
        act
    }

    /// An activation that `fill` writes in f32 and as operands of matrices.
    pub(crate) fn new_act_as_fragments(
        &self,
        rows: usize,
        cols: usize,
        fill: impl FnOnce(Bound<'_>, Bound<'_>) -> Result<(), TensorError>,
    ) -> Act {
        let fragments = self.take_or_fail(fragments_bytes(rows, cols));
        let mut act = self.new_act(rows, cols, |y| fill(y, fragments.bound()));
        act.handle_mut::<GpuAct>().fragments = OnceLock::from(fragments);
        act
    }

    /// An activation as operands of matrices.
    pub(crate) fn fragments<'a>(&self, x: &'a Act) -> Result<Bound<'a>, TensorError> {
        let known = &x.handle::<GpuAct>().fragments;
        if known.get().is_none() {
            let made = self.take(fragments_bytes(x.rows(), x.cols()))?;
            let (n, n_quads) = (x.rows() * x.cols() / 4, x.cols() / 4);
            let params = [n as u32, n_quads as u32];
            let grid = Grid::flat(n.div_ceil(256));
            self.run(&FragmentRows {}, &[self.floats(x), made.bound()], &params, grid)?;
            // When another thread was faster its rows serve as well.
            let _ = known.set(made);
        }
        Ok(known.get().expect("just set").bound())
    }

    /// Whether products that are likely to come next want so many rows in f16.
    pub(crate) fn wants_halves(&self, rows: usize, cols: usize) -> bool {
        let [has_codes, has_experts] =
            [&self.wants_codes, &self.has_experts].map(|flag| flag.load(Ordering::Relaxed));
        let are_few =
            self.has_few_products && !self.has_other_weights.load(Ordering::Relaxed) && are_few_rows(rows);
        self.has_half_products
            && !has_experts
            && (rows >= min_half_rows(has_codes) || are_few)
            && cols.is_multiple_of(K_TILE)
    }

    /// An activation's values.
    pub(crate) fn floats<'a>(&self, x: &'a Act) -> Bound<'a> {
        let GpuAct { values, halves, unscaled, .. } = x.handle();
        values.get_or_init(|| {
            let made = self.take_or_fail(x.rows() * x.cols() * 4);
            if let Some(Unscaled { values, squares, eps }) = unscaled {
                let n_squares = (x.cols() / CODES_CHUNK) as u32;
                let kernel = ScaleRows { lanes: 256, subgroup: self.subgroup(), n_squares };
                let (n_quads, cols) = (x.cols() as u32 / 4, x.cols() as f32);
                let params = ScaleRowsParams { n_quads, cols, eps: *eps };
                let bound = [values.bound(), squares.bound(), made.bound()];
                self.note(self.run(&kernel, &bound, &params, Grid::flat(x.rows())));
                return made;
            }
            let halves = halves.get().expect("an activation is one or the other");
            let n_quads = x.rows() * x.cols() / 4;
            self.note(self.elementwise(
                &FloatRows {},
                &[halves.bound(), made.bound()],
                &[n_quads as u32],
                n_quads,
            ));
            made
        });
        values.get().expect("just set").bound()
    }

    /// An activation's values as they are stored, which may still be to be scaled.
    pub(crate) fn stored<'a>(&self, x: &'a Act) -> Bound<'a> {
        let unscaled = &x.handle::<GpuAct>().unscaled;
        unscaled.as_ref().map_or_else(|| self.floats(x), |unscaled| unscaled.values.bound())
    }

    /// An activation's values, to change.
    pub(crate) fn floats_mut<'a>(&self, x: &'a mut Act) -> Bound<'a> {
        self.floats(x);
        let handle = x.handle_mut::<GpuAct>();
        handle.codes.take();
        handle.halves.take();
        handle.fragments.take();
        handle.unscaled.take();
        handle.values.get().expect("just made").bound()
    }

    /// An activation that `fill` writes as rows of f16, for products that want those.
    pub(crate) fn new_halves(
        &self,
        rows: usize,
        cols: usize,
        fill: impl FnOnce(Bound<'_>) -> Result<(), TensorError>,
    ) -> Act {
        let halves = self.take_or_fail(padded_rows(rows) * cols * 2);
        let filled = fill(halves.bound());
        self.note(filled);
        Act::new(rows, cols, GpuAct::of_halves(halves))
    }

    /// Room for rows in eight bits, as many as products read of them.
    fn act_codes(&self, rows: usize, cols: usize) -> Result<ActCodes, TensorError> {
        // In groups of 32 chunks.
        let n = (rows.next_multiple_of(row_tile(rows) as usize) * cols).next_multiple_of(32 * CODES_CHUNK);
        Ok(ActCodes { codes: self.take(n)?, scales: self.take(n / CODES_CHUNK * 16)? })
    }

    /// An activation in eight bits.
    pub(crate) fn codes<'a>(&self, x: &'a Act) -> Result<[Bound<'a>; 2], TensorError> {
        let known = &x.handle::<GpuAct>().codes;
        if known.get().is_none() {
            let n = x.rows() * x.cols();
            let made = self.act_codes(x.rows(), x.cols())?;
            let [codes, scales] = made.bound();
            let n_quads = n / 4;
            let grid = Grid::flat(n_quads.div_ceil(256));
            self.run(&QuantiseRows {}, &[self.stored(x), codes, scales], &[n_quads as u32], grid)?;
            // When another thread was faster its codes serve as well.
            let _ = known.set(made);
        }
        Ok(known.get().expect("just set").bound())
    }

    /// Rows of f16, with room for [`padded_rows`].
    pub(crate) fn halves<'a>(&self, x: &'a Act) -> Result<Bound<'a>, TensorError> {
        let known = &x.handle::<GpuAct>().halves;
        if known.get().is_none() {
            let made = self.take(padded_rows(x.rows()) * x.cols() * 2)?;
            let n_quads = x.rows() * x.cols() / 4;
            let grid = Grid::flat(n_quads.div_ceil(256));
            self.run(&HalfRows {}, &[self.floats(x), made.bound()], &[n_quads as u32], grid)?;
            // When another thread was faster its rows serve as well.
            let _ = known.set(made);
        }
        Ok(known.get().expect("just set").bound())
    }
}
