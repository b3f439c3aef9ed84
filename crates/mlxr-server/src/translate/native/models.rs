//! Models in memory and the memory they take.

use mlxr_api::native::models as wire;
use mlxr_api::native::stats::{EmbedderStats, EngineStats, Pace, Stats};
use mlxr_engine::EngineOptions;
use mlxr_tensor::{DType, KvSpec};

use crate::config::GpuLayers;
use crate::loaded::Loaded;
use crate::memory::{MemoryPlan, process_bytes};
use crate::model_manager::{KeepAlive, MemoryUse, Models, Planned, Residence};
use crate::split::{Share, Split};
use crate::{App, ServeError};

pub fn plan(plan: &MemoryPlan) -> wire::MemoryPlan {
    let &MemoryPlan { n_ctx, weights_bytes, kv_bytes, step_bytes, .. } = plan;
    let share = |share: Share| {
        let Share { n_layers, weights_bytes, kv_bytes, step_bytes } = share;
        let total_bytes = share.total_bytes();
        wire::Share { n_layers, weights_bytes, kv_bytes, step_bytes, total_bytes }
    };
    let split = plan.split.map(|Split { cpu, gpu }| wire::Split { gpu: share(gpu), cpu: share(cpu) });
    wire::MemoryPlan { n_ctx, weights_bytes, kv_bytes, step_bytes, total_bytes: plan.total_bytes(), split }
}

pub const fn memory(memory: MemoryUse) -> wire::MemoryUse {
    let MemoryUse { limit_bytes, used_bytes } = memory;
    wire::MemoryUse { limit_bytes, used_bytes, free_bytes: limit_bytes.saturating_sub(used_bytes) }
}

fn residence(residence: &Residence) -> wire::Residence {
    wire::Residence {
        plan: plan(residence.model.plan()),
        n_leases: residence.n_leases,
        keep_alive_s: match residence.keep_alive {
            KeepAlive::For(time) => Some(time.as_secs_f64()),
            KeepAlive::Forever => None,
        },
        expires_in_s: residence.expires_in.map(|time| time.as_secs_f64()),
        idle_s: residence.idle.as_secs_f64(),
        failure: residence.model.failure(),
        device: residence.model.device(),
        why_here: residence.why_here.clone(),
    }
}

/// Every model.
pub fn list(models: &Models) -> wire::ModelList {
    let residences = models.residences();
    let all = models.names().iter().map(|name| model(models, name, &residences)).collect();
    wire::ModelList { models: all, memory: memory(models.memory_use()) }
}

/// One model.
pub fn model(models: &Models, name: &str, residences: &[Residence]) -> wire::Model {
    let loaded = residences.iter().find(|residence| residence.model.name() == name);
    wire::Model {
        name: name.to_owned(),
        is_default: name == models.default_name(),
        loaded: loaded.map(residence),
    }
}

/// The whole server.
pub fn stats(app: &App) -> Stats {
    let models = app.models.residences();
    Stats {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_s: app.started.elapsed().as_secs_f64(),
        memory: memory(app.models.memory_use()),
        process_bytes: process_bytes(),
        models: models.iter().filter_map(engine_stats).collect(),
        embedders: models.iter().filter_map(embedder_stats).collect(),
    }
}

/// What has done or does the work of generating.
fn engine_stats(residence: &Residence) -> Option<EngineStats> {
    let Loaded::Generator(model) = &residence.model else { return None };
    let stats = model.engine.stats();
    Some(EngineStats {
        model: model.name.clone(),
        n_waiting: stats.n_waiting,
        n_running: stats.n_running,
        n_steps: stats.n_steps,
        n_rows: stats.n_rows,
        n_generated: stats.n_generated,
        n_preemptions: stats.n_preemptions,
        n_block_copies: stats.n_block_copies,
        n_blocks: stats.blocks.n_blocks,
        n_blocks_free: stats.blocks.n_free,
        n_blocks_shared: stats.blocks.n_shared,
        n_blocks_used_peak: stats.blocks.peak_used,
        n_ctx: model.engine.n_ctx(),
        pace: stats.pace.map(pace),
        memory_bytes: residence.model.total_bytes(),
        n_leases: residence.n_leases,
    })
}

fn pace(stats: mlxr_engine::PaceStats) -> Pace {
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    Pace {
        target_ms: ms(stats.target),
        p95_ms: stats.p95.map(ms),
        max_prompt_rows: stats.max_prompt_rows,
        max_seqs: stats.max_seqs,
    }
}

/// What has made vectors or scores.
fn embedder_stats(residence: &Residence) -> Option<EmbedderStats> {
    let (model, handle) = (&residence.model, residence.model.embeddings().running()?);
    let mlxr_engine::EmbedderStats { n_waiting, n_batches, n_texts, n_tokens } = handle.stats();
    Some(EmbedderStats {
        model: model.name().to_owned(),
        n_waiting,
        n_batches,
        n_texts,
        n_tokens,
        n_ctx: model.embeddings().n_ctx(),
        memory_bytes: model.total_bytes(),
        n_leases: residence.n_leases,
    })
}

/// The options a plan is asked for.
///
/// # Errors
/// One of them makes no sense.
pub fn plan_options(
    request: &wire::PlanRequest,
    defaults: EngineOptions,
) -> Result<EngineOptions, ServeError> {
    let n_ctx = positive("n_ctx", request.n_ctx)?;
    let max_seqs = positive("max_seqs", request.max_seqs)?.unwrap_or(defaults.max_seqs);
    let max_batch_tokens = positive("max_batch_tokens", request.max_batch_tokens)?;
    let max_batch_tokens = max_batch_tokens.unwrap_or(defaults.max_batch_tokens);
    Ok(EngineOptions {
        n_ctx: n_ctx.or(defaults.n_ctx),
        kv_bytes: request
            .kv_bytes
            .map_or(defaults.kv_bytes, |n| Some(usize::try_from(n).unwrap_or(usize::MAX))),
        kv_dtype: request.kv_type.as_deref().map_or(Ok(defaults.kv_dtype), kv_type)?,
        max_seqs,
        max_batch_tokens: max_batch_tokens.max(max_seqs),
        max_logit_rows: defaults.max_logit_rows.max(max_seqs),
        ..defaults
    })
}

/// The layers a plan is to have on the GPU.
///
/// # Errors
/// None at all: that would be a plan for the CPU.
pub fn gpu_layers(request: &wire::PlanRequest) -> Result<Option<GpuLayers>, ServeError> {
    Ok(positive("gpu_layers", request.gpu_layers)?.map(GpuLayers::Count))
}

fn positive(field: &str, value: Option<u32>) -> Result<Option<usize>, ServeError> {
    match value {
        Some(0) => Err(ServeError::invalid(field, format!("{field} is 0, but must be 1 or more"))),
        value => Ok(value.map(|value| value as usize)),
    }
}

fn kv_type(name: &str) -> Result<DType, ServeError> {
    KvSpec::dtype_named(name).ok_or_else(|| {
        let types = KvSpec::DTYPE_NAMES;
        ServeError::invalid("kv_type", format!("kv_type is {name:?}, but must be {types}"))
    })
}

/// The answer to a plan.
///
/// # Errors
/// The arena asked for is too small.
pub fn plan_answer(
    name: &str,
    planned: &Planned,
    options: &EngineOptions,
    use_now: MemoryUse,
    warnings: Vec<String>,
) -> Result<wire::PlanAnswer, ServeError> {
    let Planned { plan: ref found, fits_now, fits } = *planned;
    let n_blocks = found.kv_bytes / found.block_bytes.max(1);
    let n_seq_blocks = u64::from(found.n_ctx).div_ceil(options.block_tokens as u64).max(1);
    if n_blocks < n_seq_blocks {
        let (kv_bytes, n_ctx) = (found.kv_bytes, found.n_ctx);
        let needed = n_seq_blocks * found.block_bytes;
        let reason = format!("kv_bytes is {kv_bytes}, but one context of {n_ctx} tokens takes {needed}");
        return Err(ServeError::invalid("kv_bytes", reason));
    }
    Ok(wire::PlanAnswer {
        model: name.to_owned(),
        plan: plan(found),
        kv_type: found.kv_dtype.name().to_ascii_lowercase(),
        block_tokens: options.block_tokens,
        n_blocks,
        n_full_seqs: n_blocks / n_seq_blocks,
        fits_now,
        fits,
        memory: memory(use_now),
        warnings,
    })
}
