//! Where sampling parameters come from: the request, else the model's generation config, else the dialect's defaults.
//! The command line reads generation configs here too.

use mlxr_engine::SamplingParams;
use serde_json::{Map, Value};

/// `defaults` with what a generation config says laid over them.
pub fn with_generation_config(defaults: SamplingParams, generation: &Map<String, Value>) -> SamplingParams {
    let mut params = defaults;
    let number = |key: &str| generation.get(key).and_then(Value::as_f64).map(|value| value as f32);
    set(&mut params.temperature, number("temperature"));
    set(&mut params.top_p, number("top_p"));
    set(&mut params.min_p, number("min_p"));
    set(&mut params.typical_p, number("typical_p"));
    set(&mut params.penalties.repeat, number("repetition_penalty"));
    let top_k = generation.get("top_k").and_then(Value::as_u64);
    set(&mut params.top_k, top_k.and_then(|k| usize::try_from(k).ok()));
    if generation.get("do_sample").and_then(Value::as_bool) == Some(false) {
        params.temperature = 0.0;
    }
    params
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
