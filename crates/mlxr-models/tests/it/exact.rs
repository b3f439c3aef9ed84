//! The CPU backend with every weight made f32 at upload: what a model computes before any rounding of activations.

use std::sync::Arc;

use mlxr_tensor::{
    Act, Activation, AttentionSpec, Backend, Batch, BlockCopy, Gate, HostTensor, KvCache, KvSpec, Rope,
    RouterSpec, Routing, TensorError, Weight,
};

/// Passes every op on; only what is uploaded changes.
#[derive(Debug)]
pub struct Exact(pub Arc<dyn Backend>);

fn dequantised(tensor: &HostTensor) -> Result<HostTensor, TensorError> {
    HostTensor::from_f32(tensor.name(), tensor.shape(), &tensor.to_f32()?)
}

impl Backend for Exact {
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn describe(&self) -> String {
        self.0.describe()
    }
    fn upload(&self, tensor: &HostTensor) -> Result<Weight, TensorError> {
        self.0.upload(&dequantised(tensor)?)
    }
    fn upload_experts(&self, experts: &[HostTensor]) -> Result<Weight, TensorError> {
        self.0.upload_experts(&experts.iter().map(dequantised).collect::<Result<Vec<_>, _>>()?)
    }
    fn act(&self, rows: usize, cols: usize, values: &[f32]) -> Act {
        self.0.act(rows, cols, values)
    }
    fn read(&self, x: &Act) -> Result<Vec<f32>, TensorError> {
        self.0.read(x)
    }
    fn kv_cache(&self, spec: &KvSpec) -> Result<KvCache, TensorError> {
        self.0.kv_cache(spec)
    }
    fn embed(&self, table: &Weight, batch: &Batch, scale: f32) -> Act {
        self.0.embed(table, batch, scale)
    }
    fn linear(&self, x: &Act, w: &Weight, bias: Option<&Weight>) -> Act {
        self.0.linear(x, w, bias)
    }
    fn gather_rows(&self, x: &Act, rows: &[u32]) -> Act {
        self.0.gather_rows(x, rows)
    }
    fn scatter_rows(&self, x: &mut Act, rows: &[u32], y: &Act) {
        self.0.scatter_rows(x, rows, y);
    }
    fn patches(&self, image: &Act, n_channels: usize, patch: usize) -> Act {
        self.0.patches(image, n_channels, patch)
    }
    fn rms_norm(&self, x: &Act, weight: &Weight, eps: f32) -> Act {
        self.0.rms_norm(x, weight, eps)
    }
    fn layer_norm(&self, x: &Act, weight: &Weight, bias: Option<&Weight>, eps: f32) -> Act {
        self.0.layer_norm(x, weight, bias, eps)
    }
    fn rms_norm_heads(&self, x: &mut Act, weight: &Weight, eps: f32) {
        self.0.rms_norm_heads(x, weight, eps);
    }
    fn add(&self, x: &mut Act, y: &Act, scale: f32) {
        self.0.add(x, y, scale);
    }
    fn scale(&self, x: &mut Act, factor: f32) {
        self.0.scale(x, factor);
    }
    fn softcap(&self, x: &mut Act, cap: f32) {
        self.0.softcap(x, cap);
    }
    fn gated(&self, gate: &Act, up: &Act, kind: Gate) -> Act {
        self.0.gated(gate, up, kind)
    }
    fn activate(&self, x: &mut Act, kind: Activation) {
        self.0.activate(x, kind);
    }
    fn rope(&self, x: &mut Act, head_dim: usize, rope: &Rope, batch: &Batch) {
        self.0.rope(x, head_dim, rope, batch);
    }
    fn store_kv(&self, kv: &mut KvCache, layer_idx: usize, k: &Act, v: &Act, batch: &Batch) {
        self.0.store_kv(kv, layer_idx, k, v, batch);
    }
    fn attention(&self, q: &Act, kv: &KvCache, layer_idx: usize, batch: &Batch, spec: &AttentionSpec) -> Act {
        self.0.attention(q, kv, layer_idx, batch, spec)
    }
    fn copy_blocks(&self, kv: &mut KvCache, copies: &[BlockCopy]) {
        self.0.copy_blocks(kv, copies);
    }
    fn read_blocks(&self, kv: &KvCache, blocks: &[u32]) -> Result<Vec<u8>, TensorError> {
        self.0.read_blocks(kv, blocks)
    }
    fn write_blocks(&self, kv: &mut KvCache, blocks: &[u32], bytes: &[u8]) {
        self.0.write_blocks(kv, blocks, bytes);
    }
    fn route(&self, logits: &Act, spec: &RouterSpec) -> Routing {
        self.0.route(logits, spec)
    }
    fn expert_linear(&self, x: &Act, experts: &Weight, bias: Option<&Weight>, routing: &Routing) -> Act {
        self.0.expert_linear(x, experts, bias, routing)
    }
    fn combine(&self, x: &Act, routing: &Routing) -> Act {
        self.0.combine(x, routing)
    }
    fn argmax(&self, x: &Act) -> Result<Vec<Option<u32>>, TensorError> {
        self.0.argmax(x)
    }
    fn largest(&self, x: &Act, n: usize) -> Result<Vec<Vec<(u32, f32)>>, TensorError> {
        self.0.largest(x, n)
    }
}
