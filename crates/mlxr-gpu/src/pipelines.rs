//! Kernels made ready: the file specialised, compiled once and kept.
//!
//! Compiling takes a driver some tenths of a second for the largest; dispatches are recorded before it is done.

use std::any::{Any, TypeId};
use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

use minijinja::Environment;
use minijinja::syntax::SyntaxConfig;
use serde::Serialize;

use crate::barriers;
use crate::device::{Gpu, GpuError, IMMEDIATE_BYTES};
use crate::pipeline_cache::PipelineCache;
use crate::registers;

/// Whether a kernel only reads a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// A kernel: its file, and the values the file is specialised by (the implementing type's fields).
pub(crate) trait Kernel: Serialize + Copy + Eq + Hash + Send + 'static {
    /// The file's name in `wgsl/`.
    const FILE: &'static str;

    /// One entry per binding, in order.
    fn bindings(&self) -> Vec<Access>;
}

macro_rules! sources {
    ($($file:literal),* $(,)?) => {
        /// Every file of `wgsl/`.
        const SOURCES: &[(&str, &str)] = &[$(($file, include_str!(concat!("wgsl/", $file)))),*];
    };
}

sources!(
    "activate.wgsl",
    "add.wgsl",
    "argmax.wgsl",
    "attention.wgsl",
    "attention_join.wgsl",
    "attention_merge.wgsl",
    "attention_params.wgsl",
    "attention_tiles.wgsl",
    "attention_unit_keys.wgsl",
    "attention_unit_values.wgsl",
    "attention_units.wgsl",
    "combine.wgsl",
    "copy_words.wgsl",
    "draw.wgsl",
    "embed.wgsl",
    "exp_sum.wgsl",
    "feed_tokens.wgsl",
    "float_key.wgsl",
    "float_rows.wgsl",
    "fragment_rows.wgsl",
    "fragments.wgsl",
    "functions.wgsl",
    "gate.wgsl",
    "gated.wgsl",
    "grid.wgsl",
    "group.wgsl",
    "guess.wgsl",
    "guess_rows.wgsl",
    "half_bits.wgsl",
    "half_rows.wgsl",
    "kv_types.wgsl",
    "lanes.wgsl",
    "largest.wgsl",
    "layer_norm.wgsl",
    "matmul.wgsl",
    "matmul_few.wgsl",
    "matmul_few_codes.wgsl",
    "matmul_few_end.wgsl",
    "matmul_few_load.wgsl",
    "matvec_codes.wgsl",
    "matvec_end.wgsl",
    "matvec_floats.wgsl",
    "matvec_loop.wgsl",
    "matvec_norm.wgsl",
    "matvec_params.wgsl",
    "matvec_start.wgsl",
    "move_rows.wgsl",
    "pad_rows.wgsl",
    "patches.wgsl",
    "quantise.wgsl",
    "quantise_rows.wgsl",
    "reach.wgsl",
    "rms_norm.wgsl",
    "rope.wgsl",
    "rope_store.wgsl",
    "route.wgsl",
    "row_factor.wgsl",
    "scale.wgsl",
    "scale_rows.wgsl",
    "squares.wgsl",
    "store_kv.wgsl",
    "turn.wgsl",
    "unpack.wgsl",
    "weight_codes.wgsl",
    "weight_floats.wgsl",
    "workgroup_max.wgsl",
    "workgroup_sum.wgsl",
);

/// A kernel, compiled or being compiled.
#[derive(Debug)]
pub(crate) struct Pipeline {
    /// The driver's reason where it refuses the kernel.
    compiled: OnceLock<Result<wgpu::ComputePipeline, String>>,
    pub(crate) layout: wgpu::BindGroupLayout,
    /// The file it comes from.
    pub(crate) kernel: &'static str,
    /// Tells pipelines apart in caches.
    pub(crate) id: usize,
}

impl Pipeline {
    pub(crate) fn is_compiled(&self) -> bool {
        self.compiled.get().is_some()
    }

    /// Waits until it is compiled.
    ///
    /// # Errors
    /// [`GpuError::Kernel`] when the driver refuses it.
    pub(crate) fn compiled(&self) -> Result<&wgpu::ComputePipeline, GpuError> {
        let refused = |reason: &String| GpuError::Kernel { kernel: self.kernel, reason: reason.clone() };
        self.compiled.wait().as_ref().map_err(refused)
    }
}

/// The kernels of a device.
pub(crate) struct Pipelines {
    known: Mutex<Known>,
    cache: Option<Arc<PipelineCache>>,
}

/// By kernel type: a map from the type's values to pipelines.
#[derive(Default)]
struct Known {
    by_type: HashMap<TypeId, Box<dyn Any + Send>>,
    n_pipelines: usize,
}

/// The files, with `//#` before template statements so that they read as WGSL; parsed once for all devices and their
/// stand-ins.
static TEMPLATES: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut env = Environment::new();
    env.set_syntax(
        SyntaxConfig::builder().line_statement_prefix("//#").build().expect("distinct delimiters"),
    );
    env.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
    for (name, source) in SOURCES {
        env.add_template(name, source).expect("a well-formed template");
    }
    env
});

impl Pipelines {
    pub(crate) fn new() -> Self {
        Self { known: Mutex::default(), cache: None }
    }

    /// Keeps what is compiled from now on.
    pub(crate) fn keep_in(&mut self, cache: Option<PipelineCache>) {
        self.cache = cache.map(Arc::new);
    }

    /// Writes what was compiled since the last time to where it is kept.
    pub(crate) fn save(&self) {
        if let Some(cache) = &self.cache {
            cache.save();
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).n_pipelines
    }

    /// The files that hold a kernel and not a part of several.
    #[cfg(test)]
    pub(crate) fn kernel_files() -> impl Iterator<Item = &'static str> {
        let is_part = |name: &str| {
            let include = format!("//# include \"{name}\"");
            SOURCES.iter().any(|(_, source)| source.contains(&include))
        };
        SOURCES.iter().map(|(name, _)| *name).filter(move |name| !is_part(name))
    }

    /// The kernel as `spec` asks for it. On first use a thread begins to compile it, so that several are compiled at a time
    /// while the host goes on recording.
    ///
    /// # Errors
    /// [`GpuError::Kernel`] when its file cannot be specialised.
    pub(crate) fn get<K: Kernel>(&self, gpu: &Gpu, spec: &K) -> Result<Arc<Pipeline>, GpuError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Known { by_type, n_pipelines } = &mut *known;
        let map =
            by_type.entry(TypeId::of::<K>()).or_insert_with(|| Box::new(HashMap::<K, Arc<Pipeline>>::new()));
        let map: &mut HashMap<K, Arc<Pipeline>> = map.downcast_mut().expect("the map of this type");
        if let Some(pipeline) = map.get(spec) {
            return Ok(pipeline.clone());
        }
        let source = self.render(spec)?;
        let layout = bind_group_layout(gpu, K::FILE, &spec.bindings());
        let (compiled, kernel) = (OnceLock::new(), K::FILE);
        let pipeline = Arc::new(Pipeline { compiled, layout, kernel, id: *n_pipelines });
        *n_pipelines += 1;
        map.insert(*spec, pipeline.clone());
        drop(known);
        let job = Compiling {
            device: gpu.device.clone(),
            is_vulkan: gpu.info.api == "vulkan",
            cache: self.cache.clone(),
            pipeline: pipeline.clone(),
        };
        // A thread that cannot be had is the same as one that ends at once: this one compiles.
        let source = Arc::new(source);
        let (of_thread, beside) = (source.clone(), job.clone());
        let thread = std::thread::Builder::new().name("mlxr-compile".to_owned());
        if thread.spawn(move || beside.run(&of_thread)).is_err() {
            job.run(&source);
        }
        Ok(pipeline)
    }

    pub(crate) fn render<K: Kernel>(&self, spec: &K) -> Result<String, GpuError> {
        let failed = |e: minijinja::Error| GpuError::Kernel { kernel: K::FILE, reason: format!("{e:#}") };
        TEMPLATES.get_template(K::FILE).map_err(failed)?.render(minijinja::value::Serde(spec)).map_err(failed)
    }
}

/// What a thread takes along that compiles a kernel.
#[derive(Clone)]
struct Compiling {
    device: wgpu::Device,
    is_vulkan: bool,
    cache: Option<Arc<PipelineCache>>,
    pipeline: Arc<Pipeline>,
}

impl Compiling {
    fn run(&self, source: &str) {
        let compile = AssertUnwindSafe(|| self.compile(source));
        // Who waits for the kernel is told of a panic too.
        let compiled = catch_unwind(compile).unwrap_or_else(|_| Err("its compiler stopped".to_owned()));
        // Who waits for the kernel may save the cache right after.
        if let Some(cache) = &self.cache {
            cache.note();
        }
        // Nobody else sets it.
        let _ = self.pipeline.compiled.set(compiled);
    }

    fn compile(&self, source: &str) -> Result<wgpu::ComputePipeline, String> {
        let Compiling { device, cache, pipeline, .. } = self;
        let label = Some(pipeline.kernel);
        let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let module = self.module(source)?;
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label,
            bind_group_layouts: &[Some(&pipeline.layout)],
            immediate_size: IMMEDIATE_BYTES,
        });
        let compiled = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label,
            layout: Some(&layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: cache.as_deref().map(PipelineCache::cache),
        });
        match pollster::block_on(scope.pop()) {
            None => Ok(compiled),
            Some(error) => Err(error.to_string()),
        }
    }
}

impl Compiling {
    fn module(&self, source: &str) -> Result<wgpu::ShaderModule, String> {
        let Compiling { device, is_vulkan, pipeline, .. } = self;
        let label = Some(pipeline.kernel);
        if registers::are_used(source) {
            if !device.features().contains(wgpu::Features::PASSTHROUGH_SHADERS) || !is_vulkan {
                return Err("the device takes no kernels in SPIR-V".to_owned());
            }
            let descriptor = wgpu::ShaderModuleDescriptorPassthrough {
                label,
                spirv: Some(registers::compiled(source)?.into()),
                entry_points: Cow::Owned(vec![wgpu::PassthroughShaderEntryPoint {
                    name: "main".into(),
                    // Of interest on Metal.
                    workgroup_size: (1, 1, 1),
                }]),
                ..Default::default()
            };
            // SAFETY: naga has validated the kernel before calls in it became what they stand for; indices come from the
            // shapes that the ops assert, and what it computes is compared before it is used.
            return Ok(unsafe { device.create_shader_module_passthrough(descriptor) });
        }
        let source = if *is_vulkan && barriers::are_told(pipeline.kernel, source) {
            wgpu::ShaderSource::Naga(Cow::Owned(barriers::ordered(source)?))
        } else {
            wgpu::ShaderSource::Wgsl(source.into())
        };
        let descriptor = wgpu::ShaderModuleDescriptor { label, source };
        if cfg!(debug_assertions) {
            return Ok(device.create_shader_module(descriptor));
        }
        // SAFETY: the same kernels run with bounds and loop checks in every development build, in the conformance suite;
        // indices come from the shapes that the ops assert.
        Ok(unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) })
    }
}

fn bind_group_layout(gpu: &Gpu, file: &str, bindings: &[Access]) -> wgpu::BindGroupLayout {
    let entries: Vec<_> = (0..)
        .zip(bindings)
        .map(|(binding, access)| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only: *access == Access::Read },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        })
        .collect();
    let descriptor = wgpu::BindGroupLayoutDescriptor { label: Some(file), entries: &entries };
    gpu.device.create_bind_group_layout(&descriptor)
}
