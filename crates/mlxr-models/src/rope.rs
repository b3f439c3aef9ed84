//! Rotary position embedding: from config fields to the frequencies a backend applies.
//!
//! Every scaling method ends as one list of frequencies and one factor on sine and cosine, fixed when the model is
//! opened. Methods that depend on the length (dynamic NTK, LongRoPE) take the context length the model is opened
//! with: changing frequencies while a sequence grows would disagree with the keys already in the cache.
//!
//! Papers: RoPE 2104.09864, position interpolation 2306.15595, YaRN 2309.00071, LongRoPE 2402.13753.

use std::f64::consts::PI;

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
        "default" | "none" | "llama3" if factors.llama3.is_some() => {
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
