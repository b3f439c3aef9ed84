//! Products of few rows, which are the same bits for any number of them.

use bytemuck::{Pod, Zeroable};
use mlxr_tensor::{Act, TensorError, Weight};

use crate::acts::GpuAct;
use crate::backend::{GpuBackend, with};
use crate::bindings::Bound;
use crate::buffers::Pooled;
use crate::experts::Choices;
use crate::kernels::{MatvecCodes, MatvecFloats, MatvecShape, PadRows};
use crate::layout::{Codes, FLOATS_CHUNK, Floats, Layout};
use crate::recorder::Grid;
use crate::weight::{GpuWeight, Numbered, Part};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct MatvecParams {
    n_chunks: u32,
    n_groups: u32,
    pub(crate) n_out: u32,
    n_rows: u32,
    y_stride: u32,
    y_start: u32,
    has_bias: u32,
    choices_per_row: u32,
    first_out: u32,
    group: u32,
    x_cols: f32,
    x_eps: f32,
}

/// A product: which rows of the result come from which rows of the input.
pub(crate) struct Product<'a> {
    pub(crate) weight: &'a GpuWeight,
    pub(crate) bias: Option<&'a Weight>,
    /// Expert of each row of the result, and rows of the result per row of the input.
    pub(crate) routing: Option<(Choices<'a>, usize)>,
    pub(crate) n_rows: usize,
}

impl Product<'_> {
    /// What the kernels are told of one part of the weight.
    pub(crate) fn params(&self, part: &Part, input: &Input<'_>) -> MatvecParams {
        let Product { weight, bias, routing, n_rows } = *self;
        MatvecParams {
            n_chunks: weight.cols.div_ceil(weight.layout.chunk()) as u32,
            n_groups: weight.layout.groups(weight.cols) as u32,
            n_out: if routing.is_some() { weight.n_out } else { part.n_rows } as u32,
            n_rows: n_rows as u32,
            y_stride: weight.n_out as u32,
            y_start: part.first_row as u32,
            has_bias: bias.is_some().into(),
            choices_per_row: routing.map_or(1, |(_, n)| n as u32),
            first_out: part.first_row as u32,
            group: weight.layout.group(weight.cols),
            x_cols: weight.cols as f32,
            x_eps: input.unscaled.map_or(0.0, |(_, eps)| eps),
        }
    }
}

/// The input of a product.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    pub(crate) form: Form<'a>,
    /// Squares and epsilon of the norm by which it is still to be scaled.
    pub(crate) unscaled: Option<(Bound<'a>, f32)>,
}

impl<'a> Input<'a> {
    pub(crate) fn is_unscaled(&self) -> bool {
        self.unscaled.is_some()
    }

    /// What is bound behind a product's result.
    pub(crate) fn squares(&self) -> Option<Bound<'a>> {
        self.unscaled.map(|(squares, _)| squares)
    }
}

/// The form in which a weight's layout meets an input.
#[derive(Clone, Copy)]
pub(crate) enum Form<'a> {
    Codes(Codes, [Bound<'a>; 2]),
    Floats(Floats, Bound<'a>),
}

/// One part of a product.
#[derive(Clone, Copy)]
pub(crate) struct Matvec<'a> {
    pub(crate) input: Input<'a>,
    pub(crate) product: &'a Product<'a>,
    pub(crate) params: MatvecParams,
    pub(crate) shape: MatvecShape,
}

/// Rows of x that a workgroup meets. What does not divide evenly is computed and thrown away.
pub(crate) fn row_tile(n_rows: usize) -> u32 {
    match n_rows {
        0..=1 => 1,
        2 => 2,
        3..=4 => 4,
        5..=8 => 8,
        _ => 16,
    }
}

impl GpuBackend {
    /// An activation with its rows filled up to whole chunks of floats.
    fn padded(&self, x: &Act) -> Result<Pooled, TensorError> {
        let (rows, cols) = (x.rows(), x.cols());
        let stride = cols.next_multiple_of(FLOATS_CHUNK);
        let n = rows * stride;
        let padded = self.take(n * 4)?;
        let params = [n as u32, cols as u32, stride as u32];
        self.run(&PadRows {}, &[self.floats(x), padded.bound()], &params, Grid::flat(n.div_ceil(256)))?;
        Ok(padded)
    }

    /// An activation of whole chunks as a weight of some layout meets it.
    pub(crate) fn input<'a>(&self, x: &'a Act, layout: &Layout) -> Result<Input<'a>, TensorError> {
        let handle = x.handle::<GpuAct>();
        let form = match *layout {
            Layout::Codes(layout) => Form::Codes(layout, self.codes(x)?),
            Layout::Floats(layout) => Form::Floats(layout, self.stored(x)),
        };
        Ok(Input { form, unscaled: handle.unscaled() })
    }

    /// One product of `x` into `y`.
    pub(crate) fn product(&self, x: &Act, product: &Product<'_>, y: Bound<'_>) -> Result<(), TensorError> {
        let Product { weight, routing, n_rows, .. } = *product;
        let n_tile = match routing {
            None => row_tile(n_rows),
            Some((Choices::Each(_), _)) => 1,
            Some((Choices::Tiles { tile, .. }, _)) => tile,
        };
        let size = [weight.n_out, weight.cols.div_ceil(weight.layout.chunk())].map(|n| n as u32);
        let padded;
        let input = match weight.layout {
            Layout::Floats(layout) if !x.cols().is_multiple_of(FLOATS_CHUNK) => {
                padded = self.padded(x)?;
                Input { form: Form::Floats(layout, padded.bound()), unscaled: None }
            }
            layout => self.input(x, &layout)?,
        };
        let usual = MatvecShape::new(self.subgroup(), &weight.layout, size, n_tile, routing.is_some());
        let usual = MatvecShape { is_unscaled: input.is_unscaled(), ..usual };
        for part in &weight.parts {
            let planes = [&part.codes, &part.high, &part.scales];
            let matvec = Matvec { input, product, params: product.params(part, &input), shape: usual };
            let shape = self.tuned(&matvec, planes)?;
            self.matvec(&Matvec { shape, ..matvec }, planes.map(Numbered::bound), y)?;
        }
        Ok(())
    }

    /// One dispatch of a product.
    pub(crate) fn matvec(
        &self,
        matvec: &Matvec<'_>,
        [codes, high, scales]: [Bound<'_>; 3],
        y: Bound<'_>,
    ) -> Result<(), TensorError> {
        let Matvec { input, product, params, shape } = *matvec;
        let n_groups = (params.n_out as usize).div_ceil((shape.n_sets * shape.n_out) as usize);
        let bias = self.values_or_none(product.bias)?;
        let (routing, n_tiles) = match product.routing {
            None => (self.none(), product.n_rows.div_ceil(shape.n_rows as usize)),
            Some((Choices::Each(experts), _)) => (experts, product.n_rows),
            Some((Choices::Tiles { tiles, n_tiles, .. }, _)) => (tiles, n_tiles),
        };
        let grid = Grid::tiles(n_groups, n_tiles);
        match input.form {
            Form::Codes(layout, [x_codes, x_scales]) => {
                let bound = [codes, high, scales, x_codes, x_scales, bias, routing, y];
                self.run(&MatvecCodes { layout, shape }, &with(&bound, input.squares()), &params, grid)
            }
            Form::Floats(layout, x) => {
                let bound = [codes, scales, x, bias, routing, y];
                self.run(&MatvecFloats { layout, shape }, &with(&bound, input.squares()), &params, grid)
            }
        }
    }
}
