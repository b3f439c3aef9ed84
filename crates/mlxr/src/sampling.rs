//! Sampling flags, and how they become parameters: a flag wins over the model's generation config, which wins over the
//! defaults named in the help.

use clap::Args;
use mlxr_engine::sampler::{Dry, Mirostat, Penalties, SamplingParams, Stage};
use mlxr_server::with_generation_config;
use serde_json::{Map, Value};

/// Sampling flags; `None` leaves it to the model.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Sampling options (defaults: the model's generation config, else as given)")]
pub struct SamplingArgs {
    /// Tokens to generate at most [default: up to the context]
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: Option<u32>,
    /// Seed of the random numbers [default: a new one every time]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Always take the most likely token
    #[arg(long, conflicts_with_all = ["temperature", "mirostat"])]
    pub greedy: bool,
    /// How much chance there is; 0 is greedy [default: 0.8]
    #[arg(long, visible_alias = "temp", value_name = "T")]
    pub temperature: Option<f32>,
    /// Choose among the K most likely tokens; 0 is off [default: 40]
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Choose among the most likely tokens that together have probability P; 1 is off [default: 0.95]
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,
    /// Leave out tokens less likely than P times the most likely one; 0 is off [default: 0.05]
    #[arg(long, value_name = "P")]
    pub min_p: Option<f32>,
    /// Locally typical sampling; 1 is off [default: 1]
    #[arg(long, visible_alias = "typical", value_name = "P")]
    pub typical_p: Option<f32>,
    /// Leave out tokens N standard deviations below the best logit; 0 is off [default: 0]
    #[arg(long, value_name = "N")]
    pub top_n_sigma: Option<f32>,
    /// Chance of XTC, which leaves out the most likely tokens [default: 0]
    #[arg(long, value_name = "P")]
    pub xtc_probability: Option<f32>,
    /// Tokens at least this likely are the ones XTC leaves out, all but the last [default: 0.1]
    #[arg(long, value_name = "P")]
    pub xtc_threshold: Option<f32>,
    /// Range of dynamic temperature around --temperature; 0 is off [default: 0]
    #[arg(long, value_name = "R")]
    pub dynatemp_range: Option<f32>,
    /// Exponent of dynamic temperature [default: 1]
    #[arg(long, value_name = "E")]
    pub dynatemp_exponent: Option<f32>,
    /// Mirostat version, which then replaces the other truncations; 0 is off [default: 0]
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(u8).range(0..=2))]
    pub mirostat: Option<u8>,
    /// Mirostat's target surprise [default: 5]
    #[arg(long, value_name = "TAU")]
    pub mirostat_tau: Option<f32>,
    /// Mirostat's learning rate [default: 0.1]
    #[arg(long, value_name = "ETA")]
    pub mirostat_eta: Option<f32>,
    /// Divide the logits of tokens that occurred; 1 is off [default: 1]
    #[arg(long, value_name = "X")]
    pub repeat_penalty: Option<f32>,
    /// Tokens the penalties look back; 0 is off, -1 all [default: 64]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..))]
    pub repeat_last_n: Option<i64>,
    /// Subtracted from a token's logit for every time it occurred [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,
    /// Subtracted from a token's logit if it occurred [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,
    /// Strength of DRY, which keeps sequences from repeating; 0 is off [default: 0]
    #[arg(long, value_name = "X")]
    pub dry_multiplier: Option<f32>,
    /// Base of DRY's penalty [default: 1.75]
    #[arg(long, value_name = "X")]
    pub dry_base: Option<f32>,
    /// Repetitions up to this length are free of DRY's penalty [default: 2]
    #[arg(long, value_name = "N")]
    pub dry_allowed_length: Option<usize>,
    /// Tokens DRY looks back; 0 is off, -1 all [default: -1]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..))]
    pub dry_penalty_last_n: Option<i64>,
    /// A string repetitions do not reach across, may be given again [default: newline, colon, quote, star]
    #[arg(long, value_name = "TEXT")]
    pub dry_sequence_breaker: Vec<String>,
    /// Add BIAS to the logit of a token (`15=-2.5`, `15=-inf`), may be given again
    #[arg(long, value_name = "ID=BIAS", value_parser = parse_bias)]
    pub logit_bias: Vec<(u32, f32)>,
    /// Samplers in the order they run, separated by commas or semicolons
    #[arg(long, value_name = "NAMES", value_parser = parse_stages)]
    pub samplers: Option<Stages>,
    /// End before this text, may be given again
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// End at this token id, may be given again
    #[arg(long, value_name = "ID")]
    pub stop_id: Vec<u32>,
    /// Go on where the model would end
    #[arg(long)]
    pub ignore_eos: bool,
}

/// How many answers to give.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Sampling options (defaults: the model's generation config, else as given)")]
pub struct ChoiceArgs {
    /// With --json: answers to give
    #[arg(long, value_name = "N", requires = "json", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub choices: Option<u8>,
    /// With --json: answers to generate, of which the likeliest --choices are given
    #[arg(long, value_name = "N", requires = "json", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub best_of: Option<u8>,
}

impl ChoiceArgs {
    pub fn n(self) -> usize {
        self.choices.unwrap_or(1).into()
    }

    /// Sequences that run at once.
    pub fn n_seqs(self) -> usize {
        self.n().max(self.best_of.unwrap_or(1).into())
    }
}

/// The order of the samplers.
#[derive(Clone, Debug)]
pub struct Stages(Vec<Stage>);

fn parse_stages(text: &str) -> Result<Stages, String> {
    let names = text.split([',', ';']).map(str::trim).filter(|name| !name.is_empty());
    let stages: Result<Vec<Stage>, _> = names.map(str::parse).collect();
    stages.map(Stages).map_err(|_| {
        let known: Vec<&str> = Stage::DEFAULT_ORDER.iter().map(|stage| stage.name()).collect();
        format!("expected names out of {}", known.join(", "))
    })
}

fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let parsed = text.split_once('=').and_then(|(id, bias)| {
        let bias: f32 = bias.trim().parse().ok().filter(|bias: &f32| !bias.is_nan())?;
        Some((id.trim().parse().ok()?, bias))
    });
    parsed.ok_or_else(|| "expected a token id and a number, such as 15=-2.5".to_owned())
}

/// How far back to look: -1 is everything.
fn last_n(n: i64) -> Option<usize> {
    usize::try_from(n).ok()
}

impl SamplingArgs {
    /// The parameters for a model with this generation config.
    pub fn resolve(&self, generation: &Map<String, Value>) -> anyhow::Result<SamplingParams> {
        let mut params = with_generation_config(SamplingParams::default(), generation);
        self.apply_chain(&mut params);
        self.apply_penalties(&mut params);
        if self.greedy {
            params.temperature = 0.0;
            params.dynatemp_range = 0.0;
            params.mirostat = Mirostat::Off;
        }
        params.logit_bias.clone_from(&self.logit_bias);
        params.ignore_eos = self.ignore_eos;
        params.seed = self.seed;
        if let Some(Stages(order)) = &self.samplers {
            params.order.clone_from(order);
        }
        params.validate().map_err(|error| {
            crate::failure::usage(error, "`mlxr run --help` says what every sampling flag takes")
        })?;
        Ok(params)
    }

    fn apply_chain(&self, params: &mut SamplingParams) {
        set(&mut params.temperature, self.temperature);
        set(&mut params.dynatemp_range, self.dynatemp_range);
        set(&mut params.dynatemp_exponent, self.dynatemp_exponent);
        set(&mut params.top_k, self.top_k);
        set(&mut params.top_p, self.top_p);
        set(&mut params.min_p, self.min_p);
        set(&mut params.typical_p, self.typical_p);
        set(&mut params.top_n_sigma, self.top_n_sigma);
        set(&mut params.xtc_probability, self.xtc_probability);
        set(&mut params.xtc_threshold, self.xtc_threshold);
        let tau = self.mirostat_tau.unwrap_or(5.0);
        let eta = self.mirostat_eta.unwrap_or(0.1);
        match self.mirostat {
            Some(1) => params.mirostat = Mirostat::V1 { tau, eta },
            Some(2) => params.mirostat = Mirostat::V2 { tau, eta },
            Some(_) => params.mirostat = Mirostat::Off,
            None => {}
        }
    }

    fn apply_penalties(&self, params: &mut SamplingParams) {
        let Penalties { last_n: look_back, repeat, frequency, presence } = &mut params.penalties;
        set(look_back, self.repeat_last_n.map(last_n));
        set(repeat, self.repeat_penalty);
        set(frequency, self.frequency_penalty);
        set(presence, self.presence_penalty);
        let Dry { multiplier, base, allowed_length, last_n: look_back, breakers } = &mut params.dry;
        set(multiplier, self.dry_multiplier);
        set(base, self.dry_base);
        set(allowed_length, self.dry_allowed_length);
        set(look_back, self.dry_penalty_last_n.map(last_n));
        if !self.dry_sequence_breaker.is_empty() {
            breakers.clone_from(&self.dry_sequence_breaker);
        }
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn generation(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn a_flag_wins_over_the_generation_config_which_wins_over_the_default() {
        let config = generation(json!({"temperature": 0.6, "top_k": 20, "do_sample": true}));
        let args = SamplingArgs { top_k: Some(7), ..SamplingArgs::default() };
        let params = args.resolve(&config).unwrap();
        assert_eq!((params.temperature, params.top_k, params.top_p), (0.6, 7, 0.95));
    }

    #[test]
    fn greedy_wins_over_the_generation_config() {
        let config = generation(json!({"temperature": 0.6}));
        let args = SamplingArgs { greedy: true, ..SamplingArgs::default() };
        assert!(args.resolve(&config).unwrap().is_greedy());
        let config = generation(json!({"do_sample": false}));
        assert!(SamplingArgs::default().resolve(&config).unwrap().is_greedy());
    }

    #[test]
    fn a_value_without_meaning_is_a_usage_error() {
        let args = SamplingArgs { top_p: Some(1.5), ..SamplingArgs::default() };
        let report = crate::failure::Report::new(&args.resolve(&Map::new()).unwrap_err());
        assert_eq!(report.message, "top_p is 1.5, but must be above 0 and at most 1");
        assert_eq!(report.exit_code, crate::failure::EXIT_USAGE);
    }

    #[test]
    fn biases_and_sampler_orders_parse() {
        assert_eq!(parse_bias("15=-2.5"), Ok((15, -2.5)));
        assert_eq!(parse_bias("15=-inf"), Ok((15, f32::NEG_INFINITY)));
        assert!(parse_bias("15").is_err());
        assert_eq!(parse_stages("top_k;temperature").unwrap().0, [Stage::TopK, Stage::Temperature]);
        assert!(parse_stages("top_k,typo").is_err());
    }
}
