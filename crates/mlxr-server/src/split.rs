//! How the layers of a model are divided between a GPU and the CPU.
//!
//! The last layers and the logits go to the GPU, the first layers and the table of embeddings stay with the CPU: the
//! rows of a step then change devices once, and what is chosen from is on the GPU.

use std::fmt;

use mlxr_checkpoint::Checkpoint;
use mlxr_engine::EngineOptions;
use mlxr_models::{DecoderConfig, ModelError};
use mlxr_tensor::{Backend, HostTensor, KvSpec};

use crate::config::GpuLayers;
use crate::device::{Device, WeightBytes};
use crate::memory::{MemoryPlan, PlanError, full_seqs, kv_type_error};
use crate::rehearsal::{self, Place};

/// What a model's share takes of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub n_layers: usize,
    pub weights_bytes: u64,
    pub kv_bytes: u64,
    pub step_bytes: u64,
}

impl Share {
    pub const fn total_bytes(&self) -> u64 {
        self.weights_bytes.saturating_add(self.kv_bytes).saturating_add(self.step_bytes)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Share { weights_bytes, kv_bytes, step_bytes, .. } = self;
        let total = self.total_bytes();
        write!(f, "{total} bytes: {weights_bytes} of weights, {kv_bytes} of KV cache, {step_bytes} per step")
    }
}

/// A model on two devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// The first layers.
    pub cpu: Share,
    /// The rest.
    pub gpu: Share,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Split { cpu, gpu } = self;
        let n_layers = gpu.n_layers + cpu.n_layers;
        write!(
            f,
            "{} of {n_layers} layers on the GPU ({gpu}), {} on the CPU ({cpu})",
            gpu.n_layers, cpu.n_layers
        )
    }
}

/// What there is for a model: the memory of the device it goes to, and that of the CPU where layers may stay there.
#[derive(Clone, Debug)]
pub struct Room {
    pub device_bytes: u64,
    /// What weights take of it.
    pub weight_bytes: WeightBytes,
    /// Where what steps take can be found out; without it that is estimated.
    pub device: Option<Device>,
    pub cpu: Option<CpuRoom>,
}

/// What there is on the CPU for layers a GPU does not take.
#[derive(Clone, Debug)]
pub struct CpuRoom {
    pub bytes: u64,
    /// As that of [`Room`].
    pub device: Option<Device>,
    /// Whether the GPU computes in the same memory.
    pub is_shared: bool,
    /// Layers the GPU is to take.
    pub gpu_layers: GpuLayers,
}

impl Room {
    /// All of a device's memory, in which weights take what they do in their files, and nothing else.
    pub const fn only(device_bytes: u64) -> Room {
        Room { device_bytes, weight_bytes: HostTensor::n_bytes, device: None, cpu: None }
    }

    /// Whether there is room for a plan.
    pub fn holds(&self, plan: &MemoryPlan) -> bool {
        match (plan.split, &self.cpu) {
            (None, _) => plan.total_bytes() <= self.device_bytes,
            (Some(_), None) => false,
            (Some(split), Some(cpu)) => {
                let n_cpu = if cpu.is_shared { plan.total_bytes() } else { split.cpu.total_bytes() };
                split.gpu.total_bytes() <= self.device_bytes && n_cpu <= cpu.bytes
            }
        }
    }

    /// What steps take beside weights of so many bytes, as `rehearse` counts with those where the device has memory of its
    /// own. What is wrong with the model or the device says so when it is loaded.
    pub(crate) fn rehearsed_step_bytes(
        &self,
        weights_bytes: u64,
        rehearse: impl FnOnce(&dyn Backend) -> Result<Option<u64>, ModelError>,
    ) -> Option<u64> {
        let device = self.device.as_ref()?.backend().ok()?;
        let bytes = rehearse(&*device).ok().flatten()?;
        Some(if device.memory().is_some() { bytes.saturating_sub(weights_bytes) } else { bytes })
    }
}

/// What steps take of each device.
#[derive(Clone, Copy, Debug)]
struct StepBytes {
    cpu: u64,
    gpu: u64,
}

impl MemoryPlan {
    /// Plans for a checkpoint as [`MemoryPlan::new`] does, on two devices where that is asked for or where one is too
    /// small: then the GPU takes as many layers as it has room for beside the keys and values of one full sequence.
    ///
    /// # Errors
    /// As [`MemoryPlan::new`].
    pub fn within(ckpt: &Checkpoint, options: &EngineOptions, room: &Room) -> Result<MemoryPlan, PlanError> {
        let whole = MemoryPlan::new(ckpt, options, room)?;
        let Some(cpu) = &room.cpu else { return Ok(whole) };
        let parts = Parts::new(ckpt, options, &whole, room.weight_bytes)?;
        let n_layers = parts.layers_bytes.len();
        let candidates = match cpu.gpu_layers {
            GpuLayers::Count(n) if n < n_layers => n..n + 1,
            GpuLayers::Auto if !room.holds(&whole) => 1..n_layers,
            _ => return Ok(whole),
        };
        let is_asked = matches!(cpu.gpu_layers, GpuLayers::Count(_));
        let rehearse = |n_gpu: usize| (n_gpu, parts.rehearsed(ckpt, options, &whole, n_gpu, room));
        let mut known = None;
        for n_gpu in candidates.rev() {
            // Fewer layers take no more of the GPU and no less of the CPU, so what does not fit with what those before
            // needed is not gone through.
            let (n_known, steps) = *known.get_or_insert_with(|| rehearse(n_gpu));
            let mut plan = parts.plan(&whole, n_gpu, room, steps);
            if n_known != n_gpu && room.holds(&plan) {
                let (_, steps) = *known.insert(rehearse(n_gpu));
                plan = parts.plan(&whole, n_gpu, room, steps);
            }
            if is_asked || room.holds(&plan) {
                return Ok(plan);
            }
        }
        Ok(whole)
    }
}

/// What a model's bytes belong to.
struct Parts {
    /// Of the weights of each layer, on the CPU and on the GPU.
    layers_bytes: Vec<[u64; 2]>,
    /// On the CPU.
    embed_bytes: u64,
    /// Of what comes after the last layer, on the GPU.
    end_bytes: u64,
    /// Of one block of one layer.
    block_bytes: u64,
    /// Blocks the arena must have, and those it would have where room is plenty.
    n_blocks: [u64; 2],
}

impl Parts {
    fn new(
        ckpt: &Checkpoint,
        options: &EngineOptions,
        whole: &MemoryPlan,
        weight_bytes: WeightBytes,
    ) -> Result<Parts, PlanError> {
        let config = DecoderConfig::for_checkpoint(ckpt)?;
        let mut layers_bytes = vec![[0; 2]; config.layers.len()];
        let (mut embed_bytes, mut end_bytes) = ([0; 2], 0);
        for tensor in ckpt.tensors() {
            let n_bytes = [tensor.n_bytes() as u64, weight_bytes(tensor) as u64];
            let layer = tensor.name().strip_prefix("layers.").and_then(|rest| rest.split('.').next());
            match layer.and_then(|layer| layers_bytes.get_mut(layer.parse::<usize>().ok()?)) {
                Some(layer_bytes) => {
                    layer_bytes.iter_mut().zip(n_bytes).for_each(|(sum, n_bytes)| *sum += n_bytes);
                }
                None if tensor.name() == "embed_tokens.weight" => embed_bytes = n_bytes,
                None => end_bytes += n_bytes[1],
            }
        }
        if config.tied {
            end_bytes += embed_bytes[1];
        }
        let embed_bytes = embed_bytes[0];
        let spec = KvSpec {
            n_blocks: 1,
            block_tokens: options.block_tokens,
            dtype: options.kv_dtype,
            layers: vec![config.kv_layer()],
        };
        let block_bytes = spec.n_bytes().ok_or_else(|| kv_type_error(&config, options))? as u64;
        let seq_blocks = (whole.n_ctx as usize).div_ceil(options.block_tokens) as u64;
        let n_blocks = match options.kv_bytes {
            Some(bytes) => [bytes as u64 / whole.block_bytes.max(1); 2],
            None => [seq_blocks, seq_blocks.saturating_mul(full_seqs(options))],
        };
        Ok(Parts { layers_bytes, embed_bytes, end_bytes, block_bytes, n_blocks })
    }

    /// The weights with the last `n_gpu` layers on the GPU: the CPU's share and the GPU's.
    fn shares(&self, n_gpu: usize) -> [Share; 2] {
        let n_cpu = self.layers_bytes.len() - n_gpu;
        let share = |layers: std::ops::Range<usize>, device: usize, other_bytes: u64| Share {
            n_layers: layers.len(),
            weights_bytes: self.layers_bytes[layers].iter().map(|bytes| bytes[device]).sum::<u64>()
                + other_bytes,
            kv_bytes: 0,
            step_bytes: 0,
        };
        [share(0..n_cpu, 0, self.embed_bytes), share(n_cpu..self.layers_bytes.len(), 1, self.end_bytes)]
    }

    /// What steps take with the last `n_gpu` layers on the GPU; where a device has no stand-in, what they take with all
    /// layers on one.
    fn rehearsed(
        &self,
        ckpt: &Checkpoint,
        options: &EngineOptions,
        whole: &MemoryPlan,
        n_gpu: usize,
        room: &Room,
    ) -> StepBytes {
        let [cpu, gpu] = self.shares(n_gpu);
        let rehearse = || {
            let first = room.cpu.as_ref()?.device.as_ref()?.backend().ok()?;
            let last = room.device.as_ref()?.backend().ok()?;
            let place = Place { first: Some((&*first, cpu.n_layers)), last: &*last };
            // What is wrong with the model or a device says so when it is loaded.
            let taken = rehearsal::of_decoder(place, ckpt, options, whole.n_ctx).ok().flatten()?;
            let beside = |device: &dyn Backend, bytes: u64, share: &Share| match device.memory() {
                Some(_) => bytes.saturating_sub(share.weights_bytes),
                None => bytes,
            };
            Some(StepBytes { cpu: beside(&*first, taken.first, &cpu), gpu: beside(&*last, taken.last, &gpu) })
        };
        rehearse().unwrap_or(StepBytes { cpu: whole.step_bytes, gpu: whole.step_bytes })
    }

    /// With the last `n_gpu` layers on the GPU, and as many KV blocks as both devices have room for.
    fn plan(&self, whole: &MemoryPlan, n_gpu: usize, room: &Room, steps: StepBytes) -> MemoryPlan {
        let [mut cpu, mut gpu] = self.shares(n_gpu);
        (cpu.step_bytes, gpu.step_bytes) = (steps.cpu, steps.gpu);
        let room_of = |share: &Share, bytes: u64| {
            let per_block = self.block_bytes * share.n_layers as u64;
            bytes.saturating_sub(share.total_bytes()).checked_div(per_block).unwrap_or(u64::MAX)
        };
        let cpu_bytes = room.cpu.as_ref().map_or(0, |cpu| cpu.bytes);
        let [least, most] = self.n_blocks;
        let fitting = room_of(&gpu, room.device_bytes).min(room_of(&cpu, cpu_bytes));
        let n_blocks = fitting.min(most).max(least);
        for share in [&mut cpu, &mut gpu] {
            share.kv_bytes = n_blocks.saturating_mul(self.block_bytes * share.n_layers as u64);
        }
        MemoryPlan {
            weights_bytes: cpu.weights_bytes + gpu.weights_bytes,
            kv_bytes: cpu.kv_bytes.saturating_add(gpu.kv_bytes),
            step_bytes: cpu.step_bytes + gpu.step_bytes,
            split: Some(Split { cpu, gpu }),
            ..*whole
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn plan(options: &EngineOptions, room: &Room) -> MemoryPlan {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/mlxr-27m-q8_0.gguf");
        MemoryPlan::within(&Checkpoint::open(&model).unwrap(), options, room).unwrap()
    }

    fn room(device_bytes: u64, bytes: u64, gpu_layers: GpuLayers) -> Room {
        let cpu = CpuRoom { bytes, device: None, is_shared: false, gpu_layers };
        Room { cpu: Some(cpu), ..Room::only(device_bytes) }
    }

    const PLENTY: u64 = 1 << 40;

    #[test]
    fn a_model_stays_whole_where_it_fits_or_where_that_is_asked_for() {
        let options = EngineOptions::default();
        let whole = plan(&options, &Room::only(PLENTY));
        assert_eq!(whole.split, None);
        for (bytes, layers) in [
            (PLENTY, GpuLayers::Auto),
            (PLENTY, GpuLayers::Count(99)),
            (PLENTY, GpuLayers::All),
            (1000, GpuLayers::All),
        ] {
            assert_eq!(plan(&options, &room(bytes, PLENTY, layers)).split, None, "{bytes} {layers:?}");
        }
        // No layer has room, so nothing is gained by a second device.
        assert_eq!(plan(&options, &room(1000, PLENTY, GpuLayers::Auto)).split, None);
    }

    #[test]
    fn the_gpu_takes_as_many_layers_as_it_has_room_for() {
        let options = EngineOptions::default();
        let whole = plan(&options, &Room::only(0));
        let asked = |n| plan(&options, &room(0, PLENTY, GpuLayers::Count(n)));
        let n_layers = {
            let Split { cpu, gpu } = asked(1).split.unwrap();
            cpu.n_layers + gpu.n_layers
        };
        for n_gpu in 1..n_layers {
            let least = asked(n_gpu).split.unwrap().gpu;
            assert_eq!(least.n_layers, n_gpu);
            let room = room(least.total_bytes(), PLENTY, GpuLayers::Auto);
            let found = plan(&options, &room);
            assert_eq!(found.split.unwrap().gpu, least, "{n_gpu}");
            assert!(room.holds(&found));
            let Split { cpu, gpu } = found.split.unwrap();
            assert_eq!(cpu.n_layers + gpu.n_layers, n_layers);
            assert_eq!(found.kv_bytes, whole.kv_bytes, "one full sequence");
            assert_eq!(found.total_bytes(), cpu.total_bytes() + gpu.total_bytes());
        }
    }

    #[test]
    fn the_arena_grows_with_the_room_of_both() {
        let options = EngineOptions::default();
        let one = plan(&options, &Room::only(0)).kv_bytes;
        let grown = |gpu, cpu| plan(&options, &room(gpu, cpu, GpuLayers::Count(4))).kv_bytes / one;
        assert_eq!([grown(PLENTY, PLENTY), grown(PLENTY, 0), grown(0, PLENTY)], [8, 1, 1]);
    }

    #[test]
    fn weights_count_as_the_device_has_them() {
        let options = EngineOptions::default();
        let twice: WeightBytes = |tensor| 2 * tensor.n_bytes();
        let wide = |room: Room| Room { weight_bytes: twice, ..room };
        let stored = plan(&options, &Room::only(PLENTY)).weights_bytes;
        assert_eq!(plan(&options, &wide(Room::only(PLENTY))).weights_bytes, 2 * stored);
        // Of two devices it is the GPU's alone.
        let room = room(PLENTY, PLENTY, GpuLayers::Count(4));
        let [plain, wide] = [room.clone(), wide(room)].map(|room| plan(&options, &room).split.unwrap());
        assert_eq!(wide.gpu.weights_bytes, 2 * plain.gpu.weights_bytes);
        assert_eq!(wide.cpu.weights_bytes, plain.cpu.weights_bytes);
    }

    #[test]
    fn devices_that_share_memory_are_counted_together() {
        let options = EngineOptions::default();
        let found = plan(&options, &room(PLENTY, PLENTY, GpuLayers::Count(4)));
        let shared = |bytes| Room {
            cpu: Some(CpuRoom { bytes, device: None, is_shared: true, gpu_layers: GpuLayers::Count(4) }),
            ..Room::only(PLENTY)
        };
        assert!(shared(found.total_bytes()).holds(&found));
        assert!(!shared(found.total_bytes() - 1).holds(&found));
        assert!(!Room::only(PLENTY).holds(&found), "there is no second device");
    }
}
