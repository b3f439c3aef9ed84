//! From a checkpoint's tensors to an encoder's weights.

use std::sync::Arc;

use mlxr_checkpoint::Checkpoint;
use mlxr_tensor::{AttentionSpec, Backend, Reach, Rope};

use super::{Attention, Encoder, EncoderConfig, EncoderMlp, Layer, LayerNorm, Mlp, NormPlace, Positions};
use crate::ModelError;
use crate::config::Bias;
use crate::upload::{Expected, Upload};

/// Checks every tensor against the config, then uploads; also returns the bytes the weights take.
pub fn load(
    model: &str,
    config: &EncoderConfig,
    ckpt: &Checkpoint,
    backend: &dyn Backend,
) -> Result<(Encoder, usize), ModelError> {
    expected(config).check(model, ckpt, |name| name.starts_with("dense."))?;
    let ropes =
        config.ropes.iter().map(|rope| Arc::new(rope.rope(ckpt.rope_pairing, config.n_ctx))).collect();
    let mut upload = Upload::new(model, ckpt, backend);
    let encoder = Loader { config, upload: &mut upload, prefix: "", ropes }.encoder()?;
    Ok((encoder, upload.n_bytes))
}

fn expected(config: &EncoderConfig) -> Expected {
    let mut expected = Expected::default();
    let hidden = config.hidden;
    expected.need("embed_tokens.weight", &[config.vocab, hidden]);
    if let Positions::Learned { n_rows, .. } = config.positions {
        expected.need("embed_positions.weight", &[n_rows, hidden]);
    }
    if config.n_types > 0 {
        expected.need("embed_types.weight", &[config.n_types, hidden]);
    }
    expect_norm(&mut expected, config, "embed_norm");
    if config.norms == NormPlace::Before {
        expect_norm(&mut expected, config, "norm");
    }
    expect_layers(&mut expected, config, "");
    if let Some(score) = config.score {
        if score.dense.is_some() {
            expected.need("cls.dense.weight", &[hidden, hidden]);
            expected.bias("cls.dense.bias".to_owned(), &[hidden], Bias::IfPresent);
            expected.bias("cls.norm.weight".to_owned(), &[hidden], Bias::IfPresent);
            expected.bias("cls.norm.bias".to_owned(), &[hidden], Bias::IfPresent);
        }
        expected.need("cls.out.weight", &[score.n_labels, hidden]);
        expected.bias("cls.out.bias".to_owned(), &[score.n_labels], Bias::IfPresent);
    }
    expected
}

fn expect_norm(expected: &mut Expected, config: &EncoderConfig, name: &str) {
    expected.need(format!("{name}.weight"), &[config.hidden]);
    expected.bias(format!("{name}.bias"), &[config.hidden], config.norm_bias);
}

/// The layers, whose tensors' names begin with `prefix`.
pub fn expect_layers(expected: &mut Expected, config: &EncoderConfig, prefix: &str) {
    let hidden = config.hidden;
    for i in 0..config.layers.len() {
        let layer = format!("{prefix}layers.{i}");
        for part in ["q", "k", "v", "o"] {
            expected.need(format!("{layer}.attn.{part}.weight"), &[hidden, hidden]);
            expected.bias(format!("{layer}.attn.{part}.bias"), &[hidden], config.attn_bias);
        }
        for (part, n_out, n_in) in mlp_parts(config) {
            expected.need(format!("{layer}.mlp.{part}.weight"), &[n_out, n_in]);
            expected.bias(format!("{layer}.mlp.{part}.bias"), &[n_out], config.mlp_bias);
        }
        let (before, after) = layer_norms(config, i);
        before.into_iter().chain(after).for_each(|p| expect_norm(expected, config, &format!("{layer}.{p}")));
    }
}

/// Uploads the layers that [`expect_layers`] names, of a tower without rotary positions.
pub fn load_layers(
    config: &EncoderConfig,
    upload: &mut Upload<'_>,
    prefix: &str,
) -> Result<Vec<Layer>, ModelError> {
    let mut loader = Loader { config, upload, prefix, ropes: Vec::new() };
    (0..config.layers.len()).map(|i| loader.layer(i)).collect()
}

fn mlp_parts(config: &EncoderConfig) -> Vec<(&'static str, usize, usize)> {
    let (hidden, intermediate) = (config.hidden, config.intermediate);
    let mut parts = vec![("up", intermediate, hidden), ("down", hidden, intermediate)];
    if matches!(config.mlp, EncoderMlp::Gated(_)) {
        parts.push(("gate", intermediate, hidden));
    }
    parts
}

/// The norms a layer has before and after its sublayers.
fn layer_norms(config: &EncoderConfig, layer_idx: usize) -> (Vec<&'static str>, Vec<&'static str>) {
    match config.norms {
        NormPlace::After => (vec![], vec!["attn_out_norm", "out_norm"]),
        NormPlace::Before if layer_idx == 0 => (vec!["mlp_norm"], vec![]),
        NormPlace::Before | NormPlace::BeforeAll => (vec!["attn_norm", "mlp_norm"], vec![]),
    }
}

struct Loader<'a, 'b> {
    config: &'a EncoderConfig,
    upload: &'a mut Upload<'b>,
    /// Before the names of the layers' tensors.
    prefix: &'a str,
    ropes: Vec<Arc<Rope>>,
}

impl Loader<'_, '_> {
    fn encoder(&mut self) -> Result<Encoder, ModelError> {
        let config = self.config;
        let positions = match config.positions {
            Positions::Learned { first, .. } => Some((self.upload.weight("embed_positions.weight")?, first)),
            Positions::Rotary => None,
        };
        Ok(Encoder {
            embed: self.upload.weight("embed_tokens.weight")?,
            positions,
            types: self.upload.weight_if(config.n_types > 0, "embed_types.weight")?,
            embed_norm: self.norm("embed_norm")?,
            layers: (0..config.layers.len()).map(|i| self.layer(i)).collect::<Result<_, _>>()?,
            norm: match config.norms {
                NormPlace::Before => Some(self.norm("norm")?),
                NormPlace::After | NormPlace::BeforeAll => None,
            },
            norm_eps: config.norm_eps,
        })
    }

    fn layer(&mut self, i: usize) -> Result<Layer, ModelError> {
        let (before, after) = layer_norms(self.config, i);
        let prefix = self.prefix;
        let mut norm = |part: &str| -> Result<Option<LayerNorm>, ModelError> {
            let has = before.contains(&part) || after.contains(&part);
            has.then(|| self.norm(&format!("{prefix}layers.{i}.{part}"))).transpose()
        };
        Ok(Layer {
            attn_norm: norm("attn_norm")?,
            attn_out_norm: norm("attn_out_norm")?,
            mlp_norm: norm("mlp_norm")?,
            out_norm: norm("out_norm")?,
            attn: self.attention(i)?,
            mlp: self.mlp(i)?,
        })
    }

    fn attention(&mut self, i: usize) -> Result<Attention, ModelError> {
        let config = self.config;
        let layer = &config.layers[i];
        let name = |part: &str| format!("{}layers.{i}.attn.{part}", self.prefix);
        let mut linear = |part: &str| self.upload.linear(&name(part), config.attn_bias);
        Ok(Attention {
            q: linear("q")?,
            k: linear("k")?,
            v: linear("v")?,
            o: linear("o")?,
            rope: layer.rope.map(|index| Arc::clone(&self.ropes[index])),
            head_dim: config.head_dim,
            spec: AttentionSpec {
                n_heads: config.n_heads,
                scale: (config.head_dim as f32).powf(-0.5),
                reach: Reach::Both,
                window: layer.window,
                softcap: None,
                sinks: None,
            },
        })
    }

    fn mlp(&mut self, i: usize) -> Result<Mlp, ModelError> {
        let config = self.config;
        let name = |part: &str| format!("{}layers.{i}.mlp.{part}", self.prefix);
        let mut linear = |part: &str| self.upload.linear(&name(part), config.mlp_bias);
        let (up, down) = (linear("up")?, linear("down")?);
        Ok(match config.mlp {
            EncoderMlp::Plain(kind) => Mlp::Plain { up, down, kind },
            EncoderMlp::Gated(kind) => Mlp::Gated { gate: linear("gate")?, up, down, kind },
        })
    }

    fn norm(&mut self, name: &str) -> Result<LayerNorm, ModelError> {
        let weight = self.upload.weight(&format!("{name}.weight"))?;
        Ok(LayerNorm { weight, bias: self.upload.bias(name, self.config.norm_bias)? })
    }
}
