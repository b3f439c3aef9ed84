//! From a checkpoint's tensors to a decoder's weights: every weight found, every tensor used.
//!
//! All names and shapes follow from the config, so they are checked in one pass before anything is uploaded.

use std::ops::Range;
use std::sync::Arc;

use mlxr_checkpoint::Checkpoint;
use mlxr_tensor::{AttentionSpec, Backend, HostTensor, Rope};

use crate::ModelError;
use crate::config::{DecoderConfig, LayerConfig, MlpConfig, QkNorm};
use crate::decoder::{Attention, Decoder, DenseMlp, ExpertMlp, Layer, Linear, Mlp, QkNormWeights, Stage};
use crate::upload::{Expected, Upload};
use crate::vision;

/// Endings of tensors that are computed, not learned: old files carry them, nothing needs them.
const COMPUTED: &[&str] = &["rotary_emb.inv_freq"];

impl Expected {
    fn of_decoder(config: &DecoderConfig, ckpt: &Checkpoint) -> Expected {
        let mut expected = Expected::default();
        expected.need("embed_tokens.weight", &[config.vocab, config.hidden]);
        expected.need("norm.weight", &[config.hidden]);
        if !config.tied {
            expected.need("lm_head.weight", &[config.vocab, config.hidden]);
        }
        for (i, layer) in config.layers.iter().enumerate() {
            expected.add_attention(config, i);
            expected.add_mlp(config, layer, ckpt, i);
        }
        expected
    }

    fn add_attention(&mut self, config: &DecoderConfig, i: usize) {
        let hidden = config.hidden;
        let (q_dim, kv_dim) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
        let name = |part: &str| format!("layers.{i}.{part}");
        for (part, n_out) in [("q", q_dim), ("k", kv_dim), ("v", kv_dim)] {
            self.need(name(&format!("attn.{part}.weight")), &[n_out, hidden]);
            self.bias(name(&format!("attn.{part}.bias")), &[n_out], config.qkv_bias);
        }
        self.need(name("attn.o.weight"), &[hidden, q_dim]);
        self.bias(name("attn.o.bias"), &[hidden], config.o_bias);
        let (q_norm, k_norm) = match config.qk_norm {
            QkNorm::None => (0, 0),
            QkNorm::PerHead => (config.head_dim, config.head_dim),
            QkNorm::FullRow => (q_dim, kv_dim),
        };
        if q_norm > 0 {
            self.need(name("attn.q_norm.weight"), &[q_norm]);
            self.need(name("attn.k_norm.weight"), &[k_norm]);
        }
        if config.sinks {
            self.need(name("attn.sinks"), &[config.n_heads]);
        }
        let norms = [
            (config.pre_norms, "attn_norm.weight"),
            (config.pre_norms, "mlp_norm.weight"),
            (config.post_norms, "post_attn_norm.weight"),
            (config.post_norms, "post_mlp_norm.weight"),
        ];
        for (_, part) in norms.into_iter().filter(|(has, _)| *has) {
            self.need(name(part), &[hidden]);
        }
    }

    fn add_mlp(&mut self, config: &DecoderConfig, layer: &LayerConfig, ckpt: &Checkpoint, i: usize) {
        let hidden = config.hidden;
        match layer.mlp {
            MlpConfig::Dense { intermediate } => {
                for (part, n_out, n_in) in mlp_parts(hidden, intermediate) {
                    self.need(format!("layers.{i}.mlp.{part}.weight"), &[n_out, n_in]);
                    self.bias(format!("layers.{i}.mlp.{part}.bias"), &[n_out], config.mlp_bias);
                }
            }
            MlpConfig::Experts { n_experts, intermediate, .. } => {
                self.need(format!("layers.{i}.moe.router.weight"), &[n_experts, hidden]);
                self.bias(format!("layers.{i}.moe.router.bias"), &[n_experts], config.mlp_bias);
                for (part, n_out, n_in) in mlp_parts(hidden, intermediate) {
                    let stack = format!("layers.{i}.moe.{part}");
                    if ckpt.tensor(&format!("{stack}.0.weight")).is_some() {
                        (0..n_experts).for_each(|e| self.need(format!("{stack}.{e}.weight"), &[n_out, n_in]));
                    } else {
                        self.need(format!("{stack}.weight"), &[n_experts, n_out, n_in]);
                    }
                    self.bias(format!("{stack}.bias"), &[n_experts, n_out], config.mlp_bias);
                }
            }
        }
    }
}

fn mlp_parts(hidden: usize, intermediate: usize) -> [(&'static str, usize, usize); 3] {
    [("gate", intermediate, hidden), ("up", intermediate, hidden), ("down", hidden, intermediate)]
}

/// Checks the tensors against the config and uploads them.
pub struct Loader<'a> {
    config: &'a DecoderConfig,
    upload: Upload<'a>,
    n_ctx: u32,
    /// Of the device that is loaded: it keeps what it derives from a rope there.
    ropes: Vec<Arc<Rope>>,
}

impl<'a> Loader<'a> {
    /// Checks names and shapes; `n_ctx` is the context length the model is opened with.
    pub fn new(
        model: &'a str,
        config: &'a DecoderConfig,
        ckpt: &'a Checkpoint,
        backend: &'a dyn Backend,
        n_ctx: u32,
    ) -> Result<Self, ModelError> {
        Expected::of_decoder(config, ckpt).check(model, ckpt, |name| {
            name.starts_with("rope_factors.")
                || name.starts_with("dense.")
                || (ckpt.vision.is_some() && vision::is_part(name))
                || (config.tied && name == "lm_head.weight")
                || COMPUTED.iter().any(|ending| name.ends_with(ending))
        })?;
        Ok(Self { config, upload: Upload::new(model, ckpt, backend), n_ctx, ropes: Vec::new() })
    }

    /// Uploads everything, to each device its layers; also returns the bytes the weights take.
    pub fn load(
        mut self,
        devices: &'a [(Arc<dyn Backend>, Range<usize>)],
    ) -> Result<(Decoder, usize), ModelError> {
        let embed = self.upload.weight("embed_tokens.weight")?;
        let stages = devices.iter().map(|(backend, layers)| self.stage(backend, layers.clone()));
        let stages = stages.collect::<Result<Vec<_>, _>>()?;
        let lm_head = match (self.config.tied, stages.len()) {
            (true, 1) => embed.clone(),
            (true, _) => self.upload.weight("embed_tokens.weight")?,
            (false, _) => self.upload.weight("lm_head.weight")?,
        };
        let norm = self.upload.weight("norm.weight")?;
        let config = self.config;
        let decoder = Decoder {
            embed,
            embed_scale: config.embed_scale,
            residual_scale: config.residual_scale,
            stages,
            norm,
            lm_head,
            logit_scale: config.logit_scale,
            logit_softcap: config.logit_softcap,
        };
        Ok((decoder, self.upload.n_bytes))
    }

    /// Some layers on one device, where what is uploaded next goes too.
    fn stage(&mut self, backend: &'a Arc<dyn Backend>, layers: Range<usize>) -> Result<Stage, ModelError> {
        let ropes = self.config.ropes.iter();
        let pairing = self.upload.ckpt.rope_pairing;
        self.ropes = ropes.map(|rope| Arc::new(rope.rope(pairing, self.n_ctx))).collect();
        self.upload.backend = &**backend;
        let layers = layers.map(|i| self.layer(i)).collect::<Result<_, _>>()?;
        Ok(Stage { backend: backend.clone(), layers })
    }

    fn layer(&mut self, i: usize) -> Result<Layer, ModelError> {
        let (pre, post) = (self.config.pre_norms, self.config.post_norms);
        Ok(Layer {
            attn_norm: self.upload.weight_if(pre, &format!("layers.{i}.attn_norm.weight"))?,
            attn: self.attention(i)?,
            post_attn_norm: self.upload.weight_if(post, &format!("layers.{i}.post_attn_norm.weight"))?,
            mlp_norm: self.upload.weight_if(pre, &format!("layers.{i}.mlp_norm.weight"))?,
            mlp: self.mlp(i)?,
            post_mlp_norm: self.upload.weight_if(post, &format!("layers.{i}.post_mlp_norm.weight"))?,
        })
    }

    fn attention(&mut self, i: usize) -> Result<Attention, ModelError> {
        let config = self.config;
        let layer = &config.layers[i];
        let (qkv, o) = (config.qkv_bias, config.o_bias);
        Ok(Attention {
            q: self.upload.linear(&format!("layers.{i}.attn.q"), qkv)?,
            k: self.upload.linear(&format!("layers.{i}.attn.k"), qkv)?,
            v: self.upload.linear(&format!("layers.{i}.attn.v"), qkv)?,
            o: self.upload.linear(&format!("layers.{i}.attn.o"), o)?,
            qk_norm: self.qk_norm(i)?,
            rope: layer.rope.map(|index| Arc::clone(&self.ropes[index])),
            spec: AttentionSpec {
                n_heads: config.n_heads,
                scale: config.attention_scale,
                reach: config.reach,
                window: layer.window,
                softcap: config.attention_softcap,
                sinks: self.upload.weight_if(config.sinks, &format!("layers.{i}.attn.sinks"))?,
            },
        })
    }

    fn qk_norm(&mut self, i: usize) -> Result<Option<QkNormWeights>, ModelError> {
        if self.config.qk_norm == QkNorm::None {
            return Ok(None);
        }
        let q = self.upload.weight(&format!("layers.{i}.attn.q_norm.weight"))?;
        let k = self.upload.weight(&format!("layers.{i}.attn.k_norm.weight"))?;
        Ok(Some(match self.config.qk_norm {
            QkNorm::FullRow => QkNormWeights::FullRow { q, k },
            _ => QkNormWeights::PerHead { q, k },
        }))
    }

    fn mlp(&mut self, i: usize) -> Result<Mlp, ModelError> {
        let (kind, bias) = (self.config.gate, self.config.mlp_bias);
        match self.config.layers[i].mlp {
            MlpConfig::Dense { .. } => Ok(Mlp::Dense(DenseMlp {
                gate: self.upload.linear(&format!("layers.{i}.mlp.gate"), bias)?,
                up: self.upload.linear(&format!("layers.{i}.mlp.up"), bias)?,
                down: self.upload.linear(&format!("layers.{i}.mlp.down"), bias)?,
                kind,
            })),
            MlpConfig::Experts { n_experts, router, .. } => Ok(Mlp::Experts(ExpertMlp {
                router: self.upload.linear(&format!("layers.{i}.moe.router"), bias)?,
                spec: router,
                gate: self.experts(&format!("layers.{i}.moe.gate"), n_experts)?,
                up: self.experts(&format!("layers.{i}.moe.up"), n_experts)?,
                down: self.experts(&format!("layers.{i}.moe.down"), n_experts)?,
                kind,
            })),
        }
    }

    fn experts(&mut self, name: &str, n_experts: usize) -> Result<Linear, ModelError> {
        let items: Vec<HostTensor> = match self.upload.ckpt.tensor(&format!("{name}.weight")) {
            Some(stack) => (0..n_experts).map(|e| stack.stack_item(e)).collect(),
            None => {
                let one = |e| self.upload.tensor(&format!("{name}.{e}.weight")).cloned();
                (0..n_experts).map(one).collect::<Result<_, _>>()?
            }
        };
        self.upload.n_bytes += items.iter().map(HostTensor::n_bytes).sum::<usize>();
        let weight = self.upload.backend.upload_experts(&items)?;
        Ok(Linear { weight, bias: self.upload.bias(name, self.config.mlp_bias)? })
    }
}
