//! Rotary position embedding: from config fields to the frequencies a backend applies.
//!
//! Every scaling method ends as one list of frequencies and one factor on sine and cosine, fixed when the model is
//! opened. Methods that depend on the length (dynamic NTK, LongRoPE) take the context length the model is opened
//! with: changing frequencies while a sequence grows would disagree with the keys already in the cache.
//!
//! Papers: RoPE 2104.09864, position interpolation 2306.15595, YaRN 2309.00071, LongRoPE 2402.13753.

use std::f64::consts::PI;

use mlxr_checkpoint::Checkpoint;
use mlxr_tensor::{Rope, RopePairing};
use serde_json::{Map, Value};

use crate::ModelError;
use crate::fields::Fields;

/// Frequency divisors stored as tensors (GGUF files have them instead of the settings they were computed from).
#[derive(Clone, Debug, Default)]
pub struct RopeFactors {
    pub short: Option<Vec<f32>>,
    pub long: Option<Vec<f32>>,
    pub llama3: Option<Vec<f32>>,
}

impl RopeFactors {
    /// Those a checkpoint carries.
    ///
    /// # Errors
    /// A tensor of them cannot be read.
    pub fn read(ckpt: &Checkpoint) -> Result<RopeFactors, ModelError> {
        let read = |name| ckpt.tensor(name).map(|tensor| tensor.to_f32()).transpose();
        Ok(RopeFactors {
            short: read("rope_factors.short")?,
            long: read("rope_factors.long")?,
            llama3: read("rope_factors.llama3")?,
        })
    }
}

/// One kind of rotary embedding of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    pub theta: f64,
    /// Columns of a head that rotate, from the first on.
    pub rotary_dim: usize,
    pub scaling: RopeScaling,
}

/// How frequencies are changed to reach beyond the first training length.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    /// All frequencies divided by `factor`.
    Linear {
        factor: f64,
    },
    /// A larger base when the model is opened beyond `n_ctx_original`.
    Dynamic {
        factor: f64,
        n_ctx_original: u32,
    },
    /// High frequencies kept, low ones divided by `factor`, a ramp between.
    Yarn {
        factor: f64,
        n_ctx_original: u32,
        beta_fast: f64,
        beta_slow: f64,
        /// Ends of the ramp rounded outwards to whole dimensions.
        truncate: bool,
        magnitude: f64,
    },
    /// One divisor per frequency; `long` when the model is opened beyond `n_ctx_original`.
    LongRope {
        short: Vec<f32>,
        long: Vec<f32>,
        n_ctx_original: u32,
        magnitude: f64,
    },
    /// Like YaRN with a ramp over wavelengths, without a magnitude.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        n_ctx_original: u32,
    },
    /// One divisor per frequency, whatever the length.
    Factors(Vec<f32>),
}

/// An object with rotary settings, and the field it is in.
pub type Settings<'a> = (&'a str, &'a Map<String, Value>);

/// What a family assumes about its rotary embedding where the config is silent.
#[derive(Clone, Copy, Debug)]
pub struct RopeDefaults {
    pub theta: f64,
    pub head_dim: usize,
    /// `max_position_embeddings`.
    pub n_ctx: u32,
    pub truncate: bool,
}

impl RopeConfig {
    /// Reads `settings`, which is `rope_scaling`, `rope_parameters` or one layer type's part of the latter;
    /// what it leaves out is looked for at the top of the config in `fields`.
    pub fn read(
        fields: &Fields<'_>,
        settings: Option<Settings<'_>>,
        defaults: &RopeDefaults,
    ) -> Result<RopeConfig, ModelError> {
        let empty = Map::new();
        let (name, map) = settings.unwrap_or(("rope_scaling", &empty));
        let inside = fields.inside(name, map);
        let theta = match (inside.positive("rope_theta")?, fields.positive("rope_theta")?) {
            (Some(theta), _) | (None, Some(theta)) => theta,
            (None, None) => defaults.theta,
        };
        let partial =
            match (inside.positive("partial_rotary_factor")?, fields.positive("partial_rotary_factor")?) {
                (Some(partial), _) | (None, Some(partial)) => partial,
                (None, None) => 1.0,
            };
        // As the reference truncates; the small step up undoes a ratio that is not exact in binary (96/128 is).
        let rotary_dim = (defaults.head_dim as f64 * partial + 1e-6) as usize;
        if rotary_dim == 0 || rotary_dim % 2 == 1 || rotary_dim > defaults.head_dim {
            let reason = format!("{rotary_dim} of {} head columns cannot rotate in pairs", defaults.head_dim);
            return Err(fields.refuse("partial_rotary_factor", reason));
        }
        let scaling = read_scaling(fields, &inside, rotary_dim / 2, defaults)?;
        inside.finish_all()?;
        Ok(RopeConfig { theta, rotary_dim, scaling })
    }

    /// The largest context these frequencies are meant for, given the config's `max_position_embeddings`.
    pub fn n_ctx_max(&self, n_ctx: u32) -> u32 {
        let scaled =
            |n: u32, factor: f64| n_ctx.max((f64::from(n) * factor).min(f64::from(u32::MAX / 2)) as u32);
        match &self.scaling {
            RopeScaling::Yarn { factor, n_ctx_original, .. }
            | RopeScaling::Dynamic { factor, n_ctx_original } => scaled(*n_ctx_original, *factor),
            // Some configs state the length before scaling, some after: nothing tells which.
            RopeScaling::Linear { factor } => scaled(n_ctx, *factor),
            _ => n_ctx,
        }
    }

    /// The embedding for a model opened with `n_ctx` tokens of context.
    pub fn rope(&self, pairing: RopePairing, n_ctx: u32) -> Rope {
        let (inv_freq, magnitude) = self.frequencies(n_ctx);
        Rope::new(pairing, inv_freq.into_iter().map(|f| f as f32).collect(), magnitude as f32)
    }

    fn frequencies(&self, n_ctx: u32) -> (Vec<f64>, f64) {
        let plain = self.plain(self.theta);
        let divided = |factors: &[f32]| plain.iter().zip(factors).map(|(f, &by)| f / f64::from(by)).collect();
        match &self.scaling {
            RopeScaling::None => (plain, 1.0),
            RopeScaling::Linear { factor } => (plain.iter().map(|f| f / factor).collect(), 1.0),
            RopeScaling::Dynamic { factor, n_ctx_original } => {
                let stretch = f64::from(n_ctx.max(*n_ctx_original)) / f64::from(*n_ctx_original);
                let dim = self.rotary_dim as f64;
                let base = self.theta * (factor * stretch - (factor - 1.0)).powf(dim / (dim - 2.0));
                (self.plain(base), 1.0)
            }
            RopeScaling::Yarn { factor, magnitude, .. } => {
                let blend = |(f, keep): (&f64, f64)| f / factor * (1.0 - keep) + f * keep;
                (plain.iter().zip(self.yarn_kept()).map(blend).collect(), *magnitude)
            }
            RopeScaling::LongRope { short, long, n_ctx_original, magnitude } => {
                (divided(if n_ctx > *n_ctx_original { long } else { short }), *magnitude)
            }
            RopeScaling::Llama3 { .. } => (plain.iter().map(|&f| self.llama3(f)).collect(), 1.0),
            RopeScaling::Factors(factors) => (divided(factors), 1.0),
        }
    }

    /// `base^(-2i / rotary_dim)`.
    fn plain(&self, base: f64) -> Vec<f64> {
        let dim = self.rotary_dim as f64;
        (0..self.rotary_dim / 2).map(|i| base.powf(-2.0 * i as f64 / dim)).collect()
    }

    /// For each frequency, how much of it YaRN keeps unscaled.
    fn yarn_kept(&self) -> Vec<f64> {
        let RopeScaling::Yarn { n_ctx_original, beta_fast, beta_slow, truncate, .. } = self.scaling else {
            return Vec::new();
        };
        let dim = self.rotary_dim as f64;
        // The dimension whose frequency turns `n` times over the original context.
        let dim_of_turns =
            |n: f64| dim * (f64::from(n_ctx_original) / (n * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
        let (mut low, mut high) = (dim_of_turns(beta_fast), dim_of_turns(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        (0..self.rotary_dim / 2).map(|i| 1.0 - ((i as f64 - low) / (high - low)).clamp(0.0, 1.0)).collect()
    }

    fn llama3(&self, frequency: f64) -> f64 {
        let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, n_ctx_original } = self.scaling
        else {
            return frequency;
        };
        let turns = f64::from(n_ctx_original) * frequency / (2.0 * PI);
        if turns < low_freq_factor {
            frequency / factor
        } else if turns > high_freq_factor {
            frequency
        } else {
            let keep = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
            (1.0 - keep) * frequency / factor + keep * frequency
        }
    }
}

fn read_scaling(
    fields: &Fields<'_>,
    inside: &Fields<'_>,
    n_pairs: usize,
    defaults: &RopeDefaults,
) -> Result<RopeScaling, ModelError> {
    let old = inside.text("type")?;
    let kind = inside.text("rope_type")?.or(old).unwrap_or("default");
    let factors = fields.rope_factors;
    match kind {
        "default" | "none" if factors.short.is_some() => longrope(fields, inside, n_pairs, defaults),
        "linear" | "dynamic" | "yarn" if factors.llama3.is_some() => {
            Err(inside.refuse("rope_type", "cannot be combined with frequency factors stored as a tensor"))
        }
        "default" | "none" if factors.llama3.is_some() => {
            let factors = factors.llama3.clone().unwrap_or_default();
            check_factors(inside, "rope_factors", &factors, n_pairs)?;
            Ok(RopeScaling::Factors(factors))
        }
        "default" | "none" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: required(inside, "factor")? }),
        "dynamic" if n_pairs < 2 => Err(inside.refuse("rope_type", "needs more than one rotated pair")),
        "dynamic" => Ok(RopeScaling::Dynamic {
            factor: required(inside, "factor")?,
            n_ctx_original: n_ctx_original(fields, inside, defaults)?,
        }),
        "yarn" => yarn(fields, inside, defaults),
        "longrope" | "su" => longrope(fields, inside, n_pairs, defaults),
        "llama3" => llama3(fields, inside, defaults),
        _ => {
            let field = if inside.is_stated("rope_type") { "rope_type" } else { "type" };
            Err(inside.refuse(field, "not one of default, linear, dynamic, yarn, longrope, llama3"))
        }
    }
}

fn yarn(
    fields: &Fields<'_>,
    inside: &Fields<'_>,
    defaults: &RopeDefaults,
) -> Result<RopeScaling, ModelError> {
    let n_ctx_original = n_ctx_original(fields, inside, defaults)?;
    let factor = match inside.positive("factor")? {
        Some(factor) => factor,
        None => f64::from(defaults.n_ctx) / f64::from(n_ctx_original),
    };
    let attention_factor = inside.positive("attention_factor")?;
    let by_length = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    let non_zero = |n: Option<f64>| n.filter(|&n| n != 0.0);
    let magnitude = match (non_zero(inside.number("mscale")?), non_zero(inside.number("mscale_all_dim")?)) {
        (Some(of), Some(by)) => by_length(of) / by_length(by),
        _ => by_length(1.0),
    };
    // GGUF's switch for the blend: only the full blend is YaRN.
    if inside.number("extrapolation_factor")?.is_some_and(|n| n != 1.0) {
        return Err(inside.refuse("extrapolation_factor", "only 1 is supported"));
    }
    inside.note("finetuned");
    Ok(RopeScaling::Yarn {
        factor,
        n_ctx_original,
        beta_fast: inside.positive("beta_fast")?.unwrap_or(32.0),
        beta_slow: inside.positive("beta_slow")?.unwrap_or(1.0),
        truncate: inside.flag("truncate")?.unwrap_or(defaults.truncate),
        magnitude: attention_factor.unwrap_or(magnitude),
    })
}

fn llama3(
    fields: &Fields<'_>,
    inside: &Fields<'_>,
    defaults: &RopeDefaults,
) -> Result<RopeScaling, ModelError> {
    let (low_freq_factor, high_freq_factor) =
        (required(inside, "low_freq_factor")?, required(inside, "high_freq_factor")?);
    if high_freq_factor <= low_freq_factor {
        return Err(inside.refuse("high_freq_factor", "must be above low_freq_factor"));
    }
    Ok(RopeScaling::Llama3 {
        factor: required(inside, "factor")?,
        low_freq_factor,
        high_freq_factor,
        n_ctx_original: n_ctx_original(fields, inside, defaults)?,
    })
}

fn longrope(
    fields: &Fields<'_>,
    inside: &Fields<'_>,
    n_pairs: usize,
    defaults: &RopeDefaults,
) -> Result<RopeScaling, ModelError> {
    let n_ctx_original = n_ctx_original(fields, inside, defaults)?;
    let factor = match inside.positive("factor")? {
        Some(factor) => factor,
        None => f64::from(defaults.n_ctx) / f64::from(n_ctx_original),
    };
    let by_length =
        if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / f64::from(n_ctx_original).ln()).sqrt() };
    let stored = fields.rope_factors;
    Ok(RopeScaling::LongRope {
        short: factors(inside, "short_factor", stored.short.as_ref(), n_pairs)?,
        long: factors(inside, "long_factor", stored.long.as_ref(), n_pairs)?,
        n_ctx_original,
        magnitude: inside.positive("attention_factor")?.unwrap_or(by_length),
    })
}

fn factors(
    inside: &Fields<'_>,
    name: &str,
    stored: Option<&Vec<f32>>,
    n_pairs: usize,
) -> Result<Vec<f32>, ModelError> {
    let listed = inside.numbers(name)?.map(|list| list.into_iter().map(|n| n as f32).collect());
    let Some(factors) = stored.cloned().or(listed) else {
        return Err(inside.missing(name, "longrope needs it"));
    };
    check_factors(inside, name, &factors, n_pairs)?;
    Ok(factors)
}

fn check_factors(inside: &Fields<'_>, name: &str, factors: &[f32], n_pairs: usize) -> Result<(), ModelError> {
    if factors.len() != n_pairs {
        return Err(inside.refuse(name, format!("has {} factors, expected {n_pairs}", factors.len())));
    }
    match factors.iter().find(|f| !f.is_finite() || **f <= 0.0) {
        Some(bad) => Err(inside.refuse(name, format!("factor {bad} is not above zero"))),
        None => Ok(()),
    }
}

fn required(inside: &Fields<'_>, name: &str) -> Result<f64, ModelError> {
    inside.positive(name)?.ok_or_else(|| inside.missing(name, "this rope type needs it"))
}

/// The length before scaling: stated at the top of the config (phi3) or inside, else `max_position_embeddings`.
fn n_ctx_original(
    fields: &Fields<'_>,
    inside: &Fields<'_>,
    defaults: &RopeDefaults,
) -> Result<u32, ModelError> {
    const NAME: &str = "original_max_position_embeddings";
    let within = inside.count(NAME)?;
    let (whose, n) = match fields.count(NAME)? {
        Some(n) => (fields, n),
        None => (inside, within.unwrap_or(defaults.n_ctx as usize)),
    };
    match u32::try_from(n) {
        Ok(n @ 2..) => Ok(n),
        _ => Err(whose.refuse(NAME, "must be at least 2 and fit 32 bits")),
    }
}

#[cfg(test)]
mod tests {
    use mlxr_tensor::RopePairing;
    use serde_json::{Value, json};

    use super::*;

    /// Expected values are from transformers 5.23.0 (`ROPE_INIT_FUNCTIONS`), head_dim 16, base 10000, 256 positions.
    fn check(settings: Value, n_ctx: u32, expected: [f32; 8], magnitude: f32) {
        let (empty, factors) = (Map::new(), RopeFactors::default());
        let fields = Fields::new("test", &empty, false, &factors);
        let defaults = RopeDefaults { theta: 10_000.0, head_dim: 16, n_ctx: 256, truncate: true };
        let settings = ("rope_scaling", settings.as_object().expect("an object"));
        let rope = RopeConfig::read(&fields, Some(settings), &defaults).expect("valid settings");
        let rope = rope.rope(RopePairing::Half, n_ctx);
        for (found, expected) in rope.inv_freq.iter().zip(expected) {
            assert!((found - expected).abs() < 2e-6 * expected, "{:?}, expected {expected}", rope.inv_freq);
        }
        assert!((rope.magnitude - magnitude).abs() < 1e-6, "{}", rope.magnitude);
    }

    #[test]
    fn linear_divides_every_frequency() {
        let expected = [0.25, 0.07905694, 0.025, 0.007905695, 0.0025, 0.0007905695, 0.00025, 7.905695e-05];
        check(json!({"type": "linear", "factor": 4.0}), 256, expected, 1.0);
    }

    #[test]
    fn dynamic_ntk_follows_the_context_the_model_is_opened_with() {
        let settings = json!({"rope_type": "dynamic", "factor": 2.0});
        let trained = [1.0, 0.3162278, 0.1, 0.03162278, 0.01, 0.003162278, 0.001, 0.0003162278];
        check(settings.clone(), 100, trained, 1.0);
        let longer =
            [1.0, 0.2702961, 0.07306, 0.01974783, 0.005337763, 0.001442777, 0.0003899769, 0.0001054093];
        check(settings, 512, longer, 1.0);
    }

    #[test]
    fn yarn_blends_between_whole_dimensions_unless_told_otherwise() {
        let plain = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
        let expected = [1.0, 0.2371708, 0.05, 0.007905695, 0.0025, 0.0007905695, 0.00025, 7.905695e-05];
        check(plain, 256, expected, 1.138_629_4);
        let untruncated = json!({
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "truncate": false,
            "mscale": 0.5, "mscale_all_dim": 1.0, "beta_fast": 8.0,
        });
        let expected = [1.0, 0.2124687, 0.0256644, 0.007905695, 0.0025, 0.0007905695, 0.00025, 7.905695e-05];
        check(untruncated, 256, expected, 0.939_124_4);
    }

    #[test]
    fn llama3_keeps_short_waves() {
        let settings = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        });
        let expected =
            [1.0, 0.2443846, 0.01304226, 0.003952847, 0.00125, 0.0003952847, 0.000125, 3.952847e-05];
        check(settings, 256, expected, 1.0);
    }

    #[test]
    fn longrope_takes_long_factors_beyond_the_original_context() {
        let settings = json!({
            "rope_type": "longrope", "original_max_position_embeddings": 64,
            "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
            "long_factor": [1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
        });
        let short =
            [1.0, 0.2874798, 0.08333334, 0.02432521, 0.007142857, 0.002108185, 0.000625, 0.0001860163];
        check(settings.clone(), 64, short, 1.154_700_5);
        let long =
            [0.6666667, 0.1581139, 0.03333334, 0.007905695, 0.002, 0.0005270463, 0.0001428571, 3.952847e-05];
        check(settings, 65, long, 1.154_700_5);
    }
}
