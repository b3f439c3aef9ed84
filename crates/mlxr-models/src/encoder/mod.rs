//! The encoder: one forward for BERT and its descendants, over flat rows of whole texts.

mod config;
mod weights;

use std::sync::Arc;

use mlxr_tensor::{Act, Activation, AttentionSpec, Backend, Batch, Gate, KvCache, Rope, Weight};

use crate::decoder::Linear;

pub use config::{
    EncoderConfig, EncoderDefaults, EncoderMlp, NormPlace, Positions, ScoreConfig, read_activation,
};
pub use weights::{expect_layers, load, load_layers};

/// A layer norm.
pub struct LayerNorm {
    pub weight: Weight,
    pub bias: Option<Weight>,
}

/// The encoder's weights.
pub struct Encoder {
    pub embed: Weight,
    /// Vectors of positions, and the row of the first one.
    pub positions: Option<(Weight, u32)>,
    /// Vectors of the first and the second text of a pair.
    pub types: Option<Weight>,
    pub embed_norm: LayerNorm,
    pub layers: Vec<Layer>,
    pub norm: Option<LayerNorm>,
    pub norm_eps: f32,
}

/// Attention and feed-forward with their norms: either those before or those after.
pub struct Layer {
    pub attn_norm: Option<LayerNorm>,
    pub attn: Attention,
    pub attn_out_norm: Option<LayerNorm>,
    pub mlp_norm: Option<LayerNorm>,
    pub mlp: Mlp,
    pub out_norm: Option<LayerNorm>,
}

/// Attention of every row over its whole text.
pub struct Attention {
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    pub rope: Option<Arc<Rope>>,
    pub head_dim: usize,
    pub spec: AttentionSpec,
}

/// The feed-forward part.
pub enum Mlp {
    Plain { up: Linear, down: Linear, kind: Activation },
    Gated { gate: Linear, up: Linear, down: Linear, kind: Gate },
}

/// What every part of a forward needs besides its own weights.
pub struct Cx<'a> {
    pub backend: &'a dyn Backend,
    pub batch: &'a Batch,
    pub norm_eps: f32,
}

impl Cx<'_> {
    /// The stream `x: [rows, hidden]` through layers; `kv` is scratch of one of them.
    pub fn through(&self, layers: &[Layer], mut x: Act, kv: &mut KvCache) -> Act {
        for layer in layers {
            let norms = (layer.attn_norm.as_ref(), layer.attn_out_norm.as_ref());
            x = self.sublayer(x, norms.0, norms.1, |x| layer.attn.forward(self, kv, x));
            let norms = (layer.mlp_norm.as_ref(), layer.out_norm.as_ref());
            x = self.sublayer(x, norms.0, norms.1, |x| layer.mlp.forward(self, x));
        }
        x
    }

    /// Rows of a table, which is looked up as that of the tokens is.
    pub fn look_up(&self, table: &Weight, rows: Vec<u32>) -> Act {
        let mut batch = Batch::new();
        batch.tokens = rows;
        self.backend.embed(table, &batch, 1.0)
    }

    pub fn linear(&self, x: &Act, layer: &Linear) -> Act {
        self.backend.linear(x, &layer.weight, layer.bias.as_ref())
    }

    fn linear_each<const N: usize>(&self, x: &Act, layers: [&Linear; N]) -> [Act; N] {
        let layers = layers.map(|layer| (&layer.weight, layer.bias.as_ref()));
        self.backend.linear_each(x, &layers).try_into().expect("one activation per layer")
    }

    pub fn norm(&self, x: Act, norm: Option<&LayerNorm>) -> Act {
        match norm {
            Some(norm) => self.backend.layer_norm(&x, &norm.weight, norm.bias.as_ref(), self.norm_eps),
            None => x,
        }
    }

    /// A sublayer on the stream `x`: `after(x + sublayer(before(x)))`.
    fn sublayer(
        &self,
        mut x: Act,
        before: Option<&LayerNorm>,
        after: Option<&LayerNorm>,
        sublayer: impl FnOnce(&Act) -> Act,
    ) -> Act {
        let normed = before.map(|n| self.backend.layer_norm(&x, &n.weight, n.bias.as_ref(), self.norm_eps));
        let out = sublayer(normed.as_ref().unwrap_or(&x));
        self.backend.add(&mut x, &out, 1.0);
        self.norm(x, after)
    }
}

impl Encoder {
    /// The last hidden state of `batch.output_rows`: `[n_output_rows, hidden]`. Every span is a whole text. `types` has
    /// one entry per row, or none where all are of the first kind. `kv` is scratch of one layer.
    pub fn forward(&self, backend: &dyn Backend, batch: &Batch, types: &[u32], kv: &mut KvCache) -> Act {
        let cx = Cx { backend, batch, norm_eps: self.norm_eps };
        let x = cx.through(&self.layers, self.embed(&cx, types), kv); // [rows, hidden]
        let x = backend.gather_rows(&x, &batch.output_rows);
        cx.norm(x, self.norm.as_ref())
    }

    /// Vectors of tokens, positions and kinds together, normalised.
    fn embed(&self, cx: &Cx<'_>, types: &[u32]) -> Act {
        let mut x = cx.backend.embed(&self.embed, cx.batch, 1.0);
        let mut look_up = |table, rows| cx.backend.add(&mut x, &cx.look_up(table, rows), 1.0);
        if let Some((table, first)) = &self.positions {
            look_up(table, cx.batch.positions.iter().map(|position| position + first).collect());
        }
        if let Some(table) = &self.types {
            look_up(table, if types.is_empty() { vec![0; cx.batch.n_rows()] } else { types.to_vec() });
        }
        cx.norm(x, Some(&self.embed_norm))
    }
}

impl Attention {
    /// `x: [rows, hidden]`, returns the same shape.
    fn forward(&self, cx: &Cx<'_>, kv: &mut KvCache, x: &Act) -> Act {
        let Cx { backend, batch, .. } = *cx;
        let [mut q, mut k, v] = cx.linear_each(x, [&self.q, &self.k, &self.v]); // [rows, n_heads * head_dim]
        if let Some(rope) = &self.rope {
            backend.rope(&mut q, self.head_dim, rope, batch);
            backend.rope(&mut k, self.head_dim, rope, batch);
        }
        // One layer's keys and values are not needed once it is done: all layers use the same scratch.
        backend.store_kv(kv, 0, &k, &v, batch);
        let attn = backend.attention(&q, kv, 0, batch, &self.spec);
        cx.linear(&attn, &self.o)
    }
}

impl Mlp {
    /// `x: [rows, hidden]`, returns the same shape.
    fn forward(&self, cx: &Cx<'_>, x: &Act) -> Act {
        match self {
            Mlp::Plain { up, down, kind } => {
                let mut h = cx.linear(x, up); // [rows, intermediate]
                cx.backend.activate(&mut h, *kind);
                cx.linear(&h, down)
            }
            Mlp::Gated { gate, up, down, kind } => {
                let [gate, up] = cx.linear_each(x, [gate, up]);
                cx.linear(&cx.backend.gated(&gate, &up, *kind), down)
            }
        }
    }
}
