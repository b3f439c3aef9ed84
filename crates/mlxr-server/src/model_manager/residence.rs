//! What the native routes see of the resident models, and how they let one go.

use std::time::{Duration, Instant};

use mlxr_engine::{EngineOptions, Shutdown};
use mlxr_models::ModelError;
use mlxr_tensor::KernelTime;

use super::{KeepAlive, Models, Place, Resident, blocking, plan_in};
use crate::ServeError;
use crate::config::GpuLayers;
use crate::loaded::{EngineSetup, Loaded};
use crate::memory::{MemoryPlan, PlanError};

/// A model in memory, at one moment.
#[derive(Clone, Debug)]
pub struct Residence {
    pub model: Loaded,
    /// Why it is not on the first device, if so.
    pub why_here: Option<String>,
    pub n_leases: usize,
    pub keep_alive: KeepAlive,
    /// Until it goes if nobody asks for it; `None` while it is used and when it stays for ever.
    pub expires_in: Option<Duration>,
    /// Since it was last asked for or let go.
    pub idle: Duration,
}

/// The memory of all models on the first device together, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    pub limit_bytes: u64,
    /// Plans of the models in memory.
    pub used_bytes: u64,
}

/// What a model would take, and whether there is room for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    pub plan: MemoryPlan,
    /// In what is free.
    pub fits_now: bool,
    /// Once models nobody uses are gone.
    pub fits: bool,
}

impl Models {
    /// The models in memory.
    pub fn residences(&self) -> Vec<Residence> {
        let now = Instant::now();
        let table = self.lock();
        let residences = table.iter().map(|resident| Residence {
            model: resident.model.clone(),
            why_here: resident.why_here.clone(),
            n_leases: resident.n_leases,
            keep_alive: resident.keep_alive,
            expires_in: resident.expires_at().map(|at| at.saturating_duration_since(now)),
            idle: now.saturating_duration_since(resident.last_used),
        });
        residences.collect()
    }

    pub fn memory_use(&self) -> MemoryUse {
        let table = self.lock();
        let of = |resident: &Resident| self.bytes_at(resident, Place::First);
        MemoryUse { limit_bytes: self.memory.limit_bytes, used_bytes: table.iter().map(of).sum() }
    }

    /// How a model is set up when nothing else is asked for.
    ///
    /// # Errors
    /// There is no such model, or its file has a mistake.
    pub fn engine_options(&self, name: &str) -> Result<EngineOptions, ServeError> {
        Ok(self.setup.for_model(&self.find(name)?.settings).options)
    }

    /// Tokens of a block of keys and values.
    pub fn block_tokens(&self) -> usize {
        self.setup.options.block_tokens
    }

    /// What the kernels of the first device have taken, where they are timed.
    pub fn kernel_times(&self) -> Vec<KernelTime> {
        self.setup.device.kernel_times()
    }

    /// What computes.
    pub fn backend_name(&self) -> String {
        self.setup.device.describe()
    }

    /// Takes a model out of memory. Returns how many requests used it, or `None` when it was not there. One in use
    /// goes only by `force`, which cancels its requests.
    ///
    /// # Errors
    /// There is no such model, or it is in use.
    pub async fn unload(&self, name: &str, force: bool) -> Result<Option<usize>, ServeError> {
        let name = self.resolve(name)?;
        let _loading = self.loading.lock().await;
        let (model, n_leases) = {
            let mut table = self.lock();
            let Some(found) = table.iter().position(|resident| resident.is_current(&name)) else {
                return Ok(None);
            };
            let n_leases = table[found].n_leases;
            if n_leases > 0 && !force {
                return Err(ServeError::ModelBusy { model: name, n_leases });
            }
            (table.remove(found).model, n_leases)
        };
        model.shut_down(if force { Shutdown::Cancel } else { Shutdown::Drain });
        blocking(move || model.join()).await?;
        tracing::info!(model = name, n_leases, "model unloaded on request");
        Ok(Some(n_leases))
    }

    /// What a model would take with `options`, in what would be left of the memory if nobody else needed any; the GPU
    /// would take `gpu_layers`, where that is said and there is one.
    ///
    /// # Errors
    /// There is no such model, its files are broken, or the options make no sense for it.
    pub async fn plan(
        &self,
        name: &str,
        options: EngineOptions,
        gpu_layers: Option<GpuLayers>,
    ) -> Result<Planned, ServeError> {
        let spec = self.find(name)?;
        let setup = EngineSetup { options, ..self.setup.clone() };
        let (now, mut later) = {
            let table = self.lock();
            let used_by = |place, is_counted: fn(&Resident) -> bool| {
                let counted = table.iter().filter(|resident| is_counted(resident));
                counted.map(|resident| self.bytes_at(resident, place)).sum()
            };
            let now = self.room(Place::First, |place| used_by(place, |_| true));
            (now, self.room(Place::First, |place| used_by(place, |resident| resident.n_leases > 0)))
        };
        match (&mut later.cpu, gpu_layers) {
            (Some(cpu), Some(gpu_layers)) => cpu.gpu_layers = gpu_layers,
            (None, Some(_)) => {
                let reason =
                    "gpu_layers is given, but no layers are divided here: the server computes on one device";
                return Err(ServeError::invalid("gpu_layers", reason));
            }
            (_, None) => {}
        }
        let room = later.clone();
        let plan = blocking(move || {
            let cannot_load =
                |error: String| ServeError::CannotLoad { model: spec.name.clone(), reason: error };
            let ckpt = spec.source.open().map_err(|error| cannot_load(error.to_string()))?;
            plan_in(&ckpt, &setup, &room).map_err(|error| match &error {
                PlanError::Model(ModelError::ContextTooLong { .. }) => {
                    ServeError::invalid("n_ctx", error.to_string())
                }
                PlanError::KvType { .. } => ServeError::invalid("kv_type", error.to_string()),
                PlanError::Model(_) => cannot_load(error.to_string()),
            })
        });
        let plan = plan.await??;
        Ok(Planned { plan, fits_now: now.holds(&plan), fits: later.holds(&plan) })
    }
}
