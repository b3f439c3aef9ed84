//! The KV arena: per layer, blocks of `[keys then values, n_kv_heads, block_tokens, dim]` in the cache's type.

use std::ops::Range;

use half::{bf16, f16};
use mlxr_tensor::{Batch, BlockCopy, DType, KvSpec, TensorError, codec};

use crate::aligned::AlignedBytes;
use crate::disjoint::{Disjoint, row_grain};
use crate::kernels::{Kernels, UNIT_TOKENS};
use crate::pool::ThreadPool;

/// What stands behind a `KvCache` of this backend.
pub(crate) struct CpuKv {
    layers: Vec<LayerKv>,
}

/// One layer's blocks.
pub(crate) struct LayerKv {
    memory: AlignedBytes,
    pub(crate) layout: KvLayout,
}

/// Where things are in a layer's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KvLayout {
    pub(crate) dtype: DType,
    pub(crate) n_kv_heads: usize,
    pub(crate) block_tokens: usize,
    pub(crate) k_dim: usize,
    pub(crate) v_dim: usize,
    pub(crate) k_bytes: usize,
    pub(crate) v_bytes: usize,
    /// Whether keys lie in units of [`UNIT_TOKENS`] positions: in place of a position's row, of each of its parts (a
    /// scale, a byte of codes, a float) the unit's sixteen side by side. So a column is a vector of sixteen positions.
    pub(crate) has_units: bool,
}

impl KvLayout {
    fn block_bytes(&self) -> usize {
        self.n_kv_heads * self.block_tokens * (self.k_bytes + self.v_bytes)
    }

    /// The keys of one head in one block: `block_tokens` rows.
    pub(crate) fn keys(&self, block: usize, head: usize) -> Range<usize> {
        let n = self.block_tokens * self.k_bytes;
        let start = block * self.block_bytes() + head * n;
        start..start + n
    }

    /// The values of one head in one block: `block_tokens` rows.
    pub(crate) fn values(&self, block: usize, head: usize) -> Range<usize> {
        let n = self.block_tokens * self.v_bytes;
        let keys = self.n_kv_heads * self.block_tokens * self.k_bytes;
        let start = block * self.block_bytes() + keys + head * n;
        start..start + n
    }
}

impl CpuKv {
    pub(crate) fn new(spec: &KvSpec, kernels: &Kernels) -> Result<Self, TensorError> {
        if !KvSpec::DTYPES.contains(&spec.dtype) {
            let reason = format!("the KV cache holds {}", KvSpec::DTYPE_NAMES);
            return Err(TensorError::Quantise { dtype: spec.dtype, reason });
        }
        let Some(needed) = spec.n_bytes() else {
            let reason = format!("heads are not a multiple of {} wide", spec.dtype.block_len());
            return Err(TensorError::Quantise { dtype: spec.dtype, reason });
        };
        let layers = spec.layers.iter().map(|layer| {
            let (k_bytes, v_bytes) =
                spec.dtype.bytes_for(layer.k_dim).zip(spec.dtype.bytes_for(layer.v_dim))?;
            let layout = KvLayout {
                dtype: spec.dtype,
                n_kv_heads: layer.n_kv_heads,
                block_tokens: spec.block_tokens,
                k_dim: layer.k_dim,
                v_dim: layer.v_dim,
                k_bytes,
                v_bytes,
                has_units: kernels.attend.is_some()
                    && [spec.block_tokens, layer.k_dim, layer.v_dim]
                        .iter()
                        .all(|n| n.is_multiple_of(UNIT_TOKENS)),
            };
            let memory = AlignedBytes::mapped(layout.block_bytes().checked_mul(spec.n_blocks)?)?;
            Some(LayerKv { memory, layout })
        });
        let layers = layers.collect::<Option<Vec<_>>>().ok_or_else(|| TensorError::OutOfMemory {
            backend: "cpu",
            what: "the KV cache".to_owned(),
            needed_bytes: needed as u64,
        })?;
        Ok(Self { layers })
    }

    pub(crate) fn layer(&self, layer_idx: usize) -> &LayerKv {
        &self.layers[layer_idx]
    }

    pub(crate) fn copy_blocks(&mut self, copies: &[BlockCopy]) {
        for layer in &mut self.layers {
            let n = layer.layout.block_bytes();
            let memory = layer.memory.bytes_mut();
            for copy in copies {
                let from = copy.from as usize * n;
                memory.copy_within(from..from + n, copy.to as usize * n);
            }
        }
    }

    /// Blocks one after the other, each layer after layer.
    pub(crate) fn read_blocks(&self, blocks: &[u32]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for &block in blocks {
            for layer in &self.layers {
                let n = layer.layout.block_bytes();
                bytes.extend_from_slice(&layer.memory.bytes()[block as usize * n..][..n]);
            }
        }
        bytes
    }

    /// What [`Self::read_blocks`] gave.
    pub(crate) fn write_blocks(&mut self, blocks: &[u32], mut bytes: &[u8]) {
        for &block in blocks {
            for layer in &mut self.layers {
                let n = layer.layout.block_bytes();
                let (own, rest) = bytes.split_at(n);
                layer.memory.bytes_mut()[block as usize * n..][..n].copy_from_slice(own);
                bytes = rest;
            }
        }
        assert!(bytes.is_empty(), "{} bytes more than {} blocks take", bytes.len(), blocks.len());
    }

    /// Stores at the batch's slots the keys and values that `row_of` gives for each row; it is called once for a row.
    pub(crate) fn store<'a>(
        &mut self,
        kernels: &Kernels,
        pool: &ThreadPool,
        layer_idx: usize,
        row_of: impl Fn(usize) -> (&'a [f32], &'a [f32]) + Sync,
        batch: &Batch,
    ) {
        let LayerKv { memory, layout } = &mut self.layers[layer_idx];
        let n_blocks = memory.bytes().len() / layout.block_bytes().max(1);
        let memory = Disjoint::new(memory.bytes_mut());
        let store_row = |row: usize| {
            let slot = batch.slots[row] as usize;
            let (block, offset) = (slot / layout.block_tokens, slot % layout.block_tokens);
            assert!(block < n_blocks, "slot {slot} of {n_blocks} blocks");
            let (k, v) = row_of(row);
            let mut stored = vec![0; if layout.has_units { layout.k_bytes } else { 0 }];
            for (head, k) in k.chunks_exact(layout.k_dim).enumerate() {
                let keys = layout.keys(block, head).start;
                if layout.has_units {
                    encode(kernels, layout.dtype, k, &mut stored);
                    let unit = keys + offset / UNIT_TOKENS * UNIT_TOKENS * layout.k_bytes;
                    let unit = memory.at(unit..unit + UNIT_TOKENS * layout.k_bytes);
                    // SAFETY: slots of a batch differ, so no two rows write the same token's parts of the unit; one
                    // thread has the row.
                    unsafe { put_in_unit(layout.dtype, &stored, offset % UNIT_TOKENS, unit) };
                    continue;
                }
                let to = keys + offset * layout.k_bytes;
                // SAFETY: as above.
                let target = unsafe { memory.slice(to..to + layout.k_bytes) };
                encode(kernels, layout.dtype, k, target);
            }
            for (head, v) in v.chunks_exact(layout.v_dim).enumerate() {
                let to = layout.values(block, head).start + offset * layout.v_bytes;
                // SAFETY: as above; keys and values have ranges of their own.
                let target = unsafe { memory.slice(to..to + layout.v_bytes) };
                encode(kernels, layout.dtype, v, target);
            }
        };
        // Distinct slots are what makes the parallel writes sound, so they are checked, not trusted.
        let mut slots = batch.slots.clone();
        slots.sort_unstable();
        let distinct = slots.windows(2).all(|pair| pair[0] != pair[1]);
        if batch.n_rows() < 16 || !distinct {
            (0..batch.n_rows()).for_each(store_row);
        } else {
            let n_rows = batch.n_rows();
            pool.share(n_rows, row_grain(n_rows, pool), |rows| rows.for_each(&store_row));
        }
    }
}

impl LayerKv {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.memory.bytes()
    }
}

/// Puts the parts of a stored key at a position's places in a unit; see [`KvLayout::has_units`].
///
/// # Safety
/// The unit has [`UNIT_TOKENS`] times as many bytes, and nobody else uses those of the position.
unsafe fn put_in_unit(dtype: DType, key: &[u8], position: usize, unit: *mut u8) {
    /// # Safety
    /// As above; the parts are of `N` bytes and lie from byte `at` of the key on.
    unsafe fn put<const N: usize>(parts: &[u8], at: usize, position: usize, unit: *mut u8) {
        for (i, part) in parts.as_chunks::<N>().0.iter().enumerate() {
            // SAFETY: by the caller's promise.
            unsafe {
                unit.add((at + i * N) * UNIT_TOKENS + position * N).cast::<[u8; N]>().write_unaligned(*part);
            }
        }
    }
    // SAFETY: by the caller's promise.
    unsafe {
        match dtype {
            DType::F32 => put::<4>(key, 0, position, unit),
            DType::F16 | DType::BF16 => put::<2>(key, 0, position, unit),
            DType::F8E4M3 => put::<1>(key, 0, position, unit),
            // A scale of two bytes, then codes.
            DType::Q8_0 | DType::Q4_0 => {
                for (i, block) in key.chunks_exact(dtype.block_bytes()).enumerate() {
                    let at = i * dtype.block_bytes();
                    put::<2>(&block[..2], at, position, unit);
                    put::<1>(&block[2..], at + 2, position, unit);
                }
            }
            _ => unreachable!("CpuKv::new accepts these types only"),
        }
    }
}

/// Stores `values` as `dtype`.
pub(crate) fn encode(kernels: &Kernels, dtype: DType, values: &[f32], out: &mut [u8]) {
    match dtype {
        DType::F32 => {
            out.as_chunks_mut::<4>().0.iter_mut().zip(values).for_each(|(o, v)| *o = v.to_le_bytes())
        }
        DType::F16 => {
            kernels.narrow_f16(values, out);
            // The largest number in place of an infinity, which would be no number times the weight 0 of a row that does not
            // see it.
            for half in out.as_chunks_mut::<2>().0 {
                let bits = u16::from_le_bytes(*half);
                *half = (bits - u16::from(bits & 0x7fff == 0x7c00)).to_le_bytes();
            }
        }
        DType::BF16 => {
            let target = out.as_chunks_mut::<2>().0.iter_mut().zip(values);
            target.for_each(|(o, &v)| *o = bf16::from_f32(v).to_le_bytes());
        }
        DType::Q8_0 => {
            let blocks = out.as_chunks_mut::<34>().0.iter_mut().zip(values.as_chunks::<32>().0);
            blocks.for_each(|(block, values)| encode_q8_0(values, block));
        }
        DType::Q4_0 => {
            let blocks = out.as_chunks_mut::<18>().0.iter_mut().zip(values.as_chunks::<32>().0);
            blocks.for_each(|(block, values)| codec::encode_q4_0(values, None, block));
        }
        DType::F8E4M3 => out.iter_mut().zip(values).for_each(|(o, &v)| *o = codec::f32_to_e4m3(v)),
        _ => unreachable!("CpuKv::new accepts these types only"),
    }
}

/// One Q8_0 block: an f16 scale, then 32 codes.
fn encode_q8_0(values: &[f32; 32], block: &mut [u8; 34]) {
    let largest = values.iter().fold(0f32, |m, v| if m < v.abs() { v.abs() } else { m });
    let inverse = if largest == 0.0 { 0.0 } else { 127.0 / largest };
    block[..2].copy_from_slice(&f16::from_f32(largest / 127.0).to_le_bytes());
    for (byte, v) in block[2..].iter_mut().zip(values) {
        *byte = (v * inverse).round() as i8 as u8;
    }
}

/// Reads `out.len()` values stored as `dtype`.
pub(crate) fn decode(kernels: &Kernels, dtype: DType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        DType::F32 => {
            out.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(o, &b)| *o = f32::from_le_bytes(b));
        }
        DType::F16 => kernels.widen_f16(bytes, out),
        DType::BF16 => {
            let values = bytes.as_chunks::<2>().0;
            let to_f32 = |b: [u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16);
            out.iter_mut().zip(values).for_each(|(o, &b)| *o = to_f32(b));
        }
        DType::Q8_0 => {
            for (block, out) in bytes.as_chunks::<34>().0.iter().zip(out.as_chunks_mut::<32>().0) {
                let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
                out.iter_mut().zip(&block[2..]).for_each(|(o, &b)| *o = scale * f32::from(b as i8));
            }
        }
        DType::Q4_0 => {
            let blocks = bytes.as_chunks::<18>().0.iter().zip(out.as_chunks_mut::<32>().0);
            blocks.for_each(|(block, out)| codec::decode_q4_0(block, out));
        }
        DType::F8E4M3 => {
            const N: usize = 64;
            // Of a unit that is not full, less is stored than there is room for.
            let n = bytes.len().min(out.len());
            for (codes, out) in bytes[..n].chunks(N).zip(out[..n].chunks_mut(N)) {
                // Moved into place, a code is an f16 with an exponent that is 8 lower. What is stored is never NaN.
                let mut halves = [[0u8; 2]; N];
                for (half, &code) in halves.iter_mut().zip(codes) {
                    *half = (u16::from(code & 0x80) << 8 | u16::from(code & 0x7f) << 7).to_le_bytes();
                }
                kernels.widen_f16(halves[..codes.len()].as_flattened(), out);
                out.iter_mut().for_each(|v| *v *= 256.0);
            }
        }
        _ => unreachable!("CpuKv::new accepts these types only"),
    }
}

/// The keys of a unit, row by row and possibly fewer than it has places for, as [`KvLayout::has_units`] says.
#[cfg(test)]
pub(crate) fn turned(dtype: DType, rows: &[u8], row_bytes: usize) -> Vec<u8> {
    let mut unit = vec![0; UNIT_TOKENS * row_bytes];
    for (position, row) in rows.chunks_exact(row_bytes).enumerate() {
        // SAFETY: a unit has so many bytes, and nobody else uses them.
        unsafe { put_in_unit(dtype, row, position, unit.as_mut_ptr()) };
    }
    unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_f16_cannot_hold_is_stored_as_its_largest_number() {
        let values = [1e5, -1e5, f32::INFINITY, f32::NEG_INFINITY, 65504.0, 65519.0, 1.5, -0.0];
        let stored = [65504.0, -65504.0, 65504.0, -65504.0, 65504.0, 65504.0, 1.5, -0.0];
        for kernels in Kernels::available() {
            let mut bytes = [0; 16];
            encode(&kernels, DType::F16, &values, &mut bytes);
            let halves = bytes.as_chunks::<2>().0.iter().map(|half| f16::from_le_bytes(*half).to_f32());
            assert_eq!(halves.collect::<Vec<_>>(), stored, "{:?}", kernels.isa());
        }
    }
}
