//! What a device can follow of the chain, to guess a token before the host chooses it.

use std::collections::BTreeMap;

use mlxr_tensor::{Guess, GuessStage, LogitChange};

use super::params::MIN_TEMPERATURE;
use super::{Draw, Mirostat, Need, Penalties, Sampler, Stage};

impl Sampler {
    /// Whether a device can guess tokens: the chain is made of what it knows.
    pub fn can_guess(&self) -> bool {
        self.need() < Need::Logits && self.guess_stages().is_some()
    }

    /// How the generated token `token_idx` can be guessed, if [`Self::can_guess`]. `history` may lack the last tokens, which
    /// nobody knows yet.
    pub fn guess(&self, history: &[u32], token_idx: u64) -> Option<Guess> {
        let stages = self.guess_stages().filter(|_| self.can_guess())?;
        let is_ranking = |stage: &GuessStage| matches!(stage, GuessStage::TopK(_) | GuessStage::TopP(_));
        Some(Guess {
            is_whole: self.need() == Need::Drawn,
            stages: std::array::from_fn(|i| stages.get(i).copied()),
            is_by_id: !stages.iter().any(is_ranking),
            u: self.rng.uniform(token_idx, Draw::Token) as f32,
            changes: self.changes(history),
        })
    }

    fn guess_stages(&self) -> Option<Vec<GuessStage>> {
        let params = &*self.params;
        if params.is_greedy() {
            return Some(vec![GuessStage::TopK(1)]);
        }
        let mut found = Vec::new();
        for &stage in &params.order {
            found.extend(self.guess_stage(stage)?);
        }
        // The device's sum of exponentials is over all tokens.
        let is_sum_known = self.forbidden.is_empty() || !matches!(found.first(), Some(GuessStage::TopP(_)));
        let is_known = params.mirostat == Mirostat::Off && found.len() <= Guess::BEST.stages.len();
        (is_known && is_sum_known).then_some(found)
    }

    /// A stage as a device knows it: `None` if it does not, nothing in it if the stage changes nothing or its changes are
    /// among [`Self::changes`].
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
            _ => return Some(None),
        };
        Some(Some(found))
    }

    /// What biases, forbidden tokens and penalties do to logits.
    fn changes(&self, history: &[u32]) -> Vec<LogitChange> {
        let params = &*self.params;
        let mut changes = BTreeMap::<u32, LogitChange>::new();
        let mut change = |id, apply: &dyn Fn(&mut LogitChange)| {
            let none = LogitChange { id, bias: 0.0, repeat: 1.0, minus: 0.0 };
            apply(changes.entry(id).or_insert(none));
        };
        if params.order.contains(&Stage::Penalties) {
            let Penalties { repeat, frequency, presence, .. } = params.penalties;
            for (id, count) in params.penalties.counts(history) {
                change(id, &|change| {
                    (change.repeat, change.minus) = (repeat, count as f32 * frequency + presence);
                });
            }
        }
        for &(id, bias) in &params.logit_bias {
            change(id, &|change| change.bias += bias);
        }
        for &id in &*self.forbidden {
            change(id, &|change| change.bias = f32::NEG_INFINITY);
        }
        changes.into_values().collect()
    }
}
