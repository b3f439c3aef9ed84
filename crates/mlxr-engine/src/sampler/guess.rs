//! What a device can follow of the chain, to guess a token before the host chooses it.

use mlxr_tensor::{Guess, GuessStage, MAX_FORBIDDEN};

use super::params::MIN_TEMPERATURE;
use super::{Draw, Mirostat, Sampler, Stage};

impl Sampler {
    /// How the generated token `token_idx` can be guessed from the largest logits, if the chain is made of what a device
    /// knows.
    pub fn guess(&self, token_idx: u64) -> Option<Guess> {
        let params = &*self.params;
        if !self.leaves_logits() || self.forbidden.len() > MAX_FORBIDDEN {
            return None;
        }
        let forbidden = std::array::from_fn(|i| self.forbidden.get(i).copied());
        if params.is_greedy() {
            return Some(Guess { forbidden, ..Guess::BEST });
        }
        let begins_with_the_largest = match self.first_stage() {
            Some(Stage::TopK | Stage::MinP) => true,
            // The device's sum of exponentials is over all tokens.
            Some(Stage::TopP) => self.forbidden.is_empty(),
            _ => false,
        };
        if !begins_with_the_largest || params.mirostat != Mirostat::Off {
            return None;
        }
        let mut found = Vec::new();
        for &stage in &params.order {
            found.extend(self.guess_stage(stage)?);
        }
        if found.len() > Guess::BEST.stages.len() {
            return None;
        }
        let is_ranking = |stage: &GuessStage| matches!(stage, GuessStage::TopK(_) | GuessStage::TopP(_));
        Some(Guess {
            stages: std::array::from_fn(|i| found.get(i).copied()),
            is_by_id: !found.iter().any(is_ranking),
            u: self.rng.uniform(token_idx, Draw::Token) as f32,
            forbidden,
        })
    }

    /// A stage as a device knows it: `None` if it does not, nothing in it if the stage changes nothing.
    fn guess_stage(&self, stage: Stage) -> Option<Option<GuessStage>> {
        let params = &*self.params;
        let found = match stage {
            Stage::TopK if params.top_k > 0 => GuessStage::TopK(params.top_k.min(u32::MAX as usize) as u32),
            Stage::TopP if params.top_p < 1.0 => GuessStage::TopP(params.top_p),
            Stage::MinP if params.min_p > 0.0 => GuessStage::MinP(params.min_p),
            Stage::Temperature if params.dynatemp_range > 0.0 => return None,
            Stage::Temperature if params.temperature < MIN_TEMPERATURE => GuessStage::TopK(1),
            Stage::Temperature if params.temperature != 1.0 => GuessStage::Temperature(params.temperature),
            Stage::TopNSigma if params.top_n_sigma > 0.0 => return None,
            Stage::Typical if params.typical_p < 1.0 => return None,
            Stage::Xtc if params.xtc_probability > 0.0 => return None,
            // Penalties and DRY are off where logits are left as they are.
            _ => return Some(None),
        };
        Some(Some(found))
    }
}
