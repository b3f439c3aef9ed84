//! Which models are in memory.
//!
//! A model is loaded when the first request names it and stays for its keep-alive after the last one, or for good when
//! it is pinned. When memory is short the model that has been idle longest goes first; one that serves requests never
//! goes. A model whose file is changed or removed finishes what it is doing and goes; who asks for the name from then
//! on gets what the file says now. Loads happen one at a
//! time, so that two of them never count on the same memory; requests for models that are there do not wait for them.
//!
//! A model that the first device has no room for is divided between it and the second, where there is one (`split.rs`).
//! One it can take no layer of, or has no kernels for, goes to the second whole where that is allowed, and says so.
//! Once a device has failed its models are loaded again, one by one, as they are asked for.
//!
//! Invariant: the plans of all models on a device together are within its limit.

mod residence;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mlxr_checkpoint::Checkpoint;
use mlxr_engine::{EmbedderHandle, Shutdown};
use mlxr_models::Placement;
use mlxr_text::Tokenizer;
use tokio::sync::Notify;

use crate::ServeError;
use crate::catalogue::Catalogue;
use crate::config::GpuLayers;
use crate::device::{Device, DeviceError};
use crate::ids::unix_s;
use crate::loaded::{Embeddings, EngineSetup, LoadError, Loaded, LoadedEmbedder, LoadedModel, ModelSource};
use crate::memory::{Memory, MemoryPlan, PlanError};
use crate::model_list::{ModelList, ModelSpec, ModelsError};
use crate::split::{CpuRoom, Room, Split};

pub use residence::{MemoryUse, Planned, Residence};

/// How long a model stays in memory after its last request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepAlive {
    For(Duration),
    Forever,
}

impl Default for KeepAlive {
    /// Ollama's documented default.
    fn default() -> Self {
        KeepAlive::For(Duration::from_secs(300))
    }
}

/// All models of a server.
pub struct Models {
    list: ModelList,
    setup: EngineSetup,
    memory: Memory,
    fallback: Option<Fallback>,
    keep_alive: KeepAlive,
    /// Names that stay in memory once they are there.
    pins: Vec<String>,
    /// When the list was made, for clients that ask how old a model is.
    pub created_s: u64,
    resident: Mutex<Vec<Resident>>,
    /// Held by whoever loads or unloads.
    loading: tokio::sync::Mutex<()>,
    /// Rung when a model falls idle or its keep-alive changes.
    idle: Notify,
}

/// The CPU behind a GPU: it computes what the GPU cannot take.
#[derive(Clone, Debug)]
pub struct Fallback {
    pub device: Device,
    pub memory: Memory,
    /// Whether both devices compute in the same memory.
    pub shares_memory: bool,
    /// Layers of a model that the first device is to take.
    pub gpu_layers: GpuLayers,
    pub role: Role,
}

impl Fallback {
    /// All of its memory, for layers of one model.
    pub fn room(&self) -> CpuRoom {
        let (bytes, is_shared) = (self.memory.limit_bytes, self.shares_memory);
        CpuRoom { bytes, device: Some(self.device.clone()), is_shared, gpu_layers: self.gpu_layers }
    }
}

/// What a second device is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Layers that the first has no room for.
    Layers,
    /// Those, and models that the first can take no layer of.
    Models,
}

/// One of the devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    First,
    Fallback,
}

/// A model in memory.
#[derive(Debug)]
struct Resident {
    model: Loaded,
    place: Place,
    /// Why it is not on the first device, if so.
    why_here: Option<String>,
    /// What it was loaded from.
    spec: Arc<ModelSpec>,
    n_leases: usize,
    last_used: Instant,
    keep_alive: KeepAlive,
    is_pinned: bool,
    /// Another model has its name now, or none: it goes as soon as it is idle.
    is_retired: bool,
}

impl Resident {
    /// When it may go, if nothing happens before.
    fn expires_at(&self) -> Option<Instant> {
        match self.keep_alive {
            _ if self.n_leases > 0 => None,
            _ if self.is_retired => Some(self.last_used),
            KeepAlive::For(time) if !self.is_pinned => self.last_used.checked_add(time),
            _ => None,
        }
    }

    /// Whether requests for its name get it.
    fn is_current(&self, name: &str) -> bool {
        !self.is_retired && self.spec.name == name
    }
}

impl Models {
    /// The models of a server; the first is the default. None is loaded yet.
    ///
    /// # Errors
    /// When there is none, or two have the same name.
    pub fn new(
        specs: Vec<ModelSpec>,
        setup: EngineSetup,
        memory: Memory,
        keep_alive: KeepAlive,
    ) -> Result<Arc<Models>, ModelsError> {
        Ok(Arc::new(Models::with_list(ModelList::new(specs)?, setup, memory, keep_alive)))
    }

    pub fn with_list(list: ModelList, setup: EngineSetup, memory: Memory, keep_alive: KeepAlive) -> Models {
        Models {
            list,
            setup,
            memory,
            fallback: None,
            keep_alive,
            pins: Vec::new(),
            created_s: unix_s(),
            resident: Mutex::default(),
            loading: tokio::sync::Mutex::default(),
            idle: Notify::new(),
        }
    }

    /// With a second device for what the first cannot take.
    pub fn with_fallback(self, fallback: Option<Fallback>) -> Models {
        Models { fallback, ..self }
    }

    /// With models that stay in memory once they are there.
    ///
    /// # Errors
    /// [`ServeError::ModelNotFound`].
    pub fn with_pins(self, names: &[String]) -> Result<Models, ServeError> {
        let pins = names.iter().map(|name| Ok(self.list.find(name)?.name.clone()));
        let pins = pins.collect::<Result<_, ServeError>>()?;
        Ok(Models { pins, ..self })
    }

    /// Every model's name, sorted.
    pub fn names(&self) -> Vec<String> {
        self.specs().iter().map(|spec| spec.name.clone()).collect()
    }

    /// Every model, sorted by name.
    pub fn specs(&self) -> Vec<Arc<ModelSpec>> {
        self.look();
        self.list.specs()
    }

    /// The model meant when none is named.
    pub fn default_name(&self) -> &str {
        self.list.default_name()
    }

    /// The models on disk that can be changed.
    pub fn catalogue(&self) -> Option<&Arc<Catalogue>> {
        self.list.catalogue()
    }

    /// The model in the binary.
    pub fn bundled(&self) -> Option<&ModelSource> {
        self.list.bundled()
    }

    /// A model by any name it goes by; Ollama's clients write `:latest` after names without a tag.
    ///
    /// # Errors
    /// There is no such model, or its file has a mistake.
    pub fn find(&self, name: &str) -> Result<Arc<ModelSpec>, ServeError> {
        self.look();
        self.list.find(name)
    }

    /// The name a model goes by here.
    ///
    /// # Errors
    /// There is no such model, or its file has a mistake.
    pub fn resolve(&self, name: &str) -> Result<String, ServeError> {
        Ok(self.find(name)?.name.clone())
    }

    /// Looks at the catalogue if that has not been done for a while.
    fn look(&self) {
        if self.list.is_stale() {
            self.refresh();
        }
    }

    /// Looks at the catalogue now. Blocks.
    pub fn refresh(&self) {
        if !self.list.refresh() {
            return;
        }
        for resident in self.lock().iter_mut() {
            let now = self.list.find(&resident.spec.name);
            resident.is_retired = !now.is_ok_and(|spec| Arc::ptr_eq(&spec, &resident.spec));
        }
        self.idle.notify_one();
    }

    /// The generating models in memory.
    pub fn resident(&self) -> Vec<Arc<LoadedModel>> {
        let generators = self.loaded().into_iter().filter_map(|model| match model {
            Loaded::Generator(model) => Some(model),
            Loaded::Embedder(_) => None,
        });
        generators.collect()
    }

    /// The models in memory, of either kind.
    pub fn loaded(&self) -> Vec<Loaded> {
        self.lock().iter().map(|resident| resident.model.clone()).collect()
    }

    /// The models in memory, what they were loaded from, and when each goes if nothing happens before; `None` is never.
    pub fn resident_until(&self) -> Vec<(Loaded, Arc<ModelSpec>, Option<Instant>)> {
        let now = Instant::now();
        let until = |resident: &Resident| match resident.keep_alive {
            // One in use stays at least as long as one that has just been used.
            KeepAlive::For(time) if resident.n_leases > 0 && !resident.is_pinned => now.checked_add(time),
            _ => resident.expires_at(),
        };
        let table = self.lock();
        let mut all: Vec<_> = table.iter().map(|r| (r.model.clone(), r.spec.clone(), until(r))).collect();
        all.sort_by(|(_, a, _), (_, b, _)| a.name.cmp(&b.name));
        all
    }

    /// A model to generate with, loaded if it was not. The load goes on when the caller gives up.
    ///
    /// # Errors
    /// There is no such model, it generates nothing, there is no memory for it, or its files are broken.
    pub async fn acquire(self: &Arc<Self>, name: &str) -> Result<Lease, ServeError> {
        let hold = self.hold(name, Purpose::Generate).await?;
        match hold.model.clone() {
            Loaded::Generator(model) => Ok(Lease { model, hold }),
            Loaded::Embedder(model) => Err(generates_nothing(&model.name)),
        }
    }

    /// A model for whatever all of them can do, loaded if it was not.
    ///
    /// # Errors
    /// There is no such model, no memory for it, or its files are broken.
    pub async fn acquire_any(self: &Arc<Self>, name: &str) -> Result<Hold, ServeError> {
        self.hold(name, Purpose::Any).await
    }

    /// A model to make vectors or scores with, loaded if it was not. One that generates does it from its last hidden
    /// states, in a thread of its own that starts with the first such request.
    ///
    /// # Errors
    /// There is no such model, no memory for it, or its files are broken.
    pub async fn acquire_embedder(self: &Arc<Self>, name: &str) -> Result<EmbedderLease, ServeError> {
        let hold = self.hold(name, Purpose::Any).await?;
        let handle = match hold.model.embeddings().running() {
            Some(handle) => handle,
            None => self.start_embeddings(&hold).await?,
        };
        Ok(EmbedderLease { handle, hold })
    }

    /// Starts the thread that makes vectors of a generating model, once there is room for it.
    async fn start_embeddings(&self, hold: &Hold) -> Result<EmbedderHandle, ServeError> {
        let _loading = self.loading.lock().await;
        if let Loaded::Generator(model) = &hold.model
            && model.embeddings.running().is_none()
        {
            let plan = model.embeddings_plan;
            let place = self.place_of(&hold.model);
            while self.used_bytes(place) + plan.total_bytes() > self.limit_bytes(place) {
                let Some(victim) = self.longest_idle(place) else {
                    return Err(self.out_of_memory(&model.name, plan, place));
                };
                self.unload_now(|resident| resident.model.is_same(&victim)).await;
            }
        }
        let (model, limits) = (hold.model.clone(), self.setup.embedder_limits());
        blocking(move || model.embeddings().start(limits)).await?.map_err(ServeError::internal)
    }

    async fn hold(self: &Arc<Self>, name: &str, purpose: Purpose) -> Result<Hold, ServeError> {
        if self.list.is_stale() {
            let models = self.clone();
            blocking(move || models.refresh()).await?;
        }
        let spec = self.list.find(name)?;
        if let Some(hold) = self.hold_loaded(&spec) {
            return Ok(hold);
        }
        let models = self.clone();
        let load = tokio::spawn(async move { models.load(spec, purpose).await });
        load.await.map_err(ServeError::internal)?
    }

    /// A hold on a model that is in memory and in order.
    fn hold_loaded(self: &Arc<Self>, spec: &Arc<ModelSpec>) -> Option<Hold> {
        let mut table = self.lock();
        let is_it = |resident: &&mut Resident| Arc::ptr_eq(&resident.spec, spec);
        let resident = table.iter_mut().filter(|resident| resident.model.failure().is_none()).find(is_it)?;
        resident.n_leases += 1;
        Some(Hold { model: resident.model.clone(), models: self.clone() })
    }

    async fn load(self: Arc<Self>, spec: Arc<ModelSpec>, purpose: Purpose) -> Result<Hold, ServeError> {
        let _loading = self.loading.lock().await;
        if let Some(hold) = self.hold_loaded(&spec) {
            return Ok(hold);
        }
        // What is left of it is a model whose engine or device broke down; others may have shared its fate.
        self.unload_now(|resident| Arc::ptr_eq(&resident.spec, &spec)).await;
        let is_broken = |resident: &Resident| resident.n_leases == 0 && resident.model.failure().is_some();
        while self.lock().iter().any(is_broken) {
            self.unload_now(is_broken).await;
        }
        match self.load_at(Place::First, &spec, purpose, None).await {
            Err(error) if error.concerns_device() && self.may_take_models() => {
                let why = error.to_string();
                tracing::warn!(model = spec.name, why, "the model goes to the other device");
                self.load_at(Place::Fallback, &spec, purpose, Some(why)).await
            }
            other => other,
        }
    }

    /// Loads a model on one of the devices; `why_here` says why it is not the first.
    async fn load_at(
        self: &Arc<Self>,
        place: Place,
        spec: &Arc<ModelSpec>,
        purpose: Purpose,
        why_here: Option<String>,
    ) -> Result<Hold, ServeError> {
        let name = &spec.name;
        let failed = |error: LoadError| {
            // Behind the first line stands advice for the command line.
            let reason = error.to_string().lines().next().unwrap_or_default().to_owned();
            match error.concerns_device() || error.concerns_settings() {
                true => ServeError::CannotCompute { model: name.clone(), reason },
                false => ServeError::CannotLoad { model: name.clone(), reason },
            }
        };
        let setup = self.setup_at(place).for_model(&spec.settings);
        let (planned, planned_setup, room) = (spec.clone(), setup.clone(), self.room(place, |_| 0));
        let (ckpt, plan) =
            blocking(move || plan(&planned.source, &planned_setup, &room)).await?.map_err(failed)?;
        if purpose == Purpose::Generate && ckpt.is_embedder() {
            return Err(generates_nothing(name));
        }
        let plan = self.make_room(name, &ckpt, &setup, plan, place).await?;
        let (loaded, cpu) = (spec.clone(), self.fallback.as_ref().map(|fallback| fallback.device.clone()));
        let load = move || -> Result<Loaded, LoadError> {
            let placement = placement(&plan, &setup.device, cpu.as_ref())?;
            Ok(if ckpt.is_embedder() {
                Loaded::Embedder(Arc::new(LoadedEmbedder::load(
                    &loaded.name,
                    &ckpt,
                    plan,
                    &setup,
                    &placement,
                )?))
            } else {
                Loaded::Generator(Arc::new(LoadedModel::load(&loaded, &ckpt, plan, &setup, &placement)?))
            })
        };
        let model = blocking(load).await?.map_err(failed)?;
        tracing::info!(model = name, %plan, device = model.device(), "model loaded");
        let resident = Resident {
            model: model.clone(),
            place,
            why_here,
            n_leases: 1,
            last_used: Instant::now(),
            keep_alive: spec.settings.keep_alive.unwrap_or(self.keep_alive),
            is_pinned: spec.settings.pin || self.pins.contains(name),
            // It may have been changed or removed while it was loaded.
            is_retired: !self.list.find(name).is_ok_and(|now| Arc::ptr_eq(&now, spec)),
            spec: spec.clone(),
        };
        self.lock().push(resident);
        Ok(Hold { model, models: self.clone() })
    }

    /// How engines are set up on a device.
    fn setup_at(&self, place: Place) -> EngineSetup {
        match (place, &self.fallback) {
            (Place::Fallback, Some(fallback)) => {
                EngineSetup { device: fallback.device.clone(), ..self.setup.clone() }
            }
            _ => self.setup.clone(),
        }
    }

    /// Whether the second device takes whole models.
    fn may_take_models(&self) -> bool {
        self.fallback.as_ref().is_some_and(|fallback| fallback.role == Role::Models)
    }

    /// What there is for a model at a place, beside what `used_bytes` says is taken of each.
    fn room(&self, place: Place, used_bytes: impl Fn(Place) -> u64) -> Room {
        let left = |place: Place| self.limit_bytes(place).saturating_sub(used_bytes(place));
        let cpu = self.fallback.as_ref().filter(|_| place == Place::First);
        let cpu = cpu.map(|fallback| CpuRoom { bytes: left(Place::Fallback), ..fallback.room() });
        let device = self.setup_at(place).device;
        let weight_bytes = device.weight_bytes();
        Room { device_bytes: left(place), weight_bytes, device: Some(device), cpu }
    }

    fn limit_bytes(&self, place: Place) -> u64 {
        match (place, &self.fallback) {
            (Place::Fallback, Some(fallback)) => fallback.memory.limit_bytes,
            _ => self.memory.limit_bytes,
        }
    }

    fn place_of(&self, model: &Loaded) -> Place {
        let table = self.lock();
        table.iter().find(|resident| resident.model.is_same(model)).map_or(Place::First, |found| found.place)
    }

    fn out_of_memory(&self, model: &str, plan: MemoryPlan, place: Place) -> ServeError {
        ServeError::OutOfMemory {
            model: model.to_owned(),
            device: self.setup_at(place).device.describe(),
            plan: Box::new(plan),
            used_bytes: self.used_bytes(place),
            limit_bytes: self.limit_bytes(place),
        }
    }

    /// Unloads idle models until `plan` fits. An arena nobody sized is planned anew to what busy models leave.
    async fn make_room(
        &self,
        name: &str,
        ckpt: &Checkpoint,
        setup: &EngineSetup,
        plan: MemoryPlan,
        place: Place,
    ) -> Result<MemoryPlan, ServeError> {
        loop {
            let room = self.room(place, |place| self.used_bytes(place));
            if room.holds(&plan) {
                return Ok(plan);
            }
            let Some(victim) = self.longest_idle(place) else {
                let smaller = plan_in(ckpt, setup, &room).map_err(ServeError::internal)?;
                if room.holds(&smaller) {
                    return Ok(smaller);
                }
                return Err(self.out_of_memory(name, smaller, place));
            };
            tracing::info!(model = victim.name(), "unloading to make room for {name}");
            self.unload_now(|resident| resident.model.is_same(&victim)).await;
        }
    }

    fn used_bytes(&self, place: Place) -> u64 {
        let table = self.lock();
        table.iter().map(|resident| self.bytes_at(resident, place)).sum()
    }

    /// Whether a model takes from the memory of a device.
    fn is_at(&self, resident: &Resident, place: Place) -> bool {
        self.bytes_at(resident, place) > 0
    }

    /// What a model takes from the memory of a device. What it takes more once it makes vectors counts on both of two.
    fn bytes_at(&self, resident: &Resident, place: Place) -> u64 {
        let (plan, total) = (resident.model.plan(), resident.model.total_bytes());
        let is_shared = self.fallback.as_ref().is_some_and(|fallback| fallback.shares_memory);
        match plan.split {
            Some(Split { cpu, gpu }) if !is_shared => {
                let share = if place == Place::First { gpu } else { cpu };
                share.total_bytes() + (total - plan.total_bytes())
            }
            _ if is_shared || resident.place == place => total,
            _ => 0,
        }
    }

    fn longest_idle(&self, place: Place) -> Option<Loaded> {
        let table = self.lock();
        let idle = table.iter().filter(|r| r.n_leases == 0 && (r.is_retired || !r.is_pinned));
        let idle = idle.filter(|resident| self.is_at(resident, place));
        idle.min_by_key(|resident| (!resident.is_retired, resident.last_used)).map(|r| r.model.clone())
    }

    /// Takes a model out and waits for its memory. Requests that still hold leases keep what they have.
    async fn unload_now(&self, is_it: impl Fn(&Resident) -> bool) {
        let removed = {
            let mut table = self.lock();
            let Some(found) = table.iter().position(is_it) else { return };
            table.remove(found)
        };
        let (model, name) = (removed.model, removed.spec.name.clone());
        model.shut_down(Shutdown::Drain);
        // Only a cancelled runtime fails here, and then the process ends anyway.
        let _ = blocking(move || model.join()).await;
        tracing::info!(model = name, "model unloaded");
    }

    /// Whether a model stays in memory whatever requests say about their keep-alive.
    pub fn is_pinned(&self, name: &str) -> bool {
        self.lock().iter().any(|resident| resident.is_current(name) && resident.is_pinned)
    }

    /// Loads models at the start. One that cannot be loaded is logged, the others are not kept from it.
    pub async fn preload(self: &Arc<Self>, names: &[String]) {
        for name in names {
            if let Err(error) = self.acquire(name).await {
                error.log();
                tracing::error!(model = name, %error, "the model could not be loaded");
            }
        }
    }

    /// Sets how long a model stays after its last request; `For(0)` lets it go as soon as it is idle. Returns whether
    /// it is in memory.
    pub fn set_keep_alive(&self, name: &str, keep_alive: KeepAlive) -> bool {
        let mut table = self.lock();
        let Some(resident) = table.iter_mut().find(|resident| resident.is_current(name)) else {
            return false;
        };
        resident.keep_alive = keep_alive;
        drop(table);
        self.idle.notify_one();
        true
    }

    /// Unloads what has outstayed its keep-alive. Returns when the next one will have.
    pub async fn unload_expired(&self) -> Option<Instant> {
        loop {
            let next = {
                let table = self.lock();
                let expiring = table.iter().filter_map(|r| Some((r.expires_at()?, r.model.clone())));
                expiring.min_by_key(|(at, _)| *at)
            };
            let (at, model) = next?;
            if Instant::now() < at {
                return Some(at);
            }
            let _loading = self.loading.lock().await;
            // It may have been asked for while this waited.
            self.unload_now(|resident| {
                let is_expired = resident.expires_at().is_some_and(|at| at <= Instant::now());
                resident.model.is_same(&model) && is_expired
            })
            .await;
        }
    }

    /// Unloads models as their keep-alives pass, for ever.
    pub async fn watch_keep_alive(&self) {
        loop {
            match self.unload_expired().await {
                Some(at) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(at.into()) => {}
                        () = self.idle.notified() => {}
                    }
                }
                None => self.idle.notified().await,
            }
        }
    }

    /// Ends every engine: `Drain` lets requests finish, `Cancel` does not.
    pub fn shut_down(&self, shutdown: Shutdown) {
        for model in self.loaded() {
            model.shut_down(shutdown);
        }
    }

    /// Unloads everything.
    pub async fn close(&self) {
        let _loading = self.loading.lock().await;
        while !self.lock().is_empty() {
            self.unload_now(|_| true).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Resident>> {
        self.resident.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Models {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Models").field("list", &self.list).finish_non_exhaustive()
    }
}

/// What a model is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Generate,
    Any,
}

fn generates_nothing(model: &str) -> ServeError {
    let reason =
        format!("{model:?} is an embedding model: it makes vectors or scores of texts and generates none");
    ServeError::invalid("model", reason)
}

/// Keeps a model in memory as long as it is held.
#[derive(Debug)]
pub struct Hold {
    pub model: Loaded,
    models: Arc<Models>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut table = self.models.lock();
        // A model that broke down may have been replaced under the same name.
        let resident = table.iter_mut().find(|r| r.model.is_same(&self.model));
        if let Some(resident) = resident {
            resident.n_leases -= 1;
            resident.last_used = Instant::now();
        }
        drop(table);
        self.models.idle.notify_one();
    }
}

impl Hold {
    /// Sets how long the model stays after its last request.
    pub fn set_keep_alive(&self, keep_alive: KeepAlive) {
        self.models.set_keep_alive(self.model.name(), keep_alive);
    }
}

/// The right to generate with a model: as long as it is held, the model stays.
#[derive(Debug)]
pub struct Lease {
    model: Arc<LoadedModel>,
    hold: Hold,
}

impl std::ops::Deref for Lease {
    type Target = LoadedModel;

    fn deref(&self) -> &LoadedModel {
        &self.model
    }
}

impl Lease {
    /// Sets how long the model stays after its last request.
    pub fn set_keep_alive(&self, keep_alive: KeepAlive) {
        self.hold.set_keep_alive(keep_alive);
    }
}

/// The right to make vectors or scores with a model: as long as it is held, the model stays.
#[derive(Debug)]
pub struct EmbedderLease {
    pub handle: EmbedderHandle,
    hold: Hold,
}

impl EmbedderLease {
    pub fn name(&self) -> &str {
        self.hold.model.name()
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        self.hold.model.tokenizer()
    }

    /// Prompts and lengths.
    pub fn embeddings(&self) -> &Embeddings {
        self.hold.model.embeddings()
    }

    /// Sets how long the model stays after its last request.
    pub fn set_keep_alive(&self, keep_alive: KeepAlive) {
        self.hold.set_keep_alive(keep_alive);
    }
}

fn plan(
    source: &ModelSource,
    setup: &EngineSetup,
    room: &Room,
) -> Result<(Checkpoint, MemoryPlan), LoadError> {
    let ckpt = source.open()?;
    let plan = plan_in(&ckpt, setup, room)?;
    Ok((ckpt, plan))
}

fn plan_in(ckpt: &Checkpoint, setup: &EngineSetup, room: &Room) -> Result<MemoryPlan, PlanError> {
    if ckpt.is_embedder() {
        let limits = setup.embedder_limits();
        return MemoryPlan::for_embedder(ckpt, &setup.options, &limits, room);
    }
    MemoryPlan::within(ckpt, &setup.options, room)
}

/// The devices a plan is for.
///
/// # Errors
/// One of them cannot be had.
fn placement(plan: &MemoryPlan, device: &Device, cpu: Option<&Device>) -> Result<Placement, DeviceError> {
    let whole = Placement::whole(device.backend()?);
    match (plan.split, cpu) {
        (Some(Split { cpu: share, .. }), Some(cpu)) => Ok(whole.with_first(share.n_layers, cpu.backend()?)),
        _ => Ok(whole),
    }
}

/// Runs what takes long away from the threads that serve connections.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ServeError> {
    tokio::task::spawn_blocking(work).await.map_err(ServeError::internal)
}
