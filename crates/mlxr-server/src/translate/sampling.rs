//! Where sampling parameters come from: the request, else the model's generation config, else the dialect's defaults.
//! The command line reads generation configs here too.

use mlxr_engine::SamplingParams;
use mlxr_engine::sampler::Mirostat;
use serde_json::{Map, Value, json};

use crate::catalogue::Parameters;

/// `defaults` with what a generation config says laid over them.
pub fn with_generation_config(defaults: SamplingParams, generation: &Map<String, Value>) -> SamplingParams {
    let mut params = defaults;
    let number = |key: &str| generation.get(key).and_then(Value::as_f64).map(|value| value as f32);
    set(&mut params.temperature, number("temperature"));
    set(&mut params.top_p, number("top_p"));
    set(&mut params.min_p, number("min_p"));
    set(&mut params.typical_p, number("typical_p"));
    set(&mut params.penalties.repeat, number("repetition_penalty"));
    set(&mut params.penalties.presence, number("presence_penalty"));
    set(&mut params.penalties.frequency, number("frequency_penalty"));
    let integer = |key: &str| generation.get(key).and_then(Value::as_i64);
    set(&mut params.penalties.last_n, integer("repeat_last_n").map(|n| usize::try_from(n).ok()));
    params.seed = integer("seed").map(i64::cast_unsigned).or(params.seed);
    let (tau, eta) = (number("mirostat_tau").unwrap_or(5.0), number("mirostat_eta").unwrap_or(0.1));
    match integer("mirostat") {
        Some(1) => params.mirostat = Mirostat::V1 { tau, eta },
        Some(2) => params.mirostat = Mirostat::V2 { tau, eta },
        _ => {}
    }
    let top_k = generation.get("top_k").and_then(Value::as_u64);
    set(&mut params.top_k, top_k.and_then(|k| usize::try_from(k).ok()));
    if generation.get("do_sample").and_then(Value::as_bool) == Some(false) {
        params.temperature = 0.0;
    }
    params
}

/// A generation config with a model's parameters laid over it, under the config's names where it has one.
pub fn defaults(generation: &Map<String, Value>, parameters: &Parameters) -> Map<String, Value> {
    let mut merged = generation.clone();
    for (name, value) in parameters.as_map() {
        let number = value.as_f64();
        let (name, value) = match name.as_str() {
            "temperature" => {
                merged.remove("do_sample");
                ("temperature", value.clone())
            }
            "repeat_penalty" => ("repetition_penalty", value.clone()),
            "stop" => ("stop_strings", value.clone()),
            // Below 1 is until the context is full.
            "num_predict" if number.is_some_and(|n| n < 1.0) => {
                merged.remove("max_new_tokens");
                continue;
            }
            "num_predict" => ("max_new_tokens", value.clone()),
            // 0 leaves the likeliest token, which any number above it does too.
            "top_p" if number == Some(0.0) => ("top_p", json!(f32::MIN_POSITIVE)),
            "top_k" if number.is_some_and(|n| n < 0.0) => ("top_k", json!(0)),
            // -1 is any.
            "seed" if number == Some(-1.0) => continue,
            other => (other, value.clone()),
        };
        merged.insert(name.to_owned(), value);
    }
    merged
}

/// Texts that end an answer unless the request names others.
pub fn stop(generation: &Map<String, Value>) -> Vec<String> {
    match generation.get("stop_strings") {
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(texts)) => {
            texts.iter().filter_map(|text| text.as_str().map(str::to_owned)).collect()
        }
        _ => Vec::new(),
    }
}

/// Tokens a generation config allows an answer.
pub fn max_tokens(generation: &Map<String, Value>) -> Option<usize> {
    generation.get("max_new_tokens").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok())
}

pub fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_model_s_parameters_win_over_its_generation_config() {
        let config = json!({"temperature": 0.6, "do_sample": false, "max_new_tokens": 9, "min_p": 0.1});
        let mut parameters = Parameters::default();
        for (name, text) in
            [("temperature", "0.2"), ("num_predict", "-1"), ("top_k", "-1"), ("seed", "7"), ("stop", "x")]
        {
            parameters.set_text(name, text).unwrap();
        }
        for (name, text) in
            [("mirostat", "2"), ("mirostat_eta", "0.5"), ("repeat_last_n", "-1"), ("presence_penalty", "0.5")]
        {
            parameters.set_text(name, text).unwrap();
        }
        let merged = defaults(config.as_object().unwrap(), &parameters);
        let params = with_generation_config(SamplingParams::neutral(), &merged);
        assert_eq!((params.temperature, params.min_p, params.top_k, params.seed), (0.2, 0.1, 0, Some(7)));
        assert_eq!(params.mirostat, Mirostat::V2 { tau: 5.0, eta: 0.5 });
        assert_eq!((params.penalties.last_n, params.penalties.presence), (None, 0.5));
        assert_eq!((max_tokens(&merged), stop(&merged)), (None, vec!["x".to_owned()]));
    }

    #[test]
    fn the_generation_config_wins_over_the_defaults() {
        let config = json!({"temperature": 0.6, "top_k": 20, "max_new_tokens": 9, "do_sample": true});
        let config = config.as_object().unwrap();
        let params = with_generation_config(SamplingParams::neutral(), config);
        assert_eq!((params.temperature, params.top_k, params.top_p), (0.6, 20, 1.0));
        assert_eq!(max_tokens(config), Some(9));
        let greedy = json!({"temperature": 0.6, "do_sample": false});
        let params = with_generation_config(SamplingParams::neutral(), greedy.as_object().unwrap());
        assert!(params.is_greedy());
    }
}
