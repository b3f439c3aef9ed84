//! Products of few rows on the device's matrix units, where products may go that way (see [`crate::half`]): each weight is
//! read once, as it is stored.

use mlxr_tensor::{Act, TensorError};

use crate::backend::{GpuAct, GpuBackend, act};
use crate::bindings::Bound;
use crate::kernels::{FewShape, HalfTiles, MatmulFewCodes, MatmulFewFloats};
use crate::layout::Layout;
use crate::ops::Product;
use crate::recorder::Grid;

/// The most rows that go this way.
pub(crate) const MAX_ROWS: usize = 32;
/// Rows and columns of the device's matrices.
const MATRIX: usize = 16;
/// What columns of the input are a multiple of.
const K_TILE: usize = 64;

/// Rows from which this is faster than what keeps a row's result the same in any company. By measurements on an H200.
fn min_rows(layout: &Layout) -> usize {
    match layout {
        Layout::Codes(_) => 9,
        Layout::Floats(_) => 5,
    }
}

impl GpuBackend {
    /// Whether a product goes this way.
    pub(crate) fn is_few(&self, product: &Product<'_>) -> bool {
        let Product { weight, routing, n_rows, .. } = product;
        self.has_half_products
            && routing.is_none()
            && (min_rows(&weight.layout)..=MAX_ROWS).contains(n_rows)
            && weight.cols.is_multiple_of(K_TILE)
    }

    /// The product of `x` and a weight into `y`.
    pub(crate) fn few(&self, x: &Act, product: &Product<'_>, y: Bound<'_>) -> Result<(), TensorError> {
        let Product { weight, bias, n_rows, .. } = *product;
        let tiles = self.half_tiles(x)?;
        let bias = self.values_or_none(bias)?;
        let (n_tiles, n_split, n_ahead) = (4, 4, 2);
        let shape = FewShape {
            subgroup: self.subgroup(),
            n_tiles,
            n_split,
            k_tile: K_TILE as u32,
            n_ahead,
            is_ragged: !weight.cols.is_multiple_of(K_TILE * (n_split * n_ahead) as usize),
        };
        for part in &weight.parts {
            let params = product.params(part);
            let n_groups = part.n_rows.div_ceil(MATRIX * n_tiles as usize);
            let grid = Grid::tiles(n_groups, n_rows.div_ceil(MATRIX));
            let (codes, high, scales) = (part.codes.bound(), part.high.bound(), part.scales.bound());
            match weight.layout {
                Layout::Codes(layout) => {
                    let bound = [codes, high, scales, tiles, bias, y];
                    self.run(&MatmulFewCodes { layout, shape }, &bound, &params, grid)?;
                }
                Layout::Floats(layout) => {
                    let bound = [codes, scales, tiles, bias, y];
                    self.run(&MatmulFewFloats { layout, shape }, &bound, &params, grid)?;
                }
            }
        }
        Ok(())
    }

    /// An activation in f16, in the order in which the kernel reads it.
    fn half_tiles<'a>(&self, x: &'a Act) -> Result<Bound<'a>, TensorError> {
        let known = &x.handle::<GpuAct>().halves;
        if known.get().is_none() {
            let made = self.take(x.rows().next_multiple_of(MATRIX) * x.cols() * 2)?;
            let n_quads = x.rows() * x.cols() / 4;
            let params = [n_quads as u32, x.cols() as u32 / 4];
            self.run(&HalfTiles {}, &[act(x), made.bound()], &params, Grid::flat(n_quads.div_ceil(256)))?;
            // When another thread was faster its tiles serve as well.
            let _ = known.set(made);
        }
        Ok(known.get().expect("just set").bound())
    }
}

#[cfg(test)]
mod tests {
    use mlxr_tensor::conformance::data::{self, Noise};
    use mlxr_tensor::{Backend, DType, Format, HostTensor};

    use super::*;
    use crate::device::AdapterChoice;
    use crate::weight::GpuWeight;

    #[test]
    fn every_format_gives_what_the_other_kernels_give() {
        let Ok(backend) = GpuBackend::new(AdapterChoice::BestOrSoftware) else { return };
        let backend = backend.with_half_products(true);
        if !backend.has_half_products {
            eprintln!("skipped: no matrix units");
            return;
        }
        let mut noise = Noise::new(7);
        for format in data::formats() {
            // Whole and ragged; the others would take long to compile.
            let is_plain = matches!(format, Format::Plain(DType::F16 | DType::Q4_0));
            let n_shapes = if is_plain { 3 } else { 1 };
            for (n_out, cols, n_rows) in
                [(85, 1280, 16), (64, 1024, 7), (33, 2048, 29)].into_iter().take(n_shapes)
            {
                let tensor = data::tensor(format, &[n_out, cols], &mut noise);
                let Ok(weight) = GpuWeight::new(backend.gpu(), backend.buffers(), &tensor) else { continue };
                let bias = HostTensor::from_f32("bias", &[n_out], &noise.values(n_out)).unwrap();
                let bias = backend.upload(&bias).unwrap();
                let x = backend.act(n_rows, cols, &noise.values(n_rows * cols));
                let product = Product { weight: &weight, bias: Some(&bias), routing: None, n_rows };
                let n = n_rows * n_out;
                let (ours, theirs) = (backend.take(n * 4).unwrap(), backend.take(n * 4).unwrap());
                backend.few(&x, &product, ours.bound()).unwrap();
                backend.product(&x, &product, theirs.bound()).unwrap();
                let is_right = backend.are_alike(ours.bound(), theirs.bound(), n).unwrap();
                assert!(is_right, "{} {n_out}x{cols}, {n_rows} rows", format.name());
            }
        }
    }
}
