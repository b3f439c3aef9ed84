//! Rotary position embedding (RoFormer, arXiv 2104.09864).

use std::sync::{Arc, Mutex, PoisonError};

use mlxr_tensor::{Batch, Rope, RopePairing};

use crate::disjoint::for_each_row;
use crate::kernels::Kernels;
use crate::pool::ThreadPool;

/// Sines and cosines of a batch's positions, for each rope its layers use.
#[derive(Default)]
struct Tables(Mutex<Vec<Arc<Table>>>);

struct Table {
    inv_freq: Vec<f32>,
    magnitude: f32,
    /// `[rows, rotary_dim / 2]`
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// The table of `rope` for `batch`, made by the first layer that asks.
fn table(rope: &Rope, batch: &Batch) -> Arc<Table> {
    let tables = batch.device_cache().get_or_init(Tables::default);
    let mut tables = tables.0.lock().unwrap_or_else(PoisonError::into_inner);
    let same = |t: &&Arc<Table>| {
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
    let made = Arc::new(Table { inv_freq: rope.inv_freq.clone(), magnitude: rope.magnitude, cos, sin });
    tables.push(Arc::clone(&made));
    made
}

/// Rotates each head of `x: [rows, n_heads * head_dim]` in place.
pub(crate) fn rope(
    kernels: &Kernels,
    pool: &ThreadPool,
    x: &mut [f32],
    head_dim: usize,
    rope: &Rope,
    batch: &Batch,
) {
    let (half, rotary_dim) = (rope.inv_freq.len(), rope.rotary_dim());
    assert!(rotary_dim <= head_dim, "{rotary_dim} rotated columns of {head_dim}");
    if batch.n_rows() == 0 || half == 0 {
        return;
    }
    let table = table(rope, batch);
    let row_len = x.len() / batch.n_rows();
    for_each_row(pool, x, row_len, |row, values| {
        let angles = row * half..(row + 1) * half;
        let (cos, sin) = (&table.cos[angles.clone()], &table.sin[angles]);
        for head in values.chunks_exact_mut(head_dim) {
            let rotated = &mut head[..rotary_dim];
            match rope.pairing {
                RopePairing::Half => kernels.rotate_half(rotated, cos, sin),
                RopePairing::Interleaved => kernels.rotate_pairs(rotated, cos, sin),
            }
        }
    });
}
