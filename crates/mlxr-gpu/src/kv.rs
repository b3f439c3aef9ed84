//! The KV arena on the device.
//!
//! Elements come in octets of eight. Keys are `[block][kv_head][k_dim / 8][token]` octets, so that lanes with
//! neighbouring tokens read neighbouring memory; values are `[block][kv_head][token][v_dim / 8]` octets. The scales of
//! q8_0 and q4_0 are f32 in buffers of their own, one per 32 elements, in the same order.

use std::sync::Arc;

use mlxr_tensor::{DType, KvLayerSpec, KvSpec, TensorError};

use crate::buffers::Buffers;
use crate::device::{BACKEND, Gpu};
use crate::kernels::{KvShape, kv_type};
use crate::weight::Numbered;

/// The arena.
pub(crate) struct GpuKv {
    pub(crate) layers: Vec<GpuKvLayer>,
}

/// One layer's blocks.
pub(crate) struct GpuKvLayer {
    pub(crate) shape: KvShape,
    pub(crate) n_kv_heads: usize,
    pub(crate) keys: Region,
    pub(crate) values: Region,
    /// Of q8_0 and q4_0.
    pub(crate) scales: Option<(Region, Region)>,
}

/// A buffer of equal blocks.
pub(crate) struct Region {
    pub(crate) buffer: Numbered,
    /// 32-bit words of a block.
    pub(crate) block_words: usize,
}

impl GpuKv {
    /// # Errors
    /// [`TensorError::Quantise`] for a type or head size without kernels, [`TensorError::OutOfMemory`].
    pub(crate) fn new(gpu: &Gpu, buffers: &Arc<Buffers>, spec: &KvSpec) -> Result<Self, TensorError> {
        let refuse = |reason: String| TensorError::Quantise { dtype: spec.dtype, reason };
        let dtype = kv_type(spec.dtype)
            .ok_or_else(|| refuse(format!("the KV cache holds {}", KvSpec::DTYPE_NAMES)))?;
        let unit = if spec.dtype.is_quantised() { spec.dtype.block_len() } else { 8 };
        let limit = gpu.limits.max_storage_buffer_binding_size;
        let mut layers = Vec::with_capacity(spec.layers.len());
        for &KvLayerSpec { n_kv_heads, k_dim, v_dim } in &spec.layers {
            if !k_dim.is_multiple_of(unit) || !v_dim.is_multiple_of(unit) {
                return Err(refuse(format!("heads of {k_dim} and {v_dim} are no multiple of {unit}")));
            }
            let region = |elements: usize, bits: usize| -> Result<Region, TensorError> {
                let block_words = n_kv_heads * spec.block_tokens * elements * bits / 32;
                let n_bytes = (block_words * 4) as u64 * spec.n_blocks as u64;
                if n_bytes > limit {
                    let what = "one layer of the KV cache (the device binds less at a time)".to_owned();
                    return Err(TensorError::OutOfMemory { backend: BACKEND, what, needed_bytes: n_bytes });
                }
                let buffer = Numbered::empty(gpu, buffers, "KV cache", n_bytes)?;
                Ok(Region { buffer, block_words })
            };
            let bits = match spec.dtype {
                DType::F32 => 32,
                DType::Q8_0 | DType::F8E4M3 => 8,
                DType::Q4_0 => 4,
                _ => 16,
            };
            let scales = match spec.dtype {
                DType::Q8_0 | DType::Q4_0 => Some((region(k_dim / 32, 32)?, region(v_dim / 32, 32)?)),
                _ => None,
            };
            let (keys, values) = (region(k_dim, bits)?, region(v_dim, bits)?);
            let block_tokens = spec.block_tokens as u32;
            let shape = KvShape { dtype, k_dim: k_dim as u32, v_dim: v_dim as u32, block_tokens };
            layers.push(GpuKvLayer { shape, n_kv_heads, keys, values, scales });
        }
        Ok(Self { layers })
    }

    /// Bytes of one block of all layers.
    pub(crate) fn block_bytes(&self) -> usize {
        self.layers.iter().flat_map(GpuKvLayer::regions).map(|region| region.block_words * 4).sum()
    }

    /// Blocks that are copied out together: the device may have little room left for them.
    pub(crate) fn blocks_at_a_time(&self) -> usize {
        const AT_A_TIME: usize = 16 << 20;
        (AT_A_TIME / self.block_bytes().max(1)).max(1)
    }

    /// Calls `visit` with the buffer, place and length of every part of the blocks, block after block.
    pub(crate) fn each_region(&self, blocks: &[u32], mut visit: impl FnMut(&wgpu::Buffer, u64, u64)) {
        for &block in blocks {
            for region in self.layers.iter().flat_map(GpuKvLayer::regions) {
                let n_bytes = region.block_words as u64 * 4;
                visit(region.buffer.buffer(), u64::from(block) * n_bytes, n_bytes);
            }
        }
    }
}

impl GpuKvLayer {
    /// Every buffer of the layer.
    pub(crate) fn regions(&self) -> impl Iterator<Item = &Region> {
        let scales = self.scales.iter().flat_map(|(k, v)| [k, v]);
        [&self.keys, &self.values].into_iter().chain(scales)
    }
}
