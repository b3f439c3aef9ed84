//! `GET /mlxr/v1/models`, `POST /mlxr/v1/models/load`, `/models/unload` and `/plan`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::body::parsed;
use crate::ollama::keep_alive::KeepAlive;

/// Bytes a model takes once loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::MemoryPlan)]
pub struct MemoryPlan {
    /// Tokens of one sequence at most.
    pub n_ctx: u32,
    pub weights_bytes: u64,
    /// Keys and values, allocated at once.
    pub kv_bytes: u64,
    /// Activations and logits of the largest step.
    pub step_bytes: u64,
    pub total_bytes: u64,
    /// How its layers are divided between a GPU and the CPU, if they are; what both need is counted twice above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<Split>,
}

/// A model on two devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::Split)]
pub struct Split {
    /// The last layers.
    pub gpu: Share,
    /// The first ones.
    pub cpu: Share,
}

/// What part of a model takes of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::Share)]
pub struct Share {
    pub n_layers: usize,
    pub weights_bytes: u64,
    pub kv_bytes: u64,
    pub step_bytes: u64,
    pub total_bytes: u64,
}

/// The memory of all models together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::MemoryUse)]
pub struct MemoryUse {
    pub limit_bytes: u64,
    /// What the models in memory were planned to take.
    pub used_bytes: u64,
    pub free_bytes: u64,
}

/// A model in memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::Residence)]
pub struct Residence {
    pub plan: MemoryPlan,
    /// Requests that hold it, from their arrival to their last byte.
    pub n_leases: usize,
    /// Seconds it stays after its last request; null is for ever.
    pub keep_alive_s: Option<f64>,
    /// Seconds until it goes if nobody asks for it; null while it is used and when it stays for ever.
    pub expires_in_s: Option<f64>,
    /// Seconds since it was last asked for or let go.
    pub idle_s: f64,
    /// What it computes on.
    pub device: String,
    /// Why that is not the device the server prefers, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_here: Option<String>,
    /// Why its engine or its device broke down, if one did; the next request loads it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// A model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::Model)]
pub struct Model {
    pub name: String,
    /// Whether it is meant when a request names none.
    pub is_default: bool,
    /// Null when it is not in memory.
    pub loaded: Option<Residence>,
}

/// Every model, and what memory there is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::ModelList)]
pub struct ModelList {
    pub models: Vec<Model>,
    pub memory: MemoryUse,
}

/// Asks for a model to be brought into memory.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = native::LoadRequest)]
pub struct LoadRequest {
    pub model: String,
    /// How long it stays after its last request.
    pub keep_alive: Option<KeepAlive>,
    /// Refuse fields that have no effect.
    pub strict: Option<bool>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// The model is in memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::LoadAnswer)]
pub struct LoadAnswer {
    pub model: Model,
    /// Whether it was there already.
    pub was_loaded: bool,
    pub load_s: f64,
    /// Fields of the request that had no effect, and why; absent when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Asks for a model to leave memory.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = native::UnloadRequest)]
pub struct UnloadRequest {
    pub model: String,
    /// Cancel the requests that use it, instead of refusing with `model_busy`.
    pub force: Option<bool>,
    /// Refuse fields that have no effect.
    pub strict: Option<bool>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// The model is not in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::UnloadAnswer)]
pub struct UnloadAnswer {
    pub model: String,
    /// Whether it had been there.
    pub was_loaded: bool,
    /// Requests that were cancelled.
    pub n_cancelled: usize,
    pub memory: MemoryUse,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Asks what a model would take, without loading it.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = native::PlanRequest)]
pub struct PlanRequest {
    pub model: String,
    /// Tokens of one sequence; absent is what the server would choose.
    #[schema(minimum = 1)]
    pub n_ctx: Option<u32>,
    /// `f32`, `f16`, `bf16` or `q8_0`; absent is the server's setting.
    pub kv_type: Option<String>,
    /// Bytes of keys and values; absent is what the server would choose.
    #[schema(minimum = 1)]
    pub kv_bytes: Option<u64>,
    /// Sequences that run at a time; absent is the server's setting.
    #[schema(minimum = 1)]
    pub max_seqs: Option<u32>,
    /// Rows of one step; absent is the server's setting.
    #[schema(minimum = 1)]
    pub max_batch_tokens: Option<u32>,
    /// Layers on the GPU, where the server computes on one; absent is the server's setting.
    #[schema(minimum = 1)]
    pub gpu_layers: Option<u32>,
    /// Refuse fields that have no effect.
    pub strict: Option<bool>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// What the model would take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::PlanAnswer)]
pub struct PlanAnswer {
    pub model: String,
    pub plan: MemoryPlan,
    pub kv_type: String,
    pub block_tokens: usize,
    /// KV blocks the arena would have.
    pub n_blocks: u64,
    /// Sequences of `n_ctx` tokens it would hold at a time.
    pub n_full_seqs: u64,
    /// Whether it fits into what is free.
    pub fits_now: bool,
    /// Whether it fits once models nobody uses are gone.
    pub fits: bool,
    pub memory: MemoryUse,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

parsed!(LoadRequest, UnloadRequest, PlanRequest);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_keep_what_they_do_not_know() {
        let request = LoadRequest::parse(br#"{"model": "m", "keep_alive": "5m", "priority": 1}"#).unwrap();
        assert_eq!(request.keep_alive, Some(KeepAlive::For(std::time::Duration::from_secs(300))));
        assert_eq!(request.unknown.keys().collect::<Vec<_>>(), ["priority"]);
        let request = UnloadRequest::parse(br#"{"model": "m", "force": true}"#).unwrap();
        assert_eq!((request.force, request.unknown.len()), (Some(true), 0));
    }

    #[test]
    fn a_mistake_is_named_by_its_field() {
        let field = |body: &str| PlanRequest::parse(body.as_bytes()).unwrap_err().field.unwrap();
        assert_eq!(field(r#"{"model": "m", "n_ctx": -1}"#), "n_ctx");
        assert_eq!(field(r#"{"model": "m", "kv_type": 8}"#), "kv_type");
    }
}
