//! Paged KV cache, sampler and the step loop.
//!
//! [`Engine::submit`] takes requests, [`Engine::step`] runs one forward over everything that is running and returns
//! [`Event`]s. [`EngineHandle`] moves an engine to a thread of its own. There is no network and no blocking generation
//! in this crate.

mod ahead;
mod batch;
mod choice;
mod embedder;
mod engine;
mod event;
mod ids;
mod images;
mod inspect;
pub mod kv;
mod loop_guard;
mod pacing;
mod request;
mod runner;
pub mod sampler;
pub mod scheduler;
mod step_loop;
mod thread;

pub use embedder::{EmbedError, EmbedderHandle, EmbedderLimits, EmbedderStats, TextReader};
pub use engine::{Engine, EngineError, EngineOptions, EngineStats, ScoreError};
pub use event::{Event, FinishReason, PromptToken, StopCause, Timings, Usage};
pub use ids::{BlockId, RequestId, SeqId};
pub use inspect::{PrefixExplanation, RequestInfo, RequestState, TokenText};
pub use kv::{BlockInfo, BlockState, CacheStats, KvMap, MAX_MAP_BLOCKS, OverflowStats, PrefixStop, SeqOwner};
pub use loop_guard::{LoopGuard, LoopLimits};
pub use pacing::PaceStats;
pub use request::{
    MAX_LABEL_BYTES, MAX_STOP_BYTES, MAX_STOP_IDS, MAX_STOPS, MAX_TOP_LOGPROBS, Prompt, Request, SubmitError,
};
pub use runner::{Finished, ImageSpec, ModelRunner, Output, RankedLogits, ReadRows, Runner, Started};
pub use sampler::SamplingParams;
pub use thread::{EngineHandle, EngineThreadError, EventReceiver, EventSender, Shutdown, event_channel};
