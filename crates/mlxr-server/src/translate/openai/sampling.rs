//! OpenAI's sampling fields and the extensions beside them.

use std::collections::BTreeMap;

use mlxr_api::openai::sampling::SamplingExtensions;
use mlxr_engine::sampler::{Mirostat, Penalties, Stage};
use mlxr_engine::{LoopLimits, Request, SamplingParams};
use serde_json::{Map, Value};

use crate::ServeError;
use crate::translate::sampling::{set, with_generation_config};

/// OpenAI's own fields, the same in both endpoints.
#[derive(Clone, Copy, Debug)]
pub struct Documented<'a> {
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub seed: Option<i64>,
    pub logit_bias: Option<&'a BTreeMap<String, f32>>,
}

/// Fills in how `request` samples.
///
/// # Errors
/// A field that makes no sense by itself; ranges are the engine's to check.
pub fn apply(
    request: &mut Request,
    fields: &Documented<'_>,
    extensions: &SamplingExtensions,
    generation: &Map<String, Value>,
) -> Result<(), ServeError> {
    // OpenAI's defaults: temperature and top_p 1, no penalties, which look at all of the text.
    let defaults = SamplingParams {
        penalties: Penalties { last_n: None, ..Penalties::default() },
        ..SamplingParams::neutral()
    };
    let mut params = with_generation_config(defaults, generation);
    set(&mut params.temperature, fields.temperature);
    set(&mut params.top_p, fields.top_p);
    set(&mut params.penalties.frequency, fields.frequency_penalty);
    set(&mut params.penalties.presence, fields.presence_penalty);
    params.seed = fields.seed.map(i64::cast_unsigned).or(params.seed);
    if let Some(biases) = fields.logit_bias {
        params.logit_bias = biases.iter().map(read_bias).collect::<Result<_, _>>()?;
    }
    extend(&mut params, extensions)?;
    params.validate().map_err(|error| ServeError::invalid(error.field, error.to_string()))?;
    if params.ignore_eos || extensions.loop_guard == Some(false) {
        request.loop_limits = None;
    } else if extensions.loop_guard == Some(true) {
        request.loop_limits = Some(LoopLimits::default());
    }
    request.sampling = params;
    request.stop_ids = extensions.stop_token_ids.clone().unwrap_or_default();
    request.priority = extensions.priority.unwrap_or(0);
    Ok(())
}

/// OpenAI takes -100 to mean never.
fn read_bias((id, bias): (&String, &f32)) -> Result<(u32, f32), ServeError> {
    let field = || format!("logit_bias.{id}");
    let id_read = id.parse().map_err(|_| ServeError::invalid(field(), format!("{id:?} is no token id")))?;
    if !(-100.0..=100.0).contains(bias) {
        return Err(ServeError::invalid(
            field(),
            format!("logit_bias is {bias}, but must be from -100 to 100"),
        ));
    }
    Ok((id_read, if *bias == -100.0 { f32::NEG_INFINITY } else { *bias }))
}

fn extend(params: &mut SamplingParams, extensions: &SamplingExtensions) -> Result<(), ServeError> {
    let SamplingExtensions { top_k, min_p, typical_p, top_n_sigma, .. } = extensions;
    // vLLM's -1 and llama.cpp's 0 both turn top-k off.
    set(&mut params.top_k, top_k.map(|k| usize::try_from(k).unwrap_or(0)));
    set(&mut params.min_p, *min_p);
    set(&mut params.typical_p, *typical_p);
    set(&mut params.top_n_sigma, *top_n_sigma);
    set(&mut params.xtc_probability, extensions.xtc_probability);
    set(&mut params.xtc_threshold, extensions.xtc_threshold);
    set(&mut params.dynatemp_range, extensions.dynatemp_range);
    set(&mut params.dynatemp_exponent, extensions.dynatemp_exponent);
    set(&mut params.penalties.repeat, extensions.repetition_penalty);
    set(&mut params.penalties.last_n, extensions.repeat_last_n.map(last_n));
    set(&mut params.ignore_eos, extensions.ignore_eos);
    let dry = &mut params.dry;
    set(&mut dry.multiplier, extensions.dry_multiplier);
    set(&mut dry.base, extensions.dry_base);
    set(&mut dry.allowed_length, extensions.dry_allowed_length);
    set(&mut dry.last_n, extensions.dry_penalty_last_n.map(last_n));
    set(&mut dry.breakers, extensions.dry_sequence_breakers.clone());
    let (version, tau, eta) = match params.mirostat {
        Mirostat::Off => (0, 5.0, 0.1),
        Mirostat::V1 { tau, eta } => (1, tau, eta),
        Mirostat::V2 { tau, eta } => (2, tau, eta),
    };
    let (tau, eta) = (extensions.mirostat_tau.unwrap_or(tau), extensions.mirostat_eta.unwrap_or(eta));
    params.mirostat = match extensions.mirostat.unwrap_or(version) {
        0 => Mirostat::Off,
        1 => Mirostat::V1 { tau, eta },
        2 => Mirostat::V2 { tau, eta },
        version => {
            let reason = format!("mirostat is {version}, but must be 0, 1 or 2");
            return Err(ServeError::invalid("mirostat", reason));
        }
    };
    if let Some(names) = &extensions.samplers {
        let stages: Result<Vec<Stage>, _> = names.0.iter().map(|name| name.parse()).collect();
        params.order = stages.map_err(|error| ServeError::invalid("samplers", error.to_string()))?;
    }
    Ok(())
}

/// How far back to look: -1 is everything.
fn last_n(n: i64) -> Option<usize> {
    usize::try_from(n).ok()
}

#[cfg(test)]
mod tests {
    use mlxr_engine::Prompt;

    use super::*;

    const NOTHING: Documented<'static> = Documented {
        temperature: None,
        top_p: None,
        frequency_penalty: None,
        presence_penalty: None,
        seed: None,
        logit_bias: None,
    };

    fn apply_to(
        fields: &Documented<'_>,
        extensions: &SamplingExtensions,
    ) -> Result<SamplingParams, ServeError> {
        let mut request = Request::new(Prompt::Tokens(vec![1]));
        apply(&mut request, fields, extensions, &Map::new())?;
        Ok(request.sampling)
    }

    #[test]
    fn nothing_said_is_openai_s_default() {
        let params = apply_to(&NOTHING, &SamplingExtensions::default()).unwrap();
        assert_eq!((params.temperature, params.top_p, params.top_k, params.min_p), (1.0, 1.0, 0, 0.0));
        assert_eq!((params.penalties.frequency, params.penalties.presence), (0.0, 0.0));
        assert_eq!((params.penalties.repeat, params.seed), (1.0, None));
    }

    #[test]
    fn biases_are_token_ids_within_openai_s_range() {
        let biases = |id: &str, bias| BTreeMap::from([(id.to_owned(), bias)]);
        let read = |biases: &BTreeMap<String, f32>| {
            let fields = Documented { logit_bias: Some(biases), ..NOTHING };
            apply_to(&fields, &SamplingExtensions::default()).map(|params| params.logit_bias)
        };
        assert_eq!(read(&biases("15", -100.0)).unwrap(), [(15, f32::NEG_INFINITY)]);
        assert_eq!(read(&biases("15", 2.5)).unwrap(), [(15, 2.5)]);
        for (id, bias) in [("fifteen", 0.0), ("-1", 0.0), ("15", 100.5), ("15", f32::NAN)] {
            let refused = read(&biases(id, bias)).unwrap_err();
            assert!(
                matches!(&refused, ServeError::Invalid { field: Some(f), .. } if f.starts_with("logit_bias."))
            );
        }
    }

    #[test]
    fn a_bad_value_is_refused_by_its_field() {
        let refused = apply_to(&Documented { top_p: Some(2.0), ..NOTHING }, &SamplingExtensions::default());
        assert!(matches!(refused, Err(ServeError::Invalid { field: Some(f), .. }) if f == "top_p"));
        let extensions = SamplingExtensions { mirostat: Some(3), ..SamplingExtensions::default() };
        let refused = apply_to(&NOTHING, &extensions);
        assert!(matches!(refused, Err(ServeError::Invalid { field: Some(f), .. }) if f == "mirostat"));
        let extensions = SamplingExtensions { top_k: Some(-1), ..SamplingExtensions::default() };
        assert_eq!(apply_to(&NOTHING, &extensions).unwrap().top_k, 0);
    }
}
