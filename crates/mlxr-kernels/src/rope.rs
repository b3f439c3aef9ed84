//! Rotary position embedding (RoFormer, arXiv 2104.09864).

use std::sync::{Arc, Mutex, PoisonError};

use mlxr_tensor::{Batch, Rope, RopePairing};

use crate::kernels::Kernels;

/// Sines and cosines of a batch's positions, for each rope its layers use.
#[derive(Default)]
struct Tables(Mutex<Vec<Arc<Angles>>>);

/// Sines and cosines of a rope for the rows of a batch.
pub(crate) struct Angles {
    inv_freq: Vec<f32>,
    magnitude: f32,
    /// `[rows, rotary_dim / 2]`
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// Those of `rope` for `batch`, made by the first layer that asks.
pub(crate) fn angles(rope: &Rope, batch: &Batch) -> Arc<Angles> {
    let tables = batch.device_cache().get_or_init(Tables::default);
    let mut tables = tables.0.lock().unwrap_or_else(PoisonError::into_inner);
    let same = |t: &&Arc<Angles>| {
        t.magnitude.to_bits() == rope.magnitude.to_bits()
            && t.inv_freq.iter().map(|f| f.to_bits()).eq(rope.inv_freq.iter().map(|f| f.to_bits()))
    };
    if let Some(found) = tables.iter().find(same) {
        return Arc::clone(found);
    }
    let n = batch.n_rows() * rope.inv_freq.len();
    let (mut cos, mut sin) = (Vec::with_capacity(n), Vec::with_capacity(n));
    for &position in &batch.positions {
        for &inv_freq in &rope.inv_freq {
            // The angle is rounded to f32 as the reference implementations do; its sine and cosine are exact.
            let angle = f64::from(position as f32 * inv_freq);
            cos.push(angle.cos() as f32 * rope.magnitude);
            sin.push(angle.sin() as f32 * rope.magnitude);
        }
    }
    let made = Arc::new(Angles { inv_freq: rope.inv_freq.clone(), magnitude: rope.magnitude, cos, sin });
    tables.push(Arc::clone(&made));
    made
}

impl Angles {
    /// Rotates each head of row `row` of the batch.
    ///
    /// # Panics
    /// When the rope has more columns than a head.
    pub(crate) fn rotate(
        &self,
        kernels: &Kernels,
        pairing: RopePairing,
        row: usize,
        head_dim: usize,
        values: &mut [f32],
    ) {
        let half = self.inv_freq.len();
        let angles = row * half..(row + 1) * half;
        let (cos, sin) = (&self.cos[angles.clone()], &self.sin[angles]);
        for head in values.chunks_exact_mut(head_dim) {
            let rotated = &mut head[..2 * half];
            match pairing {
                RopePairing::Half => kernels.rotate_half(rotated, cos, sin),
                RopePairing::Interleaved => kernels.rotate_pairs(rotated, cos, sin),
            }
        }
    }
}
