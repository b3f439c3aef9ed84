//! HTTP in front of the engine: dialects, streams, access, loaded models, metrics.
//!
//! A route parses, submits and streams; `translate` knows what a dialect means; `model_manager` knows what is loaded;
//! `generation` follows requests through the engine. [`App::router`] is the whole service without a socket, [`serve()`]
//! puts it on one.
//!
//! Invariant: dropping what a handler returned, or the handler itself, cancels what it had submitted; what was asked for
//! in the background hangs on its entry in the `response_store` instead.

mod access;
mod app;
pub mod catalogue;
mod clients;
pub mod config;
mod device;
mod dialect;
mod embedding;
mod error;
mod files;
mod generation;
mod ids;
mod images;
#[cfg(unix)]
mod inherited;
mod keys;
mod listen;
mod loaded;
mod log_ring;
mod memory;
mod model_list;
mod model_manager;
mod ndjson;
mod notices;
mod openapi;
mod patient;
mod rate_headers;
mod rehearsal;
mod response_store;
mod routes;
mod split;
mod sse;
mod stopping;
mod stream;
mod telemetry;
mod tokens;
mod translate;

pub use access::Access;
pub use app::{App, Limits, Surroundings};
pub use clients::RateLimit;
pub use device::{Device, DeviceError, WeightBytes, describe_devices};
pub use error::ServeError;
pub use files::sweep_leftovers;
pub use images::{ImageReader, NoImages};
#[cfg(unix)]
pub use inherited::{InheritError, Inherited};
pub use keys::{ClientLimits, Denied, Issued, Key, KeyFile, KeyFileError, Keys, NewKey, Scope};
pub use listen::{ListenError, Listeners, serve};
pub use loaded::{EngineSetup, Loaded, LoadedEmbedder, LoadedModel, ModelSource};
pub use log_ring::LogRing;
pub use memory::{Memory, MemoryPlan, PlanError};
pub use model_list::{ModelList, ModelSpec, ModelsError};
pub use model_manager::{EmbedderLease, Fallback, KeepAlive, Lease, MemoryUse, Models, Residence, Role};
pub use split::{CpuRoom, Room, Share, Split};
pub use stopping::{Phase, Stopper};
pub use tokens::{TokenFileError, Tokens};
pub use translate::sampling::{max_tokens, with_generation_config};
