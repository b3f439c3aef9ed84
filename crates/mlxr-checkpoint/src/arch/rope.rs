//! RoPE factors that GGUF keeps as tensors, told in the words of config.json.

use mlxr_tensor::HostTensor;
use serde_json::{Map, Value, json};

/// Factors a model computes with, one per rotated pair.
fn factors(tensor: &HostTensor) -> Option<Vec<f64>> {
    Some(tensor.to_f32().ok()?.into_iter().map(f64::from).collect())
}

/// Puts `rope_scaling` into a config made from GGUF metadata, from the factor tensors of the file.
///
/// `tensor` finds canonical tensors. Factors that no known formula explains stay what they are: tensors.
pub(crate) fn fill_scaling<'a>(
    config: &mut Map<String, Value>,
    tensor: impl Fn(&str) -> Option<&'a HostTensor>,
    attention_factor: Option<f64>,
) {
    let of = |name: &str| tensor(name).and_then(factors);
    if let (Some(short), Some(long)) = (of("rope_factors.short"), of("rope_factors.long")) {
        let short: Vec<f64> = short.into_iter().map(super::hparams::shortest).collect();
        let long: Vec<f64> = long.into_iter().map(super::hparams::shortest).collect();
        let mut scaling = json!({
            "rope_type": "longrope", "type": "longrope", "short_factor": short, "long_factor": long,
        });
        if let Some(factor) = attention_factor {
            scaling["attention_factor"] = json!(super::hparams::shortest(factor));
        }
        config.insert("rope_scaling".to_owned(), scaling);
        return;
    }
    let theta = config.get("rope_theta").and_then(Value::as_f64).unwrap_or(10_000.0);
    if let Some(factors) = of("rope_factors.llama3")
        && let Some(scaling) = Llama3::fit(&factors, theta)
    {
        config.insert("rope_scaling".to_owned(), scaling.to_json());
    }
}

/// The Llama 3 rule: long waves slow down by `factor`, short ones stay, those between are blended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Llama3 {
    pub factor: f64,
    pub low_freq_factor: f64,
    pub high_freq_factor: f64,
    pub original_context: f64,
}

impl Llama3 {
    /// The rule in a config's `rope_scaling`.
    pub fn from_json(scaling: &Map<String, Value>) -> Option<Self> {
        let float = |key: &str| scaling.get(key).and_then(Value::as_f64);
        Some(Self {
            factor: float("factor")?,
            low_freq_factor: float("low_freq_factor")?,
            high_freq_factor: float("high_freq_factor")?,
            original_context: float("original_max_position_embeddings")?,
        })
    }

    fn to_json(self) -> Value {
        json!({
            "rope_type": "llama3",
            "factor": self.factor,
            "low_freq_factor": self.low_freq_factor,
            "high_freq_factor": self.high_freq_factor,
            "original_max_position_embeddings": self.original_context as u64,
        })
    }

    /// The factor of each of `n` rotated pairs.
    pub fn factors(self, n: usize, theta: f64) -> Vec<f64> {
        let span = self.high_freq_factor - self.low_freq_factor;
        (0..n)
            .map(|i| {
                let turns = self.original_context / wavelength(i, n, theta);
                if turns > self.high_freq_factor {
                    1.0
                } else if turns < self.low_freq_factor {
                    self.factor
                } else {
                    let smooth = (turns - self.low_freq_factor) / span;
                    1.0 / ((1.0 - smooth) / self.factor + smooth)
                }
            })
            .collect()
    }

    /// The rule that gives these factors.
    ///
    /// Only the ratios of context, low and high factor matter to the rule; the usual numbers are tried first.
    fn fit(factors: &[f64], theta: f64) -> Option<Self> {
        const TOLERANCE: f64 = 1e-4;
        const USUAL: [(f64, f64); 2] = [(1.0, 4.0), (1.0, 32.0)];
        let n = factors.len();
        let factor = super::hparams::shortest(factors.iter().copied().fold(1.0, f64::max));
        let explains = |rule: &Self| {
            rule.factors(n, theta).iter().zip(factors).all(|(a, b)| (a - b).abs() <= TOLERANCE * b.abs())
        };
        let contexts = (5..20).map(|log2| f64::from(1u32 << log2));
        let usual = contexts.flat_map(|original_context| {
            USUAL.map(|(low_freq_factor, high_freq_factor)| Self {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            })
        });
        usual.into_iter().find(explains).or_else(|| Self::solve(factors, theta, factor).filter(explains))
    }

    /// From two blended factors: the blend is linear in the turns a wave makes within the original context.
    fn solve(factors: &[f64], theta: f64, factor: f64) -> Option<Self> {
        let n = factors.len();
        let blended: Vec<(f64, f64)> = factors
            .iter()
            .enumerate()
            .filter(|&(_, &f)| f > 1.0 + 1e-6 && f < factor * (1.0 - 1e-6))
            .map(|(i, &f)| (1.0 / wavelength(i, n, theta), (1.0 / f - 1.0 / factor) / (1.0 - 1.0 / factor)))
            .collect();
        let (&(x0, y0), &(x1, y1)) = blended.first().zip(blended.last()).filter(|(a, b)| a != b)?;
        // blend = context / span * x - low / span
        let slope = (y1 - y0) / (x1 - x0);
        let intercept = slope * x0 - y0;
        // A whole number of tokens, and the low factor near 1 that goes with it.
        let original_context = (slope / intercept).round();
        let low_freq_factor = original_context * intercept / slope;
        (intercept > 0.0 && original_context >= 1.0).then_some(Self {
            factor,
            low_freq_factor,
            high_freq_factor: low_freq_factor * (1.0 + 1.0 / intercept),
            original_context,
        })
    }
}

/// Positions in one turn of pair `i` of `n`.
fn wavelength(i: usize, n: usize, theta: f64) -> f64 {
    2.0 * std::f64::consts::PI * theta.powf(i as f64 / n as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rule: Llama3, n: usize, theta: f64) {
        let stored: Vec<f64> = rule.factors(n, theta).iter().map(|&f| f64::from(f as f32)).collect();
        let found = Llama3::fit(&stored, theta).unwrap();
        for (a, b) in found.factors(n, theta).iter().zip(&stored) {
            assert!((a - b).abs() < 1e-4 * b, "{a} {b}");
        }
    }

    #[test]
    fn the_rule_is_recovered_from_its_factors() {
        let usual =
            Llama3 { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192.0 };
        let stored: Vec<f64> = usual.factors(64, 500_000.0).iter().map(|&f| f64::from(f as f32)).collect();
        assert_eq!(Llama3::fit(&stored, 500_000.0), Some(usual));
        check(Llama3 { low_freq_factor: 1.5, high_freq_factor: 6.0, ..usual }, 64, 500_000.0);
        check(Llama3 { original_context: 64.0, ..usual }, 8, 500_000.0);
    }

    #[test]
    fn factors_of_another_kind_are_left_alone() {
        assert_eq!(Llama3::fit(&[1.0, 3.0, 2.0, 5.0], 10_000.0), None);
    }
}
