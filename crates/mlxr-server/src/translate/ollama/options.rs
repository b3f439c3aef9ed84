//! Ollama's options to the engine's parameters.

use mlxr_api::ollama::options::Options;
use mlxr_engine::sampler::{Mirostat, Penalties};
use mlxr_engine::{Request, SamplingParams};

use crate::ServeError;
use crate::loaded::LoadedModel;
use crate::notices::Notices;
use crate::translate::sampling::{max_tokens, set, stop, with_generation_config};

/// Ollama's documented defaults.
fn defaults() -> SamplingParams {
    SamplingParams {
        temperature: 0.8,
        top_k: 40,
        top_p: 0.9,
        min_p: 0.0,
        penalties: Penalties { repeat: 1.1, last_n: Some(64), ..Penalties::default() },
        ..SamplingParams::default()
    }
}

/// Fills in how `request`, whose prompt has `n_prompt` tokens, samples and when it ends.
///
/// # Errors
/// A value that makes no sense, or a prompt that `num_ctx` has no room for.
pub fn apply(
    request: &mut Request,
    n_prompt: usize,
    options: &Options,
    model: &LoadedModel,
) -> Result<(), ServeError> {
    let mut params = with_generation_config(defaults(), &model.generation);
    read_sampling(&mut params, options)?;
    params.validate().map_err(|error| ServeError::invalid(error.field, error.to_string()))?;
    request.sampling = params;
    request.stop = options.stop.clone().unwrap_or_else(|| stop(&model.generation));
    request.max_tokens = match options.num_predict {
        // Below 1 is until the context is full.
        Some(n) => usize::try_from(n).ok().filter(|n| *n > 0),
        None => max_tokens(&model.generation),
    };
    if let Some(n_ctx) = options.num_ctx.filter(|n_ctx| *n_ctx < model.engine.n_ctx()) {
        if n_ctx <= n_prompt {
            return Err(ServeError::ContextLength { n_prompt, n_ctx });
        }
        let room = n_ctx - n_prompt;
        request.max_tokens = Some(request.max_tokens.map_or(room, |n| n.min(room)));
    }
    Ok(())
}

/// Checks values by themselves, without a model.
///
/// # Errors
/// A value that makes no sense.
pub fn check(options: &Options) -> Result<(), ServeError> {
    let mut params = defaults();
    read_sampling(&mut params, options)?;
    params.validate().map_err(|error| ServeError::invalid(error.field, error.to_string()))
}

fn read_sampling(params: &mut SamplingParams, options: &Options) -> Result<(), ServeError> {
    set(&mut params.temperature, options.temperature);
    set(&mut params.top_k, options.top_k.map(|k| usize::try_from(k).unwrap_or(0)));
    // 0 leaves the likeliest token, which any number above it does too.
    set(&mut params.top_p, options.top_p.map(|p| if p == 0.0 { f32::MIN_POSITIVE } else { p }));
    set(&mut params.min_p, options.min_p);
    set(&mut params.typical_p, options.typical_p);
    set(&mut params.penalties.repeat, options.repeat_penalty);
    set(&mut params.penalties.presence, options.presence_penalty);
    set(&mut params.penalties.frequency, options.frequency_penalty);
    set(&mut params.penalties.last_n, options.repeat_last_n.map(|n| usize::try_from(n).ok()));
    if let Some(seed) = options.seed {
        // -1 is any.
        params.seed = Some(seed).filter(|seed| *seed != -1).map(i64::cast_unsigned);
    }
    let (version, tau, eta) = match params.mirostat {
        Mirostat::Off => (0, 5.0, 0.1),
        Mirostat::V1 { tau, eta } => (1, tau, eta),
        Mirostat::V2 { tau, eta } => (2, tau, eta),
    };
    let (tau, eta) = (options.mirostat_tau.unwrap_or(tau), options.mirostat_eta.unwrap_or(eta));
    params.mirostat = match options.mirostat.unwrap_or(version) {
        0 => Mirostat::Off,
        1 => Mirostat::V1 { tau, eta },
        2 => Mirostat::V2 { tau, eta },
        version => {
            let reason = format!("mirostat is {version}, but must be 0, 1 or 2");
            return Err(ServeError::invalid("mirostat", reason));
        }
    };
    Ok(())
}

/// Reports options without effect.
pub fn note(options: &Options, model: &LoadedModel, notices: &mut Notices) {
    let mut note = |is_said: bool, name: &str, reason: &str| {
        if is_said {
            notices.add(format!("options.{name}"), reason);
        }
    };
    note(options.num_keep.is_some(), "num_keep", "a full context ends the answer, nothing of it is dropped");
    note(options.tfs_z.is_some_and(|z| z != 1.0), "tfs_z", "there is no tail-free sampling");
    note(options.penalize_newline == Some(false), "penalize_newline", "penalties make no exceptions");
    note_loading(options, model.engine.n_ctx(), notices);
}

/// Reports options without effect where nothing is sampled.
pub fn note_unsampled(options: &Options, n_ctx: usize, notices: &mut Notices) {
    for (is_said, name) in [
        (options.num_keep.is_some(), "num_keep"),
        (options.seed.is_some(), "seed"),
        (options.num_predict.is_some(), "num_predict"),
        (options.top_k.is_some(), "top_k"),
        (options.top_p.is_some(), "top_p"),
        (options.min_p.is_some(), "min_p"),
        (options.typical_p.is_some(), "typical_p"),
        (options.tfs_z.is_some(), "tfs_z"),
        (options.repeat_last_n.is_some(), "repeat_last_n"),
        (options.temperature.is_some(), "temperature"),
        (options.repeat_penalty.is_some(), "repeat_penalty"),
        (options.presence_penalty.is_some(), "presence_penalty"),
        (options.frequency_penalty.is_some(), "frequency_penalty"),
        (options.mirostat.is_some(), "mirostat"),
        (options.mirostat_tau.is_some(), "mirostat_tau"),
        (options.mirostat_eta.is_some(), "mirostat_eta"),
        (options.penalize_newline.is_some(), "penalize_newline"),
        (options.stop.is_some(), "stop"),
    ] {
        if is_said {
            notices.add(format!("options.{name}"), "nothing is generated");
        }
    }
    note_loading(options, n_ctx, notices);
}

/// Reports options about loading, for a model with contexts of `n_ctx`.
fn note_loading(options: &Options, n_ctx: usize, notices: &mut Notices) {
    let mut note = |is_said: bool, name: &str, reason: &str| {
        if is_said {
            notices.add(format!("options.{name}"), reason);
        }
    };
    let is_larger = options.num_ctx.is_some_and(|asked| asked > n_ctx);
    note(is_larger, "num_ctx", &format!("the model is loaded with a context of {n_ctx} tokens"));
    let fixed = "it is decided when the server starts";
    note(options.num_batch.is_some(), "num_batch", fixed);
    note(options.num_gpu.is_some(), "num_gpu", fixed);
    note(options.main_gpu.is_some(), "main_gpu", fixed);
    note(options.num_thread.is_some(), "num_thread", fixed);
    note(options.numa.is_some(), "numa", fixed);
    note(options.low_vram.is_some(), "low_vram", fixed);
    note(options.f16_kv.is_some(), "f16_kv", fixed);
    note(options.logits_all.is_some(), "logits_all", fixed);
    note(options.vocab_only.is_some(), "vocab_only", fixed);
    note(options.use_mmap.is_some(), "use_mmap", fixed);
    note(options.use_mlock.is_some(), "use_mlock", fixed);
    note(options.embedding_only.is_some(), "embedding_only", fixed);
    for name in options.unknown.keys() {
        note(true, name, "there is no such option");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: &Options) -> SamplingParams {
        let mut params = defaults();
        read_sampling(&mut params, options).unwrap();
        params
    }

    #[test]
    fn nothing_said_is_ollama_s_default() {
        let params = read(&Options::default());
        assert_eq!((params.temperature, params.top_k, params.top_p, params.min_p), (0.8, 40, 0.9, 0.0));
        assert_eq!((params.penalties.repeat, params.penalties.last_n), (1.1, Some(64)));
        assert_eq!((params.penalties.presence, params.penalties.frequency, params.seed), (0.0, 0.0, None));
        assert_eq!((params.typical_p, params.mirostat), (1.0, Mirostat::Off));
        assert_eq!(params.validate(), Ok(()));
    }

    #[test]
    fn values_with_a_meaning_of_their_own_keep_it() {
        let options = Options {
            top_k: Some(-1),
            top_p: Some(0.0),
            repeat_last_n: Some(-1),
            seed: Some(-1),
            mirostat: Some(2),
            mirostat_tau: Some(4.0),
            ..Options::default()
        };
        let params = read(&options);
        assert_eq!((params.top_k, params.penalties.last_n, params.seed), (0, None, None));
        assert_eq!(params.mirostat, Mirostat::V2 { tau: 4.0, eta: 0.1 });
        assert_eq!(params.validate(), Ok(()), "top_p 0 is the likeliest token");
        assert_eq!(read(&Options { seed: Some(-2), ..Options::default() }).seed, Some(u64::MAX - 1));
        let mut params = defaults();
        let options = Options { mirostat: Some(3), ..Options::default() };
        let refused = read_sampling(&mut params, &options).unwrap_err();
        assert!(matches!(refused, ServeError::Invalid { field: Some(field), .. } if field == "mirostat"));
    }
}
