//! What a request may ask of sampling, and what it may not.

use std::str::FromStr;

use super::dry::{Dry, MAX_BREAKER_BYTES, MAX_BREAKERS};
use super::mirostat::Mirostat;
use super::penalties::Penalties;

/// The most logit biases of a request.
pub const MAX_LOGIT_BIASES: usize = 4096;

/// Bound on biases and penalties, so that no sum overflows.
const MAX_SHIFT: f32 = 1e6;

/// Temperatures below this are 0: dividing by less only overflows.
pub const MIN_TEMPERATURE: f32 = 1e-5;

/// How the next token is chosen. The defaults are llama.cpp's.
///
/// Order of events: `logit_bias` and `ignore_eos`, then the stages of `order`, then a draw from what is left. At
/// temperature 0 (without a range) only penalties and DRY of `order` run and the largest logit wins. With mirostat,
/// only penalties, DRY and temperature run before it: it is itself the truncation.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    pub temperature: f32,
    /// Dynamic temperature moves within this distance of `temperature`; 0 is off.
    pub dynatemp_range: f32,
    pub dynatemp_exponent: f32,
    /// 0 is off.
    pub top_k: usize,
    /// 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub min_p: f32,
    /// 1 is off.
    pub typical_p: f32,
    /// 0 is off.
    pub top_n_sigma: f32,
    /// 0 is off.
    pub xtc_probability: f32,
    /// Above 0.5 there cannot be two tokens to exclude from.
    pub xtc_threshold: f32,
    pub mirostat: Mirostat,
    pub penalties: Penalties,
    pub dry: Dry,
    /// Added to the raw logits; negative infinity forbids the token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Never choose an end-of-generation token.
    pub ignore_eos: bool,
    /// `None`: drawn when the request is accepted.
    pub seed: Option<u64>,
    pub order: Vec<Stage>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            dynatemp_range: 0.0,
            dynatemp_exponent: 1.0,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            typical_p: 1.0,
            top_n_sigma: 0.0,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            mirostat: Mirostat::Off,
            penalties: Penalties::default(),
            dry: Dry::default(),
            logit_bias: Vec::new(),
            ignore_eos: false,
            seed: None,
            order: Stage::DEFAULT_ORDER.to_vec(),
        }
    }
}

/// One link of the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Penalties,
    Dry,
    TopNSigma,
    TopK,
    Typical,
    TopP,
    MinP,
    Xtc,
    Temperature,
}

impl Stage {
    /// llama.cpp's order.
    pub const DEFAULT_ORDER: [Stage; 9] = [
        Stage::Penalties,
        Stage::Dry,
        Stage::TopNSigma,
        Stage::TopK,
        Stage::Typical,
        Stage::TopP,
        Stage::MinP,
        Stage::Xtc,
        Stage::Temperature,
    ];

    /// The name requests and command lines use.
    pub const fn name(self) -> &'static str {
        match self {
            Stage::Penalties => "penalties",
            Stage::Dry => "dry",
            Stage::TopNSigma => "top_n_sigma",
            Stage::TopK => "top_k",
            Stage::Typical => "typ_p",
            Stage::TopP => "top_p",
            Stage::MinP => "min_p",
            Stage::Xtc => "xtc",
            Stage::Temperature => "temperature",
        }
    }
}

impl FromStr for Stage {
    type Err = ParamError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let known = Self::DEFAULT_ORDER.into_iter().find(|stage| stage.name() == s);
        known.ok_or_else(|| ParamError::new("samplers", s, "the name of a sampler"))
    }
}

/// A sampling field that cannot be honoured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}, but must be {expected}")]
pub struct ParamError {
    /// The field as clients spell it.
    pub field: &'static str,
    pub value: String,
    pub expected: &'static str,
}

impl ParamError {
    pub(crate) fn new(field: &'static str, value: impl ToString, expected: &'static str) -> Self {
        Self { field, value: value.to_string(), expected }
    }
}

fn check<T: ToString>(
    ok: bool,
    field: &'static str,
    value: T,
    expected: &'static str,
) -> Result<(), ParamError> {
    if ok { Ok(()) } else { Err(ParamError::new(field, value, expected)) }
}

impl SamplingParams {
    /// Always the most likely token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// The model's own distribution: every sampler off, temperature 1.
    pub fn neutral() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..Self::default() }
    }

    /// Whether the largest logit wins, after penalties.
    pub fn is_greedy(&self) -> bool {
        self.temperature < MIN_TEMPERATURE && self.dynatemp_range == 0.0
    }

    /// Whether every field has a meaning.
    ///
    /// # Errors
    /// The first field that has none.
    pub fn validate(&self) -> Result<(), ParamError> {
        self.validate_chain()?;
        self.validate_penalties()?;
        self.validate_dry()?;
        if let Mirostat::V1 { tau, eta } | Mirostat::V2 { tau, eta } = self.mirostat {
            check(tau > 0.0 && tau.is_finite(), "mirostat_tau", tau, "above 0")?;
            check((0.0..=1.0).contains(&eta), "mirostat_eta", eta, "from 0 to 1")?;
        }
        for (i, stage) in self.order.iter().enumerate() {
            let is_repeated = self.order[..i].contains(stage);
            check(!is_repeated, "samplers", stage.name(), "named once")?;
        }
        check(
            self.logit_bias.len() <= MAX_LOGIT_BIASES,
            "logit_bias",
            format!("{} entries long", self.logit_bias.len()),
            "at most 4096 entries long",
        )?;
        for &(_, bias) in &self.logit_bias {
            let ok = bias == f32::NEG_INFINITY || bias.abs() <= MAX_SHIFT;
            check(ok, "logit_bias", bias, "from -1e6 to 1e6, or negative infinity")?;
        }
        Ok(())
    }

    fn validate_chain(&self) -> Result<(), ParamError> {
        let t = self.temperature;
        check(t >= 0.0 && t.is_finite(), "temperature", t, "0 or more")?;
        let range = self.dynatemp_range;
        check(range >= 0.0 && range.is_finite(), "dynatemp_range", range, "0 or more")?;
        let exponent = self.dynatemp_exponent;
        check(exponent >= 0.0 && exponent.is_finite(), "dynatemp_exponent", exponent, "0 or more")?;
        check(0.0 < self.top_p && self.top_p <= 1.0, "top_p", self.top_p, "above 0 and at most 1")?;
        check((0.0..=1.0).contains(&self.min_p), "min_p", self.min_p, "from 0 to 1")?;
        let typical = self.typical_p;
        check(0.0 < typical && typical <= 1.0, "typical_p", typical, "above 0 and at most 1")?;
        let n_sigma = self.top_n_sigma;
        check(n_sigma >= 0.0 && n_sigma.is_finite(), "top_n_sigma", n_sigma, "0 or more")?;
        let probability = self.xtc_probability;
        check((0.0..=1.0).contains(&probability), "xtc_probability", probability, "from 0 to 1")?;
        let threshold = self.xtc_threshold;
        check((0.0..=1.0).contains(&threshold), "xtc_threshold", threshold, "from 0 to 1")
    }

    fn validate_penalties(&self) -> Result<(), ParamError> {
        let Penalties { repeat, frequency, presence, .. } = self.penalties;
        let ok = repeat > 0.0 && (1.0 / MAX_SHIFT..=MAX_SHIFT).contains(&repeat);
        check(ok, "repeat_penalty", repeat, "above 0 and at most 1e6")?;
        check(frequency.abs() <= MAX_SHIFT, "frequency_penalty", frequency, "from -1e6 to 1e6")?;
        check(presence.abs() <= MAX_SHIFT, "presence_penalty", presence, "from -1e6 to 1e6")
    }

    fn validate_dry(&self) -> Result<(), ParamError> {
        let Dry { multiplier, base, breakers, .. } = &self.dry;
        check((0.0..=MAX_SHIFT).contains(multiplier), "dry_multiplier", multiplier, "from 0 to 1e6")?;
        check((1.0..=MAX_SHIFT).contains(base), "dry_base", base, "from 1 to 1e6")?;
        let count = format!("{} strings long", breakers.len());
        check(breakers.len() <= MAX_BREAKERS, "dry_sequence_breakers", count, "at most 64 strings long")?;
        for breaker in breakers {
            let ok = (1..=MAX_BREAKER_BYTES).contains(&breaker.len());
            let size = format!("a string of {} bytes", breaker.len());
            check(ok, "dry_sequence_breakers", size, "strings of 1 to 128 bytes")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_and_the_presets_are_valid() {
        for params in [SamplingParams::default(), SamplingParams::greedy(), SamplingParams::neutral()] {
            assert_eq!(params.validate(), Ok(()));
        }
    }

    #[test]
    fn a_bad_value_is_refused_by_the_name_of_its_field() {
        let check = |change: fn(&mut SamplingParams), field: &str| {
            let mut params = SamplingParams::default();
            change(&mut params);
            assert_eq!(params.validate().unwrap_err().field, field);
        };
        check(|p| p.temperature = -0.1, "temperature");
        check(|p| p.temperature = f32::NAN, "temperature");
        check(|p| p.temperature = f32::INFINITY, "temperature");
        check(|p| p.dynatemp_range = -1.0, "dynatemp_range");
        check(|p| p.dynatemp_exponent = f32::NAN, "dynatemp_exponent");
        check(|p| p.top_p = 0.0, "top_p");
        check(|p| p.top_p = 1.01, "top_p");
        check(|p| p.min_p = -0.01, "min_p");
        check(|p| p.typical_p = 0.0, "typical_p");
        check(|p| p.top_n_sigma = -1.0, "top_n_sigma");
        check(|p| p.xtc_probability = 2.0, "xtc_probability");
        check(|p| p.xtc_threshold = f32::NAN, "xtc_threshold");
        check(|p| p.mirostat = Mirostat::V2 { tau: 0.0, eta: 0.1 }, "mirostat_tau");
        check(|p| p.mirostat = Mirostat::V1 { tau: 5.0, eta: -1.0 }, "mirostat_eta");
        check(|p| p.penalties.repeat = 0.0, "repeat_penalty");
        check(|p| p.penalties.frequency = f32::NAN, "frequency_penalty");
        check(|p| p.penalties.presence = f32::INFINITY, "presence_penalty");
        check(|p| p.dry.multiplier = -1.0, "dry_multiplier");
        check(|p| p.dry.base = 0.5, "dry_base");
        check(|p| p.dry.breakers = vec![String::new()], "dry_sequence_breakers");
        check(|p| p.dry.breakers = vec!["x".to_owned(); 65], "dry_sequence_breakers");
        check(|p| p.logit_bias = vec![(0, f32::NAN)], "logit_bias");
        check(|p| p.logit_bias = vec![(0, 0.0); 4097], "logit_bias");
        check(|p| p.order = vec![Stage::TopK, Stage::TopK], "samplers");
    }

    #[test]
    fn the_error_says_value_and_range() {
        let params = SamplingParams { top_p: 1.5, ..SamplingParams::default() };
        assert_eq!(
            params.validate().unwrap_err().to_string(),
            "top_p is 1.5, but must be above 0 and at most 1"
        );
        assert_eq!("top_q".parse::<Stage>().unwrap_err().field, "samplers");
        assert_eq!("typ_p".parse(), Ok(Stage::Typical));
    }
}
