//! The decoder: one forward for every family, over flat rows.

use std::ops::Deref;
use std::sync::Arc;

use mlxr_tensor::{
    Act, AttentionSpec, Backend, Batch, Gate, KvCache, LinearLayer, Rope, RouterSpec, TensorError, Weight,
};

use crate::placement::ModelKv;

/// What every part of a step needs besides its own weights.
#[derive(Clone, Copy)]
pub struct Cx<'a> {
    pub backend: &'a dyn Backend,
    pub batch: &'a Batch,
    pub norm_eps: f32,
    pub kv_layers: KvLayers,
}

/// Which part of the cache a layer's keys and values go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvLayers {
    /// Its own: later steps read them again.
    Own,
    /// One for all: every step holds whole sequences, so they are not needed once the layer is done.
    Shared,
}

impl Cx<'_> {
    fn linear(&self, x: &Act, layer: &Linear) -> Act {
        let (weight, bias) = layer.parts();
        self.backend.linear(x, weight, bias)
    }

    /// Several layers on one input.
    fn linear_each<const N: usize>(&self, x: &Act, layers: [&Linear; N]) -> [Act; N] {
        let layers = layers.map(Linear::parts);
        let acts = self.backend.linear_each(x, &layers);
        acts.try_into().expect("one activation per layer")
    }

    /// `x` through an optional norm.
    fn norm(&self, x: Act, weight: Option<&Weight>) -> Act {
        match weight {
            Some(weight) => self.backend.rms_norm(&x, weight, self.norm_eps),
            None => x,
        }
    }

    /// Each head of `x` through a norm.
    fn norm_heads(&self, mut x: Act, weight: &Weight) -> Act {
        self.backend.rms_norm_heads(&mut x, weight, self.norm_eps);
        x
    }
}

/// A linear layer.
pub struct Linear {
    pub weight: Weight,
    pub bias: Option<Weight>,
}

impl Linear {
    fn parts(&self) -> LinearLayer<'_> {
        (&self.weight, self.bias.as_ref())
    }
}

/// The decoder's weights.
pub struct Decoder {
    pub embed: Weight,
    pub embed_scale: f32,
    pub residual_scale: f32,
    /// The layers in order; there is always a stage.
    pub stages: Vec<Stage>,
    pub norm: Weight,
    pub lm_head: Weight,
    pub logit_scale: f32,
    pub logit_softcap: Option<f32>,
}

/// Layers on one device.
pub struct Stage {
    pub backend: Arc<dyn Backend>,
    pub layers: Vec<Layer>,
}

impl Decoder {
    /// Logits of `batch.output_rows`: `[n_output_rows, vocab]`, on the last stage's device.
    ///
    /// # Errors
    /// A device failed before the last one was reached.
    pub fn forward(&self, cx: Cx<'_>, kv: &mut ModelKv) -> Result<Act, TensorError> {
        self.stream(cx, kv, |cx, x| self.logits(cx, x))
    }

    /// The normalised last hidden state of `batch.output_rows`: `[n_output_rows, hidden]`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn hidden(&self, cx: Cx<'_>, kv: &mut ModelKv) -> Result<Act, TensorError> {
        self.stream(cx, kv, |cx, x| {
            cx.backend.rms_norm(&x, &self.norm, cx.norm_eps) // [n_output_rows, hidden]
        })
    }

    /// What `end` makes of the residual stream after the last layer: `[n_output_rows, hidden]`. `cx` is the first stage's.
    fn stream(
        &self,
        cx: Cx<'_>,
        kv: &mut ModelKv,
        end: impl FnOnce(&Cx<'_>, Act) -> Act,
    ) -> Result<Act, TensorError> {
        // Each device keeps what it derives from a batch with its own copy.
        let copies: Vec<Batch> = self.stages[1..].iter().map(|_| cx.batch.clone()).collect();
        let batches = std::iter::once(cx.batch).chain(&copies);
        let mut x = cx.backend.embed(&self.embed, cx.batch, self.embed_scale); // [rows, hidden]
        put_given(&cx, &mut x);
        let mut at = cx;
        for (i, ((stage, (_, kv)), batch)) in self.stages.iter().zip(&mut kv.parts).zip(batches).enumerate() {
            let next = Cx { backend: &*stage.backend, batch, ..cx };
            if i > 0 {
                x = next.backend.act(x.rows(), x.cols(), &at.backend.read(&x)?);
            }
            at = next;
            let is_last = i + 1 == self.stages.len();
            x = stage.forward(&at, kv, x, self.residual_scale, is_last);
        }
        Ok(end(&at, x))
    }

    fn logits(&self, cx: &Cx<'_>, x: Act) -> Act {
        if cx.batch.output_rows.is_empty() {
            return cx.backend.act(0, self.lm_head.shape()[0], &[]);
        }
        let x = cx.backend.rms_norm(&x, &self.norm, cx.norm_eps);
        let mut logits = cx.backend.linear(&x, &self.lm_head, None);
        if self.logit_scale != 1.0 {
            cx.backend.scale(&mut logits, self.logit_scale);
        }
        if let Some(cap) = self.logit_softcap {
            cx.backend.softcap(&mut logits, cap);
        }
        logits
    }
}

impl Stage {
    /// The residual stream `x: [rows, hidden]` through the layers. The last stage gives [`Batch::output_rows`] alone: once
    /// the last layer's keys and values are stored, nobody reads the others.
    fn forward(&self, cx: &Cx<'_>, kv: &mut KvCache, x: Act, residual_scale: f32, is_last: bool) -> Act {
        let mut residual = Residual { x, pending: None, scale: residual_scale };
        for (layer_idx, layer) in self.layers.iter().enumerate() {
            let ends = is_last && layer_idx + 1 == self.layers.len();
            let h = residual.normed(cx, layer.attn_norm.as_ref());
            let kv_layer = if cx.kv_layers == KvLayers::Own { layer_idx } else { 0 };
            if ends && cx.batch.output_rows.is_empty() {
                layer.attn.store(cx, kv, kv_layer, &h);
                return cx.backend.act(0, h.cols(), &[]);
            }
            let mut attn = layer.attn.attend(cx, kv, kv_layer, &h);
            if ends {
                keep_output_rows(cx, &mut attn);
                keep_output_rows(cx, &mut residual.x);
            }
            let h = Output::Linear(attn, &layer.attn.o);
            residual.push(h.normed(cx, layer.post_attn_norm.as_ref()));
            let h = residual.normed(cx, layer.mlp_norm.as_ref());
            let h = layer.mlp.forward(cx, &h);
            residual.push(h.normed(cx, layer.post_mlp_norm.as_ref()));
        }
        residual.finish(cx)
    }
}

/// Puts the rows that are given in the place of their tokens' embeddings.
fn put_given(cx: &Cx<'_>, x: &mut Act) {
    for given in &cx.batch.given {
        let (n_rows, cols) = (given.rows.len(), x.cols());
        let values = &given.values[given.first * cols..][..n_rows * cols];
        let rows: Vec<u32> = given.rows.clone().map(|row| row as u32).collect();
        cx.backend.scatter_rows(x, &rows, &cx.backend.act(n_rows, cols, values));
    }
}

/// Leaves out the rows whose results are not wanted; in decode all are.
fn keep_output_rows(cx: &Cx<'_>, x: &mut Act) {
    if cx.batch.output_rows.len() != x.rows() {
        *x = cx.backend.gather_rows(x, &cx.batch.output_rows);
    }
}

/// The residual stream: what has been summed, and the last sublayer's output still to be added, so that a backend
/// can compute its last product, add and normalise in one op.
struct Residual<'a> {
    x: Act,
    pending: Option<Output<'a>>,
    scale: f32,
}

/// What a sublayer adds to the residual stream.
enum Output<'a> {
    Whole(Act),
    /// A linear layer on this.
    Linear(Act, &'a Linear),
}

impl<'a> Output<'a> {
    fn settled(self, cx: &Cx<'_>) -> Act {
        match self {
            Output::Whole(x) => x,
            Output::Linear(x, layer) => cx.linear(&x, layer),
        }
    }

    /// Through an optional norm.
    fn normed(self, cx: &Cx<'_>, weight: Option<&Weight>) -> Output<'a> {
        match weight {
            Some(_) => Output::Whole(cx.norm(self.settled(cx), weight)),
            None => self,
        }
    }
}

impl<'a> Residual<'a> {
    fn push(&mut self, output: Output<'a>) {
        debug_assert!(self.pending.is_none(), "the stream is read between two sublayers");
        self.pending = Some(output);
    }

    /// The stream, through a norm where there is one.
    fn normed(&mut self, cx: &Cx<'_>, weight: Option<&Weight>) -> Stream<'_> {
        let Some(weight) = weight else {
            self.settle(cx);
            return Stream::Bare(&self.x);
        };
        Stream::Normed(match self.pending.take() {
            Some(Output::Whole(output)) => {
                cx.backend.add_rms_norm(&mut self.x, &output, self.scale, weight, cx.norm_eps)
            }
            Some(Output::Linear(x, layer)) => {
                let output = (&x, layer.parts());
                cx.backend.linear_add_rms_norm(&mut self.x, output, self.scale, weight, cx.norm_eps)
            }
            None => cx.backend.rms_norm(&self.x, weight, cx.norm_eps),
        })
    }

    fn finish(mut self, cx: &Cx<'_>) -> Act {
        self.settle(cx);
        self.x
    }

    fn settle(&mut self, cx: &Cx<'_>) {
        if let Some(output) = self.pending.take() {
            cx.backend.add(&mut self.x, &output.settled(cx), self.scale);
        }
    }
}

/// A sublayer's input.
enum Stream<'a> {
    Normed(Act),
    Bare(&'a Act),
}

impl Deref for Stream<'_> {
    type Target = Act;

    fn deref(&self) -> &Act {
        match self {
            Stream::Normed(x) => x,
            Stream::Bare(x) => x,
        }
    }
}

/// Attention and feed-forward with their norms.
pub struct Layer {
    pub attn_norm: Option<Weight>,
    pub attn: Attention,
    pub post_attn_norm: Option<Weight>,
    pub mlp_norm: Option<Weight>,
    pub mlp: Mlp,
    pub post_mlp_norm: Option<Weight>,
}

/// Grouped-query attention over the paged cache.
pub struct Attention {
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    pub qk_norm: Option<QkNormWeights>,
    pub rope: Option<Arc<Rope>>,
    pub spec: AttentionSpec,
}

/// Norms on q and k.
pub enum QkNormWeights {
    PerHead { q: Weight, k: Weight },
    FullRow { q: Weight, k: Weight },
}

impl Attention {
    /// Attention of `x: [rows, hidden]`, which [`Self::o`] is still to be applied to: `[rows, n_heads * head_dim]`.
    fn attend(&self, cx: &Cx<'_>, kv: &mut KvCache, layer_idx: usize, x: &Act) -> Act {
        let Cx { backend, batch, .. } = *cx;
        let [q, k, v] = cx.linear_each(x, [&self.q, &self.k, &self.v]); // [rows, n_heads or n_kv_heads * head_dim]
        let (q, k) = (self.norm_q(cx, q), self.norm_k(cx, k));
        match &self.rope {
            Some(rope) => backend.rotate_and_attend((q, k, &v), (rope, &self.spec), kv, layer_idx, batch),
            None => {
                backend.store_kv(kv, layer_idx, &k, &v, batch);
                backend.attention(&q, kv, layer_idx, batch, &self.spec)
            }
        }
    }

    /// Stores keys and values of `x: [rows, hidden]`.
    fn store(&self, cx: &Cx<'_>, kv: &mut KvCache, layer_idx: usize, x: &Act) {
        let [k, v] = cx.linear_each(x, [&self.k, &self.v]); // [rows, n_kv_heads * head_dim]
        let mut k = self.norm_k(cx, k);
        if let Some(rope) = &self.rope {
            let head_dim = kv.spec().layers[layer_idx].k_dim;
            cx.backend.rope(&mut k, head_dim, rope, cx.batch);
        }
        cx.backend.store_kv(kv, layer_idx, &k, &v, cx.batch);
    }

    fn norm_q(&self, cx: &Cx<'_>, q: Act) -> Act {
        match &self.qk_norm {
            None => q,
            Some(QkNormWeights::PerHead { q: norm, .. }) => cx.norm_heads(q, norm),
            Some(QkNormWeights::FullRow { q: norm, .. }) => cx.norm(q, Some(norm)),
        }
    }

    fn norm_k(&self, cx: &Cx<'_>, k: Act) -> Act {
        match &self.qk_norm {
            None => k,
            Some(QkNormWeights::PerHead { k: norm, .. }) => cx.norm_heads(k, norm),
            Some(QkNormWeights::FullRow { k: norm, .. }) => cx.norm(k, Some(norm)),
        }
    }
}

/// The feed-forward part.
pub enum Mlp {
    Dense(DenseMlp),
    Experts(ExpertMlp),
}

impl Mlp {
    /// `x: [rows, hidden]`, returns the same shape.
    fn forward(&self, cx: &Cx<'_>, x: &Act) -> Output<'_> {
        match self {
            Mlp::Dense(mlp) => mlp.forward(cx, x),
            Mlp::Experts(mlp) => Output::Whole(mlp.forward(cx, x)),
        }
    }
}

/// `down(activation(gate(x)) * up(x))`.
pub struct DenseMlp {
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
    pub kind: Gate,
}

impl DenseMlp {
    fn forward(&self, cx: &Cx<'_>, x: &Act) -> Output<'_> {
        let h = cx.backend.linear_gated(x, self.gate.parts(), self.up.parts(), self.kind); // [rows, intermediate]
        Output::Linear(h, &self.down)
    }
}

/// The gated MLP of a few experts per row, weighted by the router.
pub struct ExpertMlp {
    pub router: Linear,
    pub spec: RouterSpec,
    /// Stacks `[n_experts, out, in]`, biases `[n_experts, out]`.
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
    pub kind: Gate,
}

impl ExpertMlp {
    fn forward(&self, cx: &Cx<'_>, x: &Act) -> Act {
        let routing = cx.backend.route(&cx.linear(x, &self.router), &self.spec);
        let experts = |x: &Act, layer: &Linear| {
            cx.backend.expert_linear(x, &layer.weight, layer.bias.as_ref(), &routing)
        };
        let (gate, up) = (experts(x, &self.gate), experts(x, &self.up)); // [rows * top_k, intermediate]
        let h = experts(&cx.backend.gated(&gate, &up, self.kind), &self.down); // [rows * top_k, hidden]
        cx.backend.combine(&h, &routing)
    }
}
