//! Which device computes which layers, and the keys and values that lie there with them.

use std::ops::Range;
use std::sync::Arc;

use mlxr_tensor::{Backend, BlockCopy, KvCache, KvSpec, TensorError};

/// Where a model computes: whole on one device, or its first layers on another.
///
/// Embeddings are looked up where the first layer is, logits come from where the last one is. Between the two the rows
/// of a step pass through the host once.
#[derive(Clone, Debug)]
pub struct Placement {
    first: Option<(Arc<dyn Backend>, usize)>,
    last: Arc<dyn Backend>,
}

impl Placement {
    /// All layers on one device.
    pub fn whole(backend: Arc<dyn Backend>) -> Placement {
        Placement { first: None, last: backend }
    }

    /// The first `n_layers` on another device.
    #[must_use]
    pub fn with_first(self, n_layers: usize, backend: Arc<dyn Backend>) -> Placement {
        Placement { first: (n_layers > 0).then_some((backend, n_layers)), ..self }
    }

    /// The device of the last layer.
    pub(crate) fn last(&self) -> &Arc<dyn Backend> {
        &self.last
    }

    /// The devices in order, with their layers of `n_layers`.
    pub(crate) fn stages(&self, n_layers: usize) -> Vec<(Arc<dyn Backend>, Range<usize>)> {
        let n_first = self.first.as_ref().map_or(0, |(_, n)| (*n).min(n_layers));
        let first = self.first.iter().map(|(backend, _)| (backend.clone(), 0..n_first));
        first.chain([(self.last.clone(), n_first..n_layers)]).collect()
    }
}

/// A model's KV arena: the same blocks on every device it computes on, each with that device's layers.
#[derive(Debug)]
pub struct ModelKv {
    pub(crate) parts: Vec<(Arc<dyn Backend>, KvCache)>,
}

impl ModelKv {
    /// Arenas for some layers each, sized like `spec`.
    ///
    /// # Errors
    /// As [`Backend::kv_cache`].
    pub(crate) fn new(
        spec: &KvSpec,
        layers: impl IntoIterator<Item = (Arc<dyn Backend>, Range<usize>)>,
    ) -> Result<ModelKv, TensorError> {
        let part = |(backend, layers): (Arc<dyn Backend>, Range<usize>)| {
            let kv = backend.kv_cache(&KvSpec { layers: spec.layers[layers].to_vec(), ..spec.clone() })?;
            Ok((backend, kv))
        };
        Ok(ModelKv { parts: layers.into_iter().map(part).collect::<Result<_, TensorError>>()? })
    }

    /// Copies whole blocks of all layers, in order.
    pub fn copy_blocks(&mut self, copies: &[BlockCopy]) {
        for (backend, kv) in &mut self.parts {
            backend.copy_blocks(kv, copies);
        }
    }

    /// Waits, and copies whole blocks of all layers out.
    ///
    /// # Errors
    /// As [`Backend::read_blocks`].
    pub fn read_blocks(&self, blocks: &[u32]) -> Result<SavedBlocks, TensorError> {
        let parts = self.parts.iter().map(|(backend, kv)| backend.read_blocks(kv, blocks));
        Ok(SavedBlocks { n_blocks: blocks.len(), parts: parts.collect::<Result<_, _>>()? })
    }

    /// Gives blocks the contents of as many saved ones, from the saved block `first` on.
    pub fn write_blocks(&mut self, blocks: &[u32], saved: &SavedBlocks, first: usize) {
        for ((backend, kv), bytes) in self.parts.iter_mut().zip(&saved.parts) {
            let per_block = bytes.len() / saved.n_blocks.max(1);
            backend.write_blocks(kv, blocks, &bytes[first * per_block..][..blocks.len() * per_block]);
        }
    }
}

/// Blocks that were copied out of an arena, each device's part as that device has it.
#[derive(Debug)]
pub struct SavedBlocks {
    n_blocks: usize,
    parts: Vec<Vec<u8>>,
}
