//! What the kernels need to know of a batch, uploaded once per batch.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use mlxr_tensor::{Batch, Rope, TensorError};

use crate::backend::GpuBackend;
use crate::buffers::{Buffers, Pooled};
use crate::device::Gpu;

/// The tables of a batch on the device.
pub(crate) struct BatchTables {
    /// Token ids.
    pub(crate) tokens: Pooled,
    /// `(position, last position of the span, start of the block table, slot)` per row.
    pub(crate) rows: Pooled,
    /// The block tables, one after the other.
    pub(crate) block_tables: Pooled,
    /// By row: the last position of its span.
    pub(crate) ends: Vec<u32>,
    /// What workgroups of `attention_tiles.wgsl` serve, by rows of each.
    tiles: Mutex<HashMap<usize, Arc<Pooled>>>,
    /// Cosines and sines by the address and content of the rope.
    angles: Mutex<HashMap<usize, Arc<Pooled>>>,
}

impl BatchTables {
    pub(crate) fn new(gpu: &Gpu, buffers: &Arc<Buffers>, batch: &Batch) -> Result<Self, TensorError> {
        let mut rows: Vec<[u32; 4]> = Vec::with_capacity(batch.n_rows());
        let mut ends = Vec::with_capacity(batch.n_rows());
        let mut block_tables: Vec<u32> = Vec::new();
        for span in &batch.spans {
            let start = block_tables.len() as u32;
            block_tables.extend_from_slice(&span.block_table);
            let end = span.rows.end.checked_sub(1).map_or(0, |last| batch.positions[last]);
            for row in span.rows.clone() {
                rows.push([batch.positions[row], end, start, batch.slots[row]]);
                ends.push(end);
            }
        }
        let take = |bytes: &[u8]| buffers.take_with(gpu, bytes);
        Ok(Self {
            tokens: take(bytemuck::cast_slice(&batch.tokens))?,
            rows: take(bytemuck::cast_slice(&rows))?,
            block_tables: take(bytemuck::cast_slice(&block_tables))?,
            ends,
            tiles: Mutex::default(),
            angles: Mutex::default(),
        })
    }

    /// First row and number of rows of each tile, uploaded.
    pub(crate) fn tiles(
        &self,
        backend: &GpuBackend,
        n_queries: usize,
        tiles: &[[u32; 2]],
    ) -> Result<Arc<Pooled>, TensorError> {
        let mut known = self.tiles.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.get(&n_queries) {
            return Ok(found.clone());
        }
        let made = backend.buffers().take_with(backend.gpu(), bytemuck::cast_slice(tiles))?;
        Ok(known.entry(n_queries).or_insert(Arc::new(made)).clone())
    }

    /// Cosine and sine of each row's angles, times the rope's magnitude: `[rows, n_pairs]`.
    pub(crate) fn angles(
        &self,
        backend: &GpuBackend,
        rope: &Rope,
        batch: &Batch,
    ) -> Result<Arc<Pooled>, TensorError> {
        let mut angles = self.angles.lock().unwrap_or_else(PoisonError::into_inner);
        // Ropes live as long as their model, so an address tells them apart.
        let key = std::ptr::from_ref(rope).addr();
        if let Some(found) = angles.get(&key) {
            return Ok(found.clone());
        }
        let mut table: Vec<[f32; 2]> = Vec::with_capacity(batch.n_rows() * rope.inv_freq.len());
        for &position in &batch.positions {
            table.extend(rope.inv_freq.iter().map(|&frequency| {
                // The angle is rounded, as in the makers' code; its functions are not.
                let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
                [cos, sin].map(|v| (v * f64::from(rope.magnitude)) as f32)
            }));
        }
        let table = Arc::new(backend.buffers().take_with(backend.gpu(), bytemuck::cast_slice(&table))?);
        angles.insert(key, table.clone());
        Ok(table)
    }
}
